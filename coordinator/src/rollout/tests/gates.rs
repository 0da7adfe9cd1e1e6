//! The gate's rules: what passes, what waits and for how long, what fails, who is set aside.

use towline_protocol::policy::{FailuresMax, OnFailure, Policy};
use towline_protocol::report::{Cause, Failure, Health, Phase};

use super::world::{World, instance, policy, revision};
use crate::fleet::Presence;

pub(super) const FOUR: [&str; 4] = ["i-0a", "i-0b", "i-0c", "i-0d"];

pub(super) fn tolerant(most: u32) -> Policy {
    let failures_max = FailuresMax { canary: most, batch: most, rollout: most };
    Policy { failures_max, ..policy(&[50]) }
}

pub(super) fn halting(policy: Policy) -> Policy {
    Policy { on_failure: OnFailure::Halt, ..policy }
}

/// A release whose canary is open, and who that is.
pub(super) fn opened(policy: Policy) -> (World, String) {
    let mut world = World::new(policy, &FOUR);
    world.release('b').unwrap();
    world.settle();
    let canary = world.first(0);
    (world, canary)
}

/// A rule: its name, the policy, what happens to the canary, and how the rollout then stands.
type Rule = (&'static str, Policy, fn(&mut World, &str), &'static str);

pub(super) fn fetch_fails(world: &mut World, canary: &str) {
    let order = world.state().order();
    world.tell(canary, |told| {
        (told.order, told.phase) = (Some(order), Phase::Waiting);
        let detail = "the registry is away".to_owned();
        let (cause, revision) = (Cause::Install, revision('b'));
        let attempt = 3;
        told.failure = Some(Failure { order: Some(order), revision, cause, detail, attempt });
    });
}

pub(super) fn prepares(world: &mut World, canary: &str) {
    let order = world.state().order();
    world.tell(canary, |told| {
        (told.order, told.phase, told.prepared) = (Some(order), Phase::Asking, true);
    });
}

pub(super) fn swaps(world: &mut World, canary: &str) {
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
    let rules: [Rule; 32] = [
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
            "healthy with a swap still open is not healthy",
            policy(&[50]),
            |world, canary| {
                world.takes(canary, 'b');
                world.tell(canary, |told| told.uses_permit = true);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY is idle",
        ),
        (
            "rejected has failed, whatever it says of it",
            halting(policy(&[50])),
            |world, canary| {
                world.fails(canary, "503");
                world.tell(canary, |told| told.failure = None);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: it was rejected",
        ),
        (
            "a failure after the swap has failed, though nothing is rejected yet",
            halting(policy(&[50])),
            |world, canary| {
                world.fails(canary, "503");
                world.tell(canary, |told| (told.rejected, told.phase) = (false, Phase::Restoring));
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: 503",
        ),
        (
            "a failure at an earlier target says nothing",
            policy(&[50]),
            |world, canary| {
                world.fails(canary, "503");
                world.tell(canary, |told| {
                    told.rejected = false;
                    let order = told.failure.as_mut().and_then(|failure| failure.order.as_mut());
                    order.unwrap().generation -= 1;
                });
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY is idle",
        ),
        (
            "serving a new revision badly has failed, before it bakes as well",
            halting(Policy { canary: 2, ..policy(&[50]) }),
            |world, canary| {
                world.takes(canary, 'b');
                world.settle();
                world.tell(canary, |told| told.health = Health::Unhealthy);
            },
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: healthy, and then unhealthy",
        ),
        (
            "unhealthy while it probes is not over yet",
            policy(&[50]),
            |world, canary| {
                swaps(world, canary);
                world.tell(canary, |told| told.health = Health::Unhealthy);
            },
            "2 Release running: canary: 0 of 1 healthy; CANARY probes",
        ),
        (
            "who was not heard of since the coordinator's start is not late",
            policy(&[50]),
            |world, canary| {
                world.attendance.note(instance(canary), Presence::Unheard);
                world.pass_s(899);
                world.settle();
                world.resume();
                world.pass_s(1);
                assert!(
                    crate::rollout::gate::count_failures(
                        world.state(),
                        world.rollout(),
                        &world.attendance,
                        world.now
                    )
                    .is_none()
                );
                world.hear(canary);
                world.takes(canary, 'b');
            },
            "2 Release running: canary bakes",
        ),
        (
            "the canary tolerates its own number, whatever the rollout does",
            halting(Policy {
                failures_max: FailuresMax { canary: 0, batch: 1, rollout: 3 },
                ..policy(&[50])
            }),
            |world, canary| world.fails(canary, "503"),
            "2 Release halted: canary failed: 1 failed, 0 tolerated: CANARY: 503",
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
            "2 Release running: canary: 0 of 1 healthy; CANARY has still to tell how it is",
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
