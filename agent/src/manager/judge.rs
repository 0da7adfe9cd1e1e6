//! What can be said of a reload from two looks at the manager's processes.
//!
//! [`judge`] is pure: it decides from a [`Snapshot`] taken before the signal and a [`View`] taken
//! after it. Reading `/proc` into these is the rest of this file.
//!
//! Workers are all that descends from the manager; those directly below it are its *branches*. The
//! branches must hold still, while helpers that a worker starts may come and go. A branch runs from
//! a release if any process in it does, since a manager may start workers through a shell.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::Process;
use crate::process::{self, Stat, off_thread};

/// The most arguments of a worker that are looked at for its script.
const ARGUMENTS_MAX: usize = 64;

/// What the kernel adds to the name of a file or directory that was removed.
const DELETED: &[u8] = b" (deleted)";

/// A process, named so that nothing else can be meant: by pid and birth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    /// Its pid.
    pub pid: i32,
    /// When it was born, in ticks since boot.
    pub start_ticks: u64,
}

impl Worker {
    /// Does it still live? A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| !stat.ended && Worker::from(&stat) == *self)
    }
}

impl From<&Stat> for Worker {
    fn from(stat: &Stat) -> Worker {
        Worker { pid: stat.pid, start_ticks: stat.start_ticks }
    }
}

/// The manager's processes before it was told to replace them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The manager; `None` where none ran.
    pub manager: Option<Worker>,
    /// Its workers.
    pub workers: BTreeSet<Worker>,
    /// When it was taken, in ticks since boot: new workers are born no earlier.
    pub taken_ticks: u64,
}

impl Snapshot {
    /// Takes a snapshot, immediately before the signal is sent.
    pub async fn take(process: &Process) -> Snapshot {
        let workers = super::workers(process).await.into_iter().collect();
        // Read last, so that workers born while the table was read are not taken for new ones.
        let taken_ticks = process::now_ticks();
        Snapshot { manager: Some(process.as_worker()), workers, taken_ticks }
    }

    /// Returns the snapshot of a manager that does not run, immediately before it is started.
    #[must_use]
    pub fn nothing() -> Snapshot {
        let taken_ticks = process::now_ticks();
        Snapshot { manager: None, workers: BTreeSet::new(), taken_ticks }
    }

    /// Returns what must be gone: the workers, or a manager that is its own only worker.
    fn replaceable(&self) -> BTreeSet<Worker> {
        if self.workers.is_empty() {
            self.manager.into_iter().collect()
        } else {
            self.workers.clone()
        }
    }
}

/// One process as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The process.
    pub worker: Worker,
    /// The pid of the manager's child that it is or descends from.
    pub branch: i32,
    /// Its working directory; `None` where it may not be seen.
    pub cwd: Option<PathBuf>,
    /// Its executable and those of its arguments that are files, all links resolved; `None` where
    /// they may not be seen.
    pub files: Option<Vec<PathBuf>>,
}

impl Seen {
    fn read(worker: Worker, branch: i32) -> Seen {
        let cwd = process::working_directory(worker.pid);
        Seen { worker, branch, files: files(worker.pid, cwd.as_deref()), cwd }
    }

    /// Do its working directory and its script or executable lie in `release`?
    fn runs_from(&self, release: &Path) -> bool {
        let in_release = |path: &PathBuf| path.starts_with(release) && !is_deleted(path);
        self.cwd.as_ref().is_some_and(in_release)
            && self.files.as_ref().is_some_and(|files| files.iter().any(in_release))
    }
}

/// The manager's processes at one look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The manager; `None` where none runs.
    pub manager: Option<Seen>,
    /// Its workers.
    pub workers: Vec<Seen>,
    /// Those of the snapshot that must go and still live.
    pub old: Vec<Worker>,
    /// Have the branches held still since the look before?
    pub settled: bool,
    /// Does the manager count among those that may come and go, because its unit starts it again?
    pub is_unit: bool,
    /// Why the manager is gone for good: nobody is left to start it again.
    pub is_over: Option<String>,
}

impl View {
    /// Looks at a manager, and at its workers. `settled` and `is_over` are for the caller to say.
    pub(super) async fn take(process: Option<&Process>, before: &Snapshot) -> View {
        let replaceable = before.replaceable();
        let manager = process.map(Process::as_worker);
        let cgroup = process.and_then(Process::cgroup);
        let is_unit = cgroup.is_some();
        let read = move || {
            let below = manager
                .map(|manager| process::owned(manager.pid, cgroup.as_deref(), &process::all()));
            View {
                manager: manager.map(|manager| Seen::read(manager, manager.pid)),
                workers: below
                    .unwrap_or_default()
                    .iter()
                    .map(|(branch, stat)| Seen::read(Worker::from(stat), *branch))
                    .collect(),
                old: replaceable
                    .into_iter()
                    .filter(|worker| Some(*worker) != manager && worker.is_alive())
                    .collect(),
                settled: false,
                is_unit,
                is_over: None,
            }
        };
        // A read that failed has seen nothing, which proves nothing.
        off_thread(read).await.unwrap_or_default()
    }

    /// Returns the manager's children, each with what it runs; and a unit's manager, since what ends
    /// as soon as it starts is started again by systemd.
    pub(super) fn present_branches(&self) -> impl Iterator<Item = (Worker, Vec<PathBuf>)> {
        let branches = self.workers.iter().filter(|seen| seen.branch == seen.worker.pid);
        let own = self.manager.iter().filter(|_| self.is_unit);
        branches.chain(own).map(|seen| (seen.worker, seen.files.clone().unwrap_or_default()))
    }

    /// Returns what must hold still: the manager's children, or a manager that has none.
    pub(super) fn branches(&self) -> BTreeSet<Worker> {
        let branches = self.workers.iter().filter(|seen| seen.branch == seen.worker.pid);
        let branches: BTreeSet<Worker> = branches.map(|seen| seen.worker).collect();
        if branches.is_empty() {
            self.manager.iter().map(|seen| seen.worker).collect()
        } else {
            branches
        }
    }
}

/// What is still missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// Processes that ought to be replaced still live.
    Old(Vec<i32>),
    /// Workers that are not in the snapshot were nevertheless born before the signal.
    BornBefore(Vec<i32>),
    /// The manager is the same as before and has no workers.
    NoWorkers,
    /// Workers still come and go.
    Unsettled,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pending::Old(pids) => write!(f, "processes from before still run: {pids:?}"),
            Pending::BornBefore(pids) => write!(f, "workers were born before the signal: {pids:?}"),
            Pending::NoWorkers => f.write_str("the manager is the same as before, without workers"),
            Pending::Unsettled => f.write_str("workers come and go"),
        }
    }
}

/// What one look says of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Not yet.
    Pending(Pending),
    /// All workers are new; it was not seen where they run from.
    Replaced,
    /// All workers are new and run from the release.
    Started,
    /// A new worker runs in another release.
    KeptDirectory {
        /// The worker.
        pid: i32,
        /// Where it runs.
        directory: PathBuf,
    },
    /// There is no manager.
    ManagerGone,
}

/// Judges a look at the manager's processes.
///
/// - `release`: the release that they ought to run from, all links resolved.
#[must_use]
pub fn judge(before: &Snapshot, now: &View, release: &Path) -> Judgement {
    let Some(manager) = &now.manager else { return Judgement::ManagerGone };
    let pids = |workers: Vec<Worker>| workers.iter().map(|worker| worker.pid).collect();
    if !now.old.is_empty() {
        return Judgement::Pending(Pending::Old(pids(now.old.clone())));
    }
    // A manager without workers does their work itself.
    let workers = match now.workers.as_slice() {
        [] if before.manager == Some(manager.worker) => {
            return Judgement::Pending(Pending::NoWorkers);
        }
        [] => std::slice::from_ref(manager),
        workers => workers,
    };
    let early = |worker: &Worker| {
        worker.start_ticks < before.taken_ticks || before.workers.contains(worker)
    };
    let early: Vec<Worker> = workers.iter().map(|seen| seen.worker).filter(early).collect();
    if !early.is_empty() {
        return Judgement::Pending(Pending::BornBefore(pids(early)));
    }
    if !now.settled {
        return Judgement::Pending(Pending::Unsettled);
    }
    let elsewhere = |directory: &Path| {
        let releases = release.parent();
        releases.is_some_and(|releases| directory.starts_with(releases) && directory != releases)
            && !directory.starts_with(release)
    };
    for seen in workers {
        if let Some(directory) = seen.cwd.as_ref().filter(|cwd| elsewhere(cwd)) {
            return Judgement::KeptDirectory { pid: seen.worker.pid, directory: directory.clone() };
        }
    }
    let branches: BTreeSet<i32> = workers.iter().map(|seen| seen.branch).collect();
    let running: BTreeSet<i32> =
        workers.iter().filter(|seen| seen.runs_from(release)).map(|seen| seen.branch).collect();
    if running == branches { Judgement::Started } else { Judgement::Replaced }
}

/// Returns the files that a process runs: its executable, and its arguments that name files.
fn files(pid: i32, cwd: Option<&Path>) -> Option<Vec<PathBuf>> {
    let mut files = vec![process::executable(pid)?];
    for argument in process::arguments(pid)?.into_iter().take(ARGUMENTS_MAX) {
        let path = PathBuf::from(std::ffi::OsString::from_vec(argument));
        // Joined to an absolute path, an absolute argument stays what it is.
        let Some(path) = cwd.map(|cwd| cwd.join(path)) else { continue };
        files.extend(path.canonicalize().ok().filter(|path| path.is_file()));
    }
    Some(files)
}

fn is_deleted(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(DELETED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "/srv/web/releases/new";

    fn worker(pid: i32, start_ticks: u64) -> Worker {
        Worker { pid, start_ticks }
    }

    fn seen(pid: i32, start_ticks: u64, cwd: &str, file: &str) -> Seen {
        Seen {
            worker: worker(pid, start_ticks),
            branch: pid,
            cwd: Some(cwd.into()),
            files: Some(vec!["/usr/bin/python3".into(), file.into()]),
        }
    }

    fn new(pid: i32) -> Seen {
        seen(pid, 200, RELEASE, "/srv/web/releases/new/app.py")
    }

    fn hidden(pid: i32) -> Seen {
        Seen { cwd: None, files: None, ..new(pid) }
    }

    fn below(branch: i32, seen: Seen) -> Seen {
        Seen { branch, ..seen }
    }

    fn view(workers: Vec<Seen>) -> View {
        let manager = Some(seen(10, 50, "/srv/web/releases/old", "/usr/bin/gunicorn"));
        View { manager, workers, settled: true, ..View::default() }
    }

    fn before() -> Snapshot {
        Snapshot {
            manager: Some(worker(10, 50)),
            workers: BTreeSet::from([worker(11, 60), worker(12, 60)]),
            taken_ticks: 200,
        }
    }

    /// Every row is one rule; the name is what a failure prints.
    #[test]
    fn a_reload_is_judged_by_its_workers() {
        use Judgement::{KeptDirectory, ManagerGone, Replaced, Started};
        let pending = Judgement::Pending;
        let other = "/srv/web/releases/old";
        let kept = |directory: &str| KeptDirectory { pid: 21, directory: directory.into() };
        let cases = [
            ("new ones, from the release", view(vec![new(21), new(22)]), Started),
            ("one is enough", view(vec![new(21)]), Started),
            ("no manager", View { manager: None, ..view(vec![new(21)]) }, ManagerGone),
            (
                "an old one lives",
                View { old: vec![worker(12, 60)], ..view(vec![new(21)]) },
                pending(Pending::Old(vec![12])),
            ),
            ("none at all", view(vec![]), pending(Pending::NoWorkers)),
            (
                "they come and go",
                View { settled: false, ..view(vec![new(21)]) },
                pending(Pending::Unsettled),
            ),
            (
                "born a tick before the signal",
                view(vec![seen(21, 199, RELEASE, "/srv/web/releases/new/app.py")]),
                pending(Pending::BornBefore(vec![21])),
            ),
            (
                "a pid of the snapshot with another birth is another process",
                view(vec![new(11)]),
                Started,
            ),
            ("not to be seen", view(vec![hidden(21)]), Replaced),
            ("one of two not to be seen", view(vec![new(21), hidden(22)]), Replaced),
            (
                "in the release, and nothing of it in its arguments",
                view(vec![seen(21, 200, RELEASE, "/usr/bin/gunicorn")]),
                Replaced,
            ),
            (
                "a script of the release, from elsewhere",
                view(vec![seen(21, 200, "/", "/srv/web/releases/new/app.py")]),
                Replaced,
            ),
            (
                "below the release",
                view(vec![seen(21, 200, "/srv/web/releases/new/api", "/srv/web/releases/new/a")]),
                Started,
            ),
            ("the directory was kept", view(vec![seen(21, 200, other, "/x")]), kept(other)),
            (
                "a removed directory was kept",
                view(vec![seen(21, 200, "/srv/web/releases/old (deleted)", "/x")]),
                kept("/srv/web/releases/old (deleted)"),
            ),
            (
                "a name that begins like the release's is another's",
                view(vec![seen(21, 200, "/srv/web/releases/new2", "/x")]),
                kept("/srv/web/releases/new2"),
            ),
            (
                "the release itself was removed",
                view(vec![seen(
                    21,
                    200,
                    "/srv/web/releases/new/a (deleted)",
                    "/srv/web/releases/new/app.py",
                )]),
                Replaced,
            ),
            (
                "a worker behind a shell",
                view(vec![seen(21, 200, RELEASE, "/usr/bin/dash"), below(21, new(22))]),
                Started,
            ),
            (
                "a helper of a worker may be anything",
                view(vec![new(21), below(21, hidden(22))]),
                Started,
            ),
        ];
        for (rule, now, expected) in cases {
            assert_eq!(judge(&before(), &now, Path::new(RELEASE)), expected, "{rule}");
        }
    }

    #[test]
    fn a_manager_without_workers_stands_for_itself() {
        let single = Snapshot { workers: BTreeSet::new(), ..before() };
        let nothing = Snapshot { manager: None, ..single.clone() };
        let replaced = View { manager: Some(new(20)), ..view(vec![]) };
        let cases = [
            ("the same process", &single, view(vec![]), Judgement::Pending(Pending::NoWorkers)),
            ("another process", &single, replaced.clone(), Judgement::Started),
            ("the first process", &nothing, replaced.clone(), Judgement::Started),
            (
                "both live",
                &single,
                View { old: vec![worker(10, 50)], ..replaced },
                Judgement::Pending(Pending::Old(vec![10])),
            ),
        ];
        for (rule, before, now, expected) in cases {
            assert_eq!(judge(before, &now, Path::new(RELEASE)), expected, "{rule}");
        }
        assert_eq!(single.replaceable(), BTreeSet::from([worker(10, 50)]));
        assert_eq!(before().replaceable().len(), 2, "with workers, the manager may stay");
    }
}
