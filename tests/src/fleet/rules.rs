//! What must hold in the simulated fleet, whatever happens: checked at each commit.
//!
//! The budget, exactly: a permit that was not there before is only stored if its holder was unavailable
//! already, and had told so to the coordinator that decided, or if fewer than may be were unavailable: the
//! permits in the store at the moment of the commit, and those without one that the coordinator knew to be
//! silent or not healthy when it decided. Silence is known to each coordinator for itself, so of two of
//! them one may know of a silent instance and the other not yet; permits are one number for both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use towline_coordinator::board::{Board, Moment};
use towline_coordinator::fleet::Presence;
use towline_coordinator::records::{Draft, GroupState, Kept, key};
use towline_coordinator::store::{Commit, Outcome, Write};
use towline_protocol::fleet::{GroupRecord, Permit};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::policy::{OnFailure, Share};
use towline_protocol::report::{Health, Phase, Report};
use towline_protocol::rollout::{Batch, Kind, Rollout, State};
use towline_protocol::target::Target;

use super::coordinator::What;
use super::network::{Request, Sent};
use super::operators::Order as Ordered;
use super::{World, group};

mod agents;
mod gates;
mod records;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) troubles_left: usize,
    /// What was ever made live somewhere.
    pub(super) activated: BTreeSet<Revision>,
    /// The rollouts that have ended, by their keys.
    past: BTreeMap<String, Order>,
    /// The rollout whose pause was acknowledged, until it goes on or ends.
    paused: Option<Order>,
}

/// What a coordinator knew when it decided.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    /// Who is in the group.
    members: BTreeSet<Instance>,
    /// How many of them count, and who of those is silent, not healthy or not known.
    live: usize,
    unavailable: BTreeSet<Instance>,
    /// Who is silent, and taken out until it polls again.
    out: BTreeSet<Instance>,
    /// Who has told that it is not healthy.
    unhealthy: BTreeSet<Instance>,
    /// Who is there, serves the target and is healthy.
    taken: BTreeSet<Instance>,
    /// Who has told of a failure, or is not healthy: it may be counted at once.
    failing: BTreeSet<Instance>,
    /// The rollout's clock for deadlines.
    deadline_ms: u64,
    /// When open permits were given, on that clock.
    given_ms: BTreeMap<Instance, u64>,
}

impl Knowledge {
    pub(super) fn of(board: &mut Board, now: Moment) -> Self {
        let deadline_ms = board.clock(&group(), now).deadline_ms;
        let Some(state) = board.records().group(&group()) else { return Self::default() };
        let attendance = board.attendance(&group());
        let given = |(instance, permit): (&Instance, &Kept<Permit>)| {
            Some((instance.clone(), permit.value.given_ms?))
        };
        let given_ms = state.open.iter().filter_map(given).collect();
        let mut own = Self { deadline_ms, given_ms, ..Self::default() };
        let target = state.target.as_ref().map(|kept| &kept.value.target);
        // "`--without` takes an instance out until it polls again", also once the rollout has ended.
        let without = state.rollout.as_ref().map(|kept| &kept.value.without);
        for record in state.instances.values().map(|kept| &kept.value) {
            if record.gone.is_some() {
                continue;
            }
            let instance = record.instance.clone();
            let is_here = attendance.of(&instance) == Presence::Here;
            let report = record.report.as_ref().filter(|_| is_here);
            let is_healthy = report.is_some_and(|report| report.health == Health::Healthy);
            let told = record.report.as_ref().map(|report| report.health);
            if told == Some(Health::Unhealthy) {
                own.unhealthy.insert(instance.clone());
            }
            let is_failing = record.report.as_ref().is_some_and(|report| {
                report.rejected || report.failure.is_some() || told == Some(Health::Unhealthy)
            });
            if is_failing {
                own.failing.insert(instance.clone());
            }
            if attendance.of(&instance).polls()
                || !without.is_some_and(|without| without.contains(&instance))
            {
                own.live += 1;
                if !is_healthy {
                    own.unavailable.insert(instance.clone());
                }
            } else {
                own.out.insert(instance.clone());
            }
            if let (Some(report), Some(target)) = (report, target)
                && is_healthy
                && has_taken(report, target)
            {
                own.taken.insert(instance.clone());
            }
            own.members.insert(instance);
        }
        own
    }
}

/// Is what it tells what the target asks for?
pub(super) fn has_taken(report: &Report, target: &Target) -> bool {
    let serves = match &target.revision {
        Some(revision) => [&report.serving, &report.alike].contains(&&Some(revision.clone())),
        None => report.serving != target.not,
    };
    serves
        && report.order == Some(target.order)
        && report.restart >= target.restart
        && (!report.uses_permit || report.phase == Phase::Asking)
}

/// What stood in the store before a commit.
struct Before {
    order: Order,
    rollout: Option<Rollout>,
    open: BTreeMap<Instance, Kept<Permit>>,
    /// Those that are written, and had left; with the numbers of their last messages.
    gone: Vec<(Instance, u64)>,
    /// The group, where it is written.
    record: Option<GroupRecord>,
}

impl Before {
    fn of(state: &GroupState, commit: &Commit) -> Self {
        let at = key::rollout(&group());
        let is_written = commit.writes.iter().any(|write| key_of(write) == at);
        let rollout = state.rollout.as_ref().filter(|_| is_written);
        let has = |at: &str| commit.writes.iter().any(|write| key_of(write) == at);
        let left = state.instances.values().map(|kept| &kept.value);
        let left = left.filter(|record| record.gone.is_some());
        let left = left.filter(|record| has(&key::instance(&group(), &record.instance)));
        let record = state.record.as_ref().filter(|_| has(&key::group(&group())));
        Self {
            gone: left.map(|record| (record.instance.clone(), record.seq)).collect(),
            record: record.map(|kept| kept.value.clone()),
            order: state.order(),
            rollout: rollout.map(|kept| kept.value.clone()),
            open: state.open.clone(),
        }
    }
}

fn key_of(write: &Write) -> &str {
    match write {
        Write::Put { key, .. } | Write::Delete { key } => key,
    }
}

impl World {
    /// Carries a commit out, and checks what it has done.
    pub(super) fn commit(
        &mut self,
        what: &What,
        draft: Draft,
        knowledge: &Knowledge,
    ) -> Result<Outcome, String> {
        let commit = draft.into_commit();
        let before = Before::of(self.store.truth(), &commit);
        let keys: Vec<String> =
            commit.writes.iter().map(|write| key_of(write).to_owned()).collect();
        let outcome = self.store.commit(commit)?;
        self.tell(|_| format!("commit of {keys:?}: {outcome:?}"));
        if outcome == Outcome::Conflict {
            return Ok(outcome);
        }
        self.check_count()?;
        self.check_order(&before)?;
        self.check_permits(what, &before, knowledge)?;
        self.check_past(&keys)?;
        self.check_quarantine()?;
        self.check_come_back(what, &before)?;
        self.check_group(what, &before)?;
        if keys.contains(&key::rollout(&group())) {
            self.check_rollout(what, &before, knowledge)?;
        }
        if let What::Request(sent) = what
            && let Request::Operate(operation) = &sent.request
        {
            self.carried_out(operation.key)?;
        }
        Ok(outcome)
    }

    /// "Open permits and their number belong to the group": the number is that of the permits.
    fn check_count(&self) -> Result<(), String> {
        let truth = self.store.truth();
        let (counted, stored) = (truth.count().open as usize, truth.open.len());
        if counted == stored {
            return Ok(());
        }
        Err(format!("{counted} permits are counted, and {stored} are stored"))
    }

    /// "Every change of a group's target is the next generation; nothing ever goes back."
    fn check_order(&self, before: &Before) -> Result<(), String> {
        let truth = self.store.truth();
        let order = truth.order();
        if order < before.order {
            return Err(format!("the target fell from {} to {order}", before.order));
        }
        if let Some(rollout) = truth.going()
            && Some(&rollout.target) != truth.target.as_ref().map(|kept| &kept.value.target)
        {
            return Err("the rollout is not that of the target".to_owned());
        }
        Ok(())
    }

    fn check_permits(
        &mut self,
        what: &What,
        before: &Before,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        let truth = self.store.truth();
        let given: Vec<Permit> = truth
            .open
            .values()
            .map(|kept| kept.value.clone())
            .filter(|permit| {
                before.open.get(&permit.instance).is_none_or(|own| own.value != *permit)
            })
            .collect();
        let closed: Vec<Permit> = before
            .open
            .values()
            .map(|kept| kept.value.clone())
            .filter(|permit| !truth.open.contains_key(&permit.instance))
            .collect();
        for permit in given {
            self.check_given(before, &permit, knowledge)?;
        }
        for permit in closed {
            self.check_closed(what, &permit)?;
        }
        Ok(())
    }

    fn check_given(
        &mut self,
        before: &Before,
        permit: &Permit,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        let (truth, instance) = (self.store.truth(), &permit.instance);
        let mut restarts_only = false;
        let wrong = |why: &str| Err(format!("{instance} is given permit {}: {why}", permit.id));
        if permit.order != truth.order() {
            return wrong("its target is not the newest");
        }
        if truth.member(instance).is_none() {
            return wrong("it has left, or is not known");
        }
        if let Some(own) = before.open.get(instance) {
            // "Its question about a newer generation moves that permit without counting twice."
            if own.value.id != permit.id {
                return wrong("it holds another one");
            }
            let is_odd = |given_ms: u64| given_ms > knowledge.deadline_ms;
            if own.value.order != permit.order && permit.given_ms.is_some_and(is_odd) {
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
            if rollout.without.contains(instance) {
                return wrong("the rollout goes on without it");
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
            // Whoever is ordered to may start anew what it serves, and do nothing else.
            restarts_only = !is_open;
            let is_ordered = truth.member(instance).is_some_and(|record| {
                let done = record.report.as_ref().map_or(0, |report| report.orders.restart);
                record.orders.restart > done
            });
            if !is_open && !is_ordered {
                return wrong("its batch is not open");
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
            host.is_excused &= !is_new;
            host.restarts_by = restarts_only.then_some(permit.seq);
        }
        Ok(())
    }

    /// "A permit closes by a report of healthy on a proven or adopted release, withdrawn, proof that the
    /// instance is gone, an operator's override. Never by time."
    fn check_closed(&mut self, what: &What, permit: &Permit) -> Result<(), String> {
        let Some(host) = self.hosts.iter_mut().find(|host| host.name == permit.instance) else {
            return Ok(());
        };
        let What::Request(sent) = what else {
            return Err(format!("{} loses its permit to the gate", host.name));
        };
        match &sent.request {
            Request::Goodbye(_) => host.is_excused = true,
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

    /// P10: what was acknowledged is in the store afterwards. No rollout is forgotten or written over.
    fn check_past(&mut self, keys: &[String]) -> Result<(), String> {
        for at in keys.iter().filter(|key| key.starts_with("past/")) {
            let value = self.store.value(at).ok_or("a past rollout is thrown away")?;
            let rollout: Rollout =
                serde_json::from_slice(value).map_err(|error| error.to_string())?;
            if !rollout.state.is_ended() {
                return Err(format!("{at} goes on"));
            }
            let order = rollout.order();
            if self.book.past.insert(at.clone(), order).is_some_and(|old| old != order) {
                return Err(format!("{at} is written over"));
            }
        }
        Ok(())
    }

    /// "Fetch or install failed: quarantine never": only what was live somewhere can be at fault.
    fn check_quarantine(&self) -> Result<(), String> {
        let record = self.store.truth().record.as_ref().ok_or("the group is gone")?;
        for quarantined in &record.value.quarantine {
            if !self.book.activated.contains(&quarantined.revision) {
                let short = quarantined.revision.short();
                return Err(format!("{short} is in quarantine, and was never live"));
            }
        }
        Ok(())
    }

    /// One order has one effect, however often it is sent.
    fn carried_out(&mut self, key: u64) -> Result<(), String> {
        let paused = self.store.truth().going().map(Rollout::order);
        let standing = self.operations.get_mut(&key).ok_or("an order that nobody gave")?;
        standing.effects += 1;
        if standing.effects > 1 {
            return Err(format!("{:?} was carried out twice", standing.operation));
        }
        // Whoever resumes later undoes what was acknowledged earlier.
        if standing.operation.order == Ordered::Resume && self.book.paused == paused {
            self.book.paused = None;
        }
        Ok(())
    }

    /// P10: an order that was acknowledged is in the store.
    pub(super) fn check_ordered(&mut self, key: u64) -> Result<(), String> {
        let standing = self.operations.get(&key).ok_or("an order that nobody gave")?;
        let operation = &standing.operation;
        if standing.effects == 0 && !self.store.has(&operation.once()) {
            // It may have had nothing to change; then it is as if it had been carried out.
            let is_idle =
                matches!(operation.order, Ordered::Pause | Ordered::Resume | Ordered::Promote);
            if !is_idle {
                return Err(format!("{operation:?} was acknowledged, and is not stored"));
            }
        }
        Ok(())
    }

    /// Who has asked.
    pub(super) fn is_order(sent: &Sent) -> bool {
        matches!(sent.request, Request::Operate(_))
    }
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

/// May a rollout that failed lead back by itself?
pub(super) fn may_go_back(rollout: &Rollout) -> bool {
    rollout.kind == Kind::Release
        && !rollout.is_proven
        && rollout.policy.on_failure == OnFailure::Rollback
}

/// A time of a rollout's clock.
pub(super) fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
