//! The coordinator is killed at each of its named places, and started again: a rollout goes on.

use serde_json::json;
use towline_coordinator::failpoint;
use towline_tests::cluster::{Cluster, QUICK};

/// Kills the coordinator at each of these places while a release goes on, starts it again, and sees
/// everything through.
fn survive(places: &[&str]) {
    let (mut cluster, _) = Cluster::serving(2, QUICK);
    for place in places {
        fail_at(&mut cluster, place);
        let good = cluster.commit(&json!({}));
        let said = cluster.coordinator.say(&["release", "web", &good]);
        is_over(&mut cluster, place);
        // Whatever was not acknowledged may be asked for again.
        let expected = if said.code == 0 {
            good
        } else {
            let again = cluster.commit(&json!({}));
            let said = cluster.coordinator.say(&["release", "web", &again]);
            // It was begun all the same: then it goes on.
            if said.code == 0 { again } else { good }
        };
        cluster.await_all(&expected);
        cluster.await_converged(2);
        cluster.coordinator.await_state("converged");
        let rollout = cluster.coordinator.rollout();
        assert_eq!(rollout["revision"], expected.as_str(), "{place}: {rollout:#}");
        assert_eq!(rollout["budget"]["permits"], 0, "{place}: {rollout:#}");
    }
}

/// Starts the coordinator anew, to be killed at this place.
fn fail_at(cluster: &mut Cluster, place: &str) {
    cluster.coordinator.terminate();
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", Some(place));
    cluster.coordinator.run();
}

/// Waits until it was killed, and starts it again.
fn is_over(cluster: &mut Cluster, place: &str) {
    cluster.coordinator.await_end(place);
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", None);
    cluster.coordinator.run();
}

macro_rules! places {
    ($($name:ident: [$($place:literal),*],)*) => {
        $(
            #[test]
            fn $name() {
                survive(&[$($place),*]);
            }
        )*

        /// Whatever is named is tried: here, or by the tests below.
        const TRIED: &[&str] = &[$($($place),*),*];
    };
}

places! {
    killed_around_a_commit: ["before-commit:3", "after-commit:3", "before-answer:2"],
    killed_around_a_report: ["before-report:2", "after-report:4"],
    killed_around_a_permit: ["before-permit:1", "after-permit:1", "after-permit:2"],
    killed_around_a_step: ["before-step:2", "after-step:1", "after-step:5"],
    killed_around_the_end: ["before-converge:1", "after-converge:1"],
    killed_around_a_change: ["before-change:1", "after-change:1"],
}

#[test]
fn killed_before_and_after_it_goes_back() {
    let (mut cluster, good) = Cluster::serving(2, QUICK);
    for place in ["before-abort:1", "after-abort:1"] {
        fail_at(&mut cluster, place);
        let bad = cluster.commit(&json!({"worker": "crash"}));
        cluster.coordinator.must(&["release", "web", &bad]);
        is_over(&mut cluster, place);
        cluster.await_all(&good);
        cluster.await_converged(2);
        cluster.coordinator.await_rollout("the way back to converge", |rollout| {
            rollout["kind"] == "rollback" && rollout["state"] == "converged"
        });
    }
}

#[test]
fn killed_before_a_goodbye_is_taken_up() {
    let (mut cluster, good) = Cluster::serving(2, QUICK);
    fail_at(&mut cluster, "before-goodbye:1");
    let said = cluster.hosts[1].command("goodbye").output().expect("the agent was built");
    assert!(!said.status.success(), "nobody has taken it up");
    is_over(&mut cluster, "before-goodbye:1");
    let said = cluster.hosts[1].command("goodbye").output().expect("the agent was built");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    cluster.hosts.truncate(1);
    cluster.await_all(&good);
    cluster.await_converged(1);
}

#[test]
fn every_named_place_is_tried() {
    let apart = ["before-abort", "after-abort", "before-goodbye"];
    for name in failpoint::NAMES {
        let is_tried = TRIED.iter().any(|place| place.starts_with(&format!("{name}:")));
        assert!(is_tried || apart.contains(name), "{name}");
    }
    assert!(failpoint::NAMES.len() >= 15);
}
