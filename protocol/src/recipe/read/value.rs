//! Reads one value of a recipe, and says what it accepts: where a problem is, and its words.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::recipe::{CommandLine, Problem, RelativePath, SocketName};

/// The longest duration that a recipe may ask for: whatever takes a day is no deploy.
const DURATION_S_MAX: f64 = 86_400.0;
/// The shortest: a probe every few milliseconds is a load test.
const DURATION_S_MIN: f64 = 0.05;

/// A table of the document, with its name and line for messages.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) name: &'a str,
    pub(super) line: usize,
    pub(super) entries: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.entries.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    pub(super) fn field(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// Reads a text, and keeps what is wrong with it.
pub(super) struct Reader<'t> {
    pub(super) text: &'t str,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset.min(self.text.len())]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
    }

    pub(super) fn problem(
        &mut self,
        line: usize,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.problems.push(Problem { line, field: field.into(), message: message.into() });
    }

    pub(super) fn missing(&mut self, table: Table<'_>, key: &str, message: &str) {
        let field = table.field(key);
        self.problem(table.line, field, format!("is missing: {message}"));
    }

    /// Refuses every key that is not in `accepted`: a misspelt setting must not be ignored.
    pub(super) fn only(&mut self, table: Table<'_>, accepted: &[&str]) {
        for (key, _) in table.entries {
            if !accepted.contains(&key.get_ref().as_ref()) {
                let line = self.line(key.span().start);
                let field = table.field(key.get_ref());
                self.problem(
                    line,
                    field,
                    format!("unknown key; accepted: {}", accepted.join(", ")),
                );
            }
        }
    }

    pub(super) fn line_of(&self, table: Table<'_>, key: &str) -> usize {
        table.get(key).map_or(table.line, |value| self.line(value.span().start))
    }

    pub(super) fn table<'a>(&mut self, parent: Table<'a>, key: &'a str) -> Option<Table<'a>> {
        let value = parent.get(key)?;
        let line = self.line(value.span().start);
        let Some(entries) = value.get_ref().as_table() else {
            self.problem(line, parent.field(key), format!("must be a table, [{key}]"));
            return None;
        };
        Some(Table { name: key, line, entries })
    }

    pub(super) fn string(&mut self, value: &Spanned<DeValue<'_>>, field: &str) -> Option<String> {
        let line = self.line(value.span().start);
        match value.get_ref().as_str() {
            Some(text) if text.contains('\0') => {
                self.problem(line, field, "must not hold a NUL character");
                None
            }
            Some(text) => Some(text.to_owned()),
            None => {
                let found = value.get_ref().type_str();
                self.problem(line, field, format!("must be a string, not a value of type {found}"));
                None
            }
        }
    }

    pub(super) fn strings(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        field: &str,
    ) -> Option<Vec<(usize, String)>> {
        let line = self.line(value.span().start);
        let Some(array) = value.get_ref().as_array() else {
            self.problem(line, field, "must be a list of strings");
            return None;
        };
        let mut strings = Vec::new();
        for item in array {
            strings.push((self.line(item.span().start), self.string(item, field)?));
        }
        Some(strings)
    }

    pub(super) fn command(&mut self, table: Table<'_>, key: &str) -> Option<CommandLine> {
        let value = table.get(key)?;
        let field = table.field(key);
        let line = self.line(value.span().start);
        if value.get_ref().is_str() {
            let message = "must be a list of a program and its arguments; no shell is involved, \
                           so \"a b\" is [\"a\", \"b\"]";
            self.problem(line, field, message);
            return None;
        }
        let mut words = self.strings(value, &field)?.into_iter().map(|(_, word)| word);
        match words.next() {
            Some(program) if !program.is_empty() => {
                Some(CommandLine { program, args: words.collect() })
            }
            _ => {
                self.problem(line, field, "must begin with a program");
                None
            }
        }
    }

    pub(super) fn path(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        field: &str,
    ) -> Option<RelativePath> {
        let text = self.string(value, field)?;
        match RelativePath::new(&text) {
            Ok(path) => Some(path),
            Err(reason) => {
                let line = self.line(value.span().start);
                self.problem(line, field, format!("{text:?} {reason}"));
                None
            }
        }
    }

    pub(super) fn paths(
        &mut self,
        table: Table<'_>,
        key: &str,
        what: &str,
    ) -> Option<Vec<RelativePath>> {
        let field = table.field(key);
        let Some(value) = table.get(key) else {
            self.missing(table, key, &format!("list {what}"));
            return None;
        };
        let line = self.line(value.span().start);
        let array = value.get_ref().as_array();
        let Some(array) = array.filter(|array| !array.is_empty()) else {
            self.problem(line, field, format!("must be a list of paths that is not empty: {what}"));
            return None;
        };
        let mut paths = Vec::new();
        for item in array {
            paths.push(self.path(item, &field)?);
        }
        Some(paths)
    }

    pub(super) fn integer(
        &mut self,
        table: Table<'_>,
        key: &str,
        default: i64,
        min: i64,
        max: i64,
    ) -> Option<i64> {
        let Some(value) = table.get(key) else { return Some(default) };
        let line = self.line(value.span().start);
        let number = value.get_ref().as_integer();
        let number =
            number.and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        match number {
            Some(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.problem(
                    line,
                    table.field(key),
                    format!("must be a whole number, {min} to {max}"),
                );
                None
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        table: Table<'_>,
        key: &str,
        default_s: f64,
    ) -> Option<Duration> {
        let seconds = match table.get(key) {
            None => Some(default_s),
            Some(value) => match value.get_ref() {
                DeValue::Integer(number) => {
                    i32::from_str_radix(number.as_str(), number.radix()).ok().map(f64::from)
                }
                DeValue::Float(number) => number.as_str().parse().ok(),
                _ => None,
            },
        };
        let range = DURATION_S_MIN..=DURATION_S_MAX;
        match seconds {
            Some(seconds) if range.contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
            _ => {
                let line = self.line_of(table, key);
                let message =
                    format!("must be a number of seconds, {DURATION_S_MIN} to {DURATION_S_MAX}");
                self.problem(line, table.field(key), message);
                None
            }
        }
    }
}

/// Splits `host:port`; `port` is the default where none is given.
pub(super) fn socket_name(text: &str, port: Option<u16>) -> Option<SocketName> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest.strip_prefix(':') {
                Some(digits) => (host, digits.parse().ok()),
                None if rest.is_empty() => (host, port),
                None => return None,
            }
        }
        None => match text.split_once(':') {
            Some((host, digits)) => (host, digits.parse().ok()),
            None => (text, port),
        },
    };
    let port = port.filter(|port| *port != 0)?;
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let valid = host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':')
        && host.chars().all(is_host);
    valid.then(|| SocketName { host: host.to_owned(), port })
}
