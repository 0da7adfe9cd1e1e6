//! Rules of what served here before the agent came.

use super::*;

#[test]
fn what_serves_already_is_no_newborn_and_is_left_under_a_permit() {
    check_marked(&[
        (
            "it is looked at through its window, and nothing is begun without a word",
            "adopts, current old, runs",
            &[("start", "check old fully"), ("healthy", "write; look")],
            "idle old healthy",
        ),
        (
            "held, it is kept",
            "adopts, current old, runs",
            &[
                ("start", "check old fully"),
                ("healthy", "write; look"),
                ("target 1 a hold boot none", "write; look"),
            ],
            "idle old healthy",
        ),
        (
            "told to take, it prepares, asks, and is left by a full restart",
            "adopts, current old, runs",
            &[
                ("start", "check old fully"),
                ("healthy", "write; look"),
                ("target 1 a", "write; prepare a"),
                ("prepared", "ask 1"),
                ("asked 7", ""),
                ("yes", "journal 1 old>a"),
                ("journalled", "restart old>a"),
                ("started", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "it fails: what served before is started again, and closes the permit",
            "adopts, current old, runs",
            &[
                ("start", "check old fully"),
                ("healthy", "write; look"),
                ("target 1 a", "write; prepare a"),
                ("prepared", "ask 1"),
                ("asked 7", ""),
                ("yes", "journal 1 old>a"),
                ("journalled", "restart old>a"),
                ("started", "prove a"),
                ("replaced", "probe a fully"),
                ("failed unhealthy", "write; restart a>old"),
                ("started", "prove old"),
                ("replaced", "probe old briefly"),
                ("healthy", "write; prune a; look"),
            ],
            "idle old healthy; failure: unhealthy of a, 1; degraded: a was rejected: it broke; prepared; rejected",
        ),
        (
            "an unhealthy one is reported, and may ask",
            "adopts, current old, runs",
            &[
                ("start", "check old fully"),
                ("failed unhealthy", "look"),
                ("target 1 a", "write; prepare a"),
                ("prepared", "ask 1"),
            ],
            "asking old unhealthy; degraded: it broke; prepared; permit",
        ),
        (
            "it ends: it is started again, where nothing else is to boot",
            "adopts, current old, runs",
            &[
                ("start", "check old fully"),
                ("healthy", "write; look"),
                ("target 1 a hold boot none", "write; look"),
                ("ended", "check old briefly"),
                ("absent", "journal 1 >old"),
                ("journalled", "restart >old"),
                ("started", "prove old"),
                ("replaced", "probe old briefly"),
                ("healthy", "write; prune a; look"),
            ],
            "idle old healthy",
        ),
        (
            "a restart that was ordered of it",
            "adopts, adopted, current old, runs, seen 1 a hold boot none",
            &[
                ("start", "check old briefly"),
                ("healthy", "look"),
                ("target 1 a hold boot none order 1", "ask 1"),
                ("yes", "journal 1 old>old"),
                ("journalled", "restart old>old"),
                ("started", "prove old"),
                ("replaced", "probe old fully"),
                ("healthy", "write; prune a; look"),
            ],
            "idle old healthy",
        ),
    ]);
}

#[test]
fn an_agent_killed_between_the_two_goes_on_by_a_full_restart() {
    check_marked(&[
        (
            "on the way from it, whatever runs by now",
            "adopts, adopted, disk a, current a, runs, seen 1 a, swap 1 old>a",
            &[
                ("start", "write; restart old>a"),
                ("started", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "on the way back to it",
            "adopts, adopted, disk a, current a, runs, seen 1 a, rejected 1 a, swap 1 old>a, failed",
            &[
                ("start", "write; restart a>old"),
                ("failed activate", "wait 2"),
                ("woke", "restart a>old"),
                ("started", "prove old"),
                ("replaced", "probe old briefly"),
                ("healthy", "write; prune a; look"),
            ],
            "idle old healthy; degraded: a was rejected: it broke; prepared; rejected",
        ),
        (
            "three times: back to it",
            "adopts, adopted, disk a, current a, runs, seen 1 a, swap 1 old>a, resumed 3",
            &[("start", "write; restart a>old")],
            "restoring old unknown; failure: activate of a, 1; prepared; rejected; permit",
        ),
        (
            "host config names it no more: the ladder is what is left",
            "adopted, disk a b, current a, runs, seen 1 a, rejected 1 a, swap 1 old>a, failed",
            &[("start", "write; prepare b")],
            "preparing - unknown; degraded: a failed once it was live: it broke; newborn; prepared; rejected",
        ),
    ]);
}

#[test]
fn whoever_serves_what_must_not_serve_goes_back_to_it_where_nothing_else_is_proven() {
    check_marked(&[
        (
            "nothing else is proven",
            "adopts, adopted, disk a, current a, runs, proven a, seen 1 a",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 not a", "write; ask 2"),
                ("yes", "journal 2 a>old"),
                ("journalled", "restart a>old"),
                ("started", "prove old"),
                ("replaced", "probe old fully"),
                ("healthy", "write; prune a; look"),
            ],
            "idle old healthy; prepared",
        ),
        (
            "something else is",
            "adopts, adopted, disk a b, current b, runs, proven a b, seen 1 b",
            &[
                ("start", "check b briefly"),
                ("served", "look"),
                ("target 2 not b", "write; prepare a unless like b"),
            ],
            "preparing b healthy served; prepared",
        ),
        (
            "it fails: what must not serve is better than nothing, and it is not tried again",
            "adopts, adopted, disk a, current a, runs, proven a, seen 2 not a",
            &[
                ("start", "check a briefly"),
                ("served", "ask 2"),
                ("yes", "journal 2 a>old"),
                ("journalled", "restart a>old"),
                ("failed activate", "write; restart old>a"),
                ("started", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served; degraded: a must not serve, and nothing else is proven here (it broke); rejected",
        ),
        (
            "it never served here: what serves is kept",
            "adopts, disk a, current a, runs, proven a, seen 2 not a",
            &[("start", "check a briefly"), ("served", "look")],
            "idle a healthy served; degraded: a must not serve, and nothing else is proven here",
        ),
        (
            "it serves already",
            "adopts, adopted, current old, runs, seen 1 a",
            &[
                ("start", "check old briefly"),
                ("target 2 not a", "write; cancel; check old briefly"),
                ("healthy", "look"),
            ],
            "idle old healthy; prepared",
        ),
    ]);
}

#[test]
fn at_boot_it_comes_last_of_what_is_good() {
    check_marked(&[
        (
            "it served before the reboot, and its turn has not come",
            "adopts, adopted, disk a, seen 1 a hold boot none",
            &[("start", "by 60"), ("target 1 a hold boot none", "journal 1 >old")],
            "activating - unknown; prepared; permit",
        ),
        (
            "the group has a proven one to boot",
            "adopts, adopted, seen 2 b boot a hold",
            &[("start", "by 60"), ("target 2 b boot a hold", "prepare a; by 20")],
            "preparing - unknown",
        ),
        (
            "what was proven here comes first",
            "adopts, adopted, disk a, current a, proven a, seen 1 a hold boot none",
            &[("start", "by 60"), ("target 1 a hold boot none", "prepare a; by 20")],
            "preparing - unknown; prepared",
        ),
        (
            "everything else has failed",
            "adopts, disk a, current a, proven a, seen 1 a",
            &[
                ("start", "by 60"),
                ("target 1 a", "prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; journal 1 >old"),
                ("journalled", "restart >old"),
                ("started", "prove old"),
                ("replaced", "probe old fully"),
                ("healthy", "write; prune a; wait 64"),
            ],
            "waiting old healthy; degraded: a failed once it was live: it broke; prepared",
        ),
        (
            "but before what is in quarantine",
            "adopts, disk a, current a, proven a, seen 1 b quarantine a",
            &[
                ("start", "by 60"),
                ("target 1 b quarantine a", "prepare b; by 180"),
                ("failed refused", "journal 1 >old"),
            ],
            "activating - unknown; permit",
        ),
        (
            "a newborn whose image holds it",
            "adopts",
            &[("start", "by 60"), ("target 1 a hold boot none", "write; journal 1 >old")],
            "activating - unknown; newborn; permit",
        ),
    ]);
}
