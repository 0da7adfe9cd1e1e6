//! Who comes in: TLS, tokens, join secrets; and that none of it is seen where it does not belong.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use towline_tests::cluster::{Cluster, Coordinator, QUICK, Said, await_some};
use towline_tests::host::Host;
use towline_tests::wire::{Authority, Certificate, Reply, request, send};

/// What opens a coordinator that has TLS.
struct Door {
    port: u16,
    authority: Authority,
    certificate: Certificate,
    /// Every secret that was made.
    secrets: Vec<String>,
}

/// A coordinator that shows a certificate for 127.0.0.1 and asks everybody for a token. Its operator's
/// command has one.
fn door() -> (Coordinator, Door) {
    let mut coordinator = Coordinator::new("");
    let authority = Authority::new(coordinator.root(), "authority");
    let certificate = authority.issue("127.0.0.1");
    coordinator.with_tls(&tls(&certificate));
    // Whatever anybody could be tempted to log.
    coordinator.set_environment("TOWLINE_LOG", Some("debug"));
    coordinator.run();
    coordinator.set_client("TOWLINE_CA_FILE", text(&authority.file));
    let socket = coordinator.data().join("admin.sock");
    let mode = fs::metadata(&socket).expect("it listens there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is root's");
    let port = coordinator.port();
    let mut door = Door { port, authority, certificate, secrets: Vec::new() };
    let first = ["--coordinator", &coordinator.socket(), "token", "create", "ada", "--role"];
    let token = door.secret(&coordinator, &[&first[..], &["operator"]].concat());
    coordinator.set_client("TOWLINE_TOKEN", &token);
    (coordinator, door)
}

fn tls(certificate: &Certificate) -> String {
    format!("[tls]\ncertificate = {:?}\nkey = {:?}\n", certificate.file, certificate.key)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temp dir's name is text")
}

impl Door {
    /// Runs a command that prints a secret; returns that.
    fn secret(&mut self, coordinator: &Coordinator, arguments: &[&str]) -> String {
        let secret = coordinator.must(arguments).trim().to_owned();
        assert!(secret.starts_with("tl") && secret.len() > 30, "{arguments:?}");
        self.secrets.push(secret.clone());
        secret
    }

    /// Asks as somebody with a token, past all of our clients.
    fn post(&self, token: &str, path: &str, body: &Value) -> Reply {
        let headers = [format!("authorization: Bearer {token}"), "idempotency-key: one".to_owned()];
        let bytes = request("POST", path, &headers, body.to_string().as_bytes());
        send(self.port, Some(&self.authority.file), &bytes)
    }

    /// The table of an instance's config that opens the door. `secret`: a file's name.
    fn table(&self, name: &str, secret: &str) -> String {
        let path = self.authority.file.with_file_name(name);
        fs::write(&path, secret).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        format!(
            "[coordinator]\nca_file = {:?}\njoin_secret = {path:?}\nconnect_s = 2\n",
            self.authority.file
        )
    }
}

/// Runs a command with this token, or with none.
fn say_as(coordinator: &Coordinator, token: &str, arguments: &[&str]) -> Said {
    let mut command = coordinator.towline(arguments);
    let output = command.env("TOWLINE_TOKEN", token).output().expect("the command was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Said { code, out: text(&output.stdout), err: text(&output.stderr) }
}

/// The token that an instance has been given.
fn token_of(host: &Host) -> String {
    let path = host.dir().join(".towline/token");
    let mode = fs::metadata(&path).expect("it has joined").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is the agent's own");
    let token: Value =
        serde_json::from_slice(&fs::read(path).expect("it is ours")).expect("it is JSON");
    token["token"].as_str().expect("a token is text").to_owned()
}

#[test]
fn agents_join_by_a_secret_over_tls_and_speak_for_themselves_alone() {
    let (coordinator, mut door) = door();
    let mut cluster = Cluster::around(coordinator, QUICK, "");
    let secret = door.secret(&cluster.coordinator, &["join-secret", "web"]);
    let table = door.table("join", &secret);
    cluster.add_config(&table);
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    for place in 0..2 {
        cluster.lay_out();
        let log = ("TOWLINE_LOG".to_owned(), "debug".to_owned());
        cluster.hosts[place].add_environment(vec![log]);
        cluster.hosts[place].run();
    }
    cluster.coordinator.await_state("converged");
    cluster.await_converged(2);

    // An agent with another's token, or its own for what is not an agent's, changes nothing.
    let (one, two) = (token_of(&cluster.hosts[0]), token_of(&cluster.hosts[1]));
    assert_ne!(one, two);
    door.secrets.extend([one.clone(), two.clone()]);
    let look = |cluster: &Cluster| {
        let rollout = cluster.coordinator.rollout();
        let instances = cluster.coordinator.ask(&["instances", "web"])["instances"].clone();
        let instances = instances.as_array().unwrap().iter().map(|instance| {
            (instance["instance"].clone(), instance["status"].clone(), instance["serving"].clone())
        });
        (rollout["order"].clone(), rollout["state"].clone(), instances.collect::<Vec<_>>())
    };
    let before = look(&cluster);
    let as_two = json!({"version": 1, "group": "web", "instance": "i-02", "seq": 1_u64 << 60,
        "epoch": 1, "generation": 1});
    for path in ["poll", "permit", "goodbye"] {
        let refused = door.post(&one, &format!("/v1/agent/{path}"), &as_two);
        assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"), "{path}");
    }
    let as_join = json!({"version": 1, "group": "web", "instance": "i-09"});
    let refused = door.post(&one, "/v1/agent/join", &as_join);
    assert_eq!(refused.status, 403, "{refused:?}");
    let refused = door.post(&one, "/v1/groups/web/rollback", &json!({}));
    assert_eq!(refused.status, 403, "{refused:?}");
    let refused = door.post(&secret, "/v1/agent/poll", &as_two);
    assert_eq!(refused.status, 403, "a join secret is good for joining alone: {refused:?}");
    assert_eq!(say_as(&cluster.coordinator, &one, &["instances", "web"]).code, 1);
    assert_eq!(look(&cluster), before);

    // A second claimant of a name is refused, until the first is forgotten.
    let url = cluster.origin.url(&cluster.repo);
    let coordinators = [cluster.coordinator.url()];
    let mut claimant = Host::member("i-02", &url, &coordinators, &table);
    claimant.run();
    claimant.await_some("it to be told that it comes second", |host| {
        host.log().contains("has a token already").then_some(())
    });
    assert_eq!(look(&cluster), before, "the first goes on");
    let why = cluster.coordinator.must(&["why", "i-02"]);
    assert!(why.contains("another host asked to join under this name"), "{why}");
    assert!(why.contains("towline forget i-02 --group web"), "{why}");
    assert!(cluster.coordinator.log().contains("another host asks to join"), "it is raised");
    cluster.hosts[1].kill();
    cluster.hosts[1].kill_app();
    cluster.coordinator.must(&["forget", "i-02", "--reason", "its disk is gone"]);
    claimant.await_serving(&first);
    door.secrets.push(token_of(&claimant));
    let refused = door.post(&two, "/v1/agent/poll", &as_two);
    assert_eq!(refused.status, 401, "the token of who was forgotten has ended: {refused:?}");

    // A join secret that was replaced lets nobody in; whoever is in stays.
    let newer = door.secret(&cluster.coordinator, &["join-secret", "web"]);
    let refused = door.post(&secret, "/v1/agent/join", &as_join);
    assert_eq!((refused.status, refused.code().as_str()), (401, "unauthenticated"));
    let joined = door.post(&newer, "/v1/agent/join", &as_join);
    assert_eq!(joined.status, 200, "{}", joined.head);
    door.secrets.push(joined.json()["token"].as_str().unwrap().to_owned());
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    claimant.await_serving(&second);
    cluster.hosts[0].await_serving(&second);

    let hosts = [&cluster.hosts[0], &cluster.hosts[1], &claimant];
    assert_hidden(&cluster.coordinator, &door, &hosts);
}

/// Looks for every secret wherever it has no business to be.
fn assert_hidden(coordinator: &Coordinator, door: &Door, hosts: &[&Host]) {
    let mut places: Vec<(String, Vec<u8>)> = vec![
        ("the coordinator's log".to_owned(), coordinator.log().into_bytes()),
        (
            "the list of tokens".to_owned(),
            coordinator.must(&["token", "list", "--json"]).into_bytes(),
        ),
    ];
    for host in hosts {
        places.push(("an agent's log".to_owned(), host.log().into_bytes()));
        places.push(("an agent's status".to_owned(), host.status().to_string().into_bytes()));
    }
    for path in files_below(&coordinator.data()) {
        places.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
    }
    for entry in fs::read_dir("/proc").expect("it is Linux").flatten() {
        let path = entry.path().join("cmdline");
        places.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
    }
    assert!(coordinator.log().contains("DEBUG"), "it has logged what it could");
    for secret in &door.secrets {
        for (place, bytes) in &places {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{place} holds {}…", &secret[..6]);
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[test]
fn operators_show_a_token_that_has_an_end_and_viewers_change_nothing() {
    let (coordinator, mut door) = door();
    let none = say_as(&coordinator, "", &["group", "list"]);
    assert_eq!(none.code, 1, "{}", none.err);
    assert!(none.err.contains("there is no token") && none.err.contains("hint: "), "{}", none.err);
    let wrong = say_as(&coordinator, "tlo_nonsense", &["group", "list"]);
    assert_eq!(wrong.code, 1);
    assert!(!wrong.err.contains("nonsense"), "no secret is repeated: {}", wrong.err);

    let group = coordinator.root().join("api.toml");
    fs::write(&group, "mirror = false\n").expect("the directory is ours");
    let set = ["group", "set", "api", "--file", text(&group)];
    let viewer = door.secret(&coordinator, &["token", "create", "vera"]);
    let refused = say_as(&coordinator, &viewer, &set);
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(refused.err.contains("may read, and change nothing"), "{}", refused.err);
    assert_eq!(say_as(&coordinator, &viewer, &["token", "list"]).code, 1);
    assert_eq!(coordinator.ask(&["group", "list"])["groups"], json!([]));
    coordinator.must(&set);
    assert_eq!(say_as(&coordinator, &viewer, &["group", "show", "api"]).code, 0, "but it reads");

    let brief = door.secret(&coordinator, &["token", "create", "job", "--expires", "1s"]);
    let refused = await_some("it to expire", || {
        Some(say_as(&coordinator, &brief, &["group", "list"])).filter(|said| said.code != 0)
    });
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("the token has expired"), "{}", refused.err);

    let tokens = coordinator.ask(&["token", "list"])["tokens"].clone();
    let tokens = tokens.as_array().unwrap();
    let id = tokens.iter().find(|token| token["name"] == "vera").unwrap()["id"].clone();
    coordinator.must(&["token", "revoke", id.as_str().unwrap()]);
    let refused = say_as(&coordinator, &viewer, &["group", "list"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("was revoked"), "{}", refused.err);
    assert_hidden(&coordinator, &door, &[]);
}

#[test]
fn nobody_trusts_another_certificate_and_a_new_one_is_shown_without_a_restart() {
    let (mut coordinator, door) = door();
    let other = Authority::new(coordinator.root(), "other");
    let trusting = |coordinator: &Coordinator, ca_file: &Path, address: &str| {
        let arguments = ["--coordinator", address, "--ca-file", text(ca_file), "group", "list"];
        coordinator.say(&arguments)
    };
    let url = coordinator.url();
    let named = url.replace("127.0.0.1", "localhost");
    // The operator's side: a wrong authority, and a name that is not in the certificate.
    for (rule, ca_file, address, said) in [
        ("another authority", &other.file, &url, "UnknownIssuer"),
        ("another name", &door.authority.file, &named, "localhost"),
    ] {
        let refused = trusting(&coordinator, ca_file, address);
        assert_eq!(refused.code, 78, "{rule}: {}", refused.err);
        assert!(refused.err.contains("could not trust"), "{rule}: {}", refused.err);
        assert!(refused.err.contains(said) && refused.err.contains("hint: "), "{}", refused.err);
    }
    // The instance's side.
    let table = door.table("join", "tlj_0");
    for (table, address, said) in [
        (table.replace(text(&door.authority.file), text(&other.file)), &url, "UnknownIssuer"),
        (table.clone(), &named, "localhost"),
    ] {
        let mut host = Host::member(
            "i-01",
            "https://127.0.0.1:1/x.git",
            std::slice::from_ref(address),
            &table,
        );
        host.run();
        host.await_some("it to say whom it cannot trust", |host| {
            let log = host.log();
            let line = log.lines().find(|line| line.contains("gives no good answer"))?;
            assert!(line.contains("certificate") && line.contains(said), "{line}");
            Some(())
        });
    }
    assert!(!coordinator.log().contains("joined"), "nothing was sent");

    // Shown once the files have changed; half of a pair is not.
    let next = other.issue("127.0.0.1");
    fs::copy(&next.key, &door.certificate.key).expect("it is ours");
    await_some("the half of a pair to be told", || {
        coordinator.log().contains("the one before still is").then_some(())
    });
    assert_eq!(trusting(&coordinator, &door.authority.file, &url).code, 0, "the old one is shown");
    fs::copy(&next.file, &door.certificate.file).expect("it is ours");
    await_some("the new certificate", || {
        (trusting(&coordinator, &other.file, &url).code == 0).then_some(())
    });
    assert_eq!(
        trusting(&coordinator, &door.authority.file, &url).code,
        78,
        "and the old one is not"
    );
    assert_eq!(coordinator.terminate(), 0);
}

/// What one says until it is ready, or has ended.
fn until_ready(child: &mut Child) -> String {
    let log = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut said = String::new();
    for line in log.lines().map_while(Result::ok) {
        said.push_str(&line);
        said.push('\n');
        if line.contains("\"ready\"") {
            break;
        }
    }
    said
}

#[test]
fn it_takes_all_open_files_that_it_may_have_and_says_where_they_are_too_few() {
    let coordinator = Coordinator::new("");
    let plain = coordinator.command();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=256:1024").arg(plain.get_program()).args(plain.get_args());
    limited.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = limited.spawn().expect("util-linux is installed");
    let said = until_ready(&mut child);
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap_or_default();
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let numbers: Vec<&str> =
        line.split_whitespace().filter(|it| it.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers, ["1024", "1024"], "{limits}");
    assert!(said.contains("LimitNOFILE") && said.contains("1024"), "{said}");
}

#[test]
fn another_address_needs_tls_or_an_explicit_word() {
    let coordinator = Coordinator::new("");
    let start = |more: &[&str]| {
        let mut command = coordinator.command();
        command.args(["--listen", "0.0.0.0:0"]).args(more).stdin(Stdio::null());
        command
    };
    let refused = start(&[]).output().expect("it was built");
    assert_eq!(refused.status.code(), Some(78));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("there is no TLS") && said.contains("--insecure"), "{said}");
    assert!(!coordinator.data().join("coordinator.db").exists(), "nothing was begun");

    let mut child = start(&["--insecure"]).stderr(Stdio::piped()).spawn().expect("it was built");
    let said = until_ready(&mut child);
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert!(said.contains("everybody who can reach it may do everything"), "{said}");
    assert!(said.contains(&Ipv4Addr::UNSPECIFIED.to_string()), "{said}");
}
