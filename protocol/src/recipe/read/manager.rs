//! `[manager]`: who owns the app's workers, how it is found, told and started.

use toml::Spanned;
use toml::de::DeValue;

use super::value::{Reader, Table};
use crate::recipe::{
    CommandLine, Find, Manager, RelativePath, Reload, ReloadSignal, RestartWhen, is_service_name,
};

const MANAGER_TIMEOUT_S: f64 = 90.0;

/// What names a manager; exactly one of them does.
const FINDERS: [&str; 3] = ["pid_file", "status", "unit"];

impl Reader<'_> {
    pub(super) fn manager(&mut self, table: Table<'_>, shared: &[RelativePath]) -> Option<Manager> {
        self.only(
            table,
            &["pid_file", "status", "unit", "reload", "start", "restart_when", "timeout_s"],
        );
        let given: Vec<&str> = FINDERS.into_iter().filter(|key| table.get(key).is_some()).collect();
        let find = match given.as_slice() {
            [] => {
                let message = "name the manager's pid file, a `status` command, or the `unit` that \
                               runs it";
                self.missing(table, "pid_file", message);
                None
            }
            ["pid_file"] => table.get("pid_file").and_then(|value| self.pid_file(value, shared)),
            ["status"] => self.command(table, "status").map(Find::Status),
            [_] => table.get("unit").and_then(|value| self.unit(value)),
            [first, second, ..] => {
                let line = self.line_of(table, second);
                let message = format!("{first} is given too; use one of them");
                self.problem(line, table.field(second), message);
                None
            }
        };
        let by_unit = given == ["unit"];
        let reload = self.reload(table, by_unit);
        let start = self.start(table, by_unit);
        let restart_when = self.restart_when(table);
        let timeout = self.duration(table, "timeout_s", MANAGER_TIMEOUT_S);
        Some(Manager {
            find: find?,
            reload: reload?,
            start: start?,
            restart_when: restart_when?,
            timeout: timeout?,
        })
    }

    fn pid_file(&mut self, value: &Spanned<DeValue<'_>>, shared: &[RelativePath]) -> Option<Find> {
        let text = self.string(value, "manager.pid_file")?;
        if text.starts_with('/') && !text.chars().any(char::is_control) {
            return Some(Find::PidFile(text));
        }
        let path = self.path(value, "manager.pid_file")?;
        if !shared.iter().any(|dir| dir.holds(&path)) {
            let line = self.line(value.span().start);
            let message = "must be absolute, or lie in one of shared.dirs: a release is replaced \
                           by the next one, and its files with it";
            self.problem(line, "manager.pid_file", message);
            return None;
        }
        Some(Find::PidFile(path.as_str().to_owned()))
    }

    fn unit(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Find> {
        let text = self.string(value, "manager.unit")?;
        let is_valid = is_service_name(&text);
        if !is_valid {
            let line = self.line(value.span().start);
            let message = format!("{text:?} is no service, such as \"web.service\"");
            self.problem(line, "manager.unit", message);
        }
        is_valid.then_some(Find::Unit(text))
    }

    /// The outer `None` means that something is wrong with it. A unit is started by systemd.
    #[expect(clippy::option_option, reason = "absent and wrong are two things here")]
    fn start(&mut self, table: Table<'_>, by_unit: bool) -> Option<Option<CommandLine>> {
        match table.get("start") {
            None if by_unit => Some(None),
            None => {
                let message = "a list such as [\"./bin/start\"]; without it nothing can be started, \
                               restarted or restored";
                self.missing(table, "start", message);
                None
            }
            Some(value) if by_unit => {
                let line = self.line(value.span().start);
                let message = "the unit is started by systemd: put the command into its ExecStart=";
                self.problem(line, "manager.start", message);
                None
            }
            Some(_) => self.command(table, "start").map(Some),
        }
    }

    fn reload(&mut self, table: Table<'_>, by_unit: bool) -> Option<Reload> {
        let Some(value) = table.get("reload") else {
            if by_unit {
                return Some(Reload::Unit);
            }
            self.missing(table, "reload", "a signal such as \"SIGHUP\", or a command as a list");
            return None;
        };
        if value.get_ref().is_array() {
            return self.command(table, "reload").map(Reload::Command);
        }
        let text = self.string(value, "manager.reload")?;
        let signals = [ReloadSignal::Hup, ReloadSignal::Usr1, ReloadSignal::Usr2];
        let signal = signals.into_iter().find(|signal| signal.name() == text);
        if signal.is_none() {
            let line = self.line(value.span().start);
            let message = format!(
                "{text:?} is not one of SIGHUP, SIGUSR1, SIGUSR2; a command is a list, such as \
                 [\"./bin/reload\"]"
            );
            self.problem(line, "manager.reload", message);
        }
        signal.map(Reload::Signal)
    }

    fn restart_when(&mut self, table: Table<'_>) -> Option<Vec<RestartWhen>> {
        let Some(value) = table.get("restart_when") else {
            return Some(vec![RestartWhen::Install, RestartWhen::Runtime]);
        };
        let mut found = Vec::new();
        for (line, text) in self.strings(value, "manager.restart_when")? {
            match text.as_str() {
                "install" => found.push(RestartWhen::Install),
                "runtime" => found.push(RestartWhen::Runtime),
                _ => {
                    let message = format!("{text:?} is not one of \"install\", \"runtime\"");
                    self.problem(line, "manager.restart_when", message);
                    return None;
                }
            }
        }
        Some(found)
    }
}
