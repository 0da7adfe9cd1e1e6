//! What must hold in the simulated fleet, whatever happens: checked at each commit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use towline_coordinator::board::{Board, Moment};
use towline_coordinator::fleet::Presence;
use towline_coordinator::records::{Draft, GroupState, Kept, key};
use towline_coordinator::store::{Commit, Outcome, Write};
use towline_protocol::fleet::{GroupRecord, Permit};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::policy::OnFailure;
use towline_protocol::report::{Health, Phase, Report};
use towline_protocol::rollout::{Batch, Kind, Rollout};
use towline_protocol::target::Target;

use super::coordinator::What;
use super::network::{Request, Sent};
use super::operators::Order as Ordered;
use super::{World, group};

mod agents;
mod counted;
mod gates;
mod permits;
mod records;
mod words;

use counted::Counted;

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
    /// The rollout's clock for deadlines.
    deadline_ms: u64,
    /// Who was not heard of since the coordinator's start.
    unheard: BTreeSet<Instance>,
    /// What there is to be made of the open batch.
    counted: Counted,
}

impl Knowledge {
    pub(super) fn of(board: &mut Board, now: Moment) -> Self {
        let clock = board.clock(&group(), now);
        let deadline_ms = clock.deadline_ms;
        let Some(state) = board.records().group(&group()) else { return Self::default() };
        let attendance = board.attendance(&group());
        let counted = Counted::of(state, &attendance, clock);
        let mut own = Self { deadline_ms, counted, ..Self::default() };
        let target = state.target.as_ref().map(|kept| &kept.value.target);
        // "`--without` takes an instance out until it polls again", also once the rollout has ended.
        let without = state.rollout.as_ref().map(|kept| &kept.value.without);
        for record in state.instances.values().map(|kept| &kept.value) {
            if record.gone.is_some() {
                continue;
            }
            let instance = record.instance.clone();
            if matches!(attendance.of(&instance), Presence::Untold | Presence::Unheard) {
                own.unheard.insert(instance.clone());
            }
            let is_here = attendance.of(&instance) == Presence::Here;
            let report = record.report.as_ref().filter(|_| is_here);
            let is_healthy = report.is_some_and(|report| report.health == Health::Healthy);
            let told = record.report.as_ref().map(|report| report.health);
            if told == Some(Health::Unhealthy) {
                own.unhealthy.insert(instance.clone());
            }
            let polls = attendance.of(&instance).polls();
            if polls || !without.is_some_and(|without| without.contains(&instance)) {
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
    /// Those that are written, and were there; with the numbers of their last messages.
    there: BTreeMap<Instance, u64>,
    /// The group, where it is written.
    record: Option<GroupRecord>,
}

impl Before {
    fn of(state: &GroupState, commit: &Commit) -> Self {
        let at = key::rollout(&group());
        let is_written = commit.writes.iter().any(|write| key_of(write) == at);
        let rollout = state.rollout.as_ref().filter(|_| is_written);
        let has = |at: &str| commit.writes.iter().any(|write| key_of(write) == at);
        let written = || {
            let all = state.instances.values().map(|kept| &kept.value);
            all.filter(|record| has(&key::instance(&group(), &record.instance)))
        };
        let left = written().filter(|record| record.gone.is_some());
        let there = written().filter(|record| record.gone.is_none());
        let record = state.record.as_ref().filter(|_| has(&key::group(&group())));
        Self {
            gone: left.map(|record| (record.instance.clone(), record.seq)).collect(),
            there: there.map(|record| (record.instance.clone(), record.seq)).collect(),
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
        self.check_told(what, &before)?;
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

    /// Where nothing is decided, there is something to wait for.
    pub(super) fn check_waits(board: &mut Board, now: Moment) -> Result<(), String> {
        let knowledge = Knowledge::of(board, now);
        let clock = board.clock(&group(), now);
        let state = board.records().group(&group());
        state.map_or(Ok(()), |state| counted::check_waits(state, &knowledge, clock))
    }

    /// "Open permits and their number belong to the group": the number is that of the permits.
    fn check_count(&self) -> Result<(), String> {
        let truth = self.store.truth();
        let (counted, stored) = (truth.count().open as usize, truth.open.len());
        if counted != stored {
            return Err(format!("{counted} permits are counted, and {stored} are stored"));
        }
        match truth.open.keys().find(|holder| truth.member(holder).is_none()) {
            Some(holder) => Err(format!("{holder} has left, and its permit has not")),
            None => Ok(()),
        }
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
        for (index, quarantined) in record.value.quarantine.iter().enumerate() {
            let mut others = record.value.quarantine.iter().skip(index + 1);
            if others.any(|other| other.revision == quarantined.revision) {
                return Err(format!("{} is in quarantine twice", quarantined.revision.short()));
            }
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

/// May a rollout that failed lead back by itself?
pub(super) fn may_go_back(rollout: &Rollout) -> bool {
    rollout.kind == Kind::Release
        && !rollout.is_proven
        && rollout.policy.on_failure == OnFailure::Rollback
}

/// How long a batch bakes: "a rollback has no bake".
pub(super) fn bake_time(rollout: &Rollout, batch: &Batch) -> Duration {
    Duration::from_secs(match rollout.kind {
        Kind::Rollback => 0,
        _ if batch.share_index == 0 => rollout.policy.bake_s.canary,
        _ => rollout.policy.bake_s.batch,
    })
}

/// A time of a rollout's clock.
pub(super) fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
