//! A model of a store, a clock and a fleet: instances that follow their words by script, and checks of what
//! must hold after every commit and before every swap.

use std::collections::BTreeMap;
use std::time::Duration;

use towline_protocol::api::{ErrorBody, ReleaseRequest};
use towline_protocol::ids::{Group, Instance, Order, Revision};
use towline_protocol::policy::{Bake, FailuresMax, Policy, Share};
use towline_protocol::poll::{Duty, Message, Question};
use towline_protocol::report::{self, Cause, Failure, Health, Orders, Phase, Report};
use towline_protocol::rollout::{Batch, Kind, Rollout, State};
use towline_protocol::time::Timestamp;

use crate::fleet::{Attendance, Presence};
use crate::records::{Draft, GroupState, Records, key};
use crate::rollout::operations::{self, Act};
use crate::rollout::permits::{self, Leave};
use crate::rollout::{Decision, Now, evaluate, reports, words};
use crate::store::{Change, OPERATIONS_MAX, Version, Write};

pub(super) const EPOCH: u64 = 1_790_000_000;

pub(super) fn web() -> Group {
    "web".parse().unwrap()
}

pub(super) fn revision(name: char) -> Revision {
    name.to_string().repeat(40).parse().unwrap()
}

pub(super) fn instance(name: &str) -> Instance {
    name.parse().unwrap()
}

/// A policy that bakes shortly, and whose batches are these percents.
pub(super) fn policy(batches: &[u32]) -> Policy {
    Policy {
        batches: batches.iter().copied().map(Share::Percent).collect(),
        max_unavailable: Share::Count(1),
        max_unavailable_rollback: Share::Count(1),
        bake_s: Bake { canary: 60, batch: 30 },
        failures_max: FailuresMax { canary: 0, batch: 0, rollout: 0 },
        ..Policy::default()
    }
    .check()
    .unwrap()
}

/// What becomes of a new revision on an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// It takes it.
    Takes,
    /// It fails after the swap, and restores what served.
    Fails,
    /// It never gets it ready.
    Unprepared,
    /// It falls silent in the middle of the swap.
    Silent,
    /// It says goodbye when it has leave.
    Leaves,
}

/// An instance.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) report: Report,
    pub(super) seq: u64,
    pub(super) fate: Fate,
    /// Every revision fails here, also the one to go back to.
    pub(super) is_broken: bool,
    /// What served before the swap that is under way.
    pub(super) before: Option<Option<Revision>>,
}

/// All of it.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) records: Records,
    store: BTreeMap<String, (Version, Vec<u8>)>,
    version: Version,
    pub(super) attendance: Attendance,
    pub(super) agents: BTreeMap<Instance, Agent>,
    pub(super) now: Now,
    /// Whose the clocks are.
    clock_of: Option<Order>,
    highest: Option<Order>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// No rollout goes on.
    Rests,
    /// It stands, for a reason.
    Stands(String),
}

impl World {
    /// A group whose instances, if any, serve `a`, which is group-proven: the target, at generation 1.
    pub(super) fn new(policy: Policy, names: &[&str]) -> Self {
        let mut world = Self::fresh(policy, names);
        let mut group = world.state().record.clone().unwrap().value;
        group.prove(&revision('a'));
        world.write(&key::group(&web()), &group);
        world.release('a').unwrap();
        let mut rollout = world.rollout().clone();
        rollout.state = State::Converged;
        rollout.ended = Some(world.now.at);
        world.write(&key::rollout(&web()), &rollout);
        let order = world.state().order();
        for name in names {
            world.tell(name, |report| report.order = Some(order));
        }
        world
    }

    /// A group without a target, whose instances serve `a` since before Towline was there.
    pub(super) fn fresh(policy: Policy, names: &[&str]) -> Self {
        let mut world = Self {
            records: Records::default(),
            store: BTreeMap::new(),
            version: 0,
            attendance: Attendance::default(),
            agents: BTreeMap::new(),
            now: Now { at: Timestamp(1_000_000), ..Now::default() },
            clock_of: None,
            highest: None,
        };
        let epoch = serde_json::json!({ "epoch": EPOCH });
        world.write(key::EPOCH, &epoch);
        let made = operations::set_group(None, &web(), policy).unwrap();
        assert!(world.commit(made));
        for name in names {
            world.join(name, Some('a'));
        }
        world
    }

    /// An instance joins; `None`: nothing serves on it.
    pub(super) fn join(&mut self, name: &str, serving: Option<char>) {
        let serving = serving.map(revision);
        let is_newborn = serving.is_none();
        let report = Report {
            version: report::VERSION,
            instance: instance(name),
            group: web(),
            order: None,
            target: None,
            phase: Phase::Idle,
            health: if is_newborn { Health::Unhealthy } else { Health::Healthy },
            proven: serving.is_some(),
            serving,
            alike: None,
            evidence: None,
            degraded: None,
            objection: None,
            failure: None,
            adopted: false,
            newborn: is_newborn,
            rejected: false,
            restart: 0,
            uses_permit: false,
            renounced: 0,
            prepared: false,
            orders: Orders::default(),
        };
        let agent = Agent { report, seq: 0, fate: Fate::Takes, is_broken: false, before: None };
        self.agents.insert(instance(name), agent);
        self.attendance.note(instance(name), Presence::Here);
        self.tell(name, |_| {});
    }

    pub(super) fn state(&self) -> &GroupState {
        self.records.group(&web()).unwrap()
    }

    pub(super) fn rollout(&self) -> &Rollout {
        &self.state().rollout.as_ref().unwrap().value
    }

    pub(super) fn act(&self) -> Act {
        Act { by: "ada".to_owned(), at: self.now.at, epoch: self.records.epoch(), reason: None }
    }

    /// Stores a draft, if what it compares holds; and checks what must hold after any commit.
    pub(super) fn commit(&mut self, draft: Draft) -> bool {
        let commit = draft.into_commit();
        assert!(commit.compares.len() + commit.writes.len() <= OPERATIONS_MAX - 10);
        let holds = commit.compares.iter().all(|compare| {
            self.store.get(&compare.key).map(|(version, _)| *version) == compare.version
        });
        if !holds {
            return false;
        }
        self.version += 1;
        for write in commit.writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            match &value {
                Some(value) => self.store.insert(key.clone(), (self.version, value.clone())),
                None => self.store.remove(&key),
            };
            self.records.apply(&Change { key, value, version: self.version }).unwrap();
        }
        self.check();
        true
    }

    fn check(&mut self) {
        let Some(state) = self.records.group(&web()) else { return };
        assert_eq!(state.count().open as usize, state.open.len(), "permits are counted");
        let order = state.target.as_ref().map(|kept| kept.value.target.order);
        assert!(order >= self.highest || order.is_none(), "no generation goes down");
        self.highest = self.highest.max(order);
        if order != self.clock_of {
            self.clock_of = order;
            (self.now.bake_ms, self.now.deadline_ms) = (0, 0);
        }
    }

    /// The keys that a draft compares.
    pub(super) fn compares(draft: &Draft) -> Vec<String> {
        let commit = draft.clone().into_commit();
        commit.compares.into_iter().map(|compare| compare.key).collect()
    }

    /// Does the store hold something at this key?
    pub(super) fn has(&self, key: &str) -> bool {
        self.store.contains_key(key)
    }

    /// A rollout that has ended.
    pub(super) fn past(&self, generation: u64) -> Rollout {
        let (_, value) = &self.store[&crate::records::key::past(&web(), generation)];
        serde_json::from_slice(value).unwrap()
    }

    pub(super) fn write<T: serde::Serialize>(&mut self, key: &str, value: &T) {
        let mut draft = Draft::new();
        draft.put(key.to_owned(), value);
        assert!(self.commit(draft));
    }

    /// Looks once, and stores what was decided.
    pub(super) fn step(&mut self) -> Decision {
        let decision = evaluate(self.state(), &self.attendance, self.now);
        let act = Act { by: "the gate".to_owned(), ..self.act() };
        if let Some(draft) = operations::carry_out(self.state(), &decision, &act) {
            assert!(self.commit(draft), "nobody else writes");
        }
        decision
    }

    /// Looks until there is nothing more to decide.
    pub(super) fn settle(&mut self) -> Decision {
        for _ in 0..200 {
            let decision = self.step();
            if matches!(decision, Decision::Rest | Decision::Wait { .. }) {
                return decision;
            }
        }
        panic!("the engine does not come to rest: {:#?}", self.rollout());
    }

    /// Looks until there is nothing more to decide. Returns generation, kind, state and reason in a line.
    pub(super) fn line(&mut self) -> String {
        let waits = match self.settle() {
            Decision::Wait { reason, .. } => reason,
            _ => self.rollout().reason.clone(),
        };
        let rollout = self.rollout();
        let generation = rollout.order().generation;
        format!("{generation} {:?} {}: {waits}", rollout.kind, rollout.state.as_str())
    }

    /// The members of a batch.
    pub(super) fn members(&self, index: usize) -> Vec<String> {
        let batch = self.rollout().batches.get(index);
        let members = batch.iter().flat_map(|batch| &batch.members);
        members.map(|instance| instance.as_str().to_owned()).collect()
    }

    /// Who is the first member of a batch.
    pub(super) fn first(&self, index: usize) -> String {
        self.members(index)[0].clone()
    }

    /// The batches so far: their names and members.
    pub(super) fn batches(&self) -> Vec<(String, Vec<String>)> {
        let batches = self.rollout().batches.iter().enumerate();
        batches.map(|(index, batch)| (batch.name.clone(), self.members(index))).collect()
    }

    /// The canary, or whatever batch is open, takes the target, and bakes for long enough.
    pub(super) fn batch_passes(&mut self) {
        self.batch_passes_but("nobody");
    }

    /// The same, with nothing told by one of them.
    pub(super) fn batch_passes_but(&mut self, but: &str) {
        self.settle();
        let open = |batch: &Batch| batch.is_open() && batch.passed_ms.is_none();
        let index = self.rollout().batches.iter().position(open).unwrap();
        for name in self.members(index).into_iter().filter(|name| name != but) {
            let target = self.rollout().revision().unwrap().as_str().chars().next().unwrap();
            self.takes(&name, target);
        }
        self.settle();
        self.pass_s(60);
        self.settle();
        assert!(self.rollout().batches[index].passed_ms.is_some());
    }

    /// Time passes; a rollout's clocks run while it does.
    pub(super) fn pass(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.now.at = self.now.at.after(time);
        if self.state().going().is_some_and(|rollout| rollout.state == State::Running) {
            self.now.bake_ms += ms;
            self.now.deadline_ms += ms;
        }
    }

    pub(super) fn pass_s(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    pub(super) fn request(name: char) -> ReleaseRequest {
        ReleaseRequest { revision: revision(name), only: None, without: Vec::new() }
    }

    pub(super) fn release(&mut self, name: char) -> Result<(), ErrorBody> {
        self.release_as(&Self::request(name))
    }

    pub(super) fn release_as(&mut self, request: &ReleaseRequest) -> Result<(), ErrorBody> {
        let draft = operations::release(self.state(), &self.attendance, request, &self.act())?;
        assert!(self.commit(draft));
        Ok(())
    }

    /// Does what an operator may.
    pub(super) fn operate(
        &mut self,
        what: impl FnOnce(&GroupState, &Act) -> Result<Draft, ErrorBody>,
    ) {
        let draft = what(self.state(), &self.act()).unwrap();
        assert!(self.commit(draft));
    }

    pub(super) fn resume(&mut self) {
        let now = self.now;
        self.operate(|state, act| operations::resume(state, now, act));
    }

    /// Goes on, where it does not go on by itself.
    pub(super) fn resume_if_halted(&mut self) {
        if matches!(self.rollout().state, State::Halted | State::Paused) {
            self.resume();
        }
    }

    /// An instance reports, changed so.
    pub(super) fn tell(&mut self, name: &str, change: impl FnOnce(&mut Report)) {
        let agent = self.agents.get_mut(&instance(name)).unwrap();
        change(&mut agent.report);
        agent.seq += 1;
        let message = Message {
            seq: agent.seq,
            age_ms: 0,
            report: agent.report.clone(),
            note: None,
            log: None,
        };
        if let Some(draft) = reports::report(self.state(), &message, self.now.at) {
            assert!(self.commit(draft));
        }
    }

    /// An instance tells that it serves the target, or this, proven.
    pub(super) fn takes(&mut self, name: &str, serving: char) {
        let order = self.state().order();
        self.tell(name, |report| {
            report.order = Some(order);
            report.serving = Some(revision(serving));
            report.phase = Phase::Idle;
            (report.health, report.proven, report.uses_permit) = (Health::Healthy, true, false);
            report.newborn = false;
        });
    }

    /// An instance tells that the target failed after its swap, and that it serves what it did before.
    pub(super) fn fails(&mut self, name: &str, detail: &str) {
        let target = self.state().target.clone().unwrap().value.target;
        let cause = Cause::Unhealthy;
        self.tell(name, |report| {
            report.order = Some(target.order);
            report.phase = Phase::Idle;
            (report.health, report.proven, report.uses_permit) = (Health::Healthy, true, false);
            report.rejected = true;
            let revision = target.revision.unwrap_or_else(|| revision('0'));
            let (order, detail) = (Some(target.order), detail.to_owned());
            report.failure = Some(Failure { order, revision, cause, detail, attempt: 1 });
        });
    }

    pub(super) fn hush(&mut self, name: &str) {
        self.attendance.note(instance(name), Presence::Silent);
    }

    pub(super) fn hear(&mut self, name: &str) {
        self.attendance.note(instance(name), Presence::Here);
    }

    pub(super) fn leaves(&mut self, name: &str) {
        let agent = self.agents.get_mut(&instance(name)).unwrap();
        agent.seq += 1;
        let seq = agent.seq;
        let left = reports::left(self.state(), &instance(name), Some(seq), self.now.at);
        assert!(self.commit(left.unwrap()));
        self.agents.remove(&instance(name));
    }

    pub(super) fn duty(&self, name: &str) -> Duty {
        words::duty(self.state(), &instance(name))
    }

    /// An instance that is prepared asks for leave, and tells that it does.
    pub(super) fn ask(&mut self, name: &str) -> Leave {
        let order = self.state().order();
        let agent = self.agents.get_mut(&instance(name)).unwrap();
        agent.seq += 1;
        let seq = agent.seq;
        self.question(name, order, seq)
    }

    /// A question of this number arrives; what is to be stored for its answer is.
    pub(super) fn question(&mut self, name: &str, order: Order, seq: u64) -> Leave {
        let instance = instance(name);
        let question = Question { version: 1, group: web(), instance, seq, order };
        let leave = permits::decide(self.state(), &self.attendance, &question, self.now);
        self.check_leave(&question.instance, &leave);
        assert!(self.commit(leave.draft.clone()));
        leave
    }

    /// None is given to a healthy instance while as many others are unavailable as may be, in truth.
    fn check_leave(&self, asks: &Instance, leave: &Leave) {
        if leave.permit.is_none() || self.state().open.contains_key(asks) {
            return;
        }
        let is_spared = |name: &Instance| {
            let is_out = self.state().without().contains(name) && self.attendance.is_silent(name);
            name == asks || is_out
        };
        let is_gone = |agent: &Agent| {
            self.attendance.is_silent(&agent.report.instance)
                || agent.report.health != Health::Healthy
                || self.state().open.contains_key(&agent.report.instance)
        };
        let names = self.agents.iter().filter(|(name, _)| !is_spared(name));
        let used = names.filter(|(_, agent)| is_gone(agent)).count();
        let live = self.agents.len();
        let max = match self.state().going() {
            Some(rollout) if rollout.kind == Kind::Rollback => {
                rollout.policy.max_unavailable_rollback
            }
            Some(rollout) => rollout.policy.max_unavailable,
            None => self.state().record.as_ref().unwrap().value.policy.max_unavailable,
        };
        let is_healthy = self.agents[asks].report.health == Health::Healthy;
        assert!(
            !is_healthy || used < max.at_most(live),
            "{asks}: {used} of {live} are unavailable"
        );
        if let Some(rollout) = self.state().going() {
            assert_eq!(rollout.state, State::Running, "none is given while it stands");
        }
    }

    /// A swap to the target begins: its batch is open, and all gates before it have passed.
    pub(super) fn check_swap(&self, swaps: &Instance) {
        let Some(rollout) = self.state().going() else { return };
        if rollout.kind == Kind::Rollback {
            return;
        }
        let own = rollout.batches.iter().position(|batch| batch.members.contains(swaps));
        let has_passed = |batch: &Batch| batch.passed_ms.is_some();
        let is_led = match own {
            Some(own) => {
                rollout.batches[own].is_open() && rollout.batches[..own].iter().all(has_passed)
            }
            // Set aside, and back.
            None => rollout.aside.contains(swaps) && rollout.batches.iter().any(has_passed),
        };
        assert!(is_led, "{swaps} swaps before its gate: {rollout:#?}");
    }

    /// Lets everybody act, and time pass, until nothing more happens.
    pub(super) fn run(&mut self) -> End {
        for _ in 0..400 {
            let decision = self.settle();
            if self.round() {
                continue;
            }
            match decision {
                Decision::Wait { within: Some(within), reason } => {
                    assert!(!within.is_zero() && !reason.is_empty(), "{reason:?} {within:?}");
                    self.pass(within);
                }
                Decision::Wait { reason, .. } => {
                    assert!(!reason.is_empty(), "it stands for a reason");
                    return End::Stands(reason);
                }
                _ => return End::Rests,
            }
        }
        panic!("no end: {:#?}", self.rollout());
    }
}
