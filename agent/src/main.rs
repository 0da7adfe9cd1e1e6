//! `towline-agent`: reads arguments and environment, prints, and exits. Everything else is in the
//! library.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 75 try later, 78 wrong configuration.
//! `status` answers 0 whatever it has to say.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use towline_agent::bake::{self, Baked};
use towline_agent::config::{Config, ConfigError, ENVIRONMENT};
use towline_agent::release::{DiskError, Store};
use towline_agent::shell::{End, Until};
use towline_agent::status::Seen;
use towline_agent::systemd::Notify;
use towline_agent::trial::{Trial, TrialError, Tried};
use towline_agent::{bootstrap, check, doctor, error, git, process};
use towline_protocol::ids::Revision;
use towline_protocol::recipe;
use tracing_subscriber::EnvFilter;

const FAILED: u8 = 1;
const TRY_LATER: u8 = 75;
const CONFIG: u8 = 78;

/// What `--help` says at its end.
const EXITS: &str =
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 75 try later, 78 wrong configuration.";

/// Keeps this instance on the revision that its group should run.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXITS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the target until told to stop (SIGTERM or SIGINT).
    Run(Work),
    /// Apply the target once, and exit.
    ///
    /// Exit codes: 0 the target is live and healthy; 1 it failed, and what served before serves; 2
    /// wrong usage; 75 trying again may help (an outage, a full disk, another agent, SIGTERM); 78
    /// wrong configuration.
    Once(Work),
    /// Say what this instance serves, and what the agent is at; exit 0 whatever that is.
    Status {
        /// Host config, such as /etc/towline/web.toml.
        #[arg(long, short)]
        config: PathBuf,
        /// Print one JSON object with a schema version.
        #[arg(long)]
        json: bool,
    },
    /// Tell the coordinator that this instance is shut down; a running agent then starts nothing more
    /// until the next boot.
    ///
    /// For the `ExecStop=` of a unit that ends with the host, or for a script that ends the instance. Exit
    /// 0 when the coordinator has taken it, 1 otherwise.
    Goodbye {
        /// Host config, such as /etc/towline/web.toml.
        #[arg(long, short)]
        config: PathBuf,
    },
    /// Prepare a release of a local checkout as a deploy would, and swap nothing.
    ///
    /// What is committed is tried: HEAD of the work tree in DIR. It is checked out under the limits of a
    /// tree, the recipe's commands are run and their outputs checked, in a place of its own that is removed
    /// at the end. Nothing is fetched, and no agent and no config is needed. Exit codes: 0 it was prepared;
    /// 1 a deploy would fail; 2 wrong usage; 78 wrong configuration.
    Try {
        /// The top of a checkout.
        dir: PathBuf,
        /// Host config to go by: its recipe's name, default recipe, limits, user and pass_env.
        #[arg(long, short)]
        config: Option<PathBuf>,
        /// The account that runs the recipe's commands; compulsory for root without --config.
        #[arg(long)]
        user: Option<String>,
        /// A variable of the environment that the commands get besides PATH, LANG, LC_ALL and TZ, where
        /// --config does not say; may be repeated.
        #[arg(long = "pass-env", value_name = "NAME")]
        pass_env: Vec<String>,
        /// Keep the release below this directory, which must not be there yet.
        #[arg(long, value_name = "NEW DIR")]
        keep: Option<PathBuf>,
    },
    /// Fill the app's directory while an image is built: git cache, release and dependencies.
    ///
    /// No coordinator is asked, nothing is started, and no identity is left: what an agent has noted here
    /// of an instance (its token, its journal) is removed. An instance that boots from the image serves
    /// the release where it is told nothing, or cannot have what it is told. Exit codes: 0 baked; 1 the
    /// revision cannot be prepared, or the app runs here; 2 wrong usage; 75 trying again may help (an
    /// outage, a full disk, an agent that runs); 78 wrong configuration.
    Bake {
        /// A full commit id; the newest of git.branch by default.
        revision: Option<Revision>,
        #[command(flatten)]
        work: Work,
    },
    /// Say line by line how this host stands, and what to do where something is wrong.
    ///
    /// Permissions, space, user, units, clock, origin and coordinator are looked at; nothing is changed, and
    /// an agent may run meanwhile. Exit codes: 0 nothing is wrong, though it may be doubtful; 1 something
    /// is (FAIL); 2 wrong usage; 78 wrong configuration.
    Doctor {
        /// Host config, such as /etc/towline/web.toml.
        #[arg(long, short)]
        config: PathBuf,
        /// Print one JSON object with a schema version.
        #[arg(long)]
        json: bool,
    },
    /// Say line by line what is wrong with a repository's recipe and tree, or with host config.
    ///
    /// Exit 0 when all is valid, 1 otherwise.
    Check {
        /// The top of the repository's work tree; `.` by default, unless --config is given.
        dir: Option<PathBuf>,
        /// Host config to check, such as /etc/towline/web.toml; with DIR, its git.recipe names the
        /// recipe, and [allow] says what that may use.
        #[arg(long, short)]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Work {
    /// Host config, such as /etc/towline/web.toml.
    #[arg(long, short)]
    config: PathBuf,
    /// How to log to standard error; `text` on a terminal and `json` elsewhere by default. The
    /// variable TOWLINE_LOG sets the level: error, warn, info (the default), debug or trace.
    #[arg(long, value_enum)]
    log: Option<Log>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::set_umask();
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match arguments.command {
        Command::Run(work) => run(&work, &variables, Until::Stopped),
        Command::Once(work) => run(&work, &variables, Until::Settled),
        Command::Status { config, json } => say_status(&config, json, &variables),
        Command::Goodbye { config } => say_goodbye(&config, &variables),
        Command::Try { dir, config, user, pass_env, keep } => {
            let trial = Trial { dir, config: None, user, temporary: temporary(&variables), keep };
            try_out(trial, config.as_deref(), &pass_env, &variables)
        }
        Command::Bake { revision, work } => bake(&work, revision, &variables),
        Command::Doctor { config, json } => examine(&config, json, &variables),
        Command::Check { dir, config } => check(dir, config.as_deref(), &variables),
    }
}

/// Prints an error once, with its causes and the next thing to try.
#[expect(clippy::print_stderr, reason = "main is the edge where errors are shown")]
fn complain(error: &dyn std::error::Error, hint: Option<String>, code: u8) -> ExitCode {
    eprintln!("error: {}", error::chain(error));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

fn load(path: &Path, variables: &BTreeMap<String, String>) -> Result<Config, ExitCode> {
    Config::load(path, variables).map_err(|error| {
        // The parser's message draws the line with a caret: keep its lines.
        if let ConfigError::Parse { path, source } = &error {
            let text = format!("could not parse the config {}\n{source}", path.display());
            return complain_text(&text);
        }
        let hint = match &error {
            ConfigError::Read { source, .. } => as_root(source),
            _ => None,
        };
        complain(&error, hint, CONFIG)
    })
}

/// The hint for what only root may read.
fn as_root(error: &io::Error) -> Option<String> {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    is_denied.then(|| "run it with sudo".to_owned())
}

#[expect(clippy::print_stderr, reason = "main is the edge where errors are shown")]
fn complain_text(text: &str) -> ExitCode {
    eprintln!("error: {}", text.trim_end());
    ExitCode::from(CONFIG)
}

fn install_tls() -> Result<(), ExitCode> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| complain_text("a TLS provider was installed twice"))
}

fn log(work: &Work, variables: &BTreeMap<String, String>) {
    let levels = variables.get("TOWLINE_LOG").map_or("info", String::as_str);
    let filter = EnvFilter::try_new(levels).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    let is_terminal = io::stderr().is_terminal();
    match work.log {
        Some(Log::Json) => builder.json().flatten_event(true).init(),
        None if !is_terminal => builder.json().flatten_event(true).init(),
        _ => builder.with_ansi(is_terminal).init(),
    }
}

fn run(work: &Work, variables: &BTreeMap<String, String>, until: Until) -> ExitCode {
    // Both are for the whole process, and come before any thread.
    if let Err(code) = install_tls() {
        return code;
    }
    git::initialise();
    let config = match load(&work.config, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    log(work, variables);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, None, FAILED),
    };
    let notify = match Notify::new(variables, std::process::id()) {
        Ok(notify) => notify,
        Err(error) => {
            let what = format!("could not use the socket that NOTIFY_SOCKET names: {error}");
            return complain(&io::Error::new(error.kind(), what), None, CONFIG);
        }
    };
    let code = runtime.block_on(work_until(config, notify, until));
    // A thread that waits for a disk or for the network must not hold the exit.
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        // An idle agent is one thread.
        .thread_keep_alive(Duration::from_secs(1))
        .build()
}

fn say_goodbye(path: &Path, variables: &BTreeMap<String, String>) -> ExitCode {
    if let Err(code) = install_tls() {
        return code;
    }
    let config = match load(path, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let said = runtime().map(|runtime| runtime.block_on(bootstrap::goodbye(&config)));
    match said {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(said)) => {
            let error = io::Error::other(format!("could not say goodbye: {said}"));
            complain(&error, None, FAILED)
        }
        Err(error) => complain(&error, None, FAILED),
    }
}

/// Ends with SIGTERM or SIGINT; in a runtime.
fn until_told() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Where scratch places are made.
fn temporary(variables: &BTreeMap<String, String>) -> PathBuf {
    let named = variables.get("TMPDIR").filter(|dir| !dir.is_empty());
    named.map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn try_out(
    mut trial: Trial,
    config: Option<&Path>,
    pass_env: &[String],
    variables: &BTreeMap<String, String>,
) -> ExitCode {
    if let Err(code) = install_tls() {
        return code;
    }
    git::initialise();
    if let Some(path) = config {
        match load(path, variables) {
            Ok(config) => trial.config = Some(config),
            Err(code) => return code,
        }
    }
    let is_passed = |name: &String| ENVIRONMENT.contains(&name.as_str()) || pass_env.contains(name);
    let passed = variables.iter().filter(|(name, _)| is_passed(name));
    let environment = passed.map(|(name, value)| (name.clone(), value.clone())).collect();
    let dir = trial.dir.clone();
    let tried = runtime().map(|runtime| {
        runtime.block_on(async move {
            let stop = until_told()?;
            io::Result::Ok(trial.run(environment, &stop).await)
        })
    });
    match tried {
        Ok(Ok(Ok(tried))) => {
            let Tried { revision, subject, changed, note, release } = tried;
            let (short, dir) = (revision.short(), dir.display());
            println!("{short} {subject:?}, as committed in {dir}: {note}");
            if changed > 0 {
                println!("not tried: {changed} files of the work tree, which differ from it");
            }
            if let Some(release) = release {
                println!("the release is kept in {}", release.display());
            }
            ExitCode::SUCCESS
        }
        Ok(Ok(Err(error))) => {
            if let TrialError::Failed { parts, .. } = &error {
                for part in parts {
                    println!("{}:\n{}", part.source, part.text);
                }
            }
            let hint = error.hint();
            let code = if error.is_about_config() { CONFIG } else { FAILED };
            complain(&error, hint, code)
        }
        Ok(Err(error)) | Err(error) => complain(&error, None, FAILED),
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn examine(path: &Path, json: bool, variables: &BTreeMap<String, String>) -> ExitCode {
    if let Err(code) = install_tls() {
        return code;
    }
    git::initialise();
    let config = match load(path, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let found = match runtime() {
        Ok(runtime) => {
            let found = runtime.block_on(doctor::examine(&config));
            runtime.shutdown_timeout(Duration::from_secs(1));
            found
        }
        Err(error) => return complain(&error, None, FAILED),
    };
    if json {
        println!("{:#}", found.json());
    } else {
        println!("{}", found.text());
    }
    if found.is_well() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn bake(work: &Work, revision: Option<Revision>, variables: &BTreeMap<String, String>) -> ExitCode {
    if let Err(code) = install_tls() {
        return code;
    }
    git::initialise();
    let config = match load(&work.config, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    log(work, variables);
    let dir = config.dir.clone();
    let baked = runtime().map(|runtime| {
        let baked = runtime.block_on(async {
            let stop = until_told()?;
            io::Result::Ok(bake::bake(config, revision, &stop).await)
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        baked
    });
    match baked {
        Ok(Ok(Ok(Baked { revision, note }))) => {
            let how = note.as_deref().unwrap_or("it was there already");
            println!("baked {revision} into {}: {how}", dir.display());
            ExitCode::SUCCESS
        }
        Ok(Ok(Err(error))) => {
            let code = match () {
                () if error.is_about_config() => CONFIG,
                () if error.is_temporary() => TRY_LATER,
                () => FAILED,
            };
            let hint = error.hint();
            complain(&error, hint, code)
        }
        Ok(Err(error)) | Err(error) => complain(&error, None, FAILED),
    }
}

async fn work_until(config: Config, notify: Notify, until: Until) -> ExitCode {
    let stop = match until_told() {
        Ok(stop) => stop,
        Err(error) => return complain(&error, None, FAILED),
    };
    let (shell, effects) = match bootstrap::start(config, notify).await {
        Ok(started) => started,
        Err(error) => {
            let code = if error.is_temporary() { TRY_LATER } else { CONFIG };
            let hint = error.hint();
            return complain(&error, hint, code);
        }
    };
    match shell.run(effects, until, &stop).await {
        End::Stopped if until == Until::Settled => ExitCode::from(TRY_LATER),
        End::Stopped | End::Converged => ExitCode::SUCCESS,
        End::TryLater => ExitCode::from(TRY_LATER),
        End::Failed => ExitCode::from(FAILED),
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn say_status(path: &Path, json: bool, variables: &BTreeMap<String, String>) -> ExitCode {
    let config = match load(path, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let store = Store::new(&config.dir);
    let seen = match runtime() {
        Ok(runtime) => runtime.block_on(Seen::look(&store)),
        Err(error) => return complain(&error, None, FAILED),
    };
    let now_s = seconds_now();
    match seen {
        Ok(Some(seen)) if json => println!("{:#}", seen.json(now_s)),
        Ok(Some(seen)) => println!("{}", seen.text(now_s)),
        Ok(None) => {
            let error =
                io::Error::other(format!("no agent has run for {} yet", config.dir.display()));
            let hint = "start one with `towline-agent run`".to_owned();
            return complain(&error, Some(hint), FAILED);
        }
        Err(error) => {
            let hint = match &error {
                DiskError::Io { source, .. } => as_root(source).or_else(|| error.hint()),
                _ => error.hint(),
            };
            return complain(&error, hint, FAILED);
        }
    }
    ExitCode::SUCCESS
}

#[expect(clippy::disallowed_methods, reason = "main tells how old a status is")]
fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn check(
    dir: Option<PathBuf>,
    config: Option<&Path>,
    variables: &BTreeMap<String, String>,
) -> ExitCode {
    if let Err(code) = install_tls() {
        return code;
    }
    let mut is_valid = true;
    let mut host = None;
    if let Some(path) = config {
        let (findings, config) = check::config(path, variables);
        let (said, valid) = findings.conclude();
        println!("{said}");
        is_valid &= valid;
        host = config;
    }
    let recipe = host.as_ref().map_or(recipe::FILE_NAME, |host| &host.git.recipe);
    let default = || config.is_none().then(|| PathBuf::from("."));
    if let Some(dir) = dir.or_else(default) {
        match check::recipe(&dir, recipe, host.as_ref()) {
            Ok(findings) => {
                let (said, valid) = findings.conclude();
                println!("{said}");
                is_valid &= valid;
            }
            Err(error) => {
                let what = format!("could not read {}: {error}", dir.join(recipe).display());
                let error = io::Error::new(error.kind(), what);
                let hint = "name the top of a repository that holds one".to_owned();
                return complain(&error, Some(hint), FAILED);
            }
        }
    }
    if is_valid { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
