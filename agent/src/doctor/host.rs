//! What the disk says: whose the app's directory is, what room is left, what lies about.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::Finding;
use crate::bootstrap;
use crate::config::Config;
use crate::release::Store;

const MIB: u64 = 1 << 20;

/// `own`: who the agent is taken to be.
pub(super) fn examine(config: &Config, store: &Store, own: u32) -> Vec<Finding> {
    let mut found = vec![agent(store)];
    found.push(match bootstrap::account(config) {
        Ok(Some(account)) => {
            let (name, uid) = (&account.name, account.uid);
            Finding::ok("user", format!("{name} (uid {uid}) runs the app and its commands"))
        }
        Ok(None) => Finding::ok("user", format!("uid {own}, as the agent")),
        Err(error) => {
            let hint = error.hint();
            Finding::error("user", &error, hint)
        }
    });
    let is_there = fs::metadata(store.dir()).is_ok_and(|meta| meta.is_dir());
    if !is_there {
        let dir = store.dir().display();
        found.push(Finding::fail(
            "directory",
            format!("{dir} is no directory"),
            Some(format!("mkdir -p {dir}")),
        ));
        return found;
    }
    found.push(directory(store, own));
    found.push(state(store, own));
    found.push(current(store));
    found.extend(space(config, store));
    found.push(leftovers(store));
    found.push(cgroup());
    found
}

fn agent(store: &Store) -> Finding {
    match (store.is_locked(), store.holder()) {
        (true, Some(pid)) => Finding::ok("agent", format!("pid {pid} runs")),
        (true, None) => Finding::ok("agent", "one runs"),
        (false, _) => {
            Finding::warn("agent", "none runs", "start it: towline-agent run --config FILE")
        }
    }
}

/// Whoever may write here can replace all that is in it.
fn directory(store: &Store, own: u32) -> Finding {
    let dir = store.dir();
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(error) => return Finding::error("directory", &error, None),
    };
    let (name, mode) = (dir.display(), meta.permissions().mode() & 0o7777);
    if meta.uid() != own {
        let said =
            format!("{name} belongs to uid {}, who can replace all that is in it", meta.uid());
        return Finding::fail("directory", said, Some(format!("chown {own} {name}")));
    }
    if mode & 0o022 != 0 {
        let said = format!("{name} has mode {mode:o}: others can replace what is in it");
        return Finding::fail("directory", said, Some(format!("chmod go-w {name}")));
    }
    match store.check_claim() {
        Ok(()) => Finding::ok("directory", format!("{name} is the agent's")),
        Err(error) => {
            let hint = error.hint();
            Finding::error("directory", &error, hint)
        }
    }
}

fn state(store: &Store, own: u32) -> Finding {
    let dir = store.state();
    let name = dir.display();
    match fs::symlink_metadata(&dir) {
        Err(_) => Finding::ok("state", format!("{name} is made at the first start")),
        Ok(meta) if !meta.is_dir() || meta.uid() != own => {
            let said = format!("{name} is no directory of uid {own}");
            Finding::fail("state", said, Some(format!("chown -R {own} {name}")))
        }
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
            let said = format!("{name} can be entered by others, and holds a token");
            Finding::fail("state", said, Some(format!("chmod 700 {name}")))
        }
        Ok(_) => Finding::ok("state", format!("{name} is the agent's alone")),
    }
}

fn current(store: &Store) -> Finding {
    match store.live() {
        Some(live) => Finding::ok("current", format!("leads to {live}")),
        None if store.is_bare() => Finding::ok("current", "is not there: nothing is live yet"),
        None => {
            let said = format!("{} leads to no complete release", store.current().display());
            let hint = "release a revision, or restart the agent: it makes that release anew";
            Finding::fail("current", said, Some(hint.to_owned()))
        }
    }
}

fn space(config: &Config, store: &Store) -> Vec<Finding> {
    let space = match store.space() {
        Ok(space) => space,
        Err(error) => {
            let hint = error.hint();
            return vec![Finding::error("disk", &error, hint)];
        }
    };
    let mut found = Vec::new();
    if space.is_read_only {
        let hint = format!("mount -o remount,rw {}", store.dir().display());
        found.push(Finding::fail("disk", "the file system is read-only", Some(hint)));
    }
    found.push(match store.check_space(0, 0, config.keep.free_mib) {
        Ok(()) => {
            let (free, kept) = (space.free_bytes / MIB, config.keep.free_mib);
            Finding::ok("disk", format!("{free} MiB are free; {kept} MiB stay free"))
        }
        Err(error) => {
            let hint = error.hint();
            Finding::error("disk", &error, hint)
        }
    });
    let (free, entries) = (space.free_inodes, config.limits.entries);
    found.push(match free {
        // File systems that make them as they are needed count none.
        None => Finding::ok("inodes", "made as they are needed"),
        Some(free) if free < 1000 => {
            let hint = "remove files, or make the file system anew with more inodes";
            Finding::fail("inodes", format!("{free} are free"), Some(hint.to_owned()))
        }
        Some(free) if free < entries => {
            let said = format!("{free} are free; one tree may hold {entries}");
            Finding::warn("inodes", said, "remove files, or lower limits.entries or keep.releases")
        }
        Some(free) => Finding::ok("inodes", format!("{free} are free")),
    });
    found
}

fn leftovers(store: &Store) -> Finding {
    let is_running = store.is_locked();
    let staged = fs::read_dir(store.staging()).map_or(0, |entries| entries.flatten().count());
    let broken = ["git.broken", "journal.broken.json"];
    let found: Vec<String> = broken
        .into_iter()
        .map(|name| store.state().join(name))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    if !found.is_empty() {
        let said = format!("set aside since it could not be read: {}", found.join(", "));
        return Finding::warn("leftovers", said, "see why, and remove it: the disk may be failing");
    }
    if staged > 0 && !is_running {
        let said = format!("{staged} in {}", store.staging().display());
        return Finding::warn(
            "leftovers",
            said,
            "nothing is to be done: the next start removes them",
        );
    }
    Finding::ok("leftovers", "none")
}

fn cgroup() -> Finding {
    if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
        return Finding::ok("cgroup", "version 2");
    }
    let hint = "nothing need be done: what commands leave behind is found by their marks instead";
    Finding::warn("cgroup", "version 2 is not mounted at /sys/fs/cgroup", hint)
}
