//! Server-sent events: from bytes in pieces of any size to events. No I/O.
//!
//! Of the format only what a coordinator uses is kept: `event` and `data`. Comments keep the connection
//! alive; `id` and `retry` are read and dropped, because whoever comes back is told how things stand now.
//! See <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::collections::VecDeque;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name; `message` where none was given.
    pub(crate) name: String,
    /// Its text.
    pub(crate) data: String,
}

/// Why a stream is none of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// An event, or a line, that does not end.
    #[error("an event has more than {bytes_max} bytes")]
    TooLarge {
        /// The most that are read.
        bytes_max: usize,
    },
    /// Not text.
    #[error("a line is not UTF-8")]
    Text,
}

/// Puts events together.
#[derive(Debug)]
pub(crate) struct Parser {
    bytes_max: usize,
    line: Vec<u8>,
    is_begun: bool,
    is_after_return: bool,
    name: String,
    data: Option<String>,
    ready: VecDeque<Event>,
}

impl Parser {
    /// Makes one that reads events of at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            is_begun: false,
            is_after_return: false,
            name: String::new(),
            data: None,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for &byte in bytes {
            let is_second_half = std::mem::take(&mut self.is_after_return) && byte == b'\n';
            match byte {
                _ if is_second_half => {}
                b'\r' | b'\n' => {
                    self.is_after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    self.take_line(&line)?;
                }
                byte => {
                    self.line.push(byte);
                    self.check_size()?;
                }
            }
        }
        Ok(())
    }

    /// Returns the next event that is whole.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn check_size(&self) -> Result<(), StreamError> {
        let bytes = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if bytes > self.bytes_max {
            return Err(StreamError::TooLarge { bytes_max: self.bytes_max });
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), StreamError> {
        let line = std::str::from_utf8(line).map_err(|_| StreamError::Text)?;
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let line = if is_first { line.trim_start_matches('\u{feff}') } else { line };
        if line.is_empty() {
            self.finish();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.data = Some(value.to_owned()),
                }
                self.check_size()?;
            }
            // A comment (no field's name), or a field that is of no use here.
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) {
        let name = std::mem::take(&mut self.name);
        if let Some(data) = self.data.take() {
            let name = if name.is_empty() { "message".to_owned() } else { name };
            self.ready.push_back(Event { name, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], piece: usize) -> Result<Vec<(String, String)>, StreamError> {
        let mut parser = Parser::new(100);
        let mut events = Vec::new();
        for piece in bytes.chunks(piece) {
            parser.feed(piece)?;
            while let Some(event) = parser.next() {
                events.push((event.name, event.data));
            }
        }
        Ok(events)
    }

    #[test]
    fn events_are_found_whatever_the_pieces() {
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
        let cases: &[Case<'_>] = &[
            ("one", "event: rollout\ndata: {}\n\n", &[("rollout", "{}")]),
            (
                "lines end in three ways",
                "data: a\r\n\r\ndata: b\r\rdata: c\n\n",
                &[("message", "a"), ("message", "b"), ("message", "c")],
            ),
            ("data in lines", "data: a\ndata:b\ndata\n\n", &[("message", "a\nb\n")]),
            ("one space is the format's", "data:  a\n\n", &[("message", " a")]),
            ("comments keep alive", ":\n\n: hello\n\ndata: a\n:x\n\n", &[("message", "a")]),
            ("a name without data is nothing", "event: x\n\ndata: a\n\n", &[("message", "a")]),
            ("other fields", "id: 7\nretry: 5\nlater: x\ndata: a\n\n", &[("message", "a")]),
            ("a byte order mark", "\u{feff}data: a\n\n", &[("message", "a")]),
            ("text beyond ASCII", "data: größer …\n\n", &[("message", "größer …")]),
            (
                "an empty line between",
                "event: rollout\ndata: a\n\n\n\ndata: b\n\n",
                &[("rollout", "a"), ("message", "b")],
            ),
            ("what is cut off is nothing", "data: a\n\ndata: b\n", &[("message", "a")]),
        ];
        for (rule, text, expected) in cases {
            for piece in [1, 2, 3, 7, 1000] {
                let events = parse(text.as_bytes(), piece).unwrap();
                let events: Vec<_> =
                    events.iter().map(|(name, data)| (name.as_str(), data.as_str())).collect();
                assert_eq!(events, *expected, "{rule}, {piece} at a time");
            }
        }
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let too_large = Err(StreamError::TooLarge { bytes_max: 100 });
        assert_eq!(parse("x".repeat(101).as_bytes(), 10), too_large, "a line");
        assert_eq!(parse("data: abcdefgh\n".repeat(20).as_bytes(), 10), too_large, "an event");
        let comments = ": alive\n\n".repeat(100);
        assert_eq!(parse(comments.as_bytes(), 10), Ok(Vec::new()), "a long life is no size");
        assert_eq!(parse(b"data: \xff\n\n", 10), Err(StreamError::Text));
    }
}
