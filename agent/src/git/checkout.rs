//! A local checkout, as `towline-agent try` looks at it: what is committed there, by the `git` program.
//!
//! The program and not libgit2, since it knows whom the user trusts (`safe.directory`), and what a work
//! tree, a sparse or a shared clone is. Objects are lent, not copied: nothing is written there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use towline_protocol::ids::Revision;

use super::cache::Cache;
use super::fetch::FetchError;

/// What is committed in a checkout.
#[derive(Debug)]
pub struct Checkout {
    /// The commit that is checked out.
    pub revision: Revision,
    /// Its first line.
    pub subject: String,
    /// How many files differ from it, or are new.
    pub changed: usize,
    objects: PathBuf,
}

/// Why a checkout cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// The program could not be run.
    #[error("could not run git")]
    Program(#[source] io::Error),
    /// It says no.
    #[error("could not read the checkout {}: {said}", dir.display())]
    Refused {
        /// The checkout.
        dir: PathBuf,
        /// Git's own words.
        said: String,
    },
    /// The commit cannot be read whole.
    #[error("{} lacks objects of {revision}", dir.display())]
    NotWhole {
        /// The checkout.
        dir: PathBuf,
        /// The commit.
        revision: Revision,
    },
    /// The cache could not be made.
    #[error(transparent)]
    Cache(#[from] FetchError),
    /// The cache could not be told of the objects.
    #[error("could not write {}", path.display())]
    Lend {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl CheckoutError {
    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            CheckoutError::Program(_) => Some("install git".to_owned()),
            CheckoutError::Refused { .. } => {
                Some("name the top of a checkout with at least one commit".to_owned())
            }
            CheckoutError::NotWhole { .. } => {
                Some("make the clone whole: git fetch --refetch --no-filter".to_owned())
            }
            CheckoutError::Cache(source) => source.hint(),
            CheckoutError::Lend { .. } => None,
        }
    }
}

impl Checkout {
    /// Looks at the checkout in `dir`; nothing of it is run.
    ///
    /// # Errors
    ///
    /// See [`CheckoutError`].
    pub fn open(dir: &Path) -> Result<Self, CheckoutError> {
        let head = git(dir, &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]);
        let head = head.map_err(|error| match error {
            CheckoutError::Refused { dir, said } if said.is_empty() => {
                CheckoutError::Refused { dir, said: "nothing is committed".to_owned() }
            }
            other => other,
        })?;
        let Ok(revision) = head.trim().parse::<Revision>() else {
            let said = format!("{:?} is no commit id", head.trim());
            return Err(CheckoutError::Refused { dir: dir.to_owned(), said });
        };
        let objects = git(dir, &["rev-parse", "--git-path", "objects"])?;
        let objects = dir.join(objects.trim_end_matches('\n'));
        let objects = objects
            .canonicalize()
            .map_err(|source| CheckoutError::Lend { path: objects.clone(), source })?;
        let subject = git(dir, &["log", "-1", "--format=%s", head.trim()])?;
        let changed = changed(dir)?;
        Ok(Self { revision, subject: subject.trim().to_owned(), changed, objects })
    }

    /// Makes a cache in `cache` that has the checkout's objects for its own.
    ///
    /// # Errors
    ///
    /// See [`CheckoutError`].
    pub fn lend(&self, dir: &Path, cache: &Path) -> Result<(), CheckoutError> {
        drop(Cache::open(cache)?);
        let path = cache.join("objects/info/alternates");
        let lend = |source| CheckoutError::Lend { path: path.clone(), source };
        fs::create_dir_all(cache.join("objects/info")).map_err(lend)?;
        fs::write(&path, format!("{}\n", self.objects.display())).map_err(lend)?;
        if !Cache::open(cache)?.has(&self.revision) {
            let (dir, revision) = (dir.to_owned(), self.revision.clone());
            return Err(CheckoutError::NotWhole { dir, revision });
        }
        Ok(())
    }
}

/// Counts the files that differ from what is committed. Where the repository's own configuration names
/// filters they would be run for that, so that nothing is counted.
fn changed(dir: &Path) -> Result<usize, CheckoutError> {
    let filters = ["config", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$"];
    if git(dir, &filters).is_ok_and(|named| !named.trim().is_empty()) {
        return Ok(0);
    }
    let asked = ["status", "--porcelain=v1", "-z", "--no-renames", "--ignore-submodules=all"];
    let status = git(dir, &asked)?;
    Ok(status.split('\0').filter(|entry| !entry.is_empty()).count())
}

fn git(dir: &Path, arguments: &[&str]) -> Result<String, CheckoutError> {
    let output = Command::new("git")
        // Nothing that the repository's own configuration names may be run.
        .args(["-c", "core.fsmonitor=false", "-c", "log.showSignature=false"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_NO_LAZY_FETCH", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| match fs::metadata(dir) {
            Ok(_) => CheckoutError::Program(source),
            Err(error) => CheckoutError::Refused { dir: dir.to_owned(), said: error.to_string() },
        })?;
    if !output.status.success() {
        let said = crate::shown::one_line(String::from_utf8_lossy(&output.stderr).trim());
        return Err(CheckoutError::Refused { dir: dir.to_owned(), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
