//! What must hold of what instances are told: by the table of duties, and by the sentences on boots.

use towline_coordinator::records::GroupState;
use towline_coordinator::rollout::words;
use towline_protocol::ids::{Instance, Revision};
use towline_protocol::poll::{Duty, PROBE_EVERY_BAKING_S, PROBE_EVERY_S};
use towline_protocol::rollout::{Batch, Kind, Rollout, State};

use super::super::{World, group};

/// Where an instance stands in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Out,
    Open,
    Offered,
    Aside,
    None,
}

impl World {
    /// What each instance is told is what it ought to be, as the coordinator has its records.
    pub(in super::super) fn check_words(&self, at: usize) -> Result<(), String> {
        let Some(board) = &self.coordinators[at].board else { return Ok(()) };
        let Some(state) = board.records().group(&group()) else { return Ok(()) };
        for record in state.members() {
            let name = &record.instance;
            let word = words::word(state, name, 7);
            let duty = duty(state, name);
            if word.duty != duty {
                return Err(format!("{name} is told to {:?}, not to {duty:?}", word.duty));
            }
            let done = record.report.as_ref().map_or(0, |report| report.orders.restart);
            let may_ask = duty == Duty::Take || record.orders.restart > done;
            if (word.ask != 0) != may_ask {
                return Err(format!("{name} is told to {duty:?}, and to ask again: {}", word.ask));
            }
            if word.orders != record.orders {
                return Err(format!("{name} is told {:?} of {:?}", word.orders, record.orders));
            }
            let boot = boot(state, name);
            if word.boot != boot {
                return Err(format!("{name} is told to boot {:?}, not {boot:?}", word.boot));
            }
            // "Every 5 s while its batch bakes."
            let is_watched = state.going().is_some_and(|rollout| {
                let open = rollout.batches.iter().find(|batch| batch.members.contains(name));
                open.is_some_and(|batch| batch.is_open() && batch.passed_ms.is_none())
            });
            let pace = if is_watched { PROBE_EVERY_BAKING_S } else { PROBE_EVERY_S };
            if word.probe_every_s != pace {
                return Err(format!("{name} looks every {} s", word.probe_every_s));
            }
        }
        Ok(())
    }

    /// What an agent is told goes by its batch: to take the target only where that is open to it, to boot
    /// an unproven one only where it may take it, if there is a fallback.
    pub(in super::super) fn check_word(
        &self,
        index: usize,
        word: &towline_protocol::poll::Word,
    ) -> Result<(), String> {
        let (truth, name) = (self.store.truth(), &self.hosts[index].name);
        let Some(target) = &word.target else { return Ok(()) };
        let Some(rollout) = truth.going().filter(|rollout| rollout.order() == target.order) else {
            return Ok(());
        };
        let open = || rollout.batches.iter().filter(|batch| batch.is_open());
        let is_way_back = rollout.kind == towline_protocol::rollout::Kind::Rollback;
        let is_open = rollout.aside.contains(name)
            || open().any(|batch: &Batch| batch.members.contains(name))
            || (is_way_back && open().next().is_some());
        if word.duty == towline_protocol::poll::Duty::Take && !is_open {
            return Err(format!("{name} is told to take {target:?}: its batch is not open"));
        }
        let is_new = word.boot.is_some() && word.boot == target.revision && !rollout.is_proven;
        if is_new && target.fallback.is_some() && !is_open {
            return Err(format!("{name} is told to boot {target:?}, which nobody has proven"));
        }
        // Newborns that fail on the fallback as well boot another one.
        let unbootable = truth.record.as_ref().and_then(|kept| kept.value.unbootable.as_ref());
        let is_spare = word.boot.is_none()
            || word.boot == target.fallback
            || unbootable == target.fallback.as_ref();
        if !rollout.is_proven && target.fallback.is_some() && !is_new && !is_spare {
            return Err(format!("{name} is told to boot {:?}", word.boot));
        }
        Ok(())
    }
}

fn place(rollout: &Rollout, name: &Instance) -> Place {
    let batch = rollout.batches.iter().find(|batch| batch.members.contains(name));
    match batch {
        _ if rollout.without.contains(name) => Place::Out,
        Some(batch) if batch.is_open() => Place::Open,
        Some(_) => Place::Offered,
        None if rollout.aside.contains(name) => Place::Aside,
        None => Place::None,
    }
}

/// What an instance that serves is to do.
fn duty(state: &GroupState, name: &Instance) -> Duty {
    let Some(rollout) = state.going() else { return Duty::Take };
    let has_passed = rollout.batches.iter().any(|batch| batch.passed_ms.is_some());
    // "A rollback is one batch": open to whoever is there.
    let leads_back = rollout.kind == Kind::Rollback && rollout.batches.iter().any(Batch::is_open);
    let may = if rollout.state == State::Running { Duty::Take } else { Duty::Prepare };
    match place(rollout, name) {
        Place::Out => Duty::Hold,
        Place::Open => may,
        Place::Offered => Duty::Prepare,
        // Taken up when it comes back, once somebody has shown that it is good.
        Place::Aside if has_passed || leads_back => may,
        Place::Aside => Duty::Prepare,
        Place::None if leads_back => may,
        Place::None => Duty::Hold,
    }
}

/// What an instance on which nothing runs is to boot.
fn boot(state: &GroupState, name: &Instance) -> Option<Revision> {
    let target = state.target.as_ref().map(|kept| &kept.value.target)?;
    let record = state.record.as_ref().map(|kept| &kept.value)?;
    // "Naming no revision": newborns take what is baked.
    let revision = target.revision.as_ref()?;
    let unbootable = record.unbootable.as_ref();
    let spare = || match &target.fallback {
        Some(fallback) if unbootable == Some(fallback) => {
            let is_good = |proven: &&Revision| {
                *proven != fallback && *proven != revision && !record.is_quarantined(proven)
            };
            Some(record.proven.iter().rev().find(is_good).unwrap_or(fallback).clone())
        }
        fallback => fallback.clone(),
    };
    // "After K within a window newborns are moved to the fallback."
    if unbootable == Some(revision) && target.fallback.is_some() {
        return spare();
    }
    // "No rollout running, or one to a group-proven revision: its target."
    if state.going().is_none_or(|rollout| rollout.is_proven) {
        return Some(revision.clone());
    }
    let report = state.member(name).and_then(|record| record.report.as_ref());
    let is_newborn = report.is_some_and(|report| report.newborn);
    if is_newborn && duty(state, name) == Duty::Take {
        return Some(revision.clone());
    }
    if target.fallback.is_some() {
        return spare();
    }
    // "The group otherwise empty: the target, as the canary."
    (state.members().count() == 1).then(|| revision.clone())
}
