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
use tracing::{info, warn};

use super::Tools;
use crate::error;
use crate::machine::{How, Outcome};
use crate::manager::{self, Finder, Process, Snapshot};
use crate::process::{self, Job};
use crate::release::Marker;

/// How long a manager that was told to stop gets to be replaced by its own supervisor before it is
/// started by us.
const COMES_BACK: Duration = Duration::from_millis(300);

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

/// Says how the manager of a recipe is found on this host.
pub(crate) fn finder(tools: &Tools, recipe: &Recipe) -> Finder {
    let find = match &recipe.manager.find {
        // A relative one lies in a shared directory, as the recipe's own check has it.
        Find::PidFile(path) if !path.starts_with('/') => {
            Find::PidFile(tools.store.shared().join(path).display().to_string())
        }
        other => other.clone(),
    };
    Finder { find, around: tools.around.clone(), cwd: tools.store.current() }
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
    outgoing: Finder,
    incoming: Finder,
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
        } else if outgoing.find != incoming.find {
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
            manager::settle(process, self.recipe.manager.timeout, self.stop).await;
            running = self.find(&self.outgoing).await?;
        }
        self.tools.is_unsettled.set(true);
        let before = running.as_ref().map(Snapshot::take);
        let has_workers = before.as_ref().is_some_and(Snapshot::has_workers);
        *self.tools.before.borrow_mut() = before;
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

    async fn find(&self, finder: &Finder) -> Result<Option<Process>, String> {
        match manager::find(finder, self.stop).await {
            Ok(found) => Ok(found),
            // Nothing is proved to be the manager, so nothing is signalled; a start replaces the file.
            Err(error) if error.is_about_content() => {
                warn!(error = error::chain(&error), "no manager is proved to run");
                Ok(None)
            }
            Err(error) => Err(error::chain(&error)),
        }
    }

    /// Returns `false` where the manager ended before it could be told.
    async fn reload(&self, process: &Process) -> Result<bool, String> {
        match &self.recipe.manager.reload {
            Reload::Signal(signal) => match manager::signal(process, *signal) {
                Ok(()) => Ok(true),
                Err(error) if error.is_gone() => Ok(false),
                Err(error) => Err(error::chain(&error)),
            },
            Reload::Command(command) => {
                let (around, current) = (&self.tools.around, self.tools.store.current());
                let timeout = self.recipe.manager.timeout;
                let mut job = Job::new("reload", command, &current, timeout, &around.tag);
                job.account = around.account.as_ref();
                job.environment = around.environment.clone();
                let ran = process::run(&job, self.stop).await;
                ran.map(|_| true).map_err(|error| error::chain(&error))
            }
        }
    }

    async fn restart(&self, process: &Process) -> Result<(), String> {
        manager::stop(process, self.recipe.manager.timeout, self.stop)
            .await
            .map_err(|error| error::chain(&error))?;
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
        let (around, store) = (&self.tools.around, &self.tools.store);
        let timeout = self.recipe.manager.timeout;
        let log = store.log().join("app.log");
        if fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
            drop(fs::remove_file(&log));
        }
        let current = store.current();
        let mut job =
            Job::new("start", &self.recipe.manager.start, &current, timeout, &around.tag);
        job.account = around.account.as_ref();
        job.environment = around.environment.clone();
        let mut launched =
            process::launch(&job, &log).await.map_err(|error| error::chain(&error))?;
        let deadline = Instant::now() + timeout;
        loop {
            if self.find(&self.incoming).await?.is_some() {
                return Ok(());
            }
            let failure = match launched.exited() {
                Some(status) if !status.success() => Some(format!("ended with {status}")),
                _ if Instant::now() >= deadline => {
                    Some(format!("no manager was found within {} s", timeout.as_secs_f64()))
                }
                _ if self.stop.is_cancelled() => Some("stopped".to_owned()),
                _ => None,
            };
            if let Some(failure) = failure {
                launched.end().await;
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
    let before = tools.before.borrow_mut().take();
    let started = Instant::now();
    let timeout = recipe.manager.timeout;
    match manager::prove(&finder, before.as_ref(), &release, timeout, &stop).await {
        Ok(evidence) => {
            tools.is_unsettled.set(false);
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(%revision, ?evidence, elapsed_ms, "workers replaced");
            Outcome::Proved(evidence)
        }
        Err(error) => {
            let detail = error::chain(&error);
            if !stop.is_cancelled() {
                warn!(%revision, error = detail, log = app_log(&tools), "workers not replaced");
            }
            Outcome::Failed(Cause::Prove, detail)
        }
    }
}

/// Returns the end of what the app has printed, for whoever looks for the cause.
pub(super) fn app_log(tools: &Tools) -> Option<String> {
    let mut file = fs::File::open(tools.store.log().join("app.log")).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    let text = process::clean(&bytes);
    let lines = super::last_lines(text.trim_end(), 8);
    (!lines.is_empty()).then_some(lines)
}
