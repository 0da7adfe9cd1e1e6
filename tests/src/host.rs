//! One instance on loopback: the real agent, the real app, in a directory of their own.
//!
//! Everything waits for a state with a deadline; nothing waits for a length of time. Whatever was
//! started here is ended by its pid when the value is dropped, also when a test fails.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use serde_json::{Value, json};
use tempfile::TempDir;
use towline_agent::process::CgroupHome;

use crate::app;

/// How long a state is waited for: far longer than it takes, so that a slow machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Who the app runs as where the agent is root; an account that every system has.
const USER: &str = "nobody";

/// What an app answers, in place of a revision, that was there before the agent.
pub const OLD: &str = "0000000000000000000000000000000000000000";

/// One instance.
#[derive(Debug)]
pub struct Host {
    root: Arc<TempDir>,
    /// The app's directory, below it.
    dir: PathBuf,
    /// What the app's processes are known by.
    scope: PathBuf,
    /// Where the app listens.
    pub port: u16,
    generation: u64,
    agent: Option<Child>,
    /// Lines that replace or extend the host config's tables.
    config: String,
    /// What the agent's environment holds besides the test's own.
    environment: Vec<(String, String)>,
}

impl Host {
    /// Lays out an instance whose origin is at `url`; nothing runs yet.
    ///
    /// - `git`: further lines of `[git]`; `more`: further tables of the config.
    #[must_use]
    pub fn new(url: &str, git: &str, more: &str) -> Self {
        Self::on_port(app::free_port(), url, git, more)
    }

    /// Like [`Host::new`], for an app whose port was chosen before.
    #[must_use]
    pub fn on_port(port: u16, url: &str, git: &str, more: &str) -> Self {
        Self::lay(port, "i-test", url, git, more, |host| {
            format!("[source]\nfile = {:?}\n", host.target_file())
        })
    }

    /// An instance that follows coordinators at these addresses.
    ///
    /// - `more`: further tables of the config, `[coordinator]` among them.
    #[must_use]
    pub fn member(instance: &str, url: &str, coordinators: &[String], more: &str) -> Self {
        let git = "branch = \"main\"\n";
        Self::lay(app::free_port(), instance, url, git, more, |_| {
            format!("coordinators = {coordinators:?}\n")
        })
    }

    /// `source`: the lines that say where targets come from; a table, or keys of the top level.
    fn lay(
        port: u16,
        instance: &str,
        url: &str,
        git: &str,
        more: &str,
        source: impl FnOnce(&Self) -> String,
    ) -> Self {
        let root = tempfile::Builder::new().prefix("towline-").tempdir().expect("a temp dir");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path(), mode).expect("it is ours");
        let dir = root.path().join("web");
        Self::place(Arc::new(root), dir, port, instance, url, git, more, source)
    }

    /// Another app on the same instance, at `dir`, which lies beside this one's.
    #[must_use]
    pub fn beside(&self, dir: &Path, port: u16, url: &str) -> Self {
        let (root, git) = (Arc::clone(&self.root), "branch = \"main\"\n");
        let mut host = Self::place(root, dir.to_owned(), port, "i-test", url, git, "", |host| {
            format!("[source]\nfile = {:?}\n", host.target_file())
        });
        host.scope = dir.to_owned();
        host
    }

    #[allow(clippy::too_many_arguments, reason = "it is what the others say less of")]
    fn place(
        root: Arc<TempDir>,
        dir: PathBuf,
        port: u16,
        instance: &str,
        url: &str,
        git: &str,
        more: &str,
        source: impl FnOnce(&Self) -> String,
    ) -> Self {
        let mut host = Self {
            scope: root.path().to_owned(),
            root,
            dir,
            port,
            generation: 0,
            agent: None,
            config: String::new(),
            environment: Vec::new(),
        };
        fs::create_dir(host.dir()).expect("a new directory");
        host.lay_out();
        let user = if geteuid().is_root() { format!("user = \"{USER}\"\n") } else { String::new() };
        // What npm needs to reach its registry from here, where anything is needed at all.
        let pass = "pass_env = [\"NODE_EXTRA_CA_CERTS\", \"HTTPS_PROXY\", \"https_proxy\"]\n";
        let allow = if url.starts_with("http:") { "allow_http = true\n" } else { "" };
        let text = format!(
            "group = \"web\"\ninstance = \"{instance}\"\ndir = {:?}\n{user}{pass}{}[git]\nurl = \
             {url:?}\n{allow}{git}\n[keep]\nfree_mib = 16\n[retry]\nfirst_s = 0.2\nmax_s = 2\n{more}\n",
            host.dir(),
            source(&host),
        );
        fs::write(host.config_file(), &text).expect("a new file");
        host.config = text;
        host
    }

    /// Makes what the app needs in its directory; once more where a file system was mounted there.
    pub fn lay_out(&self) {
        let run = self.dir().join("shared/run");
        fs::create_dir_all(&run).expect("a new directory");
        fs::write(run.join("port"), self.port.to_string()).expect("a new file");
        if geteuid().is_root() {
            let user = User::from_name(USER).ok().flatten().expect("every system has it");
            chown(&run, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("we are root");
        }
    }

    /// Replaces a piece of the host config.
    pub fn reconfigure(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "{from} is in the config");
        self.config = self.config.replacen(from, to, 1);
        fs::write(self.config_file(), &self.config).expect("it is ours");
    }

    /// Where the app lives that was there before the agent.
    #[must_use]
    pub fn old_dir(&self) -> PathBuf {
        self.root.path().join("old")
    }

    /// Lays out an app that was there before, and says so in host config; starts it, and waits until it
    /// answers. `health`: lines of `[adopt.health]`.
    pub fn adopt(&mut self, files: &[(String, Vec<u8>, bool)], health: &str) {
        let dir = self.old_dir();
        let write = |path: &str, content: &[u8], mode: u32| {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("it is ours");
            fs::write(&path, content).expect("a new file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        };
        for (path, content, is_program) in files {
            write(path, content, if *is_program { 0o755 } else { 0o644 });
        }
        write(".towline-revision", OLD.as_bytes(), 0o644);
        write("run/port", self.port.to_string().as_bytes(), 0o644);
        let mut start = Command::new("./bin/start");
        start.current_dir(&dir).env("PWD", &dir);
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if geteuid().is_root() {
            let user = User::from_name(USER).ok().flatten().expect("every system has it");
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            chown(dir.join("run"), Some(uid), Some(gid)).expect("we are root");
            start.uid(uid).gid(gid);
        }
        let table = format!(
            "\n[adopt]\ndir = {dir:?}\npid_file = {:?}\nstart = [\"./bin/start\"]\ntimeout_s = \
             8\n[adopt.health]\nevery_s = 0.2\npasses = 2\nhealthy_for_s = 0.6\nstart_s = 8\n{health}\n",
            dir.join("run/app.pid"),
        );
        self.config.push_str(&table);
        fs::write(self.config_file(), &self.config).expect("it is ours");
        assert!(start.status().expect("it can be run").success());
        self.await_old();
    }

    /// Waits until what was there before answers: where nothing probes it, its workers may come up later.
    fn await_old(&mut self) {
        self.await_some("the old app", |host| {
            (host.served().as_deref() == Some(OLD)).then_some(())
        });
    }

    /// Waits until what was there before is told of, healthy, with nothing under way, and answers.
    pub fn await_adopted(&mut self) -> Value {
        let status = self.await_status("what was adopted to serve", |status| {
            status["adopted"] == true
                && status["health"] == "healthy"
                && matches!(status["phase"].as_str(), Some("idle" | "waiting"))
        });
        assert_eq!(status["serving"], Value::Null, "{status:#}");
        self.await_old();
        assert_eq!(self.current(), None, "no release is live");
        assert_eq!(self.processes("master.js").len(), 1, "one app runs");
        status
    }

    /// Adds to the environment of the agents that are started from now on.
    pub fn add_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment.extend(variables);
    }

    /// The app's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// A file of this app's, beside its directory.
    fn file(&self, extension: &str) -> PathBuf {
        self.dir.with_extension(extension)
    }

    /// The pid of the app's manager, as its pid file has it.
    #[must_use]
    pub fn app_pid(&self) -> String {
        fs::read_to_string(self.dir().join("shared/run/app.pid")).expect("the app runs")
    }

    /// Host config.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.file("toml")
    }

    /// The target file.
    #[must_use]
    pub fn target_file(&self) -> PathBuf {
        self.file("target.json")
    }

    /// Names the next target.
    pub fn target(&mut self, revision: &str) {
        self.target_with(revision, json!({}));
    }

    /// Names the next target, with further fields.
    pub fn target_with(&mut self, revision: &str, more: Value) {
        self.generation += 1;
        let mut target = json!({
            "version": 1, "group": "web", "epoch": 1, "generation": self.generation,
            "revision": revision,
        });
        let fields = target.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        self.write_target(&target.to_string());
    }

    /// The generation of the newest target.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Replaces the target file, as whoever moves a target should.
    pub fn write_target(&self, text: &str) {
        let new = self.file("target.new");
        fs::write(&new, text).expect("a new file");
        fs::rename(new, self.target_file()).expect("the same directory");
    }

    /// A command line of the agent.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(agent());
        command.arg(name).arg("--config").arg(self.config_file());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Applies the target once; returns the exit code and what was logged.
    #[must_use]
    pub fn once(&self) -> (i32, String) {
        let output =
            self.command("once").args(["--log", "json"]).output().expect("the agent was built");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), log)
    }

    /// Bakes a revision into it, as into an image: another instance has applied it once, from a file, and
    /// nothing runs.
    pub fn bake(&mut self, revision: &str) {
        let own = self.config.clone();
        let source =
            |line: &&str| !line.starts_with("coordinators") && !line.starts_with("instance");
        let rest: Vec<&str> = own.lines().filter(source).collect();
        let rest = rest.join("\n");
        let source = format!("instance = \"i-image\"\n{}", rest.replacen(
            "[git]",
            &format!("[source]\nfile = {:?}\n[git]", self.target_file()),
            1,
        ));
        fs::write(self.config_file(), source).expect("it is ours");
        // Below whatever a store has begun since.
        self.target(revision);
        let (code, log) = self.once();
        assert_eq!(code, 0, "{log}");
        self.kill_app();
        fs::write(self.config_file(), &own).expect("it is ours");
    }

    /// Starts the agent; its log is appended to.
    pub fn run(&mut self) {
        assert!(self.agent.is_none(), "one agent at a time");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log");
        let agent = self
            .command("run")
            .args(["--log", "json"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent was built");
        self.agent = Some(agent);
    }

    /// The agent's pid.
    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("it was started").id()
    }

    /// Kills the agent, and nothing else.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().expect("it was started");
        agent.kill().expect("it is ours");
        agent.wait().expect("it is ours");
    }

    /// Asks the agent to end.
    pub fn ask_to_end(&self) {
        signal(self.agent_pid(), Signal::SIGTERM);
    }

    /// Asks the agent to end, and waits for it.
    pub fn terminate(&mut self) -> ExitStatus {
        self.ask_to_end();
        let mut agent = self.agent.take().expect("it was started");
        agent.wait().expect("it is ours")
    }

    /// Waits for the end of an agent that was asked to end, which is to come within this time.
    pub fn await_end(&mut self, within: Duration) -> ExitStatus {
        let step = Duration::from_millis(10);
        for _ in 0..within.as_millis() / step.as_millis() {
            let agent = self.agent.as_mut().expect("it was started");
            if let Some(end) = agent.try_wait().expect("it is ours") {
                self.agent = None;
                return end;
            }
            thread::sleep(step);
        }
        panic!("the agent did not end within {within:?}\nlog:\n{}", self.log());
    }

    /// Is the agent alive?
    pub fn is_alive(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().is_ok_and(|end| end.is_none()))
    }

    fn log_file(&self) -> PathBuf {
        self.file("agent.log")
    }

    /// Everything that the agents started by [`Host::run`] have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// What `towline-agent status --json` says; null where no agent has run.
    #[must_use]
    pub fn status(&self) -> Value {
        let output = self.command("status").arg("--json").output().expect("the agent was built");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the status is as wanted, and returns it.
    pub fn await_status(&mut self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.await_some(what, |host| {
            let status = host.status()["status"].take();
            // What an agent before this one has left says nothing about this one.
            let own = host.agent.as_ref().map(Child::id);
            let is_own = own.is_some() && status["pid"].as_u64() == own.map(u64::from);
            (is_own && is_wanted(&status)).then_some(status)
        })
    }

    /// Waits until this revision is served, healthy, and nothing is under way.
    pub fn await_serving(&mut self, revision: &str) -> Value {
        self.await_status(&format!("{revision} to be served"), |status| {
            status["serving"] == revision
                && status["health"] == "healthy"
                && matches!(status["phase"].as_str(), Some("idle" | "waiting"))
        })
    }

    /// Waits until there is something.
    pub fn await_some<T>(&mut self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let step = Duration::from_millis(10);
        for _ in 0..PATIENCE.as_millis() / step.as_millis() {
            if let Some(found) = look(self) {
                return found;
            }
            thread::sleep(step);
        }
        let app = fs::read_to_string(self.dir().join("shared/run/app.log")).unwrap_or_default();
        panic!(
            "waited in vain for {what}\nstatus: {:#}\nlog:\n{}\napp:\n{app}",
            self.status(),
            self.log()
        );
    }

    /// The revision that the app's own answer names.
    #[must_use]
    pub fn served(&self) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body = &answer[answer.find('{')?..=answer.rfind('}')?];
        let body: Value = serde_json::from_str(body).ok()?;
        body["revision"].as_str().map(str::to_owned)
    }

    /// The revision that `current` points at.
    #[must_use]
    pub fn current(&self) -> Option<String> {
        let link = fs::read_link(self.dir().join("current")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// The pids of this host's processes whose command line holds `word`; those of the app by their
    /// directory or environment, those of an install by theirs.
    #[must_use]
    pub fn processes(&self, word: &str) -> Vec<u32> {
        let mut found = processes_of(&self.scope, word);
        found.retain(|pid| self.agent.as_ref().is_none_or(|agent| agent.id() != *pid));
        found
    }

    /// Ends the app at once, as a power cut would.
    pub fn kill_app(&self) {
        end_all(|| self.processes(""));
    }

    /// Runs a command of the agent that needs no config, such as `check`.
    #[must_use]
    pub fn agent(arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(agent()).args(arguments).output().expect("the agent was built");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
        self.kill_app();
        remove_cgroups();
    }
}

/// Removes the cgroups of agents that nobody starts again: empty ones, and none that is just being used.
fn remove_cgroups() {
    const AGE: Duration = Duration::from_secs(60);
    let Some(home) = CgroupHome::find() else { return };
    for entry in fs::read_dir(home.dir()).into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|meta| meta.modified());
        let is_old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > AGE));
        if is_old && entry.file_name().to_string_lossy().starts_with("towline.") {
            // Refused where somebody is in it.
            fs::remove_dir(entry.path()).ok();
        }
    }
}

/// The pids of the processes whose command line or environment holds the path `dir`, and whose command
/// line holds `word`.
#[must_use]
pub fn processes_of(dir: &Path, word: &str) -> Vec<u32> {
    let dir = dir.to_str().expect("a temp dir's name is text");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let holds = |bytes: &[u8], text: &str| {
            text.is_empty() || bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        let line = read("cmdline");
        if pid != std::process::id()
            && holds(&line, word)
            && (holds(&read("environ"), dir) || holds(&line, dir))
        {
            found.push(pid);
        }
    }
    found
}

/// Kills whatever is found, again and again: a supervisor may start another one meanwhile.
pub fn end_all(find: impl Fn() -> Vec<u32>) {
    for _ in 0..50 {
        let pids = find();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            signal(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Asks a process to end.
pub fn ask(pid: u32) {
    signal(pid, Signal::SIGTERM);
}

/// Stops a process, or lets it go on.
pub fn pause(pid: u32, yes: bool) {
    signal(pid, if yes { Signal::SIGSTOP } else { Signal::SIGCONT });
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended by itself.
        kill(Pid::from_raw(pid), signal).ok();
    }
}

/// The agent's binary, beside the test's own.
#[must_use]
pub fn agent() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let beside = |dir: &Path| dir.join("towline-agent");
    let found = own.ancestors().skip(1).take(2).map(beside).find(|path| path.is_file());
    found.expect("build the agent first: cargo build -p towline-agent")
}
