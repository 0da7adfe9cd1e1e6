//! What bad input gets: past all of our clients, and on the command line.

use std::io::Write;
use std::net::Shutdown;
use std::thread;

use serde_json::{Value, json};
use towline_tests::cluster::{Cluster, QUICK, write};
use towline_tests::wire::{self, Reply, connect, request};

/// A group with a mirror and a release, in which nobody is; and what was released.
fn mirrored() -> (Cluster, String) {
    let mut cluster = Cluster::new(&QUICK.replace("mirror = false", "mirror = true"));
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", "main"]);
    assert_eq!(cluster.coordinator.rollout()["revision"], first, "a branch is resolved here");
    (cluster, first)
}

/// A commit that is on another branch than releases must be on.
fn off_branch(cluster: &Cluster, first: &str) -> String {
    let tree = cluster.repo.git(&["rev-parse", &format!("{first}^{{tree}}")], b"");
    let side = cluster.repo.commit_tree(tree.trim(), Some(first));
    cluster.repo.point("side", &side);
    cluster.repo.point("main", first);
    side
}

fn send(cluster: &Cluster, bytes: &[u8]) -> Reply {
    wire::send(cluster.coordinator.port(), None, bytes)
}

fn keyed(method: &str, path: &str, key: &str, body: &[u8]) -> Vec<u8> {
    request(method, path, &[format!("idempotency-key: {key}")], body)
}

/// Everything that operators see; which instance was heard when is not part of it.
fn look(cluster: &Cluster) -> Vec<Value> {
    let paths = ["/v1/groups", "/v1/groups/web", "/v1/groups/web/rollout", "/v1/instances"];
    let look = paths.map(|path| send(cluster, &request("GET", path, &[], b"")).json());
    assert!(look.iter().all(|view| !view.is_null()));
    look.to_vec()
}

#[test]
fn a_bad_request_gets_the_one_error_and_changes_nothing() {
    let (cluster, first) = mirrored();
    let port = cluster.coordinator.port();
    // A body that never ends: it is answered while everything else goes on.
    let endless = thread::spawn(move || {
        let mut stream = connect(port);
        let head = b"POST /v1/groups/web/release HTTP/1.1\r\nhost: localhost\r\nidempotency-key: \
                     k\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"rev";
        stream.write_all(head).expect("somebody reads");
        wire::read(stream)
    });
    let side = off_branch(&cluster, &first);
    let unknown = "0123456789".repeat(4);
    let deep = format!("{{\"revision\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let large = format!("{{\"revision\":{:?}}}", "x".repeat(300 * 1024));
    let long = "a".repeat(300);
    let (release, group) = ("/v1/groups/web/release", "/v1/groups/web");
    let named = |revision: &str| format!("{{\"revision\":\"{revision}\"}}");
    let cases: Vec<(&str, &str, String, String, u16, &str, &str)> = [
        (
            "an unknown group",
            "POST",
            "/v1/groups/api/release",
            &*named(&first),
            404,
            "not-found",
            "",
        ),
        ("a branch", "POST", release, &named("main"), 400, "invalid", "revision"),
        ("a short id", "POST", release, &named(&first[..12]), 400, "invalid", "revision"),
        ("not on the branch", "POST", release, &named(&side), 400, "invalid", "revision"),
        ("no such commit", "POST", release, &named(&unknown), 400, "invalid", "revision"),
        ("deep", "POST", release, &deep, 400, "invalid", "revision"),
        ("large", "POST", release, &large, 413, "too-large", ""),
        ("no JSON", "POST", release, "revision=main", 400, "invalid", ""),
        ("an unknown field", "PUT", group, "{\"canery\":1}", 400, "invalid", "canery"),
        ("over 100 %", "PUT", group, "{\"batches\":[\"101%\"]}", 400, "invalid", "batches[0]"),
        ("down", "PUT", group, "{\"batches\":[\"50%\",\"25%\"]}", 400, "invalid", "batches"),
        ("no budget", "PUT", group, "{\"max_unavailable\":0}", 400, "invalid", "max_unavailable"),
        ("a slash", "PUT", "/v1/groups/a%2Fb", "{}", 400, "invalid", "group"),
        ("dots", "PUT", "/v1/groups/%2E%2E", "{}", 400, "invalid", "group"),
        ("a path of dots", "GET", "/v1/groups/../tokens", "", 404, "not-found", ""),
        ("a control byte", "PUT", "/v1/groups/a%00b", "{}", 400, "invalid", "group"),
        ("a line break", "PUT", "/v1/groups/a%0d%0ab", "{}", 400, "invalid", "group"),
        ("long", "PUT", &format!("/v1/groups/{long}"), "{}", 400, "invalid", "group"),
        ("nothing there", "GET", "/v2/groups", "", 404, "not-found", ""),
        ("another method", "PATCH", group, "{}", 405, "method-not-allowed", ""),
    ]
    .map(|(rule, method, path, body, status, code, field)| {
        (rule, method, path.to_owned(), body.to_owned(), status, code, field)
    })
    .to_vec();
    let before = look(&cluster);
    for (rule, method, path, body, status, code, field) in cases {
        let said = send(&cluster, &keyed(method, &path, "k", body.as_bytes()));
        assert_eq!((said.status, said.code().as_str()), (status, code), "{rule}: {said:?}");
        assert_eq!(said.field(), field, "{rule}: {said:?}");
        assert!(said.body.len() < 2_000, "{rule}: it repeats no flood");
        assert_eq!(look(&cluster), before, "{rule}: nothing has changed");
    }
    let said = send(&cluster, &request("DELETE", group, &[], b""));
    assert_eq!((said.status, said.field().as_str()), (400, "idempotency-key"));
    // What is no HTTP is answered by a line, or not at all; the next one is served.
    let head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    for bytes in
        [&b"GET /v1/groups/a\x01b HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02", head.as_bytes()]
    {
        let mut stream = connect(port);
        stream.write_all(bytes).ok();
        stream.shutdown(Shutdown::Write).ok();
        let said = wire::read(stream);
        assert!(matches!(said.status, 0 | 400 | 414 | 431), "{said:?}");
    }
    // One that is cut off is not half of a change.
    let mut stream = connect(port);
    let cut = keyed("POST", "/v1/groups/web/rollout/abort", "k", b"{\"reason\":\"x\"}");
    stream.write_all(&cut[..cut.len() - 1]).expect("somebody reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let said = wire::read(stream);
    assert!(matches!(said.status, 0 | 400), "{said:?}");
    assert_eq!(look(&cluster), before, "nothing has changed");

    let said = endless.join().expect("it ends");
    assert_eq!((said.status, said.code().as_str()), (408, "timeout"), "{said:?}");
    assert_eq!(look(&cluster), before, "nothing has changed");
}

#[test]
fn a_key_has_one_effect_and_none_for_another_request() {
    let (mut cluster, _) = mirrored();
    let abort = |reason: &str| {
        let body = json!({ "reason": reason }).to_string();
        keyed("POST", "/v1/groups/web/rollout/abort", "one", body.as_bytes())
    };
    let once = send(&cluster, &abort("wrong"));
    assert_eq!(once.status, 200, "{once:?}");
    let after = look(&cluster);
    let again = send(&cluster, &abort("wrong"));
    assert_eq!((again.status, &again.body), (200, &once.body), "it is answered as it was");
    assert_eq!(look(&cluster), after, "and not made again");
    let other = send(&cluster, &abort("another reason"));
    assert_eq!((other.status, other.code().as_str()), (409, "conflict"), "{other:?}");
    assert_eq!(look(&cluster), after);
    // Also across a restart.
    cluster.coordinator.kill();
    cluster.coordinator.run();
    let again = send(&cluster, &abort("wrong"));
    assert_eq!((again.status, &again.body), (200, &once.body));
    assert_eq!(look(&cluster), after);
}

#[test]
fn the_command_says_one_error_and_one_hint() {
    let (cluster, first) = mirrored();
    let side = off_branch(&cluster, &first);
    let file = cluster.coordinator.root().join("bad.toml");
    let file_name = file.to_str().expect("it is text");
    write(&file, "canery = 1\n");
    let down = cluster.coordinator.root().join("down.toml");
    write(&down, "batches = [\"50%\", \"25%\"]\n");
    let exposed = cluster.coordinator.root().join("exposed");
    write(&exposed, "tlo_x");
    let (down, exposed) = (down.to_str().expect("text"), exposed.to_str().expect("text"));
    let nobody = "http://127.0.0.1:1";
    let cases: &[(i32, &[&str], &str)] = &[
        (1, &["release", "api", "main"], "api"),
        (1, &["release", "web", "no-such-branch"], "no-such-branch"),
        (1, &["release", "web", &side], "rollout abort web"),
        (1, &["group", "set", "web", "--file", file_name], "canery"),
        (1, &["group", "set", "web", "--file", down], "batches"),
        (1, &["group", "set", "web", "--file", "/no/such/file"], "/no/such/file"),
        (1, &["group", "remove", "api"], "api"),
        (1, &["why", "i-99"], "i-99"),
        (1, &["logs", "i-99"], "i-99"),
        (1, &["retry", "--instance", "i-99"], "i-99"),
        (1, &["forget", "i-99"], "i-99"),
        (1, &["permit", "close", "i-99", "--reason", "x"], "i-99"),
        (1, &["quarantine", "lift", "web", "0123456"], "0123456"),
        (1, &["rollout", "promote", "web"], "web"),
        (1, &["rollout", "show", "web", "--generation", "77"], "77"),
        (1, &["rollback", "web", &side], ""),
        (1, &["restart", "web"], "web"),
        (1, &["release", "web", &first, "--only", "i-99"], "web"),
        (75, &["--coordinator", nobody, "skew"], "127.0.0.1:1"),
        (75, &["--coordinator", "unix:/no/such.sock", "skew"], "/no/such.sock"),
        (78, &["--coordinator", "ftp://a", "skew"], "ftp://a"),
        (78, &["--ca-file", "/no/ca.pem", "skew"], "/no/ca.pem"),
        (78, &["--token-file", exposed, "skew"], "others may read it"),
    ];
    let before = look(&cluster);
    let mut wrong = Vec::new();
    for (code, arguments, named) in cases {
        let said = cluster.coordinator.say(arguments);
        let lines = |mark: &str| said.err.lines().filter(|line| line.starts_with(mark)).count();
        // What they would do is printed before it is asked for.
        let is_quiet = said.out.is_empty() || matches!(arguments[0], "release" | "rollback");
        let is_one = (lines("error: "), lines("hint: ")) == (1, 1);
        if said.code != *code || !is_quiet || !is_one || !said.err.contains(named) {
            wrong.push(format!("{arguments:?}: {}: {}{}", said.code, said.out, said.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for arguments in [
        &["release", "we/b", "main"][..],
        &["release", "web"],
        &["frobnicate"],
        &["forget", &"a".repeat(300)],
        &["permit", "close", "i-1"],
    ] {
        let said = cluster.coordinator.say(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {}", said.err);
        assert!(said.err.starts_with("error: "), "{arguments:?}: {}", said.err);
    }
    assert_eq!(look(&cluster), before, "nothing has changed");
}
