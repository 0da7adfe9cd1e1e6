//! The look at what serves: after a restart of the agent, and from time to time.
//!
//! ```text
//!   due, or the manager has ended
//!    └─────► Checking ─┬─ healthy ──────────────► proven, if it was not yet
//!                     ├─ unhealthy ────────────► told; after proof there is no local rollback
//!                     ├─ nothing of it runs ───► a boot, from the first rung of the ladder
//!                     └─ never proven, and something else is ──► likewise
//! ```
//!
//! A wait for the next attempt goes on after a look, as it was.
//!
//! PURE.

use std::time::Duration;

use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Evidence, Health};

use super::{Effect, Machine, Outcome, Retry, State, Task, Window};

/// The time from one look at the live release's health to the next, where the source does not say.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(60);

impl Machine {
    /// Nothing is left to do: look at the live release's health from time to time.
    pub(super) fn rest(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Idle;
        if self.never_looked() {
            return self.check(None, effects);
        }
        if let Some(revision) = self.missing_fallback() {
            self.state = State::Stocking { revision: revision.clone() };
            return self.begin(Task::Prepare { revision, unless_like: None }, effects);
        }
        effects.push(Effect::WakeAt(self.now + self.hint.probe_every));
    }

    /// What a boot would fall back to, and would have to fetch just when it cannot: it is made ready as
    /// soon as what serves is healthy.
    fn missing_fallback(&self) -> Option<Revision> {
        let fallback = self.journal.target.as_ref()?.fallback.clone()?;
        let is_due = self.stock_due.is_some_and(|due| due <= self.now);
        let is_well = self.live.health == Some(Health::Healthy);
        (is_due && is_well && !self.releases.contains(&fallback)).then_some(fallback)
    }

    /// The fallback is ready, or is not for now; neither changes anything else.
    pub(super) fn stocked(
        &mut self,
        revision: Revision,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        self.stock_due = match outcome {
            Outcome::Failed(Cause::Refused, _) => None,
            Outcome::Failed(..) => Some(self.now + self.policy.backoff_max),
            _ => {
                self.releases.push(revision);
                Some(self.now)
            }
        };
        self.rest(effects);
    }

    /// Does something serve whose health is not known?
    pub(super) fn never_looked(&self) -> bool {
        self.live.is_running && self.live.release.is_some() && self.live.health.is_none()
    }

    /// When a wait for `retry` is to be interrupted by a look; `None` where nothing serves that ought to.
    pub(super) fn look_due(&self, retry: &Retry) -> Option<Duration> {
        let serves = matches!(retry, Retry::Prepare(_) | Retry::Ask { .. })
            && self.ladder.is_none()
            && self.live.is_running
            && self.live.release.is_some();
        serves.then(|| self.looked + self.hint.probe_every)
    }

    /// What serves may be down: that is not waited for until the next look.
    pub(super) fn ended(&mut self, effects: &mut Vec<Effect>) {
        match self.state.clone() {
            State::Idle => self.check(None, effects),
            // What is made ready beside it can be made ready again.
            State::Stocking { .. } | State::Preparing { .. } | State::Asking { .. }
                if self.ladder.is_none() && self.journal.swap.is_none() =>
            {
                self.stop(effects);
                self.check(None, effects);
            }
            State::Waiting { ref retry, .. } if self.look_due(retry).is_some() => {
                let back = self.state.clone();
                self.check(Some(back), effects);
            }
            // Whatever is under way has an eye on it, or goes on to a look.
            _ => {}
        }
    }

    /// Looks at what serves; `back`: and goes on with this wait afterwards.
    pub(super) fn check(&mut self, back: Option<State>, effects: &mut Vec<Effect>) {
        // What runs and is no release of ours has no recipe to look by; a target may still be open.
        let Some(release) = self.live.release.clone() else { return self.start_over(effects) };
        let window = if self.journal.is_known(&release) { Window::Brief } else { Window::Full };
        self.state = State::Checking { window, back: back.map(Box::new) };
        self.begin(Task::Check(release, window), effects);
    }

    pub(super) fn checked(
        &mut self,
        window: Window,
        back: Option<State>,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        self.state = State::Idle;
        self.looked = self.now;
        let is_boot = self.ladder.is_some();
        match outcome {
            Outcome::Healthy { served } => {
                self.live.is_running = true;
                self.live.health = Some(Health::Healthy);
                self.live.trouble = None;
                (self.falls, self.restores) = (0, 0);
                if served {
                    self.live.evidence = Some(Evidence::Served);
                }
                let live = self.live.release.clone();
                self.failure.take_if(|f| live.as_ref().is_some_and(|live| live.is(&f.revision)));
                let is_news = window == Window::Full;
                if let Some(release) = live.filter(|_| is_news) {
                    self.journal.accept(&release);
                }
                if self.settle_leave() || is_news {
                    effects.push(Effect::Journal(Box::new(self.journal.clone())));
                }
                if is_boot {
                    // What had failed has come up after all, with nobody's help.
                    self.step_off();
                }
            }
            Outcome::Absent => {
                self.live.health = Some(Health::Unhealthy);
                self.live.is_running = false;
                return self.climb(effects);
            }
            // A crash of the agent left live what never passed, while something proven is on disk.
            ref outcome
                if is_boot
                    || (window == Window::Full
                        && self.has_proven_other()
                        && !matches!(outcome, Outcome::Failed(Cause::Host, _))) =>
            {
                self.live.health = Some(Health::Unhealthy);
                self.live.is_running = false;
                return self.climb(effects);
            }
            // Reported, and nothing more: after proof there is no local rollback.
            Outcome::Failed(_, detail) => {
                self.live.health = Some(Health::Unhealthy);
                self.live.trouble = Some(detail);
            }
            // An outcome of another task: none of those runs here.
            _ => {}
        }
        match back {
            Some(State::Waiting { retry, attempt, until })
                if !is_boot && self.is_due(&retry) && !self.is_ordered_besides(&retry) =>
            {
                match retry {
                    // That word came during the look.
                    Retry::Ask { aim, ask } if ask != self.hint.ask => self.ask(aim, 1, effects),
                    retry => self.wait_until(retry, attempt, until, effects),
                }
            }
            _ => self.consider(effects),
        }
    }

    /// Is a restart of the app ordered that `retry` does not wait for? Any swap carries it out.
    fn is_ordered_besides(&self, retry: &Retry) -> bool {
        self.has_ordered() && !matches!(retry, Retry::Ask { .. })
    }

    /// Is there a proven release on disk besides the live one?
    pub(super) fn has_proven_other(&self) -> bool {
        let other = |revision: &&Revision| Some(*revision) != self.live_revision();
        self.journal.proven.iter().filter(other).any(|revision| self.releases.contains(revision))
    }
}
