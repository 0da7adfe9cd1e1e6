//! What recipes may use of this host: `[allow]`.
//!
//! Whoever may push to the repository writes recipes; whoever has root on the host writes this. A unit
//! that is not listed cannot be reloaded or restarted by a deploy, whatever a recipe says.

use serde::Deserialize;
use towline_protocol::recipe::{self, Recipe, Reload, ReloadSignal};

/// All signals that a recipe can name.
const SIGNALS: &[ReloadSignal] = &[ReloadSignal::Hup, ReloadSignal::Usr1, ReloadSignal::Usr2];

/// What recipes may use of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    units: Vec<String>,
    signals: Vec<ReloadSignal>,
}

impl Default for Allow {
    fn default() -> Self {
        Self { units: Vec::new(), signals: SIGNALS.to_vec() }
    }
}

/// What a recipe wants to use and may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {name}, which host config does not allow")]
pub struct Forbidden {
    /// The recipe's field.
    pub field: &'static str,
    /// What it names.
    pub name: String,
    /// The list in host config that it is missing from.
    pub list: &'static str,
}

impl Forbidden {
    /// Returns the next thing for an operator to try.
    #[must_use]
    pub fn hint(&self) -> String {
        let (list, name) = (self.list, &self.name);
        format!("add {name:?} to {list} in host config and restart the agent, or change the recipe")
    }
}

impl Allow {
    /// Returns the units that recipes may use.
    #[must_use]
    pub fn units(&self) -> &[String] {
        &self.units
    }

    /// May a recipe have this systemd unit reloaded, started and stopped?
    #[must_use]
    pub fn permits_unit(&self, name: &str) -> bool {
        self.units.iter().any(|unit| unit == name)
    }

    /// May a recipe have this signal sent to the manager?
    #[must_use]
    pub fn permits_signal(&self, signal: ReloadSignal) -> bool {
        self.signals.contains(&signal)
    }

    /// Checks all that a recipe uses of the host.
    ///
    /// # Errors
    ///
    /// The first thing that it may not use.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Forbidden> {
        if let Some(unit) = recipe.unit().filter(|unit| !self.permits_unit(unit)) {
            let (field, list) = ("manager.unit", "allow.units");
            return Err(Forbidden { field, name: unit.to_owned(), list });
        }
        match recipe.manager.as_ref().map(|manager| &manager.reload) {
            Some(Reload::Signal(signal)) if !self.permits_signal(*signal) => Err(Forbidden {
                field: "manager.reload",
                name: signal.name().to_owned(),
                list: "allow.signals",
            }),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AllowTable {
    units: Vec<String>,
    signals: Option<Vec<String>>,
}

impl AllowTable {
    /// Checks it.
    ///
    /// # Errors
    ///
    /// The first problem: its field, what it accepts, and what it is.
    pub(super) fn check(self) -> Result<Allow, (&'static str, &'static str, String)> {
        if let Some(name) = self.units.iter().find(|name| !recipe::is_service_name(name)) {
            let accepted = "must name units such as web.service";
            return Err(("allow.units", accepted, name.clone()));
        }
        let signals = match self.signals {
            None => SIGNALS.to_vec(),
            Some(names) => {
                let known = |name: String| {
                    let found = SIGNALS.iter().find(|signal| signal.name() == name);
                    let accepted = "must be of SIGHUP, SIGUSR1 and SIGUSR2";
                    found.copied().ok_or(("allow.signals", accepted, name))
                };
                names.into_iter().map(known).collect::<Result<Vec<_>, _>>()?
            }
        };
        Ok(Allow { units: self.units, signals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(text: &str) -> Result<Allow, (&'static str, &'static str, String)> {
        toml::from_str::<AllowTable>(text).unwrap().check()
    }

    #[test]
    fn no_unit_and_every_reload_signal_is_allowed_by_default() {
        let least = allow("").unwrap();
        assert_eq!(least, Allow::default());
        assert!(!least.permits_unit("web.service"));
        assert!(SIGNALS.iter().all(|signal| least.permits_signal(*signal)));
        let full = allow("units = [\"web.service\"]\nsignals = [\"SIGUSR2\"]\n").unwrap();
        assert!(full.permits_unit("web.service") && !full.permits_unit("web2.service"));
        assert!(full.permits_signal(ReloadSignal::Usr2) && !full.permits_signal(ReloadSignal::Hup));
        let none = allow("signals = []\n").unwrap();
        assert!(SIGNALS.iter().all(|signal| !none.permits_signal(*signal)));
    }

    #[test]
    fn what_is_no_unit_or_no_reload_signal_is_refused() {
        for unit in ["web", "-x.service", ".service", "a b.service", "../x.service", "web.timer"] {
            let (field, _, found) = allow(&format!("units = [{unit:?}]\n")).unwrap_err();
            assert_eq!((field, found.as_str()), ("allow.units", unit));
        }
        allow("units = [\"web@1.service\", \"a\\\\x2db.service\"]\n").unwrap();
        for signal in ["SIGKILL", "HUP", "sighup", "1"] {
            let (field, _, found) = allow(&format!("signals = [{signal:?}]\n")).unwrap_err();
            assert_eq!((field, found.as_str()), ("allow.signals", signal));
        }
    }

    #[test]
    fn a_recipe_may_use_what_is_allowed() {
        let text = "[manager]\npid_file = \"/run/x.pid\"\nreload = \"SIGUSR1\"\nstart = \
                    [\"node\"]\n[health]\ntcp = \"127.0.0.1:1\"\n";
        let recipe = Recipe::parse(text).unwrap();
        assert_eq!(Allow::default().check(&recipe), Ok(()));
        let refused = allow("signals = [\"SIGHUP\"]\n").unwrap().check(&recipe).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "manager.reload is SIGUSR1, which host config does not allow"
        );
        assert!(refused.hint().contains("add \"SIGUSR1\" to allow.signals"), "{}", refused.hint());
    }
}
