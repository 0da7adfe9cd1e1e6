//! The end of a reload that is under way: two of them never overlap.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::manager::{self, Process};

/// How long workers must hold still for a reload to count as over.
const STILL: Duration = Duration::from_secs(1);

/// Waits until the workers hold still, all of one release: another reload may be under way, and workers
/// that take their time to start hold still in the middle of it.
pub(super) async fn settle(
    process: &Process,
    releases: &Path,
    timeout: Duration,
    stop: &CancellationToken,
) {
    let deadline = Instant::now() + timeout;
    let mut last = manager::workers(process).await;
    let mut since = Instant::now();
    while Instant::now() < deadline && !stop.is_cancelled() {
        if since.elapsed() >= STILL && manager::are_of_one_release(process, releases).await {
            return;
        }
        sleep(STILL / 10).await;
        let now = manager::workers(process).await;
        if now != last {
            since = Instant::now();
            last = now;
        }
    }
}
