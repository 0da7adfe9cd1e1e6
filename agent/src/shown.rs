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
}
