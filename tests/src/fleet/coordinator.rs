//! A simulated coordinator: the real board, a view of the store that may be behind, and what desk and
//! driver do around them: decide, commit, decide again after a lost race, and answer once what was
//! committed is taken up.
//!
//! ```text
//!   request, look ──► Decide ──► Commit ──► Await: until the view has it ──► answer
//!                       ▲           │ conflict
//!                       └─ Retry ◄──┘ until the view has what was faster
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;
use towline_coordinator::board::{Board, Moment};
use towline_coordinator::hub::Polled;
use towline_coordinator::records::{Draft, Records};
use towline_coordinator::store::{Outcome, Version};
use towline_protocol::poll::{PERMIT_VALID_S, Permission, VERSION};
use towline_protocol::time::Timestamp;

use super::network::{Caller, Reply, Request, Sent};
use super::rules::Knowledge;
use super::{Due, WAIT_S, World, group};

/// When the simulation begins, in milliseconds since 1970.
const BEGINS_MS: u64 = 1_790_000_000_000;

/// How often a change that lost a race is decided again.
const RACES_MAX: u32 = 64;

/// How often the clocks of rollouts are stored.
const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// A coordinator.
#[derive(Debug, Default)]
pub(super) struct Coordinator {
    pub(super) life: u64,
    pub(super) board: Option<Board>,
    /// The process is stopped; what happens to it meanwhile waits.
    pub(super) held: Option<Vec<Due>>,
    /// The newest commit that its records have taken up.
    view: Version,
    is_following: bool,
    pub(super) jobs: BTreeMap<u64, Job>,
    parked: Vec<Parked>,
    is_driving: bool,
    clock_stored: Duration,
    /// What its clock on the wall is ahead, in milliseconds; it may step back below the beginning.
    pub(super) ahead_ms: i64,
    /// When each instance was last heard of, by its number; `None`: not in this life.
    pub(super) heard: BTreeMap<usize, Duration>,
    /// When this life began, and when the process last stood still.
    pub(super) began: Duration,
    pub(super) stood_still: Option<Duration>,
    /// It was shut down for good.
    pub(super) is_retired: bool,
}

#[derive(Debug)]
struct Parked {
    caller: Caller,
    instance: towline_protocol::ids::Instance,
    woken: Receiver<Bytes>,
}

/// Something that is to be committed, and how far that has come.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) what: What,
    stage: Stage,
    races: u32,
}

/// What a job is for.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// The driver's next step.
    Step,
    /// The rollout's clocks.
    Clock,
    /// A request.
    Request(Box<Sent>),
}

/// What is to be stored, what is answered then, and what was known.
type Decided = (Draft, Option<Reply>, Knowledge);

#[derive(Debug)]
enum Stage {
    Decide,
    Commit(Draft, Option<Reply>, Box<Knowledge>),
    Retry(Version),
    Await(Version, Option<Reply>),
}

impl World {
    fn moment(&self, at: usize) -> Moment {
        let coordinator = &self.coordinators[at];
        let milliseconds = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        let wall = (BEGINS_MS + milliseconds).saturating_add_signed(coordinator.ahead_ms);
        Moment { read: self.now.saturating_sub(coordinator.began), at: Timestamp(wall) }
    }

    /// The coordinator starts, and reads the store.
    pub(super) fn start_coordinator(&mut self, at: usize) -> Result<(), String> {
        if self.coordinators[at].board.is_some() || self.coordinators[at].is_retired {
            return Ok(());
        }
        let (entries, version) = self.store.list();
        let records = Records::load(entries, version).map_err(|error| error.to_string())?;
        self.coordinators[at].began = self.now;
        let moment = self.moment(at);
        let coordinator = &mut self.coordinators[at];
        coordinator.life += 1;
        coordinator.view = version;
        coordinator.board = Some(Board::new(records, WAIT_S, moment));
        (coordinator.is_driving, coordinator.is_following) = (false, false);
        coordinator.heard.clear();
        coordinator.stood_still = None;
        coordinator.clock_stored = self.now;
        let life = coordinator.life;
        self.tell(|_| format!("coordinator {at} starts"));
        self.later(Duration::ZERO, Due::Look { at, life });
        Ok(())
    }

    /// The process ends, and with it all that is not stored; it comes back in a while.
    pub(super) fn crash_coordinator(&mut self, at: usize) {
        let coordinator = &mut self.coordinators[at];
        if coordinator.board.take().is_none() {
            return;
        }
        coordinator.life += 1;
        coordinator.held = None;
        coordinator.jobs.clear();
        coordinator.parked.clear();
        self.tell(|_| format!("coordinator {at} crashes"));
        let wait = if self.random.one_in(4) { 100_000 } else { 8_000 };
        let wait = self.random.between(100, wait);
        self.later(Duration::from_millis(wait), Due::CoordinatorStarts(at));
    }

    /// The driver looks: because its time has come, or something has changed.
    pub(super) fn look(&mut self, at: usize, is_due: bool) -> Result<(), String> {
        let moment = self.moment(at);
        let Some(board) = &mut self.coordinators[at].board else { return Ok(()) };
        board.tick(moment);
        self.wake_polls(at);
        if is_due {
            let life = self.coordinators[at].life;
            let wait = if self.has_faults { self.random.between(900, 4_500) } else { 4_000 };
            self.later(Duration::from_millis(wait), Due::Look { at, life });
        }
        self.check_attendance(at)?;
        if !self.coordinators[at].is_driving {
            self.coordinators[at].is_driving = true;
            self.job(at, What::Step)?;
        }
        if is_due && self.now >= self.coordinators[at].clock_stored + CLOCK_EVERY {
            self.coordinators[at].clock_stored = self.now;
            self.job(at, What::Clock)?;
        }
        Ok(())
    }

    /// Takes up what has changed in the store, as far as it gets.
    pub(super) fn follow(&mut self, at: usize) -> Result<(), String> {
        let newest = self.store.version();
        let coordinator = &mut self.coordinators[at];
        let Some(board) = &mut coordinator.board else { return Ok(()) };
        coordinator.is_following = false;
        let up_to = if self.has_faults && self.random.one_in(4) {
            coordinator.view + self.random.between(0, newest - coordinator.view)
        } else {
            newest
        };
        let (_, lost) = board.apply(self.store.changes(coordinator.view, up_to));
        if let Some(lost) = lost.first() {
            return Err(lost.to_string());
        }
        coordinator.view = up_to;
        self.check_words(at)?;
        self.wake_polls(at);
        if up_to < newest {
            self.follow_soon(at);
        }
        let jobs = &self.coordinators[at].jobs;
        let is_due = |job: &Job| match &job.stage {
            Stage::Retry(version) | Stage::Await(version, _) => *version <= up_to,
            _ => false,
        };
        let due: Vec<u64> =
            jobs.iter().filter(|(_, job)| is_due(job)).map(|(number, _)| *number).collect();
        let life = self.coordinators[at].life;
        for number in due {
            if self.coordinators[at].life == life {
                self.go_on(at, number)?;
            }
        }
        if self.coordinators[at].life == life {
            self.look(at, false)?;
        }
        Ok(())
    }

    fn follow_soon(&mut self, at: usize) {
        if self.coordinators[at].is_following || self.coordinators[at].board.is_none() {
            return;
        }
        self.coordinators[at].is_following = true;
        let life = self.coordinators[at].life;
        let milliseconds = if self.has_faults {
            if self.random.one_in(20) { self.random.below(8_000) } else { self.random.below(40) }
        } else {
            2
        };
        self.later(Duration::from_millis(milliseconds), Due::Follow { at, life });
    }

    /// A request arrives.
    pub(super) fn request(&mut self, sent: Sent) -> Result<(), String> {
        let at = sent.to;
        if self.coordinators[at].board.is_none() || !self.arrives(&sent) {
            return Ok(());
        }
        let moment = self.moment(at);
        if let (Caller::Agent { host, .. }, false) =
            (sent.caller, matches!(sent.request, Request::Goodbye(_)))
        {
            let instance = self.hosts[host].name.clone();
            let coordinator = &mut self.coordinators[at];
            coordinator.heard.insert(host, self.now);
            if let Some(board) = &mut coordinator.board {
                board.hear(&group(), &instance, moment);
            }
        }
        self.tell(|_| format!("coordinator {at} gets {:?}", sent.request));
        self.job(at, What::Request(Box::new(sent)))
    }

    fn job(&mut self, at: usize, what: What) -> Result<(), String> {
        self.number += 1;
        let number = self.number;
        let job = Job { what, stage: Stage::Decide, races: 0 };
        self.coordinators[at].jobs.insert(number, job);
        self.go_on(at, number)
    }

    /// Goes on with a job, as far as it gets now.
    pub(super) fn go_on(&mut self, at: usize, number: u64) -> Result<(), String> {
        let Some(mut job) = self.coordinators[at].jobs.remove(&number) else { return Ok(()) };
        match job.stage {
            Stage::Decide | Stage::Retry(_) => {
                let Some((draft, reply, knowledge)) = self.decide(at, &job.what)? else {
                    return self.finish(at, job.what, None);
                };
                if draft.is_empty() {
                    return self.finish(at, job.what, reply);
                }
                job.stage = Stage::Commit(draft, reply, Box::new(knowledge));
                self.coordinators[at].jobs.insert(number, job);
                if !self.has_faults || self.random.one_in(2) {
                    return self.go_on(at, number);
                }
                let is_bad_moment = self.is_bad_moment(at, number);
                let most = if is_bad_moment { 20_000 } else { 60 };
                let wait = Duration::from_millis(self.random.below(most));
                let life = self.coordinators[at].life;
                self.later(wait, Due::Job { at, life, job: number });
                Ok(())
            }
            Stage::Commit(draft, reply, knowledge) => {
                if self.has_faults && self.random.one_in(500) {
                    self.crash_coordinator(at);
                    return Ok(());
                }
                let outcome = self.commit(&job.what, draft, &knowledge)?;
                if self.has_faults && self.random.one_in(500) {
                    self.crash_coordinator(at);
                    return Ok(());
                }
                job.stage = match outcome {
                    Outcome::Done(version) => Stage::Await(version, reply),
                    Outcome::Conflict => {
                        job.races += 1;
                        Stage::Retry(self.store.version())
                    }
                };
                if job.races > RACES_MAX {
                    return self.finish(at, job.what, Some(Reply::Refused));
                }
                let is_behind = self.coordinators[at].view < self.store.version();
                self.coordinators[at].jobs.insert(number, job);
                for other in 0..self.coordinators.len() {
                    self.follow_soon(other);
                }
                if is_behind { Ok(()) } else { self.go_on(at, number) }
            }
            Stage::Await(_, reply) => self.finish(at, job.what, reply),
        }
    }

    /// Lets the board decide; `None`: there is nothing to do.
    fn decide(&mut self, at: usize, what: &What) -> Result<Option<Decided>, String> {
        let moment = self.moment(at);
        let Some(board) = self.coordinators[at].board.as_mut() else { return Ok(None) };
        let refused = |_: towline_protocol::api::ErrorBody| (Draft::new(), Some(Reply::Refused));
        let sent = match what {
            What::Step => {
                let Some((decision, draft)) = board.next_step(&group(), "gate", moment) else {
                    return Self::check_waits(board, moment).map(|()| None);
                };
                let knowledge = Knowledge::of(board, moment);
                self.tell(|_| format!("coordinator {at} decides {decision:?}"));
                return Ok(Some((draft, None, knowledge)));
            }
            What::Clock => {
                let draft = board.clock_to_store(&group(), moment);
                return Ok(draft.map(|draft| (draft, None, Knowledge::default())));
            }
            What::Request(sent) => sent,
        };
        let (draft, reply) = match &sent.request {
            Request::Poll(poll) => match board.join(poll, moment) {
                Ok(draft) => (draft.unwrap_or_default(), None),
                Err(error) => refused(error),
            },
            Request::Report(message) => match board.report(message, moment) {
                Ok(draft) => {
                    let draft = draft.unwrap_or_default();
                    Self::check_newborn(board, message, &draft)?;
                    (draft, Some(Reply::Acknowledged))
                }
                Err(error) => refused(error),
            },
            Request::Goodbye(goodbye) => match board.goodbye(goodbye, moment) {
                Ok(draft) => (draft.unwrap_or_default(), Some(Reply::Acknowledged)),
                Err(error) => refused(error),
            },
            Request::Ask(question) => match board.ask(question, moment) {
                Ok(leave) => {
                    Self::check_refused(board, question, &leave)?;
                    let valid_s = if leave.permit.is_some() { PERMIT_VALID_S } else { 0 };
                    let (permit, reason) = (leave.permit, leave.reason);
                    let permission = Permission { version: VERSION, permit, valid_s, reason };
                    let knowledge = Knowledge::of(board, moment);
                    return Ok(Some((leave.draft, Some(Reply::Permission(permission)), knowledge)));
                }
                Err(error) => refused(error),
            },
            Request::Operate(operation) => {
                let key = operation.once();
                if self.store.has(&key) {
                    (Draft::new(), Some(Reply::Changed))
                } else {
                    match operation.decide(board, moment) {
                        Ok(mut draft) => {
                            draft.on::<()>(key.clone(), None);
                            draft.put(key, &operation.key);
                            (draft, Some(Reply::Changed))
                        }
                        Err(error) => refused(error),
                    }
                }
            }
        };
        Ok(Some((draft, reply, Knowledge::default())))
    }

    /// What was to be committed is, and is taken up.
    fn finish(&mut self, at: usize, what: What, reply: Option<Reply>) -> Result<(), String> {
        match what {
            What::Clock => Ok(()),
            What::Step => {
                self.coordinators[at].is_driving = false;
                self.look_again(at)
            }
            What::Request(sent) => {
                if let (Request::Goodbye(goodbye), Some(Reply::Acknowledged)) =
                    (&sent.request, &reply)
                {
                    self.check_gone(goodbye)?;
                }
                if let (Request::Poll(poll), None) = (&sent.request, &reply) {
                    let Some(board) = &mut self.coordinators[at].board else { return Ok(()) };
                    let polled = board.poll(poll).map_err(|error| error.message)?;
                    match polled {
                        Polled::Answered(bytes) => {
                            self.answer(sent.caller, Reply::Word(Some(bytes)));
                        }
                        Polled::Parked(woken) => {
                            let instance = poll.instance.clone();
                            let parked = Parked { caller: sent.caller, instance, woken };
                            self.coordinators[at].parked.push(parked);
                            let life = self.coordinators[at].life;
                            let wait = Duration::from_secs(WAIT_S.into());
                            self.later(wait, Due::PollOver { at, life, caller: sent.caller });
                        }
                    }
                    self.wake_polls(at);
                    return Ok(());
                }
                self.wake_polls(at);
                if let Some(reply) = reply {
                    self.answer(sent.caller, reply);
                }
                Ok(())
            }
        }
    }

    /// After a step the driver looks again, until there is none left to take.
    fn look_again(&mut self, at: usize) -> Result<(), String> {
        let moment = self.moment(at);
        let Some(board) = &mut self.coordinators[at].board else { return Ok(()) };
        if board.next_step(&group(), "gate", moment).is_none() {
            return Ok(());
        }
        self.coordinators[at].is_driving = true;
        self.job(at, What::Step)
    }

    /// Sends what the hub has for parked polls.
    fn wake_polls(&mut self, at: usize) {
        let mut woken = Vec::new();
        self.coordinators[at].parked.retain_mut(|parked| match parked.woken.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(bytes) => {
                woken.push((parked.caller, Some(bytes)));
                false
            }
            // Another poll of the same instance took its place.
            Err(TryRecvError::Closed) => {
                woken.push((parked.caller, None));
                false
            }
        });
        for (caller, bytes) in woken {
            self.answer(caller, Reply::Word(bytes));
        }
    }

    /// A parked poll has waited for long enough.
    pub(super) fn poll_over(&mut self, at: usize, caller: Caller) {
        let coordinator = &mut self.coordinators[at];
        let Some(index) = coordinator.parked.iter().position(|parked| parked.caller == caller)
        else {
            return;
        };
        let Parked { instance, woken, .. } = coordinator.parked.swap_remove(index);
        drop(woken);
        if let Some(board) = &mut coordinator.board {
            board.leave(&group(), &instance);
        }
        self.answer(caller, Reply::Word(None));
    }
}
