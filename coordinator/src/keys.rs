//! Who may come in: by the Unix socket, by a token, or, where nobody else can reach it, without any.
//!
//! ```text
//!   door, headers ──► check ─┬─ the Unix socket ─────────► root
//!                            ├─ a token ─────────────────► whoever it is, by what the store has of it
//!                            └─ none, and it is open ────► anybody; on loopback: who says so by its Host
//! ```
//!
//! Tokens are kept at hand with the desk's records, so that nothing that is made up costs a look into the
//! store; one that was revoked ends before that is acknowledged. Where the store cannot be read, nobody
//! knows which were revoked: then none is good. That an agent's token was used is stored before its first
//! request is answered: from then on nobody else can join as that instance.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderValue;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use futures_util::FutureExt;
use towline_protocol::api::{Code, ErrorBody, JoinSecret, Role, TokenCreated, TokenView};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Join, Joined};
use towline_protocol::time::Timestamp;
use tracing::warn;

use crate::auth::error::AuthError;
use crate::auth::held::Held;
use crate::auth::secret::{Kind, Secret};
use crate::auth::{self, Identity, TOKENS, TokenRecord};
use crate::desk::Desk;
use crate::error::chain;
use crate::http::caller::{Caller, Keys, Made};
use crate::records::{Draft, Kept};
use crate::rollout::operations::Act;
use crate::server::Door;
use crate::store::{Commit, Compare, Entry, Outcome, Store, StoreError, Write};

/// The name of whoever comes by the Unix socket.
const ROOT: &str = "root";

/// How often a note that a token was used is made again that lost a race.
const RACES_MAX: usize = 8;

/// How many tokens there may be, of agents and operators: they are kept at hand.
const TOKENS_MAX: usize = 200_000;

/// Keeps tokens and join secrets.
#[derive(Debug, Clone)]
struct Ring {
    desk: Desk,
    open: Open,
}

/// To whom it is open without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To nobody.
    No,
    /// To whoever is on this host, and asks for this host: a page in a browser here may ask for a name of its
    /// own that leads here by DNS, and would be answered otherwise.
    Loopback,
    /// To everybody.
    Wide,
}

/// Returns the keeper of tokens.
#[must_use]
pub fn keys(desk: &Desk, open: Open) -> Keys {
    let ring = Ring { desk: desk.clone(), open };
    let (check, join, create) = (ring.clone(), ring.clone(), ring.clone());
    let (list, revoke, secret, dismiss) = (ring.clone(), ring.clone(), ring.clone(), ring);
    Keys {
        check: Arc::new(move |parts: &Parts| {
            let door = parts.extensions.get::<Door>().copied();
            let header = parts.headers.get(AUTHORIZATION).map(|value| value.to_str().ok());
            // What is no text is no token.
            let header = header.map(|text| text.unwrap_or_default().to_owned());
            let is_here = parts.headers.get_all(HOST).iter().all(is_this_host);
            let ring = check.clone();
            async move { ring.check(door, header, is_here).await }.boxed()
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
    }
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

fn elsewhere() -> ErrorBody {
    ErrorBody {
        code: Code::Forbidden,
        message:
            "without tokens, only whoever asks for this host by its loopback address is answered"
                .to_owned(),
        hint: Some(
            "ask for 127.0.0.1, [::1] or localhost; for any other name it needs [tls], and tokens"
                .to_owned(),
        ),
        field: Some("host".to_owned()),
    }
}

/// Does this Host header name a loopback address, or `localhost`?
fn is_this_host(host: &HeaderValue) -> bool {
    let Ok(text) = host.to_str() else { return false };
    let name = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => text.split(':').next(),
    };
    let name = name.unwrap_or_default();
    let is_loopback = |address: IpAddr| address.is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
}

impl Ring {
    /// Makes sure that there is room for another token.
    fn room(&self) -> Result<(), ErrorBody> {
        if self.desk.held(Held::count) < TOKENS_MAX { Ok(()) } else { Err(full()) }
    }

    fn kept(&self, key: &str) -> Option<Kept<()>> {
        self.desk.held(|held| held.get(key).map(|entry| Kept { version: entry.version, value: () }))
    }

    /// `is_here`: does it ask for this host, by its Host header?
    async fn check(
        &self,
        door: Option<Door>,
        header: Option<String>,
        is_here: bool,
    ) -> Result<Caller, ErrorBody> {
        if door == Some(Door::Local) {
            let (name, id) = (ROOT.to_owned(), ROOT.to_owned());
            return Ok(Caller::Operator { name, role: Role::Operator, id });
        }
        if header.is_none() {
            match self.open {
                Open::No => {}
                Open::Loopback if !is_here => return Err(elsewhere()),
                Open::Loopback | Open::Wide => return Ok(Caller::Open),
            }
        }
        let secret = Secret::parse_header(header.as_deref()).map_err(refusal)?;
        let now = self.desk.now();
        if self.desk.is_blind() {
            return Err(ErrorBody {
                code: Code::Unavailable,
                message: "the coordinator cannot read its store: no token can be checked"
                    .to_owned(),
                hint: Some("its log says why; its socket needs no token".to_owned()),
                field: None,
            });
        }
        let found = self.desk.held(|held| held.of(&secret).cloned());
        let identity = auth::check(&secret, found.as_slice(), now).map_err(refusal)?;
        if secret.kind() != Kind::Join {
            let touched = self.touch(&secret, now).await;
            // Whoever has used it before is known: that nothing can be stored now keeps nobody from reading.
            let is_known = found.as_ref().is_some_and(is_used);
            touched.or_else(|error| match error.code {
                Code::Unavailable if is_known => Ok(()),
                _ => Err(error),
            })?;
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
        let held = self.desk.held(|held| held.get(&key).cloned());
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
        // They are many: nobody is to wait until all of them are read.
        let all: Vec<Entry> = self.desk.held(|held| held.below(TOKENS).cloned().collect());
        all.iter().filter_map(view).collect()
    }

    /// Ends the token that is known by this id.
    fn revoke(&self, id: &str) -> Made<()> {
        let is_id = id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found: Vec<Entry> = if is_id {
            self.desk.held(|held| held.below(&format!("{TOKENS}{id}")).cloned().collect())
        } else {
            Vec::new()
        };
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

/// Was this token ever used?
fn is_used(entry: &Entry) -> bool {
    let record: Option<TokenRecord> = serde_json::from_slice(&entry.value).ok();
    record.is_some_and(|record| record.used.is_some())
}

fn is_due(entry: &Entry, now: Timestamp) -> bool {
    let record: Option<TokenRecord> = serde_json::from_slice(&entry.value).ok();
    record.is_some_and(|record| record.touched(now).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;
    use towline_protocol::api::TokenRequest;

    /// How long a test waits for what comes in a second or two.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn keeper(dir: &std::path::Path, open: Open) -> (Keys, Desk, CancellationToken) {
        let stop = CancellationToken::new();
        let store = Embedded::open(&dir.join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 1, stop.clone()).await.unwrap();
        (keys(&desk, open), desk, stop)
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
        let (keys, desk, stop) = keeper(dir.path(), Open::No).await;
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
    async fn a_token_that_is_made_up_costs_no_look_into_the_store_and_one_just_made_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, desk, stop) = keeper(dir.path(), Open::No).await;
        let group: Group = "web".parse().unwrap();
        let (draft, made) = (keys.join_secret)(group.clone(), act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        // Whatever is acknowledged is known at once.
        assert_eq!(ask(&keys, Door::Net, Some(&made.secret)).await, Ok(Caller::Join { group }));
        // Without a store, whoever needs one is told that it is away.
        desk.store().close().await;
        assert!(desk.store().get("epoch").await.is_err());
        for kind in [Kind::Operator, Kind::Agent, Kind::Join] {
            let made_up = Secret::random(kind).unwrap();
            let refused = ask(&keys, Door::Net, Some(made_up.expose())).await;
            assert_eq!(refused, Err(Code::Unauthenticated), "{kind:?}");
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn where_the_store_cannot_be_read_no_token_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, desk, stop) = keeper(dir.path(), Open::No).await;
        let request = TokenRequest { name: "ci".to_owned(), role: Role::Viewer, expires_s: 60 };
        let (draft, made) = (keys.create)(request, act(&desk)).await.unwrap();
        assert!(desk.save(draft).await.unwrap());
        ask(&keys, Door::Net, Some(&made.secret)).await.unwrap();
        let key = format!(
            "{TOKENS}{}",
            Secret::parse_header(Some(&format!("Bearer {}", made.secret))).unwrap().hash()
        );
        // That it was used is stored, and follows; until then each request looks whether to store it.
        let follows = tokio::time::timeout(PATIENCE, async {
            while !desk.held(|held| held.get(&key).is_some_and(is_used)) {
                tokio::task::yield_now().await;
            }
        });
        follows.await.unwrap();
        // From now on nobody can read what changes.
        let disk = rusqlite::Connection::open(dir.path().join("store")).unwrap();
        disk.execute_batch(
            "CREATE TRIGGER damage AFTER INSERT ON events BEGIN \
             UPDATE events SET key = CAST(x'ff' AS TEXT) WHERE id = NEW.id; END",
        )
        .unwrap();
        let writes = vec![Write::Delete { key: key.clone() }];
        let revoked = desk.store().commit(Commit { compares: Vec::new(), writes }).await;
        assert!(matches!(revoked, Ok(Outcome::Done(_))), "{revoked:?}");
        let refused = tokio::time::timeout(PATIENCE, async {
            loop {
                match ask(&keys, Door::Net, Some(&made.secret)).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(code) => return code,
                }
            }
        });
        assert_eq!(refused.await, Ok(Code::Unavailable), "nobody knows that it was revoked");
        assert!(ask(&keys, Door::Local, None).await.is_ok(), "root comes in");
        // Once it can be read again, everybody knows.
        disk.execute_batch("DROP TRIGGER damage").unwrap();
        disk.execute("UPDATE events SET key = ?1 WHERE key = CAST(x'ff' AS TEXT)", (&key,))
            .unwrap();
        let refused = tokio::time::timeout(PATIENCE, async {
            loop {
                match ask(&keys, Door::Net, Some(&made.secret)).await {
                    Err(Code::Unavailable) => tokio::task::yield_now().await,
                    other => return other,
                }
            }
        });
        assert_eq!(refused.await, Ok(Err(Code::Unauthenticated)));
        stop.cancel();
    }

    #[tokio::test]
    async fn an_instance_joins_once_and_what_was_never_used_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, desk, stop) = keeper(dir.path(), Open::No).await;
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
        let (keys, _, stop) = keeper(dir.path(), Open::Loopback).await;
        assert_eq!(ask(&keys, Door::Net, None).await, Ok(Caller::Open));
        let made = Secret::random(Kind::Operator).unwrap();
        let refused = ask(&keys, Door::Net, Some(made.expose())).await;
        assert_eq!(refused, Err(Code::Unauthenticated));
        assert_eq!(ask(&keys, Door::Net, Some("tlo_x")).await, Err(Code::Unauthenticated));
        stop.cancel();
    }

    #[tokio::test]
    async fn on_loopback_only_who_asks_for_this_host_needs_no_token() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (loopback, _, stop) = keeper(dir.path(), Open::Loopback).await;
        let (wide, _, stop_too) = keeper(other.path(), Open::Wide).await;
        let ask = async |keys: &Keys, door, host: &[&str]| {
            let mut request = axum::http::Request::builder();
            for host in host {
                request = request.header("host", *host);
            }
            let mut parts = request.body(()).unwrap().into_parts().0;
            parts.extensions.insert(door);
            (keys.check)(&parts).await.map_err(|error| error.code)
        };
        let here = ["127.0.0.1:7617", "127.0.0.1", "[::1]:7617", "[::1]", "LocalHost:7617"];
        for host in here {
            assert_eq!(ask(&loopback, Door::Net, &[host]).await, Ok(Caller::Open), "{host}");
        }
        assert_eq!(ask(&loopback, Door::Net, &[]).await, Ok(Caller::Open), "no browser");
        for host in
            ["rebound.example:7617", "192.168.0.7", "127.0.0.1.rebound.example", "", "[", "[::2]"]
        {
            assert_eq!(ask(&loopback, Door::Net, &[host]).await, Err(Code::Forbidden), "{host}");
            assert_eq!(ask(&wide, Door::Net, &[host]).await, Ok(Caller::Open), "{host}");
            let root = ask(&loopback, Door::Local, &[host]).await;
            assert!(matches!(root, Ok(Caller::Operator { .. })), "{host}");
        }
        let both = ["127.0.0.1", "rebound.example"];
        assert_eq!(ask(&loopback, Door::Net, &both).await, Err(Code::Forbidden));
        stop.cancel();
        stop_too.cancel();
    }
}
