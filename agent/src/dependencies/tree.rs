//! Walks over installed trees: read, copy, check, seal, link. Links are never followed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use towline_protocol::recipe::RelativePath;

use super::absent;
use crate::process::Account;
use crate::release::{DiskError, failed, links};

/// Directories deeper than this are no dependency tree.
const DEPTH_MAX: usize = 128;

/// What an installed tree must not hold.
#[derive(Debug, thiserror::Error)]
pub enum TreeFault {
    /// A device, a socket or a pipe.
    #[error("{} is no file, directory or link", path.display())]
    Special {
        /// Where.
        path: PathBuf,
    },
    /// A file that runs as its owner.
    #[error("{} is a setuid or setgid file", path.display())]
    SetId {
        /// Where.
        path: PathBuf,
    },
    /// A link that leads out of the tree, or may, by climbing from another link: it would lead
    /// somewhere else, or nowhere, in a release.
    #[error("{} is a link to {}, out of the installed tree", path.display(), target.display())]
    Outside {
        /// Where.
        path: PathBuf,
        /// Where to.
        target: PathBuf,
    },
    /// The tree could not be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Collects the contents of an input, a file or a folder, for the key: path → mode, content.
pub(super) fn contents(
    root: &Path,
    input: &RelativePath,
    found: &mut BTreeMap<String, (u32, Vec<u8>)>,
) -> Result<(), DiskError> {
    let mut paths = vec![root.join(input.as_str())];
    while let Some(path) = paths.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if absent(&error) => continue,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
                paths.push(entry.map_err(failed("read", &path))?.path());
            }
            continue;
        }
        let content = if meta.is_symlink() {
            fs::read_link(&path)
                .map_err(failed("read", &path))?
                .into_os_string()
                .into_encoded_bytes()
        } else {
            fs::read(&path).map_err(failed("read", &path))?
        };
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let kind = u32::from(meta.is_symlink()) << 1 | u32::from(meta.mode() & 0o100 != 0);
        found.insert(name, (kind, content));
    }
    Ok(())
}

/// Copies an input into the directory that the command sees.
pub(super) fn copy_input(
    root: &Path,
    input: &RelativePath,
    work: &Path,
    account: Option<&Account>,
) -> Result<(), DiskError> {
    let give = |path: &Path| match account {
        Some(account) => lchown(path, Some(account.uid), Some(account.gid))
            .map_err(failed("give to the app's user", path)),
        None => Ok(()),
    };
    let parts: Vec<Component<'_>> = Path::new(input.as_str()).components().collect();
    let mut dir = work.to_owned();
    for part in &parts[..parts.len().saturating_sub(1)] {
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => give(&dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create", &dir)(error)),
        }
    }
    let mut pairs = vec![(root.join(input.as_str()), work.join(input.as_str()))];
    while let Some((from, to)) = pairs.pop() {
        let meta = match fs::symlink_metadata(&from) {
            Ok(meta) => meta,
            Err(error) if absent(&error) => continue,
            Err(error) => return Err(failed("read", &from)(error)),
        };
        if meta.is_dir() {
            match fs::create_dir(&to) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &to)(error));
                }
                _ => {}
            }
            for entry in fs::read_dir(&from).map_err(failed("read", &from))? {
                let name = entry.map_err(failed("read", &from))?.file_name();
                pairs.push((from.join(&name), to.join(&name)));
            }
        } else if meta.is_symlink() {
            let target = fs::read_link(&from).map_err(failed("read", &from))?;
            symlink(target, &to).map_err(failed("create", &to))?;
        } else {
            fs::copy(&from, &to).map_err(failed("create", &to))?;
        }
        give(&to)?;
    }
    Ok(())
}

/// Checks an output below `root`, before it is moved.
pub(super) fn check(root: &Path, output: &Path) -> Result<(), TreeFault> {
    let mut paths = vec![output.to_owned()];
    while let Some(path) = paths.pop() {
        let read = |source| TreeFault::Read { path: path.clone(), source };
        let meta = fs::symlink_metadata(&path).map_err(read)?;
        let kind = meta.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(read)?;
            let place = path.strip_prefix(root).unwrap_or(&path);
            let is_dir = |at: &Path| fs::symlink_metadata(root.join(at)).is_ok_and(|m| m.is_dir());
            if links::judge(place, &target, is_dir).is_err() {
                return Err(TreeFault::Outside { path, target });
            }
        } else if kind.is_dir() {
            if path.components().count() - root.components().count() > DEPTH_MAX {
                return Err(TreeFault::Read {
                    path,
                    source: io::ErrorKind::InvalidFilename.into(),
                });
            }
            for entry in fs::read_dir(&path).map_err(read)? {
                paths.push(entry.map_err(read)?.path());
            }
        } else if kind.is_char_device()
            || kind.is_block_device()
            || kind.is_fifo()
            || kind.is_socket()
        {
            return Err(TreeFault::Special { path });
        } else if meta.mode() & 0o6000 != 0 {
            return Err(TreeFault::SetId { path });
        }
    }
    Ok(())
}

/// Makes a tree root's and read-only; times are kept.
pub(super) fn seal(tree: &Path) -> io::Result<()> {
    let mut paths = vec![tree.to_owned()];
    while let Some(path) = paths.pop() {
        let meta = fs::symlink_metadata(&path)?;
        lchown(&path, Some(0), Some(0))?;
        if meta.is_symlink() {
            continue;
        }
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        } else {
            let mode = if meta.mode() & 0o111 != 0 { 0o555 } else { 0o444 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Recreates a tree at `to`, with hard links to its files where `hard`, copies elsewhere.
pub(super) fn link(from: &Path, to: &Path, hard: bool) -> io::Result<()> {
    let mut pairs = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pairs.pop() {
        let meta = fs::symlink_metadata(&from)?;
        if meta.is_dir() {
            fs::create_dir(&to)?;
            for entry in fs::read_dir(&from)? {
                let name = entry?.file_name();
                pairs.push((from.join(&name), to.join(&name)));
            }
        } else if meta.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if hard {
            fs::hard_link(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
            fs::File::open(&to)?.set_modified(meta.modified()?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_linked_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        fs::write(&file, "x").unwrap();
        check(dir.path(), dir.path()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(matches!(check(dir.path(), dir.path()), Err(TreeFault::SetId { .. })));
        fs::remove_file(&file).unwrap();
        symlink("/etc", dir.path().join("etc")).unwrap();
        assert!(matches!(check(dir.path(), dir.path()), Err(TreeFault::Outside { .. })));
        fs::remove_file(dir.path().join("etc")).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink("../..", dir.path().join("a/b/top")).unwrap();
        check(dir.path(), dir.path()).unwrap();
        symlink("top/../..", dir.path().join("a/b/out")).unwrap();
        assert!(matches!(check(dir.path(), dir.path()), Err(TreeFault::Outside { .. })));
        fs::remove_file(dir.path().join("a/b/out")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(matches!(check(dir.path(), dir.path()), Err(TreeFault::Special { .. })));
    }

    #[test]
    fn a_copy_shares_nothing_and_keeps_times() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/x"), "x").unwrap();
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        fs::File::open(from.join("a/x")).unwrap().set_modified(past).unwrap();
        symlink("a/x", from.join("l")).unwrap();
        for (hard, name) in [(false, "copied"), (true, "linked")] {
            let to = to.with_extension(name);
            link(&from, &to, hard).unwrap();
            let (one, other) = (from.join("a/x"), to.join("a/x"));
            let same = fs::metadata(&one).unwrap().ino() == fs::metadata(&other).unwrap().ino();
            assert_eq!(same, hard);
            assert_eq!(fs::metadata(&other).unwrap().modified().unwrap(), past);
            assert_eq!(fs::read_link(to.join("l")).unwrap(), Path::new("a/x"));
        }
    }
}
