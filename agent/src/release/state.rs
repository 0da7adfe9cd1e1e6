//! The agent's own files: the lock, the journal, the status.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::report::Report;

use super::claim::Versioned;
use super::{DiskError, Store, durable, failed};
use crate::journal::{self, Journal};

/// How often, and how far apart, a lock that is held is tried again before it counts as an agent's.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(20);

/// Held for as long as this value, and no longer than the process: the kernel lets go of it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The agent's own token, with whom it was given to.
#[derive(Serialize, Deserialize)]
pub struct Token {
    /// The group that was joined.
    pub group: Group,
    /// The instance that joined.
    pub instance: Instance,
    /// The token itself.
    pub token: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Which coordinator the agent is in contact with, for `towline-agent status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The address that answered last, or is to answer first.
    pub address: String,
    /// When it was last heard, in seconds since 1970; `None` where it never was by this agent.
    pub heard_s: Option<u64>,
    /// Why its word is not had, where that has taken too long.
    pub problem: Option<String>,
}

/// The instance is shut down: nothing more is started until the next boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Leaving {
    /// The boot that it is said of.
    pub boot: String,
    /// The run that the goodbye was numbered as.
    pub run: u64,
}

/// What `towline-agent status` reads: the last report, and when and by whom it was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The report.
    #[serde(flatten)]
    pub report: Report,
    /// When it was written, in seconds since 1970.
    pub written_s: u64,
    /// The agent that wrote it.
    pub pid: u32,
}

impl Store {
    /// Takes the app's lock, for this process only: children do not inherit it.
    ///
    /// # Errors
    ///
    /// [`DiskError::Locked`] where another agent has it.
    pub fn lock(&self) -> Result<Lock, DiskError> {
        let path = self.state().join("lock");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        for _ in 0..LOOKS {
            match file.try_lock() {
                Ok(()) => {
                    // Who it is; a disk that is full leaves it open.
                    let own = format!("{:>10}\n", std::process::id());
                    drop(file.write_all_at(own.as_bytes(), 0));
                    return Ok(Lock { _file: file });
                }
                // Another command may be having a look at it, for a moment.
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
        }
        Err(DiskError::Locked { path: self.dir().to_owned() })
    }

    /// Is the app's lock held by some agent? Looks without holding it.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.state().join("lock")) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// The pid of the agent that holds the lock, as far as it could write it down.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        fs::read_to_string(self.state().join("lock")).ok()?.trim().parse().ok()
    }

    /// Reads the journal, or begins one. The second value says what became of one that is broken.
    ///
    /// # Errors
    ///
    /// [`DiskError::Newer`]: an older agent must not act on what it does not understand.
    pub fn read_journal(&self, own: &Instance) -> Result<(Journal, Option<String>), DiskError> {
        let path = self.state().join("journal.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Journal::new(own.clone()), None));
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version }) if version > journal::VERSION => {
                return Err(DiskError::Newer { path, version });
            }
            _ => {}
        }
        match serde_json::from_slice::<Journal>(&bytes) {
            Ok(journal) => Ok((journal.adopt(own.clone()), None)),
            Err(error) => {
                let aside = self.state().join("journal.broken.json");
                fs::rename(&path, &aside).map_err(failed("set aside", &path))?;
                let said =
                    format!("{} could not be read and was set aside: {error}", path.display());
                Ok((Journal::new(own.clone()), Some(said)))
            }
        }
    }

    /// Writes the journal; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// Then the former one stands, or, after a power cut, either of the two.
    pub fn write_journal(&self, journal: &Journal) -> Result<(), DiskError> {
        let path = self.state().join("journal.json");
        durable::rewrite(&path, journal, 0o600, true).map_err(failed("write", &path))
    }

    /// Writes the agent's own token; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// Then the former one stands.
    pub fn write_token(&self, token: &Token) -> Result<(), DiskError> {
        let path = self.state().join("token");
        durable::write(&path, token, 0o600).map_err(failed("write", &path))
    }

    /// Reads the agent's own token; `None` where it never joined.
    ///
    /// # Errors
    ///
    /// Where there is one and it cannot be read.
    pub fn read_token(&self) -> Result<Option<Token>, DiskError> {
        self.read("token")
    }

    /// Writes down which coordinator the agent is in contact with; it need not survive a power cut.
    ///
    /// # Errors
    ///
    /// Then the former one stands.
    pub fn write_contact(&self, contact: &Contact) -> Result<(), DiskError> {
        let path = self.state().join("contact.json");
        durable::rewrite(&path, contact, 0o600, false).map_err(failed("write", &path))
    }

    /// Reads which coordinator the last agent was in contact with; `None` where there was none.
    ///
    /// # Errors
    ///
    /// Where it is written down and cannot be read.
    pub fn read_contact(&self) -> Result<Option<Contact>, DiskError> {
        self.read("contact.json")
    }

    /// Forgets which coordinator there was: targets come from elsewhere by now.
    pub fn remove_contact(&self) {
        drop(fs::remove_file(self.state().join("contact.json")));
    }

    /// Notes that the instance is shut down.
    ///
    /// # Errors
    ///
    /// Then a running agent does not learn of it.
    pub fn write_leaving(&self, leaving: &Leaving) -> Result<(), DiskError> {
        let path = self.state().join("leaving");
        durable::write(&path, leaving, 0o600).map_err(failed("write", &path))
    }

    /// Returns what was noted of a shutdown of any boot.
    #[must_use]
    pub fn leaving(&self) -> Option<Leaving> {
        // What cannot be read says nothing; an agent that stands still for no reason would be worse.
        self.read("leaving").ok().flatten()
    }

    /// Is this very boot being ended?
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving().is_some_and(|leaving| leaving.boot == boot_id())
    }

    /// Writes the status for `towline-agent status`; it need not survive a power cut.
    ///
    /// # Errors
    ///
    /// Then the former one stands.
    pub fn write_status(&self, status: &Status) -> Result<(), DiskError> {
        let path = self.state().join("status.json");
        durable::rewrite(&path, status, 0o600, false).map_err(failed("write", &path))
    }

    /// Reads the status that the last agent left; `None` where none ever ran.
    ///
    /// # Errors
    ///
    /// Where there is one and it cannot be read.
    pub fn read_status(&self) -> Result<Option<Status>, DiskError> {
        self.read("status.json")
    }

    /// Forgets which instance this was, and all that it had seen: an image is nobody yet.
    ///
    /// # Errors
    ///
    /// Whatever cannot be removed.
    pub fn forget_instance(&self) -> Result<(), DiskError> {
        // The token first: it is the one thing that must not be in an image.
        let names = [
            "token",
            "contact.json",
            "leaving",
            "status.json",
            "journal.json",
            "journal.broken.json",
        ];
        for name in names.into_iter().flat_map(|name| [name.to_owned(), format!("{name}.new")]) {
            let path = self.state().join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        durable::sync_dir(&self.state()).map_err(failed("make durable", &self.state()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DiskError> {
        let path = self.state().join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed("read", &path)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }
}

/// Names this boot of the host.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::journal::Release;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.prepare().unwrap();
        (dir, store)
    }

    #[test]
    fn the_lock_is_held_once() {
        let (_dir, store) = store();
        let lock = store.lock().unwrap();
        assert_eq!(store.holder(), Some(std::process::id()));
        assert!(matches!(store.lock(), Err(DiskError::Locked { .. })));
        drop(lock);
        assert!(!store.is_locked());
    }

    #[test]
    fn a_state_that_was_written_once_can_be_written_on_a_full_disk() {
        let (_dir, store) = store();
        let own: Instance = "i-1".parse().unwrap();
        let mut journal = Journal::new(own.clone());
        for digit in ['a', 'b', 'c'] {
            journal.prove(&Release::Own(digit.to_string().repeat(40).parse().unwrap()));
            store.write_journal(&journal).unwrap();
            assert_eq!(store.read_journal(&own).unwrap().0, journal);
        }
        // Two files of one length that change places: what is written next has its blocks already.
        let name = |name: &str| store.state().join(name);
        let places = || {
            let inode = |path| fs::metadata(path).unwrap().ino();
            let length = |path| fs::metadata(path).unwrap().len();
            assert_eq!(length(name("journal.json")), length(name("journal.json.new")));
            (inode(name("journal.json")), inode(name("journal.json.new")))
        };
        let before = places();
        store.write_journal(&journal).unwrap();
        assert_eq!(places(), (before.1, before.0));
    }

    #[test]
    fn a_journal_comes_back_as_it_was_written() {
        let (_dir, store) = store();
        let own: Instance = "i-1".parse().unwrap();
        let mut journal = Journal::new(own.clone());
        journal.prove(&Release::Own("a".repeat(40).parse().unwrap()));
        store.write_journal(&journal).unwrap();
        assert_eq!(store.read_journal(&own).unwrap(), (journal, None));
    }

    #[test]
    fn a_broken_journal_is_set_aside_and_a_newer_one_is_not_touched() {
        let (_dir, store) = store();
        let own: Instance = "i-1".parse().unwrap();
        let path = store.state().join("journal.json");
        for bytes in [&b""[..], b"{", b"\0\0\0\0", b"{\"version\":1}", b"[]"] {
            fs::write(&path, bytes).unwrap();
            let (journal, said) = store.read_journal(&own).unwrap();
            assert_eq!(journal, Journal::new(own.clone()));
            assert!(said.is_some() && !path.exists());
        }
        fs::write(&path, br#"{"version":99,"what":"is this"}"#).unwrap();
        assert!(matches!(store.read_journal(&own), Err(DiskError::Newer { version: 99, .. })));
        assert!(path.exists());
    }

    /// Every length, and noise, of each document: what cannot be read is told and never acted on, and
    /// what can is what was written.
    #[test]
    fn a_document_cut_at_any_length_is_what_was_written_or_is_told() {
        let (_dir, store) = store();
        let own: Instance = "i-1".parse().unwrap();
        let mut journal = Journal::new(own.clone());
        journal.prove(&Release::Own("a".repeat(40).parse().unwrap()));
        store.write_journal(&journal).unwrap();
        let group: Group = "web".parse().unwrap();
        let token = Token { group, instance: own.clone(), token: "secret".to_owned() };
        store.write_token(&token).unwrap();
        store.write_leaving(&Leaving { boot: boot_id(), run: 7 }).unwrap();
        let golden = include_str!("../../../protocol/golden/report-1.json");
        let report: Report = serde_json::from_str(golden).unwrap();
        store.write_status(&Status { report, written_s: 1, pid: 2 }).unwrap();

        let name = |name: &str| store.state().join(name);
        let documents = ["journal.json", "token", "leaving", "status.json"];
        for document in documents {
            let path = name(document);
            let whole = fs::read(&path).unwrap();
            let text = whole.trim_ascii_end().len();
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mut noise = |length: usize| -> Vec<u8> {
                let next = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                };
                std::iter::repeat_with(next).flatten().take(length).collect()
            };
            let cut = (0..=text).map(|length| whole[..length].to_vec());
            let torn: Vec<Vec<u8>> = cut.chain((0..200).map(&mut noise)).collect();
            for (index, bytes) in torn.iter().enumerate() {
                fs::write(&path, bytes).unwrap();
                let is_whole = index == text;
                match document {
                    "journal.json" => {
                        let (read, said) = store.read_journal(&own).unwrap();
                        assert_eq!(said.is_none(), is_whole, "{index}");
                        assert_eq!(read == journal, is_whole, "{index}");
                        assert_eq!(path.exists(), is_whole, "{index}: set aside");
                    }
                    "token" => {
                        let read = store.read_token();
                        assert_eq!(read.is_ok(), is_whole, "{index}");
                        let said = read.err().map(|error| error.to_string());
                        assert!(said.is_none_or(|said| said.contains("could not read")));
                    }
                    "leaving" => {
                        assert_eq!(store.leaving().is_some(), is_whole, "{index}");
                    }
                    _ => assert_eq!(store.read_status().is_ok(), is_whole, "{index}"),
                }
            }
        }
    }
}
