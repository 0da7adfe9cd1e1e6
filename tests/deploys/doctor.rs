//! `doctor`: what is wrong with a host is told, with what to do, and nothing is changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::geteuid;
use serde_json::Value;
use towline_tests::app::Kind;
use towline_tests::host::Host;
use towline_tests::origin::Fault;

use super::World;

/// What is found, by the words of `about`, and the exit code.
fn examine(host: &Host) -> (i32, Vec<Value>) {
    let output = host.command("doctor").arg("--json").output().expect("the agent was built");
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(said["schema_version"], 1);
    (output.status.code().unwrap_or(-1), said["findings"].as_array().unwrap().clone())
}

/// Asserts that all of this kind is at this level, and says these words, hint included.
fn assert_found(host: &Host, about: &str, level: &str, words: &str) {
    let (code, findings) = examine(host);
    let about_it: Vec<&Value> =
        findings.iter().filter(|finding| finding["about"] == about).collect();
    assert!(!about_it.is_empty(), "{about} in {findings:#?}");
    let is_it = |finding: &&&Value| {
        finding["level"] == level
            && format!("{} {}", finding["said"], finding["hint"]).contains(words)
    };
    assert!(about_it.iter().any(|finding| is_it(&finding)), "{level} {words}: {about_it:#?}");
    let fails = findings.iter().any(|finding| finding["level"] == "fail");
    assert_eq!(code, i32::from(fails), "{findings:#?}");
}

/// All below a directory: names, modes, owners and sizes.
fn listing(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let (mut all, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            let (mode, uid, size, time) = (meta.mode(), meta.uid(), meta.size(), meta.mtime());
            all.push(format!("{} {mode:o} {uid} {size} {time}", path.display()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_host_that_is_well_is_told_so_beside_its_agent_and_before_its_first_start() {
    let (mut world, good) = World::serving(Kind::Plain);
    for (about, words) in [
        ("agent", "runs"),
        ("directory", "is the agent's"),
        ("state", "alone"),
        ("current", good.as_str()),
        ("disk", "16 MiB stay free"),
        ("origin", good.as_str()),
        ("recipe", "may be used"),
        ("source", "target.json"),
        ("clock", "within"),
        ("leftovers", "none"),
    ] {
        assert_found(&world.host, about, "ok", words);
    }
    let text = world.host.command("doctor").output().unwrap().stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.lines().any(|line| line.starts_with("ok    origin")), "{text}");
    assert!(!text.contains("FAIL"), "{text}");

    assert!(world.host.terminate().success());
    let before = listing(&world.host.dir());
    assert_found(&world.host, "agent", "warn", "none runs");
    assert_eq!(listing(&world.host.dir()), before, "nothing was changed");
    assert_eq!(world.host.served().as_ref(), Some(&good));

    let mut fresh = World::new(Kind::Plain);
    fresh.commit_good();
    let before = listing(&fresh.host.dir());
    assert_found(&fresh.host, "state", "ok", "first start");
    assert_found(&fresh.host, "current", "ok", "nothing is live yet");
    assert_eq!(listing(&fresh.host.dir()), before, "nothing was made");
}

#[test]
fn what_is_wrong_on_the_disk_is_told_with_what_to_do() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    let dir = world.host.dir();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&dir, 0o777);
    assert_found(&world.host, "directory", "fail", "chmod go-w");
    mode(&dir, 0o755);
    if geteuid().is_root() {
        chown(&dir, Some(65_534), None).unwrap();
        assert_found(&world.host, "directory", "fail", "chown 0");
        chown(&dir, Some(0), None).unwrap();
        world.host.reconfigure("user = \"nobody\"", "user = \"root\"");
        assert_found(&world.host, "user", "fail", "as root");
        world.host.reconfigure("user = \"root\"", "user = \"no-such-user\"");
        assert_found(&world.host, "user", "fail", "no-such-user");
        world.host.reconfigure("user = \"no-such-user\"", "user = \"nobody\"");
    }
    let state = dir.join(".towline");
    mode(&state, 0o755);
    assert_found(&world.host, "state", "fail", "chmod 700");
    mode(&state, 0o700);
    fs::write(state.join("journal.broken.json"), "{").unwrap();
    assert_found(&world.host, "leftovers", "warn", "journal.broken.json");
    fs::remove_file(state.join("journal.broken.json")).unwrap();
    fs::create_dir(dir.join("staging/release")).unwrap();
    assert_found(&world.host, "leftovers", "warn", "the next start");
    fs::remove_dir(dir.join("staging/release")).unwrap();
    world.host.reconfigure("free_mib = 16", "free_mib = 1000000000");
    assert_found(&world.host, "disk", "fail", "keep.free_mib");
    world.host.reconfigure("free_mib = 1000000000", "free_mib = 16");
    fs::remove_file(dir.join(format!("releases/{good}.json"))).unwrap();
    assert_found(&world.host, "current", "fail", "no complete release");
    fs::remove_file(dir.join("current")).unwrap();
    fs::create_dir(dir.join("current")).unwrap();
    assert_found(&world.host, "directory", "fail", "move");
}

#[test]
fn what_cannot_be_reached_or_used_is_told_with_what_to_do() {
    let mut world = World::new(Kind::Plain);
    world.commit_good();
    world.origin.fail(Fault::Down);
    assert_found(&world.host, "origin", "fail", "could not");
    world.origin.fail(Fault::None);
    world.origin.require("bot:s3cret");
    assert_found(&world.host, "origin", "fail", "401");
    let credential = world.host.config_file().with_file_name("credential");
    fs::write(&credential, "bot:s3cret").unwrap();
    world.host.reconfigure("branch", &format!("credential = {credential:?}\nbranch"));
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o644)).unwrap();
    assert_found(&world.host, "origin", "fail", "chmod 0400");
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
    assert_found(&world.host, "origin", "ok", "the branch is at");
    world.host.reconfigure("branch = \"main\"", "branch = \"gone\"");
    assert_found(&world.host, "origin", "fail", "no branch gone");

    // Nobody listens at the one; the origin answers at the other, and is no coordinator.
    let addresses = ["http://127.0.0.1:1".to_owned(), world.origin.base()];
    let url = world.origin.url(&world.repo);
    world.host = Host::member("i-1", &url, &addresses, "");
    assert_found(&world.host, "coordinator", "fail", "could not reach http://127.0.0.1:1");
    assert_found(&world.host, "coordinator", "fail", "no coordinator");
    assert_found(&world.host, "token", "warn", "join_secret");
}

/// A systemd that knows these units, in the words of `systemctl show`; first on the path.
fn systemd(world: &mut World, script: &str) {
    let bin = world.host.config_file().with_file_name("bin");
    fs::create_dir_all(&bin).unwrap();
    let program = bin.join("systemctl");
    fs::write(
        &program,
        format!("#!/bin/sh\nfor unit; do :; done\ncase $unit in\n{script}\nesac\n"),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    world.host.add_environment(vec![("PATH".to_owned(), path)]);
}

#[test]
fn units_that_recipes_may_use_are_looked_up() {
    let mut world = World::new(Kind::Plain);
    world.commit_good();
    assert_found(&world.host, "systemd", "ok", "not needed");
    world
        .host
        .reconfigure("[keep]", "[allow]\nunits = [\"web.service\", \"gone.service\"]\n[keep]");
    systemd(&mut world, "*) exit 1;;");
    assert_found(&world.host, "systemd", "fail", "systemctl");
    systemd(
        &mut world,
        "web.service) echo LoadState=loaded;; gone.service) echo LoadState=not-found;; *) echo \
         Version=252;;",
    );
    assert_found(&world.host, "systemd", "ok", "252");
    assert_found(&world.host, "unit", "warn", "web.service is loaded");
    assert_found(&world.host, "unit", "fail", "gone.service is not-found");
}

#[test]
fn a_config_that_is_none_is_told_with_78() {
    let mut world = World::new(Kind::Plain);
    world.host.reconfigure("group = \"web\"", "gruop = \"web\"");
    let output = world.host.command("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}
