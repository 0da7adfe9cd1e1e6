//! Names and ids: groups, instances, revisions, and the order of targets.
//!
//! Each type checks its text once, in `FromStr` (and so in serde); a value that exists is valid.
//! None of them ever holds a character that a shell, a path or a git command line could take for
//! something else: no slash, no leading dash, no control character.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most characters that a group's or an instance's name may have.
///
/// SSM parameter names allow 1,011 characters in all; 64 leaves room for any prefix.
pub const NAME_LENGTH_MAX: usize = 64;

/// Why a text is no valid id. `Display` says what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the name of a group or an instance.
    #[error(
        "{what} {text:?} is not valid: use 1 to {NAME_LENGTH_MAX} of a-z A-Z 0-9 . _ -, and begin \
         with a letter or a digit"
    )]
    Name {
        /// `group` or `instance`.
        what: &'static str,
        /// The text as given, cut to a printable length.
        text: String,
    },
    /// Not a full commit id.
    #[error(
        "revision {text:?} is not a full commit id: use 40 or 64 hexadecimal digits (`git rev-parse \
         HEAD` prints them); a branch, a tag or a short id is not accepted here"
    )]
    Revision {
        /// The text as given, cut to a printable length.
        text: String,
    },
}

/// Cuts what an error repeats, so that bad input cannot flood a log.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_LENGTH_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::Name { what: $what, text: shown(text) })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a group: the instances that run the same thing and are rolled out together.
    Group, "group"
}

name! {
    /// The name of an instance: its `i-…` id on EC2, any name of its own elsewhere.
    Instance, "instance"
}

/// A full git commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
///
/// Upper-case digits are accepted and folded, so that two spellings of one commit are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(String);

impl Revision {
    /// How many digits [`Revision::short`] keeps.
    const SHORT_LENGTH: usize = 7;

    /// Returns all digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first seven digits, for people; never for a decision.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..Self::SHORT_LENGTH]
    }
}

impl FromStr for Revision {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(IdError::Revision { text: shown(text) })
        }
    }
}

impl TryFrom<String> for Revision {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> String {
        revision.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of a target in the order of all targets of its group; a lower one is refused.
///
/// Compared by epoch first. The epoch names the life of a store (the time of its creation in
/// seconds); every change of a group's target is the next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    /// The life of the store that wrote the target.
    pub epoch: u64,
    /// Counts the changes of the group's target within the epoch.
    pub generation: u64,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} of epoch {}", self.generation, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        let long = "a".repeat(NAME_LENGTH_MAX);
        let too_long = "a".repeat(NAME_LENGTH_MAX + 1);
        let cases = [
            ("a letter", "a", true),
            ("an instance id", "i-0a17bc", true),
            ("dots and underscores", "web.eu_1", true),
            ("the longest", &long, true),
            ("one too many", &too_long, false),
            ("empty", "", false),
            ("a leading dash is an option", "-rf", false),
            ("a leading dot is a hidden path", ".git", false),
            ("a slash is a path", "a/b", false),
            ("a space", "a b", false),
            ("a newline", "a\n", false),
            ("a letter of another alphabet", "wеb", false),
        ];
        for (rule, text, valid) in cases {
            assert_eq!(text.parse::<Group>().is_ok(), valid, "{rule}");
            assert_eq!(text.parse::<Instance>().is_ok(), valid, "{rule}");
        }
    }

    #[test]
    fn revisions_are_full_commit_ids() {
        let sha1 = "4f2c91e0".repeat(5);
        let sha256 = "4f2c91e0".repeat(8);
        let cases = [
            ("sha-1", sha1.clone(), true),
            ("sha-256", sha256, true),
            ("upper case", sha1.to_uppercase(), true),
            ("a short id", "4f2c91e".to_owned(), false),
            ("39 digits", sha1[1..].to_owned(), false),
            ("41 digits", format!("{sha1}0"), false),
            ("a branch", "main".to_owned(), false),
            ("an option", format!("--upload-pack={}", &sha1[14..]), false),
            ("no digit among 40", format!("{}g", &sha1[1..]), false),
        ];
        for (rule, text, valid) in cases {
            assert_eq!(text.parse::<Revision>().is_ok(), valid, "{rule}");
        }
        let folded: Revision = sha1.to_uppercase().parse().unwrap();
        assert_eq!(folded.as_str(), sha1, "upper case is folded");
    }

    #[test]
    fn epoch_comes_before_generation() {
        let order = |epoch, generation| Order { epoch, generation };
        assert!(order(1, 9) < order(2, 1));
        assert!(order(1, 9) < order(1, 10));
    }

    #[test]
    fn an_error_repeats_only_the_beginning_of_what_was_given() {
        let error = "x".repeat(10_000).parse::<Revision>().unwrap_err();
        assert!(error.to_string().len() < 400);
    }
}
