//! Pid files of every kind, and pids that change hands.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_agent::manager::{Context, FindError, Finding, Process, SignalError, find, signal};
use towline_protocol::recipe::{Find, ReloadSignal};

use super::{Own, is_root, run_as};

async fn found(path: &Path) -> Result<Finding, FindError> {
    let (run_as, stop) = (run_as("pids"), CancellationToken::new());
    let context = Context { run_as: &run_as, cwd: Path::new("/"), stop: &stop };
    find(&Find::PidFile(path.to_str().unwrap().to_owned()), &context).await
}

/// What stands at the path of a pid file.
type Make = fn(&Path, &str);

/// Every row is one thing that an app's user can put there; none is believed, and none is waited for.
#[tokio::test]
async fn whatever_stands_in_a_pid_files_place_is_refused_at_once() {
    let write: Make = |path, text| fs::write(path, text).unwrap();
    let link: Make = |path, target| symlink(target, path).unwrap();
    let zero: Make = match is_root() {
        true => |path, _| {
            let number = nix::sys::stat::makedev(1, 5);
            nix::sys::stat::mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, number).unwrap();
        },
        false => |path, _| fs::create_dir(path).unwrap(),
    };
    let fifo: Make = |path, _| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
    let socket: Make = |path, _| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let sparse: Make = |path, _| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    let own = Own::sleep();
    let pid = own.pid().to_string();
    let (status, stat) = (format!("/proc/{pid}/status"), format!("/proc/{pid}/stat"));
    let cases: [(&str, Make, &str); 19] = [
        ("empty", write, ""),
        ("a blank", write, " \n"),
        ("everybody in the group", write, "0"),
        ("init", write, "1\n"),
        ("a group", write, &format!("-{pid}")),
        ("everybody", write, "-1"),
        ("more than any pid", write, "4194305"),
        ("more than 31 bits", write, "4294967297"),
        ("more than 64 bits", write, "18446744073709551617"),
        ("two of them", write, &format!("{pid} {pid}")),
        ("one, and then no text", write, "71\0"),
        ("a terabyte of nothing", sparse, ""),
        ("a FIFO", fifo, ""),
        ("a socket", socket, ""),
        ("a link to /proc", link, &stat),
        ("a link to what begins like one", link, &status),
        ("a link to another's file", link, "/etc/shadow"),
        ("a link to the terminal", link, "/dev/tty"),
        ("a device that never ends", zero, ""),
    ];
    for (rule, make, text) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("app.pid");
        make(&path, text);
        let started = Instant::now();
        let error = found(&path).await.expect_err(rule);
        assert!(started.elapsed() < Duration::from_secs(10), "{rule}");
        assert!(
            matches!(error, FindError::Text { .. } | FindError::NotPidFile { .. }),
            "{rule}: {error:?}"
        );
        assert!(!error.to_string().contains("root:"), "{rule}: {error}");
    }
}

/// A manager that ends between the check and the signal, and another process that has its pid by then: in
/// a table of pids of its own, in which the next one can be chosen. Ten thousand times with `TOWLINE_ALL`.
#[test]
#[allow(clippy::print_stdout, reason = "says what a test leaves out")]
fn no_signal_reaches_whoever_has_the_pid_by_then() {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(this);
    let output =
        command.args(["--exact", "pids::pids_change_hands", "--ignored", "--nocapture"]).output();
    let Ok(output) = output.map_err(|error| println!("no pids of one's own here: {error}")) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.starts_with("unshare:") {
        println!("no pids of one's own here: {said}");
        return;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}{said}");
}

#[tokio::test]
#[ignore = "part of `no_signal_reaches_whoever_has_the_pid_by_then`"]
async fn pids_change_hands() {
    let count = if std::env::var_os("TOWLINE_ALL").is_some() { 10_000 } else { 300 };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.pid");
    let spawn = || Own::spawn(Command::new("sleep").arg("1000"));
    for number in 0..count {
        let mut manager = spawn();
        let pid = manager.pid();
        fs::write(&path, pid.to_string()).unwrap();
        let process: Process = match found(&path).await {
            Ok(Finding::Running(process)) => process,
            other => panic!("{number}: {other:?}"),
        };
        manager.end();
        let next = || {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            Some(spawn()).filter(|other| other.pid() == pid)
        };
        // A thread of this process may have taken it first.
        let mut other = (0..100).find_map(|_| next()).expect("the pid is free");
        let kinds = [ReloadSignal::Hup, ReloadSignal::Usr1, ReloadSignal::Usr2];
        let sent = signal(&process, kinds[number % 3]);
        assert!(matches!(sent, Err(SignalError::Gone { .. })), "{number}: {sent:?}");
        assert!(!process.is_alive(), "{number}");
        // Any of them would have ended it.
        assert!(other.0.try_wait().unwrap().is_none(), "{number}: another process was signalled");
    }
}
