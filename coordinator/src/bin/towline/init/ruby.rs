//! Ruby: what bundler installs, and puma.

use super::tree::Tree;
use super::{Install, Manager, Plan, SINGLE, Start, health, present, words};

/// Bundler's settings: what is locked, into the release, without what only developers need.
const BUNDLE: [&str; 3] =
    ["BUNDLE_DEPLOYMENT=1", "BUNDLE_PATH=vendor/bundle", "BUNDLE_WITHOUT=development:test"];

pub(super) fn look(tree: &Tree) -> Option<Plan> {
    let gemfile = tree.text("Gemfile")?;
    let lock = tree.text("Gemfile.lock");
    let has_puma = lock.as_deref().unwrap_or(&gemfile).contains("puma");
    // Others have a Gemfile for a tool or two.
    if !has_puma && !tree.has_file("config.ru") && tree.has_file("package.json") {
        return None;
    }
    let mut plan = Plan { what: "a Ruby app that bundler installs".to_owned(), ..Plan::default() };
    if lock.is_none() {
        plan.notes
            .push("there is no Gemfile.lock: commit one, for bundler refuses without".to_owned());
    }
    let mut inputs = words(&["Gemfile", "Gemfile.lock"]);
    inputs.extend(present(tree, &[".ruby-version", ".tool-versions", "vendor/cache"]));
    let mut command = words(&["env"]);
    command.extend(words(&BUNDLE));
    command.extend(words(&["bundle", "install"]));
    plan.install = Some(Install {
        command,
        inputs,
        outputs: words(&["vendor/bundle"]),
        runtime: words(&["ruby", "--version"]),
        timeout_s: None,
    });
    let settings = tree.text("config/puma.rb").unwrap_or_default();
    let has_workers = settings.lines().any(|line| line.trim_start().starts_with("workers"));
    let preloads = settings.lines().any(|line| line.trim_start().starts_with("preload_app!"));
    let env = BUNDLE.join(" ");
    plan.manager = if has_puma {
        let line = format!(
            "exec env {env} bundle exec puma --dir \"$PWD\" --pidfile run/app.pid \
             --bind tcp://127.0.0.1:3000"
        );
        let start = Start::Command(vec!["sh".to_owned(), "-c".to_owned(), line]);
        if has_workers && !preloads {
            let reload_comment = "puma replaces its workers one by one";
            Manager { reload: "SIGUSR1", reload_comment, start }
        } else {
            plan.notes.push(
                "puma runs as a single process, or preloads the app: each release stops and starts \
                 it; `workers 2` without preload_app! in config/puma.rb lets SIGUSR1 replace them"
                    .to_owned(),
            );
            Manager { reload: "SIGUSR1", reload_comment: SINGLE, start }
        }
    } else {
        plan.notes.push("no puma is among the gems: write bin/start for its server".to_owned());
        Manager { reload: "SIGHUP", reload_comment: SINGLE, start: Start::Unknown }
    };
    if settings.contains("pidfile") {
        plan.notes.push("config/puma.rb names a pidfile too: the one in start is used".to_owned());
    }
    if tree.has_file("package.json") || tree.has_folder("app/assets") {
        plan.notes.push(
            "assets need [build], with what precompiles them as its command and public/assets \
             among its outputs"
                .to_owned(),
        );
    }
    plan.health = health(&tree.code(&[".rb", ".ru"]), "", 3000);
    Some(plan)
}
