//! Probing a release: through its whole health window, or just until it is clear; and the look at
//! what serves already.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{Find, Recipe};
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Tools, activate, place, printed};
use crate::error;
use crate::health::window::{Limits, Progress, Window as Counter};
use crate::health::{Failure, Probe, Verdict};
use crate::journal::Release;
use crate::machine::{Outcome, Window};
use crate::manager::{self, Context, CrashWatch};

/// By when a release that was made live must have passed its window, counted from the first probe
/// and on top of the window itself.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(300);

/// The pause between two looks at the workers of an app that has yet to answer: some live for less.
const CRASH_PAUSE: Duration = Duration::from_millis(100);

/// The same where each look runs `systemctl`; systemd starts what ended no sooner by default.
const UNIT_CRASH_PAUSE: Duration = Duration::from_millis(300);

/// How long a manager that is missing may be on its way back: a supervisor starts it again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Probes the release that was just made live.
pub(super) async fn probe(
    tools: Rc<Tools>,
    release: Release,
    window: Window,
    stop: CancellationToken,
) -> Outcome {
    match Probing::new(&tools, &release, window, &stop) {
        Ok(probing) => probing.run(true).await,
        Err(detail) => Outcome::Failed(Cause::Unhealthy, detail),
    }
}

/// Looks at what serves already: does its manager run, of this release, and is it healthy?
pub(super) async fn check(
    tools: Rc<Tools>,
    release: Release,
    window: Window,
    stop: CancellationToken,
) -> Outcome {
    let probing = match Probing::new(&tools, &release, window, &stop) {
        Ok(probing) => probing,
        Err(detail) => return Outcome::Failed(Cause::Unhealthy, detail),
    };
    let Some(finder) = place::finder(&tools, &probing.recipe) else {
        // It serves for as long as `current` names it.
        return probing.run(false).await;
    };
    let process = match probing.find(&finder).await {
        Ok(Some(process)) => process,
        Ok(None) if stop.is_cancelled() => return stopped(),
        Ok(None) if answers(&tools, &probing.recipe, &release).await => {
            if !tools.is_lost.replace(true) {
                warn!(
                    revision = %release,
                    hint = "put its pid file back, or stop the app once: until then nothing is deployed",
                    "the app answers, and its manager is not found"
                );
            }
            return probing.run(false).await;
        }
        Ok(None) => {
            warn!(revision = %release, log = printed::end(&tools), "nothing of the app runs");
            return Outcome::Absent;
        }
        Err(detail) => return Outcome::Failed(Cause::Host, detail),
    };
    tools.is_lost.set(false);
    // What was never proven must be what runs, before it is.
    let releases = tools.store.releases();
    if window == Window::Full
        && let Some(revision) = release.own()
        && let Some(other) = manager::stray(&process, &releases, revision.as_str()).await
    {
        let detail = format!("workers run in the release {other}");
        warn!(revision = %release, error = detail, "another release runs");
        return Outcome::Failed(Cause::Prove, detail);
    }
    probing.run(false).await
}

/// Does the app itself say that it serves this release? That counts for more than a pid file that is
/// gone: another app beside it would take nothing but its port.
///
/// What was adopted names no revision; where it has a health check, whatever passes that is taken for it.
pub(crate) async fn answers(tools: &Tools, recipe: &Recipe, release: &Release) -> bool {
    let home = place::home(tools, release);
    let Ok(probe) = Probe::new(&recipe.health, &tools.run_as, &home) else {
        return false;
    };
    match release {
        Release::Own(revision) => probe.is_named(revision).await,
        Release::Adopted => {
            is_probed(tools, release) && matches!(probe.once(None).await, Verdict::Pass { .. })
        }
    }
}

/// Has it a health check, so that more is known of it than that its manager is alive?
fn is_probed(tools: &Tools, release: &Release) -> bool {
    release.own().is_some() || tools.config.adopted.as_ref().is_some_and(|own| own.is_probed)
}

struct Probing<'a> {
    tools: &'a Tools,
    release: &'a Release,
    recipe: Recipe,
    /// `None` where its manager's being alive is all that can be looked at.
    probe: Option<Probe>,
    window: Window,
    stop: &'a CancellationToken,
}

impl<'a> Probing<'a> {
    fn new(
        tools: &'a Tools,
        release: &'a Release,
        window: Window,
        stop: &'a CancellationToken,
    ) -> Result<Self, String> {
        let recipe = place::recipe_of(tools, release)?;
        let probe = Probe::new(&recipe.health, &tools.run_as, &place::home(tools, release));
        let probe = probe.map_err(|error| error::chain(&error))?;
        let probe = Some(probe).filter(|_| is_probed(tools, release));
        Ok(Self { tools, release, recipe, probe, window, stop })
    }

    /// Looks for the manager, and gives one that is missing the time to come back.
    async fn find(&self, finder: &Find) -> Result<Option<manager::Process>, String> {
        let started = Instant::now();
        loop {
            let found = activate::look(self.tools, finder, self.release, self.stop).await;
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
        let finder = place::finder(self.tools, &self.recipe);
        let mut crashes = CrashWatch::begin();
        // What has answered once is judged by its answers alone.
        let mut may_crash = is_start && !matches!(finder, None | Some(Find::Status(_)));
        let mut has_failed = false;
        loop {
            let verdict = tokio::select! {
                verdict = self.once(finder.as_ref()) => verdict,
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
                    info!(revision = %self.release, error = failure.detail, start_s, "not healthy yet");
                }
                Verdict::Fail(_) => {}
            }
            match counter.feed(started.elapsed(), verdict) {
                Progress::Continue => {}
                Progress::Healthy => {
                    if self.window == Window::Full {
                        let window_s = health.healthy_for.as_secs_f64();
                        info!(revision = %self.release, window_s, "healthy through its window");
                        self.tools.saying.note(format!("healthy through {window_s} s"));
                    }
                    return Outcome::Healthy { served };
                }
                Progress::Failed(failure) => {
                    return self.failed(failure.cause, failure.detail, is_start).await;
                }
            }
            next += health.every;
            tokio::select! {
                () = sleep_until(next) => {}
                ended = self.crash(finder.as_ref(), &mut crashes), if may_crash => {
                    let waited_s = started.elapsed().as_secs_f64();
                    let detail = format!(
                        "workers end as soon as they start: {ended} within {waited_s:.1} s"
                    );
                    return self.failed(Cause::Unhealthy, detail, is_start).await;
                }
                () = self.stop.cancelled() => return stopped(),
            }
        }
    }

    /// Tries the health check once, or looks whether the manager is alive.
    async fn once(&self, finder: Option<&Find>) -> Verdict {
        if let Some(probe) = &self.probe {
            return probe.once(self.release.own()).await;
        }
        // What has no health check was adopted, and has a manager.
        let Some(finder) = finder else { return Verdict::Pass { served: false } };
        let detail = match activate::look(self.tools, finder, self.release, self.stop).await {
            Ok(Some(_)) => return Verdict::Pass { served: false },
            Ok(None) => "its manager does not run".to_owned(),
            Err(error) => activate::hinted(&error, error.hint()),
        };
        Verdict::Fail(Failure { cause: Cause::Unhealthy, detail })
    }

    /// Waits for a crash loop; returns how many workers have ended.
    async fn crash(&self, finder: Option<&Find>, crashes: &mut CrashWatch) -> u32 {
        let Some(finder) = finder else { return std::future::pending().await };
        let home = place::home(self.tools, self.release);
        let context = Context { run_as: &self.tools.run_as, cwd: &home, stop: self.stop };
        loop {
            if let Some(ended) = crashes.look(finder, &context).await {
                return ended;
            }
            let is_unit = matches!(finder, Find::Unit(_));
            sleep(if is_unit { UNIT_CRASH_PAUSE } else { CRASH_PAUSE }).await;
        }
    }

    /// `is_news`: what fails a look comes every minute, and is told when it changes.
    async fn failed(&self, cause: Cause, detail: String, is_news: bool) -> Outcome {
        self.tools.saying.part("health", &detail);
        let log = printed::keep(self.tools, &self.recipe).await;
        if is_news {
            warn!(revision = %self.release, error = detail, log, "unhealthy");
        }
        Outcome::Failed(cause, detail)
    }
}

fn stopped() -> Outcome {
    Outcome::Failed(Cause::Unhealthy, "stopped".to_owned())
}
