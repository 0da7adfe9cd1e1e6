//! A simulated fleet: real agent machines and real coordinators' boards over one model store, with a
//! network, disks, clocks and operators that do their worst. Everything follows from the seed; time is
//! virtual.
//!
//! ```text
//!   operators ──┐
//!   Host ───────┼── network ──► Coordinator ──► Store
//!   (Machine)   ┘               (Board)           └── changes, perhaps late ──► every Coordinator
//! ```
//!
//! What must hold after each step is in `rules`, what must come once the faults have stopped in `ending`.

use std::collections::BTreeMap;
use std::time::Duration;

use towline_agent::journal::Release;
use towline_coordinator::records::{Draft, key};
use towline_protocol::fleet::GroupRecord;
use towline_protocol::ids::{Group, Revision};
use towline_protocol::policy::{Bake, BootQuarantine, FailuresMax, OnFailure, Policy, Share};

use crate::random::Random;

mod coordinator;
mod ending;
mod host;
mod messages;
mod network;
mod operators;
mod rules;
mod store;
mod tasks;
mod trouble;

use coordinator::Coordinator;
use host::{Host, Running};
use network::{Caller, Reply, Sent};
use operators::Standing;
use rules::Book;
use store::Store;

/// How long polls hang; short, so that leases are.
const WAIT_S: u32 = 5;

/// How much may happen in one fleet; ten times of what does.
const EVENTS_MAX: u64 = 400_000;

/// How many lines of a trace are shown, unless all of it is asked for.
const SHOWN_MAX: usize = 150;

fn group() -> Group {
    "web".parse().expect("a valid name")
}

/// What a revision is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Character {
    Good,
    /// Its reload shows no new workers; a restart does.
    NeedsRestart,
    InstallFails,
    Refused,
    Crashes,
    Unhealthy,
    /// Healthy at first, and then not.
    Fades,
}

/// Something that is going to happen.
#[derive(Debug, Clone)]
enum Due {
    /// The next fault, or order.
    Trouble,
    Request(Box<Sent>),
    Reply(Caller, Box<Reply>),
    Look {
        at: usize,
        life: u64,
    },
    Follow {
        at: usize,
        life: u64,
    },
    Job {
        at: usize,
        life: u64,
        job: u64,
    },
    PollOver {
        at: usize,
        life: u64,
        caller: Caller,
    },
    CoordinatorStarts(usize),
    CoordinatorGoesOn(usize),
    Task {
        host: usize,
        life: u64,
        task: u64,
    },
    Wake {
        host: usize,
        life: u64,
        due: Duration,
    },
    /// A request of this number must have been answered.
    Late {
        host: usize,
        life: u64,
        seq: u64,
    },
    /// What was told is told once more.
    TellsAgain {
        host: usize,
        life: u64,
    },
    AgentStarts(usize),
    AgentGoesOn(usize),
    OperatorWaits(u64),
}

/// A fleet and everything around it.
#[derive(Debug)]
pub struct World {
    random: Random,
    now: Duration,
    has_faults: bool,
    due: BTreeMap<(Duration, u64), Due>,
    /// Counts whatever needs a number.
    number: u64,
    events: u64,
    store: Store,
    coordinators: Vec<Coordinator>,
    hosts: Vec<Host>,
    revisions: Vec<(Revision, Character)>,
    operations: BTreeMap<u64, Standing>,
    book: Book,
    /// One in so many messages is lost; 0: none.
    loss: u64,
    /// The most seconds between two troubles.
    calm_s: u64,
    /// Until when whatever the app depends on is down.
    outage_until: Duration,
    trace: Option<Vec<String>>,
}

impl World {
    /// A fleet as it is before the first release. `has_trace`: keeps what happens, to be shown.
    #[must_use]
    pub fn new(seed: u64, has_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let loss = random.pick(&[0, 0, 50, 15]).copied().unwrap_or(0);
        let calm_s = random.pick(&[4, 12, 25, 50]).copied().unwrap_or(12);
        Self {
            random,
            now: Duration::from_secs(1),
            has_faults: true,
            due: BTreeMap::new(),
            number: 0,
            events: 0,
            store: Store::default(),
            coordinators: Vec::new(),
            hosts: Vec::new(),
            revisions: Vec::new(),
            operations: BTreeMap::new(),
            book: Book::default(),
            loss,
            calm_s,
            outage_until: Duration::ZERO,
            trace: has_trace.then(Vec::new),
        }
    }

    /// Lives through trouble, then through quiet; checks what must hold after each step, and what must
    /// come in the end.
    ///
    /// # Errors
    ///
    /// What was broken, with the end of what led there where a trace is kept.
    pub fn live(&mut self, troubles: usize) -> Result<(), String> {
        let outcome = self
            .set_up()
            .and_then(|()| self.run_troubled(troubles))
            .and_then(|()| self.run_quiet());
        outcome.map_err(|broken| {
            let at = self.now.as_secs();
            let Some(trace) = &self.trace else { return format!("after {at} s: {broken}") };
            let from = trace.len().saturating_sub(SHOWN_MAX);
            format!("after {at} s: {broken}\n  {}", trace[from..].join("\n  "))
        })
    }

    /// Returns what has happened, where a trace is kept.
    #[must_use]
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    fn any_policy(&mut self) -> Policy {
        let share = |percent: &u32| Share::Percent(*percent);
        let lists: [&[u32]; 4] = [&[100], &[50, 100], &[25, 50, 100], &[34]];
        let batches =
            self.random.pick(&lists).map_or(Vec::new(), |list| list.iter().map(share).collect());
        let budget = [Share::Count(1), Share::Count(2), Share::Percent(25), Share::Percent(50)];
        let budget = self.random.pick(&budget).copied().unwrap_or(Share::Count(1));
        let seconds = |random: &mut Random| random.pick(&[0, 5, 15, 30]).copied().unwrap_or(5);
        let window_s = if self.random.one_in(2) { 600 } else { 60 };
        let policy = Policy {
            mirror: false,
            canary: if self.random.one_in(4) { 2 } else { 1 },
            batches,
            max_unavailable: budget,
            max_unavailable_rollback: Share::Percent(if self.random.one_in(2) { 50 } else { 25 }),
            bake_s: Bake { canary: seconds(&mut self.random), batch: seconds(&mut self.random) },
            failures_max: FailuresMax {
                canary: u32::from(self.random.one_in(4)),
                batch: u32::from(self.random.one_in(2)),
                rollout: 2,
            },
            on_failure: if self.random.one_in(3) { OnFailure::Halt } else { OnFailure::Rollback },
            healthy_deadline_s: 60,
            prepare_deadline_s: 150,
            progress_deadline_s: 200,
            boot_quarantine: BootQuarantine { instances: 2, window_s },
            ..Policy::default()
        };
        policy.check().expect("a policy that can be")
    }

    fn set_up(&mut self) -> Result<(), String> {
        let policy = self.any_policy();
        self.tell(|_| format!("{policy:?}"));
        let mut draft = Draft::new();
        draft.put(key::EPOCH.to_owned(), &serde_json::json!({ "epoch": 1_790_000_000 }));
        draft.put(key::group(&group()), &GroupRecord::new(group(), policy));
        self.store.commit(draft.into_commit())?;
        let coordinators = if self.random.one_in(2) { 1 } else { 2 };
        for at in 0..coordinators {
            self.coordinators.push(Coordinator::default());
            self.start_coordinator(at)?;
        }
        let old = self.new_revision(Some(Character::Good));
        for _ in 0..self.random.between(0, 6) {
            self.join(&old)?;
        }
        self.later(Duration::from_secs(1), Due::Trouble);
        Ok(())
    }

    /// A new instance is launched; its image may hold a release, which may serve already.
    fn join(&mut self, baked: &Revision) -> Result<(), String> {
        let index = self.hosts.len();
        let mut host = Host::new(index);
        if !self.random.one_in(3) {
            host.disk.releases.push(baked.clone());
            host.disk.current = Some(baked.clone());
            if self.random.one_in(2) {
                self.book.activated.insert(baked.clone());
                host.runs = Some(self.running(Release::Own(baked.clone())));
            }
        } else if self.random.one_in(2) {
            // What is there is none of ours; it may serve.
            host.has_adopted = true;
            host.runs = (!self.random.one_in(3)).then(|| self.running(Release::Adopted));
        }
        self.hosts.push(host);
        self.start_agent(index)
    }

    fn running(&self, release: Release) -> Running {
        Running { release, since: self.now, how: towline_agent::machine::How::Restart }
    }

    fn new_revision(&mut self, character: Option<Character>) -> Revision {
        let any = match self.random.below(12) {
            0 => Character::InstallFails,
            1 => Character::Refused,
            2 => Character::Crashes,
            3 => Character::Unhealthy,
            4 => Character::Fades,
            5 => Character::NeedsRestart,
            _ => Character::Good,
        };
        let number = self.revisions.len() + 0x0a01;
        let revision: Revision = format!("{number:04x}{:036x}", 0).parse().expect("40 digits");
        self.revisions.push((revision.clone(), character.unwrap_or(any)));
        revision
    }

    fn any_revision(&mut self) -> Revision {
        let known = self.random.pick(&self.revisions).map(|(revision, _)| revision.clone());
        known.unwrap_or_else(|| self.new_revision(None))
    }

    fn later(&mut self, wait: Duration, due: Due) {
        self.number += 1;
        self.due.insert((self.now + wait, self.number), due);
    }

    fn tell(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{:9.3} {}", self.now.as_secs_f64(), line(self));
            self.trace.get_or_insert_default().push(line);
        }
    }

    /// The next thing happens.
    fn advance(&mut self) -> Result<(), String> {
        self.events += 1;
        if self.events > EVENTS_MAX {
            return Err("more happens than a fleet of this size should need".to_owned());
        }
        let Some(((at, _), due)) = self.due.pop_first() else {
            return Err("nothing will ever happen again".to_owned());
        };
        self.now = self.now.max(at);
        if let Some(held) = self.held(&due) {
            held.push(due);
            return Ok(());
        }
        self.happen(due)
    }

    /// Where what happens to a process waits that is stopped.
    fn held(&mut self, due: &Due) -> Option<&mut Vec<Due>> {
        match due {
            Due::Request(sent) => self.coordinators[sent.to].held.as_mut(),
            Due::Look { at, .. }
            | Due::Follow { at, .. }
            | Due::Job { at, .. }
            | Due::PollOver { at, .. } => self.coordinators[*at].held.as_mut(),
            Due::Reply(Caller::Agent { host, .. }, _)
            | Due::Task { host, .. }
            | Due::Wake { host, .. }
            | Due::TellsAgain { host, .. }
            | Due::Late { host, .. } => self.hosts[*host].held.as_mut(),
            _ => None,
        }
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Trouble => self.trouble(),
            Due::Request(sent) => self.request(*sent),
            Due::Reply(caller, reply) => self.answered(caller, *reply),
            Due::Look { at, life } if self.coordinators[at].life == life => self.look(at, true),
            Due::Follow { at, life } if self.coordinators[at].life == life => self.follow(at),
            Due::Job { at, life, job } if self.coordinators[at].life == life => self.go_on(at, job),
            Due::PollOver { at, life, caller } if self.coordinators[at].life == life => {
                self.poll_over(at, caller);
                Ok(())
            }
            Due::CoordinatorStarts(at) => self.start_coordinator(at),
            Due::CoordinatorGoesOn(at) => {
                self.coordinator_goes_on(at);
                Ok(())
            }
            Due::Task { host, life, task } if self.hosts[host].life == life => {
                self.task_ends(host, task)
            }
            Due::Wake { host, life, due } if self.hosts[host].life == life => self.wakes(host, due),
            Due::Late { host, life, seq } if self.hosts[host].life == life => {
                self.is_late(host, seq)
            }
            Due::TellsAgain { host, life } if self.hosts[host].life == life => {
                self.tell_again(host);
                Ok(())
            }
            Due::AgentStarts(host) => self.start_agent(host),
            Due::AgentGoesOn(host) => {
                self.agent_goes_on(host);
                Ok(())
            }
            Due::OperatorWaits(key) => {
                self.try_order(key);
                Ok(())
            }
            // Of a process that has ended since.
            Due::Look { .. }
            | Due::Follow { .. }
            | Due::Job { .. }
            | Due::PollOver { .. }
            | Due::Task { .. }
            | Due::Wake { .. }
            | Due::TellsAgain { .. }
            | Due::Late { .. } => Ok(()),
        }
    }
}
