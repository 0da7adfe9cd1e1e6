//! What a release would do: its batches, how long they bake, how many stay healthy, and what is worth
//! knowing before it begins.
//!
//! The release is made as it would be, on records of its own that nobody keeps; so what would be refused
//! is refused here, and for the same reason.
//!
//! PURE.

use serde::de::DeserializeOwned;
use towline_protocol::api::{Budget, ErrorBody, PAGE_MAX, PlanView, PlannedBatch, ReleaseRequest};
use towline_protocol::fleet::InstanceRecord;
use towline_protocol::policy::OnFailure;
use towline_protocol::rollout::{Rollout, Selector};

use super::{Look, told};
use crate::fleet::{self, Attendance, Presence};
use crate::records::{Draft, GroupState, Kept, key};
use crate::rollout::batches;
use crate::rollout::operations::{self, Act};
use crate::store::Write;

/// Returns what a release would do. `refused`: what a mirror says against its commit.
#[must_use]
pub fn view(
    look: &Look<'_>,
    request: &ReleaseRequest,
    act: &Act,
    refused: Option<ErrorBody>,
) -> PlanView {
    let proposed = operations::propose(look.state, look.attendance, request, act);
    let (state, refused) = match proposed {
        Ok(value) => {
            let rollout = Some(Kept { version: 0, value });
            (Some(GroupState { rollout, ..look.state.clone() }), refused)
        }
        Err(error) => (None, Some(error)),
    };
    let state = state.as_ref().unwrap_or(look.state);
    let rollout = if refused.is_none() { state.going() } else { None };
    let batches = rollout.map(|rollout| planned(state, rollout, look.attendance));
    let batches = batches.unwrap_or_default();
    let bake_s = batches.iter().map(|batch| batch.bake_s).sum();
    let budget = fleet::budget(state, look.attendance);
    let warnings = rollout.map(|rollout| warnings(look, state, rollout, budget, &batches));
    PlanView {
        group: look.state.group.clone(),
        revision: request.revision.clone(),
        commit: look.commit(Some(&request.revision)),
        refused,
        healthy_min: healthy_min(state, look.attendance, budget, &batches),
        batches,
        bake_s,
        budget,
        counts: fleet::counts(look.state, look.attendance),
        warnings: warnings.unwrap_or_default(),
    }
}

/// Returns a group's records as they would be once a draft of its target and rollout is written.
#[must_use]
pub fn begun(state: &GroupState, draft: &Draft) -> GroupState {
    let mut next = state.clone();
    if let Some(value) = written(draft, &key::target(&state.group)) {
        next.target = Some(Kept { version: 0, value });
    }
    if let Some(value) = written(draft, &key::rollout(&state.group)) {
        next.rollout = Some(Kept { version: 0, value });
    }
    next
}

/// Returns the record that a draft writes at a key.
#[must_use]
pub fn written<T: DeserializeOwned>(draft: &Draft, at: &str) -> Option<T> {
    draft.clone().into_commit().writes.into_iter().find_map(|write| match write {
        Write::Put { key, value } if key == at => serde_json::from_slice(&value).ok(),
        Write::Put { .. } | Write::Delete { .. } => None,
    })
}

fn planned(state: &GroupState, rollout: &Rollout, attendance: &Attendance) -> Vec<PlannedBatch> {
    let planned = batches::plan(state, rollout, attendance).into_iter().map(|batch| PlannedBatch {
        name: batch.name,
        members: batch.members.iter().take(PAGE_MAX).cloned().collect(),
        size: fleet::count(batch.members.len()),
        bake_s: batch.bake.as_secs(),
    });
    planned.collect()
}

fn is_well(state: &GroupState, attendance: &Attendance, record: &InstanceRecord) -> bool {
    !fleet::is_unavailable(record, attendance) && !state.open.contains_key(&record.instance)
}

/// How many stay healthy: all that are, but those that get a permit at a time.
fn healthy_min(
    state: &GroupState,
    attendance: &Attendance,
    budget: Budget,
    batches: &[PlannedBatch],
) -> u32 {
    let well = state.members().filter(|record| is_well(state, attendance, record)).count();
    let moved: u32 = batches.iter().map(|batch| batch.size).sum();
    let at_a_time = budget.max.saturating_sub(budget.used).min(moved);
    fleet::count(well).saturating_sub(at_a_time)
}

fn warnings(
    look: &Look<'_>,
    state: &GroupState,
    rollout: &Rollout,
    budget: Budget,
    batches: &[PlannedBatch],
) -> Vec<String> {
    let mut warnings = Vec::new();
    let live = fleet::counted(state).count();
    warnings.extend(budget_warning(state, look.attendance, budget));
    let unheard =
        |record: &&InstanceRecord| look.attendance.of(&record.instance) == Presence::Unheard;
    let unheard = fleet::counted(state).filter(unheard).count();
    if unheard > 0 {
        let who = told::number(unheard, "instance", "instances");
        warnings.push(format!("not heard of since the coordinator started: {who}"));
    }
    if live == 0 {
        warnings.push(
            "the group is empty: the rollout stays open until an instance has proven it".to_owned(),
        );
    } else if batches.first().is_some_and(|first| first.size as usize >= live) {
        warnings.push(format!("{} is the whole group", batches[0].name));
    }
    if rollout.is_proven {
        warnings.push(
            "the revision is group-proven: a failure halts the rollout, and nothing goes back by \
             itself"
                .to_owned(),
        );
    } else if rollout.policy.on_failure == OnFailure::Halt {
        warnings
            .push("on_failure is \"halt\": after a failure nothing goes back by itself".to_owned());
    } else if rollout.target.fallback.is_none() {
        warnings.push(
            "the group has no fallback: a failure goes back to whatever each instance served before"
                .to_owned(),
        );
    }
    if let Some(only) = &rollout.only {
        let of_nobody: Vec<&str> = only
            .parts()
            .filter(|part| !state.members().any(|it| Selector::is_of(part, &it.instance)))
            .collect();
        if !of_nobody.is_empty() {
            let of_nobody = told::line(&of_nobody.join(" "));
            warnings.push(format!("no instance is called like this: {of_nobody}"));
        }
        let resume = format!("`towline rollout resume {}`", state.group);
        warnings.push(format!(
            "only {} takes part: {resume} takes it to all others",
            told::line(only.as_str())
        ));
    }
    if !rollout.policy.has_mirror() {
        warnings.push("no mirror: the commit was not checked".to_owned());
    }
    warnings
}

/// What is unavailable before it begins, and what that keeps from happening.
fn budget_warning(state: &GroupState, attendance: &Attendance, budget: Budget) -> Option<String> {
    let is_silent = |record: &&InstanceRecord| attendance.is_silent(&record.instance);
    let is_unwell = |record: &&InstanceRecord| {
        attendance.of(&record.instance) == Presence::Here && !fleet::is_healthy(record)
    };
    let without =
        || fleet::counted(state).filter(|record| !state.open.contains_key(&record.instance));
    let (silent, unwell) =
        (without().filter(is_silent).count(), without().filter(is_unwell).count());
    let mut parts = Vec::new();
    if silent > 0 {
        parts.push(told::number(silent, "silent instance", "silent instances"));
    }
    if unwell > 0 {
        parts.push(told::number(
            unwell,
            "instance that is not healthy",
            "instances that are not healthy",
        ));
    }
    if budget.permits > 0 {
        parts.push(told::number(budget.permits as usize, "open permit", "open permits"));
    }
    // Whoever is not healthy may be mended: where that is all of them, nobody waits for another.
    if parts.is_empty() || unwell == fleet::counted(state).count() {
        return None;
    }
    let many = parts.len() > 1 || silent + unwell + budget.permits as usize > 1;
    let (who, used, max) = (parts.join(" and "), budget.used, budget.max);
    if used < max {
        let take = if many { "take" } else { "takes" };
        return Some(format!("{who} {take} up {used} of {max} that may be unavailable"));
    }
    let (use_up, they, until) = match (many, silent > 0) {
        (true, true) => ("use", "they are", "back or forgotten"),
        (false, true) => ("uses", "it is", "back or forgotten"),
        (true, false) => ("use", "they are", "healthy or closed"),
        (false, false) if unwell > 0 => ("uses", "it is", "healthy"),
        (false, false) => ("uses", "it is", "closed"),
    };
    Some(format!(
        "{who} {use_up} the whole budget ({used} of {max}): no permit can be given until {they} {until}"
    ))
}

#[cfg(test)]
mod tests {
    use towline_protocol::api::Code;
    use towline_protocol::report::Health;

    use super::super::fixture::{Fleet, GOOD, NEW, OLD, act, name, revision};
    use super::*;

    fn request(digit: char) -> ReleaseRequest {
        ReleaseRequest { revision: revision(digit), only: None, without: Vec::new() }
    }

    fn planned(fleet: &Fleet) -> PlanView {
        view(&fleet.look(), &request(NEW), &act(), None)
    }

    fn ten() -> Fleet {
        let names: Vec<String> = (0..10).map(|number| format!("i-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Fleet::of(&names).proven(&[OLD]).policy(|policy| {
            policy.repository = Some("https://git.example/web.git".to_owned());
        })
    }

    #[test]
    fn a_plan_names_who_goes_when_and_leaves_out_nobody() {
        let plan = planned(&ten());
        let batches: Vec<_> =
            plan.batches.iter().map(|it| (it.name.as_str(), it.size, it.bake_s)).collect();
        assert_eq!(
            batches,
            [("canary", 1, 300), ("25 %", 2, 120), ("50 %", 2, 120), ("100 %", 5, 120)]
        );
        let mut everybody: Vec<_> = plan.batches.iter().flat_map(|it| it.members.clone()).collect();
        everybody.sort();
        assert_eq!(everybody, ten().state.instances.into_keys().collect::<Vec<_>>());
        assert_eq!((plan.bake_s, plan.healthy_min, plan.refused), (660, 9, None));
        assert_eq!(plan.warnings, Vec::<String>::new());
    }

    #[test]
    fn warnings_say_what_would_surprise() {
        let small = || Fleet::of(&["i-1", "i-2", "i-3", "i-4"]);
        let whole = "uses the whole budget (1 of 1): no permit can be given until it is";
        let cases = [
            ("one silent in a group of four", small().silent("i-1"), format!("1 silent instance {whole} back or forgotten")),
            (
                "one unhealthy in a group of four",
                small().report("i-1", |report| report.health = Health::Unhealthy),
                format!("1 instance that is not healthy {whole} healthy"),
            ),
            ("a permit that is left", small().permit("i-1", 1), format!("1 open permit {whole} closed")),
            (
                "two silent",
                small().silent("i-1").silent("i-2"),
                "2 silent instances use the whole budget (2 of 1): no permit can be given until they \
                 are back or forgotten"
                    .to_owned(),
            ),
            (
                "budget is left",
                small().silent("i-1").policy(|policy| policy.max_unavailable = "2".parse().unwrap()),
                "1 silent instance takes up 1 of 2 that may be unavailable".to_owned(),
            ),
            ("nothing proven", small(), "the group has no fallback: a failure goes back to whatever each instance served before".to_owned()),
            ("no mirror", small(), "no mirror: the commit was not checked".to_owned()),
            ("a group of one", Fleet::of(&["i-1"]), "canary is the whole group".to_owned()),
            ("nobody", Fleet::of(&[]), "the group is empty: the rollout stays open until an instance has proven it".to_owned()),
            (
                "a proven revision",
                small().proven(&[NEW]),
                "the revision is group-proven: a failure halts the rollout, and nothing goes back by itself".to_owned(),
            ),
            (
                "halting by policy",
                small().policy(|policy| policy.on_failure = OnFailure::Halt),
                "on_failure is \"halt\": after a failure nothing goes back by itself".to_owned(),
            ),
            ("just started", small().unheard("i-1"), "not heard of since the coordinator started: 1 instance".to_owned()),
        ];
        for (rule, fleet, expected) in cases {
            let warnings = planned(&fleet).warnings;
            assert!(warnings.contains(&expected), "{rule}: {expected:?} in {warnings:#?}");
        }
    }

    #[test]
    fn who_is_alone_and_not_healthy_yet_waits_for_nobody() {
        let alone = Fleet::of(&["i-1"]).report("i-1", |report| report.health = Health::Unhealthy);
        let warnings = planned(&alone).warnings;
        assert!(!warnings.iter().any(|line| line.contains("budget")), "{warnings:?}");
    }

    #[test]
    fn what_would_be_refused_is_refused_and_says_why() {
        let going = ten().released(GOOD);
        let refused = planned(&going).refused.unwrap();
        assert_eq!(refused.code, Code::Conflict);
        assert!(planned(&going).batches.is_empty());
        let bad = planned(&ten().quarantined(NEW)).refused.unwrap();
        assert!(bad.message.contains("quarantine"), "{}", bad.message);
        let said = operations::conflict("not on main".to_owned(), None);
        let plan = view(&ten().look(), &request(NEW), &act(), Some(said.clone()));
        assert_eq!((plan.refused, plan.batches.len(), plan.healthy_min), (Some(said), 0, 10));
    }

    #[test]
    fn who_is_left_out_is_in_no_batch_and_costs_no_budget() {
        let fleet = ten().silent("i-3");
        let mut request = request(NEW);
        request.without = vec![name("i-3")];
        let plan = view(&fleet.look(), &request, &act(), None);
        assert!(plan.batches.iter().all(|batch| !batch.members.contains(&name("i-3"))));
        assert_eq!((plan.budget.used, plan.healthy_min), (0, 8), "nine are healthy, one moves");
        request.without = Vec::new();
        request.only = Some(Selector::try_from("i-1,i-2".to_owned()).unwrap());
        let plan = view(&fleet.look(), &request, &act(), None);
        let members: Vec<_> = plan.batches.iter().flat_map(|it| it.members.clone()).collect();
        assert_eq!(members.len(), 2);
        assert!(plan.warnings.iter().any(|line| line.starts_with("only i-1,i-2 takes part")));
        let is_unknown = |line: &String| line.starts_with("no instance is called like this: ");
        assert!(!plan.warnings.iter().any(is_unknown), "{:?}", plan.warnings);
        request.only = Some(Selector::try_from("i-1,i-zzz,i-y*,*".to_owned()).unwrap());
        let plan = view(&fleet.look(), &request, &act(), None);
        let unknown: Vec<&String> = plan.warnings.iter().filter(|line| is_unknown(line)).collect();
        assert_eq!(unknown, ["no instance is called like this: i-zzz i-y*"]);
    }

    #[test]
    fn a_plan_changes_nothing() {
        let fleet = ten();
        let before = fleet.state.clone();
        planned(&fleet);
        assert_eq!(fleet.state, before);
    }
}
