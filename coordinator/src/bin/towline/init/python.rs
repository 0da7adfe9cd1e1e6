//! Python: what pip, uv or poetry install, and the server that runs it.

use super::tree::Tree;
use super::{
    Health, Install, Manager, Plan, SINGLE, Start, health, present, procfile, replacing, words,
};

/// Where packages are installed to: a folder, because a virtualenv holds absolute paths.
const PACKAGES: &str = "vendor";

/// Frameworks that need a server.
const FRAMEWORKS: [&str; 5] = ["django", "flask", "fastapi", "starlette", "bottle"];

/// Only where it names a server or a framework: other repositories have Python tools too.
pub(super) fn look_for_server(tree: &Tree) -> Option<Plan> {
    let named = named(tree)?;
    let serves = ["gunicorn", "uvicorn"].iter().chain(&FRAMEWORKS).any(|name| named.contains(name));
    if serves { look(tree) } else { None }
}

/// All that the files of dependencies say, in small letters.
fn named(tree: &Tree) -> Option<String> {
    let files = ["requirements.txt", "pyproject.toml", "Pipfile", "setup.cfg", "setup.py"];
    let text: String = files.iter().filter_map(|name| tree.text(name)).collect();
    (!text.is_empty() || files.iter().any(|name| tree.has_file(name)))
        .then(|| text.to_ascii_lowercase())
}

pub(super) fn look(tree: &Tree) -> Option<Plan> {
    let named = named(tree)?;
    let mut plan = Plan { what: "a Python app".to_owned(), ..Plan::default() };
    plan.install = Some(install(tree, &mut plan.notes));
    let code = tree.code(&[".py"]);
    let from_procfile = procfile(tree);
    let server = match &from_procfile {
        Some(command) if command.contains("gunicorn") => Some("gunicorn"),
        Some(command) if command.contains("uvicorn") => Some("uvicorn"),
        Some(_) => None,
        None if named.contains("gunicorn") => Some("gunicorn"),
        None if named.contains("uvicorn") => Some("uvicorn"),
        None if FRAMEWORKS.iter().any(|name| named.contains(name)) => {
            plan.notes.push(
                "no server is among the dependencies: add gunicorn, or write bin/start".to_owned(),
            );
            Some("gunicorn")
        }
        None => None,
    };
    let given = from_procfile.as_deref().and_then(application).map(str::to_owned);
    if from_procfile.is_some() {
        plan.notes.push("the Procfile's web was looked at for how it is started".to_owned());
    }
    let application = given.or_else(|| guess(tree));
    if application.is_none() && server.is_some() {
        plan.notes
            .push("app:app in start is a guess: name the module of the application".to_owned());
    }
    let application = application.unwrap_or_else(|| "app:app".to_owned());
    let port = from_procfile.as_deref().map_or(8000, |command| health("", command, 8000).port);
    let path = format!("PYTHONPATH=\"$PWD/{PACKAGES}\" exec python3 -m");
    (plan.manager, plan.health) = match server {
        Some("gunicorn") => {
            let worker =
                if named.contains("uvicorn") { " -k uvicorn.workers.UvicornWorker" } else { "" };
            let line = format!(
                "{path} gunicorn --chdir \"$PWD\" --pid run/app.pid --workers 2{worker} \
                 --bind 127.0.0.1:{port} {application}"
            );
            let start = Start::Command(vec!["sh".to_owned(), "-c".to_owned(), line]);
            plan.what = "a Python app that gunicorn serves".to_owned();
            let reload_comment = "gunicorn replaces its workers; new packages restart it";
            let manager = Manager { reload: "SIGHUP", reload_comment, start };
            (manager, Health { port, ..health(&code, "", port) })
        }
        Some(_) => {
            let line = format!("{path} uvicorn {application} --host 127.0.0.1 --port {port}");
            plan.notes.push(
                "uvicorn is a single process here: gunicorn with uvicorn's workers would be reloaded"
                    .to_owned(),
            );
            let manager =
                Manager { reload: "SIGHUP", reload_comment: SINGLE, start: Start::Line(line) };
            (manager, Health { port, ..health(&code, "", port) })
        }
        None => {
            let line = from_procfile.as_deref().and_then(replacing);
            if line.is_none() {
                plan.notes.push("nothing shows how it is started: write bin/start".to_owned());
            }
            let found = health(&code, line.as_deref().unwrap_or_default(), 8000);
            let start = line.map_or(Start::Unknown, |line| {
                Start::Line(format!("PYTHONPATH=\"$PWD/{PACKAGES}\" {line}"))
            });
            (Manager { reload: "SIGHUP", reload_comment: SINGLE, start }, found)
        }
    };
    if tree.has_file("package.json") {
        plan.notes.push(
            "there is a package.json too: what it builds needs [build], with a command that installs \
             its packages first"
                .to_owned(),
        );
    }
    plan.shared = present(tree, &["uploads", "media"]);
    Some(plan)
}

fn install(tree: &Tree, notes: &mut Vec<String>) -> Install {
    let pip = format!("python3 -m pip install --target {PACKAGES}");
    let by_lock = |export: &str, lock: &str| {
        let script = format!("{export} > locked.txt && {pip} -r locked.txt");
        let inputs = present(tree, &["pyproject.toml", lock]);
        (vec!["sh".to_owned(), "-c".to_owned(), script], inputs)
    };
    let (command, inputs) = if tree.has_file("uv.lock") {
        by_lock("uv export --quiet --frozen --no-dev --no-emit-project", "uv.lock")
    } else if tree.has_file("poetry.lock") {
        notes.push("poetry needs its export plugin on the host (poetry-plugin-export)".to_owned());
        by_lock("poetry export --only main", "poetry.lock")
    } else if tree.has_file("Pipfile.lock") {
        let script = format!("pipenv requirements > locked.txt && {pip} -r locked.txt");
        (vec!["sh".to_owned(), "-c".to_owned(), script], words(&["Pipfile", "Pipfile.lock"]))
    } else if tree.has_file("requirements.txt") {
        let inputs = requirements(tree);
        if !tree.text("requirements.txt").unwrap_or_default().contains("==") {
            notes.push(
                "requirements.txt pins nothing: two hosts may install different packages"
                    .to_owned(),
            );
        }
        let command = format!("{pip} -r requirements.txt");
        (command.split(' ').map(str::to_owned).collect(), inputs)
    } else {
        notes.push("there is no lock file: two hosts may install different packages".to_owned());
        let mut inputs =
            present(tree, &["pyproject.toml", "setup.py", "setup.cfg", "README.md", "src"]);
        inputs.extend(present(tree, &["Pipfile"]));
        (format!("{pip} .").split(' ').map(str::to_owned).collect(), inputs)
    };
    Install {
        command,
        inputs,
        outputs: words(&[PACKAGES]),
        runtime: words(&["python3", "--version"]),
        timeout_s: None,
    }
}

/// `requirements.txt` and the files that it names.
fn requirements(tree: &Tree) -> Vec<String> {
    let mut found = words(&["requirements.txt"]);
    let mut at = 0;
    while let Some(name) = found.get(at).cloned().filter(|_| at < 20) {
        at += 1;
        for line in tree.text(&name).unwrap_or_default().lines() {
            let mut parts = line.split_whitespace();
            let is_file =
                matches!(parts.next(), Some("-r" | "-c" | "--requirement" | "--constraint"));
            let Some(other) = parts.next().filter(|_| is_file) else { continue };
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let path =
                if folder.is_empty() { other.to_owned() } else { format!("{folder}/{other}") };
            let is_inside = !path.starts_with('/') && !path.split('/').any(|part| part == "..");
            if is_inside && tree.has_file(&path) && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

/// The application that a server's command line names: `module:name`.
fn application(command: &str) -> Option<&str> {
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
    };
    command.split_whitespace().find(|word| {
        word.split_once(':').is_some_and(|(module, name)| {
            is_name(module) && is_name(name) && !name.chars().all(|c| c.is_ascii_digit())
        })
    })
}

/// The application, by where it usually is.
fn guess(tree: &Tree) -> Option<String> {
    let files = tree.files(&["wsgi.py", "asgi.py"]);
    if tree.has_file("manage.py")
        && let Some(path) = files.iter().find(|path| path.contains('/'))
    {
        let module = path.trim_end_matches(".py").replace('/', ".");
        return Some(format!("{module}:application"));
    }
    for name in ["app", "main", "wsgi", "asgi", "server"] {
        let text = tree.text(&format!("{name}.py")).unwrap_or_default();
        for variable in ["app", "application", "api"] {
            let is_set = |line: &str| {
                line.strip_prefix(variable).is_some_and(|rest| rest.trim_start().starts_with('='))
            };
            if text.lines().any(is_set) {
                return Some(format!("{name}:{variable}"));
            }
        }
    }
    None
}
