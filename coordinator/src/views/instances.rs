//! Instances and permits as they are shown, and pages of them.
//!
//! PURE.

use std::collections::BTreeMap;

use towline_protocol::api::{Code, ErrorBody, InstanceView, PAGE_MAX, Page, PermitView, Status};
use towline_protocol::fleet::InstanceRecord;
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::report::{Failure, Health};
use towline_protocol::rollout::Batch;

use super::{Look, told};
use crate::fleet;

/// The fewest digits of a revision that select by it.
const BEGINNING_MIN: usize = 4;

/// Which instances are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those that stand like this.
    pub status: Option<Status>,
    /// Only those that serve a revision that begins like this, as they last told.
    pub revision: Option<Beginning>,
}

/// The beginning of a revision's id, or all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning(String);

impl Beginning {
    /// Does a revision begin like this?
    #[must_use]
    pub fn fits(&self, revision: &Revision) -> bool {
        revision.as_str().starts_with(&self.0)
    }
}

impl std::str::FromStr for Beginning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_beginning = (BEGINNING_MIN..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_beginning {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(format!("use {BEGINNING_MIN} to 64 hexadecimal digits of a commit's id"))
    }
}

/// Where a page begins: after this one, which need not be there any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    group: Group,
    instance: Instance,
}

impl std::str::FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(group, instance)| {
            Some(Self { group: group.parse().ok()?, instance: instance.parse().ok()? })
        });
        parsed.ok_or_else(|| "give what the page before this one had as `next`".to_owned())
    }
}

/// Returns an instance as it is shown.
#[must_use]
pub fn view(look: &Look<'_>, record: &InstanceRecord) -> InstanceView {
    let report = record.report.as_ref();
    let is_silent = look.attendance.is_silent(&record.instance);
    let health = report.map_or(Health::Unknown, |report| report.health);
    let told = |text: &Option<String>| text.as_deref().map(told::line);
    InstanceView {
        instance: record.instance.clone(),
        group: record.group.clone(),
        status: fleet::status(record, look.target(), look.attendance),
        serving: report.and_then(|report| report.serving.clone()),
        adopted: report.is_some_and(|report| report.adopted),
        alike: report.and_then(|report| report.alike.clone()),
        evidence: report.and_then(|report| report.evidence),
        health: if is_silent { Health::Unknown } else { health },
        phase: report.map(|report| report.phase),
        degraded: report.and_then(|report| told(&report.degraded)),
        objection: report.and_then(|report| told(&report.objection)),
        failure: report.and_then(|report| report.failure.as_ref()).map(failure),
        note: told(&record.note),
        permit: look.state.open.get(&record.instance).map(|kept| kept.value.id),
        seen_s: look.seen_s(record),
        age_s: look.ago_s(record.reported),
        since_s: look.ago_s(record.since),
        awaits_batch: awaits_batch(look, record),
    }
}

/// Is an instance well, and off target only because its batch was not opened yet?
fn awaits_batch(look: &Look<'_>, record: &InstanceRecord) -> bool {
    let (instance, report) = (&record.instance, record.report.as_ref());
    let is_well = fleet::status(record, look.target(), look.attendance) == Status::Stale
        && report.is_some_and(|report| report.objection.is_none() && report.failure.is_none());
    is_well
        && look.state.going().is_some_and(|rollout| {
            let is_batched = |batch: &Batch| batch.members.contains(instance);
            let batch = rollout.batches.iter().find(|batch| is_batched(batch));
            let is_left_out = rollout.aside.contains(instance)
                || rollout.without.contains(instance)
                || rollout.only.as_ref().is_some_and(|only| !only.has(instance));
            !is_left_out && batch.is_none_or(|batch| batch.opened_ms.is_none())
        })
}

fn failure(failure: &Failure) -> Failure {
    Failure { detail: told::line(&failure.detail), ..failure.clone() }
}

/// Returns one page of the instances of some groups, by group and name.
///
/// # Errors
///
/// A page of no items, or of more than [`PAGE_MAX`].
pub fn page<'a>(
    looks: impl IntoIterator<Item = Look<'a>>,
    filter: &Filter,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<Page<InstanceView>, ErrorBody> {
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ErrorBody {
            code: Code::Invalid,
            message: format!("a page has 1 to {PAGE_MAX} items, not {limit}"),
            hint: None,
            field: Some("limit".to_owned()),
        });
    }
    let looks: BTreeMap<&Group, Look<'a>> =
        looks.into_iter().map(|look| (&look.state.group, look)).collect();
    let mut items: Vec<InstanceView> = Vec::new();
    for (group, look) in looks {
        if after.is_some_and(|after| *group < after.group) {
            continue;
        }
        let is_after = |record: &&InstanceRecord| {
            after.is_none_or(|after| (group, &record.instance) > (&after.group, &after.instance))
        };
        for record in look.state.members().filter(is_after).filter(|it| fits(&look, it, filter)) {
            if items.len() == limit {
                let last = items.last().map(|last| format!("{}/{}", last.group, last.instance));
                return Ok(Page { items, next: last });
            }
            items.push(view(&look, record));
        }
    }
    Ok(Page { items, next: None })
}

fn fits(look: &Look<'_>, record: &InstanceRecord, filter: &Filter) -> bool {
    let status = || fleet::status(record, look.target(), look.attendance);
    let serving = record.report.as_ref().and_then(|report| report.serving.as_ref());
    filter.status.is_none_or(|wanted| wanted == status())
        && filter
            .revision
            .as_ref()
            .is_none_or(|wanted| serving.is_some_and(|serving| wanted.fits(serving)))
}

/// Returns a group's open permits, oldest first.
#[must_use]
pub fn permits(look: &Look<'_>) -> Vec<PermitView> {
    let view = |(instance, permit): (&Instance, &towline_protocol::fleet::Permit)| PermitView {
        id: permit.id,
        group: look.state.group.clone(),
        instance: instance.clone(),
        order: permit.order,
        age_s: look.ago_s(permit.given),
        phase: look
            .state
            .member(instance)
            .and_then(|record| record.report.as_ref())
            .map(|report| report.phase),
        silent: look.attendance.is_silent(instance),
    };
    let open = look.state.open.iter().map(|(instance, kept)| (instance, &kept.value));
    let mut permits: Vec<PermitView> = open.map(view).collect();
    permits.sort_by_key(|permit| permit.id);
    permits
}

#[cfg(test)]
mod tests {
    use towline_protocol::report::{Evidence, Phase, Report};
    use towline_protocol::rollout::State;

    use super::super::fixture::{Fleet, GOOD, NEW, name, revision};
    use super::*;

    fn seen(fleet: &Fleet, at: &str) -> InstanceView {
        let record = fleet.state.member(&name(at)).unwrap();
        view(&fleet.look(), record)
    }

    #[test]
    fn silence_is_unknown_and_keeps_what_was_told_with_its_age() {
        let fleet = Fleet::of(&["i-1"]).released(GOOD).converged().serves("i-1", GOOD);
        let before = seen(&fleet, "i-1");
        assert_eq!((before.status, before.health), (Status::Converged, Health::Healthy));
        let fleet = fleet.silent("i-1").later(840);
        let after = seen(&fleet, "i-1");
        assert_eq!((after.status, after.health), (Status::Silent, Health::Unknown));
        assert_eq!((after.serving, after.seen_s, after.age_s), (Some(revision(GOOD)), 840, 840));
    }

    #[test]
    fn who_was_heard_of_since_it_was_stored_was_seen_then() {
        let mut fleet = Fleet::of(&["i-1"]).later(600);
        fleet.unheard.insert(name("i-1"), std::time::Duration::from_secs(7));
        let view = seen(&fleet, "i-1");
        assert_eq!((view.seen_s, view.age_s), (7, 600), "what it told is as old as before");
    }

    #[test]
    fn nothing_is_shown_that_was_not_reported() {
        let fleet = Fleet::of(&["i-1"]).released(NEW);
        let fleet = fleet.told("i-1", |record| record.report = None);
        let view = seen(&fleet, "i-1");
        assert_eq!((view.serving, view.alike, view.phase), (None, None, None));
        assert_eq!(
            (view.status, view.health, view.evidence),
            (Status::Unknown, Health::Unknown, None)
        );
    }

    #[test]
    fn what_an_agent_says_is_cleaned() {
        let fleet = Fleet::of(&["i-1"]).told("i-1", |record| {
            record.note = Some("a\u{1b}[2Jb".to_owned());
            let report = record.report.as_mut().unwrap();
            report.degraded = Some("a\nb".to_owned());
            report.objection = Some("x".repeat(10_000));
            report.evidence = Some(Evidence::Started);
            report.phase = Phase::Probing;
        });
        let view = seen(&fleet, "i-1");
        assert_eq!(view.note.as_deref(), Some("a [2Jb"));
        assert_eq!(view.degraded.as_deref(), Some("a b"));
        assert!(view.objection.unwrap().len() < 1_000);
        assert_eq!((view.phase, view.evidence), (Some(Phase::Probing), Some(Evidence::Started)));
    }

    #[test]
    fn who_waits_for_a_batch_is_well_and_in_none_that_is_open() {
        let fleet = Fleet::of(&["i-1", "i-2", "i-3"]).released(NEW);
        let fleet = fleet.batch("canary", 0, &["i-1"]).batch("100 %", 4, &["i-2"]);
        let fleet = fleet.change(|rollout| rollout.batches[1].opened_ms = None);
        let waits = |fleet: &Fleet| -> Vec<&str> {
            let all = ["i-1", "i-2", "i-3"].into_iter();
            all.filter(|at| seen(fleet, at).awaits_batch).collect()
        };
        assert_eq!(waits(&fleet), ["i-2", "i-3"], "offered, and in no batch yet");
        let unwell = |report: &mut Report| report.health = Health::Unhealthy;
        assert_eq!(waits(&fleet.clone().report("i-2", unwell)), ["i-3"]);
        let objects = |report: &mut Report| report.objection = Some("not of this branch".into());
        assert_eq!(waits(&fleet.clone().report("i-3", objects)), ["i-2"]);
        let aside = fleet.clone().change(|rollout| {
            rollout.aside.insert(name("i-2"));
            rollout.without.insert(name("i-3"));
        });
        assert_eq!(waits(&aside), [""; 0]);
        let only = fleet
            .clone()
            .change(|rollout| rollout.only = Some("i-2".to_owned().try_into().unwrap()));
        assert_eq!(waits(&only), ["i-2"]);
        let ended = fleet.change(|rollout| rollout.state = State::Aborted);
        assert_eq!(waits(&ended), [""; 0]);
    }

    #[test]
    fn pages_follow_each_other_and_leave_out_nobody() {
        let names: Vec<String> = (0..7).map(|number| format!("i-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let web = Fleet::of(&names).released(GOOD).serves("i-2", GOOD).silent("i-3");
        let mut api = Fleet::of(&["i-1"]);
        api.state.group = "api".parse().unwrap();
        for kept in api.state.instances.values_mut() {
            kept.value.group = api.state.group.clone();
        }
        let all = |filter: &Filter| {
            let (mut got, mut after) = (Vec::new(), None);
            loop {
                let looks = [web.look(), api.look()];
                let page = page(looks, filter, after.as_ref(), 3).unwrap();
                assert!(page.items.len() <= 3);
                got.extend(page.items.iter().map(|i| format!("{}/{}", i.group, i.instance)));
                match page.next {
                    Some(next) => after = Some(next.parse::<Cursor>().unwrap()),
                    None => return got,
                }
            }
        };
        let everybody = all(&Filter::default());
        assert_eq!(everybody.len(), 8);
        assert_eq!((everybody[0].as_str(), everybody[7].as_str()), ("api/i-1", "web/i-6"));
        let silent = Filter { status: Some(Status::Silent), revision: None };
        assert_eq!(all(&silent), ["web/i-3"]);
        let good =
            Filter { status: None, revision: Some(GOOD.to_string().repeat(5).parse().unwrap()) };
        assert_eq!(all(&good), ["web/i-2"]);
        let exact = page([web.look()], &Filter::default(), None, 7).unwrap();
        assert_eq!((exact.items.len(), exact.next), (7, None), "a full last page has no next one");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for limit in [0, PAGE_MAX + 1] {
            let error = page([], &Filter::default(), None, limit).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("limit"));
        }
        for text in ["", "i-1", "web/", "web/../x", "/i-1", "web/i-1/x"] {
            assert!(text.parse::<Cursor>().is_err(), "{text:?}");
        }
        for text in ["", "4f2", "main", &"a".repeat(65)] {
            assert!(text.parse::<Beginning>().is_err(), "{text:?}");
        }
        assert!("4F2C".parse::<Beginning>().unwrap().fits(&"4f2c91e0".repeat(5).parse().unwrap()));
    }

    #[test]
    fn permits_show_their_holder() {
        let fleet = Fleet::of(&["i-1", "i-2"]).released(NEW).permit("i-2", 7).permit("i-1", 9);
        let fleet = fleet.silent("i-1").later(90);
        let permits = permits(&fleet.look());
        assert_eq!(permits.iter().map(|permit| permit.id).collect::<Vec<_>>(), [7, 9]);
        assert_eq!((permits[1].silent, permits[0].silent, permits[0].age_s), (true, false, 90));
        assert_eq!(permits[0].instance, name("i-2"));
    }
}
