//! Stops the manager with all its workers, for a full restart.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Context, Process, Worker};
use crate::process::{self, Stat, off_thread, reap_orphan};
use crate::systemd::{self, UnitError, Verb};

/// How long killed processes are waited for.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a manager that was asked to end is still waited for once the agent itself is to stop. One
/// that ends meanwhile can be started again at once; one that does not serves on.
const STOPPING_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long an ended process may take to be reaped: until then its pid looks alive to a script.
const REAPED_WAIT_MAX: Duration = Duration::from_secs(3);

/// How a manager was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// How many processes did not end in time and were killed.
    pub killed: usize,
}

/// Why a manager still runs.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// Some processes would not die.
    #[error("could not end all of the cluster manager's processes; left: {pids:?}")]
    Left {
        /// The processes.
        pids: Vec<i32>,
    },
    /// systemd did not take the order to stop its unit.
    #[error("could not have the app's unit stopped")]
    Unit {
        /// Why not.
        source: UnitError,
    },
    /// The agent is to stop, and leaves the manager to the next run.
    #[error("stopping the cluster manager was cancelled")]
    Cancelled,
}

impl StopError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            StopError::Left { .. } => Some(
                "see `ps -o pid,stat,wchan,args` for what they wait for; a dead disk or network mount \
                 holds processes like this"
                    .to_owned(),
            ),
            StopError::Unit { source } => source.hint(),
            StopError::Cancelled => None,
        }
    }
}

/// Asks the manager to end (TERM, or a word to its unit), waits for it and all its workers, and kills
/// those that are left after `timeout`.
///
/// Workers are not asked: a manager that ends well ends them, and lets them finish what they do.
///
/// - `context.stop`: the agent is to stop. Nothing is killed then, and nothing begun: a manager that was
///   asked already is waited for a little longer.
///
/// # Errors
///
/// Processes are left even so. Nothing new may be started beside them.
pub async fn stop(
    process: &Process,
    timeout: Duration,
    context: &Context<'_>,
) -> Result<Stopped, StopError> {
    let stop = context.stop;
    if stop.is_cancelled() {
        return Err(StopError::Cancelled);
    }
    let mut known = Known::new(process);
    // Before the signal: once the manager has ended, its workers cannot be told from others.
    known.look().await;
    if let Some(unit) = &process.unit {
        // By its unit, which would otherwise start it again.
        let told = systemd::tell(Verb::Stop, &unit.name, context.run_as, stop).await;
        told.map_err(|source| StopError::Unit { source })?;
    } else if pidfd_send_signal(&process.pidfd, Signal::TERM).is_ok() {
        // A stopped process hears of it only once it goes on.
        pidfd_send_signal(&process.pidfd, Signal::CONT).ok();
    }
    let mut has_ended = known.wait(timeout, stop).await;
    if !has_ended && stop.is_cancelled() {
        let never = CancellationToken::new();
        has_ended = known.wait(STOPPING_WAIT_MAX.min(timeout), &never).await;
    }
    if has_ended {
        reaped(process).await;
        return Ok(Stopped { killed: 0 });
    }
    if stop.is_cancelled() {
        return Err(StopError::Cancelled);
    }
    // So that it starts no more workers while they are counted.
    pidfd_send_signal(&process.pidfd, Signal::STOP).ok();
    known.look().await;
    let killed = known.left();
    warn!(pid = process.pid, ?killed, "killed what did not end in time");
    let started = Instant::now();
    while started.elapsed() < KILLED_WAIT_MAX {
        known.kill();
        // Looks again: a worker may have forked in between.
        if known.wait(Duration::from_millis(100), &CancellationToken::new()).await {
            reaped(process).await;
            return Ok(Stopped { killed: killed.len() });
        }
    }
    Err(StopError::Left { pids: known.left() })
}

/// Waits until an ended process is reaped, for a while: nobody may ever do it.
async fn reaped(process: &Process) {
    let started = Instant::now();
    let is_there = || Stat::read(process.pid).is_some_and(|s| s.start_ticks == process.start_ticks);
    while started.elapsed() < REAPED_WAIT_MAX && is_there() {
        // Where the agent is the parent of orphans, nobody else does.
        reap_orphan(&process.pidfd, process.pid);
        sleep(Duration::from_millis(20)).await;
    }
}

/// The manager and everything that was seen to descend from it, until it has ended.
struct Known {
    manager: Worker,
    /// The control group in which all is the manager's, until it was looked into: what comes there once
    /// the manager was asked to end is another start of the unit.
    cgroup: Option<String>,
    /// Is the manager the leader of its session? Then all in the session are its.
    leads: bool,
    processes: BTreeMap<Worker, OwnedFd>,
}

impl Known {
    fn new(process: &Process) -> Known {
        let manager = process.as_worker();
        let leads = Stat::read(manager.pid).is_some_and(|stat| stat.session == stat.pid);
        let processes = process.pidfd.try_clone().map(|pidfd| (manager, pidfd));
        Known {
            manager,
            // Asked after the line was read, which was the manager's own if it still lives.
            leads: leads && process.is_alive(),
            cgroup: process.cgroup(),
            processes: processes.into_iter().collect(),
        }
    }

    /// Takes up what descends from the known ones now, and drops those that have ended.
    ///
    /// Returns whether that could be done: a look that failed has not seen that nothing is left.
    async fn look(&mut self) -> bool {
        let (manager, leads, cgroup) = (self.manager, self.leads, self.cgroup.take());
        let mut processes = std::mem::take(&mut self.processes);
        let read = move || {
            let all = process::all();
            // After the table was read: the line in it of a process that still lives is its own,
            // and its children are.
            processes.retain(|worker, pidfd| process::lives(pidfd, worker.pid));
            let spared = process::own_line();
            let below = |worker: &Worker| process::descendants(worker.pid, &all);
            let mut found: Vec<Stat> =
                processes.keys().flat_map(below).map(|(_, stat)| stat).collect();
            found.extend(cgroup.iter().flat_map(|cgroup| process::members(cgroup, &all)));
            if leads {
                found.extend(process::session_members(manager.pid, manager.start_ticks, &all));
            }
            found.retain(|stat| !stat.ended && !spared.contains(&stat.pid));
            let found: BTreeSet<Worker> = found.iter().map(Worker::from).collect();
            let new = found.into_iter().filter(|worker| !processes.contains_key(worker));
            let new: Vec<(Worker, OwnedFd)> = new.filter_map(open).collect();
            processes.extend(new);
            processes
        };
        let looked = off_thread(read).await;
        let seen = looked.is_ok();
        self.processes = looked.unwrap_or_default();
        seen
    }

    /// Waits until none is left; returns whether that came within `timeout`, and before `stop`.
    async fn wait(&mut self, timeout: Duration, stop: &CancellationToken) -> bool {
        let started = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if self.look().await && self.processes.is_empty() {
                return true;
            }
            if started.elapsed() >= timeout || stop.is_cancelled() {
                return false;
            }
            // Not in the middle of a look, which would lose what is known.
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn left(&self) -> Vec<i32> {
        self.processes.keys().map(|worker| worker.pid).collect()
    }

    fn kill(&self) {
        for pidfd in self.processes.values() {
            pidfd_send_signal(pidfd, Signal::KILL).ok();
        }
    }
}

/// Opens a pidfd on `worker`; `None` where its pid is another's by now.
fn open(worker: Worker) -> Option<(Worker, OwnedFd)> {
    let pidfd = pidfd_open(Pid::from_raw(worker.pid)?, PidfdFlags::empty()).ok()?;
    worker.is_alive().then_some((worker, pidfd))
}
