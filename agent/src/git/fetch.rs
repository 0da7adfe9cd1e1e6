//! The cache: one bare repository that fetches go to, and that may be thrown away at any time.
//!
//! ```text
//!   by commit id, depth 1 ──refused──► the branch with its history ──► is the commit on it?
//! ```
//!
//! One writer: the caller holds the app's lock, so a lock file of git's is always a leftover.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use git2::{
    AutotagOption, ErrorClass, FetchOptions, ObjectType, Oid, RemoteCallbacks, Repository,
    RepositoryInitOptions,
};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;

use super::Origin;
use super::http::{self, Room, TransportError};

/// The refs that keep releases' commits.
const RELEASES: &str = "refs/towline/releases/";

/// The ref that the allowed branch is fetched to.
const BRANCH: &str = "refs/towline/branch";

/// How libgit2 is told to fetch all history into a shallow repository; 0 would leave it shallow.
const ALL_HISTORY: i32 = i32::MAX;

/// The cache repository.
pub struct Cache {
    pub(super) repository: Repository,
    dir: PathBuf,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.dir).finish_non_exhaustive()
    }
}

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
            FetchError::Disk { .. } | FetchError::Transport(TransportError::Space { .. })
        )
    }

    /// Will it be the same every time?
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, FetchError::NoCommit { .. } | FetchError::Sha256 { .. })
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
            FetchError::Broken { .. } | FetchError::Git(_) => None,
        }
    }
}

/// Boxes an error of git2, so that its type stays here.
pub(super) fn boxed(error: git2::Error) -> Box<dyn std::error::Error + Send + Sync> {
    error.message().to_owned().into()
}

impl Cache {
    /// Opens the cache in `dir`; makes it where there is none, or where it cannot be opened.
    ///
    /// # Errors
    ///
    /// Where it cannot be made.
    pub fn open(dir: &Path) -> Result<Cache, FetchError> {
        let disk = |source| FetchError::Disk { dir: dir.to_owned(), source };
        if dir.exists() {
            remove_locks(dir).map_err(disk)?;
            match Repository::open_bare(dir) {
                Ok(repository) if repository.is_bare() => {
                    return Ok(Cache { repository, dir: dir.to_owned() });
                }
                _ => set_aside(dir).map_err(disk)?,
            }
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).mkdir(true).no_reinit(true);
        let repository = Repository::init_opts(dir, &options)
            .map_err(|error| disk(io::Error::other(error.message().to_owned())))?;
        Ok(Cache { repository, dir: dir.to_owned() })
    }

    /// Is this commit here, with its whole tree? An interrupted fetch, or an emptied object, counts
    /// as not.
    #[must_use]
    pub fn has(&self, revision: &Revision) -> bool {
        self.is_whole(revision).unwrap_or(false)
    }

    fn is_whole(&self, revision: &Revision) -> Result<bool, git2::Error> {
        let odb = self.repository.odb()?;
        let commit = self.repository.find_commit(Oid::from_str(revision.as_str())?)?;
        let mut trees = vec![commit.tree_id()];
        // Each object is looked at once: nested identical trees cost nothing.
        let mut seen = BTreeSet::new();
        while let Some(id) = trees.pop() {
            if !seen.insert(id) {
                continue;
            }
            for entry in self.repository.find_tree(id)?.iter() {
                match entry.kind() {
                    Some(ObjectType::Tree) => trees.push(entry.id()),
                    Some(ObjectType::Blob) if seen.insert(entry.id()) => {
                        // The header of an emptied file cannot be read; its name would exist.
                        odb.read_header(entry.id())?;
                    }
                    _ => {}
                }
            }
        }
        Ok(true)
    }

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
        // One for all rounds: by id, by the branch, and both once more in a new cache.
        let deadline = Instant::now() + origin.total;
        match self.attempt(origin, revision, handle, stop, room, deadline) {
            Err(FetchError::Broken { .. }) => {
                let disk = |source| FetchError::Disk { dir: self.dir.clone(), source };
                set_aside(&self.dir).map_err(disk)?;
                *self = Cache::open(&self.dir)?;
                self.attempt(origin, revision, handle, stop, room, deadline)?;
                Ok(Fetched { set_aside: true })
            }
            other => other.map(|()| Fetched { set_aside: false }),
        }
    }

    fn attempt(
        &self,
        origin: &Origin,
        revision: &Revision,
        handle: &Handle,
        stop: &CancellationToken,
        room: &Room,
        deadline: Instant,
    ) -> Result<(), FetchError> {
        let get = |refspec: &str, depth: Option<i32>| {
            http::with(origin, handle, stop, room, deadline, || self.run(origin, refspec, depth))
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

    fn run(&self, origin: &Origin, refspec: &str, depth: Option<i32>) -> Result<(), git2::Error> {
        let mut remote = self.repository.remote_anonymous(origin.url.as_str())?;
        // Deltas are resolved when all bytes are here, for as long as whoever made them pleases.
        let mut callbacks = RemoteCallbacks::new();
        callbacks.transfer_progress(|_| http::goes_on());
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

    /// Lets go of the commits of releases that are no more.
    ///
    /// # Errors
    ///
    /// Where the refs cannot be read or removed.
    pub fn keep(&self, releases: &[Revision]) -> Result<(), FetchError> {
        let failed = |error| FetchError::Git(boxed(error));
        let found = self.repository.references_glob(&format!("{RELEASES}*")).map_err(failed)?;
        for reference in found {
            let mut reference = reference.map_err(failed)?;
            let name = reference.name().ok().and_then(|name| name.strip_prefix(RELEASES));
            let is_kept =
                name.is_some_and(|name| releases.iter().any(|kept| kept.as_str() == name));
            if !is_kept {
                reference.delete().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Returns how much disk the cache takes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        crate::release::size_bytes(&self.dir)
    }
}

/// Errors of objects that are there and cannot be read; those of the network have another class.
pub(super) fn is_about_objects(error: &git2::Error) -> bool {
    // Of a list of shallow commits that is none; the class is not among those that git2 knows.
    let is_shallow = error.message().contains("graft");
    is_shallow
        || matches!(
            error.class(),
            ErrorClass::Odb
                | ErrorClass::Object
                | ErrorClass::Zlib
                | ErrorClass::Tree
                | ErrorClass::Repository
                | ErrorClass::Reference
        )
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

/// Removes what a killed git left; at the places where it puts them.
fn remove_locks(dir: &Path) -> io::Result<()> {
    let mut dirs =
        vec![dir.to_owned(), dir.join("refs/towline"), dir.join("refs/towline/releases")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "lock") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Moves a broken cache out of the way; one is kept for whoever wants to know why.
fn set_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.with_extension("broken");
    crate::release::remove_tree(&aside)?;
    fs::rename(dir, aside)
}
