//! The poll: one is parked at all times, also in the middle of a deploy.
//!
//! ```text
//!        ┌────────────────────────── 204: nothing new ─────────────────────────┐
//!        ▼                                                                     │
//!   join, if it takes that ─► poll { seen } ─┬─ 200 ─► the word, and its id ───┘
//!        ▲                                   └─ no good answer ─► the next address; once all have
//!        └──────────────── pause ◄──────────────────────────────  failed, a pause that grows
//! ```
//!
//! A coordinator that is away is no objection until the lease has passed: restarts of coordinators are
//! ordinary. At the start it is one as soon as a boot had better go on without.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use towline_protocol::poll::{Answer, Poll, VERSION, WAIT_S, WAIT_S_MAX, Word, lease_s};
use tracing::{info, trace, warn};

use super::call::CallError;
use super::link::Link;
use super::tell::Outbox;
use super::turns::Turns;
use crate::error;
use crate::release::state::Contact;
use crate::source::Said;
use crate::status::seconds_now;

/// On top of `wait_s`: how late an answer may be.
const LATE: Duration = Duration::from_secs(10);

/// How long a start waits for a coordinator that cannot be reached: a network may come up after us.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// An answer with no news that comes sooner than this was not worth asking for: the next poll waits.
const EARLY: Duration = Duration::from_secs(1);

/// At least this lies between two polls, whatever the answers are.
const APART: Duration = Duration::from_millis(50);

/// The loop that polls.
#[derive(Debug)]
pub(super) struct Poller {
    link: Arc<Link>,
    outbox: Arc<Outbox>,
    said: watch::Sender<Option<Said>>,
    turns: Turns,
    /// The id of the last answer.
    seen: Option<String>,
    word: Option<Word>,
    wait_s: u32,
    started: Instant,
    heard: Option<Instant>,
    /// What kind of failure was objected to, until the next good answer.
    objected: Option<Discriminant<CallError>>,
    is_failing: bool,
}

impl Poller {
    pub(super) fn new(
        link: Arc<Link>,
        outbox: Arc<Outbox>,
        said: watch::Sender<Option<Said>>,
    ) -> Self {
        let turns = Turns::new(link.addresses.len(), link.seed);
        Self {
            link,
            outbox,
            said,
            turns,
            seen: None,
            word: None,
            wait_s: WAIT_S,
            started: Instant::now(),
            heard: None,
            objected: None,
            is_failing: false,
        }
    }

    /// Polls until nobody listens any more.
    pub(super) async fn run(mut self) {
        while !self.said.is_closed() {
            let began = Instant::now();
            let pause = match self.poll().await {
                Ok(is_news) => {
                    self.answered(is_news);
                    let is_early = !is_news && began.elapsed() < EARLY;
                    if is_early { EARLY } else { APART.saturating_sub(began.elapsed()) }
                }
                Err(error) => {
                    let pause = self.turns.failed();
                    self.failed(&error);
                    pause
                }
            };
            if pause > Duration::ZERO {
                sleep(pause).await;
            }
        }
    }

    /// Returns whether the answer was another than the last one.
    async fn poll(&mut self) -> Result<bool, CallError> {
        let at = self.turns.at();
        self.link.join(at).await?;
        let seq = self.link.number();
        let poll = Poll {
            version: VERSION,
            group: self.link.group.clone(),
            instance: self.link.instance.clone(),
            seq,
            seen: self.seen.clone(),
            unsaid: self.outbox.unsaid(seq),
        };
        let deadline = Duration::from_secs(u64::from(self.wait_s)) + LATE;
        trace!(seq = poll.seq, seen = poll.seen, "poll");
        let answer: Option<Answer> = self.link.call(at, "poll", &poll, deadline).await?;
        let Some(answer) = answer else { return Ok(false) };
        let address = || self.link.addresses[at].to_string();
        if answer.version == 0 || answer.version > VERSION {
            return Err(CallError::Version { address: address(), version: answer.version });
        }
        if let Some(target) = &answer.word.target {
            target
                .check(&self.link.group)
                .map_err(|source| CallError::Target { address: address(), source })?;
        }
        self.wait_s = answer.wait_s.clamp(1, WAIT_S_MAX);
        let is_news = self.seen.as_ref() != Some(&answer.id);
        self.seen = Some(answer.id);
        self.word = Some(answer.word);
        Ok(is_news)
    }

    fn answered(&mut self, is_news: bool) {
        self.turns.succeeded();
        self.outbox.hurry();
        self.heard = Some(Instant::now());
        let at = self.turns.at();
        self.link.at.store(at, Ordering::Relaxed);
        if std::mem::take(&mut self.is_failing) {
            info!(address = %self.link.addresses[at], "the coordinator answers");
        }
        // What was objected to is over, also where the word is what it was.
        if (self.objected.take().is_some() || is_news)
            && let Some(word) = &self.word
        {
            self.said.send_replace(Some(Said::Word(word.clone())));
        }
        self.note(None);
    }

    fn failed(&mut self, error: &CallError) {
        let hint = error.hint();
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(error = error::chain(error), hint, "the coordinator gives no good answer");
        }
        let since = self.heard.unwrap_or(self.started).elapsed();
        let patience = match self.heard {
            Some(_) => Duration::from_secs(u64::from(lease_s(self.wait_s))),
            None => START_PATIENCE,
        };
        let is_over = self.turns.are_over() && since >= patience;
        let kind = discriminant(error);
        // Two addresses that are away in two ways are one objection.
        let is_first = is_over && self.objected.is_none();
        if is_first || (error.is_refusal() && self.objected != Some(kind)) {
            let hint = hint.map_or(String::new(), |hint| format!(" ({hint})"));
            let said = format!("{}{hint}", error::chain(error));
            self.note(Some(&said));
            self.objected = Some(kind);
            self.said.send_replace(Some(Said::Objection(said)));
        }
    }

    /// Writes down for `towline-agent status` which address it was, and when.
    fn note(&self, problem: Option<&str>) {
        let contact = Contact {
            address: self.link.addresses[self.link.at()].to_string(),
            heard_s: self
                .heard
                .map(|heard| seconds_now().saturating_sub(heard.elapsed().as_secs())),
            problem: problem.map(str::to_owned),
        };
        if let Err(error) = self.link.store.write_contact(&contact) {
            trace!(error = error::chain(&error), "could not write the contact");
        }
    }
}
