//! Connections that only read: a few, each on a thread where it may block.
//!
//! The log lets them read what was durable when they began, while the writer writes on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Semaphore;

use super::file::{Access, Lock, connect, from_version, sql, to_version};
use crate::store::{Change, Entry, StoreError, Version};

/// How many reads there are at once.
const READERS: u32 = 4;

/// How many bytes of changes are told at once, give or take a commit.
const CHANGES_BYTES_MAX: usize = 4 << 20;

/// The connections, and the leave to use one.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<Reader>>,
}

#[derive(Debug)]
struct Reader {
    connection: Connection,
    // After the connection: whoever is let in next finds it closed.
    _lock: Arc<Lock>,
}

impl Readers {
    /// Opens all of them.
    pub(super) fn open(path: &Path, lock: &Arc<Lock>) -> Result<Self, StoreError> {
        let idle = (0..READERS)
            .map(|_| Ok(Reader { connection: connect(path, Access::Read)?, _lock: lock.clone() }))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let slots = Arc::new(Semaphore::new(READERS as usize));
        Ok(Self { path: path.to_owned(), slots, idle: Mutex::new(idle) })
    }

    /// Runs a query where it may block.
    ///
    /// A query whose future is dropped runs on to its end, and nobody hears of it.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&mut Connection, &Path) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = readers.idle().pop().ok_or(StoreError::Closed)?;
            let outcome = query(&mut reader.connection, &readers.path);
            readers.idle().push(reader);
            drop(slot);
            outcome
        });
        // The runtime ends.
        reading.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Lets no more reads begin, waits for those that have begun, and closes the connections.
    pub(super) async fn close(&self) {
        // An error: it is closed already.
        if let Ok(slots) = self.slots.acquire_many(READERS).await {
            self.slots.close();
            self.idle().clear();
            drop(slots);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what is under a key.
pub(super) fn get(
    connection: &Connection,
    path: &Path,
    key: String,
) -> Result<Option<Entry>, StoreError> {
    let found = connection
        .query_row("SELECT value, version FROM entries WHERE key = ?1", (&key,), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()
        .map_err(sql("read", path))?;
    Ok(found.map(|(value, version)| Entry { key, value, version: to_version(version) }))
}

/// Returns all below a prefix, and the version of the store that was read.
pub(super) fn list(
    connection: &mut Connection,
    prefix: &str,
) -> rusqlite::Result<(Vec<Entry>, Version)> {
    // One snapshot for both.
    let snapshot = connection.transaction()?;
    let version = newest(&snapshot)?;
    let mut statement =
        snapshot.prepare("SELECT key, value, version FROM entries WHERE key >= ?1 ORDER BY key")?;
    let mut rows = statement.query((prefix,))?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        // They are in the order of their bytes: after the first that has not the prefix none has it.
        if !key.starts_with(prefix) {
            break;
        }
        entries.push(Entry { key, value: row.get(1)?, version: to_version(row.get(2)?) });
    }
    Ok((entries, version))
}

fn newest(connection: &Connection) -> rusqlite::Result<Version> {
    let newest = "SELECT ifnull(max(id), 0) FROM events";
    connection.query_row(newest, (), |row| row.get(0)).map(to_version)
}

/// Changes, and the version up to which they are all there are.
pub(super) struct Changes {
    pub(super) changes: Vec<Change>,
    pub(super) until: Version,
}

/// Returns the changes of whole commits after a version; not necessarily of all.
pub(super) fn changes(
    connection: &mut Connection,
    path: &Path,
    prefix: &str,
    after: Version,
) -> Result<Changes, StoreError> {
    let (oldest, found) = read_changes(connection, prefix, after).map_err(sql("read", path))?;
    if after < oldest { Err(StoreError::Compacted { oldest }) } else { Ok(found) }
}

fn read_changes(
    connection: &mut Connection,
    prefix: &str,
    after: Version,
) -> rusqlite::Result<(Version, Changes)> {
    let snapshot = connection.transaction()?;
    let oldest = "SELECT ifnull(min(id) - 1, 0) FROM events";
    let oldest = snapshot.query_row(oldest, (), |row| row.get(0)).map(to_version)?;
    let mut found = Changes { changes: Vec::new(), until: after };
    let mut statement =
        snapshot.prepare("SELECT version, key, value FROM events WHERE id > ?1 ORDER BY id")?;
    let mut rows = statement.query((from_version(after),))?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let version = to_version(row.get(0)?);
        if version > found.until && bytes >= CHANGES_BYTES_MAX {
            break;
        }
        found.until = version;
        let key = row.get_ref(1)?.as_str()?;
        if key.starts_with(prefix) {
            let value: Option<Vec<u8>> = row.get(2)?;
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            found.changes.push(Change { key: key.to_owned(), value, version });
        }
    }
    Ok((oldest, found))
}
