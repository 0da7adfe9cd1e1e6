//! Does an agent grow? What it holds after many polls and many deploys, beside what it held before.
//!
//! ```text
//!   agents ──► a stub of a coordinator: each poll is answered at once, by another id of the same word
//! ```
//!
//! An agent lets 50 ms pass between two polls whatever the answers are, so that ten thousand of one agent
//! would take eight minutes: eight agents share them, and what all of them have grown is added up.
//!
//! How it is judged: after a warm-up, the descriptors and threads of the end are no more than those of the
//! beginning; and of memory, what is anonymous has grown by no more than what malloc takes in one step of
//! each heap (128 KiB a process). A leak of 128 bytes a poll is a megabyte more.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use towline_tests::app::{self, Kind};
use towline_tests::host::Host;
use towline_tests::origin::{Origin, Repo};

use crate::observed::{Cost, Observed};
use crate::table::{Samples, note, row};

/// Who shares the polls.
const AGENTS: usize = 8;

/// How many polls are counted in all.
const POLLS: usize = 10_000;

/// Polls before the first look, of each agent.
const POLLS_WARM: usize = 100;

/// How many deploys are counted.
const DEPLOYS: usize = 200;

/// Deploys before the first look: more than releases are kept.
const DEPLOYS_WARM: usize = 12;

/// How long an agent at rest is watched.
const IDLE: Duration = Duration::from_secs(60);

/// By how much malloc lets a heap grow in one step, in kB.
const STEP_KB: f64 = 132.0;

/// How often an agent at rest was woken within [`IDLE`], and what CPU time that took, in ms.
#[allow(clippy::disallowed_methods, reason = "the sleep is what is measured: an agent at rest")]
pub(crate) fn wake_ups(agent: Observed) -> (f64, f64) {
    let (sleeps, cpu) = (agent.sleeps(), agent.cpu_ms());
    thread::sleep(IDLE);
    (agent.sleeps() - sleeps, agent.cpu_ms() - cpu)
}

/// Prints what [`wake_ups`] has counted.
pub(crate) fn print_wake_ups(what: &str, (count, cpu_ms): (f64, f64)) {
    let count = Samples::from_iter([count]);
    row(&format!("{what}: wake-ups in a minute"), "", &count, Some(5.0));
    note(&format!("one health probe among them; {cpu_ms:.0} ms of CPU time, to 10 ms"));
}

/// What agents held before and after; each value is that of all of them together.
pub(crate) struct Growth {
    what: String,
    agents: f64,
    before: Cost,
    after: Cost,
}

impl Growth {
    fn of(what: String, before: &[Cost], after: &[Cost]) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "a handful")]
        let agents = before.len() as f64;
        Self { what, agents, before: sum(before), after: sum(after) }
    }

    /// Prints what each agent holds afterwards, and what all have grown.
    pub(crate) fn print(&self) {
        let Self { what, agents, before, after } = self;
        let each = Cost {
            resident_kb: after.resident_kb / agents,
            anonymous_kb: after.anonymous_kb / agents,
            threads: after.threads / agents,
            descriptors: after.descriptors / agents,
        };
        each.print(what);
        let grown = [
            ("resident memory, kB", after.resident_kb - before.resident_kb, f64::INFINITY),
            ("anonymous memory, kB", after.anonymous_kb - before.anonymous_kb, STEP_KB * agents),
            ("threads", after.threads - before.threads, 0.0),
            ("descriptors", after.descriptors - before.descriptors, 0.0),
        ];
        for (name, grown, most) in grown {
            let verdict = match () {
                () if most.is_infinite() => String::new(),
                () if grown <= most => format!("; goal 0, up to {most:.0} is none: reached"),
                () => format!("; goal 0, up to {most:.0} is none: MISSED"),
            };
            note(&format!("growth of all: {name}: {grown:.0}{verdict}"));
        }
    }
}

fn sum(costs: &[Cost]) -> Cost {
    let of = |field: fn(&Cost) -> f64| costs.iter().map(field).sum();
    Cost {
        resident_kb: of(|cost| cost.resident_kb),
        anonymous_kb: of(|cost| cost.anonymous_kb),
        threads: of(|cost| cost.threads),
        descriptors: of(|cost| cost.descriptors),
    }
}

/// Lets agents poll, and measures them before and after.
pub(crate) fn polls() -> Growth {
    let stub = Stub::start();
    let mut hosts: Vec<Host> = (0..AGENTS)
        .map(|number| {
            let name = format!("i-{number}");
            let url = "http://127.0.0.1:9/web.git";
            Host::member(&name, url, std::slice::from_ref(&stub.url), "")
        })
        .collect();
    hosts.iter_mut().for_each(Host::run);
    let looked = |hosts: &mut Vec<Host>, polls: usize| -> Vec<Cost> {
        let count = Arc::clone(&stub.polls);
        let enough = |_: &Host| (count.load(Ordering::SeqCst) >= polls).then_some(());
        // Twice the patience of a test: each poll waits for its turn.
        if !is_within_patience(&hosts[0], &enough) {
            hosts[0].await_some("polls", enough);
        }
        hosts.iter().map(|host| Observed { pid: host.agent_pid() }.cost()).collect()
    };
    let warm = POLLS_WARM * AGENTS;
    let before = looked(&mut hosts, warm);
    let after = looked(&mut hosts, warm + POLLS);
    for mut host in hosts {
        host.terminate();
    }
    Growth::of(format!("after {POLLS} polls of {AGENTS}"), &before, &after)
}

/// Waits for most of what the polls take by themselves.
#[allow(clippy::disallowed_methods, reason = "polls come at their own pace")]
fn is_within_patience(host: &Host, is_enough: &impl Fn(&Host) -> Option<()>) -> bool {
    (0..900).any(|_| {
        thread::sleep(Duration::from_millis(100));
        is_enough(host).is_some()
    })
}

/// A coordinator that answers every poll at once, and takes whatever it is told.
struct Stub {
    url: String,
    polls: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Stub {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let stub = Self {
            url: format!("http://127.0.0.1:{port}"),
            polls: Arc::default(),
            stop: Arc::default(),
        };
        let (polls, stop) = (Arc::clone(&stub.polls), Arc::clone(&stub.stop));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let polls = Arc::clone(&polls);
                thread::spawn(move || while serve(&stream, &polls).is_some() {});
            }
        });
        stub
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
    }
}

/// Answers the next request of a connection; `None` once it has ended.
fn serve(mut stream: &TcpStream, polls: &AtomicUsize) -> Option<()> {
    // No request is begun before the last one is answered, so that nothing read ahead is lost.
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|bytes| *bytes > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|bytes| *bytes > 2)?;
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
        if reader.buffer().starts_with(b"\r\n") {
            reader.consume(2);
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    let answer = if first.contains("/v1/agent/poll ") {
        let id = polls.fetch_add(1, Ordering::SeqCst);
        let body = format!(r#"{{"version":1,"id":"{id}","wait_s":50,"duty":"hold"}}"#);
        let kind = "Content-Type: application/json";
        format!("HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    } else {
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
    };
    stream.write_all(answer.as_bytes()).ok()
}

/// An instance with an app of a few files and no dependencies.
pub(crate) struct Tiny {
    host: Host,
    repo: Repo,
    files: Vec<(String, Vec<u8>, bool)>,
    tip: Option<String>,
    _origin: Origin,
}

impl Tiny {
    /// Sets it up, and starts the agent.
    pub(crate) fn set() -> Self {
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        let mut host = Host::new(&origin.url(&repo), "branch = \"main\"\n", "");
        let mut files = app::files(Kind::Plain, host.port);
        for (path, content, _) in &mut files {
            if path == "towline.toml" {
                let text = String::from_utf8_lossy(content)
                    .replace("every_s = 0.5", "every_s = 0.05")
                    .replace("passes = 2", "passes = 1")
                    .replace("healthy_for_s = 3", "healthy_for_s = 0.05");
                *content = text.into_bytes();
            }
        }
        host.run();
        Self { host, repo, files, tip: None, _origin: origin }
    }

    pub(crate) fn agent(&self) -> Observed {
        Observed { pid: self.host.agent_pid() }
    }

    /// Deploys again and again, and prints what the agent has grown by.
    pub(crate) fn deploys(&mut self) {
        self.times(DEPLOYS_WARM);
        let before = self.cost();
        self.times(DEPLOYS);
        let after = self.cost();
        Growth::of(format!("after {DEPLOYS} deploys"), &[before], &[after]).print();
    }

    fn times(&mut self, count: usize) {
        for number in 0..count {
            let path = "release.txt".to_owned();
            self.files.retain(|(name, _, _)| *name != path);
            self.files.push((path, format!("{:?} {number}", self.tip).into_bytes(), false));
            let tip = self.repo.commit(self.tip.as_deref(), &self.files);
            self.host.target(&tip);
            self.host.await_serving(&tip);
            self.tip = Some(tip);
        }
    }

    /// What the agent holds once it is at rest.
    fn cost(&mut self) -> Cost {
        let agent = self.agent();
        self.host.await_some("threads to end", |_| (agent.status("Threads") < 2.0).then_some(()));
        agent.cost()
    }
}
