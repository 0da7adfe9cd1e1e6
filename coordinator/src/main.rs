//! `towline-coordinator`: reads arguments and environment, prints, and exits. Everything else is in the
//! library.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 75 try later, 78 wrong configuration.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use towline_coordinator::config::{Config, ConfigError, DATA, Flags};
use towline_coordinator::error::chain;
use towline_coordinator::mirror;
use towline_coordinator::run::{self, RunError};
use towline_coordinator::store::StoreError;
use towline_coordinator::store::embedded::Embedded;
use towline_coordinator::{failpoint, files};
use tracing_subscriber::EnvFilter;

const FAILED: u8 = 1;
const TRY_LATER: u8 = 75;
const CONFIG: u8 = 78;

/// What `--help` says at its end.
const EXITS: &str =
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 75 try later, 78 wrong configuration.";

/// Says which revision each group should run, and lets its instances take it batch by batch.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXITS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until told to stop (SIGTERM or SIGINT).
    ///
    /// It listens on 127.0.0.1:7617 and asks nobody for a token, unless config says otherwise; then it is
    /// to be asked for by that address, or as localhost, and by no other name. An address that others can
    /// reach needs TLS, and then everybody a token; whoever may use the socket `admin.sock` in its data directory makes the first one: `towline --coordinator
    /// unix:/var/lib/towline-coordinator/admin.sock token create …`.
    Run {
        /// The config, such as /etc/towline/coordinator.toml; all of it has defaults.
        #[arg(long, short)]
        config: Option<PathBuf>,
        /// Where to listen, instead of what the config says; may be given several times.
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Vec<String>,
        /// Where to keep store, mirrors and socket, instead of what the config says.
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Let everybody in who can reach it, without TLS and without a token.
        #[arg(long)]
        insecure: bool,
        /// How to log to standard error; `text` on a terminal and `json` elsewhere by default. The
        /// variable TOWLINE_LOG sets the level: error, warn, info (the default), debug or trace.
        #[arg(long, value_enum)]
        log: Option<Log>,
    },
    /// Copy the store to a new file; a coordinator may be running.
    Backup {
        /// The data directory.
        #[arg(long, value_name = "DIR", default_value = DATA)]
        data: PathBuf,
        /// The new file; its directory must be there.
        to: PathBuf,
    },
    /// Say that the store was restored from a backup: raises its epoch.
    ///
    /// Agents have seen targets that a backup knows nothing of, and refuse lower ones. With a higher epoch
    /// the next target of each group counts again. The coordinator must not be running.
    RaiseEpoch {
        /// The data directory.
        #[arg(long, value_name = "DIR", default_value = DATA)]
        data: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Ok(text) = std::env::var("TOWLINE_FAILPOINT") {
        failpoint::arm(&text);
    }
    match arguments.command {
        Command::Run { config, listen, data, insecure, log } => {
            start_log(log);
            let passed =
                |name: &&'static str| Some(((*name).to_owned(), std::env::var(name).ok()?));
            let environment = mirror::PASSED.iter().filter_map(passed).collect();
            run(config.as_deref(), &Flags { listen, data, insecure, environment })
        }
        Command::Backup { data, to } => match Embedded::backup_of(&run::store_in(&data), &to) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error),
        },
        Command::RaiseEpoch { data } => raise_epoch(&data),
    }
}

/// Prints an error once, with its causes and the next thing to try.
#[expect(clippy::print_stderr, reason = "main is the edge where errors are shown")]
fn complain(error: &dyn Error, hint: Option<String>, code: u8) -> ExitCode {
    eprintln!("error: {}", chain(error));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

fn refuse(error: &StoreError) -> ExitCode {
    let code = if error.is_temporary() { TRY_LATER } else { FAILED };
    complain(error, error.hint(), code)
}

fn start_log(log: Option<Log>) {
    let levels = std::env::var("TOWLINE_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(levels).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    let is_terminal = io::stderr().is_terminal();
    match log {
        Some(Log::Json) => builder.json().flatten_event(true).init(),
        None if !is_terminal => builder.json().flatten_event(true).init(),
        _ => builder.with_ansi(is_terminal).init(),
    }
}

fn run(config: Option<&Path>, flags: &Flags) -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return complain(&io::Error::other("a TLS provider was installed twice"), None, FAILED);
    }
    let config = match Config::load(config, flags) {
        Ok(config) => config,
        Err(error) => return misconfigured(&error),
    };
    files::allow(config.connections);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, None, FAILED),
    };
    let code = runtime.block_on(async {
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
        match run::run(config, now_s(), stop).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let code = match &error {
                    RunError::Store(error) if error.is_temporary() => TRY_LATER,
                    RunError::Tls(_) => CONFIG,
                    _ => FAILED,
                };
                complain(&error, error.hint(), code)
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

#[expect(clippy::print_stderr, reason = "main is the edge where errors are shown")]
fn misconfigured(error: &ConfigError) -> ExitCode {
    // The parser's message draws the line with a caret: keep its lines.
    if let ConfigError::Parse { path, source } = error {
        eprintln!("error: could not parse the config {}\n{}", path.display(), source);
        error.hint().inspect(|hint| eprintln!("hint: {hint}"));
        return ExitCode::from(CONFIG);
    }
    complain(error, error.hint(), CONFIG)
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn raise_epoch(data: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, None, FAILED),
    };
    match runtime.block_on(run::raise_epoch(data, now_s())) {
        Ok(epoch) => {
            println!("epoch {epoch}");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

#[expect(clippy::disallowed_methods, reason = "main reads the clock once, for the store's epoch")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
