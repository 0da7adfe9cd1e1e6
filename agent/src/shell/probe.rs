//! Probing a release: through its whole health window, or just until it is clear; and the look at
//! what serves already.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Find, Recipe};
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Tools, activate};
use crate::error;
use crate::health::window::{Limits, Progress, Window as Counter};
use crate::health::{Probe, Verdict};
use crate::machine::{Outcome, Window};
use crate::manager::{self, Context, CrashWatch};

/// By when a release that was made live must have passed its window, counted from the first probe
/// and on top of the window itself.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(300);

/// The pause between two looks at the workers of an app that has yet to answer: some live for less.
const CRASH_PAUSE: Duration = Duration::from_millis(100);

/// How long a manager that is missing may be on its way back: a supervisor starts it again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Probes the release that was just made live, which is `revision`.
pub(super) async fn probe(
    tools: Rc<Tools>,
    revision: Revision,
    window: Window,
    stop: CancellationToken,
) -> Outcome {
    match Probing::new(&tools, &revision, window, &stop) {
        Ok(probing) => probing.run(true).await,
        Err(detail) => Outcome::Failed(Cause::Unhealthy, detail),
    }
}

/// Looks at what serves already: does its manager run, of this release, and is it healthy?
pub(super) async fn check(
    tools: Rc<Tools>,
    revision: Revision,
    window: Window,
    stop: CancellationToken,
) -> Outcome {
    activate::bound_app_log(&tools);
    let probing = match Probing::new(&tools, &revision, window, &stop) {
        Ok(probing) => probing,
        Err(detail) => return Outcome::Failed(Cause::Unhealthy, detail),
    };
    let process = match probing.find().await {
        Ok(Some(process)) => process,
        Ok(None) if stop.is_cancelled() => return stopped(),
        Ok(None) if answers(&tools, &probing.recipe, &revision).await => {
            if !tools.is_lost.replace(true) {
                warn!(
                    %revision,
                    hint = "put its pid file back, or stop the app once: until then nothing is deployed",
                    "the app answers, and its manager is not found"
                );
            }
            return probing.run(false).await;
        }
        Ok(None) => {
            warn!(%revision, log = activate::app_log(&tools), "nothing of the app runs");
            return Outcome::Absent;
        }
        Err(detail) => return Outcome::Failed(Cause::Host, detail),
    };
    tools.is_lost.set(false);
    // What was never proven must be what runs, before it is.
    let releases = tools.store.releases();
    if window == Window::Full
        && let Some(other) = manager::stray(&process, &releases, revision.as_str()).await
    {
        let detail = format!("workers run in the release {other}");
        warn!(%revision, error = detail, "another release runs");
        return Outcome::Failed(Cause::Prove, detail);
    }
    probing.run(false).await
}

/// Does the app itself say that it serves this revision? That counts for more than a pid file that is
/// gone: another app beside it would take nothing but its port.
pub(crate) async fn answers(tools: &Tools, recipe: &Recipe, revision: &Revision) -> bool {
    let Ok(probe) = Probe::new(&recipe.health, &tools.run_as, &tools.store.current()) else {
        return false;
    };
    probe.is_named(revision).await
}

struct Probing<'a> {
    tools: &'a Tools,
    revision: &'a Revision,
    recipe: Recipe,
    probe: Probe,
    window: Window,
    stop: &'a CancellationToken,
}

impl<'a> Probing<'a> {
    fn new(
        tools: &'a Tools,
        revision: &'a Revision,
        window: Window,
        stop: &'a CancellationToken,
    ) -> Result<Self, String> {
        let recipe = activate::recipe_of(tools, revision)?;
        let probe = Probe::new(&recipe.health, &tools.run_as, &tools.store.current());
        let probe = probe.map_err(|error| error::chain(&error))?;
        Ok(Self { tools, revision, recipe, probe, window, stop })
    }

    /// Looks for the manager, and gives one that is missing the time to come back.
    async fn find(&self) -> Result<Option<manager::Process>, String> {
        let finder = activate::finder(self.tools, &self.recipe);
        let started = Instant::now();
        loop {
            let found = activate::look(self.tools, &finder, self.revision, self.stop).await;
            let found = found.map_err(|error| activate::hinted(&error, error.hint()))?;
            let is_late = started.elapsed() >= BACK_WITHIN || self.stop.is_cancelled();
            if found.is_some() || is_late {
                return Ok(found);
            }
            sleep(BACK_WITHIN / 10).await;
        }
    }

    /// `is_start`: the app was told to start or reload a moment ago.
    async fn run(&self, is_start: bool) -> Outcome {
        let health = &self.recipe.health;
        let healthy_for = match self.window {
            Window::Full => health.healthy_for,
            Window::Brief => Duration::ZERO,
        };
        let grace = if is_start { health.start } else { Duration::ZERO };
        let mut counter = Counter::new(Limits {
            passes: health.passes,
            healthy_for,
            grace,
            deadline: HEALTHY_DEADLINE + healthy_for + grace,
        });
        let started = Instant::now();
        let mut next = started;
        let mut served = true;
        let finder = activate::finder(self.tools, &self.recipe);
        let mut crashes = CrashWatch::begin();
        // What has answered once is judged by its answers alone.
        let mut may_crash = is_start && !matches!(finder, Find::Status(_));
        let mut has_failed = false;
        loop {
            let verdict = tokio::select! {
                verdict = self.probe.once(self.revision) => verdict,
                () = self.stop.cancelled() => return stopped(),
            };
            match &verdict {
                Verdict::Pass { served: named } => {
                    served &= named;
                    may_crash = false;
                }
                Verdict::Fail(failure) if is_start && !has_failed => {
                    has_failed = true;
                    let start_s = grace.as_secs_f64();
                    info!(revision = %self.revision, error = failure.detail, start_s, "not healthy yet");
                }
                Verdict::Fail(_) => {}
            }
            match counter.feed(started.elapsed(), verdict) {
                Progress::Continue => {}
                Progress::Healthy => {
                    if self.window == Window::Full {
                        let window_s = health.healthy_for.as_secs_f64();
                        info!(revision = %self.revision, window_s, "healthy through its window");
                        self.tools.saying.note(format!("healthy through {window_s} s"));
                    }
                    return Outcome::Healthy { served };
                }
                Progress::Failed(failure) => {
                    return self.failed(failure.cause, failure.detail, is_start);
                }
            }
            next += health.every;
            tokio::select! {
                () = sleep_until(next) => {}
                ended = self.crash(&finder, &mut crashes), if may_crash => {
                    let waited_s = started.elapsed().as_secs_f64();
                    let detail = format!(
                        "workers end as soon as they start: {ended} within {waited_s:.1} s"
                    );
                    return self.failed(Cause::Unhealthy, detail, is_start);
                }
                () = self.stop.cancelled() => return stopped(),
            }
        }
    }

    /// Waits for a crash loop; returns how many workers have ended.
    async fn crash(&self, finder: &Find, crashes: &mut CrashWatch) -> u32 {
        let current = self.tools.store.current();
        let context = Context { run_as: &self.tools.run_as, cwd: &current, stop: self.stop };
        loop {
            if let Some(ended) = crashes.look(finder, &context).await {
                return ended;
            }
            sleep(CRASH_PAUSE).await;
        }
    }

    /// `is_news`: what fails a look comes every minute, and is told when it changes.
    fn failed(&self, cause: Cause, detail: String, is_news: bool) -> Outcome {
        self.tools.saying.part("health", &detail);
        self.tools.saying.app(&self.tools.store.app_log());
        if is_news {
            let log = activate::app_log(self.tools);
            warn!(revision = %self.revision, error = detail, log, "unhealthy");
        }
        Outcome::Failed(cause, detail)
    }
}

fn stopped() -> Outcome {
    Outcome::Failed(Cause::Unhealthy, "stopped".to_owned())
}
