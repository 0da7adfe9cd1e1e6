//! What a recipe can say besides the app that most tests deploy: builds, hooks, trees that stay where they
//! were installed; and real apps of other kinds, each deployed, broken and restored.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use towline_tests::app::Kind;

use super::gates::{Files, set, unhealthy};
use super::{World, replace};

mod builds;
mod hooks;

impl World {
    /// A file that commands of the app write to: its lines.
    fn written(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.shared_run().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The shared directory, which the app's user may write.
    fn shared_run(&self) -> PathBuf {
        self.host.dir().join("shared/run")
    }

    /// The live release.
    fn release(&self, revision: &str) -> PathBuf {
        self.host.dir().join("releases").join(revision)
    }

    /// Deploys a revision and waits until it serves; returns the status.
    fn deploy(&mut self, revision: &str) -> Value {
        self.host.target(revision);
        self.host.await_serving(revision)
    }

    /// Deploys a revision and waits until it has failed; returns how that was told.
    fn fail(&mut self, revision: &str) -> Value {
        self.host.target(revision);
        let status = self.host.await_status("it to fail", |status| {
            status["failure"]["revision"] == revision
                && matches!(status["phase"].as_str(), Some("idle" | "waiting"))
        });
        status["failure"].clone()
    }
}

/// Puts a table before the manager's.
fn add(files: &mut Files, table: &str) {
    set(files, ("[manager]", &format!("{table}\n[manager]")));
}

/// Puts a script into the repository, run by sh.
fn script(files: &mut Files, name: &str, text: &str) {
    replace(files, &format!("bin/{name}"), &format!("#!/bin/sh\nset -eu\n{text}\n"));
}
