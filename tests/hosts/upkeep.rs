//! The agent's own unit: watched, upgraded, and one of several.

use std::fs;

use serde_json::json;
use towline_tests::app;

use super::{AGENT, APP, Machine, amend};

#[test]
fn the_units_are_sound() {
    let Some(mut machine) = Machine::new("", "") else { return };
    machine.container.write("/srv/web/current/placeholder", "");
    machine.container.boot();
    let units = ["towline-agent.service", AGENT, APP];
    for unit in units {
        let said = machine.container.run(&["systemd-analyze", "verify", unit]);
        assert_eq!((said.code, said.text.as_str()), (0, ""), "{unit}");
    }
}

#[test]
fn an_agent_that_stands_still_is_started_anew_and_the_app_serves_on() {
    let Some(mut machine) = Machine::new("", "") else { return };
    machine.container.write(
        &format!("/etc/systemd/system/{AGENT}.d/watchdog.conf"),
        "[Service]\nWatchdogSec=1\nRestartSec=0\n",
    );
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    let (agent, app) = (machine.container.property(AGENT, "MainPID"), machine.main_pid());

    machine.container.done(&["kill", "-STOP", &agent]);
    machine.container.await_some("another agent", |own| {
        let now = own.property(AGENT, "MainPID");
        (now != agent && now != "0").then_some(())
    });
    machine.container.await_property(AGENT, "ActiveState", "active");
    assert_eq!(machine.main_pid(), app, "the app was left alone");

    // One whose loop goes round is left alone, however long it is idle.
    let agent = machine.container.property(AGENT, "MainPID");
    let second = machine.commit(|_| {});
    machine.target(&second);
    machine.await_serving(&second);
    assert_eq!(machine.container.property(AGENT, "MainPID"), agent);
}

#[test]
fn the_agent_is_upgraded_in_the_middle_of_a_deploy() {
    let Some(mut machine) = Machine::new("", "") else { return };
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    let app = machine.main_pid();

    // In the middle of an install, which ends with the agent that began it.
    let slow = machine.commit(|files| {
        let install = "[install]\ncommand = [\"./bin/slow\"]\ninputs = [\"bin/slow\"]\noutputs = \
                       [\"made\"]\n[manager]";
        amend(files, "towline.toml", "[manager]", install);
        let script = "#!/bin/sh\nmkdir made\n[ -e /srv/web/shared/run/go ] || { touch \
                      /srv/web/shared/run/begun; sleep 600; }\n";
        files.push(("bin/slow".to_owned(), script.as_bytes().to_vec(), true));
    });
    machine.target(&slow);
    let begun = machine.container.path("/srv/web/shared/run/begun");
    machine.container.await_some("the install to begin", |_| begun.exists().then_some(()));
    machine.container.replace_agent();
    machine.container.write("/srv/web/shared/run/go", "");
    machine.container.done(&["systemctl", "restart", AGENT]);
    machine.await_serving(&slow);
    let left = machine.container.run(&["pgrep", "-f", "sleep 600"]);
    assert_eq!(left.text, "", "the first install has ended");
    let now = machine.container.property(APP, "NRestarts");
    assert_eq!((now.as_str(), machine.main_pid()), ("0", app), "the app was reloaded");

    // In the middle of the health window.
    let next = machine.commit(|files| {
        amend(files, "towline.toml", "healthy_for_s = 0.6", "healthy_for_s = 3");
    });
    machine.target(&next);
    machine.await_status("the window to begin", |status| status["phase"] == "probing");
    machine.container.replace_agent();
    machine.container.done(&["systemctl", "restart", AGENT]);
    let status = machine.await_serving(&next);
    assert_eq!(status["failure"], json!(null), "{status:#}");
}

#[test]
fn several_apps_have_an_agent_each() {
    let Some(mut machine) = Machine::new("", "") else { return };
    let port = app::free_port();
    machine.configure("shop", port, "", "");
    let unit = fs::read_to_string(machine.container.path("/etc/systemd/system/web.service"));
    let unit = unit.expect("it was installed").replace("/srv/web", "/srv/shop");
    machine.container.write("/etc/systemd/system/shop.service", &unit.replace("@web", "@shop"));
    machine.container.enable("towline-agent@.service", "towline-agent@shop.service");
    let first = machine.commit(|_| {});
    let own = machine.port;
    let second = machine.commit(|files| {
        amend(files, "towline.toml", "web.service", "shop.service");
        amend(files, "towline.toml", &format!(":{own}/"), &format!(":{port}/"));
    });
    machine.target(&first);
    machine.write_target("shop", &second, json!({}));
    machine.container.boot();
    machine.await_serving(&first);
    machine.container.await_some("the other app to serve", |_| {
        let status = machine.status_of("shop");
        (status["serving"] == second.as_str() && status["health"] == "healthy").then_some(())
    });

    // What is done to one does not touch the other.
    machine.container.done(&["systemctl", "stop", "towline-agent@shop.service"]);
    let third = machine.commit(|_| {});
    machine.target(&third);
    machine.await_serving(&third);
    assert_eq!(machine.container.property("shop.service", "ActiveState"), "active");
}
