//! Who may come in: by the Unix socket, by a token, or, where nobody else can reach it, without any.

use std::sync::Arc;

use axum::http::request::Parts;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use towline_protocol::api::{Code, ErrorBody, Role};

use crate::desk::Desk;
use crate::http::caller::{Caller, Keys};
use crate::server::Door;

/// Returns the keeper of tokens. `is_open`: whoever shows none is let in.
#[must_use]
pub fn keys(_desk: &Desk, is_open: bool) -> Keys {
    fn none<T: Send + Sync + 'static>() -> BoxFuture<'static, Result<T, ErrorBody>> {
        let message = "there are no tokens".to_owned();
        let error = ErrorBody { code: Code::Unavailable, message, hint: None, field: None };
        std::future::ready(Err(error)).boxed()
    }
    Keys {
        check: Arc::new(move |parts: &Parts| {
            let door = parts.extensions.get::<Door>().copied();
            let caller = if door == Some(Door::Local) {
                Caller::Operator {
                    name: "root".to_owned(),
                    role: Role::Operator,
                    id: "local".to_owned(),
                }
            } else {
                Caller::Open
            };
            debug_assert!(is_open);
            std::future::ready(Ok(caller)).boxed()
        }),
        join: Arc::new(|_, _| none()),
        create: Arc::new(|_, _| none()),
        list: Arc::new(|()| none()),
        revoke: Arc::new(|_, _| none()),
        join_secret: Arc::new(|_, _| none()),
    }
}
