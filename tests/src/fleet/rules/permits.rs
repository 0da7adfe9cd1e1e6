//! What must hold of permits: who gets one, who is refused, what closes one.
//!
//! The budget, exactly: a permit that was not there before is only stored if its holder was unavailable
//! already, and had told so to the coordinator that decided, or if fewer than may be were unavailable: the
//! permits in the store at the moment of the commit, and those without one that the coordinator knew to be
//! silent or not healthy when it decided. Silence is known to each coordinator for itself, so of two of
//! them one may know of a silent instance and the other not yet; permits are one number for both.

use towline_coordinator::board::Board;
use towline_coordinator::records::GroupState;
use towline_coordinator::rollout::permits::Leave;
use towline_protocol::fleet::Permit;
use towline_protocol::ids::Instance;
use towline_protocol::policy::Share;
use towline_protocol::poll::{Message, Question};
use towline_protocol::report::Health;
use towline_protocol::rollout::{Batch, Kind, State};

use super::super::coordinator::What;
use super::super::network::Request;
use super::super::operators::Order as Ordered;
use super::super::{World, group};
use super::{Before, Knowledge};

impl World {
    pub(super) fn check_given(
        &mut self,
        before: &Before,
        permit: &Permit,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        let (truth, instance) = (self.store.truth(), &permit.instance);
        let mut restarts_only = false;
        let wrong = |why: &str| Err(format!("{instance} is given permit {}: {why}", permit.id));
        if permit.order != truth.order() || truth.target.is_none() {
            return wrong("its target is not the newest");
        }
        let Some(record) = truth.member(instance) else {
            return wrong("it has left, or is not known");
        };
        // "Leave that was renounced before it is given is not given."
        let is_over = record.report.as_ref().is_some_and(|report| {
            permit.seq <= report.renounced || (record.seq > permit.seq && !report.uses_permit)
        });
        if is_over {
            return wrong("it has told that it does not wait for it");
        }
        if let Some(own) = before.open.get(instance) {
            // "Its question about a newer generation moves that permit without counting twice."
            if own.value.id != permit.id {
                return wrong("it holds another one");
            }
            let now_ms = truth.going().map(|_| knowledge.deadline_ms);
            if own.value.order != permit.order && permit.given_ms != now_ms {
                return wrong("its deadline is that of another rollout");
            }
            if own.value.order == permit.order && own.value.given_ms != permit.given_ms {
                return wrong("its deadline is put off");
            }
            if own.value.seq > permit.seq {
                return wrong("its question is older than that of the permit it holds");
            }
        }
        if self.book.paused == Some(permit.order) {
            return wrong("a pause was acknowledged");
        }
        if let Some(rollout) = truth.going() {
            if rollout.state != State::Running {
                return wrong("the rollout is not running");
            }
            let batch = rollout.batches.iter().position(|batch| batch.members.contains(instance));
            let passed = |batch: &Batch| batch.passed_ms.is_some();
            let is_open = match batch {
                Some(index) => {
                    rollout.batches[index].is_open() && rollout.batches[..index].iter().all(passed)
                }
                // A way back is open to all; whoever was set aside follows those who have shown the way.
                None if rollout.kind == Kind::Rollback => {
                    rollout.batches.iter().any(Batch::is_open)
                }
                None => rollout.aside.contains(instance) && rollout.batches.iter().any(passed),
            };
            // "--without takes an instance out of batches."
            let is_open = is_open && !rollout.without.contains(instance);
            // Whoever is ordered to may start anew what it serves, and do nothing else.
            restarts_only = !is_open;
            let is_ordered = truth.member(instance).is_some_and(|record| {
                let done = record.report.as_ref().map_or(0, |report| report.orders.restart);
                record.orders.restart > done
            });
            if !is_open && !is_ordered {
                return wrong("its batch is not open");
            }
            if !is_open && rollout.aside.contains(instance) {
                return wrong("it was set aside, and may ask for what was due before");
            }
        }
        // "None is granted at or above max_unavailable. An unhealthy instance may always ask."
        let is_new = !before.open.contains_key(instance);
        if is_new && !knowledge.unhealthy.contains(instance) {
            let without =
                |other: &&Instance| *other != instance && !before.open.contains_key(*other);
            let permits = before.open.keys().filter(|holder| !knowledge.out.contains(*holder));
            let used = permits.count() + knowledge.unavailable.iter().filter(without).count();
            let max = budget(truth, knowledge.live);
            if used >= max {
                return wrong(&format!("{used} are unavailable, {max} may be"));
            }
        }
        if let Some(host) = self.hosts.iter_mut().find(|host| host.name == *instance) {
            // A late copy of an earlier question is not what it swaps by.
            let leave = host.agent.as_ref().and_then(|agent| agent.machine.journal().leave);
            host.is_excused &= !is_new || leave.is_some_and(|leave| leave > permit.seq);
            host.restarts_by = restarts_only.then_some(permit.seq);
        }
        Ok(())
    }

    /// "A permit closes by a report of healthy on a proven or adopted release, withdrawn, proof that the
    /// instance is gone, an operator's override. Never by time."
    pub(super) fn check_closed(&mut self, what: &What, permit: &Permit) -> Result<(), String> {
        let Some(host) = self.hosts.iter_mut().find(|host| host.name == permit.instance) else {
            return Ok(());
        };
        let What::Request(sent) = what else {
            return Err(format!("{} loses its permit to the gate", host.name));
        };
        match &sent.request {
            Request::Goodbye(_) => host.is_excused = true,
            Request::Report(message) if !closes(message, permit) => {
                return Err(format!("{} loses {permit:?} by {message:?}", host.name));
            }
            Request::Operate(operation) => match operation.order {
                Ordered::Forget(_) | Ordered::Close(_) => host.is_excused = true,
                _ => return Err(format!("{} loses its permit to an order", host.name)),
            },
            Request::Report(_) | Request::Ask(_) => {
                let journal = &host.disk.journal;
                let is_used = journal.swap.is_some() && journal.leave == Some(permit.seq);
                if is_used && !host.is_gone && !host.is_excused && !host.disk.is_behind {
                    return Err(format!(
                        "{} is in the middle of what its permit is for",
                        host.name
                    ));
                }
            }
            Request::Poll(_) => return Err(format!("{} polls its permit away", host.name)),
        }
        Ok(())
    }

    /// A no says why, and the reason holds: nobody is refused for want of what it has.
    pub(in super::super) fn check_refused(
        at: &Board,
        question: &Question,
        leave: &Leave,
    ) -> Result<(), String> {
        let (None, Some(state)) = (leave.permit, at.records().group(&group())) else {
            return Ok(());
        };
        let reason = leave.reason.as_deref().unwrap_or_default();
        let wrong = |why: &str| Err(format!("{question:?} is refused, as {reason}: {why}"));
        let held = state.open.get(&question.instance).map(|kept| &kept.value);
        let is_of_budget = reason.contains("may be unavailable");
        if held.is_some() && is_of_budget {
            return wrong("it holds a permit, which counts already");
        }
        let Some(record) = state.member(&question.instance) else { return Ok(()) };
        let is_over = record.report.as_ref().is_some_and(|report| {
            question.seq <= report.renounced || (record.seq > question.seq && !report.uses_permit)
        });
        if is_over || is_of_budget || held.is_some_and(|held| held.seq > question.seq) {
            return Ok(());
        }
        // "Unless the rollout is paused or the target has moved: then it closes unused."
        let is_unused = |held: &Permit| {
            let told = record.report.as_ref();
            let is_well = told.is_some_and(|report| report.health == Health::Healthy);
            is_well && told.is_some_and(|report| held.seq <= report.renounced)
        };
        if held.is_some_and(is_unused) == leave.draft.is_empty() {
            return wrong("what it held is unused, and stays open; or it is closed, and in use");
        }
        // "Orders to that instance" do not wait for its batch.
        let done = record.report.as_ref().map_or(0, |report| report.orders.restart);
        let stands = state.going().is_some_and(|rollout| {
            rollout.state != State::Running || rollout.aside.contains(&question.instance)
        });
        let is_for_it = state.target.is_some() && question.order == state.order();
        if record.orders.restart > done && is_for_it && !stands {
            return wrong("it is ordered to restart");
        }
        Ok(())
    }
}

/// "A permit closes by a report of healthy on a proven or adopted release; by withdrawn. Degraded keeps it
/// open."
pub(super) fn closes(message: &Message, permit: &Permit) -> bool {
    let report = &message.report;
    let is_good = report.health == Health::Healthy && (report.proven || report.adopted);
    let is_withdrawn = permit.seq <= report.renounced;
    !report.uses_permit && (is_withdrawn || (is_good && message.seq > permit.seq))
}

/// How many instances of so many may be unavailable.
fn budget(state: &GroupState, live: usize) -> usize {
    let share = match (state.going(), &state.record) {
        (Some(rollout), _) if rollout.kind == Kind::Rollback => {
            rollout.policy.max_unavailable_rollback
        }
        (Some(rollout), _) => rollout.policy.max_unavailable,
        (None, Some(record)) => record.value.policy.max_unavailable,
        (None, None) => Share::Count(1),
    };
    match share {
        Share::Count(count) => count as usize,
        Share::Percent(percent) => (live * percent as usize / 100).max(1),
    }
}
