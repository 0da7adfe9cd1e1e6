//! What bad input gets: a 4xx of the one shape, the field where there is one, and nothing changed.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use towline_protocol::api::REQUEST_BYTES_MAX;

use super::super::limits;
use super::*;

fn request(method: &str, path: &str, body: &str) -> Request {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(CONTENT_TYPE, "application/json").header(IDEMPOTENCY_HEADER, "k");
    request.body(Body::from(body.to_owned())).unwrap()
}

#[tokio::test]
async fn a_bad_change_is_refused_and_changes_nothing() {
    let here = Here::with(&["i-1", "i-2"]).await;
    let good = revision('b');
    let release = |body: &str| request("POST", "/v1/groups/web/release", body);
    let policy = |body: &str| request("PUT", "/v1/groups/web", body);
    let deep = format!("{{\"revision\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let with = |rest: &str| format!("{{\"revision\":\"{good}\",{rest}}}");
    let long = "a".repeat(300);
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(REQUEST_BYTES_MAX));
    let post = |path: &str| request("POST", path, "{}");
    let cases: Vec<(&str, Request, u16, &str, &str)> = vec![
        (
            "unknown group",
            request("POST", "/v1/groups/api/release", &format!("{{\"revision\":\"{good}\"}}")),
            404,
            "not-found",
            "",
        ),
        (
            "a group that is to go and is not there",
            request("DELETE", "/v1/groups/api", ""),
            404,
            "not-found",
            "",
        ),
        ("a branch on the wire", release("{\"revision\":\"main\"}"), 400, "invalid", "revision"),
        (
            "a short id on the wire",
            release("{\"revision\":\"4f2c91e\"}"),
            400,
            "invalid",
            "revision",
        ),
        ("an option", release("{\"revision\":\"--upload-pack=x\"}"), 400, "invalid", "revision"),
        ("no revision", release("{}"), 400, "invalid", "revision"),
        ("no body", release(""), 400, "invalid", "revision"),
        ("a field that is not known", release(&with("\"onyl\":\"i-1\"")), 400, "invalid", "onyl"),
        ("a selector that is none", release(&with("\"only\":\"i-1,,\"")), 400, "invalid", "only"),
        ("a selector of nobody", release(&with("\"only\":\"i-9\"")), 400, "invalid", "only"),
        (
            "without one who is not known",
            release(&with("\"without\":[\"i-9\"]")),
            400,
            "invalid",
            "without",
        ),
        ("no JSON", release("revision=main"), 400, "invalid", ""),
        ("half of it", release("{\"revision\":"), 400, "invalid", "revision"),
        (
            "two documents",
            release(&format!("{} {{}}", with("\"only\":\"i-1\""))),
            400,
            "invalid",
            "",
        ),
        (
            "a byte order mark",
            release(&format!("\u{feff}{}", with("\"only\":\"i-1\""))),
            400,
            "invalid",
            "",
        ),
        ("deep", release(&deep), 400, "invalid", "revision"),
        (
            "a query where none is due",
            post("/v1/groups/web/rollout/pause?force=1"),
            400,
            "invalid",
            "force",
        ),
        ("an unknown field of a group", policy("{\"canery\":1}"), 400, "invalid", "canery"),
        (
            "one below another",
            policy("{\"bake_s\":{\"cannery\":1}}"),
            400,
            "invalid",
            "bake_s.cannery",
        ),
        ("more than all", policy("{\"batches\":[\"101%\"]}"), 400, "invalid", "batches[0]"),
        (
            "batches that go down",
            policy("{\"batches\":[\"50%\",\"25%\"]}"),
            400,
            "invalid",
            "batches",
        ),
        (
            "nobody may be unavailable",
            policy("{\"max_unavailable\":0}"),
            400,
            "invalid",
            "max_unavailable",
        ),
        ("no canary", policy("{\"canary\":0}"), 400, "invalid", "canary"),
        (
            "a policy's branch that is an option",
            policy("{\"branch\":\"--x\"}"),
            400,
            "invalid",
            "branch",
        ),
        (
            "a secret in an address",
            policy("{\"repository\":\"https://t@h/x\"}"),
            400,
            "invalid",
            "repository",
        ),
        ("a slash in a group", request("PUT", "/v1/groups/a%2Fb", "{}"), 400, "invalid", "group"),
        ("dots in a group", request("PUT", "/v1/groups/%2E%2E", "{}"), 400, "invalid", "group"),
        (
            "a control byte in a group",
            request("PUT", "/v1/groups/a%00b", "{}"),
            400,
            "invalid",
            "group",
        ),
        ("no UTF-8 in a group", request("PUT", "/v1/groups/a%ffb", "{}"), 400, "invalid", ""),
        (
            "300 characters",
            request("PUT", &format!("/v1/groups/{long}"), "{}"),
            400,
            "invalid",
            "group",
        ),
        (
            "300 characters of an instance",
            post(&format!("/v1/groups/web/instances/{long}/forget")),
            400,
            "invalid",
            "instance",
        ),
        (
            "a line break in an instance",
            post("/v1/groups/web/instances/i%0a1/retry"),
            400,
            "invalid",
            "instance",
        ),
        (
            "no commit in quarantine",
            post("/v1/groups/web/quarantine/main/lift"),
            400,
            "invalid",
            "revision",
        ),
        (
            "one that is not in quarantine",
            post(&format!("/v1/groups/web/quarantine/{good}/lift")),
            404,
            "not-found",
            "",
        ),
        (
            "one that is not known",
            post("/v1/groups/web/instances/i-9/forget"),
            404,
            "not-found",
            "",
        ),
        (
            "a permit that is not there",
            request("POST", "/v1/groups/web/permits/i-1/close", "{\"reason\":\"x\"}"),
            404,
            "not-found",
            "",
        ),
        (
            "a permit without a reason",
            post("/v1/groups/web/permits/i-1/close"),
            400,
            "invalid",
            "reason",
        ),
        (
            "an empty reason",
            request("POST", "/v1/groups/web/permits/i-1/close", "{\"reason\":\" \\u0007\"}"),
            400,
            "invalid",
            "reason",
        ),
        ("nothing to pause", post("/v1/groups/web/rollout/pause"), 409, "conflict", ""),
        ("nothing to roll back to", post("/v1/groups/web/rollback"), 409, "conflict", ""),
        ("nothing to restart", post("/v1/groups/web/restart"), 409, "conflict", ""),
        ("a group with instances", request("DELETE", "/v1/groups/web", ""), 409, "conflict", ""),
        (
            "too large",
            request("POST", "/v1/groups/web/rollout/pause", &large),
            413,
            "too-large",
            "",
        ),
        (
            "a token of no role",
            request("POST", "/v1/tokens", "{\"name\":\"a\",\"role\":\"root\",\"expires_s\":1}"),
            400,
            "invalid",
            "role",
        ),
    ];
    let before = here.stored().await;
    for (rule, request, status, code, field) in cases {
        let said = here.send(request).await;
        assert_eq!((said.status.as_u16(), said.code()), (status, code), "{rule}: {said:?}");
        assert_eq!(said.field().unwrap_or_default(), field, "{rule}: {said:?}");
        assert!(said.text.len() < 2_000, "{rule}: it repeats no flood");
        assert!(here.stored().await == before, "{rule}: nothing has changed");
    }
}

#[tokio::test]
async fn every_change_needs_a_key_and_says_that_it_is_json() {
    let here = Here::with_web().await;
    let before = here.stored().await;
    let long = "k".repeat(65);
    for key in [None, Some(""), Some("a b"), Some("../x"), Some("a/b"), Some(long.as_str())] {
        let mut request = Request::delete("/v1/groups/web");
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_HEADER, key);
        }
        let said = here.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(
            (said.status.as_u16(), said.field()),
            (400, Some(IDEMPOTENCY_HEADER)),
            "{key:?}"
        );
    }
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let mut request = Request::put("/v1/groups/api").header(IDEMPOTENCY_HEADER, "k");
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let said = here.send(request.body(Body::from("{}")).unwrap()).await;
        assert_eq!((said.status.as_u16(), said.field()), (400, Some("content-type")), "{kind:?}");
    }
    assert!(here.stored().await == before);
    let request = Request::put("/v1/groups/api").header(IDEMPOTENCY_HEADER, "k");
    let request = request.header(CONTENT_TYPE, "Application/JSON; charset=utf-8");
    let said = here.send(request.body(Body::from("{}")).unwrap()).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
}

#[tokio::test]
async fn a_bad_question_is_refused() {
    let here = Here::with(&["i-1"]).await;
    let cases = [
        ("no such group", "/v1/groups/api", 404, ""),
        ("no such instance", "/v1/groups/web/instances/i-9", 404, ""),
        ("nor why", "/v1/groups/web/instances/i-9/why", 404, ""),
        ("nor logs", "/v1/groups/web/instances/i-9/logs", 404, ""),
        ("no log", "/v1/groups/web/instances/i-1/logs", 404, ""),
        ("no rollout", "/v1/groups/web/rollout", 404, ""),
        ("nor one to watch", "/v1/groups/web/rollout/watch", 404, ""),
        ("no such generation", "/v1/groups/web/rollout?generation=7", 404, ""),
        ("a generation that is none", "/v1/groups/web/rollout?generation=-1", 400, "generation"),
        ("no page", "/v1/instances?limit=0", 400, "limit"),
        ("too long a page", "/v1/instances?limit=1001", 400, "limit"),
        ("too long a page of groups", "/v1/groups?limit=100000", 400, "limit"),
        ("a page that begins nowhere", "/v1/instances?after=i-1", 400, "after"),
        ("no status", "/v1/instances?status=fine", 400, "status"),
        ("no revision", "/v1/instances?revision=main", 400, "revision"),
        ("no group's name", "/v1/instances?group=../x", 400, "group"),
        ("a group that is not there", "/v1/instances?group=api", 404, ""),
        ("a misspelt filter", "/v1/instances?stauts=silent", 400, "stauts"),
        ("a filter twice", "/v1/instances?limit=1&limit=2", 400, "limit"),
        ("no revision to plan", "/v1/groups/web/plan", 400, "revision"),
        ("a branch to plan", "/v1/groups/web/plan?revision=main", 400, "revision"),
        ("no name", "/v1/groups/web/resolve", 400, "name"),
        ("a control byte in a name", "/v1/groups/web/resolve?name=a%0ab", 400, "name"),
        ("no mirror that knows names", "/v1/groups/web/resolve?name=main", 409, ""),
    ];
    for (rule, path, status, field) in cases {
        let said = here.get(path).await;
        assert_eq!(said.status.as_u16(), status, "{rule}: {said:?}");
        assert_eq!(said.field().unwrap_or_default(), field, "{rule}: {said:?}");
        assert!(!said.code().is_empty(), "{rule}: {said:?}");
    }
}

#[tokio::test]
async fn a_body_that_says_no_length_is_cut_off_all_the_same() {
    let here = Here::with_web().await;
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let endless = stream::repeat_with(move || Ok::<_, std::io::Error>(Frame::data(piece.clone())));
    let request = Request::post("/v1/agent/poll").header(CONTENT_TYPE, "application/json");
    let said = here.send(request.body(Body::new(StreamBody::new(endless))).unwrap()).await;
    assert_eq!((said.status.as_u16(), said.code()), (413, "too-large"), "{said:?}");
    assert_eq!(said.headers["connection"], "close");
}

#[tokio::test]
async fn a_body_that_never_ends_is_waited_for_so_long() {
    let never = stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
    let body = Body::new(StreamBody::new(never));
    let refused = limits::read(body, 10, Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(refused.0.code, Code::Timeout);
    let broken = stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("gone"))]);
    let body = Body::new(StreamBody::new(broken));
    let refused = limits::read(body, 10, Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(refused.0.code, Code::Invalid);
}

#[tokio::test]
async fn so_many_requests_are_worked_on_at_a_time_and_no_more() {
    let here = Here::with_web().await;
    // Each holds its place for as long as its body does not end.
    let slow = |number: usize| {
        let never = stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let request = Request::post("/v1/groups/web/rollout/pause")
            .header(CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_HEADER, format!("slow-{number}"));
        Box::pin(here.raw(request.body(Body::new(StreamBody::new(never))).unwrap()))
    };
    let mut held = Vec::new();
    for number in 0..limits::STEERING_MAX {
        let mut one = slow(number);
        assert!(futures_util::poll!(&mut one).is_pending(), "{number}");
        held.push(one);
    }
    let said = here.get("/v1/groups/web").await;
    assert_eq!((said.status.as_u16(), said.code()), (503, "unavailable"), "{said:?}");
    assert_eq!(here.get("/v1/groups").await.status, StatusCode::OK, "views have their own");
    let said = here.tells("i-1", &revision('a'), 1).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "agents are not kept out by operators");
    held.pop();
    assert_eq!(here.get("/v1/groups/web").await.status, StatusCode::OK, "one has gone");
}
