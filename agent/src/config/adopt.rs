//! What served here before Towline, as host config has it: `[adopt]`.
//!
//! ```text
//!   [adopt] pid_file, start …  ─► [manager] ─┐
//!   [adopt.health]             ─► [health]  ─┴─► Recipe ─► found, started, stopped and probed like any
//! ```
//!
//! It is read as a recipe is, so that both mean the same by the same words.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};
use towline_protocol::recipe::{Find, Problem, Recipe};

/// What is in a recipe of nobody's choosing: it is never probed, and never reloaded.
const NO_CHECK: &str = "127.0.0.1:1";

/// How the release is handled that served here before the agent came.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// Its working directory, which is never written.
    pub dir: PathBuf,
    /// How it is found, started and probed. It is never reloaded.
    pub recipe: Recipe,
    /// Has it a health check? Otherwise it is as well as its manager is alive.
    pub is_probed: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdoptTable {
    dir: PathBuf,
    pid_file: Option<String>,
    status: Option<Vec<String>>,
    unit: Option<String>,
    start: Option<Vec<String>>,
    timeout_s: Option<f64>,
    #[serde(default)]
    health: Table,
}

impl AdoptTable {
    /// Checks it; `own` is Towline's directory, which must be another.
    ///
    /// # Errors
    ///
    /// The first problem: its field by its full name, and what is wrong.
    pub(super) fn check(self, own: &Path) -> Result<Adopted, (String, String)> {
        let Self { dir, pid_file, status, unit, start, timeout_s, mut health } = self;
        let refused =
            |field: &str, message: &str| Err((format!("adopt.{field}"), message.to_owned()));
        let is_plain =
            dir.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !dir.is_absolute() || !is_plain {
            return refused("dir", "must be an absolute path without `..`");
        }
        if dir.starts_with(own) || own.starts_with(&dir) {
            return refused("dir", "must lie outside of `dir`, and not around it");
        }
        if health.contains_key("revision") {
            return refused(
                "health.revision",
                "what was adopted has no revision that it could name",
            );
        }
        let is_probed = ["http", "tcp", "command"].iter().any(|name| health.contains_key(*name));
        if !is_probed {
            health.insert("tcp".to_owned(), NO_CHECK.into());
        }
        let list = |items: Vec<String>| Value::Array(items.into_iter().map(Value::from).collect());
        let mut manager = Table::new();
        manager.extend(pid_file.map(|path| ("pid_file".to_owned(), path.into())));
        manager.extend(status.map(|command| ("status".to_owned(), list(command))));
        manager.extend(unit.map(|unit| ("unit".to_owned(), unit.into())));
        manager.extend(timeout_s.map(|seconds| ("timeout_s".to_owned(), seconds.into())));
        manager.extend(start.map(|command| ("start".to_owned(), list(command))));
        manager.insert("reload".to_owned(), "SIGHUP".into());
        let mut text = Table::new();
        text.insert("manager".to_owned(), manager.into());
        text.insert("health".to_owned(), health.into());
        let recipe = Recipe::parse(&text.to_string()).map_err(|error| {
            let first = error.problems.into_iter().next();
            first.map_or_else(|| ("adopt".to_owned(), "is not valid".to_owned()), named)
        })?;
        if let Some(Find::PidFile(path)) = recipe.manager.as_ref().map(|manager| &manager.find)
            && !path.starts_with('/')
        {
            return refused("pid_file", "must be an absolute path");
        }
        Ok(Adopted { dir, recipe, is_probed })
    }
}

/// Names a problem as it is named in host config.
fn named(problem: Problem) -> (String, String) {
    let field = problem.field.strip_prefix("manager").map(|rest| rest.trim_start_matches('.'));
    let field = match field {
        Some("") => "adopt".to_owned(),
        Some(field) => format!("adopt.{field}"),
        None => format!("adopt.{}", problem.field),
    };
    (field, problem.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str =
        "dir = \"/srv/old\"\npid_file = \"/run/old.pid\"\nstart = [\"./bin/start\"]\n";

    fn check(text: &str) -> Result<Adopted, (String, String)> {
        toml::from_str::<AdoptTable>(text).unwrap().check(Path::new("/srv/web"))
    }

    #[test]
    fn what_is_left_out_is_as_in_a_recipe() {
        let adopted = check(LEAST).unwrap();
        assert!(!adopted.is_probed, "its manager's life is all that is known");
        assert_eq!(adopted.dir, Path::new("/srv/old"));
        let manager = adopted.recipe.manager.unwrap();
        assert_eq!(manager.start.unwrap().to_string(), "./bin/start");
        assert_eq!(manager.timeout.as_secs(), 90);
        let by_unit = check("dir = \"/srv/old\"\nunit = \"old.service\"\n").unwrap();
        let manager = by_unit.recipe.manager.unwrap();
        assert_eq!(manager.find, Find::Unit("old.service".to_owned()));
        assert_eq!(manager.start, None, "its unit starts it");
        assert_eq!(adopted.recipe.health.healthy_for.as_secs(), 30);
        let probed = "[health]\nhttp = \"http://127.0.0.1:80/up\"\nhealthy_for_s = 2\n";
        let adopted = check(&format!("{LEAST}{probed}")).unwrap();
        assert!(adopted.is_probed);
        assert_eq!(adopted.recipe.health.healthy_for.as_secs(), 2);
        let paced = check(&format!("{LEAST}[health]\nhealthy_for_s = 2\n")).unwrap();
        assert!(!paced.is_probed);
        assert_eq!(paced.recipe.health.healthy_for.as_secs(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_as_it_is_written() {
        let cases = [
            ("/srv/old", "srv/old", "adopt.dir"),
            ("/srv/old", "/srv/../old", "adopt.dir"),
            ("/srv/old", "/srv/web/old", "adopt.dir"),
            ("/srv/old", "/srv/web", "adopt.dir"),
            ("/srv/old", "/srv", "adopt.dir"),
            ("pid_file = \"/run/old.pid\"\n", "", "adopt"),
            ("/run/old.pid", "run/old.pid", "adopt.pid_file"),
            ("[\"./bin/start\"]", "[]", "adopt.start"),
            ("start =", "timeout_s = -1\nstart =", "adopt.timeout_s"),
            (
                "/bin/start\"]\n",
                "/bin/start\"]\n[health]\nhttp = \"ftp://x\"\n",
                "adopt.health.http",
            ),
            ("/bin/start\"]\n", "/bin/start\"]\n[health]\nrate = 1\n", "adopt.health.rate"),
            (
                "/bin/start\"]\n",
                "/bin/start\"]\n[health]\nrevision = { json = \"/r\" }\n",
                "adopt.health.revision",
            ),
        ];
        for (from, to, blamed) in cases {
            let text = LEAST.replacen(from, to, 1);
            assert_ne!(text, LEAST, "{from} is in the least table");
            let (field, message) = check(&text).unwrap_err();
            assert!(field.starts_with(blamed), "{to}: {field}: {message}");
        }
    }
}
