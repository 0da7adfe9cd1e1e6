//! Making a release live: the swap, and the reload, restart or start that goes with it; then the
//! proof that workers of that release run.
//!
//! ```text
//!   settled? ─► look at workers ─► swap `current` ─┬─ reload: signal, or command
//!                                                  ├─ restart: stop, start
//!                                                  └─ nothing runs: start
//! ```

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Find, Recipe, Reload, RestartWhen};
use towline_protocol::report::Cause;
use tracing::{debug, info, warn};

use super::Tools;
use crate::error;
use crate::machine::{How, Outcome};
use crate::manager::{
    self, Absence, Context, FindError, Finding, Process, ProveError, SignalError, Snapshot,
};
use crate::process::{self, Job, Remains};
use crate::release::Marker;
use crate::shown;

/// How long a manager that was told to stop gets to be replaced by its own supervisor before it is
/// started by us.
const COMES_BACK: Duration = Duration::from_millis(300);

/// How long workers must hold still for a reload to count as over.
const STILL: Duration = Duration::from_secs(1);

/// How much of the app's log is shown where a release fails.
const LOG_BYTES: u64 = 4096;

/// The app's log is emptied at a start when it is larger than this: nobody else bounds it.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// Reads the recipe of a complete release.
pub(super) fn recipe_of(tools: &Tools, revision: &Revision) -> Result<Recipe, String> {
    let marker = marker_of(tools, revision)?;
    Recipe::parse(&marker.recipe).map_err(|error| error::chain(&error))
}

fn marker_of(tools: &Tools, revision: &Revision) -> Result<Marker, String> {
    let marker = tools.store.marker(revision);
    marker.ok_or_else(|| format!("the release {} is not complete on disk", revision.short()))
}

/// Says how the manager of a recipe is found on this host: by an absolute path.
pub(crate) fn finder(tools: &Tools, recipe: &Recipe) -> Find {
    match &recipe.manager.find {
        // A relative one lies in a shared directory, as the recipe's own check has it.
        Find::PidFile(path) if !path.starts_with('/') => {
            Find::PidFile(tools.store.shared().join(path).display().to_string())
        }
        other => other.clone(),
    }
}

/// Looks for a manager that is proved to be it.
///
/// # Errors
///
/// Where it is open whether one runs, so that nothing may be signalled or started.
pub(crate) async fn look(
    tools: &Tools,
    find: &Find,
    stop: &CancellationToken,
) -> Result<Option<Process>, FindError> {
    let current = tools.store.current();
    // Before the first release there is no `current` to run a status command in.
    let cwd = if current.exists() { &current } else { tools.store.dir() };
    match manager::find(find, &Context { run_as: &tools.run_as, cwd, stop }).await {
        Ok(Finding::Running(process)) => Ok(Some(process)),
        Ok(Finding::Nothing(absence)) => {
            if let Absence::Stale { .. } = absence {
                debug!(%absence, "no manager runs");
            }
            Ok(None)
        }
        // A file that a crash left empty names nobody: nothing is signalled, and the app's own start
        // writes it anew.
        Err(error @ FindError::Text { .. }) => {
            warn!(error = error::chain(&error), "no manager is proved to run");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Points `current` at `to` and has its manager follow.
pub(super) async fn activate(
    tools: Rc<Tools>,
    to: Revision,
    from: Option<Revision>,
    how: How,
    stop: CancellationToken,
) -> Outcome {
    let started = Instant::now();
    match Work::new(&tools, to.clone(), from, how, &stop) {
        Ok(work) => match work.perform().await {
            Ok(done) => {
                let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                info!(revision = %to, manager = done, elapsed_ms, "activated");
                Outcome::Activated
            }
            Err(detail) => {
                if !stop.is_cancelled() {
                    warn!(revision = %to, error = detail, log = app_log(&tools), "could not activate");
                }
                Outcome::Failed(Cause::Activate, detail)
            }
        },
        Err(detail) => Outcome::Failed(Cause::Activate, detail),
    }
}

struct Work<'a> {
    tools: &'a Tools,
    to: Revision,
    recipe: Recipe,
    /// How the manager that runs now is found: by the recipe that started it.
    outgoing: Find,
    incoming: Find,
    needs_restart: Option<&'static str>,
    stop: &'a CancellationToken,
}

impl<'a> Work<'a> {
    fn new(
        tools: &'a Tools,
        to: Revision,
        from: Option<Revision>,
        how: How,
        stop: &'a CancellationToken,
    ) -> Result<Self, String> {
        let marker = marker_of(tools, &to)?;
        let recipe = recipe_of(tools, &to)?;
        let incoming = finder(tools, &recipe);
        let old = from.filter(|from| *from != to).and_then(|from| tools.store.marker(&from));
        let old_recipe = old.as_ref().and_then(|old| Recipe::parse(&old.recipe).ok());
        let outgoing =
            old_recipe.as_ref().map_or_else(|| incoming.clone(), |recipe| finder(tools, recipe));
        let asks = |when| recipe.manager.restart_when.contains(&when);
        let differs = |get: fn(&Marker) -> &Option<String>| {
            old.as_ref().is_some_and(|old| get(old) != get(&marker))
        };
        let needs_restart = if how == How::Restart {
            Some("restart")
        } else if outgoing != incoming {
            Some("restart: the recipe names another manager")
        } else if asks(RestartWhen::Install) && differs(|marker| &marker.dependencies) {
            Some("restart: other dependencies")
        } else if asks(RestartWhen::Runtime) && differs(|marker| &marker.runtime) {
            Some("restart: another runtime")
        } else {
            None
        };
        Ok(Self { tools, to, recipe, outgoing, incoming, needs_restart, stop })
    }

    /// Returns what was done to the manager, for the log.
    async fn perform(&self) -> Result<&'static str, String> {
        let mut running = self.find(&self.outgoing).await?;
        if let Some(process) = &running
            && self.tools.is_unsettled.get()
        {
            // Two reloads never overlap: one that is under way is waited for.
            settle(process, self.recipe.manager.timeout, self.stop).await;
            running = self.find(&self.outgoing).await?;
        }
        self.tools.is_unsettled.set(true);
        let before = match &running {
            Some(process) => Snapshot::take(process).await,
            None => Snapshot::nothing(),
        };
        let has_workers = !before.workers.is_empty();
        *self.tools.before.borrow_mut() = Some(before);
        self.tools.store.swap(&self.to).map_err(|error| error::chain(&error))?;
        let Some(process) = running else {
            self.start().await?;
            return Ok("started");
        };
        match self.needs_restart {
            Some(reason) => {
                self.restart(&process).await?;
                Ok(reason)
            }
            // A reload shows in new workers; a manager without any cannot show it.
            None if !has_workers => {
                self.restart(&process).await?;
                Ok("restart: it has no workers that a reload could replace")
            }
            None => match self.reload(&process).await? {
                true => Ok("reloaded"),
                false => {
                    self.start().await?;
                    Ok("started: it was gone")
                }
            },
        }
    }

    async fn find(&self, find: &Find) -> Result<Option<Process>, String> {
        look(self.tools, find, self.stop).await.map_err(|error| hinted(&error, error.hint()))
    }

    /// Returns `false` where the manager ended before it could be told.
    async fn reload(&self, process: &Process) -> Result<bool, String> {
        match &self.recipe.manager.reload {
            Reload::Signal(signal) => match manager::signal(process, *signal) {
                Ok(()) => Ok(true),
                Err(SignalError::Gone { .. }) => Ok(false),
                Err(error) => Err(error::chain(&error)),
            },
            Reload::Command(command) => {
                let job = Job {
                    label: "reload",
                    command,
                    cwd: &self.tools.store.current(),
                    run_as: &self.tools.run_as,
                    extra: process::Environment::new(),
                    deadline: self.recipe.manager.timeout,
                    capture: false,
                    // What it leaves may be the app's new processes.
                    remains: Remains::Leave,
                };
                let ran = process::run(&job, self.stop).await;
                ran.map(|_| true).map_err(|error| error::chain(&error))
            }
        }
    }

    async fn restart(&self, process: &Process) -> Result<(), String> {
        let stopped = manager::stop(process, self.recipe.manager.timeout)
            .await
            .map_err(|error| hinted(&error, error.hint()))?;
        if stopped.killed > 0 {
            warn!(
                killed = stopped.killed,
                "processes of the app did not end in time and were killed"
            );
        }
        // A supervisor of the app's own may have brought it back by now.
        let deadline = Instant::now() + COMES_BACK;
        while Instant::now() < deadline {
            if self.find(&self.incoming).await?.is_some() {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.start().await
    }

    /// Starts the manager, and waits until it is found.
    async fn start(&self) -> Result<(), String> {
        let (run_as, store) = (&self.tools.run_as, &self.tools.store);
        let timeout = self.recipe.manager.timeout;
        let log = store.log().join("app.log");
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
            drop(fs::remove_file(&log));
        }
        let current = store.current();
        let launched = process::launch(&self.recipe.manager.start, &current, run_as, &log)
            .await
            .map_err(|error| hinted(&error, error.hint()))?;
        let deadline = Instant::now() + timeout;
        loop {
            if self.find(&self.incoming).await?.is_some() {
                return Ok(());
            }
            let failure = match launched.exited() {
                Some(exit) if !exit.is_success() => Some(format!("ended with {exit}")),
                _ if Instant::now() >= deadline => {
                    Some(format!("no manager was found within {} s", timeout.as_secs_f64()))
                }
                _ if self.stop.is_cancelled() => Some("stopped".to_owned()),
                _ => None,
            };
            if let Some(failure) = failure {
                launched.end(process::GRACE).await;
                return Err(format!("start command {}: {failure}", self.recipe.manager.start));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits for the proof that the workers are those of `revision`.
pub(super) async fn prove(
    tools: Rc<Tools>,
    revision: Revision,
    stop: CancellationToken,
) -> Outcome {
    let recipe = match recipe_of(&tools, &revision) {
        Ok(recipe) => recipe,
        Err(detail) => return Outcome::Failed(Cause::Prove, detail),
    };
    let finder = finder(&tools, &recipe);
    let release = tools.store.release(&revision);
    // A restart of the agent lost it; then every worker counts as new that runs from the release.
    let before = tools.before.borrow_mut().take().unwrap_or_else(Snapshot::nothing);
    let started = Instant::now();
    let timeout = recipe.manager.timeout;
    let current = tools.store.current();
    let context = Context { run_as: &tools.run_as, cwd: &current, stop: &stop };
    match manager::prove(&finder, &context, &before, &release, timeout).await {
        Ok(evidence) => {
            tools.is_unsettled.set(false);
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(%revision, evidence = evidence.as_str(), elapsed_ms, "workers replaced");
            Outcome::Proved(evidence)
        }
        Err(error) => {
            let detail = hinted(&error, error.hint());
            if !stop.is_cancelled() {
                warn!(%revision, error = detail, log = app_log(&tools), "workers not replaced");
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

/// Waits until the workers hold still: another reload may be under way.
async fn settle(process: &Process, timeout: Duration, stop: &CancellationToken) {
    let deadline = Instant::now() + timeout;
    let mut last = manager::workers(process).await;
    let mut since = Instant::now();
    while since.elapsed() < STILL && Instant::now() < deadline && !stop.is_cancelled() {
        sleep(STILL / 10).await;
        let now = manager::workers(process).await;
        if now != last {
            since = Instant::now();
            last = now;
        }
    }
}

/// An error with its causes, and what to do about it, in one line.
fn hinted(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let chain = error::chain(error);
    match hint {
        Some(hint) => format!("{chain} ({hint})"),
        None => chain,
    }
}

/// Returns the end of what the app has printed, for whoever looks for the cause.
pub(super) fn app_log(tools: &Tools) -> Option<String> {
    let mut file = fs::File::open(tools.store.log().join("app.log")).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    let text = shown::clean(&String::from_utf8_lossy(&bytes));
    let lines = super::last_lines(text.trim_end(), 8);
    (!lines.is_empty()).then_some(lines)
}
