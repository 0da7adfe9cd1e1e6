//! Who may come in: by the Unix socket, by a token, or, where nobody else can reach it, without any.
//!
//! ```text
//!   door, headers ──► check ─┬─ the Unix socket ─────────► root
//!                            ├─ a token ─────────────────► whoever it is, by what the store has of it
//!                            └─ none, and it is open ────► anybody
//! ```
//!
//! Tokens are kept at hand as the store has them, so that a request costs no look into it; a revoked one
//! ends as soon as the store tells of it. That an agent's token was used is stored before its first
//! request is answered: from then on nobody else can join as that instance.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use towline_protocol::api::{Code, ErrorBody, JoinSecret, Role, TokenCreated, TokenView};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Join, Joined};
use towline_protocol::time::Timestamp;
use tracing::warn;

use crate::auth::error::AuthError;
use crate::auth::secret::{Kind, Secret};
use crate::auth::{self, Identity, JOINS, TOKENS, TokenRecord};
use crate::desk::Desk;
use crate::error::chain;
use crate::http::caller::{Caller, Keys, Made};
use crate::records::{Draft, Kept};
use crate::rollout::operations::Act;
use crate::server::Door;
use crate::store::{Commit, Compare, Entry, Outcome, Store, StoreError, Watch, Write};

/// The name of whoever comes by the Unix socket.
const ROOT: &str = "root";

/// How often a note that a token was used is made again that lost a race.
const RACES_MAX: usize = 8;

/// How many tokens there may be, of agents and operators: they are kept at hand.
const TOKENS_MAX: usize = 200_000;

/// What the store has of tokens and join secrets, by key.
type Held = Arc<RwLock<BTreeMap<String, Entry>>>;

/// Keeps tokens and join secrets.
#[derive(Debug, Clone)]
struct Ring {
    desk: Desk,
    held: Held,
    is_open: bool,
}

/// Returns the keeper of tokens, which follows the store until `stop`. `is_open`: whoever shows no token is
/// let in.
///
/// # Errors
///
/// The store could not be read.
pub async fn keys(
    desk: &Desk,
    is_open: bool,
    stop: &CancellationToken,
) -> Result<Keys, StoreError> {
    let ring = Ring { desk: desk.clone(), held: Held::default(), is_open };
    for prefix in [TOKENS, JOINS] {
        let after = ring.read(prefix).await?;
        let (own, stop) = (ring.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = own.follow(prefix, after) => {}
            }
        });
    }
    let (check, join, create) = (ring.clone(), ring.clone(), ring.clone());
    let (list, revoke, secret, dismiss) = (ring.clone(), ring.clone(), ring.clone(), ring);
    Ok(Keys {
        check: Arc::new(move |parts: &Parts| {
            let door = parts.extensions.get::<Door>().copied();
            let header = parts.headers.get(AUTHORIZATION).map(|value| value.to_str().ok());
            // What is no text is no token.
            let header = header.map(|text| text.unwrap_or_default().to_owned());
            let ring = check.clone();
            async move { ring.check(door, header).await }.boxed()
        }),
        join: Arc::new(move |asked, act| {
            let ring = join.clone();
            async move { ring.join(&asked, &act).await }.boxed()
        }),
        create: Arc::new(move |request, act: Act| {
            let ring = create.clone();
            async move {
                ring.room()?;
                let record = TokenRecord::of_operator(&request, act.at).map_err(refusal)?;
                let secret = Secret::random(Kind::Operator).map_err(refusal)?;
                let key = secret.token_key();
                let token = record.view(&key);
                let mut draft = Draft::new();
                draft.on(key.clone(), ring.kept(&key).as_ref());
                draft.put(key, &record);
                Ok((draft, TokenCreated { token, secret: secret.expose().to_owned() }))
            }
            .boxed()
        }),
        list: Arc::new(move |()| {
            let tokens = list.tokens();
            std::future::ready(Ok(tokens)).boxed()
        }),
        revoke: Arc::new(move |id, _| {
            let made = revoke.revoke(&id);
            std::future::ready(made).boxed()
        }),
        join_secret: Arc::new(move |group: Group, act: Act| {
            let ring = secret.clone();
            async move {
                let secret = Secret::random(Kind::Join).map_err(refusal)?;
                let key = auth::join_key(&group);
                let mut draft = Draft::new();
                draft.on(key.clone(), ring.kept(&key).as_ref());
                draft.put(key, &auth::join_record(&secret, act.at));
                Ok((draft, JoinSecret { group, secret: secret.expose().to_owned() }))
            }
            .boxed()
        }),
        dismiss: Arc::new(move |(group, instance), _| {
            let ring = dismiss.clone();
            async move { ring.dismiss(&group, &instance).await }.boxed()
        }),
    })
}

fn refusal(error: AuthError) -> ErrorBody {
    ErrorBody {
        code: error.code(),
        message: chain(&error),
        hint: error.hint(),
        field: error.field().map(str::to_owned),
    }
}

fn full() -> ErrorBody {
    let hint = "those that were never used go by themselves; `towline join-secret GROUP` ends one that was \
                given away";
    ErrorBody {
        code: Code::TooMany,
        message: format!("could not make a token: there are {TOKENS_MAX}"),
        hint: Some(hint.to_owned()),
        field: None,
    }
}

fn unavailable(error: &StoreError) -> ErrorBody {
    ErrorBody {
        code: Code::Unavailable,
        message: format!("the coordinator could not use its store: {}", chain(error)),
        hint: error.hint(),
        field: None,
    }
}

impl Ring {
    async fn read(&self, prefix: &str) -> Result<u64, StoreError> {
        let (entries, version) = self.desk.store().list(prefix).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.retain(|key, _| !key.starts_with(prefix));
        held.extend(entries.into_iter().map(|entry| (entry.key.clone(), entry)));
        Ok(version)
    }

    async fn follow(&self, prefix: &str, after: u64) {
        let mut watch = self.desk.store().watch(prefix, after);
        loop {
            match watch.next().await {
                Ok(changes) => {
                    let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                    for change in changes {
                        let (key, version) = (change.key, change.version);
                        match change.value {
                            Some(value) => {
                                held.insert(key.clone(), Entry { key, value, version });
                            }
                            None => {
                                held.remove(&key);
                            }
                        }
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    if !matches!(error, StoreError::Compacted { .. }) {
                        warn!(error = chain(&error), "could not follow the tokens");
                    }
                    match self.read(prefix).await {
                        Ok(after) => watch = self.desk.store().watch(prefix, after),
                        Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                }
            }
        }
    }

    /// What is held under keys that begin with `prefix`.
    fn found(&self, prefix: &str) -> Vec<Entry> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let from = held.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect()
    }

    /// Makes sure that there is room for another token.
    fn room(&self) -> Result<(), ErrorBody> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).len();
        if held < TOKENS_MAX { Ok(()) } else { Err(full()) }
    }

    fn kept(&self, key: &str) -> Option<Kept<()>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.get(key).map(|entry| Kept { version: entry.version, value: () })
    }

    async fn check(&self, door: Option<Door>, header: Option<String>) -> Result<Caller, ErrorBody> {
        if door == Some(Door::Local) {
            let (name, id) = (ROOT.to_owned(), ROOT.to_owned());
            return Ok(Caller::Operator { name, role: Role::Operator, id });
        }
        if header.is_none() && self.is_open {
            return Ok(Caller::Open);
        }
        let secret = Secret::parse_header(header.as_deref()).map_err(refusal)?;
        let now = self.desk.now();
        // Made a moment ago, it may not have come here yet: then the store is asked.
        let mut found = self.found(&secret.lookup());
        let mut checked = auth::check(&secret, &found, now);
        if checked == Err(AuthError::Unknown) {
            let listed = self.desk.store().list(&secret.lookup()).await;
            found = listed.map_err(|error| unavailable(&error))?.0;
            checked = auth::check(&secret, &found, now);
        }
        let identity = checked.map_err(refusal)?;
        if secret.kind() != Kind::Join {
            self.touch(&secret, now).await?;
        }
        Ok(match identity {
            Identity::Operator { name, role, id } => Caller::Operator { name, role, id },
            Identity::Agent { group, instance } => Caller::Agent { group, instance },
            Identity::Join { group } => Caller::Join { group },
        })
    }

    /// Notes that a token was used, where that is due.
    async fn touch(&self, secret: &Secret, now: Timestamp) -> Result<(), ErrorBody> {
        let key = secret.token_key();
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if held.is_some_and(|entry| !is_due(&entry, now)) {
            return Ok(());
        }
        for _ in 0..RACES_MAX {
            let entry = self.desk.store().get(&key).await.map_err(|error| unavailable(&error))?;
            let entry = entry.ok_or_else(|| refusal(AuthError::Unknown))?;
            let record: Option<TokenRecord> = serde_json::from_slice(&entry.value).ok();
            let Some(touched) = record.and_then(|record| record.touched(now)) else {
                return Ok(());
            };
            let version = Some(entry.version);
            let commit = Commit {
                compares: vec![Compare { key: key.clone(), version }],
                writes: vec![Write::Put { key: key.clone(), value: auth::json(&touched) }],
            };
            match self.desk.store().commit(commit).await.map_err(|error| unavailable(&error))? {
                Outcome::Done(_) => return Ok(()),
                // Noted by somebody else, replaced, or revoked.
                Outcome::Conflict => {}
            }
        }
        Ok(())
    }

    async fn join(&self, asked: &Join, act: &Act) -> Made<Joined> {
        self.room()?;
        let store = self.desk.store();
        let get = async |key: &str| store.get(key).await.map_err(|error| unavailable(&error));
        let agent = get(&auth::agent_key(&asked.group, &asked.instance)).await?;
        let token = match &agent {
            Some(agent) => get(&auth::token_key_of(agent).map_err(refusal)?).await?,
            None => None,
        };
        let secret = Secret::random(Kind::Agent).map_err(refusal)?;
        let who = (&asked.group, &asked.instance);
        let commit = auth::admit(&secret, who, agent.as_ref(), token.as_ref(), act.at);
        let draft = Draft::of(commit.map_err(refusal)?);
        if token.is_some() {
            let (group, instance) = who;
            warn!(group = %group, instance = %instance, "it joins anew: its token was never used");
        }
        Ok((draft, Joined { token: secret.expose().to_owned() }))
    }

    /// Ends the token of an instance, where it has one.
    async fn dismiss(&self, group: &Group, instance: &Instance) -> Made<()> {
        let key = auth::agent_key(group, instance);
        let agent = self.desk.store().get(&key).await.map_err(|error| unavailable(&error))?;
        let writes = agent.as_ref().map(auth::dismiss).transpose().map_err(refusal)?;
        // Should it join at this very moment, it is not this token that ends.
        let compares = vec![Compare { key, version: agent.map(|agent| agent.version) }];
        Ok((Draft::of(Commit { compares, writes: writes.unwrap_or_default() }), ()))
    }

    fn tokens(&self) -> Vec<TokenView> {
        let view = |entry: &Entry| {
            let record: TokenRecord = serde_json::from_slice(&entry.value).ok()?;
            Some(record.view(&entry.key))
        };
        self.found(TOKENS).iter().filter_map(view).collect()
    }

    /// Ends the token that is known by this id.
    fn revoke(&self, id: &str) -> Made<()> {
        let is_id = id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found = if is_id { self.found(&format!("{TOKENS}{id}")) } else { Vec::new() };
        let [entry] = &found[..] else {
            return Err(ErrorBody {
                code: Code::NotFound,
                message: "there is no such token".to_owned(),
                hint: Some("`towline token list` names those that there are".to_owned()),
                field: Some("id".to_owned()),
            });
        };
        let mut draft = Draft::new();
        draft.on(entry.key.clone(), Some(&Kept { version: entry.version, value: () }));
        draft.delete(entry.key.clone());
        Ok((draft, ()))
    }
}

fn is_due(entry: &Entry, now: Timestamp) -> bool {
    let record: Option<TokenRecord> = serde_json::from_slice(&entry.value).ok();
    record.is_some_and(|record| record.touched(now).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;
    use towline_protocol::api::TokenRequest;

    async fn keeper(dir: &std::path::Path, is_open: bool) -> (Keys, Desk, CancellationToken) {
        let stop = CancellationToken::new();
        let store = Embedded::open(&dir.join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 1, stop.clone()).await.unwrap();
        (keys(&desk, is_open, &stop).await.unwrap(), desk, stop)
    }

    fn act(desk: &Desk) -> Act {
        Act { by: "ada".to_owned(), at: desk.now(), epoch: 1, reason: None }
    }

    async fn ask(keys: &Keys, door: Door, token: Option<&str>) -> Result<Caller, Code> {
        let mut request = axum::http::Request::builder();
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        parts.extensions.insert(door);
        (keys.check)(&parts).await.map_err(|error| error.code)
    }

    #[tokio::test]
    async fn a_token_is_good_until_it_is_revoked_and_the_socket_is_roots() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, desk, stop) = keeper(dir.path(), false).await;
        assert_eq!(ask(&keys, Door::Net, None).await, Err(Code::Unauthenticated));
        let root = ask(&keys, Door::Local, None).await.unwrap();
        assert!(matches!(root, Caller::Operator { role: Role::Operator, .. }));
        let request = TokenRequest { name: "ci".to_owned(), role: Role::Viewer, expires_s: 60 };
        let (draft, made) = (keys.create)(request, act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        let caller = ask(&keys, Door::Net, Some(&made.secret)).await.unwrap();
        assert!(matches!(caller, Caller::Operator { role: Role::Viewer, .. }), "{caller:?}");
        let wrong = made.secret.replacen("tlo_", "tla_", 1);
        assert_eq!(ask(&keys, Door::Net, Some(&wrong)).await, Err(Code::Unauthenticated));
        loop {
            // The list is what the store told of last; and the note that it was used may be newer.
            if let Ok((draft, ())) = (keys.revoke)(made.token.id.clone(), act(&desk)).await
                && desk.save(draft).await.unwrap()
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        while ask(&keys, Door::Net, Some(&made.secret)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&keys, Door::Net, Some(&made.secret)).await, Err(Code::Unauthenticated));
        stop.cancel();
    }

    #[tokio::test]
    async fn an_instance_joins_once_and_what_was_never_used_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, desk, stop) = keeper(dir.path(), false).await;
        let group: Group = "web".parse().unwrap();
        let (draft, made) = (keys.join_secret)(group.clone(), act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        let caller = ask(&keys, Door::Net, Some(&made.secret)).await.unwrap();
        assert_eq!(caller, Caller::Join { group: group.clone() });
        let asked = Join { version: 1, group: group.clone(), instance: "i-1".parse().unwrap() };
        let (draft, lost) = (keys.join)(asked.clone(), act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        // Its answer was lost: it asks again.
        let (draft, own) = (keys.join)(asked.clone(), act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        let caller = ask(&keys, Door::Net, Some(&own.token)).await.unwrap();
        let instance = asked.instance.clone();
        assert_eq!(caller, Caller::Agent { group, instance });
        let refused = (keys.join)(asked, act(&desk)).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict, "a second claimant");
        while ask(&keys, Door::Net, Some(&lost.token)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn where_it_is_open_nobody_is_asked_and_a_wrong_token_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, _, stop) = keeper(dir.path(), true).await;
        assert_eq!(ask(&keys, Door::Net, None).await, Ok(Caller::Open));
        let made = Secret::random(Kind::Operator).unwrap();
        let refused = ask(&keys, Door::Net, Some(made.expose())).await;
        assert_eq!(refused, Err(Code::Unauthenticated));
        assert_eq!(ask(&keys, Door::Net, Some("tlo_x")).await, Err(Code::Unauthenticated));
        stop.cancel();
    }
}
