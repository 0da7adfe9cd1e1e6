//! Tokens of operators, and secrets by which instances join. A secret is printed once, alone, to standard
//! output, so that it can go into a file without being seen.

use reqwest::Method;
use serde_json::json;
use towline_protocol::api::{JoinSecret, TokenCreated, TokenRequest, TokenView};
use towline_protocol::ids::Group;

use crate::arguments::TokenCommand;
use crate::commands::{Context, Ended};
use crate::exit::Exit;
use crate::render::lists;
use crate::render::text::clean;
use crate::render::time::moment;

/// Does what was asked about tokens.
pub(crate) async fn run(context: &Context<'_>, command: TokenCommand) -> Ended {
    match command {
        TokenCommand::Create { name, role, expires } => {
            let request = TokenRequest { name, role: role.into(), expires_s: expires };
            let created: TokenCreated =
                context.client.change(Method::POST, &["tokens"], &request).await?;
            if context.screen.is_json() {
                context.screen.print_json("token", &created)?;
                return Ok(Exit::Done);
            }
            let token = &created.token;
            let until = token.expires.map_or_else(|| "its end".to_owned(), moment);
            let said = format!(
                "token {} for {}, good until {until}; it is shown once",
                token.id, token.name
            );
            context.screen.remark(&said);
            print_secret(context, &created.secret)
        }
        TokenCommand::List => {
            let views: Vec<TokenView> = context.client.list(&["tokens"], &[]).await?;
            context.answer("tokens", &views, || {
                lists::tokens(&views, context.now(), context.screen.width())
            })
        }
        TokenCommand::Revoke { id } => {
            let path = ["tokens", id.as_str(), "revoke"];
            context.client.change_only(Method::POST, &path, &serde_json::json!({})).await?;
            context.done("revoked", &json!({"id": id}), &format!("token {id} is revoked"))
        }
    }
}

/// Makes a group's join secret.
pub(crate) async fn join_secret(context: &Context<'_>, group: &Group) -> Ended {
    let path = ["groups", group.as_str(), "join-secret"];
    let secret: JoinSecret =
        context.client.change(Method::POST, &path, &serde_json::json!({})).await?;
    if context.screen.is_json() {
        context.screen.print_json("join_secret", &secret)?;
        return Ok(Exit::Done);
    }
    let said = format!("join secret of {group}; it is shown once, and the one before has ended");
    context.screen.remark(&said);
    print_secret(context, &secret.secret)
}

fn print_secret(context: &Context<'_>, secret: &str) -> Ended {
    context.screen.print_raw(&format!("{}\n", clean(secret).trim()))?;
    Ok(Exit::Done)
}
