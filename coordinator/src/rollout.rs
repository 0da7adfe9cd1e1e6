//! The rollout engine: looks at a rollout and its fleet as they are now, and decides the next step.
//!
//! ```text
//!              ┌─ a member failed ───────────────► counted, for good
//!              ├─ too many failed ───────────────► back to the fallback, or halt
//!   evaluate ──┼─ no batch is open ──────────────► open the next one, and offer the one after it
//!              ├─ all of the batch is healthy ───► bake; then the gate passes
//!              ├─ the last gate passed ──────────► converged
//!              ├─ nothing moves ─────────────────► halt
//!              └─ else ──────────────────────────► wait: until when, for what
//! ```
//!
//! Invariants
//! - Pure, and level-triggered: it reads the state as it is, never what changed. A message that was lost
//!   delays a decision and cannot corrupt one; any coordinator may decide.
//! - One step at a time: whoever commits a step looks again.
//! - What is not known never passes a gate. What failed stays counted, also while it is paused or halted.
//! - A batch opens only after it is on record that the gate before it has passed.

use std::time::Duration;

use towline_protocol::ids::Instance;
use towline_protocol::ids::Revision;
use towline_protocol::policy::OnFailure;
use towline_protocol::rollout::{Kind, Rollout, State};
use towline_protocol::time::Timestamp;

use crate::fleet::{self, Attendance};
use crate::records::GroupState;

pub mod batches;
pub mod gate;
pub mod operations;
pub mod permits;
pub mod reports;
pub mod words;

use gate::{Standing, Verdict};

/// The time, as the engine knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// The time of day, to be noted with what is decided.
    pub at: Timestamp,
    /// The rollout's clock for bake times.
    pub bake_ms: u64,
    /// The rollout's clock for deadlines.
    pub deadline_ms: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: there is no rollout that goes on.
    Rest,
    /// Look again when something changes, or after this much time of the rollout's clock for bake
    /// times, or for deadlines.
    Wait {
        /// When to look again at the latest.
        within: Option<Duration>,
        /// What is waited for, in words.
        reason: String,
    },
    /// Store this rollout, and look again.
    Step(Box<Rollout>),
    /// Store this rollout, whose last gate has passed.
    Converge(Box<Rollout>),
    /// Store this rollout as aborted, and go back by the next generation. `quarantine`: refuse what
    /// failed until an operator lifts it.
    Abort {
        /// The rollout, ended.
        rollout: Box<Rollout>,
        /// What to put into quarantine, and why.
        quarantine: Option<(Revision, String)>,
    },
}

/// Decides the next step of a group's rollout.
#[must_use]
pub fn evaluate(state: &GroupState, attendance: &Attendance, now: Now) -> Decision {
    let Some(rollout) = state.rollout.as_ref().map(|kept| &kept.value) else {
        return Decision::Rest;
    };
    if let Some(back) = back_again(rollout, attendance) {
        return Decision::Step(Box::new(back));
    }
    if rollout.state.is_ended() {
        return Decision::Rest;
    }
    if let Some(counted) = gate::count_failures(state, rollout, attendance, now) {
        return Decision::Step(Box::new(counted));
    }
    if rollout.state != State::Running {
        return Decision::Wait { within: None, reason: rollout.reason.clone() };
    }
    if let Some(reason) = banned(state, rollout) {
        return fail(rollout, "the revision", reason, None, now);
    }
    let Some(index) = open_batch(rollout) else {
        return next_batch(state, rollout, attendance, now);
    };
    let standings = gate::standings(state, rollout, index, attendance, now);
    match gate::verdict(rollout, index, &standings, now) {
        Verdict::Fail(reason) => {
            let shared = gate::is_shared(state, rollout, attendance);
            fail(rollout, &rollout.batches[index].name, reason, shared, now)
        }
        Verdict::SetAside(silent) => {
            let mut next = rollout.clone();
            // Whoever takes a place in it is waited for as they were.
            next.taken = next.taken.saturating_sub(fleet::count(silent.len()));
            for instance in silent {
                next.batches[index].members.remove(&instance);
                next.note(now.at, format!("{instance} is silent, and set aside"));
                next.aside.insert(instance);
            }
            Decision::Step(Box::new(next))
        }
        Verdict::Refill => refill(state, rollout, index, &standings, attendance, now),
        Verdict::Bake => {
            let mut next = moved(rollout, &standings, now);
            next.batches[index].bakes_ms = Some(now.bake_ms);
            let bake_s = gate::bake_time(rollout, index).as_secs();
            let healthy = gate::healthy(&standings);
            let name = next.batches[index].name.clone();
            let bakes = if bake_s > 0 { format!(", bakes for {bake_s} s") } else { String::new() };
            next.note(now.at, format!("{name}: {healthy} healthy{bakes}"));
            next.reason = format!("{name} bakes");
            Decision::Step(Box::new(next))
        }
        Verdict::Unbake => {
            let mut next = rollout.clone();
            next.batches[index].bakes_ms = None;
            let name = next.batches[index].name.clone();
            next.note(
                now.at,
                format!("{name} is no longer all healthy; its bake time begins anew"),
            );
            Decision::Step(Box::new(next))
        }
        Verdict::Pass => {
            let mut next = moved(rollout, &standings, now);
            let batch = &mut next.batches[index];
            batch.passed_ms = Some(now.bake_ms);
            let text = format!("gate: {} passed", batch.name);
            next.note(now.at, text);
            next.progressed_ms = now.deadline_ms;
            Decision::Step(Box::new(next))
        }
        Verdict::Wait { within, reason } => {
            wait(state, rollout, &standings, attendance, now, within, reason)
        }
    }
}

/// The batch whose gate has not passed yet.
fn open_batch(rollout: &Rollout) -> Option<usize> {
    rollout.batches.iter().position(|batch| batch.is_open() && batch.passed_ms.is_none())
}

/// Why a new revision may not go on: newborns have failed on it since, so that it is in quarantine.
fn banned(state: &GroupState, rollout: &Rollout) -> Option<String> {
    let revision = rollout.revision().filter(|_| !rollout.is_proven)?;
    let quarantine = &state.record.as_ref()?.value.quarantine;
    let quarantined = quarantine.iter().find(|quarantined| quarantined.revision == *revision)?;
    Some(format!("it is in quarantine: {}", quarantined.reason))
}

/// Whoever was to be done without polls again.
fn back_again(rollout: &Rollout, attendance: &Attendance) -> Option<Rollout> {
    let is_back = |instance: &&Instance| attendance.of(instance).polls();
    let back: Vec<_> = rollout.without.iter().filter(is_back).cloned().collect();
    if back.is_empty() {
        return None;
    }
    let mut next = rollout.clone();
    next.without.retain(|instance| !back.contains(instance));
    Some(next)
}

/// Notes how far the open batch has come. Only further than ever is progress: whoever is well, and is not,
/// and is again, would else put off the deadline for good.
fn moved(rollout: &Rollout, standings: &[Standing], now: Now) -> Rollout {
    let mut next = rollout.clone();
    let settled = gate::settled(standings);
    if settled > next.taken {
        next.taken = settled;
        next.progressed_ms = now.deadline_ms;
    }
    next
}

fn next_batch(
    state: &GroupState,
    rollout: &Rollout,
    attendance: &Attendance,
    now: Now,
) -> Decision {
    let mut next = rollout.clone();
    if batches::offer(state, &mut next, attendance) {
        return Decision::Step(Box::new(next));
    }
    let Some(index) = next.batches.iter().position(|batch| !batch.is_open()) else {
        return finish(state, rollout, now);
    };
    open(state, &mut next, index, attendance, now);
    Decision::Step(Box::new(next))
}

/// Opens a batch, and offers the one after it.
fn open(state: &GroupState, next: &mut Rollout, index: usize, attendance: &Attendance, now: Now) {
    let batch = &mut next.batches[index];
    batch.opened_ms = Some(now.deadline_ms);
    let name = batch.name.clone();
    let members = batches::told(&batch.members);
    next.note(now.at, format!("{name} opened: {members}"));
    next.reason = format!("{name} is open");
    next.taken = 0;
    next.progressed_ms = now.deadline_ms;
    batches::offer(state, next, attendance);
}

/// The last gate has passed, or there is nobody to open a batch for.
fn finish(state: &GroupState, rollout: &Rollout, now: Now) -> Decision {
    let mut next = rollout.clone();
    if rollout.batches.is_empty() {
        // Nobody has proven it yet, and so it stays open.
        let reason = if state.members().next().is_none() {
            "the group is empty: it stays open until an instance has proven it"
        } else {
            "nobody who could take it is there: it stays open until an instance has proven it"
        };
        return Decision::Wait { within: None, reason: reason.to_owned() };
    }
    if rollout.only.is_some() {
        next.state = State::Paused;
        next.reason =
            "the chosen instances have it; resume takes it to all others, abort takes it back"
                .to_owned();
        next.note(now.at, format!("paused: {}", next.reason));
        return Decision::Step(Box::new(next));
    }
    next.state = State::Converged;
    next.ended = Some(now.at);
    next.reason = "its last gate has passed".to_owned();
    next.note(now.at, "converged".to_owned());
    Decision::Converge(Box::new(next))
}

fn refill(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    standings: &[Standing],
    attendance: &Attendance,
    now: Now,
) -> Decision {
    let mut next = moved(rollout, standings, now);
    if batches::refill(state, &mut next, index, attendance) {
        let batch = &mut next.batches[index];
        batch.bakes_ms = None;
        batch.is_promoted = false;
        next.progressed_ms = now.deadline_ms;
        // Whoever comes now has as long as whoever came first.
        batch.opened_ms = Some(now.deadline_ms);
        let text = format!("{}: refilled with {}", batch.name, batches::told(&batch.members));
        next.note(now.at, text);
        return Decision::Step(Box::new(next));
    }
    let name = &rollout.batches[index].name;
    if standings.contains(&Standing::Failed) {
        // Tolerated or not: a batch in which nobody is healthy shows nothing good.
        let shared = gate::is_shared(state, rollout, attendance);
        let detail = gate::last_failure(rollout).unwrap_or_default();
        return fail(rollout, name, format!("nobody in it is healthy{detail}"), shared, now);
    }
    if rollout.batches.iter().any(|batch| batch.passed_ms.is_some()) {
        // Nobody of it is there, and others have proven the revision.
        next.batches[index].passed_ms = Some(now.bake_ms);
        next.note(now.at, format!("gate: {name} passed: nobody is left to wait for"));
        return Decision::Step(Box::new(next));
    }
    let reason = format!("nobody is left in {name}: it waits for an instance that can take it");
    if state.members().next().is_none() {
        // A group that is empty may stay so for as long as it likes.
        return Decision::Wait { within: None, reason };
    }
    wait(state, rollout, &[], attendance, now, None, reason)
}

/// Too much failed, in `name`. `shared`: why it may not be the rollout's fault.
fn fail(
    rollout: &Rollout,
    name: &str,
    mut reason: String,
    shared: Option<String>,
    now: Now,
) -> Decision {
    let mut next = rollout.clone();
    let is_shared = shared.is_some();
    if let Some(shared) = shared {
        // Going back would not help, and would take down what still serves.
        reason = format!("{reason}; {shared}");
    }
    next.note(now.at, format!("gate: {name} failed: {reason}"));
    let culprit = gate::against_revision(rollout);
    let is_new = rollout.kind == Kind::Release && !rollout.is_proven;
    if is_new && rollout.policy.on_failure == OnFailure::Rollback && !is_shared {
        next.state = State::Aborted;
        next.ended = Some(now.at);
        next.reason = format!("{name} failed: {reason}");
        let quarantine = culprit.and_then(|detail| Some((rollout.revision()?.clone(), detail)));
        return Decision::Abort { rollout: Box::new(next), quarantine };
    }
    next.culprit = culprit.filter(|_| is_new && !is_shared);
    next.state = State::Halted;
    next.reason = format!("{name} failed: {reason}");
    next.note(now.at, "halted: it waits for an operator".to_owned());
    Decision::Step(Box::new(next))
}

/// Nothing to decide: unless it has been so for too long.
fn wait(
    state: &GroupState,
    rollout: &Rollout,
    standings: &[Standing],
    attendance: &Attendance,
    now: Now,
    within: Option<Duration>,
    reason: String,
) -> Decision {
    if gate::settled(standings) > rollout.taken {
        return Decision::Step(Box::new(moved(rollout, standings, now)));
    }
    let index = open_batch(rollout);
    if let Some(index) = index
        && rollout.batches[index].bakes_ms.is_some()
        && gate::healthy(standings) > 0
        && standings.iter().all(Standing::is_settled)
    {
        return Decision::Wait { within, reason };
    }
    let mut deadline = Duration::from_secs(rollout.policy.progress_deadline_s);
    let baked = index.filter(|index| {
        // All of it was settled once: in what has passed since there is its bake time as well.
        fleet::count(rollout.batches[*index].members.len()) <= rollout.taken
    });
    deadline += baked.map_or(Duration::ZERO, |index| gate::bake_time(rollout, index));
    let quiet = Duration::from_millis(now.deadline_ms.saturating_sub(rollout.progressed_ms));
    let is_swapping =
        index.is_some_and(|index| gate::is_swapping(state, rollout, index, attendance, now));
    if quiet >= deadline && !is_swapping {
        let mut next = rollout.clone();
        next.state = State::Halted;
        let budget = fleet::budget(state, attendance);
        let full = if budget.used >= budget.max {
            format!("; {} of {} that may be unavailable are", budget.used, budget.max)
        } else {
            String::new()
        };
        next.reason = format!("nothing has moved for {} s: {reason}{full}", deadline.as_secs());
        let text = format!("halted: {}", next.reason);
        next.note(now.at, text);
        return Decision::Step(Box::new(next));
    }
    let left = Some(deadline.saturating_sub(quiet)).filter(|left| !left.is_zero());
    let due = index.and_then(|index| gate::next_due(state, rollout, index, attendance, now));
    let within = [within, left, due].into_iter().flatten().min();
    Decision::Wait { within, reason }
}

#[cfg(test)]
mod tests;
