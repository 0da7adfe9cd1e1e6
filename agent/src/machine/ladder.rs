//! The boot ladder: what to serve when nothing does yet.
//!
//! ```text
//!   assignment ──► fallback ──► newest proven here ──► baked ──► adopted ──► shunned ──► nothing;
//!                  (of the target)         (what `current` was,          (in quarantine,   again
//!                                           or any on disk)               or must not serve) later
//! ```
//!
//! The assignment is what the source's word has for a boot. A newborn without one takes what is baked, or
//! was there before the agent; an instance that served here before keeps what it served, unless its group's boots are the target's.
//!
//! Each rung that is left behind leaves a reason; every rung but the first is `degraded`. A rung's
//! deadline bounds its preparing only: once a release is live it has its whole health window, and
//! the deadlines of its recipe.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Health};

use super::{Aim, Effect, Machine, Retry, State, Step};
use crate::journal::{Release, Swap};

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
    /// What the source's word had for a boot when the first rung was begun.
    boot: Option<Revision>,
    /// When the present rung was begun.
    rung_began: Duration,
    tried: Vec<Release>,
    reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    Assignment,
    Fallback,
    Proven,
    Baked,
    Adopted,
    /// What is only taken where nothing else is left.
    Shunned,
    /// No release is left to try.
    Ground,
}

impl Ladder {
    /// A ladder that is to have settled at `deadline`, begun at `started`.
    pub(super) fn new(started: Duration, deadline: Duration) -> Self {
        let (tried, reasons) = (Vec::new(), Vec::new());
        let (rung, boot) = (None, None);
        Self { started, deadline, rung, boot, rung_began: started, tried, reasons }
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
            // One that is assigned late has its time as well.
            Some(Rung::Assignment) => {
                Some((self.started + whole * 3 / 4).max(self.rung_began + whole / 4))
            }
            // An assignment that failed once it was live may have taken more than its share.
            Some(Rung::Fallback | Rung::Shunned) => {
                Some((self.started + whole).max(self.rung_began + whole / 4))
            }
            Some(Rung::Proven | Rung::Baked | Rung::Adopted | Rung::Ground) => None,
        }
    }

    /// What was tried on it.
    pub(super) fn tried(&self) -> &[Release] {
        &self.tried
    }

    /// Why the rungs above were left, in one line; `None` on the first.
    pub(super) fn reason(&self) -> Option<String> {
        (self.rung != Some(Rung::Assignment)).then(|| self.reasons.join("; "))
    }
}

impl Machine {
    /// Is it still open what `current` is to be, since nothing of the app runs? Not where all rungs have
    /// been tried: what happens next is for the world to change.
    #[must_use]
    pub fn is_booting(&self) -> bool {
        let is_climbing = self.ladder.as_ref().is_some_and(|ladder| !ladder.is_on_ground());
        // One that was begun before goes on at the swap.
        let is_resuming = matches!(self.state, State::Live { step: Step::Activate, .. });
        is_climbing || is_resuming || matches!(self.state, State::Unsure)
    }

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
        let boot = self.boot();
        loop {
            let Some(ladder) = &mut self.ladder else { return };
            let rung = match ladder.rung {
                None => {
                    ladder.boot.clone_from(&boot);
                    Rung::Assignment
                }
                Some(Rung::Assignment) => Rung::Fallback,
                Some(Rung::Fallback) => Rung::Proven,
                Some(Rung::Proven) => Rung::Baked,
                Some(Rung::Baked) => Rung::Adopted,
                Some(Rung::Adopted) => Rung::Shunned,
                Some(Rung::Shunned | Rung::Ground) => Rung::Ground,
            };
            ladder.rung = Some(rung);
            ladder.rung_began = self.now;
            if rung == Rung::Ground {
                return self.nothing_left(effects);
            }
            match self.candidate(rung) {
                Ok(Some(release)) => {
                    // A start satisfies every order to restart.
                    let ordered = self.hint.orders.restart;
                    let aim = Aim { ordered, ..self.aim(release) };
                    if let Some(ladder) = &mut self.ladder {
                        ladder.tried.push(aim.release.clone());
                    }
                    return self.prepare(aim, 1, effects);
                }
                Ok(None) => {}
                Err(reason) => self.leave(reason),
            }
        }
    }

    /// What a rung would serve; an error where it should have something and has not.
    fn candidate(&self, rung: Rung) -> Result<Option<Release>, String> {
        let tried = self.ladder.as_ref().map_or(&[][..], |ladder| &ladder.tried);
        let order = self.order();
        // What failed for this target is not activated for it again, on no rung.
        let is_open = |release: &Release| {
            !tried.contains(release) && self.journal.rejection(order, release).is_none()
        };
        let is_new = |release: &Release| is_open(release) && !self.is_shunned(release);
        let on_disk = |release: &Release| self.is_on_disk(release);
        let fallback = self.journal.target.as_ref().and_then(|target| target.fallback.clone());
        let mut fallback = fallback.into_iter().map(Release::Own);
        let mut proven = self.proven_here().filter(on_disk);
        Ok(match rung {
            Rung::Assignment => {
                let Some(release) = self.assigned()? else { return Ok(None) };
                if tried.contains(&release) {
                    // Found unfinished, and failed: the reason stands already.
                    return Ok(None);
                }
                if let Some(detail) = self.journal.rejection(order, &release) {
                    return Err(format!("{} was rejected: {detail}", release.short()));
                }
                if self.is_shunned(&release) {
                    return Err(format!("{} is in quarantine", release.short()));
                }
                Some(release)
            }
            Rung::Fallback => fallback.find(is_new),
            Rung::Proven => proven.find(is_new),
            Rung::Baked => self.baked().find(is_new),
            Rung::Adopted => Some(Release::Adopted).filter(on_disk).filter(is_new),
            Rung::Shunned => {
                let assigned = self.assigned().ok().flatten().into_iter();
                let all = assigned.chain(fallback).chain(proven).chain(self.baked());
                all.filter(|release| self.is_shunned(release)).find(is_open)
            }
            Rung::Ground => None,
        })
    }

    /// What a boot is to serve, if it can; an error where nothing is known of it.
    pub(super) fn assigned(&self) -> Result<Option<Release>, String> {
        let Some(target) = &self.journal.target else {
            let why = self.objection.as_deref().unwrap_or("the source has not answered");
            return Err(format!("there is no target: {why}"));
        };
        let wanted = target.revision.clone().map(Release::Own);
        let boot = match &self.journal.word {
            Some(word) => word.boot.clone().map(Release::Own),
            None => wanted.clone(),
        };
        let is_good = |release: &Release| {
            !self.is_shunned(release) && self.journal.rejection(target.order, release).is_none()
        };
        let on_disk = |release: &Release| self.is_on_disk(release);
        let baked = || self.baked().find(is_good);
        if self.is_newborn() {
            // What lies there to be adopted is as good as baked.
            let adopted = || Some(Release::Adopted).filter(on_disk).filter(is_good);
            return Ok(boot.or_else(baked).or_else(adopted).or(wanted));
        }
        if boot.is_some() && boot == wanted {
            return Ok(boot);
        }
        // The swap to an unproven target had begun where `current` names it, and not otherwise.
        let current = self.live.release.clone().filter(on_disk).filter(is_good);
        let own = || self.proven_here().filter(on_disk).find(is_good);
        let own = current.or_else(|| if boot.is_some() { None } else { own() });
        let adopted = || self.adopted().filter(is_good);
        Ok(own.or(boot).or_else(adopted).or_else(baked))
    }

    /// What was proven here, the newest first.
    fn proven_here(&self) -> impl Iterator<Item = Release> {
        self.journal.proven.iter().rev().cloned().map(Release::Own)
    }

    /// What lies on disk of our own, what was live first, then the newest.
    fn baked(&self) -> impl Iterator<Item = Release> {
        let current = self.live_revision().filter(|live| self.releases.contains(live));
        current.into_iter().chain(self.releases.iter().rev()).cloned().map(Release::Own)
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
        let deadline = self.rung_deadline(&aim.release);
        let has_time = deadline.is_some_and(|deadline| self.now + self.backoff(attempt) < deadline);
        // What was good here before, and is there, is better than nothing for minutes.
        let is_enough = attempt >= ATTEMPTS_MAX && self.has_proven_besides(&aim.release);
        if has_time && !is_enough && cause != Cause::Refused {
            self.degraded = Some(said);
            return self.wait(Retry::Prepare(aim), attempt, effects);
        }
        self.leave(said);
        self.next_rung(effects);
    }

    /// By when this release must be prepared: sooner where something proven here waits on disk.
    pub(super) fn rung_deadline(&self, release: &Release) -> Option<Duration> {
        let ladder = self.ladder.as_ref()?;
        let deadline = ladder.rung_deadline()?;
        let patience = ladder.rung_began + PATIENCE;
        let is_awaited = self.has_proven_besides(release);
        Some(if is_awaited { deadline.min(patience) } else { deadline })
    }

    /// Is something on disk that was proven here, and may be activated, besides this?
    fn has_proven_besides(&self, release: &Release) -> bool {
        let order = self.order();
        self.proven_here().chain(self.adopted()).any(|proven| {
            proven != *release
                && !self.is_shunned(&proven)
                && self.is_on_disk(&proven)
                && self.journal.rejection(order, &proven).is_none()
        })
    }

    /// Is the time for preparing the present rung over?
    pub(super) fn is_past_rung(&self) -> bool {
        let prepares = match &self.state {
            State::Unsure | State::Waiting { retry: Retry::Prepare(_), .. } => true,
            // What is complete on disk needs no preparing.
            State::Preparing { aim, .. } => !self.is_on_disk(&aim.release),
            _ => false,
        };
        let deadline = match &self.state {
            State::Preparing { aim, .. } | State::Waiting { retry: Retry::Prepare(aim), .. } => {
                self.rung_deadline(&aim.release)
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
                format!("{} could not be prepared in time", aim.release.short())
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
        if self.has_new_assignment()
            && let Some(ladder) = &mut self.ladder
        {
            // So is what the boot is assigned since; what was tried is not tried again.
            ladder.rung = None;
        }
        self.next_rung(effects);
    }

    /// Is the boot assigned something else since it began, that may be tried?
    fn has_new_assignment(&self) -> bool {
        let is_other = self.ladder.as_ref().is_some_and(|ladder| ladder.boot != self.boot());
        is_other && matches!(self.candidate(Rung::Assignment), Ok(Some(_)))
    }

    /// What the source's word has for a boot.
    fn boot(&self) -> Option<Revision> {
        self.journal.word.as_ref().and_then(|word| word.boot.clone())
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
