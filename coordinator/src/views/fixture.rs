//! Small groups for the tests of views.

use std::collections::BTreeMap;

use towline_protocol::api::{CommitView, ReleaseRequest};
use towline_protocol::fleet::{GroupRecord, InstanceRecord, Permit, PermitCount, Quarantined};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::policy::Policy;
use towline_protocol::report::{Orders, Report};
use towline_protocol::rollout::{Batch, State};
use towline_protocol::time::Timestamp;

use super::Look;
use crate::fleet::{Attendance, Presence};
use crate::records::{GroupState, Kept, Records};
use crate::rollout::Now;
use crate::rollout::operations::{self, Act};
use crate::store::{Change, Write};

/// Revisions by one digit.
pub(crate) const OLD: char = 'a';
/// See [`OLD`].
pub(crate) const GOOD: char = 'b';
/// See [`OLD`].
pub(crate) const NEW: char = 'c';

/// When everything begins.
const BEGIN: Timestamp = Timestamp(1_790_000_000_000);

pub(crate) fn revision(digit: char) -> Revision {
    digit.to_string().repeat(40).parse().unwrap()
}

pub(crate) fn name(name: &str) -> Instance {
    name.parse().unwrap()
}

pub(crate) fn act() -> Act {
    Act { by: "ada".to_owned(), at: BEGIN, epoch: 1, reason: None }
}

/// A group named `web`.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) state: GroupState,
    pub(crate) attendance: Attendance,
    pub(crate) unheard: BTreeMap<Instance, std::time::Duration>,
    pub(crate) now: Now,
    pub(crate) commits: BTreeMap<Revision, CommitView>,
}

impl Fleet {
    /// Instances that are there, and serve an old revision well.
    pub(crate) fn of(names: &[&str]) -> Self {
        let record = GroupRecord::new("web".parse().unwrap(), Policy::default());
        let value = serde_json::to_vec(&record).unwrap();
        let mut records = Records::default();
        let change = Change { key: "group/web".to_owned(), value: Some(value), version: 1 };
        records.apply(&change).unwrap();
        let state = records.group(&record.group).unwrap().clone();
        let now = Now { at: BEGIN, bake_ms: 0, deadline_ms: 0 };
        let attendance = Attendance::default();
        let (unheard, commits) = (BTreeMap::new(), BTreeMap::new());
        let mut fleet = Self { state, attendance, unheard, now, commits };
        for text in names {
            // By its wire form: what is not said is as an older agent has it.
            let report: Report = serde_json::from_value(serde_json::json!({
                "version": 1,
                "instance": text,
                "group": "web",
                "phase": "idle",
                "serving": revision(OLD),
                "evidence": "served",
                "health": "healthy",
                "proven": true,
            }))
            .unwrap();
            let value = InstanceRecord {
                version: 1,
                instance: name(text),
                group: record.group.clone(),
                joined: BEGIN,
                seen: BEGIN,
                seq: 1,
                report: Some(report),
                reported: BEGIN,
                since: BEGIN,
                note: None,
                orders: Orders::default(),
                gone: None,
            };
            fleet.attendance.note(name(text), Presence::Here);
            fleet.state.instances.insert(name(text), Kept { version: 1, value });
        }
        fleet
    }

    pub(crate) fn look(&self) -> Look<'_> {
        Look {
            state: &self.state,
            attendance: &self.attendance,
            unheard: &self.unheard,
            now: self.now,
            commits: &self.commits,
        }
    }

    pub(crate) fn later(mut self, seconds: u64) -> Self {
        self.now.at = Timestamp(self.now.at.0 + seconds * 1000);
        self.now.bake_ms += seconds * 1000;
        self.now.deadline_ms += seconds * 1000;
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.state.record.as_mut().unwrap().value.policy);
        self
    }

    pub(crate) fn proven(mut self, digits: &[char]) -> Self {
        for digit in digits {
            self.state.record.as_mut().unwrap().value.prove(&revision(*digit));
        }
        self
    }

    pub(crate) fn quarantined(mut self, digit: char) -> Self {
        let (revision, reason) = (revision(digit), "503".to_owned());
        let quarantined = Quarantined { revision, since: BEGIN, reason };
        self.state.record.as_mut().unwrap().value.quarantine.push(quarantined);
        self
    }

    /// A release that has just begun, and has no batches yet.
    pub(crate) fn released(mut self, digit: char) -> Self {
        let request = ReleaseRequest { revision: revision(digit), only: None, without: Vec::new() };
        let draft = operations::release(&self.state, &self.attendance, &request, &act()).unwrap();
        for write in draft.into_commit().writes {
            let Write::Put { key, value } = write else { continue };
            match key.as_str() {
                "target/web" => {
                    let value = serde_json::from_slice(&value).unwrap();
                    self.state.target = Some(Kept { version: 2, value });
                }
                "rollout/web" => {
                    let value = serde_json::from_slice(&value).unwrap();
                    self.state.rollout = Some(Kept { version: 2, value });
                }
                _ => {}
            }
        }
        self
    }

    pub(crate) fn rollout(&mut self) -> &mut towline_protocol::rollout::Rollout {
        &mut self.state.rollout.as_mut().unwrap().value
    }

    /// Adds a batch; it is open.
    pub(crate) fn batch(mut self, batch_name: &str, share_index: u32, members: &[&str]) -> Self {
        let members = members.iter().map(|member| name(member)).collect();
        let opened_ms = Some(self.now.deadline_ms);
        self.rollout().batches.push(Batch {
            name: batch_name.to_owned(),
            share_index,
            members,
            opened_ms,
            bakes_ms: None,
            is_promoted: false,
            passed_ms: None,
        });
        self
    }

    pub(crate) fn change(
        mut self,
        change: impl FnOnce(&mut towline_protocol::rollout::Rollout),
    ) -> Self {
        change(self.rollout());
        self
    }

    pub(crate) fn converged(self) -> Self {
        self.change(|rollout| rollout.state = State::Converged)
    }

    pub(crate) fn told(mut self, at: &str, change: impl FnOnce(&mut InstanceRecord)) -> Self {
        change(&mut self.state.instances.get_mut(&name(at)).unwrap().value);
        self
    }

    /// An instance that has heard of the target, and serves this, well.
    pub(crate) fn serves(self, at: &str, digit: char) -> Self {
        let order: Option<Order> = self.state.target.as_ref().map(|kept| kept.value.target.order);
        self.told(at, |record| {
            let report = record.report.as_mut().unwrap();
            report.serving = Some(revision(digit));
            report.order = order;
        })
    }

    pub(crate) fn report(self, at: &str, change: impl FnOnce(&mut Report)) -> Self {
        self.told(at, |record| change(record.report.as_mut().unwrap()))
    }

    pub(crate) fn silent(mut self, at: &str) -> Self {
        self.attendance.note(name(at), Presence::Silent);
        self
    }

    pub(crate) fn unheard(mut self, at: &str) -> Self {
        self.attendance.note(name(at), Presence::Unheard);
        self
    }

    pub(crate) fn permit(mut self, at: &str, id: u64) -> Self {
        let (order, given) = (self.state.order(), self.now.at);
        let given_ms = Some(self.now.deadline_ms);
        let value = Permit { id, instance: name(at), order, seq: 2, given, given_ms };
        self.state.open.insert(name(at), Kept { version: 3, value });
        let open = u32::try_from(self.state.open.len()).unwrap();
        self.state.permits = Some(Kept { version: 3, value: PermitCount { open, next: id } });
        self
    }
}
