//! Origins: private ones, slow ones, and those that lead elsewhere.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use towline_tests::app::Kind;
use towline_tests::host::Host;
use towline_tests::origin::{Fault, Origin};

use super::World;

/// Puts a credential beside the target file, and returns the line of host config.
fn credential(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("token");
    fs::write(&path, text).expect("a new file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("it is ours");
    format!("branch = \"main\"\ncredential = {path:?}\n")
}

#[test]
fn a_private_origin_over_https_is_fetched_with_its_token_and_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start_tls();
    origin.require("bot:s3cret");
    let repo = origin.repository("web.git");
    let line = credential(&dir, "bot:s3cret\n");
    let trusted = format!("{line}ca_file = {:?}\n", origin.ca_file());
    let host = Host::new(&origin.url(&repo), &trusted, "");
    let mut world = World { origin, repo, host, kind: Kind::Plain, tip: None };
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let sent = world.origin.authorisations();
    assert!(!sent.is_empty() && sent.iter().all(|own| own.as_deref() == Some("bot:s3cret")));
    assert!(!world.host.log().contains("s3cret"), "no secret in the log");

    // Without the certificate nothing is sent to it.
    let mut stranger = Host::new(&world.origin.url(&world.repo), &line, "");
    stranger.target(&good);
    let (code, log) = stranger.once();
    assert_eq!(code, 75, "{log}");
    assert!(log.contains("certificate"), "{log}");
    assert_eq!(world.origin.authorisations().len(), sent.len());
}

#[test]
fn a_token_is_not_sent_to_another_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::with(Kind::Plain, &credential(&dir, "s3cret"), "");
    let good = world.commit_good();
    let other = Origin::start();
    world.origin.fail(Fault::Redirect(other.base()));
    world.host.target(&good);
    let (code, log) = world.host.once();
    assert_ne!(code, 0, "the other one has no such repository: {log}");
    let own = world.origin.authorisations();
    assert!(own.iter().all(|sent| sent.as_deref() == Some("x-access-token:s3cret")));
    let elsewhere = other.authorisations();
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(Option::is_none), "{elsewhere:?}");
}

#[test]
fn an_origin_that_stalls_or_breaks_off_is_given_up_in_time_and_tried_again() {
    let git = "branch = \"main\"\nstall_s = 0.3\n";
    let mut world = World::with(Kind::Plain, git, "[boot]\ndeadline_s = 30\n");
    let good = world.commit_good();
    world.origin.fail(Fault::Stall);
    world.host.target(&good);
    world.host.run();
    let faults = [
        (Fault::Stall, "sent nothing for 0.3 s"),
        (Fault::Truncate(40), "could not reach"),
        (Fault::Status(503), "answered 503"),
    ];
    for (fault, said) in faults {
        world.origin.fail(fault);
        world.host.await_status(said, |status| {
            status["failure"]["detail"].as_str().is_some_and(|detail| detail.contains(said))
        });
    }
    world.origin.fail(Fault::None);
    world.host.await_serving(&good);
}

#[test]
fn an_origin_that_trickles_is_given_up_at_the_total_deadline() {
    // Neither of the other deadlines can fire: bytes come every few milliseconds.
    let git = "branch = \"main\"\nstall_s = 5\ntotal_s = 1\n";
    let mut world = World::with(Kind::Plain, git, "");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let next = world.commit_good();
    world.origin.fail(Fault::Trickle(1));
    world.host.target(&next);
    let status = world.host.await_status("two fetches to be given up", |status| {
        status["failure"]["attempt"].as_u64() >= Some(2)
    });
    assert_eq!(status["failure"]["cause"], "fetch");
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("took longer than 1 s"), "{detail}");
    assert_eq!(status["serving"], good.as_str());
    assert_eq!(world.host.served().as_ref(), Some(&good), "nothing live was touched");
    world.origin.fail(Fault::None);
    world.host.await_serving(&next);
}

#[test]
fn a_broken_cache_is_made_anew() {
    for branch in ["branch = \"main\"\n", ""] {
        let mut world = World::with(Kind::Plain, branch, "");
        let good = world.commit_good();
        world.host.target(&good);
        world.host.run();
        world.host.await_serving(&good);
        let cache = world.host.dir().join(".towline/git");
        fs::remove_file(cache.join("HEAD")).unwrap();
        fs::write(cache.join("config.lock"), "").unwrap();
        let next = world.commit_good();
        world.host.target(&next);
        world.host.await_serving(&next);
        assert!(cache.with_extension("broken").exists());
        for entry in fs::read_dir(cache.join("objects/pack")).unwrap() {
            fs::write(entry.unwrap().path(), "").unwrap();
        }
        let next = world.commit_good();
        world.host.target(&next);
        world.host.await_serving(&next);
        for entry in fs::read_dir(cache.join("objects/pack")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "pack") {
                let half = fs::metadata(&path).unwrap().len() / 2;
                fs::remove_file(&path).map(|()| half).unwrap();
                fs::write(&path, vec![0x50; usize::try_from(half).unwrap()]).unwrap();
            }
        }
        let next = world.commit_good();
        world.host.target(&next);
        world.host.await_serving(&next);
        fs::write(cache.join("shallow"), "no commit, and no list of any").unwrap();
        let next = world.commit_good();
        world.host.target(&next);
        world.host.await_serving(&next);
    }
}

/// Lines of `[git]` that name further addresses.
fn mirrors<'a>(urls: impl IntoIterator<Item = &'a str>) -> String {
    urls.into_iter().map(|url| format!("[[git.mirrors]]\nurl = {url:?}\n")).collect()
}

#[test]
fn mirrors_are_asked_in_turn_and_get_no_credential_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (mute, behind, whole) = (Origin::start(), Origin::start(), Origin::start());
    for origin in [&mute, &behind, &whole] {
        drop(origin.repository("web.git"));
    }
    let url = |origin: &Origin| format!("{}/web.git", origin.base());
    let urls = [url(&mute), url(&behind), url(&whole)];
    let git = format!(
        "{}stall_s = 0.5\n{}",
        credential(&dir, "bot:s3cret\n"),
        mirrors(urls.iter().map(String::as_str))
    );
    let mut world = World::with(Kind::Plain, &git, "");
    let sync = |world: &World, origin: &Origin| {
        let to = origin.root().join("web.git");
        world.repo.git(&["push", "-q", "--mirror", to.to_str().expect("it is text")], b"");
    };
    world.origin.require("bot:s3cret");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let asked = || [&mute, &behind, &whole].map(Origin::requests);
    assert_eq!(asked(), [0; 3], "the first address has it");

    sync(&world, &behind);
    let next = world.commit_good();
    for origin in [&mute, &whole] {
        sync(&world, origin);
    }
    world.origin.fail(Fault::Down);
    mute.fail(Fault::Stall);
    world.host.target(&next);
    world.host.await_serving(&next);
    assert!(asked().iter().all(|requests| *requests > 0), "{:?}", asked());
    for origin in [&mute, &behind, &whole] {
        let sent = origin.authorisations();
        assert!(sent.iter().all(Option::is_none), "{sent:?}");
    }
    let log = world.host.log();
    for said in ["could not reach", "sent nothing for 0.5 s", "is not on the branch main"] {
        assert!(log.contains(said), "{said}: {log}");
    }

    // And where none gives it, each is told of.
    whole.fail(Fault::Status(503));
    let last = world.commit_good();
    world.host.target(&last);
    let status = world
        .host
        .await_status("all to fail", |status| status["failure"]["revision"] == last.as_str());
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("none of the 4 addresses gave it"), "{detail}");
    for origin in [&world.origin, &mute, &behind, &whole] {
        assert!(detail.contains(&origin.base()), "{detail}");
    }
    world.origin.fail(Fault::None);
    world.host.await_serving(&last);
}

#[test]
fn a_slow_first_address_leaves_time_for_its_mirror() {
    let mirror = Origin::start();
    let other = mirror.repository("web.git");
    let git = format!("branch = \"main\"\ntotal_s = 4\n{}", mirrors([mirror.url(&other).as_str()]));
    let mut world = World::with(Kind::Plain, &git, "");
    let good = world.commit_good();
    world.repo.git(&["push", "-q", "--mirror", other.dir().to_str().unwrap()], b"");
    // Each byte within the stall deadline, and all of them never.
    world.origin.fail(Fault::Trickle(1));
    world.host.target(&good);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("took longer than 2 s"), "{log}");
}

/// Spoils the bytes of a committed file in the cache; what it is and how large stays legible.
fn damage(world: &World, revision: &str, path: &str) {
    let cache = world.host.dir().join(".towline/git");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&cache).args(arguments).output();
        let output = output.expect("git is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it is text")
    };
    let id = git(&["rev-parse", &format!("{revision}:{path}")]);
    let packs = fs::read_dir(cache.join("objects/pack")).expect("the cache has packs");
    let packs = packs.map(|entry| entry.expect("ours").path());
    let mut damaged = 0;
    for index in packs.filter(|path| path.extension().is_some_and(|kind| kind == "idx")) {
        let objects = git(&["verify-pack", "-v", index.to_str().expect("it is text")]);
        // Id, kind, size, size in the pack, offset.
        let Some(object) = objects.lines().find(|line| line.starts_with(id.trim())) else {
            continue;
        };
        let number = |at: usize| -> u64 {
            object.split_whitespace().nth(at).and_then(|word| word.parse().ok()).expect("a number")
        };
        let pack = index.with_extension("pack");
        fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let file = fs::File::options().write(true).open(&pack).expect("it is ours");
        // The second half of it.
        let (from, to) = (number(4) + number(3) / 2, number(4) + number(3));
        let spoilt = vec![0xff; usize::try_from(to - from).expect("it is small")];
        file.write_all_at(&spoilt, from).expect("it is ours");
        damaged += 1;
    }
    assert!(damaged > 0, "{path} is in a pack");
}

#[test]
fn a_cache_with_a_damaged_file_heals() {
    // The recipe is read first, a small file while the tree is walked, a large one when it is written.
    let large: String = (0..2_000).map(|number| format!("line {number}\n")).collect();
    for path in ["towline.toml", "parent.txt", "large.txt"] {
        let mut world = World::new(Kind::Plain);
        let good = world.commit_with(|files| {
            files.push(("large.txt".to_owned(), large.clone().into_bytes(), false));
        });
        world.host.target(&good);
        let (code, said) = world.host.once();
        assert_eq!(code, 0, "{said}");
        world.host.kill_app();
        damage(&world, &good, path);
        let dir = world.host.dir();
        fs::remove_file(dir.join("current")).unwrap();
        fs::remove_file(dir.join("releases").join(format!("{good}.json"))).unwrap();
        fs::remove_dir_all(dir.join("releases").join(&good)).unwrap();
        world.host.run();
        world.host.await_serving(&good);
        assert!(world.host.log().contains("could not read"), "the damage was met: {path}");
    }
}

#[test]
fn a_verified_branch_refuses_commits_that_are_not_on_it() {
    let git = "branch = \"main\"\nverify_branch = true\n";
    let mut world = World::with(Kind::Plain, git, "");
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    // The server gives it by its id, and it is on no branch.
    let stray = world.commit_good();
    world.repo.point("main", &good);
    world.host.target(&stray);
    let status = world.host.await_status("the stray commit to be refused", |status| {
        status["failure"]["revision"] == stray.as_str()
    });
    assert!(status["failure"]["detail"].as_str().unwrap().contains("is not on the branch main"));
    assert_eq!(world.host.served().as_ref(), Some(&good));
}

#[test]
fn without_a_branch_an_origin_that_gives_nothing_by_its_id_is_told_with_what_to_set() {
    let mut world = World::with(Kind::Plain, "", "");
    world.repo.give_any_commit(false);
    let good = world.commit_good();
    world.commit_good();
    world.host.target(&good);
    let (code, log) = world.host.once();
    assert_eq!(code, 75, "{log}");
    assert!(log.contains("set git.branch"), "{log}");
}

#[test]
fn a_list_of_refs_without_end_is_given_up_and_costs_bounded_memory() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.origin.fail(Fault::EndlessRefs);
    world.host.target(&good);
    world.host.run();
    world.host.await_status("the list to be given up", |status| {
        let detail = status["failure"]["detail"].as_str();
        detail.is_some_and(|detail| detail.contains("lists more than 64 MiB of refs"))
    });
    let status = format!("/proc/{}/status", world.host.agent_pid());
    let status = fs::read_to_string(status).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 400 * 1024, "{kib} KiB");
    world.origin.fail(Fault::None);
    world.host.await_serving(&good);
}

#[test]
fn the_id_of_a_tag_is_told_from_a_broken_cache() {
    let (mut world, good) = World::serving(Kind::Plain);
    let next = world.commit_good();
    let tag = format!("object {next}\ntype commit\ntag v1\ntagger a <a@b> 1 +0000\n\none\n");
    let tag = world.repo.git(&["mktag"], tag.as_bytes()).trim().to_owned();
    world.repo.git(&["update-ref", "refs/tags/v1", &tag], b"");
    world.host.target(&tag);
    let status = world.host.await_status("the tag to be refused", |status| {
        status["failure"]["revision"] == tag.as_str()
    });
    assert_eq!(status["failure"]["cause"], "refused", "{status:#}");
    let detail = status["failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("is a tag, not a commit") && detail.contains("rev-parse"), "{detail}");
    assert!(!world.host.dir().join(".towline/git.broken").exists(), "nothing is broken");
    assert_eq!(world.host.served().as_ref(), Some(&good));
    world.host.target(&next);
    world.host.await_serving(&next);
}
