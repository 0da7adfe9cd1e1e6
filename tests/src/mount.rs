//! Mounts for tests: what stands in a full, a read-only or another file system.
//!
//! Only root can mount. Who is not root gets none, and is told on the terminal, past what a test
//! harness captures: a test that was left out must not look like one that passed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;

/// A mount that is undone when the value is dropped, also when a test fails.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts an empty file system of at most `mib` MiB at `at`, a directory that exists; `None` for
    /// whoever is not root.
    #[must_use]
    pub fn small(at: &Path, mib: u64) -> Option<Self> {
        let size = format!("size={mib}m,mode=755");
        Self::made(at, &["-t", "tmpfs", "-o", &size, "none"])
    }

    /// Mounts an ext4 of `mib` MiB of its own at `at`; its bytes are in the new file `image`. `None` for
    /// whoever is not root.
    #[must_use]
    pub fn ext4(at: &Path, image: &Path, mib: u64) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let file = File::create_new(image).expect("a new file");
        file.set_len(mib << 20).expect("a file may have holes");
        assert!(is_done("mkfs.ext4", &["-q", "-F"], image), "{} is made", image.display());
        Self::image(at, image)
    }

    /// Mounts the file system whose bytes are in `image` at `at`; `None` for whoever is not root.
    #[must_use]
    pub fn image(at: &Path, image: &Path) -> Option<Self> {
        let image = image.to_str().expect("a temp dir's name is text");
        Self::made(at, &["-o", "loop", image])
    }

    /// Mounts an empty file system of at most `mib` MiB and so many inodes at `at`; `None` for whoever is
    /// not root.
    #[must_use]
    pub fn of_inodes(at: &Path, mib: u64, inodes: u64) -> Option<Self> {
        let size = format!("size={mib}m,mode=755,nr_inodes={inodes}");
        Self::made(at, &["-t", "tmpfs", "-o", &size, "none"])
    }

    /// Gives a file system that was made [`Mount::small`] this many MiB in all.
    pub fn resize(&self, mib: u64) {
        let size = format!("remount,size={mib}m");
        assert!(is_done("mount", &["-o", &size], &self.at), "{} is resized", self.at.display());
    }

    /// Leaves so many inodes free in a file system that was made with [`Mount::of_inodes`].
    pub fn leave_inodes(&self, free: u64) {
        let found = statvfs(&self.at).expect("it is mounted");
        let count = format!("remount,nr_inodes={}", found.files() - found.files_free() + free);
        assert!(is_done("mount", &["-o", &count], &self.at), "{} has them", self.at.display());
    }

    /// Has an ext4 give up, as when its disk is lost: whoever writes is refused, until it is mounted anew.
    pub fn give_up(&self) {
        // Told by an error that says so.
        is_done("mount", &["-o", "remount,abort"], &self.at);
        let probe = self.at.join("probe");
        assert!(std::fs::write(probe, "x").is_err(), "{} gives up", self.at.display());
    }

    /// Makes what is at `at` read-only; `None` for whoever is not root.
    #[must_use]
    pub fn read_only(at: &Path) -> Option<Self> {
        let path = at.to_str().expect("a temp dir's name is text");
        let mount = Self::made(at, &["--bind", path])?;
        assert!(is_done("mount", &["-o", "remount,ro,bind"], at), "{path} is read-only");
        Some(mount)
    }

    fn made(at: &Path, arguments: &[&str]) -> Option<Self> {
        if !geteuid().is_root() {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            writeln!(std::io::stderr(), "SKIPPED: {test} needs to mount, and only root can").ok();
            return None;
        }
        assert!(is_done("mount", arguments, at), "{} is mounted", at.display());
        Some(Self { at: at.to_owned() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: an app that runs there still is ended by whoever started it.
        let is_undone = is_done("umount", &["--lazy"], &self.at);
        assert!(is_undone || std::thread::panicking(), "{} is unmounted", self.at.display());
    }
}

/// Undoes every mount below `dir`: what whoever made them had no time for.
pub fn undo_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc(5): the fifth field is where. Later mounts may lie upon earlier ones.
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for place in places.map(Path::new).filter(|place| place.starts_with(dir)) {
        is_done("umount", &["--lazy"], place);
    }
}

fn is_done(program: &str, arguments: &[&str], at: &Path) -> bool {
    let status = Command::new(program).args(arguments).arg(at).status();
    status.is_ok_and(|status| status.success())
}
