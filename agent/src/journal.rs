//! The journal: what an agent must still know after it was killed, as one small document.
//!
//! Only the machine changes it, and the shell writes it down durably (`release::state`) before it
//! performs what follows. It holds no wishes: a swap stands in it from before `current` is touched
//! until the outcome is known, so that the next run resumes or restores it.
//!
//! PURE: no clock, no I/O.

use std::fmt;

use serde::{Deserialize, Serialize};
use towline_protocol::ids::{IdError, Instance, Order, Revision};
use towline_protocol::poll::Duty;
use towline_protocol::report::Orders;
use towline_protocol::target::Target;

/// The version that this code writes and the newest that it reads.
pub const VERSION: u32 = 1;

/// Where a run's number stands in its messages' numbers; below it they are counted.
pub const RUN_SHIFT: u32 = 32;

/// How many proven and how many rejected revisions are remembered; older ones are forgotten.
/// Releases are pruned at a lower number, so that this loses nothing that could be used.
const REMEMBERED_MAX: usize = 32;

/// The word for what was adopted, in documents and logs.
const ADOPTED: &str = "adopted";

/// What can be live on an instance. In documents: a revision, or `adopted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Release {
    /// A release of the agent's own, by its revision.
    Own(Revision),
    /// What served here before the agent came. It lies outside of the releases, follows no reload, and
    /// is left and taken up by a full restart.
    Adopted,
}

impl Release {
    /// Returns the revision of one of our own.
    #[must_use]
    pub fn own(&self) -> Option<&Revision> {
        match self {
            Release::Own(revision) => Some(revision),
            Release::Adopted => None,
        }
    }

    /// Is it this revision's?
    #[must_use]
    pub fn is(&self, revision: &Revision) -> bool {
        self.own() == Some(revision)
    }

    /// Returns what people are told of it.
    #[must_use]
    pub fn short(&self) -> &str {
        self.own().map_or("the adopted release", Revision::short)
    }
}

impl From<Revision> for Release {
    fn from(revision: Revision) -> Self {
        Release::Own(revision)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.own().map_or(ADOPTED, Revision::as_str))
    }
}

impl From<Release> for String {
    fn from(release: Release) -> Self {
        release.to_string()
    }
}

impl TryFrom<String> for Release {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        if text == ADOPTED { Ok(Release::Adopted) } else { text.parse().map(Release::Own) }
    }
}

/// What survives a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The version of this document; see [`VERSION`].
    pub version: u32,
    /// The instance that wrote it. An image may carry another instance's journal.
    pub instance: Instance,
    /// The highest target that was accepted: the high-water mark, and what a boot without its
    /// source goes by.
    pub target: Option<Target>,
    /// The restart counter that is satisfied.
    pub restart: u64,
    /// Revisions that were served here through their whole health window, newest last.
    pub proven: Vec<Revision>,
    /// Revisions that failed here after their swap, newest last.
    pub rejected: Vec<Rejected>,
    /// The swap that has begun and whose outcome is not known.
    pub swap: Option<Swap>,
    /// Was anything ever proven here?
    #[serde(default)]
    pub has_proven: bool,
    /// Has an adopted release served here?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// What else the source said with the target; `None`: to take it at once, as a file does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<Heard>,
    /// The orders to this instance that were carried out.
    #[serde(default, skip_serializing_if = "Orders::is_none")]
    pub orders: Orders,
    /// The number of the question whose leave was used, until something proven is healthy again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<u64>,
    /// The number of the agent's newest run that has sent messages; see [`RUN_SHIFT`].
    #[serde(default)]
    pub run: u64,
}

/// What of the source's last word is still good when it cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// What to do about the target where something serves.
    #[serde(default)]
    pub duty: Duty,
    /// What to serve where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Revision>,
}

/// A revision that failed after its swap; keyed by its place in the order, so that a later
/// generation may try it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The target that it was applied for.
    #[serde(flatten)]
    pub order: Order,
    /// What failed.
    pub revision: Release,
    /// Why, in one line.
    pub detail: String,
}

/// A swap that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The target that it serves.
    #[serde(flatten)]
    pub order: Order,
    /// The release that is made live.
    pub to: Release,
    /// What to go back to: what served before, or the newest proven where that was not; `None` on a boot.
    pub from: Option<Release>,
    /// Why `to` failed, once it has: from then on `from` is being made live again.
    pub failed: Option<String>,
    /// The restart counter that is satisfied when it succeeds.
    pub restart: u64,
    /// The order to this instance that is carried out when it ends; see `Orders::restart`.
    #[serde(default)]
    pub ordered: u64,
    /// How often a new run of the agent has found it unfinished.
    pub resumes: u32,
}

impl Swap {
    /// Is one of the two the adopted release? Neither of them then follows a reload to the other.
    #[must_use]
    pub fn is_of_adopted(&self) -> bool {
        [Some(&self.to), self.from.as_ref()].contains(&Some(&Release::Adopted))
    }
}

impl Journal {
    /// Returns the journal of an instance that has done nothing yet.
    #[must_use]
    pub fn new(instance: Instance) -> Self {
        Self {
            version: VERSION,
            instance,
            target: None,
            restart: 0,
            proven: Vec::new(),
            rejected: Vec::new(),
            swap: None,
            has_proven: false,
            adopted: false,
            word: None,
            orders: Orders::default(),
            leave: None,
            run: 0,
        }
    }

    /// Takes over what another instance's journal, found in the image, is still good for.
    ///
    /// The high-water mark stays, so that an image cannot lead back; what was proven or rejected
    /// elsewhere says nothing about this instance.
    #[must_use]
    pub fn adopt(self, instance: Instance) -> Self {
        if self.instance == instance {
            return self;
        }
        let Self { target, restart, word, .. } = self;
        Self { target, restart, word, ..Journal::new(instance) }
    }

    /// Is `revision` proven here?
    #[must_use]
    pub fn is_proven(&self, revision: &Revision) -> bool {
        self.proven.contains(revision)
    }

    /// Has `release` served here through its whole window?
    #[must_use]
    pub fn is_known(&self, release: &Release) -> bool {
        release.own().map_or(self.adopted, |revision| self.is_proven(revision))
    }

    /// Returns why `release` failed for the target at `order`, if it did.
    #[must_use]
    pub fn rejection(&self, order: Order, release: &Release) -> Option<&str> {
        let same = |r: &&Rejected| r.order == order && r.revision == *release;
        self.rejected.iter().rev().find(same).map(|rejected| rejected.detail.as_str())
    }

    /// Forgets what failed for the target at `order`.
    pub fn forgive(&mut self, order: Order) {
        self.rejected.retain(|rejected| rejected.order != order);
    }

    /// Notes that `release` was served through its whole window.
    pub fn prove(&mut self, release: &Release) {
        let Release::Own(revision) = release else {
            self.adopted = true;
            return;
        };
        self.has_proven = true;
        self.proven.retain(|proven| proven != revision);
        self.proven.push(revision.clone());
        let surplus = self.proven.len().saturating_sub(REMEMBERED_MAX);
        self.proven.drain(..surplus);
    }

    /// Notes that `release` is good, whatever was noted against it before.
    pub fn accept(&mut self, release: &Release) {
        self.rejected.retain(|rejected| rejected.revision != *release);
        self.prove(release);
    }

    /// Notes that `release` failed after its swap.
    pub fn reject(&mut self, order: Order, release: Release, detail: String) {
        self.proven.retain(|proven| !release.is(proven));
        self.rejected.push(Rejected { order, revision: release, detail });
        let surplus = self.rejected.len().saturating_sub(REMEMBERED_MAX);
        self.rejected.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(digit: char) -> Revision {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn own(digit: char) -> Release {
        Release::Own(revision(digit))
    }

    #[test]
    fn another_instances_journal_keeps_only_the_order() {
        let mut journal = Journal::new("i-image".parse().unwrap());
        journal.prove(&own('a'));
        journal.target = Some(Target {
            version: 1,
            group: "web".parse().unwrap(),
            order: Order { epoch: 1, generation: 7 },
            revision: Some(revision('a')),
            not: None,
            fallback: None,
            quarantine: Vec::new(),
            restart: 3,
        });
        journal.restart = 3;
        journal.word = Some(Heard { duty: Duty::Hold, boot: None });
        journal.run = 9;
        let order = Order { epoch: 1, generation: 7 };
        journal.reject(order, own('b'), "503".to_owned());
        journal.swap = Some(Swap {
            order,
            to: own('c'),
            from: Some(own('a')),
            failed: None,
            restart: 3,
            ordered: 0,
            resumes: 0,
        });

        let own = journal.clone().adopt("i-image".parse().unwrap());
        assert_eq!(own, journal, "its own journal is kept whole");
        let adopted = journal.clone().adopt("i-new".parse().unwrap());
        assert_eq!(adopted.target, journal.target, "the high-water mark stays");
        let new = Journal::new("i-new".parse().unwrap());
        let word = journal.word;
        assert_eq!(adopted, Journal { target: journal.target, restart: 3, word, ..new });
    }

    #[test]
    fn a_rejection_holds_for_its_generation_only() {
        let mut journal = Journal::new("i-1".parse().unwrap());
        let order = |generation| Order { epoch: 1, generation };
        journal.prove(&own('a'));
        journal.reject(order(1), own('a'), "503".to_owned());
        assert_eq!(journal.rejection(order(1), &own('a')), Some("503"));
        assert_eq!(journal.rejection(order(2), &own('a')), None);
        assert!(!journal.is_proven(&revision('a')), "what failed is proven no more");
        journal.reject(order(1), own('a'), "504".to_owned());
        assert_eq!(journal.rejection(order(1), &own('a')), Some("504"), "the newest counts");
    }

    #[test]
    fn a_journal_of_this_version_can_be_read() {
        let written = serde_json::json!({
            "version": 1, "instance": "i-1", "target": null, "restart": 2,
            "proven": ["a".repeat(40)],
            "rejected": [{ "epoch": 1, "generation": 2, "revision": "b".repeat(40), "detail": "503" }],
            "swap": {
                "epoch": 1, "generation": 3, "to": "c".repeat(40), "from": "a".repeat(40),
                "failed": null, "restart": 2, "ordered": 4, "resumes": 1,
            },
            "has_proven": true, "word": { "duty": "prepare", "boot": "d".repeat(40) },
            "orders": { "restart": 3, "retry": 1 }, "leave": 7, "run": 1_790_000_000,
        });
        let journal: Journal = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(journal.version, VERSION);
        assert_eq!(serde_json::to_value(&journal).unwrap(), written);
    }

    #[test]
    fn a_journal_of_an_agent_that_knew_files_only_can_be_read() {
        let written = serde_json::json!({
            "version": 1, "instance": "i-1", "restart": 2, "proven": ["a".repeat(40)],
            "target": {
                "version": 1, "group": "web", "epoch": 1, "generation": 3,
                "revision": "c".repeat(40), "fallback": null, "restart": 2,
            },
            "rejected": [{ "epoch": 1, "generation": 2, "revision": "b".repeat(40), "detail": "503" }],
            "swap": {
                "epoch": 1, "generation": 3, "to": "c".repeat(40), "from": "a".repeat(40),
                "failed": null, "restart": 2, "resumes": 1,
            },
        });
        let journal: Journal = serde_json::from_value(written).unwrap();
        assert_eq!(journal.target.unwrap().revision, Some(revision('c')));
        assert_eq!((journal.word, journal.leave, journal.run), (None, None, 0));
        assert_eq!(journal.swap.unwrap().ordered, 0);
    }

    #[test]
    fn a_swap_from_what_was_adopted_is_written_by_its_word() {
        let written = serde_json::json!({
            "version": 1, "instance": "i-1", "target": null, "restart": 0, "proven": [],
            "rejected": [{ "epoch": 1, "generation": 2, "revision": "adopted", "detail": "503" }],
            "swap": {
                "epoch": 1, "generation": 3, "to": "c".repeat(40), "from": "adopted",
                "failed": null, "restart": 0, "ordered": 0, "resumes": 0,
            },
            "has_proven": false, "adopted": true, "run": 0,
        });
        let journal: Journal = serde_json::from_value(written.clone()).unwrap();
        assert!(journal.swap.as_ref().is_some_and(Swap::is_of_adopted));
        assert!(journal.is_known(&Release::Adopted) && !journal.is_known(&own('c')));
        assert_eq!(serde_json::to_value(&journal).unwrap(), written);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut journal = Journal::new("i-1".parse().unwrap());
        for number in 0..100 {
            let release = Release::Own(format!("{number:040x}").parse().unwrap());
            journal.prove(&release);
            journal.reject(Order { epoch: 1, generation: number }, release, String::new());
            journal.prove(&Release::Own(format!("{:040x}", number + 1000).parse().unwrap()));
        }
        assert_eq!((journal.proven.len(), journal.rejected.len()), (32, 32));
        let number = |number: u64| -> Revision { format!("{number:040x}").parse().unwrap() };
        assert_eq!(journal.proven.last(), Some(&number(1099)), "the newest are kept");
        assert_eq!(journal.rejected.last().map(|last| &last.revision), Some(&number(99).into()));
        journal.prove(&number(1080).into());
        assert_eq!(journal.proven.last(), Some(&number(1080)), "proven again is the newest");
        let same = journal.proven.iter().filter(|proven| **proven == number(1080));
        assert_eq!(same.count(), 1, "and is there once");
    }
}
