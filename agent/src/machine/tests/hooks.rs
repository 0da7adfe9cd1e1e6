//! Rules of hooks: when they are due, and what one that says no does. And of a release that has no manager.

use super::*;

#[test]
fn a_hook_that_says_no_rejects_the_release_and_touches_nothing() {
    check_marked(&[
        (
            "what serves is neither reloaded nor looked at anew",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("asked 7", ""),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("refused", "write; look"),
                ("target 3 c", "write; prepare c unless like a"),
            ],
            "preparing a healthy served; degraded: b was rejected: a hook says no; renounced 7",
        ),
        (
            "not again in this generation, and in the next",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("refused", "write; look"),
                ("target 2 b", ""),
                ("target 3 b", "write; ask 3"),
            ],
            "asking a healthy served; failure: activate of b, 1; degraded: b was rejected: a hook says no; prepared; permit",
        ),
        (
            "one that the last run began: what serves is made sure of",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate a>b"), ("refused", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1; prepared; rejected; permit",
        ),
        (
            "at a boot: the ladder",
            "disk a b, current a, proven a, seen 1 a",
            &[
                ("start", "by 60"),
                ("target 2 b boot b", "write; prepare b; by 20"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("refused", "write; prepare a"),
            ],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: a hook says no; prepared; rejected",
        ),
    ]);
}

/// A rule in words; how the instance was found; what happens, and what then; the releases whose hooks are
/// due.
type Case = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

#[test]
fn hooks_are_due_for_deploys_alone() {
    const DEPLOY: &[&str] = &["served", "target 2 b", "prepared", "yes", "journalled"];
    let cases: &[Case] = &[
        ("a deploy", SERVES_A, DEPLOY, &[], &["b"]),
        (
            "not what is restored",
            SERVES_A,
            DEPLOY,
            &["activated", "replaced", "failed unhealthy"],
            &["b"],
        ),
        (
            "the restart that a reload came to: of the same deploy",
            SERVES_A,
            DEPLOY,
            &["activated", "failed prove"],
            &["b", "b"],
        ),
        (
            "not a restart",
            SERVES_A,
            &["served", "target 2 a restart 1", "prepared", "yes", "journalled"],
            &[],
            &[],
        ),
        (
            "a rollback is a deploy of what was good before",
            "disk a b, current b, runs, proven a b, seen 2 b",
            &["served", "target 3 a", "prepared", "yes", "journalled"],
            &[],
            &["a"],
        ),
        (
            "not a boot of what was good here",
            SERVES_A_STOPPED,
            &["target 1 a", "prepared", "journalled"],
            &[],
            &[],
        ),
        (
            "a boot of what never was",
            "disk a",
            &["target 1 a", "prepared", "journalled"],
            &[],
            &["a"],
        ),
        (
            "what the last run began",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[],
            &[],
            &["b"],
        ),
    ];
    for (rule, found, first, then, expected) in cases.iter().copied() {
        let (mut play, _) = Play::new(found);
        for event in first.iter().chain(then) {
            play.step(event);
        }
        assert_eq!(play.deploys, expected, "{rule}");
    }
}

#[test]
fn without_a_manager_the_swap_is_all_and_the_app_may_still_show_what_it_serves() {
    check(&[
        (
            "nothing is shown but that something is healthy",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("healthy", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("started", "prove b"),
                ("swapped", "probe b fully"),
                ("healthy", "write; prune a b; look"),
            ],
            "idle b healthy",
        ),
        (
            "unless the answer names it",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("started", "prove b"),
                ("swapped", "probe b fully"),
                ("served", "write; prune a b; look"),
            ],
            "idle b healthy served",
        ),
        (
            "unhealthy: back",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("started", "prove b"),
                ("swapped", "probe b fully"),
                ("failed unhealthy", "write; activate b>a"),
                ("started", "prove a"),
                ("swapped", "probe a briefly"),
                ("healthy", "write; prune a b; look"),
            ],
            "idle a healthy; failure: unhealthy of b, 1; degraded: b was rejected: it broke",
        ),
    ]);
}
