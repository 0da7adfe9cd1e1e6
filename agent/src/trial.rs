//! `towline-agent try`: prepares a release of a local checkout, and swaps nothing.
//!
//! ```text
//!   DIR: HEAD ─► objects lent to a scratch place ─► prepared as for a deploy ─► told, and removed
//! ```
//!
//! A deploy sees what is committed, and so does this: files that differ are told and not tried. The
//! steps are a deploy's own, so that what passes here fails there for other reasons only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::poll::LogPart;

use crate::bootstrap::{self, StartError};
use crate::config::{Config, Git, Keep};
use crate::git::{Checkout, CheckoutError};
use crate::release::remove_tree;
use crate::shell;

/// Why a checkout could not be tried, or did not pass.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The checkout.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    /// The scratch place.
    #[error("could not use {}", dir.display())]
    Scratch {
        /// The place.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// As at the start of an agent.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A deploy would end here.
    #[error("{detail}")]
    Failed {
        /// Why, with what to do.
        detail: String,
        /// What its commands said.
        parts: Vec<LogPart>,
    },
}

impl TrialError {
    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            TrialError::Checkout(source) => source.hint(),
            TrialError::Scratch { source, .. } => (source.kind() == io::ErrorKind::AlreadyExists)
                .then(|| "name a directory that is not there yet".to_owned()),
            TrialError::Start(StartError::NoUser { .. }) => Some(
                "name an account: --user nobody; nothing from a repository runs as root".to_owned(),
            ),
            TrialError::Start(source) => source.hint(),
            TrialError::Failed { .. } => None,
        }
    }

    /// Is host config, or what stands for it, to blame?
    #[must_use]
    pub fn is_about_config(&self) -> bool {
        matches!(self, TrialError::Start(source) if !source.is_temporary())
    }
}

/// What was tried.
#[derive(Debug)]
pub struct Tried {
    /// The commit.
    pub revision: Revision,
    /// Its first line.
    pub subject: String,
    /// How many files differ from it, and were not tried.
    pub changed: usize,
    /// How it went, in one line.
    pub note: String,
    /// The release, where it was to be kept.
    pub release: Option<PathBuf>,
}

/// A place that is removed with all that is in it, unless it is to be kept.
struct Scratch {
    dir: PathBuf,
    is_kept: bool,
}

impl Scratch {
    fn make(temporary: &Path, keep: Option<&Path>) -> Result<Self, TrialError> {
        let name = format!("towline-try-{}", std::process::id());
        let dir = keep.map_or_else(|| temporary.join(name), Path::to_owned);
        let failed = |source| TrialError::Scratch { dir: dir.clone(), source };
        fs::create_dir(&dir).map_err(failed)?;
        let scratch = Self { dir: dir.canonicalize().map_err(failed)?, is_kept: keep.is_some() };
        // The app's user looks into it, where that is another one.
        fs::set_permissions(&scratch.dir, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(remove_tree(&self.dir));
        }
    }
}

/// How it is tried.
#[derive(Debug)]
pub struct Trial {
    /// The top of a checkout.
    pub dir: PathBuf,
    /// Host config to go by, as far as it is about how releases are made.
    pub config: Option<Config>,
    /// Who runs the commands, where host config does not say.
    pub user: Option<String>,
    /// Where scratch places are made.
    pub temporary: PathBuf,
    /// Where the release stays, instead of nowhere.
    pub keep: Option<PathBuf>,
}

impl Trial {
    /// Prepares a release of what is committed. `environment`: what children get of it, where there is no
    /// host config.
    ///
    /// # Errors
    ///
    /// See [`TrialError`]; nothing is left behind.
    pub async fn run(
        self,
        environment: BTreeMap<String, String>,
        stop: &CancellationToken,
    ) -> Result<Tried, TrialError> {
        let checkout = Checkout::open(&self.dir)?;
        let mut scratch = Scratch::make(&self.temporary, self.keep.as_deref())?;
        let blank = Config::blank(&scratch.dir, self.user, environment);
        let config = match self.config {
            None => blank,
            Some(config) => Config {
                git: Git { recipe: config.git.recipe.clone(), ..blank.git },
                dir: blank.dir,
                source: blank.source,
                user: blank.user.or(config.user),
                // What may be short here is another host's disk.
                keep: Keep { free_mib: 0, ..config.keep },
                adopted: None,
                ..config
            },
        };
        let (tools, _lock) = bootstrap::workshop(config).await?;
        checkout.lend(&self.dir, &tools.store.git_cache())?;
        if let Err(failed) = shell::make(&tools, &checkout.revision, None, stop).await {
            scratch.is_kept = false;
            let log = tools.saying.take_log(checkout.revision, &failed.detail);
            return Err(TrialError::Failed { detail: failed.detail, parts: log.parts });
        }
        let note = tools.saying.take_note().unwrap_or_default();
        let kept = scratch.is_kept.then(|| tools.store.release(&checkout.revision));
        let Checkout { revision, subject, changed, .. } = checkout;
        Ok(Tried { revision, subject, changed, note, release: kept })
    }
}
