//! Stories, told as scripts: what changes, and the lines that it makes.

use super::*;
use crate::render::sample;

struct Script {
    story: Story,
    view: RolloutView,
}

impl Script {
    fn begin(view: RolloutView) -> (Self, Vec<String>) {
        let mut script = Self { story: Story::default(), view };
        let told = script.then(|_| {});
        (script, told)
    }

    /// Changes the view, and returns what is told of it.
    fn then(&mut self, change: impl FnOnce(&mut RolloutView)) -> Vec<String> {
        change(&mut self.view);
        let told = sample::texts(&self.story.tell(&self.view));
        assert!(self.story.tell(&self.view).is_empty(), "the same view says nothing new");
        told
    }

    fn decide(&mut self, seconds: u64, text: &str) -> Vec<String> {
        self.then(|view| decide(view, seconds, text))
    }
}

fn decide(view: &mut RolloutView, seconds: u64, text: &str) {
    view.decisions.push(Decided { at: sample::at(seconds), text: text.to_owned() });
}

fn step_to(member: &mut MemberView, seconds: u64, phase: Phase, note: Option<&str>) {
    member.phase = Some(phase);
    member.at = sample::at(seconds);
    member.note = note.map(str::to_owned).or_else(|| member.note.clone());
}

#[test]
fn a_release_that_fails_at_its_canary() {
    let (mut script, told) = Script::begin(sample::rollout());
    assert_eq!(told, ["14:15:00Z canary   opened: i-0a17", "14:15:00Z 10 %     offered"]);
    let told = script.then(|view| {
        step_to(&mut view.members[0], 1, Phase::Asking, Some("fetch 0.3 s, install reused"));
    });
    assert_eq!(told, ["14:15:01Z prepare  i-0a17 fetch 0.3 s, install reused"]);
    let told = script.then(|view| step_to(&mut view.members[0], 2, Phase::Activating, None));
    assert_eq!(told, ["14:15:02Z activate i-0a17 begins"]);
    let told = script.then(|view| {
        let note = "SIGHUP pid 812, 4 of 4 workers new in 6.2 s";
        step_to(&mut view.members[0], 10, Phase::Probing, Some(note));
        view.members[0].serving = view.revision.clone();
        view.members[0].health = Health::Unknown;
    });
    assert_eq!(told, ["14:15:10Z activate i-0a17 SIGHUP pid 812, 4 of 4 workers new in 6.2 s"]);
    let told = script.then(|view| {
        view.members[0].note = Some("200, serves 4f2c91e, window 30 s".to_owned());
    });
    assert_eq!(told, ["14:15:10Z probe    i-0a17 200, serves 4f2c91e, window 30 s"]);
    let told = script.then(|view| {
        let member = &mut view.members[0];
        step_to(member, 28, Phase::Restoring, Some("GET /healthz 503, 3 in a row, after 18 s"));
        member.standing = Standing::Failed;
        member.health = Health::Unhealthy;
        view.batches[0].failed = 1;
    });
    assert_eq!(told, ["14:15:28Z FAILED   i-0a17 GET /healthz 503, 3 in a row, after 18 s"]);
    let told = script.then(|view| {
        let member = &mut view.members[0];
        step_to(member, 34, Phase::Idle, Some("from disk, 5.8 s"));
        member.serving = Some(sample::revision("9b03d7a1"));
        member.health = Health::Healthy;
        decide(view, 28, "i-0a17 failed: GET /healthz 503, 3 in a row, after 18 s");
        decide(view, 34, "gate: canary failed: 1 failed, 0 tolerated");
        view.state = State::Aborted;
        "canary failed: 1 failed, 0 tolerated".clone_into(&mut view.reason);
        view.ended = Some(sample::at(34));
        view.next_generation = Some(119);
    });
    assert_eq!(
        told,
        [
            "14:15:34Z restored i-0a17 serves 9b03d7a again (from disk, 5.8 s)",
            "14:15:34Z gate     canary failed: 1 failed, 0 tolerated",
        ]
    );
}

#[test]
fn what_cannot_be_prepared_says_why_once() {
    for size in [1, 40] {
        let mut view = sample::rollout();
        view.batches[0].size = size;
        let (mut script, _) = Script::begin(view);
        let fails = |seconds: u64, note: &str| {
            let note = note.to_owned();
            move |view: &mut RolloutView| {
                step_to(&mut view.members[0], seconds, Phase::Waiting, Some(&note));
            }
        };
        let told =
            script.then(fails(3, "npm ci ended with 1: no matching version, log 2026-1.log"));
        let expected = "14:15:03Z prepare  i-0a17 tries again after a wait: npm ci ended with 1: no matching \
                        version, log 2026-1.log; next: towline logs i-0a17";
        assert_eq!(told, [expected], "{size}");
        // The same view told again after each attempt: its time, and the name of npm's own log, differ.
        let told = script.then(|view| step_to(&mut view.members[0], 8, Phase::Preparing, None));
        assert!(told.is_empty(), "{size}: {told:?}");
        let told =
            script.then(fails(12, "npm ci ended with 1: no matching version, log 2026-22.log"));
        assert!(told.is_empty(), "{size}: {told:?}");
        let told = script.then(fails(15, "no space left"));
        assert!(told[0].contains("no space left"), "another reason is news: {told:?}");
    }
}

#[test]
fn who_asks_again_and_again_is_told_of_once() {
    let (mut script, _) = Script::begin(sample::rollout());
    let told = script.then(|view| step_to(&mut view.members[0], 1, Phase::Asking, None));
    assert_eq!(told, ["14:15:01Z prepare  i-0a17 done; asks for leave to swap"]);
    for seconds in [2, 4, 6] {
        let told =
            script.then(|view| step_to(&mut view.members[0], seconds, Phase::Preparing, None));
        assert!(told.is_empty(), "{told:?}");
        let told =
            script.then(|view| step_to(&mut view.members[0], seconds + 1, Phase::Asking, None));
        assert!(told.is_empty(), "{told:?}");
    }
    let told = script.then(|view| step_to(&mut view.members[0], 8, Phase::Activating, None));
    assert_eq!(told, ["14:15:08Z activate i-0a17 begins"]);
}

#[test]
fn a_batch_of_many_is_told_by_how_each_ends() {
    let (mut script, _) = Script::begin(sample::rollout());
    let told = script.then(|view| {
        view.members = (1..=4).map(|number| sample::member(&format!("i-{number}"), 1)).collect();
        view.batches[0].stage = BatchStage::Passed;
        view.batches[1].stage = BatchStage::Open;
        decide(view, 300, "gate: pass: canary healthy for 300 s");
        decide(view, 301, "10 % opened: i-1 i-2 i-3 i-4");
    });
    assert_eq!(
        told,
        [
            "14:20:00Z gate     pass: canary healthy for 300 s",
            "14:20:01Z 10 %     opened: i-1 i-2 i-3 i-4",
        ]
    );
    let told = script.then(|view| {
        step_to(&mut view.members[0], 310, Phase::Asking, Some("fetch 0.2 s"));
        step_to(&mut view.members[1], 311, Phase::Preparing, None);
    });
    assert!(told.is_empty(), "no steps: {told:?}");
    let told = script.then(|view| {
        for (index, member) in view.members.iter_mut().enumerate().take(2) {
            step_to(member, 340 - index as u64, Phase::Idle, None);
            member.standing = Standing::Healthy;
            member.serving = view.revision.clone();
        }
        view.members[2].standing = Standing::Silent;
        view.members[2].at = sample::at(350);
        view.members[3].standing = Standing::Gone;
        view.members[3].at = sample::at(351);
    });
    assert_eq!(
        told,
        [
            "14:20:39Z healthy  i-2 serves 4f2c91e",
            "14:20:40Z healthy  i-1 serves 4f2c91e",
            "14:20:50Z silent   i-3 not heard of; 10 %",
            "14:20:51Z gone     i-4 has left",
        ]
    );
    let told = script.then(|view| {
        view.members[2].standing = Standing::Pending;
        view.members[2].at = sample::at(360);
    });
    assert_eq!(told, ["14:21:00Z back     i-3 is heard of again"]);
}

#[test]
fn what_a_coordinator_does_not_say_is_seen() {
    let mut view = sample::rollout();
    view.decisions.clear();
    let (mut script, told) = Script::begin(view);
    assert_eq!(told, ["14:15:00Z canary   open: i-0a17", "14:15:00Z 10 %     offered"]);
    let told = script.then(|view| {
        view.members[0].standing = Standing::Healthy;
        step_to(&mut view.members[0], 40, Phase::Idle, Some("3 of 3 passed"));
        view.members[0].serving = view.revision.clone();
        view.batches[0].stage = BatchStage::Bakes;
        view.batches[0].healthy = 1;
        view.batches[0].bake_left_s = Some(300);
    });
    assert_eq!(
        told,
        [
            "14:15:40Z canary   1 of 1 healthy, bakes for 5 min",
            "14:15:40Z healthy  i-0a17 serves 4f2c91e; 3 of 3 passed",
        ]
    );
    let told = script.then(|view| view.batches[0].bake_left_s = Some(200));
    assert!(told.is_empty(), "the line of progress counts down: {told:?}");
}

#[test]
fn operators_are_told_of_each_other() {
    let (mut script, _) = Script::begin(sample::rollout());
    let told = script.then(|view| {
        view.state = State::Paused;
        "paused by ada: lunch".clone_into(&mut view.reason);
        view.may_still_swap = vec![sample::instance("i-0a17")];
        decide(view, 20, "paused by ada: lunch");
    });
    assert_eq!(
        told,
        [
            "14:15:20Z paused   by ada: lunch",
            "14:15:20Z          may still swap, by a permit given before: i-0a17",
        ]
    );
    let told = script.then(|view| {
        view.state = State::Running;
        view.may_still_swap.clear();
        "canary: 1 of 1 prepares".clone_into(&mut view.reason);
        decide(view, 90, "resumed by ada");
    });
    assert_eq!(told, ["14:16:30Z resumed  by ada"]);
    let told = script.then(|view| {
        view.state = State::Halted;
        "canary failed: 1 failed, 0 tolerated".clone_into(&mut view.reason);
        decide(view, 990, "gate: canary failed: 1 failed, 0 tolerated");
        decide(view, 990, "halted: it waits for an operator");
    });
    assert_eq!(told, ["14:31:30Z HALTED   canary failed: 1 failed, 0 tolerated"]);
    let told = script.then(|view| {
        view.state = State::Aborted;
        "aborted by bob".clone_into(&mut view.reason);
        decide(view, 1_000, "aborted by bob");
    });
    assert_eq!(told, ["14:31:40Z aborted  by bob"]);
}

#[test]
fn a_good_end_is_left_to_the_summary() {
    let (mut script, _) = Script::begin(sample::rollout());
    let told = script.then(|view| {
        view.state = State::Converged;
        "its last gate has passed".clone_into(&mut view.reason);
        decide(view, 40, "i-9 is silent, and set aside");
        decide(view, 90, "converged");
    });
    assert_eq!(told, ["14:15:40Z rollout  i-9 is silent, and set aside"]);
}

#[test]
fn who_comes_late_is_told_how_it_stands() {
    let mut view = sample::rollout();
    view.batches[0].stage = BatchStage::Passed;
    view.batches[1].stage = BatchStage::Open;
    view.members = (1..=4).map(|number| sample::member(&format!("i-{number}"), 1)).collect();
    view.members[0].standing = Standing::Healthy;
    view.members[1].standing = Standing::Failed;
    view.members[1].note = Some("no space".to_owned());
    for number in 0..30 {
        decide(&mut view, number, &format!("gate: wait {number}"));
    }
    let (mut script, told) = Script::begin(view);
    assert_eq!(told.len(), DECISIONS_BEFORE_MAX + 2, "{told:#?}");
    assert!(told.contains(&"14:15:00Z FAILED   i-2 no space".to_owned()), "{told:#?}");
    assert!(!told.iter().any(|line| line.contains("canary")), "what was long ago: {told:#?}");
    // The middle of a long story is left out, also the newest that was told.
    let told = script.then(|view| {
        view.decisions.drain(5..);
        decide(view, 40, "gate: pass");
    });
    assert_eq!(told, ["14:15:40Z gate     pass"]);
}

#[test]
fn what_others_wrote_stays_in_its_line() {
    let (mut script, _) = Script::begin(sample::rollout());
    let told = script.decide(1, "gate: \u{1b}[2Jpass\n14:00:00Z FAILED   forged");
    assert_eq!(told, ["14:15:01Z gate     pass 14:00:00Z FAILED forged"]);
    let told = script.then(|view| {
        step_to(&mut view.members[0], 2, Phase::Asking, Some(&"x ".repeat(9_000)));
    });
    assert!(told[0].chars().count() < 450);
}

#[test]
fn another_rollout_is_another_story() {
    let (mut script, first) = Script::begin(sample::rollout());
    assert_eq!(script.then(|view| view.order.generation = 119), first);
}
