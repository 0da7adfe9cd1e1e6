//! How much, how often, and for how long: bodies, requests at a time, requests in a time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::Semaphore;
use towline_protocol::api::Code;
use towline_protocol::ids::Instance;

use super::Api;
use super::caller::{Admit, Caller};
use super::errors::Refused;

/// How long a request's body may take.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest message of an agent, in bytes: a failure's log, and room for all else.
pub(crate) const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// How often one operator may ask.
const OPERATOR: Pace = Pace { per_s: 50.0, burst: 200.0 };

/// How often one agent may: it polls, reports a phase, asks. A storm is a fault of its own.
const AGENT: Pace = Pace { per_s: 10.0, burst: 60.0 };

/// How many requests of operators are worked on at a time: those that steer, those that look, and those
/// that may wait for an origin.
pub(crate) const STEERING_MAX: usize = 64;
const VIEWS_MAX: usize = 64;
const ORIGINS_MAX: usize = 16;

/// How many changes one operator may make: each leaves its key and its answer in the store for a day. Ten
/// thousand at once, and as many a day.
const CHANGES: Pace = Pace { per_s: 10_000.0 / 86_400.0, burst: 10_000.0 };

/// How often all those who join a group may: a whole fleet that starts at once, and the fleet's next moment.
/// Each instance of it has an agent's pace besides.
const JOINS: Pace = Pace { per_s: 200.0, burst: 5_000.0 };

/// How many callers are remembered before those that are at rest are forgotten.
const CALLERS_MAX: usize = 20_000;

/// How often somebody may ask: so often a second, and so many times at once.
#[derive(Debug, Clone, Copy)]
struct Pace {
    per_s: f64,
    burst: f64,
}

/// What is left to a caller: it fills at a pace.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    pace: Pace,
    left: f64,
    filled: Duration,
}

impl Bucket {
    fn full(pace: Pace, now: Duration) -> Self {
        Self { pace, left: pace.burst, filled: now }
    }

    /// What is left of it now.
    fn left(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        (self.left + passed * self.pace.per_s).min(self.pace.burst)
    }

    /// Nothing is lost where a full one is forgotten.
    fn is_full(&self, now: Duration) -> bool {
        self.left(now) >= self.pace.burst
    }

    fn take(&mut self, now: Duration) -> bool {
        self.left = self.left(now);
        self.filled = self.filled.max(now);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }
}

fn changes_of(caller: &Caller) -> String {
    format!("changes of {}", caller.actor())
}

/// How often each caller has asked of late.
#[derive(Debug)]
pub(crate) struct Rates {
    started: Instant,
    buckets: Mutex<BTreeMap<String, Bucket>>,
}

impl Default for Rates {
    #[expect(clippy::disallowed_methods, reason = "a shell: how often somebody asks is measured")]
    fn default() -> Self {
        Self { started: Instant::now(), buckets: Mutex::default() }
    }
}

impl Rates {
    /// Counts a request, or refuses it where there were too many.
    pub(crate) fn take(&self, caller: &Caller, admit: Admit) -> Result<(), Refused> {
        let pace = match admit {
            Admit::Operators => OPERATOR,
            // Without tokens, all agents are one caller.
            Admit::Agents if *caller == Caller::Open => return Ok(()),
            // All who join a group show the same secret.
            Admit::Agents if matches!(caller, Caller::Join { .. }) => JOINS,
            Admit::Agents => AGENT,
        };
        self.draw(caller.actor(), pace, &caller.by())
    }

    /// Counts that an instance joins by its group's secret, or refuses it where that was too often.
    pub(crate) fn take_join(&self, caller: &Caller, instance: &Instance) -> Result<(), Refused> {
        if !matches!(caller, Caller::Join { .. }) {
            return Ok(());
        }
        self.draw(format!("{}/{instance}", caller.actor()), AGENT, instance.as_str())
    }

    fn draw(&self, who: String, pace: Pace, by: &str) -> Result<(), Refused> {
        let now = self.started.elapsed();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets.entry(who).or_insert_with(|| Bucket::full(pace, now));
        if bucket.take(now) {
            return Ok(());
        }
        let message = format!("more than {} requests a second came from {by}", pace.per_s);
        Err(Refused::new(Code::TooMany, message).hint("try again in a moment, and less often"))
    }

    /// Refuses a change where there were too many today.
    pub(crate) fn may_change(&self, caller: &Caller) -> Result<(), Refused> {
        let now = self.started.elapsed();
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get(&changes_of(caller));
        if bucket.is_none_or(|bucket| bucket.left(now) >= 1.0) {
            return Ok(());
        }
        let message = format!("{} has made too many changes today", caller.by());
        Err(Refused::new(Code::TooMany, message).hint("some 10,000 a day are kept: make fewer"))
    }

    /// Counts a change that was made.
    pub(crate) fn changed(&self, caller: &Caller) {
        // Made is made, whatever is left.
        self.draw(changes_of(caller), CHANGES, &caller.by()).ok();
    }
}

/// What a request of operators may have to wait for. Each lane has places of its own, so that an origin that
/// does not answer keeps nobody from pausing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// For the store alone: whatever steers.
    Steering,
    /// For git, a few seconds: what is looked at.
    Views,
    /// For the origin of a repository, minutes: names and commits that are looked up there.
    Origins,
}

/// The places for requests of operators that are worked on, by lane.
#[derive(Debug)]
pub(crate) struct Places {
    steering: Semaphore,
    views: Semaphore,
    origins: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            steering: Semaphore::new(STEERING_MAX),
            views: Semaphore::new(VIEWS_MAX),
            origins: Semaphore::new(ORIGINS_MAX),
        }
    }
}

impl Places {
    fn of(&self, lane: Lane) -> &Semaphore {
        match lane {
            Lane::Steering => &self.steering,
            Lane::Views => &self.views,
            Lane::Origins => &self.origins,
        }
    }
}

/// Works on so many requests of a lane at a time, and on no more.
pub(crate) async fn limited(
    State((api, lane)): State<(Api, Lane)>,
    request: Request,
    next: Next,
) -> Response {
    let Ok(_place) = api.places().of(lane).try_acquire() else {
        let message = match lane {
            Lane::Steering | Lane::Views => "the coordinator works on as many requests as it can",
            Lane::Origins => "as many requests as may already wait for what repositories answer",
        };
        return Refused::new(Code::Unavailable, message)
            .hint("try again in a moment")
            .into_response();
    };
    next.run(request).await
}

/// Reads a body of so many bytes at most, within `within`.
pub(crate) async fn read(body: Body, bytes_max: usize, within: Duration) -> Result<Bytes, Refused> {
    match tokio::time::timeout(within, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(read)) => Ok(read.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the request has more than {bytes_max} bytes");
            Err(Refused::new(Code::TooLarge, message))
        }
        Ok(Err(_)) => Err(Refused::new(Code::Invalid, "the request's body was cut off")),
        Err(_) => {
            let message = format!("the request's body did not end within {} s", within.as_secs());
            Err(Refused::new(Code::Timeout, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_pace() {
        let pace = Pace { per_s: 2.0, burst: 3.0 };
        let at = Duration::from_millis;
        let mut bucket = Bucket::full(pace, at(0));
        let given = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now)).count();
        assert_eq!(given(&mut bucket, at(0)), 3);
        assert!(!bucket.is_full(at(1_499)) && bucket.is_full(at(1_500)));
        assert_eq!(given(&mut bucket, at(400)), 0, "not one yet");
        assert_eq!(given(&mut bucket, at(500)), 1);
        assert_eq!(given(&mut bucket, at(100)), 0, "an earlier reading fills nothing");
        assert_eq!(given(&mut bucket, at(1_000_000)), 3, "never more than the burst");
    }

    #[test]
    fn changes_are_counted_by_the_day_and_nobody_is_forgotten_for_being_one_of_many() {
        let rates = Rates::default();
        let mut made = 0;
        while rates.may_change(&Caller::Open).is_ok() {
            rates.changed(&Caller::Open);
            made += 1;
            assert!(made < 100_000, "there is a limit");
        }
        assert!(made >= 10_000, "{made}");
        for number in 0..=CALLERS_MAX {
            let group = "web".parse().unwrap();
            let agent = Caller::Agent { group, instance: format!("i-{number}").parse().unwrap() };
            rates.take(&agent, Admit::Agents).unwrap();
        }
        assert!(rates.may_change(&Caller::Open).is_err(), "one that is not full is kept");
    }

    #[test]
    fn one_who_asks_too_often_keeps_nobody_else_out() {
        let rates = Rates::default();
        let caller = |id: &str| Caller::Operator {
            name: "ada".to_owned(),
            role: towline_protocol::api::Role::Viewer,
            id: id.to_owned(),
        };
        let mut all = (0..100_000).map(|_| rates.take(&caller("t1"), Admit::Operators));
        let refused = all.find_map(Result::err).expect("there is a limit");
        assert_eq!(refused.0.code, Code::TooMany);
        assert!(rates.take(&caller("t2"), Admit::Operators).is_ok());
    }

    #[test]
    fn a_fleet_joins_at_once_and_one_of_it_that_joins_again_and_again_does_not() {
        let rates = Rates::default();
        let join = Caller::Join { group: "web".parse().unwrap() };
        let take = |instance: &str| {
            rates.take(&join, Admit::Agents)?;
            rates.take_join(&join, &instance.parse().unwrap())
        };
        for number in 0..1_000 {
            assert!(take(&format!("i-{number}")).is_ok(), "{number}");
        }
        let mut again = (0..1_000).map(|_| take("i-0"));
        let refused = again.find_map(Result::err).expect("there is a limit");
        assert!(refused.0.message.contains("came from i-0"), "{}", refused.0.message);
        assert!(take("i-1").is_ok(), "it keeps nobody else out");
        let mut all = (0..100_000).map(|_| rates.take(&join, Admit::Agents));
        assert!(all.any(|taken| taken.is_err()), "nor is there no end to those who join");
    }
}
