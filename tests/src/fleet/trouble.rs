//! What goes wrong: processes end, or stand still; instances leave, come, or are cut off; clocks step.

use std::time::Duration;

use towline_agent::journal::RUN_SHIFT;
use towline_agent::machine::Event;
use towline_coordinator::rollout::operations::ToInstance;
use towline_protocol::poll::{Goodbye, VERSION};

use super::coordinator::What;
use super::network::{Caller, Request};
use super::operators::Order;
use super::{Due, World, group};

/// The most instances that run at a time, and the most that there ever are.
const LIVE_MAX: usize = 8;
const HOSTS_MAX: usize = 12;

impl World {
    pub(super) fn run_troubled(&mut self, troubles: usize) -> Result<(), String> {
        self.book.troubles_left = troubles;
        while self.book.troubles_left > 0 {
            self.advance()?;
        }
        Ok(())
    }

    /// The next trouble.
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        if !self.has_faults {
            return Ok(());
        }
        self.book.troubles_left = self.book.troubles_left.saturating_sub(1);
        let wait = self.random.between(200, self.calm_s * 1_000);
        self.later(Duration::from_millis(wait), Due::Trouble);
        let up: Vec<usize> =
            (0..self.hosts.len()).filter(|index| !self.hosts[*index].is_gone).collect();
        let at = self.random.index(self.coordinators.len());
        let host = self.random.pick(&up).copied();
        match (self.random.below(35), host) {
            (0..14, _) => self.meddle(),
            (14..16, Some(host)) => self.crash_agent(host),
            (16, Some(host)) => self.reboot(host),
            (17..19, Some(host)) => return self.app_dies(host),
            (19..21, Some(host)) => self.stop_agent(host),
            (21..23, Some(host)) => {
                let until = self.now + Duration::from_secs(self.random.between(3, 100));
                self.tell(|world| format!("{} is cut off until {until:?}", world.hosts[host].name));
                self.hosts[host].cut_until = until;
                self.order_meanwhile(host);
            }
            (23, Some(host)) if self.random.one_in(2) => self.terminate(host),
            (24..26, _) if up.len() < LIVE_MAX && self.hosts.len() < HOSTS_MAX => {
                let baked = self.any_revision();
                return self.join(&baked);
            }
            (26..28, _) => self.crash_coordinator(at),
            (28..30, _) => self.stop_coordinator(at),
            (30, _) => {
                let most = if self.random.one_in(2) { 5_000 } else { 4_000_000 };
                let step = i64::try_from(self.random.below(most)).unwrap_or(0);
                self.coordinators[at].ahead_ms += if self.random.one_in(2) { step } else { -step };
            }
            (31, _) if self.random.one_in(3) => {
                self.outage_until = self.now + Duration::from_secs(self.random.between(3, 40));
                self.tell(|_| "the database is down".to_owned());
                // Just when the group grows: what is good everywhere else fails on newborns.
                let room = LIVE_MAX.saturating_sub(up.len()).min(HOSTS_MAX - self.hosts.len());
                for _ in 0..room.min(3) {
                    let baked = self.any_revision();
                    self.join(&baked)?;
                }
            }
            (32.., Some(host)) => self.ask_out_of_turn(host),
            _ => {}
        }
        Ok(())
    }

    /// Is this a moment to interfere: it was decided, and it is not stored yet?
    pub(super) fn is_bad_moment(&mut self, at: usize, number: u64) -> bool {
        let Some(What::Request(sent)) =
            self.coordinators[at].jobs.get(&number).map(|job| &job.what)
        else {
            // The gate decides, and somebody else does as well.
            let is_bad = self.random.one_in(15);
            if is_bad && self.random.one_in(3) {
                let order = self.random.pick(&[Order::Pause, Order::Resume, Order::Abort]).cloned();
                order.into_iter().for_each(|order| self.order(order));
            }
            return is_bad;
        };
        match (&sent.request, sent.caller) {
            (Request::Ask(_), Caller::Agent { host, .. }) => {
                let is_bad = self.random.one_in(8);
                if is_bad {
                    self.interfere(host);
                }
                is_bad
            }
            // Leave that is given meanwhile may be one that this closes.
            (Request::Report(_) | Request::Goodbye(_), Caller::Agent { host, .. }) => {
                let is_bad = self.random.one_in(20);
                if is_bad {
                    self.ask_out_of_turn(host);
                }
                is_bad
            }
            (Request::Operate(operation), _) => {
                let is_change = matches!(
                    operation.order,
                    Order::Release { .. } | Order::Abort | Order::Rollback(_)
                );
                let host = match &operation.order {
                    Order::Forget(instance) => {
                        self.hosts.iter().position(|host| host.name == *instance)
                    }
                    _ => None,
                };
                if let Some(host) = host {
                    self.ask_out_of_turn(host);
                }
                let is_bad = host.is_some() || self.random.one_in(15);
                if is_bad && is_change {
                    self.order(Order::Resume);
                }
                is_bad
            }
            _ => self.random.one_in(15),
        }
    }

    /// All processes of an instance end, and it boots; it may have said goodbye.
    fn reboot(&mut self, index: usize) {
        if self.random.one_in(2) {
            self.say_goodbye(index);
        }
        self.tell(|world| format!("{} reboots", world.hosts[index].name));
        self.crash_agent(index);
        self.hosts[index].runs = None;
    }

    fn app_dies(&mut self, index: usize) -> Result<(), String> {
        let host = &mut self.hosts[index];
        if host.runs.take().is_none() {
            return Ok(());
        }
        let is_seen = host.agent.is_some() && host.held.is_none() && self.random.one_in(2);
        if let Some(agent) = &mut host.agent {
            agent.has_died = true;
        }
        self.tell(|world| format!("{}: the app dies", world.hosts[index].name));
        if is_seen { self.step(index, Event::Ended) } else { Ok(()) }
    }

    /// The agent's process stands still for a while.
    fn stop_agent(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if host.agent.is_none() || host.held.is_some() {
            return;
        }
        host.held = Some(Vec::new());
        let wait = self.random.between(2, 110);
        self.tell(|world| format!("{} is stopped for {wait} s", world.hosts[index].name));
        self.later(Duration::from_secs(wait), Due::AgentGoesOn(index));
        self.order_meanwhile(index);
    }

    /// Whoever cannot be heard may be ordered to restart: it will hear of it late, and of all else as well.
    fn order_meanwhile(&mut self, index: usize) {
        if self.random.one_in(4) {
            let instance = self.hosts[index].name.clone();
            self.order(Order::Instance(instance, ToInstance::Restart));
        }
    }

    /// It goes on, with whatever has come meanwhile, in any order.
    pub(super) fn agent_goes_on(&mut self, index: usize) {
        let Some(held) = self.hosts[index].held.take() else { return };
        self.tell(|world| format!("{} goes on", world.hosts[index].name));
        self.release(held);
    }

    fn stop_coordinator(&mut self, at: usize) {
        let coordinator = &mut self.coordinators[at];
        if coordinator.board.is_none() || coordinator.held.is_some() {
            return;
        }
        coordinator.held = Some(Vec::new());
        let wait = self.random.between(1, 100);
        self.tell(|_| format!("coordinator {at} is stopped for {wait} s"));
        self.later(Duration::from_secs(wait), Due::CoordinatorGoesOn(at));
    }

    pub(super) fn coordinator_goes_on(&mut self, at: usize) {
        let Some(held) = self.coordinators[at].held.take() else { return };
        self.coordinators[at].stood_still = Some(self.now);
        self.tell(|_| format!("coordinator {at} goes on"));
        self.release(held);
    }

    fn release(&mut self, held: Vec<Due>) {
        for due in held {
            let wait = self.random.below(20);
            self.later(Duration::from_millis(wait), due);
        }
    }

    /// An instance is terminated; it may say goodbye.
    pub(super) fn terminate(&mut self, index: usize) {
        if !self.random.one_in(3) {
            self.say_goodbye(index);
        }
        self.tell(|world| format!("{} is terminated", world.hosts[index].name));
        let host = &mut self.hosts[index];
        (host.agent, host.runs, host.held, host.is_gone) = (None, None, None, true);
        host.life += 1;
    }

    fn say_goodbye(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if host.agent.is_none() || host.held.is_some() {
            return;
        }
        host.is_excused = true;
        // The last of its numbers; nothing is sent after it.
        let seq = (host.disk.journal.run << RUN_SHIFT) | u64::from(u32::MAX);
        let (life, instance) = (host.life, host.name.clone());
        let goodbye = Goodbye { version: VERSION, group: group(), instance, seq };
        let to = self.random.index(self.coordinators.len());
        self.send(Caller::Agent { host: index, life, seq }, to, Request::Goodbye(goodbye));
    }
}
