//! Looks at a work tree: few, bounded, in one order, and never through a link.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// How much of one file is read.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// How much code is read in all.
const CODE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How deep folders are looked into, and at how many entries in all.
const DEPTH_MAX: usize = 3;
const ENTRIES_MAX: usize = 5000;

/// Folders that hold other people's code, or none.
const SKIPPED: [&str; 14] = [
    "node_modules",
    "vendor",
    "target",
    "dist",
    "build",
    "venv",
    "__pycache__",
    "test",
    "tests",
    "spec",
    "docs",
    "examples",
    "fixtures",
    "tmp",
];

/// A folder of the work tree.
#[derive(Debug)]
pub(super) struct Tree {
    dir: PathBuf,
}

impl Tree {
    pub(super) fn new(dir: &Path) -> Tree {
        Tree { dir: dir.to_owned() }
    }

    pub(super) fn below(&self, folder: &str) -> Tree {
        Tree { dir: if folder == "." { self.dir.clone() } else { self.dir.join(folder) } }
    }

    /// Can it be read at all?
    pub(super) fn check(&self) -> io::Result<()> {
        fs::read_dir(&self.dir).map(drop)
    }

    fn kind(&self, path: &str) -> Option<fs::Metadata> {
        fs::symlink_metadata(self.dir.join(path)).ok()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.kind(path).is_some()
    }

    pub(super) fn has_file(&self, path: &str) -> bool {
        self.kind(path).is_some_and(|meta| meta.is_file())
    }

    pub(super) fn has_folder(&self, path: &str) -> bool {
        self.kind(path).is_some_and(|meta| meta.is_dir())
    }

    pub(super) fn is_executable(&self, path: &str) -> bool {
        self.kind(path).is_some_and(|meta| meta.permissions().mode() & 0o111 != 0)
    }

    /// Returns the beginning of a file, if it is one.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        if !self.has_file(path) {
            return None;
        }
        let mut bytes = Vec::new();
        File::open(self.dir.join(path)).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the code below here: all files whose names end so, in order, up to a bound.
    pub(super) fn code(&self, ends: &[&str]) -> String {
        let mut code = String::new();
        for path in self.files(ends) {
            if code.len() > CODE_BYTES_MAX {
                break;
            }
            code.push_str(&self.text(&path).unwrap_or_default());
            code.push('\n');
        }
        code
    }

    /// Returns the paths of all files whose names end so, those at the top first.
    pub(super) fn files(&self, ends: &[&str]) -> Vec<String> {
        let (files, _) = self.walk();
        files.into_iter().filter(|path| ends.iter().any(|end| path.ends_with(end))).collect()
    }

    /// Returns the paths of the folders below here that a recipe could name.
    pub(super) fn folders(&self) -> Vec<String> {
        self.walk().1
    }

    /// Files and folders, breadth first, in order.
    fn walk(&self) -> (Vec<String>, Vec<String>) {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        let mut level = vec![String::new()];
        let mut left = ENTRIES_MAX;
        for _ in 0..=DEPTH_MAX {
            let mut next = Vec::new();
            for folder in &level {
                let entries = fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten();
                let mut entries: Vec<_> = entries.take(left).collect();
                left -= entries.len();
                entries.sort_by_key(fs::DirEntry::file_name);
                for entry in entries {
                    let (name, kind) = (entry.file_name(), entry.file_type());
                    let Some(name) = name.to_str().filter(|name| is_plain(name)) else { continue };
                    let path = if folder.is_empty() {
                        name.to_owned()
                    } else {
                        format!("{folder}/{name}")
                    };
                    match kind {
                        Ok(kind) if kind.is_file() => files.push(path),
                        Ok(kind) if kind.is_dir() && is_own(name) => next.push(path),
                        _ => {}
                    }
                }
            }
            folders.extend(next.iter().cloned());
            level = next;
        }
        (files, folders)
    }

    /// Returns the top of the repository, and the path from there, where this is a folder of it.
    pub(super) fn repository_above(&self) -> Option<(PathBuf, String)> {
        let dir = self.dir.canonicalize().ok()?;
        let is_top = |dir: &&Path| dir.join(".git").symlink_metadata().is_ok();
        let top = dir.ancestors().find(is_top)?;
        let below = dir.strip_prefix(top).ok()?.to_str().filter(|below| is_plain(below))?;
        (top != dir).then(|| (top.to_owned(), below.to_owned()))
    }
}

/// May this folder hold code of the repository's own?
fn is_own(name: &str) -> bool {
    !name.starts_with('.') && !SKIPPED.contains(&name)
}

/// Names that are left out of a recipe, because nobody could read it.
fn is_plain(name: &str) -> bool {
    !name.chars().any(|c| c.is_control() || matches!(c, '"' | '\'' | '\\'))
}

/// Returns `text` in one line, for a comment.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_bounded_and_follow_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("large.js"), "x".repeat(1_000_000)).unwrap();
        std::os::unix::fs::symlink("large.js", path("link.js")).unwrap();
        std::os::unix::fs::symlink(".", path("loop")).unwrap();
        fs::create_dir_all(path("a/b/c/d/e")).unwrap();
        fs::create_dir_all(path("node_modules/x")).unwrap();
        for file in ["a/b/c/d/e/deep.js", "a/one.js", "node_modules/x/theirs.js", "a/\u{7}.js"] {
            fs::write(path(file), "").unwrap();
        }
        let tree = Tree::new(dir.path());
        assert_eq!(tree.text("large.js").unwrap().len() as u64, FILE_BYTES_MAX);
        assert_eq!(tree.text("link.js"), None);
        assert!(tree.has("link.js") && !tree.has_file("link.js") && !tree.has_folder("loop"));
        assert_eq!(tree.files(&[".js"]), ["large.js", "a/one.js"]);
        assert_eq!(tree.folders(), ["a", "a/b", "a/b/c", "a/b/c/d"]);
        for number in 0..20 {
            fs::write(path(&format!("{number}.js")), "x".repeat(300_000)).unwrap();
        }
        assert!(tree.code(&[".js"]).len() < 3 * 1024 * 1024);
        for number in 0..ENTRIES_MAX {
            fs::write(path(&format!("a/b/{number}.js")), "").unwrap();
        }
        assert!(tree.files(&[".js"]).len() <= ENTRIES_MAX);
    }
}
