//! Reads a recipe's text, keeping the line of everything, and collects all problems before it
//! gives up: whoever writes a recipe wants the whole list, not one item a run.

use toml::de::DeTable;

use super::{
    Check, Health, HttpAddress, Problem, REVISION_FILE, Recipe, RecipeError, RelativePath,
    RevisionAt, SIZE_BYTES_MAX, SocketName,
};

mod make;
mod manager;
mod value;

use value::{Reader, Table, socket_name};

const PROBE_TIMEOUT_S: f64 = 5.0;
const PROBE_EVERY_S: f64 = 2.0;
const HEALTHY_FOR_S: f64 = 30.0;
const START_S: f64 = 30.0;
const PASSES: i64 = 3;

pub(super) fn recipe(text: &str) -> Result<Recipe, RecipeError> {
    if text.len() as u64 > SIZE_BYTES_MAX {
        let message = format!("the recipe is larger than {SIZE_BYTES_MAX} bytes");
        return Err(RecipeError {
            problems: vec![Problem { line: 1, field: String::new(), message }],
        });
    }
    let mut reader = Reader { text, problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| reader.line(span.start));
        let message = error.message().to_owned();
        reader.problems.push(Problem { line, field: String::new(), message });
    }
    // Half a document would only add problems that are none.
    let recipe = if reader.problems.is_empty() { reader.recipe(document.get_ref()) } else { None };
    match recipe {
        Some(recipe) if reader.problems.is_empty() => Ok(recipe),
        _ => {
            reader.problems.sort_by_key(|problem| problem.line);
            Err(RecipeError { problems: reader.problems })
        }
    }
}

impl Reader<'_> {
    fn recipe(&mut self, document: &DeTable<'_>) -> Option<Recipe> {
        let top = Table { name: "", line: 1, entries: document };
        self.only(top, &["root", "install", "build", "hooks", "manager", "health", "shared"]);
        let root = match top.get("root") {
            Some(value) => self.path(value, "root"),
            None => RelativePath::new(".").ok(),
        };
        let install = self.optional(top, "install", Self::install);
        let build = self.optional(top, "build", Self::build);
        let hooks = self.optional(top, "hooks", Self::hooks);
        let shared = match self.table(top, "shared") {
            Some(table) => self.shared(table),
            None => Some(Vec::new()),
        };
        let dirs = shared.clone().unwrap_or_default();
        let manager = self.optional(top, "manager", |reader, table| reader.manager(table, &dirs));
        let health = match self.table(top, "health") {
            Some(table) => self.health(table),
            None => {
                if top.get("health").is_none() {
                    let message = "a revision without a health check can never be proven; add \
                                   [health] with http, tcp or command";
                    self.missing(top, "health", message);
                }
                None
            }
        };
        let (install, build, shared) = (install?, build?, shared?);
        self.disjoint(top, install.as_ref(), build.as_ref(), &shared);
        let (hooks, manager) = (hooks?.unwrap_or_default(), manager?);
        Some(Recipe { root: root?, install, build, hooks, manager, health: health?, shared })
    }

    /// Reads a table that may be left out. The outer `None` means that something is wrong with it.
    #[expect(clippy::option_option, reason = "absent and wrong are two things here")]
    fn optional<T>(
        &mut self,
        top: Table<'_>,
        key: &str,
        read: impl FnOnce(&mut Self, Table<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        if top.get(key).is_none() {
            return Some(None);
        }
        let table = self.table(top, key)?;
        read(self, table).map(Some)
    }

    fn health(&mut self, table: Table<'_>) -> Option<Health> {
        self.only(
            table,
            &[
                "http",
                "tcp",
                "command",
                "revision",
                "passes",
                "every_s",
                "healthy_for_s",
                "timeout_s",
                "start_s",
            ],
        );
        let given: Vec<&str> =
            ["http", "tcp", "command"].into_iter().filter(|key| table.get(key).is_some()).collect();
        let check = match given.as_slice() {
            [] => {
                self.missing(table, "http", "give one of http, tcp and command");
                None
            }
            ["http"] => self.http(table).map(Check::Http),
            ["tcp"] => self.tcp(table).map(Check::Tcp),
            [_] => self.command(table, "command").map(Check::Command),
            [first, second, ..] => {
                let line = self.line_of(table, second);
                let message = format!("{first} is given too; use one of them");
                self.problem(line, table.field(second), message);
                None
            }
        };
        let revision = self.revision(table, matches!(check, Some(Check::Http(_)) | None));
        let passes = self.integer(table, "passes", PASSES, 1, 100);
        let every = self.duration(table, "every_s", PROBE_EVERY_S);
        let healthy_for = self.duration(table, "healthy_for_s", HEALTHY_FOR_S);
        let timeout = self.duration(table, "timeout_s", PROBE_TIMEOUT_S);
        let start = self.duration(table, "start_s", START_S);
        Some(Health {
            check: check?,
            revision: revision?,
            passes: u32::try_from(passes?).ok()?,
            every: every?,
            healthy_for: healthy_for?,
            timeout: timeout?,
            start: start?,
        })
    }

    /// The outer `None` means that something is wrong with it.
    #[expect(clippy::option_option, reason = "absent and wrong are two things here")]
    fn revision(&mut self, table: Table<'_>, is_http: bool) -> Option<Option<RevisionAt>> {
        let Some(value) = table.get("revision") else { return Some(None) };
        let line = self.line(value.span().start);
        if !is_http {
            self.problem(line, "health.revision", "only an http answer can name the revision");
            return None;
        }
        if let Some(text) = value.get_ref().as_str() {
            if text != "body" {
                let message = format!(
                    "{text:?} is not \"body\", {{ json = \"/revision\" }} or {{ header = \"x-revision\" }}"
                );
                self.problem(line, "health.revision", message);
            }
            return (text == "body").then_some(Some(RevisionAt::Body));
        }
        let place = self.table(table, "revision")?;
        let place = Table { name: "health.revision", ..place };
        self.only(place, &["json", "header"]);
        match (place.get("json"), place.get("header")) {
            (Some(value), None) => {
                let pointer = self.string(value, "health.revision.json")?;
                if pointer.starts_with('/') {
                    return Some(Some(RevisionAt::Json(pointer)));
                }
                let message = "must be a JSON pointer, such as \"/revision\"";
                self.problem(line, "health.revision.json", message);
                None
            }
            (None, Some(value)) => {
                let name = self.string(value, "health.revision.header")?;
                let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                if !name.is_empty() && name.chars().all(is_token) {
                    return Some(Some(RevisionAt::Header(name.to_ascii_lowercase())));
                }
                let message = "must be the name of a header, such as \"x-revision\"";
                self.problem(line, "health.revision.header", message);
                None
            }
            _ => {
                let message =
                    "give one of { json = \"/revision\" } and { header = \"x-revision\" }";
                self.problem(line, "health.revision", message);
                None
            }
        }
    }

    fn http(&mut self, table: Table<'_>) -> Option<HttpAddress> {
        let value = table.get("http")?;
        let text = self.string(value, "health.http")?;
        let address = text.strip_prefix("http://").and_then(|rest| {
            let (socket, path) = match rest.find('/') {
                Some(slash) => (&rest[..slash], &rest[slash..]),
                None => (rest, "/"),
            };
            let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            let socket = socket_name(socket, Some(80))?;
            is_plain.then(|| HttpAddress { socket, path: path.to_owned() })
        });
        if address.is_none() {
            let line = self.line(value.span().start);
            let message = format!(
                "{text:?} is no plain http address; use one such as \
                 \"http://127.0.0.1:3000/healthz\""
            );
            self.problem(line, "health.http", message);
        }
        address
    }

    fn tcp(&mut self, table: Table<'_>) -> Option<SocketName> {
        let value = table.get("tcp")?;
        let text = self.string(value, "health.tcp")?;
        let socket = socket_name(&text, None);
        if socket.is_none() {
            let line = self.line(value.span().start);
            let message = format!("{text:?} is no host and port, such as \"127.0.0.1:3000\"");
            self.problem(line, "health.tcp", message);
        }
        socket
    }

    fn shared(&mut self, table: Table<'_>) -> Option<Vec<RelativePath>> {
        self.only(table, &["dirs"]);
        let dirs = self.paths(table, "dirs", "the directories that outlive releases")?;
        let line = self.line_of(table, "dirs");
        if dirs.iter().any(RelativePath::is_root) {
            self.problem(line, "shared.dirs", "`.` would share the release itself");
            return None;
        }
        self.apart(table, "dirs", &dirs).then_some(dirs)
    }

    /// Refuses paths that overlap with one another, or with what the agent puts into each release.
    fn apart(&mut self, table: Table<'_>, key: &str, paths: &[RelativePath]) -> bool {
        let line = self.line_of(table, key);
        let problems = self.problems.len();
        for (index, path) in paths.iter().enumerate() {
            if paths.iter().skip(index + 1).any(|other| path.holds(other) || other.holds(path)) {
                self.problem(
                    line,
                    table.field(key),
                    format!("{path} overlaps with another of them"),
                );
            }
            if path.as_str().split('/').next() == Some(REVISION_FILE) {
                let message = format!("{path} is where the agent writes each release's revision");
                self.problem(line, table.field(key), message);
            }
        }
        self.problems.len() == problems
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recipe::{Find, Hooks, Place, Reload, ReloadSignal, RestartWhen};

    const FULL: &str = include_str!("../../golden/recipe-full.toml");
    const LEAST: &str = include_str!("../../golden/recipe-least.toml");
    const MADE: &str = include_str!("../../golden/recipe-made.toml");

    #[test]
    fn a_full_recipe_is_read_as_written() {
        let recipe = recipe(FULL).unwrap();
        assert_eq!(recipe.root.as_str(), "services/web");
        let install = recipe.install.unwrap();
        assert_eq!(install.command.to_string(), "npm ci --omit=dev");
        assert_eq!(install.inputs.len(), 3);
        assert_eq!(install.timeout, Duration::from_secs(600));
        assert_eq!(install.place, Place::Release);
        let manager = recipe.manager.unwrap();
        assert_eq!(manager.find, Find::PidFile("run/app.pid".to_owned()));
        assert_eq!(manager.reload, Reload::Signal(ReloadSignal::Hup));
        assert_eq!(manager.restart_when, [RestartWhen::Install, RestartWhen::Runtime]);
        assert_eq!(recipe.health.revision, Some(RevisionAt::Json("/revision".to_owned())));
        assert_eq!(recipe.health.every, Duration::from_millis(500), "half a second is accepted");
    }

    #[test]
    fn the_least_recipe_gets_the_documented_defaults() {
        let recipe = recipe(LEAST).unwrap();
        assert!(recipe.root.is_root());
        assert_eq!(recipe.install, None);
        assert_eq!(recipe.build, None);
        assert_eq!(recipe.hooks, Hooks::default());
        let manager = recipe.manager.as_ref().unwrap();
        assert_eq!(manager.timeout, Duration::from_secs(90));
        assert_eq!(manager.restart_when, [RestartWhen::Install, RestartWhen::Runtime]);
        assert_eq!(recipe.health.passes, 3);
        assert_eq!(recipe.health.every, Duration::from_secs(2));
        assert_eq!(recipe.health.healthy_for, Duration::from_secs(30));
        assert_eq!(recipe.health.timeout, Duration::from_secs(5));
        assert_eq!(recipe.health.start, Duration::from_secs(30));
        assert_eq!(recipe.warnings().len(), 1, "nothing shows the served revision");
    }

    #[test]
    fn a_unit_starts_and_reloads_by_itself() {
        let by_unit = |rest: &str| {
            let text =
                format!("[manager]\nunit = \"web@1.service\"\n{rest}[health]\ntcp = \"a:1\"\n");
            recipe(&text).unwrap().manager.unwrap()
        };
        let manager = by_unit("");
        assert_eq!(manager.find, Find::Unit("web@1.service".to_owned()));
        assert_eq!((manager.start, manager.reload), (None, Reload::Unit));
        let told = by_unit("reload = \"SIGHUP\"\n");
        assert_eq!(told.reload, Reload::Signal(ReloadSignal::Hup), "past the unit's own way");
    }

    #[test]
    fn builds_hooks_and_places_are_read_and_a_manager_may_be_left_out() {
        let recipe = recipe(MADE).unwrap();
        assert_eq!(recipe.install.unwrap().place, Place::ByKey);
        let build = recipe.build.unwrap();
        assert_eq!(build.command.to_string(), "./bin/build --all");
        assert_eq!(build.outputs[0].as_str(), "dist");
        assert_eq!(build.runtime.unwrap().to_string(), "node --version");
        assert_eq!(build.timeout, Duration::from_secs(600));
        assert_eq!(recipe.hooks.before.unwrap().to_string(), "./bin/migrate");
        assert_eq!(recipe.hooks.after.unwrap().to_string(), "./bin/warm");
        assert_eq!(recipe.hooks.timeout, Duration::from_secs(60));
        assert_eq!(recipe.manager, None);
        assert_eq!(recipe.health.revision, Some(RevisionAt::Body));
    }

    /// Each row replaces one piece of the least recipe and names the line and the field to blame.
    #[test]
    fn what_is_wrong_is_told_with_its_line_and_field() {
        let cases = [
            ("pid_file = ", "pidfile = ", 2, "manager.pidfile"),
            ("pid_file = \"/run/web.pid\"", "pid_file = \"web.pid\"", 2, "manager.pid_file"),
            ("pid_file = \"/run/web.pid\"", "pid_file = \"../web.pid\"", 2, "manager.pid_file"),
            ("pid_file = \"/run/web.pid\"", "pid_file = 7", 2, "manager.pid_file"),
            ("pid_file = ", "status = []\n#", 2, "manager.status"),
            ("pid_file = ", "unit = \"web.service\"\npid_file = ", 2, "manager.unit"),
            ("pid_file = ", "unit = \"web.service\"\n#", 5, "manager.start"),
            ("pid_file = ", "unit = \"web\"\n#", 2, "manager.unit"),
            ("pid_file = ", "unit = \".service\"\n#", 2, "manager.unit"),
            ("pid_file = ", "unit = \"-H.service\"\n#", 2, "manager.unit"),
            ("pid_file = ", "unit = \"a b.service\"\n#", 2, "manager.unit"),
            ("\"SIGHUP\"", "\"SIGKILL\"", 3, "manager.reload"),
            ("\"SIGHUP\"", "\"kill -HUP\"", 3, "manager.reload"),
            ("\"SIGHUP\"", "[]", 3, "manager.reload"),
            ("[\"./bin/start\"]", "\"./bin/start\"", 4, "manager.start"),
            ("[\"./bin/start\"]", "[\"\"]", 4, "manager.start"),
            ("[\"./bin/start\"]", "[\"a\\u0000b\"]", 4, "manager.start"),
            ("start = ", "timeout_s = 0\nstart = ", 4, "manager.timeout_s"),
            ("start = ", "restart_when = [\"always\"]\nstart = ", 4, "manager.restart_when"),
            ("tcp = ", "http = \"ftp://a\"\n#", 6, "health.http"),
            ("tcp = ", "http = \"http://127.0.0.1:0/\"\n#", 6, "health.http"),
            ("tcp = ", "http = \"http://u:p@127.0.0.1/\"\n#", 6, "health.http"),
            ("tcp = ", "command = [\"true\"]\ntcp = ", 6, "health.command"),
            ("\"127.0.0.1:3000\"", "\"127.0.0.1\"", 6, "health.tcp"),
            ("\"127.0.0.1:3000\"", "\"127.0.0.1:3000\"\npasses = 0", 7, "health.passes"),
            ("\"127.0.0.1:3000\"", "\"127.0.0.1:3000\"\nevery_s = nan", 7, "health.every_s"),
            (
                "\"127.0.0.1:3000\"",
                "\"127.0.0.1:3000\"\nrevision = { json = \"/r\" }",
                7,
                "health.revision",
            ),
            ("[health]", "[shared]\ndirs = [\"a\", \"a/b\"]\n[health]", 6, "shared.dirs"),
            ("[health]", "[shared]\ndirs = [\"/a\"]\n[health]", 6, "shared.dirs"),
            ("[health]", "[shared]\ndirs = [\".towline-revision\"]\n[health]", 6, "shared.dirs"),
            (
                "[health]",
                "[install]\ncommand = [\"x\"]\ninputs = [\"y\"]\noutputs = [\"a\", \"a/b\"]\n[health]",
                8,
                "install.outputs",
            ),
            ("\"127.0.0.1:3000\"", "\"127.0.0.1:3000\"\nstart_s = -1", 7, "health.start_s"),
            ("tcp = ", "http = \"http://a/\"\nrevision = \"header\"\n#", 7, "health.revision"),
            ("\"127.0.0.1:3000\"", "\"127.0.0.1:3000\"\nrevision = \"body\"", 7, "health.revision"),
            ("[health]", "[install]\ncommand = [\"x\"]\n[health]", 5, "install.inputs"),
            ("[manager]", "surprise = 1\n[manager]", 1, "surprise"),
            ("[manager]", "manager = 1\n[other]", 1, "manager"),
            ("[health]", "[hooks]\n[health]", 5, "hooks.before"),
            ("[health]", "[hooks]\nbefore = \"./bin/migrate\"\n[health]", 6, "hooks.before"),
            ("[health]", "[hooks]\nafter = [\"x\"]\ntimeout_s = 0\n[health]", 7, "hooks.timeout_s"),
            ("[health]", "[build]\noutputs = [\"dist\"]\n[health]", 5, "build.command"),
            (
                "[health]",
                "[build]\ncommand = [\"x\"]\noutputs = [\".\"]\n[health]",
                7,
                "build.outputs",
            ),
            (
                "[health]",
                "[build]\ncommand = [\"x\"]\noutputs = [\".towline-revision\"]\n[health]",
                7,
                "build.outputs",
            ),
            (
                "[health]",
                "[build]\ncommand = [\"x\"]\noutputs = [\"a\"]\n[shared]\ndirs = [\"a/b\"]\n[health]",
                8,
                "shared.dirs",
            ),
            (
                "[health]",
                "[install]\ncommand = [\"x\"]\ninputs = [\"y\"]\noutputs = [\"a\"]\n[build]\ncommand = \
                 [\"x\"]\noutputs = [\"a/b\"]\n[health]",
                9,
                "build.outputs",
            ),
            (
                "[health]",
                "[install]\ncommand = [\"x\"]\ninputs = [\"y\"]\noutputs = [\"a\"]\nplace = \"here\"\n[health]",
                9,
                "install.place",
            ),
        ];
        for (from, to, line, field) in cases {
            let text = LEAST.replacen(from, to, 1);
            assert_ne!(text, LEAST, "{from} is in the least recipe");
            let error = recipe(&text).unwrap_err();
            let told = error.problems.iter().any(|p| p.line == line && p.field == field);
            assert!(told, "{to:?} should blame {field} in line {line}: {error}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = recipe("[manager]\nreload = 1\n[health]\npasses = -1\n").unwrap_err();
        let fields: Vec<&str> = error.problems.iter().map(|p| p.field.as_str()).collect();
        let expected =
            ["manager.pid_file", "manager.start", "manager.reload", "health.http", "health.passes"];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let error = recipe("root = \".\"\n[manager\n").unwrap_err();
        assert_eq!(error.problems[0].line, 2, "{error}");
    }

    #[test]
    fn a_recipe_of_any_bytes_ends_in_an_answer() {
        for text in
            ["", "\u{feff}", "=", "[[manager]]", "[health]\nhttp=\"http://[::1\"", "a.b.c=1"]
        {
            assert!(recipe(text).is_err(), "{text:?}");
        }
        assert!(recipe(&"#".repeat(100_000)).is_err(), "too large");
    }
}
