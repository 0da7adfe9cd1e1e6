//! The source of the simulated world: targets, duties, orders, and leave to swap.

use std::time::Duration;

use towline_agent::journal::{RUN_SHIFT, Swap};
use towline_agent::machine::{Event, Leave, Outcome};
use towline_protocol::ids::{Order, Revision};
use towline_protocol::poll::{Duty, Word};
use towline_protocol::report::{Cause, Orders};
use towline_protocol::target::Target;

use super::{World, policy};

/// How long leave is good for.
const VALID: Duration = Duration::from_secs(30);

/// What the source says besides the target, and what it was asked.
#[derive(Debug)]
pub(super) struct Says {
    pub(super) duty: Duty,
    /// The duty that the agent has heard.
    pub(super) heard: Duty,
    ask: u64,
    pub(super) orders: Orders,
    /// Counts the questions of this run.
    count: u64,
    /// The newest question, with when it was asked, until its leave is used.
    open: Option<(u64, Duration)>,
    /// The newest question that was not used and never will be.
    unused: u64,
    /// The leave that was given and not used yet: for which target, and until when.
    leave: Option<(Order, Duration)>,
    /// Until when the swap that is journalled may begin.
    until: Option<Duration>,
}

impl Says {
    pub(super) fn new() -> Self {
        Self {
            duty: Duty::Take,
            heard: Duty::Take,
            ask: 0,
            orders: Orders::default(),
            count: 0,
            open: None,
            unused: 0,
            leave: None,
            until: None,
        }
    }

    fn waste(&mut self) {
        let open = self.open.take().map_or(0, |(number, _)| number);
        self.unused = self.unused.max(open);
    }
}

impl World {
    pub(super) fn set_target(&mut self, revision: Revision, fallback: Option<Revision>, more: u64) {
        let last = self.target.as_ref().map_or((0, 0), |t| (t.order.generation, t.restart));
        self.target = Some(Target {
            version: 1,
            group: policy().group,
            order: Order { epoch: 1, generation: last.0 + 1 },
            revision: Some(revision),
            not: None,
            fallback,
            quarantine: Vec::new(),
            restart: last.1 + more,
        });
    }

    pub(super) fn hear(&mut self) -> Result<(), String> {
        match self.target.clone() {
            Some(target) => {
                // What was counted before an instance hears of its group was not meant for it.
                if self.machine.journal().target.is_none() {
                    self.started_for = self.started_for.max(target.restart);
                }
                self.says.heard = self.says.duty;
                let word = self.word(target);
                self.step(Event::Told(word))
            }
            None => self.step(Event::Objected("there is no file".to_owned())),
        }
    }

    fn word(&self, target: Target) -> Word {
        let Says { duty, ask, orders, .. } = self.says;
        Word { duty, ask, orders, ..Word::of_target(target) }
    }

    /// The source names what must not be followed.
    pub(super) fn mislead(&mut self) -> Result<(), String> {
        let Some(mut target) = self.target.clone() else {
            return self.step(Event::Objected("there is no file".to_owned()));
        };
        match self.random.below(3) {
            0 => target.order.generation = target.order.generation.saturating_sub(1),
            1 => target.restart += 1,
            _ => return self.step(Event::Objected("it does not parse".to_owned())),
        }
        // Only what was heard before can be told from it.
        if self.machine.journal().target == self.target {
            let word = self.word(target);
            self.step(Event::Told(word))?;
        }
        Ok(())
    }

    /// The source says something else of the same target.
    pub(super) fn shift(&mut self) -> Result<(), String> {
        match self.random.below(6) {
            0 => self.says.duty = Duty::Hold,
            1 => self.says.duty = Duty::Prepare,
            2 if self.target.is_some() => self.says.orders.restart += 1,
            3 => self.says.orders.retry += 1,
            4 => self.says.ask += 1,
            _ => self.says.duty = Duty::Take,
        }
        self.hear()
    }

    /// Nothing is in the way of the target any more.
    pub(super) fn open_up(&mut self) {
        self.says.duty = Duty::Take;
        self.says.ask += 1;
    }

    /// A question goes out.
    pub(super) fn asked(&mut self) {
        self.says.waste();
        self.says.count += 1;
        let number = (self.machine.journal().run << RUN_SHIFT) + self.says.count;
        self.says.open = Some((number, self.now));
        self.says.leave = None;
        let effects = self.machine.step(self.now, Event::Asked(number));
        assert!(effects.is_empty(), "a number is no reason to do anything");
    }

    /// The source answers it, or the answer is lost.
    pub(super) fn answer(&mut self, order: Order, is_unlucky: bool) -> Outcome {
        let lost = Outcome::Failed(Cause::Fetch, "no answer".to_owned());
        let asked = self.says.open.map_or(self.now, |(_, asked)| asked);
        if is_unlucky {
            return if self.random.one_in(2) { lost } else { Outcome::Denied };
        }
        let until = asked + VALID;
        self.says.leave = Some((order, until));
        Outcome::Permitted(Leave { until: Some(until) })
    }

    /// A swap is to be journalled; `needs_leave`: it replaces what serves.
    pub(super) fn use_leave(&mut self, order: Order, needs_leave: bool) -> Result<(), String> {
        let leave = self.says.leave.take();
        let open = self.says.open.map(|(number, _)| number);
        let is_used = open.is_some() && self.machine.journal().leave == open;
        self.says.until = leave.map(|(_, until)| until).filter(|_| is_used);
        match leave {
            Some((of, until)) if of == order && self.now <= until => Ok(()),
            _ if needs_leave => Err("a swap of what serves, without leave".to_owned()),
            _ => Ok(()),
        }
    }

    /// What was journalled begins.
    pub(super) fn begin_swap(&mut self, swap: &Swap) -> Result<(), String> {
        let until = self.says.until.take();
        // A restore begins instead, where the leave was given back.
        let Some(until) = until.filter(|_| swap.failed.is_none()) else { return Ok(()) };
        if until < self.now {
            return Err("a swap begins after its leave has ended".to_owned());
        }
        let is_ordered = swap.ordered > self.journal.orders.restart;
        if self.says.heard != Duty::Take && !is_ordered {
            return Err("a swap begins in a pause that was heard".to_owned());
        }
        self.says.open = None;
        Ok(())
    }

    /// The next run of the agent.
    pub(super) fn next_run(&mut self) {
        self.journal.run += 1;
        if self.journal.swap.is_some() {
            // It stands in the journal, so it was used.
            self.says.open = None;
        }
        self.says.waste();
        // What was heard and did not reach the disk is to be heard again.
        self.says.heard = self.journal.word.as_ref().map_or(Duty::Take, |word| word.duty);
        (self.says.leave, self.says.until, self.says.count) = (None, None, 0);
    }

    /// What the coordinator goes by, once all is done.
    pub(super) fn check_told(&self) -> Result<(), String> {
        let Some(told) = &self.told else { return Ok(()) };
        if !self.machine.is_converged() || self.has_died {
            return Ok(());
        }
        let open = self.says.open.map_or(0, |(number, _)| number);
        if told.renounced < self.says.unused.max(open) {
            return Err(format!("{} is not renounced", self.says.unused.max(open)));
        }
        if told.proven && told.uses_permit {
            return Err("a permit is in use, and nothing is open".to_owned());
        }
        if told.orders != self.says.orders {
            return Err(format!("{:?} were carried out of {:?}", told.orders, self.says.orders));
        }
        Ok(())
    }
}
