//! What the running agent costs, as the kernel counts it.

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

    /// CPU time of all its threads so far, in ms.
    pub(crate) fn cpu_ms(self) -> f64 {
        let of = |text: String| text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
        self.threads("schedstat").into_iter().filter_map(of).sum::<f64>() / 1e6
    }

    /// How often its threads have gone to sleep so far: each time they were woken before.
    pub(crate) fn sleeps(self) -> f64 {
        self.threads("status").iter().map(|text| number(text, "voluntary_ctxt_switches")).sum()
    }

    fn threads(self, file: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it runs");
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join(file)).ok()).collect()
    }
}

fn number(text: &str, field: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("the kernel tells it")
}
