//! The script that Towline replaces: `git pull && npm ci && kill -HUP`, on a tree of its own.
//!
//! It deploys the same commits of the same origin, to the same app, with npm's cache as warm as
//! Towline's and preferred to the registry. The one line more, the file that names the revision, is there to tell the answers apart.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{app, host};

const PULL: &str = "git pull --quiet --ff-only";
const INSTALL: &str = "npm ci --omit=dev --no-audit --no-fund --prefer-offline --silent";
const TELL: &str = "git rev-parse HEAD >.towline-revision && kill -HUP $(cat run/app.pid)";

/// A server that is deployed to by the script.
pub struct Server {
    root: TempDir,
    environment: Vec<(String, String)>,
    /// Where its app listens.
    pub port: u16,
}

impl Server {
    /// Clones, installs and starts the app, as somebody once did by hand.
    pub fn set_up(url: &str, environment: Vec<(String, String)>) -> Self {
        let root = tempfile::Builder::new().prefix("script-").tempdir().expect("a temp dir");
        let server = Self { root, environment, port: app::free_port() };
        let (app, url) = (server.app(), url.to_owned());
        server.run(&format!("git clone --quiet {url} {}", app.display()), "/".into());
        fs::create_dir(app.join("run")).expect("a new directory");
        fs::write(app.join("run/port"), server.port.to_string()).expect("a new file");
        server.run(INSTALL, app.clone());
        server.run("git rev-parse HEAD >.towline-revision && ./bin/start", app);
        server
    }

    /// Runs the script; it has ended when the signal is sent.
    pub fn deploy(&self) {
        self.run(&[PULL, INSTALL, TELL].join(" && "), self.app());
    }

    /// The script as one command of a shell that knows nothing: where, with which variables, and what.
    #[must_use]
    pub fn command(&self) -> String {
        format!("{} && {PULL} && {INSTALL} && {TELL}", self.place())
    }

    /// Likewise, for whoever has the newest commit already.
    #[must_use]
    pub fn rest(&self) -> String {
        format!("{} && {INSTALL} && {TELL}", self.place())
    }

    fn place(&self) -> String {
        let mut place =
            format!("export HOME='{}' GIT_CONFIG_NOSYSTEM=1", self.root.path().display());
        for (name, value) in &self.environment {
            place.push_str(&format!(" {name}='{value}'"));
        }
        format!("{place} && cd '{}'", self.app().display())
    }

    /// Fetches the newest commit, and installs nothing.
    pub fn pull(&self) {
        self.run(PULL, self.app());
    }

    /// Installs the dependencies of what was fetched, from nothing.
    pub fn install(&self) {
        self.run(INSTALL, self.app());
    }

    /// Does the app answer?
    pub fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else {
            return false;
        };
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.write_all(request).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// Where the app is.
    #[must_use]
    pub fn app(&self) -> PathBuf {
        self.root.path().join("web")
    }

    fn run(&self, command: &str, dir: PathBuf) {
        let status = Command::new("sh")
            .args(["-c", command])
            .current_dir(&dir)
            .env("PWD", &dir)
            .env("HOME", self.root.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .status()
            .expect("every system has a shell");
        assert!(status.success(), "{command}: {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        host::end_all(|| host::processes_of(self.root.path(), ""));
    }
}
