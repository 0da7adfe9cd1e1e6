//! Text that others wrote, made fit to be shown: it must not forge a line of the log, nor move a
//! terminal's cursor.

/// Removes escape sequences and control characters other than newline and tab.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\u{1b}' => match chars.next() {
                // CSI: parameters, then one final byte.
                Some('[') => {
                    while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                    chars.next_if(|c| matches!(c, '@'..='~'));
                }
                // OSC and its like: up to BEL or ST. A line's end stops a sequence that was cut.
                Some(']' | 'P' | '^' | '_' | 'X') => {
                    while let Some(c) = chars.next_if(|&c| c != '\n') {
                        if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                Some('\n') => out.push('\n'),
                _ => {}
            },
            // Directions and line separators could make a log show what it does not hold.
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Returns `text` in one line, cleaned.
#[must_use]
pub fn one_line(text: &str) -> String {
    clean(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns `text` in one line of at most `chars_max` characters, and a mark where it was cut.
#[must_use]
pub fn short_line(text: &str, chars_max: usize) -> String {
    let line = one_line(text);
    match line.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Returns the first and the last `count` lines of a text, and a mark where lines between were left
/// out: some programs tell the cause first and help last, others the other way round.
#[must_use]
pub fn ends(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    if lines.len() <= 2 * count {
        return lines.join("\n");
    }
    let (head, tail) = (&lines[..count], &lines[lines.len() - count..]);
    [head, &["…"], tail].concat().join("\n")
}

/// Returns the line of a command's output that tells most, for where only one can be shown: the first
/// that speaks of an error in more than a word, else the last.
#[must_use]
pub fn telling_line(text: &str) -> Option<&str> {
    const LETTERS_MIN: usize = 20;
    let says = |line: &&str| {
        line.to_ascii_lowercase().contains("error")
            && line.chars().filter(|c| c.is_alphabetic()).count() >= LETTERS_MIN
    };
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.clone().find(says).or_else(|| lines.next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_becomes_one_line() {
        let cases = [
            ("a\n\u{1b}[31mb\t\r\nc", "a b c"),
            ("  a\n\tb \x1b[0m ", "a b"),
            ("a\u{202e}b", "ab"),
        ];
        for (text, expected) in cases {
            assert_eq!(one_line(text), expected, "{text:?}");
        }
        assert_eq!(short_line("abcdef", 3), "abc…");
        assert_eq!(short_line("abc", 3), "abc");
    }

    #[test]
    fn of_a_long_text_both_ends_are_shown() {
        let text: String = (1..=21).map(|number| format!("{number}\n")).collect();
        let cases = [
            ("nothing", "", 10, ""),
            ("as it is", "a\nb\n\n", 1, "a\nb"),
            ("one more", "a\nb\nc", 1, "a\n…\nc"),
            ("many", text.as_str(), 2, "1\n2\n…\n20\n21"),
        ];
        for (rule, text, count, expected) in cases {
            assert_eq!(ends(text, count), expected, "{rule}");
        }
    }

    #[test]
    fn the_line_that_tells_most_is_found() {
        let npm = "npm warn old\nnpm error\nnpm error code E404\nnpm error 404 Not Found - GET \
                   http://127.0.0.1/lodas\nnpm error A complete log is in x\n";
        let cases = [
            ("npm", npm, Some("npm error 404 Not Found - GET http://127.0.0.1/lodas")),
            ("any case", "x\nModuleNotFoundError: no y\nz", Some("ModuleNotFoundError: no y")),
            ("a word is too little", "npm ERROR!\nlast\n\n", Some("last")),
            ("nothing", "\n \n", None),
        ];
        for (rule, text, expected) in cases {
            assert_eq!(telling_line(text), expected, "{rule}");
        }
    }
}
