//! The `git` program, and the surroundings that every run of it gets.
//!
//! Nothing of the host's git configuration, of the coordinator's environment or of a terminal reaches
//! it, and what it was found to do with hostile input is switched off here, once, for all calls:
//! replaced objects, unchecked objects, other transports, hooks, housekeeping in the background.

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::child::{self, Bounds, ChildError};
use super::credential::Credential;
use super::error::MirrorError;
use super::said::{Said, is_about_clone, is_about_space, short_line, without_users};
use super::{MirrorConfig, PASSED};

/// The oldest git that is used. Settings by environment came with 2.31, and would be ignored before;
/// `repack --geometric` came with 2.32.
pub(super) const VERSION_MIN: (u32, u32) = (2, 32);

/// How long a question to the local clone may take.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Where programs are looked for unless the configuration passes a `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Never asks, never trusts on first use, never shares a connection that would outlive us, and notices
/// a peer that is gone.
const SSH: &str = "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ControlMaster=no \
                   -o ControlPath=none -o PermitLocalCommand=no -o ClearAllForwardings=yes \
                   -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3";

/// Git's settings, in every run.
const SETTINGS: &[(&str, &str)] = &[
    ("core.useReplaceRefs", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("fetch.fsckObjects", "true"),
    ("transfer.fsckObjects", "true"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    // Packs are synced to disk when they are written; loose objects were seen to end up empty.
    ("fetch.unpackLimit", "1"),
    ("transfer.unpackLimit", "1"),
    ("gc.auto", "0"),
    ("gc.autoDetach", "false"),
    ("maintenance.auto", "false"),
    ("log.mailmap", "false"),
    ("log.showSignature", "false"),
    // A redirect would take a credential along, and is told with what to do instead.
    ("http.followRedirects", "false"),
    ("http.sslVerify", "true"),
    // Less than 1000 bytes a second for 30 s counts as a stall.
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "30"),
];

/// The program, its surroundings, and what it may be given.
pub(super) struct Git {
    program: PathBuf,
    home: PathBuf,
    passed: Vec<(String, String)>,
    protocols: &'static str,
    ca_file: Option<PathBuf>,
    credentials: Vec<Credential>,
    secrets: Vec<String>,
    fetch_timeout: Duration,
    /// How much memory each process may have, in bytes.
    memory_max: u64,
    is_checked: OnceCell<()>,
}

impl fmt::Debug for Git {
    /// Without what must not be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Git").field("program", &self.program).finish_non_exhaustive()
    }
}

/// One run of git.
pub(super) struct Call<'a> {
    /// What is attempted, as in "could not … <url>".
    pub(super) what: &'static str,
    /// The clone.
    pub(super) dir: &'a Path,
    /// Its arguments.
    pub(super) arguments: Vec<&'a str>,
    /// Its standard input.
    pub(super) input: String,
    /// How much of its output is kept.
    pub(super) output_max: usize,
    /// Take what there is where it says more.
    pub(super) is_cut: bool,
    /// Does it go out to the origin? Then it gets what the origin wants to see.
    pub(super) is_fetch: bool,
    /// What a writer keeps until it is gone. A writer may take as long as a fetch.
    pub(super) hold: Option<Arc<dyn Any + Send + Sync>>,
}

/// What git answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its exit code; `None` where it was ended by a signal, or after it had said enough.
    pub(super) code: Option<i32>,
    /// Its output.
    pub(super) output: Vec<u8>,
    /// Its complaints, raw: for decisions, never to be shown.
    pub(super) errors: String,
}

impl Answer {
    /// Returns the output as text.
    pub(super) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.output)
    }
}

impl Git {
    pub(super) fn new(config: &MirrorConfig) -> Git {
        let passed = config.environment.iter().filter(|(name, _)| PASSED.contains(&name.as_str()));
        Git {
            program: config.git.clone(),
            home: config.dir.clone(),
            passed: passed.cloned().collect(),
            protocols: if config.allow_file { "https:http:ssh:file" } else { "https:http:ssh" },
            ca_file: config.ca_file.clone(),
            secrets: config.credentials.iter().flat_map(|one| one.secret.words()).collect(),
            credentials: config.credentials.clone(),
            fetch_timeout: config.fetch_timeout,
            memory_max: config.memory_mib.saturating_mul(1 << 20),
            is_checked: OnceCell::new(),
        }
    }

    /// Makes sure, once, that git is there and new enough to heed what it is told.
    pub(super) async fn check(&self) -> Result<(), MirrorError> {
        self.is_checked
            .get_or_try_init(async || {
                let call = Call {
                    what: "ask for the version of git for",
                    dir: Path::new("/dev/null"),
                    arguments: vec!["version"],
                    input: String::new(),
                    output_max: 1024,
                    is_cut: true,
                    is_fetch: false,
                    hold: None,
                };
                let answer = self.run("itself", call).await?;
                let text = answer.text();
                let mut numbers = text
                    .trim()
                    .strip_prefix("git version ")
                    .unwrap_or_default()
                    .split('.')
                    .map_while(|number| number.parse::<u32>().ok());
                let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                if version >= VERSION_MIN {
                    return Ok(());
                }
                let found = short_line(&text, 80);
                Err(MirrorError::TooOld { program: self.program.clone(), found })
            })
            .await
            .copied()
    }

    /// Runs git. Whatever it exits with is an answer; that it could not, an error.
    pub(super) async fn run(&self, url: &str, call: Call<'_>) -> Result<Answer, MirrorError> {
        let deadline = if call.hold.is_some() { self.fetch_timeout } else { READ_DEADLINE };
        let command = self.command(url, &call);
        let bounds = Bounds {
            input: call.input.into_bytes(),
            output_max: call.output_max,
            is_cut: call.is_cut,
            deadline,
            memory_max: self.memory_max,
            hold: call.hold,
        };
        let (what, shown) = (call.what, without_users(url));
        match child::run(command, bounds).await {
            Ok(ended) => {
                Ok(Answer { code: ended.code, output: ended.output, errors: ended.errors })
            }
            Err(ChildError::Io(source)) => {
                Err(MirrorError::Start { program: self.program.clone(), source: Arc::new(source) })
            }
            Err(ChildError::TimedOut) => {
                Err(MirrorError::TimedOut { what, url: shown, after: deadline })
            }
            Err(ChildError::TooMuch) => {
                let source = self.said("its answer is larger than what is read");
                Err(MirrorError::Git { what, url: shown, source })
            }
        }
    }

    fn command(&self, url: &str, call: &Call<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&call.arguments)
            .current_dir(&self.home)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .env("HOME", &self.home)
            // Named, so that a clone without its parts is not looked for in the directories above.
            .env("GIT_DIR", call.dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", self.protocols)
            .env("GIT_SSH_COMMAND", SSH)
            .env("GIT_SSH_VARIANT", "ssh");
        if let Some(file) = &self.ca_file {
            command.env("GIT_SSL_CAINFO", file);
        }
        for (name, value) in &self.passed {
            command.env(name, value);
        }
        let meant = self.credentials.iter().find_map(|credential| credential.settings(url));
        let secret = meant.filter(|_| call.is_fetch);
        let fixed = SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut count = 0;
        for (key, value) in fixed.chain(secret) {
            command.env(format!("GIT_CONFIG_KEY_{count}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
        command
    }

    /// Git's words, without secrets.
    pub(super) fn said(&self, text: &str) -> Said {
        Said::new(text, &self.secrets)
    }

    /// What an answer that should not have been means.
    pub(super) fn failed(
        &self,
        what: &'static str,
        url: &str,
        dir: &Path,
        said: &str,
    ) -> MirrorError {
        let (url, source) = (without_users(url), self.said(said));
        if is_about_space(said) {
            MirrorError::Disk { dir: dir.to_owned(), source }
        } else if is_about_clone(said) {
            MirrorError::Broken { url, source }
        } else {
            MirrorError::Git { what, url, source }
        }
    }
}
