//! What happens every day: the first release, a good one, a bad one, a restart.

use serde_json::{Value, json};
use towline_tests::cluster::{Cluster, QUICK};

#[test]
fn the_first_release_of_an_empty_group_stays_open_until_an_instance_proves_it() {
    let mut cluster = Cluster::new(QUICK);
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    let rollout = cluster.coordinator.rollout();
    assert_eq!(rollout["state"], "running");
    let why = cluster.coordinator.must(&["why", "web"]);
    assert!(why.contains("empty"), "{why}");
    cluster.join();
    cluster.coordinator.await_state("converged");
    cluster.await_all(&first);
}

#[test]
fn a_good_release_goes_through_its_batches_and_never_over_its_budget() {
    let (mut cluster, first) = Cluster::serving(6, QUICK);
    let second = cluster.commit(&json!({}));
    let said = cluster.coordinator.say(&["release", "web", &second, "--watch"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    cluster.await_all(&second);
    cluster.await_converged(6);
    let rollout = cluster.coordinator.rollout();
    assert_eq!(rollout["state"], "converged");
    let names: Vec<&Value> =
        rollout["batches"].as_array().unwrap().iter().map(|batch| &batch["name"]).collect();
    assert_eq!(names, ["canary", "50 %", "100 %"]);
    let skew = cluster.coordinator.must(&["skew", "web"]);
    assert!(skew.contains(&second[..7]) && !skew.contains(&first[..7]), "{skew}");
    let again = cluster.coordinator.must(&["release", "web", &second, "--watch"]);
    assert!(again.contains("converged already"), "a job may be run again: {again}");
    assert!(cluster.coordinator.ask(&["permit", "list", "web"])["permits"] == json!([]));
}

#[test]
fn a_bad_release_stops_at_its_canary_and_is_rolled_back_and_its_log_can_be_read() {
    let (mut cluster, good) = Cluster::serving(3, QUICK);
    let bad = cluster.commit(&json!({"worker": "crash"}));
    let said = cluster.coordinator.say(&["release", "web", &bad, "--watch"]);
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    cluster.await_all(&good);
    cluster.await_converged(3);
    let aborted =
        cluster.coordinator.ask(&["rollout", "show", "web", "--generation", "2"])["rollout"]
            .clone();
    assert_eq!(aborted["state"], "aborted");
    assert_eq!(aborted["reached"], 1, "one instance alone has served it");
    let failed = aborted["members"].as_array().unwrap().iter();
    let failed: Vec<&Value> = failed.filter(|member| member["standing"] == "failed").collect();
    assert_eq!(failed.len(), 1);
    let logs = cluster.coordinator.must(&["logs", failed[0]["instance"].as_str().unwrap()]);
    assert!(
        logs.contains("this revision crashes when it starts"),
        "what the app said when it crashed: {logs}"
    );
    let again = cluster.coordinator.say(&["release", "web", &bad]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("quarantine"), "{}", again.err);
    cluster.coordinator.must(&["quarantine", "lift", "web", &bad]);
    assert_eq!(
        cluster.coordinator.ask(&["quarantine", "list", "web"])["quarantines"][0]["quarantine"],
        json!([])
    );
}

#[test]
fn a_restart_starts_every_instance_anew_batch_by_batch() {
    let (mut cluster, good) = Cluster::serving(2, QUICK);
    let masters = |cluster: &Cluster| -> Vec<Vec<u32>> {
        cluster.hosts.iter().map(|host| host.processes("master.js")).collect()
    };
    let before = masters(&cluster);
    let said = cluster.coordinator.say(&["restart", "web"]);
    assert_eq!(said.code, 0, "{}", said.err);
    cluster.coordinator.await_rollout("the restart to converge", |rollout| {
        rollout["kind"] == "restart" && rollout["state"] == "converged"
    });
    cluster.await_all(&good);
    let after = masters(&cluster);
    for (old, new) in before.iter().zip(&after) {
        assert!(!new.is_empty() && old.iter().all(|pid| !new.contains(pid)), "{old:?} {new:?}");
    }
    let one = after[0].clone();
    cluster.coordinator.must(&["restart", "web", "--instance", "i-02"]);
    cluster.hosts[1].await_some("another master", |host| {
        let now = host.processes("master.js");
        (!now.is_empty() && now != after[1]).then_some(())
    });
    assert_eq!(cluster.hosts[0].processes("master.js"), one, "the other one is left alone");
}
