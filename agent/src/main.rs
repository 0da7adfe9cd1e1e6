//! `towline-agent`: reads arguments and environment, prints, and exits. Everything else is in the
//! library.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 75 try later, 78 wrong configuration.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use towline_agent::config::Config;
use towline_agent::release::Store;
use towline_agent::shell::{End, Until};
use towline_agent::{bootstrap, error, git, status};
use tracing_subscriber::EnvFilter;

const FAILED: u8 = 1;
const TRY_LATER: u8 = 75;
const CONFIG: u8 = 78;

/// Keeps this instance on the revision that its group should run.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the target until told to stop (SIGTERM or SIGINT).
    Run(Work),
    /// Apply the target once: exit 0 when it is live and healthy, 1 when it failed, 75 when trying
    /// again may help.
    Once(Work),
    /// Say what this instance serves, and what the agent is at.
    Status {
        /// Host config, such as /etc/towline/web.toml.
        #[arg(long, short)]
        config: PathBuf,
        /// Print one JSON object with a schema version.
        #[arg(long)]
        json: bool,
    },
    /// Say line by line what is wrong with the recipe of the repository in DIR.
    Check {
        /// The top of the repository's work tree.
        dir: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Work {
    /// Host config, such as /etc/towline/web.toml.
    #[arg(long, short)]
    config: PathBuf,
    /// How to log to standard error; `text` on a terminal and `json` elsewhere by default. Levels
    /// are set by the variable TOWLINE_LOG, such as `debug`.
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
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match arguments.command {
        Command::Run(work) => run(&work, &variables, Until::Stopped),
        Command::Once(work) => run(&work, &variables, Until::Settled),
        Command::Status { config, json } => say_status(&config, json, &variables),
        Command::Check { dir } => check(&dir),
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

fn load(path: &std::path::Path, variables: &BTreeMap<String, String>) -> Result<Config, ExitCode> {
    Config::load(path, variables).map_err(|error| {
        // The parser's message draws the line with a caret: keep its lines.
        if let towline_agent::config::ConfigError::Parse { path, source } = &error {
            let text = format!("could not parse the config {}\n{source}", path.display());
            return complain_text(&text);
        }
        complain(&error, None, CONFIG)
    })
}

#[expect(clippy::print_stderr, reason = "main is the edge where errors are shown")]
fn complain_text(text: &str) -> ExitCode {
    eprintln!("error: {}", text.trim_end());
    ExitCode::from(CONFIG)
}

fn log(work: &Work, variables: &BTreeMap<String, String>) {
    let levels = variables.get("TOWLINE_LOG").map_or("info", String::as_str);
    let filter = EnvFilter::try_new(levels).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let is_terminal = std::io::stderr().is_terminal();
    match work.log {
        Some(Log::Json) => builder.json().flatten_event(true).init(),
        None if !is_terminal => builder.json().flatten_event(true).init(),
        _ => builder.with_ansi(is_terminal).init(),
    }
}

fn run(work: &Work, variables: &BTreeMap<String, String>, until: Until) -> ExitCode {
    // Both are for the whole process, and come before any thread.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return complain_text("a TLS provider was installed twice");
    }
    git::initialise();
    let config = match load(&work.config, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    log(work, variables);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        // An idle agent is one thread.
        .thread_keep_alive(Duration::from_secs(1))
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, None, FAILED),
    };
    let code = runtime.block_on(work_until(config, until));
    // A thread that waits for a disk or for the network must not hold the exit.
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

async fn work_until(config: Config, until: Until) -> ExitCode {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        match signal(kind) {
            Ok(mut signals) => {
                let stop = stop.clone();
                tokio::spawn(async move {
                    signals.recv().await;
                    stop.cancel();
                });
            }
            Err(error) => return complain(&error, None, FAILED),
        }
    }
    let (shell, effects) = match bootstrap::start(config).await {
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
fn say_status(
    path: &std::path::Path,
    json: bool,
    variables: &BTreeMap<String, String>,
) -> ExitCode {
    let config = match load(path, variables) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let store = Store::new(&config.dir);
    let status = match store.read_status() {
        Ok(Some(status)) => status,
        Ok(None) => {
            let error =
                std::io::Error::other(format!("no agent has run for {} yet", config.dir.display()));
            let hint = "start one with `towline-agent run`".to_owned();
            return complain(&error, Some(hint), FAILED);
        }
        Err(error) => {
            let hint = error.hint();
            return complain(&error, hint, FAILED);
        }
    };
    let is_running = store.is_locked();
    let now_s = seconds_now();
    if json {
        let answer = serde_json::json!({
            "schema_version": status::SCHEMA_VERSION,
            "agent_running": is_running,
            "age_s": now_s.saturating_sub(status.written_s),
            "status": status,
        });
        println!("{answer:#}");
    } else {
        println!("{}", status::text(&status, is_running, now_s));
    }
    ExitCode::SUCCESS
}

#[expect(clippy::disallowed_methods, reason = "main tells how old a status is")]
fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn check(dir: &std::path::Path) -> ExitCode {
    match status::check(dir) {
        Ok((said, valid)) => {
            println!("{said}");
            if valid { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => {
            let error = std::io::Error::new(
                error.kind(),
                format!("could not read {}/towline.toml: {error}", dir.display()),
            );
            complain(&error, Some("name the top of a repository that holds one".to_owned()), FAILED)
        }
    }
}
