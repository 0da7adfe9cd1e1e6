//! Puts the coordinator together, runs it, and takes it apart again.
//!
//! ```text
//!   config ──► store ──► desk ──► driver
//!                          └────► routes ──► listeners: TCP, with TLS or not, and a Unix socket
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::desk::{Desk, DeskError};
use crate::driver;
use crate::error::chain;
use crate::http::{self, Api};
use crate::keys::{self, Open};
use crate::mirror::{Credential, CredentialError, Mirror, MirrorConfig, MirrorError, Secret};
use crate::records::key;
use crate::server::{self, ListenError, Server};
use crate::store::embedded::Embedded;
use crate::store::{Commit, Compare, Outcome, Store, StoreError, Write};
use crate::tls::{Shown, TlsError};
use crate::upkeep;

/// The socket in the data directory by which root does everything.
pub const SOCKET: &str = "admin.sock";

/// How long the driver has for the step that it is at when the coordinator stops.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Why the coordinator could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its data directory cannot be used.
    #[error("could not use the data directory {}", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Its store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in its store cannot be used.
    #[error(transparent)]
    Desk(#[from] DeskError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It has no certificate to show.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot keep mirrors.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A secret for an origin cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Something that it cannot do without ended before it was told to stop.
    #[error("could not go on: a part of it ended by itself, as its log says")]
    Ended,
}

impl RunError {
    /// Returns the next thing to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            RunError::Data { .. } => Some(
                "name a directory that it may write with --data, or run it as another user"
                    .to_owned(),
            ),
            RunError::Store(error) => error.hint(),
            RunError::Desk(DeskError::Store(error)) => error.hint(),
            RunError::Desk(DeskError::Record(_)) => Some(
                "run the newer coordinator that wrote it, or restore a backup and raise the epoch"
                    .to_owned(),
            ),
            RunError::Listen(_) => {
                Some("name another address with --listen, or end what listens there".to_owned())
            }
            RunError::Tls(error) => error.hint().map(str::to_owned),
            RunError::Mirror(error) => error.hint(),
            RunError::Credential(error) => error.hint(),
            RunError::Ended => Some("start it again; please report what it has logged".to_owned()),
        }
    }
}

/// Where the store is in a data directory.
#[must_use]
pub fn store_in(data: &Path) -> PathBuf {
    data.join("coordinator.db")
}

/// Runs a coordinator until told to stop. `now_s`: seconds since 1970, the epoch of a store that is made.
///
/// # Errors
///
/// See [`RunError`]; nothing is served then, or any longer.
pub async fn run(config: Config, now_s: u64, stop: CancellationToken) -> Result<(), RunError> {
    let data = &config.data;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|source| RunError::Data { path: data.clone(), source })?;
    let shown = config.tls.as_ref().map(Shown::read).transpose()?;
    let store = Embedded::open(&store_in(data), now_s)?;
    let desk = Desk::open(store.clone(), config.wait_s, stop.clone()).await?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(server::bind(*address)?);
    }
    let socket = server::bind_socket(&data.join(SOCKET))?;
    if config.is_open && config.listen.iter().any(|address| !address.ip().is_loopback()) {
        warn!("everybody who can reach it may do everything: it runs with --insecure");
    }
    let mut driver = tokio::spawn(driver::drive(desk.clone(), stop.clone()));
    let mirror = Mirror::new(mirror_config(&config)?)?;
    if let Err(error) = mirror.check().await {
        warn!(error = chain(&error), hint = error.hint(), "groups with a mirror cannot release");
    }
    let keys = keys::keys(&desk, open(&config));
    let mirror = Arc::new(mirror);
    tokio::spawn(upkeep::keep(desk.clone(), Arc::clone(&mirror), stop.clone()));
    let api = Api::new(desk.clone(), Some(mirror), keys, stop.clone());
    let server = Server::new(http::router(api), config.connections, stop.clone());
    let acceptor = match &shown {
        Some(shown) => {
            tokio::spawn(Arc::clone(shown).follow(stop.clone()));
            Some(TlsAcceptor::from(Arc::new(shown.config()?)))
        }
        None => None,
    };
    for listener in listeners {
        let address = listener.local_addr().ok();
        info!(
            address = address.map(tracing::field::display),
            tls = acceptor.is_some(),
            "listening"
        );
        tokio::spawn(server.clone().serve(listener, acceptor.clone()));
    }
    tokio::spawn(server.clone().serve_socket(socket));
    info!(data = %data.display(), "ready");
    // Without its driver no rollout would go on.
    let has_ended = tokio::select! {
        biased;
        () = stop.cancelled() => false,
        _ = &mut driver => true,
    };
    let is_lost = has_ended && !stop.is_cancelled();
    stop.cancel();
    server.ended().await;
    if !has_ended && tokio::time::timeout(LAST_STEP, &mut driver).await.is_err() {
        // What it waits for is done or not when the store closes; it decides nothing more.
        warn!("a step is not stored yet: it is not waited for any longer");
        driver.abort();
    }
    store.close().await;
    if is_lost || desk.is_lost() {
        return Err(RunError::Ended);
    }
    info!("stopped");
    Ok(())
}

fn open(config: &Config) -> Open {
    match (config.is_open, config.listen.iter().all(|address| address.ip().is_loopback())) {
        (false, _) => Open::No,
        (true, true) => Open::Loopback,
        (true, false) => Open::Wide,
    }
}

fn mirror_config(config: &Config) -> Result<MirrorConfig, CredentialError> {
    let mut mirror = MirrorConfig::new(config.data.join("mirrors"));
    mirror.git.clone_from(&config.mirror.git);
    mirror.fetch_timeout = config.mirror.fetch();
    mirror.free_mib = config.mirror.free_mib;
    mirror.memory_mib = config.mirror.memory_mib;
    mirror.ca_file.clone_from(&config.mirror.ca_file);
    mirror.environment.clone_from(&config.environment);
    for (host, path) in &config.mirror.credentials {
        mirror.credentials.push(Credential { host: host.clone(), secret: Secret::read(path)? });
    }
    Ok(mirror)
}

/// Raises a store's epoch, after it was restored from a backup. Returns the new one.
///
/// # Errors
///
/// The store cannot be used, for one because a coordinator runs on it.
pub async fn raise_epoch(data: &Path, now_s: u64) -> Result<u64, StoreError> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Epoch {
        epoch: u64,
    }
    let path = store_in(data);
    // Where there is none, none was restored: one that is made here would be nobody's.
    if let Err(source) = fs::metadata(&path) {
        let source = Arc::new(source);
        return Err(StoreError::Io { attempted: "read", path, source });
    }
    let store = Embedded::open(&path, now_s)?;
    loop {
        let entry = store.get(key::EPOCH).await?;
        let parse = |value: &[u8]| serde_json::from_slice::<Epoch>(value).ok();
        let last = entry.as_ref().and_then(|entry| parse(&entry.value)).map_or(0, |old| old.epoch);
        // Above what it was, whatever the clock says.
        let epoch = now_s.max(last.saturating_add(1));
        let value = serde_json::to_vec(&Epoch { epoch }).expect("a number is JSON");
        let version = entry.map(|entry| entry.version);
        let key = key::EPOCH.to_owned();
        let compares = vec![Compare { key: key.clone(), version }];
        let writes = vec![Write::Put { key, value }];
        if let Outcome::Done(_) = store.commit(Commit { compares, writes }).await? {
            store.close().await;
            return Ok(epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_epoch_is_raised_of_a_store_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let error = raise_epoch(dir.path(), 7).await.unwrap_err();
        assert!(!error.is_temporary(), "waiting brings none: {error}");
        assert!(error.hint().unwrap().contains(&dir.path().display().to_string()));
        assert!(!store_in(dir.path()).exists(), "none is made");
        Embedded::open(&store_in(dir.path()), 7).unwrap().close().await;
        assert_eq!(raise_epoch(dir.path(), 7).await.unwrap(), 8);
    }
}
