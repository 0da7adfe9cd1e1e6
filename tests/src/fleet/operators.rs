//! The operators: what they order, how often they try, and what must have become of it.

use std::time::Duration;

use towline_coordinator::board::{Board, Moment};
use towline_coordinator::records::{Draft, key};
use towline_coordinator::rollout::operations::{self, ToInstance};
use towline_coordinator::rollout::{permits, reports};
use towline_protocol::api::{ErrorBody, ReleaseRequest};
use towline_protocol::ids::{Instance, Revision};
use towline_protocol::rollout::{Selector, State};

use super::network::{Caller, Reply, Request};
use super::{Due, World, group};

/// How long an operator's command waits for its answer, and how often it is sent.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const TRIES_MAX: u32 = 4;

/// What an operator orders.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Order {
    Release { revision: Revision, only: Option<Selector>, without: Vec<Instance> },
    Rollback(Option<Revision>),
    Restart,
    Pause,
    Resume,
    Abort,
    Promote,
    Instance(Instance, ToInstance),
    Forget(Instance),
    Close(Instance),
    Lift(Revision),
    RaiseEpoch,
}

/// An order and its idempotency key.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) key: u64,
    pub(super) order: Order,
}

/// How far an order has come.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) operation: Operation,
    tries: u32,
    /// How often it was carried out.
    pub(super) effects: u32,
    pub(super) is_open: bool,
}

impl Operation {
    /// Where it is noted that it was carried out.
    pub(super) fn once(&self) -> String {
        format!("once/operator/{}", self.key)
    }

    /// Whose it is, in the records.
    pub(super) fn by(&self) -> String {
        format!("operator-{}", self.key)
    }

    /// Decides what to store for it, as the server does.
    pub(super) fn decide(&self, board: &mut Board, now: Moment) -> Result<Draft, ErrorBody> {
        let group = group();
        let clock = board.clock(&group, now);
        let attendance = board.attendance(&group);
        let act = board.act(&self.by(), None, now);
        let epoch = board.records().epoch();
        let state =
            board.records().group(&group).ok_or_else(|| operations::unknown_group(&group))?;
        match &self.order {
            Order::Release { revision, only, without } => {
                let request = ReleaseRequest {
                    revision: revision.clone(),
                    only: only.clone(),
                    without: without.clone(),
                };
                operations::release(state, &attendance, &request, &act)
            }
            Order::Rollback(to) => operations::rollback(state, to.as_ref(), &act),
            Order::Restart => operations::restart(state, &act),
            Order::Pause => operations::pause(state, &act),
            Order::Resume => operations::resume(state, clock, &act),
            Order::Abort => operations::abort(state, &act),
            Order::Promote => operations::promote(state, &act),
            Order::Instance(instance, order) => operations::order(state, instance, *order),
            Order::Forget(instance) => reports::left(state, instance, None, now.at)
                .ok_or_else(|| operations::unknown_instance(state, instance)),
            Order::Close(instance) => {
                let mut draft = Draft::new();
                if permits::close(state, instance, &mut draft) {
                    Ok(draft)
                } else {
                    Err(operations::conflict("it has no permit".to_owned(), None))
                }
            }
            Order::Lift(revision) => operations::lift(state, revision),
            Order::RaiseEpoch => {
                let mut draft = Draft::new();
                draft.put(key::EPOCH.to_owned(), &serde_json::json!({ "epoch": epoch + 1 }));
                Ok(draft)
            }
        }
    }
}

impl World {
    /// An operator orders something.
    pub(super) fn order(&mut self, order: Order) {
        self.number += 1;
        let key = self.number;
        self.tell(|_| format!("operator-{key} orders {order:?}"));
        let operation = Operation { key, order };
        let standing = Standing { operation, tries: 0, effects: 0, is_open: true };
        self.operations.insert(key, standing);
        self.try_order(key);
    }

    /// Sends an order that was not answered yet.
    pub(super) fn try_order(&mut self, key: u64) {
        let Some(standing) = self.operations.get_mut(&key).filter(|standing| standing.is_open)
        else {
            return;
        };
        standing.tries += 1;
        if standing.tries > TRIES_MAX {
            // Then nobody knows what has become of it.
            standing.is_open = false;
            return;
        }
        let operation = standing.operation.clone();
        let to = self.random.index(self.coordinators.len());
        self.send(Caller::Operator(key), to, Request::Operate(operation));
        self.later(ANSWERED_WITHIN, Due::OperatorWaits(key));
    }

    pub(super) fn operator_hears(&mut self, key: u64, reply: &Reply) -> Result<(), String> {
        self.tell(|_| format!("operator-{key} hears {reply:?}"));
        let Some(standing) = self.operations.get_mut(&key).filter(|standing| standing.is_open)
        else {
            return Ok(());
        };
        standing.is_open = false;
        match reply {
            Reply::Changed => self.check_ordered(key),
            _ => Ok(()),
        }
    }

    /// Is there an order whose answer is waited for?
    pub(super) fn has_open_order(&self) -> bool {
        self.operations.values().any(|standing| standing.is_open)
    }

    /// What an operator does in the middle of trouble.
    pub(super) fn meddle(&mut self) {
        let state = self.store.truth();
        let rollout = state.going().map(|rollout| rollout.state);
        let instances: Vec<Instance> = state.instances.keys().cloned().collect();
        let quarantined = state.record.as_ref().map_or(Vec::new(), |record| {
            record.value.quarantine.iter().map(|own| own.revision.clone()).collect()
        });
        let holders: Vec<Instance> = state.open.keys().cloned().collect();
        let instance = self.random.pick(&instances).cloned();
        let order = match (self.random.below(22), rollout, instance) {
            (0..8, None, _) | (0, _, _) | (1..3, Some(State::Halted), _) => self.any_release(),
            (3..6, Some(State::Paused | State::Halted), _) => Order::Resume,
            (6..8, Some(_), _) => Order::Promote,
            (8..11, _, _) => Order::Pause,
            (11..13, _, _) => Order::Resume,
            (13..15, _, _) => Order::Abort,
            (15, _, _) => {
                let to = self.random.one_in(3).then(|| self.any_revision());
                Order::Rollback(to)
            }
            (16, _, _) => Order::Restart,
            (17, _, Some(instance)) => Order::Instance(instance, ToInstance::Restart),
            (18, _, Some(instance)) => Order::Instance(instance, ToInstance::Retry),
            (19, _, Some(instance)) => match self.random.pick(&holders).cloned() {
                Some(holder) if self.random.one_in(2) => Order::Close(holder),
                _ => Order::Forget(instance),
            },
            (20, _, _) => match self.random.pick(&quarantined).cloned() {
                Some(revision) => Order::Lift(revision),
                None => return,
            },
            (21, _, _) if self.random.one_in(4) => Order::RaiseEpoch,
            _ => return,
        };
        self.order(order);
    }

    /// What an operator, or the instance itself, does just when leave is being given to it.
    pub(super) fn interfere(&mut self, host: usize) {
        let order = match self.random.below(8) {
            0..3 => Order::Pause,
            3 => Order::Abort,
            4 => Order::Rollback(None),
            5 => self.any_release(),
            6 => Order::Forget(self.hosts[host].name.clone()),
            _ => return self.terminate(host),
        };
        self.order(order);
    }

    fn any_release(&mut self) -> Order {
        let revision =
            if self.random.one_in(3) { self.any_revision() } else { self.new_revision(None) };
        let names: Vec<Instance> =
            self.store.truth().members().map(|record| record.instance.clone()).collect();
        let picked = self.random.pick(&names).cloned();
        let only = picked
            .clone()
            .filter(|_| self.random.one_in(8))
            .and_then(|instance| Selector::try_from(instance.to_string()).ok());
        let without = picked.filter(|_| self.random.one_in(4)).into_iter().collect();
        Order::Release { revision, only, without }
    }
}
