//! Dependencies: installed once for each key, sealed, and linked into every release that has it.
//!
//! ```text
//!   inputs, command, runtime's output, platform ──► key ──► dependencies/<key>/<outputs>
//!        staging/install/   only the inputs; the command runs here, with a throwaway HOME
//!              └─ checked and sealed ─► moved to its place ─► marked ─► linked into the release
//! ```
//!
//! Invariants
//! - The command never sees the release, nor a tree that is in use.
//! - A tree counts once its marker is there, and does not change afterwards: it is root's and
//!   read-only where the agent is root.
//! - A release gets hard links where the agent is root and the trees are sealed, and copies
//!   elsewhere: a file that the app may write must not be shared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{Install, RelativePath};

use crate::process::{self, Environment, Job, ProcessError, Remains, RunAs};
use crate::release::{self, Barrier, DiskError, MARKER_VERSION, Store, failed};

mod tree;

pub use tree::TreeFault;

/// How long the runtime's command may take: it prints a version.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// What an install is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Names the tree: 64 hexadecimal digits.
    pub digest: String,
    /// What the runtime's command printed.
    pub runtime: Option<String>,
}

/// Why dependencies could not be had.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The runtime's command failed.
    #[error("could not learn the runtime's version")]
    Runtime(#[source] ProcessError),
    /// The install command failed.
    #[error("could not install the dependencies")]
    Command(#[source] ProcessError),
    /// The command succeeded and an output is not there.
    #[error("the install command made no {output}, which install.outputs names")]
    NoOutput {
        /// The output.
        output: RelativePath,
    },
    /// A stored tree has lost something.
    #[error("the stored dependencies in {} were not complete, and are thrown away", place.display())]
    Incomplete {
        /// Where they were.
        place: PathBuf,
    },
    /// The release's own tree holds an output.
    #[error("{output} is in the repository, and install.outputs names it too")]
    InTree {
        /// The output.
        output: RelativePath,
    },
    /// The tree holds what must not be linked into a release.
    #[error("the installed tree is refused")]
    Refused(#[source] TreeFault),
    /// Writing failed.
    #[error("could not store the dependencies")]
    Disk(#[from] DiskError),
}

impl InstallError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            InstallError::Runtime(source) | InstallError::Command(source) => source.hint(),
            InstallError::NoOutput { .. } => {
                Some("correct install.outputs, or make the command create it".to_owned())
            }
            InstallError::InTree { output } => {
                Some(format!("remove it from the repository: git rm -r --cached {output}"))
            }
            InstallError::Refused(source) => source.hint(),
            InstallError::Incomplete { .. } => {
                Some("nothing is to be done: the next attempt installs them anew".to_owned())
            }
            InstallError::Disk(source) => source.hint(),
        }
    }

    /// Is the revision to blame, so that trying again would end in the same way?
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            InstallError::NoOutput { .. } | InstallError::InTree { .. } => true,
            InstallError::Refused(source) => source.is_refusal(),
            InstallError::Runtime(_)
            | InstallError::Command(_)
            | InstallError::Incomplete { .. }
            | InstallError::Disk(_) => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    command: String,
    runtime: Option<String>,
    /// How many files, directories and links there are; absent in markers of before it was counted.
    entries: Option<u64>,
}

/// Computes the key of a release's dependencies from its checked-out tree.
///
/// # Errors
///
/// [`InstallError::Runtime`], and [`InstallError::Disk`] where an input cannot be read.
pub async fn key(
    install: &Install,
    tree: &Path,
    scratch: &Path,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<Key, InstallError> {
    let runtime = match &install.runtime {
        None => None,
        Some(command) => {
            let job = Job {
                label: "runtime",
                command,
                cwd: scratch,
                run_as,
                extra: home(scratch, run_as)?,
                deadline: RUNTIME_DEADLINE,
                capture: true,
                remains: Remains::End,
            };
            let output = process::run(&job, stop).await.map_err(InstallError::Runtime)?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
    };
    let mut inputs = BTreeMap::new();
    for input in &install.inputs {
        tree::contents(tree, input, &mut inputs)?;
    }
    let digest = release::digest(|hash| {
        put(hash, "platform", platform().as_bytes());
        put(hash, "command", install.command.program.as_bytes());
        for arg in &install.command.args {
            put(hash, "argument", arg.as_bytes());
        }
        for output in &install.outputs {
            put(hash, "output", output.as_str().as_bytes());
        }
        put(hash, "runtime", runtime.as_deref().unwrap_or_default().as_bytes());
        for (path, (mode, content)) in &inputs {
            put(hash, "input", path.as_bytes());
            put(hash, "mode", &mode.to_be_bytes());
            put(hash, "content", content);
        }
    });
    Ok(Key { digest, runtime })
}

/// Puts one labelled value, with its length, so that no two lists of values look alike.
fn put(hash: &mut Sha256, label: &str, value: &[u8]) {
    for part in [label.as_bytes(), value] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
}

/// What compiled code hangs on besides the runtime: the processor, and the system's libraries.
fn platform() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let wanted = |line: &&str| line.starts_with("ID=") || line.starts_with("VERSION_ID=");
    let system: Vec<&str> = release.lines().filter(wanted).collect();
    format!("{} {} {}", std::env::consts::ARCH, std::env::consts::OS, system.join(" "))
}

/// Is the tree of this key complete?
#[must_use]
pub fn is_complete(store: &Store, key: &Key) -> bool {
    let place = store.dependencies().join(&key.digest);
    place.is_dir() && release::marker_path(&place).is_file()
}

/// Runs the install command of the release in `tree`; what it made lies in `scratch` afterwards, an
/// empty directory of the store's staging area before. The barrier covers what was written.
///
/// # Errors
///
/// See [`InstallError`].
pub async fn install(
    store: &Store,
    install: &Install,
    tree: &Path,
    scratch: &Path,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<Barrier, InstallError> {
    let barrier = Barrier::open(store.dir()).map_err(failed("open", store.dir()))?;
    let work = work(scratch);
    // Nobody else gets in while it is laid out.
    fs::set_permissions(scratch, fs::Permissions::from_mode(0o700))
        .map_err(failed("set the mode of", scratch))?;
    own_dir(&work, run_as)?;
    for input in &install.inputs {
        tree::copy_input(tree, input, &work, run_as.account.as_ref())?;
    }
    fs::set_permissions(scratch, fs::Permissions::from_mode(0o755))
        .map_err(failed("set the mode of", scratch))?;
    let mut extra = home(scratch, run_as)?;
    extra.extend(package_cache(store, run_as)?);
    let job = Job {
        label: "install",
        command: &install.command,
        cwd: &work,
        run_as,
        extra,
        deadline: install.timeout,
        capture: false,
        remains: Remains::End,
    };
    process::run(&job, stop).await.map_err(InstallError::Command)?;
    Ok(barrier)
}

/// Where the command runs.
fn work(scratch: &Path) -> PathBuf {
    scratch.join("install")
}

/// What an install made, on its way into the store and into a release. Its trees may hold a hundred
/// thousand files, so this blocks; `stop` is looked at with each.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// Where trees are kept.
    pub store: Store,
    /// What made them.
    pub install: Install,
    /// What they are known by.
    pub key: Key,
    /// Are trees made root's and read-only, so that their files can be shared?
    pub is_sealed: bool,
    /// Ends the work.
    pub stop: CancellationToken,
}

impl Outputs {
    /// Checks what [`install`] has made in `scratch`, and stores it.
    ///
    /// # Errors
    ///
    /// See [`InstallError`]; nothing is stored then.
    pub fn keep(&self, scratch: &Path, barrier: Barrier) -> Result<(), InstallError> {
        let (store, work) = (&self.store, work(scratch));
        let sealed = scratch.join("sealed");
        fs::create_dir(&sealed).map_err(failed("create", &sealed))?;
        fs::set_permissions(&sealed, fs::Permissions::from_mode(0o755))
            .map_err(failed("set the mode of", &sealed))?;
        for output in &self.install.outputs {
            let made = work.join(output.as_str());
            if fs::symlink_metadata(&made).is_err() {
                return Err(InstallError::NoOutput { output: output.clone() });
            }
            tree::check(&work, &made, &store.staging(), &self.stop)
                .map_err(InstallError::Refused)?;
            let place = sealed.join(output.as_str());
            make_parents(&sealed, output)?;
            fs::rename(&made, &place).map_err(failed("move a tree to", &place))?;
            // A file that has a name elsewhere too could be changed by it, and would be sealed there.
            tree::separate(&place, &self.stop).map_err(failed("copy", &place))?;
            if self.is_sealed {
                tree::seal(&place, &self.stop).map_err(failed("seal", &place))?;
            }
        }
        barrier.sync(&sealed).map_err(failed("make durable", &sealed))?;
        let place = store.dependencies().join(&self.key.digest);
        release::discard(&place)?;
        let outputs = self.install.outputs.iter().map(|output| sealed.join(output.as_str()));
        let entries = Some(outputs.map(|output| 1 + release::measure(&output).1).sum());
        let (command, runtime) = (self.install.command.to_string(), self.key.runtime.clone());
        let marker = Marker { version: MARKER_VERSION, command, runtime, entries };
        release::complete(&sealed, &place, &marker)?;
        Ok(())
    }

    /// Links the stored outputs into the release in `tree`, or copies them, for which there must be
    /// space: `kept_mib` stay free.
    ///
    /// # Errors
    ///
    /// [`InstallError::InTree`] where the repository holds an output itself.
    pub fn link(&self, tree: &Path, kept_mib: u64) -> Result<(), InstallError> {
        let place = self.store.dependencies().join(&self.key.digest);
        if !self.is_sealed {
            let (bytes, entries) = release::measure(&place);
            self.store.check_space(bytes, entries, kept_mib)?;
        }
        let mut entries = 0;
        for output in &self.install.outputs {
            let linked = tree.join(output.as_str());
            if fs::symlink_metadata(&linked).is_ok() {
                return Err(InstallError::InTree { output: output.clone() });
            }
            make_parents(tree, output)?;
            match tree::link(&place.join(output.as_str()), &linked, self.is_sealed, &self.stop) {
                Ok(count) => entries += count,
                Err(error) if absent(&error) => return self.give_up(&place),
                Err(error) => return Err(failed("link dependencies into", &linked)(error).into()),
            }
        }
        let marker = fs::read(release::marker_path(&place)).unwrap_or_default();
        match serde_json::from_slice::<Marker>(&marker) {
            Ok(Marker { entries: Some(stored), .. }) if stored != entries => self.give_up(&place),
            _ => Ok(()),
        }
    }

    /// Somebody has taken something out of a stored tree: it is thrown away, and made anew next time.
    fn give_up(&self, place: &Path) -> Result<(), InstallError> {
        release::discard(place)?;
        Err(InstallError::Incomplete { place: place.to_owned() })
    }
}

fn make_parents(root: &Path, path: &RelativePath) -> Result<(), DiskError> {
    let Some(parent) = Path::new(path.as_str()).parent() else { return Ok(()) };
    let dir = root.join(parent);
    fs::create_dir_all(&dir).map_err(failed("create", &dir))
}

/// A home for one command, that nothing outlives.
fn home(scratch: &Path, run_as: &RunAs) -> Result<Environment, DiskError> {
    let home = scratch.join("home");
    if !home.exists() {
        own_dir(&home, run_as)?;
    }
    Ok(Environment::from([("HOME".to_owned(), home.display().to_string())]))
}

/// Where package managers keep what they have downloaded, from one install to the next. They check
/// what they find there against the lock file's digests.
fn package_cache(store: &Store, run_as: &RunAs) -> Result<Environment, DiskError> {
    let cache = store.package_cache();
    if !cache.exists() {
        own_dir(&cache, run_as)?;
    }
    let under = |name: &str, dir: &str| (name.to_owned(), cache.join(dir).display().to_string());
    Ok(Environment::from([
        under("XDG_CACHE_HOME", "xdg"),
        under("npm_config_cache", "npm"),
        under("PIP_CACHE_DIR", "pip"),
    ]))
}

/// Makes a directory that the app's user may write.
fn own_dir(dir: &Path, run_as: &RunAs) -> Result<(), DiskError> {
    fs::DirBuilder::new().mode(0o755).create(dir).map_err(failed("create", dir))?;
    match &run_as.account {
        Some(account) => std::os::unix::fs::lchown(dir, Some(account.uid), Some(account.gid))
            .map_err(failed("give to the app's user", dir)),
        None => Ok(()),
    }
}

/// Empties the package managers' caches once they are larger than `max_mib`.
///
/// # Errors
///
/// Whatever cannot be removed.
pub fn bound_package_cache(store: &Store, max_mib: u64) -> Result<bool, DiskError> {
    let cache = store.package_cache();
    if release::size_bytes(&cache) <= max_mib.saturating_mul(1 << 20) {
        return Ok(false);
    }
    release::remove_tree(&cache).map_err(failed("remove", &cache))?;
    Ok(true)
}

/// Tells apart what cannot be read from what is not there.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use towline_protocol::recipe::Recipe;

    fn outputs(dir: &Path) -> Outputs {
        let text = "[install]\ncommand = [\"true\"]\ninputs = [\"lock\"]\noutputs = [\"made\"]\n\
                    [manager]\npid_file = \"/run/x.pid\"\nreload = \"SIGHUP\"\nstart = [\"./start\"]\n\
                    [health]\ntcp = \"127.0.0.1:1\"\n";
        let install = Recipe::parse(text).unwrap().install.unwrap();
        let store = Store::new(dir);
        store.prepare().unwrap();
        let key = Key { digest: "a".repeat(64), runtime: None };
        Outputs { store, install, key, is_sealed: false, stop: CancellationToken::new() }
    }

    /// Stores a tree of one file.
    fn keep(outputs: &Outputs) -> Result<(), InstallError> {
        let scratch = outputs.store.staging().join("install");
        release::remove_tree(&scratch).unwrap();
        fs::create_dir_all(work(&scratch).join("made")).unwrap();
        File::create(work(&scratch).join("made/x")).unwrap().set_len(1).unwrap();
        outputs.keep(&scratch, Barrier::open(outputs.store.dir()).unwrap())
    }

    #[test]
    fn a_copy_of_dependencies_is_made_where_there_is_space_for_it_only() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(dir.path());
        keep(&outputs).unwrap();
        let tree = outputs.store.staging().join("release");
        fs::create_dir(&tree).unwrap();
        let outcome = outputs.link(&tree, u64::MAX >> 21);
        assert!(matches!(outcome, Err(InstallError::Disk(DiskError::Space { .. }))), "{outcome:?}");
        assert!(!tree.join("made").exists(), "nothing was written");
        outputs.link(&tree, 0).unwrap();
        assert!(tree.join("made/x").exists());
    }

    #[test]
    fn what_is_stopped_ends_before_its_next_file() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = outputs(dir.path());
        keep(&outputs).unwrap();
        outputs.stop.cancel();
        let outcome = outputs.link(&outputs.store.staging(), 0);
        assert!(matches!(outcome, Err(InstallError::Disk(_))), "{outcome:?}");
        assert!(!outputs.store.staging().join("made").exists());
        let error = keep(&outputs).unwrap_err();
        assert!(!error.is_refusal(), "nothing was learned about the tree: {error}");
        assert!(tree::seal(dir.path(), &outputs.stop).is_err());
    }
}
