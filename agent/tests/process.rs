//! Children, the cluster manager and health probes, against real processes.
//!
//! Nothing here waits for a time to pass: a state is polled for, with a limit. Each test marks its
//! children with a tag of its own and ends what it has started.

#![allow(clippy::unwrap_used, reason = "all of this is tests, which lints know of functions only")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use towline_agent::process::{Account, CgroupHome, Environment, Job, Remains, RunAs};
use towline_protocol::recipe::CommandLine;

#[path = "process/child.rs"]
mod child;
#[path = "process/cluster.rs"]
mod cluster;
#[path = "process/escape.rs"]
mod escape;
#[path = "process/launch.rs"]
mod launch;
#[path = "process/pids.rs"]
mod pids;
#[path = "process/probe.rs"]
mod probe;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn run_as(test: &str) -> RunAs {
    RunAs {
        account: None,
        environment: Environment::new(),
        tag: format!("{test}-{}", std::process::id()),
        cgroups: CgroupHome::find(),
        grace: Duration::from_millis(300),
    }
}

#[allow(clippy::print_stdout, reason = "says what a test leaves out")]
fn nobody(test: &str) -> Option<RunAs> {
    if !is_root() {
        println!("not root: running as another user is not tried");
        return None;
    }
    Some(RunAs { account: Some(Account::lookup("nobody").unwrap()), ..run_as(test) })
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn line(words: &[&str]) -> CommandLine {
    let mut words = words.iter().map(|word| (*word).to_owned());
    CommandLine { program: words.next().unwrap(), args: words.collect() }
}

fn sh(script: &str) -> CommandLine {
    line(&["sh", "-c", script])
}

fn job<'a>(command: &'a CommandLine, cwd: &'a Path, run_as: &'a RunAs) -> Job<'a> {
    Job {
        label: "test",
        command,
        cwd,
        run_as,
        extra: BTreeMap::new(),
        deadline: LONG,
        capture: true,
        remains: Remains::End,
    }
}

/// Waits for a state; fails if it does not come.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "waited too long: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Reads a pid that a script has written, once it is there.
async fn pid_in(path: &Path) -> i32 {
    let read = || std::fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse::<i32>().ok();
    until(&format!("a pid in {}", path.display()), || read().is_some()).await;
    read().unwrap()
}

/// Does a process with this pid live? A zombie does not.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A process of the test's own, ended with it.
struct Own(Child);

impl Own {
    fn spawn(command: &mut Command) -> Own {
        // Not even stderr: what is left of a failed test must not hold the test run's own.
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Own(quiet.spawn().unwrap())
    }

    fn sleep() -> Own {
        Own::spawn(Command::new("sleep").arg("1000"))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn end(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.end();
    }
}
