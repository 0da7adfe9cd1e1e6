//! A disk that goes bad in the middle, and is well again.
//!
//! ```text
//!   calls 1 … n pass; from there on every call about a file fails ─► holds? ─► the disk is well ─► converged?
//! ```
//!
//! So a disk that is full, read-only or dying is met in the middle of a fetch, of a check-out, of the
//! journal and of the status. What a real one of each does is tried beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::unistd::geteuid;
use towline_tests::host::{self, Host};
use towline_tests::mount::Mount;
use towline_tests::syscalls::{self, Ended, Fate};

use super::{Lane, Source, is_all};

#[test]
fn a_disk_that_goes_bad_in_the_middle_is_told_and_forgiven() {
    let mut source = Source::new();
    let mut lane = Lane::new(&source);
    let (good, next) = (source.good(), source.good());
    lane.host.target(&good);
    assert_eq!(lane.once().0, 0);
    lane.keep("serving");
    let errors = [
        (Errno::EIO, "nput/output error"),
        (Errno::EROFS, "ead-only file system"),
        (Errno::ENOSPC, "o space left on device"),
    ];
    let step = if is_all() { 4 } else { 61 };
    let mut wrong = Vec::new();
    for (index, (errno, said)) in errors.into_iter().enumerate() {
        for from in (3 + index * 19..165).step_by(step) {
            lane.reset("serving");
            lane.host.target(&next);
            let mut command = lane.host.command("once");
            command.args(["--log", "json"]);
            let ran = syscalls::run(&command, &lane.dir(), &mut |number, call| {
                if number >= from && call.is_of_file() { Fate::Fail(errno) } else { Fate::Pass }
            });
            let outcome = if ran.log.contains("panicked") {
                Err("it panics".to_owned())
            } else if !matches!(ran.ended, Ended::Exited(0 | 1 | 75)) {
                // After a 78 nobody starts it again.
                Err("it ends like this".to_owned())
            } else if !ran.log.contains(said) {
                Err(format!("it does not say: {said}"))
            } else if ran.ended == Ended::Exited(0) && lane.host.current().as_ref() != Some(&next) {
                Err("it claims to be done, and is not".to_owned())
            } else {
                lane.holds(&source, &[&good, &next], false)
                    .and_then(|()| lane.recovers(&source, &next, 0))
            };
            if let Err(what) = outcome {
                let call = ran.calls.get(from - 1);
                let log = &ran.log;
                wrong.push(format!(
                    "{errno:?} from {from}, {call:?}: {:?}, {what}\n{log}",
                    ran.ended
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// An agent that runs sees its disk become read-only and come back: it lives on, and so does the app.
#[test]
fn an_agent_that_runs_outlives_its_disk() {
    let mut source = Source::new();
    let mut lane = Lane::new(&source);
    let (good, next) = (source.good(), source.good());
    lane.host.target(&good);
    assert_eq!(lane.once().0, 0);
    let mut command = lane.host.command("run");
    command.args(["--log", "json"]);
    let dir = lane.dir();
    let (is_bad, has_failed) = (AtomicBool::new(true), AtomicBool::new(false));
    let ran = thread::scope(|scope| {
        let agent = scope.spawn(|| {
            syscalls::run(&command, &dir, &mut |number, call| {
                // A start on a disk that is bad has its own tests.
                if number > 30 && call.is_of_file() && is_bad.load(Ordering::SeqCst) {
                    has_failed.store(true, Ordering::SeqCst);
                    return Fate::Fail(Errno::EROFS);
                }
                Fate::Pass
            })
        });
        lane.host.await_some("the agent to run", |host| {
            (host.status()["agent_running"] == true).then_some(())
        });
        lane.host.target(&next);
        lane.host.await_some("a call to fail", |_| has_failed.load(Ordering::SeqCst).then_some(()));
        lane.holds(&source, &[&good], false).expect("what serves stays");
        assert_eq!(lane.managers(), 1, "the app runs");
        is_bad.store(false, Ordering::SeqCst);
        lane.host.await_some("the next revision to be served", |host| {
            let status = host.status()["status"].take();
            (status["serving"] == next.as_str() && status["phase"] == "idle").then_some(())
        });
        let pid = lane.host.status()["agent_pid"].as_u64().expect("it runs");
        host::ask(u32::try_from(pid).expect("a pid"));
        agent.join().expect("it is traced to its end")
    });
    assert_eq!(ran.ended, Ended::Exited(0), "{}", ran.log);
    assert!(ran.log.contains("ead-only file system"), "{}", ran.log);
    assert!(ran.log.contains("fix its mount"), "with a hint: {}", ran.log);
    lane.recovers(&source, &next, 0).expect("all is well");
}

#[test]
fn a_disk_without_inodes_is_told_before_the_first_write() {
    let mut source = Source::new();
    let host = Host::new(&source.origin.url(&source.repo), "branch = \"main\"\n", "");
    let Some(mount) = Mount::of_inodes(&host.dir(), 64, 400) else { return };
    let mut lane = Lane::on(host, Some(mount));
    let (good, next) = (source.good(), source.good());
    lane.host.target(&good);
    let (code, log) = lane.once();
    assert_eq!(code, 0, "{log}");
    // Enough for a fetch and not for a release; and not for the fetch either.
    for (left, said) in [(10, "inodes free; "), (1, "space")] {
        lane.mount.as_ref().expect("it is mounted").leave_inodes(left);
        lane.host.target(&next);
        let (code, log) = lane.once();
        assert_eq!(code, 75, "{left}: {log}");
        assert!(log.contains(said) && log.contains("hint"), "{left}: {log}");
        lane.holds(&source, &[&good], false).expect("what serves stays");
        assert_eq!(lane.managers(), 1, "the app runs");
        let made = lane.dir().join("releases").join(&next);
        assert!(!made.exists(), "{left}: nothing of it is left");
    }
    lane.mount.as_ref().expect("it is mounted").leave_inodes(200);
    lane.recovers(&source, &next, 0).expect("there is room");
}

/// An ext4 that gives up, as on a volume that is lost: read-only at once, whoever writes. It is mounted
/// anew on the next boot.
#[test]
fn a_file_system_that_gives_up_is_told_and_the_next_boot_goes_on() {
    if !geteuid().is_root() {
        return;
    }
    let mut source = Source::new();
    let images = tempfile::tempdir().expect("a temp dir");
    let image = images.path().join("image");
    let host = Host::new(&source.origin.url(&source.repo), "branch = \"main\"\n", "");
    let Some(mount) = Mount::ext4(&host.dir(), &image, 32) else { return };
    let mut lane = Lane::on(host, Some(mount));
    let (good, next) = (source.good(), source.good());
    lane.host.target(&good);
    lane.host.run();
    lane.host.await_serving(&good);
    lane.mount.as_ref().expect("it is mounted").give_up();
    lane.host.target(&next);
    lane.host.await_some("a log of it", |host| {
        let log = host.log();
        (log.contains("ead-only file system") && log.contains("fix its mount")).then_some(())
    });
    assert!(lane.host.is_alive());
    assert_eq!(lane.host.current().as_ref(), Some(&good));
    assert_eq!(lane.managers(), 1, "the app runs");

    lane.host.kill();
    lane.host.kill_app();
    lane.mount = None;
    lane.mount = Mount::image(&lane.dir(), &image);
    lane.recovers(&source, &next, 0).expect("the disk is well");
}
