//! Where a release lies, and by which recipe it is handled: one of our own, or what was adopted.

use std::path::PathBuf;

use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Find, Recipe};

use super::Tools;
use crate::error;
use crate::journal::Release;
use crate::release::Marker;

/// Reads the recipe of a complete release.
pub(crate) fn recipe_of(tools: &Tools, release: &Release) -> Result<Recipe, String> {
    let Release::Own(revision) = release else {
        let adopted = tools.config.adopted.as_ref().map(|adopted| adopted.recipe.clone());
        return adopted.ok_or_else(|| "host config has no [adopt]".to_owned());
    };
    let marker = marker_of(tools, revision)?;
    Recipe::parse(&marker.recipe).map_err(|error| error::chain(&error))
}

/// Reads what is noted of a complete release.
pub(super) fn marker_of(tools: &Tools, revision: &Revision) -> Result<Marker, String> {
    let marker = tools.store.marker(revision);
    marker.ok_or_else(|| format!("the release {} is not complete on disk", revision.short()))
}

/// Says how the manager of a recipe is found on this host: by an absolute path; `None` where it has none.
pub(crate) fn finder(tools: &Tools, recipe: &Recipe) -> Option<Find> {
    Some(match &recipe.manager.as_ref()?.find {
        // A relative one lies in a shared directory, as the recipe's own check has it.
        Find::PidFile(path) if !path.starts_with('/') => {
            Find::PidFile(tools.store.shared().join(path).display().to_string())
        }
        other => other.clone(),
    })
}

/// The release's own directory.
pub(super) fn directory(tools: &Tools, release: &Release) -> PathBuf {
    match release {
        Release::Own(revision) => tools.store.release(revision),
        Release::Adopted => adopted(tools),
    }
}

/// Where its commands run once it is live.
pub(super) fn home(tools: &Tools, release: &Release) -> PathBuf {
    match release {
        Release::Own(_) => tools.store.current(),
        Release::Adopted => adopted(tools),
    }
}

fn adopted(tools: &Tools) -> PathBuf {
    // Without [adopt] there is no recipe either, and nothing is done here.
    tools.config.adopted.as_ref().map_or_else(|| tools.store.current(), |own| own.dir.clone())
}

/// What is live, as far as the disk says: without a `current`, what was adopted may be.
pub(super) fn live(tools: &Tools) -> Option<Release> {
    let is_bare = tools.config.adopted.is_some() && tools.store.is_bare();
    tools.store.live().map(Release::Own).or_else(|| is_bare.then_some(Release::Adopted))
}
