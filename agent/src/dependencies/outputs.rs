//! What an install or a build made, on its way into the store and into a release.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::{Place, RelativePath};

use super::{InstallError, Key, Making, Step, absent, tree};
use crate::release::{self, Barrier, DiskError, MARKER_VERSION, Store, failed};

/// What is known of a stored tree.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    command: String,
    runtime: Option<String>,
    /// How many files, directories and links there are; absent in markers of before it was counted.
    entries: Option<u64>,
    /// Was it built, and not installed? The store counts the two apart.
    #[serde(default)]
    built: bool,
}

/// What an install or a build made. Its trees may hold a hundred thousand files, so this blocks; `stop` is
/// looked at with each.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// Where trees are kept.
    pub store: Store,
    /// What made them.
    pub making: Making,
    /// What they are known by.
    pub key: Key,
    /// Are trees made root's and read-only, so that their files can be shared?
    pub is_sealed: bool,
    /// Ends the work.
    pub stop: CancellationToken,
}

impl Outputs {
    /// Where they are stored.
    fn place(&self) -> PathBuf {
        self.store.dependencies().join(&self.key.digest)
    }

    /// Where their command runs: in `scratch`, a directory of the staging area, or where they stay.
    pub(super) fn work(&self, scratch: &Path) -> PathBuf {
        match self.making.place {
            Place::Release => scratch.join(self.making.step.as_str()),
            Place::ByKey => self.place(),
        }
    }

    /// Checks that the release in `tree` holds no output itself.
    ///
    /// # Errors
    ///
    /// [`InstallError::InTree`]
    pub fn check_free(&self, tree: &Path) -> Result<(), InstallError> {
        let is_there =
            |output: &&RelativePath| fs::symlink_metadata(tree.join(output.as_str())).is_ok();
        match self.making.outputs.iter().find(is_there) {
            Some(output) => {
                Err(InstallError::InTree { step: self.making.step, output: output.clone() })
            }
            None => Ok(()),
        }
    }

    /// Checks what the command has made, and stores it.
    ///
    /// # Errors
    ///
    /// See [`InstallError`]; nothing is stored then.
    pub fn keep(&self, scratch: &Path, barrier: Barrier) -> Result<(), InstallError> {
        let (step, work, place) = (self.making.step, self.work(scratch), self.place());
        let stays = match self.making.place {
            Place::Release => None,
            Place::ByKey => {
                self.take(&work)?;
                Some(self.store.dir())
            }
        };
        for output in &self.making.outputs {
            let made = work.join(output.as_str());
            if fs::symlink_metadata(&made).is_err() {
                return Err(InstallError::NoOutput { step, output: output.clone() });
            }
            tree::check(&work, &made, &self.store.staging(), stays, &self.stop)
                .map_err(|source| InstallError::Refused { step, source })?;
        }
        let sealed = match self.making.place {
            Place::Release => self.gather(&work, scratch)?,
            Place::ByKey => {
                self.strip(&work, Path::new(""))?;
                work
            }
        };
        for output in &self.making.outputs {
            let made = sealed.join(output.as_str());
            // A file that has a name elsewhere too could be changed by it, and would be sealed there.
            tree::separate(&made, &self.stop).map_err(failed("copy", &made))?;
            if self.is_sealed {
                tree::seal(&made, &self.stop).map_err(failed("seal", &made))?;
            }
        }
        barrier.sync(&sealed).map_err(failed("make durable", &sealed))?;
        let outputs = self.making.outputs.iter().map(|output| sealed.join(output.as_str()));
        let entries = Some(outputs.map(|output| 1 + release::measure(&output).1).sum());
        let marker = Marker {
            version: MARKER_VERSION,
            command: self.making.command.to_string(),
            runtime: self.key.runtime.clone(),
            entries,
            built: step == Step::Build,
        };
        if sealed == place {
            release::mark(&place, &marker)?;
        } else {
            release::discard(&place)?;
            release::complete(&sealed, &place, &marker)?;
        }
        Ok(())
    }

    /// Moves the outputs to a directory of their own.
    fn gather(&self, work: &Path, scratch: &Path) -> Result<PathBuf, DiskError> {
        let sealed = scratch.join("sealed");
        fs::create_dir(&sealed).map_err(failed("create", &sealed))?;
        set_mode(&sealed)?;
        for output in &self.making.outputs {
            let place = sealed.join(output.as_str());
            make_parents(&sealed, output)?;
            fs::rename(work.join(output.as_str()), &place)
                .map_err(failed("move a tree to", &place))?;
        }
        Ok(sealed)
    }

    /// Throws away what lies beside the outputs, in a directory that is not the app's user's any more.
    fn strip(&self, work: &Path, below: &Path) -> Result<(), DiskError> {
        let dir = work.join(below);
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))? {
            let entry = entry.map_err(failed("read", &dir))?;
            let (path, name) = (entry.path(), below.join(entry.file_name()));
            let mut outputs = self.making.outputs.iter().map(|output| Path::new(output.as_str()));
            if outputs.clone().any(|output| output == name) {
                continue;
            }
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && outputs.any(|output| output.starts_with(&name)) {
                self.take(&path)?;
                self.strip(work, &name)?;
            } else {
                release::remove_tree(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Makes a directory root's, so that nobody else can change what lies in it.
    fn take(&self, dir: &Path) -> Result<(), DiskError> {
        if !self.is_sealed {
            return Ok(());
        }
        lchown(dir, Some(0), Some(0)).map_err(failed("take back", dir))?;
        set_mode(dir)
    }

    /// Links the stored outputs into the release in `tree`, or copies them, for which there must be
    /// space: `kept_mib` stay free.
    ///
    /// # Errors
    ///
    /// [`InstallError::InTree`] where the repository holds an output itself.
    pub fn link(&self, tree: &Path, kept_mib: u64) -> Result<(), InstallError> {
        let place = self.place();
        self.check_free(tree)?;
        if !self.is_sealed && self.making.place == Place::Release {
            let (bytes, entries) = release::measure(&place);
            self.store.check_space(bytes, entries, kept_mib)?;
        }
        let mut entries = 0;
        for output in &self.making.outputs {
            let (stored, linked) = (place.join(output.as_str()), tree.join(output.as_str()));
            make_parents(tree, output)?;
            let done = match self.making.place {
                Place::Release => tree::link(&stored, &linked, self.is_sealed, &self.stop),
                Place::ByKey => fs::symlink_metadata(&stored)
                    .and_then(|_| symlink(&stored, &linked))
                    .map(|()| 1 + release::measure(&stored).1),
            };
            match done {
                Ok(count) => entries += count,
                Err(error) if absent(&error) => return self.give_up(&place),
                Err(error) => return Err(failed("link what was made into", &linked)(error).into()),
            }
        }
        let marker = fs::read(release::marker_path(&place)).unwrap_or_default();
        match serde_json::from_slice::<Marker>(&marker) {
            Ok(Marker { entries: Some(stored), .. }) if stored != entries => self.give_up(&place),
            _ => Ok(()),
        }
    }

    /// Somebody has taken something out of a stored tree: it is thrown away, and made anew next time; not
    /// under the feet of releases that lead to it.
    fn give_up(&self, place: &Path) -> Result<(), InstallError> {
        let place = place.to_owned();
        let is_used = self.making.place == Place::ByKey
            && self
                .store
                .complete()
                .iter()
                .filter_map(|own| self.store.marker(own))
                .any(|marker| marker.dependencies.as_deref() == Some(&self.key.digest));
        if is_used {
            return Err(InstallError::Broken { place });
        }
        release::discard(&place)?;
        Err(InstallError::Incomplete { place })
    }
}

fn set_mode(dir: &Path) -> Result<(), DiskError> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .map_err(failed("set the mode of", dir))
}

fn make_parents(root: &Path, path: &RelativePath) -> Result<(), DiskError> {
    let Some(parent) = Path::new(path.as_str()).parent() else { return Ok(()) };
    let dir = root.join(parent);
    fs::create_dir_all(&dir).map_err(failed("create", &dir))
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
        let making = Making::from(&install);
        Outputs { store, making, key, is_sealed: false, stop: CancellationToken::new() }
    }

    /// Stores a tree of one file.
    fn keep(outputs: &Outputs) -> Result<(), InstallError> {
        let scratch = outputs.store.staging().join("install");
        release::remove_tree(&scratch).unwrap();
        let work = outputs.work(&scratch);
        fs::create_dir_all(work.join("made")).unwrap();
        File::create(work.join("made/x")).unwrap().set_len(1).unwrap();
        File::create(work.join("lock")).unwrap();
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

    #[test]
    fn by_its_key_a_tree_stays_where_it_was_made_and_nothing_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut outputs = outputs(dir.path());
        outputs.making.place = Place::ByKey;
        outputs.making.outputs =
            vec![RelativePath::new("made").unwrap(), RelativePath::new("a/b").unwrap()];
        let place = outputs.place();
        assert_eq!(outputs.work(&outputs.store.staging()), place);
        for path in ["made", "a/b", "a/c", "inputs"] {
            fs::create_dir_all(place.join(path)).unwrap();
            fs::write(place.join(path).join("x"), "x").unwrap();
        }
        symlink(place.join("made/x"), place.join("made/own")).unwrap();
        let barrier = Barrier::open(outputs.store.dir()).unwrap();
        outputs.keep(&outputs.store.staging(), barrier).unwrap();
        assert!(release::marker_path(&place).exists());
        let left = |path: &str| place.join(path).exists();
        assert_eq!(["made/own", "a/b/x", "a/c", "inputs"].map(left), [true, true, false, false]);
        let tree = outputs.store.staging().join("release");
        fs::create_dir(&tree).unwrap();
        outputs.link(&tree, u64::MAX >> 21).unwrap();
        assert_eq!(fs::read_link(tree.join("a/b")).unwrap(), place.join("a/b"));

        // Somebody has taken something out of it. Where a release leads to it, it is left.
        fs::remove_file(place.join("a/b/x")).unwrap();
        let revision: towline_protocol::ids::Revision = "a".repeat(40).parse().unwrap();
        let mut marker = release::Marker::new(revision, "tree".to_owned(), "recipe".to_owned());
        marker.dependencies = Some(outputs.key.digest.clone());
        let barrier = Barrier::open(outputs.store.dir()).unwrap();
        outputs.store.complete_release(&tree, &marker, barrier).unwrap();
        let tree = outputs.store.staging().join("next");
        fs::create_dir(&tree).unwrap();
        let error = outputs.link(&tree, 0).unwrap_err();
        assert!(matches!(error, InstallError::Broken { .. }) && place.exists(), "{error}");
        fs::remove_file(release::marker_path(&outputs.store.release(&marker.revision))).unwrap();
        let again = outputs.store.staging().join("again");
        fs::create_dir(&again).unwrap();
        let error = outputs.link(&again, 0).unwrap_err();
        assert!(matches!(error, InstallError::Incomplete { .. }) && !place.exists(), "{error}");
    }
}
