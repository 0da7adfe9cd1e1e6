//! The coordinator is killed at each of its named places, and started again: a rollout goes on.

use serde_json::json;
use towline_coordinator::failpoint;
use towline_tests::cluster::{Cluster, QUICK};

/// Kills the coordinator at a place while `play` goes on, starts it again, and sees everything through.
fn survive(place: &str, play: impl Fn(&mut Cluster) -> String) {
    let (mut cluster, _) = Cluster::serving(2, QUICK);
    cluster.coordinator.terminate();
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", Some(place));
    cluster.coordinator.run();
    let expected = play(&mut cluster);
    cluster.coordinator.await_end();
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", None);
    cluster.coordinator.run();
    // Whatever was not acknowledged may be asked for again.
    let expected = if expected.is_empty() { play(&mut cluster) } else { expected };
    cluster.await_all(&expected);
    cluster.await_converged(2);
}

fn release(cluster: &mut Cluster) -> String {
    let good = cluster.commit(&json!({}));
    let said = cluster.coordinator.say(&["release", "web", &good]);
    if said.code == 0 { good } else { String::new() }
}

macro_rules! places {
    ($($name:ident: $place:literal,)*) => {
        $(
            #[test]
            fn $name() {
                survive($place, release);
            }
        )*

        /// Whatever is named is tried: here, or by the tests below.
        const TRIED: &[&str] = &[$($place),*];
    };
}

places! {
    killed_before_a_commit: "before-commit:3",
    killed_after_a_commit: "after-commit:3",
    killed_before_a_report: "before-report:2",
    killed_after_a_report: "after-report:4",
    killed_before_a_permit: "before-permit:1",
    killed_after_a_permit: "after-permit:1",
    killed_after_the_second_permit: "after-permit:2",
    killed_before_a_step: "before-step:2",
    killed_after_a_step: "after-step:1",
    killed_after_a_later_step: "after-step:5",
    killed_before_it_converges: "before-converge:1",
    killed_after_it_converged: "after-converge:1",
    killed_before_a_change: "before-change:1",
    killed_after_a_change: "after-change:1",
    killed_before_an_answer: "before-answer:1",
}

#[test]
fn killed_before_and_after_it_goes_back() {
    for place in ["before-abort:1", "after-abort:1"] {
        let (mut cluster, good) = Cluster::serving(2, QUICK);
        cluster.coordinator.terminate();
        cluster.coordinator.set_environment("TOWLINE_FAILPOINT", Some(place));
        cluster.coordinator.run();
        let bad = cluster.commit(&json!({"worker": "crash"}));
        cluster.coordinator.must(&["release", "web", &bad]);
        cluster.coordinator.await_end();
        cluster.coordinator.set_environment("TOWLINE_FAILPOINT", None);
        cluster.coordinator.run();
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
    cluster.coordinator.terminate();
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", Some("before-goodbye:1"));
    cluster.coordinator.run();
    let said = cluster.hosts[1].command("goodbye").output().expect("the agent was built");
    assert!(!said.status.success(), "nobody has taken it up");
    cluster.coordinator.await_end();
    cluster.coordinator.set_environment("TOWLINE_FAILPOINT", None);
    cluster.coordinator.run();
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
