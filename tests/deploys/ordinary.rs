//! What happens every day: first start, a code-only release, a lock file's change, nothing new.

use towline_tests::app::Kind;

use super::World;

#[test]
fn the_first_start_and_a_code_only_release() {
    let (mut world, first) = World::serving(Kind::Plain);
    assert_eq!(world.host.served().as_ref(), Some(&first));
    let second = world.commit_good();
    world.host.target(&second);
    let status = world.host.await_serving(&second);
    assert_eq!(status["evidence"], "served");
    assert_eq!(world.host.served().as_ref(), Some(&second));
}

#[test]
fn an_unchanged_subtree_swaps_nothing() {
    let mut world = World::new(Kind::Plain);
    let in_folder = |files: &mut Vec<(String, Vec<u8>, bool)>| {
        let mut recipe = Vec::new();
        for (path, content, _) in files.iter_mut() {
            if path == "towline.toml" {
                recipe = [b"root = \"services/web\"\n".as_slice(), content].concat();
            }
            if path != "parent.txt" {
                *path = format!("services/web/{path}");
            }
        }
        files.push(("towline.toml".to_owned(), recipe, false));
    };
    let first = world.commit_with(in_folder);
    world.host.target(&first);
    world.host.run();
    world.host.await_serving(&first);
    let pids = world.host.processes("server.js");
    let second = world.commit_with(in_folder);
    world.host.target(&second);
    let status = world.host.await_status("the revision to be found alike", |status| {
        status["alike"] == second.as_str() && status["phase"] == "idle"
    });
    assert_eq!(status["serving"], first.as_str());
    assert_eq!(world.host.processes("server.js"), pids, "nothing was reloaded");
}

/// The lock file's own install, so this one needs a registry, or npm's cache of it.
#[test]
fn dependencies_are_reused_until_the_lock_file_changes() {
    let (mut world, _) = World::serving(Kind::Express);
    let trees = |world: &World| {
        let dir = world.host.dir().join("dependencies");
        std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count()
    };
    assert_eq!(trees(&world), 1);
    let second = world.commit_good();
    world.host.target(&second);
    world.host.await_serving(&second);
    assert_eq!(trees(&world), 1, "reused");
    assert!(world.host.log().contains("\"install\":\"reused\""));
    let third = world.commit_with(|files| {
        let lock = files.iter_mut().find(|(path, _, _)| path == "package-lock.json").unwrap();
        lock.1.push(b'\n');
    });
    world.host.target(&third);
    world.host.await_serving(&third);
    assert_eq!(trees(&world), 2, "another key");
}
