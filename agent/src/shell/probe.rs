//! Probing a release: through its whole health window, or just until it is clear.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::Find;
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Tools, activate};
use crate::error;
use crate::health::window::{Limits, Progress, Window as Counter};
use crate::health::{Probe, Verdict};
use crate::machine::{Outcome, Window};
use crate::manager::{Context, CrashWatch};

/// By when a release that was made live must have passed its window, counted from the first probe
/// and on top of the window itself.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(300);

/// The pause between two looks at the workers of an app that has yet to answer: some live for less.
const CRASH_PAUSE: Duration = Duration::from_millis(100);

/// Probes the live release, which is `revision`.
pub(super) async fn probe(
    tools: Rc<Tools>,
    revision: Revision,
    window: Window,
    stop: CancellationToken,
) -> Outcome {
    let recipe = match activate::recipe_of(&tools, &revision) {
        Ok(recipe) => recipe,
        Err(detail) => return Outcome::Failed(Cause::Unhealthy, detail),
    };
    let health = &recipe.health;
    let probe = match Probe::new(health, &tools.run_as, &tools.store.current()) {
        Ok(probe) => probe,
        Err(error) => return Outcome::Failed(Cause::Unhealthy, error::chain(&error)),
    };
    let healthy_for = match window {
        Window::Full => health.healthy_for,
        Window::Brief => Duration::ZERO,
    };
    let mut counter = Counter::new(Limits {
        passes: health.passes,
        healthy_for,
        grace: recipe.manager.timeout,
        deadline: HEALTHY_DEADLINE + healthy_for,
    });
    let started = Instant::now();
    let mut next = started;
    let mut served = true;
    let finder = activate::finder(&tools, &recipe);
    let current = tools.store.current();
    let context = Context { run_as: &tools.run_as, cwd: &current, stop: &stop };
    let mut crashes = CrashWatch::begin();
    let mut is_up = false;
    loop {
        let verdict = tokio::select! {
            verdict = probe.once(&revision) => verdict,
            () = stop.cancelled() => return Outcome::Failed(Cause::Unhealthy, "stopped".to_owned()),
        };
        if let Verdict::Pass { served: named } = verdict {
            served &= named;
            is_up = true;
        }
        match counter.feed(started.elapsed(), verdict) {
            Progress::Continue => {}
            Progress::Healthy => {
                if window == Window::Full {
                    let window_s = health.healthy_for.as_secs_f64();
                    info!(%revision, window_s, "healthy through its window");
                }
                return Outcome::Healthy { served };
            }
            Progress::Failed(failure) => {
                let log = activate::app_log(&tools);
                warn!(%revision, error = failure.detail, log, "unhealthy");
                return Outcome::Failed(failure.cause, failure.detail);
            }
        }
        next += health.every;
        // What has answered once is judged by its answers alone.
        let may_crash = !is_up && !matches!(finder, Find::Status(_));
        let crash = async {
            loop {
                if let Some(ended) = crashes.look(&finder, &context).await {
                    return ended;
                }
                sleep(CRASH_PAUSE).await;
            }
        };
        tokio::select! {
            () = sleep_until(next) => {}
            ended = crash, if may_crash => {
                let waited_s = started.elapsed().as_secs_f64();
                let detail =
                    format!("workers end as soon as they start: {ended} within {waited_s:.1} s");
                warn!(%revision, error = detail, log = activate::app_log(&tools), "unhealthy");
                return Outcome::Failed(Cause::Unhealthy, detail);
            }
            () = stop.cancelled() => return Outcome::Failed(Cause::Unhealthy, "stopped".to_owned()),
        }
    }
}
