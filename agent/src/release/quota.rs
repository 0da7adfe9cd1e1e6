//! How much releases and dependency trees may take, and what goes first.
//!
//! ```text
//!   too many releases, or too large ──► the oldest that nobody needs
//!   too many trees, or too large ─────► the oldest that no release uses, then releases with theirs
//!   what is in need exceeds the quota ► nothing is removed, and nothing more is prepared
//! ```
//!
//! A tree's files have names in the releases that use it: they count once, with the tree. Sizes are
//! measured once for each release and remembered, since a walk of all of them would take seconds.
//!
//! Invariant
//! - What the caller needs, what a process lives in, and what `current` names is never removed, nor
//!   are the dependency trees of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towline_protocol::ids::Revision;

use super::{DiskError, Store, claim, discard, durable, failed, marker_path};

const MIB: u64 = 1 << 20;

/// How many releases and dependency trees there may be, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many releases.
    pub releases: usize,
    /// How much all of them may take.
    pub releases_mib: u64,
    /// How many dependency trees.
    pub trees: usize,
    /// How much all of them may take.
    pub trees_mib: u64,
}

/// Which releases must not be removed, besides the live one.
#[derive(Debug, Clone, Default)]
pub struct Needed {
    /// Those that the agent may have to go back to.
    pub kept: BTreeSet<Revision>,
    /// The names of those that a process lives in, and the keys of such dependency trees.
    pub in_use: BTreeSet<String>,
}

/// A dependency tree.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tree {
    key: String,
    /// Was it built, and not installed?
    is_built: bool,
}

/// What was measured, by a path below the app's directory.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sizes(BTreeMap<String, Size>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Size {
    /// When its marker was written: another one is another tree.
    made_ns: i128,
    bytes: u64,
}

/// The sizes of what is complete, and what they are measured by.
struct Measured<'a> {
    store: &'a Store,
    sizes: Sizes,
    is_changed: bool,
}

impl<'a> Measured<'a> {
    fn read(store: &'a Store) -> Self {
        // Without it everything is measured anew.
        let text = fs::read(path(store)).unwrap_or_default();
        let sizes = serde_json::from_slice(&text).unwrap_or_default();
        Self { store, sizes, is_changed: false }
    }

    fn bytes(&mut self, place: &Path, measure: impl FnOnce(&Path) -> u64) -> u64 {
        let Ok(meta) = fs::metadata(marker_path(place)) else { return measure(place) };
        let made_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let name = place.strip_prefix(self.store.dir()).unwrap_or(place).display().to_string();
        if let Some(size) = self.sizes.0.get(&name).filter(|size| size.made_ns == made_ns) {
            return size.bytes;
        }
        let bytes = measure(place);
        self.is_changed = true;
        self.sizes.0.insert(name, Size { made_ns, bytes });
        bytes
    }

    fn release(&mut self, revision: &Revision) -> u64 {
        self.bytes(&self.store.release(revision), own_bytes)
    }

    fn tree(&mut self, key: &str) -> u64 {
        self.bytes(&self.store.dependencies().join(key), durable::size_bytes)
    }

    /// Remembers what was measured, without what is no more.
    fn write(mut self) {
        let dir = self.store.dir();
        let count = self.sizes.0.len();
        self.sizes.0.retain(|name, _| dir.join(name).is_dir());
        if self.is_changed || self.sizes.0.len() != count {
            // Lost, it costs a walk.
            drop(durable::rewrite(&path(self.store), &self.sizes, 0o600, false));
        }
    }
}

fn path(store: &Store) -> PathBuf {
    store.state().join("sizes.json")
}

/// What a release takes by itself: files that have another name are a dependency tree's.
fn own_bytes(release: &Path) -> u64 {
    let mut bytes: u64 = 0;
    let mut dirs = vec![release.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(entry.path()),
                Ok(meta) if meta.nlink() == 1 => bytes = bytes.saturating_add(meta.blocks() * 512),
                _ => {}
            }
        }
    }
    bytes
}

impl Store {
    fn is_needed(&self, needed: &Needed, live: Option<&Revision>, revision: &Revision) -> bool {
        needed.kept.contains(revision)
            || needed.in_use.contains(revision.as_str())
            || live == Some(revision)
    }

    /// The keys of what was installed and of what was built for a release.
    fn keys_of(&self, revision: &Revision) -> Vec<String> {
        let marker = self.marker(revision);
        marker.into_iter().flat_map(|own| [own.dependencies, own.build]).flatten().collect()
    }

    /// Removes complete releases beyond the quota, oldest first, and then dependency trees beyond it;
    /// never what is needed. Blocks. Returns how many were removed.
    ///
    /// # Errors
    ///
    /// Whatever cannot be removed; the rest is left for the next time.
    pub fn prune(&self, needed: &Needed, quota: Quota) -> Result<usize, DiskError> {
        let mut measured = Measured::read(self);
        let pruned = self.prune_measured(needed, quota, &mut measured);
        measured.write();
        pruned
    }

    fn prune_measured(
        &self,
        needed: &Needed,
        quota: Quota,
        measured: &mut Measured<'_>,
    ) -> Result<usize, DiskError> {
        let live = self.live();
        let complete = self.complete();
        let mut count = complete.len();
        let mut bytes: u64 = complete.iter().map(|revision| measured.release(revision)).sum();
        let mut removed = 0;
        let is_spare = |revision: &&Revision| !self.is_needed(needed, live.as_ref(), revision);
        let mut spare: Vec<&Revision> = complete.iter().filter(is_spare).rev().collect();
        while count > quota.releases || bytes > quota.releases_mib.saturating_mul(MIB) {
            let Some(oldest) = spare.pop() else { break };
            bytes = bytes.saturating_sub(measured.release(oldest));
            discard(&self.release(oldest))?;
            count -= 1;
            removed += 1;
        }
        let left = self.complete();
        let used: BTreeSet<String> =
            left.iter().flat_map(|revision| self.keys_of(revision)).collect();
        let mut unused = self.trees_besides(&used, needed)?;
        let unused_bytes = unused.iter().map(|tree| measured.tree(&tree.key)).sum::<u64>();
        let mut bytes = used.iter().map(|key| measured.tree(key)).sum::<u64>() + unused_bytes;
        let is_over = |bytes: u64| bytes > quota.trees_mib.saturating_mul(MIB);
        // What was installed and what was built are counted apart: one release may have both.
        for is_built in [false, true] {
            let of_kind = used.iter().filter(|key| self.is_built(key) == is_built).count();
            let own = unused.iter().filter(|tree| tree.is_built == is_built).count();
            for _ in quota.trees..of_kind + own {
                let oldest = unused.iter().rposition(|tree| tree.is_built == is_built);
                let Some(tree) = oldest.map(|oldest| unused.remove(oldest)) else { break };
                bytes = bytes.saturating_sub(measured.tree(&tree.key));
                discard(&self.dependencies().join(&tree.key))?;
                removed += 1;
            }
        }
        while is_over(bytes) {
            let Some(tree) = unused.pop() else { break };
            bytes = bytes.saturating_sub(measured.tree(&tree.key));
            discard(&self.dependencies().join(&tree.key))?;
            removed += 1;
        }
        // What is left is used: a release that nobody needs goes with its trees.
        while is_over(bytes) {
            let Some(oldest) = spare.pop() else { break };
            let is_held = |key: &String| {
                let needs = |other: &&Revision| {
                    self.is_needed(needed, live.as_ref(), other)
                        && self.keys_of(other).contains(key)
                };
                needed.in_use.contains(key)
                    || left.iter().filter(|other| *other != oldest).any(|other| needs(&other))
            };
            let keys = self.keys_of(oldest);
            if keys.iter().all(is_held) {
                continue;
            }
            discard(&self.release(oldest))?;
            removed += 1;
            let others: BTreeSet<String> =
                self.complete().iter().flat_map(|other| self.keys_of(other)).collect();
            for key in keys.iter().filter(|key| !others.contains(*key) && !is_held(key)) {
                bytes = bytes.saturating_sub(measured.tree(key));
                discard(&self.dependencies().join(key))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// All trees save these and those that a process lives in, the newest first.
    fn trees_besides(
        &self,
        used: &BTreeSet<String>,
        needed: &Needed,
    ) -> Result<Vec<Tree>, DiskError> {
        let mut unused = Vec::new();
        let dir = self.dependencies();
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))?.flatten() {
            let path = entry.path();
            let key = entry.file_name().into_string().unwrap_or_default();
            let is_held = used.contains(&key) || needed.in_use.contains(&key);
            if path.is_dir() && claim::is_key(&key) && !is_held {
                let made = fs::metadata(marker_path(&path)).and_then(|meta| meta.modified()).ok();
                unused.push((made, Tree { is_built: self.is_built(&key), key }));
            }
        }
        unused.sort();
        Ok(unused.into_iter().rev().map(|(_, tree)| tree).collect())
    }

    /// Was the tree of this key built, and not installed?
    fn is_built(&self, key: &str) -> bool {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            built: bool,
        }
        let text = fs::read(marker_path(&self.dependencies().join(key))).unwrap_or_default();
        serde_json::from_slice(&text).is_ok_and(|kind: Kind| kind.built)
    }

    /// Checks that `due`, which takes so many bytes, fits beside what is never pruned. Blocks.
    ///
    /// # Errors
    ///
    /// [`DiskError::Quota`].
    pub fn check_quota(
        &self,
        needed: &Needed,
        due: &Revision,
        due_bytes: u64,
        quota: Quota,
    ) -> Result<(), DiskError> {
        let mut measured = Measured::read(self);
        let live = self.live();
        let all = self.complete().into_iter().filter(|revision| revision != due);
        let held: Vec<Revision> =
            all.filter(|revision| self.is_needed(needed, live.as_ref(), revision)).collect();
        let releases: u64 = held.iter().map(|revision| measured.release(revision)).sum();
        let keys: BTreeSet<String> = held.iter().flat_map(|held| self.keys_of(held)).collect();
        let trees: u64 = keys.iter().map(|key| measured.tree(key)).sum();
        measured.write();
        let check = |what, bytes: u64, due_bytes: u64, quota_mib: u64, key| {
            if bytes.saturating_add(due_bytes) <= quota_mib.saturating_mul(MIB) {
                return Ok(());
            }
            let (needed_mib, due_mib) = (bytes.div_ceil(MIB), due_bytes.div_ceil(MIB));
            Err(DiskError::Quota { what, needed_mib, due_mib, quota_mib, key })
        };
        check("releases", releases, due_bytes, quota.releases_mib, "keep.releases_mib")?;
        check("dependency trees", trees, 0, quota.trees_mib, "keep.dependencies_mib")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{make, revision, store};
    use super::super::{complete, tests};
    use super::*;

    const WIDE: Quota = Quota { releases: 50, releases_mib: 1000, trees: 50, trees_mib: 1000 };

    /// A release of so many MiB that uses the tree of this key.
    fn large(store: &Store, digit: char, mib: u64, key: Option<&str>) -> Revision {
        let revision = make(store, digit, key);
        fill(&store.release(&revision), mib);
        revision
    }

    fn fill(dir: &Path, mib: u64) {
        fs::write(dir.join("large"), vec![1; usize::try_from(mib * MIB).unwrap()]).unwrap();
    }

    fn tree(store: &Store, digit: &str, mib: u64) -> String {
        let (key, staged) = (digit.repeat(64), store.staging().join("x"));
        fs::create_dir(&staged).unwrap();
        fill(&staged, mib);
        complete(&staged, &store.dependencies().join(&key), &key).unwrap();
        key
    }

    fn keeping(revisions: &[&Revision]) -> Needed {
        Needed { kept: revisions.iter().copied().cloned().collect(), in_use: BTreeSet::new() }
    }

    #[test]
    fn pruning_keeps_what_is_needed_and_the_newest() {
        let (_dir, store) = store();
        let all: Vec<Revision> = "abcdef".chars().map(|digit| make(&store, digit, None)).collect();
        store.swap(&all[1]).unwrap();
        let in_use = BTreeSet::from([all[2].to_string()]);
        let needed = Needed { in_use, ..keeping(&[&all[0]]) };
        assert_eq!(store.prune(&needed, Quota { releases: 4, ..WIDE }).unwrap(), 2);
        let left = store.complete();
        // Kept by name, by `current` and by a process; of the others the newest.
        assert_eq!(left, [&all[0], &all[1], &all[2], &all[5]].map(Clone::clone));
    }

    #[test]
    fn what_was_built_and_what_was_installed_are_counted_apart_and_kept_while_a_process_lives_there()
     {
        let (_dir, store) = store();
        let place = |digit: &str| store.dependencies().join(digit.repeat(64));
        for (digit, marker) in [("1", "{}"), ("2", "{\"built\":true}"), ("3", "{\"built\":true}")] {
            let staged = store.staging().join("x");
            fs::create_dir(&staged).unwrap();
            let marker: serde_json::Value = serde_json::from_str(marker).unwrap();
            complete(&staged, &place(digit), &marker).unwrap();
        }
        let needed = Needed { in_use: BTreeSet::from(["3".repeat(64)]), ..keeping(&[]) };
        store.prune(&needed, Quota { trees: 1, ..WIDE }).unwrap();
        let left = ["1", "2", "3"].map(|digit| place(digit).exists());
        assert_eq!(left, [true, true, true], "one of each may stay, and one is in use");
        store.prune(&needed, Quota { trees: 0, ..WIDE }).unwrap();
        assert_eq!(["1", "2", "3"].map(|digit| place(digit).exists()), [false, false, true]);
    }

    #[test]
    fn releases_are_pruned_by_size_oldest_first_and_never_what_is_needed() {
        let (_dir, store) = store();
        let all: Vec<Revision> =
            "abcd".chars().map(|digit| large(&store, digit, 2, None)).collect();
        let quota = Quota { releases_mib: 5, ..WIDE };
        assert_eq!(store.prune(&keeping(&[&all[0]]), quota).unwrap(), 2);
        assert_eq!(store.complete(), [&all[0], &all[3]].map(Clone::clone));
        // Needed, they stay, whatever they take.
        let quota = Quota { releases_mib: 1, ..WIDE };
        assert_eq!(store.prune(&keeping(&[&all[0], &all[3]]), quota).unwrap(), 0);
    }

    #[test]
    fn what_is_shared_with_a_tree_counts_once_and_a_size_is_remembered() {
        let (_dir, store) = store();
        let key = tree(&store, "1", 3);
        let one = make(&store, 'a', Some(&key));
        let place = store.dependencies().join(&key).join("large");
        fs::hard_link(&place, store.release(&one).join("large")).unwrap();
        let quota = Quota { releases_mib: 1, trees_mib: 4, ..WIDE };
        assert_eq!(store.prune(&Needed::default(), quota).unwrap(), 0);
        let sizes = fs::read_to_string(path(&store)).unwrap();
        assert!(sizes.contains(&format!("releases/{one}")), "{sizes}");
        // Nothing is walked again, until there is another tree of that name.
        fs::write(store.release(&one).join("more"), vec![1; 3 << 20]).unwrap();
        assert_eq!(store.prune(&Needed::default(), quota).unwrap(), 0);
        tests::age(&store, &one, 7);
        assert_eq!(store.prune(&Needed::default(), quota).unwrap(), 1);
        fs::write(path(&store), "{").unwrap();
        assert_eq!(store.prune(&Needed::default(), quota).unwrap(), 0);
    }

    #[test]
    fn dependency_trees_are_pruned_by_count_and_never_while_used() {
        let (_dir, store) = store();
        let keys = ["1", "2", "3"].map(|digit| tree(&store, digit, 0));
        let foreign = store.dependencies().join("python");
        fs::create_dir(&foreign).unwrap();
        make(&store, 'a', Some(&keys[0]));
        store.prune(&Needed::default(), Quota { trees: 1, ..WIDE }).unwrap();
        assert!(store.dependencies().join(&keys[0]).exists());
        assert!(!store.dependencies().join(&keys[1]).exists());
        assert!(!store.dependencies().join(&keys[2]).exists());
        assert!(foreign.exists(), "it is no tree of ours");
    }

    #[test]
    fn trees_that_are_too_large_go_with_the_releases_that_nobody_needs() {
        let (_dir, store) = store();
        let keys = ["1", "2", "3", "4"].map(|digit| tree(&store, digit, 2));
        let all: Vec<Revision> = "abcd"
            .chars()
            .zip([&keys[0], &keys[1], &keys[2], &keys[0]])
            .map(|(digit, key)| make(&store, digit, Some(key)))
            .collect();
        let has = |store: &Store, at: usize| store.dependencies().join(&keys[at]).exists();
        // Eight MiB: the one that nobody uses goes first.
        store.prune(&Needed::default(), Quota { trees_mib: 7, ..WIDE }).unwrap();
        assert_eq!([0, 1, 2, 3].map(|at| has(&store, at)), [true, true, true, false]);
        assert_eq!(store.complete().len(), 4);
        // One that a needed release uses stays, and so does whoever shares it.
        store.prune(&keeping(&[&all[3]]), Quota { trees_mib: 5, ..WIDE }).unwrap();
        assert_eq!([0, 1, 2].map(|at| has(&store, at)), [true, false, true]);
        assert_eq!(store.complete(), [&all[0], &all[2], &all[3]].map(Clone::clone));
        store.prune(&keeping(&[&all[3], &all[2]]), Quota { trees_mib: 1, ..WIDE }).unwrap();
        assert_eq!([0, 2].map(|at| has(&store, at)), [true, true]);
    }

    #[test]
    fn what_is_due_must_fit_beside_what_is_never_pruned() {
        let (_dir, store) = store();
        let key = tree(&store, "1", 3);
        let one = large(&store, 'a', 2, Some(&key));
        let other = large(&store, 'b', 2, None);
        store.swap(&one).unwrap();
        let (due, quota) = (revision('c'), Quota { releases_mib: 5, ..WIDE });
        let check = |needed: &Needed, bytes, quota| store.check_quota(needed, &due, bytes, quota);
        check(&Needed::default(), 2 * MIB, quota).unwrap();
        let error = check(&keeping(&[&other]), 2 * MIB, quota).unwrap_err();
        assert!(matches!(error, DiskError::Quota { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("take 5 MiB, and the next one 2 MiB"), "{said}");
        assert!(said.contains("keep.releases_mib"), "{said}");
        assert!(error.hint().unwrap().contains("raise keep.releases_mib"), "{error}");
        let error = check(&Needed::default(), 0, Quota { trees_mib: 2, ..WIDE }).unwrap_err();
        assert!(error.to_string().contains("keep.dependencies_mib"), "{error}");
        // The same release once more is no further one.
        store.check_quota(&Needed::default(), &one, 4 * MIB, quota).unwrap();
    }
}
