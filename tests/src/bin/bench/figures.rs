//! The figures, in the order in which they are printed.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_tests::mount::Mount;
use towline_tests::script::Server;
use towline_tests::stage::{Stage, Stopwatch};

use crate::observed::Observed;
use crate::table::{Samples, head, load_average, note, ratio, row};

/// Files of source code besides the app's own: a service of some size.
const SOURCES: usize = 400;

/// Deploys of each kind.
const ROUNDS: usize = 15;

/// Rounds that run npm, which takes seconds.
const NPM_ROUNDS: usize = 5;

/// Changes of the target that ask for nothing.
const NOTHINGS: u32 = 200;

/// How long the idle agent is watched.
const IDLE: Duration = Duration::from_secs(60);

const DAY_US: u64 = 86_400_000_000;

/// Measures everything, and prints it.
#[allow(clippy::disallowed_methods, reason = "the sleep is what is measured: an agent at rest")]
pub(crate) fn measure() {
    println!("load average before: {}", load_average());
    let (mut stage, _disk) = set();
    let server = Server::set_up(&stage.url(), stage.environment());
    stage.host.target(&stage.tip.clone());
    stage.host.run();
    stage.host.await_serving(&stage.tip.clone());
    stage.host.await_some("the script's app to answer", |_| server.answers().then_some(()));
    let dir = stage.host.dir();
    let modules = count(&dir.join("current/node_modules"));
    println!("a release: {SOURCES} files and the app's own, {modules} files of dependencies");
    head();

    let agent = Observed { pid: stage.host.agent_pid() };
    let before = (agent.descriptors(), agent.status("RssAnon"));
    code_only(&mut stage, &server);
    lock_file(&mut stage, &server);
    restore(&mut stage);
    nothing(&mut stage, agent);

    let grown = agent.status("RssAnon") - before.1;
    let descriptors = agent.descriptors().saturating_sub(before.0);
    stage.host.await_some("threads to end", |_| (agent.status("Threads") < 2.0).then_some(()));
    let (sleeps, cpu) = (agent.sleeps(), agent.cpu_ms());
    thread::sleep(IDLE);
    let one = |value: f64| Samples::from_iter([value]);
    row("idle agent: resident memory", "MB", &one(agent.status("VmRSS") / 1e3), Some(8.0));
    row("idle agent: anonymous memory", "MB", &one(agent.status("RssAnon") / 1e3), Some(2.0));
    row("idle agent: threads", "", &one(agent.status("Threads")), Some(2.0));
    row("idle agent: wake-ups in a minute", "", &one(agent.sleeps() - sleeps), Some(5.0));
    note(&format!(
        "one health probe among them; {:.0} ms of CPU time, to 10 ms",
        agent.cpu_ms() - cpu
    ));
    note(&format!(
        "all deploys above: {descriptors} more descriptors, {:.1} MB more anonymous memory",
        grown / 1e3
    ));
    let size = std::fs::metadata(format!("/proc/{}/exe", agent.pid)).map_or(0, |meta| meta.len());
    #[allow(clippy::cast_precision_loss, reason = "a file of less than 2^53 bytes")]
    row("the binary", "MB", &one(size as f64 / 1e6), Some(12.0));
    stage.host.terminate();
    println!("load average after: {}", load_average());
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
    for number in 0..SOURCES {
        let line = format!("exports.number = {number}; // one of many\n");
        stage.change(&format!("lib/{:02}/{number:03}.js", number % 20), &line.repeat(60));
    }
    stage.commit();
    (stage, disk)
}

fn code_only(stage: &mut Stage, server: &Server) {
    let (mut whole, mut script) = (Samples::default(), Samples::default());
    let mut steps = [(); 3].map(|()| Samples::default());
    for round in 0..ROUNDS {
        let new = stage.commit();
        if round < NPM_ROUNDS {
            let watch = Stopwatch::start();
            server.deploy();
            script.push(ms(watch.read()));
        }
        let deploy = deploy(stage, &new);
        whole.push(deploy.whole_ms);
        let of = |line: &Value, field: &str| line[field].as_f64().unwrap_or(f64::NAN);
        let (fetch, write) = (of(&deploy.prepared, "fetch_ms"), of(&deploy.prepared, "write_ms"));
        steps[0].push(fetch);
        steps[1].push(write);
        steps[2].push(of(&deploy.prepared, "elapsed_ms") - fetch - write);
    }
    row("code-only: target file → signal", "ms", &whole, Some(80.0));
    let [fetch, write, link] = &steps;
    note(&format!(
        "of it: fetch {:.0}, check-out {:.0}, runtime's version, link and sync {:.0}",
        fetch.median(),
        write.median(),
        link.median()
    ));
    row("  git pull && npm ci && kill -HUP", "ms", &script, None);
    ratio("code-only, beside the script", &whole, &script, 40.0);
}

fn lock_file(stage: &mut Stage, server: &Server) {
    let (mut new, mut bare, mut seen) =
        (Samples::default(), Samples::default(), Samples::default());
    let manifest = stage.content("package.json");
    let with = |number: usize| {
        manifest.replace("\"private\"", &format!("\"keywords\": [\"{number}\"],\n  \"private\""))
    };
    for round in 0..NPM_ROUNDS {
        stage.change("package.json", &with(round));
        let revision = stage.commit();
        server.pull();
        let watch = Stopwatch::start();
        server.install();
        bare.push(ms(watch.read()));
        let deploy = deploy(stage, &revision);
        assert_eq!(deploy.prepared["install"], "installed");
        new.push(deploy.prepared["elapsed_ms"].as_f64().unwrap_or(f64::NAN));
    }
    for round in 0..ROUNDS {
        // To and fro between the last two.
        stage.change("package.json", &with(NPM_ROUNDS - 1 - (round + 1) % 2));
        let revision = stage.commit();
        let deploy = deploy(stage, &revision);
        assert_eq!(deploy.prepared["install"], "reused");
        seen.push(deploy.whole_ms);
    }
    row("lock file new: prepare", "ms", &new, Some(bare.median() * 1.1));
    row("  bare npm ci, cache warm", "ms", &bare, None);
    row("lock file seen before: target file → signal", "ms", &seen, None);
    ratio("lock file seen before, beside bare npm ci", &seen, &bare, 15.0);
}

fn restore(stage: &mut Stage) {
    let mut restored = Samples::default();
    for _ in 0..NPM_ROUNDS {
        let good = stage.host.current().expect("something is served");
        stage.change("behaviour.json", &json!({"worker": "wrong-revision"}).to_string());
        let bad = stage.commit();
        stage.change("behaviour.json", "{}");
        stage.host.target(&bad);
        let rejected = stage.await_logged("unhealthy", &bad);
        let activated = stage.await_logged_after("activated", &good, &rejected);
        restored.push(since(&rejected, &activated));
        stage.host.await_serving(&good);
    }
    row("restore: decision → signal", "ms", &restored, Some(50.0));
}

fn nothing(stage: &mut Stage, agent: Observed) {
    let serving = stage.commit();
    deploy(stage, &serving);
    let cpu = agent.cpu_ms();
    for _ in 0..NOTHINGS {
        stage.host.target(&serving);
        let generation = stage.host.generation();
        stage.host.await_some("the target to be seen", |host| {
            let status = host.status();
            (status["status"]["order"]["generation"].as_u64() == Some(generation)).then_some(())
        });
    }
    let each = (agent.cpu_ms() - cpu) / f64::from(NOTHINGS);
    row("nothing to do: CPU time", "ms", &Samples::from_iter([each]), Some(1.0));
}

/// What one deploy told.
struct Deploy {
    /// From the replacing of the target file to the signal.
    whole_ms: f64,
    prepared: Value,
}

#[allow(clippy::disallowed_methods, reason = "compared with the times of the agent's log")]
fn deploy(stage: &mut Stage, revision: &str) -> Deploy {
    let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    stage.host.target(revision);
    let activated = stage.await_logged("activated", revision);
    let prepared = stage.await_logged("prepared", revision);
    stage.host.await_serving(revision);
    let begun_us = u64::try_from(begun.as_micros()).unwrap_or(0) % DAY_US;
    Deploy { whole_ms: between(begun_us, time_us(&activated)), prepared }
}

/// From one line of the log to another, in ms.
fn since(first: &Value, last: &Value) -> f64 {
    between(time_us(first), time_us(last))
}

fn between(first_us: u64, last_us: u64) -> f64 {
    let us = (last_us + DAY_US - first_us) % DAY_US;
    Duration::from_micros(us).as_secs_f64() * 1e3
}

/// The time of day of a line of the log, `2026-11-24T14:02:11.123456Z`.
fn time_us(line: &Value) -> u64 {
    let text = line["timestamp"].as_str().expect("every line has its time");
    let (_, time) = text.trim_end_matches('Z').split_once('T').expect("date and time");
    let (whole, part) = time.split_once('.').expect("seconds have a fraction");
    let number = |digits: &str| digits.parse::<u64>().expect("digits");
    let whole = whole.split(':').fold(0, |sum, digits| sum * 60 + number(digits));
    whole * 1_000_000 + number(part)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn count(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("the release is complete").flatten();
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count(&entry.path()),
        _ => 1,
    };
    entries.map(of).sum()
}
