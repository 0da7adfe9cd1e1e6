//! What agents say, made fit to be kept and shown; and spans of time in words.
//!
//! An agent may be taken over, and an app prints what it likes: no text of theirs moves a cursor, turns
//! the reading direction, or fills a screen. [`message`] is for when a report comes in, [`line()`] for
//! whatever is shown.
//!
//! PURE.

use towline_protocol::poll::{FailureLog, LOG_BYTES_MAX, Message};

/// The most characters of a line that is kept.
pub const LINE_CHARS_MAX: usize = 400;

/// The most parts of a failure's log that are kept.
const LOG_PARTS_MAX: usize = 16;

/// The most characters of the name of a log's part.
const SOURCE_CHARS_MAX: usize = 40;

/// Characters that steer a terminal, turn the direction of reading, or are there and not seen.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{61c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns a text as one line: what steers becomes a gap, and the end of a long one is left out.
#[must_use]
pub fn line(text: &str) -> String {
    cut(text, LINE_CHARS_MAX)
}

fn cut(text: &str, chars_max: usize) -> String {
    // One look too far is enough to know that something is left out; the rest is never walked.
    let mut line: String =
        text.trim().chars().take(chars_max + 1).map(|c| if steers(c) { ' ' } else { c }).collect();
    if line.chars().count() > chars_max {
        line.pop();
        line.push('…');
    }
    line.trim().to_owned()
}

/// Returns the end of a text of several lines: line breaks and tabs stay, what steers becomes a gap.
fn tail(text: &str, bytes_max: usize) -> String {
    let mut begin = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(begin) {
        begin += 1;
    }
    let clean = |c: char| if steers(c) && !matches!(c, '\n' | '\t') { ' ' } else { c };
    text[begin..].chars().map(clean).collect()
}

/// Cleans what an agent tells, before it is kept.
#[must_use]
pub fn message(mut message: Message) -> Message {
    let report = &mut message.report;
    let lines = [&mut message.note, &mut report.degraded, &mut report.objection];
    for text in lines.into_iter().flatten() {
        *text = line(text);
    }
    if let Some(failure) = &mut report.failure {
        failure.detail = line(&failure.detail);
    }
    message.log = message.log.map(log);
    message
}

fn log(mut log: FailureLog) -> FailureLog {
    log.detail = line(&log.detail);
    log.parts.truncate(LOG_PARTS_MAX);
    let mut left = LOG_BYTES_MAX;
    for part in &mut log.parts {
        part.source = cut(&part.source, SOURCE_CHARS_MAX);
        part.text = tail(&part.text, left);
        left = left.saturating_sub(part.text.len());
    }
    log
}

/// Returns a span of time in words: `40 s`, `14 min`, `3 h`, `19 d`.
#[must_use]
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Returns a number of things: `1 instance`, `2 instances`.
#[must_use]
pub fn number(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_steers_nothing() {
        let cases = [
            ("plain words stay", "GET /healthz 503", "GET /healthz 503"),
            ("letters of all languages stay", "größer als 日本", "größer als 日本"),
            ("tags, which nobody sees", "a\u{e0041}\u{e0042}b", "a  b"),
            ("a line break becomes a gap", "a\nb", "a b"),
            ("an escape sequence loses its escape", "\u{1b}[2Jx", "[2Jx"),
            ("an 8-bit escape too", "a\u{9b}2Jx", "a 2Jx"),
            ("the direction of reading is not turned", "a\u{202e}b", "a b"),
            ("nothing is hidden", "a\u{200b}b", "a b"),
        ];
        for (rule, text, expected) in cases {
            assert_eq!(line(text), expected, "{rule}");
        }
        let long = line(&"ä".repeat(LINE_CHARS_MAX + 1));
        assert_eq!(long.chars().count(), LINE_CHARS_MAX + 1);
        assert!(long.ends_with("ä…"));
        assert_eq!(line(&"ä".repeat(LINE_CHARS_MAX)), "ä".repeat(LINE_CHARS_MAX));
    }

    #[test]
    fn what_comes_in_is_cut_and_cleaned_everywhere() {
        let text = include_str!("../../../protocol/golden/message-1.json");
        let golden: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message(golden.clone()), golden, "what is fit is not touched");
        let mut bad = golden;
        let evil = format!("\u{1b}]0;x\u{7}{}", "x".repeat(100_000));
        bad.note = Some(evil.clone());
        bad.report.degraded = Some(evil.clone());
        bad.report.objection = Some(evil.clone());
        bad.report.failure.as_mut().unwrap().detail.clone_from(&evil);
        let log = bad.log.as_mut().unwrap();
        log.detail.clone_from(&evil);
        let mut part = log.parts[0].clone();
        part.source.clone_from(&evil);
        part.text = format!("{evil}\n\tat the end\u{1b}");
        log.parts = vec![part; 1000];
        let clean = message(bad);
        let all = serde_json::to_string(&clean).unwrap();
        assert!(!all.contains("\\u001b") && !all.contains("\\u0007"), "{}", &all[..300]);
        let log = clean.log.unwrap();
        assert!(log.parts[0].text.ends_with("\n\tat the end "), "the end is kept, and its lines");
        let bytes: usize = log.parts.iter().map(|part| part.text.len()).sum();
        assert!(bytes <= LOG_BYTES_MAX && log.parts.len() <= LOG_PARTS_MAX);
        assert!(all.len() < LOG_BYTES_MAX + 16_000, "{}", all.len());
    }

    #[test]
    fn spans_are_told_in_one_unit() {
        let cases = [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min")];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
        assert_eq!((span(7_200).as_str(), span(172_800).as_str()), ("2 h", "2 d"));
        let permits = |count| number(count, "permit", "permits");
        assert_eq!((permits(1).as_str(), permits(0).as_str()), ("1 permit", "0 permits"));
    }
}
