//! Copies of files that share their blocks with what they were copied from, where the file system can
//! (XFS, Btrfs, bcachefs): they take neither space nor the time to write them, and are files of their own.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// It shares its blocks.
    Shared,
    /// Its bytes were written.
    Written,
}

/// Copies a file to a new one, with its mode and its time of change.
///
/// # Errors
///
/// Also where there is something at `to` already, be it a link.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<Copied> {
    let mut source = File::open(from)?;
    let found = source.metadata()?;
    let mode = found.permissions().mode() & 0o777;
    let mut copy = File::options().write(true).create_new(true).mode(mode).open(to)?;
    let copied = match rustix::fs::ioctl_ficlone(&copy, &source) {
        Ok(()) => Copied::Shared,
        // Each file system has another word for that it cannot.
        Err(_) => {
            io::copy(&mut source, &mut copy)?;
            Copied::Written
        }
    };
    copy.set_permissions(Permissions::from_mode(mode))?;
    copy.set_modified(found.modified()?)?;
    Ok(copied)
}
