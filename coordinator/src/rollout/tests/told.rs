//! Joins, reports and goodbyes, taken up; newborns that fail; records that are let go.

use std::time::Duration;

use towline_protocol::policy::{BootQuarantine, Policy};
use towline_protocol::poll::{FailureLog, LogPart, Message};
use towline_protocol::report::{Cause, Failure, Health};
use towline_protocol::time::Timestamp;

use super::world::{World, instance, policy, revision, web};
use crate::records::key;
use crate::rollout::operations::ToInstance;
use crate::rollout::{operations, reports, words};

const COARSE: Duration = Duration::from_secs(60);

fn message(world: &World, name: &str, seq: u64) -> Message {
    let report = world.agents[&instance(name)].report.clone();
    Message { seq, age_ms: 0, report, note: None, log: None }
}

fn take(world: &mut World, message: &Message) -> bool {
    let draft = reports::report(world.state(), message, world.now.at);
    draft.is_some_and(|draft| world.commit(draft))
}

#[test]
fn a_message_that_was_overtaken_or_repeated_changes_nothing() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let mut late = message(&world, "i-0a", 2);
    late.report.health = Health::Unhealthy;
    assert!(!take(&mut world, &late), "its number is not higher");
    let next = message(&world, "i-0a", 50);
    assert!(take(&mut world, &next));
    assert!(!take(&mut world, &next), "repeated");
    let (one, other) = (message(&world, "i-0a", 51), message(&world, "i-0a", 52));
    let drafts = [&other, &one].map(|told| reports::report(world.state(), told, world.now.at));
    let [other, one] = drafts.map(Option::unwrap);
    assert!(world.commit(other));
    assert!(!world.commit(one), "decided on a record that is another since");
    let record = world.state().member(&instance("i-0a")).unwrap();
    assert_eq!((record.seq, record.report.as_ref().unwrap().health), (52, Health::Healthy));
}

#[test]
fn a_goodbye_that_overtakes_the_first_poll_is_the_last_word() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let name = instance("i-new");
    let gone = reports::left(world.state(), &name, Some(9), world.now.at).unwrap();
    let late = reports::polled(world.state(), &name, 8, world.now.at, COARSE).unwrap();
    assert!(world.commit(gone));
    assert!(!world.commit(late), "decided before, stored after");
    assert!(
        reports::polled(world.state(), &name, 8, world.now.at, COARSE).is_none(),
        "sent before"
    );
    assert!(world.state().member(&name).is_none());
    let again = reports::polled(world.state(), &name, 10, world.now.at, COARSE).unwrap();
    assert!(world.commit(again));
    assert!(world.state().member(&name).is_some(), "its next run");
    assert!(reports::left(world.state(), &instance("i-x"), None, world.now.at).is_none());
}

#[test]
fn what_a_report_tells_is_as_old_as_it_says() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.pass_s(1000);
    let mut told = message(&world, "i-0a", 50);
    told.age_ms = 600_000;
    told.report.health = Health::Unhealthy;
    assert!(take(&mut world, &told));
    let record = world.state().member(&instance("i-0a")).unwrap().clone();
    assert_eq!(record.reported, Timestamp(world.now.at.0 - 600_000));
    assert_eq!(record.since, record.reported);
    told.seq += 1;
    told.age_ms = 0;
    assert!(take(&mut world, &told));
    let same = world.state().member(&instance("i-0a")).unwrap();
    assert_eq!(same.since, record.since, "nothing that counts is otherwise");
    assert_eq!(same.seen, world.now.at);
}

#[test]
fn polls_let_join_and_are_stored_coarsely() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let polled = |world: &World, name: &str, seq| {
        reports::polled(world.state(), &instance(name), seq, world.now.at, COARSE)
    };
    assert!(polled(&world, "i-0a", 99).is_none(), "seen a moment ago");
    world.pass_s(60);
    let draft = polled(&world, "i-0a", 100).unwrap();
    assert!(world.commit(draft));
    assert_eq!(world.state().member(&instance("i-0a")).unwrap().seen, world.now.at);
    let draft = polled(&world, "i-0b", 7).unwrap();
    assert!(world.commit(draft));
    let record = world.state().member(&instance("i-0b")).unwrap();
    assert_eq!((record.seq, &record.report), (0, &None), "a report that was sent before counts");
}

#[test]
fn whoever_left_is_brought_back_by_news_only() {
    let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
    world.operate(|state, _| operations::order(state, &instance("i-0a"), ToInstance::Restart));
    let late = message(&world, "i-0a", world.agents[&instance("i-0a")].seq);
    world.leaves("i-0a");
    assert!(world.state().member(&instance("i-0a")).is_none());
    assert!(!take(&mut world, &late), "sent before the goodbye");
    let seq = world.state().instances[&instance("i-0a")].value.seq;
    let poll = |world: &World, seq| {
        reports::polled(world.state(), &instance("i-0a"), seq, world.now.at, COARSE)
    };
    assert!(poll(&world, seq).is_none());
    let draft = poll(&world, seq + 1).unwrap();
    assert!(world.commit(draft));
    let record = world.state().member(&instance("i-0a")).unwrap();
    assert_eq!((&record.report, record.orders.restart), (&None, 1), "its orders' numbers go on");
    let again = reports::left(world.state(), &instance("i-0a"), Some(seq), world.now.at);
    assert!(again.is_none(), "a repeated goodbye");
    world.leaves("i-0b");
    let twice = reports::left(world.state(), &instance("i-0b"), None, world.now.at);
    assert!(twice.is_none(), "forgotten after its goodbye");
    let unknown = reports::left(world.state(), &instance("i-ff"), None, world.now.at);
    assert!(unknown.is_none());
}

#[test]
fn a_goodbye_that_is_news_is_stored_also_of_whoever_is_not_there_as_far_as_is_known() {
    // The coordinator may be behind, and the instance back, or have joined: then storing it fails.
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    world.leaves("i-0a");
    let seq = world.state().instances[&instance("i-0a")].value.seq;
    for (name, seq) in [("i-0a", seq + 5), ("i-ff", 5)] {
        let draft = reports::left(world.state(), &instance(name), Some(seq), world.now.at).unwrap();
        assert!(World::compares(&draft).contains(&format!("instance/web/{name}")));
        assert!(world.commit(draft));
        assert!(world.state().member(&instance(name)).is_none());
        let polled = |seq| {
            reports::polled(world.state(), &instance(name), seq, world.now.at, COARSE).is_some()
        };
        assert_eq!((polled(seq), polled(seq + 1)), (false, true), "sent before it, or after");
    }
}

#[test]
fn a_failures_log_is_kept_until_the_instance_leaves() {
    let mut world = World::new(policy(&[50]), &["i-0a", "i-0b"]);
    let mut told = message(&world, "i-0a", 50);
    let part = LogPart { source: "app".to_owned(), text: "no such module".to_owned() };
    let detail = "503".to_owned();
    told.log = Some(FailureLog { revision: revision('b'), detail, parts: vec![part] });
    assert!(take(&mut world, &told));
    let at = key::log(&web(), &instance("i-0a"));
    assert!(world.has(&at));
    world.agents.get_mut(&instance("i-0a")).unwrap().seq = 60;
    world.leaves("i-0a");
    assert!(!world.has(&at));
}

/// Newborns that fail on a revision, one after the other.
fn boot_fails(world: &mut World, names: &[&str], name: char, cause: Cause) {
    let order = world.state().order();
    for newborn in names {
        if !world.agents.contains_key(&instance(newborn)) {
            world.join(newborn, None);
        }
        let detail = "503".to_owned();
        let revision = revision(name);
        let failure = Failure { order: Some(order), revision, cause, detail, attempt: 1 };
        world.tell(newborn, |told| told.failure = Some(failure));
    }
}

fn boots(world: &World) -> Option<towline_protocol::ids::Revision> {
    words::boot(world.state(), &instance("i-9f"))
}

/// Group-proven are `c` and then `a`, the target.
fn proven() -> World {
    let boot_quarantine = BootQuarantine { instances: 2, window_s: 100 };
    let mut world = World::new(Policy { boot_quarantine, ..policy(&[50]) }, &["i-0a", "i-0b"]);
    world.release('c').unwrap();
    world.run();
    world.release('a').unwrap();
    world.run();
    assert_eq!(world.rollout().target.fallback, Some(revision('c')));
    world
}

#[test]
fn newborns_that_fail_on_a_group_proven_target_move_the_newborns_only() {
    let mut world = proven();
    boot_fails(&mut world, &["i-90"], 'a', Cause::Unhealthy);
    assert_eq!(boots(&world), Some(revision('a')), "one host proves nothing");
    let told = message(&world, "i-90", 90);
    boot_fails(&mut world, &["i-90"], 'a', Cause::Unhealthy);
    assert_eq!(boots(&world), Some(revision('a')), "nor does the same one twice");
    boot_fails(&mut world, &["i-91"], 'a', Cause::Unhealthy);
    assert_eq!(boots(&world), Some(revision('c')));
    let mut other = told;
    other.report.instance = instance("i-92");
    let draft = reports::report(world.state(), &other, world.now.at).unwrap();
    let compares = draft.into_commit().compares;
    assert!(compares.iter().any(|compare| compare.key == "group/web"), "two may fail at a time");
    let group = &world.state().record.as_ref().unwrap().value;
    assert!(group.quarantine.is_empty(), "it is never put into quarantine by itself");
    assert_eq!(world.state().order().generation, 3, "the target stays");
}

#[test]
fn what_does_not_count_as_a_newborns_failure() {
    type Rule = (&'static str, fn(&mut World));
    let rules: [Rule; 4] = [
        ("before the swap", |world| {
            boot_fails(world, &["i-90", "i-91"], 'a', Cause::Fetch);
        }),
        ("on another revision", |world| {
            boot_fails(world, &["i-90", "i-91"], 'c', Cause::Unhealthy);
        }),
        ("long ago", |world| {
            boot_fails(world, &["i-90"], 'a', Cause::Unhealthy);
            world.pass_s(101);
            boot_fails(world, &["i-91"], 'a', Cause::Unhealthy);
        }),
        ("on one that is no newborn", |world| {
            boot_fails(world, &["i-0a", "i-0b"], 'a', Cause::Unhealthy);
        }),
    ];
    for (rule, happens) in rules {
        let mut world = proven();
        happens(&mut world);
        assert_eq!(boots(&world), Some(revision('a')), "{rule}");
        let group = &world.state().record.as_ref().unwrap().value;
        assert!(group.unbootable.is_none() && group.quarantine.is_empty(), "{rule}");
    }
}

#[test]
fn newborns_that_fail_on_an_unproven_target_put_it_into_quarantine() {
    let boot_quarantine = BootQuarantine { instances: 2, window_s: 100 };
    let mut world = World::fresh(Policy { boot_quarantine, ..policy(&[50]) }, &[]);
    world.release('b').unwrap();
    boot_fails(&mut world, &["i-90", "i-91"], 'b', Cause::Unhealthy);
    let group = &world.state().record.as_ref().unwrap().value;
    assert!(group.is_quarantined(&revision('b')));
    assert!(group.quarantine[0].reason.starts_with("2 newborns failed on it: 503"));
}

#[test]
fn those_who_left_are_forgotten_after_an_hour() {
    let names: Vec<String> = (0..100).map(|number| format!("i-{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(policy(&[50]), &names);
    for name in &names[..60] {
        world.leaves(name);
    }
    world.pass_s(3600);
    assert!(reports::forgotten(world.state(), world.now.at).is_empty(), "not a second early");
    world.pass_s(1);
    world.leaves("i-99");
    let drafts = reports::forgotten(world.state(), world.now.at);
    assert!(drafts.len() > 1, "in commits of their size");
    for draft in drafts {
        assert!(world.commit(draft));
    }
    assert_eq!(world.state().instances.len(), 40, "those who left just now are remembered");
    assert_eq!(world.state().members().count(), 39);
}

#[test]
fn nobody_is_forgotten_who_comes_back_meanwhile() {
    let mut world = World::new(policy(&[50]), &["i-0a"]);
    let told = message(&world, "i-0a", 50);
    world.leaves("i-0a");
    world.pass_s(4000);
    let draft = reports::forgotten(world.state(), world.now.at).remove(0);
    assert!(take(&mut world, &told));
    assert!(!world.commit(draft));
    assert!(world.state().member(&instance("i-0a")).is_some());
}
