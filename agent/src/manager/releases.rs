//! Which releases are in live use, whatever `current` says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::process;

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
        .filter_map(|path| {
            let below = path.strip_prefix(&releases).ok()?;
            Some(releases.join(below.components().next()?))
        })
        // One that was removed is shown as `<name> (deleted)`.
        .filter(|release| release.is_dir())
        .collect()
}
