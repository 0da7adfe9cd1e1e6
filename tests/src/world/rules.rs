//! What must hold in the simulated world: before a task begins, after each step, and in the end.

use std::collections::BTreeSet;

use towline_agent::journal::{Journal, Release, Swap};
use towline_agent::machine::{How, Task, Window};
use towline_protocol::ids::Revision;
use towline_protocol::report::{Health, Phase, Report};

use super::{Character, World};

impl World {
    /// Nothing is begun that must not be.
    pub(super) fn check_begin(&self, task: &Task) -> Result<(), String> {
        if let Some((_, running)) = &self.task {
            return Err(format!("{task:?} begins while {running:?} runs"));
        }
        match task {
            Task::Prepare { unless_like: Some(live), .. } => {
                if self.running_own() != Some(live) && !self.has_died {
                    return Err(format!("{} stands in, and does not run", live.short()));
                }
                let journal = self.machine.journal();
                let wanted = journal.target.as_ref().map_or(0, |target| target.restart);
                if wanted > journal.restart {
                    return Err("what serves stands in for a restart".to_owned());
                }
            }
            Task::Ask(order) => {
                let newest = self.machine.journal().target.as_ref().map(|target| target.order);
                if newest != Some(*order) {
                    return Err(format!(
                        "leave is asked for {order}, and {newest:?} is the newest"
                    ));
                }
                let serves = self.running.is_some() || self.has_died;
                if !serves && self.machine.journal().swap.is_none() {
                    return Err("leave is asked for, and nothing serves".to_owned());
                }
            }
            Task::Journal(journal) => {
                let swap = journal.swap.as_ref().ok_or("a journal that allows no swap")?;
                self.check_swap(journal, swap)?;
            }
            Task::Activate { to, how, is_deploy, .. } => {
                self.check_activate(to, *how)?;
                self.check_hooks(to, *is_deploy)?;
            }
            Task::Probe(release, Window::Brief) | Task::Check(release, Window::Brief) => {
                let journal = self.machine.journal();
                let restores = journal.swap.as_ref().is_some_and(|swap| swap.failed.is_some());
                if !restores && !journal.is_known(release) {
                    return Err(format!("a brief look proves nothing of {}", release.short()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Does what is to be replaced serve, so that it takes leave?
    pub(super) fn needs_leave(&self) -> bool {
        // What was there before serves, whatever the agent has seen of it.
        let is_good = |own: &Release| *own == Release::Adopted || self.journal.is_known(own);
        let serves = self.running.as_ref().is_some_and(is_good);
        serves && self.found_running
    }

    fn check_swap(&self, journal: &Journal, swap: &Swap) -> Result<(), String> {
        let restarts = swap.from.as_ref() == Some(&swap.to);
        let is_ordered = swap.ordered > self.journal.orders.restart;
        // What came up late is accepted, and that may not have reached the disk.
        // A restart that was ordered is of whatever serves.
        let is_of_live = restarts || self.running.as_ref() == Some(&swap.to);
        let is_anew = !(is_of_live && is_ordered);
        let is_rejected = (!self.is_behind
            && self.journal.rejection(swap.order, &swap.to).is_some())
            || journal.rejection(swap.order, &swap.to).is_some();
        if is_anew && is_rejected {
            return Err("a rejected revision is to be activated again".to_owned());
        }
        if restarts && !is_ordered && swap.restart <= self.journal.restart.max(self.started_for) {
            return Err("a restart that nobody ordered, or that was carried out".to_owned());
        }
        let is_better =
            |revision: &&Revision| !swap.to.is(revision) && self.releases.contains(*revision);
        if let Some(from) = &swap.from
            && !restarts
            && !journal.is_known(from)
            && let Some(better) = journal.proven.iter().find(is_better)
        {
            return Err(format!("back to {}, and {} is proven", from.short(), better.short()));
        }
        Ok(())
    }

    fn check_activate(&self, to: &Release, how: How) -> Result<(), String> {
        let swap = self.journal.swap.as_ref().ok_or("nothing was journalled")?;
        let restores = swap.from.as_ref() == Some(to);
        if swap.to != *to && !restores {
            return Err(format!("{} is not what was journalled", to.short()));
        }
        if !self.is_on_disk(to) {
            return Err(format!("{} is not on disk", to.short()));
        }
        if swap.failed.is_none() && swap.resumes > 3 {
            return Err("what killed the agent three times is activated again".to_owned());
        }
        let is_ordered = swap.ordered > self.journal.orders.restart;
        let is_order = (swap.restart > self.journal.restart || is_ordered) && swap.from.is_some();
        let is_of_adopted = [Some(&swap.to), swap.from.as_ref()].contains(&Some(&Release::Adopted));
        if is_of_adopted && how != How::Restart {
            return Err("what was there before is told to reload".to_owned());
        }
        if is_order && swap.to == *to && how != How::Restart {
            return Err("an order to restart is carried out by a reload".to_owned());
        }
        Ok(())
    }

    /// What brings back what served hangs on no hook.
    fn check_hooks(&self, to: &Release, is_deploy: bool) -> Result<(), String> {
        let swap = self.journal.swap.as_ref().ok_or("nothing was journalled")?;
        let restores = swap.failed.is_some();
        let restarts = swap.from.as_ref() == Some(to);
        if is_deploy && (restores || restarts) {
            return Err(format!("hooks are due, and {} was there before", to.short()));
        }
        Ok(())
    }

    fn is_on_disk(&self, release: &Release) -> bool {
        release.own().map_or(self.has_adopted, |revision| self.releases.contains(revision))
    }

    /// `is_news`: what stands on disk was all that was known.
    pub(super) fn write(&mut self, journal: Journal, is_news: bool) -> Result<(), String> {
        let order = |journal: &Journal| journal.target.as_ref().map(|target| target.order);
        if order(&journal) < order(&self.journal) {
            return Err("the high-water mark fell".to_owned());
        }
        if journal.restart < self.journal.restart {
            return Err("an order to restart is open again".to_owned());
        }
        let is_owed = |swap: &&Swap| {
            swap.failed.is_some() && swap.from.as_ref().is_some_and(|from| self.is_on_disk(from))
        };
        let owed = self.journal.swap.as_ref().filter(is_owed);
        // After three attempts the ladder is what is left.
        let is_good = self.runs_good() || self.has_died;
        if is_news && owed.is_some() && journal.swap.is_none() && !is_good && !self.has_given_up {
            return Err(format!("a restore is forgotten, and {:?} runs", self.running));
        }
        self.has_given_up &= journal.swap.is_some();
        self.journal = journal;
        Ok(())
    }

    fn runs_good(&self) -> bool {
        match &self.running {
            Some(Release::Own(own)) => self.character(own).is_some_and(Character::is_good),
            Some(Release::Adopted) => true,
            None => false,
        }
    }

    /// Ends the task that runs, which must be one that touches nothing live.
    pub(super) fn cancel(&mut self) -> Result<(), String> {
        let Some((id, task)) = self.task.take() else { return Ok(()) };
        let is_swap =
            self.machine.journal().swap.as_ref().is_some_and(|swap| swap.failed.is_none());
        match task {
            Task::Prepare { .. } | Task::Ask(_) => {}
            Task::Check(..) if !is_swap => {}
            _ => return Err(format!("{task:?} is cancelled in the middle of a swap")),
        }
        self.cancelled.push(id);
        Ok(())
    }

    /// Prunes at random what need not be kept.
    pub(super) fn prune(&mut self, keep: &BTreeSet<Revision>) -> Result<(), String> {
        let journal = self.machine.journal();
        let other = |revision: &&Revision| Some(*revision) != self.running_own();
        let on_disk = |revision: &&Revision| self.releases.contains(*revision);
        let target = journal.target.as_ref();
        let needed = [
            ("runs", self.running_own().filter(on_disk)),
            ("is current", self.current.as_ref()),
            ("was proven before", journal.proven.iter().rev().filter(on_disk).find(other)),
            ("is the target", target.and_then(|target| target.revision.as_ref())),
            ("is the fallback", target.and_then(|target| target.fallback.as_ref())),
        ];
        for (what, revision) in needed {
            if let Some(lost) = revision.filter(|revision| !keep.contains(*revision)) {
                return Err(format!("{} {what} and is not kept", lost.short()));
            }
        }
        let mut left = Vec::new();
        for release in std::mem::take(&mut self.releases) {
            if keep.contains(&release) || self.random.one_in(2) {
                left.push(release);
            }
        }
        self.releases = left;
        Ok(())
    }

    pub(super) fn hear_report(&mut self, report: Report) -> Result<(), String> {
        if self.told.as_ref() == Some(&report) {
            return Err("the same report twice".to_owned());
        }
        let serving = report.serving.clone().map(Release::Own);
        let serving = serving.or(report.adopted.then_some(Release::Adopted));
        let is_good = self.running == serving && self.runs_good();
        if report.adopted && (report.serving.is_some() || report.newborn || !self.has_adopted) {
            return Err("adopted, it says, and newborn, or of a release of its own".to_owned());
        }
        if report.health == Health::Healthy && !is_good && !self.has_died {
            return Err(format!("healthy, it says, and {:?} runs", self.running));
        }
        if report.alike.is_some() && report.alike != report.target {
            return Err("what is alike is not the target".to_owned());
        }
        self.told = Some(report);
        Ok(())
    }

    /// What is known is written and told, and what is over is over.
    pub(super) fn check_step(&self) -> Result<(), String> {
        if !self.is_behind && self.journal != *self.machine.journal() {
            return Err(format!("{:?} is not written", self.machine.journal()));
        }
        if let Some(report) = self.machine.settled() {
            if self.told.as_ref() != Some(report) {
                return Err(format!("{report:?} is not told"));
            }
            if self.task.is_some() {
                return Err("settled, it says, and a task runs".to_owned());
            }
            if report.phase == Phase::Idle && self.machine.journal().swap.is_some() {
                return Err("a restore is owed, and nothing is done about it".to_owned());
            }
        }
        let target = self.machine.journal().target.as_ref();
        if self.machine.is_converged() {
            let is_healthy = self.told.as_ref().is_some_and(|told| told.health == Health::Healthy);
            let stocks = |task: &Task| {
                matches!(task, Task::Prepare { revision, .. } if target.is_some_and(
                    |target| target.fallback.as_ref() == Some(revision),
                ))
            };
            let is_busy = self.task.as_ref().is_some_and(|(_, task)| !stocks(task));
            if is_busy || !is_healthy {
                return Err("converged, it says, and does not know".to_owned());
            }
            let revision = target.and_then(|target| target.revision.as_ref());
            let content = revision.map(|revision| self.content(revision));
            let runs = self.running_own().map(|running| self.content(running));
            if content != runs && !self.has_died {
                return Err(format!("converged, it says, and {:?} runs", self.running));
            }
        }
        Ok(())
    }

    pub(super) fn character(&self, revision: &Revision) -> Option<Character> {
        self.characters.get(revision).copied()
    }

    /// Where everything led to, once nothing fails any more.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let target = self.target.as_ref().ok_or("there is a target")?;
        // What the agent goes by: the last of its journals may not have reached the disk.
        let journal = self.machine.journal();
        let is_good =
            |revision: &Revision| self.character(revision).is_some_and(Character::is_good);
        // What failed for this very target is not activated again for it.
        let is_open = |revision: &Revision| {
            journal.rejection(target.order, &revision.clone().into()).is_none()
        };
        let revision = target.revision.as_ref().ok_or("it names a revision")?;
        if is_good(revision) && is_open(revision) {
            if !self.machine.is_converged() {
                return Err(format!("{} is good and was not reached", revision.short()));
            }
            if self.started_for < target.restart || journal.restart < target.restart {
                return Err("an order to restart was not carried out".to_owned());
            }
        }
        self.check_told()?;
        if self.machine.is_converged() && self.machine.settled().is_none() {
            return Err("converged and not settled".to_owned());
        }
        let runs_good = self.runs_good();
        let on_disk = |revision: &&Revision| self.releases.contains(*revision);
        let mut proven = journal.proven.iter().filter(on_disk);
        if proven.any(is_open) && !runs_good {
            return Err(format!("{:?} runs, and something good is on disk", self.running));
        }
        let fallback = target.fallback.as_ref();
        let is_boot = !self.found_running && journal.swap.is_none();
        if is_boot && !runs_good && fallback.is_some_and(|own| is_good(own) && is_open(own)) {
            return Err(format!("{:?} runs, and the fallback is good", self.running));
        }
        if is_boot && !runs_good && self.has_adopted {
            return Err(format!("{:?} runs, and not what was there before", self.running));
        }
        Ok(())
    }

    /// An hour went by in which nothing happened; `begun`: how many tasks it took.
    pub(super) fn check_rest(&self, begun: usize) -> Result<(), String> {
        if self.machine.is_converged() {
            if begun < 40 {
                return Err("nobody looks at what serves".to_owned());
            }
            if begun > 80 {
                return Err(format!("{begun} looks at what serves in an hour"));
            }
            let proven = &self.machine.journal().proven;
            if !self.running_own().is_some_and(|own| proven.contains(own)) {
                return Err("what has served for an hour is not proven".to_owned());
            }
        }
        let target = self.target.as_ref().ok_or("there is a target")?;
        let is_refused = target.revision.as_ref().and_then(|own| self.character(own))
            == Some(Character::Refused);
        let is_idle = self.told.as_ref().is_some_and(|told| told.phase == Phase::Idle);
        // A boot with nothing left tries for three quarters of its time, again and again.
        let enough = if is_refused && is_idle { 1 } else { 70 };
        if self.runs_good() && self.prepares > enough {
            return Err(format!("{} preparings in an hour", self.prepares));
        }
        Ok(())
    }
}
