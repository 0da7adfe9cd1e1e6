//! One key, one effect: a change that is sent again is answered as it was, and not made again.
//!
//! ```text
//!   key, hash of the request ──► known? ──┬─ no ────────────► decided, and stored with its answer
//!                                         ├─ same request ──► the stored answer
//!                                         └─ another one ───► 409
//! ```
//!
//! Invariants
//! - The answer is stored in the commit of the change itself: there is never one without the other.
//! - No secret is stored: a key that made one says so, and nothing more.
//! - What was refused is not stored: it changed nothing, and may be tried again.
//! - Nothing is refused because it was done: before a refusal, the key is looked for once more.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use towline_protocol::api::{Code, ErrorBody, IDEMPOTENCY_HEADER, REQUEST_BYTES_MAX};
use towline_protocol::ids::Group;
use towline_protocol::time::Timestamp;
use tracing::info;

use super::Api;
use super::caller::{Caller, Make};
use super::errors::Refused;
use super::input::{body, parse};
use crate::desk::Desk;
use crate::fleet::Attendance;
use crate::records::{Draft, Kept, Records};
use crate::rollout::Now;
use crate::rollout::operations::Act;
use crate::store::Store;
use crate::views::told;

/// For how long a key is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The longest key.
const KEY_LENGTH_MAX: usize = 64;

/// How often something is made again that lost a race.
const RACES_MAX: usize = 16;

/// How many keys are dropped in one commit.
const DROPPED_MAX: usize = 40;

/// A change that is asked for.
#[derive(Debug)]
pub(crate) struct Change<T> {
    /// Who asks.
    pub(crate) caller: Caller,
    /// What the request says.
    pub(crate) value: T,
    /// Where its answer is stored.
    key: String,
    /// The whole request in a few bytes.
    hash: String,
    /// What it is, for the log.
    what: String,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Change<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Refused::new(Code::Unauthenticated, "who asks?"))?;
        let key = format!("once/{}/{}", caller.actor(), key(request.headers())?);
        let what = format!("{} {}", request.method(), request.uri());
        let bytes = body(request, REQUEST_BYTES_MAX).await?;
        let mut hash = Sha256::new();
        hash.update(what.as_bytes());
        hash.update(b"\n");
        hash.update(&bytes);
        let hash = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { caller, value: parse(&bytes)?, key, hash, what })
    }
}

fn key(headers: &HeaderMap) -> Result<&str, Refused> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let given = headers.get(IDEMPOTENCY_HEADER).and_then(|key| key.to_str().ok());
    given
        .filter(|key| (1..=KEY_LENGTH_MAX).contains(&key.len()) && key.chars().all(is_plain))
        .ok_or_else(|| {
            let message = format!(
                "every change needs a key of its own: 1 to {KEY_LENGTH_MAX} of a-z A-Z 0-9 . _ -"
            );
            Refused::of_field(IDEMPOTENCY_HEADER, message).hint(format!(
                "{IDEMPOTENCY_HEADER}: a fresh random word; the same one to try again"
            ))
        })
}

/// What is answered to a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done: 204.
    Done,
    /// It is done, and this is how things stand: 200, JSON.
    Json(String),
}

impl Answer {
    /// Returns an answer that says this.
    pub(crate) fn of<T: Serialize>(value: &T) -> Self {
        Self::Json(serde_json::to_string(value).expect("views hold nothing that JSON cannot"))
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Answer::Done => StatusCode::NO_CONTENT.into_response(),
            Answer::Json(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        }
    }
}

/// A key that was used, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Once {
    at: Timestamp,
    hash: String,
    /// The answer's JSON; `None`: it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    /// Did the answer hold a secret? Then it is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_secret: bool,
}

impl Once {
    fn again(self, hash: &str) -> Result<Answer, Refused> {
        if self.hash != hash {
            let message = "this key was used for another request already";
            return Err(Refused::new(Code::Conflict, message)
                .hint(format!("give each change an {IDEMPOTENCY_HEADER} of its own")));
        }
        if self.is_secret {
            let message = "this key has made a secret already, which is shown once";
            return Err(Refused::new(Code::Conflict, message).hint("make another, by another key"));
        }
        Ok(self.answer.map_or(Answer::Done, Answer::Json))
    }
}

/// The keys whose requests are being worked on.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<BTreeSet<String>>);

/// A key that nobody else works on; it is free again when this is dropped.
struct Reserved<'a> {
    under_way: &'a UnderWay,
    key: &'a str,
}

impl UnderWay {
    fn hold<'a>(&'a self, key: &'a str) -> Result<Reserved<'a>, Refused> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.insert(key.to_owned()) {
            let message = "the same change is being made at this moment";
            return Err(Refused::new(Code::Unavailable, message).hint("ask again in a moment"));
        }
        Ok(Reserved { under_way: self, key })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.under_way.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
    }
}

impl Api {
    /// Makes a change of a group, once; see [`Desk::change`].
    pub(crate) async fn once<T>(
        &self,
        change: &Change<T>,
        group: &Group,
        reason: Option<String>,
        mut decide: impl FnMut(&Records, &Attendance, Now, &Act) -> Result<(Draft, Answer), ErrorBody>,
    ) -> Result<Answer, Refused> {
        let _held = self.under_way().hold(&change.key)?;
        if let Some(answer) = self.earlier(change).await? {
            return Ok(answer);
        }
        self.rates().may_change(&change.caller)?;
        let (by, reason) = (change.caller.by(), reason.map(|reason| told::line(&reason)));
        let desk = self.desk();
        let decide = |records: &Records, attendance: &Attendance, now, act: &Act| {
            let (mut draft, answer) = decide(records, attendance, now, act)?;
            change.note(&mut draft, act.at, &answer, false);
            Ok((draft, answer))
        };
        let answer = match desk.change(group, &by, reason.clone(), decide).await {
            Ok(answer) => answer,
            Err(error) => return self.unless_made(change, error.into()).await,
        };
        self.rates().changed(&change.caller);
        info!(group = %group, by, what = change.what, reason, "changed");
        Ok(answer)
    }

    /// Makes something that the keeper of tokens knows how to make, once.
    pub(crate) async fn once_made<T, A: Clone, M: Serialize>(
        &self,
        change: &Change<T>,
        is_secret: bool,
        make: &Make<A, M>,
        of: A,
    ) -> Result<Answer, Refused> {
        let _held = self.under_way().hold(&change.key)?;
        if let Some(answer) = self.earlier(change).await? {
            return Ok(answer);
        }
        self.rates().may_change(&change.caller)?;
        for _ in 0..RACES_MAX {
            let act = self.act(&change.caller);
            let at = act.at;
            let (mut draft, made) = match make(of.clone(), act).await {
                Ok(made) => made,
                Err(error) => return self.unless_made(change, error.into()).await,
            };
            let answer = Answer::of(&made);
            change.note(&mut draft, at, &answer, is_secret);
            if self.desk().save(draft).await? {
                self.rates().changed(&change.caller);
                info!(by = change.caller.by(), what = change.what, "changed");
                return Ok(answer);
            }
        }
        let refused = Refused::new(Code::Unavailable, "the records change too fast");
        self.unless_made(change, refused).await
    }

    /// Returns a refusal, unless the same request has made the change meanwhile: its connection was cut, and
    /// its commit was under way still when it was sent again.
    pub(crate) async fn unless_made<T>(
        &self,
        change: &Change<T>,
        refused: Refused,
    ) -> Result<Answer, Refused> {
        self.earlier(change).await?.ok_or(refused)
    }

    /// Returns who does something now.
    pub(crate) fn act(&self, caller: &Caller) -> Act {
        let epoch = self.desk().read(Records::epoch);
        Act { by: caller.by(), at: self.desk().now(), epoch, reason: None }
    }

    /// Returns the answer of an earlier request with the same key.
    pub(crate) async fn earlier<T>(&self, change: &Change<T>) -> Result<Option<Answer>, Refused> {
        let desk = self.desk();
        while let Some(kept) = desk.kept::<Once>(&change.key).await? {
            if desk.now().since(kept.value.at) < KEPT {
                return kept.value.again(&change.hash).map(Some);
            }
            // Whoever was faster may have used it anew: then it is looked at once more.
            drop_old(desk, &change.key, &kept).await?;
        }
        Ok(None)
    }
}

/// Removes a key whose time is over, provided that nobody has used it since.
async fn drop_old(desk: &Desk, key: &str, kept: &Kept<Once>) -> Result<bool, ErrorBody> {
    let mut draft = Draft::new();
    draft.on(key.to_owned(), Some(kept));
    draft.delete(key.to_owned());
    desk.save(draft).await
}

impl<T> Change<T> {
    /// Adds the key and its answer to what is stored.
    fn note(&self, draft: &mut Draft, at: Timestamp, answer: &Answer, is_secret: bool) {
        let answer = match answer {
            Answer::Json(text) if !is_secret => Some(text.clone()),
            Answer::Json(_) | Answer::Done => None,
        };
        let once = Once { at, hash: self.hash.clone(), answer, is_secret };
        draft.on(self.key.clone(), None::<&Kept<()>>);
        draft.put(self.key.clone(), &once);
    }
}

/// Drops the keys whose time is over; to be called every hour or so. Returns how many there were.
///
/// # Errors
///
/// The store could not be read or written.
pub async fn sweep(desk: &Desk) -> Result<usize, ErrorBody> {
    let listed = desk.store().list("once/").await.map_err(|error| ErrorBody {
        code: Code::Unavailable,
        message: format!("the coordinator could not use its store: {error}"),
        hint: error.hint(),
        field: None,
    })?;
    let now = desk.now();
    let is_over = |value: &[u8]| {
        // What cannot be read will never be asked for.
        serde_json::from_slice(value).map_or(true, |once: Once| now.since(once.at) >= KEPT)
    };
    let over: Vec<_> = listed.0.into_iter().filter(|entry| is_over(&entry.value)).collect();
    for some in over.chunks(DROPPED_MAX) {
        let mut draft = Draft::new();
        for entry in some {
            draft.on(entry.key.clone(), Some(&Kept { version: entry.version, value: () }));
            draft.delete(entry.key.clone());
        }
        desk.save(draft).await?;
    }
    Ok(over.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_one_key_are_not_worked_on_at_once() {
        let under_way = UnderWay::default();
        let first = under_way.hold("once/open/a").unwrap();
        let refused = under_way.hold("once/open/a").err().expect("somebody has it");
        assert_eq!(refused.0.code, Code::Unavailable, "to be tried again");
        assert!(under_way.hold("once/open/b").is_ok(), "another key is free");
        drop(first);
        assert!(under_way.hold("once/open/a").is_ok());
    }

    #[tokio::test]
    async fn an_old_key_that_was_used_anew_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let path = dir.path().join("store");
        let store = crate::store::embedded::Embedded::open(&path, 1_790_000_000).unwrap();
        let desk = Desk::open(store, 1, stop.clone()).await.unwrap();
        let (key, at) = ("once/open/a", Timestamp(1));
        let put = async |hash: &str| {
            let once = Once { at, hash: hash.to_owned(), answer: None, is_secret: false };
            let mut draft = Draft::new();
            draft.put(key.to_owned(), &once);
            assert!(desk.save(draft).await.unwrap());
            desk.kept::<Once>(key).await.unwrap().unwrap()
        };
        let old = put("old").await;
        let fresh = put("fresh").await;
        assert!(!drop_old(&desk, key, &old).await.unwrap(), "somebody was faster");
        assert_eq!(desk.load::<Once>(key).await.unwrap(), Some(fresh.value.clone()));
        assert!(drop_old(&desk, key, &fresh).await.unwrap());
        stop.cancel();
    }
}
