//! Watches a manager until its workers are replaced, or it is clear that they are not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use towline_protocol::recipe::Find;
use towline_protocol::report::Evidence;
use tracing::{debug, trace};

use super::judge::{Judgement, Pending, Snapshot, View, Worker, judge};
use super::turnover::Turnover;
use super::{Context, FindError, Finding, find};

/// The pause after the first look; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// The pause where each look runs a status command.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// How long a manager may be gone: a supervisor starts it again.
const GONE_MAX: Duration = Duration::from_secs(5);

/// How long processes must hold still before less than the best is believed of them. A worker that
/// was forked a moment ago has yet to change its directory, exec, or fork in its turn.
const STILL: Duration = Duration::from_secs(1);

/// What was shown of new workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// How well it is shown that they run the release.
    pub evidence: Evidence,
    /// How many the manager had by then; what they have forked in their turn is not counted.
    pub workers: usize,
}

/// Why it was not shown that the workers were replaced.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Processes from before the signal are still there.
    #[error(
        "the cluster manager did not replace its workers within {} s; still running from before: {}",
        timeout.as_secs_f64(), named(pids)
    )]
    NotReplaced {
        /// The processes that ought to be gone.
        pids: Vec<i32>,
        /// How long was waited.
        timeout: Duration,
    },
    /// Workers are new, and run in another release.
    #[error(
        "worker {pid} runs in {}, not in {}",
        directory.display(), release.display()
    )]
    KeptDirectory {
        /// The worker.
        pid: i32,
        /// Where it runs.
        directory: PathBuf,
        /// Where it ought to run.
        release: PathBuf,
    },
    /// The manager ended and did not come back.
    #[error("the cluster manager ended and was not back within {:.0} s", waited.as_secs_f64())]
    Gone {
        /// How long was waited.
        waited: Duration,
    },
    /// The manager ended, and nobody starts it again.
    #[error("the cluster manager has ended for good: {said}")]
    Over {
        /// What its supervisor says.
        said: String,
    },
    /// Workers die and are replaced again and again, or none is left.
    #[error("the workers did not hold still for {} s: they come and go", timeout.as_secs_f64())]
    NotSettled {
        /// How long was waited.
        timeout: Duration,
    },
    /// Workers of the release end as soon as they start.
    #[error("workers end as soon as they start: {ended} within {:.1} s", waited.as_secs_f64())]
    Crashing {
        /// How many were seen to end.
        ended: u32,
        /// How long was waited.
        waited: Duration,
    },
    /// It could not be learned whether the manager runs.
    #[error("could not find the cluster manager again")]
    Find {
        /// Why not.
        source: FindError,
    },
    /// The agent is to stop.
    #[error("waiting for new workers was cancelled")]
    Cancelled,
}

impl ProveError {
    /// Returns the next thing for an operator to try, or `None` where there is nothing.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ProveError::NotReplaced { .. } => Some(
                "check that manager.reload in towline.toml is the signal that makes this manager \
                 replace its workers, and raise manager.timeout_s if they end slowly"
                    .to_owned(),
            ),
            ProveError::KeptDirectory { .. } => Some(
                "let the manager follow `current` on a reload, not the release in which it was \
                 born (node: cluster.setupPrimary({ exec: process.env.PWD + '/worker.js', cwd: \
                 process.env.PWD }); gunicorn: chdir; puma: directory); restarted this time; until \
                 it is corrected, every release restarts the app"
                    .to_owned(),
            ),
            ProveError::Gone { .. }
            | ProveError::Over { .. }
            | ProveError::NotSettled { .. }
            | ProveError::Crashing { .. } => {
                Some("see the app's own log for why its processes end".to_owned())
            }
            ProveError::Find { source } => source.hint(),
            ProveError::Cancelled => None,
        }
    }
}

/// Names processes as in a sentence: `pids 7, 8 and 9`.
fn named(pids: &[i32]) -> String {
    let numbers: Vec<String> = pids.iter().map(i32::to_string).collect();
    match numbers.split_last() {
        None => "none".to_owned(),
        Some((last, [])) => format!("pid {last}"),
        Some((last, others)) => format!("pids {} and {last}", others.join(", ")),
    }
}

/// Watches the manager until its workers are replaced by ones of `release`.
///
/// - `before`: taken immediately before the signal, or [`Snapshot::nothing`] before a start.
/// - `timeout`: for all of it; `manager.timeout_s` of the recipe.
///
/// Finds the manager anew at every look, since a supervisor may have replaced it.
///
/// # Errors
///
/// See [`ProveError`]; the live release is then not shown to run.
pub async fn prove(
    find: &Find,
    context: &Context<'_>,
    before: &Snapshot,
    release: &Path,
    timeout: Duration,
) -> Result<Proof, ProveError> {
    let release = release.canonicalize().unwrap_or_else(|_| release.to_owned());
    let mut watch = Watch::new(timeout);
    let mut pause = PAUSE_MIN;
    loop {
        let look = look(find, context, before);
        let view = tokio::select! {
            biased;
            () = context.stop.cancelled() => return Err(ProveError::Cancelled),
            view = look => view,
        };
        match view {
            Ok(mut view) => {
                watch.notice(&mut view);
                if let Some(ended) = watch.count_ended(before, &view) {
                    let waited = watch.started.elapsed();
                    return Err(ProveError::Crashing { ended, waited });
                }
                let judgement = judge(before, &view, &release);
                trace!(?judgement, "looked at the workers");
                if let Some(result) = watch.decide(judgement, &view, &release) {
                    let workers = view.branches().len();
                    return result.map(|evidence| Proof { evidence, workers });
                }
            }
            Err(source) => watch.bear(source)?,
        }
        tokio::select! {
            biased;
            () = context.stop.cancelled() => return Err(ProveError::Cancelled),
            () = sleep(pause) => {}
        }
        let longest = match find {
            Find::Status(_) => STATUS_PAUSE,
            Find::PidFile(_) | Find::Unit(_) => PAUSE_MAX,
        };
        pause = (pause * 2).min(longest);
    }
}

/// Looks once.
async fn look(find: &Find, context: &Context<'_>, before: &Snapshot) -> Result<View, FindError> {
    let (manager, is_over) = match self::find(find, context).await? {
        Finding::Running(process) => (Some(process), None),
        Finding::Nothing(absence) => {
            debug!(%absence, "no manager");
            (None, absence.is_final().then(|| absence.to_string()))
        }
    };
    Ok(View { is_over, ..View::take(manager.as_ref(), before).await })
}

/// Watches, while an app is probed, whether its workers end as soon as they start.
#[derive(Debug)]
pub struct CrashWatch {
    started: Instant,
    turnover: Turnover,
}

impl CrashWatch {
    /// Begins to watch.
    #[must_use]
    pub fn begin() -> CrashWatch {
        CrashWatch { started: Instant::now(), turnover: Turnover::default() }
    }

    /// Looks once. Where the workers are in a crash loop, returns how many have ended.
    ///
    /// A manager that cannot be found adds nothing: the probes tell how the app is.
    pub async fn look(&mut self, find: &Find, context: &Context<'_>) -> Option<u32> {
        let view = look(find, context, &Snapshot::nothing()).await.ok()?;
        let present = view.present_branches();
        self.turnover.look(self.started.elapsed(), present, |worker| !worker.is_alive())
    }
}

/// What has to be remembered from look to look.
struct Watch {
    timeout: Duration,
    started: Instant,
    branches: BTreeSet<Worker>,
    /// Since when the branches are what they are.
    still_since: Instant,
    /// Since when the manager has been missing, or its pid file unusable.
    missing_since: Option<Instant>,
    turnover: Turnover,
}

impl Watch {
    fn new(timeout: Duration) -> Watch {
        let started = Instant::now();
        Watch {
            timeout,
            started,
            branches: BTreeSet::new(),
            still_since: started,
            missing_since: None,
            turnover: Turnover::default(),
        }
    }

    /// Says of a view whether it is settled.
    fn notice(&mut self, view: &mut View) {
        let branches = view.branches();
        if branches != self.branches || branches.is_empty() {
            self.branches = branches;
            self.still_since = Instant::now();
            return;
        }
        // A manager that was started a moment ago has yet to fork its workers.
        view.settled = !view.workers.is_empty() || self.still_since.elapsed() >= STILL;
    }

    /// Counts new branches that end; returns how many where they are in a crash loop.
    fn count_ended(&mut self, before: &Snapshot, view: &View) -> Option<u32> {
        let is_new = |worker: &Worker| !before.workers.contains(worker);
        let present = view.present_branches().filter(|(worker, _)| is_new(worker));
        self.turnover.look(self.started.elapsed(), present, |worker| !worker.is_alive())
    }

    /// Returns the end of the matter, or `None` to look again.
    fn decide(
        &mut self,
        judgement: Judgement,
        view: &View,
        release: &Path,
    ) -> Option<Result<Evidence, ProveError>> {
        let timeout = self.timeout;
        let late = self.started.elapsed() >= timeout;
        let still = late || self.still_since.elapsed() >= STILL;
        if judgement != Judgement::ManagerGone {
            self.missing_since = None;
        }
        match judgement {
            Judgement::Started => Some(Ok(Evidence::Started)),
            Judgement::Replaced if still => Some(Ok(Evidence::Replaced)),
            Judgement::KeptDirectory { pid, directory } if still => {
                let release = release.to_owned();
                Some(Err(ProveError::KeptDirectory { pid, directory, release }))
            }
            Judgement::ManagerGone => {
                if let Some(said) = &view.is_over {
                    return Some(Err(ProveError::Over { said: said.clone() }));
                }
                let waited = self.missing();
                (late || waited >= GONE_MAX).then_some(Err(ProveError::Gone { waited }))
            }
            Judgement::Pending(_) if !late => None,
            Judgement::Pending(Pending::Old(pids) | Pending::BornBefore(pids)) => {
                Some(Err(ProveError::NotReplaced { pids, timeout }))
            }
            Judgement::Pending(Pending::NoWorkers) => {
                let pids = view.manager.iter().map(|seen| seen.worker.pid).collect();
                Some(Err(ProveError::NotReplaced { pids, timeout }))
            }
            Judgement::Pending(Pending::Unsettled) => Some(Err(ProveError::NotSettled { timeout })),
            Judgement::Replaced | Judgement::KeptDirectory { .. } => None,
        }
    }

    /// Bears with a pid file that is being written, for as long as with a manager that is gone.
    fn bear(&mut self, source: FindError) -> Result<(), ProveError> {
        let late = self.started.elapsed() >= self.timeout;
        if late || self.missing() >= GONE_MAX {
            return Err(ProveError::Find { source });
        }
        Ok(())
    }

    fn missing(&mut self) -> Duration {
        self.missing_since.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_as_in_a_sentence() {
        let timeout = Duration::from_secs(90);
        for (pids, end) in [(vec![7], ": pid 7"), (vec![7, 8, 9], ": pids 7, 8 and 9")] {
            let said = ProveError::NotReplaced { pids, timeout }.to_string();
            assert!(said.ends_with(end), "{said}");
        }
    }
}
