//! The gate's rules: what passes, what waits and for how long, what fails, who is set aside.

use towline_protocol::policy::{FailuresMax, OnFailure, Policy};
use towline_protocol::report::{Cause, Failure, Health, Phase};
use towline_protocol::rollout::State;

use super::world::{World, instance, policy, revision};
use crate::fleet::{self, Presence};
use crate::rollout::Decision;

const FOUR: [&str; 4] = ["i-0a", "i-0b", "i-0c", "i-0d"];

fn tolerant(most: u32) -> Policy {
    let failures_max = FailuresMax { canary: most, batch: most, rollout: most };
    Policy { failures_max, ..policy(&[50]) }
}

fn halting(policy: Policy) -> Policy {
    Policy { on_failure: OnFailure::Halt, ..policy }
}

/// A release whose canary is open, and who that is.
fn opened(policy: Policy) -> (World, String) {
    let mut world = World::new(policy, &FOUR);
    world.release('b').unwrap();
    world.settle();
    let canary = world.first(0);
    (world, canary)
}

/// A rule: its name, the policy, what happens to the canary, and how the rollout then stands.
type Rule = (&'static str, Policy, fn(&mut World, &str), &'static str);

fn fetch_fails(world: &mut World, canary: &str) {
    let order = world.state().order();
    world.tell(canary, |told| {
        (told.order, told.phase) = (Some(order), Phase::Waiting);
        let detail = "the registry is away".to_owned();
        let (cause, revision) = (Cause::Install, revision('b'));
        let attempt = 3;
        told.failure = Some(Failure { order: Some(order), revision, cause, detail, attempt });
    });
}

fn prepares(world: &mut World, canary: &str) {
    let order = world.state().order();
    world.tell(canary, |told| {
        (told.order, told.phase, told.prepared) = (Some(order), Phase::Asking, true);
    });
}

fn swaps(world: &mut World, canary: &str) {
    prepares(world, canary);
    assert!(world.ask(canary).permit.is_some());
    world.tell(canary, |told| {
        (told.phase, told.health, told.uses_permit) = (Phase::Probing, Health::Unknown, true);
        told.proven = false;
        told.serving = Some(revision('b'));
    });
}

#[test]
fn the_gate_follows_its_rules() {
    let rules: [Rule; 24] = [
        (
            "who has not heard of it is waited for",
            policy(&[50]),
            |_, _| {},
            "2 Release running: canary: 0 of 1 healthy; CANARY has not heard of it",
        ),
        (
            "healthy begins the bake time",
            policy(&[50]),
            |world, canary| world.takes(canary, 'b'),
            "2 Release running: canary bakes for another 60 s",
        ),
        (
            "the bake time is not over a second early",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.pass_s(59);
            },
            "2 Release running: canary bakes for another 1 s",
        ),
        (
            "the bake time is inclusive, and the next batch opens",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.pass_s(60);
            },
            "2 Release running: 50 %: 0 of 1 healthy",
        ),
        (
            "healthy on the target without its whole window is not healthy",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.tell(canary, |told| told.proven = false);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY is idle",
        ),
        (
            "healthy for an older target is not healthy",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.tell(canary, |told| {
                    if let Some(order) = &mut told.order {
                        order.generation -= 1;
                    }
                });
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY has not heard of it",
        ),
        (
            "whose content is the same counts, by its evidence",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'a');
                world.tell(canary, |told| told.alike = Some(revision('b')));
            },
            "2 Release running: canary bakes",
        ),
        (
            "a bake time begins anew when not all are healthy any more",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.pass_s(40);
                world.tell(canary, |told| told.health = Health::Unknown);
                world.settle();
                world.takes(canary, 'b');
            },
            "2 Release running: canary bakes for another 60 s",
        ),
        (
            "silence during the bake time passes no gate",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.hush(canary);
                world.pass_s(300);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY is silent",
        ),
        (
            "who was not heard of since the coordinator's start passes no gate",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.attendance.note(instance(canary), Presence::Unheard);
                world.pass_s(300);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY has not polled yet",
        ),
        (
            "failed after the swap: back to the fallback",
            policy(&[50]),
            |world, canary| world.fails(canary, "503"),
            "3 Rollback running: rollback: 0 of 4 healthy",
        ),
        (
            "failed after the swap: halted, where the policy says so",
            halting(policy(&[50])),
            |world, canary| world.fails(canary, "503"),
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: 503",
        ),
        (
            "healthy, and then unhealthy while it bakes, has failed",
            halting(policy(&[50])),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.tell(canary, |told| told.health = Health::Unhealthy);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: healthy, and then unhealthy",
        ),
        (
            "a failed fetch is no failure before its deadline",
            policy(&[50]),
            |world, canary| {
                fetch_fails(world, canary);
                world.pass_s(899);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY attempt 3: the registry is away",
        ),
        (
            "a failed fetch is a failure after its deadline",
            halting(policy(&[50])),
            |world, canary| {
                fetch_fails(world, canary);
                world.pass_s(900);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: not prepared within 900 s: attempt 3: the registry is away",
        ),
        (
            "who is prepared and has no leave is not late: the rollout is",
            halting(policy(&[50])),
            |world, canary| {
                prepares(world, canary);
                world.pass_s(900);
            },
            "2 Release halted: nothing has moved for 900 s: canary: 0 of 1 healthy; CANARY waits for its permit",
        ),
        (
            "not healthy in time after its permit has failed",
            halting(policy(&[50])),
            |world, canary| {
                swaps(world, canary);
                world.pass_s(300);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: not healthy, 300 s after its permit",
        ),
        (
            "a second before its healthy deadline it has not failed",
            policy(&[50]),
            |world, canary| {
                swaps(world, canary);
                world.pass_s(299);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY probes",
        ),
        (
            "a permit's holder that falls silent has failed at its healthy deadline",
            halting(policy(&[50])),
            |world, canary| {
                swaps(world, canary);
                world.hush(canary);
                world.pass_s(300);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: silent, 300 s after its permit",
        ),
        (
            "a rollout does not stand still while a permit has time left",
            halting(policy(&[50])),
            |world, canary| {
                prepares(world, canary);
                world.pass_s(800);
                swaps(world, canary);
                world.pass_s(200);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY probes",
        ),
        (
            "tolerated: another one takes the place of the canary that failed",
            tolerant(1),
            |world, canary| {
                world.fails(canary, "503");
                world.settle();
                assert_eq!(world.members(0).len(), 2);
            },
            "2 Release running: canary: 0 of 2 healthy",
        ),
        (
            "one more than tolerated fails",
            halting(tolerant(1)),
            |world, canary| {
                world.fails(canary, "503");
                world.settle();
                let other = world.members(0).into_iter().find(|name| name != canary).unwrap();
                world.fails(&other, "504");
            },
            "2 Release halted: canary failed: 2 failed, 1 tolerated",
        ),
        (
            "failures in all batches together are tolerated up to the rollout's number",
            halting(Policy {
                failures_max: FailuresMax { canary: 1, batch: 1, rollout: 1 },
                ..policy(&[50, 75])
            }),
            |world, canary| {
                world.fails(canary, "503");
                world.settle();
                world.batch_passes_but(canary);
                let next = world.members(1).into_iter().next().unwrap();
                world.fails(&next, "504");
            },
            "2 Release halted: 50 % failed: 2 failed, 1 tolerated",
        ),
        (
            "whoever has left is waited for no more, and its place is filled",
            policy(&[50]),
            |world, canary| world.leaves(canary),
            "2 Release running: canary: 0 of 2 healthy",
        ),
    ];
    for (rule, policy, happens, expected) in rules {
        let (mut world, canary) = opened(policy);
        happens(&mut world, &canary);
        let line = world.line().replace(&canary, "CANARY");
        assert!(line.starts_with(expected), "{rule}:\n  {line}\n  {expected}");
    }
}

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
    assert_eq!(world.members(0), [first.clone(), second.clone()], "the offered one goes first");
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
