//! The coordinator's store: a full disk, a second coordinator, a backup, and a file that is none.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use towline_tests::cluster::{Cluster, Coordinator, QUICK, await_some};
use towline_tests::host::Host;
use towline_tests::mount::Mount;
use towline_tests::wire::{Reply, request, send};

/// Fills what is left of a disk.
fn fill(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).expect("the directory is ours");
    for size in [64 * 1024, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

fn set(coordinator: &Coordinator, group: &str, number: usize) -> Reply {
    let body = json!({"mirror": false, "canary": number}).to_string();
    let key = format!("idempotency-key: {group}-{number}");
    let bytes = request("PUT", &format!("/v1/groups/{group}"), &[key], body.as_bytes());
    send(coordinator.port(), None, &bytes)
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_it_goes_on_once_there_is_room() {
    let mut coordinator = Coordinator::new("");
    let Some(_mount) = Mount::small(&coordinator.data(), 8) else { return };
    coordinator.run();
    let mut cluster = Cluster::around(coordinator, QUICK, "");
    let first = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &first]);
    cluster.join();
    cluster.join();
    cluster.coordinator.await_state("converged");
    cluster.await_converged(2);

    // The canary bakes: it is probed every few seconds.
    cluster.set_policy(&QUICK.replace("canary = 1, batch", "canary = 600, batch"));
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster
        .coordinator
        .await_rollout("the canary to bake", |rollout| rollout["batches"][0]["stage"] == "bakes");
    let is_canary = |host: &&mut Host| host.current().as_ref() == Some(&second);
    let canary = cluster.hosts.iter_mut().find(is_canary).expect("one has swapped");

    let filler = fill(&cluster.coordinator.data());
    // What the store has set aside is used up first.
    let mut number = 0;
    let refused = await_some("the store to be full", || {
        number += 1;
        let reply = set(&cluster.coordinator, "other", number);
        Some(reply).filter(|reply| !matches!(reply.status, 204 | 429))
    });
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"), "{refused:?}");
    assert!(refused.head.contains("retry-after"), "{refused:?}");
    let said = cluster.coordinator.say(&["rollout", "promote", "web"]);
    assert_eq!(said.code, 75, "{}", said.err);
    assert!(said.err.contains("the disk is full") && said.err.contains("free some space"));
    // Who only asks is answered.
    let poll = json!({"version": 1, "group": "web", "instance": "i-01", "seq": 1}).to_string();
    let poll = request("POST", "/v1/agent/poll", &[], poll.as_bytes());
    assert_eq!(send(cluster.coordinator.port(), None, &poll).status, 200);
    // A report that cannot be stored is not acknowledged, and is not believed: it comes again.
    let held = await_some("the app's own address", || {
        canary.kill_app();
        TcpListener::bind((Ipv4Addr::LOCALHOST, canary.port)).ok()
    });
    canary.await_some("a report that is refused", |host| {
        let log = host.log();
        log.lines().any(|line| line.contains("it is kept") && line.contains("503")).then_some(())
    });
    let rollout = cluster.coordinator.rollout();
    assert_eq!(rollout["state"], "running");
    assert_eq!(rollout["batches"][0]["stage"], "bakes", "nothing has moved: {rollout:#}");

    fs::remove_file(filler).expect("it is ours");
    cluster
        .coordinator
        .await_rollout("the canary to fail", |rollout| rollout["kind"] == "rollback");
    drop(held);
    cluster.coordinator.await_rollout("the way back to end", |rollout| {
        rollout["kind"] == "rollback" && rollout["state"] == "converged"
    });
    cluster.await_all(&first);
    cluster.await_converged(2);
}

/// Runs a command of the coordinator's to its end.
fn run(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        command.stdin(Stdio::null()).output().expect("it was built");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_second_coordinator_is_refused_and_a_restored_one_is_heard_once_its_epoch_is_raised() {
    let (mut cluster, first) = Cluster::serving(2, QUICK);
    let data = cluster.coordinator.data();
    // A second one, on the same store.
    let mut second = cluster.coordinator.command();
    second.args(["--listen", "127.0.0.1:0"]);
    let (code, said) = run(second);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another coordinator has it open") && said.contains("hint: "), "{said}");
    let raise = |cluster: &Cluster| run(cluster.coordinator.tool("raise-epoch", &[]));
    let (code, said) = raise(&cluster);
    assert_eq!(code, Some(1), "it is in use: {said}");

    // A copy is taken while it runs; nothing is written over.
    let copy = cluster.coordinator.root().join("copy.db");
    let copy_name = copy.to_str().expect("it is text");
    let (code, said) = run(cluster.coordinator.tool("backup", &[copy_name]));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(cluster.coordinator.tool("backup", &[copy_name]));
    assert_eq!(code, Some(1), "{said}");
    let second = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &second]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&second);

    // The copy takes the store's place: it knows nothing of what its agents have seen.
    cluster.coordinator.kill();
    for end in ["", "-wal", "-shm"] {
        drop(fs::remove_file(data.join(format!("coordinator.db{end}"))));
    }
    fs::copy(&copy, data.join("coordinator.db")).expect("it is ours");
    cluster.coordinator.run();
    assert_eq!(cluster.coordinator.rollout()["generation"], 1);
    for host in &mut cluster.hosts {
        host.await_some("it to stand still", |host| {
            host.status()["status"]["objection"].as_str().map(drop)
        });
        assert_eq!(host.current().as_ref(), Some(&second));
    }
    let why = cluster.coordinator.must(&["why", "i-01"]);
    assert!(why.contains("raise-epoch"), "{why}");

    cluster.coordinator.terminate();
    let (code, said) = raise(&cluster);
    assert_eq!(code, Some(0), "{said}");
    cluster.coordinator.run();
    let third = cluster.commit(&json!({}));
    cluster.coordinator.must(&["release", "web", &third]);
    cluster.coordinator.await_state("converged");
    cluster.await_all(&third);
    assert_ne!(first, third);
}

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let coordinator = Coordinator::new("");
    let path = coordinator.data().join("coordinator.db");
    let junk: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let cases = [
        ("a random file", junk.clone()),
        ("a text", b"[coordinator]\n".to_vec()),
        ("the beginning of a database, and junk", [&b"SQLite format 3\0"[..], &junk].concat()),
    ];
    for (rule, bytes) in cases {
        fs::write(&path, &bytes).expect("the directory is ours");
        let (code, said) = run(coordinator.command());
        assert_eq!(code, Some(1), "{rule}: {said}");
        assert!(said.contains("error: could not"), "{rule}: {said}");
        assert!(said.contains("hint: ") && said.contains("coordinator.db"), "{rule}: {said}");
        assert!(fs::read(&path).expect("it is there") == bytes, "{rule}: it is left as it was");
    }
}
