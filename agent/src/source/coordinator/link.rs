//! What all requests of one agent share: the addresses, who it is, its token, and the number of the next
//! message.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Goodbye, Join, Joined, VERSION};
use tracing::{info, warn};

use super::call::{Bearer, CallError, call};
use crate::error;
use crate::release::Store;
use crate::release::state::Token;

/// How long a request may take that is answered at once.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// How long the goodbye may take at each address: the instance is on its way down.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) addresses: Vec<Url>,
    pub(super) group: Group,
    pub(super) instance: Instance,
    pub(super) store: Store,
    /// Spreads what a fleet does.
    pub(super) seed: u64,
    /// In exchange for a token.
    pub(super) secret: Option<Bearer>,
    pub(super) token: watch::Sender<Option<Bearer>>,
    /// The number of the newest message.
    pub(super) seq: AtomicU64,
    /// The address to ask first: the one that answered last.
    pub(super) at: AtomicUsize,
}

impl Link {
    /// Returns the number of the next message.
    pub(super) fn number(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the index of the address to ask first.
    pub(super) fn at(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// Goes on to the next address, if this is still the one in use.
    pub(super) fn leave(&self, at: usize) {
        let next = (at + 1) % self.addresses.len();
        self.at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// Returns the token, where one is to be had; an error where it is still to be had.
    pub(super) fn token(&self) -> Result<Option<Bearer>, CallError> {
        let token = self.token.borrow().clone();
        if token.is_none() && self.secret.is_some() {
            return Err(CallError::NotJoined);
        }
        Ok(token)
    }

    /// Asks `address` with the agent's own token.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        at: usize,
        name: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<Option<A>, CallError> {
        let token = self.token()?;
        let base = &self.addresses[at % self.addresses.len()];
        let answer = call(&self.client, base, name, body, token.as_ref(), deadline).await;
        if let Err(error) = &answer
            && error.is_unauthorised()
            && self.secret.is_some()
        {
            // It may have been revoked; the secret is good for another one. What came meanwhile stays.
            self.token.send_if_modified(|own| {
                let is_refused = *own == token;
                if is_refused {
                    *own = None;
                }
                is_refused
            });
        }
        answer
    }

    /// Makes sure that there is a token, if it takes one: the join secret is good for it.
    pub(super) async fn join(&self, at: usize) -> Result<(), CallError> {
        let Some(secret) = self.secret.as_ref().filter(|_| self.token.borrow().is_none()) else {
            return Ok(());
        };
        let base = &self.addresses[at % self.addresses.len()];
        let join =
            Join { version: VERSION, group: self.group.clone(), instance: self.instance.clone() };
        let joined: Option<Joined> =
            call(&self.client, base, "join", &join, Some(secret), DEADLINE).await?;
        let token = joined.and_then(|joined| Bearer::new(&joined.token));
        let Some(token) = token else { return Err(CallError::Token { address: base.to_string() }) };
        let written = self.store.write_token(&Token {
            group: self.group.clone(),
            instance: self.instance.clone(),
            token: token.reveal().to_owned(),
        });
        match written {
            Ok(()) => info!(address = %base, "joined the group with its secret"),
            // The next run joins again.
            Err(error) => {
                warn!(
                    error = error::chain(&error),
                    hint = error.hint(),
                    "could not keep the token"
                );
            }
        }
        self.token.send_replace(Some(token));
        Ok(())
    }

    /// Says goodbye to whichever address takes it.
    pub(super) async fn goodbye(&self, seq: u64) -> Result<(), CallError> {
        let goodbye = Goodbye {
            version: VERSION,
            group: self.group.clone(),
            instance: self.instance.clone(),
            seq,
        };
        let mut outcome = Err(CallError::NotJoined);
        for index in 0..self.addresses.len() {
            let at = self.at() + index;
            let said = self.call::<serde_json::Value>(at, "goodbye", &goodbye, GOODBYE_DEADLINE);
            outcome = said.await.map(drop);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}
