//! One request to a coordinator and its answer, within a deadline and a size.
//!
//! A redirect is not followed: whoever answers for the coordinator must not send a token elsewhere.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use towline_protocol::api::Refusal;
use towline_protocol::poll::VERSION;
use towline_protocol::target::TargetError;

use crate::shown;

/// The largest answer that is read.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How much of a refusal's words is repeated.
const SAID_CHARS_MAX: usize = 200;

/// A token, or a join secret, that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bearer(String);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

impl Bearer {
    /// The longest that is accepted.
    const LENGTH_MAX: usize = 1024;

    /// Returns `None` for what could not stand in a header.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = !text.is_empty() && text.len() <= Self::LENGTH_MAX;
        (is_plain && fits).then(|| Self(text.to_owned()))
    }

    /// Returns the secret itself, to be written down.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("could not reach {address}")]
    Unreachable { address: String, source: reqwest::Error },
    #[error("{address} did not answer within {} s", deadline.as_secs_f64())]
    Late { address: String, deadline: Duration },
    #[error("{address} answered {status}{said}")]
    Status { address: String, status: StatusCode, said: String },
    #[error("{address} redirects, and is not followed")]
    Redirect { address: String },
    #[error("{address} answered with more than {} KiB", ANSWER_BYTES_MAX / 1024)]
    TooLarge { address: String },
    #[error("could not read the answer of {address}")]
    Malformed { address: String, source: serde_json::Error },
    #[error("{address} answered in version {version}; this agent reads up to {VERSION}")]
    Version { address: String, version: u32 },
    #[error("{address} named a target that cannot be followed")]
    Target { address: String, source: TargetError },
    #[error("{address} gave a token that cannot be used")]
    Token { address: String },
    #[error("this agent has no token yet")]
    NotJoined,
}

impl CallError {
    /// Does somebody have to do something? A coordinator that is away comes back.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            CallError::Unreachable { .. } | CallError::Late { .. } | CallError::NotJoined => false,
            CallError::Status { status, .. } => {
                status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429)
            }
            _ => true,
        }
    }

    /// Is the token, or the secret, what is refused?
    pub(super) fn is_unauthorised(&self) -> bool {
        matches!(self, CallError::Status { status, .. } if *status == StatusCode::UNAUTHORIZED)
    }

    /// Returns the next thing for an operator to try.
    pub(super) fn hint(&self) -> Option<String> {
        let text = match self {
            CallError::Status { status, .. } => match status.as_u16() {
                401 => "give the group's join secret as coordinator.join_secret, or a new one",
                403 => {
                    "the token is another instance's or group's: correct `group` and `instance`, \
                        or remove .towline/token to join again"
                }
                404 => "see whether `coordinators` names a coordinator",
                _ => return None,
            },
            CallError::Redirect { .. } => "set `coordinators` to the new address",
            CallError::TooLarge { .. } | CallError::Malformed { .. } | CallError::Token { .. } => {
                "see whether `coordinators` names a coordinator"
            }
            CallError::Version { .. } => "install a newer agent on this instance",
            CallError::Target { source, .. } => source.hint(),
            CallError::Unreachable { .. } | CallError::Late { .. } | CallError::NotJoined => {
                return None;
            }
        };
        Some(text.to_owned())
    }
}

/// Posts `body`; returns `None` where there is nothing to answer (204).
pub(super) async fn call<A: DeserializeOwned>(
    client: &Client,
    base: &Url,
    name: &str,
    body: &impl Serialize,
    bearer: Option<&Bearer>,
    deadline: Duration,
) -> Result<Option<A>, CallError> {
    let address = base.to_string();
    let asked = ask(client, base, name, body, bearer);
    match timeout(deadline, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Late { address, deadline }),
    }
}

async fn ask<A: DeserializeOwned>(
    client: &Client,
    base: &Url,
    name: &str,
    body: &impl Serialize,
    bearer: Option<&Bearer>,
) -> Result<Option<A>, CallError> {
    let address = || base.to_string();
    let mut url = base.clone();
    url.set_path(&format!("{}/v1/agent/{name}", base.path().trim_end_matches('/')));
    let body = serde_json::to_vec(body).expect("the wire's types are JSON");
    let mut request = client.post(url).header("content-type", "application/json").body(body);
    if let Some(Bearer(token)) = bearer {
        // Marked as sensitive there, so that it is in no log of the client's either.
        request = request.bearer_auth(token);
    }
    let unreachable = |source: reqwest::Error| CallError::Unreachable {
        address: address(),
        // The address is told already.
        source: source.without_url(),
    };
    let answer = request.send().await.map_err(unreachable)?;
    let status = answer.status();
    if status == StatusCode::NO_CONTENT {
        return Ok(None);
    }
    if status.is_redirection() {
        return Err(CallError::Redirect { address: address() });
    }
    let bytes = read(answer).await.map_err(unreachable)?;
    if status != StatusCode::OK {
        let said = bytes.as_deref().map_or(String::new(), said);
        return Err(CallError::Status { address: address(), status, said });
    }
    let Some(bytes) = bytes else { return Err(CallError::TooLarge { address: address() }) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| CallError::Malformed { address: address(), source })
}

/// Reads a body whole; `None` where it is too large.
async fn read(mut answer: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// What a refusal says, in one line.
pub(crate) fn said(bytes: &[u8]) -> String {
    let Ok(Refusal { error }) = serde_json::from_slice::<Refusal>(bytes) else {
        return String::new();
    };
    format!(": {}", shown::short_line(&error.message, SAID_CHARS_MAX))
}
