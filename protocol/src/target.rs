//! The target: which revision a group should run, as one JSON document.
//!
//! The same document serves as a local file, as a parameter and as a coordinator's answer. A field
//! that is unknown here is ignored, so that an older agent can read what a newer coordinator wrote;
//! a field that is known must be right.

use serde::{Deserialize, Serialize};

use crate::ids::{Group, Order, Revision};

/// The version of the document that this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The largest document that is read, in bytes: a standard SSM parameter holds 4 KB.
pub const SIZE_BYTES_MAX: u64 = 4096;

/// What a group should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The version of this document; see [`VERSION`].
    pub version: u32,
    /// Whose target it is.
    pub group: Group,
    /// Its place among all targets of the group; a lower one than was seen is refused.
    #[serde(flatten)]
    pub order: Order,
    /// The revision that the group should run. `None`, with `not`: what served before that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// What must not serve, where no revision is known that should: who serves it goes back to its newest
    /// other proven or adopted release, and all others keep what serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Revision>,
    /// The newest group-proven revision other than `revision`: what a boot falls back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Revision>,
    /// Revisions that a boot takes last of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<Revision>,
    /// Counts orders to restart; a higher one than was carried out is an order.
    #[serde(default)]
    pub restart: u64,
}

/// Why a document is no target for this group.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Larger than [`SIZE_BYTES_MAX`].
    #[error("the target document has {bytes} bytes; at most {SIZE_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Not the JSON that is due; the source names line, column and field.
    #[error("the target document could not be read")]
    Malformed(#[source] serde_json::Error),
    /// Written by a newer coordinator.
    #[error("the target document has version {version}; this agent reads up to {VERSION}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// It names neither a revision nor what must not serve, or both.
    #[error("the target document must name either `revision` or `not`")]
    Aimless,
    /// Another group's.
    #[error("the target document is for group {found}; this instance belongs to group {own}")]
    Group {
        /// The group that it names.
        found: Group,
        /// This instance's group.
        own: Group,
    },
}

impl TargetError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            TargetError::TooLarge { .. } | TargetError::Malformed(_) | TargetError::Aimless => {
                "write one JSON object with version, group, epoch, generation and a full revision"
            }
            TargetError::Version { .. } => "install a newer agent on this instance first",
            TargetError::Group { .. } => "correct `group` in the document or in the host's config",
        }
    }
}

impl Target {
    /// Reads a document that is meant for `own`.
    ///
    /// # Errors
    ///
    /// See [`TargetError`]; the document has then no effect at all.
    pub fn parse(bytes: &[u8], own: &Group) -> Result<Target, TargetError> {
        let length = bytes.len() as u64;
        if length > SIZE_BYTES_MAX {
            return Err(TargetError::TooLarge { bytes: length });
        }
        let target: Target = serde_json::from_slice(bytes).map_err(TargetError::Malformed)?;
        target.check(own)?;
        Ok(target)
    }

    /// Checks what was read as a part of something else.
    ///
    /// # Errors
    ///
    /// See [`TargetError`]; it has then no effect at all.
    pub fn check(&self, own: &Group) -> Result<(), TargetError> {
        if self.version == 0 || self.version > VERSION {
            return Err(TargetError::Version { version: self.version });
        }
        if self.revision.is_some() == self.not.is_some() {
            return Err(TargetError::Aimless);
        }
        if self.group != *own {
            return Err(TargetError::Group { found: self.group.clone(), own: own.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../golden/target-1.json");
    const LEAST: &str = include_str!("../golden/target-1-least.json");

    fn web() -> Group {
        "web".parse().unwrap()
    }

    #[test]
    fn the_golden_documents_keep_parsing() {
        let target = Target::parse(GOLDEN.as_bytes(), &web()).unwrap();
        assert_eq!(target.order, Order { epoch: 1_790_000_000, generation: 118 });
        assert_eq!(target.revision.as_ref().map(Revision::short), Some("4f2c91e"));
        assert_eq!(target.fallback.as_ref().map(Revision::short), Some("9b03d7a"));
        assert_eq!(target.restart, 2);
        let again = serde_json::to_vec(&target).unwrap();
        assert_eq!(Target::parse(&again, &web()).unwrap(), target, "writing and reading agree");

        let least = Target::parse(LEAST.as_bytes(), &web()).unwrap();
        assert_eq!((least.fallback, least.restart), (None, 0));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        let edit = |from: &str, to: &str| {
            assert!(GOLDEN.contains(from), "{from} is in the golden document");
            GOLDEN.replacen(from, to, 1)
        };
        let cases = [
            ("empty", String::new()),
            ("a branch where a revision is due", edit(&"4f2c91e0".repeat(5), "main")),
            ("a short id", edit(&"4f2c91e0".repeat(5), "4f2c91e")),
            ("neither a revision nor what must not serve", edit("\"revision\"", "\"revisions\"")),
            ("both", edit("\"fallback\"", "\"not\"")),
            ("another group's", edit("\"web\"", "\"api\"")),
            ("no group's name", edit("\"web\"", "\"../web\"")),
            ("a newer version", edit("\"version\": 1", "\"version\": 2")),
            ("version zero", edit("\"version\": 1", "\"version\": 0")),
            ("a negative generation", edit("118", "-118")),
            ("no generation", edit("\"generation\"", "\"generations\"")),
            ("a byte order mark", format!("\u{feff}{GOLDEN}")),
            ("two documents", format!("{GOLDEN}{GOLDEN}")),
            ("cut off", GOLDEN[..GOLDEN.len() / 2].to_owned()),
            ("too large", format!("{GOLDEN}{}", " ".repeat(5000))),
        ];
        for (rule, text) in cases {
            assert!(Target::parse(text.as_bytes(), &web()).is_err(), "{rule}");
        }
        assert!(Target::parse(b"\xff\xfe{}", &web()).is_err(), "not UTF-8");
    }
}
