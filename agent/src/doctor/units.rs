//! What systemd says: of the units that recipes may use, and of the agent's own.
//!
//! An agent that is down or broken must not keep the app from starting: the app's unit is ordered after
//! the agent's and wants it, and never requires it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Finding;
use crate::config::Config;
use crate::release::Store;

/// How long systemd is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// What is asked of a unit.
const PROPERTIES: &str =
    "LoadState,ActiveState,After,Requires,Requisite,BindsTo,KillMode,Delegate,Version";

type Properties = BTreeMap<String, String>;

pub(super) async fn examine(config: &Config, store: &Store) -> Vec<Finding> {
    let units = config.allow.units();
    let agent = store.holder().filter(|_| store.is_locked()).and_then(unit_of);
    if units.is_empty() && agent.is_none() {
        return vec![Finding::ok("systemd", "not needed: no unit is allowed to recipes")];
    }
    let Some(version) = show(config, "").await.and_then(|mut all| all.remove("Version")) else {
        let said = "systemctl does not answer";
        if units.is_empty() {
            return vec![Finding::warn("systemd", said, "see `systemctl status`")];
        }
        let hint = "allow.units needs systemd: see `systemctl status`".to_owned();
        return vec![Finding::fail("systemd", said, Some(hint))];
    };
    let mut found = vec![Finding::ok("systemd", format!("version {version}"))];
    if let Some(unit) = &agent {
        let properties = show(config, unit).await.unwrap_or_default();
        found.push(own(unit, &properties));
    }
    for unit in units {
        let properties = show(config, unit).await.unwrap_or_default();
        found.push(used(unit, &properties, agent.as_deref()));
    }
    found
}

/// The unit that a process belongs to, by its cgroup.
fn unit_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    service_in(path)
}

fn service_in(path: &str) -> Option<String> {
    path.split('/').find(|part| part.ends_with(".service")).map(str::to_owned)
}

async fn show(config: &Config, unit: &str) -> Option<Properties> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--no-pager", "--property", PROPERTIES]);
    if !unit.is_empty() {
        command.arg("--").arg(unit);
    }
    command.env_clear().envs(&config.environment).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(WAIT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> Properties {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn value<'a>(properties: &'a Properties, name: &str) -> &'a str {
    properties.get(name).map_or("", String::as_str)
}

fn names(properties: &Properties, name: &str, unit: &str) -> bool {
    value(properties, name).split(' ').any(|named| named == unit)
}

/// Judges the agent's own unit.
fn own(unit: &str, properties: &Properties) -> Finding {
    if value(properties, "KillMode") != "process" {
        let said = format!("{unit} has KillMode={}", value(properties, "KillMode"));
        let hint = "set KillMode=process: a restart of the agent would end the app".to_owned();
        return Finding::fail("agent unit", said, Some(hint));
    }
    if value(properties, "Delegate") != "yes" {
        let said = format!("{unit} has no cgroup of its own to divide");
        return Finding::warn("agent unit", said, "set Delegate=yes");
    }
    Finding::ok("agent unit", format!("{unit} ends the agent alone"))
}

/// Judges a unit that recipes may use. `agent`: the agent's, where one runs and has one.
fn used(unit: &str, properties: &Properties, agent: Option<&str>) -> Finding {
    match value(properties, "LoadState") {
        "loaded" => {}
        "" => {
            let hint = "see `systemctl status`".to_owned();
            return Finding::fail("unit", format!("systemd says nothing of {unit}"), Some(hint));
        }
        state => {
            let hint =
                "install it and run `systemctl daemon-reload`, or take it out of allow.units";
            return Finding::fail("unit", format!("{unit} is {state}"), Some(hint.to_owned()));
        }
    }
    let Some(agent) = agent else {
        let said = format!("{unit} is loaded; no agent runs by a unit, to be compared");
        return Finding::warn("unit", said, "run the agent by its unit, and look again");
    };
    for name in ["Requires", "Requisite", "BindsTo"] {
        if names(properties, name, agent) {
            let said =
                format!("{unit} has {name}={agent}: without the agent the app does not start");
            return Finding::fail("unit", said, Some(format!("use Wants={agent} instead")));
        }
    }
    if !names(properties, "After", agent) {
        let said = format!(
            "{unit} is not ordered after {agent}: a boot may start what is replaced at once"
        );
        return Finding::warn("unit", said, &format!("set After={agent} and Wants={agent}"));
    }
    Finding::ok("unit", format!("{unit} is loaded, and ordered after {agent}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn the_apps_unit_is_ordered_after_the_agents_and_never_requires_it() {
        let agent = "towline-web.service";
        let cases = [
            ("as it should be", "LoadState=loaded\nAfter=a towline-web.service b", Level::Ok),
            ("not ordered", "LoadState=loaded\nAfter=towline-web2.service", Level::Warn),
            (
                "required",
                "LoadState=loaded\nAfter=towline-web.service\nRequires=towline-web.service",
                Level::Fail,
            ),
            ("bound", "LoadState=loaded\nBindsTo=x towline-web.service", Level::Fail),
            ("not there", "LoadState=not-found", Level::Fail),
            ("masked", "LoadState=masked", Level::Fail),
            ("no answer", "", Level::Fail),
        ];
        for (rule, text, level) in cases {
            assert_eq!(used("web.service", &parse(text), Some(agent)).level, level, "{rule}");
        }
        let loaded = parse("LoadState=loaded");
        assert_eq!(used("web.service", &loaded, None).level, Level::Warn);
    }

    #[test]
    fn the_agents_unit_ends_the_agent_alone() {
        let cases = [
            ("KillMode=process\nDelegate=yes", Level::Ok),
            ("KillMode=process\nDelegate=no", Level::Warn),
            ("KillMode=control-group\nDelegate=yes", Level::Fail),
            ("", Level::Fail),
        ];
        for (text, level) in cases {
            assert_eq!(own("towline-web.service", &parse(text)).level, level, "{text}");
        }
        assert_eq!(
            service_in("/system.slice/towline-web.service/app").as_deref(),
            Some("towline-web.service")
        );
        assert_eq!(service_in("/user.slice/session-1.scope"), None);
    }
}
