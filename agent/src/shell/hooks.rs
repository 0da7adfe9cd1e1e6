//! The hooks of a recipe: what runs before and after a release is made live.
//!
//! ```text
//!   leave ─► journal ─► before ─┬─► swap, reload ─► proof ─► after ─┬─► health window
//!                               └─ fails: refused, nothing touched  └─ fails: restored
//! ```
//!
//! Why `before` runs between the journal and the swap. While a release is prepared it may be hours from its
//! turn: a migration must not run on the whole fleet while the canary bakes. Before the journal the leave
//! would run out: it is good for 30 s, and a migration may take longer. Once the swap stands in the journal
//! the leave is used, and nothing that serves has been touched.
//!
//! Invariants
//! - `before` has succeeded for whatever `current` names, save where that is gone back to; an agent that was
//!   killed in the middle of it runs it again.
//! - They belong to a deploy: what is restored, restarted, or was good here before a boot, runs none. Nothing
//!   that brings back what served may hang on more than it needs.
//! - They are contained like every command: the app's user, no environment, descriptor or socket of the
//!   agent's, nothing left behind.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towline_protocol::recipe::CommandLine;
use towline_protocol::report::Cause;
use tracing::{info, warn};

use super::Tools;
use super::activate::hinted;
use super::place::{directory, home, recipe_of};
use crate::journal::Release;
use crate::machine::Outcome;
use crate::process::{self, Environment, Job, Remains};

/// Whose hooks are due.
#[derive(Debug, Clone, Default)]
pub(crate) struct Due {
    /// What served before.
    pub(super) from: Option<Release>,
    /// Is it a deploy at all?
    pub(super) is_deploy: bool,
}

/// Runs the hook before `to` is made live, and notes that the one after it is due.
///
/// # Errors
///
/// The outcome of an activation that ends here; it has touched nothing.
pub(super) async fn before(
    tools: &Tools,
    to: &Release,
    due: Due,
    stop: &CancellationToken,
) -> Result<(), Outcome> {
    tools.hooks.replace(due.clone());
    // A second activation of one deploy: a restart, where a reload did not show. That `current` names it
    // says nothing by itself: an image has it so, and no hook has run there.
    let has_run = tools.has_hooked.borrow().as_ref() == Some(to)
        && to.own().is_some()
        && tools.store.live().as_ref() == to.own();
    if !due.is_deploy || has_run {
        return Ok(());
    }
    match run(tools, to, Hook::Before, &due, stop).await {
        Ok(()) => {
            tools.has_hooked.replace(Some(to.clone()));
            Ok(())
        }
        Err(detail) if stop.is_cancelled() => Err(Outcome::Untouched(detail)),
        Err(detail) => Err(Outcome::Refused(detail)),
    }
}

/// Runs the hook after `to` is live and its workers are there; returns what the proof was, or that the hook
/// failed.
pub(super) async fn after(
    tools: &Tools,
    to: &Release,
    proved: Outcome,
    stop: &CancellationToken,
) -> Outcome {
    let due = tools.hooks.take();
    if !due.is_deploy {
        return proved;
    }
    match run(tools, to, Hook::After, &due, stop).await {
        Ok(()) => proved,
        Err(detail) => Outcome::Failed(Cause::Activate, detail),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Before,
    After,
}

async fn run(
    tools: &Tools,
    to: &Release,
    hook: Hook,
    due: &Due,
    stop: &CancellationToken,
) -> Result<(), String> {
    // What is wrong with the recipe is told by the activation itself.
    let Ok(recipe) = recipe_of(tools, to) else { return Ok(()) };
    let (name, command, cwd) = match hook {
        Hook::Before => ("before", recipe.hooks.before, directory(tools, to)),
        Hook::After => ("after", recipe.hooks.after, home(tools, to)),
    };
    let Some(command) = command else { return Ok(()) };
    let job = Job {
        label: name,
        command: &command,
        cwd: &cwd,
        run_as: &tools.run_as,
        extra: facts(tools, to, due),
        deadline: recipe.hooks.timeout,
        capture: false,
        remains: Remains::End,
    };
    let started = Instant::now();
    match process::run(&job, stop).await {
        Ok(_) => {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            info!(revision = %to, hook = name, elapsed_ms, "hook has run");
            Ok(())
        }
        Err(error) => {
            let detail = failed(name, &command, &hinted(&error, error.hint()));
            if !stop.is_cancelled() {
                let output = error.log().unwrap_or_default();
                tools.saying.part(name, output);
                let touched = if hook == Hook::Before { "nothing live was" } else { "it is live" };
                warn!(revision = %to, hook = name, error = detail, output, touched, "hook failed");
            }
            Err(detail)
        }
    }
}

fn failed(name: &str, command: &CommandLine, detail: &str) -> String {
    format!("hooks.{name} `{command}`: {detail}")
}

/// What a hook is told, besides what every command of the app has.
fn facts(tools: &Tools, to: &Release, due: &Due) -> Environment {
    let revision = |release: &Release| release.own().map(|revision| revision.as_str().to_owned());
    let facts = [
        ("TOWLINE_REVISION", revision(to)),
        ("TOWLINE_PREVIOUS", due.from.as_ref().and_then(revision)),
        ("TOWLINE_GROUP", Some(tools.config.group.as_str().to_owned())),
        ("TOWLINE_INSTANCE", Some(tools.config.instance.as_str().to_owned())),
    ];
    let known = facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    known.collect()
}
