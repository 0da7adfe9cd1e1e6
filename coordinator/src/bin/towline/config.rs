//! Where the coordinator is, whom to trust, and which token to show.
//!
//! ```text
//!   options ──┐
//!   variables ├──► resolve ──► Connection { address, ca_file, token }
//!   config ───┘
//! ```
//!
//! Invariants
//! - The config's token and CA are for the config's coordinator: another address never gets them.
//! - A token goes through TLS, or stays on this host, unless `--insecure` was given.
//! - A token is never in an argument, and never shown.
//! - Whoever may use the coordinator's socket is root there: it needs no token.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::arguments::Options;

/// Where a coordinator listens by default.
const ADDRESS: &str = "http://127.0.0.1:7617";

/// The largest token file and config that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Whom to talk to, and how.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The coordinator's address; http, https, or `unix:` and the path of its socket.
    pub(crate) address: Url,
    /// The path of that socket.
    pub(crate) socket: Option<PathBuf>,
    /// Trust these only.
    pub(crate) ca_file: Option<PathBuf>,
    /// Who asks.
    pub(crate) token: Option<Token>,
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Checks that a text can be sent as a token.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token =
            (1..=4096).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        is_token.then(|| Self(text.to_owned()))
    }

    /// Returns the secret itself.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

/// Why it is not known whom to talk to, or how.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The config is there and cannot be read.
    #[error("could not read the config {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The config is not what is due.
    #[error("could not parse the config {}: {said}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which line, and what is wrong with it.
        said: String,
    },
    /// No address of a coordinator.
    #[error("could not use {text:?} as the coordinator's address")]
    Address {
        /// What was given.
        text: String,
    },
    /// The address holds a password or a token.
    #[error("could not use the coordinator's address: it holds a user or a password")]
    Credentials,
    /// The token would travel in the clear.
    #[error("could not send the token to {address}: it would travel in the clear")]
    Clear {
        /// The address.
        address: Url,
    },
    /// The token's file cannot be read.
    #[error("could not read the token in {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The token's file is open to all.
    #[error("could not use the token in {}: others may read it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// What is given as a token is none.
    #[error("could not use the token in {place}: it is no single line of visible characters")]
    Token {
        /// The file or the variable.
        place: String,
    },
}

impl ConfigError {
    /// Returns the next thing to try.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Read { .. } => {
                Some("make it a file that you may read, or move it away".to_owned())
            }
            ConfigError::Parse { .. } => {
                Some("use the keys coordinator, ca_file and token_file".to_owned())
            }
            ConfigError::Address { .. } => Some(
                "use an address such as https://towline.internal:7617, or unix:/path/to/admin.sock"
                    .to_owned(),
            ),
            ConfigError::Credentials => {
                Some("put the token into a file, and name it with --token-file".to_owned())
            }
            ConfigError::Clear { .. } => {
                Some("use https, or say --insecure where the network is trusted".to_owned())
            }
            ConfigError::TokenFile { .. } | ConfigError::Token { .. } => {
                Some("`towline token create` prints one".to_owned())
            }
            ConfigError::Exposed { path } => Some(format!("chmod 0600 {}", path.display())),
        }
    }
}

/// The config, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    coordinator: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

/// Decides whom to talk to, from options, the environment's variables and the config.
pub(crate) fn resolve(
    options: &Options,
    variables: &BTreeMap<String, String>,
) -> Result<Connection, ConfigError> {
    let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let file = match config_path(variables) {
        Some(path) => read_config(&path)?,
        None => File::default(),
    };
    let given = options.coordinator.as_ref().or_else(|| variable("TOWLINE_COORDINATOR"));
    let named = given.or(file.coordinator.as_ref()).map_or(ADDRESS, String::as_str);
    let (address, socket) = (parse_address(named)?, parse_socket(named));
    let is_of_file = match &file.coordinator {
        Some(own) => parse_address(own)? == address,
        // A config without an address is about the default one.
        None => given.is_none(),
    };
    let (file_ca, file_token) =
        if is_of_file { (file.ca_file, file.token_file) } else { (None, None) };
    let ca_file = options.ca_file.clone();
    let ca_file = ca_file.or_else(|| variable("TOWLINE_CA_FILE").map(PathBuf::from)).or(file_ca);
    let token_file = options.token_file.clone();
    let token_file = token_file.or_else(|| variable("TOWLINE_TOKEN_FILE").map(PathBuf::from));
    let token = match (token_file, variable("TOWLINE_TOKEN"), file_token) {
        (Some(path), _, _) | (None, None, Some(path)) => Some(read_token(&path)?),
        (None, Some(text), _) => Some(
            Token::parse(text)
                .ok_or_else(|| ConfigError::Token { place: "TOWLINE_TOKEN".to_owned() })?,
        ),
        (None, None, None) => None,
    };
    if token.is_some() && address.scheme() == "http" && !is_loopback(&address) && !options.insecure
    {
        return Err(ConfigError::Clear { address });
    }
    Ok(Connection { address, socket, ca_file, token })
}

/// Says in one line what is wrong with a TOML file, and where.
pub(crate) fn wrong(text: &str, error: &toml::de::Error) -> String {
    let said = error.message().trim();
    match error.span() {
        Some(span) => {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            format!("line {line}: {said}")
        }
        None => said.to_owned(),
    }
}

fn config_path(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    let home =
        |name: &str| variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = home("XDG_CONFIG_HOME").or_else(|| Some(home("HOME")?.join(".config")))?;
    Some(dir.join("towline/config.toml"))
}

fn read_config(path: &Path) -> Result<File, ConfigError> {
    let text = match read_small(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let mut file: File = toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        said: wrong(&text, &error),
    })?;
    // Names in the config are meant from where the config is.
    let dir = path.parent().unwrap_or(Path::new("/"));
    for name in [&mut file.ca_file, &mut file.token_file].into_iter().flatten() {
        *name = dir.join(&*name);
    }
    Ok(file)
}

fn read_token(path: &Path) -> Result<Token, ConfigError> {
    let failed = |source| ConfigError::TokenFile { path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    // A pipe, such as a shell's <(…), is read by whoever has its end.
    if meta.is_file() && meta.mode() & 0o007 != 0 {
        return Err(ConfigError::Exposed { path: path.to_owned() });
    }
    let text = read_small(path).map_err(failed)?;
    Token::parse(&text).ok_or_else(|| ConfigError::Token { place: path.display().to_string() })
}

/// Reads a file that ought to be small.
pub(crate) fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = io::Read::take(fs::File::open(path)?, FILE_BYTES_MAX + 1);
    io::Read::read_to_string(&mut file, &mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let reason = format!("it has more than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

fn parse_address(text: &str) -> Result<Url, ConfigError> {
    let wrong = || ConfigError::Address { text: text.chars().take(80).collect() };
    let mut url = Url::parse(text).map_err(|_| wrong())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::Credentials);
    }
    if parse_socket(text).is_some() {
        return Ok(url);
    }
    let is_web = matches!(url.scheme(), "http" | "https") && url.host().is_some();
    if !is_web || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Returns the socket that an address names: `unix:/path`.
fn parse_socket(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("unix:").filter(|path| path.starts_with('/'))?;
    Some(PathBuf::from(path))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Home {
        dir: tempfile::TempDir,
    }

    impl Home {
        fn new(config: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join(".config/towline")).unwrap();
            if !config.is_empty() {
                fs::write(dir.path().join(".config/towline/config.toml"), config).unwrap();
            }
            Self { dir }
        }

        fn token(self, name: &str, text: &str, mode: u32) -> Self {
            let path = self.dir.path().join(".config/towline").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            self
        }

        fn resolve(
            &self,
            coordinator: Option<&str>,
            variables: &[(&str, &str)],
        ) -> Result<Connection, ConfigError> {
            let options =
                Options { coordinator: coordinator.map(str::to_owned), ..Options::default() };
            self.resolve_options(&options, variables)
        }

        fn resolve_options(
            &self,
            options: &Options,
            variables: &[(&str, &str)],
        ) -> Result<Connection, ConfigError> {
            let home = [("HOME", self.dir.path().to_str().unwrap())];
            let variables = variables.iter().chain(&home);
            let variables =
                variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            resolve(options, &variables.collect())
        }
    }

    #[test]
    fn options_win_over_variables_and_those_over_the_config() {
        let home = Home::new("coordinator = \"https://file.example\"\n");
        let variables = [("TOWLINE_COORDINATOR", "https://variable.example")];
        let host = |connection: Connection| connection.address.host_str().unwrap().to_owned();
        let option = Some("https://option.example");
        assert_eq!(host(home.resolve(option, &variables).unwrap()), "option.example");
        assert_eq!(host(home.resolve(None, &variables).unwrap()), "variable.example");
        assert_eq!(host(home.resolve(None, &[]).unwrap()), "file.example");
        let bare = Home::new("").resolve(None, &[]).unwrap();
        assert_eq!(bare.address.as_str(), "http://127.0.0.1:7617/");
        assert!(bare.token.is_none());
    }

    #[test]
    fn a_socket_is_named_by_its_path_and_gets_no_token_of_another_address() {
        let home = Home::new("token_file = \"own\"\n").token("own", "secret", 0o600);
        for (text, path) in [("unix:/run/a b.sock", "/run/a b.sock"), ("unix:///s", "///s")] {
            let connection = home.resolve(Some(text), &[]).unwrap();
            assert_eq!(connection.socket.as_deref(), Some(Path::new(path)), "{text}");
            assert!(connection.token.is_none(), "{text}");
        }
        assert!(home.resolve(Some("http://127.0.0.1:1"), &[]).unwrap().socket.is_none());
    }

    #[test]
    fn a_token_comes_from_a_file_or_a_variable() {
        let config = "coordinator = \"https://file.example\"\ntoken_file = \"own\"\n";
        let home = Home::new(config).token("own", "of-file\n", 0o600).token("other", "x", 0o600);
        let secret =
            |connection: Connection| connection.token.map(|token| token.secret().to_owned());
        let own = home.resolve(None, &[]).unwrap();
        assert!(!format!("{own:?}").contains("of-file"), "it is not shown");
        assert_eq!(secret(own).as_deref(), Some("of-file"));
        let variable = ("TOWLINE_TOKEN", "of-variable");
        let found = secret(home.resolve(None, &[variable]).unwrap());
        assert_eq!(found.as_deref(), Some("of-variable"));
        let path = home.dir.path().join(".config/towline/other");
        let file = ("TOWLINE_TOKEN_FILE", path.to_str().unwrap());
        let found = secret(home.resolve(None, &[variable, file]).unwrap());
        assert_eq!(found.as_deref(), Some("x"), "a file wins over the environment");
    }

    #[test]
    fn the_configs_token_goes_to_the_configs_coordinator_only() {
        let config =
            "coordinator = \"https://own.example\"\ntoken_file = \"own\"\nca_file = \"ca\"\n";
        let home = Home::new(config).token("own", "secret", 0o600);
        let own = home.resolve(Some("https://own.example/"), &[]).unwrap();
        assert!(own.token.is_some() && own.ca_file.is_some());
        let other = home.resolve(Some("https://other.example"), &[]).unwrap();
        assert!(other.token.is_none() && other.ca_file.is_none());
        let home = Home::new("token_file = \"own\"\n").token("own", "secret", 0o600);
        assert!(home.resolve(None, &[]).unwrap().token.is_some(), "the default address");
        assert!(home.resolve(Some("https://other.example"), &[]).unwrap().token.is_none());
    }

    #[test]
    fn a_token_does_not_travel_in_the_clear() {
        let home = Home::new("");
        let variables = [("TOWLINE_TOKEN", "secret")];
        for address in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2", "https://a"] {
            assert!(home.resolve(Some(address), &variables).is_ok(), "{address}");
        }
        for address in ["http://10.0.0.1", "http://localhost.example", "http://a"] {
            let error = home.resolve(Some(address), &variables).unwrap_err();
            assert!(matches!(error, ConfigError::Clear { .. }), "{address}: {error}");
            assert!(home.resolve(Some(address), &[]).is_ok(), "{address}: nothing to lose");
        }
        let coordinator = Some("http://10.0.0.1".to_owned());
        let options = Options { coordinator, insecure: true, ..Options::default() };
        assert!(home.resolve_options(&options, &variables).is_ok(), "as it was told");
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_hint() {
        let cases = [
            ("a key that is none", "coordinater = \"https://a\"", None),
            ("a secret in the address", "", Some("https://ada:secret@a.example")),
            ("no scheme", "", Some("a.example:7617")),
            ("another scheme", "", Some("ftp://a.example")),
            ("a query", "", Some("https://a.example/?x=1")),
            ("nothing", "", Some("")),
            ("a socket without its place", "", Some("unix:admin.sock")),
            ("no socket at all", "", Some("unix:")),
            ("a token file that is missing", "token_file = \"none\"", None),
        ];
        for (rule, config, address) in cases {
            let error = Home::new(config).resolve(address, &[]).expect_err(rule);
            assert!(error.hint().is_some(), "{rule}");
            assert!(!error.to_string().contains("secret"), "{rule}: {error}");
        }
        let exposed = Home::new("token_file = \"own\"").token("own", "secret", 0o644);
        let error = exposed.resolve(None, &[]).unwrap_err();
        assert!(error.hint().unwrap().starts_with("chmod 0600 /"), "{error}");
        let lines = Home::new("token_file = \"own\"").token("own", "a\nb", 0o600);
        assert!(matches!(lines.resolve(None, &[]), Err(ConfigError::Token { .. })));
        let large = Home::new("token_file = \"own\"").token("own", &"a".repeat(70_000), 0o600);
        assert!(matches!(large.resolve(None, &[]), Err(ConfigError::TokenFile { .. })));
    }
}
