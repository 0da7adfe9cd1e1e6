//! `towline-agent bake`: fills an app's directory while an image is built.
//!
//! ```text
//!   nothing runs ─► revision, or the branch's tip ─► prepared as for a deploy ─► `current` ─► identity gone
//! ```
//!
//! What lies on disk is baked: a newborn takes it where it is told nothing, or cannot have what it is
//! told. `current` leads to it, so that the app's own unit can start it also where the agent is broken;
//! where host config adopts what served before, that goes on to be what a bare directory means.
//!
//! Invariants
//! - Nothing is started, and nobody is told: no coordinator is asked.
//! - No token, no journal and no status is left: whoever boots from the image is a newborn with a name
//!   of its own.
//! - Until all of it is durable, what was there stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::report::Cause;

use crate::bootstrap::{self, StartError};
use crate::config::Config;
use crate::git::FetchError;
use crate::release::{Barrier, DiskError, failed};
use crate::shell::{self, Failed};

/// Why an image has no new release.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// As at the start of an agent.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Something of the app runs.
    #[error("the app of {} runs here", dir.display())]
    Serving {
        /// The app's directory.
        dir: std::path::PathBuf,
    },
    /// No revision, and no branch.
    #[error("no revision is named, and git.branch is not set")]
    NoBranch,
    /// The origin does not say what is on its branch.
    #[error("could not learn the newest commit of the branch")]
    Tip(#[source] FetchError),
    /// As in a deploy.
    #[error("{detail}")]
    Failed {
        /// Which step it was.
        cause: Cause,
        /// Why, with what to do.
        detail: String,
    },
    /// The disk says no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The work ended without an answer.
    #[error("a thread of the agent ended before its work was done")]
    Thread(#[from] tokio::task::JoinError),
}

impl BakeError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            BakeError::Start(source) => source.hint(),
            BakeError::Serving { .. } => Some(
                "a bake is for an image: stop the app first, or release the revision".to_owned(),
            ),
            BakeError::NoBranch => Some("name a full commit id, or set git.branch".to_owned()),
            BakeError::Tip(source) => source.hint(),
            BakeError::Disk(source) => source.hint(),
            // The detail holds its hint.
            BakeError::Failed { .. } | BakeError::Thread(_) => None,
        }
    }

    /// Is host config to blame?
    #[must_use]
    pub fn is_about_config(&self) -> bool {
        match self {
            BakeError::Start(source) => !source.is_temporary(),
            BakeError::NoBranch => true,
            _ => false,
        }
    }

    /// May trying again help?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            BakeError::Start(source) => source.is_temporary(),
            BakeError::Tip(source) => !source.is_refusal(),
            BakeError::Failed { cause, .. } => matches!(cause, Cause::Fetch | Cause::Disk),
            BakeError::Serving { .. } | BakeError::NoBranch => false,
            BakeError::Disk(_) | BakeError::Thread(_) => true,
        }
    }
}

/// What was baked.
#[derive(Debug)]
pub struct Baked {
    /// The revision.
    pub revision: Revision,
    /// How it went, in one line; `None` where it was there already.
    pub note: Option<String>,
}

/// Makes `revision`, or the newest of the branch, the release of an image.
///
/// # Errors
///
/// See [`BakeError`].
pub async fn bake(
    config: Config,
    revision: Option<Revision>,
    stop: &CancellationToken,
) -> Result<Baked, BakeError> {
    if revision.is_none() && config.git.branch.is_none() {
        return Err(BakeError::NoBranch);
    }
    let (tools, _lock) = bootstrap::workshop(config).await?;
    let store = tools.store.clone();
    if bootstrap::survey(&tools, None).await?.is_running {
        return Err(BakeError::Serving { dir: store.dir().to_owned() });
    }
    let barrier = Barrier::open(store.dir()).map_err(failed("open", store.dir()))?;
    let revision = match revision {
        Some(revision) => revision,
        None => tip(&tools, stop).await?,
    };
    tools.kept.replace(BTreeSet::from([revision.clone()]));
    let made = shell::make(&tools, &revision, None, stop).await;
    made.map_err(|Failed { cause, detail }| BakeError::Failed { cause, detail })?;
    let note = tools.saying.take_note();
    let (is_adopting, keep) = (tools.config.adopted.is_some(), tools.config.keep.clone());
    let baked = revision.clone();
    tokio::task::spawn_blocking(move || {
        store.forget_instance()?;
        if !is_adopting {
            store.swap(&baked)?;
        }
        shell::prune(&store, &keep, BTreeSet::from([baked]));
        // Caches too: an image may be taken of a host that is cut from its power.
        barrier.sync(store.dir()).map_err(failed("make durable", store.dir()))
    })
    .await??;
    Ok(Baked { revision, note })
}

async fn tip(tools: &shell::Tools, stop: &CancellationToken) -> Result<Revision, BakeError> {
    let (origin, handle, stop) = (Arc::clone(&tools.origin), Handle::current(), stop.clone());
    let asked = tokio::task::spawn_blocking(move || origin.tip(&handle, &stop)).await?;
    asked.map_err(BakeError::Tip)?.ok_or(BakeError::NoBranch)
}
