//! Where targets come from: a local file, or a coordinator; the same words from both.
//!
//! ```text
//!   file ─────────► take the target at once; leave to swap is always given; nobody to report to
//!   coordinator ──► duty, boot, orders; leave is asked for; reports go back
//! ```
//!
//! A source tells what it reads and decides nothing: whether a word counts is for the machine.

pub mod coordinator;
pub mod file;

use std::future::Future;
use std::pin::Pin;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Order;
use towline_protocol::poll::{FailureLog, Word};
use towline_protocol::report::Report;

use crate::machine::{Leave, Outcome};
use coordinator::Coordinator;
use file::FileSource;

/// What a source has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// This is what this instance is told.
    Word(Word),
    /// There is no word, or none that can be read; why, in one line with what to do next.
    Objection(String),
}

/// What an instance has to say: its report, and what people want to know with it.
#[derive(Debug, Clone)]
pub struct Told {
    /// The report.
    pub report: Report,
    /// How the last step went, in one line.
    pub note: Option<String>,
    /// What was said at the moment of a failure.
    pub log: Option<FailureLog>,
}

/// A question for leave to swap, on its way.
pub type Question = Pin<Box<dyn Future<Output = Outcome>>>;

/// Where targets come from.
#[derive(Debug)]
pub enum Source {
    /// A local file.
    File(Box<FileSource>),
    /// A coordinator.
    Coordinator(Coordinator),
}

impl Source {
    /// Returns what can be said at once, without waiting.
    #[must_use]
    pub fn first(&self) -> Option<Said> {
        match self {
            Source::File(file) => Some(file.read()),
            Source::Coordinator(_) => None,
        }
    }

    /// Waits for what the source says next. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Said {
        match self {
            Source::File(file) => {
                file.changed().await;
                file.read()
            }
            Source::Coordinator(coordinator) => coordinator.next().await,
        }
    }

    /// Asks for leave to swap; returns the question's number, where it has one, and its answer.
    ///
    /// `started`: what the machine's time counts from.
    pub fn ask(
        &self,
        order: Order,
        started: Instant,
        stop: CancellationToken,
    ) -> (Option<u64>, Question) {
        match self {
            // A file gives leave at once: it has no batches and no budget.
            Source::File(_) => {
                let leave = Outcome::Permitted(Leave::default());
                (None, Box::pin(std::future::ready(leave)))
            }
            Source::Coordinator(coordinator) => {
                let (number, question) = coordinator.ask(order, started, stop);
                (Some(number), Box::pin(question))
            }
        }
    }

    /// Tells what the instance has to say, as soon as it can be told; a newer report takes its place.
    pub fn tell(&self, told: Told) {
        match self {
            Source::File(_) => {}
            Source::Coordinator(coordinator) => coordinator.tell(told),
        }
    }

    /// Polls and tells no more: after a goodbye, a sign of life would be no true one.
    pub fn hush(&mut self) {
        match self {
            Source::File(_) => {}
            Source::Coordinator(coordinator) => coordinator.hush(),
        }
    }

    /// Says that the instance is shut down, where there is somebody to say it to.
    pub async fn goodbye(&self) {
        match self {
            Source::File(_) => {}
            Source::Coordinator(coordinator) => coordinator.goodbye().await,
        }
    }
}
