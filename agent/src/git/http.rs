//! The smart protocol over reqwest: one GET for the refs, one POST for each round after it.
//!
//! libgit2 asks for bytes and blocks; a context that the fetch puts into a thread-local says with
//! which client, deadlines and credential they are had. Progress callbacks do not fire during a
//! stall, so the deadlines are kept here, around each wait. What goes wrong is kept in the context
//! as it was, because libgit2 would turn it into a line of text.
//!
//! Plain http is registered as well, so that libgit2's own transport is never used.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Origin, Secret};
use crate::release::DiskError;

/// Says whether there is room to go on writing.
pub type Room = Arc<dyn Fn() -> Result<(), DiskError> + Send + Sync>;

/// How many bytes come in between two looks at the room that is left.
const ROOM_EVERY_BYTES: usize = 1 << 20;

/// How many redirects are followed; git's own default is 20, a moved repository needs one.
const REDIRECTS_MAX: usize = 3;

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
            _ => None,
        }
    }
}

thread_local! {
    static CONTEXT: RefCell<Option<Arc<Context>>> = const { RefCell::new(None) };
}

/// What one fetch works with.
pub(super) struct Context {
    client: Client,
    token: Option<Secret>,
    configured: Url,
    /// Where the repository is, after redirects.
    base: Mutex<Url>,
    handle: Handle,
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
        for scheme in ["https", "http"] {
            let factory = |remote: &git2::Remote<'_>| {
                let context = CONTEXT.with(|context| context.borrow().clone());
                let context =
                    context.ok_or_else(|| git2::Error::from_str("no fetch is under way"))?;
                Transport::smart(remote, true, Http { context })
            };
            // SAFETY: registered once, before any other use of libgit2's transports.
            let registered = unsafe { git2::transport::register(scheme, factory) };
            registered.expect("a scheme is registered once, and has no NUL");
        }
    });
}

/// Runs `work` with a transport for `origin`; its error, if any, is the second value. `deadline` is the
/// whole fetch's, of which this may be one round.
pub(super) fn with<T>(
    origin: &Origin,
    handle: &Handle,
    stop: &CancellationToken,
    room: &Room,
    deadline: Instant,
    work: impl FnOnce() -> T,
) -> (T, Option<TransportError>) {
    let context = Arc::new(Context {
        client: origin.client.clone(),
        token: origin.token.clone(),
        configured: origin.url.clone(),
        base: Mutex::new(origin.url.clone()),
        handle: handle.clone(),
        stop: stop.clone(),
        room: Arc::clone(room),
        stall: origin.stall,
        total: origin.total,
        deadline,
        error: Mutex::new(None),
    });
    CONTEXT.with(|own| *own.borrow_mut() = Some(Arc::clone(&context)));
    let outcome = work();
    CONTEXT.with(|own| *own.borrow_mut() = None);
    let error = context.error.lock().unwrap_or_else(PoisonError::into_inner).take();
    (outcome, error)
}

/// May the fetch of this thread go on? For work in which no bytes are waited for.
pub(super) fn goes_on() -> bool {
    let Some(context) = CONTEXT.with(|own| own.borrow().clone()) else { return false };
    let url = context.configured.to_string();
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
    /// Waits for bytes, and no longer than the deadlines allow.
    fn wait<T>(
        &self,
        url: &Url,
        work: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, TransportError> {
        let url = url.to_string();
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
                    Ok(Err(source)) => {
                        Err(TransportError::Unreachable { url, source: source.without_url() })
                    }
                    Err(_) if is_total => Err(TransportError::TooSlow { url, total: self.total }),
                    Err(_) => Err(TransportError::Stalled { url, stall: self.stall }),
                },
            }
        })
    }

    fn keep(&self, error: TransportError) -> io::Error {
        let text = error.to_string();
        let mut kept = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert(error);
        io::Error::other(text)
    }

    /// Adds the credential where the request goes to the configured host.
    fn authorised(&self, request: RequestBuilder, url: &Url) -> RequestBuilder {
        match &self.token {
            Some(token) if same_host(url, &self.configured) => {
                request.basic_auth(&token.user, Some(&token.password))
            }
            _ => request,
        }
    }

    /// Asks for the refs, and follows where the repository has moved.
    fn refs(&self) -> Result<Response, TransportError> {
        let mut url = at(&self.configured, "info/refs");
        for _ in 0..=REDIRECTS_MAX {
            let mut request = url.clone();
            request.set_query(Some("service=git-upload-pack"));
            let request = self.authorised(self.client.get(request), &url);
            let answer = self.wait(&url, request.send())?;
            if !answer.status().is_redirection() {
                let base = url.path().trim_end_matches("/info/refs").to_owned();
                let mut moved = url.clone();
                moved.set_path(&base);
                *self.base.lock().unwrap_or_else(PoisonError::into_inner) = moved;
                return checked(answer, &url);
            }
            url = moved(&answer, &url)?;
        }
        let reason = "there are too many redirects";
        Err(TransportError::Redirect { url: url.to_string(), reason })
    }

    fn pack(&self, body: Vec<u8>) -> Result<Response, TransportError> {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let url = at(&base, "git-upload-pack");
        let request = self
            .client
            .post(url.clone())
            .header("content-type", "application/x-git-upload-pack-request")
            .header("accept", "application/x-git-upload-pack-result")
            .body(body);
        let answer = self.wait(&url, self.authorised(request, &url).send())?;
        checked(answer, &url)
    }
}

fn at(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{name}", base.path().trim_end_matches('/')));
    url
}

fn same_host(one: &Url, other: &Url) -> bool {
    let place = |url: &Url| {
        let host = url.host_str().unwrap_or_default().to_owned();
        (url.scheme().to_owned(), host, url.port_or_known_default())
    };
    place(one) == place(other)
}

fn checked(answer: Response, url: &Url) -> Result<Response, TransportError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    Err(TransportError::Status { url: url.to_string(), status })
}

/// Returns where a redirect of the refs leads, if it may be followed.
fn moved(answer: &Response, from: &Url) -> Result<Url, TransportError> {
    let refuse = |reason| Err(TransportError::Redirect { url: from.to_string(), reason });
    let to = answer.headers().get("location").and_then(|value| value.to_str().ok());
    let Some(mut to) = to.and_then(|to| from.join(to).ok()) else {
        return refuse("it does not say where to");
    };
    to.set_query(None);
    if from.scheme() == "https" && to.scheme() != "https" {
        return refuse("it leads from https to plain http");
    }
    if !matches!(to.scheme(), "https" | "http") || !to.path().ends_with("/info/refs") {
        return refuse("it leads to no git repository");
    }
    if !to.username().is_empty() || to.password().is_some() {
        return refuse("it holds a user or a password");
    }
    Ok(to)
}

struct Http {
    context: Arc<Context>,
}

impl SmartSubtransport for Http {
    fn action(
        &self,
        _url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        if !matches!(service, Service::UploadPackLs | Service::UploadPack) {
            return Err(git2::Error::from_str("an agent never pushes"));
        }
        let is_refs = matches!(service, Service::UploadPackLs);
        let context = Arc::clone(&self.context);
        Ok(Box::new(Exchange {
            context,
            is_refs,
            body: Vec::new(),
            answer: None,
            chunk: Vec::new(),
            read: 0,
            unmeasured: ROOM_EVERY_BYTES,
            total_bytes: 0,
            head: Vec::new(),
        }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer.
struct Exchange {
    context: Arc<Context>,
    is_refs: bool,
    body: Vec<u8>,
    answer: Option<Response>,
    chunk: Vec<u8>,
    read: usize,
    /// How many bytes came in since the last look at the room that is left.
    unmeasured: usize,
    /// How many bytes came in.
    total_bytes: usize,
    head: Vec<u8>,
}

impl Exchange {
    fn fill(&mut self) -> Result<bool, TransportError> {
        let answer = match &mut self.answer {
            Some(answer) => answer,
            None => {
                let answer = if self.is_refs {
                    self.context.refs()?
                } else {
                    self.context.pack(std::mem::take(&mut self.body))?
                };
                self.answer.insert(answer)
            }
        };
        let url = answer.url().clone();
        let Some(chunk) = self.context.wait(&url, answer.chunk())? else { return Ok(false) };
        self.chunk = chunk.to_vec();
        self.read = 0;
        self.unmeasured += self.chunk.len();
        self.total_bytes += self.chunk.len();
        if self.is_refs && self.total_bytes > REFS_BYTES_MAX {
            return Err(TransportError::TooManyRefs { url: url.to_string() });
        }
        if self.unmeasured >= ROOM_EVERY_BYTES {
            self.unmeasured = 0;
            let full = |source| {
                let source = Box::new(source);
                TransportError::Space { url: url.to_string(), source }
            };
            (self.context.room)().map_err(full)?;
        }
        if self.head.len() < HEAD_BYTES {
            self.head.extend(self.chunk.iter().take(HEAD_BYTES));
            if let Some(said) = server_error(&self.head) {
                let said = discreet(said, self.context.token.as_ref());
                return Err(TransportError::Refused { said });
            }
        }
        Ok(true)
    }
}

/// Leaves out words that hold the credential: a server may repeat what it was sent.
fn discreet(said: String, token: Option<&Secret>) -> String {
    let holds = |token: &Secret| {
        said.contains(&token.password) || said.to_ascii_lowercase().contains("basic ")
    };
    if token.is_some_and(holds) {
        return "something that repeats the credential, and is not shown".to_owned();
    }
    said
}

/// Finds the server's `ERR` line at the beginning of an answer; libgit2 does not show it.
fn server_error(head: &[u8]) -> Option<String> {
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

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read >= self.chunk.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => return Err(self.context.keep(error)),
            }
        }
        let length = buffer.len().min(self.chunk.len() - self.read);
        buffer[..length].copy_from_slice(&self.chunk[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Fails where another test was first, and then there is one.
        drop(rustls::crypto::ring::default_provider().install_default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = Url::parse("https://git.example/a.git").unwrap();
        let mut context = Context {
            client: Client::new(),
            token: None,
            configured: url.clone(),
            base: Mutex::new(url.clone()),
            handle: runtime.handle().clone(),
            stop: CancellationToken::new(),
            room: Arc::new(|| Ok(())),
            stall: Duration::from_secs(60),
            total: Duration::from_secs(60),
            deadline: Instant::now() + Duration::from_secs(60),
            error: Mutex::new(None),
        };
        let ready = || std::future::ready(Ok(1));
        assert_eq!(context.wait(&url, ready()).unwrap(), 1);
        context.deadline = Instant::now();
        let outcome = context.wait(&url, ready());
        assert!(matches!(outcome, Err(TransportError::TooSlow { .. })), "{outcome:?}");
    }

    #[test]
    fn a_round_gets_no_more_time_than_its_fetch_has_left() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let origin = Origin {
            url: Url::parse("https://git.example/a.git").unwrap(),
            branch: None,
            token: None,
            verify_branch: false,
            stall: Duration::from_secs(60),
            total: Duration::from_secs(60),
            client: Client::new(),
        };
        let (stop, room): (_, Room) = (CancellationToken::new(), Arc::new(|| Ok(())));
        let over = Instant::now();
        let ((), error) = with(&origin, runtime.handle(), &stop, &room, over, || {
            let context = CONTEXT.with(|own| own.borrow().clone()).unwrap();
            let outcome = context.wait(&origin.url, std::future::ready(Ok(())));
            drop(context.keep(outcome.unwrap_err()));
        });
        assert!(matches!(error, Some(TransportError::TooSlow { .. })), "{error:?}");
    }

    #[test]
    fn a_server_that_repeats_the_credential_is_not_quoted() {
        let token = Secret { user: "bot".to_owned(), password: "s3cret".to_owned() };
        for said in ["you sent s3cret", "you sent Basic Ym90OnMzY3JldA=="] {
            assert!(!discreet(said.to_owned(), Some(&token)).contains(said), "{said}");
        }
        assert_eq!(discreet("not our ref".to_owned(), Some(&token)), "not our ref");
    }

    #[test]
    fn a_host_is_the_same_with_its_port_and_scheme_only() {
        let url = |text: &str| Url::parse(text).unwrap();
        let own = url("https://git.example/a.git");
        assert!(same_host(&own, &url("https://git.example:443/b.git")));
        for other in ["http://git.example/", "https://git.example:8443/", "https://example/"] {
            assert!(!same_host(&own, &url(other)), "{other}");
        }
    }
}
