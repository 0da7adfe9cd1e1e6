//! The config files that are there to be copied: every key, with its default.
//!
//! ```text
//!   a file ─┬─ as it is ──────────────────────────────► the code's config ─┐
//!           └─ with its settings uncommented, save ───► the code's config ─┴─ the same
//!              those that have no default
//! ```
//!
//! And each key that the code knows is in its file, by what the code says of one that it does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use towline_protocol::policy::Policy;

/// A file, what it shows that has no default, and how the code reads it.
struct Snippet {
    name: &'static str,
    without_default: &'static [&'static str],
    load: fn(&Path) -> Result<String, String>,
}

const ALL: &[Snippet] = &[
    Snippet {
        name: "coordinator.toml",
        without_default: &["tls", "mirror.ca_file", "mirror.credentials"],
        load: coordinator,
    },
    Snippet { name: "web-group.toml", without_default: &[], load: group },
    Snippet {
        name: "web.toml",
        without_default: &[
            "instance",
            "default_recipe",
            "source",
            "adopt",
            "coordinator.ca_file",
            "git.credential",
            "git.ca_file",
            "git.known_hosts",
            "git.mirrors",
        ],
        load: host,
    },
];

fn coordinator(path: &Path) -> Result<String, String> {
    use towline_coordinator::config::{Config, Flags};
    let config = Config::load(Some(path), &Flags::default());
    config.map(|config| format!("{config:#?}")).map_err(|error| chain(&error))
}

fn group(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).expect("a file");
    let policy: Policy = toml::from_str(&text).map_err(|error| error.to_string())?;
    let policy = policy.check().map_err(|error| error.to_string())?;
    Ok(format!("{policy:#?}"))
}

fn host(path: &Path) -> Result<String, String> {
    let config = towline_agent::config::Config::load(path, &BTreeMap::new());
    config.map(|config| format!("{config:#?}")).map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ami-snippets").join(name);
    std::fs::read_to_string(path).expect("a snippet")
}

/// All that it shows: settings are lines that begin with `#` and no space.
fn uncommented(text: &str) -> Table {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n").parse().expect("it is TOML")
}

/// Of a list of tables, the first is meant.
fn table<'a>(table: &'a mut Table, path: &[&str]) -> &'a mut Table {
    path.iter().fold(table, |table, name| match &mut table[*name] {
        Value::Array(all) => all[0].as_table_mut().expect("a table"),
        other => other.as_table_mut().expect("a table"),
    })
}

/// The paths of all tables, the outermost first.
fn paths(table: &Table) -> Vec<Vec<&str>> {
    let mut all = vec![vec![]];
    for (name, value) in table {
        let first = value.as_array().and_then(|all| all.first()).unwrap_or(value);
        let inner = first.as_table().into_iter().flat_map(paths);
        all.extend(inner.map(|rest| std::iter::once(name.as_str()).chain(rest).collect()));
    }
    all
}

/// A place for files to be read from, the same for all of one snippet.
fn place(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("file.toml");
    std::fs::write(&path, text).expect("a new file");
    path
}

#[test]
fn what_a_snippet_shows_as_a_default_is_the_codes() {
    for snippet in ALL {
        let dir = tempfile::tempdir().expect("a temp dir");
        let text = text(snippet.name);
        let own = (snippet.load)(&place(&dir, &text)).expect(snippet.name);
        let mut full = uncommented(&text);
        for name in snippet.without_default {
            let path: Vec<&str> = name.split('.').collect();
            let (last, path) = path.split_last().expect("a name");
            assert!(table(&mut full, path).remove(*last).is_some(), "{}: {name}", snippet.name);
        }
        let full = toml::to_string(&full).expect("it is TOML");
        let shown = (snippet.load)(&place(&dir, &full)).expect(snippet.name);
        assert_eq!(own, shown, "{}", snippet.name);
    }
}

#[test]
fn what_is_shown_without_a_default_can_be_read() {
    for snippet in ALL {
        let dir = tempfile::tempdir().expect("a temp dir");
        let mut full = uncommented(&text(snippet.name));
        // Others that do the same.
        full.remove("source");
        if let Some(adopt) = full.get_mut("adopt").and_then(Value::as_table_mut) {
            adopt.remove("status");
        }
        let full = toml::to_string(&full).expect("it is TOML");
        (snippet.load)(&place(&dir, &full)).expect(snippet.name);
    }
}

#[test]
fn each_key_that_is_known_is_shown() {
    for snippet in ALL {
        let dir = tempfile::tempdir().expect("a temp dir");
        let shown = uncommented(&text(snippet.name));
        for path in paths(&shown) {
            let at = format!("{} {path:?}", snippet.name);
            let mut with = shown.clone();
            let inner = table(&mut with, &path);
            let own: BTreeSet<String> = inner.keys().cloned().collect();
            inner.insert("unheard-of".to_owned(), Value::from("x"));
            let with = toml::to_string(&with).expect("it is TOML");
            let said = (snippet.load)(&place(&dir, &with));
            // Whatever is there is a host; and a recipe's keys are the recipe's.
            if path == ["mirror", "credentials"] || path == ["adopt", "health"] {
                continue;
            }
            let said = said.expect_err(&at);
            let (_, known) = said.split_once("`unheard-of`, expected ").expect(&at);
            let known: BTreeSet<String> =
                known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            assert_eq!(own, known, "{at}");
        }
    }
}
