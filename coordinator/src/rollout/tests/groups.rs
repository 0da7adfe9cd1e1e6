//! Groups: made, changed, removed, and made anew.

use std::time::Duration;

use towline_protocol::api::Code;
use towline_protocol::fleet::{QUARANTINE_MAX, QUARANTINE_TOLD_MAX, Quarantined};
use towline_protocol::ids::Revision;
use towline_protocol::policy::{OnFailure, Policy, Share};
use towline_protocol::poll::{Message, Poll};
use towline_protocol::rollout::State;
use towline_protocol::time::Timestamp;

use super::world::{EPOCH, World, instance, policy, revision, web};
use crate::board::{Board, Moment};
use crate::fleet;
use crate::records::key;
use crate::rollout::reports::INSTANCES_MAX;
use crate::rollout::{operations, words};
use crate::store::Change;
use crate::store::VALUE_BYTES_MAX;

fn set(world: &mut World, policy: Policy) {
    let draft = operations::set_group(world.records.remains(&web()), &web(), policy).unwrap();
    assert!(world.commit(draft));
}

fn remove(world: &mut World) -> usize {
    for commits in 1.. {
        let removal = operations::remove_group(world.state()).unwrap();
        assert!(world.commit(removal.draft));
        if removal.is_last {
            return commits;
        }
    }
    unreachable!()
}

#[test]
fn a_change_of_the_policy_touches_the_next_rollout_only() {
    let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
    world.release('b').unwrap();
    let wide =
        Policy { max_unavailable: Share::Count(2), on_failure: OnFailure::Halt, ..policy(&[]) };
    set(&mut world, wide.clone());
    assert_eq!(world.rollout().policy, policy(&[50]));
    assert_eq!(fleet::budget(world.state(), &world.attendance).max, 1);
    world.run();
    world.release('c').unwrap();
    assert_eq!(world.rollout().policy, wide);
    let state = world.records.remains(&web());
    assert!(operations::set_group(state, &web(), wide).unwrap().is_empty(), "nothing to change");
    let group = world.state().record.as_ref().unwrap();
    assert_eq!(group.value.proven.len(), 2, "what it knows it keeps");
}

#[test]
fn a_policy_out_of_its_range_is_refused() {
    let error = operations::set_group(None, &web(), Policy { canary: 0, ..policy(&[]) });
    let error = error.unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (Code::Invalid, Some("canary")));
}

#[test]
fn a_group_is_made_once() {
    let mut world = World::fresh(policy(&[50]), &[]);
    let again = operations::set_group(None, &web(), policy(&[50])).unwrap();
    assert!(!world.commit(again), "somebody was faster");
}

#[test]
fn a_group_with_instances_or_a_running_rollout_is_not_removed() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let error = operations::remove_group(world.state()).unwrap_err();
    assert!(error.message.contains("it has 1 instance"), "{}", error.message);
    world.leaves("i-0a");
    world.release('b').unwrap();
    let error = operations::remove_group(world.state()).unwrap_err();
    assert!(error.message.contains("a rollout is running"), "{}", error.message);
    world.operate(operations::pause);
    remove(&mut world);
    assert!(world.records.group(&web()).is_none());
}

#[test]
fn a_group_that_is_made_anew_goes_on_above_what_its_agents_have_seen() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.operate(operations::restart);
    world.run();
    world.release('b').unwrap();
    world.run();
    world.leaves("i-0a");
    remove(&mut world);
    for at in [key::group, key::target, key::rollout, key::clock, key::permits] {
        assert!(!world.has(&at(&web())), "{}", at(&web()));
    }
    assert!(world.has(&key::floor(&web())));

    set(&mut world, policy(&[50]));
    let state = world.state();
    assert!(state.target.is_none() && state.rollout.is_none() && state.instances.is_empty());
    world.join("i-0a", Some('b'));
    world.release('b').unwrap();
    assert_eq!(world.state().order().generation, 4);
    world.run();
    assert_eq!(world.rollout().state, State::Converged);
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 2, "nor is a restart's counter used again");

    world.run();
    world.leaves("i-0a");
    remove(&mut world);
    set(&mut world, policy(&[50]));
    world.release('c').unwrap();
    let order = world.state().order();
    assert_eq!((order.epoch, order.generation), (EPOCH, 6), "and again");
}

#[test]
fn a_group_that_never_had_a_target_has_no_floor_to_speak_of() {
    let mut world = World::fresh(policy(&[50]), &[]);
    remove(&mut world);
    set(&mut world, policy(&[50]));
    world.release('b').unwrap();
    assert_eq!(world.state().order().generation, 1);
}

#[test]
fn many_who_left_are_removed_in_several_commits() {
    let names: Vec<String> = (0..70).map(|number| format!("i-{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(policy(&[50]), &names);
    for name in &names {
        world.leaves(name);
    }
    assert!(remove(&mut world) > 2);
    assert!(world.records.remains(&web()).unwrap().instances.is_empty());
}

#[test]
fn a_release_and_a_removal_at_the_same_time_do_not_both_happen() {
    let mut world = World::fresh(policy(&[50]), &[]);
    let request = World::request('b');
    let act = world.act();
    let release = operations::release(world.state(), &world.attendance, &request, &act).unwrap();
    let mut other = world.clone();
    remove(&mut world);
    assert!(!world.commit(release.clone()));
    let removal = operations::remove_group(other.state()).unwrap().draft;
    assert!(other.commit(release));
    assert!(!other.commit(removal));
}

#[test]
fn a_full_quarantine_is_lifted_by_operators_alone_and_agents_hear_of_its_newest() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let mut record = world.state().record.as_ref().unwrap().value.clone();
    let bad = |number: usize| -> Revision { format!("{number:040x}").parse().unwrap() };
    for number in 0..QUARANTINE_MAX {
        let reason = "503".to_owned();
        record.quarantine.push(Quarantined { revision: bad(number), since: Timestamp(1), reason });
    }
    world.write(&key::group(&web()), &record);
    let refused = world.release('b').unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.message.contains("is full"), "{}", refused.message);
    let hint = format!("towline quarantine lift web {}", bad(0).short());
    assert!(refused.hint.as_ref().unwrap().contains(&hint), "{refused:?}");
    let lifted = operations::lift(world.state(), &bad(0)).unwrap();
    assert!(world.commit(lifted));
    world.release('b').unwrap();
    let told = words::word(world.state(), &instance("i-0a"), 0);
    let named = told.target.as_ref().unwrap().quarantine.clone();
    assert_eq!(named.len(), QUARANTINE_TOLD_MAX);
    assert_eq!(named.last(), Some(&bad(QUARANTINE_MAX - 1)), "the newest");
    assert!(serde_json::to_vec(&told).unwrap().len() < 16 * 1024, "an agent reads 64 KiB");
    world.fails("i-0a", "503");
    world.run();
    let group = &world.state().record.as_ref().unwrap().value;
    assert!(group.is_quarantined(&bad(1)) && group.is_quarantined(&revision('b')), "none is lost");
}

#[test]
fn a_group_has_room_for_so_many_and_whoever_is_in_it_goes_on() {
    let world = World::new(policy(&[50]), &["i-0a"]);
    let mut records = world.records.clone();
    let value = serde_json::to_vec(world.state().member(&instance("i-0a")).unwrap()).unwrap();
    for number in 1..INSTANCES_MAX {
        let key = key::instance(&web(), &instance(&format!("n-{number}")));
        let change = Change { key, value: Some(value.clone()), version: 1_000_000 };
        records.apply(&change).unwrap();
    }
    let now = Moment { read: Duration::ZERO, at: Timestamp(1_790_000_000_000) };
    let board = Board::new(records, 50, now);
    let poll = |name: &str| {
        let poll = Poll {
            version: 1,
            group: web(),
            instance: instance(name),
            seq: 9,
            seen: None,
            unsaid: None,
        };
        board.join(&poll, now)
    };
    assert!(poll("i-0a").is_ok() && poll("n-1").is_ok());
    let refused = poll("i-new").unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.hint.unwrap().contains("towline forget"));
    let mut report = world.agents[&instance("i-0a")].report.clone();
    report.instance = instance("i-new");
    let message = Message { seq: 9, age_ms: 0, report, note: None, log: None };
    assert!(board.report(&message, now).is_err());
}

#[test]
fn the_rollout_of_a_full_group_is_a_record_that_can_be_stored() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.release('b').unwrap();
    world.settle();
    let mut rollout = world.rollout().clone();
    let longest = |number| instance(&format!("{number:0>64}"));
    rollout.batches[0].members = (0..INSTANCES_MAX).map(longest).collect();
    let bytes = serde_json::to_vec(&rollout).unwrap().len();
    // An abort stores it among those that have ended, and begins the next one.
    assert!(bytes < VALUE_BYTES_MAX - (64 << 10), "{bytes}");
}

#[test]
fn past_rollouts_are_kept_for_ninety_days() {
    let day = |days: u64| Timestamp(days * 24 * 3600 * 1000);
    let past = [("past/web/1".to_owned(), day(9)), ("past/web/2".to_owned(), day(10))];
    assert_eq!(operations::outdated(&past, day(100)), ["past/web/1"]);
    assert!(operations::outdated(&past, day(5)).is_empty(), "a clock that steps back");
}
