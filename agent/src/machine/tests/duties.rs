//! Rules of duties, and of what a boot is assigned.

use super::*;

#[test]
fn an_instance_that_serves_does_its_duty_and_no_more() {
    check_marked(&[
        (
            "hold: what serves is kept, and the target is not prepared",
            SERVES_A,
            &[("start", "check a briefly"), ("served", "look"), ("target 2 b hold", "write; look")],
            "idle a healthy served",
        ),
        (
            "hold: a missing fallback is made ready all the same",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b fallback c hold", "write; prepare c"),
                ("prepared", "look"),
            ],
            "idle a healthy served",
        ),
        (
            "prepare: it is made ready, and waits; then take asks at once",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b prepare", "write; prepare b unless like a"),
                ("prepared", "look"),
                ("target 2 b prepare", ""),
                ("woke", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; ask 2"),
                ("yes", "journal 2 a>b"),
            ],
            "activating a healthy served; prepared; permit",
        ),
        (
            "prepare: what fails is tried again",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b prepare", "write; prepare b unless like a"),
                ("failed install", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("prepared", "look"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "hold while something waits to be prepared again: it is not",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed install", "wait 2"),
                ("target 2 b hold", "write; look"),
            ],
            "idle a healthy served; failure: install of b, 1; degraded: b could not be prepared: it broke",
        ),
        (
            "hold while something is prepared: that ends, and is all",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 2 b hold", "write"),
                ("prepared", "look"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "a pause while a no is waited out: nothing is asked",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "wait 64"),
                ("target 2 b prepare", "write; look"),
                ("target 2 b prepare ask 1", ""),
                ("target 2 b ask 1", "write; ask 2"),
            ],
            "asking a healthy served; prepared; permit",
        ),
        (
            "once the swap has begun it is finished, whatever the duty is by then",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("target 2 b hold", "write"),
                ("activated", "prove b"),
                ("failed unhealthy", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; failure: unhealthy of b, 1; degraded: b was rejected: it broke; prepared; rejected",
        ),
        (
            "an agent that is started again goes by the last duty until it hears another",
            "disk a b, current a, runs, proven a, seen 2 b hold",
            &[("start", "check a briefly"), ("served", "look")],
            "idle a healthy served; prepared",
        ),
        (
            "probing follows the word's pace, at once",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("+1 target 1 a every 5", "by 5"),
                ("woke", "check a briefly"),
                ("served", "by 10"),
                ("target 1 a every 0", "by 6"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "a group without a target is no reason to do anything",
            SERVES_A,
            &[("start", "check a briefly"), ("served", "look"), ("no target", "")],
            "idle a healthy served; objection: the group has no target yet; prepared",
        ),
        (
            "a word with a lower target has no effect at all",
            "disk a b, current a, runs, proven a, seen 2 b hold",
            &[("start", "check a briefly"), ("served", "look"), ("target 1 c order 7 retry 7", "")],
            "idle a healthy served; objection: the source names generation 1 of epoch 1 (c), and generation 2 of epoch 1 was seen before: a lower one is refused; prepared",
        ),
    ]);
}

#[test]
fn a_target_that_names_only_what_must_not_serve() {
    check_marked(&[
        (
            "who serves it goes back to the newest other that is proven, under a permit",
            "disk a c b, current b, runs, proven c a b, seen 1 b",
            &[
                ("start", "check b briefly"),
                ("served", "look"),
                ("target 2 not b", "write; prepare a unless like b"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 b>a"),
                ("journalled", "activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; prepared",
        ),
        (
            "and past one in quarantine",
            "disk a c b, current b, runs, proven c a b, seen 1 b",
            &[
                ("start", "check b briefly"),
                ("served", "look"),
                ("target 2 not b quarantine a", "write; prepare c unless like b"),
            ],
            "preparing b healthy served; prepared",
        ),
        (
            "all others keep what serves",
            SERVES_A,
            &[("start", "check a briefly"), ("served", "look"), ("target 2 not b", "write; look")],
            "idle a healthy served; prepared",
        ),
        (
            "who has nothing else keeps it, and says so",
            SERVES_A,
            &[("start", "check a briefly"), ("served", "look"), ("target 2 not a", "write; look")],
            "idle a healthy served; degraded: a must not serve, and nothing else is proven here",
        ),
        (
            "what fails on the way back is not tried again for it",
            "disk a c b, current b, runs, proven c a b, seen 1 b",
            &[
                ("start", "check b briefly"),
                ("served", "look"),
                ("target 2 not b", "write; prepare a unless like b"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 b>a"),
                ("journalled", "activate b>a"),
                ("failed activate", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b briefly"),
                ("served", "write; prune b c; prepare c unless like b"),
            ],
            "preparing b healthy served; failure: activate of a, 1; prepared; rejected",
        ),
        (
            "a newborn takes what is baked",
            "disk a b, current a",
            &[("start", "by 60"), ("target 2 not b boot none", "write; prepare a; by 180")],
            "preparing - unknown; newborn",
        ),
        (
            "and what must not serve only where nothing else is there",
            "disk b, current b",
            &[("start", "by 60"), ("target 2 not b boot none", "write; prepare b; by 240")],
            "preparing - unknown; newborn",
        ),
        (
            "a reboot leaves it",
            "disk a b, current b, proven a b, seen 2 not b boot none",
            &[("start", "by 60"), ("target 2 not b boot none", "prepare a; by 180")],
            "preparing - unknown",
        ),
    ]);
}

#[test]
fn a_boot_begins_at_what_it_is_assigned() {
    check_marked(&[
        (
            "a newborn in the middle of a rollout: the word's boot, and then it waits its turn",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 2 c hold boot b", "write; prepare b; by 180"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("served", "write; prune b c; look"),
                ("target 2 c boot b", "write; prepare c unless like b"),
            ],
            "preparing b healthy served",
        ),
        (
            "a newborn without an assignment: what is baked, undegraded",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 2 c hold boot none", "write; prepare a; by 180"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a c; look"),
            ],
            "idle a healthy served",
        ),
        (
            "a newborn with nothing at all: the target",
            "",
            &[("start", "by 60"), ("target 2 c hold boot none", "write; prepare c; by 180")],
            "preparing - unknown; newborn",
        ),
        (
            "a reboot in the middle of a rollout: what it served",
            "disk a b, current a, proven a, seen 1 a",
            &[("start", "by 60"), ("target 2 b hold boot a", "write; prepare a; by 180")],
            "preparing - unknown; prepared",
        ),
        (
            "also where the group's boots are another revision",
            "disk a b, current a, proven a, seen 1 a",
            &[("start", "by 60"), ("target 2 b hold boot c", "write; prepare a; by 180")],
            "preparing - unknown; prepared",
        ),
        (
            "an unproven target is taken after a reboot where the swap to it had begun",
            "disk a b, current b, proven a, seen 2 b boot a, swap 2 a>b",
            &[("start", "write; activate a>b")],
            "activating b unknown; prepared; permit",
        ),
        (
            "and where it had succeeded here",
            "disk a b, current b, proven a b, seen 2 b boot a",
            &[("start", "by 60"), ("target 2 b hold boot a", "write; prepare b; by 20")],
            "preparing - unknown; prepared",
        ),
        (
            "and not where it was rejected",
            "disk a b, current b, proven a, seen 2 b boot a, rejected 2 b",
            &[("start", "by 60"), ("target 2 b hold boot a", "write; prepare a; by 180")],
            "preparing - unknown; prepared; rejected",
        ),
        (
            "a group-proven target is taken after a reboot without leave",
            "disk a b, current a, proven a, seen 1 a",
            &[
                ("start", "by 60"),
                ("target 2 b hold boot b", "write; prepare b; by 20"),
                ("prepared", "journal 2 >b"),
            ],
            "activating - unknown; prepared; permit",
        ),
        (
            "without a word from its source, by the last one",
            "disk a b, current a, proven a, seen 2 b hold boot a",
            &[("start", "by 60"), ("objected", "prepare a; by 180")],
            "preparing - unknown; objection: it does not parse; prepared",
        ),
        (
            "what is in quarantine comes last of all",
            "disk a b, current b, proven b",
            &[
                ("start", "by 60"),
                ("target 2 b fallback c quarantine b", "write; prepare c; by 240"),
                ("failed refused", "prepare a"),
                ("failed refused", "prepare b; by 240"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("replaced", "probe b briefly"),
                ("served", "write; prune b c; prepare c"),
            ],
            "idle b healthy served; prepared",
        ),
        (
            "another assignment in the middle of a boot is begun at once",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 2 c hold boot b", "write; prepare b; by 180"),
                ("target 2 c hold boot d", "write; cancel; prepare d; by 180"),
            ],
            "preparing - unknown; newborn",
        ),
        (
            "another assignment while the first is live already is begun as soon as that has failed",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 2 c hold boot b", "write; prepare b; by 180"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("target 2 c hold boot d", "write"),
                ("+300 failed activate", "write; prepare d; by 360"),
                ("prepared", "journal 2 >d"),
                ("journalled", "activate >d"),
                ("failed activate", "write; prepare a"),
            ],
            "preparing - unhealthy; failure: activate of d, 1; degraded: d failed once it was live: it broke; newborn",
        ),
        (
            "a newer target that leaves the assignment as it was cancels nothing",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 2 c hold boot b", "write; prepare b; by 180"),
                ("target 3 d hold boot b", "write"),
                ("prepared", "journal 3 >b"),
            ],
            "activating - unknown; newborn; permit",
        ),
    ]);
}
