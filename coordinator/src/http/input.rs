//! What a request says, checked before anybody acts on it: ids in its path, its query, its body.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use towline_protocol::api::Code;

use super::errors::Refused;
use super::limits::{BODY_TIMEOUT, MESSAGE_BYTES_MAX, read};
use crate::views::told;

/// The parameters of a path, as they were written; nothing is used before it is parsed.
#[derive(Debug)]
pub(crate) struct At(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for At {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = Path::<BTreeMap<String, String>>::from_request_parts(parts, state).await;
        let wrong = |_| Refused::new(Code::Invalid, "the path is not UTF-8");
        Ok(Self(path.map_err(wrong)?.0))
    }
}

impl At {
    /// Parses one of them.
    pub(crate) fn get<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Refused> {
        let text = self.0.get(name).map_or("", String::as_str);
        let wrong = |error: T::Err| Refused::of_field(name, told::line(&error.to_string()));
        text.parse().map_err(wrong)
    }
}

/// A request's query: whatever is not asked for by name is refused.
#[derive(Debug)]
pub(crate) struct Asked(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        Self::read(&parts.uri)
    }
}

impl Asked {
    fn read(uri: &Uri) -> Result<Self, Refused> {
        let wrong = |_| Refused::new(Code::Invalid, "the query is not what is due: name=value");
        Ok(Self(Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(wrong)?.0))
    }

    /// Takes a parameter that may be missing.
    pub(crate) fn take<T: FromStr<Err: Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Refused> {
        self.take_by(name, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// Takes a parameter that may be missing, and reads it like this.
    pub(crate) fn take_by<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Refused> {
        let Some(index) = self.0.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, text) = self.0.remove(index);
        if self.0.iter().any(|(given, _)| given == name) {
            return Err(Refused::of_field(name, format!("{name} is given twice")));
        }
        parse(&text).map(Some).map_err(|error| Refused::of_field(name, told::line(&error)))
    }

    /// Takes a whole number that may be missing.
    pub(crate) fn take_number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refused> {
        self.take_by(name, |text| {
            text.parse().map_err(|_| format!("{name} is a whole number, not {text:?}"))
        })
    }

    /// Takes a parameter that must be there.
    pub(crate) fn need<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, Refused> {
        self.take(name)?.ok_or_else(|| Refused::of_field(name, format!("{name} is missing")))
    }

    /// Makes sure that nothing is left.
    pub(crate) fn end(self) -> Result<(), Refused> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name = told::line(name);
                Err(Refused::of_field(&name, format!("{name} is not known here")))
            }
        }
    }
}

/// A message of an agent.
#[derive(Debug)]
pub(crate) struct Told<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Told<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        Ok(Self(parse(&body(request, MESSAGE_BYTES_MAX).await?)?))
    }
}

/// Reads a body that holds JSON, or nothing.
pub(crate) async fn body(request: Request, bytes_max: usize) -> Result<Bytes, Refused> {
    let (parts, body) = request.into_parts();
    if length(&parts.headers).is_some_and(|length| length > bytes_max as u64) {
        let message = format!("the request has more than {bytes_max} bytes");
        return Err(Refused::new(Code::TooLarge, message));
    }
    let bytes = read(body, bytes_max, BODY_TIMEOUT).await?;
    if !bytes.is_empty() && !is_json(&parts.headers) {
        let message = "the request's body must be JSON, and say so";
        let refused = Refused::of_field("content-type", message);
        return Err(refused.hint("content-type: application/json"));
    }
    Ok(bytes)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads JSON; no body at all is an empty object.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refused> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    axum::Json::<T>::from_bytes(bytes).map(|json| json.0).map_err(|error| {
        let text = error.body_text();
        // What comes before the first colon is for programmers of this coordinator.
        let said = text.split_once(": ").map_or(text.as_str(), |(_, said)| said);
        let (field, said) = blamed(said);
        let said = &plain(said);
        let message = format!("the request is not what is due: {}", told::line(said));
        let mut refused = Refused::new(Code::Invalid, message);
        refused.0.field = field;
        refused
    })
}

/// Says what was expected in words for whoever wrote the JSON, not the Rust that reads it.
fn plain(said: &str) -> String {
    let Some((before, expected)) = said.split_once(", expected ") else { return said.to_owned() };
    let (expected, place) = expected.split_once(" at line ").unwrap_or((expected, ""));
    let is_integer = matches!(expected, "u8" | "u16" | "u32" | "u64" | "usize");
    let expected = match expected {
        _ if is_integer => "a whole number",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
    };
    let place = if place.is_empty() { String::new() } else { format!(" at line {place}") };
    format!("{before}, expected {expected}{place}")
}

/// Takes the field that is to blame out of what the reader of JSON said: `bake_s: unknown field …`.
fn blamed(said: &str) -> (Option<String>, &str) {
    let is_path = |path: &str| {
        !path.is_empty()
            && path.len() <= 200
            && path.chars().all(|c| c.is_ascii_alphanumeric() || "_.[]-?".contains(c))
    };
    let (path, said) = match said.split_once(": ") {
        Some((path, rest)) if is_path(path) => (Some(path), rest),
        _ => (None, said),
    };
    let whats = ["unknown field `", "missing field `", "duplicate field `"];
    let named = whats.iter().find_map(|what| {
        let (name, _) = said.strip_prefix(what)?.split_once('`')?;
        is_path(name).then_some(name)
    });
    let field = match (path, named) {
        (Some(path), Some(name)) if path != name && !path.ends_with(&format!(".{name}")) => {
            Some(format!("{path}.{name}"))
        }
        (Some(path), _) => Some(path.to_owned()),
        (None, named) => named.map(str::to_owned),
    };
    (field, said)
}

#[cfg(test)]
mod tests {
    use towline_protocol::api::ReleaseRequest;
    use towline_protocol::policy::Policy;

    use super::*;

    fn wrong<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> Refused {
        parse::<T>(&Bytes::copy_from_slice(text.as_bytes())).unwrap_err()
    }

    #[test]
    fn what_is_wrong_with_a_body_is_named_with_its_place() {
        let revision = "4f2c91e0".repeat(5);
        let with = |rest: &str| format!("{{\"revision\":{revision:?},{rest}}}");
        let cases = [
            ("a misspelt field", with("\"onyl\":\"i-1\""), "onyl", "unknown field `onyl`"),
            ("a branch", "{\"revision\":\"main\"}".to_owned(), "revision", "not a full commit id"),
            ("no selector", with("\"only\":\"a b\""), "only", "a selector is a list"),
            ("a slash", with("\"without\":[\"../x\"]"), "without[0]", "is not valid"),
            ("nothing", String::new(), "revision", "missing field `revision`"),
            ("no JSON", "{\"revision\"".to_owned(), "", "line 1 column"),
            ("two documents", format!("{}1", with("\"only\":\"i-1\"")), "", "trailing"),
        ];
        for (rule, text, field, said) in cases {
            let refused = wrong::<ReleaseRequest>(&text);
            assert_eq!(refused.0.code, Code::Invalid, "{rule}");
            assert!(refused.0.message.contains(said), "{rule}: {}", refused.0.message);
            if !field.is_empty() {
                assert_eq!(refused.0.field.as_deref(), Some(field), "{rule}");
            }
        }
        let deep = format!("{{\"later\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
        let deep = wrong::<towline_protocol::poll::Question>(&deep);
        assert!(deep.0.message.contains("recursion limit"), "{}", deep.0.message);
        let nested = wrong::<Policy>("{\"bake_s\":{\"cannery\":1}}");
        assert_eq!(nested.0.field.as_deref(), Some("bake_s.cannery"), "{}", nested.0.message);
        for (text, said) in [
            ("null", "invalid type: null, expected an object"),
            ("{\"canary\":-1}", "invalid value: integer `-1`, expected a whole number"),
        ] {
            let message = wrong::<Policy>(text).0.message;
            assert!(message.contains(said), "{message}");
        }
        let share = wrong::<Policy>("{\"batches\":[\"10%\",\n\"101%\"]}");
        assert_eq!(share.0.field.as_deref(), Some("batches[1]"), "{}", share.0.message);
        assert!(share.0.message.contains("line 2 column"), "{}", share.0.message);
    }

    #[test]
    fn what_is_repeated_of_a_body_is_cut_and_cleaned() {
        let text = format!("{{\"{}\\u001b[2J\":1}}", "x".repeat(5_000));
        let message = wrong::<ReleaseRequest>(&text).0.message;
        assert!(message.len() < 600 && !message.contains('\u{1b}'), "{message:?}");
    }

    #[test]
    fn a_query_is_taken_by_name_and_nothing_is_left() {
        let read = |text: &str| Asked::read(&text.parse::<Uri>().unwrap()).unwrap();
        let mut asked = read("/x?limit=5&after=web%2Fi-1");
        assert_eq!(asked.take::<usize>("limit").unwrap(), Some(5));
        assert_eq!(asked.need::<String>("after").unwrap(), "web/i-1");
        assert_eq!(asked.take::<usize>("limit").unwrap(), None);
        asked.end().unwrap();
        let field = |refused: Refused| refused.0.field.unwrap();
        assert_eq!(field(read("/x?limt=5").end().unwrap_err()), "limt");
        let refused = read("/x?limit=abc").take_number::<u64>("limit").unwrap_err();
        assert_eq!(refused.0.message, "limit is a whole number, not \"abc\"");
        assert_eq!(field(read("/x?limit=-1").take_number::<usize>("limit").unwrap_err()), "limit");
        assert_eq!(field(read("/x?limit=1&limit=2").take::<usize>("limit").unwrap_err()), "limit");
        assert_eq!(field(read("/x").need::<usize>("limit").unwrap_err()), "limit");
    }
}
