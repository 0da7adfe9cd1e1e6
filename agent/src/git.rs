//! Git: from a commit id to files on disk, through libgit2 and our own transport.
//!
//! ```text
//!   Origin ──► Cache::fetch ──► Cache::plan (walk under limits) ──► Cache::write (byte for byte)
//!     └ http: smart protocol over reqwest and rustls, with deadlines of its own
//! ```
//!
//! Refused here: refs that are not spelt out, tags, submodules, filters and attributes, and any
//! host's git configuration. Nothing of git2 leaves this module.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Url, redirect};

mod checkout;
mod fetch;
mod http;
mod tip;
mod tree;

pub use checkout::{Checkout, CheckoutError};
pub use fetch::{Cache, FetchError, Fetched};
pub use http::{Room, TransportError, initialise};
pub use tree::{Limits, Plan, TreeError};

/// The largest credential file that is read: a token has some hundred bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// The user that hosting services expect beside a token.
const TOKEN_USER: &str = "x-access-token";

/// A user and a password that are never shown.
#[derive(Clone)]
pub struct Secret {
    user: String,
    password: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where revisions come from, as host config says.
#[derive(Debug)]
pub struct OriginConfig {
    /// The repository's address.
    pub url: String,
    /// The branch that is fetched where the server gives no commit by its id.
    pub branch: Option<String>,
    /// Sent to that address's host only.
    pub token: Option<Secret>,
    /// Accept plain http.
    pub allow_http: bool,
    /// Always fetch the branch, and refuse commits that are not on it.
    pub verify_branch: bool,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait without receiving a byte.
    pub stall: Duration,
    /// How long one fetch may take in all.
    pub total: Duration,
}

/// Where revisions come from, checked.
#[derive(Debug)]
pub struct Origin {
    url: Url,
    branch: Option<String>,
    token: Option<Secret>,
    verify_branch: bool,
    stall: Duration,
    total: Duration,
    client: Client,
}

/// Why an origin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Not an address that git is fetched from here.
    #[error("git.url {url:?} {reason}")]
    Url {
        /// The address, without credentials.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not the name of a branch.
    #[error("git.branch {branch:?} is not the name of a branch")]
    Branch {
        /// The name as given.
        branch: String,
    },
    /// `verify_branch` without a branch.
    #[error("git.verify_branch is set, and git.branch is not")]
    NoBranch,
    /// The credential's file could not be read.
    #[error("could not read the credential {}", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// What the operating system said, or what is wrong with it.
        source: io::Error,
    },
    /// Everybody on the host may read the credential.
    #[error("the credential {} can be read by everybody on this host", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The certificates could not be read.
    #[error("could not use the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS client could not be made.
    #[error("could not set up the https client")]
    Client(#[source] reqwest::Error),
}

impl OriginError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            OriginError::Url { .. } => {
                Some("use an address such as https://git.example.com/acme/web.git".to_owned())
            }
            OriginError::Branch { .. } => Some("use a name such as main".to_owned()),
            OriginError::NoBranch => Some("name the branch that releases come from".to_owned()),
            OriginError::Credential { .. } => {
                Some("put a token, or user:password, into that file".to_owned())
            }
            OriginError::Exposed { path } => Some(format!("chmod 0400 {}", path.display())),
            OriginError::Certificates { .. } => Some("use PEM certificates".to_owned()),
            OriginError::Client(_) => None,
        }
    }
}

impl Secret {
    /// Reads a token, or `user:password`, from a file that others may not read.
    ///
    /// # Errors
    ///
    /// See [`OriginError`].
    pub fn read(path: &Path) -> Result<Self, OriginError> {
        let text = secret_text(path)?;
        let (user, password) = text.split_once(':').unwrap_or((TOKEN_USER, &text));
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }
}

/// Reads a secret of one line from a file that others may not read.
pub(crate) fn secret_text(path: &Path) -> Result<String, OriginError> {
    let failed = |source| OriginError::Credential { path: path.to_owned(), source };
    let invalid = |reason: &str| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    let meta = fs::metadata(path).map_err(failed)?;
    if meta.mode() & 0o007 != 0 {
        return Err(OriginError::Exposed { path: path.to_owned() });
    }
    if !meta.is_file() || meta.len() > SECRET_BYTES_MAX {
        return Err(invalid("it is no small file"));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(invalid("it holds no single line of text"));
    }
    Ok(text.to_owned())
}

impl Origin {
    /// Checks an origin, and sets its client up. A TLS provider must have been installed.
    ///
    /// # Errors
    ///
    /// See [`OriginError`].
    pub fn new(config: OriginConfig) -> Result<Self, OriginError> {
        let url = address(&config.url, config.allow_http)?;
        if let Some(branch) = &config.branch {
            let name = format!("refs/heads/{branch}");
            if branch.starts_with('-') || !git2::Reference::is_valid_name(&name) {
                return Err(OriginError::Branch { branch: branch.clone() });
            }
        } else if config.verify_branch {
            return Err(OriginError::NoBranch);
        }
        let mut client = Client::builder()
            .user_agent(concat!("git/2.0 (towline-agent ", env!("CARGO_PKG_VERSION"), ")"))
            .redirect(redirect::Policy::none())
            .connect_timeout(config.connect)
            // A connection that was idle for minutes may be dead: each fetch makes its own.
            .pool_idle_timeout(Duration::from_secs(5));
        if let Some(path) = &config.ca_file {
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
                OriginError::Certificates { path: path.clone(), source }
            };
            let pem = fs::read(path).map_err(|error| failed(error.into()))?;
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
            if certificates.is_empty() {
                return Err(failed("it holds no certificate".into()));
            }
            client = client.tls_certs_only(certificates);
        }
        Ok(Self {
            url,
            branch: config.branch,
            token: config.token,
            verify_branch: config.verify_branch,
            stall: config.stall,
            total: config.total,
            client: client.build().map_err(OriginError::Client)?,
        })
    }

    /// Must each commit be shown to be on the branch?
    #[must_use]
    pub fn verifies_branch(&self) -> bool {
        self.verify_branch
    }
}

/// Checks an address before git sees it.
fn address(text: &str, allow_http: bool) -> Result<Url, OriginError> {
    let refuse = |reason| {
        // Whatever stands before an `@` may be a secret.
        let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(OriginError::Url { url: shown, reason })
    };
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("holds white space or control characters");
    }
    let is_http = text.starts_with("http://");
    if !text.starts_with("https://") && !is_http {
        return refuse("is no https address; ssh and other forms are not supported");
    }
    if is_http && !allow_http {
        return refuse("is plain http, which git.allow_http = true would allow");
    }
    let Ok(mut url) = Url::parse(text) else { return refuse("is no valid address") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            "holds a user or a password: put it into the file that git.credential names",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("has a query or a fragment");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_https_addresses_without_secrets_are_used() {
        let cases = [
            ("https", "https://git.example/web.git", false, true),
            ("plain http", "http://git.example/web.git", false, false),
            ("plain http, allowed", "http://127.0.0.1:8080/web.git", true, true),
            ("an option", "--upload-pack=touch /tmp/x", true, false),
            ("a helper", "ext::sh -c date", true, false),
            ("a file", "file:///srv/web.git", true, false),
            ("a path", "/srv/web.git", true, false),
            ("ssh", "ssh://git@git.example/web.git", true, false),
            ("scp form", "git@git.example:web.git", true, false),
            ("a password", "https://user:secret@git.example/web.git", true, false),
            ("a newline", "https://git.example/\nweb.git", true, false),
            ("a query", "https://git.example/web.git?x=-u", true, false),
        ];
        for (rule, text, allow_http, valid) in cases {
            let found = address(text, allow_http);
            assert_eq!(found.is_ok(), valid, "{rule}");
            if let Err(error) = found {
                assert!(!error.to_string().contains("secret"), "{error}");
            }
        }
    }

    #[test]
    fn a_credential_is_for_one_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("s3cret\n", 0o400);
        let secret = Secret::read(&path).unwrap();
        assert_eq!((secret.user.as_str(), secret.password.as_str()), (TOKEN_USER, "s3cret"));
        assert!(!format!("{secret:?}").contains("s3cret"));
        fs::remove_file(&path).unwrap();
        write("bot:s3:cret", 0o440);
        let secret = Secret::read(&path).unwrap();
        assert_eq!((secret.user.as_str(), secret.password.as_str()), ("bot", "s3:cret"));
        for (text, mode) in [("s3cret", 0o444), ("", 0o600), ("a\nb", 0o600)] {
            fs::remove_file(&path).unwrap();
            write(text, mode);
            let error = Secret::read(&path).unwrap_err();
            assert!(!crate::error::chain(&error).contains("s3cret"), "{error}");
        }
    }
}
