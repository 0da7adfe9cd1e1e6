//! From host config to a shell that is ready to run: who am I, what is on disk, what runs.
//!
//! Whatever is wrong with the host is found here, before anything is changed, and ends the start
//! with an error. What is wrong with a target, a revision or the network is not looked at: an agent
//! that serves something lives on with it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{self, Find, Recipe, RecipeError};
use tracing::{info, warn};

use crate::config::{self, Config, Forbidden};
use crate::error;
use crate::git::{Origin, OriginConfig, OriginError, PlaceConfig};
use crate::journal::{Journal, Release};
use crate::machine::{Effect, Found, Machine, Policy};
use crate::process::{self, Account, AccountError, CgroupHome, RunAs};
use crate::release::state::{Leaving, Lock, boot_id};
use crate::release::{DiskError, Store, is_passing};
use crate::shell::{Due, Saying, Shell, Tools, answers, finder, look};
use crate::source::Source;
use crate::source::coordinator::{self, Coordinator, CoordinatorError, Own};
use crate::source::file::FileSource;
use crate::status::seconds_now;
use crate::systemd::Notify;

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It would have to run recipes as root.
    #[error("the agent runs as root, and {} names no user", config.display())]
    NoUser {
        /// Host config.
        config: PathBuf,
    },
    /// It would run recipes as root by another name.
    #[error("recipes would run as root: {} names the user {user}", config.display())]
    Root {
        /// Host config.
        config: PathBuf,
        /// The user as configured.
        user: String,
    },
    /// It cannot become another user.
    #[error("the agent runs as uid {own}, and {} names the user {user}", config.display())]
    OtherUser {
        /// Host config.
        config: PathBuf,
        /// Who it runs as.
        own: u32,
        /// Who it would have to be.
        user: String,
    },
    /// The app's user is not known.
    #[error("could not find the app's user")]
    Account(#[source] AccountError),
    /// The app's directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The default recipe could not be read.
    #[error("could not read the default recipe {}", path.display())]
    DefaultRecipeFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The default recipe is not valid.
    #[error("the default recipe {} is not valid", path.display())]
    DefaultRecipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// The default recipe uses what this host does not allow.
    #[error("the default recipe {} is refused", path.display())]
    DefaultRecipeForbidden {
        /// The file.
        path: PathBuf,
        /// What it may not use.
        source: Forbidden,
    },
    /// The origin cannot be used.
    #[error("could not use the origin in [git]")]
    Origin(#[source] OriginError),
    /// The target file's directory cannot be watched.
    #[error("could not watch the directory of {}", path.display())]
    Source {
        /// The target file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The coordinator cannot be used.
    #[error("could not use the coordinator")]
    Coordinator(#[source] CoordinatorError),
    /// What the live release's recipe says cannot be used, so that nothing is found or started by it.
    #[error(
        "no manager can be found or started: the recipe of the live release {} is not valid",
        revision.short()
    )]
    LiveRecipe {
        /// The live release.
        revision: Revision,
        /// What is wrong with its recipe.
        source: RecipeError,
    },
}

impl StartError {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            StartError::NoUser { .. } | StartError::Root { .. } => Some(
                "set `user = \"…\"`, the account that the app runs as: nothing from a repository \
                 runs as root"
                    .to_owned(),
            ),
            StartError::OtherUser { .. } => {
                Some("run the agent as root, or as that user, or leave `user` out".to_owned())
            }
            StartError::Account(source) => source.hint(),
            StartError::Disk(source) => source.hint(),
            StartError::Origin(source) => source.hint(),
            StartError::Source { path, .. } => {
                let dir = path.parent().unwrap_or(path);
                Some(format!("create {} first; the file itself may come later", dir.display()))
            }
            StartError::Coordinator(source) => source.hint(),
            StartError::DefaultRecipeFile { .. } => {
                Some("write it, or leave `default_recipe` out".to_owned())
            }
            StartError::DefaultRecipe { .. } => {
                Some("correct it: it is a recipe as in a repository".to_owned())
            }
            StartError::DefaultRecipeForbidden { source, .. } => Some(source.hint()),
            StartError::LiveRecipe { .. } => Some(
                "remove `current` once, and release a revision whose recipe `towline-agent check` \
                 finds valid"
                    .to_owned(),
            ),
        }
    }

    /// Is it another agent's doing, or a disk's that is unwell, so that trying later helps?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            StartError::Disk(source) => source.is_temporary(),
            StartError::Source { source, .. } => is_passing(source),
            _ => false,
        }
    }
}

/// Checks what [`start`] would refuse of host config, and touches nothing.
///
/// The account that it would run as, and the credential, are looked at only by root: another user's
/// answer would be another.
///
/// # Errors
///
/// See [`StartError`].
pub fn check(config: &Config) -> Result<(), StartError> {
    let is_root = Account::own().uid == 0;
    if is_root {
        account(config)?;
    }
    default_recipe(config)?;
    origin(config, is_root).map_err(StartError::Origin)?;
    if let config::Source::Coordinator(coordinator) = &config.source {
        coordinator::check(coordinator, is_root).map_err(StartError::Coordinator)?;
    }
    Ok(())
}

/// Starts the agent of one app: returns its shell, and the first effects to perform. `notify` is told
/// when it is settled what `current` is.
///
/// # Errors
///
/// See [`StartError`].
pub async fn start(config: Config, notify: Notify) -> Result<(Shell, Vec<Effect>), StartError> {
    let (account, origin, default_recipe) = parts(&config)?;
    let store = Store::new(&config.dir);
    store.prepare()?;
    let lock = store.lock()?;
    let (mut journal, said) = store.read_journal(&config.instance)?;
    if let Some(said) = said {
        warn!(said, "the journal was broken; what was proven and rejected before is forgotten");
    }
    let cgroups = CgroupHome::find();
    clear(&store, cgroups.as_ref()).await?;
    let seed = seed(&config);
    if matches!(config.source, config::Source::Coordinator(_)) {
        count_run(&store, &mut journal);
    }
    let source = source(&config, &store, journal.run, seed)?;
    let policy = Policy {
        group: config.group.clone(),
        has_adopted: config.adopted.is_some(),
        boot_deadline: config.boot_deadline,
        backoff: config.backoff.0,
        backoff_max: config.backoff.1,
        seed,
    };
    let mut tools = assemble(config, store, account, origin, default_recipe, cgroups);
    tools.notify = notify;
    // A reload that the last run asked for may still be under way.
    tools.is_unsettled.set(journal.swap.is_some());
    let tools = Rc::new(tools);
    let found = survey(&tools, Some(&journal)).await?;
    info!(
        instance = %journal.instance,
        current = found.current.as_ref().map(tracing::field::display),
        running = found.is_running,
        releases = found.releases.len(),
        unfinished = journal.swap.is_some(),
        "started"
    );
    let (machine, effects) = Machine::new(policy, journal, found);
    Ok((Shell::new(tools, machine, source, lock), effects))
}

/// What is made of host config before anything is changed.
type Parts = (Option<Account>, Origin, Option<String>);

fn parts(config: &Config) -> Result<Parts, StartError> {
    Ok((account(config)?, origin_of(config)?, default_recipe(config)?))
}

/// The origin, with its credential.
pub(crate) fn origin_of(config: &Config) -> Result<Origin, StartError> {
    origin(config, true).map_err(StartError::Origin)
}

fn assemble(
    config: Config,
    store: Store,
    account: Option<Account>,
    origin: Origin,
    default_recipe: Option<String>,
    cgroups: Option<CgroupHome>,
) -> Tools {
    let environment = config.environment.clone();
    let tag = tag(&store);
    Tools {
        config,
        store,
        origin: Arc::new(origin),
        run_as: RunAs { account, environment, tag, cgroups, grace: process::GRACE },
        before: RefCell::new(None),
        is_unsettled: Cell::new(false),
        hooks: RefCell::new(Due::default()),
        notify: Notify::default(),
        saying: Saying::default(),
        has_hooked: RefCell::default(),
        doubt: RefCell::default(),
        is_lost: Cell::new(false),
        default_recipe,
        kept: RefCell::default(),
    }
}

/// By which an app's processes are known on this host.
fn tag(store: &Store) -> String {
    store.dir().display().to_string()
}

/// Ends and removes what the last run has left.
async fn clear(store: &Store, cgroups: Option<&CgroupHome>) -> Result<(), StartError> {
    // In a cgroup a child is found wherever it goes; elsewhere, by coming to the agent.
    process::adopt_orphans(cgroups.is_none());
    let ended = process::end_leftovers(&tag(store), cgroups).await;
    if ended > 0 {
        warn!(ended, "ended what the last run of the agent had left behind");
    }
    Ok(store.clear_staging()?)
}

/// What a release is made with, where no agent runs and none is started: for `bake` and `try`.
///
/// # Errors
///
/// See [`StartError`].
pub(crate) async fn workshop(config: Config) -> Result<(Tools, Lock), StartError> {
    let (account, origin, default_recipe) = parts(&config)?;
    let store = Store::new(&config.dir);
    store.prepare()?;
    let lock = store.lock()?;
    let cgroups = CgroupHome::find();
    clear(&store, cgroups.as_ref()).await?;
    Ok((assemble(config, store, account, origin, default_recipe, cgroups), lock))
}

/// Numbers this run, before its first message. Seconds since 1970 make it grow even where the journal was
/// lost, or cannot be written now.
fn count_run(store: &Store, journal: &mut Journal) {
    let left = store.leaving().map_or(0, |leaving| leaving.run);
    journal.run = (journal.run.max(left) + 1).max(seconds_now());
    if let Err(error) = store.write_journal(journal) {
        warn!(error = error::chain(&error), hint = error.hint(), "could not write the journal");
    }
}

/// Says goodbye for this instance, and has a running agent start nothing more until the next boot.
///
/// # Errors
///
/// What kept it from arriving, in one line; the agent starts nothing more all the same.
pub async fn goodbye(config: &Config) -> Result<(), String> {
    let config::Source::Coordinator(coordinator) = &config.source else {
        return Err("targets come from a file: there is nobody to say goodbye to".to_owned());
    };
    let store = Store::new(&config.dir);
    let (journal, _) =
        store.read_journal(&config.instance).map_err(|error| error::chain(&error))?;
    let run = (journal.run + 1).max(seconds_now());
    let noted = store.write_leaving(&Leaving { boot: boot_id(), run });
    let own = Own {
        group: config.group.clone(),
        instance: config.instance.clone(),
        run,
        seed: seed(config),
        store,
    };
    let said = coordinator::goodbye(coordinator, own).await;
    noted.map_err(|error| error::chain(&error)).and(said)
}

/// Spreads what a fleet does at a time: by the instance's name.
fn seed(config: &Config) -> u64 {
    let bytes = config.instance.as_str().bytes();
    bytes.fold(0, |seed: u64, byte| seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte))
}

fn source(config: &Config, store: &Store, run: u64, seed: u64) -> Result<Source, StartError> {
    match &config.source {
        config::Source::File(path) => {
            store.remove_contact();
            let file = FileSource::watch(path, &config.group);
            let path = path.clone();
            file.map(|file| Source::File(Box::new(file)))
                .map_err(|source| StartError::Source { path, source })
        }
        config::Source::Coordinator(coordinator) => {
            let (group, instance) = (config.group.clone(), config.instance.clone());
            let own = Own { group, instance, run, seed, store: store.clone() };
            Coordinator::start(coordinator, own)
                .map(Source::Coordinator)
                .map_err(StartError::Coordinator)
        }
    }
}

/// Finds out what is on disk, and whether the live release runs; where none of ours is live, whether what
/// was adopted does.
///
/// - `journal`: what is known of this instance; `None` where an image is built.
pub(crate) async fn survey(tools: &Tools, journal: Option<&Journal>) -> Result<Found, StartError> {
    let store = &tools.store;
    let releases = store.complete();
    if let Some(adopted) = tools.config.adopted.as_ref().filter(|_| store.is_bare()) {
        let is_running = is_running(tools, &adopted.recipe, &Release::Adopted, journal).await;
        let current = is_running.then_some(Release::Adopted);
        return Ok(Found { releases, current, is_running });
    }
    let current = store.live();
    let mut is_running = false;
    if let Some(revision) = &current
        && let Some(marker) = store.marker(revision)
    {
        let recipe = Recipe::parse(&marker.recipe)
            .map_err(|source| StartError::LiveRecipe { revision: revision.clone(), source })?;
        is_running =
            self::is_running(tools, &recipe, &Release::Own(revision.clone()), journal).await;
    }
    Ok(Found { releases, current: current.map(Release::Own), is_running })
}

async fn is_running(
    tools: &Tools,
    recipe: &Recipe,
    release: &Release,
    journal: Option<&Journal>,
) -> bool {
    // What has no manager serves for as long as `current` names it; on an instance that never proved it, it
    // is what the image has.
    let Some(finder) = finder(tools, recipe) else {
        let is_known = |journal: &Journal| {
            journal.swap.is_some() || release.own().is_some_and(|own| journal.proven.contains(own))
        };
        return journal.is_some_and(is_known);
    };
    // While an image is built there may be nobody to ask.
    if matches!(finder, Find::Unit(_)) && journal.is_none() && !Path::new(SYSTEMD).is_dir() {
        return false;
    }
    match look(tools, &finder, release, &CancellationToken::new()).await {
        Ok(Some(_)) => true,
        // Whoever has lost the pid file of an app that serves must not start another one.
        Ok(None) => answers(tools, recipe, release).await,
        Err(error) => {
            let hint = error.hint();
            warn!(error = error::chain(&error), hint, "it is open whether the app runs");
            // Then it is not a boot: what may run is looked at, and nothing is started beside it.
            true
        }
    }
}

/// Is there where systemd runs the host (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Who recipes run as: never root.
pub(crate) fn account(config: &Config) -> Result<Option<Account>, StartError> {
    let own = Account::own().uid;
    let at = || config.path.clone();
    match &config.user {
        None if own == 0 => Err(StartError::NoUser { config: at() }),
        None => Ok(None),
        Some(user) => {
            let account = Account::lookup(user).map_err(StartError::Account)?;
            if account.uid == 0 {
                return Err(StartError::Root { config: at(), user: user.clone() });
            }
            if own != 0 && account.uid != own {
                return Err(StartError::OtherUser { config: at(), own, user: user.clone() });
            }
            Ok((own == 0).then_some(account))
        }
    }
}

/// Returns what is likely to fail of the origin, though it is no mistake.
#[must_use]
pub fn doubts(config: &Config) -> Vec<String> {
    origin(config, false).map(|origin| origin.doubts()).unwrap_or_default()
}

/// Reads the recipe of revisions that have none, which must be one.
pub(crate) fn default_recipe(config: &Config) -> Result<Option<String>, StartError> {
    let Some(path) = &config.default_recipe else { return Ok(None) };
    let path = || path.clone();
    let failed = |source| StartError::DefaultRecipeFile { path: path(), source };
    let meta = fs::metadata(path()).map_err(failed)?;
    if !meta.is_file() || meta.len() > recipe::SIZE_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no small file")));
    }
    let text = fs::read_to_string(path()).map_err(failed)?;
    let recipe = Recipe::parse(&text)
        .map_err(|source| StartError::DefaultRecipe { path: path(), source })?;
    let allowed = config.allow.check(&recipe);
    allowed.map_err(|source| StartError::DefaultRecipeForbidden { path: path(), source })?;
    Ok(Some(text))
}

/// Sets the origin up; without credentials where they are not ours to look at.
fn origin(config: &Config, with_credentials: bool) -> Result<Origin, OriginError> {
    use std::time::Duration;
    let git = &config.git;
    let own = |path: &Option<PathBuf>| path.clone().filter(|_| with_credentials);
    let mut places = vec![PlaceConfig {
        field: "git.url",
        url: git.url.clone(),
        credential: own(&git.credential),
        ca_file: git.ca_file.clone(),
        known_hosts: git.known_hosts.clone(),
    }];
    places.extend(git.mirrors.iter().map(|mirror| PlaceConfig {
        field: "git.mirrors.url",
        url: mirror.url.clone(),
        credential: own(&mirror.credential),
        ca_file: mirror.ca_file.clone(),
        known_hosts: mirror.known_hosts.clone(),
    }));
    Origin::new(OriginConfig {
        places,
        branch: git.branch.clone(),
        allow_http: git.allow_http,
        verify_branch: git.verify_branch,
        connect: Duration::from_secs_f64(git.connect_s),
        stall: Duration::from_secs_f64(git.stall_s),
        total: Duration::from_secs_f64(git.total_s),
        search_path: config.environment.get("PATH").cloned(),
    })
}
