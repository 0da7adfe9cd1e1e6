//! A hand on the manager of what serves: the kernel says when it ends, and nobody has to ask.

use std::rc::Rc;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::Find;

use super::{Tools, activate, place};
use crate::journal::Release;

/// How long a manager that has ended may be on its way back. What a supervisor starts again and again
/// is for the next look: an install must not be broken off each time.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// The pause between two looks meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// Returns when the manager of the live release has ended and is not back. Waits for ever where none is
/// found, or where a command would have to be run for it: then the next look tells.
pub(super) async fn gone(tools: Rc<Tools>, release: Release) {
    let Some(mut watched) = take_hold(&tools, &release).await else {
        return std::future::pending().await;
    };
    loop {
        // An error is as good as its end: the look that follows tells.
        drop(watched.readable().await);
        let ended = Instant::now();
        watched = loop {
            match take_hold(&tools, &release).await {
                Some(watched) => break watched,
                None if ended.elapsed() >= BACK_WITHIN => return,
                None => sleep(PAUSE).await,
            }
        };
    }
}

async fn take_hold(tools: &Tools, release: &Release) -> Option<Receiver> {
    let recipe = place::recipe_of(tools, release).ok()?;
    let finder = place::finder(tools, &recipe)?;
    if matches!(finder, Find::Status(_)) {
        return None;
    }
    let stop = CancellationToken::new();
    activate::look(tools, &finder, release, &stop).await.ok()??.watch().ok()
}
