//! Check-out: a release on disk is the tree, byte for byte and mode for mode.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use towline_tests::app::Kind;
use towline_tests::host::Host;

use super::World;

/// Every attribute that has git write other bytes than it was given, or leave files out.
const ATTRIBUTES: &str = "* text eol=crlf\n*.raw filter=lfs diff=lfs merge=lfs -text\nhidden.txt \
                          export-ignore\nstamp.txt export-subst\nident.txt \
                          ident\nwide.txt working-tree-encoding=UTF-16\nhidden export-ignore\n";

/// What a path holds: its kind and mode, and its bytes, or where it leads.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Dir(u32),
    File(u32, Vec<u8>),
    Link(Vec<u8>),
}

/// Files that invite to be rewritten: path, content, and whether it is executable.
fn awkward() -> Vec<(String, Vec<u8>, bool)> {
    let long: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
    let files: Vec<(&str, &[u8], bool)> = vec![
        (".gitattributes", ATTRIBUTES.as_bytes(), false),
        (".gitignore", b"*.txt\nhidden\n", false),
        ("below/.gitattributes", b"* eol=crlf ident\n", false),
        ("below/lf.txt", b"$Id$\nb\n", false),
        ("lf.txt", b"a\nb\n", false),
        ("crlf.txt", b"a\r\nb\r\n", false),
        ("mixed.txt", b"a\r\nb\nc\rd", false),
        ("no newline at the end.txt", b"a\nb", false),
        ("nul.txt", b"\0a\n\0\r\n\0", false),
        ("bom.txt", b"\xef\xbb\xbfa\n", false),
        ("empty", b"", false),
        ("empty script", b"", true),
        ("tool.sh", b"#!/bin/sh\nexit 0\n", true),
        ("hidden.txt", b"left out by an export\n", false),
        ("hidden/inner.txt", b"likewise\n", false),
        ("stamp.txt", b"$Format:%H %an$\n", false),
        ("ident.txt", b"$Id$ $Id: 0123 $\n", false),
        ("wide.txt", b"h\xc3\xb6\n", false),
        ("no pointer.raw", b"version 2 of this\nsize 3\n", false),
        ("all bytes.raw", &long, false),
        ("gr\u{f6}\u{df}e/\u{2603} \u{1f6a2}.txt", b"far\n", false),
        ("  spaces  ", b"s\n", false),
        ("-rf", b"o\n", false),
        ("--upload-pack=x", b"o\n", false),
        ("back\\slash", b"b\n", false),
        ("star*?[a]$(x)`y`'", b"g\n", false),
    ];
    files.into_iter().map(|(path, content, mode)| (path.to_owned(), content.into(), mode)).collect()
}

/// Everything below `dir`, links not followed.
fn walk(dir: &Path, prefix: &[u8], found: &mut BTreeMap<Vec<u8>, Found>) {
    for entry in fs::read_dir(dir).expect("the release was made") {
        let entry = entry.expect("it can be read");
        let path = [prefix, entry.file_name().as_bytes()].concat();
        let meta = entry.metadata().expect("it is there");
        let mode = meta.permissions().mode() & 0o7777;
        assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw(), "{}", path.escape_ascii());
        let kind = if meta.is_dir() {
            walk(&entry.path(), &[&path[..], b"/"].concat(), found);
            Found::Dir(mode)
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path()).expect("it is a link");
            Found::Link(target.as_os_str().as_bytes().to_vec())
        } else {
            Found::File(mode, fs::read(entry.path()).expect("it is ours"))
        };
        found.insert(path, kind);
    }
}

/// What these files are on disk, with the folders that they stand in.
fn expected(files: &[(String, Vec<u8>, bool)]) -> BTreeMap<Vec<u8>, Found> {
    let mut expected = BTreeMap::new();
    for (path, content, executable) in files {
        let mode = if *executable { 0o755 } else { 0o644 };
        for dir in Path::new(path).ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            expected.insert(dir.as_os_str().as_bytes().to_vec(), Found::Dir(0o755));
        }
        expected.insert(path.as_bytes().to_vec(), Found::File(mode, content.clone()));
    }
    expected
}

/// Applies the target with an umask that leaves nothing to others.
fn once_in_private(host: &Host) -> (i32, String) {
    let once = host.command("once");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$0\" \"$@\" --log json"]).arg(once.get_program());
    let output = shell.args(once.get_args()).output().expect("there is a shell");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), log)
}

#[test]
fn a_release_has_the_bytes_and_the_modes_of_its_tree() {
    let mut world = World::new(Kind::Plain);
    let mut files = Vec::new();
    world.commit_with(|own| {
        own.extend(awkward());
        files.clone_from(own);
    });
    let repo = &world.repo;
    let mut expected = expected(&files);
    // What can be no name of a file in this code: links, and a name that is no UTF-8.
    let mut list = repo.git(&["ls-tree", "main"], b"");
    let latin = repo.blob(b"l\n");
    list.push_str(&format!("\n100644 blob {latin}\t\"\\351t\\351\"\n"));
    expected.insert(b"\xe9t\xe9".to_vec(), Found::File(0o644, b"l\n".to_vec()));
    for (path, target) in
        [("link", "below/../lf.txt"), ("to a folder", "gr\u{f6}\u{df}e"), ("to nowhere", "gone")]
    {
        list.push_str(&format!("120000 blob {}\t{path}\n", repo.blob(target.as_bytes())));
        expected.insert(path.as_bytes().to_vec(), Found::Link(target.as_bytes().to_vec()));
    }
    let tree = repo.git(&["mktree"], list.as_bytes());
    let commit = repo.commit_tree(&tree, None);
    // What a release has besides its tree.
    let name = Found::File(0o644, format!("{commit}\n").into_bytes());
    expected.insert(b".towline-revision".to_vec(), name);
    let run = world.host.dir().join("shared/run").as_os_str().as_bytes().to_vec();
    expected.insert(b"run".to_vec(), Found::Link(run));

    world.host.target(&commit);
    let (code, log) = once_in_private(&world.host);
    let mut found = BTreeMap::new();
    walk(&world.host.dir().join("releases").join(&commit), b"", &mut found);
    for (path, wanted) in &expected {
        let shown = path.escape_ascii();
        assert!(found.remove(path).as_ref() == Some(wanted), "{shown} is not what was committed");
    }
    let more: Vec<String> = found.keys().map(|path| path.escape_ascii().to_string()).collect();
    assert!(more.is_empty(), "nobody committed {more:?}");
    assert_eq!(code, 0, "{log}");
}
