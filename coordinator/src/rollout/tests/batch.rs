//! A batch's life: failures that stay, who is set aside and taken up, what is refilled, when it wakes up.

use towline_protocol::policy::{Policy, Share};
use towline_protocol::report::{Health, Phase};
use towline_protocol::rollout::State;

use super::gates::{FOUR, fetch_fails, halting, opened, prepares, swaps, tolerant};
use super::world::{World, instance, policy, revision};
use crate::fleet::{self, Presence};
use crate::rollout::Decision;

#[test]
fn failures_stay_counted_after_the_instance_is_gone() {
    let (mut world, canary) = opened(halting(policy(&[50])));
    world.fails(&canary, "503");
    world.step();
    world.leaves(&canary);
    assert!(world.line().contains("halted: canary failed: 1 failed"), "{}", world.line());
}

#[test]
fn failures_are_counted_while_it_is_paused() {
    let (mut world, canary) = opened(halting(policy(&[50])));
    world.operate(crate::rollout::operations::pause);
    world.fails(&canary, "503");
    assert!(world.line().starts_with("2 Release paused: paused by ada"));
    world.leaves(&canary);
    world.resume();
    assert!(world.line().starts_with("2 Release halted: canary failed: 1 failed"));
}

#[test]
fn a_batch_in_which_nobody_is_healthy_fails_also_where_failures_are_tolerated() {
    let mut world = World::new(halting(tolerant(1)), &["i-0a", "i-0b"]);
    world.release('b').unwrap();
    world.batch_passes();
    let last = world.first(1);
    world.fails(&last, "503");
    let line = world.line();
    assert!(
        line.starts_with("2 Release halted: 100 % failed: nobody in it is healthy: "),
        "{line}"
    );
}

#[test]
fn who_is_lost_by_a_tolerated_failure_does_not_block() {
    let (mut world, canary) = opened(Policy { canary: 2, ..tolerant(1) });
    let other = world.members(0).into_iter().find(|name| *name != canary).unwrap();
    world.fails(&canary, "503");
    world.takes(&other, 'b');
    assert_eq!(world.line(), "2 Release running: canary bakes for another 60 s");
}

#[test]
fn a_member_without_leave_that_falls_silent_is_set_aside_and_its_place_is_filled() {
    let (mut world, canary) = opened(policy(&[50]));
    world.hush(&canary);
    world.settle();
    assert!(world.rollout().aside.contains(&instance(&canary)));
    assert!(!world.members(0).contains(&canary) && world.members(0).len() == 1);
}

#[test]
fn a_batch_whose_members_are_all_gone_is_refilled_and_has_its_whole_time_again() {
    let (mut world, canary) = opened(halting(policy(&[50])));
    world.pass_s(800);
    world.leaves(&canary);
    world.settle();
    let next = world.members(0).into_iter().find(|name| *name != canary).unwrap();
    fetch_fails(&mut world, &next);
    world.pass_s(899);
    assert!(world.line().starts_with("2 Release running"), "{}", world.line());
    world.pass_s(1);
    assert!(world.line().contains("not prepared within 900 s"), "{}", world.line());
}

#[test]
fn a_batch_of_which_nobody_is_left_passes_only_where_another_has_passed() {
    let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
    world.release('b').unwrap();
    world.settle();
    let (first, second) = (world.first(0), world.first(1));
    world.leaves(&first);
    world.settle();
    let both = ("canary".to_owned(), vec![first, second.clone()]);
    assert_eq!(world.batches(), [both], "the offered one goes first, and is in no other");
    world.leaves(&second);
    assert!(world.line().contains("nobody is left in canary"), "{}", world.line());
    world.join("i-0e", Some('a'));
    world.settle();
    assert!(world.members(0).contains(&"i-0e".to_owned()));
    world.takes("i-0e", 'b');
    world.settle();
    world.pass_s(60);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");

    let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
    world.release('b').unwrap();
    world.batch_passes();
    let second = world.first(1);
    world.leaves(&second);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
}

#[test]
fn an_empty_group_stays_open_until_one_instance_has_proven_it() {
    let mut world = World::new(policy(&[50]), &[]);
    world.release('b').unwrap();
    world.pass_s(100_000);
    assert!(world.line().contains("the group is empty"), "{}", world.line());
    world.join("i-0a", None);
    world.line();
    world.takes("i-0a", 'b');
    world.settle();
    world.pass_s(60);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
    assert!(world.state().record.as_ref().unwrap().value.is_proven(&revision('b')));
}

#[test]
fn a_group_of_one_is_its_own_canary() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.release('b').unwrap();
    world.batch_passes();
    assert_eq!(world.batches(), [("canary".to_owned(), vec!["i-0a".to_owned()])]);
    assert_eq!(world.rollout().state, State::Converged);
}

#[test]
fn while_all_are_silent_nothing_opens_and_whoever_is_back_first_is_the_canary() {
    let mut world = World::new(policy(&[50]), &FOUR);
    for name in FOUR {
        world.hush(name);
    }
    world.release('b').unwrap();
    assert!(world.line().contains("nobody who could take it is there"), "{}", world.line());
    assert!(world.rollout().aside.is_empty(), "nobody is set aside before a batch is open");
    world.hear("i-0c");
    world.settle();
    assert_eq!(world.members(0), ["i-0c"]);
}

#[test]
fn who_was_set_aside_and_comes_back_to_a_failing_revision_counts() {
    let mut world = World::new(halting(policy(&[100])), &["i-0a", "i-0b", "i-0c"]);
    world.release('b').unwrap();
    world.settle();
    let names = world.members(1);
    world.batch_passes();
    world.hush(&names[0]);
    world.settle();
    assert!(world.rollout().aside.contains(&instance(&names[0])));
    world.hear(&names[0]);
    world.fails(&names[0], "503");
    let line = world.line();
    assert!(line.starts_with("2 Release halted: 100 % failed: 1 failed"), "{line}");
}

#[test]
fn untouched_instances_that_fail_as_well_halt_it_instead_of_taking_it_back() {
    let (mut world, canary) = opened(policy(&[50]));
    let others: Vec<&str> = FOUR.into_iter().filter(|name| *name != canary).collect();
    for other in &others[..2] {
        world.tell(other, |told| told.health = Health::Unhealthy);
    }
    world.fails(&canary, "503");
    let line = world.line();
    assert!(line.starts_with("2 Release halted: canary failed: "), "{line}");
    assert!(line.contains("2 of 3 untouched instances are unhealthy too: "), "{line}");
    assert_eq!(world.rollout().culprit, None, "it may not be the revision's fault");

    let (mut world, canary) = opened(policy(&[50]));
    let others: Vec<&str> = FOUR.into_iter().filter(|name| *name != canary).collect();
    world.tell(others[0], |told| told.health = Health::Unhealthy);
    world.fails(&canary, "503");
    assert!(world.line().starts_with("3 Rollback running"), "one of three is not most of them");
}

#[test]
fn a_rollout_wakes_up_by_its_next_deadline() {
    let within = |world: &mut World| match world.settle() {
        Decision::Wait { within, .. } => within.unwrap().as_secs(),
        decision => panic!("{decision:?}"),
    };
    let (mut world, canary) = opened(Policy { progress_deadline_s: 5000, ..policy(&[50]) });
    assert_eq!(within(&mut world), 900, "until it must have prepared");
    prepares(&mut world, &canary);
    assert_eq!(within(&mut world), 5000, "until something must have moved");
    world.pass_s(100);
    swaps(&mut world, &canary);
    assert_eq!(within(&mut world), 300, "until it must be healthy");
    world.takes(&canary, 'b');
    world.settle();
    world.pass_s(20);
    assert_eq!(within(&mut world), 40, "until it has baked");
}

#[test]
fn each_instance_that_takes_it_is_progress() {
    let mut world = World::new(halting(Policy { canary: 4, ..policy(&[]) }), &FOUR);
    world.release('b').unwrap();
    world.settle();
    for name in FOUR {
        prepares(&mut world, name);
    }
    for name in FOUR {
        world.pass_s(899);
        assert!(world.line().contains("running"), "{}", world.line());
        world.takes(name, 'b');
        world.settle();
    }
    world.pass_s(60);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
}

#[test]
fn only_an_unproven_revision_says_anything_against_itself_when_it_serves_badly_before_it_baked() {
    // On the way back, what serves badly served badly before.
    let (mut world, canary) = opened(policy(&[50]));
    world.fails(&canary, "503");
    world.settle();
    let order = world.state().order();
    let other = FOUR.into_iter().find(|name| *name != canary).unwrap();
    world.tell(other, |told| {
        told.order = Some(order);
        (told.health, told.serving) = (Health::Unhealthy, Some(revision('a')));
    });
    assert!(world.line().starts_with("3 Rollback running"), "{}", world.line());
}

#[test]
fn counts_and_status_agree_with_the_gate() {
    let (mut world, canary) = opened(policy(&[50]));
    world.takes(&canary, 'b');
    let counts = fleet::counts(world.state(), &world.attendance);
    assert_eq!((counts.instances, counts.converged, counts.stale), (4, 1, 3));
    world.hush(&canary);
    let counts = fleet::counts(world.state(), &world.attendance);
    assert_eq!((counts.converged, counts.silent), (0, 1));
}

#[test]
fn silence_begins_the_bake_time_anew_and_a_restart_of_the_coordinator_does_not() {
    for (presence, expected) in [(Presence::Silent, 60), (Presence::Unheard, 20)] {
        let (mut world, canary) = opened(policy(&[50]));
        world.takes(&canary, 'b');
        world.settle();
        world.pass_s(40);
        world.attendance.note(instance(&canary), presence);
        world.settle();
        world.hear(&canary);
        let expected = format!("2 Release running: canary bakes for another {expected} s");
        assert_eq!(world.line(), expected);
    }
}

#[test]
fn who_was_excused_and_is_silent_passes_nothing() {
    let mut world = World::new(halting(policy(&[50])), &["i-0a"]);
    world.release('b').unwrap();
    world.settle();
    world.fails("i-0a", "503");
    world.settle();
    world.resume();
    world.tell("i-0a", |told| (told.rejected, told.failure) = (false, None));
    world.takes("i-0a", 'b');
    world.hush("i-0a");
    assert!(world.line().contains("nobody is left in canary"), "{}", world.line());
}

#[test]
fn a_permit_for_an_earlier_target_has_no_deadline_here_and_its_silent_holder_is_set_aside() {
    let (mut world, canary) = opened(halting(policy(&[50])));
    world.pass_s(100);
    swaps(&mut world, &canary);
    world.operate(crate::rollout::operations::abort);
    world.settle();
    world.pass_s(600);
    assert!(world.line().starts_with("3 Rollback running"), "{}", world.line());
    world.hush(&canary);
    world.settle();
    assert!(world.rollout().aside.contains(&instance(&canary)), "it was lost before");
}

#[test]
fn what_a_missed_healthy_deadline_says_against_the_revision() {
    // Silent, there and serving it, there and not serving it.
    type Rule = (fn(&mut World, &str), bool);
    let rules: [Rule; 3] = [
        (|world, canary| world.hush(canary), false),
        (|_, _| {}, true),
        (|world, canary| world.tell(canary, |told| told.serving = Some(revision('a'))), false),
    ];
    for (index, (happens, is_bad)) in rules.into_iter().enumerate() {
        let (mut world, canary) = opened(policy(&[50]));
        swaps(&mut world, &canary);
        happens(&mut world, &canary);
        world.pass_s(300);
        assert!(world.line().starts_with("3 Rollback"), "{}", world.line());
        let group = &world.state().record.as_ref().unwrap().value;
        assert_eq!(group.is_quarantined(&revision('b')), is_bad, "{index}");
    }
}

#[test]
fn progress_is_seen_also_where_those_who_had_taken_it_have_left() {
    let all = Policy { canary: 4, max_unavailable: Share::Count(4), ..policy(&[]) };
    let mut world = World::new(halting(all), &FOUR);
    world.release('b').unwrap();
    world.settle();
    for name in FOUR {
        prepares(&mut world, name);
    }
    world.pass_s(400);
    for name in ["i-0a", "i-0b"] {
        world.takes(name, 'b');
    }
    world.settle();
    for name in ["i-0a", "i-0b"] {
        world.leaves(name);
    }
    world.settle();
    world.pass_s(800);
    world.takes("i-0c", 'b');
    world.settle();
    world.pass_s(800);
    assert!(world.line().starts_with("2 Release running"), "{}", world.line());
}

#[test]
fn a_batch_that_is_filled_again_bakes_for_its_whole_time() {
    for is_promoted in [false, true] {
        let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
        world.release('b').unwrap();
        world.settle();
        let (canary, other) = (world.first(0), world.first(1));
        world.takes(&canary, 'b');
        world.settle();
        world.pass_s(50);
        // What comes next serves it already.
        world.takes(&other, 'b');
        world.leaves(&canary);
        if is_promoted {
            world.operate(crate::rollout::operations::promote);
        }
        assert_eq!(world.line(), "2 Release running: canary bakes for another 60 s");
    }
}

#[test]
fn alone_an_instance_that_was_set_aside_is_taken_in_again() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.release('b').unwrap();
    world.settle();
    world.hush("i-0a");
    assert!(world.line().contains("nobody is left in canary"), "{}", world.line());
    world.hear("i-0a");
    world.settle();
    assert!(world.members(0) == ["i-0a"] && world.rollout().aside.is_empty());
    assert_eq!(world.run(), super::world::End::Rests);
    assert_eq!(world.rollout().state, State::Converged);
}

#[test]
fn a_batch_is_not_filled_with_those_who_failed_after_they_came_back() {
    let mut world = World::new(halting(tolerant(1)), &["i-0a", "i-0b", "i-0c"]);
    let mut policy = policy(&[]);
    policy.failures_max = tolerant(1).failures_max;
    let changed = crate::rollout::operations::set_group(
        Some(world.state()),
        &world.state().group.clone(),
        halting(policy),
    );
    assert!(world.commit(changed.unwrap()));
    world.release('b').unwrap();
    world.batch_passes();
    let [back, leaves] = <[String; 2]>::try_from(world.members(1)).unwrap();
    world.hush(&back);
    world.settle();
    world.hear(&back);
    world.fails(&back, "503");
    world.settle();
    world.leaves(&leaves);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
}

#[test]
fn whoever_is_well_and_unwell_by_turns_does_not_put_off_the_deadline() {
    type Flap = (&'static str, fn(&mut World, &str), fn(&mut World, &str));
    let flaps: [Flap; 2] = [
        (
            "not known, and well",
            |world, canary| world.tell(canary, |told| told.health = Health::Unknown),
            |world, canary| world.tell(canary, |told| told.health = Health::Healthy),
        ),
        (
            "silent, and back",
            |world, canary| world.hush(canary),
            |world, canary| world.hear(canary),
        ),
    ];
    for (flap, begins, ends) in flaps {
        let (mut world, canary) = opened(halting(policy(&[50])));
        world.takes(&canary, 'b');
        world.settle();
        let mut passed = 0;
        while world.line().contains("running") {
            assert!(passed <= 900 + 60, "{flap}: {}", world.line());
            begins(&mut world, &canary);
            world.settle();
            world.pass_s(20);
            world.settle();
            ends(&mut world, &canary);
            world.settle();
            world.pass_s(20);
            passed += 40;
        }
        assert!(world.line().contains("nothing has moved for 960 s"), "{flap}: {}", world.line());
        assert!(
            passed >= 900,
            "{flap}: the bake time is no standstill, and {passed} s are too few"
        );
    }
}

#[test]
fn a_batch_that_is_no_longer_healthy_late_in_its_bake_time_has_the_time_of_any_other() {
    let mut long = policy(&[50]);
    long.bake_s.canary = 3600;
    let (mut world, canary) = opened(halting(long));
    world.takes(&canary, 'b');
    world.settle();
    world.pass_s(3590);
    world.tell(&canary, |told| told.health = Health::Unknown);
    world.settle();
    world.pass_s(909);
    assert!(world.line().contains("running"), "{}", world.line());
    world.pass_s(1);
    assert!(world.line().contains("nothing has moved for 4500 s"), "{}", world.line());
}

#[test]
fn who_is_unwell_while_its_batch_bakes_has_failed_whatever_it_asks_for() {
    let (mut world, canary) = opened(halting(policy(&[50])));
    world.takes(&canary, 'b');
    world.settle();
    world.tell(&canary, |told| {
        (told.phase, told.uses_permit, told.health) = (Phase::Asking, true, Health::Unhealthy);
    });
    assert!(world.line().contains("healthy, and then unhealthy"), "{}", world.line());
}

#[test]
fn what_serves_already_need_not_be_prepared_also_while_its_health_is_not_known() {
    let mut long = policy(&[50]);
    long.bake_s.canary = 3600;
    let (mut world, canary) = opened(halting(long));
    world.takes(&canary, 'a');
    world.tell(&canary, |told| told.alike = Some(revision('b')));
    world.settle();
    world.pass_s(1000);
    world.tell(&canary, |told| told.health = Health::Unknown);
    assert_eq!(
        world.line(),
        format!("2 Release running: canary: 0 of 1 healthy; {canary} is idle")
    );
}
