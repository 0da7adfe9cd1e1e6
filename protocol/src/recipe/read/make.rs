//! Reads what makes a release out of a tree, and what runs around its swap: `[install]`, `[build]`,
//! `[hooks]`.

use super::{Reader, Table};
use crate::recipe::{Build, CommandLine, Hooks, Install, Place, RelativePath};

const MAKE_TIMEOUT_S: f64 = 600.0;
const HOOK_TIMEOUT_S: f64 = 60.0;

impl Reader<'_> {
    pub(super) fn install(&mut self, table: Table<'_>) -> Option<Install> {
        self.only(table, &["command", "inputs", "outputs", "runtime", "timeout_s", "place"]);
        let command = self.made_by(table, "a list such as [\"npm\", \"ci\"]");
        let inputs = self.paths(table, "inputs", "the files that the command reads");
        let outputs = self.outputs(table);
        let runtime = self.maybe_command(table, "runtime");
        let timeout = self.duration(table, "timeout_s", MAKE_TIMEOUT_S);
        let place = self.place(table);
        Some(Install {
            command: command?,
            inputs: inputs?,
            outputs: outputs?,
            runtime: runtime?,
            timeout: timeout?,
            place: place?,
        })
    }

    fn place(&mut self, table: Table<'_>) -> Option<Place> {
        let Some(value) = table.get("place") else { return Some(Place::Release) };
        match self.string(value, "install.place")?.as_str() {
            "release" => Some(Place::Release),
            "by-key" => Some(Place::ByKey),
            other => {
                let message = format!("{other:?} is not one of \"release\", \"by-key\"");
                let line = self.line_of(table, "place");
                self.problem(line, "install.place", message);
                None
            }
        }
    }

    pub(super) fn build(&mut self, table: Table<'_>) -> Option<Build> {
        self.only(table, &["command", "outputs", "runtime", "timeout_s"]);
        let command = self.made_by(table, "a list such as [\"npm\", \"run\", \"build\"]");
        let outputs = self.outputs(table);
        let runtime = self.maybe_command(table, "runtime");
        let timeout = self.duration(table, "timeout_s", MAKE_TIMEOUT_S);
        Some(Build { command: command?, outputs: outputs?, runtime: runtime?, timeout: timeout? })
    }

    pub(super) fn hooks(&mut self, table: Table<'_>) -> Option<Hooks> {
        self.only(table, &["before", "after", "timeout_s"]);
        if table.get("before").is_none() && table.get("after").is_none() {
            let message = "name a command, such as [\"./bin/migrate\"], or leave [hooks] out";
            self.missing(table, "before", message);
        }
        let before = self.maybe_command(table, "before");
        let after = self.maybe_command(table, "after");
        let timeout = self.duration(table, "timeout_s", HOOK_TIMEOUT_S);
        Some(Hooks { before: before?, after: after?, timeout: timeout? })
    }

    fn made_by(&mut self, table: Table<'_>, example: &str) -> Option<CommandLine> {
        if table.get("command").is_none() {
            self.missing(table, "command", example);
        }
        self.command(table, "command")
    }

    /// The outer `None` means that something is wrong with it.
    #[expect(clippy::option_option, reason = "absent and wrong are two things here")]
    fn maybe_command(&mut self, table: Table<'_>, key: &str) -> Option<Option<CommandLine>> {
        if table.get(key).is_none() {
            return Some(None);
        }
        self.command(table, key).map(Some)
    }

    fn outputs(&mut self, table: Table<'_>) -> Option<Vec<RelativePath>> {
        let outputs = self.paths(table, "outputs", "what the command makes")?;
        if outputs.iter().any(RelativePath::is_root) {
            let line = self.line_of(table, "outputs");
            self.problem(line, table.field("outputs"), "`.` would replace the release itself");
        }
        self.apart(table, "outputs", &outputs);
        Some(outputs)
    }

    /// What two commands make would overwrite one another; and an output that is also shared would be
    /// written by the app and linked by the agent.
    pub(super) fn disjoint(
        &mut self,
        top: Table<'_>,
        install: Option<&Install>,
        build: Option<&Build>,
        shared: &[RelativePath],
    ) {
        let installed = install.map_or(&[][..], |install| &install.outputs);
        let built = build.map_or(&[][..], |build| &build.outputs);
        let both = [
            ("build.outputs", "build", built, "install", installed),
            ("shared.dirs", "shared", shared, "install", installed),
            ("shared.dirs", "shared", shared, "build", built),
        ];
        for (field, own, paths, other, outputs) in both {
            let line = top.get(own).map_or(1, |value| self.line(value.span().start));
            for path in paths {
                if outputs.iter().any(|output| output.holds(path) || path.holds(output)) {
                    let message =
                        format!("{path} is also an output of [{other}]; name each path once");
                    self.problem(line, field, message);
                }
            }
        }
    }
}
