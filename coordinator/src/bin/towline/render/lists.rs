//! Groups, permits, quarantines, tokens, reasons and logs.

use towline_protocol::api::{GroupView, LogView, PermitView, Role, TokenView, WhyView};
use towline_protocol::fleet::Quarantined;
use towline_protocol::ids::{Group, Revision};
use towline_protocol::policy::Policy;
use towline_protocol::report::Phase;
use towline_protocol::time::Timestamp;

use crate::render::table::{Column, Table};
use crate::render::text::{last_lines, line};
use crate::render::time::{ago, day, moment, span, when};
use crate::render::{Line, Tone, WIDTH, rollout, skew};

/// Lists groups.
pub(crate) fn groups(views: &[GroupView], width: usize) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("GROUP"),
        Column::Left("TARGET"),
        Column::Right("GENERATION"),
        Column::Right("INSTANCES"),
        Column::Right("CONVERGED"),
        Column::Elastic("ROLLOUT"),
    ]);
    for view in views {
        let target = view.target.as_ref();
        let rollout = view.rollout.as_ref();
        let tone = match rollout {
            Some(rollout) => rollout::tone(rollout.state),
            None if view.counts.converged == view.counts.instances => Tone::Good,
            None => Tone::Doubtful,
        };
        table.row(
            tone,
            [
                view.group.to_string(),
                target.map_or("-".to_owned(), skew::aim),
                target.map_or("-".to_owned(), |target| target.order.generation.to_string()),
                view.counts.instances.to_string(),
                view.counts.converged.to_string(),
                rollout.map_or("-".to_owned(), |rollout| rollout.state.as_str().to_owned()),
            ],
        );
    }
    table.lines(width)
}

/// Shows a group: how it stands, as comments, and its file as `group set` reads it.
pub(crate) fn group(view: &GroupView, now: Timestamp) -> Vec<Line> {
    let mut said = vec![format!("{}: {}", view.group, rollout::counts(&view.counts))];
    said.push(match &view.target {
        Some(target) => format!(
            "target {}, generation {}, {}, by {}, {}",
            skew::aim(target),
            target.order.generation,
            line(&target.note, 40),
            line(&target.by, 40),
            when(target.at, now)
        ),
        None => format!("no target yet; next: towline release {} REVISION", view.group),
    });
    if let Some(rollout) = &view.rollout {
        let (state, reason) = (rollout.state.as_str(), line(&rollout.reason, 200));
        let stands = if reason.starts_with(state) { reason } else { format!("{state}: {reason}") };
        said.push(format!("rollout of generation {} {stands}", rollout.order.generation));
    }
    if let Some(fallback) = &view.fallback {
        said.push(format!("rollback goes to {}", fallback.short()));
    }
    let quarantine = view.quarantine.iter();
    said.extend(quarantine.map(|quarantined| {
        let since = when(quarantined.since, now);
        format!("quarantined since {since}: {}", quarantined.revision)
    }));
    let mut lines: Vec<Line> =
        said.iter().map(|text| Line::new(Tone::Faint, format!("# {text}"))).collect();
    lines.extend(policy(&view.policy).lines().map(Line::plain));
    lines
}

/// Writes a policy as the file that it is set by.
fn policy(policy: &Policy) -> String {
    toml::to_string(policy).expect("a policy is made of names and numbers")
}

/// Lists permits.
pub(crate) fn permits(views: &[PermitView]) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("INSTANCE"),
        Column::Left("GROUP"),
        Column::Right("PERMIT"),
        Column::Right("GENERATION"),
        Column::Right("AGE"),
        Column::Left("PHASE"),
        Column::Left("HOLDER"),
    ]);
    for view in views {
        table.row(
            if view.silent { Tone::Bad } else { Tone::Plain },
            [
                view.instance.to_string(),
                view.group.to_string(),
                view.id.to_string(),
                view.order.generation.to_string(),
                span(view.age_s),
                view.phase.map_or("-", Phase::as_str).to_owned(),
                if view.silent { "silent" } else { "heard of" }.to_owned(),
            ],
        );
    }
    table.lines(WIDTH)
}

/// Lists what groups refuse.
pub(crate) fn quarantine(
    groups: &[(Group, Vec<Quarantined>)],
    now: Timestamp,
    width: usize,
) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("GROUP"),
        Column::Left("REVISION"),
        Column::Left("SINCE"),
        Column::Elastic("WHY"),
    ]);
    for (group, list) in groups {
        for quarantined in list {
            table.row(
                Tone::Plain,
                [
                    group.to_string(),
                    quarantined.revision.to_string(),
                    when(quarantined.since, now),
                    quarantined.reason.clone(),
                ],
            );
        }
    }
    table.lines(width)
}

/// Lists tokens.
pub(crate) fn tokens(views: &[TokenView], now: Timestamp, width: usize) -> Vec<Line> {
    let mut table = Table::new(&[
        Column::Left("ID"),
        Column::Elastic("NAME"),
        Column::Left("MAY"),
        Column::Left("MADE"),
        Column::Left("EXPIRES"),
        Column::Left("USED"),
    ]);
    for view in views {
        let is_over = view.expires.is_some_and(|expires| expires <= now);
        let may = match view.role {
            Some(Role::Operator) => "operate",
            Some(Role::Viewer) => "view",
            None => "report",
        };
        table.row(
            if is_over { Tone::Faint } else { Tone::Plain },
            [
                view.id.clone(),
                view.agent.clone().unwrap_or_else(|| view.name.clone()),
                may.to_owned(),
                day(view.created),
                view.expires.map_or("with it".to_owned(), day),
                view.used.map_or("never".to_owned(), |used| last_used(used, now)),
            ],
        );
    }
    table.lines(width)
}

/// Says when a token was last used. That is noted once an hour at most: what is younger says no more.
fn last_used(used: Timestamp, now: Timestamp) -> String {
    const NOTED_EVERY_S: u64 = 3_600;
    if now.since(used).as_secs() <= NOTED_EVERY_S {
        "within the hour".to_owned()
    } else {
        format!("{} ago", ago(used, now))
    }
}

/// Says why something is where it is.
pub(crate) fn why(view: &WhyView) -> Vec<Line> {
    let head = format!("{}: {}", line(&view.subject, 140), line(&view.summary, 300));
    let mut lines = vec![Line::new(Tone::Head, head)];
    lines.extend(view.reasons.iter().map(|reason| Line::plain(format!("  {}", line(reason, 300)))));
    lines.extend(view.next.iter().map(|next| Line::plain(format!("next: {}", line(next, 300)))));
    lines
}

/// Shows what was said when a deploy failed.
pub(crate) fn logs(view: &LogView) -> Vec<Line> {
    const LINES_MAX: usize = 2_000;
    const CHARS_MAX: usize = 2_000;
    let (revision, detail) = (view.log.revision.short(), line(&view.log.detail, 500));
    let at = moment(view.at);
    let head = format!("{} failed on {revision}, {at}: {detail}", view.instance);
    let mut lines = vec![Line::new(Tone::Head, head)];
    if view.log.parts.is_empty() {
        lines.push(Line::plain("nothing was said"));
    }
    for part in &view.log.parts {
        lines.push(Line::new(Tone::Faint, format!("{}:", line(&part.source, 40))));
        let said = last_lines(&part.text, LINES_MAX, CHARS_MAX);
        lines.extend(said.iter().map(|text| Line::plain(format!("  {text}").trim_end())));
    }
    lines
}

/// Finds the one quarantined commit whose id begins like this.
pub(crate) fn find<'a>(
    list: &'a [Quarantined],
    beginning: &str,
) -> Result<&'a Revision, &'static str> {
    let mut found =
        list.iter().map(|one| &one.revision).filter(|one| one.as_str().starts_with(beginning));
    match (found.next(), found.next()) {
        (Some(revision), None) => Ok(revision),
        (None, _) => Err("none"),
        (Some(_), Some(_)) => Err("more than one"),
    }
}

#[cfg(test)]
mod tests {
    use towline_protocol::api::{Counts, RolloutBrief};
    use towline_protocol::ids::Order;
    use towline_protocol::poll::{FailureLog, LogPart};
    use towline_protocol::rollout::{Kind, State};

    use super::*;
    use crate::render::sample;

    fn group_view() -> GroupView {
        GroupView {
            group: "web".parse().unwrap(),
            policy: Policy::default(),
            target: Some(sample::target()),
            rollout: None,
            counts: Counts { instances: 50, converged: 50, ..Counts::default() },
            fallback: Some(sample::revision("c81f0022")),
            quarantine: Vec::new(),
        }
    }

    #[test]
    fn groups_are_listed() {
        let mut busy = group_view();
        busy.group = "api".parse().unwrap();
        busy.target = None;
        busy.rollout = Some(RolloutBrief {
            order: Order { epoch: 1, generation: 4 },
            kind: Kind::Release,
            state: State::Halted,
            reason: "canary 1 failed".to_owned(),
        });
        let lines = groups(&[group_view(), busy], WIDTH);
        assert_eq!(
            sample::texts(&lines),
            [
                "GROUP  TARGET   GENERATION  INSTANCES  CONVERGED  ROLLOUT",
                "web    9b03d7a         119         50         50  -",
                "api    -                 -         50         50  halted",
            ]
        );
        assert_eq!((lines[1].tone, lines[2].tone), (Tone::Good, Tone::Bad));
    }

    #[test]
    fn a_group_is_shown_as_a_file_that_can_be_set_again() {
        let mut view = group_view();
        view.policy.repository = Some("git@github.com:acme/shop.git".to_owned());
        view.quarantine = vec![Quarantined {
            revision: sample::revision("4f2c91e0"),
            since: sample::at(0),
            reason: "bad".to_owned(),
        }];
        let texts = sample::texts(&group(&view, sample::at(600)));
        assert_eq!(
            texts[..4],
            [
                "# web: 50 instances: 50 converged",
                "# target 9b03d7a, generation 119, rollback of 118, by ada, 14:16:00Z",
                "# rollback goes to c81f002",
                "# quarantined since 14:15:00Z: 4f2c91e04f2c91e04f2c91e04f2c91e04f2c91e0",
            ]
        );
        let again: Policy = toml::from_str(&texts.join("\n")).unwrap();
        assert_eq!(again.check().unwrap(), view.policy);
    }

    #[test]
    fn permits_and_tokens_are_listed() {
        let permit = PermitView {
            id: 17,
            group: "web".parse().unwrap(),
            instance: sample::instance("i-0a17"),
            order: Order { epoch: 1, generation: 118 },
            age_s: 300,
            phase: None,
            silent: true,
        };
        assert_eq!(
            sample::texts(&permits(&[permit])),
            [
                "INSTANCE  GROUP  PERMIT  GENERATION    AGE  PHASE  HOLDER",
                "i-0a17    web        17         118  5 min  -      silent",
            ]
        );
        let token = TokenView {
            id: "t1".to_owned(),
            name: "ada\n".to_owned(),
            role: Some(Role::Operator),
            agent: None,
            created: sample::at(0),
            expires: Some(sample::at(86_400)),
            used: None,
        };
        let agent = TokenView {
            id: "t2".to_owned(),
            role: None,
            agent: Some("web/i-1".to_owned()),
            expires: None,
            used: Some(sample::at(0)),
            ..token.clone()
        };
        assert_eq!(
            sample::texts(&tokens(&[token, agent], sample::at(60), WIDTH)),
            [
                "ID  NAME     MAY      MADE        EXPIRES     USED",
                "t1  ada      operate  2026-09-21  2026-09-22  never",
                "t2  web/i-1  report   2026-09-21  with it     within the hour",
            ]
        );
    }

    #[test]
    fn a_token_was_last_used_as_well_as_it_is_known() {
        assert_eq!(last_used(sample::at(0), sample::at(3_600)), "within the hour");
        assert_eq!(last_used(sample::at(0), sample::at(3_601)), "60 min ago");
    }

    #[test]
    fn reasons_and_logs_are_told_line_by_line() {
        let view = WhyView {
            subject: "web i-0a17".to_owned(),
            summary: "stale".to_owned(),
            reasons: vec!["its batch has not been opened\u{1b}[2J".to_owned()],
            next: vec!["towline rollout show web".to_owned()],
        };
        assert_eq!(
            sample::texts(&why(&view)),
            [
                "web i-0a17: stale",
                "  its batch has not been opened",
                "next: towline rollout show web",
            ]
        );
        let mut view = LogView {
            instance: sample::instance("i-0a17"),
            group: "web".parse().unwrap(),
            at: sample::at(39),
            log: FailureLog {
                revision: sample::revision("4f2c91e0"),
                detail: "GET /healthz 503".to_owned(),
                parts: vec![LogPart {
                    source: "app".to_owned(),
                    text: "TypeError: x\n    at lib/price.js:88\n".to_owned(),
                }],
            },
        };
        assert_eq!(
            sample::texts(&logs(&view)),
            [
                "i-0a17 failed on 4f2c91e, 2026-09-21 14:15:39Z: GET /healthz 503",
                "app:",
                "  TypeError: x",
                "      at lib/price.js:88",
            ]
        );
        view.log.parts.clear();
        assert_eq!(logs(&view)[1].text, "nothing was said");
    }

    #[test]
    fn a_quarantined_commit_is_found_by_its_beginning() {
        let one = |digits: &str| Quarantined {
            revision: sample::revision(digits),
            since: sample::at(0),
            reason: String::new(),
        };
        let list = [one("4f2c91e0"), one("4f2c0000"), one("9b03d7a1")];
        assert_eq!(find(&list, "9b03"), Ok(&list[2].revision));
        assert_eq!(find(&list, "4f2c"), Err("more than one"));
        assert_eq!(find(&list, "aaaa"), Err("none"));
        let groups = [("web".parse().unwrap(), vec![list[2].clone()])];
        assert_eq!(
            sample::texts(&quarantine(&groups, sample::at(1), WIDTH)),
            [
                "GROUP  REVISION                                  SINCE      WHY",
                "web    9b03d7a19b03d7a19b03d7a19b03d7a19b03d7a1  14:15:00Z",
            ]
        );
    }
}
