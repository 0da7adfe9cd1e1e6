//! What `towline-agent status` says, as text and as JSON; `main` prints it.
//!
//! ```text
//!   an agent runs ──► its socket ──┐ no answer
//!                                  ├──────────► the file that the last agent has left
//!   none runs ─────────────────────┘
//! ```
//!
//! The agent writes down what it learnt when something changes, and looks again only from time to
//! time. So the text never says how things are: it says what was found, and how long ago.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json as value};
use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Evidence, Failure, Health, Phase, Report};

use crate::release::state::{Contact, Status};
use crate::release::{DiskError, Store};

mod socket;

pub use socket::Socket;

/// The version of the JSON that `status --json` prints.
pub const SCHEMA_VERSION: u32 = 1;

/// What is known of an instance, by its agent or by what an agent has left.
#[derive(Debug, Deserialize)]
pub struct Seen {
    /// Does an agent run?
    pub agent_running: bool,
    /// Its pid, as far as that is known.
    pub agent_pid: Option<u32>,
    /// The coordinator that it is in contact with.
    pub coordinator: Option<Contact>,
    /// The last report.
    pub status: Status,
}

impl Seen {
    /// Asks the agent that runs, or else reads what the last one has written; `None` where none ever did.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read.
    pub async fn look(store: &Store) -> Result<Option<Self>, DiskError> {
        if let Ok(seen) = socket::ask(store).await {
            return Ok(Some(seen));
        }
        let Some(status) = store.read_status()? else { return Ok(None) };
        let agent_running = store.is_locked();
        let agent_pid = store.holder().filter(|_| agent_running);
        // What cannot be read is not told; the rest is.
        let coordinator = store.read_contact().ok().flatten();
        Ok(Some(Self { agent_running, agent_pid, coordinator, status }))
    }

    /// Returns it as one JSON object. `now_s`: seconds since 1970.
    #[must_use]
    pub fn json(&self, now_s: u64) -> Value {
        json(&self.status, self.coordinator.as_ref(), self.agent_running, self.agent_pid, now_s)
    }

    /// Returns it as a person reads it.
    #[must_use]
    pub fn text(&self, now_s: u64) -> String {
        let contact = self.coordinator.as_ref();
        text(&self.status, contact, self.agent_running, self.agent_pid, now_s)
    }
}

fn json(
    status: &Status,
    contact: Option<&Contact>,
    is_running: bool,
    holder: Option<u32>,
    now_s: u64,
) -> Value {
    value!({
        "schema_version": SCHEMA_VERSION,
        "agent_running": is_running,
        "agent_pid": holder.filter(|_| is_running),
        "age_s": now_s.saturating_sub(status.written_s),
        "coordinator": contact,
        "status": status,
    })
}

/// The time, in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a status tells its age, wherever it is told")]
pub(crate) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the status as a person reads it. `holder`: the pid of whoever holds the
/// lock, where it is known; `now_s`: seconds since 1970.
fn text(
    status: &Status,
    contact: Option<&Contact>,
    is_running: bool,
    holder: Option<u32>,
    now_s: u64,
) -> String {
    let report = &status.report;
    let age_s = now_s.saturating_sub(status.written_s);
    let mut lines = vec![format!("{} in group {}", report.instance, report.group)];
    lines.push(match &report.serving {
        Some(revision) => {
            let (health, evidence) = (health(report.health), evidence(report.evidence));
            let short = revision.short();
            format!("serves   {short}, {health}{evidence}; last change {age_s} s ago ({revision})")
        }
        None if report.adopted => {
            let health = health(report.health);
            format!("serves   what was here before Towline, {health}; last change {age_s} s ago")
        }
        None => format!("serves   nothing of Towline's; last change {age_s} s ago"),
    });
    lines.push(match (&report.target, report.order) {
        (Some(target), Some(order)) => format!("target   {}, {order} ({target})", target.short()),
        _ => "target   none yet".to_owned(),
    });
    if let Some(alike) = &report.alike {
        lines.push(format!("         {} has the same subtree and recipe", alike.short()));
    }
    lines.push(format!("phase    {}", phase(report)));
    if let Some(reason) = &report.degraded {
        lines.push(format!("degraded {reason}"));
    }
    if let Some(contact) = contact {
        lines.push(format!("source   {}", self::contact(contact, now_s)));
    }
    if let Some(reason) = &report.objection {
        lines.push(format!("source   {reason}"));
    }
    if let Some(failure) = &report.failure {
        lines.push(format!("failure  {}", self::failure(failure, report.degraded.as_deref())));
    }
    if let Some(next) = next(report, is_running) {
        lines.push(format!("next     {next}"));
    }
    let former = status.pid;
    lines.push(match holder {
        _ if !is_running => format!("agent    NOT RUNNING; this is what it knew {age_s} s ago"),
        Some(pid) if pid != former => format!(
            "agent    pid {pid} runs and could not tell yet; this is what pid {former} knew {age_s} s \
             ago: see the log, and the space that is left"
        ),
        _ => format!("agent    pid {former} runs"),
    });
    lines.join("\n")
}

/// A detail that `degraded` has told is not told twice.
fn failure(failure: &Failure, degraded: Option<&str>) -> String {
    let (revision, attempt) = (failure.revision.short(), failure.attempt);
    if degraded.is_some_and(|reason| reason.contains(&failure.detail)) {
        return format!("{revision}, attempt {attempt}: as above");
    }
    format!("{revision}, attempt {attempt}: {}", failure.detail)
}

/// Returns what there is to do, where something is not as it ought to be.
fn next(report: &Report, is_running: bool) -> Option<&'static str> {
    const RELEASE: &str = "correct it and release the new commit; the same one is tried again when \
                           the target's generation is raised";
    if !is_running {
        return Some("start the agent with `towline-agent run`; the app does not need it to serve");
    }
    if report.objection.is_some() {
        return Some("write a target that can be followed; until then what serves is kept");
    }
    match report.phase {
        Phase::Waiting => return Some("tried again by itself, with growing waits"),
        Phase::Idle => {}
        _ => return None,
    }
    match report.failure.as_ref().map(|failure| failure.cause) {
        Some(Cause::Refused) => Some(RELEASE),
        Some(Cause::Fetch | Cause::Disk | Cause::Install | Cause::Restore) => {
            Some("tried again by itself, with growing waits")
        }
        Some(_) => Some(RELEASE),
        None if report.degraded.is_some() => Some(RELEASE),
        None if report.health == Health::Unhealthy => {
            Some("see the app's own log; nothing was released, so nothing is put back")
        }
        None => None,
    }
}

/// Which coordinator it is, and when it was last heard.
fn contact(contact: &Contact, now_s: u64) -> String {
    let address = contact.address.trim_end_matches('/');
    match contact.heard_s {
        Some(heard_s) => format!("{address}, heard {} s ago", now_s.saturating_sub(heard_s)),
        None => format!("{address}, not heard yet"),
    }
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
        Some(Evidence::Served) => "; its own answers named the revision",
        Some(Evidence::Started) => "; its workers ran from the release",
        Some(Evidence::Replaced) => "; its workers were new",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(change: impl FnOnce(&mut Report)) -> Status {
        let golden = include_str!("../../protocol/golden/report-1.json");
        let mut report: Report = serde_json::from_str(golden).unwrap();
        change(&mut report);
        Status { report, written_s: 100, pid: 7 }
    }

    #[test]
    fn what_serves_is_told_with_its_age() {
        let status = status(|report| report.failure = None);
        let said = text(&status, None, true, None, 204);
        let short = status.report.serving.as_ref().unwrap().short();
        let line = format!("serves   {short}, healthy; its own answers named the revision; last");
        assert!(said.contains(&line) && said.contains("last change 104 s ago"), "{said}");
        let said = text(&status, None, false, None, 204);
        assert!(said.contains("agent    NOT RUNNING") && said.contains("next     start the agent"));
        let said = text(&status, None, true, Some(8), 204);
        assert!(said.contains("pid 8 runs and could not tell yet"), "{said}");
    }

    #[test]
    fn the_coordinator_is_told_with_when_it_was_heard() {
        let status = status(|_| {});
        let mut contact =
            Contact { address: "https://a/".to_owned(), heard_s: Some(200), problem: None };
        let said = text(&status, Some(&contact), true, None, 204);
        assert!(said.contains("source   https://a, heard 4 s ago"), "{said}");
        contact.heard_s = None;
        let said = text(&status, Some(&contact), true, None, 204);
        assert!(said.contains("source   https://a, not heard yet"), "{said}");
    }

    #[test]
    fn a_detail_is_told_once_and_followed_by_what_to_do() {
        let status = status(|report| {
            let detail = report.failure.as_ref().unwrap().detail.clone();
            report.degraded = Some(format!("abcdef0 was rejected: {detail}"));
        });
        let detail = &status.report.failure.as_ref().unwrap().detail;
        let said = text(&status, None, true, None, 204);
        assert_eq!(said.matches(detail.as_str()).count(), 1, "{said}");
        assert!(said.contains("next     correct it"), "{said}");
    }
}
