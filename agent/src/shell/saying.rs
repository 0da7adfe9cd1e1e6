//! What people want to know of a step besides its outcome: how it went, in one line, and what commands
//! and the app said when it failed.
//!
//! A task notes it down as it goes; the shell takes it when the task has ended, and tells it with the next
//! report. All of it is bounded, and made fit to be shown.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use towline_protocol::ids::Revision;
use towline_protocol::poll::{FailureLog, LOG_BYTES_MAX, LogPart};

use crate::release;
use crate::shown;

/// How much of a log one part may take. Three of a command's, the app's and a line of detail fit.
const PART_BYTES_MAX: usize = 8 * 1024;

/// What the fields around the texts take.
const FRAME_BYTES: usize = 512;

/// How many of the app's last lines are told.
const APP_LINES: usize = 100;

/// How much of a line of detail is told.
const DETAIL_CHARS_MAX: usize = 1000;

/// What the task that runs has to say.
#[derive(Debug, Default)]
pub(crate) struct Saying {
    note: RefCell<Option<String>>,
    parts: RefCell<Vec<LogPart>>,
    /// How long the app's log was before the last activation.
    mark: Cell<u64>,
    /// When the last activation began, in seconds since 1970.
    since_s: Cell<u64>,
}

impl Saying {
    /// Begins anew, for another task.
    pub(super) fn clear(&self) {
        self.note.take();
        self.parts.take();
    }

    /// Says how the step went.
    pub(super) fn note(&self, note: String) {
        self.note.replace(Some(note));
    }

    /// Keeps the end of what was said; `source` is one of the words of [`LogPart::source`].
    pub(super) fn part(&self, source: &str, text: &str) {
        let text = end(&shown::clean(text), PART_BYTES_MAX).trim_end().to_owned();
        if !text.is_empty() {
            self.parts.borrow_mut().push(LogPart { source: source.to_owned(), text });
        }
    }

    /// From here on the app's log tells of another activation.
    pub(super) fn mark(&self, app_log: &Path, now_s: u64) {
        self.since_s.set(now_s);
        self.mark.set(fs::metadata(app_log).map_or(0, |meta| meta.len()));
    }

    /// Keeps the end of what the app has printed since the last activation.
    pub(super) fn app(&self, app_log: &Path) {
        if let Some(text) = tail(app_log, self.mark.get()) {
            self.part("app", &super::last_lines(&text, APP_LINES));
        }
    }

    /// When the last activation began, in seconds since 1970.
    pub(super) fn since_s(&self) -> u64 {
        self.since_s.get()
    }

    /// Returns how the step went.
    pub(crate) fn take_note(&self) -> Option<String> {
        self.note.take()
    }

    /// Returns what was said of a failure.
    pub(crate) fn take_log(&self, revision: Revision, detail: &str) -> FailureLog {
        let detail = shown::short_line(detail, DETAIL_CHARS_MAX);
        let mut parts = self.parts.take();
        let mut room = (LOG_BYTES_MAX - FRAME_BYTES).saturating_sub(written(&detail));
        // The last ones are nearest to the failure.
        for part in parts.iter_mut().rev() {
            let surplus = (written(&part.text) + FRAME_BYTES / 8).saturating_sub(room);
            part.text = end(&part.text, part.text.len().saturating_sub(surplus)).to_owned();
            // What comes before one that was cut would leave a gap.
            let left = room.saturating_sub(written(&part.text) + FRAME_BYTES / 8);
            room = if surplus > 0 { 0 } else { left };
        }
        parts.retain(|part| !part.text.is_empty());
        FailureLog { revision, detail, parts }
    }
}

/// How many bytes a text takes once it is written as JSON: a line's end takes two.
fn written(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX / 2, |json| json.len())
}

/// Returns the end of a text, of whole characters.
fn end(text: &str, bytes_max: usize) -> &str {
    let mut begin = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(begin) {
        begin += 1;
    }
    &text[begin..]
}

fn tail(path: &Path, mark: u64) -> Option<String> {
    let mut file = release::open_plain(path, false).ok()?;
    let length = file.metadata().ok()?.len();
    // One that was emptied since is read from its beginning.
    let from = if mark <= length { mark } else { 0 };
    let most = PART_BYTES_MAX as u64;
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(most)))).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        "a".repeat(40).parse().unwrap()
    }

    #[test]
    fn what_was_said_is_bounded_and_fit_to_be_shown() {
        let saying = Saying::default();
        saying.part("install", &format!("{}\u{1b}[31mé\r\n", "é".repeat(20_000)));
        for source in ["reload", "start", "health", "app", "app"] {
            saying.part(source, &"\"\n".repeat(100_000));
        }
        saying.part("health", " \n");
        let log = saying.take_log(revision(), &"d\n".repeat(5_000));
        let bytes = serde_json::to_string(&log).unwrap().len();
        assert!((LOG_BYTES_MAX / 2..=LOG_BYTES_MAX).contains(&bytes), "{bytes}");
        assert!(!log.detail.contains('\n'));
        let sources: Vec<&str> = log.parts.iter().map(|part| part.source.as_str()).collect();
        assert_eq!(sources, ["app", "app"], "the last ones, and no empty one");
        let saying = Saying::default();
        saying.part("install", "a\u{1b}[31mb\u{7}\n");
        let log = saying.take_log(revision(), "x");
        assert_eq!(log.parts[0].text, "ab");
        assert!(saying.take_log(revision(), "x").parts.is_empty(), "it is told once");
    }

    #[test]
    fn of_the_apps_log_only_what_came_since_the_activation_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let app = |saying: &Saying| {
            saying.app(&path);
            saying.take_log(revision(), "x").parts.pop().map(|part| part.text)
        };
        let saying = Saying::default();
        assert_eq!(app(&saying), None, "there is none yet");
        fs::write(&path, "old\n").unwrap();
        saying.mark(&path, 0);
        assert_eq!(app(&saying), None);
        fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!(app(&saying).as_deref(), Some("new"));
        fs::write(&path, "n\n").unwrap();
        assert_eq!(app(&saying).as_deref(), Some("n"), "it was emptied meanwhile");
        let long: String = (0..1000).map(|line| format!("{line}\n")).collect();
        fs::write(&path, long).unwrap();
        let told = app(&saying).unwrap();
        assert_eq!((told.lines().count(), told.lines().last()), (100, Some("999")));
    }
}
