//! Groups, instances and permits as they are stored.

use serde::{Deserialize, Serialize};

use crate::ids::{Group, Instance, Order, Revision};
use crate::policy::Policy;
use crate::report::{Orders, Report};
use crate::target::Target;
use crate::time::Timestamp;

/// The version of the records that this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// How many group-proven revisions are remembered.
pub const PROVEN_MAX: usize = 50;

/// How many commits a group's quarantine holds: what is in it is never lifted by itself, so that a group whose
/// quarantine is full releases nothing until an operator lifts some.
pub const QUARANTINE_MAX: usize = 500;

/// How many of those its targets name, the newest: older ones are on no instance any more.
pub const QUARANTINE_TOLD_MAX: usize = 100;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Its name.
    pub group: Group,
    /// How it takes its rollouts.
    pub policy: Policy,
    /// Commits that are refused until an operator lifts them.
    #[serde(default)]
    pub quarantine: Vec<Quarantined>,
    /// The revisions of rollouts that converged, newest last.
    #[serde(default)]
    pub proven: Vec<Revision>,
    /// Newborns that failed on what they were to boot, newest last.
    #[serde(default)]
    pub boot_failures: Vec<BootFailure>,
    /// A group-proven revision that newborns cannot boot: they get the fallback meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unbootable: Option<Revision>,
    /// The highest restart counter that any of its targets had.
    #[serde(default)]
    pub restarts: u64,
}

impl GroupRecord {
    /// Returns a group that has done nothing yet.
    #[must_use]
    pub fn new(group: Group, policy: Policy) -> Self {
        Self {
            version: VERSION,
            group,
            policy,
            quarantine: Vec::new(),
            proven: Vec::new(),
            boot_failures: Vec::new(),
            unbootable: None,
            restarts: 0,
        }
    }

    /// Is this revision in quarantine?
    #[must_use]
    pub fn is_quarantined(&self, revision: &Revision) -> bool {
        self.quarantine.iter().any(|quarantined| quarantined.revision == *revision)
    }

    /// Returns the revisions in quarantine that a target names.
    #[must_use]
    pub fn quarantine_told(&self) -> Vec<Revision> {
        let surplus = self.quarantine.len().saturating_sub(QUARANTINE_TOLD_MAX);
        let newest = self.quarantine[surplus..].iter();
        newest.map(|quarantined| quarantined.revision.clone()).collect()
    }

    /// Is it group-proven?
    #[must_use]
    pub fn is_proven(&self, revision: &Revision) -> bool {
        self.proven.contains(revision)
    }

    /// Returns the newest group-proven revision other than `revision`, not in quarantine.
    #[must_use]
    pub fn fallback(&self, revision: Option<&Revision>) -> Option<&Revision> {
        let is_other =
            |proven: &&Revision| Some(*proven) != revision && !self.is_quarantined(proven);
        self.proven.iter().rev().find(is_other)
    }

    /// Notes that a rollout to `revision` converged.
    pub fn prove(&mut self, revision: &Revision) {
        self.proven.retain(|proven| proven != revision);
        self.proven.push(revision.clone());
        let surplus = self.proven.len().saturating_sub(PROVEN_MAX);
        self.proven.drain(..surplus);
    }
}

/// A commit in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The commit.
    pub revision: Revision,
    /// Since when.
    pub since: Timestamp,
    /// Why, in one line.
    pub reason: String,
}

/// A newborn that failed on what it was to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// The newborn.
    pub instance: Instance,
    /// The revision that it failed on.
    pub revision: Revision,
    /// When it told.
    pub at: Timestamp,
}

/// A group's target, and how it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The document that agents get.
    pub target: Target,
    /// When it was written.
    pub at: Timestamp,
    /// Who asked for it.
    pub by: String,
    /// What it is, in one line: `release`, `rollback of 118`.
    pub note: String,
}

/// How far a group had come that was removed: one of its name that is made anew goes on from there, because
/// agents refuse what is lower than they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The order of its last target.
    #[serde(flatten)]
    pub order: Order,
    /// Its highest restart counter.
    #[serde(default)]
    pub restarts: u64,
}

/// The open permits of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitCount {
    /// How many there are.
    pub open: u32,
    /// The id of the next one.
    pub next: u64,
}

/// Leave to swap, as it is stored: one instance's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// Its id within the group.
    pub id: u64,
    /// Who holds it.
    pub instance: Instance,
    /// The target that it is for.
    #[serde(flatten)]
    pub order: Order,
    /// The number of the question that it answers.
    pub seq: u64,
    /// When it was given.
    pub given: Timestamp,
    /// When it was given, on the deadlines' clock of the rollout at `order`; `None` outside of a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_ms: Option<u64>,
}

/// An instance, as it last told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Its name.
    pub instance: Instance,
    /// Its group.
    pub group: Group,
    /// When it was first heard of.
    pub joined: Timestamp,
    /// When it was last heard of; coarse.
    pub seen: Timestamp,
    /// The number of the newest message that was taken up.
    pub seq: u64,
    /// What it told last; `None`: it has only polled so far.
    #[serde(default)]
    pub report: Option<Report>,
    /// When that became true on the instance, as far as its age told.
    #[serde(default)]
    pub reported: Timestamp,
    /// Since when it serves what it serves, in this health.
    #[serde(default)]
    pub since: Timestamp,
    /// How its last step went, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The orders that it was given.
    #[serde(default, skip_serializing_if = "Orders::is_none")]
    pub orders: Orders,
    /// When it left, where it has: it counts nowhere, and is remembered for a while so that a message that
    /// comes late does not bring it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(digit: char) -> Revision {
        digit.to_string().repeat(40).parse().unwrap()
    }

    #[test]
    fn the_golden_records_keep_parsing() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../golden/records-1.json")).unwrap();
        let group: GroupRecord = serde_json::from_value(golden["group"].clone()).unwrap();
        assert!(group.is_quarantined(&"4f2c91e0".repeat(5).parse().unwrap()));
        let target: TargetRecord = serde_json::from_value(golden["target"].clone()).unwrap();
        assert_eq!(target.target.order.generation, 119);
        let count: PermitCount = serde_json::from_value(golden["permits"].clone()).unwrap();
        assert_eq!(count, PermitCount { open: 1, next: 18 });
        let permit: Permit = serde_json::from_value(golden["permit"].clone()).unwrap();
        assert_eq!((permit.id, permit.order.generation), (17, 118));
        let instance: InstanceRecord = serde_json::from_value(golden["instance"].clone()).unwrap();
        assert_eq!(instance.report.unwrap().instance, instance.instance);
    }

    #[test]
    fn the_fallback_is_the_newest_proven_other_one_that_is_not_quarantined() {
        let mut group = GroupRecord::new("web".parse().unwrap(), Policy::default());
        assert_eq!(group.fallback(None), None);
        for digit in ['a', 'b', 'c', 'a'] {
            group.prove(&revision(digit));
        }
        assert_eq!(group.fallback(Some(&revision('d'))), Some(&revision('a')), "proven again");
        assert_eq!(group.fallback(Some(&revision('a'))), Some(&revision('c')));
        let reason = "503".to_owned();
        group.quarantine.push(Quarantined { revision: revision('c'), since: Timestamp(0), reason });
        assert_eq!(group.fallback(Some(&revision('a'))), Some(&revision('b')));
        for number in 0..100 {
            group.prove(&format!("{number:040x}").parse().unwrap());
        }
        assert_eq!(group.proven.len(), PROVEN_MAX);
    }
}
