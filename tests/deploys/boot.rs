//! Boots: nothing of the app runs, and something has to serve.

use serde_json::json;
use towline_tests::app::Kind;
use towline_tests::origin::Fault;

use super::World;

/// An instance whose image holds an older release, and on which nothing runs.
fn image(more: &str) -> (World, String) {
    let mut world = World::with(Kind::Plain, "branch = \"main\"\n", more);
    let old = world.commit_good();
    world.host.target(&old);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    world.host.kill_app();
    assert_eq!(world.host.served(), None);
    (world, old)
}

#[test]
fn an_old_release_in_the_image_is_left_for_the_target() {
    let (mut world, _) = image("");
    let next = world.commit_good();
    world.host.target(&next);
    world.host.run();
    let status = world.host.await_serving(&next);
    assert_eq!(status["degraded"], serde_json::Value::Null);
}

#[test]
fn with_the_origin_down_it_comes_up_on_what_it_has_and_says_so() {
    // Long before the boot's deadline: what was proven here does not wait for an origin that says no.
    let (mut world, old) = image("");
    let next = world.commit_good();
    world.host.target(&next);
    world.origin.fail(Fault::Down);
    world.host.run();
    let status = world.host.await_serving(&old);
    let log = world.host.log();
    let before = log.split("\"activated\"").next().unwrap_or_default();
    assert_eq!(before.matches("prepare failed").count(), 3, "{log}");
    assert!(status["degraded"].as_str().unwrap().contains("could not be prepared"), "{status:#}");
    world.origin.fail(Fault::None);
    world.host.await_serving(&next);
}

#[test]
fn without_a_target_file_it_goes_by_the_last_target() {
    let (mut world, old) = image("");
    std::fs::remove_file(world.host.target_file()).unwrap();
    world.origin.fail(Fault::Down);
    world.host.run();
    let status = world.host.await_serving(&old);
    assert!(status["objection"].as_str().unwrap().contains("target.json"), "{status:#}");
}

#[test]
fn a_target_that_cannot_boot_gives_way_to_its_fallback() {
    let (mut world, old) = image("");
    let fallback = world.commit_good();
    let bad = world.commit(&json!({"worker": "crash"}));
    world.host.target_with(&bad, json!({"fallback": fallback}));
    world.host.run();
    let status = world.host.await_serving(&fallback);
    assert!(status["degraded"].as_str().unwrap().contains("failed once it was live"), "{status:#}");
    assert_ne!(fallback, old);
}

#[test]
fn an_agent_that_comes_back_to_a_running_app_touches_nothing() {
    let (mut world, good) = World::serving(Kind::Plain);
    let pids = world.host.processes("server.js");
    let packs = world.origin.packs();
    world.host.kill();
    world.host.run();
    world.host.await_serving(&good);
    assert_eq!(world.host.processes("server.js"), pids);
    assert_eq!(world.origin.packs(), packs);
    assert!(world.host.terminate().success());
    assert_eq!(world.host.served().as_ref(), Some(&good), "the app outlives the agent");
}
