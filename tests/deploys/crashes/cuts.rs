//! Power cuts: the disk's image is copied in the middle of deploys, and each copy is mounted.
//!
//! ```text
//!   image ─ loop ─ ext4 ◄─ the agent, held before a call
//!     └──► copy ─ loop ─ ext4, its journal replayed ─► whole? ─► a plain agent ─► converged?
//! ```
//!
//! What the kernel has not written by then is not in the copy. While the agent is held nothing else
//! writes, save the kernel itself; a copy during which the image changed is made again.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use towline_tests::host::Host;
use towline_tests::mount::Mount;
use towline_tests::syscalls::{self, Call, Fate};

use super::{CHECK, Lane, Source, is_all, is_whole};

/// Where the images are: in memory.
struct Images {
    // Undone before its directory is removed.
    _mount: Mount,
    dir: TempDir,
}

impl Images {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temp dir");
        Some(Self { _mount: Mount::small(dir.path(), 4_096)?, dir })
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("live")
    }
}

/// What was on the disk at some moment.
struct Cut {
    image: PathBuf,
    /// The call that was about to be made.
    call: Call,
    /// What `current` may lead to; `None`: nowhere yet.
    may_be: [Option<String>; 2],
}

/// A series of deploys, each cut at some of its calls.
struct Series {
    source: Source,
    lane: Lane,
    images: Images,
    cuts: Vec<Cut>,
    /// What serves by now.
    serving: Option<String>,
}

impl Series {
    fn new() -> Option<Self> {
        let source = Source::new();
        let images = Images::new()?;
        let host = Host::new(&source.origin.url(&source.repo), "branch = \"main\"\n", "");
        let mount = Mount::ext4(&host.dir(), &images.live(), 32)?;
        let lane = Lane::on(host, Some(mount));
        Some(Self { source, lane, images, cuts: Vec::new(), serving: None })
    }

    /// Deploys one more revision; `is_cut`: before which calls the power fails; `is_skipped`: which calls
    /// have no effect, though they claim to.
    fn deploy(
        &mut self,
        check: &str,
        code: i32,
        is_cut: &dyn Fn(usize, &Call) -> bool,
        is_skipped: &dyn Fn(&Call) -> bool,
    ) {
        let revision = self.source.commit(check);
        self.lane.host.target(&revision);
        let may_be = [self.serving.clone(), Some(revision.clone())];
        let mut command = self.lane.host.command("once");
        command.args(["--log", "json"]);
        let dir = self.lane.dir();
        let (images, cuts) = (&self.images, &mut self.cuts);
        let ran = syscalls::run(&command, &dir, &mut |number, call| {
            if is_cut(number, call) {
                let image = images.dir.path().join(format!("cut-{}", cuts.len()));
                copy(&images.live(), &image);
                cuts.push(Cut { image, call: call.clone(), may_be: may_be.clone() });
            }
            if is_skipped(call) { Fate::Skip } else { Fate::Pass }
        });
        assert_eq!(ran.ended, syscalls::Ended::Exited(code), "{}", ran.log);
        if code == 0 {
            self.serving = Some(revision);
        }
    }

    /// Looks at every cut; returns what is wrong. Every `recovers_each`th goes on from there.
    fn look(&mut self, recovers_each: usize) -> Vec<String> {
        self.lane.host.kill_app();
        self.lane.mount = None;
        let mut wrong = Vec::new();
        for (index, cut) in self.cuts.iter().enumerate() {
            let mount = Mount::image(&self.lane.dir(), &cut.image);
            let outcome = self.judge(cut).and_then(|()| {
                if recovers_each == 0 || index % recovers_each != 0 {
                    return Ok(());
                }
                let serving = self.serving.as_deref().expect("something was deployed");
                self.lane.recovers(&self.source, serving, 0)
            });
            self.lane.host.kill_app();
            drop(mount);
            if let Err(what) = outcome {
                wrong.push(format!("cut {index}, before {:?}: {what}", cut.call));
            }
        }
        wrong
    }

    fn judge(&self, cut: &Cut) -> Result<(), String> {
        let current = self.lane.host.current();
        if !cut.may_be.contains(&current) {
            return Err(format!("current leads to {current:?}, not to one of {:?}", cut.may_be));
        }
        let dir = self.lane.dir();
        if let Some(current) = &current {
            let marker = dir.join(format!("releases/{current}.json"));
            fs::metadata(&marker).map_err(|error| format!("{}: {error}", marker.display()))?;
        }
        self.lane.is_journalled()?;
        is_whole(&dir, &self.source)
    }
}

fn copy(from: &Path, to: &Path) {
    let changed = || fs::metadata(from).and_then(|meta| meta.modified()).expect("it is ours");
    for _ in 0..20 {
        let before = changed();
        let mut cp = Command::new("cp");
        assert!(cp.arg("--sparse=always").args([from, to]).status().expect("cp").success());
        if changed() == before {
            return;
        }
    }
    panic!("the disk is never quiet");
}

/// Is it about what makes a release count, or live?
fn decides(call: &Call) -> bool {
    let about = &call.about;
    call.name == "syncfs"
        || about.ends_with("/current")
        || about.ends_with("/releases")
        || (about.contains("/releases/") && about.contains(".json"))
        || (about.contains("/journal.json") && call.name != "write" && call.name != "fchmod")
}

#[test]
fn a_power_cut_at_any_point_leaves_what_is_whole_and_an_agent_goes_on() {
    let Some(mut series) = Series::new() else { return };
    let step = if is_all() { 9 } else { 97 };
    let decisive = Cell::new(0_usize);
    let is_cut = |number: usize, call: &Call| {
        if decides(call) {
            decisive.set(decisive.get() + 1);
            is_all() || decisive.get().is_multiple_of(6)
        } else {
            number.is_multiple_of(step)
        }
    };
    let never = |_: &Call| false;
    series.deploy(CHECK, 0, &is_cut, &never);
    series.deploy(CHECK, 0, &is_cut, &never);
    series.deploy("#!/bin/sh\nexit 1\n", 1, &is_cut, &never);
    series.deploy(CHECK, 0, &is_cut, &never);
    let count = series.cuts.len();
    assert!(count >= if is_all() { 200 } else { 16 }, "{count} cuts");
    let wrong = series.look(if is_all() { 10 } else { 5 });
    writeln!(std::io::stderr(), "{} of {count} cuts are wrong", wrong.len()).ok();
    assert!(wrong.is_empty(), "of {count} cuts {}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A name; the calls that are left out; what a cut then shows.
type Rule<'a> = (&'a str, &'a dyn Fn(&Call) -> bool, &'a str);

/// What the agent does for power cuts is not for nothing: without one of these calls a cut shows it.
#[test]
fn the_same_cuts_show_every_sync_that_is_left_out() {
    let is_marker = |call: &Call| call.about.contains("/releases/") && call.name == "fsync";
    let rules: [Rule<'_>; 2] = [
        ("the barrier over a release", &|call| call.name == "syncfs", "bytes are not the"),
        ("the marker's", &is_marker, "cannot be read"),
    ];
    for (rule, is_skipped, said) in rules {
        let Some(mut series) = Series::new() else { return };
        series.deploy(CHECK, 0, &|_, call| decides(call), is_skipped);
        let wrong = series.look(0);
        assert!(wrong.iter().any(|what| what.contains(said)), "{rule}: {}", wrong.join("\n"));
    }
}

#[test]
fn a_file_that_is_torn_is_seen() {
    let mut source = Source::new();
    let mut lane = Lane::new(&source);
    let good = source.good();
    lane.host.target(&good);
    assert_eq!(lane.once().0, 0);
    let dir = lane.dir();
    is_whole(&dir, &source).expect("it is");
    let release = dir.join("releases").join(&good);
    let file = fs::File::options().write(true).open(release.join("lib/one")).expect("it is there");
    file.set_len(0).expect("it is ours");
    assert!(is_whole(&dir, &source).is_err_and(|what| what.contains("lib/one")));
    let marker = dir.join(format!("releases/{good}.json"));
    let text = fs::read_to_string(&marker).expect("it is there");
    fs::write(&marker, &text[..text.len() / 2]).expect("it is ours");
    assert!(is_whole(&dir, &source).is_err_and(|what| what.contains("cannot be read")));
}
