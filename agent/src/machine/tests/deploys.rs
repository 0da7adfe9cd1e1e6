//! Rules of what a target sets going, and what becomes of it.

use super::*;

#[test]
fn a_deploy_goes_from_the_target_to_the_proof() {
    check(&[
        (
            "each step waits for the one before, and the journal for nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("healthy", "write; prune a b; look"),
            ],
            "idle b healthy replaced",
        ),
        (
            "an answer that names the revision is the strongest evidence",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("served", "write; prune a b; look"),
            ],
            "idle b healthy served",
        ),
        (
            "a release of the same content need not be made live",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("alike", "look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
            ],
            "idle a healthy served; alike b",
        ),
        (
            "what is alike stands in for one target, not for the next",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("alike", "look"),
                ("target 3 c", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "a no is asked again later, from the preparing on",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "without an answer there is no leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("failed fetch", "wait 2"),
            ],
            "waiting a healthy served",
        ),
        (
            "the target that is served already asks for nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 1 a", ""),
                ("target 2 a", "write; look"),
            ],
            "idle a healthy served",
        ),
        (
            "an order to restart goes by the journal, the permit and a stop",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 a restart 1", "write; prepare a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>a"),
                ("journalled", "restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("healthy", "write; prune a; look"),
                ("target 3 a restart 1", "write; look"),
            ],
            "idle a healthy replaced",
        ),
        (
            "a newer revision that comes with an order is restarted into",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b restart 1", "write; prepare b"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "restart a>b"),
            ],
            "activating b unknown",
        ),
        (
            "an order that was given before this instance came is satisfied",
            "disk a, current a, runs",
            &[("start", "check a fully"), ("target 5 a restart 3", "write; cancel; check a fully")],
            "idle a unknown",
        ),
        (
            "what serves when the agent comes asks for leave, proven or not",
            "disk a, current a, runs",
            &[
                ("start", "check a fully"),
                ("target 1 b", "write; cancel; prepare b unless like a"),
                ("prepared", "ask 1"),
            ],
            "asking a unknown",
        ),
    ]);
}

#[test]
fn what_fails_before_the_swap_is_tried_again_and_rejects_nothing() {
    check(&[
        (
            "the waits double",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed install", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("failed fetch", "wait 4"),
                ("woke", "prepare b unless like a"),
                ("failed disk", "prune a b; wait 8"),
                ("stirred", "wait 8"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; degraded: b could not be prepared: it broke",
        ),
        (
            "what is refused waits for another target, and the same one again changes nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed refused", "look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
                ("served", "look"),
                ("target 3 b", "write; look"),
                ("target 4 c", "write; prepare c unless like a"),
            ],
            "preparing a healthy served; degraded: b could not be prepared: it broke",
        ),
        (
            "a journal that cannot be written stops the swap, and does not leave it on disk",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("failed disk", "write; prune a b; wait 2"),
                ("woke", "prepare b unless like a"),
            ],
            "preparing a healthy served; failure: disk of b, 1; degraded: b could not be prepared: it broke",
        ),
    ]);
}

#[test]
fn what_fails_after_the_swap_is_rejected_and_restored() {
    check(&[
        (
            "an unhealthy release gives way to the one before, briefly probed, and is not tried again",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("failed unhealthy", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
                ("served", "look"),
            ],
            "idle a healthy served; failure: unhealthy of b, 1; degraded: b was rejected: it broke",
        ),
        (
            "a later generation may try it again",
            "disk a b, current a, runs, proven a, seen 2 b, rejected 2 b",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 3 b", "write; prepare b unless like a"),
            ],
            "preparing a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "a manager that does not follow the reload is restarted, once",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("failed prove", "restart a>b"),
                ("activated", "prove b"),
                ("failed prove", "write; activate b>a"),
            ],
            "restoring a unknown; failure: prove of b, 1",
        ),
        (
            "a crash loop is restored at once",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("failed unhealthy", "write; activate b>a"),
            ],
            "restoring a unknown; failure: unhealthy of b, 1",
        ),
        (
            "so is what cannot be made live",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate a>b"), ("failed activate", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1",
        ),
        (
            "a restore that fails is tried by a restart, then again and again",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("activated", "prove a"),
                ("failed prove", "restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("failed unhealthy", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "wait 4"),
                ("woke", "restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "an order to restart that fails is carried out once, and its release is not rejected",
            "disk a, current a, runs, proven a, seen 2 a restart 1, swap 2 a>a restart 1",
            &[
                ("start", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("failed unhealthy", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served; failure: unhealthy of a, 1",
        ),
        (
            "what never passed its window is no place to go back to",
            "disk a b, current b, runs, proven a",
            &[
                ("start", "check b fully"),
                ("target 1 c", "write; cancel; prepare c unless like b"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 a>c"),
            ],
            "activating b unknown",
        ),
        (
            "unless there is nothing better",
            "disk b, current b, runs, proven a",
            &[
                ("start", "check b fully"),
                ("target 1 c", "write; cancel; prepare c unless like b"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 b>c"),
            ],
            "activating b unknown",
        ),
        (
            "after the proof there is no local rollback",
            "disk a b, current b, runs, proven a b, seen 2 b",
            &[
                ("start", "check b briefly"),
                ("failed unhealthy", "look"),
                ("woke", "check b briefly"),
                ("served", "look"),
            ],
            "idle b healthy served",
        ),
    ]);
}

#[test]
fn a_host_that_is_in_the_way_says_nothing_of_a_release() {
    check(&[
        (
            "nothing was touched: what serves still does, and the release is tried again",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("untouched", "write; wait 2"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; degraded: b could not be prepared: it is in the way",
        ),
        (
            "a newer target that came meanwhile is tried instead",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("target 3 c", "write"),
                ("untouched", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "a swap that was found half done is taken up once it can be, whatever the target is by then",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("untouched", "wait 2"),
                ("target 3 c", "write"),
                ("woke", "activate a>b"),
                ("activated", "prove b"),
            ],
            "proving b unknown; degraded: b could not be taken up again: it is in the way",
        ),
        (
            "a restart that the manager cannot be found for has failed: the reload was done",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("failed prove", "restart a>b"),
                ("untouched", "write; activate b>a"),
            ],
            "restoring a unknown; failure: host of b, 1",
        ),
        (
            "a restore waits for it as well",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[("start", "write; activate b>a"), ("untouched", "wait 2"), ("woke", "restart b>a")],
            "restoring a unknown; failure: restore of a, 1; degraded: a could not be restored: it is in the way",
        ),
        (
            "and one that fails three times gives way to whatever else is there",
            "disk a c b, current b, runs, proven c a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "wait 4"),
                ("woke", "restart b>a"),
                ("failed activate", "write; prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; prepare c"),
            ],
            "preparing - unhealthy; failure: activate of a, 1; degraded: a failed once it was live: it broke",
        ),
    ]);
}
