//! A disk that is full, or becomes so.

use std::fs;

use serde_json::Value;
use towline_tests::app::Kind;
use towline_tests::mount::Mount;

use super::World;
use super::failures::with_install;

const MIB: usize = 1 << 20;

/// Bytes that nothing compresses.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

/// Serves a good revision from a file system of `mib` MiB, of which `kept` stay free.
fn serving(mib: u64, kept: u64) -> Option<(World, Mount, String)> {
    let mut world = World::new(Kind::Plain);
    let mount = Mount::small(&world.host.dir(), mib)?;
    world.host.lay_out();
    world.host.reconfigure("free_mib = 16", &format!("free_mib = {kept}"));
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    Some((world, mount, good))
}

/// Names a target that is in vain twice; returns the failure. Nothing that serves is touched, and
/// nothing is left behind.
fn is_in_vain(world: &mut World, good: &str, next: &str) -> Value {
    let pids = world.host.processes("server.js");
    world.host.target(next);
    let status = world.host.await_status("two attempts to fail", |status| {
        let failure = &status["failure"];
        status["phase"] == "waiting"
            && failure["revision"] == next
            && failure["attempt"].as_u64() >= Some(2)
    });
    assert_eq!((&status["serving"], &status["health"]), (&good.into(), &"healthy".into()));
    assert_eq!(world.host.served().as_deref(), Some(good));
    assert_eq!(world.host.current().as_deref(), Some(good));
    assert_eq!(world.host.processes("server.js"), pids, "nothing was reloaded");
    let names = |name: &str| -> Vec<String> {
        let dir = fs::read_dir(world.host.dir().join(name)).expect("it is there");
        dir.map(|entry| entry.expect("ours").file_name().display().to_string()).collect()
    };
    assert!(names("releases").iter().all(|name| name.starts_with(good)), "no other release");
    assert!(world.host.is_alive());
    status["failure"].clone()
}

fn assert_says(failure: &Value, cause: &str, said: &[&str]) {
    let detail = failure["detail"].as_str().expect("a text");
    assert_eq!(failure["cause"], cause, "{detail}");
    for said in said {
        assert!(detail.contains(said), "{said} in {detail}");
    }
}

#[test]
fn a_disk_that_others_have_filled_is_told_before_the_first_write() {
    let Some((mut world, _mount, good)) = serving(24, 16) else { return };
    let ballast = world.host.dir().join("ballast");
    fs::write(&ballast, vec![0; 12 * MIB]).unwrap();
    let requests = world.origin.requests();
    let next = world.commit_good();
    let failure = is_in_vain(&mut world, &good, &next);
    let said = ["has 11 MiB free, 5 MiB too few", "16 MiB stay free", "keep.free_mib", "free some"];
    assert_says(&failure, "disk", &said);
    assert_eq!(world.origin.requests(), requests, "nothing was fetched");
    fs::remove_file(&ballast).unwrap();
    world.host.await_serving(&next);
}

#[test]
fn caches_that_have_outgrown_their_limits_make_room_first() {
    let Some((mut world, _mount, _)) = serving(24, 16) else { return };
    assert!(world.host.terminate().success());
    world.host.reconfigure("free_mib = 16", "free_mib = 16\ngit_mib = 1\npackage_cache_mib = 1");
    for cache in [".towline/git", "cache"] {
        let dir = world.host.dir().join(cache);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ballast"), vec![0; 12 * MIB]).unwrap();
        let next = world.commit_good();
        world.host.target(&next);
        world.host.run();
        world.host.await_serving(&next);
        assert!(!dir.join("ballast").exists(), "{cache}");
        assert!(world.host.log().contains("cache, to make room"), "{cache}");
        assert!(world.host.terminate().success());
    }
}

#[test]
fn a_fetch_ends_before_it_takes_what_stays_free() {
    let Some((mut world, mount, good)) = serving(16, 6) else { return };
    let next = world.commit_with(|files| files.push(("large".to_owned(), noise(13 * MIB), false)));
    let failure = is_in_vain(&mut world, &good, &next);
    assert_says(&failure, "disk", &["could not fetch", "MiB too few", "6 MiB stay free"]);
    mount.resize(64);
    world.host.await_serving(&next);
}

#[test]
fn a_disk_without_a_reserve_may_be_filled_to_the_brim() {
    let Some((mut world, mount, good)) = serving(12, 0) else { return };
    let next = world.commit_with(|files| files.push(("large".to_owned(), noise(14 * MIB), false)));
    let failure = is_in_vain(&mut world, &good, &next);
    assert_says(&failure, "disk", &["could not fetch", "no storage space", "its space"]);
    mount.resize(64);
    world.host.await_serving(&next);
}

#[test]
fn a_tree_that_does_not_fit_is_told_before_it_is_written() {
    let Some((mut world, mount, good)) = serving(16, 6) else { return };
    // It comes in as a few bytes.
    let next =
        world.commit_with(|files| files.push(("large".to_owned(), vec![0; 20 * MIB], false)));
    let failure = is_in_vain(&mut world, &good, &next);
    assert_says(&failure, "disk", &["11 MiB too few: 21 MiB are needed", "6 MiB stay free"]);
    mount.resize(64);
    world.host.await_serving(&next);
}

#[test]
fn an_install_that_fills_the_disk_leaves_nothing_behind() {
    let Some((mut world, mount, good)) = serving(16, 6) else { return };
    let next = with_install(&mut world, "mkdir made && head -c 20000000 /dev/zero >made/large");
    let failure = is_in_vain(&mut world, &good, &next);
    assert_says(&failure, "install", &["status 1"]);
    assert!(world.host.log().contains("No space left on device"), "what it said is in the log");
    let staging = world.host.dir().join("staging");
    assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
    mount.resize(96);
    world.host.await_serving(&next);
}
