//! How an error is shown: once, at the edge, with all of its causes.

use std::error::Error;

/// Returns an error and its causes in one line: `could not …: …: permission denied`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    one_line(&text)
}

/// Returns a text without line breaks and control characters: what others have written must not
/// forge a line of the log, nor move a terminal's cursor.
#[must_use]
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_log() {
        assert_eq!(one_line("a\n\u{1b}[31mb\t\r\nc"), "a [31mb c");
    }
}
