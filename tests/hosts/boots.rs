//! Boots: who waits for whom, and what keeps nobody waiting.

use towline_tests::origin::Fault;

use super::{AGENT, APP, Machine};

#[test]
fn the_app_starts_once_it_is_settled_what_it_runs() {
    let Some(mut machine) = Machine::new("", "[boot]\ndeadline_s = 4\n") else { return };
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    machine.container.power_off();

    // The next boot is told of a revision that cannot be had: the agent tries, and the app waits for it.
    machine.origin.fail(Fault::Stall);
    let second = machine.commit(|_| {});
    machine.target(&second);
    machine.container.boot();
    machine.await_status("the new revision to be tried", |status| {
        status["phase"] == "preparing" && status["target"] == second.as_str()
    });
    let (agent, app) = (
        machine.container.property(AGENT, "ActiveState"),
        machine.container.property(APP, "ActiveState"),
    );
    // Read after both: it was still open by then.
    let status = machine.status_of("web");
    if status["phase"] == "preparing" {
        assert_eq!((agent.as_str(), app.as_str()), ("activating", "inactive"), "{status:#}");
    }
    let status = machine.await_status("what is on disk to serve", |status| {
        status["serving"] == first.as_str() && status["health"] == "healthy"
    });
    assert!(status["degraded"].is_string(), "{status:#}");
    machine.container.await_property(AGENT, "ActiveState", "active");
    machine.container.await_property(APP, "ActiveState", "active");

    machine.origin.fail(Fault::None);
    machine.await_serving(&second);
}

#[test]
fn an_agent_that_cannot_start_does_not_keep_the_app_from_it() {
    let Some(mut machine) = Machine::new("", "") else { return };
    let first = machine.commit(|_| {});
    machine.target(&first);
    machine.container.boot();
    machine.await_serving(&first);
    machine.container.power_off();

    machine.container.write("/etc/towline/web.toml", "group = 7\n");
    machine.container.boot();
    machine.container.await_property(AGENT, "ActiveState", "failed");
    assert_eq!(machine.container.property(AGENT, "ExecMainStatus"), "78");
    machine.container.await_property(APP, "ActiveState", "active");
    let journal = machine.container.done(&["journalctl", "--unit", AGENT, "--no-pager"]);
    assert!(journal.contains("could not parse the config"), "{journal}");
}

#[test]
fn a_secret_comes_as_a_credential_of_the_unit() {
    let Some(mut machine) = Machine::new("credential = \"git-key\"\n", "") else { return };
    machine.origin.require("x-access-token:hunter2-not-shown");
    let first = machine.commit(|_| {});
    machine.target(&first);

    // Without the file, the credential says so.
    machine.container.boot();
    machine.container.await_property(AGENT, "ActiveState", "failed");
    let journal = machine.container.done(&["journalctl", "--unit", AGENT, "--no-pager"]);
    assert!(journal.contains("its file was not there when the unit was started"), "{journal}");

    machine.container.write("/etc/towline/web.git-key", "hunter2-not-shown\n");
    machine.container.done(&["chmod", "0400", "/etc/towline/web.git-key"]);
    machine.container.done(&["systemctl", "restart", AGENT]);
    machine.await_serving(&first);
    let journal = machine.container.done(&["journalctl", "--no-pager"]);
    assert!(!journal.contains("hunter2"), "the secret is nowhere in the journal");
}
