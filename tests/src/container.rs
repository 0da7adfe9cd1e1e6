//! A Debian of its own under a real systemd, in a container that shares this host's network.
//!
//! ```text
//!   <target>/towline-debian-<codename>     debootstrapped once, never written
//!        └ lower ─┐
//!   temp dir/upper ┴─► overlay ─► systemd-nspawn --boot      its own from boot to boot
//!   temp dir/srv ────► /srv                                  a real file system for releases
//! ```
//!
//! Only root can boot one. Who is not root, or has no debootstrap, is told on the terminal, past what a test
//! harness captures. Whatever was started is ended by its pid when the value is dropped, and the mount undone.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::host::{self, PATIENCE};

/// What tests need in it besides the base system.
const PACKAGES: &str = "systemd,systemd-sysv,procps,openssh-client,ca-certificates,python3-venv";

/// Who apps run as in it.
const USER: &str = "web:x:990:990::/srv:/usr/sbin/nologin";

/// How often a state is looked at: each look runs a program in the container.
const STEP: Duration = Duration::from_millis(50);

/// A container that runs, or may be booted once more.
#[derive(Debug)]
pub struct Container {
    dir: TempDir,
    nspawn: Option<Child>,
    leader: i32,
}

/// What a command in the container said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its output, and what it said of errors.
    pub text: String,
}

impl Container {
    /// Lays a container out, with the agent and its units as they are installed; nothing runs yet. `None`
    /// where none can be had here.
    #[must_use]
    pub fn lay_out() -> Option<Self> {
        let skip = |why: &str| {
            let test = thread::current().name().unwrap_or("a test").to_owned();
            writeln!(std::io::stderr(), "SKIPPED: {test} needs a container: {why}").ok();
        };
        if !geteuid().is_root() {
            skip("only root can boot one");
            return None;
        }
        let base = match debian() {
            Ok(base) => base,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        let dir =
            tempfile::Builder::new().prefix("towline-container-").tempdir().expect("a temp dir");
        let container = Self { dir, nspawn: None, leader: 0 };
        for name in ["upper", "work", "root", "srv"] {
            let path = container.dir.path().join(name);
            fs::create_dir(&path).expect("a new directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let at = |name: &str| container.dir.path().join(name).display().to_string();
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", base.display(), at("upper"), at("work"));
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "-o", &layers, "overlay", &at("root")])
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "an overlay is mounted");
        container.install();
        Some(container)
    }

    /// Puts the agent where its package does, and the app's user beside root.
    fn install(&self) {
        let opt = self.path("/opt/towline");
        fs::create_dir_all(&opt).expect("a new directory");
        self.replace_agent();
        symlink("/opt/towline/towline-agent", self.path("/usr/bin/towline-agent"))
            .expect("a new name");
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ami-snippets/units");
        for entry in fs::read_dir(units).expect("they are in the source tree").flatten() {
            let to = self.path("/etc/systemd/system").join(entry.file_name());
            fs::copy(entry.path(), to).expect("a new file");
        }
        fs::create_dir(self.path("/etc/towline")).expect("a new directory");
        for (file, line) in [("/etc/passwd", USER), ("/etc/group", "web:x:990:")] {
            let mut file = File::options().append(true).open(self.path(file)).expect("it is there");
            writeln!(file, "{line}").expect("it is ours");
        }
    }

    /// Puts the agent there anew, as an upgrade does: by another file of the same name.
    pub fn replace_agent(&self) {
        let place = self.path("/opt/towline/towline-agent");
        let new = place.with_extension("new");
        fs::copy(host::agent(), &new).expect("the agent was built");
        fs::rename(new, place).expect("the same directory");
    }

    /// A path of the container as this host has it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/srv") {
            Some(rest) => self.dir.path().join("srv").join(rest.trim_start_matches('/')),
            None => self.dir.path().join("root").join(path.trim_start_matches('/')),
        }
    }

    /// Writes a file in the container, with the directories above it.
    pub fn write(&self, path: &str, text: &str) {
        let place = self.path(path);
        fs::create_dir_all(place.parent().expect("it has a directory")).expect("it is ours");
        fs::write(place, text).expect("it is ours");
    }

    /// Has a unit start with the next boot.
    pub fn enable(&self, template: &str, unit: &str) {
        let wants = self.path("/etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants).expect("it is ours");
        symlink(format!("/etc/systemd/system/{template}"), wants.join(unit)).expect("a new name");
    }

    /// Boots it, and returns once its systemd answers: units may still be on their way up.
    pub fn boot(&mut self) {
        assert!(self.nspawn.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("console"))
            .expect("a log");
        let srv = format!("--bind={}:/srv", self.dir.path().join("srv").display());
        let root = self.dir.path().join("root");
        let mut command = Command::new("systemd-nspawn");
        command
            .args(["--quiet", "--register=no", "--keep-unit", "--boot", "--link-journal=no"])
            .args(["--resolv-conf=bind-host", "--timezone=off", "--bind-ro=/usr/bin/node", &srv])
            .arg("--directory")
            .arg(root);
        // Where a registry is reached by way of somebody with a certificate of his own.
        if Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
            command.arg("--bind-ro=/etc/ssl/certs/ca-certificates.crt");
        }
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log);
        let nspawn = command.spawn().expect("systemd-container is installed");
        let pid = nspawn.id();
        self.nspawn = Some(nspawn);
        // The first child may be one that only prepares the way, and ends.
        self.leader = self.await_some("its systemd", |own| {
            let leader = child_of(pid)?;
            let said = own.run_by(leader, &["systemctl", "is-system-running"]);
            let is_up =
                ["initializing", "starting", "running", "degraded"].contains(&said.text.trim());
            is_up.then_some(leader)
        });
    }

    /// Runs a program in it.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Said {
        self.run_by(self.leader, words)
    }

    /// Runs a program where the process `leader` lives.
    fn run_by(&self, leader: i32, words: &[&str]) -> Said {
        let output = Command::new("nsenter")
            .args(["--target", &leader.to_string(), "--all", "--", "/usr/bin/env", "-i"])
            .args([
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
            ])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter is installed");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Said { code: output.status.code().unwrap_or(-1), text }
    }

    /// Runs a program in it that is to succeed, and returns what it printed.
    pub fn done(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, 0, "{words:?}: {}\n{}", said.text, self.journal());
        said.text
    }

    /// One property of a unit.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let said = self.run(&["systemctl", "show", "--value", "--property", name, "--", unit]);
        said.text.trim().to_owned()
    }

    /// Waits until a unit has this property.
    pub fn await_property(&self, unit: &str, name: &str, value: &str) {
        self.await_some(&format!("{unit} to have {name}={value}"), |own| {
            (own.property(unit, name) == value).then_some(())
        });
    }

    /// Waits until what a program says is as wanted.
    pub fn await_said(&self, what: &str, words: &[&str], is_it: impl Fn(&Said) -> bool) -> Said {
        self.await_some(what, |own| Some(own.run(words)).filter(|said| is_it(said)))
    }

    /// Waits until there is something.
    pub fn await_some<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if let Some(found) = look(self) {
                return found;
            }
            thread::sleep(STEP);
        }
        panic!("waited in vain for {what}\n{}", self.journal());
    }

    /// The end of its journal.
    #[must_use]
    pub fn journal(&self) -> String {
        let words = ["journalctl", "--no-pager", "--output=short-monotonic", "--lines=150"];
        let console = fs::read_to_string(self.dir.path().join("console")).unwrap_or_default();
        let end: Vec<&str> = console.lines().rev().take(10).collect();
        format!("journal:\n{}\nconsole, backwards:\n{}", self.run(&words).text, end.join("\n"))
    }

    /// Shuts it down; it may be booted again.
    pub fn power_off(&mut self) {
        let Some(mut nspawn) = self.nspawn.take() else { return };
        // systemd(1): SIGRTMIN+4 is a power-off.
        let number = (nix::libc::SIGRTMIN() + 4).to_string();
        let number = format!("-{number}");
        drop(Command::new("kill").args([&number, &self.leader.to_string()]).status());
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if nspawn.try_wait().is_ok_and(|end| end.is_some()) {
                return;
            }
            thread::sleep(STEP);
        }
        drop(nspawn.kill());
        drop(nspawn.wait());
        panic!("it did not shut down");
    }

    /// Ends it at once, as a power cut would.
    pub fn cut(&mut self) {
        if let Some(mut nspawn) = self.nspawn.take() {
            // With its first process all of it ends.
            kill(Pid::from_raw(self.leader), Signal::SIGKILL).ok();
            drop(nspawn.wait());
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.cut();
        let root = self.dir.path().join("root");
        drop(Command::new("umount").args(["--recursive", "--lazy"]).arg(root).status());
    }
}

/// The child of a process that has one.
fn child_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The base system, made where it is missing; whoever comes second waits for it.
fn debian() -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    // Of the same release as this host, whose libraries the agent was linked with.
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.ok_or("the name of this system's release is not known")?;
    let beside = host::agent();
    let target = beside.parent().and_then(Path::parent).unwrap_or(Path::new("/tmp"));
    let place = target.join(format!("towline-debian-{name}"));
    let lock = File::create(place.with_extension("lock")).map_err(|error| error.to_string())?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string())?;
    if place.is_dir() {
        return Ok(place);
    }
    let draft = place.with_extension("new");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(|error| error.to_string())?;
    }
    let made = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), name])
        .arg(&draft)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("debootstrap ended with {status}")),
        Err(error) => return Err(format!("debootstrap: {error}")),
    }
    fs::rename(&draft, &place).map_err(|error| error.to_string())?;
    Ok(place)
}
