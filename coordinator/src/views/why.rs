//! Why a group or an instance is where it is, and what to do next.
//!
//! ```text
//!   instance   silent ─► permit ─► objection, failure, health ─► its place in the rollout
//!   group      paused, halted ─► budget ─► what is waited for ─► who is off target ─► quarantine
//! ```
//!
//! The most important reason comes first. What to do next are commands as they are typed.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::api::{ErrorBody, InstanceView, Status, WhyView};
use towline_protocol::fleet::{InstanceRecord, Quarantined};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::report::Health;
use towline_protocol::rollout::{Kind, Rollout, State};

use super::{Look, instances, place, short, told};
use crate::fleet::{self, Presence};
use crate::rollout::operations::{unknown_group, unknown_instance};
use crate::rollout::{Decision, evaluate};

/// How many instances are named for one reason.
const NAMED_MAX: usize = 5;

/// Reasons, most important first, and what to do next.
#[derive(Debug, Default)]
pub(crate) struct Story {
    reasons: Vec<String>,
    next: Vec<String>,
}

impl Story {
    /// Adds a reason, after those that are more important, once.
    pub(crate) fn because(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// Adds what to do, once.
    pub(crate) fn next(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.next.contains(&what) {
            self.next.push(what);
        }
    }

    fn told(self, subject: String, summary: String) -> WhyView {
        WhyView { subject, summary, reasons: self.reasons, next: self.next }
    }
}

/// Says why an instance is where it is.
///
/// # Errors
///
/// There is no such instance in the group.
pub fn instance(look: &Look<'_>, instance: &Instance) -> Result<WhyView, ErrorBody> {
    let state = look.state;
    let subject = format!("{} {instance}", state.group);
    let Some(record) = state.member(instance) else {
        let kept = state.instances.get(instance);
        let gone = kept.and_then(|kept| kept.value.gone);
        let gone = gone.ok_or_else(|| unknown_instance(state, instance))?;
        let mut story = Story::default();
        story.because("it said goodbye, or was forgotten: it counts nowhere");
        return Ok(story.told(subject, format!("left {} ago", told::span(look.ago_s(gone)))));
    };
    let view = instances::view(look, record);
    let mut story = Story::default();
    presence(look, record, &view, &mut story);
    permit(look, &view, &mut story);
    trouble(look, record, &view, &mut story);
    place::explain(look, record, &mut story);
    Ok(story.told(subject, summary(look, record, &view)))
}

/// Adds that another host asked for this instance's name.
pub fn claimed(view: &mut WhyView, group: &Group, instance: &Instance, ago: Duration) {
    let ago = told::span(ago.as_secs());
    view.reasons.push(format!(
        "another host asked to join under this name {ago} ago, and was refused: each needs a name of its \
         own"
    ));
    view.next.push(format!(
        "where this one is gone for good, and that one takes its place: towline forget {instance} --group \
         {group}"
    ));
}

/// How an instance stands, in one line.
fn summary(look: &Look<'_>, record: &InstanceRecord, view: &InstanceView) -> String {
    let serves = match &view.serving {
        Some(revision) => format!("serves {}", revision.short()),
        None if view.adopted => "serves what was there before the agent".to_owned(),
        None => "serves nothing".to_owned(),
    };
    let word = view.status.as_str();
    let since = told::span(view.since_s);
    match view.status {
        Status::Converged => format!("{word}: {serves}, healthy, for {since}"),
        Status::Stale => {
            let target = look.target();
            let wanted = match target {
                Some(target) if target.revision.is_some() && target.revision == view.serving => {
                    format!("{} has still to be taken in full", target.order)
                }
                Some(target) => match &target.revision {
                    Some(revision) => format!("the target is {}", revision.short()),
                    None => format!("{} must not serve", short(target.not.as_ref())),
                },
                None => "its group has no target".to_owned(),
            };
            format!("{word}: {serves}, healthy, for {since}; {wanted}")
        }
        Status::Degraded | Status::Unhealthy => {
            format!("{word}: {serves}, {}, for {since}", view.health.as_str())
        }
        Status::Unknown if record.report.is_none() => {
            format!("{word}: it has reported nothing yet")
        }
        Status::Unknown => format!("{word}: {serves}, of unknown health, for {since}"),
        Status::Silent => format!("{word} for {}", told::span(view.seen_s)),
    }
}

/// What it told last, in a few words, and how long ago.
fn last_told(record: &InstanceRecord, view: &InstanceView) -> String {
    let Some(report) = &record.report else { return "it never reported anything".to_owned() };
    let serves = short(report.serving.as_ref());
    let health = report.health.as_str();
    format!("what it last told is {} old: serves {serves}, {health}", told::span(view.age_s))
}

fn presence(look: &Look<'_>, record: &InstanceRecord, view: &InstanceView, story: &mut Story) {
    let (group, instance) = (&record.group, &record.instance);
    match look.attendance.of(instance) {
        Presence::Here if record.report.is_none() => {
            story.because("it polls, and has reported nothing yet");
        }
        Presence::Here => {}
        Presence::Unheard => story.because(format!(
            "it has not polled since the coordinator started, and its lease is not over; {}",
            last_told(record, view)
        )),
        Presence::Untold => story.because(format!(
            "it polls, and has still to tell how it is now; {}",
            last_told(record, view)
        )),
        Presence::Silent => {
            let silent = told::span(view.seen_s);
            story.because(format!(
                "it has not polled for {silent}, which is longer than its lease; {}",
                last_told(record, view)
            ));
            let is_without =
                look.state.going().is_some_and(|rollout| rollout.without.contains(instance));
            if !is_without {
                let budget = fleet::budget(look.state, look.attendance);
                story.because(format!(
                    "it counts as unavailable: {} of {} that may be are",
                    budget.used, budget.max
                ));
            }
            story.next(format!("on the instance: systemctl status towline-{group}"));
            story.next(format!(
                "once it is gone for good: towline forget {instance} --group {group}"
            ));
        }
    }
}

fn permit(look: &Look<'_>, view: &InstanceView, story: &mut Story) {
    let (group, instance) = (&view.group, &view.instance);
    let Some(permit) = look.state.open.get(instance).map(|kept| &kept.value) else { return };
    let given = told::span(look.ago_s(permit.given));
    story.because(format!(
        "it holds permit {} for generation {}, given {given} ago; that closes once it reports that \
         something good serves",
        permit.id, permit.order.generation
    ));
    if look.attendance.is_silent(instance) {
        story.next(format!(
            "once it is known to be at rest: towline permit close {instance} --group {group} --reason \
             WHY"
        ));
    }
}

fn trouble(look: &Look<'_>, record: &InstanceRecord, view: &InstanceView, story: &mut Story) {
    let (group, instance) = (&view.group, &view.instance);
    let logs = format!("towline logs {instance} --group {group}");
    let retry = format!("towline retry {group} --instance {instance}");
    if let Some(objection) = &view.objection {
        story.because(format!("it does not follow what it is told: {objection}"));
        let seen = record.report.as_ref().and_then(|report| report.order);
        if seen.is_some_and(|seen| seen > look.state.order()) {
            story.because("the coordinator's store knows less: was it restored from a backup?");
            story.next(
                "if it was: end the coordinator, `towline-coordinator raise-epoch`, start it, and \
                 release again",
            );
        } else {
            story.next(retry.clone());
        }
    }
    let is_rejected = record.report.as_ref().is_some_and(|report| report.rejected);
    if let Some(failure) = &view.failure {
        let (revision, detail) = (failure.revision.short(), &failure.detail);
        let is_now = failure.order == Some(look.state.order());
        if !is_now {
            story.because(format!("earlier, {revision} failed here: {detail}"));
        } else if failure.cause.is_before_swap() {
            story.because(format!(
                "{revision} could not be prepared, attempt {}: {detail}; nothing live was touched, and \
                 it is tried again",
                failure.attempt
            ));
            story.next(format!("to try again at once: {retry}"));
        } else {
            let rejected = if is_rejected { "was rejected" } else { "failed" };
            story.because(format!("{revision} {rejected} here after its swap: {detail}"));
            story.next(format!("to try it again: {retry}"));
        }
        story.next(logs.clone());
    } else if is_rejected {
        story.because("the target was rejected here after its swap");
        story.next(format!("to try it again: {retry}"));
    }
    if let Some(degraded) = &view.degraded {
        story.because(format!("it is on a lower rung than assigned: {degraded}"));
    }
    if view.health == Health::Unhealthy {
        let what = if view.serving.is_none() && !view.adopted {
            "nothing serves".to_owned()
        } else {
            "its probes fail".to_owned()
        };
        let since = told::span(view.since_s);
        story.because(format!("{what}, for {since}"));
        story.next(logs);
    }
    let quarantine = look.record().map(|record| record.quarantine.as_slice()).unwrap_or_default();
    let serving = view.serving.as_ref();
    if let Some(bad) = quarantine.iter().find(|bad| Some(&bad.revision) == serving) {
        let (revision, reason) = (bad.revision.short(), told::line(&bad.reason));
        story.because(format!("what it serves, {revision}, is in quarantine: {reason}"));
    }
}

/// Says why a group is where it is.
///
/// # Errors
///
/// There is no such group.
pub fn group(look: &Look<'_>) -> Result<WhyView, ErrorBody> {
    let state = look.state;
    let record = look.record().ok_or_else(|| unknown_group(&state.group))?;
    let counts = fleet::counts(state, look.attendance);
    let mut story = Story::default();
    let summary = if let Some(rollout) = state.going() {
        going(look, rollout, &mut story);
        let what = kind(rollout);
        let generation = rollout.order().generation;
        format!("{what} (generation {generation}) is {}", rollout.state.as_str())
    } else if let Some(target) = look.target_view() {
        if let Some(last) = &state.rollout {
            story
                .because(format!("the last rollout has ended: {}", told::line(&last.value.reason)));
        }
        let (converged, all) = (counts.converged, counts.instances);
        let revision = match &target.revision {
            Some(revision) => revision.short().to_owned(),
            None => format!("anything but {}", short(target.not.as_ref())),
        };
        let generation = target.order.generation;
        format!("{converged} of {all} have {revision} (generation {generation}, {})", target.note)
    } else {
        story.because("nothing was released yet: every instance keeps what it serves");
        story.next(format!("towline release {} REV", state.group));
        "it has no target".to_owned()
    };
    if counts.instances == 0 {
        story.because("it is empty: no instance has joined, or all have left");
    }
    off_target(look, &mut story);
    quarantine(&record.quarantine, &state.group, &mut story);
    if let Some(unbootable) = &record.unbootable {
        let revision = unbootable.short();
        story.because(format!("newborns failed on {revision}, and get the fallback instead"));
        story.next(format!("towline quarantine lift {} {revision}", state.group));
    }
    Ok(story.told(state.group.to_string(), summary))
}

/// What is in quarantine: the newest is news, and the others are a list of their own.
fn quarantine(list: &[Quarantined], group: &Group, story: &mut Story) {
    let Some((newest, others)) = list.split_last() else { return };
    let (revision, reason) = (newest.revision.short(), told::line(&newest.reason));
    story.because(format!("{revision} is in quarantine: {reason}"));
    story.next(format!("if it is good after all: towline quarantine lift {group} {revision}"));
    if !others.is_empty() {
        let others = told::number(others.len(), "other commit is", "other commits are");
        story.because(format!("{others} in quarantine: towline quarantine list {group}"));
    }
}

fn kind(rollout: &Rollout) -> String {
    let to = match (rollout.revision(), rollout.target.not.as_ref()) {
        (Some(revision), _) => revision.short().to_owned(),
        (None, not) => format!("what served before {}", short(not)),
    };
    match rollout.kind {
        Kind::Release => format!("the release of {to}"),
        Kind::Rollback => format!("the way back to {to}"),
        Kind::Restart => format!("the restart of {to}"),
    }
}

fn going(look: &Look<'_>, rollout: &Rollout, story: &mut Story) {
    let group = &look.state.group;
    stands(look, rollout, story);
    if rollout.state == State::Running {
        full(look, story);
        // The engine's own words for what it waits for.
        let reason = match evaluate(look.state, look.attendance, look.now) {
            Decision::Wait { reason, .. } => reason,
            _ => rollout.reason.clone(),
        };
        story.because(told::line(&reason));
    }
    for (instance, failed) in rollout.failures.iter().take(NAMED_MAX) {
        let batch = rollout.batches.get(failed.batch_index as usize);
        let batch = batch.map_or("a batch", |batch| batch.name.as_str());
        let counts = if failed.is_excused { ", and counts no more" } else { "" };
        let detail = told::line(&failed.detail);
        story.because(format!("{instance} failed in {batch}{counts}: {detail}"));
        story.next(format!("towline logs {instance} --group {group}"));
    }
    if !rollout.aside.is_empty() {
        let aside = crate::rollout::batches::told(&rollout.aside);
        story.because(format!("set aside, because silent when their batch opened: {aside}"));
    }
    if !rollout.without.is_empty() {
        let without = crate::rollout::batches::told(&rollout.without);
        story.because(format!("it goes on without {without}, until they poll again"));
    }
    if rollout.state == State::Running {
        story.next(format!("towline rollout watch {group}"));
    }
}

/// Why a rollout stands, where it does.
pub(crate) fn stands(look: &Look<'_>, rollout: &Rollout, story: &mut Story) {
    let group = &look.state.group;
    let (state, reason) = (rollout.state.as_str(), told::line(&rollout.reason));
    // A reason that begins with the word for how it stands says both.
    let stands = if reason.starts_with(state) { reason } else { format!("{state}: {reason}") };
    match rollout.state {
        State::Paused => {
            story.because(format!("its rollout is {stands}"));
            story.next(format!("to go on: towline rollout resume {group}"));
        }
        State::Halted => {
            story.because(format!("its rollout is {stands}"));
            story.next(format!("to go back: towline rollout abort {group}"));
            story.next(format!("to go on in spite of it: towline rollout resume {group}"));
        }
        _ => return,
    }
    if rollout.only.is_some() && rollout.state == State::Paused {
        story.next(format!("to go back: towline rollout abort {group}"));
    }
}

/// Who takes up the budget, where nothing is left of it. Returns whether nothing is.
pub(crate) fn full(look: &Look<'_>, story: &mut Story) -> bool {
    let state = look.state;
    let budget = fleet::budget(state, look.attendance);
    if budget.used < budget.max {
        return false;
    }
    let mut words: Vec<String> = Vec::new();
    for record in fleet::counted(state) {
        let instance = &record.instance;
        let silent = look.attendance.is_silent(instance);
        let ago = told::span(look.seen_s(record));
        if let Some(permit) = state.open.get(instance) {
            let also = if silent { ", silent" } else { "" };
            words.push(format!("{instance} (holds permit {}{also})", permit.value.id));
        } else if silent {
            words.push(format!("{instance} (silent for {ago})"));
        } else if fleet::is_unavailable(record, look.attendance) {
            let presence = look.attendance.of(instance);
            let is_unheard = matches!(presence, Presence::Untold | Presence::Unheard);
            let why = if is_unheard { "has still to tell how it is" } else { "is not healthy" };
            words.push(format!("{instance} ({why})"));
        } else {
            continue;
        }
        story.next(format!("towline why {instance} --group {}", state.group));
        if words.len() == NAMED_MAX {
            break;
        }
    }
    let others = (budget.used as usize).saturating_sub(words.len());
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    story.because(format!(
        "no permit can be given: {} of {} that may be unavailable are: {}{others}",
        budget.used,
        budget.max,
        words.join(", ")
    ));
    true
}

/// Who is not well, and who should have the target and has not.
fn off_target(look: &Look<'_>, story: &mut Story) {
    let state = look.state;
    let is_passed = state.going().is_none() && look.target().is_some();
    for wanted in [Status::Unhealthy, Status::Degraded, Status::Silent, Status::Stale] {
        if wanted == Status::Stale && !is_passed {
            continue;
        }
        let is_wanted = |record: &&InstanceRecord| {
            fleet::status(record, look.target(), look.attendance) == wanted
        };
        let all: std::collections::BTreeSet<Instance> =
            state.members().filter(is_wanted).map(|record| record.instance.clone()).collect();
        let Some(first) = all.first() else { continue };
        let named = crate::rollout::batches::told(&all);
        story.because(format!("{} {}: {named}", all.len(), wanted.as_str()));
        story.next(format!("towline why {first} --group {}", state.group));
    }
}
