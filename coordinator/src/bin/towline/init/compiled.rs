//! What is compiled, and what is neither: Go, Rust, folders of files, and whatever else there is.

use super::tree::Tree;
use super::{Install, Manager, Plan, SINGLE, Start, health, present, procfile, replacing, words};

/// How long a build may take: it begins with nothing, on a small instance.
const BUILD_TIMEOUT_S: u32 = 1800;

const BUILT: &str = "hosts compile it: an instance needs the compiler, and time; an app of many \
                     instances is better built once, and its program committed or fetched by \
                     install.command";

pub(super) fn go(tree: &Tree) -> Option<Plan> {
    let module = tree.text("go.mod")?;
    let line = module.lines().find_map(|line| line.strip_prefix("module "));
    let last = line.and_then(|line| line.trim().rsplit('/').next()).unwrap_or_default();
    let name = fit_name(last);
    let mut plan = Plan { what: "a Go app".to_owned(), ..Plan::default() };
    let files = tree.files(&[".go"]);
    let folder = |path: &String| path.split_once('/').map(|(folder, _)| folder.to_owned());
    let mut inputs = present(tree, &["go.mod", "go.sum", "vendor"]);
    inputs.extend(files.iter().filter(|path| !path.contains('/')).cloned());
    let mut folders: Vec<String> = files.iter().filter_map(folder).collect();
    folders.dedup();
    inputs.extend(folders);
    let mains: Vec<&String> = files
        .iter()
        .filter(|path| path.starts_with("cmd/") && path.ends_with("/main.go"))
        .collect();
    let package = match mains.as_slice() {
        _ if tree.has_file("main.go") => ".".to_owned(),
        [] => {
            plan.notes.push("no main.go was found: name the package to build".to_owned());
            ".".to_owned()
        }
        [only] => format!("./{}", only.trim_end_matches("/main.go")),
        [first, ..] => {
            plan.notes
                .push("there are several programs in cmd: the first one was taken".to_owned());
            format!("./{}", first.trim_end_matches("/main.go"))
        }
    };
    let program = format!("bin/{name}");
    plan.install = Some(Install {
        command: words(&["go", "build", "-o", &program, &package]),
        inputs,
        outputs: words(&[&program]),
        runtime: words(&["go", "version"]),
        timeout_s: Some(BUILD_TIMEOUT_S),
    });
    Some(built(plan, tree, &program, ".go"))
}

pub(super) fn rust(tree: &Tree) -> Option<Plan> {
    let manifest = tree.text("Cargo.toml")?;
    let table: toml::Table = manifest.parse().unwrap_or_default();
    let package = table.get("package").and_then(|package| package.get("name"));
    let mut plan = Plan { what: "a Rust app".to_owned(), ..Plan::default() };
    let name = package.and_then(|name| name.as_str()).map(fit_name).unwrap_or_else(|| {
        plan.notes.push("Cargo.toml names no package: name the program in start".to_owned());
        "app".to_owned()
    });
    let members = table.get("workspace").and_then(|workspace| workspace.get("members"));
    let members = members.and_then(|members| members.as_array()).cloned().unwrap_or_default();
    // Of `crates/*`, the folder.
    let folder = |member: &'_ str| member.split("/*").next().unwrap_or_default().to_owned();
    let members: Vec<String> =
        members.iter().filter_map(|member| member.as_str()).map(folder).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut inputs = words(&["Cargo.toml", "Cargo.lock"]);
    inputs.extend(present(tree, &["src", "build.rs", "rust-toolchain.toml", ".cargo"]));
    inputs.extend(present(tree, &members));
    let program = format!("target/release/{name}");
    plan.install = Some(Install {
        command: words(&["cargo", "build", "--release", "--locked"]),
        inputs,
        outputs: words(&[&program]),
        runtime: words(&["rustc", "--version"]),
        timeout_s: Some(BUILD_TIMEOUT_S),
    });
    if !tree.has_file("Cargo.lock") {
        plan.notes.push("there is no Cargo.lock: commit one".to_owned());
    }
    Some(built(plan, tree, &program, ".rs"))
}

/// What is true of every program that was compiled from this code.
fn built(mut plan: Plan, tree: &Tree, program: &str, end: &str) -> Plan {
    plan.manager = Manager {
        reload: "SIGHUP",
        reload_comment: SINGLE,
        start: Start::Line(format!("exec ./{program}")),
    };
    plan.health = health(&tree.code(&[end]), "", 8080);
    plan.notes.push(BUILT.to_owned());
    plan
}

/// A folder of files, a Procfile, or nothing that is known.
pub(super) fn other(tree: &Tree) -> Plan {
    let mut plan = Plan::default();
    let command = procfile(tree);
    let line = command.as_deref().and_then(replacing);
    plan.manager = Manager { reload: "SIGHUP", reload_comment: SINGLE, start: Start::Unknown };
    plan.health = health("", line.as_deref().unwrap_or_default(), 8080);
    let folders = [".", "public", "dist", "site", "www"];
    let page = |folder: &&&str| tree.has_file(&format!("{folder}/index.html"));
    if let Some(line) = line {
        "an app with a Procfile".clone_into(&mut plan.what);
        plan.manager.start = Start::Line(line);
    } else if let Some(folder) = folders.iter().find(page) {
        "a folder of static files".clone_into(&mut plan.what);
        plan.notes.push(
            "python3 stands in for a web server: where nginx or another one serves <dir>/current, \
             let start, reload and pid_file speak of that"
                .to_owned(),
        );
        plan.manager.start = Start::Line(format!(
            "exec python3 -m http.server 8080 --bind 127.0.0.1 --directory {folder}"
        ));
        plan.health.path = Some("/".to_owned());
    } else {
        "an app of no kind that is known here".clone_into(&mut plan.what);
        plan.notes.push("write bin/start, and say what is installed, if anything".to_owned());
    }
    plan
}

/// The name of a program, as it may stand in a path and a command line.
fn fit_name(text: &str) -> String {
    let is_fit = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = text.chars().take_while(is_fit).take(64).collect();
    if name.is_empty() || name.starts_with('-') { "app".to_owned() } else { name }
}
