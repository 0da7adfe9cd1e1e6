//! What serves goes on serving: apps that end, that get well late, and hosts that are in the way.

use std::fs;

use serde_json::{Value, json};
use towline_tests::app::Kind;
use towline_tests::origin::Fault;

use super::gates::check;
use super::midway::alone;
use super::{World, amend};

/// Serves a good revision whose manager nobody but the agent would bring back.
fn serving_alone() -> (World, String) {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_with(alone);
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    (world, good)
}

#[test]
fn an_app_that_has_ended_is_started_again_by_itself() {
    let (mut world, good) = serving_alone();
    let generation = world.host.generation();
    world.host.kill_app();
    assert_eq!(world.host.served(), None);
    world.host.await_some("the app to be back", |host| host.served());
    let status = world.host.await_serving(&good);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
    assert_eq!(status["order"]["generation"], generation, "nobody had to ask for it");
    assert_eq!(world.host.processes("master.js").len(), 1);
    assert!(world.host.log().contains("nothing of the app runs"), "{}", world.host.log());
}

#[test]
fn an_app_that_ends_while_the_origin_is_down_is_started_again_too() {
    let (mut world, good) = serving_alone();
    let next = world.commit_with(alone);
    world.origin.fail(Fault::Down);
    world.host.target(&next);
    world.host.await_status("an attempt", |status| status["failure"]["cause"] == "fetch");
    world.host.kill_app();
    world.host.await_some("the app to be back", |host| host.served());
    let status = world.host.await_serving(&good);
    assert!(status["degraded"].as_str().unwrap().contains("could not be prepared"), "{status:#}");
    world.origin.fail(Fault::None);
    world.host.await_serving(&next);
}

#[test]
fn an_app_that_ends_while_a_target_is_fetched_is_not_kept_waiting() {
    let (mut world, good) = serving_alone();
    let next = world.commit_with(alone);
    // Given up after 30 s; nothing fails before that.
    world.origin.fail(Fault::Stall);
    world.host.target(&next);
    world.host.await_status("the fetch", |status| {
        status["target"] == next.as_str() && status["phase"] == "preparing"
    });
    world.host.kill_app();
    let back = world.host.await_some("the app to be back", |host| host.served());
    assert_eq!(back, good);
    assert!(!world.host.log().contains("prepare failed"), "{}", world.host.log());
    world.origin.fail(Fault::None);
    world.host.await_serving(&next);
}

#[test]
fn an_app_whose_pid_file_is_gone_is_not_started_beside_itself() {
    let (mut world, good) = serving_alone();
    let app = world.host.processes("master.js");
    world.host.kill();
    fs::remove_file(world.host.dir().join("shared/run/app.pid")).unwrap();
    world.host.run();
    let status = world.host.await_serving(&good);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
    assert_eq!(world.host.processes("master.js"), app);
    assert!(world.host.log().contains("the app answers, and its manager is not found"));
}

/// A check that somebody else answers: well is where the file `run/well` is.
const WELL: &str = "command = [\"test\", \"-e\", \"run/well\"]";

#[test]
fn an_app_that_gets_well_late_is_accepted_without_a_new_target() {
    let mut world = World::new(Kind::Plain);
    let first = world.commit_with(|files| check(files, WELL));
    let well = world.host.dir().join("shared/run/well");
    world.host.target(&first);
    world.host.run();
    let status = world.host.await_status("the failure", |status| {
        status["degraded"].as_str().is_some_and(|said| said.contains("nothing could be started"))
    });
    assert_eq!(status["serving"], Value::Null, "{status:#}");
    assert_eq!(status["failure"]["cause"], "unhealthy", "{status:#}");
    fs::write(&well, "").unwrap();
    let status = world.host.await_serving(&first);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");

    // Once it was proven, a boot that fails says nothing against it.
    world.host.kill();
    world.host.kill_app();
    fs::remove_file(&well).unwrap();
    world.host.run();
    world.host.await_status("the failure of a boot", |status| {
        status["degraded"].as_str().is_some_and(|said| said.contains("nothing could be started"))
    });
    fs::write(&well, "").unwrap();
    let status = world.host.await_serving(&first);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
}

#[test]
fn a_fallback_is_made_ready_before_it_is_needed() {
    let (mut world, _) = World::serving(Kind::Plain);
    let fallback = world.commit_good();
    let next = world.commit_good();
    world.host.target_with(&next, json!({"fallback": fallback}));
    world.host.await_serving(&next);
    let marker = world.host.dir().join(format!("releases/{fallback}.json"));
    world.host.await_some("the fallback's release", |_| marker.exists().then_some(()));
    assert_eq!(world.host.served().as_ref(), Some(&next), "nothing live was touched");
}

#[test]
fn a_host_that_is_in_the_way_rejects_nothing_and_moves_nothing() {
    let (mut world, good) = World::serving(Kind::Plain);
    let pid_file = world.host.dir().join("shared/run/app.pid");
    let aside = pid_file.with_extension("aside");
    fs::rename(&pid_file, &aside).unwrap();
    fs::create_dir(&pid_file).unwrap();
    let next = world.commit_good();
    world.host.target(&next);
    let status = world
        .host
        .await_status("two attempts", |status| status["failure"]["attempt"].as_u64() >= Some(2));
    assert_eq!(status["failure"]["cause"], "host", "{status:#}");
    assert_eq!((&status["serving"], &status["health"]), (&good.as_str().into(), &"healthy".into()));
    assert_eq!(world.host.current().as_ref(), Some(&good));
    assert_eq!(world.host.served().as_ref(), Some(&good));
    // An agent that starts anew does not take it for a boot.
    world.host.kill();
    world.host.run();
    world.host.await_status("its word", |status| status["failure"]["cause"] == "host");
    assert_eq!(world.host.current().as_ref(), Some(&good));
    fs::remove_dir(&pid_file).unwrap();
    fs::rename(&aside, &pid_file).unwrap();
    let status = world.host.await_serving(&next);
    assert_eq!(status["degraded"], Value::Null, "{status:#}");
}

#[test]
fn a_current_that_is_no_link_stops_the_swap_and_is_left_alone() {
    let (mut world, good) = World::serving(Kind::Plain);
    let current = world.host.dir().join("current");
    let link = fs::read_link(&current).unwrap();
    fs::remove_file(&current).unwrap();
    fs::create_dir(&current).unwrap();
    let next = world.commit_with(|files| amend(files, "towline.toml", "passes = 2", "passes = 1"));
    world.host.target(&next);
    let status =
        world.host.await_status("the reason", |status| status["failure"]["cause"] == "host");
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("a directory") && detail.contains("away once"), "{detail}");
    fs::remove_dir(&current).unwrap();
    std::os::unix::fs::symlink(link, &current).unwrap();
    world.host.await_serving(&next);
    assert_ne!(good, next);
}

#[test]
fn a_deploy_onto_an_app_whose_pid_file_is_gone_waits_and_rejects_nothing() {
    let (mut world, good) = serving_alone();
    let app = world.host.processes("master.js");
    let pid_file = world.host.dir().join("shared/run/app.pid");
    let pid = fs::read(&pid_file).unwrap();
    fs::remove_file(&pid_file).unwrap();
    let next = world.commit_with(alone);
    world.host.target(&next);
    let status =
        world.host.await_status("the reason", |status| status["failure"]["cause"] == "host");
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("names no manager of it (put the pid back"), "{detail}");
    assert_eq!((&status["serving"], &status["health"]), (&good.as_str().into(), &"healthy".into()));
    assert_eq!(world.host.processes("master.js"), app, "no other one was started");
    assert_eq!(world.host.current().as_ref(), Some(&good));
    fs::write(&pid_file, pid).unwrap();
    world.host.await_serving(&next);
}
