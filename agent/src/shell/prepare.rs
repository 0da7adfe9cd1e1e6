//! Preparing: from a revision to a complete release, with nothing live touched.
//!
//! ```text
//!   on disk? ─► in the cache? ─► fetch ─► recipe, tree ─► like the live one? ─► write ─► install
//!       └───────────────────── complete ◄── link, share ◄── build ◄──────────────────────┘
//! ```
//!
//! Safe to call again after a crash: what was not complete is thrown away first.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Build, Install, Recipe, RecipeError, SIZE_BYTES_MAX};
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::{Tools, way};
use crate::config::{Forbidden, Keep};
use crate::dependencies::{self, InstallError, Key, Making, Outputs, Step};
use crate::error;
use crate::git::{Cache, FetchError, Plan, Room, TreeError};
use crate::journal::Release;
use crate::machine::Outcome;
use crate::manager;
use crate::release::{Barrier, DiskError, Marker, Needed, Store, failed, make_shared, remove_tree};
use crate::shown;

/// How many lines of a failed command's output are logged, of its beginning and of its end.
const OUTPUT_LINES: usize = 10;

/// How much of the one line of it that a status shows.
const LINE_CHARS_MAX: usize = 200;

/// Why a release could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error("could not fetch {} from {url}", revision.short())]
    Fetch { revision: Revision, url: String, source: Box<FetchError> },
    #[error("could not check out {}", revision.short())]
    Tree { revision: Revision, source: TreeError },
    #[error("{path} of {} is not valid", revision.short())]
    Recipe { revision: Revision, path: String, source: RecipeError },
    #[error("{} has no recipe {path}", revision.short())]
    NoRecipe { revision: Revision, path: String },
    #[error("the recipe of {} is refused", revision.short())]
    Forbidden { revision: Revision, source: Forbidden },
    #[error("the recipe {path} of {} is not UTF-8", revision.short())]
    NotText { revision: Revision, path: String },
    #[error("{path} is in the repository, and shared.dirs names it too")]
    SharedInTree { path: String },
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("a thread of the agent ended before its work was done")]
    Thread(#[from] tokio::task::JoinError),
}

impl PrepareError {
    /// Which step failed, as reported.
    fn cause(&self) -> Cause {
        match self {
            PrepareError::Fetch { source, .. } if source.is_about_disk() => Cause::Disk,
            PrepareError::Fetch { source, .. } if source.is_refusal() => Cause::Refused,
            PrepareError::Fetch { .. } => Cause::Fetch,
            PrepareError::Tree { source, .. } if source.is_refusal() => Cause::Refused,
            PrepareError::Recipe { .. }
            | PrepareError::NoRecipe { .. }
            | PrepareError::Forbidden { .. }
            | PrepareError::NotText { .. }
            | PrepareError::SharedInTree { .. } => Cause::Refused,
            PrepareError::Install(source) if source.is_refusal() => Cause::Refused,
            PrepareError::Install(source) if source.is_about_disk() => Cause::Disk,
            PrepareError::Install(_) => Cause::Install,
            PrepareError::Tree { .. } | PrepareError::Disk(_) | PrepareError::Thread(_) => {
                Cause::Disk
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            PrepareError::Fetch { source, .. } => source.hint(),
            PrepareError::Tree { source, .. } => source.hint(),
            PrepareError::Recipe { .. } => Some(
                "correct it, check it with `towline-agent check`, release the new commit".into(),
            ),
            PrepareError::NoRecipe { path, .. } => Some(format!(
                "add {path} to the repository, or name another as git.recipe, or one on the host \
                     as default_recipe"
            )),
            PrepareError::Forbidden { source, .. } => Some(source.hint()),
            PrepareError::NotText { .. } => Some("save it as UTF-8".to_owned()),
            PrepareError::SharedInTree { path } => {
                Some(format!("remove it from the repository: git rm -r {path}"))
            }
            PrepareError::Install(source) => source.hint(),
            PrepareError::Disk(source) => source.hint(),
            PrepareError::Thread(_) => None,
        }
    }

    /// What the failed command said, for the log.
    fn output(&self) -> Option<&str> {
        match self {
            PrepareError::Install(
                InstallError::Command { source, .. } | InstallError::Runtime(source),
            ) => source.log(),
            _ => None,
        }
    }

    /// Whose output that is.
    fn step(&self) -> Step {
        match self {
            PrepareError::Install(InstallError::Command { step, .. }) => *step,
            _ => Step::Install,
        }
    }

    /// All that a status has room for, in one line.
    fn detail(&self) -> String {
        let mut detail = error::chain(self);
        if let Some(line) = self.output().and_then(shown::telling_line) {
            detail.push_str(": ");
            detail.push_str(&shown::short_line(line, LINE_CHARS_MAX));
        }
        match self.hint() {
            Some(hint) => format!("{detail} ({hint})"),
            None => detail,
        }
    }
}

/// A failure that was told: which step it was, and all that a status has room for.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) cause: Cause,
    pub(crate) detail: String,
}

/// Makes the release of `revision`, and looks whether a swap to it could begin.
pub(super) async fn prepare(
    tools: Rc<Tools>,
    revision: Revision,
    unless_like: Option<Revision>,
    stop: CancellationToken,
) -> Outcome {
    match make(&tools, &revision, unless_like, &stop).await {
        Ok(true) => Outcome::Prepared { alike: true },
        Ok(false) => match way::check_way(&tools, &Release::Own(revision.clone()), &stop).await {
            Ok(()) => Outcome::Prepared { alike: false },
            Err(detail) => {
                if !stop.is_cancelled() {
                    warn!(%revision, error = detail, "prepared, and this host is in the way");
                }
                Outcome::Failed(Cause::Host, detail)
            }
        },
        Err(Failed { cause, detail }) => Outcome::Failed(cause, detail),
    }
}

/// Makes the release of `revision`, unless the live one is alike; returns whether it is. The cause of a
/// failure is logged here, once.
pub(crate) async fn make(
    tools: &Tools,
    revision: &Revision,
    unless_like: Option<Revision>,
    stop: &CancellationToken,
) -> Result<bool, Failed> {
    let work = Work { tools, revision, stop };
    let outcome = work.prepare(unless_like).await;
    // Whatever was left half done is of no use to the next attempt.
    if let Err(error) = clear_staging(tools).await {
        warn!(error = error::chain(&error), "could not clear the staging area");
    }
    outcome.map_err(|error| {
        if !stop.is_cancelled() {
            let output = error.output();
            tools.saying.part(error.step().as_str(), output.unwrap_or_default());
            let output = output.map(|text| shown::ends(text, OUTPUT_LINES));
            warn!(
                %revision,
                error = error::chain(&error),
                hint = error.hint(),
                output,
                "prepare failed; nothing live was touched"
            );
        }
        Failed { cause: error.cause(), detail: error.detail() }
    })
}

async fn clear_staging(tools: &Tools) -> Result<(), PrepareError> {
    let store = tools.store.clone();
    Ok(spawn_blocking(move || store.clear_staging()).await??)
}

struct Work<'a> {
    tools: &'a Tools,
    revision: &'a Revision,
    stop: &'a CancellationToken,
}

impl Work<'_> {
    /// Returns whether the live release has the same content, and stands in for this one.
    async fn prepare(&self, unless_like: Option<Revision>) -> Result<bool, PrepareError> {
        let store = &self.tools.store;
        if let Some(marker) = store.marker(self.revision) {
            self.recipe(&marker.recipe)?;
            let live = unless_like.filter(|live| live != self.revision);
            return Ok(live
                .and_then(|live| store.marker(&live))
                .is_some_and(|l| l.is_like(&marker)));
        }
        let started = Instant::now();
        self.space(0, 0).await?;
        self.fetch().await?;
        let fetch_ms = elapsed_ms(started);
        let (plan, text) = self.plan().await?;
        let recipe = self.recipe(&text)?;
        let mut marker = Marker::new(self.revision.clone(), plan.subtree.clone(), text);
        let live = unless_like.and_then(|live| store.marker(&live));
        if live.is_some_and(|live| live.is_like(&marker)) {
            self.tools
                .saying
                .note("same subtree and recipe as what serves: nothing to swap".into());
            info!(revision = %self.revision, "same subtree and recipe as the live release: nothing to swap");
            return Ok(true);
        }
        self.space(plan.bytes, plan.entries).await?;
        self.quota(plan.bytes).await?;
        let barrier = Barrier::open(store.dir()).map_err(failed("open", store.dir()))?;
        let staged = store.staging().join("release");
        let (bytes, entries) = (plan.bytes, plan.entries);
        self.write(plan, &staged).await?;
        let write_ms = elapsed_ms(started) - fetch_ms;
        if recipe.build.is_some() {
            // A build runs in a copy.
            self.space(bytes, entries).await?;
        }
        let (install, build) = self.make(&recipe, &staged, &mut marker).await?;
        self.share(&recipe, &staged)?;
        let release = marker.clone();
        let own = store.clone();
        spawn_blocking(move || own.complete_release(&staged, &release, barrier)).await??;
        let elapsed_ms = elapsed_ms(started);
        let revision = self.revision;
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let also = recipe.build.as_ref().map_or(String::new(), |_| format!(", build {build}"));
        self.tools.saying.note(format!(
            "fetch {:.1} s, {entries} files written in {:.1} s, install {install}{also}; prepared in {:.1} s",
            seconds(fetch_ms),
            seconds(write_ms),
            seconds(elapsed_ms)
        ));
        info!(%revision, entries, fetch_ms, write_ms, install, build, elapsed_ms, "prepared");
        Ok(false)
    }

    /// Checks the space. Where it is missing, what has outgrown its limit and can be had again goes
    /// first: the agent's caches are bounded after a deploy, and without space there is none.
    async fn space(&self, bytes: u64, entries: u64) -> Result<(), PrepareError> {
        let (store, keep) = (self.tools.store.clone(), self.tools.config.keep.clone());
        let revision = self.revision.clone();
        let checked = spawn_blocking(move || {
            let check = || store.check_space(bytes, entries, keep.free_mib);
            check().or_else(|_| {
                bound_caches(&store, &keep, &revision);
                check()
            })
        });
        Ok(checked.await??)
    }

    /// Checks that the release fits beside those that are never pruned.
    async fn quota(&self, bytes: u64) -> Result<(), PrepareError> {
        let (store, due) = (self.tools.store.clone(), self.revision.clone());
        let (kept, quota) = (self.tools.kept.borrow().clone(), self.tools.config.keep.quota());
        let checked = spawn_blocking(move || {
            let in_use = manager::releases_in_use(&store.releases());
            store.check_quota(&Needed { kept, in_use }, &due, bytes, quota)
        });
        Ok(checked.await??)
    }

    async fn fetch(&self) -> Result<(), PrepareError> {
        let (cache, origin) = (self.tools.store.git_cache(), Arc::clone(&self.tools.origin));
        let (revision, stop) = (self.revision.clone(), self.stop.clone());
        let limit = self.tools.config.keep.git_mib.saturating_mul(1 << 20);
        let handle = tokio::runtime::Handle::current();
        let (store, free_mib) = (self.tools.store.clone(), self.tools.config.keep.free_mib);
        let room: Room = Arc::new(move || store.check_space(0, 0, free_mib));
        let fetched = spawn_blocking(move || {
            let cache_dir = cache;
            let mut cache = Cache::open(&cache_dir)?;
            if cache.has(&revision) && !origin.verifies_branch() {
                return Ok(false);
            }
            if cache.size_bytes() > limit {
                drop(cache);
                // A cache is only a cache: what it holds can be fetched again.
                drop(remove_tree(&cache_dir));
                cache = Cache::open(&cache_dir)?;
            }
            cache.fetch(&origin, &revision, &handle, &stop, &room).map(|fetched| fetched.set_aside)
        })
        .await?;
        let url = self.tools.config.git.url.clone();
        let revision = self.revision.clone();
        if fetched.map_err(|source| PrepareError::Fetch {
            revision,
            url,
            source: Box::new(source),
        })? {
            warn!("the git cache was broken: it was set aside and cloned anew");
        }
        Ok(())
    }

    /// Walks the tree under its limits, and reads the recipe.
    async fn plan(&self) -> Result<(Plan, String), PrepareError> {
        let (cache, path) = (self.tools.store.git_cache(), self.tools.config.git.recipe.clone());
        let (revision, limits) = (self.revision.clone(), self.tools.limits());
        let default = self.tools.default_recipe.clone();
        let read = spawn_blocking(move || {
            let dir = cache;
            let tree = |source| tree_failed(&dir, &revision, source);
            let cache = Cache::open(&dir).map_err(|source| PrepareError::Fetch {
                revision: revision.clone(),
                url: "the cache".to_owned(),
                source: Box::new(source),
            })?;
            let bytes = cache.file(&revision, &path, SIZE_BYTES_MAX).map_err(tree)?;
            let text = match (bytes.map(String::from_utf8), default) {
                (Some(Ok(text)), _) | (None, Some(text)) => text,
                (Some(Err(_)), _) => {
                    return Err(PrepareError::NotText { revision: revision.clone(), path });
                }
                (None, None) => {
                    return Err(PrepareError::NoRecipe { revision: revision.clone(), path });
                }
            };
            let recipe = Recipe::parse(&text).map_err(|source| PrepareError::Recipe {
                revision: revision.clone(),
                path,
                source,
            })?;
            let plan = cache.plan(&revision, &recipe.root, &limits).map_err(tree)?;
            let outputs = recipe.install.iter().flat_map(|install| &install.outputs);
            let built = recipe.build.iter().flat_map(|build| &build.outputs);
            for place in recipe.shared.iter().chain(outputs).chain(built) {
                plan.check_way_to(place).map_err(tree)?;
            }
            Ok((plan, text))
        });
        read.await?
    }

    /// Reads a recipe, which may use what host config allows.
    fn recipe(&self, text: &str) -> Result<Recipe, PrepareError> {
        let revision = || self.revision.clone();
        let recipe = Recipe::parse(text).map_err(|source| PrepareError::Recipe {
            revision: revision(),
            path: self.tools.config.git.recipe.clone(),
            source,
        })?;
        let allowed = self.tools.config.allow.check(&recipe);
        allowed.map_err(|source| PrepareError::Forbidden { revision: revision(), source })?;
        Ok(recipe)
    }

    async fn write(&self, plan: Plan, staged: &Path) -> Result<(), PrepareError> {
        let (cache, staged) = (self.tools.store.git_cache(), staged.to_owned());
        let (revision, stop) = (self.revision.clone(), self.stop.clone());
        spawn_blocking(move || {
            let opened = Cache::open(&cache).map_err(|source| PrepareError::Fetch {
                revision: revision.clone(),
                url: "the cache".to_owned(),
                source: Box::new(source),
            })?;
            let written = opened.write(&plan, &staged, &stop);
            written.map_err(|source| tree_failed(&cache, &revision, source))
        })
        .await?
    }

    /// Installs and builds, or reuses what was made before, and links it; returns which of the two, for
    /// the log.
    async fn make(
        &self,
        recipe: &Recipe,
        staged: &Path,
        marker: &mut Marker,
    ) -> Result<(&'static str, &'static str), PrepareError> {
        let (mut install, mut build) = ("none", "none");
        let (mut installed, mut built) = (None, None);
        if let Some(table) = &recipe.install {
            let (outputs, done) = self.install(table, staged).await?;
            (installed, install) = (Some(outputs), done);
        }
        if let Some(table) = &recipe.build {
            let (outputs, done) =
                self.build(table, staged, &marker.subtree, installed.as_ref()).await?;
            (built, build) = (Some(outputs), done);
        }
        let runtimes = [&installed, &built].into_iter().flatten();
        let runtimes: Vec<&str> =
            runtimes.filter_map(|outputs| outputs.key.runtime.as_deref()).collect();
        marker.runtime = (!runtimes.is_empty()).then(|| runtimes.join("\n"));
        marker.dependencies = installed.as_ref().map(|outputs| outputs.key.digest.clone());
        marker.build = built.as_ref().map(|outputs| outputs.key.digest.clone());
        for outputs in [installed, built].into_iter().flatten() {
            let (tree, kept_mib) = (staged.to_owned(), self.tools.config.keep.free_mib);
            spawn_blocking(move || outputs.link(&tree, kept_mib)).await??;
        }
        Ok((install, build))
    }

    async fn install(
        &self,
        install: &Install,
        staged: &Path,
    ) -> Result<(Outputs, &'static str), PrepareError> {
        let (run_as, scratch) = (&self.tools.run_as, self.scratch("install")?);
        let key = dependencies::key(install, staged, &scratch, run_as, self.stop).await?;
        let outputs = self.outputs(Making::from(install), key);
        if dependencies::is_complete(&outputs.store, &outputs.key) {
            return Ok((outputs, "reused"));
        }
        outputs.check_free(staged)?;
        let (own, table, run_as) = (outputs.clone(), install.clone(), run_as.clone());
        let (tree, place) = (staged.to_owned(), scratch.clone());
        let laid_out = spawn_blocking(move || {
            dependencies::lay_out_install(&own, &table, &tree, &place, &run_as)
        });
        let barrier = laid_out.await??;
        self.run(&outputs, scratch, barrier).await?;
        Ok((outputs, "installed"))
    }

    async fn build(
        &self,
        build: &Build,
        staged: &Path,
        subtree: &str,
        installed: Option<&Outputs>,
    ) -> Result<(Outputs, &'static str), PrepareError> {
        let (run_as, scratch) = (&self.tools.run_as, self.scratch("build")?);
        let seen = installed.map(|installed| &installed.key);
        let key =
            dependencies::build_key(build, subtree, seen, &scratch, run_as, self.stop).await?;
        let outputs = self.outputs(Making::from(build), key);
        if dependencies::is_complete(&outputs.store, &outputs.key) {
            return Ok((outputs, "reused"));
        }
        outputs.check_free(staged)?;
        let (own, installed, run_as) = (outputs.clone(), installed.cloned(), run_as.clone());
        let (tree, place) = (staged.to_owned(), scratch.clone());
        let kept_mib = self.tools.config.keep.free_mib;
        let laid_out = spawn_blocking(move || {
            dependencies::lay_out_build(&own, installed.as_ref(), &tree, &place, &run_as, kept_mib)
        });
        let barrier = laid_out.await??;
        self.run(&outputs, scratch, barrier).await?;
        Ok((outputs, "built"))
    }

    /// Runs the command of what is to be made, and keeps what it made.
    async fn run(
        &self,
        outputs: &Outputs,
        scratch: PathBuf,
        barrier: Barrier,
    ) -> Result<(), PrepareError> {
        dependencies::run(outputs, &scratch, &self.tools.run_as, self.stop).await?;
        let made = outputs.clone();
        Ok(spawn_blocking(move || made.keep(&scratch, barrier)).await??)
    }

    fn outputs(&self, making: Making, key: Key) -> Outputs {
        let is_sealed = self.tools.run_as.account.is_some();
        Outputs { store: self.tools.store.clone(), making, key, is_sealed, stop: self.stop.clone() }
    }

    /// Makes a directory of the staging area in which a command's own can be laid out.
    fn scratch(&self, name: &str) -> Result<PathBuf, DiskError> {
        let scratch = self.tools.store.staging().join(name);
        fs::create_dir(&scratch).map_err(failed("create", &scratch))?;
        Ok(scratch)
    }

    /// Puts links to what outlives releases into the staged one.
    fn share(&self, recipe: &Recipe, staged: &Path) -> Result<(), PrepareError> {
        for dir in &recipe.shared {
            let shared = self.tools.store.shared();
            let owner = self.tools.run_as.account.as_ref().map(|own| (own.uid, own.gid));
            make_shared(&shared, dir.as_str(), owner)?;
            let place = shared.join(dir.as_str());
            let link = staged.join(dir.as_str());
            if fs::symlink_metadata(&link).is_ok() {
                return Err(PrepareError::SharedInTree { path: dir.to_string() });
            }
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent).map_err(failed("create", parent))?;
            }
            symlink(&place, &link).map_err(failed("create", &link))?;
        }
        Ok(())
    }
}

/// Empties the caches that are larger than host config allows; not the one that holds what is due.
fn bound_caches(store: &Store, keep: &Keep, due: &Revision) {
    match dependencies::bound_package_cache(store, keep.package_cache_mib) {
        Ok(true) => info!("emptied the package cache, to make room"),
        Ok(false) => {}
        Err(error) => warn!(error = error::chain(&error), "could not empty the package cache"),
    }
    let dir = store.git_cache();
    let is_surplus = |cache: &Cache| {
        cache.size_bytes() > keep.git_mib.saturating_mul(1 << 20) && !cache.has(due)
    };
    if Cache::open(&dir).is_ok_and(|cache| is_surplus(&cache)) {
        match remove_tree(&dir) {
            Ok(()) => info!("emptied the git cache, to make room"),
            Err(error) => warn!(error = error::chain(&error), "could not empty the git cache"),
        }
    }
}

/// Says that a tree could not be had, and lets go of a cache that is to blame: its commit looks whole,
/// so that only an empty one makes the next attempt fetch it again.
fn tree_failed(cache: &Path, revision: &Revision, source: TreeError) -> PrepareError {
    if source.is_corrupt() {
        drop(remove_tree(cache));
    }
    PrepareError::Tree { revision: revision.clone(), source }
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}
