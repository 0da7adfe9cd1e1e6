//! What `towline-agent status` and `towline-agent check` say, as text; `main` prints it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use towline_protocol::ids::Revision;
use towline_protocol::recipe::{self, Recipe};
use towline_protocol::report::{Evidence, Health, Phase, Report};

use crate::release::state::Status;

/// The version of the JSON that `status --json` prints.
pub const SCHEMA_VERSION: u32 = 1;

/// Returns the status as a person reads it. `now_s`: seconds since 1970.
#[must_use]
pub fn text(status: &Status, is_running: bool, now_s: u64) -> String {
    let report = &status.report;
    let mut lines = vec![format!("{} in group {}", report.instance, report.group)];
    lines.push(match &report.serving {
        Some(revision) => {
            format!("serves   {revision}, {}{}", health(report.health), evidence(report.evidence))
        }
        None => "serves   nothing of Towline's".to_owned(),
    });
    lines.push(match (&report.target, report.order) {
        (Some(target), Some(order)) => format!("target   {target}, {order}"),
        _ => "target   none yet".to_owned(),
    });
    if let Some(alike) = &report.alike {
        lines.push(format!("         {} has the same subtree and recipe", alike.short()));
    }
    lines.push(format!("phase    {}", phase(report)));
    if let Some(reason) = &report.degraded {
        lines.push(format!("degraded {reason}"));
    }
    if let Some(reason) = &report.objection {
        lines.push(format!("source   {reason}"));
    }
    if let Some(failure) = &report.failure {
        let (revision, attempt) = (failure.revision.short(), failure.attempt);
        lines.push(format!("failure  {revision}, attempt {attempt}: {}", failure.detail));
    }
    let age_s = now_s.saturating_sub(status.written_s);
    lines.push(if is_running {
        format!("agent    pid {} runs; the last change was {age_s} s ago", status.pid)
    } else {
        format!("agent    NOT RUNNING; this is what it knew {age_s} s ago")
    });
    lines.join("\n")
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "UNHEALTHY",
        Health::Unknown => "health unknown",
    }
}

fn evidence(evidence: Option<Evidence>) -> &'static str {
    match evidence {
        Some(Evidence::Served) => "; its own answers name the revision",
        Some(Evidence::Started) => "; its workers run from the release",
        Some(Evidence::Replaced) => "; its workers are new",
        None => "",
    }
}

fn phase(report: &Report) -> String {
    let target = report.target.as_ref().map_or("?", Revision::short);
    match report.phase {
        Phase::Starting => "starting".to_owned(),
        Phase::Idle => "idle".to_owned(),
        Phase::Preparing => format!("preparing {target}"),
        Phase::Waiting => "waiting before the next attempt".to_owned(),
        Phase::Asking => "asking for leave to swap".to_owned(),
        Phase::Activating => "activating".to_owned(),
        Phase::Proving => "waiting for new workers".to_owned(),
        Phase::Probing => "probing through the health window".to_owned(),
        Phase::Restoring => "restoring what served before".to_owned(),
    }
}

/// Returns what `check` says of the recipe in `dir`, and whether it is valid.
///
/// # Errors
///
/// Where there is no recipe that could be read.
pub fn check(dir: &Path) -> io::Result<(String, bool)> {
    let path = dir.join(recipe::FILE_NAME);
    let mut bytes = Vec::new();
    File::open(&path)?.take(recipe::SIZE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let name = path.display();
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok((format!("{name}: the recipe is not UTF-8"), false));
    };
    let recipe = match Recipe::parse(&text) {
        Ok(recipe) => recipe,
        Err(error) => {
            let lines: Vec<String> = error
                .problems
                .iter()
                .map(|problem| {
                    let field = if problem.field.is_empty() { "" } else { ": " };
                    format!("{name}:{}: {}{field}{}", problem.line, problem.field, problem.message)
                })
                .collect();
            return Ok((lines.join("\n"), false));
        }
    };
    let mut lines: Vec<String> =
        recipe.warnings().iter().map(|warning| format!("{name}: warning: {warning}")).collect();
    let root = dir.join(recipe.root.as_str());
    if !root.is_dir() {
        return Ok((format!("{name}: root: {} is no directory", root.display()), false));
    }
    let inputs = recipe.install.iter().flat_map(|install| &install.inputs);
    for input in inputs.filter(|input| !root.join(input.as_str()).exists()) {
        lines.push(format!("{name}: warning: install.inputs: {input} is not there"));
    }
    lines.push(format!("{name}: valid"));
    Ok((lines.join("\n"), true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn check_names_file_and_line_of_each_problem_and_warns_where_nothing_shows_the_revision() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path()).is_err(), "there is no recipe");
        let path = dir.path().join("towline.toml");
        fs::write(&path, "[manager]\npidfile = \"/x\"\n[health]\ntcp = \"nowhere\"\n").unwrap();
        let (said, valid) = check(dir.path()).unwrap();
        assert!(!valid);
        for place in ["towline.toml:2: manager.pidfile", "towline.toml:4: health.tcp"] {
            assert!(said.contains(place), "{place} in {said}");
        }
        let text = "[manager]\npid_file = \"/run/x.pid\"\nreload = \"SIGHUP\"\nstart = \
                    [\"./start\"]\n[health]\ntcp = \"127.0.0.1:1\"\n";
        fs::write(&path, text).unwrap();
        let (said, valid) = check(dir.path()).unwrap();
        assert!(valid && said.contains("nothing shows which revision is served"), "{said}");
    }
}
