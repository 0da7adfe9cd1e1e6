//! Dependencies and builds: made once for each key, sealed, and linked into every release that has it.
//!
//! ```text
//!   install: inputs, command, runtime's output, platform ─┐
//!   build:   subtree, command, runtime's output, platform,├─► key ──► dependencies/<key>/<outputs>
//!            the install's key ───────────────────────────┘
//!        staging/install/   only the inputs; the command runs here, with a throwaway HOME
//!        staging/build/     a copy of the release's tree, with the dependencies in place; likewise
//!              └─ checked and sealed ─► moved to its place ─► marked ─► linked into the release
//!        place = "by-key":  the command runs in dependencies/<key> itself, and is checked, sealed and
//!                           marked there; the release has symbolic links to the outputs
//! ```
//!
//! Invariants
//! - The command never sees the release, nor may it write a tree that is in use: in a build's copy the
//!   folders of the dependencies are its own, and their files are root's and read-only, so that it can put
//!   files beside them and never change them.
//! - A tree counts once its marker is there, and does not change afterwards: it is root's and
//!   read-only where the agent is root. What has no marker is thrown away at the next start.
//! - A release gets hard links where the agent is root and the trees are sealed, and copies
//!   elsewhere: a file that the app may write must not be shared.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{Build, CommandLine, Install, Place, RelativePath};

use crate::process::{self, Environment, Job, ProcessError, Remains, RunAs};
use crate::release::{self, Barrier, DiskError, Store, failed};

mod outputs;
mod tree;

pub use outputs::Outputs;
pub use tree::TreeFault;

/// How long the runtime's command may take: it prints a version.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// What an install or a build is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Names the tree: 64 hexadecimal digits.
    pub digest: String,
    /// What the runtime's command printed.
    pub runtime: Option<String>,
}

/// Which table of a recipe makes a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `[install]`
    Install,
    /// `[build]`
    Build,
}

impl Step {
    /// The table's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Install => "install",
            Step::Build => "build",
        }
    }

    fn aim(self) -> &'static str {
        match self {
            Step::Install => "install the dependencies",
            Step::Build => "build the release",
        }
    }
}

/// What makes a tree, as the recipe has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Making {
    /// Which table it is.
    pub step: Step,
    /// What is run.
    pub command: CommandLine,
    /// What the release gets of it.
    pub outputs: Vec<RelativePath>,
    /// How long the command may take.
    pub timeout: Duration,
    /// Where the outputs lie.
    pub place: Place,
}

impl From<&Install> for Making {
    fn from(install: &Install) -> Self {
        let Install { command, outputs, timeout, place, .. } = install.clone();
        Self { step: Step::Install, command, outputs, timeout, place }
    }
}

impl From<&Build> for Making {
    fn from(build: &Build) -> Self {
        let Build { command, outputs, timeout, .. } = build.clone();
        Self { step: Step::Build, command, outputs, timeout, place: Place::Release }
    }
}

/// Why dependencies, or what is built, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The runtime's command failed.
    #[error("could not learn the runtime's version")]
    Runtime(#[source] ProcessError),
    /// The command failed.
    #[error("could not {}", step.aim())]
    Command {
        /// Whose command.
        step: Step,
        /// How.
        source: ProcessError,
    },
    /// The command succeeded and an output is not there.
    #[error("the {} command made no {output}, which {}.outputs names", step.as_str(), step.as_str())]
    NoOutput {
        /// Whose command.
        step: Step,
        /// The output.
        output: RelativePath,
    },
    /// A stored tree has lost something.
    #[error("what was made in {} was not complete, and is thrown away", place.display())]
    Incomplete {
        /// Where it was.
        place: PathBuf,
    },
    /// A stored tree has lost something, and releases have links to it.
    #[error("what was made in {} is not complete any more", place.display())]
    Broken {
        /// Where it is.
        place: PathBuf,
    },
    /// The release's own tree holds an output.
    #[error("{output} is in the repository, and {}.outputs names it too", step.as_str())]
    InTree {
        /// Whose output.
        step: Step,
        /// The output.
        output: RelativePath,
    },
    /// The tree holds what must not be linked into a release.
    #[error("what the {} command made is refused", step.as_str())]
    Refused {
        /// Whose command.
        step: Step,
        /// What it holds.
        source: TreeFault,
    },
    /// Writing failed.
    #[error("could not store what was made for the release")]
    Disk(#[from] DiskError),
}

impl InstallError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            InstallError::Runtime(source) | InstallError::Command { source, .. } => source.hint(),
            InstallError::NoOutput { step, .. } => {
                Some(format!("correct {}.outputs, or make the command create it", step.as_str()))
            }
            InstallError::InTree { output, .. } => {
                Some(format!("remove it from the repository: git rm -r --cached {output}"))
            }
            InstallError::Refused { source, .. } => source.hint(),
            InstallError::Incomplete { .. } => {
                Some("nothing is to be done: the next attempt makes it anew".to_owned())
            }
            InstallError::Broken { place } => Some(format!(
                "releases link to it, so that it is not thrown away: put back what is missing, or release \
                 a commit with other inputs and remove {} then",
                place.display()
            )),
            InstallError::Disk(source) => source.hint(),
        }
    }

    /// Is the revision to blame, so that trying again would end in the same way?
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            InstallError::NoOutput { .. } | InstallError::InTree { .. } => true,
            InstallError::Refused { source, .. } => source.is_refusal(),
            InstallError::Runtime(_)
            | InstallError::Command { .. }
            | InstallError::Incomplete { .. }
            | InstallError::Broken { .. }
            | InstallError::Disk(_) => false,
        }
    }

    /// Is it about what is on disk here?
    #[must_use]
    pub fn is_about_disk(&self) -> bool {
        matches!(
            self,
            InstallError::Disk(_) | InstallError::Incomplete { .. } | InstallError::Broken { .. }
        )
    }
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
    let runtime = runtime(install.runtime.as_ref(), scratch, run_as, stop).await?;
    let (own, dir) = (install.clone(), tree.to_owned());
    // Inputs may be large: the runtime's thread has other things to do.
    let made = tokio::task::spawn_blocking(move || digest_of(&own, &dir, runtime)).await;
    Ok(made.map_err(|error| failed("read", tree)(error.into()))??)
}

/// Hashes the inputs of an install; blocks.
fn digest_of(install: &Install, tree: &Path, runtime: Option<String>) -> Result<Key, DiskError> {
    let mut inputs = BTreeMap::new();
    for input in &install.inputs {
        tree::contents(tree, input, &mut inputs)?;
    }
    let mut read = Ok(());
    let digest = release::digest(|hash| {
        put_command(hash, &install.command, &install.outputs, runtime.as_deref());
        read = put_inputs(hash, &inputs);
        // A tree that may be moved must not be taken for one that may not.
        if install.place == Place::ByKey {
            put(hash, "place", b"by-key");
        }
    });
    read.map(|()| Key { digest, runtime })
}

/// Puts the inputs, a file piece by piece.
fn put_inputs(
    hash: &mut Sha256,
    inputs: &BTreeMap<String, (u32, PathBuf, tree::Content)>,
) -> Result<(), DiskError> {
    for (name, (mode, path, content)) in inputs {
        put(hash, "input", name.as_bytes());
        put(hash, "mode", &mode.to_be_bytes());
        match content {
            tree::Content::Link(target) => put(hash, "content", target),
            tree::Content::File(length) => {
                // As `put` does it.
                hash.update(("content".len() as u64).to_be_bytes());
                hash.update(b"content");
                hash.update(length.to_be_bytes());
                tree::feed(path, *length, |piece| hash.update(piece))?;
            }
        }
    }
    Ok(())
}

/// Computes the key of what is built of a tree.
///
/// - `subtree`: the tree's id in git, which stands for all of its files.
/// - `installed`: the key of the dependencies that the build sees.
///
/// # Errors
///
/// [`InstallError::Runtime`].
pub async fn build_key(
    build: &Build,
    subtree: &str,
    installed: Option<&Key>,
    scratch: &Path,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<Key, InstallError> {
    let runtime = runtime(build.runtime.as_ref(), scratch, run_as, stop).await?;
    let digest = release::digest(|hash| {
        put_command(hash, &build.command, &build.outputs, runtime.as_deref());
        put(hash, "subtree", subtree.as_bytes());
        put(hash, "installed", installed.map_or("", |key| &key.digest).as_bytes());
    });
    Ok(Key { digest, runtime })
}

/// Runs a runtime's command, and returns what it printed.
async fn runtime(
    command: Option<&CommandLine>,
    scratch: &Path,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<Option<String>, InstallError> {
    let Some(command) = command else { return Ok(None) };
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
    Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

fn put_command(
    hash: &mut Sha256,
    command: &CommandLine,
    outputs: &[RelativePath],
    runtime: Option<&str>,
) {
    put(hash, "platform", platform().as_bytes());
    put(hash, "command", command.program.as_bytes());
    for arg in &command.args {
        put(hash, "argument", arg.as_bytes());
    }
    for output in outputs {
        put(hash, "output", output.as_str().as_bytes());
    }
    put(hash, "runtime", runtime.unwrap_or_default().as_bytes());
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

/// Lays out where an install command runs: only its inputs are there. The barrier covers what is written
/// from then on.
///
/// # Errors
///
/// [`InstallError::Disk`].
pub fn lay_out_install(
    outputs: &Outputs,
    install: &Install,
    tree: &Path,
    scratch: &Path,
    run_as: &RunAs,
) -> Result<Barrier, InstallError> {
    let dir = outputs.store.dir();
    let barrier = Barrier::open(dir).map_err(failed("open", dir))?;
    let work = outputs.work(scratch);
    // By its key it may be there, half made.
    release::discard(&work)?;
    make_dir(&work)?;
    for input in &install.inputs {
        tree::copy_input(tree, input, &work)?;
    }
    tree::give(&work, run_as.account.as_ref())?;
    Ok(barrier)
}

/// Lays out where a build runs: a copy of the release's tree, with what was installed linked into it.
///
/// Blocks, for as long as it takes to copy the tree.
///
/// # Errors
///
/// See [`InstallError`].
pub fn lay_out_build(
    outputs: &Outputs,
    installed: Option<&Outputs>,
    tree: &Path,
    scratch: &Path,
    run_as: &RunAs,
    kept_mib: u64,
) -> Result<Barrier, InstallError> {
    let dir = outputs.store.dir();
    let barrier = Barrier::open(dir).map_err(failed("open", dir))?;
    let work = outputs.work(scratch);
    make_dir(&work)?;
    let all = RelativePath::new(".").map_err(|_| io::ErrorKind::InvalidInput.into());
    tree::copy_input(tree, &all.map_err(failed("copy", tree))?, &work)?;
    if let Some(installed) = installed {
        installed.link(&work, kept_mib)?;
    }
    tree::give(&work, run_as.account.as_ref())?;
    Ok(barrier)
}

/// Runs the command of an install or a build where it was laid out.
///
/// # Errors
///
/// See [`InstallError`].
pub async fn run(
    outputs: &Outputs,
    scratch: &Path,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<(), InstallError> {
    let Making { step, command, timeout, .. } = &outputs.making;
    let mut extra = home(scratch, run_as)?;
    extra.extend(package_cache(&outputs.store, run_as)?);
    let job = Job {
        label: step.as_str(),
        command,
        cwd: &outputs.work(scratch),
        run_as,
        extra,
        deadline: *timeout,
        capture: false,
        remains: Remains::End,
    };
    let ran = process::run(&job, stop).await;
    ran.map(|_| ()).map_err(|source| InstallError::Command { step: *step, source })
}

fn make_dir(dir: &Path) -> Result<(), DiskError> {
    fs::DirBuilder::new().mode(0o755).create(dir).map_err(failed("create", dir))
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
    make_dir(dir)?;
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

    #[test]
    fn a_file_that_is_hashed_in_pieces_has_the_key_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        fs::write(dir.path().join("lock"), &bytes).unwrap();
        std::os::unix::fs::symlink("lock", dir.path().join("link")).unwrap();
        let mut inputs = BTreeMap::new();
        tree::contents(dir.path(), &RelativePath::new(".").unwrap(), &mut inputs).unwrap();
        assert_eq!(inputs.len(), 2, "a file and a link");
        let read = release::digest(|hash| put_inputs(hash, &inputs).unwrap());
        let whole = release::digest(|hash| {
            for (name, (mode, _, _)) in &inputs {
                let content = if name.ends_with("link") { &b"lock"[..] } else { &bytes };
                put(hash, "input", name.as_bytes());
                put(hash, "mode", &mode.to_be_bytes());
                put(hash, "content", content);
            }
        });
        assert_eq!(read, whole);
        // One that changes meanwhile is told, and has no key.
        fs::write(dir.path().join("lock"), "shorter").unwrap();
        release::digest(|hash| {
            let error = put_inputs(hash, &inputs).unwrap_err();
            assert!(crate::error::chain(&error).contains("length changed"), "{error}");
        });
    }
}
