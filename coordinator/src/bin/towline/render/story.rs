//! The story of a rollout: what has changed from one view to the next, as lines.
//!
//! ```text
//!   14:02:11Z canary   opened: i-0a17             what was decided, and what batches do
//!   14:02:12Z prepare  i-0a17 fetch 0.3 s         steps, in batches of a few
//!   14:02:39Z FAILED   i-0a17 GET /healthz 503    what the gate counts
//!   14:02:45Z gate     fail: canary 1 failed
//! ```
//!
//! Invariants
//! - Pure and level-triggered: views may be missed, and the story is then shorter, never wrong.
//! - The same view told twice says nothing new.
//! - Times are those of the coordinator.

use std::collections::BTreeMap;

use towline_protocol::api::{BatchStage, MemberView, RolloutView, Standing};
use towline_protocol::ids::{Instance, Revision};
use towline_protocol::report::{Health, Phase};
use towline_protocol::rollout::{Decided, State};
use towline_protocol::time::Timestamp;

use crate::render::excerpt::alike;
use crate::render::rollout::{batch_name, may_still_swap};
use crate::render::text::{few, line};
use crate::render::time::{clock, span};
use crate::render::{Line, Tone};

/// In a batch of up to so many, each step is told; in a larger one only how each ends.
const STEPS_MAX: u32 = 3;

/// The most decisions that are told when somebody begins to watch.
const DECISIONS_BEFORE_MAX: usize = 10;

/// Tells what changes in one rollout.
#[derive(Debug, Default)]
pub(crate) struct Story {
    last: Option<RolloutView>,
    /// The last step that was told of each instance: who asks again and again is told of once.
    steps: BTreeMap<Instance, String>,
}

/// A line before it is put into its place.
struct Told {
    at: Timestamp,
    tone: Tone,
    word: String,
    text: String,
}

impl Story {
    /// Tells what is new in a view.
    pub(crate) fn tell(&mut self, view: &RolloutView) -> Vec<Line> {
        let last = self.last.take();
        let last = last.as_ref().filter(|last| last.order == view.order);
        let decisions = new_decisions(last, view);
        let mut told = batches(last, view, decisions);
        if last.is_none() {
            self.steps.clear();
        }
        told.extend(members(last, view, &mut self.steps));
        let state = state(last, view, decisions);
        told.extend(gate(view, decisions, !state.is_empty()));
        told.extend(state);
        // What is told together was seen together: only its times say what came first.
        told.sort_by_key(|one| one.at);
        self.last = Some(view.clone());
        told.iter()
            .map(|one| {
                let (at, text) = (clock(one.at), line(&one.text, 400));
                Line::new(one.tone, format!("{at} {:<8} {text}", line(&one.word, 12)).trim_end())
            })
            .collect()
    }
}

fn new_decisions<'a>(last: Option<&RolloutView>, view: &'a RolloutView) -> &'a [Decided] {
    let all = &view.decisions;
    let Some(last) = last else {
        return &all[all.len().saturating_sub(DECISIONS_BEFORE_MAX)..];
    };
    let Some(newest) = last.decisions.last() else { return all };
    match all.iter().rposition(|decided| decided == newest) {
        Some(index) => &all[index + 1..],
        // It was left out of a long story: whatever is later is new.
        None => &all[all.partition_point(|decided| decided.at <= newest.at)..],
    }
}

/// Returns what a decision says of something, where it begins with its name.
fn of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(name)?;
    rest.strip_prefix([' ', ':', ',']).map(str::trim_start).filter(|rest| !rest.is_empty())
}

/// What batches do: as it was decided, or as it is seen.
fn batches(last: Option<&RolloutView>, view: &RolloutView, decisions: &[Decided]) -> Vec<Told> {
    let mut told = Vec::new();
    for decided in decisions {
        let named = view.batches.iter().find_map(|batch| {
            of(&decided.text, &batch.name).map(|text| (batch.name.clone(), text.to_owned()))
        });
        if let Some((word, text)) = named {
            told.push(Told { at: decided.at, tone: Tone::Plain, word, text });
        }
    }
    for (index, batch) in view.batches.iter().enumerate() {
        let before = last.and_then(|last| last.batches.get(index)).map(|batch| batch.stage);
        let before = before.unwrap_or(BatchStage::Planned);
        let is_told = decisions.iter().any(|decided| decided.text.contains(&batch.name));
        // Who begins to watch is not told what every batch once did.
        let is_old = last.is_none() && batch.stage == BatchStage::Passed;
        if before == batch.stage || is_told || is_old {
            continue;
        }
        let own = |member: &&MemberView| member.batch_index as usize == index;
        let names: Vec<&str> =
            view.members.iter().filter(own).map(|member| member.instance.as_str()).collect();
        let names = few(names.into_iter(), 6, " ");
        let text = match batch.stage {
            BatchStage::Planned => continue,
            BatchStage::Offered => format!("offered: {names}"),
            BatchStage::Open => format!("open: {names}"),
            BatchStage::Bakes => {
                let left = batch.bake_left_s.map(|left_s| format!(" for {}", span(left_s)));
                let (healthy, size) = (batch.healthy, batch.size);
                format!("{healthy} of {size} healthy, bakes{}", left.unwrap_or_default())
            }
            BatchStage::Passed => format!("passed, {} of {} healthy", batch.healthy, batch.size),
        };
        let text = text.trim_end_matches([':', ' ']).to_owned();
        let since = view.members.iter().filter(own).map(|member| member.at).max();
        let at = match batch.stage {
            // A member may rest since long before.
            BatchStage::Offered => latest(view),
            BatchStage::Bakes => since.unwrap_or_else(|| latest(view)),
            _ => latest(view),
        };
        told.push(Told { at, tone: Tone::Plain, word: batch.name.clone(), text });
    }
    told
}

/// Returns the latest time that a view holds.
fn latest(view: &RolloutView) -> Timestamp {
    let decided = view.decisions.last().map(|decided| decided.at);
    decided.max(view.ended).unwrap_or(view.began)
}

fn members(
    last: Option<&RolloutView>,
    view: &RolloutView,
    steps: &mut BTreeMap<Instance, String>,
) -> Vec<Told> {
    let mut told = Vec::new();
    for member in &view.members {
        let before = last
            .and_then(|last| last.members.iter().find(|before| before.instance == member.instance));
        let size = view.batches.get(member.batch_index as usize).map_or(0, |batch| batch.size);
        let is_changed = before.is_none_or(|before| before.standing != member.standing);
        // Who begins to watch a large batch is not told of each that is well.
        let is_old = last.is_none() && size > STEPS_MAX && member.standing == Standing::Healthy;
        match ending(view, before, member).filter(|_| is_changed && !is_old) {
            Some(one) => told.push(one),
            None if member.standing == Standing::Failed => {
                told.extend(restored(view, before, member));
            }
            // Who cannot go on is told of in a batch of any size.
            None if size <= STEPS_MAX || member.phase == Some(Phase::Waiting) => {
                let step = step(before, member).filter(|step| is_new(steps, member, step));
                told.extend(step);
            }
            None => {}
        }
    }
    told
}

/// Is a step another one than was told last? What goes wrong again goes wrong in the same way also where its
/// numbers differ.
fn is_new(steps: &mut BTreeMap<Instance, String>, member: &MemberView, step: &Told) -> bool {
    let is_waiting = member.phase == Some(Phase::Waiting);
    let text = if is_waiting { alike(&step.text) } else { step.text.clone() };
    steps.insert(member.instance.clone(), text.clone()) != Some(text)
}

/// What the gate takes an instance for, where it is no longer on its way.
fn ending(view: &RolloutView, before: Option<&MemberView>, member: &MemberView) -> Option<Told> {
    let note = member.note.as_deref().unwrap_or_default();
    let (tone, word, text) = match member.standing {
        Standing::Pending => {
            before.filter(|before| before.standing == Standing::Silent)?;
            (Tone::Plain, "back", "is heard of again".to_owned())
        }
        Standing::Healthy => {
            let serving = member.serving.as_ref().map_or("nothing new", Revision::short);
            let is_news = before.is_none_or(|before| before.note != member.note);
            let note =
                if note.is_empty() || !is_news { String::new() } else { format!("; {note}") };
            (Tone::Good, "healthy", format!("serves {serving}{note}"))
        }
        Standing::Failed if note.is_empty() => {
            (Tone::Bad, "FAILED", "for no reason told".to_owned())
        }
        Standing::Failed => (Tone::Bad, "FAILED", note.to_owned()),
        Standing::Silent => {
            (Tone::Doubtful, "silent", format!("not heard of; {}", batch_name(view, member)))
        }
        Standing::Gone => (Tone::Doubtful, "gone", "has left".to_owned()),
    };
    let text = format!("{} {text}", member.instance);
    // By now it may have been restored, and have told of that.
    let at = member.failed_at.filter(|_| member.standing == Standing::Failed).unwrap_or(member.at);
    Some(Told { at, tone, word: word.to_owned(), text })
}

/// One that failed serves something healthy again.
fn restored(view: &RolloutView, before: Option<&MemberView>, member: &MemberView) -> Option<Told> {
    let before = before?;
    let serving =
        member.serving.as_ref().filter(|serving| view.revision.as_ref() != Some(serving))?;
    let is_well = |member: &MemberView| {
        member.health == Health::Healthy
            && member.phase != Some(Phase::Restoring)
            && member.serving.as_ref() == Some(serving)
    };
    if is_well(before) || !is_well(member) {
        return None;
    }
    let note = member.note.as_ref().filter(|_| before.note != member.note);
    let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
    let text = format!("{} serves {} again{note}", member.instance, serving.short());
    Some(Told { at: member.at, tone: Tone::Good, word: "restored".to_owned(), text })
}

/// The step that an instance has done, or is at.
fn step(before: Option<&MemberView>, member: &MemberView) -> Option<Told> {
    let phase = member.phase?;
    let is_entered = before.is_none_or(|before| before.phase != member.phase);
    let is_noted = member.note.is_some() && before.is_none_or(|before| before.note != member.note);
    if !is_entered && !is_noted {
        return None;
    }
    // On entering a phase the note tells of the step before it, later of the phase itself.
    let (word, without_note) = match (phase, is_entered) {
        (Phase::Starting | Phase::Idle, _) => return None,
        (Phase::Waiting, _) => ("prepare", Some("failed; tried again after a wait")),
        (Phase::Preparing, _) => ("prepare", None),
        (Phase::Asking, _) => ("prepare", Some("done; asks for leave to swap")),
        (Phase::Activating, true) => ("activate", Some("begins")),
        (Phase::Activating | Phase::Proving, _) => ("activate", None),
        (Phase::Probing, true) => ("activate", Some("done; probing begins")),
        (Phase::Probing, false) => ("probe", None),
        (Phase::Restoring, _) => ("restore", Some("puts back what served before")),
    };
    let instance = &member.instance;
    let note = member.note.as_deref();
    let (text, tone) = match (phase, note) {
        // Why it cannot go on is its note also where that is the same as before.
        (Phase::Waiting, Some(note)) => {
            let next = format!("next: towline logs {instance}");
            (format!("{instance} tries again after a wait: {note}; {next}"), Tone::Doubtful)
        }
        _ => {
            let text = note.filter(|_| is_noted).or(without_note)?;
            (format!("{instance} {text}"), Tone::Plain)
        }
    };
    Some(Told { at: member.at, tone, word: word.to_owned(), text })
}

/// Is a decision told by the state that it led to? By its word, or because it gives the reason.
fn is_of_state(view: &RolloutView, decided: &Decided) -> bool {
    let reason = view.reason.trim();
    let gives_reason = !reason.is_empty() && decided.text.contains(reason);
    gives_reason || of(&decided.text, state_word(view)).is_some()
}

fn state_word(view: &RolloutView) -> &'static str {
    match view.state {
        State::Running => "resumed",
        state => state.as_str(),
    }
}

fn state(last: Option<&RolloutView>, view: &RolloutView, decisions: &[Decided]) -> Vec<Told> {
    let before = last.map_or(State::Running, |last| last.state);
    // A good end is told by the summary.
    if before == view.state || view.state == State::Converged {
        return Vec::new();
    }
    let said = decisions.iter().rev().find(|decided| is_of_state(view, decided));
    // The gate has told why, and the way back is told next.
    if view.state == State::Aborted && said.is_some_and(|said| said.text.starts_with("gate")) {
        return Vec::new();
    }
    let word = state_word(view);
    let by_word = said.and_then(|said| of(&said.text, word));
    let text = match view.state {
        State::Halted => view.reason.as_str(),
        _ => by_word.unwrap_or_else(|| of(&view.reason, word).unwrap_or(&view.reason)),
    };
    let at = said.map_or_else(|| latest(view), |decided| decided.at);
    let tone = crate::render::rollout::tone(view.state);
    let word = if view.state == State::Halted { "HALTED" } else { word };
    let mut told = vec![Told { at, tone, word: word.to_owned(), text: text.to_owned() }];
    if let Some(text) = may_still_swap(&view.may_still_swap) {
        told.push(Told { at, tone: Tone::Doubtful, word: String::new(), text });
    }
    told
}

/// What was decided about the rollout as a whole: by its gate, or by an operator.
fn gate(view: &RolloutView, decisions: &[Decided], is_state_told: bool) -> Vec<Told> {
    let is_news = |decided: &&Decided| {
        let is_of_batch = view.batches.iter().any(|batch| of(&decided.text, &batch.name).is_some());
        // Who failed is told by a line of its own.
        let mut failed = view.members.iter().filter(|member| member.standing == Standing::Failed);
        let is_of_member =
            failed.any(|member| of(&decided.text, member.instance.as_str()).is_some());
        let is_end = view.state == State::Converged && decided.text == State::Converged.as_str();
        let is_state = is_state_told && is_of_state(view, decided);
        !(is_of_batch || is_of_member || is_end || is_state)
    };
    let tell = |decided: &Decided| {
        let (word, text) = match of(&decided.text, "gate") {
            Some(text) => ("gate", text),
            None => ("rollout", decided.text.as_str()),
        };
        let tone = if text.contains("fail") { Tone::Bad } else { Tone::Plain };
        Told { at: decided.at, tone, word: word.to_owned(), text: text.to_owned() }
    };
    decisions.iter().filter(is_news).map(tell).collect()
}

#[cfg(test)]
mod tests;
