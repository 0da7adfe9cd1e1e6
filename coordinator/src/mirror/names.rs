//! What a name means: ids, abbreviations, branches, tags.
//!
//! ```text
//!   40 or 64 digits ──► that commit, whatever branches are called
//!   refs/heads/…, refs/tags/… ──► exactly that one
//!   anything else ──► the branch of that name, the tag of that name, the commits whose ids begin so
//!                       └─ one commit in all: that one; several: refused, with what they are
//! ```
//!
//! Invariants
//! - No name reaches git before it was checked; names go there only as a full ref's, for an exact look.
//! - Nothing is guessed: a branch named like an abbreviation of another commit hides nothing.

use std::collections::BTreeMap;

use towline_protocol::ids::Revision;

use super::error::MirrorError;
use super::history::Object;
use super::repository::Repository;
use super::said::short_line;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 250;

/// The fewest digits of an abbreviation; git's own least.
const DIGITS_MIN: usize = 4;

/// How many meanings of an ambiguous name are told.
const MEANINGS_MAX: usize = 10;

/// How many similar names are told, and among how many they are looked for.
const CANDIDATES_MAX: usize = 5;
const REFS_SEEN_MAX: &str = "--count=5000";

/// How much of a list of ids or refs is read: 5,000 refs of 200 bytes.
const LIST_BYTES_MAX: usize = 1 << 20;

/// The most objects of one abbreviation that are looked at.
const OBJECTS_MAX: usize = 1000;

/// What kind of name a name was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A commit's full id.
    Id,
    /// A branch; it meant this commit when it was fetched.
    Branch,
    /// A tag, followed to its commit.
    Tag,
    /// The beginning of a commit's id.
    Abbreviation,
}

impl Kind {
    /// Returns the word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Id => "id",
            Kind::Branch => "branch",
            Kind::Tag => "tag",
            Kind::Abbreviation => "abbreviation",
        }
    }
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The commit.
    pub revision: Revision,
    /// What kind of name it was.
    pub kind: Kind,
}

impl Resolved {
    /// Might another fetch give another answer?
    pub(super) fn may_move(&self) -> bool {
        matches!(self.kind, Kind::Branch | Kind::Tag)
    }
}

/// A name that is fit to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A full id.
    Id(Revision),
    /// A full ref, below `refs/heads/` or `refs/tags/`.
    Ref(String),
    /// A branch, a tag or an abbreviation.
    Plain(String),
}

impl Name {
    pub(super) fn new(text: &str) -> Result<Name, MirrorError> {
        if let Ok(revision) = text.parse() {
            return Ok(Name::Id(revision));
        }
        let is_ref = text.strip_prefix("refs/").is_some_and(|rest| {
            ["heads/", "tags/"].iter().any(|kind| rest.len() > kind.len() && rest.starts_with(kind))
        });
        if !is_plain(text) || (text.starts_with("refs/") && !is_ref) {
            return Err(MirrorError::Name { name: short_line(text, 80) });
        }
        Ok(if is_ref { Name::Ref(text.to_owned()) } else { Name::Plain(text.to_owned()) })
    }

    fn text(&self) -> &str {
        match self {
            Name::Id(revision) => revision.as_str(),
            Name::Ref(text) | Name::Plain(text) => text,
        }
    }
}

/// May this be the end of a ref's name? Git's own rules, and no characters that steer a terminal.
pub(super) fn is_plain(text: &str) -> bool {
    let is_fit = |c: char| {
        c.is_alphanumeric()
            || (c.is_ascii_graphic() && !matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\'))
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.ends_with(".lock")
    };
    text.len() <= NAME_BYTES_MAX
        && !text.starts_with('-')
        && text.chars().all(is_fit)
        && text.split('/').all(is_part)
        && !text.contains("..")
        && !text.contains("@{")
}

impl Repository {
    /// Looks a name up in what was fetched last.
    pub(super) async fn look_up(&self, name: &Name) -> Result<Resolved, MirrorError> {
        let mut found = Vec::new();
        let mut other = None;
        match name {
            Name::Id(revision) => match self.object(revision.as_str()).await? {
                Object::Commit { .. } => found.push((Kind::Id, revision.clone())),
                Object::Other { kind } => other = Some(kind),
                Object::Missing => {}
            },
            Name::Ref(full) => self.look_at(full, &mut found, &mut other).await?,
            Name::Plain(text) => {
                for space in ["refs/heads/", "refs/tags/"] {
                    self.look_at(&format!("{space}{text}"), &mut found, &mut other).await?;
                }
                self.look_for(text, &mut found, &mut other).await?;
            }
        }
        let commits: BTreeMap<&Revision, Kind> =
            found.iter().rev().map(|(kind, revision)| (revision, *kind)).collect();
        let text = name.text();
        match (commits.len(), other) {
            (1, _) => {
                // In order: a branch first, because it says more than the digits it is named after.
                let (kind, revision) = found.swap_remove(0);
                Ok(Resolved { revision, kind })
            }
            (0, Some(kind)) => Err(MirrorError::NotCommit { name: text.to_owned(), kind }),
            (0, None) => {
                let url = self.shown();
                Err(MirrorError::Unknown { name: text.to_owned(), url, candidates: Vec::new() })
            }
            _ => {
                let meaning = |(kind, revision): &(Kind, Revision)| match kind {
                    Kind::Id | Kind::Abbreviation => format!("commit {revision}"),
                    Kind::Branch | Kind::Tag => format!("{} at {revision}", kind.as_str()),
                };
                let meanings = found.iter().take(MEANINGS_MAX).map(meaning).collect();
                let url = self.shown();
                Err(MirrorError::Ambiguous { name: text.to_owned(), url, meanings })
            }
        }
    }

    /// Looks at one full ref, and follows it to its commit.
    async fn look_at(
        &self,
        full: &str,
        found: &mut Vec<(Kind, Revision)>,
        other: &mut Option<String>,
    ) -> Result<(), MirrorError> {
        let Some(id) = self.tip(full).await? else { return Ok(()) };
        match self.object(&format!("{id}^{{commit}}")).await? {
            Object::Commit { id } => {
                let is_branch = full.starts_with("refs/heads/");
                found.push((if is_branch { Kind::Branch } else { Kind::Tag }, id));
            }
            _ => match self.object(&format!("{id}^{{}}")).await? {
                Object::Other { kind } => *other = Some(kind),
                _ => return Err(self.broken(&format!("{full} leads to an object that is missing"))),
            },
        }
        Ok(())
    }

    /// Returns what a ref points at, by its full name and no other way: `refs/heads/x` may also be how
    /// a branch is called.
    pub(super) async fn tip(&self, full: &str) -> Result<Option<String>, MirrorError> {
        const FORMAT: &str = "--format=%(objectname) %(refname)";
        // One that begins so and a slash goes on may come instead, for none can be beside it.
        let arguments = vec!["for-each-ref", "--count=1", FORMAT, "--end-of-options", full];
        let answer = self.ask(arguments, String::new(), LIST_BYTES_MAX, false).await?;
        let text = answer.text();
        match (text.trim().split_once(' '), answer.code) {
            (Some((id, name)), Some(0)) if name == full => Ok(Some(id.to_owned())),
            (_, Some(0)) => Ok(None),
            _ => Err(self.failed(&answer)),
        }
    }

    /// Looks for commits whose ids begin with these digits.
    async fn look_for(
        &self,
        text: &str,
        found: &mut Vec<(Kind, Revision)>,
        other: &mut Option<String>,
    ) -> Result<(), MirrorError> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() < DIGITS_MIN || !is_number {
            return Ok(());
        }
        let argument = format!("--disambiguate={}", text.to_ascii_lowercase());
        let arguments = vec!["rev-parse", argument.as_str()];
        let answer = self.ask(arguments, String::new(), LIST_BYTES_MAX, true).await?;
        let list = answer.text();
        let ids: Vec<&str> = list.lines().filter(|id| id.parse::<Revision>().is_ok()).collect();
        for object in self.objects(&ids[..ids.len().min(OBJECTS_MAX)]).await? {
            match object {
                Object::Commit { id } => found.push((Kind::Abbreviation, id)),
                Object::Other { kind } if other.is_none() => *other = Some(kind),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns branches and tags whose names look like `name`. Only a help: none where they cannot be
    /// had.
    pub(super) async fn similar(&self, name: &str) -> Vec<String> {
        let arguments = vec![
            "for-each-ref",
            REFS_SEEN_MAX,
            "--format=%(refname:strip=2)",
            "refs/heads/",
            "refs/tags/",
        ];
        let answer = self.ask(arguments, String::new(), LIST_BYTES_MAX, true).await;
        let Ok(answer) = answer else { return Vec::new() };
        similar(name, answer.text().lines())
    }
}

/// Returns those of `names` that look like `name`, the most similar first.
fn similar<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = name.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/");
    let wanted = wanted.to_lowercase();
    let score = |name: &str| {
        let lower = name.to_lowercase();
        let last = lower.rsplit('/').next().unwrap_or_default();
        let steps = distance(&lower, &wanted).min(distance(last, &wanted) + 1);
        let is_part = wanted.len() > 2 && (lower.contains(&wanted) || wanted.contains(&lower));
        (steps <= 1 + wanted.len() / 4 || is_part).then_some(steps)
    };
    let mut found: Vec<(usize, &str)> =
        names.filter_map(|name| score(name).map(|steps| (steps, name))).collect();
    found.sort_unstable();
    found.dedup_by(|one, other| one.1 == other.1);
    found.iter().take(CANDIDATES_MAX).map(|(_, name)| short_line(name, 80)).collect()
}

/// Returns how many letters have to be put in, taken out or replaced to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (at, wanted) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *wanted);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_git_sees_them() {
        let id = "4f2c91e0".repeat(5);
        let cases = [
            ("a full id", id.as_str(), true),
            ("an abbreviation", "4f2c", true),
            ("a branch", "main", true),
            ("a branch in a folder", "release/1.2+x", true),
            ("letters of other alphabets", "prüfung", true),
            ("a full ref", "refs/tags/v1", true),
            ("an option", "--upload-pack=touch x", false),
            ("a short option", "-x", false),
            ("an expression", "main~1", false),
            ("a parent", "main^", false),
            ("a path in a tree", "main:etc", false),
            ("a range", "a..b", false),
            ("a reflog", "main@{1}", false),
            ("a pattern", "rel*", false),
            ("white space", "a b", false),
            ("a newline", "a\nb", false),
            ("an escape code", "a\u{1b}b", false),
            ("a direction", "a\u{202e}b", false),
            ("nothing", "", false),
            ("a hidden part", "a/.b", false),
            ("an empty part", "a//b", false),
            ("a lock", "a.lock", false),
            ("no namespace of ours", "refs/replace/x", false),
            ("a namespace alone", "refs/heads/", false),
            ("300 letters", &"a".repeat(300), false),
        ];
        for (rule, text, valid) in cases {
            assert_eq!(Name::new(text).is_ok(), valid, "{rule}");
        }
    }

    #[test]
    fn similar_names_are_found() {
        let names = ["main", "maintenance", "release/1.2", "v1.10.0", "v1.1.0", "feature/login"];
        let cases = [
            ("mian", vec![]),
            ("mai", vec!["main", "maintenance"]),
            ("Main", vec!["main"]),
            ("1.2", vec!["release/1.2"]),
            ("v1.1.1", vec!["v1.1.0"]),
            ("logn", vec!["feature/login"]),
            ("zzz", vec![]),
        ];
        for (name, expected) in cases {
            let found = similar(name, names.into_iter());
            for name in expected {
                assert!(found.contains(&name.to_owned()), "{name}: {found:?}");
            }
        }
        assert!(similar("zzz", names.into_iter()).is_empty());
        let many: Vec<String> = (0..1000).map(|n| format!("release/{n}")).collect();
        assert_eq!(similar("release", many.iter().map(String::as_str)).len(), CANDIDATES_MAX);
    }
}
