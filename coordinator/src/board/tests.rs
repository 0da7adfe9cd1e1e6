//! A board on changes that the test makes, at times that it says.

use towline_protocol::api::ReleaseRequest;
use towline_protocol::fleet::GroupRecord;
use towline_protocol::policy::{Policy, Share};
use towline_protocol::poll::{Answer, VERSION};
use towline_protocol::report::Report;

use super::*;
use crate::rollout::operations;
use crate::store::Write;

const WAIT_S: u32 = 10;

fn web() -> Group {
    "web".parse().unwrap()
}

fn name(name: &str) -> Instance {
    name.parse().unwrap()
}

struct Here {
    board: Board,
    version: u64,
    now: Moment,
    seq: u64,
}

impl Here {
    /// A group whose members have told that they are well.
    fn with(names: &[&str], policy: Policy) -> Self {
        let now = Moment { read: Duration::ZERO, at: Timestamp(1_790_000_000_000) };
        let board = Board::new(Records::default(), WAIT_S, now);
        let mut here = Self { board, version: 0, now, seq: 0 };
        let mut draft = Draft::new();
        draft.put(key::group(&web()), &GroupRecord::new(web(), policy));
        here.store(draft);
        for at in names {
            assert!(here.poll(at, None).is_some(), "it has heard nothing yet");
            here.report(at);
        }
        here
    }

    fn store(&mut self, draft: Draft) {
        self.version += 1;
        let changes: Vec<Change> = draft
            .into_commit()
            .writes
            .into_iter()
            .map(|write| match write {
                Write::Put { key, value } => {
                    Change { key, value: Some(value), version: self.version }
                }
                Write::Delete { key } => Change { key, value: None, version: self.version },
            })
            .collect();
        assert!(self.board.apply(&changes).1.is_empty());
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now.read += Duration::from_secs(1);
            self.now.at = Timestamp(self.now.at.0 + 1000);
            self.board.tick(self.now);
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Polls as one who has seen nothing, and so is answered.
    fn poll(&mut self, at: &str, unsaid: Option<u64>) -> Option<Answer> {
        match self.poll_as(at, None, unsaid) {
            Polled::Answered(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
            Polled::Parked(_) => None,
        }
    }

    fn poll_as(&mut self, at: &str, seen: Option<String>, unsaid: Option<u64>) -> Polled {
        let seq = self.next_seq();
        let poll = Poll { version: VERSION, group: web(), instance: name(at), seq, seen, unsaid };
        self.board.hear(&web(), &name(at), self.now);
        if let Some(draft) = self.board.join(&poll, self.now).unwrap() {
            self.store(draft);
        }
        self.board.poll(&poll).unwrap()
    }

    /// Parks a poll, and returns how it will be answered.
    fn park(&mut self, at: &str) -> tokio::sync::oneshot::Receiver<bytes::Bytes> {
        let seen = self.poll(at, None).unwrap().id;
        match self.poll_as(at, Some(seen), None) {
            Polled::Parked(woken) => woken,
            Polled::Answered(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
        }
    }

    fn report(&mut self, at: &str) {
        let order = self.board.records().group(&web()).unwrap().order();
        // By its wire form: what is not said is as an older agent has it.
        let report: Report = serde_json::from_value(serde_json::json!({
            "version": 1, "instance": at, "group": "web", "phase": "idle", "proven": true,
            "serving": "a".repeat(40), "evidence": "served", "health": "healthy", "order": order,
        }))
        .unwrap();
        let message = Message { seq: self.next_seq(), age_ms: 0, report, note: None, log: None };
        self.board.hear(&web(), &name(at), self.now);
        let draft = self.board.report(&message, self.now).unwrap().unwrap();
        self.store(draft);
    }

    fn presence(&self, at: &str) -> Presence {
        self.board.attendance(&web()).of(&name(at))
    }

    fn release(&mut self) {
        let request = ReleaseRequest {
            revision: "b".repeat(40).parse().unwrap(),
            only: None,
            without: vec![],
        };
        let act = self.board.act("ada", None, self.now);
        let attendance = self.board.attendance(&web());
        let state = self.board.records().group(&web()).unwrap();
        let draft = operations::release(state, &attendance, &request, &act).unwrap();
        self.store(draft);
        self.drive();
    }

    fn operate(&mut self, what: impl FnOnce(&GroupState, &Act) -> Result<Draft, ErrorBody>) {
        let act = self.board.act("ada", None, self.now);
        let draft = what(self.board.records().group(&web()).unwrap(), &act).unwrap();
        self.store(draft);
    }

    fn drive(&mut self) {
        while let Some((_, draft)) = self.board.next_step(&web(), "gate", self.now) {
            self.store(draft);
        }
    }

    /// Asks for leave; returns why not.
    fn ask(&mut self, at: &str) -> Option<String> {
        let order = self.board.records().group(&web()).unwrap().order();
        self.ask_for(at, order)
    }

    fn ask_for(&mut self, at: &str, order: towline_protocol::ids::Order) -> Option<String> {
        let seq = self.next_seq();
        let question = Question { version: VERSION, group: web(), instance: name(at), seq, order };
        let leave = self.board.ask(&question, self.now).unwrap();
        self.store(leave.draft);
        leave.reason
    }
}

fn at_once() -> Policy {
    let batches = vec![Share::Percent(100)];
    Policy { canary: 2, batches, max_unavailable: Share::Count(1), ..Policy::default() }
}

#[test]
fn nothing_is_concluded_from_what_was_told_before_the_store_took_nothing() {
    let mut here = Here::with(&["i-1", "i-2", "i-3"], at_once());
    let lease = u64::from(lease_s(WAIT_S));
    here.pass(lease + 5);
    for at in ["i-1", "i-2", "i-3"] {
        here.poll(at, None);
        assert_eq!(here.presence(at), Presence::Here);
    }
    here.release();
    let deadline = |here: &mut Here| here.board.clock(&web(), here.now).deadline_ms;
    let before = deadline(&mut here);
    here.pass(2);
    assert_eq!(deadline(&mut here), before + 2000);

    here.board.be_deaf(here.now);
    for at in ["i-1", "i-2", "i-3"] {
        assert_eq!(here.presence(at), Presence::Unheard, "it may have changed since");
    }
    here.pass(lease - 1);
    assert_eq!(deadline(&mut here), before + 2000, "it stands still for a lease");
    here.poll("i-1", None);
    let unsaid = here.next_seq();
    here.poll("i-2", Some(unsaid));
    assert_eq!(here.presence("i-1"), Presence::Here, "it has nothing to tell");
    assert_eq!(here.presence("i-2"), Presence::Untold, "it says that it has");
    here.report("i-2");
    assert_eq!(here.presence("i-2"), Presence::Here, "now it has told it");
    here.poll("i-2", Some(unsaid));
    assert_eq!(here.presence("i-2"), Presence::Here, "a poll from before that arrives later");
    here.pass(2);
    assert_eq!(here.presence("i-3"), Presence::Silent, "its lease is over");
    assert_eq!(deadline(&mut here), before + 3000);
}

#[test]
fn a_process_that_was_stopped_has_everybody_heard_out_anew() {
    let mut here = Here::with(&["i-1"], at_once());
    here.pass(100);
    here.poll("i-1", None);
    // Nobody looked at the clock meanwhile.
    here.now.read += Duration::from_secs(1200);
    here.board.tick(here.now);
    assert_eq!(here.presence("i-1"), Presence::Unheard);
    here.pass(u64::from(lease_s(WAIT_S)) - 1);
    assert_eq!(here.presence("i-1"), Presence::Unheard, "it has a whole lease");
    here.pass(2);
    assert_eq!(here.presence("i-1"), Presence::Silent);
}

#[test]
fn whoever_asks_for_a_group_that_is_not_there_is_not_remembered() {
    let mut here = Here::with(&["i-1"], at_once());
    let other: Group = "api".parse().unwrap();
    assert!(!here.board.hear(&other, &name("i-1"), here.now));
    assert!(!here.board.heard.contains_key(&other));
}

#[test]
fn a_report_or_an_order_wakes_nobody_else() {
    let mut here = Here::with(&["i-1", "i-2", "i-3"], at_once());
    let (mut one, mut two) = (here.park("i-1"), here.park("i-2"));
    here.report("i-3");
    here.report("i-2");
    assert!(one.try_recv().is_err() && two.try_recv().is_err());
    let state = here.board.records().group(&web()).unwrap();
    let kept = state.instances[&name("i-2")].clone();
    let mut record = kept.value.clone();
    record.orders.restart += 1;
    let mut draft = Draft::new();
    draft.put(key::instance(&web(), &name("i-2")), &record);
    here.store(draft);
    assert!(one.try_recv().is_err());
    let told: Answer = serde_json::from_slice(&two.try_recv().unwrap()).unwrap();
    assert_eq!(told.word.orders.restart, 1);
}

#[test]
fn only_a_no_for_want_of_room_is_to_be_asked_again() {
    let mut here = Here::with(&["i-1", "i-2", "i-3"], at_once());
    here.release();
    let mut members = here.board.records().group(&web()).unwrap().going().unwrap().batches[0]
        .members
        .iter()
        .map(|it| it.as_str().to_owned());
    let (first, second) = (members.next().unwrap(), members.next().unwrap());
    drop(members);
    for at in ["i-1", "i-2", "i-3"] {
        here.report(at);
    }
    let mut parked = here.park(&second);
    let order = here.board.records().group(&web()).unwrap().order();
    let older = towline_protocol::ids::Order { generation: order.generation - 1, ..order };
    assert!(here.ask_for(&first, older).unwrap().contains("has moved"));
    here.pass(3);
    assert!(parked.try_recv().is_err(), "nothing has changed for it");

    assert_eq!(here.ask(&first), None);
    assert!(here.ask(&second).unwrap().contains("may be unavailable"));
    here.pass(3);
    assert!(parked.try_recv().is_err(), "there is no room yet");
    // The permit is not used: its holder tells so.
    here.report(&first);
    assert!(here.board.records().group(&web()).unwrap().open.is_empty());
    assert!(parked.try_recv().is_ok(), "it may ask again");
}

#[test]
fn what_is_ordered_while_a_rollout_stands_is_asked_for_again_when_it_goes_on() {
    let mut here = Here::with(&["i-1", "i-2", "i-3"], at_once());
    here.release();
    let state = here.board.records().group(&web()).unwrap();
    let out = ["i-1", "i-2", "i-3"]
        .into_iter()
        .find(|at| !state.going().unwrap().batches[0].members.contains(&name(at)))
        .unwrap();
    here.report(out);
    here.operate(operations::pause);
    here.operate(|state, _| operations::order(state, &name(out), operations::ToInstance::Restart));
    assert!(here.ask(out).unwrap().contains("paused"));
    let mut parked = here.park(out);
    here.pass(3);
    assert!(parked.try_recv().is_err(), "it would be told no again");
    let now = here.board.clock(&web(), here.now);
    here.operate(|state, act| operations::resume(state, now, act));
    assert!(parked.try_recv().is_ok());
    assert_eq!(here.ask(out), None);
}

#[test]
fn whoever_is_alone_no_more_is_told_so() {
    let mut here = Here::with(&["i-1"], at_once());
    here.release();
    here.report("i-1");
    let mut parked = here.park("i-1");
    here.poll("i-2", Some(9));
    let told: Answer = serde_json::from_slice(&parked.try_recv().unwrap()).unwrap();
    assert_eq!(told.word.boot, None, "it is not the only one who could be the canary");
}
