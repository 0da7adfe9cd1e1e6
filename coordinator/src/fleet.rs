//! A group's instances, as they last told, and what that adds up to: who is there, who has taken the
//! target, how much of the group is unavailable.
//!
//! ```text
//!   last heard of ──► Presence ─┐
//!   last report   ──────────────┼──► has_taken, is_healthy ──► Budget, Status, Counts
//!   open permits  ──────────────┘
//! ```
//!
//! Invariants
//! - Silence is not health: what an instance told counts only while it is there.
//! - Not known is unavailable.
//!
//! PURE.

use std::collections::BTreeMap;

use towline_protocol::api::{Budget, Counts, Status};
use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Instance;
use towline_protocol::policy::Share;
use towline_protocol::report::{Health, Phase, Report};
use towline_protocol::rollout::Kind;
use towline_protocol::target::Target;

use crate::records::GroupState;

/// Is an instance there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It was heard of within its lease.
    Here,
    /// It polls, and has still to tell what has changed: nothing is known of how it is now.
    Untold,
    /// Not heard of since this coordinator started, or was deaf, and its lease is not over.
    Unheard,
    /// Its lease is over.
    Silent,
}

impl Presence {
    /// Does it poll?
    #[must_use]
    pub fn polls(self) -> bool {
        matches!(self, Presence::Here | Presence::Untold)
    }
}

/// Who of a group is there. Whoever is not named has not been heard of yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attendance(BTreeMap<Instance, Presence>);

impl Attendance {
    /// Notes that an instance is there, or is not.
    pub fn note(&mut self, instance: Instance, presence: Presence) {
        self.0.insert(instance, presence);
    }

    /// Is this instance there?
    #[must_use]
    pub fn of(&self, instance: &Instance) -> Presence {
        self.0.get(instance).copied().unwrap_or(Presence::Unheard)
    }

    /// Is its lease over?
    #[must_use]
    pub fn is_silent(&self, instance: &Instance) -> bool {
        self.of(instance) == Presence::Silent
    }
}

/// Has this instance taken the target: does it serve what the target asks for, healthy through its whole
/// health window, with nothing under way that might end that?
#[must_use]
pub fn has_taken(report: &Report, target: &Target) -> bool {
    // A question alone ends nothing: one for an order to this instance may be asked for hours.
    let is_under_way = report.uses_permit && report.phase != Phase::Asking;
    report.order == Some(target.order)
        && report.health == Health::Healthy
        && (report.proven || report.adopted)
        && !is_under_way
        && report.restart >= target.restart
        && serves(report, target)
}

/// Does it serve what the target asks for, well or not?
#[must_use]
pub fn serves(report: &Report, target: &Target) -> bool {
    match &target.revision {
        Some(revision) => {
            [&report.serving, &report.alike].into_iter().any(|held| held.as_ref() == Some(revision))
        }
        None => report.serving != target.not || report.adopted,
    }
}

/// Does it serve, as far as it told, well?
#[must_use]
pub fn is_healthy(record: &InstanceRecord) -> bool {
    record.report.as_ref().is_some_and(|report| report.health == Health::Healthy)
}

/// Does it take up some of the budget without a permit: is it silent, not healthy, or not known?
#[must_use]
pub fn is_unavailable(record: &InstanceRecord, attendance: &Attendance) -> bool {
    attendance.of(&record.instance) != Presence::Here || !is_healthy(record)
}

/// Returns who counts: everybody but those that the rollout goes on without.
pub fn counted(state: &GroupState) -> impl Iterator<Item = &InstanceRecord> {
    state.members().filter(|record| !state.without().contains(&record.instance))
}

/// Returns how much of the group may be unavailable, and how much is.
#[must_use]
pub fn budget(state: &GroupState, attendance: &Attendance) -> Budget {
    budget_but(state, attendance, None)
}

/// The same, with what all others than `but` take up of it.
pub(crate) fn budget_but(
    state: &GroupState,
    attendance: &Attendance,
    but: Option<&Instance>,
) -> Budget {
    let share = match (state.going(), &state.record) {
        (Some(rollout), _) if rollout.kind == Kind::Rollback => {
            rollout.policy.max_unavailable_rollback
        }
        (Some(rollout), _) => rollout.policy.max_unavailable,
        (None, Some(record)) => record.value.policy.max_unavailable,
        (None, None) => Share::Count(1),
    };
    // Whoever polls again counts at once, before the rollout is told.
    let is_out = |instance: &Instance| {
        state.without().contains(instance) && !attendance.of(instance).polls()
    };
    let live = state.members().filter(|record| !is_out(&record.instance)).count();
    let uses = |instance: &Instance| Some(instance) != but && !is_out(instance);
    let permits = state.open.keys().filter(|instance| uses(instance)).count();
    let without_permit = state
        .members()
        .filter(|record| uses(&record.instance) && !state.open.contains_key(&record.instance))
        .filter(|record| is_unavailable(record, attendance))
        .count();
    Budget {
        max: count(share.at_most(live)),
        used: count(permits + without_permit),
        permits: count(permits),
    }
}

/// Returns how an instance stands towards its group's target.
#[must_use]
pub fn status(record: &InstanceRecord, target: Option<&Target>, attendance: &Attendance) -> Status {
    if attendance.is_silent(&record.instance) {
        return Status::Silent;
    }
    let Some(report) = &record.report else { return Status::Unknown };
    match report.health {
        _ if report.phase == Phase::Starting => Status::Unknown,
        Health::Healthy if target.is_some_and(|target| has_taken(report, target)) => {
            Status::Converged
        }
        Health::Healthy if report.degraded.is_some() => Status::Degraded,
        Health::Healthy => Status::Stale,
        Health::Unhealthy => Status::Unhealthy,
        Health::Unknown if report.degraded.is_some() && report.serving.is_some() => {
            Status::Degraded
        }
        Health::Unknown => Status::Unknown,
    }
}

/// Returns how a group's instances stand.
#[must_use]
pub fn counts(state: &GroupState, attendance: &Attendance) -> Counts {
    let target = state.target.as_ref().map(|kept| &kept.value.target);
    let mut counts = Counts::default();
    for record in state.members() {
        counts.instances += 1;
        *match status(record, target, attendance) {
            Status::Converged => &mut counts.converged,
            Status::Stale => &mut counts.stale,
            Status::Degraded => &mut counts.degraded,
            Status::Unhealthy => &mut counts.unhealthy,
            Status::Unknown => &mut counts.unknown,
            Status::Silent => &mut counts.silent,
        } += 1;
    }
    counts
}

/// A number of instances, as views have it.
#[must_use]
pub fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
