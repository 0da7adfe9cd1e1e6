//! The certificate that the coordinator shows, read again when its files change.
//!
//! Files that cannot be read, or do not fit together, are told once and change nothing: what was read
//! before goes on being shown.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Tls;
use crate::error::chain;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or holds no PEM of the kind.
    #[error("could not read the {what} {}", path.display())]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file holds none.
    #[error("there is no certificate in {}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// They do not fit together, or are of a kind that is not known.
    #[error("could not use the key {} with the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// No configuration could be made of it.
    #[error("could not set up TLS")]
    Setup(#[source] rustls::Error),
}

impl TlsError {
    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            TlsError::Read { .. } | TlsError::Empty { .. } => {
                Some("name PEM files that the coordinator may read in [tls]")
            }
            TlsError::Mismatch { .. } => {
                Some("the key must be the one that the first certificate of the file was made for")
            }
            TlsError::Setup(_) => None,
        }
    }
}

/// Shows the newest certificate.
#[derive(Debug)]
pub struct Shown {
    files: Tls,
    /// What the files were like just before they were first read.
    first: Stamp,
    key: RwLock<Arc<CertifiedKey>>,
}

/// When the two files were written, and how long they are.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Shown {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// See [`TlsError`].
    pub fn read(files: &Tls) -> Result<Arc<Self>, TlsError> {
        let first = stamp_of(files);
        let key = RwLock::new(Arc::new(read(files)?));
        Ok(Arc::new(Self { files: files.clone(), first, key }))
    }

    /// Reads the files once more, whatever they are like now.
    ///
    /// # Errors
    ///
    /// See [`TlsError`]; then what was shown before goes on being shown.
    pub fn reload(&self) -> Result<(), TlsError> {
        let key = Arc::new(read(&self.files)?);
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// Returns what a listener needs.
    ///
    /// # Errors
    ///
    /// Where the provider has no protocol version, which ring has.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Reads the files again whenever they have changed, until told to stop.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.first;
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            let now = stamp_of(&self.files);
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload() {
                Ok(()) => {
                    info!(certificate = %self.files.certificate.display(), "certificate read");
                }
                Err(error) => warn!(
                    error = chain(&error),
                    hint = error.hint(),
                    "the new certificate cannot be shown; the one before still is"
                ),
            }
        }
    }
}

fn stamp_of(files: &Tls) -> Stamp {
    [stamp(&files.certificate), stamp(&files.key)]
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let of = |meta: fs::Metadata| -> io::Result<_> { Ok((meta.modified()?, meta.len())) };
    fs::metadata(path).and_then(of).ok()
}

fn read(files: &Tls) -> Result<CertifiedKey, TlsError> {
    let (certificate, key) = (&files.certificate, &files.key);
    let unread = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { what, path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(unread("certificate", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: certificate.clone() });
    }
    let der = PrivateKeyDer::from_pem_file(key).map_err(unread("key", key))?;
    CertifiedKey::from_der(chain, der, &ring::default_provider()).map_err(|source| {
        TlsError::Mismatch { certificate: certificate.clone(), key: key.clone(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> Tls {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = Tls {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn a_certificate_is_replaced_by_one_that_is_good_and_by_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (files, other) = (write(dir.path(), "a"), write(dir.path(), "b"));
        let shown = Shown::read(&files).unwrap();
        let leaf = |shown: &Shown| shown.key.read().unwrap().cert[0].clone();
        let first = leaf(&shown);
        fs::copy(&other.certificate, &files.certificate).unwrap();
        assert!(matches!(shown.reload(), Err(TlsError::Mismatch { .. })), "the old key");
        assert_eq!(leaf(&shown), first);
        fs::copy(&other.key, &files.key).unwrap();
        shown.reload().unwrap();
        assert_ne!(leaf(&shown), first);
        fs::write(&files.certificate, "").unwrap();
        assert!(matches!(shown.reload(), Err(TlsError::Empty { .. })));
        fs::write(&files.key, "no key").unwrap();
        assert!(shown.reload().is_err());
        fs::remove_file(&files.certificate).unwrap();
        let error = shown.reload().unwrap_err();
        assert!(matches!(error, TlsError::Read { what: "certificate", .. }), "{error}");
    }

    #[tokio::test]
    async fn what_was_renewed_before_anybody_followed_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (files, other) = (write(dir.path(), "a"), write(dir.path(), "b"));
        let shown = Shown::read(&files).unwrap();
        let leaf = |shown: &Shown| shown.key.read().unwrap().cert[0].clone();
        let first = leaf(&shown);
        fs::copy(&other.certificate, &files.certificate).unwrap();
        fs::copy(&other.key, &files.key).unwrap();
        let stop = CancellationToken::new();
        let follows = tokio::spawn(Arc::clone(&shown).follow(stop.clone()));
        let is_read = async {
            while leaf(&shown) == first {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), is_read).await.expect("at the first look");
        stop.cancel();
        follows.await.unwrap();
    }
}
