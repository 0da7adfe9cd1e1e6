//! What a group runs: which revisions, on how many instances, and who is off target.
//!
//! A row counts who says that it serves this; whoever is silent, or has said nothing, is among the unknown.
//! Beside it stands how many of them are known to run it, by workers that were seen to.
//!
//! PURE.

use std::collections::BTreeMap;

use towline_protocol::api::{ErrorBody, PAGE_MAX, SkewRow, SkewView, Status};
use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::Revision;
use towline_protocol::report::Evidence;

use super::{Look, instances};
use crate::fleet::{self, Presence};
use crate::rollout::operations::unknown_group;

/// Returns what a group runs.
///
/// # Errors
///
/// There is no such group.
pub fn view(look: &Look<'_>) -> Result<SkewView, ErrorBody> {
    let record = look.record().ok_or_else(|| unknown_group(&look.state.group))?;
    let mut off: Vec<(Status, &InstanceRecord)> = look
        .state
        .members()
        .map(|record| (fleet::status(record, look.target(), look.attendance), record))
        .filter(|(status, _)| is_off_target(look, *status))
        .collect();
    off.sort_by(|(one, a), (other, b)| (one, &a.instance).cmp(&(other, &b.instance)));
    let left_out = fleet::count(off.len().saturating_sub(PAGE_MAX));
    let off = off.into_iter().take(PAGE_MAX);
    Ok(SkewView {
        group: look.state.group.clone(),
        target: look.target_view(),
        counts: fleet::counts(look.state, look.attendance),
        revisions: rows(look),
        off_target: off.map(|(_, record)| instances::view(look, record)).collect(),
        left_out,
        quarantine: record.quarantine.clone(),
        has_mirror: record.policy.has_mirror(),
    })
}

/// Nobody can be off a target that there is not; whoever is not well is told all the same.
fn is_off_target(look: &Look<'_>, status: Status) -> bool {
    match status {
        Status::Converged => false,
        Status::Stale => look.target().is_some(),
        Status::Degraded | Status::Unhealthy | Status::Unknown | Status::Silent => true,
    }
}

fn rows(look: &Look<'_>) -> Vec<SkewRow> {
    let wanted = look.target().and_then(|target| target.revision.as_ref());
    let mut counts: BTreeMap<Option<&Revision>, (u32, u32)> = BTreeMap::new();
    for record in look.state.members() {
        let is_silent = look.attendance.is_silent(&record.instance);
        let serves = if is_silent { None } else { look.serves(record) };
        let count = counts.entry(serves).or_default();
        count.0 += 1;
        if serves.is_some() && is_seen_to(look, record) {
            count.1 += 1;
        }
    }
    let rows = counts.into_iter().map(|(revision, (instances, workers))| SkewRow {
        revision: revision.cloned(),
        commit: look.commit(revision),
        is_target: revision.is_some() && revision == wanted,
        instances,
        workers,
    });
    let mut rows: Vec<SkewRow> = rows.collect();
    // Stable: rows of one size stay in the order of their ids.
    rows.sort_by_key(|row| (row.revision.is_none(), std::cmp::Reverse(row.instances)));
    rows
}

/// Was it seen that the workers run what is said to serve?
fn is_seen_to(look: &Look<'_>, record: &InstanceRecord) -> bool {
    let evidence = record.report.as_ref().and_then(|report| report.evidence);
    look.attendance.of(&record.instance) == Presence::Here
        && evidence.is_some_and(|evidence| evidence >= Evidence::Started)
}

#[cfg(test)]
mod tests {
    use towline_protocol::report::Health;

    use super::super::fixture::{Fleet, GOOD, NEW, OLD, name, revision};
    use super::*;

    fn row(digit: Option<char>, is_target: bool, instances: u32, workers: u32) -> SkewRow {
        SkewRow { revision: digit.map(revision), commit: None, is_target, instances, workers }
    }

    #[test]
    fn rows_count_what_was_told_by_those_who_are_there() {
        let five = Fleet::of(&["i-1", "i-2", "i-3", "i-4", "i-5"]).released(GOOD).converged();
        let all = ["i-1", "i-2", "i-3", "i-4", "i-5"].iter();
        let fleet = all.fold(five, |fleet, at| fleet.serves(at, GOOD));
        let replaced =
            |fleet: Fleet| fleet.report("i-1", |report| report.evidence = Some(Evidence::Replaced));
        let cases = [
            ("all converged", fleet.clone(), vec![row(Some(GOOD), true, 5, 5)]),
            (
                "new workers alone show nothing",
                replaced(fleet.clone()),
                vec![row(Some(GOOD), true, 5, 4)],
            ),
            (
                "most first",
                fleet.clone().serves("i-1", OLD).serves("i-2", OLD).serves("i-3", OLD),
                vec![row(Some(OLD), false, 3, 3), row(Some(GOOD), true, 2, 2)],
            ),
            (
                "silence is unknown, and last, however many",
                fleet.clone().silent("i-1").silent("i-2").silent("i-3"),
                vec![row(Some(GOOD), true, 2, 2), row(None, false, 3, 0)],
            ),
            (
                "nothing told is unknown",
                fleet.clone().told("i-1", |record| record.report = None),
                vec![row(Some(GOOD), true, 4, 4), row(None, false, 1, 0)],
            ),
            (
                "who was not heard of since a restart is counted, and not known to run it",
                fleet.clone().unheard("i-1"),
                vec![row(Some(GOOD), true, 5, 4)],
            ),
            (
                "what stands in for the target counts as it",
                fleet.clone().report("i-1", |report| {
                    report.serving = Some(revision(OLD));
                    report.alike = Some(revision(GOOD));
                }),
                vec![row(Some(GOOD), true, 5, 5)],
            ),
            (
                "what stands in for another target does not",
                fleet.clone().report("i-1", |report| {
                    report.serving = Some(revision(OLD));
                    report.alike = Some(revision(NEW));
                }),
                vec![row(Some(GOOD), true, 4, 4), row(Some(OLD), false, 1, 1)],
            ),
        ];
        for (rule, fleet, expected) in cases {
            assert_eq!(view(&fleet.look()).unwrap().revisions, expected, "{rule}");
        }
    }

    #[test]
    fn who_is_off_target_is_listed_by_how_it_stands() {
        let fleet = Fleet::of(&["i-1", "i-2", "i-3", "i-4"]).released(GOOD).converged();
        let fleet = fleet.serves("i-1", GOOD).silent("i-2").serves("i-4", OLD);
        let fleet = fleet.report("i-3", |report| report.health = Health::Unhealthy);
        let view = view(&fleet.look()).unwrap();
        let names: Vec<_> =
            view.off_target.iter().map(|it| (it.status, it.instance.clone())).collect();
        assert_eq!(
            names,
            [
                (Status::Stale, name("i-4")),
                (Status::Unhealthy, name("i-3")),
                (Status::Silent, name("i-2"))
            ]
        );
        assert_eq!((view.left_out, view.counts.instances), (0, 4));
    }

    #[test]
    fn without_a_target_nobody_is_off_it() {
        let fleet = Fleet::of(&["i-1", "i-2"]).silent("i-2");
        let view = view(&fleet.look()).unwrap();
        assert_eq!(view.off_target.len(), 1, "only who is silent");
        assert!(view.revisions.iter().all(|row| !row.is_target) && view.target.is_none());
    }

    #[test]
    fn a_way_back_without_a_fallback_makes_no_row_the_target() {
        let mut fleet = Fleet::of(&["i-1"]).released(NEW);
        let target = &mut fleet.state.target.as_mut().unwrap().value.target;
        (target.not, target.revision) = (target.revision.take(), None);
        let fleet = fleet.told("i-1", |record| record.report.as_mut().unwrap().serving = None);
        assert_eq!(view(&fleet.look()).unwrap().revisions, [row(None, false, 1, 0)]);
    }
}
