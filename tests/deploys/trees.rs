//! Trees that are refused, each with its path and what to do instead.

use towline_tests::app::Kind;

use super::World;

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
