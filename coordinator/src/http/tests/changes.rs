//! Changes: each has one effect, and its answer is stored with it.

use super::super::idempotency::sweep;
use super::*;
use crate::store::Version;

async fn version_of(here: &Here, key: &str) -> Option<Version> {
    here.desk.store().get(key).await.unwrap().map(|entry| entry.version)
}

#[tokio::test]
async fn the_same_key_has_one_effect_and_one_answer() {
    let here = Here::with(&["i-1"]).await;
    let release = async |key: &str, digit| {
        let body = json!({"revision": revision(digit)});
        here.change_as(key, Method::POST, "/v1/groups/web/release", &body).await
    };
    let first = release("one", 'b').await;
    assert_eq!((first.status.as_u16(), first.body["generation"].as_u64()), (200, Some(1)));
    let stored = here.stored().await;
    let again = release("one", 'b').await;
    assert_eq!((again.status, &again.text), (first.status, &first.text), "the stored answer");
    assert!(here.stored().await == stored, "and nothing else");
    let other = release("one", 'c').await;
    assert_eq!((other.status.as_u16(), other.code()), (409, "conflict"), "{other:?}");
    let elsewhere =
        here.change_as("one", Method::POST, "/v1/groups/web/rollout/pause", &json!({})).await;
    assert_eq!(elsewhere.status.as_u16(), 409, "the same key, another path");
    assert!(here.stored().await == stored);
    let key = version_of(&here, "once/open/one").await;
    assert_eq!(key, version_of(&here, "rollout/web").await, "in the commit of the change itself");
    assert!(key.is_some());
}

#[tokio::test]
async fn a_key_is_its_callers_own() {
    let here = Here::with_web().await;
    let pause = |word: &str| {
        let request = Request::put("/v1/groups/api").header(CONTENT_TYPE, "application/json");
        let request = request.header(IDEMPOTENCY_HEADER, "one").header(AUTHORIZATION, word);
        request.body(Body::from("{}")).unwrap()
    };
    assert_eq!(here.send(pause("operator")).await.status, StatusCode::NO_CONTENT);
    assert!(version_of(&here, "once/token-t1/one").await.is_some());
    let said = here.change_as("one", Method::PUT, "/v1/groups/other", &json!({})).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
}

#[tokio::test]
async fn what_was_refused_may_be_tried_again_by_the_same_key() {
    let here = Here::with_web().await;
    let body = json!({"revision": revision('b')});
    let release = async || here.change_as("k", Method::POST, "/v1/groups/api/release", &body).await;
    assert_eq!(release().await.status, StatusCode::NOT_FOUND);
    here.change(Method::PUT, "/v1/groups/api", &json!({"mirror": false})).await;
    assert_eq!(release().await.status, StatusCode::OK);
}

#[tokio::test]
async fn whoever_was_cut_off_and_asks_again_is_told_of_its_own_success() {
    let here = Here::new().await;
    let body = json!({"revision": revision('b')});
    for turns in 0..40 {
        let group = format!("/v1/groups/g{turns}");
        let said = here.change(Method::PUT, &group, &json!({"mirror": false})).await;
        assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
        let (key, path) = (format!("release-{turns}"), format!("{group}/release"));
        let release = || here.change_as(&key, Method::POST, &path, &body);
        // So far it comes before its connection is cut: its commit may be on its way.
        let cut = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = release() => {}
            () = cut => {}
        }
        let again = release().await;
        assert_eq!(again.status, StatusCode::OK, "after {turns} turns: {again:?}");
        assert_eq!(again.body["generation"], 1, "{again:?}");
    }
}

#[tokio::test]
async fn a_key_is_forgotten_after_a_day() {
    let here = Here::with_web().await;
    let old = json!({"at": LONG_AGO, "hash": "x"});
    let mut draft = Draft::new();
    for key in ["a", "b", "c"] {
        draft.put(format!("once/open/{key}"), &old);
    }
    draft.put("once/open/broken".to_owned(), &1);
    assert!(here.desk.save(draft).await.unwrap());
    let said = here.change_as("a", Method::PUT, "/v1/groups/api", &json!({})).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
    assert_eq!(sweep(&here.desk).await.unwrap(), 3, "b, c, and what cannot be read");
    let left = here.desk.store().list("once/").await.unwrap().0;
    let keys: Vec<&str> = left.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["once/open/a", "once/open/k0"]);
    assert_eq!(sweep(&here.desk).await.unwrap(), 0);
}

#[tokio::test]
async fn a_secret_is_shown_once_and_kept_nowhere() {
    let here = Here::new().await;
    let request = json!({"name": "ada", "role": "viewer", "expires_s": 60});
    let create = async || here.change_as("k", Method::POST, "/v1/tokens", &request).await;
    let first = create().await;
    assert_eq!(first.body["secret"], "tlo_secret0", "{first:?}");
    let again = create().await;
    assert_eq!((again.status.as_u16(), again.code()), (409, "conflict"), "{again:?}");
    for (key, value) in here.stored().await {
        assert!(!String::from_utf8_lossy(&value).contains("tlo_secret"), "{key}");
    }
}

#[tokio::test]
async fn a_rollout_is_steered_and_its_answers_say_how_it_stands() {
    let here = Here::with(&["i-1", "i-2"]).await;
    let body = json!({"revision": revision('b')});
    let begun = here.post("/v1/groups/web/release", &body).await;
    assert_eq!(begun.body["state"], "running", "{begun:?}");
    assert_eq!(begun.body["batches"][0]["name"], "canary");
    let refused = here.post("/v1/groups/web/release", &json!({"revision": revision('c')})).await;
    assert_eq!(refused.status.as_u16(), 409);
    assert!(refused.body["error"]["hint"].as_str().unwrap().contains("abort"), "{refused:?}");
    let paused = here.post("/v1/groups/web/rollout/pause", &json!({"reason": "lunch"})).await;
    assert_eq!(paused.body["state"], "paused", "{paused:?}");
    assert!(paused.body["reason"].as_str().unwrap().ends_with("lunch"));
    let resumed = here.post("/v1/groups/web/rollout/resume", &json!({})).await;
    assert_eq!(resumed.body["state"], "running");
    let aborted = here.post("/v1/groups/web/rollout/abort", &json!({"reason": "bad"})).await;
    assert_eq!(aborted.body["state"], "aborted", "{aborted:?}");
    assert_eq!(
        (&aborted.body["generation"], &aborted.body["next_generation"]),
        (&json!(1), &json!(2))
    );
    let now = here.get("/v1/groups/web/rollout").await;
    assert_eq!((&now.body["kind"], &now.body["not"]), (&json!("rollback"), &json!(revision('b'))));
    let past = here.get("/v1/groups/web/rollout?generation=1").await;
    assert_eq!(
        (&past.body["state"], &past.body["next_generation"]),
        (&json!("aborted"), &json!(2))
    );
}

#[tokio::test]
async fn what_is_done_beside_a_rollout_is_in_its_story() {
    let here = Here::with(&["i-1", "i-2"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    let because = json!({"reason": "its disk\u{7} is broken"});
    for path in ["i-1/retry", "i-1/restart", "i-2/forget"] {
        let said = here.post(&format!("/v1/groups/web/instances/{path}"), &because).await;
        assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
    }
    let view = here.get("/v1/groups/web/rollout").await;
    let story = view.body["decisions"].to_string();
    assert!(story.contains("i-2 forgotten by operator: its disk  is broken"), "{story}");
    assert!(story.contains("i-1 ordered to try again") && story.contains("i-1 ordered to restart"));
    assert_eq!(here.get("/v1/groups/web/instances/i-2").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_group_is_removed_with_all_that_it_was_at_and_its_order_goes_on() {
    let here = Here::with(&["i-1"]).await;
    here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    let remove =
        async |key: &str| here.change_as(key, Method::DELETE, "/v1/groups/web", &json!({})).await;
    let hint = |said: &Said| said.body["error"]["hint"].as_str().unwrap().to_owned();
    let refused = remove("a").await;
    assert_eq!(refused.status.as_u16(), 409, "somebody is in it: {refused:?}");
    assert!(hint(&refused).contains("towline forget"), "{refused:?}");
    here.post("/v1/groups/web/instances/i-1/forget", &json!({})).await;
    let refused = remove("b").await;
    assert_eq!(refused.status.as_u16(), 409, "its rollout runs: {refused:?}");
    assert!(hint(&refused).contains("towline rollout pause web"), "{refused:?}");
    here.post("/v1/groups/web/rollout/pause", &json!({})).await;
    // What joins and secrets there are go as well.
    let mut draft = Draft::new();
    draft.put("join/web".to_owned(), &1);
    assert!(here.desk.save(draft).await.unwrap());
    let said = remove("c").await;
    assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
    assert_eq!(here.get("/v1/groups/web").await.status, StatusCode::NOT_FOUND);
    let stored = here.stored().await;
    let left: Vec<&str> =
        stored.iter().map(|(key, _)| key.as_str()).filter(|key| key.contains("web")).collect();
    assert_eq!(left, ["floor/web"]);

    here.change(Method::PUT, "/v1/groups/web", &json!({"mirror": false})).await;
    assert_eq!(remove("c").await.status, StatusCode::NO_CONTENT, "the same request once more");
    assert_eq!(here.get("/v1/groups/web").await.status, StatusCode::OK, "is not another one");
    let poll = json!({"version": 1, "group": "web", "instance": "i-new", "seq": 1});
    let told = here.ask("/v1/agent/poll", &poll).await.body;
    assert_eq!((&told["target"], &told["boot"]), (&Value::Null, &Value::Null), "{told:?}");
    let again = here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
    assert_eq!((&again.body["generation"], &again.body["state"]), (&json!(2), &json!("running")));
    assert_eq!(again.body["batches"][0]["name"], "canary", "it is tried anew: {again:?}");
}

#[tokio::test]
async fn whoever_joins_while_its_group_is_removed_is_not_left_behind() {
    let here = Here::with_web().await;
    let web: Group = "web".parse().unwrap();
    let at = |seq| {
        here.desk.read(|records| {
            let (name, late) = ("i-1".parse().unwrap(), std::time::Duration::ZERO);
            let state = records.group(&web).unwrap();
            crate::rollout::reports::polled(state, &name, seq, LONG_AGO, late).unwrap()
        })
    };
    // Decided before, stored after.
    let joins = at(1);
    let remove = async || here.change(Method::DELETE, "/v1/groups/web", &json!({})).await;
    assert_eq!(remove().await.status, StatusCode::NO_CONTENT);
    assert!(!here.desk.save(joins).await.unwrap(), "there is no such group any more");
    // Stored between the removal's decision and its commit.
    here.change(Method::PUT, "/v1/groups/web", &json!({"mirror": false})).await;
    let removal = here.desk.read(|records| {
        crate::rollout::operations::remove_group(records.group(&web).unwrap()).unwrap()
    });
    assert!(here.desk.save(at(2)).await.unwrap() && here.desk.save(removal.draft).await.unwrap());
    crate::upkeep::sweep(&here.desk).await.unwrap();
    assert!(here.stored().await.iter().all(|(key, _)| !key.starts_with("instance/")));
}
