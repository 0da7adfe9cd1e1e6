//! The store of a single coordinator: one SQLite file.
//!
//! ```text
//!   commit ──► writer ──► one thread, one fsync for all who wait ──┐
//!                                                                  ▼
//!   get, list ◄── readers, each on a snapshot ◄───────────── entries: what is
//!   watch     ◄── woken by the writer, then a reader ◄────── events:  what has changed, the newest
//! ```
//!
//! Beside the file are `-wal` and `-shm`, which belong to it while it is open or after a crash, and
//! `.lock`. A backup is a file of its own; it is restored by putting it where no other store, and nothing
//! with its `-wal`, is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use self::readers::Readers;
use self::writer::{Message, Waiting};
use super::{Change, Commit, Entry, Outcome, Store, StoreError, Version, Watch, check};

mod backup;
mod file;
mod history;
mod readers;
mod writer;

/// The store in one file. It closes by itself soon after the last handle, and the last watch, is gone;
/// [`Embedded::close`] waits for it.
#[derive(Debug, Clone)]
pub struct Embedded {
    readers: Arc<Readers>,
    messages: mpsc::Sender<Message>,
    published: watch::Receiver<Version>,
    transactions: Arc<AtomicU64>,
}

impl Embedded {
    /// Opens the store at `path`, or makes one where there is no file; its directory must exist.
    ///
    /// Blocks: for the time that it takes to read the file once.
    ///
    /// - `now_s`: the time of day in seconds since 1970: the epoch of a new store. One that is there
    ///   keeps its own.
    ///
    /// # Errors
    ///
    /// Another coordinator has it open, it is newer than this code, something else stands there, or the
    /// disk fails. What stands there was not changed.
    pub fn open(path: &Path, now_s: u64) -> Result<Self, StoreError> {
        let opened = file::open(path, now_s)?;
        let readers = Arc::new(Readers::open(&opened.path, &opened.lock)?);
        let writer::Handle { messages, published, transactions } = writer::start(opened)?;
        Ok(Self { readers, messages, published, transactions })
    }

    /// Closes the store, once what was asked of it before is done. Then another may open it; whoever
    /// still uses a handle of it is told [`StoreError::Closed`].
    pub async fn close(&self) {
        self.readers.close().await;
        // An error: it is closed already.
        self.messages.send(Message::Close).await.ok();
        self.messages.closed().await;
    }

    /// Writes a copy of the store, as it is at one moment, to a new file.
    ///
    /// # Errors
    ///
    /// The file exists, or could not be written; then there is none.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        self.readers.read(move |connection, path| backup::write(connection, path, &to)).await
    }

    /// Like [`Embedded::backup`], for a store that another process has open, or none. Blocks.
    ///
    /// # Errors
    ///
    /// There is no store at `path`; and those of [`Embedded::backup`].
    pub fn backup_of(path: &Path, to: &Path) -> Result<(), StoreError> {
        backup::write_of(path, to)
    }

    /// Returns how many transactions were made durable since it was opened; each is one fsync, and holds
    /// one or more commits.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

impl Store for Embedded {
    type Watch = EmbeddedWatch;

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.readers.read(move |connection, path| readers::get(connection, path, key)).await
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Version), StoreError> {
        let prefix = prefix.to_owned();
        let list = move |connection: &mut _, path: &Path| {
            readers::list(connection, &prefix).map_err(file::sql("read", path))
        };
        self.readers.read(list).await
    }

    async fn commit(&self, commit: Commit) -> Result<Outcome, StoreError> {
        check(&commit)?;
        let (answer, outcome) = oneshot::channel();
        let message = Message::Commit(Waiting { commit, answer });
        self.messages.send(message).await.map_err(|_| StoreError::Closed)?;
        outcome.await.unwrap_or(Err(StoreError::Closed))
    }

    fn watch(&self, prefix: &str, after: Version) -> EmbeddedWatch {
        EmbeddedWatch {
            readers: self.readers.clone(),
            published: self.published.clone(),
            prefix: prefix.to_owned(),
            after,
        }
    }
}

/// Reads the changes that it has not told yet, whenever the writer has published a version.
#[derive(Debug)]
pub struct EmbeddedWatch {
    readers: Arc<Readers>,
    published: watch::Receiver<Version>,
    prefix: String,
    after: Version,
}

impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let version = *self.published.borrow_and_update();
            if version <= self.after {
                self.published.changed().await.map_err(|_| StoreError::Closed)?;
                continue;
            }
            let (prefix, after) = (self.prefix.clone(), self.after);
            let changes = move |connection: &mut _, path: &Path| {
                readers::changes(connection, path, &prefix, after)
            };
            let found = self.readers.read(changes).await?;
            // Nothing is awaited from here on, so that what was read is told.
            self.after = found.until;
            if !found.changes.is_empty() {
                return Ok(found.changes);
            }
        }
    }
}
