//! `towline init`: a first recipe, from what a repository's work tree shows.
//!
//! ```text
//!   work tree ──► Tree (bounded looks) ──► a kind: node, python, ruby, …  ──► Plan ──► recipe's text
//!                                                                           └──────► notes
//! ```
//!
//! It reads, and writes nothing; nothing of the repository is run. A draft is a guess that says what it
//! guessed: it parses, it is commented, and whatever has to be looked at is a note.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use towline_protocol::recipe::{FILE_NAME, REVISION_FILE, Recipe};

mod compiled;
mod node;
mod python;
mod ruby;
mod tree;

use tree::Tree;

/// A first recipe.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Where it belongs: at the repository's top, where it is looked for.
    pub(crate) path: PathBuf,
    /// The text of a `towline.toml`, with comments.
    pub(crate) text: String,
    /// What was seen, and what to look at, a line each.
    pub(crate) notes: Vec<String>,
}

/// Why there is no draft.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// There is a recipe already.
    #[error("{} is there already", path.display())]
    Exists {
        /// The recipe.
        path: PathBuf,
    },
    /// The directory could not be read.
    #[error("could not look into {}", dir.display())]
    Read {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl InitError {
    /// Returns the next thing for an operator to try.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            InitError::Exists { .. } => {
                Some(
                    "`towline-agent check` tells what is wrong with it, if anything; of several apps in one \
                     repository each has a recipe of its own name, which `git.recipe` on its hosts says"
                        .to_owned(),
                )
            }
            InitError::Read { .. } => Some("give the top of a repository's work tree".to_owned()),
        }
    }
}

/// What is guessed of an app, before it becomes text.
#[derive(Debug, Default)]
struct Plan {
    /// What it is: `a node app that npm installs`.
    what: String,
    install: Option<Install>,
    manager: Manager,
    health: Health,
    /// Directories that outlive releases, besides the one that holds the pid file.
    shared: Vec<String>,
    notes: Vec<String>,
}

#[derive(Debug, Default)]
struct Install {
    command: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    runtime: Vec<String>,
    timeout_s: Option<u32>,
}

#[derive(Debug, Default)]
struct Manager {
    /// A signal's name.
    reload: &'static str,
    /// What is known of what the signal does.
    reload_comment: &'static str,
    start: Start,
}

/// How the app is started.
#[derive(Debug, Default)]
enum Start {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A command that writes the pid file itself.
    Command(Vec<String>),
    /// A shell's command line; the shell writes its pid, and then becomes the program.
    Line(String),
}

#[derive(Debug, Default)]
struct Health {
    port: u16,
    /// A path that the app's code names.
    path: Option<String>,
    /// Does the code read the file that names the revision?
    has_revision: bool,
}

/// The pid file, in a directory that outlives releases.
const PID_FILE: &str = "run/app.pid";

/// The signals' effect on an app that has no workers.
const SINGLE: &str = "a single process is stopped and started instead; the signal is not used";

/// Looks at the work tree in `dir`, and writes a first recipe.
///
/// # Errors
///
/// See [`InitError`].
pub(crate) fn draft(dir: &Path) -> Result<Draft, InitError> {
    let given = Tree::new(dir);
    given.check().map_err(|source| InitError::Read { dir: dir.to_owned(), source })?;
    let above = given.repository_above();
    let place = above.as_ref().map_or_else(|| dir.to_owned(), |(top, _)| top.clone());
    let path = place.join(FILE_NAME);
    if path.symlink_metadata().is_ok() {
        return Err(InitError::Exists { path });
    }
    let top = Tree::new(&place);
    let mut notes = Vec::new();
    let (root, tree) = match above {
        // The folder that was given is the app.
        Some((_, root)) => (root, given),
        None => root(&top, &mut notes),
    };
    let mut plan = look(&tree);
    notes.insert(0, format!("it looks like {}", plan.what));
    own_start(&tree, &mut plan);
    surroundings(&top, &tree, &root, &plan, &mut notes);
    notes.append(&mut plan.notes);
    let text = render(&root, &plan);
    match Recipe::parse(&text) {
        Ok(recipe) => notes.extend(recipe.warnings()),
        // A name in the repository that nobody thought of.
        Err(error) => notes.push(format!("the draft has to be mended first: {error}")),
    }
    Ok(Draft { path, text, notes })
}

/// What kind of app this is. What can serve comes before what may only build something.
fn look(tree: &Tree) -> Plan {
    type Look = fn(&Tree) -> Option<Plan>;
    const LOOKS: [Look; 6] = [
        ruby::look,
        python::look_for_server,
        node::look,
        python::look,
        compiled::go,
        compiled::rust,
    ];
    LOOKS.iter().find_map(|look| look(tree)).unwrap_or_else(|| compiled::other(tree))
}

/// Finds the folder that is the app, and tells where there are several.
fn root(top: &Tree, notes: &mut Vec<String>) -> (String, Tree) {
    const MANIFESTS: [&str; 7] = [
        "package.json",
        "requirements.txt",
        "pyproject.toml",
        "Pipfile",
        "Gemfile",
        "go.mod",
        "Cargo.toml",
    ];
    let is_app = |tree: &Tree| MANIFESTS.iter().any(|name| tree.has_file(name));
    let parts: Vec<String> =
        top.folders().into_iter().filter(|folder| is_app(&top.below(folder))).collect();
    let list = |parts: &[String]| match parts {
        [first, second, third, _, ..] => format!("{first}, {second}, {third}, …"),
        _ => parts.join(", "),
    };
    let is_workspace = top.has_file("pnpm-workspace.yaml")
        || top.has_file("lerna.json")
        || top.has_file("go.work")
        || top.text("package.json").is_some_and(|text| text.contains("\"workspaces\""))
        || top.text("Cargo.toml").is_some_and(|text| text.contains("[workspace]"));
    if is_app(top) {
        if is_workspace && !parts.is_empty() {
            notes.push(format!(
                "this is a monorepo ({}): set root to the folder that this group runs, if it holds \
                 all that it needs; then a commit that changes nothing below it swaps nothing",
                list(&parts)
            ));
        } else if !parts.is_empty() {
            notes.push(format!("there are apps below it too: {}", list(&parts)));
        }
        return (".".to_owned(), top.below("."));
    }
    let Some(first) = parts.first() else { return (".".to_owned(), top.below(".")) };
    if parts.len() == 1 {
        notes.push(format!("the app is in {first}: root says so"));
    } else {
        notes.push(format!(
            "this is a monorepo ({}): root is set to {first}; each group has one recipe, which the \
             hosts' git.recipe may name",
            list(&parts)
        ));
    }
    (first.clone(), top.below(first))
}

/// An app that brings a start script of its own is started by it.
fn own_start(tree: &Tree, plan: &mut Plan) {
    let Some(text) = tree.text("bin/start") else { return };
    plan.manager.start = Start::Command(vec!["./bin/start".to_owned()]);
    if !text.contains(PID_FILE) {
        plan.notes.push(format!(
            "bin/start is run where nothing runs; it, or the app, has to write the manager's pid to \
             {PID_FILE}"
        ));
    }
    if !tree.is_executable("bin/start") {
        plan.notes.push("bin/start is not executable: chmod +x bin/start".to_owned());
    }
}

/// What is true of any app: what git holds, and what it must not hold.
fn surroundings(top: &Tree, tree: &Tree, root: &str, plan: &Plan, notes: &mut Vec<String>) {
    if top.has_file(".gitmodules") {
        notes
            .push("there are submodules, which are refused: commit their files instead".to_owned());
    }
    let attributes = top.text(".gitattributes").unwrap_or_default();
    if attributes.contains("filter=lfs") {
        notes.push(
            "there are files in LFS, which are refused: only their pointers would be deployed"
                .to_owned(),
        );
    }
    let ignored: Vec<String> = [top.text(".gitignore"), tree.text(".gitignore")]
        .into_iter()
        .flatten()
        .flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        .collect();
    let is_ignored = |path: &str| {
        let last = path.rsplit('/').next().unwrap_or(path);
        let full = if root == "." { path.to_owned() } else { format!("{root}/{path}") };
        ignored.iter().any(|line| {
            let line = line.trim_matches('/').trim_end_matches("/*");
            line == path || line == last || line == full || path.starts_with(&format!("{line}/"))
        })
    };
    let outputs = plan.install.iter().flat_map(|install| &install.outputs);
    let shared = plan.shared.iter().map(String::as_str).chain(["run"]);
    let open: Vec<&str> =
        outputs.map(String::as_str).chain(shared).filter(|path| !is_ignored(path)).collect();
    if !open.is_empty() {
        notes.push(format!(
            "add to .gitignore, and keep out of git: {}; what is installed or shared cannot be \
             committed too",
            open.join(", ")
        ));
    }
}

fn render(root: &str, plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line("# How a revision of this app is installed, started, reloaded and probed.");
    line(&format!("# Drafted for {}; look at each line.", tree::one_line(&plan.what)));
    line("");
    if root == "." {
        line("# root = \"services/web\"    # in a monorepo: the folder that is the release");
    } else {
        line(&format!("root = {}    # nothing swaps when nothing below it changes", quoted(root)));
    }
    if let Some(install) = &plan.install {
        line("");
        line("[install]");
        line(&format!("command = {}", list(&install.command)));
        line("# All that the command reads: nothing else is there when it runs.");
        line(&format!("inputs = {}", list(&install.inputs)));
        line("# What it makes, and releases get; not committed.");
        line(&format!("outputs = {}", list(&install.outputs)));
        line(&format!(
            "runtime = {}    # its output is part of what the tree is known by",
            list(&install.runtime)
        ));
        if let Some(timeout_s) = install.timeout_s {
            line(&format!("timeout_s = {timeout_s}"));
        }
    }
    line("");
    line("[manager]");
    line(&format!("pid_file = {}", quoted(PID_FILE)));
    line(&format!("reload = {}    # {}", quoted(plan.manager.reload), plan.manager.reload_comment));
    line("# Run in the release, as the app's user, where nothing runs.");
    match &plan.manager.start {
        Start::Unknown => {
            line("# Write this script: it starts the app, and leaves its pid in pid_file.");
            line("start = [\"./bin/start\"]");
        }
        Start::Command(command) => line(&format!("start = {}", list(command))),
        Start::Line(command) => {
            line("# The shell writes its pid, and then becomes the app.");
            let script = format!("echo $$ > run/new.pid && mv run/new.pid {PID_FILE} && {command}");
            line(&format!("start = [\"sh\", \"-c\", {}]", quoted(&script)));
        }
    }
    line("");
    line("[health]");
    let port = plan.health.port;
    match &plan.health.path {
        Some(path) => {
            line(&format!("http = {}", quoted(&format!("http://127.0.0.1:{port}{path}"))));
        }
        None => {
            line("# Better, once the app answers it:");
            line(&format!("# http = \"http://127.0.0.1:{port}/healthz\""));
            line(&format!("tcp = \"127.0.0.1:{port}\""));
        }
    }
    if plan.health.has_revision && plan.health.path.is_some() {
        line("revision = { json = \"/revision\" }    # where the answer names what it serves");
    } else {
        line(&format!(
            "# Let the answer of http name what it serves; each release holds it in {REVISION_FILE}:"
        ));
        line("# revision = { json = \"/revision\" }");
    }
    line("");
    line("[shared]");
    line("# Outlive releases, as links in each of them; all that the app writes belongs here.");
    let shared: Vec<String> = ["run".to_owned()].iter().chain(&plan.shared).cloned().collect();
    line(&format!("dirs = {}", list(&shared)));
    out
}

/// A list of strings, as TOML.
fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A string, as TOML: in single quotes where that reads better.
fn quoted(text: &str) -> String {
    if text.contains('"') && !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                // Writing to a string does not fail.
                write!(out, "\\u{:04X}", u32::from(c)).ok();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Owned strings, for lists that are partly known.
fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Those of `names` that are files or folders of the tree.
fn present(tree: &Tree, names: &[&str]) -> Vec<String> {
    names.iter().filter(|name| tree.has(name)).map(|name| (*name).to_owned()).collect()
}

/// What the code says about the app's health.
fn health(code: &str, command: &str, usual_port: u16) -> Health {
    const PATHS: [&str; 9] = [
        "/healthz",
        "/health",
        "/_health",
        "/livez",
        "/readyz",
        "/healthcheck",
        "/ready",
        "/ping",
        "/up",
    ];
    const BEFORE_PORT: [&str; 12] = [
        "--port ",
        "--port=",
        "127.0.0.1:",
        "0.0.0.0:",
        "localhost:",
        "PORT || ",
        "PORT ?? ",
        "listen(",
        "-p ",
        "port: ",
        "ListenAndServe(\":",
        "bind(\":",
    ];
    let port = |text: &str| {
        BEFORE_PORT.iter().find_map(|before| {
            text.match_indices(before).find_map(|(at, _)| {
                let rest = text.get(at + before.len()..)?.trim_start_matches(['"', '\'']);
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<u16>().ok().filter(|port| *port >= 80)
            })
        })
    };
    let is_named = |path: &&&str| {
        ['"', '\'', '`'].iter().any(|quote| code.contains(&format!("{quote}{path}{quote}")))
    };
    Health {
        port: port(command).or_else(|| port(code)).unwrap_or(usual_port),
        path: PATHS.iter().find(is_named).map(|path| (*path).to_owned()),
        has_revision: code.contains(REVISION_FILE),
    }
}

/// The command of a Procfile's `web`.
fn procfile(tree: &Tree) -> Option<String> {
    let text = tree.text("Procfile")?;
    let command = text.lines().find_map(|line| line.strip_prefix("web:"))?.trim();
    (!command.is_empty()).then(|| command.to_owned())
}

/// A command line that a shell replaces itself with, where it is a plain one; `None` where it is a
/// script of its own.
fn replacing(command: &str) -> Option<String> {
    const SCRIPT: [char; 9] = ['&', '|', ';', '<', '>', '(', ')', '`', '\n'];
    if command.contains(SCRIPT) || command.trim().is_empty() {
        return None;
    }
    let first = command.split_whitespace().next().unwrap_or_default();
    let is_assignment = first.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    let env = if is_assignment { "env " } else { "" };
    let command = command.strip_prefix("exec ").unwrap_or(command);
    Some(format!("exec {env}{command}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_protocol::recipe::{Check, Reload, ReloadSignal};

    /// Names and texts.
    type Files<'a> = &'a [(&'a str, &'a str)];

    /// Makes a work tree of these files, and drafts its recipe.
    fn drafted(files: Files<'_>) -> (Draft, Recipe) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let draft = draft(dir.path()).unwrap();
        let recipe = Recipe::parse(&draft.text)
            .unwrap_or_else(|error| panic!("{files:?}: {error}\n{}", draft.text));
        (draft, recipe)
    }

    fn said(draft: &Draft, words: &str) -> bool {
        draft.notes.iter().any(|note| note.contains(words))
    }

    fn start(recipe: &Recipe) -> String {
        recipe.manager.as_ref().map_or(String::new(), |manager| manager.start.to_string())
    }

    const CLUSTER: &str = "const cluster = require('node:cluster');\nprocess.on('SIGHUP', reload);\n\
                           fs.writeFileSync('run/app.pid', String(process.pid));\n";

    #[test]
    fn a_node_cluster_is_drafted() {
        let server = "const revision = fs.readFileSync('.towline-revision');\n\
                      if (url === '/healthz') answer({ revision });\nserver.listen(8080);";
        let package = r#"{"dependencies":{"lodash":"4"},"scripts":{"start":"node master.js"}}"#;
        let (draft, recipe) = drafted(&[
            ("package.json", package),
            ("package-lock.json", "{}"),
            (".npmrc", "audit=false"),
            ("master.js", CLUSTER),
            ("worker.js", server),
            (".gitignore", "node_modules/\n/run\n"),
        ]);
        let install = recipe.install.unwrap();
        assert_eq!(install.command.to_string(), "npm ci --omit=dev");
        let inputs: Vec<&str> = install.inputs.iter().map(|path| path.as_str()).collect();
        assert_eq!(inputs, ["package.json", "package-lock.json", ".npmrc"]);
        assert_eq!(install.outputs[0].as_str(), "node_modules");
        let manager = recipe.manager.unwrap();
        assert_eq!(manager.start.to_string(), "node master.js", "it writes its own pid");
        assert_eq!(manager.reload, Reload::Signal(ReloadSignal::Hup));
        let Check::Http(http) = recipe.health.check else { panic!("{}", draft.text) };
        assert_eq!(http.to_string(), "http://127.0.0.1:8080/healthz");
        assert!(recipe.health.revision.is_some());
        assert!(said(&draft, "a node app"), "{:?}", draft.notes);
        assert!(!said(&draft, ".gitignore") && !said(&draft, "nothing shows"), "{:?}", draft.notes);
    }

    #[test]
    fn node_apps_differ_by_lock_and_start() {
        let plain = r#"{"dependencies":{"a":"1"},"scripts":{"start":"node server.js"}}"#;
        let next = r#"{"dependencies":{"next":"1"},"scripts":{"start":"next start -p 4000",
                       "build":"next build","postinstall":"patch-package"}}"#;
        let chained = r#"{"scripts":{"start":"node a.js && node b.js"}}"#;
        let assigned = r#"{"scripts":{"start":"NODE_ENV=production node server.js"}}"#;
        // Lock, package, what installs, how it starts, what is noted.
        let cases = [
            ("package-lock.json", plain, Some("npm ci"), "exec node server.js", "a single process"),
            ("npm-shrinkwrap.json", plain, Some("npm ci"), "exec node server.js", ""),
            ("yarn.lock", plain, Some("yarn install --frozen-lockfile"), "exec node server.js", ""),
            ("pnpm-lock.yaml", plain, Some("pnpm install --frozen-lockfile --prod"), "exec", ""),
            ("other", plain, Some("npm ci"), "exec node server.js", "commit a package-lock.json"),
            ("package-lock.json", next, Some("npm ci"), "exec ./node_modules/.bin/next", "build"),
            ("package-lock.json", next, Some("npm ci"), "start -p 4000", "postinstall"),
            ("other", chained, None, "./bin/start", "into bin/start"),
            ("other", assigned, None, "exec env NODE_ENV=production node server.js", ""),
            ("other", "{}", None, "./bin/start", "start script"),
            ("other", "no json", None, "./bin/start", "could not be read"),
        ];
        for (lock, package, install, begins, note) in cases {
            let (draft, recipe) = drafted(&[("package.json", package), (lock, "")]);
            let rule = format!("{lock} {package}:\n{}\n{:#?}", draft.text, draft.notes);
            let command = recipe.install.as_ref().map(|install| install.command.to_string());
            assert_eq!(command.is_some(), install.is_some(), "{rule}");
            assert!(command.unwrap_or_default().starts_with(install.unwrap_or_default()), "{rule}");
            assert!(start(&recipe).contains(begins), "{rule}");
            assert!(note.is_empty() || said(&draft, note) || draft.text.contains(note), "{rule}");
        }
        let (_, recipe) = drafted(&[("package.json", next)]);
        let Check::Tcp(socket) = recipe.health.check else { panic!() };
        assert_eq!(socket.port, 4000, "the start script's own");
    }

    #[test]
    fn python_apps_are_drafted() {
        let flask = "app = Flask(__name__)\n@app.get('/health')\n";
        // Files, what is part of the install, what is part of the start, what is noted.
        let cases: [(Files<'_>, &str, &str, &str); 8] = [
            (
                &[
                    ("requirements.txt", "gunicorn\nflask\n-r more.txt\n"),
                    ("more.txt", ""),
                    ("app.py", flask),
                ],
                "pip install --target vendor -r requirements.txt",
                "gunicorn --chdir \"$PWD\" --pid run/app.pid --workers 2 --bind 127.0.0.1:8000 app:app",
                "gunicorn",
            ),
            (
                &[("requirements.txt", "gunicorn\n"), ("manage.py", ""), ("shop/wsgi.py", "")],
                "pip install",
                "shop.wsgi:application",
                "",
            ),
            (
                &[
                    ("requirements.txt", "gunicorn==20\n"),
                    ("Procfile", "web: gunicorn web.main:api -w 4\n"),
                ],
                "pip install",
                "web.main:api",
                "Procfile",
            ),
            (
                &[
                    ("pyproject.toml", "[project]\ndependencies = [\"uvicorn\"]\n"),
                    ("uv.lock", ""),
                    ("main.py", "app = FastAPI()"),
                ],
                "uv export",
                "uvicorn main:app",
                "single process",
            ),
            (
                &[
                    ("pyproject.toml", "[tool.poetry]\ngunicorn = \"*\""),
                    ("poetry.lock", ""),
                    ("wsgi.py", "application = 1"),
                ],
                "poetry export",
                "wsgi:application",
                "poetry",
            ),
            (
                &[("requirements.txt", "flask"), ("app.py", flask)],
                "pip install",
                "gunicorn",
                "add gunicorn",
            ),
            (
                &[("requirements.txt", "requests")],
                "pip install",
                "./bin/start",
                "how it is started",
            ),
            (
                &[
                    ("requirements.txt", "gunicorn"),
                    ("package.json", "{\"scripts\":{\"build\":\"vite build\"}}"),
                ],
                "pip install",
                "gunicorn",
                "package.json",
            ),
        ];
        for (files, install, begins, note) in cases {
            let (draft, recipe) = drafted(files);
            let rule = format!("{files:?}:\n{}\n{:#?}", draft.text, draft.notes);
            let command = recipe.install.as_ref().unwrap().command.to_string();
            assert!(command.contains(install), "{rule}");
            assert!(start(&recipe).contains(begins), "{rule}");
            assert!(note.is_empty() || said(&draft, note) || draft.text.contains(note), "{rule}");
        }
        let (_, recipe) = drafted(cases[0].0);
        let inputs = recipe.install.unwrap().inputs;
        assert!(inputs.iter().any(|path| path.as_str() == "more.txt"), "{inputs:?}");
        assert!(matches!(recipe.health.check, Check::Http(http) if http.path == "/health"));
    }

    #[test]
    fn other_kinds_are_drafted() {
        let cases: [(Files<'_>, Option<&str>, &str, &str); 9] = [
            (
                &[
                    ("Gemfile", "gem 'puma'"),
                    ("Gemfile.lock", "    puma (6.4)\n"),
                    ("config/puma.rb", "workers 2\n"),
                ],
                Some("bundle install"),
                "bundle exec puma --dir \"$PWD\"",
                "SIGUSR1",
            ),
            (
                &[("Gemfile", ""), ("Gemfile.lock", "    puma (6.4)\n"), ("package.json", "{}")],
                Some("bundle install"),
                "puma",
                "single process",
            ),
            (
                &[("Gemfile", ""), ("config.ru", "")],
                Some("bundle install"),
                "./bin/start",
                "Gemfile.lock",
            ),
            (
                &[
                    ("go.mod", "module example.com/acme/shop\n"),
                    ("go.sum", ""),
                    ("main.go", "http.ListenAndServe(\":9090\", nil)"),
                    ("store/store.go", ""),
                ],
                Some("go build -o bin/shop ."),
                "exec ./bin/shop",
                "",
            ),
            (
                &[("go.mod", "module shop"), ("cmd/shop/main.go", ""), ("internal/a.go", "")],
                Some("go build -o bin/shop ./cmd/shop"),
                "exec ./bin/shop",
                "",
            ),
            (
                &[
                    ("Cargo.toml", "[package]\nname = \"shop\"\n"),
                    ("Cargo.lock", ""),
                    ("src/main.rs", "bind(\"127.0.0.1:7000\")"),
                ],
                Some("cargo build --release --locked"),
                "exec ./target/release/shop",
                "",
            ),
            (&[("index.html", "<h1>hello</h1>")], None, "http.server 8080", "static"),
            (&[("README", "")], None, "./bin/start", "write bin/start"),
            (
                &[("Procfile", "web: ./serve --port 6000\n")],
                None,
                "exec ./serve --port 6000",
                "Procfile",
            ),
        ];
        for (files, install, begins, note) in cases {
            let (draft, recipe) = drafted(files);
            let rule = format!("{files:?}:\n{}\n{:#?}", draft.text, draft.notes);
            let command = recipe.install.as_ref().map(|install| install.command.to_string());
            assert_eq!(command.is_some(), install.is_some(), "{rule}");
            assert!(command.unwrap_or_default().contains(install.unwrap_or_default()), "{rule}");
            assert!(start(&recipe).contains(begins), "{rule}");
            assert!(note.is_empty() || said(&draft, note) || draft.text.contains(note), "{rule}");
        }
        let (draft, recipe) = drafted(cases[3].0);
        assert!(matches!(recipe.health.check, Check::Tcp(socket) if socket.port == 9090));
        let inputs = recipe.install.unwrap().inputs;
        let inputs: Vec<&str> = inputs.iter().map(|path| path.as_str()).collect();
        assert_eq!(inputs, ["go.mod", "go.sum", "main.go", "store"], "{}", draft.text);
    }

    #[test]
    fn monorepos_are_noted() {
        let package = r#"{"scripts":{"start":"node server.js"}}"#;
        let (draft, recipe) = drafted(&[("services/web/package.json", package), ("README", "")]);
        assert_eq!(recipe.root.as_str(), "services/web");
        assert!(said(&draft, "services/web"), "{:?}", draft.notes);
        let (draft, recipe) =
            drafted(&[("web/package.json", package), ("api/requirements.txt", "gunicorn")]);
        assert_eq!(recipe.root.as_str(), "api");
        assert!(said(&draft, "monorepo (api, web)"), "{:?}", draft.notes);
        let (draft, recipe) = drafted(&[
            ("package.json", r#"{"workspaces":["packages/*"],"scripts":{"start":"node x"}}"#),
            ("packages/a/package.json", "{}"),
            ("node_modules/b/package.json", "{}"),
        ]);
        assert!(recipe.root.is_root());
        assert!(said(&draft, "monorepo (packages/a)"), "{:?}", draft.notes);
    }

    #[test]
    fn what_would_be_refused_is_noted() {
        let package = r#"{"dependencies":{"a":"1"}}"#;
        let cases = [
            (".gitmodules", "x", "submodules"),
            (".gitattributes", "*.bin filter=lfs -text\n", "LFS"),
            (".gitignore", "nothing", "node_modules, run"),
            ("bin/start", "exec node server.js", "has to write the manager's pid"),
            ("bin/start", "exec node server.js", "chmod +x"),
            ("ecosystem.config.js", "module.exports = {}", "pm2"),
        ];
        for (name, text, note) in cases {
            let (draft, recipe) = drafted(&[("package.json", package), (name, text)]);
            assert!(said(&draft, note), "{name}: {:?}", draft.notes);
            assert_eq!(start(&recipe), "./bin/start", "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".git")).unwrap();
        std::fs::create_dir_all(dir.path().join("app")).unwrap();
        let app = dir.path().join("services/web");
        std::fs::create_dir_all(&app).unwrap();
        std::fs::write(app.join("package.json"), package).unwrap();
        let draft = super::draft(&app).unwrap();
        let top = dir.path().canonicalize().unwrap();
        assert_eq!(draft.path, top.join(FILE_NAME), "where it is looked for");
        assert_eq!(Recipe::parse(&draft.text).unwrap().root.as_str(), "services/web");
        assert!(said(&draft, "node app"), "what was given is looked at: {:?}", draft.notes);
        std::fs::write(top.join(FILE_NAME), "mine").unwrap();
        assert!(matches!(super::draft(&app), Err(InitError::Exists { .. })));
    }

    #[test]
    fn a_recipe_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "mine").unwrap();
        let error = draft(dir.path()).unwrap_err();
        assert!(matches!(error, InitError::Exists { .. }) && error.hint().is_some(), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap(), "mine");
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join(FILE_NAME)).unwrap();
        assert!(matches!(draft(dir.path()), Err(InitError::Exists { .. })), "a broken link too");
        let error = draft(&dir.path().join("no/such")).unwrap_err();
        assert!(matches!(error, InitError::Read { .. }) && error.hint().is_some(), "{error}");
    }

    #[test]
    fn names_of_any_kind_make_a_text_that_parses() {
        let odd = "{\"scripts\":{\"start\":\"node \\\"a b\\\"' \\u0007\\\\x.js\"}}";
        let (draft, _) = drafted(&[("package.json", odd)]);
        assert!(!draft.text.contains('\u{7}'));
        let (_, recipe) = drafted(&[("we\"b'\u{1b} s/go.mod", "module a\nb")]);
        assert_eq!(recipe.root.as_str(), ".", "a path that a recipe cannot name is not guessed");
        for text in ["a\"b", "a'b\"c", "a\\b", "\u{7}", "ü"] {
            let toml = format!("a = {}", quoted(text));
            let table: toml::Table = toml.parse().unwrap();
            assert_eq!(table["a"].as_str(), Some(text));
        }
        let huge = "x".repeat(10_000_000);
        drafted(&[("package.json", &huge), ("server.js", &huge)]);
    }
}
