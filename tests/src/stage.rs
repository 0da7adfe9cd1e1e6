//! What the demo's scenes play on, and what `make bench` measures: an origin, the way to a registry, an instance, and a stopwatch.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::app::{self, Kind};
use crate::gateway::Gateway;
use crate::host::Host;
use crate::load::{self, Load, Plan};
use crate::origin::{Origin, Repo};
use serde_json::Value;
use towline_protocol::recipe::Recipe;

/// By when a boot gives up on its target here; by default it is 240 s.
pub const BOOT_DEADLINE_S: u32 = 12;

/// Everything that a scene needs.
pub struct Stage {
    /// The way to npm's registry.
    pub gateway: Gateway,
    /// Where the app's repository is.
    pub origin: Origin,
    /// The instance.
    pub host: Host,
    repo: Repo,
    /// The last commit.
    pub tip: String,
    commits: usize,
    /// The app's files that are not as in the source tree: path and content.
    changed: BTreeMap<String, String>,
}

/// Time since a moment.
#[derive(Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "measuring real time is what it is for")]
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since it was started.
    #[must_use]
    pub fn read(self) -> Duration {
        self.0.elapsed()
    }
}

impl Stage {
    /// Sets up everything; nothing is deployed yet.
    pub fn set() -> Self {
        let gateway = Gateway::start(upstream());
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        let boot = format!("[boot]\ndeadline_s = {BOOT_DEADLINE_S}\n");
        let mut host = Host::new(&origin.url(&repo), "branch = \"main\"\n", &boot);
        host.reconfigure("\"https_proxy\"]", "\"https_proxy\", \"npm_config_fetch_retries\"]");
        host.add_environment(environment(&gateway));
        let (tip, changed) = (String::new(), BTreeMap::new());
        let mut stage = Self { gateway, origin, host, repo, tip, commits: 0, changed };
        stage.commit();
        stage
    }

    /// The variables that lead npm through the gateway.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(&self.gateway)
    }

    /// The address of the repository.
    pub fn url(&self) -> String {
        self.origin.url(&self.repo)
    }

    /// Sets the content of one of the app's files, from the next commit on.
    pub fn change(&mut self, path: &str, content: &str) {
        self.changed.insert(path.to_owned(), content.to_owned());
    }

    /// One of the app's files, as it would be committed next.
    pub fn content(&self, path: &str) -> String {
        let mut files = self.files();
        let at = files.iter().position(|(name, _, _)| name == path).expect("the app has it");
        String::from_utf8(files.swap_remove(at).1).expect("it is text")
    }

    /// The app's recipe.
    pub fn recipe(&self) -> Recipe {
        Recipe::parse(&self.content("towline.toml")).expect("it is valid")
    }

    /// Commits the app, with a file that differs from commit to commit; returns the revision.
    pub fn commit(&mut self) -> String {
        self.commits += 1;
        self.change("release.txt", &format!("release {}\n", self.commits));
        let parent = Some(self.tip.as_str()).filter(|tip| !tip.is_empty());
        self.tip = self.repo.commit(parent, &self.files());
        self.tip.clone()
    }

    fn files(&self) -> Vec<(String, Vec<u8>, bool)> {
        let mut files = app::files(Kind::Express, self.host.port);
        files.retain(|(path, _, _)| !self.changed.contains_key(path));
        let changed = self.changed.iter();
        files.extend(changed.map(|(path, text)| (path.clone(), text.clone().into_bytes(), false)));
        files
    }

    /// Lets npm resolve the app's dependencies with another version of one package.
    pub fn change_lock_file(&mut self, package: &str) {
        const FILES: [&str; 3] = [".npmrc", "package.json", "package-lock.json"];
        let dir = tempfile::tempdir().expect("a temp dir");
        for name in FILES {
            fs::write(dir.path().join(name), self.content(name)).expect("a new file");
        }
        self.npm(&["install", "--package-lock-only", "--save-exact", package], dir.path());
        for name in FILES {
            let text = fs::read_to_string(dir.path().join(name)).expect("npm keeps it");
            self.change(name, &text);
        }
    }

    fn npm(&self, arguments: &[&str], dir: &Path) {
        let output = Command::new("npm")
            .args(arguments)
            .args(["--no-audit", "--no-fund"])
            .current_dir(dir)
            .env("HOME", dir)
            .envs(self.environment())
            .stdin(Stdio::null())
            .output()
            .expect("npm is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "npm {arguments:?}: {said}");
    }

    /// Starts to ask the instance's app for pages, until it is stopped.
    pub fn load(&self) -> Load {
        load::start(Plan::new(self.host.port))
    }

    /// Waits until the agent has logged this of this revision; returns the fields.
    pub fn await_logged(&mut self, message: &str, revision: &str) -> Value {
        self.host.await_some(message, |host| {
            let log = host.log();
            let lines = log.lines().rev();
            let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["message"] == message && line["revision"] == revision)
        })
    }

    /// Like [`Stage::await_logged`], for a line that stands after another.
    pub fn await_logged_after(&mut self, message: &str, revision: &str, after: &Value) -> Value {
        self.host.await_some(message, |host| {
            let log = host.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut later = lines.skip_while(|line| line != after);
            later.find(|line| line["message"] == message && line["revision"] == revision)
        })
    }

    /// Waits until no answer has come from another revision for as long as idle connections last.
    pub fn await_only(&mut self, load: &Load, revision: &str) {
        self.host.await_some("the new revision alone to answer", |_| {
            let seen = load.snapshot().revisions;
            let new = seen.get(revision)?;
            let is_last = seen
                .iter()
                .all(|(name, old)| name == revision || new.last.saturating_sub(old.last) > SETTLED);
            is_last.then_some(())
        });
    }
}

/// Every connection has asked many times by then.
const SETTLED: Duration = Duration::from_millis(1500);

/// A proxy that leads to the registry from here, as `host:port`, where there is one.
fn upstream() -> Option<String> {
    let url = ["HTTPS_PROXY", "https_proxy"].iter().find_map(|name| std::env::var(name).ok())?;
    let place = url.split("://").last()?.split('/').next()?.rsplit('@').next()?;
    Some(place.to_owned()).filter(|place| !place.is_empty())
}

fn environment(gateway: &Gateway) -> Vec<(String, String)> {
    let mut all = gateway.environment();
    // So that an install that cannot reach the registry fails now and not in two minutes.
    all.push(("npm_config_fetch_retries".to_owned(), "0".to_owned()));
    all
}
