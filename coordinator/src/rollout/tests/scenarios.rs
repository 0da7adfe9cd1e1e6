//! The scenarios of the semantics, each a story with an end.

use towline_protocol::policy::{OnFailure, Policy, Share};
use towline_protocol::poll::Duty;
use towline_protocol::report::{Health, Phase};
use towline_protocol::rollout::{Kind, State};

use super::world::{End, Fate, World, instance, policy, revision};
use crate::fleet::{self, Presence};
use crate::rollout::operations;

const FOUR: [&str; 4] = ["i-0a", "i-0b", "i-0c", "i-0d"];

fn begun(policy: Policy, names: &[&str]) -> (World, String) {
    let mut world = World::new(policy, names);
    world.release('b').unwrap();
    world.settle();
    let canary = world.first(0);
    (world, canary)
}

fn prepares(world: &mut World, name: &str) {
    let order = world.state().order();
    world.tell(name, |told| {
        (told.order, told.phase, told.prepared) = (Some(order), Phase::Asking, true);
    });
}

fn swaps(world: &mut World, name: &str) {
    prepares(world, name);
    assert!(world.ask(name).permit.is_some());
    world.tell(name, |told| {
        (told.phase, told.health) = (Phase::Probing, Health::Unknown);
        (told.proven, told.uses_permit) = (false, true);
        told.serving = Some(revision('b'));
    });
}

#[test]
fn a_lost_permit_answer_costs_nothing() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    prepares(&mut world, &canary);
    let lost = world.ask(&canary).permit;
    world.pass_s(40);
    let budget = fleet::budget(world.state(), &world.attendance);
    assert_eq!((budget.used, budget.permits), (1, 1));
    let again = world.ask(&canary).permit;
    assert_eq!((again, world.state().count().open), (lost, 1));
    world.takes(&canary, 'b');
    assert_eq!(world.state().count().open, 0);
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.rollout().state, State::Converged);
}

#[test]
fn a_permit_is_moved_to_a_newer_generation() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    swaps(&mut world, &canary);
    world.operate(operations::abort);
    world.settle();
    assert_eq!(world.state().count().open, 1, "it survives the change of the target");
    let moved = world.ask(&canary).permit;
    assert_eq!((moved, world.state().count().open), (Some(1), 1));
    assert_eq!(world.state().open[&instance(&canary)].value.order.generation, 3);
    world.takes(&canary, 'a');
    assert_eq!(world.state().count().open, 0);
    assert_eq!(world.run(), End::Rests);
    assert_eq!((world.rollout().kind, world.rollout().state), (Kind::Rollback, State::Converged));
}

#[test]
fn a_reboot_with_an_open_permit() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    swaps(&mut world, &canary);
    world.hush(&canary);
    world.settle();
    world.pass_s(200);
    assert!(world.line().contains("is silent"), "{}", world.line());
    // Up again: its swap had begun, and so it goes on with it.
    world.hear(&canary);
    world.tell(&canary, |told| told.phase = Phase::Proving);
    assert_eq!(world.state().count().open, 1, "nothing proven serves yet");
    world.takes(&canary, 'b');
    assert_eq!(world.state().count().open, 0);
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.rollout().kind, Kind::Release);
}

#[test]
fn an_abort_without_a_fallback() {
    let mut world = World::fresh(policy(&[50]), &FOUR);
    world.release('b').unwrap();
    assert_eq!(world.rollout().target.fallback, None);
    world.settle();
    let canary = world.first(0);
    world.takes(&canary, 'b');
    world.operate(operations::abort);
    let target = world.rollout().target.clone();
    assert_eq!((&target.revision, &target.not), (&None, &Some(revision('b'))));
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.rollout().state, State::Converged);
    assert!(world.agents.values().all(|agent| agent.report.serving == Some(revision('a'))));
    let group = &world.state().record.as_ref().unwrap().value;
    assert!(group.proven.is_empty(), "what each serves is no revision of the group");
    assert!(operations::abort(world.state(), &world.act()).is_err());
    assert!(operations::rollback(world.state(), None, &world.act()).is_err());
    assert!(operations::restart(world.state(), &world.act()).is_err());
    world.release('c').unwrap();
    assert_eq!(world.run(), End::Rests);
}

#[test]
fn a_way_back_without_a_fallback_has_none_of_its_own() {
    let mut world = World::fresh(policy(&[50]), &FOUR);
    world.release('b').unwrap();
    world.operate(operations::abort);
    world.settle();
    let error = operations::abort(world.state(), &world.act()).unwrap_err();
    assert!(error.message.contains("nothing to go back to"), "{}", error.message);
}

#[test]
fn a_rollback_that_fails_halts() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    world.takes(&canary, 'b');
    world.agents.get_mut(&instance(&canary)).unwrap().is_broken = true;
    world.operate(operations::abort);
    let end = world.run();
    assert!(matches!(&end, End::Stands(reason) if reason.contains("rollback failed")), "{end:?}");
    let rollout = world.rollout();
    assert_eq!((rollout.kind, rollout.state), (Kind::Rollback, State::Halted));
    assert_eq!(rollout.order().generation, 3, "nothing rolls back a rollback");
    assert!(world.state().record.as_ref().unwrap().value.quarantine.is_empty());
    world.release('c').unwrap();
}

#[test]
fn a_hotfix_in_a_group_of_two_with_one_silent() {
    // It died in the middle of a swap, and holds the whole budget.
    let (mut world, canary) = begun(policy(&[50]), &["i-0a", "i-0b"]);
    swaps(&mut world, &canary);
    world.hush(&canary);
    world.pass_s(300);
    assert!(world.line().starts_with("3 Rollback"), "{}", world.line());
    assert_eq!(world.run(), End::Rests, "set aside: the other one has it");
    assert_eq!(world.state().count().open, 1, "silence closes nothing");

    let stuck = {
        let mut world = world.clone();
        world.release('c').unwrap();
        world.run()
    };
    assert!(
        matches!(&stuck, End::Stands(reason) if reason.contains("1 of 1 that may be unavailable")),
        "{stuck:?}"
    );

    let mut request = World::request('c');
    request.without = vec![instance(&canary)];
    world.release_as(&request).unwrap();
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.rollout().state, State::Converged);
    assert_eq!(world.batches().len(), 1);

    // It comes back, counts again, and takes the target as drift, under the permit that it holds.
    world.hear(&canary);
    world.settle();
    assert!(world.rollout().without.is_empty());
    let budget = fleet::budget(world.state(), &world.attendance);
    assert_eq!((budget.used, world.duty(&canary)), (1, Duty::Take));
    world.agents.get_mut(&instance(&canary)).unwrap().fate = Fate::Takes;
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.agents[&instance(&canary)].report.serving, Some(revision('c')));
    assert_eq!(world.state().count().open, 0);
}

#[test]
fn the_coordinator_is_away_for_twenty_minutes_in_the_middle_of_a_batch() {
    let wide = Policy { canary: 2, max_unavailable: Share::Count(2), ..policy(&[]) };
    let (mut world, canary) = begun(wide, &FOUR);
    let other = world.members(0).into_iter().find(|name| *name != canary).unwrap();
    swaps(&mut world, &canary);
    world.pass_s(100);
    // Its clocks stand still meanwhile, and for a lease after it is back; nobody was heard of.
    let away = std::time::Duration::from_secs(1200);
    world.now.at = world.now.at.after(away);
    for name in FOUR {
        world.attendance.note(instance(name), Presence::Unheard);
    }
    let line = world.line();
    assert!(line.starts_with("2 Release running: canary: 0 of 2 healthy"), "{line}");
    assert!(line.contains("has still to tell how it is"), "{line}");
    assert!(world.rollout().aside.is_empty(), "not heard of is not silent");
    // The canary had finished long ago; what it told is kept by its agent until now.
    world.hear(&canary);
    world.takes(&canary, 'b');
    assert!(world.line().contains("1 of 2 healthy"), "{}", world.line());
    assert_eq!(world.ask(&other).permit, None, "those not heard of take up the budget");
    for name in FOUR {
        world.hear(name);
    }
    assert_eq!(world.run(), End::Rests);
    let rollout = world.rollout();
    assert_eq!((rollout.kind, rollout.state), (Kind::Release, State::Converged));
    assert!(rollout.failures.is_empty());
}

#[test]
fn a_coordinator_that_is_back_judges_nobody_it_has_not_heard_of() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    swaps(&mut world, &canary);
    world.attendance.note(instance(&canary), Presence::Unheard);
    world.pass_s(400);
    assert!(world.line().starts_with("2 Release running"), "{}", world.line());
    world.hush(&canary);
    assert!(world.line().starts_with("3 Rollback"), "its lease is over: {}", world.line());
}

#[test]
fn a_pause_with_an_answer_on_the_wire() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    prepares(&mut world, &canary);
    assert!(world.ask(&canary).permit.is_some());
    world.operate(operations::pause);
    let may_still_swap: Vec<&str> = world.state().open.keys().map(|name| name.as_str()).collect();
    assert_eq!(may_still_swap, [canary.as_str()], "the pause says who");

    // It sees the pause before the answer, and withdraws.
    let mut withdrawn = world.clone();
    let asked = withdrawn.agents[&instance(&canary)].seq;
    withdrawn.tell(&canary, |told| told.renounced = asked);
    assert_eq!(withdrawn.state().count().open, 0);
    assert_eq!(withdrawn.ask(&canary).permit, None);

    // Or the answer comes first, and it swaps; the permit closes by what it tells then.
    world.takes(&canary, 'b');
    assert_eq!(world.state().count().open, 0);
    for name in FOUR {
        assert_eq!(world.ask(name).permit, None, "none after an acknowledged pause");
    }
    world.pass_s(100_000);
    assert_eq!(world.line(), "2 Release paused: paused by ada");
    world.resume();
    assert_eq!(world.run(), End::Rests);
}

#[test]
fn a_partition_during_a_release_costs_no_canary() {
    // Nobody is set aside by it who then comes back to a revision that nobody has tried.
    let (mut world, _) = begun(policy(&[50]), &FOUR);
    for name in FOUR {
        world.hush(name);
    }
    world.settle();
    for name in FOUR {
        world.hear(name);
    }
    world.settle();
    let takers = FOUR.iter().filter(|name| world.duty(name) == Duty::Take).count();
    assert_eq!(takers, 1, "{:#?}", world.rollout());
    assert_eq!(world.run(), End::Rests);
    assert!(world.agents.values().all(|agent| agent.report.serving == Some(revision('b'))));
}

#[test]
fn a_batch_that_is_silent_when_it_opens_is_set_aside_and_taken_up() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    let lost = world.members(1);
    world.takes(&canary, 'b');
    world.settle();
    for name in &lost {
        world.hush(name);
    }
    world.pass_s(60);
    world.settle();
    assert!(lost.iter().all(|name| world.rollout().aside.contains(&instance(name))));
    assert_eq!(world.run(), End::Stands(world.line().split_once(": ").unwrap().1.to_owned()));
    for name in &lost {
        world.hear(name);
    }
    world.resume_if_halted();
    assert_eq!(world.run(), End::Rests);
    assert!(world.agents.values().all(|agent| agent.report.serving == Some(revision('b'))));
}

#[test]
fn all_members_are_silent_once_it_rolls_back() {
    let (mut world, canary) = begun(policy(&[50]), &FOUR);
    world.takes(&canary, 'b');
    for name in FOUR {
        world.hush(name);
    }
    world.operate(operations::abort);
    assert!(world.line().contains("nobody who could take it is there"), "{}", world.line());
    world.hear(&canary);
    world.settle();
    assert_eq!(world.duty(&canary), Duty::Take);
    for name in FOUR {
        world.hear(name);
    }
    assert_eq!(world.run(), End::Rests);
    assert!(world.agents.values().all(|agent| agent.report.serving == Some(revision('a'))));
}

#[test]
fn the_first_release_on_a_fleet_that_serves_already_goes_by_canary_and_batches() {
    let mut world = World::fresh(policy(&[50]), &FOUR);
    for name in FOUR {
        world.tell(name, |told| (told.adopted, told.proven) = (true, false));
    }
    world.release('b').unwrap();
    world.settle();
    let takers = FOUR.iter().filter(|name| world.duty(name) == Duty::Take).count();
    assert_eq!(takers, 1);
    assert_eq!(world.run(), End::Rests);
    let sizes: Vec<usize> = world.batches().iter().map(|(_, members)| members.len()).collect();
    assert_eq!(sizes, [1, 1, 2]);
}

#[test]
fn a_newborn_joins_in_each_state_and_is_taken_along() {
    type Then = fn(&mut World);
    let states: [(&str, Then, State); 4] = [
        ("running", |_| {}, State::Running),
        ("paused", |world| world.operate(operations::pause), State::Paused),
        (
            "halted",
            |world| {
                let canary = world.first(0);
                world.pass_s(900);
                world.settle();
                let excused = world.agents.get_mut(&instance(&canary)).unwrap();
                excused.report.rejected = false;
            },
            State::Halted,
        ),
        ("converged", |world| assert_eq!(world.run(), End::Rests), State::Converged),
    ];
    for (rule, then, state) in states {
        let halting = Policy { on_failure: OnFailure::Halt, ..policy(&[25, 50]) };
        let (mut world, _) = begun(halting, &FOUR);
        then(&mut world);
        assert_eq!(world.rollout().state, state, "{rule}");
        world.join("i-9f", None);
        let boot = crate::rollout::words::boot(world.state(), &instance("i-9f")).unwrap();
        let boots = boot.as_str().chars().next().unwrap();
        assert_eq!(boots, if state == State::Converged { 'b' } else { 'a' }, "{rule}");
        world.takes("i-9f", boots);
        if world.rollout().state != State::Running {
            let line = world.line();
            world.pass_s(10_000);
            assert_eq!(world.line(), line, "{rule}: it changes nothing");
        }
        world.resume_if_halted();
        assert_eq!(world.run(), End::Rests, "{rule}");
        let served = &world.agents[&instance("i-9f")].report.serving;
        assert_eq!(*served, Some(revision('b')), "{rule}");
    }
}
