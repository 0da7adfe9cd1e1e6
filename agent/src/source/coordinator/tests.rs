//! The source against a server on loopback that answers what the test says, and when.
//!
//! The clock is paused: it goes on to the next deadline whenever nothing else can happen.

use std::path::Path;

use serde_json::{Value, json};
use towline_protocol::poll::{Duty, FailureLog};
use towline_protocol::report::{Health, Report};

use super::tell::HURRY;
use super::*;

mod server;

use server::Server;

struct Agent {
    dir: tempfile::TempDir,
    config: config::Coordinator,
    coordinator: Coordinator,
}

fn own(dir: &Path, run: u64) -> Own {
    let (group, instance) = ("web".parse().unwrap(), "i-1".parse().unwrap());
    Own { group, instance, run, seed: 7, store: Store::new(dir) }
}

impl Agent {
    fn start(addresses: &[&str], secret: Option<&str>) -> Self {
        // The first test installs it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        Store::new(dir.path()).prepare().unwrap();
        let join_secret = secret.map(|secret| {
            use std::os::unix::fs::PermissionsExt;
            let path = dir.path().join("shared/secret");
            fs::write(&path, secret).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        });
        let config = config::Coordinator {
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
            ca_file: None,
            join_secret,
            allow_http: false,
            connect: Duration::from_secs(5),
        };
        let coordinator = Coordinator::start(&config, own(dir.path(), 1)).unwrap();
        Self { dir, config, coordinator }
    }

    /// Ends this agent, and starts the next one in its place.
    fn restart(&mut self) {
        self.coordinator = Coordinator::start(&self.config, own(self.dir.path(), 2)).unwrap();
    }

    async fn word(&mut self) -> u64 {
        match self.coordinator.next().await {
            Said::Word(word) => word.target.map_or(0, |target| target.order.generation),
            Said::Objection(reason) => panic!("{reason}"),
        }
    }

    async fn objection(&mut self) -> String {
        match self.coordinator.next().await {
            Said::Word(word) => panic!("{word:?}"),
            Said::Objection(reason) => reason,
        }
    }

    fn tell(&self, phase: &str, log: Option<FailureLog>) {
        let golden = include_str!("../../../../protocol/golden/report-1.json");
        let mut report: Report = serde_json::from_str(golden).unwrap();
        report.phase = serde_json::from_value(json!(phase)).unwrap();
        report.health = Health::Healthy;
        self.coordinator.tell(Told { report, note: Some(format!("{phase} it was")), log });
    }
}

fn log() -> FailureLog {
    let revision = "b".repeat(40).parse().unwrap();
    FailureLog { revision, detail: "503".to_owned(), parts: Vec::new() }
}

fn word(id: &str, generation: u64) -> Value {
    json!({
        "version": 1, "id": id, "wait_s": 50, "duty": "prepare",
        "target": {
            "version": 1, "group": "web", "epoch": 1, "generation": generation,
            "revision": "a".repeat(40),
        },
    })
}

fn order(generation: u64) -> Order {
    Order { epoch: 1, generation }
}

#[tokio::test(start_paused = true)]
async fn one_poll_is_parked_and_carries_what_was_seen() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&[&server.address], None);
    let poll = server.next("poll").await;
    assert_eq!((&poll.body["seen"], &poll.bearer), (&Value::Null, &None));
    assert_eq!(poll.number() >> 32, 1, "the run is in the number");
    let first = poll.number();
    poll.json(&word("one", 1));
    let Said::Word(heard) = agent.coordinator.next().await else { panic!("no word") };
    assert_eq!((heard.duty, heard.probe_every_s), (Duty::Prepare, 60));

    let poll = server.next("poll").await;
    assert_eq!(poll.body["seen"], "one");
    assert!(poll.number() > first, "no number is used twice");
    poll.nothing();
    let poll = server.next("poll").await;
    assert_eq!(poll.body["seen"], "one", "nothing new changes nothing");
    poll.json(&word("two", 2));
    assert_eq!(agent.word().await, 2);
}

#[tokio::test(start_paused = true)]
async fn answers_that_come_too_soon_and_say_nothing_do_not_make_it_busy() {
    let mut server = Server::start().await;
    let _agent = Agent::start(&[&server.address], None);
    let began = Instant::now();
    for _ in 0..20 {
        server.next("poll").await.nothing();
    }
    assert!(began.elapsed() >= Duration::from_secs(18), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_not_answered_in_time_goes_to_the_next_address() {
    let (mut one, mut two) = (Server::start().await, Server::start().await);
    let mut agent = Agent::start(&[&one.address, &two.address], None);
    let mut answer = word("one", 1);
    answer["wait_s"] = json!(100);
    one.next("poll").await.json(&answer);
    assert_eq!(agent.word().await, 1);
    let parked = one.next("poll").await;
    let began = Instant::now();
    let poll = two.next("poll").await;
    let waited = began.elapsed().as_secs();
    assert!((109..=111).contains(&waited), "its own wait, and ten seconds: {waited}");
    assert_eq!(poll.body["seen"], "one");
    poll.json(&word("two", 2));
    assert_eq!(agent.word().await, 2);
    drop(parked);
    // What works is kept.
    two.next("poll").await.nothing();
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_away_is_objected_to_at_the_start_and_after_the_lease() {
    // Nobody listens there.
    let (mut server, away) = (Server::start().await, "http://127.0.0.1:1");
    let mut agent = Agent::start(&[away], None);
    let began = Instant::now();
    let said = agent.objection().await;
    let waited = began.elapsed().as_secs();
    assert!(said.contains("could not reach http://127.0.0.1:1"), "{said}");
    assert!((15..60).contains(&waited), "a boot goes on without: {waited}");

    let mut agent = Agent::start(&[&server.address, away], None);
    server.next("poll").await.json(&word("one", 1));
    assert_eq!(agent.word().await, 1);
    let began = Instant::now();
    let refuse = tokio::spawn(async move {
        for _ in 0..1000 {
            if began.elapsed() >= Duration::from_secs(200) {
                break;
            }
            server.next("poll").await.answer("503 Service Unavailable", "");
        }
        server
    });
    let said = agent.objection().await;
    let waited = began.elapsed().as_secs();
    assert!((130..200).contains(&waited), "after the lease, and not at once: {waited} s, {said}");
    let mut server = refuse.await.unwrap();
    let poll = server.next("poll").await;
    assert_eq!(poll.body["seen"], "one");
    poll.nothing();
    assert_eq!(agent.word().await, 1, "nothing new, and the objection is over");
}

#[tokio::test(start_paused = true)]
async fn answers_that_make_no_sense_are_objected_to_and_change_nothing() {
    let far = format!("x{}", "y".repeat(call::ANSWER_BYTES_MAX));
    let mut other = word("x", 1);
    other["target"]["group"] = json!("api");
    let mut aimless = word("x", 1);
    aimless["target"]["not"] = json!("b".repeat(40));
    let mut newer = word("x", 1);
    newer["version"] = json!(99);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let cases = [
        ("no JSON", "200 OK", "hello".to_owned(), "could not read the answer"),
        ("cut off", "200 OK", word("x", 1).to_string()[..50].to_owned(), "could not read"),
        ("deep", "200 OK", deep, "could not read"),
        ("too large", "200 OK", far, "more than 64 KiB"),
        ("another group's", "200 OK", other.to_string(), "group api"),
        ("neither or both", "200 OK", aimless.to_string(), "either `revision` or `not`"),
        ("a newer version", "200 OK", newer.to_string(), "version 99"),
        ("a redirect", "302 Found\r\nlocation: http://127.0.0.1:1/", String::new(), "redirects"),
        ("no coordinator", "404 Not Found", "<html>".to_owned(), "404"),
        (
            "no token",
            "401 Unauthorized",
            json!({"error": {"code": "unauthorized", "message": "no\u{1b}[31m token"}}).to_string(),
            "401 Unauthorized: no token (give",
        ),
        ("another's token", "403 Forbidden", String::new(), "another instance's"),
    ];
    for (rule, status, body, expected) in cases {
        let mut server = Server::start().await;
        let mut agent = Agent::start(&[&server.address], None);
        server.next("poll").await.json(&word("good", 1));
        assert_eq!(agent.word().await, 1, "{rule}");
        server.next("poll").await.answer(status, &body);
        let said = agent.objection().await;
        assert!(said.contains(expected), "{rule}: {said}");
        let poll = server.next("poll").await;
        assert_eq!(poll.body["seen"], "good", "{rule}: it has seen nothing new");
        poll.nothing();
        assert_eq!(agent.word().await, 1, "{rule}: the objection is over");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let mut server = Server::start().await;
    let _agent = Agent::start(&[&server.address], None);
    let began = Instant::now();
    server.next("poll").await.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"version\"");
    server.next("poll").await.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    server.next("poll").await.nothing();
    let waited = began.elapsed().as_secs();
    assert!((120..130).contains(&waited), "twice a poll's deadline: {waited}");
}

#[tokio::test(start_paused = true)]
async fn the_newest_report_is_kept_through_an_outage_and_told_with_its_age() {
    let mut server = Server::start().await;
    let agent = Agent::start(&[&server.address], None);
    agent.tell("preparing", Some(log()));
    let report = server.await_next("report").await;
    assert_eq!(
        (&report.body["report"]["phase"], &report.body["age_ms"]),
        (&json!("preparing"), &json!(0))
    );
    let first = report.number();
    // It did not arrive; a newer one takes its place, with what the older one said of a failure.
    report.answer("503 Service Unavailable", "");
    agent.tell("idle", None);
    let mut last = (first, 0);
    for _ in 0..5 {
        let report = server.await_next("report").await;
        let body = &report.body;
        assert_eq!(
            (&body["report"]["phase"], &body["note"]),
            (&json!("idle"), &json!("idle it was"))
        );
        assert_eq!(body["log"]["detail"], "503", "it is kept until it is acknowledged");
        let now = (report.number(), body["age_ms"].as_u64().unwrap());
        assert!(now.0 > last.0 && (now.1 > last.1 || last.0 == first), "{now:?} after {last:?}");
        last = now;
        report.answer("503 Service Unavailable", "");
    }
    let report = server.await_next("report").await;
    assert!(report.body["age_ms"].as_u64().unwrap() > last.1);
    report.nothing();
    // Acknowledged: it is not told again, and its log not with the next one.
    agent.tell("asking", None);
    let report = server.await_next("report").await;
    assert_eq!(report.body["report"]["phase"], "asking");
    assert_eq!(report.body.get("log"), None);
    report.nothing();
    for _ in 0..100 {
        server.next("poll").await.nothing();
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_says_whether_something_is_still_to_be_told() {
    let mut server = Server::start().await;
    let agent = Agent::start(&[&server.address], None);
    let poll = server.next("poll").await;
    assert_eq!(poll.body["unsaid"], poll.body["seq"], "nothing was told in this life yet");
    agent.tell("preparing", None);
    let first = server.await_next("report").await;
    poll.nothing();
    let poll = server.await_next("poll").await;
    let unsaid = poll.body["unsaid"].as_u64().expect("it was not acknowledged");
    assert!(unsaid < first.number() && first.number() < poll.number());
    agent.tell("idle", None);
    first.nothing();
    let second = server.await_next("report").await;
    poll.nothing();
    let poll = server.await_next("poll").await;
    let unsaid = poll.body["unsaid"].as_u64().expect("nor was this one");
    assert!(unsaid <= second.number());
    second.nothing();
    // What is acknowledged is noted once the answer is read; polls go on meanwhile.
    let mut poll = poll;
    for _ in 0..5 {
        poll.nothing();
        poll = server.await_next("poll").await;
    }
    assert_eq!(poll.body.get("unsaid"), None);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_waits_is_told_soon_once_a_coordinator_answers_polls() {
    let mut server = Server::start().await;
    let agent = Agent::start(&[&server.address], None);
    let poll = server.next("poll").await;
    agent.tell("idle", None);
    for _ in 0..7 {
        server.await_next("report").await.answer("503 Service Unavailable", "");
    }
    // By now it waits for half a minute.
    let began = Instant::now();
    poll.nothing();
    let report = server.await_next("report").await;
    let waited = began.elapsed();
    assert!(waited >= HURRY / 2 && waited < HURRY * 3, "{waited:?}");
    report.nothing();
}

#[tokio::test(start_paused = true)]
async fn one_report_is_in_flight_at_a_time() {
    let mut server = Server::start().await;
    let agent = Agent::start(&[&server.address], None);
    agent.tell("preparing", None);
    let flies = server.await_next("report").await;
    agent.tell("asking", Some(log()));
    agent.tell("idle", None);
    let poll = server.requests.try_recv();
    assert!(poll.is_err() || poll.is_ok_and(|request| request.name == "poll"));
    flies.nothing();
    let report = server.await_next("report").await;
    assert_eq!(report.body["report"]["phase"], "idle", "the newest; what was between is over");
    assert_eq!(report.body["log"]["detail"], "503", "but not what it said of a failure");
    agent.tell("waiting", Some(log()));
    report.nothing();
    let report = server.await_next("report").await;
    assert_eq!(report.body["log"]["detail"], "503");
    report.nothing();
    agent.tell("idle", None);
    assert_eq!(server.await_next("report").await.body.get("log"), None, "it is told once");
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_at_once_or_it_is_a_no() {
    let mut server = Server::start().await;
    let agent = Agent::start(&[&server.address], None);
    let started = Instant::now();
    let polls = server.next("poll").await;
    let ask = |generation| {
        let (number, question) =
            agent.coordinator.ask(order(generation), started, CancellationToken::new());
        (number, tokio::spawn(async move { (question.await, started.elapsed()) }))
    };
    let (number, question) = ask(2);
    let asked = server.await_next("permit").await;
    assert_eq!((asked.number(), &asked.body["generation"]), (number, &json!(2)));
    assert!(asked.number() > polls.number());
    asked.json(&json!({"version": 1, "permit": 17, "valid_s": 30}));
    let (outcome, _) = question.await.unwrap();
    let Outcome::Permitted(Leave { until: Some(until) }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(until.as_secs(), 30, "from when it was sent");

    let (_, question) = ask(2);
    server
        .await_next("permit")
        .await
        .json(&json!({"version": 1, "reason": "1 of 1 permits in use"}));
    assert_eq!(question.await.unwrap().0, Outcome::Denied);

    for status in ["503 Service Unavailable", "302 Found", "401 Unauthorized", "204 No Content"] {
        let (_, question) = ask(2);
        server.await_next("permit").await.answer(status, "");
        let (outcome, _) = question.await.unwrap();
        assert!(!matches!(outcome, Outcome::Permitted(_)), "{status}: {outcome:?}");
    }
    let before = started.elapsed();
    let (_, question) = ask(3);
    let asked = server.await_next("permit").await;
    let (outcome, after) = question.await.unwrap();
    assert!(matches!(outcome, Outcome::Failed(..)), "{outcome:?}");
    assert_eq!((after - before).as_secs(), 10);
    drop(asked);
    // Told to stop, it stops.
    let stop = CancellationToken::new();
    stop.cancel();
    let (_, question) = agent.coordinator.ask(order(4), started, stop);
    assert!(matches!(question.await, Outcome::Failed(..)));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_found_nobody_goes_to_the_next_address() {
    let mut server = Server::start().await;
    let agent = Agent::start(&["http://127.0.0.1:1", &server.address], None);
    let ask = || agent.coordinator.ask(order(2), Instant::now(), CancellationToken::new()).1;
    assert!(matches!(ask().await, Outcome::Failed(..)), "nobody listens there");
    let (outcome, ()) = tokio::join!(ask(), async {
        server.await_next("permit").await.json(&json!({"version": 1}));
    });
    assert_eq!(outcome, Outcome::Denied);
}

#[tokio::test(start_paused = true)]
async fn a_join_secret_becomes_a_token_that_outlives_a_restart() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&[&server.address], Some("tlj_group\n"));
    agent.tell("idle", None);
    let join = server.next("join").await;
    assert_eq!(join.bearer.as_deref(), Some("tlj_group"));
    assert_eq!((&join.body["group"], &join.body["instance"]), (&json!("web"), &json!("i-1")));
    join.json(&json!({"token": "tla_own"}));
    for _ in 0..2 {
        let request = server.requests.recv().await.unwrap();
        assert_eq!(request.bearer.as_deref(), Some("tla_own"), "{}", request.name);
        request.nothing();
    }
    use std::os::unix::fs::MetadataExt;
    let path = agent.dir.path().join(".towline/token");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

    agent.restart();
    server.await_next("poll").await.nothing();
    let poll = server.next("poll").await;
    assert_eq!(poll.bearer.as_deref(), Some("tla_own"), "it need not join again");
    // Revoked: it joins again.
    poll.answer("401 Unauthorized", "");
    let join = server.next("join").await;
    join.json(&json!({"token": "tla_next"}));
    let poll = server.next("poll").await;
    assert_eq!(poll.bearer.as_deref(), Some("tla_next"));
    poll.json(&word("one", 1));
    let stored: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(stored["token"], "tla_next");

    // What an image carries of another instance is not used.
    let copied = fs::read_to_string(&path).unwrap().replace("i-1", "i-image");
    fs::write(&path, copied).unwrap();
    agent.restart();
    server.await_next("join").await.answer("401 Unauthorized", "");
    loop {
        match agent.coordinator.next().await {
            Said::Word(_) => {}
            Said::Objection(said) => {
                assert!(said.contains("401") && said.contains("join_secret"), "{said}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_make_no_sense_are_not_used_and_none_is_shown() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&[&server.address], Some("tlj_group"));
    for token in ["", "a b", "a\r\nx: y", &"x".repeat(5000)] {
        server.next("join").await.json(&json!({ "token": token }));
    }
    let said = agent.objection().await;
    assert!(said.contains("a token that cannot be used"), "{said}");
    server.next("join").await.json(&json!({"token": "tla_own"}));
    server.next("poll").await.answer("403 Forbidden", "{\"token\":\"tla_own\"}");
    let said = agent.objection().await;
    let shown = format!("{agent:?} {said}", agent = agent.coordinator);
    assert!(!shown.contains("tla_own") && !shown.contains("tlj_group"), "{shown}");
    let stored = Store::new(agent.dir.path()).read_token().unwrap().unwrap();
    assert!(!format!("{stored:?}").contains("tla_own"));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_above_all_that_was_sent() {
    let (mut server, away) = (Server::start().await, "http://127.0.0.1:1");
    let agent = Agent::start(&[away, &server.address], None);
    let poll = server.next("poll").await;
    let (config, dir) = (agent.config.clone(), agent.dir.path().to_owned());
    let said = tokio::spawn(async move { goodbye(&config, own(&dir, 2)).await });
    let goodbye = server.next("goodbye").await;
    assert_eq!((goodbye.number(), &goodbye.body["instance"]), (2 << 32, &json!("i-1")));
    assert!(goodbye.number() > poll.number());
    goodbye.nothing();
    assert_eq!(said.await.unwrap(), Ok(()));
}

#[test]
fn only_addresses_that_can_keep_a_secret_are_used() {
    let cases = [
        ("https", "https://towline.example", false, true),
        ("https with a path", "https://towline.example/t/", false, true),
        ("plain http to this host", "http://127.0.0.1:7400", false, true),
        ("by name", "http://localhost:7400", false, true),
        ("in version 6", "http://[::1]:7400", false, true),
        ("plain http to another", "http://10.0.0.1:7400", false, false),
        ("plain http, allowed", "http://10.0.0.1:7400", true, true),
        ("a name that only begins so", "http://localhost.example", false, false),
        ("no scheme", "towline.example", true, false),
        ("a file", "file:///etc/passwd", true, false),
        ("a password", "https://user:secret@towline.example", true, false),
        ("a query", "https://towline.example/?token=secret", true, false),
        ("a newline", "https://towline.example/\n", true, false),
    ];
    for (rule, text, allow_http, valid) in cases {
        let found = address(text, allow_http);
        assert_eq!(found.is_ok(), valid, "{rule}");
        if let Err(error) = found {
            assert!(!error.to_string().contains("user:secret"), "{error}");
        }
    }
}
