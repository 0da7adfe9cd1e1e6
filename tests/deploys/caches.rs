//! The git cache's hard days: whatever is found in its place, the next deploy ends well.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};
use towline_tests::app::Kind;
use towline_tests::origin::Origin;

use super::World;

fn cache(world: &World) -> PathBuf {
    world.host.dir().join(".towline/git")
}

fn deploy_next(world: &mut World) -> String {
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    next
}

/// Runs git in a repository, with a file as its input.
fn git(dir: &Path, arguments: &[&str], input: Stdio) {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "-C"]).arg(dir).args(arguments).stdin(input);
    let output = command.output().expect("git is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_emptied_object_is_fetched_again() {
    for branch in ["branch = \"main\"\n", "branch = \"main\"\nverify_branch = true\n"] {
        let mut world = World::with(Kind::Plain, branch, "");
        let good = world.commit_good();
        world.host.target(&good);
        world.host.run();
        world.host.await_serving(&good);
        // As loose objects, each of which can be damaged for itself.
        let cache = cache(&world);
        let packs = cache.join("objects/pack");
        let away = world.host.dir().join(".towline/packs");
        fs::rename(&packs, &away).unwrap();
        fs::create_dir(&packs).unwrap();
        for entry in fs::read_dir(&away).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_some_and(|kind| kind == "pack") {
                let pack = fs::File::open(entry).unwrap();
                git(&cache, &["unpack-objects", "-q"], pack.into());
            }
        }
        fs::remove_dir_all(&away).unwrap();
        let mut emptied = 0;
        for dir in fs::read_dir(cache.join("objects")).unwrap().map(|dir| dir.unwrap()) {
            if dir.file_name().len() != 2 {
                continue;
            }
            for object in fs::read_dir(dir.path()).unwrap().map(|object| object.unwrap().path()) {
                fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
                fs::write(&object, "").unwrap();
                emptied += 1;
            }
        }
        assert!(emptied > 3, "{emptied}");
        let next = deploy_next(&mut world);
        assert!(cache.with_extension("broken").exists(), "it was met");
        assert_eq!(world.host.served(), Some(next));
    }
}

#[test]
fn locks_that_a_killed_git_left_are_in_nobodys_way() {
    for branch in ["branch = \"main\"\n", "branch = \"main\"\nverify_branch = true\n"] {
        let mut world = World::with(Kind::Plain, branch, "");
        let good = world.commit_good();
        world.host.target(&good);
        world.host.run();
        world.host.await_serving(&good);
        let cache = cache(&world);
        let next = world.commit_good();
        let names = ["HEAD", "config", "index", "shallow", "packed-refs", "FETCH_HEAD"];
        for name in names {
            fs::write(cache.join(format!("{name}.lock")), "").unwrap();
        }
        fs::create_dir_all(cache.join("refs/towline/releases")).unwrap();
        fs::write(cache.join("refs/towline/branch.lock"), "").unwrap();
        fs::write(cache.join(format!("refs/towline/releases/{next}.lock")), "").unwrap();
        world.host.target(&next);
        world.host.await_serving(&next);
        assert!(!cache.with_extension("broken").exists(), "nothing was broken");
    }
}

#[test]
fn a_link_or_a_file_in_the_caches_place_is_not_followed() {
    let (mut world, _) = World::serving(Kind::Plain);
    let cache = cache(&world);
    let foreign = Origin::start();
    let foreign = foreign.repository("foreign.git");
    let before = listing(foreign.dir());
    let broken = cache.with_extension("broken");
    for place in ["", "objects", "objects/pack", "refs"] {
        let place = if place.is_empty() { cache.clone() } else { cache.join(place) };
        let target = foreign.dir().join(place.strip_prefix(&cache).unwrap());
        fs::remove_dir_all(&place).unwrap();
        symlink(&target, &place).unwrap();
        deploy_next(&mut world);
        assert!(fs::symlink_metadata(&cache).unwrap().is_dir());
        assert!(fs::symlink_metadata(&broken).is_ok(), "{} was set aside", place.display());
        assert_eq!(listing(foreign.dir()), before, "{}", place.display());
    }
    fs::remove_dir_all(&cache).unwrap();
    fs::write(&cache, "no repository").unwrap();
    deploy_next(&mut world);
}

/// All that is below a directory: paths and times.
fn listing(dir: &Path) -> Vec<(PathBuf, i64, i64)> {
    let mut dirs = vec![dir.to_owned()];
    let mut all = Vec::new();
    while let Some(dir) = dirs.pop() {
        let meta = fs::symlink_metadata(&dir).expect("it is there");
        all.push((dir.clone(), meta.mtime(), meta.mtime_nsec()));
        if meta.is_dir() {
            dirs.extend(fs::read_dir(&dir).expect("ours").map(|entry| entry.expect("ours").path()));
        }
    }
    all.sort();
    all
}

fn give(path: &Path, user: &User) {
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    for (path, _, _) in listing(path) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("we are root");
    }
}

#[test]
fn a_cache_of_another_owner_is_set_aside_or_told_with_what_to_do() {
    if !geteuid().is_root() {
        // Nobody else can give files away.
        return;
    }
    let nobody = User::from_name("nobody").ok().flatten().expect("every system has it");
    let (mut world, _) = World::serving(Kind::Plain);
    let cache = cache(&world);
    let broken = cache.with_extension("broken");
    give(&cache, &nobody);
    deploy_next(&mut world);
    assert_eq!(fs::metadata(&cache).unwrap().uid(), 0);
    assert_eq!(fs::metadata(&broken).unwrap().uid(), nobody.uid.as_raw());

    // One that is not root's can set aside what it may not read, once.
    world.host.terminate();
    world.host.kill_app();
    let last = world.commit_good();
    world.host.target(&last);
    let dir = world.host.dir();
    give(&dir, &nobody);
    let root = User::from_name("root").ok().flatten().expect("every system has it");
    fs::create_dir_all(cache.join("objects")).unwrap();
    give(&cache, &root);
    give(&broken, &root);
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o700)).unwrap();
    let agent = dir.join("agent");
    fs::copy(world.host.command("once").get_program(), &agent).unwrap();
    let once = || {
        let own = world.host.command("once");
        let mut command = Command::new(&agent);
        command.args(own.get_args()).args(["--log", "json"]);
        command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        let output = command.output().expect("it can be run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, log) = once();
    assert_eq!(code, Some(75), "{log}");
    assert!(log.contains("aside") && log.contains("rm -r"), "{log}");
    fs::remove_dir_all(&broken).unwrap();
    let (code, log) = once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(fs::metadata(&cache).unwrap().uid(), nobody.uid.as_raw());
    chown(&agent, Some(0), Some(0)).unwrap();
}
