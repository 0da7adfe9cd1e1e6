//! Which revisions a group runs, and who is off target.

use towline_protocol::api::{InstanceView, SkewRow, SkewView, TargetView};
use towline_protocol::fleet::Quarantined;
use towline_protocol::ids::Revision;
use towline_protocol::time::Timestamp;

use crate::render::table::{Column, Table};
use crate::render::text::{few, line};
use crate::render::time::{ago, when};
use crate::render::{Line, Tone, instances, rollout};

/// How many of the newest commits in quarantine are shown.
const QUARANTINED_SHOWN_MAX: usize = 3;

/// Shows a group's skew.
pub(crate) fn skew(view: &SkewView, now: Timestamp, width: usize) -> Vec<Line> {
    let mut lines = vec![head(view), Line::plain(rollout::counts(&view.counts))];
    if !view.revisions.is_empty() {
        lines.extend(revisions(view, now, width));
    }
    let (waiting, off): (Vec<&InstanceView>, Vec<&InstanceView>) =
        view.off_target.iter().partition(|instance| instance.awaits_batch);
    if !view.off_target.is_empty() {
        lines.push(Line::new(Tone::Faint, "OFF TARGET"));
        lines.extend(off.into_iter().flat_map(instances::off_target));
        lines.extend(waits(view, &waiting));
    }
    if view.left_out > 0 {
        lines.push(Line::new(Tone::Faint, format!("and {} more", view.left_out)));
    }
    // What is live somewhere, and what is newest; the others are a list of their own.
    let is_live = |quarantined: &Quarantined| live(view, quarantined) > 0;
    let old = view.quarantine.len().saturating_sub(QUARANTINED_SHOWN_MAX);
    let (old, new) = view.quarantine.split_at(old);
    let (old_live, old): (Vec<_>, Vec<_>) = old.iter().partition(|one| is_live(one));
    let shown = old_live.into_iter().chain(new);
    lines.extend(shown.map(|quarantined| quarantine(view, quarantined, now)));
    if !old.is_empty() {
        let text = format!(
            "{} more in quarantine, live nowhere: towline quarantine list {}",
            old.len(),
            view.group
        );
        lines.push(Line::new(Tone::Faint, text));
    }
    lines
}

/// How many instances serve a commit that is in quarantine.
fn live(view: &SkewView, quarantined: &Quarantined) -> u32 {
    let is_it = |row: &&SkewRow| row.revision.as_ref() == Some(&quarantined.revision);
    view.revisions.iter().find(is_it).map_or(0, |row| row.instances)
}

/// Who only waits for its batch is as it should be, and one of many: a line tells of all of them.
fn waits(view: &SkewView, waiting: &[&InstanceView]) -> Vec<Line> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let names = few(waiting.iter().map(|instance| instance.instance.as_str()), 6, " ");
    let verb = if waiting.len() == 1 { "waits for its batch" } else { "wait for their batches" };
    vec![
        Line::plain(format!("{} {verb}: {names}", waiting.len())),
        Line::new(Tone::Faint, format!("       next: towline rollout show {}", view.group)),
    ]
}

fn head(view: &SkewView) -> Line {
    let Some(target) = &view.target else {
        return Line::new(Tone::Head, format!("{} has no target yet", view.group));
    };
    let row = view.revisions.iter().find(|row| row.is_target);
    let commit = row.and_then(|row| row.commit.as_ref());
    let subject = commit.map(|commit| format!(" \"{}\"", line(&commit.subject, 24)));
    let text = format!("{} target {}{}", view.group, aim(target), subject.unwrap_or_default());
    let (generation, note) = (target.order.generation, line(&target.note, 40));
    Line::new(Tone::Head, format!("{text}, generation {generation}, {note}"))
}

/// Says what a target names.
pub(crate) fn aim(target: &TargetView) -> String {
    match (&target.revision, &target.not) {
        (Some(revision), _) => revision.short().to_owned(),
        (None, Some(not)) => format!("anything but {}", not.short()),
        (None, None) => "nothing".to_owned(),
    }
}

fn revisions(view: &SkewView, now: Timestamp, width: usize) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("REVISION"),
        Column::Elastic("SUBJECT"),
        Column::Right("AGE"),
        Column::Right("CURRENT"),
        Column::Right("WORKERS"),
        Column::Right("SHARE"),
    ]);
    for row in &view.revisions {
        let name = row.revision.as_ref().map_or("unknown", Revision::short);
        let mark = if row.is_target { "*" } else { "" };
        let (subject, age) = match &row.commit {
            Some(commit) => (line(&commit.subject, 60), ago(commit.authored, now)),
            None => (String::new(), String::new()),
        };
        let tone = if row.is_target { Tone::Good } else { Tone::Doubtful };
        table.row(
            tone,
            [
                format!("{name}{mark}"),
                subject,
                age,
                row.instances.to_string(),
                row.workers.to_string(),
                share(row, view.counts.instances),
            ],
        );
    }
    table.lines(width)
}

fn share(row: &SkewRow, all: u32) -> String {
    let percent = (u64::from(row.instances) * 100 + u64::from(all) / 2).checked_div(u64::from(all));
    match percent {
        None => "-".to_owned(),
        Some(0) if row.instances > 0 => "<1 %".to_owned(),
        // Not all of them is never all of it.
        Some(100) if row.instances < all => ">99 %".to_owned(),
        Some(percent) => format!("{percent} %"),
    }
}

fn quarantine(view: &SkewView, quarantined: &Quarantined, now: Timestamp) -> Line {
    let (place, tone) = match live(view, quarantined) {
        0 => ("live nowhere".to_owned(), Tone::Plain),
        live => (format!("live on {live}"), Tone::Bad),
    };
    let since = when(quarantined.since, now);
    let (short, reason) = (quarantined.revision.short(), line(&quarantined.reason, 200));
    let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
    Line::new(tone, format!("{short}: {place}, quarantined {since}{reason}"))
}

#[cfg(test)]
mod tests {
    use towline_protocol::api::{Counts, Status};
    use towline_protocol::report::Health;

    use super::*;
    use crate::render::WIDTH;
    use crate::render::sample;

    fn row(digits: Option<(&str, &str)>, instances: u32, workers: u32) -> SkewRow {
        SkewRow {
            revision: digits.map(|(digits, _)| sample::revision(digits)),
            commit: digits.map(|(digits, subject)| sample::commit(digits, subject)),
            is_target: digits.is_some_and(|(digits, _)| digits == "9b03d7a1"),
            instances,
            workers,
        }
    }

    fn view() -> SkewView {
        let mut degraded = sample::instance_view("i-0f92", Status::Degraded);
        degraded.degraded = Some("baked c81f002; git timed out 9 times".to_owned());
        let mut silent = sample::instance_view("i-0c4e", Status::Silent);
        (silent.seen_s, silent.health) = (840, Health::Unknown);
        SkewView {
            group: "web".parse().unwrap(),
            target: Some(sample::target()),
            counts: Counts {
                instances: 50,
                converged: 48,
                degraded: 1,
                silent: 1,
                ..Counts::default()
            },
            revisions: vec![
                row(Some(("9b03d7a1", "Fix VAT rounding")), 48, 47),
                row(Some(("c81f0022", "Bump undici")), 1, 1),
                row(None, 1, 0),
            ],
            off_target: vec![degraded, silent],
            left_out: 0,
            quarantine: vec![Quarantined {
                revision: sample::revision("4f2c91e0"),
                since: sample::at(45),
                reason: "canary 1 failed".to_owned(),
            }],
            has_mirror: true,
        }
    }

    #[test]
    fn skew_is_a_table_and_who_is_off_target() {
        assert_eq!(
            sample::texts(&skew(&view(), sample::at(600), WIDTH)),
            [
                "web target 9b03d7a \"Fix VAT rounding\", generation 119, rollback of 118",
                "50 instances: 48 converged, 1 degraded, 1 silent",
                "REVISION  SUBJECT            AGE  CURRENT  WORKERS  SHARE",
                "9b03d7a*  Fix VAT rounding  24 h       48       47   96 %",
                "c81f002   Bump undici       24 h        1        1    2 %",
                "unknown                                 1        0    2 %",
                "OFF TARGET",
                "i-0f92 degraded 42 min: baked c81f002; git timed out 9 times",
                "       next: towline why i-0f92",
                "i-0c4e silent 14 min: last served 9b03d7a",
                "       next: towline why i-0c4e",
                "4f2c91e: live nowhere, quarantined 14:15:45Z: canary 1 failed",
            ]
        );
    }

    #[test]
    fn who_waits_for_its_batch_is_one_of_many() {
        let mut view = view();
        view.off_target[0].awaits_batch = true;
        let texts = sample::texts(&skew(&view, sample::at(600), WIDTH));
        assert_eq!(
            texts[7..12],
            [
                "i-0c4e silent 14 min: last served 9b03d7a",
                "       next: towline why i-0c4e",
                "1 waits for its batch: i-0f92",
                "       next: towline rollout show web",
                "4f2c91e: live nowhere, quarantined 14:15:45Z: canary 1 failed",
            ]
        );
        view.off_target[1].awaits_batch = true;
        let texts = sample::texts(&skew(&view, sample::at(600), WIDTH));
        assert_eq!(texts[7], "2 wait for their batches: i-0f92 i-0c4e");
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let mut view = view();
        view.target = None;
        view.revisions.clear();
        view.off_target.clear();
        view.counts = Counts::default();
        let texts = sample::texts(&skew(&view, sample::at(600), WIDTH));
        assert_eq!(texts[..2], ["web has no target yet", "0 instances"]);
        let mut not = sample::target();
        not.not = not.revision.take();
        assert_eq!(aim(&not), "anything but 9b03d7a");
    }

    #[test]
    fn shares_are_honest_at_their_ends() {
        let share = |instances, all| share(&row(None, instances, 0), all);
        for (instances, all, expected) in [
            (0, 0, "-"),
            (0, 5, "0 %"),
            (1, 1000, "<1 %"),
            (999, 1000, ">99 %"),
            (1000, 1000, "100 %"),
            (1, 3, "33 %"),
            (2, 3, "67 %"),
        ] {
            assert_eq!(share(instances, all), expected, "{instances} of {all}");
        }
        let mut view = view();
        view.quarantine[0].revision = sample::revision("c81f0022");
        let lines = skew(&view, sample::at(600), WIDTH);
        assert!(lines.last().unwrap().text.starts_with("c81f002: live on 1, quarantined"));
        assert_eq!(lines.last().unwrap().tone, Tone::Bad);
    }

    #[test]
    fn lines_fit_80_columns_whatever_is_in_them() {
        let mut view = view();
        let commit = view.revisions[0].commit.as_mut().unwrap();
        commit.subject = "A very long subject \u{1b}[31m".repeat(10);
        view.off_target[0].degraded = Some("because of this and that, ".repeat(20));
        for line in skew(&view, sample::at(600), WIDTH).iter().take(11) {
            assert!(line.text.chars().count() <= 80, "{line:?}");
        }
    }

    #[test]
    fn of_what_is_in_quarantine_the_newest_and_the_live_are_shown() {
        let mut view = view();
        let one = |digits: &str| Quarantined {
            revision: sample::revision(digits),
            since: sample::at(0),
            reason: String::new(),
        };
        view.quarantine = (1..=5).map(|number| one(&format!("0000000{number}"))).collect();
        let told = |view: &SkewView| {
            let texts = sample::texts(&skew(view, sample::at(600), WIDTH));
            texts.into_iter().filter(|text| text.contains("quarantine")).collect::<Vec<_>>()
        };
        let texts = told(&view);
        assert_eq!(texts.len(), 4, "{texts:#?}");
        assert_eq!(texts[3], "2 more in quarantine, live nowhere: towline quarantine list web");
        view.revisions[1].revision = Some(sample::revision("00000001"));
        let texts = told(&view);
        assert!(texts[0].contains("live on"), "{texts:#?}");
        assert!(texts[4].starts_with("1 more in quarantine"), "{texts:#?}");
    }
}
