//! Agents: each speaks for itself alone, and what it tells is cleaned.

use super::*;

fn as_agent(path: &str, body: &Value) -> Request {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    let request = request.header(AUTHORIZATION, "agent");
    request.body(Body::from(body.to_string())).unwrap()
}

fn poll(instance: &str) -> Value {
    json!({"version": 1, "group": "web", "instance": instance, "seq": 5})
}

#[tokio::test]
async fn an_agent_is_told_what_to_do_by_its_poll() {
    let here = Here::with(&["i-1"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    let said = here.send(as_agent("/v1/agent/poll", &poll("i-1"))).await;
    assert_eq!(said.status, StatusCode::OK, "{said:?}");
    assert_eq!(said.body["target"]["revision"], revision('b'));
    assert_eq!(said.headers[CONTENT_TYPE], "application/json");
    let question = json!({
        "version": 1, "group": "web", "instance": "i-1", "seq": 6,
        "epoch": said.body["target"]["epoch"], "generation": 1
    });
    let said = here.send(as_agent("/v1/agent/permit", &question)).await;
    assert_eq!((said.status, said.body["permit"].as_u64()), (StatusCode::OK, None), "{said:?}");
    let said = here.send(as_agent("/v1/agent/goodbye", &poll("i-1"))).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT);
    assert_eq!(here.get("/v1/groups/web/instances/i-1").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_agent_with_another_ones_token_is_refused_and_nothing_changes() {
    let here = Here::with(&["i-1", "i-2"]).await;
    let mut report = json!({"seq": 9, "report": {
        "version": 1, "instance": "i-2", "group": "web", "phase": "idle", "health": "healthy"
    }});
    let mut question = poll("i-2");
    question["epoch"] = json!(1);
    question["generation"] = json!(1);
    let mut elsewhere = poll("i-1");
    elsewhere["group"] = json!("api");
    let before = here.stored().await;
    for (path, body) in [
        ("/v1/agent/poll", &poll("i-2")),
        ("/v1/agent/poll", &elsewhere),
        ("/v1/agent/report", &report),
        ("/v1/agent/permit", &question),
        ("/v1/agent/goodbye", &poll("i-2")),
        ("/v1/agent/join", &poll("i-1")),
    ] {
        let said = here.send(as_agent(path, body)).await;
        assert_eq!((said.status.as_u16(), said.code()), (403, "forbidden"), "{path}: {said:?}");
    }
    assert!(here.stored().await == before);
    report["report"]["instance"] = json!("i-1");
    let said = here.send(as_agent("/v1/agent/report", &report)).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "its own");
}

#[tokio::test]
async fn a_bad_message_is_refused_and_changes_nothing() {
    let here = Here::with(&["i-1"]).await;
    let long =
        json!({"version": 1, "group": "web", "instance": "i-1", "seq": 5, "seen": "x".repeat(201)});
    let flood = json!({"version": 1, "group": "web", "instance": "i-1", "seq": 5, "seen": "x".repeat(200_000)});
    let before = here.stored().await;
    for (rule, body, status, field) in [
        (
            "an unknown group",
            json!({"version": 1, "group": "api", "instance": "i-1", "seq": 1}),
            404,
            "",
        ),
        (
            "a name that is none",
            json!({"version": 1, "group": "web", "instance": "../x", "seq": 1}),
            400,
            "instance",
        ),
        ("no number", json!({"version": 1, "group": "web", "instance": "i-1"}), 400, "seq"),
        (
            "a negative number",
            json!({"version": 1, "group": "web", "instance": "i-1", "seq": -1}),
            400,
            "seq",
        ),
        ("an answer's name that is none", long, 400, "seen"),
        ("a flood", flood, 413, ""),
        ("a list", json!([]), 400, ""),
    ] {
        let said = here.ask("/v1/agent/poll", &body).await;
        assert_eq!(said.status.as_u16(), status, "{rule}: {said:?}");
        if !field.is_empty() {
            assert_eq!(said.field(), Some(field), "{rule}: {said:?}");
        }
    }
    assert!(here.stored().await == before);
}

#[tokio::test]
async fn what_an_agent_tells_is_cleaned_before_it_is_kept() {
    let here = Here::with_web().await;
    let message = json!({"seq": 1, "note": "a\u{1b}[2Jb", "later": 1, "report": {
        "version": 1, "instance": "i-1", "group": "web", "phase": "idle", "health": "unhealthy",
        "degraded": "x".repeat(50_000),
        "failure": {"revision": revision('b'), "cause": "install", "detail": "a\nb", "attempt": 1}
    }, "log": {"revision": revision('b'), "detail": "d\u{7}", "parts": [
        {"source": "install", "text": "one\u{1b}[31m\ntwo"}
    ]}});
    let said = here.ask("/v1/agent/report", &message).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
    for (key, value) in here.stored().await {
        let text = String::from_utf8(value).unwrap();
        assert!(!text.contains("\\u001b") && !text.contains("\\u0007"), "{key}: {text}");
        assert!(text.len() < 5_000, "{key} is cut");
    }
    let logs = here.get("/v1/groups/web/instances/i-1/logs").await;
    assert_eq!(logs.body["log"]["parts"][0]["text"], "one [31m\ntwo", "{logs:?}");
}

fn joins(word: &str, group: &str, instance: &str) -> Request {
    let body = json!({"version": 1, "group": group, "instance": instance}).to_string();
    let request = Request::post("/v1/agent/join").header(CONTENT_TYPE, "application/json");
    request.header(AUTHORIZATION, word).body(Body::from(body)).unwrap()
}

#[tokio::test]
async fn a_second_claimant_of_a_name_is_refused_and_raised() {
    let here = Here::with(&["i-taken"]).await;
    let why = async || here.get("/v1/groups/web/instances/i-taken/why").await.body;
    assert!(!why().await.to_string().contains("another host"));
    for _ in 0..2 {
        let refused = here.send(joins("join", "web", "i-taken")).await;
        assert_eq!(refused.status.as_u16(), 409, "{refused:?}");
    }
    let told = why().await;
    let reasons = told["reasons"].to_string();
    assert!(reasons.contains("another host asked to join under this name"), "{told:?}");
    assert!(told["next"].to_string().contains("towline forget i-taken --group web"), "{told:?}");
    let figures = here.get("/metrics").await.text;
    assert!(figures.contains("towline_claims_refused_total 2"), "{figures}");
}

#[tokio::test]
async fn an_instance_joins_by_its_groups_secret_alone() {
    let here = Here::with_web().await;
    let join = |word: &str, group: &str| joins(word, group, "i-7");
    let before = here.stored().await;
    for (rule, request, status) in [
        ("an agent's token", join("agent", "web"), 403),
        ("an operator's token", join("operator", "web"), 403),
        ("another group's secret", join("join", "api"), 403),
        ("none that is good", join("x", "web"), 401),
    ] {
        assert_eq!(here.send(request).await.status.as_u16(), status, "{rule}");
    }
    assert!(here.stored().await == before);
    let said = here.send(join("join", "web")).await;
    assert_eq!(said.body["token"], "tla_secret", "{said:?}");
    let has = |stored: &[(String, Vec<u8>)]| stored.iter().any(|(key, _)| key == "token/of-i-7");
    assert!(has(&here.stored().await), "what it was given is stored");
}
