//! What must hold on each instance, and of what is known of it.

use std::time::Duration;

use towline_agent::journal::Release;
use towline_agent::machine::Task;
use towline_coordinator::fleet::Presence;
use towline_protocol::poll::{Duty, PERMIT_VALID_S, Word, lease_s};
use towline_protocol::report::Health;
use towline_protocol::target::Target;

use super::super::{WAIT_S, World, group};

impl World {
    /// Before a task begins.
    pub(in super::super) fn check_begin(
        &mut self,
        index: usize,
        task: &Task,
    ) -> Result<(), String> {
        let Task::Activate { to, .. } = task else { return Ok(()) };
        self.book.activated.extend(to.own().cloned());
        let host = &self.hosts[index];
        let Some(agent) = &host.agent else { return Ok(()) };
        let wrong = |why: String| Err(format!("{} makes {} live: {why}", host.name, to.short()));
        // A machine that begins takes up what its disk holds.
        let journal =
            if agent.told.is_some() { agent.machine.journal() } else { &host.disk.journal };
        let Some(swap) = &journal.swap else { return wrong("nothing is journalled".to_owned()) };
        if swap.failed.is_some() {
            // Restoring what served before needs no further permit.
            return Ok(());
        }
        let Some(leave) = journal.leave else {
            // "Whatever replaces something that serves needs a permit."
            let serves = |told: &towline_protocol::report::Report| {
                told.health == Health::Healthy && (told.proven || told.adopted)
            };
            if agent.told.as_ref().is_some_and(serves) {
                return wrong("what serves is healthy, and no leave was given".to_owned());
            }
            return Ok(());
        };
        let Some(asked) = agent.leave.filter(|asked| asked.seq == leave) else { return Ok(()) };
        let is_first = host.begun != Some(leave);
        if is_first && self.now > asked.sent + Duration::from_secs(PERMIT_VALID_S.into()) {
            let late = self.now - asked.sent;
            return wrong(format!("{late:?} after the question"));
        }
        if is_first && host.restarts_by == Some(leave) && swap.from.as_ref() != Some(&swap.to) {
            return wrong("by leave to restart what it serves".to_owned());
        }
        if is_first && swap.order != asked.order {
            return wrong(format!("by leave for {}", asked.order));
        }
        if is_first && host.disk.journal.swap.as_ref() != Some(swap) {
            return wrong("it is not journalled on disk".to_owned());
        }
        // "An agent that sees the pause withdraws an unused permit."
        let duty = journal.word.as_ref().map(|word| word.duty);
        let is_restart = swap.from.as_ref() == Some(&swap.to)
            || host.runs.as_ref().is_some_and(|runs| runs.release == swap.to);
        if is_first && duty != Some(Duty::Take) && !is_restart {
            return wrong(format!("it is told to {duty:?}"));
        }
        self.hosts[index].begun = Some(leave);
        Ok(())
    }

    /// "An agent keeps the highest pair it has seen, and refuses a lower one"; and another of the same pair.
    pub(in super::super) fn check_heard(
        &self,
        index: usize,
        before: Option<&Target>,
        heard: &Word,
    ) -> Result<(), String> {
        let (Some(agent), Some(before), Some(target)) =
            (&self.hosts[index].agent, before, &heard.target)
        else {
            return Ok(());
        };
        let is_news = target == before || target.order > before.order;
        let kept = agent.machine.journal().target.as_ref();
        if kept == Some(if is_news { target } else { before }) {
            return Ok(());
        }
        Err(format!("{} had {before:?}, heard {target:?}, has {kept:?}", self.hosts[index].name))
    }

    /// After each step of the machine: whatever leave is used for has a permit that is stored.
    pub(in super::super) fn check_host(&self, index: usize) -> Result<(), String> {
        let host = &self.hosts[index];
        let Some(agent) = &host.agent else { return Ok(()) };
        let journal = agent.machine.journal();
        if let (Some(leave), Some(swap)) = (journal.leave, &journal.swap)
            && !host.is_excused
        {
            let is_plain = swap.failed.is_none() && swap.from.is_some();
            let permit = self.store.truth().open.get(&host.name).map(|kept| &kept.value);
            match permit {
                None => return Err(format!("{} swaps, and no permit is stored", host.name)),
                // What asks for something newer, with a restore or a boot still owed, moves its permit.
                Some(permit) if permit.seq < leave || (permit.seq > leave && is_plain) => {
                    let seq = permit.seq;
                    return Err(format!("{} swaps by {leave}, and {seq} is stored", host.name));
                }
                Some(_) => {}
            }
        }
        if let (Some(told), Some(runs), None) = (&agent.told, &host.runs, &agent.task)
            && told.health == Health::Healthy
            && !agent.has_died
            && (told.serving.as_ref() != runs.release.own()
                || told.adopted != (runs.release == Release::Adopted))
        {
            let runs = runs.release.short();
            return Err(format!("{} tells of {:?}, and {runs} runs", host.name, told.serving));
        }
        Ok(())
    }

    /// A report that was acknowledged is what the group's records say.
    pub(in super::super) fn check_acknowledged(
        &self,
        index: usize,
        seq: u64,
    ) -> Result<(), String> {
        let host = &self.hosts[index];
        let Some(agent) = host.agent.as_ref().filter(|agent| agent.report.is_none()) else {
            return Ok(());
        };
        match self.store.truth().member(&host.name) {
            Some(record) if record.report != agent.told => Err(format!(
                "{}: {seq} was acknowledged, and {:?} is stored where it told {:?}",
                host.name, record.report, agent.told
            )),
            _ => Ok(()),
        }
    }

    /// "A poll is a sign of life. Lease = 2 × wait_s + 30 s."
    pub(in super::super) fn check_attendance(&self, at: usize) -> Result<(), String> {
        let coordinator = &self.coordinators[at];
        let Some(board) = &coordinator.board else { return Ok(()) };
        let attendance = board.attendance(&group());
        let Some(state) = board.records().group(&group()) else { return Ok(()) };
        let lease = Duration::from_secs(lease_s(WAIT_S).into());
        for (index, host) in self.hosts.iter().enumerate() {
            if state.member(&host.name).is_none() {
                continue;
            }
            let heard = coordinator.heard.get(&index).copied();
            let from = heard.unwrap_or(coordinator.began);
            let passed = self.now - from;
            let is_whole = coordinator.stood_still.is_none_or(|stood_still| stood_still < from);
            let is_right = match attendance.of(&host.name) {
                Presence::Here => heard.is_some() && (!is_whole || passed <= lease),
                Presence::Untold => heard.is_some() && (!is_whole || passed <= lease),
                // Not in this life, or not since it stood still.
                Presence::Unheard => !is_whole || (heard.is_none() && passed <= lease),
                Presence::Silent => passed > lease,
            };
            if !is_right {
                return Err(format!(
                    "coordinator {at} takes {} for {:?}, heard of {passed:?} ago",
                    host.name,
                    attendance.of(&host.name)
                ));
            }
        }
        Ok(())
    }
}
