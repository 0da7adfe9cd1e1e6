//! What the app has printed: the log that we keep of it, bounded, and its end for whoever looks for a
//! cause. What a unit prints is systemd's to keep, and is asked for there.

use std::io::{Read, Seek, SeekFrom};

use towline_protocol::recipe::Recipe;

use super::Tools;
use crate::release;
use crate::shown;
use crate::systemd;

/// How much of the app's log is shown where a release fails.
const LOG_BYTES: u64 = 4096;

/// How many lines are shown in the agent's own log.
const LINES: usize = 8;

/// How many lines of a unit's are kept to be reported.
const UNIT_LINES: usize = 100;

/// From here on the app's log tells of another activation.
pub(super) fn mark(tools: &Tools) {
    tools.saying.mark(&tools.store.app_log(), crate::status::seconds_now());
}

/// Keeps what the app has printed since the last activation, to be reported, and returns its end.
pub(super) async fn keep(tools: &Tools, recipe: &Recipe) -> Option<String> {
    let Some(unit) = recipe.unit() else {
        tools.saying.app(&tools.store.app_log());
        return end(tools);
    };
    let said = systemd::said(unit, tools.saying.since_s(), UNIT_LINES, &tools.run_as).await?;
    tools.saying.part("app", &said);
    Some(super::last_lines(shown::clean(&said).trim_end(), LINES))
}

/// Returns the end of what an app without a unit has printed, for whoever looks for the cause.
pub(super) fn end(tools: &Tools) -> Option<String> {
    let mut file = release::open_plain(&tools.store.app_log(), false).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    let text = shown::clean(&String::from_utf8_lossy(&bytes));
    let lines = super::last_lines(text.trim_end(), LINES);
    (!lines.is_empty()).then_some(lines)
}
