//! A hand on the manager of what serves: the kernel says when it ends, and nobody has to ask.

use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::Find;

use super::{Tools, activate};

/// A manager whose end is waited for.
pub(super) type Watch = Receiver;

/// Finds the manager of the live release, to wait for its end. `None` where it is not found, or where a
/// command would have to be run for it: then the next look tells.
pub(super) async fn watch(tools: &Tools, revision: &Revision) -> Option<Watch> {
    let recipe = activate::recipe_of(tools, revision).ok()?;
    let finder = activate::finder(tools, &recipe);
    if matches!(finder, Find::Status(_)) {
        return None;
    }
    let stop = CancellationToken::new();
    activate::look(tools, &finder, revision, &stop).await.ok()??.watch().ok()
}

/// Waits for the end of a manager; for ever where none is watched.
pub(super) async fn ended(watch: Option<&Watch>) {
    match watch {
        // An error is as good as its end: the look that follows tells.
        Some(watch) => drop(watch.readable().await),
        None => std::future::pending().await,
    }
}
