//! The `[git]` table: where revisions come from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use towline_protocol::recipe::{self, RelativePath};

use super::{Check, ConfigError, credential};

/// The most mirrors that are asked in turn.
const MIRRORS_MAX: usize = 8;

/// Where revisions come from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    /// The repository's address, https or ssh, without a password.
    pub url: String,
    /// The branch that is fetched where the server gives no commit by its id.
    pub branch: Option<String>,
    /// A file: for https it holds a token, or `user:password`, for ssh a private key. A bare name is a
    /// systemd credential.
    pub credential: Option<PathBuf>,
    /// Allow plain http; off by default.
    #[serde(default)]
    pub allow_http: bool,
    /// Fetch the branch's history and refuse commits that are not on it; off by default.
    #[serde(default)]
    pub verify_branch: bool,
    /// PEM certificates to trust instead of the system's, for https.
    pub ca_file: Option<PathBuf>,
    /// The hosts' public keys, for ssh, instead of those in the agent's user's `known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// The recipe's path in the repository; `towline.toml` by default.
    #[serde(default = "default_recipe")]
    pub recipe: String,
    /// How long to wait for a connection; 10 s by default.
    #[serde(default = "default_connect_s")]
    pub connect_s: f64,
    /// How long to wait without receiving a byte; 30 s by default.
    #[serde(default = "default_stall_s")]
    pub stall_s: f64,
    /// How long one fetch may take, mirrors included; 600 s by default.
    #[serde(default = "default_total_s")]
    pub total_s: f64,
    /// Further addresses of the repository, asked in turn where the one before does not give a commit.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
}

/// A further address of the repository. It gets nothing of what the others have: no credential is sent
/// to a host for which it was not configured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Like `git.url`.
    pub url: String,
    /// Like `git.credential`.
    pub credential: Option<PathBuf>,
    /// Like `git.ca_file`.
    pub ca_file: Option<PathBuf>,
    /// Like `git.known_hosts`.
    pub known_hosts: Option<PathBuf>,
}

fn default_recipe() -> String {
    recipe::FILE_NAME.to_owned()
}

fn default_connect_s() -> f64 {
    10.0
}

fn default_stall_s() -> f64 {
    30.0
}

fn default_total_s() -> f64 {
    600.0
}

impl Git {
    /// Checks what can be told without looking at the host; the addresses are the origin's to check.
    pub(super) fn check(
        mut self,
        check: &Check<'_>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let absolute = |field, path: Option<&PathBuf>| {
            path.map_or(Ok(()), |path: &PathBuf| check.absolute(field, path))
        };
        absolute("git.ca_file", self.ca_file.as_ref())?;
        absolute("git.known_hosts", self.known_hosts.as_ref())?;
        check.seconds("git.connect_s", self.connect_s)?;
        check.seconds("git.stall_s", self.stall_s)?;
        check.seconds("git.total_s", self.total_s)?;
        match RelativePath::new(&self.recipe) {
            Ok(path) if path.is_root() => {
                return check.value("git.recipe", "must name a file", self.recipe);
            }
            Ok(_) => {}
            Err(accepted) => return check.value("git.recipe", accepted, self.recipe),
        }
        if self.mirrors.len() > MIRRORS_MAX {
            return check.value("git.mirrors", "must be at most 8", self.mirrors.len());
        }
        let own = |name: PathBuf| credential(&name, check.path, variables);
        self.credential = self.credential.map(own);
        for mirror in &mut self.mirrors {
            absolute("git.mirrors.ca_file", mirror.ca_file.as_ref())?;
            absolute("git.mirrors.known_hosts", mirror.known_hosts.as_ref())?;
            mirror.credential = mirror.credential.take().map(own);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(git: &str) -> Result<Git, ConfigError> {
        let text = format!(
            "group = \"web\"\ninstance = \"i-1\"\ndir = \"/srv/web\"\n[source]\nfile = \
             \"/etc/towline/web.json\"\n[git]\nurl = \"https://git.example/web.git\"\n{git}"
        );
        let variables = [("CREDENTIALS_DIRECTORY".to_owned(), "/run/credentials/x".to_owned())];
        Config::parse(Path::new("/etc/towline/web.toml"), &text, &variables.into())
            .map(|config| config.git)
    }

    #[test]
    fn a_mirror_has_what_is_said_of_it_and_nothing_of_the_others() {
        let git = parse(
            "credential = \"own\"\nca_file = \"/ca.pem\"\n[[git.mirrors]]\nurl = \"git@b:web.git\"\n\
             [[git.mirrors]]\nurl = \"git@c:web.git\"\ncredential = \"c-key\"\nknown_hosts = \"/k\"\n",
        );
        let git = git.unwrap();
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(git.credential, path("/run/credentials/x/own"));
        let [bare, full] = &git.mirrors[..] else { panic!("{:?}", git.mirrors) };
        assert_eq!((&bare.credential, &bare.ca_file, &bare.known_hosts), (&None, &None, &None));
        assert_eq!(full.credential, path("/run/credentials/x/c-key"));
        assert_eq!((&full.ca_file, &full.known_hosts), (&None, &path("/k")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mirror = "[[git.mirrors]]\nurl = \"git@b:web.git\"\n";
        let cases = [
            ("ca_file = \"ca.pem\"\n".to_owned(), "git.ca_file"),
            ("known_hosts = \"known\"\n".to_owned(), "git.known_hosts"),
            (format!("{mirror}ca_file = \"ca.pem\"\n"), "git.mirrors.ca_file"),
            (format!("{mirror}known_hosts = \"known\"\n"), "git.mirrors.known_hosts"),
            (format!("{mirror}branch = \"main\"\n"), "parse"),
            (mirror.repeat(MIRRORS_MAX + 1), "git.mirrors"),
        ];
        for (text, blamed) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.to_string().contains(blamed), "{text}: {error}");
        }
        assert!(parse(&mirror.repeat(MIRRORS_MAX)).is_ok());
    }
}
