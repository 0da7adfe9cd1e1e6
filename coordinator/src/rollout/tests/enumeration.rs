//! Every policy on small fleets, by enumeration: whatever each instance does, no permit goes beyond the budget,
//! no batch is entered before its gate, no generation goes down (all checked by the world), and there is always
//! an end or a named reason.
//!
//! `TOWLINE_ENUMERATE=all` runs the full product; otherwise larger groups are sampled evenly.

use std::collections::BTreeSet;

use towline_protocol::policy::{FailuresMax, OnFailure, Policy, Share};
use towline_protocol::rollout::{Kind, State};

use super::world::{Agent, End, Fate, World, policy};
use crate::fleet;

const FATES: [Fate; 5] = [Fate::Takes, Fate::Fails, Fate::Unprepared, Fate::Silent, Fate::Leaves];

pub(super) const NAMES: [&str; 5] = ["i-0a", "i-0b", "i-0c", "i-0d", "i-0e"];

/// Every way in which a group of `size` may be divided, once: canary and percents that reach the same numbers
/// are the same policy.
pub(super) fn divisions(size: usize) -> Vec<Policy> {
    let mut seen = BTreeSet::new();
    let mut policies = Vec::new();
    for canary in 1..=u32::try_from(size).unwrap() {
        for mask in 0_u32..16 {
            let percents: Vec<u32> =
                (0..4).filter(|bit| mask & (1 << bit) != 0).map(|bit| (bit + 1) * 20).collect();
            let policy = Policy { canary, ..policy(&percents) };
            let mut reached = vec![canary as usize];
            reached.extend(policy.batches.iter().map(|share| share.reach(size)));
            let mut most = 0;
            reached.retain(|reach| {
                let is_more = *reach > most;
                most = most.max(*reach);
                is_more
            });
            if seen.insert(reached) {
                policies.push(policy);
            }
        }
    }
    policies
}

/// A policy and what each instance does.
#[derive(Debug)]
struct Case {
    policy: Policy,
    fates: Vec<Fate>,
}

fn cases(size: usize) -> impl Iterator<Item = Case> {
    let most = u32::try_from(size).unwrap();
    let choices = divisions(size).into_iter().flat_map(move |division| {
        [OnFailure::Rollback, OnFailure::Halt].into_iter().flat_map(move |on_failure| {
            let division = division.clone();
            (1..=most).flat_map(move |unavailable| {
                let division = division.clone();
                [0, 1].into_iter().map(move |tolerated| Policy {
                    on_failure,
                    max_unavailable: Share::Count(unavailable),
                    failures_max: FailuresMax {
                        canary: tolerated,
                        batch: tolerated,
                        rollout: tolerated,
                    },
                    ..division.clone()
                })
            })
        })
    });
    choices.flat_map(move |policy| {
        (0..FATES.len().pow(most)).map(move |number| {
            let digit = |place: u32| number / FATES.len().pow(place) % FATES.len();
            let fates = (0..most).map(|place| FATES[digit(place)]).collect();
            Case { policy: policy.clone(), fates }
        })
    })
}

/// Runs a release to its end, and says what is wrong with that. `is_first`: the group has no fallback.
fn ends(case: &Case, is_first: bool) {
    let names = &NAMES[..case.fates.len()];
    let begin = if is_first { World::fresh } else { World::new };
    let mut world = begin(case.policy.clone(), names);
    for (name, fate) in names.iter().zip(&case.fates) {
        world.agents.get_mut(&name.parse().unwrap()).unwrap().fate = *fate;
    }
    world.release('b').unwrap();
    let end = world.run();
    let rollout = world.rollout();
    let failures = case.fates.iter().filter(|fate| **fate != Fate::Takes).count();
    match &end {
        End::Rests => {
            assert_eq!(rollout.state, State::Converged, "{case:?}");
            let is_back = rollout.kind == Kind::Rollback;
            assert!(!is_back || case.policy.on_failure == OnFailure::Rollback, "{case:?}");
            assert!(!is_back || failures > 0, "{case:?}");
            let serves = |agent: &Agent| fleet::serves(&agent.report, &rollout.target);
            assert!(world.agents.values().any(serves), "nobody serves it: {case:?}");
        }
        End::Stands(reason) => {
            assert!(!reason.is_empty() && failures > 0, "{case:?}: {reason}");
            let is_open = rollout.state == State::Running;
            assert!(is_open || rollout.state == State::Halted, "{case:?}: {:?}", rollout.state);
            let is_empty = world.state().members().next().is_none();
            let is_alone = !is_open || is_empty || reason.contains("nobody");
            assert!(is_alone, "{case:?}: it runs for ever: {reason}");
        }
    }
    if failures == 0 {
        assert_eq!((rollout.kind, &end), (Kind::Release, &End::Rests), "{case:?}");
    }
}

fn enumerate(size: usize, sampled: usize) {
    let is_whole = std::env::var("TOWLINE_ENUMERATE").is_ok_and(|value| value == "all");
    let step = if is_whole { 1 } else { sampled };
    for (number, case) in cases(size).step_by(step).enumerate() {
        if is_whole {
            ends(&case, true);
            ends(&case, false);
        } else {
            ends(&case, number % 3 == 0);
        }
    }
}

#[test]
fn every_policy_on_a_group_of_one() {
    enumerate(1, 1);
}

#[test]
fn every_policy_on_a_group_of_two() {
    enumerate(2, 1);
}

#[test]
fn every_policy_on_a_group_of_three() {
    enumerate(3, 7);
}

#[test]
fn every_policy_on_a_group_of_four() {
    enumerate(4, 151);
}

#[test]
fn every_policy_on_a_group_of_five() {
    enumerate(5, 2999);
}
