//! Revisions that fail, and what serves afterwards.

use std::fs;

use serde_json::{Value, json};
use towline_tests::app::Kind;
use towline_tests::origin::Fault;

use super::{World, replace};

/// Deploys a revision that fails once it is live, and waits until the good one serves again.
fn is_restored(behaviour: &serde_json::Value) -> (World, serde_json::Value) {
    let (mut world, good) = World::serving(Kind::Plain);
    let bad = world.commit(behaviour);
    world.host.target(&bad);
    let status = world.host.await_status("the failure to be told", |status| {
        status["phase"] == "idle" && status["failure"]["revision"] == bad.as_str()
    });
    assert_eq!(status["serving"], good.as_str(), "{status:#}");
    assert_eq!(status["health"], "healthy", "{status:#}");
    let reason = status["degraded"].as_str().unwrap_or_default();
    assert!(reason.contains("was rejected"), "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&good));
    assert_eq!(world.host.current().as_ref(), Some(&good));
    // A good one afterwards is taken as ever.
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    (world, status)
}

#[test]
fn workers_that_crash_are_replaced_by_those_that_did_not() {
    let (_world, status) = is_restored(&json!({"worker": "crash"}));
    // Seen in the workers, and long before any deadline.
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("end as soon as they start"), "{detail}");
}

#[test]
fn an_unhealthy_revision_is_restored() {
    let (_world, status) = is_restored(&json!({"worker": "unhealthy"}));
    assert_eq!(status["failure"]["cause"], "unhealthy");
}

#[test]
fn a_revision_that_answers_with_another_is_restored() {
    let (_world, status) = is_restored(&json!({"worker": "wrong-revision"}));
    assert_eq!(status["failure"]["cause"], "wrong-revision");
}

/// The manager's fault is in the revision that serves when it is signalled.
fn is_restarted(on_hangup: &str) {
    let mut world = World::new(Kind::Plain);
    let stubborn = world.commit(&json!({"on_hangup": on_hangup}));
    world.host.target(&stubborn);
    world.host.run();
    world.host.await_serving(&stubborn);
    let next = world.commit_good();
    world.host.target(&next);
    let status = world.host.await_serving(&next);
    assert_eq!(status["failure"], serde_json::Value::Null, "{status:#}");
    assert_eq!(world.host.served().as_ref(), Some(&next));
}

#[test]
fn a_manager_that_ignores_the_signal_is_restarted() {
    is_restarted("ignore");
}

#[test]
fn a_manager_that_dies_of_the_signal_is_brought_back() {
    is_restarted("die");
}

#[test]
fn a_manager_that_keeps_the_old_directory_is_restarted() {
    is_restarted("keep-directory");
}

/// Adds an install to the app that has none.
pub(super) fn with_install(world: &mut World, command: &str) -> String {
    with_install_of(world, command, "parent.txt")
}

/// `input`: the file that the install is known by; `parent.txt` differs from commit to commit.
fn with_install_of(world: &mut World, command: &str, input: &str) -> String {
    world.commit_with(|files| {
        let recipe = files.iter().find(|(path, _, _)| path == "towline.toml");
        let recipe = recipe.expect("the app has a recipe");
        let install = format!(
            "[install]\ncommand = [\"sh\", \"-c\", {command:?}]\ninputs = [{input:?}]\noutputs \
             = [\"made\"]\ntimeout_s = 2\n\n"
        );
        let text = install + std::str::from_utf8(&recipe.1).expect("a recipe is text");
        replace(files, "towline.toml", &text);
    })
}

#[test]
fn an_install_that_fails_or_hangs_touches_nothing_and_is_tried_again() {
    let (mut world, good) = World::serving(Kind::Plain);
    let hidden = "seq 100; echo error: no registry is there; seq 101 150; exit 3";
    let told = "status 3: error: no registry is there";
    for (command, said) in [(hidden, told), ("sleep 1000", "2 s")] {
        let bad = with_install(&mut world, command);
        world.host.target(&bad);
        let status = world.host.await_status("a second attempt to fail", |status| {
            let failure = &status["failure"];
            failure["revision"] == bad.as_str() && failure["attempt"].as_u64() >= Some(2)
        });
        let detail = status["failure"]["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{detail}");
        assert_eq!(status["failure"]["cause"], "install");
        assert_eq!(world.host.served().as_ref(), Some(&good), "nothing live was touched");
        assert_eq!(world.host.processes("sleep 1000"), Vec::<u32>::new());
        let log = world.host.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| {
            line["message"] == "prepare failed; nothing live was touched" && line["revision"] == bad
        });
        let output = line.expect("it names the revision")["output"].take();
        if command == hidden {
            let output: Vec<&str> = output.as_str().expect("a text").lines().collect();
            assert_eq!((output[0], output[9], output[10]), ("1", "10", "…"));
            assert_eq!((output[11], output[20], output.len()), ("141", "150", 21));
        }
    }
}

#[test]
fn what_installs_the_same_way_every_time_is_refused_once() {
    let (mut world, good) = World::serving(Kind::Plain);
    let link = "mkdir made; ln -s /usr/bin/env made/python3";
    let script = "mkdir made; printf '#!%s/made/python\\n' \"$PWD\" >made/pip; chmod +x made/pip";
    let cases = [
        ("true", "made no made", "install.outputs"),
        (link, "out of the installed tree", "--target vendor"),
        (script, "made/pip is run by a program in", "--target vendor"),
    ];
    for (command, said, hint) in cases {
        let bad = with_install(&mut world, command);
        world.host.target(&bad);
        let status = world.host.await_status(said, |status| {
            status["failure"]["revision"] == bad.as_str() && status["phase"] == "idle"
        });
        let failure = &status["failure"];
        assert_eq!((&failure["cause"], &failure["attempt"]), (&"refused".into(), &1.into()));
        let detail = failure["detail"].as_str().unwrap();
        assert!(detail.contains(said) && detail.contains(hint), "{detail}");
        assert_eq!(world.host.served().as_ref(), Some(&good), "nothing live was touched");
    }
}

#[test]
fn an_install_that_leaves_a_daemon_holds_nobody() {
    let (mut world, _) = World::serving(Kind::Plain);
    let command = "mkdir made; setsid sleep 1234 & exit 0";
    let next = with_install(&mut world, command);
    world.host.target(&next);
    world.host.await_serving(&next);
    assert_eq!(world.host.processes("1234"), Vec::<u32>::new(), "the daemon was ended");
}

#[test]
fn a_newer_target_during_an_install_is_taken_at_once() {
    let (mut world, _) = World::serving(Kind::Plain);
    let slow = with_install(&mut world, "touch started; sleep 1000");
    world.host.target(&slow);
    world.host.await_some("the install to run", |host| {
        (!host.processes("sleep 1000").is_empty()).then_some(())
    });
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    assert_eq!(world.host.processes("sleep 1000"), Vec::<u32>::new());
}

#[test]
fn an_outage_of_the_origin_is_waited_out() {
    let (mut world, good) = World::serving(Kind::Plain);
    let next = world.commit_good();
    world.origin.fail(Fault::Down);
    world.host.target(&next);
    let status = world.host.await_status("attempts to fail", |status| {
        status["failure"]["attempt"].as_u64() >= Some(2)
    });
    assert_eq!(status["failure"]["cause"], "fetch");
    assert_eq!(world.host.served().as_ref(), Some(&good));
    world.origin.fail(Fault::None);
    world.host.await_serving(&next);
}

#[test]
fn unknown_commits_and_those_forced_away_are_told_from_those_on_the_branch() {
    let (mut world, good) = World::serving(Kind::Plain);
    world.repo.give_any_commit(false);
    let gone = world.commit_good();
    world.tip = Some(good.clone());
    let forced = world.commit_with(|files| replace(files, "other.txt", "forced"));
    for lost in [gone, "0123456789abcdef0123456789abcdef01234567".to_owned()] {
        world.host.target(&lost);
        let status = world.host.await_status("the commit to be missed", |status| {
            status["failure"]["revision"] == lost.as_str()
        });
        let detail = status["failure"]["detail"].as_str().unwrap();
        assert!(detail.contains("not on the branch main"), "{detail}");
        assert_eq!(world.host.served().as_ref(), Some(&good));
    }
    world.host.target(&forced);
    world.host.await_serving(&forced);
}

#[test]
fn stored_dependencies_that_have_lost_something_are_made_anew() {
    let mut world = World::new(Kind::Plain);
    let command = "mkdir -p made/deep && echo one >made/deep/one && echo two >made/two";
    let good = with_install_of(&mut world, command, "supervisor.js");
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let trees = world.host.dir().join("dependencies");
    let tree = fs::read_dir(&trees).unwrap().map(|entry| entry.unwrap().path());
    let tree = tree.into_iter().find(|path| path.is_dir()).expect("it is stored");
    for lost in ["made/deep/one", "made"] {
        let path = tree.join(lost);
        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        gone.unwrap();
        let next = with_install_of(&mut world, command, "supervisor.js");
        world.host.target(&next);
        world.host.await_serving(&next);
        let made = world.host.dir().join("current/made/deep/one");
        assert_eq!(fs::read_to_string(made).unwrap(), "one\n", "without {lost}");
    }
}
