//! The one thread that writes: all commits that wait are made durable together.
//!
//! ```text
//!   commit ─┐                  ┌─ BEGIN                      ┌─► answer
//!   commit ─┼─► queue ─► batch ┤   compare, write, compare … ├─► answer
//!   commit ─┘                  └─ COMMIT: one fsync ─────────┴─► answer, wake watchers
//! ```
//!
//! Invariants
//! - Nothing is answered, and nobody who watches is told, before it is on the disk.
//! - A commit that fails takes no other with it: its batch is rolled back, and each is tried alone.
//! - Commits see each other in the order of the queue.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rusqlite::{Connection, OptionalExtension, Statement, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

use super::file::{Lock, Opened, from_version, io, sql, to_version};
use super::history::History;
use crate::store::{Commit, Outcome, StoreError, Version, Write};

/// How many commits may wait. Who comes then waits for a place.
const QUEUE_MAX: usize = 1024;

/// How many commits, and roughly how many bytes, are made durable together at most: those that come later
/// wait for all of them.
const BATCH_COMMITS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 8 << 20;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Message {
    /// Carry this out.
    Commit(Waiting),
    /// End, once all that came before is answered; the queue is closed when it is done.
    Close,
}

/// A commit, and who waits for its outcome.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) commit: Commit,
    pub(super) answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// What others have of the writer.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) published: watch::Receiver<Version>,
    pub(super) transactions: Arc<AtomicU64>,
}

/// Starts the writer. It ends when it is told to, or when nobody can tell it anything any more.
pub(super) fn start(opened: Opened) -> Result<Handle, StoreError> {
    let (sender, messages) = mpsc::channel(QUEUE_MAX);
    let (publish, published) = watch::channel(opened.version);
    let transactions = Arc::new(AtomicU64::new(0));
    let place = opened.path.clone();
    let writer = Writer {
        connection: opened.connection,
        path: opened.path,
        version: opened.version,
        history: opened.history,
        publish,
        transactions: transactions.clone(),
        _lock: opened.lock,
    };
    thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run(messages))
        .map_err(io("start the writer of", &place))?;
    Ok(Handle { messages: sender, published, transactions })
}

struct Writer {
    connection: Connection,
    path: PathBuf,
    version: Version,
    history: History,
    publish: watch::Sender<Version>,
    transactions: Arc<AtomicU64>,
    // After the connection: whoever is let in next finds it closed.
    _lock: Arc<Lock>,
}

impl Writer {
    fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut is_open = true;
        while is_open && let Some(first) = messages.blocking_recv() {
            let batch;
            (batch, is_open) = gather(first, &mut messages);
            if !batch.is_empty() {
                self.perform(batch);
            }
        }
        // In this order: whoever sees the queue closed finds the file closed.
        drop(self);
        drop(messages);
    }

    /// Makes a batch durable, and answers all of it.
    fn perform(&mut self, batch: Vec<Waiting>) {
        match self.transact(&batch) {
            Ok(outcomes) => {
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    waiting.answer(Ok(outcome));
                }
            }
            Err(error) if batch.len() == 1 => {
                let error = sql("write to", &self.path)(error);
                batch.into_iter().for_each(|waiting| waiting.answer(Err(error.clone())));
            }
            // Perhaps only one of them is too large for the disk.
            Err(_) => batch.into_iter().for_each(|waiting| self.perform(vec![waiting])),
        }
    }

    fn transact(&mut self, batch: &[Waiting]) -> rusqlite::Result<Vec<Outcome>> {
        // Dropped before its end, it is rolled back.
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let (outcomes, events) = work(&transaction, self.version, batch)?;
        if events.is_empty() {
            return Ok(outcomes);
        }
        // What was too much before this transaction, so that its own changes stay.
        let surplus = self.history.surplus();
        if let Some(surplus) = surplus {
            let drop = "DELETE FROM events WHERE id <= ?1";
            transaction.execute(drop, (from_version(surplus),))?;
        }
        transaction.commit()?;

        self.transactions.fetch_add(1, Ordering::Relaxed);
        if let Some(surplus) = surplus {
            self.history.drop_to(surplus);
        }
        for Event { version, bytes } in events {
            self.version = version;
            self.history.add(version, bytes);
        }
        self.publish.send_replace(self.version);
        Ok(outcomes)
    }
}

/// Takes what waits, up to a limit; and tells whether there may be more, or it is time to close.
fn gather(first: Message, messages: &mut mpsc::Receiver<Message>) -> (Vec<Waiting>, bool) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Close => return (batch, false),
            Message::Commit(waiting) => {
                bytes += size(&waiting.commit);
                batch.push(waiting);
            }
        }
        let is_full = batch.len() >= BATCH_COMMITS_MAX || bytes >= BATCH_BYTES_MAX;
        next = if is_full { None } else { messages.try_recv().ok() };
    }
    (batch, true)
}

fn size(commit: &Commit) -> usize {
    let values = commit.writes.iter().map(|write| match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } => 0,
    });
    values.sum()
}

impl Waiting {
    fn answer(self, outcome: Result<Outcome, StoreError>) {
        // Who asked may have gone; what was done stays done.
        drop(self.answer.send(outcome));
    }
}

/// A change, as far as the history cares.
struct Event {
    /// The commit's.
    version: Version,
    bytes: usize,
}

/// Performs a batch within a transaction.
fn work(
    connection: &Connection,
    version: Version,
    batch: &[Waiting],
) -> rusqlite::Result<(Vec<Outcome>, Vec<Event>)> {
    let mut work = Work::new(connection, version)?;
    let outcomes = batch.iter().map(|waiting| work.perform(&waiting.commit));
    let outcomes = outcomes.collect::<rusqlite::Result<_>>()?;
    Ok((outcomes, work.events))
}

struct Work<'a> {
    find: Statement<'a>,
    put: Statement<'a>,
    delete: Statement<'a>,
    tell: Statement<'a>,
    /// The id of the last event so far.
    version: Version,
    events: Vec<Event>,
}

impl<'a> Work<'a> {
    fn new(connection: &'a Connection, version: Version) -> rusqlite::Result<Self> {
        Ok(Self {
            find: connection.prepare("SELECT version FROM entries WHERE key = ?1")?,
            put: connection.prepare(
                "INSERT INTO entries (key, value, version) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version",
            )?,
            delete: connection.prepare("DELETE FROM entries WHERE key = ?1")?,
            tell: connection
                .prepare("INSERT INTO events (id, version, key, value) VALUES (?1, ?2, ?3, ?4)")?,
            version,
            events: Vec::new(),
        })
    }

    /// Compares, and writes if all holds.
    fn perform(&mut self, commit: &Commit) -> rusqlite::Result<Outcome> {
        for compare in &commit.compares {
            if self.version_of(&compare.key)? != compare.version {
                return Ok(Outcome::Conflict);
            }
        }
        // Removing what is not there is no change, and nobody is told of it.
        let mut changes = Vec::new();
        for write in &commit.writes {
            match write {
                Write::Put { key, value } => changes.push((key, Some(value))),
                Write::Delete { key } if self.version_of(key)?.is_some() => {
                    changes.push((key, None));
                }
                Write::Delete { .. } => {}
            }
        }
        let version = self.version + changes.len() as Version;
        let number = from_version(version);
        for (key, value) in changes {
            self.version += 1;
            match value {
                Some(value) => self.put.execute((key, value, number))?,
                None => self.delete.execute((key,))?,
            };
            self.tell.execute((from_version(self.version), number, key, value))?;
            let bytes = key.len() + value.map_or(0, Vec::len);
            self.events.push(Event { version, bytes });
        }
        Ok(Outcome::Done(version))
    }

    fn version_of(&mut self, key: &str) -> rusqlite::Result<Option<Version>> {
        let number = self.find.query_row((key,), |row| row.get(0)).optional()?;
        Ok(number.map(to_version))
    }
}
