//! Tables of the machine's rules: what happens, and what is to be done about it.
//!
//! A row begins with how the instance was found, goes on with pairs of an event and its effects, and
//! ends with the report. Revisions are single letters, generations are numbers; all times are seconds.
//! The shorthand is read by [`Play`].

use towline_protocol::poll::Duty;
use towline_protocol::report::Orders;
use towline_protocol::target::Target;

use super::*;
use crate::journal::Heard;

mod adopted;
mod boots;
mod deploys;
mod duties;
mod hooks;
mod killed;
mod orders;
mod permits;
mod serving;
mod targets;

/// A rule in words; how the instance was found; events and effects; the report in the end.
type Rule = (&'static str, &'static str, Steps, &'static str);

/// Events, each with its effects.
type Steps = &'static [(&'static str, &'static str)];

/// One instance, driven and described in shorthand.
struct Play {
    machine: Machine,
    now: Duration,
    wake: Option<Duration>,
    told: Option<Report>,
    /// The journal that is on disk.
    written: Journal,
    /// Is the report described with its marks for the coordinator?
    is_marked: bool,
    /// The releases that were activated with their hooks due.
    deploys: Vec<String>,
}

fn revision(letter: &str) -> Revision {
    letter.repeat(40).parse().unwrap_or_else(|error| panic!("{letter}: {error}"))
}

fn order(generation: &str) -> Order {
    let generation = generation.parse().unwrap_or_else(|error| panic!("{generation}: {error}"));
    Order { epoch: 1, generation }
}

fn letter(revision: &Revision) -> String {
    revision.as_str().chars().take(1).collect()
}

/// Reads a letter, or `old`, which is what was adopted.
fn release(word: &str) -> Release {
    if word == "old" { Release::Adopted } else { Release::Own(revision(word)) }
}

fn name(release: &Release) -> String {
    release.own().map_or("old".to_owned(), letter)
}

/// Reads `2 b`, `2 b restart 1`, `2 b fallback a`.
fn target(words: &[&str]) -> Target {
    let option = |name| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
    Target {
        version: 1,
        group: "web".parse().unwrap(),
        order: order(words[0]),
        revision: (words[1] != "not").then(|| revision(words[1])),
        not: option("not").map(revision),
        fallback: option("fallback").map(revision),
        quarantine: option("quarantine").map(revision).into_iter().collect(),
        restart: option("restart").map_or(0, |count| count.parse().unwrap()),
    }
}

/// Reads what a word says besides its target: `2 b hold`, `2 b prepare boot a`, `2 b boot none`, and
/// `ask 3`, `every 5`, `order 1`, `retry 1`. What is not said is as a file has it.
fn word(words: &[&str]) -> Word {
    let option = |name| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
    let number = |name| option(name).map(|count| count.parse().unwrap());
    let mut word = Word::of_target(target(words));
    if words.contains(&"hold") {
        word.duty = Duty::Hold;
    } else if words.contains(&"prepare") {
        word.duty = Duty::Prepare;
    }
    if let Some(boot) = option("boot") {
        word.boot = (boot != "none").then(|| revision(boot));
    }
    word.ask = number("ask").unwrap_or(0);
    word.probe_every_s = option("every").map_or(60, |count| count.parse().unwrap());
    word.orders =
        Orders { restart: number("order").unwrap_or(0), retry: number("retry").unwrap_or(0) };
    word
}

fn cause(word: &str) -> Cause {
    serde_json::from_value(serde_json::Value::from(word)).unwrap()
}

fn outcome(word: &str, rest: &[&str]) -> Option<Outcome> {
    Some(match word {
        "prepared" => Outcome::Prepared { alike: false },
        "alike" => Outcome::Prepared { alike: true },
        "yes" => {
            let until = rest.first().map(|by| Duration::from_secs(by.parse().unwrap()));
            Outcome::Permitted(Leave { until })
        }
        "no" => Outcome::Denied,
        "journalled" => Outcome::Journalled,
        "activated" => Outcome::Activated(How::Reload),
        "started" => Outcome::Activated(How::Restart),
        "replaced" => Outcome::Proved(Some(Evidence::Replaced)),
        "swapped" => Outcome::Proved(None),
        "refused" => Outcome::Refused("a hook says no".to_owned()),
        "healthy" => Outcome::Healthy { served: false },
        "served" => Outcome::Healthy { served: true },
        "absent" => Outcome::Absent,
        "untouched" => Outcome::Untouched("it is in the way".to_owned()),
        "failed" => Outcome::Failed(cause(rest[0]), "it broke".to_owned()),
        _ => return None,
    })
}

impl Play {
    /// Reads how an instance is found: `disk a b, current a, runs, proven a, seen 1 a`, and for a
    /// swap that the last run left, `swap 2 a>b`, `failed`, `resumed 3`. `adopts`: host config names what
    /// was there before, which is `old`; `adopted`: and that has served.
    fn new(found: &str) -> (Self, String) {
        let mut has_adopted = false;
        let mut journal = Journal::new("i-1".parse().unwrap());
        let mut state = Found::default();
        for part in found.split(", ").filter(|part| !part.is_empty()) {
            let words: Vec<&str> = part.split(' ').collect();
            let rest = &words[1..];
            match words[0] {
                "disk" => state.releases = rest.iter().map(|word| revision(word)).collect(),
                "current" => state.current = Some(release(rest[0])),
                "adopts" => has_adopted = true,
                "adopted" => journal.adopted = true,
                "runs" => state.is_running = true,
                "proven" => journal.proven = rest.iter().map(|word| revision(word)).collect(),
                "seen" => {
                    let word = word(rest);
                    journal.word = Some(Heard { duty: word.duty, boot: word.boot });
                    journal.target = word.target;
                }
                "used" => journal.leave = Some(rest[0].parse().unwrap()),
                "run" => journal.run = rest[0].parse().unwrap(),
                "restarted" => journal.restart = rest[0].parse().unwrap(),
                "rejected" => {
                    journal.reject(order(rest[0]), release(rest[1]), "it broke".to_owned());
                }
                "swap" => {
                    let (from, to) = rest[1].split_once('>').unwrap();
                    let target = target(&[&[rest[0], "a"], &rest[2..]].concat());
                    journal.swap = Some(Swap {
                        order: target.order,
                        to: release(to),
                        from: (!from.is_empty()).then(|| release(from)),
                        failed: None,
                        restart: target.restart,
                        ordered: 0,
                        resumes: 0,
                    });
                }
                "failed" => journal.swap.as_mut().unwrap().failed = Some("it broke".to_owned()),
                "resumed" => {
                    journal.swap.as_mut().unwrap().resumes = rest[0].parse().unwrap();
                }
                other => panic!("{other} describes nothing"),
            }
        }
        Self::start(journal, state, has_adopted)
    }

    fn start(journal: Journal, found: Found, has_adopted: bool) -> (Self, String) {
        let policy = Policy {
            group: "web".parse().unwrap(),
            has_adopted,
            boot_deadline: Duration::from_secs(240),
            backoff: Duration::from_secs(2),
            backoff_max: Duration::from_secs(256),
            seed: 7,
        };
        let written = journal.clone();
        let (machine, effects) = Machine::new(policy, journal, found);
        let (now, wake, is_marked) = (Duration::ZERO, None, false);
        let deploys = Vec::new();
        let mut play = Self { machine, now, wake, told: None, written, is_marked, deploys };
        let told = play.tell(effects);
        (play, told)
    }

    /// The agent is killed and started again, and its app runs on.
    fn kill(&mut self) -> String {
        let found = Found {
            releases: self.machine.releases.clone(),
            current: self.machine.live.release.clone(),
            is_running: true,
        };
        let (play, told) =
            Self::start(self.written.clone(), found, self.machine.policy.has_adopted);
        *self = Self { is_marked: self.is_marked, ..play };
        told
    }

    /// Delivers an event: `target 2 b`, `objected`, how the newest task ended, or `woke` when that is
    /// due; or `killed`. `+5` before it lets five seconds go by, `-5` steps the clock back; `late` before
    /// an outcome takes an earlier task's.
    fn step(&mut self, event: &str) -> String {
        let mut words: Vec<&str> = event.split(' ').collect();
        if let Some(seconds) = words[0].strip_prefix('+') {
            self.now += Duration::from_secs(seconds.parse().unwrap());
            words.remove(0);
        }
        if let Some(seconds) = words[0].strip_prefix('-') {
            self.now -= Duration::from_secs(seconds.parse().unwrap());
            words.remove(0);
        }
        if words[0] == "killed" {
            return self.kill();
        }
        let is_late = words[0] == "late";
        if is_late {
            words.remove(0);
        }
        let event = match words[0] {
            "target" => Event::Told(word(&words[1..])),
            "no" if words.get(1) == Some(&"target") => {
                let word = word(&["1", "a"]);
                Event::Told(Word { target: None, ..word })
            }
            "asked" => Event::Asked(words[1].parse().unwrap()),
            "objected" => Event::Objected("it does not parse".to_owned()),
            "woke" => {
                self.now = self.now.max(self.wake.take().expect("a time was asked for"));
                Event::Woke
            }
            "stirred" => Event::Woke,
            "ended" => Event::Ended,
            word => {
                let outcome = outcome(word, &words[1..]).unwrap_or_else(|| panic!("{word}?"));
                Event::Done(self.machine.task - u64::from(is_late), outcome)
            }
        };
        let effects = self.machine.step(self.now, event);
        self.tell(effects)
    }

    /// Describes effects, save reports: `write` is the journal, `prune` names what is kept.
    fn tell(&mut self, effects: Vec<Effect>) -> String {
        let (mut told, mut is_written) = (Vec::new(), false);
        for effect in effects {
            told.push(match effect {
                Effect::Journal(journal) => {
                    (self.written, is_written) = (*journal, true);
                    "write".to_owned()
                }
                Effect::Begin(_, task) => {
                    if let Task::Journal(journal) = &task {
                        (self.written, is_written) = ((**journal).clone(), true);
                    }
                    if let Task::Activate { to, is_deploy: true, .. } = &task {
                        self.deploys.push(name(to));
                    }
                    describe(&task)
                }
                Effect::Cancel => "cancel".to_owned(),
                Effect::WakeAt(time) => {
                    self.wake = Some(time);
                    self.describe_time(time)
                }
                Effect::Report(report) => {
                    assert_ne!(self.told.as_ref(), Some(&*report), "nothing is told twice");
                    self.told = Some(*report);
                    continue;
                }
                Effect::Prune(keep) => {
                    let keep: Vec<String> = keep.iter().map(letter).collect();
                    format!("prune {}", keep.join(" "))
                }
            });
        }
        if is_written {
            assert_eq!(self.written, self.machine.journal, "what is written is what is known");
        }
        assert_eq!(self.told, Some(self.machine.report()), "what has changed is told");
        told.join("; ")
    }

    /// `look` is the next look at the health, `wait 4` a wait of three to four seconds, and `by 60` a
    /// time since the start.
    fn describe_time(&self, time: Duration) -> String {
        let wait = time.saturating_sub(self.now);
        if let State::Waiting { .. } = self.machine.state {
            let whole = wait.as_secs_f64().ceil().to_string().parse::<u64>().unwrap();
            return format!("wait {}", whole.next_power_of_two());
        }
        if self.machine.state == State::Idle && wait == Duration::from_secs(60) {
            return "look".to_owned();
        }
        format!("by {}", time.as_secs())
    }

    /// Describes the report: phase, what serves, its health and evidence, then what is amiss.
    fn report(&self) -> String {
        let report = self.told.as_ref().expect("the first step reports");
        let word = |value: serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let json = serde_json::to_value(report).unwrap();
        let mut told = vec![word(json["phase"].clone())];
        let none = if report.adopted { "old" } else { "-" };
        told.push(report.serving.as_ref().map_or(none.to_owned(), letter));
        told.push(report.health.as_str().to_owned());
        told.extend(report.evidence.map(|evidence| evidence.as_str().to_owned()));
        let mut told = told.join(" ");
        if let Some(alike) = &report.alike {
            told += &format!("; alike {}", letter(alike));
        }
        if let Some(failure) = &report.failure {
            let cause = word(json["failure"]["cause"].clone());
            told += &format!(
                "; failure: {cause} of {}, {}",
                letter(&failure.revision),
                failure.attempt
            );
        }
        if let Some(degraded) = &report.degraded {
            told += &format!("; degraded: {}", shorten(degraded));
        }
        if let Some(objection) = &report.objection {
            told += &format!("; objection: {}", shorten(objection));
        }
        told + &self.marks()
    }

    /// Describes what a coordinator goes by, for the tables that are about it.
    fn marks(&self) -> String {
        let report = self.told.as_ref().expect("the first step reports");
        let mut told = String::new();
        if !self.is_marked {
            return told;
        }
        let marks = [
            (report.newborn, "newborn"),
            (report.prepared, "prepared"),
            (report.rejected, "rejected"),
            (report.uses_permit, "permit"),
        ];
        for (_, mark) in marks.iter().filter(|(is_set, _)| *is_set) {
            told += &format!("; {mark}");
        }
        if report.renounced > 0 {
            told += &format!("; renounced {}", report.renounced);
        }
        told
    }
}

/// Puts letters in place of short revisions.
fn shorten(text: &str) -> String {
    let mut text = text.to_owned();
    for letter in ["a", "b", "c", "d", "e"] {
        text = text.replace(revision(letter).short(), letter);
    }
    text
}

fn describe(task: &Task) -> String {
    match task {
        Task::Prepare { revision, unless_like: None } => format!("prepare {}", letter(revision)),
        Task::Prepare { revision, unless_like: Some(live) } => {
            format!("prepare {} unless like {}", letter(revision), letter(live))
        }
        Task::Ask(order) => format!("ask {}", order.generation),
        Task::Journal(journal) => {
            let swap = journal.swap.as_ref().expect("it allows a swap");
            let from = swap.from.as_ref().map(name).unwrap_or_default();
            format!("journal {} {from}>{}", swap.order.generation, name(&swap.to))
        }
        Task::Activate { to, from, how, .. } => {
            let how = if *how == How::Reload { "activate" } else { "restart" };
            let from = from.as_ref().map(name).unwrap_or_default();
            format!("{how} {from}>{}", name(to))
        }
        Task::Prove(release) => format!("prove {}", name(release)),
        Task::Check(release, Window::Full) => format!("check {} fully", name(release)),
        Task::Check(release, Window::Brief) => format!("check {} briefly", name(release)),
        Task::Probe(release, Window::Full) => format!("probe {} fully", name(release)),
        Task::Probe(release, Window::Brief) => format!("probe {} briefly", name(release)),
    }
}

/// Plays each rule, and compares what it says with what is done.
fn check(rules: &[Rule]) {
    play(rules, false);
}

/// Like [`check`], with reports that tell what a coordinator goes by.
fn check_marked(rules: &[Rule]) {
    play(rules, true);
}

fn play(rules: &[Rule], is_marked: bool) {
    let mut wrong = Vec::new();
    for (rule, found, steps, report) in rules {
        let (mut play, first) = Play::new(found);
        play.is_marked = is_marked;
        let mut is_right = true;
        let mut lines = vec![format!("{rule}: {found}")];
        for (event, due) in *steps {
            let done = if *event == "start" { first.clone() } else { play.step(event) };
            is_right &= done == *due;
            let mark = if done == *due { ' ' } else { '!' };
            lines.push(format!(" {mark}(\"{event}\", \"{done}\"),"));
        }
        let told = play.report();
        is_right &= told == *report;
        lines.push(format!("  \"{told}\""));
        if !is_right {
            wrong.push(lines.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n\n"));
}

/// An instance that serves `a`, proven, as its target asks.
const SERVES_A: &str = "disk a, current a, runs, proven a, seen 1 a";

/// The same instance after a reboot: nothing of the app runs.
const SERVES_A_STOPPED: &str = "disk a, current a, proven a, seen 1 a";
