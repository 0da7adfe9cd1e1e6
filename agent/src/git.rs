//! Git: from a commit id to files on disk, through libgit2 and our own transports.
//!
//! ```text
//!   Origin ──► Cache::fetch ──► Cache::plan (walk under limits) ──► Cache::write (byte for byte)
//!     ├ http: smart protocol over reqwest and rustls ┐ with deadlines
//!     └ ssh: through the system's program            ┘ of their own
//! ```
//!
//! Refused here: refs that are not spelt out, tags, submodules, filters and attributes, and any
//! host's git configuration. Nothing of git2 leaves this module.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) mod address;
mod cache;
mod checkout;
mod fetch;
mod http;
mod origin;
pub(crate) mod ssh;
mod tip;
pub(crate) mod transport;
pub(crate) mod tree;

pub use cache::Cache;
pub use checkout::{Checkout, CheckoutError};
pub use fetch::{FetchError, Fetched};
pub use origin::{Origin, OriginConfig, OriginError, PlaceConfig};
pub use transport::{Room, TransportError, initialise};
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
    // How a unit says that there was no file to take a credential from.
    if let Some(why) = text.strip_prefix('#') {
        return Err(invalid(crate::shown::short_line(why, 200).as_str()));
    }
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(invalid("it holds no single line of text"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
