//! A process of the app's user that swaps files, folders and links under root's hands.
//!
//! ```text
//!   swapper (the app's user) ──► exchanges what it owns with links to what is root's, without a pause
//!   agent (root)             ──► lays out, checks, seals, links, shares, empties, logs
//!   bait (root's, 0600)      ──► neither changed nor read
//! ```

use std::fs;
use std::io::BufRead;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use towline_tests::app::Kind;

use super::privileges::is_root;
use super::{World, amend};

const BAIT: &str = "root's own: 5d1f0c37";

/// What the log of an app is emptied at.
const LOG_BYTES: usize = 11 << 20;

/// How many files an install is given, and makes.
const FILES: usize = 200;

/// Attacks for as long as it lives. Arguments: the attack, the app's directory, the bait's directory.
const SWAPPER: &str = r#"
import ctypes, os, sys
attack, dir, bait = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *args):
    try: return action(*args)
    except OSError: return None
def exchange(path, target):
    other = path + '.swap'
    attempt(os.symlink, target, other)
    for _ in range(3):
        libc.renameat2(-100, os.fsencode(path), -100, os.fsencode(other), 2)
work = dir + '/staging/install/install'
sealed = dir + '/staging/install/sealed'
held = None
print('ready', flush=True)
while True:
    if attack == 'inputs':
        # A link is there before root comes to write the file.
        for n in range(200, 0, -1):
            attempt(os.symlink, bait + '/file', f'{work}/inputs/{n}')
    elif attack == 'outputs' and os.path.isdir(sealed):
        # Once the command has ended: what was looked at is not what is read.
        for place in (work, sealed):
            exchange(place + '/made/folder', bait)
            exchange(place + '/made/tool', bait + '/tool')
            for n in range(200, 0, -7):
                exchange(f'{place}/made/many/{n}', bait + '/file')
    elif attack == 'writer':
        if held is None:
            held = attempt(os.open, work + '/made/held', os.O_RDWR)
            if held is not None:
                before = set(os.listdir(dir + '/dependencies'))
                open(dir + '/shared/run/held', 'w').close()
        elif any(name.endswith('.json') for name in set(os.listdir(dir + '/dependencies')) - before):
            # What was checked is in the store by now.
            attempt(os.pwrite, held, b'TAMPERED', 0)
    elif attack == 'shared':
        exchange(dir + '/shared/data/deep', bait)
    elif attack == 'log':
        exchange(dir + '/log/app.log', bait + '/log')
    elif attack == 'cache':
        exchange(dir + '/cache/npm', bait)
    elif attack == 'pid':
        exchange(dir + '/shared/run/app.pid', bait + '/file')
"#;

/// The attacks, each against what root does with one place.
const ATTACKS: &[&str] = &["inputs", "outputs", "writer", "shared", "log", "cache", "pid"];

/// Ended when it is dropped.
struct Swapper(Child);

impl Swapper {
    fn start(attack: &str, dir: &Path, bait: &Path) -> Self {
        let user =
            User::from_name("nobody").expect("accounts can be read").expect("every system has it");
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", SWAPPER, attack]).args([dir, bait]).current_dir("/");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it is installed");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was piped");
        std::io::BufReader::new(output).read_line(&mut line).expect("it says when it is ready");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_none()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// All that could be changed of a file: path, owner, group, mode, names, content.
type Seen = (PathBuf, u32, u32, u32, u64, Vec<u8>);

/// Everything that lies at and below `path`; links are not followed.
fn seen(path: &Path) -> Vec<Seen> {
    let found = fs::symlink_metadata(path).expect("it can be read");
    let content =
        if found.is_file() { fs::read(path).expect("it can be read") } else { Vec::new() };
    let names = if found.is_file() { found.nlink() } else { 0 };
    let mut all = vec![(path.to_owned(), found.uid(), found.gid(), found.mode(), names, content)];
    if found.is_dir() {
        let mut paths: Vec<PathBuf> = fs::read_dir(path)
            .expect("it can be read")
            .map(|entry| entry.expect("it can be read").path())
            .collect();
        paths.sort();
        all.extend(paths.iter().flat_map(|path| seen(path)));
    }
    all
}

/// Fails where two looks at the bait differ.
fn assert_same(before: &[Seen], path: &Path, rule: &str) {
    let shown = |all: &[Seen]| -> Vec<String> {
        let line = |(path, uid, gid, mode, names, content): &Seen| {
            format!("{} {uid}:{gid} {mode:o} {names} {} bytes", path.display(), content.len())
        };
        all.iter().map(line).collect()
    };
    let now = seen(path);
    assert_eq!(shown(before), shown(&now), "{rule}");
    assert!(before == now, "{rule}: a content has changed");
}

/// Fails where a file below `dir` holds `text`.
fn assert_not_read(dir: &Path, text: &str, rule: &str) {
    for (path, _, _, _, _, content) in seen(dir) {
        let held = content.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!held, "{rule}: {} holds {text:?}", path.display());
    }
}

/// Lays out what root alone may read and change.
fn lay_bait(dir: &Path) -> PathBuf {
    let bait = dir.join("bait");
    fs::create_dir_all(bait.join("folder")).expect("a new directory of ours");
    let log = BAIT.repeat(LOG_BYTES / BAIT.len());
    for (name, text) in
        [("file", BAIT), ("tool", BAIT), ("folder/leaf", BAIT), ("other", BAIT), ("log", &log)]
    {
        fs::write(bait.join(name), text).expect("a new directory of ours");
        fs::set_permissions(bait.join(name), fs::Permissions::from_mode(0o600))
            .expect("a new directory of ours");
    }
    // Files with two names are copied out of an installed tree.
    fs::hard_link(bait.join("other"), bait.join("folder/other")).expect("a new directory of ours");
    bait
}

/// A recipe whose install is given many files, and whose outputs are names of them.
fn commit(world: &mut World, number: usize) -> String {
    let run = world.host.dir().join("shared/run");
    let command = format!(
        "mkdir -p made/many made/folder \"$npm_config_cache\"; cp lock.txt made; echo fine >made/tool; chmod \
         755 made/tool; echo fine >made/folder/leaf; for n in $(seq {FILES}); do ln inputs/$n made/many/$n; \
         done; if [ -e {0}/hold ]; then echo untouched >made/held; n=0; while [ ! -e {0}/held ] && [ $n \
         -lt 500 ]; do n=$((n+1)); sleep 0.01; done; fi",
        run.display()
    );
    world.commit_with(|files| {
        files.push(("lock.txt".to_owned(), number.to_string().into_bytes(), false));
        files.extend(
            (1..=FILES).map(|n| (format!("inputs/{n}"), format!("{n}\n").into_bytes(), false)),
        );
        let install = format!(
            "[install]\ncommand = [\"sh\", \"-c\", {command:?}]\ninputs = [\"lock.txt\", \
             \"inputs\"]\noutputs = [\"made\"]\n\n[manager]"
        );
        amend(files, "towline.toml", "[manager]", &install);
        let dirs = format!("dirs = [\"run\", \"data/deep/x{number}\"]");
        amend(files, "towline.toml", "dirs = [\"run\"]", &dirs);
        amend(files, "towline.toml", "timeout_s = 8", "timeout_s = 3");
    })
}

/// How often each attack is tried.
fn rounds() -> usize {
    if std::env::var_os("TOWLINE_ALL").is_some() { 20 } else { 1 }
}

#[test]
fn swaps_by_the_apps_user_change_nothing_of_roots_and_have_nothing_of_it_read() {
    if !is_root("swaps by the app's user") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bait = lay_bait(dir.path());
    let before = seen(&bait);
    let mut world = World::new(Kind::Plain);
    world.host.reconfigure("free_mib = 16", "free_mib = 16\npackage_cache_mib = 0");
    let root = world.host.dir();
    let user = User::from_name("nobody").unwrap().expect("every system has it");
    // Host config allows both to be the app's, as they were with whatever deployed before.
    for place in ["shared/data", "shared/data/deep", "log"] {
        fs::create_dir_all(root.join(place)).unwrap();
        chown(root.join(place), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    fs::write(root.join("log/app.log"), "").unwrap();
    chown(root.join("log/app.log"), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    // Nobody is in the way of the first one: what is attacked is what is done.
    let first = commit(&mut world, 0);
    world.host.target(&first);
    let (code, log) = world.host.once();
    assert_eq!(code, 0, "{log}");
    let mut number = 0;
    for attack in ATTACKS {
        let hold = root.join("shared/run/hold");
        if *attack == "writer" {
            fs::write(&hold, "").unwrap();
        }
        if *attack == "log" {
            // Its log is emptied when the app is started, and told when that fails.
            world.host.kill_app();
        }
        let mut swapper = Swapper::start(attack, &root, &bait);
        for _ in 0..rounds() {
            number += 1;
            let revision = commit(&mut world, number);
            world.host.target(&revision);
            // Whatever comes of it, the app's own user did this to itself.
            let (_, log) = world.host.once();
            let rule = format!("{attack}: {log}");
            assert!(!log.contains(BAIT), "{rule}");
            assert_same(&before, &bait, &rule);
            for tree in ["releases", "dependencies", ".towline"] {
                assert_not_read(&root.join(tree), BAIT, &rule);
                assert_not_read(&root.join(tree), "TAMPERED", &rule);
            }
        }
        assert!(swapper.is_alive(), "{attack}");
        drop(swapper);
        fs::remove_file(hold).ok();
    }
    // With nobody in its way, the next one is deployed.
    for place in
        ["log/app.log", "log/app.log.swap", "shared/run/app.pid", "shared/run/app.pid.swap"]
    {
        fs::remove_file(root.join(place)).ok();
    }
    world.host.kill_app();
    let calm = world.commit_good();
    world.host.target(&calm);
    world.host.run();
    world.host.await_serving(&calm);
}
