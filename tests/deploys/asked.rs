//! The status by the running agent's socket, and without one by its file.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::{User, geteuid};
use serde_json::Value;
use towline_tests::app::Kind;
use towline_tests::host::pause;

use super::World;

#[test]
fn status_is_the_running_agents_word_and_else_the_files() {
    let (mut world, good) = World::serving(Kind::Plain);
    let socket = world.host.dir().join(".towline/agent.sock");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    let mut line = String::new();
    UnixStream::connect(&socket).unwrap().read_to_string(&mut line).unwrap();
    assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
    let told: Value = serde_json::from_str(&line).unwrap();
    let mut asked = world.host.status();
    for field in ["age_s"] {
        asked[field] = told[field].clone();
    }
    assert_eq!(told, asked, "the same object");
    assert_eq!(told["status"]["serving"], good.as_str());

    // The file is not what is told: it may be lost, or stand still on a full disk.
    let file = world.host.dir().join(".towline/status.json");
    fs::remove_file(&file).unwrap();
    assert_eq!(world.host.status()["status"]["serving"], good.as_str());

    // An agent that is killed leaves its socket: the next one's takes its place.
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    world.host.kill();
    assert!(socket.exists());
    let status = world.host.status();
    assert_eq!(status["agent_running"], false, "by the file");
    assert_eq!(status["status"]["serving"], next.as_str());
    world.host.run();
    world.host.await_serving(&next);
    assert!(world.host.terminate().success());
    assert!(!socket.exists(), "it is gone with its agent");
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for() {
    let (mut world, good) = World::serving(Kind::Plain);
    let pid = world.host.agent_pid();
    pause(pid, true);
    // More than the kernel lets wait for an agent that lets nobody in.
    let socket = world.host.dir().join(".towline/agent.sock");
    let stuck: Vec<_> = (0..64).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
    let status = world.host.status();
    pause(pid, false);
    assert_eq!(status["status"]["serving"], good.as_str());
    assert_eq!(
        (&status["agent_running"], status["agent_pid"].as_u64()),
        (&true.into(), Some(pid.into()))
    );
    // Those who never read are let go, and keep the agent from nothing.
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    drop(stuck);
}

#[test]
fn another_user_is_told_nothing() {
    if !geteuid().is_root() {
        return;
    }
    let (world, good) = World::serving(Kind::Plain);
    let dir = world.host.dir().join(".towline");
    let socket = dir.join("agent.sock");
    let ask = || {
        let nobody = User::from_name("nobody").ok().flatten().expect("every system has it");
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\n\
                      s.connect(sys.argv[1])\nprint(s.recv(1 << 20).decode())";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(&socket).uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
        let output = python.output().expect("python3 is installed");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(ask().contains("Permission denied"), "the directory is root's");
    // Also where somebody has opened both.
    let open = |path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&dir, 0o755);
    assert!(ask().contains("Permission denied"), "the socket is root's");
    open(&socket, 0o666);
    let said = ask();
    assert_eq!(said.trim(), "", "nothing is told");
    open(&dir, 0o700);
    assert_eq!(world.host.status()["status"]["serving"], good.as_str());
}
