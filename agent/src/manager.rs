//! The cluster manager: the process that owns the app's workers. Found, told, stopped, and watched
//! while it replaces them.
//!
//! ```text
//!   pid file ─┐            ┌─ Running(Process) ──► signal, stop: through its pidfd, or its unit
//!   status ───┼─► proof ───┤         └─► Snapshot ──► (signal) ──► prove: look, judge, look again
//!   unit ─────┘            └─ Nothing(why) ──► the caller may start it
//! ```
//!
//! Invariants
//! - A pid is a claim. A [`Process`] exists only after its pidfd was opened and the process behind it
//!   was then examined: it lives, is the app user's, is not the agent nor above it, and is no younger
//!   than the pid file that names it; or it lies in the control group of the unit that names it.
//! - No signal is ever sent by number. A process that has ended is [`SignalError::Gone`], whoever has
//!   its pid by then.
//! - Doubt is an error or an absence with its reason; never a process.
//!
//! Not here: when to reload, restart or start. That is for the machine.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{CommandLine, Find, ReloadSignal};

use crate::process::{
    self, Environment, Exit, Job, ProcessError, Remains, RunAs, Stat, TICKS_PER_SECOND, off_thread,
};
use crate::shown::short_line;
use crate::systemd::{self, Active, State, UnitError};

mod judge;
pub(crate) mod pid_file;
mod prove;
mod releases;
mod stop;
mod turnover;

pub use judge::{Judgement, Pending, Seen, Snapshot, View, Worker, judge};
pub use prove::{CrashWatch, Proof, ProveError, prove};
pub use releases::{are_of_one_release, releases_in_use, stray, trees_in_use, works_below};
pub use stop::{StopError, Stopped, stop};

use pid_file::{PidFile, Reading};

/// How long a status command may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// By how much a process may seem younger than the pid file that names it: births are known to 10
/// ms, and clocks are stepped.
const BIRTH_SLACK: Duration = Duration::from_secs(2);

/// What is needed to look for a manager.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The user it runs as; the user and environment of status commands.
    pub run_as: &'a RunAs,
    /// The working directory of status commands.
    pub cwd: &'a Path,
    /// Cancelled when the agent is to stop.
    pub stop: &'a CancellationToken,
}

/// A process that was shown to be the manager.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start_ticks: u64,
    pidfd: OwnedFd,
    unit: Option<Unit>,
}

/// The unit whose main process a manager is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    name: String,
    cgroup: String,
}

impl Process {
    /// Returns its pid, to be shown.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns when it was born, in ticks since boot.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Does it still live?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::lives(&self.pidfd, self.pid)
    }

    /// Returns what becomes readable when it ends; call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system has no more descriptors.
    pub fn watch(&self) -> io::Result<Receiver> {
        // No pipe, and nothing is read: it is the runtime's safe way to wait for a descriptor.
        Receiver::from_owned_fd_unchecked(self.pidfd.try_clone()?)
    }

    /// Returns the control group in which all is its own; `None` where it has none.
    fn cgroup(&self) -> Option<String> {
        self.unit.as_ref().map(|unit| unit.cgroup.clone())
    }

    fn as_worker(&self) -> Worker {
        Worker { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// What a look for the manager found.
#[derive(Debug)]
pub enum Finding {
    /// It runs.
    Running(Process),
    /// It does not.
    Nothing(Absence),
}

/// Why there is no manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// The pid file does not exist.
    NoPidFile,
    /// No process has the pid.
    Dead {
        /// The pid.
        pid: i32,
    },
    /// The pid belongs to a process that was born after the file was written.
    Stale {
        /// The pid.
        pid: i32,
        /// How much later it was born.
        later: Duration,
    },
    /// The status command says that nothing runs.
    Status {
        /// How it ended.
        exit: Exit,
    },
    /// The unit has no main process.
    Unit {
        /// What it is at.
        state: State,
    },
}

impl Absence {
    /// Will nothing come of it by itself any more?
    fn is_final(&self) -> bool {
        matches!(self, Absence::Unit { state } if state.active == Active::Failed)
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Absence::NoPidFile => f.write_str("there is no pid file"),
            Absence::Dead { pid } => write!(f, "process {pid} has ended"),
            Absence::Stale { pid, later } => write!(
                f,
                "process {pid} was born {} s after the pid file was written, so it is another one",
                later.as_secs()
            ),
            Absence::Status { exit } => write!(f, "the status command ended with {exit}"),
            Absence::Unit { state } => write!(f, "the unit is {state}"),
        }
    }
}

/// Why it is not known whether the manager runs.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The pid file could not be read.
    #[error("could not read the pid file {}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The pid file is not one that can be believed.
    #[error("could not use {} as a pid file: {reason}", path.display())]
    NotPidFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The text is no pid.
    #[error("{from} holds {text}, which is no pid: {reason}")]
    Text {
        /// The pid file, or the status command.
        from: String,
        /// The text, quoted and escaped.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The pid is that of a process that cannot be the manager.
    #[error("process {pid} is not the cluster manager: {reason}")]
    NotManager {
        /// The pid.
        pid: i32,
        /// Why not.
        reason: String,
    },
    /// The status command could not be run.
    #[error("could not learn whether the cluster manager runs")]
    Status {
        /// Why not.
        source: ProcessError,
    },
    /// The unit could not be looked at.
    #[error("could not learn whether the app's unit runs")]
    Unit {
        /// Why not.
        source: UnitError,
    },
    /// The unit is active, and systemd knows no main process of it.
    #[error("the unit {unit} is active without a main process")]
    NoMainProcess {
        /// The unit.
        unit: String,
    },
    /// The process could not be examined.
    #[error("could not examine process {pid}")]
    Examine {
        /// The pid.
        pid: i32,
        /// What the operating system said.
        source: io::Error,
    },
}

impl FindError {
    /// Returns the next thing for an operator to try, or `None` where there is nothing.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            FindError::PidFile { path, .. } | FindError::NotPidFile { path, .. } => Some(format!(
                "have the app write its pid to {} itself, or name another pid_file in towline.toml",
                path.display()
            )),
            FindError::Text { from, .. } => Some(format!(
                "see which program writes {from}; it should give one pid and nothing else"
            )),
            FindError::NotManager { .. } => Some(
                "stop the app, remove its pid file, and deploy again; check `user` in the agent's \
                 config"
                    .to_owned(),
            ),
            FindError::Status { source } => source.hint(),
            FindError::Unit { source } => source.hint(),
            FindError::NoMainProcess { unit } => Some(format!(
                "make {unit} Type=notify, exec or simple; with Type=forking give it a PIDFile="
            )),
            FindError::Examine { .. } => None,
        }
    }
}

/// Why a signal did not reach the manager.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Its pid.
        pid: i32,
    },
    /// The system refused it.
    #[error("could not send {name} to process {pid}")]
    Refused {
        /// Its pid.
        pid: i32,
        /// The signal.
        name: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Looks for the manager, and proves that what is found is it.
///
/// `find` names a pid file by its absolute path.
///
/// # Errors
///
/// Whatever leaves it open whether the manager runs: nothing may be signalled or started then.
pub async fn find(find: &Find, context: &Context<'_>) -> Result<Finding, FindError> {
    let account = context.run_as.account.as_ref().map(|account| account.uid);
    match find {
        Find::PidFile(path) => {
            let path = PathBuf::from(path);
            let failed = |source| FindError::PidFile { path: path.clone(), source };
            let file = path.clone();
            let examined = off_thread(move || match pid_file::read(&file, account)? {
                Some(PidFile { pid, age }) => examine(pid, Claim::File(age), account),
                None => Ok(Finding::Nothing(Absence::NoPidFile)),
            });
            examined.await.map_err(failed)?
        }
        Find::Status(command) => match status(command, context).await? {
            Ok(pid) => {
                let examined = off_thread(move || examine(pid, Claim::Status, account)).await;
                examined.map_err(|source| FindError::Examine { pid, source })?
            }
            Err(exit) => Ok(Finding::Nothing(Absence::Status { exit })),
        },
        Find::Unit(unit) => find_unit(unit, context).await,
    }
}

/// Asks systemd for the main process of a unit.
async fn find_unit(unit: &str, context: &Context<'_>) -> Result<Finding, FindError> {
    let state = systemd::show(unit, context.run_as, context.stop).await;
    let state = state.map_err(|source| FindError::Unit { source })?;
    match (state.main_pid, state.cgroup.clone()) {
        (Some(pid), Some(cgroup)) => {
            let unit = Unit { name: unit.to_owned(), cgroup };
            // Whom a unit runs as is for the unit to say: its name is one that host config allows.
            let examined = off_thread(move || examine(pid, Claim::Unit(unit), None)).await;
            examined.map_err(|source| FindError::Examine { pid, source })?
        }
        _ if state.active == Active::Active => {
            Err(FindError::NoMainProcess { unit: unit.to_owned() })
        }
        _ => Ok(Finding::Nothing(Absence::Unit { state })),
    }
}

/// What names a pid.
enum Claim {
    /// A file that was written so long ago.
    File(Duration),
    /// A command of the recipe's.
    Status,
    /// systemd.
    Unit(Unit),
}

/// Asks the status command for the pid; one that fails says that nothing runs.
async fn status(
    command: &CommandLine,
    context: &Context<'_>,
) -> Result<Result<i32, Exit>, FindError> {
    let job = Job {
        label: "status",
        command,
        cwd: context.cwd,
        run_as: context.run_as,
        extra: Environment::new(),
        deadline: STATUS_DEADLINE,
        capture: true,
        remains: Remains::End,
    };
    let output = match process::run(&job, context.stop).await {
        Ok(output) => output,
        // A command killed by a signal has said nothing.
        Err(ProcessError::Failed { exit: exit @ Exit::Code(_), .. }) => return Ok(Err(exit)),
        Err(source) => return Err(FindError::Status { source }),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    match pid_file::parse(line) {
        Reading::Pid(pid) => Ok(Ok(pid)),
        Reading::Bad(reason) => Err(FindError::Text {
            from: format!("the first line of `{command}`"),
            text: format!("{:?}", short_line(line, 64)),
            reason,
        }),
    }
}

/// Proves that `pid` is the manager. Blocks while `/proc` is read.
fn examine(pid: i32, claim: Claim, account: Option<u32>) -> Result<Finding, FindError> {
    let dead = Ok(Finding::Nothing(Absence::Dead { pid }));
    let refused = |reason: String| Err(FindError::NotManager { pid, reason });
    let pidfd = match Pid::from_raw(pid).map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
        Some(Ok(pidfd)) => pidfd,
        Some(Err(rustix::io::Errno::SRCH)) | None => return dead,
        // The number of a thread that is not its process's first.
        Some(Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL)) => {
            return refused("it is a thread, not a process".to_owned());
        }
        Some(Err(source)) => return Err(FindError::Examine { pid, source: source.into() }),
    };
    // Read after the pidfd was opened: if the process ends from here on and another gets its pid,
    // signals through the pidfd reach neither.
    let Some(stat) = Stat::read(pid).filter(|stat| !stat.ended) else { return dead };
    let unit = match claim {
        Claim::File(age) => {
            if let Some(later) = born_after(stat.start_ticks, age) {
                return Ok(Finding::Nothing(Absence::Stale { pid, later }));
            }
            None
        }
        Claim::Status => None,
        // It has ended since systemd named it, and another has its pid.
        Claim::Unit(unit) if !process::is_in_cgroup(pid, &unit.cgroup) => return dead,
        Claim::Unit(unit) => Some(unit),
    };
    if process::own_line().contains(&pid) {
        return refused("it is the agent, or a process that the agent runs under".to_owned());
    }
    if stat.kernel {
        return refused("it is a thread of the kernel".to_owned());
    }
    if let Some(expected) = account {
        match process::real_uid(pid) {
            Some(uid) if uid == expected => {}
            Some(uid) => {
                return refused(format!("it runs as uid {uid}, and the app as uid {expected}"));
            }
            None => return dead,
        }
    }
    Ok(Finding::Running(Process { pid, start_ticks: stat.start_ticks, pidfd, unit }))
}

/// Returns by how much a process is younger than the file that names it, beyond the slack.
fn born_after(start_ticks: u64, written: Duration) -> Option<Duration> {
    const TICK_MS: u64 = 1_000 / TICKS_PER_SECOND;
    let age = Duration::from_millis(process::now_ticks().saturating_sub(start_ticks) * TICK_MS);
    written.checked_sub(age).filter(|later| *later > BIRTH_SLACK)
}

/// Sends the manager the signal that makes it replace its workers.
///
/// # Errors
///
/// It has ended, or the agent may not signal it.
pub fn signal(process: &Process, signal: ReloadSignal) -> Result<(), SignalError> {
    let number = match signal {
        ReloadSignal::Hup => Signal::HUP,
        ReloadSignal::Usr1 => Signal::USR1,
        ReloadSignal::Usr2 => Signal::USR2,
    };
    let pid = process.pid;
    match pidfd_send_signal(&process.pidfd, number) {
        // A zombie takes signals and does nothing about them.
        Ok(()) if !process.is_alive() => Err(SignalError::Gone { pid }),
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::SRCH) => Err(SignalError::Gone { pid }),
        Err(source) => {
            Err(SignalError::Refused { pid, name: signal.name(), source: source.into() })
        }
    }
}

/// Returns the manager's workers: all that descends from it, or is in its unit's control group, and
/// lives. None for one that has none.
pub async fn workers(process: &Process) -> Vec<Worker> {
    let (pid, cgroup) = (process.pid, process.cgroup());
    let read = move || process::owned(pid, cgroup.as_deref(), &process::all());
    let found = off_thread(read).await.unwrap_or_default();
    found.iter().map(|(_, stat)| Worker::from(stat)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_examined_before_it_is_believed() {
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = Stat::read(own).unwrap().parent;
        for pid in [own, parent] {
            let error = examine(pid, Claim::Status, None).unwrap_err();
            assert!(matches!(error, FindError::NotManager { .. }), "{error}");
            assert!(error.hint().is_some());
        }
        let free = (2..i32::MAX).rev().find(|&pid| Stat::read(pid).is_none()).unwrap();
        let finding = examine(free, Claim::Status, None).unwrap();
        assert!(matches!(finding, Finding::Nothing(Absence::Dead { .. })));
    }

    #[test]
    fn a_birth_after_the_file_is_seen() {
        let second = |seconds| Duration::from_secs(seconds);
        let born = process::now_ticks() - 60 * TICKS_PER_SECOND;
        let cases = [
            ("written at birth", second(60), false),
            ("written long after", second(1), false),
            ("within the slack", second(61), false),
            ("written an hour before", second(3_600), true),
        ];
        for (rule, age, later) in cases {
            assert_eq!(born_after(born, age).is_some(), later, "{rule}");
        }
    }
}
