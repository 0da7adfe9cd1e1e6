//! What is on disk: releases, their markers, `current`, and the journal. The only durable state.
//!
//! ```text
//!   <dir>/current ─► releases/<revision>       what serves; replaced by rename only
//!         releases/<revision>/                 the tree, with `.towline-revision`
//!         releases/<revision>.json             its marker, written last: complete or absent
//!         dependencies/<key>/, <key>.json      likewise
//!         shared/…                             what outlives releases
//!         log/app.log, app.log.1               what `start` printed, and what was before that
//!         staging/, cache/                     work in progress; what package managers downloaded
//!         .towline/                            the lock, the journal, the git cache; 0700
//! ```
//!
//! Invariants
//! - A marker exists only after every byte that it vouches for is durable, so that after a power cut
//!   a release is whole or does not count.
//! - What is removed loses its marker first; only what bears a name of Towline's own is removed.
//! - Nothing here decides what should serve.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use towline_protocol::ids::Revision;

mod app_log;
mod claim;
mod durable;
mod error;
pub(crate) mod links;
mod quota;
pub(crate) mod reflink;
mod remove;
mod seize;
pub mod state;

pub use durable::{Barrier, measure, size_bytes};
pub use error::DiskError;
pub(crate) use error::{failed, is_passing};
pub use quota::{Needed, Quota};
pub use remove::remove_tree;
pub(crate) use seize::{make_shared, open_plain, seize};

pub use towline_protocol::recipe::REVISION_FILE;

/// The version of a marker that this code writes and the newest that it reads.
pub(crate) const MARKER_VERSION: u32 = 1;

/// What is known of a complete release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The version of this document.
    pub version: u32,
    /// The revision that the release was made of.
    pub revision: Revision,
    /// The id of the tree that it holds.
    pub subtree: String,
    /// The recipe's text.
    pub recipe: String,
    /// The key of its dependency tree; `None` where the recipe has no install.
    pub dependencies: Option<String>,
    /// What the recipe's runtime commands printed.
    pub runtime: Option<String>,
    /// The key of what was built; `None` where the recipe has no build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
}

impl Marker {
    /// Returns the marker of a release that is about to be complete.
    #[must_use]
    pub fn new(revision: Revision, subtree: String, recipe: String) -> Self {
        let version = MARKER_VERSION;
        Self { version, revision, subtree, recipe, dependencies: None, runtime: None, build: None }
    }

    /// Have both releases the same subtree and the same recipe?
    #[must_use]
    pub fn is_like(&self, other: &Marker) -> bool {
        self.subtree == other.subtree && self.recipe == other.recipe
    }
}

/// What room there is.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// How much can be written.
    pub free_bytes: u64,
    /// How many files can be made; `None` where the file system makes inodes as they are needed.
    pub free_inodes: Option<u64>,
    /// What the smallest file takes.
    pub block_bytes: u64,
    /// Can nothing be written at all?
    pub is_read_only: bool,
}

/// The app's directory, and what is where in it.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Names the app's directory; nothing is read or made.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Makes the directories that are missing, and checks that they can be written and linked.
    ///
    /// # Errors
    ///
    /// The app's directory itself must exist: a path that is mistyped must not become one. It must
    /// be Towline's: where it holds what others made, nothing is changed.
    pub fn prepare(&self) -> Result<(), DiskError> {
        let own = fs::metadata(&self.dir).map_err(failed("use the directory", &self.dir))?;
        if !own.is_dir() {
            let source = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed("use the directory", &self.dir)(source));
        }
        self.check_claim()?;
        self.check_owner()?;
        let open =
            [self.releases(), self.dependencies(), self.shared(), self.log(), self.staging()];
        for dir in open {
            make_dir(&dir, 0o755)?;
        }
        make_dir(&self.state(), 0o700)?;
        for dir in [self.state(), self.releases(), self.dependencies()] {
            // Another agent may be looking at the same time, and is told only by the lock.
            let probe = dir.join(format!(".writable-{}", std::process::id()));
            File::create(&probe).map_err(failed("write to", &dir))?;
            fs::remove_file(&probe).map_err(failed("write to", &dir))?;
        }
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(failed("use", path));
        let releases = self.releases();
        for other in [self.dependencies(), self.staging()] {
            if device(&releases)? != device(&other)? {
                return Err(DiskError::FileSystems { one: releases, other });
            }
        }
        Ok(())
    }

    /// `<dir>`
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `<dir>/current`
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.dir.join("current")
    }

    /// `<dir>/releases`
    #[must_use]
    pub fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// `<dir>/releases/<revision>`
    #[must_use]
    pub fn release(&self, revision: &Revision) -> PathBuf {
        self.releases().join(revision.as_str())
    }

    /// `<dir>/dependencies`
    #[must_use]
    pub fn dependencies(&self) -> PathBuf {
        self.dir.join("dependencies")
    }

    /// `<dir>/shared`
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// `<dir>/log`
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// `<dir>/log/app.log`: what `start` printed, and the app that it started.
    #[must_use]
    pub fn app_log(&self) -> PathBuf {
        self.log().join("app.log")
    }

    /// `<dir>/.towline`
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join(".towline")
    }

    /// `<dir>/.towline/git`: the bare repository that fetches go to.
    #[must_use]
    pub fn git_cache(&self) -> PathBuf {
        self.state().join("git")
    }

    /// `<dir>/cache`: what package managers have downloaded; the app's user writes it.
    #[must_use]
    pub fn package_cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// `<dir>/staging`: emptied at every start. The app's user may look into it, so that installs can
    /// run there.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    /// Returns the marker of a release that is complete.
    #[must_use]
    pub fn marker(&self, revision: &Revision) -> Option<Marker> {
        let text = fs::read(marker_path(&self.release(revision))).ok()?;
        let marker: Marker = serde_json::from_slice(&text).ok()?;
        let is_whole = marker.version <= MARKER_VERSION
            && marker.revision == *revision
            && self.release(revision).is_dir();
        is_whole.then_some(marker)
    }

    /// Returns all complete releases, oldest first.
    #[must_use]
    pub fn complete(&self) -> Vec<Revision> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.releases()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(revision) = name.to_str().and_then(|name| name.parse::<Revision>().ok())
            else {
                continue;
            };
            let made = fs::metadata(marker_path(&entry.path())).and_then(|meta| meta.modified());
            if let (Ok(made), Some(_)) = (made, self.marker(&revision)) {
                found.push((made, revision));
            }
        }
        found.sort();
        found.into_iter().map(|(_, revision)| revision).collect()
    }

    /// Returns the complete release that `current` points at.
    #[must_use]
    pub fn live(&self) -> Option<Revision> {
        let link = fs::read_link(self.current()).ok()?;
        let name = link.strip_prefix("releases").ok()?.to_str()?;
        let revision: Revision = name.parse().ok()?;
        self.marker(&revision).map(|_| revision)
    }

    /// Empties the staging area: what stands there was never complete.
    ///
    /// # Errors
    ///
    /// Whatever cannot be removed.
    pub fn clear_staging(&self) -> Result<(), DiskError> {
        let staging = self.staging();
        for entry in fs::read_dir(&staging).map_err(failed("read", &staging))?.flatten() {
            remove_tree(&entry.path()).map_err(failed("remove", &entry.path()))?;
        }
        // Without its marker a release, or a tree, is a leftover of a crash; so is one whose marker is
        // broken, which would count for nothing and never be pruned. Other names are those of others.
        for (dir, is_own) in [
            (self.releases(), claim::is_release as fn(&str) -> bool),
            (self.dependencies(), claim::is_key),
        ] {
            for entry in fs::read_dir(&dir).map_err(failed("read", &dir))?.flatten() {
                let path = entry.path();
                let marker = marker_path(&path);
                let is_leftover = entry.file_name().to_str().is_some_and(is_own)
                    && path.is_dir()
                    && (!marker.exists() || claim::is_broken(&marker));
                let is_live =
                    fs::read_link(self.current()).is_ok_and(|link| path == self.dir.join(link));
                if is_leftover && !is_live {
                    discard(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Measures the file system.
    ///
    /// # Errors
    ///
    /// Where it does not answer.
    pub fn space(&self) -> Result<Space, DiskError> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| failed("measure", &self.dir)(error.into()))?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
            block_bytes: stat.f_frsize,
            is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    /// Checks that `bytes` and `entries` can be written and host config's reserve stays free.
    ///
    /// # Errors
    ///
    /// [`DiskError::Space`] and [`DiskError::Inodes`].
    pub fn check_space(&self, bytes: u64, entries: u64, kept_mib: u64) -> Result<(), DiskError> {
        const MIB: u64 = 1 << 20;
        let path = self.dir.clone();
        let space = self.space()?;
        let free = space.free_bytes;
        // A file takes whole blocks.
        let needed = bytes.saturating_add(entries.saturating_mul(space.block_bytes));
        let due = needed.saturating_add(kept_mib.saturating_mul(MIB));
        if free < due {
            let (free_mib, needed_mib) = (free / MIB, needed.div_ceil(MIB));
            let missing_mib = (due - free).div_ceil(MIB);
            return Err(DiskError::Space { path, free_mib, missing_mib, needed_mib, kept_mib });
        }
        match space.free_inodes {
            Some(free) if free < entries => Err(DiskError::Inodes { path, free, needed: entries }),
            _ => Ok(()),
        }
    }

    /// Makes a staged tree a complete release; it counts from the moment this returns.
    ///
    /// `barrier` was opened before the first write into `staged`.
    ///
    /// # Errors
    ///
    /// Then nothing is complete, and what was staged is to be thrown away.
    pub fn complete_release(
        &self,
        staged: &Path,
        marker: &Marker,
        barrier: Barrier,
    ) -> Result<(), DiskError> {
        let name = staged.join(REVISION_FILE);
        let mut file = File::create_new(&name).map_err(failed("write", &name))?;
        file.write_all(format!("{}\n", marker.revision).as_bytes())
            .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .map_err(failed("write", &name))?;
        drop(file);
        barrier.sync(staged).map_err(failed("make durable", staged))?;
        let release = self.release(&marker.revision);
        discard(&release)?;
        complete(staged, &release, marker)
    }

    /// Points `current` at a complete release.
    ///
    /// # Errors
    ///
    /// Then `current` is as it was, unless the disk refuses that too.
    pub fn swap(&self, revision: &Revision) -> Result<(), DiskError> {
        let current = self.current();
        let release = self.release(revision);
        if self.marker(revision).is_none() {
            let source = io::Error::new(io::ErrorKind::NotFound, "it has no marker");
            return Err(failed("make live the incomplete release", &release)(source));
        }
        self.check_current()?;
        let link = self.state().join("current");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &link)(error));
            }
            _ => {}
        }
        let target = Path::new("releases").join(revision.as_str());
        let former = fs::read_link(&current).ok();
        symlink(target, &link).map_err(failed("create", &link))?;
        fs::rename(&link, &current).map_err(failed("replace", &current))?;
        durable::sync_dir(&self.dir).map_err(|error| {
            // Whether it would last is open. What says no is the disk, and not what was made live.
            let undone = match former {
                Some(former) => symlink(former, &link).and_then(|()| fs::rename(&link, &current)),
                None => fs::remove_file(&current),
            };
            match undone {
                Ok(()) => failed("make durable", &self.dir)(error),
                Err(error) => failed("put back", &current)(error),
            }
        })
    }

    /// Removes `current`: none of the releases is live any more.
    ///
    /// # Errors
    ///
    /// Then `current` may still be there.
    pub fn leave(&self) -> Result<(), DiskError> {
        let current = self.current();
        self.check_current()?;
        match fs::remove_file(&current) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &current)(error));
            }
            _ => {}
        }
        durable::sync_dir(&self.dir).map_err(failed("make durable", &self.dir))
    }

    /// Is there no `current`, not even one that leads nowhere?
    #[must_use]
    pub fn is_bare(&self) -> bool {
        fs::symlink_metadata(self.current()).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    }
}

/// Returns the marker's path of a release or a dependency tree.
pub(crate) fn marker_path(tree: &Path) -> PathBuf {
    tree.with_extension("json")
}

/// Moves a tree whose bytes are durable to its place, and writes its marker.
pub(crate) fn complete(
    staged: &Path,
    place: &Path,
    marker: &impl Serialize,
) -> Result<(), DiskError> {
    fs::rename(staged, place).map_err(failed("move a tree to", place))?;
    mark(place, marker)
}

/// Writes the marker of a tree that is at its place, and whose bytes are durable.
pub(crate) fn mark(place: &Path, marker: &impl Serialize) -> Result<(), DiskError> {
    let parent = place.parent().unwrap_or(place);
    durable::sync_dir(parent).map_err(failed("make durable", parent))?;
    let path = marker_path(place);
    durable::write(&path, marker, 0o644).map_err(failed("write", &path))
}

/// Removes a release or a dependency tree: first its marker, so that it never counts as complete.
pub(crate) fn discard(place: &Path) -> Result<(), DiskError> {
    let marker = marker_path(place);
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &marker)(error));
        }
        _ => {}
    }
    remove_tree(place).map_err(failed("remove", place))
}

/// Returns the hexadecimal SHA-256 of what `feed` puts in.
pub(crate) fn digest(feed: impl FnOnce(&mut Sha256)) -> String {
    let mut hash = Sha256::new();
    feed(&mut hash);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), DiskError> {
    match fs::create_dir(dir) {
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode))
            .map_err(failed("set the mode of", dir)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(failed("create", dir)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn revision(digit: char) -> Revision {
        digit.to_string().repeat(40).parse().unwrap()
    }

    pub(super) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.prepare().unwrap();
        (dir, store)
    }

    pub(super) fn make(store: &Store, digit: char, dependencies: Option<&str>) -> Revision {
        let revision = revision(digit);
        let staged = store.staging().join("x");
        let barrier = Barrier::open(store.dir()).unwrap();
        fs::create_dir(&staged).unwrap();
        let mut marker = Marker::new(revision.clone(), "tree".to_owned(), "recipe".to_owned());
        marker.dependencies = dependencies.map(str::to_owned);
        store.complete_release(&staged, &marker, barrier).unwrap();
        // A marker's time has the resolution of the kernel's tick; order must not hang on that.
        age(store, &revision, u64::from(digit as u32));
        revision
    }

    /// Sets when a release was made.
    pub(super) fn age(store: &Store, revision: &Revision, seconds: u64) {
        let made = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = File::open(marker_path(&store.release(revision))).unwrap();
        file.set_modified(made).unwrap();
    }

    #[test]
    fn a_release_counts_only_with_its_marker() {
        let (_dir, store) = store();
        let revision = make(&store, 'a', None);
        store.swap(&revision).unwrap();
        assert_eq!(store.live(), Some(revision.clone()));
        let name = fs::read_to_string(store.current().join(REVISION_FILE)).unwrap();
        assert_eq!(name, format!("{revision}\n"));

        fs::remove_file(marker_path(&store.release(&revision))).unwrap();
        assert_eq!(store.live(), None);
        assert!(store.swap(&revision).is_err(), "an incomplete release is never made live");
    }

    #[test]
    fn a_directory_called_current_is_left_alone() {
        let (_dir, store) = store();
        let revision = make(&store, 'a', None);
        fs::create_dir(store.current()).unwrap();
        let error = store.swap(&revision).unwrap_err();
        assert!(error.hint().unwrap().contains("away once"), "{error}");
        assert!(store.current().is_dir());
    }

    #[test]
    fn leftovers_of_a_crash_are_cleared_and_releases_are_not() {
        let (_dir, store) = store();
        let whole = make(&store, 'a', None);
        fs::create_dir_all(store.staging().join("b/c")).unwrap();
        fs::create_dir_all(store.release(&revision('b'))).unwrap();
        for (digit, text) in [('c', ""), ('d', "{"), ('e', "\0\0")] {
            fs::create_dir_all(store.release(&revision(digit))).unwrap();
            fs::write(marker_path(&store.release(&revision(digit))), text).unwrap();
        }
        let foreign = [store.releases().join("20240101120000"), store.dependencies().join("venv")];
        for dir in &foreign {
            fs::create_dir(dir).unwrap();
        }
        store.clear_staging().unwrap();
        assert!(foreign.iter().all(|dir| dir.exists()), "what others made is theirs");
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
        assert!(!store.release(&revision('b')).exists(), "it has no marker");
        for digit in ['c', 'd', 'e'] {
            let release = store.release(&revision(digit));
            assert!(!release.exists() && !marker_path(&release).exists(), "{digit}: it is broken");
        }
        assert!(store.release(&whole).exists());
    }

    #[test]
    fn space_is_checked_with_its_reserve() {
        let (_dir, store) = store();
        store.check_space(1, 1, 0).unwrap();
        assert!(matches!(store.check_space(0, 0, u64::MAX >> 21), Err(DiskError::Space { .. })));
        assert!(matches!(store.check_space(u64::MAX, 0, 0), Err(DiskError::Space { .. })));
    }
}
