//! Instances: who they are, why they are where they are, and orders to one of them.

use reqwest::Method;
use serde_json::json;
use towline_protocol::api::{Because, InstanceView, LogView, PermitView, Status, WhyView};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::rollout::State;

use crate::arguments::PermitCommand;
use crate::commands::{CommandError, Context, Ended};
use crate::exit::Exit;
use crate::render::{instances, lists};

/// Lists instances.
pub(crate) async fn list(
    context: &Context<'_>,
    group: Option<&Group>,
    status: Option<Status>,
    revision: Option<&str>,
) -> Ended {
    let mut query = Vec::new();
    if let Some(group) = group {
        // A list of nobody would hide that there is no such group.
        context.group(group).await?;
        query.push(("group", group.as_str()));
    }
    query.extend(status.map(|status| ("status", status.as_str())));
    let mut views: Vec<InstanceView> = context.client.list(&["instances"], &query).await?;
    if let Some(beginning) = revision {
        let serves = |view: &InstanceView| {
            view.serving.as_ref().is_some_and(|serving| serving.as_str().starts_with(beginning))
        };
        views.retain(serves);
    }
    context.answer("instances", &views, || instances::list(&views, context.screen.width()))
}

/// Says why a group or an instance is where it is.
pub(crate) async fn why(context: &Context<'_>, subject: &str, group: Option<Group>) -> Ended {
    let no_subject = || CommandError::NoSubject { subject: subject.chars().take(80).collect() };
    if group.is_none() {
        let named: Group = subject.parse().map_err(|_| no_subject())?;
        let path = ["groups", named.as_str(), "why"];
        match context.client.get::<WhyView>(&path, &[]).await {
            Ok(view) => return context.answer("why", &view, || lists::why(&view)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let instance: Instance = subject.parse().map_err(|_| no_subject())?;
    let group = match group {
        Some(group) => group,
        None => context.find(&instance).await?.ok_or_else(no_subject)?,
    };
    let path = ["groups", group.as_str(), "instances", instance.as_str(), "why"];
    let view: WhyView = context.client.get(&path, &[]).await?;
    context.answer("why", &view, || lists::why(&view))
}

/// Shows what was said when the last deploy of an instance failed.
pub(crate) async fn logs(
    context: &Context<'_>,
    group: Option<Group>,
    instance: &Instance,
) -> Ended {
    let group = context.group_of(group, instance).await?;
    let path = ["groups", group.as_str(), "instances", instance.as_str(), "logs"];
    let view: LogView = context.client.get(&path, &[]).await?;
    context.answer("logs", &view, || lists::logs(&view))
}

/// Orders one instance to do something, or drops it.
pub(crate) async fn order(
    context: &Context<'_>,
    group: Option<Group>,
    instance: &Instance,
    order: &str,
    reason: Option<String>,
) -> Ended {
    let group = context.group_of(group, instance).await?;
    let path = ["groups", group.as_str(), "instances", instance.as_str(), order];
    context.client.change_only(Method::POST, &path, &Because { reason }).await?;
    let said = match order {
        "restart" => format!("{instance} in {group} restarts its app, once it has a permit"),
        "retry" => format!("{instance} in {group} tries again"),
        _ => format!(
            "{instance} is forgotten, and its token has ended; a host that has the join secret joins again \
             (towline join-secret {group} makes a new one)"
        ),
    };
    let what = json!({"group": group, "instance": instance, "order": order});
    context.done("ordered", &what, &said)?;
    // What is only an addition must not hide that it is done.
    if order == "restart"
        && let Ok(view) = context.group(&group).await
        && let Some(rollout) = view.rollout.filter(|rollout| rollout.state != State::Running)
    {
        context.screen.warn(&held(&group, rollout.state));
    }
    Ok(Exit::Done)
}

/// Says that nothing is swapped or restarted while a rollout stands.
fn held(group: &Group, state: State) -> String {
    let state = state.as_str();
    format!(
        "the rollout of {group} is {state}, and no permit is given meanwhile; next: towline rollout \
         resume {group}, or towline rollout abort {group}"
    )
}

/// Lists or closes permits.
pub(crate) async fn permit(context: &Context<'_>, command: PermitCommand) -> Ended {
    match command {
        PermitCommand::List { group } => {
            let groups = match group {
                Some(group) => vec![group],
                None => context.groups(None).await?.into_iter().map(|view| view.group).collect(),
            };
            let mut views: Vec<PermitView> = Vec::new();
            for group in &groups {
                let path = ["groups", group.as_str(), "permits"];
                views.extend(context.client.list::<PermitView>(&path, &[]).await?);
            }
            context.answer("permits", &views, || lists::permits(&views))
        }
        PermitCommand::Close { instance, group, reason } => {
            let group = context.group_of(group, &instance).await?;
            let path = ["groups", group.as_str(), "permits", instance.as_str(), "close"];
            let because = Because { reason: Some(reason) };
            context.client.change_only(Method::POST, &path, &because).await?;
            let said = format!("the permit of {instance} in {group} is closed");
            context.done("closed", &json!({"group": group, "instance": instance}), &said)
        }
    }
}
