//! What a recipe can say besides the app that most tests deploy: builds, hooks, trees that stay where they
//! were installed; and real apps of other kinds, each deployed, broken and restored.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use towline_tests::app::Kind;

use super::gates::{Files, set, unhealthy};
use super::{World, replace};

mod builds;
mod cluster_master;
mod hooks;
mod nginx;
mod pm2;
mod python;
mod site;

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

    /// Commits a repository of these files, and one more that differs from commit to commit.
    fn commit_files(&mut self, files: &[(&str, &str)]) -> String {
        let parent = self.tip.clone();
        let mut all: Files =
            vec![("parent.txt".to_owned(), format!("{parent:?}").into_bytes(), false)];
        for (path, text) in files {
            replace(&mut all, path, text);
        }
        let id = self.repo.commit(parent.as_deref(), &all);
        self.tip = Some(id.clone());
        id
    }

    /// Deploys the first revision.
    fn begin(&mut self, first: &str) {
        self.host.target(first);
        self.host.run();
        self.host.await_serving(first);
    }

    /// What the app answers; nothing while it does not.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.host.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
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

/// The tables of a recipe that are much the same for all: how health is probed.
fn health(world: &World, path: &str, revision: &str) -> String {
    let port = world.host.port;
    format!(
        "[health]\nhttp = \"http://127.0.0.1:{port}{path}\"\n{revision}\npasses = 2\nevery_s = \
         0.2\nhealthy_for_s = 0.6\nstart_s = 6\n"
    )
}

/// Asks the process that a pid file names to end, and waits for it: what it looks after ends with it, and
/// is found by nobody once it is killed.
struct Ended(PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let Ok(pid) = text.trim().parse::<u32>() else { return };
        towline_tests::host::ask(pid);
        for _ in 0..500 {
            if !PathBuf::from(format!("/proc/{pid}")).exists() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
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
