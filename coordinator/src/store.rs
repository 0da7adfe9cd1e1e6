//! Where the coordinator keeps what must not be forgotten: keys, bytes, versions.
//!
//! ```text
//!   commit { compares, writes } ──► all of it, or a conflict: somebody was faster, look again
//!   watch(prefix, after)        ──► every change since, in order; or Compacted: list again, then watch
//! ```
//!
//! Invariants
//! - A commit that was answered is durable, and is whole: all of its writes or none.
//! - Versions grow with each commit and are never used twice; a key's version is its last writer's.
//! - The store does not know what a rollout is.
//!
//! Two implementations are held to one suite, [`conformance`]: what passes there may be relied upon.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod conformance;
pub mod embedded;

/// The most compares and writes of one commit together: etcd allows 128, and some are left for itself.
pub const OPERATIONS_MAX: usize = 100;

/// The largest value, in bytes: etcd takes requests of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// The most bytes of all keys and values of one commit: see [`VALUE_BYTES_MAX`].
pub const COMMIT_BYTES_MAX: usize = 1400 << 10;

/// The key under which a store keeps its epoch, as `{"epoch":N}`; it is there from the beginning.
pub const EPOCH_KEY: &str = "epoch";

/// The number of a commit.
pub type Version = u64;

/// A key, its value, and the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The commit that wrote it.
    pub version: Version,
}

/// What must hold for a commit to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The version that it must have; `None`: there must be no such key.
    pub version: Option<Version>,
}

/// One write of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes a key; nothing happens where there is none.
    Delete {
        /// The key.
        key: String,
    },
}

/// Writes that happen together, if what is compared holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is written then; no key twice.
    pub writes: Vec<Write>,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, under this version. One that changes nothing takes no version of its own: this is
    /// the store's at that moment.
    Done(Version),
    /// Something that was compared is otherwise; nothing was written.
    Conflict,
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None`: it was removed.
    pub value: Option<Vec<u8>>,
    /// The commit that changed it.
    pub version: Version,
}

/// A store. What is cloned is a handle: all clones are one store.
pub trait Store: Clone + Send + Sync + 'static {
    /// What [`Store::watch`] gives.
    type Watch: Watch;

    /// Returns what is under a key. It is at least as new as any commit that was answered before the
    /// call.
    ///
    /// # Errors
    ///
    /// The store could not be read.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Returns all whose keys begin with `prefix`, sorted by key, and the version of the store at the
    /// one moment at which it looked like this.
    ///
    /// # Errors
    ///
    /// The store could not be read.
    fn list(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<(Vec<Entry>, Version), StoreError>> + Send;

    /// Carries out a commit, if what it compares holds.
    ///
    /// Dropping the future does not take the commit back: it may happen or not.
    ///
    /// # Errors
    ///
    /// It is refused by [`check`], or the store has no room: nothing was written. After
    /// [`StoreError::Failed`] and [`StoreError::Closed`] it may have been: read again before repeating
    /// it.
    fn commit(&self, commit: Commit) -> impl Future<Output = Result<Outcome, StoreError>> + Send;

    /// Watches the keys that begin with `prefix`, from the first commit after `after`: the version that
    /// [`Store::list`] gave. Where the store has not come to `after` yet, it waits until it has.
    fn watch(&self, prefix: &str, after: Version) -> Self::Watch;
}

/// Tells of changes, in order.
pub trait Watch: Send + 'static {
    /// Waits for changes, and returns those of one or more whole commits: in the order of the commits,
    /// as far as their keys begin with what is watched; never none.
    ///
    /// Dropping the future loses nothing: the next call returns what this one would have.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`]: not all changes are there any more. List again, then watch from there.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Change>, StoreError>> + Send;
}

/// Checks that a commit keeps within the limits that all stores have.
///
/// # Errors
///
/// It does not; nothing was written.
pub fn check(commit: &Commit) -> Result<(), StoreError> {
    let operations = commit.compares.len() + commit.writes.len();
    if operations > OPERATIONS_MAX {
        return Err(StoreError::TooMany { operations });
    }
    let mut total = 0;
    for compare in &commit.compares {
        total += check_key(&compare.key)?;
    }
    let mut written = BTreeSet::new();
    for write in &commit.writes {
        let (key, bytes) = match write {
            Write::Put { key, value } => (key, value.len()),
            Write::Delete { key } => (key, 0),
        };
        total += check_key(key)? + bytes;
        if bytes > VALUE_BYTES_MAX {
            let what = format!("the value of {key}");
            return Err(StoreError::TooLarge { what, bytes, max: VALUE_BYTES_MAX });
        }
        if !written.insert(key) {
            return Err(StoreError::Twice { key: key.clone() });
        }
    }
    if total > COMMIT_BYTES_MAX {
        let what = "a commit".to_owned();
        return Err(StoreError::TooLarge { what, bytes: total, max: COMMIT_BYTES_MAX });
    }
    Ok(())
}

fn check_key(key: &str) -> Result<usize, StoreError> {
    match key.len() {
        0 => Err(StoreError::NoKey),
        bytes if bytes > KEY_BYTES_MAX => {
            let what = format!("the key {}…", key.chars().take(40).collect::<String>());
            Err(StoreError::TooLarge { what, bytes, max: KEY_BYTES_MAX })
        }
        bytes => Ok(bytes),
    }
}

/// Why the store did not do what was asked of it.
///
/// It can be cloned, because commits that are made durable together fail together.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("could not {attempted} {}", path.display())]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Two coordinators on one store would each believe that they are alone.
    #[error(
        "could not open {}: another coordinator has it open{}",
        path.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The store.
        path: PathBuf,
        /// The other's process, where it could be told.
        pid: Option<u32>,
    },
    /// Written by a newer coordinator.
    #[error(
        "could not open {}: it was written by a newer coordinator (schema {version}; this one knows \
         {known})", path.display()
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its schema.
        version: u32,
        /// The newest that this code knows.
        known: u32,
    },
    /// Something else stands where the store should be. It was not changed.
    #[error("could not open {}: it is {found}, not a store of Towline's", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The store's bytes are not what was written.
    #[error("could not read {}: it is damaged ({found})", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What does not fit.
        found: String,
    },
    /// There is no room; what was asked for was not done.
    #[error("could not {attempted} {}: the disk is full", path.display())]
    Full {
        /// What was attempted.
        attempted: &'static str,
        /// The store.
        path: PathBuf,
    },
    /// What is below the store failed.
    #[error("could not {attempted} {}", path.display())]
    Failed {
        /// What was attempted.
        attempted: &'static str,
        /// The store.
        path: PathBuf,
        /// Why.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// A backup never replaces anything.
    #[error("could not write a backup to {}: it exists", path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },
    /// A commit of more operations than every store takes.
    #[error("could not commit {operations} operations at once: the most are {OPERATIONS_MAX}")]
    TooMany {
        /// How many compares and writes there are.
        operations: usize,
    },
    /// More bytes than every store takes.
    #[error("could not commit {what}: {bytes} bytes, and the most are {max}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// An empty key.
    #[error("could not commit to a key without a name")]
    NoKey,
    /// A commit that writes a key twice.
    #[error("could not commit two writes of {key} at once")]
    Twice {
        /// The key.
        key: String,
    },
    /// What was to be watched is not kept any more: list again, then watch.
    #[error("could not watch from a version that is no longer kept: the oldest is {oldest}")]
    Compacted {
        /// The oldest version from which can be watched.
        oldest: Version,
    },
    /// The store was closed.
    #[error("could not use the store: it is closed")]
    Closed,
}

impl StoreError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let above = |path: &Path| match path.parent() {
            Some(dir) if dir != Path::new("") => dir.display().to_string(),
            _ => ".".to_owned(),
        };
        match self {
            StoreError::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some(format!(
                    "there is no {}: make the directory that is missing, or name another place",
                    path.display()
                )),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some(format!("run it as the owner of {}, or fix its mount", path.display()))
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some(format!("free some space in {}", above(path)))
                }
                _ => None,
            },
            StoreError::Locked { .. } => {
                Some("end the other coordinator first, or give this one a store of its own".into())
            }
            StoreError::Newer { .. } => {
                Some("install that coordinator again, or a newer one".to_owned())
            }
            StoreError::Foreign { path, .. } => {
                Some(format!("move {} away, or name another place for the store", path.display()))
            }
            StoreError::Damaged { path, .. } => Some(format!(
                "move {0}, {0}-wal and {0}-shm away, put a backup in their place, and raise its epoch",
                path.display()
            )),
            StoreError::Full { path, .. } => Some(format!("free some space in {}", above(path))),
            StoreError::Exists { .. } => Some("name a file that does not exist".to_owned()),
            StoreError::Failed { .. }
            | StoreError::TooMany { .. }
            | StoreError::TooLarge { .. }
            | StoreError::NoKey
            | StoreError::Twice { .. }
            | StoreError::Compacted { .. }
            | StoreError::Closed => None,
        }
    }

    /// May the same request succeed later, with nothing about it changed? A closed store is one that is
    /// started again.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            // What is not there does not come by waiting.
            StoreError::Io { source, .. } => source.kind() != io::ErrorKind::NotFound,
            StoreError::Full { .. } | StoreError::Failed { .. } | StoreError::Closed => true,
            StoreError::Locked { .. }
            | StoreError::Newer { .. }
            | StoreError::Foreign { .. }
            | StoreError::Damaged { .. }
            | StoreError::Exists { .. }
            | StoreError::TooMany { .. }
            | StoreError::TooLarge { .. }
            | StoreError::NoKey
            | StoreError::Twice { .. }
            | StoreError::Compacted { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, bytes: usize) -> Write {
        Write::Put { key: key.to_owned(), value: vec![0; bytes] }
    }

    fn writes(writes: Vec<Write>) -> Commit {
        Commit { compares: Vec::new(), writes }
    }

    #[test]
    fn a_commit_keeps_within_the_limits() {
        let many = |number: usize| (0..number).map(|n| put(&format!("k/{n}"), 1)).collect();
        let longest = "k".repeat(KEY_BYTES_MAX);
        let too_long = "k".repeat(KEY_BYTES_MAX + 1);
        let delete = Write::Delete { key: "a".to_owned() };
        let compares = |key: &str, number| Commit {
            compares: vec![Compare { key: key.to_owned(), version: None }; number],
            writes: vec![put("a", 1)],
        };
        let half = COMMIT_BYTES_MAX / 2;
        let cases = [
            ("nothing", Commit::default(), true),
            ("as many writes as may be", writes(many(OPERATIONS_MAX)), true),
            ("one too many", writes(many(OPERATIONS_MAX + 1)), false),
            ("compares count", compares("c", OPERATIONS_MAX - 1), true),
            ("compares count, one too many", compares("c", OPERATIONS_MAX), false),
            ("the longest key", writes(vec![put(&longest, 1)]), true),
            ("a longer one", writes(vec![put(&too_long, 1)]), false),
            ("a longer one is compared", compares(&too_long, 1), false),
            ("no key", writes(vec![put("", 1)]), false),
            ("no key is compared", compares("", 1), false),
            ("an empty value", writes(vec![put("a", 0)]), true),
            ("the largest value", writes(vec![put("a", VALUE_BYTES_MAX)]), true),
            ("a larger one", writes(vec![put("a", VALUE_BYTES_MAX + 1)]), false),
            ("the largest commit", writes(vec![put("a", half - 1), put("b", half - 1)]), true),
            ("a larger one", writes(vec![put("a", half), put("b", half)]), false),
            ("a key twice", writes(vec![put("a", 1), put("a", 1)]), false),
            ("a key put and deleted", writes(vec![put("a", 1), delete]), false),
            ("a key compared and written", compares("a", 1), true),
            ("a key compared twice", compares("c", 2), true),
        ];
        for (rule, commit, is_good) in cases {
            assert_eq!(check(&commit).is_ok(), is_good, "{rule}");
        }
    }

    #[test]
    fn who_reads_an_error_learns_what_to_do() {
        let path = PathBuf::from("/var/lib/towline/store.db");
        let locked = StoreError::Locked { path: path.clone(), pid: Some(17) };
        assert!(locked.to_string().ends_with("another coordinator has it open (pid 17)"));
        assert!(locked.hint().unwrap().contains("end the other"));
        assert!(!locked.is_temporary());
        let full = StoreError::Full { attempted: "write to", path };
        assert!(full.is_temporary() && full.to_string().contains("the disk is full"));
        assert_eq!(full.hint().unwrap(), "free some space in /var/lib/towline");
        let long = check(&writes(vec![put(&"k".repeat(10_000), 1)])).unwrap_err();
        assert!(long.to_string().len() < 200, "an error repeats only the beginning of a key");
    }
}
