//! A rollout as it stands.

use towline_protocol::api::{BatchStage, BatchView, Counts, MemberView, RolloutView, Standing};
use towline_protocol::ids::Instance;
use towline_protocol::report::Phase;
use towline_protocol::rollout::{Kind, State};
use towline_protocol::time::Timestamp;

use crate::render::table::{Column, Table};
use crate::render::text::{few, line};
use crate::render::time::{ago, clock, span, when};
use crate::render::{Line, Tone, WIDTH};

/// How many of the last decisions are shown.
const DECISIONS_SHOWN_MAX: usize = 5;

/// Says what a rollout does: `release of 4f2c91e "Cache price lists"`.
pub(crate) fn what(view: &RolloutView) -> String {
    let subject = match &view.commit {
        Some(commit) => format!(" \"{}\"", line(&commit.subject, 40)),
        None => String::new(),
    };
    match (view.kind, &view.revision, &view.not) {
        (Kind::Release, Some(revision), _) => format!("release of {}{subject}", revision.short()),
        (Kind::Rollback, Some(revision), _) => format!("rollback to {}{subject}", revision.short()),
        (Kind::Restart, Some(revision), _) => format!("restart of {}{subject}", revision.short()),
        (_, None, Some(not)) => format!("rollback away from {}", not.short()),
        (_, None, None) => "rollback".to_owned(),
    }
}

/// Says which rollout it is: `rollout web, generation 118`.
pub(crate) fn name(view: &RolloutView) -> String {
    format!("rollout {}, generation {}", view.group, view.order.generation)
}

/// Returns how serious a state is.
pub(crate) fn tone(state: State) -> Tone {
    match state {
        State::Running => Tone::Plain,
        State::Converged => Tone::Good,
        State::Paused | State::Replaced => Tone::Doubtful,
        State::Halted | State::Aborted => Tone::Bad,
    }
}

/// Says how it stands and why; a reason that begins with the word for it says both.
pub(crate) fn stands(view: &RolloutView) -> String {
    let (state, reason) = (view.state.as_str(), line(&view.reason, 300));
    if reason.starts_with(state) { reason } else { format!("{state}: {reason}") }
}

/// Shows a rollout.
pub(crate) fn show(view: &RolloutView, now: Timestamp, width: usize) -> Vec<Line> {
    let mut lines = vec![Line::new(Tone::Head, format!("{}: {}", name(view), what(view)))];
    lines.push(Line::new(tone(view.state), stands(view)));
    let mut began = format!("by {}, began {}", line(&view.by, 40), when(view.began, now));
    match view.ended {
        Some(ended) => {
            let took = span(ended.since(view.began).as_secs());
            began.push_str(&format!(", ended {} after {took}", when(ended, now)));
        }
        None => began.push_str(&format!(", {} ago", ago(view.began, now))),
    }
    lines.push(Line::plain(began));
    lines.push(Line::plain(counts(&view.counts)));
    if !view.state.is_ended() {
        let budget = &view.budget;
        lines.push(Line::plain(format!(
            "budget: {} of {} used, {} by permits",
            budget.used, budget.max, budget.permits
        )));
    }
    lines.extend(batches(&view.batches));
    lines.extend(members(view, now, width));
    let skipped = view.decisions.len().saturating_sub(DECISIONS_SHOWN_MAX);
    if !view.decisions.is_empty() {
        let more = match skipped {
            0 => String::new(),
            _ => format!(
                " (the last {DECISIONS_SHOWN_MAX} of {}; --json has all)",
                view.decisions.len()
            ),
        };
        lines.push(Line::new(Tone::Faint, format!("DECISIONS{more}")));
    }
    for decided in &view.decisions[skipped..] {
        lines.push(Line::plain(format!("{} {}", clock(decided.at), line(&decided.text, 300))));
    }
    if let Some(swappers) = may_still_swap(&view.may_still_swap) {
        lines.push(Line::new(Tone::Doubtful, swappers));
    }
    lines.extend(next(view));
    lines
}

/// Says how a rollout stands that an operator has just steered.
pub(crate) fn steered(view: &RolloutView) -> Vec<Line> {
    let mut lines = vec![Line::new(tone(view.state), format!("{}: {}", name(view), stands(view)))];
    let swappers = may_still_swap(&view.may_still_swap);
    lines.extend(swappers.map(|text| Line::new(Tone::Doubtful, text)));
    lines.extend(next(view));
    if let Some(next) = view.next_generation {
        let group = &view.group;
        let text = format!("goes on as generation {next}; next: towline rollout watch {group}");
        lines.push(Line::plain(text));
    }
    lines
}

/// Says who may still swap after a pause.
pub(crate) fn may_still_swap(instances: &[Instance]) -> Option<String> {
    let names = few(instances.iter().map(Instance::as_str), 10, " ");
    (!instances.is_empty()).then(|| format!("may still swap, by a permit given before: {names}"))
}

/// Says how a group's instances stand: `50 instances: 47 converged, 1 stale`.
pub(crate) fn counts(counts: &Counts) -> String {
    let parts = [
        (counts.converged, "converged"),
        (counts.stale, "stale"),
        (counts.degraded, "degraded"),
        (counts.unhealthy, "unhealthy"),
        (counts.unknown, "unknown"),
        (counts.silent, "silent"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    let all = crate::render::text::count(counts.instances as usize, "instance");
    if parts.is_empty() { all } else { format!("{all}: {}", parts.join(", ")) }
}

fn batches(batches: &[BatchView]) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("BATCH"),
        Column::Left("STAGE"),
        Column::Right("SIZE"),
        Column::Right("HEALTHY"),
        Column::Right("FAILED"),
        Column::Left("BAKES"),
    ]);
    for batch in batches {
        let tone = match batch.stage {
            BatchStage::Planned => Tone::Faint,
            _ if batch.failed > 0 => Tone::Doubtful,
            BatchStage::Passed => Tone::Good,
            _ => Tone::Plain,
        };
        let bakes = batch.bake_left_s.map(|left_s| format!("{} left", span(left_s)));
        table.row(
            tone,
            [
                batch.name.clone(),
                stage(batch.stage).to_owned(),
                batch.size.to_string(),
                batch.healthy.to_string(),
                batch.failed.to_string(),
                bakes.unwrap_or_default(),
            ],
        );
    }
    if batches.is_empty() { Vec::new() } else { table.lines(WIDTH) }
}

/// Returns the word for a batch's stage.
pub(crate) fn stage(stage: BatchStage) -> &'static str {
    match stage {
        BatchStage::Planned => "planned",
        BatchStage::Offered => "offered",
        BatchStage::Open => "open",
        BatchStage::Bakes => "bakes",
        BatchStage::Passed => "passed",
    }
}

fn members(view: &RolloutView, now: Timestamp, width: usize) -> Vec<Line> {
    if view.members.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(&[
        Column::Left("INSTANCE"),
        Column::Left("BATCH"),
        Column::Left("IS"),
        Column::Left("PHASE"),
        Column::Right("FOR"),
        Column::Elastic("NOTE"),
    ]);
    for member in &view.members {
        table.row(
            member_tone(member),
            [
                member.instance.to_string(),
                batch_name(view, member).to_owned(),
                standing(member.standing).to_owned(),
                member.phase.map(Phase::as_str).unwrap_or("-").to_owned(),
                ago(member.at, now),
                member.note.clone().unwrap_or_default(),
            ],
        );
    }
    let mut lines = table.lines(width);
    if view.members_left_out > 0 {
        lines.push(Line::new(Tone::Faint, format!("and {} more", view.members_left_out)));
    }
    lines
}

fn member_tone(member: &MemberView) -> Tone {
    match member.standing {
        Standing::Pending => Tone::Plain,
        Standing::Healthy => Tone::Good,
        Standing::Failed => Tone::Bad,
        Standing::Silent | Standing::Gone => Tone::Doubtful,
    }
}

/// Returns the name of a member's batch.
pub(crate) fn batch_name<'a>(view: &'a RolloutView, member: &MemberView) -> &'a str {
    view.batches.get(member.batch_index as usize).map_or("?", |batch| batch.name.as_str())
}

/// Returns the word for what the gate takes an instance for.
fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Pending => "pending",
        Standing::Healthy => "healthy",
        Standing::Failed => "failed",
        Standing::Silent => "silent",
        Standing::Gone => "gone",
    }
}

/// Says what can be done about a rollout that does not go on by itself.
pub(crate) fn next(view: &RolloutView) -> Option<Line> {
    let group = &view.group;
    let next = match view.state {
        State::Paused => {
            format!("towline rollout resume {group}, or towline rollout abort {group}")
        }
        State::Halted => format!(
            "towline why {group}; then towline rollout resume {group}, or towline rollout abort {group}"
        ),
        _ => return None,
    };
    Some(Line::plain(format!("next: {next}")))
}

/// Does it stand because all that were chosen have it: is what was asked for done?
pub(crate) fn has_chosen(view: &RolloutView) -> bool {
    view.state == State::Paused
        && view.only.is_some()
        && !view.batches.is_empty()
        && view.batches.iter().all(|batch| batch.stage == BatchStage::Passed)
}

/// Says how far a rollout has come: how many are done, of how many, and what it is at.
pub(crate) fn progress(view: &RolloutView) -> (u64, u64, String) {
    let sum = |part: fn(&BatchView) -> u32| -> u64 {
        view.batches.iter().map(|batch| u64::from(part(batch))).sum()
    };
    let mut text = "have it".to_owned();
    let is_at = |batch: &&BatchView| matches!(batch.stage, BatchStage::Open | BatchStage::Bakes);
    if let Some(batch) = view.batches.iter().find(is_at) {
        let bakes = batch.bake_left_s.map(|left_s| format!(", bakes for {}", span(left_s)));
        let bakes = bakes.unwrap_or_default();
        let name = line(&batch.name, 20);
        text.push_str(&format!("; {name}: {} of {}{bakes}", batch.healthy, batch.size));
    }
    let failed = sum(|batch| batch.failed);
    if failed > 0 {
        text.push_str(&format!("; {failed} failed"));
    }
    if view.state != State::Running {
        text.push_str(&format!("; {}", view.state.as_str()));
    }
    (sum(|batch| batch.healthy), sum(|batch| batch.size), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::render::sample;

    #[test]
    fn a_rollout_is_shown_as_it_stands() {
        let view = sample::rollout();
        let now = sample::at(200);
        assert_eq!(
            sample::texts(&show(&view, now, WIDTH)),
            [
                "rollout web, generation 118: release of 4f2c91e \"Cache price lists\"",
                "running: canary: 1 of 1 prepares",
                "by ada, began 14:15:00Z, 3 min ago",
                "50 instances: 49 converged, 1 silent",
                "budget: 1 of 5 used, 0 by permits",
                "BATCH   STAGE    SIZE  HEALTHY  FAILED  BAKES",
                "canary  open        1        0       0",
                "10 %    offered     4        0       0",
                "100 %   planned    45        0       0",
                "INSTANCE  BATCH   IS       PHASE        FOR  NOTE",
                "i-0a17    canary  pending  preparing  3 min",
                "DECISIONS",
                "14:15:00Z canary opened: i-0a17",
            ]
        );
    }

    #[test]
    fn what_needs_an_operator_is_said() {
        let mut view = sample::rollout();
        view.state = State::Halted;
        view.reason = "canary 1 failed, 0 tolerated".to_owned();
        let lines = show(&view, sample::at(60), WIDTH);
        assert_eq!(lines[1].tone, Tone::Bad);
        assert_eq!(
            lines.last().unwrap().text,
            "next: towline why web; then towline rollout resume web, or towline rollout abort web"
        );
        view.state = State::Paused;
        view.may_still_swap = vec!["i-0a17".parse().unwrap()];
        let texts = sample::texts(&show(&view, sample::at(60), WIDTH));
        assert!(texts.contains(&"may still swap, by a permit given before: i-0a17".to_owned()));
        let decided = view.decisions[0].clone();
        view.decisions = vec![decided; 7];
        let texts = sample::texts(&show(&view, sample::at(60), WIDTH));
        let head = "DECISIONS (the last 5 of 7; --json has all)";
        assert!(texts.contains(&head.to_owned()), "{texts:?}");
        view.state = State::Converged;
        view.ended = Some(sample::at(1500));
        let texts = sample::texts(&show(&view, sample::at(1560), WIDTH));
        assert_eq!(texts[2], "by ada, began 14:15:00Z, ended 14:40:00Z after 25 min");
        assert!(!texts.iter().any(|text| text.starts_with("budget")), "it has none any more");
    }

    #[test]
    fn steering_is_answered_with_how_it_stands() {
        let mut view = sample::rollout();
        view.state = State::Paused;
        view.reason = "paused by ada".to_owned();
        view.may_still_swap = vec![sample::instance("i-0a17")];
        assert_eq!(
            sample::texts(&steered(&view)),
            [
                "rollout web, generation 118: paused by ada",
                "may still swap, by a permit given before: i-0a17",
                "next: towline rollout resume web, or towline rollout abort web",
            ]
        );
        view.state = State::Aborted;
        view.may_still_swap.clear();
        view.next_generation = Some(119);
        let texts = sample::texts(&steered(&view));
        assert_eq!(texts[1], "goes on as generation 119; next: towline rollout watch web");
    }

    #[test]
    fn each_kind_is_told_by_its_name() {
        let mut view = sample::rollout();
        view.commit = None;
        view.kind = Kind::Restart;
        assert_eq!(what(&view), "restart of 4f2c91e");
        view.kind = Kind::Rollback;
        assert_eq!(what(&view), "rollback to 4f2c91e");
        (view.not, view.revision) = (view.revision.take(), None);
        assert_eq!(what(&view), "rollback away from 4f2c91e");
    }

    #[test]
    fn progress_is_told_in_a_line() {
        let mut view = sample::rollout();
        assert_eq!(progress(&view), (0, 50, "have it; canary: 0 of 1".to_owned()));
        view.batches[0].stage = BatchStage::Bakes;
        view.batches[0].healthy = 1;
        view.batches[0].bake_left_s = Some(240);
        view.batches[1].failed = 2;
        view.state = State::Paused;
        let expected = "have it; canary: 1 of 1, bakes for 4 min; 2 failed; paused";
        assert_eq!(progress(&view), (1, 50, expected.to_owned()));
    }
}
