//! Instances: as a list, and one that is off target with what to do about it.

use towline_protocol::api::{InstanceView, Status};
use towline_protocol::ids::Revision;
use towline_protocol::report::{Health, Phase};

use crate::render::table::{Column, Table};
use crate::render::text::{line, wrap};
use crate::render::time::span;
use crate::render::{Line, Tone, WIDTH};

/// Lists instances.
pub(crate) fn list(views: &[InstanceView], width: usize) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("INSTANCE"),
        Column::Left("GROUP"),
        Column::Left("STATUS"),
        Column::Left("SERVES"),
        Column::Right("FOR"),
        Column::Right("SEEN"),
        Column::Elastic("NOTE"),
    ]);
    for view in views {
        table.row(
            tone(view.status),
            [
                view.instance.to_string(),
                view.group.to_string(),
                view.status.as_str().to_owned(),
                view.serving.as_ref().map_or("-", Revision::short).to_owned(),
                span(view.since_s),
                span(view.seen_s),
                note(view),
            ],
        );
    }
    table.lines(width)
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Converged => Tone::Good,
        Status::Stale | Status::Unknown => Tone::Doubtful,
        Status::Degraded | Status::Unhealthy | Status::Silent => Tone::Bad,
    }
}

/// Says what an instance serves; what was there before Towline is marked.
fn serves(view: &InstanceView) -> String {
    let revision = view.serving.as_ref().map(Revision::short);
    match (revision, view.adopted) {
        (Some(revision), false) => revision.to_owned(),
        (Some(revision), true) => format!("{revision} (adopted)"),
        (None, true) => "adopted".to_owned(),
        (None, false) => "-".to_owned(),
    }
}

/// Says the most telling things about an instance that its status does not say.
fn note(view: &InstanceView) -> String {
    let failure = view.failure.as_ref().map(|failure| failure.detail.as_str());
    let said = view.objection.as_deref().or(view.degraded.as_deref()).or(failure);
    let phase = view.phase.map(Phase::as_str).filter(|phase| *phase != "idle");
    let is_unwell = view.status == Status::Degraded && view.health != Health::Healthy;
    let parts = [
        is_unwell.then(|| view.health.as_str()),
        view.adopted.then_some("adopted"),
        said.or(phase),
    ];
    line(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "), 400)
}

/// Says why one is off target, and what to do next.
pub(crate) fn off_target(view: &InstanceView) -> Vec<Line> {
    let since = match view.status {
        Status::Silent => view.seen_s,
        _ => view.since_s,
    };
    let serves = serves(view);
    let failure = view.failure.as_ref();
    let failed = failure.map(|failure| {
        format!("{} failed: {}", failure.revision.short(), line(&failure.detail, 200))
    });
    let reason = match view.status {
        Status::Silent if serves == "-" => "served nothing when last heard of".to_owned(),
        Status::Silent => format!("last served {serves}"),
        Status::Degraded => view.degraded.clone().unwrap_or_else(|| format!("serves {serves}")),
        _ => match (view.objection.clone(), failed) {
            (Some(objection), _) => format!("serves {serves}; {objection}"),
            (None, Some(failed)) => format!("serves {serves}; {failed}"),
            (None, None) if serves == "-" => "serves nothing of Towline's".to_owned(),
            (None, None) => format!("serves {serves}, {}", view.health.as_str()),
        },
    };
    let head = format!("{} {} {}: ", view.instance, view.status.as_str(), span(since));
    let indent = " ".repeat(view.instance.as_str().chars().count().min(24) + 1);
    // The first line holds the head as well, so the reason is wrapped behind it.
    let reason = line(&reason, 300);
    let mut rows = wrap(&format!("{head}{reason}"), WIDTH).into_iter();
    let mut lines: Vec<Line> =
        rows.next().map(|row| Line::new(tone(view.status), row)).into_iter().collect();
    let rest = rows.collect::<Vec<_>>().join(" ");
    let width = WIDTH - indent.len();
    lines.extend(wrap(&rest, width).into_iter().map(|row| Line::plain(format!("{indent}{row}"))));
    let instance = &view.instance;
    let next = match (view.status, failure) {
        (Status::Silent | Status::Unknown, _) | (_, None) => format!("towline why {instance}"),
        (_, Some(_)) => format!("towline logs {instance}"),
    };
    lines.push(Line::new(Tone::Faint, format!("{indent}next: {next}")));
    lines
}

#[cfg(test)]
mod tests {
    use towline_protocol::report::{Cause, Failure, Phase};

    use super::*;
    use crate::render::sample;

    #[test]
    fn a_list_is_a_table() {
        let good = sample::instance_view("i-03de", Status::Converged);
        let mut busy = sample::instance_view("i-0a17", Status::Stale);
        (busy.phase, busy.adopted, busy.since_s) = (Some(Phase::Preparing), true, 200_000);
        let mut bad = sample::instance_view("i-0f92", Status::Unhealthy);
        (bad.serving, bad.health) = (None, Health::Unhealthy);
        bad.objection = Some("the token was refused ".repeat(9));
        let texts = sample::texts(&list(&[good, busy, bad], WIDTH));
        assert_eq!(
            texts,
            [
                "INSTANCE  GROUP  STATUS     SERVES      FOR  SEEN  NOTE",
                "i-03de    web    converged  9b03d7a  42 min   3 s",
                "i-0a17    web    stale      9b03d7a     2 d   3 s  adopted; preparing",
                "i-0f92    web    unhealthy  -        42 min   3 s  the token was refused the to…",
            ]
        );
    }

    #[test]
    fn who_is_off_target_says_why_and_what_next() {
        let texts = |view: &InstanceView| sample::texts(&off_target(view));
        let mut view = sample::instance_view("i-03de", Status::Stale);
        view.serving = Some(sample::revision("c81f0022"));
        assert_eq!(
            texts(&view),
            ["i-03de stale 42 min: serves c81f002, healthy", "       next: towline why i-03de",]
        );
        view.failure = Some(Failure {
            order: None,
            revision: sample::revision("9b03d7a1"),
            cause: Cause::Unhealthy,
            detail: "GET /healthz 503, 3 in a row, after 18 s and a good deal more".to_owned(),
            attempt: 1,
        });
        assert_eq!(
            texts(&view),
            [
                "i-03de stale 42 min: serves c81f002; 9b03d7a failed: GET /healthz 503, 3 in a",
                "       row, after 18 s and a good deal more",
                "       next: towline logs i-03de",
            ]
        );
        let mut view = sample::instance_view("i-1", Status::Unhealthy);
        view.serving = None;
        assert_eq!(texts(&view)[0], "i-1 unhealthy 42 min: serves nothing of Towline's");
        view.status = Status::Silent;
        assert_eq!(texts(&view)[0], "i-1 silent 3 s: served nothing when last heard of");
    }
}
