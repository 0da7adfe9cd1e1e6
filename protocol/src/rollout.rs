//! A rollout as it is stored: what it takes the group to, its batches, and how it stands.
//!
//! ```text
//!            pause                          resume
//!   Running ◄──────► Paused     Halted ──────────────► Running
//!      │ the last gate passed      ▲  │ abort, or a new release
//!      ├──► Ended(converged)       │  └──► Ended(aborted | replaced)
//!      ├──► Ended(aborted): the next generation goes back
//!      └───────────────────────────┘ the gate failed, or nothing moved
//! ```
//!
//! Times within a rollout are counted on its own two clocks, in milliseconds: one for bake times, one for
//! deadlines. Both stand still while the rollout is not running and while no coordinator is there; the one
//! for deadlines also for a lease after a coordinator has come back. No step of the clock on the wall
//! touches them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Group, Instance, Order, Revision};
use crate::policy::Policy;
use crate::target::Target;
use crate::time::Timestamp;

/// The version of the records that this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// How many of a rollout's decisions are kept with it; the oldest of them and the newest.
pub const DECISIONS_MAX: usize = 200;

/// What kind of change a rollout brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A new revision, or an old one released again: canary, batches, bake times.
    Release,
    /// Back to what was good: one batch, no bake, its own budget. Nothing rolls it back.
    Rollback,
    /// The same revision, started anew: batches as for a release. Nothing rolls it back.
    Restart,
}

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It goes on by itself.
    Running,
    /// An operator stopped it for now.
    Paused,
    /// The gate stopped it; it needs an operator.
    Halted,
    /// Its last gate passed.
    Converged,
    /// It was ended before that, and the next generation goes back.
    Aborted,
    /// Another one took its place.
    Replaced,
}

impl State {
    /// Is it over?
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, State::Converged | State::Aborted | State::Replaced)
    }

    /// Returns the word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Halted => "halted",
            State::Converged => "converged",
            State::Aborted => "aborted",
            State::Replaced => "replaced",
        }
    }
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// See [`VERSION`].
    pub version: u32,
    /// What it takes the group to.
    pub target: Target,
    /// What kind of change it is.
    pub kind: Kind,
    /// Is the target's revision group-proven already?
    pub is_proven: bool,
    /// The group's policy when it began.
    pub policy: Policy,
    /// Who began it.
    pub by: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// How it stands.
    pub state: State,
    /// Why it stands so, in words.
    pub reason: String,
    /// Only these take part, until it is resumed; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Selector>,
    /// These take no part until they poll again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<Instance>,
    /// The batches so far: passed ones, the open one, and the one that is offered.
    #[serde(default)]
    pub batches: Vec<Batch>,
    /// Who failed, and why. They stay counted after they are gone.
    #[serde(default)]
    pub failures: BTreeMap<Instance, Failed>,
    /// What the gate found against the revision when it halted the rollout: unless it is resumed, the
    /// revision goes into quarantine when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub culprit: Option<String>,
    /// Who was silent when its batch opened: taken up when it comes back.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aside: BTreeSet<Instance>,
    /// When it last moved, on the clock of deadlines.
    #[serde(default)]
    pub progressed_ms: u64,
    /// Of how many of the open batch nothing more was waited for, when it had come furthest.
    #[serde(default)]
    pub taken: u32,
    /// How many instances had served its revision when it was ended before its time; `None`: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<u32>,
    /// The revision that a way back leaves, also while what it led to is restarted; `None`: this is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Revision>,
    /// What was decided, oldest first.
    #[serde(default)]
    pub decisions: Vec<Decided>,
}

impl Rollout {
    /// Whose rollout it is.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.target.group
    }

    /// Its place in the order of targets.
    #[must_use]
    pub fn order(&self) -> Order {
        self.target.order
    }

    /// The revision that it takes the group to; `None` for a way back without a fallback.
    #[must_use]
    pub fn revision(&self) -> Option<&Revision> {
        self.target.revision.as_ref()
    }

    /// Notes a decision; the middle of a long story is left out.
    pub fn note(&mut self, at: Timestamp, text: String) {
        if self.decisions.len() >= DECISIONS_MAX {
            self.decisions.remove(DECISIONS_MAX / 2);
        }
        self.decisions.push(Decided { at, text });
    }
}

/// The instances to which a target is opened together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// What it is called: `canary`, `10 %`, `rollback`.
    pub name: String,
    /// Which share of the policy it is: 0 is the canary, 1 the first of `batches`.
    #[serde(default)]
    pub share_index: u32,
    /// Who is in it.
    pub members: BTreeSet<Instance>,
    /// When it was opened, on the clock of deadlines; `None`: it is offered, to prepare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_ms: Option<u64>,
    /// Since when all of it is healthy, on the clock of bake times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bakes_ms: Option<u64>,
    /// Has an operator skipped the rest of its bake time?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_promoted: bool,
    /// When its gate passed, on the clock of bake times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_ms: Option<u64>,
}

impl Batch {
    /// May its members swap, as far as the batch goes?
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened_ms.is_some()
    }
}

/// An instance's failure in a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The batch, by its place among the batches.
    pub batch_index: u32,
    /// When it was counted.
    pub at: Timestamp,
    /// Why, in one line.
    pub detail: String,
    /// Does it say something against the revision: did it fail after the swap?
    pub is_revision: bool,
    /// Has an operator resumed the rollout in spite of it? Then it counts no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_excused: bool,
}

/// A rollout's clocks, as they are stored from time to time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Whose they are: the generation of the rollout.
    pub generation: u64,
    /// For how long it has run.
    pub bake_ms: u64,
    /// For how long its deadlines have.
    pub deadline_ms: u64,
}

/// A decision, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// When.
    pub at: Timestamp,
    /// What, in one line.
    pub text: String,
}

/// Which instances: names, or beginnings of names that end in `*`, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(String);

impl Selector {
    /// The most bytes that one may have.
    pub const BYTES_MAX: usize = 4096;

    /// Does it name this instance?
    #[must_use]
    pub fn has(&self, instance: &Instance) -> bool {
        self.parts().any(|part| Self::is_of(part, instance))
    }

    /// Returns its parts: names, and beginnings that end in `*`.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split(',')
    }

    /// Does one of its parts name this instance?
    #[must_use]
    pub fn is_of(part: &str, instance: &Instance) -> bool {
        match part.strip_suffix('*') {
            Some(beginning) => instance.as_str().starts_with(beginning),
            None => part == instance.as_str(),
        }
    }

    /// Returns it as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_part = |part: &str| {
            let name = part.strip_suffix('*').unwrap_or(part);
            (part.ends_with('*') && name.is_empty()) || name.parse::<Instance>().is_ok()
        };
        if text.len() <= Self::BYTES_MAX && text.split(',').all(is_part) {
            return Ok(Self(text));
        }
        Err("a selector is a list of instances, such as i-0a17,i-0b*".to_owned())
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_rollout_keeps_parsing() {
        let golden = include_str!("../golden/rollout-1.json");
        let rollout: Rollout = serde_json::from_str(golden).unwrap();
        assert_eq!((rollout.kind, rollout.state), (Kind::Release, State::Running));
        assert_eq!(rollout.order().generation, 118);
        assert_eq!(rollout.batches.len(), 2);
        assert!(rollout.batches[0].is_open() && !rollout.batches[1].is_open());
        assert_eq!((rollout.reached, &rollout.left), (None, &None));
        let again = serde_json::to_string(&rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&again).unwrap(), rollout);
        let golden = include_str!("../golden/rollout-1-back.json");
        let back: Rollout = serde_json::from_str(golden).unwrap();
        assert_eq!((back.kind, back.reached), (Kind::Rollback, Some(2)));
        assert_eq!(back.left.as_ref().map(Revision::short), Some("4f2c91e"));
        let again = serde_json::to_value(&back).unwrap();
        let said = serde_json::from_str::<serde_json::Value>(golden).unwrap();
        assert_eq!((&again["left"], &again["reached"]), (&said["left"], &said["reached"]));
    }

    #[test]
    fn selectors_name_instances() {
        let select = |text: &str| Selector::try_from(text.to_owned());
        let own: Instance = "i-0a17".parse().unwrap();
        for (text, expected) in [
            ("i-0a17", true),
            ("i-0a1", false),
            ("i-0a*", true),
            ("i-0b*,i-0a17", true),
            ("*", true),
            ("i-0b*", false),
        ] {
            assert_eq!(select(text).unwrap().has(&own), expected, "{text}");
        }
        for text in ["", "i-0a17,", "a b", "../x", "**", "i-*-x"] {
            assert!(select(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let golden = include_str!("../golden/rollout-1.json");
        let mut rollout: Rollout = serde_json::from_str(golden).unwrap();
        for number in 0..1000 {
            rollout.note(Timestamp(number), number.to_string());
        }
        assert_eq!(rollout.decisions.len(), DECISIONS_MAX);
        assert_eq!(rollout.decisions.last().unwrap().text, "999");
        assert_eq!(rollout.decisions[0].text, "canary opened: i-0a17");
    }
}
