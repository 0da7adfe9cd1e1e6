//! The agent is asked to end in the middle of something: it does so soon, leaves the app alone, and
//! the next one takes up what it left.

use std::time::Duration;

use serde_json::{Value, json};
use towline_tests::app::Kind;

use super::gates::{COMMAND_CHECK, Files, check, lock, set};
use super::{World, replace};

/// Much shorter than whatever the agent could be waiting for here: a grace of 5 s is the shortest.
const SOON: Duration = Duration::from_secs(3);

/// Asks the agent to end, which it is to do soon.
fn ends_soon(world: &mut World) {
    world.host.ask_to_end();
    assert!(world.host.await_end(SOON).success());
}

/// Starts the agent again, which is to take up the deploy.
fn is_taken_up(world: &mut World, next: &str) {
    world.host.run();
    let status = world.host.await_serving(next);
    assert_eq!(status["failure"], Value::Null, "{status:#}");
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
    world.assert_one_app(next);
}

#[test]
fn in_the_middle_of_an_install() {
    let (mut world, good) = World::gated(|_| {});
    let workers = world.host.processes("server.js");
    let next = world.commit_gated(|files| lock(files, "2"));
    world.hold(&next, "install", "preparing");
    ends_soon(&mut world);
    assert_eq!(world.host.processes("hold.install"), Vec::<u32>::new(), "it ends first");
    assert_eq!(world.host.processes("server.js"), workers, "the app goes on");
    world.assert_one_app(&good);
    assert_eq!(world.journal()["swap"], Value::Null);
    world.open("install");
    is_taken_up(&mut world, &next);
}

#[test]
fn in_the_middle_of_the_proof() {
    let (mut world, _) = World::gated(|_| {});
    let master = world.master();
    let next = world.commit_gated(|_| {});
    world.hold(&next, "worker", "proving");
    ends_soon(&mut world);
    assert_eq!(world.master(), master, "the app goes on");
    assert_eq!(world.journal()["swap"]["to"], next.as_str());
    world.open("worker");
    is_taken_up(&mut world, &next);
    assert_eq!((world.master(), world.masters()), (master, 1));
}

#[test]
fn in_the_middle_of_the_health_window() {
    let slowly = |files: &mut Files| set(files, ("healthy_for_s = 0.6", "healthy_for_s = 2"));
    let (mut world, _) = World::gated(|_| {});
    let master = world.master();
    let next = world.commit_gated(slowly);
    world.host.target(&next);
    world.await_phase(&next, "probing");
    ends_soon(&mut world);
    assert_eq!(world.journal()["swap"]["to"], next.as_str(), "it was not over");
    assert_eq!(world.journal()["swap"]["failed"], Value::Null, "and has not failed");
    let log = world.host.log();
    assert_eq!(log.matches("healthy through its window").count(), 1, "{log}");
    world.assert_one_app(&next);
    is_taken_up(&mut world, &next);
    assert_eq!((world.master(), world.masters()), (master, 1));
}

#[test]
fn in_the_middle_of_a_probe_that_is_a_command() {
    let by_command = |files: &mut Files| check(files, COMMAND_CHECK);
    let (mut world, _) = World::gated(by_command);
    let master = world.master();
    let next = world.commit_gated(by_command);
    world.hold(&next, "health", "probing");
    ends_soon(&mut world);
    assert_eq!(world.host.processes("bin/health"), Vec::<u32>::new(), "it ends first");
    world.assert_one_app(&next);
    world.open("health");
    is_taken_up(&mut world, &next);
    assert_eq!((world.master(), world.masters()), (master, 1));
}

/// A manager that was told to end is waited for: nothing else brings the app back.
#[test]
fn while_the_manager_stops() {
    let (mut world, good) = World::gated(|_| {});
    let master = world.master();
    world.close("stop");
    world.host.target_with(&good, json!({"restart": 1}));
    world.await_at("stop");
    world.host.ask_to_end();
    world.open("stop");
    assert!(world.host.await_end(SOON).success());
    assert_eq!(world.journal()["swap"]["restart"], 1, "still owed");
    is_taken_up(&mut world, &good);
    assert_ne!(world.master(), master);
    assert_eq!(world.journal()["restart"], 1);
}

/// An app that stays in the foreground of its start command, and so in the session that the agent
/// made for it.
fn in_foreground(files: &mut Files) {
    replace(
        files,
        "bin/start",
        "#!/bin/sh\nexec node \"$(pwd -P)/master.js\" >>run/app.log 2>&1\n",
    );
}

#[test]
fn in_the_middle_of_a_start() {
    let mut world = World::new(Kind::Plain);
    let first = world.commit_gated(in_foreground);
    world.close("pid");
    world.host.target(&first);
    world.host.run();
    world.await_at("pid");
    world.await_phase(&first, "activating");
    let master = world.master();
    ends_soon(&mut world);
    assert_eq!(world.master(), master, "the app goes on");
    world.open("pid");
    let pid_file = world.run_dir().join("app.pid");
    world.host.await_some("the pid file", |_| pid_file.exists().then_some(()));
    is_taken_up(&mut world, &first);
    assert_eq!((world.master(), world.masters()), (master, 1), "it was started once");
}

#[test]
fn in_the_middle_of_the_start_that_ends_a_restart() {
    let (mut world, good) = World::gated(in_foreground);
    let master = world.master();
    world.close("pid");
    world.host.target_with(&good, json!({"restart": 1}));
    world.await_at("pid");
    let next = world.master();
    assert_ne!(next, master);
    ends_soon(&mut world);
    assert_eq!(world.master(), next, "the app goes on");
    world.open("pid");
    let pid_file = world.run_dir().join("app.pid");
    world.host.await_some("the pid file", |_| pid_file.exists().then_some(()));
    is_taken_up(&mut world, &good);
}
