//! What served before the agent came: an app that was started from outside of it.

use std::fs;

use serde_json::{Value, json};
use towline_tests::app::Kind;
use towline_tests::host::{Host, OLD};

use super::{World, amend};

/// An instance whose app was there before the agent, which runs now. `health`: how that app is probed.
fn adopting(health: &str) -> World {
    let mut world = World::new(Kind::Plain);
    let files = world.files();
    world.host.adopt(&files, health);
    world.host.run();
    let status = world.host.await_adopted();
    assert_eq!(status["newborn"], false, "what serves is no newborn: {status:#}");
    assert_eq!(status["proven"], false, "{status:#}");
    world
}

/// The names of everything below a directory, save what the app itself writes.
fn names(host: &Host) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(host.old_dir())
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The newest target fails here, and what was adopted serves again, anew.
fn is_restored(world: &mut World, bad: &str, old: u32) {
    let status = world.host.await_status("the failure to be told", |status| {
        status["phase"] == "idle" && status["failure"]["revision"] == bad
    });
    assert_eq!(status["rejected"], true, "{status:#}");
    world.host.await_adopted();
    assert_ne!(world.master(), old, "it was started anew");
    assert_eq!(world.journal()["swap"], Value::Null);
}

#[test]
fn a_good_revision_takes_over_from_it_and_a_bad_one_does_not() {
    let mut world = adopting("");
    let (old, laid) = (world.master(), names(&world.host));
    let bad = world.commit(&json!({"worker": "crash"}));
    world.host.target(&bad);
    is_restored(&mut world, &bad, old);
    assert_eq!(names(&world.host), laid, "nothing is written there");
    let good = world.commit_good();
    world.host.target(&good);
    let status = world.host.await_serving(&good);
    assert_eq!((&status["adopted"], &status["evidence"]), (&json!(false), &json!("served")));
    world.assert_one_app(&good);
    // From here on it is as ever.
    let next = world.commit_good();
    let master = world.master();
    world.host.target(&next);
    world.host.await_serving(&next);
    assert_eq!(world.master(), master, "reloaded");
    assert_eq!(names(&world.host), laid, "nothing is written there");
}

#[test]
fn its_own_health_check_tells_that_it_is_well() {
    let port = towline_tests::app::free_port();
    let mut world = World::new(Kind::Plain);
    world.host.port = port;
    world.host.lay_out();
    let files = world.files();
    world.host.adopt(&files, &format!("http = \"http://127.0.0.1:{port}/healthz\""));
    world.host.run();
    world.host.await_adopted();
    let (said, is_valid) = check(&world.host);
    assert!(is_valid, "{said}");
    // Without its pid file nothing is started beside it.
    let pid_file = world.host.old_dir().join("run/app.pid");
    let pid = fs::read(&pid_file).expect("it runs");
    world.host.terminate();
    fs::remove_file(&pid_file).expect("it is there");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    let status = world.host.await_status("the way to be barred", |status| {
        status["failure"]["cause"] == "host" && status["adopted"] == true
    });
    assert!(
        status["failure"]["detail"].as_str().unwrap().contains("names no manager"),
        "{status:#}"
    );
    assert_eq!(world.host.served().as_deref(), Some(OLD));
    fs::write(&pid_file, pid).expect("it is ours");
    world.host.await_serving(&good);
    world.assert_one_app(&good);
}

fn check(host: &Host) -> (String, bool) {
    let config = host.config_file();
    let (code, said, _) = Host::agent(&["check", "--config", config.to_str().expect("it is text")]);
    (said, code == 0)
}

#[test]
fn an_agent_killed_on_the_way_from_it_goes_on() {
    let mut world = adopting("");
    let good = world.commit_gated(|_| {});
    let starts = world.ran("start");
    world.hold(&good, "start", "activating");
    world.host.kill();
    assert!(world.host.processes("master.js").is_empty(), "it was left by a full restart");
    let journal = world.journal();
    assert_eq!(
        (&journal["swap"]["from"], &journal["swap"]["to"]),
        (&json!("adopted"), &json!(good))
    );
    world.host.run();
    world.await_run("start", starts + 2);
    world.open("start");
    world.host.await_serving(&good);
    world.assert_one_app(&good);
    assert_eq!(world.journal()["swap"], Value::Null);
}

#[test]
fn an_agent_killed_on_the_way_back_to_it_goes_on() {
    let mut world = World::new(Kind::Plain);
    let run = world.host.old_dir().join("run");
    let files = world.gated_in(&run);
    world.host.adopt(&files, "");
    world.host.run();
    world.host.await_adopted();
    let old = world.master();
    fs::write(run.join("hold.start"), "").expect("it is ours");
    let bad = world.commit(&json!({"worker": "crash"}));
    world.host.target(&bad);
    let mark = run.join("at.start");
    world.host.await_some("the old app's start", |_| mark.exists().then_some(()));
    world.host.kill();
    let swap = &world.journal()["swap"];
    assert!(swap["failed"].is_string() && swap["from"] == "adopted", "{swap}");
    assert_eq!(world.host.current(), None, "what failed is not named any more");
    fs::remove_file(run.join("hold.start")).expect("it is ours");
    world.host.run();
    let status = world.host.await_adopted();
    assert!(status["degraded"].as_str().unwrap().contains("was rejected"), "{status:#}");
    assert_ne!(world.master(), old);
}

#[test]
fn what_brings_it_back_is_no_release_that_runs() {
    let mut world = adopting("");
    let (master, old) = (world.master(), world.host.old_dir());
    // As a supervisor would that nobody has told; and nothing names the revision.
    let back = format!("start = [\"sh\", \"-c\", \"cd {} && exec ./bin/start\"]", old.display());
    let pid_file = format!("pid_file = {:?}", old.join("run/app.pid"));
    let wrong = world.commit_with(|files| {
        amend(files, "towline.toml", "start = [\"./bin/start\"]", &back);
        amend(files, "towline.toml", "pid_file = \"run/app.pid\"", &pid_file);
        amend(files, "towline.toml", "revision = { json = \"/revision\" }\n", "");
    });
    world.host.target(&wrong);
    is_restored(&mut world, &wrong, master);
    let log = world.host.log();
    assert!(log.contains("what was adopted runs again"), "{log}");
}

#[test]
fn after_a_reboot_it_is_started_where_the_target_fails() {
    let mut world = adopting("");
    world.host.terminate();
    world.host.kill_app();
    let bad = world.commit(&json!({"worker": "crash"}));
    world.host.target(&bad);
    world.host.run();
    world.host.await_status("the target to fail", |status| status["rejected"] == true);
    world.host.await_adopted();
}
