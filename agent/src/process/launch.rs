//! Starting the app: the one child that is not contained.
//!
//! It bears no marker, outlives the agent, and writes to a file of its own. What is watched is only
//! the command itself: one that stays in the foreground is the app, one that exits with success has
//! left a daemon, which the manager's pid file or status command finds. Where there are cgroups, it has
//! one of its own, in which the app stays: apart from the agent, and from what is swept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use towline_protocol::recipe::CommandLine;
use tracing::warn;

use super::table::{self, Stat};
use super::{
    Account, Cgroup, Environment, Exit, Holds, Kind, ProcessError, RunAs, assemble, foreign,
    orphans,
};
use crate::error;
use crate::release::is_passing;

/// What a log file that the agent makes may be read by: its owner and its group.
const LOG_MODE: u32 = 0o640;

/// How long killed processes are waited for.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(2);

/// A start command that was launched. Dropping this changes nothing for the app.
#[derive(Debug)]
pub struct Launched {
    pid: i32,
    start_ticks: u64,
    cgroup: Option<Cgroup>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Launched {
    /// Returns the pid of the command itself.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns how the command has ended, or `None` while it runs.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Ends what is left of the command: TERM, and KILL after `grace`. For a start that failed. Without a
    /// cgroup a daemon that has made a session of its own is not reached.
    ///
    /// Returns how many processes there were.
    pub async fn end(&self, grace: Duration) -> usize {
        let found = self.signal(Signal::TERM).await;
        let started = Instant::now();
        let mut pause = Duration::from_millis(5);
        let mut left = found;
        while left > 0 && started.elapsed() < grace + KILLED_WAIT_MAX {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
            let late = started.elapsed() >= grace;
            left = self.signal(if late { Signal::KILL } else { Signal::CONT }).await;
        }
        if left > 0 {
            warn!(pid = self.pid, left, "could not end processes that the start command started");
        }
        found
    }

    /// Signals every process of the session and of the cgroup, and returns how many there were.
    async fn signal(&self, signal: Signal) -> usize {
        let (leader, start_ticks) = (self.pid, self.start_ticks);
        let cgroup = self.cgroup.clone();
        let all = move || {
            let all = table::all();
            let mut members = table::session_members(leader, start_ticks, &all);
            let inside = cgroup.as_ref().map(Cgroup::processes).unwrap_or_default();
            let is_other = |stat: &&Stat| {
                inside.contains(&stat.pid)
                    && !stat.ended
                    && !members.iter().any(|member| member.pid == stat.pid)
            };
            let others: Vec<Stat> = all.iter().filter(is_other).cloned().collect();
            members.extend(others);
            let reach = |stat: &&Stat| {
                let pidfd = Pid::from_raw(stat.pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
                let Some(Ok(pidfd)) = pidfd else { return false };
                // Read again now that the pidfd holds on to whoever has the pid.
                Stat::read(stat.pid).is_some_and(|now| now.start_ticks == stat.start_ticks)
                    && pidfd_send_signal(pidfd, signal).is_ok()
            };
            members.iter().filter(reach).count()
        };
        table::off_thread(all).await.unwrap_or(0)
    }
}

/// Starts `command` in `cwd` and lets it live; its output is appended to `log_file`.
///
/// Returns as soon as it was started. Its exit status is taken whenever it ends.
///
/// # Errors
///
/// It could not be started, or `log_file` is not a regular file that the agent or the app's user
/// owns.
pub async fn launch(
    command: &CommandLine,
    cwd: &Path,
    run_as: &RunAs,
    log_file: &Path,
) -> Result<Launched, ProcessError> {
    const LABEL: &str = "start";
    let account = foreign(run_as);
    if let Some(account) = account
        && !nix::unistd::geteuid().is_root()
    {
        let (label, user) = (LABEL.to_owned(), account.name.clone());
        return Err(ProcessError::User { label, user });
    }
    let failed = |source| ProcessError::start(LABEL, command, cwd, run_as, source);
    let (log, errors) = match open_log(log_file, account) {
        Ok(log) => (Stdio::from(log.try_clone().map_err(failed)?), Stdio::from(log)),
        // Serving comes first, and a disk that is unwell says nothing of what is started.
        Err(error) if is_about_disk(&error) => {
            warn!(error = error::chain(&error), "the app is started without its log");
            (Stdio::null(), Stdio::null())
        }
        Err(error) => return Err(error),
    };
    let holds = Holds::make(run_as, Kind::App, false);
    let mut child = assemble(command, cwd, run_as, &Environment::new(), &holds)
        .stdout(log)
        .stderr(errors)
        .kill_on_drop(false)
        .spawn()
        .map_err(failed)?;
    // Not reaped yet, so the pid names the command even if it has ended.
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
    orphans::note(pid);
    let start_ticks = Stat::read(pid).map_or(0, |stat| stat.start_ticks);
    let (sender, exit) = watch::channel(None);
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            orphans::forget(pid);
            sender.send_replace(Some(status.into()));
        }
    });
    Ok(Launched { pid, start_ticks, cgroup: holds.cgroup, exit })
}

/// Is it the disk's trouble, that can pass?
fn is_about_disk(error: &ProcessError) -> bool {
    matches!(error, ProcessError::LogFile { source, .. } if is_passing(source))
}

/// Opens the log file to append to it, and makes it where there is none.
///
/// The directory may be the app's. So a link is not followed, nothing but a regular file with one
/// name is written to, and a file changes its owner only if it was made here.
fn open_log(path: &Path, account: Option<&Account>) -> Result<File, ProcessError> {
    let failed = |source| ProcessError::LogFile { path: path.to_owned(), source };
    let refused = |reason| ProcessError::NotLogFile { path: path.to_owned(), reason };
    let open = |new: bool| {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.append(true).create_new(new).mode(LOG_MODE).custom_flags(flags).open(path)
    };
    match open(true) {
        Ok(file) => {
            if let Some(account) = account {
                std::os::unix::fs::fchown(&file, Some(account.uid), Some(account.gid))
                    .map_err(failed)?;
            }
            blocking(&file).map_err(failed)?;
            return Ok(file);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(refused("it is not a regular file"));
    }
    let file = open(false).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let owners = [Account::own().uid, account.map_or(Account::own().uid, |account| account.uid)];
    if !found.is_file() {
        return Err(refused("it is not a regular file"));
    }
    if found.nlink() != 1 {
        return Err(refused("it has a second name"));
    }
    if !owners.contains(&found.uid()) {
        return Err(refused("it belongs to another user"));
    }
    blocking(&file).map_err(failed)?;
    Ok(file)
}

/// Takes back what kept a FIFO from holding up the agent: the app expects to wait for its writes.
fn blocking(file: &File) -> io::Result<()> {
    let descriptor: OwnedFd = file.try_clone()?.into();
    let flags = rustix::fs::fcntl_getfl(descriptor.as_fd())?;
    rustix::fs::fcntl_setfl(descriptor.as_fd(), flags - rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_a_plain_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(open_log(&path("new"), None).is_ok());
        assert!(open_log(&path("new"), None).is_ok(), "and again, to append");
        assert_eq!(fs::metadata(path("new")).unwrap().mode() & 0o777, LOG_MODE);

        std::os::unix::fs::symlink(path("new"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("nothing"), path("broken")).unwrap();
        fs::create_dir(path("dir")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(path("first"), "").unwrap();
        fs::hard_link(path("first"), path("second")).unwrap();
        for refused in ["link", "broken", "dir", "fifo", "second", "no/such"] {
            assert!(open_log(&path(refused), None).is_err(), "{refused}");
        }
        assert!(!path("nothing").exists(), "nothing is made through a link");
    }
}
