//! What is thrown away when its time is over, and what is fetched before it is asked for.
//!
//! ```text
//!   every minute   mirrors that have not been fetched for ten: subjects and distances for views
//!   every hour     idempotency keys of yesterday, instances that left, rollouts of long ago, and mirrors
//!                  that no group names
//! ```
//!
//! So the store's size depends on what lives, and not on whatever was. Nothing here is needed for a rollout
//! to go on: what fails is told, and tried again next time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use towline_protocol::api::ErrorBody;
use towline_protocol::ids::Group;
use towline_protocol::rollout::Rollout;
use tracing::{debug, info, warn};

use crate::auth;
use crate::desk::Desk;
use crate::error::chain;
use crate::http::idempotency;
use crate::mirror::Mirror;
use crate::records::{Draft, Kept};
use crate::rollout::{operations, reports};
use crate::store::{Store, Write};

/// How often mirrors are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How old a mirror may grow unasked.
const MIRROR_AGE_MAX: Duration = Duration::from_secs(600);

/// How many mirrors are fetched at a time, so that one slow origin holds up nobody else's.
const FETCHES_MAX: usize = 4;

/// How often things are thrown away.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// For how long the token is kept of an instance that is not known, after it was made or used: a note of its
/// use is coarse.
const TOKEN_KEPT: Duration = auth::USED_EVERY.saturating_mul(2);

/// How many keys one commit removes.
const REMOVED_MAX: usize = 40;

/// Keeps things up until told to stop.
pub async fn keep(desk: Desk, mirror: Arc<Mirror>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        // Each has its own time: what waits for an origin holds up nothing else.
        () = fetches(&desk, &mirror) => {}
        () = sweeps(&desk, &mirror) => {}
    }
}

fn every(period: Duration) -> Interval {
    let mut every = tokio::time::interval(period);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

async fn fetches(desk: &Desk, mirror: &Arc<Mirror>) {
    let mut every = every(LOOK_EVERY);
    loop {
        every.tick().await;
        let mut under_way = JoinSet::new();
        for url in named(desk) {
            if under_way.len() >= FETCHES_MAX {
                under_way.join_next().await;
            }
            let mirror = Arc::clone(mirror);
            under_way.spawn(async move {
                if let Err(error) = mirror.refresh(&url, MIRROR_AGE_MAX).await {
                    debug!(error = chain(&error), hint = error.hint(), "a mirror was not fetched");
                }
            });
        }
        while under_way.join_next().await.is_some() {}
    }
}

async fn sweeps(desk: &Desk, mirror: &Arc<Mirror>) {
    let mut every = every(SWEEP_EVERY);
    loop {
        every.tick().await;
        if let Err(error) = sweep(desk).await {
            warn!(error = error.message, "could not throw away what is over");
        }
        let (mirror, named) = (Arc::clone(mirror), named(desk));
        match tokio::task::spawn_blocking(move || mirror.keep_only(&named)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(clones)) => info!(clones, "thrown away mirrors that no group names"),
            Ok(Err(error)) => {
                warn!(error = chain(&error), hint = error.hint(), "could not throw away mirrors");
            }
        }
    }
}

/// The repositories that groups have mirrored.
fn named(desk: &Desk) -> BTreeSet<String> {
    desk.read(|records| {
        let policies = records.groups().filter_map(|state| state.record.as_ref());
        let mirrored = policies.map(|record| &record.value.policy).filter(|own| own.has_mirror());
        mirrored.filter_map(|policy| policy.repository.clone()).collect()
    })
}

pub(crate) async fn sweep(desk: &Desk) -> Result<(), ErrorBody> {
    let keys = idempotency::sweep(desk).await?;
    let (groups, orphans): (Vec<Group>, Vec<Draft>) = desk.read(|records| {
        let groups = records.groups().map(|state| state.group.clone());
        (groups.collect(), records.removed().flat_map(reports::orphans).collect())
    });
    let mut instances = 0;
    for draft in orphans {
        desk.save(draft).await?;
    }
    for group in groups {
        let drafts = desk.read(|records| {
            records.group(&group).map(|state| reports::forgotten(state, desk.now()))
        });
        for draft in drafts.into_iter().flatten() {
            instances += 1;
            desk.save(draft).await?;
        }
    }
    let tokens = sweep_tokens(desk).await?;
    let rollouts = sweep_past(desk).await?;
    if keys + instances + tokens + rollouts > 0 {
        info!(keys, instances, tokens, rollouts, "thrown away what is over");
    }
    Ok(())
}

/// The tokens of agents whose instances have left, and are forgotten; or never came.
async fn sweep_tokens(desk: &Desk) -> Result<usize, ErrorBody> {
    let mut removed = 0;
    for agent in list(desk, "agent/").await? {
        let mut parts = agent.key.split('/').skip(1);
        let (group, instance) = (parts.next(), parts.next());
        let (Some(Ok(group)), Some(Ok(instance))) =
            (group.map(str::parse::<Group>), instance.map(str::parse))
        else {
            continue;
        };
        let is_known = desk.read(|records| {
            records.group(&group).is_some_and(|state| state.instances.contains_key(&instance))
        });
        let key = auth::token_key_of(&agent).ok();
        let token = match &key {
            Some(key) => desk.kept::<auth::TokenRecord>(key).await?,
            None => None,
        };
        // Whoever has joined, or asked something, a moment ago is not among the records yet.
        let last = token.as_ref().map(|kept| kept.value.used.unwrap_or(kept.value.created));
        if is_known || last.is_some_and(|last| desk.now().since(last) < TOKEN_KEPT) {
            continue;
        }
        let mut draft = Draft::new();
        draft.on(agent.key.clone(), Some(&Kept { version: agent.version, value: () }));
        if let Some(key) = key {
            // Used meanwhile, it is another one.
            draft.on(key, token.as_ref());
        }
        for write in auth::dismiss(&agent).unwrap_or_default() {
            if let Write::Delete { key } = write {
                draft.delete(key);
            }
        }
        removed += usize::from(desk.save(draft).await?);
    }
    Ok(removed)
}

async fn sweep_past(desk: &Desk) -> Result<usize, ErrorBody> {
    let past: Vec<_> = list(desk, "past/")
        .await?
        .into_iter()
        .filter_map(|entry| {
            let rollout: Rollout = serde_json::from_slice(&entry.value).ok()?;
            Some((entry.key, rollout.ended?))
        })
        .collect();
    let over = operations::outdated(&past, desk.now());
    for some in over.chunks(REMOVED_MAX) {
        let mut draft = Draft::new();
        for key in some {
            draft.delete(key.clone());
        }
        desk.save(draft).await?;
    }
    Ok(over.len())
}

async fn list(desk: &Desk, prefix: &str) -> Result<Vec<crate::store::Entry>, ErrorBody> {
    let listed = desk.store().list(prefix).await;
    Ok(listed.map_err(crate::desk::refusal)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::key;
    use crate::store::embedded::Embedded;
    use towline_protocol::fleet::{GroupRecord, InstanceRecord};
    use towline_protocol::policy::Policy;
    use towline_protocol::time::Timestamp;

    #[tokio::test]
    async fn what_is_over_is_thrown_away_and_what_lives_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let store = Embedded::open(&dir.path().join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 50, stop.clone()).await.unwrap();
        let group: Group = "web".parse().unwrap();
        let golden = include_str!("../../protocol/golden/records-1.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let here: InstanceRecord = serde_json::from_value(golden["instance"].clone()).unwrap();
        let gone = |name: &str, gone| InstanceRecord {
            instance: name.parse().unwrap(),
            gone: Some(gone),
            ..here.clone()
        };
        let now = desk.now();
        let long_ago = Timestamp(now.0 - 24 * 3_600_000);
        let rollout = include_str!("../../protocol/golden/rollout-1.json");
        let mut rollout: Rollout = serde_json::from_str(rollout).unwrap();
        let mut draft = Draft::new();
        draft.put(key::group(&group), &GroupRecord::new(group.clone(), Policy::default()));
        for record in [&here, &gone("i-now", now), &gone("i-then", long_ago)] {
            draft.put(key::instance(&group, &record.instance), record);
        }
        rollout.ended = Some(now);
        draft.put(key::past(&group, 2), &rollout);
        rollout.ended = Some(Timestamp(1));
        draft.put(key::past(&group, 1), &rollout);
        assert!(desk.save(draft).await.unwrap());

        sweep(&desk).await.unwrap();
        let keys = |entries: Vec<crate::store::Entry>| -> Vec<String> {
            entries.into_iter().map(|entry| entry.key).collect()
        };
        let left = keys(list(&desk, "instance/").await.unwrap());
        assert_eq!(left, ["instance/web/i-0a17", "instance/web/i-now"]);
        let left = keys(list(&desk, "past/").await.unwrap());
        assert_eq!(left, [key::past(&group, 2)]);
        stop.cancel();
    }

    #[tokio::test]
    async fn a_token_goes_once_its_instance_is_not_known_and_nobody_has_used_it_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let store = Embedded::open(&dir.path().join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 50, stop.clone()).await.unwrap();
        let group: Group = "web".parse().unwrap();
        let now = desk.now();
        let long_ago = Timestamp(now.0 - 3 * 3_600_000);
        let cases = [
            ("i-here", long_ago, Some(long_ago), true),
            ("i-polls-first", long_ago, Some(now), true),
            ("i-joins", now, None, true),
            ("i-left", long_ago, Some(long_ago), false),
            ("i-never-came", long_ago, None, false),
        ];
        let mut draft = Draft::new();
        draft.put(key::group(&group), &GroupRecord::new(group.clone(), Policy::default()));
        let golden = include_str!("../../protocol/golden/records-1.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let here: InstanceRecord = serde_json::from_value(golden["instance"].clone()).unwrap();
        draft.put(key::instance(&group, &"i-here".parse().unwrap()), &here);
        for (name, created, used, _) in &cases {
            let instance: towline_protocol::ids::Instance = name.parse().unwrap();
            let named = auth::AgentRecord { version: 1, sha256: format!("hash-{name}") };
            draft.put(auth::agent_key(&group, &instance), &named);
            let holder = auth::Holder::Agent { group: group.clone(), instance };
            let (created, used) = (*created, *used);
            let token = auth::TokenRecord { version: 1, holder, created, expires: None, used };
            draft.put(format!("{}hash-{name}", auth::TOKENS), &token);
        }
        assert!(desk.save(draft).await.unwrap());
        assert_eq!(sweep_tokens(&desk).await.unwrap(), 2);
        for (name, _, _, is_kept) in cases {
            let token: Option<auth::TokenRecord> =
                desk.load(&format!("{}hash-{name}", auth::TOKENS)).await.unwrap();
            assert_eq!(token.is_some(), is_kept, "{name}");
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn an_origin_that_says_nothing_holds_up_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let store = Embedded::open(&dir.path().join("store"), 1_790_000_000).unwrap();
        let desk = Desk::open(store, 50, stop.clone()).await.unwrap();
        // It takes connections, and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/web.git", silent.local_addr().unwrap());
        let group: Group = "web".parse().unwrap();
        let policy = Policy { repository: Some(url), ..Policy::default() };
        assert!(policy.has_mirror());
        let mut draft = Draft::new();
        draft.put(key::group(&group), &GroupRecord::new(group.clone(), policy));
        let rollout = include_str!("../../protocol/golden/rollout-1.json");
        let mut rollout: Rollout = serde_json::from_str(rollout).unwrap();
        rollout.ended = Some(Timestamp(1));
        draft.put(key::past(&group, 1), &rollout);
        assert!(desk.save(draft).await.unwrap());
        let mut config = crate::mirror::MirrorConfig::new(dir.path().join("mirrors"));
        config.environment = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())];
        let mirror = Arc::new(Mirror::new(config).unwrap());
        let keeps = tokio::spawn(keep(desk.clone(), mirror, stop.clone()));
        let swept = async {
            while !list(&desk, "past/").await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept).await.expect("it is swept meanwhile");
        stop.cancel();
        keeps.await.unwrap();
    }
}
