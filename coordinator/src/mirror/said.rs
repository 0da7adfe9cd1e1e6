//! What git said: made fit to be shown, and understood as far as there is something to do about it.
//!
//! Names, messages and the words of servers are other people's: they must not forge a line, move a
//! cursor, or carry a secret into a log.

use std::fmt;

/// The most characters of git's words that an error repeats.
const SAID_CHARS_MAX: usize = 600;

/// Git's own words, in one line: the cause of a [`super::MirrorError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

/// Why nothing could be fetched, as far as git's words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The origin could not be reached, or broke off.
    Unreachable,
    /// The origin says that there is no such repository; some say so to whoever may not see it.
    NotFound,
    /// The origin wants other credentials.
    Denied,
    /// The origin's ssh host key is not known.
    HostKey,
    /// The origin's TLS certificate is not trusted.
    Certificate,
    /// The origin leads to another address.
    Redirect,
    /// The repository's ids are of another kind than those of this mirror.
    Sha256,
}

impl Said {
    /// Takes what was written to standard error; `secrets` are struck out.
    pub(super) fn new(text: &str, secrets: &[String]) -> Said {
        let mut lines: Vec<&str> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            // A corrupt file is named once for every object that is looked for in it.
            if lines.last() != Some(&line) {
                lines.push(line);
            }
        }
        let mut text = without_users(&lines.join("; "));
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            text = text.replace(secret.as_str(), "…");
        }
        if text.is_empty() {
            text.push_str("git said nothing");
        }
        Said(ends(&one_line(&text), SAID_CHARS_MAX))
    }

    /// What an error of the operating system's says.
    pub(super) fn of(error: &std::io::Error) -> Said {
        Said(one_line(&error.to_string()))
    }
}

/// Keeps the beginning and the end: the first complaint, and what git died of.
fn ends(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let head: String = text.chars().take(chars_max / 2).collect();
    let tail: String = text.chars().skip(count - chars_max / 2).collect();
    format!("{head} … {tail}")
}

/// Returns `text` in one line: white space becomes a blank, other characters that steer a terminal
/// become U+FFFD.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_whitespace() => ' ',
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                char::REPLACEMENT_CHARACTER
            }
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Returns `text` in one line of at most `chars_max` characters, and a mark where it was cut.
pub(super) fn short_line(text: &str, chars_max: usize) -> String {
    let line = one_line(text.trim());
    match line.char_indices().nth(chars_max) {
        Some(_) => line.chars().take(chars_max - 1).chain(['…']).collect(),
        None => line,
    }
}

/// Strikes out whatever stands before an `@` in an address: it may be a token.
pub(super) fn without_users(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '\'' | '"'))
            .unwrap_or(tail.len());
        let (host, after) = tail.split_at(end);
        match host.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str("…@");
                out.push_str(host);
            }
            None => out.push_str(host),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Does this speak of objects or refs on our own disk that cannot be read?
///
/// What the origin says of itself comes behind `remote:`; a transfer that broke off is no fault of the
/// clone either.
pub(super) fn is_about_clone(text: &str) -> bool {
    const OURS: &[&str] = &[
        "is empty",
        "is corrupt",
        "is too small",
        "too short to be a packfile",
        "packfile",
        "bad object",
        "bad ref ",
        "bad tree",
        "broken ref",
        "bad config",
        "bad index",
        "data stream error",
        "cannot read existing object",
        "did not send all necessary objects",
        "could not read",
        "unable to unpack",
        "unable to parse object",
        "unable to rename temporary",
        "not a git repository",
        "not a valid commit name",
        "unterminated line",
        "unexpected line",
    ];
    const THEIRS: &[&str] = &[
        "could not read from remote",
        "could not read username",
        "could not read password",
        "early eof",
        "hung up",
        "rpc failed",
        "no space left",
        "disk quota",
        "does not appear to be a git repository",
    ];
    let lines: Vec<String> = text
        .lines()
        .map(str::to_ascii_lowercase)
        .filter(|line| !line.starts_with("remote:") && !line.contains("remote error"))
        .collect();
    let has = |words: &[&str]| lines.iter().any(|line| words.iter().any(|w| line.contains(w)));
    has(OURS) && !has(THEIRS)
}

/// Did our checks of the objects refuse what the origin sent?
pub(super) fn is_unsound(text: &str) -> bool {
    text.contains("fsck error")
}

/// Did our disk take no more?
pub(super) fn is_about_space(text: &str) -> bool {
    ["No space left on device", "Disk quota exceeded", "Read-only file system"]
        .iter()
        .any(|words| text.contains(words))
}

/// What kept a fetch from succeeding.
pub(super) fn trouble(text: &str) -> Trouble {
    const WORDS: &[(Trouble, &[&str])] = &[
        (Trouble::HostKey, &["host key verification failed", "host key is known"]),
        (
            Trouble::Denied,
            &[
                "could not read username",
                "could not read password",
                "authentication failed",
                "permission denied",
                "access denied",
                "error: 401",
                "error: 403",
            ],
        ),
        (Trouble::Redirect, &["error: 301", "error: 302", "error: 307", "error: 308"]),
        (Trouble::Certificate, &["certificate"]),
        (Trouble::Sha256, &["mismatched algorithms"]),
        (
            Trouble::NotFound,
            &[
                "not found",
                "does not exist",
                "does not appear to be a git repository",
                "error: 404",
            ],
        ),
    ];
    let text = text.to_ascii_lowercase();
    let found = WORDS.iter().find(|(_, words)| words.iter().any(|word| text.contains(word)));
    found.map_or(Trouble::Unreachable, |(trouble, _)| *trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_become_one_harmless_line() {
        let cases = [
            ("lines", "fatal: a\nerror: b\n", "fatal: a; error: b"),
            ("the same line again", "error: a\nerror: a\nfatal: b", "error: a; fatal: b"),
            ("escape codes", "a\u{1b}[31mb\u{7}", "a\u{fffd}[31mb\u{fffd}"),
            ("directions", "a\u{202e}b", "a\u{fffd}b"),
            ("a token", "'https://tok@git.example/a@b'", "'https://…@git.example/a@b'"),
            ("a user's password", "x https://u:p@h/a y", "x https://…@h/a y"),
            ("two addresses", "ssh://a@h https://b@h", "ssh://…@h https://…@h"),
            ("a secret", "bad hunter2 here", "bad … here"),
            ("nothing", "", "git said nothing"),
        ];
        for (rule, text, expected) in cases {
            assert_eq!(Said::new(text, &["hunter2".to_owned()]).to_string(), expected, "{rule}");
        }
        let long = Said::new(&format!("first {} last", "x".repeat(10_000)), &[]).to_string();
        assert!(long.chars().count() <= SAID_CHARS_MAX + 3, "{}", long.len());
        assert!(long.starts_with("first") && long.ends_with("last"), "both ends are kept");
        assert_eq!(short_line("  abcdef", 4), "abc…");
        assert_eq!(short_line("abcd ", 4), "abcd");
    }

    #[test]
    fn a_fault_of_the_clone_is_told_from_one_of_the_origin() {
        let cases = [
            ("error: object file o/05/1b is empty", true),
            ("error: file p/x.pack is far too short to be a packfile", true),
            ("fatal: bad object refs/heads/main", true),
            ("fatal: not a git repository: 'm.git'", true),
            ("remote: error: object file o/05/1b is empty", false),
            ("fatal: remote error: packfile is corrupt", false),
            ("fatal: early EOF\nfatal: fetch-pack: invalid index-pack output", false),
            ("fatal: write error: No space left on device\nfatal: packfile", false),
            ("fatal: Could not read from remote repository.", false),
            ("fatal: unable to access 'https://h/': Could not resolve host: h", false),
        ];
        for (text, expected) in cases {
            assert_eq!(is_about_clone(text), expected, "{text}");
        }
    }

    #[test]
    fn what_went_wrong_at_the_origin_is_understood() {
        let cases = [
            ("ssh: connect to host h port 22: Connection refused", Trouble::Unreachable),
            ("Host key verification failed.\nfatal: Could not read from", Trouble::HostKey),
            ("git@h: Permission denied (publickey).", Trouble::Denied),
            ("fatal: could not read Username for 'https://h': prompts disabled", Trouble::Denied),
            ("The requested URL returned error: 403", Trouble::Denied),
            ("The requested URL returned error: 301", Trouble::Redirect),
            ("The requested URL returned error: 503", Trouble::Unreachable),
            ("fatal: repository 'https://h/a.git/' not found", Trouble::NotFound),
            ("server certificate verification failed. CAfile: none", Trouble::Certificate),
            ("fatal: mismatched algorithms: client sha1; server sha256", Trouble::Sha256),
        ];
        for (text, expected) in cases {
            assert_eq!(trouble(text), expected, "{text}");
        }
    }
}
