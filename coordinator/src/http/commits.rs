//! What the mirror knows, as views and refusals have it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use towline_protocol::api::{Code, CommitView, ErrorBody, ResolveView};
use towline_protocol::ids::{Group, Revision};
use towline_protocol::policy::Policy;
use tracing::debug;

use super::Api;
use super::errors::Refused;
use crate::error::chain;
use crate::mirror::{Described, Mirror, MirrorError};
use crate::records::GroupState;
use crate::rollout::operations::unknown_group;
use crate::views::told;

/// How many revisions of a group are looked up for one view.
const REVISIONS_MAX: usize = 200;

/// How long a view waits for the mirror; it is shown without subjects then.
const PATIENCE: Duration = Duration::from_secs(5);

impl Api {
    fn mirror_of<'a>(&'a self, policy: &'a Policy) -> Option<(&'a Mirror, &'a str)> {
        let url = policy.repository.as_deref().filter(|_| policy.has_mirror())?;
        Some((self.mirror()?, url))
    }

    /// Returns a group's policy.
    pub(crate) fn policy(&self, group: &Group) -> Result<Policy, Refused> {
        let policy = self.desk().read(|records| {
            let record = records.group(group)?.record.as_ref()?;
            Some(record.value.policy.clone())
        });
        policy.ok_or_else(|| unknown_group(group).into())
    }

    /// Returns what the mirror knows of a group's revisions, and of `more`. Nothing is fetched; git is
    /// asked, and waited for.
    pub(crate) async fn commits(
        &self,
        group: &Group,
        more: Option<&Revision>,
    ) -> BTreeMap<Revision, CommitView> {
        let Some((policy, target, revisions)) = self.shown(group, more) else {
            return BTreeMap::new();
        };
        let Some((mirror, url)) = self.mirror_of(&policy) else { return BTreeMap::new() };
        let described = mirror.describe(url, &revisions, target.as_ref());
        match tokio::time::timeout(PATIENCE, described).await {
            Ok(Ok(described)) => views(described),
            Ok(Err(error)) => {
                debug!(group = %group, error = chain(&error), "commits could not be described");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        }
    }

    /// Returns what is remembered of a group's revisions, and of `more`: for the answer to a change, which
    /// waits for nobody.
    pub(crate) fn commits_at_hand(
        &self,
        group: &Group,
        more: Option<&Revision>,
    ) -> BTreeMap<Revision, CommitView> {
        let found = self.shown(group, more).and_then(|(policy, target, revisions)| {
            let (mirror, url) = self.mirror_of(&policy)?;
            Some(views(mirror.remembered(url, &revisions, target.as_ref())))
        });
        found.unwrap_or_default()
    }

    /// A group's policy, its target, and the revisions that its views may show.
    fn shown(
        &self,
        group: &Group,
        more: Option<&Revision>,
    ) -> Option<(Policy, Option<Revision>, Vec<Revision>)> {
        self.desk().read(|records| {
            let state = records.group(group)?;
            let policy = state.record.as_ref()?.value.policy.clone();
            let target = state.target.as_ref().and_then(|kept| kept.value.target.revision.clone());
            Some((policy, target, revisions(state, more)))
        })
    }

    /// Makes sure that a revision is on the group's branch, where the group has a mirror.
    pub(crate) async fn check_commit(
        &self,
        group: &Group,
        revision: &Revision,
    ) -> Result<(), Refused> {
        let policy = self.policy(group)?;
        if !policy.has_mirror() {
            return Ok(());
        }
        let Some((mirror, url)) = self.mirror_of(&policy) else {
            let message = "the coordinator keeps no mirror that could check the commit";
            return Err(Refused::new(Code::Unavailable, message)
                .hint(format!("set mirror = false in {group} to release unchecked")));
        };
        let branch = &policy.branch;
        match mirror.is_on_branch(url, revision, branch).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let revision = revision.short();
                let message = format!(
                    "could not release {revision}: it is not on the branch {branch} of {url}"
                );
                Err(Refused::of_field("revision", message)
                    .hint(format!("push it to {branch}, or merge it; then release it again")))
            }
            // The branch is the group's own, not the request's.
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Says what a name means now.
    pub(crate) async fn resolve(&self, group: &Group, name: &str) -> Result<ResolveView, Refused> {
        let policy = self.policy(group)?;
        let Some((mirror, url)) = self.mirror_of(&policy) else {
            let message = format!("could not look up {}: {group} has no mirror", told::line(name));
            return Err(Refused::new(Code::Conflict, message)
                .hint("give a full commit id: `git rev-parse REV` prints it"));
        };
        let revision = mirror.resolve(url, name).await.map_err(|error| about(&error))?.revision;
        let on_branch = mirror.is_on_branch(url, &revision, &policy.branch).await;
        let on_branch = on_branch.map_err(|error| unavailable(&error))?;
        let commit = self.commits(group, Some(&revision)).await.remove(&revision);
        let commit = match commit {
            Some(commit) => commit,
            None => {
                let info = mirror.commit(url, &revision).await.map_err(|error| about(&error))?;
                view(revision, Described { commit: info, distance: None })
            }
        };
        Ok(ResolveView { name: told::line(name), commit, on_branch })
    }
}

/// The revisions that a group's views may show.
fn revisions(state: &GroupState, more: Option<&Revision>) -> Vec<Revision> {
    let target = state.target.as_ref().map(|kept| &kept.value.target);
    let rollout = state.rollout.as_ref().map(|kept| &kept.value.target);
    let targets = [target, rollout].into_iter().flatten();
    let named = targets.flat_map(|target| [&target.revision, &target.fallback, &target.not]);
    let reports = state.members().filter_map(|record| record.report.as_ref());
    let served = reports.flat_map(|report| [&report.serving, &report.alike]);
    let mut all: BTreeSet<&Revision> = BTreeSet::new();
    for revision in more.into_iter().chain(named.chain(served).flatten()) {
        if all.len() == REVISIONS_MAX {
            break;
        }
        all.insert(revision);
    }
    all.into_iter().cloned().collect()
}

fn views(described: BTreeMap<Revision, Described>) -> BTreeMap<Revision, CommitView> {
    let all = described.into_iter();
    all.map(|(revision, described)| (revision.clone(), view(revision, described))).collect()
}

fn view(revision: Revision, described: Described) -> CommitView {
    let Described { commit, distance } = described;
    CommitView {
        revision,
        subject: commit.subject,
        author: commit.author,
        authored: commit.authored,
        behind: distance.filter(|distance| distance.ahead == 0).map(|distance| distance.behind),
        ahead: distance.filter(|distance| distance.behind == 0).map(|distance| distance.ahead),
    }
}

/// The refusal for a name that the mirror cannot look up.
fn about(error: &MirrorError) -> Refused {
    if !error.is_about_name() {
        return unavailable(error);
    }
    let code = match error {
        MirrorError::Unknown { .. } => Code::NotFound,
        _ => Code::Invalid,
    };
    let message = told::line(&error.to_string());
    let field = Some("name".to_owned());
    ErrorBody { code, message, hint: error.hint(), field }.into()
}

fn unavailable(error: &MirrorError) -> Refused {
    let message = told::line(&chain(error));
    ErrorBody { code: Code::Unavailable, message, hint: error.hint(), field: None }.into()
}
