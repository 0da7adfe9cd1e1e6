//! The rules that the compiler cannot keep: which file may do what.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod snippets;

/// Files that decide and never act.
const PURE: &[&str] = &[
    "agent/src/machine",
    "agent/src/journal.rs",
    "agent/src/health/window.rs",
    "coordinator/src/rollout",
    "coordinator/src/fleet.rs",
    "coordinator/src/records.rs",
    "coordinator/src/views",
    "coordinator/src/auth/held.rs",
    "coordinator/src/board/uptime.rs",
    "protocol/src",
];

/// The words that would give them hands or eyes.
const IMPURE: &[&str] = &[
    "async ",
    "tokio",
    "tracing",
    "std::fs",
    "std::net::T",
    "std::env",
    "std::process",
    "::now()",
    "rand::",
    "HashMap",
    "crate::shell",
    "crate::release",
    "crate::git",
    "crate::process",
    "crate::desk",
    "crate::driver",
    "crate::http",
    "crate::mirror",
];

/// Where a library is at home; its types stay there.
const HOMES: &[(&str, &[&str])] = &[
    ("git2::", &["agent/src/git"]),
    (
        "reqwest::",
        &[
            "agent/src/git",
            "agent/src/health.rs",
            "agent/src/source/coordinator",
            "coordinator/src/bin/towline/client",
            "coordinator/src/bin/towline/commands",
        ],
    ),
    (
        " nix::",
        &[
            "agent/src/process",
            "agent/src/manager",
            "agent/src/release",
            "coordinator/src/mirror/child.rs",
            "coordinator/src/mirror/space.rs",
            "coordinator/src/store/embedded",
            "coordinator/src/failpoint.rs",
            "coordinator/src/files.rs",
        ],
    ),
    ("rusqlite::", &["coordinator/src/store/embedded"]),
    ("axum::", &["coordinator/src/http", "coordinator/src/keys.rs", "coordinator/src/server.rs"]),
    ("prometheus_client::", &["coordinator/src/http"]),
    ("indicatif::", &["coordinator/src/bin/towline/render"]),
    ("comfy_table::", &["coordinator/src/bin/towline/render"]),
    ("owo_colors::", &["coordinator/src/bin/towline/render"]),
    (
        "rustix::",
        &[
            "agent/src/process",
            "agent/src/manager",
            "agent/src/release",
            "agent/src/git/tree.rs",
            "agent/src/source/file.rs",
            "coordinator/src/mirror/child.rs",
        ],
    ),
    ("inotify::", &["agent/src/source"]),
    (
        "clap::",
        &[
            "agent/src/main.rs",
            "coordinator/src/main.rs",
            "coordinator/src/bin/towline/arguments.rs",
            "coordinator/src/bin/towline/main.rs",
            "coordinator/src/bin/towline/commands",
        ],
    ),
    (
        "std::env::var",
        &["agent/src/main.rs", "coordinator/src/main.rs", "coordinator/src/bin/towline/main.rs"],
    ),
    ("unsafe_code", &["agent/src/git/transport.rs", "agent/src/process"]),
    (
        "println!",
        &[
            "agent/src/main.rs",
            "coordinator/src/main.rs",
            "coordinator/src/bin/towline/main.rs",
            "coordinator/src/bin/towline/render",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files that git knows, or would take.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is installed");
    let list = String::from_utf8(output.stdout).expect("names are text");
    list.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}

/// The product's code: path and text, without tests and comments.
fn code() -> Vec<(String, String)> {
    let is_product = |name: &String| {
        let products = ["agent/src", "coordinator/src", "protocol/src"];
        let is_test = name.ends_with("/tests.rs") || name.contains("/tests/");
        name.ends_with(".rs")
            && !is_test
            && products.iter().any(|product| name.starts_with(product))
    };
    let code = files().into_iter().filter(is_product).map(|name| {
        let text = std::fs::read_to_string(root().join(&name)).expect("it is text");
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
        (name, text)
    });
    code.collect()
}

/// Finds words in lines that are no comments.
fn find(files: &[(String, String)], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{name}:{}: `{word}`", index + 1));
            }
        }
    }
    found
}

#[test]
fn words_are_found_in_code_and_not_in_comments() {
    let bad = vec![("a.rs".to_owned(), "// tokio\nuse tokio::time;\n".to_owned())];
    assert_eq!(find(&bad, IMPURE), ["a.rs:2: `tokio`"]);
}

#[test]
fn pure_files_stay_pure() {
    let pure: Vec<_> = code()
        .into_iter()
        .filter(|(name, _)| PURE.iter().any(|own| name.starts_with(own)))
        .collect();
    assert!(pure.len() > 8, "the pure files were found");
    let found = find(&pure, IMPURE);
    assert!(found.is_empty(), "pass it in as an argument:\n{}", found.join("\n"));
}

#[test]
fn a_foreign_library_has_one_home() {
    let code = code();
    for (word, homes) in HOMES {
        let away: Vec<_> = code
            .iter()
            .filter(|(name, _)| !homes.iter().any(|home| name.starts_with(home)))
            .cloned()
            .collect();
        assert!(away.len() < code.len(), "{word} has a home");
        let found = find(&away, &[word]);
        assert!(found.is_empty(), "{word} belongs into {homes:?}:\n{}", found.join("\n"));
    }
}

#[test]
fn arrows_that_must_not_be_are_not() {
    let never = [
        ("agent/src/machine", "crate::shell"),
        ("coordinator/src/store", "towline_protocol"),
        ("coordinator/src/store", "crate::rollout"),
        ("coordinator/src/bin/towline", "towline_coordinator"),
        ("coordinator/src/http", "rollout::evaluate"),
    ];
    for (from, to) in never {
        let own: Vec<_> = code().into_iter().filter(|(name, _)| name.starts_with(from)).collect();
        assert!(!own.is_empty(), "{from} was found");
        let found = find(&own, &[to]);
        assert!(found.is_empty(), "{from} must not know {to}:\n{}", found.join("\n"));
    }
}

#[test]
fn every_file_says_what_it_is_for_and_is_no_drawer() {
    for (name, text) in code() {
        assert!(text.starts_with("//!"), "{name} begins with what it is for");
        let stem = Path::new(&name).file_stem().and_then(|stem| stem.to_str());
        let drawers = ["mod", "utils", "common", "helpers", "types"];
        assert!(!stem.is_some_and(|stem| drawers.contains(&stem)), "{name}: name what it does");
    }
}

/// A file of more lines than this is two of something.
const LINES_OF_CODE_MAX: usize = 500;

/// Counts lines that are neither blank, nor comments, nor tests at the end of the file they test.
fn lines_of_code(text: &str) -> usize {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().filter(is_code).count()
}

#[test]
fn lines_of_code_are_counted() {
    let text = "//! What for.\n\nfn a() {\n    // why\n    b();\n}\n\n#[cfg(test)]\nmod tests {\n    c\n}\n";
    assert_eq!(lines_of_code(text), 3);
}

#[test]
fn no_file_is_two() {
    let is_rust = |name: &String| name.ends_with(".rs");
    for name in files().into_iter().filter(is_rust) {
        let text = std::fs::read_to_string(root().join(&name)).expect("it is text");
        let lines = lines_of_code(&text);
        assert!(lines <= LINES_OF_CODE_MAX, "{name}: {lines} lines of code; what is it two of?");
    }
}

#[test]
fn the_root_holds_what_every_project_has() {
    const KNOWN: &[&str] = &[
        "Cargo.toml",
        "agent",
        "protocol",
        "coordinator",
        "tests",
        "ami-snippets",
        "README.md",
        "Cargo.lock",
        "ARCHITECTURE.md",
        "LICENSE",
        "Makefile",
        "deny.toml",
        "rustfmt.toml",
    ];
    for name in files() {
        let top = name.split('/').next().unwrap_or_default();
        assert!(KNOWN.contains(&top) || top.starts_with('.'), "{top} does not belong at the root");
    }
}

#[test]
fn dependencies_come_from_the_registry_and_bring_no_second_tls() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("it is text");
    assert!(!lock.contains("source = \"git"), "a dependency from a repository");
    for name in ["openssl-sys", "native-tls", "aws-lc-sys"] {
        assert!(
            !lock.contains(&format!("name = \"{name}\"")),
            "{name}: rustls with ring is enough"
        );
    }
    let packages = lock.matches("[[package]]").count();
    assert!(packages <= 275, "{packages} packages; each one needs a reason");
    for manifest in
        ["protocol/Cargo.toml", "agent/Cargo.toml", "coordinator/Cargo.toml", "tests/Cargo.toml"]
    {
        let text = std::fs::read_to_string(root().join(manifest)).expect("it is text");
        assert!(!text.contains("towline-tests ="), "{manifest}: nothing depends on tests");
        let others = [("agent", "towline-coordinator"), ("coordinator", "towline-agent")];
        for (own, other) in others {
            let has = manifest.starts_with(own) && text.contains(&format!("\n{other}"));
            assert!(!has, "{manifest}: {own} and {other} know of each other by the wire only");
        }
        let is_protocol = manifest.starts_with("protocol");
        for name in ["tokio", "reqwest", "tracing", "clap", "towline-agent"] {
            let has = text.contains(&format!("\n{name}.workspace"));
            assert!(!(is_protocol && has), "{manifest}: {name}: the vocabulary does not act");
        }
    }
}

/// Is a licence expression satisfied by these? `AND` binds looser here than in SPDX, which is stricter.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    expression.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']);
        part.split(" OR ").any(|name| allowed.contains(&name.trim()))
    })
}

#[test]
fn licence_expressions_are_read() {
    let cases = [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("Unlicense/MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        ("", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(is_allowed(expression, &["MIT", "ISC"]), expected, "{expression}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = std::fs::read_to_string(root().join("deny.toml")).expect("it is text");
    let deny: toml::Table = deny.parse().expect("it is TOML");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(root()).output();
        let output = output.expect("a Rust toolchain is there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("it is text")
    };
    let version = run("rustc", &["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a line");
    // Only what is built here was downloaded.
    let arguments =
        ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host];
    let metadata: serde_json::Value =
        serde_json::from_str(&run("cargo", &arguments)).expect("it is JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 100, "the packages were found");
    for package in packages {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence, &allowed), "{}: {licence:?}", package["name"]);
    }
}

#[test]
fn npm_lock_files_name_no_host() {
    let locks: Vec<_> =
        files().into_iter().filter(|name| name.ends_with("package-lock.json")).collect();
    assert!(!locks.is_empty());
    for name in locks {
        let text = std::fs::read_to_string(root().join(&name)).expect("it is text");
        assert!(!text.contains("\"resolved\""), "{name} holds download addresses");
    }
}

#[test]
fn what_tests_run_by_its_path_is_installed_by_their_set_up() {
    let setup = std::fs::read_to_string(root().join("tests/setup.sh")).expect("it is text");
    let is_test = |name: &String| {
        name.ends_with(".rs") && (name.starts_with("agent/tests") || name.starts_with("tests/"))
    };
    let mut found = 0;
    for name in files().into_iter().filter(is_test) {
        let text = std::fs::read_to_string(root().join(&name)).expect("it is text");
        for rest in text.split("Command::new(\"/usr/bin/").skip(1) {
            let program = rest.split('"').next().unwrap_or_default();
            found += 1;
            let test = format!("[ -x /usr/bin/{program} ]");
            assert!(setup.contains(&test), "{name} runs /usr/bin/{program}");
        }
    }
    assert!(found > 0, "the programs were found");
}

/// Each promise of the README's table names at least two tests, and each of them is there.
#[test]
fn promises_have_tests() {
    let readme = fs::read_to_string(root().join("README.md")).expect("it is there");
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| P")).collect();
    assert_eq!(rows.len(), 12, "P1 to P9, P22, P23, P25");
    for row in rows {
        let mut tests = 0;
        for link in row.split("](").skip(1) {
            let (file, rest) = link.split_once(')').expect("a link ends");
            let source = fs::read_to_string(root().join(file)).expect(file);
            let names = rest.split(", [").next().unwrap_or_default();
            for name in names.split('`').skip(1).step_by(2) {
                tests += 1;
                assert!(source.contains(&format!("fn {name}(")), "{file}: {name}");
            }
        }
        assert!(tests >= 2, "{row}");
    }
}
