//! The agent is killed at every system call by which it changes something, and let fail at each.
//!
//! Only calls about files are let fail: a host on which no thread can be made ends the agent, and whoever
//! started it starts it again; what fails of a child is the child's, and has its tests elsewhere.
//!
//! ```text
//!   lay out ─► once, killed or let fail at call n ─► holds? ─► a plain agent ─► converged?
//! ```

use std::collections::BTreeMap;
use std::io::Write;
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
#[derive(Debug, Clone, Copy)]
struct Case {
    work: Work,
    number: usize,
    fate: Fate,
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

fn traced(lane: &Lane, all: &Revisions, work: Work, at: Option<(usize, Fate)>) -> Ran {
    let command = work.command(lane, all);
    let mut is_done = false;
    let mut fate = |number: usize, call: &Call| match at {
        _ if is_done => Fate::Leave,
        // From run to run a call about a thread may come earlier or later.
        Some((own, fate)) if number >= own && (fate == Fate::Kill || call.is_of_file()) => {
            is_done = true;
            fate
        }
        _ => Fate::Pass,
    };
    syscalls::run(&command, &lane.dir(), &mut fate)
}

/// The calls of a run in which nothing goes wrong.
fn calls(lane: &mut Lane, all: &Revisions, source: &Source, work: Work) -> Vec<Call> {
    work.lay_out(lane, all);
    let (_, code) = work.end(all);
    let ran = traced(lane, all, work, None);
    assert_eq!(ran.ended, Ended::Exited(code), "{work:?}: {}", ran.log);
    work.goes_on(lane, all, source).expect("nothing went wrong");
    ran.calls
}

fn attempt(lane: &mut Lane, all: &Revisions, source: &Source, case: Case) -> Result<(), String> {
    let Case { work, number, fate } = case;
    work.lay_out(lane, all);
    let (serves, code) = work.end(all);
    let ran = traced(lane, all, work, Some((number, fate)));
    let fail = |what: String| {
        let call = ran.calls.get(number - 1);
        Err(format!("{case:?}, {call:?}: {what}\n--- the agent:\n{}", ran.log))
    };
    let is_hit = ran.calls.len() >= number;
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
            if let Err(what) = attempt(&mut lane, all, source, *case) {
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
fn spread(count: usize, wanted: usize) -> impl Iterator<Item = usize> {
    let step = if is_all() { 1 } else { count.div_ceil(wanted).max(1) };
    (1..=count).step_by(step)
}

#[test]
fn an_agent_killed_at_any_call_leaves_what_is_whole_and_goes_on() {
    matrix(|work, calls| {
        let case = |number| Case { work, number, fate: Fate::Kill };
        spread(calls.len(), 7).map(case).collect()
    });
}

#[test]
fn an_agent_that_fails_at_any_call_neither_lies_nor_ends_for_good() {
    const ERRORS: [Errno; 3] = [Errno::EIO, Errno::ENOSPC, Errno::EMFILE];
    matrix(|work, calls| {
        let of = |number: usize| {
            let errors = if is_all() { &ERRORS[..] } else { &ERRORS[number % 3..=number % 3] };
            errors.iter().map(move |errno| Case { work, number, fate: Fate::Fail(*errno) })
        };
        let is_of_file = |number: &usize| calls[number - 1].is_of_file();
        spread(calls.len(), 7).filter(is_of_file).flat_map(of).collect()
    });
}
