//! Rules of agents that were killed, or told to stop.

use super::*;

#[test]
fn a_killed_agent_takes_up_where_it_was() {
    check(&[
        (
            "before the swap: from the beginning",
            "disk a b, current a, runs, proven a, seen 2 b",
            &[("start", "check a briefly"), ("served", "prepare b unless like a")],
            "preparing a healthy served",
        ),
        (
            "after it: the swap again, through the full window",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
            ],
            "probing b unknown replaced",
        ),
        (
            "at most three times",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 2",
            &[("start", "write; activate a>b")],
            "activating b unknown",
        ),
        (
            "then what served before",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 3",
            &[("start", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1",
        ),
        (
            "what took the agent down three times does not come first again, though it was good before",
            "disk a b, current b, proven a b, seen 2 b, swap 2 >b, resumed 3",
            &[("start", "write; prepare a"), ("prepared", "journal 2 >a")],
            "activating - unhealthy; degraded: b failed once it was live: the agent ended 3 times in the middle of it",
        ),
        (
            "a release that is no longer whole is not made live",
            "disk a, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate b>a")],
            "restoring a unknown; failure: disk of b, 1",
        ),
        (
            "a swap goes on whose predecessor was pruned, and then the ladder is what is left",
            "disk c b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate >b"), ("failed activate", "write; prepare c")],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: it broke",
        ),
        (
            "a restore whose release was pruned gives way to the ladder, without leave",
            "disk c b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; prepare c"),
                ("prepared", "journal 2 >c"),
                ("journalled", "activate >c"),
                ("activated", "prove c"),
                ("replaced", "probe c fully"),
                ("healthy", "write; prune b c; look"),
            ],
            "idle c healthy replaced; degraded: b failed once it was live: it broke",
        ),
        (
            "an order to restart is carried out by a restart, though its predecessor was pruned",
            "disk b, current b, runs, proven a, seen 2 b restart 1, swap 2 a>b restart 1",
            &[("start", "write; restart >b")],
            "activating b unknown",
        ),
        (
            "a restore goes on, and what failed stays rejected",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 9",
            &[
                ("start", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "an order to restart is carried out",
            "disk a, current a, runs, proven a, seen 2 a restart 1, swap 2 a>a restart 1",
            &[
                ("start", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a; look"),
                ("target 2 a restart 1", ""),
            ],
            "idle a healthy served",
        ),
        (
            "in the middle of a boot: its swap, then the rungs below",
            "disk a b, current b, proven a, seen 2 b, swap 2 >b",
            &[("start", "write; activate >b"), ("failed activate", "write; prepare a")],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: it broke",
        ),
        (
            "what was made live and never passed gives way to what did",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[
                ("start", "check b fully"),
                ("failed unhealthy", "prepare b; by 20"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("failed unhealthy", "write; prepare a"),
                ("prepared", "journal 2 >a"),
            ],
            "activating - unhealthy replaced; degraded: b failed once it was live: it broke",
        ),
        (
            "what passes its window now is proven",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[("start", "check b fully"), ("served", "write; look"), ("woke", "check b briefly")],
            "idle b healthy served",
        ),
        (
            "what serves without ever having been proven is left alone where nothing better is there",
            "disk b, current b, runs, seen 2 b",
            &[("start", "check b fully"), ("failed unhealthy", "look")],
            "idle b unhealthy; degraded: it broke",
        ),
    ]);
}

#[test]
fn an_ending_that_was_asked_for_counts_for_nothing() {
    let (play, _) =
        Play::new("disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 2");
    let journal = play.machine.stopped().expect("a swap goes on");
    assert_eq!(journal.swap.map(|swap| swap.resumes), Some(2));
    let (play, _) = Play::new(SERVES_A);
    assert_eq!(play.machine.stopped(), None, "nothing goes on");
}
