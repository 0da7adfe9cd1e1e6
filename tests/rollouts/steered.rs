//! What operators do to a rollout: pause, resume, abort, promote, roll back, and what is refused.

use serde_json::json;
use towline_tests::cluster::{Cluster, QUICK};

/// A cluster whose next rollouts bake for long enough for an operator to step in.
fn slow(instances: usize) -> (Cluster, String) {
    let (cluster, first) = Cluster::serving(instances, QUICK);
    cluster.set_policy(&QUICK.replace("canary = 1, batch = 1", "canary = 600, batch = 600"));
    (cluster, first)
}

#[test]
fn a_paused_rollout_gives_no_leave_until_it_is_resumed() {
    let (mut cluster, first) = Cluster::serving(3, QUICK);
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster.coordinator.must(&["rollout", "pause", "web"]);
    let paused = cluster.coordinator.rollout();
    assert_eq!(paused["state"], "paused");
    // Whoever had leave before the pause ends what it began; nobody else begins.
    cluster
        .coordinator
        .await_rollout("leave to be used up", |rollout| rollout["budget"]["permits"] == 0);
    let moved = cluster.hosts.iter().filter(|host| host.current().as_ref() == Some(&second));
    assert!(moved.count() <= 1, "the canary at most");
    let last = cluster.hosts.iter().filter(|host| host.current().as_ref() == Some(&first));
    assert!(last.count() >= 2);
    cluster.coordinator.must(&["rollout", "resume", "web"]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
}

#[test]
fn an_aborted_rollout_goes_back_and_a_release_meanwhile_is_refused() {
    let (mut cluster, first) = slow(3);
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster
        .coordinator
        .await_rollout("the canary to bake", |rollout| rollout["batches"][0]["stage"] == "bakes");
    let third = cluster.commit(&json!({}));
    let refused = cluster.coordinator.say(&["release", "web", &third]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("abort"), "it says what to do: {}", refused.err);
    cluster.coordinator.must(&["rollout", "abort", "web", "--reason", "prices are wrong"]);
    cluster.coordinator.await_rollout("the way back to converge", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    cluster.await_all(&first);
    let aborted =
        cluster.coordinator.ask(&["rollout", "show", "web", "--generation", "2"])["rollout"]
            .clone();
    assert!(aborted["reason"].as_str().unwrap().contains("prices are wrong"), "{aborted:#}");
}

#[test]
fn a_canary_that_bakes_can_be_promoted_and_a_converged_release_rolled_back() {
    let (mut cluster, first) = slow(2);
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    for batch in 0..2 {
        cluster.coordinator.await_rollout("the batch to bake", |rollout| {
            rollout["batches"][batch]["stage"] == "bakes"
        });
        cluster.coordinator.must(&["rollout", "promote", "web"]);
    }
    cluster.coordinator.await_state("converged");
    cluster.coordinator.must(&["rollback", "web"]);
    cluster.coordinator.await_rollout("the rollback to converge", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    cluster.await_all(&first);
}

#[test]
fn a_plan_is_what_the_rollout_then_does() {
    let (mut cluster, _) = Cluster::serving(4, QUICK);
    let second = cluster.commit(&json!({}));
    let plan = cluster.coordinator.ask(&["plan", "web", &second])["plan"].clone();
    let planned = plan["batches"].as_array().unwrap().clone();
    cluster.coordinator.must(&["release", "web", &second]);
    let mut opened = vec![json!(null); planned.len()];
    cluster.coordinator.await_rollout("it to converge", |rollout| {
        for (index, _) in planned.iter().enumerate() {
            let members = rollout["members"].as_array().into_iter().flatten();
            let own = members.filter(|member| member["batch_index"] == index);
            let mut names: Vec<String> =
                own.map(|member| member["instance"].as_str().unwrap().to_owned()).collect();
            names.sort();
            if !names.is_empty() && rollout["batches"][index]["stage"] != "passed" {
                opened[index] = json!(names);
            }
        }
        rollout["state"] == "converged"
    });
    for (index, batch) in planned.iter().enumerate() {
        assert_eq!(batch["members"], opened[index], "{}", batch["name"]);
    }
}

#[test]
fn a_release_to_some_stops_there_until_it_is_resumed() {
    let (mut cluster, first) = Cluster::serving(3, QUICK);
    let second = cluster.commit(&json!({}));
    let chosen = ["release", "web", &second, "--only", "i-02", "--watch"];
    let watched = cluster.coordinator.must(&chosen);
    assert!(watched.contains("paused: only i-02 took part"), "it ends well: {watched}");
    cluster.hosts[1].await_serving(&second);
    let stands = cluster.coordinator.await_state("paused");
    assert_eq!(stands["budget"]["permits"], 0, "{stands:#}");
    let why = cluster.coordinator.must(&["why", "web"]);
    assert!(why.contains("towline rollout resume web"), "{why}");
    for place in [0, 2] {
        assert_eq!(cluster.hosts[place].current().as_ref(), Some(&first));
    }
    cluster.coordinator.must(&["rollout", "resume", "web"]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
    cluster.await_converged(3);
}

#[test]
fn what_one_instance_has_rejected_it_tries_again_when_it_is_told_to() {
    let (mut cluster, _) = Cluster::serving(2, QUICK);
    cluster.set_policy(&format!("on_failure = \"halt\"\n{QUICK}"));
    let second = cluster.commit(&json!({}));
    let plan = cluster.coordinator.ask(&["plan", "web", &second])["plan"].clone();
    let canary = plan["batches"][0]["members"][0].as_str().unwrap().to_owned();
    let place: usize = canary.strip_prefix("i-").unwrap().parse().unwrap();
    let sick = cluster.hosts[place - 1].dir().join("shared/run/sick");
    std::fs::write(&sick, "").unwrap();
    let said = cluster.coordinator.towline(&["release", "web", &second, "--watch"]);
    let watching = std::thread::spawn({
        let mut command = said;
        move || command.output().expect("the command was built")
    });
    cluster.hosts[place - 1].await_status("it to reject it", |status| status["rejected"] == true);
    std::fs::remove_file(&sick).unwrap();
    let watched = watching.join().unwrap();
    assert_eq!(watched.status.code(), Some(3), "halted: {watched:?}");
    assert_eq!(cluster.coordinator.rollout()["state"], "halted");
    let why = cluster.coordinator.must(&["why", &canary]);
    assert!(why.contains("was rejected here after its swap"), "{why}");
    assert!(why.contains(&format!("towline retry web --instance {canary}")), "{why}");
    let logs = cluster.coordinator.must(&["logs", &canary]);
    assert!(logs.contains("run/sick is there"), "{logs}");
    assert_eq!(
        cluster.coordinator.ask(&["quarantine", "list", "web"])["quarantines"][0]["quarantine"],
        json!([]),
        "it is not the revision's fault until an operator says so"
    );
    cluster.coordinator.must(&["rollout", "resume", "web"]);
    cluster.coordinator.must(&["retry", "--instance", &canary, "--reason", "its disk was full"]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
    cluster.await_converged(2);
    let story = cluster.coordinator.rollout()["decisions"].to_string();
    assert!(story.contains("ordered to try again by operator: its disk was full"), "{story}");
}
