//! What a running program costs, as the kernel counts it.

use std::fs;

/// A process under observation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed {
    pub(crate) pid: u32,
}

impl Observed {
    /// A field of `/proc/<pid>/status` that is a number, such as `VmRSS` in kB.
    pub(crate) fn status(self, field: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        number(&text, field)
    }

    /// Open descriptors.
    pub(crate) fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs").count()
    }

    /// CPU time so far, in ms, of threads that have ended as well; the kernel tells it in steps of 10 ms.
    pub(crate) fn cpu_ms(self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("it runs");
        // proc(5): fields 14 and 15, where 3 is the first after the name in parentheses.
        let rest = text.rsplit(')').next().unwrap_or_default();
        let ticks = rest.split_whitespace().skip(11).take(2);
        ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
    }

    /// How often its main thread has gone to sleep so far: each time it was woken before. Others come for
    /// a moment, and take their count with them.
    pub(crate) fn sleeps(self) -> f64 {
        let path = format!("/proc/{0}/task/{0}/status", self.pid);
        number(&fs::read_to_string(path).expect("it runs"), "voluntary_ctxt_switches")
    }
}

fn number(text: &str, field: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the kernel tells it")
}
