//! Where revisions come from, checked: the origin, and mirrors of it.
//!
//! An address gets what is configured for it and nothing else: no credential goes from one to another.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};

use super::Secret;
use super::address::{self, Address, SshAddress};
use super::http::HttpAccess;
use super::ssh::SshAccess;
use crate::process::{Account, PATH};

/// The largest file that is taken for a private key: one of RSA with 16,384 bits has some 13 KB.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// How the text of a private key begins that has no passphrase, in the form that OpenSSH writes: the
/// form's name, and `none` for the cipher, encoded.
const OPEN_KEY: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";

/// Where revisions come from, as host config says.
#[derive(Debug)]
pub struct OriginConfig {
    /// The addresses, asked in turn; at least one.
    pub places: Vec<PlaceConfig>,
    /// The branch that is fetched where the server gives no commit by its id.
    pub branch: Option<String>,
    /// Accept plain http.
    pub allow_http: bool,
    /// Always fetch the branch, and refuse commits that are not on it.
    pub verify_branch: bool,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait without receiving a byte.
    pub stall: Duration,
    /// How long one fetch may take in all.
    pub total: Duration,
    /// Where the ssh program is looked for; the usual places where it is not said.
    pub search_path: Option<String>,
}

/// One address of the repository, and what is for it alone.
#[derive(Debug)]
pub struct PlaceConfig {
    /// The field of host config that names it.
    pub field: &'static str,
    /// The address.
    pub url: String,
    /// A file with a token, or with a private key for ssh.
    pub credential: Option<PathBuf>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The hosts' public keys to trust.
    pub known_hosts: Option<PathBuf>,
}

/// Where revisions come from, checked.
#[derive(Debug)]
pub struct Origin {
    pub(super) places: Vec<Arc<Place>>,
    pub(super) branch: Option<String>,
    pub(super) verify_branch: bool,
    pub(super) stall: Duration,
    pub(super) total: Duration,
}

/// One address, and how it is reached.
#[derive(Debug)]
pub(super) struct Place {
    /// The address, as it is shown.
    pub(super) url: String,
    pub(super) access: Access,
}

/// How an address is reached.
#[derive(Debug)]
pub(super) enum Access {
    /// By http or https.
    Http(Arc<HttpAccess>),
    /// By ssh.
    Ssh(Arc<SshAccess>),
}

/// Why an origin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Not an address that git is fetched from here.
    #[error("{field} {url:?} {reason}")]
    Url {
        /// The field's full name.
        field: &'static str,
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
    /// The private key cannot be used.
    #[error("could not use the private key {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the operating system said, or what is wrong with it.
        source: io::Error,
    },
    /// Others than its owner may read the private key, and ssh does not use such a one.
    #[error("the private key {} can be read by its group", path.display())]
    Shared {
        /// The file.
        path: PathBuf,
    },
    /// The hosts' public keys cannot be read.
    #[error("could not read the known hosts in {}", path.display())]
    KnownHosts {
        /// The file.
        path: PathBuf,
        /// What the operating system said, or what is wrong with the name.
        source: io::Error,
    },
    /// A setting that does nothing for an address of this kind.
    #[error("{field} {url:?} is no address that {setting} is for")]
    Misplaced {
        /// The field's full name.
        field: &'static str,
        /// The address.
        url: String,
        /// The setting.
        setting: &'static str,
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
                Some(
                    "use an address such as https://git.example.com/acme/web.git, or \
                     git@git.example.com:acme/web.git"
                        .to_owned(),
                )
            }
            OriginError::Branch { .. } => Some("use a name such as main".to_owned()),
            OriginError::NoBranch => Some("name the branch that releases come from".to_owned()),
            OriginError::Credential { .. } => {
                Some("put a token, or user:password, into that file".to_owned())
            }
            OriginError::Key { .. } => Some(
                "put a private key without a passphrase into that file: ssh-keygen -t ed25519 -N '' \
                 -f FILE"
                    .to_owned(),
            ),
            OriginError::KnownHosts { .. } => {
                Some("ssh-keyscan HOST prints what belongs there; compare its fingerprint".to_owned())
            }
            OriginError::Misplaced { setting, .. } => Some(match *setting {
                "known_hosts" => "it goes with an ssh address; leave it out".to_owned(),
                _ => "it goes with an https address; leave it out".to_owned(),
            }),
            OriginError::Exposed { path } | OriginError::Shared { path } => Some(format!("chmod 0400 {}", path.display())),
            OriginError::Certificates { .. } => Some("use PEM certificates".to_owned()),
            OriginError::Client(_) => None,
        }
    }
}

impl Origin {
    /// Checks an origin, and sets its clients up. A TLS provider must have been installed.
    ///
    /// # Errors
    ///
    /// See [`OriginError`].
    pub fn new(config: OriginConfig) -> Result<Self, OriginError> {
        if let Some(branch) = &config.branch {
            let name = format!("refs/heads/{branch}");
            if branch.starts_with('-') || !git2::Reference::is_valid_name(&name) {
                return Err(OriginError::Branch { branch: branch.clone() });
            }
        } else if config.verify_branch {
            return Err(OriginError::NoBranch);
        }
        let place = |place: &PlaceConfig| Place::new(place, &config).map(Arc::new);
        Ok(Self {
            places: config.places.iter().map(place).collect::<Result<_, _>>()?,
            branch: config.branch,
            verify_branch: config.verify_branch,
            stall: config.stall,
            total: config.total,
        })
    }

    /// Must each commit be shown to be on the branch?
    #[must_use]
    pub fn verifies_branch(&self) -> bool {
        self.verify_branch
    }

    /// Returns what is likely to fail, though it is no mistake: for a check, before the first fetch.
    /// Asks `ssh-keygen` which hosts are known.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let home = Account::own().home;
        let doubt = |place: &Arc<Place>| match &place.access {
            Access::Http(_) => None,
            Access::Ssh(access) => access.doubt(&home),
        };
        self.places.iter().filter_map(doubt).collect()
    }
}

impl Place {
    fn new(place: &PlaceConfig, config: &OriginConfig) -> Result<Self, OriginError> {
        let field = place.field;
        let misplaced = |setting| {
            let url = address::shown(&place.url);
            Err(OriginError::Misplaced { field, url, setting })
        };
        let credential = place.credential.as_deref();
        match address::parse(&place.url, config.allow_http) {
            Err(reason) => Err(OriginError::Url { field, url: address::shown(&place.url), reason }),
            Ok(Address::Http(_)) if place.known_hosts.is_some() => misplaced("known_hosts"),
            Ok(Address::Ssh(_)) if place.ca_file.is_some() => misplaced("ca_file"),
            Ok(Address::Http(url)) => {
                let token = credential.map(Secret::read).transpose()?;
                let client = client(place.ca_file.as_deref(), config.connect)?;
                let shown = url.to_string();
                let access = Access::Http(Arc::new(HttpAccess { url, token, client }));
                Ok(Self { url: shown, access })
            }
            Ok(Address::Ssh(address)) => {
                credential.map(check_key).transpose()?;
                place.known_hosts.as_deref().map(check_known_hosts).transpose()?;
                Ok(Self::by_ssh(address, place, config))
            }
        }
    }

    fn by_ssh(address: SshAddress, place: &PlaceConfig, config: &OriginConfig) -> Self {
        let url = address.to_string();
        let access = Access::Ssh(Arc::new(SshAccess {
            address,
            key: place.credential.clone(),
            known_hosts: place.known_hosts.clone(),
            connect: config.connect,
            search_path: config.search_path.clone().unwrap_or_else(|| PATH.to_owned()),
        }));
        Self { url, access }
    }

    /// Returns the address that libgit2 is given. Ours alone know the one of an ssh host.
    pub(super) fn handle(&self) -> &str {
        match &self.access {
            Access::Http(access) => access.url.as_str(),
            Access::Ssh(_) => "ssh://origin/",
        }
    }
}

fn client(ca_file: Option<&Path>, connect: Duration) -> Result<Client, OriginError> {
    let mut client = Client::builder()
        .user_agent(concat!("git/2.0 (towline-agent ", env!("CARGO_PKG_VERSION"), ")"))
        .redirect(redirect::Policy::none())
        .connect_timeout(connect)
        // A connection that was idle for minutes may be dead: each fetch makes its own.
        .pool_idle_timeout(Duration::from_secs(5));
    if let Some(path) = ca_file {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| OriginError::Certificates {
            path: path.to_owned(),
            source,
        };
        let pem = fs::read(path).map_err(|error| failed(error.into()))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
        if certificates.is_empty() {
            return Err(failed("it holds no certificate".into()));
        }
        client = client.tls_certs_only(certificates);
    }
    client.build().map_err(OriginError::Client)
}

/// Looks at a private key as ssh will, which would only say that it has none.
fn check_key(path: &Path) -> Result<(), OriginError> {
    let failed = |source| OriginError::Key { path: path.to_owned(), source };
    let invalid = |reason: &str| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > KEY_BYTES_MAX {
        return Err(invalid("it is no small file"));
    }
    if meta.mode() & 0o007 != 0 {
        return Err(OriginError::Exposed { path: path.to_owned() });
    }
    // A file of somebody else's that we may read is left to them; systemd hands such ones out.
    if meta.uid() == Account::own().uid && meta.mode() & 0o070 != 0 {
        return Err(OriginError::Shared { path: path.to_owned() });
    }
    if path.to_string_lossy().contains("${") {
        return Err(invalid("ssh would look for a variable in its name"));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let mut lines = text.lines();
    match lines.next() {
        Some(line) if !line.starts_with("-----BEGIN ") || !line.contains("PRIVATE KEY") => {
            Err(invalid("it holds no private key"))
        }
        None => Err(invalid("it is empty")),
        Some(line) => {
            let is_locked = if line.contains("OPENSSH") {
                !lines.next().is_some_and(|line| line.starts_with(OPEN_KEY))
            } else {
                text.contains("ENCRYPTED")
            };
            if is_locked {
                return Err(invalid("it has a passphrase, and nobody is there to type it"));
            }
            Ok(())
        }
    }
}

fn check_known_hosts(path: &Path) -> Result<(), OriginError> {
    let failed = |source| OriginError::KnownHosts { path: path.to_owned(), source };
    let is_plain = |c: char| !c.is_whitespace() && !"\"'\\$".contains(c);
    if !path.to_string_lossy().chars().all(is_plain) {
        let reason = "its name holds what means something to ssh";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, reason)));
    }
    fs::File::open(path).map(drop).map_err(failed)
}

/// An origin of which nothing but its address is configured.
#[cfg(test)]
fn bare(url: &str) -> OriginConfig {
    // Fails where another test was first, and then there is one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let (url, long) = (url.to_owned(), Duration::from_secs(60));
    let (credential, ca_file, known_hosts) = (None, None, None);
    OriginConfig {
        places: vec![PlaceConfig { field: "git.url", url, credential, ca_file, known_hosts }],
        branch: None,
        allow_http: false,
        verify_branch: false,
        connect: long,
        stall: long,
        total: long,
        search_path: None,
    }
}

/// A place without anything but its address.
#[cfg(test)]
pub(super) fn place(url: &str) -> Place {
    let config = bare(url);
    Place::new(&config.places[0], &config).expect("a valid address")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_setting_for_another_kind_of_address_is_refused() {
        let with = |url: &str, edit: fn(&mut PlaceConfig)| {
            let mut config = bare(url);
            edit(&mut config.places[0]);
            Origin::new(config).map(drop)
        };
        let hosts: fn(&mut PlaceConfig) = |place| place.known_hosts = Some("/dev/null".into());
        let ca_file: fn(&mut PlaceConfig) = |place| place.ca_file = Some("/dev/null".into());
        let found = with("https://git.example/web.git", hosts);
        assert!(matches!(found, Err(OriginError::Misplaced { .. })), "{found:?}");
        let found = with("git@git.example:web.git", ca_file);
        assert!(matches!(found, Err(OriginError::Misplaced { .. })), "{found:?}");
        with("git@git.example:web.git", hosts).unwrap();
    }

    #[test]
    fn a_key_that_ssh_would_not_use_is_told_before_it_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let begin = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
        let open = format!("{begin}{OPEN_KEY}AAAA\n");
        let locked = format!("{begin}b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHI\n");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n".to_owned();
        let cases = [
            ("a key", open.clone(), 0o400, ""),
            ("read by all", open.clone(), 0o444, "everybody"),
            ("read by its group", open, 0o440, "its group"),
            ("with a passphrase", locked, 0o400, "passphrase"),
            ("with one, in the old form", old, 0o400, "passphrase"),
            ("a token", "s3cret".to_owned(), 0o400, "no private key"),
            ("nothing", String::new(), 0o400, "empty"),
        ];
        for (rule, text, mode, said) in cases {
            drop(fs::remove_file(&path));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = check_key(&path).map_err(|error| crate::error::chain(&error));
            match found {
                Ok(()) => assert_eq!(said, "", "{rule}"),
                Err(error) => assert!(!said.is_empty() && error.contains(said), "{rule}: {error}"),
            }
        }
    }
}
