//! Tables of the machine's rules: what happens, and what is to be done about it.
//!
//! A row begins with how the instance was found, goes on with pairs of an event and its effects, and
//! ends with the report. Revisions are single letters, generations are numbers; all times are seconds.
//! The shorthand is read by [`Play`].

use super::*;

/// A rule in words; how the instance was found; events and effects; the report in the end.
type Rule = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

/// One instance, driven and described in shorthand.
struct Play {
    machine: Machine,
    now: Duration,
    wake: Option<Duration>,
    told: Option<Report>,
    /// The journal that is on disk.
    written: Journal,
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

/// Reads `2 b`, `2 b restart 1`, `2 b fallback a`.
fn target(words: &[&str]) -> Target {
    let option = |name| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
    Target {
        version: 1,
        group: "web".parse().unwrap(),
        order: order(words[0]),
        revision: revision(words[1]),
        fallback: option("fallback").map(revision),
        restart: option("restart").map_or(0, |count| count.parse().unwrap()),
    }
}

fn cause(word: &str) -> Cause {
    serde_json::from_value(serde_json::Value::from(word)).unwrap()
}

fn outcome(word: &str, rest: &[&str]) -> Option<Outcome> {
    Some(match word {
        "prepared" => Outcome::Prepared { alike: false },
        "alike" => Outcome::Prepared { alike: true },
        "yes" => Outcome::Permitted(true),
        "no" => Outcome::Permitted(false),
        "journalled" => Outcome::Journalled,
        "activated" => Outcome::Activated,
        "replaced" => Outcome::Proved(Evidence::Replaced),
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
    /// swap that the last run left, `swap 2 a>b`, `failed`, `resumed 3`.
    fn new(found: &str) -> (Self, String) {
        let mut journal = Journal::new("i-1".parse().unwrap());
        let mut state = Found::default();
        for part in found.split(", ").filter(|part| !part.is_empty()) {
            let words: Vec<&str> = part.split(' ').collect();
            let rest = &words[1..];
            match words[0] {
                "disk" => state.releases = rest.iter().map(|word| revision(word)).collect(),
                "current" => state.current = Some(revision(rest[0])),
                "runs" => state.is_running = true,
                "proven" => journal.proven = rest.iter().map(|word| revision(word)).collect(),
                "seen" => journal.target = Some(target(rest)),
                "restarted" => journal.restart = rest[0].parse().unwrap(),
                "rejected" => {
                    journal.reject(order(rest[0]), revision(rest[1]), "it broke".to_owned());
                }
                "swap" => {
                    let (from, to) = rest[1].split_once('>').unwrap();
                    let target = target(&[&[rest[0], to], &rest[2..]].concat());
                    journal.swap = Some(Swap {
                        order: target.order,
                        to: target.revision,
                        from: (!from.is_empty()).then(|| revision(from)),
                        failed: None,
                        restart: target.restart,
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
        Self::start(journal, state)
    }

    fn start(journal: Journal, found: Found) -> (Self, String) {
        let policy = Policy {
            group: "web".parse().unwrap(),
            boot_deadline: Duration::from_secs(240),
            backoff: Duration::from_secs(2),
            backoff_max: Duration::from_secs(256),
            seed: 7,
        };
        let written = journal.clone();
        let (machine, effects) = Machine::new(policy, journal, found);
        let mut play = Self { machine, now: Duration::ZERO, wake: None, told: None, written };
        let told = play.tell(effects);
        (play, told)
    }

    /// The agent is killed and started again, and its app runs on.
    fn kill(&mut self) -> String {
        let found = Found {
            releases: self.machine.releases.clone(),
            current: self.machine.live.revision.clone(),
            is_running: true,
        };
        let (play, told) = Self::start(self.written.clone(), found);
        *self = play;
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
            "target" => Event::Targeted(target(&words[1..])),
            "objected" => Event::Objected("it does not parse".to_owned()),
            "woke" => {
                self.now = self.now.max(self.wake.take().expect("a time was asked for"));
                Event::Woke
            }
            "stirred" => Event::Woke,
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
        let mut told = Vec::new();
        for effect in effects {
            told.push(match effect {
                Effect::Journal(journal) => {
                    assert_eq!(*journal, self.machine.journal, "what is written is what is known");
                    self.written = *journal;
                    "write".to_owned()
                }
                Effect::Begin(_, task) => {
                    if let Task::Journal(journal) = &task {
                        assert_eq!(**journal, self.machine.journal, "it is kept meanwhile");
                        self.written = (**journal).clone();
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
        told.push(report.serving.as_ref().map_or("-".to_owned(), letter));
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
            let from = swap.from.as_ref().map(letter).unwrap_or_default();
            format!("journal {} {from}>{}", swap.order.generation, letter(&swap.to))
        }
        Task::Activate { to, from, how } => {
            let how = if *how == How::Reload { "activate" } else { "restart" };
            let from = from.as_ref().map(letter).unwrap_or_default();
            format!("{how} {from}>{}", letter(to))
        }
        Task::Prove(revision) => format!("prove {}", letter(revision)),
        Task::Check(revision, Window::Full) => format!("check {} fully", letter(revision)),
        Task::Check(revision, Window::Brief) => format!("check {} briefly", letter(revision)),
        Task::Probe(revision, Window::Full) => format!("probe {} fully", letter(revision)),
        Task::Probe(revision, Window::Brief) => format!("probe {} briefly", letter(revision)),
    }
}

/// Plays each rule, and compares what it says with what is done.
fn check(rules: &[Rule]) {
    let mut wrong = Vec::new();
    for (rule, found, steps, report) in rules {
        let (mut play, first) = Play::new(found);
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

#[test]
fn a_deploy_goes_from_the_target_to_the_proof() {
    check(&[
        (
            "each step waits for the one before, and the journal for nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("healthy", "write; prune a b; look"),
            ],
            "idle b healthy replaced",
        ),
        (
            "an answer that names the revision is the strongest evidence",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("served", "write; prune a b; look"),
            ],
            "idle b healthy served",
        ),
        (
            "a release of the same content need not be made live",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("alike", "look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
            ],
            "idle a healthy served; alike b",
        ),
        (
            "what is alike stands in for one target, not for the next",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("alike", "look"),
                ("target 3 c", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "a no is asked again later, from the preparing on",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "without an answer there is no leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("failed fetch", "wait 2"),
            ],
            "waiting a healthy served",
        ),
        (
            "the target that is served already asks for nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 1 a", ""),
                ("target 2 a", "write; look"),
            ],
            "idle a healthy served",
        ),
        (
            "an order to restart goes by the journal, the permit and a stop",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 a restart 1", "write; prepare a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>a"),
                ("journalled", "restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("healthy", "write; prune a; look"),
                ("target 3 a restart 1", "write; look"),
            ],
            "idle a healthy replaced",
        ),
        (
            "a newer revision that comes with an order is restarted into",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b restart 1", "write; prepare b"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "restart a>b"),
            ],
            "activating b unknown",
        ),
        (
            "an order that was given before this instance came is satisfied",
            "disk a, current a, runs",
            &[("start", "check a fully"), ("target 5 a restart 3", "write; cancel; check a fully")],
            "idle a unknown",
        ),
        (
            "what serves when the agent comes asks for leave, proven or not",
            "disk a, current a, runs",
            &[
                ("start", "check a fully"),
                ("target 1 b", "write; cancel; prepare b unless like a"),
                ("prepared", "ask 1"),
            ],
            "asking a unknown",
        ),
    ]);
}

#[test]
fn what_fails_before_the_swap_is_tried_again_and_rejects_nothing() {
    check(&[
        (
            "the waits double",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed install", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("failed fetch", "wait 4"),
                ("woke", "prepare b unless like a"),
                ("failed disk", "prune a b; wait 8"),
                ("stirred", "wait 8"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; degraded: b could not be prepared: it broke",
        ),
        (
            "what is refused waits for another target, and the same one again changes nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed refused", "look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
                ("served", "look"),
                ("target 3 b", "write; look"),
                ("target 4 c", "write; prepare c unless like a"),
            ],
            "preparing a healthy served; degraded: b could not be prepared: it broke",
        ),
        (
            "a journal that cannot be written stops the swap, and does not leave it on disk",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("failed disk", "write; prune a b; wait 2"),
                ("woke", "prepare b unless like a"),
            ],
            "preparing a healthy served; failure: disk of b, 1; degraded: b could not be prepared: it broke",
        ),
    ]);
}

#[test]
fn what_fails_after_the_swap_is_rejected_and_restored() {
    check(&[
        (
            "an unhealthy release gives way to the one before, briefly probed, and is not tried again",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("failed unhealthy", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
                ("target 2 b", ""),
                ("woke", "check a briefly"),
                ("served", "look"),
            ],
            "idle a healthy served; failure: unhealthy of b, 1; degraded: b was rejected: it broke",
        ),
        (
            "a later generation may try it again",
            "disk a b, current a, runs, proven a, seen 2 b, rejected 2 b",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 3 b", "write; prepare b unless like a"),
            ],
            "preparing a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "a manager that does not follow the reload is restarted, once",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("failed prove", "restart a>b"),
                ("activated", "prove b"),
                ("failed prove", "write; activate b>a"),
            ],
            "restoring a unknown; failure: prove of b, 1",
        ),
        (
            "a crash loop is restored at once",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("failed unhealthy", "write; activate b>a"),
            ],
            "restoring a unknown; failure: unhealthy of b, 1",
        ),
        (
            "so is what cannot be made live",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate a>b"), ("failed activate", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1",
        ),
        (
            "a restore that fails is tried by a restart, then again and again",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("activated", "prove a"),
                ("failed prove", "restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("failed unhealthy", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "wait 4"),
                ("woke", "restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "an order to restart that fails is carried out once, and its release is not rejected",
            "disk a, current a, runs, proven a, seen 2 a restart 1, swap 2 a>a restart 1",
            &[
                ("start", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("failed unhealthy", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served; failure: unhealthy of a, 1",
        ),
        (
            "what never passed its window is no place to go back to",
            "disk a b, current b, runs, proven a",
            &[
                ("start", "check b fully"),
                ("target 1 c", "write; cancel; prepare c unless like b"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 a>c"),
            ],
            "activating b unknown",
        ),
        (
            "unless there is nothing better",
            "disk b, current b, runs, proven a",
            &[
                ("start", "check b fully"),
                ("target 1 c", "write; cancel; prepare c unless like b"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 b>c"),
            ],
            "activating b unknown",
        ),
        (
            "after the proof there is no local rollback",
            "disk a b, current b, runs, proven a b, seen 2 b",
            &[
                ("start", "check b briefly"),
                ("failed unhealthy", "look"),
                ("woke", "check b briefly"),
                ("served", "look"),
            ],
            "idle b healthy served",
        ),
    ]);
}

#[test]
fn a_newer_target_wins_at_any_moment() {
    check(&[
        (
            "while preparing: what runs is ended first",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 c", "write; cancel; prepare c unless like a"),
                ("late prepared", ""),
                ("prepared", "ask 3"),
            ],
            "asking a healthy served",
        ),
        (
            "while preparing: back to what serves",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 a", "write; cancel; look"),
                ("late prepared", ""),
                ("target 4 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
                ("target 5 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare c unless like a"),
                ("failed fetch", "wait 4"),
                ("target 6 a", "write; look"),
            ],
            "idle a healthy served",
        ),
        (
            "while preparing: the same revision goes on, and is asked for in the newer generation",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("target 3 b", "write"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "while asking: the same revision is asked for anew, and the older answer is no leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 b", "write; cancel; ask 3"),
                ("late yes", ""),
                ("yes", "journal 3 a>b"),
            ],
            "activating a healthy served",
        ),
        (
            "while asking: another revision needs its own preparing and its own leave",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 c", "write; cancel; prepare c unless like a"),
                ("late yes", ""),
                ("prepared", "ask 3"),
            ],
            "asking a healthy served",
        ),
        (
            "while asking: an order to restart as well is another swap",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("target 3 b restart 1", "write; cancel; prepare b"),
            ],
            "preparing a healthy served",
        ),
        (
            "while waiting: at once, and from the shortest wait",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare b unless like a"),
                ("failed fetch", "wait 4"),
                ("target 3 c", "write; prepare c unless like a"),
                ("failed fetch", "wait 2"),
            ],
            "waiting a healthy served; failure: fetch of c, 1; degraded: c could not be prepared: it broke",
        ),
        (
            "once the swap is journalled: after its window",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("target 3 c", "write"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("target 4 d", "write"),
                ("replaced", "probe b fully"),
                ("target 5 e", "write"),
                ("healthy", "write; prune a b e; prepare e unless like b"),
            ],
            "preparing b healthy replaced",
        ),
        (
            "once the swap failed: after the restore",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("target 3 c", "write"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a c; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "where a restore fails: at once, and what served before is still owed",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("target 3 c", "write"),
                ("failed activate", "restart b>a"),
                ("failed activate", "prepare c"),
                ("failed fetch", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "prepare c"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>c"),
            ],
            "activating a unhealthy; degraded: a could not be restored: it broke",
        ),
        (
            "while the journal is written: at once where that fails",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("target 3 c", "write"),
                ("failed disk", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "and on a boot as well",
            SERVES_A_STOPPED,
            &[
                ("start", "by 60"),
                ("target 2 b", "write; prepare b; by 180"),
                ("prepared", "journal 2 >b"),
                ("target 3 c", "write"),
                ("failed disk", "write; prepare c; by 180"),
            ],
            "preparing - unknown",
        ),
        (
            "where a restore fails: back to what is to be restored is a restore",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 1",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("target 3 a", "write; restart b>a"),
                ("failed activate", "wait 4"),
                ("target 4 c", "write; prepare c"),
                ("target 5 a", "write; cancel; restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served",
        ),
        (
            "where a restore fails: no leave, and what is refused, is no way out",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 1",
            &[
                ("start", "write; activate b>a"),
                ("target 3 c", "write"),
                ("failed activate", "restart b>a"),
                ("failed activate", "prepare c"),
                ("prepared", "ask 3"),
                ("no", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "prepare c"),
                ("failed refused", "wait 4"),
                ("woke", "restart b>a"),
                ("failed activate", "prepare c"),
                ("failed refused", "wait 8"),
                ("target 4 c", "write; restart b>a"),
            ],
            "restoring a unknown; failure: refused of c, 1; degraded: c could not be prepared: it broke",
        ),
        (
            "while the health is looked at: the look comes first again once there is time for it",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[
                ("start", "check b fully"),
                ("target 3 c", "write; cancel; prepare c unless like b"),
                ("failed fetch", "check b fully"),
                ("failed unhealthy", "prepare c; by 180"),
                ("failed refused", "prepare a"),
                ("prepared", "journal 3 >a"),
            ],
            "activating - unhealthy; degraded: c could not be prepared: it broke",
        ),
        (
            "and so it does where there is no leave; a second failure then waits",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("target 2 b", "write; cancel; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "check a briefly"),
                ("served", "prepare b unless like a"),
                ("prepared", "ask 2"),
                ("no", "wait 2"),
            ],
            "waiting a healthy served",
        ),
        (
            "while the health is looked at",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("target 2 b", "write; cancel; prepare b unless like a"),
            ],
            "preparing a unknown",
        ),
    ]);
}

#[test]
fn nothing_goes_back_and_nothing_stale_counts() {
    check(&[
        (
            "a lower generation is refused, and what is under way goes on",
            "disk a, current a, runs, proven a, seen 5 a",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 4 b", ""),
                ("target 6 b", "write; prepare b unless like a"),
                ("target 4 c", ""),
                ("prepared", "ask 6"),
            ],
            "asking a healthy served; objection: the source names generation 4 of epoch 1 (c), and \
             generation 6 of epoch 1 was seen before: a lower one is refused",
        ),
        (
            "a generation never changes its meaning",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 1 b", ""),
                ("target 1 a restart 1", ""),
                ("target 1 a fallback b", ""),
            ],
            "idle a healthy served; objection: the source names another target as generation 1 of \
             epoch 1 than it did before: write the next generation instead",
        ),
        (
            "a word that can be followed ends the objection",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("objected", ""),
                ("target 1 a", ""),
                ("served", "look"),
            ],
            "idle a healthy served",
        ),
        (
            "an objection stops nothing that is under way",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("objected", ""),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; objection: it does not parse",
        ),
        (
            "the end of an earlier task is nobody's",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("late failed unhealthy", ""),
                ("prepared", "ask 2"),
                ("late prepared", ""),
                ("yes", "journal 2 a>b"),
                ("late yes", ""),
                ("journalled", "activate a>b"),
                ("late journalled", ""),
                ("activated", "prove b"),
                ("late failed activate", ""),
                ("replaced", "probe b fully"),
                ("late failed prove", ""),
                ("healthy", "write; prune a b; look"),
                ("healthy", ""),
            ],
            "idle b healthy replaced",
        ),
        (
            "a clock that wakes too often changes nothing",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("stirred", ""),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("stirred", ""),
                ("prepared", "ask 2"),
                ("stirred", ""),
                ("yes", "journal 2 a>b"),
                ("stirred", ""),
                ("journalled", "activate a>b"),
                ("stirred", ""),
            ],
            "activating b unknown",
        ),
    ]);
}

#[test]
fn a_boot_climbs_down_its_ladder() {
    check(&[
        (
            "first start: the target, without leave, and what it finds proves nothing yet",
            "",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("healthy", "write; prune a; look"),
            ],
            "idle a healthy replaced",
        ),
        (
            "an image's release gives way to the target before anything is started",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("target 1 b", "write; prepare b; by 180"),
                ("prepared", "journal 1 >b"),
            ],
            "activating - unknown",
        ),
        (
            "what is proven here is probed briefly on a boot",
            SERVES_A_STOPPED,
            &[
                ("start", "by 60"),
                ("target 1 a", "prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served",
        ),
        (
            "without a word in a quarter of the time, the last target counts",
            SERVES_A_STOPPED,
            &[("start", "by 60"), ("woke", "prepare a; by 180")],
            "preparing - unknown",
        ),
        (
            "with an objection it counts at once",
            SERVES_A_STOPPED,
            &[("start", "by 60"), ("objected", "prepare a; by 180")],
            "preparing - unknown; objection: it does not parse",
        ),
        (
            "without any target: what the image holds, and it says so",
            "disk a, current a",
            &[
                ("start", "by 60"),
                ("objected", "prepare a"),
                ("prepared", "journal 0 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("healthy", "write; prune a; look"),
            ],
            "idle a healthy replaced; degraded: there is no target: it does not parse; objection: it does not parse",
        ),
        (
            "a target that cannot be prepared is tried until its time is over, then the fallback",
            "disk a b, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c fallback b", "write; prepare c; by 180"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare c; by 180"),
                ("failed fetch", "wait 4"),
                ("+200 stirred", "prepare b; by 261"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("healthy", "write; prune a b c; wait 2"),
                ("woke", "prepare c unless like b"),
                ("prepared", "ask 2"),
            ],
            "asking b healthy replaced; degraded: c could not be prepared in time: it broke",
        ),
        (
            "one that hangs is ended when its time is over",
            "disk a b, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("woke", "cancel; prepare a"),
                ("late prepared", ""),
                ("prepared", "journal 2 >a"),
            ],
            "activating - unknown",
        ),
        (
            "what is refused is tried once more when something serves, and then no more",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("failed refused", "prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a c; wait 2"),
                ("woke", "prepare c unless like a"),
                ("failed refused", "look"),
                ("target 2 c", ""),
            ],
            "idle a healthy served; failure: refused of c, 2; degraded: c could not be prepared: it broke",
        ),
        (
            "from the target down to what the image holds, each at most once",
            "disk a b c, current b, proven a",
            &[
                ("start", "by 60"),
                ("target 2 d fallback c", "write; prepare d; by 180"),
                ("prepared", "journal 2 >d"),
                ("journalled", "activate >d"),
                ("failed activate", "write; prepare c; by 240"),
                ("failed refused", "prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; prepare b"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("failed prove", "restart >b"),
                ("failed activate", "write; wait 2"),
                ("woke", "check b fully"),
                ("absent", "prepare c; by 241"),
            ],
            "preparing - unhealthy; failure: activate of b, 1; degraded: nothing could be started: d failed once it was live: it broke; c could not be prepared: it broke; a failed once it was live: it broke; b failed once it was live: it broke",
        ),
        (
            "a target that was rejected on an earlier boot is not activated again",
            "disk a b, current a, proven a, seen 2 b, rejected 2 b",
            &[("start", "by 60"), ("target 2 b", "prepare a"), ("prepared", "journal 2 >a")],
            "activating - unknown",
        ),
        (
            "with nothing left it waits, and climbs again",
            "",
            &[
                ("start", "by 60"),
                ("objected", "wait 2"),
                ("woke", "wait 4"),
                ("target 1 a", "write; prepare a; by 181"),
            ],
            "preparing - unhealthy; degraded: nothing could be started: there is no target: it does not parse",
        ),
        (
            "a newer target in the middle of a boot begins at the first rung, with the time that is left",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("+100 failed refused", "prepare a"),
                ("target 3 d", "write; cancel; prepare d; by 180"),
            ],
            "preparing - unknown",
        ),
        (
            "the deadlines bound the preparing, not the window",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("prepared", "journal 2 >c"),
                ("journalled", "activate >c"),
                ("+500 stirred", ""),
                ("activated", "prove c"),
                ("stirred", ""),
                ("replaced", "probe c fully"),
                ("stirred", ""),
                ("healthy", "write; prune a c; look"),
            ],
            "idle c healthy replaced",
        ),
    ]);
}

/// The same instance after a reboot: nothing of the app runs.
const SERVES_A_STOPPED: &str = "disk a, current a, proven a, seen 1 a";

#[test]
fn a_killed_agent_takes_up_where_it_was() {
    check(&[
        (
            "before the swap: from the beginning",
            "disk a b, current a, runs, proven a, seen 2 b",
            &[("start", "check a briefly"), ("served", "prepare b unless like a")],
            "preparing a healthy served",
        ),
        (
            "after it: the swap again, through the full window",
            "disk a b, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
            ],
            "probing b unknown replaced",
        ),
        (
            "at most three times",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 2",
            &[("start", "write; activate a>b")],
            "activating b unknown",
        ),
        (
            "then what served before",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 3",
            &[("start", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1",
        ),
        (
            "a release that is no longer whole is not made live",
            "disk a, current a, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate b>a")],
            "restoring a unknown; failure: activate of b, 1",
        ),
        (
            "a swap goes on whose predecessor was pruned, and then the ladder is what is left",
            "disk c b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[("start", "write; activate >b"), ("failed activate", "write; prepare c")],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: it broke",
        ),
        (
            "a restore whose release was pruned gives way to the ladder, without leave",
            "disk c b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; prepare c"),
                ("prepared", "journal 2 >c"),
                ("journalled", "activate >c"),
                ("activated", "prove c"),
                ("replaced", "probe c fully"),
                ("healthy", "write; prune b c; look"),
            ],
            "idle c healthy replaced; degraded: b was rejected: it broke",
        ),
        (
            "an order to restart is carried out by a restart, though its predecessor was pruned",
            "disk b, current b, runs, proven a, seen 2 b restart 1, swap 2 a>b restart 1",
            &[("start", "write; restart >b")],
            "activating b unknown",
        ),
        (
            "a restore goes on, and what failed stays rejected",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed, resumed 9",
            &[
                ("start", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "an order to restart is carried out",
            "disk a, current a, runs, proven a, seen 2 a restart 1, swap 2 a>a restart 1",
            &[
                ("start", "write; restart a>a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a; look"),
                ("target 2 a restart 1", ""),
            ],
            "idle a healthy served",
        ),
        (
            "in the middle of a boot: its swap, then the rungs below",
            "disk a b, current b, proven a, seen 2 b, swap 2 >b",
            &[("start", "write; activate >b"), ("failed activate", "write; prepare a")],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: it broke",
        ),
        (
            "what was made live and never passed gives way to what did",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[
                ("start", "check b fully"),
                ("failed unhealthy", "prepare b; by 180"),
                ("prepared", "journal 2 >b"),
                ("journalled", "activate >b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("failed unhealthy", "write; prepare a"),
                ("prepared", "journal 2 >a"),
            ],
            "activating - unhealthy replaced; degraded: b failed once it was live: it broke",
        ),
        (
            "what passes its window now is proven",
            "disk a b, current b, runs, proven a, seen 2 b",
            &[("start", "check b fully"), ("served", "write; look"), ("woke", "check b briefly")],
            "idle b healthy served",
        ),
        (
            "what serves without ever having been proven is left alone where nothing better is there",
            "disk b, current b, runs, seen 2 b",
            &[("start", "check b fully"), ("failed unhealthy", "look")],
            "idle b unhealthy; degraded: it broke",
        ),
    ]);
}

#[test]
fn a_boot_ends_on_the_best_that_is_left() {
    check(&[
        (
            "a fallback that is the rejected target is not activated again",
            "disk a b, current a, proven a, seen 2 b fallback b, rejected 2 b",
            &[
                ("start", "by 60"),
                ("target 2 b fallback b", "prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
            ],
            "idle a healthy served; degraded: b was rejected: it broke",
        ),
        (
            "what was tried on a higher rung is not tried on a lower one",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 a fallback a", "write; prepare a; by 180"),
                ("failed refused", "wait 2"),
            ],
            "waiting - unhealthy; failure: refused of a, 1; degraded: nothing could be started: a could not be prepared: it broke",
        ),
        (
            "the newest that is proven comes before an older one",
            "disk a b, current b, proven b a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("failed refused", "prepare a"),
            ],
            "preparing - unknown; failure: refused of c, 1",
        ),
        (
            "what is proven and was pruned is passed over",
            "disk a b, current b, proven a c",
            &[
                ("start", "by 60"),
                ("target 2 d", "write; prepare d; by 180"),
                ("failed refused", "prepare a"),
            ],
            "preparing - unknown; failure: refused of d, 1",
        ),
        (
            "of what never passed, that which was current",
            "disk a b c, current a",
            &[
                ("start", "by 60"),
                ("target 2 d", "write; prepare d; by 180"),
                ("failed refused", "prepare a"),
            ],
            "preparing - unknown; failure: refused of d, 1",
        ),
        (
            "where that is gone, the newest",
            "disk a b, current c",
            &[
                ("start", "by 60"),
                ("target 2 d", "write; prepare d; by 180"),
                ("failed refused", "prepare b"),
            ],
            "preparing - unknown; failure: refused of d, 1",
        ),
        (
            "what was made ready and was not made live may be baked in the end",
            "",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("target 2 b", "write"),
                ("failed disk", "write; prepare b; by 180"),
                ("failed refused", "prepare a"),
            ],
            "preparing - unknown; failure: refused of b, 1",
        ),
        (
            "a wait that would end after the rung's time is not begun",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("+179 failed fetch", "prepare a"),
            ],
            "preparing - unknown; failure: fetch of c, 1",
        ),
        (
            "one that would end before it is",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("+178 failed fetch", "wait 2"),
                ("woke", "prepare c; by 180"),
                ("woke", "cancel; prepare a"),
            ],
            "preparing - unknown; failure: fetch of c, 1; degraded: c could not be prepared: it broke",
        ),
        (
            "it says what took too long",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("woke", "cancel; prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a c; wait 2"),
            ],
            "waiting a healthy served; degraded: c could not be prepared in time",
        ),
        (
            "and nothing of a source that was late",
            SERVES_A_STOPPED,
            &[("start", "by 60"), ("woke", "prepare a; by 180"), ("failed refused", "wait 2")],
            "waiting - unhealthy; failure: refused of a, 1; degraded: nothing could be started: a could not be prepared: it broke",
        ),
        (
            "a lower target is no word, and the last one counts at once",
            "disk a, current a, proven a, seen 5 a",
            &[("start", "by 60"), ("target 4 b", "prepare a; by 180")],
            "preparing - unknown; objection: the source names generation 4 of epoch 1 (b), and generation 5 of epoch 1 was seen before: a lower one is refused",
        ),
        (
            "nor is another one of the same generation",
            SERVES_A_STOPPED,
            &[("start", "by 60"), ("target 1 b", "prepare a; by 180")],
            "preparing - unknown; objection: the source names another target as generation 1 of epoch 1 than it did before: write the next generation instead",
        ),
        (
            "a boot is a start: it satisfies an order to restart",
            SERVES_A_STOPPED,
            &[
                ("start", "by 60"),
                ("target 2 a restart 1", "write; prepare a; by 180"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
                ("target 3 a restart 1", "write; look"),
            ],
            "idle a healthy served",
        ),
        (
            "so does one that was interrupted",
            "disk a, current a, proven a, seen 2 a restart 1, swap 2 >a restart 1",
            &[
                ("start", "write; activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served",
        ),
        (
            "what a boot started for an older target is no lower rung",
            "",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("target 2 b", "write"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("healthy", "write; prune a b; wait 2"),
            ],
            "waiting a healthy replaced",
        ),
        (
            "the time for the rungs below a swap that was found runs from its end",
            "disk a b, current b, proven a, seen 2 b fallback c, swap 2 >b",
            &[
                ("start", "write; activate >b"),
                ("+500 failed activate", "write; prepare c; by 740"),
            ],
            "preparing - unhealthy; failure: activate of b, 1; degraded: b failed once it was live: it broke",
        ),
        (
            "a lower rung that fails is not rejected: it may be what is left next time",
            "disk a b, current b, proven a",
            &[
                ("start", "by 60"),
                ("target 2 c", "write; prepare c; by 180"),
                ("failed refused", "prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; prepare b"),
                ("failed refused", "wait 2"),
                ("woke", "check a briefly"),
                ("absent", "prepare c; by 181"),
                ("failed refused", "prepare a"),
            ],
            "preparing - unhealthy; failure: refused of c, 1; degraded: nothing could be started: c could not be prepared: it broke; a failed once it was live: it broke; b could not be prepared: it broke",
        ),
        (
            "once something served, the waits are the shortest again",
            "disk a, current a, proven a",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("failed refused", "wait 2"),
                ("woke", "check a briefly"),
                ("absent", "prepare a; by 181"),
                ("failed refused", "wait 4"),
                ("woke", "check a briefly"),
                ("absent", "prepare a; by 185"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
            ],
            "waiting a unhealthy; failure: restore of a, 1; degraded: a could not be restored: it broke",
        ),
        (
            "a manager whose release is not known runs on until the target is ready",
            "runs",
            &[
                ("start", "look"),
                ("woke", "look"),
                ("target 1 a", "write; prepare a"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare a"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 >a"),
            ],
            "activating - unknown; degraded: a could not be prepared: it broke",
        ),
        (
            "so it does after a kill",
            "runs, seen 1 a",
            &[("start", "prepare a"), ("prepared", "ask 1")],
            "asking - unknown",
        ),
    ]);
}

#[test]
fn what_is_gone_back_to_and_kept_is_the_newest_that_was_proven() {
    check(&[
        (
            "what serves and is proven, though something else was proven later",
            "disk a b, current a, runs, proven a b, seen 1 a",
            &[
                ("start", "check a briefly"),
                ("target 2 c", "write; cancel; prepare c unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>c"),
            ],
            "activating a unknown",
        ),
        (
            "where it is not, the newest",
            "disk a b c, current c, runs, proven a b",
            &[
                ("start", "check c fully"),
                ("target 1 d", "write; cancel; prepare d unless like c"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 b>d"),
            ],
            "activating c unknown",
        ),
        (
            "never the target itself",
            "disk a b, current b, runs, proven a",
            &[
                ("start", "check b fully"),
                ("target 1 a", "write; cancel; prepare a unless like b"),
                ("prepared", "ask 1"),
                ("yes", "journal 1 b>a"),
            ],
            "activating b unknown",
        ),
        (
            "kept are what serves, the newest proven before it, the target and its fallback",
            "disk e d a b, current a, runs, proven e d a, seen 2 b fallback c, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("target 3 b fallback c", "write"),
                ("served", "write; prune a b c; prepare c"),
                ("prepared", "look"),
                ("woke", "check b briefly"),
            ],
            "idle b healthy served",
        ),
        (
            "a failure for an older target is rejected for that one, and proven no more",
            "disk b a, current a, runs, proven b a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("target 3 c", "write"),
                ("failed activate", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("healthy", "write; prune a c; prepare c unless like a"),
            ],
            "preparing a healthy replaced; failure: activate of b, 1",
        ),
        (
            "a look that names no revision is no evidence",
            SERVES_A,
            &[("start", "check a briefly"), ("healthy", "look")],
            "idle a healthy",
        ),
        (
            "what is unhealthy is left alone where the proven one was pruned",
            "disk b, current b, runs, proven a, seen 2 b",
            &[("start", "check b fully"), ("failed unhealthy", "look")],
            "idle b unhealthy; degraded: it broke",
        ),
        (
            "a restore that was begun goes on after a kill",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("killed", "write; activate a>b"),
                ("failed activate", "write; activate b>a"),
                ("killed", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("killed", "write; activate b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
                ("killed", "check a briefly"),
            ],
            "idle a unknown",
        ),
        (
            "a boot's swap that failed is over, and what came up all the same is looked at",
            "disk c, current c",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; prepare c"),
                ("killed", "check a fully"),
            ],
            "idle a unknown",
        ),
        (
            "a swap that could not be journalled is not begun after a kill",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("failed disk", "write; prune a b; wait 2"),
                ("killed", "check a briefly"),
            ],
            "idle a unknown",
        ),
        (
            "and what was owed before it still is",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("target 3 c", "write"),
                ("failed activate", "restart b>a"),
                ("failed activate", "prepare c"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>c"),
                ("failed disk", "write; prune a b c; wait 2"),
                ("woke", "restart b>a"),
                ("killed", "write; activate b>a"),
            ],
            "restoring a unknown",
        ),
        (
            "the attempts at a restore are counted",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "wait 4"),
            ],
            "waiting a unhealthy; failure: restore of a, 2; degraded: a could not be restored: it broke",
        ),
        (
            "a restore that succeeded makes the waits the shortest again",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("woke", "restart b>a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a b; look"),
                ("target 3 c", "write; prepare c unless like a"),
                ("prepared", "ask 3"),
                ("yes", "journal 3 a>c"),
                ("journalled", "activate a>c"),
                ("failed activate", "write; activate c>a"),
                ("failed activate", "restart c>a"),
                ("failed activate", "wait 2"),
            ],
            "waiting a unhealthy; failure: restore of a, 1; degraded: a could not be restored: it broke",
        ),
        (
            "a count of restarts that is lowered and raised again orders nothing new",
            "disk a, current a, runs, proven a, seen 1 a restart 2, restarted 2",
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("replaced", "probe b fully"),
                ("served", "write; prune a b; look"),
                ("target 3 b restart 2", "write; look"),
            ],
            "idle b healthy served",
        ),
        (
            "a restart that cannot be prepared leaves what is asked for live: nothing is degraded",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 a restart 1", "write; prepare a"),
                ("failed disk", "prune a; wait 2"),
            ],
            "waiting a healthy served; failure: disk of a, 1",
        ),
    ]);
}

#[test]
fn a_clock_that_steps_back_only_delays() {
    let (mut play, _) = Play::new(SERVES_A);
    play.step("+100 served");
    play.step("-90 target 2 b");
    play.step("failed fetch");
    assert!(play.wake.is_some_and(|wake| Duration::from_secs(101) < wake), "{:?}", play.wake);
}

#[test]
fn waits_double_up_to_their_bound_and_differ_between_instances() {
    let wait = |seed, attempt| {
        let (mut play, _) = Play::new("");
        play.machine.policy.seed = seed;
        play.machine.backoff(attempt).as_secs_f64()
    };
    for (attempt, whole) in
        [(1, 2.0), (2, 4.0), (7, 128.0), (8, 256.0), (9, 256.0), (u32::MAX, 256.0)]
    {
        let waits: Vec<f64> = (0..200).map(|seed| wait(seed, attempt)).collect();
        let shortest = waits.iter().copied().fold(f64::MAX, f64::min);
        let longest = waits.iter().copied().fold(0.0, f64::max);
        let own: Vec<f64> = (0..9).map(|more| wait(7, attempt.saturating_sub(more))).collect();
        assert!(attempt < 17 || own.iter().any(|other| *other != own[0]), "{attempt}: {own:?}");
        assert!(0.75 * whole <= shortest && longest < whole, "{attempt}: {shortest} to {longest}");
        assert!(longest - shortest > 0.15 * whole, "{attempt}: {shortest} to {longest}");
    }
}

#[test]
fn what_was_asked_for_is_settled_when_nothing_is_left_to_do() {
    // Found; events; is it settled, and is it converged?
    let cases: [(&str, &[&str], bool, bool); 16] = [
        ("", &[], false, false),
        (SERVES_A, &[], false, false),
        (SERVES_A, &["served"], true, true),
        (SERVES_A, &["failed unhealthy"], true, false),
        (SERVES_A, &["served", "woke"], false, false),
        (SERVES_A, &["served", "target 2 a restart 1"], false, false),
        ("", &["target 1 a", "failed fetch"], true, false),
        ("runs", &["target 1 a", "failed refused"], true, false),
        (SERVES_A, &["served", "objected"], true, false),
        (SERVES_A, &["served", "target 2 b"], false, false),
        (SERVES_A, &["served", "target 2 b", "failed fetch"], true, false),
        (SERVES_A, &["served", "target 2 b", "failed refused"], true, false),
        (SERVES_A, &["served", "target 2 b", "alike"], true, true),
        (SERVES_A, &["served", "target 2 b", "prepared"], false, false),
        ("disk a, current a, runs, proven a", &["served"], false, false),
        ("", &["objected"], true, false),
    ];
    for (found, events, is_settled, is_converged) in cases {
        let (mut play, _) = Play::new(found);
        for event in events {
            play.step(event);
        }
        let machine = &play.machine;
        let found = (machine.settled().is_some(), machine.is_converged());
        assert_eq!(found, (is_settled, is_converged), "{found:?} {events:?}");
    }
}

#[test]
fn what_serves_is_looked_at_and_what_has_ended_is_started_again() {
    check(&[
        (
            "a missing fallback is made ready beside what serves, and a newer target does not wait for it",
            "disk a, current a, runs, proven a, seen 1 a fallback b",
            &[
                ("start", "check a briefly"),
                ("served", "prepare b"),
                ("target 2 c fallback b", "write; cancel; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "one that cannot be had now is tried again, and one that is refused never for this target",
            "disk a, current a, runs, proven a, seen 1 a fallback b",
            &[
                ("start", "check a briefly"),
                ("served", "prepare b"),
                ("failed fetch", "look"),
                ("woke", "check a briefly"),
                ("served", "look"),
                ("+241 woke", "check a briefly"),
                ("served", "prepare b"),
                ("failed refused", "look"),
                ("+400 woke", "check a briefly"),
                ("served", "look"),
            ],
            "idle a healthy served",
        ),
        (
            "and what is unwell comes first",
            "disk a, current a, runs, proven a, seen 1 a fallback b",
            &[("start", "check a briefly"), ("failed unhealthy", "look")],
            "idle a unhealthy; degraded: it broke",
        ),
        (
            "nothing of it runs: a boot, without leave, from the first rung",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("woke", "check a briefly"),
                ("absent", "prepare a; by 240"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a briefly"),
                ("served", "write; prune a; look"),
            ],
            "idle a healthy served",
        ),
        (
            "also where a newer target waits for its origin: what was good here is not kept waiting",
            "disk a, current a, runs, proven a, seen 2 b",
            &[
                ("start", "check a briefly"),
                ("served", "prepare b unless like a"),
                ("failed fetch", "wait 2"),
                ("+61 woke", "check a briefly"),
                ("absent", "prepare b; by 241"),
                ("failed fetch", "wait 2"),
                ("woke", "prepare b; by 241"),
                ("failed fetch", "wait 4"),
                ("woke", "prepare b; by 241"),
                ("failed fetch", "prepare a"),
                ("prepared", "journal 2 >a"),
            ],
            "activating - unhealthy served; degraded: b could not be prepared: it broke",
        ),
        (
            "a wait goes on after a look as it was",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("+59 failed install", "wait 1"),
                ("woke", "check a briefly"),
                ("failed unhealthy", "wait 1"),
                ("woke", "prepare b unless like a"),
            ],
            "preparing a unhealthy served; failure: install of b, 1; degraded: b could not be prepared: it broke",
        ),
        (
            "and what is found to be wrong is told",
            SERVES_A,
            &[("start", "check a briefly"), ("failed unhealthy", "look")],
            "idle a unhealthy; degraded: it broke",
        ),
        (
            "what was good here and does not boot is not rejected: it is tried again",
            "disk a, current a, proven a, seen 1 a",
            &[
                ("start", "by 60"),
                ("target 1 a", "prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; wait 2"),
                ("woke", "check a briefly"),
                ("failed unhealthy", "prepare a; by 181"),
                ("prepared", "journal 1 >a"),
            ],
            "activating - unhealthy; degraded: nothing could be started: a failed once it was live: it broke",
        ),
        (
            "and what came up late is accepted, though it had been rejected",
            "",
            &[
                ("start", "by 60"),
                ("target 1 a", "write; prepare a; by 180"),
                ("prepared", "journal 1 >a"),
                ("journalled", "activate >a"),
                ("activated", "prove a"),
                ("replaced", "probe a fully"),
                ("failed unhealthy", "write; wait 2"),
                ("woke", "check a fully"),
                ("served", "write; look"),
            ],
            "idle a healthy served",
        ),
    ]);
}

#[test]
fn a_host_that_is_in_the_way_says_nothing_of_a_release() {
    check(&[
        (
            "nothing was touched: what serves still does, and the release is tried again",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("untouched", "write; wait 2"),
                ("woke", "prepare b unless like a"),
                ("prepared", "ask 2"),
            ],
            "asking a healthy served; degraded: b could not be prepared: it is in the way",
        ),
        (
            "a newer target that came meanwhile is tried instead",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("target 3 c", "write"),
                ("untouched", "write; prepare c unless like a"),
            ],
            "preparing a healthy served",
        ),
        (
            "a swap that was found half done is taken up once it can be, whatever the target is by then",
            "disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b",
            &[
                ("start", "write; activate a>b"),
                ("untouched", "wait 2"),
                ("target 3 c", "write"),
                ("woke", "activate a>b"),
                ("activated", "prove b"),
            ],
            "proving b unknown; degraded: b could not be taken up again: it is in the way",
        ),
        (
            "a restart that the manager cannot be found for has failed: the reload was done",
            SERVES_A,
            &[
                ("start", "check a briefly"),
                ("served", "look"),
                ("target 2 b", "write; prepare b unless like a"),
                ("prepared", "ask 2"),
                ("yes", "journal 2 a>b"),
                ("journalled", "activate a>b"),
                ("activated", "prove b"),
                ("failed prove", "restart a>b"),
                ("untouched", "write; activate b>a"),
            ],
            "restoring a unknown; failure: host of b, 1",
        ),
        (
            "a restore waits for it as well",
            "disk a b, current b, runs, proven a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[("start", "write; activate b>a"), ("untouched", "wait 2"), ("woke", "restart b>a")],
            "restoring a unknown; failure: restore of a, 1; degraded: a could not be restored: it is in the way",
        ),
        (
            "and one that fails three times gives way to whatever else is there",
            "disk a c b, current b, runs, proven c a, seen 2 b, rejected 2 b, swap 2 a>b, failed",
            &[
                ("start", "write; activate b>a"),
                ("failed activate", "restart b>a"),
                ("failed activate", "wait 2"),
                ("woke", "restart b>a"),
                ("failed activate", "wait 4"),
                ("woke", "restart b>a"),
                ("failed activate", "write; prepare a"),
                ("prepared", "journal 2 >a"),
                ("journalled", "activate >a"),
                ("failed activate", "write; prepare c"),
            ],
            "preparing - unhealthy; failure: activate of a, 1; degraded: a failed once it was live: it broke",
        ),
    ]);
}

#[test]
fn an_ending_that_was_asked_for_counts_for_nothing() {
    let (play, _) =
        Play::new("disk a b, current b, runs, proven a, seen 2 b, swap 2 a>b, resumed 2");
    let journal = play.machine.stopped().expect("a swap goes on");
    assert_eq!(journal.swap.map(|swap| swap.resumes), Some(2));
    let (play, _) = Play::new(SERVES_A);
    assert_eq!(play.machine.stopped(), None, "nothing goes on");
}

#[test]
fn what_was_thrown_away_is_not_counted_on() {
    let (mut play, _) = Play::new("disk a b, current a, proven a b");
    play.machine.step(play.now, Event::Pruned(vec![revision("a")]));
    assert!(!play.machine.keep().contains(&revision("b")));
}
