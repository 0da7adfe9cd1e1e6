//! The app's start command: not contained, and yet looked after.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use towline_agent::process::{Exit, end_leftovers, launch};

use super::{line, lives, nobody, pid_in, run_as, sh, until};

#[tokio::test]
async fn a_launched_app_lives_on_and_is_reaped_when_it_ends() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("launch"));
    let log = dir.path().join("app.log");
    fs::write(&log, "before\n").unwrap();
    let command = sh(
        "env; echo $$ > pid; cat; while [ ! -e go ]; do sleep 0.01; done; echo after >&2; exit 7",
    );
    let app = launch(&command, dir.path(), &run_as, &log).await.unwrap();
    let pid = pid_in(&dir.path().join("pid")).await;
    assert_eq!((app.exited(), app.pid()), (None, pid));
    assert_eq!(end_leftovers(&run_as.tag, run_as.cgroups.as_ref()).await, 0, "it is no leftover");
    assert!(lives(pid));

    fs::write(dir.path().join("go"), "").unwrap();
    until("its end", || app.exited().is_some()).await;
    assert_eq!(app.exited(), Some(Exit::Code(7)));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "no zombie is left");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("before\n") && text.ends_with("after\n"), "{text}");
    assert!(!text.contains("TOWLINE"), "{text}");
    assert!(text.contains(&format!("PWD={}\n", dir.path().display())), "{text}");
    assert_eq!(app.end(Duration::ZERO).await, 0, "nothing is left to be ended");
}

#[tokio::test]
async fn a_start_that_failed_is_ended_with_its_session() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("launch-end"));
    let log = dir.path().join("app.log");
    // The command itself is gone; what it left in the session ignores TERM.
    let command = sh("(trap '' TERM; sh -c 'echo $$ > pid; exec sleep 1000' & ) ; exit 0");
    let app = launch(&command, dir.path(), &run_as, &log).await.unwrap();
    let pid = pid_in(&dir.path().join("pid")).await;
    until("the command's end", || app.exited() == Some(Exit::Code(0))).await;
    assert!(lives(pid));
    assert_eq!(app.end(Duration::from_millis(50)).await, 1);
    assert!(!lives(pid));
}

#[tokio::test]
async fn dropping_what_was_launched_changes_nothing_for_the_app() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("launch-drop"));
    let command = line(&["sleep", "1000"]);
    let app = launch(&command, dir.path(), &run_as, &dir.path().join("log")).await.unwrap();
    let pid = app.pid();
    drop(app);
    assert!(lives(pid));
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    until("no zombie", || !Path::new(&format!("/proc/{pid}")).exists()).await;
}

#[tokio::test]
async fn as_root_the_log_file_belongs_to_the_app() {
    let Some(run_as) = nobody("launch-nobody") else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let log = dir.path().join("app.log");
    let app = launch(&line(&["id", "-u"]), dir.path(), &run_as, &log).await.unwrap();
    until("its end", || app.exited().is_some()).await;
    let account = run_as.account.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("{}\n", account.uid));
    let found = fs::metadata(&log).unwrap();
    assert_eq!((found.uid(), found.gid()), (account.uid, account.gid));
}
