//! Leave to swap: asked for by a prepared agent, stored before it is answered, never closed by time.
//!
//! ```text
//!   question ──► the target is its own, its batch is open, nothing is paused, budget is left
//!                  ├─ yes ──► stored (compared with all of that), then answered
//!                  └─ no  ──► a permit that was stored for an earlier question closes, if it is unused
//! ```
//!
//! Invariants
//! - None is given while as many others are unavailable as may be; save to an instance that is known to be
//!   unhealthy, whose swap costs nothing.
//! - Leave that was renounced before it is given is not given.
//! - An instance holds at most one. A question renounces all earlier ones, so a permit that is stored is
//!   moved to the new question, and counts once.
//! - Permits belong to the group: they survive every change of its target.
//!
//! PURE.

use towline_protocol::fleet::Permit;
use towline_protocol::ids::Instance;
use towline_protocol::poll::{Duty, Question};
use towline_protocol::report::Health;
use towline_protocol::rollout::State;

use super::Now;
use super::words::duty;
use crate::fleet::{self, Attendance};
use crate::records::{Draft, GroupState, key};

/// The answer to a question, and what has to be stored before it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The permit's id; `None`: no.
    pub permit: Option<u64>,
    /// Why not, in one line.
    pub reason: Option<String>,
    /// What to store first.
    pub draft: Draft,
    /// Is it to ask again later, though nothing else of its word will change then? So where as many are
    /// unavailable as may be, and where what was ordered waits for a rollout that stands.
    pub asks_again: bool,
}

/// Answers a question for leave to swap.
#[must_use]
pub fn decide(state: &GroupState, attendance: &Attendance, question: &Question, now: Now) -> Leave {
    let instance = &question.instance;
    let stored = state.open.get(instance).map(|kept| &kept.value);
    if stored.is_some_and(|permit| permit.seq > question.seq) {
        // A late copy of a question that was renounced since.
        return refuse(Draft::new(), "it was asked again since");
    }
    let record = state.member(instance);
    if is_over(state, question) {
        // It comes later than a report that was made after it, and nobody waits for the answer.
        return refuse(Draft::new(), "it was withdrawn since");
    }
    if let Some(reason) = obstacle(state, question) {
        let mut draft = Draft::new();
        // A copy of the very question that it answered renounces nothing: it may be in use. So may be what was
        // given for an earlier one, with a restore still owed, until a report says that nothing is.
        if stored.is_some_and(|permit| permit.seq < question.seq && is_unused(state, permit)) {
            close(state, instance, &mut draft);
        }
        let asks_again = state.stands() && is_ordered(state, instance);
        return Leave { asks_again, ..refuse(draft, reason) };
    }
    // Whoever asks is there. What it serves is known to be bad, or else it is to be spared: not known is
    // not unhealthy.
    let budget = fleet::budget_but(state, attendance, Some(instance));
    let health = record.and_then(|record| record.report.as_ref()).map(|report| report.health);
    let costs = health != Some(Health::Unhealthy);
    if stored.is_none() && costs && budget.used >= budget.max {
        let reason = format!("{} of {} that may be unavailable are", budget.used, budget.max);
        return Leave { asks_again: true, ..refuse(Draft::new(), reason) };
    }
    let mut draft = Draft::new();
    draft.on(key::target(&state.group), state.target.as_ref());
    draft.on(key::rollout(&state.group), state.rollout.as_ref());
    draft.on(key::permits(&state.group), state.permits.as_ref());
    let at = key::permit(&state.group, instance);
    draft.on(at.clone(), state.open.get(instance));
    // It may leave, or renounce the question, meanwhile: then nobody would ever close the permit.
    draft.on(key::instance(&state.group, instance), state.instances.get(instance));
    let mut count = state.count();
    let id = match stored {
        Some(permit) => permit.id,
        None => {
            count.open += 1;
            count.next += 1;
            count.next
        }
    };
    // Asking again and again does not put off the deadline.
    let given_ms = stored
        .filter(|permit| permit.order == question.order)
        .map_or_else(|| state.going().map(|_| now.deadline_ms), |permit| permit.given_ms);
    draft.put(key::permits(&state.group), &count);
    let permit = Permit {
        id,
        instance: instance.clone(),
        order: question.order,
        seq: question.seq,
        given: now.at,
        given_ms,
    };
    draft.put(at, &permit);
    Leave { permit: Some(id), reason: None, draft, asks_again: false }
}

fn refuse(draft: Draft, reason: impl Into<String>) -> Leave {
    Leave { permit: None, reason: Some(reason.into()), draft, asks_again: false }
}

/// Has the instance told since that it does not wait for the answer any more?
fn is_over(state: &GroupState, question: &Question) -> bool {
    let Some(record) = state.member(&question.instance) else { return false };
    record.report.as_ref().is_some_and(|report| {
        question.seq <= report.renounced || (record.seq > question.seq && !report.uses_permit)
    })
}

/// Has its holder told that it does not wait for it any more, and that what serves is well?
fn is_unused(state: &GroupState, permit: &Permit) -> bool {
    let report = state.member(&permit.instance).and_then(|record| record.report.as_ref());
    report.is_some_and(|report| permit.seq <= report.renounced && report.health == Health::Healthy)
}

/// What stands against leave, budget aside.
fn obstacle(state: &GroupState, question: &Question) -> Option<String> {
    if state.member(&question.instance).is_none() {
        return Some("the instance is not known, or has left".to_owned());
    }
    if state.target.is_none() {
        return Some("the group has no target yet".to_owned());
    }
    if state.order() != question.order {
        return Some(format!("the target has moved to {}", state.order()));
    }
    match (duty(state, &question.instance), state.going()) {
        (Duty::Take, _) => None,
        (_, Some(rollout)) if rollout.state != State::Running => {
            Some(format!("the rollout is {}", rollout.state.as_str()))
        }
        // It restarts what it serves, and needs leave for that as for a swap. Whoever was set aside may not have
        // heard of it, and ask for what was due before.
        (_, Some(rollout)) if rollout.aside.contains(&question.instance) => {
            Some("it was set aside, and no gate has passed since".to_owned())
        }
        _ if is_ordered(state, &question.instance) => None,
        _ => Some("its batch is not open".to_owned()),
    }
}

/// Was it ordered to restart, and has not told yet that it did?
pub(super) fn is_ordered(state: &GroupState, instance: &Instance) -> bool {
    state.member(instance).is_some_and(|record| {
        let done = record.report.as_ref().map_or(0, |report| report.orders.restart);
        record.orders.restart > done
    })
}

/// Closes an instance's permit, where it has one. Returns whether it had.
pub fn close(state: &GroupState, instance: &Instance, draft: &mut Draft) -> bool {
    let Some(permit) = state.open.get(instance) else { return false };
    let at = key::permit(&state.group, instance);
    draft.on(at.clone(), Some(permit));
    draft.delete(at);
    draft.on(key::permits(&state.group), state.permits.as_ref());
    let mut count = state.count();
    count.open = count.open.saturating_sub(1);
    draft.put(key::permits(&state.group), &count);
    true
}
