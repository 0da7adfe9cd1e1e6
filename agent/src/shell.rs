//! The shell: next event, step, perform the effects in order. It decides nothing.
//!
//! ```text
//!   source ─┐                                  ┌─► journal, status, prune   (at once)
//!   task  ──┼─► event ─► machine ─► effects ───┤
//!   clock ──┤                                  └─► task: prepare, ask, journal, activate, prove,
//!   manager ┘                                            probe, check
//! ```
//!
//! Invariants
//! - At most one task runs. It is ended, with all of its processes, before another one begins.
//! - Effects are performed in the order in which the machine gave them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::poll::FailureLog;
use towline_protocol::report::{Cause, Evidence, Health, Phase, Report};
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::config::{Config, Keep};
use crate::dependencies;
use crate::error as errors;
use crate::git::{Cache, Limits, Origin};
use crate::journal::{Journal, Release};
use crate::machine::{Effect, Event, Machine, Outcome, Task, TaskId};
use crate::manager;
use crate::process::RunAs;
use crate::release::state::{Lock, Status};
use crate::release::{Needed, Store};
use crate::source::{Said, Source, Told};
use crate::status::{self, Socket};
use crate::systemd::Notify;

mod activate;
mod hooks;
mod place;
mod prepare;
mod printed;
mod probe;
mod saying;
mod settle;
mod unit;
mod watch;
mod way;

pub(crate) use activate::look;
pub(crate) use hooks::Due;
pub(crate) use place::finder;
pub(crate) use prepare::{Failed, make};
pub(crate) use probe::answers;
pub(crate) use saying::Saying;

/// What the shell's tasks work with.
#[derive(Debug)]
pub struct Tools {
    /// Host config.
    pub config: Config,
    /// What is on disk.
    pub store: Store,
    /// Where revisions come from.
    pub origin: Arc<Origin>,
    /// Who children run as, and with what.
    pub run_as: RunAs,
    /// The workers as they were before the last signal, for the proof that follows it.
    pub(crate) before: RefCell<Option<manager::Snapshot>>,
    /// May a reload still be under way, of which nothing is known?
    pub(crate) is_unsettled: Cell<bool>,
    /// The manager that started the agent.
    pub(crate) notify: Notify,
    /// The deploy that was activated, until the hook that follows its proof has run.
    pub(crate) hooks: RefCell<Due>,
    /// The release whose hook before has run last, in this run of the agent.
    pub(crate) has_hooked: RefCell<Option<Release>>,
    /// What the task that runs has to tell people.
    pub(crate) saying: Saying,
    /// Why what a pid file says is not believed. Told once.
    pub(crate) doubt: RefCell<Option<String>>,
    /// Does the app answer without a manager that could be found? Told once.
    pub(crate) is_lost: Cell<bool>,
    /// The recipe of revisions that have none.
    pub(crate) default_recipe: Option<String>,
    /// What the machine may have to go back to: never pruned.
    pub(crate) kept: RefCell<BTreeSet<Revision>>,
}

impl Tools {
    fn limits(&self) -> Limits {
        let limits = &self.config.limits;
        Limits {
            entries: limits.entries,
            depth: limits.depth,
            path_bytes: limits.path_bytes,
            bytes: limits.tree_mib.saturating_mul(1 << 20),
            file_bytes: limits.file_mib.saturating_mul(1 << 20),
        }
    }
}

/// How long the shell goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until it is told to stop.
    Stopped,
    /// Until the newest target is applied, or has failed.
    Settled,
}

/// How a shell that was to settle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Told to stop.
    Stopped,
    /// The target's revision is live and healthy.
    Converged,
    /// It is not, and trying again may help.
    TryLater,
    /// It is not, and only a newer target will help.
    Failed,
}

type Running = Pin<Box<dyn Future<Output = Outcome>>>;

/// One app's agent, at work.
pub struct Shell {
    tools: Rc<Tools>,
    machine: Machine,
    source: Source,
    started: Instant,
    wake: Option<Duration>,
    /// When the watchdog is due to be fed.
    feed: Option<Instant>,
    task: Option<(TaskId, CancellationToken, Running)>,
    /// Ends when the manager of what serves does, while nothing is done about it.
    gone: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Does the task that runs leave alone what serves?
    is_beside: bool,
    /// The release that the task that runs is about.
    about: Option<Revision>,
    /// To be told with the next report.
    note: Option<String>,
    log: Option<FailureLog>,
    last: Option<Report>,
    /// Where the status can be had; before the lock, which it must not outlive.
    socket: Option<Socket>,
    _lock: Lock,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Shell {
    /// Puts the parts together, in a runtime; `bootstrap` has made them.
    #[must_use]
    pub fn new(tools: Rc<Tools>, machine: Machine, source: Source, lock: Lock) -> Self {
        let socket = Socket::open(&tools.store);
        if let Err(error) = &socket {
            warn!(error = errors::chain(error), "the status can be had by its file only");
        }
        Self {
            tools,
            machine,
            source,
            started: Instant::now(),
            wake: None,
            feed: None,
            task: None,
            gone: None,
            is_beside: false,
            about: None,
            note: None,
            log: None,
            last: None,
            socket: socket.ok(),
            _lock: lock,
        }
    }

    /// Works until told to stop, or until settled. `effects` are the machine's first ones.
    pub async fn run(
        mut self,
        effects: Vec<Effect>,
        until: Until,
        stop: &CancellationToken,
    ) -> End {
        self.feed();
        self.perform(effects).await;
        if let Some(said) = self.source.first() {
            self.hear(said).await;
        }
        loop {
            if self.is_leaving() {
                info!("the instance is shut down: nothing more is started");
                self.source.hush();
                self.cancel().await;
                // Nobody waits for what will not be settled any more.
                self.tools.notify.ready();
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return self.stopped(false).await,
                        () = at(self.feed) => self.feed(),
                    }
                }
            }
            if until == Until::Settled
                && self.task.is_none()
                && let Some(end) = self.end()
            {
                return end;
            }
            self.watch();
            let wake = self.wake.map(|wake| self.started + wake);
            let event = tokio::select! {
                () = stop.cancelled() => return self.stopped(is_going_down(Path::new("/run"))).await,
                outcome = ended(&mut self.task) => {
                    let id = self.task.take().map_or(0, |(id, _, _)| id);
                    self.collect(&outcome);
                    Event::Done(id, outcome)
                }
                said = self.source.next() => {
                    self.hear(said).await;
                    continue;
                }
                () = at(wake) => {
                    self.wake = None;
                    Event::Woke
                }
                () = ended_by_itself(&mut self.gone) => Event::Ended,
                () = at(self.feed) => {
                    self.feed();
                    continue;
                }
            };
            self.step(event).await;
        }
    }

    /// Feeds the watchdog: here and nowhere else, so that a loop that stands lets it starve.
    fn feed(&mut self) {
        let every = self.tools.notify.feeds_every();
        self.feed = every.map(|every| {
            self.tools.notify.feed();
            Instant::now() + every
        });
    }

    /// Takes hold of the manager while nothing is done about it.
    fn watch(&mut self) {
        let is_left_alone = self.task.is_none() || self.is_beside;
        if is_left_alone
            && self.gone.is_none()
            && let Some(release) = self.machine.serving().cloned()
        {
            self.gone = Some(Box::pin(watch::gone(Rc::clone(&self.tools), release)));
        }
    }

    /// Told to stop; `is_goodbye`: because the instance is shut down.
    async fn stopped(&mut self, is_goodbye: bool) -> End {
        self.tools.notify.stopping();
        self.cancel().await;
        if let Some(journal) = self.machine.stopped() {
            self.write(&journal);
        }
        if is_goodbye {
            self.source.goodbye().await;
        }
        info!("stopped");
        End::Stopped
    }

    /// Takes what the task that has ended has to tell people.
    fn collect(&mut self, outcome: &Outcome) {
        let saying = &self.tools.saying;
        if let Some(note) = saying.take_note() {
            self.note = Some(note);
        }
        let (Outcome::Failed(_, detail) | Outcome::Refused(detail), Some(revision)) =
            (outcome, self.about.clone())
        else {
            return;
        };
        let log = saying.take_log(revision, detail);
        // A look that fails again says what the last one did.
        let is_told = self
            .last
            .as_ref()
            .is_some_and(|last| last.health == Health::Unhealthy && last.phase == Phase::Idle);
        if !is_told {
            self.log = Some(log);
        }
    }

    /// Has `towline-agent goodbye` been run? Then what is under way ends, and nothing more begins.
    fn is_leaving(&self) -> bool {
        matches!(self.source, Source::Coordinator(_)) && self.tools.store.is_leaving()
    }

    fn end(&self) -> Option<End> {
        let report = self.machine.settled()?;
        Some(if self.machine.is_converged() {
            End::Converged
        } else if matches!(report.phase, Phase::Waiting | Phase::Asking)
            || (report.failure.is_none() && report.degraded.is_none())
        {
            End::TryLater
        } else {
            End::Failed
        })
    }

    async fn hear(&mut self, said: Said) {
        let event = match said {
            Said::Word(word) => Event::Told(word),
            Said::Objection(reason) => Event::Objected(reason),
        };
        self.step(event).await;
    }

    async fn step(&mut self, event: Event) {
        debug!(?event, "event");
        let effects = self.machine.step(self.started.elapsed(), event);
        self.perform(effects).await;
    }

    async fn perform(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            debug!(?effect, "effect");
            match effect {
                Effect::Journal(journal) => self.write(&journal),
                Effect::Begin(id, task) => {
                    if let Some(number) = self.begin(id, task) {
                        let asked = Event::Asked(number);
                        effects.extend(self.machine.step(self.started.elapsed(), asked));
                    }
                }
                Effect::Cancel => self.cancel().await,
                Effect::WakeAt(time) => self.wake = Some(time),
                Effect::Report(report) => self.tell(*report),
                Effect::Prune(keep) => {
                    self.prune(keep).await;
                    let left = Event::Pruned(self.tools.store.complete());
                    effects.extend(self.machine.step(self.started.elapsed(), left));
                }
            }
        }
    }

    fn write(&self, journal: &Journal) {
        if let Err(error) = self.tools.store.write_journal(journal) {
            error!(
                error = errors::chain(&error),
                hint = error.hint(),
                "could not write the journal"
            );
        }
    }

    /// Returns the number of a question that goes out.
    fn begin(&mut self, id: TaskId, task: Task) -> Option<u64> {
        // What is made ready beside what serves says nothing of it.
        self.is_beside = matches!(task, Task::Prepare { .. } | Task::Ask(_));
        if !self.is_beside {
            self.gone = None;
        }
        let stop = CancellationToken::new();
        let (tools, own) = (Rc::clone(&self.tools), stop.clone());
        self.tools.saying.clear();
        self.tools.kept.replace(self.machine.keep());
        self.about = match &task {
            Task::Prepare { revision, .. } => Some(revision.clone()),
            Task::Activate { to: release, .. }
            | Task::Prove(release)
            | Task::Probe(release, _)
            | Task::Check(release, _) => release.own().cloned(),
            Task::Ask(_) | Task::Journal(_) => None,
        };
        let mut asked = None;
        // The looks at what serves are often enough for a log that grows.
        let is_log_due = matches!(task, Task::Activate { .. } | Task::Check(..))
            && self.tools.store.is_app_log_large(self.tools.config.keep.log_mib);
        let bounded = is_log_due.then(|| Rc::clone(&self.tools));
        let running: Running = match task {
            Task::Prepare { revision, unless_like } => {
                Box::pin(prepare::prepare(tools, revision, unless_like, own))
            }
            Task::Ask(order) => {
                let (number, question) = self.source.ask(order, self.started, own);
                asked = number;
                question
            }
            // At once, so that journals reach the disk in the order in which they were made.
            Task::Journal(journal) => {
                let outcome = match tools.store.write_journal(&journal) {
                    Ok(()) => Outcome::Journalled,
                    Err(error) => Outcome::Failed(Cause::Disk, errors::chain(&error)),
                };
                Box::pin(std::future::ready(outcome))
            }
            Task::Activate { to, from, how, is_deploy } => {
                Box::pin(activate::activate(tools, to, from, how, is_deploy, own))
            }
            Task::Prove(release) => Box::pin(activate::prove(tools, release, own)),
            Task::Probe(release, window) => Box::pin(probe::probe(tools, release, window, own)),
            Task::Check(release, window) => Box::pin(probe::check(tools, release, window, own)),
        };
        let generation = self.machine.journal().target.as_ref().map(|t| t.order.generation);
        let span = info_span!("deploy", group = %self.tools.config.group, generation);
        let running = async move {
            if let Some(tools) = bounded {
                bound_app_log(&tools).await;
            }
            running.await
        };
        self.task = Some((id, stop, Box::pin(running.instrument(span))));
        asked
    }

    async fn cancel(&mut self) {
        if let Some((_, stop, mut running)) = self.task.take() {
            stop.cancel();
            // Its processes are gone when it returns.
            loop {
                tokio::select! {
                    _ = &mut running => return,
                    () = at(self.feed) => self.feed(),
                }
            }
        }
    }

    /// Writes the status, and logs what a person following a deploy wants to know.
    fn tell(&mut self, report: Report) {
        let last = self.last.replace(report.clone());
        let was = |get: fn(&Report) -> Option<&String>| last.as_ref().and_then(get).cloned();
        if let Some(reason) = &report.objection
            && was(|r| r.objection.as_ref()).as_ref() != Some(reason)
        {
            warn!(reason, "the source is not followed; what serves is kept");
        }
        if let Some(reason) = &report.degraded
            && was(|r| r.degraded.as_ref()).as_ref() != Some(reason)
        {
            warn!(serving = serving(&report), reason, "degraded");
        }
        let phase = last.as_ref().map(|last| last.phase);
        if report.phase == Phase::Restoring && phase != Some(Phase::Restoring) {
            let failed = report.failure.as_ref().map(|failure| failure.revision.as_str());
            let back_to = serving(&report);
            let error = report.failure.as_ref().map(|failure| failure.detail.as_str());
            warn!(
                revision = failed,
                back_to, error, "failed; what served before is made live again"
            );
        }
        let order = last.as_ref().and_then(|last| last.order);
        if let (Some(new), Some(target)) = (report.order, &report.target)
            && Some(new) != order
        {
            info!(revision = %target, epoch = new.epoch, generation = new.generation, "target");
        }
        let health = last.as_ref().map(|last| last.health);
        if report.phase == Phase::Idle && health.is_some_and(|health| health != report.health) {
            let serving = serving(&report);
            let evidence = report.evidence.map(Evidence::as_str);
            info!(revision = serving, health = report.health.as_str(), evidence, "serving");
        }
        if !self.machine.is_booting() {
            self.tools.notify.ready();
        }
        self.tools.notify.status(&status_line(&report));
        let (note, log) = (self.note.take(), self.log.take());
        self.source.tell(Told { report: report.clone(), note, log });
        let status = Status { report, written_s: status::seconds_now(), pid: std::process::id() };
        if let Err(error) = self.tools.store.write_status(&status) {
            warn!(error = errors::chain(&error), hint = error.hint(), "could not write the status");
        }
        if let Some(socket) = &self.socket {
            socket.tell(status);
        }
    }

    /// Off this thread, since it removes whole trees; meanwhile the watchdog is fed.
    async fn prune(&mut self, keep: BTreeSet<Revision>) {
        let (store, limits) = (self.tools.store.clone(), self.tools.config.keep.clone());
        let mut pruning = tokio::task::spawn_blocking(move || prune(&store, &limits, keep));
        let pruned = loop {
            tokio::select! {
                pruned = &mut pruning => break pruned,
                () = at(self.feed) => self.feed(),
            }
        };
        if let Err(error) = pruned {
            warn!(error = errors::chain(&error), "could not prune");
        }
    }
}

/// Removes what is beyond host config's quotas, save what is kept or lived in. Blocks.
pub(crate) fn prune(store: &Store, limits: &Keep, kept: BTreeSet<Revision>) {
    let mut in_use = manager::releases_in_use(&store.releases());
    in_use.extend(manager::trees_in_use(&store.dependencies()));
    match store.prune(&Needed { kept, in_use }, limits.quota()) {
        Ok(0) => {}
        Ok(removed) => info!(removed, "pruned"),
        Err(error) => {
            warn!(error = errors::chain(&error), hint = error.hint(), "could not prune");
        }
    }
    if let Err(error) = dependencies::bound_package_cache(store, limits.package_cache_mib) {
        warn!(error = errors::chain(&error), "could not empty the package cache");
    }
    let kept: Vec<Revision> = store.complete();
    if let Err(error) = Cache::open(&store.git_cache()).and_then(|cache| cache.keep(&kept)) {
        warn!(error = errors::chain(&error), "could not prune the git cache");
    }
}

/// One line for `systemctl status`.
fn status_line(report: &Report) -> String {
    let adopted = report.adopted.then_some("what was adopted");
    let serves = report.serving.as_ref().map(Revision::short).or(adopted).unwrap_or("nothing");
    let line = format!("{}; serves {serves}, {}", report.phase.as_str(), report.health.as_str());
    match &report.degraded {
        Some(reason) => format!("{line}; degraded: {reason}"),
        None => line,
    }
}

/// Empties the app's log, off this thread.
async fn bound_app_log(tools: &Tools) {
    let (store, max_mib) = (tools.store.clone(), tools.config.keep.log_mib);
    let user = tools.run_as.account.as_ref().map(|account| account.uid);
    let bounded = tokio::task::spawn_blocking(move || store.bound_app_log(max_mib, user)).await;
    match bounded {
        Ok(Ok(true)) => info!("emptied the app's log; its end is beside it"),
        Ok(Ok(false)) => {}
        Ok(Err(error)) => {
            warn!(
                error = errors::chain(&error),
                hint = error.hint(),
                "could not bound the app's log"
            );
        }
        Err(error) => warn!(error = errors::chain(&error), "could not bound the app's log"),
    }
}

/// What serves, as the log has it.
fn serving(report: &Report) -> Option<&str> {
    let adopted = report.adopted.then_some("adopted");
    report.serving.as_ref().map(Revision::as_str).or(adopted)
}

/// Is the host on its way down, as far as systemd's files tell? `run` is `/run`.
///
/// A shutdown that was scheduled has a file of its own, and users are kept out by another from the moment
/// at which their sessions end. A power button, or EC2's stop, may leave neither before the agent ends: a
/// unit whose `ExecStop=` runs `towline-agent goodbye` is sure.
fn is_going_down(run: &Path) -> bool {
    ["systemd/shutdown/scheduled", "nologin"].iter().any(|name| run.join(name).exists())
}

/// Waits for the end of the manager, which is told once; for ever where none is watched.
async fn ended_by_itself(gone: &mut Option<Pin<Box<dyn Future<Output = ()>>>>) {
    match gone {
        Some(watched) => {
            watched.await;
            *gone = Some(Box::pin(std::future::pending()));
        }
        None => std::future::pending().await,
    }
}

/// Waits for the end of the task; for ever where none runs.
async fn ended(task: &mut Option<(TaskId, CancellationToken, Running)>) -> Outcome {
    match task {
        Some((_, _, running)) => running.await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Returns the last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
