//! A cluster manager from npm as it comes: cluster-master, which reloads on SIGHUP.

use super::*;

const PACKAGE: &str =
    "{\"name\":\"web\",\"version\":\"1.0.0\",\"dependencies\":{\"cluster-master\":\"0.2.1\"}}";

const LOCK: &str = r#"{
  "name": "web", "version": "1.0.0", "lockfileVersion": 3, "requires": true,
  "packages": {
    "": {"name": "web", "version": "1.0.0", "dependencies": {"cluster-master": "0.2.1"}},
    "node_modules/cluster-master": {
      "version": "0.2.1",
      "integrity": "sha512-nzrCbCY2p1kbV8u2YXEDUVPgRLS1K7U+1h2Ew41bi+gg4LXHyvTDtOAVsAPpxC9nEpLgjHWjv9Gkp8RySPttzg=="
    }
  }
}"#;

/// Both paths are logical ones, so that new workers follow `current`.
const FOLLOWS: &str = "cluster.setupPrimary({ cwd: process.env.PWD });\nmaster({ ...options, exec: \
                       process.env.PWD + '/server.js' });\n";

/// As its own documentation has it: workers for ever of the release in which it was born.
const KEEPS: &str = "master({ ...options, exec: 'server.js' });\n";

/// Its own handler of SIGHUP breaks on node 10 and later. Deploys follow one another within seconds here,
/// which it would take for a crash loop.
fn master(rest: &str) -> String {
    format!(
        "const cluster = require('cluster');\nconst master = require('cluster-master');\n\
         require('fs').writeFileSync('run/app.pid', String(process.pid));\nconst options = {{ size: 2, repl: \
         false, signals: false, minRestartAge: 100 }};\n{rest}process.on('SIGHUP', () => master.restart());\n"
    )
}

fn server(status: u16) -> String {
    format!(
        "const fs = require('fs');\nconst read = (name) => fs.readFileSync(`${{__dirname}}/${{name}}`, \
         'utf8').trim();\nconst revision = read('.towline-revision');\nrequire('http').createServer((_, \
         answer) => {{\n  answer.writeHead({status});\n  answer.end(JSON.stringify({{ revision \
         }}));\n}}).listen(Number(read('run/port')), '127.0.0.1');\n"
    )
}

fn commit(world: &mut World, rest: &str, status: u16) -> String {
    let recipe = format!(
        "[install]\ncommand = [\"npm\", \"ci\", \"--no-audit\", \"--no-fund\"]\ninputs = \
         [\"package.json\", \"package-lock.json\"]\noutputs = [\"node_modules\"]\n[manager]\npid_file = \
         \"run/app.pid\"\nreload = \"SIGHUP\"\nstart = [\"node\", \"master.js\"]\ntimeout_s = 12\n{}\n[shared]\n\
         dirs = [\"run\"]\n",
        health(world, "/healthz", "revision = { json = \"/revision\" }")
    );
    world.commit_files(&[
        ("towline.toml", &recipe),
        ("package.json", PACKAGE),
        ("package-lock.json", LOCK),
        ("master.js", &master(rest)),
        ("server.js", &server(status)),
    ])
}

/// Needs a registry, or npm's cache of it.
#[test]
fn cluster_master_is_deployed_broken_and_restored_by_reloads() {
    let mut world = World::new(Kind::Plain);
    let first = commit(&mut world, FOLLOWS, 200);
    world.begin(&first);
    let master = world.master();
    let second = commit(&mut world, FOLLOWS, 200);
    let status = world.deploy(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.done(&second), ["reloaded"]);
    let bad = commit(&mut world, FOLLOWS, 503);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    world.host.await_serving(&second);
    assert_eq!(world.host.served().as_ref(), Some(&second));
    assert_eq!(world.master(), master, "one master all along");

    // Set up as its documentation has it, it serves the old release after a reload: that is noticed.
    let kept = commit(&mut world, KEEPS, 200);
    world.deploy(&kept);
    let next = commit(&mut world, KEEPS, 200);
    let status = world.deploy(&next);
    assert_eq!(status["evidence"], "served", "{status:#}");
    let done = world.done(&next);
    assert_eq!(done.first().map(String::as_str), Some("reloaded"), "{done:?}");
    assert_eq!(done.last().map(String::as_str), Some("restart"), "{done:?}");
}
