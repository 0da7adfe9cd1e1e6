//! The desk: where everything that the coordinator knows is read, and everything is changed.
//!
//! ```text
//!   http ──► change, report, ask, poll ──► board: decide ──► commit ──► store
//!   driver ─────────┘        ▲                                            │ watch
//!                            └──────────────── board: apply ◄─────────────┘
//! ```
//!
//! Invariants
//! - Whatever is answered with success is durable, and stands in the records that the next reader sees.
//! - Decisions are made under the lock, on records that are whole; nothing waits while it is held.
//! - Records change in one place: the watch of the store. A commit that lost a race is decided again.
//! - They follow the store until it closes, also while the coordinator stops: whoever has committed waits
//!   for the records. Polls are let go as soon as it stops.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use towline_protocol::api::{Code, ErrorBody};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{
    Goodbye, Message, PERMIT_VALID_S, Permission, Poll, Question, VERSION,
};
use towline_protocol::time::Timestamp;
use tracing::{error, warn};

use crate::auth::held::Held;
use crate::board::{Board, Moment};
use crate::error::chain;
use crate::failpoint;
use crate::fleet::Attendance;
use crate::hub::Polled;
use crate::records::{Draft, Kept, RecordError, Records, key};
use crate::rollout;
use crate::rollout::operations::Act;
use crate::store::embedded::Embedded;
use crate::store::{Outcome, Store, StoreError, Version, Watch};

/// How often a change that lost a race is decided again before its caller is told to try later.
const RACES_MAX: usize = 64;

/// The desk; a handle that is cheap to clone.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

struct Inner {
    store: Embedded,
    wait: Duration,
    started: Instant,
    state: Mutex<State>,
    /// The newest commit that the records have taken up.
    taken_up: watch::Sender<Version>,
    /// Something changed: the driver has to look.
    changed: Notify,
    stop: CancellationToken,
    /// Has the store ended before it was to?
    is_lost: AtomicBool,
}

struct State {
    board: Board,
    held: Held,
    /// Could the store not be read when it was looked at last?
    is_blind: bool,
    watchers: BTreeMap<Group, watch::Sender<u64>>,
    figures: Figures,
}

/// What is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Commits.
    pub commits: u64,
    /// Commits that lost a race.
    pub conflicts: u64,
    /// Polls that are parked.
    pub parked: usize,
}

/// Why the desk could not open.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The store said no.
    #[error("could not read the store")]
    Store(#[from] StoreError),
    /// It holds a record that cannot be read.
    #[error("the store holds a record that this coordinator cannot read")]
    Record(#[from] RecordError),
}

impl Desk {
    /// Opens the desk on a store, and begins to follow it until that is closed. `wait_s`: how long polls
    /// hang; none does after `stop`, which is said here too where the store ends by itself.
    ///
    /// # Errors
    ///
    /// See [`DeskError`].
    pub async fn open(
        store: Embedded,
        wait_s: u32,
        stop: CancellationToken,
    ) -> Result<Self, DeskError> {
        let (records, held) = read_all(&store).await?;
        let version = records.version();
        let (taken_up, _) = watch::channel(version);
        let started = instant();
        let now = Moment { read: Duration::ZERO, at: now() };
        let state = State {
            board: Board::new(records, wait_s, now),
            held,
            is_blind: false,
            watchers: BTreeMap::new(),
            figures: Figures::default(),
        };
        let desk = Self {
            inner: Arc::new(Inner {
                store,
                wait: Duration::from_secs(wait_s.into()),
                started,
                state: Mutex::new(state),
                taken_up,
                changed: Notify::new(),
                stop,
                is_lost: AtomicBool::new(false),
            }),
        };
        tokio::spawn(desk.clone().follow_to_the_end(version));
        Ok(desk)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held was a reader's: what it guards is whole.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment(&self) -> Moment {
        Moment { read: self.inner.started.elapsed(), at: now() }
    }

    /// Follows the store for as long as there is one. Without it nobody could be told anything true: then
    /// everything stops, for a supervisor to start it anew.
    async fn follow_to_the_end(self, from: Version) {
        let followed = AssertUnwindSafe(self.follow(from)).catch_unwind().await;
        // Nothing is taken up any more: nobody is to wait for it.
        self.inner.taken_up.send_replace(Version::MAX);
        let mut state = self.state();
        state.board.close();
        state.watchers.clear();
        drop(state);
        if followed.is_err() || !self.inner.stop.is_cancelled() {
            error!("the store ended by itself: the coordinator stops");
            self.inner.is_lost.store(true, Ordering::Relaxed);
            self.inner.stop.cancel();
        }
    }

    /// Returns whether the store has ended before it was to.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.is_lost.load(Ordering::Relaxed)
    }

    /// Takes up whatever changes in the store, until it closes.
    async fn follow(&self, from: Version) {
        let mut version = from;
        loop {
            match self.follow_from(&mut version).await {
                Ok(()) => {}
                Err(DeskError::Store(StoreError::Closed)) => return,
                Err(error) => {
                    self.state().is_blind = true;
                    error!(error = chain(&error), "could not follow the store");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn follow_from(&self, version: &mut Version) -> Result<(), DeskError> {
        let mut watched = self.inner.store.watch("", *version);
        loop {
            let changes = match watched.next().await {
                Err(StoreError::Compacted { .. }) => return self.reload(version).await,
                changes => changes?,
            };
            let Some(newest) = changes.iter().map(|change| change.version).max() else { continue };
            let mut state = self.state();
            let (touched, lost) = state.board.apply(&changes);
            changes.iter().for_each(|change| state.held.apply(change));
            state.is_blind = false;
            for group in &touched {
                state.tell(group);
            }
            drop(state);
            for error in lost {
                error!(error = chain(&error), "a record is left as it was");
            }
            *version = newest;
            self.inner.taken_up.send_replace(newest);
            self.inner.changed.notify_one();
        }
    }

    /// What is kept of changes does not reach back far enough: everything is read anew.
    async fn reload(&self, version: &mut Version) -> Result<(), DeskError> {
        let (records, held) = read_all(&self.inner.store).await?;
        let newest = records.version();
        let mut state = self.state();
        state.board.reload(records);
        state.held = held;
        state.is_blind = false;
        let groups: Vec<Group> = state.watchers.keys().cloned().collect();
        for group in &groups {
            state.tell(group);
        }
        drop(state);
        *version = newest;
        self.inner.taken_up.send_replace(newest);
        self.inner.changed.notify_one();
        Ok(())
    }

    /// Reads the records as they are.
    pub fn read<T>(&self, look: impl FnOnce(&Records) -> T) -> T {
        look(self.state().board.records())
    }

    /// Reads what the store has of tokens, as it stands in the records.
    pub(crate) fn held<T>(&self, look: impl FnOnce(&Held) -> T) -> T {
        look(&self.state().held)
    }

    /// Returns whether the store cannot be read at present: what was changed in it, nobody knows.
    pub(crate) fn is_blind(&self) -> bool {
        self.state().is_blind
    }

    /// Returns who of a group is there.
    #[must_use]
    pub fn attendance(&self, group: &Group) -> Attendance {
        self.state().board.attendance(group)
    }

    /// Returns the time of day.
    #[must_use]
    #[allow(clippy::unused_self, reason = "time is asked for where everything else is")]
    pub fn now(&self) -> Timestamp {
        now()
    }

    /// Returns for how long an instance was not heard of; `None`: not since this coordinator started.
    #[must_use]
    pub fn unheard_for(&self, group: &Group, instance: &Instance) -> Option<Duration> {
        self.state().board.unheard_for(group, instance)
    }

    /// Returns the time as a group's rollout has it.
    #[must_use]
    pub fn clock(&self, group: &Group) -> rollout::Now {
        let now = self.moment();
        self.state().board.clock(group, now)
    }

    /// Returns what is counted.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let state = self.state();
        Figures { parked: state.board.parked(), ..state.figures }
    }

    /// Decides on the records as they are, and commits; decides again where somebody was faster. Returns
    /// when it is durable and taken up.
    ///
    /// # Errors
    ///
    /// What `decide` refuses; or that the store could not be written, or too many were faster.
    pub async fn change<T>(
        &self,
        group: &Group,
        by: &str,
        reason: Option<String>,
        mut decide: impl FnMut(
            &Records,
            &Attendance,
            rollout::Now,
            &Act,
        ) -> Result<(Draft, T), ErrorBody>,
    ) -> Result<T, ErrorBody> {
        failpoint::reach("before-change");
        let answer = self
            .settle(|board, now| {
                let clock = board.clock(group, now);
                let attendance = board.attendance(group);
                let act = board.act(by, reason.clone(), now);
                decide(board.records(), &attendance, clock, &act)
            })
            .await?;
        failpoint::reach("after-change");
        Ok(answer)
    }

    /// Lets the board decide until its draft wins its race.
    async fn settle<T>(
        &self,
        mut decide: impl FnMut(&mut Board, Moment) -> Result<(Draft, T), ErrorBody>,
    ) -> Result<T, ErrorBody> {
        for _ in 0..RACES_MAX {
            let now = self.moment();
            let (draft, answer) = decide(&mut self.state().board, now)?;
            if self.save(draft).await? {
                return Ok(answer);
            }
        }
        Err(unavailable("the records change too fast"))
    }

    /// Commits a draft; waits until it is taken up. Returns whether it won its race.
    ///
    /// # Errors
    ///
    /// Where the store cannot be written.
    pub async fn save(&self, draft: Draft) -> Result<bool, ErrorBody> {
        if draft.is_empty() {
            return Ok(true);
        }
        failpoint::reach("before-commit");
        let outcome = match self.inner.store.commit(draft.into_commit()).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // What is refused for what it is says nothing of the others.
                if error.is_temporary() {
                    let now = self.moment();
                    self.state().board.be_deaf(now);
                }
                return Err(refusal(error));
            }
        };
        failpoint::reach("after-commit");
        match outcome {
            Outcome::Done(version) => {
                self.state().figures.commits += 1;
                self.taken_up(version).await;
                Ok(true)
            }
            Outcome::Conflict => {
                self.state().figures.conflicts += 1;
                // What was faster is in the store, and may still be on its way here.
                if let Ok((_, newest)) = self.inner.store.list("epoch").await {
                    self.taken_up(newest).await;
                }
                Ok(false)
            }
        }
    }

    async fn taken_up(&self, version: Version) {
        let mut taken_up = self.inner.taken_up.subscribe();
        // Its sender is here; so it comes to this version, or to the last one of all.
        taken_up.wait_for(|taken_up| *taken_up >= version).await.ok();
    }

    /// Reads a record that is not kept at hand.
    ///
    /// # Errors
    ///
    /// Where the store cannot be read, or the record.
    pub async fn load<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ErrorBody> {
        Ok(self.kept(key).await?.map(|kept| kept.value))
    }

    /// Likewise, with the commit that wrote it: for whoever changes it.
    ///
    /// # Errors
    ///
    /// As for [`Desk::load`].
    pub async fn kept<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Kept<T>>, ErrorBody> {
        let Some(entry) = self.inner.store.get(key).await.map_err(refusal)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&entry.value) {
            Ok(value) => Ok(Some(Kept { version: entry.version, value })),
            Err(error) => {
                error!(key, error = chain(&error), "a record could not be read");
                Err(unavailable("a record could not be read"))
            }
        }
    }

    /// Returns the store, for what is neither read nor changed by decisions: listing, backup.
    #[must_use]
    pub fn store(&self) -> &Embedded {
        &self.inner.store
    }

    /// Answers a poll: at once where its answer differs from what was seen, else as soon as it does.
    /// `None`: nothing new within `wait_s`.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or a store that cannot be written.
    pub async fn poll(&self, poll: Poll) -> Result<Option<Bytes>, ErrorBody> {
        let (group, instance) = (&poll.group, &poll.instance);
        self.hear(group, instance);
        self.settle(|board, now| Ok((board.join(&poll, now)?.unwrap_or_default(), ()))).await?;
        let polled = self.state().board.poll(&poll)?;
        let answer = match polled {
            Polled::Answered(bytes) => Some(bytes),
            Polled::Parked(woken) => self.parked(group, instance, woken).await,
        };
        if answer.is_some() {
            failpoint::reach("before-answer");
        }
        Ok(answer)
    }

    /// Waits for the answer of a poll that is parked.
    async fn parked(
        &self,
        group: &Group,
        instance: &Instance,
        woken: oneshot::Receiver<Bytes>,
    ) -> Option<Bytes> {
        let woken = tokio::select! {
            woken = tokio::time::timeout(self.inner.wait, woken) => woken,
            () = self.inner.stop.cancelled() => return None,
        };
        match woken {
            Ok(Ok(bytes)) => Some(bytes),
            // Another poll of this instance took its place.
            Ok(Err(_)) => None,
            Err(_) => {
                self.state().board.leave(group, instance);
                None
            }
        }
    }

    /// Takes up a report; returns when it is durable.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or a store that cannot be written.
    pub async fn report(&self, message: Message) -> Result<(), ErrorBody> {
        self.hear(&message.report.group, &message.report.instance);
        failpoint::reach("before-report");
        self.settle(|board, now| Ok((board.report(&message, now)?.unwrap_or_default(), ())))
            .await?;
        failpoint::reach("after-report");
        Ok(())
    }

    /// Answers a question for leave to swap; a yes is stored before it is given.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or a store that cannot be written.
    pub async fn ask(&self, question: Question) -> Result<Permission, ErrorBody> {
        self.hear(&question.group, &question.instance);
        failpoint::reach("before-permit");
        let (permit, reason) = self
            .settle(|board, now| {
                let leave = board.ask(&question, now)?;
                Ok((leave.draft, (leave.permit, leave.reason)))
            })
            .await?;
        failpoint::reach("after-permit");
        let valid_s = if permit.is_some() { PERMIT_VALID_S } else { 0 };
        Ok(Permission { version: VERSION, permit, valid_s, reason })
    }

    /// An instance leaves.
    ///
    /// # Errors
    ///
    /// A group that does not exist, or a store that cannot be written.
    pub async fn goodbye(&self, goodbye: Goodbye) -> Result<(), ErrorBody> {
        failpoint::reach("before-goodbye");
        self.settle(|board, now| Ok((board.goodbye(&goodbye, now)?.unwrap_or_default(), ()))).await
    }

    /// Notes a sign of life.
    fn hear(&self, group: &Group, instance: &Instance) {
        let now = self.moment();
        if self.state().board.hear(group, instance, now) {
            self.inner.changed.notify_one();
        }
    }

    /// Returns a number that changes whenever something of a group does; it ends with the store.
    #[must_use]
    pub fn watch(&self, group: &Group) -> watch::Receiver<u64> {
        self.state().watcher(group).subscribe()
    }

    /// Waits until something changed, for the driver.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// Lets the board do something at this moment, for the driver.
    pub(crate) fn with_board<T>(&self, act: impl FnOnce(&mut Board, Moment) -> T) -> T {
        let now = self.moment();
        act(&mut self.state().board, now)
    }
}

impl State {
    fn tell(&mut self, group: &Group) {
        self.watcher(group).send_modify(|number| *number += 1);
    }

    fn watcher(&mut self, group: &Group) -> &watch::Sender<u64> {
        self.watchers.entry(group.clone()).or_insert_with(|| watch::channel(0).0)
    }
}

/// Reads all records, as of the version that they then have: what was written while they were read is told
/// by the watch from there, and taken up once.
async fn read_all(store: &Embedded) -> Result<(Records, Held), DeskError> {
    let (mut all, mut version) = (Vec::new(), None);
    // Tokens first: what is told of them by the watch is then newer than what was read.
    for kind in Held::KEPT.into_iter().chain(key::KEPT) {
        let (entries, at) = store.list(kind).await?;
        all.extend(entries);
        version.get_or_insert(at);
    }
    let held = Held::load(&all);
    Ok((Records::load(all, version.unwrap_or_default())?, held))
}

pub(crate) fn refusal(error: StoreError) -> ErrorBody {
    error!(error = chain(&error), "the store could not be used");
    let hint = error.hint();
    let message = format!("the coordinator could not use its store: {error}");
    ErrorBody { code: Code::Unavailable, message, hint, field: None }
}

fn unavailable(what: &str) -> ErrorBody {
    warn!(what, "a request could not be carried out");
    ErrorBody {
        code: Code::Unavailable,
        message: format!("the coordinator could not carry it out: {what}"),
        hint: Some("try again in a moment".to_owned()),
        field: None,
    }
}

#[expect(clippy::disallowed_methods, reason = "the desk is a shell: it notes when things happen")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[expect(clippy::disallowed_methods, reason = "the desk is a shell: its uptime is measured")]
fn instant() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver;
    use crate::rollout::operations;
    use towline_protocol::api::ReleaseRequest;
    use towline_protocol::fleet::GroupRecord;
    use towline_protocol::policy::Policy;
    use towline_protocol::poll::{Answer, Duty};

    /// How long a test waits for what happens at once.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn web() -> Group {
        "web".parse().unwrap()
    }

    async fn open(dir: &std::path::Path, stop: &CancellationToken) -> Desk {
        let store = Embedded::open(&dir.join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 1, stop.clone()).await.unwrap();
        tokio::spawn(driver::drive(desk.clone(), stop.clone()));
        desk
    }

    async fn make_group(desk: &Desk) {
        desk.change(&web(), "ada", None, |_, _, _, _| {
            let mut draft = Draft::new();
            draft.put(key::group(&web()), &GroupRecord::new(web(), Policy::default()));
            Ok((draft, ()))
        })
        .await
        .unwrap();
    }

    async fn release(desk: &Desk, digit: char) -> Result<(), ErrorBody> {
        let revision = digit.to_string().repeat(40).parse().unwrap();
        let request = ReleaseRequest { revision, only: None, without: Vec::new() };
        desk.change(&web(), "ada", None, |records, attendance, _, act| {
            let state = records.group(&web()).unwrap();
            Ok((operations::release(state, attendance, &request, act)?, ()))
        })
        .await
    }

    fn poll(seen: Option<&str>) -> Poll {
        let instance = "i-1".parse().unwrap();
        Poll {
            version: 1,
            group: web(),
            instance,
            seq: 1,
            seen: seen.map(str::to_owned),
            unsaid: None,
        }
    }

    fn read(bytes: Option<Bytes>) -> Answer {
        serde_json::from_slice(&bytes.expect("it is answered")).unwrap()
    }

    #[tokio::test]
    async fn a_poll_is_answered_when_its_answer_changes_and_not_before() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let desk = open(dir.path(), &stop).await;
        let unknown = desk.poll(poll(None)).await.unwrap_err();
        assert_eq!(unknown.code, Code::NotFound);
        make_group(&desk).await;
        let first = read(desk.poll(poll(None)).await.unwrap());
        assert_eq!((first.word.target, first.wait_s), (None, 1));
        assert!(desk.read(|records| records.group(&web()).unwrap().members().count()) == 1);
        assert_eq!(desk.poll(poll(Some(&first.id))).await.unwrap(), None, "nothing new");

        let parked = tokio::spawn({
            let (desk, poll) = (desk.clone(), poll(Some(&first.id)));
            async move { desk.poll(poll).await }
        });
        while desk.figures().parked == 0 {
            tokio::task::yield_now().await;
        }
        release(&desk, 'a').await.unwrap();
        let mut answer = read(parked.await.unwrap().unwrap());
        // It may be told of the target first, and then of its batch.
        while answer.word.duty != Duty::Take {
            answer = read(desk.poll(poll(Some(&answer.id))).await.unwrap());
        }
        assert_eq!(answer.word.target.unwrap().order.generation, 1);
        assert_eq!(release(&desk, 'b').await.unwrap_err().code, Code::Conflict);
        stop.cancel();
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart_and_the_same_word_has_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let desk = open(dir.path(), &stop).await;
        make_group(&desk).await;
        let first = read(desk.poll(poll(None)).await.unwrap());
        release(&desk, 'a').await.unwrap();
        let before = desk.read(|records| records.group(&web()).unwrap().order());
        stop.cancel();
        desk.store().close().await;
        drop(desk);

        let stop = CancellationToken::new();
        let desk = open(dir.path(), &stop).await;
        assert_eq!(desk.read(|records| records.group(&web()).unwrap().order()), before);
        let order = before;
        assert_eq!((order.epoch, order.generation), (1_790_000_000, 1));
        let answer = read(desk.poll(poll(Some(&first.id))).await.unwrap());
        assert_ne!(answer.id, first.id);
        stop.cancel();
    }

    #[tokio::test]
    async fn what_is_committed_while_it_stops_is_taken_up_and_no_poll_hangs() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let store = Embedded::open(&dir.path().join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 600, stop.clone()).await.unwrap();
        make_group(&desk).await;
        let first = read(desk.poll(poll(None)).await.unwrap());
        let parked = tokio::spawn({
            let (desk, poll) = (desk.clone(), poll(Some(&first.id)));
            async move { desk.poll(poll).await }
        });
        while desk.figures().parked == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        assert_eq!(parked.await.unwrap().unwrap(), None, "it is let go");
        // As a driver does that was about to store a step.
        tokio::time::timeout(PATIENCE, release(&desk, 'a')).await.expect("it ends").unwrap();
        assert_eq!(desk.read(|records| records.group(&web()).unwrap().order().generation), 1);
        assert_eq!(desk.poll(poll(Some(&first.id))).await.unwrap().map(|_| ()), Some(()));

        // Closed at last, it keeps nobody waiting either.
        desk.store().close().await;
        let refused = tokio::time::timeout(PATIENCE, release(&desk, 'b')).await.expect("it ends");
        assert!(refused.is_err());
        assert!(!desk.is_lost(), "it was to close");
    }

    #[tokio::test]
    async fn a_store_that_ends_by_itself_stops_everything() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let desk = open(dir.path(), &stop).await;
        make_group(&desk).await;
        // As where its writer has died: nobody has said that it is time to stop.
        desk.store().close().await;
        tokio::time::timeout(PATIENCE, stop.cancelled()).await.expect("it stops");
        assert!(desk.is_lost());
        assert!(release(&desk, 'a').await.is_err(), "and nobody waits in vain");
    }

    #[tokio::test]
    async fn all_records_are_read_at_the_start_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store"), 1_790_000_000).unwrap();
        let golden = include_str!("../../protocol/golden/records-1.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let rollout = include_str!("../../protocol/golden/rollout-1.json");
        let rollout: serde_json::Value = serde_json::from_str(rollout).unwrap();
        let instance = "i-0a17".parse().unwrap();
        let mut draft = Draft::new();
        draft.put(key::group(&web()), &golden["group"]);
        draft.put(key::target(&web()), &golden["target"]);
        draft.put(key::rollout(&web()), &rollout);
        let clock = serde_json::json!({"generation": 1, "bake_ms": 1, "deadline_ms": 1});
        draft.put(key::clock(&web()), &clock);
        draft.put(key::floor(&web()), &serde_json::json!({"epoch": 1, "generation": 1}));
        draft.put(key::permits(&web()), &golden["permits"]);
        draft.put(key::permit(&web(), &instance), &golden["permit"]);
        draft.put(key::instance(&web(), &instance), &golden["instance"]);
        for other in ["past/web/1", "log/web/i-0a17", "once/open/a", "token/a", "agent/web/i"] {
            draft.put(other.to_owned(), &1);
        }
        store.commit(draft.into_commit()).await.unwrap();
        let (entries, version) = store.list("").await.unwrap();
        let whole = Records::load(entries, version).unwrap();
        let (read, held) = read_all(&store).await.unwrap();
        assert!(held.get("token/a").is_some());
        assert_eq!((read.epoch(), read.version()), (1_790_000_000, version));
        assert_eq!(read.group(&web()), whole.group(&web()));
        assert!(held.get("past/web/1").is_none());
        let state = read.group(&web()).unwrap();
        assert!(state.target.is_some() && state.rollout.is_some() && state.clock.is_some());
        assert!(state.floor.is_some() && state.permits.is_some() && !state.open.is_empty());
        assert!(!state.instances.is_empty());
    }

    #[tokio::test]
    async fn many_at_once_lose_races_and_nothing_else() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let desk = open(dir.path(), &stop).await;
        make_group(&desk).await;
        let all = (0..20).map(|number| {
            let desk = desk.clone();
            tokio::spawn(async move {
                let revision = format!("{number:040x}").parse().unwrap();
                desk.change(&web(), "ada", None, |records, _, _, _| {
                    let kept = records.group(&web()).unwrap().record.as_ref();
                    let mut group = kept.unwrap().value.clone();
                    group.prove(&revision);
                    let mut draft = Draft::new();
                    draft.on(key::group(&web()), kept);
                    draft.put(key::group(&web()), &group);
                    Ok((draft, ()))
                })
                .await
            })
        });
        for task in all.collect::<Vec<_>>() {
            task.await.unwrap().unwrap();
        }
        let proven = |records: &Records| {
            records.group(&web()).unwrap().record.as_ref().unwrap().value.proven.len()
        };
        assert_eq!(desk.read(proven), 20);
        stop.cancel();
    }
}
