//! The health window: do a row of probes make a release healthy?
//!
//! ```text
//!   start ──► first pass ──► passes in a row ──► healthy_for since the first ──► Healthy
//!                 ▲                │
//!                 └── a failure ───┘  and after `passes` failures in a row: Failed
//!                                     (before it was first healthy: only after the grace, unless
//!                                      another revision answered)
//!   deadline, at any time before Healthy: Failed
//! ```
//!
//! Invariants
//! - Pure: no clock, no I/O. Time comes in as the time since the window's start.
//! - Only passes make healthy: time that goes by without a probe adds nothing.

use std::time::Duration;

use towline_protocol::report::Cause;

use super::{Failure, Verdict};

/// What a window asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many probes in a row make healthy, or unhealthy; 0 counts as 1.
    pub passes: u32,
    /// How long it must stay healthy, from the first of those passes.
    pub healthy_for: Duration,
    /// How long after the start failures are those of an app that is still starting. An answer with
    /// another revision is none of those: no app starts into another one.
    pub grace: Duration,
    /// When all must be over, after the start.
    pub deadline: Duration,
}

/// What the probes say so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing yet: probe again.
    Continue,
    /// It has stayed healthy for long enough.
    Healthy,
    /// It will not.
    Failed(Failure),
}

/// Counts the probes of one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    limits: Limits,
    passes: u32,
    failures: u32,
    /// How many of these, in a row, were answers with another revision.
    wrong: u32,
    /// When the first pass of the present row came.
    since: Option<Duration>,
    was_healthy: bool,
    last: Option<Failure>,
}

impl Window {
    /// Opens a window.
    #[must_use]
    pub fn new(limits: Limits) -> Window {
        Window {
            limits,
            passes: 0,
            failures: 0,
            wrong: 0,
            since: None,
            was_healthy: false,
            last: None,
        }
    }

    /// Takes what a probe said at `now`, the time since the start.
    ///
    /// A pass that completes the window counts even at the deadline: the proof is there.
    pub fn feed(&mut self, now: Duration, verdict: Verdict) -> Progress {
        let needed = self.limits.passes.max(1);
        match verdict {
            Verdict::Pass { .. } => {
                (self.failures, self.wrong) = (0, 0);
                self.passes = self.passes.saturating_add(1);
                let since = *self.since.get_or_insert(now);
                self.was_healthy |= self.passes >= needed;
                let held = now.saturating_sub(since);
                if self.passes >= needed && held >= self.limits.healthy_for {
                    return Progress::Healthy;
                }
            }
            Verdict::Fail(failure) => {
                self.passes = 0;
                self.since = None;
                self.failures = self.failures.saturating_add(1);
                self.last = Some(failure.clone());
                let is_wrong = failure.cause == Cause::WrongRevision;
                self.wrong = if is_wrong { self.wrong.saturating_add(1) } else { 0 };
                let counts = self.was_healthy || now >= self.limits.grace;
                if (counts && self.failures >= needed) || self.wrong >= needed {
                    return Progress::Failed(failure);
                }
            }
        }
        if now >= self.limits.deadline { self.late() } else { Progress::Continue }
    }

    /// Returns the failure of a window whose time is up.
    fn late(&self) -> Progress {
        let deadline_s = self.limits.deadline.as_secs_f64();
        let failure = match &self.last {
            Some(last) if self.failures > 0 => last.clone(),
            last => {
                let before = last.as_ref().map(|last| format!("; before: {}", last.detail));
                let before = before.unwrap_or_default();
                Failure {
                    cause: Cause::Unhealthy,
                    detail: format!("not healthy long enough within {deadline_s} s{before}"),
                }
            }
        };
        Progress::Failed(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Verdict = Verdict::Pass { served: false };

    fn failure(detail: &str) -> Failure {
        Failure { cause: Cause::Unhealthy, detail: detail.to_owned() }
    }

    fn fail(detail: &str) -> Verdict {
        Verdict::Fail(failure(detail))
    }

    /// Every row is one rule: 3 passes, 10 s healthy, 20 s grace, 60 s in all.
    #[test]
    fn a_window_adds_probes_up() {
        use Progress::{Continue, Failed, Healthy};
        let limits = Limits {
            passes: 3,
            healthy_for: Duration::from_secs(10),
            grace: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
        };
        let f = || fail("f");
        let wrong = || Verdict::Fail(Failure { cause: Cause::WrongRevision, ..failure("w") });
        let cases = [
            ("passes alone are not enough", vec![(0, PASS), (2, PASS), (4, PASS)], Continue),
            ("nor is time", vec![(0, PASS), (30, PASS)], Continue),
            ("both are", vec![(0, PASS), (5, PASS), (10, PASS)], Healthy),
            ("a second short", vec![(1, PASS), (5, PASS), (10, PASS)], Continue),
            (
                "a failure begins it anew",
                vec![(0, PASS), (2, PASS), (4, f()), (6, PASS), (8, PASS), (15, PASS)],
                Continue,
            ),
            (
                "and it is then full from the first pass after",
                vec![(0, PASS), (4, f()), (6, PASS), (8, PASS), (16, PASS)],
                Healthy,
            ),
            (
                "one such answer among failures is not enough",
                vec![(1, f()), (2, f()), (3, wrong()), (4, f()), (5, wrong())],
                Continue,
            ),
            (
                "but not answer with another revision",
                vec![(1, wrong()), (2, wrong()), (3, wrong())],
                Failed(Failure { cause: Cause::WrongRevision, ..failure("w") }),
            ),
            (
                "passes before a failure are none",
                vec![(0, PASS), (2, PASS), (4, f()), (6, PASS), (16, PASS)],
                Continue,
            ),
            (
                "an app that starts may fail",
                vec![(1, f()), (2, f()), (3, f()), (19, f())],
                Continue,
            ),
            (
                "but not after the grace",
                vec![(1, f()), (2, f()), (20, fail("g"))],
                Failed(failure("g")),
            ),
            ("too few failures after the grace", vec![(20, f()), (22, f())], Continue),
            (
                "a pass between breaks their row",
                vec![(20, f()), (22, f()), (24, PASS), (26, f())],
                Continue,
            ),
            (
                "once healthy, failures count within the grace",
                vec![(0, PASS), (1, PASS), (2, PASS), (3, f()), (4, f()), (5, fail("g"))],
                Failed(failure("g")),
            ),
            (
                "and go on counting, whatever came between",
                vec![
                    (0, PASS),
                    (1, PASS),
                    (2, PASS),
                    (3, f()),
                    (4, PASS),
                    (5, f()),
                    (6, f()),
                    (7, fail("g")),
                ],
                Failed(failure("g")),
            ),
            (
                "two passes are not healthy yet",
                vec![(0, PASS), (1, PASS), (3, f()), (4, f()), (5, f())],
                Continue,
            ),
            ("the deadline, failing", vec![(58, f()), (60, fail("g"))], Failed(failure("g"))),
            (
                "the deadline, failing for the first time",
                vec![(58, PASS), (60, fail("g"))],
                Failed(failure("g")),
            ),
            (
                "the deadline, passing",
                vec![(55, PASS), (60, PASS)],
                Failed(failure("not healthy long enough within 60 s")),
            ),
            (
                "the deadline, passing after a failure",
                vec![(54, f()), (55, PASS), (61, PASS)],
                Failed(failure("not healthy long enough within 60 s; before: f")),
            ),
            ("complete at the deadline", vec![(50, PASS), (55, PASS), (60, PASS)], Healthy),
            ("time that steps back adds nothing", vec![(9, PASS), (2, PASS), (1, PASS)], Continue),
        ];
        for (rule, feeds, expected) in cases {
            let mut window = Window::new(limits);
            let mut progress = Continue;
            for (index, (second, verdict)) in feeds.iter().enumerate() {
                assert_eq!(progress, Continue, "{rule}: over before feed {index}");
                progress = window.feed(Duration::from_secs(*second), verdict.clone());
            }
            assert_eq!(progress, expected, "{rule}");
        }
    }

    #[test]
    fn no_passes_means_one() {
        let mut window = Window::new(Limits {
            passes: 0,
            healthy_for: Duration::ZERO,
            grace: Duration::ZERO,
            deadline: Duration::from_secs(1),
        });
        assert_eq!(window.clone().feed(Duration::ZERO, PASS), Progress::Healthy);
        let failed = Progress::Failed(failure("f"));
        assert_eq!(window.feed(Duration::ZERO, fail("f")), failed);
    }
}
