//! The model store: versions, compare-and-swap, all or nothing, changes in their order; in memory, and
//! never down.

use std::collections::BTreeMap;

use towline_coordinator::records::{GroupState, Records};
use towline_coordinator::store::{
    Change, Commit, Entry, OPERATIONS_MAX, Outcome, VALUE_BYTES_MAX, Version, Write,
};

use super::group;

/// What is stored, and every change that led there.
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: BTreeMap<String, (Vec<u8>, Version)>,
    version: Version,
    changes: Vec<Change>,
    /// What is stored, as a coordinator that is never behind would have it.
    truth: Records,
}

impl Store {
    /// Carries a commit out, if what it compares holds.
    ///
    /// # Errors
    ///
    /// A commit that no store would take.
    pub(super) fn commit(&mut self, commit: Commit) -> Result<Outcome, String> {
        let operations = commit.compares.len() + commit.writes.len();
        if operations > OPERATIONS_MAX {
            return Err(format!("a commit of {operations} operations"));
        }
        let holds = commit.compares.iter().all(|compare| {
            self.entries.get(&compare.key).map(|(_, version)| *version) == compare.version
        });
        if !holds {
            return Ok(Outcome::Conflict);
        }
        self.version += 1;
        let version = self.version;
        for write in commit.writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            match &value {
                Some(value) if value.len() > VALUE_BYTES_MAX => {
                    return Err(format!("{key} has {} bytes", value.len()));
                }
                Some(value) => {
                    self.entries.insert(key.clone(), (value.clone(), version));
                }
                None if self.entries.remove(&key).is_none() => continue,
                None => {}
            }
            let change = Change { key, value, version };
            self.truth.apply(&change).map_err(|error| format!("{error}: {change:?}"))?;
            self.changes.push(change);
        }
        Ok(Outcome::Done(version))
    }

    /// Returns the newest commit.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Returns what has changed after one commit, up to another.
    pub(super) fn changes(&self, after: Version, up_to: Version) -> &[Change] {
        let first = self.changes.partition_point(|change| change.version <= after);
        let last = self.changes.partition_point(|change| change.version <= up_to);
        &self.changes[first..last]
    }

    /// Returns everything, for a coordinator that starts.
    pub(super) fn list(&self) -> (Vec<Entry>, Version) {
        let entry = |(key, (value, version)): (&String, &(Vec<u8>, Version))| Entry {
            key: key.clone(),
            value: value.clone(),
            version: *version,
        };
        (self.entries.iter().map(entry).collect(), self.version)
    }

    /// Is there anything at this key?
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns the value at a key.
    pub(super) fn value(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(|(value, _)| value.as_slice())
    }

    /// Returns what is stored of the group.
    pub(super) fn truth(&self) -> &GroupState {
        self.truth.group(&group()).expect("the group is there from the beginning to the end")
    }
}
