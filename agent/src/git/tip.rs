//! What an origin has on its branch, asked without a cache: for a bake, and to see whether it answers.

use std::sync::Arc;

use git2::{Direction, Remote};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;

use super::cache::boxed;
use super::fetch::FetchError;
use super::origin::{Access, Origin, Place};
use super::transport::{self, Room, Round};

impl Origin {
    /// Asks the origin for the newest commit of its branch, by its first address that answers; `None`
    /// where no branch is configured. Blocks: run it off the runtime that `handle` names, and keep that
    /// runtime going.
    ///
    /// # Errors
    ///
    /// See [`FetchError`]; where there are several addresses, what became of each.
    pub fn tip(
        &self,
        handle: &Handle,
        stop: &CancellationToken,
    ) -> Result<Option<Revision>, FetchError> {
        let mut said = Vec::new();
        for place in &self.places {
            match self.tip_of(place, handle, stop) {
                Err(error) if error.is_of_place() && self.places.len() > 1 => {
                    said.push((place.url.clone(), error));
                }
                other => return other,
            }
        }
        Err(FetchError::Nowhere { said })
    }

    fn tip_of(
        &self,
        place: &Arc<Place>,
        handle: &Handle,
        stop: &CancellationToken,
    ) -> Result<Option<Revision>, FetchError> {
        let room: Room = Arc::new(|| Ok(()));
        let (stall, total) = (self.stall, self.total);
        let deadline = Instant::now() + total;
        let round = Round { place, handle, stop, room: &room, stall, total, deadline };
        let (outcome, error) = transport::with(&round, || {
            let mut remote = Remote::create_detached(place.handle())?;
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

    /// Returns what time it is there, as the answer of its first address has it; `None` where that tells
    /// none, as by ssh. No credential is sent.
    pub async fn date(&self) -> Option<String> {
        let Access::Http(access) = &self.places.first()?.access else { return None };
        let mut url = access.url.clone();
        url.set_path(&format!("{}/info/refs", url.path()));
        url.set_query(Some("service=git-upload-pack"));
        let answer = access.client.get(url).send().await.ok()?;
        answer.headers().get("date")?.to_str().ok().map(str::to_owned)
    }
}
