//! The store's records, parsed and kept at hand: what every decision is made from.
//!
//! ```text
//!   store ── changes ──► Records ──► decisions, words, views      (read only)
//!     ▲                     │
//!     └───── Draft ◄────────┘ what was decided, and which versions it was decided on
//! ```
//!
//! A decision is made on what stands here, and its draft compares the versions of the records that it
//! was made from. Records that are behind cost a conflict and another look, never a wrong commit.
//!
//! PURE.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use towline_protocol::fleet::{
    Floor, GroupRecord, InstanceRecord, Permit, PermitCount, TargetRecord,
};
use towline_protocol::ids::{Group, Instance, Order};
use towline_protocol::rollout::{Clock, Rollout, State};

use crate::store::{Change, Commit, Compare, Entry, OPERATIONS_MAX, Version, Write};

/// The names of keys.
pub mod key {
    use towline_protocol::ids::{Group, Instance};

    /// The store's epoch.
    pub const EPOCH: &str = "epoch";

    /// What the records' keys begin with. All else in the store is read where it is asked for: it is as much
    /// as was, and not as much as is.
    pub const KEPT: [&str; 9] = [
        EPOCH,
        "group/",
        "target/",
        "rollout/",
        "clock/",
        "floor/",
        "permits/",
        "permit/",
        "instance/",
    ];

    /// A group.
    #[must_use]
    pub fn group(group: &Group) -> String {
        format!("group/{group}")
    }

    /// A group's target.
    #[must_use]
    pub fn target(group: &Group) -> String {
        format!("target/{group}")
    }

    /// A group's present or last rollout.
    #[must_use]
    pub fn rollout(group: &Group) -> String {
        format!("rollout/{group}")
    }

    /// The clocks of a group's rollout.
    #[must_use]
    pub fn clock(group: &Group) -> String {
        format!("clock/{group}")
    }

    /// How many permits a group has.
    #[must_use]
    pub fn permits(group: &Group) -> String {
        format!("permits/{group}")
    }

    /// An instance's permit.
    #[must_use]
    pub fn permit(group: &Group, instance: &Instance) -> String {
        format!("permit/{group}/{instance}")
    }

    /// An instance.
    #[must_use]
    pub fn instance(group: &Group, instance: &Instance) -> String {
        format!("instance/{group}/{instance}")
    }

    /// Returns the group that a key belongs to, and what kind of record it names: `group`, `instance` and
    /// so on; of an instance's record, whose it is.
    #[must_use]
    pub fn place(key: &str) -> Option<(&str, Group, Option<Instance>)> {
        let mut parts = key.splitn(3, '/');
        let (kind, group) = (parts.next()?, parts.next()?.parse().ok()?);
        Some((kind, group, parts.next().and_then(|name| name.parse().ok())))
    }

    /// What was said when an instance's last deploy failed.
    #[must_use]
    pub fn log(group: &Group, instance: &Instance) -> String {
        format!("log/{group}/{instance}")
    }

    /// How far a group of this name had come when it was removed.
    #[must_use]
    pub fn floor(group: &Group) -> String {
        format!("floor/{group}")
    }

    /// A rollout that has ended.
    #[must_use]
    pub fn past(group: &Group, generation: u64) -> String {
        format!("past/{group}/{generation:020}")
    }
}

/// A record and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<T> {
    /// The commit.
    pub version: Version,
    /// The record.
    pub value: T,
}

/// Everything of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// Its name.
    pub group: Group,
    /// The group itself; `None`: it was removed, or its parts came first.
    pub record: Option<Kept<GroupRecord>>,
    /// Its target.
    pub target: Option<Kept<TargetRecord>>,
    /// Its present or last rollout.
    pub rollout: Option<Kept<Rollout>>,
    /// The clocks of that.
    pub clock: Option<Kept<Clock>>,
    /// How far a group of this name had come when it was removed.
    pub floor: Option<Kept<Floor>>,
    /// How many permits are open.
    pub permits: Option<Kept<PermitCount>>,
    /// The open permits, by their holders.
    pub open: BTreeMap<Instance, Kept<Permit>>,
    /// Its instances, those that have left among them.
    pub instances: BTreeMap<Instance, Kept<InstanceRecord>>,
}

impl GroupState {
    fn new(group: Group) -> Self {
        Self {
            group,
            record: None,
            target: None,
            rollout: None,
            clock: None,
            floor: None,
            permits: None,
            open: BTreeMap::new(),
            instances: BTreeMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::new(self.group.clone())
    }

    /// Returns the instances that have not left.
    pub fn members(&self) -> impl Iterator<Item = &InstanceRecord> {
        self.instances.values().map(|kept| &kept.value).filter(|record| record.gone.is_none())
    }

    /// Returns an instance that has not left.
    #[must_use]
    pub fn member(&self, instance: &Instance) -> Option<&InstanceRecord> {
        self.instances.get(instance).map(|kept| &kept.value).filter(|record| record.gone.is_none())
    }

    /// Returns the rollout that has not ended.
    #[must_use]
    pub fn going(&self) -> Option<&Rollout> {
        self.rollout.as_ref().map(|kept| &kept.value).filter(|rollout| !rollout.state.is_ended())
    }

    /// Does a rollout stand, so that nobody gets leave to swap?
    #[must_use]
    pub fn stands(&self) -> bool {
        self.going().is_some_and(|rollout| rollout.state != State::Running)
    }

    /// Returns those that its present or last rollout goes on without, until they poll again.
    #[must_use]
    pub fn without(&self) -> &BTreeSet<Instance> {
        static NOBODY: BTreeSet<Instance> = BTreeSet::new();
        self.rollout.as_ref().map_or(&NOBODY, |kept| &kept.value.without)
    }

    /// Returns the order of its target; the lowest where it has none.
    #[must_use]
    pub fn order(&self) -> Order {
        let none = Order { epoch: 0, generation: 0 };
        self.target.as_ref().map_or(none, |kept| kept.value.target.order)
    }

    /// Returns the highest order that its agents may have seen, also before it was made anew.
    #[must_use]
    pub fn reached(&self) -> Order {
        let floor = self.floor.as_ref().map(|kept| kept.value.order);
        floor.map_or(self.order(), |floor| floor.max(self.order()))
    }

    /// Returns the count of its permits.
    #[must_use]
    pub fn count(&self) -> PermitCount {
        self.permits.as_ref().map(|kept| kept.value).unwrap_or_default()
    }
}

/// Why a value is no record.
#[derive(Debug, thiserror::Error)]
#[error("could not read the record {key}")]
pub struct RecordError {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    source: serde_json::Error,
}

/// The records of all groups.
#[derive(Debug, Clone, Default)]
pub struct Records {
    groups: BTreeMap<Group, GroupState>,
    epoch: u64,
    version: Version,
}

impl Records {
    /// Reads what a store holds.
    ///
    /// # Errors
    ///
    /// A record that cannot be read: written by a newer coordinator, or damaged.
    pub fn load(entries: Vec<Entry>, version: Version) -> Result<Self, RecordError> {
        let mut records = Self { version, ..Self::default() };
        for entry in entries {
            let value = Some(entry.value);
            records.apply(&Change { key: entry.key, value, version: entry.version })?;
        }
        records.version = version;
        Ok(records)
    }

    /// Takes up a change; one that is not newer than what is there changes nothing. Returns the group
    /// that it touches.
    ///
    /// # Errors
    ///
    /// A record that cannot be read; then the one before stands.
    pub fn apply(&mut self, change: &Change) -> Result<Option<Group>, RecordError> {
        self.version = self.version.max(change.version);
        if change.key == key::EPOCH {
            #[derive(serde::Deserialize)]
            struct Epoch {
                epoch: u64,
            }
            let epoch = change.value.as_deref().map(|value| parse::<Epoch>(&change.key, value));
            self.epoch = epoch.transpose()?.map_or(0, |epoch| epoch.epoch);
            return Ok(None);
        }
        let Some((kind, group, instance)) = key::place(&change.key) else { return Ok(None) };
        let state =
            self.groups.entry(group.clone()).or_insert_with(|| GroupState::new(group.clone()));
        let is_known = match (kind, instance) {
            ("group", None) => take(&mut state.record, change)?,
            ("target", None) => take(&mut state.target, change)?,
            ("rollout", None) => take(&mut state.rollout, change)?,
            ("clock", None) => take(&mut state.clock, change)?,
            ("floor", None) => take(&mut state.floor, change)?,
            ("permits", None) => take(&mut state.permits, change)?,
            ("permit", Some(instance)) => take_in(&mut state.open, instance, change)?,
            ("instance", Some(instance)) => take_in(&mut state.instances, instance, change)?,
            _ => false,
        };
        if state.is_empty() {
            self.groups.remove(&group);
        }
        Ok(is_known.then_some(group))
    }

    /// Returns everything of a group that exists.
    #[must_use]
    pub fn group(&self, group: &Group) -> Option<&GroupState> {
        self.groups.get(group).filter(|state| state.record.is_some())
    }

    /// Returns what is left of a group, also where it does not exist: what making it anew goes by.
    #[must_use]
    pub fn remains(&self, group: &Group) -> Option<&GroupState> {
        self.groups.get(group)
    }

    /// Returns all groups that exist.
    pub fn groups(&self) -> impl Iterator<Item = &GroupState> {
        self.groups.values().filter(|state| state.record.is_some())
    }

    /// Returns what is left of groups that do not exist.
    pub fn removed(&self) -> impl Iterator<Item = &GroupState> {
        self.groups.values().filter(|state| state.record.is_none())
    }

    /// Returns the store's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the newest commit that was taken up.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RecordError> {
    serde_json::from_slice(value).map_err(|source| RecordError { key: key.to_owned(), source })
}

fn take<T: DeserializeOwned>(
    slot: &mut Option<Kept<T>>,
    change: &Change,
) -> Result<bool, RecordError> {
    if slot.as_ref().is_some_and(|kept| kept.version >= change.version) {
        return Ok(false);
    }
    *slot = match &change.value {
        Some(value) => Some(Kept { version: change.version, value: parse(&change.key, value)? }),
        None => None,
    };
    Ok(true)
}

fn take_in<T: DeserializeOwned>(
    map: &mut BTreeMap<Instance, Kept<T>>,
    instance: Instance,
    change: &Change,
) -> Result<bool, RecordError> {
    let mut slot = map.remove(&instance);
    let taken = take(&mut slot, change);
    if let Some(kept) = slot {
        map.insert(instance, kept);
    }
    taken
}

/// A commit in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    commit: Commit,
}

impl Draft {
    /// Returns a draft that writes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks that the record at `key` still be the one that was decided on.
    pub fn on<T>(&mut self, key: String, kept: Option<&Kept<T>>) {
        if self.commit.compares.iter().all(|compare| compare.key != key) {
            let version = kept.map(|kept| kept.version);
            self.commit.compares.push(Compare { key, version });
        }
    }

    /// Writes a record.
    pub fn put<T: Serialize>(&mut self, key: String, value: &T) {
        let value = serde_json::to_vec(value).expect("records hold nothing that JSON cannot");
        self.commit.writes.retain(|write| key_of(write) != key);
        self.commit.writes.push(Write::Put { key, value });
    }

    /// Removes a record.
    pub fn delete(&mut self, key: String) {
        self.commit.writes.retain(|write| key_of(write) != key);
        self.commit.writes.push(Write::Delete { key });
    }

    /// Does it write nothing?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commit.writes.is_empty()
    }

    /// Is there room for `more` operations?
    #[must_use]
    pub fn has_room(&self, more: usize) -> bool {
        self.commit.compares.len() + self.commit.writes.len() + more <= OPERATIONS_MAX - 10
    }

    /// Returns a draft that begins with a commit.
    #[must_use]
    pub fn of(commit: Commit) -> Self {
        Self { commit }
    }

    /// Adds what another draft compares and writes.
    pub fn join(&mut self, other: Draft) {
        for compare in other.commit.compares {
            if self.commit.compares.iter().all(|own| own.key != compare.key) {
                self.commit.compares.push(compare);
            }
        }
        for write in other.commit.writes {
            self.commit.writes.retain(|own| key_of(own) != key_of(&write));
            self.commit.writes.push(write);
        }
    }

    /// Returns the commit.
    #[must_use]
    pub fn into_commit(self) -> Commit {
        self.commit
    }
}

fn key_of(write: &Write) -> &str {
    match write {
        Write::Put { key, .. } | Write::Delete { key } => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_protocol::policy::Policy;

    fn change(key: &str, value: Option<&str>, version: Version) -> Change {
        let value = value.map(|text| text.as_bytes().to_vec());
        Change { key: key.to_owned(), value, version }
    }

    fn web() -> Group {
        "web".parse().unwrap()
    }

    #[test]
    fn changes_are_taken_up_once_and_in_order() {
        let mut records = Records::default();
        let record = GroupRecord::new(web(), Policy::default());
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(records.apply(&change("group/web", Some(&text), 3)).unwrap(), Some(web()));
        let count = |open| format!("{{\"open\":{open},\"next\":9}}");
        records.apply(&change("permits/web", Some(&count(2)), 5)).unwrap();
        assert_eq!(
            records.apply(&change("permits/web", Some(&count(1)), 4)).unwrap(),
            None,
            "what comes late changes nothing"
        );
        assert_eq!(records.group(&web()).unwrap().count().open, 2);
        records.apply(&change("permits/web", None, 6)).unwrap();
        assert_eq!(records.group(&web()).unwrap().count(), PermitCount::default());
        records.apply(&change("group/web", None, 7)).unwrap();
        assert!(records.group(&web()).is_none() && records.groups.is_empty(), "nothing is left");
        assert_eq!(records.version(), 7);
    }

    #[test]
    fn what_is_not_known_is_left_alone_and_what_is_broken_is_told() {
        let mut records = Records::default();
        assert_eq!(records.apply(&change("token/ab", Some("{}"), 1)).unwrap(), None);
        assert_eq!(records.apply(&change("group/../x", Some("{}"), 1)).unwrap(), None);
        let error = records.apply(&change("group/web", Some("{"), 2)).unwrap_err();
        assert_eq!(error.to_string(), "could not read the record group/web");
        records.apply(&change("epoch", Some("{\"epoch\":1790000000}"), 3)).unwrap();
        assert_eq!(records.epoch(), 1_790_000_000);
    }

    #[test]
    fn a_draft_compares_what_was_decided_on_once() {
        let mut draft = Draft::new();
        let kept = Kept { version: 7, value: () };
        draft.on("a".to_owned(), Some(&kept));
        draft.on("a".to_owned(), None::<&Kept<()>>);
        draft.on("b".to_owned(), None::<&Kept<()>>);
        draft.put("a".to_owned(), &1);
        draft.put("a".to_owned(), &2);
        draft.delete("b".to_owned());
        let commit = draft.into_commit();
        let compare = |key: &str, version| Compare { key: key.to_owned(), version };
        assert_eq!(commit.compares, [compare("a", Some(7)), compare("b", None)]);
        assert_eq!(
            commit.writes,
            [
                Write::Put { key: "a".to_owned(), value: b"2".to_vec() },
                Write::Delete { key: "b".to_owned() }
            ]
        );
    }
}
