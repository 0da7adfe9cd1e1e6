//! gunicorn out of a virtual environment, which stays where it was installed.

use super::*;

const MAKE_VENV: &str = "#!/bin/sh\nset -eu\n/usr/bin/python3 -m venv .venv\n.venv/bin/python3 -m pip install \
                         --quiet --require-virtualenv -r requirements.txt\n";

const START: &str = "#!/bin/sh\nexec \"$PWD/.venv/bin/gunicorn\" --chdir \"$PWD\" --pid run/app.pid --workers 2 \
                     --bind \"127.0.0.1:$(cat run/port)\" app:app\n";

const APP: &str = "import json\nimport pathlib\n\nimport itsdangerous\n\nREVISION = \
                   pathlib.Path(__file__).with_name('.towline-revision').read_text().strip()\n\n\ndef \
                   app(environ, start_response):\n    start_response('200 OK', [('Content-Type', \
                   'application/json')])\n    body = {'revision': REVISION, 'dependency': \
                   itsdangerous.__version__}\n    return [json.dumps(body).encode()]\n";

fn commit(world: &mut World, dependency: &str, app: &str, restart_when: &str) -> String {
    let recipe = format!(
        "[install]\ncommand = [\"./bin/make-venv\"]\ninputs = [\"requirements.txt\", \
         \"bin/make-venv\"]\noutputs = [\".venv\"]\nplace = \"by-key\"\nruntime = [\"/usr/bin/python3\", \
         \"--version\"]\n[manager]\npid_file = \"run/app.pid\"\nreload = \"SIGHUP\"\nstart = \
         [\"./bin/start\"]\n{restart_when}\ntimeout_s = 12\n{}\n[shared]\ndirs = [\"run\"]\n",
        health(world, "/healthz", "revision = { json = \"/revision\" }")
    );
    let requirements = format!("gunicorn==23.0.0\nitsdangerous=={dependency}\n");
    world.commit_files(&[
        ("towline.toml", &recipe),
        ("requirements.txt", &requirements),
        ("bin/make-venv", MAKE_VENV),
        ("bin/start", START),
        ("app.py", app),
    ])
}

fn dependency(world: &World) -> String {
    let body: Value = serde_json::from_str(&world.get("/healthz").expect("it answers")).unwrap();
    body["dependency"].as_str().unwrap_or_default().to_owned()
}

/// Needs a registry, or pip's cache of it.
#[test]
fn gunicorn_is_deployed_broken_and_restored_and_restarted_for_other_dependencies() {
    let mut world = World::new(Kind::Plain);
    let pass =
        "\"https_proxy\", \"PIP_CERT\", \"PIP_INDEX_URL\", \"PIP_DISABLE_PIP_VERSION_CHECK\"]";
    world.host.reconfigure("\"https_proxy\"]", pass);
    let first = commit(&mut world, "2.1.2", APP, "");
    world.begin(&first);
    assert_eq!(dependency(&world), "2.1.2");
    let venv = std::fs::read_link(world.release(&first).join(".venv")).unwrap();
    assert!(venv.starts_with(world.host.dir().join("dependencies")), "{}", venv.display());

    // The same dependencies: a reload, and the tree is used again.
    let second = commit(&mut world, "2.1.2", APP, "");
    let status = world.deploy(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.done(&second), ["reloaded"]);
    assert_eq!(std::fs::read_link(world.release(&second).join(".venv")).unwrap(), venv);

    let unwell = APP.replace("200 OK", "503 Unwell");
    let bad = commit(&mut world, "2.1.2", &unwell, "");
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    world.host.await_serving(&second);
    assert_eq!(world.host.served().as_ref(), Some(&second));

    // Other dependencies: a restart. A reload serves the new code with the old ones, and is healthy.
    let third = commit(&mut world, "2.2.0", APP, "");
    world.deploy(&third);
    assert_eq!(world.done(&third), ["restart: other dependencies"]);
    assert_eq!(dependency(&world), "2.2.0");
    let kept = commit(&mut world, "2.1.2", APP, "restart_when = []");
    world.deploy(&kept);
    assert_eq!(world.done(&kept), ["reloaded"]);
    assert_eq!(dependency(&world), "2.2.0", "what restart_when is for");

    // What a release that is left links to is kept, and a half made tree is thrown away at the next start.
    assert!(world.host.terminate().success());
    let half = world.host.dir().join("dependencies").join("f".repeat(64));
    std::fs::create_dir_all(half.join(".venv")).unwrap();
    world.host.run();
    world.host.await_serving(&kept);
    assert!(!half.exists() && venv.exists());
    let trees = std::fs::read_dir(world.host.dir().join("dependencies")).unwrap();
    let trees = trees.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(trees, 2);
}
