//! What operators may do, and what the gate does in their place: each writes the next records, or says why
//! not.
//!
//! ```text
//!   release ──► the next generation, and its rollout
//!   rollback, abort ──► the next generation, naming an older revision, or what must not serve
//!   restart ──► the next generation, the same revision, a higher counter
//!   pause, resume, promote ──► the rollout's record
//! ```
//!
//! Nothing ever goes back: each change of a target is the next generation. Whatever is decided is
//! compared with the target and the rollout that it was decided on.
//!
//! PURE.

use std::collections::BTreeSet;

use towline_protocol::api::{Code, ErrorBody, ReleaseRequest};
use towline_protocol::fleet::{GroupRecord, QUARANTINE_MAX, Quarantined, TargetRecord};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::rollout::{Kind, Rollout, State, VERSION};
use towline_protocol::target::{self, Target};
use towline_protocol::time::Timestamp;

use super::Decision;
use crate::fleet::Attendance;
use crate::records::{Draft, GroupState, Kept, key};

mod back;
mod counts;
mod groups;
mod steer;

pub use back::{abort, goes_back_to, rollback};
pub use counts::reached;
pub use groups::{
    PAST_KEPT, Removal, ToInstance, lift, order, outdated, remove_group, set_group,
    unknown_instance,
};
pub use steer::{pause, promote, resume};

use back::away;
use counts::restarts;

/// Who does something, when, and in which life of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// The store's epoch.
    pub epoch: u64,
    /// Why, as the operator said.
    pub reason: Option<String>,
}

impl Act {
    fn because(&self, what: &str) -> String {
        match &self.reason {
            Some(reason) => format!("{what} by {}: {reason}", self.by),
            None => format!("{what} by {}", self.by),
        }
    }
}

/// Returns a refusal for how things stand.
#[must_use]
pub fn conflict(message: String, hint: impl Into<Option<String>>) -> ErrorBody {
    ErrorBody { code: Code::Conflict, message, hint: hint.into(), field: None }
}

/// A target to be written, and what kind of rollout takes the group there.
struct Next {
    kind: Kind,
    revision: Option<Revision>,
    not: Option<Revision>,
    fallback: Option<Revision>,
    /// What a way back leaves.
    left: Option<Revision>,
    restart: u64,
    note: String,
    only: Option<towline_protocol::rollout::Selector>,
    without: BTreeSet<Instance>,
}

/// Writes the next generation of a group's target, and its rollout.
fn begin(state: &GroupState, record: &Kept<GroupRecord>, next: Next, act: &Act, draft: &mut Draft) {
    let group = &state.group;
    let note = next.note.clone();
    let rollout = compose(state, &record.value, next, act);
    let target =
        TargetRecord { target: rollout.target.clone(), at: act.at, by: act.by.clone(), note };
    // The group as well: its policy, its quarantine, and that it still exists.
    draft.on(key::group(group), state.record.as_ref());
    draft.on(key::target(group), state.target.as_ref());
    draft.on(key::rollout(group), state.rollout.as_ref());
    draft.put(key::target(group), &target);
    draft.put(key::rollout(group), &rollout);
    draft.delete(key::clock(group));
}

/// The rollout to the next generation.
fn compose(state: &GroupState, record: &GroupRecord, next: Next, act: &Act) -> Rollout {
    let last = state.reached();
    // An operator raises the epoch after a restore. Generations go on all the same: past rollouts are kept
    // by them, and no two of one store have the same.
    let order =
        Order { epoch: act.epoch.max(last.epoch), generation: last.generation.saturating_add(1) };
    let target = Target {
        version: target::VERSION,
        group: state.group.clone(),
        order,
        revision: next.revision.clone(),
        not: next.not,
        fallback: next.fallback,
        quarantine: record.quarantine_told(),
        restart: next.restart,
    };
    let is_proven = match &next.revision {
        Some(revision) => record.is_proven(revision),
        // The way back has no newer way back.
        None => true,
    };
    let mut rollout = Rollout {
        version: VERSION,
        target,
        kind: next.kind,
        is_proven,
        policy: record.policy.clone(),
        by: act.by.clone(),
        began: act.at,
        ended: None,
        state: State::Running,
        reason: "it begins".to_owned(),
        only: next.only,
        without: next.without,
        batches: Vec::new(),
        failures: std::collections::BTreeMap::new(),
        culprit: None,
        aside: BTreeSet::new(),
        progressed_ms: 0,
        taken: 0,
        reached: None,
        left: next.left,
        decisions: Vec::new(),
    };
    rollout.note(act.at, act.because(&format!("{} begun", next.note)));
    rollout
}

/// Keeps a rollout that has ended.
fn archive(state: &GroupState, rollout: &Rollout, draft: &mut Draft) {
    let mut kept = rollout.clone();
    if kept.state == State::Aborted {
        // Whoever has served it is about to tell of something else.
        kept.reached = Some(reached(state, rollout));
    }
    draft.put(key::past(&state.group, rollout.order().generation), &kept);
}

fn exists(state: &GroupState) -> Result<&Kept<GroupRecord>, ErrorBody> {
    state.record.as_ref().ok_or_else(|| unknown_group(&state.group))
}

/// Returns the refusal for a group that does not exist.
#[must_use]
pub fn unknown_group(group: &towline_protocol::ids::Group) -> ErrorBody {
    ErrorBody {
        code: Code::NotFound,
        message: format!("there is no group {group}"),
        hint: Some("`towline group list` names those that there are".to_owned()),
        field: None,
    }
}

/// Returns the rollout that goes on, or why there is none.
fn going<'a>(state: &'a GroupState, what: &str) -> Result<&'a Rollout, ErrorBody> {
    exists(state)?;
    state.going().ok_or_else(|| {
        let message = format!("could not {what}: no rollout of {} goes on", state.group);
        conflict(message, format!("`towline skew {}` says what it runs", state.group))
    })
}

/// Takes a group to a revision.
///
/// # Errors
///
/// A revision in quarantine, a rollout that goes on, or nothing to change.
pub fn release(
    state: &GroupState,
    attendance: &Attendance,
    request: &ReleaseRequest,
    act: &Act,
) -> Result<Draft, ErrorBody> {
    let mut draft = Draft::new();
    let (record, next) = aim(state, attendance, request, act, &mut draft)?;
    begin(state, &record, next, act, &mut draft);
    Ok(draft)
}

/// Returns the rollout that a release would begin, and stores nothing: what a plan is made of.
///
/// # Errors
///
/// As for [`release`].
pub fn propose(
    state: &GroupState,
    attendance: &Attendance,
    request: &ReleaseRequest,
    act: &Act,
) -> Result<Rollout, ErrorBody> {
    let (record, next) = aim(state, attendance, request, act, &mut Draft::new())?;
    Ok(compose(state, &record.value, next, act))
}

/// What a release leads to, and the group as it is then. `draft`: what else changes.
fn aim(
    state: &GroupState,
    attendance: &Attendance,
    request: &ReleaseRequest,
    act: &Act,
    draft: &mut Draft,
) -> Result<(Kept<GroupRecord>, Next), ErrorBody> {
    let record = exists(state)?;
    let (group, revision) = (&state.group, &request.revision);
    if let Some(quarantined) =
        record.value.quarantine.iter().find(|quarantined| quarantined.revision == *revision)
    {
        let message = format!(
            "could not release {}: it is in quarantine: {}",
            revision.short(),
            quarantined.reason
        );
        let hint = format!(
            "release the commit that mends it; or `towline quarantine lift {group} {}`",
            revision.short()
        );
        return Err(conflict(message, hint));
    }
    if let Some(oldest) = record.value.quarantine.first()
        && record.value.quarantine.len() >= QUARANTINE_MAX
    {
        // Should it fail, there must be room for it. Nothing is lifted unasked: it could be released again.
        let message = format!(
            "could not release {}: the quarantine of {group} is full, with {QUARANTINE_MAX} commits",
            revision.short()
        );
        let hint = format!(
            "`towline quarantine lift {group} {}` lifts the oldest",
            oldest.revision.short()
        );
        return Err(conflict(message, hint));
    }
    let mut judged = record.clone();
    if let Some(rollout) = state.going() {
        if rollout.state != State::Halted {
            let to = rollout.revision().map_or("what was before", Revision::short);
            let message = format!(
                "could not release {}: the rollout of {group} to {to} (generation {}) is {}",
                revision.short(),
                rollout.order().generation,
                rollout.state.as_str()
            );
            let hint = format!(
                "`towline rollout watch {group}` until it ends, or `towline rollout abort {group}`"
            );
            return Err(conflict(message, hint));
        }
        if rollout.revision() != Some(revision) {
            judged = judge(state, record, rollout, act, draft);
        }
        let mut ended = rollout.clone();
        ended.state = State::Replaced;
        ended.ended = Some(act.at);
        ended.note(act.at, act.because(&format!("replaced by a release of {}", revision.short())));
        archive(state, &ended, draft);
    } else if state
        .target
        .as_ref()
        .is_some_and(|kept| kept.value.target.revision.as_ref() == Some(revision))
    {
        let message = format!("{} is the target of {group} already", revision.short());
        let hint = format!("`towline restart {group}` starts the app anew");
        return Err(conflict(message, hint));
    }
    choose(state, attendance, request)?;
    let out = state.without().iter().filter(|instance| !attendance.of(instance).polls());
    let next = Next {
        kind: Kind::Release,
        revision: Some(revision.clone()),
        not: None,
        fallback: judged.value.fallback(Some(revision)).cloned(),
        left: None,
        restart: restart_of(state),
        note: "release".to_owned(),
        only: request.only.clone(),
        without: request.without.iter().chain(out).cloned().collect(),
    };
    Ok((judged, next))
}

/// Checks whom a release takes part with.
fn choose(
    state: &GroupState,
    attendance: &Attendance,
    request: &ReleaseRequest,
) -> Result<(), ErrorBody> {
    let wrong = |field: &str, message: String, hint: String| {
        let (hint, field) = (Some(hint), Some(field.to_owned()));
        Err(ErrorBody { code: Code::Invalid, message, hint, field })
    };
    for instance in &request.without {
        let polls = attendance.of(instance).polls();
        if state.member(instance).is_none() || polls {
            let what = if polls { "polls" } else { "is not known" };
            let message = format!("could not go on without {instance}: it {what}");
            return wrong(
                "without",
                message,
                "--without is for instances that are silent".to_owned(),
            );
        }
    }
    if let Some(only) = &request.only
        && !state.members().any(|member| only.has(&member.instance))
    {
        let message = format!("{:?} selects no instance of {}", only.as_str(), state.group);
        return wrong("only", message, format!("`towline instances {}` names them", state.group));
    }
    Ok(())
}

/// Puts into quarantine what the gate found to be bad when it halted a rollout that now ends.
fn judge(
    state: &GroupState,
    record: &Kept<GroupRecord>,
    rollout: &Rollout,
    act: &Act,
    draft: &mut Draft,
) -> Kept<GroupRecord> {
    let culprit =
        rollout.culprit.clone().and_then(|detail| Some((rollout.revision()?.clone(), detail)));
    quarantined(state, record, culprit, act, draft)
}

/// The group with this commit in quarantine.
fn quarantined(
    state: &GroupState,
    record: &Kept<GroupRecord>,
    culprit: Option<(Revision, String)>,
    act: &Act,
    draft: &mut Draft,
) -> Kept<GroupRecord> {
    let mut group = record.clone();
    if let Some((revision, reason)) = culprit
        && !group.value.is_quarantined(&revision)
    {
        group.value.quarantine.push(Quarantined { revision, since: act.at, reason });
        draft.on(key::group(&state.group), Some(record));
        draft.put(key::group(&state.group), &group.value);
    }
    group
}

fn restart_of(state: &GroupState) -> u64 {
    state.target.as_ref().map_or(0, |kept| kept.value.target.restart)
}

/// Starts the app of a whole group anew, batch by batch.
///
/// # Errors
///
/// While a rollout goes on, or where there is no revision to restart.
pub fn restart(state: &GroupState, act: &Act) -> Result<Draft, ErrorBody> {
    let record = exists(state)?;
    let group = &state.group;
    if let Some(rollout) = state.going() {
        let message = format!(
            "could not restart {group}: its rollout (generation {}) is {}",
            rollout.order().generation,
            rollout.state.as_str()
        );
        let hint = match rollout.state {
            State::Running => format!("`towline rollout watch {group}` until it ends"),
            _ => format!("`towline rollout resume {group}`, or `towline rollout abort {group}`"),
        };
        return Err(conflict(message, hint));
    }
    let target = state.target.as_ref().map(|kept| &kept.value.target);
    let Some((target, revision)) =
        target.and_then(|target| Some((target, target.revision.clone()?)))
    else {
        let message = format!("could not restart {group}: it has no revision to run");
        return Err(conflict(message, format!("`towline release {group} REV` names one")));
    };
    let mut draft = Draft::new();
    // Never a counter that was given out already: who carried that out would take this for done.
    let restart = restarts(state).saturating_add(1);
    let mut counted = record.clone();
    counted.value.restarts = restart;
    draft.put(key::group(group), &counted.value);
    let fixed = target.fallback.clone();
    let next = Next {
        kind: Kind::Restart,
        revision: Some(revision),
        not: None,
        fallback: fixed.filter(|fixed| !record.value.is_quarantined(fixed)),
        left: state.rollout.as_ref().and_then(|kept| kept.value.left.clone()),
        restart,
        note: "restart".to_owned(),
        only: None,
        without: BTreeSet::new(),
    };
    begin(state, record, next, act, &mut draft);
    Ok(draft)
}

/// Returns what to store for a decision of the engine; `None` where there is nothing.
#[must_use]
pub fn carry_out(state: &GroupState, decision: &Decision, act: &Act) -> Option<Draft> {
    let record = state.record.as_ref()?;
    let mut draft = Draft::new();
    match decision {
        Decision::Rest | Decision::Wait { .. } => return None,
        Decision::Step(rollout) => {
            // The target as well: a rollout that is not its target's decides nothing.
            draft.on(key::target(&state.group), state.target.as_ref());
            draft.on(key::rollout(&state.group), state.rollout.as_ref());
            draft.put(key::rollout(&state.group), rollout);
        }
        Decision::Converge(rollout) => {
            draft.on(key::target(&state.group), state.target.as_ref());
            draft.on(key::rollout(&state.group), state.rollout.as_ref());
            draft.on(key::group(&state.group), Some(record));
            draft.put(key::rollout(&state.group), rollout);
            archive(state, rollout, &mut draft);
            if let Some(revision) = rollout.revision() {
                let mut group = record.value.clone();
                group.prove(revision);
                draft.put(key::group(&state.group), &group);
            }
        }
        Decision::Abort { rollout, quarantine } => {
            let group = quarantined(state, record, quarantine.clone(), act, &mut draft);
            archive(state, rollout, &mut draft);
            let next = away(state, &group.value, rollout);
            begin(state, &group, next, act, &mut draft);
        }
    }
    Some(draft)
}
