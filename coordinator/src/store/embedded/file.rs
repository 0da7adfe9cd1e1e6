//! The file: whose it is, who has it open, which schema it has.
//!
//! ```text
//!   lock ─► is there a file? ─┬─ no:  made whole at `.new`, then renamed
//!                             └─ yes: ours, by its first bytes? ─► schema ─► migrated ─► checked ─► open
//! ```
//!
//! Invariants
//! - Nothing is written to a file that is not ours, or newer than this code.
//! - A file that is there is whole: an empty one is somebody's loss, never a new store.
//! - The file is never opened but by SQLite once SQLite has it open: closing it would end the locks that
//!   SQLite has on it (they are the process's, not the descriptor's; <https://www.sqlite.org/howtocorrupt.html>).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::history::History;
use crate::store::{EPOCH_KEY, StoreError, Version};

/// What marks an SQLite file as a store of Towline's: "TOWL".
pub(super) const APPLICATION_ID: i32 = 0x544f_574c;

/// Only its owner reads it: it holds the hashes of tokens.
pub(super) const MODE: u32 = 0o600;

/// What every SQLite file begins with, and where its application id is
/// (<https://www.sqlite.org/fileformat2.html>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const APPLICATION_ID_AT: usize = 68;

/// How long is waited for a lock within SQLite; another process has one only for moments.
const BUSY: Duration = Duration::from_secs(5);

/// How large the write-ahead log may stay once its content is in the file.
const LOG_BYTES_MAX: u32 = 16 << 20;

/// The steps from an empty file to the newest schema; a store's `user_version` is how many it has taken.
/// A step that was released is never changed.
///
/// The id of an event is the store's version: that of a commit is the id of its last event.
const STEPS: &[&str] = &["
    CREATE TABLE entries (
        key TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL,
        version INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id INTEGER NOT NULL PRIMARY KEY,
        version INTEGER NOT NULL,
        key TEXT NOT NULL,
        value BLOB
    ) STRICT;
"];

/// Held by whoever has the store open; the kernel gives it back, however its holder ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl Lock {
    /// Takes the lock of a store.
    ///
    /// It is a file beside the store, which stays: one that is removed could be locked twice.
    fn take(store: &Path) -> Result<Self, StoreError> {
        let path = beside(store, ".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&path)
            .map_err(io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid =
                    file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(StoreError::Locked { path: store.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
        }
        // For whoever is refused. On a full disk it cannot be told, and is not worth an error.
        if file.set_len(0).is_ok() {
            writeln!(file, "{}", std::process::id()).ok();
        }
        Ok(Self(file))
    }
}

/// A store that was found, or made, in order.
#[derive(Debug)]
pub(super) struct Opened {
    /// The connection that writes.
    pub(super) connection: Connection,
    /// Where it is, without links.
    pub(super) path: PathBuf,
    /// Held while it is open.
    pub(super) lock: Arc<Lock>,
    /// The newest commit.
    pub(super) version: Version,
    /// The changes that are kept.
    pub(super) history: History,
}

/// Opens a store, or makes one where there is none, with `now_s` as its epoch.
pub(super) fn open(path: &Path, now_s: u64) -> Result<Opened, StoreError> {
    let path = resolve(path)?;
    if fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
        return Err(StoreError::Foreign { path, found: "not a file" });
    }
    let lock = Arc::new(Lock::take(&path)?);
    match fs::symlink_metadata(&path) {
        Ok(meta) => {
            identify(&path)?;
            if meta.permissions().mode() & 0o077 != 0 {
                let mode = fs::Permissions::from_mode(MODE);
                fs::set_permissions(&path, mode).map_err(io("restrict", &path))?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path, now_s)?,
        Err(error) => return Err(io("read", &path)(error)),
    }
    let mut connection = connect(&path, Access::Write)?;
    migrate(&mut connection, &path, STEPS)?;
    prepare(&connection, &path)?;
    let (version, history) = read_history(&connection).map_err(sql("read", &path))?;
    Ok(Opened { connection, path, lock, version, history })
}

/// Follows links, so that one store has one lock.
fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    match fs::canonicalize(path) {
        Ok(path) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("open", path)(error)),
    }
    let (dir, name) = split(path)?;
    let dir = fs::canonicalize(&dir).map_err(io("open", &dir))?;
    Ok(dir.join(name))
}

/// Splits a path into its directory and its name.
pub(super) fn split(path: &Path) -> Result<(PathBuf, &std::ffi::OsStr), StoreError> {
    let name = path.file_name().ok_or_else(|| {
        io("open", path)(io::Error::new(io::ErrorKind::IsADirectory, "it names no file"))
    })?;
    match path.parent() {
        Some(dir) if dir != Path::new("") => Ok((dir.to_owned(), name)),
        _ => Ok((PathBuf::from("."), name)),
    }
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))
}

/// Tells by its first bytes whether a file is a store. SQLite is not asked: it would look for a log to
/// replay.
fn identify(path: &Path) -> Result<(), StoreError> {
    let foreign = |found| StoreError::Foreign { path: path.to_owned(), found };
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut header = [0; APPLICATION_ID_AT + 4];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let is_empty = file.metadata().is_ok_and(|meta| meta.len() == 0);
            return Err(foreign(if is_empty { "empty" } else { "a file of something else" }));
        }
        Err(error) => return Err(io("read", path)(error)),
    }
    if !header.starts_with(MAGIC) {
        return Err(foreign("a file of something else"));
    }
    if !header.ends_with(&APPLICATION_ID.to_be_bytes()) {
        return Err(foreign("an SQLite file of something else"));
    }
    Ok(())
}

/// Makes an empty store, under another name until it is whole.
fn create(path: &Path, now_s: u64) -> Result<(), StoreError> {
    // SQLite would replay it into the new file, whatever it is the log of.
    let log = beside(path, "-wal");
    if fs::symlink_metadata(&log).is_ok() {
        return Err(StoreError::Foreign { path: log, found: "the log of a store that is gone" });
    }
    let new = beside(path, ".new");
    // What is left of an attempt that was cut off.
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let left = beside(&new, suffix);
        match fs::remove_file(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("remove", &left)(error));
            }
            _ => {}
        }
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&new)
        .map_err(io("create", &new))?;
    let mut connection = connect(&new, Access::Write)?;
    let made = connection.pragma_update(None, "application_id", APPLICATION_ID);
    made.map_err(sql("create", &new))?;
    migrate(&mut connection, &new, STEPS)?;
    write_epoch(&mut connection, now_s).map_err(sql("create", &new))?;
    connection.close().map_err(|(_, error)| sql("create", &new)(error))?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(io("sync", &new))?;
    fs::rename(&new, path).map_err(io("create", path))?;
    sync_dir(&split(path)?.0)
}

fn write_epoch(connection: &mut Connection, now_s: u64) -> rusqlite::Result<()> {
    let value = format!("{{\"epoch\":{now_s}}}").into_bytes();
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO entries (key, value, version) VALUES (?1, ?2, 1)",
        (EPOCH_KEY, &value),
    )?;
    transaction.execute(
        "INSERT INTO events (id, version, key, value) VALUES (1, 1, ?1, ?2)",
        (EPOCH_KEY, &value),
    )?;
    transaction.commit()
}

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Connects to a file that is there.
pub(super) fn connect(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let flags = match access {
        Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let set = || {
        let connection =
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        if access == Access::Write {
            // Each commit is on the disk before it is answered.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
        }
        Ok(connection)
    };
    set().map_err(sql("open", path))
}

/// Takes the steps that a store has not taken yet, each in a transaction of its own.
fn migrate(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), StoreError> {
    let version: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql("read", path))?;
    let known = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    if version > known {
        return Err(StoreError::Newer { path: path.to_owned(), version, known });
    }
    for (step, number) in steps.iter().zip(1..=known).skip(version as usize) {
        let take = |connection: &mut Connection| {
            let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()
        };
        take(connection).map_err(sql("migrate", path))?;
    }
    Ok(())
}

/// Turns the log on, and looks whether the file is sound.
fn prepare(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(sql("open", path))?;
    if mode != "wal" {
        let source = io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system cannot share memory; a local one can",
        );
        return Err(io("keep a write-ahead log for", path)(source));
    }
    let found: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(sql("read", path))?;
    if found == "ok" {
        Ok(())
    } else {
        Err(StoreError::Damaged { path: path.to_owned(), found: found.replace('\n', " ") })
    }
}

fn read_history(connection: &Connection) -> rusqlite::Result<(Version, History)> {
    let mut history = History::default();
    let mut version = 0;
    let sql = "SELECT version, length(key) + ifnull(length(value), 0) FROM events ORDER BY id";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        version = to_version(row.get(0)?);
        let bytes: i64 = row.get(1)?;
        history.add(version, usize::try_from(bytes).unwrap_or(0));
    }
    Ok((version, history))
}

/// Turns a version into SQLite's kind of number; one that no store comes to stays above all others.
pub(super) fn from_version(version: Version) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

/// The reverse of [`from_version`]; a store has no negative ones.
pub(super) fn to_version(number: i64) -> Version {
    Version::try_from(number).unwrap_or(0)
}

/// Turns an I/O error into one that says what was attempted, on what.
pub(super) fn io(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { attempted, path: path.to_owned() }
        }
        _ => StoreError::Io { attempted, path: path.to_owned(), source: Arc::new(source) },
    }
}

/// Turns SQLite's error into one that says what was attempted, on what.
pub(super) fn sql(
    attempted: &'static str,
    path: &Path,
) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| {
        let path = path.to_owned();
        let extended = source.sqlite_error().map(|error| error.extended_code);
        match source.sqlite_error_code() {
            // The memory that processes share is a file too, which could not grow.
            _ if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => {
                StoreError::Full { attempted, path }
            }
            Some(ErrorCode::DiskFull) => StoreError::Full { attempted, path },
            Some(ErrorCode::DatabaseCorrupt) => {
                StoreError::Damaged { path, found: source.to_string() }
            }
            Some(ErrorCode::NotADatabase) => {
                StoreError::Foreign { path, found: "a file of something else" }
            }
            _ => StoreError::Failed { attempted, path, source: Arc::new(source) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn an_older_schema_takes_the_steps_that_it_lacks_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        drop(open(&path, 1).unwrap());
        let mut connection = connect(&path, Access::Write).unwrap();
        let steps = [STEPS[0], "CREATE TABLE one (a)", "CREATE TABLE two (a)"];
        migrate(&mut connection, &path, &steps[..2]).unwrap();
        assert!(tables(&connection).contains(&"one".to_owned()));
        migrate(&mut connection, &path, &steps).unwrap();
        migrate(&mut connection, &path, &steps).unwrap();
        assert!(tables(&connection).contains(&"two".to_owned()));
        drop(connection);
        let refused = open(&path, 1).unwrap_err();
        assert!(matches!(refused, StoreError::Newer { version: 3, known: 1, .. }), "{refused}");
    }

    #[test]
    fn a_step_that_fails_leaves_the_schema_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        drop(open(&path, 1).unwrap());
        let mut connection = connect(&path, Access::Write).unwrap();
        let steps = [STEPS[0], "CREATE TABLE one (a); CREATE TABLE one (a)"];
        assert!(migrate(&mut connection, &path, &steps).is_err());
        assert_eq!(tables(&connection), ["entries", "events"]);
        drop(connection);
        open(&path, 1).unwrap();
    }

    #[test]
    fn each_commit_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(&dir.path().join("store.db"), 1).unwrap();
        let found = |pragma| {
            let value = |row: &rusqlite::Row| row.get::<_, rusqlite::types::Value>(0);
            opened.connection.pragma_query_value(None, pragma, value).unwrap()
        };
        // FULL: the log is synced with each commit, not only when it is taken over (NORMAL).
        assert_eq!(found("synchronous"), 2.into());
        assert_eq!(found("journal_mode"), "wal".to_owned().into());
    }

    #[test]
    fn what_is_left_of_an_attempt_to_make_a_store_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        for suffix in [".new", ".new-journal", ".new-wal"] {
            fs::write(beside(&path, suffix), "cut off").unwrap();
        }
        let opened = open(&path, 1).unwrap();
        assert_eq!(opened.version, 1);
        assert!(!beside(&path, ".new-wal").exists());
    }
}
