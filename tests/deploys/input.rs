//! Bad input: what is said, and that nothing changes.

use std::fs;

use serde_json::json;
use towline_tests::app::Kind;
use towline_tests::host::Host;

use super::{World, replace};

#[test]
fn a_target_that_cannot_be_followed_is_told_and_changes_nothing() {
    let (mut world, good) = World::serving(Kind::Plain);
    let next = world.commit_good();
    let document = |field: &str, value: serde_json::Value| {
        let mut target = json!({"version": 1, "group": "web", "epoch": 1, "generation": 9,
            "revision": next});
        target[field] = value;
        target.to_string()
    };
    let cases = [
        ("no JSON", "{".to_owned(), "could not be read"),
        ("a branch", document("revision", json!("main")), "not a full commit id"),
        ("another group's", document("group", json!("api")), "is for group api"),
        ("a lower generation", document("generation", json!(0)), "a lower one is refused"),
        ("the same generation", document("generation", json!(1)), "names another target"),
        ("a lower epoch", document("epoch", json!(0)), "a lower one is refused"),
    ];
    for (rule, text, said) in cases {
        world.host.write_target(&text);
        let status = world.host.await_status(rule, |status| {
            status["objection"].as_str().is_some_and(|reason| reason.contains(said))
        });
        assert_eq!(status["serving"], good.as_str(), "{rule}");
    }
    assert_eq!(world.host.served().as_ref(), Some(&good));
    assert!(world.host.is_alive());
    world.host.write_target(&document("version", json!(1)));
    world.host.await_serving(&next);
}

#[test]
fn a_revision_with_a_bad_recipe_is_refused_before_anything_live_is_touched() {
    let (mut world, good) = World::serving(Kind::Plain);
    let recipes = [
        ("[manager]\npidfile = \"x\"\n", "manager.pidfile"),
        ("[manager]\npid_file = \"/x\"\nreload = \"SIGHUP\"\nstart = [\"x\"]\n", "health"),
        ("[manager]\npid_file = \"/x\"\nreload = \"SIGHUP\"\n", "manager.start"),
    ];
    for (text, said) in recipes {
        let bad = world.commit_with(|files| replace(files, "towline.toml", text));
        world.host.target(&bad);
        let status = world.host.await_status("the recipe to be refused", |status| {
            status["failure"]["revision"] == bad.as_str()
        });
        assert_eq!(status["failure"]["cause"], "refused");
        assert!(status["failure"]["detail"].as_str().unwrap().contains(said), "{status:#}");
        assert_eq!(world.host.served().as_ref(), Some(&good));
    }
}

#[test]
fn check_says_line_by_line_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("towline.toml"), "[manager]\npidfile = 1\n").unwrap();
    let (code, said, _) = Host::agent(&["check", dir.path().to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(said.contains("towline.toml:2: manager.pidfile: unknown key"), "{said}");
    let (code, _, said) = Host::agent(&["check", "/nonexistent"]);
    assert_eq!(code, 1);
    assert!(said.starts_with("error: could not read"), "{said}");
}
