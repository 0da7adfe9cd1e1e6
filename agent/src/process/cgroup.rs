//! A cgroup of its own for each child, where the kernel has cgroups of version 2 and the agent may make
//! some: whoever is in one stays in it, whatever becomes of session, parent and environment.
//!
//! ```text
//!   <the agent's own>/towline.<tag>.job.<pid>.<n>   a contained child: ended as a whole, and removed
//!                     towline.<tag>.app.<pid>.<n>   what start and reload commands leave: the app.
//!                                                   Never swept; removed once nobody is in it
//! ```
//!
//! Invariants
//! - No controller is enabled, so that the agent may stay in the cgroup that holds these.
//! - Only what bears a name of this app's own is ended or removed.
//! - A child goes in between fork and exec, before anything of its own has run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

/// The most levels of cgroups that a child may have made in its own.
const DEPTH_MAX: usize = 16;

/// Where cgroups for children are made: the agent's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupHome {
    dir: PathBuf,
}

/// Whose a cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A contained child's.
    Job,
    /// The app's.
    App,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Job => "job",
            Kind::App => "app",
        }
    }
}

impl CgroupHome {
    /// Finds the agent's own cgroup; `None` where there is none of version 2, or none can be made in it.
    #[must_use]
    pub fn find() -> Option<CgroupHome> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let home = CgroupHome { dir: own_dir(&mounts, &own)? };
        home.is_usable().then_some(home)
    }

    /// Names the directory of a cgroup; it is not looked at.
    #[must_use]
    pub fn at(dir: &Path) -> CgroupHome {
        CgroupHome { dir: dir.to_owned() }
    }

    /// Returns its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Can a child be put into what is made here? Below a threaded cgroup it cannot.
    fn is_usable(&self) -> bool {
        let Ok(probe) = Cgroup::make(self, "probe", Kind::Job) else { return false };
        let kind = fs::read_to_string(probe.dir.join("cgroup.type"));
        let is_domain = kind.is_ok_and(|kind| kind.trim() == "domain");
        let is_open = probe.door().is_ok();
        probe.remove();
        is_domain && is_open
    }

    /// Returns this app's cgroups of one kind.
    pub(super) fn of(&self, tag: &str, kind: Kind) -> Vec<Cgroup> {
        let prefix = prefix(tag, kind);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_own = |entry: &fs::DirEntry| {
            entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix))
        };
        entries.filter(is_own).map(|entry| Cgroup { dir: entry.path() }).collect()
    }

    /// Removes the app's cgroups in which nobody is any more.
    pub(super) fn remove_empty(&self, tag: &str) {
        for cgroup in self.of(tag, Kind::App) {
            // Refused by the kernel while somebody is in it.
            cgroup.remove();
        }
    }
}

/// Returns where the cgroup of this process is: from the texts of `mountinfo` and `cgroup`.
pub(crate) fn own_dir(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        // proc(5): the fourth field is what of the file system is mounted, the fifth is where.
        let mut fields = place.split(' ').skip(3).map(unescaped);
        let (root, at) = (fields.next()?, fields.next()?);
        // Without a root of its own, what is inside of it would be anywhere.
        if !root.starts_with('/') {
            return None;
        }
        // What lies outside of what is mounted begins with `/..`.
        let inner = Path::new(own).strip_prefix(root).ok()?;
        let is_inside = inner.components().all(|part| part != std::path::Component::ParentDir);
        is_inside.then(|| Path::new(&at).join(inner))
    })
}

/// Gives back the blanks and backslashes of a path in `mountinfo`.
pub(crate) fn unescaped(field: &str) -> String {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.iter().fold(field.to_owned(), |text, (code, blank)| text.replace(code, blank))
}

fn prefix(tag: &str, kind: Kind) -> String {
    let digest = Sha256::digest(tag.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("towline.{short}.{}.", kind.name())
}

/// One cgroup.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes one that no other has.
    pub(super) fn make(home: &CgroupHome, tag: &str, kind: Kind) -> io::Result<Cgroup> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}.{number}", prefix(tag, kind), std::process::id());
        let cgroup = Cgroup { dir: home.dir.join(name) };
        match fs::create_dir(&cgroup.dir) {
            // Of an earlier agent that had this pid.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                cgroup.remove();
                fs::create_dir(&cgroup.dir)?;
            }
            other => other?,
        }
        Ok(cgroup)
    }

    /// Opens what a process writes `0` to, to go in. Whoever opened it is asked for the right to, so that
    /// it can be used once a user was taken on (Linux 5.16, and stable kernels since 5.10.93).
    pub(super) fn door(&self) -> io::Result<OwnedFd> {
        let file = File::options().write(true).open(self.dir.join("cgroup.procs"))?;
        Ok(OwnedFd::from(file))
    }

    /// Returns who is in it, at any level.
    pub(super) fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for dir in self.levels() {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        found
    }

    /// Is this process in it now?
    pub(super) fn holds(&self, pid: i32) -> bool {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        // No two have the same name.
        Path::new(path).components().any(|part| Some(part.as_os_str()) == self.dir.file_name())
    }

    /// Kills all that is in it, at once (Linux 5.14); older kernels refuse, and each is killed by itself.
    pub(super) fn kill(&self) {
        fs::write(self.dir.join("cgroup.kill"), "1").ok();
    }

    /// Removes it. The kernel refuses while somebody is in it; the next start tries again.
    pub(super) fn remove(&self) {
        for dir in self.levels().iter().rev() {
            fs::remove_dir(dir).ok();
        }
    }

    /// It and all below it, each before its own.
    fn levels(&self) -> Vec<PathBuf> {
        let mut levels = vec![self.dir.clone()];
        let mut next = 0;
        while let Some(dir) = levels.get(next).cloned() {
            next += 1;
            if dir.components().count() > self.dir.components().count() + DEPTH_MAX {
                continue;
            }
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    levels.push(entry.path());
                }
            }
        }
        levels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_where_it_is_mounted() {
        let line = |root: &str, at: &str, kind: &str| {
            format!("41 31 0:38 {root} {at} rw,relatime shared:9 - {kind} {kind} rw\n")
        };
        let unified = line("/", "/sys/fs/cgroup", "cgroup2");
        let hybrid = line("/", "/sys/fs/cgroup/cpu", "cgroup") + &line("/", "/u", "cgroup2");
        let cases = [
            (
                "a unit's",
                unified.as_str(),
                "0::/system.slice/a.service\n",
                Some("system.slice/a.service"),
            ),
            ("the root", &unified, "0::/\n", Some("")),
            ("beside version 1", &unified, "4:memory:/x\n0::/a\n", Some("a")),
            ("none of version 2", &unified, "4:memory:/x\n", None),
            ("outside of its namespace", &unified, "0::/../a\n", None),
            ("no mount", "", "0::/a\n", None),
            ("version 1 alone is mounted", &line("/", "/c", "cgroup"), "0::/a\n", None),
        ];
        for (rule, mounts, own, expected) in cases {
            let expected = expected.map(|inner| Path::new("/sys/fs/cgroup").join(inner));
            assert_eq!(own_dir(mounts, own), expected, "{rule}");
        }
        assert_eq!(own_dir(&hybrid, "0::/a\n"), Some(PathBuf::from("/u/a")));
        let part = line("/docker/x", "/cg\\040roup", "cgroup2");
        assert_eq!(own_dir(&part, "0::/docker/x/a\n"), Some(PathBuf::from("/cg roup/a")));
        assert_eq!(own_dir(&part, "0::/docker/y\n"), None, "another part of it is mounted");
        let bare = line("", "/cg", "cgroup2");
        assert_eq!(own_dir(&bare, "0::/a\n"), None, "what is mounted is not said");
    }

    #[test]
    fn no_two_apps_share_a_name() {
        assert_ne!(prefix("/srv/web", Kind::Job), prefix("/srv/web2", Kind::Job));
        assert!(!prefix("/srv/web", Kind::Job).starts_with(&prefix("/srv/web", Kind::App)));
    }
}
