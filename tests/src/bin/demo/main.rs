//! What `make demo` runs: an instance through an ordinary day and three bad ones, under load.
//!
//! The scenes run in a child of this process, with one directory for everything that they write.
//! However they end, also by Ctrl-C, this process ends what they started and removes the directory.
#![allow(clippy::print_stdout, reason = "it is here to be read")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use towline_tests::host;

mod scenes;
mod script;
mod stage;

/// The argument that the child gets.
const SCENES: &str = "--scenes";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(SCENES) {
        scenes::play();
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::Builder::new().prefix("towline-demo-").tempdir().expect("a temp dir");
    // The app's user has to pass through it.
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).expect("it is ours");
    let own = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(own);
    command.arg(SCENES).env("TMPDIR", dir.path());
    let is_ok = watch(command);
    let find = || host::processes_of(dir.path(), "");
    host::end_all(find);
    let (path, processes) = (dir.path().to_owned(), find().len());
    let removed = dir.close();
    println!(
        "\nLeft behind: {processes} processes, {} files.",
        if path.exists() { "some" } else { "no" }
    );
    if let Err(error) = removed {
        println!("could not remove {}: {error}", path.display());
    }
    if is_ok && processes == 0 && !path.exists() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the scenes to their end, or until somebody has seen enough; returns whether they went well.
fn watch(command: Command) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the kernel grants an epoll descriptor").block_on(async {
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| signal(kind).expect("the signal can be caught"));
        let [interrupt, terminate, hangup] = &mut signals;
        let mut child = tokio::process::Command::from(command).spawn().expect("it runs already");
        tokio::select! {
            end = child.wait() => end.is_ok_and(|end| end.success()),
            _ = interrupt.recv() => kill(child).await,
            _ = terminate.recv() => kill(child).await,
            _ = hangup.recv() => kill(child).await,
        }
    })
}

async fn kill(mut child: tokio::process::Child) -> bool {
    // It may have got the terminal's signal as well, and be gone.
    drop(child.kill().await);
    false
}
