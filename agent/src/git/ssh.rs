//! The smart protocol through the system's `ssh` program, which brings keys, agents of hardware and
//! host keys that operators know.
//!
//! ```text
//!   ssh … -- host "git-upload-pack 'path'"      one for each connection of libgit2's
//!     stdin  ◄── what is asked        stdout ──► refs, then the pack
//!     stderr ──► its beginning, for the error: nothing else says why ssh failed
//! ```
//!
//! Invariants
//! - Nobody is asked anything, and no key of a host is taken on trust.
//! - No configuration of ssh's is read: what host config says is all there is.
//! - It has a session of its own, dies with the thread of its fetch, and is reaped before that goes on.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::address::SshAddress;
use super::transport::{Context, Meter, TransportError};
use crate::process::{self, Exit};
use crate::shown;

/// How much of what ssh and the server complain of is kept.
const SAID_BYTES_MAX: usize = 4096;

/// How much of that is shown.
const SAID_CHARS_MAX: usize = 300;

/// How long ssh may take to end by itself, once its output has ended or nothing more is asked of it.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

/// Where all users' known hosts are, beside their own.
const GLOBAL_KNOWN_HOSTS: [&str; 2] = ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"];

/// How a repository is reached by ssh.
#[derive(Debug)]
pub(super) struct SshAccess {
    /// Where it is.
    pub(super) address: SshAddress,
    /// The private key; those of the agent's user where it is not named.
    pub(super) key: Option<PathBuf>,
    /// The hosts' public keys; those that the system and the agent's user know where it is not named.
    pub(super) known_hosts: Option<PathBuf>,
    /// How long to wait for a connection.
    pub(super) connect: Duration,
    /// Where the program is looked for.
    pub(super) search_path: String,
}

impl SshAccess {
    fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = ["-F", "none", "-a", "-x", "-T"].map(OsString::from).into();
        let seconds = self.connect.as_secs_f64().ceil();
        let mut option = |text: String| all.extend(["-o".into(), text.into()]);
        for text in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "PreferredAuthentications=publickey",
            // Without a banner; errors are told.
            "LogLevel=ERROR",
        ] {
            option(text.to_owned());
        }
        option(format!("ConnectTimeout={seconds}"));
        if let Some(path) = &self.known_hosts {
            option(format!("UserKnownHostsFile={}", unexpanded(path)));
        }
        if let Some(path) = &self.key {
            option("IdentitiesOnly=yes".to_owned());
            all.extend(["-i".into(), unexpanded(path).into()]);
        }
        if let Some(port) = self.address.port {
            all.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = &self.address.user {
            all.extend(["-l".into(), user.into()]);
        }
        let command = format!("git-upload-pack {}", quoted(&self.address.path));
        all.extend(["--".into(), self.address.host.clone().into(), command.into()]);
        all
    }

    /// What to do about an end of ssh's, by its own words.
    fn advice(&self, said: &str) -> Option<String> {
        let host = self.address.known_as();
        let known = self.known_hosts.as_deref().unwrap_or(Path::new("~/.ssh/known_hosts"));
        let known = known.display();
        let has = |words: &str| said.contains(words);
        if has("HOST IDENTIFICATION HAS CHANGED") {
            return Some(format!(
                "ask whoever runs {host} whether its key was replaced; if so: ssh-keygen -R '{host}' \
                 -f {known}, and add the new one"
            ));
        }
        if has("Host key verification failed") || has("host key is known") {
            let port = self.address.port.map(|port| format!("-p {port} ")).unwrap_or_default();
            return Some(format!(
                "add it once its fingerprint was compared: ssh-keyscan {port}{} >> {known}",
                self.address.host
            ));
        }
        if has("UNPROTECTED PRIVATE KEY") || has("bad permissions") {
            return Some("chmod 0400 the file that git.credential names".to_owned());
        }
        if has("Permission denied") {
            return Some(match &self.key {
                Some(key) => format!(
                    "it was offered the key {0}: add its public half there, which `ssh-keygen -y -f \
                     {0}` prints",
                    key.display()
                ),
                None => "name a private key as git.credential".to_owned(),
            });
        }
        let is_no_repository =
            has("not appear to be a git repository") || has("not found") || has("does not exist");
        is_no_repository.then(|| "check git.url, and whether its key may read it".to_owned())
    }

    /// Says that no key of the host is known, where `ssh-keygen` can tell. For a check, before the first
    /// fetch does; `home` is that of the agent's user.
    pub(super) fn doubt(&self, home: &Path) -> Option<String> {
        let own = match &self.known_hosts {
            Some(path) => vec![path.clone()],
            None => vec![home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")],
        };
        let host = self.address.known_as();
        let global = GLOBAL_KNOWN_HOSTS.iter().map(PathBuf::from);
        for file in own.iter().cloned().chain(global).filter(|file| file.is_file()) {
            let asked = Command::new("ssh-keygen")
                .args(["-F", &host, "-f"])
                .arg(&file)
                .env_clear()
                .env("PATH", &self.search_path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            // Known, or nobody here can tell.
            if asked.is_err() || asked.is_ok_and(|status| status.success()) {
                return None;
            }
        }
        let advice = self.advice("Host key verification failed").unwrap_or_default();
        let file = own.first().map(|file| file.display().to_string()).unwrap_or_default();
        Some(format!("no key of {host} is in {file}: {advice}"))
    }
}

/// Writes a path so that ssh takes it for what it is: its own signs begin with a percent.
fn unexpanded(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

/// Quotes a path for the shell of the other side, as git does.
pub(crate) fn quoted(path: &str) -> String {
    let mut text = String::from("'");
    for c in path.chars() {
        match c {
            '\'' | '!' => text.extend(["'\\", c.encode_utf8(&mut [0; 4]), "'"]),
            _ => text.push(c),
        }
    }
    text.push('\'');
    text
}

/// The transport of one fetch.
pub(super) struct Ssh {
    context: Arc<Context>,
    access: Arc<SshAccess>,
}

impl Ssh {
    pub(super) fn new(context: Arc<Context>, access: Arc<SshAccess>) -> Self {
        Self { context, access }
    }
}

impl SmartSubtransport for Ssh {
    fn action(
        &self,
        _url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        // The stream of the refs is that of the pack as well: libgit2 asks once.
        if !matches!(service, Service::UploadPackLs) {
            return Err(git2::Error::from_str("an agent never pushes"));
        }
        let session = Session::start(Arc::clone(&self.context), Arc::clone(&self.access));
        match session {
            Ok(session) => Ok(Box::new(session)),
            Err(error) => Err(git2::Error::from_str(&self.context.keep(error).to_string())),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One run of ssh. Dropped, it is ended.
struct Session {
    context: Arc<Context>,
    access: Arc<SshAccess>,
    url: String,
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    said: Arc<Mutex<Vec<u8>>>,
    listener: JoinHandle<()>,
    meter: Meter,
    has_failed: bool,
}

impl Session {
    fn start(context: Arc<Context>, access: Arc<SshAccess>) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Program { source };
        let mut command = tokio::process::Command::new("ssh");
        command
            .args(access.arguments())
            .env_clear()
            // Its words are looked at.
            .envs([("PATH", access.search_path.as_str()), ("LC_ALL", "C")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process::confine_own(&mut command);
        let guard = context.handle.enter();
        let mut child = command.spawn().map_err(failed)?;
        drop(guard);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = context.handle.spawn(listen(errors, Arc::clone(&said)));
        Ok(Self {
            url: access.address.to_string(),
            context,
            access,
            child,
            input: Some(input),
            output,
            said,
            listener,
            meter: Meter::new(true),
            has_failed: false,
        })
    }

    /// Says why there is nothing more, though there ought to be.
    fn ended(&mut self) -> TransportError {
        self.input = None;
        let Self { context, child, listener, .. } = self;
        let status = context.handle.block_on(async {
            let status = timeout(END_WAIT_MAX, child.wait()).await;
            // What it said last may still be on its way.
            drop(timeout(END_WAIT_MAX, listener).await);
            status
        });
        let end = match status {
            Ok(Ok(status)) => Exit::from(status).to_string(),
            _ => "its output closed".to_owned(),
        };
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let advice = self.access.advice(&said);
        // Lines of signs, with which ssh frames a warning.
        let lines = said.lines().filter(|line| line.chars().any(char::is_alphanumeric));
        let said = shown::short_line(&lines.collect::<Vec<_>>().join(" "), SAID_CHARS_MAX);
        let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
        TransportError::Ssh { url: self.url.clone(), end: format!("{end}: {said}"), advice }
    }

    fn fail(&mut self, error: TransportError) -> io::Error {
        self.has_failed = true;
        self.context.keep(error)
    }
}

/// Reads what ssh complains of to its end, and keeps the beginning.
async fn listen(mut errors: ChildStderr, said: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(count) = errors.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SAID_BYTES_MAX.saturating_sub(said.len());
        said.extend_from_slice(&chunk[..count.min(room)]);
    }
}

impl Read for Session {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let pipe = |url, source| TransportError::Pipe { url, source };
        let read = self.context.wait(&self.url, self.output.read(buffer), pipe);
        let checked = read.and_then(|count| {
            self.meter.came(&self.context, &self.url, &buffer[..count]).map(|()| count)
        });
        match checked {
            // The protocol says when it is over; libgit2 reads no further than that.
            Ok(0) if !buffer.is_empty() => {
                let error = self.ended();
                Err(self.fail(error))
            }
            Ok(count) => Ok(count),
            Err(error) => Err(self.fail(error)),
        }
    }
}

impl Write for Session {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let input = self.input.as_mut().filter(|_| !self.has_failed);
        let Some(input) = input else { return Err(io::ErrorKind::BrokenPipe.into()) };
        self.meter.asked();
        let pipe = |url, source| TransportError::Pipe { url, source };
        match self.context.wait(&self.url, input.write(bytes), pipe) {
            Ok(count) => Ok(count),
            Err(TransportError::Pipe { source, .. })
                if source.kind() == io::ErrorKind::BrokenPipe =>
            {
                let error = self.ended();
                Err(self.fail(error))
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.input = None;
        let Self { context, child, has_failed, .. } = self;
        context.handle.block_on(async {
            // After the last of a pack it ends by itself.
            let ended = !*has_failed && timeout(END_WAIT_MAX, child.wait()).await.is_ok();
            if !ended && child.start_kill().is_ok() {
                // One that the kernel holds on to is reaped by the runtime, whenever it ends.
                drop(timeout(END_WAIT_MAX, child.wait()).await);
            }
        });
        self.listener.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::address::{Address, parse};

    fn access(url: &str) -> SshAccess {
        let Ok(Address::Ssh(address)) = parse(url, false) else { panic!("{url}") };
        SshAccess {
            address,
            key: Some("/run/credentials/a%b/key".into()),
            known_hosts: Some("/etc/towline/known_hosts".into()),
            connect: Duration::from_millis(1500),
            search_path: "/bin".to_owned(),
        }
    }

    #[test]
    fn ssh_is_told_all_that_it_needs_and_asks_nobody() {
        let arguments = access("ssh://git@git.example:2222/it's/web.git").arguments();
        let text: Vec<&str> = arguments.iter().map(|one| one.to_str().unwrap()).collect();
        for pair in [
            ["-F", "none"],
            ["-o", "BatchMode=yes"],
            ["-o", "StrictHostKeyChecking=yes"],
            ["-o", "ConnectTimeout=2"],
            ["-o", "UserKnownHostsFile=/etc/towline/known_hosts"],
            ["-i", "/run/credentials/a%%b/key"],
            ["-o", "IdentitiesOnly=yes"],
            ["-p", "2222"],
            ["-l", "git"],
        ] {
            assert!(text.windows(2).any(|found| found == pair), "{pair:?} in {text:?}");
        }
        let last = &text[text.len() - 3..];
        assert_eq!(last, ["--", "git.example", r"git-upload-pack '/it'\''s/web.git'"]);
        let last = access("git.example:a!b").arguments().pop();
        assert_eq!(last.unwrap(), r"git-upload-pack 'a'\!'b'");
    }

    #[test]
    fn what_ssh_says_leads_to_what_to_do() {
        let access = access("ssh://git@git.example:2222/web.git");
        let cases = [
            ("No ED25519 host key is known for x\nHost key verification failed.", "-p 2222"),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "-R '[git.example]:2222'"),
            ("git@x: Permission denied (publickey).", "offered the key"),
            ("fatal: '/x' does not appear to be a git repository", "check git.url"),
        ];
        for (said, hint) in cases {
            let advice = access.advice(said).unwrap_or_default();
            assert!(advice.contains(hint), "{said}: {advice}");
        }
        assert_eq!(access.advice("connect to host x port 22: Connection refused"), None);
    }
}
