//! Fetching: one commit into the cache, from the first address that gives it.
//!
//! ```text
//!   by commit id, depth 1 ──refused──► the branch with its history ──► is the commit on it?
//!          ▲                                                                │ no
//!          └── the next address ◄── not reached, broken off, not there ─────┘
//! ```
//!
//! Each fetch begins with the first address. All share one deadline: while there is another one, an
//! address gets half of what is left, the last one all of it. A full disk, a stop and an id that is no
//! commit's are no address's doing, and end the fetch.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use git2::{AutotagOption, FetchOptions, ObjectType, Oid, RemoteCallbacks};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use tracing::warn;

use super::cache::{Cache, RELEASES, boxed, is_about_objects, set_aside};
use super::origin::{Origin, Place};
use super::transport::{self, Room, Round, TransportError};
use crate::error;

/// The ref that the allowed branch is fetched to.
const BRANCH: &str = "refs/towline/branch";

/// How libgit2 is told to fetch all history into a shallow repository; 0 would leave it shallow.
const ALL_HISTORY: i32 = i32::MAX;

/// What a fetch did besides fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// The cache was broken: it was set aside and made anew.
    pub set_aside: bool,
}

/// Why a revision could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Bytes could not be had.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server has no such commit for us, and no branch is configured to look on.
    #[error("the server gives no commit {revision} by its id")]
    NotFound {
        /// The commit.
        revision: Revision,
    },
    /// The branch was fetched, and the commit is not on it.
    #[error("{revision} is not on the branch {branch}")]
    OffBranch {
        /// The commit.
        revision: Revision,
        /// The allowed branch.
        branch: String,
    },
    /// The origin has no such branch.
    #[error("the origin has no branch {branch}")]
    NoBranch {
        /// The branch.
        branch: String,
    },
    /// The id is that of something else.
    #[error("{} is a {kind}, not a commit", revision.short())]
    NoCommit {
        /// The id.
        revision: Revision,
        /// What it is.
        kind: &'static str,
    },
    /// SHA-256 repositories.
    #[error("{} is a SHA-256 commit id, which this agent cannot fetch", revision.short())]
    Sha256 {
        /// The commit.
        revision: Revision,
    },
    /// What the cache holds cannot be read, also after it was made anew.
    #[error("the cache in {} is broken", dir.display())]
    Broken {
        /// The cache.
        dir: PathBuf,
    },
    /// The cache could not be written.
    #[error("could not use the cache in {}", dir.display())]
    Disk {
        /// The cache.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A cache that cannot be used is in the way.
    #[error("could not set the broken cache {} aside", dir.display())]
    Aside {
        /// The cache.
        dir: PathBuf,
        /// Where it was to go.
        aside: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// None of several addresses gave it.
    #[error("none of the {} addresses gave it: {}", said.len(), each(said))]
    Nowhere {
        /// What became of each, by its address.
        said: Vec<(String, FetchError)>,
    },
    /// libgit2 said no.
    #[error("git failed")]
    Git(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl FetchError {
    /// Is the disk to blame, and not the origin?
    #[must_use]
    pub fn is_about_disk(&self) -> bool {
        matches!(
            self,
            FetchError::Disk { .. }
                | FetchError::Aside { .. }
                | FetchError::Transport(TransportError::Space { .. })
        )
    }

    /// Will it be the same every time?
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, FetchError::NoCommit { .. } | FetchError::Sha256 { .. })
    }

    /// Is it the address's doing, so that another one may do better? One that lags behind does not have
    /// the commit yet.
    pub(super) fn is_of_place(&self) -> bool {
        match self {
            FetchError::Transport(source) => source.is_of_place(),
            FetchError::NotFound { .. } | FetchError::OffBranch { .. } | FetchError::Git(_) => true,
            _ => false,
        }
    }

    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            FetchError::Transport(source) => source.hint(),
            FetchError::NotFound { .. } => Some(
                "check that it was pushed; set git.branch so that its history can be fetched"
                    .to_owned(),
            ),
            FetchError::OffBranch { branch, .. } => Some(format!(
                "push it to {branch}; after a forced push, release a commit that is still on it"
            )),
            FetchError::NoCommit { kind, .. } => Some(format!(
                "name a commit: `git rev-parse 'NAME^{{commit}}'` prints the one that a {kind} leads to"
            )),
            FetchError::NoBranch { .. } => {
                Some("correct git.branch, or push the branch".to_owned())
            }
            FetchError::Sha256 { .. } => Some("use a SHA-1 repository".to_owned()),
            FetchError::Disk { .. } => Some("check its owner, its mount and its space".to_owned()),
            FetchError::Aside { dir, aside, .. } => Some(format!(
                "remove both by hand, whoever they belong to: rm -r {} {}",
                dir.display(),
                aside.display()
            )),
            FetchError::Nowhere { said } => {
                let hint = |(url, error): &(String, FetchError)| {
                    error.hint().map(|hint| format!("{url}: {hint}"))
                };
                let hints: Vec<String> = said.iter().filter_map(hint).collect();
                (!hints.is_empty()).then(|| hints.join("; "))
            }
            FetchError::Broken { .. } | FetchError::Git(_) => None,
        }
    }
}

/// Returns what became of each address, in one line.
fn each(said: &[(String, FetchError)]) -> String {
    let one = |(url, error): &(String, FetchError)| format!("{url}: {}", error::chain(error));
    said.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Returns how much of the time that is left an address may take, with so many after it.
fn share(left: Duration, others: usize) -> Duration {
    if others > 0 { left / 2 } else { left }
}

impl Cache {
    /// Fetches one commit, and blocks until it is here. Run it off the runtime that `handle` names,
    /// and keep that runtime going. How large a commit is shows only while it comes in: `room` is
    /// asked again and again whether there is space for more.
    ///
    /// # Errors
    ///
    /// See [`FetchError`]; what was here before is still here.
    pub fn fetch(
        &mut self,
        origin: &Origin,
        revision: &Revision,
        handle: &Handle,
        stop: &CancellationToken,
        room: &Room,
    ) -> Result<Fetched, FetchError> {
        if revision.as_str().len() > 40 {
            return Err(FetchError::Sha256 { revision: revision.clone() });
        }
        // One for all rounds: by id, by the branch, both once more in a new cache, and each address.
        let end = Instant::now() + origin.total;
        let mut fetched = Fetched { set_aside: false };
        let mut said = Vec::new();
        for (index, place) in origin.places.iter().enumerate() {
            let others = origin.places.len() - index - 1;
            let left = end.saturating_duration_since(Instant::now());
            let total = share(if index == 0 { origin.total } else { left }, others);
            let deadline = Instant::now() + total;
            let stall = origin.stall;
            let round = Round { place, handle, stop, room, stall, total, deadline };
            match self.fetch_from(origin, &round, revision, &mut fetched) {
                Ok(()) => return Ok(fetched),
                Err(error) if !error.is_of_place() || origin.places.len() == 1 => {
                    return Err(error);
                }
                Err(error) => {
                    if others > 0 {
                        let (url, hint) = (&place.url, error.hint());
                        let error = error::chain(&error);
                        warn!(url, error, hint, "not fetched from here: asking the next address");
                    }
                    said.push((place.url.clone(), error));
                }
            }
        }
        Err(FetchError::Nowhere { said })
    }

    /// Fetches from one address; a cache that turns out to be broken is made anew, once.
    fn fetch_from(
        &mut self,
        origin: &Origin,
        round: &Round<'_>,
        revision: &Revision,
        fetched: &mut Fetched,
    ) -> Result<(), FetchError> {
        match self.attempt(origin, round, revision) {
            Err(FetchError::Broken { .. }) => {
                set_aside(&self.dir)?;
                *self = Cache::open(&self.dir)?;
                fetched.set_aside = true;
                self.attempt(origin, round, revision)
            }
            other => other,
        }
    }

    fn attempt(
        &self,
        origin: &Origin,
        round: &Round<'_>,
        revision: &Revision,
    ) -> Result<(), FetchError> {
        let get = |refspec: &str, depth: Option<i32>| {
            transport::with(round, || self.run(round.place, refspec, depth))
        };
        let kept = format!("{RELEASES}{revision}");
        if !origin.verify_branch {
            let (outcome, error) = get(&format!("{revision}:{kept}"), Some(1));
            match (outcome, error) {
                (Ok(()), _) if self.has(revision) => return Ok(()),
                (Ok(()), _) => return Err(self.not_whole(revision)),
                (Err(error), None) if is_about_space(&error) => return Err(self.full()),
                (Err(error), None) if is_about_objects(&error) => return Err(self.broken()),
                // The server gives nothing by an id: that leaves the branch.
                (Err(_), Some(TransportError::Refused { .. })) if origin.branch.is_some() => {}
                (Err(_), Some(TransportError::Refused { said })) if is_not_ours(&said) => {
                    return Err(FetchError::NotFound { revision: revision.clone() });
                }
                (Err(_), Some(error)) => return Err(error.into()),
                // Or knows nothing of single commits, or of shallow ones.
                (Err(_), None) if origin.branch.is_some() => {}
                (Err(error), None) if is_about_ids(&error) => {
                    return Err(FetchError::NotFound { revision: revision.clone() });
                }
                (Err(error), None) => return Err(FetchError::Git(boxed(error))),
            }
        }
        let Some(branch) = &origin.branch else {
            return Err(FetchError::NotFound { revision: revision.clone() });
        };
        let depth = self.repository.is_shallow().then_some(ALL_HISTORY);
        let (outcome, error) = get(&format!("+refs/heads/{branch}:{BRANCH}"), depth);
        match (outcome, error) {
            (Ok(()), _) => {}
            (Err(_), Some(error)) => return Err(error.into()),
            (Err(error), None) if is_about_space(&error) => return Err(self.full()),
            (Err(error), None) if is_about_objects(&error) => return Err(self.broken()),
            (Err(error), None) => return Err(FetchError::Git(boxed(error))),
        }
        let is_on = self.is_on_branch(revision);
        if !is_on {
            let (revision, branch) = (revision.clone(), branch.clone());
            return Err(FetchError::OffBranch { revision, branch });
        }
        if !self.has(revision) {
            return Err(self.not_whole(revision));
        }
        let id = Oid::from_str(revision.as_str());
        id.and_then(|id| self.repository.reference(&kept, id, true, "kept for its release"))
            .map(drop)
            .map_err(|error| FetchError::Git(boxed(error)))
    }

    fn run(&self, place: &Place, refspec: &str, depth: Option<i32>) -> Result<(), git2::Error> {
        let mut remote = self.repository.remote_anonymous(place.handle())?;
        // Deltas are resolved when all bytes are here, for as long as whoever made them pleases.
        let mut callbacks = RemoteCallbacks::new();
        callbacks.transfer_progress(|_| transport::goes_on());
        let mut options = FetchOptions::new();
        options.remote_callbacks(callbacks);
        options.download_tags(AutotagOption::None);
        if let Some(depth) = depth {
            options.depth(depth);
        }
        remote.fetch(&[refspec], Some(&mut options), None)
    }

    fn is_on_branch(&self, revision: &Revision) -> bool {
        let tip = self.repository.refname_to_id(BRANCH);
        let (Ok(tip), Ok(id)) = (tip, Oid::from_str(revision.as_str())) else { return false };
        tip == id || self.repository.graph_descendant_of(tip, id).unwrap_or(false)
    }

    /// Why an id that was fetched is no commit to check out.
    fn not_whole(&self, revision: &Revision) -> FetchError {
        let object = Oid::from_str(revision.as_str())
            .and_then(|id| self.repository.find_object(id, None))
            .ok()
            .and_then(|object| object.kind());
        match object {
            Some(kind) if kind != ObjectType::Commit => {
                FetchError::NoCommit { revision: revision.clone(), kind: kind.str() }
            }
            _ => self.broken(),
        }
    }

    fn full(&self) -> FetchError {
        FetchError::Disk { dir: self.dir.clone(), source: io::ErrorKind::StorageFull.into() }
    }

    fn broken(&self) -> FetchError {
        FetchError::Broken { dir: self.dir.clone() }
    }
}

/// Do the server's words say that it has no such commit for us?
fn is_not_ours(said: &str) -> bool {
    // upload-pack's own words; others say the like.
    said.contains("not our ref") || said.contains("unadvertised object")
}

/// Did libgit2 not even ask, because the server does not offer commits by their ids?
fn is_about_ids(error: &git2::Error) -> bool {
    error.message().contains("fetch a specific object")
}

/// Did the disk, or a quota on it, give no more? libgit2 has the operating system's words for it only.
fn is_about_space(error: &git2::Error) -> bool {
    let words = ["No space left on device", "Disk quota exceeded"];
    words.iter().any(|words| error.message().ends_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hung_address_leaves_time_for_the_next() {
        let seconds = Duration::from_secs;
        let cases =
            [("alone", 600, 0, 600), ("the first of two", 600, 1, 300), ("the last", 300, 0, 300)];
        for (rule, left, others, wanted) in cases {
            assert_eq!(share(seconds(left), others), seconds(wanted), "{rule}");
        }
    }
}
