//! Workers that end as soon as they start: a crash loop, seen before any deadline has passed.
//!
//! Pure: what was seen comes in with the time since the first look.
//!
//! A crash loop is the same program again and again, with nothing of it that lasts. So a manager that
//! runs a few commands one after the other is none, and neither is one that recycles its workers
//! while others go on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Worker;

/// How many processes of one program must have ended.
const ENDED_MIN: u32 = 5;

/// For how long they must have been ending: a start that fails twice may succeed yet.
const SPAN_MIN: Duration = Duration::from_secs(2);

/// A process that has lived for so long shows that the program does not end at once.
const LASTING: Duration = Duration::from_secs(5);

/// What a process runs: its executable, and those of its arguments that are files.
pub(super) type Program = Vec<PathBuf>;

/// The processes that came and went.
#[derive(Debug, Clone, Default)]
pub(super) struct Turnover {
    living: BTreeMap<Worker, (Program, Duration)>,
    /// How many of a program have ended, and when the first one was missed.
    ended: BTreeMap<Program, (u32, Duration)>,
}

impl Turnover {
    /// Takes a look: those that are there, and what of those seen before has ended. Returns how many
    /// have ended, where this is a crash loop.
    pub(super) fn look(
        &mut self,
        now: Duration,
        present: impl IntoIterator<Item = (Worker, Program)>,
        has_ended: impl Fn(&Worker) -> bool,
    ) -> Option<u32> {
        let ended = &mut self.ended;
        self.living.retain(|worker, (program, _)| {
            let is_gone = has_ended(worker);
            if is_gone {
                ended.entry(std::mem::take(program)).or_insert((0, now)).0 += 1;
            }
            !is_gone
        });
        for (worker, program) in present {
            self.living.entry(worker).or_insert((program, now));
        }
        let lasts = |program: &Program| {
            let mut of_it = self.living.values().filter(|(own, _)| own == program);
            of_it.any(|(_, since)| now.saturating_sub(*since) >= LASTING)
        };
        let mut loops = self.ended.iter().filter(|(program, (count, since))| {
            *count >= ENDED_MIN && now.saturating_sub(*since) >= SPAN_MIN && !lasts(program)
        });
        loops.next().map(|(_, (count, _))| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(pid: i32) -> Worker {
        Worker { pid, start_ticks: 1 }
    }

    /// Looks every half second; each row of `script` is who is there: pid and program.
    fn looks(script: &[&[(i32, &str)]]) -> Option<u32> {
        let mut turnover = Turnover::default();
        let mut said = None;
        for (index, row) in script.iter().enumerate() {
            let now = Duration::from_millis(500) * u32::try_from(index).unwrap();
            let present = row.iter().map(|(pid, name)| (worker(*pid), vec![PathBuf::from(name)]));
            let is_there = |who: &Worker| row.iter().any(|(pid, _)| *pid == who.pid);
            said = said.or(turnover.look(now, present, |who| !is_there(who)));
        }
        said
    }

    #[test]
    fn the_same_program_that_ends_again_and_again_is_a_crash_loop() {
        const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let crash: Vec<Vec<(i32, &str)>> = (1..9).map(|pid| vec![(pid, "a")]).collect();
        let other = |extra: Option<(i32, &'static str)>, same: bool, count: i32| {
            let row = |pid: i32| {
                let name =
                    if same { "a" } else { NAMES[usize::try_from(pid).unwrap() % NAMES.len()] };
                [Some((pid, name)), extra].into_iter().flatten().collect::<Vec<_>>()
            };
            (1..=count).map(row).collect::<Vec<_>>()
        };
        let cases = [
            ("a crash loop", crash, true),
            ("four may yet be followed by one that stays", other(None, true, 5), false),
            ("commands, one after the other", other(None, false, 12), false),
            ("recycled, while another one goes on", other(Some((99, "a")), true, 3), false),
            ("another program that goes on", other(Some((99, "z")), true, 9), true),
        ];
        for (rule, script, is_loop) in cases {
            let rows: Vec<&[(i32, &str)]> = script.iter().map(Vec::as_slice).collect();
            assert_eq!(looks(&rows).is_some(), is_loop, "{rule}");
        }
    }

    #[test]
    fn recycling_is_none_once_a_worker_has_lasted() {
        let rows: Vec<Vec<(i32, &str)>> = (0..10)
            .map(|_| vec![(99, "a")])
            .chain((1..30).map(|pid| vec![(99, "a"), (pid, "a")]))
            .collect();
        let rows: Vec<&[(i32, &str)]> = rows.iter().map(Vec::as_slice).collect();
        assert_eq!(looks(&rows), None);
    }

    #[test]
    fn five_within_a_moment_are_not_enough() {
        let mut turnover = Turnover::default();
        let program = || vec![PathBuf::from("a")];
        let said: Vec<_> = (1..8)
            .map(|pid| {
                let now = Duration::from_millis(100) * u32::try_from(pid).unwrap();
                turnover.look(now, [(worker(pid), program())], |who| who.pid < pid)
            })
            .collect();
        assert!(said.iter().all(Option::is_none), "{said:?}");
    }
}
