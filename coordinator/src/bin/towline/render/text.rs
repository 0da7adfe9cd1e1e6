//! Text that others wrote, made fit to be shown: it must not forge a line, move a cursor, or fill a screen.

/// Is it a character that changes what a terminal shows without being seen itself?
pub(crate) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{61c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Removes escape sequences and all control characters; line ends stay, and tabs become blanks.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => out.push(c),
            '\t' => out.push_str("  "),
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                chars.next_if(|c| matches!(c, '@'..='~'));
            }
            c if is_unseen(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// Cuts a text to at most so many characters, and marks where.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    kept.truncate(kept.trim_end().len());
    kept.push('…');
    kept
}

/// Returns a text as one line of at most so many characters.
pub(crate) fn line(text: &str, chars_max: usize) -> String {
    cut(&clean(text).split_whitespace().collect::<Vec<_>>().join(" "), chars_max)
}

/// Returns the last lines of a text, each cut, without blank ones at its ends.
pub(crate) fn last_lines(text: &str, lines_max: usize, chars_max: usize) -> Vec<String> {
    let text = clean(text);
    let lines: Vec<&str> = text.trim_matches('\n').lines().map(str::trim_end).collect();
    let skipped = lines.len().saturating_sub(lines_max);
    let mut shown = Vec::new();
    if skipped > 0 {
        shown.push(format!("… {} before", count(skipped, "line")));
    }
    shown.extend(lines[skipped..].iter().map(|line| cut(line, chars_max)));
    shown
}

/// Breaks a text into lines of at most so many characters, at blanks where there are any.
pub(crate) fn wrap(text: &str, chars_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in clean(text).split_whitespace() {
        let word = cut(word, chars_max);
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= chars_max => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// Returns a number with its noun: `1 instance`, `2 instances`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Names the first few of many: `i-1 i-2 and 3 more`.
pub(crate) fn few<'a>(
    names: impl ExactSizeIterator<Item = &'a str>,
    shown_max: usize,
    between: &str,
) -> String {
    let all = names.len();
    let mut shown =
        names.take(shown_max).map(|name| line(name, 64)).collect::<Vec<_>>().join(between);
    if all > shown_max {
        shown.push_str(&format!(" and {} more", all - shown_max));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_made_harmless() {
        let cases = [
            ("colours", "\u{1b}[31mred\u{1b}[0m", "red"),
            ("a cleared screen", "a\u{1b}[2Jb", "ab"),
            ("a title", "\u{1b}]0;x\u{7}y", "]0;xy"),
            ("one byte for two", "a\u{9b}2Jb", "a2Jb"),
            ("lines and tabs", "a\r\n\tb", "a b"),
            ("directions", "a\u{202e}b\u{2066}c", "abc"),
            ("what has no width", "a\u{200b}b\u{feff}c", "abc"),
            ("tags, which nobody sees", "a\u{e0041}b\u{e007f}c", "abc"),
            ("a sequence that is cut", "a\u{1b}[", "a"),
        ];
        for (rule, text, expected) in cases {
            assert_eq!(line(text, 100), expected, "{rule}");
        }
        assert_eq!(line("abcdef", 4), "abc…");
        assert_eq!(line("größer", 6), "größer");
        assert_eq!(cut("ab cdef", 4), "ab…");
    }

    #[test]
    fn of_a_log_the_end_is_kept() {
        assert_eq!(last_lines("\n\na\nb\n\n", 2, 9), ["a", "b"]);
        assert_eq!(last_lines("a\nb\nc\nd", 2, 9), ["… 2 lines before", "c", "d"]);
        assert_eq!(last_lines("  at x\u{1b}[0m  \r\nabcdefghijk", 2, 5), ["  at…", "abcd…"]);
        assert!(last_lines("", 2, 9).iter().all(String::is_empty));
    }

    #[test]
    fn lines_are_broken_at_blanks() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 5), ["abcd…", "k"]);
        assert!(wrap(" \n", 5).is_empty());
        assert_eq!(few(["a", "b", "c"].into_iter(), 2, " "), "a b and 1 more");
        assert_eq!(count(1, "instance") + ", " + &count(0, "line"), "1 instance, 0 lines");
    }
}
