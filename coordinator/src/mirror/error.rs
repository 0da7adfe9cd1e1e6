//! Why a mirror could not answer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::said::{Said, Trouble};

/// Why a mirror could not answer.
///
/// `Display` leaves the cause to `source()`. It can be cloned because callers that wait for one fetch
/// share how it ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MirrorError {
    /// Not an address that git may be given.
    #[error("{url} is not an address that is fetched from")]
    Address {
        /// The address, without user and password.
        url: String,
    },
    /// The directory of all mirrors, or one of them, could not be used.
    #[error("could not use {}", dir.display())]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said, or git's words for it.
        source: Said,
    },
    /// There is too little room to fetch anything.
    #[error(
        "could not fetch: {} has {found_mib} MiB free, and {free_mib} stay free (mirror.free_mib)",
        dir.display()
    )]
    Full {
        /// The directory of all mirrors.
        dir: PathBuf,
        /// What is free.
        found_mib: u64,
        /// What stays free.
        free_mib: u64,
    },
    /// Git could not be started.
    #[error("could not run {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Git is older than the options that keep a mirror safe.
    #[error("{} is too old: it says {found:?}", program.display())]
    TooOld {
        /// The program.
        program: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// Nothing could be fetched; what was fetched before is still there.
    #[error("could not fetch {url}")]
    Fetch {
        /// The address, without user and password.
        url: String,
        /// What kept it from succeeding.
        trouble: Trouble,
        /// Git's words.
        source: Said,
    },
    /// The origin sent objects that git's checks refuse.
    #[error("could not accept what {url} sent")]
    Unsound {
        /// The address, without user and password.
        url: String,
        /// Git's words.
        source: Said,
    },
    /// A child did not end in time, and was killed with whatever it had started.
    #[error("could not {what} {url} within {} s", after.as_secs())]
    TimedOut {
        /// What was attempted: `fetch`, `read the mirror of`.
        what: &'static str,
        /// The address, without user and password.
        url: String,
        /// How long it was given.
        after: Duration,
    },
    /// Nothing has been fetched from there yet.
    #[error("could not look into {url}: it has not been fetched yet")]
    Empty {
        /// The address, without user and password.
        url: String,
    },
    /// The clone cannot be read; the next refresh makes it anew.
    #[error("could not read the mirror of {url}")]
    Broken {
        /// The address, without user and password.
        url: String,
        /// Git's words.
        source: Said,
    },
    /// Git failed, or answered what was not expected.
    #[error("could not {what} {url}")]
    Git {
        /// What was attempted.
        what: &'static str,
        /// The address, without user and password.
        url: String,
        /// Git's words.
        source: Said,
    },
    /// Not the name of a commit, a branch or a tag.
    #[error("{name:?} is not the name of a commit, a branch or a tag")]
    Name {
        /// The name as given, cut to a printable length.
        name: String,
    },
    /// There is no such thing.
    #[error("could not find {name:?} in {url}")]
    Unknown {
        /// The name as given.
        name: String,
        /// The address, without user and password.
        url: String,
        /// Names that look like it.
        candidates: Vec<String>,
    },
    /// The name means more than one commit.
    #[error("{name:?} means more than one commit in {url}: {}", meanings.join(", "))]
    Ambiguous {
        /// The name as given.
        name: String,
        /// The address, without user and password.
        url: String,
        /// What it means, such as `branch 4f2c 9b03d7a…`; at most ten.
        meanings: Vec<String>,
    },
    /// It is there, and is no commit.
    #[error("{name:?} is a {kind}, not a commit")]
    NotCommit {
        /// The name as given.
        name: String,
        /// What it is: `tree`, `blob`, `tag`.
        kind: String,
    },
}

impl MirrorError {
    /// May the same question be answered later, without anybody doing something?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            MirrorError::Fetch { trouble, .. } => {
                matches!(trouble, Trouble::Unreachable | Trouble::NotFound)
            }
            MirrorError::Disk { .. }
            | MirrorError::Full { .. }
            | MirrorError::TimedOut { .. }
            | MirrorError::Empty { .. }
            | MirrorError::Broken { .. }
            | MirrorError::Git { .. } => true,
            MirrorError::Address { .. }
            | MirrorError::Start { .. }
            | MirrorError::TooOld { .. }
            | MirrorError::Unsound { .. }
            | MirrorError::Name { .. }
            | MirrorError::Unknown { .. }
            | MirrorError::Ambiguous { .. }
            | MirrorError::NotCommit { .. } => false,
        }
    }

    /// Is it the name that was asked for that is to blame, and not the mirror?
    #[must_use]
    pub fn is_about_name(&self) -> bool {
        matches!(
            self,
            MirrorError::Name { .. }
                | MirrorError::Unknown { .. }
                | MirrorError::Ambiguous { .. }
                | MirrorError::NotCommit { .. }
        )
    }

    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            MirrorError::Address { .. } => {
                "use https://host/path, ssh://host/path or user@host:path".to_owned()
            }
            MirrorError::Full { .. } => {
                "free some space on the coordinator's disk, or lower mirror.free_mib".to_owned()
            }
            MirrorError::Disk { .. } => "check its owner, its mount and its space".to_owned(),
            MirrorError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "install git on the coordinator's host, or set mirror = false in the group"
                    .to_owned()
            }
            MirrorError::TooOld { .. } => {
                let (major, minor) = super::program::VERSION_MIN;
                format!("install git {major}.{minor} or newer")
            }
            MirrorError::Fetch { trouble, url, .. } => trouble_hint(*trouble, url)?,
            MirrorError::Unsound { .. } => {
                "run `git fsck` in the repository; a commit that it refuses has to be rewritten"
                    .to_owned()
            }
            MirrorError::TimedOut { what: "fetch", .. } => {
                "try again; for a large repository raise the mirror's fetch timeout".to_owned()
            }
            MirrorError::Name { .. } => {
                "give a commit id of 4 digits or more, or the plain name of a branch or a tag; \
                 expressions such as main~1 are not accepted"
                    .to_owned()
            }
            MirrorError::Unknown { candidates, .. } if candidates.is_empty() => {
                "check that it was pushed; only what branches and tags hold is known".to_owned()
            }
            MirrorError::Unknown { candidates, .. } => {
                format!("did you mean {}?", candidates.join(" or "))
            }
            MirrorError::Ambiguous { .. } => {
                "give more digits or the full id, or write refs/heads/… or refs/tags/…".to_owned()
            }
            MirrorError::NotCommit { kind, .. } if kind == "tag" => {
                "`git rev-parse 'NAME^{commit}'` prints the commit that a tag leads to".to_owned()
            }
            MirrorError::NotCommit { .. } => "`git rev-parse HEAD` prints a commit's id".to_owned(),
            MirrorError::Start { .. }
            | MirrorError::TimedOut { .. }
            | MirrorError::Empty { .. }
            | MirrorError::Broken { .. }
            | MirrorError::Git { .. } => return None,
        };
        Some(hint)
    }
}

fn trouble_hint(trouble: Trouble, url: &str) -> Option<String> {
    let hint = match trouble {
        Trouble::Unreachable => return None,
        Trouble::NotFound => {
            "check the address, and that the coordinator's credential may read it".to_owned()
        }
        Trouble::Denied => {
            "give the coordinator a credential for this host that may read the repository"
                .to_owned()
        }
        Trouble::HostKey => format!(
            "add the host's key to known_hosts of the coordinator's user, after comparing it: \
             ssh-keyscan {}",
            host(url)
        ),
        Trouble::Certificate => {
            "name the certificates to trust in the coordinator's configuration".to_owned()
        }
        Trouble::Redirect => {
            "set the address that it leads to; often that is the one that ends in .git".to_owned()
        }
        Trouble::Sha256 => "use a SHA-1 repository".to_owned(),
    };
    Some(hint)
}

/// Returns the host of an address, for a hint.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', ':']).next().unwrap_or_default();
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_each_form_of_address_is_found() {
        let cases = [
            ("https://git.example:8443/acme/web.git", "git.example"),
            ("ssh://…@git.example/web.git", "git.example"),
            ("git@git.example:acme/web.git", "git.example"),
        ];
        for (url, expected) in cases {
            assert_eq!(host(url), expected);
        }
    }
}
