//! The app with a gate before every step that may take long, so that a test can hold an agent where
//! it wants it.
//!
//! A gate is closed by a file in the shared directory `run`: whoever comes to it leaves a mark there
//! and waits until the file is gone.
//!
//! | gate | who waits | the agent meanwhile |
//! | --- | --- | --- |
//! | `install` | the install command | is preparing |
//! | `status` | `bin/status`, where the recipe names it | looks for the manager |
//! | `reload` | `bin/reload`, where the recipe names it | is activating |
//! | `stop` | a master that was told to end | is activating, by a restart |
//! | `start` | `bin/start` | is activating |
//! | `pid` | a master that has yet to write its pid file | is activating |
//! | `worker` | a worker that has yet to listen | is proving |
//! | `health` | `bin/health`, where the recipe names it | is probing |
//!
//! What runs leaves its name in `run/ran`, a master that has ended `ended`, and every master its pid in
//! `run/masters`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use towline_tests::app::Kind;

use super::{World, amend, replace};

pub(super) type Files = Vec<(String, Vec<u8>, bool)>;

const PID_FILE: &str = "pid_file = \"run/app.pid\"";
pub(super) const BY_STATUS: (&str, &str) = (PID_FILE, "status = [\"sh\", \"bin/status\"]");
pub(super) const BY_COMMAND: (&str, &str) = ("reload = \"SIGHUP\"", "reload = [\"bin/reload\"]");
/// Back to the default: an install or another runtime makes a restart of a reload.
pub(super) const RESTARTS: (&str, &str) = ("restart_when = []\n", "");

/// Replaces the http check by one that is run.
pub(super) fn check(files: &mut Files, check: &str) {
    let (_, recipe, _) =
        files.iter_mut().find(|(path, _, _)| path == "towline.toml").expect("it has a recipe");
    let text = String::from_utf8_lossy(recipe).into_owned();
    let is_own = |line: &&str| !line.starts_with("http = ") && !line.starts_with("revision = ");
    let rest: Vec<&str> = text.lines().filter(is_own).collect();
    let text = rest.join("\n").replace("[health]", &format!("[health]\n{check}"));
    *recipe = text.into_bytes();
}

pub(super) const COMMAND_CHECK: &str = "command = [\"bin/health\"]";

/// Changes a piece of the recipe.
pub(super) fn set(files: &mut Files, (from, to): (&str, &str)) {
    amend(files, "towline.toml", from, to);
}

/// Lets the app's workers be unhealthy. An app that has never been well gets the manager's time to
/// become so, which is shortened.
pub(super) fn unhealthy(files: &mut Files) {
    set(files, ("\ntimeout_s = 8", "\ntimeout_s = 4"));
    replace(files, "behaviour.json", "{\"worker\": \"unhealthy\"}");
}

/// Has something to install, and other dependencies for each `lock`.
pub(super) fn lock(files: &mut Files, lock: &str) {
    replace(files, "lock.txt", lock);
}

/// In a shell: waits at a gate.
fn at(run: &Path, gate: &str) -> String {
    let run = run.display();
    format!(
        "if [ -e {run}/hold.{gate} ]; then : >{run}/at.{gate}; while [ -e {run}/hold.{gate} ]; do \
         sleep 0.05; done; fi"
    )
}

/// Puts the gates in.
fn put(files: &mut Files, run: &Path, port: u16) {
    let shown = run.display();
    let gate = |name: &str| at(run, name);
    let install =
        format!("{}; echo install >>{shown}/ran; mkdir made; cp lock.txt made", gate("install"));
    let install = format!(
        "[install]\ncommand = [\"sh\", \"-c\", {install:?}]\ninputs = [\"lock.txt\"]\noutputs = \
         [\"made\"]\n\n[manager]"
    );
    set(files, ("[manager]", &install));
    lock(files, "1");
    amend(
        files,
        "bin/start",
        "set -eu\n",
        &format!("set -eu\necho start >>run/ran\n{}\n", gate("start")),
    );
    let script = |name: &str, rest: &str| {
        format!("#!/bin/sh\necho {name} >>{shown}/ran\n{}\n{rest}\n", gate(name))
    };
    replace(files, "bin/status", &script("status", "exec cat run/app.pid"));
    replace(files, "bin/reload", &script("reload", "exec kill -HUP \"$(cat run/app.pid)\""));
    let get = format!(
        "exec node -e 'require(\"http\").get({{port: {port}, path: \"/healthz\"}}, (answer) => \
         process.exit(answer.statusCode === 200 ? 0 : 1)).on(\"error\", () => process.exit(1))'"
    );
    replace(files, "bin/health", &script("health", &get));

    let wait = "function gate(run, name) {\n  if (!fs.existsSync(`${run}/hold.${name}`)) \
                return;\n  fs.writeFileSync(`${run}/at.${name}`, '');\n  const cell = new \
                Int32Array(new SharedArrayBuffer(4));\n  while \
                (fs.existsSync(`${run}/hold.${name}`)) Atomics.wait(cell, 0, 0, 20);\n}\n";
    amend(
        files,
        "server.js",
        "'use strict';\n",
        &format!("'use strict';\nconst fs = require('fs');\n{wait}gate('{shown}', 'worker');\n"),
    );
    amend(files, "master.js", "function log(", &format!("{wait}\nfunction log("));
    amend(
        files,
        "master.js",
        "  stopping = true;\n",
        &format!("  stopping = true;\n  gate('{shown}', 'stop');\n"),
    );
    amend(
        files,
        "master.js",
        "  fs.rmSync(pidFile, { force: true });\n",
        &format!(
            "  fs.rmSync(pidFile, {{ force: true }});\n  fs.appendFileSync('{shown}/ran', \
             'ended\\n');\n"
        ),
    );
    amend(
        files,
        "master.js",
        "\nwritePid();\n",
        &format!(
            "\nfs.appendFileSync('{shown}/masters', `${{process.pid}}\\n`);\ngate('{shown}', \
         'pid');\nwritePid();\n"
        ),
    );
}

impl World {
    /// Serves a good revision of the app with gates, after `edit`.
    pub(super) fn gated(edit: impl FnOnce(&mut Files)) -> (Self, String) {
        let mut world = Self::new(Kind::Plain);
        let good = world.commit_gated(edit);
        world.host.target(&good);
        world.host.run();
        world.host.await_serving(&good);
        (world, good)
    }

    /// Commits the app with gates, after `edit`.
    pub(super) fn commit_gated(&mut self, edit: impl FnOnce(&mut Files)) -> String {
        let (run, port) = (self.run_dir(), self.host.port);
        self.commit_with(|files| {
            put(files, &run, port);
            edit(files);
        })
    }

    /// The shared directory that all releases see.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.host.dir().join("shared/run")
    }

    /// The app's files with gates that are closed in another directory than the shared one.
    pub(super) fn gated_in(&self, run: &Path) -> Files {
        let mut files = self.files();
        put(&mut files, run, self.host.port);
        files
    }

    /// Closes a gate.
    pub(super) fn close(&self, gate: &str) {
        fs::remove_file(self.run_dir().join(format!("at.{gate}"))).ok();
        fs::write(self.run_dir().join(format!("hold.{gate}")), "").expect("it is ours");
    }

    /// Opens a gate; whoever waits goes on.
    pub(super) fn open(&self, gate: &str) {
        fs::remove_file(self.run_dir().join(format!("hold.{gate}"))).expect("it was closed");
    }

    /// Waits until somebody has come to a closed gate.
    pub(super) fn await_at(&mut self, gate: &str) {
        let mark = self.run_dir().join(format!("at.{gate}"));
        self.host.await_some(&format!("the gate {gate}"), |_| mark.exists().then_some(()));
    }

    /// Names a target, and waits until the agent is held in the middle of this phase of it.
    pub(super) fn hold(&mut self, revision: &str, gate: &str, phase: &str) {
        self.close(gate);
        self.host.target(revision);
        self.await_at(gate);
        self.await_phase(revision, phase);
    }

    /// Waits until the agent is in this phase of a target.
    pub(super) fn await_phase(&mut self, revision: &str, phase: &str) {
        self.host.await_status(&format!("{phase} of {revision}"), |status| {
            status["target"] == revision && status["phase"] == phase
        });
    }

    /// Waits until a revision's failure was told, and nothing is under way.
    pub(super) fn await_restored(&mut self, good: &str, bad: &str) -> Value {
        let status = self.host.await_status("the failure to be told", |status| {
            status["phase"] == "idle" && status["failure"]["revision"] == bad
        });
        assert_eq!(status["serving"], good, "{status:#}");
        assert_eq!(status["health"], "healthy", "{status:#}");
        self.assert_one_app(good);
        status
    }

    /// The lines of a file in the shared directory.
    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.run_dir().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How often something ran.
    pub(super) fn ran(&self, name: &str) -> usize {
        self.lines("ran").iter().filter(|line| *line == name).count()
    }

    /// Waits until something has run so often.
    pub(super) fn await_run(&mut self, name: &str, count: usize) {
        let ran = self.run_dir().join("ran");
        self.host.await_some(&format!("{name} to run {count} times"), |_| {
            let text = fs::read_to_string(&ran).unwrap_or_default();
            (text.lines().filter(|line| *line == name).count() >= count).then_some(())
        });
    }

    /// How many masters were ever started.
    pub(super) fn masters(&self) -> usize {
        self.lines("masters").len()
    }

    /// The pid of the only master.
    pub(super) fn master(&self) -> u32 {
        let masters = self.host.processes("master.js");
        assert_eq!(masters.len(), 1, "one app: {masters:?}\n{}", self.host.log());
        masters[0]
    }

    /// One app runs, and it serves this revision, which `current` points at.
    pub(super) fn assert_one_app(&self, revision: &str) {
        self.master();
        assert_eq!(self.host.served().as_deref(), Some(revision));
        assert_eq!(self.host.current().as_deref(), Some(revision));
    }

    /// What was done to the manager at each activation of a revision, in order.
    pub(super) fn done(&self, revision: &str) -> Vec<String> {
        let log = self.host.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own =
            lines.filter(|line| line["message"] == "activated" && line["revision"] == revision);
        own.filter_map(|line| line["manager"].as_str().map(str::to_owned)).collect()
    }

    /// The journal as it is on disk.
    pub(super) fn journal(&self) -> Value {
        let path = self.host.dir().join(".towline/journal.json");
        serde_json::from_slice(&fs::read(path).expect("an agent has run")).expect("it is JSON")
    }
}
