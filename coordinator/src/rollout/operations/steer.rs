//! What operators may do to a rollout on its way: pause, resume, promote.
//!
//! Each changes the rollout's record and nothing else, compared with the record that was seen.
//!
//! PURE.

use towline_protocol::api::ErrorBody;
use towline_protocol::rollout::{Batch, Rollout, State};

use super::{Act, conflict, going};
use crate::records::{Draft, GroupState, key};
use crate::rollout::{Now, gate};

/// Writes the rollout as it is changed by `change`.
fn alter(
    state: &GroupState,
    what: &str,
    change: impl FnOnce(&mut Rollout) -> Result<(), ErrorBody>,
) -> Result<Draft, ErrorBody> {
    let rollout = going(state, what)?;
    let mut next = rollout.clone();
    change(&mut next)?;
    let mut draft = Draft::new();
    if next != *rollout {
        draft.on(key::rollout(&state.group), state.rollout.as_ref());
        draft.put(key::rollout(&state.group), &next);
    }
    Ok(draft)
}

/// Gives no more leave to swap until it is resumed. What is paused already stays so.
///
/// # Errors
///
/// Where no rollout goes on, or it has halted.
pub fn pause(state: &GroupState, act: &Act) -> Result<Draft, ErrorBody> {
    alter(state, "pause", |rollout| match rollout.state {
        State::Paused => Ok(()),
        State::Running => {
            rollout.state = State::Paused;
            rollout.reason = act.because("paused");
            let reason = rollout.reason.clone();
            rollout.note(act.at, reason);
            Ok(())
        }
        _ => {
            let group = &rollout.target.group;
            let message = format!("the rollout of {group} stands already: {}", rollout.reason);
            let hint = format!(
                "`towline rollout resume {group}` goes on in spite of it, `towline rollout abort \
                 {group}` goes back"
            );
            Err(conflict(message, hint))
        }
    })
}

/// Goes on, in spite of what halted it: failures so far count no more.
///
/// # Errors
///
/// Where no rollout goes on.
pub fn resume(state: &GroupState, now: Now, act: &Act) -> Result<Draft, ErrorBody> {
    alter(state, "resume", |rollout| {
        if rollout.state == State::Running {
            let Some(only) = &rollout.only else { return Ok(()) };
            let group = &rollout.target.group;
            let message = format!(
                "could not resume {group}: it is running, and only {} takes part",
                only.as_str()
            );
            let hint = format!(
                "it pauses once they have it, and can be taken to all others then: `towline rollout \
                 watch {group}`"
            );
            return Err(conflict(message, hint));
        }
        if rollout.state == State::Halted {
            for failed in rollout.failures.values_mut() {
                failed.is_excused = true;
            }
            rollout.culprit = None;
        }
        if rollout.only.is_some() && gate::is_done(rollout) {
            // What was chosen first has it, and stands for the canary: the group's shares come next.
            rollout.only = None;
            for batch in &mut rollout.batches {
                batch.share_index = 0;
            }
        }
        rollout.state = State::Running;
        rollout.progressed_ms = now.deadline_ms;
        rollout.reason = act.because("resumed");
        let reason = rollout.reason.clone();
        rollout.note(act.at, reason);
        Ok(())
    })
}

/// Skips the rest of the bake time of the batch that bakes.
///
/// # Errors
///
/// Where no rollout goes on, or no batch bakes: what is not healthy yet is not waved through.
pub fn promote(state: &GroupState, act: &Act) -> Result<Draft, ErrorBody> {
    alter(state, "promote", |rollout| {
        let bakes = |batch: &&mut Batch| batch.bakes_ms.is_some() && batch.passed_ms.is_none();
        let Some(batch) = rollout.batches.iter_mut().find(bakes) else {
            let message = format!("could not promote {}: no batch bakes", rollout.target.group);
            let hint = format!("`towline why {}` says what it waits for", rollout.target.group);
            return Err(conflict(message, hint));
        };
        if !batch.is_promoted {
            batch.is_promoted = true;
            let text = act.because(&format!("{} promoted", batch.name));
            rollout.note(act.at, text);
        }
        Ok(())
    })
}
