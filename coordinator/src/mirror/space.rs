//! Whether there is room for a fetch: mirrors share their disk with the store, which must not be without.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use super::error::MirrorError;
use super::said::Said;

/// How often it is looked at while something is fetched.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const MIB: u64 = 1024 * 1024;

/// How much room a directory's disk must have.
#[derive(Debug, Clone)]
pub(super) struct Space {
    pub(super) dir: PathBuf,
    pub(super) free_mib: u64,
}

impl Space {
    /// Makes sure that there is room.
    pub(super) async fn check(&self) -> Result<(), MirrorError> {
        let dir = self.dir.clone();
        let found = tokio::task::spawn_blocking(move || free_mib(&dir)).await;
        let found_mib =
            found.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
                MirrorError::Disk { dir: self.dir.clone(), source: Said::of(&error) }
            })?;
        if found_mib >= self.free_mib {
            return Ok(());
        }
        Err(MirrorError::Full { dir: self.dir.clone(), found_mib, free_mib: self.free_mib })
    }

    /// Ends once there is none any more.
    pub(super) async fn used_up(&self) -> MirrorError {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // What cannot be looked at was looked at before.
            if let Err(error @ MirrorError::Full { .. }) = self.check().await {
                return error;
            }
        }
    }
}

fn free_mib(dir: &Path) -> io::Result<u64> {
    let stat = statvfs(dir)?;
    #[allow(clippy::useless_conversion, reason = "the fields have other sizes on other platforms")]
    let (blocks, size) = (u64::from(stat.blocks_available()), u64::from(stat.fragment_size()));
    Ok(blocks.saturating_mul(size) / MIB)
}
