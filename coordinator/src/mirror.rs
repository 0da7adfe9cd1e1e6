//! The mirror: the coordinator's clones of its groups' repositories, kept by the `git` program.
//!
//! It says what a name means, whether a commit is on the allowed branch, what a commit says of itself,
//! and how far one revision is behind another. It gives no files, and decides nothing.
//!
//! ```text
//!   resolve, is_on_branch ──► refresh ──► names, history      may go out, and wait for the origin
//!   commit, distance, describe ─────────► history             never go out: a view must not wait
//!   remembered ─────────────────────────► history             does not even ask git: nor must a change
//!                                │             │
//!                           repository: one bare clone, one writer, any number of readers
//!                                │
//!                             program: git, its settings, its surroundings ──► child: one process
//! ```
//!
//! Invariants
//! - Only `refs/heads/*` and `refs/tags/*` are fetched, with git's checks on and replaced objects off.
//! - Nothing that somebody else wrote reaches git as anything but a checked ref's name, a full id, or
//!   an address behind `--end-of-options`.
//! - Each child has a deadline, and is killed with what it started when that passes or nobody waits for
//!   it any longer. What it says is bounded.
//! - An origin that is away changes no answer about what was fetched before.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use towline_protocol::ids::Revision;

mod child;
mod credential;
mod error;
mod history;
mod names;
mod program;
mod repository;
mod said;
mod space;

pub use credential::{Credential, CredentialError, Secret};
pub use error::MirrorError;
pub use history::{CommitInfo, Described, Distance};
pub use names::{Kind, Resolved};
pub use said::{Said, Trouble};

use names::{Name, is_plain};
use program::Git;
use repository::{Repository, Wanted};
use said::{short_line, without_users};
use space::Space;

/// The variables of the coordinator's environment that git may get, where the configuration gives them.
pub const PASSED: &[&str] = &[
    "PATH",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
    "HTTPS_PROXY",
    "https_proxy",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// How recent a fetch must be for a word on what is on a branch: a release resolves its name just
/// before it asks, and then fetches once.
const BRANCH_AGE_MAX: Duration = Duration::from_secs(30);

/// How long one fetch may take unless the configuration says otherwise; a first clone is one.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// How much space stays free unless the configuration says otherwise: 1 GiB.
const FREE_MIB: u64 = 1024;

/// How much memory each process of git may have unless the configuration says otherwise: 2 GiB.
const MEMORY_MIB: u64 = 2048;

/// How mirrors are kept.
#[derive(Debug, Clone)]
pub struct MirrorConfig {
    /// The directory of all clones; made where there is none.
    pub dir: PathBuf,
    /// The program; `git`, looked up on `PATH`.
    pub git: PathBuf,
    /// How long one fetch may take; 600 s.
    pub fetch_timeout: Duration,
    /// How much space stays free: with less nothing is fetched; 1,024 MiB.
    pub free_mib: u64,
    /// How much memory each process of git may have; 2,048 MiB.
    pub memory_mib: u64,
    /// What https origins want to see.
    pub credentials: Vec<Credential>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Variables for git; those that are not in [`PASSED`] are left out.
    pub environment: Vec<(String, String)>,
    /// Fetch `file://` addresses too; for tests.
    pub allow_file: bool,
}

impl MirrorConfig {
    /// Returns the defaults, for clones in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            git: PathBuf::from("git"),
            fetch_timeout: FETCH_TIMEOUT,
            free_mib: FREE_MIB,
            memory_mib: MEMORY_MIB,
            credentials: Vec::new(),
            ca_file: None,
            environment: Vec::new(),
            allow_file: false,
        }
    }
}

/// The clones of all groups' repositories.
///
/// A repository is named by its address, as `towline_protocol::policy` has checked it. One value is
/// shared by all who ask; two on one directory would write into each other's clones.
#[derive(Debug)]
pub struct Mirror {
    git: Arc<Git>,
    space: Space,
    allow_file: bool,
    repositories: Mutex<BTreeMap<String, Arc<Repository>>>,
}

impl Mirror {
    /// Makes the directory, and fetches nothing.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn new(mut config: MirrorConfig) -> Result<Mirror, MirrorError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.dir);
        // Children run in it, and are given paths below it.
        config.dir = made.and_then(|()| config.dir.canonicalize()).map_err(|error| {
            MirrorError::Disk { dir: config.dir.clone(), source: Said::of(&error) }
        })?;
        let git = Arc::new(Git::new(&config));
        let space = Space { dir: config.dir, free_mib: config.free_mib };
        let allow_file = config.allow_file;
        Ok(Mirror { git, space, allow_file, repositories: Mutex::default() })
    }

    /// Makes sure that git is there and new enough. Every other call does so too; this one is for a
    /// coordinator that wants to say so when it starts.
    ///
    /// # Errors
    ///
    /// [`MirrorError::Start`] and [`MirrorError::TooOld`].
    pub async fn check(&self) -> Result<(), MirrorError> {
        self.git.check().await
    }

    /// Fetches, unless a fetch began less than `if_older_than` ago. Callers that come while one is
    /// under way wait for it, and share how it ended.
    ///
    /// A repository that was not fetched before is cloned, and a clone that was found to be broken is
    /// made anew.
    ///
    /// # Errors
    ///
    /// What kept the fetch from succeeding, or the last one where that is recent enough.
    pub async fn refresh(&self, url: &str, if_older_than: Duration) -> Result<(), MirrorError> {
        self.repository(url)?.refresh(Wanted::Within(if_older_than)).await
    }

    /// Says which commit a name means.
    ///
    /// A full id is that commit, whatever branches are called. `refs/heads/…` and `refs/tags/…` are
    /// exactly that branch or tag. Anything else may be a branch, a tag, which is followed to its
    /// commit, or the first four or more digits of a commit's id; a name that means more than one
    /// commit in these ways is refused. Only what branches and tags hold is known.
    ///
    /// Fetches first where the name is a branch, a tag, or not known.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]; [`MirrorError::is_about_name`] tells bad names from a mirror that cannot
    /// answer.
    pub async fn resolve(&self, url: &str, name: &str) -> Result<Resolved, MirrorError> {
        let asked = Instant::now();
        let repository = self.repository(url)?;
        let name_given = name;
        let name = Name::new(name)?;
        if repository.is_there() {
            match repository.look_up(&name).await {
                Ok(found) if !found.may_move() => return Ok(found),
                // What else it may be is in doubt until the origin was asked.
                Ok(_) | Err(MirrorError::Broken { .. }) => {}
                Err(error) if error.is_about_name() => {}
                Err(error) => return Err(error),
            }
        }
        // One that was under way may have asked the origin before the name was there.
        repository.refresh(Wanted::Since(asked)).await?;
        match repository.look_up(&name).await {
            Err(MirrorError::Unknown { name, url, .. }) => {
                let candidates = repository.similar(name_given).await;
                Err(MirrorError::Unknown { name, url, candidates })
            }
            other => other,
        }
    }

    /// Is this commit part of the branch's history, as the origin has it now? `false` where it is not
    /// known at all.
    ///
    /// Fetches, unless a fetch that succeeded began in the last 30 seconds and brought the commit: a no is
    /// always a fresh one.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]: the origin is away, or has no such branch.
    pub async fn is_on_branch(
        &self,
        url: &str,
        revision: &Revision,
        branch: &str,
    ) -> Result<bool, MirrorError> {
        if !is_plain(branch) {
            return Err(MirrorError::Name { name: short_line(branch, 80) });
        }
        let asked = Instant::now();
        let repository = self.repository(url)?;
        repository.refresh(Wanted::Good(BRANCH_AGE_MAX)).await?;
        match repository.is_below(revision, branch).await {
            Ok(Some(true)) => return Ok(true),
            // Branch or commit may have been pushed since: a no is asked for anew.
            Ok(Some(false) | None) | Err(MirrorError::Broken { .. }) => {}
            Err(error) => return Err(error),
        }
        repository.refresh(Wanted::Since(asked)).await?;
        if let Some(is_on) = repository.is_below(revision, branch).await? {
            return Ok(is_on);
        }
        let candidates = repository.similar(branch).await;
        Err(MirrorError::Unknown { name: branch.to_owned(), url: repository.shown(), candidates })
    }

    /// Says what a commit says of itself. Fetches nothing.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]; the commit may not be known.
    pub async fn commit(&self, url: &str, revision: &Revision) -> Result<CommitInfo, MirrorError> {
        self.repository(url)?.commit(revision).await
    }

    /// Counts how `from` lies to `to`; `None` where one of them is not known, or their histories have
    /// nothing in common. Fetches nothing.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`].
    pub async fn distance(
        &self,
        url: &str,
        from: &Revision,
        to: &Revision,
    ) -> Result<Option<Distance>, MirrorError> {
        self.repository(url)?.distance(from, to).await
    }

    /// Tells about many commits at once, and how they lie to `target`; those that are not known are left
    /// out. Fetches nothing, and asks git once for all of them, save for distances that it has not
    /// counted before.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`].
    pub async fn describe(
        &self,
        url: &str,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> Result<BTreeMap<Revision, Described>, MirrorError> {
        self.repository(url)?.describe(revisions, target).await
    }

    /// Tells about many commits what was found out before, by [`Mirror::describe`] for one. Asks nobody, and
    /// waits for nothing.
    #[must_use]
    pub fn remembered(
        &self,
        url: &str,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> BTreeMap<Revision, Described> {
        let repository = self.repository(url);
        repository.map(|own| own.remembered(revisions, target)).unwrap_or_default()
    }

    /// Removes the clones of all repositories but these, save those that somebody is at. Returns how many
    /// there were. It waits for the disk.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or something in it cannot be removed.
    pub fn keep_only(&self, named: &BTreeSet<String>) -> Result<usize, MirrorError> {
        let gone = self.put_aside(named);
        let removed = gone.and_then(|gone| {
            gone.iter().try_for_each(fs::remove_dir_all)?;
            Ok(gone.len())
        });
        removed.map_err(|error| MirrorError::Disk {
            dir: self.space.dir.clone(),
            source: Said::of(&error),
        })
    }

    /// Puts aside what is to be removed, while nobody can begin to use it.
    fn put_aside(&self, named: &BTreeSet<String>) -> io::Result<Vec<PathBuf>> {
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        repositories.retain(|url, own| named.contains(url) || is_in_use(own));
        let kept = named.iter().chain(repositories.keys()).map(|url| repository::name_of(url));
        let kept: BTreeSet<String> = kept.collect();
        let mut gone = Vec::new();
        for entry in fs::read_dir(&self.space.dir)? {
            let path = entry?.path();
            let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
            let (Some(name), Some(end)) = (part(path.file_stem()), part(path.extension())) else {
                continue;
            };
            if kept.contains(&name) || !repository::ENDS.contains(&end.as_str()) {
                continue;
            }
            if end == repository::GONE {
                gone.push(path);
                continue;
            }
            // Of one name there may be several. What a removal left that was cut off goes first.
            let aside = self.space.dir.join(format!("{name}-{end}.{}", repository::GONE));
            if !aside.exists() {
                fs::rename(&path, &aside)?;
                gone.push(aside);
            }
        }
        Ok(gone)
    }

    fn repository(&self, url: &str) -> Result<Arc<Repository>, MirrorError> {
        // Groups' addresses were checked when they were set; this holds also where they were not.
        let is_plain = url.chars().all(|c| c.is_ascii_graphic()) && url.len() <= 4096;
        let is_known = ["https://", "http://", "ssh://"].iter().any(|form| url.starts_with(form))
            || (self.allow_file && url.starts_with("file:///"))
            || (!url.contains("://") && !url.starts_with('/') && url.contains(':'));
        if !is_plain || !is_known || url.starts_with('-') || url.contains("::") {
            let url = short_line(&without_users(url), 200);
            return Err(MirrorError::Address { url });
        }
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = repositories
            .entry(url.to_owned())
            .or_insert_with(|| Arc::new(Repository::new(self.git.clone(), &self.space, url)));
        Ok(repository.clone())
    }
}

/// Has somebody a hand on it, or a child that was left?
fn is_in_use(repository: &Arc<Repository>) -> bool {
    Arc::strong_count(repository) > 1 || repository.is_written()
}

#[cfg(test)]
mod tests;
