//! The gate: may the rollout leave its open batch?
//!
//! ```text
//!   members, as they last told ──► Standing ──► verdict ─┬─► Bake, then Pass
//!                                     │                  ├─► Wait, until when and for whom
//!     failures, for good ◄────────────┘                  ├─► SetAside, Refill: the silent, the gone
//!                                                        └─► Fail
//! ```
//!
//! Invariants
//! - Silence never passes a gate, and neither does anybody who was not heard of since this coordinator
//!   started.
//! - What failed before the swap says nothing against the revision: an outage of the registry looks the
//!   same as a bad lock file.
//! - A batch passes only with somebody healthy in it.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Instance;
use towline_protocol::report::{Failure, Health, Phase, Report};
use towline_protocol::rollout::{Batch, Failed, Kind, Rollout};

use super::Now;
use super::batches::told;
use crate::fleet::{self, Attendance, Presence};
use crate::records::GroupState;

/// How many of those who are waited for are named.
const NAMED_MAX: usize = 3;

/// What the gate takes a member for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It serves the target, healthy.
    Healthy,
    /// It is on its way; where, in a word.
    Pending(Instance, String),
    /// It was not heard of since this coordinator started, or has still to tell how it is.
    Unheard(Instance),
    /// It is silent, and holds no permit and has not taken the target.
    Away(Instance),
    /// It is silent, and has a permit or the target.
    Silent(Instance),
    /// It has failed, and counts.
    Failed,
    /// It has failed, and an operator has resumed the rollout since.
    Excused,
    /// It has left.
    Gone,
}

impl Standing {
    /// Is nothing more waited for from it?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self, Standing::Healthy | Standing::Failed | Standing::Excused | Standing::Gone)
    }
}

/// What the gate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The batch may be left.
    Pass,
    /// All of it is healthy: its bake time begins.
    Bake,
    /// It is no longer all healthy: its bake time will begin anew.
    Unbake,
    /// These are silent, and are set aside.
    SetAside(Vec<Instance>),
    /// Nobody is left who could prove anything.
    Refill,
    /// Look again on the next change, or after this much time.
    Wait {
        /// When to look again at the latest.
        within: Option<Duration>,
        /// What is waited for.
        reason: String,
    },
    /// Too many have failed.
    Fail(String),
}

/// How long a batch must stay healthy.
#[must_use]
pub fn bake_time(rollout: &Rollout, index: usize) -> Duration {
    let bake = &rollout.policy.bake_s;
    match rollout.batches.get(index) {
        _ if rollout.kind == Kind::Rollback => Duration::ZERO,
        Some(batch) if batch.share_index == 0 => Duration::from_secs(bake.canary),
        _ => Duration::from_secs(bake.batch),
    }
}

/// How many failures a batch tolerates.
fn failures_max(rollout: &Rollout, batch: &Batch) -> u32 {
    let max = &rollout.policy.failures_max;
    if batch.share_index == 0 && rollout.kind != Kind::Rollback { max.canary } else { max.batch }
}

/// Returns what each member of a batch is taken for.
#[must_use]
pub fn standings(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    attendance: &Attendance,
    now: Now,
) -> Vec<Standing> {
    let members = rollout.batches[index].members.iter();
    members.map(|instance| standing(state, rollout, index, instance, attendance, now)).collect()
}

/// Returns what a member of a batch is taken for.
#[must_use]
pub fn standing(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    instance: &Instance,
    attendance: &Attendance,
    now: Now,
) -> Standing {
    let failed = rollout.failures.get(instance);
    if failed.is_some_and(|failed| !failed.is_excused) {
        return Standing::Failed;
    }
    let Some(record) = state.member(instance) else { return Standing::Gone };
    let report = record.report.as_ref();
    let has_taken = report.is_some_and(|report| fleet::has_taken(report, &rollout.target));
    if failed.is_some() {
        // Nothing is waited for from it, and it counts again if it gets there after all.
        let is_here = attendance.of(instance) == Presence::Here;
        return if has_taken && is_here { Standing::Healthy } else { Standing::Excused };
    }
    if failure(state, rollout, index, record, attendance, now).is_some() {
        return Standing::Failed;
    }
    // A permit for an earlier target says that it was lost before this batch opened.
    let permit = state.open.get(instance);
    let is_under_way = permit.is_some_and(|kept| kept.value.order == rollout.order());
    match attendance.of(instance) {
        Presence::Silent if has_taken || is_under_way => Standing::Silent(instance.clone()),
        Presence::Silent => Standing::Away(instance.clone()),
        Presence::Untold | Presence::Unheard => Standing::Unheard(instance.clone()),
        Presence::Here if has_taken => Standing::Healthy,
        Presence::Here => Standing::Pending(instance.clone(), whereabouts(report, rollout)),
    }
}

/// Where an instance is on its way, in a word or two.
fn whereabouts(report: Option<&Report>, rollout: &Rollout) -> String {
    let Some(report) = report else { return "has not reported".to_owned() };
    if report.order != Some(rollout.order()) {
        return "has not heard of it".to_owned();
    }
    if let Some(failure) = of_this(report, rollout) {
        let detail = failure.detail.lines().next().unwrap_or_default();
        return format!("attempt {}: {detail}", failure.attempt);
    }
    match report.phase {
        Phase::Starting => "starts",
        Phase::Preparing => "prepares",
        Phase::Waiting | Phase::Asking => "waits for its permit",
        Phase::Activating => "activates",
        Phase::Proving => "proves",
        Phase::Probing => "probes",
        Phase::Restoring => "restores",
        Phase::Idle if report.health == Health::Unhealthy => "is unhealthy",
        Phase::Idle => "is idle",
    }
    .to_owned()
}

/// The failure that it tells of, where it belongs to this rollout: what fails on a lower rung of a boot's
/// ladder fails for the same target, and says nothing about its revision.
fn of_this<'a>(report: &'a Report, rollout: &Rollout) -> Option<&'a Failure> {
    report.failure.as_ref().filter(|failure| {
        failure.order == Some(rollout.order())
            && rollout.revision().is_none_or(|revision| *revision == failure.revision)
    })
}

/// Has it failed, and does that say something against the revision?
fn failure(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    record: &InstanceRecord,
    attendance: &Attendance,
    now: Now,
) -> Option<(String, bool)> {
    let bakes = rollout.batches[index].bakes_ms.is_some();
    if let Some(shown) = shown(rollout, record, bakes) {
        return Some(shown);
    }
    let due = due(state, rollout, index, record, attendance)?;
    if now.deadline_ms < due.at_ms {
        return None;
    }
    if due.is_prepare {
        let reason = whereabouts(record.report.as_ref(), rollout);
        let prepare_s = rollout.policy.prepare_deadline_s;
        return Some((format!("not prepared within {prepare_s} s: {reason}"), false));
    }
    let is_silent = attendance.is_silent(&record.instance);
    let what = if is_silent { "silent" } else { "not healthy" };
    let serves = own(record, rollout).is_some_and(|report| fleet::serves(report, &rollout.target));
    let healthy_s = rollout.policy.healthy_deadline_s;
    Some((format!("{what}, {healthy_s} s after its permit"), !is_silent && serves))
}

/// What it told last, where it has heard of this rollout.
fn own<'a>(record: &'a InstanceRecord, rollout: &Rollout) -> Option<&'a Report> {
    record.report.as_ref().filter(|report| report.order == Some(rollout.order()))
}

/// Has it told of a failure that says something against the revision? `bakes`: its batch has been healthy.
fn shown(rollout: &Rollout, record: &InstanceRecord, bakes: bool) -> Option<(String, bool)> {
    if let Some(report) = own(record, rollout) {
        let after = of_this(report, rollout).filter(|failure| !failure.cause.is_before_swap());
        if after.is_some() || report.rejected {
            let detail = report.failure.as_ref().map(|failure| failure.detail.clone());
            return Some((detail.unwrap_or_else(|| "it was rejected".to_owned()), true));
        }
        let serves =
            fleet::serves(report, &rollout.target) && report.restart >= rollout.target.restart;
        let was_well = bakes || (rollout.kind == Kind::Release && !rollout.is_proven);
        // A question alone ends nothing: what was well bakes, and is not, whatever it asks for.
        let is_at_rest = match report.phase {
            Phase::Idle => !report.uses_permit,
            Phase::Asking => bakes,
            _ => false,
        };
        if serves && was_well && report.health == Health::Unhealthy && is_at_rest {
            let trouble = report.degraded.clone().unwrap_or_else(|| "its probes fail".to_owned());
            return Some((format!("healthy, and then unhealthy: {trouble}"), true));
        }
    }
    None
}

/// By when an instance must have done what.
struct Due {
    /// On the clock of deadlines.
    at_ms: u64,
    /// Have prepared; else, be healthy.
    is_prepare: bool,
}

/// What a member of a batch must have done next, and by when; `None`: nothing that has a time.
fn due(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    record: &InstanceRecord,
    attendance: &Attendance,
) -> Option<Due> {
    let presence = attendance.of(&record.instance);
    let after = |from: u64, seconds: u64| from.saturating_add(seconds.saturating_mul(1000));
    let permit = state.open.get(&record.instance).map(|kept| &kept.value);
    if let Some(permit) = permit.filter(|permit| permit.order == rollout.order()) {
        // Whoever has still to tell how it is is about to.
        let is_known = matches!(presence, Presence::Here | Presence::Silent);
        let given_ms = permit.given_ms.filter(|_| is_known)?;
        // One that was given for an ordered restart may be older than its batch.
        let from_ms =
            rollout.batches[index].opened_ms.map_or(given_ms, |opened| opened.max(given_ms));
        let at_ms = after(from_ms, rollout.policy.healthy_deadline_s);
        return Some(Due { at_ms, is_prepare: false });
    }
    let is_ready = own(record, rollout).is_some_and(|report| {
        // What it serves under another name need not be prepared, also while nobody knows how it is.
        let is_there = fleet::serves(report, &rollout.target);
        (is_there && report.restart >= rollout.target.restart) || is_prepared(report, rollout)
    });
    if is_ready || presence != Presence::Here {
        return None;
    }
    let at_ms = after(rollout.batches[index].opened_ms?, rollout.policy.prepare_deadline_s);
    Some(Due { at_ms, is_prepare: true })
}

/// How long until a member of the open batch that nothing has been counted of yet must have done something.
#[must_use]
pub fn next_due(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    attendance: &Attendance,
    now: Now,
) -> Option<Duration> {
    let uncounted = |instance: &&Instance| !rollout.failures.contains_key(instance);
    let members = rollout.batches[index].members.iter().filter(uncounted);
    let records = members.filter_map(|instance| state.member(instance));
    let dues = records.filter_map(|record| due(state, rollout, index, record, attendance));
    let left = dues.map(|due| due.at_ms.saturating_sub(now.deadline_ms)).filter(|left| *left > 0);
    left.min().map(Duration::from_millis)
}

/// Does a member of the open batch hold a permit whose deadline is still ahead?
#[must_use]
pub fn is_swapping(
    state: &GroupState,
    rollout: &Rollout,
    index: usize,
    attendance: &Attendance,
    now: Now,
) -> bool {
    let members = rollout.batches[index].members.iter();
    let records = members.filter_map(|instance| state.member(instance));
    let mut dues = records.filter_map(|record| due(state, rollout, index, record, attendance));
    dues.any(|due| !due.is_prepare && due.at_ms > now.deadline_ms)
}

/// Has it made the release ready, so that only leave to swap is missing?
fn is_prepared(report: &Report, rollout: &Rollout) -> bool {
    // It looks at what serves from time to time while it waits; its phase tells of that then.
    report.prepared
        || match report.phase {
            Phase::Starting | Phase::Preparing | Phase::Idle => report.uses_permit,
            Phase::Waiting => of_this(report, rollout).is_none(),
            Phase::Asking
            | Phase::Activating
            | Phase::Proving
            | Phase::Probing
            | Phase::Restoring => true,
        }
}

/// Counts those of the open batch that have failed since, and those that were set aside, came back and
/// failed; `None`: nobody has.
#[must_use]
pub fn count_failures(
    state: &GroupState,
    rollout: &Rollout,
    attendance: &Attendance,
    now: Now,
) -> Option<Rollout> {
    let is_open = |batch: &Batch| batch.is_open() && batch.passed_ms.is_none();
    let index = rollout.batches.iter().position(is_open)?;
    let mut next: Option<Rollout> = None;
    let members = &rollout.batches[index].members;
    for instance in members.iter().chain(&rollout.aside) {
        if rollout.failures.contains_key(instance) {
            continue;
        }
        let Some(record) = state.member(instance) else { continue };
        let failed = if members.contains(instance) {
            failure(state, rollout, index, record, attendance, now)
        } else {
            shown(rollout, record, false)
        };
        if let Some((detail, is_revision)) = failed {
            let next = next.get_or_insert_with(|| rollout.clone());
            next.note(now.at, format!("{instance} failed: {detail}"));
            let failed = Failed {
                batch_index: u32::try_from(index).unwrap_or(u32::MAX),
                at: now.at,
                detail,
                is_revision,
                is_excused: false,
            };
            next.failures.insert(instance.clone(), failed);
            next.progressed_ms = now.deadline_ms;
        }
    }
    next
}

/// Returns how many are healthy.
#[must_use]
pub fn healthy(standings: &[Standing]) -> u32 {
    let healthy = standings.iter().filter(|standing| **standing == Standing::Healthy);
    fleet::count(healthy.count())
}

/// Returns how far a batch has come: of how many members nothing more is waited for.
#[must_use]
pub fn settled(standings: &[Standing]) -> u32 {
    fleet::count(standings.iter().filter(|standing| standing.is_settled()).count())
}

/// Returns what a failure says against the revision, if any does.
#[must_use]
pub fn against_revision(rollout: &Rollout) -> Option<String> {
    let mut counted = rollout.failures.iter().filter(|(_, failed)| !failed.is_excused);
    let (instance, failed) = counted.find(|(_, failed)| failed.is_revision)?;
    Some(format!("{instance}: {}", failed.detail))
}

/// Decides whether the open batch may be left.
#[must_use]
pub fn verdict(rollout: &Rollout, index: usize, standings: &[Standing], now: Now) -> Verdict {
    let batch = &rollout.batches[index];
    if let Some(reason) = too_many(rollout, index) {
        return Verdict::Fail(reason);
    }
    let away: Vec<Instance> = standings
        .iter()
        .filter_map(|standing| match standing {
            Standing::Away(instance) => Some(instance.clone()),
            _ => None,
        })
        .collect();
    if !away.is_empty() {
        return Verdict::SetAside(away);
    }
    let healthy = healthy(standings);
    let is_settled = standings.iter().all(Standing::is_settled);
    if is_settled && healthy == 0 {
        return Verdict::Refill;
    }
    if !is_settled {
        // Not so for whoever was not heard of: while no coordinator is there, the bake time stands still.
        let is_undone =
            |standing: &Standing| matches!(standing, Standing::Pending(..) | Standing::Silent(_));
        if batch.bakes_ms.is_some() && standings.iter().any(is_undone) {
            return Verdict::Unbake;
        }
        return Verdict::Wait { within: None, reason: awaited(&batch.name, standings, healthy) };
    }
    let Some(bakes_ms) = batch.bakes_ms else { return Verdict::Bake };
    let baked = Duration::from_millis(now.bake_ms.saturating_sub(bakes_ms));
    let left = bake_time(rollout, index).saturating_sub(baked);
    if left.is_zero() || batch.is_promoted {
        return Verdict::Pass;
    }
    let reason = format!("{} bakes for another {} s", batch.name, left.as_secs().max(1));
    Verdict::Wait { within: Some(left), reason }
}

/// Have more failed than are tolerated?
fn too_many(rollout: &Rollout, index: usize) -> Option<String> {
    let batch = &rollout.batches[index];
    let counted = || rollout.failures.iter().filter(|(_, failed)| !failed.is_excused);
    let own = fleet::count(counted().filter(|(_, f)| f.batch_index as usize == index).count());
    let all = fleet::count(counted().count());
    let (own_max, all_max) = (failures_max(rollout, batch), rollout.policy.failures_max.rollout);
    let (failed, tolerated) = match () {
        () if own > own_max => (own, own_max),
        () if all > all_max => (all, all_max),
        () => return None,
    };
    let why = last_failure(rollout).unwrap_or_default();
    Some(format!("{failed} failed, {tolerated} tolerated{why}"))
}

/// Who failed last, and why, as the end of a sentence.
pub(super) fn last_failure(rollout: &Rollout) -> Option<String> {
    let counted = rollout.failures.iter().filter(|(_, failed)| !failed.is_excused);
    let (instance, failed) = counted.max_by_key(|(_, failed)| failed.at)?;
    Some(format!(": {instance}: {}", failed.detail))
}

fn awaited(name: &str, standings: &[Standing], healthy: u32) -> String {
    let words = standings.iter().filter_map(|standing| match standing {
        Standing::Pending(instance, phase) => Some(format!("{instance} {phase}")),
        Standing::Unheard(instance) => Some(format!("{instance} has still to tell how it is")),
        Standing::Silent(instance) => Some(format!("{instance} is silent")),
        _ => None,
    });
    let all: Vec<String> = words.collect();
    let named = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let others = all.len().saturating_sub(NAMED_MAX);
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    format!("{name}: {healthy} of {} healthy; {named}{others}", standings.len())
}

/// Have all batches passed that it has so far?
#[must_use]
pub fn is_done(rollout: &Rollout) -> bool {
    !rollout.batches.is_empty() && rollout.batches.iter().all(|batch| batch.passed_ms.is_some())
}

/// Do the instances that the rollout has not touched fail as well, so that it may not be its fault?
#[must_use]
pub fn is_shared(state: &GroupState, rollout: &Rollout, attendance: &Attendance) -> Option<String> {
    let is_touched = |instance: &Instance| {
        rollout.batches.iter().any(|batch| batch.is_open() && batch.members.contains(instance))
    };
    let untouched: Vec<&InstanceRecord> = state
        .members()
        .filter(|record| attendance.of(&record.instance) == Presence::Here)
        .filter(|record| !is_touched(&record.instance) && record.report.is_some())
        .collect();
    let is_bad = |record: &&&InstanceRecord| {
        record.report.as_ref().is_some_and(|report| report.health == Health::Unhealthy)
    };
    let bad = untouched.iter().filter(is_bad).count();
    (bad * 2 > untouched.len()).then(|| {
        let named = untouched.iter().filter(is_bad).map(|record| record.instance.clone()).collect();
        format!(
            "{bad} of {} untouched instances are unhealthy too: {}",
            untouched.len(),
            told(&named)
        )
    })
}
