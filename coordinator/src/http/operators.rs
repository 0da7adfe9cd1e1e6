//! What operators change: groups, rollouts, orders to instances.
//!
//! Each change is decided by the engine on the records as they are, and stored together with its key and
//! its answer; see [`super::idempotency`].

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde::Deserialize;
use towline_protocol::api::{
    Because, Code, CommitView, ErrorBody, ReleaseRequest, RollbackRequest, RolloutView,
};
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::policy::Policy;
use towline_protocol::rollout::Rollout;

use super::Api;
use super::errors::Refused;
use super::idempotency::{Answer, Change};
use super::input::{Asked, At};
use super::reads;
use crate::auth;
use crate::fleet::Attendance;
use crate::records::{Draft, GroupState, Records, key};
use crate::rollout::operations::{
    self, Act, ToInstance, conflict, unknown_group, unknown_instance,
};
use crate::rollout::{Now, permits, reports};
use crate::views::{Look, plan, rollout, told};

/// How many members are listed in the answer to a change: it is stored.
const MEMBERS_MAX: usize = 100;

/// How many groups there may be.
const GROUPS_MAX: usize = 10_000;

/// A request that says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

pub(crate) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/groups/{group}", get(reads::one_group).put(set).delete(remove))
        .route("/v1/groups/{group}/rollback", post(rollback))
        .route("/v1/groups/{group}/restart", post(restart))
        .route("/v1/groups/{group}/rollout/pause", post(pause))
        .route("/v1/groups/{group}/rollout/resume", post(resume))
        .route("/v1/groups/{group}/rollout/promote", post(promote))
        .route("/v1/groups/{group}/rollout/abort", post(abort))
        .route("/v1/groups/{group}/instances/{instance}/restart", post(restart_one))
        .route("/v1/groups/{group}/instances/{instance}/retry", post(retry))
        .route("/v1/groups/{group}/instances/{instance}/forget", post(forget))
        .route("/v1/groups/{group}/permits/{instance}/close", post(close))
        .route("/v1/groups/{group}/quarantine/{revision}/lift", post(lift))
}

/// Those that may wait for the origin of a repository.
pub(crate) fn of_origins() -> Router<Api> {
    Router::new().route("/v1/groups/{group}/release", post(release))
}

/// What a change is decided on.
struct On<'a> {
    state: &'a GroupState,
    attendance: &'a Attendance,
    now: Now,
    act: &'a Act,
}

impl Api {
    /// Decides something about a group that exists.
    async fn decide<T>(
        &self,
        change: &Change<T>,
        group: &Group,
        reason: Option<String>,
        mut decide: impl FnMut(&On<'_>) -> Result<(Draft, Answer), ErrorBody>,
    ) -> Result<Answer, Refused> {
        self.once(change, group, reason, |records, attendance, now, act| {
            let state = records.group(group).ok_or_else(|| unknown_group(group))?;
            decide(&On { state, attendance, now, act })
        })
        .await
    }

    /// Decides something about a group's rollout, and answers with how it then stands. Git is not asked:
    /// whoever pauses does not wait for it.
    async fn decide_rollout<T>(
        &self,
        change: &Change<T>,
        group: &Group,
        reason: Option<String>,
        mut decide: impl FnMut(&On<'_>) -> Result<Draft, ErrorBody>,
        more: Option<&Revision>,
    ) -> Result<Answer, Refused> {
        let commits = self.commits_at_hand(group, more);
        self.decide(change, group, reason, |on| {
            let draft = decide(on)?;
            let answer = on.after(&draft, &commits);
            Ok((draft, answer))
        })
        .await
    }
}

impl On<'_> {
    fn see(
        &self,
        state: &GroupState,
        commits: &BTreeMap<Revision, CommitView>,
        see: impl FnOnce(&Look<'_>) -> Option<RolloutView>,
    ) -> Answer {
        let (attendance, now, unheard) = (self.attendance, self.now, BTreeMap::new());
        let view = see(&Look { state, attendance, unheard: &unheard, now, commits });
        view.map_or(Answer::Done, |mut view| {
            let surplus = view.members.len().saturating_sub(MEMBERS_MAX);
            view.members.truncate(MEMBERS_MAX);
            view.members_left_out += crate::fleet::count(surplus);
            Answer::of(&view)
        })
    }

    /// The rollout as it stands once this is stored.
    fn after(&self, draft: &Draft, commits: &BTreeMap<Revision, CommitView>) -> Answer {
        let after = plan::begun(self.state, draft);
        self.see(&after, commits, |look| {
            Some(rollout::view(look, &look.state.rollout.as_ref()?.value, None))
        })
    }

    /// The rollout that is ended by this.
    fn ended(&self, draft: &Draft, commits: &BTreeMap<Revision, CommitView>) -> Answer {
        let after = plan::begun(self.state, draft);
        let generation = self.state.order().generation;
        let ended: Option<Rollout> =
            plan::written(draft, &key::past(&self.state.group, generation));
        let next = after.order().generation;
        self.see(&after, commits, |look| Some(rollout::view(look, &ended?, Some(next))))
    }

    /// Notes what was done beside the rollout in its story, where one goes on.
    fn note(&self, draft: &mut Draft, what: &str) {
        let Some(kept) = self.state.rollout.as_ref().filter(|kept| !kept.value.state.is_ended())
        else {
            return;
        };
        let why = self.act.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let mut next = kept.value.clone();
        next.note(self.act.at, format!("{what} by {}{why}", self.act.by));
        draft.on(key::rollout(&self.state.group), Some(kept));
        draft.put(key::rollout(&self.state.group), &next);
    }
}

async fn set(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Policy>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let name: Group = at.get("group")?;
    api.once(&change, &name, None, |records, _, _, _| {
        let known = records.group(&name);
        if known.is_none() && records.groups().count() >= GROUPS_MAX {
            return Err(conflict(format!("there are {GROUPS_MAX} groups already"), None));
        }
        let draft = operations::set_group(records.remains(&name), &name, change.value.clone())?;
        Ok((draft, Answer::Done))
    })
    .await
}

/// Removes a group in which nobody is. What has gone from it goes first, as much at a time as a commit holds.
async fn remove(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Nothing>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let name: Group = at.get("group")?;
    if let Some(answer) = api.earlier(&change).await? {
        return Ok(answer);
    }
    loop {
        match rest(&api, &name) {
            Ok(None) => break,
            Ok(Some(draft)) => drop(api.desk().save(draft).await?),
            // By now its own earlier request may have removed it.
            Err(error) => return api.unless_made(&change, error.into()).await,
        }
    }
    let answer = api.decide(&change, &name, None, |on| {
        let removal = operations::remove_group(on.state)?;
        if !removal.is_last {
            return Err(conflict(format!("{name} changes too fast"), "try again".to_owned()));
        }
        let mut draft = removal.draft;
        draft.delete(auth::join_key(&name));
        Ok((draft, Answer::Done))
    });
    let answer = answer.await?;
    let orphans = |records: &Records| records.remains(&name).map(reports::orphans);
    for draft in api.desk().read(orphans).into_iter().flatten() {
        api.desk().save(draft).await?;
    }
    Ok(answer)
}

/// What is to be removed of a group before the group itself; `None`: nothing any more.
fn rest(api: &Api, name: &Group) -> Result<Option<Draft>, ErrorBody> {
    api.desk().read(|records| {
        let state = records.group(name).ok_or_else(|| unknown_group(name))?;
        let removal = operations::remove_group(state)?;
        Ok(Some(removal.draft).filter(|_| !removal.is_last))
    })
}

async fn release(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<ReleaseRequest>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let name: Group = at.get("group")?;
    let request = &change.value;
    if let Some(answer) = api.earlier(&change).await? {
        // It was made, whatever the mirror says by now.
        return Ok(answer);
    }
    api.check_commit(&name, &request.revision).await?;
    // So that the answer has its subject at hand.
    drop(api.commits(&name, Some(&request.revision)).await);
    let decide = |on: &On<'_>| operations::release(on.state, on.attendance, request, on.act);
    api.decide_rollout(&change, &name, None, decide, Some(&request.revision)).await
}

async fn rollback(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<RollbackRequest>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let name: Group = at.get("group")?;
    let to = change.value.revision.as_ref();
    let decide = |on: &On<'_>| operations::rollback(on.state, to, on.act);
    api.decide_rollout(&change, &name, None, decide, to).await
}

async fn restart(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, reason) = (at.get("group")?, change.value.reason.clone());
    let decide = |on: &On<'_>| operations::restart(on.state, on.act);
    api.decide_rollout(&change, &name, reason, decide, None).await
}

async fn pause(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, reason) = (at.get("group")?, change.value.reason.clone());
    let decide = |on: &On<'_>| operations::pause(on.state, on.act);
    api.decide_rollout(&change, &name, reason, decide, None).await
}

async fn resume(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, reason) = (at.get("group")?, change.value.reason.clone());
    let decide = |on: &On<'_>| operations::resume(on.state, on.now, on.act);
    api.decide_rollout(&change, &name, reason, decide, None).await
}

async fn promote(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, reason) = (at.get("group")?, change.value.reason.clone());
    let decide = |on: &On<'_>| operations::promote(on.state, on.act);
    api.decide_rollout(&change, &name, reason, decide, None).await
}

/// Answers with the rollout that is ended, and which generation takes its place.
async fn abort(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, reason): (Group, _) = (at.get("group")?, change.value.reason.clone());
    let commits = api.commits_at_hand(&name, None);
    api.decide(&change, &name, reason, |on| {
        let draft = operations::abort(on.state, on.act)?;
        let answer = on.ended(&draft, &commits);
        Ok((draft, answer))
    })
    .await
}

async fn restart_one(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    order(&api, &at, &change, ToInstance::Restart, "ordered to restart").await
}

async fn retry(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    order(&api, &at, &change, ToInstance::Retry, "ordered to try again").await
}

async fn order(
    api: &Api,
    at: &At,
    change: &Change<Because>,
    order: ToInstance,
    what: &str,
) -> Result<Answer, Refused> {
    let (name, instance): (Group, Instance) = (at.get("group")?, at.get("instance")?);
    api.decide(change, &name, change.value.reason.clone(), |on| {
        let mut draft = operations::order(on.state, &instance, order)?;
        on.note(&mut draft, &format!("{instance} {what}"));
        Ok((draft, Answer::Done))
    })
    .await
}

async fn forget(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, instance): (Group, Instance) = (at.get("group")?, at.get("instance")?);
    let act = api.act(&change.caller);
    // Its name is free again: whoever joins next under it gets a token.
    let (ends, ()) = (api.keys().dismiss)((name.clone(), instance.clone()), act).await?;
    api.decide(&change, &name, change.value.reason.clone(), |on| {
        let draft = reports::left(on.state, &instance, None, on.act.at);
        let mut draft = draft.ok_or_else(|| unknown_instance(on.state, &instance))?;
        draft.join(ends.clone());
        on.note(&mut draft, &format!("{instance} forgotten"));
        Ok((draft, Answer::Done))
    })
    .await
}

async fn close(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, instance): (Group, Instance) = (at.get("group")?, at.get("instance")?);
    let reason = change.value.reason.clone().filter(|reason| !told::line(reason).is_empty());
    if reason.is_none() {
        let message = "a permit is closed by hand for a reason: its holder may swap all the same";
        return Err(Refused::of_field("reason", message).hint("--reason WHY"));
    }
    api.decide(&change, &name, reason, |on| {
        let mut draft = Draft::new();
        if !permits::close(on.state, &instance, &mut draft) {
            let message = format!("{instance} in {name} holds no permit");
            let hint = Some(format!("`towline permit list {name}` names those who do"));
            return Err(ErrorBody { code: Code::NotFound, message, hint, field: None });
        }
        on.note(&mut draft, &format!("the permit of {instance} closed"));
        Ok((draft, Answer::Done))
    })
    .await
}

async fn lift(
    State(api): State<Api>,
    at: At,
    asked: Asked,
    change: Change<Because>,
) -> Result<Answer, Refused> {
    asked.end()?;
    let (name, revision): (Group, Revision) = (at.get("group")?, at.get("revision")?);
    api.decide(&change, &name, change.value.reason.clone(), |on| {
        let mut draft = operations::lift(on.state, &revision)?;
        on.note(&mut draft, &format!("the quarantine of {} lifted", revision.short()));
        Ok((draft, Answer::Done))
    })
    .await
}
