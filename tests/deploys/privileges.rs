//! What a recipe's commands can see, write and reach; and where secrets do not turn up.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use towline_tests::app::Kind;
use towline_tests::host::Host;
use towline_tests::origin::{Fault, Origin};

use super::failures::with_install;
use super::{World, replace};

/// Says on the terminal that a test needs root, past what a test harness captures.
pub(super) fn is_root(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        writeln!(std::io::stderr(), "SKIPPED: {test} needs another user, and only root has one")
            .ok();
    }
    is_root
}

/// A secret of the agent's own surroundings.
const CANARY: &str = "canary-7f3a9c51";

/// The origin's.
const PASSWORD: &str = "canary-41d2e8aa";

/// Every line tries one thing; `DIR` is the app's directory, `AGENT` the agent's pid.
const ATTEMPTS: &str = "
    cat DIR/.towline/journal.json
    ls DIR/.towline
    touch DIR/.towline/x
    touch DIR/x
    touch DIR/releases/x
    touch DIR/releases/LIVE/x
    echo >>DIR/releases/LIVE/master.js
    rm DIR/releases/LIVE/master.js
    chmod 777 DIR/releases/LIVE
    touch DIR/releases/LIVE.json
    touch DIR/dependencies/x
    for tree in DIR/dependencies/*/made; do touch $tree/x || exit 1; done
    for tree in DIR/dependencies/*/made; do echo >>$tree/report || exit 1; done
    touch DIR/staging/x
    touch DIR/staging/install/x
    touch DIR/staging/release/x
    echo >>DIR/staging/release/master.js
    ln -sfn /tmp DIR/current
    mv DIR/current DIR/old
    touch DIR/shared/x
    echo >>DIR/log/new.log
    cat TOKEN
    cat /proc/AGENT/environ
    ls /proc/AGENT/fd/
    cat /proc/AGENT/mem
    kill -0 AGENT
    kill -0 1
    for home in ${CGROUPS:-/none}; do echo $$ >$home/cgroup.procs || exit 1; done
    for home in ${CGROUPS:-/none}; do mkdir $home/x || exit 1; done
    ulimit -Hn unlimited
";

#[test]
fn a_recipes_command_reaches_nothing_of_the_agents_and_writes_to_nothing_but_its_own() {
    if !is_root("what a recipe's command reaches") {
        return;
    }
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    fs::set_permissions(secrets.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&token, CANARY).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o400)).unwrap();
    let mut world = World::new(Kind::Plain);
    world.host.add_environment(vec![("TOWLINE_TEST_SECRET".to_owned(), CANARY.to_owned())]);
    let install = "mkdir made; echo first >made/report";
    let good = with_install(&mut world, install);
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);

    let (dir, agent) = (world.host.dir().display().to_string(), world.host.agent_pid().to_string());
    // The report is open as 3 in here, and nothing else is.
    let mut script =
        "exec 3>made/report\nenv >&3\nls -l /proc/self/fd >&3\nCGROUPS=$(sed -n 's/.* - \
                      cgroup2 .*/&/p' /proc/self/mountinfo | cut -d ' ' -f 5)\n"
            .to_owned();
    let attempts = ATTEMPTS.trim().lines().map(str::trim);
    let count = attempts.clone().count();
    for attempt in attempts {
        let attempt = attempt.replace("DIR", &dir).replace("AGENT", &agent).replace("LIVE", &good);
        let attempt = attempt.replace("TOKEN", &token.display().to_string());
        script.push_str(&format!(
            "if ({attempt}) >/dev/null 2>&1; then echo \"DONE {}\" >&3; else echo REFUSED >&3; fi\n",
            attempt.replace(['$', '"'], "")
        ));
    }
    // Every socket of this host that stands in the app's directory, whoever listens there.
    script.push_str(&format!(
        "/usr/bin/python3 -c '\nimport socket\nfor line in open(\"/proc/net/unix\"):\n    path = \
         line.split()[-1]\n    if path.startswith(\"{dir}\"):\n        try:\n            \
         socket.socket(socket.AF_UNIX).connect(path)\n            print(\"DONE connect\", path)\n        \
         except OSError:\n            pass\n' >&3\n"
    ));
    let next = world.commit_with(|files| {
        replace(files, "probe.sh", &script);
        let recipe = files.iter().find(|(path, _, _)| path == "towline.toml").expect("it has one");
        let install = "[install]\ncommand = [\"sh\", \"-c\", \"mkdir made; . \
                       ./probe.sh\"]\ninputs = [\"probe.sh\"]\noutputs = [\"made\"]\n\n";
        let text = install.to_owned() + std::str::from_utf8(&recipe.1).expect("it is text");
        replace(files, "towline.toml", &text);
    });
    world.host.target(&next);
    world.host.await_serving(&next);
    let place = world.host.dir().join("releases").join(&next).join("made/report");
    let report = fs::read_to_string(&place).unwrap();
    assert!(!report.contains("DONE"), "{report}");
    assert_eq!(report.matches("REFUSED").count(), count, "{report}");
    assert!(!report.contains(CANARY) && !report.contains("TOWLINE_TEST"), "{report}");
    let mut names: Vec<&str> = report
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .collect();
    // What host config lets through, and what a shell makes by itself.
    let through =
        ["https_proxy", "HTTPS_PROXY", "NODE_EXTRA_CA_CERTS", "LANG", "TZ", "OLDPWD", "_"];
    names.retain(|name| !through.contains(name));
    names.sort_unstable();
    let expected = [
        "HOME",
        "LOGNAME",
        "PATH",
        "PIP_CACHE_DIR",
        "PWD",
        "TOWLINE_CHILD",
        "TOWLINE_JOB",
        "USER",
        "XDG_CACHE_HOME",
        "npm_config_cache",
    ];
    assert_eq!(names, expected, "{report}");
    // Input, output, the report, and the directory that `ls` reads.
    let descriptors = report.lines().filter(|line| line.contains(" -> ")).count();
    assert!((4..=5).contains(&descriptors), "{report}");
    assert_eq!(fs::metadata(place).unwrap().uid(), 0, "sealed");
}

/// Answers every request with what it was sent: in its status line, a header and its body, or as git does.
fn echo() -> (String, std::thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/web.git", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut told = 0;
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match stream.read(&mut byte) {
                    Ok(1) => request.push(byte[0]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            if text.starts_with("END") {
                return told;
            }
            let sent = text.lines().find(|line| line.to_lowercase().starts_with("authorization"));
            told += usize::from(sent.is_some());
            let sent = sent.unwrap_or("nothing").replace(['\r', '\n'], " ");
            let said = format!("ERR you sent {sent}, that is {PASSWORD}\n");
            let body = match told % 3 {
                0 => format!("you sent {sent}, that is {PASSWORD}\n"),
                1 => format!("{:04x}ERR it is {PASSWORD}\n", PASSWORD.len() + 15),
                _ => format!("{:04x}{said}", said.len() + 4),
            };
            let status = if told % 3 == 0 { format!("403 {sent}") } else { "200 OK".to_owned() };
            let kind = "application/x-git-upload-pack-advertisement";
            let answer = format!(
                "HTTP/1.1 {status}\r\nx-sent: {sent}\r\ncontent-type: {kind}\r\ncontent-length: \
                 {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).ok();
        }
        told
    });
    (url, thread)
}

/// Fails where one of the secrets stands in a file below `dir`, or in one's name.
fn assert_nowhere(dir: &Path, secrets: &[String]) {
    let mut paths = vec![dir.to_owned()];
    while let Some(path) = paths.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if found.is_file() {
            let bytes = fs::read(&path).unwrap();
            for secret in secrets {
                let held = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!held, "{secret} is in {}", path.display());
            }
        }
    }
}

/// The arguments and the environment of every process of this host but the agent itself.
fn assert_in_no_process(host: &Host, secrets: &[String]) {
    let agent = host.agent_pid();
    for pid in host.processes("").into_iter().chain([agent]) {
        for file in ["cmdline", "environ"] {
            if pid == agent && file == "environ" {
                continue;
            }
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!secrets.iter().any(|secret| text.contains(secret)), "{file}: {text}");
        }
    }
}

#[test]
fn planted_secrets_turn_up_nowhere() {
    let credential = format!("bot:{PASSWORD}");
    let secrets = [PASSWORD, CANARY, "Ym90OmNhbmFyeS00MWQyZThhYQ"].map(str::to_owned);
    let keep = tempfile::tempdir().unwrap();
    let path = keep.path().join("token");
    fs::write(&path, format!("{credential}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let git = format!("branch = \"main\"\ncredential = {path:?}\n");
    let origin = Origin::start();
    origin.require(&credential);
    let repo = origin.repository("web.git");
    let mut host = Host::new(&origin.url(&repo), &git, "");
    host.add_environment(vec![("TOWLINE_TEST_SECRET".to_owned(), CANARY.to_owned())]);
    let mut world = World { origin, repo, host, kind: Kind::Plain, tip: None };
    let look = |world: &World| {
        assert_nowhere(&world.host.dir(), &secrets);
        assert_in_no_process(&world.host, &secrets);
        let told = format!("{}{}", world.host.log(), world.host.status());
        assert!(!secrets.iter().any(|secret| told.contains(secret)), "{told}");
    };

    let good = with_install(&mut world, "mkdir made; env >made/env; env");
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    look(&world);

    let failure = |world: &mut World, revision: &str| {
        let status = world.host.await_status("it to fail", |status| {
            status["failure"]["revision"] == revision && status["serving"] == good.as_str()
        });
        look(world);
        status["failure"]["cause"].as_str().expect("it has one").to_owned()
    };
    let bad = with_install(&mut world, "env; env >&2; exit 1");
    world.host.target(&bad);
    assert_eq!(failure(&mut world, &bad), "install");
    let sick = world.commit(&json!({"worker": "unhealthy"}));
    world.host.target(&sick);
    assert_eq!(failure(&mut world, &sick), "unhealthy");
    let tree = world.repo.raw_tree(&[("160000", b"sub", &good)]);
    let refused = world.repo.commit_tree(&tree, None);
    world.host.target(&refused);
    assert_eq!(failure(&mut world, &refused), "refused");
    world.origin.fail(Fault::Status(401));
    let unreached = world.commit_good();
    world.host.target(&unreached);
    assert_eq!(failure(&mut world, &unreached), "fetch");
    assert!(world.host.terminate().success());

    // And an origin that gives away what it was told.
    let (url, thread) = echo();
    let own = world.origin.url(&world.repo);
    world.host.reconfigure(&own, &url);
    world.host.run();
    for said in ["403", "the server says"] {
        world.host.await_some(said, |host| host.log().contains(said).then_some(()));
    }
    look(&world);
    let address = url.split('/').nth(2).expect("it has a host").to_owned();
    assert!(world.host.terminate().success());
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"END\r\n\r\n").unwrap();
    assert!(thread.join().unwrap() > 0, "it was sent the secret");
}
