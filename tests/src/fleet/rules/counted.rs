//! What must hold of the gate's counting: who has failed, and who is only waited for; by the table of what
//! happens, said once more.

use std::collections::{BTreeMap, BTreeSet};

use towline_coordinator::fleet::{Attendance, Presence};
use towline_coordinator::records::GroupState;
use towline_coordinator::rollout::Now;
use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Instance;
use towline_protocol::report::{Health, Phase, Report};
use towline_protocol::rollout::{Batch, Kind, Rollout, State};

use super::{Knowledge, bake_time, has_taken, milliseconds};

/// What a coordinator has to make of the open batch, as it knows it.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Who has failed and is not counted yet; and whether that says something against the revision.
    pub(super) failed: BTreeMap<Instance, bool>,
    /// Who is silent, and had not begun: it is set aside.
    pub(super) away: BTreeSet<Instance>,
    /// Are the instances unwell that the rollout has not touched, most of them?
    pub(super) is_shared: bool,
}

impl Counted {
    pub(super) fn of(state: &GroupState, attendance: &Attendance, now: Now) -> Self {
        let mut own = Self::default();
        let Some(rollout) = state.going() else { return own };
        own.is_shared = is_shared(state, rollout, attendance);
        let Some(index) = open_batch(rollout) else { return own };
        let batch = &rollout.batches[index];
        for record in state.members() {
            let (name, is_member) = (&record.instance, batch.members.contains(&record.instance));
            let is_counted = rollout.failures.contains_key(name);
            if is_counted || !(is_member || rollout.aside.contains(name)) {
                continue;
            }
            let told = told_of_failure(rollout, record, is_member && batch.bakes_ms.is_some());
            let late = || is_late(state, rollout, batch, record, attendance.of(name), now);
            if told {
                own.failed.insert(name.clone(), true);
            } else if let Some(is_revision) = late().filter(|_| is_member) {
                own.failed.insert(name.clone(), is_revision);
            } else if is_member && attendance.is_silent(name) {
                let report = record.report.as_ref();
                let has_begun = holds_permit(state, rollout, name).is_some()
                    || report.is_some_and(|report| is_on_target(report, rollout));
                if !has_begun {
                    own.away.insert(name.clone());
                }
            }
        }
        own
    }
}

/// The batch whose gate has not passed.
fn open_batch(rollout: &Rollout) -> Option<usize> {
    rollout.batches.iter().position(|batch| batch.is_open() && batch.passed_ms.is_none())
}

/// When the permit was given that it holds for this target.
fn holds_permit(state: &GroupState, rollout: &Rollout, name: &Instance) -> Option<Option<u64>> {
    let permit = &state.open.get(name)?.value;
    (permit.order == rollout.order()).then_some(permit.given_ms)
}

/// Is it healthy on the target, as it last told?
fn is_on_target(report: &Report, rollout: &Rollout) -> bool {
    report.health == Health::Healthy
        && (report.proven || report.adopted)
        && has_taken(report, &rollout.target)
}

/// Does it serve what the target asks for, well or not?
fn serves(report: &Report, rollout: &Rollout) -> bool {
    match &rollout.target.revision {
        Some(revision) => {
            report.serving.as_ref() == Some(revision) || report.alike.as_ref() == Some(revision)
        }
        None => report.adopted || report.serving != rollout.target.not,
    }
}

/// "Failed after the swap"; "healthy, then unhealthy while its batch bakes".
fn told_of_failure(rollout: &Rollout, record: &InstanceRecord, bakes: bool) -> bool {
    let Some(report) = &record.report else { return false };
    if report.order != Some(rollout.order()) {
        return false;
    }
    let is_its = report.failure.as_ref().is_some_and(|failure| {
        let is_it = rollout.revision().is_none_or(|revision| *revision == failure.revision);
        failure.order == report.order && is_it && !failure.cause.is_before_swap()
    });
    let is_new = rollout.kind == Kind::Release && !rollout.is_proven;
    let is_still = (report.phase == Phase::Idle && !report.uses_permit)
        || (report.phase == Phase::Asking && bakes);
    let has_faded = report.health == Health::Unhealthy
        && serves(report, rollout)
        && report.restart >= rollout.target.restart
        && is_still
        && (bakes || is_new);
    is_its || report.rejected || has_faded
}

/// "A permit holder counts as failed at its healthy deadline", "failed once its prepare deadline has
/// passed"; and does it say something against the revision?
fn is_late(
    state: &GroupState,
    rollout: &Rollout,
    batch: &Batch,
    record: &InstanceRecord,
    presence: Presence,
    now: Now,
) -> Option<bool> {
    let policy = &rollout.policy;
    let report = record.report.as_ref().filter(|report| report.order == Some(rollout.order()));
    let is_over = |from: u64, seconds: u64| now.deadline_ms >= from + seconds * 1_000;
    if let Some(given) = holds_permit(state, rollout, &record.instance) {
        let is_known = matches!(presence, Presence::Here | Presence::Silent);
        let given_ms = given.filter(|_| is_known)?.max(batch.opened_ms.unwrap_or(0));
        let is_bad = presence != Presence::Silent && report.is_some_and(|own| serves(own, rollout));
        return is_over(given_ms, policy.healthy_deadline_s).then_some(is_bad);
    }
    let is_ready = report.is_some_and(|report| {
        let is_there = serves(report, rollout) && report.restart >= rollout.target.restart;
        is_there || is_prepared(report, rollout)
    });
    let is_due = presence == Presence::Here && !is_ready;
    (is_due && is_over(batch.opened_ms?, policy.prepare_deadline_s)).then_some(false)
}

/// Has it told that only leave is missing?
fn is_prepared(report: &Report, rollout: &Rollout) -> bool {
    let could_not = report.failure.as_ref().is_some_and(|failure| {
        failure.order == Some(rollout.order())
            && rollout.revision().is_none_or(|revision| *revision == failure.revision)
    });
    match report.phase {
        _ if report.prepared => true,
        Phase::Starting | Phase::Preparing | Phase::Idle => report.uses_permit,
        Phase::Waiting => !could_not,
        _ => true,
    }
}

/// More than half of those who are there and not touched are unwell.
fn is_shared(state: &GroupState, rollout: &Rollout, attendance: &Attendance) -> bool {
    let touched: BTreeSet<&Instance> =
        rollout.batches.iter().filter(|own| own.is_open()).flat_map(|own| &own.members).collect();
    let others = state.members().filter(|record| {
        !touched.contains(&record.instance)
            && attendance.of(&record.instance) == Presence::Here
            && record.report.is_some()
    });
    let (mut all, mut bad) = (0, 0);
    for record in others {
        all += 1;
        let health = record.report.as_ref().map(|report| report.health);
        bad += usize::from(health == Some(Health::Unhealthy));
    }
    bad * 2 > all
}

/// Where nothing is decided, there must be something to wait for.
pub(super) fn check_waits(
    state: &GroupState,
    knowledge: &Knowledge,
    now: Now,
) -> Result<(), String> {
    let Some(rollout) = state.going() else { return Ok(()) };
    let counted = &knowledge.counted;
    let wrong = |why: String| Err(format!("nothing is decided of {:?}: {why}", rollout.order()));
    if let Some((name, _)) = counted.failed.iter().next() {
        return wrong(format!("{name} has failed"));
    }
    if rollout.state != State::Running {
        return Ok(());
    }
    let Some(index) = open_batch(rollout) else { return Ok(()) };
    let batch = &rollout.batches[index];
    if let Some(name) = counted.away.iter().next() {
        return wrong(format!("{name} is silent, and in an open batch"));
    }
    if let Some(why) = too_many(rollout, index) {
        return wrong(why);
    }
    let is_waited_for = |name: &&Instance| {
        knowledge.members.contains(*name)
            && !rollout.failures.contains_key(*name)
            && !knowledge.taken.contains(*name)
    };
    let quiet = milliseconds(now.deadline_ms.saturating_sub(rollout.progressed_ms));
    match (batch.members.iter().find(is_waited_for), batch.bakes_ms) {
        // Not heard of since the coordinator's start is neither well nor unwell.
        (Some(name), Some(_)) if !knowledge.unheard.contains(name) => {
            wrong(format!("{name} is not well, and {} bakes", batch.name))
        }
        // Nobody of it may be left.
        (None, Some(bakes_ms)) if batch.members.iter().any(|own| knowledge.taken.contains(own)) => {
            let baked = milliseconds(now.bake_ms.saturating_sub(bakes_ms));
            let whole = bake_time(rollout, batch);
            if baked < whole && !batch.is_promoted { Ok(()) } else { wrong("it has baked".into()) }
        }
        // Twice, for whoever holds a permit may be about to be healthy.
        _ if quiet.as_secs() > 2 * rollout.policy.progress_deadline_s
            && !knowledge.members.is_empty() =>
        {
            wrong(format!("nothing has moved for {quiet:?}"))
        }
        _ => Ok(()),
    }
}

/// Have more failed than are tolerated?
fn too_many(rollout: &Rollout, index: usize) -> Option<String> {
    let max = &rollout.policy.failures_max;
    let is_canary = rollout.batches[index].share_index == 0 && rollout.kind != Kind::Rollback;
    let own_max = if is_canary { max.canary } else { max.batch };
    let counted = || rollout.failures.values().filter(|failed| !failed.is_excused);
    let own = counted().filter(|failed| failed.batch_index as usize == index).count();
    let is_over = own > own_max as usize || counted().count() > max.rollout as usize;
    is_over.then(|| format!("{own} of {} have failed", rollout.batches[index].name))
}

/// A rollout that its gate stops, or takes back, has failed or stood still.
pub(super) fn check_stopped(
    old: &Rollout,
    new: &Rollout,
    knowledge: &Knowledge,
    is_banned: bool,
) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{:?}, as {}: {why}", new.state, new.reason));
    let Some(index) = open_batch(old) else {
        return if is_banned { Ok(()) } else { wrong("no batch is open") };
    };
    let counted = || old.failures.values().filter(|failed| !failed.is_excused);
    let is_healthy = |name: &Instance| {
        knowledge.taken.contains(name) && old.failures.get(name).is_none_or(|own| own.is_excused)
    };
    let batch = &old.batches[index];
    let is_lost = !batch.members.iter().any(is_healthy)
        && batch.members.iter().any(|name| old.failures.contains_key(name));
    let has_failed = is_banned || is_lost || too_many(old, index).is_some();
    let quiet_ms = knowledge.deadline_ms.saturating_sub(old.progressed_ms);
    let is_quiet = quiet_ms >= old.policy.progress_deadline_s * 1_000;
    if !has_failed && !is_quiet {
        return wrong("nothing has failed, and it has not stood still");
    }
    // "Failing on a new revision: halt, or abort to the fallback, by policy"; where all fail alike, halt.
    let leads_back = super::may_go_back(old);
    let is_shared = knowledge.counted.is_shared && !is_banned;
    if (new.state == State::Aborted) != (has_failed && leads_back && !is_shared) && !is_quiet {
        return wrong("that is not what its policy says");
    }
    let is_new = old.kind == Kind::Release && !old.is_proven;
    let is_at_fault = is_new && !is_shared && counted().any(|failed| failed.is_revision);
    if new.state == State::Halted && new.culprit.is_some() && !is_at_fault {
        return wrong("its revision is not at fault");
    }
    if new.state == State::Halted && new.culprit.is_none() && is_at_fault && !is_quiet {
        return wrong("its revision is at fault");
    }
    Ok(())
}
