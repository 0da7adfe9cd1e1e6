//! The polls that are parked: who waits, and who is woken.
//!
//! ```text
//!   poll { seen } ──► the answer differs ──► answered
//!          └────────► it does not ─────────► parked ── a change ──► answered if it differs now
//!                                              └────── wait_s ────► nothing new
//! ```
//!
//! All who are told the same get the same bytes, made once. The hub holds no lock of its own and waits for
//! nothing: the desk calls it.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use towline_protocol::api::Budget;
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Answer, VERSION, Word};

use crate::fleet::{self, Attendance};
use crate::records::GroupState;
use crate::rollout::words;

/// An answer, encoded.
#[derive(Debug, Clone)]
struct Encoded {
    word: Word,
    id: String,
    bytes: Bytes,
}

/// The parked polls of all groups.
#[derive(Debug)]
pub struct Hub {
    wait_s: u32,
    groups: BTreeMap<Group, Parking>,
    first_ask: u64,
}

#[derive(Debug)]
struct Parking {
    polls: BTreeMap<Instance, Parked>,
    /// The answers that are being given, made once.
    answers: Vec<Encoded>,
    ask: u64,
    /// Was anybody told no since the number last changed?
    has_refused: bool,
}

#[derive(Debug)]
struct Parked {
    seen: Option<String>,
    wake: oneshot::Sender<Bytes>,
}

/// What becomes of a poll.
#[derive(Debug)]
pub enum Polled {
    /// It is answered at once.
    Answered(Bytes),
    /// It is parked; the answer comes this way, or never.
    Parked(oneshot::Receiver<Bytes>),
}

/// How many different answers of a group are kept at hand; more are made again.
const ANSWERS_MAX: usize = 64;

impl Hub {
    /// Returns a hub whose polls hang for `wait_s`. `first_ask`: a number that an earlier run has not
    /// used, so that whoever was told no by it asks again.
    #[must_use]
    pub fn new(wait_s: u32, first_ask: u64) -> Self {
        Self { wait_s, groups: BTreeMap::new(), first_ask }
    }

    fn parking(&mut self, group: &Group) -> &mut Parking {
        let first = self.first_ask;
        self.groups.entry(group.clone()).or_insert_with(|| Parking {
            polls: BTreeMap::new(),
            answers: Vec::new(),
            ask: first,
            has_refused: false,
        })
    }

    /// Takes up a poll. One of the same instance that is parked is let go: its connection is gone.
    pub fn poll(
        &mut self,
        state: &GroupState,
        instance: &Instance,
        seen: Option<String>,
    ) -> Polled {
        let wait_s = self.wait_s;
        let parking = self.parking(&state.group);
        let answer = parking.answer(state, instance, wait_s);
        if seen.as_ref() != Some(&answer.id) {
            return Polled::Answered(answer.bytes);
        }
        let (wake, woken) = oneshot::channel();
        parking.polls.insert(instance.clone(), Parked { seen, wake });
        Polled::Parked(woken)
    }

    /// Notes that somebody was told no, and is to ask again once there is room.
    pub fn refused(&mut self, group: &Group) {
        self.parking(group).has_refused = true;
    }

    /// Was somebody told no, and not yet to ask again?
    #[must_use]
    pub fn has_refused(&self, group: &Group) -> bool {
        self.groups.get(group).is_some_and(|parking| parking.has_refused)
    }

    /// Something of one instance alone has changed: answers its poll, where its answer has.
    pub fn look_at(&mut self, state: &GroupState, instance: &Instance) {
        let wait_s = self.wait_s;
        let parking = self.parking(&state.group);
        if !parking.polls.contains_key(instance) {
            return;
        }
        let answer = parking.answer(state, instance, wait_s);
        if let Some(parked) = parking.polls.remove(instance) {
            if parked.seen.as_ref() == Some(&answer.id) {
                parking.polls.insert(instance.clone(), parked);
            } else {
                // Whoever has hung up asks again.
                parked.wake.send(answer.bytes).ok();
            }
        }
    }

    /// Forgets those who have hung up.
    pub fn sweep(&mut self, group: &Group) {
        if let Some(parking) = self.groups.get_mut(group) {
            parking.polls.retain(|_, parked| !parked.wake.is_closed());
        }
    }

    /// Answers those of a group's polls whose answer has changed. Returns how many.
    pub fn refresh(&mut self, state: &GroupState, attendance: &Attendance) -> usize {
        let wait_s = self.wait_s;
        let parking = self.parking(&state.group);
        // While a rollout stands, nobody gets leave.
        if !state.stands() {
            parking.make_room(fleet::budget(state, attendance));
        }
        // Answers of before are made again where they still hold.
        parking.answers.clear();
        let mut woken = Vec::new();
        let instances: Vec<Instance> = parking.polls.keys().cloned().collect();
        for instance in instances {
            let answer = parking.answer(state, &instance, wait_s);
            let Some(parked) = parking.polls.get(&instance) else { continue };
            // Whoever has hung up is not there any more.
            if parked.wake.is_closed() || parked.seen.as_ref() != Some(&answer.id) {
                woken.push((instance, answer.bytes));
            }
        }
        let count = woken.len();
        for (instance, bytes) in woken {
            if let Some(parked) = parking.polls.remove(&instance) {
                // Whoever has hung up asks again.
                parked.wake.send(bytes).ok();
            }
        }
        count
    }

    /// Lets go of a poll that has waited for long enough.
    pub fn leave(&mut self, group: &Group, instance: &Instance) {
        if let Some(parking) = self.groups.get_mut(group)
            && parking.polls.get(instance).is_some_and(|parked| parked.wake.is_closed())
        {
            parking.polls.remove(instance);
        }
    }

    /// Lets go of all polls, and of whatever is known of groups: the coordinator stops.
    pub fn close(&mut self) {
        self.groups.clear();
    }

    /// Returns how many polls are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.groups.values().map(|parking| parking.polls.len()).sum()
    }
}

impl Parking {
    /// Whoever was told no is to ask again when there is room.
    fn make_room(&mut self, budget: Budget) {
        if self.has_refused && budget.used < budget.max {
            self.ask += 1;
            self.has_refused = false;
        }
    }

    fn answer(&mut self, state: &GroupState, instance: &Instance, wait_s: u32) -> Encoded {
        let word = words::word(state, instance, self.ask);
        if let Some(made) = self.answers.iter().find(|made| made.word == word) {
            return made.clone();
        }
        let made = encode(word, wait_s);
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push(made.clone());
        }
        made
    }
}

/// The answer's name is made from what it says: after a restart the same word has the same name.
fn encode(word: Word, wait_s: u32) -> Encoded {
    let said = serde_json::to_vec(&word).expect("words hold nothing that JSON cannot");
    let digest = Sha256::digest(&said);
    let id = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let answer = Answer { version: VERSION, id: id.clone(), wait_s, word: word.clone() };
    let bytes = serde_json::to_vec(&answer).expect("answers hold nothing that JSON cannot");
    Encoded { word, id, bytes: Bytes::from(bytes) }
}
