//! Who asks, and what they may: tokens, what is stored of them, and what each allows.
//!
//! ```text
//!   Authorization ─► Secret ─► Held: what the store has of it ─► check ─► Identity ─► may(action)
//! ```
//!
//! | secret | whose | stored as | ends |
//! | --- | --- | --- | --- |
//! | `tlo_…` | an operator's or a job's | `token/<sha-256>` | when it expires, or is revoked |
//! | `tla_…` | one instance's agent | `token/<sha-256>`, named by `agent/<group>/<instance>` | with its instance, or when revoked |
//! | `tlj_…` | a group's, to join it | `join/<group>` | when the next one is made |
//!
//! The id of a token is the first 12 digits of its hash: all keys that begin with `token/<id>` are that
//! token.
//!
//! Invariants
//! - Decisions are pure: the records, and the time, are arguments. Only [`secret::Secret::random`] acts.
//! - A secret is stored as its hash alone, and is found by it: no comparison tells how much was right.
//! - What is not allowed here is refused.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towline_protocol::api::{Role, TokenRequest, TokenView};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::time::Timestamp;

use self::error::AuthError;
use self::secret::{ID_DIGITS, Kind, Secret};
use crate::store::{Commit, Compare, Entry, Write};

pub mod error;
pub mod held;
pub mod secret;

/// The version of the records that this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The longest that an operator's token may be good.
pub const EXPIRES_MAX: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// How often it is noted, at most, that a token was used.
pub const USED_EVERY: Duration = Duration::from_secs(60 * 60);

/// The longest name of a token.
pub const NAME_BYTES_MAX: usize = 64;

/// Below this are the tokens, by their hashes.
pub const TOKENS: &str = "token/";

/// Below this are the groups' join secrets.
pub const JOINS: &str = "join/";

/// A token, as it is stored under `token/<sha-256>`. Revoking it is deleting it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose it is.
    #[serde(flatten)]
    pub holder: Holder,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends; an agent's has no end of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When it was last used, give or take [`USED_EVERY`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Timestamp>,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// A person's or a job's.
    Operator {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// An agent's.
    Agent {
        /// Its group.
        group: Group,
        /// Its instance.
        instance: Instance,
    },
}

/// A group's join secret, as it is stored under `join/<group>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// The secret's hash.
    pub sha256: String,
    /// When it was made.
    pub since: Timestamp,
}

/// Which token an instance has, as it is stored under `agent/<group>/<instance>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// The token's hash.
    pub sha256: String,
}

impl TokenRecord {
    /// Returns the token that an operator asks for.
    ///
    /// # Errors
    ///
    /// Its name or its end is not as it must be.
    pub fn of_operator(request: &TokenRequest, now: Timestamp) -> Result<Self, AuthError> {
        let name = request.name.clone();
        if !is_name(&name) {
            return Err(AuthError::Name);
        }
        let expires = Duration::from_secs(request.expires_s);
        if expires.is_zero() || expires > EXPIRES_MAX {
            return Err(AuthError::Expires);
        }
        let holder = Holder::Operator { name, role: request.role };
        let expires = Some(now.after(expires));
        Ok(Self { version: VERSION, holder, created: now, expires, used: None })
    }

    /// Returns the record with the note that it was used now; `None` where it has one that is new enough.
    ///
    /// The first use of an agent's token is to be stored before it is answered: see [`admit`].
    #[must_use]
    pub fn touched(&self, now: Timestamp) -> Option<Self> {
        let is_due = self.used.is_none_or(|used| now.since(used) >= USED_EVERY);
        is_due.then(|| Self { used: Some(now), ..self.clone() })
    }

    /// Returns how it is shown; `key` is where it is stored.
    #[must_use]
    pub fn view(&self, key: &str) -> TokenView {
        let hash = key.strip_prefix(TOKENS).unwrap_or(key);
        let (name, role, agent) = match &self.holder {
            Holder::Operator { name, role } => (name.clone(), Some(*role), None),
            Holder::Agent { group, instance } => {
                (instance.as_str().to_owned(), None, Some(format!("{group}/{instance}")))
            }
        };
        TokenView {
            id: hash.chars().take(ID_DIGITS).collect(),
            name,
            role,
            agent,
            created: self.created,
            expires: self.expires,
            used: self.used,
        }
    }
}

/// A name that may stand in a key, a log and a sentence; mail addresses are such.
fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
    text.len() <= NAME_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(is_part)
}

/// Returns the key of a group's [`JoinRecord`].
#[must_use]
pub fn join_key(group: &Group) -> String {
    format!("{JOINS}{group}")
}

/// Returns the record of a group's new join secret; it takes the place of the one before.
#[must_use]
pub fn join_record(secret: &Secret, now: Timestamp) -> JoinRecord {
    JoinRecord { version: VERSION, sha256: secret.hash(), since: now }
}

/// Returns the key of an instance's [`AgentRecord`].
#[must_use]
pub fn agent_key(group: &Group, instance: &Instance) -> String {
    format!("agent/{group}/{instance}")
}

/// Returns the key of the token that an instance has.
///
/// # Errors
///
/// The record cannot be read.
pub fn token_key_of(agent: &Entry) -> Result<String, AuthError> {
    Ok(format!("{TOKENS}{}", read::<AgentRecord>(agent)?.sha256))
}

/// Returns the commit by which an instance that has shown its group's join secret gets a token of its own.
///
/// - `agent`: what is under [`agent_key`]; `token`: what is under its [`token_key_of`].
///
/// Every instance of a group knows its join secret, so it must not be enough to take the place of another:
/// a token that was used stays, until it is revoked or its instance is forgotten. One that was not may
/// have been lost on its way.
///
/// # Errors
///
/// The instance has a token already; or a record cannot be read.
pub fn admit(
    secret: &Secret,
    (group, instance): (&Group, &Instance),
    agent: Option<&Entry>,
    token: Option<&Entry>,
    now: Timestamp,
) -> Result<Commit, AuthError> {
    if let Some(token) = token
        && read::<TokenRecord>(token)?.used.is_some()
    {
        return Err(AuthError::Joined { instance: instance.clone() });
    }
    let key = agent_key(group, instance);
    let holder = Holder::Agent { group: group.clone(), instance: instance.clone() };
    let record = TokenRecord { version: VERSION, holder, created: now, expires: None, used: None };
    let named = AgentRecord { version: VERSION, sha256: secret.hash() };
    let mut compares =
        vec![Compare { key: key.clone(), version: agent.map(|agent| agent.version) }];
    let mut writes = vec![
        Write::Put { key, value: json(&named) },
        Write::Put { key: secret.token_key(), value: json(&record) },
    ];
    if let Some(token) = token {
        // Used meanwhile, it has another version.
        compares.push(Compare { key: token.key.clone(), version: Some(token.version) });
        writes.push(Write::Delete { key: token.key.clone() });
    }
    Ok(Commit { compares, writes })
}

/// Returns the writes by which an instance loses its token; `agent`: what is under [`agent_key`].
///
/// # Errors
///
/// The record cannot be read.
pub fn dismiss(agent: &Entry) -> Result<Vec<Write>, AuthError> {
    let token = Write::Delete { key: token_key_of(agent)? };
    Ok(vec![token, Write::Delete { key: agent.key.clone() }])
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// An operator.
    Operator {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
        /// Its token.
        id: String,
    },
    /// The agent of one instance.
    Agent {
        /// Its group.
        group: Group,
        /// Its instance.
        instance: Instance,
    },
    /// Somebody with a group's join secret.
    Join {
        /// The group.
        group: Group,
    },
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// To see what operators see.
    Read,
    /// To change something.
    Change,
    /// To poll, report and swap as an instance.
    Serve(&'a Group, &'a Instance),
    /// To become an instance of a group.
    Join(&'a Group),
}

/// Says who has a secret, and whether it is still good.
///
/// - `found`: what the store has of it; see [`held::Held::of`].
///
/// # Errors
///
/// Nobody has it, or it has expired; or a record cannot be read.
pub fn check(secret: &Secret, found: &[Entry], now: Timestamp) -> Result<Identity, AuthError> {
    if secret.kind() == Kind::Join {
        return check_join(&secret.hash(), found);
    }
    let key = secret.token_key();
    let entry = found.iter().find(|entry| entry.key == key).ok_or(AuthError::Unknown)?;
    let record: TokenRecord = read(entry)?;
    if let Some(at) = record.expires.filter(|expires| *expires <= now) {
        return Err(AuthError::Expired { at });
    }
    match (secret.kind(), record.holder) {
        // An operator's without an end was not written here.
        (Kind::Operator, Holder::Operator { name, role }) if record.expires.is_some() => {
            Ok(Identity::Operator { name, role, id: secret.id() })
        }
        (Kind::Agent, Holder::Agent { group, instance }) => Ok(Identity::Agent { group, instance }),
        _ => Err(AuthError::Record { key }),
    }
}

fn check_join(hash: &str, found: &[Entry]) -> Result<Identity, AuthError> {
    // One that cannot be read keeps no other group from joining.
    let mut outcome = Err(AuthError::Unknown);
    for entry in found {
        let group = entry.key.strip_prefix(JOINS).and_then(|group| group.parse().ok());
        match (group, read::<JoinRecord>(entry)) {
            (Some(group), Ok(record)) if record.sha256 == hash => {
                return Ok(Identity::Join { group });
            }
            (Some(_), Ok(_)) => {}
            _ => outcome = Err(AuthError::Record { key: entry.key.clone() }),
        }
    }
    outcome
}

/// Says whether somebody may do something.
///
/// # Errors
///
/// They may not.
pub fn may(identity: &Identity, action: Action<'_>) -> Result<(), AuthError> {
    let is_allowed = match (identity, action) {
        (Identity::Operator { role: Role::Viewer | Role::Operator, .. }, Action::Read)
        | (Identity::Operator { role: Role::Operator, .. }, Action::Change) => true,
        (Identity::Agent { group, instance }, Action::Serve(of, as_whom)) => {
            group == of && instance == as_whom
        }
        (Identity::Join { group }, Action::Join(to)) => group == to,
        _ => false,
    };
    if is_allowed { Ok(()) } else { Err(AuthError::Forbidden { who: identity.to_string() }) }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Operator { name, .. } => f.write_str(name),
            Identity::Agent { group, instance } => write!(f, "the agent of {group} {instance}"),
            Identity::Join { group } => write!(f, "the join secret of {group}"),
        }
    }
}

/// Reads a record.
fn read<T: DeserializeOwned>(entry: &Entry) -> Result<T, AuthError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = || AuthError::Record { key: entry.key.clone() };
    let versioned: Versioned = serde_json::from_slice(&entry.value).map_err(|_| damaged())?;
    if versioned.version > VERSION {
        return Err(damaged());
    }
    serde_json::from_slice(&entry.value).map_err(|_| damaged())
}

/// Writes a record as it is stored.
#[must_use]
pub fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text as keys, and nothing that fails")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const DAY_S: u64 = 24 * 60 * 60;

    fn secret(kind: Kind, byte: u8) -> Secret {
        Secret::of(kind, [byte; 32])
    }

    fn entry(key: &str, record: &impl Serialize, version: u64) -> Entry {
        Entry { key: key.to_owned(), value: json(record), version }
    }

    fn request(name: &str, role: Role, expires_s: u64) -> TokenRequest {
        TokenRequest { name: name.to_owned(), role, expires_s }
    }

    fn operator(name: &str, role: Role) -> TokenRecord {
        TokenRecord::of_operator(&request(name, role, DAY_S), NOW).unwrap()
    }

    fn names() -> (Group, Instance) {
        ("web".parse().unwrap(), "i-1".parse().unwrap())
    }

    fn agent() -> TokenRecord {
        let (group, instance) = names();
        let holder = Holder::Agent { group, instance };
        TokenRecord { version: VERSION, holder, created: NOW, expires: None, used: None }
    }

    #[test]
    fn who_has_a_secret_is_told_by_its_record() {
        let (one, other) = (secret(Kind::Operator, 1), secret(Kind::Operator, 2));
        let (own, join) = (secret(Kind::Agent, 1), secret(Kind::Join, 1));
        let anna = operator("anna", Role::Viewer);
        let end = anna.expires.unwrap();
        let endless = TokenRecord { expires: None, ..anna.clone() };
        let newer = TokenRecord { version: VERSION + 1, ..anna.clone() };
        let joins = |secret: &Secret| {
            let other = join_record(&self::secret(Kind::Join, 9), NOW);
            vec![entry("join/api", &other, 1), entry("join/web", &join_record(secret, NOW), 2)]
        };
        let at =
            |secret: &Secret, record: &TokenRecord| vec![entry(&secret.token_key(), record, 1)];
        let damaged = |secret: &Secret| vec![entry(&secret.token_key(), &"{", 1)];
        let is_anna = Ok(Identity::Operator {
            name: "anna".to_owned(),
            role: Role::Viewer,
            id: one.hash()[..12].to_owned(),
        });
        let (group, instance) = names();
        let is_agent = Ok(Identity::Agent { group: group.clone(), instance });
        let record = |secret: &Secret| Err(AuthError::Record { key: secret.token_key() });
        let cases = [
            ("an operator's", &one, at(&one, &anna), NOW, is_anna.clone()),
            ("up to its end", &one, at(&one, &anna), Timestamp(end.0 - 1), is_anna),
            ("not at its end", &one, at(&one, &anna), end, Err(AuthError::Expired { at: end })),
            ("revoked, or never made", &one, vec![], NOW, Err(AuthError::Unknown)),
            ("another's", &other, at(&one, &anna), NOW, Err(AuthError::Unknown)),
            ("an operator's without an end", &one, at(&one, &endless), NOW, record(&one)),
            ("of a newer coordinator", &one, at(&one, &newer), NOW, record(&one)),
            ("a damaged record", &one, damaged(&one), NOW, record(&one)),
            ("an agent's", &own, at(&own, &agent()), NOW, is_agent.clone()),
            ("an agent's has no end", &own, at(&own, &agent()), Timestamp(u64::MAX), is_agent),
            ("an agent's that is an operator's", &own, at(&own, &anna), NOW, record(&own)),
            ("an operator's that is an agent's", &one, at(&one, &agent()), NOW, record(&one)),
            ("a join secret", &join, joins(&join), NOW, Ok(Identity::Join { group })),
            (
                "one that was replaced",
                &join,
                joins(&secret(Kind::Join, 2)),
                NOW,
                Err(AuthError::Unknown),
            ),
        ];
        let damaged = |key: &str| entry(key, &"{", 1);
        let mut joins = joins(&join);
        joins.insert(0, damaged("join/a"));
        let (found, expected) = (&joins[..], Ok(Identity::Join { group: names().0 }));
        assert_eq!(check(&join, found, NOW), expected, "another group's record is damaged");
        let (found, expected) = (&joins[..1], Err(AuthError::Record { key: "join/a".to_owned() }));
        assert_eq!(check(&join, found, NOW), expected, "its own may be");
        for (rule, secret, found, now, expected) in cases {
            assert_eq!(check(secret, &found, now), expected, "{rule}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let (web, one) = names();
        let (api, two): (Group, Instance) = ("api".parse().unwrap(), "i-2".parse().unwrap());
        let operator =
            |role| Identity::Operator { name: "anna".to_owned(), role, id: String::new() };
        let viewer = operator(Role::Viewer);
        let operator = operator(Role::Operator);
        let agent = Identity::Agent { group: web.clone(), instance: one.clone() };
        let join = Identity::Join { group: web.clone() };
        // Viewer, operator, agent, join secret.
        let cases = [
            ("see", Action::Read, [true, true, false, false]),
            ("change", Action::Change, [false, true, false, false]),
            ("serve as itself", Action::Serve(&web, &one), [false, false, true, false]),
            ("serve as another", Action::Serve(&web, &two), [false; 4]),
            ("serve elsewhere", Action::Serve(&api, &one), [false; 4]),
            ("join its group", Action::Join(&web), [false, false, false, true]),
            ("join another", Action::Join(&api), [false; 4]),
        ];
        for (rule, action, allowed) in cases {
            for (who, is_allowed) in [&viewer, &operator, &agent, &join].into_iter().zip(allowed) {
                let outcome = may(who, action);
                assert_eq!(outcome.is_ok(), is_allowed, "{who}: {rule}");
            }
        }
    }

    #[test]
    fn a_token_has_a_name_and_an_end() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        let most = EXPIRES_MAX.as_secs();
        let cases = [
            ("a name", "ci", DAY_S, Ok(())),
            ("an address", "anna+web@example.com", DAY_S, Ok(())),
            ("the longest", &longest, DAY_S, Ok(())),
            ("one too many", &too_long, DAY_S, Err(AuthError::Name)),
            ("none", "", DAY_S, Err(AuthError::Name)),
            ("a path", "a/b", DAY_S, Err(AuthError::Name)),
            ("a line", "a\nb", DAY_S, Err(AuthError::Name)),
            ("an option", "-a", DAY_S, Err(AuthError::Name)),
            ("a second", "ci", 1, Ok(())),
            ("no end", "ci", 0, Err(AuthError::Expires)),
            ("400 days", "ci", most, Ok(())),
            ("a second more", "ci", most + 1, Err(AuthError::Expires)),
            ("for ever", "ci", u64::MAX, Err(AuthError::Expires)),
        ];
        for (rule, name, expires_s, expected) in cases {
            let made = TokenRecord::of_operator(&request(name, Role::Operator, expires_s), NOW);
            let end = NOW.after(Duration::from_secs(expires_s));
            assert!(made.as_ref().is_ok_and(|made| made.expires == Some(end)) || made.is_err());
            assert_eq!(made.map(|_| ()), expected, "{rule}");
        }
    }

    #[test]
    fn its_use_is_noted_once_an_hour() {
        let hour = USED_EVERY;
        let late = NOW.after(hour);
        let early = NOW.after(hour.saturating_sub(Duration::from_millis(1)));
        let cases = [
            ("never before", None, NOW, true),
            ("just now", Some(NOW), NOW, false),
            ("within the hour", Some(NOW), early, false),
            ("after an hour", Some(NOW), late, true),
            ("the clock stepped back", Some(late), NOW, false),
        ];
        for (rule, used, now, is_noted) in cases {
            let record = TokenRecord { used, ..agent() };
            let expected = is_noted.then(|| TokenRecord { used: Some(now), ..agent() });
            assert_eq!(record.touched(now), expected, "{rule}");
        }
    }

    #[test]
    fn a_join_secret_does_not_take_the_place_of_an_instance() {
        let (group, instance) = names();
        let (old, new) = (secret(Kind::Agent, 1), secret(Kind::Agent, 2));
        let named = AgentRecord { version: VERSION, sha256: old.hash() };
        let named = entry(&agent_key(&group, &instance), &named, 5);
        let unused = entry(&old.token_key(), &agent(), 6);
        let used = entry(&old.token_key(), &agent().touched(NOW).unwrap(), 7);
        assert_eq!(token_key_of(&named).unwrap(), old.token_key());
        let admit = |named, token| admit(&new, (&group, &instance), named, token, NOW);
        let compared = |commit: &Commit| {
            let versions = commit.compares.iter().map(|compare| compare.version);
            versions.collect::<Vec<_>>()
        };

        let first = admit(None, None).unwrap();
        assert_eq!(compared(&first), [None], "two at once: one of them");
        assert_eq!(first.writes.len(), 2);
        let again = admit(Some(&named), Some(&unused)).unwrap();
        assert_eq!(compared(&again), [Some(5), Some(6)], "its first use is seen");
        assert!(
            again.writes.contains(&Write::Delete { key: old.token_key() }),
            "the answer was lost"
        );
        let outcome = admit(Some(&named), Some(&used));
        assert_eq!(outcome, Err(AuthError::Joined { instance: instance.clone() }));
        let revoked = admit(Some(&named), None).unwrap();
        assert_eq!(compared(&revoked), [Some(5)]);

        // What was written is what is checked.
        let token = first.writes.iter().find_map(|write| match write {
            Write::Put { key, value } if *key == new.token_key() => Some(value.clone()),
            _ => None,
        });
        let token = Entry { key: new.token_key(), value: token.unwrap(), version: 1 };
        assert_eq!(check(&new, &[token], NOW), Ok(Identity::Agent { group, instance }));
        let gone: Vec<_> = dismiss(&named).unwrap();
        assert_eq!(gone, [old.token_key(), named.key].map(|key| Write::Delete { key }));
    }

    #[test]
    fn old_records_keep_parsing_and_are_shown() {
        let token =
            r#"{"version":1,"operator":{"name":"ci","role":"operator"},"created":1,"expires":2}"#;
        let agent = r#"{"version":1,"agent":{"group":"web","instance":"i-1"},"created":1,"used":3,"later":1}"#;
        let parse = |text| serde_json::from_str::<TokenRecord>(text).unwrap();
        let key = secret(Kind::Operator, 1).token_key();
        let shown = parse(token).view(&key);
        assert_eq!((shown.name.as_str(), shown.role), ("ci", Some(Role::Operator)));
        assert_eq!((shown.created, shown.expires), (Timestamp(1), Some(Timestamp(2))));
        assert_eq!(shown.id, secret(Kind::Operator, 1).id());
        assert!(key.starts_with(&format!("{TOKENS}{}", shown.id)), "it is found by its id");
        let shown = parse(agent).view(&key);
        assert_eq!((shown.agent.as_deref(), shown.used), (Some("web/i-1"), Some(Timestamp(3))));
        let text = String::from_utf8(json(&parse(token))).unwrap();
        assert_eq!(text, token);
    }
}
