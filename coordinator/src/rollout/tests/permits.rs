//! Leave to swap: who gets it, who does not, and what closes it.

use towline_protocol::ids::Order;
use towline_protocol::policy::{Policy, Share};
use towline_protocol::report::{Health, Phase};

use super::world::{World, instance, policy, revision, web};
use crate::fleet::Presence;
use crate::records::Draft;
use crate::rollout::operations::{self, ToInstance};
use crate::rollout::{permits, reports};

const THREE: [&str; 3] = ["i-0a", "i-0b", "i-0c"];

/// A rule, and what happens.
type Rule = (&'static str, fn(&mut World));

/// A release whose only batch is open.
fn open(max_unavailable: u32) -> World {
    let max_unavailable = Share::Count(max_unavailable);
    let mut world = World::new(Policy { canary: 3, max_unavailable, ..policy(&[]) }, &THREE);
    world.release('b').unwrap();
    world.settle();
    world
}

fn no(world: &mut World, name: &str) -> String {
    let leave = world.ask(name);
    assert_eq!(leave.permit, None);
    leave.reason.unwrap()
}

#[test]
fn leave_is_given_up_to_the_budget() {
    let mut world = open(2);
    assert_eq!(world.ask("i-0a").permit, Some(1));
    assert_eq!(world.ask("i-0b").permit, Some(2));
    assert_eq!(no(&mut world, "i-0c"), "2 of 2 that may be unavailable are");
    world.takes("i-0a", 'b');
    assert_eq!(world.ask("i-0c").permit, Some(3), "an id is never used twice");
}

#[test]
fn what_is_unavailable_without_a_permit_takes_up_the_budget() {
    let rules: [Rule; 4] = [
        ("silent", |world| world.hush("i-0b")),
        ("not heard of", |world| world.attendance.note(instance("i-0b"), Presence::Unheard)),
        ("unhealthy", |world| world.tell("i-0b", |told| told.health = Health::Unhealthy)),
        ("not known", |world| world.tell("i-0b", |told| told.health = Health::Unknown)),
    ];
    for (rule, happens) in rules {
        let mut world = open(1);
        happens(&mut world);
        assert_eq!(no(&mut world, "i-0a"), "1 of 1 that may be unavailable are", "{rule}");
    }
}

#[test]
fn an_unhealthy_instance_may_always_ask() {
    let mut world = open(1);
    assert!(world.ask("i-0a").permit.is_some());
    world.tell("i-0b", |told| told.health = Health::Unhealthy);
    assert!(world.ask("i-0b").permit.is_some(), "its swap costs nothing");
}

#[test]
fn not_known_is_not_unhealthy() {
    let mut world = open(1);
    assert!(world.ask("i-0a").permit.is_some());
    world.tell("i-0b", |told| told.health = Health::Unknown);
    assert_eq!(no(&mut world, "i-0b"), "1 of 1 that may be unavailable are");
    world.takes("i-0a", 'b');
    assert!(world.ask("i-0b").permit.is_some(), "it takes up the budget itself, and only once");
}

#[test]
fn whoever_asks_is_there_and_costs_what_it_is() {
    // The coordinator has just started, and nobody was heard of.
    let mut world = open(1);
    for name in THREE {
        world.attendance.note(instance(name), Presence::Unheard);
    }
    assert_eq!(no(&mut world, "i-0a"), "2 of 1 that may be unavailable are");
    world.hear("i-0b");
    world.hear("i-0c");
    assert!(world.ask("i-0a").permit.is_some(), "all others are there");
}

#[test]
fn asking_again_returns_the_stored_permit_uncounted() {
    let mut world = open(1);
    let first = world.ask("i-0a").permit;
    assert_eq!(world.ask("i-0a").permit, first);
    assert_eq!(world.state().count().open, 1);
    let permit = world.state().open[&instance("i-0a")].value.clone();
    assert_eq!(permit.seq, world.agents[&instance("i-0a")].seq, "the newest question is the one");
    world.hush("i-0b");
    assert_eq!(world.ask("i-0a").permit, first, "also where the budget is overdrawn since");
}

#[test]
fn asking_again_does_not_put_off_the_deadline() {
    let mut world = open(1);
    world.ask("i-0a");
    for _ in 0..29 {
        world.pass_s(10);
        assert!(world.ask("i-0a").permit.is_some());
    }
    world.pass_s(10);
    assert!(world.line().starts_with("3 Rollback"), "{}", world.line());
}

#[test]
fn no_leave_is_given_where_it_is_not_ones_turn() {
    type Rule = (&'static str, fn(&mut World) -> String, &'static str);
    let rules: [Rule; 6] = [
        ("its batch is only offered", |world| world.first(1), "its batch is not open"),
        (
            "it is in no batch",
            |world| {
                let placed: Vec<String> = [world.members(0), world.members(1)].concat();
                THREE.map(str::to_owned).into_iter().find(|name| !placed.contains(name)).unwrap()
            },
            "its batch is not open",
        ),
        (
            "the rollout is paused",
            |world| {
                world.operate(operations::pause);
                world.first(0)
            },
            "the rollout is paused",
        ),
        (
            "the rollout has halted",
            |world| {
                let canary = world.first(0);
                world.tell(&canary, |told| told.prepared = true);
                let order = world.state().order();
                world.tell(&canary, |told| told.order = Some(order));
                world.pass_s(900);
                world.settle();
                canary
            },
            "the rollout is halted",
        ),
        (
            "it has left",
            |world| {
                let canary = world.first(0);
                let left = reports::left(world.state(), &instance(&canary), None, world.now.at);
                assert!(world.commit(left.unwrap()));
                canary
            },
            "the instance is not known, or has left",
        ),
        (
            "the target has moved",
            |world| {
                let canary = world.first(0);
                world.operate(operations::abort);
                canary
            },
            "the target has moved to generation 3 of epoch 1790000000",
        ),
    ];
    for (rule, happens, expected) in rules {
        let mut world = World::new(policy(&[50]), &THREE);
        world.release('b').unwrap();
        world.settle();
        let order = world.state().order();
        let name = happens(&mut world);
        let leave = world.question(&name, order, 100);
        assert_eq!((leave.permit, leave.reason.as_deref()), (None, Some(expected)), "{rule}");
    }
}

#[test]
fn a_question_while_it_is_paused_closes_what_was_given_unused() {
    let mut world = open(1);
    world.ask("i-0a");
    world.operate(operations::pause);
    assert_eq!(
        world.state().open.len(),
        1,
        "a pause alone closes nothing: the swap may be under way"
    );
    asks_anew(&mut world, "i-0a");
    assert_eq!(no(&mut world, "i-0a"), "the rollout is paused");
    assert_eq!(world.state().count().open, 0);
    world.resume();
    assert_eq!(world.ask("i-0b").permit, Some(2), "the next one has an id of its own");
}

#[test]
fn a_question_about_an_older_target_closes_what_was_given_unused() {
    let mut world = open(1);
    let old = world.state().order();
    world.ask("i-0a");
    world.operate(operations::abort);
    world.settle();
    asks_anew(&mut world, "i-0a");
    let leave = world.question("i-0a", old, 50);
    assert_eq!(leave.permit, None);
    assert!(world.state().open.is_empty());
}

/// It tells that it does not wait for the answers so far, and that it asks.
fn asks_anew(world: &mut World, name: &str) {
    let seq = world.agents[&instance(name)].seq;
    world.tell(name, |told| {
        (told.phase, told.uses_permit, told.renounced) = (Phase::Asking, true, seq);
    });
}

#[test]
fn a_question_that_is_refused_does_not_close_what_may_be_in_use() {
    type Rule = (&'static str, fn(&mut World));
    let rules: [Rule; 2] = [
        // With a restore still owed it asks for something newer, and goes back to the restore.
        ("nothing good serves", |world| {
            asks_anew(world, "i-0a");
            world.tell("i-0a", |told| told.health = Health::Unhealthy);
        }),
        ("nothing was told since", |_| {}),
    ];
    for (rule, happens) in rules {
        let mut world = open(1);
        let old = world.state().order();
        world.ask("i-0a");
        happens(&mut world);
        world.operate(operations::abort);
        world.settle();
        assert_eq!(world.question("i-0a", old, 50).permit, None, "{rule}");
        assert_eq!(world.state().open.len(), 1, "{rule}");
    }
}

#[test]
fn a_late_question_changes_nothing() {
    let late = |world: &mut World, seq: u64| {
        let before = world.state().clone();
        let order = world.state().order();
        let leave = world.question("i-0a", order, seq);
        assert_eq!(leave.permit, None);
        assert!(leave.draft.is_empty() && *world.state() == before);
        leave.reason.unwrap()
    };
    let mut world = open(1);
    let first = world.agents[&instance("i-0a")].seq + 1;
    world.ask("i-0a");
    world.ask("i-0a");
    assert_eq!(late(&mut world, first), "it was asked again since");
    world.takes("i-0a", 'b');
    assert!(world.state().open.is_empty());
    assert_eq!(late(&mut world, first), "it was withdrawn since", "it has swapped since");

    let mut world = open(1);
    let first = world.agents[&instance("i-0a")].seq + 1;
    world.agents.get_mut(&instance("i-0a")).unwrap().seq += 1;
    world.tell("i-0a", |told| {
        (told.phase, told.renounced, told.uses_permit) = (Phase::Asking, first, true);
    });
    assert_eq!(late(&mut world, first), "it was withdrawn since", "it was renounced since");
}

#[test]
fn a_report_that_overtakes_its_question_does_not_refuse_it() {
    let mut world = open(1);
    let seq = world.agents[&instance("i-0a")].seq + 1;
    world.agents.get_mut(&instance("i-0a")).unwrap().seq += 1;
    world.tell("i-0a", |told| (told.phase, told.uses_permit) = (Phase::Asking, true));
    let order = world.state().order();
    assert!(world.question("i-0a", order, seq).permit.is_some());
}

#[test]
fn a_permit_closes_by_proof_only() {
    type Rule = (&'static str, fn(&mut World), bool);
    let rules: [Rule; 13] = [
        ("healthy on the target, proven", |world| world.takes("i-0a", 'b'), true),
        ("healthy on what was restored, proven", |world| world.fails("i-0a", "503"), true),
        (
            "healthy on what was adopted",
            |world| world.tell("i-0a", |told| (told.proven, told.adopted) = (false, true)),
            true,
        ),
        (
            "healthy, and not through its whole window",
            |world| {
                world.tell("i-0a", |told| {
                    (told.serving, told.proven) = (Some(revision('b')), false);
                });
            },
            false,
        ),
        (
            "healthy, with the swap still open",
            |world| world.tell("i-0a", |told| told.uses_permit = true),
            false,
        ),
        (
            "degraded: nothing healthy serves",
            |world| {
                world.tell("i-0a", |told| {
                    told.health = Health::Unhealthy;
                    told.degraded = Some("a could not be restored".to_owned());
                });
            },
            false,
        ),
        ("not known", |world| world.tell("i-0a", |told| told.health = Health::Unknown), false),
        (
            "withdrawn",
            |world| {
                let asked = world.agents[&instance("i-0a")].seq;
                world.tell("i-0a", |told| {
                    (told.renounced, told.health) = (asked, Health::Unknown);
                });
            },
            true,
        ),
        (
            "an earlier question was withdrawn",
            |world| {
                let asked = world.agents[&instance("i-0a")].seq;
                world.tell("i-0a", |told| {
                    (told.renounced, told.uses_permit) = (asked - 1, true);
                });
            },
            false,
        ),
        ("its goodbye", |world| world.leaves("i-0a"), true),
        (
            "forgotten by an operator",
            |world| {
                let left = reports::left(world.state(), &instance("i-0a"), None, world.now.at);
                assert!(world.commit(left.unwrap()));
                world.agents.remove(&instance("i-0a"));
            },
            true,
        ),
        (
            "silence, for days",
            |world| {
                world.hush("i-0a");
                world.settle();
                world.pass_s(400_000);
                world.settle();
            },
            false,
        ),
        (
            "an operator's word",
            |world| {
                let mut draft = Draft::new();
                assert!(permits::close(world.state(), &instance("i-0a"), &mut draft));
                assert!(world.commit(draft));
            },
            true,
        ),
    ];
    for (rule, happens, closes) in rules {
        let mut world = open(1);
        assert!(world.ask("i-0a").permit.is_some());
        happens(&mut world);
        assert_eq!(world.state().open.is_empty(), closes, "{rule}");
        assert_eq!(world.state().count().open == 0, closes, "{rule}");
    }
    let mut draft = Draft::new();
    assert!(!permits::close(open(1).state(), &instance("i-0a"), &mut draft) && draft.is_empty());
}

#[test]
fn a_report_made_before_the_question_closes_nothing() {
    let mut world = open(1);
    let agent = world.agents.get_mut(&instance("i-0a")).unwrap();
    agent.seq += 10;
    let seq = agent.seq;
    let order = world.state().order();
    assert!(world.question("i-0a", order, seq).permit.is_some());
    world.agents.get_mut(&instance("i-0a")).unwrap().seq -= 5;
    world.takes("i-0a", 'b');
    assert_eq!(world.state().open.len(), 1, "it tells of a time before the swap");
}

#[test]
fn a_permit_survives_the_change_of_the_target_and_moves_with_the_next_question() {
    let mut world = open(1);
    world.pass_s(50);
    let first = world.ask("i-0a").permit;
    world.operate(operations::abort);
    world.settle();
    assert_eq!(no(&mut world, "i-0b"), "1 of 1 that may be unavailable are", "it still counts");
    assert_eq!(world.ask("i-0a").permit, first, "moved, and counted once");
    let permit = &world.state().open[&instance("i-0a")].value;
    assert_eq!((permit.order, permit.given_ms), (world.state().order(), Some(0)));
    assert_eq!(world.state().count().open, 1);
}

#[test]
fn what_drifted_needs_leave_as_well() {
    let mut world = World::new(policy(&[]), &THREE);
    assert!(world.ask("i-0a").permit.is_some());
    assert_eq!(no(&mut world, "i-0b"), "1 of 1 that may be unavailable are");
    assert_eq!(world.state().open[&instance("i-0a")].value.given_ms, None);
}

#[test]
fn an_ordered_restart_needs_leave_and_no_open_batch() {
    let mut world = World::new(policy(&[50]), &THREE);
    world.release('b').unwrap();
    world.settle();
    let placed: Vec<String> = [world.members(0), world.members(1)].concat();
    let other = THREE.into_iter().find(|name| !placed.contains(&(*name).to_owned())).unwrap();
    world.operate(|state, _| operations::order(state, &instance(other), ToInstance::Restart));
    assert!(world.ask(other).permit.is_some());
    world.tell(other, |told| (told.orders.restart, told.health) = (1, Health::Healthy));
    assert_eq!(no(&mut world, other), "its batch is not open", "it is done");

    world.operate(|state, _| operations::order(state, &instance(other), ToInstance::Restart));
    world.operate(operations::pause);
    assert_eq!(no(&mut world, other), "the rollout is paused");
}

#[test]
fn what_is_decided_on_is_compared() {
    let mut world = open(2);
    let question = |world: &World, name: &str| towline_protocol::poll::Question {
        version: 1,
        group: web(),
        instance: instance(name),
        seq: 50,
        order: world.state().order(),
    };
    let decided = |world: &World, name: &str| {
        permits::decide(world.state(), &world.attendance, &question(world, name), world.now).draft
    };
    let rules: [Rule; 4] = [
        ("a pause", |world| world.operate(operations::pause)),
        ("the target", |world| world.operate(operations::abort)),
        ("another permit", |world| assert!(world.ask("i-0b").permit.is_some())),
        ("a step of the rollout", |world| {
            world.fails("i-0c", "503");
            world.step();
        }),
    ];
    for (rule, happens) in rules {
        let mut world = world.clone();
        let draft = decided(&world, "i-0a");
        happens(&mut world);
        assert!(!world.commit(draft), "{rule}");
    }
    let draft = decided(&world, "i-0a");
    let compared =
        ["target/web", "rollout/web", "permits/web", "permit/web/i-0a", "instance/web/i-0a"];
    assert_eq!(World::compares(&draft), compared, "nothing more, and nothing less");
    world.tell("i-0c", |told| told.objection = Some("reports are many".to_owned()));
    assert!(world.commit(draft), "a report of another instance is no conflict");
}

#[test]
fn what_closes_a_permit_compares_it_and_the_count() {
    let mut world = open(1);
    world.ask("i-0a");
    let mut draft = Draft::new();
    permits::close(world.state(), &instance("i-0a"), &mut draft);
    assert_eq!(World::compares(&draft), ["permit/web/i-0a", "permits/web"]);
    let left = reports::left(world.state(), &instance("i-0a"), None, world.now.at).unwrap();
    assert_eq!(World::compares(&left), ["instance/web/i-0a", "permit/web/i-0a", "permits/web"]);
}

#[test]
fn the_wire_has_no_order_of_another_epoch() {
    let mut world = open(1);
    let order = Order { epoch: 1, ..world.state().order() };
    assert_eq!(world.question("i-0a", order, 99).permit, None);
}

#[test]
fn a_group_without_a_target_gives_no_leave() {
    let mut world = World::fresh(policy(&[]), &THREE);
    assert_eq!(no(&mut world, "i-0a"), "the group has no target yet");
}

#[test]
fn who_was_set_aside_waits_with_an_order_for_its_turn() {
    // It may not have heard that it was set aside: its question may be one for the target.
    let mut world = open(3);
    world.hush("i-0a");
    world.settle();
    world.hear("i-0a");
    world.operate(|state, _| operations::order(state, &instance("i-0a"), ToInstance::Restart));
    assert_eq!(no(&mut world, "i-0a"), "it was set aside, and no gate has passed since");
}
