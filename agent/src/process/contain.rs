//! A contained child: followed to its end, and ended with all that it started.
//!
//! Invariants
//! - A process is signalled through a pidfd that was opened before it was recognised, or through
//!   the process group of a leader that is not reaped. So no signal reaches a re-used pid.
//! - The agent and the processes above it are never among those that are ended.
//! - Every wait here has a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::streams::Streams;
use super::table::{self, Stat};
use super::{
    Cgroup, Environment, Exit, Holds, Job, Kind, Limit, MARKER_APP, MARKER_JOB, ProcessError,
    Remains, assemble, foreign, orphans, watch_exit,
};

/// How long killed processes are waited for before they are looked for and killed again.
const KILLED_WAIT_MAX: Duration = Duration::from_millis(200);

/// How long a killed child's exit status is waited for. One that writes to a dead disk takes longer.
const REAP_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long all passes may take.
const SWEEP_WAIT_MAX: Duration = Duration::from_secs(4);

/// The entries of an environment by which processes are recognised.
#[derive(Debug, Clone)]
pub(super) struct Marker(Vec<String>);

impl Marker {
    /// Marks every contained child of the app.
    pub(super) fn of_app(tag: &str) -> Marker {
        Marker(vec![format!("{MARKER_APP}={tag}")])
    }
}

/// Whose processes are to be ended.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// A leader of its session that is not reaped: its group, session and descendants are meant.
    pub(super) leader: Option<i32>,
    /// Those that bear this marker are meant.
    pub(super) marker: Option<Marker>,
    /// All that is in these is meant; they are removed in the end.
    pub(super) cgroups: Vec<Cgroup>,
    /// Those that bear this limit are meant.
    pub(super) limit: Option<Limit>,
}

impl Target {
    fn recognises(&self, stat: &Stat) -> bool {
        let led = self.leader.is_some_and(|leader| {
            stat.pid == leader || stat.group == leader || stat.session == leader
        });
        let marked = self.marker.as_ref();
        led || self.limit.is_some_and(|limit| limit.is_borne_by(stat.pid))
            || marked.is_some_and(|marker| table::environ_holds(stat.pid, &marker.0))
    }

    /// Returns who is in its cgroups.
    fn inside(&self) -> BTreeSet<i32> {
        self.cgroups.iter().flat_map(Cgroup::processes).collect()
    }

    /// Is this process in one of its cgroups now?
    fn holds(&self, pid: i32) -> bool {
        self.cgroups.iter().any(|cgroup| cgroup.holds(pid))
    }

    /// Returns those of `all` that descend from the leader or from a process found before.
    fn descendants(&self, known: &Known, all: &[Stat]) -> BTreeSet<i32> {
        let roots = known.processes.keys().map(|(pid, _)| *pid).chain(self.leader);
        let below = roots.flat_map(|root| table::descendants(root, all));
        below.map(|(_, stat)| stat.pid).collect()
    }
}

/// The processes of a target that were found and have not ended, by pid and birth.
///
/// Held on to from look to look: one that is known by its descent alone cannot be told from others
/// once its parent has ended.
#[derive(Debug, Default)]
struct Known {
    processes: BTreeMap<(i32, u64), OwnedFd>,
    /// How many there have been.
    found: usize,
}

impl Known {
    /// Looks for processes of `target`, and forgets those that have ended.
    async fn look(self, target: &Target) -> Known {
        let target = target.clone();
        table::off_thread(move || self.look_now(&target)).await.unwrap_or_default()
    }

    fn look_now(mut self, target: &Target) -> Known {
        let all = table::all();
        // After the table was read: the line in it of a process that still lives is its own.
        let ended = |key: &(i32, u64), pidfd: &mut OwnedFd| !table::lives(pidfd, key.0);
        for (_, pidfd) in self.processes.extract_if(.., ended) {
            // Where the agent is the subreaper or pid 1, orphans come to it and are reaped here. Any
            // other is no child of the agent, and this is refused. A leader is for its owner.
            let id = WaitId::PidFd(pidfd.as_fd());
            waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
        }
        let spared = table::own_line();
        let descendants = target.descendants(&self, &all);
        let inside = target.inside();
        for stat in all {
            let key = (stat.pid, stat.start_ticks);
            let descends = descendants.contains(&stat.pid);
            let is_inside = inside.contains(&stat.pid);
            if stat.ended
                || stat.kernel
                || spared.contains(&stat.pid)
                || self.processes.contains_key(&key)
                || !(descends || is_inside || target.recognises(&stat))
            {
                continue;
            }
            let Some(pidfd) = open(stat.pid) else { continue };
            // Read again now that the pidfd holds on to whoever has the pid. If that has ended in
            // between and the pid went to another, signals through the pidfd are refused.
            let same = Stat::read(stat.pid).is_some_and(|now| {
                now.start_ticks == stat.start_ticks
                    && (descends || target.holds(stat.pid) || target.recognises(&now))
            });
            if same {
                self.processes.insert(key, pidfd);
                self.found += 1;
            }
        }
        self
    }

    fn signal(&self, signal: Signal) {
        for pidfd in self.processes.values() {
            // One that has ended meanwhile is none to be signalled.
            pidfd_send_signal(pidfd, signal).ok();
        }
    }

    /// Looks again and again until none is left, for `limit` at most.
    async fn wait(mut self, target: &Target, limit: Duration) -> Known {
        let started = Instant::now();
        let mut pause = Duration::from_millis(2);
        while !self.processes.is_empty() && started.elapsed() < limit {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
            self = self.look(target).await;
        }
        self
    }
}

/// Ends the processes of `target`: TERM, and KILL after `grace`, until none is left.
///
/// Returns how many were found. Looks twice before it believes that there are none, since a process
/// that forks and exits can slip past one look.
pub(super) async fn end(target: &Target, grace: Duration) -> usize {
    let mut known = Known::default().look(target).await;
    if grace > Duration::ZERO && !known.processes.is_empty() {
        known.signal(Signal::TERM);
        // A stopped process hears of it only once it goes on.
        known.signal(Signal::CONT);
        known = known.wait(target, grace).await;
    }
    let started = Instant::now();
    let mut none = 0;
    while none < 2 && started.elapsed() < SWEEP_WAIT_MAX {
        // Looked for first: a child whose parent is killed before it was seen has no descent.
        known = known.look(target).await;
        none = if known.processes.is_empty() { none + 1 } else { 0 };
        if let Some(leader) = target.leader.and_then(Pid::from_raw) {
            kill_process_group(leader, Signal::KILL).ok();
        }
        for cgroup in &target.cgroups {
            cgroup.kill();
        }
        known.signal(Signal::KILL);
        known = known.wait(target, KILLED_WAIT_MAX).await;
    }
    if !known.processes.is_empty() {
        let pids: Vec<i32> = known.processes.keys().map(|(pid, _)| *pid).collect();
        warn!(?pids, "could not end processes that a command had started");
    }
    for cgroup in &target.cgroups {
        cgroup.remove();
    }
    known.found
}

/// Opens a pidfd; `None` where there is no such process.
fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// How following a child came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The direct child exited.
    Exited,
    /// It did not in time.
    Deadline,
    /// It was no longer wanted.
    Cancelled,
}

/// A running child. Dropped before [`Contained::reap`], it is killed with its process group.
#[derive(Debug)]
pub(super) struct Contained {
    child: Child,
    /// Readable once the child has exited, which leaves it unreaped.
    exited: Option<AsyncFd<OwnedFd>>,
    streams: Streams,
    target: Target,
    /// Is there still something to be killed by `drop`?
    armed: bool,
}

impl Contained {
    /// Starts the command of `job`.
    pub(super) fn start(job: &Job<'_>) -> Result<Contained, ProcessError> {
        static JOBS: AtomicU64 = AtomicU64::new(0);
        let account = foreign(job.run_as);
        if let Some(account) = account
            && !nix::unistd::geteuid().is_root()
        {
            let (label, user) = (job.label.to_owned(), account.name.clone());
            return Err(ProcessError::User { label, user });
        }
        let failed =
            |source| ProcessError::start(job.label, job.command, job.cwd, job.run_as, source);
        let (streams, stdout, stderr) = Streams::open(job.capture, account).map_err(failed)?;

        let number = JOBS.fetch_add(1, Ordering::Relaxed);
        let markers = Environment::from([
            (MARKER_APP.to_owned(), job.run_as.tag.clone()),
            (MARKER_JOB.to_owned(), format!("{}.{number}", std::process::id())),
        ]);
        let mut own = job.extra.clone();
        let mut marker = None;
        let mut holds = match job.remains {
            Remains::End => Holds::make(job.run_as, Kind::Job, true),
            Remains::Leave => Holds::make(job.run_as, Kind::App, true),
        };
        if job.remains == Remains::End {
            marker = Some(Marker(markers.iter().map(|(k, v)| format!("{k}={v}")).collect()));
            own.extend(markers);
            if holds.cgroup.is_none() {
                holds.limit = Limit::of_job(&job.run_as.tag, number);
            }
        }
        let mut command = assemble(job.command, job.cwd, job.run_as, &own, &holds);
        let command = command.stdout(stdout).stderr(stderr).kill_on_drop(true);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(source) => {
                holds.cgroup.iter().for_each(Cgroup::remove);
                return Err(failed(source));
            }
        };
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
        leader.into_iter().for_each(orphans::note);
        // What a command may leave is the app's, and so is the cgroup that it is in.
        let cgroup = holds.cgroup.filter(|_| job.remains == Remains::End);
        let cgroups = cgroup.into_iter().collect();
        let target = Target { leader, marker, cgroups, limit: holds.limit };
        let mut contained = Contained { child, exited: None, streams, target, armed: true };
        // From here on the child is killed if anything fails.
        let pidfd = leader.and_then(open).ok_or_else(|| io::ErrorKind::NotFound.into());
        let exited = pidfd.and_then(watch_exit);
        contained.exited = Some(exited.map_err(|source| ProcessError::Watch {
            label: job.label.to_owned(),
            command: job.command.to_string(),
            source,
        })?);
        Ok(contained)
    }

    /// Reads what the child prints until it exits, its time is up, or `stop` is cancelled.
    pub(super) async fn follow(&mut self, deadline: Duration, stop: &CancellationToken) -> Ending {
        let exited = self.exited.as_ref();
        let ending = async {
            let exit = async {
                match exited {
                    Some(exited) => exited.readable().await.map(|_| ()).is_ok(),
                    None => false,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => Ending::Cancelled,
                _ = exit => Ending::Exited,
                () = sleep(deadline) => Ending::Deadline,
            }
        };
        self.streams.read_while(ending).await
    }

    /// Ends what is left of the child and of all that it started; returns how many there were.
    pub(super) async fn end_what_remains(&mut self, grace: Duration) -> usize {
        // It may print on its way out, and could not end if nobody read that.
        let target = self.target.clone();
        self.streams.read_while(end(&target, grace)).await
    }

    /// Takes the rest of the output and the exit status; the pid is free afterwards.
    pub(super) async fn reap(mut self) -> (io::Result<Exit>, Streams) {
        self.streams.drain();
        // Already exited, or killed above; one that is stuck in the kernel is left to the runtime,
        // which reaps it when it ends.
        let exit = match timeout(REAP_WAIT_MAX, self.child.wait()).await {
            Ok(status) => status.map(Exit::from),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        self.armed = exit.is_err();
        if !self.armed {
            self.target.leader.into_iter().for_each(orphans::forget);
        }
        (exit, std::mem::take(&mut self.streams))
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        if !self.armed || self.child.id().is_none() {
            return;
        }
        if let Some(leader) = self.target.leader.and_then(Pid::from_raw) {
            kill_process_group(leader, Signal::KILL).ok();
        }
        for cgroup in &self.target.cgroups {
            cgroup.kill();
        }
        // The runtime reaps the child; its pid must not be used beyond this point.
        self.target.leader.into_iter().for_each(orphans::forget);
        let rest = Target { leader: None, ..self.target.clone() };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { end(&rest, Duration::ZERO).await });
        }
    }
}
