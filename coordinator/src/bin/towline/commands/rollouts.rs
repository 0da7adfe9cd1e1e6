//! The rollout that goes on, or went last: shown, and steered.

use reqwest::Method;
use towline_protocol::api::{Because, RolloutView};
use towline_protocol::ids::Group;

use crate::arguments::{RolloutCommand, Steer};
use crate::client::parse;
use crate::commands::release::conclude;
use crate::commands::{CommandError, Context, Ended, watch};
use crate::exit::Exit;
use crate::render::rollout;

/// Does what was asked about a rollout.
pub(crate) async fn run(context: &Context<'_>, command: RolloutCommand) -> Ended {
    match command {
        RolloutCommand::Show { group, generation } => {
            let view = read(context, &group, generation).await?;
            context.answer("rollout", &view, || {
                rollout::show(&view, context.now(), context.screen.width())
            })
        }
        RolloutCommand::Watch { group } => {
            let view = read(context, &group, None).await?;
            watch::follow(context, view).await
        }
        RolloutCommand::Pause(steer) => self::steer(context, steer, "pause").await,
        RolloutCommand::Resume(steer) => self::steer(context, steer, "resume").await,
        RolloutCommand::Abort(steer) => self::steer(context, steer, "abort").await,
        RolloutCommand::Promote(steer) => self::steer(context, steer, "promote").await,
    }
}

/// Starts the app of a whole group anew.
pub(crate) async fn restart(
    context: &Context<'_>,
    group: &Group,
    reason: Option<String>,
    is_watched: bool,
) -> Ended {
    let path = ["groups", group.as_str(), "restart"];
    let begun = context.client.change(Method::POST, &path, &Because { reason }).await?;
    conclude(context, begun, is_watched).await
}

/// Reads a group's rollout: an earlier one, or the one that goes on or went last.
pub(crate) async fn read(
    context: &Context<'_>,
    group: &Group,
    generation: Option<u64>,
) -> Result<RolloutView, CommandError> {
    let generation = generation.map(|generation| generation.to_string());
    let query = generation.as_deref().map(|generation| ("generation", generation));
    let query: Vec<_> = query.into_iter().collect();
    Ok(context.client.get(&["groups", group.as_str(), "rollout"], &query).await?)
}

async fn steer(context: &Context<'_>, steer: Steer, how: &str) -> Ended {
    let Steer { group, reason } = steer;
    let path = ["groups", group.as_str(), "rollout", how];
    let body = context.client.change_only(Method::POST, &path, &Because { reason }).await?;
    // What was just done is done; how things stand is asked for where the answer does not say it.
    let view: RolloutView = match parse(&body) {
        Ok(view) => view,
        Err(_) => read(context, &group, None).await?,
    };
    context.answer("rollout", &view, || rollout::steered(&view))?;
    Ok(Exit::Done)
}
