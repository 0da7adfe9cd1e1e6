//! Whole commands against a coordinator that says what each test has it say.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use clap::Parser;
use serde_json::{Value, json};
use towline_protocol::api::{RolloutView, Standing, Status};
use towline_protocol::rollout::{Decided, Kind, State as Stands};

use super::*;
use crate::arguments::Arguments;
use crate::render::sample;

mod again;

/// What the coordinator says, and what it heard.
#[derive(Default)]
struct Script {
    /// Answers by method and path, as often as they are asked for.
    answers: BTreeMap<String, (u16, Value)>,
    /// Rollouts by generation.
    rollouts: BTreeMap<u64, RolloutView>,
    /// The generation of the one that goes on.
    current: u64,
    /// Streams, one for each time that one is asked for; an empty one: it is not ready then.
    streams: VecDeque<Vec<RolloutView>>,
    heard: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

async fn answer(State(script): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut script = script.lock().unwrap();
    script.heard.push(format!("{method} {path}{query} {}", String::from_utf8_lossy(&body)));
    if path.ends_with("/rollout/watch") {
        return stream(&mut script);
    }
    let found = match (method, path) {
        ("GET", "/v1/groups/web/rollout") => {
            let generation = query.strip_prefix("?generation=");
            let generation = generation.map_or(script.current, |text| text.parse().unwrap());
            let view = script.rollouts.get(&generation);
            view.map(|view| (200, serde_json::to_value(view).unwrap()))
        }
        _ => script.answers.get(&format!("{method} {path}")).cloned(),
    };
    let not_found = || (404, json!({"error": {"code": "not-found", "message": "no such thing"}}));
    let (status, value) = found.unwrap_or_else(not_found);
    let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
    answer.body(Body::from(value.to_string())).unwrap()
}

fn stream(script: &mut Script) -> Response {
    let Some(views) = script.streams.pop_front().filter(|views| !views.is_empty()) else {
        let busy = json!({"error": {"code": "unavailable", "message": "starting"}});
        let answer = Response::builder().status(503);
        return answer.body(Body::from(busy.to_string())).unwrap();
    };
    let mut text = String::from(": hello\n\n");
    for (index, view) in views.into_iter().enumerate() {
        text.push_str(&format!(
            "event: rollout\ndata: {}\n\n",
            serde_json::to_string(&view).unwrap()
        ));
        // How things stand when the stream begins is its first view.
        if index == 0 {
            script.current = script.current.max(view.order.generation);
            script.rollouts.insert(view.order.generation, view);
        }
    }
    let answer = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
    answer.body(Body::from(text)).unwrap()
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
struct Outcome {
    exit: Exit,
    out: String,
    beside: String,
    heard: Vec<String>,
    hint: Option<String>,
}

impl Outcome {
    /// What was asked of the coordinator, without what was sent.
    fn asked(&self) -> Vec<&str> {
        let line = |heard: &'_ String| heard.len().min(heard.find(" {").unwrap_or(heard.len()));
        self.heard.iter().map(|heard| heard[..line(heard)].trim_end()).collect()
    }
}

async fn run(script: Script, line: &str) -> Outcome {
    let script = Arc::new(Mutex::new(script));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = Router::new().fallback(answer).with_state(script.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let words = std::iter::once("towline").chain(line.split_whitespace());
    let arguments = Arguments::try_parse_from(words).unwrap();
    let (out, beside) = (Sink::default(), Sink::default());
    let is_json = arguments.options.json;
    let screen = Screen::captured(is_json, Box::new(out.clone()), Box::new(beside.clone()));
    let client = crate::client::tests::client(address);
    let context = Context { client: &client, screen: &screen, clock: || sample::at(600) };
    let ended = super::run(&context, arguments.command).await;
    server.abort();
    let mut hint = None;
    let exit = ended.unwrap_or_else(|error| {
        hint = error.hint();
        screen.complain(&error, error.exit(), error.hint().as_deref(), error.refusal());
        error.exit()
    });
    let heard = script.lock().unwrap().heard.clone();
    Outcome { exit, out: out.text(), beside: beside.text(), heard, hint }
}

fn value(view: &impl Serialize) -> (u16, Value) {
    (200, serde_json::to_value(view).unwrap())
}

/// A coordinator with group web, on which a release of 4f2c can be begun.
fn script() -> Script {
    let mut script = Script { current: 118, ..Script::default() };
    let group = json!({
        "group": "web", "policy": {}, "target": sample::target(), "rollout": null,
        "counts": sample::plan().counts, "fallback": null,
        "quarantine": [{"revision": sample::revision("4f2c91e0"), "since": 0, "reason": "x"}],
    });
    script.answers.insert("GET /v1/groups/web".to_owned(), (200, group.clone()));
    let groups = json!({"items": [group], "next": null});
    script.answers.insert("GET /v1/groups".to_owned(), (200, groups));
    let resolved = json!({
        "name": "4f2c", "on_branch": true,
        "commit": sample::commit("4f2c91e0", "Cache price lists"),
    });
    script.answers.insert("GET /v1/groups/web/resolve".to_owned(), (200, resolved));
    script.answers.insert("GET /v1/groups/web/plan".to_owned(), value(&sample::plan()));
    let begun = value(&sample::rollout());
    script.answers.insert("POST /v1/groups/web/release".to_owned(), begun);
    script.rollouts.insert(118, sample::rollout());
    script
}

fn ended(state: Stands) -> RolloutView {
    let mut view = sample::rollout();
    view.state = state;
    view.reason = format!("it is {}", state.as_str());
    view.ended = Some(sample::at(60));
    view
}

/// The end of a release that failed at its canary, and its way back.
fn aborted() -> (RolloutView, RolloutView) {
    let mut failed = ended(Stands::Aborted);
    failed.members[0].standing = Standing::Failed;
    failed.members[0].note = Some("GET /healthz 503, 3 in a row".to_owned());
    failed.next_generation = Some(119);
    failed.reached = Some(1);
    let mut back = ended(Stands::Converged);
    back.order.generation = 119;
    back.kind = Kind::Rollback;
    back.revision = Some(sample::revision("9b03d7a1"));
    back.commit = None;
    (back.members, back.decisions) = (Vec::new(), Vec::new());
    (back.batches, back.began) = (Vec::new(), sample::at(50));
    (failed, back)
}

fn log() -> Value {
    json!({
        "instance": "i-0a17", "group": "web", "at": sample::at(39),
        "log": {
            "revision": sample::revision("4f2c91e0"), "detail": "503",
            "parts": [{"source": "app", "text": "TypeError: x\n  at lib/price.js:88\n"}],
        },
    })
}

#[tokio::test]
async fn a_release_says_what_it_does_and_does_it() {
    let outcome = run(script(), "release web 4f2c --only i-0* --without i-1,i-2").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let expected = [
        "4f2c is 4f2c91e04f2c91e04f2c91e04f2c91e04f2c91e0",
        "  \"Cache price lists\" by Ada, 7 commits after 9b03d7a",
        "web: 10 live, 10 healthy",
        "plan: canary 1, then 10 50 100 %; 9 stay healthy; at least 9 min",
        "rollout web, generation 118; next: towline rollout watch web",
        "",
    ];
    assert_eq!(outcome.out, expected.join("\n"));
    assert_eq!(outcome.beside, "", "nothing beside the point");
    let revision = sample::revision("4f2c91e0");
    assert_eq!(
        outcome.heard[1..],
        [
            "GET /v1/groups/web/resolve?name=4f2c ".to_owned(),
            format!("GET /v1/groups/web/plan?revision={revision}&only=i-0*&without=i-1%2Ci-2 "),
            format!(
                "POST /v1/groups/web/release \
             {{\"revision\":\"{revision}\",\"only\":\"i-0*\",\"without\":[\"i-1\",\"i-2\"]}}"
            ),
        ]
    );
}

#[tokio::test]
async fn a_full_id_is_not_asked_about() {
    let mut script = script();
    script.answers.remove("GET /v1/groups/web/resolve");
    let revision = sample::revision("4f2c91e0");
    let outcome = run(script, &format!("release web {revision} --json")).await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let printed: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(printed["schema_version"], 1);
    assert_eq!(printed["rollout"]["generation"], 118);
}

#[tokio::test]
async fn what_would_be_refused_is_not_tried() {
    let mut script = script();
    let mut plan = sample::plan();
    plan.warnings = vec!["one silent instance uses the whole budget".to_owned()];
    plan.refused = Some(ErrorBody {
        code: towline_protocol::api::Code::Conflict,
        message: "a rollout of web goes on".to_owned(),
        hint: Some("towline rollout abort web".to_owned()),
        field: None,
    });
    script.answers.insert("GET /v1/groups/web/plan".to_owned(), value(&plan));
    let outcome = run(script, "release web 4f2c").await;
    assert_eq!(outcome.exit, Exit::Failed);
    let expected = "warning: one silent instance uses the whole budget\n\
                    error: a rollout of web goes on\nhint: towline rollout abort web\n";
    assert_eq!(outcome.beside, expected);
    assert!(!outcome.heard.iter().any(|heard| heard.starts_with("POST")), "{outcome:?}");
}

#[tokio::test]
async fn a_release_that_fails_is_watched_into_its_rollback() {
    let mut script = script();
    let (failed, back) = aborted();
    let path = "GET /v1/groups/web/instances/i-0a17/logs".to_owned();
    script.answers.insert(path, (200, log()));
    let path = "GET /v1/groups/web/instances/i-0a17".to_owned();
    let instance = sample::instance_view("i-0a17", Status::Converged);
    script.answers.insert(path, (200, serde_json::to_value(instance).unwrap()));
    script.rollouts.insert(119, RolloutView { state: Stands::Running, ..back.clone() });
    script.streams = vec![vec![sample::rollout()], vec![], vec![failed, back]].into();
    let outcome = run(script, "release web 4f2c --watch").await;
    assert_eq!(outcome.exit, Exit::Stopped, "{outcome:?}");
    let expected = [
        "rollout web, generation 118",
        "14:15:00Z canary   opened: i-0a17",
        "14:15:00Z 10 %     offered",
        "14:15:00Z FAILED   i-0a17 GET /healthz 503, 3 in a row",
        "14:16:00Z aborted  it is aborted",
        "rollout web, generation 119: rollback to 9b03d7a, 50 instances",
        "rolled back; target 9b03d7a (generation 119); 4f2c91e quarantined",
        "1 of 50 served 4f2c91e",
        "i-0a17 serves 9b03d7a again, healthy",
        "i-0a17 app:",
        "  TypeError: x",
        "    at lib/price.js:88",
        "next: towline logs i-0a17; after a fix, release the new commit",
        "",
    ];
    let told: Vec<&str> = outcome.out.split('\n').skip(4).collect();
    assert_eq!(told, expected);
    let expected = "the coordinator is away; asking again until it is back\n\
                    the coordinator is back\n";
    assert_eq!(outcome.beside, expected, "between two streams");
}

#[tokio::test]
async fn an_aborted_restart_has_no_way_back_to_follow() {
    let mut script = script();
    script.streams = vec![vec![aborted().0]].into();
    let outcome = run(script, "rollout watch web").await;
    assert_eq!(outcome.exit, Exit::Stopped, "{outcome:?}");
    assert!(outcome.out.contains("\naborted: it is aborted"), "{}", outcome.out);
}

#[tokio::test]
async fn what_is_older_than_what_is_watched_ends_nothing() {
    let mut script = script();
    let mut older = ended(Stands::Converged);
    older.order.generation = 117;
    script.streams = vec![vec![older, ended(Stands::Halted)]].into();
    let outcome = run(script, "rollout watch web").await;
    assert_eq!(outcome.exit, Exit::Stopped, "{outcome:?}");
    assert!(!outcome.out.contains("converged"), "{}", outcome.out);
    assert_eq!(outcome.beside, "", "nobody was away");
    let asked = outcome.asked();
    assert!(
        !asked.iter().any(|path| path.contains("generation=")),
        "nothing was missed: {asked:?}"
    );
}

#[tokio::test]
async fn an_end_that_was_not_heard_is_asked_for() {
    let mut script = script();
    let (failed, back) = aborted();
    script.rollouts.insert(118, failed);
    script.rollouts.insert(119, back.clone());
    script.streams = vec![vec![back]].into();
    script.answers.insert("POST /v1/groups/web/release".to_owned(), value(&sample::rollout()));
    let outcome = run(script, "release web 4f2c --watch").await;
    assert_eq!(outcome.exit, Exit::Stopped, "{outcome:?}");
    assert!(outcome.out.contains("FAILED   i-0a17"), "{}", outcome.out);
    assert!(outcome.out.contains("\nrolled back; target 9b03d7a (generation 119)"), "{outcome:?}");
    let asked = outcome.asked();
    assert!(asked.contains(&"GET /v1/groups/web/rollout?generation=118"), "{asked:?}");
}

#[tokio::test]
async fn what_happened_before_the_stream_began_is_not_missed() {
    let mut script = script();
    // A stream begins with how things stand.
    script.streams = vec![vec![ended(Stands::Converged)]].into();
    let outcome = run(script, "release web 4f2c --watch").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
}

#[tokio::test]
async fn each_end_has_its_exit_code() {
    let cases = [
        (Stands::Converged, Exit::Done, "converged: 49 of 50 serve 4f2c91e, after 60 s"),
        (Stands::Halted, Exit::Stopped, "HALTED: it is halted"),
        (Stands::Replaced, Exit::Stopped, "replaced: generation 118 is over"),
        (Stands::Aborted, Exit::Stopped, "aborted: it is aborted; 4f2c91e quarantined"),
    ];
    for (state, exit, said) in cases {
        let mut script = script();
        script.streams = vec![vec![sample::rollout(), ended(state)]].into();
        let outcome = run(script, "rollout watch web").await;
        assert_eq!(outcome.exit, exit, "{outcome:?}");
        assert!(outcome.out.contains(said), "{said}: {}", outcome.out);
        let mut script = self::script();
        script.rollouts.insert(118, ended(state));
        let outcome = run(script, "rollout watch web").await;
        assert_eq!(outcome.exit, exit, "it had ended before: {outcome:?}");
    }
}

#[tokio::test]
async fn watching_for_programs_is_an_object_a_line() {
    let mut script = script();
    let (failed, back) = aborted();
    script.rollouts.insert(119, RolloutView { state: Stands::Running, ..back.clone() });
    script.streams = vec![vec![failed, back]].into();
    let outcome = run(script, "rollout watch web --json").await;
    assert_eq!(outcome.exit, Exit::Stopped);
    let lines: Vec<Value> =
        outcome.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = lines
        .iter()
        .map(|line| (line["rollout"]["generation"].clone(), line["rollout"]["state"].clone()))
        .collect();
    assert_eq!(states.first(), Some(&(json!(118), json!("running"))), "{states:?}");
    assert_eq!(states.last(), Some(&(json!(119), json!("converged"))), "{states:?}");
    assert!(lines.iter().all(|line| line["schema_version"] == 1));
}

#[tokio::test]
async fn a_coordinator_that_refuses_ends_the_watch() {
    let mut script = script();
    script.streams = vec![vec![sample::rollout()]].into();
    let mut later = sample::rollout();
    later.decisions.push(Decided { at: sample::at(5), text: "gate: wait".to_owned() });
    script.rollouts.insert(118, later);
    // After the stream nobody is there any more.
    let outcome = run(script, "rollout watch web").await;
    assert_eq!(outcome.exit, Exit::TryLater, "{outcome:?}");
    let away = outcome.beside.matches("the coordinator is away").count();
    assert_eq!(away, 1, "it is said once: {}", outcome.beside);
    let outcome = run(Script::default(), "rollout watch web").await;
    assert_eq!(outcome.exit, Exit::Failed, "no such group: {outcome:?}");
}

#[tokio::test]
async fn an_instance_is_looked_up_where_its_group_is_not_named() {
    let list = |groups: &[&str]| {
        let view = |group: &&str| {
            let mut view = sample::instance_view("i-1", towline_protocol::api::Status::Stale);
            view.group = group.parse().unwrap();
            view
        };
        let items: Vec<_> = groups.iter().map(view).collect();
        let mut script = script();
        let page = json!({"items": items, "next": null});
        script.answers.insert("GET /v1/instances".to_owned(), (200, page));
        let path = "POST /v1/groups/web/instances/i-1/retry".to_owned();
        script.answers.insert(path, (204, Value::Null));
        script
    };
    let outcome = run(list(&["web"]), "retry --instance i-1 --reason fixed").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let last = outcome.heard.last().unwrap();
    assert_eq!(last, "POST /v1/groups/web/instances/i-1/retry {\"reason\":\"fixed\"}");
    let outcome = run(list(&["web"]), "retry web --instance i-1").await;
    assert_eq!(outcome.asked(), ["POST /v1/groups/web/instances/i-1/retry"], "no look is needed");
    let outcome = run(list(&["web", "api"]), "retry --instance i-1").await;
    assert_eq!(outcome.exit, Exit::Failed);
    assert!(outcome.beside.contains("groups api, web have one each"), "{}", outcome.beside);
    assert!(outcome.hint.unwrap().contains("--group"));
    let outcome = run(list(&[]), "logs i-1").await;
    assert!(outcome.beside.starts_with("error: could not find an instance i-1\nhint: "));
}

#[tokio::test]
async fn why_is_asked_of_a_group_first_and_then_of_an_instance() {
    let view = |subject: &str| json!({"subject": subject, "summary": "stale", "reasons": ["because"], "next": []});
    let mut script = script();
    script.answers.insert("GET /v1/groups/web/why".to_owned(), (200, view("web")));
    assert_eq!(run(script, "why web").await.out, "web: stale\n  because\n");
    let mut script = self::script();
    let item = sample::instance_view("i-1", towline_protocol::api::Status::Stale);
    let page = json!({"items": [item], "next": null});
    script.answers.insert("GET /v1/instances".to_owned(), (200, page));
    let path = "GET /v1/groups/web/instances/i-1/why".to_owned();
    script.answers.insert(path, (200, view("web i-1")));
    assert_eq!(run(script, "why i-1").await.out, "web i-1: stale\n  because\n");
    let outcome = run(self::script(), "why ../x").await;
    assert!(outcome.heard.is_empty(), "what is no name is not sent: {outcome:?}");
    assert_eq!(outcome.exit, Exit::Failed);
}

#[tokio::test]
async fn a_secret_stands_alone_on_standard_output() {
    let mut script = script();
    let secret = json!({"group": "web", "secret": "tlj_x1y2"});
    script.answers.insert("POST /v1/groups/web/join-secret".to_owned(), (200, secret));
    let outcome = run(script, "join-secret web").await;
    assert_eq!(outcome.out, "tlj_x1y2\n");
    assert!(outcome.beside.contains("shown once") && !outcome.beside.contains("tlj"));
    let mut script = self::script();
    let token = json!({
        "id": "t1", "name": "ci", "role": "operator", "created": 0,
        "expires": sample::at(0), "used": null, "secret": "tlo_abc",
    });
    script.answers.insert("POST /v1/tokens".to_owned(), (200, token));
    let outcome = run(script, "token create ci --role operator --expires 30d").await;
    assert_eq!(outcome.out, "tlo_abc\n");
    assert!(outcome.beside.contains("token t1 for ci, good until 2026-09-21 14:15:00Z"));
    let sent = "POST /v1/tokens {\"name\":\"ci\",\"role\":\"operator\",\"expires_s\":2592000}";
    assert_eq!(outcome.heard, [sent]);
}

#[tokio::test]
async fn the_other_commands_ask_for_what_they_need() {
    let revision = sample::revision("4f2c91e0");
    let lift = format!("POST /v1/groups/web/quarantine/{revision}/lift");
    let quiet = [
        ("rollout pause web --reason lunch", "POST /v1/groups/web/rollout/pause"),
        ("rollout resume web", "POST /v1/groups/web/rollout/resume"),
        ("rollout promote web", "POST /v1/groups/web/rollout/promote"),
        ("rollout abort web", "POST /v1/groups/web/rollout/abort"),
        ("rollback web", "POST /v1/groups/web/rollback"),
        ("restart web", "POST /v1/groups/web/restart"),
        ("restart web --instance i-1", "POST /v1/groups/web/instances/i-1/restart"),
        ("forget i-1 --group web", "POST /v1/groups/web/instances/i-1/forget"),
        ("permit close i-1 --group web --reason gone", "POST /v1/groups/web/permits/i-1/close"),
        ("quarantine lift web 4f2c", lift.as_str()),
        ("token revoke t1", "POST /v1/tokens/t1/revoke"),
        ("group remove web", "DELETE /v1/groups/web"),
    ];
    for (line, asked) in quiet {
        let mut script = script();
        script.answers.insert(asked.to_owned(), value(&sample::rollout()));
        let mut again = self::script();
        again.answers = script.answers.clone();
        again.rollouts = script.rollouts.clone();
        let outcome = run(script, line).await;
        assert_eq!(outcome.exit, Exit::Done, "{line}: {outcome:?}");
        assert!(outcome.asked().contains(&asked), "{line}: {outcome:?}");
        let outcome = run(again, &format!("{line} --json")).await;
        let printed: Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!(printed.as_object().unwrap().len(), 2, "one object: {line}: {printed}");
    }
    let empty = json!({"items": [], "next": null});
    let lists = [
        ("group list", "", "GROUP"),
        ("quarantine list", "", "GROUP  REVISION"),
        ("instances web --status silent", "GET /v1/instances", "INSTANCE"),
        ("permit list", "GET /v1/groups/web/permits", "INSTANCE"),
        ("token list", "GET /v1/tokens", "ID"),
        ("rollout show web", "", "rollout web, generation 118: release of 4f2c91e"),
        ("group show web", "", "# web: 10 instances"),
        ("plan web 4f2c", "", "4f2c is 4f2c91e0"),
    ];
    for (line, path, beginning) in lists {
        let script = || {
            let mut script = script();
            script.answers.insert(path.to_owned(), (200, empty.clone()));
            script
        };
        let outcome = run(script(), line).await;
        assert_eq!(outcome.exit, Exit::Done, "{line}: {outcome:?}");
        assert!(outcome.out.starts_with(beginning), "{line}: {}", outcome.out);
        let outcome = run(script(), &format!("{line} --json")).await;
        let printed: Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!(printed["schema_version"], 1, "{line}");
        assert_eq!(printed.as_object().unwrap().len(), 2, "{line}: {printed}");
    }
    let mut script = script();
    script.answers.insert("GET /v1/instances".to_owned(), (200, empty));
    let outcome = run(script, "instances webb").await;
    assert_eq!(outcome.exit, Exit::Failed, "a list of nobody hides no misspelling");
}
