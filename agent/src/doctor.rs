//! `towline-agent doctor`: what is wrong with this host, line by line, and what to do about it.
//!
//! ```text
//!   host     directory, space, user, leftovers ─┐
//!   units    systemd, the agent's, the app's ───┼─► findings: ok, warn, FAIL ─► lines, or JSON
//!   reach    origin, coordinator, clock ────────┘
//! ```
//!
//! It works beside an agent that runs, changes nothing, and takes no lock. What could not be looked at is
//! said; nothing is taken to be well that was not seen.

use serde::Serialize;
use serde_json::{Value, json};

use crate::bootstrap;
use crate::config::Config;
use crate::error;
use crate::process::Account;
use crate::release::Store;

mod host;
mod reach;
mod units;

/// The version of the JSON that `doctor --json` prints.
pub const SCHEMA_VERSION: u32 = 1;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Deploys go on; something is doubtful, or was not seen.
    Warn,
    /// A deploy, a boot or the isolation of the app would fail.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What of the host it is about.
    pub about: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, in one line.
    pub said: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    fn ok(about: &'static str, said: impl Into<String>) -> Self {
        Self { about, level: Level::Ok, said: said.into(), hint: None }
    }

    fn warn(about: &'static str, said: impl Into<String>, hint: &str) -> Self {
        Self { about, level: Level::Warn, said: said.into(), hint: Some(hint.to_owned()) }
    }

    fn fail(about: &'static str, said: impl Into<String>, hint: Option<String>) -> Self {
        Self { about, level: Level::Fail, said: said.into(), hint }
    }

    /// A failure by its error.
    fn error(about: &'static str, error: &dyn std::error::Error, hint: Option<String>) -> Self {
        Self::fail(about, error::chain(error), hint)
    }
}

/// All that was found.
#[derive(Debug)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Is nothing wrong? What is doubtful is not.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.0.iter().all(|finding| finding.level != Level::Fail)
    }

    /// Returns it as a person reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        for Finding { about, level, said, hint } in &self.0 {
            let level = match level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            lines.push(format!("{level:<4}  {about:<11}  {said}"));
            lines.extend(hint.iter().map(|hint| format!("{:19}{hint}", "")));
        }
        lines.join("\n")
    }

    /// Returns it as one JSON object.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "schema_version": SCHEMA_VERSION,
            "well": self.is_well(),
            "findings": self.0,
        })
    }
}

/// Looks at everything. A TLS provider must have been installed.
pub async fn examine(config: &Config) -> Findings {
    let store = Store::new(&config.dir);
    let own = Account::own().uid;
    let mut found = Vec::new();
    if own != 0 {
        let hint = "run it as the agent's user: what others may not see is not looked at";
        found.push(Finding::warn("root", format!("this is uid {own}, not root"), hint));
    }
    found.push(Finding::ok("config", format!("{} is valid", config.path.display())));
    found.extend(host::examine(config, &store, own));
    found.extend(recipes(config, &store));
    found.extend(units::examine(config, &store).await);
    found.extend(reach::examine(config, &store).await);
    Findings(found)
}

/// The recipes that are at hand, and what they use of this host.
fn recipes(config: &Config, store: &Store) -> Vec<Finding> {
    let mut found = Vec::new();
    match bootstrap::default_recipe(config) {
        Ok(None) => {}
        Ok(Some(_)) => found.push(Finding::ok("recipe", "the default recipe is valid")),
        Err(error) => {
            let hint = error.hint();
            found.push(Finding::error("recipe", &error, hint));
        }
    }
    let Some(marker) = store.live().and_then(|live| store.marker(&live)) else { return found };
    let short = marker.revision.short();
    found.push(match towline_protocol::recipe::Recipe::parse(&marker.recipe) {
        Ok(recipe) => match config.allow.check(&recipe) {
            Ok(()) => Finding::ok("recipe", format!("that of {short}, which is live, may be used")),
            Err(refused) => Finding::error("recipe", &refused, Some(refused.hint())),
        },
        Err(error) => Finding::error("recipe", &error, None),
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_doubtful_is_well_enough_and_what_is_wrong_is_not() {
        let ok = Finding::ok("disk", "9 GiB are free");
        let warn = Finding::warn("agent", "none runs", "start it");
        let fail = Finding::fail("origin", "it is away", None);
        let findings = Findings(vec![ok.clone(), warn.clone()]);
        assert!(findings.is_well());
        let said = "ok    disk         9 GiB are free\nwarn  agent        none runs\n                   start it";
        assert_eq!(findings.text(), said);
        let findings = Findings(vec![ok, warn, fail]);
        assert!(!findings.is_well() && findings.text().ends_with("FAIL  origin       it is away"));
        assert_eq!(findings.json()["findings"][2]["level"], "fail");
    }
}
