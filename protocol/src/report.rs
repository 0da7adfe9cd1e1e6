//! The report: what an instance tells of itself, how far a deploy has come, and what went wrong.
//!
//! A report states what the agent saw, never what it hopes: `serving` names the revision that the
//! live release holds, `health` is unknown until a probe has said otherwise. Fields that a reader
//! does not know are ignored.

use serde::{Deserialize, Serialize};

use crate::ids::{Group, Instance, Order, Revision};

/// The version of the document that this code writes.
pub const VERSION: u32 = 1;

/// What an instance tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this document; see [`VERSION`].
    pub version: u32,
    /// The instance that reports.
    pub instance: Instance,
    /// The group that it belongs to.
    pub group: Group,
    /// The highest target that it has accepted.
    pub order: Option<Order>,
    /// The revision of that target.
    pub target: Option<Revision>,
    /// Where it is in the deploy.
    pub phase: Phase,
    /// The revision of the live release.
    pub serving: Option<Revision>,
    /// The target's revision, where the live release has the same subtree and recipe and so stands
    /// in for it.
    pub alike: Option<Revision>,
    /// How well it is shown that `serving` is what runs.
    pub evidence: Option<Evidence>,
    /// What the probes add up to.
    pub health: Health,
    /// Why the live release is not the target's, where it is not and ought to be.
    pub degraded: Option<String>,
    /// Why the newest word of the source is not followed, where it is not.
    pub objection: Option<String>,
    /// What went wrong last, until something goes right.
    pub failure: Option<Failure>,
    /// Is what serves proven here, or adopted: has it served through its whole health window?
    #[serde(default)]
    pub proven: bool,
    /// Was what serves there before the agent was: a release that is not one of its own?
    #[serde(default)]
    pub adopted: bool,
    /// Was nothing of the app proven here since launch?
    #[serde(default)]
    pub newborn: bool,
    /// Has the target at `order` failed here after its swap?
    #[serde(default)]
    pub rejected: bool,
    /// The target's restart counter that is satisfied.
    #[serde(default)]
    pub restart: u64,
    /// May a permit be in use: is leave being asked for, or has a swap begun whose outcome is open?
    #[serde(default)]
    pub uses_permit: bool,
    /// The newest question for leave whose answer was not used and never will be; see `poll`.
    #[serde(default)]
    pub renounced: u64,
    /// Is what the target asks for complete on disk, so that nothing but leave is missing?
    #[serde(default)]
    pub prepared: bool,
    /// The orders to this instance that were carried out.
    #[serde(default, skip_serializing_if = "Orders::is_none")]
    pub orders: Orders,
}

/// Orders to one instance, each counted; a higher number than was carried out is an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Restart the app.
    #[serde(default)]
    pub restart: u64,
    /// Try again what was rejected or refused, or waits.
    #[serde(default)]
    pub retry: u64,
}

impl Orders {
    /// Was nothing ever ordered?
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Orders::default()
    }
}

/// Where an instance is in a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Finds out what is on disk and what it should run.
    Starting,
    /// Nothing to do.
    Idle,
    /// Fetches, checks out and installs; nothing live is touched.
    Preparing,
    /// Preparing failed and is tried again later.
    Waiting,
    /// Prepared; has asked for leave to swap.
    Asking,
    /// Replaces `current` and reloads or starts the cluster manager.
    Activating,
    /// Waits for proof that the workers were replaced.
    Proving,
    /// Probes through the health window.
    Probing,
    /// Makes the release live again that served before.
    Restoring,
}

/// What an instance's probes add up to; silence is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// The recipe's passes in a row.
    Healthy,
    /// As many failures in a row, or nothing runs.
    Unhealthy,
    /// Not probed since the last change.
    Unknown,
}

/// How well it is shown that the new revision runs; a later one is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// All workers are new; nothing more.
    Replaced,
    /// Each worker was born after the signal and runs from the new release.
    Started,
    /// The app's own answer names the revision.
    Served,
}

impl Phase {
    /// Returns the word for it in reports and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Idle => "idle",
            Phase::Preparing => "preparing",
            Phase::Waiting => "waiting",
            Phase::Asking => "asking",
            Phase::Activating => "activating",
            Phase::Proving => "proving",
            Phase::Probing => "probing",
            Phase::Restoring => "restoring",
        }
    }
}

impl Health {
    /// Returns the word for it in reports and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Unknown => "unknown",
        }
    }
}

impl Evidence {
    /// Returns the word for it in reports and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Evidence::Replaced => "replaced",
            Evidence::Started => "started",
            Evidence::Served => "served",
        }
    }
}

/// What went wrong, with the revision that it went wrong with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The target that it was tried for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The revision that was tried.
    pub revision: Revision,
    /// What kind of failure it was.
    pub cause: Cause,
    /// One line for people: what was attempted, on what, and what was found.
    pub detail: String,
    /// How often it has been tried.
    pub attempt: u32,
}

/// The kinds of failure, by the step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The origin could not be reached, or gave no such commit.
    Fetch,
    /// The tree or the recipe of the revision is refused: it can never be deployed as it is.
    Refused,
    /// Writing the release failed: no space, a limit, a broken disk.
    Disk,
    /// The install command failed or took too long.
    Install,
    /// This host kept the swap from beginning: it is open which process is the manager, or `current`
    /// is no link that could be replaced.
    Host,
    /// `current` could not be replaced, or the manager could not be told.
    Activate,
    /// The workers were not replaced by ones of the new release.
    Prove,
    /// The health check failed, or was not passed in time.
    Unhealthy,
    /// The app answered with another revision than the one that was made live.
    WrongRevision,
    /// The release that served before could not be made live again.
    Restore,
}

impl Cause {
    /// Did it fail before anything live was touched? Such a failure rejects nothing.
    #[must_use]
    pub fn is_before_swap(self) -> bool {
        matches!(self, Cause::Fetch | Cause::Refused | Cause::Disk | Cause::Install | Cause::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_report_keeps_parsing() {
        let golden = include_str!("../golden/report-1.json");
        let report: Report = serde_json::from_str(golden).unwrap();
        assert_eq!(report.phase, Phase::Idle);
        assert_eq!(report.health, Health::Healthy);
        assert_eq!(report.evidence, Some(Evidence::Served));
        let failure = report.failure.clone().unwrap();
        assert_eq!((failure.cause, failure.attempt), (Cause::Unhealthy, 1));
        assert!(!report.proven && report.orders.is_none(), "what an older agent does not say");
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again, report, "writing and reading agree");
    }

    #[test]
    fn the_words_are_those_of_the_wire() {
        let phases = [
            Phase::Starting,
            Phase::Idle,
            Phase::Preparing,
            Phase::Waiting,
            Phase::Asking,
            Phase::Activating,
            Phase::Proving,
            Phase::Probing,
            Phase::Restoring,
        ];
        for phase in phases {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
        for health in [Health::Healthy, Health::Unhealthy, Health::Unknown] {
            assert_eq!(serde_json::to_value(health).unwrap(), health.as_str());
        }
        for evidence in [Evidence::Replaced, Evidence::Started, Evidence::Served] {
            assert_eq!(serde_json::to_value(evidence).unwrap(), evidence.as_str());
        }
    }

    #[test]
    fn evidence_grows_from_replaced_to_served() {
        assert!(Evidence::Replaced < Evidence::Started && Evidence::Started < Evidence::Served);
    }
}
