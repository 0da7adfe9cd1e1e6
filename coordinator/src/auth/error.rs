//! Why somebody is turned away, and what they may try.

use towline_protocol::api::Code;
use towline_protocol::ids::Instance;
use towline_protocol::time::Timestamp;

use super::NAME_BYTES_MAX;

/// Why somebody is turned away. No secret is ever part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token was sent.
    #[error("could not tell who asks: there is no token")]
    Missing,
    /// What was sent is no token.
    #[error("could not tell who asks: what was sent is no token of Towline's, or is incomplete")]
    Malformed,
    /// It was revoked, replaced, or never made here.
    #[error("could not tell who asks: the token is not known here, or was revoked")]
    Unknown,
    /// Its time is over.
    #[error("could not tell who asks: the token has expired")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// It does not allow that.
    #[error("could not allow that to {who}")]
    Forbidden {
        /// Who asked.
        who: String,
    },
    /// Another holds the instance's token.
    #[error("could not let {instance} join: it has a token already")]
    Joined {
        /// The instance.
        instance: Instance,
    },
    /// A name that would not be one everywhere.
    #[error(
        "could not make a token of that name: use 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ - @ +, and \
         begin with a letter or a digit"
    )]
    Name,
    /// No end, or one that is too far.
    #[error("could not make a token that does not end within 400 days")]
    Expires,
    /// What is stored is not what this code writes.
    #[error("could not read {key}: it is damaged, or was written by a newer coordinator")]
    Record {
        /// Its key.
        key: String,
    },
    /// No random bytes.
    #[error("could not get random bytes ({found})")]
    Random {
        /// What the operating system said.
        found: String,
    },
}

impl AuthError {
    /// Returns its code on the wire.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            AuthError::Missing
            | AuthError::Malformed
            | AuthError::Unknown
            | AuthError::Expired { .. } => Code::Unauthenticated,
            AuthError::Forbidden { .. } => Code::Forbidden,
            AuthError::Joined { .. } => Code::Conflict,
            AuthError::Name | AuthError::Expires => Code::Invalid,
            AuthError::Record { .. } | AuthError::Random { .. } => Code::Internal,
        }
    }

    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            AuthError::Missing => "send a token as `Authorization: Bearer …`",
            AuthError::Malformed => "copy the whole token: it begins with tlo_, tla_ or tlj_",
            AuthError::Unknown | AuthError::Expired { .. } => {
                "ask an operator for a new one: `towline token create` makes it"
            }
            AuthError::Forbidden { .. } => "use a token that allows it",
            AuthError::Joined { instance } => {
                return Some(format!(
                    "if its token is lost: `towline forget {instance}`, then let it join again"
                ));
            }
            AuthError::Expires => "give an end: 90d is a good one for a job",
            AuthError::Name | AuthError::Record { .. } | AuthError::Random { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// Returns the field of the request that is to blame.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            AuthError::Name => Some("name"),
            AuthError::Expires => Some("expires_s"),
            _ => None,
        }
    }
}
