//! A process of the app's user that swaps files, folders and links under root's hands.
//!
//! ```text
//!   swapper (the app's user) ──► exchanges what it owns with links to what is root's, without a pause
//!   agent (root)             ──► installs, checks, seals, links, shares, empties, logs
//!   bait (root's, 0600)      ──► neither changed nor read
//! ```

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use towline_tests::app::Kind;

use super::privileges::is_root;
use super::{World, amend, replace};

const BAIT: &str = "root's own: 5d1f0c37";

/// Exchanges names for as long as it lives. Arguments: the app's directory, the bait's directory.
const SWAPPER: &str = r#"
import ctypes, os, sys
dir, bait = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def exchange(one, other):
    libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2)
def link(target, path):
    try: os.symlink(target, path)
    except OSError: pass
def hard(target, path):
    try: os.link(target, path)
    except OSError: pass
work = dir + '/staging/install/install'
held = {}
rounds = 0
print('ready', flush=True)
while True:
    rounds += 1
    for place in (work, dir + '/staging/install/sealed'):
        made = place + '/made'
        # Files and folders that are about to be read, given away, sealed or copied.
        for name in ('lock.txt', 'made', 'made/sub', 'made/sub/leaf', 'made/file', 'made/tool'):
            path = place + '/' + name
            try: kind = os.lstat(path).st_mode & 0o170000
            except OSError: continue
            other = path + '.swap'
            link(bait if kind == 0o040000 else bait + '/file', other)
            exchange(path, other)
            exchange(path, other)
            try: os.unlink(other)
            except OSError: pass
        hard(bait + '/file', made + '/hard')
        try:
            if 'fd' not in held:
                held['fd'] = os.open(made + '/held', os.O_RDWR)
                open(dir + '/shared/run/held', 'w').close()
        except OSError: pass
    # A file that was open before it was sealed.
    fd = held.get('fd')
    if fd is not None and os.fstat(fd).st_uid == 0:
        os.pwrite(fd, b'TAMPERED', 0)
    for path, target in ((dir + '/shared/data/deep', bait), (dir + '/log/app.log', bait + '/file'),
                         (dir + '/cache/npm', bait), (dir + '/shared/run/other.pid', bait + '/file')):
        other = path + '.swap'
        link(target, other)
        exchange(path, other)
        exchange(path, other)
"#;

/// Ended when it is dropped.
struct Swapper(Child);

impl Swapper {
    fn start(dir: &Path, bait: &Path) -> Self {
        use std::io::BufRead;
        use std::os::unix::process::CommandExt;
        let user = User::from_name("nobody").unwrap().expect("every system has it");
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", SWAPPER]).arg(dir).arg(bait);
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it is installed");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was piped");
        std::io::BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Everything that could be changed of what lies at and below `path`.
fn seen(path: &Path) -> Vec<(PathBuf, u32, u32, u32, u64, Vec<u8>)> {
    let found = fs::symlink_metadata(path).unwrap();
    let content = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    let links = if found.is_file() { found.nlink() } else { 0 };
    let own = (path.to_owned(), found.uid(), found.gid(), found.mode(), links, content);
    let mut all = vec![own];
    if found.is_dir() {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        all.extend(paths.iter().flat_map(|path| seen(path)));
    }
    all
}

/// Fails where a file below `dir` holds `text`; links are not followed.
fn assert_not_read(dir: &Path, text: &str) {
    for (path, _, _, _, _, content) in seen(dir) {
        let held = content.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!held, "{} holds {text:?}", path.display());
    }
}

/// How many deploys; ten times as many with `TOWLINE_ALL` set.
fn count() -> usize {
    if std::env::var_os("TOWLINE_ALL").is_some() { 60 } else { 6 }
}

#[test]
fn swaps_by_the_apps_user_change_nothing_of_roots_and_have_nothing_of_it_read() {
    if !is_root("swaps by the app's user") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bait = dir.path().join("bait");
    fs::create_dir(&bait).unwrap();
    fs::create_dir(bait.join("sub")).unwrap();
    for name in ["file", "leaf", "tool", "sub/leaf"] {
        fs::write(bait.join(name), BAIT).unwrap();
        fs::set_permissions(bait.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let before = seen(&bait);
    let mut world = World::with(Kind::Plain, "branch = \"main\"\n", "");
    world.host.reconfigure("free_mib = 16", "free_mib = 16\npackage_cache_mib = 0");
    let root = world.host.dir();
    let user = User::from_name("nobody").unwrap().expect("every system has it");
    for place in ["shared/data", "shared/data/deep", "log"] {
        fs::create_dir_all(root.join(place)).unwrap();
        chown(root.join(place), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    // The swapper has the file open before the install ends; enough files for it to come in between.
    let install = format!(
        "mkdir -p made/sub made/many \"$npm_config_cache\"; echo fine >made/file; echo fine \
         >made/sub/leaf; echo fine >made/tool; chmod 755 made/tool; echo untouched >made/held; cd \
         made/many; for n in $(seq 200); do echo $n >$n; done; n=0; while [ ! -e {}/shared/run/held ] && \
         [ $n -lt 200 ]; do n=$((n+1)); sleep 0.01; done",
        root.display()
    );
    let mut swapper = Swapper::start(&root, &bait);
    let mut made = 0;
    for number in 0..count() {
        let revision = world.commit_with(|files| {
            replace(files, "lock.txt", &number.to_string());
            let install = format!(
                "[install]\ncommand = [\"sh\", \"-c\", {install:?}]\ninputs = [\"lock.txt\"]\noutputs = \
                 [\"made\"]\n\n[manager]"
            );
            amend(files, "towline.toml", "[manager]", &install);
            let dirs = format!("dirs = [\"run\", \"data\", \"data/deep/x{number}\"]");
            amend(files, "towline.toml", "dirs = [\"run\"]", &dirs);
        });
        world.host.target(&revision);
        let (_, log) = world.host.once();
        assert!(!log.contains(BAIT), "{log}");
        made += usize::from(root.join("releases").join(&revision).exists());
        // Whatever came of it, the app's own user did this to itself; nobody else is touched.
        assert!(seen(&bait) == before, "{number}: {:#?}\n{log}", seen(&bait));
        for tree in ["releases", "dependencies", ".towline"] {
            assert_not_read(&root.join(tree), BAIT);
            assert_not_read(&root.join(tree), "TAMPERED");
        }
    }
    assert!(swapper.is_alive());
    drop(swapper);
    let calm = world.commit_good();
    world.host.target(&calm);
    world.host.run();
    world.host.await_serving(&calm);
    assert!(made < count() || root.join("dependencies").exists());
}
