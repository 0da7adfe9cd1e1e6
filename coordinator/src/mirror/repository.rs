//! One repository's clone: who may write to it, how it is fetched, and how it is made anew.
//!
//! ```text
//!   <dir>/<hash>.git    the clone that answers: always one that was fetched whole
//!   <dir>/<hash>.new    a clone on its way; takes the other's place when it is complete
//!   <dir>/<hash>.old    what was broken, on its way out
//!   <dir>/<hash>-….gone what no group names any more, likewise
//! ```
//!
//! Invariants
//! - One writer: `writer` is held by whoever fetches, and by its child until that is gone. So a lock
//!   file of git's is always a leftover.
//! - Readers are kept out only for the moment in which a clone takes another's place.
//! - A clone is given up for a complete one, never for the hope of one.

use std::any::Any;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, RwLock};
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::MirrorError;
use super::history::Known;
use super::program::{Answer, Call, Git};
use super::said::{Said, is_about_clone, is_about_space, is_unsound, trouble, without_users};
use super::space::Space;

/// What the names of clones end in, with those that are on their way out.
pub(super) const ENDS: [&str; 4] = ["git", "new", "old", GONE];

/// What the name of a clone ends in that no group names any more.
pub(super) const GONE: &str = "gone";

/// The refs that are fetched, each to its own name. Never `refs/replace`, and nothing but these.
const REFS: [&str; 2] = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];

/// How many packs a clone may have before they are packed together.
const PACKS_MAX: usize = 50;

/// How much git may say when it was told to be quiet.
const QUIET_BYTES_MAX: usize = 64 * 1024;

/// Which fetch is recent enough.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// One that began within this time, or was under way when it was asked for; however it ended.
    Within(Duration),
    /// One that succeeded and began within this time; one that was waited for, however it ended.
    Good(Duration),
    /// One that began after this moment, however it ended.
    Since(Instant),
}

#[derive(Debug, Clone)]
struct Last {
    began: Instant,
    ended: Instant,
    outcome: Result<(), MirrorError>,
}

impl Wanted {
    fn is_met(self, last: &Last, asked: Instant) -> bool {
        let age = asked.saturating_duration_since(last.began);
        let was_waited_for = last.ended >= asked;
        match self {
            Wanted::Within(most) => was_waited_for || age < most,
            Wanted::Good(most) if last.outcome.is_ok() => age < most,
            Wanted::Good(_) => was_waited_for,
            Wanted::Since(moment) => last.began >= moment,
        }
    }
}

/// What a writer and its children hold.
type Held = Arc<dyn Any + Send + Sync>;

/// One repository's clone.
#[derive(Debug)]
pub(super) struct Repository {
    git: Arc<Git>,
    url: String,
    live: PathBuf,
    space: Space,
    writer: Arc<AsyncMutex<()>>,
    last: Mutex<Option<Last>>,
    access: RwLock<()>,
    is_broken: AtomicBool,
    pub(super) known: Mutex<Known>,
}

impl Repository {
    pub(super) fn new(git: Arc<Git>, space: &Space, url: &str) -> Repository {
        Repository {
            git,
            url: url.to_owned(),
            live: space.dir.join(format!("{}.git", name_of(url))),
            space: space.clone(),
            writer: Arc::default(),
            last: Mutex::default(),
            access: RwLock::default(),
            is_broken: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }

    /// Returns the address as it may be shown.
    pub(super) fn shown(&self) -> String {
        without_users(&self.url)
    }

    /// Does somebody write to it?
    pub(super) fn is_written(&self) -> bool {
        self.writer.try_lock().is_err()
    }

    /// Is there a clone to ask?
    pub(super) fn is_there(&self) -> bool {
        self.live.is_dir()
    }

    /// Fetches, unless a fetch that is recent enough has been or is under way.
    pub(super) async fn refresh(&self, wanted: Wanted) -> Result<(), MirrorError> {
        let asked = Instant::now();
        // One that is under way ends before this is had.
        let held: Held = Arc::new(self.writer.clone().lock_owned().await);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What was found broken since is not helped by a fetch that was before.
        let is_sound = !self.is_broken.load(Ordering::Relaxed);
        if let Some(last) = last.filter(|last| is_sound && wanted.is_met(last, asked)) {
            return last.outcome;
        }
        let began = Instant::now();
        let outcome = self.update(&held).await;
        let last = Last { began, ended: Instant::now(), outcome: outcome.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        outcome
    }

    async fn update(&self, held: &Held) -> Result<(), MirrorError> {
        self.git.check().await?;
        if !self.is_there() {
            self.clone_anew(held).await?;
            info!(repository = %self.shown(), "repository cloned");
            return Ok(());
        }
        if !self.is_broken.load(Ordering::Relaxed) {
            let live = self.live.clone();
            self.disk(move || sweep(&live)).await?;
            match self.fetch(&self.live, held).await {
                Err(error @ MirrorError::Broken { .. }) => self.suspect(&error),
                Err(error) => return Err(error),
                Ok(()) => {
                    self.tidy(held).await;
                    return Ok(());
                }
            }
        }
        self.clone_anew(held).await?;
        info!(repository = %self.shown(), "repository cloned anew");
        Ok(())
    }

    /// Notes that the clone cannot be read: the next refresh makes it anew.
    pub(super) fn suspect(&self, error: &MirrorError) {
        if !self.is_broken.swap(true, Ordering::Relaxed) {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            warn!(repository = %self.shown(), error = %error, cause, "clone is broken");
        }
    }

    /// Makes a clone beside the one that is there, and puts it in its place.
    async fn clone_anew(&self, held: &Held) -> Result<(), MirrorError> {
        let (new, old) = (self.live.with_extension("new"), self.live.with_extension("old"));
        let url = self.shown();
        let fresh = new.clone();
        self.disk(move || {
            remove(&fresh)?;
            fs::DirBuilder::new().mode(0o700).create(&fresh)?;
            // For whoever looks into the directory.
            fs::write(fresh.join("description"), format!("{url}\n"))
        })
        .await?;
        let init = vec!["init", "--quiet", "--bare", "--template=", "--initial-branch=none"];
        self.write("make a clone of", &new, init, held).await?;
        self.fetch(&new, held).await?;
        // A first fetch writes one file for each ref.
        self.write("pack the refs of", &new, vec!["pack-refs", "--all"], held).await?;
        let access = self.access.write().await;
        let live = self.live.clone();
        let put = move || {
            remove(&old)?;
            if live.exists() {
                fs::rename(&live, &old)?;
            }
            fs::rename(&new, &live)?;
            Ok(old)
        };
        let old = self.disk(put).await?;
        self.is_broken.store(false, Ordering::Relaxed);
        drop(access);
        self.disk(move || remove(&old)).await
    }

    async fn fetch(&self, dir: &Path, held: &Held) -> Result<(), MirrorError> {
        let mut arguments = vec![
            "fetch",
            "--quiet",
            "--prune",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            "--no-show-forced-updates",
            "--end-of-options",
            &self.url,
        ];
        arguments.extend(REFS);
        self.space.check().await?;
        let answer = tokio::select! {
            answer = self.call("fetch", dir, arguments, Some(held)) => answer?,
            // The child is ended; what it leaves is removed by the next one.
            error = self.space.used_up() => return Err(error),
        };
        if answer.code == Some(0) {
            return Ok(());
        }
        let (url, said) = (self.shown(), &answer.errors);
        let source = self.git.said(said);
        Err(if is_unsound(said) {
            MirrorError::Unsound { url, source }
        } else if is_about_space(said) {
            MirrorError::Disk { dir: dir.to_owned(), source }
        } else if is_about_clone(said) {
            MirrorError::Broken { url, source }
        } else {
            MirrorError::Fetch { url, trouble: trouble(said), source }
        })
    }

    /// Packs packs together where there are many: each fetch leaves one. Nothing is thrown away, so
    /// that a commit which a forced push took off its branch can still be told about.
    async fn tidy(&self, held: &Held) {
        let packs = self.live.join("objects/pack");
        let count = self.disk(move || count_packs(&packs)).await.unwrap_or(0);
        if count <= PACKS_MAX {
            return;
        }
        let repack = vec!["repack", "--quiet", "--geometric=2", "-d"];
        for arguments in [repack, vec!["pack-refs", "--all"]] {
            if let Err(error) = self.write("pack the clone of", &self.live, arguments, held).await {
                // It is only slower for it.
                warn!(repository = %self.shown(), error = %error, "clone was not packed");
            }
        }
    }

    async fn write(
        &self,
        what: &'static str,
        dir: &Path,
        arguments: Vec<&str>,
        held: &Held,
    ) -> Result<(), MirrorError> {
        let answer = self.call(what, dir, arguments, Some(held)).await?;
        match answer.code {
            Some(0) => Ok(()),
            _ => Err(self.git.failed(what, &self.url, dir, &answer.errors)),
        }
    }

    async fn call(
        &self,
        what: &'static str,
        dir: &Path,
        arguments: Vec<&str>,
        held: Option<&Held>,
    ) -> Result<Answer, MirrorError> {
        let is_fetch = arguments.first() == Some(&"fetch");
        let call = Call {
            what,
            dir,
            arguments,
            input: String::new(),
            output_max: QUIET_BYTES_MAX,
            is_cut: false,
            is_fetch,
            hold: held.cloned(),
        };
        self.git.run(&self.url, call).await
    }

    /// Asks the clone. Exit codes are for the caller; a clone that cannot be read is an error, and is
    /// noted.
    pub(super) async fn ask(
        &self,
        arguments: Vec<&str>,
        input: String,
        output_max: usize,
        is_cut: bool,
    ) -> Result<Answer, MirrorError> {
        const WHAT: &str = "read the mirror of";
        self.git.check().await?;
        let _access = self.access.read().await;
        if !self.is_there() {
            return Err(MirrorError::Empty { url: self.shown() });
        }
        let call = Call {
            what: WHAT,
            dir: &self.live,
            arguments,
            input,
            output_max,
            is_cut,
            is_fetch: false,
            hold: None,
        };
        let answer = self.git.run(&self.url, call).await?;
        // Git was seen to call an object missing, and to exit with 0, for a pack that it cannot read.
        if is_about_clone(&answer.errors) {
            return Err(self.broken(&answer.errors));
        }
        Ok(answer)
    }

    /// What an answer means that a sound clone would not have given.
    pub(super) fn broken(&self, said: &str) -> MirrorError {
        let error = MirrorError::Broken { url: self.shown(), source: self.git.said(said) };
        self.suspect(&error);
        error
    }

    /// What an exit code means that was not expected.
    pub(super) fn failed(&self, answer: &Answer) -> MirrorError {
        self.git.failed("read the mirror of", &self.url, &self.live, &answer.errors)
    }

    /// Does something to the disk, off the runtime's threads.
    async fn disk<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let done = tokio::task::spawn_blocking(act).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| MirrorError::Disk { dir: self.live.clone(), source: Said::of(&error) })
    }
}

/// Returns the name of a repository's clones, without their ends.
pub(super) fn name_of(url: &str) -> String {
    let digest = Sha256::digest(url.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a directory, if there is one.
fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a killed git left: lock files, and the halves of packs, which would fill the disk.
fn sweep(dir: &Path) -> io::Result<()> {
    let mut dirs = vec![dir.to_owned(), dir.join("refs"), dir.join("objects/info")];
    let objects = [dir.join("objects"), dir.join("objects/pack")];
    while let Some(dir) = dirs.pop() {
        let is_refs = dir.components().any(|part| part.as_os_str() == "refs");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && is_refs {
                dirs.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|end| end == "lock") {
                fs::remove_file(path)?;
            }
        }
    }
    for entry in objects.iter().flat_map(fs::read_dir).flatten().flatten() {
        let name = entry.file_name();
        let is_half = name.to_string_lossy().starts_with("tmp_");
        match (is_half, entry.file_type()?.is_dir()) {
            (false, _) => {}
            (true, true) => fs::remove_dir_all(entry.path())?,
            (true, false) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn count_packs(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        count += usize::from(entry?.path().extension().is_some_and(|end| end == "pack"));
    }
    Ok(count)
}
