//! What commits say of themselves, and how they lie to one another.
//!
//! Answers are kept: a commit never changes, nor does its distance to another. Both memories are
//! bounded, and start over by halves.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use towline_protocol::ids::Revision;
use towline_protocol::time::Timestamp;

use super::error::MirrorError;
use super::repository::Repository;
use super::said::short_line;

/// The most characters of a subject.
const SUBJECT_CHARS_MAX: usize = 200;

/// The most characters of an author's name.
const AUTHOR_CHARS_MAX: usize = 100;

/// How much of one commit is read: headers of a merge of signed tags are the longest, and the subject
/// comes after them.
const COMMIT_BYTES_MAX: usize = 64 * 1024;

/// How many bytes of commits are read at a time.
const COMMITS_BYTES_MAX: usize = 1 << 20;

/// How many answers each memory keeps, at most twice.
const KNOWN_MAX: usize = 2048;

/// How many distances are counted in one call; those that are known are free.
const COUNTS_MAX: usize = 100;

/// What a commit says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// The first line of its message, at most 200 characters, fit to be shown.
    pub subject: String,
    /// Who wrote it, without the address; fit to be shown.
    pub author: String,
    /// When, by the author's clock.
    pub authored: Timestamp,
}

/// How one commit lies to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// How many commits of the other's history it does not hold.
    pub behind: u64,
    /// How many commits of its history the other does not hold.
    pub ahead: u64,
}

/// A commit, and how it lies to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What it says of itself.
    pub commit: CommitInfo,
    /// How it lies to the target; `None` where their histories have nothing in common, the target is
    /// not known, or it was not counted this time because there were too many.
    pub distance: Option<Distance>,
}

/// An object of the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    /// There is none.
    Missing,
    /// A commit, by its full id.
    Commit {
        /// Its id.
        id: Revision,
    },
    /// Something else.
    Other {
        /// What it is.
        kind: String,
    },
}

/// Answers that stay true.
#[derive(Debug, Default)]
pub(super) struct Known {
    commits: Recent<Revision, CommitInfo>,
    distances: Recent<(Revision, Revision), Option<Distance>>,
}

/// A bounded memory: when the young half is full, it becomes the old half, and the old one goes.
#[derive(Debug)]
struct Recent<K, V> {
    young: BTreeMap<K, V>,
    old: BTreeMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new() }
    }
}

impl<K: Ord, V: Clone> Recent<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).cloned()
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= KNOWN_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

impl Repository {
    fn known<T>(&self, read: impl FnOnce(&mut Known) -> T) -> T {
        read(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at one object, by its id or an id with `^{…}`.
    pub(super) async fn object(&self, id: &str) -> Result<Object, MirrorError> {
        Ok(self.objects(&[id]).await?.pop().unwrap_or(Object::Missing))
    }

    /// Looks at objects, in order.
    pub(super) async fn objects(&self, ids: &[&str]) -> Result<Vec<Object>, MirrorError> {
        Ok(self.sizes(ids).await?.into_iter().map(|(object, _)| object).collect())
    }

    async fn sizes(&self, ids: &[&str]) -> Result<Vec<(Object, usize)>, MirrorError> {
        let input: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let wanted = input.lines().count();
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let output_max = 1024 + wanted * 256;
        let arguments = vec!["cat-file", "--batch-check"];
        let answer = self.ask(arguments, input, output_max, false).await?;
        let text = answer.text();
        let read = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                [id, "commit", size] => {
                    Some((Object::Commit { id: id.parse().ok()? }, size.parse().ok()?))
                }
                [_, kind @ ("tree" | "blob" | "tag"), _] => {
                    Some((Object::Other { kind: (*kind).to_owned() }, 0))
                }
                [_, "missing" | "ambiguous"] => Some((Object::Missing, 0)),
                _ => None,
            }
        };
        let objects: Option<Vec<_>> = text.lines().map(read).collect();
        match objects {
            Some(objects) if answer.code == Some(0) && objects.len() == wanted => Ok(objects),
            _ => Err(self.failed(&answer)),
        }
    }

    /// Reads what commits say of themselves; what is no commit here is left out.
    pub(super) async fn commits(
        &self,
        revisions: &[Revision],
    ) -> Result<BTreeMap<Revision, CommitInfo>, MirrorError> {
        let mut found = BTreeMap::new();
        let mut asked = Vec::new();
        for revision in revisions {
            match self.known(|known| known.commits.get(revision)) {
                Some(commit) => drop(found.insert(revision.clone(), commit)),
                None => asked.push(revision.as_str()),
            }
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut batches = Vec::new();
        for (object, size) in self.sizes(&asked).await? {
            let Object::Commit { id } = object else { continue };
            // A huge one goes alone, and is not read to its end.
            if bytes + size > COMMITS_BYTES_MAX {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size;
            batch.push(id);
        }
        batches.push(batch);
        for batch in batches.iter().filter(|batch| !batch.is_empty()) {
            let input: String = batch.iter().map(|id| format!("{id}\n")).collect();
            // For each a line before it, and a newline after it.
            let output_max = COMMITS_BYTES_MAX + batch.len() * 128;
            let answer = self.ask(vec!["cat-file", "--batch"], input, output_max, true).await?;
            let commits = parse_batch(&answer.output);
            if commits.len() != batch.len() {
                return Err(self.failed(&answer));
            }
            for (id, commit) in batch.iter().zip(commits) {
                self.known(|known| known.commits.put(id.clone(), commit.clone()));
                found.insert(id.clone(), commit);
            }
        }
        Ok(found)
    }

    /// Reads what one commit says of itself.
    pub(super) async fn commit(&self, revision: &Revision) -> Result<CommitInfo, MirrorError> {
        let found = self.commits(std::slice::from_ref(revision)).await?.remove(revision);
        if let Some(commit) = found {
            return Ok(commit);
        }
        let name = revision.to_string();
        Err(match self.object(revision.as_str()).await? {
            Object::Other { kind } => MirrorError::NotCommit { name, kind },
            _ => MirrorError::Unknown { name, url: self.shown(), candidates: Vec::new() },
        })
    }

    /// Counts how `from` lies to `to`.
    pub(super) async fn distance(
        &self,
        from: &Revision,
        to: &Revision,
    ) -> Result<Option<Distance>, MirrorError> {
        let key = (from.clone(), to.clone());
        if let Some(distance) = self.known(|known| known.distances.get(&key)) {
            return Ok(distance);
        }
        let objects = self.objects(&[from.as_str(), to.as_str()]).await?;
        // Not kept: what is not here now may come by the next fetch.
        if !objects.iter().all(|object| matches!(object, Object::Commit { .. })) {
            return Ok(None);
        }
        let distance = self.count(from, to).await?;
        self.known(|known| known.distances.put(key, distance));
        Ok(distance)
    }

    async fn count(&self, from: &Revision, to: &Revision) -> Result<Option<Distance>, MirrorError> {
        let range = format!("{from}...{to}");
        let arguments = vec!["rev-list", "--count", "--left-right", "--end-of-options", &range];
        let answer = self.ask(arguments, String::new(), 1024, false).await?;
        let text = answer.text();
        let counts: Vec<u64> = text.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let (&[ahead, behind], Some(0)) = (counts.as_slice(), answer.code) else {
            return Err(self.failed(&answer));
        };
        // Where one holds the other, they have that in common.
        if ahead > 0 && behind > 0 && !self.have_common(from, to).await? {
            return Ok(None);
        }
        Ok(Some(Distance { behind, ahead }))
    }

    async fn have_common(&self, one: &Revision, other: &Revision) -> Result<bool, MirrorError> {
        let arguments = vec!["merge-base", "--end-of-options", one.as_str(), other.as_str()];
        let answer = self.ask(arguments, String::new(), 1024, false).await?;
        match answer.code {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(self.failed(&answer)),
        }
    }

    /// Does the branch's history hold `revision`? `None` where there is no such branch.
    pub(super) async fn is_below(
        &self,
        revision: &Revision,
        branch: &str,
    ) -> Result<Option<bool>, MirrorError> {
        let Some(tip) = self.tip(&format!("refs/heads/{branch}")).await? else { return Ok(None) };
        match self.objects(&[&tip, revision.as_str()]).await?.as_slice() {
            [Object::Commit { .. }, Object::Commit { .. }] => {}
            [Object::Commit { .. }, _] => return Ok(Some(false)),
            _ => return Err(self.broken(&format!("{branch} leads to an object that is missing"))),
        }
        let arguments = vec![
            "merge-base",
            "--is-ancestor",
            "--end-of-options",
            revision.as_str(),
            tip.as_str(),
        ];
        let answer = self.ask(arguments, String::new(), 1024, false).await?;
        match answer.code {
            Some(0) => Ok(Some(true)),
            Some(1) => Ok(Some(false)),
            _ => Err(self.failed(&answer)),
        }
    }

    /// Tells about many commits at once; what is no commit here is left out.
    pub(super) async fn describe(
        &self,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> Result<BTreeMap<Revision, Described>, MirrorError> {
        let mut left = COUNTS_MAX;
        let mut described = BTreeMap::new();
        for (revision, commit) in self.commits(revisions).await? {
            let mut distance = None;
            if let Some(target) = target {
                let key = (revision.clone(), target.clone());
                let is_known = self.known(|known| known.distances.get(&key)).is_some();
                if is_known || left > 0 {
                    left -= usize::from(!is_known);
                    distance = self.distance(&revision, target).await?;
                }
            }
            described.insert(revision, Described { commit, distance });
        }
        Ok(described)
    }
}

impl Repository {
    /// Tells about commits what was found out before.
    pub(super) fn remembered(
        &self,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> BTreeMap<Revision, Described> {
        self.known(|known| {
            let remembered = revisions.iter().filter_map(|revision| {
                let commit = known.commits.get(revision)?;
                let distance = target.and_then(|target| {
                    known.distances.get(&(revision.clone(), target.clone())).flatten()
                });
                Some((revision.clone(), Described { commit, distance }))
            });
            remembered.collect()
        })
    }
}

/// Reads the answer of `cat-file --batch`: a line with id, kind and size, so many bytes, a newline. The
/// last may have been cut.
fn parse_batch(bytes: &[u8]) -> Vec<CommitInfo> {
    let mut commits = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]);
        let mut words = line.split(' ').skip(1);
        let (Some("commit"), Some(Ok(size))) =
            (words.next(), words.next().map(str::parse::<usize>))
        else {
            break;
        };
        rest = &rest[end + 1..];
        let size = size.min(rest.len());
        commits.push(parse_commit(&rest[..size.min(COMMIT_BYTES_MAX)]));
        rest = rest.get(size + 1..).unwrap_or_default();
    }
    commits
}

/// Reads a commit object, or its beginning.
fn parse_commit(bytes: &[u8]) -> CommitInfo {
    let end = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, message) = match end {
        Some(end) => (&bytes[..end], &bytes[end + 2..]),
        None => (bytes, &b""[..]),
    };
    let mut author: &[u8] = b"";
    let mut is_latin = false;
    for line in head.split(|byte| *byte == b'\n') {
        if let Some(rest) = line.strip_prefix(b"author ") {
            author = rest;
        } else if let Some(rest) = line.strip_prefix(b"encoding ") {
            is_latin = matches!(
                rest.to_ascii_lowercase().as_slice(),
                b"iso-8859-1" | b"iso8859-1" | b"iso_8859-1" | b"latin1" | b"latin-1"
            );
        }
    }
    let text = |bytes: &[u8]| {
        if is_latin {
            bytes.iter().map(|byte| char::from(*byte)).collect()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        }
    };
    let author = text(author);
    // `Name <address> seconds zone`; the name may hold anything but `<`.
    let (name, rest) = author.split_once('<').unwrap_or((&author, ""));
    let when = rest.rsplit_once('>').map_or("", |(_, when)| when);
    let seconds = when.split_whitespace().next().and_then(|seconds| seconds.parse::<i64>().ok());
    let seconds = u64::try_from(seconds.unwrap_or(0)).unwrap_or(0);
    let message = text(message);
    let subject = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    CommitInfo {
        subject: short_line(subject, SUBJECT_CHARS_MAX),
        author: short_line(name, AUTHOR_CHARS_MAX),
        authored: Timestamp(seconds.saturating_mul(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(text: &str) -> CommitInfo {
        parse_commit(text.as_bytes())
    }

    #[test]
    fn a_commit_is_read_whatever_it_holds() {
        let head = "tree 4b\nauthor A <a@b> 1700000000 +0100\ncommitter C <c@d> 1 +0000\n";
        let plain = commit(&format!("{head}\n  Fix it\n\nBecause.\n"));
        assert_eq!((plain.subject.as_str(), plain.author.as_str()), ("Fix it", "A"));
        assert_eq!(plain.authored, Timestamp(1_700_000_000_000));
        let cases = [
            ("blank lines first", format!("{head}\n\n\nLate\n"), "Late"),
            ("an escape code", format!("{head}\nred \u{1b}[31m\n"), "red \u{fffd}[31m"),
            ("a carriage return", format!("{head}\na\rb\r\nc"), "a b"),
            ("no message", format!("{head}\n"), ""),
            ("no end of the headers", head.to_owned(), ""),
            ("a signature between", format!("{head}gpgsig x\n author E\n\nS"), "S"),
            ("nothing", String::new(), ""),
        ];
        for (rule, text, subject) in cases {
            assert_eq!(commit(&text).subject, subject, "{rule}");
        }
        let long = commit(&format!("{head}\n{}", "x".repeat(10_000))).subject;
        assert_eq!(long.chars().count(), SUBJECT_CHARS_MAX);
        let times =
            [("-5", 0), ("99999999999999999999", 0), ("9223372036854775807", u64::MAX), ("x", 0)];
        for (seconds, expected) in times {
            let authored = commit(&format!("author A <a> {seconds} +0000\n\n")).authored;
            assert_eq!(authored, Timestamp(expected), "{seconds}");
        }
        let latin = b"author J\xfcrgen <j> 1 +0000\nencoding ISO-8859-1\n\nPr\xfcfung\n";
        let latin = parse_commit(latin);
        assert_eq!((latin.author.as_str(), latin.subject.as_str()), ("Jürgen", "Prüfung"));
    }

    #[test]
    fn a_memory_is_bounded_and_keeps_what_is_young() {
        let mut recent = Recent::default();
        for number in 0..10 * KNOWN_MAX {
            recent.put(number, number);
        }
        assert!(recent.young.len() + recent.old.len() <= 2 * KNOWN_MAX);
        assert_eq!(recent.get(&(10 * KNOWN_MAX - 1)), Some(10 * KNOWN_MAX - 1));
        assert_eq!(recent.get(&0), None);
    }
}
