//! Those who ask to join under a name that another has: refused, and raised.
//!
//! Two hosts of one name are a fault of whoever names them, or somebody who tries to take a place. It is
//! told in the log once in a while, counted in the metrics, and `why` names it for an hour.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use towline_protocol::ids::{Group, Instance};
use towline_protocol::time::Timestamp;

/// For how long a claim is told of after it was made last.
const TOLD: Duration = Duration::from_secs(3600);

/// How often the same claim is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(600);

/// How many names are remembered.
const NAMES_MAX: usize = 1_000;

/// What was claimed of late.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: u64,
    names: BTreeMap<(Group, Instance), Claim>,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    last: Timestamp,
    logged: Timestamp,
}

impl Claims {
    /// Notes a claim that was refused. Returns whether it is to be logged.
    pub(crate) fn note(&self, group: &Group, instance: &Instance, now: Timestamp) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        if state.names.len() >= NAMES_MAX {
            state.names.retain(|_, claim| now.since(claim.last) < TOLD);
        }
        let name = (group.clone(), instance.clone());
        let known = state.names.get(&name).copied();
        let is_due = known.is_none_or(|claim| now.since(claim.logged) >= LOGGED_EVERY);
        let logged = known.filter(|_| !is_due).map_or(now, |claim| claim.logged);
        // What cannot be remembered is counted alone: else each of many would be logged.
        let is_kept = known.is_some() || state.names.len() < NAMES_MAX;
        if is_kept {
            state.names.insert(name, Claim { last: now, logged });
        }
        is_due && is_kept
    }

    /// The name is free, and was given to somebody.
    pub(crate) fn settle(&self, group: &Group, instance: &Instance) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.names.remove(&(group.clone(), instance.clone()));
    }

    /// Returns how long ago a name was last claimed, where that was of late.
    pub(crate) fn of(
        &self,
        group: &Group,
        instance: &Instance,
        now: Timestamp,
    ) -> Option<Duration> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = state.names.get(&(group.clone(), instance.clone()))?;
        Some(now.since(claim.last)).filter(|ago| *ago < TOLD)
    }

    /// Returns how many were refused.
    pub(crate) fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_logged_once_in_a_while_and_told_for_an_hour() {
        let claims = Claims::default();
        let (web, one): (Group, Instance) = ("web".parse().unwrap(), "i-1".parse().unwrap());
        let at = |seconds: u64| Timestamp(1_000_000 + seconds * 1_000);
        assert_eq!(claims.of(&web, &one, at(0)), None);
        let logged: Vec<bool> =
            [0, 5, 599, 600, 605].map(|second| claims.note(&web, &one, at(second))).to_vec();
        assert_eq!(logged, [true, false, false, true, false]);
        assert_eq!(claims.of(&web, &one, at(615)), Some(Duration::from_secs(10)));
        assert_eq!(claims.of(&web, &one, at(605 + 3600)), None);
        assert_eq!(claims.count(), 5);
        claims.settle(&web, &one);
        assert_eq!(claims.of(&web, &one, at(615)), None, "it was forgotten, and joined");
        let name = |number: u64| format!("i-{number}").parse::<Instance>().unwrap();
        for number in 0..3_000 {
            claims.note(&web, &name(number), at(0));
        }
        assert_eq!(claims.of(&web, &name(2_999), at(0)), None, "there is an end");
        claims.note(&web, &name(2_999), at(3600));
        assert!(claims.of(&web, &name(2_999), at(3600)).is_some(), "the old ones make room");
    }
}
