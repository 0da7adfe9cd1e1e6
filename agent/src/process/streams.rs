//! What a child prints, read as it comes and never waited for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::log::LogTail;
use super::{Account, CAPTURE_BYTES_MAX};

/// How much is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// The most that is read after the child has exited. What it wrote is in the pipe, which holds 64
/// KiB, and up to 1 MiB where it was widened; a daemon could go on writing for ever.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// The reading ends of a child's output.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// The end of all output.
    pub(super) log: LogTail,
    /// The beginning of stdout, where it is captured.
    pub(super) captured: Vec<u8>,
    both: Option<Receiver>,
    stdout: Option<Receiver>,
}

impl Streams {
    /// Makes the pipes; returns the child's stdout and stderr with them.
    ///
    /// Without `capture` both are one pipe, so that lines keep their order.
    pub(super) fn open(
        capture: bool,
        account: Option<&Account>,
    ) -> io::Result<(Streams, Stdio, Stdio)> {
        let (reader, errors) = pipe(account)?;
        let (stdout, output) = if capture {
            let (reader, writer) = pipe(account)?;
            (Some(reader), writer)
        } else {
            (None, errors.try_clone()?)
        };
        let streams =
            Streams { log: LogTail::default(), captured: Vec::new(), both: Some(reader), stdout };
        Ok((streams, Stdio::from(output), Stdio::from(errors)))
    }

    /// Reads until `future` is done, and returns what it gave.
    pub(super) async fn read_while<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut other = vec![0; CHUNK_BYTES];
        loop {
            // In this order: a child that never stops printing cannot keep its deadline from passing.
            tokio::select! {
                biased;
                output = &mut future => return output,
                read = read(&mut self.both, &mut chunk) => {
                    keep(&mut self.both, read).inspect(|&n| self.log.push(&chunk[..n]));
                }
                read = read(&mut self.stdout, &mut other) => {
                    if let Some(n) = keep(&mut self.stdout, read) {
                        self.take_stdout(&other[..n]);
                    }
                }
            }
        }
    }

    /// Takes what is in the pipes now, and closes them.
    pub(super) fn drain(&mut self) {
        let mut chunk = vec![0; CHUNK_BYTES];
        for (receiver, is_stdout) in [(self.both.take(), false), (self.stdout.take(), true)] {
            let mut read = 0;
            while let Some(receiver) = receiver.as_ref().filter(|_| read < DRAIN_BYTES_MAX) {
                // Not through the runtime: it may not have noticed yet that there is something.
                match rustix::io::read(receiver.as_fd(), &mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(n) if is_stdout => self.take_stdout(&chunk[..n]),
                    Ok(n) => self.log.push(&chunk[..n]),
                }
                read += chunk.len();
            }
        }
    }

    fn take_stdout(&mut self, bytes: &[u8]) {
        self.log.push(bytes);
        let room = CAPTURE_BYTES_MAX.saturating_sub(self.captured.len());
        self.captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Reads from a pipe, or waits for ever where it is closed.
async fn read(receiver: &mut Option<Receiver>, chunk: &mut [u8]) -> io::Result<usize> {
    match receiver {
        Some(receiver) => receiver.read(chunk).await,
        None => std::future::pending().await,
    }
}

/// Returns how much was read; closes a pipe that gives nothing more.
fn keep(receiver: &mut Option<Receiver>, read: io::Result<usize>) -> Option<usize> {
    let bytes = read.ok().filter(|&bytes| bytes > 0);
    if bytes.is_none() {
        *receiver = None;
    }
    bytes
}

/// Makes a pipe whose writing end belongs to the child's user: it may open `/dev/stderr` again.
fn pipe(account: Option<&Account>) -> io::Result<(Receiver, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    if let Some(account) = account {
        std::os::unix::fs::fchown(&writer, Some(account.uid), Some(account.gid))?;
    }
    Ok((Receiver::from_owned_fd(OwnedFd::from(reader))?, OwnedFd::from(writer)))
}
