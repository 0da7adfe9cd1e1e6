//! How an agent's tasks begin, and how they end: by what the revision is like, and by chance.

use std::collections::VecDeque;
use std::time::Duration;

use towline_agent::journal::Release;
use towline_agent::machine::{Event, How, Outcome, Task, TaskId, Window};
use towline_protocol::ids::Revision;
use towline_protocol::report::{Cause, Evidence};

use super::{Character, Due, World};

/// How long a release that fades is healthy.
const FADES_AFTER: Duration = Duration::from_secs(25);

impl World {
    pub(super) fn begin(
        &mut self,
        index: usize,
        id: TaskId,
        task: Task,
        events: &mut VecDeque<Event>,
    ) -> Result<(), String> {
        self.tell(|world| format!("{} begins {task:?}", world.hosts[index].name));
        self.check_begin(index, &task)?;
        let has_faults = self.has_faults;
        let (low, high) = match &task {
            Task::Ask(order) => {
                let order = *order;
                self.keep_task(index, id, task);
                self.ask(index, id, order, events);
                return Ok(());
            }
            Task::Prepare { .. } if has_faults && self.random.one_in(20) => (60_000, 120_000),
            Task::Prepare { .. } => (500, 8_000),
            Task::Journal(journal) => {
                let is_full = has_faults && self.random.one_in(30);
                self.hosts[index].disk.is_behind = is_full;
                if let Some(agent) = &mut self.hosts[index].agent {
                    agent.is_full = is_full;
                }
                if !is_full {
                    self.write(index, (**journal).clone())?;
                }
                if has_faults && self.random.one_in(25) { (20_000, 45_000) } else { (1, 80) }
            }
            Task::Activate { .. } => (200, 2_000),
            Task::Prove(_) => (300, 2_000),
            Task::Probe(_, Window::Full) | Task::Check(_, Window::Full) => (4_000, 9_000),
            Task::Probe(_, Window::Brief) | Task::Check(_, Window::Brief) => (500, 1_500),
        };
        self.keep_task(index, id, task);
        let takes = Duration::from_millis(self.random.between(low, high));
        let life = self.hosts[index].life;
        self.later(takes, Due::Task { host: index, life, task: id });
        Ok(())
    }

    fn keep_task(&mut self, index: usize, id: TaskId, task: Task) {
        if let Some(agent) = &mut self.hosts[index].agent {
            agent.task = Some((id, task));
        }
    }

    /// The time of a task has come.
    pub(super) fn task_ends(&mut self, index: usize, id: TaskId) -> Result<(), String> {
        let agent = self.hosts[index].agent.as_mut();
        let task = agent.and_then(|agent| agent.task.take_if(|(own, _)| *own == id));
        let Some((_, task)) = task else { return Ok(()) };
        let outcome = self.end(index, &task);
        self.done(index, id, outcome)
    }

    /// What a revision is like.
    pub(super) fn character(&self, revision: &Revision) -> Character {
        let known = self.revisions.iter().find(|(known, _)| known == revision);
        known.map_or(Character::Good, |(_, character)| *character)
    }

    fn character_of(&self, release: &Release) -> Character {
        release.own().map_or(Character::Good, |revision| self.character(revision))
    }

    /// Is what runs on an instance well?
    pub(super) fn is_well(&self, index: usize) -> bool {
        let Some(runs) = &self.hosts[index].runs else { return false };
        self.outage_until <= self.now
            && match self.character_of(&runs.release) {
                Character::Good | Character::NeedsRestart | Character::InstallFails => true,
                Character::Fades => self.now < runs.since + FADES_AFTER,
                Character::Refused | Character::Crashes | Character::Unhealthy => false,
            }
    }

    fn end(&mut self, index: usize, task: &Task) -> Outcome {
        let failed = |cause, detail: &str| Outcome::Failed(cause, detail.to_owned());
        let is_unlucky = self.has_faults && self.random.one_in(25);
        let runs = self.hosts[index].runs.clone();
        match task {
            Task::Prepare { revision, .. } => {
                if self.hosts[index].disk.releases.contains(revision) {
                    return Outcome::Prepared { alike: false };
                }
                match self.character(revision) {
                    Character::InstallFails => return failed(Cause::Install, "npm says no"),
                    Character::Refused => return failed(Cause::Refused, "a submodule"),
                    _ if is_unlucky => return failed(Cause::Fetch, "no route"),
                    _ => {}
                }
                self.hosts[index].disk.releases.push(revision.clone());
                Outcome::Prepared { alike: false }
            }
            Task::Journal(_) => {
                let agent = self.hosts[index].agent.as_ref();
                if agent.is_some_and(|agent| agent.is_full) {
                    failed(Cause::Disk, "full")
                } else {
                    Outcome::Journalled
                }
            }
            Task::Activate { is_deploy: true, .. } if is_unlucky && self.random.one_in(4) => {
                Outcome::Refused("its migration says no".to_owned())
            }
            Task::Activate { to, from, how, .. } => {
                if is_unlucky && self.random.one_in(2) {
                    return Outcome::Untouched("no pid file is to be trusted".to_owned());
                }
                let is_start = *how == How::Restart || from.is_none() || runs.is_none();
                let how = if is_start { How::Restart } else { How::Reload };
                self.looked(index);
                self.make_live(index, to, how);
                if is_unlucky {
                    if self.random.one_in(2) {
                        self.hosts[index].runs = None;
                    }
                    return failed(Cause::Activate, "no pid");
                }
                Outcome::Activated(how)
            }
            Task::Check(..) if runs.is_none() => {
                self.looked(index);
                Outcome::Absent
            }
            Task::Prove(release) => match self.character_of(release) {
                _ if runs.is_none() => failed(Cause::Prove, "none is there"),
                Character::Crashes => failed(Cause::Prove, "they come and go"),
                Character::NeedsRestart if runs.is_some_and(|runs| runs.how == How::Reload) => {
                    failed(Cause::Prove, "old")
                }
                _ if is_unlucky => failed(Cause::Prove, "slow"),
                _ => Outcome::Proved(Some(Evidence::Started)),
            },
            Task::Probe(release, _) | Task::Check(release, _) => {
                let is_it = runs.is_some_and(|runs| runs.release == *release);
                if !is_it || !self.is_well(index) || (is_unlucky && self.random.one_in(2)) {
                    failed(Cause::Unhealthy, "503")
                } else {
                    Outcome::Healthy { served: release.own().is_some() }
                }
            }
            // It ends with its answer, or its deadline.
            Task::Ask(_) => failed(Cause::Fetch, "no answer"),
        }
    }

    fn looked(&mut self, index: usize) {
        if let Some(agent) = &mut self.hosts[index].agent {
            agent.has_died = false;
        }
    }
}
