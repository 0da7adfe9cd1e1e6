//! A real git origin over http: `git http-backend` behind a small server, with faults at will.
//!
//! It listens on a port of the kernel's choice, on a thread of its own, and ends when it is dropped.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// What goes wrong at the origin.
#[derive(Debug, Clone, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Every connection is reset.
    Down,
    /// Every request is answered with this status.
    Status(u16),
    /// Every pack stalls after its first bytes.
    Stall,
    /// Every pack comes this many bytes at a time, so slowly that it would take minutes.
    Trickle(usize),
    /// Every pack ends after so many bytes.
    Truncate(usize),
    /// The list of refs never ends.
    EndlessRefs,
    /// The refs are redirected to the same path below this address.
    Redirect(String),
}

#[derive(Debug, Default)]
struct Shared {
    root: PathBuf,
    fault: Fault,
    /// The `Authorization` header that is asked for.
    credential: Option<String>,
    authorisations: Vec<Option<String>>,
    packs: usize,
    requests: usize,
}

/// An origin that serves all repositories below one directory.
#[derive(Debug)]
pub struct Origin {
    root: TempDir,
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Mutex<Shared>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Origin {
    /// Starts an origin over plain http.
    #[must_use]
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// Starts an origin over https, with a certificate of its own authority: [`Origin::ca_file`].
    #[must_use]
    pub fn start_tls() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])
            .expect("a name that is valid");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("the key fits");
        let origin = Self::listen(Some(TlsAcceptor::from(Arc::new(config))));
        fs::write(origin.ca_file(), made.cert.pem()).expect("the directory is ours");
        origin
    }

    fn listen(tls: Option<TlsAcceptor>) -> Self {
        let root =
            tempfile::Builder::new().prefix("towline-origin-").tempdir().expect("a temp dir");
        let shared = Shared { root: root.path().to_owned(), ..Shared::default() };
        let shared = Arc::new(Mutex::new(shared));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stop, stopped) = oneshot::channel();
        let (send, receive) = std::sync::mpsc::channel();
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener =
                    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
                send.send(listener.local_addr().expect("it is bound")).expect("it is waited for");
                tokio::select! {
                    () = serve(listener, tls, own) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = receive.recv().expect("the origin starts");
        Self { root, address, scheme, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// The address of a repository.
    #[must_use]
    pub fn url(&self, repository: &Repo) -> String {
        format!("{}/{}", self.base(), repository.name)
    }

    /// The address that all repositories are below.
    #[must_use]
    pub fn base(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.address.port())
    }

    /// Where its repositories are.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The certificate to trust, in PEM.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.root.path().join("ca.pem")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets something go wrong from now on.
    pub fn fail(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// Asks for `user:password` from now on.
    pub fn require(&self, credential: &str) {
        self.lock().credential = Some(credential.to_owned());
    }

    /// The `Authorization` headers of all requests so far, as `user:password`.
    #[must_use]
    pub fn authorisations(&self) -> Vec<Option<String>> {
        self.lock().authorisations.clone()
    }

    /// How many packs were asked for.
    #[must_use]
    pub fn packs(&self) -> usize {
        self.lock().packs
    }

    /// How many requests came in all.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.lock().requests
    }

    /// Makes an empty repository that gives any commit by its id.
    #[must_use]
    pub fn repository(&self, name: &str) -> Repo {
        let repository = Repo { dir: self.root.path().join(name), name: name.to_owned() };
        fs::create_dir(&repository.dir).expect("a new directory");
        repository.git(&["init", "-q", "--bare", "-b", "main", "."], b"");
        repository.give_any_commit(true);
        repository
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It has ended by itself where nobody listens.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What a commit is called where it does not matter.
const SUBJECT: &str = "A change";

/// A bare repository of an origin.
#[derive(Debug, Clone)]
pub struct Repo {
    dir: PathBuf,
    name: String,
}

impl Repo {
    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Does the server give commits that no ref names?
    pub fn give_any_commit(&self, yes: bool) {
        let yes = if yes { "true" } else { "false" };
        self.git(&["config", "uploadpack.allowAnySHA1InWant", yes], b"");
    }

    /// Commits these files, and nothing else, on top of `parent`; returns the commit's id. `main`
    /// points at it from then on, as after a forced push.
    pub fn commit(&self, parent: Option<&str>, files: &[(String, Vec<u8>, bool)]) -> String {
        self.commit_as(parent, files, SUBJECT)
    }

    /// Likewise, with a subject.
    pub fn commit_as(
        &self,
        parent: Option<&str>,
        files: &[(String, Vec<u8>, bool)],
        subject: &str,
    ) -> String {
        let index = tempfile::NamedTempFile::new().expect("a temp file");
        fs::remove_file(index.path()).expect("it is ours");
        let mut list = Vec::new();
        for (path, content, executable) in files {
            let id = self.git(&["hash-object", "-w", "--stdin"], content);
            let mode = if *executable { "100755" } else { "100644" };
            list.extend_from_slice(format!("{mode} {id}\t{path}\n").as_bytes());
        }
        let index = index.path().to_str().expect("a temp file's name is text");
        self.git_with(
            &["update-index", "--add", "--index-info"],
            &list,
            &[("GIT_INDEX_FILE", index)],
        );
        let tree = self.git_with(&["write-tree"], b"", &[("GIT_INDEX_FILE", index)]);
        drop(fs::remove_file(index));
        self.commit_tree_as(&tree, parent, subject)
    }

    /// Commits a tree by its id; `main` points at it from then on.
    pub fn commit_tree(&self, tree: &str, parent: Option<&str>) -> String {
        self.commit_tree_as(tree, parent, SUBJECT)
    }

    fn commit_tree_as(&self, tree: &str, parent: Option<&str>, subject: &str) -> String {
        let mut arguments = vec!["commit-tree", tree, "-m", subject];
        arguments.extend(parent.into_iter().flat_map(|parent| ["-p", parent]));
        let id = self.git(&arguments, b"");
        self.point("main", &id);
        id
    }

    /// Makes a tree that git itself would not: `mode`, `name`, `id` of each entry, unchecked.
    pub fn raw_tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut bytes = Vec::new();
        for (mode, name, id) in entries {
            bytes.extend_from_slice(mode.as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(name);
            bytes.push(0);
            for pair in id.as_bytes().chunks(2) {
                let digits = std::str::from_utf8(pair).expect("hexadecimal digits");
                bytes.push(u8::from_str_radix(digits, 16).expect("hexadecimal digits"));
            }
        }
        self.git(&["hash-object", "-t", "tree", "--literally", "-w", "--stdin"], &bytes)
    }

    /// Writes a blob; returns its id.
    pub fn blob(&self, content: &[u8]) -> String {
        self.git(&["hash-object", "-w", "--stdin"], content)
    }

    /// Points a branch at a commit.
    pub fn point(&self, branch: &str, id: &str) {
        self.git(&["update-ref", &format!("refs/heads/{branch}"), id], b"");
    }

    /// Runs git in the repository, and returns what it printed.
    pub fn git(&self, arguments: &[&str], input: &[u8]) -> String {
        self.git_with(arguments, input, &[])
    }

    fn git_with(&self, arguments: &[&str], input: &[u8], more: &[(&str, &str)]) -> String {
        let mut child = git(&self.dir)
            .args(arguments)
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git is installed");
        child.stdin.take().expect("a pipe").write_all(input).expect("git reads it");
        let output = child.wait_with_output().expect("it is ours");
        assert!(output.status.success(), "git {arguments:?}");
        String::from_utf8(output.stdout).expect("git prints ids").trim().to_owned()
    }
}

/// The git program, deaf to the configuration of whoever runs the tests.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(dir).env_clear();
    command.envs([
        ("PATH", std::env::var("PATH").unwrap_or_default().as_str()),
        ("HOME", "/nonexistent"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_AUTHOR_NAME", "A"),
        ("GIT_AUTHOR_EMAIL", "a@example.org"),
        ("GIT_COMMITTER_NAME", "A"),
        ("GIT_COMMITTER_EMAIL", "a@example.org"),
        ("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z"),
        ("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z"),
    ]);
    command
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Mutex<Shared>>) {
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let is_down = matches!(lock(&shared).fault, Fault::Down);
        if is_down {
            // Closed with a reset, as by a host that has no such service.
            drop(stream.set_zero_linger());
            continue;
        }
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let tls = tls.clone();
        tokio::spawn(async move {
            // A connection that outlived a request would not notice that the origin is down.
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.keep_alive(false);
            match tls {
                // A client that trusts nobody here ends the handshake; so does one that stops.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let io = hyper_util::rt::TokioIo::new(stream);
                        drop(builder.serve_connection(io, service).await);
                    }
                }
                None => {
                    let io = hyper_util::rt::TokioIo::new(stream);
                    drop(builder.serve_connection(io, service).await);
                }
            }
        });
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let is_pack = path.ends_with("/git-upload-pack");
    let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Basic ")).map(decoded);
    let (root, fault, is_allowed) = {
        let mut shared = lock(&shared);
        shared.requests += 1;
        shared.packs += usize::from(is_pack);
        shared.authorisations.push(given.clone());
        let is_allowed = shared.credential.is_none() || shared.credential == given;
        (shared.root.clone(), shared.fault.clone(), is_allowed)
    };
    if !is_allowed {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match &fault {
        Fault::Status(status) => {
            return StatusCode::from_u16(*status).expect("a valid status").into_response();
        }
        Fault::Redirect(base) if !is_pack => {
            let query = parts.uri.query().unwrap_or_default();
            let place = format!("{base}{path}?{query}");
            return (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, place)]).into_response();
        }
        Fault::EndlessRefs if !is_pack => {
            let kind = "application/x-git-upload-pack-advertisement";
            return ([(header::CONTENT_TYPE, kind)], Body::new(Refs::default())).into_response();
        }
        _ => {}
    }
    let Ok(input) = to_bytes(body, 64 << 20).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let header = |name: HeaderName| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let environment = [
        ("REQUEST_METHOD", parts.method.to_string()),
        ("PATH_INFO", path),
        ("QUERY_STRING", parts.uri.query().unwrap_or_default().to_owned()),
        ("CONTENT_TYPE", header(header::CONTENT_TYPE)),
        ("HTTP_CONTENT_ENCODING", header(header::CONTENT_ENCODING)),
        ("GIT_PROJECT_ROOT", root.display().to_string()),
        ("GIT_HTTP_EXPORT_ALL", "1".to_owned()),
    ];
    let (status, kind, content) = backend(&root, &environment, &input).await;
    let content = match fault {
        Fault::Stall if is_pack => Body::new(Pieces::stalling(content, 4)),
        Fault::Trickle(bytes) if is_pack => Body::new(Pieces::trickling(content, bytes)),
        Fault::Truncate(bytes) if is_pack => {
            // The promised length shows that something is missing.
            let length = content.len().to_string();
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length)];
            return (status, headers, Body::new(Pieces::cut(content, bytes))).into_response();
        }
        _ => Body::from(content),
    };
    (status, [(header::CONTENT_TYPE, kind)], content).into_response()
}

fn decoded(value: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for byte in value.bytes().take_while(|byte| *byte != b'=') {
        let digit = ALPHABET.iter().position(|known| *known == byte).expect("base64");
        bits = bits << 6 | u32::try_from(digit).expect("below 64");
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).expect("a byte"));
        }
    }
    String::from_utf8(bytes).expect("text")
}

/// Runs `git http-backend`; returns status, content type and content.
async fn backend(
    root: &Path,
    environment: &[(&str, String)],
    input: &[u8],
) -> (StatusCode, String, Vec<u8>) {
    let mut command = git(root);
    command.arg("http-backend").envs(environment.iter().map(|(name, value)| (*name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = tokio::process::Command::from(command).spawn().expect("git is installed");
    let mut stdin = child.stdin.take().expect("a pipe");
    let write = async move {
        // A backend that answers before it has read everything closes the pipe.
        drop(stdin.write_all(input).await);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output.expect("it is ours").stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else { return (StatusCode::BAD_GATEWAY, String::new(), output) };
    let (mut status, mut kind) = (StatusCode::OK, String::new());
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", value)) => {
                let code = value.split(' ').next().and_then(|code| code.parse().ok());
                status = code.unwrap_or(StatusCode::BAD_GATEWAY);
            }
            Some(("Content-Type", value)) => kind = value.to_owned(),
            _ => {}
        }
    }
    (status, kind, output[end + 4..].to_vec())
}

/// A list of refs without end, each line of it as it ought to be.
#[derive(Default)]
struct Refs {
    lines: usize,
}

impl http_body::Body for Refs {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let id = "a".repeat(40);
        let mut text = String::new();
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        if self.lines == 0 {
            text = format!("{}0000", line("# service=git-upload-pack\n"));
            text += &line(&format!("{id} HEAD\0allow-any-sha1-in-want shallow side-band-64k\n"));
        }
        for _ in 0..1_000 {
            self.lines += 1;
            text += &line(&format!("{id} refs/heads/branch-{:09}\n", self.lines));
        }
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from(text)))))
    }
}

/// The time from one piece to the next of a body that trickles: well within any stall deadline.
const PACE: Duration = Duration::from_millis(20);

/// A body that is sent piece by piece, and then ends, or stalls for ever.
struct Pieces {
    rest: Bytes,
    size: usize,
    pace: Option<tokio::time::Interval>,
    ends: bool,
}

impl Pieces {
    /// Sends its first bytes, and then nothing for ever.
    fn stalling(content: Vec<u8>, bytes: usize) -> Self {
        Self { ends: false, ..Self::cut(content, bytes) }
    }

    /// Ends after its first bytes.
    fn cut(mut content: Vec<u8>, bytes: usize) -> Self {
        content.truncate(bytes);
        Self { rest: Bytes::from(content), size: bytes, pace: None, ends: true }
    }

    /// Sends all of it, a few bytes at a time.
    fn trickling(content: Vec<u8>, bytes: usize) -> Self {
        let pace = Some(tokio::time::interval(PACE));
        Self { rest: Bytes::from(content), size: bytes, pace, ends: true }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return if self.ends { Poll::Ready(None) } else { Poll::Pending };
        }
        if let Some(pace) = &mut self.pace {
            std::task::ready!(pace.poll_tick(context));
        }
        let size = self.size.min(self.rest.len());
        let piece = self.rest.split_to(size);
        Poll::Ready(Some(Ok(http_body::Frame::data(piece))))
    }
}
