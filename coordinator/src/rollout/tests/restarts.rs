//! Restarts of groups and of single instances, and the counters by which they are told.

use towline_protocol::api::Code;
use towline_protocol::report::Health;
use towline_protocol::rollout::Kind;

use super::operators::{THREE, converged, is_quarantined, quarantine, three};
use super::world::{End, World, instance, policy, revision};
use crate::rollout::operations::{self, ToInstance};

#[test]
fn a_number_that_an_agent_makes_up_uses_up_no_counter() {
    let mut world = three();
    world.tell("i-0a", |told| {
        told.restart = u64::MAX - 1;
        told.orders.restart = u64::MAX - 1;
    });
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 1);
    let restarts =
        |world: &World, name: &str| world.state().instances[&instance(name)].value.orders;
    world.operate(|state, _| {
        operations::order(state, &instance("i-0a"), operations::ToInstance::Restart)
    });
    assert_eq!(restarts(&world, "i-0a").restart, 1);
    // One that is a little ahead is believed: the store may have been restored.
    let mut world = three();
    world.tell("i-0a", |told| {
        told.restart = 7;
        told.orders.restart = 8;
    });
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 8);
    world.operate(|state, _| {
        operations::order(state, &instance("i-0a"), operations::ToInstance::Restart)
    });
    assert_eq!(restarts(&world, "i-0a").restart, 9);
}

#[test]
fn restart_is_the_same_revision_and_a_higher_counter() {
    let mut world = three();
    world.operate(operations::restart);
    let rollout = world.rollout();
    assert_eq!((rollout.kind, rollout.is_proven), (Kind::Restart, true));
    assert_eq!((rollout.target.restart, &rollout.target.revision), (1, &Some(revision('a'))));
    assert!(operations::restart(world.state(), &world.act()).is_err(), "while one goes on");
    world.settle();
    let canary = world.first(0);
    world.takes(&canary, 'a');
    assert!(world.line().contains("0 of 1 healthy"), "it has not restarted yet");
    world.tell(&canary, |told| told.restart = 1);
    assert_eq!(world.line(), "2 Restart running: canary bakes for another 60 s");
    assert_eq!(world.run(), End::Rests);
    assert!(world.agents.values().all(|agent| agent.report.restart == 1));
    world.release('b').unwrap();
    assert_eq!(world.rollout().target.restart, 1, "the counter goes on");
    let mut fresh = World::fresh(policy(&[50]), &THREE);
    assert!(
        operations::restart(fresh.state(), &fresh.act()).is_err(),
        "there is nothing to restart"
    );
    fresh.release('b').unwrap();
}

#[test]
fn a_restart_that_fails_halts() {
    let mut world = three();
    world.operate(operations::restart);
    world.settle();
    let canary = world.first(0);
    world.fails(&canary, "503");
    assert!(world.line().starts_with("2 Restart halted: canary failed"), "{}", world.line());
    assert_eq!(world.rollout().culprit, None, "group-proven: never put into quarantine by itself");
    world.operate(operations::abort);
    assert!(!is_quarantined(&world, 'a'));
}

#[test]
fn an_aborted_restart_restarts_nobody_else_and_the_next_one_restarts_all() {
    let mut world = three();
    world.operate(operations::restart);
    world.settle();
    let canary = world.first(0);
    world.takes(&canary, 'a');
    world.tell(&canary, |told| told.restart = 1);
    world.operate(operations::abort);
    let target = &world.rollout().target;
    assert_eq!((target.restart, &target.revision), (0, &Some(revision('a'))));
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.agents[&instance(&canary)].report.restart, 1);
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 2, "who has carried out 1 restarts as well");
    world.run();
    assert!(world.agents.values().all(|agent| agent.report.restart == 2));
}

#[test]
fn a_restart_that_was_aborted_before_anybody_told_of_it_is_not_given_out_again() {
    let mut world = three();
    world.operate(operations::restart);
    world.operate(operations::abort);
    world.run();
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 2);
}

#[test]
fn what_is_restarted_and_becomes_unhealthy_while_it_bakes_has_failed() {
    let mut world = three();
    world.operate(operations::restart);
    world.settle();
    let canary = world.first(0);
    world.takes(&canary, 'a');
    world.tell(&canary, |told| told.restart = 1);
    world.settle();
    world.tell(&canary, |told| told.health = Health::Unhealthy);
    assert!(world.line().starts_with("2 Restart halted: canary failed"), "{}", world.line());
}

#[test]
fn what_is_in_quarantine_may_be_restarted_where_it_is_proven_and_is_not_gone_back_to() {
    let mut world = three();
    quarantine(&mut world, 'a');
    world.operate(operations::restart);
    assert!(world.line().starts_with("2 Restart running"), "{}", world.line());

    let mut world = three();
    converged(&mut world, 'b');
    quarantine(&mut world, 'a');
    let back = operations::rollback(world.state(), Some(&revision('a')), &world.act());
    assert!(back.unwrap_err().message.contains("or it is in quarantine"));
}

#[test]
fn a_counter_that_a_restored_store_does_not_know_is_not_given_out_again() {
    let mut world = three();
    world.tell("i-0b", |told| told.restart = 7);
    world.operate(operations::restart);
    assert_eq!(world.rollout().target.restart, 8);
}

#[test]
fn rollback_during_a_restart_leaves_the_revision() {
    let mut world = three();
    converged(&mut world, 'b');
    world.operate(operations::restart);
    world.operate(|state, act| operations::rollback(state, None, act));
    assert_eq!(world.rollout().target.revision, Some(revision('a')));
}

#[test]
fn an_order_to_an_instance_is_the_next_number_also_after_its_record_was_lost() {
    let mut world = three();
    world.tell("i-0a", |told| told.orders.restart = 4);
    world.operate(|state, _| operations::order(state, &instance("i-0a"), ToInstance::Restart));
    world.operate(|state, _| operations::order(state, &instance("i-0a"), ToInstance::Retry));
    let orders = world.state().member(&instance("i-0a")).unwrap().orders;
    assert_eq!((orders.restart, orders.retry), (5, 1));
    let unknown = operations::order(world.state(), &instance("i-ff"), ToInstance::Retry);
    assert_eq!(unknown.unwrap_err().code, Code::NotFound);
}

#[test]
fn a_permit_for_an_order_has_its_deadline_from_when_its_batch_opens() {
    let mut world = World::new(policy(&[100]), &THREE);
    world.release('b').unwrap();
    world.settle();
    let canary = world.first(0);
    let other = THREE.into_iter().find(|name| *name != canary).unwrap();
    world.operate(|state, _| operations::order(state, &instance(other), ToInstance::Restart));
    assert!(world.ask(other).permit.is_some());
    world.tell(other, |told| (told.health, told.uses_permit) = (Health::Unhealthy, true));
    world.pass_s(290);
    world.takes(&canary, 'b');
    world.settle();
    world.pass_s(61);
    world.settle();
    assert!(world.members(1).contains(&other.to_owned()), "{}", world.line());
    assert!(world.rollout().failures.is_empty(), "it has as long as everybody else");
    world.pass_s(310);
    world.settle();
    let detail = &world.past(2).failures[&instance(other)].detail;
    assert_eq!(detail, "not healthy, 300 s after its permit", "{}", world.rollout().reason);
}
