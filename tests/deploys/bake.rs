//! `bake`: an image is filled, and what boots from it serves, whatever is down.

use std::fs;

use towline_tests::app::Kind;
use towline_tests::host::Host;
use towline_tests::origin::Fault;

use super::World;
use super::failures::with_install;

/// Bakes; returns the exit code and what was said.
fn bake(host: &Host, arguments: &[&str]) -> (i32, String) {
    let output = host.command("bake").args(arguments).output().expect("the agent was built");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn what_boots_from_an_image_serves_what_was_baked_when_git_and_coordinator_are_down() {
    let mut world = World::new(Kind::Plain);
    // Nobody listens there.
    let away = ["https://127.0.0.1:1".to_owned()];
    world.host =
        Host::member("i-new", &world.origin.url(&world.repo), &away, "[boot]\ndeadline_s = 4\n");
    let baked = with_install(&mut world, "mkdir made && echo x >made/x");
    // An agent has run on the builder before, from an earlier image.
    let state = world.host.dir().join(".towline");
    fs::create_dir(&state).unwrap();
    for name in ["token", "status.json", "journal.json", "journal.json.new", "contact.json"] {
        fs::write(state.join(name), "{}").unwrap();
    }
    let (code, said) = bake(&world.host, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("baked {baked} into")), "the tip of the branch: {said}");
    assert!(said.contains("install installed"), "{said}");
    assert_eq!(world.host.current().as_ref(), Some(&baked));
    assert!(world.host.processes("").is_empty(), "nothing was started");
    let mut left: Vec<String> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| !matches!(name.as_str(), "git" | "lock" | "sizes.json" | "sizes.json.new"));
    assert!(left.is_empty(), "no identity is left: {left:?}");

    world.origin.fail(Fault::Down);
    world.host.run();
    let status = world.host.await_serving(&baked);
    let reason = status["degraded"].as_str().unwrap();
    assert!(reason.contains("there is no target"), "{reason}");
    assert_eq!(world.host.served().as_ref(), Some(&baked));
}

#[test]
fn a_revision_can_be_named_and_a_later_bake_takes_its_place() {
    let mut world = World::new(Kind::Plain);
    let first = world.commit_good();
    let second = world.commit_good();
    let (code, said) = bake(&world.host, &[&first]);
    assert!(code == 0 && said.contains(&first), "{said}");
    assert_eq!(world.host.current().as_ref(), Some(&first));
    let (code, said) = bake(&world.host, &[]);
    assert!(code == 0 && said.contains(&second), "{said}");
    assert_eq!(world.host.current().as_ref(), Some(&second));
    let packs = world.origin.packs();
    let (code, said) = bake(&world.host, &[&second]);
    assert!(code == 0 && said.contains("it was there already"), "{said}");
    assert_eq!(world.origin.packs(), packs, "nothing is fetched twice");
    // What is told goes before what is baked.
    world.host.target(&first);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    assert_eq!(world.host.served().as_ref(), Some(&first));
}

#[test]
fn a_bake_that_cannot_be_changes_nothing_and_says_whether_to_try_again() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    let (code, said) = bake(&world.host, &[&good]);
    assert_eq!(code, 0, "{said}");
    let kept = |world: &World, (code, said): (i32, String), expected: i32, words: &str| {
        assert!(code == expected && said.contains(words), "{words}: {code}: {said}");
        assert_eq!(world.host.current().as_ref(), Some(&good), "{words}");
    };
    let bad = with_install(&mut world, "exit 3");
    kept(&world, bake(&world.host, &[&bad]), 1, "status 3");
    kept(&world, bake(&world.host, &["main"]), 2, "main");
    world.origin.fail(Fault::Down);
    kept(&world, bake(&world.host, &[]), 75, "could not learn the newest commit");
    let absent = "1".repeat(40);
    kept(&world, bake(&world.host, &[&absent]), 75, "could not fetch");
    world.origin.fail(Fault::None);
    world.host.reconfigure("branch = \"main\"", "branch = \"gone\"");
    kept(&world, bake(&world.host, &[]), 75, "no branch gone");
    world.host.reconfigure("branch = \"gone\"\n", "");
    kept(&world, bake(&world.host, &[]), 78, "git.branch is not set");
    world.host.reconfigure("allow_http = true\n", "allow_http = true\nbranch = \"main\"\n");

    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    kept(&world, bake(&world.host, &[&good]), 75, "another agent runs");
    assert!(world.host.terminate().success());
    // The app outlives its agent, and its instance is no image.
    kept(&world, bake(&world.host, &[&good]), 1, "runs here");
    assert!(world.host.dir().join(".towline/journal.json").exists(), "nothing is forgotten");
    assert_eq!(world.host.served().as_ref(), Some(&good));
}
