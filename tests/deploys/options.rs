//! Addresses, branches and revisions that some program might take for its options.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use serde_json::json;
use towline_tests::app::Kind;

use super::World;

/// The names in the app's directory.
fn names(world: &World) -> BTreeSet<OsString> {
    let dir = fs::read_dir(world.host.dir()).expect("it is ours");
    dir.map(|entry| entry.expect("it can be read").file_name()).collect()
}

#[test]
fn addresses_and_branches_that_look_like_options_end_the_start_with_78() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    let before = names(&world);
    let url = format!("url = {:?}", world.origin.url(&world.repo));
    let branch = "branch = \"main\"".to_owned();
    let cases = [
        (&url, "url = \"--upload-pack=touch /tmp/x\"", "git.url"),
        (
            &url,
            "url = \"--upload-pack=x\"",
            "git.url \"--upload-pack=x\" is neither an https nor an ssh address",
        ),
        (&url, "url = \"-u\"", "git.url \"-u\" is neither an https nor an ssh address"),
        (&url, "url = \"ext::sh -c date\"", "git.url"),
        (&url, "url = \"ssh://-oProxyCommand=date/x\"", "git.url"),
        (&url, "url = \"file:///srv/web.git\"", "git.url"),
        (&url, "url = \"\"", "git.url"),
        (&branch, "branch = \"--foo\"", "git.branch \"--foo\" is not the name of a branch"),
        (&branch, "branch = \"-x\"", "git.branch \"-x\" is not the name of a branch"),
        (&branch, "branch = \"main:refs/heads/other\"", "git.branch"),
        (&branch, "branch = \"*\"", "git.branch"),
        (&branch, "branch = \"main --force\"", "git.branch"),
        (&branch, "branch = \"a..b\"", "git.branch"),
        (&branch, "branch = \"\"", "git.branch"),
    ];
    for (from, to, said) in cases {
        world.host.reconfigure(from, to);
        let (code, log) = world.host.once();
        assert_eq!(code, 78, "{to}: {log}");
        assert!(log.contains(said) && log.contains("hint: use"), "{to}: {log}");
        assert_eq!(names(&world), before, "{to}");
        world.host.reconfigure(to, from);
    }
    assert_eq!(world.origin.requests(), 0, "nobody was asked for anything");
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn revisions_that_are_no_full_commit_id_are_objected_to() {
    let (mut world, good) = World::serving(Kind::Plain);
    let next = world.commit_good();
    let before = names(&world);
    let requests = world.origin.requests();
    let revisions = [
        "main",
        "HEAD",
        "refs/heads/main",
        "--exec=touch x",
        "--upload-pack=x",
        "-x",
        "",
        "../../../etc",
        &next[..12],
        &next[..39],
        &format!("{next}0"),
        &format!("{next}\n"),
        &format!("-{}", &next[1..]),
    ];
    for (number, revision) in revisions.iter().enumerate() {
        for field in ["revision", "fallback"] {
            let mut target = json!({"version": 1, "group": "web", "epoch": 1,
                "generation": 9 + number, "revision": next});
            target[field] = json!(revision);
            // The objection may quote the value, so an earlier one must not pass for this one.
            world.host.write_target("{");
            world.host.await_status("no target", |status| {
                let reason = status["objection"].as_str();
                reason.is_some_and(|reason| !reason.contains("commit id"))
            });
            world.host.write_target(&target.to_string());
            let status = world.host.await_status(revision, |status| {
                let reason = status["objection"].as_str();
                reason.is_some_and(|reason| reason.contains("not a full commit id"))
            });
            let reason = status["objection"].as_str().unwrap();
            assert!(!reason.contains('\n'), "{field} {revision:?}: {reason}");
            assert_eq!(status["serving"], good.as_str(), "{field} {revision:?}");
            assert_eq!(status["target"], good.as_str(), "{field} {revision:?}");
        }
    }
    assert_eq!(world.host.served().as_ref(), Some(&good));
    assert_eq!(names(&world), before);
    assert_eq!(world.origin.requests(), requests, "nothing was fetched");
}
