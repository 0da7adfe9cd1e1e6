//! What the instances of the model do: each follows its word by its script, one thing at a time.

use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::poll::Duty;
use towline_protocol::report::{Cause, Failure, Health, Phase};

use super::world::{Fate, World, revision};
use crate::rollout::words;

impl World {
    /// Every instance does what its word says, one thing each. Returns whether anything was done.
    pub(super) fn round(&mut self) -> bool {
        let names: Vec<Instance> = self.agents.keys().cloned().collect();
        let mut is_moved = false;
        for name in names {
            if !self.attendance.is_silent(&name) && self.agents.contains_key(&name) {
                is_moved |= self.one_thing(&name);
            }
        }
        is_moved
    }

    fn one_thing(&mut self, name: &Instance) -> bool {
        let word = words::word(self.state(), name, 0);
        let mut agent = self.agents[name].clone();
        let Some(target) = word.target else { return false };
        let before = agent.report.clone();
        let told = &mut agent.report;
        if told.order.is_none_or(|order| order < target.order) {
            told.order = Some(target.order);
            told.target.clone_from(&target.revision);
            (told.prepared, told.rejected, told.failure) = (false, false, None);
        }
        let wanted = target.revision.clone().or_else(|| {
            let is_it = told.serving == target.not;
            if is_it { Some(revision('a')) } else { told.serving.clone() }
        });
        let is_new = wanted != Some(revision('a'));
        let is_done = told.serving == wanted && told.restart >= target.restart;
        if let Some(restored) = agent.before.take() {
            let fails = agent.is_broken || (is_new && agent.fate == Fate::Fails);
            (told.health, told.proven, told.uses_permit) = (Health::Healthy, true, false);
            told.phase = Phase::Idle;
            if fails {
                told.serving = restored;
                told.rejected = true;
                told.failure = Some(failure(&target.order, wanted, Cause::Unhealthy));
            } else {
                told.restart = target.restart;
            }
        } else if is_done || told.rejected || word.duty == Duty::Hold {
            told.phase = Phase::Idle;
        } else if !told.prepared {
            if is_new && agent.fate == Fate::Unprepared {
                told.phase = Phase::Waiting;
                told.failure = Some(failure(&target.order, wanted, Cause::Install));
            } else {
                told.prepared = true;
            }
        } else if word.duty == Duty::Take {
            return self.swap(name, wanted, is_new);
        }
        let is_moved = agent.report != before;
        let report = agent.report.clone();
        self.agents.insert(name.clone(), agent);
        if is_moved {
            self.tell(name.as_str(), |told| *told = report);
        }
        is_moved
    }

    fn swap(&mut self, name: &Instance, wanted: Option<Revision>, is_new: bool) -> bool {
        if self.ask(name.as_str()).permit.is_none() {
            return false;
        }
        match self.agents[name].fate {
            Fate::Leaves if is_new => self.leaves(name.as_str()),
            Fate::Silent if is_new => self.hush(name.as_str()),
            _ => {
                self.check_swap(name);
                let agent = self.agents.get_mut(name).unwrap();
                agent.before = Some(agent.report.serving.clone());
                self.tell(name.as_str(), |told| {
                    told.serving = wanted;
                    (told.health, told.proven, told.uses_permit) = (Health::Unknown, false, true);
                    told.phase = Phase::Probing;
                });
            }
        }
        true
    }
}

fn failure(order: &Order, wanted: Option<Revision>, cause: Cause) -> Failure {
    let revision = wanted.unwrap_or_else(|| revision('0'));
    Failure { order: Some(*order), revision, cause, detail: "it broke".to_owned(), attempt: 1 }
}
