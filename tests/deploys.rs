//! Deploys of the app without dependencies, and of the one with a lock file.

use serde_json::{Value, json};
use towline_tests::app::{self, Kind};
use towline_tests::host::Host;
use towline_tests::origin::{Origin, Repo};

mod adopted;
mod asked;
mod bake;
mod boot;
mod bytes;
mod caches;
mod crashes;
mod doctor;
mod failures;
mod gates;
mod host_config;
mod input;
mod killed;
mod limits;
mod managers;
mod midway;
mod options;
mod ordinary;
mod origins;
mod privileges;
mod races;
mod restarts;
mod serving;
mod space;
mod ssh;
mod stacks;
mod starts;
mod stopping;
mod trees;
mod trial;

/// An origin and an instance.
struct World {
    origin: Origin,
    repo: Repo,
    host: Host,
    kind: Kind,
    tip: Option<String>,
}

impl World {
    fn new(kind: Kind) -> Self {
        Self::with(kind, "branch = \"main\"\n", "")
    }

    fn with(kind: Kind, git: &str, more: &str) -> Self {
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        let host = Host::new(&origin.url(&repo), git, more);
        Self { origin, repo, host, kind, tip: None }
    }

    /// The app's files, probed often enough for a test.
    fn files(&self) -> Vec<(String, Vec<u8>, bool)> {
        let mut files = app::files(self.kind, self.host.port);
        for (path, content, _) in &mut files {
            if path == "towline.toml" {
                let text = String::from_utf8_lossy(content)
                    .replace("every_s = 0.5", "every_s = 0.2")
                    .replace("healthy_for_s = 3", "healthy_for_s = 0.6")
                    .replace("start_s = 10", "start_s = 3")
                    .replace("timeout_s = 20", "timeout_s = 8");
                *content = text.into_bytes();
            }
        }
        files
    }

    /// Commits the app with another behaviour.
    fn commit(&mut self, behaviour: &Value) -> String {
        self.commit_with(|files| replace(files, "behaviour.json", &behaviour.to_string()))
    }

    /// Commits a good revision that differs from all others.
    fn commit_good(&mut self) -> String {
        self.commit(&json!({}))
    }

    /// Commits the app after `edit`; no two commits have the same tree.
    fn commit_with(&mut self, edit: impl FnOnce(&mut Vec<(String, Vec<u8>, bool)>)) -> String {
        let mut files = self.files();
        let number = self.tip.as_deref().unwrap_or("the first").to_owned();
        files.push(("parent.txt".to_owned(), number.into_bytes(), false));
        edit(&mut files);
        let id = self.repo.commit(self.tip.as_deref(), &files);
        self.tip = Some(id.clone());
        id
    }

    /// Serves a good revision, with the agent running.
    fn serving(kind: Kind) -> (Self, String) {
        let mut world = Self::new(kind);
        let good = world.commit_good();
        world.host.target(&good);
        world.host.run();
        world.host.await_serving(&good);
        (world, good)
    }
}

fn replace(files: &mut Vec<(String, Vec<u8>, bool)>, path: &str, text: &str) {
    files.retain(|(name, _, _)| name != path);
    files.push((path.to_owned(), text.as_bytes().to_vec(), path.starts_with("bin/")));
}

/// Changes a piece of a file.
fn amend(files: &mut [(String, Vec<u8>, bool)], path: &str, from: &str, to: &str) {
    let file = files.iter_mut().find(|(name, _, _)| name == path);
    let content = &mut file.expect("the app has this file").1;
    let text = String::from_utf8_lossy(content).into_owned();
    assert!(text.contains(from), "{from:?} is in {path}");
    *content = text.replace(from, to).into_bytes();
}
