//! Refusals: one shape for all of them, whatever it is that went wrong.

use std::panic::AssertUnwindSafe;

use axum::Json;
use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use towline_protocol::api::{Code, ErrorBody, Refusal};
use tracing::error;

use crate::views::told;

/// When a client may come again that came too often, or at a bad time.
const AGAIN_S: u64 = 1;

/// A refusal on its way out.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Box<ErrorBody>);

impl From<ErrorBody> for Refused {
    fn from(error: ErrorBody) -> Self {
        Self(Box::new(error))
    }
}

impl Refused {
    /// Returns a refusal of this kind.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        ErrorBody { code, message: message.into(), hint: None, field: None }.into()
    }

    /// Returns a refusal for which a field of the request is to blame.
    pub(crate) fn of_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let field = Some(field.into());
        ErrorBody { code: Code::Invalid, message: message.into(), hint: None, field }.into()
    }

    /// Adds what to try next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = self.0.code;
        let status = StatusCode::from_u16(code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = (status, Json(Refusal { error: *self.0 })).into_response();
        let headers = answer.headers_mut();
        match code {
            Code::TooMany | Code::Unavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from(AGAIN_S));
            }
            Code::Unauthenticated => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of the body is not read.
            Code::TooLarge | Code::Timeout => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        answer
    }
}

/// There is nothing at this path.
pub(crate) async fn no_route(uri: Uri) -> Refused {
    Refused::new(Code::NotFound, format!("there is nothing at {}", told::line(uri.path())))
}

/// There is, but not for this method. The answer's `Allow` names those that there are.
pub(crate) async fn no_method(method: Method, uri: Uri) -> Refused {
    let (method, path) = (told::line(method.as_str()), told::line(uri.path()));
    Refused::new(Code::MethodNotAllowed, format!("{method} is not for {path}"))
}

/// Turns a panic into an answer: one bad request must not look like an outage.
pub(crate) async fn calm(request: Request, next: Next) -> Response {
    let path = told::line(request.uri().path());
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(answer) => answer,
        Err(_) => {
            error!(path, "a request failed by a fault of the coordinator's own");
            let message = "the coordinator failed by a fault of its own";
            Refused::new(Code::Internal, message)
                .hint("its log says where; please report it")
                .into_response()
        }
    }
}

/// Adds what keeps browsers from doing anything with an answer but read it.
pub(crate) async fn guarded(request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
