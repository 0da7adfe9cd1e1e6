//! What each command does: ask, decide what to say, say it.
//!
//! ```text
//!   arguments ──► commands/* ──► client ──► the coordinator
//!                     └────────► render
//! ```

use std::io;
use std::path::PathBuf;

use serde::Serialize;
use towline_protocol::api::{ErrorBody, GroupView, InstanceView};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::policy::PolicyError;
use towline_protocol::time::Timestamp;

use crate::arguments::Command;
use crate::client::Client;
use crate::client::error::ClientError;
use crate::exit::Exit;
use crate::init::InitError;
use crate::render::text::few;
use crate::render::{Closed, Line, Screen};

mod generate;
mod groups;
mod instances;
mod release;
mod rollouts;
mod tokens;
mod watch;

/// What a command works with.
pub(crate) struct Context<'a> {
    /// Whom to ask.
    pub(crate) client: &'a Client,
    /// Whom to tell.
    pub(crate) screen: &'a Screen,
    /// What time it is.
    pub(crate) clock: fn() -> Timestamp,
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The coordinator did not answer, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer could not be printed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// A group's file cannot be read.
    #[error("could not read the group file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A group's file is not what is due.
    #[error("could not parse the group file {}: {said}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which line, and what is wrong with it.
        said: String,
    },
    /// A group's file holds a value that makes no sense.
    #[error("could not use the group file {}", path.display())]
    Policy {
        /// Whose file it was to be.
        group: Group,
        /// The file.
        path: PathBuf,
        /// Which one, and why.
        source: PolicyError,
    },
    /// A plan says that the release would be refused.
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    /// No group has such an instance.
    #[error("could not find an instance {instance}")]
    NoInstance {
        /// Its name.
        instance: Instance,
    },
    /// Nothing is called like this.
    #[error("could not find a group or an instance {subject:?}")]
    NoSubject {
        /// What was given.
        subject: String,
    },
    /// More than one group has such an instance.
    #[error("could not tell which {instance} is meant: groups {groups} have one each")]
    Ambiguous {
        /// Its name.
        instance: Instance,
        /// The first few of them.
        groups: String,
    },
    /// No quarantined commit, or more than one, begins like this.
    #[error("could not find the commit: {number} in quarantine of {group} begins with {beginning}")]
    Quarantine {
        /// Whose quarantine.
        group: Group,
        /// What was given.
        beginning: String,
        /// How many there are.
        number: &'static str,
    },
    /// Files could not be written.
    #[error("could not write into {}", dir.display())]
    Write {
        /// Where.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// No recipe could be drafted.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Waiting for answers could not be set up.
    #[error("could not begin")]
    Runtime(#[source] io::Error),
    /// The system does not tell of Ctrl-C.
    #[error("could not listen for Ctrl-C")]
    Signals(#[source] io::Error),
}

impl CommandError {
    /// Returns the next thing to try.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            CommandError::Client(error) => error.hint(),
            CommandError::Init(error) => error.hint(),
            CommandError::Refused(body) => body.hint.clone(),
            CommandError::NoInstance { .. } => {
                Some("`towline instances` lists those that are known".to_owned())
            }
            CommandError::NoSubject { .. } => {
                Some("`towline group list` and `towline instances` list what there is".to_owned())
            }
            CommandError::Ambiguous { .. } => Some("name its group with --group".to_owned()),
            CommandError::Quarantine { group, .. } => {
                Some(format!("`towline quarantine list {group}` lists them"))
            }
            CommandError::Parse { .. } => {
                Some("the keys, and what each is by default, are in the README".to_owned())
            }
            CommandError::Policy { group, .. } => {
                Some(format!("`towline group show {group}` prints the file of one that is set"))
            }
            CommandError::Read { .. } => {
                Some("name a file that can be read, or `-` for standard input".to_owned())
            }
            CommandError::Write { .. } => Some("name a directory that can be written".to_owned()),
            CommandError::Closed(_) | CommandError::Runtime(_) | CommandError::Signals(_) => None,
        }
    }

    /// Returns what the coordinator said, where it said no.
    pub(crate) fn refusal(&self) -> Option<&ErrorBody> {
        match self {
            CommandError::Client(ClientError::Refused(body)) | CommandError::Refused(body) => {
                Some(body)
            }
            _ => None,
        }
    }

    /// Returns how the command ends by it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            CommandError::Client(error) => error.exit(),
            _ => Exit::Failed,
        }
    }
}

/// How a command ends.
pub(crate) type Ended = Result<Exit, CommandError>;

/// Does what was asked.
pub(crate) async fn run(context: &Context<'_>, command: Command) -> Ended {
    match command {
        Command::Group(command) => groups::run(context, command).await,
        Command::Quarantine(command) => groups::quarantine(context, command).await,
        Command::JoinSecret { group } => tokens::join_secret(context, &group).await,
        Command::Token(command) => tokens::run(context, command).await,
        Command::Plan(proposal) => release::plan(context, &proposal).await,
        Command::Release(release) => release::release(context, &release).await,
        Command::Rollback { group, revision, watch } => {
            release::rollback(context, &group, revision.as_deref(), watch).await
        }
        Command::Rollout(command) => rollouts::run(context, command).await,
        Command::Restart { group, instance: Some(instance), reason, .. } => {
            instances::order(context, group, &instance, "restart", reason).await
        }
        Command::Restart { group: Some(group), instance: None, reason, watch } => {
            rollouts::restart(context, &group, reason, watch).await
        }
        // The arguments ask for one or the other.
        Command::Restart { group: None, instance: None, .. } => Ok(Exit::Usage),
        Command::Retry { group, instance, reason } => {
            instances::order(context, group, &instance, "retry", reason).await
        }
        Command::Forget { instance, group, reason } => {
            instances::order(context, group, &instance, "forget", reason).await
        }
        Command::Skew { group } => groups::skew(context, group).await,
        Command::Instances { group, status, revision } => {
            instances::list(context, group.as_ref(), status, revision.as_deref()).await
        }
        Command::Why { subject, group } => instances::why(context, &subject, group).await,
        Command::Logs { instance, group } => instances::logs(context, group, &instance).await,
        Command::Permit(command) => instances::permit(context, command).await,
        Command::Init { dir } => generate::recipe(context.screen, &dir),
        Command::Completions { shell } => generate::completions(context.screen, shell),
        Command::Man { dir } => generate::man(context.screen, &dir),
    }
}

/// Does what asks nobody; `None` where somebody must be asked.
pub(crate) fn run_local(screen: &Screen, command: &Command) -> Option<Ended> {
    match command {
        Command::Init { dir } => Some(generate::recipe(screen, dir)),
        Command::Completions { shell } => Some(generate::completions(screen, *shell)),
        Command::Man { dir } => Some(generate::man(screen, dir)),
        _ => None,
    }
}

impl Context<'_> {
    /// Returns what time it is.
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Prints an answer: as JSON under its name, or as lines.
    pub(crate) fn answer<T: Serialize>(
        &self,
        name: &str,
        view: &T,
        lines: impl FnOnce() -> Vec<Line>,
    ) -> Ended {
        if self.screen.is_json() {
            self.screen.print_json(name, view)?;
        } else {
            self.screen.print(&lines())?;
        }
        Ok(Exit::Done)
    }

    /// Says that something is done whose answer is nothing more than that: in words, or as JSON what it was
    /// done to.
    pub(crate) fn done(&self, name: &str, what: &serde_json::Value, said: &str) -> Ended {
        self.screen.done(name, what, said)?;
        Ok(Exit::Done)
    }

    /// Reads all groups, or the one that was named.
    pub(crate) async fn groups(
        &self,
        group: Option<Group>,
    ) -> Result<Vec<GroupView>, CommandError> {
        Ok(match group {
            Some(group) => vec![self.group(&group).await?],
            None => self.client.list(&["groups"], &[]).await?,
        })
    }

    /// Reads a group.
    pub(crate) async fn group(&self, group: &Group) -> Result<GroupView, CommandError> {
        Ok(self.client.get(&["groups", group.as_str()], &[]).await?)
    }

    /// Finds the group of an instance, where it was not named.
    pub(crate) async fn group_of(
        &self,
        group: Option<Group>,
        instance: &Instance,
    ) -> Result<Group, CommandError> {
        match group {
            Some(group) => Ok(group),
            None => self
                .find(instance)
                .await?
                .ok_or_else(|| CommandError::NoInstance { instance: instance.clone() }),
        }
    }

    /// Finds the one group that has an instance of this name.
    pub(crate) async fn find(&self, instance: &Instance) -> Result<Option<Group>, CommandError> {
        let all: Vec<InstanceView> = self.client.list(&["instances"], &[]).await?;
        let mut groups: Vec<Group> = all
            .into_iter()
            .filter(|view| view.instance == *instance)
            .map(|view| view.group)
            .collect();
        groups.sort();
        groups.dedup();
        if groups.len() > 1 {
            let groups = few(groups.iter().map(Group::as_str), 5, ", ");
            return Err(CommandError::Ambiguous { instance: instance.clone(), groups });
        }
        Ok(groups.pop())
    }
}

#[cfg(test)]
mod tests;
