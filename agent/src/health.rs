//! The health probe: one try of a health check, and what it says.
//!
//! A pass says that the app answered, and with a recipe that names a revision, that the answer named
//! the one that was made live. Every try is a connection of its own: one that was kept open could
//! still lead to a worker of the release before.
//!
//! Invariants
//! - A try ends within the recipe's timeout (a command's processes within the grace after it),
//!   whatever the app sends or holds back, and reads 64 KiB at most.
//! - No proxy, no redirect, no TLS: what is probed is this host's app and nothing else.
//! - Silence, garbage and a missing revision are failures.
//!
//! How tries add up is for [`window`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio_util::sync::CancellationToken;
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Check, CommandLine, Health, HttpAddress, RevisionAt, SocketName};
use towline_protocol::report::Cause;

use crate::process::{self, Environment, Job, Remains, RunAs};
use crate::shown::short_line;

pub mod window;

/// The most bytes of an answer that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The fewest digits by which an answer may name a revision; git's own default.
const ABBREVIATION_MIN: usize = 7;

/// The most characters of a detail's varying part.
const SHOWN_MAX: usize = 200;

/// Why a probe failed, or a window of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// [`Cause::Unhealthy`] or [`Cause::WrongRevision`].
    pub cause: Cause,
    /// One line for people: what was tried, and what was found.
    pub detail: String,
}

/// What one probe says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The check passed.
    Pass {
        /// Did the answer name the expected revision?
        served: bool,
    },
    /// It did not.
    Fail(Failure),
}

impl Verdict {
    fn unhealthy(tried: &str, found: &str) -> Verdict {
        Verdict::fail(Cause::Unhealthy, tried, found)
    }

    fn fail(cause: Cause, tried: &str, found: &str) -> Verdict {
        let detail = format!("{}: {}", short_line(tried, SHOWN_MAX), short_line(found, SHOWN_MAX));
        Verdict::Fail(Failure { cause, detail })
    }
}

/// Why a probe could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("could not set up the health probe's http client")]
pub struct SetUpError {
    #[from]
    source: SetUpCause,
}

/// What was wrong with the client.
#[derive(Debug, thiserror::Error)]
enum SetUpCause {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Client(#[from] reqwest::Error),
}

/// Tries a recipe's health check.
#[derive(Debug, Clone)]
pub struct Probe {
    check: Check,
    revision: Option<RevisionAt>,
    timeout: Duration,
    run_as: RunAs,
    cwd: PathBuf,
    client: reqwest::Client,
}

impl Probe {
    /// Sets a probe up.
    ///
    /// - `run_as`, `cwd`: for a check that is a command.
    ///
    /// # Errors
    ///
    /// The http client could not be made.
    pub fn new(health: &Health, run_as: &RunAs, cwd: &Path) -> Result<Probe, SetUpError> {
        Ok(Probe {
            check: health.check.clone(),
            revision: health.revision.clone(),
            timeout: health.timeout,
            run_as: run_as.clone(),
            cwd: cwd.to_owned(),
            client: client()?,
        })
    }

    /// Tries the check once. Dropping the future ends a command.
    ///
    /// - `expected`: the revision that was made live, where it is known.
    pub async fn once(&self, expected: Option<&Revision>) -> Verdict {
        match &self.check {
            Check::Http(address) => {
                let tried = format!("GET {address}");
                match tokio::time::timeout(self.timeout, self.get(address)).await {
                    Ok(Ok(answer)) => judge(&tried, &answer, self.revision.as_ref(), expected),
                    // The address stands in `tried` already.
                    Ok(Err(error)) => Verdict::unhealthy(&tried, &chain(&error.without_url())),
                    Err(_) => Verdict::unhealthy(&tried, &self.no_answer()),
                }
            }
            Check::Tcp(socket) => self.connect(socket).await,
            Check::Command(command) => self.command(command).await,
        }
    }

    /// Does the app's answer name this revision, well or not?
    pub async fn is_named(&self, expected: &Revision) -> bool {
        let (Check::Http(address), Some(place)) = (&self.check, &self.revision) else {
            return false;
        };
        let answer = tokio::time::timeout(self.timeout, self.get(address)).await;
        let Ok(Ok(answer)) = answer else { return false };
        named(&answer, place).is_some_and(|named| names(&named, expected))
    }

    async fn get(&self, address: &HttpAddress) -> Result<Answer, reqwest::Error> {
        let mut response = self.client.get(address.to_string()).send().await?;
        let mut body = Vec::new();
        while body.len() <= BODY_BYTES_MAX
            && let Some(chunk) = response.chunk().await?
        {
            body.extend_from_slice(&chunk);
        }
        let status = response.status().as_u16();
        Ok(Answer { status, headers: response.headers().clone(), body })
    }

    async fn connect(&self, socket: &SocketName) -> Verdict {
        let tried = format!("connect to {socket}");
        let connect = tokio::net::TcpStream::connect((socket.host.as_str(), socket.port));
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(Ok(_)) => Verdict::Pass { served: false },
            Ok(Err(error)) => Verdict::unhealthy(&tried, &error.to_string()),
            Err(_) => Verdict::unhealthy(&tried, &self.no_answer()),
        }
    }

    async fn command(&self, command: &CommandLine) -> Verdict {
        let job = Job {
            label: "health",
            command,
            cwd: &self.cwd,
            run_as: &self.run_as,
            extra: Environment::new(),
            deadline: self.timeout,
            capture: false,
            remains: Remains::End,
        };
        match process::run(&job, &CancellationToken::new()).await {
            Ok(_) => Verdict::Pass { served: false },
            Err(error) => {
                // The last line is where a program says what was wrong.
                let said = error.log().and_then(|log| log.trim().lines().last());
                let said = said.map(|line| format!(" ({line})")).unwrap_or_default();
                Verdict::unhealthy(&format!("run `{command}`"), &format!("{}{said}", chain(&error)))
            }
        }
    }

    fn no_answer(&self) -> String {
        format!("no answer within {} s", self.timeout.as_secs_f64())
    }
}

/// What the app answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    /// The beginning of the body: one byte more than [`BODY_BYTES_MAX`], or more, is too long.
    body: Vec<u8>,
}

/// Makes a client that connects to where it is told, once per request.
///
/// reqwest wants a TLS set-up even for plain http; this one trusts nobody.
fn client() -> Result<reqwest::Client, SetUpCause> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .pool_max_idle_per_host(0)
        .user_agent("towline-agent")
        .build()?)
}

/// Judges an answer.
fn judge(
    tried: &str,
    answer: &Answer,
    revision: Option<&RevisionAt>,
    expected: Option<&Revision>,
) -> Verdict {
    if !(200..300).contains(&answer.status) {
        return Verdict::unhealthy(tried, &format!("status {}", answer.status));
    }
    let (Some(place), Some(expected)) = (revision, expected) else {
        return Verdict::Pass { served: false };
    };
    if matches!(place, RevisionAt::Json(_)) && answer.body.len() > BODY_BYTES_MAX {
        let found = format!("the answer is longer than {BODY_BYTES_MAX} bytes");
        return Verdict::unhealthy(tried, &found);
    }
    match named(answer, place) {
        Some(named) if names(&named, expected) => Verdict::Pass { served: true },
        Some(named) => {
            let found = format!("serves revision {named}, not {expected}");
            Verdict::fail(Cause::WrongRevision, tried, &found)
        }
        None => {
            let place = match place {
                RevisionAt::Header(name) => format!("header {name}"),
                RevisionAt::Json(pointer) => format!("json {pointer}"),
                RevisionAt::Body => "its body".to_owned(),
            };
            // Perhaps it does not know yet: a front that says that the app is starting.
            Verdict::unhealthy(tried, &format!("names no revision at {place}; expected {expected}"))
        }
    }
}

/// Returns the revision that an answer names.
fn named(answer: &Answer, place: &RevisionAt) -> Option<String> {
    let named = match place {
        RevisionAt::Header(name) => answer.headers.get(name)?.to_str().ok()?.to_owned(),
        RevisionAt::Json(pointer) => {
            let body: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
            body.pointer(pointer)?.as_str()?.to_owned()
        }
        // A page that is served in its place is no revision, and is not shown whole.
        RevisionAt::Body => {
            let text = std::str::from_utf8(&answer.body).ok()?.trim();
            let is_id = text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_id.then(|| text.to_owned())?
        }
    };
    Some(named.trim().to_owned()).filter(|named| !named.is_empty())
}

/// Does `text` name `revision`, in full or by its first digits?
fn names(text: &str, revision: &Revision) -> bool {
    text.len() >= ABBREVIATION_MIN
        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        && revision.as_str().starts_with(&text.to_ascii_lowercase())
}

/// Returns an error with all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        "4f2c91e0".repeat(5).parse().unwrap()
    }

    fn answer(status: u16, header: Option<&'static str>, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("x-revision", reqwest::header::HeaderValue::from_static(value));
        }
        Answer { status, headers, body: body.as_bytes().to_vec() }
    }

    /// Every row is one rule; the name is what a failure prints.
    #[test]
    fn an_answer_is_judged_by_status_and_revision() {
        let json = Some(RevisionAt::Json("/app/revision".to_owned()));
        let header = Some(RevisionAt::Header("x-revision".to_owned()));
        let served = Ok(true);
        let full = format!(r#"{{"app":{{"revision":"{}"}}}}"#, revision());
        let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(BODY_BYTES_MAX));
        let text = |text: &str| format!(r#"{{"app":{{"revision":{text}}}}}"#);
        let wrong = Err((Cause::WrongRevision, "serves revision 4f2c91f, not 4f2c91e0"));
        let none = Err((Cause::Unhealthy, "names no revision at json /app/revision"));
        let unhealthy = |part| Err((Cause::Unhealthy, part));
        let body = Some(RevisionAt::Body);
        let line = format!("{}\n", revision());
        let page = Err((Cause::Unhealthy, "names no revision at its body"));
        let cases = [
            ("the whole body", body.clone(), answer(200, None, &line), Ok(true)),
            ("a page in its place", body.clone(), answer(200, None, "<html>"), page),
            ("another's body", body, answer(200, None, "4f2c91f"), wrong),
            ("a status is enough", None, answer(204, None, ""), Ok(false)),
            ("too high a status", None, answer(300, None, ""), unhealthy("status 300")),
            ("not well", None, answer(503, None, &full), unhealthy("GET u: status 503")),
            (
                "not well, though it names it",
                json.clone(),
                answer(500, None, &full),
                unhealthy("500"),
            ),
            ("in full", json.clone(), answer(200, None, &full), served),
            ("seven digits", json.clone(), answer(200, None, &text(r#""4f2c91e""#)), served),
            ("upper case", json.clone(), answer(200, None, &text(r#"" 4F2C91E0\n""#)), served),
            ("another", json.clone(), answer(200, None, &text(r#""4f2c91f""#)), wrong),
            (
                "six digits are too few",
                json.clone(),
                answer(200, None, &text(r#""4f2c91""#)),
                Err((Cause::WrongRevision, "serves revision 4f2c91, not")),
            ),
            (
                "more than the whole",
                json.clone(),
                answer(200, None, &text(&format!(r#""{}0""#, revision()))),
                Err((Cause::WrongRevision, "serves revision")),
            ),
            ("a number is no name", json.clone(), answer(200, None, &text("4")), none),
            ("an empty name", json.clone(), answer(200, None, &text(r#""""#)), none),
            ("elsewhere", json.clone(), answer(200, None, r#"{"revision":"4f2c91e"}"#), none),
            ("no json", json.clone(), answer(200, None, "ok"), none),
            ("too long", json, answer(200, None, &long), unhealthy("longer than 65536 bytes")),
            ("a header", header.clone(), answer(200, Some("4f2c91e"), ""), served),
            (
                "no header",
                header,
                answer(200, None, &full),
                Err((Cause::Unhealthy, "names no revision at header x-revision")),
            ),
        ];
        for (rule, place, answer, expected) in cases {
            match (judge("GET u", &answer, place.as_ref(), Some(&revision())), expected) {
                (Verdict::Pass { served }, Ok(expected)) => assert_eq!(served, expected, "{rule}"),
                (Verdict::Fail(failure), Err((cause, part))) => {
                    assert_eq!(failure.cause, cause, "{rule}");
                    assert!(failure.detail.contains(part), "{rule}: {}", failure.detail);
                }
                (verdict, expected) => panic!("{rule}: {verdict:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_detail_is_one_short_line() {
        let answer = answer(200, None, "{\"r\":\"\\u001b[31mred\\n\\nfoo\"}");
        let place = RevisionAt::Json("/r".to_owned());
        let verdict = judge("GET u", &answer, Some(&place), Some(&revision()));
        let Verdict::Fail(failure) = verdict else { panic!("{verdict:?}") };
        assert!(failure.detail.starts_with("GET u: serves revision red foo, not"));
        let Verdict::Fail(long) = Verdict::unhealthy("GET u", &"x".repeat(9_999)) else { panic!() };
        assert!(long.detail.len() < 300);
    }
}
