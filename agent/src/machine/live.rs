//! From the swap to its outcome: activate, prove, probe; or restore what served before.
//!
//! ```text
//!   activate ──► prove ──► probe ──► proven
//!      ▲          │ the reload did not do
//!      └─ restart ┘
//!   a failure ──► rejected ──► the same three steps for what served before; after three times in vain
//!                              the ladder, where it has anything else
//!   touched nothing ──► as it was; tried again later, by the way that led here
//! ```
//!
//! PURE.

use towline_protocol::poll::Duty;
use towline_protocol::report::{Cause, Evidence, Failure, Health};

use super::{
    Aim, Effect, How, Leave, Live, Machine, Outcome, Owed, RESUMES_MAX, Retry, State, Step, Task,
    Window,
};
use crate::journal::{self, Release, Swap};

/// How often what served before is tried to be made live before the ladder is climbed for anything
/// else that may serve.
const RESTORES_MAX: u32 = 3;

impl Machine {
    /// Journals that the swap begins; nothing live is touched before that is durable.
    pub(super) fn swap(&mut self, aim: Aim, leave: Option<Leave>, effects: &mut Vec<Effect>) {
        // A restore that did not succeed is still owed to what served before it.
        let owed = self.journal.swap.as_ref().and_then(|swap| swap.from.clone());
        let live = self.live.release.clone().filter(|_| self.live.is_running);
        // Whichever swap comes first carries out what was ordered of this instance.
        let ordered = aim.ordered.max(self.hint.orders.restart);
        let is_ordered = ordered > self.journal.orders.restart;
        let how = if (aim.restart > self.journal.restart || is_ordered) && live.is_some() {
            How::Restart
        } else {
            How::Reload
        };
        // What never passed its window is no place to go back to while something proven is there.
        let is_other = |release: &Release| *release != aim.release && self.is_on_disk(release);
        let from = live.map(|live| {
            // What was there before the agent is taken as it is.
            if live == Release::Adopted || self.journal.is_known(&live) {
                return live;
            }
            let known = self.journal.proven.iter().rev().cloned().map(Release::Own);
            known.chain(self.adopted()).find(is_other).unwrap_or(live)
        });
        let swap = Swap {
            order: aim.order,
            to: aim.release,
            from: owed.or(from),
            failed: None,
            restart: aim.restart,
            ordered,
            resumes: 0,
        };
        self.journal.adopted |= swap.from == Some(Release::Adopted);
        // In memory as well, so that whatever is journalled meanwhile keeps it.
        let owed =
            Owed { swap: self.journal.swap.replace(swap.clone()), leave: self.journal.leave };
        if leave.is_some() {
            self.journal.leave = Some(self.asked.take().unwrap_or(0));
        }
        self.state = State::Journalling { swap, how, owed, leave };
        self.begin(Task::Journal(Box::new(self.journal.clone())), effects);
    }

    /// Takes up a swap that the last run of the agent left unfinished.
    pub(super) fn resume(&mut self, mut swap: Swap, effects: &mut Vec<Effect>) {
        swap.resumes += 1;
        let is_ordered = swap.ordered > self.journal.orders.restart;
        let is_order = (swap.restart > self.journal.restart || is_ordered) && swap.from.is_some();
        // The journal that told of the proof may have been lost to a full disk, and what served
        // before pruned since: then the ladder is left to go back to.
        swap.from = swap.from.filter(|from| self.is_on_disk(from));
        let obstacle = if swap.failed.is_some() {
            None
        } else if swap.resumes > RESUMES_MAX {
            Some((
                Cause::Activate,
                format!("the agent ended {RESUMES_MAX} times in the middle of it"),
            ))
        } else if !self.is_on_disk(&swap.to) {
            Some((Cause::Disk, "its release is no longer complete on disk".to_owned()))
        } else {
            None
        };
        if let Some((cause, detail)) = obstacle {
            return self.live_failed(swap, cause, detail, effects);
        }
        if swap.failed.is_some() && swap.from.is_none() {
            return self.fall(&swap, unfinished(&swap), effects);
        }
        self.journal.swap = Some(swap.clone());
        effects.push(Effect::Journal(Box::new(self.journal.clone())));
        if swap.failed.is_some() {
            return self.restore(swap, How::Reload, 1, effects);
        }
        let how = if is_order { How::Restart } else { How::Reload };
        self.activate(swap, how, None, effects);
    }

    /// `before`: what to go back to if the activation finds that it cannot begin.
    pub(super) fn activate(
        &mut self,
        swap: Swap,
        how: How,
        before: Option<(Live, Owed)>,
        effects: &mut Vec<Effect>,
    ) {
        self.before = before;
        let (to, from) = (swap.to.clone(), swap.from.clone());
        let how = if swap.is_of_adopted() { How::Restart } else { how };
        self.live = Live { release: Some(to.clone()), is_running: true, ..Live::default() };
        self.alike = None;
        let is_deploy = self.is_deploy(&swap);
        self.state = State::Live { swap, how, step: Step::Activate };
        self.begin(Task::Activate { to, from, how, is_deploy }, effects);
    }

    /// Are the release's hooks due? They belong to a deploy: not to a restart of what serves, nor to a boot
    /// of what was good here before, which must not hang on them.
    fn is_deploy(&self, swap: &Swap) -> bool {
        let is_restart = swap.from.as_ref() == Some(&swap.to);
        let is_boot_of_good = self.ladder.is_some() && self.journal.is_known(&swap.to);
        !is_restart && !is_boot_of_good
    }

    pub(super) fn live_done(
        &mut self,
        swap: Swap,
        how: How,
        step: Step,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let to = swap.to.clone();
        match (step, outcome) {
            (Step::Activate, Outcome::Untouched(detail)) => {
                self.untouched(swap, how, detail, effects);
            }
            (Step::Activate, Outcome::Refused(detail)) => self.refused(swap, detail, effects),
            (Step::Activate, Outcome::Activated(done)) => {
                // What was started anew would only be started anew again.
                let how = if done == How::Restart { done } else { how };
                self.state = State::Live { swap, how, step: Step::Prove };
                self.begin(Task::Prove(to), effects);
            }
            (Step::Prove, Outcome::Proved(evidence)) => {
                self.live.evidence = evidence;
                let known = self.ladder.is_some() && self.journal.is_known(&to);
                let window = if known { Window::Brief } else { Window::Full };
                self.state = State::Live { swap, how, step: Step::Probe };
                self.begin(Task::Probe(to, window), effects);
            }
            (Step::Probe, Outcome::Healthy { served }) => {
                if served {
                    self.live.evidence = Some(Evidence::Served);
                }
                self.proven(&swap, effects);
            }
            // The manager did not follow the reload: a restart is what is left.
            (Step::Prove, Outcome::Failed(Cause::Prove, _)) if how == How::Reload => {
                self.activate(swap, How::Restart, None, effects);
            }
            (_, Outcome::Failed(cause, detail)) => {
                self.live_failed(swap, cause, detail, effects);
            }
            // An outcome of another task: none of those runs here.
            _ => {}
        }
    }

    /// The host is in the way, and nothing was touched: nothing can be said of the release.
    fn untouched(&mut self, swap: Swap, how: How, detail: String, effects: &mut Vec<Effect>) {
        if let Some((live, owed)) = self.before.take() {
            self.live = live;
            return self.withdraw(swap, owed, Cause::Host, detail, effects);
        }
        if swap.resumes == 0 {
            return self.live_failed(swap, Cause::Host, detail, effects);
        }
        // What the last run has done of it is not known: it is taken up as soon as it can be.
        let said = format!("{} could not be taken up again: {detail}", swap.to.short());
        self.degraded = Some(said);
        self.live.health = None;
        self.falls = self.falls.saturating_add(1);
        let attempt = self.falls;
        self.failure = failure(&swap, &swap.to, Cause::Host, detail, attempt);
        self.wait(Retry::Resume(swap, how), attempt, effects);
    }

    /// Its own hook says no, and nothing was touched: it is rejected, and what serves is left alone.
    fn refused(&mut self, mut swap: Swap, detail: String, effects: &mut Vec<Effect>) {
        let before = self.before.take().filter(|(live, _)| live.is_running);
        let Some((live, owed)) = before else {
            // A boot, or a swap that the last run has begun: what serves is not known. No order to restart
            // was carried out.
            (swap.restart, swap.ordered) = (self.journal.restart, self.journal.orders.restart);
            return self.live_failed(swap, Cause::Activate, detail, effects);
        };
        self.live = live;
        self.journal.reject(swap.order, swap.to.clone(), detail.clone());
        self.take_back(owed, effects);
        self.failure = failure(&swap, &swap.to, Cause::Activate, detail, 1);
        self.consider(effects);
    }

    fn proven(&mut self, swap: &Swap, effects: &mut Vec<Effect>) {
        self.live.health = Some(Health::Healthy);
        self.looked = self.now;
        (self.falls, self.restores) = (0, 0);
        self.failure = None;
        self.journal.swap = None;
        self.carried_out(swap);
        self.journal.prove(&swap.to);
        self.settle_leave();
        effects.push(Effect::Journal(Box::new(self.journal.clone())));
        effects.push(Effect::Prune(self.keep()));
        self.serve_on(effects);
    }

    /// Something serves: what does the newest target still ask for?
    fn serve_on(&mut self, effects: &mut Vec<Effect>) {
        let is_boot = self.ladder.is_some();
        let tried = self.ladder.as_ref().map_or(Vec::new(), |ladder| ladder.tried().to_vec());
        self.step_off();
        // What the boot was not assigned is not what failed on it.
        let wanted = self.wanted().filter(|wanted| is_boot && !self.serves(wanted));
        let wanted = wanted.filter(|wanted| self.duty() != Duty::Hold && tried.contains(wanted));
        let Some(release) = wanted else { return self.consider(effects) };
        if self.journal.rejection(self.order(), &release).is_some() {
            return self.rest(effects);
        }
        // On a lower rung. What just failed needs a moment before it is tried again; what was good here
        // and did not boot needs more, since that took nothing of what serves now.
        let did_not_boot = self.journal.is_known(&release) && self.is_on_disk(&release);
        let aim = self.aim(release);
        if did_not_boot {
            let until = self.now + self.policy.backoff_max;
            return self.wait_until(Retry::Prepare(aim), 1, until, effects);
        }
        self.wait(Retry::Prepare(aim), 1, effects);
    }

    /// Notes the orders to restart that a swap has carried out.
    fn carried_out(&mut self, swap: &Swap) {
        self.journal.restart = self.journal.restart.max(swap.restart);
        self.journal.orders.restart = self.journal.orders.restart.max(swap.ordered);
    }

    /// What leave was used for is over once something proven is healthy; returns whether there was any.
    pub(super) fn settle_leave(&mut self) -> bool {
        let is_healthy = self.live.health == Some(Health::Healthy);
        let is_good = self.live.release.as_ref().is_some_and(|live| self.journal.is_known(live));
        let is_over = is_healthy && is_good && self.journal.swap.is_none();
        if !is_over || self.journal.leave.take().is_none() {
            return false;
        }
        // What earlier runs asked besides can be told from it by now.
        let earlier = self.journal.run.wrapping_shl(journal::RUN_SHIFT);
        self.renounced = self.renounced.max(earlier);
        true
    }

    fn live_failed(
        &mut self,
        mut swap: Swap,
        cause: Cause,
        detail: String,
        effects: &mut Vec<Effect>,
    ) {
        let said = format!("{} failed once it was live: {detail}", swap.to.short());
        self.failure = failure(&swap, &swap.to, cause, detail.clone(), 1);
        self.live.health = Some(Health::Unhealthy);
        let is_restart = swap.from.as_ref() == Some(&swap.to);
        // A boot of what was good here before has failed by what is around it, as far as is known.
        let is_boot_of_good = swap.from.is_none() && self.journal.is_known(&swap.to);
        let is_its_fault = !cause.is_before_swap() && !is_boot_of_good;
        if !is_restart && is_its_fault && self.is_assigned(&swap) {
            self.journal.reject(swap.order, swap.to.clone(), detail.clone());
        }
        // An order to restart is carried out once, however it ends.
        self.carried_out(&swap);
        swap.failed = Some(detail);
        if swap.from.is_some() {
            self.journal.swap = Some(swap.clone());
            effects.push(Effect::Journal(Box::new(self.journal.clone())));
            let how = if is_restart { How::Restart } else { How::Reload };
            return self.restore(swap, how, 1, effects);
        }
        self.fall(&swap, said, effects);
    }

    /// What failed has nothing to go back to but the ladder.
    fn fall(&mut self, swap: &Swap, said: String, effects: &mut Vec<Effect>) {
        self.journal.swap = None;
        effects.push(Effect::Journal(Box::new(self.journal.clone())));
        // Nothing good served before, so the next rung needs no leave; what the failed release left
        // behind is found by the shell, and replaced.
        self.live.is_running = false;
        self.rung_fell(swap, said, effects);
    }

    /// Was the swap to what a target asked for, and not to a lower rung of the ladder?
    fn is_assigned(&self, swap: &Swap) -> bool {
        match &self.journal.target {
            Some(target) if target.order == swap.order => match &target.revision {
                Some(revision) => swap.to.is(revision),
                // What goes back because it must not serve goes to what its own disk has.
                None => swap.from.is_some(),
            },
            _ => true,
        }
    }

    /// Makes live again what served before; from disk, and without leave: nothing good serves.
    pub(super) fn restore(
        &mut self,
        swap: Swap,
        how: How,
        attempt: u32,
        effects: &mut Vec<Effect>,
    ) {
        let Some(to) = swap.from.clone() else {
            return self.fall(&swap, unfinished(&swap), effects);
        };
        let from = Some(swap.to.clone());
        self.before = Some((self.live.clone(), Owed { swap: None, leave: None }));
        let how = if swap.is_of_adopted() { How::Restart } else { how };
        self.live = Live { release: Some(to.clone()), is_running: true, ..Live::default() };
        self.state = State::Restoring { swap, how, step: Step::Activate, attempt };
        self.begin(Task::Activate { to, from, how, is_deploy: false }, effects);
    }

    pub(super) fn restoring_done(
        &mut self,
        swap: Swap,
        how: How,
        step: Step,
        attempt: u32,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let Some(to) = swap.from.clone() else { return };
        match (step, outcome) {
            (Step::Activate, Outcome::Activated(done)) => {
                let how = if done == How::Restart { done } else { how };
                self.state = State::Restoring { swap, how, step: Step::Prove, attempt };
                self.begin(Task::Prove(to), effects);
            }
            (Step::Prove, Outcome::Proved(evidence)) => {
                self.live.evidence = evidence;
                self.state = State::Restoring { swap, how, step: Step::Probe, attempt };
                self.begin(Task::Probe(to, Window::Brief), effects);
            }
            (Step::Probe, Outcome::Healthy { served }) => {
                if served {
                    self.live.evidence = Some(Evidence::Served);
                }
                self.live.health = Some(Health::Healthy);
                self.looked = self.now;
                (self.falls, self.restores) = (0, 0);
                // That it took more than one attempt is over; what made it necessary is not.
                self.failure.take_if(|failure| failure.cause == Cause::Restore);
                self.journal.swap = None;
                self.settle_leave();
                effects.push(Effect::Journal(Box::new(self.journal.clone())));
                effects.push(Effect::Prune(self.keep()));
                self.consider(effects);
            }
            (_, Outcome::Failed(..)) if how == How::Reload => {
                self.restore(swap, How::Restart, attempt, effects);
            }
            (Step::Activate, Outcome::Untouched(detail)) => {
                // What was live before this attempt still is.
                self.live.release = self.before.take().and_then(|(live, _)| live.release);
                self.live.health = Some(Health::Unhealthy);
                self.degraded = Some(format!("{} could not be restored: {detail}", to.short()));
                self.falls = self.falls.saturating_add(1);
                let attempt = self.falls;
                self.failure = failure(&swap, &to, Cause::Host, detail, attempt);
                if self.has_better(&swap) {
                    return self.consider(effects);
                }
                self.wait(Retry::Restore(swap), attempt, effects);
            }
            (_, Outcome::Failed(_, detail)) => {
                self.live.health = Some(Health::Unhealthy);
                self.degraded = Some(format!("{} could not be restored: {detail}", to.short()));
                self.failure = failure(&swap, &to, Cause::Restore, detail, attempt);
                self.falls = self.falls.saturating_add(1);
                self.restores = self.restores.saturating_add(1);
                if self.restores >= RESTORES_MAX && self.has_other(&swap) {
                    self.restores = 0;
                    let said = self.degraded.clone().unwrap_or_default();
                    return self.fall(&swap, said, effects);
                }
                if self.has_better(&swap) {
                    // Nothing good serves, so a newer target need not wait for it.
                    return self.consider(effects);
                }
                self.wait(Retry::Restore(swap), self.falls, effects);
            }
            // An outcome of another task: none of those runs here.
            _ => {}
        }
    }

    /// Is there anything else that could serve, where what served before cannot be made live?
    fn has_other(&self, swap: &Swap) -> bool {
        let order = self.order();
        let known = [Some(&swap.to), swap.from.as_ref()];
        let own = self.releases.iter().cloned().map(Release::Own);
        own.chain(self.adopted()).any(|release| {
            !known.contains(&Some(&release)) && self.journal.rejection(order, &release).is_none()
        })
    }

    /// Is there a newer target than the one whose failure could not be undone?
    pub(super) fn has_better(&self, swap: &Swap) -> bool {
        let order = self.order();
        // A restart that failed says nothing against the target of its own generation, if that is another.
        let is_restart = swap.from.as_ref() == Some(&swap.to);
        // One that names no revision is satisfied by what served before, or by the ladder.
        let target = self.journal.target.as_ref().and_then(|target| target.revision.clone());
        target.map(Release::Own).is_some_and(|target| {
            self.duty() == Duty::Take
                && (order > swap.order || (is_restart && order == swap.order))
                && swap.from.as_ref() != Some(&target)
                && self.journal.rejection(order, &target).is_none()
                && !self.is_refused(&target)
        })
    }
}

/// What went wrong with a release, for the target that a swap serves.
fn failure(
    swap: &Swap,
    release: &Release,
    cause: Cause,
    detail: String,
    attempt: u32,
) -> Option<Failure> {
    // What was adopted has no revision: a way back to it that fails is told of the one that is left.
    let revision = release.own().or(swap.to.own())?.clone();
    Some(Failure { order: Some(swap.order), revision, cause, detail, attempt })
}

/// Says of a swap that the last run left what there is to say.
fn unfinished(swap: &Swap) -> String {
    let detail = swap.failed.as_deref().unwrap_or("it was not finished");
    format!("{} failed once it was live: {detail}", swap.to.short())
}
