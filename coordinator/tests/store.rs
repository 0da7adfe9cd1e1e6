//! The embedded store: held to the suite, and to what a file promises beyond it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests, which lints know of functions only"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rusqlite::Connection;
use tokio::task::JoinSet;
use towline_coordinator::store::embedded::Embedded;
use towline_coordinator::store::{
    Commit, EPOCH_KEY, OPERATIONS_MAX, Outcome, Store, StoreError, Watch, Write, conformance,
};

#[path = "store/full.rs"]
mod full;
#[path = "store/process.rs"]
mod process;

fn put(pairs: &[(&str, &[u8])]) -> Commit {
    let put =
        |(key, value): &(&str, &[u8])| Write::Put { key: (*key).to_owned(), value: value.to_vec() };
    Commit { compares: Vec::new(), writes: pairs.iter().map(put).collect() }
}

async fn value_of(store: &Embedded, key: &str) -> Vec<u8> {
    store.get(key).await.unwrap().unwrap().value
}

fn version(outcome: Outcome) -> u64 {
    let Outcome::Done(version) = outcome else { panic!("a conflict") };
    version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_store_does() {
    let mut dirs = Vec::new();
    let empty = async || {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.db"), 1).unwrap();
        dirs.push(dir);
        store
    };
    if let Err(broken) = conformance::run(empty).await {
        panic!("{broken}: {broken:?}");
    }
}

#[tokio::test]
async fn a_new_store_has_its_epoch_and_one_that_is_there_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    for now_s in [1_700_000_000, 1_800_000_000] {
        let store = Embedded::open(&path, now_s).unwrap();
        assert_eq!(value_of(&store, EPOCH_KEY).await, b"{\"epoch\":1700000000}");
        let (entries, _) = store.list("").await.unwrap();
        assert_eq!(entries.len(), 1, "and nothing else");
        store.close().await;
    }
    assert!(!dir.path().join("store.db-wal").exists(), "what is closed is one file");
}

#[tokio::test]
async fn versions_go_on_after_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut newest = 0;
    for round in 0..5 {
        let store = Embedded::open(&path, 1).unwrap();
        let (_, at) = store.list("").await.unwrap();
        assert!(at >= newest, "round {round}");
        let first = version(store.commit(put(&[("a", b"1"), ("b", b"1")])).await.unwrap());
        assert!(first > newest, "round {round}");
        // The last thing that happens is that a key goes.
        let writes = vec![Write::Delete { key: "a".to_owned() }];
        newest = version(store.commit(Commit { compares: vec![], writes }).await.unwrap());
        assert!(newest > first, "round {round}");
        let past = store.watch("a", at).next().await.unwrap();
        assert_eq!(past.len(), 2, "what happened before can be watched, round {round}");
        store.close().await;
    }
}

#[tokio::test]
async fn whoever_uses_a_closed_store_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    let (_, at) = store.list("").await.unwrap();
    let mut waits = store.watch("", at);
    let waiting = tokio::spawn(async move { waits.next().await });
    let mut later = store.watch("", at);
    let handle = store.clone();
    store.close().await;
    let is_closed = |error: &StoreError| matches!(error, StoreError::Closed);
    assert!(waiting.await.unwrap().is_err_and(|error| is_closed(&error)));
    assert!(later.next().await.is_err_and(|error| is_closed(&error)));
    assert!(handle.get("a").await.is_err_and(|error| is_closed(&error)));
    assert!(handle.commit(put(&[("a", b"1")])).await.is_err_and(|error| is_closed(&error)));
    handle.close().await;
    // With all those handles still there.
    Embedded::open(&path, 1).unwrap().close().await;
}

#[tokio::test]
async fn it_closes_once_the_last_handle_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    store.commit(put(&[("a", b"1")])).await.unwrap();
    drop(store);
    let opened = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        loop {
            match Embedded::open(&path, 1) {
                Err(StoreError::Locked { .. }) => tokio::task::yield_now().await,
                other => break other,
            }
        }
    });
    let store = opened.await.unwrap().unwrap();
    assert_eq!(value_of(&store, "a").await, b"1");
    store.close().await;
}

#[tokio::test]
async fn what_was_asked_for_before_it_is_closed_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..50 {
        let store = store.clone();
        tasks.spawn(async move { store.commit(put(&[(&format!("k/{number}"), b"1")])).await });
    }
    // Lets each of them ask.
    tokio::task::yield_now().await;
    store.close().await;
    let outcomes = tasks.join_all().await;
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let store = Embedded::open(&path, 1).unwrap();
    assert_eq!(store.list("k/").await.unwrap().0.len(), done, "what was answered, and no more");
    assert!(done > 0);
    store.close().await;
}

#[tokio::test]
async fn it_is_not_opened_twice_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let link = dir.path().join("link.db");
    let store = Embedded::open(&path, 1).unwrap();
    symlink(&path, &link).unwrap();
    for path in [&path, &link, &dir.path().join(".").join("store.db")] {
        let error = Embedded::open(path, 1).unwrap_err();
        let own = std::process::id();
        assert!(matches!(error, StoreError::Locked { pid, .. } if pid == Some(own)), "{error:?}");
    }
    store.commit(put(&[("a", b"1")])).await.unwrap();
    store.close().await;
    Embedded::open(&link, 1).unwrap().close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    Embedded::open(&path, 1).unwrap().close().await;
    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = fs::read(&path).unwrap();
    let error = Embedded::open(&path, 1).unwrap_err();
    assert!(matches!(error, StoreError::Newer { version: 99, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("newer"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    let other = fs::read(other).unwrap();
    let noise: Vec<u8> =
        (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut cut = b"SQLite format 3\0".to_vec();
    cut.resize(60, 0);
    let cases = [
        ("nothing", vec![]),
        ("a word", b"hello".to_vec()),
        ("noise", noise),
        ("a file of another program", other),
        ("the beginning of one", cut),
    ];
    for (rule, bytes) in cases {
        let path = dir.path().join("store.db");
        fs::write(&path, &bytes).unwrap();
        let error = Embedded::open(&path, 1).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{rule}: {error:?}");
        assert!(error.hint().unwrap().contains("move"), "{rule}");
        let backup = dir.path().join("backup.db");
        let error = Embedded::backup_of(&path, &backup).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{rule}: {error:?}");
        assert!(!backup.exists(), "{rule}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{rule}: left as it is");
        assert!(!dir.path().join("store.db-wal").exists(), "{rule}: nothing was made");
    }
    let place = dir.path().join("place");
    fs::create_dir(&place).unwrap();
    let error = Embedded::open(&place, 1).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "a directory: {error:?}");
    assert!(!dir.path().join("place.lock").exists(), "and nothing is made beside it");
}

#[tokio::test]
async fn a_log_without_its_store_is_not_replayed_into_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    fs::write(dir.path().join("store.db-wal"), "a log").unwrap();
    let error = Embedded::open(&path, 1).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
    assert!(!path.exists());
    assert_eq!(fs::read(dir.path().join("store.db-wal")).unwrap(), b"a log");
}

#[tokio::test]
async fn damage_is_told_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    for number in 0..50 {
        store.commit(put(&[(&format!("k/{number}"), &[7; 1000])])).await.unwrap();
    }
    store.close().await;
    let bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    assert!(pages > 20);
    for page in 1..pages {
        let mut damaged = bytes.clone();
        damaged[page * 4096..][..100].fill(0xa5);
        fs::write(&path, damaged).unwrap();
        let error = Embedded::open(&path, 1).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "page {page}: {error:?}");
        assert!(error.hint().unwrap().contains("backup"), "{error}");
    }
    fs::write(&path, bytes).unwrap();
    Embedded::open(&path, 1).unwrap().close().await;
}

#[tokio::test]
async fn its_directory_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Embedded::open(&missing.join("store.db"), 1).unwrap_err();
    assert!(error.hint().unwrap().contains(missing.to_str().unwrap()), "{error:?}");
    let missing = dir.path().join("missing.db");
    let error = Embedded::backup_of(&missing, &dir.path().join("backup.db")).unwrap_err();
    assert!(error.to_string().contains("could not open"), "{error}");
    assert!(!missing.exists(), "a backup of nothing makes nothing");
}

#[tokio::test]
async fn only_its_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let modes = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let mode = |entry: &fs::DirEntry| entry.metadata().unwrap().permissions().mode() & 0o777;
        entries.map(|entry| (entry.file_name(), mode(&entry))).collect::<Vec<_>>()
    };
    Embedded::open(&path, 1).unwrap().close().await;
    // As a file that was copied may be.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = Embedded::open(&path, 1).unwrap();
    store.commit(put(&[("a", b"1")])).await.unwrap();
    store.backup(&dir.path().join("backup.db")).await.unwrap();
    let found = modes();
    assert!(found.len() >= 5, "the file, its log, its lock and a backup: {found:?}");
    for (name, mode) in found {
        assert_eq!(mode, 0o600, "{}", name.display());
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_a_store_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db"), 7).unwrap();
    store.commit(put(&[("a/bytes", &[0, 255, 10])])).await.unwrap();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for count in 0..200_u32 {
                let value = count.to_be_bytes();
                store.commit(put(&[("pair/1", &value), ("pair/2", &value)])).await.unwrap();
            }
        }
    });
    let mut versions = Vec::new();
    for number in 0..5 {
        let to = dir.path().join(format!("backup-{number}.db"));
        let (_, before) = store.list("").await.unwrap();
        store.backup(&to).await.unwrap();
        let (_, after) = store.list("").await.unwrap();
        let backup = Embedded::open(&to, 99).unwrap();
        let (entries, at) = backup.list("pair/").await.unwrap();
        assert!((before..=after).contains(&at));
        assert!(entries.iter().all(|entry| entry.value == entries[0].value), "of one moment");
        assert_eq!(value_of(&backup, "epoch").await, b"{\"epoch\":7}", "it is the same store");
        assert_eq!(value_of(&backup, "a/bytes").await, [0, 255, 10]);
        let next = version(backup.commit(put(&[("b", b"1")])).await.unwrap());
        assert!(next > at, "it goes on from there");
        versions.push(at);
        backup.close().await;
    }
    writing.await.unwrap();
    assert!(versions.is_sorted());
    store.close().await;
}

#[tokio::test]
async fn a_backup_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "theirs").unwrap();
    symlink("nowhere", &link).unwrap();
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    let before = names(dir.path());
    for to in [&path, &file, &link, dir.path()] {
        let error = store.backup(to).await.unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{}: {error:?}", to.display());
        let error = Embedded::backup_of(&path, to).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{}: {error:?}", to.display());
    }
    assert_eq!(fs::read(&file).unwrap(), b"theirs");
    assert_eq!(names(dir.path()), before, "and leaves nothing");
    let missing = dir.path().join("missing").join("backup.db");
    assert!(store.backup(&missing).await.is_err());
    store.close().await;
}

#[tokio::test]
async fn commits_that_wait_are_made_durable_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db"), 1).unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let store = store.clone();
        tasks.spawn(async move { store.commit(put(&[(&format!("k/{number}"), b"1")])).await });
    }
    let outcomes = tasks.join_all().await;
    let versions: std::collections::BTreeSet<_> =
        outcomes.into_iter().map(|outcome| version(outcome.unwrap())).collect();
    assert_eq!(versions.len(), 200, "each has a version of its own");
    let transactions = store.transactions();
    assert!((1..=40).contains(&transactions), "{transactions} transactions");
    // What changes nothing costs nothing.
    let compares = vec![towline_coordinator::store::Compare { key: "k/1".into(), version: None }];
    let conflict = Commit { compares, writes: put(&[("k/1", b"2")]).writes };
    assert_eq!(store.commit(conflict).await.unwrap(), Outcome::Conflict);
    assert_eq!(store.transactions(), transactions);
    store.close().await;
}

#[tokio::test]
async fn it_forgets_old_changes_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 1).unwrap();
    let keys: Vec<_> = (0..OPERATIONS_MAX).map(|number| format!("k/{number}")).collect();
    let pairs: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"1"[..])).collect();
    for _ in 0..115 {
        store.commit(put(&pairs)).await.unwrap();
    }
    let oldest = |outcome| match outcome {
        Err(StoreError::Compacted { oldest }) => oldest,
        other => panic!("not compacted: {other:?}"),
    };
    let kept = oldest(store.watch("k/", 1).next().await);
    let (_, newest) = store.list("").await.unwrap();
    assert!(newest - kept >= 10_000, "as many as were promised are kept");
    store.close().await;
    let store = Embedded::open(&path, 1).unwrap();
    assert_eq!(oldest(store.watch("k/", 1).next().await), kept, "also once it is opened again");
    assert_eq!(value_of(&store, EPOCH_KEY).await, b"{\"epoch\":1}", "what is, is not forgotten");
    store.close().await;
}
