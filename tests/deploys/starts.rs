//! What is wrong with the host ends the start with 78, says what it is, and changes nothing.

use std::fs;
use std::os::unix::fs::symlink;

use nix::unistd::geteuid;
use towline_tests::app::Kind;
use towline_tests::mount::Mount;

use super::World;

/// A world with a target that could be deployed, and nothing running.
fn world() -> (World, String) {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    (world, good)
}

/// Starts the agent in vain; returns what it says.
fn refusal(world: &World) -> String {
    refusal_with(world, 78)
}

/// Starts the agent in vain, for a reason with this exit code.
fn refusal_with(world: &World, expected: i32) -> String {
    let (code, said) = world.host.once();
    assert_eq!(code, expected, "{said}");
    assert!(said.starts_with("error: "), "{said}");
    said
}

#[test]
fn what_is_wrong_with_the_host_ends_the_start_with_78() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    world.host.reconfigure("group = \"web\"", "gruop = \"web\"");
    let (code, said) = world.host.once();
    assert_eq!(code, 78);
    assert!(said.contains("line 1") && said.contains("gruop"), "{said}");
    world.host.reconfigure("gruop = \"web\"", "group = \"web\"");

    if nix::unistd::geteuid().is_root() {
        world.host.reconfigure("user = \"nobody\"", "");
        let (code, said) = world.host.once();
        assert_eq!(code, 78);
        assert!(said.contains("runs as root"), "{said}");
        world.host.reconfigure("pass_env", "user = \"nobody\"\npass_env");
    }
    let dir = world.host.dir();
    let aside = dir.with_extension("aside");
    fs::rename(&dir, &aside).unwrap();
    let (code, said) = world.host.once();
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("could not use the directory"), "{said}");
    assert!(!dir.exists(), "a directory that is missing is not made");
    fs::rename(&aside, &dir).unwrap();
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn recipes_never_run_as_root() {
    if !geteuid().is_root() {
        return;
    }
    let (mut world, _) = world();
    for (user, said) in [
        ("root", "recipes would run as root"),
        ("no-such-user-here", "no user \"no-such-user-here\""),
    ] {
        world.host.reconfigure("user = \"nobody\"", &format!("user = {user:?}"));
        let refusal = refusal(&world);
        assert!(refusal.contains(said) && refusal.contains("hint: "), "{refusal}");
        assert!(!world.host.dir().join("releases").exists(), "nothing was made");
        world.host.reconfigure(&format!("user = {user:?}"), "user = \"nobody\"");
    }
}

#[test]
fn a_place_that_is_none_ends_the_start() {
    let (mut world, _) = world();
    let dir = world.host.dir();
    let aside = dir.with_extension("aside");
    fs::rename(&dir, &aside).unwrap();
    fs::write(&dir, "").unwrap();
    let said = refusal(&world);
    assert!(said.contains("could not use the directory") && said.contains("ot a dir"), "{said}");
    fs::remove_file(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();

    fs::write(dir.join("releases"), "").unwrap();
    let said = refusal(&world);
    assert!(said.contains(dir.join("releases").to_str().unwrap()), "{said}");
    fs::remove_file(dir.join("releases")).unwrap();

    let target = world.host.target_file();
    let gone = target.with_file_name("gone").join("target.json");
    world.host.reconfigure(&format!("{target:?}"), &format!("{gone:?}"));
    let said = refusal(&world);
    assert!(said.contains(gone.to_str().unwrap()) && said.contains("hint: create"), "{said}");
    world.host.reconfigure(&format!("{gone:?}"), &format!("{target:?}"));
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn what_others_deployed_here_ends_the_start_and_stays() {
    let (world, good) = world();
    let dir = world.host.dir();
    let old = dir.join("releases/20240101120000");
    fs::create_dir_all(&old).unwrap();
    let said = refusal(&world);
    assert!(said.contains("holds 20240101120000, which is not Towline's"), "{said}");
    assert!(said.contains("hint: name an empty directory"), "{said}");
    assert!(old.exists() && !dir.join(".towline").exists(), "nothing was changed");
    fs::remove_dir_all(dir.join("releases")).unwrap();

    let current = dir.join("current");
    for is_dir in [true, false] {
        if is_dir {
            fs::create_dir(&current).unwrap();
        } else {
            symlink("shared", &current).unwrap();
        }
        let said = refusal(&world);
        assert!(said.contains("not a link to a release") && said.contains("hint: move"), "{said}");
        fs::rename(&current, dir.join(format!("aside-{is_dir}"))).unwrap();
    }
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
    assert_eq!(world.host.served(), Some(good));
}

#[test]
fn a_read_only_directory_ends_the_start_and_what_serves_goes_on() {
    let (mut world, good) = world();
    let dir = world.host.dir();
    let Some(mount) = Mount::read_only(&dir) else { return };
    // A disk may get well: it is started again.
    let said = refusal_with(&world, 75);
    let path = dir.join("releases");
    assert!(said.contains(&format!("could not create {}", path.display())), "{said}");
    assert!(said.contains("Read-only") && said.contains("fix its mount"), "{said}");
    drop(mount);
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");

    let next = world.commit_good();
    world.host.target(&next);
    for part in ["", "releases", ".towline"] {
        let mount = Mount::read_only(&dir.join(part)).expect("root could before");
        let said = refusal_with(&world, 75);
        assert!(said.contains("could not write to") && said.contains("fix its mount"), "{said}");
        assert!(said.contains(dir.join(part).to_str().unwrap()), "{said}");
        drop(mount);
        assert_eq!(world.host.served().as_ref(), Some(&good));
    }
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
    assert_eq!(world.host.served().as_ref(), Some(&next));
}

#[test]
fn releases_and_what_they_link_must_share_a_file_system() {
    let (world, _) = world();
    let dir = world.host.dir();
    for name in ["dependencies", "staging", "releases"] {
        let place = dir.join(name);
        fs::create_dir_all(&place).unwrap();
        let Some(mount) = Mount::small(&place, 1) else { return };
        let said = refusal(&world);
        assert!(said.contains("are on two file systems"), "{name}: {said}");
        assert!(said.contains(place.to_str().unwrap()), "{name}: {said}");
        assert!(said.contains("hint: put both on one file system"), "{said}");
        drop(mount);
    }
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_live_release_that_nothing_can_find_or_start_ends_the_start() {
    let (mut world, good) = world();
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
    world.host.kill_app();
    // As an agent with other rules for recipes may have left it.
    let marker = world.host.dir().join("releases").join(format!("{good}.json"));
    let text = fs::read_to_string(&marker).unwrap();
    let without = text.replace("start = [\\\"./bin/start\\\"]\\n", "");
    assert_ne!(text, without, "the recipe has a start command");
    fs::write(&marker, without).unwrap();
    let said = refusal(&world);
    assert!(said.contains(&good[..7]) && said.contains("manager.start"), "{said}");
    assert!(said.contains("hint: remove"), "{said}");
    assert_eq!(world.host.current(), Some(good.clone()));

    // What the hint says helps.
    fs::remove_file(world.host.dir().join("current")).unwrap();
    let next = world.commit_good();
    world.host.target(&next);
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
    assert_eq!(world.host.served(), Some(next));
}

#[test]
fn a_release_of_a_newer_agent_ends_the_start_and_is_kept() {
    let (mut world, good) = world();
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
    let marker = world.host.dir().join("releases").join(format!("{good}.json"));
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let next = world.commit_good();
    world.host.target(&next);
    let said = refusal(&world);
    assert!(said.contains("was written by a newer agent (version 2)"), "{said}");
    assert!(said.contains("hint: install that agent again"), "{said}");
    assert_eq!(world.host.current(), Some(good.clone()));
    assert_eq!(world.host.served(), Some(good));
    fs::write(&marker, text).unwrap();
    let (code, said) = world.host.once();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_second_agent_says_to_try_later() {
    let (world, good) = World::serving(Kind::Plain);
    let (code, said) = world.host.once();
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("another agent runs") && said.contains("hint: end"), "{said}");
    assert_eq!(world.host.served(), Some(good));
}
