//! What agents ask: join, poll, report, ask for leave, say goodbye.
//!
//! An agent speaks for its own instance alone. What it tells is cut and cleaned before anybody keeps it.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use towline_protocol::api::{Code, ErrorBody};
use towline_protocol::poll::{Goodbye, Join, Joined, Message, Permission, Poll, Question};
use tracing::{info, warn};

use super::Api;
use super::caller::Caller;
use super::errors::Refused;
use super::input::Told;
use crate::rollout::operations::unknown_group;
use crate::rollout::reports;
use crate::views::told;

/// The longest name of an answer that a poll may carry: it is kept while the poll is parked.
const SEEN_BYTES_MAX: usize = 200;

/// How often a token is made again that lost a race.
const RACES_MAX: usize = 16;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/agent/join", post(join))
        .route("/v1/agent/poll", post(poll))
        .route("/v1/agent/report", post(report))
        .route("/v1/agent/permit", post(ask))
        .route("/v1/agent/goodbye", post(goodbye))
}

async fn join(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(join): Told<Join>,
) -> Result<Json<Joined>, Refused> {
    caller.may_join(&join.group)?;
    api.rates().take_join(&caller, &join.instance)?;
    api.desk().read(|records| {
        let state = records.group(&join.group).ok_or_else(|| unknown_group(&join.group))?;
        reports::has_room(state, &join.instance)
    })?;
    for _ in 0..RACES_MAX {
        let asked = (api.keys().join)(join.clone(), api.act(&caller)).await;
        let (draft, joined) = asked.inspect_err(|refused| claimed(&api, &join, refused))?;
        if api.desk().save(draft).await? {
            api.claims().settle(&join.group, &join.instance);
            info!(group = %join.group, instance = %join.instance, "joined");
            return Ok(Json(joined));
        }
    }
    Err(Refused::new(Code::Unavailable, "the records change too fast"))
}

/// Raises that somebody asked for a name that another has.
fn claimed(api: &Api, join: &Join, refused: &ErrorBody) {
    let Join { group, instance, .. } = join;
    if refused.code == Code::Conflict && api.claims().note(group, instance, api.desk().now()) {
        warn!(
            group = %group,
            instance = %instance,
            "another host asks to join under the name of an instance that is there, and is refused"
        );
    }
}

async fn poll(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(poll): Told<Poll>,
) -> Result<Response, Refused> {
    caller.may_act_as(&poll.group, &poll.instance)?;
    if poll.seen.as_ref().is_some_and(|seen| seen.len() > SEEN_BYTES_MAX) {
        return Err(Refused::of_field("seen", "this is no answer's name: it is too long"));
    }
    Ok(match api.desk().poll(poll).await? {
        // One encoding for all who are told the same.
        Some(answer) => ([(CONTENT_TYPE, "application/json")], answer).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

async fn report(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(message): Told<Message>,
) -> Result<StatusCode, Refused> {
    caller.may_act_as(&message.report.group, &message.report.instance)?;
    api.desk().report(told::message(message)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(question): Told<Question>,
) -> Result<Json<Permission>, Refused> {
    caller.may_act_as(&question.group, &question.instance)?;
    Ok(Json(api.desk().ask(question).await?))
}

async fn goodbye(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(goodbye): Told<Goodbye>,
) -> Result<StatusCode, Refused> {
    caller.may_act_as(&goodbye.group, &goodbye.instance)?;
    api.desk().goodbye(goodbye).await?;
    Ok(StatusCode::NO_CONTENT)
}
