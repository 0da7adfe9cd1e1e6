//! Bad input: what is said, and that nothing changes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

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

/// Runs git in `dir`, with nobody's configuration.
fn git(dir: &std::path::Path, arguments: &[&str]) {
    let mut command = std::process::Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(arguments);
    let output = command.current_dir(dir).output().expect("git is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn check_refuses_what_a_deploy_would_refuse() {
    const RECIPE: &str = "[install]\ncommand = [\"./bin/install\"]\ninputs = [\"lock\"]\noutputs = \
                          [\"node_modules\"]\n[manager]\npid_file = \"run/app.pid\"\nreload = \
                          \"SIGHUP\"\nstart = [\"./bin/start\"]\n[health]\ntcp = \
                          \"127.0.0.1:1\"\n[shared]\ndirs = [\"run\"]\n";
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let check = || Host::agent(&["check", dir.path().to_str().unwrap()]);
    fs::create_dir_all(path("bin")).unwrap();
    fs::write(path("towline.toml"), RECIPE).unwrap();
    let (code, said, _) = check();
    assert_eq!(code, 1);
    let expected = [
        "towline.toml:8: manager.start: bin/start is not there",
        "towline.toml:2: install.command: bin/install is not there",
        "towline.toml:2: install.command: bin/install is not among install.inputs",
        "warning: install.inputs: lock is not there",
    ];
    for line in expected {
        assert!(said.contains(line), "{line} in {said}");
    }

    fs::write(path("towline.toml"), RECIPE.replace("\"lock\"", "\"bin\"")).unwrap();
    for name in ["bin/install", "bin/start"] {
        fs::write(path(name), "#!/bin/sh\n").unwrap();
    }
    let (code, said, _) = check();
    assert!(code == 1 && said.contains(":8: manager.start: bin/start is not exec"), "{said}");
    for name in ["bin/install", "bin/start"] {
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["run", "node_modules"] {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("file"), "").unwrap();
    }
    let (code, said, _) = check();
    assert_eq!(code, 0, "not known to git: {said}");
    assert!(said.contains("warning: shared.dirs: run is there"), "{said}");

    git(dir.path(), &["init", "-q"]);
    git(dir.path(), &["add", "bin", "towline.toml"]);
    let (code, said, _) = check();
    assert_eq!(code, 0, "a developer's own folders do no harm: {said}");
    assert!(!said.contains("is there"), "{said}");
    git(dir.path(), &["add", "."]);
    let (code, said, _) = check();
    assert_eq!(code, 1);
    for line in [":4: install.outputs: node_modules is in the", ":12: shared.dirs: run is in the"] {
        assert!(said.contains(line), "{line} in {said}");
    }
    git(dir.path(), &["rm", "-rq", "--cached", "run", "node_modules"]);
    git(dir.path(), &["update-index", "--chmod=-x", "bin/start"]);
    let (code, said, _) = check();
    assert!(code == 1 && said.contains("bin/start is not executable in git"), "{said}");
}

#[test]
fn check_looks_at_host_config_and_at_the_recipe_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let user = if nix::unistd::geteuid().is_root() { "user = \"nobody\"\n" } else { "" };
    let good = format!(
        "group = \"web\"\ninstance = \"i-1\"\ndir = {:?}\n{user}[source]\nfile = {:?}\n[git]\nurl \
         = \"https://git.example/web.git\"\nrecipe = \"deploy/web.toml\"\n",
        path("nowhere"),
        path("target.json")
    );
    let config = path("host.toml");
    fs::write(&config, &good).unwrap();
    let (code, said, _) = Host::agent(&["check", "--config", &config]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("host.toml: warning: dir: ") && said.ends_with("host.toml: valid\n"));
    let (code, _, said) = Host::agent(&["check", dir.path().to_str().unwrap(), "-c", &config]);
    assert!(code == 1 && said.contains("deploy/web.toml"), "{said}");

    let cases = [
        ("group = \"web\"", "gruop = \"web\"", "host.toml:1: unknown field `gruop`"),
        ("[source]", "[keep]\nreleases = 1\n[source]", "keep.releases: must be 2 to 1000"),
        ("https://", "http://", "git.url"),
        ("group = \"web\"", "group = \"a/b\"", "is not valid"),
    ];
    for (from, to, blamed) in cases {
        fs::write(&config, good.replacen(from, to, 1)).unwrap();
        let (code, said, _) = Host::agent(&["check", "--config", &config]);
        assert!(code == 1 && said.contains(blamed), "{to}: {said}");
    }
}
