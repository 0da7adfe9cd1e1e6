//! Probing a release: through its whole health window, or just until it is clear.

use std::rc::Rc;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Tools, activate};
use crate::health::{Probe, Progress, Verdict, Window as Counter};
use crate::machine::{Outcome, Window};

/// By when a release that was made live must have passed its window, counted from the first probe
/// and on top of the window itself.
const HEALTHY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(300);

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
    let probe = match Probe::new(health, &tools.around, &tools.store.current()) {
        Ok(probe) => probe,
        Err(detail) => return Outcome::Failed(Cause::Unhealthy, detail),
    };
    let mut counter = match window {
        Window::Full => {
            let deadline = HEALTHY_DEADLINE + health.healthy_for;
            Counter::new(health.passes, health.healthy_for, recipe.manager.timeout, deadline)
        }
        Window::Brief => Counter::brief(health.passes, recipe.manager.timeout),
    };
    let started = Instant::now();
    let mut next = started;
    let mut served = true;
    loop {
        let verdict = tokio::select! {
            verdict = probe.once(&revision) => verdict,
            () = stop.cancelled() => return Outcome::Failed(Cause::Unhealthy, "stopped".to_owned()),
        };
        if let Verdict::Pass { served: named } = verdict {
            served &= named;
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
        tokio::select! {
            () = sleep_until(next) => {}
            () = stop.cancelled() => return Outcome::Failed(Cause::Unhealthy, "stopped".to_owned()),
        }
    }
}
