//! How clones are fetched, kept within bounds, mended and removed.

use super::*;

/// Each row breaks the clone in its own way; the next answer is right all the same.
#[tokio::test]
async fn a_broken_clone_is_made_anew() {
    let world = World::new();
    let first = world.commit("refs/heads/main", "first", &[]);
    world.git(&["tag", "-a", "-m", "one", "v1", first.as_str()], "");
    let empty = |path: &Path| {
        let mut permissions = fs::metadata(path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        fs::set_permissions(path, permissions).unwrap();
        fs::write(path, "").unwrap();
    };
    let packs = |clone: &Path, end: &str| {
        let all = fs::read_dir(clone.join("objects/pack")).unwrap().map(|e| e.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|e| e == end)).collect::<Vec<_>>()
    };
    let ways: [(&str, Way<'_>); 7] = [
        ("an empty pack", &|clone| packs(clone, "pack").iter().for_each(|path| empty(path))),
        ("an empty index", &|clone| packs(clone, "idx").iter().for_each(|path| empty(path))),
        ("no pack", &|clone| {
            packs(clone, "pack").iter().for_each(|path| fs::remove_file(path).unwrap());
            packs(clone, "idx").iter().for_each(|path| fs::remove_file(path).unwrap());
        }),
        ("an object emptied by a power cut", &|clone| {
            let from = packs(clone, "pack").remove(0);
            let moved = clone.join("moved");
            fs::rename(&from, &moved).unwrap();
            for path in packs(clone, "idx") {
                fs::remove_file(path).unwrap();
            }
            let mut child = Command::new("git")
                .arg("unpack-objects")
                .current_dir(clone)
                .stdin(fs::File::open(&moved).unwrap())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            assert!(child.wait().unwrap().success());
            let id = git_in(clone, &["rev-parse", "refs/heads/main"], "");
            empty(&clone.join("objects").join(&id[..2]).join(&id[2..]));
        }),
        ("no HEAD", &|clone| fs::remove_file(clone.join("HEAD")).unwrap()),
        ("a ref of zeros", &|clone| fs::write(clone.join("refs/heads/main"), [0; 41]).unwrap()),
        ("packed refs of garbage", &|clone| {
            fs::write(clone.join("packed-refs"), "garbage").unwrap();
        }),
    ];
    let mut last = first;
    for (rule, way) in ways {
        world.refresh().await.unwrap();
        way(&world.clone());
        let is_on = world.mirror.is_on_branch(&world.url, &last, "main").await;
        let is_on = is_on.unwrap_or_else(|error| panic!("{rule}: {}", cause(&error)));
        assert!(is_on, "{rule}: what was fetched just now had to be fetched again");
        way(&world.clone());
        let next = world.commit("refs/heads/main", rule, &[&last]);
        let found = world.resolve("main").await;
        let found = found.unwrap_or_else(|error| panic!("{rule}: {}", cause(&error)));
        assert_eq!(found.revision, next, "{rule}");
        assert_eq!(world.mirror.commit(&world.url, &next).await.unwrap().subject, rule);
        last = next;
    }

    // A view does not wait for the repair, and a repair that fails takes nothing away.
    world.refresh().await.unwrap();
    let known = world.mirror.commit(&world.url, &last).await.unwrap();
    packs(&world.clone(), "pack").iter().for_each(|path| empty(path));
    let first = world.git(&["rev-list", "--max-parents=0", "main"], "").parse().unwrap();
    let error = world.mirror.distance(&world.url, &first, &last).await.unwrap_err();
    assert!(matches!(error, MirrorError::Broken { .. }) && error.is_temporary(), "{error}");
    fs::rename(world.path("origin"), world.path("away")).unwrap();
    assert!(world.refresh().await.unwrap_err().is_temporary());
    assert_eq!(world.mirror.commit(&world.url, &last).await.unwrap(), known, "remembered");
    fs::rename(world.path("away"), world.path("origin")).unwrap();
    // What is known to be broken is not left so because something was fetched just now.
    world.mirror.refresh(&world.url, Duration::from_secs(60)).await.unwrap();
    let distance = world.mirror.distance(&world.url, &first, &last).await.unwrap();
    assert_eq!(distance, Some(Distance { behind: 7, ahead: 0 }));
    world.clone();
}

#[tokio::test]
async fn what_a_killed_git_left_is_in_nobodys_way() {
    let world = World::new();
    let first = world.commit("refs/heads/main", "first", &[]);
    world.refresh().await.unwrap();
    let clone = world.clone();
    let left = [
        "packed-refs.lock",
        "HEAD.lock",
        "config.lock",
        "refs/heads/main.lock",
        "refs/heads/a/b.lock",
        "objects/pack/tmp_pack_Xy12",
        "objects/tmp_objdir-incoming-Xy12/pack/x",
    ];
    for name in left {
        let path = clone.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let next = world.commit("refs/heads/main", "next", &[&first]);
    assert_eq!(world.resolve("main").await.unwrap().revision, next);
    for name in left {
        assert!(!clone.join(name).exists(), "{name} is gone");
    }
    // Half a clone of a run that was killed is not taken for one.
    let half = clone.with_extension("new");
    fs::rename(&clone, &half).unwrap();
    fs::remove_dir_all(half.join("refs")).unwrap();
    assert_eq!(world.resolve("main").await.unwrap().revision, next);
    world.clone();
}

#[tokio::test]
async fn who_comes_during_a_fetch_shares_it() {
    let world = World::with(counting);
    let first = world.commit("refs/heads/main", "first", &[]);
    let all = tokio::join!(world.refresh(), world.refresh(), world.refresh());
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok());
    assert_eq!(world.fetches(), 1);
    world.refresh().await.unwrap();
    assert_eq!(world.fetches(), 2, "the next one is a fetch of its own");
    let names = tokio::join!(world.resolve("main"), world.resolve("main"));
    assert_eq!((&names.0.unwrap().revision, &names.1.unwrap().revision), (&first, &first));
    assert!(world.fetches() <= 4);
    world.resolve(first.as_str()).await.unwrap();
    world.resolve(&first.as_str()[..8]).await.unwrap();
    assert!(world.fetches() <= 4, "what is known is not fetched for");
}

/// Starts git that hangs in a fetch beside a child of its own, and writes both pids.
fn hanging(config: &mut MirrorConfig, timeout: Duration) {
    let dir = config.dir.parent().unwrap().to_owned();
    config.git = dir.join("git");
    config.fetch_timeout = timeout;
    let pids = dir.join("pids").display().to_string();
    let text = format!(
        "case $1 in fetch)\n sleep 1000 & echo $! $$ > {pids}.new\n mv {pids}.new {pids}\n \
         wait;;\nesac\nexec git \"$@\""
    );
    program(&config.git, &text);
}

/// Waits until none of the processes runs any more.
async fn assert_ended(pids: &Path) {
    let pids = fs::read_to_string(pids).expect("it had begun");
    for pid in pids.split_whitespace() {
        let runs = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("Z", |(_, rest)| &rest[..1]).to_owned();
            state != "Z" && state != "X"
        };
        let ended = async {
            while runs() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it was killed");
    }
}

#[tokio::test]
async fn a_fetch_that_hangs_is_ended_with_its_children() {
    let world = World::with(|config| hanging(config, Duration::from_secs(2)));
    world.commit("refs/heads/main", "first", &[]);
    let ended = tokio::time::timeout(Duration::from_secs(60), world.refresh()).await;
    let error = ended.expect("it was ended at its deadline").unwrap_err();
    assert!(matches!(error, MirrorError::TimedOut { .. }) && error.is_temporary(), "{error}");
    assert_ended(&world.path("pids")).await;
}

#[tokio::test]
async fn a_fetch_that_nobody_waits_for_is_ended_with_its_children() {
    let world = World::with(|config| hanging(config, Duration::from_secs(600)));
    let first = world.commit("refs/heads/main", "first", &[]);
    let pids = world.path("pids");
    let begun = async {
        while !pids.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = world.refresh() => panic!("it hangs: {ended:?}"),
        () = begun => {}
    }
    // Nobody may write until the first one is gone.
    program(&world.path("git"), "exec git \"$@\"");
    assert_eq!(world.resolve("main").await.unwrap().revision, first);
    assert_ended(&pids).await;
}

#[tokio::test]
async fn large_things_stay_within_bounds() {
    // A first fetch makes a file for each ref, which takes a busy disk half a minute.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let world = World::within(dir, |_| {});
    let (mirror, url) = (&world.mirror, world.url.as_str());
    let first = world.commit("refs/heads/main", "first", &[]);
    // Written at once: git would make a file of each first.
    let refs: String =
        (0..10_000).map(|n| format!("{first} refs/heads/release/{n:04}\n")).collect();
    let head = "# pack-refs with: peeled fully-peeled sorted \n";
    fs::write(world.path("origin/packed-refs"), format!("{head}{refs}")).unwrap();
    let huge = format!("\u{1b}[2Jhuge\u{7}\n\n{}", "all work and no play\n".repeat(500_000));
    let huge = world.commit("refs/heads/main", &huge, &[&first]);
    let wide = world.commit("refs/heads/main", &"wide ".repeat(500_000), &[&huge]);
    assert_eq!(world.resolve("release/9999").await.unwrap().revision, first);
    let error = world.resolve("release/none").await.unwrap_err();
    assert!(cause(&error).len() < 1000, "{error}");
    assert!(world.resolve("release").await.is_err(), "a folder of branches is no branch");
    let all = [first.clone(), huge.clone(), wide.clone()];
    let described = mirror.describe(url, &all, None).await.unwrap();
    assert_eq!(described[&first].commit.subject, "first");
    assert_eq!(described[&huge].commit.subject, "\u{fffd}[2Jhuge\u{fffd}");
    assert_eq!(described[&wide].commit.subject.chars().count(), 200);
    let distance = mirror.distance(url, &first, &wide).await.unwrap();
    assert_eq!(distance, Some(Distance { behind: 2, ahead: 0 }));
}

#[tokio::test]
async fn many_packs_become_few() {
    let world = World::new();
    let first = world.commit("refs/heads/main", "first", &[]);
    world.refresh().await.unwrap();
    let clone = world.clone();
    for number in 0..60 {
        let id = git_in(&clone, &["hash-object", "-w", "--stdin"], &number.to_string());
        git_in(&clone, &["pack-objects", "--quiet", "objects/pack/pack"], &id);
    }
    world.refresh().await.unwrap();
    let packs = fs::read_dir(clone.join("objects/pack")).unwrap();
    let count = packs.filter(|e| e.as_ref().unwrap().path().extension().unwrap() == "pack").count();
    assert!(count < 10, "{count} packs");
    assert_eq!(world.mirror.commit(&world.url, &first).await.unwrap().subject, "first");
}

#[tokio::test]
async fn objects_that_gits_checks_refuse_do_not_come_in() {
    let world = World::new();
    let first = world.commit("refs/heads/main", "first", &[]);
    world.refresh().await.unwrap();
    let blob = world.git(&["hash-object", "-w", "--stdin"], "x");
    let inner = world.git(&["mktree"], &format!("100644 blob {blob}\tconfig\n"));
    let tree = world.git(&["mktree"], &format!("040000 tree {inner}\t.GIT\n"));
    let id = world.git(&["commit-tree", "-p", first.as_str(), "-m", "evil", &tree], "");
    world.git(&["update-ref", "refs/heads/main", &id], "");
    let error = world.refresh().await.unwrap_err();
    assert!(matches!(error, MirrorError::Unsound { .. }), "{}", cause(&error));
    assert!(!error.is_temporary() && error.hint().is_some());
    assert!(world.resolve(&id).await.is_err());
    assert_eq!(world.resolve(first.as_str()).await.unwrap().revision, first);
}

#[tokio::test]
async fn git_runs_in_surroundings_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (token, seen) = (dir.path().join("token"), dir.path().join("seen"));
    fs::write(&token, "hunter2\n").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    fs::set_permissions(&token, private).unwrap();
    let git = dir.path().join("git");
    let text = format!(
        "[ $1 = version ] && exec git version\n[ $1 = fetch ] || exec git \"$@\"\n\
         {{ echo ARGUMENTS \"$@\"; env; }} > {}\n\
         echo 'fatal: no, hunter2 for https://bot:hunter2@git.example/' >&2\nexit 128",
        seen.display()
    );
    program(&git, &text);
    let mut config = MirrorConfig::new(dir.path().join("mirror"));
    config.git = git;
    config.credentials =
        vec![Credential { host: "git.example".to_owned(), secret: Secret::read(&token).unwrap() }];
    config.environment = vec![
        ("SSH_AUTH_SOCK".to_owned(), "/run/agent".to_owned()),
        ("GIT_EXEC_PATH".to_owned(), "/evil".to_owned()),
        ("LD_PRELOAD".to_owned(), "/evil.so".to_owned()),
    ];
    let mirror = Mirror::new(config).unwrap();
    // hunter2, as `x-access-token:hunter2` in base64.
    let encoded = "eC1hY2Nlc3MtdG9rZW46aHVudGVyMg==";
    for (url, gets) in [
        ("https://git.example/acme/web.git", true),
        ("https://evil.example/acme/web.git", false),
        ("http://git.example/acme/web.git", false),
        ("git@git.example:acme/web.git", false),
    ] {
        let error = mirror.refresh(url, NOW).await.unwrap_err();
        let said = format!("{} {:?} {error:?} {mirror:?}", cause(&error), error.hint());
        assert!(!said.contains("hunter2") && !said.contains(encoded), "{said}");
        let seen = fs::read_to_string(&seen).unwrap();
        assert_eq!(seen.contains(encoded), gets, "{url}");
        let arguments = seen.lines().next().unwrap();
        assert!(!arguments.contains(encoded) && !arguments.contains("hunter2"));
        assert!(arguments.contains(&format!("--end-of-options {url} +refs/heads/*:")));
        for line in [
            "GIT_CONFIG_NOSYSTEM=1",
            "GIT_CONFIG_GLOBAL=/dev/null",
            "GIT_NO_REPLACE_OBJECTS=1",
            "GIT_ALLOW_PROTOCOL=https:http:ssh",
            "GIT_TERMINAL_PROMPT=0",
            "LC_ALL=C",
            "SSH_AUTH_SOCK=/run/agent",
        ] {
            assert!(seen.lines().any(|found| found == line), "{line}");
        }
        assert!(seen.contains("BatchMode=yes") && seen.contains("StrictHostKeyChecking=yes"));
        for foreign in ["GIT_EXEC_PATH", "LD_PRELOAD", "CARGO_MANIFEST_DIR"] {
            assert!(!seen.contains(foreign), "{foreign}");
        }
    }
    for url in [
        "--upload-pack=touch /tmp/x",
        "ext::sh -c date",
        "ext::sh",
        "file:///srv/git/web.git",
        "/srv/git/web.git",
        "git://git.example/web.git",
        "https://git.example/a b",
    ] {
        let error = mirror.refresh(url, NOW).await.unwrap_err();
        assert!(matches!(error, MirrorError::Address { .. }), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_git_that_is_missing_or_old_is_told() {
    let world = World::with(|config| config.git = "/no/such/git".into());
    let error = world.refresh().await.unwrap_err();
    assert!(matches!(error, MirrorError::Start { .. }), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("install git")));
    let world = World::with(|config| {
        config.git = config.dir.parent().unwrap().join("git");
        program(&config.git, "echo git version 2.20.1");
    });
    let error = world.mirror.check().await.unwrap_err();
    assert!(matches!(error, MirrorError::TooOld { .. }), "{error}");
    assert!(!error.is_temporary() && error.to_string().contains("2.20.1"));
}

#[tokio::test]
async fn clones_that_no_group_names_are_removed_and_none_that_somebody_is_at() {
    let world = World::new();
    let first = world.commit("refs/heads/main", "first", &[]);
    world.refresh().await.unwrap();
    fs::create_dir(world.path("mirror").join("notes")).unwrap();
    let entries = || fs::read_dir(world.path("mirror")).unwrap().count();
    let (named, none) = (BTreeSet::from([world.url.clone()]), BTreeSet::new());
    assert_eq!(world.mirror.keep_only(&named).unwrap(), 0);
    assert_eq!(world.mirror.commit(&world.url, &first).await.unwrap().subject, "first");
    let at_it = world.mirror.repository(&world.url).unwrap();
    assert_eq!(world.mirror.keep_only(&none).unwrap(), 0, "somebody is at it");
    drop(at_it);
    assert_eq!((world.mirror.keep_only(&none).unwrap(), entries()), (1, 1));
    let error = world.mirror.commit(&world.url, &first).await.unwrap_err();
    assert!(matches!(error, MirrorError::Empty { .. }), "{error}");
    assert_eq!(world.resolve("main").await.unwrap().revision, first, "it is cloned anew");
    // One of an earlier run, and what a removal left that was cut off.
    for left in ["0123456789abcdef.git", "0123456789abcdef-git.gone"] {
        fs::create_dir(world.path("mirror").join(left)).unwrap();
    }
    assert_eq!(world.mirror.keep_only(&named).unwrap(), 1);
    assert_eq!(world.mirror.keep_only(&named).unwrap(), 1, "one after the other");
    assert_eq!(entries(), 2, "the clone, and what is none of ours");
}

#[tokio::test]
async fn a_clone_on_its_way_is_not_removed() {
    let world = World::with(|config| hanging(config, Duration::from_secs(600)));
    world.commit("refs/heads/main", "first", &[]);
    let begun = async {
        while !world.path("pids").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.mirror.keep_only(&BTreeSet::new()).unwrap()
    };
    tokio::select! {
        ended = world.refresh() => panic!("it hangs: {ended:?}"),
        removed = begun => assert_eq!(removed, 0),
    }
    assert_ended(&world.path("pids")).await;
}

#[tokio::test]
async fn nothing_is_fetched_where_there_is_too_little_room() {
    let world = World::with(|config| config.free_mib = u64::MAX);
    world.commit("refs/heads/main", "first", &[]);
    let error = world.refresh().await.unwrap_err();
    assert!(matches!(error, MirrorError::Full { .. }) && error.is_temporary(), "{error}");
    assert!(error.to_string().contains("mirror.free_mib"), "{error}");
    assert!(error.hint().unwrap().contains("free some space"));
    let error = world.resolve("main").await.unwrap_err();
    assert!(!error.is_about_name(), "the name is not to blame: {error}");
    let space = Space { dir: world.path("mirror"), free_mib: u64::MAX };
    let ended = tokio::time::timeout(Duration::from_secs(60), space.used_up()).await;
    assert!(matches!(ended.unwrap(), MirrorError::Full { .. }), "nor is it gone on with");
}
