//! A rollout as it is shown: its batches, those who matter in it now, and what was decided.
//!
//! ```text
//!   batches   passed, open, offered: with their members  │ still to come: with their expected sizes
//!   members   of the open and of the offered batch, and whoever failed
//! ```
//!
//! PURE.

use towline_protocol::api::{BatchStage, BatchView, MemberView, PAGE_MAX, RolloutView, Standing};

use towline_protocol::ids::Instance;
use towline_protocol::report::{Health, Phase, Report};
use towline_protocol::rollout::{Batch, Decided, Rollout, State};

use super::{Look, told};
use crate::fleet::{self, Presence};
use crate::rollout::{batches, gate, operations};

/// Returns a rollout as it is shown. `rollout` is the group's present one, or one that is past;
/// `next_generation` is what took its place.
#[must_use]
pub fn view(look: &Look<'_>, rollout: &Rollout, next_generation: Option<u64>) -> RolloutView {
    let (members, members_left_out) = members(look, rollout);
    let stands = matches!(rollout.state, State::Paused | State::Halted);
    let may_still_swap =
        if stands { look.state.open.keys().cloned().collect() } else { Vec::new() };
    let decisions = rollout.decisions.iter();
    RolloutView {
        group: look.state.group.clone(),
        order: rollout.order(),
        kind: rollout.kind,
        revision: rollout.revision().cloned(),
        not: rollout.target.not.clone(),
        fallback: rollout.target.fallback.clone(),
        commit: look.commit(rollout.revision()),
        state: rollout.state,
        reason: told::line(&rollout.reason),
        by: rollout.by.clone(),
        began: rollout.began,
        ended: rollout.ended,
        batches: batch_views(look, rollout),
        members,
        members_left_out,
        budget: fleet::budget(look.state, look.attendance),
        counts: fleet::counts(look.state, look.attendance),
        decisions: decisions
            .map(|decided| Decided { at: decided.at, text: told::line(&decided.text) })
            .collect(),
        reached: reached(look, rollout),
        next_generation,
        may_still_swap,
        only: rollout.only.clone(),
    }
}

fn batch_views(look: &Look<'_>, rollout: &Rollout) -> Vec<BatchView> {
    let so_far = rollout.batches.iter().enumerate().map(|(index, batch)| {
        let standings: Vec<Standing> =
            batch.members.iter().map(|member| standing(look, rollout, index, member)).collect();
        let of = |wanted: Standing| {
            fleet::count(standings.iter().filter(|standing| **standing == wanted).count())
        };
        let stage = stage(batch);
        let bake_left_s = (stage == BatchStage::Bakes && !rollout.state.is_ended())
            .then(|| bake_left_s(look, rollout, index));
        BatchView {
            name: batch.name.clone(),
            stage,
            size: fleet::count(batch.members.len()),
            healthy: of(Standing::Healthy),
            failed: of(Standing::Failed),
            bake_left_s,
        }
    });
    let planned = if rollout.state.is_ended() {
        Vec::new()
    } else {
        batches::plan(look.state, rollout, look.attendance)
    };
    let planned = planned.into_iter().map(|batch| BatchView {
        stage: BatchStage::Planned,
        size: fleet::count(batch.members.len()),
        name: batch.name,
        healthy: 0,
        failed: 0,
        bake_left_s: None,
    });
    so_far.chain(planned).collect()
}

fn stage(batch: &Batch) -> BatchStage {
    match batch {
        Batch { opened_ms: None, .. } => BatchStage::Offered,
        Batch { passed_ms: Some(_), .. } => BatchStage::Passed,
        Batch { bakes_ms: Some(_), .. } => BatchStage::Bakes,
        Batch { .. } => BatchStage::Open,
    }
}

fn bake_left_s(look: &Look<'_>, rollout: &Rollout, index: usize) -> u64 {
    let batch = &rollout.batches[index];
    let Some(bakes_ms) = batch.bakes_ms.filter(|_| !batch.is_promoted) else { return 0 };
    let baked_ms = look.now.bake_ms.saturating_sub(bakes_ms);
    let whole_s = gate::bake_time(rollout, index).as_secs();
    whole_s.saturating_mul(1000).saturating_sub(baked_ms).div_ceil(1000)
}

/// Returns what a member is taken for, as it is shown.
#[must_use]
pub fn standing(look: &Look<'_>, rollout: &Rollout, index: usize, instance: &Instance) -> Standing {
    let record = look.state.member(instance);
    let has_taken = || {
        record.and_then(|record| record.report.as_ref()).is_some_and(|report| {
            look.attendance.of(instance) == Presence::Here
                && fleet::has_taken(report, &rollout.target)
        })
    };
    if rollout.state.is_ended() {
        // Its deadlines count no more.
        return match record {
            _ if rollout.failures.contains_key(instance) => Standing::Failed,
            None => Standing::Gone,
            Some(_) if look.attendance.is_silent(instance) => Standing::Silent,
            Some(_) if has_taken() => Standing::Healthy,
            Some(_) => Standing::Pending,
        };
    }
    match gate::standing(look.state, rollout, index, instance, look.attendance, look.now) {
        gate::Standing::Healthy => Standing::Healthy,
        gate::Standing::Pending(..) | gate::Standing::Unheard(_) => Standing::Pending,
        gate::Standing::Away(_) | gate::Standing::Silent(_) => Standing::Silent,
        gate::Standing::Excused if has_taken() => Standing::Healthy,
        gate::Standing::Failed | gate::Standing::Excused => Standing::Failed,
        gate::Standing::Gone => Standing::Gone,
    }
}

/// The members of the open and of the offered batch, and whoever failed, by batch and name; and how many
/// of them are left out.
fn members(look: &Look<'_>, rollout: &Rollout) -> (Vec<MemberView>, u32) {
    let is_going = !rollout.state.is_ended();
    let shown = |index: usize, batch: &Batch, instance: &Instance| {
        let failed_here = rollout
            .failures
            .get(instance)
            .is_some_and(|failed| failed.batch_index as usize == index);
        failed_here || (is_going && batch.passed_ms.is_none())
    };
    let all: Vec<(usize, &Instance)> = rollout
        .batches
        .iter()
        .enumerate()
        .flat_map(|(index, batch)| {
            let members = batch.members.iter();
            members.filter(move |member| shown(index, batch, member)).map(move |it| (index, it))
        })
        .collect();
    let left_out = fleet::count(all.len().saturating_sub(PAGE_MAX));
    let members = all.into_iter().take(PAGE_MAX);
    (members.map(|(index, instance)| member(look, rollout, index, instance)).collect(), left_out)
}

fn member(look: &Look<'_>, rollout: &Rollout, index: usize, instance: &Instance) -> MemberView {
    let record = look.state.member(instance);
    let report = record.and_then(|record| record.report.as_ref());
    let failed = rollout.failures.get(instance);
    let is_silent = look.attendance.is_silent(instance);
    let health = report.map_or(Health::Unknown, |report| report.health);
    let note = failed.map(|failed| failed.detail.as_str()).or_else(|| unprepared(report?, rollout));
    let gone = look.state.instances.get(instance).and_then(|kept| kept.value.gone);
    let at = record.map(|record| record.reported).or(gone).or(failed.map(|failed| failed.at));
    MemberView {
        instance: instance.clone(),
        batch_index: fleet::count(index),
        standing: standing(look, rollout, index, instance),
        phase: report.map(|report| report.phase),
        serving: report.and_then(|report| report.serving.clone()),
        health: if is_silent { Health::Unknown } else { health },
        note: note.or(record.and_then(|record| record.note.as_deref())).map(told::line),
        at: at.unwrap_or(rollout.began),
        failed_at: failed.map(|failed| failed.at),
    }
}

/// Why what an instance prepares could not be, while it waits to try again, and while it does.
fn unprepared<'a>(report: &'a Report, rollout: &Rollout) -> Option<&'a str> {
    let failure = report.failure.as_ref().filter(|failure| {
        failure.order == Some(rollout.order()) && failure.cause.is_before_swap()
    })?;
    matches!(report.phase, Phase::Waiting | Phase::Preparing).then_some(failure.detail.as_str())
}

/// How many instances have served the revision of a rollout that failed, as far as is known.
fn reached(look: &Look<'_>, rollout: &Rollout) -> Option<u32> {
    if !matches!(rollout.state, State::Aborted | State::Halted) {
        return None;
    }
    rollout.revision()?;
    Some(rollout.reached.unwrap_or_else(|| operations::reached(look.state, rollout)))
}

#[cfg(test)]
mod tests {
    use towline_protocol::report::{Cause, Failure};
    use towline_protocol::rollout::Failed;

    use super::super::fixture::{Fleet, GOOD, NEW, OLD, name, revision};
    use super::*;

    fn seen(fleet: &Fleet) -> RolloutView {
        view(&fleet.look(), &fleet.state.rollout.as_ref().unwrap().value, None)
    }

    fn ten() -> Fleet {
        let names: Vec<String> = (0..10).map(|number| format!("i-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Fleet::of(&names).proven(&[OLD]).released(NEW)
    }

    fn failed(batch_index: u32, is_excused: bool) -> Failed {
        let detail = "503, 3 in a row".to_owned();
        Failed {
            batch_index,
            at: towline_protocol::time::Timestamp(5),
            detail,
            is_revision: true,
            is_excused,
        }
    }

    #[test]
    fn batches_to_come_have_their_expected_sizes() {
        let sizes = |fleet: &Fleet| -> Vec<(String, BatchStage, u32)> {
            let batches = seen(fleet).batches.into_iter();
            batches.map(|batch| (batch.name, batch.stage, batch.size)).collect()
        };
        let planned = |name: &str, size| (name.to_owned(), BatchStage::Planned, size);
        let fleet = ten();
        let expected =
            [planned("canary", 1), planned("25 %", 2), planned("50 %", 2), planned("100 %", 5)];
        assert_eq!(sizes(&fleet), expected, "10 % is the canary's one already");
        let fleet = fleet.batch("canary", 0, &["i-3"]).batch("25 %", 2, &["i-1", "i-2"]);
        let fleet = fleet.change(|rollout| rollout.batches[1].opened_ms = None);
        assert_eq!(
            sizes(&fleet),
            [
                ("canary".to_owned(), BatchStage::Open, 1),
                ("25 %".to_owned(), BatchStage::Offered, 2),
                planned("50 %", 2),
                planned("100 %", 5)
            ]
        );
        let fleet = fleet.silent("i-9");
        assert_eq!(sizes(&fleet)[3], planned("100 %", 4), "the silent are set aside");
        let fleet = fleet.change(|rollout| rollout.state = State::Aborted);
        assert_eq!(sizes(&fleet).len(), 2, "nothing is still to come of what has ended");
    }

    #[test]
    fn a_batch_tells_how_long_it_still_bakes() {
        let fleet = ten().batch("canary", 0, &["i-3"]).serves("i-3", NEW);
        let fleet = fleet.change(|rollout| rollout.batches[0].bakes_ms = Some(0)).later(60);
        let batch = seen(&fleet).batches.remove(0);
        assert_eq!(
            (batch.stage, batch.healthy, batch.bake_left_s),
            (BatchStage::Bakes, 1, Some(240))
        );
        let promoted = fleet.clone().change(|rollout| rollout.batches[0].is_promoted = true);
        assert_eq!(seen(&promoted).batches[0].bake_left_s, Some(0));
        let over = fleet.later(10_000);
        assert_eq!(seen(&over).batches[0].bake_left_s, Some(0));
        let passed = over.change(|rollout| rollout.batches[0].passed_ms = Some(9));
        let batch = seen(&passed).batches.remove(0);
        assert_eq!((batch.stage, batch.bake_left_s), (BatchStage::Passed, None));
    }

    #[test]
    fn members_stand_as_the_gate_takes_them() {
        let fleet =
            ten().batch("canary", 0, &["i-0", "i-1", "i-2", "i-3", "i-4"]).serves("i-0", NEW);
        let mut fleet = fleet.silent("i-1").change(|rollout| {
            rollout.failures.insert(name("i-2"), failed(0, false));
            rollout.failures.insert(name("i-4"), failed(0, true));
        });
        fleet.state.instances.remove(&name("i-3"));
        let view = seen(&fleet);
        let standings: Vec<Standing> = view.members.iter().map(|member| member.standing).collect();
        use Standing::{Failed, Gone, Healthy, Silent};
        assert_eq!(standings, [Healthy, Silent, Failed, Gone, Failed]);
        assert_eq!((view.batches[0].healthy, view.batches[0].failed), (1, 2));
        assert_eq!(view.members[1].health, Health::Unknown, "silence is not health");
        assert_eq!(view.members[1].serving, Some(revision(OLD)), "as it last told");
        assert_eq!(view.members[2].note.as_deref(), Some("503, 3 in a row"));
        assert_eq!(view.members[3].serving, None);
        let mended = fleet.serves("i-4", NEW);
        assert_eq!(seen(&mended).members[4].standing, Healthy, "excused, and well since");
    }

    #[test]
    fn who_waits_to_prepare_again_says_why() {
        let fleet = ten().batch("canary", 0, &["i-3"]).serves("i-3", OLD);
        let order = fleet.state.order();
        let fails = |phase, cause, order| {
            fleet.clone().report("i-3", |report| {
                report.phase = phase;
                report.failure = Some(Failure {
                    order: Some(order),
                    revision: revision(NEW),
                    cause,
                    detail: "no matching version".to_owned(),
                    attempt: 2,
                });
            })
        };
        let note = |fleet: Fleet| seen(&fleet).members[0].note.clone();
        let why = Some("no matching version".to_owned());
        assert_eq!(note(fails(Phase::Waiting, Cause::Install, order)), why);
        assert_eq!(note(fails(Phase::Preparing, Cause::Install, order)), why, "and while it does");
        assert_eq!(note(fails(Phase::Activating, Cause::Install, order)), None, "it is over");
        assert_eq!(note(fails(Phase::Waiting, Cause::Unhealthy, order)), None, "after its swap");
        let earlier = towline_protocol::ids::Order { generation: 0, ..order };
        assert_eq!(note(fails(Phase::Waiting, Cause::Install, earlier)), None, "of an earlier one");
    }

    #[test]
    fn who_alone_takes_part_is_told() {
        let only = towline_protocol::rollout::Selector::try_from("i-3".to_owned()).ok();
        let fleet = ten().change(|rollout| rollout.only.clone_from(&only));
        assert_eq!(seen(&fleet).only, only);
    }

    #[test]
    fn of_a_passed_batch_only_who_failed_is_listed() {
        let fleet = ten().batch("canary", 0, &["i-0", "i-1"]).batch("50 %", 3, &["i-2"]);
        let fleet = fleet.change(|rollout| {
            rollout.batches[0].passed_ms = Some(1);
            rollout.failures.insert(name("i-1"), failed(0, false));
        });
        let listed = |fleet: &Fleet| -> Vec<(u32, Instance)> {
            seen(fleet).members.into_iter().map(|it| (it.batch_index, it.instance)).collect()
        };
        assert_eq!(listed(&fleet), [(0, name("i-1")), (1, name("i-2"))]);
        let ended = fleet.change(|rollout| rollout.state = State::Aborted);
        assert_eq!(listed(&ended), [(0, name("i-1"))]);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let names: Vec<String> = (0..PAGE_MAX + 5).map(|number| format!("i-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fleet = Fleet::of(&names).released(NEW).batch("100 %", 4, &names);
        let view = seen(&fleet);
        assert_eq!((view.members.len(), view.members_left_out), (PAGE_MAX, 5));
        assert_eq!(view.batches[0].size as usize, PAGE_MAX + 5);
    }

    #[test]
    fn what_stands_says_who_may_still_swap() {
        let fleet = ten().batch("canary", 0, &["i-0"]).permit("i-0", 3);
        assert!(seen(&fleet).may_still_swap.is_empty(), "it goes on: that is as it should be");
        for state in [State::Paused, State::Halted] {
            let fleet = fleet.clone().change(|rollout| rollout.state = state);
            assert_eq!(seen(&fleet).may_still_swap, [name("i-0")], "{state:?}");
        }
    }

    #[test]
    fn who_served_a_revision_that_failed_is_counted_once() {
        let fleet = ten().batch("canary", 0, &["i-0", "i-1", "i-2"]).serves("i-1", NEW);
        assert_eq!(seen(&fleet).reached, None, "it has not failed");
        let order = fleet.state.order();
        let cause = |cause| Failure {
            order: Some(order),
            revision: revision(NEW),
            cause,
            detail: String::new(),
            attempt: 1,
        };
        let fleet = fleet
            .report("i-1", |report| report.failure = Some(cause(Cause::Unhealthy)))
            .report("i-2", |report| report.failure = Some(cause(Cause::Install)))
            .change(|rollout| {
                rollout.state = State::Aborted;
                rollout.failures.insert(name("i-0"), failed(0, false));
            });
        assert_eq!(seen(&fleet).reached, Some(2), "not who failed before the swap");
    }

    #[test]
    fn a_past_rollout_takes_nothing_from_what_instances_tell_now() {
        let fleet = ten().batch("canary", 0, &["i-0"]).permit("i-0", 3);
        let mut past = fleet.state.rollout.as_ref().unwrap().value.clone();
        past.state = State::Aborted;
        let fleet = fleet.change(|rollout| rollout.state = State::Converged).released(GOOD);
        let view = view(&fleet.serves("i-0", GOOD).look(), &past, Some(2));
        assert_eq!((view.next_generation, view.order.generation), (Some(2), 1));
        assert_eq!((view.batches[0].healthy, view.may_still_swap.len()), (0, 0));
    }
}
