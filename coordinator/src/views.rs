//! What operators are shown: the API's views, made from the records as they stand.
//!
//! ```text
//!   GroupState, Attendance, now, what a mirror knows ──► Look ─┬─► group, rollout, instances, permits
//!                                                              ├─► skew: what runs where
//!                                                              ├─► why: reasons, and what to do next
//!                                                              └─► plan: what a release would do
//! ```
//!
//! Invariants
//! - No revision is shown that the instance did not report, and what it told has its age beside it.
//! - Silence is not health: whoever is silent is of unknown health, and runs what is not known.
//! - What agents say is cut and cleaned before it is shown; see [`told`].
//!
//! PURE.

use std::collections::BTreeMap;
use std::time::Duration;

use towline_protocol::api::{CommitView, TargetView};
use towline_protocol::fleet::{GroupRecord, InstanceRecord};
use towline_protocol::ids::{Instance, Revision};
use towline_protocol::target::Target;
use towline_protocol::time::Timestamp;

use crate::fleet::Attendance;
use crate::records::GroupState;
use crate::rollout::Now;

pub mod group;
pub mod instances;
pub mod place;
pub mod plan;
pub mod rollout;
pub mod skew;
pub mod told;
pub mod why;

#[cfg(test)]
pub(crate) mod fixture;

/// What a group's views are made from.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Its records.
    pub state: &'a GroupState,
    /// Who is there.
    pub attendance: &'a Attendance,
    /// For how long each instance was not heard of, where that is known better than it is stored.
    pub unheard: &'a BTreeMap<Instance, Duration>,
    /// The time.
    pub now: Now,
    /// What a mirror knows; empty where there is none.
    pub commits: &'a BTreeMap<Revision, CommitView>,
}

impl<'a> Look<'a> {
    /// Returns the group's target.
    #[must_use]
    pub fn target(&self) -> Option<&'a Target> {
        self.state.target.as_ref().map(|kept| &kept.value.target)
    }

    /// Returns the group's record; `None` for a group that was removed.
    #[must_use]
    pub fn record(&self) -> Option<&'a GroupRecord> {
        self.state.record.as_ref().map(|kept| &kept.value)
    }

    /// Returns the group's target as it is shown.
    #[must_use]
    pub fn target_view(&self) -> Option<TargetView> {
        let record = &self.state.target.as_ref()?.value;
        let target = &record.target;
        Some(TargetView {
            order: target.order,
            revision: target.revision.clone(),
            not: target.not.clone(),
            fallback: target.fallback.clone(),
            at: record.at,
            by: record.by.clone(),
            note: record.note.clone(),
        })
    }

    /// Returns what a mirror knows of a revision.
    #[must_use]
    pub fn commit(&self, revision: Option<&Revision>) -> Option<CommitView> {
        self.commits.get(revision?).cloned()
    }

    /// Returns how long ago something was, in seconds.
    #[must_use]
    pub fn ago_s(&self, at: Timestamp) -> u64 {
        self.now.at.since(at).as_secs()
    }

    /// Returns how long ago an instance was heard of, in seconds.
    #[must_use]
    pub fn seen_s(&self, record: &InstanceRecord) -> u64 {
        let unheard = self.unheard.get(&record.instance);
        unheard.map_or_else(|| self.ago_s(record.seen), Duration::as_secs)
    }

    /// Returns what an instance serves, as it counts in its group: where it stands in for the target's
    /// revision, and says so, that one.
    #[must_use]
    pub fn serves<'r>(&self, record: &'r InstanceRecord) -> Option<&'r Revision> {
        let report = record.report.as_ref()?;
        let wanted = self.target().and_then(|target| target.revision.as_ref());
        let alike = report.alike.as_ref().filter(|alike| Some(*alike) == wanted);
        alike.or(report.serving.as_ref())
    }
}

/// Returns a revision's first digits, or what is said where there is none.
#[must_use]
pub fn short(revision: Option<&Revision>) -> &str {
    revision.map_or("nothing", Revision::short)
}
