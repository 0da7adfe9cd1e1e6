//! The cluster manager: found, told, stopped, and its workers proved new.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use towline_agent::manager::{
    Absence, Context, FindError, Finding, Process, Proof, ProveError, SignalError, Snapshot,
    StopError, Stopped, find, prove, releases_in_use, signal, stop, workers,
};
use towline_agent::process::{Exit, RunAs};
use towline_protocol::recipe::{Find, ReloadSignal};
use towline_protocol::report::Evidence;

use super::{LONG, Own, lives, nobody, run_as, sh, until};

/// A worker that lives until it is told to end, and with an argument not even then.
const WORKER: &str = "import signal, sys\n\
    if len(sys.argv) > 1: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
    open(f'/proc/self/comm', 'w').write('worker')\n\
    while True: signal.pause()\n";

/// Two releases, a link to the first, and a manager that runs it.
struct Cluster {
    dir: tempfile::TempDir,
    run_as: RunAs,
    stop: CancellationToken,
    manager: Own,
}

impl Cluster {
    async fn start(mode: &str) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for release in ["one", "two"] {
            fs::create_dir_all(root.join("releases").join(release)).unwrap();
            fs::write(root.join("releases").join(release).join("worker.py"), WORKER).unwrap();
        }
        symlink(root.join("releases/one"), root.join("current")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/cluster.py");
        let manager = Own::spawn(
            Command::new("/usr/bin/python3")
                .arg(script)
                .args([&root.join("current"), &root.join("app.pid")])
                .arg(mode)
                .current_dir("/"),
        );
        let cluster = Cluster {
            dir,
            run_as: run_as(&format!("cluster-{mode}")),
            stop: CancellationToken::new(),
            manager,
        };
        let file = cluster.path("app.pid");
        until("the manager's pid file", || file.exists()).await;
        for name in ["ready-0", "ready-1"] {
            if mode != "single" {
                let pid = super::pid_in(&cluster.path(name)).await;
                let named = || fs::read_to_string(format!("/proc/{pid}/comm"));
                until("a worker at work", || named().is_ok_and(|name| name == "worker\n")).await;
            }
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn find(&self) -> Find {
        Find::PidFile(self.path("app.pid").to_str().unwrap().to_owned())
    }

    fn context(&self) -> Context<'_> {
        Context { run_as: &self.run_as, cwd: self.dir.path(), stop: &self.stop }
    }

    async fn process(&self) -> Process {
        running(find(&self.find(), &self.context()).await)
    }

    fn swap(&self) {
        fs::remove_file(self.path("current")).unwrap();
        symlink(self.path("releases/two"), self.path("current")).unwrap();
    }

    /// Swaps, signals, and waits for proof.
    async fn reload(&self, timeout: Duration) -> Result<Proof, ProveError> {
        let process = self.process().await;
        let before = Snapshot::take(&process).await;
        self.swap();
        match signal(&process, ReloadSignal::Hup) {
            // It may have ended of the signal by the time it is looked at again.
            Ok(()) | Err(SignalError::Gone { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        self.prove(&before, timeout).await
    }

    async fn prove(&self, before: &Snapshot, timeout: Duration) -> Result<Proof, ProveError> {
        let release = self.path("releases/two");
        prove(&self.find(), &self.context(), before, &release, timeout).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Also after a test that failed, whoever the workers' parent is by then: nothing but this
        // test's own processes has its directory in an argument.
        let own = self.dir.path().to_string_lossy().into_owned();
        self.manager.end();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(&own)
                && let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                let pid = nix::unistd::Pid::from_raw(pid);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
            }
        }
    }
}

fn running(found: Result<Finding, FindError>) -> Process {
    match found {
        Ok(Finding::Running(process)) => process,
        other => panic!("{other:?}"),
    }
}

/// Looks for what a pid file with this text names.
async fn look(text: &str, age: Duration, run_as: &RunAs) -> Result<Finding, FindError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.pid");
    fs::write(&path, text).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    #[allow(clippy::disallowed_methods, reason = "a file's time is set from the clock")]
    file.set_modified(SystemTime::now() - age).unwrap();
    let stop = CancellationToken::new();
    let context = Context { run_as, cwd: dir.path(), stop: &stop };
    find(&Find::PidFile(path.to_str().unwrap().to_owned()), &context).await
}

#[tokio::test]
async fn a_pid_file_is_a_claim_to_be_proved() {
    let run_as = run_as("claims");
    let mut own = Own::sleep();
    let pid = own.pid();
    let process = running(look(&format!("{pid}\n"), Duration::ZERO, &run_as).await);
    assert_eq!(process.pid(), pid);

    let stale = look(&pid.to_string(), Duration::from_secs(3_600), &run_as).await.unwrap();
    assert!(matches!(stale, Finding::Nothing(Absence::Stale { .. })), "{stale:?}");
    for bad in ["", "0", "1", "-1", "99999999999", "garbage", "2 3"] {
        let error = look(bad, Duration::ZERO, &run_as).await.unwrap_err();
        assert!(matches!(error, FindError::Text { .. }), "{bad:?}: {error}");
        assert!(error.hint().is_some());
    }
    let agent = look(&std::process::id().to_string(), Duration::ZERO, &run_as).await.unwrap_err();
    assert!(matches!(agent, FindError::NotManager { .. }), "{agent}");

    own.0.kill().unwrap();
    until("a zombie", || !lives(pid)).await;
    let zombie = look(&pid.to_string(), Duration::ZERO, &run_as).await.unwrap();
    assert!(matches!(zombie, Finding::Nothing(Absence::Dead { .. })), "{zombie:?}");
    own.end();
    let dead = look(&pid.to_string(), Duration::ZERO, &run_as).await.unwrap();
    assert!(matches!(dead, Finding::Nothing(Absence::Dead { .. })), "{dead:?}");
    let sent = signal(&process, ReloadSignal::Hup);
    assert!(matches!(sent, Err(SignalError::Gone { .. })), "{sent:?}");
}

#[tokio::test]
async fn a_process_of_another_user_is_not_the_manager() {
    let Some(run_as) = nobody("other-user") else { return };
    let own = Own::sleep();
    let error = look(&own.pid().to_string(), Duration::ZERO, &run_as).await.unwrap_err();
    assert!(error.to_string().contains("it runs as uid 0"), "{error}");
}

#[tokio::test]
async fn a_thread_of_the_kernel_is_not_the_manager() {
    let kernel = fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
    if !kernel {
        println!("no threads of the kernel are to be seen here, so none is tried");
        return;
    }
    // Such threads are born at boot, so no pid file is older.
    let error = look("2", Duration::ZERO, &run_as("kernel")).await.unwrap_err();
    assert!(error.to_string().contains("a thread of the kernel"), "{error}");
}

#[tokio::test]
async fn no_pid_file_means_that_nothing_runs() {
    let (run_as, stop) = (run_as("none"), CancellationToken::new());
    let context = Context { run_as: &run_as, cwd: Path::new("/"), stop: &stop };
    let found = find(&Find::PidFile("/no/such/app.pid".to_owned()), &context).await.unwrap();
    assert!(matches!(found, Finding::Nothing(Absence::NoPidFile)), "{found:?}");
}

#[tokio::test]
async fn a_status_command_names_the_pid() {
    let (run_as, stop) = (run_as("status"), CancellationToken::new());
    let context = Context { run_as: &run_as, cwd: Path::new("/"), stop: &stop };
    let own = Own::sleep();
    let status = |script: &str| Find::Status(sh(script));
    let found = find(&status(&format!("echo ' {} '; echo x", own.pid())), &context).await;
    assert_eq!(running(found).pid(), own.pid());
    let found = find(&status("echo 5; exit 3"), &context).await.unwrap();
    let expected = Absence::Status { exit: Exit::Code(3) };
    assert!(matches!(found, Finding::Nothing(absence) if absence == expected));
    for bad in ["echo running", "true", "echo 1", "echo -5"] {
        let error = find(&status(bad), &context).await.unwrap_err();
        assert!(matches!(error, FindError::Text { .. }), "{bad}: {error}");
    }
    let error = find(&status("kill -9 $$"), &context).await.unwrap_err();
    assert!(matches!(error, FindError::Status { .. }), "killed, it has said nothing: {error}");
}

/// Between the check and the signal the manager ends, and another process gets its pid.
#[tokio::test]
async fn a_re_used_pid_is_not_signalled() {
    let mut first = Own::sleep();
    let pid = first.pid();
    let process = running(look(&pid.to_string(), Duration::ZERO, &run_as("reuse")).await);
    first.end();
    let mut other = None;
    for _ in 0..500 {
        let next = (pid - 1).to_string();
        if fs::write("/proc/sys/kernel/ns_last_pid", next).is_err() {
            break;
        }
        let candidate = Own::sleep();
        if candidate.pid() == pid {
            other = Some(candidate);
            break;
        }
    }
    let Some(mut other) = other else {
        println!("the next pid cannot be chosen here, so its re-use is not tried");
        return;
    };
    let sent = signal(&process, ReloadSignal::Hup);
    assert!(matches!(sent, Err(SignalError::Gone { .. })), "{sent:?}");
    assert!(!process.is_alive() && lives(pid), "the pid lives, the process does not");
    let stopped =
        end(&process, Duration::from_millis(50), &CancellationToken::new()).await.unwrap();
    assert_eq!(stopped.killed, 0);
    assert!(other.0.try_wait().unwrap().is_none(), "the other process was left alone");
}

#[tokio::test]
async fn new_workers_of_the_release_are_proved() {
    let cluster = Cluster::start("good").await;
    assert_eq!(workers(&cluster.process().await).await.len(), 2);
    // As where /srv is a link to a larger disk: the kernel names the place that it leads to.
    let alias = cluster.path("alias");
    symlink(cluster.path("releases"), &alias).unwrap();
    let in_use = |name: &str| {
        let all = [cluster.path("releases"), alias.clone()].map(|path| releases_in_use(&path));
        assert_eq!(all[0], all[1]);
        all[0].contains(name)
    };
    assert!(in_use("one") && !in_use("two"));
    let proof = cluster.reload(LONG).await.unwrap();
    assert_eq!(proof.evidence, Evidence::Started);
    assert!((1..=2).contains(&proof.workers), "the second may come a moment later: {proof:?}");
    assert!(!in_use("one") && in_use("two"));
}

#[tokio::test]
async fn a_manager_that_ignores_the_signal_is_found_out() {
    let cluster = Cluster::start("ignore").await;
    let mut old: Vec<i32> =
        workers(&cluster.process().await).await.iter().map(|worker| worker.pid).collect();
    old.sort_unstable();
    let error = cluster.reload(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.hint().is_some());
    match error {
        ProveError::NotReplaced { mut pids, .. } => {
            pids.sort_unstable();
            assert_eq!(pids, old);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_manager_that_keeps_its_directory_is_found_out() {
    let cluster = Cluster::start("keep").await;
    let error = cluster.reload(LONG).await.unwrap_err();
    match error {
        ProveError::KeptDirectory { directory, release, .. } => {
            assert_eq!(directory, cluster.path("releases/one"));
            assert_eq!(release, cluster.path("releases/two"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn workers_that_crash_again_and_again_prove_nothing() {
    let cluster = Cluster::start("crash").await;
    let error = cluster.reload(Duration::from_secs(1)).await.unwrap_err();
    // At the very end there may be none, or one may live for two looks; never is it proof.
    let unsettled = matches!(error, ProveError::NotSettled { .. } | ProveError::NotReplaced { .. });
    assert!(unsettled, "{error:?}");
}

#[tokio::test]
async fn workers_that_crash_for_long_enough_end_the_wait() {
    let cluster = Cluster::start("crash").await;
    let timeout = Duration::from_secs(60);
    match cluster.reload(timeout).await.unwrap_err() {
        ProveError::Crashing { ended, waited } => assert!(ended >= 5 && waited < timeout / 2),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_manager_that_ends_is_missed() {
    let mut cluster = Cluster::start("exit").await;
    let error = cluster.reload(Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, ProveError::Gone { .. }), "{error:?}");
    cluster.manager.end();
}

#[tokio::test]
async fn waiting_for_proof_can_be_cancelled() {
    let cluster = Cluster::start("ignore").await;
    let before = Snapshot::take(&cluster.process().await).await;
    let stop = async {
        tokio::task::yield_now().await;
        cluster.stop.cancel();
    };
    let (result, ()) = tokio::join!(cluster.prove(&before, LONG), stop);
    assert!(matches!(result, Err(ProveError::Cancelled)), "{result:?}");
}

/// A supervisor puts another process in the manager's place.
#[tokio::test]
async fn a_manager_without_workers_is_proved_by_its_successor() {
    let mut cluster = Cluster::start("single").await;
    let process = cluster.process().await;
    let before = Snapshot::take(&process).await;
    assert!(before.workers.is_empty());
    cluster.manager.end();
    cluster.swap();
    let program = cluster.path("current/worker.py");
    cluster.manager = Own::spawn(
        Command::new("/usr/bin/python3").arg(program).current_dir(cluster.path("current")),
    );
    fs::write(cluster.path("app.pid"), format!("{}\n", cluster.manager.pid())).unwrap();
    assert_eq!(cluster.prove(&before, LONG).await.unwrap().evidence, Evidence::Started);
}

/// Stops a manager that has no unit, so that nothing is run for it.
async fn end(
    process: &Process,
    timeout: Duration,
    token: &CancellationToken,
) -> Result<Stopped, StopError> {
    let run_as = run_as("cluster");
    stop(process, timeout, &Context { run_as: &run_as, cwd: Path::new("/"), stop: token }).await
}

#[tokio::test]
async fn a_manager_that_stops_takes_its_workers_along() {
    let cluster = Cluster::start("good").await;
    let process = cluster.process().await;
    let all = workers(&process).await;
    assert_eq!(end(&process, LONG, &CancellationToken::new()).await.unwrap().killed, 0);
    assert!(!process.is_alive() && all.iter().all(|worker| !worker.is_alive()));
}

#[tokio::test]
async fn a_worker_that_ignores_term_is_killed() {
    let cluster = Cluster::start("stubborn").await;
    let process = cluster.process().await;
    let all = workers(&process).await;
    assert_eq!(all.len(), 2);
    // The manager waits for its workers, so it is still there as well.
    assert_eq!(
        end(&process, Duration::from_millis(300), &CancellationToken::new()).await.unwrap().killed,
        3
    );
    assert!(!process.is_alive() && all.iter().all(|worker| !worker.is_alive()));
}

#[tokio::test]
async fn an_agent_that_is_to_stop_kills_nobody_and_begins_nothing() {
    let cluster = Cluster::start("stubborn").await;
    let process = cluster.process().await;
    let token = CancellationToken::new();
    token.cancel();
    let error = end(&process, LONG, &token).await.unwrap_err();
    assert!(matches!(error, StopError::Cancelled), "{error}");
    assert_eq!(workers(&process).await.len(), 2, "nobody was asked to end");

    // Asked to stop in the middle of it: what will not end is left, also where its time is over.
    let token = CancellationToken::new();
    let timeout = Duration::from_millis(300);
    let stopping = end(&process, timeout, &token);
    let (error, ()) = tokio::join!(stopping, async { token.cancel() });
    assert!(matches!(error.unwrap_err(), StopError::Cancelled));
    assert_eq!(workers(&process).await.len(), 2, "nobody was killed");
}
