//! A load generator: keep-alive HTTP/1.1 connections that ask for one path at a bounded rate and
//! count what a user would notice during a deploy.
//!
//! ```text
//!   connect ─► wait for its turn ─► closed meanwhile? ─► write the request ─► read the response
//!      ▲                                   │                     │                  │
//!      ├──────────── yes: not cut ◄────────┘                     └─► closed: CUT ◄──┘
//!      └──────────── after `Connection: close`: not cut
//! ```
//!
//! A browser or a load balancer repeats a request on a new connection when it finds the old one closed
//! before it has sent anything; so does this. Once a request is written nobody may repeat it unasked,
//! and a connection that ends before the whole response is a cut request.
//!
//! Invariants
//! - Every request is counted once, as one of ok, not ok, cut, refused or timed out.
//! - Bounded: in requests, in time, in the size of a response, and in the wait for one.
//! - It has a thread and a runtime of its own: a test that blocks does not slow it down.
//!
//! It refuses to be a client for the world: 127.0.0.1 only, and a response without `Content-Length`
//! counts as not ok.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpStream as PeekStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval_at, timeout};

/// A request without its whole response by then has timed out.
const RESPONSE_MAX: Duration = Duration::from_secs(10);

/// More than the app ever answers; a response that claims more is not ok.
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;

/// What to ask, how often and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the app listens, on 127.0.0.1.
    pub port: u16,
    /// What to get, such as `/`.
    pub path: String,
    /// How many connections are kept open; each has one request in flight at most.
    pub connections: u32,
    /// The total rate of all connections. It is never exceeded to make up for lost time.
    pub requests_per_s: u32,
    /// How many requests to make in all.
    pub requests_max: usize,
    /// For how long to make them.
    pub duration_max: Duration,
}

impl Plan {
    /// Returns a plan for `/` with 20 connections and 400 requests a second, for two minutes at most.
    pub fn new(port: u16) -> Self {
        Plan {
            port,
            path: "/".into(),
            connections: 20,
            requests_per_s: 400,
            requests_max: 100_000,
            duration_max: Duration::from_secs(120),
        }
    }
}

/// When a revision answered, counted from the start of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The first answer.
    pub first: Duration,
    /// The last answer.
    pub last: Duration,
    /// How many answers.
    pub answers: usize,
}

/// How long the complete responses took, whatever their status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: Duration,
    /// All but one in a hundred took no longer.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Answered with 200.
    pub ok: usize,
    /// Answered with anything else.
    pub not_ok: usize,
    /// Written, and the connection ended before the whole response.
    pub cut: usize,
    /// Not written, for no connection could be made.
    pub refused: usize,
    /// Written, and neither answered nor cut for ten seconds.
    pub timed_out: usize,
    /// Connections made, the first of each included; no count of requests.
    pub connects: usize,
    /// For the complete responses.
    pub latency: Latency,
    /// What `x-revision` said, and when.
    pub revisions: BTreeMap<String, Seen>,
}

impl Summary {
    /// Returns how many requests were made.
    pub fn requests(&self) -> usize {
        self.ok + self.not_ok + self.cut + self.refused + self.timed_out
    }
}

/// A running load; dropping it ends it.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the load; it goes on in the background until its limits, [`Load::stop`] or a drop.
pub fn start(plan: Plan) -> Load {
    let (stop, stopped) = watch::channel(false);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the kernel grants an epoll descriptor");
    let shared = Arc::clone(&tally);
    let thread = thread::spawn(move || runtime.block_on(run(plan, shared, stopped)));
    Load { tally, stop, thread: Some(thread) }
}

impl Load {
    /// Returns what became of the requests up to now.
    pub fn snapshot(&self) -> Summary {
        lock(&self.tally).summary()
    }

    /// Lets the requests in flight finish, and returns what became of all.
    pub fn stop(mut self) -> Summary {
        self.end();
        self.snapshot()
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            // A second panic while the test fails would hide the first.
            assert!(ended.is_ok() || thread::panicking(), "the load generator panicked");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

#[allow(clippy::disallowed_methods, reason = "measuring real latency is what it is for")]
fn now() -> Instant {
    Instant::now()
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().expect("nothing panics while it counts")
}

/// Counts, and what the summary is made of.
#[derive(Debug, Default)]
struct Tally {
    counts: Summary,
    /// One per complete response; bounded by `requests_max`.
    latencies: Vec<Duration>,
    begun: usize,
}

impl Tally {
    fn begin(&mut self, requests_max: usize) -> bool {
        let may = self.begun < requests_max;
        self.begun += usize::from(may);
        may
    }

    fn answered(&mut self, response: &Response, latency: Duration, at: Duration) {
        self.latencies.push(latency);
        if response.status == 200 {
            self.counts.ok += 1;
        } else {
            self.counts.not_ok += 1;
        }
        if let Some(revision) = &response.revision {
            let seen = self.counts.revisions.entry(revision.clone());
            let seen = seen.or_insert(Seen { first: at, last: at, answers: 0 });
            seen.last = at;
            seen.answers += 1;
        }
    }

    fn summary(&self) -> Summary {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let at = |percent: usize| {
            let index = (latencies.len() * percent).div_ceil(100).saturating_sub(1);
            latencies.get(index).copied().unwrap_or_default()
        };
        let latency = Latency { p50: at(50), p99: at(99), max: at(100) };
        Summary { latency, ..self.counts.clone() }
    }
}

async fn run(plan: Plan, tally: Arc<Mutex<Tally>>, stopped: watch::Receiver<bool>) {
    let plan = Arc::new(plan);
    let started = now();
    let mut users = JoinSet::new();
    for index in 0..plan.connections {
        let user = User {
            plan: Arc::clone(&plan),
            tally: Arc::clone(&tally),
            stopped: stopped.clone(),
            started,
            connection: None,
        };
        users.spawn(user.run(index));
    }
    while users.join_next().await.is_some() {}
}

/// One keep-alive connection, made again whenever it has ended.
struct User {
    plan: Arc<Plan>,
    tally: Arc<Mutex<Tally>>,
    stopped: watch::Receiver<bool>,
    started: Instant,
    connection: Option<Connection>,
}

impl User {
    async fn run(mut self, index: u32) {
        let mut turns = turns(&self.plan, index);
        let until = self.started + self.plan.duration_max;
        loop {
            tokio::select! {
                biased;
                // Stopped, or the sender is gone, which is a reason to stop as well.
                _ = self.stopped.wait_for(|stop| *stop) => return,
                _ = turns.tick() => {}
            }
            if now() >= until || !lock(&self.tally).begin(self.plan.requests_max) {
                return;
            }
            self.request().await;
        }
    }

    async fn request(&mut self) {
        // Closed while idle, before anything was sent: not cut.
        let kept = self.connection.take().filter(Connection::is_open);
        let mut connection = match kept {
            Some(connection) => connection,
            None => match Connection::open(self.plan.port).await {
                Ok(connection) => {
                    lock(&self.tally).counts.connects += 1;
                    connection
                }
                Err(_) => {
                    lock(&self.tally).counts.refused += 1;
                    return;
                }
            },
        };

        let sent = now();
        let answer = timeout(RESPONSE_MAX, connection.get(&self.plan.path)).await;
        let answered = now();
        let mut tally = lock(&self.tally);
        match answer {
            Ok(Ok(response)) => {
                tally.answered(&response, answered - sent, answered - self.started);
                if !response.closes {
                    self.connection = Some(connection);
                }
            }
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => tally.counts.not_ok += 1,
            Ok(Err(_)) => tally.counts.cut += 1,
            Err(_) => tally.counts.timed_out += 1,
        }
    }
}

/// Returns one connection's share of the rate, out of step with that of the others.
fn turns(plan: &Plan, index: u32) -> Interval {
    let gap = Duration::from_secs(1) / plan.requests_per_s.max(1);
    let mut turns = interval_at((now() + gap * index).into(), gap * plan.connections.max(1));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}

struct Connection {
    stream: TcpStream,
    /// The same socket: tokio's own view of it is only as fresh as its last look at epoll.
    peek: PeekStream,
}

struct Response {
    status: u16,
    revision: Option<String>,
    closes: bool,
}

impl Connection {
    async fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let peek = stream.try_clone()?;
        Ok(Connection { stream: TcpStream::from_std(stream)?, peek })
    }

    /// Tells whether the server has neither closed nor reset it. It owes us nothing, so there is
    /// nothing else to read.
    fn is_open(&self) -> bool {
        matches!(self.peek.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Gets `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidData`] for a response that is none of ours; everything else is a cut.
    async fn get(&mut self, path: &str) -> io::Result<Response> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;

        let mut received = Vec::with_capacity(4096);
        loop {
            if self.stream.read_buf(&mut received).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some((response, length)) = parse(&received)?
                && received.len() >= length
            {
                return Ok(response);
            }
        }
    }
}

/// Returns the head of a response and the length of the whole, or `None` while the head is incomplete.
fn parse(received: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if received.len() > RESPONSE_BYTES_MAX { Err(not_ours()) } else { Ok(None) };
    };
    let text = str::from_utf8(&received[..head]).map_err(|_| not_ours())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(not_ours)?;

    let mut response = Response { status, revision: None, closes: false };
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse::<usize>().ok(),
            "x-revision" => response.revision = Some(value.to_owned()),
            "connection" => response.closes = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let length = length.filter(|length| *length <= RESPONSE_BYTES_MAX).ok_or_else(not_ours)?;
    Ok(Some((response, head + 4 + length)))
}

fn not_ours() -> io::Error {
    ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row is what came over the wire; the name is what a failure prints.
    #[test]
    fn a_response_is_complete_or_waited_for_or_refused() {
        let cases = [
            ("half a head is waited for", "HTTP/1.1 200 OK\r\nContent-Le", Ok(None)),
            (
                "a head tells the length",
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
                Ok(Some(45)),
            ),
            ("no length is not ours", "HTTP/1.1 200 OK\r\n\r\n", Err(ErrorKind::InvalidData)),
            ("nor is another protocol", "SSH-2.0\r\n\r\n", Err(ErrorKind::InvalidData)),
            (
                "nor is a body without end",
                "HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
                Err(ErrorKind::InvalidData),
            ),
        ];
        for (rule, received, expected) in cases {
            let length = parse(received.as_bytes()).map(|found| found.map(|(_, length)| length));
            assert_eq!(length.map_err(|error| error.kind()), expected, "{rule}");
        }
    }

    /// The server of each row closes at another moment; only one of them cuts a request.
    #[test]
    fn a_cut_is_a_connection_closed_between_request_and_response() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let cases = [
            ("closed after announcing it", last, true, (10, 0)),
            ("closed while idle", whole, true, (10, 0)),
            ("closed without an answer", "", true, (0, 10)),
            ("closed within the head", &whole[..20], true, (0, 10)),
            ("never closed", whole, false, (10, 0)),
        ];
        for (rule, answer, closes, (ok, cut)) in cases {
            let (port, server) = serve(answer, closes, 10);
            let plan =
                Plan { connections: 1, requests_per_s: 200, requests_max: 10, ..Plan::new(port) };
            let load = start(plan);
            server.join().unwrap();
            let summary = load.stop();
            let counted = (summary.ok, summary.cut, summary.requests());
            assert_eq!(counted, (ok, cut, 10), "{rule}: {summary:?}");
        }
    }

    /// Answers `requests` requests with `answer`.
    fn serve(answer: &str, closes: bool, requests: usize) -> (u16, JoinHandle<()>) {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = answer.to_owned();
        let thread = thread::spawn(move || {
            let mut kept = None;
            for _ in 0..requests {
                let mut stream = kept.take().unwrap_or_else(|| listener.accept().unwrap().0);
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
                kept = (!closes).then_some(stream);
            }
        });
        (port, thread)
    }
}
