//! What the machine says of itself: the report, and whether it is done.
//!
//! PURE.

use towline_protocol::ids::Revision;
use towline_protocol::report::{self, Health, Phase, Report};

use super::ladder::Ladder;
use super::{Effect, Machine, Retry, State, Step};
use crate::journal::Release;

impl Machine {
    /// Has everything been done that the newest target asks for, as far as it can be done now?
    ///
    /// `None` while something is under way; then the report says how it ended.
    #[must_use]
    pub fn settled(&self) -> Option<&Report> {
        // A boot goes on for as long as there is something that it may start.
        let has_any = self.policy.has_adopted || !self.releases.is_empty();
        let is_open = |ladder: &Ladder| !ladder.is_on_ground() && has_any;
        let climbs = self.ladder.as_ref().is_some_and(is_open);
        let at_rest = matches!(self.state, State::Idle | State::Waiting { .. }) && !climbs;
        let is_stuck = matches!(self.state, State::Waiting { retry: Retry::Resume(..), .. });
        let is_known = is_stuck || !self.never_looked();
        let has_heard = self.journal.target.is_some() || self.objection.is_some();
        (at_rest && is_known && has_heard).then_some(self.reported.as_ref()).flatten()
    }

    /// Returns the release that serves, while nothing is done about it.
    #[must_use]
    pub fn serving(&self) -> Option<&Release> {
        self.live.release.as_ref().filter(|_| self.live.is_running)
    }

    /// Is the newest target's revision live and healthy here?
    #[must_use]
    pub fn is_converged(&self) -> bool {
        let target = self.journal.target.as_ref();
        target.is_some_and(|target| match (&target.revision, &target.not) {
            (Some(revision), _) => self.serves_revision(revision),
            (None, Some(not)) => self.serving().is_some() && !self.serves_revision(not),
            (None, None) => false,
        }) && self.live.health == Some(Health::Healthy)
            && self.objection.is_none()
            && matches!(self.state, State::Idle | State::Stocking { .. })
    }

    /// Reports what has changed, last of all effects.
    pub(super) fn tell(&mut self, effects: &mut Vec<Effect>) {
        let report = self.report();
        if self.reported.as_ref() != Some(&report) {
            self.reported = Some(report.clone());
            effects.push(Effect::Report(Box::new(report)));
        }
    }

    pub(super) fn report(&self) -> Report {
        let own = self.serving().and_then(Release::own);
        Report {
            version: report::VERSION,
            instance: self.journal.instance.clone(),
            group: self.policy.group.clone(),
            order: self.journal.target.as_ref().map(|target| target.order),
            target: self.journal.target.as_ref().and_then(|target| target.revision.clone()),
            phase: self.phase(),
            serving: own.cloned(),
            alike: self.alike.clone(),
            // Of what was adopted no revision is known that could be shown.
            evidence: self.live.evidence.filter(|_| self.live.release != Some(Release::Adopted)),
            health: self.live.health.unwrap_or(Health::Unknown),
            degraded: self.degraded.clone().or_else(|| self.live.trouble.clone()),
            objection: self.objection.clone(),
            failure: self.failure.clone(),
            proven: own.is_some_and(|revision| self.journal.is_proven(revision)),
            adopted: self.serving() == Some(&Release::Adopted),
            newborn: self.is_newborn(),
            rejected: self.has_rejected(),
            restart: self.journal.restart,
            uses_permit: self.uses_permit(),
            renounced: self.renounced,
            orders: self.journal.orders,
            prepared: self.wanted().is_some_and(|wanted| self.is_on_disk(&wanted)),
        }
    }

    /// Has what the newest target asks for failed here after its swap?
    fn has_rejected(&self) -> bool {
        let Some(target) = &self.journal.target else { return false };
        self.journal.rejected.iter().any(|rejected| {
            let is_it = |revision: &Revision| rejected.revision.is(revision);
            rejected.order == target.order && target.revision.as_ref().is_none_or(is_it)
        })
    }

    /// May a permit be in use? Until something proven is healthy again, a swap's outcome is open.
    fn uses_permit(&self) -> bool {
        matches!(self.state, State::Asking { .. })
            || self.journal.swap.is_some()
            || self.journal.leave.is_some()
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Unsure => Phase::Starting,
            // Between two climbs of a ladder on which nothing could be started.
            State::Checking { .. } if self.ladder.is_some() => Phase::Waiting,
            State::Idle | State::Stocking { .. } | State::Checking { .. } => Phase::Idle,
            State::Preparing { .. } => Phase::Preparing,
            // It has asked, and will again.
            State::Waiting { retry: Retry::Ask { .. }, .. } => Phase::Asking,
            State::Waiting { .. } => Phase::Waiting,
            State::Asking { .. } => Phase::Asking,
            State::Journalling { .. } | State::Live { step: Step::Activate, .. } => {
                Phase::Activating
            }
            State::Live { step: Step::Prove, .. } => Phase::Proving,
            State::Live { step: Step::Probe, .. } => Phase::Probing,
            State::Restoring { .. } => Phase::Restoring,
        }
    }
}
