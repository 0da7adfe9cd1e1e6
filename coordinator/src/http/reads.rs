//! What operators look at: views of groups, rollouts, instances; nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use towline_protocol::api::{
    Code, CommitView, ErrorBody, GroupView, InstanceView, LogView, PAGE_MAX, Page, PermitView,
    PlanView, ReleaseRequest, ResolveView, RolloutView, SkewView, Status, WhyView,
};
use towline_protocol::fleet::Quarantined;
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::rollout::{Rollout, Selector, State as Stands};

use super::Api;
use super::caller::Caller;
use super::errors::Refused;
use super::input::{Asked, At};
use crate::records::{GroupState, key};
use crate::rollout::operations::{Act, unknown_group, unknown_instance};
use crate::rollout::reports::LogRecord;
use crate::views::instances::{Beginning, Cursor, Filter};
use crate::views::{Look, group, instances, plan, rollout, skew, told, why};

/// The most bytes of a name that is looked up.
const NAME_BYTES_MAX: usize = 300;

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/groups", get(groups))
        .route("/v1/instances", get(all_instances))
        .route("/v1/groups/{group}/rollout", get(one_rollout))
        .route("/v1/groups/{group}/skew", get(one_skew))
        .route("/v1/groups/{group}/why", get(group_why))
        .route("/v1/groups/{group}/quarantine", get(quarantine))
        .route("/v1/groups/{group}/permits", get(permits))
        .route("/v1/groups/{group}/instances", get(group_instances))
        .route("/v1/groups/{group}/instances/{instance}", get(one_instance))
        .route("/v1/groups/{group}/instances/{instance}/why", get(instance_why))
        .route("/v1/groups/{group}/instances/{instance}/logs", get(logs))
}

/// Those that may wait for the origin of a repository.
pub(crate) fn of_origins() -> Router<Api> {
    Router::new()
        .route("/v1/groups/{group}/plan", get(one_plan))
        .route("/v1/groups/{group}/resolve", get(resolve))
}

impl Api {
    /// Looks at a group, with what the mirror knows.
    pub(crate) fn look<T>(
        &self,
        group: &Group,
        commits: &BTreeMap<Revision, CommitView>,
        see: impl FnOnce(&Look<'_>) -> Result<T, ErrorBody>,
    ) -> Result<T, Refused> {
        let desk = self.desk();
        let (attendance, now) = (desk.attendance(group), desk.clock(group));
        let unheard = self.unheard(group);
        let seen = desk.read(|records| {
            let state = records.group(group).ok_or_else(|| unknown_group(group))?;
            see(&Look { state, attendance: &attendance, unheard: &unheard, now, commits })
        });
        seen.map_err(Refused::from)
    }

    /// Looks at a group with all that there is to know.
    async fn look_well<T>(
        &self,
        group: &Group,
        see: impl FnOnce(&Look<'_>) -> Result<T, ErrorBody>,
    ) -> Result<Json<T>, Refused> {
        let commits = self.commits(group, None).await;
        self.look(group, &commits, see).map(Json)
    }

    fn unheard(&self, group: &Group) -> BTreeMap<Instance, Duration> {
        let desk = self.desk();
        let members: Vec<Instance> = desk.read(|records| {
            let members = records.group(group).into_iter().flat_map(GroupState::members);
            members.map(|record| record.instance.clone()).collect()
        });
        let known = members.into_iter().filter_map(|instance| {
            let unheard = desk.unheard_for(group, &instance)?;
            Some((instance, unheard))
        });
        known.collect()
    }

    /// Returns the view of a group's rollout: the present or last one, or an earlier one.
    pub(crate) async fn rollout_view(
        &self,
        group: &Group,
        generation: Option<u64>,
        commits: &BTreeMap<Revision, CommitView>,
    ) -> Result<RolloutView, Refused> {
        let present = self.look(group, commits, |look| {
            let present = look.state.rollout.as_ref().map(|kept| &kept.value);
            let wanted = present.filter(|present| {
                generation.is_none_or(|generation| generation == present.order().generation)
            });
            Ok(wanted.map(|wanted| rollout::view(look, wanted, None)))
        })?;
        if let Some(view) = present {
            return Ok(view);
        }
        let Some(generation) = generation else {
            let message = format!("{group} has had no rollout yet");
            let hint = format!("`towline release {group} REV` begins one");
            return Err(Refused::new(Code::NotFound, message).hint(hint));
        };
        let past = self.desk().load::<Rollout>(&key::past(group, generation)).await?;
        let past = past.ok_or_else(|| {
            let message = format!("{group} has had no rollout of generation {generation}");
            let hint = format!("`towline rollout show {group}` shows the newest");
            Refused::new(Code::NotFound, message).hint(hint)
        })?;
        self.look(group, commits, |look| Ok(rollout::view(look, &past, next(look, &past))))
    }
}

/// The generation that took a past rollout's place.
fn next(look: &Look<'_>, past: &Rollout) -> Option<u64> {
    let (order, now) = (past.order(), look.state.order());
    let took = matches!(past.state, Stands::Aborted | Stands::Replaced);
    // Generations go on when the epoch is raised.
    let is_later = now.generation > order.generation;
    (took && is_later).then_some(order.generation + 1)
}

/// Takes how long a page may be.
fn limit(asked: &mut Asked) -> Result<usize, Refused> {
    let limit = asked.take_number::<usize>("limit")?.unwrap_or(PAGE_MAX);
    if (1..=PAGE_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Refused::of_field("limit", format!("a page has 1 to {PAGE_MAX} items, not {limit}")))
}

async fn groups(
    State(api): State<Api>,
    mut asked: Asked,
) -> Result<Json<Page<GroupView>>, Refused> {
    let (limit, after) = (limit(&mut asked)?, asked.take::<Group>("after")?);
    asked.end()?;
    let names: Vec<Group> = api.desk().read(|records| {
        let names = records.groups().map(|state| &state.group);
        names.filter(|name| after.as_ref().is_none_or(|after| *name > after)).cloned().collect()
    });
    let mut items = Vec::new();
    for name in names.iter().take(limit) {
        // One that was removed meanwhile is not there.
        items.extend(api.look(name, &BTreeMap::new(), group::view).ok());
    }
    let next = names.get(limit - 1).filter(|_| names.len() > limit).map(Group::to_string);
    Ok(Json(Page { items, next }))
}

pub(crate) async fn one_group(
    State(api): State<Api>,
    at: At,
    asked: Asked,
) -> Result<Json<GroupView>, Refused> {
    asked.end()?;
    api.look(&at.get("group")?, &BTreeMap::new(), group::view).map(Json)
}

async fn one_rollout(
    State(api): State<Api>,
    at: At,
    mut asked: Asked,
) -> Result<Json<RolloutView>, Refused> {
    let generation = asked.take_number("generation")?;
    asked.end()?;
    let group = at.get("group")?;
    let commits = api.commits(&group, None).await;
    api.rollout_view(&group, generation, &commits).await.map(Json)
}

async fn one_skew(State(api): State<Api>, at: At, asked: Asked) -> Result<Json<SkewView>, Refused> {
    asked.end()?;
    api.look_well(&at.get("group")?, skew::view).await
}

async fn group_why(State(api): State<Api>, at: At, asked: Asked) -> Result<Json<WhyView>, Refused> {
    asked.end()?;
    api.look(&at.get("group")?, &BTreeMap::new(), why::group).map(Json)
}

async fn instance_why(
    State(api): State<Api>,
    at: At,
    asked: Asked,
) -> Result<Json<WhyView>, Refused> {
    asked.end()?;
    let (group, instance) = (at.get("group")?, at.get("instance")?);
    let claimed = api.claims().of(&group, &instance, api.desk().now());
    api.look(&group, &BTreeMap::new(), |look| {
        let mut view = why::instance(look, &instance)?;
        if let Some(ago) = claimed {
            why::claimed(&mut view, &group, &instance, ago);
        }
        Ok(view)
    })
    .map(Json)
}

async fn one_plan(
    State(api): State<Api>,
    axum::Extension(caller): axum::Extension<Caller>,
    at: At,
    mut asked: Asked,
) -> Result<Json<PlanView>, Refused> {
    let group: Group = at.get("group")?;
    let revision: Revision = asked.need("revision")?;
    let only = asked.take_by("only", |text| Selector::try_from(text.to_owned()))?;
    let without = asked.take_by("without", |text| {
        let names = text.split(',').map(str::parse::<Instance>);
        names.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
    })?;
    asked.end()?;
    let request = ReleaseRequest { revision, only, without: without.unwrap_or_default() };
    let refused = match api.check_commit(&group, &request.revision).await {
        Ok(()) => None,
        Err(refused) if refused.0.code == Code::NotFound => return Err(refused),
        Err(refused) => Some(*refused.0),
    };
    let commits = api.commits(&group, Some(&request.revision)).await;
    let act: Act = api.act(&caller);
    api.look(&group, &commits, |look| Ok(plan::view(look, &request, &act, refused))).map(Json)
}

async fn resolve(
    State(api): State<Api>,
    at: At,
    mut asked: Asked,
) -> Result<Json<ResolveView>, Refused> {
    let name: String = asked.need("name")?;
    asked.end()?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let message =
            format!("{:?} is not the name of a commit, a branch or a tag", told::line(&name));
        return Err(Refused::of_field("name", message));
    }
    api.resolve(&at.get("group")?, &name).await.map(Json)
}

async fn quarantine(
    State(api): State<Api>,
    at: At,
    asked: Asked,
) -> Result<Json<Page<Quarantined>>, Refused> {
    asked.end()?;
    let view = api.look(&at.get("group")?, &BTreeMap::new(), group::view)?;
    Ok(Json(Page { items: view.quarantine, next: None }))
}

async fn permits(
    State(api): State<Api>,
    at: At,
    mut asked: Asked,
) -> Result<Json<Page<PermitView>>, Refused> {
    let (limit, after) = (limit(&mut asked)?, asked.take::<u64>("after")?);
    asked.end()?;
    let all = api.look(&at.get("group")?, &BTreeMap::new(), |look| Ok(instances::permits(look)))?;
    let is_after = |permit: &PermitView| after.is_none_or(|after| permit.id > after);
    let mut items: Vec<PermitView> = all.into_iter().filter(is_after).collect();
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| has_more).map(|last| last.id.to_string());
    Ok(Json(Page { items, next }))
}

async fn all_instances(
    State(api): State<Api>,
    mut asked: Asked,
) -> Result<Json<Page<InstanceView>>, Refused> {
    let group = asked.take::<Group>("group")?;
    list(&api, group, asked)
}

async fn group_instances(
    State(api): State<Api>,
    at: At,
    asked: Asked,
) -> Result<Json<Page<InstanceView>>, Refused> {
    list(&api, Some(at.get("group")?), asked)
}

fn list(
    api: &Api,
    group: Option<Group>,
    mut asked: Asked,
) -> Result<Json<Page<InstanceView>>, Refused> {
    let limit = limit(&mut asked)?;
    let after = asked.take::<Cursor>("after")?;
    let status = asked.take_by("status", status)?;
    let filter = Filter { status, revision: asked.take::<Beginning>("revision")? };
    asked.end()?;
    let groups: BTreeSet<Group> = match group {
        Some(group) => BTreeSet::from([group]),
        None => {
            api.desk().read(|records| records.groups().map(|state| state.group.clone()).collect())
        }
    };
    let mut page = Page { items: Vec::new(), next: None };
    for group in &groups {
        let left = limit - page.items.len();
        if left == 0 {
            // Whether anybody is left is found out by asking.
            let last: Option<&InstanceView> = page.items.last();
            page.next = last.map(|last| format!("{}/{}", last.group, last.instance));
            break;
        }
        let one = api.look(group, &BTreeMap::new(), |look| {
            instances::page([*look], &filter, after.as_ref(), left)
        });
        let one = match one {
            Ok(one) => one,
            // Removed meanwhile, and not asked for by its name.
            Err(refused) if refused.0.code == Code::NotFound && groups.len() > 1 => continue,
            Err(refused) => return Err(refused),
        };
        page.items.extend(one.items);
        if one.next.is_some() {
            page.next = one.next;
            break;
        }
    }
    Ok(Json(page))
}

fn status(text: &str) -> Result<Status, String> {
    let all = [
        Status::Converged,
        Status::Stale,
        Status::Degraded,
        Status::Unhealthy,
        Status::Unknown,
        Status::Silent,
    ];
    let named = all.into_iter().find(|status| status.as_str() == text);
    named.ok_or_else(|| format!("use one of {}", all.map(Status::as_str).join(", ")))
}

async fn one_instance(
    State(api): State<Api>,
    at: At,
    asked: Asked,
) -> Result<Json<InstanceView>, Refused> {
    asked.end()?;
    let (group, instance): (Group, Instance) = (at.get("group")?, at.get("instance")?);
    let view = api.look(&group, &BTreeMap::new(), |look| {
        let record = look.state.member(&instance);
        let record = record.ok_or_else(|| unknown_instance(look.state, &instance))?;
        Ok(instances::view(look, record))
    });
    view.map(Json)
}

async fn logs(State(api): State<Api>, at: At, asked: Asked) -> Result<Json<LogView>, Refused> {
    asked.end()?;
    let (group, instance): (Group, Instance) = (at.get("group")?, at.get("instance")?);
    api.look(&group, &BTreeMap::new(), |look| {
        let known = look.state.instances.contains_key(&instance);
        known.then_some(()).ok_or_else(|| unknown_instance(look.state, &instance))
    })?;
    let Some(LogRecord { at, log }) = api.desk().load(&key::log(&group, &instance)).await? else {
        let message = format!("{instance} in {group} has told of no failure that left a log");
        let hint = format!("`towline why {instance} --group {group}` says how it stands");
        return Err(Refused::new(Code::NotFound, message).hint(hint));
    };
    Ok(Json(LogView { instance, group, at, log }))
}
