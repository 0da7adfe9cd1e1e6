//! The agent is killed in each phase of a deploy, and started again.
//!
//! Each test holds the agent where it is meant to be, and shows by status and journal that it died
//! there. Afterwards the deploy is taken up, and one app runs.
//!
//! Not here: asking and journalling. A file gives leave at once, and the journal is one write, so the
//! agent cannot be held in either; the simulation kills it there.

use serde_json::Value;
use towline_tests::app::Kind;
use towline_tests::origin::Fault;

use super::World;
use super::gates::{
    BY_COMMAND, BY_STATUS, COMMAND_CHECK, Files, RESTARTS, check, lock, set, unhealthy,
};

/// Kills the agent in this phase; `current` is where it is then.
fn kill_in(world: &mut World, phase: &str, target: &str, current: &str) {
    world.host.kill();
    let status = world.host.status()["status"].take();
    assert_eq!(
        (&status["phase"], &status["target"]),
        (&phase.into(), &target.into()),
        "{status:#}"
    );
    assert_eq!(world.host.current().as_deref(), Some(current));
    let swap = &world.journal()["swap"];
    if phase == "preparing" {
        assert_eq!(*swap, Value::Null, "nothing live was touched");
    } else {
        assert_eq!(swap["to"], target, "the swap has begun");
        assert_eq!(swap["failed"].is_string(), phase == "restoring", "{swap}");
        assert_eq!(swap["resumes"], 0, "{swap}");
    }
}

/// Starts the agent again, which is to take up the deploy.
fn is_taken_up(world: &mut World, next: &str) {
    let activations = world.done(next).len();
    world.host.run();
    is_done(world, next, activations + 1);
}

/// Like [`is_taken_up`], where the app is held before its pid is known, and the agent therefore
/// starts it anew. Whether two starts make two apps is for the app: this one has a lock.
fn is_started_again(world: &mut World, next: &str, gate: &str) {
    let (activations, starts) = (world.done(next).len(), world.ran("start"));
    world.host.run();
    world.await_run("start", starts + 1);
    world.open(gate);
    is_done(world, next, activations + 1);
}

fn is_done(world: &mut World, next: &str, activations: usize) {
    let status = world.host.await_serving(next);
    assert_eq!(status["failure"], Value::Null, "{status:#}");
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
    assert_eq!(world.done(next).len(), activations, "it was activated once more");
    assert!(!world.host.log().contains("\"unhealthy\""), "at once: {}", world.host.log());
    assert!(world.journal()["proven"].as_array().is_some_and(|all| all.contains(&next.into())));
    assert_eq!(world.journal()["swap"], Value::Null);
    world.assert_one_app(next);
}

#[test]
fn in_the_middle_of_a_fetch() {
    let (mut world, good) = World::gated(|_| {});
    let master = world.master();
    let next = world.commit_gated(|_| {});
    world.origin.fail(Fault::Stall);
    let packs = world.origin.packs();
    world.host.target(&next);
    let origin = &world.origin;
    world.host.await_some("a pack", |_| (origin.packs() > packs).then_some(()));
    world.await_phase(&next, "preparing");
    kill_in(&mut world, "preparing", &next, &good);
    assert!(!world.host.dir().join("releases").join(&next).exists());
    world.assert_one_app(&good);
    world.origin.fail(Fault::None);
    is_taken_up(&mut world, &next);
    assert_eq!(world.master(), master);
}

#[test]
fn in_the_middle_of_an_install() {
    let (mut world, good) = World::gated(|_| {});
    let master = world.master();
    let next = world.commit_gated(|files| lock(files, "2"));
    world.hold(&next, "install", "preparing");
    kill_in(&mut world, "preparing", &next, &good);
    assert!(!world.host.dir().join("releases").join(&next).exists());
    world.assert_one_app(&good);
    world.host.await_some("the install to die with it", |host| {
        host.processes("hold.install").is_empty().then_some(())
    });
    world.open("install");
    is_taken_up(&mut world, &next);
    assert_eq!(world.ran("install"), 2, "the one that was killed had done nothing");
    assert_eq!(world.master(), master);
}

#[test]
fn while_it_looks_for_the_manager() {
    let by_status = |files: &mut Files| set(files, BY_STATUS);
    let (mut world, good) = World::gated(by_status);
    let master = world.master();
    let next = world.commit_gated(by_status);
    world.hold(&next, "status", "activating");
    // It looks before it swaps.
    kill_in(&mut world, "activating", &next, &good);
    world.open("status");
    is_taken_up(&mut world, &next);
    assert_eq!(world.master(), master);
}

#[test]
fn in_the_middle_of_a_reload() {
    let by_command = |files: &mut Files| set(files, BY_COMMAND);
    let (mut world, _) = World::gated(by_command);
    let master = world.master();
    let next = world.commit_gated(by_command);
    world.hold(&next, "reload", "activating");
    kill_in(&mut world, "activating", &next, &next);
    world.open("reload");
    is_taken_up(&mut world, &next);
    assert_eq!(world.master(), master);
}

/// Kills the agent at a gate of a restart.
fn in_a_restart(gate: &str, take_up: impl FnOnce(&mut World, &str)) {
    let (mut world, _) = World::gated(|files| set(files, RESTARTS));
    let master = world.master();
    let next = world.commit_gated(|files| {
        set(files, RESTARTS);
        lock(files, "2");
    });
    world.hold(&next, gate, "activating");
    kill_in(&mut world, "activating", &next, &next);
    take_up(&mut world, &next);
    assert_ne!(world.master(), master);
    assert_eq!(world.masters(), 2, "started once");
}

#[test]
fn while_the_manager_stops() {
    in_a_restart("stop", |world, next| {
        world.open("stop");
        is_taken_up(world, next);
    });
}

#[test]
fn while_the_manager_starts() {
    in_a_restart("start", |world, next| is_started_again(world, next, "start"));
}

#[test]
fn before_the_manager_can_be_found() {
    in_a_restart("pid", |world, next| is_started_again(world, next, "pid"));
}

#[test]
fn in_the_middle_of_the_proof() {
    let (mut world, _) = World::gated(|_| {});
    let master = world.master();
    let next = world.commit_gated(|_| {});
    world.hold(&next, "worker", "proving");
    kill_in(&mut world, "proving", &next, &next);
    world.open("worker");
    is_taken_up(&mut world, &next);
    assert_eq!(world.master(), master);
}

#[test]
fn in_the_middle_of_a_probe() {
    let by_command = |files: &mut Files| check(files, COMMAND_CHECK);
    let (mut world, _) = World::gated(by_command);
    let master = world.master();
    let next = world.commit_gated(by_command);
    world.hold(&next, "health", "probing");
    kill_in(&mut world, "probing", &next, &next);
    world.open("health");
    is_taken_up(&mut world, &next);
    assert_eq!(world.master(), master);
}

#[test]
fn in_the_middle_of_a_restore() {
    let (mut world, good) = World::gated(|_| {});
    let bad = world.commit_gated(|files| {
        check(files, COMMAND_CHECK);
        unhealthy(files);
    });
    world.hold(&bad, "health", "probing");
    // The workers of the bad one listen; those of the good one are to be held.
    world.close("worker");
    world.open("health");
    world.await_at("worker");
    world.await_phase(&bad, "restoring");
    kill_in(&mut world, "restoring", &bad, &good);
    // What is restored is on disk.
    world.origin.fail(Fault::Down);
    world.open("worker");
    world.host.run();
    let status = world.host.await_serving(&good);
    assert!(status["degraded"].as_str().unwrap().contains("was rejected"), "{status:#}");
    world.assert_one_app(&good);
    assert_eq!(world.done(&good).len(), 3, "started, restored, and restored once more");
    assert_eq!(world.done(&bad).len(), 1, "what was rejected is not activated again");
    assert_eq!(world.journal()["swap"], Value::Null);
}

#[test]
fn in_the_middle_of_a_first_start() {
    let mut world = World::new(Kind::Plain);
    let first = world.commit_gated(|_| {});
    world.close("pid");
    world.host.target(&first);
    world.host.run();
    world.await_at("pid");
    world.await_phase(&first, "activating");
    kill_in(&mut world, "activating", &first, &first);
    is_started_again(&mut world, &first, "pid");
    assert_eq!(world.masters(), 1, "started once");
}
