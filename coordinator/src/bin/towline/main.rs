//! `towline`: the operator's command, a client of the coordinator's API.
//!
//! ```text
//!   main ──► arguments, config     what was asked, of whom
//!        ──► commands ──► client   one request after the other
//!                    └──► render   what is said; the only place that prints
//! ```
//!
//! Here alone the environment and the clock are read. Exit codes: see `exit`.

mod arguments;
mod client;
mod commands;
mod config;
mod exit;
mod init;
mod render;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use towline_protocol::time::Timestamp;

use crate::arguments::Arguments;
use crate::client::{Client, Limits};
use crate::commands::{CommandError, Context, Ended};
use crate::exit::Exit;
use crate::render::Screen;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let is_set = |name: &str| variables.get(name).is_some_and(|value| !value.is_empty());
    let is_dumb = variables.get("TERM").is_some_and(|term| term == "dumb");
    let screen = Screen::new(arguments.options.json, !is_set("NO_COLOR") && !is_dumb);
    let ended = match commands::run_local(&screen, &arguments.command) {
        Some(ended) => ended,
        None => match connect(&arguments, &variables, &screen) {
            Ok(client) => work(arguments, &client, &screen),
            Err(exit) => return exit.into(),
        },
    };
    conclude(&screen, ended).into()
}

/// Makes the client; what keeps it from that is told.
fn connect(
    arguments: &Arguments,
    variables: &BTreeMap<String, String>,
    screen: &Screen,
) -> Result<Client, Exit> {
    // For the whole process, and before any thread: it cannot have been installed before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let connection = config::resolve(&arguments.options, variables).map_err(|error| {
        screen.complain(&error, Exit::Config, error.hint().as_deref(), None);
        Exit::Config
    })?;
    Client::new(&connection, Limits::default()).map_err(|error| {
        screen.complain(&error, error.exit(), error.hint().as_deref(), None);
        error.exit()
    })
}

fn work(arguments: Arguments, client: &Client, screen: &Screen) -> Ended {
    let context = Context { client, screen, clock };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::Runtime)?;
    runtime.block_on(commands::run(&context, arguments.command))
}

/// Says what went wrong, once, and returns how it ends.
fn conclude(screen: &Screen, ended: Ended) -> Exit {
    match ended {
        Ok(exit) => exit,
        // Whoever read had enough, as `head` does.
        Err(CommandError::Closed(closed)) if closed.is_reader_gone() => Exit::Done,
        Err(error) => {
            screen.complain(&error, error.exit(), error.hint().as_deref(), error.refusal());
            error.exit()
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "main tells how long ago things were")]
fn clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
