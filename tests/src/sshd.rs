//! A real ssh origin: the system's `sshd`, one process for each connection, as inetd would start it.
//!
//! ```text
//!   a port of the kernel's choice ──► listener ──► sshd -i ──► the forced command ──► git-upload-pack
//! ```
//!
//! It lets in whoever runs the tests, with keys of its own, and ends what it started when it is dropped.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::origin::Repo;

/// Started by its full path, which it insists on.
const PROGRAM: &str = "/usr/sbin/sshd";

/// What the server does with what it is asked for. Silence ends with the server's directory, and with
/// nothing that a client does: a client that is not ended would be seen.
const COMMAND: &str = r#"#!/bin/sh
case $(cat "${0%/*}/fault") in
mute) while [ -e "${0%/*}/fault" ]; do sleep 0.2; done ;;
flood) exec yes "$(printf '003faaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa refs/heads/branch')" ;;
esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"#;

/// What goes wrong behind a login that succeeds.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Nothing.
    None,
    /// The server says nothing, for as long as the connection stands.
    Mute,
    /// The list of refs never ends.
    Flood,
}

/// An ssh server on loopback.
#[derive(Debug)]
pub struct Sshd {
    dir: TempDir,
    port: u16,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    children: Arc<Mutex<Vec<Child>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sshd {
    /// Starts a server, with a key of its own and one that it lets in.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("towline-sshd-").tempdir().expect("a temp dir");
        let path = |name: &str| dir.path().join(name);
        make_key(&path("host"));
        make_key(&path("key"));
        fs::copy(path("key.pub"), path("authorized")).expect("it was made");
        fs::write(path("fault"), "none").expect("a new file");
        fs::write(path("upload"), COMMAND).expect("a new file");
        fs::set_permissions(path("upload"), fs::Permissions::from_mode(0o755)).expect("ours");
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nForceCommand {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin \
             prohibit-password\nPidFile none\nPrintMotd no\nSetEnv GIT_CONFIG_NOSYSTEM=1 \
             GIT_CONFIG_GLOBAL=/dev/null\n",
            path("host").display(),
            path("authorized").display(),
            path("upload").display(),
        );
        fs::write(path("config"), config).expect("a new file");
        if geteuid().is_root() {
            // Where it gives up its rights; made by its unit elsewhere.
            fs::create_dir_all("/run/sshd").expect("we are root");
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let mut server = Self {
            dir,
            port,
            connections: Arc::default(),
            stop: Arc::default(),
            children: Arc::default(),
            thread: None,
        };
        let (connections, stop) = (Arc::clone(&server.connections), Arc::clone(&server.stop));
        let (children, place) = (Arc::clone(&server.children), server.dir.path().to_owned());
        server.thread = Some(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let child = serve(&place, stream);
                children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
            }
        }));
        fs::write(server.known_hosts(), server.known_line("host")).expect("a new file");
        server
    }

    /// The address of a repository on this host.
    #[must_use]
    pub fn url(&self, repository: &Repo) -> String {
        let user = User::from_uid(geteuid()).ok().flatten().expect("whoever runs this has a name");
        format!("ssh://{}@127.0.0.1:{}{}", user.name, self.port, repository.dir().display())
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are; the command line of each ssh that is told of them holds this path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The private key that is let in.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// Makes another private key, which is not let in.
    #[must_use]
    pub fn strange_key(&self) -> PathBuf {
        let path = self.dir.path().join("strange");
        if !path.exists() {
            make_key(&path);
        }
        path
    }

    /// A file with its public key.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// A file with another public key in its place.
    #[must_use]
    pub fn wrong_hosts(&self) -> PathBuf {
        drop(self.strange_key());
        let path = self.dir.path().join("wrong_hosts");
        fs::write(&path, self.known_line("strange")).expect("a new file");
        path
    }

    fn known_line(&self, key: &str) -> String {
        let public = self.dir.path().join(key).with_extension("pub");
        let public = fs::read_to_string(public).expect("it was made");
        format!("[127.0.0.1]:{} {public}", self.port)
    }

    /// Lines of `[git]` that a client of it needs.
    #[must_use]
    pub fn lines(&self) -> String {
        format!("credential = {:?}\nknown_hosts = {:?}\n", self.key(), self.known_hosts())
    }

    /// Lets something go wrong from now on.
    pub fn fail(&self, fault: Fault) {
        let word = match fault {
            Fault::None => "none",
            Fault::Mute => "mute",
            Fault::Flood => "flood",
        };
        let new = self.dir.path().join("fault.new");
        fs::write(&new, word).expect("a new file");
        fs::rename(new, self.dir.path().join("fault")).expect("the same directory");
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        for child in self.children.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn serve(dir: &Path, stream: TcpStream) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    let other = stream.try_clone().expect("a descriptor");
    Command::new(PROGRAM)
        .args(["-i", "-e", "-f"])
        .arg(dir.join("config"))
        .stdin(Stdio::from(OwnedFd::from(stream)))
        .stdout(Stdio::from(OwnedFd::from(other)))
        .stderr(log)
        .spawn()
        .expect("openssh-server is installed")
}

fn make_key(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status();
    assert!(made.expect("openssh-client is installed").success());
}
