//! pm2: a daemon of its own, told by a command.

use super::*;

const PACKAGE: &str =
    "{\"name\":\"web\",\"version\":\"1.0.0\",\"dependencies\":{\"pm2\":\"5.4.3\"}}";

const ECOSYSTEM: &str = "module.exports = { apps: [{ name: 'web', script: process.env.PWD + \
                         '/server.js', cwd: process.env.PWD, exec_mode: 'cluster', instances: 2 }] };\n";

fn pm2(command: &str) -> String {
    format!(
        "#!/bin/sh\nset -eu\nexport PM2_HOME=\"$PWD/run/pm2\"\nexec ./node_modules/.bin/pm2 {command} \
         \"$PWD/ecosystem.config.js\" --update-env\n"
    )
}

fn commit(world: &mut World, status: u16) -> String {
    let recipe = format!(
        "[install]\ncommand = [\"npm\", \"install\", \"--no-audit\", \"--no-fund\", \
         \"--no-package-lock\"]\ninputs = [\"package.json\"]\noutputs = \
         [\"node_modules\"]\n[manager]\npid_file = \"run/pm2/pm2.pid\"\nreload = \
         [\"./bin/reload\"]\nstart = [\"./bin/start\"]\ntimeout_s = 20\n{}\n[shared]\ndirs = [\"run\"]\n",
        health(world, "/healthz", "revision = { json = \"/revision\" }")
    );
    let server = format!(
        "const fs = require('fs');\nconst read = (name) => fs.readFileSync(`${{__dirname}}/${{name}}`, \
         'utf8').trim();\nconst revision = read('.towline-revision');\nrequire('http').createServer((_, \
         answer) => {{\n  answer.writeHead({status});\n  answer.end(JSON.stringify({{ revision \
         }}));\n}}).listen(Number(read('run/port')), '127.0.0.1');\n"
    );
    world.commit_files(&[
        ("towline.toml", &recipe),
        ("package.json", PACKAGE),
        ("ecosystem.config.js", ECOSYSTEM),
        ("bin/start", &pm2("start")),
        ("bin/reload", &pm2("reload")),
        ("server.js", &server),
    ])
}

/// Needs a registry, or npm's cache of it.
#[test]
fn pm2_is_deployed_broken_and_restored_by_its_command() {
    let mut world = World::new(Kind::Plain);
    let pid_file = world.shared_run().join("pm2/pm2.pid");
    let _ended = Ended(pid_file.clone());
    let first = commit(&mut world, 200);
    world.begin(&first);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let second = commit(&mut world, 200);
    let status = world.deploy(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.done(&second), ["reloaded"]);
    let bad = commit(&mut world, 503);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    world.host.await_serving(&second);
    assert_eq!(world.host.served().as_ref(), Some(&second));
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), pid, "one daemon all along");
}
