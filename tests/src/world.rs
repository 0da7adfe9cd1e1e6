//! A simulated instance: the real machine in a world that fails, repeats, and crashes it between any
//! two effects. Everything follows from the seed. What must hold in it is in `rules`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use towline_agent::journal::{Journal, Release};
use towline_agent::machine::{
    Effect, Event, Found, How, Leave, Machine, Outcome, Policy, Task, TaskId,
};
use towline_protocol::ids::Revision;
use towline_protocol::report::{Phase, Report};
use towline_protocol::target::Target;

use crate::random::Random;

mod rules;
mod source;
mod tasks;

use source::Says;

/// When the shell ends a preparing that hangs.
const PREPARE_DEADLINE: Duration = Duration::from_secs(600);

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
}

impl Character {
    fn is_good(self) -> bool {
        matches!(self, Character::Good | Character::NeedsRestart)
    }
}

/// The instance and everything around it.
#[derive(Debug)]
pub struct World {
    random: Random,
    characters: BTreeMap<Revision, Character>,
    /// Revisions whose content is that of an earlier one.
    twins: BTreeMap<Revision, Revision>,
    now: Duration,
    has_faults: bool,
    target: Option<Target>,
    // What survives a crash of the agent.
    journal: Journal,
    releases: Vec<Revision>,
    current: Option<Revision>,
    running: Option<Release>,
    /// Does host config name what was there before the agent?
    has_adopted: bool,
    // The agent.
    machine: Machine,
    task: Option<(TaskId, Task)>,
    wake: Option<Duration>,
    told: Option<Report>,
    /// Until when the task that runs hangs.
    hangs: Option<Duration>,
    says: Says,
    /// Is the journal on disk older than the agent's, because a write failed?
    is_behind: bool,
    /// Did anything serve when the agent started?
    found_running: bool,
    /// Did the disk refuse the journal of the swap?
    is_full: bool,
    /// Is the machine in a state in which nothing can be started?
    is_stuck: bool,
    /// How the release that runs came to run.
    how: How,
    /// The newest order to restart that a start has satisfied.
    started_for: u64,
    /// Has the app ended, and has nobody looked since?
    has_died: bool,
    /// How often in a row a restore has failed.
    unrestored: usize,
    /// Has a restore failed so often that the ladder is what is left?
    has_given_up: bool,
    /// Tasks that were cancelled; their answers may still come.
    cancelled: Vec<TaskId>,
    begun: usize,
    prepares: usize,
    crashes: usize,
    trace: Vec<String>,
}

fn policy() -> Policy {
    Policy {
        group: "web".parse().expect("a valid name"),
        has_adopted: false,
        boot_deadline: Duration::from_secs(240),
        backoff: Duration::from_secs(2),
        backoff_max: Duration::from_secs(300),
        seed: 7,
    }
}

impl World {
    /// An instance on which no agent has ever run; its image may hold a release.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let journal = Journal::new("i-sim".parse().expect("a valid name"));
        // The release that an image may hold.
        let baked: Revision = "b".repeat(40).parse().expect("40 digits");
        let is_baked = random.one_in(3);
        let current = is_baked.then(|| baked.clone());
        let releases: Vec<Revision> = current.iter().cloned().collect();
        // And what may run there from before there were any.
        let has_adopted = random.one_in(3);
        let is_adopted = has_adopted && !is_baked && !random.one_in(4);
        let running = is_adopted.then_some(Release::Adopted);
        let live = current.clone().map(Release::Own).or(running.clone());
        let found = Found { releases: releases.clone(), current: live, is_running: is_adopted };
        let policy = Policy { has_adopted, ..policy() };
        let (machine, effects) = Machine::new(policy, journal.clone(), found);
        let mut world = Self {
            random,
            characters: current.iter().map(|baked| (baked.clone(), Character::Good)).collect(),
            twins: BTreeMap::new(),
            now: Duration::ZERO,
            has_faults: true,
            target: None,
            journal,
            releases,
            current,
            running,
            has_adopted,
            machine,
            task: None,
            wake: None,
            told: None,
            hangs: None,
            says: Says::new(),
            is_behind: false,
            found_running: is_adopted,
            is_full: false,
            is_stuck: false,
            how: How::Reload,
            started_for: 0,
            has_died: false,
            unrestored: 0,
            has_given_up: false,
            cancelled: Vec::new(),
            begun: 0,
            prepares: 0,
            crashes: 0,
            trace: Vec::new(),
        };
        world.perform(effects).expect("a machine that begins only waits");
        world
    }

    /// Lives through `rounds` of trouble, then through quiet until nothing is left to do; checks
    /// what must hold after each step, and what must come in the end.
    ///
    /// # Errors
    ///
    /// What was broken, with the events that led there.
    pub fn live(&mut self, rounds: usize) -> Result<(), String> {
        let outcome = self.troubled(rounds).and_then(|()| self.quiet());
        outcome.map_err(|broken| {
            let from = self.trace.len().saturating_sub(700);
            format!("{broken}\n  {}", self.trace[from..].join("\n  "))
        })
    }

    fn troubled(&mut self, rounds: usize) -> Result<(), String> {
        for _ in 0..rounds {
            match self.random.below(16) {
                0 => {
                    self.move_target();
                    self.hear()?;
                }
                1 => {
                    self.crash()?;
                    self.hear()?;
                }
                2 if self.random.one_in(3) => {
                    self.running = None;
                    self.crash()?;
                    self.hear()?;
                }
                3 => self.mislead()?,
                4 => {
                    // An answer to a question of long ago.
                    let old = self.random.below(self.begun as u64 + 2);
                    if self.task.as_ref().is_none_or(|(id, _)| *id != old) {
                        self.step(Event::Done(old, Outcome::Activated(How::Reload)))?;
                    }
                }
                5 => self.hear()?,
                9 => self.shift()?,
                6 => self.is_stuck = self.random.one_in(3),
                7 => self.disturb()?,
                // The app ends while the agent has nothing to do with it.
                8 if self.random.one_in(2) => {
                    let touches = |task: &Task| {
                        !matches!(task, Task::Prepare { .. } | Task::Ask(_) | Task::Journal(_))
                    };
                    if !self.task.as_ref().is_some_and(|(_, task)| touches(task)) {
                        let has_ended = self.running.take().is_some();
                        self.has_died |= has_ended;
                        if has_ended && self.random.one_in(2) {
                            self.step(Event::Ended)?;
                        }
                    }
                }
                _ => self.advance()?,
            }
        }
        Ok(())
    }

    /// Once the faults have stopped: the newest target's revision is served if it is any good, and
    /// otherwise something good if there is any.
    fn quiet(&mut self) -> Result<(), String> {
        self.has_faults = false;
        self.open_up();
        self.is_stuck = false;
        if self.random.one_in(3) {
            // A newer target in the first moment of an agent that was just killed.
            self.crash()?;
            self.move_target();
        }
        if self.target.is_none() {
            self.move_target();
        }
        self.hear()?;
        self.settle()?;
        self.check_end()?;
        self.rest()?;
        let good = self.revision_of(Character::Good);
        let more = self.random.below(2);
        self.set_target(good.clone(), None, more);
        self.hear()?;
        self.settle()?;
        if self.running_own() != Some(&good) {
            return Err(format!("a good target was not reached: {:?} runs", self.running));
        }
        self.check_end()?;
        self.rest()
    }

    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..300 {
            // What is waited for may come yet; a healthy end is one that stays.
            if self.task.is_none() && self.machine.is_converged() && !self.has_died {
                return Ok(());
            }
            self.advance()?;
        }
        Ok(())
    }

    /// An hour in which nothing happens costs little, and the source's repeating itself nothing.
    fn rest(&mut self) -> Result<(), String> {
        let (until, begun) = (self.now + Duration::from_secs(3_600), self.begun);
        self.prepares = 0;
        let mut steps = 0;
        while self.now < until {
            self.advance()?;
            let before = self.begun;
            self.hear()?;
            if self.begun != before {
                return Err("the same target again began something".to_owned());
            }
            steps += 1;
            if steps > 600 || self.begun - begun > 300 {
                return Err(format!("a busy hour: {steps} steps"));
            }
        }
        self.check_rest(self.begun - begun)
    }

    /// A new revision with the content of a known one.
    fn twin_of(&mut self, known: &Revision) -> Revision {
        let content = self.content(known).clone();
        let character = self.characters.get(&content).copied().unwrap_or(Character::Good);
        let revision = self.revision_of(character);
        self.twins.insert(revision.clone(), content);
        revision
    }

    fn content<'a>(&'a self, revision: &'a Revision) -> &'a Revision {
        self.twins.get(revision).unwrap_or(revision)
    }

    fn revision_of(&mut self, character: Character) -> Revision {
        let number = self.characters.len() + 1;
        let revision: Revision = format!("{number:040x}").parse().expect("40 digits");
        self.characters.insert(revision.clone(), character);
        revision
    }

    fn move_target(&mut self) {
        let known: Vec<Revision> = self.characters.keys().cloned().collect();
        let old = |random: &mut Random| {
            let index = usize::try_from(random.below(known.len().max(1) as u64)).unwrap_or(0);
            known.get(index).cloned()
        };
        let revision = match self.random.below(9) {
            0..3 => old(&mut self.random),
            3 => old(&mut self.random).map(|known| self.twin_of(&known)),
            _ => None,
        };
        let revision = revision.unwrap_or_else(|| {
            let character = match self.random.below(9) {
                0 => Character::InstallFails,
                1 => Character::Refused,
                2 => Character::Crashes,
                3 => Character::Unhealthy,
                4 => Character::NeedsRestart,
                _ => Character::Good,
            };
            self.revision_of(character)
        });
        let fallback = if self.random.one_in(2) { old(&mut self.random) } else { None };
        let more = u64::from(self.random.one_in(5));
        self.set_target(revision, fallback, more);
    }

    /// What was cancelled answers all the same, or the clock wakes before its time.
    fn disturb(&mut self) -> Result<(), String> {
        if let Some(id) = self.cancelled.pop() {
            let answer = match self.random.below(3) {
                0 => Outcome::Prepared { alike: false },
                1 => Outcome::Permitted(Leave::default()),
                _ => Outcome::Healthy { served: true },
            };
            return self.step(Event::Done(id, answer));
        }
        let told = self.told.as_ref().filter(|_| self.task.is_none());
        let is_waiting = told.is_some_and(|told| told.phase == Phase::Waiting);
        let crashes = self.crashes;
        if let Some(due) = self.wake.take_if(|due| is_waiting && self.now < *due) {
            self.step(Event::Woke)?;
            if self.told.as_ref().is_some_and(|told| told.phase == Phase::Waiting)
                && self.crashes == crashes
                && self.wake != Some(due)
            {
                return Err(format!("woken before {due:?}, it forgets that"));
            }
        }
        Ok(())
    }

    /// The revision that runs, where it is none that was there before.
    fn running_own(&self) -> Option<&Revision> {
        self.running.as_ref().and_then(Release::own)
    }

    /// The agent is killed and started again.
    fn crash(&mut self) -> Result<(), String> {
        self.trace.push(format!("crash; {:?} runs", self.running.as_ref().map(Release::short)));
        self.crashes += 1;
        self.task = None;
        self.has_died = false;
        self.unrestored = 0;
        self.has_given_up = false;
        self.cancelled.clear();
        self.wake = None;
        self.told = None;
        // A swap whose journal stands was given leave.
        self.next_run();
        self.is_behind = false;
        self.now = Duration::ZERO;
        // A boot that was interrupted is still a boot: nothing served before it.
        let is_boot = self.journal.swap.as_ref().is_some_and(|swap| swap.from.is_none());
        self.found_running = self.running.is_some() && !is_boot;
        let current = self.current.clone().map(Release::Own);
        let adopted = || self.running.clone().filter(|release| *release == Release::Adopted);
        let found = Found {
            releases: self.releases.clone(),
            current: current.or_else(adopted),
            is_running: self.running.is_some(),
        };
        let policy = Policy { has_adopted: self.has_adopted, ..policy() };
        let (machine, effects) = Machine::new(policy, self.journal.clone(), found);
        self.machine = machine;
        self.perform(effects)
    }

    /// Whatever is due next happens: a task ends, or the clock wakes.
    fn advance(&mut self) -> Result<(), String> {
        self.now += Duration::from_millis(1 + self.random.below(3_000));
        let hangs_until = self.hangs.filter(|until| self.task.is_some() && *until > self.now);
        // The clock waits for no task.
        let wakes_before = |wake: &Duration| *wake <= hangs_until.unwrap_or(self.now);
        if self.task.is_none() || self.wake.as_ref().is_some_and(wakes_before) {
            let wake = self.wake.take().ok_or("nothing will ever happen again")?;
            self.now = self.now.max(wake);
            return self.step(Event::Woke);
        }
        self.now = hangs_until.unwrap_or(self.now);
        let Some((id, task)) = self.task.take() else { return Ok(()) };
        let outcome = self.end(&task)?;
        if matches!(outcome, Outcome::Failed(..) | Outcome::Untouched(_) | Outcome::Refused(_)) {
            let swap = self.machine.journal().swap.as_ref();
            let restores = swap.is_some_and(|swap| swap.failed.is_some());
            self.unrestored += usize::from(restores);
        }
        self.step(Event::Done(id, outcome))
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        self.trace.push(format!("{:?} {event:?}", self.now));
        let is_word = !matches!(event, Event::Done(..) | Event::Ended);
        let crashes = self.crashes;
        let effects = self.machine.step(self.now, event);
        self.perform(effects)?;
        let is_unsure = self.told.as_ref().is_some_and(|told| told.phase == Phase::Starting);
        if is_word && is_unsure && self.crashes == crashes {
            return Err(
                "the source has spoken, or its time is over, and nothing is begun".to_owned()
            );
        }
        Ok(())
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            if self.has_faults && self.random.one_in(60) {
                return self.crash();
            }
            match effect {
                Effect::Journal(journal) => {
                    // A disk that is full loses it; the next one makes up for it.
                    let was_behind = self.is_behind;
                    self.is_behind = self.has_faults && self.random.one_in(10);
                    if journal.swap.is_none() {
                        if self.unrestored >= 3 {
                            // From here on it is a boot, whatever may have come up meanwhile.
                            self.has_given_up = true;
                            self.found_running = false;
                        }
                        self.unrestored = 0;
                    }
                    if !self.is_behind {
                        self.write(*journal, !was_behind)?;
                    }
                }
                Effect::Begin(id, task) => self.begin(id, task)?,
                Effect::Cancel => self.cancel()?,
                Effect::WakeAt(time) => {
                    if time > self.now + policy().backoff_max {
                        return Err(format!("it sleeps until {time:?}"));
                    }
                    self.wake = Some(time);
                }
                Effect::Report(report) => self.hear_report(*report)?,
                Effect::Prune(keep) => {
                    self.prune(&keep)?;
                    let left = Event::Pruned(self.releases.clone());
                    effects.extend(self.machine.step(self.now, left));
                }
            }
        }
        self.check_step()
    }
}
