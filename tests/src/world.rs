//! A simulated instance: the real machine in a world that fails, repeats, and crashes it between any
//! two effects. Everything follows from the seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use towline_agent::journal::Journal;
use towline_agent::machine::{Effect, Event, Found, How, Machine, Outcome, Policy, Task, TaskId};
use towline_protocol::ids::{Order, Revision};
use towline_protocol::report::{Cause, Evidence};
use towline_protocol::target::Target;

/// `SplitMix64`: enough randomness for schedules, and no dependency whose next version reorders them.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
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
    now: Duration,
    has_faults: bool,
    target: Option<Target>,
    // What survives a crash of the agent.
    journal: Journal,
    releases: Vec<Revision>,
    current: Option<Revision>,
    running: Option<Revision>,
    // The agent.
    machine: Machine,
    task: Option<(TaskId, Task)>,
    wake: Option<Duration>,
    may_swap: bool,
    /// Did anything serve when the agent started?
    found_running: bool,
    /// Did the disk refuse the journal of the swap?
    is_full: bool,
    /// How the release that runs came to run.
    how: How,
    begun: usize,
    trace: Vec<String>,
}

fn policy() -> Policy {
    Policy {
        group: "web".parse().expect("a valid name"),
        boot_deadline: Duration::from_secs(240),
        backoff: Duration::from_secs(2),
        backoff_max: Duration::from_secs(300),
        seed: 7,
    }
}

impl World {
    /// An instance on which nothing of Towline has ever run.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let journal = Journal::new("i-sim".parse().expect("a valid name"));
        let (machine, effects) = Machine::new(policy(), journal.clone(), Found::default());
        let mut world = Self {
            random: Random(seed),
            characters: BTreeMap::new(),
            now: Duration::ZERO,
            has_faults: true,
            target: None,
            journal,
            releases: Vec::new(),
            current: None,
            running: None,
            machine,
            task: None,
            wake: None,
            may_swap: false,
            found_running: false,
            is_full: false,
            how: How::Reload,
            begun: 0,
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
            match self.random.below(12) {
                0 => {
                    self.move_target();
                    self.hear()?;
                }
                1 => {
                    self.crash();
                    self.hear()?;
                }
                2 if self.random.one_in(3) => {
                    self.running = None;
                    self.crash();
                    self.hear()?;
                }
                3 => self.mislead()?,
                4 => {
                    // An answer to a question of long ago.
                    let old = self.random.below(self.begun as u64 + 2);
                    if self.task.as_ref().is_none_or(|(id, _)| *id != old) {
                        self.step(Event::Done(old, Outcome::Activated))?;
                    }
                }
                5 => self.hear()?,
                _ => self.advance()?,
            }
        }
        Ok(())
    }

    /// Once the faults have stopped: the newest target's revision is served if it is any good, and
    /// otherwise something good if there is any.
    fn quiet(&mut self) -> Result<(), String> {
        self.has_faults = false;
        if self.target.is_none() {
            self.move_target();
        }
        self.hear()?;
        self.settle()?;
        self.check_end()?;
        let good = self.revision_of(Character::Good);
        self.set_target(good.clone(), None, 0);
        self.hear()?;
        self.settle()?;
        if self.running.as_ref() != Some(&good) || !self.machine.is_converged() {
            return Err(format!("a good target was not reached: {:?} runs", self.running));
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), String> {
        let begun = self.begun;
        for _ in 0..300 {
            // What is waited for may come yet; a healthy end is one that stays.
            if self.task.is_none() && self.machine.is_converged() {
                return Ok(());
            }
            self.advance()?;
        }
        if self.begun - begun > 4_000 {
            return Err("a busy loop".to_owned());
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), String> {
        let target = self.target.as_ref().ok_or("there is a target")?;
        let character = |revision: &Revision| self.characters.get(revision).copied();
        let was_rejected = self.journal.rejection(target.order, &target.revision).is_some();
        let is_good = character(&target.revision).is_some_and(Character::is_good);
        if is_good && !was_rejected && !self.machine.is_converged() {
            return Err(format!("{:?} is good and was not reached", target.revision.short()));
        }
        // What failed for this very target is not activated again for it.
        let is_open = |revision: &Revision| {
            self.releases.contains(revision)
                && self.journal.rejection(target.order, revision).is_none()
        };
        let has_good = self.journal.proven.iter().any(is_open);
        let runs_good = self.running.as_ref().and_then(character).is_some_and(Character::is_good);
        if has_good && !runs_good {
            return Err(format!("{:?} runs, and something good is on disk", self.running));
        }
        Ok(())
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
        let revision = if self.random.one_in(3) { old(&mut self.random) } else { None };
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

    fn set_target(&mut self, revision: Revision, fallback: Option<Revision>, more: u64) {
        let last = self.target.as_ref().map_or((0, 0), |t| (t.order.generation, t.restart));
        self.target = Some(Target {
            version: 1,
            group: policy().group,
            order: Order { epoch: 1, generation: last.0 + 1 },
            revision,
            fallback,
            restart: last.1 + more,
        });
    }

    fn hear(&mut self) -> Result<(), String> {
        match self.target.clone() {
            Some(target) => self.step(Event::Targeted(target)),
            None => self.step(Event::Objected("there is no file".to_owned())),
        }
    }

    /// The source names what must not be followed.
    fn mislead(&mut self) -> Result<(), String> {
        let Some(mut target) = self.target.clone() else {
            return self.step(Event::Objected("there is no file".to_owned()));
        };
        match self.random.below(3) {
            0 => target.order.generation = target.order.generation.saturating_sub(1),
            1 => target.restart += 1,
            _ => return self.step(Event::Objected("it does not parse".to_owned())),
        }
        // Only what was heard before can be told from it.
        if self.machine.journal().target == self.target {
            self.step(Event::Targeted(target))?;
        }
        Ok(())
    }

    /// The agent is killed and started again.
    fn crash(&mut self) {
        self.trace.push(format!("crash; {:?} runs", self.running.as_ref().map(Revision::short)));
        self.task = None;
        self.wake = None;
        // A swap whose journal stands was given leave.
        self.may_swap = false;
        self.now = Duration::ZERO;
        // A boot that was interrupted is still a boot: nothing served before it.
        let is_boot = self.journal.swap.as_ref().is_some_and(|swap| swap.from.is_none());
        self.found_running = self.running.is_some() && !is_boot;
        let found = Found {
            releases: self.releases.clone(),
            current: self.current.clone(),
            is_running: self.running.is_some(),
        };
        let (machine, effects) = Machine::new(policy(), self.journal.clone(), found);
        self.machine = machine;
        if let Err(broken) = self.perform(effects) {
            self.trace.push(format!("broken: {broken}"));
        }
    }

    /// Whatever is due next happens: a task ends, or the clock wakes.
    fn advance(&mut self) -> Result<(), String> {
        self.now += Duration::from_millis(1 + self.random.below(3_000));
        if let Some((id, task)) = self.task.take() {
            let outcome = self.end(&task)?;
            return self.step(Event::Done(id, outcome));
        }
        if let Some(wake) = self.wake.take() {
            self.now = self.now.max(wake);
            return self.step(Event::Woke);
        }
        Err("nothing will ever happen again".to_owned())
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        self.trace.push(format!("{:?} {event:?}", self.now));
        let effects = self.machine.step(self.now, event);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            if self.has_faults && self.random.one_in(60) {
                self.crash();
                return Ok(());
            }
            match effect {
                Effect::Journal(journal) => {
                    // A disk that is full loses it; the next one makes up for it.
                    if !(self.has_faults && self.random.one_in(30)) {
                        self.write(*journal)?;
                    }
                }
                Effect::Begin(id, task) => self.begin(id, task)?,
                Effect::Cancel => self.task = None,
                Effect::WakeAt(time) => self.wake = Some(time),
                Effect::Report(_) => {}
                Effect::Prune(keep) => self.prune(&keep)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, journal: Journal) -> Result<(), String> {
        let order = |journal: &Journal| journal.target.as_ref().map(|target| target.order);
        if order(&journal) < order(&self.journal) {
            return Err("the high-water mark fell".to_owned());
        }
        self.journal = journal;
        Ok(())
    }

    fn begin(&mut self, id: TaskId, task: Task) -> Result<(), String> {
        self.trace.push(format!("  begin {task:?}"));
        self.begun += 1;
        if let Some((_, running)) = &self.task {
            return Err(format!("{task:?} begins while {running:?} runs"));
        }
        match &task {
            Task::Journal(journal) => {
                let swap = journal.swap.as_ref().ok_or("a journal that allows no swap")?;
                let serves = self.running.as_ref().is_some_and(|own| self.journal.is_proven(own));
                if serves && self.found_running && !self.may_swap {
                    return Err("a swap of what serves, without leave".to_owned());
                }
                if self.journal.rejection(swap.order, &swap.to).is_some() {
                    return Err("a rejected revision is to be activated again".to_owned());
                }
                self.may_swap = false;
                self.is_full = self.has_faults && self.random.one_in(8);
                if !self.is_full {
                    let journal = (**journal).clone();
                    self.write(journal)?;
                }
            }
            Task::Activate { to, from, .. } => {
                // Leave was asked for where it was due: from here on it is a boot.
                self.found_running &= from.is_some();
                let swap = self.journal.swap.as_ref().ok_or("nothing was journalled")?;
                let restores = swap.from.as_ref() == Some(to);
                if swap.to != *to && !restores {
                    return Err(format!("{} is not what was journalled", to.short()));
                }
                if !self.releases.contains(to) {
                    return Err(format!("{} is not on disk", to.short()));
                }
            }
            _ => {}
        }
        self.task = Some((id, task));
        Ok(())
    }

    /// Carries a task out.
    fn end(&mut self, task: &Task) -> Result<Outcome, String> {
        let failed = |cause, detail: &str| Ok(Outcome::Failed(cause, detail.to_owned()));
        let is_unlucky = self.has_faults && self.random.one_in(8);
        let character =
            |revision: &Revision| self.characters.get(revision).copied().unwrap_or(Character::Good);
        match task {
            Task::Prepare { revision, .. } => {
                if self.releases.contains(revision) {
                    return Ok(Outcome::Prepared { alike: false });
                }
                match character(revision) {
                    Character::InstallFails => return failed(Cause::Install, "npm says no"),
                    Character::Refused => return failed(Cause::Refused, "a submodule"),
                    _ if is_unlucky => return failed(Cause::Fetch, "no route"),
                    _ => {}
                }
                self.releases.push(revision.clone());
                Ok(Outcome::Prepared { alike: false })
            }
            Task::Ask(_) => {
                self.may_swap = !is_unlucky;
                Ok(Outcome::Permitted(!is_unlucky))
            }
            Task::Journal(_) if self.is_full => failed(Cause::Disk, "full"),
            Task::Journal(_) => Ok(Outcome::Journalled),
            Task::Activate { to, how, .. } => {
                self.current = Some(to.clone());
                self.running = Some(to.clone());
                self.how = *how;
                if is_unlucky { failed(Cause::Activate, "no pid") } else { Ok(Outcome::Activated) }
            }
            Task::Prove(revision) => match character(revision) {
                Character::Crashes => failed(Cause::Prove, "they come and go"),
                Character::NeedsRestart if self.how == How::Reload => failed(Cause::Prove, "old"),
                _ if is_unlucky => failed(Cause::Prove, "slow"),
                _ => Ok(Outcome::Proved(Evidence::Started)),
            },
            Task::Probe(revision, _) => match character(revision) {
                _ if self.running.as_ref() != Some(revision) => failed(Cause::Unhealthy, "refused"),
                Character::Crashes | Character::Unhealthy => failed(Cause::Unhealthy, "503"),
                _ if is_unlucky => failed(Cause::Unhealthy, "503"),
                _ => Ok(Outcome::Healthy { served: true }),
            },
        }
    }

    fn prune(&mut self, keep: &BTreeSet<Revision>) -> Result<(), String> {
        let needed = [&self.running, &self.current];
        if let Some(lost) = needed.into_iter().flatten().find(|live| !keep.contains(*live)) {
            return Err(format!("{} is live and not kept", lost.short()));
        }
        let mut left = Vec::new();
        for release in std::mem::take(&mut self.releases) {
            if keep.contains(&release) || !self.random.one_in(3) {
                left.push(release);
            }
        }
        self.releases = left;
        Ok(())
    }
}
