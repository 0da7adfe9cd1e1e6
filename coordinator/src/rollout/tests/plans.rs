//! The plan of a release and the release itself agree, as long as nothing changes.

use std::collections::BTreeSet;

use towline_protocol::ids::Instance;
use towline_protocol::policy::Share;
use towline_protocol::report::Health;

use super::enumeration::{NAMES, divisions};
use super::world::{End, World, instance, policy, revision};
use crate::rollout::{batches, gate, operations};

type Batches = Vec<(String, BTreeSet<Instance>, u64)>;

fn planned(world: &World, request: &towline_protocol::api::ReleaseRequest) -> Batches {
    let (state, attendance) = (world.state(), &world.attendance);
    let rollout = operations::propose(state, attendance, request, &world.act()).unwrap();
    let batches = batches::plan(state, &rollout, attendance);
    batches.into_iter().map(|batch| (batch.name, batch.members, batch.bake.as_secs())).collect()
}

/// The batches that were opened, without those in which nobody was left.
fn opened(world: &World) -> Batches {
    let rollout = world.rollout();
    let batches = rollout.batches.iter().enumerate().filter(|(_, batch)| !batch.members.is_empty());
    let batches = batches.map(|(index, batch)| {
        (batch.name.clone(), batch.members.clone(), gate::bake_time(rollout, index).as_secs())
    });
    batches.collect()
}

#[test]
fn plan_and_rollout_agree_on_every_small_fleet() {
    for size in 1..=NAMES.len() {
        for mut policy in divisions(size) {
            // Enough for those who are silent, and for one more.
            policy.max_unavailable = Share::Count(5);
            let step = if size > 3 { 5 } else { 1 };
            for silent in (0..1_u32 << size).step_by(step) {
                let mut world = World::new(policy.clone(), &NAMES[..size]);
                let is_in = |place: usize| silent & (1 << place) != 0;
                for (place, name) in NAMES[..size].iter().enumerate() {
                    if is_in(place) {
                        world.hush(name);
                    } else if place % 2 == 1 {
                        world.tell(name, |told| told.serving = Some(revision('b')));
                    }
                }
                let request = World::request('b');
                let plan = planned(&world, &request);
                world.release('b').unwrap();
                let end = world.run();
                assert_eq!(plan, opened(&world), "{size} {silent:b} {policy:?}");
                assert_eq!(end == End::Rests, !plan.is_empty(), "{end:?}");
            }
        }
    }
}

#[test]
fn a_plan_of_a_part_is_that_part() {
    let mut world = World::new(policy(&[50]), &NAMES);
    world.hush("i-0a");
    let mut request = World::request('b');
    request.without = vec![instance("i-0a")];
    request.only = Some("i-0a,i-0b,i-0c".to_owned().try_into().unwrap());
    let plan = planned(&world, &request);
    assert_eq!(plan.iter().map(|(_, members, _)| members.len()).sum::<usize>(), 2);
    world.release_as(&request).unwrap();
    world.run();
    assert_eq!(plan, opened(&world));
}

#[test]
fn what_is_still_to_come_is_planned_as_well() {
    let mut world = World::new(policy(&[20, 60]), &NAMES);
    world.tell("i-0a", |told| told.health = Health::Unknown);
    let plan = planned(&world, &World::request('b'));
    world.release('b').unwrap();
    world.settle();
    let left = batches::plan(world.state(), world.rollout(), &world.attendance);
    let left: Vec<_> = left.into_iter().map(|batch| batch.members).collect();
    let rest: Vec<_> = plan.into_iter().skip(2).map(|(_, members, _)| members).collect();
    assert_eq!(left, rest);
}

#[test]
fn what_would_be_refused_has_no_plan() {
    let world = World::new(policy(&[50]), &NAMES);
    let act = world.act();
    let request = World::request('a');
    assert!(operations::propose(world.state(), &world.attendance, &request, &act).is_err());
}
