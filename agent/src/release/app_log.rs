//! The app's log is bounded, while the app writes to it.
//!
//! ```text
//!   log/app.log ── larger than half of keep.log_mib ──► its end to log/app.log.1, and emptied
//! ```
//!
//! The app holds the file open to append, and nobody tells it to open another one: so the file stays,
//! and what comes next goes to its new end. A line that is written in the same moment may be lost.
//!
//! The directory may be the app's. So a link is not followed, and nothing but a regular file with one
//! name, of the app's user or the agent's, is touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::{DiskError, Store, failed};

const MIB: u64 = 1 << 20;

impl Store {
    /// `<dir>/log/app.log.1`: what was in the app's log before it was emptied last.
    #[must_use]
    pub fn former_app_log(&self) -> std::path::PathBuf {
        self.log().join("app.log.1")
    }

    /// Is the app's log larger than its share of `max_mib`?
    #[must_use]
    pub fn is_app_log_large(&self, max_mib: u64) -> bool {
        let share = max_mib.saturating_mul(MIB) / 2;
        fs::symlink_metadata(self.app_log()).is_ok_and(|meta| meta.is_file() && meta.len() > share)
    }

    /// Empties the app's log where it is too large, and keeps its end beside it: both together take
    /// `max_mib` at most. `user`: the app's. Blocks; returns whether it was emptied.
    ///
    /// # Errors
    ///
    /// It is no plain file of the app's, or cannot be copied; then it is as it was.
    pub fn bound_app_log(&self, max_mib: u64, user: Option<u32>) -> Result<bool, DiskError> {
        if !self.is_app_log_large(max_mib) {
            return Ok(false);
        }
        let (path, former) = (self.app_log(), self.former_app_log());
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path)
            .map_err(failed("open", &path))?;
        let meta = file.metadata().map_err(failed("read", &path))?;
        let own = nix::unistd::geteuid().as_raw();
        let is_owned = meta.uid() == own || Some(meta.uid()) == user;
        if !meta.is_file() || meta.nlink() != 1 || !is_owned {
            let source =
                io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file of the app's");
            return Err(failed("empty", &path)(source));
        }
        let new = self.log().join("app.log.new");
        super::remove_tree(&new).map_err(failed("remove", &new))?;
        let share = max_mib.saturating_mul(MIB) / 2;
        keep_end(&mut file, meta.len().saturating_sub(share), share, &new)
            .map_err(failed("write", &new))?;
        fs::rename(&new, &former).map_err(failed("replace", &former))?;
        file.set_len(0).map_err(failed("empty", &path))?;
        Ok(true)
    }
}

/// Copies from here on to a new file, which the app may not write.
fn keep_end(file: &mut File, from: u64, most: u64, new: &std::path::Path) -> io::Result<()> {
    file.seek(SeekFrom::Start(from))?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o640).open(new)?;
    io::copy(&mut io::Read::take(file, most), &mut copy).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.prepare().unwrap();
        (dir, store)
    }

    #[test]
    fn a_log_that_is_open_to_append_goes_on_where_it_was_emptied() {
        let (_dir, store) = store();
        assert!(!store.bound_app_log(2, None).unwrap(), "there is none");
        let mut app = OpenOptions::new().append(true).create(true).open(store.app_log()).unwrap();
        let line = |text: &str| format!("{text:>1023}\n").into_bytes();
        for _ in 0..1024 {
            app.write_all(&line("old")).unwrap();
        }
        assert!(!store.bound_app_log(2, None).unwrap(), "it has its share and no more");
        for _ in 0..2048 {
            app.write_all(&line("last")).unwrap();
        }
        assert!(store.bound_app_log(2, None).unwrap());
        app.write_all(b"next\n").unwrap();
        assert_eq!(fs::read_to_string(store.app_log()).unwrap(), "next\n");
        let former = fs::read_to_string(store.former_app_log()).unwrap();
        assert_eq!(former.len(), 1 << 20, "the end of it, and no more than its share");
        assert!(former.lines().all(|line| line.trim() == "last"));
        assert!(!store.bound_app_log(2, None).unwrap(), "once is enough");
    }

    #[test]
    fn what_is_no_plain_log_is_left_alone() {
        let (dir, store) = store();
        let victim = dir.path().join("victim");
        fs::write(&victim, vec![b'x'; 2 << 20]).unwrap();
        std::os::unix::fs::symlink(&victim, store.app_log()).unwrap();
        assert!(!store.bound_app_log(1, None).unwrap());
        fs::remove_file(store.app_log()).unwrap();
        fs::hard_link(&victim, store.app_log()).unwrap();
        let error = store.bound_app_log(1, None).unwrap_err();
        assert!(crate::error::chain(&error).contains("no plain file"), "{error}");
        fs::remove_file(store.app_log()).unwrap();
        // Where its end would go, there is a link: it is replaced, not followed.
        fs::write(store.app_log(), vec![b'y'; 1 << 20]).unwrap();
        for name in ["app.log.new", "app.log.1"] {
            std::os::unix::fs::symlink(&victim, store.log().join(name)).unwrap();
        }
        assert!(store.bound_app_log(1, None).unwrap());
        assert_eq!(fs::read(&victim).unwrap(), vec![b'x'; 2 << 20]);
        assert!(fs::symlink_metadata(store.former_app_log()).unwrap().is_file());
    }
}
