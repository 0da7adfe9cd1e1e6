//! Addresses of repositories, checked before git or ssh sees them.
//!
//! ```text
//!   https://host[:port]/path        ssh://[user@]host[:port]/path        [user@]host:path
//! ```
//!
//! Whatever could be taken for an option, a command or a helper is refused: names that begin with a
//! dash, other characters than those of names, and `ext::`.

use std::fmt;

use reqwest::Url;

/// Why an ssh address with a secret in it is refused.
const PASSWORD: &str = "holds a password: name a private key as git.credential";

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// By http or https.
    Http(Url),
    /// By ssh.
    Ssh(SshAddress),
}

/// Where a repository is that is reached by ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshAddress {
    /// Who to be there; the agent's own user where it is not said.
    pub(crate) user: Option<String>,
    /// The host, without brackets.
    pub(crate) host: String,
    /// The port, where it is said.
    pub(crate) port: Option<u16>,
    /// The path as the host understands it.
    pub(crate) path: String,
}

impl SshAddress {
    /// Returns the name under which the host's key is known.
    pub(crate) fn known_as(&self) -> String {
        match self.port {
            Some(port) if port != 22 => format!("[{}]:{port}", self.host),
            _ => self.host.clone(),
        }
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match &self.host {
            host if host.contains(':') => write!(f, "[{host}]")?,
            host => f.write_str(host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        write!(f, "{slash}{}", self.path)
    }
}

/// Reads an address; says why where it is none that is used.
pub(crate) fn parse(text: &str, allow_http: bool) -> Result<Address, &'static str> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("holds white space or control characters");
    }
    if let Some(rest) = text.strip_prefix("ssh://") {
        return ssh(rest).map(Address::Ssh);
    }
    let is_http = text.starts_with("http://");
    if is_http || text.starts_with("https://") {
        return http(text, is_http, allow_http).map(Address::Http);
    }
    if text.contains("://") {
        return Err("is neither an https nor an ssh address");
    }
    scp(text).map(Address::Ssh)
}

/// Returns an address that was refused, fit to be shown: what stands before an `@` may be a secret.
pub(crate) fn shown(text: &str) -> String {
    let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    shown.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn http(text: &str, is_plain: bool, allow_http: bool) -> Result<Url, &'static str> {
    if is_plain && !allow_http {
        return Err("is plain http, which git.allow_http = true would allow");
    }
    let Ok(mut url) = Url::parse(text) else { return Err("is no valid address") };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password: put it into the file that git.credential names");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// `[user@]host[:port]/path`
fn ssh(text: &str) -> Result<SshAddress, &'static str> {
    let Some((place, path)) = text.split_once('/') else { return Err("names no repository") };
    if text.contains('%') {
        return Err("holds a %: write each character as it is");
    }
    let (user, host) = user(place)?;
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else {
                return Err("has a bracket that is not closed");
            };
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
        }
        None => {
            let (host, port) = host.split_once(':').unwrap_or((host, ""));
            (host, Some(port))
        }
    };
    let port = match port {
        Some("") => None,
        // Digits alone: a sign would be read as well.
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => match port.parse() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err("has a port that is none"),
        },
        _ => return Err("has a port that is none"),
    };
    // As git has it: `/~user/…` is below somebody's home, all else is from the root.
    let path = if path.starts_with('~') { path.to_owned() } else { format!("/{path}") };
    checked(user, host, port, &path)
}

/// `[user@]host:path`
fn scp(text: &str) -> Result<SshAddress, &'static str> {
    const NONE: &str = "is neither an https nor an ssh address";
    let after = match text.find('[') {
        Some(open) => match text[open..].find(']') {
            Some(close) => open + close,
            None => return Err(NONE),
        },
        None => 0,
    };
    let Some(colon) = text[after..].find(':').map(|at| after + at) else { return Err(NONE) };
    let (place, path) = (&text[..colon], &text[colon + 1..]);
    // A path with a colon in it, or the name of a helper.
    if place.contains('/') || path.starts_with(':') {
        return Err(NONE);
    }
    if path.split_once('@').is_some_and(|(_, rest)| rest.contains(':')) {
        return Err(PASSWORD);
    }
    let (user, host) = user(place)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or_default(),
        None => host,
    };
    checked(user, host, None, path)
}

/// Splits the user off.
fn user(place: &str) -> Result<(Option<&str>, &str), &'static str> {
    match place.rsplit_once('@') {
        None => Ok((None, place)),
        Some((user, _)) if user.contains(':') => Err(PASSWORD),
        Some((user, host)) => Ok((Some(user), host)),
    }
}

fn checked(
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    path: &str,
) -> Result<SshAddress, &'static str> {
    let is_name = |name: &str, also: &str| {
        !name.is_empty()
            && !name.starts_with('-')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    if !is_name(host, "-._:") {
        return Err("has a host that is no name of one");
    }
    if !user.is_none_or(|user| is_name(user, "-._+")) {
        return Err("has a user that is no name of one");
    }
    if path.starts_with('-') {
        return Err("has a path that begins with a dash");
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Err("names no repository");
    }
    let (user, host) = (user.map(str::to_owned), host.to_owned());
    Ok(SshAddress { user, host, port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_ssh_addresses_without_secrets_are_used() {
        let cases = [
            ("https", "https://git.example/web.git", false, true),
            ("plain http", "http://git.example/web.git", false, false),
            ("plain http, allowed", "http://127.0.0.1:8080/web.git", true, true),
            ("an option", "--upload-pack=touch", true, false),
            ("a helper", "ext::sh -c date", true, false),
            ("a helper without white space", "ext::sh", true, false),
            ("ssh as a helper", "ssh::git@git.example/web.git", true, false),
            ("a file", "file:///srv/web.git", true, false),
            ("git's own", "git://git.example/web.git", true, false),
            ("another spelling of ssh", "git+ssh://git@git.example/web.git", true, false),
            ("a path", "/srv/web.git", true, false),
            ("a path with a colon", "./srv:web.git", true, false),
            ("a password", "https://user:secret@git.example/web.git", true, false),
            ("a newline", "https://git.example/\nweb.git", true, false),
            ("a query", "https://git.example/web.git?x=-u", true, false),
            ("ssh", "ssh://git@git.example/web.git", false, true),
            ("ssh with a password", "ssh://git:secret@git.example/web.git", false, false),
            ("ssh without a path", "ssh://git@git.example", false, false),
            ("ssh with an empty path", "ssh://git@git.example/", false, false),
            ("ssh, a host as an option", "ssh://-oProxyCommand=date/web.git", false, false),
            ("ssh, behind a user", "ssh://git@-oProxyCommand=date/web.git", false, false),
            ("ssh, a user as an option", "ssh://-l@git.example/web.git", false, false),
            ("ssh, a host for a shell", "ssh://git@$(date)/web.git", false, false),
            ("ssh, no port", "ssh://git@git.example:0/web.git", false, false),
            ("ssh, a port with a sign", "ssh://git@git.example:+22/web.git", false, false),
            ("ssh, encoded", "ssh://git@git.example/%2d%2dx", false, false),
            ("scp form", "git@git.example:acme/web.git", false, true),
            ("scp form with a password", "git:secret@git.example:web.git", false, false),
            ("scp form, a host as an option", "-oProxyCommand=date:web.git", false, false),
            ("scp form, behind a user", "git@-oProxyCommand=date:web.git", false, false),
            ("scp form, a path as an option", "git@git.example:--upload-pack=x", false, false),
            ("scp form without a path", "git@git.example:", false, false),
        ];
        for (rule, text, allow_http, valid) in cases {
            let found = parse(text, allow_http);
            assert_eq!(found.is_ok(), valid, "{rule}: {found:?}");
            assert!(!shown(text).contains("secret"), "{rule}");
        }
    }

    #[test]
    fn an_ssh_address_is_read_as_git_reads_it() {
        let cases = [
            ("ssh://git@git.example/a/b.git", Some("git"), "git.example", None, "/a/b.git"),
            ("ssh://git.example:2222/b.git/", None, "git.example", Some(2222), "/b.git"),
            ("ssh://git@[::1]:22/b.git", Some("git"), "::1", Some(22), "/b.git"),
            ("ssh://git@[::1]/b.git", Some("git"), "::1", None, "/b.git"),
            ("ssh://git.example/~ada/b.git", None, "git.example", None, "~ada/b.git"),
            ("git@git.example:a/b.git", Some("git"), "git.example", None, "a/b.git"),
            ("git.example:/srv/b.git", None, "git.example", None, "/srv/b.git"),
            ("git@[::1]:b.git", Some("git"), "::1", None, "b.git"),
        ];
        for (text, user, host, port, path) in cases {
            let Ok(Address::Ssh(found)) = parse(text, false) else { panic!("{text}") };
            let wanted = SshAddress {
                user: user.map(str::to_owned),
                host: host.to_owned(),
                port,
                path: path.to_owned(),
            };
            assert_eq!(found, wanted, "{text}");
        }
        let known = |text: &str| match parse(text, false) {
            Ok(Address::Ssh(address)) => (address.known_as(), address.to_string()),
            other => panic!("{other:?}"),
        };
        let own = ("git.example".to_owned(), "ssh://git@git.example/b.git".to_owned());
        assert_eq!(known("git@git.example:b.git"), own);
        let other = ("[::1]:2222".to_owned(), "ssh://[::1]:2222/b.git".to_owned());
        assert_eq!(known("ssh://[::1]:2222/b.git"), other);
    }
}
