//! What begins a rollout to a revision: what it would do is said first, then it is done.

use reqwest::Method;
use towline_protocol::api::{
    CommitView, GroupView, InstanceView, PlanView, ReleaseRequest, ResolveView, RollbackRequest,
    RolloutView,
};
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::rollout::State;

use crate::arguments::{Proposal, Release, full_id};
use crate::commands::{CommandError, Context, Ended, rollouts, watch};
use crate::exit::Exit;
use crate::render::rollout::has_chosen;
use crate::render::{Line, plan as text, summary};

/// What a release would do, and what is said of it.
struct Prospect {
    group: GroupView,
    view: PlanView,
    head: Vec<Line>,
}

/// Shows what a release would do.
pub(crate) async fn plan(context: &Context<'_>, proposal: &Proposal) -> Ended {
    let Prospect { view, head, .. } = look(context, proposal).await?;
    let is_refused = view.refused.clone();
    // What would be refused has no batches to show.
    let plan = if is_refused.is_none() { text::plan(&view) } else { Vec::new() };
    context.answer("plan", &view, || [head, plan].concat())?;
    match is_refused {
        Some(body) => Err(CommandError::Refused(Box::new(body))),
        None => Ok(Exit::Done),
    }
}

/// Takes a group to a revision.
pub(crate) async fn release(context: &Context<'_>, release: &Release) -> Ended {
    let proposal = &release.proposal;
    let Prospect { group, view, head } = look(context, proposal).await?;
    if let Some(same) = begun_already(context, &group, &view.revision, proposal).await? {
        if same.state == State::Converged {
            let lines = || [head, vec![summary::already(&same, &view.counts)]].concat();
            return context.answer("rollout", &same, lines);
        }
        if !context.screen.is_json() {
            context.screen.print(&head)?;
        }
        context.screen.remark("this release has begun already");
        return conclude(context, same, release.watch).await;
    }
    // What would be refused has no plan.
    let outline = view.refused.is_none().then(|| text::outline(&view));
    let lines = [head, outline.into_iter().collect()].concat();
    if !context.screen.is_json() {
        context.screen.print(&lines)?;
    }
    if let Some(body) = view.refused {
        return Err(CommandError::Refused(Box::new(body)));
    }
    let request = ReleaseRequest {
        revision: view.revision,
        only: proposal.only.clone(),
        without: proposal.without.clone(),
    };
    let path = ["groups", proposal.group.as_str(), "release"];
    let begun: RolloutView = context.client.change(Method::POST, &path, &request).await?;
    conclude(context, begun, release.watch).await
}

/// Finds the rollout that takes a group to a revision already, or has: what a job that is run again asks
/// for once more.
async fn begun_already(
    context: &Context<'_>,
    group: &GroupView,
    revision: &Revision,
    proposal: &Proposal,
) -> Result<Option<RolloutView>, CommandError> {
    let target = group.target.as_ref().and_then(|target| target.revision.as_ref());
    if target != Some(revision) || !proposal.without.is_empty() {
        return Ok(None);
    }
    let view = match rollouts::read(context, &proposal.group, None).await {
        Ok(view) => view,
        Err(CommandError::Client(error)) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_same = match view.state {
        State::Converged => true,
        State::Running => view.only == proposal.only,
        _ => view.only == proposal.only && has_chosen(&view),
    };
    Ok(Some(view).filter(|view| is_same && view.revision.as_ref() == Some(revision)))
}

/// Takes a group back; where to, and how, is said first.
pub(crate) async fn rollback(
    context: &Context<'_>,
    group: &Group,
    name: Option<&str>,
    is_watched: bool,
) -> Ended {
    let view = context.group(group).await?;
    // Named in the request as well: what is said is what is done.
    let revision = match name {
        Some(name) => Some(resolve(context, &view, name).await?.0),
        None => view.fallback.clone(),
    };
    if !context.screen.is_json() && (revision.is_some() || view.rollout.is_some()) {
        let commit = match &revision {
            Some(revision) => commit(context, group, revision).await,
            None => None,
        };
        context.screen.print(&text::way_back(&view, revision.as_ref(), commit.as_ref()))?;
    }
    let path = ["groups", group.as_str(), "rollback"];
    let request = RollbackRequest { revision };
    let begun: RolloutView = context.client.change(Method::POST, &path, &request).await?;
    conclude(context, begun, is_watched).await
}

/// Tells of a rollout that has begun, and follows it where that was asked for.
pub(crate) async fn conclude(context: &Context<'_>, begun: RolloutView, is_watched: bool) -> Ended {
    if is_watched {
        return watch::follow(context, begun).await;
    }
    context.answer("rollout", &begun, || vec![summary::begun(&begun, false, false)])
}

/// Asks what is known of a commit. It is only an addition, and where there is no mirror nothing is.
async fn commit(context: &Context<'_>, group: &Group, revision: &Revision) -> Option<CommitView> {
    let path = ["groups", group.as_str(), "resolve"];
    let view = context.client.get::<ResolveView>(&path, &[("name", revision.as_str())]).await;
    view.ok().map(|view| view.commit)
}

/// Finds out what a name means, and what releasing that would do. What is worth knowing is said aside.
async fn look(context: &Context<'_>, proposal: &Proposal) -> Result<Prospect, CommandError> {
    let group = context.group(&proposal.group).await?;
    let (revision, resolved) = resolve(context, &group, &proposal.revision).await?;
    let without: Vec<&str> = proposal.without.iter().map(Instance::as_str).collect();
    let without = without.join(",");
    let mut query = vec![("revision", revision.as_str())];
    query.extend(proposal.only.as_ref().map(|only| ("only", only.as_str())));
    if !without.is_empty() {
        query.push(("without", without.as_str()));
    }
    let path = ["groups", proposal.group.as_str(), "plan"];
    let view: PlanView = context.client.get(&path, &query).await?;
    let silent: Vec<InstanceView> = match view.counts.silent {
        0 => Vec::new(),
        _ => {
            let query = [("group", proposal.group.as_str()), ("status", "silent")];
            context.client.list(&["instances"], &query).await?
        }
    };
    let silent: Vec<Instance> = silent.into_iter().map(|view| view.instance).collect();
    for warning in &view.warnings {
        context.screen.warn(warning);
    }
    let target = group.target.as_ref().and_then(|target| target.revision.as_ref());
    let commit = view.commit.as_ref().or(resolved.as_ref().map(|resolved| &resolved.commit));
    let mut head = text::resolved(&proposal.revision, &revision, commit, target);
    head.push(text::standing(&proposal.group, &view.counts, &silent));
    Ok(Prospect { group, view, head })
}

/// Finds out what a name means. A full id means itself, also where there is no mirror to ask.
async fn resolve(
    context: &Context<'_>,
    group: &GroupView,
    name: &str,
) -> Result<(Revision, Option<ResolveView>), CommandError> {
    if let Some(revision) = full_id(name) {
        return Ok((revision, None));
    }
    let path = ["groups", group.group.as_str(), "resolve"];
    let view: ResolveView = context.client.get(&path, &[("name", name)]).await?;
    Ok((view.commit.revision.clone(), Some(view)))
}
