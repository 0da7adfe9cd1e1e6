//! Coordinators that are away, agents that are killed, hosts that boot anew: in the middle of it.

use serde_json::{Value, json};
use towline_tests::app;
use towline_tests::cluster::{Cluster, Coordinator, QUICK, await_some};
use towline_tests::host::{Host, pause};
use towline_tests::wire::{request, send};

/// Waits until somebody holds a permit; returns who.
fn await_permit(cluster: &Cluster) -> String {
    await_some("a permit", || {
        let said = cluster.coordinator.say(&["permit", "list", "web", "--json"]).json();
        said["permits"][0]["instance"].as_str().map(str::to_owned)
    })
}

fn host<'a>(cluster: &'a mut Cluster, instance: &str) -> &'a mut Host {
    let number: usize = instance
        .strip_prefix("i-")
        .and_then(|number| number.parse().ok())
        .expect("instances are numbered");
    &mut cluster.hosts[number - 1]
}

#[test]
fn a_coordinator_that_is_stopped_or_killed_in_the_middle_of_a_batch_goes_on_from_there() {
    let (mut cluster, _) = Cluster::serving(3, QUICK);
    let second = cluster.commit(&json!({ "window_s": 3 }));
    cluster.coordinator.must(&["release", "web", &second]);
    // Stopped while the canary has leave: that goes on by itself, and serves.
    let canary = await_permit(&cluster);
    pause(cluster.coordinator.pid(), true);
    host(&mut cluster, &canary).await_serving(&second);
    let others = cluster.hosts.iter().filter(|host| host.current().as_ref() == Some(&second));
    assert_eq!(others.count(), 1, "nobody else has leave");
    pause(cluster.coordinator.pid(), false);
    // Killed while the next batch has: leave that was given is stored.
    cluster.coordinator.await_rollout("the canary's gate to pass", |rollout| {
        rollout["batches"][0]["stage"] == "passed"
    });
    let next = await_permit(&cluster);
    cluster.coordinator.kill();
    host(&mut cluster, &next).await_serving(&second);
    cluster.coordinator.run();
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
    cluster.await_converged(3);
    assert_eq!(cluster.coordinator.ask(&["permit", "list", "web"])["permits"], json!([]));
}

#[test]
fn an_agent_asks_the_second_address_where_the_first_is_dead() {
    let mut cluster = Cluster::new(QUICK);
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    let nobody = format!("http://127.0.0.1:{}", app::free_port());
    let url = cluster.origin.url(&cluster.repo);
    let mut host = Host::member("i-01", &url, &[nobody, cluster.coordinator.url()], "");
    host.run();
    cluster.coordinator.await_state("converged");
    let status = host.await_serving(&first);
    assert_eq!(status["objection"], Value::Null, "an address that is dead is no objection");
    // It says goodbye there, too.
    let said = host.command("goodbye").output().expect("the agent was built");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(cluster.coordinator.counts()["instances"], 0);
}

#[test]
fn a_permit_outlives_its_agent_and_is_used_by_the_next_or_closed_by_hand() {
    let (mut cluster, first) = Cluster::serving(2, &QUICK.replace("able = 2", "able = 1"));
    // Killed when it has asked, and before it could hear of the answer.
    let ask = |cluster: &Cluster, instance: &str| {
        let order = cluster.coordinator.rollout();
        // Later than whatever its last agent said, and earlier than the next one will.
        let number = cluster.hosts.iter().find_map(|host| {
            let status = host.status()["status"].take();
            (status["instance"] == instance).then(|| status["written_s"].as_u64())?
        });
        let question = json!({"version": 1, "group": "web", "instance": instance,
            "seq": number.expect("it has run") << 32, "epoch": order["epoch"],
            "generation": order["generation"]});
        let bytes = request("POST", "/v1/agent/permit", &[], question.to_string().as_bytes());
        send(cluster.coordinator.port(), None, &bytes).json()
    };
    for host in &mut cluster.hosts {
        host.kill();
    }
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    let canary = await_some("the canary to be chosen", || {
        let rollout = cluster.coordinator.rollout();
        let members = rollout["members"].as_array()?.iter();
        let mut canaries = members.filter(|member| member["batch_index"] == 0);
        canaries.find_map(|member| member["instance"].as_str().map(str::to_owned))
    });
    let leave = ask(&cluster, &canary);
    assert!(leave["permit"].is_u64(), "{leave}");
    let permits = cluster.coordinator.must(&["permit", "list", "web"]);
    assert!(permits.contains(&canary), "{permits}");
    let why = cluster.coordinator.must(&["why", &canary]);
    assert!(why.contains("it holds permit"), "{why}");
    let why = cluster.coordinator.must(&["why", "web"]);
    assert!(why.contains("1 of 1 that may be unavailable"), "{why}");
    // Without a word from its holder it is closed by an operator alone, and for a reason.
    let said = cluster.coordinator.say(&["permit", "close", &canary]);
    assert_eq!(said.code, 2, "{}", said.err);
    cluster.coordinator.must(&["permit", "close", &canary, "--reason", "seen at rest"]);
    assert_eq!(cluster.coordinator.ask(&["permit", "list", "web"])["permits"], json!([]));
    assert!(ask(&cluster, &canary)["permit"].is_u64(), "it is given leave again");
    // The next agent asks again, and gets what is stored.
    for host in &mut cluster.hosts {
        assert_eq!(host.current().as_ref(), Some(&first));
        host.run();
    }
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);
    assert_eq!(cluster.coordinator.ask(&["permit", "list", "web"])["permits"], json!([]));
    let story = cluster.coordinator.rollout()["decisions"].to_string();
    assert!(story.contains("closed by operator: seen at rest"), "{story}");
}

#[test]
fn an_instance_that_is_killed_or_boots_anew_in_its_swap_ends_what_it_began() {
    let (mut cluster, _) = Cluster::serving(2, QUICK);
    let mut swap = |with_app: bool| {
        let next = cluster.commit(&json!({ "window_s": 4 }));
        cluster.coordinator.must(&["release", "web", &next]);
        let canary = await_permit(&cluster);
        let own = host(&mut cluster, &canary);
        own.await_status("it to have swapped", |status| status["serving"] == next.as_str());
        own.kill();
        if with_app {
            own.kill_app();
        }
        let permits = cluster.coordinator.ask(&["permit", "list", "web"])["permits"].clone();
        assert_eq!(permits[0]["instance"], canary.as_str(), "its permit is open: {permits}");
        let rollout = cluster.coordinator.rollout();
        assert_eq!(rollout["state"], "running", "{rollout:#}");
        host(&mut cluster, &canary).run();
        cluster.coordinator.await_state("converged");
        cluster.await_all(&next);
        cluster.await_converged(2);
        assert_eq!(cluster.coordinator.rollout()["failures"].to_string().matches("i-").count(), 0);
    };
    swap(false);
    swap(true);
}

#[test]
fn a_hotfix_in_a_group_of_two_with_one_silent_goes_on_without_it() {
    // The lease is twice this, and 30 s.
    let mut coordinator = Coordinator::new("wait_s = 1\n");
    coordinator.run();
    let mut cluster = Cluster::around(coordinator, &QUICK.replace("able = 2", "able = 1"), "");
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    cluster.join();
    cluster.coordinator.await_state("converged");
    cluster.join();
    cluster.await_converged(2);
    let silent = cluster.hosts[1].agent_pid();
    pause(silent, true);
    await_some("it to be silent", || (cluster.coordinator.counts()["silent"] == 1).then_some(()));
    // Before anything is begun it is said that nothing could be.
    let hotfix = cluster.commit(&json!({}));
    let plan = cluster.coordinator.must(&["plan", "web", &hotfix]);
    assert!(plan.contains("1 silent (i-02, counts as unavailable)"), "{plan}");
    assert!(plan.contains("1 may be unavailable at a time, 1 now"), "{plan}");
    let without = cluster.coordinator.must(&["plan", "web", &hotfix, "--without", "i-02"]);
    assert!(without.contains("1 may be unavailable at a time, 0 now"), "{without}");
    cluster.coordinator.must(&["release", "web", &hotfix]);
    let why = await_some("the group to wait", || {
        let why = cluster.coordinator.must(&["why", "web"]);
        why.contains("i-02 (silent for").then_some(why)
    });
    assert!(why.contains("no permit can be given: 1 of 1"), "{why}");
    cluster.hosts[0].await_some("it to have asked, and been told no", |host| {
        host.log().contains("no leave to swap for now").then_some(())
    });
    assert_eq!(cluster.hosts[0].current().as_ref(), Some(&first));
    cluster.coordinator.must(&["rollout", "abort", "web"]);
    cluster.coordinator.await_rollout("the way back to end", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    let hotfix = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &hotfix, "--without", "i-02"]);
    cluster.coordinator.await_state("converged");
    cluster.hosts[0].await_serving(&hotfix);
    assert_eq!(cluster.hosts[1].current().as_ref(), Some(&first));
    pause(silent, false);
    cluster.await_all(&hotfix);
    cluster.await_converged(2);
}
