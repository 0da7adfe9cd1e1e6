//! What is counted of what instances have told: who has served a revision, and counters of orders.
//!
//! An agent may be taken over: nothing that it makes up may be used up by it, or keep others from working.
//!
//! PURE.

use std::collections::BTreeSet;

use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Instance;
use towline_protocol::rollout::Rollout;

use super::restart_of;
use crate::fleet;
use crate::records::GroupState;

/// Returns how many instances have served a rollout's revision, as far as they have told.
#[must_use]
pub fn reached(state: &GroupState, rollout: &Rollout) -> u32 {
    let Some(revision) = rollout.revision() else { return 0 };
    let order = Some(rollout.order());
    let has_served = |record: &&InstanceRecord| {
        record.report.as_ref().is_some_and(|report| {
            let serves = report.order == order && report.serving.as_ref() == Some(revision);
            let failed = report.failure.as_ref().is_some_and(|failure| {
                failure.order == order
                    && failure.revision == *revision
                    && !failure.cause.is_before_swap()
            });
            serves || failed
        })
    };
    let mut reached: BTreeSet<&Instance> =
        state.members().filter(has_served).map(|record| &record.instance).collect();
    let failed = rollout.failures.iter().filter(|(_, failed)| failed.is_revision);
    reached.extend(failed.map(|(instance, _)| instance));
    let passed = rollout.batches.iter().filter(|batch| batch.passed_ms.is_some());
    let is_well = |member: &&Instance| !rollout.failures.contains_key(*member);
    reached.extend(passed.flat_map(|batch| batch.members.iter().filter(is_well)));
    fleet::count(reached.len())
}

/// The highest restart counter that was given out, or carried out: also one whose restart was aborted, or
/// that a store did not know which was restored since.
pub(super) fn restarts(state: &GroupState) -> u64 {
    let given = state.record.as_ref().map_or(0, |kept| kept.value.restarts);
    let floor = state.floor.as_ref().map_or(0, |kept| kept.value.restarts);
    let given = given.max(floor).max(restart_of(state));
    let told = state.members().filter_map(|record| Some(record.report.as_ref()?.restart));
    told.map(|told| plausible(told, given)).max().unwrap_or(0).max(given)
}

/// How far instances may be ahead of a store that was restored. An agent may be taken over, and tell of any
/// number: it must not use all of them up.
const AHEAD_MAX: u64 = 1_000_000;

/// Returns a counter as an instance tells it, where it may be true: it is not much above all that were
/// given.
pub(super) fn plausible(told: u64, given: u64) -> u64 {
    if told <= given.saturating_add(AHEAD_MAX) { told } else { given }
}
