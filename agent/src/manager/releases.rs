//! Which releases are in live use, whatever `current` says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Process, workers};
use crate::process::{self, off_thread};

/// Do the manager's workers all work in one release, as far as that can be seen? In the middle of a
/// reload they do not.
pub async fn are_of_one_release(process: &Process, releases: &Path) -> bool {
    directories(process, releases).await.len() <= 1
}

/// Returns a worker of the manager that works in another release than `release`, and in which.
pub async fn stray(process: &Process, releases: &Path, release: &Path) -> Option<PathBuf> {
    let release = release.canonicalize().ok()?;
    directories(process, releases).await.into_iter().find(|directory| *directory != release)
}

/// Returns the releases that the manager's workers work in.
async fn directories(process: &Process, releases: &Path) -> BTreeSet<PathBuf> {
    let workers = workers(process).await;
    let releases = releases.to_owned();
    let read = move || {
        let releases = releases.canonicalize().unwrap_or(releases);
        let directories =
            workers.iter().filter_map(|worker| process::working_directory(worker.pid));
        directories.filter_map(|directory| within(&releases, &directory)).collect()
    };
    off_thread(read).await.unwrap_or_default()
}

/// Returns the release that a path lies in.
fn within(releases: &Path, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(releases).ok()?;
    Some(releases.join(below.components().next()?))
}

/// Returns the releases that some process works in, or runs an executable of.
///
/// A process of another user shows neither to an agent that is not root. Blocks while `/proc` is
/// read.
#[must_use]
pub fn releases_in_use(releases: &Path) -> BTreeSet<PathBuf> {
    let releases = releases.canonicalize().unwrap_or_else(|_| releases.to_owned());
    process::all()
        .iter()
        .flat_map(|stat| [process::working_directory(stat.pid), process::executable(stat.pid)])
        .flatten()
        .filter_map(|path| within(&releases, &path))
        // One that was removed is shown as `<name> (deleted)`.
        .filter(|release| release.is_dir())
        .collect()
}
