//! What an instance is told.
//!
//! ```text
//!                      no rollout      running            paused, halted
//!   in an open batch      –            take               prepare
//!   in the offered one    –            prepare            prepare
//!   set aside             –            take, once a gate  prepare
//!                                      has passed
//!   in none              take          hold               hold
//! ```
//!
//! Nothing in a word names the instance, save orders to it, so that all who are in the same place get the
//! same bytes.
//!
//! PURE.

use towline_protocol::ids::{Instance, Revision};
use towline_protocol::poll::{Duty, PROBE_EVERY_BAKING_S, PROBE_EVERY_S, Word};
use towline_protocol::rollout::{Batch, Kind, State};

use super::permits::is_ordered;
use crate::records::GroupState;

/// Returns what an instance is told. `ask` is the group's number for "ask again".
#[must_use]
pub fn word(state: &GroupState, instance: &Instance, ask: u64) -> Word {
    let target = state.target.as_ref().map(|kept| kept.value.target.clone());
    let duty = duty(state, instance);
    let orders = state.member(instance).map(|record| record.orders).unwrap_or_default();
    Word {
        boot: boot(state, instance),
        target,
        duty,
        // Whoever cannot ask need not hear of it.
        ask: if duty == Duty::Take || is_ordered(state, instance) { ask } else { 0 },
        probe_every_s: if bakes(state, instance) { PROBE_EVERY_BAKING_S } else { PROBE_EVERY_S },
        orders,
    }
}

/// Returns what an instance that serves is to do about the target.
#[must_use]
pub fn duty(state: &GroupState, instance: &Instance) -> Duty {
    let Some(rollout) = state.going() else { return Duty::Take };
    if rollout.without.contains(instance) {
        return Duty::Hold;
    }
    let batch = rollout.batches.iter().find(|batch| batch.members.contains(instance));
    // Nobody comes back to a revision that nothing has shown to be good yet. A way back has no canary, and
    // is open to whoever joins while it goes on.
    let is_way_back = rollout.kind == Kind::Rollback && rollout.batches.iter().any(Batch::is_open);
    let is_led = is_way_back || rollout.batches.iter().any(|batch| batch.passed_ms.is_some());
    let may_swap = match batch {
        Some(batch) if !batch.is_open() => return Duty::Prepare,
        Some(_) => true,
        None if rollout.aside.contains(instance) && !is_led => return Duty::Prepare,
        None => rollout.aside.contains(instance) || is_way_back,
    };
    match (may_swap, rollout.state) {
        (false, _) => Duty::Hold,
        (true, State::Running) => Duty::Take,
        (true, _) => Duty::Prepare,
    }
}

/// Returns what an instance on which nothing runs is to boot; `None`: what was baked into its image.
#[must_use]
pub fn boot(state: &GroupState, instance: &Instance) -> Option<Revision> {
    let target = &state.target.as_ref()?.value.target;
    let revision = target.revision.clone()?;
    let unbootable = state.record.as_ref().and_then(|record| record.value.unbootable.as_ref());
    if unbootable == Some(&revision) && target.fallback.is_some() {
        return spare(state);
    }
    // Its turn has come, and nothing that it could serve instead has ever served here.
    let report = state.member(instance).and_then(|record| record.report.as_ref());
    if report.is_some_and(|report| report.newborn) && duty(state, instance) == Duty::Take {
        return Some(revision);
    }
    let is_open = state.going().is_some_and(|rollout| !rollout.is_proven);
    if !is_open {
        return Some(revision);
    }
    if target.fallback.is_some() {
        return spare(state);
    }
    // Alone, it is the canary.
    let is_alone = state.members().all(|record| record.instance == *instance);
    is_alone.then_some(revision)
}

/// The target's fallback; where newborns cannot boot that, the newest other group-proven one.
fn spare(state: &GroupState) -> Option<Revision> {
    let target = &state.target.as_ref()?.value.target;
    let record = &state.record.as_ref()?.value;
    let fallback = target.fallback.as_ref();
    if record.unbootable.as_ref() != fallback {
        return fallback.cloned();
    }
    let mut others = record.clone();
    others.proven.retain(|proven| Some(proven) != fallback);
    others.fallback(target.revision.as_ref()).or(fallback).cloned()
}

/// Is the instance in a batch that is open, or bakes?
fn bakes(state: &GroupState, instance: &Instance) -> bool {
    state.going().is_some_and(|rollout| {
        rollout.batches.iter().any(|batch| {
            batch.is_open() && batch.passed_ms.is_none() && batch.members.contains(instance)
        })
    })
}
