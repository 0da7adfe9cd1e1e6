//! A target in a local file, watched.
//!
//! The file's directory is watched, not the file: it may not exist yet, and whoever writes it well
//! replaces it by a rename. A file is read whole, so one that is written in place may be read half
//! written; that is an objection until the rest of it arrives, and nothing else.
//!
//! The kernel watches inodes, and what happens on this host: the directory may be replaced by another,
//! the file may be a link into one that is not watched, or lie on another host's disk. So the watch
//! follows the path, and besides events there is one look at the file every `LOOK_EVERY`.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use towline_protocol::ids::Group;
use towline_protocol::poll::Word;
use towline_protocol::target::{SIZE_BYTES_MAX, Target};

use super::Said;
use crate::error;

/// How often the file is looked at, events or none: one wake-up a minute is all that idling costs.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Room for a few events; what does not fit is read next.
type Buffer = [u8; 4096];

/// A target in a local file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    group: Group,
    /// `None` while the directory is away.
    watch: Option<Watch>,
    look: Interval,
    /// The file as it was when it was last read; `None` where there was none.
    last: Cell<Option<Stamp>>,
}

/// A watched directory.
#[derive(Debug)]
struct Watch {
    events: EventStream<Buffer>,
    /// Its device and inode.
    dir: (u64, u64),
}

/// Tells a file from what it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    modified: (i64, i64),
    bytes: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Some(Self { file: (meta.dev(), meta.ino()), modified, bytes: meta.len() })
    }
}

impl Watch {
    fn open(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // Modified, moved in or away, written and closed, removed: whatever may change the answer.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::MOVE_SELF
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(dir, mask)?;
        let events = inotify.into_event_stream([0; 4096])?;
        // A directory that was replaced since has sent an event.
        Ok(Self { events, dir: identity(dir)? })
    }
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(dir).map(|meta| (meta.dev(), meta.ino()))
}

impl FileSource {
    /// Begins to watch the directory of `path`; call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be watched, for one because it does not exist.
    pub fn watch(path: &Path, group: &Group) -> io::Result<Self> {
        Self::watch_every(path, group, LOOK_EVERY)
    }

    fn watch_every(path: &Path, group: &Group, every: Duration) -> io::Result<Self> {
        let watch = Some(Watch::open(directory(path))?);
        let mut look = interval_at(Instant::now() + every, every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (path, group) = (path.to_owned(), group.clone());
        Ok(Self { path, group, watch, look, last: Cell::new(None) })
    }

    /// Reads the file as it is now.
    #[must_use]
    pub fn read(&self) -> Said {
        // Before the bytes: what is written meanwhile is another file at the next look.
        self.last.set(Stamp::of(&self.path));
        read(&self.path, &self.group)
    }

    /// Waits until the file may have changed. Dropping the wait loses no change.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                event = next(&mut self.watch) => if self.is_told(event) { return },
                _ = self.look.tick() => if self.is_seen() { return },
            }
        }
    }

    /// Does this event tell of the file?
    fn is_told(&mut self, event: Option<io::Result<EventOwned>>) -> bool {
        let gone = EventMask::MOVE_SELF | EventMask::DELETE_SELF | EventMask::IGNORED;
        match event {
            Some(Ok(event)) if event.mask.intersects(gone) => {
                self.watch = Watch::open(directory(&self.path)).ok();
                true
            }
            Some(Ok(event)) => {
                event.name.is_none() || event.name.as_deref() == self.path.file_name()
            }
            Some(Err(_)) | None => {
                self.watch = None;
                true
            }
        }
    }

    /// Is the file another one than was read? Takes up the watch where it was lost: a directory further
    /// up may have been replaced, which nothing tells of.
    fn is_seen(&mut self) -> bool {
        let dir = directory(&self.path);
        let now = identity(dir).ok();
        if self.watch.as_ref().map(|watch| watch.dir) != now {
            self.watch = Watch::open(dir).ok();
        }
        Stamp::of(&self.path) != self.last.get()
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

async fn next(watch: &mut Option<Watch>) -> Option<io::Result<EventOwned>> {
    match watch {
        Some(watch) => watch.events.next().await,
        None => std::future::pending().await,
    }
}

/// Reads the target of `group` from the file at `path`.
#[must_use]
pub fn read(path: &Path, group: &Group) -> Said {
    let objection = |what: &dyn std::error::Error, hint: &str| {
        Said::Objection(format!("target file {}: {}; {hint}", path.display(), error::chain(what)))
    };
    let bytes = match read_bytes(path) {
        Ok(bytes) => bytes,
        Err(source) => return objection(&source, "write the group's target there"),
    };
    match Target::parse(&bytes, group) {
        Ok(target) => Said::Word(Word::of_target(target)),
        Err(source) => objection(&source, source.hint()),
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe or a device in its place must not hold the agent.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    // One more than is accepted, so that a larger one shows.
    file.take(SIZE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn document(generation: u64) -> String {
        let revision = "a".repeat(40);
        format!(
            "{{\"version\":1,\"group\":\"web\",\"epoch\":1,\"generation\":{generation},\
             \"revision\":\"{revision}\"}}"
        )
    }

    #[tokio::test]
    async fn a_change_is_noticed_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target.json");
        let mut source = FileSource::watch(&path, &"web".parse().unwrap()).unwrap();
        assert!(matches!(source.read(), Said::Objection(_)), "there is no file yet");

        let generation = |word| match word {
            Said::Word(word) => word.target.unwrap().order.generation,
            Said::Objection(reason) => panic!("{reason}"),
        };
        fs::write(&path, document(1)).unwrap();
        source.changed().await;
        assert_eq!(generation(source.read()), 1);

        fs::write(dir.path().join("new"), document(2)).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        loop {
            source.changed().await;
            if generation(source.read()) == 2 {
                break;
            }
        }
        fs::remove_file(&path).unwrap();
        loop {
            source.changed().await;
            if matches!(source.read(), Said::Objection(_)) {
                break;
            }
        }
    }

    /// Waits until the source tells this generation; 0 for none.
    async fn await_generation(source: &mut FileSource, expected: u64) {
        loop {
            source.changed().await;
            let generation = match source.read() {
                Said::Word(word) => word.target.unwrap().order.generation,
                Said::Objection(_) => 0,
            };
            if generation == expected {
                return;
            }
        }
    }

    const NEVER: Duration = Duration::from_secs(3600);
    const OFTEN: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_directory_that_is_replaced_is_watched_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("towline");
        let path = dir.join("target.json");
        fs::create_dir(&dir).unwrap();
        let mut source = FileSource::watch_every(&path, &"web".parse().unwrap(), NEVER).unwrap();
        fs::rename(&dir, root.path().join("aside")).unwrap();
        fs::create_dir(&dir).unwrap();
        source.changed().await;
        fs::write(&path, document(1)).unwrap();
        await_generation(&mut source, 1).await;

        // Away for a while.
        let mut source = FileSource::watch_every(&path, &"web".parse().unwrap(), OFTEN).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        await_generation(&mut source, 0).await;
        fs::create_dir(&dir).unwrap();
        fs::write(&path, document(2)).unwrap();
        await_generation(&mut source, 2).await;
        assert!(source.watch.is_some());
    }

    #[tokio::test]
    async fn what_no_event_tells_of_is_seen_at_the_next_look() {
        let root = tempfile::tempdir().unwrap();
        let (near, far) = (root.path().join("near"), root.path().join("far"));
        for dir in [&near, &far] {
            fs::create_dir(dir).unwrap();
        }
        let path = near.join("target.json");
        fs::write(far.join("web.json"), document(1)).unwrap();
        symlink(far.join("web.json"), &path).unwrap();
        let mut source = FileSource::watch_every(&path, &"web".parse().unwrap(), OFTEN).unwrap();
        assert!(matches!(source.read(), Said::Word(_)));
        fs::write(far.join("new"), document(2)).unwrap();
        fs::rename(far.join("new"), far.join("web.json")).unwrap();
        await_generation(&mut source, 2).await;

        // A directory further up.
        let old = root.path().join("old");
        fs::create_dir_all(old.join("far")).unwrap();
        let path = old.join("far/web.json");
        let mut source = FileSource::watch_every(&path, &"web".parse().unwrap(), OFTEN).unwrap();
        fs::rename(&old, root.path().join("older")).unwrap();
        fs::create_dir_all(old.join("far")).unwrap();
        fs::write(&path, document(3)).unwrap();
        await_generation(&mut source, 3).await;
    }

    #[tokio::test]
    async fn a_look_at_what_was_read_wakes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target.json");
        fs::write(&path, document(1)).unwrap();
        let mut source = FileSource::watch_every(&path, &"web".parse().unwrap(), NEVER).unwrap();
        assert!(source.is_seen(), "it was never read");
        assert!(matches!(source.read(), Said::Word(_)));
        assert!(!source.is_seen());
    }

    #[test]
    fn what_is_no_file_is_an_objection_and_holds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let group: Group = "web".parse().unwrap();
        assert!(matches!(read(dir.path(), &group), Said::Objection(_)), "a directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe, &group), Said::Objection(_)), "a pipe");
        let large = dir.path().join("large");
        fs::write(&large, " ".repeat(1 << 20)).unwrap();
        assert!(matches!(read(&large, &group), Said::Objection(_)), "too large");
        assert!(matches!(read(Path::new("/dev/zero"), &group), Said::Objection(_)), "a device");
    }
}
