//! How the simulated world begins tasks, and how they end in it.

use towline_agent::journal::Release;
use towline_agent::machine::{How, Outcome, Task, TaskId};
use towline_protocol::ids::Revision;
use towline_protocol::poll::Duty;
use towline_protocol::report::{Cause, Evidence};

use super::{Character, PREPARE_DEADLINE, World};

impl World {
    pub(super) fn begin(&mut self, id: TaskId, task: Task) -> Result<(), String> {
        self.trace.push(format!("  begin {task:?}"));
        self.begun += 1;
        self.check_begin(&task)?;
        match &task {
            Task::Prepare { revision, .. } => {
                let target = self.machine.journal().target.as_ref();
                self.prepares += usize::from(
                    target.is_some_and(|target| target.revision.as_ref() == Some(revision)),
                );
                let may_hang = self.has_faults && !self.releases.contains(revision);
                let hangs = may_hang && self.random.one_in(8);
                self.hangs = hangs.then(|| self.now + PREPARE_DEADLINE);
            }
            Task::Ask(_) => self.asked(),
            Task::Journal(journal) => {
                let order = journal.swap.as_ref().map(|swap| swap.order);
                let needs_leave = self.needs_leave();
                self.use_leave(order.ok_or("it allows a swap")?, needs_leave)?;
                self.is_full = self.has_faults && self.random.one_in(8);
                let was_behind = self.is_behind;
                self.is_behind = self.is_full;
                if !self.is_full {
                    let journal = (**journal).clone();
                    self.write(journal, !was_behind)?;
                }
            }
            // Leave was asked for where it was due: from here on it is a boot.
            Task::Activate { from, .. } => {
                self.found_running &= from.is_some();
                if let Some(swap) = self.machine.journal().swap.clone() {
                    self.begin_swap(&swap)?;
                }
            }
            _ => {}
        }
        self.task = Some((id, task));
        Ok(())
    }

    /// Carries a task out.
    pub(super) fn end(&mut self, task: &Task) -> Result<Outcome, String> {
        let failed = |cause, detail: &str| Ok(Outcome::Failed(cause, detail.to_owned()));
        let is_unlucky = self.has_faults && self.random.one_in(8);
        let character =
            |revision: &Revision| self.characters.get(revision).copied().unwrap_or(Character::Good);
        let of = |release: &Release| release.own().map_or(Character::Good, character);
        match task {
            Task::Prepare { revision, unless_like } => {
                let is_late = self.hangs.take().is_some();
                let is_boot = self.running.is_none() && self.machine.journal().swap.is_none();
                if is_late && is_boot && !self.has_died {
                    return Err("a boot waits for what hangs".to_owned());
                }
                let is_alike = |live: &Revision| self.content(live) == self.content(revision);
                if unless_like.as_ref().is_some_and(is_alike) {
                    return Ok(Outcome::Prepared { alike: true });
                }
                if self.releases.contains(revision) {
                    return Ok(Outcome::Prepared { alike: false });
                }
                match character(revision) {
                    Character::InstallFails => return failed(Cause::Install, "npm says no"),
                    Character::Refused => return failed(Cause::Refused, "a submodule"),
                    _ if is_late => return failed(Cause::Fetch, "timed out"),
                    _ if is_unlucky => return failed(Cause::Fetch, "no route"),
                    _ => {}
                }
                self.releases.push(revision.clone());
                Ok(Outcome::Prepared { alike: false })
            }
            Task::Ask(order) => {
                let is_closed = self.says.duty != Duty::Take && self.random.one_in(2);
                Ok(self.answer(*order, is_unlucky || is_closed))
            }
            Task::Journal(_) if self.is_full => failed(Cause::Disk, "full"),
            Task::Journal(_) => Ok(Outcome::Journalled),
            Task::Activate { is_deploy: true, .. } if self.has_faults && self.random.one_in(12) => {
                Ok(Outcome::Refused("its migration says no".to_owned()))
            }
            Task::Activate { to, from, how, .. } => {
                if self.has_faults && self.random.one_in(10) {
                    return Ok(Outcome::Untouched("no pid file is to be trusted".to_owned()));
                }
                let is_start = *how == How::Restart || from.is_none() || self.running.is_none();
                if let Some(swap) = self.journal.swap.as_ref().filter(|_| is_start) {
                    self.started_for = self.started_for.max(swap.restart);
                }
                self.has_died = false;
                self.current = to.own().cloned();
                self.running = Some(to.clone());
                self.how = if is_start { How::Restart } else { How::Reload };
                if is_unlucky || self.is_stuck {
                    // What was there is stopped, and what comes up may go down again.
                    self.running = self.running.take().filter(|_| self.random.one_in(2));
                    return failed(Cause::Activate, "no pid");
                }
                Ok(Outcome::Activated(self.how))
            }
            Task::Check(..) if self.running.is_none() => {
                self.has_died = false;
                Ok(Outcome::Absent)
            }
            Task::Check(..) if is_unlucky && self.random.one_in(2) => {
                failed(Cause::Host, "no pid file is to be trusted")
            }
            Task::Prove(release) => match of(release) {
                Character::Crashes => failed(Cause::Prove, "they come and go"),
                Character::NeedsRestart if self.how == How::Reload => failed(Cause::Prove, "old"),
                _ if is_unlucky => failed(Cause::Prove, "slow"),
                _ => Ok(Outcome::Proved(Some(Evidence::Started))),
            },
            Task::Probe(release, _) | Task::Check(release, _) => match of(release) {
                _ if self.running.as_ref() != Some(release) => failed(Cause::Unhealthy, "refused"),
                Character::Crashes | Character::Unhealthy => failed(Cause::Unhealthy, "503"),
                _ if is_unlucky => failed(Cause::Unhealthy, "503"),
                _ => Ok(Outcome::Healthy { served: release.own().is_some() }),
            },
        }
    }
}
