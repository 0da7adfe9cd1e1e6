//! The driver: whenever something changed, and every second, it lets the engine look at each group's
//! rollout, and stores what the engine decided.
//!
//! Any number of changes at once are one look. A step that lost its race is decided again: whoever was
//! faster changed what it was decided on. Several drivers on one store do no harm.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Group;
use tracing::{debug, info, warn};

use crate::board::Board;
use crate::desk::Desk;
use crate::failpoint;
use crate::rollout::Decision;

/// Who the engine's decisions are by.
pub const GATE: &str = "gate";

/// How often it looks where nothing has changed: silence and deadlines make no sound.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many looks pass until the rollouts' clocks are stored: what a crash may add to a deadline.
const CLOCK_EVERY: u32 = 10;

/// How many steps of one group are taken in one look; a rollout needs a few at a time.
const STEPS_MAX: usize = 32;

/// Drives all rollouts until told to stop.
pub async fn drive(desk: Desk, stop: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0u32;
    loop {
        let groups = tokio::select! {
            () = stop.cancelled() => return,
            // Polls were answered when the change was taken up.
            () = desk.changed() => desk.with_board(|board, _| board.groups()),
            _ = every.tick() => {
                looks = looks.wrapping_add(1);
                desk.with_board(Board::tick)
            }
        };
        let is_due = looks >= CLOCK_EVERY;
        if is_due {
            looks = 0;
        }
        for group in groups {
            if stop.is_cancelled() {
                return;
            }
            advance(&desk, &group).await;
            if is_due
                && let Some(draft) = desk.with_board(|board, now| board.clock_to_store(&group, now))
                && let Err(error) = desk.save(draft).await
            {
                warn!(group = %group, error = error.message, "could not store a rollout's clocks");
            }
        }
    }
}

/// Takes as many steps of a group's rollout as there are to take.
async fn advance(desk: &Desk, group: &Group) {
    for _ in 0..STEPS_MAX {
        let (next, before) = desk.with_board(|board, now| {
            let going = board.records().group(group).and_then(|state| state.going());
            let before = going.map_or(0, |rollout| rollout.decisions.len());
            (board.next_step(group, GATE, now), before)
        });
        let Some((decision, draft)) = next else { return };
        failpoint::reach(at(&decision).0);
        match desk.save(draft).await {
            Ok(true) => tell(group, &decision, before),
            Ok(false) => debug!(group = %group, "another step was faster"),
            Err(error) => {
                warn!(group = %group, error = error.message, "a step could not be stored");
                return;
            }
        }
        failpoint::reach(at(&decision).1);
    }
}

/// The failpoints before and after a decision is stored.
fn at(decision: &Decision) -> (&'static str, &'static str) {
    match decision {
        Decision::Abort { .. } => ("before-abort", "after-abort"),
        Decision::Converge(_) => ("before-converge", "after-converge"),
        _ => ("before-step", "after-step"),
    }
}

/// `before`: how many decisions the rollout had.
fn tell(group: &Group, decision: &Decision, before: usize) {
    match decision {
        Decision::Step(rollout) | Decision::Converge(rollout) => {
            let generation = rollout.order().generation;
            let said = rollout.decisions.last().map_or("", |decided| decided.text.as_str());
            // A step that says nothing new is one of bookkeeping.
            if before == rollout.decisions.len() {
                return;
            }
            info!(group = %group, generation, state = rollout.state.as_str(), said, "rollout");
        }
        Decision::Abort { rollout, quarantine } => {
            warn!(
                group = %group,
                generation = rollout.order().generation,
                reason = rollout.reason,
                quarantined = quarantine.as_ref().map(|(revision, _)| revision.short()),
                "rollout aborted; the group goes back"
            );
        }
        Decision::Rest | Decision::Wait { .. } => {}
    }
}
