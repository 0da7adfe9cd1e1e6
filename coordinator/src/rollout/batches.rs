//! Who is in which batch.
//!
//! Batches are cumulative shares of the group as it is when a batch is offered; a batch is chosen by a
//! number made from instance and revision, so that it is not always the same ones who go first. The
//! next batch is offered while the one before it is open: its members prepare.
//!
//! PURE.

use std::collections::BTreeSet;
use std::time::Duration;

use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Instance;
use towline_protocol::policy::Share;
use towline_protocol::rollout::{Batch, Kind, Rollout};

use super::gate;
use crate::fleet::{self, Attendance};
use crate::records::GroupState;

/// How many members are named in a line.
const TOLD_MAX: usize = 5;

/// The batches of a rollout by their shares: the canary first, unless it is a rollback.
#[must_use]
pub fn shares(rollout: &Rollout) -> Vec<(String, Share)> {
    if rollout.kind == Kind::Rollback {
        return vec![("rollback".to_owned(), Share::Percent(100))];
    }
    let canary = ("canary".to_owned(), Share::Count(rollout.policy.canary));
    let name = |share: &Share| match share {
        Share::Percent(percent) => format!("{percent} %"),
        Share::Count(count) => format!("{count}"),
    };
    let rest = rollout.policy.batches.iter().map(|share| (name(share), *share));
    std::iter::once(canary).chain(rest).collect()
}

/// Whoever may take part: known, not gone, and chosen.
fn universe<'a>(
    state: &'a GroupState,
    rollout: &'a Rollout,
) -> impl Iterator<Item = &'a InstanceRecord> {
    state.members().filter(|record| {
        !rollout.without.contains(&record.instance)
            && rollout.only.as_ref().is_none_or(|only| only.has(&record.instance))
    })
}

/// Adds the next batch that has anybody in it, unless one is offered already. Returns whether it did.
pub fn offer(state: &GroupState, rollout: &mut Rollout, attendance: &Attendance) -> bool {
    if rollout.batches.iter().any(|batch| !batch.is_open()) {
        return false;
    }
    let first = rollout.batches.last().map_or(0, |batch| batch.share_index + 1);
    for (share_index, (name, share)) in (0..).zip(shares(rollout)).skip(first as usize) {
        let members = choose(state, rollout, share, attendance);
        if !members.is_empty() {
            rollout.batches.push(Batch {
                name,
                share_index,
                members,
                opened_ms: None,
                bakes_ms: None,
                is_promoted: false,
                passed_ms: None,
            });
            return true;
        }
    }
    false
}

/// Whoever is missing until the batches reach this share.
fn choose(
    state: &GroupState,
    rollout: &Rollout,
    share: Share,
    attendance: &Attendance,
) -> BTreeSet<Instance> {
    let live = universe(state, rollout).count();
    let taken = universe(state, rollout).filter(|record| is_placed(rollout, &record.instance));
    let wanted = share.reach(live).saturating_sub(taken.count());
    // The silent are named once others have gone before them: they are set aside when the batch opens.
    let is_last = share == Share::Percent(100) && !rollout.batches.is_empty();
    let is_first = rollout.kind == Kind::Rollback
        && universe(state, rollout).any(|record| !attendance.is_silent(&record.instance));
    let whom = if is_last || is_first { Whom::All } else { Whom::There };
    pick(state, rollout, wanted, whom, attendance)
}

fn is_placed(rollout: &Rollout, instance: &Instance) -> bool {
    rollout.aside.contains(instance)
        || rollout.batches.iter().any(|batch| batch.members.contains(instance))
}

/// Chooses so many: those who are there, and well, first.
///
/// Where as many are unavailable as may be, whoever is well would wait for those who are not, and they for
/// their batch: then those who are there and not well go first, because their swap costs nothing.
fn pick(
    state: &GroupState,
    rollout: &Rollout,
    wanted: usize,
    whom: Whom,
    attendance: &Attendance,
) -> BTreeSet<Instance> {
    let budget = fleet::budget(state, attendance);
    let is_spent = budget.used >= budget.max;
    let mut candidates: Vec<_> = universe(state, rollout)
        .filter(|record| {
            let instance = &record.instance;
            let is_here = attendance.of(instance).polls();
            match whom {
                Whom::All => !is_placed(rollout, instance),
                Whom::There => !is_placed(rollout, instance) && !attendance.is_silent(instance),
                Whom::Back => rollout.aside.contains(instance) && is_here,
            }
        })
        .map(|record| {
            // By what they serve, not by what they have heard: a plan is made before the target is.
            let report = record.report.as_ref();
            let serves = report.is_some_and(|report| fleet::serves(report, &rollout.target));
            let is_away = !attendance.of(&record.instance).polls();
            let place = place(&record.instance, rollout);
            ((is_away, fleet::is_healthy(record) == is_spent, serves, place), &record.instance)
        })
        .collect();
    candidates.sort();
    candidates.into_iter().take(wanted).map(|(_, instance)| instance.clone()).collect()
}

/// Among whom to choose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// All who are in no batch.
    All,
    /// Those of them who are not silent.
    There,
    /// Those who were set aside, and are back.
    Back,
}

/// Fills a batch in which nobody is left who could prove anything: with somebody new; with somebody who
/// was silent, and is back; with somebody who is only offered the target. Returns whether anybody was found.
pub fn refill(
    state: &GroupState,
    rollout: &mut Rollout,
    index: usize,
    attendance: &Attendance,
) -> bool {
    let wanted = rollout.batches[index].members.len().max(1);
    let mut picked = pick(state, rollout, wanted, Whom::There, attendance);
    if picked.is_empty() {
        picked = pick(state, rollout, wanted, Whom::Back, attendance);
        picked.retain(|instance| !rollout.failures.contains_key(instance));
        rollout.aside.retain(|instance| !picked.contains(instance));
    }
    if picked.is_empty() {
        let offered = rollout.batches.iter_mut().skip(index + 1).find(|batch| !batch.is_open());
        let is_here = |instance: &&Instance| {
            state.member(instance).is_some() && !attendance.is_silent(instance)
        };
        let Some(offered) = offered else { return false };
        picked = offered.members.iter().filter(is_here).take(wanted).cloned().collect();
        offered.members.retain(|instance| !picked.contains(instance));
        rollout.batches.retain(|batch| batch.is_open() || !batch.members.is_empty());
    }
    let is_found = !picked.is_empty();
    rollout.batches[index].members.extend(picked);
    is_found
}

/// A number from instance and revision (FNV-1a): the order in which instances of one state go.
fn place(instance: &Instance, rollout: &Rollout) -> u64 {
    let revision = rollout.revision().map_or("", |revision| revision.as_str());
    let bytes = revision.bytes().chain(instance.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |number: u64, byte| {
        (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A batch as it would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What it would be called.
    pub name: String,
    /// Who would be in it.
    pub members: BTreeSet<Instance>,
    /// How long it would bake.
    pub bake: Duration,
}

/// Returns the batches that a rollout has still to offer, with the members they would have if each were
/// opened now and passed: whoever is silent would be set aside, and is in none.
///
/// Of a rollout that is only proposed (see [`super::operations::propose`]) these are all. With `only`, what
/// comes after it is resumed is not among them.
#[must_use]
pub fn plan(state: &GroupState, rollout: &Rollout, attendance: &Attendance) -> Vec<Planned> {
    let mut next = rollout.clone();
    let mut planned = Vec::new();
    loop {
        for batch in &mut next.batches {
            batch.opened_ms.get_or_insert(0);
        }
        if !offer(state, &mut next, attendance) {
            return planned;
        }
        let index = next.batches.len() - 1;
        let members = next.batches[index].members.iter();
        let there: BTreeSet<Instance> =
            members.filter(|instance| !attendance.is_silent(instance)).cloned().collect();
        if !there.is_empty() {
            let name = next.batches[index].name.clone();
            planned.push(Planned { name, members: there, bake: gate::bake_time(&next, index) });
        }
    }
}

/// Names some members, and counts the others.
#[must_use]
pub fn told(members: &BTreeSet<Instance>) -> String {
    let named: Vec<&str> = members.iter().take(TOLD_MAX).map(Instance::as_str).collect();
    let others = members.len().saturating_sub(TOLD_MAX);
    let named = named.join(" ");
    if others == 0 { named } else { format!("{named} and {others} more") }
}
