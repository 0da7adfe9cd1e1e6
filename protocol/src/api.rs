//! What the operator's command and the coordinator say to each other, below `/v1`.
//!
//! Requests refuse fields that are not known, because a misspelt one would be ignored where it matters;
//! answers may grow.

use serde::{Deserialize, Serialize};

use crate::fleet::Quarantined;
use crate::ids::{Group, Instance, Order, Revision};
use crate::policy::Policy;
use crate::report::{Evidence, Failure, Health, Phase};
use crate::rollout::{Decided, Kind, Selector, State};
use crate::time::Timestamp;

/// The version of what `--json` prints.
pub const SCHEMA_VERSION: u32 = 1;

/// The largest request that is read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// The most instances on one page of a list.
pub const PAGE_MAX: usize = 1000;

/// The header that carries a mutation's key: the same key has one effect. 1 to 64 of the characters of a
/// name; kept for a day.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// What every refusal looks like: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub error: ErrorBody,
}

/// What is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: Code,
    /// For people: what was attempted, on what; one line.
    pub message: String,
    /// The next thing to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field of the request that is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// What kind of refusal it is; each has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "String")]
pub enum Code {
    /// 400: the request is not what is due.
    Invalid,
    /// 401: there is no token, or none that is good.
    Unauthenticated,
    /// 403: the token does not allow it.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 405: not by this method.
    MethodNotAllowed,
    /// 408: the request did not come in time.
    Timeout,
    /// 409: as things stand, it cannot be done.
    Conflict,
    /// 413: too large.
    TooLarge,
    /// 429: too often; `Retry-After` says when.
    TooMany,
    /// 503: not now; `Retry-After` says when.
    Unavailable,
    /// 500: a fault of the coordinator's own.
    Internal,
    /// A code of a later version.
    Unknown,
}

impl From<String> for Code {
    fn from(word: String) -> Self {
        match word.as_str() {
            "invalid" => Code::Invalid,
            "unauthenticated" => Code::Unauthenticated,
            "forbidden" => Code::Forbidden,
            "not-found" => Code::NotFound,
            "method-not-allowed" => Code::MethodNotAllowed,
            "timeout" => Code::Timeout,
            "conflict" => Code::Conflict,
            "too-large" => Code::TooLarge,
            "too-many" => Code::TooMany,
            "unavailable" => Code::Unavailable,
            "internal" => Code::Internal,
            _ => Code::Unknown,
        }
    }
}

impl Code {
    /// Returns its HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Code::Invalid => 400,
            Code::Unauthenticated => 401,
            Code::Forbidden => 403,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::Timeout => 408,
            Code::Conflict => 409,
            Code::TooLarge => 413,
            Code::TooMany => 429,
            Code::Unavailable => 503,
            Code::Internal | Code::Unknown => 500,
        }
    }
}

/// `POST /v1/groups/{group}/release`: take the group to a revision. Answered with a [`RolloutView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// A full commit id.
    pub revision: Revision,
    /// Only these take part, until the rollout is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Selector>,
    /// These take no part until they poll again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Instance>,
}

/// `POST /v1/groups/{group}/rollback`: go back. Answered with a [`RolloutView`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Where to; the target's fallback by default. It must be group-proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// The body of mutations that need none but may give a reason: pause, resume, abort, promote, restart,
/// retry, forget, closing a permit (where it is compulsory), lifting a quarantine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Because {
    /// Why, in one line; it is kept with the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `GET /v1/groups/{group}`, and an item of `GET /v1/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub group: Group,
    /// How it takes its rollouts.
    pub policy: Policy,
    /// What it should run.
    pub target: Option<TargetView>,
    /// The rollout that goes on, or stands; `None` where none does.
    pub rollout: Option<RolloutBrief>,
    /// How many instances it has, and how they are.
    pub counts: Counts,
    /// The newest group-proven revision that is not the target's: where `rollback` goes.
    pub fallback: Option<Revision>,
    /// Commits that are refused.
    pub quarantine: Vec<Quarantined>,
}

/// A group's target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetView {
    /// Its place in the order.
    #[serde(flatten)]
    pub order: Order,
    /// The revision; `None` for a way back without a fallback.
    pub revision: Option<Revision>,
    /// What must not serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Revision>,
    /// What a boot falls back to.
    pub fallback: Option<Revision>,
    /// When it was written.
    pub at: Timestamp,
    /// Who asked for it.
    pub by: String,
    /// What it is: `release`, `rollback of 118`.
    pub note: String,
}

/// A rollout in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutBrief {
    /// Its place in the order.
    #[serde(flatten)]
    pub order: Order,
    /// What kind of change it is.
    pub kind: Kind,
    /// How it stands.
    pub state: State,
    /// Why, in words.
    pub reason: String,
}

/// How many instances a group has, and how they are. Each instance is in exactly one of the fields after
/// `instances`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All that are known and not gone.
    pub instances: u32,
    /// Serve the target, healthy.
    pub converged: u32,
    /// Healthy, on another revision than the target's.
    pub stale: u32,
    /// On a lower rung than assigned, and saying so.
    pub degraded: u32,
    /// Probes fail, or nothing serves.
    pub unhealthy: u32,
    /// Nothing is known of their health yet.
    pub unknown: u32,
    /// Not heard of within the lease.
    pub silent: u32,
}

/// `GET /v1/groups/{group}/rollout[?generation=N]`, and what `…/rollout/watch` sends as events named
/// `rollout` whenever it has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Whose it is.
    pub group: Group,
    /// Its place in the order.
    #[serde(flatten)]
    pub order: Order,
    /// What kind of change it is.
    pub kind: Kind,
    /// The revision; `None` for a way back without a fallback.
    pub revision: Option<Revision>,
    /// What must not serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Revision>,
    /// Where it goes back to.
    pub fallback: Option<Revision>,
    /// What the mirror knows of the revision.
    pub commit: Option<CommitView>,
    /// How it stands.
    pub state: State,
    /// Why, in words.
    pub reason: String,
    /// Who began it.
    pub by: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// All batches: passed, open, offered, and those that are still to come, which have no members yet.
    pub batches: Vec<BatchView>,
    /// The members of the open and of the offered batch, and whoever failed; at most [`PAGE_MAX`].
    pub members: Vec<MemberView>,
    /// How many members are not listed.
    pub members_left_out: u32,
    /// The budget.
    pub budget: Budget,
    /// How the group stands.
    pub counts: Counts,
    /// What was decided, oldest first.
    pub decisions: Vec<Decided>,
    /// How many instances have served the revision, and for how many seconds at most, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<u32>,
    /// The generation that took its place, where it was aborted or replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_generation: Option<u64>,
    /// Who may still swap by a permit that was given before a pause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_still_swap: Vec<Instance>,
    /// Only these take part, until it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Selector>,
}

/// A batch of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchView {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub stage: BatchStage,
    /// How many are in it; how many are expected, where it is still to come.
    pub size: u32,
    /// How many of them have taken the target and are healthy.
    pub healthy: u32,
    /// How many have failed.
    pub failed: u32,
    /// How many seconds of its bake time are left, while it bakes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake_left_s: Option<u64>,
}

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchStage {
    /// Still to come.
    Planned,
    /// Its members prepare.
    Offered,
    /// Its members swap.
    Open,
    /// All of it is healthy, and must stay so.
    Bakes,
    /// Its gate has passed.
    Passed,
}

/// An instance in a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub instance: Instance,
    /// Its batch, by its place.
    pub batch_index: u32,
    /// What the gate takes it for.
    pub standing: Standing,
    /// Where it is in its deploy.
    pub phase: Option<Phase>,
    /// What it serves.
    pub serving: Option<Revision>,
    /// How it is.
    pub health: Health,
    /// How its last step went, or why it failed.
    pub note: Option<String>,
    /// Since when it is in this phase.
    pub at: Timestamp,
    /// When the gate took it for failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
}

/// What the gate takes an instance for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// On its way.
    Pending,
    /// Serves the target, healthy.
    Healthy,
    /// It failed, and is counted.
    Failed,
    /// Not heard of.
    Silent,
    /// It has left.
    Gone,
}

/// How much of a group may be unavailable, and how much is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// How many instances may be.
    pub max: u32,
    /// Open permits, and instances that are silent or not healthy without one.
    pub used: u32,
    /// How many of those are open permits.
    pub permits: u32,
}

/// What a mirror knows of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitView {
    /// Its full id.
    pub revision: Revision,
    /// The first line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// When.
    pub authored: Timestamp,
    /// How many commits it is behind the target's revision; `None` where it is not an ancestor of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// How many commits it is ahead of the target's revision; `None` where it is not a descendant of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
}

/// `GET /v1/groups/{group}/resolve?name=…`: what a branch, a tag or a short id means now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveView {
    /// The name that was asked for.
    pub name: String,
    /// What is known of the commit.
    pub commit: CommitView,
    /// Is it on the group's branch?
    pub on_branch: bool,
}

/// `GET /v1/groups/{group}/plan?revision=…[&only=…][&without=…]`: what a release would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// Whose plan it is.
    pub group: Group,
    /// What would be released.
    pub revision: Revision,
    /// What the mirror knows of it.
    pub commit: Option<CommitView>,
    /// Why it would be refused, where it would.
    pub refused: Option<ErrorBody>,
    /// The batches, in order, with the members they would have if they were opened now.
    pub batches: Vec<PlannedBatch>,
    /// How many instances stay healthy meanwhile, at least.
    pub healthy_min: u32,
    /// How long it takes at least, by its bake times, in seconds.
    pub bake_s: u64,
    /// The budget.
    pub budget: Budget,
    /// How the group stands.
    pub counts: Counts,
    /// What is worth knowing before it begins, a line each.
    pub warnings: Vec<String>,
}

/// A batch as it would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBatch {
    /// What it is called.
    pub name: String,
    /// Who would be in it; at most [`PAGE_MAX`].
    pub members: Vec<Instance>,
    /// How many would be.
    pub size: u32,
    /// How long it would bake, in seconds.
    pub bake_s: u64,
}

/// An item of `GET /v1/instances`, and `GET /v1/groups/{group}/instances/{instance}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Its name.
    pub instance: Instance,
    /// Its group.
    pub group: Group,
    /// How it stands.
    pub status: Status,
    /// What it serves; `None`: nothing, or nothing of Towline's.
    pub serving: Option<Revision>,
    /// Is what serves older than Towline here?
    pub adopted: bool,
    /// The target's revision, where what serves has the same content.
    pub alike: Option<Revision>,
    /// How well it is shown that this is what runs.
    pub evidence: Option<Evidence>,
    /// How it is; unknown when it is silent.
    pub health: Health,
    /// Where it is in its deploy.
    pub phase: Option<Phase>,
    /// Why it is on a lower rung.
    pub degraded: Option<String>,
    /// Why it does not follow what it is told.
    pub objection: Option<String>,
    /// What went wrong last.
    pub failure: Option<Failure>,
    /// How its last step went.
    pub note: Option<String>,
    /// Does it hold a permit?
    pub permit: Option<u64>,
    /// How long ago it was heard of, in seconds.
    pub seen_s: u64,
    /// How long ago what it told became true, in seconds.
    pub age_s: u64,
    /// For how long it serves this, in this health, in seconds.
    pub since_s: u64,
    /// Is it well, and only waits for its batch of the rollout that goes on?
    #[serde(default)]
    pub awaits_batch: bool,
}

/// How an instance stands towards its group's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Serves the target, healthy.
    Converged,
    /// Healthy, on another revision.
    Stale,
    /// On a lower rung than assigned.
    Degraded,
    /// Probes fail, or nothing serves.
    Unhealthy,
    /// Nothing is known yet.
    Unknown,
    /// Not heard of within the lease.
    Silent,
}

impl Status {
    /// Returns the word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Converged => "converged",
            Status::Stale => "stale",
            Status::Degraded => "degraded",
            Status::Unhealthy => "unhealthy",
            Status::Unknown => "unknown",
            Status::Silent => "silent",
        }
    }
}

/// One page of a list: `?limit=…&after=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// What to give as `after` for the next page; `None` on the last.
    pub next: Option<String>,
}

/// `GET /v1/groups/{group}/skew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkewView {
    /// Whose it is.
    pub group: Group,
    /// What it should run.
    pub target: Option<TargetView>,
    /// How the instances stand.
    pub counts: Counts,
    /// What runs, most first.
    pub revisions: Vec<SkewRow>,
    /// Who is off target; at most [`PAGE_MAX`].
    pub off_target: Vec<InstanceView>,
    /// How many of those are not listed.
    pub left_out: u32,
    /// Commits in quarantine.
    pub quarantine: Vec<Quarantined>,
    /// Is there a mirror to ask for subjects and distances?
    pub has_mirror: bool,
}

/// One revision of a group's skew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkewRow {
    /// The revision; `None`: not known, or nothing.
    pub revision: Option<Revision>,
    /// What the mirror knows of it.
    pub commit: Option<CommitView>,
    /// Is it the target's?
    pub is_target: bool,
    /// How many instances say that they serve it; whoever is silent is among the unknown.
    pub instances: u32,
    /// How many of those are known to run it: heard of, and by workers that were seen to.
    pub workers: u32,
}

/// `GET /v1/groups/{group}/why`, `GET /v1/groups/{group}/instances/{instance}/why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// What it is about: `web`, or `web i-0a17`.
    pub subject: String,
    /// How it stands, in one line.
    pub summary: String,
    /// The reasons, one a line, most important first.
    pub reasons: Vec<String>,
    /// What to do next, as commands or in words.
    pub next: Vec<String>,
}

/// `GET /v1/groups/{group}/instances/{instance}/logs`: what was said when its last deploy failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    /// Whose it is.
    pub instance: Instance,
    /// Its group.
    pub group: Group,
    /// When it was told.
    pub at: Timestamp,
    /// What was said.
    pub log: crate::poll::FailureLog,
}

/// An item of `GET /v1/groups/{group}/permits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitView {
    /// Its id within the group.
    pub id: u64,
    /// Its group.
    pub group: Group,
    /// Who holds it.
    pub instance: Instance,
    /// The target that it is for.
    #[serde(flatten)]
    pub order: Order,
    /// How old it is, in seconds.
    pub age_s: u64,
    /// Where its holder is.
    pub phase: Option<Phase>,
    /// Is its holder silent?
    pub silent: bool,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and change.
    Operator,
}

/// `POST /v1/tokens`. Answered with a [`TokenCreated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Whose it is: a person's or a job's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// For how many seconds it is good; at most 400 days.
    pub expires_s: u64,
}

/// A new token; it is shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// What it is known by.
    #[serde(flatten)]
    pub token: TokenView,
    /// The secret itself.
    pub secret: String,
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated").field("token", &self.token).finish_non_exhaustive()
    }
}

/// An item of `GET /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// What it is known by.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// What it may do; `None`: it is an agent's.
    pub role: Option<Role>,
    /// The agent's group and instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends; `None` for an agent's, which ends with its instance.
    pub expires: Option<Timestamp>,
    /// When it was last used; coarse.
    pub used: Option<Timestamp>,
}

/// `POST /v1/groups/{group}/join-secret`: a new one, shown once; the one before ends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecret {
    /// The group that it lets join.
    pub group: Group,
    /// The secret itself.
    pub secret: String,
}

impl std::fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinSecret").field("group", &self.group).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_refuse_what_is_not_known_and_answers_do_not() {
        let revision = "4f2c91e0".repeat(5);
        let parse = |text: &str| serde_json::from_str::<ReleaseRequest>(text);
        assert!(parse(&format!("{{\"revision\":{revision:?}}}")).is_ok());
        assert!(parse(&format!("{{\"revision\":{revision:?},\"onyl\":\"i-1\"}}")).is_err());
        assert!(parse("{\"revision\":\"main\"}").is_err(), "a branch on the wire");
        let refusal = "{\"error\":{\"code\":\"of-a-later-version\",\"message\":\"m\",\"later\":1}}";
        let refusal: Refusal = serde_json::from_str(refusal).unwrap();
        assert_eq!(refusal.error.code, Code::Unknown);
    }

    #[test]
    fn each_code_is_read_as_it_is_written() {
        let codes = [
            Code::Invalid,
            Code::Unauthenticated,
            Code::Forbidden,
            Code::NotFound,
            Code::MethodNotAllowed,
            Code::Timeout,
            Code::Conflict,
            Code::TooLarge,
            Code::TooMany,
            Code::Unavailable,
            Code::Internal,
        ];
        for code in codes {
            let text = serde_json::to_string(&code).unwrap();
            assert_eq!(serde_json::from_str::<Code>(&text).unwrap(), code);
            assert!((400..600).contains(&code.status()));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = JoinSecret { group: "web".parse().unwrap(), secret: "tlj_x1y2".to_owned() };
        assert!(!format!("{secret:?}").contains("x1y2"));
    }
}
