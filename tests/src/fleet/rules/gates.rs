//! What must hold of rollouts: how they change, what passes a gate, what leads back.

use towline_protocol::fleet::GroupRecord;
use towline_protocol::rollout::{Batch, Kind, Rollout, State};

use towline_coordinator::records::key;

use super::super::coordinator::What;
use super::super::{World, group};
use super::counted::check_stopped;
use super::{Before, Knowledge, bake_time, may_go_back, milliseconds};

impl World {
    pub(super) fn check_rollout(
        &mut self,
        what: &What,
        before: &Before,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        let Some(new) = self.store.truth().rollout.as_ref().map(|kept| kept.value.clone()) else {
            return Err("a rollout is thrown away".to_owned());
        };
        let old = before.rollout.as_ref();
        let is_by_gate = matches!(what, What::Step);
        match old.filter(|old| old.order() == new.order()) {
            Some(old) => {
                check_state(old, &new, is_by_gate)?;
                check_history(old, &new, is_by_gate)?;
                check_gates(old, &new, knowledge)?;
                if is_by_gate {
                    self.check_gate(old, &new, knowledge)?;
                }
            }
            None => {
                self.check_begun(old, &new, is_by_gate)?;
                let past = old.filter(|_| is_by_gate).map(|old| (old, self.past(old)));
                if let Some((old, past)) = past {
                    self.check_gate(old, &past?, knowledge)?;
                }
            }
        }
        if new.state == State::Converged {
            let passed = |batch: &Batch| batch.passed_ms.is_some();
            if new.batches.is_empty() || !new.batches.iter().all(passed) || new.only.is_some() {
                return Err("converged, and not all of its gates have passed".to_owned());
            }
        }
        let is_over = new.state != State::Paused && self.book.paused == Some(new.order());
        if is_over && is_by_gate {
            return Err("what was paused goes on by itself".to_owned());
        }
        if self.book.paused.is_some_and(|paused| paused != new.order()) {
            self.book.paused = None;
        }
        if let (What::Request(sent), State::Paused) = (what, new.state)
            && Self::is_order(sent)
        {
            // Stored already: whoever is told so later is told the truth.
            self.book.paused = Some(new.order());
        }
        Ok(())
    }

    /// A rollout as it was kept when it ended.
    fn past(&self, rollout: &Rollout) -> Result<Rollout, String> {
        let at = key::past(&group(), rollout.order().generation);
        let value = self.store.value(&at).ok_or("a rollout that has ended is not kept")?;
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }

    /// What the gate does by itself: it counts who has failed, sets aside who is silent, stops.
    fn check_gate(
        &self,
        old: &Rollout,
        new: &Rollout,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        for (instance, failed) in &new.failures {
            if old.failures.contains_key(instance) {
                continue;
            }
            if knowledge.counted.failed.get(instance) != Some(&failed.is_revision) {
                return Err(format!("{instance} is counted for nothing: {failed:?}"));
            }
        }
        for instance in new.aside.difference(&old.aside) {
            if !knowledge.counted.away.contains(instance) {
                return Err(format!("{instance} is set aside, and is not away"));
            }
        }
        if old.state == State::Running && matches!(new.state, State::Halted | State::Aborted) {
            self.check_stop(old, new, knowledge)?;
        }
        Ok(())
    }

    fn check_stop(
        &self,
        old: &Rollout,
        new: &Rollout,
        knowledge: &Knowledge,
    ) -> Result<(), String> {
        let record = self.store.truth().record.as_ref().ok_or("the group is gone")?;
        let revision = old.revision();
        let is_quarantined = revision.is_some_and(|own| record.value.is_quarantined(own));
        let is_banned = is_quarantined && !old.is_proven;
        if new.state == State::Halted {
            return check_stopped(old, new, knowledge, is_banned);
        }
        // "Quarantine: the revision, when the gate fails", if anything says something against it.
        let is_at_fault =
            new.failures.values().any(|failed| failed.is_revision && !failed.is_excused);
        let is_known = new.reason.starts_with("the revision failed");
        if is_quarantined != is_at_fault && !is_known {
            return Err(format!("{revision:?} is in quarantine: {is_quarantined}"));
        }
        check_stopped(old, new, knowledge, is_known)
    }

    /// A rollout takes the place of another one.
    fn check_begun(
        &self,
        old: Option<&Rollout>,
        new: &Rollout,
        is_by_gate: bool,
    ) -> Result<(), String> {
        let truth = self.store.truth();
        if new.state != State::Running || !new.batches.is_empty() {
            return Err("a rollout begins in the middle".to_owned());
        }
        if let Some(old) = old.filter(|old| !old.state.is_ended()) {
            // "A release during a running one is refused; a release replaces a halted one."
            if new.kind != Kind::Rollback && old.state != State::Halted {
                return Err(format!("a {:?} replaces one that is {:?}", new.kind, old.state));
            }
            // "Nothing rolls back a rollback."
            if is_by_gate && (!may_go_back(old) || old.state != State::Running) {
                return Err(format!(
                    "a {:?} that is {:?} leads back by itself",
                    old.kind, old.state
                ));
            }
        }
        let record = &truth.record.as_ref().ok_or("the group is gone")?.value;
        // "Quarantine: the revision, when the gate fails", once nobody goes on with it.
        if let Some(old) = old.filter(|old| old.culprit.is_some() && old.state == State::Halted)
            && old.revision() != new.revision()
            && !old.revision().is_some_and(|revision| record.is_quarantined(revision))
        {
            return Err(format!("what has failed is not in quarantine: {:?}", old.culprit));
        }
        let target = &new.target;
        if target.revision.is_some() == target.not.is_some() {
            return Err(format!("{target:?} leads nowhere"));
        }
        let is_banned = |revision| record.is_quarantined(revision);
        if let Some(fallback) = &target.fallback
            && (target.revision.as_ref() == Some(fallback)
                || !record.is_proven(fallback)
                || is_banned(fallback))
        {
            return Err(format!("{} is no fallback for {target:?}", fallback.short()));
        }
        match (new.kind, old) {
            (Kind::Rollback, Some(old)) => check_way_back(old, new, record),
            (Kind::Release, _) if new.revision().is_some_and(is_banned) => {
                Err("a release of what is in quarantine".to_owned())
            }
            (Kind::Release, Some(old))
                if old.state.is_ended() && old.revision() == new.revision() =>
            {
                Err("a release of what is the target already".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Where a way back leads: to what is proven and not in quarantine; away from what it leaves.
fn check_way_back(old: &Rollout, new: &Rollout, record: &GroupRecord) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("a way back to {:?}: {why}", new.target));
    let is_left = old.revision().is_some() && old.revision() == new.revision();
    // "Whoever was not restarted stays as it is."
    if old.kind == Kind::Restart && !old.state.is_ended() && is_left {
        let is_undone = new.target.restart + 1 == old.target.restart;
        return if is_undone { Ok(()) } else { wrong("the restart is not taken back") };
    }
    if is_left {
        return wrong("it is what is left");
    }
    let Some(revision) = new.revision() else { return Ok(()) };
    if !record.is_proven(revision) || record.is_quarantined(revision) {
        return wrong("no rollout to it converged, or it is in quarantine");
    }
    // What was at rest was good; what was on its way is not to be booted by anybody.
    let is_cut_off = !old.state.is_ended();
    if is_cut_off && new.target.fallback.is_some() && new.target.fallback.as_ref() == old.revision()
    {
        return wrong("its own way back is what is left");
    }
    Ok(())
}

fn check_state(old: &Rollout, new: &Rollout, is_by_gate: bool) -> Result<(), String> {
    use State::{Converged, Halted, Paused, Running};
    let is_legal = match (old.state, new.state) {
        (old, new) if old == new => true,
        (Running, Paused) => !is_by_gate || new.only.is_some(),
        (Running, Halted | Converged) => is_by_gate,
        (Paused | Halted, Running) => !is_by_gate,
        _ => false,
    };
    if is_legal {
        return Ok(());
    }
    Err(format!(
        "from {:?} to {:?}, by {}",
        old.state,
        new.state,
        if is_by_gate { "the gate" } else { "order" }
    ))
}

/// What is decided stays so: open batches, passed gates, failures.
fn check_history(old: &Rollout, new: &Rollout, is_by_gate: bool) -> Result<(), String> {
    for (old, new) in old.batches.iter().zip(&new.batches) {
        // A batch that is refilled begins anew.
        let is_refilled = new.is_open() && new.bakes_ms.is_none() && new.members != old.members;
        let is_kept = !old.is_open() || old.opened_ms == new.opened_ms || is_refilled;
        if !is_kept || (old.passed_ms.is_some() && old.passed_ms != new.passed_ms) {
            return Err(format!("{} is not what it was", old.name));
        }
    }
    let opened = old.batches.iter().filter(|batch| batch.is_open()).count();
    if new.batches.iter().filter(|batch| batch.is_open()).count() < opened {
        return Err("an open batch is gone".to_owned());
    }
    for (index, batch) in new.batches.iter().enumerate() {
        let passed = |batch: &Batch| batch.passed_ms.is_some();
        if batch.is_open() && !new.batches[..index].iter().all(passed) {
            return Err(format!("{} is open before the gate before it", batch.name));
        }
    }
    // "Failures stay counted."
    for (instance, failed) in &old.failures {
        let is_kept = new.failures.get(instance).is_some_and(|kept| {
            kept.batch_index == failed.batch_index
                && (kept.is_excused == failed.is_excused || !is_by_gate)
        });
        if !is_kept {
            return Err(format!("the failure of {instance} is forgotten"));
        }
    }
    for (instance, failed) in &new.failures {
        let batch = new.batches.get(failed.batch_index as usize);
        if !batch.is_some_and(Batch::is_open) {
            return Err(format!("{instance} failed in a batch that is not open"));
        }
    }
    Ok(())
}

/// "No data never passes a gate": whoever is in the batch is healthy and there, or has failed, or has left.
fn check_gates(old: &Rollout, new: &Rollout, knowledge: &Knowledge) -> Result<(), String> {
    for (index, batch) in new.batches.iter().enumerate() {
        let was = old.batches.get(index);
        if batch.passed_ms.is_none() || was.is_some_and(|was| was.passed_ms.is_some()) {
            continue;
        }
        let wrong = |why: &str| Err(format!("{} passes: {why}", batch.name));
        if new.state != State::Running {
            return wrong("the rollout is not running");
        }
        for member in &batch.members {
            let is_settled = knowledge.taken.contains(member)
                || new.failures.contains_key(member)
                || !knowledge.members.contains(member);
            if !is_settled {
                return wrong(&format!("{member} is not healthy, or not there"));
            }
        }
        let max = &new.policy.failures_max;
        let is_canary = batch.share_index == 0 && new.kind != Kind::Rollback;
        let own_max = if is_canary { max.canary } else { max.batch };
        let counted = || new.failures.values().filter(|failed| !failed.is_excused);
        let own = counted().filter(|failed| failed.batch_index as usize == index).count();
        if own > own_max as usize || counted().count() > max.rollout as usize {
            return wrong("more have failed than are tolerated");
        }
        let has_failed = |member| new.failures.get(member).is_some_and(|failed| !failed.is_excused);
        let is_healthy = |member| knowledge.taken.contains(member) && !has_failed(member);
        if !batch.members.iter().any(is_healthy) {
            // Nobody is left in it: others have proven the revision, and there is nobody to refill it with.
            if new.batches[..index].is_empty() {
                return wrong("nobody is healthy");
            }
            continue;
        }
        let (Some(bakes_ms), Some(passed_ms)) = (was.and_then(|was| was.bakes_ms), batch.passed_ms)
        else {
            return wrong("it has not baked");
        };
        let whole = bake_time(new, batch);
        let baked = milliseconds(passed_ms.saturating_sub(bakes_ms));
        if baked < whole && !batch.is_promoted {
            return wrong(&format!("it has baked for {baked:?} of {whole:?}"));
        }
    }
    Ok(())
}
