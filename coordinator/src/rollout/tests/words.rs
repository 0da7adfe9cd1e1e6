//! What instances are told: their duty, and what a newborn boots.

use std::collections::BTreeMap;

use towline_protocol::policy::{OnFailure, Policy};
use towline_protocol::poll::{Duty, PROBE_EVERY_BAKING_S, PROBE_EVERY_S};

use super::world::{World, instance, policy, revision};
use crate::records::key;
use crate::rollout::{operations, words};

const FIVE: [&str; 5] = ["i-0a", "i-0b", "i-0c", "i-0d", "i-0e"];

/// A release with one batch open, one offered, one instance in neither.
fn begun() -> World {
    let mut world = World::new(Policy { on_failure: OnFailure::Halt, ..policy(&[20, 40]) }, &FIVE);
    world.release('b').unwrap();
    world.settle();
    world
}

fn duties(world: &World) -> [Duty; 3] {
    let (open, offered) = (world.first(0), world.first(1));
    let other = FIVE.into_iter().find(|name| {
        !world.members(0).contains(&(*name).to_owned())
            && !world.members(1).contains(&(*name).to_owned())
    });
    [&open, &offered, other.unwrap()].map(|name| world.duty(name))
}

#[test]
fn duties_follow_the_batch_and_the_state() {
    use Duty::{Hold, Prepare, Take};
    let mut world = World::new(policy(&[20, 40]), &FIVE);
    assert_eq!(world.duty("i-0a"), Take, "no rollout: whoever drifted comes back");
    world = begun();
    assert_eq!(duties(&world), [Take, Prepare, Hold]);
    world.operate(operations::pause);
    assert_eq!(duties(&world), [Prepare, Prepare, Hold], "paused");
    world.resume();
    assert_eq!(duties(&world), [Take, Prepare, Hold]);
    let canary = world.first(0);
    world.fails(&canary, "503");
    world.settle();
    assert_eq!(duties(&world), [Prepare, Prepare, Hold], "halted");
    world.operate(operations::abort);
    world.settle();
    assert!(FIVE.iter().all(|name| world.duty(name) == Take), "the way back is for all");
}

#[test]
fn who_was_set_aside_takes_it_only_once_a_gate_has_passed() {
    let mut world = begun();
    let canary = world.first(0);
    world.hush(&canary);
    world.settle();
    world.hear(&canary);
    world.settle();
    assert_eq!(world.duty(&canary), Duty::Prepare, "nothing has shown the revision to be good");
    world.batch_passes();
    assert_eq!(world.duty(&canary), Duty::Take, "taken up");
    world.operate(operations::pause);
    assert_eq!(world.duty(&canary), Duty::Prepare);
}

#[test]
fn who_is_left_out_holds() {
    let mut world = World::new(policy(&[50]), &FIVE);
    world.hush("i-0a");
    let mut request = World::request('b');
    request.without = vec![instance("i-0a")];
    world.release_as(&request).unwrap();
    world.settle();
    assert_eq!(world.duty("i-0a"), Duty::Hold);
    world.operate(operations::abort);
    world.settle();
    assert_eq!(world.duty("i-0a"), Duty::Hold, "also on the way back");
    assert_eq!(world.duty("i-0b"), Duty::Take);
}

#[test]
fn words_name_nobody_and_only_those_who_may_ask_hear_of_it() {
    let world = begun();
    let word = |name: &str, ask| words::word(world.state(), &instance(name), ask);
    let (open, offered) = (world.first(0), world.first(1));
    assert_ne!(word(&open, 1), word(&open, 2));
    assert_eq!(word(&offered, 1), word(&offered, 2));
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for name in FIVE {
        *told.entry(serde_json::to_string(&word(name, 1)).unwrap()).or_default() += 1;
    }
    assert_eq!(told.len(), 3, "one text for each place: {told:#?}");
}

#[test]
fn the_batch_that_bakes_probes_often() {
    let mut world = begun();
    let pace =
        |world: &World, name: &str| words::word(world.state(), &instance(name), 0).probe_every_s;
    let (open, offered) = (world.first(0), world.first(1));
    assert_eq!(pace(&world, &open), PROBE_EVERY_BAKING_S);
    assert_eq!(pace(&world, &offered), PROBE_EVERY_S);
    world.batch_passes();
    assert_eq!(pace(&world, &open), PROBE_EVERY_S);
}

#[test]
fn orders_reach_the_instance_that_they_are_for() {
    let mut world = begun();
    let restart = operations::ToInstance::Restart;
    world.operate(|state, _| operations::order(state, &instance("i-0c"), restart));
    let orders = |name: &str| words::word(world.state(), &instance(name), 0).orders.restart;
    assert_eq!((orders("i-0c"), orders("i-0d")), (1, 0));
}

#[test]
fn a_newborn_is_told_what_the_group_knows_to_be_good() {
    type Rule = (&'static str, fn() -> World, Option<char>);
    let rules: [Rule; 14] = [
        ("no rollout: the target", || World::new(policy(&[50]), &FIVE), Some('a')),
        ("no target: baked", || World::fresh(policy(&[50]), &FIVE), None),
        ("a new revision on its way: the fallback", begun, Some('a')),
        (
            "paused: the fallback",
            || {
                let mut world = begun();
                world.operate(operations::pause);
                world
            },
            Some('a'),
        ),
        (
            "halted: the fallback",
            || {
                let mut world = begun();
                let canary = world.first(0);
                world.fails(&canary, "503");
                world.settle();
                world
            },
            Some('a'),
        ),
        (
            "baking, with the canary passed: still the fallback",
            || {
                let mut world = begun();
                world.batch_passes();
                world
            },
            Some('a'),
        ),
        (
            "converged: the target",
            || {
                let mut world = begun();
                world.run();
                world
            },
            Some('b'),
        ),
        (
            "the way back: its target",
            || {
                let mut world = begun();
                world.operate(operations::abort);
                world
            },
            Some('a'),
        ),
        (
            "a restart: its target",
            || {
                let mut world = World::new(policy(&[50]), &FIVE);
                world.operate(operations::restart);
                world
            },
            Some('a'),
        ),
        (
            "nothing is group-proven yet: baked",
            || {
                let mut world = World::fresh(policy(&[50]), &FIVE);
                world.release('b').unwrap();
                world
            },
            None,
        ),
        (
            "nothing is group-proven yet, and the group is empty: the target, as the canary",
            || {
                let mut world = World::fresh(policy(&[50]), &[]);
                world.release('b').unwrap();
                world
            },
            Some('b'),
        ),
        (
            "the group is empty, and something is group-proven: that",
            || {
                let mut world = World::new(policy(&[50]), &[]);
                world.release('b').unwrap();
                world
            },
            Some('a'),
        ),
        (
            "the way back leads to nothing known: baked",
            || {
                let mut world = World::fresh(policy(&[50]), &FIVE);
                world.release('b').unwrap();
                world.operate(operations::abort);
                world
            },
            None,
        ),
        (
            "an only that waits: the fallback",
            || {
                let mut world = World::new(policy(&[50]), &FIVE);
                let mut request = World::request('b');
                request.only = Some("i-0a".to_owned().try_into().unwrap());
                world.release_as(&request).unwrap();
                world.batch_passes();
                world
            },
            Some('a'),
        ),
    ];
    for (rule, make, expected) in rules {
        let mut world = make();
        let boot = words::boot(world.state(), &instance("i-9f"));
        assert_eq!(boot, expected.map(revision), "{rule}: before it is known");
        world.join("i-9f", None);
        let boot = words::boot(world.state(), &instance("i-9f"));
        assert_eq!(boot, expected.map(revision), "{rule}");
    }
}

#[test]
fn two_that_join_an_empty_group_without_a_fallback_are_not_both_the_canary() {
    let mut world = World::fresh(policy(&[50]), &[]);
    world.release('b').unwrap();
    world.join("i-0a", None);
    assert_eq!(words::boot(world.state(), &instance("i-0a")), Some(revision('b')));
    world.join("i-0b", None);
    assert_eq!(words::boot(world.state(), &instance("i-0b")), None);
}

#[test]
fn a_newborns_turn_comes_in_a_later_batch() {
    let mut world = begun();
    world.join("i-9f", None);
    world.settle();
    assert_eq!(world.duty("i-9f"), Duty::Hold);
    world.takes("i-9f", 'a');
    assert_eq!(world.run(), super::world::End::Rests);
    let placed = world
        .batches()
        .into_iter()
        .skip(2)
        .any(|(_, members)| members.contains(&"i-9f".to_owned()));
    assert!(placed, "{:?}", world.batches());
    assert_eq!(world.agents[&instance("i-9f")].report.serving, Some(revision('b')));
}

#[test]
fn newborns_are_spared_a_revision_that_they_cannot_boot() {
    let mut world = World::new(policy(&[50]), &FIVE);
    let mut group = world.state().record.clone().unwrap().value;
    (group.proven, group.unbootable) = (vec![revision('c'), revision('a')], Some(revision('a')));
    world.write(&key::group(&world.state().group.clone()), &group);
    assert_eq!(
        words::boot(world.state(), &instance("i-9f")),
        Some(revision('a')),
        "there was no fallback when the target was written"
    );
    world.release('b').unwrap();
    assert_eq!(world.rollout().target.fallback, Some(revision('a')));
    assert_eq!(words::boot(world.state(), &instance("i-9f")), Some(revision('c')));
    world.operate(|state, _| operations::lift(state, &revision('a')));
    assert_eq!(words::boot(world.state(), &instance("i-9f")), Some(revision('a')));
}
