//! The network between agents, operators and coordinators: what is sent may be lost, come late, come
//! twice, and overtake.

use std::time::Duration;

use bytes::Bytes;
use towline_protocol::poll::{Goodbye, Message, Permission, Poll, Question};

use super::operators::Operation;
use super::{Due, World};

/// Who has sent a request, and waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// An agent; `life`: which run of it, `seq`: the number of its message.
    Agent { host: usize, life: u64, seq: u64 },
    /// An operator.
    Operator(u64),
}

/// What is asked of a coordinator.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Poll(Poll),
    Report(Box<Message>),
    Ask(Question),
    Goodbye(Goodbye),
    Operate(Operation),
}

/// A request on its way.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) caller: Caller,
    /// The coordinator.
    pub(super) to: usize,
    pub(super) request: Request,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// To a poll; `None`: nothing new.
    Word(Option<Bytes>),
    /// To a report.
    Acknowledged,
    /// To a question.
    Permission(Permission),
    /// To an operator.
    Changed,
    /// It could not be carried out.
    Refused,
}

impl World {
    /// How long a message is on its way; `None`: it never arrives.
    fn latency(&mut self) -> Option<Duration> {
        if !self.has_faults {
            return Some(Duration::from_millis(5));
        }
        if self.loss > 0 && self.random.one_in(self.loss) {
            return None;
        }
        let milliseconds = match self.random.below(40) {
            0 => self.random.below(70_000),
            1..4 => self.random.below(6_000),
            _ => self.random.between(1, 60),
        };
        Some(Duration::from_millis(milliseconds))
    }

    fn is_cut(&self, caller: Caller) -> bool {
        match caller {
            Caller::Agent { host, .. } => self.now < self.hosts[host].cut_until,
            Caller::Operator(_) => false,
        }
    }

    /// Sends a request on its way, perhaps twice.
    pub(super) fn send(&mut self, caller: Caller, to: usize, request: Request) {
        // What asks for leave, or says goodbye, is what a copy that comes late could do most harm to.
        let one_in = match request {
            Request::Ask(_) => 3,
            Request::Goodbye(_) => 2,
            _ => 25,
        };
        if self.has_faults && self.random.one_in(one_in) {
            let most = if self.random.one_in(4) { 40_000 } else { 4_000 };
            let wait = Duration::from_millis(self.random.below(most));
            let to = self.random.index(self.coordinators.len());
            let sent = Sent { caller, to, request: request.clone() };
            self.later(wait, Due::Request(Box::new(sent)));
        }
        if let Some(latency) = self.latency() {
            self.later(latency, Due::Request(Box::new(Sent { caller, to, request })));
        }
    }

    /// Does what was sent get there?
    pub(super) fn arrives(&self, sent: &Sent) -> bool {
        !self.is_cut(sent.caller)
    }

    /// Sends an answer on its way.
    pub(super) fn answer(&mut self, caller: Caller, reply: Reply) {
        if self.is_cut(caller) {
            return;
        }
        if let Some(latency) = self.latency() {
            self.later(latency, Due::Reply(caller, Box::new(reply)));
        }
    }

    /// An answer arrives.
    pub(super) fn answered(&mut self, caller: Caller, reply: Reply) -> Result<(), String> {
        if self.is_cut(caller) {
            return Ok(());
        }
        match caller {
            Caller::Agent { host, life, seq } => self.agent_hears(host, life, seq, reply),
            Caller::Operator(key) => self.operator_hears(key, &reply),
        }
    }
}
