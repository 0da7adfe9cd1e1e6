//! A program that leaves nothing behind, however it ends.
//!
//! Its work is done in a child of this process, with one directory for everything that it writes. When
//! the child has ended, also by Ctrl-C, this process ends what the child started and removes the
//! directory.
#![allow(clippy::print_stdout, reason = "what is left behind is told")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::{host, mount};

/// The argument that the child gets.
const INSIDE: &str = "--inside";

/// Does `work` in a child of this program, in a directory whose name begins with `prefix`.
///
/// Fails where the work failed, and where something is left behind.
#[must_use]
pub fn run(prefix: &str, work: impl FnOnce()) -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(INSIDE) {
        work();
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temp dir");
    // The app's user has to pass through it.
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).expect("it is ours");
    let own = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(own);
    command.arg(INSIDE).env("TMPDIR", dir.path());
    let is_ok = watch(command);
    let find = || host::processes_of(dir.path(), "");
    host::end_all(find);
    mount::undo_below(dir.path());
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

/// Runs the work to its end, or until somebody has seen enough; returns whether it went well.
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
