//! What host config says beside the origin: a default recipe, what recipes may use, quotas; and several
//! apps on one instance.

use std::fs;
use std::io::Write;
use std::path::Path;

use towline_tests::app::{self, Kind};
use towline_tests::host::Host;

use super::{World, amend, replace};

const MIB: usize = 1 << 20;

/// The recipe that the app has, as a file of the host's; commits no longer hold one.
fn without_recipe(world: &mut World) -> (String, String) {
    let files = world.files();
    let (_, recipe, _) = files.iter().find(|(path, _, _)| path == "towline.toml").unwrap();
    let recipe = String::from_utf8(recipe.clone()).unwrap();
    let bare = world.commit_with(|files| files.retain(|(path, _, _)| path != "towline.toml"));
    (bare, recipe)
}

#[test]
fn a_revision_without_a_recipe_gets_the_hosts_and_one_with_its_own_does_not() {
    let mut world = World::new(Kind::Plain);
    let (bare, recipe) = without_recipe(&mut world);
    world.host.target(&bare);
    let (code, log) = world.host.once();
    assert_ne!(code, 0, "{log}");
    assert!(log.contains("has no recipe towline.toml") && log.contains("default_recipe"), "{log}");

    let path = world.host.config_file().with_file_name("recipe.toml");
    fs::write(&path, &recipe).unwrap();
    let key = format!("default_recipe = {path:?}\ngroup");
    world.host.reconfigure("group", &key);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    assert_eq!(world.host.served().as_ref(), Some(&bare));
    let marker = world.host.dir().join(format!("releases/{bare}.json"));
    let marker: serde_json::Value = serde_json::from_slice(&fs::read(marker).unwrap()).unwrap();
    assert_eq!(marker["recipe"], recipe.as_str(), "as if the repository had it");

    // The repository's own comes first, also where it is wrong.
    let bad = world.commit_with(|files| replace(files, "towline.toml", "[manager]\n"));
    world.host.target(&bad);
    let (code, log) = world.host.once();
    assert_eq!(code, 1, "{log}");
    assert_eq!(world.host.served().as_ref(), Some(&bare));
}

#[test]
fn a_default_recipe_that_is_none_ends_the_start() {
    let mut world = World::new(Kind::Plain);
    let (bare, recipe) = without_recipe(&mut world);
    world.host.target(&bare);
    let path = world.host.config_file().with_file_name("recipe.toml");
    world.host.reconfigure("group", &format!("default_recipe = {path:?}\ngroup"));
    world.host.reconfigure("[keep]", "[allow]\nsignals = [\"SIGHUP\"]\n[keep]");
    let other = recipe.replace("SIGHUP", "SIGUSR1");
    let cases = [
        (None, "could not read the default recipe"),
        (Some("[manager]\npidfile = \"x\"\n"), "manager.pidfile"),
        (Some(other.as_str()), "manager.reload is SIGUSR1, which host config does not allow"),
    ];
    for (text, said) in cases {
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let (code, log) = world.host.once();
        assert!(code == 78 && log.contains(said), "{said}: {log}");
        let config = world.host.config_file().display().to_string();
        let (code, lines, _) = Host::agent(&["check", "--config", &config]);
        assert!(code == 1 && lines.contains(said), "{said}: {lines}");
        assert_eq!(fs::read_dir(world.host.dir()).unwrap().count(), 1, "nothing was made");
    }
}

#[test]
fn a_signal_that_the_host_does_not_allow_is_refused_before_the_swap() {
    let (mut world, good) = World::serving(Kind::Plain);
    assert!(world.host.terminate().success());
    world.host.reconfigure("[keep]", "[allow]\nsignals = [\"SIGHUP\"]\n[keep]");
    world.host.run();
    world.host.await_serving(&good);
    let pids = world.host.processes("server.js");
    let other = world.commit_with(|files| amend(files, "towline.toml", "SIGHUP", "SIGUSR2"));
    world.host.target(&other);
    let status = world.host.await_status("the signal to be refused", |status| {
        status["failure"]["revision"] == other.as_str()
    });
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert_eq!(status["failure"]["cause"], "refused");
    assert!(detail.contains("manager.reload is SIGUSR2"), "{detail}");
    assert!(detail.contains("add \"SIGUSR2\" to allow.signals"), "{detail}");
    assert_eq!(world.host.processes("server.js"), pids, "nothing live was touched");
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
}

#[test]
fn check_says_what_the_host_does_not_allow() {
    let mut world = World::new(Kind::Plain);
    world.host.reconfigure("[keep]", "[allow]\nsignals = [\"SIGUSR1\"]\n[keep]");
    let dir = tempfile::tempdir().unwrap();
    for (path, content, _) in world.files() {
        let place = dir.path().join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, content).unwrap();
    }
    let config = world.host.config_file().display().to_string();
    let dir = dir.path().display().to_string();
    let (code, lines, _) = Host::agent(&["check", &dir, "--config", &config]);
    let said = "towline.toml:5: manager.reload: manager.reload is SIGHUP";
    assert!(code == 1 && lines.contains(said), "{lines}");
}

#[test]
fn releases_are_pruned_by_size_and_what_is_in_need_never_is() {
    let mut world = World::with(Kind::Plain, "branch = \"main\"\n", "");
    world.host.reconfigure("free_mib = 16", "free_mib = 16\nreleases_mib = 7");
    let large = |world: &mut World, mib: usize| {
        world.commit_with(|files| files.push(("large".to_owned(), vec![b'x'; mib * MIB], false)))
    };
    let mut all = Vec::new();
    world.host.run();
    for _ in 0..4 {
        let next = large(&mut world, 2);
        world.host.target(&next);
        world.host.await_serving(&next);
        all.push(next);
    }
    let dir = world.host.dir().join("releases");
    let left = |world: &mut World, expected: &[&String]| {
        world.host.await_some("the oldest to be pruned", |_| {
            all.iter().all(|one| dir.join(one).exists() == expected.contains(&one)).then_some(())
        });
    };
    left(&mut world, &[&all[1], &all[2], &all[3]]);

    // What serves and what it would go back to take four; one of four does not fit beside them.
    let pids = world.host.processes("server.js");
    let next = large(&mut world, 4);
    world.host.target(&next);
    let status = world.host.await_status("the quota to be told", |status| {
        status["failure"]["revision"] == next.as_str()
    });
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert_eq!(status["failure"]["cause"], "disk");
    assert!(detail.contains("more than the 7 MiB of keep.releases_mib"), "{detail}");
    assert!(detail.contains("raise keep.releases_mib"), "{detail}");
    assert_eq!(world.host.processes("server.js"), pids);
    assert!(dir.join(&all[2]).exists() && dir.join(&all[3]).exists());
}

#[test]
fn an_apps_log_that_grows_is_emptied_while_the_app_writes_to_it() {
    let (mut world, good) = World::serving(Kind::Plain);
    assert!(world.host.terminate().success());
    world.host.reconfigure("free_mib = 16", "free_mib = 16\nlog_mib = 2");
    let log = world.host.dir().join("log/app.log");
    let mut app = fs::File::options().append(true).open(&log).unwrap();
    app.write_all(&b"an old line\n".repeat(3 * MIB / 12)).unwrap();
    // The look at what serves, with which it begins, finds it.
    world.host.run();
    world.host.await_serving(&good);
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    world.host.await_some("the log to be emptied", |_| (size(&log) < 4096).then_some(()));
    app.write_all(b"a new line\n").unwrap();
    assert!(fs::read_to_string(&log).unwrap().ends_with("a new line\n"));
    assert_eq!(size(&log.with_file_name("app.log.1")), MIB as u64);
    assert_eq!(world.host.served().as_ref(), Some(&good));
}

#[test]
fn two_apps_on_one_instance_do_not_disturb_each_other_and_one_directory_has_one_agent() {
    let (mut one, first) = World::serving(Kind::Plain);
    // Its name begins with the other's: whatever is told apart by names is told apart wholly.
    let port = app::free_port();
    let dir = one.host.dir().with_file_name("web2");
    let mut other = World::new(Kind::Plain);
    other.host = one.host.beside(&dir, port, &other.origin.url(&other.repo));
    let second = other.commit_good();
    other.host.target(&second);
    other.host.run();
    other.host.await_serving(&second);
    assert_eq!(one.host.served().as_ref(), Some(&first));

    // What one agent's start ends and clears is its own.
    let pids = (one.host.app_pid(), other.host.app_pid());
    one.host.kill();
    one.host.run();
    one.host.await_serving(&first);
    assert_eq!((one.host.app_pid(), other.host.app_pid()), pids);
    let next = one.commit_good();
    one.host.target(&next);
    one.host.await_serving(&next);
    assert_eq!(other.host.served().as_ref(), Some(&second));
    let (one_status, other_status) = (one.host.status(), other.host.status());
    assert_eq!(one_status["status"]["serving"], next.as_str());
    assert_eq!(other_status["status"]["serving"], second.as_str());
    assert_ne!(one_status["agent_pid"], other_status["agent_pid"]);

    // A second config with the same directory.
    let text = fs::read_to_string(other.host.config_file()).unwrap();
    let own = text.replace(&format!("dir = {dir:?}"), &format!("dir = {:?}", one.host.dir()));
    assert_ne!(own, text);
    fs::write(other.host.config_file(), &own).unwrap();
    let (code, log) = other.host.once();
    assert!(code == 75 && log.contains("another agent runs for"), "{code}: {log}");
    fs::write(other.host.config_file(), &text).unwrap();
    assert!(one.host.is_alive() && other.host.is_alive());
    assert_eq!(one.host.served().as_ref(), Some(&next));
}
