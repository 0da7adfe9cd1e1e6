//! Which past changes are kept for whoever watches, and from when on there are too many of them.
//!
//! ```text
//!   oldest ──────────────────────────────────────── newest
//!   │ dropped, once there is a tenth too much │ kept       │ a commit is dropped whole
//! ```

use std::collections::VecDeque;

use crate::store::Version;

/// How many changes are kept at least, as far as [`BYTES_MAX`] allows. Who watches is seconds behind;
/// this is minutes of a large fleet.
pub(super) const CHANGES_KEPT: usize = 10_000;

/// How many bytes of changes are kept at most, give or take a transaction: a large rollout's record is
/// half a megabyte, and is written again and again.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// The commits whose changes are kept, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    commits: VecDeque<Kept>,
    changes: usize,
    bytes: usize,
}

/// A commit's part of it.
#[derive(Debug, Clone, Copy)]
struct Kept {
    version: Version,
    changes: usize,
    bytes: usize,
}

impl History {
    /// Takes up one change of a commit; those of one commit come one after the other.
    pub(super) fn add(&mut self, version: Version, bytes: usize) {
        self.changes += 1;
        self.bytes += bytes;
        match self.commits.back_mut() {
            Some(last) if last.version == version => {
                last.changes += 1;
                last.bytes += bytes;
            }
            _ => self.commits.push_back(Kept { version, changes: 1, bytes }),
        }
    }

    /// Returns the version up to which all is to be dropped; `None` while there is not too much.
    ///
    /// The newest commit is never dropped: the store's own version is read from it.
    pub(super) fn surplus(&self) -> Option<Version> {
        if self.changes <= CHANGES_KEPT + CHANGES_KEPT / 10 && self.bytes <= BYTES_MAX {
            return None;
        }
        let (mut changes, mut bytes) = (self.changes, self.bytes);
        let mut surplus = None;
        for kept in self.commits.iter().take(self.commits.len().saturating_sub(1)) {
            changes -= kept.changes;
            bytes -= kept.bytes;
            let is_few = changes < CHANGES_KEPT;
            if is_few && bytes + kept.bytes <= BYTES_MAX / 10 * 9 {
                break;
            }
            surplus = Some(kept.version);
        }
        surplus
    }

    /// Notes that all up to `version` was dropped.
    pub(super) fn drop_to(&mut self, version: Version) {
        while let Some(oldest) = self.commits.front().copied()
            && oldest.version <= version
        {
            self.commits.pop_front();
            self.changes -= oldest.changes;
            self.bytes -= oldest.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(commits: usize, changes: usize, bytes: usize) -> History {
        let mut history = History::default();
        for commit in 1..=commits {
            let version = (commit * changes) as Version;
            (0..changes).for_each(|_| history.add(version, bytes));
        }
        history
    }

    #[test]
    fn what_is_too_much_is_dropped_commit_by_commit() {
        let tenth = CHANGES_KEPT / 10;
        let large = BYTES_MAX / 10;
        let cases = [
            ("nothing", history(0, 1, 1), None),
            ("one", history(1, 1, 1), None),
            ("as many as are kept", history(CHANGES_KEPT, 1, 1), None),
            ("a tenth more", history(CHANGES_KEPT + tenth, 1, 1), None),
            ("one more than that", history(CHANGES_KEPT + tenth + 1, 1, 1), Some(tenth + 1)),
            // 111 commits of 100: eleven are too many.
            ("whole commits", history(111, 100, 1), Some(1100)),
            // 222 of 51, 11,322 changes: 25 too many, and the 26th would leave too few.
            ("whole commits, never too few", history(222, 51, 1), Some(25 * 51)),
            ("ten large ones", history(10, 1, large), None),
            ("eleven large ones", history(11, 1, large), Some(2)),
            ("a single one that is too large", history(1, 1, BYTES_MAX + 1), None),
            ("two of them", history(2, 1, BYTES_MAX + 1), Some(1)),
        ];
        for (rule, mut history, surplus) in cases {
            let surplus = surplus.map(|version| version as Version);
            assert_eq!(history.surplus(), surplus, "{rule}");
            history.drop_to(surplus.unwrap_or(0));
            assert_eq!(history.surplus(), None, "{rule}: enough was dropped");
        }
    }
}
