//! The ways back: rollback, abort, and what the gate does in their place. Each is the next generation, naming
//! an older revision, or what must not serve.
//!
//! PURE.

use towline_protocol::api::ErrorBody;
use towline_protocol::fleet::GroupRecord;
use towline_protocol::ids::Revision;
use towline_protocol::rollout::{Kind, Rollout, State};

use super::{Act, Next, archive, begin, conflict, exists, going, judge, restart_of};
use crate::records::{Draft, GroupState, Kept};

/// What a group goes back to: what was fixed when its target was written, unless it was put into quarantine
/// since; then the newest other group-proven revision.
fn older(state: &GroupState, record: &GroupRecord) -> Option<Revision> {
    let target = state.target.as_ref().map(|kept| &kept.value.target);
    let fixed = target.and_then(|target| target.fallback.as_ref());
    let current = target.and_then(|target| target.revision.as_ref());
    fixed
        .filter(|fixed| !record.is_quarantined(fixed))
        .or_else(|| record.fallback(current))
        .cloned()
}

/// Returns where [`rollback`] goes where no revision is named; `None`: nowhere, or it is refused.
#[must_use]
pub fn goes_back_to(state: &GroupState) -> Option<Revision> {
    is_new_way_back(state).ok()?;
    older(state, &state.record.as_ref()?.value)
}

/// The next generation that leads away from a revision: to `to`, or the newest group-proven one.
fn back(state: &GroupState, record: &GroupRecord, to: Option<Revision>, restart: u64) -> Next {
    let left = state.target.as_ref().map(|kept| &kept.value.target);
    let current = left.and_then(|target| target.revision.clone());
    let to = to.or_else(|| older(state, record));
    let of = left.map_or(0, |target| target.order.generation);
    // Not what is being left: nobody is to boot that.
    let mut others = record.clone();
    others.proven.retain(|proven| Some(proven) != current.as_ref());
    Next {
        kind: Kind::Rollback,
        fallback: to.as_ref().and_then(|to| others.fallback(Some(to)).cloned()),
        not: if to.is_none() { current.clone() } else { None },
        left: current,
        revision: to,
        restart,
        note: format!("rollback of {of}"),
        only: None,
        without: state.without().clone(),
    }
}

/// Takes a group back, from whatever it is at.
///
/// # Errors
///
/// Nowhere to go back to, or a revision that is not group-proven.
pub fn rollback(state: &GroupState, to: Option<&Revision>, act: &Act) -> Result<Draft, ErrorBody> {
    let record = exists(state)?;
    let group = &state.group;
    if to.is_none() {
        is_new_way_back(state)?;
    }
    if let Some(to) = to {
        if !record.value.is_proven(to) || record.value.is_quarantined(to) {
            let message = format!(
                "could not roll back to {}: no rollout of {group} to it has converged, or it is in \
                 quarantine",
                to.short()
            );
            let lift = if record.value.is_quarantined(to) {
                format!(
                    "if it is good after all: `towline quarantine lift {group} {}`; then ",
                    to.short()
                )
            } else {
                String::new()
            };
            let hint =
                format!("{lift}`towline release {group} {}` takes it batch by batch", to.short());
            return Err(conflict(message, hint));
        }
        if state.target.as_ref().and_then(|kept| kept.value.target.revision.as_ref()) == Some(to) {
            let message = format!("{} is the target of {group} already", to.short());
            return Err(conflict(message, None));
        }
    }
    if let Some(rollout) = state.going() {
        let mut draft = Draft::new();
        let judged = end(state, record, rollout, act, &mut draft);
        let next = back(state, &judged.value, to.cloned(), restart_of(state));
        return lead_back(state, &judged, next, act, draft);
    }
    let mut next = back(state, &record.value, to.cloned(), restart_of(state));
    // It served, and nothing was said against it: whoever aborts this has it again.
    next.fallback = next.revision.as_ref().and_then(|to| record.value.fallback(Some(to)).cloned());
    if next.revision.is_none() {
        let message = format!("could not roll back {group}: it has no other group-proven revision");
        let hint = format!("`towline release {group} REV` takes it to any commit, batch by batch");
        return Err(conflict(message, hint));
    }
    let mut draft = Draft::new();
    begin(state, record, next, act, &mut draft);
    Ok(draft)
}

/// Refuses to go back once more from where a rollback has led, or leads: said twice, it must not lead on to
/// something older, nor back to what was left.
fn is_new_way_back(state: &GroupState) -> Result<(), ErrorBody> {
    let last = state.rollout.as_ref().map(|kept| &kept.value);
    let Some((last, revision)) =
        last.filter(|last| last.left.is_some()).and_then(|last| Some((last, last.revision()?)))
    else {
        return Ok(());
    };
    let (group, word) = (&state.group, if last.state.is_ended() { "was" } else { "is being" });
    let message = format!(
        "could not roll back {group}: it {word} rolled back to {} already (generation {})",
        revision.short(),
        last.order().generation
    );
    Err(conflict(
        message,
        format!("`towline rollback {group} REV` names another one to go back to"),
    ))
}

/// Ends the rollout that goes on, and goes back.
///
/// # Errors
///
/// Where none goes on.
pub fn abort(state: &GroupState, act: &Act) -> Result<Draft, ErrorBody> {
    let rollout = going(state, "abort")?;
    let mut draft = Draft::new();
    let judged = end(state, exists(state)?, rollout, act, &mut draft);
    let next = away(state, &judged.value, rollout);
    lead_back(state, &judged, next, act, draft)
}

/// Ends a rollout at an operator's word. Returns the group as it is then.
fn end(
    state: &GroupState,
    record: &Kept<GroupRecord>,
    rollout: &Rollout,
    act: &Act,
    draft: &mut Draft,
) -> Kept<GroupRecord> {
    let judged = judge(state, record, rollout, act, draft);
    let mut ended = rollout.clone();
    ended.state = State::Aborted;
    ended.ended = Some(act.at);
    ended.reason = act.because("aborted");
    let reason = ended.reason.clone();
    ended.note(act.at, reason);
    archive(state, &ended, draft);
    judged
}

fn lead_back(
    state: &GroupState,
    record: &Kept<GroupRecord>,
    next: Next,
    act: &Act,
    mut draft: Draft,
) -> Result<Draft, ErrorBody> {
    if next.revision.is_none() && next.not.is_none() {
        let message = format!("could not abort: {} has nothing to go back to", state.group);
        let hint = format!("`towline release {} REV` replaces it once it has halted", state.group);
        return Err(conflict(message, hint));
    }
    begin(state, record, next, act, &mut draft);
    Ok(draft)
}

/// Where a rollout that is ended before its time leads.
pub(super) fn away(state: &GroupState, record: &GroupRecord, rollout: &Rollout) -> Next {
    if rollout.kind == Kind::Restart {
        // Whoever was not restarted stays as it is.
        let target = &rollout.target;
        return Next {
            kind: Kind::Rollback,
            revision: target.revision.clone(),
            not: None,
            fallback: target.fallback.clone(),
            left: rollout.left.clone(),
            restart: target.restart.saturating_sub(1),
            note: format!("end of the restart {}", target.order.generation),
            only: None,
            without: rollout.without.clone(),
        };
    }
    back(state, record, None, restart_of(state))
}
