//! The cache: one bare repository that fetches go to, and that may be thrown away at any time.
//!
//! One writer: the caller holds the app's lock, so a lock file of git's is always a leftover. What is
//! not ours is not used, and never followed: a link, a file, another user's repository are set aside as
//! they are, and a new one is made.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use git2::{ErrorClass, ObjectType, Oid, Repository, RepositoryInitOptions};
use towline_protocol::ids::Revision;

use super::fetch::FetchError;
use crate::process::Account;
use crate::release::remove_tree;

/// The refs that keep releases' commits.
pub(super) const RELEASES: &str = "refs/towline/releases/";

/// The largest commit object that is read: libgit2 holds all of it in memory, twice, and a message packs
/// to next to nothing. The longest that people write are some 100 KiB.
pub(super) const COMMIT_BYTES_MAX: usize = 1 << 20;

/// The largest tree object, one folder's list, that is read, likewise: some 300,000 entries with names of
/// 200 bytes, and more than a folder of any app.
pub(super) const TREE_BYTES_MAX: usize = 64 << 20;

/// The cache repository.
pub struct Cache {
    pub(super) repository: Repository,
    pub(super) dir: PathBuf,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache in `dir`; makes it where there is none, or where what is there cannot be used.
    ///
    /// # Errors
    ///
    /// Where it cannot be made.
    pub fn open(dir: &Path) -> Result<Cache, FetchError> {
        let disk = |source| FetchError::Disk { dir: dir.to_owned(), source };
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk(error)),
            Ok(_) if is_ours(dir) && remove_locks(dir).is_ok() => {
                match Repository::open_bare(dir) {
                    Ok(repository) if repository.is_bare() => {
                        return Ok(Cache { repository, dir: dir.to_owned() });
                    }
                    _ => set_aside(dir)?,
                }
            }
            Ok(_) => set_aside(dir)?,
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).mkdir(true).no_reinit(true);
        let repository = Repository::init_opts(dir, &options)
            .map_err(|error| disk(io::Error::other(error.message().to_owned())))?;
        Ok(Cache { repository, dir: dir.to_owned() })
    }

    /// Is this commit here, with its whole tree? An interrupted fetch, or an emptied object, counts
    /// as not. What is too large to be looked at does: fetching it again would not make it smaller, and the
    /// walk refuses it.
    #[must_use]
    pub fn has(&self, revision: &Revision) -> bool {
        self.is_whole(revision).unwrap_or(false)
    }

    fn is_whole(&self, revision: &Revision) -> Result<bool, git2::Error> {
        let odb = self.repository.odb()?;
        let id = Oid::from_str(revision.as_str())?;
        if odb.read_header(id)?.0 > COMMIT_BYTES_MAX {
            return Ok(true);
        }
        let commit = self.repository.find_commit(id)?;
        let mut trees = vec![commit.tree_id()];
        // Each object is looked at once: nested identical trees cost nothing.
        let mut seen = BTreeSet::new();
        while let Some(id) = trees.pop() {
            if !seen.insert(id) {
                continue;
            }
            if odb.read_header(id)?.0 > TREE_BYTES_MAX {
                return Ok(true);
            }
            for entry in self.repository.find_tree(id)?.iter() {
                match entry.kind() {
                    Some(ObjectType::Tree) => trees.push(entry.id()),
                    Some(ObjectType::Blob) if seen.insert(entry.id()) => {
                        // The header of an emptied file cannot be read; its name would exist.
                        odb.read_header(entry.id())?;
                    }
                    _ => {}
                }
            }
        }
        Ok(true)
    }

    /// Lets go of the commits of releases that are no more.
    ///
    /// # Errors
    ///
    /// Where the refs cannot be read or removed.
    pub fn keep(&self, releases: &[Revision]) -> Result<(), FetchError> {
        let failed = |error| FetchError::Git(boxed(error));
        let found = self.repository.references_glob(&format!("{RELEASES}*")).map_err(failed)?;
        for reference in found {
            let mut reference = reference.map_err(failed)?;
            let name = reference.name().ok().and_then(|name| name.strip_prefix(RELEASES));
            let is_kept =
                name.is_some_and(|name| releases.iter().any(|kept| kept.as_str() == name));
            if !is_kept {
                reference.delete().map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Returns how much disk the cache takes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        crate::release::size_bytes(&self.dir)
    }
}

/// Boxes an error of git2, so that its type stays here.
pub(super) fn boxed(error: git2::Error) -> Box<dyn std::error::Error + Send + Sync> {
    error.message().to_owned().into()
}

/// Errors of objects that are there and cannot be read; those of the network have another class.
pub(super) fn is_about_objects(error: &git2::Error) -> bool {
    // Of a list of shallow commits that is none; the class is not among those that git2 knows.
    let is_shallow = error.message().contains("graft");
    is_shallow
        || matches!(
            error.class(),
            ErrorClass::Odb
                | ErrorClass::Object
                | ErrorClass::Zlib
                | ErrorClass::Tree
                | ErrorClass::Repository
                | ErrorClass::Reference
        )
}

/// Is this a directory of the agent's own user, and so is what git would follow in it?
///
/// Another user could have put anything there: objects that are links to foreign files, a
/// configuration that leads elsewhere.
fn is_ours(dir: &Path) -> bool {
    let own = Account::own().uid;
    let is_own = |path: &Path, is_dir: bool| {
        fs::symlink_metadata(path)
            .is_ok_and(|meta| meta.uid() == own && !meta.is_symlink() && (meta.is_dir() || !is_dir))
    };
    // Spelt without a slash at its end, which would be another word for where a link leads.
    let dirs = [dir.to_owned(), dir.join("objects"), dir.join("refs")];
    dirs.iter().all(|dir| {
        let entries = || fs::read_dir(dir).into_iter().flatten().flatten();
        is_own(dir, true) && entries().all(|entry| is_own(&entry.path(), false))
    })
}

/// Removes what a killed git left; wherever refs or lists of them are written.
fn remove_locks(dir: &Path) -> io::Result<()> {
    let mut dirs = vec![(dir.to_owned(), false), (dir.join("refs"), true)];
    while let Some((dir, is_deep)) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "lock") {
                remove_tree(&path)?;
            } else if is_deep && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push((path, true));
            }
        }
    }
    Ok(())
}

/// Moves what cannot be used out of the way; one is kept for whoever wants to know why.
pub(super) fn set_aside(dir: &Path) -> Result<(), FetchError> {
    let aside = dir.with_extension("broken");
    let moved = remove_tree(&aside).and_then(|()| fs::rename(dir, &aside));
    moved.map_err(|source| FetchError::Aside { dir: dir.to_owned(), aside, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_in_the_caches_place_is_set_aside_and_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let (dir, foreign) = (root.path().join("git"), root.path().join("foreign"));
        Cache::open(&foreign).unwrap();
        let before = crate::release::measure(&foreign);
        let lay: [(&str, &dyn Fn()); 7] = [
            ("a file", &|| fs::write(&dir, "x").unwrap()),
            ("a link to a repository", &|| symlink(&foreign, &dir).unwrap()),
            ("a link to nothing", &|| symlink("/nowhere", &dir).unwrap()),
            ("an empty directory", &|| fs::create_dir(&dir).unwrap()),
            ("objects that are a link", &|| {
                Cache::open(&dir).unwrap();
                fs::remove_dir_all(dir.join("objects")).unwrap();
                symlink(foreign.join("objects"), dir.join("objects")).unwrap();
            }),
            ("packs that are a link", &|| {
                Cache::open(&dir).unwrap();
                fs::remove_dir_all(dir.join("objects/pack")).unwrap();
                symlink(foreign.join("objects/pack"), dir.join("objects/pack")).unwrap();
            }),
            ("refs that are a file", &|| {
                Cache::open(&dir).unwrap();
                fs::remove_dir_all(dir.join("refs")).unwrap();
                fs::write(dir.join("refs"), "x").unwrap();
            }),
        ];
        for (rule, lay) in lay {
            remove_tree(&dir).unwrap();
            remove_tree(&dir.with_extension("broken")).unwrap();
            lay();
            Cache::open(&dir).unwrap();
            let meta = fs::symlink_metadata(&dir).unwrap();
            assert!(meta.is_dir() && is_ours(&dir), "{rule}");
            assert!(fs::symlink_metadata(dir.with_extension("broken")).is_ok(), "{rule}");
            assert_eq!(crate::release::measure(&foreign), before, "{rule}");
        }
    }

    #[test]
    fn locks_are_leftovers_wherever_git_puts_them() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("git");
        Cache::open(&dir).unwrap();
        let deep = dir.join("refs/towline/releases");
        fs::create_dir_all(&deep).unwrap();
        let places = ["config", "HEAD", "index", "shallow", "packed-refs", "refs/towline/branch"];
        let mut locks = places.map(|name| dir.join(name).with_extension("lock")).to_vec();
        locks.push(deep.join("x.lock"));
        for lock in &locks {
            fs::write(lock, "").unwrap();
        }
        fs::create_dir(dir.join("odd.lock")).unwrap();
        locks.push(dir.join("odd.lock"));
        Cache::open(&dir).unwrap();
        assert!(locks.iter().all(|lock| !lock.exists()), "{locks:?}");
        assert!(!dir.with_extension("broken").exists(), "nothing was broken");
    }
}
