//! Which releases are in live use, whatever `current` says.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{Process, workers};
use crate::process::{self, off_thread};

/// Do the manager's workers all work in one release, as far as that can be seen? In the middle of a
/// reload they do not.
pub async fn are_of_one_release(process: &Process, releases: &Path) -> bool {
    directories(process, releases).await.len() <= 1
}

/// Returns the name of a release other than `own` that a worker of the manager works in.
pub async fn stray(process: &Process, releases: &Path, own: &str) -> Option<String> {
    directories(process, releases).await.into_iter().find(|name| name != own)
}

/// Does any of the manager's workers, or the manager itself, work in `dir`?
pub async fn works_below(process: &Process, dir: &Path) -> bool {
    let mut all = workers(process).await;
    all.push(process.as_worker());
    let dir = dir.to_owned();
    let read = move || {
        let dir = dir.canonicalize().unwrap_or(dir);
        let mut directories = all.iter().filter_map(|one| process::working_directory(one.pid));
        directories.any(|directory| directory.starts_with(&dir))
    };
    off_thread(read).await.unwrap_or_default()
}

/// Returns the names of the releases that the manager's workers work in.
async fn directories(process: &Process, releases: &Path) -> BTreeSet<String> {
    let workers = workers(process).await;
    let releases = releases.to_owned();
    let read = move || {
        let releases = releases.canonicalize().unwrap_or(releases);
        let directories =
            workers.iter().filter_map(|worker| process::working_directory(worker.pid));
        directories.filter_map(|directory| release_of(&releases, &directory)).collect()
    };
    off_thread(read).await.unwrap_or_default()
}

/// Returns the name of the release that a path lies in.
fn release_of(releases: &Path, path: &Path) -> Option<String> {
    let below = path.strip_prefix(releases).ok()?;
    Some(below.components().next()?.as_os_str().to_str()?.to_owned())
}

/// Returns the names of the releases that some process works in, or runs an executable of.
///
/// Names, because the kernel knows a process's directory by another path where a link leads to ours.
///
/// A process of another user shows neither to an agent that is not root. Blocks while `/proc` is
/// read.
#[must_use]
pub fn releases_in_use(releases: &Path) -> BTreeSet<String> {
    let releases = releases.canonicalize().unwrap_or_else(|_| releases.to_owned());
    process::all()
        .iter()
        .flat_map(|stat| [process::working_directory(stat.pid), process::executable(stat.pid)])
        .flatten()
        .filter_map(|path| release_of(&releases, &path))
        // One that was removed is shown as `<name> (deleted)`.
        .filter(|name| releases.join(name).is_dir())
        .collect()
}

/// Returns the names of the trees in `trees` that some process works in, runs an executable of, or was
/// started with a file of: an interpreter's own files are elsewhere, and the virtual environment that it
/// serves from is told by its arguments alone.
///
/// Blocks while `/proc` is read.
#[must_use]
pub fn trees_in_use(trees: &Path) -> BTreeSet<String> {
    let real = trees.canonicalize().unwrap_or_else(|_| trees.to_owned());
    let arguments = |pid| {
        let all = process::arguments(pid).unwrap_or_default().into_iter();
        all.map(|argument| PathBuf::from(OsString::from_vec(argument)))
    };
    process::all()
        .iter()
        .flat_map(|stat| {
            let seen = [process::working_directory(stat.pid), process::executable(stat.pid)];
            seen.into_iter().flatten().chain(arguments(stat.pid))
        })
        .filter_map(|path| release_of(&real, &path).or_else(|| release_of(trees, &path)))
        .filter(|name| real.join(name).is_dir())
        .collect()
}
