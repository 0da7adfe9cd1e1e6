//! The coordinator's own clock: how long it has run.
//!
//! It stands still while the process does not run, whether it was killed or only stopped for a while, so
//! that nobody's lease ends and no deadline passes in a time in which nobody could be heard. After
//! such a gap, after a start, and after a time in which nothing could be stored, there is a grace of one
//! lease in which deadlines stand still.
//!
//! PURE.

use std::collections::BTreeMap;
use std::time::Duration;

use towline_protocol::ids::Group;
use towline_protocol::rollout::{Clock, Rollout, State};

/// The longest time between two looks at the clock that is still running: the driver looks every second.
const STEP_MAX: Duration = Duration::from_secs(5);

/// How long the coordinator has run, and its groups' rollouts with it.
#[derive(Debug, Clone)]
pub struct Uptime {
    /// The last reading of the monotonic clock.
    read: Duration,
    up: Duration,
    lease: Duration,
    grace_until: Duration,
    clocks: BTreeMap<Group, Clock>,
}

impl Uptime {
    /// A clock that starts now, with a grace of one lease.
    #[must_use]
    pub fn start(read: Duration, lease: Duration) -> Self {
        Self { read, up: Duration::ZERO, lease, grace_until: lease, clocks: BTreeMap::new() }
    }

    /// Returns how long it has run.
    #[must_use]
    pub fn up(&self) -> Duration {
        self.up
    }

    /// Has more time passed since the last reading than one that runs lets pass?
    #[must_use]
    pub fn is_gap(&self, read: Duration) -> bool {
        read.saturating_sub(self.read) > STEP_MAX
    }

    /// Nobody can be heard out now: deadlines stand still for a lease from here.
    pub fn be_deaf(&mut self) {
        self.grace_until = self.up + self.lease;
    }

    /// Returns how much time counts, of what has passed since the last reading: for bake times, and for
    /// deadlines.
    pub fn read(&mut self, read: Duration) -> (Duration, Duration) {
        let is_gap = self.is_gap(read);
        let passed = read.saturating_sub(self.read);
        self.read = self.read.max(read);
        let counted = passed.min(STEP_MAX);
        if is_gap {
            // Nobody could be heard for a while: everyone gets a lease to come back.
            self.grace_until = self.up + counted + self.lease;
        }
        let before = self.up.max(self.grace_until);
        self.up += counted;
        (counted, self.up.saturating_sub(before))
    }

    /// Lets a rollout's clocks run on by what counts; those of one that is not running stand still.
    pub fn tick(&mut self, group: &Group, rollout: &Rollout, counted: (Duration, Duration)) {
        let clock = self.clock_of(group, rollout, None);
        if rollout.state != State::Running {
            return;
        }
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let clock = Clock {
            bake_ms: clock.bake_ms.saturating_add(milliseconds(counted.0)),
            deadline_ms: clock.deadline_ms.saturating_add(milliseconds(counted.1)),
            ..clock
        };
        self.clocks.insert(group.clone(), clock);
    }

    /// Returns a rollout's clocks; `stored`: where they stood when they were last stored.
    pub fn clock_of(&mut self, group: &Group, rollout: &Rollout, stored: Option<&Clock>) -> Clock {
        let generation = rollout.order().generation;
        let own = self.clocks.get(group).copied().filter(|own| own.generation == generation);
        let stored = stored.copied().filter(|stored| stored.generation == generation);
        let none = Clock { generation, ..Clock::default() };
        let clock = match (own, stored) {
            // Whoever else drives it may have counted more.
            (Some(own), Some(stored)) => Clock {
                generation,
                bake_ms: own.bake_ms.max(stored.bake_ms),
                deadline_ms: own.deadline_ms.max(stored.deadline_ms),
            },
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => none,
        };
        self.clocks.insert(group.clone(), clock);
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(130);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rollout() -> Rollout {
        let golden = include_str!("../../../protocol/golden/rollout-1.json");
        serde_json::from_str(golden).unwrap()
    }

    #[test]
    fn deadlines_stand_still_for_a_lease_after_a_start() {
        let mut uptime = Uptime::start(seconds(1000), LEASE);
        assert_eq!(uptime.read(seconds(1001)), (seconds(1), Duration::ZERO));
        for second in 1002..=1129 {
            assert_eq!(uptime.read(seconds(second)), (seconds(1), Duration::ZERO), "{second}");
        }
        assert_eq!(uptime.read(seconds(1132)), (seconds(3), seconds(2)), "half of it is over");
        assert_eq!(uptime.read(seconds(1133)), (seconds(1), seconds(1)));
    }

    #[test]
    fn a_process_that_was_stopped_counts_nothing_and_gives_everyone_a_lease() {
        let mut uptime = Uptime::start(seconds(0), Duration::ZERO);
        uptime.lease = LEASE;
        assert_eq!(uptime.read(seconds(1)), (seconds(1), seconds(1)));
        let (counted, deadlines) = uptime.read(seconds(1201));
        assert!(counted <= STEP_MAX && deadlines <= STEP_MAX, "{counted:?} {deadlines:?}");
        assert_eq!(uptime.read(seconds(1202)), (seconds(1), Duration::ZERO));
        assert!(uptime.up() < seconds(10));
        assert_eq!(uptime.read(seconds(1100)), (Duration::ZERO, Duration::ZERO), "never back");
    }

    #[test]
    fn a_rollouts_clocks_run_only_while_it_does_and_go_on_where_they_were_stored() {
        let group: Group = "web".parse().unwrap();
        let mut uptime = Uptime::start(Duration::ZERO, LEASE);
        let mut rollout = rollout();
        let stored = Clock { generation: 118, bake_ms: 5_000, deadline_ms: 4_000 };
        assert_eq!(uptime.clock_of(&group, &rollout, Some(&stored)), stored);
        uptime.tick(&group, &rollout, (seconds(2), seconds(1)));
        let later = Clock { generation: 118, bake_ms: 7_000, deadline_ms: 5_000 };
        assert_eq!(uptime.clock_of(&group, &rollout, Some(&stored)), later);
        rollout.state = State::Paused;
        uptime.tick(&group, &rollout, (seconds(2), seconds(2)));
        assert_eq!(uptime.clock_of(&group, &rollout, Some(&stored)), later, "paused");
        rollout.target.order.generation = 119;
        let new = uptime.clock_of(&group, &rollout, Some(&stored));
        assert_eq!((new.bake_ms, new.deadline_ms), (0, 0), "another rollout's clocks begin anew");
    }
}
