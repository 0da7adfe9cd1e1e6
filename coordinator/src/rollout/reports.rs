//! What instances tell, taken up: joins, reports, goodbyes.
//!
//! A message with a number that is not higher than the last one's has been overtaken, and changes
//! nothing; it is acknowledged all the same. A report closes its instance's permit when it shows that no
//! swap is under way and that something good serves, or that the question was renounced.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::api::ErrorBody;
use towline_protocol::fleet::{BootFailure, GroupRecord, InstanceRecord, Quarantined, VERSION};
use towline_protocol::ids::Instance;
use towline_protocol::poll::{FailureLog, Message};
use towline_protocol::report::{Health, Report};
use towline_protocol::time::Timestamp;

use super::operations::conflict;
use super::permits::close;
use crate::records::{Draft, GroupState, Kept, key};

/// How many boot failures are remembered.
const BOOT_FAILURES_MAX: usize = 64;

/// For how long it is remembered that an instance has left: no message is on its way for longer.
pub const GONE_KEPT: Duration = Duration::from_secs(3600);

/// How many instances a group may have, with those who left within the last hour.
pub const INSTANCES_MAX: usize = 10_000;

/// Makes sure that a group has room for an instance.
///
/// # Errors
///
/// It is a new one, and there are [`INSTANCES_MAX`] already.
pub fn has_room(state: &GroupState, instance: &Instance) -> Result<(), ErrorBody> {
    if state.instances.len() < INSTANCES_MAX || state.instances.contains_key(instance) {
        return Ok(());
    }
    let group = &state.group;
    let message =
        format!("could not let {instance} join {group}: it has {INSTANCES_MAX} instances");
    let hint =
        "`towline forget INSTANCE` those that are gone for good, or let it join another group";
    Err(conflict(message, hint.to_owned()))
}

/// A failure's log as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogRecord {
    /// When it was told.
    pub at: Timestamp,
    /// What was said.
    pub log: FailureLog,
}

/// Returns a record for an instance that is heard of for the first time, or again after it had left.
#[must_use]
pub fn newcomer(
    state: &GroupState,
    instance: &Instance,
    seq: u64,
    at: Timestamp,
) -> InstanceRecord {
    let old = state.instances.get(instance).map(|kept| &kept.value);
    InstanceRecord {
        version: VERSION,
        instance: instance.clone(),
        group: state.group.clone(),
        joined: at,
        seen: at,
        seq,
        // It was acknowledged, and is not told again until it changes.
        report: old.and_then(|old| old.report.clone()),
        reported: old.map_or(at, |old| old.reported),
        since: old.map_or(at, |old| old.since),
        note: None,
        orders: old.map(|old| old.orders).unwrap_or_default(),
        gone: None,
    }
}

/// Whoever was not there joins a group that still exists.
fn joins(state: &GroupState, instance: &Instance, draft: &mut Draft) {
    if state.member(instance).is_none() {
        draft.on(key::group(&state.group), state.record.as_ref());
    }
}

/// Takes up a poll: whoever is not known joins; the time of the last sign of life is kept coarsely.
///
/// Returns `None` where nothing is to be stored.
#[must_use]
pub fn polled(
    state: &GroupState,
    instance: &Instance,
    seq: u64,
    at: Timestamp,
    coarse: Duration,
) -> Option<Draft> {
    let kept = state.instances.get(instance);
    let record = match kept.map(|kept| &kept.value) {
        Some(record) if record.gone.is_some() && seq <= record.seq => return None,
        Some(record) if record.gone.is_none() => {
            if at.since(record.seen) < coarse && record.seen <= at {
                return None;
            }
            InstanceRecord { seen: at, ..record.clone() }
        }
        // Not the poll's own number: a report that was sent before it still counts.
        old => newcomer(state, instance, old.map_or(0, |old| old.seq), at),
    };
    let mut draft = Draft::new();
    joins(state, instance, &mut draft);
    draft.on(key::instance(&state.group, instance), kept);
    draft.put(key::instance(&state.group, instance), &record);
    Some(draft)
}

/// Takes up a report. Returns `None` where it has been overtaken.
#[must_use]
pub fn report(state: &GroupState, message: &Message, at: Timestamp) -> Option<Draft> {
    let report = &message.report;
    let instance = &report.instance;
    let kept = state.instances.get(instance);
    let old = kept.map(|kept| &kept.value);
    if old.is_some_and(|old| message.seq <= old.seq) {
        return None;
    }
    let mut record = match old {
        Some(old) if old.gone.is_none() => old.clone(),
        _ => newcomer(state, instance, 0, at),
    };
    // An age is measured on the instance, and added here: no two clocks are compared.
    let reported = Timestamp(at.0.saturating_sub(message.age_ms));
    let same = |old: &Report| {
        (&old.serving, old.health, old.order) == (&report.serving, report.health, report.order)
    };
    if !record.report.as_ref().is_some_and(same) {
        record.since = reported;
    }
    record.report = Some(report.clone());
    record.reported = reported;
    record.seq = message.seq;
    record.seen = at;
    record.note.clone_from(&message.note);
    let mut draft = Draft::new();
    joins(state, instance, &mut draft);
    draft.on(key::instance(&state.group, instance), kept);
    draft.put(key::instance(&state.group, instance), &record);
    // One that is given meanwhile may be one that this report closes.
    draft.on(key::permit(&state.group, instance), state.open.get(instance));
    let permit = state.open.get(instance).map(|kept| &kept.value);
    if permit.is_some_and(|permit| is_over(permit.seq, message.seq, Some(report))) {
        close(state, instance, &mut draft);
    }
    if let Some(log) = &message.log {
        let log = LogRecord { at, log: log.clone() };
        draft.put(key::log(&state.group, instance), &log);
    }
    if let Some(group) = boot_failed(state, report, at) {
        draft.on(key::group(&state.group), state.record.as_ref());
        draft.put(key::group(&state.group), &group);
    }
    Some(draft)
}

/// Does a report, of the number `seq`, show that the swap is over that was asked for by the question of the
/// number `asked`, or that it will never be?
pub(super) fn is_over(asked: u64, seq: u64, report: Option<&Report>) -> bool {
    let Some(report) = report else { return false };
    let is_renounced = asked <= report.renounced;
    let is_later = seq > asked;
    let is_good = report.health == Health::Healthy && (report.proven || report.adopted);
    // What asked anew with a restore still owed renounces that question, and not the permit.
    !report.uses_permit && (is_renounced || (is_later && is_good))
}

/// A newborn failed on what it was to boot: once several have, the group's newborns get something else.
fn boot_failed(state: &GroupState, report: &Report, at: Timestamp) -> Option<GroupRecord> {
    let record = state.record.as_ref().map(|kept| &kept.value)?;
    let failure = report.failure.as_ref()?;
    let revision = &failure.revision;
    let is_target = state.target.as_ref()?.value.target.revision.as_ref() == Some(revision);
    let is_known = record
        .boot_failures
        .iter()
        .any(|known| known.instance == report.instance && known.revision == *revision);
    if !report.newborn || failure.cause.is_before_swap() || !is_target || is_known {
        return None;
    }
    let mut next = record.clone();
    let window = Duration::from_secs(next.policy.boot_quarantine.window_s);
    next.boot_failures.retain(|known| at.since(known.at) <= window);
    let instance = report.instance.clone();
    next.boot_failures.push(BootFailure { instance, revision: revision.clone(), at });
    let surplus = next.boot_failures.len().saturating_sub(BOOT_FAILURES_MAX);
    next.boot_failures.drain(..surplus);
    let failed = next.boot_failures.iter().filter(|known| known.revision == *revision).count();
    if failed >= next.policy.boot_quarantine.instances as usize {
        if next.is_proven(revision) {
            // Good on all others: newborns are spared it, and nobody else.
            next.unbootable = Some(revision.clone());
        } else if !next.is_quarantined(revision) {
            let reason = format!("{failed} newborns failed on it: {}", failure.detail);
            next.quarantine.push(Quarantined { revision: revision.clone(), since: at, reason });
        }
    }
    Some(next)
}

/// An instance has left: by its goodbye, by an operator's word. Returns `None` where an operator means
/// somebody who is not there, or the message has been overtaken.
///
/// A goodbye that is newer than all that is known is stored in any case, also of somebody who has left or is
/// not known: it may have come back, or joined, since, and whoever is behind finds that out when it stores.
#[must_use]
pub fn left(
    state: &GroupState,
    instance: &Instance,
    seq: Option<u64>,
    at: Timestamp,
) -> Option<Draft> {
    let kept = state.instances.get(instance);
    let old = kept.map(|kept| &kept.value);
    let is_news = match (old, seq) {
        (Some(old), Some(seq)) => seq > old.seq,
        (Some(old), None) => old.gone.is_none(),
        (None, seq) => seq.is_some(),
    };
    if !is_news {
        return None;
    }
    has_room(state, instance).ok()?;
    let old = old.cloned().unwrap_or_else(|| newcomer(state, instance, 0, at));
    let record = InstanceRecord {
        gone: old.gone.or(Some(at)),
        seq: seq.unwrap_or(old.seq),
        // Whoever said goodbye comes back as another run of its agent, which tells anew.
        report: old.report.clone().filter(|_| seq.is_none()),
        note: None,
        ..old
    };
    let mut draft = Draft::new();
    joins(state, instance, &mut draft);
    draft.on(key::instance(&state.group, instance), kept);
    draft.put(key::instance(&state.group, instance), &record);
    draft.delete(key::log(&state.group, instance));
    draft.on(key::permit(&state.group, instance), state.open.get(instance));
    close(state, instance, &mut draft);
    Some(draft)
}

/// Returns what removes the records of those that left longer than [`GONE_KEPT`] ago.
#[must_use]
pub fn forgotten(state: &GroupState, at: Timestamp) -> Vec<Draft> {
    let mut drafts = vec![Draft::new()];
    for (instance, kept) in &state.instances {
        let is_due = kept.value.gone.is_some_and(|gone| at.since(gone) > GONE_KEPT);
        if !is_due || state.open.contains_key(instance) {
            continue;
        }
        if !drafts.last().is_some_and(|draft| draft.has_room(3)) {
            drafts.push(Draft::new());
        }
        if let Some(draft) = drafts.last_mut() {
            forget(state, instance, kept, draft);
        }
    }
    drafts.retain(|draft| !draft.is_empty());
    drafts
}

/// Returns what removes the records of those who joined a group at the very moment at which it was removed:
/// whoever lives polls, and joins it again once it is made anew.
#[must_use]
pub fn orphans(state: &GroupState) -> Vec<Draft> {
    let mut drafts = vec![Draft::new()];
    if state.record.is_some() {
        return Vec::new();
    }
    for (instance, kept) in &state.instances {
        if !drafts.last().is_some_and(|draft| draft.has_room(5)) {
            drafts.push(Draft::new());
        }
        if let Some(draft) = drafts.last_mut() {
            draft.on(key::group(&state.group), state.record.as_ref());
            forget(state, instance, kept, draft);
        }
    }
    drafts.retain(|draft| !draft.is_empty());
    drafts
}

/// Removes what is kept of an instance, provided that it has not come back.
pub(super) fn forget(
    state: &GroupState,
    instance: &Instance,
    kept: &Kept<InstanceRecord>,
    draft: &mut Draft,
) {
    draft.on(key::instance(&state.group, instance), Some(kept));
    draft.delete(key::instance(&state.group, instance));
    draft.delete(key::log(&state.group, instance));
}
