//! Figures for Prometheus: what the desk holds at this moment, and what was asked so far.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use towline_protocol::api::{Code, Counts};

use super::Api;
use super::errors::Refused;
use crate::desk::Figures;
use crate::fleet;

/// The form that is spoken.
const FORM: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    route: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGroup {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    group: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

/// How many requests were answered, by their routes and answers.
#[derive(Debug, Default)]
pub(crate) struct Requests(Family<Asked, Counter<u64, AtomicU64>>);

/// Counts a request; by the pattern of its route, so that no client makes up names.
pub(crate) async fn counted(State(api): State<Api>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "none".to_owned());
    let answer = next.run(request).await;
    let code = answer.status().as_u16();
    api.requests().0.get_or_create(&Asked { route, code }).inc();
    answer
}

/// `GET /metrics`.
pub(crate) async fn told(State(api): State<Api>) -> Result<Response, Refused> {
    let mut registry = Registry::with_prefix("towline");
    let requests = api.requests().0.clone();
    registry.register("requests", "Requests, by route and answer", requests);
    desk(&api, &mut registry);
    let mut out = String::new();
    text::encode(&mut out, &registry)
        .map_err(|_| Refused::new(Code::Internal, "the figures could not be written"))?;
    Ok(([(CONTENT_TYPE, FORM)], out).into_response())
}

/// Reads what the desk holds.
fn desk(api: &Api, registry: &mut Registry) {
    let Figures { commits, conflicts, parked } = api.desk().figures();
    let commits = ConstCounter::new(commits);
    registry.register("store_commits", "Commits", commits);
    let conflicts = ConstCounter::new(conflicts);
    registry.register("store_conflicts", "Commits that lost a race", conflicts);
    let claims = ConstCounter::new(api.claims().count());
    registry.register("claims_refused", "Joins under a name that another has", claims);
    let polls = Gauge::<i64>::default();
    polls.set(i64::try_from(parked).unwrap_or(i64::MAX));
    registry.register("polls_parked", "Polls that wait for news", polls);

    let states = Family::<OfState, Gauge>::default();
    let instances = Family::<OfStatus, Gauge>::default();
    let permits = Family::<OfGroup, Gauge>::default();
    let generations = Family::<OfGroup, Gauge>::default();
    let groups: Vec<_> =
        api.desk().read(|records| records.groups().map(|state| state.group.clone()).collect());
    let mut going: BTreeMap<&'static str, i64> =
        ["running", "paused", "halted"].map(|state| (state, 0)).into();
    for group in &groups {
        let seen = api.look(group, &BTreeMap::new(), |look| {
            let state = look.state.going().map(|rollout| rollout.state.as_str());
            let counts = fleet::counts(look.state, look.attendance);
            Ok((state, counts, look.state.open.len(), look.state.order().generation))
        });
        let Ok((state, counts, open, generation)) = seen else { continue };
        if let Some(state) = state {
            *going.entry(state).or_default() += 1;
        }
        let group = group.to_string();
        for (status, number) in by_status(&counts) {
            let of = OfStatus { group: group.clone(), status };
            instances.get_or_create(&of).set(number.into());
        }
        let of = OfGroup { group };
        permits.get_or_create(&of).set(i64::try_from(open).unwrap_or(i64::MAX));
        generations.get_or_create(&of).set(i64::try_from(generation).unwrap_or(i64::MAX));
    }
    for (state, number) in going {
        states.get_or_create(&OfState { state }).set(number);
    }
    registry.register("rollouts", "Rollouts that go on or stand, by state", states);
    registry.register("instances", "Instances, by group and status", instances);
    registry.register("permits_open", "Open permits", permits);
    registry.register("target_generation", "The generation of each group's target", generations);
}

fn by_status(counts: &Counts) -> [(&'static str, u32); 6] {
    [
        ("converged", counts.converged),
        ("stale", counts.stale),
        ("degraded", counts.degraded),
        ("unhealthy", counts.unhealthy),
        ("unknown", counts.unknown),
        ("silent", counts.silent),
    ]
}
