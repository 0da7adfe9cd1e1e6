//! Operators' tokens, and groups' join secrets: what the keeper of tokens is asked for.

use axum::extract::{Extension, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use towline_protocol::api::{Code, Page, Role, TokenRequest, TokenView};
use towline_protocol::ids::Group;

use super::Api;
use super::caller::Caller;
use super::errors::Refused;
use super::idempotency::{Answer, Change};
use super::input::{Asked, At};
use crate::rollout::operations::unknown_group;

/// A request that says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/tokens", get(list).post(create))
        .route("/v1/tokens/{id}/revoke", post(revoke))
        .route("/v1/groups/{group}/join-secret", post(join_secret))
}

async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    asked: Asked,
) -> Result<Json<Page<TokenView>>, Refused> {
    asked.end()?;
    if matches!(caller, Caller::Operator { role: Role::Viewer, .. }) {
        return Err(Refused::new(Code::Forbidden, "a viewer's token shows no other tokens"));
    }
    Ok(Json(Page { items: (api.keys().list)(()).await?, next: None }))
}

async fn create(
    State(api): State<Api>,
    asked: Asked,
    change: Change<TokenRequest>,
) -> Result<Answer, Refused> {
    asked.end()?;
    api.once_made(&change, true, &api.keys().create, change.value.clone()).await
}

async fn revoke(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Nothing>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let id: String = at.get("id")?;
    api.once_made(&change, false, &api.keys().revoke, id).await?;
    Ok(Answer::Done)
}

async fn join_secret(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Nothing>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let group: Group = at.get("group")?;
    if !api.desk().read(|records| records.group(&group).is_some()) {
        return Err(unknown_group(&group).into());
    }
    api.once_made(&change, true, &api.keys().join_secret, group).await
}
