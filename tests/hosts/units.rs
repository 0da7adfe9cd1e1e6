//! An app that is a unit: deployed, broken and restored through it.

use serde_json::json;

use super::{AGENT, APP, Machine, amend, behave};

#[test]
fn an_app_that_is_a_unit_is_deployed_broken_and_restored() {
    let Some(mut machine) = Machine::new("", "") else { return };
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    let main = machine.main_pid();

    // By a reload: the main process stays.
    let second = machine.commit(|_| {});
    machine.target(&second);
    let status = machine.await_serving(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(machine.main_pid(), main, "it was reloaded");

    // By a full restart, as the target's counter asks for.
    machine.target_with(&second, json!({"restart": 1}));
    machine.container.await_some("another main process", |_| {
        let now = machine.main_pid();
        (now != main && now != "0").then_some(())
    });
    machine.await_serving(&second);

    // Unhealthy once it is live.
    let bad = machine.commit(|files| behave(files, &json!({"worker": "unhealthy"})));
    machine.target(&bad);
    let status = machine.await_restored(&second, &bad);
    assert_eq!(status["failure"]["cause"], "unhealthy", "{status:#}");

    // Its main process ends as soon as it starts, and systemd starts it again and again.
    let crash = machine.commit(|files| {
        let end = "'use strict'; console.error('the shelf is empty'); process.exit(1);";
        amend(files, "master.js", "'use strict';", end);
        amend(files, "towline.toml", "restart_when = []", "restart_when = [\"install\"]");
        behave(files, &json!({"on_hangup": "die"}));
    });
    machine.target_with(&crash, json!({"restart": 2}));
    let status = machine.await_restored(&second, &crash);
    let detail = status["failure"]["detail"].as_str().expect("a text");
    assert!(
        detail.contains("end as soon as they start") || detail.contains("for good"),
        "{detail}"
    );
    let journal = machine.container.done(&["journalctl", "--no-pager", "--unit", AGENT]);
    assert!(
        journal.contains("the shelf is empty"),
        "what the app said is in the agent's log: {journal}"
    );

    // Ended by hand, it is started again.
    machine.container.done(&["systemctl", "stop", APP]);
    machine.container.await_property(APP, "ActiveState", "active");
    machine.await_serving(&second);
}

#[test]
fn what_cannot_be_done_to_a_unit_is_said_before_anything_is_touched() {
    let Some(mut machine) = Machine::new("", "") else { return };
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    let main = machine.main_pid();

    // A unit that is not there.
    let absent = machine.commit(|files| amend(files, "towline.toml", "web.service", "no.service"));
    machine.target(&absent);
    let status = machine.await_status("the host to be in the way", |status| {
        status["failure"]["revision"] == absent.as_str()
    });
    let detail = status["failure"]["detail"].as_str().expect("a text");
    assert_eq!(status["failure"]["cause"], "host", "{status:#}");
    assert!(detail.contains("no.service") && detail.contains("daemon-reload"), "{detail}");

    // One that cannot reload by itself, where the recipe leaves it to the unit.
    machine
        .container
        .write("/etc/systemd/system/web.service.d/reload.conf", "[Service]\nExecReload=\n");
    machine.container.done(&["systemctl", "daemon-reload"]);
    let unable = machine.commit(|files| amend(files, "towline.toml", "reload = \"SIGHUP\"\n", ""));
    machine.target(&unable);
    let status = machine.await_status("the unit to be in the way", |status| {
        status["failure"]["revision"] == unable.as_str()
    });
    let detail = status["failure"]["detail"].as_str().expect("a text");
    assert!(detail.contains("ExecReload="), "{detail}");
    assert_eq!(status["serving"], first.as_str());
    assert_eq!(machine.main_pid(), main, "nothing was touched");

    // With it, the same revision goes live by the unit's own reload, without another target.
    machine.container.write("/etc/systemd/system/web.service.d/reload.conf", "");
    machine.container.done(&["systemctl", "daemon-reload"]);
    let status = machine.await_serving(&unable);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(machine.main_pid(), main, "it was reloaded");
}
