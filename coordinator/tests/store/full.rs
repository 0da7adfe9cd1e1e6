//! A disk that is full: a small tmpfs. Only root can mount; who is not root is told that this was left out.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use tokio::task::JoinSet;
use towline_coordinator::store::embedded::Embedded;
use towline_coordinator::store::{Outcome, Store, StoreError};

use super::{put, value_of};

/// A small file system, undone when dropped.
struct Mount(PathBuf);

impl Mount {
    fn small(at: &Path, mib: u64) -> Option<Self> {
        if !geteuid().is_root() {
            // Past what a test harness captures.
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            writeln!(std::io::stderr(), "SKIPPED: {test} needs to mount, and only root can").ok();
            return None;
        }
        let options = format!("size={mib}m,mode=700");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).status();
        assert!(mount.unwrap().success(), "{} is mounted", at.display());
        Some(Self(at.to_owned()))
    }

    /// Takes all room but this much.
    fn fill(&self, left: u64) {
        let path = self.0.join("filler");
        let mut filler = File::create(&path).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length - left).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let is_undone = umount.is_ok_and(|status| status.success());
        assert!(is_undone || std::thread::panicking(), "{} is unmounted", self.0.display());
    }
}

fn is_full<T>(outcome: &Result<T, StoreError>) -> bool {
    outcome.as_ref().is_err_and(|error| {
        matches!(error, StoreError::Full { .. }) && error.is_temporary() && error.hint().is_some()
    })
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_was_acknowledged_stays() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::small(dir.path(), 16) else { return };
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    mount.fill(1 << 20);
    let mut acknowledged = Vec::new();
    let failed = loop {
        let key = format!("k/{:04}", acknowledged.len());
        match store.commit(put(&[(&key, &[7; 20_000]), ("last", key.as_bytes())])).await {
            Ok(Outcome::Done(_)) => acknowledged.push(key),
            other => break other,
        }
    };
    assert!(is_full(&failed), "{failed:?}");
    assert!(acknowledged.len() > 10, "there was room at first");

    let keys = |listed: Vec<towline_coordinator::store::Entry>| {
        listed.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(store.list("k/").await.unwrap().0), acknowledged, "nothing is half-written");
    assert_eq!(value_of(&store, "last").await, acknowledged.last().unwrap().as_bytes());
    assert!(is_full(&store.backup(&dir.path().join("backup.db")).await));
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("backup")).collect();
    assert!(left.is_empty(), "a backup that did not come to its end is removed: {left:?}");

    mount.make_room();
    store.commit(put(&[("k/later", b"1")])).await.unwrap();
    acknowledged.push("k/later".to_owned());
    store.close().await;
    let store = Embedded::open(&path, 1).unwrap();
    assert_eq!(keys(store.list("k/").await.unwrap().0), acknowledged);
    store.close().await;
}

#[tokio::test]
async fn a_commit_that_the_disk_has_no_room_for_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::small(dir.path(), 16) else { return };
    let store = Embedded::open(&dir.path().join("store.db"), 1).unwrap();
    mount.fill(700 << 10);
    let mut tasks = JoinSet::new();
    for number in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            let large = vec![7; if number == 10 { 1 << 20 } else { 10 }];
            let outcome = store.commit(put(&[(&format!("k/{number}"), &large)])).await;
            (number, outcome)
        });
    }
    for (number, outcome) in tasks.join_all().await {
        assert_eq!(is_full(&outcome), number == 10, "{number}: {outcome:?}");
        assert_eq!(outcome.is_ok(), number != 10, "{number}: {outcome:?}");
    }
    assert_eq!(store.list("k/").await.unwrap().0.len(), 19);
    store.close().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_made_for_lack_of_room_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::small(dir.path(), 1) else { return };
    let path = dir.path().join("store.db");
    mount.fill(4096);
    let outcome = Embedded::open(&path, 1);
    assert!(is_full(&outcome), "{outcome:?}");
    assert!(!path.exists());
    mount.make_room();
    Embedded::open(&path, 1).unwrap().close().await;
    // An open store whose disk is full is opened again all the same.
    let mut filler =
        OpenOptions::new().append(true).create(true).open(dir.path().join("f")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    let store = Embedded::open(&path, 1);
    if let Ok(store) = &store {
        assert_eq!(store.list("").await.unwrap().0.len(), 1);
        store.close().await;
    }
    assert!(store.is_ok() || is_full(&store), "{store:?}");
}
