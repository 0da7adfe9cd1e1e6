//! Host config: one TOML file per app, read once at the start.
//!
//! [`Config::load`] reads and checks everything, and nothing is looked up later: the environment is
//! read here and in `main`, and nowhere else. An unknown key is refused, with its line and the
//! names that are accepted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use towline_protocol::ids::{Group, IdError, Instance};

mod adopt;
mod allow;
mod git;
mod keep;

pub use adopt::Adopted;
pub use allow::{Allow, Forbidden};
pub use git::{Git, Mirror};
pub use keep::Keep;

use adopt::AdoptTable;
use allow::AllowTable;

/// What of the agent's own environment its children get, besides `git`-free essentials that the
/// agent sets by itself (`HOME`, `USER`, `PWD`, `PATH` where it is unset). `pass_env` adds to it.
pub const ENVIRONMENT: &[&str] = &["PATH", "LANG", "LC_ALL", "TZ"];

/// Host config, checked.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The group that this instance belongs to.
    pub group: Group,
    /// This instance's name; the host's name by default.
    pub instance: Instance,
    /// Where everything of the app lives: `current`, `releases`, `dependencies`, `shared`, `log`.
    pub dir: PathBuf,
    /// The account that runs the recipe's commands and the app.
    pub user: Option<String>,
    /// What children get of the agent's environment.
    pub environment: BTreeMap<String, String>,
    /// The recipe of revisions that have none. Read once, at the start.
    pub default_recipe: Option<PathBuf>,
    /// What recipes may use of this host.
    pub allow: Allow,
    /// Where targets come from.
    pub source: Source,
    /// Where revisions come from.
    pub git: Git,
    /// By when a boot has settled what serves; 240 s by default.
    pub boot_deadline: Duration,
    /// The wait after a first failed attempt, 2 s by default, and the longest, 300 s.
    pub backoff: (Duration, Duration),
    /// What is kept on disk, and how large a tree may be.
    pub keep: Keep,
    /// What a tree may hold.
    pub limits: TreeLimits,
    /// What served here before Towline.
    pub adopted: Option<Adopted>,
}

/// Where targets come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A local file, by its path.
    File(PathBuf),
    /// A coordinator.
    Coordinator(Coordinator),
}

/// How the coordinator is reached.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// Its addresses, tried in turn; at least one.
    pub addresses: Vec<String>,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A file that holds the group's join secret. A bare name is a systemd credential.
    pub join_secret: Option<PathBuf>,
    /// Allow plain http to other hosts than this one; off by default.
    pub allow_http: bool,
    /// How long to wait for a connection; 5 s by default.
    pub connect: Duration,
}

/// What a tree may hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeLimits {
    /// Files, folders and links; 200,000 by default.
    pub entries: u64,
    /// Folders within folders; 64 by default.
    pub depth: usize,
    /// A path's length; 1,024 bytes by default.
    pub path_bytes: usize,
    /// All files together; 2,048 MiB by default.
    pub tree_mib: u64,
    /// One file; 256 MiB by default. Git's objects are read whole, so that a file takes as much memory,
    /// and one of zeros comes in as next to nothing.
    pub file_mib: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { entries: 200_000, depth: 64, path_bytes: 1024, tree_mib: 2048, file_mib: 256 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    group: String,
    instance: Option<String>,
    dir: PathBuf,
    user: Option<String>,
    default_recipe: Option<PathBuf>,
    #[serde(default)]
    pass_env: Vec<String>,
    #[serde(default)]
    coordinators: Vec<String>,
    source: Option<SourceFile>,
    coordinator: Option<CoordinatorTable>,
    git: Git,
    #[serde(default)]
    allow: AllowTable,
    #[serde(default)]
    boot: Boot,
    #[serde(default)]
    retry: Retry,
    #[serde(default)]
    keep: Keep,
    #[serde(default)]
    limits: TreeLimits,
    adopt: Option<AdoptTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFile {
    file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CoordinatorTable {
    ca_file: Option<PathBuf>,
    join_secret: Option<PathBuf>,
    allow_http: bool,
    connect_s: f64,
}

impl Default for CoordinatorTable {
    fn default() -> Self {
        Self { ca_file: None, join_secret: None, allow_http: false, connect_s: 5.0 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Boot {
    deadline_s: f64,
}

impl Default for Boot {
    fn default() -> Self {
        Self { deadline_s: 240.0 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retry {
    first_s: f64,
    max_s: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first_s: 2.0, max_s: 300.0 }
    }
}

/// Why host config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("could not read the config {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not the TOML that is due; the source names line, column and what is accepted.
    #[error("could not parse the config {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
    /// A name that is none.
    #[error("the config {} holds a name that is not valid", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdError,
    },
    /// A value that is out of its range.
    #[error("{field} in the config {}: {accepted}, not {found}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field's full name.
        field: &'static str,
        /// What it accepts.
        accepted: &'static str,
        /// What it is.
        found: String,
    },
    /// What served before Towline cannot be handled as it is described.
    #[error("{field} in the config {}: {message}", path.display())]
    Adopt {
        /// The file.
        path: PathBuf,
        /// The field's full name.
        field: String,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`. `variables` are the agent's environment.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`]; nothing has been changed then.
    pub fn load(path: &Path, variables: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        // A pipe would be waited for, and a device has no end.
        if !fs::metadata(path).map_err(read)?.is_file() {
            return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        let text = fs::read_to_string(path).map_err(read)?;
        Self::parse(path, &text, variables)
    }

    /// Returns the config of a place that nobody configured: all defaults, no target, no origin, and no
    /// space that must stay free.
    #[must_use]
    pub fn blank(dir: &Path, user: Option<String>, environment: BTreeMap<String, String>) -> Self {
        let text = "group = \"none\"\ninstance = \"none\"\ndir = \"/none\"\n[source]\nfile = \
                    \"/none/none\"\n[git]\nurl = \"https://none.invalid/none\"\n[keep]\nfree_mib = 0\n";
        let blank = Self::parse(Path::new("the command line"), text, &BTreeMap::new());
        let blank = blank.expect("it is valid, as a test has it");
        Self { dir: dir.to_owned(), user, environment, ..blank }
    }

    /// Reads and checks the text of the file at `path`.
    pub(crate) fn parse(
        path: &Path,
        text: &str,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let at = || path.to_owned();
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: at(), source: Box::new(source) })?;
        let name = |source| ConfigError::Name { path: at(), source };
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = file.instance.as_deref().unwrap_or(host.trim());
        let check = Check { path };
        check.absolute("dir", &file.dir)?;
        if let Some(path) = &file.default_recipe {
            check.absolute("default_recipe", path)?;
        }
        check.keep(&file.keep)?;
        let allow = file.allow.check();
        let allow =
            allow.or_else(|(field, accepted, found)| check.value(field, accepted, found))?;
        let named = (file.source, file.coordinators, file.coordinator);
        let source = check.source(named.0, named.1, named.2, variables)?;
        let git = file.git.check(&check, variables)?;
        let adopted = file.adopt.map(|table| table.check(&file.dir)).transpose();
        let adopted = adopted.map_err(|(field, message)| ConfigError::Adopt {
            path: at(),
            field,
            message,
        })?;
        let passed = |(name, _): &(&String, &String)| {
            ENVIRONMENT.contains(&name.as_str()) || file.pass_env.contains(name)
        };
        Ok(Self {
            path: at(),
            group: file.group.parse().map_err(name)?,
            instance: instance.parse().map_err(name)?,
            dir: file.dir,
            user: file.user,
            environment: variables
                .iter()
                .filter(passed)
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            default_recipe: file.default_recipe,
            allow,
            source,
            git,
            boot_deadline: check.seconds("boot.deadline_s", file.boot.deadline_s)?,
            backoff: (
                check.seconds("retry.first_s", file.retry.first_s)?,
                check.seconds("retry.max_s", file.retry.max_s)?,
            ),
            keep: file.keep,
            limits: file.limits,
            adopted,
        })
    }
}

/// A bare name is a credential of the unit; systemd names their directory in the environment. Whoever runs
/// a command by hand has those of the agent that runs by this config, as root.
fn credential(name: &Path, config: &Path, variables: &BTreeMap<String, String>) -> PathBuf {
    if name.components().count() != 1 {
        return name.to_owned();
    }
    if let Some(dir) = variables.get("CREDENTIALS_DIRECTORY") {
        return Path::new(dir).join(name);
    }
    let stem = config.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let units = [format!("towline-agent@{stem}.service"), "towline-agent.service".to_owned()];
    let of_unit = |unit: &String| Path::new(CREDENTIALS).join(unit).join(name);
    units.iter().map(of_unit).find(|path| path.is_file()).unwrap_or_else(|| name.to_owned())
}

/// Where systemd has the credentials of units that run (systemd.exec(5)).
const CREDENTIALS: &str = "/run/credentials";

struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    /// Exactly one place that targets come from.
    fn source(
        &self,
        file: Option<SourceFile>,
        addresses: Vec<String>,
        table: Option<CoordinatorTable>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Source, ConfigError> {
        const ONE: &str = "must be named by either `coordinators` or `source.file`";
        match (file, addresses.is_empty()) {
            (Some(SourceFile { file }), true) if table.is_none() => {
                self.absolute("source.file", &file)?;
                Ok(Source::File(file))
            }
            (Some(_), true) => self.value(
                "coordinator",
                "goes with `coordinators`, which names its addresses",
                "with `source.file`",
            ),
            (Some(_), false) => self.value("where targets come from", ONE, "by both"),
            (None, true) => self.value("where targets come from", ONE, "by neither"),
            (None, false) => {
                let table = table.unwrap_or_default();
                if let Some(ca_file) = &table.ca_file {
                    self.absolute("coordinator.ca_file", ca_file)?;
                }
                Ok(Source::Coordinator(Coordinator {
                    addresses,
                    ca_file: table.ca_file,
                    join_secret: table
                        .join_secret
                        .map(|name| credential(&name, self.path, variables)),
                    allow_http: table.allow_http,
                    connect: self.seconds("coordinator.connect_s", table.connect_s)?,
                }))
            }
        }
    }

    fn value<T>(
        &self,
        field: &'static str,
        accepted: &'static str,
        found: impl ToString,
    ) -> Result<T, ConfigError> {
        let path = self.path.to_owned();
        Err(ConfigError::Value { path, field, accepted, found: found.to_string() })
    }

    fn absolute(&self, field: &'static str, path: &Path) -> Result<(), ConfigError> {
        let is_plain = path.components().all(|part| {
            matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_))
        });
        if path.is_absolute() && is_plain && path.components().count() > 1 {
            return Ok(());
        }
        self.value(field, "must be an absolute path without `..`", path.display())
    }

    fn keep(&self, keep: &Keep) -> Result<(), ConfigError> {
        self.count("keep.releases", keep.releases, 2)?;
        self.count("keep.dependencies", keep.dependencies, 1)?;
        let sizes = [
            ("keep.releases_mib", keep.releases_mib),
            ("keep.dependencies_mib", keep.dependencies_mib),
            ("keep.log_mib", keep.log_mib),
        ];
        match sizes.into_iter().find(|(_, mib)| *mib == 0) {
            Some((field, mib)) => self.value(field, "must be at least 1 MiB", mib),
            None => Ok(()),
        }
    }

    fn count(&self, field: &'static str, count: usize, least: usize) -> Result<(), ConfigError> {
        if (least..=1000).contains(&count) {
            return Ok(());
        }
        let accepted = if least == 2 {
            "must be 2 to 1000 (what serves, and what a restore needs)"
        } else {
            "must be 1 to 1000"
        };
        self.value(field, accepted, count)
    }

    fn seconds(&self, field: &'static str, seconds: f64) -> Result<Duration, ConfigError> {
        if (0.05..=86_400.0).contains(&seconds) {
            return Ok(Duration::from_secs_f64(seconds));
        }
        self.value(field, "must be a number of seconds, 0.05 to 86400", seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "group = \"web\"\ninstance = \"i-1\"\ndir = \"/srv/web\"\n[source]\nfile = \
                         \"/etc/towline/web.json\"\n[git]\nurl = \"https://git.example/web.git\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let variables = [("PATH", "/bin"), ("HOME", "/root"), ("AWS_SECRET", "s"), ("PROXY", "p")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Config::parse(Path::new("/etc/towline/web.toml"), text, &variables)
    }

    #[test]
    fn the_least_config_gets_the_documented_defaults() {
        let config = parse(LEAST).unwrap();
        assert_eq!(config.boot_deadline, Duration::from_secs(240));
        assert_eq!((config.keep.releases, config.keep.dependencies), (5, 4));
        assert_eq!((config.keep.releases_mib, config.keep.dependencies_mib), (5120, 10_240));
        assert_eq!((config.keep.log_mib, config.default_recipe), (256, None));
        assert_eq!(config.git.recipe, "towline.toml");
        assert_eq!((config.limits.tree_mib, config.limits.file_mib), (2048, 256));
        let passed: Vec<&str> = config.environment.keys().map(String::as_str).collect();
        assert_eq!(passed, ["PATH"], "nothing of the environment but what is listed");
        let config = parse(&format!("pass_env = [\"PROXY\"]\n{LEAST}")).unwrap();
        assert!(config.environment.contains_key("PROXY"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("group = \"web\"", "group = \"a/b\"", "name"),
            ("group = \"web\"", "gruop = \"web\"", "parse"),
            ("dir = \"/srv/web\"", "dir = \"srv/web\"", "dir"),
            ("dir = \"/srv/web\"", "dir = \"/srv/../web\"", "dir"),
            ("dir = \"/srv/web\"", "dir = \"/\"", "dir"),
            ("[git]", "[keep]\nreleases = 1\n[git]", "keep.releases"),
            ("[git]", "[keep]\nreleases_mib = 0\n[git]", "keep.releases_mib"),
            ("[git]", "[keep]\nlog_mib = 0\n[git]", "keep.log_mib"),
            ("[git]", "[allow]\nunits = [\"web\"]\n[git]", "allow.units"),
            ("[git]", "[allow]\nsignals = [\"SIGTERM\"]\n[git]", "allow.signals"),
            ("group =", "default_recipe = \"recipe.toml\"\ngroup =", "default_recipe"),
            ("[source]\nfile", "[sauce]\nfile", "parse"),
            ("[source]\nfile = \"/etc/towline/web.json\"", "", "either"),
            ("[source]\nfile = \"/", "[source]\nfile = \"", "source.file"),
            ("group =", "coordinators = [\"https://a\"]\ngroup =", "either"),
            ("[git]", "[coordinator]\nallow_http = true\n[git]", "coordinator"),
            ("[git]", "[boot]\ndeadline_s = -1\n[git]", "boot.deadline_s"),
            ("[git]", "[boot]\ndeadline = 1\n[git]", "parse"),
            ("[git]", "[git]\nrecipe = \"../x\"", "git.recipe"),
            ("[git]", "[adopt]\nrun = \"x\"\n[git]", "parse"),
            (
                "[git]",
                "[adopt]\ndir = \"/srv/web/old\"\npid_file = \"/x\"\nstart = [\"x\"]\n[git]",
                "adopt.dir",
            ),
        ];
        for (from, to, blamed) in cases {
            let text = LEAST.replacen(from, to, 1);
            assert_ne!(text, LEAST, "{from} is in the least config");
            let error = parse(&text).unwrap_err();
            assert!(error.to_string().contains(blamed), "{to}: {error}");
        }
    }

    #[test]
    fn a_blank_config_is_valid() {
        let config = Config::blank(Path::new("/tmp/x"), None, BTreeMap::new());
        assert_eq!((config.dir.as_path(), config.keep.free_mib), (Path::new("/tmp/x"), 0));
        assert_eq!((config.keep.releases, config.git.branch), (5, None));
    }

    #[test]
    fn a_coordinator_takes_the_place_of_the_file() {
        let file = "[source]\nfile = \"/etc/towline/web.json\"\n";
        let with = |coordinator: &str| {
            let text = format!("coordinators = [\"https://a\", \"https://b\"]\n{LEAST}");
            parse(&text.replacen(file, coordinator, 1))
        };
        let coordinator = |config: Config| match config.source {
            Source::Coordinator(coordinator) => coordinator,
            Source::File(file) => panic!("{}", file.display()),
        };
        let least = coordinator(with("").unwrap());
        assert_eq!(least.addresses, ["https://a", "https://b"]);
        assert_eq!((least.allow_http, least.connect), (false, Duration::from_secs(5)));
        let table = "[coordinator]\nca_file = \"/ca.pem\"\njoin_secret = \"/run/join\"\n";
        let full = coordinator(with(table).unwrap());
        assert_eq!(full.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(full.join_secret.as_deref(), Some(Path::new("/run/join")));
        for bad in ["ca_file = \"ca.pem\"", "connect_s = 0", "token = \"secret\""] {
            assert!(with(&format!("[coordinator]\n{bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_what_is_accepted() {
        let error = parse(&LEAST.replacen("dir =", "dri =", 1)).unwrap_err();
        let ConfigError::Parse { source, .. } = error else { panic!("{error}") };
        let text = source.to_string();
        assert!(text.contains("line 3") && text.contains("expected one of"), "{text}");
    }
}
