//! Which releases are in live use, whatever `current` says.

use std::collections::BTreeSet;
use std::path::Path;

use crate::process;

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
        .filter_map(|path| {
            let below = path.strip_prefix(&releases).ok()?;
            Some(below.components().next()?.as_os_str().to_str()?.to_owned())
        })
        // One that was removed is shown as `<name> (deleted)`.
        .filter(|name| releases.join(name).is_dir())
        .collect()
}
