//! Other processes: this test binary itself, started once more with a part to play.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use towline_coordinator::store::embedded::Embedded;
use towline_coordinator::store::{Outcome, Store, StoreError};

use super::{put, value_of};

/// Which part, and on which store.
const PART: &str = "TOWLINE_TEST_STORE_PART";
const PLACE: &str = "TOWLINE_TEST_STORE_PLACE";

/// How many keys the writing part writes to at once.
const WRITERS: usize = 5;

/// What the other process does. Where no part is given there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn part() {
    let Ok(part) = env::var(PART) else { return };
    let path = PathBuf::from(env::var(PLACE).unwrap());
    match part.as_str() {
        "hold" => {
            let _store = Embedded::open(&path, 1).unwrap();
            println!("holds");
            std::future::pending::<()>().await;
        }
        "backup" => {
            Embedded::backup_of(&path, &path.with_extension("backup")).unwrap();
            println!("done");
        }
        "write" => write(Arc::new(Embedded::open(&path, 1).unwrap())).await,
        other => panic!("no part {other}"),
    }
}

/// Writes without an end, and says what was acknowledged.
async fn write(store: Arc<Embedded>) {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let keys = [format!("pair/{writer}/1"), format!("pair/{writer}/2")];
            for count in count_of(&store, &keys[0]).await + 1.. {
                // Of several pages, so that a half-written one would be seen.
                let value = format!("{count} {}", "x".repeat(9_000));
                let pair = keys.each_ref().map(|key| (key.as_str(), value.as_bytes()));
                let Ok(Outcome::Done(version)) = store.commit(put(&pair)).await else {
                    panic!("a commit fails")
                };
                println!("acknowledged {writer} {count} {version}");
            }
        });
    }
    tasks.join_all().await;
}

async fn count_of(store: &Embedded, key: &str) -> u64 {
    let Some(entry) = store.get(key).await.unwrap() else { return 0 };
    let text = String::from_utf8(entry.value).unwrap();
    text.split_once(' ').unwrap().0.parse().unwrap()
}

/// A process of ours, ended when dropped.
struct Other(Child, BufReader<ChildStdout>);

impl Other {
    fn start(part: &str, path: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "process::part", "--nocapture", "--test-threads=1"])
            .env(PART, part)
            .env(PLACE, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self(child, lines)
    }

    /// Returns the next whole line that has this word, from there on; `None` at the end.
    fn line(&mut self, word: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            self.1.read_line(&mut line).unwrap();
            if !line.ends_with('\n') {
                return None;
            }
            // The harness says on the same line which test it runs.
            if let Some(at) = line.find(word) {
                return Some(line[at..].trim_end().to_owned());
            }
        }
    }

    /// Ends it as the kernel would: by SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut newest: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    // After how many answers: in between it is at a point of its own choice.
    for answers in [1, 2, 3, 20, 77, 150, 151, 300] {
        let mut other = Other::start("write", &path);
        let mut take = |line: String| {
            let words: Vec<_> = line.split(' ').collect();
            let [_, writer, count, version] = words[..] else { panic!("{line}") };
            newest.insert(writer.to_owned(), (count.parse().unwrap(), version.parse().unwrap()));
        };
        for _ in 0..answers {
            take(other.line("acknowledged").unwrap());
        }
        other.kill();
        // Said before it was killed, read after.
        while let Some(line) = other.line("acknowledged") {
            take(line);
        }

        let store = Embedded::open(&path, 1).unwrap();
        let (entries, last) = store.list("pair/").await.unwrap();
        for (writer, (count, version)) in &newest {
            let pair: Vec<_> = entries
                .iter()
                .filter(|entry| entry.key.starts_with(&format!("pair/{writer}/")))
                .collect();
            assert_eq!(pair.len(), 2, "after {answers}");
            assert_eq!(pair[0].value, pair[1].value, "a commit is whole, after {answers}");
            assert!(pair[0].version >= *version && last >= *version, "after {answers}");
            assert!(count_of(&store, &pair[0].key).await >= *count, "after {answers}");
        }
        store.close().await;
    }
    assert_eq!(newest.len(), WRITERS);
}

#[tokio::test]
async fn another_process_is_refused_until_the_first_is_gone_however_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut other = Other::start("hold", &path);
    other.line("holds").unwrap();
    let error = Embedded::open(&path, 1).unwrap_err();
    assert!(
        matches!(error, StoreError::Locked { pid, .. } if pid == Some(other.0.id())),
        "{error:?}"
    );
    assert!(error.to_string().contains("another coordinator has it open"), "{error}");
    assert!(error.hint().is_some());
    other.kill();
    Embedded::open(&path, 1).unwrap().close().await;
}

#[tokio::test]
async fn a_backup_is_made_by_another_process_while_the_store_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Embedded::open(&path, 7).unwrap();
    // Still in the log, not in the file.
    store.commit(put(&[("a", b"1")])).await.unwrap();
    let mut other = Other::start("backup", &path);
    other.line("done").unwrap();
    assert!(other.0.wait().unwrap().success());
    store.commit(put(&[("a", b"2")])).await.unwrap();
    store.close().await;
    let backup = Embedded::open(&path.with_extension("backup"), 9).unwrap();
    assert_eq!(value_of(&backup, "a").await, b"1");
    assert_eq!(value_of(&backup, "epoch").await, b"{\"epoch\":7}");
    backup.close().await;
    let store = Embedded::open(&path, 9).unwrap();
    assert_eq!(value_of(&store, "a").await, b"2");
    store.close().await;
}
