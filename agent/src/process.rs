//! Child processes: a command with a deadline, of which nothing is left when it ends.
//!
//! ```text
//!   Job ──► start ──► follow ──┬─ exited ────┐
//!                              ├─ deadline ──┼─► end what remains ──► drain ──► reap ──► Output
//!                              └─ cancelled ─┘   TERM, grace, KILL,                    or error
//!                                                sweep by marker
//! ```
//!
//! A command runs in a session of its own, as the app's user, with stdin closed, no descriptor of
//! the agent's, and an environment of which every entry was chosen. It is judged by the exit of the
//! direct child: one that leaves a daemon holding the output pipe holds up nobody.
//!
//! What remains is found, where the kernel has cgroups of version 2 and the agent may make some, by a
//! cgroup of the job's own, which nothing of it can leave ([`CgroupHome`]). Elsewhere the agent is the
//! parent of orphans ([`adopt_orphans`]), and the job's processes are known by a limit that they inherit.
//! In both cases also by process group and session while the direct child is not yet reaped (so that its
//! pid cannot name anything else), by descent from it, and, as the last resort, by a marker in the
//! environment, which a daemon keeps when it calls `setsid` and forks twice.
//!
//! A child also dies with the thread that started it (`PR_SET_PDEATHSIG` means the thread), so [`run`]
//! is for the agent's main thread, which runs the runtime, and not for a pool's.
//!
//! Dropping [`run`]'s future kills the child's process group at once and sweeps the rest in a task of
//! the runtime; what the runtime no longer gets to is for [`end_leftovers`] at the next start.
//!
//! The one child that is not contained is the app's own start command: [`launch`]. It has a cgroup that
//! is never swept, and no limit and no marker.
//!
//! Refused here: to read the agent's environment, to know any recipe, to retry.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::CommandLine;
use tracing::warn;

mod account;
pub(crate) mod cgroup;
mod contain;
mod error;
mod launch;
mod log;
mod orphans;
mod streams;
pub(crate) mod table;

pub use account::{Account, AccountError};
pub use cgroup::CgroupHome;
pub use error::ProcessError;
pub use launch::{Launched, launch};
pub use orphans::adopt_orphans;

use cgroup::{Cgroup, Kind};
use contain::{Contained, Ending, Marker, Target};
use orphans::Limit;
pub(crate) use orphans::reap_orphan;
pub(crate) use table::{
    Stat, TICKS_PER_SECOND, all, arguments, descendants, executable, is_in_cgroup, lives, members,
    now_ticks, off_thread, own_line, owned, real_uid, session_members, working_directory,
};

/// The environment of a child, by name.
pub type Environment = BTreeMap<String, String>;

/// How long a child may take to end by itself once it was asked to.
pub const GRACE: Duration = Duration::from_secs(5);

/// The most bytes of stdout that [`Job::capture`] keeps; the rest is read and thrown away.
pub const CAPTURE_BYTES_MAX: usize = 64 * 1024;

/// Where programs are looked for, unless the environment that is passed in says otherwise.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Marks every contained child of one app; its value is the app's tag.
const MARKER_APP: &str = "TOWLINE_CHILD";

/// Marks the children of one job, so that a job that ends leaves its neighbours alone.
const MARKER_JOB: &str = "TOWLINE_JOB";

/// What all commands of one app have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// The user they run as; `None` for the agent's own.
    pub account: Option<Account>,
    /// What the caller lets through of the agent's environment.
    pub environment: Environment,
    /// Identifies the app on this instance, such as its directory; never two apps by one tag.
    pub tag: String,
    /// Where each gets a cgroup of its own; `None` where there are none.
    pub cgroups: Option<CgroupHome>,
    /// How long they may take to end once asked to; [`GRACE`] by default.
    pub grace: Duration,
}

/// A command to be run to its end.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// What it is for, in messages: `install`, `status`.
    pub label: &'a str,
    /// The program and its arguments.
    pub command: &'a CommandLine,
    /// Its working directory; `PWD` names it as given.
    pub cwd: &'a Path,
    /// The user, environment and tag.
    pub run_as: &'a RunAs,
    /// Entries that only this job has; they win over all but `PWD` and the markers.
    pub extra: Environment,
    /// How long it may take, the grace not included.
    pub deadline: Duration,
    /// Keep the first [`CAPTURE_BYTES_MAX`] bytes of stdout apart from the log.
    pub capture: bool,
    /// What becomes of processes that it leaves behind when it exits by itself.
    pub remains: Remains,
}

/// What becomes of processes that a command leaves behind when it exits by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// They are ended, wherever they went.
    End,
    /// They stay, and bear no marker: for a reload command, whose processes may be the app's. At
    /// the deadline and when cancelled, its session is ended all the same.
    Leave,
}

/// What a command that succeeded gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The end of stdout and stderr, without control characters.
    pub log: String,
    /// The first bytes of stdout; empty unless [`Job::capture`] was set.
    pub stdout: Vec<u8>,
    /// How many processes it had left running, that were then ended.
    pub leftovers: usize,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Did it succeed?
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Code(-1),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(known) => write!(f, "signal {known}"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// Runs a command to its end and leaves nothing of it behind.
///
/// - `stop`: cancelled when the work is no longer wanted; the command is asked to end (TERM), and
///   killed after the grace.
///
/// Dropping the future kills without asking; see the module's header.
///
/// # Errors
///
/// It could not be started, took too long, failed, or was cancelled. In each case nothing of it is
/// left, or the log says what would not die.
pub async fn run(job: &Job<'_>, stop: &CancellationToken) -> Result<Output, ProcessError> {
    let label = job.label.to_owned();
    if stop.is_cancelled() {
        return Err(ProcessError::Cancelled { label });
    }
    let mut child = Contained::start(job)?;
    let ending = child.follow(job.deadline, stop).await;
    let leftovers = match (ending, job.remains) {
        (Ending::Exited, Remains::Leave) => 0,
        _ => child.end_what_remains(job.run_as.grace).await,
    };
    let (exit, streams) = child.reap().await;
    if ending == Ending::Exited && leftovers > 0 {
        warn!(label, leftovers, "ended processes that a command had left running");
    }
    let command = job.command.to_string();
    let log = streams.log.text();
    match (ending, exit) {
        (Ending::Cancelled, _) => Err(ProcessError::Cancelled { label }),
        (Ending::Deadline, _) => {
            Err(ProcessError::Deadline { label, command, deadline: job.deadline, log })
        }
        (Ending::Exited, Ok(Exit::Code(0))) => {
            Ok(Output { log, stdout: streams.captured, leftovers })
        }
        (Ending::Exited, Ok(exit)) => Err(ProcessError::Failed { label, command, exit, log }),
        (Ending::Exited, Err(source)) => Err(ProcessError::Watch { label, command, source }),
    }
}

/// Has what the agent makes be readable by others unless it says otherwise, whatever shell it was started
/// from: the app's user must be able to enter releases. First thing in `main`.
pub fn set_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

/// Ends what commands of the app with this `tag` have left, of an agent that was killed.
///
/// Called once at start, before any command is run: it would end those as well. Returns how many
/// processes were found.
pub async fn end_leftovers(tag: &str, cgroups: Option<&CgroupHome>) -> usize {
    let left = |home: &CgroupHome| home.of(tag, Kind::Job);
    let target = Target {
        leader: None,
        marker: Some(Marker::of_app(tag)),
        cgroups: cgroups.map(left).unwrap_or_default(),
        limit: Some(Limit::of_app(tag)),
    };
    let found = contain::end(&target, Duration::ZERO).await;
    if let Some(home) = cgroups {
        home.remove_empty(tag);
    }
    found
}

/// What a child is held in, besides its session.
#[derive(Debug)]
struct Holds {
    cgroup: Option<Cgroup>,
    limit: Option<Limit>,
    /// Does it die with the agent?
    is_contained: bool,
}

impl Holds {
    /// Makes the child's cgroup, as far as there can be any. A full or foreign one keeps no child from
    /// running: it is found by other means then.
    fn make(run_as: &RunAs, kind: Kind, is_contained: bool) -> Holds {
        let made = run_as.cgroups.as_ref().map(|home| {
            if kind == Kind::App {
                home.remove_empty(&run_as.tag);
            }
            Cgroup::make(home, &run_as.tag, kind)
        });
        let cgroup = made.and_then(|made| {
            made.inspect_err(|error| warn!(%error, "could not make a cgroup for a command")).ok()
        });
        Holds { cgroup, limit: None, is_contained }
    }
}

/// Puts a command together: arguments, directory, user, environment and what happens before exec.
fn assemble(
    command: &CommandLine,
    cwd: &Path,
    run_as: &RunAs,
    own: &Environment,
    holds: &Holds,
) -> Command {
    let mut child = Command::new(&command.program);
    child
        .args(&command.args)
        .current_dir(cwd)
        .stdin(Stdio::null())
        .env_clear()
        .envs(environment(run_as, own, cwd));
    if let Some(account) = foreign(run_as) {
        // As root, setting a uid drops the supplementary groups as well.
        child.uid(account.uid).gid(account.gid);
    }
    confine(&mut child, holds);
    child
}

/// Returns the account where it is not the agent's own.
fn foreign(run_as: &RunAs) -> Option<&Account> {
    run_as.account.as_ref().filter(|account| !account.is_own())
}

/// Returns the whole environment of a child; later entries win over earlier ones.
fn environment(run_as: &RunAs, own: &Environment, cwd: &Path) -> Environment {
    let account = run_as.account.clone().unwrap_or_else(Account::own);
    let mut all = Environment::from([("PATH".to_owned(), PATH.to_owned())]);
    all.extend(run_as.environment.clone());
    // Not those of the agent: a tool that finds root's home would use or refuse its files.
    all.insert("HOME".to_owned(), account.home.to_string_lossy().into_owned());
    all.insert("USER".to_owned(), account.name.clone());
    all.insert("LOGNAME".to_owned(), account.name);
    // Markers are given to this job alone, and never passed on from the agent's own surroundings.
    all.remove(MARKER_APP);
    all.remove(MARKER_JOB);
    all.extend(own.clone());
    // The logical path: an app that looks at it wants `current`, not where that points today.
    all.insert("PWD".to_owned(), cwd.to_string_lossy().into_owned());
    all
}

/// Arranges the same for a program of the agent's own, such as `ssh`, which whoever starts it ends.
pub(crate) fn confine_own(command: &mut Command) {
    confine(command, &Holds { cgroup: None, limit: None, is_contained: true });
}

/// Arranges what the child does between fork and exec.
#[allow(unsafe_code, reason = "pre_exec: what runs there makes async-signal-safe calls only")]
fn confine(command: &mut Command, holds: &Holds) {
    let agent = nix::unistd::getpid();
    let descriptors = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(DESCRIPTORS_MAX, |(soft, _)| soft.min(DESCRIPTORS_MAX));
    let door = holds.cgroup.as_ref().and_then(|cgroup| cgroup.door().ok());
    let (limit, contained) = (holds.limit, holds.is_contained);
    // SAFETY: `enter` and `prepare` allocate nothing, take no lock, and make system calls only.
    unsafe {
        command.pre_exec(move || {
            enter(door.as_ref(), limit);
            prepare(agent, descriptors, contained).map_err(Into::into)
        });
    }
}

/// Has the runtime wait for a pidfd, which is readable once its process has exited.
#[allow(unsafe_code, reason = "tokio leaves it to the caller that a descriptor stays what it is")]
fn watch_exit(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, by `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// Has anybody this file open for writing, or mapped so? Where the file system cannot tell, no.
///
/// - `file`: of the agent's own user, opened for reading.
#[allow(unsafe_code, reason = "fcntl's leases have no safe wrapper")]
pub(crate) fn has_writer(file: &std::fs::File) -> bool {
    use std::os::fd::AsRawFd;
    /// fcntl(2): which signal says so.
    const F_SETSIG: libc::c_int = 10;
    let file = file.as_raw_fd();
    // SAFETY: three calls with numbers, on a descriptor that is open. A lease to read is refused to a file
    // that is open for writing. It is given back at once; should somebody open the file in between, the
    // kernel says so by a signal that is ignored by default, and no other.
    unsafe {
        libc::fcntl(file, F_SETSIG, libc::SIGURG);
        let refused = libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) == -1
            && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        libc::fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
        refused
    }
}

/// The most descriptors that are closed one by one, on kernels that cannot close a range.
const DESCRIPTORS_MAX: u64 = 65_536;

/// The highest number of a signal.
const SIGNAL_MAX: libc::c_int = 64;

/// Goes into what holds the child. One that is refused is found by other means, and runs.
fn enter(door: Option<&OwnedFd>, limit: Option<Limit>) {
    if let Some(door) = door {
        rustix::io::write(door, b"0").ok();
    }
    if let Some(value) = limit.map(Limit::value) {
        use nix::sys::resource::{Resource, setrlimit};
        setrlimit(Resource::RLIMIT_RTTIME, value, value).ok();
    }
}

/// What the child does between fork and exec; by then it has its user and its directory.
#[allow(unsafe_code, reason = "system calls that have no safe wrapper")]
fn prepare(agent: nix::unistd::Pid, descriptors: u64, contained: bool) -> nix::Result<()> {
    nix::unistd::setsid()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // SAFETY: no handler is installed, only removed. Numbers that the C library keeps for itself
    // are refused, which is as good.
    for signal in 1..=SIGNAL_MAX {
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    close_on_exec(descriptors);
    if contained {
        // A core dump would hold what the environment and the memory hold.
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // The agent may have died before the line above; then nobody would end this child.
        if nix::unistd::getppid() != agent {
            return Err(nix::Error::ESRCH);
        }
    }
    Ok(())
}

/// Has every descriptor but the first three closed by exec: a library may have opened some without.
#[allow(unsafe_code, reason = "close_range has no safe wrapper, and glibc before 2.34 none at all")]
fn close_on_exec(descriptors: u64) {
    const FIRST: libc::c_uint = 3;
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: takes three numbers; flags descriptors of this process, none of which is used again.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return;
    }
    // Before Linux 5.11.
    for descriptor in 3..libc::c_int::try_from(descriptors).unwrap_or(libc::c_int::MAX) {
        // SAFETY: a number that names no descriptor is refused.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_as(environment: &[(&str, &str)]) -> RunAs {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        RunAs {
            account: Some(Account {
                uid: 7,
                gid: 7,
                name: "app".to_owned(),
                home: "/home/app".into(),
            }),
            environment: environment.iter().map(pair).collect(),
            tag: "/srv/web".to_owned(),
            cgroups: None,
            grace: GRACE,
        }
    }

    #[test]
    fn the_environment_is_made_of_chosen_entries() {
        let extra = Environment::from([("HOME".to_owned(), "/tmp/home".to_owned())]);
        let cwd = Path::new("/srv/web/current");
        let cases = [
            ("a default path", run_as(&[]), Environment::new(), "PATH", Some(PATH)),
            (
                "the caller's path",
                run_as(&[("PATH", "/x")]),
                Environment::new(),
                "PATH",
                Some("/x"),
            ),
            (
                "the account's home",
                run_as(&[("HOME", "/root")]),
                Environment::new(),
                "HOME",
                Some("/home/app"),
            ),
            ("the job's home", run_as(&[]), extra, "HOME", Some("/tmp/home")),
            (
                "the account's name",
                run_as(&[("USER", "root")]),
                Environment::new(),
                "USER",
                Some("app"),
            ),
            (
                "the logical directory",
                run_as(&[("PWD", "/")]),
                Environment::new(),
                "PWD",
                Some("/srv/web/current"),
            ),
            (
                "no marker from outside",
                run_as(&[("TOWLINE_CHILD", "x")]),
                Environment::new(),
                "TOWLINE_CHILD",
                None,
            ),
        ];
        for (rule, run_as, extra, name, expected) in cases {
            let all = environment(&run_as, &extra, cwd);
            assert_eq!(all.get(name).map(String::as_str), expected, "{rule}");
        }
    }

    #[test]
    fn an_exit_is_named() {
        let cases = [
            (Exit::Code(3), "exit status 3"),
            (Exit::Signal(9), "signal SIGKILL"),
            (Exit::Signal(40), "signal 40"),
        ];
        for (exit, expected) in cases {
            assert_eq!(exit.to_string(), expected);
        }
    }
}
