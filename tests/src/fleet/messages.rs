//! What an agent's shell says, and hears: the poll, the newest report, the question.

use std::collections::VecDeque;
use std::time::Duration;

use towline_agent::machine::{Event, Leave, Outcome, TaskId};
use towline_protocol::ids::Order;
use towline_protocol::poll::{Answer, Message, Permission, Poll, Question, VERSION, Word};
use towline_protocol::report::{Cause, Report};

use super::host::{Agent, Asked, Pending};
use super::network::{Caller, Reply, Request};
use super::{Due, WAIT_S, World, group};

/// By when a request must be answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);

impl World {
    /// Agents begin with the first address that they have; some are told another order of them.
    pub(super) fn preferred_coordinator(&mut self) -> usize {
        let all = 0..self.coordinators.len();
        let known: Vec<usize> = all.filter(|at| !self.coordinators[*at].is_retired).collect();
        let index = if self.random.one_in(8) { self.random.index(known.len()) } else { 0 };
        known.get(index).copied().unwrap_or(0)
    }

    /// Polls: there is no other poll under way.
    pub(super) fn poll(&mut self, index: usize) {
        if self.random.one_in(6) {
            let at = self.preferred_coordinator();
            if let Some(agent) = &mut self.hosts[index].agent {
                agent.at = at;
            }
        }
        let host = &mut self.hosts[index];
        let (life, instance) = (host.life, host.name.clone());
        let Some(agent) = host.agent.as_mut().filter(|agent| agent.poll.is_none()) else { return };
        let seq = agent.next_seq();
        agent.poll = Some(seq);
        let (to, seen) = (agent.at, agent.seen.clone());
        let nothing_yet = agent.told.is_none().then_some(seq);
        let unsaid = agent.report.as_ref().map(|report| report.seq).or(nothing_yet);
        let poll = Poll { version: VERSION, group: group(), instance, seq, seen, unsaid };
        let caller = Caller::Agent { host: index, life, seq };
        self.send(caller, to, Request::Poll(poll));
        let within = ANSWERED_WITHIN + Duration::from_secs(WAIT_S.into());
        self.later(within, Due::Late { host: index, life, seq });
    }

    pub(super) fn report(&mut self, index: usize, report: Report) {
        let Some(agent) = &mut self.hosts[index].agent else { return };
        let seq = agent.next_seq();
        agent.told = Some(report.clone());
        agent.report = Some(Pending { seq, since: self.now, report });
        self.send_report(index);
    }

    fn send_report(&mut self, index: usize) {
        let now = self.now;
        let host = &mut self.hosts[index];
        let life = host.life;
        let Some(agent) = &mut host.agent else { return };
        let Some(Pending { seq, since, report }) = agent.report.clone() else { return };
        let age_ms = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
        let message = Message { seq, age_ms, report, note: None, log: None };
        let (caller, to) = (Caller::Agent { host: index, life, seq }, agent.at);
        self.send(caller, to, Request::Report(Box::new(message)));
        self.later(ANSWERED_WITHIN, Due::Late { host: index, life, seq });
    }

    /// Asks for leave to swap.
    pub(super) fn ask(
        &mut self,
        index: usize,
        task: TaskId,
        order: Order,
        events: &mut VecDeque<Event>,
    ) {
        let now = self.now;
        let host = &mut self.hosts[index];
        let (life, instance) = (host.life, host.name.clone());
        let Some(agent) = &mut host.agent else { return };
        let seq = agent.next_seq();
        agent.question = Some(Asked { seq, sent: now, task, order });
        events.push_back(Event::Asked(seq));
        let question = Question { version: VERSION, group: group(), instance, seq, order };
        let (caller, to) = (Caller::Agent { host: index, life, seq }, agent.at);
        self.send(caller, to, Request::Ask(question));
        self.later(ANSWERED_WITHIN, Due::Late { host: index, life, seq });
    }

    /// An agent that is not what it should be asks for leave without having been told to; it tells later
    /// that it does not use it.
    pub(super) fn ask_out_of_turn(&mut self, index: usize) {
        let order = self.store.truth().order();
        let host = &mut self.hosts[index];
        let (life, instance) = (host.life, host.name.clone());
        let is_free = |agent: &&mut Agent| {
            let journal = agent.machine.journal();
            agent.question.is_none() && journal.swap.is_none() && journal.leave.is_none()
        };
        let Some(agent) = host.agent.as_mut().filter(is_free) else { return };
        let seq = agent.next_seq();
        let question = Question { version: VERSION, group: group(), instance, seq, order };
        let (caller, to) = (Caller::Agent { host: index, life, seq }, agent.at);
        self.tell(|world| format!("{} asks out of turn", world.hosts[index].name));
        self.send(caller, to, Request::Ask(question));
        self.later(Duration::from_secs(30), Due::TellsAgain { host: index, life });
    }

    /// It tells once more what it told.
    pub(super) fn tell_again(&mut self, index: usize) {
        let told = self.hosts[index].agent.as_ref().and_then(|agent| agent.told.clone());
        if let Some(report) = told {
            self.report(index, report);
        }
    }

    /// A request of this number has waited for long enough.
    pub(super) fn is_late(&mut self, index: usize, seq: u64) -> Result<(), String> {
        let (now, count) = (self.now, self.coordinators.len());
        let Some(agent) = &mut self.hosts[index].agent else { return Ok(()) };
        let is_poll = agent.poll.take_if(|poll| *poll == seq).is_some();
        let is_report = agent.report.as_ref().is_some_and(|report| report.seq == seq);
        let question = agent.question.take_if(|question| question.seq == seq);
        if !is_poll && !is_report && question.is_none() {
            return Ok(());
        }
        if now > agent.turned + ANSWERED_WITHIN {
            // Of several requests that wait for one coordinator, the first turns away from it.
            (agent.at, agent.turned) = ((agent.at + 1) % count, now);
        }
        if is_poll {
            self.poll(index);
        }
        if is_report {
            self.send_report(index);
        }
        if let Some(question) = question {
            let silence = Outcome::Failed(Cause::Fetch, "silence".to_owned());
            return self.done(index, question.task, silence);
        }
        Ok(())
    }

    /// An answer has come.
    pub(super) fn agent_hears(
        &mut self,
        index: usize,
        life: u64,
        seq: u64,
        reply: Reply,
    ) -> Result<(), String> {
        let host = &mut self.hosts[index];
        let Some(agent) = host.agent.as_mut().filter(|_| host.life == life) else { return Ok(()) };
        match reply {
            Reply::Word(bytes) => {
                if agent.poll.take_if(|poll| *poll == seq).is_none() {
                    return Ok(());
                }
                if let Some(bytes) = bytes {
                    let answer: Answer =
                        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
                    agent.seen = Some(answer.id);
                    self.check_word(index, &answer.word)?;
                    self.hears_word(index, answer.word)?;
                }
                self.poll(index);
                Ok(())
            }
            Reply::Acknowledged => {
                agent.report.take_if(|report| report.seq == seq);
                self.check_acknowledged(index, seq)
            }
            Reply::Permission(Permission { permit, valid_s, .. }) => {
                let Some(asked) = agent.question.take_if(|question| question.seq == seq) else {
                    return Ok(());
                };
                let outcome = if permit.is_some() {
                    let until = asked.sent + Duration::from_secs(valid_s.into()) - agent.started;
                    agent.leave = Some(asked);
                    Outcome::Permitted(Leave { until: Some(until) })
                } else {
                    Outcome::Denied
                };
                self.done(index, asked.task, outcome)
            }
            // It tries again at its deadline.
            Reply::Changed | Reply::Refused => Ok(()),
        }
    }

    /// A word that the coordinator has for it; or one that is none of its own: of a store that was restored, or
    /// written by hand.
    fn hears_word(&mut self, index: usize, word: Word) -> Result<(), String> {
        let mut words = vec![word];
        if self.has_faults && self.random.one_in(200) {
            let mut odd = words[0].clone();
            let (revision, is_lower) = (self.any_revision(), self.random.one_in(2));
            if let Some(target) = &mut odd.target {
                target.order.generation -= u64::from(is_lower && target.order.generation > 0);
                (target.revision, target.not) = (Some(revision), None);
                words.push(odd);
            }
        }
        for word in words {
            let Some(agent) = &self.hosts[index].agent else { return Ok(()) };
            let before = agent.machine.journal().target.clone();
            self.step(index, Event::Told(word.clone()))?;
            self.check_heard(index, before.as_ref(), &word)?;
        }
        Ok(())
    }
}
