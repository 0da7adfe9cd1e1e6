//! Origins that are reached through the system's ssh.

use std::fs;

use serde_json::Value;
use towline_tests::app::Kind;
use towline_tests::host::{Host, processes_of};
use towline_tests::origin::Origin;
use towline_tests::sshd::{Fault, Sshd};

use super::World;

/// A world whose host fetches from an ssh server; nothing of it is asked for by http.
fn world(sshd: &Sshd, git: &str) -> World {
    let origin = Origin::start();
    let repo = origin.repository("web.git");
    let host = Host::new(&sshd.url(&repo), &format!("{}{git}", sshd.lines()), "");
    World { origin, repo, host, kind: Kind::Plain, tip: None }
}

/// The ssh clients of an agent that know this server.
fn clients(sshd: &Sshd) -> Vec<u32> {
    processes_of(sshd.dir(), "StrictHostKeyChecking")
}

fn says<'a>(status: &'a Value, words: &str) -> Option<&'a str> {
    status["failure"]["detail"].as_str().filter(|detail| detail.contains(words))
}

#[test]
fn a_private_origin_over_ssh_is_fetched_by_id_and_by_its_branch() {
    let sshd = Sshd::start();
    let mut world = world(&sshd, "branch = \"main\"\n");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let connections = sshd.connections();
    let next = world.commit_good();
    world.host.target(&next);
    world.host.await_serving(&next);
    assert_eq!(sshd.connections(), connections + 1, "by its id");
    world.repo.give_any_commit(false);
    let older = world.commit_good();
    world.commit_good();
    world.host.target(&older);
    world.host.await_serving(&older);
    assert_eq!(world.origin.requests(), 0);
    assert_eq!(clients(&sshd), [0; 0], "each is over with its fetch");
}

#[test]
fn a_verified_branch_refuses_over_ssh_as_well() {
    let sshd = Sshd::start();
    let mut world = world(&sshd, "branch = \"main\"\nverify_branch = true\n");
    let good = world.commit_good();
    let stray = world.commit_good();
    world.repo.point("main", &good);
    world.host.target(&stray);
    let (code, log) = world.host.once();
    assert_eq!(code, 75, "{log}");
    assert!(log.contains("is not on the branch main"), "{log}");
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
}

#[test]
fn what_is_wrong_with_an_ssh_origin_is_told_with_what_to_do() {
    let sshd = Sshd::start();
    let nobody = sshd.dir().join("nobody");
    fs::write(&nobody, "").unwrap();
    let file = |path: std::path::PathBuf| path.to_str().expect("it is text").to_owned();
    let (key, hosts) = (file(sshd.key()), file(sshd.known_hosts()));
    let cases = [
        (&hosts, file(sshd.wrong_hosts()), "IDENTIFICATION HAS CHANGED", "ssh-keygen -R"),
        (&hosts, file(nobody), "Host key verification failed", "ssh-keyscan -p"),
        (&key, file(sshd.strange_key()), "Permission denied", "it was offered the key"),
        (&"web.git\"".to_owned(), "no.git\"".to_owned(), "a git repository", "check git.url"),
    ];
    for (from, to, said, hint) in cases {
        let mut world = world(&sshd, "branch = \"main\"\n");
        let good = world.commit_good();
        world.host.reconfigure(from, &to);
        world.host.target(&good);
        let (code, log) = world.host.once();
        assert_eq!(code, 75, "{log}");
        assert!(log.contains(said) && log.contains(hint), "{said}, {hint}: {log}");
        world.host.reconfigure(&to, from);
        let (code, log) = world.host.once();
        assert_eq!(code, 0, "{log}");
    }
}

#[test]
fn a_host_without_ssh_is_told_what_to_install() {
    let sshd = Sshd::start();
    let mut world = world(&sshd, "branch = \"main\"\n");
    let good = world.commit_good();
    world.host.add_environment(vec![("PATH".to_owned(), "/nowhere".to_owned())]);
    world.host.target(&good);
    let (code, log) = world.host.once();
    assert_eq!(code, 75, "{log}");
    assert!(log.contains("could not run ssh") && log.contains("openssh-client"), "{log}");
}

#[test]
fn an_ssh_origin_that_hangs_or_never_ends_is_given_up_and_its_client_ended() {
    let sshd = Sshd::start();
    let mut world = world(&sshd, "branch = \"main\"\nstall_s = 2\n");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let next = world.commit_good();
    sshd.fail(Fault::Mute);
    world.host.target(&next);
    world.host.await_status("silence to be given up", |status| {
        says(status, "sent nothing for 2 s").is_some()
    });
    sshd.fail(Fault::Flood);
    world.host.await_status("the list to be given up", |status| {
        says(status, "lists more than 64 MiB of refs").is_some()
    });
    sshd.fail(Fault::None);
    world.host.await_serving(&next);
    assert_eq!(clients(&sshd), [0; 0], "none is left");

    // Nor does one outlive its agent.
    world.host.reconfigure("stall_s = 2", "stall_s = 600");
    world.host.terminate();
    let last = world.commit_good();
    sshd.fail(Fault::Mute);
    world.host.target(&last);
    world.host.run();
    let is_there = |_: &Host| (!clients(&sshd).is_empty()).then_some(());
    let is_gone = |_: &Host| clients(&sshd).is_empty().then_some(());
    world.host.await_some("an ssh client", is_there);
    world.host.kill();
    world.host.await_some("its end after the agent's", is_gone);
    world.host.run();
    world.host.await_some("an ssh client", is_there);
    world.host.terminate();
    assert_eq!(clients(&sshd), [0; 0], "ended before the agent");
}

#[test]
fn a_check_tells_what_ssh_would_run_into() {
    let sshd = Sshd::start();
    let mut world = world(&sshd, "branch = \"main\"\n");
    let check = |host: &Host| {
        let output = host.command("check").output().expect("the agent was built");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
    };
    let (is_valid, said) = check(&world.host);
    assert!(is_valid && !said.contains("no key of"), "{said}");
    let nobody = sshd.dir().join("nobody");
    fs::write(&nobody, "").unwrap();
    let known = sshd.known_hosts();
    world.host.reconfigure(known.to_str().unwrap(), nobody.to_str().unwrap());
    let (is_valid, said) = check(&world.host);
    assert!(is_valid && said.contains("no key of [127.0.0.1]:"), "{said}");
    world.host.reconfigure("credential = ", "# ");
    world.host.reconfigure("known_hosts = ", "ca_file = ");
    let (is_valid, said) = check(&world.host);
    assert!(!is_valid && said.contains("goes with an https address"), "{said}");
}
