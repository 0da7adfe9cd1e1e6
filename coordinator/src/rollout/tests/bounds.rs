//! Who is in which batch, and how much of a group may be unavailable.

use std::collections::BTreeSet;

use towline_protocol::policy::{Policy, Share};
use towline_protocol::report::Health;
use towline_protocol::rollout::State;

use super::world::{World, instance, policy, revision};
use crate::fleet::{self, Presence};
use crate::rollout::operations;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("i-{number:02}")).collect()
}

fn group(policy: Policy, count: usize) -> World {
    let names = names(count);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    World::new(policy, &names)
}

#[test]
fn batches_are_cumulative_shares_rounded_up() {
    type Rule = (&'static str, usize, u32, &'static [u32], &'static [usize]);
    let rules: [Rule; 8] = [
        ("the rest is added", 10, 1, &[50], &[1, 4, 5]),
        ("each share is rounded up", 7, 1, &[25, 50], &[1, 1, 2, 3]),
        ("a share that is reached already is left out", 4, 1, &[10, 25, 50], &[1, 1, 2]),
        ("a canary of all is all", 3, 3, &[50], &[3]),
        ("a canary of more than all is all", 2, 5, &[50], &[2]),
        ("a canary beyond a share", 10, 4, &[20, 60], &[4, 2, 4]),
        ("one", 1, 1, &[10, 25, 50], &[1]),
        ("sixty", 60, 1, &[10, 25, 50], &[1, 5, 9, 15, 30]),
    ];
    for (rule, count, canary, shares, expected) in rules {
        let mut world = group(Policy { canary, ..policy(shares) }, count);
        world.release('b').unwrap();
        let mut placed = BTreeSet::new();
        while world.rollout().state == State::Running {
            world.batch_passes();
        }
        let sizes: Vec<usize> = world.batches().iter().map(|(_, members)| members.len()).collect();
        assert_eq!(sizes, expected, "{rule}");
        for (_, members) in world.batches() {
            placed.extend(members);
        }
        assert_eq!(placed.len(), count, "{rule}: nobody twice, nobody left out");
    }
}

#[test]
fn one_batch_ahead_is_offered_and_no_more() {
    let mut world = group(policy(&[20, 40, 60]), 10);
    world.release('b').unwrap();
    for passed in 0..4 {
        world.settle();
        let batches = &world.rollout().batches;
        assert_eq!(batches.len(), passed + 2);
        assert!(batches[passed].is_open() && !batches[passed + 1].is_open());
        world.batch_passes();
    }
    assert_eq!(world.rollout().batches.len(), 5);
}

#[test]
fn no_batch_opens_in_the_step_before_its_gate_is_on_record() {
    let mut world = group(policy(&[50]), 4);
    world.release('b').unwrap();
    loop {
        let batches = &world.rollout().batches;
        let open = batches.iter().filter(|batch| batch.is_open() && batch.passed_ms.is_none());
        assert!(open.count() <= 1, "{batches:?}");
        if world.rollout().state != State::Running {
            break;
        }
        match world.step() {
            crate::rollout::Decision::Wait { .. } => world.batch_passes(),
            decision => assert!(!matches!(decision, crate::rollout::Decision::Rest)),
        }
    }
}

#[test]
fn those_who_are_there_and_well_go_first_and_those_who_serve_it_last() {
    let mut room = policy(&[50]);
    room.max_unavailable = Share::Count(3);
    let mut world = group(room, 4);
    world.hush("i-00");
    world.tell("i-01", |told| told.health = Health::Unhealthy);
    world.tell("i-02", |told| told.serving = Some(revision('b')));
    world.release('b').unwrap();
    world.settle();
    assert_eq!(world.members(0), ["i-03"]);
    assert_eq!(world.members(1), ["i-02"]);
    world.batch_passes();
    world.batch_passes();
    world.settle();
    assert_eq!(world.members(2), ["i-01"], "the silent one was set aside when its batch opened");
    assert!(world.rollout().aside.contains(&instance("i-00")));
}

#[test]
fn where_the_budget_is_spent_those_who_are_not_well_go_first() {
    let mut world = group(policy(&[50]), 4);
    world.tell("i-01", |told| told.health = Health::Unhealthy);
    world.release('b').unwrap();
    world.settle();
    assert_eq!(world.members(0), ["i-01"], "its swap costs nothing, and no other could be had");
}

#[test]
fn who_serves_it_already_or_was_not_heard_of_is_nobodys_canary() {
    let all = ["i-00", "i-01", "i-02", "i-03"];
    for name in all {
        let mut world = group(policy(&[50]), 4);
        world.tell(name, |told| told.serving = Some(revision('b')));
        world.release('b').unwrap();
        world.settle();
        assert_ne!(world.members(0), [name]);

        let mut world = group(policy(&[50]), 4);
        world.attendance.note(instance(name), Presence::Unheard);
        world.release('b').unwrap();
        world.settle();
        assert_ne!(world.members(0), [name]);
    }
}

#[test]
fn the_order_depends_on_the_revision() {
    let canary = |name: char| {
        let mut world = group(policy(&[50]), 20);
        world.release(name).unwrap();
        world.settle();
        world.first(0)
    };
    let canaries: BTreeSet<String> = "bcdef".chars().map(canary).collect();
    assert!(canaries.len() > 1, "it is not always the same one that goes first: {canaries:?}");
    assert_eq!(canary('b'), canary('b'));
}

#[test]
fn only_those_that_are_chosen_take_part_until_it_is_resumed() {
    let mut world = group(policy(&[50]), 6);
    let mut request = World::request('b');
    request.only = Some("i-04,i-05".to_owned().try_into().unwrap());
    world.release_as(&request).unwrap();
    let early = operations::resume(world.state(), world.now, &world.act()).unwrap_err();
    assert!(early.message.contains("only i-04,i-05 takes part"), "{}", early.message);
    world.batch_passes();
    world.batch_passes();
    let line = world.line();
    assert!(line.starts_with("2 Release paused: the chosen instances have it"), "{line}");
    let members: BTreeSet<String> = world.members(0).into_iter().chain(world.members(1)).collect();
    assert_eq!(members, ["i-04".to_owned(), "i-05".to_owned()].into());
    world.pass_s(100_000);
    assert_eq!(world.line(), line, "it stays so");

    world.resume();
    world.batch_passes();
    world.batch_passes();
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
    let sizes: Vec<usize> = world.batches().iter().map(|(_, members)| members.len()).collect();
    assert_eq!(sizes, [1, 1, 1, 3], "the group's shares come after those that were chosen");
}

#[test]
fn an_only_that_is_aborted_goes_back() {
    let mut world = group(policy(&[50]), 3);
    let mut request = World::request('b');
    request.only = Some("i-02".to_owned().try_into().unwrap());
    world.release_as(&request).unwrap();
    world.batch_passes();
    world.operate(operations::abort);
    assert!(world.line().starts_with("3 Rollback running"), "{}", world.line());
    assert_eq!(world.members(0).len(), 3);
}

#[test]
fn without_takes_an_instance_out_until_it_polls_again() {
    let mut world = group(policy(&[50]), 3);
    world.hush("i-01");
    let mut request = World::request('b');
    request.without = vec![instance("i-01")];
    world.release_as(&request).unwrap();
    world.batch_passes();
    let out = fleet::budget(world.state(), &world.attendance);
    assert_eq!((out.used, fleet::counted(world.state()).count()), (0, 2));
    world.hear("i-01");
    let back = fleet::budget(world.state(), &world.attendance);
    assert_eq!(back.used, 0, "it is there, and well");
    world.tell("i-01", |told| told.health = Health::Unhealthy);
    let back = fleet::budget(world.state(), &world.attendance);
    assert_eq!(back.used, 1, "and counts from the moment at which it is");
    world.settle();
    assert!(world.rollout().without.is_empty());
    world.batch_passes();
    let line = world.line();
    assert_eq!(
        line, "2 Release converged: its last gate has passed",
        "its batch was formed before"
    );
}

#[test]
fn without_outlasts_the_rollout_and_ends_by_a_poll() {
    let mut world = group(policy(&[50]), 2);
    world.hush("i-01");
    let mut request = World::request('b');
    request.without = vec![instance("i-01")];
    world.release_as(&request).unwrap();
    world.batch_passes();
    assert_eq!(world.rollout().state, State::Converged);
    assert_eq!(fleet::budget(world.state(), &world.attendance).used, 0);
    let kept = world.clone();
    world.operate(|state, act| operations::rollback(state, None, act));
    assert!(world.rollout().without.contains(&instance("i-01")), "the way back has to move");

    let mut world = kept;
    world.hear("i-01");
    world.settle();
    world.hush("i-01");
    assert!(world.rollout().without.is_empty());
    assert_eq!(fleet::budget(world.state(), &world.attendance).used, 1, "silent again");
}

#[test]
fn the_budget_counts_permits_and_whoever_is_not_known_to_be_well() {
    type Rule = (&'static str, Share, usize, fn(&mut World), (u32, u32));
    let rules: [Rule; 9] = [
        ("ten percent of nineteen is one", Share::Percent(10), 19, |_| {}, (0, 1)),
        ("ten percent of twenty is two", Share::Percent(10), 20, |_| {}, (0, 2)),
        ("ten percent of four is one", Share::Percent(10), 4, |_| {}, (0, 1)),
        ("silence counts", Share::Count(1), 4, |world| world.hush("i-00"), (1, 1)),
        (
            "not heard of counts",
            Share::Count(1),
            4,
            |world| world.attendance.note(instance("i-00"), Presence::Unheard),
            (1, 1),
        ),
        (
            "unhealthy counts",
            Share::Count(1),
            4,
            |world| world.tell("i-00", |told| told.health = Health::Unhealthy),
            (1, 1),
        ),
        (
            "not known to be healthy counts",
            Share::Count(1),
            4,
            |world| world.tell("i-00", |told| told.health = Health::Unknown),
            (1, 1),
        ),
        (
            "a permit and its unhealthy holder count once",
            Share::Count(1),
            4,
            |world| {
                assert!(world.ask("i-00").permit.is_some());
                world.tell("i-00", |told| {
                    (told.health, told.uses_permit) = (Health::Unhealthy, true);
                });
            },
            (1, 1),
        ),
        (
            "a group that shrinks may stand above it",
            Share::Percent(50),
            4,
            |world| {
                for name in ["i-00", "i-01"] {
                    assert!(world.ask(name).permit.is_some());
                }
                world.leaves("i-02");
                world.leaves("i-03");
            },
            (2, 1),
        ),
    ];
    for (rule, max, count, happens, (used, most)) in rules {
        let mut world = group(Policy { max_unavailable: max, ..policy(&[50]) }, count);
        happens(&mut world);
        let budget = fleet::budget(world.state(), &world.attendance);
        assert_eq!((budget.used, budget.max), (used, most), "{rule}");
    }
}

#[test]
fn a_rollback_has_a_budget_of_its_own() {
    let wide = Policy { max_unavailable_rollback: Share::Percent(50), ..policy(&[50]) };
    let mut world = group(wide, 4);
    assert_eq!(fleet::budget(world.state(), &world.attendance).max, 1);
    world.release('b').unwrap();
    world.operate(operations::abort);
    assert_eq!(fleet::budget(world.state(), &world.attendance).max, 2);
}

#[test]
fn who_is_left_out_is_no_part_of_the_live_group() {
    let half = Policy { max_unavailable: Share::Percent(50), ..policy(&[50]) };
    let mut world = group(half, 4);
    let mut request = World::request('b');
    for name in ["i-00", "i-01"] {
        world.hush(name);
        request.without.push(instance(name));
    }
    assert_eq!(fleet::budget(world.state(), &world.attendance).max, 2);
    world.release_as(&request).unwrap();
    assert_eq!(fleet::budget(world.state(), &world.attendance).max, 1);
    while world.rollout().state == State::Running {
        world.batch_passes();
    }
    world.hear("i-00");
    world.release('c').unwrap();
    let out: Vec<_> = world.rollout().without.iter().collect();
    assert_eq!(out, [&instance("i-01")], "the next release goes on without it as well");
}
