//! The mirror: the coordinator's clones of its groups' repositories, kept by the `git` program.
//!
//! It says what a name means, whether a commit is on the allowed branch, what a commit says of itself,
//! and how far one revision is behind another. It gives no files, and decides nothing.
//!
//! ```text
//!   resolve, is_on_branch ──► refresh ──► names, history      may go out, and wait for the origin
//!   commit, distance, describe ─────────► history             never go out: a view must not wait
//!   remembered ─────────────────────────► history             does not even ask git: nor must a change
//!                                │             │
//!                           repository: one bare clone, one writer, any number of readers
//!                                │
//!                             program: git, its settings, its surroundings ──► child: one process
//! ```
//!
//! Invariants
//! - Only `refs/heads/*` and `refs/tags/*` are fetched, with git's checks on and replaced objects off.
//! - Nothing that somebody else wrote reaches git as anything but a checked ref's name, a full id, or
//!   an address behind `--end-of-options`.
//! - Each child has a deadline, and is killed with what it started when that passes or nobody waits for
//!   it any longer. What it says is bounded.
//! - An origin that is away changes no answer about what was fetched before.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use towline_protocol::ids::Revision;

mod child;
mod credential;
mod error;
mod history;
mod names;
mod program;
mod repository;
mod said;
mod space;

pub use credential::{Credential, CredentialError, Secret};
pub use error::MirrorError;
pub use history::{CommitInfo, Described, Distance};
pub use names::{Kind, Resolved};
pub use said::{Said, Trouble};

use names::{Name, is_plain};
use program::Git;
use repository::{Repository, Wanted};
use said::{short_line, without_users};
use space::Space;

/// The variables of the coordinator's environment that git may get, where the configuration gives them.
pub const PASSED: &[&str] = &[
    "PATH",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
    "HTTPS_PROXY",
    "https_proxy",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// How recent a fetch must be for a word on what is on a branch: a release resolves its name just
/// before it asks, and then fetches once.
const BRANCH_AGE_MAX: Duration = Duration::from_secs(30);

/// How long one fetch may take unless the configuration says otherwise; a first clone is one.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// How much space stays free unless the configuration says otherwise: 1 GiB.
const FREE_MIB: u64 = 1024;

/// How much memory each process of git may have unless the configuration says otherwise: 2 GiB.
const MEMORY_MIB: u64 = 2048;

/// How mirrors are kept.
#[derive(Debug, Clone)]
pub struct MirrorConfig {
    /// The directory of all clones; made where there is none.
    pub dir: PathBuf,
    /// The program; `git`, looked up on `PATH`.
    pub git: PathBuf,
    /// How long one fetch may take; 600 s.
    pub fetch_timeout: Duration,
    /// How much space stays free: with less nothing is fetched; 1,024 MiB.
    pub free_mib: u64,
    /// How much memory each process of git may have; 2,048 MiB.
    pub memory_mib: u64,
    /// What https origins want to see.
    pub credentials: Vec<Credential>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Variables for git; those that are not in [`PASSED`] are left out.
    pub environment: Vec<(String, String)>,
    /// Fetch `file://` addresses too; for tests.
    pub allow_file: bool,
}

impl MirrorConfig {
    /// Returns the defaults, for clones in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            git: PathBuf::from("git"),
            fetch_timeout: FETCH_TIMEOUT,
            free_mib: FREE_MIB,
            memory_mib: MEMORY_MIB,
            credentials: Vec::new(),
            ca_file: None,
            environment: Vec::new(),
            allow_file: false,
        }
    }
}

/// The clones of all groups' repositories.
///
/// A repository is named by its address, as `towline_protocol::policy` has checked it. One value is
/// shared by all who ask; two on one directory would write into each other's clones.
#[derive(Debug)]
pub struct Mirror {
    git: Arc<Git>,
    space: Space,
    allow_file: bool,
    repositories: Mutex<BTreeMap<String, Arc<Repository>>>,
}

impl Mirror {
    /// Makes the directory, and fetches nothing.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn new(mut config: MirrorConfig) -> Result<Mirror, MirrorError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.dir);
        // Children run in it, and are given paths below it.
        config.dir = made.and_then(|()| config.dir.canonicalize()).map_err(|error| {
            MirrorError::Disk { dir: config.dir.clone(), source: Said::of(&error) }
        })?;
        let git = Arc::new(Git::new(&config));
        let space = Space { dir: config.dir, free_mib: config.free_mib };
        let allow_file = config.allow_file;
        Ok(Mirror { git, space, allow_file, repositories: Mutex::default() })
    }

    /// Makes sure that git is there and new enough. Every other call does so too; this one is for a
    /// coordinator that wants to say so when it starts.
    ///
    /// # Errors
    ///
    /// [`MirrorError::Start`] and [`MirrorError::TooOld`].
    pub async fn check(&self) -> Result<(), MirrorError> {
        self.git.check().await
    }

    /// Fetches, unless a fetch began less than `if_older_than` ago. Callers that come while one is
    /// under way wait for it, and share how it ended.
    ///
    /// A repository that was not fetched before is cloned, and a clone that was found to be broken is
    /// made anew.
    ///
    /// # Errors
    ///
    /// What kept the fetch from succeeding, or the last one where that is recent enough.
    pub async fn refresh(&self, url: &str, if_older_than: Duration) -> Result<(), MirrorError> {
        self.repository(url)?.refresh(Wanted::Within(if_older_than)).await
    }

    /// Says which commit a name means.
    ///
    /// A full id is that commit, whatever branches are called. `refs/heads/…` and `refs/tags/…` are
    /// exactly that branch or tag. Anything else may be a branch, a tag, which is followed to its
    /// commit, or the first four or more digits of a commit's id; a name that means more than one
    /// commit in these ways is refused. Only what branches and tags hold is known.
    ///
    /// Fetches first where the name is a branch, a tag, or not known.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]; [`MirrorError::is_about_name`] tells bad names from a mirror that cannot
    /// answer.
    pub async fn resolve(&self, url: &str, name: &str) -> Result<Resolved, MirrorError> {
        let asked = Instant::now();
        let repository = self.repository(url)?;
        let name_given = name;
        let name = Name::new(name)?;
        if repository.is_there() {
            match repository.look_up(&name).await {
                Ok(found) if !found.may_move() => return Ok(found),
                // What else it may be is in doubt until the origin was asked.
                Ok(_) | Err(MirrorError::Broken { .. }) => {}
                Err(error) if error.is_about_name() => {}
                Err(error) => return Err(error),
            }
        }
        // One that was under way may have asked the origin before the name was there.
        repository.refresh(Wanted::Since(asked)).await?;
        match repository.look_up(&name).await {
            Err(MirrorError::Unknown { name, url, .. }) => {
                let candidates = repository.similar(name_given).await;
                Err(MirrorError::Unknown { name, url, candidates })
            }
            other => other,
        }
    }

    /// Is this commit part of the branch's history, as the origin has it now? `false` where it is not
    /// known at all.
    ///
    /// Fetches, unless a fetch that succeeded began in the last 30 seconds and brought the commit: a no is
    /// always a fresh one.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]: the origin is away, or has no such branch.
    pub async fn is_on_branch(
        &self,
        url: &str,
        revision: &Revision,
        branch: &str,
    ) -> Result<bool, MirrorError> {
        if !is_plain(branch) {
            return Err(MirrorError::Name { name: short_line(branch, 80) });
        }
        let asked = Instant::now();
        let repository = self.repository(url)?;
        repository.refresh(Wanted::Good(BRANCH_AGE_MAX)).await?;
        match repository.is_below(revision, branch).await {
            Ok(Some(true)) => return Ok(true),
            // Branch or commit may have been pushed since: a no is asked for anew.
            Ok(Some(false) | None) | Err(MirrorError::Broken { .. }) => {}
            Err(error) => return Err(error),
        }
        repository.refresh(Wanted::Since(asked)).await?;
        if let Some(is_on) = repository.is_below(revision, branch).await? {
            return Ok(is_on);
        }
        let candidates = repository.similar(branch).await;
        Err(MirrorError::Unknown { name: branch.to_owned(), url: repository.shown(), candidates })
    }

    /// Says what a commit says of itself. Fetches nothing.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`]; the commit may not be known.
    pub async fn commit(&self, url: &str, revision: &Revision) -> Result<CommitInfo, MirrorError> {
        self.repository(url)?.commit(revision).await
    }

    /// Counts how `from` lies to `to`; `None` where one of them is not known, or their histories have
    /// nothing in common. Fetches nothing.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`].
    pub async fn distance(
        &self,
        url: &str,
        from: &Revision,
        to: &Revision,
    ) -> Result<Option<Distance>, MirrorError> {
        self.repository(url)?.distance(from, to).await
    }

    /// Tells about many commits at once, and how they lie to `target`; those that are not known are left
    /// out. Fetches nothing, and asks git once for all of them, save for distances that it has not
    /// counted before.
    ///
    /// # Errors
    ///
    /// See [`MirrorError`].
    pub async fn describe(
        &self,
        url: &str,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> Result<BTreeMap<Revision, Described>, MirrorError> {
        self.repository(url)?.describe(revisions, target).await
    }

    /// Tells about many commits what was found out before, by [`Mirror::describe`] for one. Asks nobody, and
    /// waits for nothing.
    #[must_use]
    pub fn remembered(
        &self,
        url: &str,
        revisions: &[Revision],
        target: Option<&Revision>,
    ) -> BTreeMap<Revision, Described> {
        let repository = self.repository(url);
        repository.map(|own| own.remembered(revisions, target)).unwrap_or_default()
    }

    /// Removes the clones of all repositories but these, save those that somebody is at. Returns how many
    /// there were. It waits for the disk.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or something in it cannot be removed.
    pub fn keep_only(&self, named: &BTreeSet<String>) -> Result<usize, MirrorError> {
        let gone = self.put_aside(named);
        let removed = gone.and_then(|gone| {
            gone.iter().try_for_each(fs::remove_dir_all)?;
            Ok(gone.len())
        });
        removed.map_err(|error| MirrorError::Disk {
            dir: self.space.dir.clone(),
            source: Said::of(&error),
        })
    }

    /// Puts aside what is to be removed, while nobody can begin to use it.
    fn put_aside(&self, named: &BTreeSet<String>) -> io::Result<Vec<PathBuf>> {
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        repositories.retain(|url, own| named.contains(url) || is_in_use(own));
        let kept = named.iter().chain(repositories.keys()).map(|url| repository::name_of(url));
        let kept: BTreeSet<String> = kept.collect();
        let mut gone = Vec::new();
        for entry in fs::read_dir(&self.space.dir)? {
            let path = entry?.path();
            let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
            let (Some(name), Some(end)) = (part(path.file_stem()), part(path.extension())) else {
                continue;
            };
            if kept.contains(&name) || !repository::ENDS.contains(&end.as_str()) {
                continue;
            }
            if end == repository::GONE {
                gone.push(path);
                continue;
            }
            // Of one name there may be several. What a removal left that was cut off goes first.
            let aside = self.space.dir.join(format!("{name}-{end}.{}", repository::GONE));
            if !aside.exists() {
                fs::rename(&path, &aside)?;
                gone.push(aside);
            }
        }
        Ok(gone)
    }

    fn repository(&self, url: &str) -> Result<Arc<Repository>, MirrorError> {
        // Groups' addresses were checked when they were set; this holds also where they were not.
        let is_plain = url.chars().all(|c| c.is_ascii_graphic()) && url.len() <= 4096;
        let is_known = ["https://", "http://", "ssh://"].iter().any(|form| url.starts_with(form))
            || (self.allow_file && url.starts_with("file:///"))
            || (!url.contains("://") && !url.starts_with('/') && url.contains(':'));
        if !is_plain || !is_known || url.starts_with('-') || url.contains("::") {
            let url = short_line(&without_users(url), 200);
            return Err(MirrorError::Address { url });
        }
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = repositories
            .entry(url.to_owned())
            .or_insert_with(|| Arc::new(Repository::new(self.git.clone(), &self.space, url)));
        Ok(repository.clone())
    }
}

/// Has somebody a hand on it, or a child that was left?
fn is_in_use(repository: &Arc<Repository>) -> bool {
    Arc::strong_count(repository) > 1 || repository.is_written()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use tempfile::TempDir;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const ZERO_DISTANCE: Distance = Distance { behind: 0, ahead: 0 };

    /// A repository that is fetched from, and a mirror of it.
    struct World {
        dir: TempDir,
        url: String,
        mirror: Mirror,
    }

    impl World {
        fn new() -> World {
            World::with(|_| {})
        }

        fn with(change: impl FnOnce(&mut MirrorConfig)) -> World {
            World::within(tempfile::tempdir().unwrap(), change)
        }

        fn within(dir: TempDir, change: impl FnOnce(&mut MirrorConfig)) -> World {
            let origin = dir.path().join("origin");
            fs::create_dir(&origin).unwrap();
            let url = format!("file://{}", origin.display());
            let mut config = MirrorConfig::new(dir.path().join("mirror"));
            config.allow_file = true;
            change(&mut config);
            let world = World { mirror: Mirror::new(config).unwrap(), dir, url };
            world.git(&["init", "--quiet", "--bare", "--initial-branch=main"], "");
            world
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Runs git in the origin.
        fn git(&self, arguments: &[&str], input: &str) -> String {
            git_in(&self.path("origin"), arguments, input)
        }

        /// Returns the one clone of the mirror.
        fn clone(&self) -> PathBuf {
            let mut found = fs::read_dir(self.path("mirror")).unwrap().map(|e| e.unwrap().path());
            let clone = found.next().unwrap();
            assert_eq!(found.next(), None, "nothing is left beside the clone");
            assert!(clone.extension().is_some_and(|end| end == "git"));
            clone
        }

        /// Writes a commit without files, and lets a ref point at it.
        fn commit(&self, name: &str, message: &str, parents: &[&Revision]) -> Revision {
            let tree = self.git(&["mktree"], "");
            let mut arguments = vec!["commit-tree", &tree];
            for parent in parents {
                arguments.extend(["-p", parent.as_str()]);
            }
            let id = self.git(&arguments, message);
            self.git(&["update-ref", name, &id], "");
            id.parse().unwrap()
        }

        async fn resolve(&self, name: &str) -> Result<Resolved, MirrorError> {
            self.mirror.resolve(&self.url, name).await
        }

        async fn refresh(&self) -> Result<(), MirrorError> {
            self.mirror.refresh(&self.url, NOW).await
        }

        /// How many times git was run to fetch, by a program that [`counting`] made.
        fn fetches(&self) -> usize {
            fs::read_to_string(self.path("fetches")).unwrap_or_default().lines().count()
        }
    }

    fn git_in(dir: &Path, arguments: &[&str], input: &str) -> String {
        let mut child = Command::new("git")
            .args(arguments)
            .current_dir(dir)
            .env_clear()
            .envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C")])
            .envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")])
            .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.com")])
            .envs([("GIT_COMMITTER_NAME", "Cy"), ("GIT_COMMITTER_EMAIL", "cy@example.com")])
            .envs([("GIT_AUTHOR_DATE", "1700000000 +0000")])
            .envs([("GIT_COMMITTER_DATE", "1700000060 +0000")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "git {arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a program. By another process: a file that is open here cannot be run.
    fn program(path: &Path, text: &str) {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "cat > \"$0\" && chmod 0755 \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        write!(child.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Makes git write a line for each fetch.
    fn counting(config: &mut MirrorConfig) {
        let dir = config.dir.parent().unwrap().to_owned();
        config.git = dir.join("git");
        let count = dir.join("fetches").display().to_string();
        program(
            &config.git,
            &format!("case $1 in fetch) echo x >> {count};; esac\nexec git \"$@\""),
        );
    }

    fn cause(error: &MirrorError) -> String {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }

    /// One repository with everything that a name can be mistaken for; each row is a rule.
    #[tokio::test]
    async fn names_mean_what_is_documented() {
        let world = World::new();
        let marker = world.path("marker");
        // A thousand commits, so that some share their first four digits.
        let mut history = String::new();
        for number in 1..=1000 {
            let message = format!("Step {number}");
            history.push_str(&format!(
                "commit refs/heads/main\nmark :{number}\ncommitter Cy <cy@example.com> {} +0000\n\
                 data {}\n{message}\n",
                1_700_000_000 + number,
                message.len(),
            ));
        }
        world.git(&["fast-import", "--quiet"], &history);
        let list = world.git(&["rev-list", "main"], "");
        let ids: Vec<Revision> = list.lines().map(|id| id.parse().unwrap()).collect();
        let (tip, old) = (&ids[0], &ids[500]);
        let shared = |digits: usize| {
            let begin = |id: &Revision| id.as_str()[..digits].to_owned();
            let twice = ids
                .iter()
                .map(begin)
                .find(|one| ids.iter().filter(|id| id.as_str().starts_with(one)).count() > 1);
            twice.expect("some share their first digits")
        };
        let short = |id: &Revision, digits: usize| id.as_str()[..digits].to_owned();
        let tree = world.git(&["mktree"], "");
        world.git(&["tag", "-a", "-m", "one", "v1", old.as_str()], "");
        world.git(&["tag", "-a", "-m", "of a tag", "v1-again", "v1"], "");
        world.git(&["tag", "light", old.as_str()], "");
        world.git(&["tag", "a-tree", &tree], "");
        world.git(&["branch", "both", tip.as_str()], "");
        world.git(&["tag", "both", old.as_str()], "");
        world.git(&["branch", "same", old.as_str()], "");
        world.git(&["tag", "same", old.as_str()], "");
        world.git(&["branch", "Feature/Grün", old.as_str()], "");
        let taken = short(old, 10);
        world.git(&["branch", &taken, tip.as_str()], "");
        let fine = short(tip, 12);
        world.git(&["branch", &fine, tip.as_str()], "");
        world.git(&["branch", "refs/heads/evil", tip.as_str()], "");
        world.git(&["update-ref", &format!("refs/heads/{old}"), tip.as_str()], "");
        let tag_id = world.git(&["rev-parse", "refs/tags/v1"], "");
        // Whoever may push could let one commit stand for another.
        world.git(&["update-ref", &format!("refs/replace/{old}"), tip.as_str()], "");
        world.git(&["update-ref", "refs/pull/1/head", tip.as_str()], "");

        let means = [
            ("a full id", tip.to_string(), tip, Kind::Id),
            ("in capitals", tip.to_string().to_uppercase(), tip, Kind::Id),
            ("a full id, whatever branches are called", old.to_string(), old, Kind::Id),
            ("an abbreviation", short(old, 12), old, Kind::Abbreviation),
            ("an abbreviation in capitals", short(old, 12).to_uppercase(), old, Kind::Abbreviation),
            ("a branch", "main".to_owned(), tip, Kind::Branch),
            ("letters of any kind", "Feature/Grün".to_owned(), old, Kind::Branch),
            ("an annotated tag", "v1".to_owned(), old, Kind::Tag),
            ("a tag of a tag", "v1-again".to_owned(), old, Kind::Tag),
            ("a plain tag", "light".to_owned(), old, Kind::Tag),
            ("branch and tag that agree", "same".to_owned(), old, Kind::Branch),
            ("a branch named after its own commit", fine.clone(), tip, Kind::Branch),
            ("exactly the branch", "refs/heads/both".to_owned(), tip, Kind::Branch),
            ("exactly the tag", "refs/tags/both".to_owned(), old, Kind::Tag),
            ("exactly the branch of digits", format!("refs/heads/{taken}"), tip, Kind::Branch),
            (
                "a branch called like a ref",
                "refs/heads/refs/heads/evil".to_owned(),
                tip,
                Kind::Branch,
            ),
        ];
        for (rule, name, revision, kind) in means {
            let found = world.resolve(&name).await.unwrap();
            assert_eq!((&found.revision, found.kind), (revision, kind), "{rule}");
        }

        let marked = format!("--upload-pack=touch {}", marker.display());
        let refused = [
            ("a branch and a tag that differ", "both".to_owned(), "ambiguous"),
            ("a branch called like another commit", taken.clone(), "ambiguous"),
            ("digits that two share", shared(4), "ambiguous"),
            ("a tree", tree.clone(), "not-commit"),
            ("digits of a tree", tree[..8].to_owned(), "not-commit"),
            ("a tag's own id", tag_id, "not-commit"),
            ("a tag of a tree", "a-tree".to_owned(), "not-commit"),
            ("no such branch", "mian".to_owned(), "unknown"),
            ("no such commit", "0".repeat(40), "unknown"),
            ("three digits", short(tip, 3), "unknown"),
            ("not by another way", "refs/heads/evil".to_owned(), "unknown"),
            ("no ref of a pull request", "refs/pull/1/head".to_owned(), "name"),
            ("not what it may stand for", format!("refs/replace/{old}"), "name"),
            ("the head of the clone", "HEAD".to_owned(), "unknown"),
            ("an option", marked.clone(), "name"),
            ("a short option", "-h".to_owned(), "name"),
            ("a branch's name and more", "main --all".to_owned(), "name"),
            ("a range", format!("{old}..{tip}"), "name"),
            ("a parent", "main^".to_owned(), "name"),
        ];
        for (rule, name, expected) in refused {
            let error = world.resolve(&name).await.expect_err(rule);
            let found = match &error {
                MirrorError::Ambiguous { meanings, .. } => {
                    assert!(meanings.len() > 1, "{rule}: {error}");
                    "ambiguous"
                }
                MirrorError::NotCommit { .. } => "not-commit",
                MirrorError::Unknown { .. } => "unknown",
                MirrorError::Name { .. } => "name",
                _ => "something else",
            };
            assert_eq!(found, expected, "{rule}: {}", cause(&error));
            assert!(error.is_about_name() && !error.is_temporary(), "{rule}");
            assert!(error.hint().is_some(), "{rule}");
        }
        let error = world.resolve("mai").await.unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("main")), "{error}");
        for bad in ["--upload-pack=x", "main --all", "main^{tree}"] {
            let error = world.mirror.is_on_branch(&world.url, tip, bad).await.unwrap_err();
            assert!(matches!(error, MirrorError::Name { .. }), "{bad}: {error}");
        }
        assert!(!marker.exists(), "nothing was run");

        // Nothing but branches and tags came, and what stands for something else is not heeded.
        let clone = world.clone();
        let refs = git_in(&clone, &["for-each-ref", "--format=%(refname)"], "");
        assert!(refs.lines().all(|r| r.starts_with("refs/heads/") || r.starts_with("refs/tags/")));
        git_in(&clone, &["update-ref", &format!("refs/replace/{old}"), tip.as_str()], "");
        let subject = |commit: CommitInfo| commit.subject;
        assert_eq!(world.mirror.commit(&world.url, old).await.map(subject).unwrap(), "Step 500");
        let distance = world.mirror.distance(&world.url, old, tip).await.unwrap();
        assert_eq!(distance, Some(Distance { behind: 500, ahead: 0 }));

        // Distances are counted so many at a time, and then known.
        let many = &ids[..150];
        for expected in [100, 150] {
            let described = world.mirror.describe(&world.url, many, Some(tip)).await.unwrap();
            assert_eq!(described.len(), many.len());
            let counted = described.values().filter(|one| one.distance.is_some()).count();
            assert_eq!(counted, expected);
        }
    }

    #[tokio::test]
    async fn what_is_on_a_branch_follows_the_origin() {
        let world = World::new();
        let (mirror, url) = (&world.mirror, world.url.as_str());
        let base = world.commit("refs/heads/main", "base", &[]);
        let left = world.commit("refs/heads/main", "left", &[&base]);
        let right = world.commit("refs/heads/side", "right", &[&base]);
        let right = world.commit("refs/heads/side", "more", &[&right]);
        let merge = world.commit("refs/heads/main", "merge", &[&left, &right]);
        let foreign = world.commit("refs/heads/foreign", "unrelated", &[]);
        let pull = world.commit("refs/pull/1/head", "from a fork", &[&base]);
        let unknown: Revision = "12345678".repeat(5).parse().unwrap();
        let cases = [
            ("its tip", &merge, "main", true),
            ("its history", &base, "main", true),
            ("through a merge", &right, "main", true),
            ("ahead of it", &merge, "side", false),
            ("another history", &foreign, "main", false),
            ("of a pull request", &pull, "main", false),
            ("not known", &unknown, "main", false),
        ];
        for (rule, revision, branch, expected) in cases {
            let found = mirror.is_on_branch(url, revision, branch).await.unwrap();
            assert_eq!(found, expected, "{rule}");
        }
        let error = mirror.is_on_branch(url, &base, "mainn").await.unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("main")), "{error}");

        let distances = [
            ("itself", &merge, &merge, Some(ZERO_DISTANCE)),
            ("behind by a merge", &base, &merge, Some(Distance { behind: 4, ahead: 0 })),
            ("ahead by a merge", &merge, &left, Some(Distance { behind: 0, ahead: 3 })),
            ("both", &left, &right, Some(Distance { behind: 2, ahead: 1 })),
            ("nothing in common", &foreign, &merge, None),
            ("not known", &unknown, &merge, None),
            ("to what is not known", &merge, &unknown, None),
        ];
        for (rule, from, to, expected) in distances {
            assert_eq!(mirror.distance(url, from, to).await.unwrap(), expected, "{rule}");
        }
        let all = [merge.clone(), base.clone(), foreign.clone(), unknown.clone()];
        let described = mirror.describe(url, &all, Some(&merge)).await.unwrap();
        assert_eq!(described.keys().len(), 3, "what is not known is left out");
        assert_eq!(described[&base].distance, Some(Distance { behind: 4, ahead: 0 }));
        assert_eq!(described[&foreign].distance, None);
        let commit = &described[&base].commit;
        assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("base", "Ada"));
        assert_eq!(commit.authored.0, 1_700_000_000_000);
        let error = mirror.commit(url, &unknown).await.unwrap_err();
        assert!(matches!(error, MirrorError::Unknown { .. }), "{error}");

        // Fetched once more, because it was not there just now.
        world.git(&["branch", "late", base.as_str()], "");
        assert!(mirror.is_on_branch(url, &base, "late").await.unwrap());

        // Pushed a moment after the last fetch, and released at once.
        world.git(&["update-ref", "refs/heads/late", merge.as_str()], "");
        assert!(mirror.is_on_branch(url, &merge, "late").await.unwrap(), "a no is a fresh one");

        // Pushed by force, and one branch in the place of a folder of branches.
        world.git(&["update-ref", "refs/heads/main", left.as_str()], "");
        world.git(&["branch", "-D", "side"], "");
        world.git(&["branch", "side/new", base.as_str()], "");
        world.refresh().await.unwrap();
        assert!(!mirror.is_on_branch(url, &merge, "main").await.unwrap(), "no longer");
        assert!(mirror.is_on_branch(url, &left, "main").await.unwrap());
        assert_eq!(mirror.commit(url, &merge).await.unwrap().subject, "merge", "still known");
        assert_eq!(world.resolve("side/new").await.unwrap().revision, base);
        assert!(world.resolve("side").await.is_err(), "a branch that is gone is gone here");
        assert_eq!(world.resolve(merge.as_str()).await.unwrap().kind, Kind::Id);
    }

    /// Does something to a clone.
    type Way<'a> = &'a dyn Fn(&Path);

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
    async fn an_origin_that_is_away_changes_no_answer() {
        let world = World::with(counting);
        let (mirror, url) = (&world.mirror, world.url.as_str());
        let first = world.commit("refs/heads/main", "first", &[]);
        let error = mirror.commit(url, &first).await.unwrap_err();
        assert!(matches!(error, MirrorError::Empty { .. }) && error.is_temporary(), "{error}");
        assert_eq!(world.fetches(), 0, "a view does not fetch");
        let next = world.commit("refs/heads/main", "next", &[&first]);
        world.refresh().await.unwrap();

        fs::rename(world.path("origin"), world.path("away")).unwrap();
        let error = world.refresh().await.unwrap_err();
        assert!(matches!(error, MirrorError::Fetch { .. }) && error.is_temporary(), "{error}");
        assert!(error.to_string().starts_with("could not fetch file:///"), "{error}");
        assert!(world.resolve("main").await.unwrap_err().is_temporary(), "a branch may have moved");
        assert!(world.resolve("0123456").await.unwrap_err().is_temporary(), "it may be there");
        let error = mirror.is_on_branch(url, &first, "main").await.unwrap_err();
        assert!(error.is_temporary(), "nobody knows: {error}");
        assert_eq!(world.resolve(first.as_str()).await.unwrap().revision, first);
        assert_eq!(world.resolve(&first.as_str()[..12]).await.unwrap().revision, first);
        assert_eq!(mirror.commit(url, &next).await.unwrap().subject, "next");
        let distance = mirror.distance(url, &first, &next).await.unwrap();
        assert_eq!(distance, Some(Distance { behind: 1, ahead: 0 }));

        let minute = Duration::from_secs(60);
        let before = world.fetches();
        assert!(mirror.refresh(url, minute).await.is_err(), "the last one counts, as it was");
        assert_eq!(world.fetches(), before);
        fs::rename(world.path("away"), world.path("origin")).unwrap();
        world.refresh().await.unwrap();
        mirror.refresh(url, minute).await.unwrap();
        assert!(mirror.is_on_branch(url, &first, "main").await.unwrap());
        assert_eq!(world.fetches(), before + 1, "both took what had just been fetched");
    }

    /// Handlers of requests run on any thread.
    #[test]
    fn every_question_can_be_asked_from_any_thread() {
        fn goes_anywhere<T: Send>(_: T) {}
        let world = World::new();
        let (mirror, url) = (&world.mirror, world.url.as_str());
        let revision: Revision = "12345678".repeat(5).parse().unwrap();
        goes_anywhere(mirror.check());
        goes_anywhere(mirror.refresh(url, NOW));
        goes_anywhere(mirror.resolve(url, "main"));
        goes_anywhere(mirror.is_on_branch(url, &revision, "main"));
        goes_anywhere(mirror.commit(url, &revision));
        goes_anywhere(mirror.distance(url, &revision, &revision));
        goes_anywhere(mirror.describe(url, std::slice::from_ref(&revision), None));
        goes_anywhere(mirror);
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
        let count =
            packs.filter(|e| e.as_ref().unwrap().path().extension().unwrap() == "pack").count();
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
        config.credentials = vec![Credential {
            host: "git.example".to_owned(),
            secret: Secret::read(&token).unwrap(),
        }];
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
}
