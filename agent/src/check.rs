//! What `towline-agent check` says, line by line; `main` prints it.
//!
//! ```text
//!   recipe's text ──► Recipe ──► what a deploy would refuse in DIR's tree ──► lines, valid or not
//!   host config ────► Config ──► bootstrap::check ─────────────────────────┘
//! ```
//!
//! A deploy sees what is committed, so the tree is looked at as git has it, where DIR is a work tree
//! and git can be asked; elsewhere as it is on disk. Nothing is changed, and nothing of DIR is run.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml::de::{DeTable, DeValue};
use towline_protocol::recipe::{self, CommandLine, Recipe, RelativePath};

use crate::bootstrap;
use crate::config::{Config, ConfigError, Source};
use crate::error;

/// What is wrong, and what is doubtful, with one file.
#[derive(Debug)]
pub struct Findings {
    file: String,
    text: String,
    said: String,
    valid: bool,
}

impl Findings {
    fn new(file: &Path, text: String) -> Self {
        Self { file: file.display().to_string(), text, said: String::new(), valid: true }
    }

    /// Returns all of it, as lines to be printed, and whether the file is valid.
    #[must_use]
    pub fn conclude(mut self) -> (String, bool) {
        if self.valid {
            self.say("", "valid");
        }
        (self.said.trim_end().to_owned(), self.valid)
    }

    fn say(&mut self, place: &str, message: &str) {
        writeln!(self.said, "{}{place}: {message}", self.file).ok();
    }

    /// `field` with its line; `item` is the one of a list's that is meant.
    fn problem(&mut self, field: &str, item: Option<&str>, message: &str) {
        self.valid = false;
        let place = line(&self.text, field, item).map_or(String::new(), |line| format!(":{line}"));
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        self.say(&place, &format!("{field}{message}"));
    }

    fn warning(&mut self, message: &str) {
        self.say("", &format!("warning: {message}"));
    }
}

/// Returns the line of a field, such as `manager.start`, or of one item of its list.
fn line(text: &str, field: &str, item: Option<&str>) -> Option<usize> {
    let (document, _) = DeTable::parse_recoverable(text);
    let mut table = document.get_ref();
    let mut offset = None;
    for part in field.split('.') {
        let (_, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
        offset = Some(value.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            DeValue::Array(items) => {
                let is_it = |of: &&toml::Spanned<DeValue<'_>>| of.get_ref().as_str() == item;
                offset = items.iter().find(is_it).map(|it| it.span().start).or(offset);
            }
            _ => {}
        }
    }
    offset.map(|offset| 1 + text.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count())
}

/// Checks the recipe at `path` in `dir`, and what of the tree a deploy would refuse. With host config,
/// also whether that allows what the recipe uses.
///
/// # Errors
///
/// Where there is no recipe that could be read.
pub fn recipe(dir: &Path, path: &str, host: Option<&Config>) -> io::Result<Findings> {
    let path = if dir == Path::new(".") { PathBuf::from(path) } else { dir.join(path) };
    let mut bytes = Vec::new();
    // A pipe would be waited for.
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    File::open(&path)?.take(recipe::SIZE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let Ok(text) = String::from_utf8(bytes) else {
        let mut findings = Findings::new(&path, String::new());
        findings.problem("", None, "the recipe is not UTF-8");
        return Ok(findings);
    };
    let parsed = Recipe::parse(&text);
    let mut findings = Findings::new(&path, text);
    match parsed {
        Ok(recipe) => {
            for warning in recipe.warnings() {
                findings.warning(&warning);
            }
            if let Some(Err(refused)) = host.map(|host| host.allow.check(&recipe)) {
                let said = format!("{refused}: {}", refused.hint());
                findings.problem(refused.field, None, &said);
            }
            let root = dir.join(recipe.root.as_str());
            if root.is_dir() {
                tree(&mut findings, &recipe, &Tree::new(root));
            } else {
                let said = format!("{} is no directory", root.display());
                findings.problem("root", None, &said);
            }
        }
        Err(error) => {
            findings.valid = false;
            for problem in error.problems {
                let field = if problem.field.is_empty() { "" } else { ": " };
                let place = format!(":{}", problem.line);
                findings.say(&place, &format!("{}{field}{}", problem.field, problem.message));
            }
        }
    }
    Ok(findings)
}

/// The folder of the repository that is the release.
struct Tree {
    root: PathBuf,
    /// What git has of it, path and mode; `None` where that is not known.
    tracked: Option<BTreeMap<String, String>>,
}

impl Tree {
    fn new(root: PathBuf) -> Self {
        let tracked = tracked(&root);
        Self { root, tracked }
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).symlink_metadata().is_ok()
    }

    /// Does git have it, or anything below it?
    fn is_tracked(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.tracked.as_ref().is_some_and(|all| {
            all.contains_key(path)
                || all.range(below.clone()..).next().is_some_and(|(p, _)| p.starts_with(&below))
        })
    }

    /// Says why a program of the release cannot be run, where it cannot.
    fn obstacle(&self, path: &str) -> Option<String> {
        let Ok(found) = fs::metadata(self.root.join(path)) else {
            return Some(format!("{path} is not there"));
        };
        if !found.is_file() {
            return Some(format!("{path} is no file"));
        }
        if found.permissions().mode() & 0o111 == 0 {
            return Some(format!("{path} is not executable: chmod +x {path}, and commit that"));
        }
        let mode = self.tracked.as_ref().and_then(|all| all.get(path));
        (mode.is_some_and(|mode| mode == "100644"))
            .then(|| format!("{path} is not executable in git: git update-index --chmod=+x {path}"))
    }
}

/// Asks git what it has in `dir`; nothing where it is no work tree, or git does not say.
fn tracked(dir: &Path) -> Option<BTreeMap<String, String>> {
    let output = Command::new("git")
        // Nothing that the repository's own configuration names may be run.
        .args(["-c", "core.fsmonitor=false", "ls-files", "-s", "-z"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let entry = |entry: &str| {
        let (mode, path) = entry.split_once('\t')?;
        Some((path.to_owned(), mode.split(' ').next()?.to_owned()))
    };
    Some(text.split('\0').filter_map(entry).collect())
}

fn tree(findings: &mut Findings, recipe: &Recipe, tree: &Tree) {
    let install = recipe.install.as_ref();
    let outputs = install.map_or(&[][..], |install| &install.outputs);
    let built = recipe.build.as_ref().map_or(&[][..], |build| &build.outputs);
    programs(findings, recipe, tree);
    let all = [
        ("shared.dirs", &recipe.shared[..]),
        ("install.outputs", outputs),
        ("build.outputs", built),
    ];
    for (field, paths) in all {
        for path in paths.iter().map(RelativePath::as_str) {
            let item = Some(path);
            if tree.is_tracked(path) {
                let said = format!(
                    "{path} is in the repository too, and a deploy refuses that: git rm -r \
                     --cached {path}, and add it to .gitignore"
                );
                findings.problem(field, item, &said);
            } else if tree.tracked.is_none() && tree.exists(path) {
                let said = format!("{field}: {path} is there; it must not be in the repository");
                findings.warning(&said);
            }
        }
    }
    for input in install.iter().flat_map(|install| &install.inputs) {
        let path = input.as_str();
        if !tree.exists(path) {
            findings.warning(&format!("install.inputs: {input} is not there"));
        } else if tree.tracked.is_some() && !input.is_root() && !tree.is_tracked(path) {
            findings.warning(&format!("install.inputs: {input} is not in git: add and commit it"));
        }
    }
}

/// Looks for the programs that are paths into the release.
fn programs(findings: &mut Findings, recipe: &Recipe, tree: &Tree) {
    let mut look = |field: &str, command: &CommandLine, made: &[&RelativePath]| {
        let program = command.program.as_str();
        let is_path = program.contains('/') && !program.starts_with('/');
        let Some(path) = RelativePath::new(program).ok().filter(|_| is_path) else { return };
        if made.iter().any(|dir| dir.holds(&path)) {
            return;
        }
        match tree.obstacle(path.as_str()) {
            Some(said) => findings.problem(field, None, &said),
            None if tree.tracked.is_some() && !tree.is_tracked(path.as_str()) => {
                findings.warning(&format!("{field}: {path} is not in git: add and commit it"));
            }
            None => {}
        }
    };
    let install = recipe.install.as_ref();
    let outputs: Vec<&RelativePath> =
        install.into_iter().flat_map(|install| &install.outputs).collect();
    if let Some(build) = &recipe.build {
        look("build.command", &build.command, &outputs);
    }
    let built = recipe.build.iter().flat_map(|build| &build.outputs);
    let made: Vec<&RelativePath> = outputs.into_iter().chain(built).chain(&recipe.shared).collect();
    let hooks = [("hooks.before", &recipe.hooks.before), ("hooks.after", &recipe.hooks.after)];
    for (field, command) in hooks {
        if let Some(command) = command {
            look(field, command, &made);
        }
    }
    let start = recipe.manager.as_ref().and_then(|manager| manager.start.as_ref());
    if let Some(start) = start {
        look("manager.start", start, &made);
    }
    let Some(install) = install else { return };
    look("install.command", &install.command, &[]);
    let program = install.command.program.as_str();
    let path = RelativePath::new(program).ok().filter(|_| program.contains('/'));
    if let Some(path) = path.filter(|path| !install.inputs.iter().any(|input| input.holds(path))) {
        let said =
            format!("{path} is not among install.inputs, and nothing else is there when it runs");
        findings.problem("install.command", None, &said);
    }
}

/// Checks host config: the file, and what can be told of the host without changing it.
#[must_use]
pub fn config(path: &Path, variables: &BTreeMap<String, String>) -> (Findings, Option<Config>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut findings = Findings::new(path, text);
    let config = match Config::load(path, variables) {
        Ok(config) => config,
        Err(error) => {
            refuse(&mut findings, &error);
            return (findings, None);
        }
    };
    if let Err(error) = bootstrap::check(&config) {
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        findings.problem("", None, &format!("{}{hint}", error::chain(&error)));
    }
    for doubt in bootstrap::doubts(&config) {
        findings.warning(&doubt);
    }
    let watched = match &config.source {
        Source::File(file) => Some(("source.file", file.parent().unwrap_or(file))),
        Source::Coordinator(_) => None,
    };
    let adopted = config.adopted.iter().map(|adopted| ("adopt.dir", adopted.dir.as_path()));
    for (field, dir) in [("dir", config.dir.as_path())].into_iter().chain(watched).chain(adopted) {
        // Not a problem of the file: it may be checked on another host.
        if !dir.is_dir() {
            findings.warning(&format!("{field}: {} is not there: create it first", dir.display()));
        }
    }
    (findings, Some(config))
}

fn refuse(findings: &mut Findings, error: &ConfigError) {
    match error {
        ConfigError::Adopt { field, message, .. } => findings.problem(field, None, message),
        ConfigError::Value { field, accepted, found, .. } => {
            findings.problem(field, None, &format!("{accepted}, not {found}"));
        }
        ConfigError::Parse { source, .. } => {
            findings.valid = false;
            let before = source.span().map_or(0, |span| span.start.min(findings.text.len()));
            let line =
                1 + findings.text.as_bytes()[..before].iter().filter(|b| **b == b'\n').count();
            findings.say(&format!(":{line}"), source.message());
        }
        ConfigError::Name { source, .. } => findings.problem("", None, &source.to_string()),
        ConfigError::Read { source, .. } => {
            findings.problem("", None, &format!("could not be read: {source}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "[manager]\npid_file = \"/run/x.pid\"\nreload = \"SIGHUP\"\nstart = \
                          [\"node\"]\n[health]\ntcp = \"127.0.0.1:1\"\n";

    fn check(dir: &Path) -> (String, bool) {
        recipe(dir, "towline.toml", None).unwrap().conclude()
    }

    #[test]
    fn file_and_line_of_each_problem_are_named_and_nothing_that_shows_the_revision_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recipe(dir.path(), "towline.toml", None).is_err(), "there is no recipe");
        let path = dir.path().join("towline.toml");
        fs::write(&path, "[manager]\npidfile = \"/x\"\n[health]\ntcp = \"nowhere\"\n").unwrap();
        let (said, valid) = check(dir.path());
        assert!(!valid);
        for place in ["towline.toml:2: manager.pidfile", "towline.toml:4: health.tcp"] {
            assert!(said.contains(place), "{place} in {said}");
        }
        fs::write(&path, RECIPE).unwrap();
        let (said, valid) = check(dir.path());
        assert!(valid && said.contains("nothing shows which revision is served"), "{said}");
    }

    #[test]
    fn a_field_is_found_in_its_text() {
        let text = "a = 1\n[b]\nc = [\n\"x\",\n\"y\",\n]\nd = { e = 2 }\n";
        let cases = [
            ("a", None, Some(1)),
            ("b.c", None, Some(3)),
            ("b.c", Some("y"), Some(5)),
            ("b.c", Some("z"), Some(3)),
            ("b.d.e", None, Some(7)),
            ("b.f", None, None),
        ];
        for (field, item, expected) in cases {
            assert_eq!(line(text, field, item), expected, "{field} {item:?}");
        }
    }

    #[test]
    fn what_is_made_later_need_not_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let made = "[install]\ncommand = [\"pip\"]\ninputs = [\"lock\"]\noutputs = [\"vendor\"]\n";
        let text = RECIPE.replace("[\"node\"]", "[\"vendor/bin/gunicorn\"]");
        fs::write(dir.path().join("towline.toml"), format!("{made}{text}")).unwrap();
        let (said, valid) = check(dir.path());
        assert!(valid, "{said}");
        fs::write(dir.path().join("towline.toml"), text).unwrap();
        let (said, valid) = check(dir.path());
        assert!(!valid && said.contains("towline.toml:4: manager.start: vendor/bin/gunicorn is"));
    }

    #[test]
    fn programs_of_builds_and_hooks_are_looked_for_too() {
        let dir = tempfile::tempdir().unwrap();
        let tables = "[build]\ncommand = [\"./bin/build\"]\noutputs = [\"dist\"]\n[hooks]\nbefore = \
                      [\"bin/migrate\"]\nafter = [\"dist/warm\"]\n";
        fs::write(dir.path().join("towline.toml"), format!("{tables}{RECIPE}")).unwrap();
        let (said, valid) = check(dir.path());
        assert!(!valid);
        for told in [
            "towline.toml:2: build.command: bin/build is not there",
            "hooks.before: bin/migrate is",
        ] {
            assert!(said.contains(told), "{told} in {said}");
        }
        assert!(!said.contains("hooks.after"), "it is built: {said}");
        let (_, health) = RECIPE.split_once("[health]").unwrap();
        fs::write(dir.path().join("towline.toml"), format!("[health]{health}")).unwrap();
        let (said, valid) = check(dir.path());
        assert!(valid && said.contains("but that something is healthy"), "{said}");
    }
}
