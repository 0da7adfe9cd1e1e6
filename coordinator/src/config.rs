//! The coordinator's config: one TOML file, all of it with defaults, read once at the start.
//!
//! [`Config::load`] reads and checks everything. An unknown key is refused, with its line and the names
//! that are accepted. An address that others can reach is refused without TLS, unless `insecure` says so.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use towline_protocol::poll::{WAIT_S, WAIT_S_MAX};

/// Where it listens unless told otherwise: this host alone can reach it.
pub const LISTEN: &str = "127.0.0.1:7617";

/// Where it keeps its store, its mirrors and its socket unless told otherwise.
pub const DATA: &str = "/var/lib/towline-coordinator";

/// The coordinator's config, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where it keeps its store, its mirrors and its socket.
    pub data: PathBuf,
    /// How long polls hang, in seconds.
    pub wait_s: u32,
    /// The certificate that it shows; `None`: no TLS.
    pub tls: Option<Tls>,
    /// How mirrors are kept.
    pub mirror: Mirror,
    /// Are requests without a token let in? Only where nobody else can reach it, or by an explicit word.
    pub is_open: bool,
    /// How many connections are held at a time.
    pub connections: usize,
    /// What of the environment git gets.
    pub environment: Vec<(String, String)>,
}

/// A certificate and its key, in PEM files that are read again when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, and those that lead from it to an authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How mirrors are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// By host (with its port, where that is not 443), a file that holds a token, or `user:password`.
    pub credentials: BTreeMap<String, PathBuf>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The `git` program; `git` by default.
    pub git: PathBuf,
    /// How long one fetch may take, in seconds; 600 by default.
    pub fetch_s: u64,
    /// How much space stays free: with less nothing is fetched; 1,024 MiB by default.
    pub free_mib: u64,
    /// How much memory each process of git may have; 2,048 MiB by default.
    pub memory_mib: u64,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            credentials: BTreeMap::new(),
            ca_file: None,
            git: PathBuf::from("git"),
            fetch_s: 600,
            free_mib: 1024,
            memory_mib: 2048,
        }
    }
}

impl Mirror {
    /// Returns how long one fetch may take.
    #[must_use]
    pub fn fetch(&self) -> Duration {
        Duration::from_secs(self.fetch_s)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<Vec<String>>,
    data: Option<PathBuf>,
    wait_s: Option<u32>,
    tls: Option<Tls>,
    mirror: Mirror,
    connections: Option<usize>,
}

/// What the command line says; it comes before the file.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Where to listen.
    pub listen: Vec<String>,
    /// Where to keep everything.
    pub data: Option<PathBuf>,
    /// Let everybody in who can reach it.
    pub insecure: bool,
    /// What of the environment git may get.
    pub environment: Vec<(String, String)>,
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("could not read the config {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not the TOML that is due; the source names line, column and what is accepted.
    #[error("could not parse the config {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value that is out of its range.
    #[error("{field}: {accepted}, not {found}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it accepts.
        accepted: &'static str,
        /// What it is.
        found: String,
    },
    /// Others could reach it, and nothing keeps them out.
    #[error("{address} can be reached from other hosts, and there is no TLS")]
    Unguarded {
        /// The address.
        address: SocketAddr,
    },
}

impl ConfigError {
    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Unguarded { .. } => Some(
                "name a certificate and its key in [tls], or listen on 127.0.0.1; --insecure lets \
                 everybody in who can reach it"
                    .to_owned(),
            ),
            ConfigError::Read { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run it with sudo".to_owned())
            }
            ConfigError::Read { .. } => Some(
                "name another with --config; without one, all is as it is by default".to_owned(),
            ),
            ConfigError::Parse { .. } | ConfigError::Value { .. } => Some(
                "ami-snippets/coordinator.toml has every key, with its default and what it is for"
                    .to_owned(),
            ),
        }
    }
}

impl Config {
    /// Reads and checks the config; `path`: `None` is one of defaults alone.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn load(path: Option<&Path>, flags: &Flags) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                toml::from_str(&text).map_err(|source| ConfigError::Parse {
                    path: path.to_owned(),
                    source: Box::new(source),
                })?
            }
            None => File::default(),
        };
        Self::check(file, flags)
    }

    fn check(file: File, flags: &Flags) -> Result<Self, ConfigError> {
        let named = if flags.listen.is_empty() {
            file.listen.unwrap_or_else(|| vec![LISTEN.to_owned()])
        } else {
            flags.listen.clone()
        };
        let mut listen = Vec::new();
        for text in named {
            let address = text.parse().map_err(|_| ConfigError::Value {
                field: "listen",
                accepted: "must be an address and a port, such as 127.0.0.1:7617 or [::1]:7617",
                found: text,
            })?;
            listen.push(address);
        }
        let wait_s = file.wait_s.unwrap_or(WAIT_S);
        if !(1..=WAIT_S_MAX).contains(&wait_s) {
            return Err(ConfigError::Value {
                field: "wait_s",
                accepted: "must be 1 to 600 seconds; load balancers cut at 60",
                found: wait_s.to_string(),
            });
        }
        let connections = file.connections.unwrap_or(18_000);
        if !(16..=1_000_000).contains(&connections) {
            return Err(ConfigError::Value {
                field: "connections",
                accepted: "must be 16 to 1000000",
                found: connections.to_string(),
            });
        }
        let is_local = listen.iter().all(|address: &SocketAddr| address.ip().is_loopback());
        if let Some(address) = listen.iter().find(|address| !address.ip().is_loopback())
            && file.tls.is_none()
            && !flags.insecure
        {
            return Err(ConfigError::Unguarded { address: *address });
        }
        Ok(Self {
            is_open: flags.insecure || (is_local && file.tls.is_none()),
            listen,
            data: flags.data.clone().or(file.data).unwrap_or_else(|| PathBuf::from(DATA)),
            wait_s,
            tls: file.tls,
            mirror: file.mirror,
            connections,
            environment: flags.environment.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: &Flags) -> Result<Config, ConfigError> {
        let path = PathBuf::from("c.toml");
        let parsed = toml::from_str(text);
        let file =
            parsed.map_err(|source| ConfigError::Parse { path, source: Box::new(source) })?;
        Config::check(file, flags)
    }

    const TLS: &str = "[tls]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\n";

    #[test]
    fn nobody_else_gets_in_by_default() {
        let config = load("", &Flags::default()).unwrap();
        assert_eq!(config.listen, [LISTEN.parse().unwrap()]);
        assert!(config.is_open, "on loopback, without TLS, no token is asked for");
        assert_eq!((config.wait_s, config.data), (WAIT_S, PathBuf::from(DATA)));
    }

    #[test]
    fn an_address_that_others_reach_needs_a_lock() {
        let listen = |address: &str| Flags { listen: vec![address.to_owned()], ..Flags::default() };
        let error = load("", &listen("0.0.0.0:7617")).unwrap_err();
        assert!(matches!(error, ConfigError::Unguarded { .. }) && error.hint().is_some());
        assert!(load("listen = [\"127.0.0.1:1\", \"[::]:1\"]", &Flags::default()).is_err());
        let config = load(TLS, &listen("0.0.0.0:7617")).unwrap();
        assert!(!config.is_open, "with TLS everybody shows a token");
        assert!(!load(TLS, &Flags::default()).unwrap().is_open, "on loopback, too");
        let insecure = Flags { insecure: true, ..listen("0.0.0.0:7617") };
        assert!(load("", &insecure).unwrap().is_open);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, blamed) in [
            ("listen = [\"localhost:7617\"]", "listen"),
            ("wait_s = 0", "wait_s"),
            ("wait_s = 601", "wait_s"),
            ("connections = 1", "connections"),
            ("lisen = []", "parse"),
            ("[tls]\ncertificate = \"/c.pem\"", "parse"),
        ] {
            let error = load(text, &Flags::default()).unwrap_err();
            assert!(error.to_string().contains(blamed), "{text}: {error}");
            assert!(error.hint().is_some(), "{text}");
        }
    }
}
