//! Hooks before and after a release is made live.

use serde_json::json;

use super::*;

/// Each hook tells what it sees in `hooks`, and ends as it is told.
fn hooked(world: &World, before: &str, after: &str) -> impl Fn(&mut Files) + use<> {
    let run = world.shared_run();
    let (before, after) = (before.to_owned(), after.to_owned());
    move |files| {
        add(
            files,
            "[hooks]\nbefore = [\"./bin/before\"]\nafter = [\"./bin/after\"]\ntimeout_s = 3",
        );
        let run = run.display();
        let tell = |name: &str, end: &str| {
            format!(
                "live=$(basename \"$(readlink {run}/../../current)\" 2>/dev/null || true)\n\
                 echo \"{name} $TOWLINE_REVISION ${{TOWLINE_PREVIOUS-none}} $live $PWD $TOWLINE_GROUP \
                 $TOWLINE_INSTANCE\" >>{run}/hooks\n{end}"
            )
        };
        script(files, "before", &tell("before", &before));
        script(files, "after", &tell("after", &after));
    }
}

fn told(world: &World, name: &str, revision: &str, previous: &str, live: &str) -> String {
    let dir = world.host.dir();
    let place =
        if name == "before" { format!("releases/{revision}") } else { "current".to_owned() };
    let place = dir.join(place);
    format!("{name} {revision} {previous} {live} {} web i-test", place.display())
}

#[test]
fn hooks_run_around_the_swap_of_a_deploy_and_not_when_it_is_undone() {
    let mut world = World::new(Kind::Plain);
    let edit = hooked(&world, "", "");
    let first = world.commit_with(&edit);
    world.host.target(&first);
    world.host.run();
    world.host.await_serving(&first);
    let second = world.commit_with(&edit);
    world.deploy(&second);
    let mut expected = vec![
        told(&world, "before", &first, "none", ""),
        told(&world, "after", &first, "none", &first),
        told(&world, "before", &second, &first, &first),
        told(&world, "after", &second, &first, &second),
    ];
    assert_eq!(world.written("hooks"), expected);

    let bad = world.commit_with(|files| {
        edit(files);
        unhealthy(files);
    });
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    expected.push(told(&world, "before", &bad, &second, &second));
    expected.push(told(&world, "after", &bad, &second, &bad));
    world.host.await_serving(&second);
    // A restart is none either.
    world.host.target_with(&second, json!({"restart": 1}));
    let generation = world.host.generation();
    world.host.await_status("the restart", |status| {
        status["order"]["generation"] == generation
            && status["restart"] == 1
            && status["phase"] == "idle"
    });
    assert_eq!(world.written("hooks"), expected, "what is restored or restarted runs none");
}

#[test]
fn a_hook_before_that_fails_rejects_the_revision_and_touches_nothing() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let workers = world.host.processes("server.js");
    for (end, said) in [("echo no such table; exit 4", "no such table"), ("sleep 60", "within 3 s")]
    {
        let edit = hooked(&world, end, "");
        let bad = world.commit_with(edit);
        let failure = world.fail(&bad);
        assert_eq!(failure["cause"], "activate", "{failure}");
        let detail = failure["detail"].as_str().unwrap();
        assert!(detail.contains("hooks.before `./bin/before`"), "{detail}");
        let log = world.host.log();
        assert!(detail.contains(said) || log.contains(said), "{said}: {detail}\n{log}");
        let status = world.host.await_serving(&good);
        assert_eq!(status["rejected"], true, "{status:#}");
        assert_eq!(world.host.current().as_ref(), Some(&good));
    }
    assert_eq!(world.host.processes("server.js"), workers, "not even reloaded");
    assert_eq!(world.written("hooks").len(), 2, "each was tried once");
    // The next one is none the worse for it.
    let next = world.commit_with(hooked(&world, "", ""));
    world.deploy(&next);
}

#[test]
fn a_hook_after_that_fails_is_the_end_of_its_release() {
    let mut world = World::new(Kind::Plain);
    let good = world.commit_good();
    world.host.target(&good);
    world.host.run();
    world.host.await_serving(&good);
    let edit = hooked(&world, "", "exit 5");
    let bad = world.commit_with(edit);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "activate", "{failure}");
    assert!(failure["detail"].as_str().unwrap().contains("hooks.after"), "{failure}");
    world.host.await_serving(&good);
    assert_eq!(world.host.served(), Some(good));
    assert_eq!(world.written("hooks").len(), 2);
}

/// What they see is what every command of the app sees, and no more; and they leave nothing.
#[test]
fn hooks_see_nothing_of_the_agent_and_cannot_write_releases() {
    let mut world = World::new(Kind::Plain);
    let run = world.shared_run();
    let run = run.display();
    let look = format!(
        "env | cut -d= -f1 | sort >{run}/env; ls /proc/self/fd | sort -n >{run}/fds\n\
         (touch new || touch ../new || touch {run}/../../.towline/x || ls {run}/../../.towline) \
         2>/dev/null && [ \"$(id -un)\" = nobody ] && exit 9\nsetsid sleep 600 &"
    );
    world.host.add_environment(vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "canary".to_owned())]);
    let edit = hooked(&world, &look, "");
    let first = world.commit_with(edit);
    world.host.target(&first);
    world.host.run();
    world.host.await_serving(&first);
    let names = world.written("env");
    let own = ["TOWLINE_GROUP", "TOWLINE_INSTANCE", "TOWLINE_REVISION"];
    assert!(own.iter().all(|name| names.iter().any(|own| own == name)), "{names:?}");
    let known =
        ["HOME", "LANG", "LC_ALL", "LOGNAME", "NODE_EXTRA_CA_CERTS", "HTTPS_PROXY", "https_proxy"];
    let more =
        ["PATH", "PWD", "TZ", "USER", "TOWLINE_CHILD", "TOWLINE_JOB", "OLDPWD", "SHLVL", "_"];
    let is_known = |name: &&String| {
        !own.iter().chain(&known).chain(&more).any(|known| *known == name.as_str())
    };
    let strange: Vec<&String> = names.iter().filter(is_known).collect();
    assert!(strange.is_empty(), "{strange:?}");
    // 3 is that of `ls` itself.
    assert_eq!(world.written("fds"), ["0", "1", "2", "3"]);
    let left = world.host.processes("sleep");
    assert!(left.is_empty(), "{left:?}");
}
