//! Runs a program under ptrace, and counts the system calls by which it changes something: files,
//! processes, signals. Before each of them the test is asked what is to become of it.
//!
//! ```text
//!   1 openat …/journal.json.new   Pass
//!   2 fchmod …                    Fail(EIO): no effect, and the program is told so
//!   3 syncfs …                    Skip: no effect, and the program is told that all is well
//!   4 renameat2 …                 Kill: no effect, and the program is no more
//! ```
//!
//! One count runs over all threads of the program, and over its children until they have become
//! another program: those run untraced. `strace` counts by thread, so that some calls are never met.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is made.
    Pass,
    /// It is made, and nothing is asked about any later one.
    Leave,
    /// The whole program is killed before it has any effect.
    Kill,
    /// It has no effect, and returns this error.
    Fail(Errno),
    /// It has no effect, and returns success.
    Skip,
}

/// One call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// What it is about, as far as that is known: a path.
    pub about: String,
}

impl Call {
    /// Is it about a file, and not about a thread or a process?
    #[must_use]
    pub fn is_of_file(&self) -> bool {
        let of_processes =
            ["kill", "pidfd_send_signal", "fork", "vfork", "clone", "clone3", "execve"];
        !of_processes.contains(&self.name)
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Killed(Signal),
}

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub ended: Ended,
    /// The calls that were asked about.
    pub calls: Vec<Call>,
    /// What it wrote to standard error.
    pub log: String,
}

/// Runs a program to its end; `ask`: what becomes of the call of this number, the first being 1.
///
/// - `below`: of what is open, only files there count; its log, for one, does not.
///
/// # Panics
///
/// Where it cannot be traced.
#[must_use]
#[expect(clippy::zombie_processes, reason = "whoever traces it waits for it, by its pid")]
pub fn run(command: &Command, below: &Path, ask: &mut dyn FnMut(usize, &Call) -> Fate) -> Ran {
    let log = tempfile::NamedTempFile::new().expect("a temp file");
    // It waits until it is traced; what it becomes has the same pid.
    let mut held = Command::new("/bin/sh");
    held.args(["-c", "read -r go && exec \"$@\"", "sh"]);
    held.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => held.env(name, value),
            None => held.env_remove(name),
        };
    }
    let errors = log.reopen().expect("it is ours");
    held.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors);
    let mut child = held.spawn().expect("every system has a shell");
    let leader = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).expect("it is our child");
    let mut go = child.stdin.take().expect("a pipe");
    go.write_all(b"\n").expect("it is waited for");
    drop(go);
    let mut tracer = Tracer {
        leader,
        program: Path::new(command.get_program()).canonicalize().expect("the program is there"),
        below: below.to_owned(),
        ask,
        calls: Vec::new(),
        is_program: false,
        is_over: false,
        failing: BTreeMap::new(),
    };
    let ended = tracer.follow();
    let log = fs::read(log.path()).expect("it is ours");
    Ran { ended, calls: tracer.calls, log: String::from_utf8_lossy(&log).into_owned() }
}

struct Tracer<'a> {
    leader: Pid,
    below: PathBuf,
    ask: &'a mut dyn FnMut(usize, &Call) -> Fate,
    calls: Vec<Call>,
    program: PathBuf,
    /// Has the shell become the program?
    is_program: bool,
    /// Is nothing asked any more?
    is_over: bool,
    /// Whose call is about to return, and what.
    failing: BTreeMap<Pid, i64>,
}

impl Tracer<'_> {
    /// Goes on until the program has ended, and nothing of it is traced any more.
    fn follow(&mut self) -> Ended {
        let mut ended = None;
        loop {
            // Only what this very thread traces: other tests have children too.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return ended.expect("its end was told"),
                Err(error) => panic!("a traced program is waited for: {error}"),
            };
            match status {
                WaitStatus::Exited(pid, code) if pid == self.leader => {
                    ended = Some(Ended::Exited(code));
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    ended = Some(Ended::Killed(signal));
                }
                WaitStatus::PtraceSyscall(pid) => {
                    self.at_call(pid);
                    self.go_on(pid, None);
                }
                WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                    if pid == self.leader {
                        // The shell's own start may be told as well.
                        let own = fs::read_link(format!("/proc/{pid}/exe"));
                        self.is_program = own.is_ok_and(|own| own == self.program);
                        self.go_on(pid, None);
                    } else {
                        // It may be gone by now, here and below: then its end is told next.
                        ptrace::detach(pid, None).ok();
                    }
                }
                WaitStatus::PtraceEvent(pid, ..) => self.go_on(pid, None),
                WaitStatus::Stopped(pid, signal) => self.go_on(pid, Some(signal)),
                _ => {}
            }
        }
    }

    fn go_on(&self, pid: Pid, signal: Option<Signal>) {
        let is_watched = self.is_program && (!self.is_over || self.failing.contains_key(&pid));
        let on = if is_watched { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
        on.ok();
    }

    fn at_call(&mut self, pid: Pid) {
        let Ok(info) = ptrace::syscall_info(pid) else { return };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if let Some(value) = self.failing.remove(&pid) {
                answer(pid, value);
            }
            return;
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY || self.is_over {
            return;
        }
        let Some(call) = self.read(pid) else { return };
        let fate = (self.ask)(self.calls.len() + 1, &call);
        self.calls.push(call);
        match fate {
            Fate::Pass => {}
            Fate::Leave => self.is_over = true,
            Fate::Kill => {
                self.is_over = true;
                kill(self.leader, Signal::SIGKILL).ok();
            }
            Fate::Fail(errno) => {
                skip(pid);
                self.failing.insert(pid, -i64::from(errno as i32));
            }
            Fate::Skip => {
                skip(pid);
                self.failing.insert(pid, 0);
            }
        }
    }

    /// Returns the call that is about to be made, if it changes something.
    fn read(&mut self, pid: Pid) -> Option<Call> {
        let Asked { number, arguments } = asked(pid)?;
        let path = |index: usize| text(pid, arguments[index]);
        let open = |flags: u64| {
            let writes = libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_RDWR;
            flags & u64::try_from(writes).unwrap_or(0) != 0
        };
        let of_file = |name, index: usize| {
            let target = fs::read_link(format!("/proc/{pid}/fd/{}", arguments[index])).ok()?;
            let is_own = target.starts_with(&self.below);
            is_own.then(|| Call { name, about: target.display().to_string() })
        };
        let of_path = |name, index: usize| Some(Call { name, about: path(index) });
        let of_process = |name| Some(Call { name, about: String::new() });
        match number {
            libc::SYS_open if open(arguments[1]) => of_path("open", 0),
            libc::SYS_creat => of_path("creat", 0),
            libc::SYS_openat if open(arguments[2]) => {
                of_path("openat", 1).filter(|call| !call.about.starts_with("/dev/"))
            }
            libc::SYS_write => of_file("write", 0),
            libc::SYS_pwrite64 => of_file("pwrite64", 0),
            libc::SYS_writev => of_file("writev", 0),
            libc::SYS_pwritev => of_file("pwritev", 0),
            libc::SYS_rename => of_path("rename", 1),
            libc::SYS_renameat => of_path("renameat", 3),
            libc::SYS_renameat2 => of_path("renameat2", 3),
            libc::SYS_link => of_path("link", 1),
            libc::SYS_linkat => of_path("linkat", 3),
            libc::SYS_symlink => of_path("symlink", 1),
            libc::SYS_symlinkat => of_path("symlinkat", 2),
            libc::SYS_unlink => of_path("unlink", 0),
            libc::SYS_unlinkat => of_path("unlinkat", 1),
            libc::SYS_mkdir => of_path("mkdir", 0),
            libc::SYS_mkdirat => of_path("mkdirat", 1),
            libc::SYS_rmdir => of_path("rmdir", 0),
            libc::SYS_chmod => of_path("chmod", 0),
            libc::SYS_fchmodat => of_path("fchmodat", 1),
            libc::SYS_fchmod => of_file("fchmod", 0),
            libc::SYS_chown => of_path("chown", 0),
            libc::SYS_lchown => of_path("lchown", 0),
            libc::SYS_fchownat => of_path("fchownat", 1),
            libc::SYS_fchown => of_file("fchown", 0),
            libc::SYS_fsync => of_file("fsync", 0),
            libc::SYS_fdatasync => of_file("fdatasync", 0),
            libc::SYS_syncfs => of_file("syncfs", 0),
            libc::SYS_sync_file_range => of_file("sync_file_range", 0),
            libc::SYS_truncate => of_path("truncate", 0),
            libc::SYS_ftruncate => of_file("ftruncate", 0),
            libc::SYS_fallocate => of_file("fallocate", 0),
            libc::SYS_copy_file_range => of_file("copy_file_range", 2),
            // FICLONE, FICLONERANGE
            libc::SYS_ioctl if matches!(arguments[1], 0x4004_9409 | 0x4020_940d) => {
                of_file("ioctl", 0)
            }
            libc::SYS_utimensat => of_path("utimensat", 1),
            libc::SYS_kill => of_process("kill"),
            libc::SYS_pidfd_send_signal => of_process("pidfd_send_signal"),
            libc::SYS_fork => of_process("fork"),
            libc::SYS_vfork => of_process("vfork"),
            libc::SYS_clone => of_process("clone"),
            libc::SYS_clone3 => of_process("clone3"),
            libc::SYS_execve => of_path("execve", 0),
            _ => None,
        }
    }
}

struct Asked {
    number: i64,
    arguments: [u64; 6],
}

fn asked(pid: Pid) -> Option<Asked> {
    let own = ptrace::getregs(pid).ok()?;
    let number = own.orig_rax.cast_signed();
    Some(Asked { number, arguments: [own.rdi, own.rsi, own.rdx, own.r10, own.r8, own.r9] })
}

/// Has the kernel make no call at all.
fn skip(pid: Pid) {
    let mut own = ptrace::getregs(pid).expect("it stands before a call");
    own.orig_rax = u64::MAX;
    ptrace::setregs(pid, own).expect("it stands before a call");
}

/// Has the call return something else.
fn answer(pid: Pid, value: i64) {
    let mut own = ptrace::getregs(pid).expect("it stands after a call");
    own.rax = value.cast_unsigned();
    ptrace::setregs(pid, own).expect("it stands after a call");
}

/// Reads a text of the program's.
fn text(pid: Pid, at: u64) -> String {
    let mut bytes = [0; 256];
    let memory = File::open(format!("/proc/{pid}/mem"));
    let count = memory.and_then(|memory| memory.read_at(&mut bytes, at)).unwrap_or(0);
    let text = bytes[..count].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
