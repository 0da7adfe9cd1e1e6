//! The one place that prints: answers to standard output, everything else to standard error.
//!
//! ```text
//!   render/*   PURE  views ──► lines of text
//!   Screen           lines ──► colours ──► standard output, above the line of progress
//!                    remarks, hints, errors ──► standard error
//! ```
//!
//! Invariants
//! - Text from outside is stripped of control characters and cut before it gets here; what is not is
//!   stripped here once more.
//! - A reader that goes away is [`Closed`], and never a panic.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;
use serde_json::Value;
use towline_protocol::api::{ErrorBody, SCHEMA_VERSION};

use crate::exit::Exit;
use crate::render::text::clean;

pub(crate) mod excerpt;
pub(crate) mod instances;
pub(crate) mod lists;
pub(crate) mod plan;
pub(crate) mod rollout;
#[cfg(test)]
pub(crate) mod sample;
pub(crate) mod skew;
pub(crate) mod story;
pub(crate) mod summary;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod time;

/// How many columns a line may have.
pub(crate) const WIDTH: usize = 80;

/// What a line is, for its colour; the words say it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// What all that follows is about.
    Head,
    /// As it ought to be.
    Good,
    /// Not as it ought to be, and not lost.
    Doubtful,
    /// Failed.
    Bad,
    /// Beside the point.
    Faint,
}

/// A line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What it says.
    pub(crate) text: String,
    /// What it is.
    pub(crate) tone: Tone,
}

impl Line {
    /// Makes a line; what would not stay in one is taken out.
    pub(crate) fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { text: clean(text.as_ref()).replace('\n', " "), tone }
    }

    /// Makes a line that is nothing special.
    pub(crate) fn plain(text: impl AsRef<str>) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Standard output has gone, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write the answer")]
pub(crate) struct Closed(#[from] io::Error);

impl Closed {
    /// Did the reader go away, as `head` does when it has enough?
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// An error, as programs read it.
#[derive(Debug, Serialize)]
struct Complaint<'a> {
    code: Value,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

/// Where answers and remarks go.
pub(crate) struct Screen {
    out: RefCell<Box<dyn Write>>,
    beside: RefCell<Box<dyn Write>>,
    is_json: bool,
    is_terminal: bool,
    has_colours: bool,
    has_colours_beside: bool,
    progress: Option<ProgressBar>,
}

impl Screen {
    /// Makes a screen. `allows_colours`: neither NO_COLOR nor a dumb terminal speaks against them.
    pub(crate) fn new(is_json: bool, allows_colours: bool) -> Self {
        let has_terminal_beside = io::stderr().is_terminal();
        let progress = (has_terminal_beside && !is_json).then(|| {
            // Hidden until there is something to say.
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden())
        });
        Self {
            out: RefCell::new(Box::new(io::stdout())),
            beside: RefCell::new(Box::new(io::stderr())),
            is_json,
            is_terminal: io::stdout().is_terminal(),
            has_colours: allows_colours && io::stdout().is_terminal(),
            has_colours_beside: allows_colours && has_terminal_beside,
            progress,
        }
    }

    /// Makes a screen that writes into what a test reads.
    #[cfg(test)]
    pub(crate) fn captured(is_json: bool, out: Box<dyn Write>, beside: Box<dyn Write>) -> Self {
        Self {
            out: RefCell::new(out),
            beside: RefCell::new(beside),
            is_json,
            is_terminal: false,
            has_colours: false,
            has_colours_beside: false,
            progress: None,
        }
    }

    /// Are answers JSON?
    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// How many columns a table may have: what no terminal shows is cut nowhere.
    pub(crate) fn width(&self) -> usize {
        if self.is_terminal { WIDTH } else { usize::MAX }
    }

    /// Is there somebody at a terminal who sees the line of progress?
    pub(crate) fn has_progress(&self) -> bool {
        self.progress.is_some()
    }

    /// Prints lines of an answer.
    pub(crate) fn print(&self, lines: &[Line]) -> Result<(), Closed> {
        let mut text = String::new();
        for line in lines {
            text.push_str(&coloured(line, self.has_colours));
            text.push('\n');
        }
        self.write(&text)
    }

    /// Prints what is not in lines of its own making: a secret, completions.
    pub(crate) fn print_raw(&self, text: &str) -> Result<(), Closed> {
        self.write(text)
    }

    /// Prints an answer as one JSON object: its schema version, and the answer under its name.
    pub(crate) fn print_json<T: Serialize>(&self, name: &str, answer: &T) -> Result<(), Closed> {
        self.write(&(json(name, answer) + "\n"))
    }

    /// Says that something is done, beside an answer of nothing; for programs that is what it was done to.
    pub(crate) fn done(&self, name: &str, what: &Value, said: &str) -> Result<(), Closed> {
        if self.is_json {
            return self.print_json(name, what);
        }
        self.remark(said);
        Ok(())
    }

    /// Says something beside the answer.
    pub(crate) fn remark(&self, text: &str) {
        if self.is_json {
            return self.write_beside(&json("note", &text));
        }
        self.say_beside(&Line::new(Tone::Faint, text));
    }

    /// Warns, beside the answer.
    pub(crate) fn warn(&self, text: &str) {
        if self.is_json {
            return self.write_beside(&json("warning", &text));
        }
        self.say_beside(&Line::new(Tone::Doubtful, format!("warning: {text}")));
    }

    /// Prints an error once, in one line, with its causes and the next thing to try; for programs in the
    /// shape that all errors have. `refusal`: what the coordinator said, where it said no.
    pub(crate) fn complain(
        &self,
        error: &dyn std::error::Error,
        exit: Exit,
        hint: Option<&str>,
        refusal: Option<&ErrorBody>,
    ) {
        self.end_progress();
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        let message = text::line(&message, 1_000);
        let hint = hint.map(|hint| text::line(hint, 1_000));
        if self.is_json {
            let code = refusal.and_then(|refusal| serde_json::to_value(refusal.code).ok());
            let error = Complaint {
                code: code.unwrap_or_else(|| exit.word().into()),
                message: &message,
                hint: hint.as_deref(),
                field: refusal.and_then(|refusal| refusal.field.as_deref()),
            };
            return self.write_beside(&json("error", &error));
        }
        self.say_beside(&Line::new(Tone::Bad, format!("error: {message}")));
        if let Some(hint) = hint {
            self.say_beside(&Line::plain(format!("hint: {hint}")));
        }
    }

    /// Shows how far a rollout has come, at the bottom of a terminal.
    pub(crate) fn show_progress(&self, done: u64, all: u64, text: &str) {
        let Some(bar) = &self.progress else { return };
        if bar.is_hidden() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} [{bar:20}] {pos}/{len} {msg}");
            bar.set_style(style.expect("the template is right").progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        bar.set_length(all);
        bar.set_position(done);
        bar.set_message(text::line(text, 200));
    }

    /// Takes the line of progress away.
    pub(crate) fn end_progress(&self) {
        if let Some(bar) = &self.progress {
            bar.finish_and_clear();
        }
    }

    fn write(&self, text: &str) -> Result<(), Closed> {
        let write = || {
            let mut out = self.out.borrow_mut();
            out.write_all(text.as_bytes())?;
            out.flush()
        };
        let written = match &self.progress {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        Ok(written?)
    }

    fn say_beside(&self, line: &Line) {
        self.write_beside(&coloured(line, self.has_colours_beside));
    }

    fn write_beside(&self, line: &str) {
        let text = format!("{line}\n");
        // Where nobody can be told, there is nobody to tell so.
        let write = || drop(self.beside.borrow_mut().write_all(text.as_bytes()));
        match &self.progress {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

fn coloured(line: &Line, has_colours: bool) -> String {
    let style = match line.tone {
        _ if !has_colours => return line.text.clone(),
        Tone::Plain => return line.text.clone(),
        Tone::Head => Style::new().bold(),
        Tone::Good => Style::new().green(),
        Tone::Doubtful => Style::new().yellow(),
        Tone::Bad => Style::new().red().bold(),
        Tone::Faint => Style::new().dimmed(),
    };
    line.text.style(style).to_string()
}

/// Writes an answer as one line of JSON that holds nothing a terminal would obey.
fn json<T: Serialize>(name: &str, answer: &T) -> String {
    let mut object = serde_json::Map::new();
    object.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    let answer = serde_json::to_value(answer).expect("a view is made of names and numbers");
    object.insert(name.to_owned(), answer);
    let text = serde_json::Value::Object(object).to_string();
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if text::is_unseen(c) {
            let mut units = [0; 2];
            let units = c.encode_utf16(&mut units);
            units.iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_a_version_and_moves_no_cursor() {
        let text = json("why", &serde_json::json!({"a": "x\u{1b}[2J\u{9b}2J\u{202e}\u{e0041}\n"}));
        assert_eq!(
            text,
            r#"{"schema_version":1,"why":{"a":"x\u001b[2J\u009b2J\u202e\udb40\udc41\n"}}"#
        );
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["why"]["a"], "x\u{1b}[2J\u{9b}2J\u{202e}\u{e0041}\n", "nothing is lost");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let line = Line::new(Tone::Bad, "FAILED\u{1b}[2J\nx");
        assert_eq!(coloured(&line, false), "FAILED x");
        let seen = coloured(&line, true);
        assert!(seen.starts_with('\u{1b}') && seen.contains("FAILED x"), "{seen:?}");
        assert_eq!(coloured(&Line::plain("x"), true), "x");
    }
}
