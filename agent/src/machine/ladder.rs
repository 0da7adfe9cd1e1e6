//! The boot ladder: what to serve when nothing does yet.
//!
//! ```text
//!   assignment ──► fallback ──► newest proven here ──► baked ──► shunned ──► nothing; again later
//!                  (of the target)         (what `current` was,   (in quarantine, or what must
//!                                           or any on disk)        not serve)
//! ```
//!
//! The assignment is what the source's word has for a boot. A newborn without one takes what is baked; an
//! instance that served here before keeps what it served, unless its group's boots are the target's.
//!
//! Each rung that is left behind leaves a reason; every rung but the first is `degraded`. A rung's
//! deadline bounds its preparing only: once a release is live it has its whole health window, and
//! the deadlines of its recipe.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Health};

use super::{Aim, Effect, Machine, Retry, State};
use crate::journal::Swap;

/// How often a rung's release is tried to be prepared while something proven here waits on disk.
const ATTEMPTS_MAX: u32 = 3;

/// And for how long, where the attempts do not end: an origin that hangs takes `git.stall_s` each time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a boot stands on the ladder.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    started: Duration,
    deadline: Duration,
    rung: Option<Rung>,
    /// When the present rung was begun.
    rung_began: Duration,
    tried: Vec<Revision>,
    reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    Assignment,
    Fallback,
    Proven,
    Baked,
    /// What is only taken where nothing else is left.
    Shunned,
    /// No release is left to try.
    Ground,
}

impl Ladder {
    /// A ladder that is to have settled at `deadline`, begun at `started`.
    pub(super) fn new(started: Duration, deadline: Duration) -> Self {
        let (tried, reasons) = (Vec::new(), Vec::new());
        Self { started, deadline, rung: None, rung_began: started, tried, reasons }
    }

    /// Is no release left to try?
    pub(super) fn is_on_ground(&self) -> bool {
        self.rung == Some(Rung::Ground)
    }

    /// By when the present rung's release must be prepared; what is on disk needs no preparing.
    pub(super) fn rung_deadline(&self) -> Option<Duration> {
        let whole = self.deadline.saturating_sub(self.started);
        match self.rung {
            // The source's word, the assignment, and then the fallback: of the same time.
            None => Some(self.started + whole / 4),
            Some(Rung::Assignment) => Some(self.started + whole * 3 / 4),
            // An assignment that failed once it was live may have taken more than its share.
            Some(Rung::Fallback | Rung::Shunned) => {
                Some((self.started + whole).max(self.rung_began + whole / 4))
            }
            Some(Rung::Proven | Rung::Baked | Rung::Ground) => None,
        }
    }

    /// What was tried on it.
    pub(super) fn tried(&self) -> &[Revision] {
        &self.tried
    }

    /// Why the rungs above were left, in one line; `None` on the first.
    pub(super) fn reason(&self) -> Option<String> {
        (self.rung != Some(Rung::Assignment)).then(|| self.reasons.join("; "))
    }
}

impl Machine {
    /// Begins at the first rung, keeping the time that is left.
    pub(super) fn climb(&mut self, effects: &mut Vec<Effect>) {
        let fresh = match &self.ladder {
            Some(ladder) if !ladder.is_on_ground() => Ladder::new(ladder.started, ladder.deadline),
            _ => Ladder::new(self.now, self.now + self.policy.boot_deadline),
        };
        self.ladder = Some(fresh);
        self.next_rung(effects);
    }

    /// Goes one rung down, and on until one has a release to try.
    pub(super) fn next_rung(&mut self, effects: &mut Vec<Effect>) {
        loop {
            let Some(ladder) = &mut self.ladder else { return };
            let rung = match ladder.rung {
                None => Rung::Assignment,
                Some(Rung::Assignment) => Rung::Fallback,
                Some(Rung::Fallback) => Rung::Proven,
                Some(Rung::Proven) => Rung::Baked,
                Some(Rung::Baked) => Rung::Shunned,
                Some(Rung::Shunned | Rung::Ground) => Rung::Ground,
            };
            ladder.rung = Some(rung);
            ladder.rung_began = self.now;
            if rung == Rung::Ground {
                return self.nothing_left(effects);
            }
            match self.candidate(rung) {
                Ok(Some(revision)) => {
                    // A start satisfies every order to restart.
                    let ordered = self.hint.orders.restart;
                    let aim = Aim { ordered, ..self.aim(revision) };
                    if let Some(ladder) = &mut self.ladder {
                        ladder.tried.push(aim.revision.clone());
                    }
                    return self.prepare(aim, 1, effects);
                }
                Ok(None) => {}
                Err(reason) => self.leave(reason),
            }
        }
    }

    /// What a rung would serve; an error where it should have something and has not.
    fn candidate(&self, rung: Rung) -> Result<Option<Revision>, String> {
        let tried = self.ladder.as_ref().map_or(&[][..], |ladder| &ladder.tried);
        let order = self.order();
        // What failed for this target is not activated for it again, on no rung.
        let is_open = |revision: &&Revision| {
            !tried.contains(revision) && self.journal.rejection(order, revision).is_none()
        };
        let is_new = |revision: &&Revision| is_open(revision) && !self.is_shunned(revision);
        let on_disk = |revision: &&Revision| self.releases.contains(revision);
        let fallback = self.journal.target.as_ref().and_then(|target| target.fallback.as_ref());
        let proven = self.journal.proven.iter().rev().filter(on_disk);
        Ok(match rung {
            Rung::Assignment => {
                let Some(revision) = self.assigned()? else { return Ok(None) };
                if tried.contains(&revision) {
                    // Found unfinished, and failed: the reason stands already.
                    return Ok(None);
                }
                if let Some(detail) = self.journal.rejection(order, &revision) {
                    return Err(format!("{} was rejected: {detail}", revision.short()));
                }
                if self.is_shunned(&revision) {
                    return Err(format!("{} is in quarantine", revision.short()));
                }
                Some(revision)
            }
            Rung::Fallback => fallback.filter(is_new).cloned(),
            Rung::Proven => proven.into_iter().find(is_new).cloned(),
            Rung::Baked => self.baked().find(is_new).cloned(),
            Rung::Shunned => {
                let assigned = self.assigned().ok().flatten();
                let all = assigned.iter().chain(fallback).chain(proven).chain(self.baked());
                all.filter(|revision| self.is_shunned(revision)).find(is_open).cloned()
            }
            Rung::Ground => None,
        })
    }

    /// What a boot is to serve, if it can; an error where nothing is known of it.
    pub(super) fn assigned(&self) -> Result<Option<Revision>, String> {
        let Some(target) = &self.journal.target else {
            let why = self.objection.as_deref().unwrap_or("the source has not answered");
            return Err(format!("there is no target: {why}"));
        };
        let boot = match &self.journal.word {
            Some(word) => word.boot.clone(),
            None => target.revision.clone(),
        };
        let is_good = |revision: &&Revision| {
            !self.is_shunned(revision) && self.journal.rejection(target.order, revision).is_none()
        };
        let baked = || self.baked().find(is_good).cloned();
        if self.is_newborn() {
            return Ok(boot.or_else(baked).or_else(|| target.revision.clone()));
        }
        if boot.is_some() && boot == target.revision {
            return Ok(boot);
        }
        // The swap to an unproven target had begun where `current` names it, and not otherwise.
        let current = self.live.revision.iter().filter(|live| self.releases.contains(live));
        let proven = self.journal.proven.iter().rev();
        let proven = proven.filter(|revision| self.releases.contains(revision));
        let own = if boot.is_some() { None } else { proven.clone().find(is_good) };
        Ok(current.clone().find(is_good).or(own).cloned().or(boot).or_else(baked))
    }

    /// What lies on disk, what was live first, then the newest.
    fn baked(&self) -> impl Iterator<Item = &Revision> {
        let current = self.live.revision.iter().filter(|live| self.releases.contains(live));
        current.chain(self.releases.iter().rev())
    }

    fn leave(&mut self, reason: String) {
        if let Some(ladder) = &mut self.ladder {
            ladder.reasons.push(reason);
        }
    }

    /// The present rung's release could not be prepared: again while there is time, else down.
    pub(super) fn rung_failed(
        &mut self,
        aim: Aim,
        attempt: u32,
        cause: Cause,
        said: String,
        effects: &mut Vec<Effect>,
    ) {
        let deadline = self.rung_deadline(&aim.revision);
        let has_time = deadline.is_some_and(|deadline| self.now + self.backoff(attempt) < deadline);
        // What was good here before, and is there, is better than nothing for minutes.
        let is_enough = attempt >= ATTEMPTS_MAX && self.has_proven_besides(&aim.revision);
        if has_time && !is_enough && cause != Cause::Refused {
            self.degraded = Some(said);
            return self.wait(Retry::Prepare(aim), attempt, effects);
        }
        self.leave(said);
        self.next_rung(effects);
    }

    /// By when this release must be prepared: sooner where something proven here waits on disk.
    pub(super) fn rung_deadline(&self, revision: &Revision) -> Option<Duration> {
        let ladder = self.ladder.as_ref()?;
        let deadline = ladder.rung_deadline()?;
        let patience = ladder.rung_began + PATIENCE;
        let is_awaited = self.has_proven_besides(revision);
        Some(if is_awaited { deadline.min(patience) } else { deadline })
    }

    /// Is something on disk that was proven here, and may be activated, besides this?
    fn has_proven_besides(&self, revision: &Revision) -> bool {
        let order = self.order();
        self.journal.proven.iter().any(|proven| {
            proven != revision
                && !self.is_shunned(proven)
                && self.releases.contains(proven)
                && self.journal.rejection(order, proven).is_none()
        })
    }

    /// Is the time for preparing the present rung over?
    pub(super) fn is_past_rung(&self) -> bool {
        let prepares = match &self.state {
            State::Unsure | State::Waiting { retry: Retry::Prepare(_), .. } => true,
            // What is complete on disk needs no preparing.
            State::Preparing { aim, .. } => !self.releases.contains(&aim.revision),
            _ => false,
        };
        let deadline = match &self.state {
            State::Preparing { aim, .. } | State::Waiting { retry: Retry::Prepare(aim), .. } => {
                self.rung_deadline(&aim.revision)
            }
            _ => self.ladder.as_ref().and_then(Ladder::rung_deadline),
        };
        prepares && deadline.is_some_and(|deadline| deadline <= self.now)
    }

    /// Leaves a rung whose time is over.
    pub(super) fn step_down_late(&mut self, effects: &mut Vec<Effect>) {
        self.stop(effects);
        if self.state == State::Unsure {
            return self.climb(effects);
        }
        let late = match (&self.failure, &self.state) {
            (Some(failure), _) => format!(
                "{} could not be prepared in time: {}",
                failure.revision.short(),
                failure.detail
            ),
            (None, State::Preparing { aim, .. }) => {
                format!("{} could not be prepared in time", aim.revision.short())
            }
            (None, _) => "the time was over".to_owned(),
        };
        self.leave(late);
        self.next_rung(effects);
    }

    /// A release of the ladder failed after it was made live.
    pub(super) fn rung_fell(&mut self, swap: &Swap, said: String, effects: &mut Vec<Effect>) {
        self.degraded = Some(said.clone());
        if self.ladder.is_none() && self.order() == swap.order {
            // Found unfinished after a restart of the agent: the rungs below are still there.
            let deadline = self.now + self.policy.boot_deadline;
            let mut ladder = Ladder::new(self.now, deadline);
            // What took the agent down again and again must not come first once more.
            ladder.tried.push(swap.to.clone());
            ladder.reasons.push(said);
            self.ladder = Some(ladder);
            return self.next_rung(effects);
        }
        self.leave(said);
        if self.order() > swap.order {
            // A newer target came meanwhile, and is the first rung.
            return self.climb(effects);
        }
        self.next_rung(effects);
    }

    fn nothing_left(&mut self, effects: &mut Vec<Effect>) {
        let reasons = self.ladder.as_ref().and_then(Ladder::reason).unwrap_or_default();
        self.degraded = Some(format!("nothing could be started: {reasons}"));
        self.live.health = Some(Health::Unhealthy);
        self.falls = self.falls.saturating_add(1);
        self.wait(Retry::Ladder, self.falls, effects);
    }

    /// Something serves: leaves the ladder, and says on which rung.
    pub(super) fn step_off(&mut self) {
        (self.falls, self.restores) = (0, 0);
        self.degraded = self.ladder.take().and_then(|ladder| ladder.reason());
    }
}
