//! The figures, in the order in which they are printed.

use std::thread;

use towline_tests::mount::Mount;
use towline_tests::script::Server;
use towline_tests::stage::{Stage, Stopwatch};

use crate::growth::{self, Tiny};
use crate::observed::Observed;
use crate::peers::{self, Peers};
use crate::table::{Samples, head, load_average, note, row};
use crate::{deploys, large};

/// Files of source code besides the app's own: a service of some size.
const SOURCES: usize = 400;

/// Measures everything, and prints it.
pub(crate) fn measure() {
    let watch = Stopwatch::start();
    println!("load average before: {}", load_average());
    // Downloaded and set up while nothing is timed.
    let peers = Peers::find();
    let (mut stage, _disk) = set();
    let server = Server::set_up(&stage.url(), stage.environment());
    stage.host.target(&stage.tip.clone());
    stage.host.run();
    stage.host.await_serving(&stage.tip.clone());
    stage.host.await_some("the script's app to answer", |_| server.answers().then_some(()));
    let dir = stage.host.dir();
    let modules = deploys::count(&dir.join("current/node_modules"));
    println!("a release: {SOURCES} files and the app's own, {modules} files of dependencies");
    head();

    let agent = Observed { pid: stage.host.agent_pid() };
    let before = agent.cost();
    deploys::code_only(&mut stage, &server);
    deploys::lock_file(&mut stage, &server);
    deploys::restore(&mut stage);
    deploys::nothing(&mut stage, agent);
    stage.host.await_some("threads to end", |_| (agent.status("Threads") < 2.0).then_some(()));
    let cost = agent.cost();
    cost.print("idle agent");
    note(&format!(
        "{:.1} MB of it are pages of program files, which the kernel drops at need and agents share",
        agent.status("RssFile") / 1e3
    ));
    note(&format!(
        "all deploys above: {} more descriptors, {:.1} MB more anonymous memory",
        cost.descriptors - before.descriptors,
        (cost.anonymous_kb - before.anonymous_kb) / 1e3
    ));
    let size = std::fs::metadata(format!("/proc/{}/exe", agent.pid)).map_or(0, |meta| meta.len());
    #[allow(clippy::cast_precision_loss, reason = "a file of less than 2^53 bytes")]
    row("the binary", "MB", &Samples::from_iter([size as f64 / 1e6]), Some(12.0));

    // The minute at rest passes beside the polls of other agents: they are no part of what is counted.
    let rest = thread::spawn(move || growth::wake_ups(agent));
    let polls = growth::polls();
    growth::print_wake_ups("idle agent", rest.join().expect("it has counted"));
    polls.print();
    let mut tiny = Tiny::set();
    tiny.deploys();
    let own = tiny.agent();
    let rest = thread::spawn(move || growth::wake_ups(own));

    for peer in peers.of(&stage) {
        deploys::beside(&mut stage, &peer);
    }
    deploys::boot(&mut stage);
    stage.host.terminate();
    growth::print_wake_ups("  after them", rest.join().expect("it has counted"));
    large::measure();
    println!("load average after: {}", load_average());
    println!("all of it took {:.0} s", watch.read().as_secs_f64());
}

/// An app of some size, on a disk of its own where that can be had: a sync waits for everybody's
/// writes to the same file system.
fn set() -> (Stage, Option<Mount>) {
    let mut stage = Stage::set();
    let dir = stage.host.dir();
    let image = dir.with_extension("img");
    let disk = Mount::ext4(&dir, &image, 2048);
    if disk.is_none() {
        println!("not root: measured on a file system that others write to as well");
    }
    stage.host.lay_out();
    let recipe = stage
        .content("towline.toml")
        .replace("\"--no-fund\"", "\"--no-fund\", \"--prefer-offline\"")
        .replace("every_s = 0.5", "every_s = 0.1")
        .replace("healthy_for_s = 3", "healthy_for_s = 0.5");
    stage.change("towline.toml", &recipe);
    stage.change(peers::PLAYBOOK, peers::PLAYS);
    for number in 0..SOURCES {
        let line = format!("exports.number = {number}; // one of many\n");
        stage.change(&format!("lib/{:02}/{number:03}.js", number % 20), &line.repeat(60));
    }
    stage.commit();
    (stage, disk)
}
