//! The app that the other tests deploy, with real node: what they take for granted about it.
//!
//! The test plays the agent: it lays out releases, moves `current` and signals the master. Nothing
//! waits for a length of time; everything waits for a state.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_tests::app::{self, Kind};
use towline_tests::load::{self, Plan, Summary};

/// The app's own default.
const WORKERS: usize = 2;

const ROLLS: usize = 6;

#[test]
fn it_starts_once_and_names_its_revision() {
    let host = Host::new();
    host.release("a", Kind::Plain, json!({}));
    host.point_to("a");
    // What a reboot leaves behind: a pid that is someone else's by now.
    host.write_pid_file(&format!("{}\n", std::process::id()));
    host.start();
    host.await_workers_of("a");
    let before = (host.processes("supervisor.js"), host.master(), host.processes("server.js"));

    host.start();

    let after = (host.processes("supervisor.js"), host.master(), host.processes("server.js"));
    assert_eq!(after, before, "the second start does nothing");
    let (status, body) = host.health().unwrap();
    assert_eq!((status, &body["revision"]), (200, &json!(revision("a"))));
}

#[test]
fn reloads_cut_no_request() {
    let host = Host::new();
    for name in ["a", "b"] {
        host.release(name, Kind::Plain, json!({}));
    }
    rolls_cut_no_request(&host);
}

/// The recipe's own install, so this one needs a registry, or npm's cache of it.
#[test]
fn reloads_of_the_express_app_cut_no_request() {
    let host = Host::new();
    for name in ["a", "b"] {
        host.release(name, Kind::Express, json!({}));
    }
    host.install("a");
    symlink("../a/node_modules", host.releases().join("b/node_modules")).unwrap();
    rolls_cut_no_request(&host);
}

/// Rolls between the releases `a` and `b`, under quick requests and under slow ones.
fn rolls_cut_no_request(host: &Host) {
    host.point_to("a");
    host.start();
    host.await_workers_of("a");

    let quick = load::start(Plan::new(host.port));
    let slow = load::start(Plan {
        path: "/slow?ms=300".into(),
        connections: 5,
        requests_per_s: 15,
        ..Plan::new(host.port)
    });
    for roll in 1..=ROLLS {
        let name = if roll % 2 == 0 { "a" } else { "b" };
        host.point_to(name);
        host.hang_up();
        host.await_rolls(roll);
        host.await_workers_of(name);
    }
    let summaries = [("quick", quick.stop()), ("slow", slow.stop())];

    for (which, summary) in summaries {
        let Summary { ok, not_ok, cut, refused, timed_out, .. } = summary;
        assert_eq!((not_ok, cut, refused, timed_out), (0, 0, 0, 0), "{which}: {summary:?}");
        assert!(ok >= ROLLS, "{which}: {summary:?}");
        let seen: Vec<_> = summary.revisions.keys().cloned().collect();
        assert_eq!(seen, [revision("a"), revision("b")], "{which}");
    }
}

#[test]
fn signals_during_a_roll_make_one_more_roll() {
    let host = Host::new();
    for name in ["a", "b"] {
        host.release(name, Kind::Plain, json!({}));
    }
    host.point_to("a");
    host.start();
    host.await_workers_of("a");

    host.point_to("b");
    host.hang_up();
    wait_until("the roll has begun", || !host.workers_of("b").is_empty());
    for _ in 0..3 {
        host.hang_up();
    }

    wait_until("both rolls are done", || {
        let workers = host.processes("server.js").len();
        assert!(workers <= WORKERS + 1, "one at a time is replaced, and there are {workers}");
        host.rolls() == 2
    });
    host.await_workers_of("b");
    assert_eq!(host.rolls(), 2);
}

#[test]
fn a_master_outlives_crashing_workers() {
    let host = Host::new();
    host.release("a", Kind::Plain, json!({}));
    host.release("b", Kind::Plain, json!({"worker": "crash"}));
    host.point_to("a");
    host.start();
    host.await_workers_of("a");
    let master = host.master();

    host.point_to("b");
    host.hang_up();
    host.await_rolls(1);
    wait_until("workers of b crash again and again", || host.logged("another in 200 ms") >= 6);
    assert_eq!(host.health(), None, "nobody listens");
    assert_eq!(host.master(), master);

    host.point_to("a");
    host.hang_up();
    host.await_workers_of("a");
    wait_until("a is healthy", || host.health().is_some_and(|(status, _)| status == 200));
    assert_eq!(host.master(), master);
}

#[test]
fn a_master_that_keeps_its_directory_serves_the_old_revision() {
    let host = Host::new();
    host.release("a", Kind::Plain, json!({"on_hangup": "keep-directory"}));
    host.release("b", Kind::Plain, json!({}));
    host.point_to("a");
    host.start();
    host.await_workers_of("a");
    let old = host.workers_of("a");

    host.point_to("b");
    host.hang_up();

    host.await_rolls(1);
    let new = host.workers_of("a");
    assert_eq!(new.len(), WORKERS);
    assert!(new.iter().all(|worker| !old.contains(worker)), "every worker is new");
    assert_eq!(host.health().unwrap().1["revision"], revision("a"));
}

#[test]
fn a_master_that_ignores_the_signal_keeps_its_release() {
    let host = Host::new();
    host.release("a", Kind::Plain, json!({"on_hangup": "ignore"}));
    host.release("b", Kind::Plain, json!({}));
    host.point_to("a");
    host.start();
    host.await_workers_of("a");
    let victim = host.workers_of("a")[0];

    host.point_to("b");
    host.hang_up();
    // The master notices the loss after the signal: once it has replaced this one it has had both.
    kill(victim, Signal::SIGKILL).unwrap();

    wait_until("the victim is replaced", || {
        let workers = host.workers_of("a");
        workers.len() == WORKERS && !workers.contains(&victim)
    });
    assert_eq!((host.rolls(), host.workers_of("b").len()), (0, 0));
}

#[test]
fn a_master_that_dies_comes_back_in_the_new_release() {
    let host = Host::new();
    host.release("a", Kind::Plain, json!({"on_hangup": "die"}));
    host.release("b", Kind::Plain, json!({}));
    host.point_to("a");
    host.start();
    host.await_workers_of("a");
    let (supervisor, master) = (host.processes("supervisor.js"), host.master());

    host.point_to("b");
    host.hang_up();

    host.await_workers_of("b");
    wait_until("b is served", || {
        host.health().is_some_and(|(_, body)| body["revision"] == revision("b"))
    });
    assert_ne!(host.master(), master);
    assert_eq!(host.processes("supervisor.js"), supervisor);
}

#[test]
fn a_full_restart_is_term_wait_start() {
    let host = Host::new();
    for name in ["a", "b"] {
        host.release(name, Kind::Plain, json!({}));
    }
    host.point_to("a");
    host.start();
    host.await_workers_of("a");
    let master = host.master().unwrap();

    kill(master, Signal::SIGTERM).unwrap();
    wait_until("the master is gone", || !host.processes("master.js").contains(&master));
    assert_eq!(host.master(), None, "the pid file goes before the master");
    // At once: the supervisor may still be on its way out.
    host.point_to("b");
    host.start();
    host.await_workers_of("b");

    kill(host.processes("supervisor.js")[0], Signal::SIGTERM).unwrap();
    wait_until("everything is gone", || host.everything().is_empty());
    assert_eq!(host.master(), None);
}

/// Every row is a revision that misbehaves while its master does not.
#[test]
fn workers_misbehave_as_told() {
    let unhealthy = json!({"status": "unhealthy", "revision": revision("a")});
    let wrong = json!({"status": "ok", "revision": "0".repeat(40)});
    let cases = [
        ("unhealthy", Some((503, unhealthy))),
        ("wrong-revision", Some((200, wrong))),
        ("hang", None),
    ];
    for (worker, expected) in cases {
        let host = Host::new();
        host.release("a", Kind::Plain, json!({"worker": worker}));
        host.point_to("a");
        host.start();
        wait_until("it listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, host.port)).is_ok());
        let answer = host.health().map(|(status, mut body)| {
            body.as_object_mut().unwrap().remove("pid");
            (status, body)
        });
        assert_eq!(answer, expected, "{worker}");
    }

    let host = Host::new();
    host.release("a", Kind::Plain, json!({"worker": "crash-after-ms:300"}));
    host.point_to("a");
    host.start();
    wait_until("it serves", || host.health().is_some_and(|(status, _)| status == 200));
    wait_until("it crashes", || host.logged("crashes after 300 ms") >= WORKERS);
    wait_until("it serves again", || host.health().is_some_and(|(status, _)| status == 200));
}

/// Returns what a release's revision file says: a made-up commit id.
fn revision(name: &str) -> String {
    name.repeat(40)
}

/// Waits for a state. The deadline is no part of any test: it only ends those that fail.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 30 s: {what}");
}

/// A host with the app on it, and nothing else: `current`, `releases` and `shared` in a directory.
///
/// Dropping it ends whatever was started from its releases.
struct Host {
    dir: TempDir,
    root: PathBuf,
    port: u16,
}

impl Host {
    fn new() -> Self {
        let dir = TempDir::new().expect("the temporary directory is writable");
        // As the processes name it in /proc.
        let root = dir.path().canonicalize().expect("it was just made");
        let port = app::free_port();
        fs::create_dir_all(root.join("shared/run")).expect("it is ours");
        fs::write(root.join("shared/run/port"), port.to_string()).expect("it is ours");
        Host { dir, root, port }
    }

    fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    fn release(&self, name: &str, kind: Kind, behaviour: Value) {
        let release = self.releases().join(name);
        for (path, content, executable) in app::files(kind, self.port) {
            let path = release.join(path);
            fs::create_dir_all(path.parent().expect("it is in the release")).expect("it is ours");
            fs::write(&path, content).expect("it is ours");
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        fs::write(release.join("behaviour.json"), behaviour.to_string()).expect("it is ours");
        fs::write(release.join(".towline-revision"), revision(name)).expect("it is ours");
        symlink("../../shared/run", release.join("run")).expect("no file of the app has this name");
    }

    /// Runs the install command of the release's recipe.
    fn install(&self, name: &str) {
        let release = self.releases().join(name);
        let recipe = fs::read_to_string(release.join("towline.toml")).expect("it was just written");
        let recipe: toml::Table = recipe.parse().expect("the recipe is in the source tree");
        let command: Vec<String> =
            recipe["install"]["command"].clone().try_into().expect("argv is a list of strings");
        let output = Command::new(&command[0])
            .args(&command[1..])
            .current_dir(&release)
            .output()
            .expect("npm is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn point_to(&self, name: &str) {
        let next = self.root.join("current.next");
        symlink(Path::new("releases").join(name), &next).expect("the last one was renamed");
        fs::rename(&next, self.root.join("current")).expect("current is a link");
    }

    /// Starts the app as the agent does, with nothing else in its environment.
    fn start(&self) {
        let current = self.root.join("current");
        let status = Command::new("./bin/start")
            .current_dir(&current)
            .env_clear()
            .envs(["PATH", "HOME"].map(|name| (name, std::env::var(name).unwrap_or_default())))
            .env("LANG", "C.UTF-8")
            .env("PWD", &current)
            .stdin(Stdio::null())
            .status()
            .expect("the script is executable");
        assert!(status.success(), "bin/start: {status}");
    }

    fn write_pid_file(&self, content: &str) {
        fs::write(self.root.join("shared/run/app.pid"), content).expect("it is ours");
    }

    /// Returns the master's pid as the pid file has it.
    fn master(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.root.join("shared/run/app.pid")).ok()?;
        Some(Pid::from_raw(text.trim().parse().expect("it is never half written")))
    }

    fn hang_up(&self) {
        let master = self.master().expect("the master was awaited");
        kill(master, Signal::SIGHUP).expect("the master lives");
    }

    /// Waits until `name` has all its workers, and no other release has any.
    fn await_workers_of(&self, name: &str) {
        wait_until(&format!("there are {WORKERS} workers, all of {name}"), || {
            let workers = self.workers_of(name);
            workers.len() == WORKERS && self.processes("server.js") == workers
        });
        wait_until(&format!("{name} answers"), || self.health().is_some());
    }

    fn await_rolls(&self, rolls: usize) {
        wait_until(&format!("{rolls} rolls are done"), || self.rolls() >= rolls);
    }

    /// Returns how many times the master has replaced its workers.
    fn rolls(&self) -> usize {
        self.logged("workers replaced")
    }

    fn logged(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("shared/run/app.log")).unwrap_or_default()
    }

    fn workers_of(&self, name: &str) -> Vec<Pid> {
        self.running(|script| *script == self.releases().join(name).join("server.js"))
    }

    fn processes(&self, file: &str) -> Vec<Pid> {
        self.running(|script| script.ends_with(file))
    }

    fn everything(&self) -> Vec<Pid> {
        self.running(|_| true)
    }

    /// Returns the processes whose script lies in a release of this host, and is one of those asked for.
    fn running(&self, is_asked_for: impl Fn(&Path) -> bool) -> Vec<Pid> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("there is a /proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that ended meanwhile, or a zombie, has none.
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let script = command.split(|byte| *byte == 0).nth(1).unwrap_or_default();
            let script = PathBuf::from(String::from_utf8_lossy(script).into_owned());
            if script.starts_with(self.releases()) && is_asked_for(&script) {
                found.push(Pid::from_raw(pid));
            }
        }
        found.sort();
        found
    }

    /// Asks for the health once, and returns the status and the body.
    fn health(&self) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).ok()?))
    }
}

impl Drop for Host {
    #[allow(clippy::print_stderr, reason = "the app's log is what a failed test is understood by")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("app.log in {}:\n{}", self.dir.path().display(), self.log());
        }
        // Again and again: a supervisor may start a master, and a master a worker, between look and kill.
        for _ in 0..1_000 {
            let left = self.everything();
            if left.is_empty() {
                return;
            }
            for pid in left {
                // Gone by itself is as good.
                kill(pid, Signal::SIGKILL).ok();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
