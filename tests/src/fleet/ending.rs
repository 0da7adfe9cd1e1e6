//! What must come once the faults have stopped: everything converges, or says why it does not.

use std::time::Duration;

use towline_protocol::ids::Revision;
use towline_protocol::poll::Duty;
use towline_protocol::report::Health;
use towline_protocol::rollout::{Kind, State};

use super::operators::Order;
use super::{Character, World};

/// How long it may take until all that is under way has ended, or stands and says why.
const SETTLES_WITHIN: Duration = Duration::from_secs(2_400);

/// How long a good release may take.
const CONVERGES_WITHIN: Duration = Duration::from_secs(2_400);

/// How often the operators look.
const LOOK_EVERY: Duration = Duration::from_secs(15);

impl World {
    pub(super) fn run_quiet(&mut self) -> Result<(), String> {
        self.tell(|_| "the faults stop".to_owned());
        self.has_faults = false;
        self.outage_until = self.now;
        for at in 0..self.coordinators.len() {
            self.coordinator_goes_on(at);
        }
        // Each coordinator hears those that poll it, and takes the others for silent: two of them, with
        // agents that stay where they are, are safe and get nowhere. So one of them is left.
        if let Some(last) = self.coordinators.len().checked_sub(1).filter(|last| *last > 0) {
            let at = self.random.index(last + 1);
            self.coordinators[at].is_retired = true;
            self.crash_coordinator(at);
        }
        for index in 0..self.hosts.len() {
            self.hosts[index].cut_until = self.now;
            self.agent_goes_on(index);
        }
        if self.hosts.iter().all(|host| host.is_gone) {
            let baked = self.any_revision();
            self.join(&baked)?;
        }
        // What operators have ordered so far, and all that is still on its way, comes to an end.
        for standing in self.operations.values_mut() {
            standing.is_open = false;
        }
        self.pass(Duration::from_secs(90))?;
        self.settle()?;
        self.check_permits_in_use()?;
        let good = self.new_revision(Some(Character::Good));
        self.tell(|_| format!("the last release: {}", good.short()));
        self.converge(&good)?;
        self.check_end(&good)
    }

    /// Lets time go by.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = self.now + time;
        while self.due.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.advance()?;
        }
        self.now = until;
        Ok(())
    }

    /// The operators do what a rollout asks for, until it has ended, or nothing more can be done.
    fn settle(&mut self) -> Result<(), String> {
        let until = self.now + SETTLES_WITHIN;
        while self.now < until {
            self.pass(LOOK_EVERY)?;
            self.forget_the_dead();
            if self.has_open_order() {
                continue;
            }
            let going = self.store.truth().going();
            // Nobody whom it was meant for is there: it stays open for as long as the operators like.
            let is_idle = going.is_some_and(|own| own.batches.is_empty())
                && self.now + SETTLES_WITHIN / 2 > until;
            match going.map(|rollout| (rollout.state, rollout.kind)) {
                Some(_) if is_idle => self.order(Order::Abort),
                None => return Ok(()),
                Some((State::Paused, _)) => self.order(Order::Resume),
                Some((State::Halted, Kind::Release)) if self.random.one_in(2) => {
                    self.order(Order::Abort);
                }
                Some((State::Halted, _)) => return Ok(()),
                Some(_) => {}
            }
        }
        let rollout = self.store.truth().going();
        Err(format!("a rollout neither ends nor halts: {rollout:?}"))
    }

    /// Nothing that is over keeps a permit.
    fn check_permits_in_use(&self) -> Result<(), String> {
        for (instance, permit) in &self.store.truth().open {
            let host = self.hosts.iter().find(|host| host.name == *instance && !host.is_gone);
            let agent = host.and_then(|host| host.agent.as_ref());
            if agent.is_some_and(|agent| agent.report.is_some()) {
                // What it tells is on its way.
                continue;
            }
            let told = agent.and_then(|agent| agent.told.as_ref());
            let is_over = |report: &towline_protocol::report::Report| {
                !report.uses_permit
                    && report.health == Health::Healthy
                    && (report.proven || report.adopted)
            };
            if told.is_none_or(is_over) {
                return Err(format!("{instance} keeps {permit:?} for nothing: {told:?}"));
            }
        }
        Ok(())
    }

    fn forget_the_dead(&mut self) {
        let truth = self.store.truth();
        let is_dead = |host: &&super::Host| host.is_gone && truth.member(&host.name).is_some();
        let dead = self.hosts.iter().find(is_dead).map(|host| host.name.clone());
        if let Some(instance) = dead.filter(|_| !self.has_open_order()) {
            self.order(Order::Forget(instance));
        }
    }

    /// A good release reaches everybody.
    fn converge(&mut self, good: &Revision) -> Result<(), String> {
        let until = self.now + CONVERGES_WITHIN;
        let (mut has_begun, mut retries) = (false, 2);
        while self.now < until {
            self.pass(LOOK_EVERY)?;
            self.forget_the_dead();
            if self.has_open_order() {
                continue;
            }
            let truth = self.store.truth();
            let target = truth.target.as_ref().and_then(|kept| kept.value.target.revision.as_ref());
            let state = truth.rollout.as_ref().map(|kept| kept.value.state);
            let reason = truth.rollout.as_ref().map_or("", |kept| kept.value.reason.as_str());
            let is_stuck = reason.starts_with("nothing has moved");
            if has_begun && target != Some(good) {
                let past = towline_coordinator::records::key::past(
                    &super::group(),
                    truth.order().generation - 1,
                );
                let past = self.store.value(&past).map(String::from_utf8_lossy);
                return Err(format!("a good release was taken back: {past:?}"));
            }
            if target == Some(good) {
                has_begun = true;
                match state {
                    Some(State::Converged) if self.is_at_rest(good) => return Ok(()),
                    // Something unhealthy, that was to come later, held the budget: once more, then.
                    Some(State::Halted) if retries > 0 && is_stuck => retries -= 1,
                    Some(State::Halted | State::Aborted | State::Paused) => {
                        return Err(format!("a good release: {:?}", truth.rollout));
                    }
                    _ => continue,
                }
            }
            match state {
                Some(State::Paused) => self.order(Order::Resume),
                _ => {
                    let revision = good.clone();
                    self.order(Order::Release { revision, only: None, without: Vec::new() });
                }
            }
        }
        self.check_end(good)?;
        let rollout = &self.store.truth().rollout;
        Err(format!("a good release was not reached in time: {rollout:?}"))
    }

    fn is_at_rest(&self, good: &Revision) -> bool {
        self.check_end(good).is_ok()
    }

    fn check_end(&self, good: &Revision) -> Result<(), String> {
        let truth = self.store.truth();
        if !truth.open.is_empty() {
            return Err(format!("permits stay open: {:?}", truth.open));
        }
        for host in self.hosts.iter().filter(|host| !host.is_gone) {
            let agent = host.agent.as_ref().ok_or("an agent does not start")?;
            if !host.is_up(self.now) || !host.serves(good) {
                return Err(format!(
                    "{} does not serve {}: {:?}; {:?}",
                    host.name,
                    good.short(),
                    host.runs,
                    agent.told
                ));
            }
            let word = agent.machine.journal().word.as_ref();
            let is_told = word
                .is_some_and(|word| word.duty == Duty::Take && word.boot.as_ref() == Some(good));
            if !is_told {
                return Err(format!("{} is told {word:?} in the end", host.name));
            }
            let record = truth.member(&host.name).ok_or("an instance is not known")?;
            let told = record.report.as_ref();
            if told != agent.told.as_ref() {
                let name = &host.name;
                return Err(format!("{name} told {:?}, and {told:?} is stored", agent.told));
            }
            // "Numbered orders to that instance": each is carried out.
            if told.is_some_and(|report| report.orders != record.orders) {
                return Err(format!("{} was ordered {:?}: {told:?}", host.name, record.orders));
            }
            let is_good = |report: &towline_protocol::report::Report| {
                report.health == Health::Healthy && report.proven && !report.uses_permit
            };
            if !told.is_some_and(is_good) {
                return Err(format!("{} is not well: {told:?}", host.name));
            }
        }
        Ok(())
    }
}
