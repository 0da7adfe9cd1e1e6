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

/// The most compares and writes of one commit together: etcd allows 128, and some are left for itself.
pub const OPERATIONS_MAX: usize = 100;

/// The largest value, in bytes: etcd takes requests of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;

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
    /// It is durable, under this version.
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
