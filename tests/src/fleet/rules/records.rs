//! What must hold of the group's and its instances' records.

use towline_protocol::rollout::Batch;

use super::super::World;
use super::super::coordinator::What;
use super::super::network::Request;
use super::super::operators::Order as Ordered;
use super::Before;

impl World {
    /// A message that comes late does not bring back who has left.
    pub(super) fn check_come_back(&self, what: &What, before: &Before) -> Result<(), String> {
        for (instance, last) in &before.gone {
            if self.store.truth().member(instance).is_none() {
                continue;
            }
            let What::Request(sent) = what else {
                return Err(format!("{instance} comes back by itself"));
            };
            let seq = match &sent.request {
                Request::Poll(poll) => poll.seq,
                Request::Report(message) => message.seq,
                Request::Ask(_) | Request::Goodbye(_) | Request::Operate(_) => 0,
            };
            if seq <= *last {
                return Err(format!("{seq} brings back {instance}, which left with {last}"));
            }
        }
        Ok(())
    }

    /// What the group remembers is not lost; newborns' failures say what they say.
    pub(super) fn check_group(&self, what: &What, before: &Before) -> Result<(), String> {
        let (Some(old), Some(new)) = (&before.record, &self.store.truth().record) else {
            return Ok(());
        };
        let new = &new.value;
        if !old.proven.iter().all(|revision| new.is_proven(revision)) {
            return Err("what was group-proven is forgotten".to_owned());
        }
        let is_lift = matches!(what, What::Request(sent) if matches!(
            &sent.request,
            Request::Operate(operation) if matches!(operation.order, Ordered::Lift(_))
        ));
        let is_kept = |revision| new.is_quarantined(revision);
        if !is_lift && !old.quarantine.iter().all(|quarantined| is_kept(&quarantined.revision)) {
            return Err("a quarantine is lifted by nobody".to_owned());
        }
        let is_report = matches!(what, What::Request(sent)
            if matches!(sent.request, Request::Report(_)));
        if !is_report {
            return Ok(());
        }
        // "After K within a window": quarantine, or, of what is good on all others, another boot.
        let Some(last) = new.boot_failures.last() else { return Ok(()) };
        let same = new.boot_failures.iter().filter(|failed| failed.revision == last.revision);
        let is_enough = same.count() >= new.policy.boot_quarantine.instances as usize;
        let was = old.is_quarantined(&last.revision);
        let quarantined = new.is_quarantined(&last.revision);
        let spared = new.unbootable.as_ref() == Some(&last.revision);
        let is_proven = new.is_proven(&last.revision);
        if is_enough && ((is_proven && !spared) || (!is_proven && !quarantined)) {
            return Err(format!("{:?} go on to boot it", new.boot_failures));
        }
        if (!is_enough || is_proven) && quarantined && !was {
            return Err(format!("{:?} are too few for a quarantine", new.boot_failures));
        }
        if !is_enough && spared && old.unbootable != new.unbootable {
            return Err(format!("{:?} are too few to be spared it", new.boot_failures));
        }
        if new.boot_failures.len() > old.boot_failures.len()
            && !self.book.activated.contains(&last.revision)
        {
            return Err(format!("{last:?}, and it was never live"));
        }
        Ok(())
    }

    /// What an agent is told goes by its batch: to take the target only where that is open to it, to boot
    /// an unproven one only where it may take it, if there is a fallback.
    pub(in super::super) fn check_word(
        &self,
        index: usize,
        word: &towline_protocol::poll::Word,
    ) -> Result<(), String> {
        let (truth, name) = (self.store.truth(), &self.hosts[index].name);
        let Some(target) = &word.target else { return Ok(()) };
        let Some(rollout) = truth.going().filter(|rollout| rollout.order() == target.order) else {
            return Ok(());
        };
        let open = || rollout.batches.iter().filter(|batch| batch.is_open());
        let is_way_back = rollout.kind == towline_protocol::rollout::Kind::Rollback;
        let is_open = rollout.aside.contains(name)
            || open().any(|batch: &Batch| batch.members.contains(name))
            || (is_way_back && open().next().is_some());
        if word.duty == towline_protocol::poll::Duty::Take && !is_open {
            return Err(format!("{name} is told to take {target:?}: its batch is not open"));
        }
        let is_new = word.boot.is_some() && word.boot == target.revision && !rollout.is_proven;
        if is_new && target.fallback.is_some() && !is_open {
            return Err(format!("{name} is told to boot {target:?}, which nobody has proven"));
        }
        let is_spare = word.boot.is_none() || word.boot == target.fallback;
        if !rollout.is_proven && target.fallback.is_some() && !is_new && !is_spare {
            return Err(format!("{name} is told to boot {:?}", word.boot));
        }
        Ok(())
    }
}
