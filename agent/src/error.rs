//! How an error is shown: once, at the edge, with all of its causes.

use std::error::Error;

use crate::shown::one_line;

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
