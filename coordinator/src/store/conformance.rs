//! What every store must do, as checks that run against any of them.
//!
//! ```text
//!   for each check:  an empty store ──► check ──► it holds, or what does not
//! ```
//!
//! A check does not care how versions are numbered, whether the store holds an epoch already, or how long
//! it remembers changes. It runs in a tokio runtime, best in one of several threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{
    COMMIT_BYTES_MAX, Change, Commit, Compare, KEY_BYTES_MAX, OPERATIONS_MAX, Outcome, Store,
    StoreError, VALUE_BYTES_MAX, Version, Watch, Write,
};

/// How long a check may take: a watch that never tells ends here.
const DEADLINE: Duration = Duration::from_secs(60);

/// How many changes are made, at most, for a store to forget the first of them.
const FORGETS_AFTER_MAX: usize = 30_000;

/// What a store does otherwise than it must.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It does not what a rule says.
    #[error("{rule}: {found}")]
    Rule {
        /// The rule.
        rule: String,
        /// What was found instead.
        found: String,
    },
    /// It fails.
    #[error("could not check a store that fails")]
    Store(#[from] StoreError),
    /// A check by its name.
    #[error("{check}")]
    Check {
        /// Its name.
        check: &'static str,
        /// What it found.
        source: Box<Broken>,
    },
}

type Held = Result<(), Broken>;

/// A check: what it is given is an empty store, and nobody else uses it.
pub type Check<S> = fn(S) -> Pin<Box<dyn Future<Output = Held> + Send>>;

/// Returns all checks by their names.
#[must_use]
pub fn checks<S: Store>() -> Vec<(&'static str, Check<S>)> {
    vec![
        ("a key is compared by its version", |s| Box::pin(compares(s))),
        ("a commit happens whole or not at all", |s| Box::pin(is_whole(s))),
        ("versions grow and are never used again", |s| Box::pin(versions_grow(s))),
        ("a commit that changes nothing is no commit to others", |s| Box::pin(changes_nothing(s))),
        ("a list is sorted and has its prefix", |s| Box::pin(list_is_exact(s))),
        ("a list is of one moment", |s| Box::pin(list_is_one_moment(s))),
        ("values are bytes, and keys are text", |s| Box::pin(values_are_bytes(s))),
        ("what every store takes is taken, and more is refused", |s| Box::pin(limits(s))),
        ("no increment is lost", |s| Box::pin(increments(s))),
        ("a watch begins where it is told to", |s| Box::pin(watch_begins(s))),
        ("a watch tells of its prefix alone", |s| Box::pin(watch_has_its_prefix(s))),
        ("a watch tells each commit once, whole, in order", |s| Box::pin(watch_is_whole(s))),
        ("a wait that is given up loses nothing", |s| Box::pin(watch_is_cancelled(s))),
        ("what is no longer kept is told", |s| Box::pin(watch_is_compacted(s))),
    ]
}

/// Runs all checks, each on a store that `empty` makes.
///
/// # Errors
///
/// The first one that does not hold.
pub async fn run<S: Store>(mut empty: impl AsyncFnMut() -> S) -> Held {
    for (name, check) in checks() {
        let outcome = tokio::time::timeout(DEADLINE, check(empty().await)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let found = format!("it did not end within {} s", DEADLINE.as_secs());
            Err(Broken::Rule { rule: "a check ends".to_owned(), found })
        });
        outcome.map_err(|source| Broken::Check { check: name, source: Box::new(source) })?;
    }
    Ok(())
}

fn hold(holds: bool, rule: &str) -> Held {
    same(&holds, &true, rule)
}

fn same<T: PartialEq + Debug>(found: &T, expected: &T, rule: &str) -> Held {
    if found == expected {
        return Ok(());
    }
    // A large value says nothing that its beginning does not.
    let shown = |value: &T| format!("{value:?}").chars().take(400).collect::<String>();
    let found = format!("{}, not {}", shown(found), shown(expected));
    Err(Broken::Rule { rule: rule.to_owned(), found })
}

fn put(key: &str, value: impl Into<Vec<u8>>) -> Write {
    Write::Put { key: key.to_owned(), value: value.into() }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}

fn commit(compares: &[(&str, Option<Version>)], writes: Vec<Write>) -> Commit {
    let compares =
        compares.iter().map(|(key, version)| Compare { key: (*key).to_owned(), version: *version });
    Commit { compares: compares.collect(), writes }
}

async fn done<S: Store>(store: &S, commit: Commit) -> Result<Version, Broken> {
    match store.commit(commit).await? {
        Outcome::Done(version) => Ok(version),
        Outcome::Conflict => {
            let found = "it conflicts".to_owned();
            Err(Broken::Rule { rule: "a commit whose compares hold is done".to_owned(), found })
        }
    }
}

/// Returns the value of a key, and its version.
async fn get<S: Store>(store: &S, key: &str) -> Result<Option<(Vec<u8>, Version)>, Broken> {
    Ok(store.get(key).await?.map(|entry| (entry.value, entry.version)))
}

async fn compares<S: Store>(store: S) -> Held {
    let first = done(&store, commit(&[("a", None)], vec![put("a", "1")])).await?;
    let other = done(&store, commit(&[("b", None)], vec![put("b", "1")])).await?;
    let cases = [
        ("there is one", vec![("a", None)]),
        ("there is none", vec![("c", Some(first))]),
        ("an older version", vec![("a", Some(first - 1))]),
        ("a newer version", vec![("a", Some(other))]),
        ("the last one does not hold", vec![("a", Some(first)), ("c", None), ("b", None)]),
        ("the first one does not hold", vec![("b", None), ("a", Some(first))]),
    ];
    for (rule, compares) in cases {
        let outcome = store.commit(commit(&compares, vec![put("a", "2")])).await?;
        same(&outcome, &Outcome::Conflict, rule)?;
        same(&get(&store, "a").await?, &Some((b"1".to_vec(), first)), rule)?;
    }
    let all = [("a", Some(first)), ("b", Some(other)), ("c", None)];
    let second = done(&store, commit(&all, vec![put("a", "2")])).await?;
    same(&get(&store, "a").await?, &Some((b"2".to_vec(), second)), "all hold")
}

async fn is_whole<S: Store>(store: S) -> Held {
    let first = done(&store, commit(&[], vec![put("k/1", "old"), put("k/2", "old")])).await?;
    let change = vec![put("k/1", "new"), delete("k/2"), put("k/3", "new")];
    let outcome = store.commit(commit(&[("k/1", None)], change.clone())).await?;
    same(&outcome, &Outcome::Conflict, "there is one")?;
    let old = [("k/1", "old", first), ("k/2", "old", first)];
    same(&listed(&store, "k/").await?, &owned(&old), "nothing of it happened")?;
    let second = done(&store, commit(&[("k/1", Some(first))], change)).await?;
    let new = [("k/1", "new", second), ("k/3", "new", second)];
    same(&listed(&store, "k/").await?, &owned(&new), "all of it happened, under one version")
}

type Listed = Vec<(String, Vec<u8>, Version)>;

async fn listed<S: Store>(store: &S, prefix: &str) -> Result<Listed, Broken> {
    let (entries, _) = store.list(prefix).await?;
    Ok(entries.into_iter().map(|entry| (entry.key, entry.value, entry.version)).collect())
}

fn owned(entries: &[(&str, &str, Version)]) -> Listed {
    let own = |(key, value, version): &(&str, &str, Version)| {
        ((*key).to_owned(), value.as_bytes().to_vec(), *version)
    };
    entries.iter().map(own).collect()
}

async fn versions_grow<S: Store>(store: S) -> Held {
    let (_, mut newest) = store.list("").await?;
    let writes = [put("a", "1"), put("a", "1"), delete("a"), put("a", "1"), delete("a")];
    for (step, write) in writes.into_iter().enumerate() {
        let version = done(&store, commit(&[], vec![write, put("beside", "1")])).await?;
        hold(version > newest, "a later commit has a higher version")?;
        newest = version;
        let found = get(&store, "a").await?.map(|(_, version)| version);
        let is_there = !matches!(step, 2 | 4);
        same(&found, &is_there.then_some(newest), "a key has its last writer's version")?;
        same(&store.list("none").await?.1, &newest, "the store has its last commit's version")?;
    }
    let put_again = done(&store, commit(&[("a", None)], vec![put("a", "1")])).await?;
    hold(put_again > newest, "a key that is put again has a new version")?;
    let outcome = store.commit(commit(&[("a", Some(newest))], vec![delete("a")])).await?;
    same(&outcome, &Outcome::Conflict, "it is not what it was before")
}

async fn changes_nothing<S: Store>(store: S) -> Held {
    let version = done(&store, commit(&[], vec![put("a", "1")])).await?;
    let mut watch = store.watch("", version);
    let nothing = commit(&[("a", Some(version))], Vec::new());
    same(&done(&store, nothing).await?, &version, "who only compares has the store's version")?;
    let outcome = store.commit(commit(&[("a", None)], Vec::new())).await?;
    same(&outcome, &Outcome::Conflict, "who only compares may be wrong")?;
    let gone = commit(&[], vec![delete("none")]);
    same(&done(&store, gone).await?, &version, "removing nothing has the store's version")?;
    same(&store.list("").await?.1, &version, "the store's version is as before")?;
    let last = done(&store, commit(&[], vec![delete("none"), put("b", "1")])).await?;
    let change = Change { key: "b".to_owned(), value: Some(b"1".to_vec()), version: last };
    same(&watch.next().await?, &vec![change], "nobody is told of what was not there")
}

async fn list_is_exact<S: Store>(store: S) -> Held {
    let keys = [
        "a",
        "a/",
        "a/1",
        "a/10",
        "a/2",
        "a/\u{10ffff}",
        "a/\u{10ffff}b",
        "a0",
        "ab",
        "b/1",
        "A/1",
    ];
    let mut version = 0;
    for key in keys.iter().rev() {
        version = done(&store, commit(&[], vec![put(key, *key)])).await?;
    }
    let cases: [(&str, &[&str]); 6] = [
        ("a/", &["a/", "a/1", "a/10", "a/2", "a/\u{10ffff}", "a/\u{10ffff}b"]),
        ("a/1", &["a/1", "a/10"]),
        ("a/\u{10ffff}", &["a/\u{10ffff}", "a/\u{10ffff}b"]),
        ("b", &["b/1"]),
        ("c", &[]),
        ("a/%", &[]),
    ];
    for (prefix, expected) in cases {
        let (entries, at) = store.list(prefix).await?;
        let found: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
        same(&found.as_slice(), &expected, &format!("list {prefix:?}"))?;
        same(&at, &version, "a list has the store's version")?;
    }
    let (all, _) = store.list("").await?;
    let found: BTreeSet<_> = all.iter().map(|entry| entry.key.as_str()).collect();
    hold(keys.iter().all(|key| found.contains(key)), "every key begins with nothing")?;
    hold(all.is_sorted_by(|a, b| a.key < b.key), "by the bytes of their keys")
}

/// Starts writers, each of which commits `commits` times: its own number and its count, to the two keys
/// `<prefix>1` and `<prefix>2`, both at once.
fn write_pairs<S: Store>(
    store: &S,
    prefix: &'static str,
    writers: usize,
    commits: usize,
) -> JoinSet<Held> {
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            for count in 0..commits {
                let value = format!("{writer} {count}");
                let keys = [format!("{prefix}1"), format!("{prefix}2")];
                let writes = keys.iter().map(|key| put(key, value.as_str())).collect();
                done(&store, commit(&[], writes)).await?;
            }
            Ok(())
        });
    }
    tasks
}

async fn ended(mut tasks: JoinSet<Held>) -> Held {
    while let Some(outcome) = tasks.join_next().await {
        written(outcome)?;
    }
    Ok(())
}

fn written(outcome: Result<Held, tokio::task::JoinError>) -> Held {
    outcome.unwrap_or_else(|error| {
        let found = error.to_string();
        Err(Broken::Rule { rule: "a writer ends".to_owned(), found })
    })
}

async fn list_is_one_moment<S: Store>(store: S) -> Held {
    let mut tasks = write_pairs(&store, "pair/", 4, 50);
    let mut newest = 0;
    loop {
        if let Some(outcome) = tasks.try_join_next() {
            written(outcome)?;
            return ended(tasks).await;
        }
        let (entries, version) = store.list("pair/").await?;
        hold(version >= newest, "a later list is of a later moment")?;
        newest = version;
        let Some(first) = entries.first() else { continue };
        same(&entries.len(), &2, "both or none")?;
        let is_alike =
            |entry: &super::Entry| entry.value == first.value && entry.version == first.version;
        hold(entries.iter().all(is_alike), "both are of one commit")?;
        // They change with each commit, and no other key does.
        same(&first.version, &version, "the version is of the same moment")?;
    }
}

async fn values_are_bytes<S: Store>(store: S) -> Held {
    let all: Vec<u8> = (0..=255).collect();
    let mut watch = store.watch("v/", store.list("v/").await?.1);
    let keys = ["v/all", "v/none", "v/ключ", "v/ with space", "v/'\"%_\\", "v/a\nb"];
    for key in keys {
        let value = if key == "v/none" { Vec::new() } else { all.clone() };
        let version =
            done(&store, commit(&[("v/all2", None)], vec![put(key, value.clone())])).await?;
        same(&get(&store, key).await?, &Some((value.clone(), version)), key)?;
        let change = Change { key: key.to_owned(), value: Some(value), version };
        same(&watch.next().await?, &vec![change], key)?;
    }
    same(&store.list("v/").await?.0.len(), &keys.len(), "each key is one of its own")
}

async fn limits<S: Store>(store: S) -> Held {
    let key = |bytes| format!("l/{}", "k".repeat(bytes - 2));
    let many = |number| (0..number).map(|n| put(&format!("l/{n}"), "1")).collect::<Vec<_>>();
    let value = |bytes| vec![7; bytes];
    let before = store.list("").await?;
    let half = COMMIT_BYTES_MAX / 2;
    let refused = [
        ("too many operations", commit(&[], many(OPERATIONS_MAX + 1))),
        ("too many with compares", commit(&[("c", None)], many(OPERATIONS_MAX))),
        ("a key that is too long", commit(&[], vec![put(&key(KEY_BYTES_MAX + 1), "1")])),
        ("a key without a name", commit(&[], vec![put("", "1")])),
        ("a value that is too large", commit(&[], vec![put("l/", value(VALUE_BYTES_MAX + 1))])),
        ("too much", commit(&[], vec![put("l/1", value(half)), put("l/2", value(half))])),
        ("a key twice", commit(&[], vec![put("l/1", "1"), put("l/1", "2")])),
        ("a key put and deleted", commit(&[], vec![put("l/1", "1"), delete("l/1")])),
    ];
    for (rule, commit) in refused {
        let is_refused = store.commit(commit).await.is_err_and(|error| !error.is_temporary());
        hold(is_refused, rule)?;
    }
    same(&store.list("").await?, &before, "what is refused changes nothing")?;
    let (longest, largest) = (key(KEY_BYTES_MAX), value(VALUE_BYTES_MAX));
    let taken = [
        ("as many as may be", commit(&[], many(OPERATIONS_MAX))),
        ("the largest value", commit(&[], vec![put(&longest, largest.clone())])),
    ];
    for (_, commit) in taken {
        done(&store, commit).await?;
    }
    let found = get(&store, &longest).await?.map(|(value, _)| value);
    same(&found, &Some(largest), "the largest value")?;
    same(&store.list("l/").await?.0.len(), &(OPERATIONS_MAX + 1), "as many as may be")
}

async fn increments<S: Store>(store: S) -> Held {
    const TASKS: u64 = 8;
    const TIMES: u64 = 50;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..TIMES {
                while !increment(&store).await? {
                    tokio::task::yield_now().await;
                }
            }
            Ok(())
        });
    }
    ended(tasks).await?;
    let count = get(&store, "count").await?.map(|(value, _)| value);
    same(&count, &Some((TASKS * TIMES).to_string().into_bytes()), "each was the only one")
}

/// Returns whether nobody was faster.
async fn increment<S: Store>(store: &S) -> Result<bool, Broken> {
    let found = get(store, "count").await?;
    let version = found.as_ref().map(|(_, version)| *version);
    let text = String::from_utf8(found.map_or(b"0".to_vec(), |(value, _)| value));
    let count = text.ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let write = put("count", (count + 1).to_string());
    let outcome = store.commit(commit(&[("count", version)], vec![write])).await?;
    Ok(matches!(outcome, Outcome::Done(_)))
}

/// Watches until `number` changes were told.
async fn told(watch: &mut impl Watch, number: usize) -> Result<Vec<Change>, Broken> {
    let mut told = Vec::new();
    while told.len() < number {
        let changes = watch.next().await?;
        hold(!changes.is_empty(), "there is something to tell")?;
        told.extend(changes);
    }
    same(&told.len(), &number, "no more than there was")?;
    Ok(told)
}

async fn watch_begins<S: Store>(store: S) -> Held {
    let (_, before) = store.list("w").await?;
    let mut versions = Vec::new();
    for count in 0..5 {
        let value = count.to_string();
        versions.push(done(&store, commit(&[], vec![put("w", value)])).await?);
    }
    for (passed, after) in std::iter::once(&before).chain(&versions[..4]).enumerate() {
        let changes = told(&mut store.watch("w", *after), 5 - passed).await?;
        let found: Vec<_> = changes.iter().map(|change| change.version).collect();
        same(&found.as_slice(), &&versions[passed..], "each commit after the given one")?;
        let values: Vec<_> = changes.into_iter().filter_map(|change| change.value).collect();
        let expected: Vec<_> = (passed..5).map(|count| count.to_string().into_bytes()).collect();
        same(&values, &expected, "with the value that it wrote, not the newest")?;
    }
    // At the newest, and beyond it: what comes is waited for.
    let mut now = store.watch("w", versions[4]);
    let mut later = store.watch("w", versions[4] + 1);
    let gone = done(&store, commit(&[], vec![delete("w")])).await?;
    let change = Change { key: "w".to_owned(), value: None, version: gone };
    same(&now.next().await?, &vec![change], "what comes is told, and that a key is gone")?;
    let mut last = done(&store, commit(&[], vec![put("w", "6")])).await?;
    while last <= versions[4] + 1 {
        last = done(&store, commit(&[], vec![put("w", "6")])).await?;
    }
    let first = later.next().await?.first().map_or(0, |change| change.version);
    hold(first > versions[4] + 1, "nothing before the version that was given")
}

async fn watch_has_its_prefix<S: Store>(store: S) -> Held {
    let (_, before) = store.list("").await?;
    let mut watches = ["a/", "a/1", "b/", ""].map(|prefix| (prefix, store.watch(prefix, before)));
    let keys = ["a/1", "ab", "b/1", "a", "a/2", "a/10", "c"];
    for key in keys {
        // One commit of a key that is watched and of one that is not.
        done(&store, commit(&[], vec![put(key, "1"), put(&format!("z{key}"), "1")])).await?;
    }
    for (prefix, watch) in &mut watches {
        let own: Vec<_> = keys
            .iter()
            .flat_map(|key| [(*key).to_owned(), format!("z{key}")])
            .filter(|key| key.starts_with(*prefix))
            .collect();
        let found = told(watch, own.len()).await?;
        let found: Vec<_> = found.into_iter().map(|change| change.key).collect();
        same(&found, &own, &format!("watch {prefix:?}"))?;
    }
    Ok(())
}

/// Checks what was told of [`write_pairs`]: each of its commits once, whole, in order.
fn are_pairs(changes: &[Change], writers: usize, commits: usize) -> Held {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut newest = 0;
    for pair in changes.chunks(2) {
        let [first, second] = pair else { return hold(false, "both of a commit") };
        same(&first.version, &second.version, "a commit is told whole")?;
        same(&first.value, &second.value, "a commit is told whole")?;
        let keys: BTreeSet<_> =
            pair.iter().map(|change| &change.key[change.key.len() - 1..]).collect();
        same(&keys, &BTreeSet::from(["1", "2"]), "a commit is told whole")?;
        hold(first.version > newest, "commits are told in order, each once")?;
        newest = first.version;
        let text = String::from_utf8_lossy(first.value.as_deref().unwrap_or_default()).into_owned();
        let (writer, count) = text.split_once(' ').unwrap_or_default();
        let next = counts.entry(writer.to_owned()).or_default();
        same(&count, &next.to_string().as_str(), "those of one writer are in its order")?;
        *next += 1;
    }
    same(&counts.len(), &writers, "all writers are told")?;
    hold(counts.values().all(|count| *count == commits), "all of their commits are told")
}

async fn watch_is_whole<S: Store>(store: S) -> Held {
    let (_, before) = store.list("pair/").await?;
    let mut early = store.watch("pair/", before);
    let tasks = write_pairs(&store, "pair/", 8, 50);
    let changes = told(&mut early, 800).await?;
    are_pairs(&changes, 8, 50)?;
    ended(tasks).await?;
    // Who comes late is told the same.
    let late = told(&mut store.watch("pair/", before), 800).await?;
    same(&late, &changes, "all who watch are told the same")?;
    let last: Vec<_> =
        changes.into_iter().rev().take(2).filter_map(|change| change.value).collect();
    let found: Vec<_> = store.list("pair/").await?.0.into_iter().map(|entry| entry.value).collect();
    same(&last, &found, "what was told last is what is")
}

async fn watch_is_cancelled<S: Store>(store: S) -> Held {
    let (_, before) = store.list("pair/").await?;
    let mut watch = store.watch("pair/", before);
    let tasks = write_pairs(&store, "pair/", 4, 50);
    let mut changes = Vec::new();
    let mut patience = 0;
    while changes.len() < 400 {
        // Given up ever later, so that it is at every point of its way.
        let give_up = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            told = watch.next() => {
                changes.extend(told?);
                patience = 0;
            }
            () = give_up => patience += 1,
        }
    }
    are_pairs(&changes, 4, 50)?;
    ended(tasks).await
}

async fn watch_is_compacted<S: Store>(store: S) -> Held {
    let (_, before) = store.list("").await?;
    let mut made = 0;
    while made < FORGETS_AFTER_MAX {
        let writes = (0..OPERATIONS_MAX).map(|n| put(&format!("k/{n}"), made.to_string()));
        done(&store, commit(&[], writes.collect())).await?;
        made += OPERATIONS_MAX;
        if made % 1000 != 0 {
            continue;
        }
        match store.watch("k/", before).next().await {
            // A part of it is never told as if it were all.
            Ok(changes) => {
                let first = changes.first().and_then(|change| change.value.clone());
                same(&first, &Some(b"0".to_vec()), "the first commit is told first")?;
            }
            Err(StoreError::Compacted { oldest }) => {
                hold(oldest > before, "what is kept begins later")?;
                return goes_on(&store, before, oldest).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Checks that there is a way on from [`StoreError::Compacted`].
async fn goes_on<S: Store>(store: &S, before: Version, oldest: Version) -> Held {
    let mut watch = store.watch("none", before);
    for _ in 0..2 {
        let outcome = watch.next().await;
        let is_told = matches!(outcome, Err(StoreError::Compacted { .. }));
        hold(is_told, "whatever was watched, and as often as it is asked")?;
    }
    let outcome = store.watch("k/", oldest).next().await;
    hold(outcome.is_ok(), "from the oldest that is kept can be watched")?;
    let (entries, version) = store.list("k/").await?;
    same(&entries.len(), &OPERATIONS_MAX, "what is, is not forgotten")?;
    let mut watch = store.watch("k/", version);
    let next = done(store, commit(&[], vec![put("k/0", "next")])).await?;
    let change = Change { key: "k/0".to_owned(), value: Some(b"next".to_vec()), version: next };
    same(&watch.next().await?, &vec![change], "list again, then watch")
}
