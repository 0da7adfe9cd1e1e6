//! The agent's decisions: state, event → effects. Nothing here acts.
//!
//! ```text
//!              target            prepared         yes           journalled
//!   Idle ──────────────► Preparing ──────► Asking ───► Journalling ─────► Live: activate, prove, probe
//!    ▲ ▲                 │   ▲                                            │            │
//!    │ │          failed ▼   │ due                                 failed ▼            │ healthy
//!    │ │                Waiting                                     Restoring          │
//!    │ └──────────────────────────────────────────────────────────────────┘            │
//!    └─────────────────────────────────── proven ──────────────────────────────────────┘
//!   Boot: the same steps for one rung of the ladder after the other, until something serves.
//!   A word of the source that says less than "take": prepared is where it ends, and a leave is withdrawn.
//!   Live: an activation that could not begin, and has touched nothing, goes back to Waiting.
//!   Idle, Waiting: now and then a look at what serves; Idle: a missing fallback is made ready.
//! ```
//!
//! Invariants
//! - Pure: no clock, no I/O, no randomness. Time comes in with each event, as time since the start.
//! - One task at a time: a task begins only when none runs, or after [`Effect::Cancel`].
//! - What touches the live release stands in the journal first, and waits until that is durable.
//! - What fails before the swap is tried again and rejects nothing; what fails after it is restored
//!   and never activated again for the same target, save on a boot: there, what was proven here fails
//!   by what is around it.
//! - A target that is lower than one that was seen changes nothing.
//! - An event that is out of place changes nothing: after a restart, or a cancel, the shell may
//!   deliver an answer to a question that is no longer asked.

use std::collections::BTreeSet;
use std::time::Duration;

use towline_protocol::ids::{Group, Order, Revision};
use towline_protocol::poll::Word;
use towline_protocol::report::{Cause, Evidence, Failure, Health, Report};

use crate::journal::{self, Journal, Release, Swap};

mod approach;
mod ladder;
mod live;
mod look;
mod told;
mod word;

use ladder::Ladder;
use word::Hint;

/// How often a killed agent takes up one swap again before it restores: whatever kills the agent
/// three times may be the revision itself.
const RESUMES_MAX: u32 = 3;

/// What host config and the machine's surroundings decide.
#[derive(Debug, Clone)]
pub struct Policy {
    /// This instance's group.
    pub group: Group,
    /// Does host config name what served here before the agent came?
    pub has_adopted: bool,
    /// By when a boot has settled what serves; `boot.deadline_s`, 240 s by default.
    pub boot_deadline: Duration,
    /// The wait after a first failure; it doubles up to `backoff_max`.
    pub backoff: Duration,
    /// The longest wait between two attempts.
    pub backoff_max: Duration,
    /// Spreads the attempts of a fleet: any number that differs between instances.
    pub seed: u64,
}

/// What the shell found on the instance when it started.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The complete releases on disk, oldest first.
    pub releases: Vec<Revision>,
    /// The complete release that `current` points at; where it points at none, and the adopted one runs,
    /// that.
    pub current: Option<Release>,
    /// Does its cluster manager run?
    pub is_running: bool,
}

/// Names one task, so that a late answer to an earlier one is told apart.
pub type TaskId = u64;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The source has spoken; it may say what it said before.
    Told(Word),
    /// The source has no target, or none that can be followed; why, in one line.
    Objected(String),
    /// The question of the task that runs goes out with this number.
    Asked(u64),
    /// A task ended.
    Done(TaskId, Outcome),
    /// Releases were thrown away; these are left, oldest first.
    Pruned(Vec<Revision>),
    /// The time asked for with [`Effect::WakeAt`] has come.
    Woke,
    /// The manager of what serves has ended, with nobody having told it to.
    Ended,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The release is complete on disk. `alike`: or need not be made, because the live release has
    /// the same content.
    Prepared {
        /// Has the live release the same subtree and recipe?
        alike: bool,
    },
    /// The source gives leave to swap.
    Permitted(Leave),
    /// The source gives no leave for now. A question without an answer is [`Outcome::Failed`].
    Denied,
    /// The journal that allows a swap is durable.
    Journalled,
    /// `current` points at the release, and its manager was told to reload, or was started anew.
    Activated(How),
    /// The activation could not begin, and has touched nothing; why, in one line.
    Untouched(String),
    /// The release's own hook failed before anything was touched; why, in one line.
    Refused(String),
    /// The workers were replaced; `None` where there are none that could show anything.
    Proved(Option<Evidence>),
    /// The probes were passed, through the window that was asked for. `served`: and each named the
    /// revision.
    Healthy {
        /// Did the app's own answers name the revision?
        served: bool,
    },
    /// A look has found that nothing of the release runs.
    Absent,
    /// The task failed.
    Failed(Cause, String),
}

/// Leave to swap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leave {
    /// When it ends, as time since the start: a swap that is not journalled by then does not begin.
    /// `None`: never.
    pub until: Option<Duration>,
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the journal durably; a failure is logged, and the next journal makes up for it.
    Journal(Box<Journal>),
    /// Begin this task; its end comes back as [`Event::Done`].
    Begin(TaskId, Task),
    /// End the task that runs, with all of its processes, and wait until it has ended.
    Cancel,
    /// Deliver [`Event::Woke`] at this time; a later request replaces an earlier one.
    WakeAt(Duration),
    /// Tell this.
    Report(Box<Report>),
    /// Throw away releases and dependency trees beyond the configured number, save these.
    Prune(BTreeSet<Revision>),
}

/// Work that takes time.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Make this revision's release. With `unless_like`: only if its content differs from that one's.
    Prepare {
        /// The revision to make ready.
        revision: Revision,
        /// The live release, where it may stand in for one of the same content.
        unless_like: Option<Revision>,
    },
    /// Ask the source for leave to swap.
    Ask(Order),
    /// Write this journal durably; then the swap has begun.
    Journal(Box<Journal>),
    /// Point `current` at `to`, and reload, restart or start its manager.
    Activate {
        /// The release to make live.
        to: Release,
        /// What served before, where it is not what `current` names; its manager may still run.
        from: Option<Release>,
        /// How far to go.
        how: How,
        /// Is it a deploy, whose hooks are due? Not where something is made live again that was, or that
        /// was good here before a boot.
        is_deploy: bool,
    },
    /// Wait until the workers are those of this release.
    Prove(Release),
    /// Probe this release, which was made live a moment ago.
    Probe(Release, Window),
    /// Look at this release, which serves: does it run, and is it healthy?
    Check(Release, Window),
}

/// How far to go to make a release live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A reload, unless the recipe asks for more or nothing runs.
    Reload,
    /// Stop what runs, then start.
    Restart,
}

/// How long to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Through the recipe's whole health window.
    Full,
    /// Until the recipe's passes, or as many failures, have come in a row.
    Brief,
}

/// What a deploy aims at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Aim {
    release: Release,
    order: Order,
    restart: u64,
    /// The order to this instance that it carries out; see `Orders::restart`.
    ordered: u64,
}

/// What stands in the journal before a swap, and again after one that did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owed {
    swap: Option<Swap>,
    leave: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// At boot, nothing serves, and the source has not spoken yet.
    Unsure,
    Idle,
    Preparing {
        aim: Aim,
        attempt: u32,
    },
    Waiting {
        retry: Retry,
        attempt: u32,
        until: Duration,
    },
    /// `ask`: the source's word on when to ask again, as it was when the question was asked.
    Asking {
        aim: Aim,
        attempt: u32,
        ask: u64,
    },
    Journalling {
        swap: Swap,
        how: How,
        owed: Owed,
        leave: Option<Leave>,
    },
    Live {
        swap: Swap,
        how: How,
        step: Step,
    },
    Restoring {
        swap: Swap,
        how: How,
        step: Step,
        attempt: u32,
    },
    /// At rest, with the fallback being made ready beside what serves.
    Stocking {
        revision: Revision,
    },
    Checking {
        window: Window,
        back: Option<Box<State>>,
    },
}

/// What is tried again after a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Retry {
    Prepare(Aim),
    /// The question for leave; `ask`: see [`State::Asking`].
    Ask {
        aim: Aim,
        ask: u64,
    },
    Restore(Swap),
    /// A swap that was found half done, and cannot go on for now.
    Resume(Swap, How),
    Ladder,
}

/// How far a swap has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Activate,
    Prove,
    Probe,
}

/// The agent's decisions for one app.
#[derive(Debug)]
pub struct Machine {
    policy: Policy,
    journal: Journal,
    state: State,
    now: Duration,
    /// The id of the newest task, and whether it still runs.
    task: TaskId,
    is_busy: bool,
    /// The complete releases on disk, oldest first.
    releases: Vec<Revision>,
    /// How often in a row a boot, or a restore, ended with nothing good that serves.
    falls: u32,
    /// How many restores of these.
    restores: u32,
    ladder: Option<Ladder>,
    live: Live,
    /// What was live, and what was owed, before the activation that goes on.
    before: Option<(Live, Owed)>,
    hint: Hint,
    /// What was prepared since the start: it need not be prepared again to be swapped to.
    ready: Option<Release>,
    /// The number of the question that is open.
    asked: Option<u64>,
    /// The newest question whose answer was not used and never will be.
    renounced: u64,
    /// When the live release was last looked at.
    looked: Duration,
    /// When the fallback may be made ready; `None` where it never can be.
    stock_due: Option<Duration>,
    /// The target's revision, when the live release has the same content under another id.
    alike: Option<Revision>,
    degraded: Option<String>,
    failure: Option<Failure>,
    objection: Option<String>,
    reported: Option<Report>,
}

/// What is known of the live release.
#[derive(Debug, Clone, Default)]
struct Live {
    release: Option<Release>,
    /// May something of it run?
    is_running: bool,
    evidence: Option<Evidence>,
    health: Option<Health>,
    /// What the last look found to be wrong with it.
    trouble: Option<String>,
}

impl Machine {
    /// Takes up where the journal and the disk stand, and returns what to do first.
    ///
    /// The journal's `run` is this run's already: questions of earlier ones are as good as withdrawn.
    #[must_use]
    pub fn new(policy: Policy, journal: Journal, found: Found) -> (Self, Vec<Effect>) {
        let earlier = journal.run.wrapping_shl(journal::RUN_SHIFT);
        let mut machine = Self {
            hint: Hint::none(journal.orders),
            ready: None,
            asked: None,
            // A leave that was used is another matter than one that was not.
            renounced: journal.leave.map_or(earlier, |used| used.saturating_sub(1)),
            policy,
            journal,
            state: State::Idle,
            now: Duration::ZERO,
            task: 0,
            is_busy: false,
            releases: found.releases,
            falls: 0,
            restores: 0,
            ladder: None,
            live: Live { release: found.current, is_running: found.is_running, ..Live::default() },
            before: None,
            looked: Duration::ZERO,
            stock_due: Some(Duration::ZERO),
            alike: None,
            degraded: None,
            failure: None,
            objection: None,
            reported: None,
        };
        let mut effects = Vec::new();
        match machine.journal.swap.take() {
            Some(swap) => machine.resume(swap, &mut effects),
            None if machine.live.is_running => machine.check(None, &mut effects),
            None => {
                machine.state = State::Unsure;
                let ladder = Ladder::new(Duration::ZERO, machine.policy.boot_deadline);
                effects.extend(ladder.rung_deadline().map(Effect::WakeAt));
                machine.ladder = Some(ladder);
            }
        }
        machine.tell(&mut effects);
        (machine, effects)
    }

    /// Takes one event and returns what to do about it, in order. `now` is the time since the start.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        // The clock that the shell reads never steps back; one that did would only delay.
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        match event {
            Event::Told(word) => self.told(word, &mut effects),
            Event::Objected(reason) => self.objected(reason, &mut effects),
            Event::Woke => self.woke(&mut effects),
            Event::Ended => self.ended(&mut effects),
            Event::Pruned(left) => self.releases = left,
            Event::Asked(question) => {
                if matches!(self.state, State::Asking { .. }) {
                    self.asked = Some(question);
                }
            }
            Event::Done(task, outcome) => {
                if self.is_busy && task == self.task {
                    self.is_busy = false;
                    self.done(outcome, &mut effects);
                }
            }
        }
        self.tell(&mut effects);
        effects
    }

    /// Returns the journal as it is in memory, for tests of what must hold.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Is this what serves, or of the same content?
    fn serves(&self, release: &Release) -> bool {
        let is_alike = release.own().is_some_and(|own| self.alike.as_ref() == Some(own));
        let is_held = is_alike || self.live.release.as_ref() == Some(release);
        // What failed and was not replaced yet may well run, and serves nobody.
        let has_failed = self.journal.swap.as_ref().is_some_and(|swap| swap.failed.is_some());
        self.live.is_running && !has_failed && is_held
    }

    /// Does the live release hold this revision's content?
    fn serves_revision(&self, revision: &Revision) -> bool {
        self.serves(&Release::Own(revision.clone()))
    }

    /// Is it there to be made live?
    fn is_on_disk(&self, release: &Release) -> bool {
        release.own().map_or(self.policy.has_adopted, |revision| self.releases.contains(revision))
    }

    /// The adopted release, where it has served here.
    fn adopted(&self) -> Option<Release> {
        (self.policy.has_adopted && self.journal.adopted).then_some(Release::Adopted)
    }

    /// The revision of the live release, where that is one of our own.
    fn live_revision(&self) -> Option<&Revision> {
        self.live.release.as_ref().and_then(Release::own)
    }

    /// Goes for the newest target, with nothing under way.
    fn start_over(&mut self, effects: &mut Vec<Effect>) {
        if self.ladder.is_some() {
            self.climb(effects);
        } else {
            self.consider(effects);
        }
    }

    fn woke(&mut self, effects: &mut Vec<Effect>) {
        if self.is_past_rung() {
            return self.step_down_late(effects);
        }
        match self.state.clone() {
            State::Waiting { ref retry, .. }
                if self.look_due(retry).is_some_and(|due| due <= self.now) =>
            {
                let back = self.state.clone();
                self.check(Some(back), effects);
            }
            State::Waiting { retry, attempt, until } if self.now < until => {
                self.wait_until(retry, attempt, until, effects);
            }
            State::Waiting { retry, attempt, .. } => match retry {
                Retry::Prepare(aim) => self.prepare(aim, attempt + 1, effects),
                Retry::Ask { aim, .. } => self.ask(aim, attempt + 1, effects),
                Retry::Restore(swap) => self.restore(swap, How::Restart, attempt + 1, effects),
                Retry::Resume(swap, how) => self.activate(swap, how, None, effects),
                // What was started last may have come up by now.
                Retry::Ladder => self.check(None, effects),
            },
            State::Idle => self.check(None, effects),
            _ => {}
        }
    }

    fn done(&mut self, outcome: Outcome, effects: &mut Vec<Effect>) {
        match (self.state.clone(), outcome) {
            (State::Preparing { aim, .. }, Outcome::Prepared { alike }) => {
                self.prepared(aim, alike, effects);
            }
            (State::Preparing { aim, attempt }, Outcome::Failed(cause, detail)) => {
                self.not_prepared(aim, attempt, cause, detail, effects);
            }
            (State::Asking { aim, attempt, .. }, Outcome::Permitted(leave)) => {
                self.permitted(aim, attempt, leave, effects);
            }
            (State::Asking { aim, ask, .. }, Outcome::Denied) => self.denied(aim, ask, effects),
            (State::Asking { aim, attempt, .. }, _) => self.unanswered(aim, attempt, effects),
            (State::Journalling { swap, owed, leave, .. }, Outcome::Journalled)
                if self.has_lapsed(&swap, leave) =>
            {
                self.unused(swap, owed, effects);
            }
            (State::Journalling { swap, how, owed, .. }, Outcome::Journalled) => {
                let before = (self.live.clone(), owed);
                self.activate(swap, how, Some(before), effects);
            }
            (State::Journalling { swap, owed, .. }, Outcome::Failed(cause, detail)) => {
                // It may stand on disk all the same, by what was journalled meanwhile or by a write
                // that failed late; a killed agent would then begin it, whatever its target is by now.
                self.withdraw(swap, owed, cause, detail, effects);
            }
            (State::Live { swap, how, step }, outcome) => {
                self.live_done(swap, how, step, outcome, effects);
            }
            (State::Restoring { swap, how, step, attempt }, outcome) => {
                self.restoring_done(swap, how, step, attempt, outcome, effects);
            }
            (State::Stocking { revision }, outcome) => self.stocked(revision, outcome, effects),
            (State::Checking { window, back }, outcome) => {
                self.checked(window, back.map(|back| *back), outcome, effects);
            }
            // The only catch-all: an outcome that no task of this state can have.
            _ => {}
        }
    }

    /// What the agent is to write when it is told to stop: an ending that was asked for says nothing
    /// against the swap that it interrupts.
    #[must_use]
    pub fn stopped(&self) -> Option<Journal> {
        let mut journal = self.journal.clone();
        let swap = journal.swap.as_mut().filter(|swap| swap.resumes > 0)?;
        swap.resumes -= 1;
        Some(journal)
    }

    fn begin(&mut self, task: Task, effects: &mut Vec<Effect>) {
        self.task += 1;
        self.is_busy = true;
        effects.push(Effect::Begin(self.task, task));
    }

    /// Ends what is under way before the swap.
    fn stop(&mut self, effects: &mut Vec<Effect>) {
        if self.is_busy {
            self.is_busy = false;
            self.renounce();
            effects.push(Effect::Cancel);
        }
    }

    /// What must stay on disk: the live release, what a restore would need, the target's two.
    #[must_use]
    pub fn keep(&self) -> BTreeSet<Revision> {
        let mut keep: BTreeSet<Revision> = self.live_revision().into_iter().cloned().collect();
        let other = |revision: &&Revision| {
            Some(*revision) != self.live_revision() && self.releases.contains(revision)
        };
        keep.extend(self.journal.proven.iter().rev().find(other).cloned());
        if let Some(target) = &self.journal.target {
            keep.extend(target.revision.clone());
            keep.extend(target.fallback.clone());
        }
        keep.extend(self.journal.word.as_ref().and_then(|word| word.boot.clone()));
        if let Some(swap) = &self.journal.swap {
            keep.extend(swap.to.own().cloned());
            keep.extend(swap.from.as_ref().and_then(Release::own).cloned());
        }
        keep
    }
}

#[cfg(test)]
mod tests;
