//! Named places at which tests let a coordinator die, to see that a restart goes on from there.
//!
//! Without the feature `failpoints` nothing of it is there.

/// The places, in no order.
pub const NAMES: &[&str] = &[
    "before-commit",
    "after-commit",
    "before-report",
    "after-report",
    "before-permit",
    "after-permit",
    "before-goodbye",
    "before-step",
    "after-step",
    "before-abort",
    "after-abort",
    "before-converge",
    "after-converge",
    "before-change",
    "after-change",
    "before-answer",
];

/// Reaches a place: the process is killed there, at the N-th time, where `TOWLINE_FAILPOINT=name:N` says so.
#[cfg(feature = "failpoints")]
pub fn reach(name: &str) {
    imp::reach(name);
}

/// Reaches a place; without the feature `failpoints` nothing happens.
#[cfg(not(feature = "failpoints"))]
pub fn reach(_name: &str) {}

#[cfg(feature = "failpoints")]
mod imp {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::getpid;

    static ARMED: OnceLock<(String, AtomicU64)> = OnceLock::new();

    /// Arms one place: at the `nth` time that it is reached, the process is killed.
    pub(super) fn arm(name: &str, nth: u64) {
        // Armed once, by `main`, before anything is reached.
        ARMED.set((name.to_owned(), AtomicU64::new(nth))).ok();
    }

    pub(super) fn reach(name: &str) {
        let Some((armed, left)) = ARMED.get() else { return };
        if armed == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // As a power cut would, with no chance to tidy up.
            kill(getpid(), Signal::SIGKILL).ok();
            loop {
                std::thread::park();
            }
        }
    }
}

/// Arms a place by the text of `TOWLINE_FAILPOINT`: `name:N`. Text that names none arms none.
pub fn arm(text: &str) {
    let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
    if NAMES.contains(&name) {
        arm_nth(name, nth.parse().unwrap_or(1));
    }
}

#[cfg(feature = "failpoints")]
fn arm_nth(name: &str, nth: u64) {
    imp::arm(name, nth);
}

#[cfg(not(feature = "failpoints"))]
fn arm_nth(_name: &str, _nth: u64) {}
