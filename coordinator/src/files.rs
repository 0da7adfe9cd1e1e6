//! Open files: each connection is one, and a process has fewer than it may have until it asks for them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Open files beside those of connections: the store's, and those of git's pipes.
const FILES_BESIDE: u64 = 200;

/// Takes as many open files as the system lets this process have: each connection is one.
pub fn allow(connections: usize) {
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(FILES_BESIDE);
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => warn!(
            limit,
            wanted,
            "not as many connections as the config says: raise LimitNOFILE of its unit, or lower \
             `connections`"
        ),
        Err(error) => warn!(%error, "could not raise the limit of open files"),
    }
}
