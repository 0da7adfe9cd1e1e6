//! What begins a rollout to a revision: what it would do is said first, then it is done.

use reqwest::Method;
use towline_protocol::api::{
    GroupView, InstanceView, PlanView, ReleaseRequest, ResolveView, RollbackRequest, RolloutView,
};
use towline_protocol::ids::{Group, Instance, Revision};

use crate::arguments::{Proposal, Release, full_id};
use crate::commands::{CommandError, Context, Ended, watch};
use crate::exit::Exit;
use crate::render::{Line, plan as text, summary};

/// What a release would do, and what is said of it.
struct Prospect {
    view: PlanView,
    head: Vec<Line>,
}

/// Shows what a release would do.
pub(crate) async fn plan(context: &Context<'_>, proposal: &Proposal) -> Ended {
    let Prospect { view, head } = look(context, proposal).await?;
    let is_refused = view.refused.clone();
    context.answer("plan", &view, || [head, text::plan(&view)].concat())?;
    match is_refused {
        Some(body) => Err(CommandError::Refused(Box::new(body))),
        None => Ok(Exit::Done),
    }
}

/// Takes a group to a revision.
pub(crate) async fn release(context: &Context<'_>, release: &Release) -> Ended {
    let proposal = &release.proposal;
    let Prospect { view, head } = look(context, proposal).await?;
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

/// Takes a group back.
pub(crate) async fn rollback(
    context: &Context<'_>,
    group: &Group,
    name: Option<&str>,
    is_watched: bool,
) -> Ended {
    let revision = match name {
        Some(name) => Some(resolve(context, &context.group(group).await?, name).await?.0),
        None => None,
    };
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
    Ok(Prospect { view, head })
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
