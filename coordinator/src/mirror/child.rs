//! One child process: its input, its bounded output, and its end.
//!
//! ```text
//!   spawn, in a process group of its own ─► write, read ─► both pipes at their end ─► reap
//!                    deadline passed, caller gone, or too much said ─► KILL the group ─┘
//! ```
//!
//! Invariants
//! - The group is signalled only while its leader has not been reaped, so its id names nobody else.
//! - `hold` is let go only after the leader is gone: whoever waits for it finds no writer left.
//! - What a caller that went away had started is ended by the same task that would have ended it.

use std::any::Any;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How much of the beginning, and of the end, of standard error is kept.
const ERRORS_BYTES_MAX: usize = 4096;

/// How much is read at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a child gets, and how much it may take.
pub(super) struct Bounds {
    /// Its standard input.
    pub(super) input: Vec<u8>,
    /// How much of its standard output is kept.
    pub(super) output_max: usize,
    /// End it where it says more, and take what there is; else that is an error.
    pub(super) is_cut: bool,
    /// How long it may take.
    pub(super) deadline: Duration,
    /// How much memory it, and each process that it starts, may have, in bytes.
    pub(super) memory_max: u64,
    /// Kept until it is gone.
    pub(super) hold: Option<Arc<dyn Any + Send + Sync>>,
}

/// How a child ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code; `None` where a signal ended it, or we did after it had said enough.
    pub(super) code: Option<i32>,
    /// What it said.
    pub(super) output: Vec<u8>,
    /// What it complained of: the beginning and the end.
    pub(super) errors: String,
}

/// Why a child has no answer.
#[derive(Debug)]
pub(super) enum ChildError {
    /// It could not be started, or not be waited for.
    Io(io::Error),
    /// Its time was up.
    TimedOut,
    /// It said more than fits.
    TooMuch,
}

/// Runs a child to its end.
pub(super) async fn run(mut command: Command, bounds: Bounds) -> Result<Ended, ChildError> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn().map_err(ChildError::Io)?;
    limit(&child, bounds.memory_max);
    let gone = CancellationToken::new();
    // Dropped with this future; the task then ends the child, and lives on until that is done.
    let _caller = gone.clone().drop_guard();
    let ended = tokio::spawn(watch(child, bounds, gone)).await;
    ended.map_err(|error| ChildError::Io(io::Error::other(error)))?
}

async fn watch(
    mut child: Child,
    bounds: Bounds,
    gone: CancellationToken,
) -> Result<Ended, ChildError> {
    let until = Instant::now() + bounds.deadline;
    let (output_max, is_cut) = (bounds.output_max, bounds.is_cut);
    let talked = tokio::select! {
        talked = timeout_at(until, talk(&mut child, bounds.input, output_max)) => {
            talked.map_err(|_| ChildError::TimedOut)
        }
        () = gone.cancelled() => Err(ChildError::TimedOut),
    };
    let outcome = match talked {
        Ok(Ok((output, errors))) if output.len() <= output_max => Ok((output, errors)),
        Ok(Ok((mut output, errors))) if is_cut => {
            output.truncate(output_max);
            kill(&child);
            Ok((output, errors))
        }
        Ok(Ok(_)) => Err(ChildError::TooMuch),
        Ok(Err(error)) => Err(ChildError::Io(error)),
        Err(error) => Err(error),
    };
    let outcome = match outcome {
        Ok((output, errors)) => match timeout_at(until, child.wait()).await {
            Ok(Ok(status)) => Ok(Ended { code: status.code(), output, errors }),
            Ok(Err(error)) => Err(ChildError::Io(error)),
            Err(_) => Err(ChildError::TimedOut),
        },
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        kill(&child);
        // A killed process ends, unless the kernel holds on to it: then nobody may write beside it.
        drop(child.wait().await);
    }
    drop(bounds.hold);
    outcome
}

/// Bounds a child's memory: what an origin sends must not take that of everybody else on this host. Files
/// that are mapped do not count, so that large packs do no harm.
fn limit(child: &Child, memory_max: u64) {
    let id =
        child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let Some(id) = id else { return };
    let most = rustix::process::Rlimit { current: Some(memory_max), maximum: Some(memory_max) };
    if let Err(error) = rustix::process::prlimit(Some(id), rustix::process::Resource::Data, most) {
        debug!(%error, "could not bound a child's memory");
    }
}

/// Kills the child and what it has started, unless it was reaped.
fn kill(child: &Child) {
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    let Some(leader) = leader else { return };
    // It may have ended by itself.
    if let Err(error) = killpg(Pid::from_raw(leader), Signal::SIGKILL) {
        debug!(leader, %error, "nothing to kill");
    }
}

/// Gives the child its input and takes what it says, until both pipes end or there is too much.
async fn talk(
    child: &mut Child,
    input: Vec<u8>,
    output_max: usize,
) -> io::Result<(Vec<u8>, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // It may have ended, or want no input: its answer tells.
            drop(stdin.write_all(&input).await);
        }
    };
    let mut output = Vec::new();
    let mut errors = Ends::default();
    {
        let read = async {
            let Some(mut stdout) = stdout else { return Ok(true) };
            while output.len() <= output_max {
                if !more(&mut stdout, |bytes| output.extend_from_slice(bytes)).await? {
                    return Ok(true);
                }
            }
            Ok::<bool, io::Error>(false)
        };
        let complain = async {
            if let Some(mut stderr) = stderr {
                while more(&mut stderr, |bytes| errors.take(bytes)).await? {}
            }
            Ok::<(), io::Error>(())
        };
        let all = async { tokio::join!(write, complain).1 };
        tokio::pin!(read, all);
        let mut is_done = false;
        loop {
            tokio::select! {
                is_whole = &mut read => {
                    // With too much said already, its complaints are not waited for.
                    if is_whole? && !is_done {
                        all.await?;
                    }
                    break;
                }
                done = &mut all, if !is_done => {
                    done?;
                    is_done = true;
                }
            }
        }
    }
    Ok((output, errors.text()))
}

/// Reads once; `false` at the end.
async fn more(
    from: &mut (impl AsyncRead + Unpin),
    mut take: impl FnMut(&[u8]),
) -> io::Result<bool> {
    let mut chunk = [0; CHUNK_BYTES];
    let count = from.read(&mut chunk).await?;
    take(&chunk[..count]);
    Ok(count > 0)
}

/// The beginning and the end of what comes in.
#[derive(Default)]
struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    is_cut: bool,
}

impl Ends {
    fn take(&mut self, bytes: &[u8]) {
        let room = ERRORS_BYTES_MAX.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        self.tail.extend_from_slice(&bytes[room..]);
        let over = self.tail.len().saturating_sub(ERRORS_BYTES_MAX);
        if over > 0 {
            self.tail.drain(..over);
            self.is_cut = true;
        }
    }

    fn text(&self) -> String {
        let mark: &[u8] = if self.is_cut { b"\n...\n" } else { b"" };
        let all = [self.head.as_slice(), mark, self.tail.as_slice()].concat();
        String::from_utf8_lossy(&all).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(
        script: &str,
        input: &str,
        output_max: usize,
        is_cut: bool,
    ) -> Result<Ended, ChildError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let deadline = Duration::from_secs(60);
        let (input, memory_max) = (input.into(), 64 << 20);
        let bounds = Bounds { input, output_max, is_cut, deadline, memory_max, hold: None };
        run(command, bounds).await
    }

    #[tokio::test]
    async fn a_child_has_so_much_memory_and_what_it_starts_has_no_more() {
        // The limit is set a moment after it has begun.
        let script = "while [ \"$(ulimit -d)\" != 65536 ]; do :; done; sh -c 'ulimit -d'; \
                      dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null || echo none";
        let ended = sh(script, "", 100, false).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&ended.output), "65536\nnone\n", "{}", ended.errors);
    }

    #[tokio::test]
    async fn what_a_child_says_is_taken_and_bounded() {
        let ended = sh("cat; echo oh >&2; exit 3", "hello", 100, false).await.unwrap();
        assert_eq!(
            (ended.code, ended.output, ended.errors.as_str()),
            (Some(3), b"hello".into(), "oh\n")
        );
        let endless = "while :; do echo 0123456789; done";
        let error = sh(endless, "", 1000, false).await.unwrap_err();
        assert!(matches!(error, ChildError::TooMuch), "{error:?}");
        assert_eq!(sh(endless, "", 1000, true).await.unwrap().output.len(), 1000);
        // More input than a pipe holds, to somebody who reads none of it.
        let input = "x".repeat(1 << 20);
        assert_eq!(sh("exec true", &input, 10, false).await.unwrap().code, Some(0));
        let script =
            "echo first >&2; i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done";
        let errors = sh(script, "", 10, false).await.unwrap().errors;
        assert!(errors.len() <= 2 * ERRORS_BYTES_MAX + 10, "{}", errors.len());
        assert!(errors.starts_with("first") && errors.ends_with("line 2999\n"), "both ends");
    }
}
