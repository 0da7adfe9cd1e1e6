//! The scenes of the demo, in order. Every figure printed was measured in the run that prints it, and what
//! the operator's command says is its own output.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use towline_tests::cluster::{Cluster, Coordinator, await_some};
use towline_tests::load::{self, Load, Plan, Summary};
use towline_tests::stage::Stopwatch;

/// How many instances there are at first.
const INSTANCES: usize = 6;

/// Takes seconds where the defaults take minutes.
const POLICY: &str = "canary = 1\nbatches = [\"50%\", \"100%\"]\nmax_unavailable = 2\nbake_s = { canary \
                      = 4, batch = 3 }\nhealthy_deadline_s = 60\nprogress_deadline_s = 120\n";

/// Plays all scenes.
pub(crate) fn play() {
    let all = Stopwatch::start();
    println!(
        "A coordinator, a git origin and {INSTANCES} instances of a node app with 2 workers each, on \
         loopback.\nEvery figure was measured in this run, and every line after `$` is what the command \
         said.\nSo that it is short, a canary bakes for 4 s (300 by default), a batch for 3 s (120), and \
         the\nhealth window is 1 s (30)."
    );
    let mut cluster = Cluster::around(Coordinator::start(), POLICY, "");
    let target = boot_from_old_images(&mut cluster);
    let next = release(&mut cluster, &target);
    crash_at_the_canary(&mut cluster, &next);
    join_in_the_middle(&mut cluster);
    kill_the_coordinator(&mut cluster);
    for host in &mut cluster.hosts {
        host.terminate();
    }
    println!("\nAll of it took {:.0} s.", all.read().as_secs_f64());
}

/// Each image holds a revision of long ago; the group has moved on.
fn boot_from_old_images(cluster: &mut Cluster) -> String {
    title(1, "Six instances, left on an old revision, boot to their group's");
    let old = cluster.commit_as(&json!({}), "Show prices");
    for _ in 0..INSTANCES {
        let place = cluster.lay_out();
        cluster.hosts[place].bake(&old);
    }
    let target = cluster.commit_as(&json!({}), "Fix VAT rounding");
    say("images", &format!("{INSTANCES} are baked with {}; nothing runs", short(&old)));
    let loads = loads(cluster);
    let watch = Stopwatch::start();
    run(cluster, &["release", "web", &target]);
    // The first one proves it, and the others boot straight to it.
    cluster.hosts[0].run();
    cluster.hosts[0].await_serving(&target);
    cluster.coordinator.await_state("converged");
    say(&at(watch.read()), &format!("the first has proven {}", short(&target)));
    let watch = Stopwatch::start();
    for host in &mut cluster.hosts[1..] {
        host.run();
    }
    cluster.await_all(&target);
    cluster.await_converged(INSTANCES as u64);
    say(&at(watch.read()), "the other five serve it, and are healthy");
    let summary = stop(loads);
    say("", &format!("{} answers came from {}", answers(&summary, &old), short(&old)));
    run(cluster, &["skew", "web"]);
    target
}

fn release(cluster: &mut Cluster, old: &str) -> String {
    title(2, "A code-only release goes through its batches, under load");
    let next = cluster.commit_as(&json!({}), "Cache price lists");
    let loads = loads(cluster);
    let watch = Stopwatch::start();
    let mut watching = watched(cluster, &["release", "web", &next, "--watch"]);
    await_some("both revisions to run", || {
        let skew = cluster.coordinator.say(&["skew", "web", "--json"]).json();
        let rows = skew["skews"][0]["revisions"].as_array().map_or(0, Vec::len);
        (rows > 1).then_some(())
    });
    run(cluster, &["skew", "web"]);
    let end = watching.wait().expect("it is ours");
    assert!(end.success(), "the release converges: {end}");
    cluster.await_all(&next);
    say(&at(watch.read()), "all of it");
    let summary = stop(loads);
    say("", &failures(&summary));
    assert!(answers(&summary, old) > 0 && answers(&summary, &next) > 0, "{summary:?}");
    next
}

fn crash_at_the_canary(cluster: &mut Cluster, good: &str) {
    title(3, "A release whose workers crash stops at its canary, and is rolled back");
    let bad = cluster.commit_as(&json!({"worker": "crash"}), "Drop a currency");
    let loads = loads(cluster);
    let watch = Stopwatch::start();
    let mut watching = watched(cluster, &["release", "web", &bad, "--watch"]);
    let end = watching.wait().expect("it is ours");
    assert_eq!(end.code(), Some(3), "rolled back is an exit code of its own");
    cluster.await_all(good);
    say(&at(watch.read()), &format!("exit code 3; all serve {} again", short(good)));
    let summary = stop(loads);
    say("", &failures(&summary));
    say(
        "",
        "(this app's manager ends an old worker also when the new one has died: until then the one",
    );
    say("", "canary fails. One that waits until the new ones listen would fail none.)");
    run(cluster, &["skew", "web"]);
}

fn join_in_the_middle(cluster: &mut Cluster) {
    title(4, "A new instance joins in the middle of a rollout");
    let old = cluster.hosts[0].current().expect("something is served");
    let next = cluster.commit_as(&json!({}), "Bump undici");
    let place = cluster.lay_out();
    let mut watching = watched(cluster, &["release", "web", &next, "--watch"]);
    cluster
        .coordinator
        .await_rollout("the canary to bake", |rollout| rollout["batches"][0]["stage"] == "bakes");
    let watch = Stopwatch::start();
    cluster.hosts[place].run();
    cluster.hosts[place].await_serving(&old);
    say(
        &at(watch.read()),
        &format!("i-{:02} has booted {}: its turn comes in a later batch", place + 1, short(&old)),
    );
    assert!(watching.wait().expect("it is ours").success(), "it converges");
    cluster.await_all(&next);
    say(&at(watch.read()), &format!("all {} serve {}", cluster.hosts.len(), short(&next)));
}

fn kill_the_coordinator(cluster: &mut Cluster) {
    title(5, "The coordinator is killed in the middle of a rollout, and started again");
    let next = cluster.commit_as(&json!({}), "Sort by price");
    let loads = loads(cluster);
    let watch = Stopwatch::start();
    let mut watching = watched(cluster, &["release", "web", &next, "--watch"]);
    cluster.coordinator.await_rollout("the second batch to open", |rollout| {
        rollout["batches"][1]["stage"] == "open"
    });
    cluster.coordinator.kill();
    say(&at(watch.read()), "killed, with SIGKILL; the instances serve on");
    thread::sleep(Duration::from_secs(3));
    cluster.coordinator.run();
    say(&at(watch.read()), "started again");
    assert!(watching.wait().expect("it is ours").success(), "it goes on and converges");
    cluster.await_all(&next);
    say(&at(watch.read()), "converged");
    let summary = stop(loads);
    say("", &failures(&summary));
    run(cluster, &["skew", "web"]);
}

/// Runs the operator's command, and shows what it says.
fn run(cluster: &Cluster, arguments: &[&str]) -> Value {
    println!("\n   $ towline {}", arguments.join(" "));
    let said = cluster.coordinator.say(arguments);
    for line in said.err.lines().chain(said.out.lines()) {
        println!("   {line}");
    }
    assert_eq!(said.code, 0, "towline {arguments:?}");
    println!();
    said.json()
}

/// Starts the operator's command, which shows what it sees.
fn watched(cluster: &Cluster, arguments: &[&str]) -> Child {
    println!("\n   $ towline {}", arguments.join(" "));
    let mut command = cluster.coordinator.towline(arguments);
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    command.spawn().expect("the command was built")
}

fn loads(cluster: &Cluster) -> Vec<Load> {
    let plan = |port| Plan { connections: 4, requests_per_s: 40, ..Plan::new(port) };
    cluster.hosts.iter().map(|host| load::start(plan(host.port))).collect()
}

fn stop(loads: Vec<Load>) -> Vec<Summary> {
    loads.into_iter().map(Load::stop).collect()
}

fn answers(summaries: &[Summary], revision: &str) -> usize {
    let of = |summary: &Summary| summary.revisions.get(revision).map_or(0, |seen| seen.answers);
    summaries.iter().map(of).sum()
}

fn failures(summaries: &[Summary]) -> String {
    let all: usize = summaries.iter().map(Summary::requests).sum();
    let ok: usize = summaries.iter().map(|summary| summary.ok).sum();
    format!("{} of {all} requests failed", all - ok)
}

fn title(number: usize, text: &str) {
    println!("\n{number}  {text}");
}

fn say(label: &str, text: &str) {
    println!("   {label:<9} {text}");
}

fn at(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn short(revision: &str) -> &str {
    &revision[..7]
}
