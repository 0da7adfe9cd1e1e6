//! The coordinator, with agents that are parked: how soon all of them know of a new target, and what they
//! cost; beside a server that does nothing but write to as many sockets.
//!
//! ```text
//!   N connections: report, poll ──► parked ──┐
//!   one more:      release, abort ───────────┴──► each is answered: stamped when it can be read
//! ```
//!
//! Clients and server share the machine, so that both times hold the clients' own waking as well.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use towline_tests::cluster::{Coordinator, await_some};
use towline_tests::wire;

use crate::observed::Observed;
use crate::table::{Samples, note, row, times};

/// How many agents there are, each in a run of its own.
const SIZES: [usize; 3] = [1_000, 5_000, 10_000];

/// How often all of them are told something: a release and its abort each time.
const ROUNDS: usize = 5;

/// What a bare server writes to each, in bytes.
const WORD_BYTES: usize = 79;

/// How many agents connect at a time.
const AT_ONCE: usize = 200;

/// How long all of them may take to know.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures each size.
pub(crate) fn measure() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit anybody may");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the kernel grants an epoll descriptor");
    for size in SIZES {
        if u64::try_from(size + 500).unwrap_or(u64::MAX) > hard {
            note(&format!("{size} agents: skipped, a process may open {hard} files here"));
            continue;
        }
        runtime.block_on(measure_one(size));
    }
}

#[allow(clippy::disallowed_methods, reason = "times are what is measured")]
async fn measure_one(size: usize) {
    let floor = bare(size).await;
    let mut coordinator = Coordinator::new("connections = 19000\n");
    coordinator.run();
    coordinator.set_group("mirror = false\n");
    let observed = Observed { pid: coordinator.pid() };
    let before_kb = observed.status("VmRSS");
    let mut agents = join(coordinator.port(), size).await;
    agents = park(&coordinator, agents).await;
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let many = size as f64;
    let each_kb = (observed.status("VmRSS") - before_kb) / many;

    let (mut last, mut cpu_us) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let revision = format!("{:040x}", 0xa000 + round);
        let release = json!({ "revision": revision });
        for (path, body) in [("release", release), ("rollout/abort", json!({}))] {
            let key = format!("{size}-{round}-{}", path.len());
            let path = format!("/v1/groups/web/{path}");
            let cpu_ms = observed.cpu_ms();
            let told;
            (told, agents) = tell(agents, || post(coordinator.port(), &path, &key, &body)).await;
            last.push(told);
            // Whoever was woken parks again, outside of what is measured.
            cpu_us.push((observed.cpu_ms() - cpu_ms) * 1e3 / many);
            agents = park(&coordinator, agents).await;
        }
    }
    let mut skew = Samples::default();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let request = wire::request("GET", "/v1/groups/web/skew", &[], b"");
        let reply = wire::send(coordinator.port(), None, &request);
        skew.push(begun.elapsed().as_secs_f64() * 1e3);
        assert_eq!(reply.json()["counts"]["instances"], size, "{}", reply.head);
    }
    let named = |what: &str| format!("{size} agents: {what}");
    let last_of = named("target changes → the last knows");
    row(&last_of, "ms", &last, Some(floor.median() * 1.2));
    row("  a bare server writes to as many", "ms", &floor, None);
    times(&last_of, &last, &floor);
    row(&named("coordinator's CPU for each"), "µs", &cpu_us, Some(8.0));
    row(&named("its memory for each"), "kB", &Samples::from_iter([each_kb]), Some(2.0));
    let goal = if size > 10_000 { None } else { Some(10.0) };
    row(&named("skew, by HTTP"), "ms", &skew, goal);
    drop(agents);
    coordinator.kill();
}

/// The floor: everything but the work.
async fn bare(size: usize) -> Samples {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let accept = || listener.accept().expect("somebody connects").0;
        let mut all: Vec<TcpStream> = (0..size).map(|_| accept()).collect();
        for () in woken {
            for stream in &mut all {
                stream.write_all(&[b'x'; WORD_BYTES]).expect("it reads");
            }
        }
    });
    let mut agents = Vec::new();
    for number in 0..size {
        let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        agents.push(Agent { number, stream: stream.expect("somebody listens"), seen: None });
    }
    let mut last = Samples::default();
    for _ in 0..ROUNDS * 2 {
        let told;
        (told, agents) = tell(agents, || wake.send(()).expect("it waits")).await;
        last.push(told);
    }
    drop(wake);
    server.join().expect("it only writes");
    last
}

/// An agent, as far as its wire goes.
struct Agent {
    number: usize,
    stream: tokio::net::TcpStream,
    /// The last answer's name.
    seen: Option<String>,
}

impl Agent {
    fn name(&self) -> String {
        format!("i-{:05}", self.number)
    }

    async fn send(&mut self, path: &str, body: &Value) {
        let body = body.to_string();
        let head = format!(
            "POST /v1/agent/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head.as_bytes(), body.as_bytes()].concat();
        self.stream.write_all(&bytes).await.expect("the coordinator reads");
    }

    async fn poll(&mut self, seq: u64) {
        let mut poll = json!({"version": 1, "group": "web", "instance": self.name(), "seq": seq});
        if let Some(seen) = &self.seen {
            poll["seen"] = json!(seen);
        }
        self.send("poll", &poll).await;
    }

    /// Reads an answer; returns its body.
    async fn read(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece).await.expect("the coordinator writes");
            assert!(length > 0, "the coordinator hung up");
            bytes.extend_from_slice(&piece[..length]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().expect("a number"));
            if body.len() >= length {
                assert!(head.starts_with("HTTP/1.1 20"), "{text}");
                return body.as_bytes().to_vec();
            }
        }
    }
}

/// All agents, each of which has told that it serves something, and was told what to do.
async fn join(port: u16, size: usize) -> Vec<Agent> {
    let mut agents = Vec::new();
    for first in (0..size).step_by(AT_ONCE) {
        let mut some = JoinSet::new();
        for number in first..size.min(first + AT_ONCE) {
            some.spawn(async move {
                let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                let stream = stream.expect("the coordinator listens");
                let mut agent = Agent { number, stream, seen: None };
                let report = json!({
                    "version": 1, "instance": agent.name(), "group": "web", "phase": "idle",
                    "serving": "f".repeat(40), "evidence": "served", "health": "healthy",
                    "proven": true,
                });
                agent.send("report", &json!({"seq": 1, "report": report})).await;
                agent.read().await;
                agent.poll(2).await;
                agent.seen = Some(name_of(&agent.read().await));
                agent
            });
        }
        agents.extend(some.join_all().await);
    }
    agents
}

fn name_of(answer: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(answer).expect("an answer is JSON");
    answer["id"].as_str().expect("an answer has a name").to_owned()
}

/// Has all agents poll, until all of them are parked.
async fn park(coordinator: &Coordinator, mut agents: Vec<Agent>) -> Vec<Agent> {
    for agent in &mut agents {
        agent.poll(3).await;
    }
    let line = format!("towline_polls_parked {}", agents.len());
    let port = coordinator.port();
    await_some("all agents to be parked", || {
        let metrics = wire::send(port, None, &wire::request("GET", "/metrics", &[], b""));
        metrics.body.lines().any(|told| told == line).then_some(())
    });
    agents
}

/// Does something that all agents are to know; returns after how many ms the last one did.
#[allow(clippy::disallowed_methods, reason = "times are what is measured")]
async fn tell(agents: Vec<Agent>, act: impl FnOnce()) -> (f64, Vec<Agent>) {
    let mut waiting = JoinSet::new();
    for mut agent in agents {
        waiting.spawn(async move {
            agent.stream.readable().await.expect("it is open");
            let at = Instant::now();
            if agent.seen.is_some() {
                agent.seen = Some(name_of(&agent.read().await));
            } else {
                let mut word = [0; WORD_BYTES];
                agent.stream.read_exact(&mut word).await.expect("the server writes");
            }
            (at, agent)
        });
    }
    // Each has to be waiting before anything happens.
    tokio::task::yield_now().await;
    let begun = Instant::now();
    act();
    let all = tokio::time::timeout(PATIENCE, waiting.join_all()).await.expect("all are told");
    let last = all.iter().map(|(at, _)| *at).max().expect("there are some");
    let mut agents: Vec<Agent> = all.into_iter().map(|(_, agent)| agent).collect();
    agents.sort_by_key(|agent| agent.number);
    (last.duration_since(begun).as_secs_f64() * 1e3, agents)
}

/// Sends a change without waiting for its answer: it must not keep the clients from reading theirs.
fn post(port: u16, path: &str, key: &str, body: &Value) {
    let key = format!("idempotency-key: {key}");
    let request = wire::request("POST", path, &[key], body.to_string().as_bytes());
    let mut stream = wire::connect(port);
    stream.write_all(&request).expect("the coordinator reads");
    thread::spawn(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the coordinator answers");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    });
}
