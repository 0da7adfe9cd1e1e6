//! The agent is killed at every system call by which it changes something, and let fail at each.
//!
//! Only calls about files are let fail: a host on which no thread can be made ends the agent, and whoever
//! started it starts it again; what fails of a child is the child's, and has its tests elsewhere.
//!
//! ```text
//!   lay out ─► once, killed or let fail at call n ─► holds? ─► a plain agent ─► converged?
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use towline_tests::syscalls::{self, Call, Ended, Fate, Ran};

use super::{Lane, Source, is_all};

/// What the agent is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A first deploy.
    First,
    /// A deploy over a release that serves; the oldest of three is pruned at its end.
    Next,
    /// A deploy of a revision that turns out unhealthy: what served is restored.
    Restore,
    /// An image is filled.
    Bake,
}

/// The revisions of all cases.
struct Revisions {
    old: String,
    good: String,
    next: String,
    bad: String,
}

impl Revisions {
    fn new(source: &mut Source) -> Self {
        let (old, good, next) = (source.good(), source.good(), source.good());
        Self { old, good, next, bad: source.bad() }
    }
}

impl Work {
    const ALL: [Work; 4] = [Work::First, Work::Next, Work::Restore, Work::Bake];

    /// Lays out what it begins with, and names its target.
    fn lay_out(self, lane: &mut Lane, all: &Revisions) {
        lane.reset(if self.is_first() { "empty" } else { "serving" });
        lane.host.target(match self {
            Work::First | Work::Bake => &all.old,
            Work::Next => &all.next,
            Work::Restore => &all.bad,
        });
    }

    /// Is nothing there before it?
    fn is_first(self) -> bool {
        matches!(self, Work::First | Work::Bake)
    }

    /// The agent's command line for it.
    fn command(self, lane: &Lane, all: &Revisions) -> Command {
        let mut command = lane.host.command(if self == Work::Bake { "bake" } else { "once" });
        command.args(["--log", "json"]);
        if self == Work::Bake {
            command.arg(&all.old);
        }
        command
    }

    /// Has a plain agent go on from where another one has ended.
    fn goes_on(self, lane: &Lane, all: &Revisions, source: &Source) -> Result<(), String> {
        if self == Work::Bake {
            let output = self.command(lane, all).output().expect("the agent was built");
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("the second bake: {}\n{said}", output.status));
            }
            lane.holds(source, &self.may_be(all), false)?;
        }
        let (serves, code) = self.end(all);
        lane.recovers(source, serves, code)
    }

    /// What `current` may lead to in the middle of it.
    fn may_be(self, all: &Revisions) -> [&str; 2] {
        match self {
            Work::First | Work::Bake => [&all.old, &all.old],
            Work::Next => [&all.good, &all.next],
            Work::Restore => [&all.good, &all.bad],
        }
    }

    /// What serves in the end, and how `once` ends then.
    fn end(self, all: &Revisions) -> (&str, i32) {
        match self {
            Work::First | Work::Bake => (&all.old, 0),
            Work::Next => (&all.next, 0),
            Work::Restore => (&all.good, 1),
        }
    }
}

/// One run in which something goes wrong.
#[derive(Debug, Clone)]
struct Case {
    work: Work,
    at: At,
    fate: Fate,
}

/// Where it goes wrong.
#[derive(Debug, Clone)]
enum At {
    /// At the call of this number: somewhere else in some runs, since threads and looks come and go.
    Number(usize),
    /// At this very call, and the how manyth of its kind; its path is relative to the app's directory.
    Call(Call, usize),
}

/// The same call, whichever instance makes it.
fn relative(call: &Call, dir: &Path) -> Call {
    let prefix = dir.to_str().expect("a temp dir's name is text");
    Call { name: call.name, about: call.about.replace(prefix, "") }
}

fn lane(source: &Source, all: &Revisions) -> Lane {
    let mut lane = Lane::new(source);
    lane.keep("empty");
    for revision in [&all.old, &all.good] {
        lane.host.target(revision);
        let (code, log) = lane.once();
        assert_eq!(code, 0, "{log}");
    }
    lane.keep("serving");
    lane
}

fn traced(lane: &Lane, all: &Revisions, work: Work, at: Option<(&At, Fate)>) -> (Ran, bool) {
    let command = work.command(lane, all);
    let dir = lane.dir();
    let (mut is_done, mut met) = (false, 0);
    let mut ask = |number: usize, call: &Call| {
        let Some((at, fate)) = at else { return Fate::Pass };
        if is_done {
            return Fate::Leave;
        }
        is_done = match at {
            // From run to run a call about a thread may come earlier or later.
            At::Number(own) => number >= *own && (fate == Fate::Kill || call.is_of_file()),
            At::Call(own, nth) => {
                met += usize::from(relative(call, &dir) == *own);
                met == *nth
            }
        };
        if is_done { fate } else { Fate::Pass }
    };
    let ran = syscalls::run(&command, &dir, &mut ask);
    (ran, is_done)
}

/// The calls of a run in which nothing goes wrong.
fn calls(lane: &mut Lane, all: &Revisions, source: &Source, work: Work) -> Vec<Call> {
    work.lay_out(lane, all);
    let (_, code) = work.end(all);
    let (ran, _) = traced(lane, all, work, None);
    assert_eq!(ran.ended, Ended::Exited(code), "{work:?}: {}", ran.log);
    work.goes_on(lane, all, source).expect("nothing went wrong");
    let dir = lane.dir();
    ran.calls.iter().map(|call| relative(call, &dir)).collect()
}

fn attempt(lane: &mut Lane, all: &Revisions, source: &Source, case: &Case) -> Result<(), String> {
    let Case { work, at, fate } = case;
    let (work, fate) = (*work, *fate);
    work.lay_out(lane, all);
    let (serves, code) = work.end(all);
    let (ran, is_hit) = traced(lane, all, work, Some((at, fate)));
    let fail = |what: String| {
        let calls = &ran.calls[ran.calls.len().saturating_sub(2)..];
        Err(format!("{case:?}, {calls:?}: {what}\n--- the agent:\n{}", ran.log))
    };
    let is_expected = match (fate, ran.ended) {
        // A run may make a call less than another.
        (_, Ended::Exited(ended)) if !is_hit => ended == code,
        (Fate::Kill, ended) => ended == Ended::Killed(Signal::SIGKILL),
        // 101 is a panic; after 78 nobody starts it again.
        (Fate::Fail(_), Ended::Exited(ended)) => matches!(ended, 0 | 1 | 75),
        _ => false,
    };
    if !is_expected || ran.log.contains("panicked") {
        return fail(format!("it ended as {:?}", ran.ended));
    }
    let may_be_absent = work.is_first() && ran.ended != Ended::Exited(0);
    if let Err(what) = lane.holds(source, &work.may_be(all), may_be_absent) {
        return fail(what);
    }
    // No instance has a journal yet in an image.
    if work != Work::Bake
        && let Err(what) = lane.is_journalled()
    {
        return fail(what);
    }
    if work == Work::Next
        && ran.ended == Ended::Exited(0)
        && lane.host.current().as_deref() != Some(serves)
    {
        return fail("it claims to be done, and is not".to_owned());
    }
    if let Err(what) = work.goes_on(lane, all, source) {
        return fail(what);
    }
    Ok(())
}

/// Tries all cases that `choose` makes of the calls of each work, on two lanes.
fn matrix(choose: impl Fn(Work, &[Call]) -> Vec<Case>) {
    let mut source = Source::new();
    let all = Revisions::new(&mut source);
    let source = &source;
    let mut first = lane(source, &all);
    let mut cases = Vec::new();
    let mut counts = BTreeMap::new();
    for work in Work::ALL {
        let calls = calls(&mut first, &all, source, work);
        counts.insert(work, calls.len());
        cases.extend(choose(work, &calls));
    }
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let (cases, next, failures, all) = (&cases, &next, &failures, &all);
    let go = move |mut lane: Lane| {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(what) = attempt(&mut lane, all, source, case) {
                writeln!(std::io::stderr(), "{what}\n").ok();
                failures.lock().expect("no case panics").push(format!("{case:?}"));
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(move || go(first));
        scope.spawn(move || go(lane(source, all)));
    });
    let failures = failures.lock().expect("no case panics");
    let (wrong, count) = (failures.len(), cases.len());
    writeln!(std::io::stderr(), "{wrong} of {count} cases failed; calls: {counts:?}").ok();
    assert!(failures.is_empty(), "of {count} cases {wrong} failed:\n{}", failures.join("\n"));
}

/// Every so manyth of them, where not all are tried.
fn spread(count: usize, wanted: usize) -> BTreeSet<usize> {
    let step = if is_all() { 1 } else { count.div_ceil(wanted).max(1) };
    (1..=count).step_by(step).collect()
}

/// Does a release count, or live, or no more, by this very call?
fn decides(call: &Call) -> bool {
    let about = call.about.as_str();
    match call.name {
        "rename" => about.contains("/releases/") && !about.contains("/git/") || is_current(about),
        "renameat2" => about.ends_with("/journal.json"),
        "symlink" => is_current(about),
        "unlink" => about.ends_with(".json") && about.contains("/releases/"),
        "fsync" => about.ends_with("/releases") || about.is_empty(),
        _ => false,
    }
}

fn is_current(path: &str) -> bool {
    path.ends_with("/current")
}

#[test]
fn an_agent_killed_at_any_call_leaves_what_is_whole_and_goes_on() {
    matrix(|work, calls| {
        let case = |at| Case { work, at, fate: Fate::Kill };
        let mut cases: Vec<Case> =
            spread(calls.len(), 3).into_iter().map(At::Number).map(case).collect();
        if matches!(work, Work::Next | Work::Bake) {
            for (index, call) in calls.iter().enumerate().filter(|(_, call)| decides(call)) {
                let nth = calls[..=index].iter().filter(|other| *other == call).count();
                cases.push(case(At::Call(call.clone(), nth)));
            }
        }
        cases
    });
}

#[test]
fn an_agent_that_fails_at_any_call_neither_lies_nor_ends_for_good() {
    const ERRORS: [Errno; 3] = [Errno::EIO, Errno::ENOSPC, Errno::EMFILE];
    matrix(|work, calls| {
        let of = |number: usize| {
            let errors = if is_all() { &ERRORS[..] } else { &ERRORS[number % 3..=number % 3] };
            errors.iter().map(move |errno| Case {
                work,
                at: At::Number(number),
                fate: Fate::Fail(*errno),
            })
        };
        let is_of_file = |number: &usize| calls[number - 1].is_of_file();
        spread(calls.len(), 5).into_iter().filter(is_of_file).flat_map(of).collect()
    });
}
