//! What an app said before it failed, in few lines: the error, where it is in the app, and each thing once.
//!
//! ```text
//!   worker ends ── TypeError, its stack ── worker ends ── TypeError, its stack ── …
//!                  └────── shown ──────┘                  └── left out: it repeats ──┘
//! ```

use std::collections::BTreeSet;

use crate::render::text::{clean, count, cut};

/// How far before the end of a log the line that names its error may be, in lines.
const ERROR_WITHIN: usize = 40;

/// What a line that names an error holds.
const ERRORS: [&str; 5] = ["error", "exception", "panic", "fatal", "traceback"];

/// Where releases are, below an instance's directory.
const RELEASES: &str = "/releases/";

/// Returns the last lines of a log, each thing once, from its error on where that fits.
pub(crate) fn lines(text: &str, lines_max: usize, chars_max: usize) -> Vec<String> {
    let text = clean(text);
    let mut seen = BTreeSet::new();
    let (mut kept, mut repeated) = (Vec::new(), 0);
    for line in text.trim_matches('\n').lines().map(str::trim_end) {
        if line.is_empty() {
            continue;
        }
        if seen.insert(alike(line)) {
            kept.push(line);
        } else {
            repeated += 1;
        }
    }
    let last = kept.len().saturating_sub(lines_max);
    let names_error = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ERRORS.iter().any(|word| line.contains(word))
    };
    let error = kept.iter().rposition(names_error);
    let error = error.filter(|error| kept.len() - error <= ERROR_WITHIN);
    let from = error.map_or(last, |error| error.min(last));
    let until = (from + lines_max).min(kept.len());
    let mut shown = Vec::new();
    if from > 0 {
        shown.push(format!("… {} before", count(from, "line")));
    }
    shown.extend(kept[from..until].iter().map(|line| cut(&in_app(line), chars_max)));
    if until < kept.len() {
        shown.push(format!("… {} after", count(kept.len() - until, "line")));
    }
    if repeated > 0 {
        let verb = if repeated == 1 { "says" } else { "say" };
        shown.push(format!("… {} {verb} the same again", count(repeated, "line")));
    }
    shown
}

/// Returns what a line has in common with those that say the same: all but its numbers.
pub(crate) fn alike(line: &str) -> String {
    let mut alike = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            c if !c.is_ascii_digit() => alike.push(c),
            _ if alike.ends_with('0') => {}
            _ => alike.push('0'),
        }
    }
    alike
}

/// Names a file of a release as the app's repository does: without the place where it is on the host.
fn in_app(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(RELEASES) {
        let (before, after) = (&rest[..at], &rest[at + RELEASES.len()..]);
        let digits = after.bytes().take_while(u8::is_ascii_hexdigit).count();
        let is_release = matches!(digits, 40 | 64) && after[digits..].starts_with('/');
        if is_release {
            let begin =
                before.rfind([' ', '(', '"', '\'', '`', '=', '<', '[']).map_or(0, |at| at + 1);
            out.push_str(&before[..begin]);
            rest = &after[digits + 1..];
        } else {
            out.push_str(&rest[..at + RELEASES.len()]);
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(pid: u32) -> String {
        let release = format!("/srv/web/releases/{}", "4f2c91e0".repeat(5));
        let mut text = format!(
            "worker {pid} begins\n{release}/lib/price.js:88\n  null.currency;\n       ^\n\n\
             TypeError: Cannot read properties of null (reading 'currency')\n    \
             at Object.<anonymous> ({release}/lib/price.js:88:6)\n"
        );
        for number in 0..9 {
            let name = char::from(b'a' + number);
            text.push_str(&format!("    at Module.{name} (node:internal/loader:{number}:10)\n"));
        }
        text + "\nNode.js v18.19.0\n"
    }

    #[test]
    fn an_error_is_told_once_and_from_its_first_line() {
        let looped: String = (0..8).map(|number| stack(4_000 + number)).collect();
        let told = lines(&format!("listens on 3000\n{looped}"), 12, 200);
        assert_eq!(told[0], "… 5 lines before");
        assert_eq!(told[1], "TypeError: Cannot read properties of null (reading 'currency')");
        assert_eq!(told[2], "    at Object.<anonymous> (lib/price.js:88:6)");
        assert_eq!(told[12], "Node.js v18.19.0");
        assert_eq!(told[13], "… 112 lines say the same again");
        assert_eq!(told.len(), 14, "{told:#?}");
    }

    #[test]
    fn of_what_names_no_error_the_end_is_kept() {
        let words = |first: char, last: char| -> String {
            (first..=last).map(|letter| format!("{letter}\n")).collect()
        };
        assert_eq!(lines(&words('a', 'z'), 2, 200), ["… 24 lines before", "y", "z"]);
        let far = format!("an error\n{}{}", words('A', 'Z'), words('a', 'z'));
        assert_eq!(lines(&far, 1, 200), ["… 52 lines before", "z"], "it is long over");
        let deep = format!("Traceback:\n{}", words('a', 'z'));
        assert_eq!(lines(&deep, 2, 200), ["Traceback:", "a", "… 25 lines after"]);
    }

    #[test]
    fn a_file_is_named_as_in_the_repository() {
        let sha1 = "/srv/web/releases/".to_owned() + &"ab".repeat(20);
        let sha256 = "/srv/web/releases/".to_owned() + &"cd".repeat(32);
        let cases = [
            (format!("at f ({sha1}/lib/a.js:1:2)"), "at f (lib/a.js:1:2)".to_owned()),
            (format!("at file://{sha256}/a.mjs:3"), "at a.mjs:3".to_owned()),
            (format!("{sha1}/a.js {sha1}/b.js"), "a.js b.js".to_owned()),
            (format!("in {sha1}"), format!("in {sha1}")),
            ("/srv/releases/4f2c/a.js".to_owned(), "/srv/releases/4f2c/a.js".to_owned()),
        ];
        for (text, expected) in cases {
            assert_eq!(in_app(&text), expected);
        }
        assert_eq!(lines(&format!("x {}", "y".repeat(300)), 1, 200)[0].chars().count(), 200);
    }
}
