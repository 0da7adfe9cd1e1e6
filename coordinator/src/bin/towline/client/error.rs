//! What can become of a request, other than its answer.

use std::fmt;
use std::path::PathBuf;

use towline_protocol::api::{Code, ErrorBody};
use url::Url;

use crate::client::sse::StreamError;
use crate::exit::Exit;

/// The innermost cause of a library's error: the layers above it say nothing to an operator.
#[derive(Debug)]
pub(crate) struct Cause(pub(crate) reqwest::Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause: &dyn std::error::Error = &self.0;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        fmt::Display::fmt(cause, f)
    }
}

impl std::error::Error for Cause {}

/// Why there is no answer, or none that is of use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The certificates could not be read.
    #[error("could not use the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The client could not be made.
    #[error("could not set up the client")]
    SetUp(#[source] Cause),
    /// The operating system has no random numbers.
    #[error("could not make an idempotency key")]
    Random,
    /// What was to be sent is no JSON.
    #[error("could not write the request")]
    Request(#[source] serde_json::Error),
    /// Nobody answers there.
    #[error("could not reach the coordinator at {address}")]
    Unreachable {
        /// Where.
        address: Url,
        /// Why.
        source: Cause,
    },
    /// Somebody answers there who cannot show that they are the coordinator.
    #[error("could not trust {address}")]
    Untrusted {
        /// Where.
        address: Url,
        /// Why.
        source: Cause,
    },
    /// What answers there speaks TLS and should not, or does not and should.
    #[error("could not talk to {address}: what answers there does not speak {}", .address.scheme())]
    OtherScheme {
        /// Where.
        address: Url,
    },
    /// The connection ended in the middle.
    #[error("could not hear the coordinator at {address} out")]
    Broken {
        /// Where.
        address: Url,
        /// Was something to be changed by it?
        is_change: bool,
        /// Why.
        source: Cause,
    },
    /// No answer in time.
    #[error("could not wait any longer for the coordinator at {address}")]
    TimedOut {
        /// Where.
        address: Url,
        /// Was something to be changed by it?
        is_change: bool,
    },
    /// The coordinator says no.
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    /// The answer is somebody else's.
    #[error("could not understand the answer, {status} {beginning:?}: it is not the coordinator's")]
    Foreign {
        /// Its status.
        status: u16,
        /// How it begins.
        beginning: String,
    },
    /// The answer sends to another address.
    #[error("could not use {address}: it redirects to {location:?}")]
    Redirected {
        /// Where.
        address: Url,
        /// Where to.
        location: String,
    },
    /// The answer is larger than is read.
    #[error("could not read the answer: it has more than {bytes_max} bytes")]
    TooLarge {
        /// The most that are read.
        bytes_max: usize,
    },
    /// The list has more pages than are read.
    #[error("could not read the list: it goes on after {items} items")]
    TooMany {
        /// How many were read.
        items: usize,
    },
    /// The answer is the coordinator's, and of another form.
    #[error("could not understand the coordinator's answer")]
    Malformed(#[source] serde_json::Error),
    /// The stream is of another form.
    #[error("could not read the stream of events")]
    Stream(#[source] StreamError),
}

impl ClientError {
    /// Sorts a library's error. `is_change`: was something to be changed by the request?
    pub(crate) fn of_request(error: reqwest::Error, address: &Url, is_change: bool) -> Self {
        let address = address.clone();
        match find::<rustls::Error>(&error) {
            // It begins as no TLS does.
            Some(rustls::Error::InvalidMessage(_)) => return ClientError::OtherScheme { address },
            Some(_) => return ClientError::Untrusted { address, source: Cause(error) },
            None => {}
        }
        // It begins as no HTTP does, and what was asked without TLS has asked for nothing.
        if address.scheme() == "http" && find(&error).is_some_and(hyper::Error::is_parse) {
            return ClientError::OtherScheme { address };
        }
        if error.is_connect() {
            return ClientError::Unreachable { address, source: Cause(error) };
        }
        if error.is_timeout() {
            return ClientError::TimedOut { address, is_change };
        }
        ClientError::Broken { address, is_change, source: Cause(error) }
    }

    /// Describes an answer that is not the coordinator's.
    pub(crate) fn foreign(status: u16, body: &[u8]) -> Self {
        const SHOWN_MAX: usize = 60;
        let text = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN_MAX)]);
        let beginning = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let beginning = beginning.chars().take(SHOWN_MAX).collect();
        ClientError::Foreign { status, beginning }
    }

    /// May the next attempt succeed, with nothing done in between?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. } | ClientError::Broken { .. })
    }

    /// May it be well again after a while: is following a stream worth another try?
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            ClientError::Unreachable { .. }
            | ClientError::Broken { .. }
            | ClientError::TimedOut { .. } => true,
            ClientError::Refused(body) => {
                matches!(body.code, Code::Unavailable | Code::TooMany | Code::Timeout)
            }
            // What stands between says that there is nobody behind it now.
            ClientError::Foreign { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Is it said that there is no such thing?
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused(body) if body.code == Code::NotFound)
    }

    /// Returns the next thing to try.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            ClientError::Refused(body) => {
                return body.hint.clone().or_else(|| match body.code {
                    Code::Unauthenticated => {
                        Some("name a token with --token-file or TOWLINE_TOKEN_FILE".to_owned())
                    }
                    Code::Forbidden => Some("it takes another token: see --token-file".to_owned()),
                    Code::Unavailable | Code::TooMany => Some("try again in a moment".to_owned()),
                    _ => None,
                });
            }
            ClientError::Certificates { .. } => "name a file of PEM certificates",
            ClientError::Unreachable { .. } => {
                "is it running there? --coordinator or TOWLINE_COORDINATOR say where it is"
            }
            ClientError::Untrusted { .. } => {
                "name the CA that signed for it with --ca-file, and the host as in its certificate"
            }
            ClientError::OtherScheme { address } => {
                let other = if address.scheme() == "https" { "http" } else { "https" };
                let mut named = address.clone();
                // Between these two it does not fail.
                named.set_scheme(other).ok();
                return Some(format!("if the coordinator listens there, use {named}"));
            }
            ClientError::Broken { is_change: true, .. }
            | ClientError::TimedOut { is_change: true, .. } => {
                "it may have been carried out all the same: look before trying again"
            }
            ClientError::Broken { .. } | ClientError::TimedOut { .. } => "try again in a moment",
            ClientError::Foreign { .. } => {
                "something else answers there: --coordinator or TOWLINE_COORDINATOR say where to ask"
            }
            ClientError::Redirected { .. } => {
                "name the coordinator's own address with --coordinator"
            }
            ClientError::Malformed(_) | ClientError::Stream(_) => {
                "use the towline command of the coordinator's version"
            }
            ClientError::TooMany { .. } => "ask for less: name a group",
            ClientError::SetUp(_)
            | ClientError::Random
            | ClientError::Request(_)
            | ClientError::TooLarge { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// Returns how the command ends by it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            _ if self.is_temporary() => Exit::TryLater,
            ClientError::Certificates { .. }
            | ClientError::Untrusted { .. }
            | ClientError::OtherScheme { .. }
            | ClientError::Redirected { .. } => Exit::Config,
            _ => Exit::Failed,
        }
    }
}

/// Finds an error of a kind among the causes of one, at whatever level.
fn find<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an `io::Error` holds is not its source: that is the source of what it holds.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}
