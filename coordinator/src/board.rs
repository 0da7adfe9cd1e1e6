//! Everything that a coordinator has in its head: records, who was heard of, parked polls, its clock.
//!
//! ```text
//!   changes of the store ──► records ──► polls that are answered
//!   messages ──► signs of life, and drafts of what to store
//!   time     ──► clocks that run on, leases that end
//! ```
//!
//! It acts on nothing: the desk commits its drafts and brings it what the store says. Time comes in as an
//! argument, so that a simulation runs the same board as a coordinator does.

use std::collections::BTreeMap;
use std::time::Duration;

use towline_protocol::api::ErrorBody;
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Goodbye, Message, Poll, Question, lease_s};
use towline_protocol::rollout::Clock;
use towline_protocol::time::Timestamp;

use crate::fleet::{Attendance, Presence};
use crate::hub::{Hub, Polled};
use crate::records::{Draft, GroupState, RecordError, Records, key};
use crate::rollout::operations::{Act, unknown_group};
use crate::rollout::permits::Leave;
use crate::rollout::{self, Decision, permits, reports};
use crate::store::Change;

pub mod uptime;

use uptime::Uptime;

/// How coarsely the time of the last sign of life is stored.
const SEEN_EVERY: Duration = Duration::from_secs(600);

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// A reading of the monotonic clock.
    pub read: Duration,
    /// The time of day.
    pub at: Timestamp,
}

/// How an instance was last heard of; all times are on the uptime's clock.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Duration,
    /// When its lease is over.
    until: Duration,
    /// May it have changed since, unheard?
    is_doubted: bool,
    /// The number from which on messages tell what it has still to tell, as its last poll said; `None`: it
    /// has not polled since it was doubted.
    unsaid: Option<u64>,
}

impl Heard {
    /// What it is while its lease lasts. `told`: the number of the last message that was taken up.
    fn presence(&self, told: u64) -> Presence {
        match self.unsaid {
            _ if self.is_doubted => Presence::Unheard,
            Some(unsaid) if unsaid <= told => Presence::Here,
            // Of whom nothing is known yet, it is not known either whether there is something to tell.
            _ => Presence::Untold,
        }
    }
}

/// What a change of the records has touched, as far as words go.
#[derive(Debug, Default)]
struct Touched {
    /// Something that all of a group's words are made of.
    all: bool,
    /// Did it have one member at most?
    was_alone: bool,
    instances: Vec<Instance>,
}

/// Everything that a coordinator has in its head.
#[derive(Debug)]
pub struct Board {
    records: Records,
    uptime: Uptime,
    /// How each instance was last heard of.
    heard: BTreeMap<Group, BTreeMap<Instance, Heard>>,
    lease: Duration,
    hub: Hub,
}

impl Board {
    /// Begins with these records. `wait_s`: how long polls hang.
    #[must_use]
    pub fn new(records: Records, wait_s: u32, now: Moment) -> Self {
        let lease = Duration::from_secs(lease_s(wait_s).into());
        Self {
            records,
            uptime: Uptime::start(now.read, lease),
            heard: BTreeMap::new(),
            lease,
            // Milliseconds since 1970: no earlier run has told this number to anybody.
            hub: Hub::new(wait_s, now.at.0),
        }
    }

    /// Returns the records.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Replaces all records: what is kept of changes did not reach back far enough.
    pub fn reload(&mut self, records: Records) {
        self.records = records;
        for group in &self.groups() {
            self.refresh(group);
        }
    }

    /// Takes up changes of the store, in their order. Returns the groups that they touch, and which
    /// records could not be read: those stay as they were, so that whoever decides on them loses every
    /// race and says so.
    pub fn apply(&mut self, changes: &[Change]) -> (Vec<Group>, Vec<RecordError>) {
        let mut touched: BTreeMap<Group, Touched> = BTreeMap::new();
        let mut lost = Vec::new();
        for change in changes {
            let Some((kind, group, instance)) = key::place(&change.key) else {
                lost.extend(self.records.apply(change).err());
                continue;
            };
            let told = instance.as_ref().and_then(|instance| self.told(&group, instance));
            let was_alone = self.is_alone(&group);
            match self.records.apply(change) {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(error) => {
                    lost.push(error);
                    continue;
                }
            }
            let touched = touched
                .entry(group.clone())
                .or_insert_with(|| Touched { was_alone, ..Touched::default() });
            match (kind, instance) {
                ("instance", Some(instance)) => {
                    if told != self.told(&group, &instance) {
                        self.note_told(&group, &instance);
                    }
                    touched.instances.push(instance);
                }
                // They make room, or take it: whoever was told no is looked at for that.
                ("permit" | "permits" | "clock" | "floor", _) => {}
                _ => touched.all = true,
            }
        }
        for (group, touched) in &touched {
            // Whether it is alone is a thing that its words go by.
            if touched.all || touched.was_alone != self.is_alone(group) || self.may_have_room(group)
            {
                self.refresh(group);
            } else if let Some(state) = self.records.group(group) {
                for instance in &touched.instances {
                    self.hub.look_at(state, instance);
                }
            }
        }
        (touched.into_keys().collect(), lost)
    }

    /// Returns the number of what an instance told last.
    fn told(&self, group: &Group, instance: &Instance) -> Option<u64> {
        let record = self.records.group(group)?.member(instance)?;
        record.report.as_ref().map(|_| record.seq)
    }

    /// Was somebody told no who is to ask again once there is room, and may there be some? While a rollout
    /// stands nobody gets leave.
    fn may_have_room(&self, group: &Group) -> bool {
        self.hub.has_refused(group) && !self.records.group(group).is_some_and(GroupState::stands)
    }

    fn is_alone(&self, group: &Group) -> bool {
        self.records.group(group).is_none_or(|state| state.members().nth(1).is_none())
    }

    /// Lets the clocks of all rollouts run on to this moment, and looks at who has fallen silent. Returns
    /// all groups.
    pub fn tick(&mut self, now: Moment) -> Vec<Group> {
        self.read_clock(now);
        let groups = self.groups();
        for group in &groups {
            // Who is there counts for the budget alone: for the words of those who were told no.
            if self.may_have_room(group) {
                self.refresh(group);
            }
            self.hub.sweep(group);
            self.forget(group);
        }
        groups
    }

    /// Returns all groups.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.records.groups().map(|state| state.group.clone()).collect()
    }

    fn read_clock(&mut self, now: Moment) {
        let is_gap = self.uptime.is_gap(now.read);
        let counted = self.uptime.read(now.read);
        if is_gap {
            self.doubt_all();
        }
        for state in self.records.groups() {
            if let Some(rollout) = state.going() {
                self.uptime.tick(&state.group, rollout, counted);
            }
        }
    }

    /// Returns the time as a group's rollout has it.
    pub fn clock(&mut self, group: &Group, now: Moment) -> rollout::Now {
        self.read_clock(now);
        let clock = self.records.group(group).and_then(|state| {
            let stored = state.clock.as_ref().map(|kept| &kept.value);
            Some(self.uptime.clock_of(group, state.going()?, stored))
        });
        let clock = clock.unwrap_or_default();
        rollout::Now { at: now.at, bake_ms: clock.bake_ms, deadline_ms: clock.deadline_ms }
    }

    /// Returns who of a group is there.
    #[must_use]
    pub fn attendance(&self, group: &Group) -> Attendance {
        let mut attendance = Attendance::default();
        let Some(state) = self.records.group(group) else { return attendance };
        let up = self.uptime.up();
        let heard = self.heard.get(group);
        for record in state.members() {
            let presence = match heard.and_then(|heard| heard.get(&record.instance)) {
                Some(heard) if up <= heard.until => heard.presence(record.seq),
                // Whoever joined before this coordinator started has a lease from its start.
                None if up <= self.lease => Presence::Unheard,
                _ => Presence::Silent,
            };
            attendance.note(record.instance.clone(), presence);
        }
        attendance
    }

    /// Returns for how long an instance was not heard of; `None`: not since this coordinator started.
    #[must_use]
    pub fn unheard_for(&self, group: &Group, instance: &Instance) -> Option<Duration> {
        let heard = self.heard.get(group)?.get(instance)?;
        Some(self.uptime.up().saturating_sub(heard.at))
    }

    /// Notes a sign of life. Returns whether it is one of somebody who was not there: whoever was changes
    /// nothing by it, and polls are many.
    pub fn hear(&mut self, group: &Group, instance: &Instance, now: Moment) -> bool {
        self.read_clock(now);
        if self.records.group(group).is_none() {
            return false;
        }
        let (up, until) = (self.uptime.up(), self.uptime.up() + self.lease);
        let heard = self.heard.entry(group.clone()).or_default();
        let last = heard.get(instance).copied();
        let unsaid = last.filter(|last| !last.is_doubted).and_then(|last| last.unsaid);
        heard.insert(instance.clone(), Heard { at: up, until, is_doubted: false, unsaid });
        let is_back = last.is_none_or(|last| up > last.until);
        if is_back && self.may_have_room(group) {
            self.refresh(group);
        }
        is_back
    }

    fn heard_mut(&mut self, group: &Group, instance: &Instance) -> Option<&mut Heard> {
        self.heard.get_mut(group)?.get_mut(instance)
    }

    /// A message was taken up: whoever has not polled yet has told what it had to.
    fn note_told(&mut self, group: &Group, instance: &Instance) {
        if let Some(heard) = self.heard_mut(group, instance).filter(|heard| !heard.is_doubted) {
            heard.unsaid = heard.unsaid.or(Some(0));
        }
    }

    /// The store took nothing: what instances have to tell is kept by them, and told once it does again.
    /// Until then no deadline passes, and nothing is concluded from what they told before.
    pub fn be_deaf(&mut self, now: Moment) {
        self.read_clock(now);
        self.uptime.be_deaf();
        self.doubt_all();
    }

    /// Everybody may have changed, and gets a lease to say so.
    fn doubt_all(&mut self) {
        let (up, until) = (self.uptime.up(), self.uptime.up() + self.lease);
        let there = self.heard.values_mut().flat_map(BTreeMap::values_mut);
        for heard in there.filter(|heard| up <= heard.until) {
            *heard = Heard { until, is_doubted: true, ..*heard };
        }
    }

    /// Something of a group changed, or somebody has fallen silent: polls are answered.
    pub fn refresh(&mut self, group: &Group) {
        let attendance = self.attendance(group);
        if let Some(state) = self.records.group(group) {
            self.hub.refresh(state, &attendance);
        }
        self.forget(group);
    }

    /// Forgets when those were heard of who are not in the records any more.
    fn forget(&mut self, group: &Group) {
        let up = self.uptime.up();
        let Some(state) = self.records.group(group) else {
            self.heard.remove(group);
            return;
        };
        if let Some(heard) = self.heard.get_mut(group) {
            // Whoever has just polled for the first time is not in the records yet.
            heard.retain(|instance, heard| {
                state.instances.contains_key(instance) || up <= heard.until
            });
        }
    }

    fn known(&self, group: &Group) -> Result<&GroupState, ErrorBody> {
        self.records.group(group).ok_or_else(|| unknown_group(group))
    }

    /// Returns what is to be stored before a poll is taken up: whoever is not known joins.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or has no room.
    pub fn join(&self, poll: &Poll, now: Moment) -> Result<Option<Draft>, ErrorBody> {
        let known = self.known(&poll.group)?;
        reports::has_room(known, &poll.instance)?;
        Ok(reports::polled(known, &poll.instance, poll.seq, now.at, SEEN_EVERY))
    }

    /// Answers a poll, or parks it.
    ///
    /// # Errors
    ///
    /// A group that does not exist.
    pub fn poll(&mut self, poll: &Poll) -> Result<Polled, ErrorBody> {
        if let Some(heard) = self.heard_mut(&poll.group, &poll.instance) {
            heard.unsaid = Some(poll.unsaid.unwrap_or(0));
        }
        let known = self.records.group(&poll.group).ok_or_else(|| unknown_group(&poll.group))?;
        Ok(self.hub.poll(known, &poll.instance, poll.seen.clone()))
    }

    /// A poll has waited for long enough.
    pub fn leave(&mut self, group: &Group, instance: &Instance) {
        self.hub.leave(group, instance);
    }

    /// Returns what is to be stored for a report; `None`: it has been overtaken.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or has no room.
    pub fn report(&self, message: &Message, now: Moment) -> Result<Option<Draft>, ErrorBody> {
        let known = self.known(&message.report.group)?;
        reports::has_room(known, &message.report.instance)?;
        Ok(reports::report(known, message, now.at))
    }

    /// Answers a question for leave to swap: the draft is to be stored before the answer is given.
    ///
    /// # Errors
    ///
    /// A group that does not exist.
    pub fn ask(&mut self, question: &Question, now: Moment) -> Result<Leave, ErrorBody> {
        let group = &question.group;
        let clock = self.clock(group, now);
        let attendance = self.attendance(group);
        let leave = permits::decide(self.known(group)?, &attendance, question, clock);
        if leave.asks_again {
            self.hub.refused(group);
        }
        Ok(leave)
    }

    /// Returns what is to be stored for a goodbye; `None`: it had left already, or has come back since.
    ///
    /// # Errors
    ///
    /// A group that does not exist.
    pub fn goodbye(&self, goodbye: &Goodbye, now: Moment) -> Result<Option<Draft>, ErrorBody> {
        let known = self.known(&goodbye.group)?;
        Ok(reports::left(known, &goodbye.instance, Some(goodbye.seq), now.at))
    }

    /// Looks at a group's rollout: what is the next step, and what is to be stored for it? `None`: there
    /// is none for now.
    pub fn next_step(&mut self, group: &Group, by: &str, now: Moment) -> Option<(Decision, Draft)> {
        let clock = self.clock(group, now);
        let attendance = self.attendance(group);
        let known = self.records.group(group)?;
        let decision = rollout::evaluate(known, &attendance, clock);
        let act = self.act(by, None, now);
        let draft = rollout::operations::carry_out(known, &decision, &act)?;
        Some((decision, draft))
    }

    /// Returns who does something now, and why.
    #[must_use]
    pub fn act(&self, by: &str, reason: Option<String>, now: Moment) -> Act {
        Act { by: by.to_owned(), at: now.at, epoch: self.records.epoch(), reason }
    }

    /// Returns what is to be stored of a group's clocks; `None`: nothing that is not stored already.
    pub fn clock_to_store(&mut self, group: &Group, now: Moment) -> Option<Draft> {
        let clock = self.clock(group, now);
        let known = self.records.group(group)?;
        let clock = Clock {
            generation: known.going()?.order().generation,
            bake_ms: clock.bake_ms,
            deadline_ms: clock.deadline_ms,
        };
        if known.clock.as_ref().is_some_and(|kept| kept.value == clock) {
            return None;
        }
        let mut draft = Draft::new();
        draft.on(key::clock(group), known.clock.as_ref());
        draft.put(key::clock(group), &clock);
        Some(draft)
    }

    /// Lets go of all polls: the coordinator stops.
    pub fn close(&mut self) {
        self.hub.close();
    }

    /// Returns how many polls are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.hub.parked()
    }
}

#[cfg(test)]
mod tests;
