//! What operators may do to a group and its instances, rollouts aside: make, change and remove a group, lift a
//! quarantine, give an order to one instance.
//!
//! Invariants
//! - A change of a policy touches the next rollout, not the one that goes on.
//! - A group that is removed leaves its floor behind: one of its name that is made anew goes on from there.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::api::{Code, ErrorBody};
use towline_protocol::fleet::{Floor, GroupRecord};
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::policy::Policy;
use towline_protocol::rollout::State;
use towline_protocol::time::Timestamp;

use super::counts::{plausible, restarts};
use super::{conflict, exists};
use crate::records::{Draft, GroupState, key};
use crate::rollout::reports;

/// For how long a rollout that has ended is kept.
pub const PAST_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// What removes a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What to store.
    pub draft: Draft,
    /// Is the group gone then? Else too much is left of it for one commit: store this, and ask again.
    pub is_last: bool,
}

/// Makes a group, or changes how it takes its rollouts from the next one on. `state`: what there is of it,
/// see [`crate::records::Records::remains`].
///
/// # Errors
///
/// A policy that is out of its range.
pub fn set_group(
    state: Option<&GroupState>,
    group: &Group,
    policy: Policy,
) -> Result<Draft, ErrorBody> {
    let policy = policy.check().map_err(|error| ErrorBody {
        code: Code::Invalid,
        message: format!("could not set {group}: {error}"),
        hint: None,
        field: Some(error.field.clone()),
    })?;
    let kept = state.and_then(|state| state.record.as_ref());
    let old = kept.map_or_else(
        || GroupRecord::new(group.clone(), Policy::default()),
        |kept| kept.value.clone(),
    );
    let next = GroupRecord { policy, ..old };
    let mut draft = Draft::new();
    if kept.is_none_or(|kept| kept.value != next) {
        draft.on(key::group(group), kept);
        draft.put(key::group(group), &next);
    }
    Ok(draft)
}

/// Removes a group: all but its past rollouts, its join secret and its tokens, which are not among the
/// records.
///
/// # Errors
///
/// While it has instances, or a rollout goes on by itself. One that is paused goes with the group: over an
/// empty group none ever ends.
pub fn remove_group(state: &GroupState) -> Result<Removal, ErrorBody> {
    let record = exists(state)?;
    let group = &state.group;
    let members = state.members().count();
    if members > 0 {
        let what = if members == 1 { "instance" } else { "instances" };
        let message = format!("could not remove {group}: it has {members} {what}");
        let hint = "stop their agents, or `towline forget INSTANCE` each that is gone for good";
        return Err(conflict(message, hint.to_owned()));
    }
    if state.going().is_some_and(|rollout| rollout.state == State::Running) {
        let message = format!("could not remove {group}: a rollout is running");
        return Err(conflict(message, format!("`towline rollout pause {group}` first")));
    }
    let mut draft = Draft::new();
    for (instance, kept) in &state.instances {
        if !draft.has_room(20) {
            return Ok(Removal { draft, is_last: false });
        }
        reports::forget(state, instance, kept, &mut draft);
    }
    for (instance, kept) in &state.open {
        if !draft.has_room(20) {
            return Ok(Removal { draft, is_last: false });
        }
        draft.on(key::permit(group, instance), Some(kept));
        draft.delete(key::permit(group, instance));
    }
    draft.on(key::group(group), Some(record));
    draft.on(key::target(group), state.target.as_ref());
    draft.on(key::rollout(group), state.rollout.as_ref());
    draft.on(key::permits(group), state.permits.as_ref());
    let floor = Floor { order: state.reached(), restarts: restarts(state) };
    draft.put(key::floor(group), &floor);
    for at in [
        key::group(group),
        key::target(group),
        key::rollout(group),
        key::clock(group),
        key::permits(group),
    ] {
        draft.delete(at);
    }
    Ok(Removal { draft, is_last: true })
}

/// Returns the keys of those rollouts that ended longer than [`PAST_KEPT`] ago.
#[must_use]
pub fn outdated(past: &[(String, Timestamp)], at: Timestamp) -> Vec<String> {
    let is_due = |(_, ended): &&(String, Timestamp)| at.since(*ended) > PAST_KEPT;
    past.iter().filter(is_due).map(|(key, _)| key.clone()).collect()
}

/// Lifts a quarantine.
///
/// # Errors
///
/// Where the revision is not in it.
pub fn lift(state: &GroupState, revision: &Revision) -> Result<Draft, ErrorBody> {
    let record = exists(state)?;
    if !record.value.is_quarantined(revision) && record.value.unbootable.as_ref() != Some(revision)
    {
        return Err(ErrorBody {
            code: Code::NotFound,
            message: format!("{} is not in quarantine", revision.short()),
            hint: Some(format!("`towline quarantine list {}`", state.group)),
            field: None,
        });
    }
    let mut next = record.value.clone();
    next.quarantine.retain(|quarantined| quarantined.revision != *revision);
    next.boot_failures.retain(|failure| failure.revision != *revision);
    next.unbootable = next.unbootable.filter(|unbootable| unbootable != revision);
    let mut draft = Draft::new();
    draft.on(key::group(&state.group), Some(record));
    draft.put(key::group(&state.group), &next);
    Ok(draft)
}

/// What an instance is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToInstance {
    /// To restart its app.
    Restart,
    /// To try again what was rejected, refused, or waits.
    Retry,
}

/// Gives an order to one instance.
///
/// # Errors
///
/// Where it is not known.
pub fn order(
    state: &GroupState,
    instance: &Instance,
    order: ToInstance,
) -> Result<Draft, ErrorBody> {
    exists(state)?;
    let Some(record) = state.member(instance) else {
        return Err(unknown_instance(state, instance));
    };
    let mut next = record.clone();
    // What it has carried out counts as well: its record may be younger than its orders.
    let after = |given: u64, done: u64| given.max(plausible(done, given)).saturating_add(1);
    let done = record.report.as_ref().map(|report| report.orders).unwrap_or_default();
    match order {
        ToInstance::Restart => next.orders.restart = after(next.orders.restart, done.restart),
        ToInstance::Retry => next.orders.retry = after(next.orders.retry, done.retry),
    }
    let mut draft = Draft::new();
    draft.on(key::instance(&state.group, instance), state.instances.get(instance));
    draft.put(key::instance(&state.group, instance), &next);
    Ok(draft)
}

/// Returns the refusal for an instance that is not in the group.
#[must_use]
pub fn unknown_instance(state: &GroupState, instance: &Instance) -> ErrorBody {
    ErrorBody {
        code: Code::NotFound,
        message: format!("there is no instance {instance} in {}", state.group),
        hint: Some(format!("`towline instances {}` names them", state.group)),
        field: None,
    }
}
