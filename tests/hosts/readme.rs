//! The README's walk from nothing to a private app under systemd, word for word as it stands there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use towline_tests::app;
use towline_tests::container::Container;
use towline_tests::origin::Origin;
use towline_tests::sshd::Sshd;

/// The title of the section.
const SECTION: &str = "## An app under systemd, from a private repository";

/// Its blocks of commands, in order: for the clone, for the host, and for the clone again.
fn blocks() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).expect("it is in the source tree");
    let (_, section) = readme.split_once(SECTION).expect("it has the section");
    let (section, _) = section.split_once("\n## ").expect("another one follows");
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Puts the test's own in the place of what stands for the reader's; each must be there.
fn own(text: &str, pieces: &[(&str, &str)]) -> String {
    pieces.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is in the README");
        text.replace(from, to)
    })
}

/// Runs commands in the clone, and returns the revision that it has then.
fn in_clone(clone: &Path, commands: &str) -> String {
    let script = format!("set -e\n{commands}\ngit rev-parse HEAD");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(clone)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.com")])
        .envs([("GIT_COMMITTER_NAME", "Ada"), ("GIT_COMMITTER_EMAIL", "ada@example.com")])
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until the status of the app is as wanted. An install reaches a registry, and may take its time.
fn await_status(container: &Container, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let words = ["towline-agent", "status", "--json", "--config", "/etc/towline/api.toml"];
    container.await_some(what, |own| {
        let mut said: Value = serde_json::from_str(&own.run(&words).text).unwrap_or(Value::Null);
        Some(said["status"].take()).filter(|status| is_wanted(status))
    })
}

#[test]
fn a_private_flask_app_is_deployed_broken_and_restored_by_the_readme_alone() {
    let Some(mut container) = Container::lay_out() else { return };
    let [app, host, breaks] = blocks().try_into().expect("three blocks of commands");
    let (sshd, origin) = (Sshd::start(), Origin::start());
    let repo = origin.repository("api.git");
    let clone = tempfile::tempdir().expect("a temp dir");
    let clone = clone.path();
    let port = format!(":{}", app::free_port());
    let remote = repo.dir().display();
    in_clone(
        clone,
        &format!(
            "git init -q -b main .\ngit remote add origin {remote}\ngit commit -q --allow-empty -m Empty"
        ),
    );
    let first = in_clone(clone, &own(&app, &[(":8000", &port)]));

    container.boot();
    for (from, to) in [(sshd.key(), "api.git-key"), (sshd.known_hosts(), "hosts")] {
        let to = container.path("/etc/towline").join(to);
        fs::copy(from, &to).expect("a new file");
        fs::set_permissions(to, fs::Permissions::from_mode(0o400)).expect("it is ours");
    }
    let host = own(
        &host,
        &[
            ("ssh-keygen -q -t ed25519 -N '' -f /etc/towline/api.git-key", "true"),
            ("ssh-keyscan git.example.com", "cat /etc/towline/hosts"),
            ("git@git.example.com:acme/api.git", &sshd.url(&repo)),
            (":8000", &port),
        ],
    );
    container.done(&["bash", "-e", "-c", &host]);
    container.done(&["target", "1", &first]);
    container.done(&["systemctl", "start", "--no-block", "towline-agent@api"]);
    let status = await_status(&container, "the app to serve", |status| {
        status["serving"] == first.as_str() && status["health"] == "healthy"
    });
    assert_eq!(status["evidence"], "served", "{status:#}");
    let said = container.run(&["towline-agent", "doctor", "--config", "/etc/towline/api.toml"]);
    assert_eq!(said.code, 0, "{}", said.text);

    let bad = in_clone(clone, &breaks);
    container.done(&["target", "2", &bad]);
    await_status(&container, "the first one to be put back", |status| {
        status["serving"] == first.as_str()
            && status["health"] == "healthy"
            && status["phase"] == "idle"
            && status["failure"]["revision"] == bad.as_str()
    });
    let log = container.done(&["journalctl", "--no-pager", "-u", "api"]);
    assert!(log.contains("ModuleNotFoundError"), "{log}");
}
