//! The limits of a tree, one by one: what is at a limit is served, what is one above it is refused.

use std::collections::BTreeSet;
use std::fs;

use towline_tests::app::Kind;

use super::World;

const ENTRIES: usize = 24;
const DEPTH: usize = 3;
const PATH_BYTES: usize = 40;
const BYTES: usize = 2 << 20;
const FILE_BYTES: usize = 1 << 20;

type Files = Vec<(String, Vec<u8>, bool)>;

fn world() -> World {
    let limits = format!(
        "[limits]\nentries = {ENTRIES}\ndepth = {DEPTH}\npath_bytes = {PATH_BYTES}\ntree_mib = 2\n\
         file_mib = 1\n"
    );
    World::with(Kind::Plain, "branch = \"main\"\n", &limits)
}

fn add(files: &mut Files, path: impl Into<String>, bytes: usize) {
    files.push((path.into(), vec![b'x'; bytes], false));
}

/// How many entries these files make, with the folders that they stand in.
fn entries(files: &Files) -> usize {
    let ancestors = files.iter().flat_map(|(path, _, _)| std::path::Path::new(path).ancestors());
    // The last ancestor of each is the tree itself.
    ancestors.collect::<BTreeSet<_>>().len() - 1
}

/// Adds files until the tree has so many entries.
fn fill(files: &mut Files, count: usize) {
    for number in entries(files)..count {
        add(files, format!("fill{number}"), 0);
    }
    assert_eq!(entries(files), count);
}

/// Adds what brings all files to so many bytes: one as large as a file may be, and the rest.
fn weigh(files: &mut Files, bytes: usize) {
    add(files, "large", FILE_BYTES);
    let own: usize = files.iter().map(|(_, content, _)| content.len()).sum();
    add(files, "weight", bytes - own);
}

fn nested(folders: usize) -> String {
    "d/".repeat(folders) + "f"
}

/// Everything of the app's directory but what the agent keeps for itself and what is logged.
fn on_disk(world: &World) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![world.host.dir()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("it is ours").flatten() {
            let is_own = entry.file_name() == ".towline" || entry.file_name() == "log";
            let kind = entry.file_type().expect("it is there");
            if kind.is_dir() && !is_own {
                dirs.push(entry.path());
            }
            found.insert(format!("{} {:?}", entry.path().display(), kind));
        }
    }
    found
}

#[test]
fn each_limit_holds_to_the_entry_and_to_the_byte() {
    let mut world = world();
    let full = world.commit_with(|files| {
        add(files, nested(DEPTH), 0);
        add(files, "p".repeat(PATH_BYTES), 0);
        weigh(files, BYTES);
        fill(files, ENTRIES);
    });
    world.host.target(&full);
    world.host.run();
    world.host.await_serving(&full);
    let before = on_disk(&world);
    type Edit = fn(&mut Files);
    let cases: [(Edit, &str, &str); 6] = [
        (|files| fill(files, ENTRIES + 1), "is entry number 25", "limits.entries"),
        (
            |files| add(files, nested(DEPTH + 1), 0),
            "d/d/d/d/f is more than 3 folders",
            "limits.depth",
        ),
        (
            |files| add(files, "p".repeat(PATH_BYTES + 1), 0),
            "p is a path of 41 bytes",
            "limits.path_bytes",
        ),
        // The folders count as well.
        (
            |files| add(files, format!("long/{}", "p".repeat(PATH_BYTES - 4)), 0),
            "p is a path of 41 bytes",
            "limits.path_bytes",
        ),
        (|files| weigh(files, BYTES + 1), " brings the tree to 2097153 bytes", "limits.tree_mib"),
        (
            |files| add(files, "large", FILE_BYTES + 1),
            "large has 1048577 bytes, more than 1048576",
            "limits.file_mib",
        ),
    ];
    for (edit, said, limit) in cases {
        let over = world.commit_with(edit);
        world.host.target(&over);
        let status = world.host.await_status(said, |status| {
            status["failure"]["revision"] == over.as_str() && status["phase"] == "idle"
        });
        assert_eq!(status["failure"]["cause"], "refused", "{status:#}");
        assert_eq!(status["failure"]["attempt"], 1, "the same tree gives the same answer");
        let detail = status["failure"]["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{detail}");
        assert!(detail.contains(&format!("raise {limit} in host config")), "{detail}");
        assert_eq!(status["serving"], full.as_str());
        assert_eq!(on_disk(&world), before, "{said}");
    }
    assert_eq!(world.host.current().as_ref(), Some(&full));
    assert_eq!(world.host.served().as_ref(), Some(&full));
}
