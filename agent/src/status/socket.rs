//! The status of the agent that runs, by a Unix socket: what the file says, and as it is now.
//!
//! ```text
//!   shell ── told ──► watch ──► task: accept ─► is it root, or us? ─► one JSON line, and the end
//! ```
//!
//! Invariants
//! - Nothing is read from whoever connects, and the shell waits for none of them.
//! - A few connections at a time, each for two seconds at most; others wait in the kernel's queue.
//! - It sleeps until somebody connects.
//!
//! The socket lies in the agent's own directory, which only its user may enter, and says again itself
//! who may use it. A socket's path holds 107 bytes and an app's directory may have more: so it is bound,
//! and found, by a descriptor of its directory.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::Seen;
use crate::process::Account;
use crate::release::Store;
use crate::release::state::Status;

/// The socket's name in the agent's own directory.
const NAME: &str = "agent.sock";

/// How many are answered at a time.
const CONNECTIONS_MAX: usize = 4;

/// How long an answer may take, on either side.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How long nobody is let in after that failed: descriptors may be short.
const PAUSE: Duration = Duration::from_secs(1);

/// The largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Where the status can be had. Closed, and removed, when it is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    told: watch::Sender<Option<Arc<Status>>>,
    task: JoinHandle<()>,
}

impl Socket {
    /// Listens in the store's own directory, in place of what an agent that was killed has left. The
    /// caller holds the lock.
    ///
    /// # Errors
    ///
    /// It cannot be made; an agent does its work without.
    pub fn open(store: &Store) -> io::Result<Self> {
        let path = store.state().join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = by_descriptor(&path, |short| UnixListener::bind(short))??;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (told, telling) = watch::channel(None);
        let task = tokio::spawn(serve(listener, telling, store.clone(), Account::own().uid));
        Ok(Self { path, told, task })
    }

    /// From now on this is told.
    pub fn tell(&self, status: Status) {
        self.told.send_replace(Some(Arc::new(status)));
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        drop(fs::remove_file(&self.path));
    }
}

/// Calls `work` with a short path that leads to the same place while its directory is open.
fn by_descriptor<T>(path: &Path, work: impl FnOnce(&Path) -> T) -> io::Result<T> {
    let dir = File::open(path.parent().unwrap_or(path))?;
    Ok(work(&PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))))
}

async fn serve(
    listener: UnixListener,
    telling: watch::Receiver<Option<Arc<Status>>>,
    store: Store,
    own: u32,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (telling, store) = (telling.clone(), store.clone());
                tokio::spawn(async move {
                    let _place = place;
                    match timeout(ANSWER_WAIT, answer(stream, &telling, store, own)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "the status was not told"),
                        Err(_) => debug!("whoever asked for the status did not read it"),
                    }
                });
            }
            Err(error) => {
                debug!(%error, "nobody could be let in to the status");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    telling: &watch::Receiver<Option<Arc<Status>>>,
    store: Store,
    own: u32,
) -> io::Result<()> {
    let asks = stream.peer_cred()?.uid();
    if !may_ask(asks, own) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("uid {asks} asked")));
    }
    // Before the first word of the machine there is nothing to say; the file may have something.
    let Some(status) = telling.borrow().clone() else { return Ok(()) };
    let contact = tokio::task::spawn_blocking(move || store.read_contact().ok().flatten()).await;
    let contact = contact.map_err(io::Error::other)?;
    let holder = Some(std::process::id());
    let line = super::json(&status, contact.as_ref(), true, holder, super::seconds_now());
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// May this user learn of the status?
fn may_ask(asks: u32, own: u32) -> bool {
    asks == 0 || asks == own
}

/// Asks the agent that runs for `store`.
///
/// # Errors
///
/// None runs, or it does not answer in time, or this user may not ask: the file has the status then.
pub(super) async fn ask(store: &Store) -> io::Result<Seen> {
    let path = store.state().join(NAME);
    let asked = async {
        let dir = File::open(path.parent().unwrap_or(&path))?;
        let short = format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd());
        let stream = UnixStream::connect(short).await?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    timeout(ANSWER_WAIT, asked).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str) -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let store = Store::new(&dir);
        store.prepare().unwrap();
        (root, store)
    }

    fn status(degraded: &str) -> Status {
        let golden = include_str!("../../../protocol/golden/report-1.json");
        let mut report: towline_protocol::report::Report = serde_json::from_str(golden).unwrap();
        report.degraded = Some(degraded.to_owned());
        Status { report, written_s: 100, pid: std::process::id() }
    }

    async fn connect(store: &Store) -> UnixStream {
        let dir = File::open(store.state()).unwrap();
        let path = format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd());
        UnixStream::connect(path).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_told_last_is_answered_from_a_directory_of_any_length() {
        let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
        let (_root, store) = store(&long);
        // What a killed agent has left is in nobody's way.
        let path = store.state().join(NAME);
        fs::write(&path, "").unwrap();
        let socket = Socket::open(&store).unwrap();
        assert!(ask(&store).await.is_err(), "nothing was told yet");
        for word in ["first", "second"] {
            socket.tell(status(word));
            let seen = ask(&store).await.unwrap();
            assert_eq!(seen.status.report.degraded.as_deref(), Some(word));
            assert_eq!((seen.agent_running, seen.agent_pid), (true, Some(std::process::id())));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists() && ask(&store).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_never_reads_keeps_nobody_else_out_for_long() {
        let (_root, store) = store("web");
        let socket = Socket::open(&store).unwrap();
        // More than the kernel takes for somebody who does not read.
        socket.tell(status(&"x".repeat(8 << 20)));
        let mut stuck = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            stuck.push(connect(&store).await);
        }
        let mut bytes = Vec::new();
        let answered = connect(&store).await.take(1 << 24).read_to_end(&mut bytes).await;
        assert!(answered.is_ok() && bytes.len() > 8 << 20, "{} bytes", bytes.len());
        drop(stuck);
    }

    #[test]
    fn root_and_the_agents_own_user_may_ask() {
        let cases =
            [("root", 0, 0, true), ("root asks another's", 0, 33, true), ("its own", 33, 33, true)];
        for (rule, asks, own, may) in cases {
            assert_eq!(may_ask(asks, own), may, "{rule}");
        }
        assert!(!may_ask(34, 33) && !may_ask(33, 0), "nobody else may");
    }
}
