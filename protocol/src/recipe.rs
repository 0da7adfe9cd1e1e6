//! The recipe: `towline.toml` in the app's repository.
//!
//! It says how a revision is installed, reloaded and probed, and nothing about the host: users,
//! limits and the origin are for host config. A [`Recipe`] that exists is complete; everything that
//! is wrong with a text is told at once, line by line, in a [`RecipeError`].
//!
//! ```text
//!   text ──► toml (spans kept) ──► read::Reader ──► Recipe
//!                                      └──────────► RecipeError { problems: line, field, message }
//! ```
//!
//! Invariants
//! - Every command has a program; every path is relative and stays inside the release, save a pid
//!   file's, which may be absolute.
//! - There is a health check; and where there is a manager, a way to find it, and a way to start it: a
//!   command, or its unit.

use std::fmt;
use std::time::Duration;

mod read;

/// The name of the recipe's file at the top of a repository, unless host config names another.
pub const FILE_NAME: &str = "towline.toml";

/// The file in each release that holds its full revision and a newline, for the app to read. Neither a
/// repository nor a recipe may have another use for the name.
pub const REVISION_FILE: &str = ".towline-revision";

/// The largest recipe that is read, in bytes.
pub const SIZE_BYTES_MAX: u64 = 64 * 1024;

/// The longest name of a unit that systemd takes (`UNIT_NAME_MAX`, systemd.unit(5)).
pub const UNIT_CHARS_MAX: usize = 255;

/// Is this the name of a service as systemd takes it, and none that a program would take for an option?
#[must_use]
pub fn is_service_name(text: &str) -> bool {
    let is_named = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let stem = text.strip_suffix(".service").unwrap_or_default();
    !stem.is_empty()
        && !text.starts_with(['-', '.'])
        && text.len() <= UNIT_CHARS_MAX
        && text.chars().all(is_named)
}

/// How a revision is installed, reloaded and probed.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The folder of the repository that is the release; `.` is all of it.
    pub root: RelativePath,
    /// How dependencies are installed; `None` where there are none.
    pub install: Option<Install>,
    /// What is built of the release's own tree; `None` where nothing is.
    pub build: Option<Build>,
    /// What runs before and after a release is made live.
    pub hooks: Hooks,
    /// Who owns the app's workers, and how it is told; `None` where whoever serves the release looks at
    /// `current` by itself, as for a static site.
    pub manager: Option<Manager>,
    /// How to tell that the app is well.
    pub health: Health,
    /// Directories that outlive releases, as links in each of them.
    pub shared: Vec<RelativePath>,
}

/// A program and its arguments; no shell is involved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// A name looked up on `PATH`, or a path relative to the working directory.
    pub program: String,
    /// Its arguments, as they are.
    pub args: Vec<String>,
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        for arg in &self.args {
            write!(f, " {arg}")?;
        }
        Ok(())
    }
}

/// A path inside the release: relative, no `..`, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelativePath(String);

impl RelativePath {
    /// Checks and normalises `text`: `./a//b/` becomes `a/b`, and nothing becomes `.`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence that begins with the path.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if text.chars().any(char::is_control) {
            return Err("must not hold control characters");
        }
        if text.starts_with('/') {
            return Err("must be relative to the release");
        }
        let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if parts.contains(&"..") {
            return Err("must not hold `..`");
        }
        Ok(Self(if parts.is_empty() { ".".to_owned() } else { parts.join("/") }))
    }

    /// Returns the path, with single slashes and no leading `./`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is this the release itself?
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "."
    }

    /// Does `other` lie at or below this path?
    #[must_use]
    pub fn holds(&self, other: &RelativePath) -> bool {
        self.is_root()
            || other.0 == self.0
            || other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How dependencies are installed.
#[derive(Debug, Clone, PartialEq)]
pub struct Install {
    /// Run in a directory that holds only `inputs`.
    pub command: CommandLine,
    /// The files and folders that the command reads. One that is absent counts as absent.
    pub inputs: Vec<RelativePath>,
    /// What the command makes and the release gets.
    pub outputs: Vec<RelativePath>,
    /// Prints what else the result depends on, such as `node --version`.
    pub runtime: Option<CommandLine>,
    /// How long the command may take; 600 s by default.
    pub timeout: Duration,
    /// Where the outputs lie.
    pub place: Place,
}

/// Where the outputs of an install lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// In each release, as links to one set of files, or copies of them.
    #[default]
    Release,
    /// Where they were installed, in a directory that is named by their key, and the release has symbolic
    /// links to them: for trees that hold absolute paths, such as a Python virtual environment.
    ByKey,
}

/// What is built of the release's own tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    /// Run in a writable copy of the release's tree, with the dependencies in place.
    pub command: CommandLine,
    /// What the command makes and the release gets.
    pub outputs: Vec<RelativePath>,
    /// Prints what else the result depends on.
    pub runtime: Option<CommandLine>,
    /// How long the command may take; 600 s by default.
    pub timeout: Duration,
}

/// What runs before and after a release is made live.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hooks {
    /// Run with leave to swap, in the new release, before anything live is touched.
    pub before: Option<CommandLine>,
    /// Run once the new workers are there, before the health window.
    pub after: Option<CommandLine>,
    /// How long each may take; 60 s by default.
    pub timeout: Duration,
}

/// The process that owns the app's workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Manager {
    /// How it is found.
    pub find: Find,
    /// How it is told to replace its workers.
    pub reload: Reload,
    /// Starts it where nothing runs; `None` exactly where a unit does.
    pub start: Option<CommandLine>,
    /// When a reload is not enough.
    pub restart_when: Vec<RestartWhen>,
    /// How long a reload, a stop or a start may take; 90 s by default.
    pub timeout: Duration,
}

/// How the manager's process is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Find {
    /// A file that holds its pid: absolute, or below a shared directory.
    PidFile(String),
    /// A command that prints its pid and succeeds, or fails where nothing runs.
    Status(CommandLine),
    /// A service of the host's systemd, whose main process it is.
    Unit(String),
}

/// How the manager is told to replace its workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// A signal to the manager.
    Signal(ReloadSignal),
    /// A command, run as the app's user in the new release.
    Command(CommandLine),
    /// The unit's own `ExecReload=`.
    Unit,
}

/// The signals that ask a manager to reload; those that end a process are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadSignal {
    /// `SIGHUP`
    Hup,
    /// `SIGUSR1`
    Usr1,
    /// `SIGUSR2`
    Usr2,
}

impl ReloadSignal {
    /// The name as written in a recipe.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ReloadSignal::Hup => "SIGHUP",
            ReloadSignal::Usr1 => "SIGUSR1",
            ReloadSignal::Usr2 => "SIGUSR2",
        }
    }
}

/// What makes a full restart necessary. A gunicorn reloaded by SIGHUP was seen to serve new code
/// with its old virtualenv, so both are the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RestartWhen {
    /// The dependencies differ from those of the release that serves.
    Install,
    /// The runtime's output differs from that of the release that serves.
    Runtime,
}

/// How to tell that the app is well.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// What one probe does.
    pub check: Check,
    /// Where the app's answer names the revision that it serves.
    pub revision: Option<RevisionAt>,
    /// How many probes in a row make healthy, or unhealthy; 3 by default.
    pub passes: u32,
    /// The time from one probe to the next; 2 s by default.
    pub every: Duration,
    /// How long the app must stay healthy to be proven; 30 s by default.
    pub healthy_for: Duration,
    /// How long one probe may take; 5 s by default.
    pub timeout: Duration,
    /// How long after a reload or a start failing probes do not count yet; 30 s by default. An answer
    /// that names another revision counts at once.
    pub start: Duration,
}

/// What one probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// GET over plain http to this host; a 2xx answer passes. No redirect is followed.
    Http(HttpAddress),
    /// A TCP connection that is accepted passes.
    Tcp(SocketName),
    /// A command that succeeds passes.
    Command(CommandLine),
}

/// An address that is probed over http.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAddress {
    /// Host and port.
    pub socket: SocketName,
    /// Path and query, beginning with a slash.
    pub path: String,
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.socket, self.path)
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketName {
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    /// 1 to 65,535.
    pub port: u16,
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where the app's answer names the revision that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevisionAt {
    /// A JSON pointer into the body, such as `/revision`.
    Json(String),
    /// A response header, such as `x-revision`.
    Header(String),
    /// The whole body, as where the release's own revision file is served.
    Body,
}

/// One thing that is wrong, or doubtful, in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line it stands in, from 1; for something missing, the line of its table.
    pub line: usize,
    /// The field by its full name, such as `health.passes`; empty for what is no valid TOML.
    pub field: String,
    /// What is wrong, and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "line {}: {}", self.line, self.message)
        } else {
            write!(f, "line {}: {}: {}", self.line, self.field, self.message)
        }
    }
}

/// Everything that is wrong with a recipe, in the order of its lines; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeError {
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RecipeError {}

impl Manager {
    /// Returns the unit that runs the app; `None` where none does.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        match &self.find {
            Find::Unit(unit) => Some(unit),
            Find::PidFile(_) | Find::Status(_) => None,
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    ///
    /// All problems at once, each with its line. A text larger than [`SIZE_BYTES_MAX`] is refused
    /// unread.
    pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
        read::recipe(text)
    }

    /// Returns the unit that runs the app; `None` where none does.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.manager.as_ref().and_then(Manager::unit)
    }

    /// Returns what is valid and yet doubtful: `check` shows it, and nothing is refused for it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.health.revision.is_none() {
            let rest = match &self.manager {
                Some(_) => "the proof rests on the workers' processes alone",
                None => "nothing is shown but that something is healthy",
            };
            warnings.push(format!(
                "nothing shows which revision is served: let the app's health answer name it and \
                 add `revision = {{ json = \"/revision\" }}` or `{{ header = \"x-revision\" }}` to \
                 [health], or serve {REVISION_FILE} and probe it with `revision = \"body\"`; until then \
                 {rest}"
            ));
        }
        let keeps = |manager: &Manager| !manager.restart_when.contains(&RestartWhen::Install);
        let install_reloads = self.install.is_some() && self.manager.as_ref().is_some_and(keeps);
        if install_reloads && self.health.revision.is_none() {
            warnings.push(
                "manager.restart_when leaves out \"install\": a reload that keeps old dependencies \
                 in memory would not be noticed"
                    .to_owned(),
            );
        }
        warnings
    }
}
