//! The app that tests and the demo deploy, as the files of a repository.
//!
//! The sources are in `tests/app`, and in `tests/app-plain` what the variant without dependencies has
//! of its own. Nothing is started here, and nothing written: whoever builds the repository commits
//! these files, with another `behaviour.json` where a revision is to misbehave.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// Which variant of the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Express and a few more packages: `npm ci` makes `node_modules`.
    Express,
    /// No dependencies and no `[install]`: quick to deploy.
    Plain,
}

/// The address in the committed recipes, which [`files`] replaces.
const COMMITTED_ADDRESS: &str = "127.0.0.1:3000";

/// What both variants share; taken from `tests/app`.
const SHARED: &[&str] = &["behaviour.json", "bin/start", "master.js", "supervisor.js", "worker.js"];

/// What a variant has of its own.
const EXPRESS: &[&str] =
    &[".npmrc", "package-lock.json", "package.json", "server.js", "towline.toml"];
const PLAIN: &[&str] = &["server.js", "towline.toml"];

/// Ports below those the kernel hands out to clients by default (`ip_local_port_range`), so that no
/// outgoing connection can take one between [`free_port`] and the app's start.
const PORT_MIN: u16 = 15_000;
const PORTS: u16 = 15_000;

/// Returns the files of the app's repository: path, content, and whether it is executable.
///
/// - `port`: where the recipe looks for the app's health. The app itself reads its port from
///   `run/port`, in the shared directory, which is for the caller to write.
pub fn files(kind: Kind, port: u16) -> Vec<(String, Vec<u8>, bool)> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (folder, own) = match kind {
        Kind::Express => ("app", EXPRESS),
        Kind::Plain => ("app-plain", PLAIN),
    };
    let shared = SHARED.iter().map(|name| ("app", *name));
    let own = own.iter().map(|name| (folder, *name));

    shared
        .chain(own)
        .map(|(folder, name)| {
            let mut content = fs::read(tests.join(folder).join(name))
                .expect("the app's files are in the source tree");
            if name == "towline.toml" {
                content = with_port(content, port);
            }
            (name.to_owned(), content, name.starts_with("bin/"))
        })
        .collect()
}

fn with_port(recipe: Vec<u8>, port: u16) -> Vec<u8> {
    let recipe = String::from_utf8(recipe).expect("a recipe is text");
    assert!(recipe.contains(COMMITTED_ADDRESS), "the recipe probes another address");
    recipe.replace(COMMITTED_ADDRESS, &format!("127.0.0.1:{port}")).into_bytes()
}

/// Returns a port of 127.0.0.1 on which nobody listens, a different one at each call.
pub fn free_port() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run side by side start looking in different places.
    let start = u16::try_from(process::id() % 150).expect("below 150") * 100;

    for _ in 0..PORTS {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let port = PORT_MIN + start.wrapping_add(call) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free between {PORT_MIN} and {}", PORT_MIN + PORTS);
}
