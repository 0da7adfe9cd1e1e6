//! A rollout as it goes on, as a stream of events (SSE): one when it begins to be watched, and one
//! whenever what is shown has changed.
//!
//! Any number of changes at once are one event. A stream ends when the coordinator stops, the watcher goes,
//! or its token ends: that is looked at whenever the rollout is. Whoever comes back is told how things stand
//! then.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::request::Parts;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, watch};
use towline_protocol::api::{Code, CommitView, RolloutView};
use towline_protocol::ids::{Group, Revision};

use super::Api;
use super::caller::Caller;
use super::errors::Refused;
use super::input::{Asked, At};

/// How many watch at a time.
pub(crate) const WATCHERS_MAX: usize = 100;

/// How often something is said where nothing happens, so that nobody takes the stream for dead.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// How often it is looked at where nothing was written: silence and bake times make no sound.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How soon after one event the next one may come.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn routes() -> Router<Api> {
    Router::new().route("/v1/groups/{group}/rollout/watch", get(watched))
}

/// One who watches.
struct Watcher {
    api: Api,
    caller: Caller,
    /// What it asked by.
    parts: Parts,
    group: Group,
    changes: watch::Receiver<u64>,
    /// What was said last.
    said: String,
    /// What the mirror knew when the rollout began to be watched.
    commits: BTreeMap<Revision, CommitView>,
    /// The rollout that this was asked for.
    generation: u64,
    _place: OwnedSemaphorePermit,
}

async fn watched(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    parts: Parts,
    at: At,
    asked: Asked,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    asked.end()?;
    let group: Group = at.get("group")?;
    let Ok(place) = api.watchers().try_acquire_owned() else {
        let message = format!("{WATCHERS_MAX} watch already");
        return Err(
            Refused::new(Code::Unavailable, message).hint("`towline rollout show` looks once")
        );
    };
    api.policy(&group)?;
    // Before the first look: whatever happens after it is not missed.
    let changes = api.desk().watch(&group);
    let commits = api.commits(&group, None).await;
    let generation = api.rollout_view(&group, None, &commits).await?.order.generation;
    let said = String::new();
    let watcher =
        Watcher { api, caller, parts, group, changes, said, commits, generation, _place: place };
    let events = unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE_EVERY).text("still here")))
}

impl Watcher {
    /// Waits until there is something new to say; `None`: there never will be.
    async fn next(&mut self) -> Option<Event> {
        let stop = self.api.stop().clone();
        loop {
            self.changes.borrow_and_update();
            if stop.is_cancelled() || !self.may_still().await {
                return None;
            }
            // A group that was removed has nothing more to say, and its watcher is told nothing.
            let mut view = self.look().await?;
            if view.order.generation != self.generation {
                self.generation = view.order.generation;
                self.commits = self.api.commits(&self.group, None).await;
                view = self.look().await?;
            }
            let text = serde_json::to_string(&view).ok()?;
            if text != self.said {
                self.said.clone_from(&text);
                return Some(Event::default().event("rollout").data(text));
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.changes.changed() => {
                    changed.ok()?;
                    // Whatever else happens at once is in the same event.
                    tokio::time::sleep(PAUSE).await;
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Is its token still good? Where nobody can tell, it comes back and asks.
    async fn may_still(&self) -> bool {
        let checked = (self.api.keys().check)(&self.parts).await;
        checked.is_ok_and(|caller| caller == self.caller)
    }

    async fn look(&self) -> Option<RolloutView> {
        self.api.rollout_view(&self.group, None, &self.commits).await.ok()
    }
}
