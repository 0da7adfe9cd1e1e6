//! Children that mean to be missed: they leave session, environment and parent, fill descriptors, and
//! come by the thousand. Each rule holds in a cgroup, and where there are none.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use towline_agent::process::{CgroupHome, RunAs, adopt_orphans, end_leftovers, launch, run};

use super::{job, line, lives, pid_in, run_as, sh, until};

/// A process that has left its session, its environment and its parent by the time its pid is told.
const ESCAPE: &str = r#"setsid env -i /bin/sh -c '/bin/sh -c "
        while [ \$(cut -d\" \" -f4 /proc/\$\$/stat) = $PPID ]; do :; done
        echo \$\$ > escaped.new; mv escaped.new escaped; exec sleep 1000" & exit 0' &
    while [ ! -s escaped ]; do sleep 0.01; done"#;

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// Both ways of holding a child, and what each is called.
fn both_ways(test: &str) -> Vec<(&'static str, RunAs)> {
    let mut ways = vec![("by coming to the agent", RunAs { cgroups: None, ..run_as(test) })];
    match run_as(test) {
        held @ RunAs { cgroups: Some(_), .. } => ways.push(("in a cgroup", held)),
        _ => skip(test),
    }
    ways
}

#[allow(clippy::print_stdout, reason = "says what a test leaves out")]
fn skip(test: &str) {
    println!("no cgroups of version 2 can be made here: {test} tries the other way only");
}

/// Waits until no line of the process table is this process's: it was reaped.
async fn until_gone(pid: i32) {
    until("no zombie", || !Path::new(&format!("/proc/{pid}")).exists()).await;
}

async fn kill(pid: i32) {
    let own = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).unwrap();
    until_gone(pid).await;
}

#[tokio::test]
async fn what_leaves_session_environment_and_parent_is_ended_and_the_app_is_not() {
    adopt_orphans(true);
    for (way, run_as) in both_ways("escape") {
        let dirs = ["app", "other", "own"].map(|_| tempfile::tempdir().unwrap());
        let [app, other, own] = [&dirs[0], &dirs[1], &dirs[2]].map(tempfile::TempDir::path);
        // The app does the same, and so does a job that goes on meanwhile.
        let escape = sh(ESCAPE);
        launch(&escape, app, &run_as, &app.join("log")).await.unwrap();
        let daemon = pid_in(&app.join("escaped")).await;
        let slow = sh(&format!("{ESCAPE}; while [ ! -e go ]; do sleep 0.01; done"));
        let (slow, stop) = (job(&slow, other, &run_as), never());
        let during = async {
            let neighbour = pid_in(&other.join("escaped")).await;
            let output = run(&job(&escape, own, &run_as), &stop).await.unwrap();
            let escaped = pid_in(&own.join("escaped")).await;
            assert_eq!(output.leftovers, 1, "{way}");
            assert!(!lives(escaped), "{way}");
            until_gone(escaped).await;
            assert!(lives(neighbour), "{way}: another job's");
            fs::write(other.join("go"), "").unwrap();
            neighbour
        };
        let (output, neighbour) = tokio::join!(run(&slow, &stop), during);
        assert_eq!(output.unwrap().leftovers, 1, "{way}");
        assert!(!lives(neighbour), "{way}");
        assert_eq!(end_leftovers(&run_as.tag, run_as.cgroups.as_ref()).await, 0, "{way}");
        assert!(lives(daemon), "{way}: the app is not contained");
        kill(daemon).await;
        assert_eq!(end_leftovers(&run_as.tag, run_as.cgroups.as_ref()).await, 0, "{way}");
        assert_eq!(cgroups(&run_as), 0, "{way}");
    }
}

#[tokio::test]
async fn what_has_escaped_a_killed_agent_is_ended_by_the_next() {
    for (way, run_as) in both_ways("escape-killed") {
        let dir = tempfile::tempdir().unwrap();
        let (path, child) = (dir.path().to_owned(), run_as.clone());
        // The thread stands for the agent: it ends without a chance to clean up.
        let agent = std::thread::spawn(move || {
            let build = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (runtime, command) = (build.unwrap(), sh(&format!("{ESCAPE}; sleep 1000")));
            runtime.block_on(async {
                let (job, stop) = (job(&command, &path, &child), never());
                let mut run = Box::pin(run(&job, &stop));
                let escaped = path.join("escaped");
                tokio::select! {
                    result = &mut run => panic!("{result:?}"),
                    _ = pid_in(&escaped) => {}
                }
                std::mem::forget(run);
            });
            std::mem::forget(runtime);
        });
        tokio::task::spawn_blocking(|| agent.join().unwrap()).await.unwrap();
        let escaped = pid_in(&dir.path().join("escaped")).await;
        assert!(lives(escaped), "{way}");
        assert!(end_leftovers(&run_as.tag, run_as.cgroups.as_ref()).await >= 1, "{way}");
        assert!(!lives(escaped), "{way}");
        assert_eq!(cgroups(&run_as), 0, "{way}");
    }
}

/// How many cgroups of this process's making there are.
fn cgroups(run_as: &RunAs) -> usize {
    let Some(home) = &run_as.cgroups else { return 0 };
    let own = format!(".{}.", std::process::id());
    let entries = fs::read_dir(home.dir()).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().contains(&own)).count()
}

#[tokio::test]
async fn a_cgroup_that_cannot_be_made_keeps_no_command_from_running() {
    let (dir, mut run_as) = (tempfile::tempdir().unwrap(), run_as("escape-unmade"));
    run_as.cgroups = Some(CgroupHome::at(&dir.path().join("gone")));
    let command = sh("echo ran");
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    assert_eq!(output.log, "ran\n");
}

#[tokio::test]
async fn a_command_that_fills_its_descriptors_takes_none_of_the_agents() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("descriptors"));
    let before = descriptors();
    let command = line(&[
        "/usr/bin/python3",
        "-c",
        "import os\nfiles = []\ntry:\n    while True: files.append(os.open('/dev/null', 0))\n\
         except OSError as error:\n    print(error.strerror)\n",
    ]);
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    assert_eq!(output.log, "Too many open files\n");
    assert_eq!(descriptors(), before);
}

/// The environment variable that has all of the many tried.
const ALL: &str = "TOWLINE_ALL";

/// By the thousand, some of which leave something behind; ten thousand with `TOWLINE_ALL` set.
#[tokio::test]
async fn many_commands_leave_no_zombie_descriptor_or_cgroup() {
    adopt_orphans(true);
    let count = if std::env::var_os(ALL).is_some() { 10_000 } else { 300 };
    let dir = tempfile::tempdir().unwrap();
    let (quick, leaving) = (line(&["true"]), sh("setsid sleep 1000 & exit 0"));
    for (way, run_as) in both_ways("many") {
        run(&job(&quick, dir.path(), &run_as), &never()).await.unwrap();
        let before = descriptors();
        for number in 0..count / 2 {
            let command = if number % 10 == 0 { &leaving } else { &quick };
            let mut job = job(command, dir.path(), &run_as);
            job.capture = number % 2 == 0;
            run(&job, &never()).await.unwrap();
        }
        assert_eq!(descriptors(), before, "{way}");
        until("no zombie", || children().is_empty()).await;
        assert_eq!(cgroups(&run_as), 0, "{way}");
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The pids of this process's children, zombies among them.
fn children() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&own))
    };
    pids.filter(is_child).collect()
}

#[tokio::test]
async fn a_grace_is_given_in_a_cgroup_as_well() {
    for (way, mut run_as) in both_ways("escape-grace") {
        let dir = tempfile::tempdir().unwrap();
        run_as.grace = Duration::from_secs(50);
        let script = r#"setsid env -i /bin/sh -c 'trap "echo bye > bye; exit 0" TERM
            echo $$ > pid; while :; do sleep 0.02; done' & while [ ! -s pid ]; do sleep 0.01; done"#;
        let command = sh(script);
        let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
        assert!(output.leftovers >= 1, "{way}");
        assert_eq!(fs::read_to_string(dir.path().join("bye")).unwrap(), "bye\n", "{way}");
    }
}
