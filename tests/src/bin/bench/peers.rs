//! The other ways to deploy: the script through Fabric, ansible-pull and Capistrano.
//!
//! Fabric and ansible-core come from PyPI into a directory that goes with the bench. What cannot be had is
//! skipped, with a line that says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};
use tempfile::TempDir;
use towline_tests::script::Server;
use towline_tests::sshd::Sshd;
use towline_tests::stage::Stage;

use crate::table::note;

/// How long a package may take to be installed, as `timeout` reads it.
const INSTALL_WITHIN: &str = "60";

/// What ansible-pull plays, in the repository.
pub(crate) const PLAYBOOK: &str = "deploy.yml";

/// Its text: what the script does after the pull.
pub(crate) const PLAYS: &str = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.shell: \"{{ \
    lookup('env', 'DEPLOY_REST') }}\"\n";

/// What could be installed.
pub(crate) struct Peers {
    dir: TempDir,
    has_fabric: bool,
    has_ansible: bool,
}

impl Peers {
    /// Installs what can be had.
    pub(crate) fn find() -> Self {
        let dir = tempfile::Builder::new().prefix("peers-").tempdir().expect("a temp dir");
        let bin = dir.path().join("venv/bin");
        let has_venv =
            is_done(Command::new("python3").args(["-m", "venv"]).arg(dir.path().join("venv")));
        let install = |package: &str| {
            let mut pip = Command::new("timeout");
            pip.arg(INSTALL_WITHIN).arg(bin.join("pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check", package]);
            has_venv && is_done(&mut pip)
        };
        let has_fabric = Path::new("/usr/sbin/sshd").exists() && install("fabric");
        let has_ansible = install("ansible-core");
        Self { dir, has_fabric, has_ansible }
    }

    /// Sets up a server for each of them; says which are skipped.
    pub(crate) fn of(&self, stage: &Stage) -> Vec<Peer> {
        let mut peers = Vec::new();
        let (dir, bin) = (self.dir.path().to_owned(), self.dir.path().join("venv/bin"));
        let server = || Server::set_up(&stage.url(), stage.environment());
        if self.has_fabric {
            let file = "from fabric import task\nimport os\n\n@task\ndef deploy(c):\n    \
                        c.run(os.environ['DEPLOY'])\n";
            fs::write(dir.join("fabfile.py"), file).expect("it is ours");
            let kind = Kind::Fabric(Sshd::start());
            peers.push(Peer { kind, server: server(), dir: dir.clone(), bin: bin.clone() });
        } else {
            note("Fabric: skipped: pip or sshd is not there, or PyPI is not reached");
        }
        if self.has_ansible {
            peers.push(Peer { kind: Kind::Ansible(stage.url()), server: server(), dir, bin });
        } else {
            note("ansible-pull: skipped: pip is not there, or PyPI is not reached");
        }
        let is_capistrano_there = is_done(Command::new("cap").arg("--version"));
        note(if is_capistrano_there {
            "Capistrano: skipped: it is installed, and nothing here drives it"
        } else {
            "Capistrano: skipped: not installed"
        });
        peers
    }
}

enum Kind {
    Fabric(Sshd),
    /// From this origin.
    Ansible(String),
}

/// Another way to deploy, with a server of its own.
pub(crate) struct Peer {
    kind: Kind,
    server: Server,
    dir: PathBuf,
    bin: PathBuf,
}

impl Peer {
    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Fabric(_) => "the script through Fabric",
            Kind::Ansible(_) => "ansible-pull",
        }
    }

    /// Deploys the newest commit; returns what was said where that failed.
    pub(crate) fn deploy(&self) -> Result<(), String> {
        let mut command = match &self.kind {
            Kind::Fabric(sshd) => {
                let user =
                    User::from_uid(geteuid()).ok().flatten().map_or(String::new(), |u| u.name);
                let mut fab = Command::new(self.bin.join("fab"));
                fab.arg("-H").arg(format!("{user}@127.0.0.1:{}", sshd.port()));
                fab.arg("-i").arg(sshd.key()).arg("deploy").current_dir(&self.dir);
                fab.env("DEPLOY", self.server.command());
                fab
            }
            Kind::Ansible(url) => {
                let mut pull = Command::new(self.bin.join("ansible-pull"));
                pull.args(["-U", url, "-C", "main", "-i", "localhost,", "-c", "local", "-d"]);
                pull.arg(self.server.app()).arg(PLAYBOOK).current_dir(&self.dir);
                pull.env("DEPLOY_REST", self.server.rest());
                let path = std::env::var("PATH").unwrap_or_default();
                pull.env("PATH", format!("{}:{path}", self.bin.display()));
                pull
            }
        };
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        let output = command.output().map_err(|error| error.to_string())?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let last = text.trim().chars().rev().take(300).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<String>();
        if output.status.success() { Ok(()) } else { Err(last.replace('\n', " | ")) }
    }
}

fn is_done(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
