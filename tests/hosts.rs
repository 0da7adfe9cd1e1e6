//! A host as people run it: a real systemd in a container, with the agent and the app as its units.

use serde_json::{Value, json};
use towline_tests::app::{self, Kind};
use towline_tests::container::Container;
use towline_tests::origin::{Origin, Repo};

mod boots;
mod readme;
mod units;
mod upkeep;

/// The app's unit.
const APP: &str = "web.service";

/// The agent's unit.
const AGENT: &str = "towline-agent@web.service";

type Files = Vec<(String, Vec<u8>, bool)>;

/// An origin, and a container whose agent keeps an app on its revision.
struct Machine {
    container: Container,
    origin: Origin,
    repo: Repo,
    port: u16,
    generation: u64,
    tip: Option<String>,
}

impl Machine {
    /// Lays it out; nothing runs yet. `git`: further lines of `[git]`; `more`: further tables.
    fn new(git: &str, more: &str) -> Option<Self> {
        let container = Container::lay_out()?;
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        let machine =
            Self { container, repo, port: app::free_port(), generation: 0, tip: None, origin };
        machine.configure("web", machine.port, git, more);
        machine.container.enable("towline-agent@.service", AGENT);
        machine.container.enable(APP, APP);
        Some(machine)
    }

    /// Writes the host config of an app, and lays out what it finds in its shared directory.
    fn configure(&self, name: &str, port: u16, git: &str, more: &str) {
        let text = format!(
            "group = \"web\"\ninstance = \"i-test\"\ndir = \"/srv/{name}\"\nuser = \"web\"\n[source]\nfile = \
             \"/etc/towline/{name}-target.json\"\n[git]\nurl = {:?}\nallow_http = true\nbranch = \
             \"main\"\n{git}\n[keep]\nfree_mib = 16\n[retry]\nfirst_s = 0.2\nmax_s = 2\n[allow]\nunits = [\"web.service\", \"shop.service\", \"no.service\"]\n{more}\n",
            self.origin.url(&self.repo),
        );
        self.container.write(&format!("/etc/towline/{name}.toml"), &text);
        let run = format!("/srv/{name}/shared/run");
        self.container.write(&format!("{run}/port"), &port.to_string());
        let run = self.container.path(&run);
        std::os::unix::fs::chown(run, Some(990), Some(990)).expect("we are root");
    }

    /// Names the next target of the app.
    fn target(&mut self, revision: &str) {
        self.target_with(revision, json!({}));
    }

    fn target_with(&mut self, revision: &str, more: Value) {
        self.generation += 1;
        self.write_target("web", revision, more);
    }

    fn write_target(&self, name: &str, revision: &str, more: Value) {
        let mut target = json!({
            "version": 1, "group": "web", "epoch": 1, "generation": self.generation,
            "revision": revision,
        });
        let fields = target.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let place = format!("/etc/towline/{name}-target");
        self.container.write(&format!("{place}.new"), &target.to_string());
        let (new, file) = (format!("{place}.new"), format!("{place}.json"));
        std::fs::rename(self.container.path(&new), self.container.path(&file)).expect("a rename");
    }

    /// Commits the app as a unit's; no two commits have the same tree.
    fn commit(&mut self, edit: impl FnOnce(&mut Files)) -> String {
        let mut files = app::files(Kind::Plain, self.port);
        amend(&mut files, "towline.toml", "pid_file = \"run/app.pid\"", "unit = \"web.service\"");
        amend(&mut files, "towline.toml", "start = [\"./bin/start\"]\n", "");
        amend(&mut files, "towline.toml", "every_s = 0.5", "every_s = 0.2");
        amend(&mut files, "towline.toml", "healthy_for_s = 3", "healthy_for_s = 0.6");
        let number = self.tip.as_deref().unwrap_or("the first").to_owned();
        files.push(("parent.txt".to_owned(), number.into_bytes(), false));
        edit(&mut files);
        let id = self.repo.commit(self.tip.as_deref(), &files);
        self.tip = Some(id.clone());
        id
    }

    /// What the agent says of an app.
    fn status_of(&self, name: &str) -> Value {
        let config = format!("/etc/towline/{name}.toml");
        let said = self.container.run(&["towline-agent", "status", "--json", "--config", &config]);
        let mut status: Value = serde_json::from_str(&said.text).unwrap_or(Value::Null);
        status["status"].take()
    }

    fn await_status(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.container
            .await_some(what, |_| Some(self.status_of("web")).filter(|status| is_wanted(status)))
    }

    /// Waits until this revision is served, healthy, and nothing is under way.
    fn await_serving(&self, revision: &str) -> Value {
        self.await_status(&format!("{revision} to be served"), |status| {
            status["serving"] == revision
                && status["health"] == "healthy"
                && matches!(status["phase"].as_str(), Some("idle" | "waiting"))
        })
    }

    /// Waits until a revision has failed, and another serves in its place.
    fn await_restored(&self, good: &str, bad: &str) -> Value {
        self.await_status("what served before to serve again", |status| {
            status["serving"] == good
                && status["health"] == "healthy"
                && status["phase"] == "idle"
                && status["failure"]["revision"] == bad
        })
    }

    /// The main process of the app's unit.
    fn main_pid(&self) -> String {
        self.container.property(APP, "MainPID")
    }
}

/// Changes a piece of a file.
fn amend(files: &mut Files, path: &str, from: &str, to: &str) {
    let file = files.iter_mut().find(|(name, _, _)| name == path);
    let content = &mut file.expect("the app has this file").1;
    let text = String::from_utf8_lossy(content).into_owned();
    assert!(text.contains(from), "{from:?} is in {path}");
    *content = text.replace(from, to).into_bytes();
}

/// Has the app behave in another way.
fn behave(files: &mut Files, behaviour: &Value) {
    let file = files.iter_mut().find(|(name, _, _)| name == "behaviour.json");
    file.expect("the app has this file").1 = behaviour.to_string().into_bytes();
}
