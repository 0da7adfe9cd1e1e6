//! What is left where the agent, its host or its disk comes to an end in the middle of something.
//!
//! An app of ten files and nothing to install, so that hundreds of deploys are cheap. After each bad day
//! [`Lane::holds`] looks at the disk as it is, and [`Lane::recovers`] has a plain agent go on from there.
//!
//! All of it runs with `TOWLINE_CRASHES=all` in the environment; otherwise a choice that is spread over
//! it, and always the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{User, geteuid};
use serde_json::Value;
use towline_tests::host::Host;
use towline_tests::mount::Mount;
use towline_tests::origin::{Origin, Repo};

#[cfg(target_arch = "x86_64")]
mod bad_disks;
#[cfg(target_arch = "x86_64")]
mod cuts;
#[cfg(target_arch = "x86_64")]
mod matrix;
mod torn;

const RECIPE: &str = r#"[manager]
pid_file = "run/app.pid"
reload = "SIGHUP"
start = ["./bin/start"]
timeout_s = 10

[health]
command = ["./bin/check"]
passes = 1
every_s = 0.05
healthy_for_s = 0.05
start_s = 0.3

[shared]
dirs = ["run"]
"#;

/// Two starts at once make one app: that is the app's to see to.
const START: &str = "#!/bin/sh
exec 9>>run/app.lock
flock -n 9 || exit 0
setsid ./bin/manager </dev/null >/dev/null 2>&1 &
";

/// Keeps one worker. A signal replaces it by one of the release that `current` leads to by then.
const MANAGER: &str = r#"#!/bin/sh
base=$PWD
spawn() {
    cd "$base" || exit 1
    ./bin/worker </dev/null 9>&- &
    worker=$!
}
renew() {
    old=$worker
    spawn
    kill "$old"
}
trap renew HUP
trap 'kill "$worker"; exit 0' TERM
spawn
echo $$ >run/app.pid
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
"#;

/// A program that waits for ever, in one process, with its script among its arguments.
const WORKER: &str = "#!/usr/bin/tail -f\n";

const CHECK: &str = "#!/bin/sh\nkill -0 \"$(cat run/app.pid)\"\n";

/// What a release holds besides the tree: its revision, and the link to what is shared.
const OWN: &[&str] = &[".towline-revision", "run"];

/// Is everything to be tried?
fn is_all() -> bool {
    std::env::var("TOWLINE_CRASHES").is_ok_and(|word| word == "all")
}

/// What a tree holds: path, whether it is executable, content.
type Tree = BTreeMap<String, (bool, Vec<u8>)>;

/// An origin, and the trees of its revisions as git has them.
struct Source {
    origin: Origin,
    repo: Repo,
    trees: BTreeMap<String, Tree>,
    tip: Option<String>,
}

impl Source {
    fn new() -> Self {
        let origin = Origin::start();
        let repo = origin.repository("web.git");
        Self { origin, repo, trees: BTreeMap::new(), tip: None }
    }

    /// Commits the app with another check; no two commits have the same tree.
    fn commit(&mut self, check: &str) -> String {
        let number = self.trees.len();
        let release = format!("release {number}\n");
        let files = [
            ("towline.toml", RECIPE, false),
            ("bin/start", START, true),
            ("bin/manager", MANAGER, true),
            ("bin/worker", WORKER, true),
            ("bin/check", check, true),
            ("README", "An app.\n", false),
            ("lib/one", &"one\n".repeat(5_000), false),
            ("lib/deep/two", "two\n", false),
            ("lib/deep/empty", "", false),
            ("release.txt", &release, false),
        ];
        let files = files.map(|(path, text, is_program)| {
            (path.to_owned(), text.as_bytes().to_vec(), is_program)
        });
        let id = self.repo.commit(self.tip.as_deref(), &files);
        self.trees.insert(id.clone(), self.tree(&id));
        self.tip = Some(id.clone());
        id
    }

    fn good(&mut self) -> String {
        self.commit(CHECK)
    }

    fn bad(&mut self) -> String {
        self.commit("#!/bin/sh\necho 'it is bad'\nexit 1\n")
    }

    /// The tree of a revision, from git.
    fn tree(&self, revision: &str) -> Tree {
        let list = self.repo.git(&["ls-tree", "-r", revision], b"");
        let entry = |line: &str| {
            let (meta, path) = line.split_once('\t').expect("git's own format");
            let (mode, id) = (&meta[..6], meta.rsplit(' ').next().expect("git's own format"));
            // Read raw: what git prints for people may be trimmed.
            let content = Command::new("git")
                .args(["cat-file", "blob", id])
                .current_dir(self.repo.dir())
                .output()
                .expect("git is installed");
            assert!(content.status.success());
            (path.to_owned(), (mode == "100755", content.stdout))
        };
        let tree: Tree = list.lines().map(entry).collect();
        assert_eq!(tree.len(), 10, "{list}");
        tree
    }
}

/// One instance that is laid out as it was before, again and again.
struct Lane {
    /// Gone before the host's directory is removed.
    mount: Option<Mount>,
    host: Host,
    /// Where its directory's earlier states are.
    kept: tempfile::TempDir,
}

impl Lane {
    /// In memory where that is possible: what is synced there costs nothing.
    fn new(source: &Source) -> Self {
        let host = Host::new(&source.origin.url(&source.repo), "branch = \"main\"\n", "");
        let mount = geteuid().is_root().then(|| Mount::small(&host.dir(), 64)).flatten();
        Self::on(host, mount)
    }

    fn on(mut host: Host, mount: Option<Mount>) -> Self {
        host.lay_out();
        host.reconfigure("free_mib = 16", "free_mib = 0\nreleases = 2");
        Self { mount, host, kept: tempfile::tempdir().expect("a temp dir") }
    }

    fn dir(&self) -> PathBuf {
        self.host.dir()
    }

    /// Keeps the directory's state under a name.
    fn keep(&self, name: &str) {
        copy(&self.dir(), &self.kept.path().join(name));
    }

    /// Ends everything, and lays out a state that was kept; what served then is started.
    fn reset(&self, name: &str) {
        self.host.kill_app();
        for entry in fs::read_dir(self.dir()).expect("it is there") {
            let path = entry.expect("it is ours").path();
            let is_dir = fs::symlink_metadata(&path).expect("it is ours").is_dir();
            if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("ours");
        }
        copy(&self.kept.path().join(name), &self.dir());
        if self.host.current().is_some() {
            self.start_app();
        }
    }

    /// Starts what `current` leads to, as its agent has.
    fn start_app(&self) {
        drop(fs::remove_file(self.dir().join("shared/run/app.pid")));
        let current = self.dir().join("current");
        let mut start = Command::new("./bin/start");
        start.current_dir(&current).env("PWD", &current);
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if geteuid().is_root() {
            let user = User::from_name("nobody").ok().flatten().expect("every system has it");
            start.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        assert!(start.status().expect("it can be run").success());
        let pid_file = self.dir().join("shared/run/app.pid");
        while fs::read(&pid_file).map_or(0, |text| text.len()) == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Applies a target once; returns the exit code and the log.
    fn once(&self) -> (i32, String) {
        self.host.once()
    }

    /// Looks at the disk as it is: `current` leads to a whole release of one of these revisions, or is
    /// absent where that is allowed; so is every release that has a marker; and one app runs at most.
    ///
    /// # Errors
    ///
    /// What is wrong.
    fn holds(&self, source: &Source, may_be: &[&str], may_be_absent: bool) -> Result<(), String> {
        let current = self.host.current();
        match &current {
            None if may_be_absent => {}
            Some(current) if may_be.contains(&current.as_str()) => {}
            other => return Err(format!("current leads to {other:?}, not to one of {may_be:?}")),
        }
        if let Some(current) = &current {
            let marker = self.dir().join(format!("releases/{current}.json"));
            fs::metadata(&marker).map_err(|error| format!("{}: {error}", marker.display()))?;
        }
        is_whole(&self.dir(), source)?;
        match self.managers() {
            0 | 1 => Ok(()),
            count => Err(format!("{count} managers run")),
        }
    }

    /// Does the journal know what `current` leads to? A swap stands in it before it is made.
    ///
    /// # Errors
    ///
    /// What is wrong.
    fn is_journalled(&self) -> Result<(), String> {
        let Some(current) = self.host.current() else { return Ok(()) };
        let journal = fs::read(self.dir().join(".towline/journal.json")).unwrap_or_default();
        let journal: Value = serde_json::from_slice(&journal).unwrap_or(Value::Null);
        let proven = journal["proven"].as_array().into_iter().flatten();
        let mut known = proven.chain([&journal["swap"]["to"], &journal["swap"]["from"]]);
        if known.any(|known| *known == current) {
            return Ok(());
        }
        Err(format!("current leads to {current}, and the journal knows nothing of it: {journal:#}"))
    }

    /// How many managers run; what one has forked is not another one.
    fn managers(&self) -> usize {
        let all = self.host.processes("bin/manager");
        let is_forked = |pid: &&u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2));
            // Without a parent it has ended.
            parent.is_none_or(|parent| all.iter().any(|pid| pid.to_string() == parent))
        };
        all.iter().filter(|pid| !is_forked(pid)).count()
    }

    /// Has a plain agent go on, which is to end with this code and serve this revision.
    ///
    /// # Errors
    ///
    /// What is wrong.
    fn recovers(&self, source: &Source, serves: &str, code: i32) -> Result<(), String> {
        let (ended, log) = self.once();
        let fail = |what: String| Err(format!("{what}\n--- the agent that went on:\n{log}"));
        if ended != code {
            return fail(format!("the agent that goes on ends with {ended}, not {code}"));
        }
        if let Err(what) = self.holds(source, &[serves], false) {
            return fail(what);
        }
        let status = self.host.status()["status"].take();
        if status["serving"] != serves || status["health"] != "healthy" || status["phase"] != "idle"
        {
            return fail(format!("the status says {status:#}"));
        }
        let left = fs::read_dir(self.dir().join("staging")).map_err(|error| error.to_string())?;
        if left.count() > 0 {
            return fail("something is left in staging".to_owned());
        }
        let journal = fs::read(self.dir().join(".towline/journal.json")).unwrap_or_default();
        match serde_json::from_slice::<Value>(&journal) {
            Ok(journal) if journal["swap"].is_null() => {}
            other => return fail(format!("the journal is {other:?}")),
        }
        let home = self.dir().join("releases").join(serves);
        let homes = || -> Vec<PathBuf> {
            let workers = self.host.processes("bin/worker");
            workers
                .iter()
                .filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok())
                .collect()
        };
        // One look through `/proc` may miss a process while others come and go.
        let is_home = (0..20).any(|_| {
            let is_home = homes() == [home.clone()];
            if !is_home {
                thread::sleep(Duration::from_millis(50));
            }
            is_home
        });
        if !is_home {
            return fail(format!("the workers run in {:?}", homes()));
        }
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Before its file system goes.
        self.host.kill_app();
    }
}

/// Is every release below `dir` that has a marker what git has of its revision, byte for byte? Are marker
/// and journal readable?
fn is_whole(dir: &Path, source: &Source) -> Result<(), String> {
    fn said(path: &Path) -> impl FnOnce(std::io::Error) -> String {
        let path = path.display().to_string();
        move |error| format!("{path}: {error}")
    }
    let releases = dir.join("releases");
    let names: Vec<String> = match fs::read_dir(&releases) {
        Err(_) => Vec::new(),
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().display().to_string()))
            .collect::<Result<_, _>>()
            .map_err(said(&releases))?,
    };
    for name in names {
        let Some(revision) = name.strip_suffix(".json") else { continue };
        let path = releases.join(&name);
        let marker = fs::read(&path).map_err(said(&path))?;
        let marker: Value = serde_json::from_slice(&marker)
            .map_err(|error| format!("the marker {name} cannot be read: {error}"))?;
        if marker["revision"] != revision {
            return Err(format!("the marker {name} is {marker}"));
        }
        let release = releases.join(revision);
        let found = tree_of(&release).map_err(said(&release))?;
        let expected = source.trees.get(revision).ok_or("a release of no known revision")?;
        compare(revision, &found, expected)?;
        let own = fs::read_to_string(release.join(".towline-revision"));
        if own.as_deref().ok() != Some(format!("{revision}\n").as_str()) {
            return Err(format!("{revision} calls itself {own:?}"));
        }
        let link = fs::read_link(release.join("run")).map_err(said(&release))?;
        if !link.ends_with("shared/run") {
            return Err(format!("{revision} shares {}", link.display()));
        }
    }
    let journal = dir.join(".towline/journal.json");
    match fs::read(&journal) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes)
            .map(drop)
            .map_err(|error| format!("the journal cannot be read: {error}")),
        Err(_) => Ok(()),
    }
}

fn compare(revision: &str, found: &Tree, expected: &Tree) -> Result<(), String> {
    for (path, (mode, content)) in expected {
        match found.get(path) {
            None => return Err(format!("{revision} lacks {path}")),
            Some((_, other)) if other != content => {
                let (other, content) = (other.len(), content.len());
                return Err(format!("{path} of {revision}: {other} bytes are not the {content}"));
            }
            Some((other, _)) if other != mode => {
                return Err(format!("{path} of {revision} has the wrong mode"));
            }
            Some(_) => {}
        }
    }
    let more = found.keys().find(|path| !expected.contains_key(*path));
    more.map_or(Ok(()), |path| Err(format!("{revision} has {path}, which git has not")))
}

/// What lies below a directory, without what the agent puts there.
fn tree_of(dir: &Path) -> std::io::Result<Tree> {
    let mut tree = Tree::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let name = path.strip_prefix(dir).expect("it lies there").display().to_string();
            let meta = fs::symlink_metadata(&path)?;
            if OWN.contains(&name.as_str()) {
                continue;
            }
            if meta.is_dir() {
                dirs.push(path);
            } else {
                let is_program = meta.permissions().mode() & 0o777 == 0o755;
                tree.insert(name, (is_program, fs::read(&path)?));
            }
        }
    }
    Ok(tree)
}

/// Copies what a directory holds, with owners, times and holes.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it is ours");
    let done =
        Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status();
    assert!(done.expect("every system has cp").success());
}
