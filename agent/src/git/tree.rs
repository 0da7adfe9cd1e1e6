//! Check-out: the tree is walked first, under limits, and only what passed is written.
//!
//! Blobs are written byte for byte. No filter and no attribute is looked at: they drop files and
//! rewrite others, which an app is not built for.
//!
//! The walk keeps its own stack and counts entries as it meets them, so that a small repository
//! which expands to 10^10 paths is refused as soon as the limit is reached.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use git2::{ObjectType, Odb, Oid};
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::RelativePath;

use super::cache::{COMMIT_BYTES_MAX, Cache, TREE_BYTES_MAX, boxed, is_about_objects};
use crate::release::REVISION_FILE;
use crate::release::links::{self, LinkFault};

/// What the first line of a git-lfs pointer begins with, and how large one can be (its spec).
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
const LFS_POINTER_BYTES_MAX: u64 = 1024;

/// The longest a link's target may be: the kernel's own limit.
const LINK_BYTES_MAX: u64 = 4096;

/// The longest name of one file: the limit of every file system in use.
const NAME_BYTES_MAX: usize = 255;

/// What a tree may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Files, folders and links together.
    pub entries: u64,
    /// Folders within folders.
    pub depth: usize,
    /// The length of a path, in bytes.
    pub path_bytes: usize,
    /// All files together, in bytes.
    pub bytes: u64,
    /// One file, in bytes: writing it takes as much memory.
    pub file_bytes: u64,
}

/// A tree that was walked and may be written.
#[derive(Debug)]
pub struct Plan {
    /// The id of the tree.
    pub subtree: String,
    /// Files, folders and links together.
    pub entries: u64,
    /// All files together, in bytes.
    pub bytes: u64,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Dir,
    File { id: Oid, executable: bool },
    Link { target: Vec<u8> },
}

/// Why a tree could not be checked out.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Something in the tree is refused.
    #[error("{path} {reason}")]
    Refused {
        /// The path in the repository, printable.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// The commit or one of its objects cannot be read.
    #[error("could not read {what} from the cache")]
    Read {
        /// The object.
        what: String,
        /// Is the cache itself at fault?
        is_corrupt: bool,
        /// What git said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Writing failed.
    #[error("could not write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Told to stop.
    #[error("the check-out was stopped")]
    Stopped,
}

impl TreeError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            TreeError::Refused { instead, .. } => Some((*instead).to_owned()),
            TreeError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space, or lower keep.releases".to_owned())
            }
            _ => None,
        }
    }

    /// Is the tree itself to blame, so that it would fail the same way every time?
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, TreeError::Refused { .. })
    }

    /// Is the cache to blame, so that it should be made anew?
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, TreeError::Read { is_corrupt: true, .. })
    }
}

impl Plan {
    /// Refuses links that leave the release, and those that climb from what is no folder of it.
    fn check_links(&self) -> Result<(), TreeError> {
        let is_dir = |item: &&Item| matches!(item.kind, Kind::Dir);
        let dirs: BTreeSet<&Path> =
            self.items.iter().filter(is_dir).map(|item| item.path.as_path()).collect();
        for item in &self.items {
            let Kind::Link { target } = &item.kind else { continue };
            let to = Path::new(OsStr::from_bytes(target));
            let Err(fault) = links::judge(&item.path, to, |place| dirs.contains(place)) else {
                continue;
            };
            let path = item.path.as_os_str().as_bytes();
            let target = target.escape_ascii();
            return Err(match fault {
                LinkFault::Outside => refused(
                    path,
                    format!("is a link to {target}, outside of the release"),
                    "link inside of the release, or use [shared]",
                ),
                LinkFault::Climbs(place) => {
                    let place = place.as_os_str().as_bytes().escape_ascii().to_string();
                    let reason = format!(
                        "is a link to {target}, which climbs from {place}, no folder of the \
                         repository"
                    );
                    refused(path, reason, "link without a detour")
                }
            });
        }
        Ok(())
    }

    /// Refuses a tree in which something other than folders leads to `path`, where the agent is to put
    /// something: it would follow a link there, with rights that the app does not have.
    ///
    /// # Errors
    ///
    /// [`TreeError::Refused`].
    pub fn check_way_to(&self, path: &RelativePath) -> Result<(), TreeError> {
        let place = Path::new(path.as_str());
        let is_in_the_way = |item: &&Item| {
            !matches!(item.kind, Kind::Dir) && place != item.path && place.starts_with(&item.path)
        };
        let Some(item) = self.items.iter().find(is_in_the_way) else { return Ok(()) };
        Err(refused(
            item.path.as_os_str().as_bytes(),
            format!("is no folder, and the recipe puts {path} below it"),
            "make it a folder, or name another place in the recipe",
        ))
    }
}

fn refused(path: &[u8], reason: impl Into<String>, instead: &'static str) -> TreeError {
    let path = path.escape_ascii().to_string();
    TreeError::Refused { path, reason: reason.into(), instead }
}

fn unread(what: impl std::fmt::Display) -> impl FnOnce(git2::Error) -> TreeError {
    let what = what.to_string();
    move |error| {
        let is_corrupt = is_about_objects(&error);
        TreeError::Read { what, is_corrupt, source: boxed(error) }
    }
}

impl Cache {
    /// Returns a file of a commit; `None` where it has none of that name.
    ///
    /// # Errors
    ///
    /// It is larger than `bytes_max`, is no file, or cannot be read.
    pub fn file(
        &self,
        revision: &Revision,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, TreeError> {
        let tree = self.root(revision)?;
        let entry = match tree.get_path(Path::new(path)) {
            Ok(entry) => entry,
            Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(unread(path)(error)),
        };
        if !matches!(entry.filemode(), 0o100_644 | 0o100_755) {
            return Err(refused(path.as_bytes(), "is no file", "make it one"));
        }
        let odb = self.repository.odb().map_err(unread(path))?;
        let (size, _) = odb.read_header(entry.id()).map_err(unread(path))?;
        if size as u64 > bytes_max {
            let reason = format!("has {size} bytes, more than {bytes_max}");
            return Err(refused(path.as_bytes(), reason, "make it smaller"));
        }
        Ok(Some(odb.read(entry.id()).map_err(unread(path))?.data().to_vec()))
    }

    fn root(&self, revision: &Revision) -> Result<git2::Tree<'_>, TreeError> {
        let id = Oid::from_str(revision.as_str()).map_err(unread(revision))?;
        self.check_size(id, "commit", COMMIT_BYTES_MAX, "commit with a shorter message")?;
        let commit = self.repository.find_commit(id).map_err(unread(revision))?;
        self.folder(commit.tree_id())
    }

    fn folder(&self, id: Oid) -> Result<git2::Tree<'_>, TreeError> {
        self.check_size(id, "folder", TREE_BYTES_MAX, "spread its files over more folders")?;
        self.repository.find_tree(id).map_err(unread(id))
    }

    /// Refuses an object that is too large to be read whole; its header tells.
    fn check_size(
        &self,
        id: Oid,
        what: &str,
        bytes_max: usize,
        instead: &'static str,
    ) -> Result<(), TreeError> {
        let odb = self.repository.odb().map_err(unread(id))?;
        let (size, _) = odb.read_header(id).map_err(unread(id))?;
        if size > bytes_max {
            let reason = format!("is a {what} object of {size} bytes, more than {bytes_max}");
            return Err(refused(id.to_string().as_bytes(), reason, instead));
        }
        Ok(())
    }

    /// Walks the folder `root` of a commit under `limits`; nothing is written.
    ///
    /// # Errors
    ///
    /// See [`TreeError`].
    pub fn plan(
        &self,
        revision: &Revision,
        root: &RelativePath,
        limits: &Limits,
    ) -> Result<Plan, TreeError> {
        let mut tree = self.root(revision)?;
        if !root.is_root() {
            let missing =
                |reason| refused(root.as_str().as_bytes(), reason, "correct `root` in the recipe");
            let entry = tree
                .get_path(Path::new(root.as_str()))
                .map_err(|_| missing("is not in the repository"))?;
            if entry.kind() != Some(ObjectType::Tree) {
                return Err(missing("is no folder"));
            }
            tree = self.folder(entry.id())?;
        }
        let odb = self.repository.odb().map_err(unread(revision))?;
        let subtree = tree.id();
        let plan = Plan { subtree: subtree.to_string(), entries: 0, bytes: 0, items: Vec::new() };
        let mut walk = Walk { odb, limits, plan };
        let mut trees = vec![(Vec::new(), 0, subtree)];
        while let Some((path, depth, id)) = trees.pop() {
            let tree = self.folder(id)?;
            let mut names = BTreeSet::new();
            for entry in tree.iter() {
                let mut own: Vec<u8> = path.clone();
                if !own.is_empty() {
                    own.push(b'/');
                }
                own.extend_from_slice(entry.name_bytes());
                // Which of the two is meant is anyone's guess: a link and a folder, for one.
                if !names.insert(entry.name_bytes().to_vec()) {
                    return Err(refused(&own, "is in its folder twice", "commit it once"));
                }
                if walk.entry(&own, depth, &entry)? {
                    trees.push((own, depth + 1, entry.id()));
                }
            }
        }
        walk.plan.check_links()?;
        Ok(walk.plan)
    }

    /// Writes a plan to `dest`, which must not exist. Nothing is synced.
    ///
    /// # Errors
    ///
    /// See [`TreeError`]; what was written is then to be thrown away.
    pub fn write(
        &self,
        plan: &Plan,
        dest: &Path,
        stop: &CancellationToken,
    ) -> Result<(), TreeError> {
        let odb = self.repository.odb().map_err(unread("objects"))?;
        make_dir(dest)?;
        for item in &plan.items {
            if stop.is_cancelled() {
                return Err(TreeError::Stopped);
            }
            let path = dest.join(&item.path);
            match &item.kind {
                Kind::Dir => make_dir(&path)?,
                Kind::File { id, executable } => {
                    let object = odb.read(*id).map_err(unread(item.path.display()))?;
                    write_file(&path, object.data(), *executable)
                        .map_err(|source| TreeError::Write { path, source })?;
                }
                Kind::Link { target } => symlink(OsStr::from_bytes(target), &path)
                    .map_err(|source| TreeError::Write { path, source })?,
            }
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> Result<(), TreeError> {
    let failed = |source| TreeError::Write { path: path.to_owned(), source };
    DirBuilder::new().mode(0o755).create(path).map_err(failed)?;
    // Whatever the umask has taken away.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)
}

fn write_file(path: &Path, content: &[u8], executable: bool) -> io::Result<()> {
    let mode = if executable { 0o755 } else { 0o644 };
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file =
        File::options().write(true).create_new(true).mode(mode).custom_flags(flags).open(path)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

struct Walk<'a> {
    odb: Odb<'a>,
    limits: &'a Limits,
    plan: Plan,
}

impl Walk<'_> {
    /// Takes one entry up; returns whether it is a folder to go into.
    fn entry(
        &mut self,
        path: &[u8],
        depth: usize,
        entry: &git2::TreeEntry<'_>,
    ) -> Result<bool, TreeError> {
        self.within_limits(path, depth)?;
        check_name(path, entry.name_bytes())?;
        if depth == 0 && entry.name_bytes() == REVISION_FILE.as_bytes() {
            let instead = "rename it: the agent writes each release's revision there";
            return Err(refused(path, "has a reserved name", instead));
        }
        let own = || PathBuf::from(OsStr::from_bytes(path));
        match entry.filemode_raw() {
            0o040_000 => {
                self.plan.items.push(Item { path: own(), kind: Kind::Dir });
                Ok(true)
            }
            mode @ (0o100_644 | 0o100_664 | 0o100_755) => {
                self.file(path, entry.id())?;
                let kind = Kind::File { id: entry.id(), executable: mode == 0o100_755 };
                self.plan.items.push(Item { path: own(), kind });
                Ok(false)
            }
            0o120_000 => {
                let target = self.link(path, entry.id())?;
                self.plan.items.push(Item { path: own(), kind: Kind::Link { target } });
                Ok(false)
            }
            0o160_000 => Err(refused(
                path,
                "is a submodule, which is not fetched",
                "commit its files, or fetch them in [install]",
            )),
            mode => {
                Err(refused(path, format!("has the mode {mode:o}"), "commit it as a plain file"))
            }
        }
    }

    fn within_limits(&mut self, path: &[u8], depth: usize) -> Result<(), TreeError> {
        let over = |what: String, instead| Err(refused(path, what, instead));
        self.plan.entries += 1;
        if self.plan.entries > self.limits.entries {
            let what = format!("is entry number {}", self.plan.entries);
            return over(what, "commit fewer files, or raise limits.entries in host config");
        }
        if depth > self.limits.depth {
            let what = format!("is more than {} folders deep", self.limits.depth);
            return over(what, "nest less, or raise limits.depth in host config");
        }
        if path.len() > self.limits.path_bytes {
            let what = format!("is a path of {} bytes", path.len());
            return over(what, "use shorter names, or raise limits.path_bytes in host config");
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], id: Oid) -> Result<(), TreeError> {
        let (size, _) = self.odb.read_header(id).map_err(unread(path.escape_ascii()))?;
        if size as u64 > self.limits.file_bytes {
            let what = format!("has {size} bytes, more than {}", self.limits.file_bytes);
            let instead = "fetch it in [install], or raise limits.file_mib in host config";
            return Err(refused(path, what, instead));
        }
        self.plan.bytes = self.plan.bytes.saturating_add(size as u64);
        if self.plan.bytes > self.limits.bytes {
            let what = format!("brings the tree to {} bytes", self.plan.bytes);
            return Err(refused(
                path,
                what,
                "commit less, or raise limits.tree_mib in host config",
            ));
        }
        if (size as u64) < LFS_POINTER_BYTES_MAX {
            let object = self.odb.read(id).map_err(unread(path.escape_ascii()))?;
            if object.data().starts_with(LFS_POINTER) {
                let instead = "commit the file itself, or fetch it in [install]";
                return Err(refused(path, "is an LFS pointer, not the file", instead));
            }
        }
        Ok(())
    }

    fn link(&self, path: &[u8], id: Oid) -> Result<Vec<u8>, TreeError> {
        let (size, _) = self.odb.read_header(id).map_err(unread(path.escape_ascii()))?;
        if size as u64 > LINK_BYTES_MAX {
            return Err(refused(path, "is a link of too many bytes", "make it shorter"));
        }
        let object = self.odb.read(id).map_err(unread(path.escape_ascii()))?;
        Ok(object.data().to_vec())
    }
}

/// Refuses names that mean something else to git, to a file system or to a terminal.
pub(crate) fn check_name(path: &[u8], name: &[u8]) -> Result<(), TreeError> {
    let reason = if name.is_empty() || matches!(name, b"." | b"..") || name.contains(&b'/') {
        "is no name of a file"
    } else if name.iter().any(u8::is_ascii_control) {
        "has control characters in its name"
    } else if name.len() > NAME_BYTES_MAX {
        "has a name of more than 255 bytes"
    } else if is_dot_git(name) {
        "is a way to write .git"
    } else {
        return Ok(());
    };
    Err(refused(path, reason, "rename it"))
}

/// `.git` as any file system may fold it: case, trailing dots and spaces, a stream's name, the short
/// name of NTFS, and characters that HFS+ ignores.
fn is_dot_git(name: &[u8]) -> bool {
    let text: String = String::from_utf8_lossy(name)
        .chars()
        .filter(|c| !matches!(u32::from(*c), 0x200c..=0x200f | 0x202a..=0x202e | 0x206a..=0x206f | 0xfeff))
        .collect();
    let text = text.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    text.eq_ignore_ascii_case(".git") || text.eq_ignore_ascii_case("git~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_too_large_to_be_read_is_here_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("git")).unwrap();
        let repository = &cache.repository;
        let tree = repository.treebuilder(None).unwrap().write().unwrap();
        let tree = repository.find_tree(tree).unwrap();
        let who = git2::Signature::new("a", "a@b", &git2::Time::new(0, 0)).unwrap();
        for (length, is_refused) in [(1_000, false), (2 << 20, true)] {
            let message = "m".repeat(length);
            let id = repository.commit(None, &who, &who, &message, &tree, &[]).unwrap();
            let revision: Revision = id.to_string().parse().unwrap();
            assert!(cache.has(&revision), "{length}: else it is fetched again and again");
            let found = cache.file(&revision, "x", 10);
            assert_eq!(found.is_err(), is_refused, "{length}");
            if let Err(error) = found {
                assert!(error.is_refusal() && error.hint().is_some());
                assert!(error.to_string().contains("object of 2097"), "{error}");
            }
        }
    }

    #[test]
    fn git_is_known_in_every_spelling() {
        for name in
            [".git", ".GIT", ".giT", ".git.", ".git ", "git~1", "GIT~1", ".g\u{200c}it", ".git::$X"]
        {
            assert!(is_dot_git(name.as_bytes()), "{name:?}");
        }
        for name in [".gitignore", ".gitattributes", "git", "x.git", "git~2"] {
            assert!(!is_dot_git(name.as_bytes()), "{name:?}");
        }
    }
}
