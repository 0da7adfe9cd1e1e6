//! Removing what others may have made, however deep it is and whoever is still at work in it.
//!
//! ```text
//!   top ─┬─ file ─► unlinked
//!        └─ directory ─► taken ─► its directories are lifted into top, its files unlinked ─► removed
//! ```
//!
//! By descriptor and without recursion: a command can make a tree that is deeper than descriptors, stack and
//! paths allow. As root each directory is taken first, so that nobody makes another name in it meanwhile.
//!
//! Invariant
//! - No link is followed, and nothing outside of the tree is touched.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, fchmod, fchown, openat, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a directory that is being removed is for: its owner alone.
const MODE: Mode = Mode::from_raw_mode(0o700);

/// How often a directory is read anew: once a level where a tree is deep, and each time that somebody made
/// another name in it.
const PASSES_MAX: usize = 1_000_000;

/// Removes a tree, or a file, or nothing where there is nothing. Links are not followed, and a
/// directory that its owner may not write is made writable first: sealed trees hold such.
///
/// # Errors
///
/// What could not be removed is still there, in part.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !meta.is_dir() {
        return fs::remove_file(path);
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let above = openat(CWD, above, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?;
    let top = take(above.as_fd(), name.as_bytes())?;
    let mut lifted = Lifted { top: top.as_fd(), count: 0 };
    for _ in 0..PASSES_MAX {
        let is_empty = match lifted.pass() {
            // Where nothing can be lifted the tree is no deeper for it, and is ours by now.
            Err(error) if cannot_lift(&error) => return fs::remove_dir_all(path),
            other => other?,
        };
        if !is_empty {
            continue;
        }
        match unlinkat(&above, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
    Err(io::ErrorKind::DirectoryNotEmpty.into())
}

/// Is it about the place that something is moved to? Directories of a lower layer of an overlay are not
/// moved, and on a full disk none is where the list of names would have to grow.
fn cannot_lift(error: &io::Error) -> bool {
    let raw = error.raw_os_error().map(Errno::from_raw_os_error);
    raw.is_some_and(|raw| [Errno::XDEV, Errno::NOSPC, Errno::DQUOT, Errno::MLINK].contains(&raw))
}

/// Opens a directory, and makes it the agent's own where it is root.
fn take(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let open = || openat(parent, name, DIRECTORY, Mode::empty());
    let dir = match open() {
        Err(Errno::ACCESS) => {
            // Its owner's, and not for its owner to read.
            chmodat(parent, name, MODE, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    if rustix::process::geteuid().is_root() {
        fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT))?;
    }
    fchmod(&dir, MODE)?;
    Ok(dir)
}

/// The top of a tree that is being removed, and how many directories were lifted into it.
struct Lifted<'a> {
    top: BorrowedFd<'a>,
    count: u64,
}

impl Lifted<'_> {
    /// Removes what is in the top now; returns whether nothing was.
    fn pass(&mut self) -> io::Result<bool> {
        let mut is_empty = true;
        for entry in Dir::read_from(self.top)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            is_empty = false;
            if is_directory(self.top, name, entry.file_type())? {
                let dir = take(self.top, name)?;
                self.empty(dir.as_fd())?;
                match unlinkat(self.top, name, AtFlags::REMOVEDIR) {
                    // It is read once more.
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    other => other?,
                }
            } else {
                unlinkat(self.top, name, AtFlags::empty())?;
            }
        }
        Ok(is_empty)
    }

    /// Removes the files in a directory, and lifts its directories into the top.
    fn empty(&mut self, dir: BorrowedFd<'_>) -> io::Result<()> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if !is_directory(dir, name, entry.file_type())? {
                unlinkat(dir, name, AtFlags::empty())?;
                continue;
            }
            // Moved, its `..` changes: it must be ours to write.
            drop(take(dir, name)?);
            self.lift(dir, name)?;
        }
        Ok(())
    }

    fn lift(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        loop {
            let new = format!(".towline-removed-{}", self.count);
            self.count += 1;
            match renameat(dir, name, self.top, new.as_str()) {
                // The name is another's there.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// Some file systems do not say what an entry is.
fn is_directory(parent: BorrowedFd<'_>, name: &[u8], kind: FileType) -> io::Result<bool> {
    if kind != FileType::Unknown {
        return Ok(kind == FileType::Directory);
    }
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_that_is_deeper_than_descriptors_and_paths_is_removed() {
        const DEPTH: usize = 5_000;
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", MODE).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        // Each test is a process of its own, or else the limit is put back below.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(soft), hard).unwrap();
        let removed = remove_tree(&tree);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        removed.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_sealed_linked_or_named_like_ours_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, foreign) = (dir.path().join("tree"), dir.path().join("foreign"));
        fs::create_dir_all(foreign.join("deep")).unwrap();
        fs::write(foreign.join("deep/file"), "stays").unwrap();
        fs::create_dir_all(tree.join("sealed/inner")).unwrap();
        fs::write(tree.join("sealed/inner/file"), "goes").unwrap();
        // A name that lifting would choose, for a file and for a directory with something in it.
        fs::write(tree.join(".towline-removed-0"), "goes").unwrap();
        fs::create_dir_all(tree.join(".towline-removed-1/full")).unwrap();
        symlink(&foreign, tree.join("sealed/inner/link")).unwrap();
        symlink(&foreign, tree.join("link")).unwrap();
        for name in ["sealed/inner", "sealed"] {
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o555)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(fs::symlink_metadata(&tree).is_err());
        assert_eq!(fs::read_to_string(foreign.join("deep/file")).unwrap(), "stays");
        // A link to a directory is a link, and what is not there is no error.
        let link = dir.path().join("link");
        symlink(&foreign, &link).unwrap();
        remove_tree(&link).unwrap();
        remove_tree(&link).unwrap();
        assert!(foreign.is_dir());
    }
}
