//! A static site: a recipe without a manager. Whoever serves it is started by somebody else, and looks at
//! `current` for each request.

use std::process::{Child, Command, Stdio};

use super::*;

/// A file server outside of Towline.
struct Server(Child);

impl Server {
    fn start(world: &World) -> Self {
        let current = world.host.dir().join("current");
        let child = Command::new("/usr/bin/python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
            .arg(&current)
            .arg(world.host.port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("python3 is installed"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

const BODY: &str = "revision = \"body\"";

#[test]
fn a_static_site_is_deployed_broken_and_restored_by_the_swap_alone() {
    let mut world = World::new(Kind::Plain);
    let _server = Server::start(&world);
    let recipe = health(&world, "/.towline-revision", BODY);
    let first = world.commit_files(&[("towline.toml", &recipe), ("index.html", "one")]);
    world.begin(&first);
    let second = world.commit_files(&[("towline.toml", &recipe), ("index.html", "two")]);
    let status = world.deploy(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.get("/index.html").as_deref(), Some("two"));

    // Its page is missing, which its own health check asks for.
    let bare = health(&world, "/index.html", "");
    let bad = world.commit_files(&[("towline.toml", &bare)]);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    let status = world.host.await_serving(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.get("/index.html").as_deref(), Some("two"));

    // Where no answer names the revision, nothing is shown but that it is healthy.
    let third = world.commit_files(&[("towline.toml", &bare), ("index.html", "three")]);
    let status = world.deploy(&third);
    assert_eq!(status["evidence"], Value::Null, "{status:#}");
    assert_eq!(world.get("/index.html").as_deref(), Some("three"));

    // It runs for as long as `current` names it: a start of the agent is no boot.
    assert!(world.host.terminate().success());
    world.host.run();
    world.host.await_serving(&third);
    let swaps = world.host.log().matches("\"message\":\"activated\"").count();
    assert_eq!(swaps, 5, "two good ones, a bad one, the way back, and the last");
}

#[test]
fn an_app_that_becomes_a_static_site_is_stopped_and_started_again_where_that_fails() {
    let (mut world, good) = World::serving(Kind::Plain);
    let recipe = health(&world, "/.towline-revision", BODY).replace("start_s = 6", "start_s = 1");
    // Nobody serves it: what had the port has ended.
    let bad = world.commit_files(&[("towline.toml", &recipe), ("index.html", "one")]);
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    world.host.await_serving(&good);
    assert_eq!(world.host.served(), Some(good));
}
