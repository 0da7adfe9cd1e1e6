//! Why something on disk could not be read or changed, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why something on disk could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// An operation on a path failed.
    #[error("could not {attempted} {}", path.display())]
    Io {
        /// A verb.
        attempted: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Two directories that must share a file system do not.
    #[error("{} and {} are on two file systems", one.display(), other.display())]
    FileSystems {
        /// One of them.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// Too little space.
    #[error(
        "{} has {free_mib} MiB free, {missing_mib} MiB too few: {needed_mib} MiB are needed and \
         {kept_mib} MiB stay free (keep.free_mib)", path.display()
    )]
    Space {
        /// Where.
        path: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What is missing.
        missing_mib: u64,
        /// What the work needs.
        needed_mib: u64,
        /// What host config reserves.
        kept_mib: u64,
    },
    /// What is never pruned takes more than the quota.
    #[error(
        "the {what} in need take {needed_mib} MiB{}: more than the {quota_mib} MiB of {key}",
        due(*due_mib)
    )]
    Quota {
        /// What of.
        what: &'static str,
        /// What those that are in need take.
        needed_mib: u64,
        /// What the next one would take, as far as that is known.
        due_mib: u64,
        /// The quota.
        quota_mib: u64,
        /// Its name in host config.
        key: &'static str,
    },
    /// Too few inodes.
    #[error("{} has {free} inodes free; {needed} are needed", path.display())]
    Inodes {
        /// Where.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What the work needs.
        needed: u64,
    },
    /// What Towline is to keep its own things in holds those of another.
    #[error("{} holds {name}, which is not Towline's", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found in it.
        name: String,
    },
    /// `current` is none of Towline's links.
    #[error("{} is {found}, not a link to a release of Towline's", path.display())]
    ForeignCurrent {
        /// Where it is.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// Root would write where others can put something else.
    #[error("users other than root may change what is in {}", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent holds the lock.
    #[error("another agent runs for {}", path.display())]
    Locked {
        /// The app's directory.
        path: PathBuf,
    },
    /// Written by a newer agent.
    #[error("{} was written by a newer agent (version {version})", path.display())]
    Newer {
        /// The document.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl DiskError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            DiskError::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(
                    format!("run the agent as the owner of {}, or fix its mount", path.display()),
                ),
                io::ErrorKind::NotFound => Some(format!("create {} first", path.display())),
                io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty => Some(format!(
                    "{} is a directory, not a link: move it away once, then deploy again",
                    path.display()
                )),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space, or lower keep.releases".to_owned())
                }
                _ if is_errno(source, Errno::IO) => {
                    Some("look for its disk in the kernel's log; it is tried again".to_owned())
                }
                _ => None,
            },
            DiskError::FileSystems { .. } => Some(
                "put both on one file system: releases link their dependencies' files".to_owned(),
            ),
            DiskError::Space { .. } | DiskError::Inodes { .. } => {
                Some("free some space, or lower keep.releases or keep.free_mib".to_owned())
            }
            DiskError::Quota { key, .. } => Some(format!(
                "raise {key} in host config and restart the agent, or make releases smaller: what \
                 serves, and what it would go back to, is never removed"
            )),
            DiskError::Foreign { dir, .. } => Some(format!(
                "name an empty directory as `dir` in host config, or move {} away once: what is \
                 not Towline's would be removed",
                dir.display()
            )),
            DiskError::ForeignCurrent { path, .. } => Some(format!(
                "move {} away once: what it is, or points at, would be neither kept nor restored",
                path.display()
            )),
            DiskError::Writable { path } => Some(format!(
                "chown root:root {0} && chmod go-w {0}: what is to be written by the app goes to \
                 shared.dirs; or run the agent as the app's user",
                path.display()
            )),
            DiskError::Locked { .. } => {
                Some("end the other agent first, or ask it with `towline-agent status`".to_owned())
            }
            DiskError::Newer { .. } => Some("install that agent again, or a newer one".to_owned()),
        }
    }
}

/// What the next one takes, where that is known.
fn due(mib: u64) -> String {
    if mib == 0 { String::new() } else { format!(", and the next one {mib} MiB") }
}

impl DiskError {
    /// Is it a state of the disk, or another agent's doing, so that trying later helps? What somebody has
    /// to change first is not.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            DiskError::Io { source, .. } => is_passing(source),
            DiskError::Locked { .. } => true,
            _ => false,
        }
    }
}

/// Can it go away by itself, or with the disk's trouble?
pub(crate) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    const OTHERS: [Errno; 5] = [Errno::IO, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        || OTHERS.iter().any(|errno| is_errno(error, *errno))
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Turns an I/O error into one that says what was attempted, on what.
pub(crate) fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { attempted, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who starts the agent tries again after the one, and not after the other.
    #[test]
    fn a_disk_that_is_unwell_is_no_wrong_configuration() {
        let error = |errno: Errno| failed("write to", Path::new("/srv"))(errno.into());
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::MFILE] {
            assert!(error(errno).is_temporary(), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOTDIR, Errno::EXIST] {
            assert!(!error(errno).is_temporary(), "{errno}");
        }
        assert!(error(Errno::IO).hint().is_some_and(|hint| hint.contains("kernel")));
    }
}
