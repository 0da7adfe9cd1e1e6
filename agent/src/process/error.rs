//! Why a command did not do what it was run for.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use towline_protocol::recipe::CommandLine;

use super::{Exit, RunAs, environment, foreign};

/// Why a command did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("could not start the {label} command `{command}`")]
    Start {
        /// What the command is for.
        label: String,
        /// The command as written.
        command: String,
        /// What to try, where that is known.
        hint: Option<String>,
        /// What the operating system said.
        source: io::Error,
    },
    /// The agent may not run commands as that user.
    #[error("could not run the {label} command as user {user}: the agent does not run as root")]
    User {
        /// What the command is for.
        label: String,
        /// The user that was asked for.
        user: String,
    },
    /// It took too long and was ended.
    #[error("the {label} command `{command}` did not end within {} s", deadline.as_secs_f64())]
    Deadline {
        /// What the command is for.
        label: String,
        /// The command as written.
        command: String,
        /// How long it was given.
        deadline: Duration,
        /// The end of its output.
        log: String,
    },
    /// It ended without success.
    #[error("the {label} command `{command}` failed with {exit}")]
    Failed {
        /// What the command is for.
        label: String,
        /// The command as written.
        command: String,
        /// How it ended.
        exit: Exit,
        /// The end of its output.
        log: String,
    },
    /// It was no longer wanted, and ended.
    #[error("the {label} command was cancelled")]
    Cancelled {
        /// What the command is for.
        label: String,
    },
    /// How it ended could not be learned.
    #[error("could not follow the {label} command `{command}`")]
    Watch {
        /// What the command is for.
        label: String,
        /// The command as written.
        command: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file for its output could not be opened.
    #[error("could not open the log file {}", path.display())]
    LogFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file for its output is not one that the agent may hand to the app's user.
    #[error("could not use {} as a log file: {reason}", path.display())]
    NotLogFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
}

impl ProcessError {
    /// Returns the next thing for an operator to try, or `None` where there is nothing.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ProcessError::Start { hint, .. } => hint.clone(),
            ProcessError::User { user, .. } => Some(format!(
                "run the agent as root or as {user}, or take `user` out of its config"
            )),
            ProcessError::NotLogFile { path, .. } => {
                Some(format!("move {} away; the agent makes a new one", path.display()))
            }
            _ => None,
        }
    }

    /// Returns the end of the command's output, where it had any.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        match self {
            ProcessError::Deadline { log, .. } | ProcessError::Failed { log, .. } => Some(log),
            _ => None,
        }
    }

    /// Says why a command could not be started, with a hint that fits.
    pub(super) fn start(
        label: &str,
        command: &CommandLine,
        cwd: &Path,
        run_as: &RunAs,
        source: io::Error,
    ) -> ProcessError {
        let program = &command.program;
        let hint = match source.kind() {
            // The system gives one answer for a missing directory, program and interpreter.
            io::ErrorKind::NotFound if !cwd.is_dir() => {
                Some(format!("its working directory {} does not exist", cwd.display()))
            }
            io::ErrorKind::NotFound if !program.contains('/') => {
                let all = environment(run_as, &super::Environment::new(), cwd);
                let path = all.get("PATH").cloned().unwrap_or_default();
                Some(format!(
                    "install {program}, or have the agent's config set PATH; it is {path}"
                ))
            }
            io::ErrorKind::NotFound => Some(format!(
                "{program} is looked for in {}; if it is there, the interpreter named in its first \
                 line is not",
                cwd.display()
            )),
            io::ErrorKind::PermissionDenied => Some(format!(
                "make {program} executable, and let {} enter {}",
                foreign(run_as).map_or("the agent's user", |account| account.name.as_str()),
                cwd.display()
            )),
            _ => None,
        };
        let (label, command) = (label.to_owned(), command.to_string());
        ProcessError::Start { label, command, hint, source }
    }
}
