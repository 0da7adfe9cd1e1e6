//! The API as a client sees it: requests to the routes, over a desk on a real store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use towline_protocol::api::{
    Code, ErrorBody, IDEMPOTENCY_HEADER, Role, TokenCreated, TokenRequest, TokenView,
};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::Joined;
use towline_protocol::time::Timestamp;

use super::caller::{Caller, Keys};
use super::errors::Refused;
use super::{Api, router};
use crate::desk::Desk;
use crate::mirror::{Mirror, MirrorConfig};
use crate::records::Draft;
use crate::store::Store;
use crate::store::embedded::Embedded;

mod agents;
mod bad_input;
mod changes;
mod mirrored;
mod reading;

/// A coordinator without a socket.
pub(super) struct Here {
    pub(super) router: axum::Router,
    pub(super) desk: Desk,
    pub(super) stop: CancellationToken,
    keys: AtomicU64,
    _dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Said {
    pub(super) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub(super) fn field(&self) -> Option<&str> {
        self.body["error"]["field"].as_str()
    }
}

pub(super) fn revision(digit: char) -> String {
    digit.to_string().repeat(40)
}

fn refuse<T: Send + 'static>(code: Code) -> BoxFuture<'static, Result<T, ErrorBody>> {
    Box::pin(async move { Err(*Refused::new(code, "not here").0) })
}

/// Whoever says who they are is believed: `viewer`, `operator`, `agent i-1`, `join`; nobody is anybody.
fn keys() -> Keys {
    let made = Arc::new(AtomicU64::new(0));
    Keys {
        check: Arc::new(|parts| {
            let operator =
                |role| Caller::Operator { name: "ada".to_owned(), role, id: "t1".to_owned() };
            let group = "web".parse().unwrap();
            let word = parts.headers.get(AUTHORIZATION).map(|it| it.to_str().unwrap());
            let caller = match word {
                None => Caller::Open,
                Some("viewer") => operator(Role::Viewer),
                Some("operator") => operator(Role::Operator),
                Some("agent") => Caller::Agent { group, instance: "i-1".parse().unwrap() },
                Some("join") => Caller::Join { group },
                Some("broken") => panic!("the keeper of tokens fell over"),
                Some(_) => return refuse(Code::Unauthenticated),
            };
            Box::pin(async move { Ok(caller) })
        }),
        join: Arc::new(|join, _| {
            if join.instance.as_str() == "i-taken" {
                return refuse(Code::Conflict);
            }
            let mut draft = Draft::new();
            draft.put(format!("token/of-{}", join.instance), &1);
            Box::pin(async move { Ok((draft, Joined { token: "tla_secret".to_owned() })) })
        }),
        create: Arc::new(move |request: TokenRequest, act| {
            let number = made.fetch_add(1, Ordering::Relaxed);
            let mut draft = Draft::new();
            draft.put(format!("token/t{number}"), &1);
            let token = TokenView {
                id: format!("t{number}"),
                name: request.name,
                role: Some(request.role),
                agent: None,
                created: act.at,
                expires: None,
                used: None,
            };
            let created = TokenCreated { token, secret: format!("tlo_secret{number}") };
            Box::pin(async move { Ok((draft, created)) })
        }),
        list: Arc::new(|()| Box::pin(async { Ok(Vec::new()) })),
        revoke: Arc::new(|_, _| Box::pin(async { Ok((Draft::new(), ())) })),
        join_secret: Arc::new(|_, _| refuse(Code::Conflict)),
        dismiss: Arc::new(|(_, instance): (Group, Instance), _| {
            let mut draft = Draft::new();
            draft.delete(format!("token/of-{instance}"));
            Box::pin(async move { Ok((draft, ())) })
        }),
    }
}

impl Here {
    pub(super) async fn new() -> Self {
        Self::mirroring(None).await
    }

    pub(super) async fn mirroring(mirror: Option<Arc<Mirror>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.db"), 1_790_000_000).unwrap();
        let stop = CancellationToken::new();
        let desk = Desk::open(store, 50, stop.clone()).await.unwrap();
        let router = router(Api::new(desk.clone(), mirror, keys(), stop.clone()));
        Self { router, desk, stop, keys: AtomicU64::new(0), _dir: dir }
    }

    /// One with a group `web`, which has no mirror.
    pub(super) async fn with_web() -> Self {
        let here = Self::new().await;
        let said = here.change(Method::PUT, "/v1/groups/web", &json!({"mirror": false})).await;
        assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
        here
    }

    /// One with a group `web`, and instances that serve an old revision.
    pub(super) async fn with(instances: &[&str]) -> Self {
        let here = Self::with_web().await;
        for instance in instances {
            let said = here.tells(instance, &revision('a'), 1).await;
            assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
        }
        here
    }

    /// An instance tells that it serves this, well.
    pub(super) async fn tells(&self, instance: &str, serving: &str, seq: u64) -> Said {
        let report = json!({
            "version": 1, "instance": instance, "group": "web", "phase": "idle",
            "serving": serving, "evidence": "served", "health": "healthy", "proven": true,
        });
        self.ask("/v1/agent/report", &json!({"seq": seq, "report": report})).await
    }

    pub(super) async fn raw(&self, request: Request) -> Response {
        TowerToHyperService::new(self.router.clone()).call(request).await.unwrap()
    }

    pub(super) async fn send(&self, request: Request) -> Said {
        read(self.raw(request).await).await
    }

    pub(super) async fn get(&self, path: &str) -> Said {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// An agent's message.
    pub(super) async fn ask(&self, path: &str, body: &Value) -> Said {
        let request = Request::post(path).header(CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A change under a key of its own.
    pub(super) async fn change(&self, method: Method, path: &str, body: &Value) -> Said {
        let key = format!("k{}", self.keys.fetch_add(1, Ordering::Relaxed));
        self.change_as(&key, method, path, body).await
    }

    pub(super) async fn change_as(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Said {
        let request = Request::builder().method(method).uri(path);
        let request =
            request.header(CONTENT_TYPE, "application/json").header(IDEMPOTENCY_HEADER, key);
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Said {
        self.change(Method::POST, path, body).await
    }

    /// Everything that is stored.
    pub(super) async fn stored(&self) -> Vec<(String, Vec<u8>)> {
        let entries = self.desk.store().list("").await.unwrap().0;
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
    }
}

pub(super) async fn read(answer: Response) -> Said {
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Said { status: parts.status, headers: parts.headers, body, text }
}

#[tokio::test]
async fn whatever_goes_wrong_has_one_shape() {
    let here = Here::with_web().await;
    let ask = |method: &str, path: &str, word: Option<&str>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(word) = word {
            request = request.header(AUTHORIZATION, word);
        }
        request.body(Body::empty()).unwrap()
    };
    let cases = [
        ("no route", ask("GET", "/v1/grups", None), 404, "not-found"),
        ("no route at all", ask("POST", "/", None), 404, "not-found"),
        ("a path that climbs", ask("GET", "/v1/groups/../../etc/passwd", None), 404, "not-found"),
        ("the wrong method", ask("PATCH", "/v1/groups/web", None), 405, "method-not-allowed"),
        ("a poll that is read", ask("GET", "/v1/agent/poll", None), 405, "method-not-allowed"),
        (
            "a health check that is written",
            ask("POST", "/healthz", None),
            405,
            "method-not-allowed",
        ),
        ("options", ask("OPTIONS", "/v1/groups", None), 405, "method-not-allowed"),
        ("a token that is none", ask("GET", "/v1/groups", Some("x")), 401, "unauthenticated"),
        ("an agent's token", ask("GET", "/v1/groups", Some("agent")), 403, "forbidden"),
        ("a join secret", ask("GET", "/metrics", Some("join")), 403, "forbidden"),
        ("a viewer who changes", ask("DELETE", "/v1/groups/web", Some("viewer")), 403, "forbidden"),
        (
            "a viewer who looks at tokens",
            ask("GET", "/v1/tokens", Some("viewer")),
            403,
            "forbidden",
        ),
        ("a fault of its own", ask("GET", "/v1/groups", Some("broken")), 500, "internal"),
    ];
    for (rule, request, status, code) in cases {
        let said = here.send(request).await;
        assert_eq!((said.status.as_u16(), said.code()), (status, code), "{rule}: {said:?}");
        assert!(!said.body["error"]["message"].as_str().unwrap().is_empty(), "{rule}");
        assert_eq!(said.headers["x-content-type-options"], "nosniff", "{rule}");
        assert_eq!(said.headers["cache-control"], "no-store", "{rule}");
        assert!(said.headers.get("access-control-allow-origin").is_none(), "{rule}");
    }
    let said = here.send(ask("PATCH", "/v1/groups/web", None)).await;
    assert!(said.headers[ALLOW].to_str().unwrap().contains("PUT"), "{:?}", said.headers);
    let said = here.send(ask("GET", "/v1/groups", Some("x"))).await;
    assert_eq!(said.headers["www-authenticate"], "Bearer");
    let said = here.send(ask("HEAD", "/v1/groups/web", None)).await;
    assert_eq!((said.status, said.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(here.send(ask("GET", "/v1/groups", Some("viewer"))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn it_is_ready_until_it_stops_and_healthy_all_the_while() {
    let here = Here::new().await;
    assert_eq!(here.get("/readyz").await.status, StatusCode::OK);
    assert_eq!(here.get("/healthz").await.status, StatusCode::OK);
    here.stop.cancel();
    assert_eq!(here.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(here.get("/healthz").await.status, StatusCode::OK);
}

/// A time that is long over.
pub(super) const LONG_AGO: Timestamp = Timestamp(1_000);
