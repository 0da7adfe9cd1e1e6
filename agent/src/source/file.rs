//! A target in a local file, watched.
//!
//! The file's directory is watched, not the file: it may not exist yet, and whoever writes it well
//! replaces it by a rename. A file is read whole, so one that is written in place may be read half
//! written; that is an objection until the rest of it arrives, and nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use towline_protocol::ids::Group;
use towline_protocol::target::{SIZE_BYTES_MAX, Target};

use super::Word;
use crate::error;

/// Room for a few events; what does not fit is read next.
type Buffer = [u8; 4096];

/// A target in a local file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    group: Group,
    events: EventStream<Buffer>,
}

impl FileSource {
    /// Begins to watch the directory of `path`; call it within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be watched, for one because it does not exist.
    pub fn watch(path: &Path, group: &Group) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(path);
        let inotify = Inotify::init()?;
        // Modified, moved in or away, written and closed, removed: whatever may change the answer.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::ONLYDIR;
        inotify.watches().add(dir, mask)?;
        let events = inotify.into_event_stream([0; 4096])?;
        Ok(Self { path: path.to_owned(), group: group.clone(), events })
    }

    /// Reads the file as it is now.
    #[must_use]
    pub fn read(&self) -> Word {
        read(&self.path, &self.group)
    }

    /// Waits until the file may have changed. Dropping the wait loses no change.
    pub async fn changed(&mut self) {
        let name = self.path.file_name();
        loop {
            match self.events.next().await {
                Some(Ok(event)) if event.name.is_some() && event.name.as_deref() != name => {}
                // Of this file, or a queue that overflowed: read it again.
                Some(_) => return,
                None => std::future::pending().await,
            }
        }
    }
}

/// Reads the target of `group` from the file at `path`.
#[must_use]
pub fn read(path: &Path, group: &Group) -> Word {
    let objection = |what: &dyn std::error::Error, hint: &str| {
        Word::Objection(format!("target file {}: {}; {hint}", path.display(), error::chain(what)))
    };
    let bytes = match read_bytes(path) {
        Ok(bytes) => bytes,
        Err(source) => return objection(&source, "write the group's target there"),
    };
    match Target::parse(&bytes, group) {
        Ok(target) => Word::Target(target),
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
    use std::fs;

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
        assert!(matches!(source.read(), Word::Objection(_)), "there is no file yet");

        let generation = |word| match word {
            Word::Target(target) => target.order.generation,
            Word::Objection(reason) => panic!("{reason}"),
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
            if matches!(source.read(), Word::Objection(_)) {
                break;
            }
        }
    }

    #[test]
    fn what_is_no_file_is_an_objection_and_holds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let group: Group = "web".parse().unwrap();
        assert!(matches!(read(dir.path(), &group), Word::Objection(_)), "a directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe, &group), Word::Objection(_)), "a pipe");
        let large = dir.path().join("large");
        fs::write(&large, " ".repeat(1 << 20)).unwrap();
        assert!(matches!(read(&large, &group), Word::Objection(_)), "too large");
        assert!(matches!(read(Path::new("/dev/zero"), &group), Word::Objection(_)), "a device");
    }
}
