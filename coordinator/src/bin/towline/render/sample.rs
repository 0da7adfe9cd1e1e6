//! Views for tests, as a coordinator would send them.

use towline_protocol::api::{
    BatchStage, BatchView, Budget, CommitView, Counts, InstanceView, MemberView, PlanView,
    PlannedBatch, RolloutView, Standing, Status, TargetView,
};
use towline_protocol::ids::{Instance, Order, Revision};
use towline_protocol::report::{Health, Phase};
use towline_protocol::rollout::{Decided, Kind, State};
use towline_protocol::time::Timestamp;

use crate::render::Line;

/// Returns a time, in seconds since the sample rollout began at 14:15:00Z.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp((1_790_000_100 + seconds) * 1000)
}

/// Returns a revision from its first eight digits.
pub(crate) fn revision(digits: &str) -> Revision {
    digits.repeat(5).parse().unwrap()
}

/// Returns an instance's name.
pub(crate) fn instance(name: &str) -> Instance {
    name.parse().unwrap()
}

/// Returns what lines say, without their tones.
pub(crate) fn texts(lines: &[Line]) -> Vec<String> {
    lines.iter().map(|line| line.text.clone()).collect()
}

/// Returns a commit, seven commits after the target.
pub(crate) fn commit(digits: &str, subject: &str) -> CommitView {
    CommitView {
        revision: revision(digits),
        subject: subject.to_owned(),
        author: "Ada".to_owned(),
        authored: Timestamp(1_789_913_600_000),
        behind: None,
        ahead: Some(7),
    }
}

/// Returns a plan for ten and more.
pub(crate) fn plan() -> PlanView {
    let batch = |name: &str, members: std::ops::Range<u32>, size, bake_s| PlannedBatch {
        name: name.to_owned(),
        members: members.map(|number| instance(&format!("i-{number}"))).collect(),
        size,
        bake_s,
    };
    PlanView {
        group: "web".parse().unwrap(),
        revision: revision("4f2c91e0"),
        commit: Some(commit("4f2c91e0", "Cache price lists")),
        refused: None,
        batches: vec![
            batch("canary", 0..1, 1, 300),
            batch("10 %", 1..2, 1, 120),
            batch("50 %", 2..5, 3, 120),
            batch("100 %", 5..6, 70, 0),
        ],
        healthy_min: 9,
        bake_s: 540,
        budget: Budget { max: 1, used: 0, permits: 0 },
        counts: Counts { instances: 10, converged: 10, ..Counts::default() },
        warnings: Vec::new(),
    }
}

/// Returns a member of a batch that prepares.
pub(crate) fn member(name: &str, batch_index: u32) -> MemberView {
    MemberView {
        instance: instance(name),
        batch_index,
        standing: Standing::Pending,
        phase: Some(Phase::Preparing),
        serving: Some(revision("9b03d7a1")),
        health: Health::Healthy,
        note: None,
        at: at(0),
        failed_at: None,
    }
}

/// Returns a rollout whose canary has just been opened.
pub(crate) fn rollout() -> RolloutView {
    let batch = |name: &str, stage, size| BatchView {
        name: name.to_owned(),
        stage,
        size,
        healthy: 0,
        failed: 0,
        bake_left_s: None,
    };
    RolloutView {
        group: "web".parse().unwrap(),
        order: Order { epoch: 1_790_000_000, generation: 118 },
        kind: Kind::Release,
        revision: Some(revision("4f2c91e0")),
        not: None,
        fallback: Some(revision("9b03d7a1")),
        commit: Some(commit("4f2c91e0", "Cache price lists")),
        state: State::Running,
        reason: "canary: 1 of 1 prepares".to_owned(),
        by: "ada".to_owned(),
        began: at(0),
        ended: None,
        batches: vec![
            batch("canary", BatchStage::Open, 1),
            batch("10 %", BatchStage::Offered, 4),
            batch("100 %", BatchStage::Planned, 45),
        ],
        members: vec![member("i-0a17", 0)],
        members_left_out: 0,
        budget: Budget { max: 5, used: 1, permits: 0 },
        counts: Counts { instances: 50, converged: 49, silent: 1, ..Counts::default() },
        decisions: vec![Decided { at: at(0), text: "canary opened: i-0a17".to_owned() }],
        reached: None,
        next_generation: None,
        may_still_swap: Vec::new(),
        only: None,
    }
}

/// Returns the target after the sample rollout was aborted.
pub(crate) fn target() -> TargetView {
    TargetView {
        order: Order { epoch: 1_790_000_000, generation: 119 },
        revision: Some(revision("9b03d7a1")),
        not: None,
        fallback: Some(revision("c81f0022")),
        at: at(60),
        by: "ada".to_owned(),
        note: "rollback of 118".to_owned(),
    }
}

/// Returns an instance that serves what it should.
pub(crate) fn instance_view(name: &str, status: Status) -> InstanceView {
    InstanceView {
        instance: instance(name),
        group: "web".parse().unwrap(),
        status,
        serving: Some(revision("9b03d7a1")),
        adopted: false,
        alike: None,
        evidence: None,
        health: Health::Healthy,
        phase: Some(Phase::Idle),
        degraded: None,
        objection: None,
        failure: None,
        note: None,
        permit: None,
        seen_s: 3,
        age_s: 2_520,
        since_s: 2_520,
        awaits_batch: false,
    }
}
