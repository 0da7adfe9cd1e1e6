//! `try`: a release of a checkout, prepared as for a deploy, with nothing swapped and nothing left.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;
use towline_tests::app::{self, Kind};

use super::amend;

/// A checkout with the app committed, and a place for what is made of it.
struct Developer {
    dir: TempDir,
    scratch: TempDir,
}

impl Developer {
    fn new(edit: impl FnOnce(&mut Vec<(String, Vec<u8>, bool)>)) -> Self {
        let open = || {
            let dir = tempfile::tempdir().expect("the test's own");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
                .expect("the test's own");
            dir
        };
        let developer = Self { dir: open(), scratch: open() };
        let mut files = app::files(Kind::Plain, 1);
        let install = "[install]\ncommand = [\"sh\", \"-c\", \"cat lock; mkdir made; echo $ROOM >made/x\"]\n\
                       inputs = [\"lock\"]\noutputs = [\"made\"]\n\n[manager]";
        amend(&mut files, "towline.toml", "[manager]", install);
        files.push(("lock".to_owned(), b"1\n".to_vec(), false));
        edit(&mut files);
        for (path, content, is_program) in &files {
            let place = developer.dir.path().join(path);
            fs::create_dir_all(place.parent().expect("the test's own")).expect("the test's own");
            fs::write(&place, content).expect("the test's own");
            let mode = if *is_program { 0o755 } else { 0o644 };
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).expect("the test's own");
        }
        developer.git(&["init", "-q", "-b", "main"]);
        developer.git(&["add", "-A"]);
        developer.git(&["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "All of it"]);
        developer
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git").args(arguments).current_dir(self.dir.path()).output();
        let output = output.expect("git is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Tries it; returns the exit code and what was said. Nothing is left, save what is to be kept.
    fn try_out(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(towline_tests::host::agent());
        command.arg("try").arg(self.dir.path()).args(arguments);
        if geteuid().is_root() && !arguments.contains(&"--user") {
            command.args(["--user", "nobody"]);
        }
        command.env("TMPDIR", self.scratch.path()).env("ROOM", "101");
        let before = names(self.dir.path());
        let output = command.output().expect("the agent was built");
        assert_eq!(names(self.dir.path()), before);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("the test's own")
        .map(|entry| entry.expect("the test's own").file_name())
        .collect();
    names.sort();
    names
}

#[test]
fn a_checkout_is_prepared_as_a_deploy_would_and_nothing_is_left() {
    let developer = Developer::new(|_| {});
    let head = developer.git(&["rev-parse", "HEAD"]);
    let (code, said) = developer.try_out(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with(&format!("{} \"All of it\"", &head[..7])), "{said}");
    assert!(said.contains("install installed; prepared in"), "{said}");
    assert!(!said.contains("not tried"), "{said}");
    assert!(names(developer.scratch.path()).is_empty());
    assert_eq!(developer.git(&["status", "--porcelain"]), "");
}

#[test]
fn the_release_can_be_kept_and_is_what_was_committed() {
    let developer = Developer::new(|_| {});
    let head = developer.git(&["rev-parse", "HEAD"]);
    fs::write(developer.dir.path().join("lock"), "2\n").unwrap();
    fs::write(developer.dir.path().join("new"), "").unwrap();
    let keep = developer.scratch.path().join("kept");
    let place = keep.display().to_string();
    let (code, said) = developer.try_out(&["--keep", &place, "--pass-env", "ROOM"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("not tried: 2 files"), "{said}");
    let release = keep.join("releases").join(&head);
    assert!(said.contains(&format!("kept in {}", release.display())), "{said}");
    let read = |path: &str| fs::read_to_string(release.join(path)).unwrap();
    assert_eq!((read("lock"), read("made/x")), ("1\n".to_owned(), "101\n".to_owned()));
    assert_eq!(read(".towline-revision"), format!("{head}\n"));
    assert!(!release.join("new").exists() && !keep.join("current").exists());
    if geteuid().is_root() {
        let meta = fs::metadata(release.join("made/x")).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o444), "sealed");
    }
    let (code, said) = developer.try_out(&["--keep", &place]);
    assert!(code == 1 && said.contains("not there yet"), "{said}");
}

#[test]
fn what_a_deploy_would_refuse_is_told_with_what_its_commands_said() {
    let command = "echo first; echo error: no such package >&2; exit 3";
    let failing = |files: &mut Vec<_>| {
        amend(files, "towline.toml", "cat lock; mkdir made; echo $ROOM >made/x", command);
    };
    let developer = Developer::new(failing);
    let (code, said) = developer.try_out(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("install:\nfirst\nerror: no such package"), "{said}");
    assert!(said.contains("could not install the dependencies"), "{said}");
    assert!(names(developer.scratch.path()).is_empty());

    let developer = Developer::new(|files| {
        files.retain(|(path, _, _)| path != "towline.toml");
    });
    let (code, said) = developer.try_out(&[]);
    assert!(code == 1 && said.contains("has no recipe towline.toml"), "{said}");
    assert!(names(developer.scratch.path()).is_empty());

    let developer = Developer::new(|_| {});
    std::os::unix::fs::symlink("/etc", developer.dir.path().join("etc")).unwrap();
    developer.git(&["add", "-A"]);
    developer.git(&["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "A link"]);
    let (code, said) = developer.try_out(&[]);
    assert!(code == 1 && said.contains("outside of the release"), "{said}");
    assert!(names(developer.scratch.path()).is_empty());
}

#[test]
fn nothing_that_a_checkouts_own_configuration_names_is_run() {
    let developer = Developer::new(|_| {});
    let dir = developer.dir.path();
    let proof = developer.scratch.path().join("ran");
    let clean = format!("sh -c \"touch {}; cat\"", proof.display());
    fs::write(dir.join(".git/info/attributes"), "* filter=odd\n").unwrap();
    let set = |name: &str, value: &str| {
        let set = std::process::Command::new("git")
            .args(["config", name, value])
            .current_dir(dir)
            .status();
        assert!(set.unwrap().success());
    };
    set("filter.odd.clean", &clean);
    set("core.fsmonitor", &clean);
    // Of another time than the index has it, so that a look would compare what is in it.
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_file() {
            let file = fs::File::open(entry.path()).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
    }
    let (code, said) = developer.try_out(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(!proof.exists(), "the filter was run: {said}");
}

#[test]
fn what_is_no_checkout_or_nobodys_to_run_is_told() {
    let developer = Developer::new(|_| {});
    if geteuid().is_root() {
        let (code, said) = developer.try_out(&["--user", "root"]);
        assert!(code == 78 && said.contains("as root"), "{said}");
    }
    fs::remove_dir_all(developer.dir.path().join(".git")).unwrap();
    let (code, said) = developer.try_out(&[]);
    assert!(code == 1 && said.contains("could not read the checkout"), "{said}");
    assert!(names(developer.scratch.path()).is_empty());
    let (code, said) = developer.try_out(&["--config", "/no/such.toml"]);
    assert!(code == 78 && said.contains("could not read the config"), "{said}");
}
