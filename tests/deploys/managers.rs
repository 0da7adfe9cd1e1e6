//! Managers that are found, told and probed in every way that a recipe offers, and a change from one
//! to another.

use serde_json::Value;

use super::gates::{BY_COMMAND, BY_STATUS, COMMAND_CHECK, Files, check, set, unhealthy};
use super::{World, amend};

const OTHER: &str = "restart: the recipe names another manager";

/// Another pid file, and another lock: this app knows nothing of the one before.
fn another(files: &mut Files) {
    set(files, ("run/app.pid", "run/other.pid"));
    amend(files, "master.js", "'app.pid'", "'other.pid'");
    amend(files, "bin/start", "run/app.pid", "run/other.pid");
    amend(files, "bin/start", "run/app.lock", "run/other.lock");
}

#[test]
fn another_manager_takes_over_from_the_one_before() {
    // It takes its time to end, which is waited for.
    let end = "  fs.rmSync(pidFile";
    let slow = format!("  await new Promise((done) => setTimeout(done, 1000));\n{end}");
    let (mut world, _) = World::gated(|files| amend(files, "master.js", end, &slow));
    let before = world.master();
    let next = world.commit_gated(another);
    world.host.target(&next);
    let status = world.host.await_serving(&next);
    assert_eq!(status["failure"], Value::Null, "{status:#}");
    assert_ne!(world.master(), before);
    assert_eq!(world.done(&next), [OTHER]);
    assert_eq!(world.lines("ran"), ["install", "start", "ended", "start"], "never two at once");
    let run = world.run_dir();
    assert!(!run.join("app.pid").exists(), "the old one ended by itself");
    assert!(run.join("other.pid").exists());
    world.assert_one_app(&next);
}

#[test]
fn a_bad_revision_with_another_manager_gives_way_to_the_one_before() {
    let (mut world, good) = World::gated(|_| {});
    let bad = world.commit_gated(|files| {
        another(files);
        unhealthy(files);
    });
    world.host.target(&bad);
    world.await_restored(&good, &bad);
    assert_eq!(world.done(&bad), [OTHER]);
    assert_eq!(world.done(&good), ["started", OTHER]);
    assert_eq!(world.masters(), 3, "each was started once");
    assert!(!world.run_dir().join("other.pid").exists(), "the bad one ended by itself");
}

/// Deploys a revision, then one that fails once it is live; returns how the failure was told.
/// Both are done by reloads of one master.
fn is_deployed_and_restored(
    edit: impl Fn(&mut Files),
    spoil: impl FnOnce(&mut Files),
    evidence: &str,
) -> (World, String) {
    let (mut world, _) = World::gated(&edit);
    let master = world.master();
    let good = world.commit_gated(&edit);
    world.host.target(&good);
    let status = world.host.await_serving(&good);
    assert_eq!(status["evidence"], evidence, "{status:#}");
    let bad = world.commit_gated(|files| {
        edit(files);
        spoil(files);
    });
    world.host.target(&bad);
    let status = world.await_restored(&good, &bad);
    assert_eq!(status["evidence"], evidence, "{status:#}");
    assert_eq!(status["failure"]["cause"], "unhealthy", "{status:#}");
    assert_eq!(world.done(&good), ["reloaded", "reloaded"]);
    assert_eq!(world.done(&bad), ["reloaded"]);
    assert_eq!(world.master(), master);
    let detail = status["failure"]["detail"].as_str().expect("a text").to_owned();
    (world, detail)
}

#[test]
fn a_manager_that_is_told_by_a_command_follows() {
    let (world, detail) =
        is_deployed_and_restored(|files| set(files, BY_COMMAND), unhealthy, "served");
    assert!(detail.contains("503"), "{detail}");
    assert_eq!(world.ran("reload"), 3);
}

#[test]
fn a_manager_that_is_found_by_a_command_follows() {
    let (world, detail) =
        is_deployed_and_restored(|files| set(files, BY_STATUS), unhealthy, "served");
    assert!(detail.contains("503"), "{detail}");
    assert!(world.ran("status") > 0);
}

/// The address of the app's health, as a tcp check.
fn by_connection(files: &mut Files) {
    let recipe = files.iter().find(|(path, _, _)| path == "towline.toml").expect("it has a recipe");
    let text = String::from_utf8_lossy(&recipe.1);
    let address = text
        .split("http://")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .expect("it is probed by http");
    let tcp = format!("tcp = \"{address}\"");
    check(files, &tcp);
}

#[test]
fn an_app_that_is_probed_by_connecting_is_shown_by_its_processes() {
    let deaf = |files: &mut Files| {
        amend(
            files,
            "worker.js",
            "server.listen(Number(process.env.PORT || read('run/port') || 3000)",
            "server.listen(0",
        );
        set(files, ("timeout_s = 8", "timeout_s = 4"));
    };
    let (_world, detail) = is_deployed_and_restored(by_connection, deaf, "started");
    assert!(detail.contains("connect to 127.0.0.1:"), "{detail}");
}

#[test]
fn an_app_that_is_probed_by_a_command_is_shown_by_its_processes() {
    // Its workers run from nowhere, so all that is seen of them is that they are new.
    let by_command = |files: &mut Files| {
        check(files, COMMAND_CHECK);
        amend(files, "server.js", "'use strict';\n", "'use strict';\nprocess.chdir('/');\n");
    };
    let (world, detail) = is_deployed_and_restored(by_command, unhealthy, "replaced");
    assert!(detail.contains("run `bin/health`"), "{detail}");
    assert!(world.ran("health") > 0);
}

/// Nothing served before, so nothing is restored; what the failed rung left is not left beside what
/// the next one starts.
#[test]
fn a_boot_that_falls_to_another_manager_leaves_none_beside_it() {
    let (mut world, good) = World::gated(|_| {});
    assert!(world.host.terminate().success());
    world.host.kill_app();
    let bad = world.commit_gated(|files| {
        another(files);
        unhealthy(files);
    });
    world.host.target(&bad);
    world.host.run();
    let status = world.host.await_serving(&good);
    assert!(status["degraded"].as_str().unwrap().contains("failed once it was live"), "{status:#}");
    world.assert_one_app(&good);
    assert_eq!(world.masters(), 3, "each was started once");
    assert!(!world.run_dir().join("other.pid").exists(), "the bad one ended by itself");
}

/// Like `start`, it is a program of the release, and before the first one there is nowhere to run it.
#[test]
fn a_status_command_of_the_release_does_for_the_first_start() {
    let status = ("pid_file = \"run/app.pid\"", "status = [\"bin/status\"]");
    let (world, good) = World::gated(|files| set(files, status));
    world.assert_one_app(&good);
    assert_eq!(world.done(&good), ["started"]);
}

#[test]
fn a_status_command_comes_and_goes_with_its_release() {
    let status = ("pid_file = \"run/app.pid\"", "status = [\"bin/status\"]");
    let without = |files: &mut Files| files.retain(|(path, _, _)| path != "bin/status");
    let (mut world, _) = World::gated(without);
    let master = world.master();
    let good = world.commit_gated(|files| set(files, status));
    world.host.target(&good);
    world.host.await_serving(&good);
    let bad = world.commit_gated(|files| {
        without(files);
        unhealthy(files);
    });
    world.host.target(&bad);
    world.await_restored(&good, &bad);
    assert_eq!(world.master(), master, "reloads did");
}
