//! What the transports share: where the fetch of this thread goes, how long it may take, and what it
//! ran into.
//!
//! libgit2 asks for bytes and blocks; a context that the fetch puts into a thread-local says from where
//! and with which deadlines they are had. Progress callbacks do not fire during a stall, so the
//! deadlines are kept here, around each wait. What goes wrong is kept in the context as it was, because
//! libgit2 would turn it into a line of text.
//!
//! Plain http is registered as well, so that libgit2's own transport is never used.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use git2::transport::Transport;
use reqwest::StatusCode;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::http::Http;
use super::origin::{Access, Place};
use super::ssh::Ssh;
use crate::release::DiskError;

/// Says whether there is room to go on writing.
pub type Room = Arc<dyn Fn() -> Result<(), DiskError> + Send + Sync>;

/// How many bytes come in between two looks at the room that is left.
const ROOM_EVERY_BYTES: usize = 1 << 20;

/// How long a list of refs may be. One of 100,000 refs has some 7 MB; all of it is kept in memory.
const REFS_BYTES_MAX: usize = 64 << 20;

/// How much of an answer is kept to look for the server's own words.
const HEAD_BYTES: usize = 1024;

/// Why bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection, or it broke.
    #[error("could not reach {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The ssh program could not be run.
    #[error("could not run ssh")]
    Program {
        /// What the operating system said.
        source: io::Error,
    },
    /// The ssh program ended before all was there.
    #[error("could not fetch from {url}: ssh ended with {end}")]
    Ssh {
        /// The address.
        url: String,
        /// How it ended, and what it and the server said, in one line.
        end: String,
        /// The next thing for an operator to try.
        advice: Option<String>,
    },
    /// The ssh program could not be talked to.
    #[error("could not talk to {url} through ssh")]
    Pipe {
        /// The address.
        url: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not a byte within the stall deadline.
    #[error("{url} sent nothing for {} s", stall.as_secs_f64())]
    Stalled {
        /// The address.
        url: String,
        /// The deadline.
        stall: Duration,
    },
    /// The whole fetch took too long.
    #[error("the fetch from {url} took longer than {} s", total.as_secs_f64())]
    TooSlow {
        /// The address.
        url: String,
        /// The deadline.
        total: Duration,
    },
    /// An answer that is no success.
    #[error("{url} answered {status}")]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// A redirect that is not followed.
    #[error("{url} redirects, and is not followed: {reason}")]
    Redirect {
        /// The address.
        url: String,
        /// Why not.
        reason: &'static str,
    },
    /// The server's own words.
    #[error("the server says: {said}")]
    Refused {
        /// What it says, in one line.
        said: String,
    },
    /// A list of refs without end.
    #[error("{url} lists more than {} MiB of refs", REFS_BYTES_MAX >> 20)]
    TooManyRefs {
        /// The address.
        url: String,
    },
    /// No more may be written.
    #[error("the fetch from {url} was ended")]
    Space {
        /// The address.
        url: String,
        /// What is missing.
        source: Box<DiskError>,
    },
    /// Told to stop.
    #[error("the fetch was stopped")]
    Stopped,
}

impl TransportError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            TransportError::Status { status, .. } => match status.as_u16() {
                401 | 403 => Some("check the file that git.credential names".to_owned()),
                404 => Some("check git.url, and whether its credential may read it".to_owned()),
                _ => None,
            },
            TransportError::Space { source, .. } => source.hint(),
            TransportError::Redirect { .. } => Some("set git.url to the new address".to_owned()),
            TransportError::Program { source } if source.kind() == io::ErrorKind::NotFound => {
                Some("install it (Debian: openssh-client), or have PATH name its folder".to_owned())
            }
            TransportError::Ssh { advice, .. } => advice.clone(),
            _ => None,
        }
    }

    /// Is it this address's doing, so that another one may do better?
    pub(super) fn is_of_place(&self) -> bool {
        !matches!(self, TransportError::Space { .. } | TransportError::Stopped)
    }
}

thread_local! {
    static CONTEXT: RefCell<Option<Arc<Context>>> = const { RefCell::new(None) };
}

/// One round of a fetch: an address, and what it may take.
pub(super) struct Round<'a> {
    /// The address.
    pub(super) place: &'a Arc<Place>,
    /// The runtime that waits.
    pub(super) handle: &'a Handle,
    /// Cancelled when the fetch is no longer wanted.
    pub(super) stop: &'a CancellationToken,
    /// Whether there is room to go on writing.
    pub(super) room: &'a Room,
    /// How long to wait without receiving a byte.
    pub(super) stall: Duration,
    /// How long this address was given in all.
    pub(super) total: Duration,
    /// When that is over.
    pub(super) deadline: Instant,
}

/// What one fetch works with.
pub(super) struct Context {
    pub(super) handle: Handle,
    place: Arc<Place>,
    stop: CancellationToken,
    room: Room,
    stall: Duration,
    total: Duration,
    deadline: Instant,
    error: Mutex<Option<TransportError>>,
}

/// Registers the transports and turns the host's git configuration off. First thing in `main`.
#[allow(unsafe_code, reason = "libgit2's registry is global; once, and before any thread")]
pub fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let levels = [
            git2::ConfigLevel::System,
            git2::ConfigLevel::Global,
            git2::ConfigLevel::XDG,
            git2::ConfigLevel::ProgramData,
        ];
        for level in levels {
            // SAFETY: nothing of libgit2 runs yet. A level that does not exist here is none.
            drop(unsafe { git2::opts::set_search_path(level, "") });
        }
        git2::opts::strict_hash_verification(true);
        git2::opts::strict_object_creation(true);
        for scheme in ["https", "http", "ssh"] {
            let factory = |remote: &git2::Remote<'_>| {
                let context = CONTEXT.with(|context| context.borrow().clone());
                let context =
                    context.ok_or_else(|| git2::Error::from_str("no fetch is under way"))?;
                match &context.place.access {
                    Access::Http(access) => {
                        let access = Arc::clone(access);
                        Transport::smart(remote, true, Http::new(context, access))
                    }
                    Access::Ssh(access) => {
                        let access = Arc::clone(access);
                        Transport::smart(remote, false, Ssh::new(context, access))
                    }
                }
            };
            // SAFETY: registered once, before any other use of libgit2's transports.
            let registered = unsafe { git2::transport::register(scheme, factory) };
            registered.expect("a scheme is registered once, and has no NUL");
        }
    });
}

/// Runs `work` with a transport for a round's address; its error, if any, is the second value.
pub(super) fn with<T>(round: &Round<'_>, work: impl FnOnce() -> T) -> (T, Option<TransportError>) {
    let context = Arc::new(Context::new(round));
    CONTEXT.with(|own| *own.borrow_mut() = Some(Arc::clone(&context)));
    let outcome = work();
    CONTEXT.with(|own| *own.borrow_mut() = None);
    let error = context.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    (outcome, error)
}

/// May the fetch of this thread go on? For work in which no bytes are waited for.
pub(super) fn goes_on() -> bool {
    let Some(context) = CONTEXT.with(|own| own.borrow().clone()) else { return false };
    let url = context.place.url.clone();
    if context.stop.is_cancelled() {
        drop(context.keep(TransportError::Stopped));
    } else if context.deadline <= Instant::now() {
        drop(context.keep(TransportError::TooSlow { url, total: context.total }));
    } else {
        return true;
    }
    false
}

impl Context {
    pub(super) fn new(round: &Round<'_>) -> Self {
        Self {
            handle: round.handle.clone(),
            place: Arc::clone(round.place),
            stop: round.stop.clone(),
            room: Arc::clone(round.room),
            stall: round.stall,
            total: round.total,
            deadline: round.deadline,
            error: Mutex::new(None),
        }
    }

    /// Waits for bytes, and no longer than the deadlines allow.
    pub(super) fn wait<T, E>(
        &self,
        url: &str,
        work: impl Future<Output = Result<T, E>>,
        failed: impl FnOnce(String, E) -> TransportError,
    ) -> Result<T, TransportError> {
        let url = url.to_owned();
        let stall = Instant::now() + self.stall;
        let (until, is_total) =
            if self.deadline < stall { (self.deadline, true) } else { (stall, false) };
        // Bytes that are there already would be taken after the deadline too: a server that is never
        // waited for would never be given up.
        if self.deadline <= Instant::now() {
            return Err(TransportError::TooSlow { url, total: self.total });
        }
        self.handle.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(TransportError::Stopped),
                outcome = timeout_at(until, work) => match outcome {
                    Ok(Ok(value)) => Ok(value),
                    Ok(Err(source)) => Err(failed(url, source)),
                    Err(_) if is_total => Err(TransportError::TooSlow { url, total: self.total }),
                    Err(_) => Err(TransportError::Stalled { url, stall: self.stall }),
                },
            }
        })
    }

    /// Keeps the first error; returns what libgit2 is told of it.
    pub(super) fn keep(&self, error: TransportError) -> io::Error {
        let text = error.to_string();
        let mut kept = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert(error);
        io::Error::other(text)
    }
}

/// What comes in, measured: the list of refs, the room that is left, the server's own words.
pub(super) struct Meter {
    is_refs: bool,
    refs_bytes: usize,
    /// How many bytes came in since the last look at the room that is left.
    unmeasured: usize,
    head: Vec<u8>,
}

impl Meter {
    /// What comes in is a list of refs, or the answer to something.
    pub(super) fn new(is_refs: bool) -> Self {
        Self { is_refs, refs_bytes: 0, unmeasured: ROOM_EVERY_BYTES, head: Vec::new() }
    }

    /// Something was asked: what comes in from now on is the answer.
    pub(super) fn asked(&mut self) {
        self.is_refs = false;
        self.head.clear();
    }

    /// Takes account of bytes that came in, before they are used.
    pub(super) fn came(
        &mut self,
        context: &Context,
        url: &str,
        bytes: &[u8],
    ) -> Result<(), TransportError> {
        let url = || url.to_owned();
        self.unmeasured += bytes.len();
        if self.is_refs {
            self.refs_bytes += bytes.len();
            if self.refs_bytes > REFS_BYTES_MAX {
                return Err(TransportError::TooManyRefs { url: url() });
            }
        }
        if self.unmeasured >= ROOM_EVERY_BYTES {
            self.unmeasured = 0;
            let full = |source| TransportError::Space { url: url(), source: Box::new(source) };
            (context.room)().map_err(full)?;
        }
        if self.head.len() < HEAD_BYTES {
            self.head.extend(bytes.iter().take(HEAD_BYTES));
            if let Some(said) = server_error(&self.head) {
                return Err(TransportError::Refused { said });
            }
        }
        Ok(())
    }
}

/// Finds the server's `ERR` line at the beginning of an answer; libgit2 does not show it.
pub(crate) fn server_error(head: &[u8]) -> Option<String> {
    let mut rest = head;
    while let Some(length) = rest.get(..4) {
        let length = usize::from_str_radix(std::str::from_utf8(length).ok()?, 16).ok()?;
        if length < 4 {
            rest = &rest[4..];
            continue;
        }
        let line = rest.get(4..length.min(rest.len()))?;
        if let Some(said) = line.strip_prefix(b"ERR ") {
            return Some(crate::shown::one_line(&String::from_utf8_lossy(said)));
        }
        rest = rest.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::origin::place;

    #[test]
    fn the_servers_own_words_are_found() {
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let said = "ERR upload-pack: not our ref 1234\n";
        let cases = [
            ("alone", line(said), true),
            ("after shallow lines", format!("{}0000{}", line("shallow 12"), line(said)), true),
            ("a pack", format!("{}PACK", line("NAK\n")), false),
            ("cut off", "00".to_owned(), false),
            ("no packet", "<html>".to_owned(), false),
        ];
        for (rule, head, found) in cases {
            assert_eq!(server_error(head.as_bytes()).is_some(), found, "{rule}");
        }
    }

    #[test]
    fn a_server_that_is_never_waited_for_is_given_up_as_well() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (place, stop) =
            (Arc::new(place("https://git.example/a.git")), CancellationToken::new());
        let room: Room = Arc::new(|| Ok(()));
        let mut round = Round {
            place: &place,
            handle: runtime.handle(),
            stop: &stop,
            room: &room,
            stall: Duration::from_secs(60),
            total: Duration::from_secs(60),
            deadline: Instant::now() + Duration::from_secs(60),
        };
        let wait = || {
            let context = CONTEXT.with(|own| own.borrow().clone()).unwrap();
            let ready = std::future::ready(Ok::<_, io::Error>(1));
            let outcome =
                context.wait(&place.url, ready, |url, source| TransportError::Pipe { url, source });
            outcome.map_err(|error| drop(context.keep(error)))
        };
        assert_eq!(with(&round, wait).0, Ok(1));
        // A round gets no more time than its fetch has left.
        round.deadline = Instant::now();
        let (outcome, error) = with(&round, wait);
        assert!(outcome.is_err());
        assert!(matches!(error, Some(TransportError::TooSlow { .. })), "{error:?}");
    }
}
