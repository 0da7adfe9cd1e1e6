//! What agents and coordinators say to each other: the poll and its answer, the question for leave
//! to swap, the report on its way, joining and the goodbye.
//!
//! ```text
//!   agent                                   coordinator
//!     poll { seen } ────────────── parked ──►  answered when the answer differs from `seen`
//!     ◄──────────────────────────── Answer     (204 after `wait_s`: it does not)
//!     question ─────────────────────────────►  permitted, or not: at once
//!     message { report, age } ──────────────►  stored, then acknowledged
//!     goodbye ──────────────────────────────►  leaves the counts
//! ```
//!
//! A field that one side does not know is ignored; a word that it does not know is the most careful one.
//!
//! Every message carries `seq`, which grows with each message of an instance and is never used twice, also
//! across restarts of its agent. So whoever reads can tell a late or repeated message from news, and a
//! permit from a report that was made before it.

use serde::{Deserialize, Serialize};

use crate::ids::{Group, Instance, Order, Revision};
use crate::report::{Orders, Report};
use crate::target::Target;

/// The version that this code writes.
pub const VERSION: u32 = 1;

/// How long a poll is held without news, in seconds: load balancers cut at 60.
pub const WAIT_S: u32 = 50;

/// The longest that a server may have a poll held, in seconds.
pub const WAIT_S_MAX: u32 = 600;

/// How long a permit is valid from the moment at which the question was sent, in seconds.
pub const PERMIT_VALID_S: u32 = 30;

/// How often a proven release is probed, in seconds; and while its batch bakes.
pub const PROBE_EVERY_S: u32 = 60;
/// See [`PROBE_EVERY_S`].
pub const PROBE_EVERY_BAKING_S: u32 = 5;

/// The most bytes that a failure's log may have on the wire.
pub const LOG_BYTES_MAX: usize = 32 * 1024;

/// Returns how long after its last poll an instance counts as there, in seconds: two polls, and half a
/// minute for an agent to come back.
#[must_use]
pub fn lease_s(wait_s: u32) -> u32 {
    wait_s.saturating_mul(2).saturating_add(30)
}

/// An agent's poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose instance it is.
    pub group: Group,
    /// The instance that asks.
    pub instance: Instance,
    /// This message's number; see the module.
    pub seq: u64,
    /// The `id` of the last answer; `None` where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    /// Where the agent holds a report that no coordinator has acknowledged: a number that messages with it
    /// have, or exceed. Until one arrives, what was told before is out of date, and nothing may be
    /// concluded from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsaid: Option<u64>,
}

/// A poll's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// See [`VERSION`].
    pub version: u32,
    /// Names this answer; opaque. The next poll carries it back.
    pub id: String,
    /// How long a poll may hang, in seconds: what the agent's own deadline goes by.
    pub wait_s: u32,
    /// What this instance is told.
    #[serde(flatten)]
    pub word: Word,
}

/// What an instance is told. All that are told the same get the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The group's target; `None` where it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What to do about it where something serves.
    #[serde(default)]
    pub duty: Duty,
    /// What to serve where nothing does; `None`: the baked release, or the target where none is baked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Revision>,
    /// Changes when it is worth asking again after a no.
    #[serde(default)]
    pub ask: u64,
    /// How often to probe what serves, in seconds.
    #[serde(default = "probe_every_s")]
    pub probe_every_s: u32,
    /// Orders to this one instance, by their numbers.
    #[serde(default, skip_serializing_if = "Orders::is_none")]
    pub orders: Orders,
}

fn probe_every_s() -> u32 {
    PROBE_EVERY_S
}

impl Word {
    /// Returns the word of a source that has no batches and no budget: take the target at once.
    #[must_use]
    pub fn of_target(target: Target) -> Self {
        Self {
            boot: target.revision.clone(),
            target: Some(target),
            duty: Duty::Take,
            ask: 0,
            probe_every_s: PROBE_EVERY_S,
            orders: Orders::default(),
        }
    }
}

/// What an instance that serves is to do about the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "String")]
pub enum Duty {
    /// Nothing: keep what serves. Also whatever word this code does not know.
    #[default]
    Hold,
    /// Make it ready, and touch nothing live.
    Prepare,
    /// Make it ready, ask for a permit, and swap.
    Take,
}

impl From<String> for Duty {
    fn from(word: String) -> Self {
        match word.as_str() {
            "prepare" => Duty::Prepare,
            "take" => Duty::Take,
            _ => Duty::Hold,
        }
    }
}

/// A question for leave to swap. It renounces all earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose instance it is.
    pub group: Group,
    /// The instance that asks.
    pub instance: Instance,
    /// This message's number; see the module.
    pub seq: u64,
    /// The target that it would swap to.
    #[serde(flatten)]
    pub order: Order,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// See [`VERSION`].
    pub version: u32,
    /// The stored permit's id; `None`: no leave is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<u64>,
    /// How long it is valid, in seconds from the moment at which the question was sent.
    #[serde(default)]
    pub valid_s: u32,
    /// Why there is none, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A report on its way, kept by the agent until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// This message's number; see the module.
    pub seq: u64,
    /// How old what it tells is, in milliseconds, when it is sent.
    #[serde(default)]
    pub age_ms: u64,
    /// What the instance tells of itself.
    pub report: Report,
    /// How the last step went, in one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What was said at the moment of a failure; sent once with the report that tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<FailureLog>,
}

/// What commands and the app said when a deploy failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureLog {
    /// The revision that was tried.
    pub revision: Revision,
    /// What was found to be wrong, in one line.
    pub detail: String,
    /// The parts, in the order in which they were written.
    pub parts: Vec<LogPart>,
}

/// One part of a [`FailureLog`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Who said it: `install`, `build`, `before`, `reload`, `start`, `after`, `health`, `app`.
    pub source: String,
    /// The last lines; control characters are replaced.
    pub text: String,
}

/// An instance is shut down; it starts nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose instance it was.
    pub group: Group,
    /// The instance that goes.
    pub instance: Instance,
    /// This message's number; see the module.
    pub seq: u64,
}

/// A group's join secret, in exchange for an agent's own token; sent as the bearer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// See [`VERSION`].
    pub version: u32,
    /// The group to join.
    pub group: Group,
    /// The instance that joins.
    pub instance: Instance,
}

/// The answer to a [`Join`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The agent's own token; good for this instance in this group only.
    pub token: String,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Joined { token: … }")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_messages_keep_parsing() {
        let answer: Answer = serde_json::from_str(include_str!("../golden/answer-1.json")).unwrap();
        assert_eq!((answer.wait_s, answer.word.duty), (50, Duty::Take));
        assert_eq!(answer.word.target.clone().unwrap().order.generation, 118);
        assert_eq!(answer.word.boot.as_ref().map(Revision::short), Some("9b03d7a"));
        assert_eq!(answer.word.orders, Orders { restart: 3, retry: 0 });
        let again = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&again).unwrap(), answer);

        let least = include_str!("../golden/answer-1-least.json");
        let least: Answer = serde_json::from_str(least).unwrap();
        assert_eq!(least.word.duty, Duty::Hold, "what is not said, or not known, is to hold");
        assert_eq!(least.word.probe_every_s, PROBE_EVERY_S);

        let poll: Poll = serde_json::from_str(include_str!("../golden/poll-1.json")).unwrap();
        assert_eq!((poll.seq, poll.seen.as_deref()), (7_516_192_768_001, Some("118.take.4")));
        assert_eq!(poll.unsaid, None, "whoever does not say it has told all");
        let poll: Poll =
            serde_json::from_str(include_str!("../golden/poll-1-unsaid.json")).unwrap();
        assert_eq!(poll.unsaid, Some(7_516_192_767_990));
        let again = serde_json::to_value(&poll).unwrap();
        assert_eq!(again["unsaid"], 7_516_192_767_990_u64);
        let question = include_str!("../golden/question-1.json");
        let question: Question = serde_json::from_str(question).unwrap();
        assert_eq!(question.order.generation, 118);
        let yes = include_str!("../golden/permission-1.json");
        let yes: Permission = serde_json::from_str(yes).unwrap();
        assert_eq!((yes.permit, yes.valid_s), (Some(17), 30));
        let message = include_str!("../golden/message-1.json");
        let message: Message = serde_json::from_str(message).unwrap();
        assert_eq!(message.age_ms, 1_250);
        assert!(message.report.rejected && !message.report.uses_permit);
        assert_eq!(message.log.clone().unwrap().parts[0].source, "app");
        let again = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&again).unwrap(), message);
    }

    #[test]
    fn the_lease_covers_two_polls() {
        assert_eq!(lease_s(WAIT_S), 130);
        assert_eq!(lease_s(u32::MAX), u32::MAX);
    }

    #[test]
    fn a_token_is_not_shown() {
        let joined = Joined { token: "tla_secret".to_owned() };
        assert!(!format!("{joined:?}").contains("secret"));
    }
}
