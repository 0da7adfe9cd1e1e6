//! From the target to the leave to swap: prepare, ask, and try again. Nothing live is touched here.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Failure};

use super::{Aim, Effect, Machine, Retry, State, Task};
use crate::journal::Swap;

impl Machine {
    /// Is it known that this revision can never be prepared as it is?
    pub(super) fn is_refused(&self, revision: &Revision) -> bool {
        let refused = |f: &Failure| f.cause == Cause::Refused && f.revision == *revision;
        self.failure.as_ref().is_some_and(refused)
    }

    pub(super) fn prepare(&mut self, aim: Aim, attempt: u32, effects: &mut Vec<Effect>) {
        // At boot, and where a restore failed, nothing serves that could stand in for it; and a
        // restart needs the release itself.
        let may_stand_in = self.ladder.is_none()
            && self.journal.swap.is_none()
            && aim.restart <= self.journal.restart;
        let unless_like =
            self.live.revision.clone().filter(|_| may_stand_in && self.live.is_running);
        let revision = aim.revision.clone();
        let deadline = self.rung_deadline(&revision);
        self.state = State::Preparing { aim, attempt };
        self.begin(Task::Prepare { revision, unless_like }, effects);
        effects.extend(deadline.map(Effect::WakeAt));
    }

    pub(super) fn prepared(&mut self, aim: Aim, alike: bool, effects: &mut Vec<Effect>) {
        self.failure = None;
        if alike {
            self.alike = Some(aim.revision);
            self.degraded = None;
            return self.rest(effects);
        }
        self.releases.retain(|release| *release != aim.revision);
        self.releases.push(aim.revision.clone());
        if self.live.is_running { self.ask(aim, effects) } else { self.swap(aim, effects) }
    }

    pub(super) fn not_prepared(
        &mut self,
        aim: Aim,
        attempt: u32,
        cause: Cause,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        let revision = aim.revision.clone();
        let said = format!("{} could not be prepared: {detail}", revision.short());
        self.failure = Some(Failure { order: Some(aim.order), revision, cause, detail, attempt });
        if self.ladder.is_some() {
            return self.rung_failed(aim, attempt, cause, said, effects);
        }
        if !self.serves(&aim.revision) {
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
        owed: Option<Swap>,
        cause: Cause,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        self.journal.swap = owed;
        effects.push(Effect::Journal(Box::new(self.journal.clone())));
        if swap.order < self.order() {
            // A newer target came meanwhile: that one is tried, and not this one again.
            return self.start_over(effects);
        }
        self.falls = self.falls.saturating_add(1);
        let aim = Aim { revision: swap.to, order: swap.order, restart: swap.restart };
        self.not_prepared(aim, self.falls, cause, detail, effects);
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

    pub(super) fn ask(&mut self, aim: Aim, effects: &mut Vec<Effect>) {
        let order = aim.order;
        self.state = State::Asking { aim };
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
