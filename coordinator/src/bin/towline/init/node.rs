//! Node: what npm, yarn or pnpm install, what `start` runs, and whether there is a cluster.

use super::tree::Tree;
use super::{
    Install, Manager, PID_FILE, Plan, SINGLE, Start, health, present, procfile, replacing, words,
};

const CLUSTER: [&str; 6] = [
    "node:cluster",
    "require('cluster')",
    "require(\"cluster\")",
    "from 'cluster'",
    "from \"cluster\"",
    "cluster.fork(",
];

pub(super) fn look(tree: &Tree) -> Option<Plan> {
    let text = tree.text("package.json")?;
    let package: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let code = tree.code(&[".js", ".cjs", ".mjs", ".ts", ".cts", ".mts"]);
    let script = |name: &str| package["scripts"][name].as_str();
    let mut plan = Plan { what: "a node app".to_owned(), ..Plan::default() };
    if package.is_null() {
        plan.notes.push("package.json could not be read as JSON".to_owned());
    }
    let has = |list: &str| package[list].as_object().is_some_and(|list| !list.is_empty());
    if has("dependencies") || has("optionalDependencies") || package.get("workspaces").is_some() {
        plan.install = Some(install(tree, &mut plan.notes));
        let runs: Vec<&str> = ["preinstall", "install", "postinstall", "prepare"]
            .into_iter()
            .filter(|name| script(name).is_some())
            .collect();
        if !runs.is_empty() {
            plan.notes.push(format!(
                "package.json has a {} script: what it reads must be among install.inputs",
                runs.join(" and a ")
            ));
        }
        let has_own = text.contains("\"file:") || text.contains("\"workspace:");
        if has_own || package.get("workspaces").is_some() {
            plan.notes.push(
                "packages of this repository are installed too: add their folders to install.inputs"
                    .to_owned(),
            );
        }
    }
    if script("build").is_some() {
        plan.notes.push(
            "package.json has a build script: add [build] with command = [\"npm\", \"run\", \"build\"] and \
             outputs, which name what it makes and is not committed"
                .to_owned(),
        );
    }
    let is_cluster = CLUSTER.iter().any(|word| code.contains(word));
    let command = procfile(tree).or_else(|| script("start").map(str::to_owned));
    plan.manager = manager(&code, is_cluster);
    let main = package["main"].as_str().filter(|main| tree.has_file(main));
    let usual = ["server.js", "index.js", "app.js"].into_iter().find(|name| tree.has_file(name));
    let guess = main.or(usual).map(|main| format!("node {main}"));
    plan.manager.start = match command.or(guess) {
        Some(command) => start(&command, &code, &mut plan.notes),
        None => {
            plan.notes
                .push("package.json has no start script: write bin/start, or name one".to_owned());
            Start::Unknown
        }
    };
    if tree.has_file("ecosystem.config.js") || package["dependencies"].get("pm2").is_some() {
        plan.notes.push(
            "pm2 is there: its daemon outlives what starts it and has a pid file of its own; let \
             bin/start run `pm2-runtime` instead, or name its pid file"
                .to_owned(),
        );
        plan.manager.start = Start::Unknown;
    }
    if !is_cluster {
        plan.notes.push(
            "it is a single process: each release stops and starts it, and requests fail in between; \
             a cluster that replaces its workers on SIGHUP would not"
                .to_owned(),
        );
    } else if !code.contains("SIGHUP") && !code.contains("SIGUSR2") {
        plan.notes.push(
            "a cluster was seen, and no signal that makes it replace its workers: let it do so on \
             SIGHUP"
                .to_owned(),
        );
    }
    let line = match &plan.manager.start {
        Start::Line(line) => line.clone(),
        Start::Command(command) => command.join(" "),
        Start::Unknown => String::new(),
    };
    plan.health = health(&code, &line, 3000);
    plan.shared = present(tree, &["uploads"]);
    Some(plan)
}

fn install(tree: &Tree, notes: &mut Vec<String>) -> Install {
    let berry = tree.has_file(".yarnrc.yml");
    let (command, lock): (&[&str], &str) = if tree.has_file("pnpm-lock.yaml") {
        (&["pnpm", "install", "--frozen-lockfile", "--prod"], "pnpm-lock.yaml")
    } else if tree.has_file("yarn.lock") && berry {
        notes
            .push("yarn must use node_modules: nodeLinker: node-modules in .yarnrc.yml".to_owned());
        (&["yarn", "workspaces", "focus", "--all", "--production"], "yarn.lock")
    } else if tree.has_file("yarn.lock") {
        (&["yarn", "install", "--frozen-lockfile", "--production"], "yarn.lock")
    } else if tree.has_file("npm-shrinkwrap.json") {
        (&["npm", "ci", "--omit=dev"], "npm-shrinkwrap.json")
    } else {
        if !tree.has_file("package-lock.json") {
            notes
                .push("there is no lock file: commit a package-lock.json (npm install)".to_owned());
        }
        (&["npm", "ci", "--omit=dev"], "package-lock.json")
    };
    let mut inputs = words(&["package.json", lock]);
    inputs.extend(present(
        tree,
        &[".npmrc", ".yarnrc", ".yarnrc.yml", ".yarn", "pnpm-workspace.yaml", "patches"],
    ));
    Install {
        command: words(command),
        inputs,
        outputs: words(&["node_modules"]),
        runtime: words(&["node", "--version"]),
        timeout_s: None,
    }
}

fn manager(code: &str, is_cluster: bool) -> Manager {
    let (reload, reload_comment) = match () {
        () if !is_cluster => ("SIGHUP", SINGLE),
        () if code.contains("SIGHUP") => ("SIGHUP", "seen in the code: it replaces its workers"),
        () if code.contains("SIGUSR2") => ("SIGUSR2", "seen in the code: it replaces its workers"),
        () => ("SIGHUP", "the cluster has to replace its workers on it"),
    };
    Manager { reload, reload_comment, start: Start::Unknown }
}

fn start(command: &str, code: &str, notes: &mut Vec<String>) -> Start {
    let plain = command.split_whitespace().all(|word| !word.contains(['$', '"', '\'', '\\', '*']));
    let Some(line) = replacing(command) else {
        notes.push("the start script is more than one command: put it into bin/start".to_owned());
        return Start::Unknown;
    };
    if code.contains(PID_FILE) && plain && !line.starts_with("exec env ") {
        return Start::Command(command.split_whitespace().map(str::to_owned).collect());
    }
    // A script of npm's finds the programs of packages by name.
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["exec", program, rest @ ..]
            if !program.contains('/') && !["node", "npm", "npx", "env"].contains(program) =>
        {
            Start::Line(format!("exec ./node_modules/.bin/{program} {}", rest.join(" ")))
        }
        _ => Start::Line(line),
    }
}
