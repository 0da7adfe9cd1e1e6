//! Views over HTTP: pages, plans, streams, figures.

use std::sync::atomic::AtomicBool;

use futures_util::StreamExt;
use http_body_util::BodyStream;

use super::*;

#[tokio::test]
async fn pages_lead_through_all_groups() {
    let here = Here::with(&["i-1", "i-2", "i-3"]).await;
    for group in ["api", "jobs"] {
        here.change(Method::PUT, &format!("/v1/groups/{group}"), &json!({})).await;
    }
    let report = json!({"seq": 1, "report": {
        "version": 1, "instance": "i-1", "group": "api", "phase": "idle", "health": "healthy"
    }});
    here.ask("/v1/agent/report", &report).await;
    let collect = async |path: &str, item: fn(&Value) -> String| {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let sep = if path.contains('?') { '&' } else { '?' };
            let page = here.get(&format!("{path}{sep}limit=2{after}")).await;
            assert_eq!(page.status, StatusCode::OK, "{page:?}");
            let items = page.body["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            all.extend(items.iter().map(item));
            match page.body["next"].as_str() {
                Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
                None => return all,
            }
        }
    };
    let name = |item: &Value| {
        format!("{}/{}", item["group"].as_str().unwrap(), item["instance"].as_str().unwrap())
    };
    let all = ["api/i-1", "web/i-1", "web/i-2", "web/i-3"];
    assert_eq!(collect("/v1/instances", name).await, all);
    assert_eq!(collect("/v1/instances?group=web", name).await, all[1..]);
    assert_eq!(collect("/v1/groups/web/instances", name).await, all[1..]);
    assert_eq!(collect("/v1/instances?revision=aaaa", name).await, all[1..]);
    assert!(collect("/v1/instances?status=silent", name).await.is_empty());
    let group = |item: &Value| item["group"].as_str().unwrap().to_owned();
    assert_eq!(collect("/v1/groups", group).await, ["api", "jobs", "web"]);
}

#[tokio::test]
async fn a_group_is_seen_from_all_sides() {
    let here = Here::with(&["i-1", "i-2"]).await;
    let plan = here.get(&format!("/v1/groups/web/plan?revision={}", revision('b'))).await;
    assert_eq!(plan.body["batches"][0]["size"], 1, "{plan:?}");
    assert!(plan.body["warnings"].to_string().contains("no mirror"), "{plan:?}");
    let skew = here.get("/v1/groups/web/skew").await;
    assert_eq!(skew.body["revisions"][0]["workers"], 2, "{skew:?}");
    let why = here.get("/v1/groups/web/why").await;
    assert_eq!(why.body["subject"], "web");
    let why = here.get("/v1/groups/web/instances/i-1/why").await;
    assert_eq!(why.body["subject"], "web i-1");
    let seen = here.get("/v1/groups/web/instances/i-1").await;
    assert_eq!(
        (&seen.body["serving"], &seen.body["health"]),
        (&json!(revision('a')), &json!("healthy"))
    );
    assert_eq!(here.get("/v1/groups/web/permits").await.body["items"], json!([]));
    assert_eq!(here.get("/v1/groups/web/quarantine").await.body["items"], json!([]));
}

#[tokio::test]
async fn a_watcher_is_told_of_each_change_until_the_coordinator_stops() {
    let here = Here::with(&["i-1"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    let watch = Request::get("/v1/groups/web/rollout/watch").body(Body::empty()).unwrap();
    let answer = here.raw(watch).await;
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
    let mut stream = BodyStream::new(answer.into_body());
    let mut next = async || -> Option<String> {
        let frame = stream.next().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    };
    let first = next().await.unwrap();
    assert!(
        first.starts_with("event: rollout\ndata: {") && first.contains("\"running\""),
        "{first}"
    );
    here.post("/v1/groups/web/rollout/pause", &json!({})).await;
    let second = next().await.unwrap();
    assert!(second.contains("\"state\":\"paused\""), "{second}");
    here.stop.cancel();
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_watcher_whose_token_ends_is_told_nothing_more() {
    let mut here = Here::with(&["i-1"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    // Whoever says `guest` is a viewer for as long as there are guests.
    let has_guests = Arc::new(AtomicBool::new(true));
    let mut keys = keys();
    let (check, guests) = (Arc::clone(&keys.check), Arc::clone(&has_guests));
    keys.check = Arc::new(move |parts| {
        if parts.headers.get(AUTHORIZATION).is_none_or(|word| word != "guest") {
            return check(parts);
        }
        let (name, id, role) = ("guest".to_owned(), "t2".to_owned(), Role::Viewer);
        if guests.load(Ordering::Relaxed) {
            return Box::pin(async move { Ok(Caller::Operator { name, role, id }) });
        }
        refuse(Code::Unauthenticated)
    });
    here.router = router(Api::new(here.desk.clone(), None, keys, here.stop.clone()));
    let watch = Request::get("/v1/groups/web/rollout/watch").header(AUTHORIZATION, "guest");
    let answer = here.raw(watch.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut stream = BodyStream::new(answer.into_body());
    assert!(stream.next().await.unwrap().unwrap().is_data());
    has_guests.store(false, Ordering::Relaxed);
    let said = here.post("/v1/groups/web/rollout/pause", &json!({})).await;
    assert_eq!(said.status, StatusCode::OK, "{said:?}");
    assert!(stream.next().await.is_none(), "it is over");
}

#[tokio::test]
async fn so_many_watch_and_no_more() {
    let here = Here::with_web().await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    let watch = || Request::get("/v1/groups/web/rollout/watch").body(Body::empty()).unwrap();
    let mut watching = Vec::new();
    for _ in 0..super::super::watch::WATCHERS_MAX {
        let answer = here.raw(watch()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        watching.push(answer);
    }
    let answer = here.raw(watch()).await;
    assert_ne!(answer.status(), StatusCode::OK);
    let said = read(answer).await;
    assert_eq!((said.status.as_u16(), said.code()), (503, "unavailable"), "{said:?}");
    assert_eq!(said.headers["retry-after"], "1");
    watching.pop();
    assert_eq!(here.raw(watch()).await.status(), StatusCode::OK, "one has gone");
}

#[tokio::test]
async fn figures_say_what_the_desk_holds_and_what_was_asked() {
    let here = Here::with(&["i-1", "i-2"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    here.get("/v1/groups/api").await;
    here.get("/no/such/path/at/all").await;
    let said = here.get("/metrics").await;
    assert!(
        said.headers[CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text")
    );
    for line in [
        "towline_rollouts{state=\"running\"} 1",
        "towline_rollouts{state=\"halted\"} 0",
        "towline_instances{group=\"web\",status=\"stale\"} 2",
        "towline_permits_open{group=\"web\"} 0",
        "towline_target_generation{group=\"web\"} 1",
        "towline_polls_parked 0",
        "towline_store_conflicts_total 0",
        "towline_requests_total{route=\"/v1/groups/{group}\",code=\"404\"} 1",
        "towline_requests_total{route=\"none\",code=\"404\"} 1",
        "# EOF",
    ] {
        assert!(said.text.lines().any(|it| it == line), "{line} in {}", said.text);
    }
    assert!(said.text.contains("towline_store_commits_total "), "{}", said.text);
}
