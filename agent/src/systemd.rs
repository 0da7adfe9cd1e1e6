//! systemd: units through its `systemctl`, and what the agent tells the manager that runs it.
//!
//! ```text
//!   show ──► State        what a unit is at; text of `systemctl show`, read by State::parse
//!   tell ──► start --no-block │ stop --no-block │ reload │ kill
//!   said ──► journal      what a unit's processes have printed
//!   notify                READY, WATCHDOG, STATUS, STOPPING
//! ```
//!
//! Invariants
//! - A start or stop is asked for and never waited for by systemd's own means: a unit that is ordered
//!   after the agent would wait for it in turn.
//! - `systemctl` runs as the agent's own user, with an environment of its own, and a deadline.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::CommandLine;

use crate::process::{self, Environment, Job, ProcessError, Remains, RunAs};
use crate::shown;

mod notify;

pub use notify::Notify;

/// How long `systemctl` may take where it waits for no job. Its own call has 25 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long the journal may take: it is searched for people's sake.
const JOURNAL_DEADLINE: Duration = Duration::from_secs(5);

/// How much is told of what `systemctl` says.
const SAID_CHARS_MAX: usize = 200;

/// How long a word of its own may be.
const WORD_CHARS_MAX: usize = 60;

/// What is asked of a unit.
const PROPERTIES: &str =
    "LoadState,ActiveState,SubState,Result,MainPID,ControlGroup,InvocationID,CanReload";

/// What a unit is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// Started.
    Active,
    /// On its way up, or waiting for its next start.
    Activating,
    /// Told to reload.
    Reloading,
    /// On its way down.
    Deactivating,
    /// Not started.
    Inactive,
    /// Ended in a way that its unit calls a failure, and not started again.
    Failed,
}

impl Active {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "active" => Self::Active,
            "activating" => Self::Activating,
            "reloading" | "refreshing" => Self::Reloading,
            "deactivating" => Self::Deactivating,
            "inactive" | "maintenance" => Self::Inactive,
            "failed" => Self::Failed,
            _ => return None,
        })
    }
}

/// A unit as systemd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What it is at.
    pub active: Active,
    /// The same in systemd's finer words, such as `auto-restart`.
    pub sub: String,
    /// How its last run ended, such as `exit-code`.
    pub result: String,
    /// Its main process.
    pub main_pid: Option<i32>,
    /// The path of its control group.
    pub cgroup: Option<String>,
    /// Names one run of it.
    pub invocation: String,
    /// Has it an `ExecReload=`?
    pub can_reload: bool,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let active = match self.active {
            Active::Active => "active",
            Active::Activating => "activating",
            Active::Reloading => "reloading",
            Active::Deactivating => "deactivating",
            Active::Inactive => "inactive",
            Active::Failed => "failed",
        };
        write!(f, "{active} ({})", self.sub)?;
        match self.result.as_str() {
            "" | "success" => Ok(()),
            result => write!(f, ", its last result {result}"),
        }
    }
}

/// Why a unit could not be looked at or told.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// `systemctl` did not do it.
    #[error("could not {verb} the unit {unit}{}", told(said))]
    Systemctl {
        /// What was attempted.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// What `systemctl` said of it, in a line; empty where it said nothing.
        said: String,
        /// What happened.
        source: Box<ProcessError>,
    },
    /// The unit cannot be used as it is.
    #[error("the unit {unit} is {load} for systemd")]
    NotLoaded {
        /// The unit.
        unit: String,
        /// systemd's word: `not-found`, `masked`, `bad-setting`, `error`.
        load: String,
    },
    /// The answer makes no sense.
    #[error("could not understand what systemctl says of {unit}: {said}")]
    Answer {
        /// The unit.
        unit: String,
        /// The line to blame.
        said: String,
    },
}

/// A piece of a sentence, where there is one.
fn told(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

impl UnitError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            UnitError::Systemctl { source, unit, .. } => source.hint().or_else(|| {
                Some(format!("see `systemctl status {unit}`; the agent has to run as root"))
            }),
            UnitError::NotLoaded { unit, load } => Some(match load.as_str() {
                "not-found" => format!(
                    "install {unit}, run `systemctl daemon-reload`, or correct manager.unit"
                ),
                "masked" => format!("`systemctl unmask {unit}`"),
                _ => format!("`systemd-analyze verify {unit}` says what is wrong with it"),
            }),
            UnitError::Answer { .. } => None,
        }
    }
}

impl State {
    /// Reads what `systemctl show` prints.
    ///
    /// # Errors
    ///
    /// The unit is not loaded, or a line is missing or makes no sense.
    pub fn parse(unit: &str, text: &str) -> Result<State, UnitError> {
        let lines: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let get = |name: &str| lines.get(name).copied().unwrap_or_default();
        let word = |name: &str| shown::short_line(get(name), WORD_CHARS_MAX);
        let nonsense = |name: &str| UnitError::Answer {
            unit: unit.to_owned(),
            said: shown::short_line(&format!("{name}={}", get(name)), 100),
        };
        let load = word("LoadState");
        if load != "loaded" {
            if load.is_empty() {
                return Err(nonsense("LoadState"));
            }
            return Err(UnitError::NotLoaded { unit: unit.to_owned(), load });
        }
        let active = Active::parse(get("ActiveState")).ok_or_else(|| nonsense("ActiveState"))?;
        let main_pid: i32 = get("MainPID").parse().map_err(|_| nonsense("MainPID"))?;
        let cgroup = get("ControlGroup");
        Ok(State {
            active,
            sub: word("SubState"),
            result: word("Result"),
            main_pid: Some(main_pid).filter(|pid| *pid > 1),
            // All that is not below a unit of its own is nobody's.
            cgroup: Some(cgroup)
                .filter(|path| path.starts_with('/') && !path.trim_matches('/').is_empty())
                .map(str::to_owned),
            invocation: get("InvocationID").to_owned(),
            can_reload: get("CanReload") == "yes",
        })
    }
}

/// What a unit is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Be started, whatever failed before.
    Start,
    /// Be stopped.
    Stop,
    /// Reload, and be waited for.
    Reload(Duration),
}

/// The agent's own user, in surroundings that only hold what `systemctl` needs.
fn own(run_as: &RunAs) -> RunAs {
    RunAs { account: None, environment: Environment::new(), ..run_as.clone() }
}

fn line(words: &[&str]) -> CommandLine {
    let mut words = words.iter().map(|word| (*word).to_owned());
    CommandLine { program: words.next().unwrap_or_default(), args: words.collect() }
}

async fn run(
    words: &[&str],
    deadline: Duration,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<String, ProcessError> {
    let job = Job {
        label: "systemd",
        command: &line(words),
        cwd: Path::new("/"),
        run_as: &own(run_as),
        extra: Environment::new(),
        deadline,
        capture: true,
        remains: Remains::End,
    };
    let output = process::run(&job, stop).await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks what a unit is at.
///
/// # Errors
///
/// See [`UnitError`]; it is open then whether it runs.
pub async fn show(
    unit: &str,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<State, UnitError> {
    let property = format!("--property={PROPERTIES}");
    let asked = ["systemctl", "show", &property, "--", unit];
    let said = run(&asked, ANSWER_DEADLINE, run_as, stop).await;
    let said = said.map_err(|source| failed("look at", unit, source))?;
    State::parse(unit, &said)
}

/// Tells a unit what to do. A start and a stop have been queued when this returns.
///
/// # Errors
///
/// systemd has refused it.
pub async fn tell(
    verb: Verb,
    unit: &str,
    run_as: &RunAs,
    stop: &CancellationToken,
) -> Result<(), UnitError> {
    let (name, words, deadline): (_, &[&str], _) = match verb {
        Verb::Start => {
            // So that a limit of starts, used up by what failed before, is not held against this one.
            // Of a unit that is in no such state it says so, and that is as good.
            let reset = ["systemctl", "reset-failed", "--", unit];
            drop(run(&reset, ANSWER_DEADLINE, run_as, stop).await);
            ("start", &["systemctl", "start", "--no-block", "--", unit], ANSWER_DEADLINE)
        }
        Verb::Stop => ("stop", &["systemctl", "stop", "--no-block", "--", unit], ANSWER_DEADLINE),
        Verb::Reload(timeout) => ("reload", &["systemctl", "reload", "--", unit], timeout),
    };
    let told = run(words, deadline, run_as, stop).await;
    told.map(drop).map_err(|source| failed(name, unit, source))
}

/// Returns the end of what a unit's processes have printed since `since_s`, in seconds since 1970;
/// nothing where they print elsewhere.
pub async fn said(unit: &str, since_s: u64, lines: usize, run_as: &RunAs) -> Option<String> {
    // By what the journal itself knows of who wrote a line: what systemd says of the unit is another thing.
    let (unit, since) = (format!("_SYSTEMD_UNIT={unit}"), format!("--since=@{since_s}"));
    let lines = format!("--lines={lines}");
    let asked = ["journalctl", "--quiet", "--no-pager", "--output=cat", &since, &lines, &unit];
    let never = CancellationToken::new();
    run(&asked, JOURNAL_DEADLINE, run_as, &never).await.ok().filter(|said| !said.trim().is_empty())
}

fn failed(verb: &'static str, unit: &str, source: ProcessError) -> UnitError {
    let said = source.log().and_then(shown::telling_line).unwrap_or_default();
    let said = shown::short_line(said, SAID_CHARS_MAX);
    UnitError::Systemctl { verb, unit: unit.to_owned(), said, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: &str = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\
        MainPID=812\nControlGroup=/system.slice/web.service\nInvocationID=4f2c\nCanReload=no\n";

    #[test]
    fn what_systemctl_shows_is_read() {
        let state = State::parse("web.service", ACTIVE).unwrap();
        assert_eq!((state.active, state.main_pid), (Active::Active, Some(812)));
        assert_eq!(state.cgroup.as_deref(), Some("/system.slice/web.service"));
        assert!(!state.can_reload);
        assert_eq!(state.to_string(), "active (running)");
        let cases = [
            ("no main process", "MainPID=812", "MainPID=0", None),
            ("init is nobody's main process", "MainPID=812", "MainPID=1", None),
            ("nor is a number below", "MainPID=812", "MainPID=-7", None),
        ];
        for (rule, from, to, pid) in cases {
            let state = State::parse("web.service", &ACTIVE.replace(from, to)).unwrap();
            assert_eq!(state.main_pid, pid, "{rule}");
        }
        let none = ACTIVE.replace("/system.slice/web.service", "/");
        assert_eq!(
            State::parse("web.service", &none).unwrap().cgroup,
            None,
            "all is below the root"
        );
        let double = ACTIVE.replace("/system.slice/web.service", "//");
        assert_eq!(State::parse("web.service", &double).unwrap().cgroup, None, "so is this");
        let failed = ACTIVE.replace("=active", "=failed").replace("=running", "=failed");
        let failed = failed.replace("=success", "=exit-code");
        let shown = State::parse("web.service", &failed).unwrap().to_string();
        assert_eq!(shown, "failed (failed), its last result exit-code");
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let not_found = ACTIVE.replace("loaded", "not-found");
        let error = State::parse("web.service", &not_found).unwrap_err();
        assert!(error.hint().unwrap().contains("daemon-reload"), "{error}");
        let masked = State::parse("web.service", &ACTIVE.replace("loaded", "masked")).unwrap_err();
        assert!(masked.hint().unwrap().contains("unmask"));
        for text in ["", "LoadState=loaded\n", "LoadState=loaded\nActiveState=odd\nMainPID=7\n"] {
            let error = State::parse("web.service", text).unwrap_err();
            assert!(matches!(error, UnitError::Answer { .. }), "{text:?}: {error}");
        }
        let huge = ACTIVE.replace("812", "99999999999999999999");
        assert!(State::parse("web.service", &huge).is_err());
    }
}
