//! Reports on their way: the newest one is kept until it is acknowledged, and sent with its age.
//!
//! One is in flight at a time, so that none overtakes another. What a failure said, and how the last step
//! went, outlive the report that they came with: the newest of each is sent with the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use towline_protocol::poll::{FailureLog, Message};
use towline_protocol::report::Report;
use tracing::{debug, warn};

use super::call::CallError;
use super::link::{DEADLINE, Link};
use super::turns::Turns;
use crate::error;
use crate::source::Told;

/// How long a report that was refused waits once a coordinator answers polls.
pub(super) const HURRY: Duration = Duration::from_secs(1);

/// A report that was not acknowledged.
#[derive(Debug, Clone)]
struct Unsaid {
    report: Report,
    at: Instant,
    /// All messages that tell it have this number, or a higher one.
    from: u64,
}

/// What is still to be told.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    kept: Mutex<Kept>,
    news: Notify,
    /// A coordinator answers: whoever pauses before it tries again need not.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    /// Counts what was put in.
    newest: u64,
    report: Option<Unsaid>,
    /// Each with the count at which it came.
    note: Option<(String, u64)>,
    log: Option<(FailureLog, u64)>,
}

impl Outbox {
    /// Takes the place of what was not told yet. `number` is drawn for it, and not used for another message.
    pub(super) fn put(&self, told: Told, number: impl FnOnce() -> u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.newest += 1;
        let newest = kept.newest;
        kept.report = Some(Unsaid { report: told.report, at: Instant::now(), from: number() });
        if let Some(note) = told.note {
            kept.note = Some((note, newest));
        }
        if let Some(log) = told.log {
            kept.log = Some((log, newest));
        }
        drop(kept);
        self.news.notify_one();
    }

    /// Returns the number from which on messages tell what was not acknowledged. Where none was told in this
    /// life, one is about to come: after a message of the number `now`.
    pub(super) fn unsaid(&self, now: u64) -> Option<u64> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_yet = (kept.newest == 0).then_some(now);
        kept.report.as_ref().map(|unsaid| unsaid.from).or(nothing_yet)
    }

    /// A coordinator answers.
    pub(super) fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Returns what is to be told now, and its count. `number` is drawn with it: no report may be told
    /// with a number that is newer than itself.
    fn take(&self, number: impl FnOnce() -> u64) -> Option<(Message, u64)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Unsaid { report, at, .. } = kept.report.clone()?;
        let message = Message {
            seq: number(),
            age_ms: u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX),
            report,
            note: kept.note.as_ref().map(|(note, _)| note.clone()),
            log: kept.log.as_ref().map(|(log, _)| log.clone()),
        };
        Some((message, kept.newest))
    }

    /// What was put in up to `count` has arrived.
    fn acknowledge(&self, count: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.newest == count {
            kept.report = None;
        }
        kept.note.take_if(|(_, at)| *at <= count);
        kept.log.take_if(|(_, at)| *at <= count);
    }
}

/// Tells what is in the outbox, as it comes; never returns.
pub(super) async fn run(link: Arc<Link>, outbox: Arc<Outbox>) {
    let mut turns = Turns::new(link.addresses.len(), link.seed ^ 1);
    let mut token = link.token.subscribe();
    let mut is_failing = false;
    loop {
        let Some((message, count)) = outbox.take(|| link.number()) else {
            outbox.news.notified().await;
            continue;
        };
        let at = if is_failing { turns.at() } else { link.at() };
        match link.call::<serde_json::Value>(at, "report", &message, DEADLINE).await {
            Ok(_) => {
                outbox.acknowledge(count);
                turns.succeeded();
                is_failing = false;
            }
            Err(CallError::NotJoined) => {
                // The poll joins; without it there is nobody who could.
                if token.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if std::mem::replace(&mut is_failing, true) {
                    debug!(error = error::chain(&error), "the report is kept");
                } else {
                    warn!(
                        error = error::chain(&error),
                        hint = error.hint(),
                        "a report could not be told; it is kept"
                    );
                }
                let pause = turns.failed();
                tokio::select! {
                    () = sleep(pause) => {}
                    // Not at once: what refuses reports may answer polls.
                    () = outbox.hurry.notified() => sleep(pause.min(turns.spread(HURRY))).await,
                }
            }
        }
    }
}
