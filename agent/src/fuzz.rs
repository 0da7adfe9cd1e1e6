//! The fuzz targets: what reads text that others wrote, each with what must hold of whatever it makes of it.
//!
//! ```text
//!   tests/fuzz (libFuzzer) ──┐
//!                            ├──► TARGETS: name, bytes → panics where something does not hold
//!   the test below ──────────┘    which replays the seeds and what was ever found
//! ```
//!
//! Part of tests and of `make fuzz` alone; no package holds it.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use towline_protocol::ids::Group;
use towline_protocol::poll::{Answer, Joined, Message, Permission, Poll, Question};
use towline_protocol::recipe::{self, Check, Find, Recipe, RelativePath};
use towline_protocol::target::{self, Target};

use crate::config::{Config, Source};
use crate::git::address::{self, Address};
use crate::git::{ssh, transport, tree};
use crate::journal::{Journal, Release};
use crate::manager::pid_file;
use crate::process::cgroup;
use crate::process::table::{self, Stat};
use crate::release::Marker;
use crate::release::links;
use crate::release::state::{Contact, Leaving, Status};
use crate::source::coordinator::call;
use crate::status::Seen;
use crate::{shown, systemd};

/// What runs one target over one input.
pub type Run = fn(&[u8]);

/// All targets, by their names.
pub const TARGETS: &[(&str, Run)] = &[
    ("recipe", recipe),
    ("config", config),
    ("target", target),
    ("process", process),
    ("tree", tree),
    ("journal", journal),
    ("transport", transport),
    ("answer", answer),
    ("unit", unit),
];

/// `towline.toml`: what is read is complete and stays inside the release; what is not has its lines.
fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Recipe::parse(text) {
        Ok(recipe) => {
            assert!(text.len() as u64 <= recipe::SIZE_BYTES_MAX);
            holds(&recipe);
        }
        Err(error) => {
            assert!(!error.problems.is_empty(), "a refusal says why");
            assert!(error.problems.is_sorted_by_key(|problem| problem.line));
            let lines = text.split('\n').count();
            assert!(error.problems.iter().all(|problem| (1..=lines).contains(&problem.line)));
            let said = error.to_string();
            assert!(
                said.len() <= 1000 + 100 * text.len(),
                "a refusal is not much longer than its cause"
            );
        }
    }
}

/// What the header of `protocol::recipe` promises.
fn holds(recipe: &Recipe) {
    let none: &[RelativePath] = &[];
    let installed = recipe.install.as_ref().map_or(none, |install| &install.outputs);
    let inputs = recipe.install.as_ref().map_or(none, |install| &install.inputs);
    let built = recipe.build.as_ref().map_or(none, |build| &build.outputs);
    let root = std::slice::from_ref(&recipe.root);
    for path in [root, installed, inputs, built, &recipe.shared].concat() {
        assert_eq!(RelativePath::new(path.as_str()).as_ref(), Ok(&path), "it is normal");
        assert!(is_inside(Path::new(path.as_str())), "{path}");
    }
    let own = [installed, built, &recipe.shared].concat();
    for (index, one) in own.iter().enumerate() {
        assert!(!one.is_root(), "nothing replaces the release");
        let overlaps = |other: &RelativePath| one.holds(other) || other.holds(one);
        assert!(!own.iter().skip(index + 1).any(overlaps), "{one} has one owner");
    }
    let mut commands: Vec<_> =
        [&recipe.hooks.before, &recipe.hooks.after].into_iter().flatten().collect();
    let mut times = Vec::new();
    if !commands.is_empty() {
        times.push(recipe.hooks.timeout);
    }
    if let Some(install) = &recipe.install {
        commands.push(&install.command);
        commands.extend(&install.runtime);
        times.push(install.timeout);
    }
    if let Some(build) = &recipe.build {
        commands.push(&build.command);
        commands.extend(&build.runtime);
        times.push(build.timeout);
    }
    if let Some(manager) = &recipe.manager {
        commands.extend(&manager.start);
        times.push(manager.timeout);
        assert_eq!(manager.start.is_none(), manager.unit().is_some(), "one way to start it");
        match &manager.find {
            Find::PidFile(path) if path.starts_with('/') => {}
            Find::PidFile(path) => {
                let path = RelativePath::new(path).expect("it was read as one");
                assert!(recipe.shared.iter().any(|dir| dir.holds(&path)), "it outlives releases");
            }
            Find::Status(command) => commands.push(command),
            Find::Unit(unit) => {
                assert!(unit.ends_with(".service") && unit.len() <= recipe::UNIT_CHARS_MAX);
                assert!(!unit.starts_with('-') && !unit.contains('/'), "{unit}");
            }
        }
    }
    let health = &recipe.health;
    assert!((1..=100).contains(&health.passes));
    times.extend([health.every, health.healthy_for, health.timeout, health.start]);
    match &health.check {
        Check::Command(command) => commands.push(command),
        Check::Http(address) => {
            let text = format!("[health]\nhttp = \"{}\"\n", address.to_string().escape_default());
            let again = Recipe::parse(&text).map(|recipe| recipe.health.check);
            assert_eq!(again.as_ref(), Ok(&health.check), "writing and reading agree");
        }
        Check::Tcp(socket) => {
            let text = format!("[health]\ntcp = \"{socket}\"\n");
            let again = Recipe::parse(&text).map(|recipe| recipe.health.check);
            assert_eq!(again.as_ref(), Ok(&health.check), "writing and reading agree");
        }
    }
    for command in commands {
        assert!(!command.program.is_empty() && !command.to_string().contains('\0'));
    }
    assert!(times.into_iter().all(is_bearable));
    assert!(recipe.warnings().len() <= 2);
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn is_absolute(path: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    path.is_absolute() && path.components().all(is_plain)
}

fn is_bearable(time: Duration) -> bool {
    (Duration::from_millis(50)..=Duration::from_secs(86_400)).contains(&time)
}

/// Host config: paths are absolute, times bearable, and nothing of the environment comes in unasked.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let variables = [("PATH", "/bin"), ("OWN_SECRET", "s"), ("CREDENTIALS_DIRECTORY", "/run/c")];
    let variables: BTreeMap<_, _> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let config = match Config::parse(Path::new("web.toml"), text, &variables) {
        Ok(config) => config,
        Err(error) => {
            assert!(error.to_string().len() <= 1000 + 20 * text.len());
            return;
        }
    };
    assert!(is_absolute(&config.dir), "{}", config.dir.display());
    assert!(config.default_recipe.as_deref().is_none_or(is_absolute));
    let is_asked_for = text.contains("pass_env");
    assert!(is_asked_for || !config.environment.contains_key("OWN_SECRET"));
    for time in [config.boot_deadline, config.backoff.0, config.backoff.1] {
        assert!(is_bearable(time));
    }
    assert!(config.keep.releases >= 2 && config.keep.dependencies >= 1);
    match &config.source {
        Source::File(path) => assert!(is_absolute(path)),
        Source::Coordinator(coordinator) => {
            assert!(!coordinator.addresses.is_empty() && is_bearable(coordinator.connect));
        }
    }
    for unit in config.allow.units() {
        assert!(unit.ends_with(".service") && !unit.starts_with('-') && !unit.contains('/'));
    }
    if let Some(adopted) = &config.adopted {
        assert!(is_absolute(&adopted.dir));
        assert!(!adopted.dir.starts_with(&config.dir) && !config.dir.starts_with(&adopted.dir));
        holds(&adopted.recipe);
    }
}

/// Reads a document, if it is one, and sees whether writing and reading agree.
fn again<T: DeserializeOwned + Serialize>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    let twice = serde_json::to_vec(&again).expect("what was read can be written");
    assert_eq!(written, twice, "writing and reading agree");
    assert!(written.len() <= 2000 + 8 * data.len(), "nothing grows by being read");
    Some(read)
}

fn own_group() -> Group {
    "web".parse().expect("it is a name")
}

/// The target document: for this group, of this version, with one aim; or a refusal that helps.
fn target(data: &[u8]) {
    let read = Target::parse(data, &own_group());
    match &read {
        Ok(target) => {
            assert!(data.len() as u64 <= target::SIZE_BYTES_MAX);
            aims(target);
            let written = again::<Target>(data);
            assert_eq!(written.as_ref(), Some(target));
        }
        Err(error) => {
            assert!(!error.hint().is_empty());
            assert!(crate::error::chain(error).len() <= 1000 + 8 * data.len().min(4096));
        }
    }
}

fn aims(target: &Target) {
    assert_eq!(target.version, target::VERSION);
    assert_eq!(target.group, own_group());
    assert_ne!(target.revision.is_some(), target.not.is_some());
    for revision in target.revision.iter().chain(&target.not).chain(&target.quarantine) {
        assert!(matches!(revision.as_str().len(), 40 | 64));
        assert!(revision.as_str().bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')));
    }
}

/// `/proc` and pid files: nobody gets another's pid, and no name shifts a field. The part before the first
/// empty line is also taken for a `mountinfo`, the rest for the `cgroup` that goes with it.
fn process(data: &[u8]) {
    if let Some(stat) = Stat::parse(data) {
        let name = data.iter().position(|&c| c == b'(').zip(data.iter().rposition(|&c| c == b')'));
        let (open, close) = name.expect("a name is in it");
        let other = [&data[..=open], b") Z 1 1 (1", &data[close..]].concat();
        assert_eq!(Stat::parse(&other), Some(stat), "a name cannot shift the fields");
    }
    let text = String::from_utf8_lossy(data);
    if let pid_file::Reading::Pid(pid) = pid_file::parse(&text) {
        assert!(pid > 1, "neither everyone nor init");
        assert_eq!(text.trim().trim_start_matches('0'), pid.to_string());
    }
    let unit = "/system.slice/web.service";
    if table::names_cgroup(&text, unit) {
        let is_below = |line: &str| {
            line.splitn(3, ':').nth(2).is_some_and(|path| Path::new(path).starts_with(unit))
        };
        assert!(text.lines().any(is_below), "only what is in it or below");
    }
    for root in ["", "/", "//"] {
        assert!(!table::names_cgroup(&text, root), "the root is nobody's");
    }
    let (mounts, own) = text.split_once("\n\n").unwrap_or((&text, &text));
    if let Some(dir) = cgroup::own_dir(mounts, own) {
        let is_at = |at: &str| dir.starts_with(cgroup::unescaped(at));
        let mut lines = mounts.lines();
        assert!(lines.any(|line| line.split(' ').nth(4).is_some_and(is_at)), "{}", dir.display());
    }
}

/// Git's names: what passes stays below the release, and a refusal moves no cursor. A path, a line's
/// end, and where a link there leads.
fn tree(data: &[u8]) {
    let mut parts = data.splitn(2, |&c| c == b'\n');
    let (path, to) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    for name in path.split(|&c| c == b'/').chain([path]) {
        match tree::check_name(path, name) {
            Ok(()) => {
                assert!(is_one_name(name), "{}", name.escape_ascii());
                let plain = name.to_ascii_lowercase();
                assert!(!matches!(plain.trim_ascii_end(), b".git" | b".git." | b"git~1"));
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.bytes().all(|c| matches!(c, b' '..=b'~')), "{said:?}");
                assert!(said.len() <= 200 + 4 * path.len());
            }
        }
    }
    let names: Vec<&[u8]> = path.split(|&c| c == b'/').collect();
    if !names.iter().all(|name| tree::check_name(path, name).is_ok()) {
        return;
    }
    let (place, to) = (bytes_path(path), bytes_path(to));
    assert!(is_inside(place));
    assert_eq!(Path::new("/r").join(place).components().count(), 2 + names.len());
    let is_above = |dir: &Path| place.starts_with(dir) && dir != place;
    if links::judge(place, to, is_above).is_ok() {
        assert!(!to.is_absolute() && !to.as_os_str().is_empty());
        let mut depth = names.len() - 1;
        for part in to.components() {
            match part {
                Component::ParentDir => depth = depth.checked_sub(1).expect("it stays inside"),
                Component::Normal(_) => depth += 1,
                _ => {}
            }
        }
    }
}

fn bytes_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Would a file system take it for the name of one file?
fn is_one_name(name: &[u8]) -> bool {
    let mut parts = bytes_path(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(whole)), None)
        if whole.as_encoded_bytes() == name && name.len() <= 255 && !name.contains(&0))
}

/// The agent's own documents: what a crash left is read as it was written, and stays bounded.
fn journal(data: &[u8]) {
    if let Some(mut journal) = again::<Journal>(data) {
        let other = journal.clone().adopt("i-fuzz-other".parse().expect("it is a name"));
        assert_eq!((&other.target, other.restart), (&journal.target, journal.restart));
        assert!(other.proven.is_empty() && other.swap.is_none(), "nothing is proven elsewhere");
        if let Some(swap) = journal.swap.clone() {
            journal.reject(swap.order, swap.to.clone(), String::new());
            assert!(!swap.to.own().is_some_and(|revision| journal.is_proven(revision)));
            assert!(journal.rejection(swap.order, &swap.to).is_some());
            journal.accept(&swap.to);
            assert!(journal.is_known(&swap.to));
            assert_eq!(journal.rejection(swap.order, &swap.to), None);
            assert!(swap.to == Release::Adopted || journal.proven.len() <= 32);
            assert!(journal.rejected.len() <= 32);
        }
    }
    again::<Marker>(data);
    again::<Contact>(data);
    again::<Leaving>(data);
    if let Some(status) = again::<Status>(data) {
        let seen = Seen { agent_running: false, agent_pid: None, coordinator: None, status };
        for now_s in [0, u64::MAX] {
            assert!(seen.text(now_s).len() <= 2000 + 8 * data.len());
            assert!(seen.json(now_s).is_object());
        }
    }
}

/// What repositories' hosts say, and their addresses: nothing becomes an option, a command or a line.
fn transport(data: &[u8]) {
    if let Some(said) = transport::server_error(data) {
        is_line(&said);
        assert!(said.len() <= 3 * data.len());
    }
    let text = String::from_utf8_lossy(data);
    let clean = shown::clean(&text);
    assert_eq!(shown::clean(&clean), clean, "what is clean stays as it is");
    is_line(&shown::one_line(&text));
    assert!(shown::short_line(&text, 20).chars().count() <= 21);
    match address::parse(&text, false) {
        Ok(Address::Ssh(address)) => {
            for word in address.user.iter().chain([&address.host, &address.path]) {
                assert!(!word.is_empty() && !word.starts_with('-'), "{word:?} is no option");
            }
            assert_eq!(unquoted(&ssh::quoted(&address.path)).as_ref(), Some(&address.path));
            if !address.path.contains('%') {
                let Ok(Address::Ssh(again)) = address::parse(&address.to_string(), false) else {
                    panic!("{address} is written as it is read");
                };
                assert_eq!((&again.user, &again.host), (&address.user, &address.host));
                assert_eq!(again.port, address.port);
                assert!(again.path.ends_with(&address.path));
            }
        }
        Ok(Address::Http(url)) => {
            assert_eq!(url.scheme(), "https", "plain http was not allowed");
            assert!(url.username().is_empty() && url.password().is_none());
            let again = address::parse(url.as_str(), false);
            assert_eq!(again, Ok(Address::Http(url)), "writing and reading agree");
        }
        Err(reason) => {
            let shown = address::shown(&text);
            assert!(!reason.is_empty() && shown.chars().count() <= 200);
            assert!(!shown.chars().any(char::is_control) && !shown.contains('@'));
        }
    }
}

fn is_line(text: &str) {
    let is_foul = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}');
    assert!(!text.chars().any(is_foul), "{text:?}");
}

/// Reads what was quoted as a POSIX shell does; `None` where a word ends or begins anything else.
fn unquoted(text: &str) -> Option<String> {
    let (mut found, mut chars, mut is_quoted) = (String::new(), text.chars(), false);
    while let Some(c) = chars.next() {
        match c {
            '\'' => is_quoted = !is_quoted,
            c if is_quoted => found.push(c),
            '\\' => found.push(chars.next()?),
            _ => return None,
        }
    }
    (!is_quoted).then_some(found)
}

/// What a coordinator answers, and what it is sent: writing and reading agree, and refusals are one line.
fn answer(data: &[u8]) {
    if let Some(answer) = again::<Answer>(data)
        && let Some(target) = &answer.word.target
        && target.check(&own_group()).is_ok()
    {
        aims(target);
    }
    again::<Permission>(data);
    again::<Poll>(data);
    again::<Question>(data);
    again::<Message>(data);
    if let Some(joined) = again::<Joined>(data)
        && let Some(bearer) = call::Bearer::new(&joined.token)
    {
        assert!(bearer.reveal().bytes().all(|c| c.is_ascii_graphic()), "it fits into a header");
        assert!(bearer.reveal() == joined.token && joined.token.len() <= 1024);
        assert_eq!(format!("{bearer:?}"), "Bearer(…)");
    }
    let said = call::said(data);
    is_line(&said);
    assert!(said.chars().count() <= 203);
}

/// `systemctl show`: a main process is nobody's but the unit's, and so is its control group.
fn unit(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match systemd::State::parse("web.service", &text) {
        Ok(state) => {
            assert!(state.main_pid.is_none_or(|pid| pid > 1));
            if let Some(cgroup) = &state.cgroup {
                let is_own = cgroup.starts_with('/') && !cgroup.trim_matches('/').is_empty();
                assert!(is_own, "{cgroup:?} would be everybody's");
            }
            let said = state.to_string();
            is_line(&said);
            assert!(said.chars().count() <= 300);
        }
        Err(error) => {
            let said = error.to_string();
            is_line(&said);
            assert!(said.chars().count() <= 300, "{said}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Files of a folder and of those in it.
    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
        entries.flat_map(below).collect()
    }

    #[test]
    fn what_was_found_stays_mended() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shared = ["protocol/golden", "ami-snippets"].map(|dir| files(&root.join(dir))).concat();
        for (name, run) in TARGETS {
            let own = files(&root.join("tests/fuzz/corpus").join(name));
            assert!(!own.is_empty(), "{name} has seeds");
            for path in shared.iter().chain(&own) {
                println!("{name} {}", path.display());
                run(&std::fs::read(path).unwrap());
            }
        }
    }

    #[test]
    fn a_shell_is_read_as_it_reads() {
        assert_eq!(unquoted(r"'it'\''s'"), Some("it's".to_owned()));
        assert_eq!(unquoted("'a' b"), None);
        assert_eq!(unquoted("'a"), None);
    }
}
