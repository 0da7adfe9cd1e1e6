//! What must hold of the group's and its instances' records.

use std::time::Duration;

use towline_agent::journal::RUN_SHIFT;
use towline_coordinator::board::Board;
use towline_coordinator::records::{Draft, key};
use towline_protocol::fleet::BootFailure;
use towline_protocol::poll::{Goodbye, Message};

use super::super::coordinator::What;
use super::super::network::Request;
use super::super::operators::Order as Ordered;
use super::super::{World, group};
use super::permits::closes;
use super::{Before, key_of};

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
            // Whoever said goodbye comes back as another run of its agent, of which nothing is known yet.
            let record = self.store.truth().member(instance);
            let is_told = record.is_some_and(|record| record.report.is_some());
            let said_goodbye = last & u64::from(u32::MAX) == u64::from(u32::MAX);
            if matches!(sent.request, Request::Poll(_)) && said_goodbye && is_told {
                return Err(format!("{instance} comes back with what it told before"));
            }
        }
        Ok(())
    }

    /// What is told is taken up if it is news, and not otherwise; it closes the permit that it is about.
    pub(super) fn check_told(&self, what: &What, before: &Before) -> Result<(), String> {
        let What::Request(sent) = what else { return Ok(()) };
        let truth = self.store.truth();
        match &sent.request {
            Request::Goodbye(goodbye) => {
                let last = before.there.get(&goodbye.instance);
                if last.is_some_and(|last| goodbye.seq <= *last) {
                    return Err(format!("{goodbye:?} takes away who has come back with {last:?}"));
                }
            }
            Request::Report(message) => {
                let instance = &message.report.instance;
                let last = before.there.get(instance);
                if last.is_some_and(|last| message.seq <= *last) {
                    return Err(format!("{message:?} comes after {last:?}"));
                }
                if truth.member(instance).is_none() {
                    return Err(format!("{message:?} is taken up, and its instance is not there"));
                }
                let permit = truth.open.get(instance).map(|kept| &kept.value);
                if permit.is_some_and(|permit| closes(message, permit)) {
                    return Err(format!("{permit:?} stays open after {message:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// "Newborns fail on the target": each counts once, and nobody else does.
    pub(in super::super) fn check_newborn(
        board: &Board,
        message: &Message,
        draft: &Draft,
    ) -> Result<(), String> {
        let Some(state) = board.records().group(&group()) else { return Ok(()) };
        let Some(record) = state.record.as_ref().map(|kept| &kept.value) else { return Ok(()) };
        let report = &message.report;
        let target = state.target.as_ref().and_then(|kept| kept.value.target.revision.as_ref());
        let failed = report.failure.as_ref().filter(|failure| {
            let is_known = record.boot_failures.iter().any(|known| {
                known.instance == report.instance && known.revision == failure.revision
            });
            let is_it = target == Some(&failure.revision) && !failure.cause.is_before_swap();
            report.newborn && is_it && !is_known
        });
        let writes = draft.clone().into_commit().writes;
        let is_counted = writes.iter().any(|write| key_of(write) == key::group(&group()));
        if is_counted == (failed.is_some() && !writes.is_empty()) {
            return Ok(());
        }
        Err(format!("{message:?} is counted as a newborn's failure: {is_counted}"))
    }

    /// A goodbye that was acknowledged has taken its instance away, unless that is back already.
    pub(in super::super) fn check_gone(&self, goodbye: &Goodbye) -> Result<(), String> {
        let host = self.hosts.iter().find(|host| host.name == goodbye.instance);
        let is_back = host.is_some_and(|host| host.disk.journal.run > goodbye.seq >> RUN_SHIFT);
        if is_back || self.store.truth().member(&goodbye.instance).is_none() {
            return Ok(());
        }
        Err(format!("{goodbye:?} is acknowledged, and it is still there"))
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
        let window = Duration::from_secs(new.policy.boot_quarantine.window_s);
        let is_old = |failed: &BootFailure| last.at.since(failed.at) > window;
        if new.boot_failures.last() != old.boot_failures.last()
            && new.boot_failures.iter().any(is_old)
        {
            return Err("failures of newborns count for longer than they should".to_owned());
        }
        if new.boot_failures.len() > old.boot_failures.len()
            && !self.book.activated.contains(&last.revision)
        {
            return Err(format!("{last:?}, and it was never live"));
        }
        Ok(())
    }
}
