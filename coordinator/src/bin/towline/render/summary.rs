//! How a rollout that was watched has ended, and what comes next.

use towline_protocol::api::{Counts, InstanceView, LogView, RolloutView, Standing};
use towline_protocol::ids::{Instance, Revision};
use towline_protocol::report::Health;
use towline_protocol::rollout::{Kind, State};

use crate::render::rollout::{next, stands};
use crate::render::text::{count, few, line};
use crate::render::time::span;
use crate::render::{Line, Tone, excerpt};

/// How many lines of each failed instance's log are shown, and how much of each.
const LOG_LINES_MAX: usize = 12;
const LOG_CHARS_MAX: usize = 200;

/// What has become of a rollout that was watched.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    /// The rollout, as it was last.
    pub(crate) view: &'a RolloutView,
    /// The way back that followed, as it was last.
    pub(crate) back: Option<&'a RolloutView>,
    /// Is the revision in quarantine now?
    pub(crate) is_quarantined: bool,
    /// Who failed, as it is now.
    pub(crate) failed: &'a [InstanceView],
    /// What was said where it failed.
    pub(crate) logs: &'a [LogView],
}

/// Says how it ended.
pub(crate) fn summary(ending: &Ending<'_>) -> Vec<Line> {
    let view = ending.view;
    let mut lines = vec![headline(ending)];
    if view.state == State::Converged {
        lines.extend(drift(view));
        return lines;
    }
    lines.extend(reached(view));
    lines.extend(ending.failed.iter().map(|instance| since(view, instance)));
    for log in ending.logs {
        lines.extend(excerpt(log));
    }
    if let Some(back) = ending.back {
        lines.extend(next(back));
    }
    lines.extend(what_next(ending));
    lines
}

fn revision(view: &RolloutView) -> String {
    match (&view.revision, &view.not) {
        (Some(revision), _) => revision.short().to_owned(),
        (None, Some(not)) => format!("anything but {}", not.short()),
        (None, None) => "what was good".to_owned(),
    }
}

fn took(view: &RolloutView) -> String {
    let ended = view.ended.unwrap_or(view.began);
    span(ended.since(view.began).as_secs())
}

fn headline(ending: &Ending<'_>) -> Line {
    let view = ending.view;
    let generation = view.order.generation;
    let quarantined = match &view.revision {
        Some(revision) if ending.is_quarantined => format!("; {} quarantined", revision.short()),
        _ => String::new(),
    };
    match (view.state, ending.back) {
        (State::Converged, _) => {
            let counts = &view.counts;
            let verb = match view.kind {
                Kind::Release => "converged",
                Kind::Rollback => "rolled back",
                Kind::Restart => "restarted",
            };
            let (serving, all) = (counts.converged, counts.instances);
            let (revision, took) = (revision(view), took(view));
            let text = format!("{verb}: {serving} of {all} serve {revision}, after {took}");
            Line::new(if serving == all { Tone::Good } else { Tone::Doubtful }, text)
        }
        (State::Aborted, Some(back)) => {
            let target =
                format!("target {} (generation {})", revision(back), back.order.generation);
            let (tone, verb) = match back.state {
                State::Converged => (Tone::Doubtful, "rolled back"),
                State::Halted => (Tone::Bad, "THE ROLLBACK HALTED"),
                State::Replaced => (Tone::Doubtful, "aborted, and its rollback was replaced"),
                _ => (Tone::Bad, "aborted"),
            };
            Line::new(tone, format!("{verb}; {target}{quarantined}"))
        }
        (State::Paused, _) => {
            let only = view.only.as_ref().map_or("some", |only| only.as_str());
            Line::new(Tone::Good, format!("paused: only {} took part", line(only, 200)))
        }
        (State::Replaced, _) => {
            let by = view.next_generation.map(|next| format!(" by generation {next}"));
            let by = by.unwrap_or_default();
            Line::new(Tone::Doubtful, format!("replaced{by}: generation {generation} is over"))
        }
        (state, _) => {
            let text = match state {
                State::Halted => format!("HALTED: {}", line(&view.reason, 300)),
                _ => stands(view),
            };
            Line::new(Tone::Bad, format!("{text}{quarantined}"))
        }
    }
}

/// Says how far a revision came that was not kept.
fn reached(view: &RolloutView) -> Option<Line> {
    let reached = view.reached?;
    let revision = view.revision.as_ref()?;
    let (all, short) = (view.counts.instances, revision.short());
    Some(Line::plain(format!("{reached} of {all} served {short}")))
}

/// Says what has become of an instance that failed: the first thing that whoever is on call asks.
fn since(view: &RolloutView, instance: &InstanceView) -> Line {
    let (name, health) = (&instance.instance, instance.health.as_str());
    let Some(serving) = &instance.serving else {
        return Line::new(Tone::Bad, format!("{name} serves nothing of Towline's, {health}"));
    };
    let is_back = instance.health == Health::Healthy && view.revision.as_ref() != Some(serving);
    let again = if is_back { " again" } else { "" };
    let tone = if is_back { Tone::Plain } else { Tone::Bad };
    Line::new(tone, format!("{name} serves {}{again}, {health}", serving.short()))
}

/// Says who is not on the target although the rollout has ended well.
fn drift(view: &RolloutView) -> Vec<Line> {
    let named = |standing: Standing| -> Vec<&str> {
        let is_so = view.members.iter().filter(|member| member.standing == standing);
        is_so.map(|member| member.instance.as_str()).collect()
    };
    let mut lines = Vec::new();
    for (standing, word) in [(Standing::Failed, "failed"), (Standing::Silent, "silent")] {
        let names = named(standing);
        if !names.is_empty() {
            let text = format!("{} {word}: {}", names.len(), few(names.iter().copied(), 6, " "));
            lines.push(Line::new(Tone::Doubtful, text));
        }
    }
    if view.counts.converged < view.counts.instances {
        lines.push(Line::plain(format!("next: towline skew {}", view.group)));
    }
    lines
}

/// What was said, in few lines, by whoever says most: the app, where it said anything.
fn excerpt(log: &LogView) -> Vec<Line> {
    let has_text = |part: &&towline_protocol::poll::LogPart| !part.text.trim().is_empty();
    let parts = || log.log.parts.iter().filter(has_text);
    let Some(part) = parts().find(|part| part.source == "app").or_else(|| parts().next_back())
    else {
        return Vec::new();
    };
    let head = format!("{} {}:", log.instance, line(&part.source, 40));
    let mut lines = vec![Line::new(Tone::Head, head)];
    let said = excerpt::lines(&part.text, LOG_LINES_MAX, LOG_CHARS_MAX);
    lines.extend(said.iter().map(|text| Line::plain(format!("  {text}"))));
    lines
}

fn what_next(ending: &Ending<'_>) -> Option<Line> {
    let view = ending.view;
    let group = &view.group;
    let next = match (view.state, ending.logs.first()) {
        (State::Halted | State::Paused, _) => return next(view),
        (State::Replaced, _) => format!("towline rollout watch {group}"),
        (State::Aborted, Some(log)) => {
            format!("towline logs {}; after a fix, release the new commit", log.instance)
        }
        (State::Aborted, None) => format!("towline why {group}"),
        _ => return None,
    };
    Some(Line::plain(format!("next: {next}")))
}

/// Returns whose logs are worth a look: who failed, the first few of them.
pub(crate) fn failed(view: &RolloutView) -> Vec<&Instance> {
    const LOGS_MAX: usize = 3;
    let is_failed = view.members.iter().filter(|member| member.standing == Standing::Failed);
    is_failed.map(|member| &member.instance).take(LOGS_MAX).collect()
}

/// Says that somebody stops watching.
pub(crate) fn detached(view: Option<&RolloutView>, group: &str) -> String {
    let goes_on = match view {
        Some(view) if view.state == State::Running => "the rollout goes on",
        _ => "nothing is changed by that",
    };
    format!("detached; {goes_on}. next: towline rollout watch {group}")
}

/// Returns what a release that is not watched has begun.
pub(crate) fn begun(view: &RolloutView, is_watched: bool, has_terminal: bool) -> Line {
    let head = crate::render::rollout::name(view);
    let text = match (is_watched, has_terminal) {
        (true, true) => format!("{head:<50} Ctrl-C detaches"),
        (true, false) => head,
        (false, _) => format!("{head}; next: towline rollout watch {}", view.group),
    };
    Line::new(Tone::Head, text)
}

/// Says that a group has had its release already.
pub(crate) fn already(view: &RolloutView, counts: &Counts) -> Line {
    let (group, generation) = (&view.group, view.order.generation);
    let (serving, all) = (counts.converged, counts.instances);
    let next = if serving < all { format!("; next: towline skew {group}") } else { String::new() };
    let text = format!(
        "converged already, in generation {generation}: {serving} of {all} serve {}{next}",
        revision(view)
    );
    Line::new(if serving == all { Tone::Good } else { Tone::Doubtful }, text)
}

/// Says that the way back has begun.
pub(crate) fn way_back(view: &RolloutView) -> Line {
    let (what, name) = (crate::render::rollout::what(view), crate::render::rollout::name(view));
    let fallback = view.fallback.as_ref().map(Revision::short);
    let fallback = match (&view.revision, fallback) {
        (None, Some(short)) => format!(", or {short}"),
        _ => String::new(),
    };
    let instances = count(view.counts.instances as usize, "instance");
    Line::new(Tone::Head, format!("{name}: {what}{fallback}, {instances}"))
}

#[cfg(test)]
mod tests {
    use towline_protocol::api::Status;
    use towline_protocol::poll::{FailureLog, LogPart};

    use super::*;
    use crate::render::sample;

    fn log() -> LogView {
        let part =
            |source: &str, text: &str| LogPart { source: source.to_owned(), text: text.to_owned() };
        LogView {
            instance: sample::instance("i-0a17"),
            group: "web".parse().unwrap(),
            at: sample::at(39),
            log: FailureLog {
                revision: sample::revision("4f2c91e0"),
                detail: "GET /healthz 503".to_owned(),
                parts: vec![
                    part("install", "added 3 packages"),
                    part("app", "TypeError: Cannot read 'currency'\n  at lib/price.js:88\n"),
                    part("health", "503"),
                ],
            },
        }
    }

    fn told(view: &RolloutView, back: Option<&RolloutView>, logs: &[LogView]) -> Vec<String> {
        let is_quarantined = view.state == State::Aborted;
        let failed: Vec<InstanceView> = logs
            .iter()
            .map(|log| sample::instance_view(log.instance.as_str(), Status::Converged))
            .collect();
        sample::texts(&summary(&Ending { view, back, is_quarantined, failed: &failed, logs }))
    }

    fn aborted() -> (RolloutView, RolloutView) {
        let mut view = sample::rollout();
        view.state = State::Aborted;
        view.members[0].standing = Standing::Failed;
        view.reached = Some(1);
        view.next_generation = Some(119);
        let mut back = sample::rollout();
        back.order.generation = 119;
        back.kind = Kind::Rollback;
        back.revision = Some(sample::revision("9b03d7a1"));
        back.state = State::Converged;
        (view, back)
    }

    #[test]
    fn a_rollback_is_told_with_what_the_app_said() {
        let (view, mut back) = aborted();
        assert_eq!(
            told(&view, Some(&back), &[log()]),
            [
                "rolled back; target 9b03d7a (generation 119); 4f2c91e quarantined",
                "1 of 50 served 4f2c91e",
                "i-0a17 serves 9b03d7a again, healthy",
                "i-0a17 app:",
                "  TypeError: Cannot read 'currency'",
                "    at lib/price.js:88",
                "next: towline logs i-0a17; after a fix, release the new commit",
            ]
        );
        assert_eq!(failed(&view), [&sample::instance("i-0a17")]);
        back.state = State::Halted;
        let texts = told(&view, Some(&back), &[]);
        assert!(texts[0].starts_with("THE ROLLBACK HALTED; target 9b03d7a"), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("towline rollout resume web")), "{texts:?}");
        (back.revision, back.not) = (None, view.revision.clone());
        back.state = State::Converged;
        assert!(told(&view, Some(&back), &[])[0].contains("target anything but 4f2c91e"));
    }

    #[test]
    fn whoever_failed_is_told_of_as_it_is_now() {
        let (view, _) = aborted();
        let mut instance = sample::instance_view("i-1", Status::Unhealthy);
        instance.health = Health::Unhealthy;
        assert_eq!(since(&view, &instance).text, "i-1 serves 9b03d7a, unhealthy");
        (instance.serving, instance.health) = (view.revision.clone(), Health::Healthy);
        assert_eq!(since(&view, &instance).text, "i-1 serves 4f2c91e, healthy");
        assert_eq!(since(&view, &instance).tone, Tone::Bad, "it should not");
        (instance.serving, instance.health) = (None, Health::Unknown);
        assert_eq!(since(&view, &instance).text, "i-1 serves nothing of Towline's, unknown");
    }

    #[test]
    fn a_good_end_says_who_is_not_on_the_target() {
        let mut view = sample::rollout();
        view.state = State::Converged;
        view.ended = Some(sample::at(1_500));
        view.counts = Counts { instances: 50, converged: 50, ..Counts::default() };
        view.members.clear();
        assert_eq!(told(&view, None, &[]), ["converged: 50 of 50 serve 4f2c91e, after 25 min"]);
        view.counts.converged = 48;
        view.members = vec![sample::member("i-1", 0), sample::member("i-2", 0)];
        view.members[0].standing = Standing::Failed;
        view.members[1].standing = Standing::Silent;
        assert_eq!(
            told(&view, None, &[]),
            [
                "converged: 48 of 50 serve 4f2c91e, after 25 min",
                "1 failed: i-1",
                "1 silent: i-2",
                "next: towline skew web",
            ]
        );
    }

    #[test]
    fn a_halt_and_a_replacement_say_what_is_next() {
        let mut view = sample::rollout();
        view.state = State::Halted;
        view.reason = "canary 1 failed, 0 tolerated".to_owned();
        assert_eq!(
            told(&view, None, &[]),
            [
                "HALTED: canary 1 failed, 0 tolerated",
                "next: towline why web; then towline rollout resume web, or towline rollout abort web",
            ]
        );
        view.state = State::Replaced;
        view.next_generation = Some(120);
        assert_eq!(
            told(&view, None, &[]),
            [
                "replaced by generation 120: generation 118 is over",
                "next: towline rollout watch web",
            ]
        );
    }

    #[test]
    fn the_first_and_the_last_line_of_watching() {
        let (view, back) = aborted();
        let text = begun(&view, true, true).text;
        assert_eq!(text, format!("{:<50} Ctrl-C detaches", "rollout web, generation 118"));
        let text = begun(&view, false, true).text;
        assert_eq!(text, "rollout web, generation 118; next: towline rollout watch web");
        let text = way_back(&back).text;
        let expected = "rollout web, generation 119: rollback to 9b03d7a \"Cache price lists\"";
        assert_eq!(text, format!("{expected}, 50 instances"));
        let running = sample::rollout();
        assert!(detached(Some(&running), "web").starts_with("detached; the rollout goes on."));
    }
}
