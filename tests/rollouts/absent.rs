//! Instances that are away: stopped, gone, or a group of one.

use serde_json::json;
use towline_tests::cluster::{Cluster, Coordinator, QUICK};
use towline_tests::host::pause;

#[test]
fn a_silent_instance_holds_budget_is_set_aside_and_is_taken_up_when_it_comes_back() {
    // The lease is twice this, and 30 s.
    let mut coordinator = Coordinator::new("wait_s = 1\n");
    coordinator.run();
    let mut cluster = Cluster::around(coordinator, QUICK, "");
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    for _ in 0..3 {
        cluster.join();
    }
    cluster.coordinator.await_state("converged");
    cluster.await_converged(3);
    let pid = cluster.hosts[2].agent_pid();
    pause(pid, true);
    cluster.coordinator.await_count("silent", 1);
    let why = cluster.coordinator.must(&["why", "i-03"]);
    assert!(why.contains("silent") && why.contains("forget"), "{why}");
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster.coordinator.await_state("converged");
    assert_eq!(cluster.hosts[2].current().as_ref(), Some(&first));
    pause(pid, false);
    cluster.await_all(&second);
    cluster.await_converged(3);
}

#[test]
fn whoever_says_goodbye_leaves_the_counts_and_starts_nothing_more() {
    let (mut cluster, _) = Cluster::serving(3, QUICK);
    let said = cluster.hosts[2].command("goodbye").output().expect("the agent was built");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(cluster.coordinator.counts()["instances"], 2);
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster.coordinator.await_state("converged");
    assert_ne!(cluster.hosts[2].current().as_ref(), Some(&second));
    cluster.hosts.truncate(2);
    cluster.await_all(&second);
}

#[test]
fn a_newborn_in_the_middle_of_a_rollout_boots_what_is_proven_and_has_its_turn_later() {
    let (mut cluster, first) = Cluster::serving(2, QUICK);
    cluster.set_policy(&QUICK.replace("canary = 1, batch = 1", "canary = 600, batch = 1"));
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster
        .coordinator
        .await_rollout("the canary to bake", |rollout| rollout["batches"][0]["stage"] == "bakes");
    let place = cluster.join();
    cluster.hosts[place].await_serving(&first);
    cluster.coordinator.must(&["rollout", "promote", "web"]);
    cluster.await_all(&second);
    cluster.await_converged(3);
}

#[test]
fn a_group_of_one_is_its_own_canary() {
    let (mut cluster, good) = Cluster::serving(1, QUICK);
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
    let bad = cluster.commit(&json!({"worker": "crash"}));
    let said = cluster.coordinator.say(&["release", "web", &bad, "--watch"]);
    assert_eq!(said.code, 3, "{}", said.err);
    cluster.await_all(&second);
    assert_ne!(good, second);
}
