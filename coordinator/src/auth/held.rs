//! Tokens and join secrets as the store has them, at hand.
//!
//! ```text
//!   store ── changes ──► Held ── the entry of a secret, if there is one ──► check
//! ```
//!
//! Invariants
//! - Whoever knocks is found, or not, without a look into the store: a token that is made up costs nobody
//!   else a reader.
//! - It is one with the records: what was acknowledged is here, and so is what was revoked.
//!
//! PURE.

use std::collections::BTreeMap;

use super::secret::{Kind, Secret};
use super::{JOINS, JoinRecord, TOKENS};
use crate::store::{Change, Entry};

/// What the store has of tokens and join secrets.
#[derive(Debug, Default)]
pub struct Held {
    entries: BTreeMap<String, Entry>,
    /// The keys of join secrets, by the hashes that stand there.
    joins: BTreeMap<String, String>,
}

impl Held {
    /// The prefixes of what it takes.
    pub const KEPT: [&str; 2] = [TOKENS, JOINS];

    /// Takes what is of tokens from all that is stored.
    #[must_use]
    pub fn load(entries: &[Entry]) -> Self {
        let mut held = Self::default();
        for entry in entries.iter().filter(|entry| is_of_tokens(&entry.key)) {
            held.put(entry.clone());
        }
        held
    }

    /// Takes up a change of the store.
    pub fn apply(&mut self, change: &Change) {
        if !is_of_tokens(&change.key) {
            return;
        }
        if self.get(&change.key).is_some_and(|entry| entry.version >= change.version) {
            return;
        }
        if let Some(hash) = self.entries.remove(&change.key).as_ref().and_then(join_hash) {
            self.joins.remove(&hash);
        }
        if let Some(value) = &change.value {
            let (key, version) = (change.key.clone(), change.version);
            self.put(Entry { key, value: value.clone(), version });
        }
    }

    fn put(&mut self, entry: Entry) {
        if let Some(hash) = join_hash(&entry) {
            self.joins.insert(hash, entry.key.clone());
        }
        self.entries.insert(entry.key.clone(), entry);
    }

    /// Returns what there is of a secret, which [`super::check`] judges.
    #[must_use]
    pub fn of(&self, secret: &Secret) -> Option<&Entry> {
        match secret.kind() {
            Kind::Operator | Kind::Agent => self.get(&secret.token_key()),
            Kind::Join => self.get(self.joins.get(&secret.hash())?),
        }
    }

    /// Returns what is under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Returns all whose keys begin with `prefix`.
    pub fn below(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        let from = self.entries.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry)
    }
}

fn is_of_tokens(key: &str) -> bool {
    Held::KEPT.iter().any(|prefix| key.starts_with(prefix))
}

/// The hash of a join secret; `None`: it is none, or cannot be read, so that it lets nobody in.
fn join_hash(entry: &Entry) -> Option<String> {
    let record: JoinRecord = serde_json::from_slice(&entry.value).ok()?;
    entry.key.starts_with(JOINS).then_some(record.sha256)
}

#[cfg(test)]
mod tests {
    use towline_protocol::time::Timestamp;

    use super::*;
    use crate::auth::{join_record, json};

    fn put(key: &str, record: &impl serde::Serialize, version: u64) -> Change {
        Change { key: key.to_owned(), value: Some(json(record)), version }
    }

    #[test]
    fn a_secret_is_found_while_it_is_stored_and_no_longer() {
        let (old, new) = (Secret::of(Kind::Join, [1; 32]), Secret::of(Kind::Join, [2; 32]));
        let own = Secret::of(Kind::Agent, [1; 32]);
        let record = |secret| join_record(secret, Timestamp(1));
        let mut held = Held::load(&[
            Entry { key: "join/web".to_owned(), value: json(&record(&old)), version: 1 },
            Entry { key: "group/web".to_owned(), value: json(&1), version: 1 },
        ]);
        assert_eq!(held.of(&old).map(|entry| entry.key.as_str()), Some("join/web"));
        assert!(held.of(&new).is_none() && held.of(&own).is_none());
        assert!(held.get("group/web").is_none(), "it is nothing of tokens");

        held.apply(&put("join/web", &record(&new), 2));
        held.apply(&put(&own.token_key(), &1, 3));
        held.apply(&put("group/api", &1, 4));
        assert!(held.of(&old).is_none(), "it was replaced");
        assert_eq!(held.of(&new).map(|entry| entry.version), Some(2));
        assert_eq!(held.of(&own).map(|entry| entry.version), Some(3));
        assert_eq!(held.below(TOKENS).count(), 1);

        for key in ["join/web".to_owned(), own.token_key()] {
            held.apply(&Change { key, value: None, version: 5 });
        }
        assert!(held.of(&new).is_none() && held.of(&own).is_none());
        held.apply(&put("join/web", &"damaged", 6));
        assert!(held.of(&new).is_none());
    }
}
