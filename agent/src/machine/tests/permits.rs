//! Rules of leave to swap: how long it is good for, and what becomes of one that is not used.

use super::*;

/// An agent that has asked for leave to swap from `a` to `b`, with its question 7.
const ASKS: [(&str, &str); 5] = [
    ("start", "check a briefly"),
    ("served", "look"),
    ("target 2 b", "write; prepare b unless like a"),
    ("prepared", "ask 2"),
    ("asked 7", ""),
];

/// Plays what follows on [`ASKS`]; the last line is the report.
fn check_asked(rules: &[(&'static str, Steps, &'static str)]) {
    for (rule, rest, report) in rules {
        let steps = [&ASKS[..], rest].concat();
        check_marked(&[(rule, SERVES_A, steps.leak(), report)]);
    }
}

#[test]
fn leave_is_used_in_time_or_given_back() {
    check_asked(&[
        (
            "in time, to the last moment: the swap begins",
            &[("yes 30", "journal 2 a>b"), ("+30 journalled", "activate a>b")],
            "activating b unknown; prepared; permit",
        ),
        (
            "journalled too late: it is taken back, and leave is asked for again",
            &[
                ("yes 30", "journal 2 a>b"),
                ("+31 journalled", "write; ask 2"),
                ("asked 9", ""),
                ("yes 60", "journal 2 a>b"),
                ("journalled", "activate a>b"),
            ],
            "activating b unknown; prepared; permit; renounced 7",
        ),
        (
            "an answer that came too late is none",
            &[("+31 yes 30", "wait 2"), ("woke", "ask 2")],
            "asking a healthy served; prepared; permit; renounced 7",
        ),
        (
            "a journal that cannot be written gives it back",
            &[("yes 30", "journal 2 a>b"), ("failed disk", "write; prune a b; wait 2")],
            "waiting a healthy served; failure: disk of b, 1; degraded: b could not be prepared: it broke; prepared; renounced 7",
        ),
        (
            "so does a host that is in the way",
            &[
                ("yes 30", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("untouched", "write; wait 2"),
            ],
            "waiting a healthy served; failure: host of b, 1; degraded: b could not be prepared: it is in the way; prepared; renounced 7",
        ),
        (
            "a question that had no answer is renounced",
            &[("failed fetch", "wait 2")],
            "asking a healthy served; prepared; renounced 7",
        ),
        (
            "so is one that was told no",
            &[("no", "wait 64")],
            "asking a healthy served; prepared; renounced 7",
        ),
        (
            "and one that a newer generation overtook, or an end of the app",
            &[
                ("target 3 b", "write; cancel; ask 3"),
                ("asked 8", ""),
                ("ended", "cancel; check a briefly"),
            ],
            "idle a healthy served; prepared; renounced 8",
        ),
        (
            "a late yes to an old question is no leave",
            &[("target 3 b", "write; cancel; ask 3"), ("asked 8", ""), ("late yes", "")],
            "asking a healthy served; prepared; permit; renounced 7",
        ),
    ]);
}

#[test]
fn a_pause_takes_back_what_has_not_begun() {
    check_asked(&[
        (
            "while asking: the question is renounced, and nothing is prepared again afterwards",
            &[
                ("target 2 b prepare", "write; cancel; look"),
                ("late yes", ""),
                ("yes", ""),
                ("target 2 b", "write; ask 2"),
            ],
            "asking a healthy served; prepared; permit; renounced 7",
        ),
        (
            "while the journal is written: it is taken back before anything is touched",
            &[
                ("yes 30", "journal 2 a>b"),
                ("target 2 b prepare", "write"),
                ("journalled", "write; look"),
            ],
            "idle a healthy served; prepared; renounced 7",
        ),
        (
            "a pause with the next generation: the question is not asked anew",
            &[("target 3 b prepare", "write; cancel; look")],
            "idle a healthy served; prepared; renounced 7",
        ),
        (
            "an order to hold and resume at once leaves everything as it was",
            &[
                ("yes 30", "journal 2 a>b"),
                ("target 2 b hold", "write"),
                ("target 2 b", "write"),
                ("journalled", "activate a>b"),
            ],
            "activating b unknown; prepared; permit",
        ),
    ]);
}

#[test]
fn after_a_no_the_source_says_when_to_ask_again() {
    check_asked(&[
        (
            "at its word, at once",
            &[("no", "wait 64"), ("target 2 b ask 1", "ask 2")],
            "asking a healthy served; prepared; permit; renounced 7",
        ),
        (
            "also where that word overtook the answer",
            &[("target 2 b ask 1", ""), ("no", "ask 2"), ("no", "wait 64")],
            "asking a healthy served; prepared; renounced 7",
        ),
        (
            "also where it came during a look at what serves",
            &[
                ("no", "wait 64"),
                ("woke", "check a briefly"),
                ("target 2 b ask 1", ""),
                ("served", "ask 2"),
            ],
            "asking a healthy served; prepared; permit; renounced 7",
        ),
        (
            "the same word again is none",
            &[("no", "wait 64"), ("target 2 b", "")],
            "asking a healthy served; prepared; renounced 7",
        ),
    ]);
}

#[test]
fn a_permit_is_in_use_until_something_proven_is_healthy() {
    check_asked(&[
        (
            "through its own window",
            &[
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
            ],
            "probing b unknown replaced; prepared; permit",
        ),
        (
            "and no longer than that",
            &[
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("served", "write; prune a b; look"),
            ],
            "idle b healthy served; prepared",
        ),
        (
            "or until what served before is healthy again",
            &[
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; failure: activate of b, 1; degraded: b was rejected: it broke; prepared; rejected",
        ),
        (
            "also where a killed agent has to restore, and the numbers of its next run are higher",
            &[
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("killed", "write; activate b>a"),
            ],
            "restoring a unknown; prepared; rejected; permit; renounced 6",
        ),
    ]);
    check_marked(&[
        (
            "what an earlier run asked is renounced by the next",
            "disk a b, current a, runs, proven a, seen 2 b, run 1",
            &[("start", "check a briefly")],
            "idle a unknown; prepared; renounced 4294967296",
        ),
        (
            "a permit that was used stays in use through a boot",
            "disk a b, current b, proven a, seen 2 b, rejected 2 b, used 7, run 1",
            &[("start", "by 60"), ("target 2 b", "prepare a")],
            "preparing - unknown; prepared; rejected; permit; renounced 6",
        ),
    ]);
}
