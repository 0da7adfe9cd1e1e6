//! Secrets: what they look like, and what is shown of them, which is nothing.
//!
//! ```text
//!   tlo_ │ 64 hexadecimal digits: 256 random bits │ 8 digits: the beginning of the SHA-256 of all before
//! ```
//!
//! The checksum lets a scanner tell a leaked secret from noise, and a cut one from a wrong one.

use std::fmt;

use sha2::{Digest, Sha256};

use super::TOKENS;
use super::error::AuthError;

const RANDOM_DIGITS: usize = 64;
const CHECKSUM_DIGITS: usize = 8;

/// How many digits of a token's hash are its id.
pub const ID_DIGITS: usize = 12;

/// Whose secret it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An operator's.
    Operator,
    /// An agent's.
    Agent,
    /// A group's, to join it.
    Join,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Operator, Kind::Agent, Kind::Join];

    /// Returns what its secrets begin with.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Kind::Operator => "tlo_",
            Kind::Agent => "tla_",
            Kind::Join => "tlj_",
        }
    }
}

/// A secret. It is shown by [`Secret::expose`] and by nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    kind: Kind,
    text: String,
}

impl Secret {
    /// Makes a new one.
    ///
    /// # Errors
    ///
    /// The operating system gives no random bytes.
    pub fn random(kind: Kind) -> Result<Self, AuthError> {
        let mut bytes = [0; RANDOM_DIGITS / 2];
        getrandom::fill(&mut bytes)
            .map_err(|error| AuthError::Random { found: error.to_string() })?;
        Ok(Self::of(kind, bytes))
    }

    /// Returns the secret of these bytes.
    #[must_use]
    pub fn of(kind: Kind, bytes: [u8; RANDOM_DIGITS / 2]) -> Self {
        let mut text = format!("{}{}", kind.prefix(), hex(&bytes));
        text.push_str(&checksum(&text));
        Self { kind, text }
    }

    /// Reads the value of an `Authorization` header.
    ///
    /// # Errors
    ///
    /// There is none, or it is no secret of ours.
    pub fn parse_header(value: Option<&str>) -> Result<Self, AuthError> {
        let value = value.ok_or(AuthError::Missing)?;
        match value.split_once(' ') {
            Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => text.trim().parse(),
            _ => Err(AuthError::Malformed),
        }
    }

    /// Returns whose it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the secret itself, to be given to whom it is for, once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns its hash, which is what is stored.
    #[must_use]
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(&self.text))
    }

    /// Returns what a token of this secret is known by.
    #[must_use]
    pub fn id(&self) -> String {
        self.hash()[..ID_DIGITS].to_owned()
    }

    /// Returns the key of its [`super::TokenRecord`].
    #[must_use]
    pub fn token_key(&self) -> String {
        format!("{TOKENS}{}", self.hash())
    }
}

impl std::str::FromStr for Secret {
    type Err = AuthError;

    fn from_str(text: &str) -> Result<Self, AuthError> {
        let kind = Kind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()));
        let kind = kind.ok_or(AuthError::Malformed)?;
        let digits = &text[kind.prefix().len()..];
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_whole = digits.len() == RANDOM_DIGITS + CHECKSUM_DIGITS;
        if !is_whole || !digits.bytes().all(is_digit) {
            return Err(AuthError::Malformed);
        }
        let (unchecked, sum) = text.split_at(text.len() - CHECKSUM_DIGITS);
        if checksum(unchecked) == sum {
            Ok(Self { kind, text: text.to_owned() })
        } else {
            Err(AuthError::Malformed)
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.kind.prefix())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(text: &str) -> String {
    hex(&Sha256::digest(text)[..CHECKSUM_DIGITS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_from_a_header_and_nothing_else_is() {
        let secret = Secret::of(Kind::Operator, [7; 32]);
        let text = secret.expose().to_owned();
        let header = |text: &str| format!("Bearer {text}");
        let other = |from, to| header(&text.replacen(from, to, 1));
        let flipped = format!("{}{}", &text[..20], text[20..].replacen('7', "8", 1));
        let short = format!("tlo_{0}{1}", "07", checksum("tlo_07"));
        let cases = [
            ("as it was made", Some(header(&text)), Ok(secret.clone())),
            ("any case of the scheme", Some(format!("bearer {text}")), Ok(secret.clone())),
            ("spaces around", Some(format!("Bearer  {text} ")), Ok(secret.clone())),
            ("no header", None, Err(AuthError::Missing)),
            ("no scheme", Some(text.clone()), Err(AuthError::Malformed)),
            ("another scheme", Some(format!("Basic {text}")), Err(AuthError::Malformed)),
            ("no token", Some("Bearer ".to_owned()), Err(AuthError::Malformed)),
            ("cut", Some(header(&text[..text.len() - 1])), Err(AuthError::Malformed)),
            ("longer", Some(header(&format!("{text}0"))), Err(AuthError::Malformed)),
            ("nothing but its kind", Some(header("tlo_")), Err(AuthError::Malformed)),
            ("too little randomness", Some(header(&short)), Err(AuthError::Malformed)),
            ("one digit is another", Some(header(&flipped)), Err(AuthError::Malformed)),
            ("of another kind", Some(other("tlo_", "tla_")), Err(AuthError::Malformed)),
            ("of no kind", Some(other("tlo_", "tlx_")), Err(AuthError::Malformed)),
            ("upper case", Some(header(&text.to_uppercase())), Err(AuthError::Malformed)),
            ("no digits", Some(other("07", "ßß")), Err(AuthError::Malformed)),
        ];
        for (rule, value, expected) in cases {
            assert_eq!(Secret::parse_header(value.as_deref()), expected, "{rule}");
        }
    }

    #[test]
    fn secrets_differ_and_say_whose_they_are() {
        for kind in Kind::ALL {
            let (one, other) = (Secret::random(kind).unwrap(), Secret::random(kind).unwrap());
            assert_ne!(one, other);
            assert_ne!(one.hash(), other.hash());
            assert!(one.expose().starts_with(kind.prefix()));
            assert_eq!(one.expose().len(), 4 + 64 + 8);
            assert_eq!(one.expose().parse::<Secret>().unwrap(), one);
        }
    }

    #[test]
    fn a_secret_is_not_shown_and_not_stored() {
        let secret = Secret::of(Kind::Join, [0xab; 32]);
        assert_eq!(format!("{secret:?}"), "tlj_…");
        assert!(!secret.token_key().contains("abab") && !secret.id().contains("abab"));
        // sha256sum of the text, once and for all: what is stored must be found later.
        let known = Secret::of(Kind::Operator, [0; 32]);
        let text = format!("tlo_{}", "0".repeat(64));
        assert!(known.expose().starts_with(&text));
        assert_eq!(&known.expose()[text.len()..], SUM);
        assert_eq!(known.id(), ID);
    }

    const SUM: &str = "f1e0eb6e";
    const ID: &str = "240e9deae877";
}
