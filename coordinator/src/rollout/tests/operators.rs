//! What operators do: releases that are refused, the ways back, pauses, quarantine.

use towline_protocol::api::{Code, ErrorBody};
use towline_protocol::fleet::Quarantined;
use towline_protocol::policy::{OnFailure, Policy};
use towline_protocol::report::Health;
use towline_protocol::rollout::{Kind, State};
use towline_protocol::time::Timestamp;

use super::world::{EPOCH, End, Fate, World, instance, policy, revision};
use crate::records::key;
use crate::rollout::operations;

pub(super) const THREE: [&str; 3] = ["i-0a", "i-0b", "i-0c"];

fn halting() -> Policy {
    Policy { on_failure: OnFailure::Halt, ..policy(&[50]) }
}

pub(super) fn three() -> World {
    World::new(policy(&[50]), &THREE)
}

/// A release to `b` whose canary is open.
fn begun(policy: Policy) -> World {
    let mut world = World::new(policy, &THREE);
    world.release('b').unwrap();
    world.settle();
    world
}

pub(super) fn converged(world: &mut World, name: char) {
    world.release(name).unwrap();
    assert_eq!(world.run(), End::Rests);
    assert_eq!(world.rollout().state, State::Converged);
}

fn halt(world: &mut World) {
    let canary = world.first(0);
    world.fails(&canary, "503");
    world.settle();
    assert_eq!(world.rollout().state, State::Halted);
}

fn refused(world: &mut World, name: char) -> ErrorBody {
    let before = world.state().clone();
    let error = world.release(name).unwrap_err();
    assert_eq!(*world.state(), before, "nothing changed");
    error
}

pub(super) fn quarantine(world: &mut World, name: char) {
    let mut group = world.state().record.clone().unwrap().value;
    let reason = "503".to_owned();
    group.quarantine.push(Quarantined { revision: revision(name), since: Timestamp(1), reason });
    world.write(&key::group(&world.state().group.clone()), &group);
}

pub(super) fn is_quarantined(world: &World, name: char) -> bool {
    world.state().record.as_ref().unwrap().value.is_quarantined(&revision(name))
}

#[test]
fn a_release_during_a_running_one_is_refused_with_what_to_do() {
    let mut world = begun(policy(&[50]));
    let error = refused(&mut world, 'c');
    assert_eq!(error.code, Code::Conflict);
    assert!(error.message.contains("(generation 2) is running"), "{}", error.message);
    assert!(error.hint.unwrap().contains("towline rollout abort web"));
    world.operate(operations::pause);
    assert!(refused(&mut world, 'c').message.contains("is paused"));
}

#[test]
fn a_release_replaces_a_halted_one() {
    let mut world = begun(halting());
    halt(&mut world);
    world.release('c').unwrap();
    let rollout = world.rollout();
    assert_eq!((rollout.order().generation, rollout.state), (3, State::Running));
    assert_eq!(rollout.target.fallback, Some(revision('a')));
    assert_eq!(rollout.target.quarantine, [revision('b')], "the gate had found it to be bad");
    assert!(is_quarantined(&world, 'b'));
}

#[test]
fn the_same_revision_may_be_tried_again_in_a_later_generation() {
    let mut world = begun(halting());
    halt(&mut world);
    world.release('b').unwrap();
    assert!(world.line().starts_with("3 Release running: canary"), "{}", world.line());
    assert!(!is_quarantined(&world, 'b'));
}

#[test]
fn what_is_the_target_already_or_in_quarantine_is_refused() {
    let mut world = three();
    let error = refused(&mut world, 'a');
    assert!(error.message.contains("is the target of web already"), "{}", error.message);
    quarantine(&mut world, 'c');
    let error = refused(&mut world, 'c');
    assert!(error.message.contains("it is in quarantine: 503"), "{}", error.message);
    assert!(error.hint.unwrap().contains("towline quarantine lift web ccccccc"));
    world.operate(|state, _| operations::lift(state, &revision('c')));
    world.release('c').unwrap();
    assert!(operations::lift(world.state(), &revision('c')).is_err(), "lifted already");
}

#[test]
fn selections_that_select_nothing_are_refused() {
    let mut world = three();
    let mut request = World::request('b');
    request.without = vec![instance("i-0a")];
    let error = world.release_as(&request).unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (Code::Invalid, Some("without")));
    request.without = vec![instance("i-ff")];
    assert!(world.release_as(&request).unwrap_err().message.contains("is not known"));
    request.without.clear();
    request.only = Some("i-f*".to_owned().try_into().unwrap());
    assert_eq!(world.release_as(&request).unwrap_err().field.as_deref(), Some("only"));
}

#[test]
fn pause_stops_it_and_resume_goes_on() {
    let mut world = begun(policy(&[50]));
    world.operate(operations::pause);
    assert_eq!(world.line(), "2 Release paused: paused by ada");
    let again = operations::pause(world.state(), &world.act()).unwrap();
    assert!(again.is_empty(), "it is paused already");
    let canary = world.first(0);
    world.takes(&canary, 'b');
    world.pass_s(100_000);
    assert_eq!(world.line(), "2 Release paused: paused by ada", "nothing passes meanwhile");
    world.resume();
    assert_eq!(world.line(), "2 Release running: canary bakes for another 60 s");
    assert!(operations::resume(world.state(), world.now, &world.act()).unwrap().is_empty());
}

#[test]
fn a_halted_rollout_is_resumed_in_spite_of_its_failures_and_not_paused() {
    let mut world = begun(halting());
    let canary = world.first(0);
    halt(&mut world);
    let error = operations::pause(world.state(), &world.act()).unwrap_err();
    assert!(error.message.contains("stands already"), "{}", error.message);
    world.resume();
    assert!(world.line().starts_with("2 Release running: canary: 0 of 2 healthy"));
    assert_eq!(world.rollout().culprit, None);
    world.takes(&canary, 'b');
    let other = world.members(0).into_iter().find(|name| *name != canary).unwrap();
    assert_eq!(
        world.line(),
        format!("2 Release running: canary: 1 of 2 healthy; {other} has not heard of it")
    );
    world.takes(&other, 'b');
    assert_eq!(world.line(), "2 Release running: canary bakes for another 60 s");
}

#[test]
fn alone_an_instance_that_was_excused_passes_once_it_is_healthy() {
    let mut world = World::new(halting(), &["i-0a"]);
    world.release('b').unwrap();
    world.settle();
    halt(&mut world);
    world.resume();
    assert!(world.line().contains("nobody is left in canary"), "{}", world.line());
    world.tell("i-0a", |told| (told.rejected, told.failure) = (false, None));
    world.takes("i-0a", 'b');
    world.settle();
    world.pass_s(60);
    assert_eq!(world.line(), "2 Release converged: its last gate has passed");
}

#[test]
fn what_failed_before_a_resume_counts_no_more_and_what_fails_after_it_does() {
    let mut world = begun(halting());
    let canary = world.first(0);
    halt(&mut world);
    world.resume();
    world.settle();
    let other = world.members(0).into_iter().find(|name| *name != canary).unwrap();
    world.fails(&other, "504");
    assert!(world.line().contains("halted: canary failed: 1 failed, 0 tolerated"));
}

#[test]
fn promote_skips_the_rest_of_the_bake_time_and_nothing_else() {
    let mut world = begun(policy(&[50]));
    let promoted = |world: &World| operations::promote(world.state(), &world.act());
    assert!(promoted(&world).is_err(), "what is not healthy yet is not waved through");
    let canary = world.first(0);
    world.takes(&canary, 'b');
    assert_eq!(world.line(), "2 Release running: canary bakes for another 60 s");
    world.operate(operations::promote);
    assert!(world.line().starts_with("2 Release running: 50 %"), "{}", world.line());
    assert!(promoted(&world).is_err(), "said twice, it is not kept for the next batch");
    let next = world.first(1);
    world.takes(&next, 'b');
    assert_eq!(world.line(), "2 Release running: 50 % bakes for another 30 s");
    let mut empty = World::new(policy(&[50]), &[]);
    empty.release('b').unwrap();
    empty.settle();
    assert!(promoted(&empty).is_err(), "no batch is open");
}

#[test]
fn a_gate_that_fails_takes_it_back_and_puts_the_revision_into_quarantine() {
    let mut world = begun(policy(&[50]));
    let canary = world.first(0);
    world.fails(&canary, "503");
    world.settle();
    let target = &world.rollout().target;
    assert_eq!((&target.revision, &target.not), (&Some(revision('a')), &None));
    assert_eq!((target.order.generation, &target.quarantine[..]), (3, &[revision('b')][..]));
    assert_eq!(world.rollout().kind, Kind::Rollback);
    assert!(is_quarantined(&world, 'b'));
    assert!(world.release('b').is_err());
}

#[test]
fn what_failed_before_the_swap_is_not_put_into_quarantine() {
    let mut world = begun(policy(&[50]));
    world.pass_s(900);
    assert!(world.line().starts_with("3 Rollback running"), "{}", world.line());
    assert!(!is_quarantined(&world, 'b'));
}

#[test]
fn abort_goes_back_and_judges_only_what_the_gate_found_to_be_bad() {
    let mut world = begun(policy(&[50]));
    world.operate(operations::abort);
    assert_eq!(world.rollout().target.revision, Some(revision('a')));
    assert!(!is_quarantined(&world, 'b'), "an operator's abort alone says nothing");

    let mut world = begun(halting());
    halt(&mut world);
    world.operate(operations::abort);
    assert!(is_quarantined(&world, 'b'));
    assert_eq!(world.run(), End::Rests);
    assert!(operations::abort(world.state(), &world.act()).is_err(), "none goes on");
}

#[test]
fn a_revision_that_is_put_into_quarantine_on_its_way_goes_no_further() {
    let mut world = begun(policy(&[50]));
    quarantine(&mut world, 'b');
    assert!(world.line().starts_with("3 Rollback running"), "{}", world.line());

    let mut world = begun(halting());
    quarantine(&mut world, 'b');
    let line = world.line();
    assert_eq!(line, "2 Release halted: the revision failed: it is in quarantine: 503");
    world.resume();
    assert_eq!(world.line(), line, "it has to be lifted first");
    world.operate(|state, _| operations::lift(state, &revision('b')));
    world.resume();
    assert!(world.line().starts_with("2 Release running"), "{}", world.line());
}

#[test]
fn the_fallback_is_fixed_when_the_target_is_written() {
    let mut world = three();
    converged(&mut world, 'b');
    converged(&mut world, 'c');
    assert_eq!(world.rollout().target.fallback, Some(revision('b')));
    world.release('d').unwrap();
    assert_eq!(world.rollout().target.fallback, Some(revision('c')));
    quarantine(&mut world, 'c');
    world.operate(operations::abort);
    assert_eq!(
        world.rollout().target.revision,
        Some(revision('b')),
        "unless it was put into quarantine since"
    );
}

#[test]
fn rollback_leads_away_from_what_runs_and_names_what_is_older() {
    let mut world = three();
    converged(&mut world, 'b');
    converged(&mut world, 'c');
    let mut back = world.clone();
    back.operate(|state, act| operations::rollback(state, None, act));
    let target = &back.rollout().target;
    assert_eq!(
        (&target.revision, &target.fallback),
        (&Some(revision('b')), &Some(revision('c'))),
        "what is left was good, and is what an abort leads back to"
    );
    assert_eq!(target.order.generation, 4);
    let again = |world: &World| {
        operations::rollback(world.state(), None, &world.act()).unwrap_err().message
    };
    assert!(again(&back).contains("is being rolled back to bbbbbbb already"), "{}", again(&back));
    let mut aborted = back.clone();
    aborted.operate(operations::abort);
    assert_eq!(aborted.rollout().target.revision, Some(revision('c')));
    let mut done = back.clone();
    assert_eq!(done.run(), End::Rests);
    assert!(again(&done).contains("was rolled back to bbbbbbb already"), "{}", again(&done));
    assert_eq!(operations::goes_back_to(world.state()), Some(revision('b')));
    assert_eq!(operations::goes_back_to(done.state()), None, "nor is it offered");
    done.operate(operations::restart);
    assert_eq!(done.run(), End::Rests);
    assert!(again(&done).contains("already"), "a restart in between changes nothing");
    done.release('d').unwrap();
    assert_eq!(done.run(), End::Rests);
    assert_eq!(operations::goes_back_to(done.state()), Some(revision('b')), "a release does");
    back.operate(|state, act| operations::rollback(state, Some(&revision('a')), act));
    assert_eq!(back.rollout().target.revision, Some(revision('a')), "also on the way");

    let rollback = |to| operations::rollback(world.state(), Some(&revision(to)), &world.act());
    assert!(rollback('c').unwrap_err().message.contains("is the target of web already"));
    assert!(rollback('d').unwrap_err().message.contains("no rollout of web to it has converged"));
    let alone = three();
    let error = operations::rollback(alone.state(), None, &alone.act()).unwrap_err();
    assert!(error.message.contains("no other group-proven revision"), "{}", error.message);
}

#[test]
fn a_rollback_is_one_batch_without_a_canary_and_a_bake_time() {
    let mut world = three();
    converged(&mut world, 'b');
    world.operate(|state, act| operations::rollback(state, None, act));
    world.settle();
    assert_eq!(world.batches(), [("rollback".to_owned(), THREE.map(str::to_owned).to_vec())]);
    for name in THREE {
        world.takes(name, 'a');
    }
    assert_eq!(world.line(), "4 Rollback converged: its last gate has passed".replace('4', "3"));
}

#[test]
fn whoever_joins_a_rollback_on_what_is_being_left_is_not_kept_waiting() {
    let mut world = three();
    converged(&mut world, 'b');
    world.operate(|state, act| operations::rollback(state, None, act));
    world.settle();
    world.join("i-0d", Some('b'));
    world.settle();
    assert_eq!(world.duty("i-0d"), towline_protocol::poll::Duty::Take);
    assert!(world.ask("i-0d").permit.is_some());
}

#[test]
fn what_was_aborted_says_how_many_had_served_it() {
    let mut world = begun(policy(&[100]));
    let canary = world.first(0);
    world.takes(&canary, 'b');
    world.batch_passes();
    let second = world.first(1);
    world.takes(&second, 'b');
    let ended = world.rollout().order().generation;
    world.operate(operations::abort);
    world.takes(&second, 'a');
    assert_eq!(world.past(ended).reached, Some(2), "also of a batch that had not passed");
}

#[test]
fn what_is_decided_compares_what_it_was_decided_on() {
    let mut world = begun(policy(&[50]));
    let abort = operations::abort(world.state(), &world.act()).unwrap();
    assert_eq!(World::compares(&abort), ["group/web", "target/web", "rollout/web"]);
    let pause = operations::pause(world.state(), &world.act()).unwrap();
    assert_eq!(World::compares(&pause), ["rollout/web"]);
    let canary = world.first(0);
    world.takes(&canary, 'b');
    let decision = crate::rollout::evaluate(world.state(), &world.attendance, world.now);
    let step = operations::carry_out(world.state(), &decision, &world.act()).unwrap();
    assert_eq!(World::compares(&step), ["target/web", "rollout/web"]);
    assert_eq!(world.run(), End::Rests);
    let release =
        operations::release(world.state(), &world.attendance, &World::request('c'), &world.act());
    assert_eq!(World::compares(&release.unwrap()), ["group/web", "target/web", "rollout/web"]);
    for name in THREE {
        world.leaves(name);
    }
    let removal = operations::remove_group(world.state()).unwrap().draft;
    let compares = World::compares(&removal);
    for at in ["group/web", "target/web", "rollout/web", "permits/web", "instance/web/i-0a"] {
        assert!(compares.contains(&at.to_owned()), "{at}: {compares:?}");
    }
}

#[test]
fn a_higher_epoch_is_taken_over_and_a_lower_one_is_not_and_generations_go_on() {
    let mut world = three();
    let order = |world: &World| (world.state().order().epoch, world.state().order().generation);
    let raised = |world: &World, epoch| operations::Act { epoch, ..world.act() };
    let release = |world: &mut World, name, epoch| {
        let act = raised(world, epoch);
        let draft =
            operations::release(world.state(), &world.attendance, &World::request(name), &act);
        assert!(world.commit(draft.unwrap()));
        world.run();
    };
    release(&mut world, 'b', EPOCH - 1);
    assert_eq!(order(&world), (EPOCH, 2));
    release(&mut world, 'c', EPOCH + 1);
    assert_eq!(order(&world), (EPOCH + 1, 3));
    release(&mut world, 'd', EPOCH + 1);
    assert_eq!(order(&world), (EPOCH + 1, 4));
}

#[test]
fn a_released_revision_that_is_group_proven_halts_and_is_not_put_into_quarantine() {
    let mut world = three();
    converged(&mut world, 'b');
    world.release('a').unwrap();
    world.settle();
    assert!(world.rollout().is_proven);
    let canary = world.first(0);
    world.fails(&canary, "503");
    assert!(world.line().starts_with("3 Release halted"), "{}", world.line());
    assert_eq!(world.rollout().culprit, None);
}

#[test]
fn a_release_that_everything_takes_is_proven_and_kept() {
    let mut world = three();
    world.agents.get_mut(&instance("i-0b")).unwrap().fate = Fate::Takes;
    converged(&mut world, 'b');
    let group = &world.state().record.as_ref().unwrap().value;
    assert_eq!(group.proven, [revision('a'), revision('b')]);
    assert_eq!(group.fallback(Some(&revision('b'))), Some(&revision('a')));
    assert!(world.agents.values().all(|agent| agent.report.health == Health::Healthy));
    assert!(world.has(&key::past(&world.state().group.clone(), 2)), "what has ended is kept");
}

#[test]
fn a_refusal_names_what_would_not_be_refused_as_well() {
    let mut world = begun(policy(&[50]));
    let restart =
        |world: &World| operations::restart(world.state(), &world.act()).unwrap_err().hint.unwrap();
    assert!(restart(&world).contains("towline rollout watch"));
    world.operate(operations::pause);
    let hint = restart(&world);
    assert!(hint.contains("rollout resume") && !hint.contains("watch"), "it does not end: {hint}");
    quarantine(&mut world, 'b');
    let to = revision('b');
    let error = operations::rollback(world.state(), Some(&to), &world.act()).unwrap_err();
    assert!(error.hint.unwrap().contains("quarantine lift"));
}
