//! A coordinator that is told to stop in the middle of its work.

use std::fs;
use std::thread;

use serde_json::json;
use towline_tests::cluster::{Coordinator, await_some};
use towline_tests::wire::{Reply, request, send};

/// How many rollouts go on: enough for their clocks to take a while to be stored, one after another.
const ROLLOUTS: usize = 100;

#[test]
fn it_ends_also_while_it_stores_one_step_after_another() {
    let mut coordinator = Coordinator::start();
    let port = coordinator.port();
    let ask = |method: &str, path: &str, body: &serde_json::Value| -> Reply {
        let key = format!("idempotency-key: {}", path.replace('/', "-"));
        await_some("it to have time for it", || {
            let reply = send(
                port,
                None,
                &request(method, path, std::slice::from_ref(&key), body.to_string().as_bytes()),
            );
            Some(reply).filter(|reply| reply.status != 429)
        })
    };
    for number in 0..ROLLOUTS {
        let group = format!("/v1/groups/g{number}");
        assert_eq!(ask("PUT", &group, &json!({"mirror": false})).status, 204);
        let release = json!({"revision": "a".repeat(40)});
        assert_eq!(ask("POST", &format!("{group}/release"), &release).status, 200);
        // One who is there, and never takes it: the rollout goes on.
        let group = format!("g{number}");
        let poll = json!({"version": 1, "group": group, "instance": "i-1", "seq": 1});
        assert_eq!(ask("POST", "/v1/agent/poll", &poll).status, 200);
    }
    let stored = || {
        let log = coordinator.data().join("coordinator.db-wal");
        let written = fs::metadata(log).expect("it is there").modified();
        written.expect("it is told")
    };
    // Longer than from one look to the next: all steps are taken, and nothing but clocks is stored.
    let (mut last, mut looks) = (stored(), 0);
    await_some("it to be at rest", || {
        let before = std::mem::replace(&mut last, stored());
        looks = if before == last { looks + 1 } else { 0 };
        (looks > 100).then_some(())
    });
    // As soon as the first clock is stored, all others are still to come.
    while stored() == last {
        thread::yield_now();
    }
    assert_eq!(coordinator.terminate(), 0);
    assert!(coordinator.log().contains("\"stopped\""), "{}", coordinator.log());
    assert!(!coordinator.log().contains("not waited for"), "{}", coordinator.log());
}
