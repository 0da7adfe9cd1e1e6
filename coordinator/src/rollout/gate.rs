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
    /// It was not heard of since this coordinator started.
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
    if let Some(failed) = rollout.failures.get(instance) {
        return if failed.is_excused { Standing::Excused } else { Standing::Failed };
    }
    let Some(record) = state.member(instance) else { return Standing::Gone };
    if failure(state, rollout, index, record, attendance, now).is_some() {
        return Standing::Failed;
    }
    let report = record.report.as_ref();
    let has_taken = report.is_some_and(|report| fleet::has_taken(report, &rollout.target));
    match attendance.of(instance) {
        Presence::Silent if has_taken || state.open.contains_key(instance) => {
            Standing::Silent(instance.clone())
        }
        Presence::Silent => Standing::Away(instance.clone()),
        Presence::Unheard => Standing::Unheard(instance.clone()),
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

/// The failure that it tells of, where it belongs to this rollout.
fn of_this<'a>(report: &'a Report, rollout: &Rollout) -> Option<&'a Failure> {
    report.failure.as_ref().filter(|failure| failure.order == Some(rollout.order()))
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
    let batch = &rollout.batches[index];
    let opened_ms = batch.opened_ms?;
    let deadline = |seconds: u64, from: u64| now.deadline_ms >= from.saturating_add(seconds * 1000);
    let own = record.report.as_ref().filter(|report| report.order == Some(rollout.order()));
    if let Some(report) = own {
        let after = of_this(report, rollout).filter(|failure| !failure.cause.is_before_swap());
        if after.is_some() || report.rejected {
            let detail = report.failure.as_ref().map(|failure| failure.detail.clone());
            return Some((detail.unwrap_or_else(|| "it was rejected".to_owned()), true));
        }
        let serves =
            fleet::serves(report, &rollout.target) && report.restart >= rollout.target.restart;
        let was_well =
            batch.bakes_ms.is_some() || (rollout.kind == Kind::Release && !rollout.is_proven);
        if serves
            && was_well
            && report.health == Health::Unhealthy
            && report.phase == Phase::Idle
            && !report.uses_permit
        {
            let trouble = report.degraded.clone().unwrap_or_else(|| "its probes fail".to_owned());
            return Some((format!("healthy, and then unhealthy: {trouble}"), true));
        }
    }
    let permit = state.open.get(&record.instance).map(|kept| &kept.value);
    let permit = permit.filter(|permit| permit.order == rollout.order());
    let healthy_s = rollout.policy.healthy_deadline_s;
    if let Some(given_ms) = permit.and_then(|permit| permit.given_ms)
        && deadline(healthy_s, given_ms)
    {
        let is_silent = attendance.is_silent(&record.instance);
        let what = if is_silent { "silent" } else { "not healthy" };
        let serves = own.is_some_and(|report| fleet::serves(report, &rollout.target));
        let detail = format!("{what}, {healthy_s} s after its permit");
        return Some((detail, !is_silent && serves));
    }
    let is_prepared = permit.is_some()
        || own.is_some_and(|report| {
            fleet::has_taken(report, &rollout.target) || is_prepared(report, rollout)
        });
    let prepare_s = rollout.policy.prepare_deadline_s;
    if !is_prepared
        && attendance.of(&record.instance) == Presence::Here
        && deadline(prepare_s, opened_ms)
    {
        let reason = whereabouts(record.report.as_ref(), rollout);
        return Some((format!("not prepared within {prepare_s} s: {reason}"), false));
    }
    None
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

/// Counts those of the open batch that have failed since; `None`: nobody has.
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
    for instance in &rollout.batches[index].members {
        if rollout.failures.contains_key(instance) {
            continue;
        }
        let Some(record) = state.member(instance) else { continue };
        if let Some((detail, is_revision)) = failure(state, rollout, index, record, attendance, now)
        {
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
        let is_undone = |standing: &Standing| matches!(standing, Standing::Pending(..));
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
    let last = counted().max_by_key(|(_, failed)| failed.at);
    let why = last.map(|(instance, f)| format!(": {instance}: {}", f.detail)).unwrap_or_default();
    Some(format!("{failed} failed, {tolerated} tolerated{why}"))
}

fn awaited(name: &str, standings: &[Standing], healthy: u32) -> String {
    let words = standings.iter().filter_map(|standing| match standing {
        Standing::Pending(instance, phase) => Some(format!("{instance} {phase}")),
        Standing::Unheard(instance) => Some(format!("{instance} has not polled yet")),
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
