//! What a running program costs, as the kernel counts it.

use std::fs;

use crate::table::{Samples, row};

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

    /// What it holds now.
    pub(crate) fn cost(self) -> Cost {
        #[allow(clippy::cast_precision_loss, reason = "some dozen")]
        let descriptors = self.descriptors() as f64;
        Cost {
            resident_kb: self.status("VmRSS"),
            anonymous_kb: self.status("RssAnon"),
            threads: self.status("Threads"),
            descriptors,
        }
    }

    /// The memory that it and the processes below it hold now, in kB; what has ended holds none.
    pub(crate) fn resident_of_all_kb(self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let own = own.and_then(|line| line.split_whitespace().next()?.parse().ok());
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = fs::read_to_string(path).unwrap_or_default();
        let below = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        own.unwrap_or(0.0) + below.map(|pid| Self { pid }.resident_of_all_kb()).sum::<f64>()
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

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) resident_kb: f64,
    pub(crate) anonymous_kb: f64,
    pub(crate) threads: f64,
    pub(crate) descriptors: f64,
}

impl Cost {
    /// Prints one line for each.
    pub(crate) fn print(self, what: &str) {
        let one = |value: f64| Samples::from_iter([value]);
        row(&format!("{what}: resident memory"), "MB", &one(self.resident_kb / 1e3), Some(8.0));
        row(&format!("{what}: anonymous memory"), "MB", &one(self.anonymous_kb / 1e3), Some(2.0));
        row(&format!("{what}: threads"), "", &one(self.threads), Some(2.0));
        row(&format!("{what}: descriptors"), "", &one(self.descriptors), None);
    }
}

fn number(text: &str, field: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the kernel tells it")
}
