//! The API over HTTP: decodes what is asked, asks the desk, encodes what it says.
//!
//! ```text
//!   request ─► counted ─► calm ─► known: who is it, may it, how often ─► decoded ─► desk, views ─► JSON
//!                │          │         │                                    │
//!             metrics    a panic    401 403 429 503                  400 408 413: nothing has changed
//!                        is a 500
//! ```
//!
//! It decides nothing about a rollout. Every refusal has one shape; everything that is read has a limit in
//! size, and in time.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::desk::Desk;
use crate::mirror::Mirror;

pub mod agents;
pub mod caller;
pub mod claims;
pub mod commits;
pub mod errors;
pub mod idempotency;
pub mod input;
pub mod limits;
pub mod metrics;
pub mod operators;
pub mod reads;
pub mod tokens;
pub mod watch;

use caller::Keys;
use claims::Claims;
use idempotency::UnderWay;
use limits::{Lane, Places, Rates};
use metrics::Requests;

/// What all requests share; a handle that is cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

struct Inner {
    desk: Desk,
    mirror: Option<Arc<Mirror>>,
    keys: Keys,
    stop: CancellationToken,
    places: Places,
    watchers: Arc<Semaphore>,
    rates: Rates,
    claims: Claims,
    under_way: UnderWay,
    requests: Requests,
}

impl Api {
    /// Returns the API of a desk. `mirror`: what checks commits, where repositories are mirrored; `keys`:
    /// who may come in; `stop`: streams end with it, and it is no longer ready.
    #[must_use]
    pub fn new(
        desk: Desk,
        mirror: Option<Arc<Mirror>>,
        keys: Keys,
        stop: CancellationToken,
    ) -> Self {
        let inner = Inner {
            desk,
            mirror,
            keys,
            stop,
            places: Places::default(),
            watchers: Arc::new(Semaphore::new(watch::WATCHERS_MAX)),
            rates: Rates::default(),
            claims: Claims::default(),
            under_way: UnderWay::default(),
            requests: Requests::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.inner.desk
    }

    pub(crate) fn mirror(&self) -> Option<&Mirror> {
        self.inner.mirror.as_deref()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(crate) fn places(&self) -> &Places {
        &self.inner.places
    }

    pub(crate) fn watchers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.inner.watchers)
    }

    pub(crate) fn rates(&self) -> &Rates {
        &self.inner.rates
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.inner.claims
    }

    pub(crate) fn under_way(&self) -> &UnderWay {
        &self.inner.under_way
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.inner.requests
    }
}

/// Returns all routes.
pub fn router(api: Api) -> Router {
    let known = |routes: Router<Api>, admit| {
        routes.route_layer(from_fn_with_state((api.clone(), admit), caller::known))
    };
    let limited = |routes: Router<Api>, lane: Lane| {
        routes.route_layer(from_fn_with_state((api.clone(), lane), limits::limited))
    };
    let views = reads::routes().merge(watch::routes()).route("/metrics", get(metrics::told));
    let operators = limited(operators::routes().merge(tokens::routes()), Lane::Steering)
        .merge(limited(views, Lane::Views))
        .merge(limited(operators::of_origins().merge(reads::of_origins()), Lane::Origins));
    Router::new()
        .merge(known(operators, caller::Admit::Operators))
        .merge(known(agents::routes(), caller::Admit::Agents))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(errors::no_route)
        .method_not_allowed_fallback(errors::no_method)
        .layer(from_fn(errors::calm))
        .layer(from_fn(errors::guarded))
        .layer(from_fn_with_state(api.clone(), metrics::counted))
        .with_state(api)
}

/// The records are loaded before anybody listens; so it is ready until it stops.
async fn ready(State(api): State<Api>) -> (StatusCode, &'static str) {
    if api.stop().is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "it stops\n");
    }
    (StatusCode::OK, "ready\n")
}

#[cfg(test)]
mod tests;
