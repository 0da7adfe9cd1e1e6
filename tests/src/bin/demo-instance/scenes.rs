//! The scenes of the demo, in order. Every figure printed was measured in the run that prints it.

use std::time::Duration;

use serde_json::{Value, json};
use towline_tests::load::{self, Plan, Summary};
use towline_tests::origin::Fault;
use towline_tests::script::Server;
use towline_tests::stage::{BOOT_DEADLINE_S, Stage, Stopwatch};

/// How often the two ways to deploy are compared; the median is what is printed.
const ROUNDS: usize = 3;

/// Plays all scenes.
pub(crate) fn play() {
    let all = Stopwatch::start();
    let mut stage = Stage::set();
    bake(&mut stage);
    boot_from_an_old_image(&mut stage);
    compare_with_the_script(&mut stage);
    change_the_lock_file(&mut stage);
    crash_the_workers(&mut stage);
    take_everything_away(&mut stage);
    println!("\nAll of it took {:.0} s.", all.read().as_secs_f64());
}

fn bake(stage: &mut Stage) {
    let packages = stage.content("package-lock.json").matches("\"node_modules/").count();
    println!(
        "A node app with {packages} packages and 2 workers, its git origin on loopback, npm's \
         registry, one instance.\nEvery figure was measured in this run.\nSo that it is short, \
         the health window is {} s (30 s by default), a boot gives up on its target\nafter \
         {BOOT_DEADLINE_S} s (240 s), and attempts are at most 2 s apart (300 s).",
        stage.recipe().health.healthy_for.as_secs_f64()
    );
    let (first, watch) = (stage.tip.clone(), Stopwatch::start());
    stage.host.target(&first);
    let (code, log) = stage.host.once();
    assert_eq!(code, 0, "{log}");
    stage.host.kill_app();
    let took = at(watch.read());
    println!(
        "\nThe image: {} is baked in ({took}, most of it npm ci); nothing runs.",
        short(&first)
    );
}

fn boot_from_an_old_image(stage: &mut Stage) {
    title(1, "An instance that was left on an old revision boots, under load");
    let old = stage.tip.clone();
    for _ in 0..3 {
        stage.commit();
    }
    let target = stage.tip.clone();
    stage.host.target(&target);
    let (load, watch) = (stage.load(), Stopwatch::start());
    stage.host.run();
    let first = stage.host.await_some("the first answer", |_| {
        (!load.snapshot().revisions.is_empty()).then(|| watch.read())
    });
    stage.host.await_serving(&target);
    let proven = watch.read();
    let summary = load.stop();
    let (new, stale) = (answers(&summary, &target), answers(&summary, &old));
    say("0 s", &format!("launch; the target is {}, 3 commits ahead", short(&target)));
    say(&at(first), "the first answer");
    say(&at(proven), "proven: healthy through its window, of the right revision");
    say("", &format!("{new} answers came from the target, {stale} from the image's revision"));
    assert_eq!(stale, 0, "nothing stale may answer");
}

fn compare_with_the_script(stage: &mut Stage) {
    title(2, "A code-only release, beside `git pull && npm ci && kill -HUP` on the same tree");
    let server = Server::set_up(&stage.url(), stage.environment());
    stage.host.await_some("the script's app to answer", |_| server.answers().then_some(()));
    let (mut script, mut towline) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let old = stage.tip.clone();
        let new = stage.commit();
        script.push(Deploy::measure(stage, server.port, [&old, &new], |_| server.deploy()));
        let port = stage.host.port;
        towline.push(Deploy::measure(stage, port, [&old, &new], |stage| {
            stage.host.target(&new);
            stage.await_logged("activated", &new);
        }));
        stage.host.await_serving(&new);
    }
    println!("   median of {ROUNDS}     until the signal     until the old code's last answer");
    row("the script", &mut script);
    row("Towline", &mut towline);
    let sum = |deploys: &[Deploy], of: fn(&Deploy) -> usize| deploys.iter().map(of).sum::<usize>();
    for (name, deploys) in [("the script", &script), ("Towline", &towline)] {
        let (failed, all) = (sum(deploys, |one| one.failed), sum(deploys, |one| one.requests));
        let tunnels = sum(deploys, |one| one.tunnels);
        say(
            name,
            &format!(
                "in all {ROUNDS} rounds, {failed} of {all} requests failed; {tunnels} connections to \
                 the registry"
            ),
        );
    }
}

fn change_the_lock_file(stage: &mut Stage) {
    title(3, "The lock file changes");
    stage.change_lock_file("ms@2.1.2");
    let next = stage.commit();
    let (load, tunnels) = (stage.load(), stage.gateway.tunnels());
    let watch = Stopwatch::start();
    stage.host.target(&next);
    let prepared = stage.await_logged("prepared", &next);
    let until = watch.read();
    stage.host.await_serving(&next);
    let proven = watch.read();
    let install = prepared["install"].as_str().unwrap_or("?").to_owned();
    let tunnels = stage.gateway.tunnels() - tunnels;
    say(
        &at(until),
        &format!(
            "prepared beside what serves: dependencies {install}, {tunnels} connections to the registry"
        ),
    );
    say(&at(proven), &format!("proven; {}", failures(&load.stop())));
}

fn crash_the_workers(stage: &mut Stage) {
    title(4, "A revision whose workers crash");
    let good = stage.tip.clone();
    stage.change("behaviour.json", &json!({"worker": "crash"}).to_string());
    let bad = stage.commit();
    stage.change("behaviour.json", &json!({}).to_string());
    let (load, watch) = (stage.load(), Stopwatch::start());
    stage.host.target(&bad);
    stage.await_logged("activated", &bad);
    let activated = watch.read();
    let before = (stage.origin.requests(), stage.gateway.tunnels());
    let status = stage.host.await_status("the restore", |status| status["phase"] == "restoring");
    let rejected = watch.read();
    stage.host.await_some("the old revision to answer", |host| {
        (host.served().as_deref() == Some(good.as_str())).then_some(())
    });
    let answers = watch.read();
    stage.host.await_serving(&good);
    let proven = watch.read();
    let origin = stage.origin.requests() - before.0;
    let registry = stage.gateway.tunnels() - before.1;
    say(&at(activated), &format!("{} is activated", short(&bad)));
    say(&at(rejected), &format!("rejected: {}", why(&status)));
    say(
        &at(answers),
        &format!(
            "{} answers again, from disk: {origin} requests to the origin, {registry} connections to the registry",
            short(&good)
        ),
    );
    let summary = load.stop();
    say(&at(proven), &format!("proven; {}", failures(&summary)));
    if summary.requests() > summary.ok {
        say(
            "",
            "(this app's manager ends an old worker also when the new one has died: until then",
        );
        say("", "requests fail. One that waits until the new ones listen would fail none.)");
    }
}

fn take_everything_away(stage: &mut Stage) {
    title(5, "Origin and registry are away, everything is killed, and started again");
    let good = stage.host.current().expect("something is served");
    // Another lock file, so that the registry is needed as well.
    stage.change_lock_file("ms@2.1.1");
    let next = stage.commit();
    stage.origin.fail(Fault::Down);
    stage.gateway.set_open(false);
    stage.host.kill();
    stage.host.kill_app();
    assert_eq!(stage.host.served(), None, "everything was killed");
    stage.host.target(&next);
    let watch = Stopwatch::start();
    stage.host.run();
    let served = stage.host.await_some("an answer", |host| host.served());
    let answers = watch.read();
    assert_eq!(served, good, "what was proven last");
    let status = stage.host.await_status("the reason", |status| {
        status["health"] == "healthy" && status["degraded"].is_string()
    });
    say(
        &at(answers),
        &format!(
            "{} answers, from disk, once attempts to have the target had failed",
            short(&good)
        ),
    );
    say("status", status["degraded"].as_str().unwrap_or("?"));

    let load = stage.load();
    stage.origin.fail(Fault::None);
    let status = stage
        .host
        .await_status("an install that fails", |status| status["failure"]["cause"] == "install");
    say("origin back", &format!("{} still serves: {}", short(&good), why(&status)));
    let watch = Stopwatch::start();
    stage.gateway.set_open(true);
    stage.host.await_serving(&next);
    let proven = at(watch.read());
    say(
        "registry back",
        &format!("{} proven {proven} later, by itself; {}", short(&next), failures(&load.stop())),
    );
    stage.host.terminate();
}

/// What one deploy took.
struct Deploy {
    signal: Duration,
    last_stale: Duration,
    failed: usize,
    requests: usize,
    tunnels: usize,
}

impl Deploy {
    /// Deploys under load, and waits until the old revision answers no more. `deploy` returns when the
    /// manager has been told.
    fn measure(
        stage: &mut Stage,
        port: u16,
        [old, new]: [&str; 2],
        deploy: impl FnOnce(&mut Stage),
    ) -> Self {
        let (of_load, tunnels) = (Stopwatch::start(), stage.gateway.tunnels());
        let load = load::start(Plan::new(port));
        stage.host.await_some("the load to begin", |_| {
            load.snapshot().revisions.contains_key(old).then_some(())
        });
        let (begun, watch) = (of_load.read(), Stopwatch::start());
        deploy(stage);
        let signal = watch.read();
        stage.await_only(&load, new);
        let summary = load.stop();
        let last_stale = summary.revisions.get(old).map_or(Duration::ZERO, |seen| seen.last);
        Self {
            signal,
            last_stale: last_stale.saturating_sub(begun),
            failed: summary.requests() - summary.ok,
            requests: summary.requests(),
            tunnels: stage.gateway.tunnels() - tunnels,
        }
    }
}

fn row(name: &str, deploys: &mut [Deploy]) {
    let mut median = |of: fn(&Deploy) -> Duration| {
        deploys.sort_by_key(of);
        at(of(&deploys[deploys.len() / 2]))
    };
    let (signal, last) = (median(|one| one.signal), median(|one| one.last_stale));
    println!("   {name:<12} {signal:>16} {last:>28}");
}

fn title(number: usize, text: &str) {
    println!("\n{number}  {text}");
}

fn say(label: &str, text: &str) {
    println!("   {label:<13} {text}");
}

fn at(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn short(revision: &str) -> &str {
    &revision[..7]
}

fn answers(summary: &Summary, revision: &str) -> usize {
    summary.revisions.get(revision).map_or(0, |seen| seen.answers)
}

fn failures(summary: &Summary) -> String {
    format!("{} of {} requests failed", summary.requests() - summary.ok, summary.requests())
}

fn why(status: &Value) -> &str {
    status["failure"]["detail"].as_str().and_then(|text| text.lines().next()).unwrap_or("?")
}
