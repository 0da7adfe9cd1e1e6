//! A simulated instance: its disk, what runs on it, and its agent: the real machine, with what its shell
//! does around it: a poll that is always parked, the newest report until it is acknowledged, a question
//! with its deadline, tasks.

use std::collections::VecDeque;
use std::time::Duration;

use towline_agent::journal::{Journal, RUN_SHIFT, Release};
use towline_agent::machine::{Effect, Event, Found, How, Machine, Outcome, Policy, Task, TaskId};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::report::Report;

use super::{Due, World, group};

/// The longest wait of an agent between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// An instance.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: Instance,
    /// Counts the runs of its agent, and the times in between.
    pub(super) life: u64,
    pub(super) agent: Option<Agent>,
    pub(super) disk: Disk,
    pub(super) runs: Option<Running>,
    /// The agent's process is stopped; what happens to it meanwhile waits.
    pub(super) held: Option<Vec<Due>>,
    /// Until when no message gets through.
    pub(super) cut_until: Duration,
    /// Does its host config name what was there before the agent?
    pub(super) has_adopted: bool,
    /// It was terminated.
    pub(super) is_gone: bool,
    /// Its permit was closed by an operator, or by its own goodbye, whatever it was used for: what it
    /// swaps from then on until the next permit is theirs.
    pub(super) is_excused: bool,
    /// The question whose permit was given for an order to restart, and for nothing else.
    pub(super) restarts_by: Option<u64>,
    /// The leave by which the last swap began.
    pub(super) begun: Option<u64>,
}

/// What survives whatever ends the agent.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) journal: Journal,
    /// Oldest first.
    pub(super) releases: Vec<Revision>,
    pub(super) current: Option<Revision>,
    /// A write of the journal failed, and none has succeeded since.
    pub(super) is_behind: bool,
}

/// What runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) release: Release,
    pub(super) since: Duration,
    pub(super) how: How,
}

/// A run of the agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) machine: Machine,
    pub(super) started: Duration,
    pub(super) task: Option<(TaskId, Task)>,
    pub(super) wake: Option<Duration>,
    pub(super) counter: u64,
    /// The coordinator that it speaks to.
    pub(super) at: usize,
    /// When it last went on to another one.
    pub(super) turned: Duration,
    /// The poll that is under way.
    pub(super) poll: Option<u64>,
    pub(super) seen: Option<String>,
    /// The newest report, as long as it is not acknowledged.
    pub(super) report: Option<Pending>,
    pub(super) told: Option<Report>,
    pub(super) question: Option<Asked>,
    /// The leave that was given last: when its question was sent, and its number.
    pub(super) leave: Option<Asked>,
    /// Has the app ended, and has nobody looked since?
    pub(super) has_died: bool,
    /// Did the disk refuse the journal of the swap?
    pub(super) is_full: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) seq: u64,
    pub(super) since: Duration,
    pub(super) report: Report,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) seq: u64,
    pub(super) sent: Duration,
    pub(super) task: TaskId,
    pub(super) order: Order,
}

impl Host {
    pub(super) fn new(number: usize) -> Self {
        let name: Instance = format!("i-{number}").parse().expect("a valid name");
        let journal = Journal::new(name.clone());
        let disk = Disk { journal, releases: Vec::new(), current: None, is_behind: false };
        Self {
            name,
            life: 0,
            agent: None,
            disk,
            runs: None,
            held: None,
            cut_until: Duration::ZERO,
            has_adopted: false,
            is_gone: false,
            is_excused: false,
            restarts_by: None,
            begun: None,
        }
    }

    /// Is it an ordinary instance, that runs and can be heard?
    pub(super) fn is_up(&self, now: Duration) -> bool {
        !self.is_gone && self.agent.is_some() && self.held.is_none() && self.cut_until <= now
    }

    /// Does it serve this?
    pub(super) fn serves(&self, revision: &Revision) -> bool {
        self.runs.as_ref().is_some_and(|runs| runs.release.is(revision))
    }
}

impl Agent {
    pub(super) fn next_seq(&mut self) -> u64 {
        self.counter += 1;
        (self.machine.journal().run << RUN_SHIFT) | self.counter
    }
}

impl World {
    fn policy_of(host: usize, has_adopted: bool) -> Policy {
        Policy {
            group: group(),
            has_adopted,
            boot_deadline: Duration::from_secs(60),
            backoff: Duration::from_secs(2),
            backoff_max: BACKOFF_MAX,
            seed: host as u64,
        }
    }

    /// The agent starts, on what it finds.
    pub(super) fn start_agent(&mut self, index: usize) -> Result<(), String> {
        let at = self.preferred_coordinator();
        let now = self.now;
        let host = &mut self.hosts[index];
        if host.agent.is_some() || host.is_gone {
            return Ok(());
        }
        host.life += 1;
        // Durable before anything is sent.
        host.disk.journal.run += 1;
        // What it forgets of a swap that has ended, it takes up once more.
        host.is_excused |= host.disk.is_behind;
        host.disk.is_behind = false;
        let runs = host.runs.as_ref().map(|runs| runs.release.clone());
        let current = host.disk.current.clone().map(Release::Own);
        let found = Found {
            releases: host.disk.releases.clone(),
            current: current.or(runs.filter(|release| *release == Release::Adopted)),
            is_running: host.runs.is_some(),
        };
        let policy = Self::policy_of(index, host.has_adopted);
        let (machine, effects) = Machine::new(policy, host.disk.journal.clone(), found);
        host.agent = Some(Agent {
            machine,
            started: now,
            task: None,
            wake: None,
            counter: 0,
            at,
            turned: now,
            poll: None,
            seen: None,
            report: None,
            told: None,
            question: None,
            leave: None,
            has_died: false,
            is_full: false,
        });
        let life = host.life;
        self.tell(|world| {
            let host = &world.hosts[index];
            let runs = host.runs.as_ref().map(|runs| runs.release.short());
            format!("{} starts; {runs:?} runs; {:?}", host.name, host.disk.journal.swap)
        });
        let mut events = VecDeque::new();
        self.perform(index, effects, &mut events)?;
        while let Some(event) = events.pop_front() {
            if self.hosts[index].life != life {
                return Ok(());
            }
            self.step(index, event)?;
        }
        self.poll(index);
        Ok(())
    }

    /// The agent's process ends, in the middle of whatever it does; it comes back in a while.
    pub(super) fn crash_agent(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(agent) = host.agent.take() else { return };
        host.life += 1;
        host.held = None;
        let half = agent.task.map(|(_, task)| task);
        self.tell(|world| format!("{} crashes", world.hosts[index].name));
        if let Some(Task::Activate { to, .. }) = half {
            // What was under way was done, or half done, or not.
            match self.random.below(3) {
                0 => self.make_live(index, &to, How::Restart),
                1 => self.hosts[index].disk.current = to.own().cloned(),
                _ => {}
            }
        }
        let wait = self.random.between(100, 6_000);
        self.later(Duration::from_millis(wait), Due::AgentStarts(index));
    }

    pub(super) fn make_live(&mut self, index: usize, to: &Release, how: How) {
        let host = &mut self.hosts[index];
        host.disk.current = to.own().cloned();
        host.runs = Some(Running { release: to.clone(), since: self.now, how });
    }

    /// One event for the machine, and all that follows from it at once.
    pub(super) fn step(&mut self, index: usize, event: Event) -> Result<(), String> {
        let life = self.hosts[index].life;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.tell(|world| format!("{} hears {event:?}", world.hosts[index].name));
            let host = &mut self.hosts[index];
            let Some(agent) = host.agent.as_mut().filter(|_| host.life == life) else {
                return Ok(());
            };
            let effects = agent.machine.step(self.now.saturating_sub(agent.started), event);
            self.perform(index, effects, &mut events)?;
        }
        self.check_host(index)
    }

    fn perform(
        &mut self,
        index: usize,
        effects: Vec<Effect>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), String> {
        for effect in effects {
            if self.has_faults && self.random.one_in(250) {
                self.crash_agent(index);
                return Ok(());
            }
            match effect {
                Effect::Journal(journal) => {
                    let is_lost = self.has_faults && self.random.one_in(40);
                    self.hosts[index].disk.is_behind = is_lost;
                    if !is_lost {
                        self.write(index, *journal)?;
                    }
                }
                Effect::Begin(id, task) => self.begin(index, id, task, events)?,
                Effect::Cancel => {
                    if let Some(agent) = &mut self.hosts[index].agent {
                        (agent.task, agent.question) = (None, None);
                    }
                }
                Effect::WakeAt(time) => self.wake_at(index, time),
                Effect::Report(report) => self.report(index, *report),
                Effect::Prune(keep) => {
                    let random = &mut self.random;
                    let releases = &mut self.hosts[index].disk.releases;
                    releases.retain(|release| keep.contains(release) || random.one_in(2));
                    events.push_back(Event::Pruned(releases.clone()));
                }
            }
        }
        Ok(())
    }

    /// The journal becomes durable.
    pub(super) fn write(&mut self, index: usize, journal: Journal) -> Result<(), String> {
        let order = |journal: &Journal| journal.target.as_ref().map(|target| target.order);
        let host = &mut self.hosts[index];
        if order(&journal) < order(&host.disk.journal) {
            return Err(format!("{}: the order fell in its journal", host.name));
        }
        host.disk.journal = journal;
        Ok(())
    }

    fn wake_at(&mut self, index: usize, time: Duration) {
        let host = &mut self.hosts[index];
        let Some(agent) = &mut host.agent else { return };
        let due = agent.started + time;
        if agent.wake == Some(due) {
            return;
        }
        agent.wake = Some(due);
        let life = host.life;
        let wait = due.saturating_sub(self.now);
        self.later(wait, Due::Wake { host: index, life, due });
    }

    pub(super) fn wakes(&mut self, index: usize, due: Duration) -> Result<(), String> {
        let Some(agent) = &mut self.hosts[index].agent else { return Ok(()) };
        if agent.wake != Some(due) {
            return Ok(());
        }
        agent.wake = None;
        self.step(index, Event::Woke)
    }

    /// A task ended.
    pub(super) fn done(
        &mut self,
        index: usize,
        task: TaskId,
        outcome: Outcome,
    ) -> Result<(), String> {
        if let Some(agent) = &mut self.hosts[index].agent {
            agent.task.take_if(|(id, _)| *id == task);
        }
        self.step(index, Event::Done(task, outcome))
    }
}
