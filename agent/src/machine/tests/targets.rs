//! Rules of newer targets, stale answers, and what is done when.

use super::*;

#[test]
fn a_newer_target_wins_at_any_moment() {
    check(&[
        (
            "while preparing: what runs is ended first",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 c", "write; cancel; prepare c unless like a"),
                ("late prepared", ""),
                ("prepared", "ask 3"),
            ],
            "asking a healthy served",
        ),
        (
            "while preparing: back to what serves",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 a", "write; cancel; look"),
                ("late prepared", ""),
                ("target 4 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
                ("target 5 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare c unless like a"),
                ("failed fetch", "wait 4"),
                ("target 6 a", "write; look"),
            ],
            "idle a healthy served",
        ),
        (
            "while preparing: the same revision goes on, and is asked for in the newer generation",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 b", "write"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "while asking: the same revision is asked for anew, and the older answer is no leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 b", "write; cancel; ask 3"),
                ("late yes", ""),
                ("yes", "journal 3 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "while asking: another revision needs its own preparing and its own leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 c", "write; cancel; prepare c unless like a"),
                ("late yes", ""),
                ("prepared", "ask 3"),
            ],
            "asking a healthy served",
        ),
        (
            "while asking: an order to restart as well is another swap",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 b restart 1", "write; cancel; ask 3"),
            ],
            "asking a healthy served",
        ),
        (
            "while waiting: at once, and from the shortest wait",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("failed fetch", "wait 4"),
                ("target 3 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
            ],
            "waiting a healthy served; failure: fetch of c, 1; degraded: c could not be prepared: it broke",
        ),
        (
            "once the swap is journalled: after its window",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("target 3 c", "write"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("target 4 d", "write"),
                ("replaced", "probe b fully"),
                ("target 5 e", "write"),
                ("healthy", "write; prune a b e; prepare e unless like b"),
            ],
            "preparing b healthy replaced",
        ),
        (
            "once the swap failed: after the restore",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("target 3 c", "write"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a c; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "where a restore fails: at once, and what served before is still owed",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("target 3 c", "write"),
                ("failed activate", "restart b>a"),
                ("failed activate", "prepare c"),
                ("failed fetch", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "prepare c"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>c"),
            ],
            "activating a unhealthy; degraded: a could not be restored: it broke",
        ),
        (
            "while the journal is written: at once where that fails",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("target 3 c", "write"),
                ("failed disk", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "and on a boot as well",
            SERVES_A_STOPPED,
            &[
                ("start", "by 60"),
                ("target 2 b", "write; prepare b; by 20"),
                ("prepared", "journal 2 >b"),
                ("target 3 c", "write"),
                ("failed disk", "write; prepare c; by 20"),
            ],
            "preparing - unknown",
        ),
        (
            "where a restore fails: back to what is to be restored is a restore",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 1",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("target 3 a", "write; restart b>a"),
                ("failed activate", "wait 4"),
                ("target 4 c", "write; prepare c"),
                ("target 5 a", "write; cancel; restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served",
        ),
        (
            "where a restore fails: no leave, and what is refused, is no way out",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 1",
            &[
                ("start", "write; activate b>a"),
                ("target 3 c", "write"),
                ("failed activate", "restart b>a"),
                ("failed activate", "prepare c"),
                ("prepared", "ask 3"),
                ("no", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "ask 3"),
                ("no", "wait 4"),
                ("woke", "restart b>a"),
                ("failed activate", "write; prepare c; by 25"),
                ("failed refused", "prepare a"),
                ("target 4 c", "write"),
            ],
            "preparing - unhealthy; degraded: a could not be restored: it broke",
        ),
        (
            "while the health is looked at: the look comes first again once there is time for it",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[
                ("start", "check b fully"),
                ("target 3 c", "write; cancel; prepare c unless like b"),
                ("failed fetch", "check b fully"),
                ("failed unhealthy", "prepare c; by 20"),
                ("failed refused", "prepare a"),
                ("prepared", "journal 3 >a"),
            ],
            "activating - unhealthy; degraded: c could not be prepared: it broke",
        ),
        (
            "and so it does where there is no leave; a second failure then waits",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("target 2 b", "write; cancel; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "check a briefly"),
                ("served", "ask 2"),
                ("no", "wait 64"),
            ],
            "asking a healthy served",
        ),
        (
            "while the health is looked at",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("target 2 b", "write; cancel; prepare b unless like a"),
            ],
            "preparing a unknown",
        ),
    ]);
}

#[test]
fn nothing_goes_back_and_nothing_stale_counts() {
    check(&[
        (
            "a lower generation is refused, and what is under way goes on",
            "disk a, current a, runs, proven a, seen 5 a",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 4 b", ""),
                ("target 6 b", "write; prepare b unless like a"),
                ("target 4 c", ""),
                ("prepared", "ask 6"),
            ],
            "asking a healthy served; objection: the source names generation 4 of epoch 1 (c), and \
             generation 6 of epoch 1 was seen before: a lower one is refused",
        ),
        (
            "a generation never changes its meaning",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 1 b", ""),
                ("target 1 a restart 1", ""),
                ("target 1 a fallback b", ""),
            ],
            "idle a healthy served; objection: the source names another target as generation 1 of \
             epoch 1 than it did before: write the next generation instead",
        ),
        (
            "a word that can be followed ends the objection",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("objected", ""),
                ("target 1 a", ""),
                ("served", "look"),
            ],
            "idle a healthy served",
        ),
        (
            "an objection stops nothing that is under way",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("objected", ""),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; objection: it does not parse",
        ),
        (
            "the end of an earlier task is nobody's",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("late failed unhealthy", ""),
                ("prepared", "ask 2"),
                ("late prepared", ""),
                ("yes", "journal 2 a>b"),
                ("late yes", ""),
                ("journalled", "activate a>b"),
                ("late journalled", ""),
                ("activated", "prove b"),
                ("late failed activate", ""),
                ("replaced", "probe b fully"),
                ("late failed prove", ""),
                ("healthy", "write; prune a b; look"),
                ("healthy", ""),
            ],
            "idle b healthy replaced",
        ),
        (
            "a clock that wakes too often changes nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("stirred", ""),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("stirred", ""),
                ("prepared", "ask 2"),
                ("stirred", ""),
                ("yes", "journal 2 a>b"),
                ("stirred", ""),
                ("journalled", "activate a>b"),
                ("stirred", ""),
            ],
            "activating b unknown",
        ),
    ]);
}

#[test]
fn a_clock_that_steps_back_only_delays() {
    let (mut play, _) = Play::new(SERVES_A);
    play.step("+100 served");
    play.step("-90 target 2 b");
    play.step("failed fetch");
    assert!(play.wake.is_some_and(|wake| Duration::from_secs(101) < wake), "{:?}", play.wake);
}

#[test]
fn waits_double_up_to_their_bound_and_differ_between_instances() {
    let wait = |seed, attempt| {
        let (mut play, _) = Play::new("");
        play.machine.policy.seed = seed;
        play.machine.backoff(attempt).as_secs_f64()
    };
    for (attempt, whole) in
        [(1, 2.0), (2, 4.0), (7, 128.0), (8, 256.0), (9, 256.0), (u32::MAX, 256.0)]
    {
        let waits: Vec<f64> = (0..200).map(|seed| wait(seed, attempt)).collect();
        let shortest = waits.iter().copied().fold(f64::MAX, f64::min);
        let longest = waits.iter().copied().fold(0.0, f64::max);
        let own: Vec<f64> = (0..9).map(|more| wait(7, attempt.saturating_sub(more))).collect();
        assert!(attempt < 17 || own.iter().any(|other| *other != own[0]), "{attempt}: {own:?}");
        assert!(0.75 * whole <= shortest && longest < whole, "{attempt}: {shortest} to {longest}");
        assert!(longest - shortest > 0.15 * whole, "{attempt}: {shortest} to {longest}");
    }
}

#[test]
fn what_was_asked_for_is_settled_when_nothing_is_left_to_do() {
    // Found; events; is it settled, and is it converged?
    let cases: [(&str, &[&str], bool, bool); 17] = [
        ("", &[], false, false),
        (SERVES_A, &[], false, false),
        (SERVES_A, &["served"], true, true),
        (SERVES_A, &["failed unhealthy"], true, false),
        (SERVES_A, &["served", "woke"], false, false),
        (SERVES_A, &["served", "target 2 a restart 1"], false, false),
        ("", &["target 1 a", "failed fetch"], true, false),
        ("runs", &["target 1 a", "failed refused"], true, false),
        (SERVES_A, &["served", "objected"], true, false),
        (SERVES_A, &["served", "target 2 b"], false, false),
        (SERVES_A, &["served", "target 2 b", "failed fetch"], true, false),
        (SERVES_A, &["served", "target 2 b", "failed refused"], true, false),
        (SERVES_A, &["served", "target 2 b", "alike"], true, true),
        (SERVES_A, &["served", "target 2 b", "prepared"], false, false),
        ("disk a, current a, runs, proven a", &["served"], false, false),
        ("", &["objected"], true, false),
        (
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &["untouched", "target 2 b"],
            true,
            false,
        ),
    ];
    for (found, events, is_settled, is_converged) in cases {
        let (mut play, _) = Play::new(found);
        for event in events {
            play.step(event);
        }
        let machine = &play.machine;
        let found = (machine.settled().is_some(), machine.is_converged());
        assert_eq!(found, (is_settled, is_converged), "{found:?} {events:?}");
    }
}
