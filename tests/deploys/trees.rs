//! Trees that are refused, each with its path and what to do instead.

use towline_tests::app::Kind;

use super::{World, replace};

#[test]
fn hostile_trees_are_refused_with_their_path_and_nothing_is_written() {
    let (mut world, good) = World::serving(Kind::Plain);
    let repo = world.repo.clone();
    let blob = repo.blob(b"x");
    let recipe = world.files().into_iter().find(|(path, _, _)| path == "towline.toml");
    let recipe = repo.blob(&recipe.expect("the app has one").1);
    let pointer = repo.blob(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    let absolute = repo.blob(b"/etc/passwd");
    let far = repo.blob(b"bin/../../x");
    let climbing = repo.blob(b"../../x");
    let inner = repo.raw_tree(&[("100644", b"config", &blob)]);
    // Ten entries in each of ten levels: 10^10 paths in a few hundred bytes.
    let mut bomb = repo.raw_tree(&[("100644", b"f", &blob)]);
    for _ in 0..10 {
        let names: Vec<String> = (0..10).map(|number| format!("d{number}")).collect();
        let entries: Vec<_> =
            names.iter().map(|name| ("40000", name.as_bytes(), bomb.as_str())).collect();
        bomb = repo.raw_tree(&entries);
    }
    let cases: Vec<(&str, &[u8], &str, &str)> = vec![
        ("40000", b".GIT", &inner, ".GIT is a way to write .git"),
        ("40000", b"git~1", &inner, "git~1 is a way to write .git"),
        ("100644", b"a\x1b[31m", &blob, "control characters"),
        ("100644", b"a\nb", &blob, "control characters"),
        ("100644", b"a\x7f", &blob, "control characters"),
        ("40000", b"a\tb", &inner, "control characters"),
        ("40000", b"..", &inner, ".. is no name of a file"),
        ("40000", b".", &inner, ". is no name of a file"),
        ("100644", b"../../web.toml", &blob, "../../web.toml is no name of a file"),
        ("100644", b"/etc/cron.d/x", &blob, "/etc/cron.d/x is no name of a file"),
        ("100644", b"bin/x", &blob, "bin/x is no name of a file"),
        ("100644", &[b'n'; 256], &blob, "a name of more than 255 bytes"),
        ("104755", b"root", &blob, "has the mode 104755"),
        ("120000", b"start", &far, "outside of the release"),
        ("160000", b"sub", &good, "is a submodule"),
        ("100644", b"large.bin", &pointer, "is an LFS pointer"),
        ("120000", b"passwd", &absolute, "outside of the release"),
        ("120000", b"up", &climbing, "outside of the release"),
        ("100644", b".towline-revision", &blob, "reserved name"),
        ("40000", b"lib", &inner, "lib is in its folder twice"),
        ("40000", b"bomb", &bomb, "is entry number 200001"),
    ];
    for (mode, name, id, said) in cases {
        let mut entries = vec![(mode, name, id), ("100644", &b"towline.toml"[..], &recipe)];
        if said.contains("twice") {
            // A link of the same name would lead elsewhere what is below the folder.
            entries.push(("120000", name, &blob));
        }
        entries.sort_by(|one, other| one.1.cmp(other.1));
        let commit = repo.commit_tree(&repo.raw_tree(&entries), None);
        world.host.target(&commit);
        let status = world
            .host
            .await_status(said, |status| status["failure"]["revision"] == commit.as_str());
        assert_eq!(status["failure"]["cause"], "refused", "{said}: {status:#}");
        let detail = status["failure"]["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{detail}");
        assert!(!world.host.dir().join("releases").join(&commit).exists());
    }
    assert_eq!(world.host.served().as_ref(), Some(&good));
}

/// What lies in the way: a mode, a name, and an id of the object.
type Entry<'a> = (&'a str, &'a str, &'a str);

/// Commits the app with further entries at its top, and with its recipe changed.
fn commit(world: &mut World, more: &[Entry<'_>], from: &str, to: &str) -> String {
    world.commit_with(|files| {
        let recipe = files.iter().find(|(path, _, _)| path == "towline.toml");
        let text = String::from_utf8_lossy(&recipe.expect("the app has one").1).into_owned();
        assert!(text.contains(from), "{from} is in the recipe");
        replace(files, "towline.toml", &text.replace(from, to));
    });
    let mut list = world.repo.git(&["ls-tree", "main"], b"") + "\n";
    for (mode, name, id) in more {
        let kind = if *mode == "040000" { "tree" } else { "blob" };
        list.push_str(&format!("{mode} {kind} {id}\t{name}\n"));
    }
    let tree = world.repo.git(&["mktree", "--missing"], list.as_bytes());
    world.repo.commit_tree(&tree, None)
}

#[test]
fn nothing_leads_out_through_what_is_no_folder() {
    let (mut world, good) = World::serving(Kind::Plain);
    let repo = world.repo.clone();
    // Each of the two stays inside by its own words.
    let up = repo.blob(b"../..");
    let inner = repo.raw_tree(&[("40000", b"b", &repo.raw_tree(&[("120000", b"up", &up)]))]);
    let through = repo.blob(b"a/b/up/../../x");
    let shared = repo.blob(b"run/../x");
    let to_run = repo.blob(b"run");
    let to_bin = repo.blob(b"bin");
    let run = "dirs = [\"run\"]";
    let install =
        "[install]\ncommand = [\"true\"]\ninputs = [\"master.js\"]\noutputs = [\"a/x\"]\n[manager]";
    let cases: [(&[Entry<'_>], &str, &str, &str); 5] = [
        (
            &[("040000", "a", &inner), ("120000", "l", &through)],
            run,
            run,
            "l is a link to a/b/up/../../x, which climbs from a/b/up",
        ),
        (&[("120000", "l", &shared)], run, run, "l is a link to run/../x, which climbs from run"),
        (
            &[("120000", "a", &to_run)],
            run,
            "dirs = [\"run\", \"a/x/y\"]",
            "a is no folder, and the recipe puts a/x/y below it",
        ),
        (
            &[],
            run,
            "dirs = [\"run\", \"master.js/x\"]",
            "master.js is no folder, and the recipe puts master.js/x below it",
        ),
        (
            &[("120000", "a", &to_bin)],
            "[manager]",
            install,
            "a is no folder, and the recipe puts a/x below it",
        ),
    ];
    for (more, from, to, said) in cases {
        let commit = commit(&mut world, more, from, to);
        world.host.target(&commit);
        let status = world.host.await_status(said, |status| {
            status["failure"]["revision"] == commit.as_str() || status["serving"] == commit.as_str()
        });
        let detail = status["failure"]["detail"].as_str().unwrap_or("nothing is wrong with it");
        assert!(detail.contains(said), "{said}: {detail}");
        assert_eq!(status["failure"]["cause"], "refused", "{detail}");
        assert!(!world.host.dir().join("releases").join(&commit).exists());
    }
    assert_eq!(world.host.served().as_ref(), Some(&good));
}
