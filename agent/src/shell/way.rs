//! What keeps a swap from beginning on this host; and by which recipes a manager is looked for, of which
//! there may be several.

use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::Find;

use super::activate::{hinted, look};
use super::place::{self, finder, recipe_of};
use super::probe::answers;
use super::{Tools, unit};
use crate::journal::Release;
use crate::release::Marker;

/// Can a swap to this release begin on this host? What keeps it from beginning is found here, before
/// anything is journalled or touched, and says nothing about the release.
///
/// # Errors
///
/// What is in the way, and what to do about it.
pub(super) async fn check_way(
    tools: &Tools,
    to: &Release,
    stop: &CancellationToken,
) -> Result<(), String> {
    tools.store.check_current().map_err(|error| hinted(&error, error.hint()))?;
    let managers = Managers::of(tools, to, None)?;
    // A status command is run once the swap is due, and not for the sake of a look.
    let by_file = managers.all().filter(|(find, _)| !matches!(find, Find::Status(_)));
    unit::check(tools, to, stop).await?;
    let (mut is_found, mut count) = (false, 0);
    for (find, of) in by_file {
        let found = look(tools, find, of, stop).await;
        is_found |= found.map_err(|error| hinted(&error, error.hint()))?.is_some();
        count += 1;
    }
    if is_found || count < managers.all().count() { Ok(()) } else { check_lost(tools).await }
}

/// With no manager found: does the app answer all the same? Then another one must not be started
/// beside it, and what would come of that says nothing about a release.
pub(super) async fn check_lost(tools: &Tools) -> Result<(), String> {
    let Some(live) = place::live(tools) else { return Ok(()) };
    let Ok(recipe) = recipe_of(tools, &live) else { return Ok(()) };
    // Without a manager nothing is to be found, and nothing is started beside what answers.
    let Some(find) = finder(tools, &recipe) else { return Ok(()) };
    if !answers(tools, &recipe, &live).await {
        return Ok(());
    }
    let by = named(&find);
    Err(format!(
        "the app answers as {}, and {by} names no manager of it (put the pid back, or stop the app \
         once)",
        live.short()
    ))
}

/// What tells whether a manager runs.
pub(super) fn named(find: &Find) -> String {
    match find {
        Find::PidFile(path) => format!("the pid file {path}"),
        Find::Status(command) => format!("the status command `{command}`"),
        Find::Unit(unit) => format!("the unit {unit}"),
    }
}

/// How the managers are found that may run now, and the one that is to run.
pub(super) struct Managers {
    /// `None` where the recipe names none.
    pub(super) incoming: Option<(Find, Release)>,
    /// By other recipes: that of what `current` names, and that of what served before. They differ
    /// where a killed agent left a swap half done, at a boot that goes down its ladder, and where what
    /// was adopted is left.
    pub(super) outgoing: Vec<(Find, Release)>,
    /// What is on disk of the release that the running manager was started or reloaded for.
    pub(super) old: Option<Marker>,
}

impl Managers {
    pub(super) fn of(tools: &Tools, to: &Release, from: Option<&Release>) -> Result<Self, String> {
        let incoming = finder(tools, &recipe_of(tools, to)?).map(|find| (find, to.clone()));
        let live = place::live(tools);
        let others = [live.as_ref(), from].into_iter().flatten().filter(|other| *other != to);
        let mut outgoing: Vec<(Find, Release)> = Vec::new();
        let mut old = None;
        for other in others {
            old = old.or_else(|| tools.store.marker(other.own()?));
            let Ok(recipe) = recipe_of(tools, other) else { continue };
            let Some(find) = finder(tools, &recipe) else { continue };
            let is_known = |(known, _): &(Find, Release)| *known == find;
            if !incoming.iter().chain(&outgoing).any(is_known) {
                outgoing.push((find, other.clone()));
            }
        }
        Ok(Self { incoming, outgoing, old })
    }

    fn all(&self) -> impl Iterator<Item = &(Find, Release)> {
        self.incoming.iter().chain(&self.outgoing)
    }
}
