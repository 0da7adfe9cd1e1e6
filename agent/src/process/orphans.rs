//! Where no cgroup can be had: whose an orphan is, and who takes its exit status.
//!
//! ```text
//!   agent (subreaper) ─┬─ a job's child ──► orphan: bears the job's limit ──► ended with its job
//!                      └─ start command ──► orphan: bears none, the app's ──► left alone
//!                                               and whichever ends is reaped
//! ```
//!
//! The limit is one that nobody runs into: how long a process of real-time priority may compute, set to
//! 146,000 years and some microseconds, which name the app and the job. It is passed on by fork and exec,
//! whatever becomes of session, parent and environment, and only root can raise it. A process that means
//! to hide can still lower it; in a cgroup it could not.
//!
//! Invariants
//! - What start and reload commands leave bears no limit, and is never ended here.
//! - The exit status of a child that is waited for elsewhere is not taken.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing::warn;

use super::table;

/// How long an ended orphan is left to whoever may be waiting for it.
const REAP_PAUSE: Duration = Duration::from_secs(1);

/// Set in every limit of a job, and in nothing that a program would choose.
const LIMIT_BASE: u64 = 1 << 62;

/// How many bits of a limit name the job; those above name the app.
const JOB_BITS: u32 = 31;

/// The limit that the children of one job bear, or of all jobs of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    value: u64,
    /// Of all jobs of the app?
    is_any: bool,
}

impl Limit {
    /// Returns the limit of a job; `None` where the agent's own is lower already.
    pub(super) fn of_job(tag: &str, job: u64) -> Option<Limit> {
        let value = Limit::of_app(tag).value | (job & ((1 << JOB_BITS) - 1));
        let (_, own) = getrlimit(Resource::RLIMIT_RTTIME).ok()?;
        (own > value).then_some(Limit { value, is_any: false })
    }

    /// Returns what stands for the limits of all jobs of an app.
    pub(super) fn of_app(tag: &str) -> Limit {
        let digest = Sha256::digest(tag.as_bytes());
        let name = digest.iter().take(4).fold(0, |name, byte| name << 8 | u64::from(*byte)) >> 1;
        Limit { value: LIMIT_BASE | name << JOB_BITS, is_any: true }
    }

    /// The number itself.
    pub(super) fn value(self) -> u64 {
        self.value
    }

    /// Does this process bear it?
    pub(super) fn is_borne_by(self, pid: i32) -> bool {
        let borne = fs::read_to_string(format!("/proc/{pid}/limits"));
        borne.ok().and_then(|text| hard_limit(&text)).is_some_and(|borne| self.covers(borne))
    }

    fn covers(self, borne: u64) -> bool {
        let ignored = if self.is_any { JOB_BITS } else { 0 };
        borne >> ignored == self.value >> ignored
    }
}

/// Returns the hard limit of real-time computing, where there is one.
fn hard_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The children that somebody here waits for, by pid.
fn awaited() -> MutexGuard<'static, BTreeSet<i32>> {
    static AWAITED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a child is waited for elsewhere.
pub(super) fn note(pid: i32) {
    awaited().insert(pid);
}

/// Notes that a child was waited for, or is no longer.
pub(super) fn forget(pid: i32) {
    awaited().remove(&pid);
}

/// Makes orphans of the agent's descendants come to the agent, and takes the exit status of those, for as
/// long as the runtime lives. To be called once, within the runtime.
///
/// - `is_reaper`: ask the kernel for it; without that, they come only where the agent is process 1.
pub fn adopt_orphans(is_reaper: bool) {
    if is_reaper && let Err(error) = rustix::process::set_child_subreaper(Some(Pid::INIT)) {
        warn!(%error, "could not become the parent of orphans: some may be missed");
        return;
    }
    if !is_reaper && std::process::id() != 1 {
        return;
    }
    match signal(SignalKind::child()) {
        Ok(mut children) => {
            tokio::spawn(async move {
                while children.recv().await.is_some() {
                    reap().await;
                }
            });
        }
        Err(error) => warn!(%error, "could not hear of orphans that end: they stay in the table"),
    }
}

/// Reaps the orphans that have ended. Each is seen twice first: a child that only just ended may be one
/// that is about to be waited for.
async fn reap() {
    let mut seen = BTreeSet::new();
    loop {
        let found = table::off_thread(ended_orphans).await.unwrap_or_default();
        for pid in found.intersection(&seen).filter_map(|(pid, _)| Pid::from_raw(*pid)) {
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
        }
        seen = found.difference(&seen).copied().collect();
        if seen.is_empty() {
            return;
        }
        sleep(REAP_PAUSE).await;
    }
}

/// Returns children of this process that have ended and that nobody is known to wait for.
fn ended_orphans() -> BTreeSet<(i32, u64)> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = table::all();
    let awaited = awaited();
    let is_orphan =
        |stat: &&table::Stat| stat.parent == own && stat.ended && !awaited.contains(&stat.pid);
    all.iter().filter(is_orphan).map(|stat| (stat.pid, stat.start_ticks)).collect()
}

/// Takes the exit status of an ended process that has come to the agent, so that its pid no longer looks
/// alive; nothing happens for any other.
pub(crate) fn reap_orphan(pidfd: &OwnedFd, pid: i32) {
    if !awaited().contains(&pid) {
        // Refused where it is no child of the agent.
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_names_its_app_and_its_job() {
        let job = |tag, number| Limit::of_job(tag, number).unwrap();
        let (one, other) = (job("/srv/web", 1), job("/srv/web", 2));
        let app = Limit::of_app("/srv/web");
        assert!(one.covers(one.value) && !one.covers(other.value) && !one.covers(app.value));
        assert!(app.covers(one.value) && app.covers(other.value));
        assert!(!app.covers(job("/srv/web2", 1).value), "another app's");
        for programs in [0, 1, 200_000, u64::from(u32::MAX), u64::MAX] {
            assert!(!app.covers(programs) && !one.covers(programs), "{programs}");
        }
    }

    #[test]
    fn the_kernels_table_of_limits_is_read() {
        let line = |hard: &str| {
            format!("Limit  Soft  Hard  Units\nMax realtime timeout      8        {hard}     us \n")
        };
        assert_eq!(hard_limit(&line("4611686018427387911")), Some(4_611_686_018_427_387_911));
        assert_eq!(hard_limit(&line("unlimited")), None);
        assert_eq!(hard_limit(""), None);
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(own.contains("Max realtime timeout"), "{own}");
    }
}
