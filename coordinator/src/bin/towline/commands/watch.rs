//! Follows a rollout until it has ended, through restarts of the coordinator and into its rollback.
//!
//! ```text
//!   stream ──event──► watched? ──► story ──► lines        ended? ──► summary, exit
//!     ▲                  │ a later generation: how did the watched one end?
//!     └── backoff ◄── the stream broke                 aborted? ──► watch the next generation
//! ```
//!
//! Invariants
//! - Only the coordinator's word ends a watch, apart from Ctrl-C and a coordinator that stays away.
//! - A rollout that was aborted, halted or replaced never ends in 0.
//! - What is told never goes back: a stream begins with how things stand, and nothing is asked beside it.

use towline_protocol::api::{GroupView, InstanceView, LogView, RolloutView};
use towline_protocol::ids::Group;
use towline_protocol::rollout::State;

use crate::client::error::ClientError;
use crate::client::{Events, jittered};
use crate::commands::{CommandError, Context, Ended, rollouts};
use crate::exit::Exit;
use crate::render::rollout;
use crate::render::story::Story;
use crate::render::summary::{self, Ending};

/// How often in a row the stream is asked for in vain: about a quarter of an hour.
const ATTEMPTS_MAX: u32 = 100;

/// The name of the events that are of use.
const EVENT: &str = "rollout";

/// Follows a rollout, from how it stands now.
pub(crate) async fn follow(context: &Context<'_>, begun: RolloutView) -> Ended {
    let group = begun.group.clone();
    let mut watch = Watch {
        context,
        group: group.clone(),
        story: Story::default(),
        now: begun.clone(),
        told: None,
        failed: None,
        attempts: 0,
    };
    let ended = tokio::select! {
        ended = watch.run(begun) => ended,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(CommandError::Signals)?;
            Ok(None)
        }
    };
    context.screen.end_progress();
    match ended {
        Ok(Some(exit)) => Ok(exit),
        Err(CommandError::Closed(closed)) if !closed.is_reader_gone() => Err(closed.into()),
        // Ctrl-C, or nobody reads any more.
        Ok(None) | Err(CommandError::Closed(_)) => {
            context.screen.remark(&summary::detached(Some(&watch.now), group.as_str()));
            Ok(Exit::Detached)
        }
        Err(error) => Err(error),
    }
}

struct Watch<'a> {
    context: &'a Context<'a>,
    group: Group,
    story: Story,
    /// The rollout that is watched, as it was last.
    now: RolloutView,
    /// What programs were told last.
    told: Option<RolloutView>,
    /// The one that was watched before it was aborted.
    failed: Option<RolloutView>,
    /// How often in a row nobody has answered.
    attempts: u32,
}

impl Watch<'_> {
    async fn run(&mut self, begun: RolloutView) -> Result<Option<Exit>, CommandError> {
        if !self.context.screen.is_json() {
            let has_terminal = self.context.screen.has_progress();
            self.context.screen.print(&[summary::begun(&begun, true, has_terminal)])?;
        }
        if let Some(exit) = self.see(begun).await? {
            return Ok(Some(exit));
        }
        let (wait_min, wait_max) = self.context.client.stream_waits();
        let mut wait = wait_min;
        loop {
            match self.listen().await {
                Ok(Some(exit)) => return Ok(Some(exit)),
                // A stream may end, as when a coordinator is started again: the next one goes on.
                Ok(None) => {}
                Err(CommandError::Client(error)) if error.is_temporary() => {
                    self.note_away(error)?;
                }
                Err(error) => return Err(error),
            }
            // It was there until now.
            if self.attempts <= 1 {
                wait = wait_min;
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(wait_max);
        }
    }

    /// Follows one stream to its end.
    async fn listen(&mut self) -> Result<Option<Exit>, CommandError> {
        let path = ["groups", self.group.as_str(), "rollout", "watch"];
        let mut events: Events = self.context.client.watch(&path).await?;
        while let Some(event) = events.next().await? {
            if event.name != EVENT {
                continue;
            }
            if std::mem::take(&mut self.attempts) > 0 {
                self.context.screen.remark("the coordinator is back");
            }
            let view: RolloutView =
                serde_json::from_str(&event.data).map_err(ClientError::Malformed)?;
            if let Some(exit) = self.see(view).await? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    /// Says once that nobody answers; gives up when that has lasted.
    fn note_away(&mut self, error: ClientError) -> Result<(), ClientError> {
        if self.attempts == 0 {
            self.context.screen.remark("the coordinator is away; asking again until it is back");
        }
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX { Err(error) } else { Ok(()) }
    }

    /// Takes a view up. Returns how the watch ends, where it ends by it.
    async fn see(&mut self, view: RolloutView) -> Result<Option<Exit>, CommandError> {
        // What is older than what is watched was on its way before that began.
        if view.order < self.now.order {
            return Ok(None);
        }
        if view.order == self.now.order {
            return self.advance(view).await;
        }
        // The watched one has ended, and its end was not heard.
        let watched = Some(self.now.order.generation);
        match rollouts::read(self.context, &self.group, watched).await {
            Ok(ended) if ended.order == self.now.order => return self.advance(ended).await,
            Err(CommandError::Client(error)) if !error.is_not_found() => return Err(error.into()),
            // Nothing is known of it any more: another life of the store, or too long ago.
            Ok(_) | Err(_) => {}
        }
        let state = State::Replaced;
        let next_generation = Some(view.order.generation);
        self.advance(RolloutView { state, next_generation, ..self.now.clone() }).await
    }

    /// Tells what is new of the watched rollout, and goes on with the next one where it was aborted.
    async fn advance(&mut self, view: RolloutView) -> Result<Option<Exit>, CommandError> {
        let mut view = view;
        loop {
            self.tell(&view)?;
            self.now = view;
            let now = &self.now;
            let is_over = now.state.is_ended() || now.state == State::Halted;
            if !is_over && !rollout::has_chosen(now) {
                return Ok(None);
            }
            let (State::Aborted, Some(next), None) = (now.state, now.next_generation, &self.failed)
            else {
                return self.conclude().await.map(Some);
            };
            view = match rollouts::read(self.context, &self.group, Some(next)).await {
                Ok(back) => back,
                // A restart that was aborted has no way back: its revision is still the target.
                Err(CommandError::Client(error)) if error.is_not_found() => {
                    return self.conclude().await.map(Some);
                }
                Err(error) => return Err(error),
            };
            if !self.context.screen.is_json() {
                self.context.screen.print(&[summary::way_back(&view)])?;
            }
            self.failed = Some(self.now.clone());
        }
    }

    fn tell(&mut self, view: &RolloutView) -> Result<(), CommandError> {
        let screen = self.context.screen;
        if screen.is_json() {
            if self.told.as_ref() != Some(view) {
                screen.print_json("rollout", view)?;
                self.told = Some(view.clone());
            }
            return Ok(());
        }
        screen.print(&self.story.tell(view))?;
        if !view.state.is_ended() {
            let (done, all, text) = rollout::progress(view);
            screen.show_progress(done, all, &text);
        }
        Ok(())
    }

    /// Says how it ended, with what the instances that failed have said.
    async fn conclude(&self) -> Result<Exit, CommandError> {
        let context = self.context;
        let view = self.failed.as_ref().unwrap_or(&self.now);
        let back = self.failed.as_ref().map(|_| &self.now);
        let exit = match view.state {
            // Paused: because all that --only chose have it, and that is what was asked for.
            State::Converged | State::Paused => Exit::Done,
            _ => Exit::Stopped,
        };
        if context.screen.is_json() {
            return Ok(exit);
        }
        let (mut logs, mut failed) = (Vec::new(), Vec::new());
        let mut is_quarantined = false;
        if exit == Exit::Stopped {
            for instance in summary::failed(view) {
                let path = ["groups", self.group.as_str(), "instances", instance.as_str()];
                failed.extend(context.client.get::<InstanceView>(&path, &[]).await.ok());
                let path = ["groups", self.group.as_str(), "instances", instance.as_str(), "logs"];
                // What is only an addition must not hide how it ended.
                match context.client.get::<LogView>(&path, &[]).await {
                    Ok(log) if view.revision.as_ref() == Some(&log.log.revision) => logs.push(log),
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => context.screen.remark(&format!("no log of {instance}: {error}")),
                }
            }
            let path = ["groups", self.group.as_str()];
            let group: Option<GroupView> = context.client.get(&path, &[]).await.ok();
            let quarantine = group.map(|group| group.quarantine).unwrap_or_default();
            is_quarantined =
                quarantine.iter().any(|one| view.revision.as_ref() == Some(&one.revision));
        }
        context.screen.end_progress();
        let ending = Ending { view, back, is_quarantined, failed: &failed, logs: &logs };
        context.screen.print(&summary::summary(&ending))?;
        Ok(exit)
    }
}
