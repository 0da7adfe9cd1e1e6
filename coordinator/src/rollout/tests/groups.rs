//! Groups: made, changed, removed, and made anew.

use towline_protocol::api::Code;
use towline_protocol::policy::{OnFailure, Policy, Share};
use towline_protocol::rollout::State;
use towline_protocol::time::Timestamp;

use super::world::{EPOCH, World, policy, web};
use crate::fleet;
use crate::records::key;
use crate::rollout::operations;

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
fn past_rollouts_are_kept_for_ninety_days() {
    let day = |days: u64| Timestamp(days * 24 * 3600 * 1000);
    let past = [("past/web/1".to_owned(), day(9)), ("past/web/2".to_owned(), day(10))];
    assert_eq!(operations::outdated(&past, day(100)), ["past/web/1"]);
    assert!(operations::outdated(&past, day(5)).is_empty(), "a clock that steps back");
}
