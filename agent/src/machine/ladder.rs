//! The boot ladder: what to serve when nothing does yet.
//!
//! ```text
//!   assignment ──► fallback ──► newest proven here ──► baked ──► nothing; again later
//!   (the target)   (of the target)                     (what `current` was, or any release on disk)
//! ```
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

/// Where a boot stands on the ladder.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    started: Duration,
    deadline: Duration,
    rung: Option<Rung>,
    tried: Vec<Revision>,
    reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    Assignment,
    Fallback,
    Proven,
    Baked,
    /// No release is left to try.
    Ground,
}

impl Ladder {
    /// A ladder that is to have settled at `deadline`, begun at `started`.
    pub(super) fn new(started: Duration, deadline: Duration) -> Self {
        Self { started, deadline, rung: None, tried: Vec::new(), reasons: Vec::new() }
    }

    /// By when the present rung's release must be prepared; what is on disk needs no preparing.
    pub(super) fn rung_deadline(&self) -> Option<Duration> {
        let whole = self.deadline.saturating_sub(self.started);
        let share = match self.rung {
            // The source's word, the assignment, and then the fallback: of the same time.
            None => whole / 4,
            Some(Rung::Assignment) => whole * 3 / 4,
            Some(Rung::Fallback) => whole,
            Some(Rung::Proven | Rung::Baked | Rung::Ground) => return None,
        };
        Some(self.started + share)
    }

    /// Why the rungs above were left, in one line; `None` on the first.
    pub(super) fn reason(&self) -> Option<String> {
        (self.rung != Some(Rung::Assignment)).then(|| self.reasons.join("; "))
    }
}

impl Machine {
    /// Begins at the first rung, keeping the time that is left.
    pub(super) fn climb(&mut self, effects: &mut Vec<Effect>) {
        let is_late = matches!(self.state, State::Waiting { retry: Retry::Ladder, .. });
        let fresh = match &self.ladder {
            Some(ladder) if !is_late => Ladder::new(ladder.started, ladder.deadline),
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
                Some(Rung::Baked | Rung::Ground) => Rung::Ground,
            };
            ladder.rung = Some(rung);
            if rung == Rung::Ground {
                return self.nothing_left(effects);
            }
            match self.candidate(rung) {
                Ok(Some(revision)) => {
                    let aim = Aim { revision, order: self.order(), restart: self.restart_wanted() };
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
        let is_new = |revision: &&Revision| {
            !tried.contains(revision) && self.journal.rejection(order, revision).is_none()
        };
        let on_disk = |revision: &&Revision| self.releases.contains(revision);
        let target = self.journal.target.as_ref();
        Ok(match rung {
            Rung::Assignment => {
                let Some(target) = target else {
                    let why = self.objection.as_deref().unwrap_or("the source has not answered");
                    return Err(format!("there is no target: {why}"));
                };
                if let Some(detail) = self.journal.rejection(target.order, &target.revision) {
                    return Err(format!("{} was rejected: {detail}", target.revision.short()));
                }
                Some(target.revision.clone())
            }
            Rung::Fallback => {
                target.and_then(|target| target.fallback.as_ref()).filter(is_new).cloned()
            }
            Rung::Proven => self.journal.proven.iter().rev().filter(is_new).find(on_disk).cloned(),
            Rung::Baked => {
                let current = self.live.revision.iter().filter(on_disk);
                current.chain(self.releases.iter().rev()).find(is_new).cloned()
            }
            Rung::Ground => None,
        })
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
        let deadline = self.ladder.as_ref().and_then(Ladder::rung_deadline);
        let has_time = deadline.is_some_and(|deadline| self.now + self.backoff(attempt) < deadline);
        if has_time && cause != Cause::Refused {
            return self.wait(Retry::Prepare(aim), attempt, effects);
        }
        self.leave(said);
        self.next_rung(effects);
    }

    /// Is the time for preparing the present rung over?
    pub(super) fn is_past_rung(&self) -> bool {
        let prepares = matches!(
            self.state,
            State::Unsure
                | State::Preparing { .. }
                | State::Waiting { retry: Retry::Prepare(_), .. }
        );
        let deadline = self.ladder.as_ref().and_then(Ladder::rung_deadline);
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
    pub(super) fn rung_fell(&mut self, said: String, effects: &mut Vec<Effect>) {
        if self.ladder.is_none() {
            // Found unfinished after a restart of the agent: the rungs below are still there.
            let deadline = self.now + self.policy.boot_deadline;
            self.ladder = Some(Ladder::new(self.now, deadline));
            return self.next_rung(effects);
        }
        self.leave(said);
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
        self.falls = 0;
        self.degraded = self.ladder.take().and_then(|ladder| ladder.reason());
    }
}
