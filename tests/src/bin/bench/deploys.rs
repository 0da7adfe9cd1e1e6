//! One deploy after the other on an app of some size: what each kind takes from notice to signal.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towline_tests::script::Server;
use towline_tests::stage::{Stage, Stopwatch};

use crate::observed::Observed;
use crate::peers::Peer;
use crate::table::{Samples, note, ratio, row};

/// Deploys of each kind.
const ROUNDS: usize = 15;

/// Rounds that run npm, which takes seconds.
const NPM_ROUNDS: usize = 5;

/// Rounds beside each of the other ways.
const PEER_ROUNDS: usize = 3;

/// Changes of the target that ask for nothing.
const NOTHINGS: u32 = 200;

const DAY_US: u64 = 86_400_000_000;

pub(crate) fn code_only(stage: &mut Stage, server: &Server) {
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

pub(crate) fn lock_file(stage: &mut Stage, server: &Server) {
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

pub(crate) fn restore(stage: &mut Stage) {
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

pub(crate) fn nothing(stage: &mut Stage, agent: Observed) {
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

/// Beside another way to deploy the same commits to the same app, in turns.
pub(crate) fn beside(stage: &mut Stage, peer: &Peer) {
    let (mut own, mut other) = (Samples::default(), Samples::default());
    for _ in 0..PEER_ROUNDS {
        let new = stage.commit();
        let watch = Stopwatch::start();
        if let Err(said) = peer.deploy() {
            note(&format!("{}: skipped: it failed: {said}", peer.name()));
            return;
        }
        other.push(ms(watch.read()));
        own.push(deploy(stage, &new).whole_ms);
    }
    row(&format!("  {}", peer.name()), "ms", &other, None);
    ratio(&format!("code-only, beside {}", peer.name()), &own, &other, 40.0);
}

/// From the start of the agent on a baked release, where nothing runs, to healthy.
pub(crate) fn boot(stage: &mut Stage) {
    let mut boots = Samples::default();
    for _ in 0..NPM_ROUNDS {
        let revision = stage.host.current().expect("something is served");
        stage.host.terminate();
        stage.host.kill_app();
        let baked = stage.host.command("bake").arg(&revision).output();
        let baked = baked.expect("the agent was built");
        assert!(baked.status.success(), "{}", String::from_utf8_lossy(&baked.stderr));
        let watch = Stopwatch::start();
        stage.host.run();
        stage.host.await_serving(&revision);
        boots.push(ms(watch.read()));
    }
    row("boot: agent started → baked release proven", "ms", &boots, None);
    note("of it: the app's own start, and a health window of 500 ms");
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

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn count(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("the release is complete").flatten();
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count(&entry.path()),
        _ => 1,
    };
    entries.map(of).sum()
}
