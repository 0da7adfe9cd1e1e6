//! Real binaries on loopback: a coordinator, the operator's command, and instances that follow it.
//!
//! Everything waits for a state with a deadline. Whatever was started here is ended by its pid when the
//! value is dropped, also when a test fails. The coordinator keeps its address when it is started again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{self, Kind};
use crate::host::{self, Host, PATIENCE};
use crate::origin::{Origin, Repo};

/// The health check of an app of which several run on one host: each listens where its own file says, so
/// that no address can stand in the recipe that all of them share. `run/sick` makes one of them unhealthy.
const PROBE: &str = r#"#!/bin/bash
[ ! -e run/sick ] || { echo 'run/sick is there'; exit 1; }
exec 3<>"/dev/tcp/127.0.0.1/$(cat run/port)" || exit 1
printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
answer=$(cat <&3)
case $answer in
  *' 200 '*"$(cat .towline-revision)"*) ;;
  *) echo "${answer%%$'\r'*}"; exit 1 ;;
esac
"#;

/// A coordinator.
#[derive(Debug)]
pub struct Coordinator {
    root: TempDir,
    port: u16,
    scheme: &'static str,
    child: Option<Child>,
    /// Lines of its config.
    config: String,
    environment: Vec<(String, String)>,
    /// Further arguments of the operator's command.
    client: Vec<(String, String)>,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its data.
    pub out: String,
    /// All else.
    pub err: String,
}

impl Said {
    /// Its data as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or(Value::Null)
    }
}

impl Coordinator {
    /// Lays out a coordinator on loopback; nothing runs yet. `config`: lines of its config file.
    #[must_use]
    pub fn new(config: &str) -> Self {
        let root =
            tempfile::Builder::new().prefix("towline-coordinator-").tempdir().expect("a temp dir");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path(), mode).expect("it is ours");
        fs::create_dir(root.path().join("data")).expect("a new directory");
        Self {
            root,
            port: app::free_port(),
            scheme: "http",
            child: None,
            config: config.to_owned(),
            environment: Vec::new(),
            client: Vec::new(),
        }
    }

    /// A coordinator that runs, without TLS and tokens.
    #[must_use]
    pub fn start() -> Self {
        let mut coordinator = Self::new("");
        coordinator.run();
        coordinator
    }

    /// Says that it has TLS, by lines of its config.
    pub fn with_tls(&mut self, lines: &str) {
        self.scheme = "https";
        self.config.push_str(lines);
    }

    /// Sets a variable of the operator's command.
    pub fn set_client(&mut self, name: &str, value: &str) {
        self.client.retain(|(known, _)| known != name);
        self.client.push((name.to_owned(), value.to_owned()));
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address for root and its own user: the socket.
    #[must_use]
    pub fn socket(&self) -> String {
        format!("unix:{}", self.data().join("admin.sock").display())
    }

    /// Sets a variable of the coordinators that are started from now on.
    pub fn set_environment(&mut self, name: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// Where it keeps everything.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A place for files of its own.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The arguments with which it is started.
    #[must_use]
    pub fn command(&self) -> Command {
        let config = self.root.path().join("coordinator.toml");
        let text = format!(
            "listen = [\"127.0.0.1:{}\"]\ndata = {:?}\n{}\n",
            self.port,
            self.data(),
            self.config
        );
        fs::write(&config, text).expect("a new file");
        let mut command = Command::new(binary("towline-coordinator"));
        command.args(["run", "--log", "json", "--config"]).arg(config);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A command line of its own for what stands in its data directory, such as `backup`.
    #[must_use]
    pub fn tool(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(binary("towline-coordinator"));
        command.arg(name).arg("--data").arg(self.data()).args(more);
        command
    }

    /// Starts it, and waits until it is ready.
    pub fn run(&mut self) {
        self.spawn();
        self.await_ready();
    }

    /// Starts it.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "one at a time");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("the coordinator was built"));
    }

    fn log_file(&self) -> PathBuf {
        self.root.path().join("coordinator.log")
    }

    /// Everything that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until it answers.
    pub fn await_ready(&mut self) {
        await_some("the coordinator to be ready", || {
            if let Some(child) = &mut self.child
                && let Ok(Some(end)) = child.try_wait()
            {
                let log = fs::read_to_string(self.root.path().join("coordinator.log"));
                panic!("the coordinator ended: {end}\n{}", log.unwrap_or_default());
            }
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop)
        });
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
        }
    }

    /// Waits for an end that comes by itself, at this place; is it alive still, after all of our patience,
    /// this fails.
    pub fn await_end(&mut self, place: &str) {
        // It stays in its place until then: dropped, it is killed.
        let child = self.child.as_mut().expect("it was started");
        await_some(&format!("the coordinator to end at {place}"), || {
            child.try_wait().expect("it is ours")
        });
        self.child = None;
    }

    /// Asks it to end, and waits for that.
    pub fn terminate(&mut self) -> i32 {
        let child = self.child.as_mut().expect("it was started");
        host::ask(child.id());
        let end = await_some("the coordinator to end", || child.try_wait().expect("it is ours"));
        self.child = None;
        end.code().unwrap_or(-1)
    }

    /// The operator's command line.
    #[must_use]
    pub fn towline(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("towline"));
        command.args(arguments).env("TOWLINE_COORDINATOR", self.url()).env("HOME", self.root());
        command.envs(self.client.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Runs the operator's command.
    #[must_use]
    pub fn say(&self, arguments: &[&str]) -> Said {
        let output = self.towline(arguments).output().expect("the command was built");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Runs the operator's command, which must succeed; returns its data.
    pub fn must(&self, arguments: &[&str]) -> String {
        let said = self.say(arguments);
        assert_eq!(said.code, 0, "towline {arguments:?}: {}\n{}", said.err, self.log());
        said.out
    }

    /// Runs the operator's command with `--json`, which must succeed.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let out = self.must(&all);
        serde_json::from_str(&out).expect("it prints JSON")
    }

    /// How the group's instances stand.
    #[must_use]
    pub fn counts(&self) -> Value {
        let mut said = self.say(&["skew", "web", "--json"]).json();
        said["skews"][0]["counts"].take()
    }

    /// Waits until so many instances stand like this.
    pub fn await_count(&self, status: &str, count: u64) {
        let mut last = Value::Null;
        let found = wait(|| {
            last = self.counts();
            (last[status] == count).then_some(())
        });
        let log = || self.log();
        found.unwrap_or_else(|| panic!("waited for {count} {status}\n{last:#}\n{}", log()));
    }

    /// Makes the group `web` with this policy.
    pub fn set_group(&self, policy: &str) {
        let file = self.root.path().join("web.toml");
        fs::write(&file, policy).expect("a new file");
        self.must(&["group", "set", "web", "--file", file.to_str().expect("it is text")]);
    }

    /// The group's rollout.
    #[must_use]
    pub fn rollout(&self) -> Value {
        let mut said = self.say(&["rollout", "show", "web", "--json"]).json();
        said["rollout"].take()
    }

    /// Waits until the newest rollout is as wanted.
    pub fn await_rollout(&self, what: &str, mut is_wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait(|| {
            last = self.rollout();
            is_wanted(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("waited in vain for {what}\n{last:#}\n{}", self.log()))
    }

    /// Waits until the newest rollout is in this state.
    pub fn await_state(&self, state: &str) -> Value {
        self.await_rollout(&format!("a rollout that is {state}"), |rollout| {
            rollout["state"] == state
        })
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A coordinator, an origin, and instances that follow.
#[derive(Debug)]
pub struct Cluster {
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The app's repository.
    pub repo: Repo,
    /// Where that is.
    pub origin: Origin,
    /// The instances.
    pub hosts: Vec<Host>,
    /// The last commit.
    pub tip: Option<String>,
    /// Further tables of the hosts' config.
    more: String,
}

/// A policy that takes seconds where the defaults take minutes.
pub const QUICK: &str = "canary = 1\nbatches = [\"50%\", \"100%\"]\nmax_unavailable = 2\nbake_s = { \
                         canary = 1, batch = 1 }\nhealthy_deadline_s = 30\nprepare_deadline_s = \
                         30\nprogress_deadline_s = 60\nmirror = false\n";

impl Cluster {
    /// A coordinator with a group, and no instances yet.
    #[must_use]
    pub fn new(policy: &str) -> Self {
        Self::around(Coordinator::start(), policy, "")
    }

    /// Gives the group another policy, for its next rollouts.
    pub fn set_policy(&self, policy: &str) {
        let url = self.origin.url(&self.repo);
        self.coordinator.set_group(&format!("repository = {url:?}\n{policy}"));
    }

    /// Adds tables to the config of the hosts that are laid out from now on.
    pub fn add_config(&mut self, more: &str) {
        self.more.push_str(more);
    }

    /// Likewise, around a coordinator that runs. `more`: further tables of the hosts' config.
    #[must_use]
    pub fn around(coordinator: Coordinator, policy: &str, more: &str) -> Self {
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        let (hosts, tip, more) = (Vec::new(), None, more.to_owned());
        let cluster = Self { coordinator, repo, origin, hosts, tip, more };
        cluster.set_policy(policy);
        cluster
    }

    /// A cluster whose instances serve a good revision, which is group-proven.
    #[must_use]
    pub fn serving(instances: usize, policy: &str) -> (Self, String) {
        let mut cluster = Self::new(policy);
        let good = cluster.commit(&json!({}));
        cluster.coordinator.must(&["release", "web", &good]);
        cluster.join();
        cluster.coordinator.await_state("converged");
        for _ in 1..instances {
            cluster.join();
        }
        cluster.await_all(&good);
        (cluster, good)
    }

    /// Commits the app with another behaviour. `window_s`: how long it must be healthy, 1 s by default.
    pub fn commit(&mut self, behaviour: &Value) -> String {
        self.commit_as(behaviour, "A change")
    }

    /// Likewise, with a subject.
    pub fn commit_as(&mut self, behaviour: &Value, subject: &str) -> String {
        let window_s = behaviour["window_s"].as_u64().unwrap_or(1);
        let number = self.tip.as_deref().unwrap_or("the first").to_owned();
        let mut files = app::files(Kind::Plain, 0);
        for (path, content, _) in &mut files {
            if path == "behaviour.json" {
                *content = behaviour.to_string().into_bytes();
            }
            if path == "bin/start" {
                // What it says goes where the agent looks for it: to where the agent starts it.
                let text = String::from_utf8_lossy(content).replace(" >>run/app.log 2>&1", "");
                assert!(!text.contains("app.log"), "the script is as it was: {text}");
                *content = text.into_bytes();
            }
            if path == "towline.toml" {
                let text = String::from_utf8_lossy(content)
                    .replace("http = \"http://127.0.0.1:0/healthz\"", "command = [\"./bin/probe\"]")
                    .replace("revision = { json = \"/revision\" }\n", "")
                    .replace("every_s = 0.5", "every_s = 0.3")
                    .replace("healthy_for_s = 3", &format!("healthy_for_s = {window_s}"))
                    .replace("start_s = 10", "start_s = 5");
                assert!(text.contains("bin/probe"), "the recipe is as it was: {text}");
                *content = text.into_bytes();
            }
        }
        files.push(("bin/probe".to_owned(), PROBE.as_bytes().to_vec(), true));
        files.push(("parent.txt".to_owned(), number.into_bytes(), false));
        let id = self.repo.commit_as(self.tip.as_deref(), &files, subject);
        self.tip = Some(id.clone());
        id
    }

    /// Lays out another instance; its agent does not run yet. Returns its place.
    pub fn lay_out(&mut self) -> usize {
        let name = format!("i-{:02}", self.hosts.len() + 1);
        let url = self.origin.url(&self.repo);
        let host = Host::member(&name, &url, &[self.coordinator.url()], &self.more);
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    /// Adds an instance whose agent runs. Returns its place.
    pub fn join(&mut self) -> usize {
        let place = self.lay_out();
        self.hosts[place].run();
        place
    }

    /// Waits until all instances serve this revision, healthy.
    pub fn await_all(&mut self, revision: &str) {
        for host in &mut self.hosts {
            host.await_serving(revision);
        }
    }

    /// Waits until the coordinator counts so many instances as converged.
    pub fn await_converged(&self, count: u64) {
        let mut last = Value::Null;
        let found = wait(|| {
            last = self.coordinator.counts();
            (last["converged"] == count && last["instances"] == count).then_some(())
        });
        let log = || self.coordinator.log();
        found.unwrap_or_else(|| panic!("waited in vain for {count}\n{last:#}\n{}", log()));
    }
}

fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let step = Duration::from_millis(20);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::sleep(step);
    }
    None
}

/// Waits until there is something.
pub fn await_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait(look).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

/// A binary, beside the test's own.
fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let beside = |dir: &Path| dir.join(name);
    let found = own.ancestors().skip(1).take(2).map(beside).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("build {name} first: cargo build --workspace"))
}

/// Writes a file.
pub fn write(path: &Path, text: &str) {
    let mut file = File::create(path).expect("a new file");
    file.write_all(text.as_bytes()).expect("there is room");
}
