//! `[build]`: what is built of the release's own tree, once for each content.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// An app with dependencies, and something that is built with them. Each build leaves a line in `built`.
fn built(world: &World) -> impl Fn(&mut Files) + use<> {
    let run = world.shared_run();
    move |files| {
        let run = run.display();
        let install = "[install]\ncommand = [\"sh\", \"-c\", \"mkdir -p node_modules/tool && echo one > \
                       node_modules/tool/index.js\"]\ninputs = [\"lock.txt\"]\noutputs = [\"node_modules\"]";
        add(files, install);
        add(files, "[build]\ncommand = [\"./bin/build\"]\noutputs = [\"dist\"]");
        replace(files, "lock.txt", "1");
        // The tree is its own, and the dependencies are there; those may have something put beside them, as
        // tools do, and not be changed.
        let build = format!(
            "echo built >>{run}/built\n[ ! -e .towline-revision ]\ntouch master.js scratch node_modules/.cache\n\
             case $HOME in */staging/*) ;; *) exit 3 ;; esac\n\
             if [ \"$(id -un)\" = nobody ]; then\n  ! (echo two >node_modules/tool/index.js) 2>/dev/null\n  \
             ! chmod u+w node_modules/tool/index.js 2>/dev/null\nfi\nmkdir dist\n\
             cat node_modules/tool/index.js source.txt >dist/app.txt"
        );
        script(files, "build", &build);
    }
}

#[test]
fn what_is_built_is_kept_and_used_again_for_the_same_content() {
    let mut world = World::new(Kind::Plain);
    let edit = built(&world);
    let commit = |world: &mut World, source: &str, readme: &str| {
        world.commit_with(|files| {
            edit(files);
            // The folder is the release: what lies beside it is another matter.
            files.retain(|(path, _, _)| path != "parent.txt");
            replace(files, "source.txt", source);
            let recipe = files.iter().position(|(path, _, _)| path == "towline.toml");
            let (_, recipe, _) = files.remove(recipe.expect("it has one"));
            for (path, _, _) in files.iter_mut() {
                *path = format!("web/{path}");
            }
            let recipe = format!("root = \"web\"\n{}", String::from_utf8_lossy(&recipe));
            replace(files, "towline.toml", &recipe);
            replace(files, "readme.txt", readme);
        })
    };
    let first = commit(&mut world, "a", "1");
    world.host.target(&first);
    world.host.run();
    world.host.await_serving(&first);
    let app = |world: &World, revision: &str| {
        std::fs::read_to_string(world.release(revision).join("dist/app.txt")).unwrap()
    };
    assert_eq!(app(&world, &first), "one\na");
    let release = world.release(&first);
    assert!(!release.join("scratch").exists(), "only outputs are kept");
    assert!(
        !release.join("node_modules/.cache").exists(),
        "and nothing is put into what is shared"
    );
    let tool = std::fs::metadata(release.join("node_modules/tool/index.js")).unwrap();
    let made = std::fs::metadata(release.join("dist/app.txt")).unwrap();
    if made.uid() == 0 {
        let modes = [&tool, &made].map(|file| (file.uid(), file.permissions().mode() & 0o777));
        assert_eq!(modes, [(0, 0o444); 2], "sealed");
    }

    let second = commit(&mut world, "b", "1");
    world.deploy(&second);
    assert_eq!(app(&world, &second), "one\nb");
    assert_eq!(world.written("built").len(), 2, "another content is built");

    // Back to the content of the first, by another commit: a revert.
    let third = commit(&mut world, "a", "2");
    world.deploy(&third);
    assert_eq!(app(&world, &third), "one\na");
    assert_eq!(world.written("built").len(), 2, "it was built before");
    assert!(world.host.log().contains("\"build\":\"reused\""));
}

#[test]
fn a_build_that_fails_or_makes_what_is_there_touches_nothing_live() {
    let mut world = World::new(Kind::Plain);
    let edit = built(&world);
    let with = |edit: &dyn Fn(&mut Files), then: &dyn Fn(&mut Files), world: &mut World| {
        world.commit_with(|files| {
            edit(files);
            replace(files, "source.txt", "a");
            then(files);
        })
    };
    let good = with(&edit, &|_| {}, &mut world);
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let bad =
        with(&edit, &|files| script(files, "build", "echo no such module; exit 3"), &mut world);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "install", "{failure}");
    let detail = failure["detail"].as_str().unwrap();
    assert!(
        detail.contains("could not build the release") && detail.contains("no such module"),
        "{detail}"
    );
    let there = with(&edit, &|files| replace(files, "dist/app.txt", "old"), &mut world);
    let failure = world.fail(&there);
    assert_eq!(failure["cause"], "refused", "{failure}");
    assert!(failure["detail"].as_str().unwrap().contains("dist is in the repository"), "{failure}");
    let none = with(&edit, &|files| script(files, "build", "mkdir other"), &mut world);
    let failure = world.fail(&none);
    assert!(
        failure["detail"].as_str().unwrap().contains("the build command made no dist"),
        "{failure}"
    );
    let leads_out = "mkdir dist; ln -s /etc/passwd dist/x";
    let out = with(&edit, &|files| script(files, "build", leads_out), &mut world);
    let failure = world.fail(&out);
    assert_eq!(failure["cause"], "refused", "{failure}");
    assert_eq!(world.host.served(), Some(good));
    let left = std::fs::read_dir(world.host.dir().join("staging")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of them");
}
