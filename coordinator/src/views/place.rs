//! An instance's place in its group's rollout, as a reason for where it is.
//!
//! ```text
//!   no target ── no rollout goes on: drift ── left out ── in no batch yet ── offered ── set aside ── open
//! ```
//!
//! PURE.

use towline_protocol::fleet::InstanceRecord;
use towline_protocol::report::{Evidence, Phase, Report};
use towline_protocol::rollout::{Batch, Rollout, State};

use super::why::{Story, full, stands};
use super::{Look, short, told};
use crate::fleet;

/// Adds where an instance's place in the rollout is, and what it waits for there.
pub(crate) fn explain(look: &Look<'_>, record: &InstanceRecord, story: &mut Story) {
    let group = &record.group;
    let Some(target) = look.target() else {
        story.because("its group has no target: nothing was released yet");
        story.next(format!("towline release {group} REV"));
        return;
    };
    orders(look, record, story);
    let report = record.report.as_ref();
    if let Some(report) = report.filter(|report| fleet::has_taken(report, target)) {
        taken(report, story);
        return;
    }
    match look.state.going() {
        Some(rollout) => during(look, record, rollout, story),
        None => after(look, record, story),
    }
}

/// Orders to it that it has not carried out yet.
fn orders(look: &Look<'_>, record: &InstanceRecord, story: &mut Story) {
    let done = record.report.as_ref().map(|report| report.orders).unwrap_or_default();
    if record.orders.restart > done.restart {
        story.because("it was ordered to restart its app, and has not done so yet");
        if let Some(rollout) = look.state.going().filter(|going| going.state != State::Running) {
            story.because("while the rollout stands, no permit is given to restart either");
            stands(look, rollout, story);
        }
    }
    if record.orders.retry > done.retry {
        story.because("it was ordered to try again, and has not done so yet");
    }
}

fn taken(report: &Report, story: &mut Story) {
    if report.alike.is_some() && report.alike != report.serving {
        let (serving, alike) = (short(report.serving.as_ref()), short(report.alike.as_ref()));
        story.because(format!("what it serves, {serving}, has the same content as {alike}"));
    }
    if report.evidence.is_none_or(|evidence| evidence == Evidence::Replaced) {
        let shown = if report.evidence.is_some() { "its workers are new" } else { "nothing" };
        story.because(format!(
            "that its workers run what serves is not shown: the evidence is {shown}, and no more"
        ));
    }
}

/// It has not taken the target, and a rollout goes on.
fn during(look: &Look<'_>, record: &InstanceRecord, rollout: &Rollout, story: &mut Story) {
    let instance = &record.instance;
    let report = record.report.as_ref();
    if let Some(failed) = rollout.failures.get(instance) {
        let batch = rollout.batches.get(failed.batch_index as usize);
        let batch = batch.map_or("its batch", |batch| batch.name.as_str());
        let counts = if failed.is_excused { ", and counts no more" } else { "" };
        let detail = told::line(&failed.detail);
        story.because(format!("it failed in {batch}{counts}: {detail}"));
    }
    let is_newborn = report.is_some_and(|report| report.newborn);
    let serving = report.and_then(|report| report.serving.as_ref());
    if is_newborn && serving.is_some() && serving == rollout.target.fallback.as_ref() {
        let revision = short(serving);
        story.because(format!(
            "it was born during the rollout, and booted the fallback {revision}: its turn comes in a \
             later batch"
        ));
    }
    if rollout.without.contains(instance) {
        story.because("the rollout goes on without it until it polls again");
        return;
    }
    let batch = rollout.batches.iter().find(|batch| batch.members.contains(instance));
    match batch {
        None if rollout.aside.contains(instance) => story.because(
            "it was silent when its batch opened, and was set aside: it may take the target as soon as \
             it is back",
        ),
        None => in_none(look, record, rollout, story),
        Some(batch) if !batch.is_open() => story.because(format!(
            "its batch, {}, is not open yet: it prepares meanwhile, and swaps once the gate before it \
             has passed ({})",
            batch.name,
            told::line(&rollout.reason)
        )),
        Some(batch) if rollout.state == State::Running => open(look, record, batch, story),
        Some(batch) => story.because(format!("its batch, {}, is open", batch.name)),
    }
    stands(look, rollout, story);
}

fn in_none(look: &Look<'_>, record: &InstanceRecord, rollout: &Rollout, story: &mut Story) {
    let group = &look.state.group;
    if let Some(only) = rollout.only.as_ref().filter(|only| !only.has(&record.instance)) {
        let only = told::line(only.as_str());
        story.because(format!("only {only} takes part, until the rollout is resumed"));
        story.next(format!("to take it to all others: towline rollout resume {group}"));
        return;
    }
    let last = rollout.batches.last().map_or("the first one", |batch| batch.name.as_str());
    story.because(format!(
        "it is in no batch yet: its turn comes in one after {last}, and until then it keeps what serves"
    ));
    story.next(format!("towline rollout show {group}"));
}

/// Its batch is open, and nothing but itself and the budget keeps it.
fn open(look: &Look<'_>, record: &InstanceRecord, batch: &Batch, story: &mut Story) {
    let name = &batch.name;
    let report = record.report.as_ref();
    if report.is_none_or(|report| report.order != Some(look.state.order())) {
        story.because(format!("its batch, {name}, is open, and it has not answered to that yet"));
        return;
    }
    let phase = report.map(|report| report.phase);
    if phase == Some(Phase::Asking) && !look.state.open.contains_key(&record.instance) {
        story.because(format!("its batch, {name}, is open: it is ready, and waits for its permit"));
        full(look, story);
        return;
    }
    let doing = phase.map_or("has told nothing", doing);
    let age = told::span(look.ago_s(record.reported));
    story.because(format!("its batch, {name}, is open: {doing}, as it told {age} ago"));
}

fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "it starts",
        Phase::Idle => "it is idle",
        Phase::Preparing => "it prepares",
        Phase::Waiting => "it waits, to prepare again",
        Phase::Asking => "it waits for its permit",
        Phase::Activating => "it activates",
        Phase::Proving => "it proves that its workers were replaced",
        Phase::Probing => "it probes through its health window",
        Phase::Restoring => "it restores what served before",
    }
}

/// It has not taken the target, and no rollout goes on: drift.
fn after(look: &Look<'_>, record: &InstanceRecord, story: &mut Story) {
    let (group, instance, order) = (&record.group, &record.instance, look.state.order());
    let generation = order.generation;
    let Some(report) = &record.report else { return };
    if report.order != Some(order) {
        story.because(format!(
            "the rollout of generation {generation} has passed, and it has not heard of it: it takes it \
             by itself once it has"
        ));
        return;
    }
    let is_busy = !matches!(report.phase, Phase::Idle | Phase::Waiting);
    if report.phase == Phase::Asking {
        story.because(format!(
            "the rollout of generation {generation} has passed: it is ready, and waits for its permit"
        ));
        full(look, story);
    } else if is_busy {
        let doing = doing(report.phase);
        story.because(format!(
            "the rollout of generation {generation} has passed, and it takes the target now: {doing}"
        ));
    } else if look.target().is_some_and(|target| fleet::serves(report, target)) {
        story.because("it serves the target, and has still to be restarted, or to become healthy");
        story.next(format!("towline restart {group} --instance {instance}"));
    } else {
        story.because(format!(
            "the rollout of generation {generation} has passed, and it does not serve its revision"
        ));
        story.next(format!("towline retry {group} --instance {instance}"));
    }
}

#[cfg(test)]
mod tests;
