//! Contained children: what they get, and that nothing of them is left.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_agent::process::{
    CAPTURE_BYTES_MAX, Exit, ProcessError, Remains, RunAs, end_leftovers, run,
};

use super::{Own, job, line, lives, nobody, pid_in, run_as, sh, until};

/// A daemon as they are made: a new session, two forks. It writes its pid to `./pid`.
const DAEMON: &str = r#"(setsid sh -c 'echo $$ > pid; exec sleep 1000' &)
    while [ ! -s pid ]; do sleep 0.01; done; echo done"#;

fn never() -> CancellationToken {
    CancellationToken::new()
}

#[tokio::test]
async fn a_daemon_that_left_the_session_is_swept_after_success() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("daemon"));
    // It also holds the output pipe, which nobody waits for.
    let command = sh(DAEMON);
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    assert_eq!((output.leftovers, output.log.as_str()), (1, "done\n"));
    assert!(!lives(pid_in(&dir.path().join("pid")).await));
}

#[tokio::test]
async fn what_a_reload_command_starts_is_left_alone() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("leave"));
    // One in its session, one outside.
    let script = format!("{DAEMON}; env > environ; sleep 1000 & echo $! > near");
    let command = sh(&script);
    let started = Instant::now();
    let output = {
        let job = job(&command, dir.path(), &run_as);
        run(&towline_agent::process::Job { remains: Remains::Leave, ..job }, &never()).await
    };
    assert_eq!(output.unwrap().log, "done\n", "and a pipe held by a daemon holds up nobody");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(end_leftovers(&run_as.tag, run_as.cgroups.as_ref()).await, 0, "they bear no marker");
    let environ = fs::read_to_string(dir.path().join("environ")).unwrap();
    assert!(!environ.contains("TOWLINE"), "{environ}");
    for name in ["pid", "near"] {
        let pid = pid_in(&dir.path().join(name)).await;
        assert!(lives(pid), "{name}");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn the_deadline_ends_all_even_what_ignores_term() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("deadline"));
    // A daemon, a child in another process group with an empty environment, and itself.
    let command = sh(
        r#"trap '' TERM; echo before; (setsid sh -c 'echo $$ > pid; exec sleep 1000' &)
        env -i setsid --fork --wait sh -c 'trap "" TERM; echo $$ > other; while :; do sleep 1; done' &
        echo $$ > self; while :; do sleep 1; done"#,
    );
    let ready = ["pid", "other", "self"].map(|name| dir.path().join(name));
    let mut job = job(&command, dir.path(), &run_as);
    job.deadline = Duration::from_millis(700);
    let error = run(&job, &never()).await.unwrap_err();
    assert!(matches!(error, ProcessError::Deadline { .. }), "{error:?}");
    assert_eq!(error.log(), Some("before\n"));
    for path in ready {
        let pid = pid_in(&path).await;
        until(&format!("the end of {}", path.display()), || !lives(pid)).await;
    }
}

#[tokio::test]
async fn one_that_ends_when_asked_is_not_killed() {
    let (dir, mut run_as) = (tempfile::tempdir().unwrap(), run_as("asked"));
    run_as.grace = Duration::from_secs(50);
    let command =
        sh("trap 'echo bye > bye; exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done");
    let stop = CancellationToken::new();
    let started = Instant::now();
    let job = job(&command, dir.path(), &run_as);
    let cancel = async {
        pid_in(&dir.path().join("pid")).await;
        stop.cancel();
    };
    let (result, ()) = tokio::join!(run(&job, &stop), cancel);
    assert!(matches!(result, Err(ProcessError::Cancelled { .. })), "{result:?}");
    assert_eq!(fs::read_to_string(dir.path().join("bye")).unwrap(), "bye\n");
    assert!(started.elapsed() < Duration::from_secs(40), "the grace ends with the last process");
}

#[tokio::test]
async fn cancelled_before_the_start_nothing_is_started() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("cancelled"));
    let stop = CancellationToken::new();
    stop.cancel();
    let command = sh("echo > started");
    let result = run(&job(&command, dir.path(), &run_as), &stop).await;
    assert!(matches!(result, Err(ProcessError::Cancelled { .. })));
    assert!(!dir.path().join("started").exists());
}

#[tokio::test]
async fn dropping_the_future_ends_the_child_and_its_daemon() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("drop"));
    let command = sh(&format!("{DAEMON}; echo $$ > self; sleep 1000"));
    let (own, daemon) = (dir.path().join("self"), dir.path().join("pid"));
    let pids = {
        let job = job(&command, dir.path(), &run_as);
        let stop = never();
        tokio::select! {
            result = run(&job, &stop) => panic!("{result:?}"),
            own = pid_in(&own) => [own, pid_in(&daemon).await],
        }
    };
    for pid in pids {
        // Not only ended: reaped, so no zombie is left of the direct child.
        until("the end", || !lives(pid)).await;
    }
    until("no zombie", || !std::path::Path::new(&format!("/proc/{}", pids[0])).exists()).await;
}

#[test]
fn a_child_dies_with_the_agent() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("agent"));
    let path = dir.path().to_owned();
    // The thread stands for the agent: it ends without a chance to clean up.
    let agent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (command, stop) = (sh("echo $$ > pid; exec sleep 1000"), never());
        let file = path.join("pid");
        runtime.block_on(async {
            let job = job(&command, &path, &run_as);
            let mut run = Box::pin(run(&job, &stop));
            tokio::select! {
                result = &mut run => panic!("{result:?}"),
                _ = pid_in(&file) => {}
            }
            // Safe in every sense but tidiness: its destructor must not run.
            std::mem::forget(run);
        });
        std::mem::forget(runtime);
    });
    agent.join().unwrap();
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    let killed = nix::sys::signal::Signal::SIGKILL;
    assert!(
        matches!(status, nix::sys::wait::WaitStatus::Signaled(_, signal, _) if signal == killed),
        "{status:?}"
    );
}

#[tokio::test]
async fn leftovers_are_known_by_the_exact_tag() {
    let tag = run_as("leftovers").tag;
    let spawn =
        |value: &str| Own::spawn(Command::new("sleep").arg("1000").env("TOWLINE_CHILD", value));
    let (mut ours, longer, shorter) = (spawn(&tag), spawn(&format!("{tag}0")), spawn(&tag[1..]));
    let hidden = Own::spawn(
        Command::new("sleep").arg("1000").env("OTHER", format!("x TOWLINE_CHILD={tag}")),
    );
    assert_eq!(end_leftovers(&tag, None).await, 1);
    assert!(!lives(ours.pid()));
    ours.end();
    assert!(lives(longer.pid()) && lives(shorter.pid()) && lives(hidden.pid()));
    assert_eq!(end_leftovers(&tag, None).await, 0);
}

#[tokio::test]
async fn a_job_that_ends_leaves_its_neighbours_alone() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("neighbours"));
    let slow = sh("echo $$ > pid; while [ ! -e go ]; do sleep 0.01; done; echo slow");
    let quick = sh("true");
    let (slow, quick) = (job(&slow, dir.path(), &run_as), job(&quick, dir.path(), &run_as));
    let (stop, other) = (never(), never());
    let after = async {
        pid_in(&dir.path().join("pid")).await;
        let output = run(&quick, &other).await.unwrap();
        assert_eq!(output.leftovers, 0);
        fs::write(dir.path().join("go"), "").unwrap();
    };
    let (result, ()) = tokio::join!(run(&slow, &stop), after);
    assert_eq!(result.unwrap().log, "slow\n");
}

#[tokio::test]
async fn a_child_gets_chosen_entries_and_nothing_of_the_agents() {
    let (dir, mut run_as) = (tempfile::tempdir().unwrap(), run_as("surroundings"));
    run_as.environment.insert("LANG".to_owned(), "C.UTF-8".to_owned());
    let command = line(&["env"]);
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> =
        text.lines().filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    names.sort_unstable();
    let expected =
        ["HOME", "LANG", "LOGNAME", "PATH", "PWD", "TOWLINE_CHILD", "TOWLINE_JOB", "USER"];
    assert_eq!(names, expected);
    assert!(text.contains(&format!("TOWLINE_CHILD={}\n", run_as.tag)), "{text}");
    assert!(text.contains(&format!("PWD={}\n", dir.path().display())), "{text}");
}

#[tokio::test]
async fn a_child_gets_no_descriptor_mask_or_input() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("confined"));
    let secret = fs::File::create(dir.path().join("secret")).unwrap();
    // As a library may have left it.
    rustix::io::fcntl_setfd(secret.as_fd(), rustix::io::FdFlags::empty()).unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGUSR2);
    blocked.thread_block().unwrap();

    let command = sh(
        r#"ls -l /proc/self/fd; echo "stdin $(readlink /proc/self/fd/0)"; echo "umask $(umask)"
        echo "core $(ulimit -c)"; grep Sig /proc/self/status; cat
        read -r pid name state parent group session rest < /proc/$$/stat; echo "$pid/$group/$session""#,
    );
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("secret"), "{text}");
    for part in ["stdin /dev/null", "umask 0022", "core 0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    let ids: Vec<&str> = text.lines().last().unwrap().split('/').collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "leads its group and session: {text}");
}

/// Started anew from a shell that ignores a signal, allows core dumps and gives it input, since all
/// three are inherited.
#[test]
fn a_child_inherits_no_ignored_signal_core_limit_or_input() {
    let script = r#"trap '' USR1; ulimit -c unlimited 2> /dev/null
        exec "$0" --exact child::inherited --ignored < /proc/self/stat"#;
    let this = std::env::current_exe().unwrap();
    let output = Command::new("sh").args(["-c", script]).arg(this).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "part of `a_child_inherits_no_ignored_signal_core_limit_or_input`"]
async fn inherited() {
    let run_as = run_as("inherited");
    let command =
        sh("readlink /proc/self/fd/0; ulimit -c; sed -n 's/SigIgn:\t//p' /proc/self/status");
    let job = job(&command, std::path::Path::new("/"), &run_as);
    let text = String::from_utf8(run(&job, &never()).await.unwrap().stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["/dev/null", "0"], "{text}");
    let ignored = u64::from_str_radix(lines[2], 16).unwrap();
    // The numbers 32 and 33 are the C library's own.
    assert_eq!(ignored & !(0b11 << 31), 0, "{text}");
}

#[tokio::test]
async fn as_root_a_child_is_the_account_and_nothing_more() {
    let Some(run_as) = nobody("nobody") else { return };
    let account = run_as.account.clone().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // It may open its own output again, as many programs do.
    let command = sh("id -u; id -g; id -G; echo $USER $HOME; echo again > /dev/stderr");
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    let (uid, gid) = (account.uid, account.gid);
    let expected = format!("{uid}\n{gid}\n{gid}\n{} {}\n", account.name, account.home.display());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert!(output.log.contains("again"), "{}", output.log);
}

#[tokio::test]
async fn a_flood_of_output_costs_bounded_memory() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("flood"));
    let line = "x".repeat(99);
    let command = sh(&format!("yes {line} | head -c 1000000000; echo; echo end"));
    let before = resident_bytes();
    let output = run(&job(&command, dir.path(), &run_as), &never()).await.unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "grew by {grown} bytes");
    assert!(output.log.len() <= 64 * 1024 && output.log.ends_with("\nend\n"));
    assert_eq!(output.stdout.len(), CAPTURE_BYTES_MAX);
    assert!(output.stdout.starts_with(b"xxx"));
}

#[tokio::test]
async fn a_flood_without_end_does_not_keep_the_deadline_from_passing() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("endless"));
    let command = line(&["yes"]);
    let mut job = job(&command, dir.path(), &run_as);
    (job.deadline, job.capture) = (Duration::from_millis(200), false);
    let started = Instant::now();
    let error = run(&job, &never()).await.unwrap_err();
    assert!(matches!(error, ProcessError::Deadline { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

pub(super) fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn failure(script: &str, run_as: &RunAs) -> ProcessError {
    let dir = tempfile::tempdir().unwrap();
    let command = sh(script);
    run(&job(&command, dir.path(), run_as), &never()).await.unwrap_err()
}

#[tokio::test]
async fn a_failure_says_how_it_ended_and_what_was_printed_last() {
    let run_as = run_as("failure");
    let error = failure("echo a; echo b >&2; exit 3", &run_as).await;
    assert!(matches!(error, ProcessError::Failed { exit: Exit::Code(3), .. }), "{error:?}");
    let log = error.log().unwrap();
    assert!(log.contains("a\n") && log.contains("b\n"), "{log}");
    assert!(error.to_string().ends_with("failed with exit status 3"), "{error}");
    let error = failure("kill -SEGV $$", &run_as).await;
    assert!(matches!(error, ProcessError::Failed { exit: Exit::Signal(11), .. }), "{error:?}");
}

#[tokio::test]
async fn what_cannot_be_started_comes_with_a_hint() {
    let (dir, run_as) = (tempfile::tempdir().unwrap(), run_as("hints"));
    fs::write(dir.path().join("plain"), "").unwrap();
    fs::write(dir.path().join("script"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(dir.path().join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let gone = dir.path().join("gone");
    let cases = [
        ("no-such-program", dir.path(), "it is /usr/local/sbin:"),
        ("./script", dir.path(), "the interpreter named in its first line"),
        ("./plain", dir.path(), "make ./plain executable"),
        ("true", gone.as_path(), "does not exist"),
    ];
    for (program, cwd, part) in cases {
        let command = line(&[program]);
        let error = run(&job(&command, cwd, &run_as), &never()).await.unwrap_err();
        assert!(matches!(error, ProcessError::Start { .. }), "{program}: {error:?}");
        let hint = error.hint().unwrap();
        assert!(hint.contains(part), "{program}: {hint}");
    }
}
