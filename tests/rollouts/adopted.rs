//! The day on which Towline comes to a fleet that already serves.

use serde_json::{Value, json};
use towline_tests::app::{self, Kind};
use towline_tests::cluster::{Cluster, QUICK, await_some};
use towline_tests::host::Host;

/// Three instances that serve what was there before, and are known to the coordinator.
fn adopting(policy: &str) -> Cluster {
    let mut cluster = Cluster::new(policy);
    for _ in 0..3 {
        let place = cluster.lay_out();
        let host = &mut cluster.hosts[place];
        let files = app::files(Kind::Plain, host.port);
        host.adopt(&files, "");
        host.run();
    }
    for host in &mut cluster.hosts {
        host.await_adopted();
    }
    await_some("all to be known", || {
        (cluster.coordinator.counts()["instances"] == 3).then_some(())
    });
    cluster
}

fn masters(cluster: &Cluster) -> Vec<Vec<u32>> {
    cluster.hosts.iter().map(|host| host.processes("master.js")).collect()
}

#[test]
fn the_first_release_goes_through_canary_and_batches() {
    let mut cluster = adopting(QUICK);
    let old = masters(&cluster);
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    let mut most = 0;
    cluster.coordinator.await_rollout("the canary to bake", |rollout| {
        most = most.max(moved(&cluster.hosts));
        rollout["batches"][0]["stage"] == "bakes"
    });
    assert_eq!(most.max(moved(&cluster.hosts)), 1, "nobody but the canary");
    let rollout = cluster.coordinator.await_state("converged");
    let names: Vec<&Value> =
        rollout["batches"].as_array().unwrap().iter().map(|batch| &batch["name"]).collect();
    assert!(names.len() > 2, "{names:?}");
    cluster.await_all(&first);
    cluster.await_converged(3);
    let new = masters(&cluster);
    for (old, new) in old.iter().zip(&new) {
        assert!(new.len() == 1 && old != new, "the old app has gone: {old:?} {new:?}");
    }
}

/// How many have left what was there before.
fn moved(hosts: &[Host]) -> usize {
    hosts.iter().filter(|host| host.current().is_some()).count()
}

#[test]
fn a_first_release_that_fails_leaves_everybody_on_what_was_there() {
    let mut cluster = adopting(QUICK);
    let old = masters(&cluster);
    let bad = cluster.commit(&json!({"worker": "crash"}));
    cluster.coordinator.must(&["release", "web", &bad]);
    cluster.coordinator.await_rollout("the way back to end", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    for host in &mut cluster.hosts {
        host.await_adopted();
    }
    let new = masters(&cluster);
    let untouched = old.iter().zip(&new).filter(|(old, new)| old == new).count();
    assert_eq!(untouched, 2, "nobody but the canary was touched: {old:?} {new:?}");
    await_some("the permit to be closed", || {
        (cluster.coordinator.rollout()["budget"]["permits"] == 0).then_some(())
    });
}

#[test]
fn an_abort_brings_the_canary_back_to_what_was_there() {
    let mut cluster = adopting(&QUICK.replace("canary = 1, batch = 1", "canary = 600, batch = 1"));
    let old = masters(&cluster);
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    cluster
        .coordinator
        .await_rollout("the canary to bake", |rollout| rollout["batches"][0]["stage"] == "bakes");
    cluster.coordinator.must(&["rollout", "abort", "web", "--reason", "prices are wrong"]);
    cluster.coordinator.await_rollout("the way back to end", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    for host in &mut cluster.hosts {
        host.await_adopted();
    }
    let new = masters(&cluster);
    let untouched = old.iter().zip(&new).filter(|(old, new)| old == new).count();
    assert_eq!(untouched, 2, "nobody but the canary was touched: {old:?} {new:?}");
}
