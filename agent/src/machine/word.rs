//! What the source says, and what it means here: the target, the duty, the orders.
//!
//! ```text
//!   word ─► target: a lower one, or another of the same order, is refused, and the whole word with it
//!        ─► duty:   hold ──── keep what serves      prepare ──── make it ready, and wait
//!                   take ──── make it ready, ask, swap
//!        ─► ask:    changes when it is worth asking again after a no
//!        ─► orders: to this instance alone: restart the app, try again; each once
//! ```
//!
//! The duty is about an instance that serves. Where nothing does, the ladder goes by the word's `boot`.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::ids::{Order, Revision};
use towline_protocol::poll::{Duty, Word};
use towline_protocol::report::{Cause, Orders};

use super::look::CHECK_EVERY;
use super::{Aim, Effect, Machine, Retry, State};
use crate::journal::{Heard, Release};

/// What of the newest word need not survive a restart.
#[derive(Debug, Clone)]
pub(super) struct Hint {
    /// Changes when it is worth asking again.
    pub(super) ask: u64,
    /// From one look at what serves to the next.
    pub(super) probe_every: Duration,
    /// The newest orders to this instance.
    pub(super) orders: Orders,
}

impl Hint {
    /// What holds until the source has spoken.
    pub(super) fn none(orders: Orders) -> Self {
        Self { ask: 0, probe_every: CHECK_EVERY, orders }
    }
}

impl Machine {
    /// The source has spoken.
    pub(super) fn told(&mut self, word: Word, effects: &mut Vec<Effect>) {
        let Word { target, duty, boot, ask, probe_every_s, orders } = word;
        let Some(target) = target else {
            return self.objected("the group has no target yet".to_owned(), effects);
        };
        if let Some(seen) = &self.journal.target {
            if target.order < seen.order {
                let named = target
                    .revision
                    .as_ref()
                    .map_or(String::new(), |revision| format!(" ({})", revision.short()));
                self.objection = Some(format!(
                    "the source names {}{named}, and {} was seen before: a lower one is refused",
                    target.order, seen.order
                ));
                return self.without_word(effects);
            }
            if target.order == seen.order && target != *seen {
                self.objection = Some(format!(
                    "the source names another target as {} than it did before: write the next \
                     generation instead",
                    target.order
                ));
                return self.without_word(effects);
            }
        }
        self.objection = None;
        let written = self.journal.clone();
        let (own, former) = (self.own(), self.duty());
        let is_news = self.journal.target.as_ref() != Some(&target);
        // What is counted before an instance first hears of its group was not meant for it.
        if self.journal.target.is_none() {
            self.journal.restart = target.restart;
        }
        if self.journal.word.is_none() {
            self.journal.orders = orders;
        }
        self.journal.target = Some(target);
        self.journal.word = Some(Heard { duty, boot });
        let is_other = own != self.own();
        let is_retry = orders.retry > self.journal.orders.retry;
        if is_retry {
            self.journal.orders.retry = orders.retry;
            self.journal.forgive(self.order());
        }
        if self.journal != written {
            effects.push(Effect::Journal(Box::new(self.journal.clone())));
        }
        let is_ordered = orders.restart > self.hint.orders.restart.max(self.journal.orders.restart);
        let every = Duration::from_secs(u64::from(probe_every_s.max(1)));
        let is_paced = every != self.hint.probe_every;
        self.hint = Hint { ask, probe_every: every, orders };
        if is_news || is_other {
            self.stock_due = Some(self.now);
            // A newer generation is leave to try again whatever was refused.
            self.failure.take_if(|failure| is_other || failure.cause == Cause::Refused);
            if is_other {
                self.alike = None;
            }
            self.turn(is_other, effects);
        } else if former != duty || is_ordered {
            self.turn_to_duty(effects);
        }
        if self.state == State::Unsure {
            return self.climb(effects);
        }
        if is_retry {
            self.retry(effects);
        }
        self.ask_once_more(effects);
        if is_paced && self.state == State::Idle {
            effects.push(Effect::WakeAt(self.now.max(self.looked + every)));
        }
    }

    pub(super) fn objected(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.objection = Some(reason);
        self.without_word(effects);
    }

    /// The source gave nothing to follow: a boot goes on with what was last accepted.
    fn without_word(&mut self, effects: &mut Vec<Effect>) {
        if self.state == State::Unsure {
            self.climb(effects);
        }
    }

    /// What this instance itself is asked for: other work is begun only when that changes.
    fn own(&self) -> (Option<Release>, Option<Revision>, u64) {
        if self.ladder.is_some() {
            return (self.assigned().ok().flatten(), None, 0);
        }
        let target = self.journal.target.as_ref();
        let revision = target.and_then(|target| target.revision.clone());
        (
            revision.map(Release::Own),
            target.and_then(|target| target.not.clone()),
            self.restart_wanted(),
        )
    }

    /// A newer target arrived; `is_other`: it asks this instance for something else.
    fn turn(&mut self, is_other: bool, effects: &mut Vec<Effect>) {
        let (order, is_boot) = (self.order(), self.ladder.is_some());
        let restart = self.restart_wanted();
        match &mut self.state {
            // After the swap the probe, or the restore, is finished first.
            State::Journalling { .. }
            | State::Live { .. }
            | State::Restoring { .. }
            | State::Waiting { retry: Retry::Resume(..), .. } => {}
            State::Preparing { aim, .. } | State::Asking { aim, .. } if !is_other => {
                // The same work for a newer generation; a question is asked anew for that one.
                aim.order = order;
                if is_boot {
                    // A start satisfies every order to restart.
                    aim.restart = restart;
                }
                if let State::Asking { aim, .. } = self.state.clone() {
                    self.stop(effects);
                    self.ask_if_due(aim, effects);
                }
            }
            _ => {
                self.stop(effects);
                self.start_over(effects);
            }
        }
    }

    /// Another duty, or an order to restart: what is at rest goes on, and what is not due any more ends.
    fn turn_to_duty(&mut self, effects: &mut Vec<Effect>) {
        if self.ladder.is_some() {
            return;
        }
        match self.state.clone() {
            State::Idle | State::Stocking { .. } => {
                self.stop(effects);
                self.consider(effects);
            }
            State::Asking { aim, .. }
                if !self.may_swap(&aim)
                    || (self.is_order(&aim.release, aim.ordered) && self.is_swap_due()) =>
            {
                self.stop(effects);
                self.consider(effects);
            }
            // A restore that is owed, or a swap that was found half done, comes before any order.
            State::Waiting { retry: retry @ (Retry::Prepare(_) | Retry::Ask { .. }), .. }
                if !self.is_due(&retry) || self.has_ordered() =>
            {
                self.consider(effects);
            }
            // Once something is prepared, journalled, or looked at, the duty is looked at again.
            _ => {}
        }
    }

    /// Tries again at once what was rejected or refused, or waits.
    fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.falls = 0;
        if matches!(self.state, State::Idle | State::Stocking { .. }) {
            self.failure = None;
            self.stop(effects);
            return self.consider(effects);
        }
        if let State::Waiting { until, attempt, .. } = &mut self.state {
            (*until, *attempt) = (self.now, 0);
            self.woke(effects);
        }
    }

    /// Asks again where a no was waited out, and it is worth it by now.
    pub(super) fn ask_once_more(&mut self, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Waiting { retry: Retry::Ask { aim, ask }, .. } if ask != self.hint.ask => {
                self.ask(aim, 1, effects);
            }
            _ => {}
        }
    }

    /// What an instance that serves is to do about the target.
    pub(super) fn duty(&self) -> Duty {
        self.journal.word.as_ref().map_or(Duty::Take, |word| word.duty)
    }

    /// Is this something that the source wants swapped now, or an order to this instance?
    pub(super) fn may_swap(&self, aim: &Aim) -> bool {
        self.duty() == Duty::Take || self.is_order(&aim.release, aim.ordered)
    }

    /// Is this an order to restart that is not carried out? It says nothing about any release but the one that
    /// serves.
    pub(super) fn is_order(&self, release: &Release, ordered: u64) -> bool {
        ordered > self.journal.orders.restart && self.live.release.as_ref() == Some(release)
    }

    /// Is what waits still asked for?
    pub(super) fn is_due(&self, retry: &Retry) -> bool {
        match retry {
            Retry::Prepare(aim) => self.duty() != Duty::Hold || self.may_swap(aim),
            Retry::Ask { aim, .. } => self.may_swap(aim),
            Retry::Restore(_) | Retry::Resume(..) | Retry::Ladder => true,
        }
    }

    /// Is a restart of the app ordered, and not carried out?
    pub(super) fn has_ordered(&self) -> bool {
        self.hint.orders.restart > self.journal.orders.restart
    }

    /// What the newest target asks this instance to serve; `None` where it asks for nothing
    /// that could be had.
    pub(super) fn wanted(&self) -> Option<Release> {
        let target = self.journal.target.as_ref()?;
        let Some(not) = &target.not else { return target.revision.clone().map(Release::Own) };
        if !self.serves_revision(not) {
            return self.live.release.clone().filter(|_| self.live.is_running);
        }
        let may_serve = |release: &Release| {
            !self.serves(release)
                && !self.is_shunned(release)
                && self.is_on_disk(release)
                && self.journal.rejection(target.order, release).is_none()
        };
        let proven = self.journal.proven.iter().rev().cloned().map(Release::Own);
        proven.chain(self.adopted()).find(may_serve)
    }

    /// Is this a revision that only serves where nothing else can?
    pub(super) fn is_shunned(&self, release: &Release) -> bool {
        self.journal.target.as_ref().is_some_and(|target| {
            target.quarantine.iter().chain(&target.not).any(|revision| release.is(revision))
        })
    }

    /// Was nothing of the app proven here since launch? Who serves what was there before is none either.
    pub(super) fn is_newborn(&self) -> bool {
        let is_adopted = self.live.release == Some(Release::Adopted) || self.adopted().is_some();
        !is_adopted && !self.journal.has_proven && self.journal.proven.is_empty()
    }

    /// Returns the aim at this release, for the newest target.
    pub(super) fn aim(&self, release: Release) -> Aim {
        let (order, restart) = (self.order(), self.restart_wanted());
        Aim { release, order, restart, ordered: self.journal.orders.restart }
    }

    pub(super) fn restart_wanted(&self) -> u64 {
        self.journal.target.as_ref().map_or(0, |target| target.restart)
    }

    pub(super) fn order(&self) -> Order {
        let none = Order { epoch: 0, generation: 0 };
        self.journal.target.as_ref().map_or(none, |target| target.order)
    }
}
