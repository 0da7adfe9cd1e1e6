//! What an https origin wants to see before it gives something.
//!
//! A secret goes to the host that it was given for, by https, and nowhere else: a group's repository
//! may be set by whoever operates the group. It travels in the child's environment, never in argv.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// A secret, and the one host that gets it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The host, with its port where that is not 443: `git.example.com`, `git.example.com:8443`.
    pub host: String,
    /// What it gets.
    pub secret: Secret,
}

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file could not be read.
    #[error("could not read the credential {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said, or what is wrong with it.
        source: io::Error,
    },
    /// Everybody on the host may read it.
    #[error("the credential {} can be read by everybody on this host", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
}

impl CredentialError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            CredentialError::Read { .. } => {
                "put a token, or user:password, into that file".to_owned()
            }
            CredentialError::Exposed { path } => format!("chmod 0400 {}", path.display()),
        })
    }
}

impl Secret {
    /// Reads a token, or `user:password`, from a file that others may not read.
    ///
    /// # Errors
    ///
    /// See [`CredentialError`].
    pub fn read(path: &Path) -> Result<Self, CredentialError> {
        let failed = |source| CredentialError::Read { path: path.to_owned(), source };
        let invalid = |reason: &str| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
        let meta = fs::metadata(path).map_err(failed)?;
        if meta.mode() & 0o007 != 0 {
            return Err(CredentialError::Exposed { path: path.to_owned() });
        }
        if !meta.is_file() || meta.len() > SECRET_BYTES_MAX {
            return Err(invalid("it is no small file"));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let text = text.trim();
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(invalid("it holds no single line of text"));
        }
        let (user, password) = text.split_once(':').unwrap_or((TOKEN_USER, text));
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }

    /// The header's value that proves it.
    fn basic(&self) -> String {
        base64(format!("{}:{}", self.user, self.password).as_bytes())
    }

    /// What must not be shown.
    pub(super) fn words(&self) -> [String; 2] {
        [self.password.clone(), self.basic()]
    }
}

impl Credential {
    /// Returns git's settings that send this to `url`, where it is meant for it.
    ///
    /// The setting names the host once more, so that git itself sends it nowhere else.
    pub(super) fn settings(&self, url: &str) -> Option<(String, String)> {
        let is_loopback = |host: &str| {
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            matches!(name, "127.0.0.1" | "localhost" | "[::1]")
        };
        let (scheme, rest) = url.split_once("://")?;
        let host = rest.split('/').next().unwrap_or_default();
        let is_private = scheme == "https" || (scheme == "http" && is_loopback(host));
        let port = if scheme == "https" { ":443" } else { ":80" };
        let plain = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
        if !is_private || host.contains('@') || plain(host) != plain(&self.host) {
            return None;
        }
        let key = format!("http.{scheme}://{host}/.extraHeader");
        Some((key, format!("Authorization: Basic {}", self.secret.basic())))
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let is_padding = digit > chunk.len();
            out.push(if is_padding { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn bytes_are_encoded_as_servers_decode_them() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (text, expected) in cases {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn a_secret_goes_to_its_host_alone() {
        let secret = Secret { user: "u".to_owned(), password: "p".to_owned() };
        let cases = [
            ("its host", "git.example", "https://git.example/a.git", true),
            ("in capitals", "git.example", "https://GIT.example/a.git", true),
            ("the usual port, written", "git.example", "https://git.example:443/a.git", true),
            ("its own port", "git.example:8443", "https://git.example:8443/a.git", true),
            ("another port", "git.example", "https://git.example:8443/a.git", false),
            ("another host", "git.example", "https://evil.example/a.git", false),
            ("a longer name", "git.example", "https://git.example.evil/a.git", false),
            ("a name before it", "git.example", "https://evil.git.example/a.git", false),
            ("in the path", "git.example", "https://evil/git.example/", false),
            ("as a user", "git.example", "https://git.example@evil/", false),
            ("in the clear", "git.example", "http://git.example/a.git", false),
            ("in the clear, to ourselves", "127.0.0.1:80", "http://127.0.0.1/a.git", true),
            ("by ssh", "git.example", "git@git.example:a.git", false),
        ];
        for (rule, host, url, sent) in cases {
            let credential = Credential { host: host.to_owned(), secret: secret.clone() };
            assert_eq!(credential.settings(url).is_some(), sent, "{rule}");
        }
    }

    #[test]
    fn a_credential_is_for_one_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str, mode| {
            if path.exists() {
                fs::remove_file(&path).unwrap();
            }
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Secret::read(&path)
        };
        let secret = read("s3cret\n", 0o400).unwrap();
        assert_eq!((secret.user.as_str(), secret.password.as_str()), (TOKEN_USER, "s3cret"));
        assert!(!format!("{secret:?}").contains("s3cret"));
        let secret = read("bot:s3:cret", 0o440).unwrap();
        assert_eq!((secret.user.as_str(), secret.password.as_str()), ("bot", "s3:cret"));
        for (text, mode) in [("s3cret", 0o444), ("", 0o600), ("a\nb", 0o600)] {
            assert!(read(text, mode).is_err(), "{text:?} with mode {mode:o}");
        }
    }
}
