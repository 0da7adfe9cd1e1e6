//! What is said before a release begins, and `plan`.

use towline_protocol::api::{CommitView, Counts, GroupView, PlanView};
use towline_protocol::ids::{Group, Instance, Revision};

use crate::render::table::{Column, Table};
use crate::render::text::{count, few, line, wrap};
use crate::render::time::span;
use crate::render::{Line, Tone, WIDTH};

/// Says what a name stands for, in full.
pub(crate) fn resolved(
    name: &str,
    revision: &Revision,
    commit: Option<&CommitView>,
    target: Option<&Revision>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    if name != revision.as_str() {
        lines.push(Line::new(Tone::Head, format!("{} is {revision}", line(name, 30))));
    } else if revision.as_str().len() < WIDTH {
        lines.push(Line::new(Tone::Head, revision.as_str()));
    }
    lines.extend(commit.map(|commit| described(commit, target)));
    lines
}

/// Says what a commit is, and where, seen from the target.
fn described(commit: &CommitView, target: Option<&Revision>) -> Line {
    let distance = target.and_then(|target| distance(commit, target));
    let distance = distance.map(|distance| format!(", {distance}")).unwrap_or_default();
    let author = line(&commit.author, 24);
    let room = WIDTH.saturating_sub(8 + author.chars().count() + distance.chars().count());
    let subject = line(&commit.subject, room.max(20));
    Line::plain(format!("  \"{subject}\" by {author}{distance}"))
}

/// Says where a rollback goes, and how.
pub(crate) fn way_back(
    group: &GroupView,
    to: Option<&Revision>,
    commit: Option<&CommitView>,
) -> Vec<Line> {
    let (name, counts) = (&group.group, &group.counts);
    let target = group.target.as_ref().and_then(|target| target.revision.as_ref());
    let head = match to {
        Some(to) => format!("{name} goes back to {to}"),
        None => format!("{name} goes back to what each instance served before"),
    };
    let mut lines = vec![Line::new(Tone::Head, head)];
    lines.extend(commit.map(|commit| described(commit, target)));
    lines.push(standing(name, counts, &[]));
    if let Some(rollout) = &group.rollout {
        let (generation, state) = (rollout.order.generation, rollout.state.as_str());
        lines.push(Line::plain(format!(
            "the rollout of generation {generation}, which is {state}, ends"
        )));
    }
    let (instances, max) =
        (count(counts.instances as usize, "instance"), group.policy.max_unavailable_rollback);
    lines.push(Line::plain(format!(
        "plan: {instances} in one batch, without a bake; at most {max} unavailable at a time"
    )));
    lines
}

/// Says where a commit is, seen from the target.
fn distance(commit: &CommitView, target: &Revision) -> Option<String> {
    let short = target.short();
    if commit.revision == *target {
        return Some(format!("the target {short} itself"));
    }
    let commits = |number: u64| count(usize::try_from(number).unwrap_or(usize::MAX), "commit");
    match (commit.ahead, commit.behind) {
        (Some(ahead), _) => Some(format!("{} after {short}", commits(ahead))),
        (None, Some(behind)) => Some(format!("{} before {short}", commits(behind))),
        (None, None) => None,
    }
}

/// Says how a group stands before something begins.
pub(crate) fn standing(group: &Group, counts: &Counts, silent: &[Instance]) -> Line {
    let unwell = [
        (counts.unhealthy, "unhealthy"),
        (counts.unknown, "of unknown health"),
        (counts.silent, "silent"),
    ];
    let healthy =
        unwell.iter().fold(counts.instances, |left, (count, _)| left.saturating_sub(*count));
    let mut text = format!("{group}: {} live, {healthy} healthy", counts.instances);
    for (number, word) in unwell {
        if number > 0 {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    if counts.silent > 0 {
        let verb = if counts.silent == 1 { "counts" } else { "count" };
        let names = few(silent.iter().map(Instance::as_str), 3, " ");
        let between = if names.is_empty() { "" } else { ", " };
        text.push_str(&format!(" ({names}{between}{verb} as unavailable)"));
    }
    Line::plain(text)
}

/// Says a plan in one line.
pub(crate) fn outline(plan: &PlanView) -> Line {
    let Some((first, rest)) = plan.batches.split_first() else {
        return Line::plain("plan: no batch yet: nobody would take part");
    };
    let mut parts = vec![format!("{} {}", line(&first.name, 20), first.size)];
    let shares: Option<Vec<&str>> =
        rest.iter().map(|batch| batch.name.strip_suffix(" %")).collect();
    match shares {
        Some(shares) if !shares.is_empty() => {
            parts.push(format!(", then {} %", shares.join(" ")));
        }
        _ => parts
            .extend(rest.iter().map(|batch| format!(", {} {}", line(&batch.name, 20), batch.size))),
    }
    let budget = &plan.budget;
    // Bake times say nothing of how long it takes where it stands still first.
    let unwell = plan.counts.unhealthy + plan.counts.unknown;
    let time = if budget.used < budget.max || unwell == plan.counts.instances {
        format!("at least {}", span(plan.bake_s))
    } else {
        "stands still while the budget is used up".to_owned()
    };
    let (batches, healthy) = (parts.concat(), plan.healthy_min);
    Line::plain(format!("plan: {batches}; {healthy} stay healthy; {time}"))
}

/// Shows a plan batch by batch.
pub(crate) fn plan(plan: &PlanView) -> Vec<Line> {
    const MEMBERS_SHOWN_MAX: usize = 60;
    let mut lines = vec![outline(plan)];
    let budget = &plan.budget;
    lines.push(Line::plain(format!(
        "budget: {} may be unavailable at a time, {} now",
        budget.max, budget.used
    )));
    let mut table =
        Table::new(&[Column::Left("BATCH"), Column::Right("SIZE"), Column::Right("BAKES")]);
    for batch in &plan.batches {
        let cells = [batch.name.clone(), batch.size.to_string(), span(batch.bake_s)];
        table.row(Tone::Plain, cells);
    }
    let mut rows = table.lines(WIDTH).into_iter();
    lines.extend(rows.next());
    for (row, batch) in rows.zip(&plan.batches) {
        lines.push(row);
        let named = batch.members.len().min(MEMBERS_SHOWN_MAX);
        let mut names: Vec<&str> = batch.members[..named].iter().map(Instance::as_str).collect();
        let left_out = (batch.size as usize).saturating_sub(named);
        let more = format!("and {left_out} more");
        if left_out > 0 && named > 0 {
            names.push(&more);
        }
        let members = wrap(&names.join(" "), WIDTH - 2);
        lines.extend(members.iter().map(|text| Line::plain(format!("  {text}"))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::sample;

    #[test]
    fn a_name_is_told_in_full() {
        let revision = sample::revision("4f2c91e0");
        let target = sample::revision("9b03d7a1");
        let commit = sample::commit("4f2c91e0", "Cache price lists");
        let told = |name: &str, commit: &CommitView| {
            sample::texts(&resolved(name, &revision, Some(commit), Some(&target)))
        };
        assert_eq!(
            told("4f2c", &commit),
            [
                "4f2c is 4f2c91e04f2c91e04f2c91e04f2c91e04f2c91e0",
                "  \"Cache price lists\" by Ada, 7 commits after 9b03d7a",
            ]
        );
        let before = CommitView { ahead: None, behind: Some(1), ..commit.clone() };
        assert!(told("x", &before)[1].ends_with("1 commit before 9b03d7a"));
        let aside = CommitView { ahead: None, behind: None, ..commit.clone() };
        assert!(told("x", &aside)[1].ends_with("by Ada"));
        let long = CommitView { subject: "s\n".repeat(100), ..commit.clone() };
        assert_eq!(told("x", &long)[1].chars().count(), WIDTH, "{:?}", told("x", &long));
        let alone = resolved(revision.as_str(), &revision, None, None);
        assert_eq!(sample::texts(&alone), [revision.as_str()]);
        let same = resolved("x", &revision, Some(&commit), Some(&revision));
        assert!(same[1].text.ends_with("the target 4f2c91e itself"), "{same:?}");
    }

    #[test]
    fn how_a_group_stands_is_one_line() {
        let web = "web".parse().unwrap();
        let silent: Vec<Instance> = vec!["i-0c4e".parse().unwrap()];
        let counts = Counts { instances: 50, converged: 49, silent: 1, ..Counts::default() };
        let expected = "web: 50 live, 49 healthy, 1 silent (i-0c4e, counts as unavailable)";
        assert_eq!(standing(&web, &counts, &silent).text, expected);
        let counts = Counts { instances: 4, converged: 3, unhealthy: 1, ..Counts::default() };
        assert_eq!(standing(&web, &counts, &[]).text, "web: 4 live, 3 healthy, 1 unhealthy");
        let counts = Counts { instances: 9, silent: 9, ..Counts::default() };
        let expected = "web: 9 live, 0 healthy, 9 silent (count as unavailable)";
        assert_eq!(standing(&web, &counts, &[]).text, expected);
    }

    #[test]
    fn a_plan_is_told_in_a_line_and_in_a_table() {
        let mut view = sample::plan();
        let expected = "plan: canary 1, then 10 50 100 %; 9 stay healthy; at least 9 min";
        assert_eq!(outline(&view).text, expected);
        assert_eq!(
            sample::texts(&plan(&view)),
            [
                expected,
                "budget: 1 may be unavailable at a time, 0 now",
                "BATCH   SIZE  BAKES",
                "canary     1  5 min",
                "  i-0",
                "10 %       1  2 min",
                "  i-1",
                "50 %       3  2 min",
                "  i-2 i-3 i-4",
                "100 %     70    0 s",
                "  i-5 and 69 more",
            ]
        );
        view.budget.used = 1;
        let end = "9 stay healthy; stands still while the budget is used up";
        assert!(outline(&view).text.ends_with(end), "{}", outline(&view).text);
        view.budget.used = 0;
        view.batches.truncate(1);
        "rollback".clone_into(&mut view.batches[0].name);
        assert_eq!(outline(&view).text, "plan: rollback 1; 9 stay healthy; at least 9 min");
        view.batches.clear();
        assert!(outline(&view).text.contains("nobody would take part"));
    }
}
