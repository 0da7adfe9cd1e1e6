//! How a group takes its rollouts: the file of `towline group set`, checked.
//!
//! A [`Policy`] that exists is valid: batches grow, shares are within 100 %, and at least one instance
//! may be unavailable. An unknown key is refused, with the names that are accepted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most batches that a group may have.
pub const BATCHES_MAX: usize = 50;

/// The longest time in a policy, in seconds: a week.
const SECONDS_MAX: u64 = 7 * 24 * 3600;

/// A share of the live group, in percent, written `"10%"`; or a number of instances, written `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ShareText", into = "ShareText")]
pub enum Share {
    /// Of the live group; 1 to 100.
    Percent(u32),
    /// So many instances; at least 1.
    Count(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ShareText {
    Count(u32),
    Text(String),
}

impl Share {
    /// Returns how many of `live` this is at most: rounded down, and at least 1.
    #[must_use]
    pub fn at_most(self, live: usize) -> usize {
        match self {
            Share::Percent(percent) => (live.saturating_mul(percent as usize) / 100).max(1),
            Share::Count(count) => count as usize,
        }
    }

    /// Returns how many of `live` this reaches: rounded up.
    #[must_use]
    pub fn reach(self, live: usize) -> usize {
        match self {
            Share::Percent(percent) => live.saturating_mul(percent as usize).div_ceil(100),
            Share::Count(count) => count as usize,
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no share: write \"1%\" to \"100%\", or a number from 1");
        let (digits, is_percent) =
            text.strip_suffix('%').map_or((text, false), |digits| (digits, true));
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u32>().ok().filter(|number| is_number && *number > 0);
        match number.ok_or_else(wrong)? {
            percent if is_percent && percent > 100 => Err(wrong()),
            percent if is_percent => Ok(Share::Percent(percent)),
            count => Ok(Share::Count(count)),
        }
    }
}

impl TryFrom<ShareText> for Share {
    type Error = String;

    fn try_from(text: ShareText) -> Result<Self, String> {
        match text {
            ShareText::Count(count) => count.to_string().parse(),
            ShareText::Text(text) => text.parse(),
        }
    }
}

impl From<Share> for ShareText {
    fn from(share: Share) -> Self {
        match share {
            Share::Percent(_) => ShareText::Text(share.to_string()),
            Share::Count(count) => ShareText::Count(count),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Percent(percent) => write!(f, "{percent}%"),
            Share::Count(count) => write!(f, "{count}"),
        }
    }
}

/// What to do when a rollout to a new revision fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Abort to the fallback.
    Rollback,
    /// Stand still until an operator decides.
    Halt,
}

/// How long batches must stay healthy before their gate passes, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bake {
    /// The canary; 300.
    pub canary: u64,
    /// Every other batch; 120.
    pub batch: u64,
}

impl Default for Bake {
    fn default() -> Self {
        Self { canary: 300, batch: 120 }
    }
}

/// How many failures are tolerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailuresMax {
    /// In the canary; 0.
    pub canary: u32,
    /// In any other batch; 1.
    pub batch: u32,
    /// In the whole rollout; 3.
    pub rollout: u32,
}

impl Default for FailuresMax {
    fn default() -> Self {
        Self { canary: 0, batch: 1, rollout: 3 }
    }
}

/// When newborns that fail on one revision say something about the revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootQuarantine {
    /// So many instances; 3. One host proves nothing.
    pub instances: u32,
    /// Within so many seconds; 1800.
    pub window_s: u64,
}

impl Default for BootQuarantine {
    fn default() -> Self {
        Self { instances: 3, window_s: 1800 }
    }
}

/// How a group takes its rollouts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The repository's address for the coordinator's mirror, without credentials; `None`: no mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The branch that releases must be on; `main`.
    pub branch: String,
    /// Keep a mirror of the repository; on. Without one nothing checks what is released, and subjects and
    /// distances are not known.
    pub mirror: bool,
    /// How many instances the first batch has; 1.
    pub canary: u32,
    /// The batches after it, cumulative, each rounded up; 100 % is added where it is missing.
    pub batches: Vec<Share>,
    /// How many instances may be unavailable at a time; `"10%"`, rounded down and at least 1.
    pub max_unavailable: Share,
    /// The same in a rollback; `"25%"`.
    pub max_unavailable_rollback: Share,
    /// How long batches must stay healthy.
    pub bake_s: Bake,
    /// How many failures are tolerated.
    pub failures_max: FailuresMax,
    /// What to do when a rollout to a new revision fails; `rollback`.
    pub on_failure: OnFailure,
    /// By when an instance must be healthy, in seconds from its permit; 300.
    pub healthy_deadline_s: u64,
    /// By when an instance must have prepared, in seconds from its batch's opening; 900.
    pub prepare_deadline_s: u64,
    /// By when a rollout must have moved, in seconds; 900. Else it halts.
    pub progress_deadline_s: u64,
    /// When newborns' failures put a revision into quarantine.
    pub boot_quarantine: BootQuarantine,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            repository: None,
            branch: "main".to_owned(),
            mirror: true,
            canary: 1,
            batches: [10, 25, 50, 100].map(Share::Percent).to_vec(),
            max_unavailable: Share::Percent(10),
            max_unavailable_rollback: Share::Percent(25),
            bake_s: Bake::default(),
            failures_max: FailuresMax::default(),
            on_failure: OnFailure::Rollback,
            healthy_deadline_s: 300,
            prepare_deadline_s: 900,
            progress_deadline_s: 900,
            boot_quarantine: BootQuarantine::default(),
        }
    }
}

/// What is wrong with a policy: the field, what it is, and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PolicyError {
    /// The field's full name.
    pub field: String,
    /// What is wrong with it, and what is accepted.
    pub message: String,
}

impl Policy {
    /// Checks what types cannot, and completes the batches.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn check(mut self) -> Result<Self, PolicyError> {
        let wrong =
            |field: &str, message: String| Err(PolicyError { field: field.to_owned(), message });
        if self.canary == 0 {
            return wrong("canary", "must be at least 1: something has to go first".to_owned());
        }
        if self.batches.len() > BATCHES_MAX {
            return wrong("batches", format!("must be at most {BATCHES_MAX}"));
        }
        let mut last = 0;
        for batch in &self.batches {
            let Share::Percent(percent) = *batch else {
                return wrong("batches", format!("must be shares such as \"25%\", not {batch}"));
            };
            if percent <= last {
                let message =
                    format!("must grow: {percent}% comes after {last}%; they are cumulative");
                return wrong("batches", message);
            }
            last = percent;
        }
        if last != 100 {
            self.batches.push(Share::Percent(100));
        }
        let times = [
            ("bake_s.canary", self.bake_s.canary, 0),
            ("bake_s.batch", self.bake_s.batch, 0),
            ("healthy_deadline_s", self.healthy_deadline_s, 1),
            ("prepare_deadline_s", self.prepare_deadline_s, 1),
            ("progress_deadline_s", self.progress_deadline_s, 1),
            ("boot_quarantine.window_s", self.boot_quarantine.window_s, 1),
        ];
        for (field, seconds, least) in times {
            if !(least..=SECONDS_MAX).contains(&seconds) {
                let message = format!("must be {least} to {SECONDS_MAX} seconds, not {seconds}");
                return wrong(field, message);
            }
        }
        if self.boot_quarantine.instances == 0 {
            return wrong("boot_quarantine.instances", "must be at least 1".to_owned());
        }
        if let Err(message) = check_branch(&self.branch) {
            return wrong("branch", message.to_owned());
        }
        if let Some(Err(message)) = self.repository.as_deref().map(check_repository) {
            return wrong("repository", message.to_owned());
        }
        Ok(self)
    }

    /// Will there be a mirror of the group's repository?
    #[must_use]
    pub fn has_mirror(&self) -> bool {
        self.mirror && self.repository.is_some()
    }
}

/// A branch's name as it may stand on a command line of git.
fn check_branch(branch: &str) -> Result<(), &'static str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+');
    let is_valid = !branch.is_empty()
        && branch.len() <= 200
        && branch.chars().all(is_plain)
        && branch.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && !branch.contains("..")
        && !branch.contains("//")
        && !branch.contains("/.")
        && !branch.ends_with('/')
        && !branch.ends_with('.')
        && !branch.ends_with(".lock");
    if is_valid {
        Ok(())
    } else {
        Err(
            "must be a branch's plain name, such as main or release/1.2: letters, digits and . _ - + /",
        )
    }
}

/// An address that git may be given: no option, no transport but https, http, ssh, and no secret.
fn check_repository(url: &str) -> Result<(), &'static str> {
    const ACCEPTED: &str =
        "must be https://host/path, ssh://host/path or user@host:path, without a password";
    let is_plain = url.len() <= 1024 && url.chars().all(|c| c.is_ascii_graphic());
    if !is_plain || url.starts_with('-') || url.contains("::") {
        return Err(ACCEPTED);
    }
    let (host, path, is_web) = if let Some((scheme, rest)) = url.split_once("://") {
        if !matches!(scheme, "https" | "http" | "ssh") {
            return Err(ACCEPTED);
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        (host, path, scheme != "ssh")
    } else {
        let (host, path) = url.split_once(':').ok_or(ACCEPTED)?;
        (host, path, false)
    };
    let (user, host) =
        host.rsplit_once('@').map_or((None, host), |(user, host)| (Some(user), host));
    // A token in front of an https host is a secret, whatever it looks like.
    let is_secret = user.is_some_and(|user| is_web || user.contains(':'));
    let names = [Some(host), user];
    let is_option = names.iter().flatten().any(|name| name.is_empty() || name.starts_with('-'));
    if is_secret || is_option || path.is_empty() || host.contains('/') {
        return Err(ACCEPTED);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        let policy: Policy = toml::from_str(text).map_err(|error| error.to_string())?;
        policy.check().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_documents() {
        let policy = parse("").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!((policy.canary, policy.bake_s.canary, policy.bake_s.batch), (1, 300, 120));
        assert_eq!(policy.max_unavailable, Share::Percent(10));
        assert_eq!((policy.healthy_deadline_s, policy.progress_deadline_s), (300, 900));
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
    }

    #[test]
    fn the_golden_policy_keeps_parsing() {
        let policy = parse(include_str!("../golden/policy-1.toml")).unwrap();
        assert_eq!(policy.batches, [10, 50, 100].map(Share::Percent), "100 % is added");
        assert_eq!(policy.max_unavailable, Share::Count(2));
        assert!(policy.has_mirror());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("canary = 0", "canary"),
            ("batches = [\"50%\", \"25%\"]", "batches"),
            ("batches = [\"50%\", \"50%\"]", "batches"),
            ("batches = [\"101%\"]", "101%"),
            ("batches = [3]", "batches"),
            ("max_unavailable = 0", "share"),
            ("max_unavailable = \"0%\"", "share"),
            ("max_unavailable = \"101%\"", "share"),
            ("max_unavailable = \"+5%\"", "share"),
            ("max_unavailable = -1", "max_unavailable"),
            ("bake_s = { canary = 604801 }", "bake_s.canary"),
            ("healthy_deadline_s = 0", "healthy_deadline_s"),
            ("bake_s = { cannery = 1 }", "cannery"),
            ("on_failure = \"panic\"", "on_failure"),
            ("canery = 1", "canery"),
            ("branch = \"--upload-pack=x\"", "branch"),
            ("branch = \"a..b\"", "branch"),
            ("branch = \"\"", "branch"),
            ("repository = \"ext::sh -c x\"", "repository"),
            ("repository = \"--upload-pack=x\"", "repository"),
            ("repository = \"https://token@git.example/web.git\"", "repository"),
            ("repository = \"https://a:b@git.example/web.git\"", "repository"),
            ("repository = \"ssh://-oProxyCommand=x/web.git\"", "repository"),
            ("repository = \"-x@host:web.git\"", "repository"),
            ("repository = \"file:///etc\"", "repository"),
            ("repository = \"/srv/git/web.git\"", "repository"),
        ];
        for (text, blamed) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(blamed), "{text}: {error}");
        }
        for url in [
            "https://git.example/acme/web.git",
            "http://127.0.0.1:8017/web.git",
            "ssh://git@git.example:22/acme/web.git",
            "git@git.example:acme/web.git",
        ] {
            assert!(parse(&format!("repository = {url:?}")).is_ok(), "{url}");
        }
    }

    #[test]
    fn shares_round_as_they_must() {
        let cases = [
            ("10%", 50, 5, 5),
            ("10%", 4, 1, 1),
            ("10%", 59, 5, 6),
            ("25%", 3, 1, 1),
            ("100%", 3, 3, 3),
            ("1%", 1, 1, 1),
            ("2", 50, 2, 2),
        ];
        for (share, live, most, reach) in cases {
            let share: Share = share.parse().unwrap();
            assert_eq!(
                (share.at_most(live), share.reach(live)),
                (most, reach),
                "{share} of {live}"
            );
        }
        assert_eq!(Share::Percent(50).reach(0), 0, "of nobody");
    }
}
