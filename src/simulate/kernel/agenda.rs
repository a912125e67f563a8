//! What happens when, and the tasks that it wakes.

use super::news::Happening;
use super::{micros, Micros, SimTask};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar};

/// What becomes of a task's thread.
pub(in crate::simulate) type TaskBody = Box<dyn FnOnce() + Send>;

/// What happens at a moment.
pub(in crate::simulate) enum SimEvent {
    Wake { task: SimTask, turn: u64 },
    Cluster(Happening),
}

pub(super) struct TaskState {
    pub(super) turn: u64,
    pub(super) killed: bool,
    pub(super) ended: bool,
    /// It sleeps until something happens.
    pub(super) listens: bool,
    pub(super) wakes: Arc<Condvar>,
}

/// What the world may ask for while it handles an event.
#[derive(Default)]
pub(in crate::simulate) struct Agenda {
    pub now: Micros,
    pub(super) number: u64,
    pub(super) events: BTreeMap<(Micros, u64), SimEvent>,
    pub(super) tasks: Vec<TaskState>,
    pub(super) begun: Vec<(SimTask, TaskBody)>,
    pub(super) running: Option<SimTask>,
}

impl Agenda {
    pub fn at(&mut self, at: Micros, what: Happening) {
        self.put(at, SimEvent::Cluster(what));
    }

    pub fn after(&mut self, seconds: f64, what: Happening) {
        self.at(self.now + micros(seconds), what);
    }

    pub(super) fn put(&mut self, at: Micros, event: SimEvent) {
        self.number += 1;
        self.events.insert((at.max(self.now), self.number), event);
    }

    /// A new task, which begins now.
    pub fn begin(&mut self, work: TaskBody) -> SimTask {
        let task = self.tasks.len();
        self.tasks.push(TaskState { turn: 0, killed: false, ended: false, listens: false, wakes: Arc::default() });
        self.put(self.now, SimEvent::Wake { task, turn: 0 });
        self.begun.push((task, work));
        task
    }

    /// Ends a task where it stands.
    pub fn kill(&mut self, task: SimTask) {
        if self.tasks[task].ended || std::mem::replace(&mut self.tasks[task].killed, true) {
            return;
        }
        self.wake(task);
    }

    pub fn lives(&self, task: SimTask) -> bool {
        !(self.tasks[task].ended || self.tasks[task].killed)
    }

    /// Wakes a task that listens.
    pub fn tell(&mut self, task: SimTask) {
        if self.tasks[task].listens {
            self.wake(task);
        }
    }

    pub fn tell_all(&mut self) {
        (0..self.tasks.len()).for_each(|task| self.tell(task));
    }

    /// Wakes a task at this moment, whatever it waits for.
    pub fn wake(&mut self, task: SimTask) {
        let turn = self.tasks[task].turn;
        self.put(self.now, SimEvent::Wake { task, turn });
    }
}
