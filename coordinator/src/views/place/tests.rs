//! Reasons, one situation a row: what the first words are, and what to type next.

use towline_protocol::api::WhyView;
use towline_protocol::ids::Order;
use towline_protocol::report::{Cause, Evidence, Failure, Health, Phase};
use towline_protocol::rollout::{Failed, Selector, State};
use towline_protocol::time::Timestamp;

use super::super::fixture::{Fleet, GOOD, NEW, OLD, name, revision};
use super::super::why;

fn three() -> Fleet {
    Fleet::of(&["i-1", "i-2", "i-3"]).proven(&[OLD])
}

/// The canary is open, with `i-1` in it.
fn canary() -> Fleet {
    three().released(NEW).batch("canary", 0, &["i-1"])
}

fn failure(fleet: &Fleet, cause: Cause) -> Failure {
    Failure {
        order: Some(fleet.state.order()),
        revision: revision(NEW),
        cause,
        detail: "npm ci\u{1b} ended with 1".to_owned(),
        attempt: 3,
    }
}

fn fails(fleet: Fleet, cause: Cause) -> Fleet {
    let failure = failure(&fleet, cause);
    fleet.serves("i-1", OLD).report("i-1", |report| {
        report.rejected = !cause.is_before_swap();
        report.failure = Some(failure);
    })
}

fn of(fleet: &Fleet, at: &str) -> WhyView {
    why::instance(&fleet.look(), &name(at)).unwrap()
}

#[test]
fn an_instance_says_why_it_is_where_it_is() {
    let asks = |fleet: Fleet| {
        fleet.serves("i-1", OLD).report("i-1", |report| report.phase = Phase::Asking)
    };
    let state = |fleet: Fleet, state| fleet.change(|rollout| rollout.state = state);
    let passed = || three().released(NEW).converged().serves("i-1", OLD);
    let counted = Failed {
        batch_index: 0,
        at: Timestamp(1),
        detail: "503".to_owned(),
        is_revision: true,
        is_excused: false,
    };
    let cases: Vec<(&str, Fleet, &str, &str, &str)> = vec![
        (
            "silent: for how long, what it last told, and how to be rid of it",
            canary().serves("i-1", GOOD).silent("i-1").later(840),
            "it has not polled for 14 min, which is longer than its lease; what it last told is 14 min \
             old: serves bbbbbbb, healthy",
            "",
            "once it is gone for good: towline forget i-1 --group web",
        ),
        (
            "silent: it holds the budget",
            canary().silent("i-1"),
            "",
            "it counts as unavailable: 1 of 1 that may be are",
            "",
        ),
        (
            "silent with a permit: how to close it",
            canary().permit("i-1", 17).silent("i-1"),
            "",
            "it holds permit 17 for generation 1",
            "once it is known to be at rest: towline permit close i-1 --group web --reason WHY",
        ),
        (
            "a permit",
            canary().permit("i-1", 17).later(240),
            "it holds permit 17 for generation 1, given 4 min ago",
            "",
            "",
        ),
        (
            "rejected, with its failure",
            fails(canary(), Cause::Unhealthy),
            "ccccccc was rejected here after its swap: npm ci  ended with 1",
            "",
            "towline logs i-1 --group web",
        ),
        (
            "not prepared: nothing live was touched",
            fails(canary(), Cause::Install),
            "ccccccc could not be prepared, attempt 3: npm ci  ended with 1; nothing live was touched",
            "",
            "to try again at once: towline retry web --instance i-1",
        ),
        (
            "counted as failed",
            canary().change(|rollout| drop(rollout.failures.insert(name("i-1"), counted))),
            "it failed in canary: 503",
            "",
            "",
        ),
        (
            "waits for the budget: who has it",
            asks(canary()).silent("i-3").later(180),
            "its batch, canary, is open: it is ready, and waits for its permit",
            "no permit can be given: 1 of 1 that may be unavailable are: i-3 (silent for 3 min)",
            "towline why i-3 --group web",
        ),
        (
            "budget is left: nothing else keeps it",
            asks(canary()),
            "its batch, canary, is open: it is ready",
            "",
            "",
        ),
        (
            "the batch is open, and it is on its way",
            canary().serves("i-1", OLD).report("i-1", |report| report.phase = Phase::Preparing),
            "its batch, canary, is open: it prepares, as it told 0 s ago",
            "",
            "",
        ),
        (
            "it has not answered yet",
            canary(),
            "its batch, canary, is open, and it has not answered to that yet",
            "",
            "",
        ),
        (
            "paused: by what, and how to go on",
            state(canary(), State::Paused)
                .change(|rollout| rollout.reason = "paused by ada: lunch".to_owned()),
            "its batch, canary, is open",
            "its rollout is paused by ada: lunch",
            "to go on: towline rollout resume web",
        ),
        (
            "halted: how to go back",
            state(canary(), State::Halted),
            "",
            "its rollout is halted: ",
            "to go back: towline rollout abort web",
        ),
        (
            "degraded",
            passed()
                .report("i-1", |report| report.degraded = Some("git timed out 9 times".to_owned())),
            "it is on a lower rung than assigned: git timed out 9 times",
            "",
            "",
        ),
        (
            "an objection",
            passed().report("i-1", |report| report.objection = Some("an older epoch".to_owned())),
            "it does not follow what it is told: an older epoch",
            "",
            "towline retry web --instance i-1",
        ),
        (
            "a store that was restored",
            passed().report("i-1", |report| {
                report.objection = Some("1/9 was seen before".to_owned());
                report.order = report.order.map(|seen| Order { generation: 9, ..seen });
            }),
            "it does not follow what it is told: 1/9 was seen before",
            "the coordinator's store knows less: was it restored from a backup?",
            "if it was: end the coordinator, `towline-coordinator raise-epoch`, start it, and release \
             again",
        ),
        (
            "unhealthy",
            passed().report("i-1", |report| report.health = Health::Unhealthy).later(300),
            "its probes fail, for 5 min",
            "",
            "towline logs i-1 --group web",
        ),
        (
            "what it serves is in quarantine",
            passed().quarantined(OLD),
            "what it serves, aaaaaaa, is in quarantine: 503",
            "",
            "",
        ),
        (
            "drift: the rollout has passed",
            passed(),
            "the rollout of generation 1 has passed, and it does not serve its revision",
            "",
            "towline retry web --instance i-1",
        ),
        (
            "drift: it has not heard of it",
            three().released(NEW).converged(),
            "the rollout of generation 1 has passed, and it has not heard of it",
            "",
            "",
        ),
        (
            "a newborn on the fallback",
            canary()
                .serves("i-1", OLD)
                .report("i-1", |report| report.newborn = true)
                .change(|it| it.batches.clear()),
            "it was born during the rollout, and booted the fallback aaaaaaa: its turn comes in a later batch",
            "",
            "",
        ),
        (
            "only others take part",
            canary().change(|rollout| {
                rollout.batches.clear();
                rollout.only = Some(Selector::try_from("i-2".to_owned()).unwrap());
            }),
            "only i-2 takes part, until the rollout is resumed",
            "",
            "to take it to all others: towline rollout resume web",
        ),
        (
            "set aside",
            canary().change(|rollout| {
                rollout.batches.clear();
                rollout.aside.insert(name("i-1"));
            }),
            "it was silent when its batch opened, and was set aside",
            "",
            "",
        ),
        (
            "an order is under way",
            passed().told("i-1", |record| record.orders.restart = 1),
            "it was ordered to restart its app, and has not done so yet",
            "",
            "",
        ),
        (
            "converged, on weak evidence",
            three()
                .released(NEW)
                .converged()
                .serves("i-1", NEW)
                .report("i-1", |report| report.evidence = Some(Evidence::Replaced)),
            "that its workers run what serves is not shown",
            "",
            "",
        ),
        ("no target", three(), "its group has no target", "", "towline release web REV"),
        (
            "just polled",
            three().told("i-1", |record| record.report = None),
            "it polls, and has reported nothing yet",
            "",
            "",
        ),
        (
            "not heard of since the start",
            canary().unheard("i-1"),
            "it has not polled since the coordinator started",
            "",
            "",
        ),
    ];
    for (rule, fleet, first, also, next) in cases {
        let why = of(&fleet, "i-1");
        assert!(!why.reasons.is_empty(), "{rule}: {why:#?}");
        assert!(why.reasons[0].starts_with(first), "{rule}: first {first:?} in {why:#?}");
        assert!(why.reasons.iter().any(|it| it.starts_with(also)), "{rule}: {also:?} in {why:#?}");
        assert!(
            next.is_empty() || why.next.iter().any(|it| it == next),
            "{rule}: {next:?} in {why:#?}"
        );
    }
}

#[test]
fn a_place_in_the_batches_is_told() {
    let offered = canary().batch("50 %", 3, &["i-2"]).change(|it| it.batches[1].opened_ms = None);
    let why = of(&offered, "i-2");
    assert!(why.reasons[0].starts_with("its batch, 50 %, is not open yet"), "{why:#?}");
    let why = of(&offered, "i-3");
    assert!(
        why.reasons[0].starts_with("it is in no batch yet: its turn comes in one after 50 %"),
        "{why:#?}"
    );
    let without = canary()
        .change(|rollout| {
            rollout.without.insert(name("i-2"));
        })
        .silent("i-2");
    let why = of(&without, "i-2");
    assert!(
        why.reasons.iter().any(|it| it == "the rollout goes on without it until it polls again")
    );
    assert!(!why.reasons.iter().any(|it| it.contains("counts as unavailable")), "{why:#?}");
}

#[test]
fn summaries_say_how_it_stands() {
    let converged = three().released(NEW).converged().serves("i-1", NEW).later(10_800);
    let cases = [
        ("converged", converged.clone(), "converged: serves ccccccc, healthy, for 3 h"),
        (
            "stale",
            converged.clone().serves("i-1", OLD),
            "stale: serves aaaaaaa, healthy, for 3 h; the target is ccccccc",
        ),
        ("silent", converged.clone().silent("i-1"), "silent for 3 h"),
        (
            "nothing told",
            converged.clone().told("i-1", |record| record.report = None),
            "unknown: it has reported nothing yet",
        ),
        (
            "nothing serves",
            converged.clone().report("i-1", |report| {
                report.serving = None;
                report.health = Health::Unhealthy;
            }),
            "unhealthy: serves nothing, unhealthy, for 3 h",
        ),
        (
            "left",
            converged
                .clone()
                .told("i-1", |record| record.gone = Some(Timestamp(1_790_000_000_000))),
            "left 3 h ago",
        ),
    ];
    for (rule, fleet, expected) in cases {
        let why = of(&fleet, "i-1");
        assert_eq!((why.subject.as_str(), why.summary.as_str()), ("web i-1", expected), "{rule}");
    }
    assert!(why::instance(&three().look(), &name("i-9")).is_err(), "nobody knows it");
}

#[test]
fn a_group_says_why_it_is_where_it_is() {
    let state = |fleet: Fleet, state| fleet.change(|rollout| rollout.state = state);
    let counted = Failed {
        batch_index: 0,
        at: Timestamp(1),
        detail: "503".to_owned(),
        is_revision: true,
        is_excused: false,
    };
    let cases: Vec<(&str, Fleet, &str, &str, &str)> = vec![
        (
            "no target",
            three(),
            "it has no target",
            "nothing was released yet",
            "towline release web REV",
        ),
        (
            "nobody is there",
            Fleet::of(&[]).released(NEW),
            "the release of ccccccc (generation 1) is running",
            "the group is empty: it stays open until an instance has proven it",
            "towline rollout watch web",
        ),
        (
            "waits for its canary",
            canary(),
            "the release of ccccccc (generation 1) is running",
            "canary: 0 of 1 healthy; i-1 has not heard of it",
            "",
        ),
        (
            "the budget is used up",
            canary().silent("i-3").permit("i-2", 4),
            "",
            "no permit can be given: 2 of 1 that may be unavailable are: i-2 (holds permit 4), i-3 (silent for 0 s)",
            "towline why i-3 --group web",
        ),
        (
            "paused",
            state(canary(), State::Paused),
            "the release of ccccccc (generation 1) is paused",
            "its rollout is paused: ",
            "to go on: towline rollout resume web",
        ),
        (
            "halted, with who failed",
            state(canary(), State::Halted)
                .change(|rollout| drop(rollout.failures.insert(name("i-1"), counted))),
            "the release of ccccccc (generation 1) is halted",
            "i-1 failed in canary: 503",
            "towline logs i-1 --group web",
        ),
        (
            "converged, with one that is not",
            three().released(NEW).converged().serves("i-1", NEW).serves("i-2", NEW),
            "2 of 3 have ccccccc (generation 1, release)",
            "1 stale: i-3",
            "towline why i-3 --group web",
        ),
        (
            "a quarantine",
            three().quarantined(NEW),
            "",
            "ccccccc is in quarantine: 503",
            "if it is good after all: towline quarantine lift web ccccccc",
        ),
    ];
    for (rule, fleet, summary, reason, next) in cases {
        let why = why::group(&fleet.look()).unwrap();
        assert!(why.summary.starts_with(summary), "{rule}: {why:#?}");
        assert!(
            why.reasons.iter().any(|it| it.starts_with(reason)),
            "{rule}: {reason:?} in {why:#?}"
        );
        assert!(
            next.is_empty() || why.next.iter().any(|it| it == next),
            "{rule}: {next:?} in {why:#?}"
        );
    }
}

#[test]
fn a_restart_that_was_ordered_waits_while_the_rollout_stands() {
    let ordered = |state| {
        let fleet = canary().serves("i-2", OLD).told("i-2", |record| record.orders.restart = 1);
        of(&fleet.change(|rollout| rollout.state = state), "i-2")
    };
    let held = "while the rollout stands, no permit is given to restart either";
    let why = ordered(State::Paused);
    assert!(why.reasons.iter().any(|reason| reason == held), "{why:#?}");
    assert!(why.next.contains(&"to go on: towline rollout resume web".to_owned()), "{why:#?}");
    let told: std::collections::BTreeSet<&String> = why.reasons.iter().collect();
    assert_eq!(told.len(), why.reasons.len(), "each is told once: {why:#?}");
    let why = ordered(State::Running);
    assert!(!why.reasons.iter().any(|reason| reason == held), "{why:#?}");
}

#[test]
fn a_reason_does_not_say_twice_how_a_rollout_stands() {
    let fleet = canary().change(|rollout| {
        rollout.state = State::Paused;
        rollout.reason = "paused by ada: lunch".to_owned();
    });
    let why = why::group(&fleet.look()).unwrap();
    assert!(why.reasons.contains(&"its rollout is paused by ada: lunch".to_owned()), "{why:#?}");
}

#[test]
fn of_many_in_quarantine_the_newest_is_told() {
    let why = why::group(&three().quarantined(NEW).quarantined(GOOD).look()).unwrap();
    let newest = revision(GOOD);
    let lifts = |next: &&String| next.contains("quarantine lift");
    assert_eq!(why.next.iter().filter(lifts).count(), 1, "{why:#?}");
    assert!(why.reasons.iter().any(|reason| reason.starts_with(newest.short())), "{why:#?}");
    let others = "1 other commit is in quarantine: towline quarantine list web".to_owned();
    assert!(why.reasons.contains(&others), "{why:#?}");
}
