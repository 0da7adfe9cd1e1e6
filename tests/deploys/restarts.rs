//! When a release, or a target's counter, restarts the app instead of reloading it, and when nothing
//! is run at all.

use std::fs;

use serde_json::{Value, json};
use towline_tests::app::Kind;

use super::World;
use super::gates::{BY_STATUS, COMMAND_CHECK, Files, RESTARTS, check, lock, set, unhealthy};

/// Deploys a revision; returns what was done to the manager, and whether it is another process.
fn deploy(world: &mut World, revision: &str) -> (Vec<String>, bool) {
    let before = world.master();
    world.host.target(revision);
    let status = world.host.await_serving(revision);
    assert_eq!(status["failure"], Value::Null, "{status:#}");
    world.assert_one_app(revision);
    (world.done(revision), world.master() != before)
}

fn reloaded() -> (Vec<String>, bool) {
    (vec!["reloaded".to_owned()], false)
}

fn restarted(reason: &str) -> (Vec<String>, bool) {
    (vec![format!("restart: {reason}")], true)
}

#[test]
fn other_dependencies_restart_the_app_and_code_alone_reloads_it() {
    let (mut world, _) = World::gated(|files| set(files, RESTARTS));
    let code = world.commit_gated(|files| set(files, RESTARTS));
    assert_eq!(deploy(&mut world, &code), reloaded());
    let other = world.commit_gated(|files| {
        set(files, RESTARTS);
        lock(files, "2");
    });
    assert_eq!(deploy(&mut world, &other), restarted("other dependencies"));

    // Back to what was installed before: as different as on the way there.
    let bad = world.commit_gated(|files| {
        set(files, RESTARTS);
        unhealthy(files);
    });
    world.host.target(&bad);
    world.await_restored(&other, &bad);
    assert_eq!(world.done(&bad), ["restart: other dependencies"]);
    assert_eq!(world.done(&other), ["restart: other dependencies"; 2]);
    assert_eq!(world.ran("install"), 2, "once for each lock");

    let never = world.commit_gated(|files| lock(files, "3"));
    assert_eq!(deploy(&mut world, &never), reloaded(), "its recipe asks for none");
}

#[test]
fn another_runtime_restarts_the_app_where_the_recipe_says_so() {
    let mut world = World::new(Kind::Plain);
    let runtime = world.run_dir().join("runtime");
    let by_runtime = |files: &mut Files, text: &str| {
        set(files, ("restart_when = []", "restart_when = [\"runtime\"]"));
        let command = format!("outputs = [\"made\"]\nruntime = [\"cat\", {runtime:?}]");
        set(files, ("outputs = [\"made\"]", &command));
        lock(files, text);
    };
    fs::write(&runtime, "v1\n").unwrap();
    let first = world.commit_gated(|files| by_runtime(files, "1"));
    world.host.target(&first);
    world.host.run();
    world.host.await_serving(&first);

    // Its dependencies differ, and that is not what this recipe asks about.
    let second = world.commit_gated(|files| by_runtime(files, "2"));
    assert_eq!(deploy(&mut world, &second), reloaded());
    fs::write(&runtime, "v2\n").unwrap();
    let third = world.commit_gated(|files| by_runtime(files, "2"));
    assert_eq!(deploy(&mut world, &third), restarted("another runtime"));
    assert_eq!(world.ran("install"), 3, "the runtime's output is part of the key");
}

/// Waits until the newest target has been taken in and nothing is under way.
fn await_rest(world: &mut World) -> Value {
    let generation = world.host.generation();
    world.host.await_status("the newest generation to be at rest", |status| {
        status["order"]["generation"] == generation
            && status["phase"] == "idle"
            && status["health"] == "healthy"
    })
}

#[test]
fn the_restart_counter_restarts_the_same_revision_once_for_each_count() {
    let (mut world, good) = World::gated(|_| {});
    let mut master = world.master();
    for (count, is_restart) in [(1, true), (1, false), (3, true), (2, false), (3, false)] {
        world.host.target_with(&good, json!({"restart": count}));
        let status = await_rest(&mut world);
        assert_eq!(status["failure"], Value::Null, "{status:#}");
        world.assert_one_app(&good);
        assert_eq!(world.master() != master, is_restart, "restart = {count}");
        master = world.master();
    }
    assert_eq!(world.masters(), 3);
    assert_eq!(world.done(&good), ["started", "restart", "restart"]);

    // Neither does an agent that comes back to it.
    assert!(world.host.terminate().success());
    world.host.run();
    await_rest(&mut world);
    assert_eq!(world.master(), master);
    // With a release, one restart does for both.
    let next = world.commit_gated(|_| {});
    world.host.target_with(&next, json!({"restart": 4}));
    await_rest(&mut world);
    world.assert_one_app(&next);
    assert_eq!((world.done(&next), world.masters()), (vec!["restart".to_owned()], 4));
}

#[test]
fn an_agent_killed_in_the_middle_of_a_restart_carries_it_out_once() {
    let (mut world, good) = World::gated(|files| set(files, BY_STATUS));
    for (count, gate) in [(1, "status"), (2, "stop"), (3, "start")] {
        let masters = world.masters();
        world.close(gate);
        world.host.target_with(&good, json!({"restart": count}));
        world.await_at(gate);
        world.host.kill();
        let journal = world.journal();
        let is_under_way =
            (&journal["swap"]["to"], &journal["swap"]["restart"], &journal["restart"]);
        assert_eq!(is_under_way, (&json!(good), &json!(count), &json!(count - 1)), "{gate}");
        let starts = world.ran("start");
        world.host.run();
        if gate == "start" {
            // The agent starts what it does not find, and the app sees to it that it is one.
            world.await_run("start", starts + 1);
        }
        world.open(gate);
        let status = await_rest(&mut world);
        assert_eq!(status["failure"], Value::Null, "{status:#}");
        world.assert_one_app(&good);
        assert_eq!(world.masters(), masters + 1, "{gate}: started once");
        assert_eq!(world.journal()["restart"], count);
        // It is not owed any longer.
        let master = world.master();
        world.host.kill();
        world.host.run();
        await_rest(&mut world);
        assert_eq!(world.master(), master, "{gate}");
    }
}

/// What the kernel counts of the children that a process has waited for: their page faults. A
/// process that ends without any does not exist.
fn faults_of_children(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the name stands in parentheses");
    // `cminflt` in proc(5), counted from the state.
    fields.split(' ').nth(8).and_then(|field| field.parse().ok()).expect("a number")
}

#[test]
fn a_new_generation_of_the_same_revision_runs_nothing() {
    let mut world = World::new(Kind::Plain);
    let run = world.run_dir();
    let everything = |files: &mut Files| {
        set(files, RESTARTS);
        set(files, BY_STATUS);
        check(files, COMMAND_CHECK);
        let runtime = format!("echo runtime >>{}/ran", run.display());
        let command = format!("outputs = [\"made\"]\nruntime = [\"sh\", \"-c\", {runtime:?}]");
        set(files, ("outputs = [\"made\"]", &command));
    };
    let good = world.commit_gated(everything);
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    for name in ["runtime", "install", "status", "start", "health"] {
        assert!(world.ran(name) > 0, "{name} leaves its name");
    }
    let ran = world.lines("ran");
    let agent = world.host.agent_pid();
    let faults = faults_of_children(agent);
    assert!(faults > 0, "children are counted");
    let requests = world.origin.requests();
    for _ in 0..10 {
        world.host.target(&good);
        let status = await_rest(&mut world);
        assert_eq!(status["serving"], good.as_str());
    }
    assert_eq!(world.lines("ran"), ran);
    assert_eq!(faults_of_children(agent), faults, "nothing was run at all");
    assert_eq!(world.origin.requests(), requests, "nobody was asked");
    world.assert_one_app(&good);
}
