//! An app that is a unit of systemd's: whether it can be handled as its recipe has it, and its start.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{Find, Reload};

use super::Tools;
use super::activate::{hinted, look};
use super::place;
use crate::journal::Release;
use crate::systemd::{self, Active, State, UnitError, Verb};

/// The pause between two looks at a unit that starts: each runs `systemctl`.
const PAUSE: Duration = Duration::from_millis(100);

/// Can the unit of this release be told what its recipe wants of it?
///
/// # Errors
///
/// What is in the way, and what to do about it.
pub(super) async fn check(
    tools: &Tools,
    release: &Release,
    stop: &CancellationToken,
) -> Result<(), String> {
    let recipe = place::recipe_of(tools, release)?;
    let Some(manager) = &recipe.manager else { return Ok(()) };
    let Some(unit) = manager.unit() else { return Ok(()) };
    let state = show(tools, unit, stop).await?;
    if manager.reload == Reload::Unit && !state.can_reload {
        return Err(format!(
            "the unit {unit} has no ExecReload= (add it, or name manager.reload in the recipe)"
        ));
    }
    Ok(())
}

/// Has systemd start a unit, and waits until it has a main process.
///
/// # Errors
///
/// It was refused, failed, or took too long.
pub(super) async fn start(
    tools: &Tools,
    unit: &str,
    timeout: Duration,
    stop: &CancellationToken,
) -> Result<(), String> {
    let begun = Instant::now();
    // How an earlier run ended says nothing of this one.
    let before = show(tools, unit, stop).await?.invocation;
    systemd::tell(Verb::Start, unit, &tools.run_as, stop)
        .await
        .map_err(|error| hinted(&error, error.hint()))?;
    let find = Find::Unit(unit.to_owned());
    loop {
        if stop.is_cancelled() {
            return Err("stopped".to_owned());
        }
        let state = show(tools, unit, stop).await?;
        let release = place::live(tools);
        if state.main_pid.is_some()
            && let Some(release) = &release
            && let found = look(tools, &find, release, stop).await
            && found.map_err(|error| hinted(&error, error.hint()))?.is_some()
        {
            return Ok(());
        }
        let has_failed = state.active == Active::Failed && state.invocation != before;
        if has_failed || begun.elapsed() >= timeout {
            let why =
                if has_failed { "" } else { ": it has no main process yet (manager.timeout_s)" };
            return Err(format!("the unit {unit} is {state}{why}; see `systemctl status {unit}`"));
        }
        sleep(PAUSE).await;
    }
}

/// Sees to it that a unit which is left is not started again: told to stop, unless it is at rest.
///
/// # Errors
///
/// It was refused, or took too long.
pub(super) async fn stop(
    tools: &Tools,
    unit: &str,
    timeout: Duration,
    stop: &CancellationToken,
) -> Result<(), String> {
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        let state = match systemd::show(unit, &tools.run_as, stop).await {
            Ok(state) => state,
            // What is not there is not started.
            Err(UnitError::NotLoaded { .. }) => return Ok(()),
            Err(error) => return Err(hinted(&error, error.hint())),
        };
        if matches!(state.active, Active::Inactive | Active::Failed) {
            return Ok(());
        }
        if stop.is_cancelled() {
            return Err("stopped".to_owned());
        }
        if begun.elapsed() >= timeout {
            return Err(format!("the unit {unit}, which is left, is still {state}"));
        }
        if !is_told {
            let told = systemd::tell(Verb::Stop, unit, &tools.run_as, stop).await;
            told.map_err(|error| hinted(&error, error.hint()))?;
            is_told = true;
        }
        sleep(PAUSE).await;
    }
}

async fn show(tools: &Tools, unit: &str, stop: &CancellationToken) -> Result<State, String> {
    let state = systemd::show(unit, &tools.run_as, stop).await;
    state.map_err(|error| hinted(&error, error.hint()))
}
