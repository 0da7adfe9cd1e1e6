//! A repository of many files: fetched and checked out, beside `git clone`.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use towline_tests::app::{self, Kind};
use towline_tests::host::Host;
use towline_tests::mount::Mount;
use towline_tests::origin::{Origin, Repo};
use towline_tests::stage::Stopwatch;

use crate::deploys::ms;
use crate::observed::Observed;
use crate::table::{Samples, note, ratio, row};

/// Files besides the app's own.
const FILES: usize = 50_000;

/// Rounds of each.
const ROUNDS: usize = 3;

/// Measures `bake`, which fetches, checks out and syncs, and `git clone`, which does not sync.
pub(crate) fn measure() {
    let origin = Origin::start();
    let repo = origin.repository("large.git");
    let revision = fill(&repo);
    let [mut own, mut own_mb, mut git, mut git_mb] = [(); 4].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let host = Host::new(&origin.url(&repo), "branch = \"main\"\n", "");
        let dir = host.dir();
        let _disk = Mount::ext4(&dir, &dir.with_extension("img"), 2048);
        host.lay_out();
        let mut clone = Command::new("git");
        clone.args(["clone", "--quiet", "--depth", "1", &origin.url(&repo)]);
        clone.arg(dir.join("shared/clone")).env("GIT_CONFIG_NOSYSTEM", "1");
        let (time, peak) = run(&mut clone);
        git.push(time);
        git_mb.push(peak);
        let mut bake = host.command("bake");
        bake.arg(&revision);
        let (time, peak) = run(&mut bake);
        own.push(time);
        own_mb.push(peak);
    }
    row("50,000 files: fetch, check out, sync", "ms", &own, None);
    row("  git clone --depth 1, without a sync", "ms", &git, None);
    ratio("50,000 files, time beside git clone", &own, &git, 1.0);
    row("50,000 files: peak memory", "MB", &own_mb, None);
    row("  git clone --depth 1, its processes together", "MB", &git_mb, None);
    note("memory is looked at every 5 ms");
}

/// Runs it to its end; returns the time in ms, and the most that it held, in MB.
#[allow(clippy::disallowed_methods, reason = "memory is looked at in steps")]
fn run(command: &mut Command) -> (f64, f64) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let watch = Stopwatch::start();
    let mut child = command.spawn().expect("it was found");
    let process = Observed { pid: child.id() };
    let mut peak = 0.0_f64;
    let end = loop {
        if let Some(end) = child.try_wait().expect("it is ours") {
            break end;
        }
        peak = peak.max(process.resident_of_all_kb());
        thread::sleep(Duration::from_millis(5));
    };
    let time = ms(watch.read());
    assert!(end.success(), "{command:?}: {end}");
    (time, peak / 1e3)
}

/// Commits all files at once; returns the revision.
fn fill(repo: &Repo) -> String {
    let mut input =
        String::from("commit refs/heads/main\ncommitter A <a@example.org> 1767225600 +0000\n");
    input.push_str("data 6\nMany.\n\n");
    let mut add = |path: &str, mode: &str, content: &str| {
        writeln!(input, "M {mode} inline {path}\ndata {}\n{content}", content.len())
            .expect("a text takes any text");
    };
    for (path, content, is_program) in app::files(Kind::Plain, 3000) {
        let mode = if is_program { "100755" } else { "100644" };
        add(&path, mode, &String::from_utf8_lossy(&content));
    }
    for number in 0..FILES {
        let line = format!("exports.number = {number}; // one of very many\n");
        add(&format!("lib/{:03}/{number:05}.js", number % 250), "100644", &line.repeat(20));
    }
    repo.git(&["fast-import", "--quiet"], input.as_bytes());
    repo.git(&["rev-parse", "main"], b"")
}
