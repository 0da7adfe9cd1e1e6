//! Making a release live: the swap, and the reload, restart or start that goes with it; then the
//! proof that workers of that release run.
//!
//! ```text
//!   hook ─► settled? ─► look at workers ─► swap `current` ─┬─ reload: signal, or command
//!                                                          ├─ restart: stop, start
//!                                                          ├─ nothing runs: start
//!                                                          └─ no manager: nothing
//! ```

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{CommandLine, Find, Manager, Recipe, Reload, RestartWhen};
use towline_protocol::report::Cause;
use tracing::{debug, info, warn};

use super::Tools;
use super::hooks;
use super::place::{directory, finder, home, marker_of, recipe_of};
use super::printed;
use super::settle::settle;
use super::unit;
use super::way::{Managers, check_lost, named};
use crate::error;
use crate::journal::Release;
use crate::machine::{How, Outcome};
use crate::manager::{
    self, Absence, Context, FindError, Finding, Process, Proof, ProveError, SignalError, Snapshot,
};
use crate::process::{self, Job, Launched, Remains};
use crate::release::Marker;
use crate::systemd::{self, Verb};

/// How long a manager that was told to stop gets to be replaced by its own supervisor before it is
/// started by us.
const COMES_BACK: Duration = Duration::from_millis(300);

/// How long a manager may take to end where the release that replaces it has none.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a pid file that makes no sense may be one that is just written.
const WRITTEN_WITHIN: Duration = Duration::from_millis(100);

/// The pause between two looks at a start that somebody else began: each reads all of `/proc`.
const STARTING_PAUSE: Duration = Duration::from_millis(200);

/// How long after a start that ended with success, and left no manager, it is tried once more.
const STARTS_WITHIN: Duration = Duration::from_secs(3);

/// Looks for a manager that is proved to be it, as the recipe of the release `of` has it: a status
/// command may be one of its files.
///
/// # Errors
///
/// Where it is open whether one runs, so that nothing may be signalled or started.
pub(crate) async fn look(
    tools: &Tools,
    find: &Find,
    of: &Release,
    stop: &CancellationToken,
) -> Result<Option<Process>, FindError> {
    let cwd = directory(tools, of);
    let context = Context { run_as: &tools.run_as, cwd: &cwd, stop };
    let mut found = manager::find(find, &context).await;
    if matches!((&found, find), (Err(FindError::Text { .. }), Find::PidFile(_))) {
        // Somebody may be writing it just now.
        sleep(WRITTEN_WITHIN).await;
        found = manager::find(find, &context).await;
    }
    match found {
        Ok(Finding::Running(process)) => {
            tools.doubt.take();
            Ok(Some(process))
        }
        Ok(Finding::Nothing(absence)) => {
            if let Absence::Stale { .. } = absence {
                debug!(%absence, "no manager runs");
            }
            Ok(None)
        }
        // A file that a crash left empty names nobody: nothing is signalled, and the app's own start
        // writes it anew.
        Err(error @ FindError::Text { .. }) if matches!(find, Find::PidFile(_)) => {
            let said = error::chain(&error);
            // Asked many times a second while an app starts.
            if tools.doubt.replace(Some(said.clone())).as_ref() != Some(&said) {
                warn!(error = said, "no manager is proved to run");
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Points `current` at `to` and has its manager follow.
pub(super) async fn activate(
    tools: Rc<Tools>,
    to: Release,
    from: Option<Release>,
    how: How,
    is_deploy: bool,
    stop: CancellationToken,
) -> Outcome {
    let hooks = hooks::Due { from: from.clone(), is_deploy };
    if let Err(refused) = hooks::before(&tools, &to, hooks, &stop).await {
        return refused;
    }
    let started = Instant::now();
    let work = match Work::new(&tools, to.clone(), from, how, &stop) {
        Ok(work) => work,
        // Without a whole release there is nothing to try again with.
        Err(detail) => {
            warn!(revision = %to, error = detail, "could not activate");
            return Outcome::Failed(Cause::Activate, detail);
        }
    };
    let was = tools.store.live();
    let running = match work.begin().await {
        Ok(running) => running,
        Err(detail) => {
            if !stop.is_cancelled() {
                warn!(revision = %to, error = detail, "could not begin to activate");
            }
            let has_swapped = was != tools.store.live();
            return if has_swapped {
                Outcome::Failed(Cause::Activate, detail)
            } else {
                Outcome::Untouched(detail)
            };
        }
    };
    let pid = running.own.as_ref().map(Process::pid);
    match work.perform(running).await {
        Ok((how, done)) => {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(revision = %to, manager = done, elapsed_ms, "activated");
            let done = if how == How::Reload { work.how_to_reload() } else { done.to_owned() };
            let of = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            let elapsed_s = started.elapsed().as_secs_f64();
            tools.saying.note(format!("{done}{of} in {elapsed_s:.1} s"));
            Outcome::Activated(how)
        }
        Err(detail) => {
            if !stop.is_cancelled() {
                let log = printed::keep(&tools, &work.recipe).await;
                warn!(revision = %to, error = detail, log, "could not activate");
            }
            Outcome::Failed(Cause::Activate, detail)
        }
    }
}

/// What runs before a swap.
struct Running {
    /// Found as the release that is made live finds it: it can be told to reload.
    own: Option<Process>,
    /// Found by another recipe only: it has to go.
    others: Vec<Process>,
}

struct Work<'a> {
    tools: &'a Tools,
    to: Release,
    /// Where its commands run.
    home: PathBuf,
    recipe: Recipe,
    managers: Managers,
    needs_restart: Option<&'static str>,
    /// Is what was adopted left, or gone back to?
    is_foreign: bool,
    /// Has a manager been ended, whose pid file may still name it?
    has_ended: Cell<bool>,
    stop: &'a CancellationToken,
}

impl<'a> Work<'a> {
    fn new(
        tools: &'a Tools,
        to: Release,
        from: Option<Release>,
        how: How,
        stop: &'a CancellationToken,
    ) -> Result<Self, String> {
        let marker = to.own().map(|revision| marker_of(tools, revision)).transpose()?;
        let recipe = recipe_of(tools, &to)?;
        let managers = Managers::of(tools, &to, from.as_ref())?;
        let restart_when = recipe.manager.iter().flat_map(|manager| &manager.restart_when);
        let asks = |when| restart_when.clone().any(|asked| *asked == when);
        let differs = |get: fn(&Marker) -> &Option<String>| {
            let both = managers.old.as_ref().zip(marker.as_ref());
            both.is_some_and(|(old, marker)| get(old) != get(marker))
        };
        let is_foreign = [Some(&to), from.as_ref()].contains(&Some(&Release::Adopted));
        let needs_restart = if is_foreign {
            Some("restart: it leaves what was adopted, or goes back to it")
        } else if how == How::Restart {
            Some("restart")
        } else if asks(RestartWhen::Install) && differs(|marker| &marker.dependencies) {
            Some("restart: other dependencies")
        } else if asks(RestartWhen::Runtime) && differs(|marker| &marker.runtime) {
            Some("restart: another runtime")
        } else {
            None
        };
        let has_ended = Cell::new(false);
        let home = home(tools, &to);
        Ok(Self { tools, to, home, recipe, managers, needs_restart, is_foreign, has_ended, stop })
    }

    /// Finds what runs, and points `current` at the release. An error has touched nothing.
    async fn begin(&self) -> Result<Running, String> {
        let mut running = self.find_all().await?;
        if let Some(process) = &running.own
            && self.tools.is_unsettled.get()
            && self.needs_restart.is_none()
        {
            // Two reloads never overlap: one that is under way is waited for.
            let releases = self.tools.store.releases();
            settle(process, &releases, self.timeout(), self.stop).await;
            running = self.find_all().await?;
        }
        if running.own.is_none() && running.others.is_empty() {
            check_lost(self.tools).await?;
        }
        if self.stop.is_cancelled() {
            return Err("stopped".to_owned());
        }
        self.tools.is_unsettled.set(true);
        printed::mark(self.tools);
        let before = match &running.own {
            Some(process) => Snapshot::take(process).await,
            None => Snapshot::nothing(),
        };
        *self.tools.before.borrow_mut() = Some(before);
        let pointed = match &self.to {
            Release::Own(revision) => self.tools.store.swap(revision),
            // Its processes do not look at it, and what is no more live must not be named.
            Release::Adopted => self.tools.store.leave(),
        };
        pointed.map_err(|error| hinted(&error, error.hint()))?;
        // From here on `current` is what it is to be: units that wait for that may start.
        self.tools.notify.ready();
        Ok(running)
    }

    /// Has the manager follow; returns what was done to it, for the log.
    async fn perform(&self, running: Running) -> Result<(How, &'static str), String> {
        for other in &running.others {
            self.end(other).await?;
        }
        // One that has no main process just now would be started again by systemd.
        let units = self.managers.outgoing.iter().filter_map(|(find, _)| match find {
            Find::Unit(unit) => Some(unit),
            Find::PidFile(_) | Find::Status(_) => None,
        });
        for unit in units {
            unit::stop(self.tools, unit, self.timeout(), self.stop).await?;
        }
        let Some(manager) = &self.recipe.manager else {
            return Ok((How::Restart, "swapped: it has no manager"));
        };
        let Some(process) = running.own else {
            self.start(manager).await?;
            let is_other = !running.others.is_empty();
            let done =
                if is_other { "restart: the recipe names another manager" } else { "started" };
            return Ok((How::Restart, done));
        };
        let has_workers =
            self.tools.before.borrow().as_ref().is_some_and(|before| !before.workers.is_empty());
        match self.needs_restart {
            Some(reason) => {
                self.restart(manager, &process).await?;
                Ok((How::Restart, reason))
            }
            // A reload shows in new workers; a manager without any cannot show it.
            None if !has_workers => {
                self.restart(manager, &process).await?;
                Ok((How::Restart, "restart: it has no workers that a reload could replace"))
            }
            None => match self.reload(manager, &process).await? {
                true => Ok((How::Reload, "reloaded")),
                false => {
                    self.start(manager).await?;
                    Ok((How::Restart, "started: it was gone"))
                }
            },
        }
    }

    async fn find_all(&self) -> Result<Running, String> {
        let own = self.find_own().await?;
        let mut others: Vec<Process> = Vec::new();
        for find in &self.managers.outgoing {
            let found = self.find(find).await?;
            // Two recipes may name one manager in two ways.
            let known: Vec<i32> = own.iter().chain(&others).map(Process::pid).collect();
            others.extend(found.filter(|process| !known.contains(&process.pid())));
        }
        Ok(Running { own, others })
    }

    /// Finds the manager that is to run.
    async fn find_own(&self) -> Result<Option<Process>, String> {
        match &self.managers.incoming {
            Some(incoming) => self.find(incoming).await,
            None => Ok(None),
        }
    }

    /// How long a reload, a stop or a start may take.
    fn timeout(&self) -> Duration {
        self.recipe.manager.as_ref().map_or(STOP_TIMEOUT, |manager| manager.timeout)
    }

    async fn find(&self, (find, of): &(Find, Release)) -> Result<Option<Process>, String> {
        let found = look(self.tools, find, of, self.stop).await;
        found.map_err(|error| hinted(&error, error.hint()))
    }

    /// Says how the manager is told to reload, for people.
    fn how_to_reload(&self) -> String {
        match self.recipe.manager.as_ref().map(|manager| &manager.reload) {
            Some(Reload::Signal(signal)) => signal.name().to_owned(),
            Some(Reload::Command(command)) => format!("`{command}`"),
            Some(Reload::Unit) => "the unit's own reload".to_owned(),
            None => String::new(),
        }
    }

    /// Returns `false` where the manager ended before it could be told.
    async fn reload(&self, manager: &Manager, process: &Process) -> Result<bool, String> {
        match &manager.reload {
            Reload::Signal(signal) => match manager::signal(process, *signal) {
                Ok(()) => Ok(true),
                Err(SignalError::Gone { .. }) => Ok(false),
                Err(error) => Err(error::chain(&error)),
            },
            Reload::Command(command) => {
                let job = Job {
                    label: "reload",
                    command,
                    cwd: &self.home,
                    run_as: &self.tools.run_as,
                    extra: process::Environment::new(),
                    deadline: manager.timeout,
                    capture: false,
                    // What it leaves may be the app's new processes.
                    remains: Remains::Leave,
                };
                let ran = process::run(&job, self.stop).await;
                ran.map(|_| true).map_err(|error| {
                    self.tools.saying.part("reload", error.log().unwrap_or_default());
                    hinted(&error, error.hint())
                })
            }
            Reload::Unit => {
                let unit = manager.unit().unwrap_or_default();
                let verb = Verb::Reload(manager.timeout);
                let told = systemd::tell(verb, unit, &self.tools.run_as, self.stop).await;
                told.map(|()| true).map_err(|error| hinted(&error, error.hint()))
            }
        }
    }

    /// Asks a manager to end, and sees to it.
    async fn end(&self, process: &Process) -> Result<(), String> {
        self.has_ended.set(true);
        let context = Context { run_as: &self.tools.run_as, cwd: &self.home, stop: self.stop };
        let stopped = manager::stop(process, self.timeout(), &context)
            .await
            .map_err(|error| hinted(&error, error.hint()))?;
        if stopped.killed > 0 {
            warn!(
                killed = stopped.killed,
                "processes of the app did not end in time and were killed"
            );
        }
        Ok(())
    }

    async fn restart(&self, manager: &Manager, process: &Process) -> Result<(), String> {
        self.end(process).await?;
        // A supervisor of the app's own may have brought it back by now; that of an app which was there
        // before would bring back the wrong one.
        let deadline = Instant::now() + COMES_BACK;
        let may_come_back = !self.is_foreign && manager.unit().is_none();
        while may_come_back && Instant::now() < deadline {
            if self.find_own().await?.is_some() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.start(manager).await
    }

    /// Starts the manager, and waits until it is found.
    async fn start(&self, manager: &Manager) -> Result<(), String> {
        let timeout = manager.timeout;
        if let Some(unit) = manager.unit() {
            return unit::start(self.tools, unit, timeout, self.stop).await;
        }
        let Some(command) = &manager.start else {
            return Err("the recipe says neither how to start the app nor which unit does".into());
        };
        let begun = Instant::now();
        let by = self.managers.incoming.as_ref().map_or(String::new(), |(find, _)| named(find));
        let mut launched = self.launch(command).await?;
        let mut may_repeat = self.has_ended.get();
        loop {
            if self.find_own().await?.is_some() {
                return Ok(());
            }
            // What was launched is the app, and it is not the app that is to stop: the next run finds it.
            if self.stop.is_cancelled() {
                return Err("stopped".to_owned());
            }
            let waited = begun.elapsed();
            let ended = launched.exited();
            if ended.is_some_and(|exit| exit.is_success()) && may_repeat && waited >= STARTS_WITHIN
            {
                // It may have taken what had just ended for a manager that runs; it is harmless
                // where one does.
                may_repeat = false;
                launched = self.launch(command).await?;
                continue;
            }
            let failure = match ended {
                // A start that the last run of the agent began may be under way, and hold a lock.
                Some(exit)
                    if !exit.is_success() && waited < timeout && self.is_starting().await =>
                {
                    sleep(STARTING_PAUSE).await;
                    None
                }
                Some(exit) if !exit.is_success() => Some(format!("ended with {exit}")),
                Some(_) if waited >= timeout => Some(format!(
                    "ended with success, and no manager was found within {} s; see what {by} names: a \
                     start that finds an old pid file must not take it for a running app",
                    timeout.as_secs_f64()
                )),
                _ if waited >= timeout => Some(format!(
                    "no manager was found within {} s by {by} (manager.timeout_s)",
                    timeout.as_secs_f64()
                )),
                _ => None,
            };
            if let Some(failure) = failure {
                launched.end(process::GRACE).await;
                return Err(format!("start command {command}: {failure}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Does anything run from a release, though no manager is found yet?
    async fn is_starting(&self) -> bool {
        let releases = self.tools.store.releases();
        let in_use = process::off_thread(move || manager::releases_in_use(&releases)).await;
        in_use.is_ok_and(|in_use| !in_use.is_empty())
    }

    async fn launch(&self, command: &CommandLine) -> Result<Launched, String> {
        let run_as = &self.tools.run_as;
        let log = self.tools.store.app_log();
        let launched = process::launch(command, &self.home, run_as, &log).await;
        launched.map_err(|error| {
            self.tools.saying.part("start", error.log().unwrap_or_default());
            hinted(&error, error.hint())
        })
    }
}

/// Waits for the proof that the workers are those of `to`.
pub(super) async fn prove(tools: Rc<Tools>, to: Release, stop: CancellationToken) -> Outcome {
    let recipe = match recipe_of(&tools, &to) {
        Ok(recipe) => recipe,
        Err(detail) => return Outcome::Failed(Cause::Prove, detail),
    };
    let (Some(finder), Some(manager)) = (finder(&tools, &recipe), &recipe.manager) else {
        // Nothing of it runs that could show anything; its health check is what there is.
        return hooks::after(&tools, &to, Outcome::Proved(None), &stop).await;
    };
    let release = match &to {
        Release::Own(revision) => tools.store.release(revision),
        // Where its workers ought to run is not known: anywhere will do.
        Release::Adopted => PathBuf::from("/"),
    };
    // Every proof follows an activation of the same run, which has left it.
    let before = tools.before.borrow_mut().take().unwrap_or_else(Snapshot::nothing);
    let started = Instant::now();
    let timeout = manager.timeout;
    let home = home(&tools, &to);
    let context = Context { run_as: &tools.run_as, cwd: &home, stop: &stop };
    match manager::prove(&finder, &context, &before, &release, timeout).await {
        Ok(_) if is_of_adopted(&tools, &to, &finder, &context).await => {
            let detail = "what was adopted runs again: something starts it anew (have its own unit, or \
                          supervisor, start it no more)";
            warn!(revision = %to, error = detail, "workers not replaced");
            Outcome::Failed(Cause::Unhealthy, detail.to_owned())
        }
        Ok(Proof { evidence, workers }) => {
            tools.is_unsettled.set(false);
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(revision = %to, evidence = evidence.as_str(), elapsed_ms, "workers replaced");
            let (elapsed_s, shown) = (started.elapsed().as_secs_f64(), evidence.as_str());
            let new = match workers {
                0 => "a new process".to_owned(),
                1 => "1 new worker".to_owned(),
                workers => format!("{workers} new workers"),
            };
            tools.saying.note(format!("{new} in {elapsed_s:.1} s ({shown})"));
            hooks::after(&tools, &to, Outcome::Proved(Some(evidence)), &stop).await
        }
        Err(error) => {
            let detail = hinted(&error, error.hint());
            if !stop.is_cancelled() {
                let log = printed::keep(&tools, &recipe).await;
                warn!(revision = %to, error = detail, log, "workers not replaced");
            }
            if matches!(error, ProveError::Crashing { .. }) {
                // The reload was done, and a restart would start the same workers. Those that come and
                // go never hold still, so waiting for that would only keep the app down.
                tools.is_unsettled.set(false);
                return Outcome::Failed(Cause::Unhealthy, detail);
            }
            Outcome::Failed(Cause::Prove, detail)
        }
    }
}

/// Do workers run where what was adopted does, though another release was to be started?
async fn is_of_adopted(tools: &Tools, to: &Release, find: &Find, context: &Context<'_>) -> bool {
    let Some(adopted) = tools.config.adopted.as_ref().filter(|_| to.own().is_some()) else {
        return false;
    };
    match manager::find(find, context).await {
        Ok(Finding::Running(process)) => manager::works_below(&process, &adopted.dir).await,
        _ => false,
    }
}

/// An error with its causes, and what to do about it, in one line.
pub(super) fn hinted(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let chain = error::chain(error);
    match hint {
        Some(hint) => format!("{chain} ({hint})"),
        None => chain,
    }
}
