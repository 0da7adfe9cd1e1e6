//! The end of what a command printed, fit to be shown: bounded, and without control characters.
//!
//! Bytes are kept as they come and cleaned once at the end, so that a command that prints a
//! gigabyte costs copies and no decoding.
//!
//! Invariant
//! - A few times [`BYTES_MAX`] of memory at most, however much is pushed.

use crate::shown::clean;

/// The most bytes of output that are kept.
pub(crate) const BYTES_MAX: usize = 64 * 1024;

/// Collects output and keeps its end.
#[derive(Debug, Default)]
pub(crate) struct LogTail {
    bytes: Vec<u8>,
    cut: bool,
}

impl LogTail {
    /// Takes the next bytes of output.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Cut rarely, so that each byte is moved once or twice and not with every push.
        if self.bytes.len() > 2 * BYTES_MAX {
            self.bytes.drain(..self.bytes.len() - BYTES_MAX);
            self.cut = true;
        }
    }

    /// Returns the end of the output as text: whole lines, the last one in any case.
    pub(crate) fn text(&self) -> String {
        let start = self.bytes.len().saturating_sub(BYTES_MAX);
        let mut bytes = &self.bytes[start..];
        if self.cut || start > 0 {
            // The first line is a fragment, unless it is also the last.
            if let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
                && end + 1 < bytes.len()
            {
                bytes = &bytes[end + 1..];
            }
        }
        let text = clean(&String::from_utf8_lossy(bytes));
        // Replacing what is no UTF-8 may have made it longer.
        let mut from = text.len().saturating_sub(BYTES_MAX);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pushes: &[&[u8]]) -> String {
        let mut log = LogTail::default();
        for push in pushes {
            log.push(push);
        }
        log.text()
    }

    #[test]
    fn a_log_is_fit_to_be_shown() {
        let cases: [(&str, &[u8], &str); 9] = [
            ("nothing", b"", ""),
            ("newline and tab stay", b"a\tb\nc\n", "a\tb\nc\n"),
            ("colours go", b"\x1b[1;31mred\x1b[0m", "red"),
            ("titles go", b"\x1b]0;title\x07x\x1b]0;t\x1b\\y", "xy"),
            ("an open title ends with its line", b"\x1b]0;title\nx", "\nx"),
            ("an escape at the end", b"x\x1b", "x"),
            ("control bytes go", b"a\r\x00\x08b\x7f", "ab"),
            ("what is no UTF-8 is replaced", b"a\xffb", "a\u{fffd}b"),
            ("directions go", "a\u{202e}b".as_bytes(), "ab"),
        ];
        for (rule, bytes, expected) in cases {
            assert_eq!(tail(&[bytes]), expected, "{rule}");
        }
    }

    #[test]
    fn the_end_is_kept_in_whole_lines() {
        let lines: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        let text = tail(&[lines.as_bytes()]);
        assert!(text.len() <= BYTES_MAX);
        assert!(text.starts_with("line ") && text.ends_with("line 19999\n"));
        let long = "x".repeat(5 * BYTES_MAX);
        assert_eq!(tail(&[long.as_bytes()]).len(), BYTES_MAX, "one endless line is kept in part");
        let bad = vec![0xff; 5 * BYTES_MAX];
        assert!(tail(&[&bad]).len() <= BYTES_MAX, "replacing does not make it larger");
    }

    #[test]
    fn memory_is_bounded() {
        let mut log = LogTail::default();
        for _ in 0..2_000 {
            log.push(&[b'x'; 16 * 1024]);
        }
        assert!(log.bytes.capacity() <= 6 * BYTES_MAX, "{}", log.bytes.capacity());
    }
}
