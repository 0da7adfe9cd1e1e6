//! The process table: what `/proc` says of the processes of this instance.
//!
//! A pid names a process only together with its start time, and only for as long as nobody has
//! reaped it; so whoever acts on what is read here opens a pidfd first, reads again, and then acts
//! through the pidfd.
//!
//! Reading another process's `environ` or `cmdline` can hang while that process is stuck in the
//! kernel: callers on an async thread go through [`off_thread`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Ticks of `start_ticks` in a second: `USER_HZ`, part of the ABI on x86-64 and arm64.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// The most bytes of an environment that are searched; `execve` allows 6 MiB by default.
const ENVIRON_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The most bytes of a command line that are read.
const CMDLINE_BYTES_MAX: u64 = 64 * 1024;

/// Set in the flags of threads that belong to the kernel (`PF_KTHREAD`).
const FLAG_KERNEL: u64 = 0x0020_0000;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// When it was born, in ticks since boot.
    pub(crate) start_ticks: u64,
    /// Only its exit status is left of it.
    pub(crate) ended: bool,
    pub(crate) kernel: bool,
}

impl Stat {
    /// Reads the text of `/proc/<pid>/stat`.
    ///
    /// The name in parentheses is the process's own choice and may hold spaces and parentheses, so
    /// the fields are counted from the last `)`.
    pub(crate) fn parse(text: &[u8]) -> Option<Stat> {
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let open = text.iter().position(|&byte| byte == b'(')?;
        let pid = std::str::from_utf8(text.get(..open)?).ok()?.trim().parse().ok()?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc(5) counts from 1 with the pid; the state, its field 3, is the first one here.
        let field = |number: usize| fields.get(number - 3).copied();
        let threads: u64 = field(20)?.parse().ok()?;
        Some(Stat {
            pid,
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            start_ticks: field(22)?.parse().ok()?,
            // A first thread that ended before the others looks like a zombie and is none.
            ended: matches!(field(3)?, "Z" | "X" | "x") && threads <= 1,
            kernel: field(9)?.parse::<u64>().ok()? & FLAG_KERNEL != 0,
        })
    }

    /// Reads one process; `None` where there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// Does the process behind `pidfd`, which had this `pid`, still live? A zombie does not.
///
/// Birth and pid are not enough for this where a pidfd is at hand: a pid can be given out again
/// within the tick that its last owner was born in.
pub(crate) fn lives(pidfd: &OwnedFd, pid: i32) -> bool {
    let living = Stat::read(pid).is_some_and(|stat| !stat.ended);
    // Read second: if the process is not reaped now, what was read before was its own. The kernel
    // shows -1 here once it is.
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let shown = info.ok().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok())
    });
    living && shown == Some(pid)
}

/// Returns every process that can be read. A process that comes or goes meanwhile may be missing.
pub(crate) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Stat::read)
        .collect()
}

/// Returns this process and those above it: never to be signalled, whatever a file or a marker says.
pub(crate) fn own_line() -> BTreeSet<i32> {
    let mut line = BTreeSet::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|&pid| pid > 0) {
        if !line.insert(pid) {
            break;
        }
        next = Stat::read(pid).map(|stat| stat.parent);
    }
    line
}

/// Returns what descends from `root` and has not ended, each with the child of `root` that it
/// descends from.
pub(crate) fn descendants(root: i32, table: &[Stat]) -> Vec<(i32, Stat)> {
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for stat in table {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut seen = BTreeSet::from([root]);
    let mut found = Vec::new();
    let of = |pid: i32| children.get(&pid).map(Vec::as_slice).unwrap_or_default();
    let mut open: Vec<(i32, &Stat)> = of(root).iter().map(|child| (child.pid, *child)).collect();
    while let Some((branch, stat)) = open.pop() {
        // A table read while processes come and go may hold a loop.
        if !seen.insert(stat.pid) {
            continue;
        }
        open.extend(of(stat.pid).iter().map(|child| (branch, *child)));
        if !stat.ended {
            found.push((branch, stat.clone()));
        }
    }
    found
}

/// Returns the members of the session that the process `leader`, born at `start_ticks`, has made.
///
/// The number of a session is not given to another process while one of its members lives, so a
/// process that has the leader's pid and another birth shows that the session is gone.
pub(crate) fn session_members(leader: i32, start_ticks: u64, all: &[Stat]) -> Vec<Stat> {
    if all.iter().any(|stat| stat.pid == leader && stat.start_ticks != start_ticks) {
        return Vec::new();
    }
    let spared = own_line();
    let is_member = |stat: &&Stat| {
        stat.session == leader
            && stat.start_ticks >= start_ticks
            && !stat.ended
            && !spared.contains(&stat.pid)
    };
    all.iter().filter(is_member).cloned().collect()
}

/// Does the environment that `pid` was started with hold all of `entries`, each exactly?
pub(crate) fn environ_holds(pid: i32, entries: &[String]) -> bool {
    let Some(environ) = read_at_most(&format!("/proc/{pid}/environ"), ENVIRON_BYTES_MAX) else {
        return false;
    };
    let held: BTreeSet<&[u8]> = environ.split(|&byte| byte == 0).collect();
    !entries.is_empty() && entries.iter().all(|entry| held.contains(entry.as_bytes()))
}

/// Returns the arguments of `pid`, the first ones where they are many.
pub(crate) fn arguments(pid: i32) -> Option<Vec<Vec<u8>>> {
    let text = read_at_most(&format!("/proc/{pid}/cmdline"), CMDLINE_BYTES_MAX)?;
    Some(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

/// Returns the working directory of `pid`, as the kernel names it; `None` where it may not be seen.
pub(crate) fn working_directory(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Returns the executable of `pid`, as the kernel names it; `None` where it may not be seen.
pub(crate) fn executable(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Returns the real uid of `pid`.
pub(crate) fn real_uid(pid: i32) -> Option<u32> {
    let status = fs::read(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// Is `pid` in the control group `path` of systemd's hierarchy, or below it?
pub(crate) fn is_in_cgroup(pid: i32, path: &str) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    names_cgroup(&text, path)
}

/// Does the text of `/proc/<pid>/cgroup` name `path`, or what is below it?
pub(crate) fn names_cgroup(text: &str, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        // All is below the root: it is nobody's.
        return false;
    }
    text.lines().any(|line| {
        // The one hierarchy of cgroup v2, or the one that systemd has for itself beside v1's. Its words are
        // counted from the left: a path may hold colons, and is the choice of whoever made the cgroup.
        let mut fields = line.splitn(3, ':');
        let hierarchy = (fields.next(), fields.next());
        let is_systemd = matches!(hierarchy, (Some("0"), Some("")) | (_, Some("name=systemd")));
        let own = fields.next().filter(|_| is_systemd);
        let rest = own.and_then(|own| own.strip_prefix(path));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Returns what lives in a control group.
pub(crate) fn members(cgroup: &str, table: &[Stat]) -> Vec<Stat> {
    let is_member = |stat: &&Stat| !stat.ended && is_in_cgroup(stat.pid, cgroup);
    table.iter().filter(is_member).cloned().collect()
}

/// Returns what descends from `root`, and what else lives in the control group of its unit, each with
/// the process directly below `root`, or below nobody of the unit, that it descends from.
pub(crate) fn owned(root: i32, cgroup: Option<&str>, table: &[Stat]) -> Vec<(i32, Stat)> {
    let mut found = descendants(root, table);
    let Some(cgroup) = cgroup else { return found };
    let known: BTreeSet<i32> = found.iter().map(|(_, stat)| stat.pid).chain([root]).collect();
    let mut strays = members(cgroup, table);
    strays.retain(|stat| !known.contains(&stat.pid));
    let pids: BTreeSet<i32> = strays.iter().map(|stat| stat.pid).collect();
    for top in strays.iter().filter(|stat| !pids.contains(&stat.parent)) {
        found.push((top.pid, top.clone()));
        let below = descendants(top.pid, table).into_iter();
        found.extend(below.map(|(_, stat)| (top.pid, stat)));
    }
    found
}

/// Returns the time since boot in ticks, on the clock that `start_ticks` is on.
pub(crate) fn now_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * TICKS_PER_SECOND + nanoseconds / (1_000_000_000 / TICKS_PER_SECOND)
}

/// Runs a read of the table where a process stuck in the kernel holds up nobody else.
pub(crate) async fn off_thread<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)
}

fn read_at_most(path: &str, bytes_max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, state: &str, threads: u32) -> String {
        format!(
            "71 ({name}) {state} 1 70 69 0 -1 4194304 9 0 0 0 1 2 0 0 20 0 {threads} 0 4242 1024 7"
        )
    }

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let cases = [
            ("plain", "sh", "S", 1, false),
            ("spaces and parentheses", "a) R 2 (b", "S", 1, false),
            ("a name that looks like a zombie's", ") Z 1 1", "S", 1, false),
            ("a zombie", "sh", "Z", 1, true),
            ("a first thread that ended before the others", "sh", "Z", 3, false),
        ];
        for (rule, name, state, threads, ended) in cases {
            let stat = Stat::parse(line(name, state, threads).as_bytes()).unwrap();
            let expected = Stat {
                pid: 71,
                parent: 1,
                group: 70,
                session: 69,
                start_ticks: 4242,
                ended,
                kernel: false,
            };
            assert_eq!(stat, expected, "{rule}");
        }
        for broken in ["", "71", "71 (sh", "71 (sh)", "71 (sh) S 1", "x (sh) S 1 1 1"] {
            assert_eq!(Stat::parse(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn a_cgroup_is_known_by_its_hierarchy_and_its_whole_name() {
        let unit = "/system.slice/web.service";
        let cases = [
            ("its own", "0::/system.slice/web.service", true),
            ("below it", "0::/system.slice/web.service/a", true),
            ("beside version 1", "1:name=systemd:/system.slice/web.service", true),
            ("a longer name", "0::/system.slice/web.service2", false),
            ("another hierarchy", "5:memory:/system.slice/web.service", false),
            ("a name with colons", "5:memory:/x:name=systemd:/system.slice/web.service", false),
        ];
        for (rule, text, expected) in cases {
            assert_eq!(names_cgroup(text, unit), expected, "{rule}");
        }
        assert!(!names_cgroup("0::/system.slice/web.service", "//"), "all is below the root");
    }

    #[test]
    fn descendants_know_their_branch_and_survive_loops() {
        let stat = |pid, parent, ended| Stat {
            pid,
            parent,
            group: 1,
            session: 1,
            start_ticks: 1,
            ended,
            kernel: false,
        };
        let table = [
            stat(10, 1, false),
            stat(11, 10, false),
            stat(12, 11, false),
            stat(13, 10, true),
            stat(14, 13, false),
            stat(20, 1, false),
            stat(30, 31, false),
            stat(31, 30, false),
        ];
        let mut found: Vec<(i32, i32)> =
            descendants(10, &table).iter().map(|(branch, stat)| (*branch, stat.pid)).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [(11, 11), (11, 12), (13, 14)],
            "zombies are left out, not their children"
        );
        assert_eq!(descendants(30, &table).len(), 1, "a loop ends");
    }

    fn stat(pid: i32, session: i32, start_ticks: u64) -> Stat {
        Stat { pid, parent: 1, group: pid, session, start_ticks, ended: false, kernel: false }
    }

    #[test]
    fn a_session_is_known_by_its_leader() {
        let cases = [
            ("leader and member", vec![stat(50, 50, 9), stat(51, 50, 9), stat(52, 52, 9)], 2),
            ("the leader was reaped", vec![stat(51, 50, 10)], 1),
            ("the pid is another's now", vec![stat(50, 50, 11), stat(51, 50, 12)], 0),
            ("one that is older is no member", vec![stat(51, 50, 8)], 0),
        ];
        for (rule, table, expected) in cases {
            assert_eq!(session_members(50, 9, &table).len(), expected, "{rule}");
        }
    }

    #[test]
    fn the_own_process_is_read_as_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::read(pid).unwrap();
        assert!(!stat.ended && !stat.kernel);
        assert!(stat.start_ticks <= now_ticks() && stat.start_ticks > 0);
        assert!(own_line().contains(&pid) && own_line().contains(&stat.parent));
        assert_eq!(real_uid(pid), Some(rustix::process::getuid().as_raw()));
    }
}
