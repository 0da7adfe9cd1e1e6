//! From the target to the leave to swap: prepare, ask, and try again. Nothing live is touched here.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::poll::Duty;
use towline_protocol::report::{Cause, Failure};

use super::{Aim, Effect, How, Leave, Machine, Owed, Retry, State, Task};
use crate::journal::{Release, Swap};

impl Machine {
    /// Looks at what the newest word asks for, with nothing under way.
    pub(super) fn consider(&mut self, effects: &mut Vec<Effect>) {
        if let Some(swap) = self.journal.swap.clone().filter(|swap| !self.has_better(swap)) {
            // Nothing good serves, and the newest target is no way out.
            return self.restore(swap, How::Restart, 1, effects);
        }
        if let Some(aim) = self.restart_ordered().filter(|_| !self.is_swap_due()) {
            return self.ask(aim, 1, effects);
        }
        let Some(target) = self.journal.target.clone() else { return self.rest(effects) };
        let Some(release) = self.wanted() else {
            let failed = self.journal.rejection(target.order, &Release::Adopted);
            let failed = failed.map_or(String::new(), |detail| format!(" ({detail})"));
            self.degraded = target.not.filter(|not| self.serves_revision(not)).map(|not| {
                format!("{} must not serve, and nothing else is proven here{failed}", not.short())
            });
            return self.rest(effects);
        };
        let aim = self.aim(release);
        let rejection = self.journal.rejection(aim.order, &aim.release);
        if let Some(detail) = rejection {
            self.degraded = Some(format!("{} was rejected: {detail}", aim.release.short()));
            return self.rest(effects);
        }
        if self.serves(&aim.release) && aim.restart <= self.journal.restart {
            self.degraded = None;
            return self.rest(effects);
        }
        let is_ready = self.is_ready(&aim.release);
        match self.duty() {
            Duty::Hold => self.rest(effects),
            _ if self.is_refused(&aim.release) => self.rest(effects),
            Duty::Prepare if is_ready => self.rest(effects),
            Duty::Take if is_ready => self.ask(aim, 1, effects),
            Duty::Prepare | Duty::Take => self.prepare(aim, 1, effects),
        }
    }

    /// What a restart of the app that was ordered of this instance aims at: what serves.
    fn restart_ordered(&self) -> Option<Aim> {
        // Where nothing good serves, the way out comes first.
        let serves = self.live.is_running && self.journal.swap.is_none();
        let is_due = self.journal.target.is_some() && self.has_ordered();
        let live = self.live.release.clone().filter(|_| serves && is_due)?;
        let ordered = self.hint.orders.restart;
        Some(Aim { restart: self.journal.restart, ordered, ..self.aim(live) })
    }

    /// Is the way to the target open, so that an order to restart is carried out by the swap to it?
    ///
    /// Once for both: two swaps would be two permits, and one more moment without what serves. Where the
    /// duty is less than "take" the batch may be hours away, and the order does not wait for it; nor for what
    /// could not be prepared, was rejected or was refused.
    pub(super) fn is_swap_due(&self) -> bool {
        let Some(release) = self.wanted() else { return false };
        let could_not = |f: &Failure| f.cause.is_before_swap() && release.is(&f.revision);
        self.duty() == Duty::Take
            && (!self.serves(&release) || self.restart_wanted() > self.journal.restart)
            && self.journal.rejection(self.order(), &release).is_none()
            && !self.failure.as_ref().is_some_and(could_not)
    }

    /// Was it prepared since the start, and is it still there?
    fn is_ready(&self, release: &Release) -> bool {
        self.ready.as_ref() == Some(release)
            && self.is_on_disk(release)
            && self.live.is_running
            && self.ladder.is_none()
    }

    /// Is it known that this revision can never be prepared as it is?
    pub(super) fn is_refused(&self, release: &Release) -> bool {
        let refused = |f: &Failure| f.cause == Cause::Refused && release.is(&f.revision);
        self.failure.as_ref().is_some_and(refused)
    }

    pub(super) fn prepare(&mut self, aim: Aim, attempt: u32, effects: &mut Vec<Effect>) {
        let Release::Own(revision) = aim.release.clone() else {
            // It lies where it always has.
            return self.prepared(aim, false, effects);
        };
        // At boot, and where a restore failed, nothing serves that could stand in for it; and a
        // restart needs the release itself.
        let may_stand_in = self.ladder.is_none()
            && self.journal.swap.is_none()
            && aim.restart <= self.journal.restart
            && aim.ordered <= self.journal.orders.restart;
        let unless_like =
            self.live_revision().cloned().filter(|_| may_stand_in && self.live.is_running);
        let deadline = self.rung_deadline(&aim.release);
        self.state = State::Preparing { aim, attempt };
        self.begin(Task::Prepare { revision, unless_like }, effects);
        effects.extend(deadline.map(Effect::WakeAt));
    }

    pub(super) fn prepared(&mut self, aim: Aim, alike: bool, effects: &mut Vec<Effect>) {
        let could_not =
            |failure: &Failure| failure.cause.is_before_swap() && aim.release.is(&failure.revision);
        if self.failure.take().as_ref().is_some_and(could_not) && self.ladder.is_none() {
            self.degraded = None;
        }
        if alike {
            self.alike = aim.release.own().cloned();
            self.degraded = None;
            // An order to restart that came meanwhile finds nothing to be carried out by.
            return self.consider(effects);
        }
        if let Release::Own(revision) = &aim.release {
            self.releases.retain(|release| release != revision);
            self.releases.push(revision.clone());
        }
        self.ready = Some(aim.release.clone());
        if self.live.is_running {
            self.ask_if_due(aim, effects);
        } else {
            self.swap(aim, None, effects);
        }
    }

    pub(super) fn not_prepared(
        &mut self,
        aim: Aim,
        attempt: u32,
        cause: Cause,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        let said = format!("{} could not be prepared: {detail}", aim.release.short());
        let revision = aim.release.own().cloned();
        let order = Some(aim.order);
        self.failure = revision.map(|revision| Failure { order, revision, cause, detail, attempt });
        if self.ladder.is_some() {
            return self.rung_failed(aim, attempt, cause, said, effects);
        }
        if !self.serves(&aim.release) {
            self.degraded = Some(said);
        }
        if cause == Cause::Disk {
            // Nothing is proven on a full disk, and so nothing would ever be thrown away.
            effects.push(Effect::Prune(self.keep()));
        }
        if cause == Cause::Refused && self.journal.swap.is_none() {
            // The same tree and the same recipe give the same answer: wait for a newer target.
            return self.rest(effects);
        }
        self.again(aim, attempt, effects);
    }

    /// A swap that was journalled did not begin: `owed` is what stood in the journal before it.
    pub(super) fn withdraw(
        &mut self,
        swap: Swap,
        owed: Owed,
        cause: Cause,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        self.take_back(owed, effects);
        if swap.order < self.order() {
            // A newer target came meanwhile: that one is tried, and not this one again.
            return self.start_over(effects);
        }
        self.falls = self.falls.saturating_add(1);
        let Swap { order, restart, ordered, .. } = swap;
        let aim = Aim { release: swap.to, order, restart, ordered };
        self.not_prepared(aim, self.falls, cause, detail, effects);
    }

    pub(super) fn take_back(&mut self, owed: Owed, effects: &mut Vec<Effect>) {
        if self.journal.leave != owed.leave {
            self.asked = self.journal.leave;
            self.renounce();
        }
        (self.journal.swap, self.journal.leave) = (owed.swap, owed.leave);
        effects.push(Effect::Journal(Box::new(self.journal.clone())));
    }

    /// Has leave that was given for this swap ended before it began?
    pub(super) fn has_lapsed(&self, swap: &Swap, leave: Option<Leave>) -> bool {
        let is_late = |leave: Leave| leave.until.is_some_and(|until| until < self.now);
        let is_due = self.duty() == Duty::Take || self.is_order(&swap.to, swap.ordered);
        leave.is_some_and(|leave| is_late(leave) || !is_due)
    }

    /// A leave that came too late, or is not wanted any more, is given back; where it is still due, leave
    /// is asked for again.
    pub(super) fn unused(&mut self, swap: Swap, owed: Owed, effects: &mut Vec<Effect>) {
        self.take_back(owed, effects);
        if swap.order < self.order() {
            return self.start_over(effects);
        }
        let Swap { order, restart, ordered, .. } = swap;
        self.ask_if_due(Aim { release: swap.to, order, restart, ordered }, effects);
    }

    /// The answer to the question that is open will not be used.
    pub(super) fn renounce(&mut self) {
        let question = self.asked.take().unwrap_or(0);
        self.renounced = self.renounced.max(question);
    }

    pub(super) fn permitted(
        &mut self,
        aim: Aim,
        attempt: u32,
        leave: Leave,
        effects: &mut Vec<Effect>,
    ) {
        if leave.until.is_some_and(|until| until < self.now) {
            return self.unanswered(aim, attempt, effects);
        }
        self.swap(aim, Some(leave), effects);
    }

    /// No leave for now: the source says when to ask again, and after a long while it is asked anyway.
    pub(super) fn denied(&mut self, aim: Aim, ask: u64, effects: &mut Vec<Effect>) {
        self.renounce();
        if ask != self.hint.ask {
            // That word overtook the answer.
            return self.ask(aim, 1, effects);
        }
        let until = self.now + self.policy.backoff_max;
        self.ask_later(aim, 1, until, effects);
    }

    /// The question had no answer, or one that came too late.
    pub(super) fn unanswered(&mut self, aim: Aim, attempt: u32, effects: &mut Vec<Effect>) {
        self.renounce();
        let until = self.now + self.backoff(attempt);
        self.ask_later(aim, attempt, until, effects);
    }

    fn ask_later(&mut self, aim: Aim, attempt: u32, until: Duration, effects: &mut Vec<Effect>) {
        if self.journal.swap.is_some() || self.never_looked() {
            return self.again(aim, attempt, effects);
        }
        let ask = self.hint.ask;
        self.wait_until(Retry::Ask { aim, ask }, attempt, until, effects);
    }

    /// Tries again later; first it looks at what serves, if a newer target cut that look short: what
    /// never passed must not stay live for as long as a target cannot be prepared.
    pub(super) fn again(&mut self, aim: Aim, attempt: u32, effects: &mut Vec<Effect>) {
        if let Some(swap) = self.journal.swap.clone() {
            // Nothing good serves: what served before comes first.
            return self.wait(Retry::Restore(swap), self.falls.max(attempt), effects);
        }
        if self.never_looked() {
            return self.check(None, effects);
        }
        self.wait(Retry::Prepare(aim), attempt, effects);
    }

    /// Asks for leave to swap, where the word asks for the swap.
    pub(super) fn ask_if_due(&mut self, aim: Aim, effects: &mut Vec<Effect>) {
        if self.may_swap(&aim) { self.ask(aim, 1, effects) } else { self.consider(effects) }
    }

    pub(super) fn ask(&mut self, aim: Aim, attempt: u32, effects: &mut Vec<Effect>) {
        let (order, ask) = (aim.order, self.hint.ask);
        self.state = State::Asking { aim, attempt, ask };
        self.begin(Task::Ask(order), effects);
    }

    pub(super) fn wait(&mut self, retry: Retry, attempt: u32, effects: &mut Vec<Effect>) {
        let until = self.now + self.backoff(attempt);
        self.wait_until(retry, attempt, until, effects);
    }

    pub(super) fn wait_until(
        &mut self,
        retry: Retry,
        attempt: u32,
        until: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let due = self.look_due(&retry).map_or(until, |due| due.min(until));
        self.state = State::Waiting { retry, attempt, until };
        effects.push(Effect::WakeAt(due));
    }

    /// Doubles with each attempt; the last quarter is spread by instance and attempt.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.policy.backoff * 2u32.pow(attempt.saturating_sub(1).min(16));
        let whole = doubled.min(self.policy.backoff_max);
        let mut spread = self.policy.seed ^ u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        spread = (spread ^ (spread >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = u32::try_from(spread >> 56).unwrap_or(0);
        whole * (768 + share) / 1024
    }
}
