//! What happens in the middle of a swap: a newer target, or the end of the agent.

use serde_json::{Value, json};
use towline_tests::app::Kind;
use towline_tests::origin::Fault;

use super::{World, amend, replace};

/// Commits the app with another behaviour, and with its recipe changed.
fn commit(world: &mut World, behaviour: &Value, from: &str, to: &str) -> String {
    world.commit_with(|files| {
        amend(files, "towline.toml", from, to);
        replace(files, "behaviour.json", &behaviour.to_string());
    })
}

fn await_phase(world: &mut World, revision: &str, phase: &str) {
    world.host.await_status(&format!("{phase} of {revision}"), |status| {
        let is_own = status["target"] == revision;
        assert!(!is_own || status["phase"] != "idle", "over before it was seen: {status:#}");
        is_own && status["phase"] == phase
    });
}

/// The messages that were logged of a revision, in order.
fn told(world: &World, revision: &str) -> Vec<String> {
    let log = world.host.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = lines.filter(|line| line["revision"] == revision);
    own.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_newer_target_during_the_window_waits_for_its_end_and_wins() {
    let (mut world, good) = World::serving(Kind::Plain);
    let long = ("healthy_for_s = 0.6", "healthy_for_s = 1.5");
    for is_back in [false, true] {
        let slow = commit(&mut world, &json!({}), long.0, long.1);
        world.host.target(&slow);
        await_phase(&mut world, &slow, "probing");
        let newer = if is_back { good.clone() } else { world.commit_good() };
        world.host.target(&newer);
        let status = world.host.await_serving(&newer);
        assert_eq!(status["failure"], Value::Null, "{status:#}");
        assert_eq!(status["degraded"], Value::Null, "{status:#}");
        assert_eq!(world.host.served(), Some(newer));
        let slow = told(&world, &slow);
        assert!(slow.contains(&"healthy through its window".to_owned()), "{slow:?}");
    }
}

#[test]
fn a_newer_target_during_the_proof_waits_for_its_end_and_wins() {
    let mut world = World::new(Kind::Plain);
    // Its manager ignores the signal, so that the proof takes the whole time that it has.
    let stubborn = world.commit(&json!({"on_hangup": "ignore"}));
    world.host.target(&stubborn);
    world.host.run();
    world.host.await_serving(&stubborn);
    let next = commit(&mut world, &json!({}), "\ntimeout_s = 8", "\ntimeout_s = 2");
    world.host.target(&next);
    await_phase(&mut world, &next, "proving");
    let newer = world.commit_good();
    world.host.target(&newer);
    let status = world.host.await_serving(&newer);
    assert_eq!(status["failure"], Value::Null, "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&newer));
    let next = told(&world, &next);
    assert!(next.contains(&"healthy through its window".to_owned()), "{next:?}");
}

#[test]
fn a_newer_target_while_a_bad_one_is_probed_wins_after_the_restore() {
    let (mut world, good) = World::serving(Kind::Plain);
    // Three failures in a row, half a second apart, count as unhealthy.
    let bad = commit(&mut world, &json!({"worker": "unhealthy"}), "every_s = 0.2", "every_s = 0.5");
    world.host.target(&bad);
    await_phase(&mut world, &bad, "probing");
    let newer = world.commit_good();
    world.host.target(&newer);
    let status = world.host.await_serving(&newer);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&newer));
    assert!(told(&world, &bad).contains(&"unhealthy".to_owned()));
    let activated = told(&world, &good).iter().filter(|message| *message == "activated").count();
    assert_eq!(activated, 2, "the old one was restored first");
}

#[test]
fn an_agent_killed_in_the_middle_of_a_restore_restores() {
    let mut world = World::new(Kind::Plain);
    // Probed slowly, so that a restore can be seen.
    let good = commit(&mut world, &json!({}), "every_s = 0.2", "every_s = 0.8");
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let bad = world.commit(&json!({"worker": "unhealthy"}));
    world.host.target(&bad);
    // Oftener than a swap is taken up again: there is nothing but the restore to fall back to.
    for round in 0..5 {
        await_phase(&mut world, &bad, "restoring");
        world.host.kill();
        // What is restored is on disk.
        world.origin.fail(Fault::Down);
        assert!(world.host.processes("towline-agent").is_empty(), "round {round}");
        world.host.run();
    }
    let status = world.host.await_serving(&good);
    assert!(status["degraded"].as_str().unwrap().contains("was rejected"), "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&good));
    assert_eq!(world.host.current().as_ref(), Some(&good));
    let activated = told(&world, &bad).iter().filter(|message| *message == "activated").count();
    assert_eq!(activated, 1, "what was rejected is not activated again");

    world.origin.fail(Fault::None);
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
}

/// The app, started without anybody who would bring its manager back.
pub(super) fn alone(files: &mut Vec<(String, Vec<u8>, bool)>) {
    let start = files.iter().find(|(path, _, _)| path == "bin/start").expect("it can be started");
    let text = String::from_utf8_lossy(&start.1).replace("supervisor.js", "master.js");
    replace(files, "bin/start", &text);
}

#[test]
fn a_manager_that_dies_of_the_signal_with_nobody_to_bring_it_back_is_started() {
    let mut world = World::new(Kind::Plain);
    let fragile = world.commit_with(|files| {
        alone(files);
        replace(files, "behaviour.json", "{\"on_hangup\": \"die\"}");
    });
    world.host.target(&fragile);
    world.host.run();
    world.host.await_serving(&fragile);
    assert_eq!(world.host.processes("supervisor.js"), Vec::<u32>::new());

    // To one that fails, so that the restore finds nothing that runs either.
    let bad = world.commit_with(|files| {
        alone(files);
        replace(files, "behaviour.json", "{\"worker\": \"unhealthy\", \"on_hangup\": \"die\"}");
    });
    world.host.target(&bad);
    let status = world.host.await_status("the failure to be told", |status| {
        status["phase"] == "idle" && status["failure"]["revision"] == bad.as_str()
    });
    assert_eq!(status["failure"]["cause"], "unhealthy", "it was started: {status:#}");
    assert_eq!(status["serving"], fragile.as_str(), "{status:#}");
    assert_eq!(status["health"], "healthy", "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&fragile));
    assert_eq!(world.host.processes("master.js").len(), 1, "one app");
}
