//! What an origin has on its branch, asked without a cache: for a bake, and to see whether it answers.

use std::sync::Arc;

use git2::{Direction, Remote};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;

use super::Origin;
use super::fetch::{FetchError, boxed};
use super::http::{self, Room};

impl Origin {
    /// Asks the origin for the newest commit of its branch; `None` where no branch is configured. Blocks:
    /// run it off the runtime that `handle` names, and keep that runtime going.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub fn tip(
        &self,
        handle: &Handle,
        stop: &CancellationToken,
    ) -> Result<Option<Revision>, FetchError> {
        let room: Room = Arc::new(|| Ok(()));
        let deadline = Instant::now() + self.total;
        let (outcome, error) = http::with(self, handle, stop, &room, deadline, || {
            let mut remote = Remote::create_detached(self.url.as_str())?;
            remote.connect(Direction::Fetch)?;
            let wanted = self.branch.as_ref().map(|branch| format!("refs/heads/{branch}"));
            let heads = remote.list()?;
            let found = heads.iter().find(|head| Some(head.name()) == wanted.as_deref());
            Ok::<_, git2::Error>(found.map(|head| head.oid().to_string()))
        });
        let found = match (outcome, error) {
            (Ok(found), _) => found,
            (Err(_), Some(error)) => return Err(error.into()),
            (Err(error), None) => return Err(FetchError::Git(boxed(error))),
        };
        match (&self.branch, found.map(|id| id.parse())) {
            (None, _) => Ok(None),
            (Some(_), Some(Ok(revision))) => Ok(Some(revision)),
            (Some(branch), _) => Err(FetchError::NoBranch { branch: branch.clone() }),
        }
    }

    /// Returns what time it is there, as its answer has it; `None` where it tells none. No credential is
    /// sent.
    pub async fn date(&self) -> Option<String> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/info/refs", url.path()));
        url.set_query(Some("service=git-upload-pack"));
        let answer = self.client.get(url).send().await.ok()?;
        answer.headers().get("date")?.to_str().ok().map(str::to_owned)
    }
}
