//! Paths on which the app's user can write, touched by root: by descriptor, one name at a time.
//!
//! ```text
//!   a directory of the app's ──► opened by its name, no link followed ──► root's ──► what is in it is read
//!                                                                          └─ from here on no name in it
//!                                                                             can be made another
//! ```
//!
//! A path is looked up anew by each system call. Where the app's user owns a directory of it, what was
//! looked at may be a link to anywhere by the next call. So a tree is taken from the top downwards before
//! anything in it is believed, and what is made in one is made through the descriptor of its parent.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, fchown, fstat, mkdirat, openat,
};
use rustix::fs::{Gid, Uid, statat};

use super::{DiskError, failed};

/// How a directory is opened that somebody else may have put there.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Deeper trees are refused by whoever looks at them, and opened no further here.
const DEPTH_MAX: usize = 160;

/// What a directory is made with.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// Makes every directory of `tree` root's, so that nobody else can change a name in it any more. Does
/// nothing where the agent is not root.
///
/// The parent of `tree` must be root's. Files keep their owners; what others have open of them stays so.
///
/// # Errors
///
/// Also where a file is another user's than its folder is, and not for everybody to read: where links to the
/// files of others may be made, root would read it out for whoever made one.
pub(crate) fn seize(tree: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    seize_below(CWD, tree.as_os_str().as_bytes(), 0)
}

fn seize_below(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
    let dir = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        // A file, or a link, which is one name in a directory that is ours already.
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let owner = fstat(&dir)?.st_uid;
    fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT))?;
    fchmod(&dir, MODE)?;
    if depth >= DEPTH_MAX {
        return Ok(());
    }
    // Read once it is ours: a name that comes in before is read, and none comes in later.
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let kind = entry.file_type();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if matches!(kind, FileType::Directory | FileType::Unknown) {
            seize_below(dir.as_fd(), name, depth + 1)?;
        }
        // What is root's was seized before, or laid there by it.
        if kind != FileType::Directory && owner != 0 && is_withheld(dir.as_fd(), name, owner)? {
            let name = String::from_utf8_lossy(name);
            let reason = format!("{name:?} is another user's, who does not let everybody read it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
    }
    Ok(())
}

/// Is this a file that `owner` may perhaps not read?
fn is_withheld(dir: BorrowedFd<'_>, name: &[u8], owner: u32) -> io::Result<bool> {
    let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    Ok(is_file && found.st_uid != owner && found.st_mode & 0o004 == 0)
}

/// Makes the directory `dir` below `shared`, and gives it to `owner`, a user and a group; folders on the
/// way are the agent's. What is there already is left as it is.
///
/// Folders above it may belong to the app's user. A link there is followed where root made it.
pub(crate) fn make_shared(
    shared: &Path,
    dir: &str,
    owner: Option<(u32, u32)>,
) -> Result<(), DiskError> {
    let path = shared.join(dir);
    make_below(shared, dir, owner).map_err(failed("create", &path))
}

fn make_below(shared: &Path, dir: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut at = openat(CWD, shared, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())?;
    let mut names = dir.split('/').peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        at = match openat(&at, name, DIRECTORY, Mode::empty()) {
            Ok(next) => next,
            Err(rustix::io::Errno::NOENT) => make_one(&at, name, owner.filter(|_| is_last))?,
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) if is_last => return Ok(()),
            Err(error) => follow(&at, name).map_err(|refused| refused.unwrap_or(error.into()))?,
        };
    }
    Ok(())
}

/// Makes one directory, and hands it over by the descriptor of what was made.
fn make_one(parent: &OwnedFd, name: &str, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::RWXU)?;
    let made = openat(parent, name, DIRECTORY, Mode::empty())?;
    let found = fstat(&made)?;
    // In a directory of the app's another one may have been put there meanwhile: it is not handed on.
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "another user has replaced it",
        ));
    }
    fchmod(&made, MODE)?;
    if let Some((uid, gid)) = owner {
        fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(made)
}

/// Opens the directory that a link of root's, or of the agent's own user, leads to.
fn follow(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Option<io::Error>> {
    let own = [0, rustix::process::geteuid().as_raw()];
    let some = |error: rustix::io::Errno| Some(error.into());
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(some)?;
    let holder = fstat(parent).map_err(some)?;
    // Where the app's user may rename, it can put a link of root's from elsewhere.
    if !own.contains(&found.st_uid) || !own.contains(&holder.st_uid) {
        let reason = "a link of another user's leads away from it";
        return Err(Some(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
    }
    openat(parent, name, DIRECTORY - OFlags::NOFOLLOW, Mode::empty()).map_err(some)
}

/// Opens a file that stands where the app's user may write: no link, and no other name of a file that is
/// not the app's. Does not wait, whatever it is.
///
/// - `is_written`: for writing, and not for reading.
pub(crate) fn open_plain(path: &Path, is_written: bool) -> io::Result<File> {
    let access = if is_written { OFlags::WRONLY } else { OFlags::RDONLY };
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() > 1 {
        let reason = "it is not a regular file with one name";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(file)
}

/// Finds what keeps `dir` from being root's alone: a directory on the way to it, or it itself, in which
/// another user may rename what is there. `None` where there is none, or where the agent is not root.
pub(super) fn writable_by_others(dir: &Path) -> Option<std::path::PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let real = dir.canonicalize().ok()?;
    let is_open = |place: &&Path| {
        let Ok(found) = std::fs::metadata(place) else { return false };
        // In a sticky directory names can be changed by their owners only.
        let is_sticky = found.mode() & 0o1000 != 0 && *place != real;
        let group = if found.gid() == 0 { 0 } else { 0o020 };
        found.uid() != 0 || (found.mode() & (0o002 | group) != 0 && !is_sticky)
    };
    real.ancestors().find(is_open).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            println!("not root: nothing can belong to another user here, so this is not tried");
        }
        is_root
    }

    const OTHER: u32 = 65_534;

    #[test]
    fn a_seized_tree_is_roots_and_links_out_of_it_are_not_followed() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
        for place in [&tree, &tree.join("a"), &tree.join("a/b"), &out, &out.join("c")] {
            fs::create_dir(place).unwrap();
            fs::set_permissions(place, fs::Permissions::from_mode(0o777)).unwrap();
            chown(place, Some(OTHER), Some(OTHER)).unwrap();
        }
        fs::write(tree.join("a/file"), "").unwrap();
        symlink(&out, tree.join("a/link")).unwrap();
        seize(&tree).unwrap();
        let owner = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.mode() & 0o777)
        };
        for place in [&tree, &tree.join("a"), &tree.join("a/b")] {
            assert_eq!(owner(place), (0, 0o755), "{}", place.display());
        }
        for place in [&out, &out.join("c")] {
            assert_eq!(owner(place), (OTHER, 0o777), "{}", place.display());
        }
        // A name of another's file, which its folder's owner need not be able to read.
        chown(tree.join("a"), Some(OTHER), None).unwrap();
        fs::set_permissions(tree.join("a/file"), fs::Permissions::from_mode(0o600)).unwrap();
        let error = seize(&tree).unwrap_err().to_string();
        assert!(error.contains(r#""file" is another user's"#), "{error}");
        fs::set_permissions(tree.join("a/file"), fs::Permissions::from_mode(0o604)).unwrap();
        chown(tree.join("a"), Some(OTHER), None).unwrap();
        seize(&tree).unwrap();
        symlink(&out, dir.path().join("top")).unwrap();
        seize(&dir.path().join("top")).unwrap();
        assert_eq!(owner(&out), (OTHER, 0o777), "not even the tree itself");
    }

    #[test]
    fn shared_directories_are_made_and_links_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, out) = (dir.path().join("shared"), dir.path().join("out"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&out).unwrap();
        let owner = is_root().then_some((OTHER, OTHER));
        make_shared(&shared, "a/b", owner).unwrap();
        make_shared(&shared, "a/b", None).unwrap();
        let own = rustix::process::geteuid().as_raw();
        let uid = |path: &str| fs::metadata(shared.join(path)).unwrap().uid();
        assert_eq!((uid("a"), uid("a/b")), (own, owner.map_or(own, |(uid, _)| uid)));
        symlink(&out, shared.join("ours")).unwrap();
        make_shared(&shared, "ours/x", owner).unwrap();
        assert!(out.join("x").is_dir(), "a link of root's is followed");
        if owner.is_some() {
            symlink(&out, shared.join("a/b/theirs")).unwrap();
            let error = make_shared(&shared, "a/b/theirs/y", owner).unwrap_err();
            assert!(!out.join("y").exists(), "{error}");
            std::os::unix::fs::lchown(shared.join("ours"), Some(OTHER), None).unwrap();
            make_shared(&shared, "ours/y", owner).unwrap_err();
            assert!(!out.join("y").exists());
        }
    }

    #[test]
    fn only_a_plain_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["plain", "first"] {
            fs::write(path(name), "x").unwrap();
        }
        fs::hard_link(path("first"), path("second")).unwrap();
        symlink(path("plain"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for is_written in [true, false] {
            open_plain(&path("plain"), is_written).unwrap();
            for refused in ["first", "second", "link", "fifo", "none"] {
                assert!(open_plain(&path(refused), is_written).is_err(), "{refused}");
            }
        }
    }

    #[test]
    fn a_directory_that_others_may_change_is_found() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (above, dir) = (root.path().join("above"), root.path().join("above/web"));
        fs::create_dir_all(&dir).unwrap();
        let set = |path: &Path, uid: u32, mode: u32| {
            chown(path, Some(uid), Some(0)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let cases = [
            ("root's", (0, 0o755), (0, 0o755), None),
            ("the app's", (0, 0o755), (OTHER, 0o755), Some(&dir)),
            ("everybody's", (0, 0o755), (0, 0o757), Some(&dir)),
            ("sticky is not enough for itself", (0, 0o755), (0, 0o1777), Some(&dir)),
            ("above it is the app's", (OTHER, 0o755), (0, 0o755), Some(&above)),
            ("like /tmp", (0, 0o1777), (0, 0o755), None),
        ];
        for (rule, (uid, mode), (own_uid, own_mode), expected) in cases {
            set(&above, uid, mode);
            set(&dir, own_uid, own_mode);
            let expected = expected.map(|path| path.canonicalize().unwrap());
            assert_eq!(writable_by_others(&dir), expected, "{rule}");
        }
    }
}
