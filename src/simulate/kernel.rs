//! Simulated time, and who runs in it. Events are taken in their order; the supervisor, its standby and their roll calls are threads
//! of which one runs at a time: a thread that sleeps hands on, in its own stack, to the next event, until that is another thread's.
//! So a blocking loop runs as it is, nothing waits in real time, and a seed gives the same events each time.

mod agenda;
mod hosts;
mod news;
pub(super) mod truth;
mod watches;
pub(super) mod world;

use crate::host;
use crate::threads;
pub(super) use agenda::Agenda;
use agenda::{SimEvent, TaskBody};
use hosts::{Moment, SimulatedHost};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use world::Cluster;

/// Microseconds of simulated time.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;

/// A process or a thread of one, by number.
pub(super) type SimTask = usize;

pub(super) fn micros(seconds: f64) -> Micros {
    (seconds.max(0.0) * 1e6) as Micros
}

struct Core {
    agenda: Agenda,
    world: Cluster,
    over: bool,
    threads: Vec<JoinHandle<()>>,
}

/// One simulation.
pub(super) struct Kernel {
    core: Mutex<Core>,
    now: AtomicU64,
    origin: Instant,
    done: Condvar,
    limit: Micros,
    #[cfg(test)]
    planted: Option<host::Planted>,
}

/// How a task that was killed leaves its stack.
struct Killed;

impl Kernel {
    /// Runs `world` for `limit`, and gives it back.
    pub fn run(world: Cluster, limit: Micros) -> Cluster {
        let kernel = Arc::new(Kernel {
            core: Mutex::new(Core { agenda: Agenda::default(), world, over: false, threads: Vec::new() }),
            now: AtomicU64::new(0),
            origin: Instant::now(),
            done: Condvar::new(),
            limit,
            #[cfg(test)]
            planted: host::planted(),
        });
        let mut core = kernel.lock();
        let Core { agenda, world, .. } = &mut *core;
        world.begin(agenda, &kernel);
        core = kernel.hand_on(core, None);
        while !core.over {
            core = kernel.done.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        // everybody leaves, one after the other
        for task in 0..core.agenda.tasks.len() {
            core.agenda.tasks[task].killed = true;
            core.agenda.running = Some(task);
            core.agenda.tasks[task].wakes.notify_all();
            while !core.agenda.tasks[task].ended {
                core = kernel.done.wait(core).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let threads = std::mem::take(&mut core.threads);
        drop(core);
        for thread in threads {
            let _ = thread.join();
        }
        let kernel = Arc::into_inner(kernel).expect("nobody else is left");
        kernel.core.into_inner().unwrap_or_else(PoisonError::into_inner).world
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        threads::lock(&self.core)
    }

    /// Plays events until one is `own`'s to go on; a task that ends, or none, passes `None`.
    fn hand_on<'a>(self: &'a Arc<Self>, mut core: MutexGuard<'a, Core>, own: Option<SimTask>) -> MutexGuard<'a, Core> {
        while !core.over {
            self.start_threads(&mut core);
            let Some(((at, _), event)) = core.agenda.events.pop_first() else {
                core.over = true;
                break;
            };
            if at >= self.limit || core.world.is_over() {
                core.over = true;
                break;
            }
            core.agenda.now = at;
            self.now.store(at, SeqCst);
            match event {
                SimEvent::Cluster(what) => {
                    let Core { agenda, world, .. } = &mut *core;
                    let moment = Arc::new(Moment { origin: self.origin, now: at });
                    host::with(moment, || world.happen(agenda, what, self));
                }
                SimEvent::Wake { task, turn } => {
                    let state = &mut core.agenda.tasks[task];
                    if state.ended || state.turn != turn {
                        continue;
                    }
                    if let Some(until) = core.world.frozen_until(task, at).filter(|_| !core.agenda.tasks[task].killed) {
                        core.agenda.put(until, SimEvent::Wake { task, turn });
                        continue;
                    }
                    let state = &mut core.agenda.tasks[task];
                    state.turn += 1;
                    state.listens = false;
                    core.agenda.running = Some(task);
                    if own == Some(task) {
                        return core;
                    }
                    core.agenda.tasks[task].wakes.notify_all();
                    return self.wait_for_turn(core, own);
                }
            }
        }
        self.done.notify_all();
        self.wait_for_turn(core, own)
    }

    fn wait_for_turn<'a>(&'a self, mut core: MutexGuard<'a, Core>, own: Option<SimTask>) -> MutexGuard<'a, Core> {
        let Some(task) = own else { return core };
        let wakes = core.agenda.tasks[task].wakes.clone();
        while core.agenda.running != Some(task) {
            core = wakes.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        core
    }

    fn start_threads(self: &Arc<Self>, core: &mut Core) {
        for (task, work) in std::mem::take(&mut core.agenda.begun) {
            let kernel = self.clone();
            let body = move || kernel.live(task, work);
            // a supervisor's stack is small
            let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(body);
            core.threads.push(thread.expect("a thread for a simulated task"));
        }
    }

    /// A task's thread.
    fn live(self: Arc<Self>, task: SimTask, work: TaskBody) {
        #[cfg(test)]
        host::plant(self.planted);
        let core = self.wait_for_turn(self.lock(), Some(task));
        let killed = core.agenda.tasks[task].killed || core.over;
        drop(core);
        let host = Arc::new(SimulatedHost { kernel: self.clone(), task });
        let ended = match killed {
            true => Err(Box::new(Killed) as Box<dyn std::any::Any + Send>),
            false => host::with(host, || catch_unwind(AssertUnwindSafe(work))),
        };
        let bug = ended.is_err_and(|e| !e.is::<Killed>());
        let mut core = self.lock();
        core.agenda.tasks[task].ended = true;
        core.agenda.running = None;
        let over = core.over;
        let Core { agenda, world, .. } = &mut *core;
        if !over {
            let moment = Arc::new(Moment { origin: self.origin, now: agenda.now });
            host::with(moment, || world.task_ended(agenda, task, bug));
            drop(self.hand_on(core, None));
        } else {
            drop(core);
        }
        self.done.notify_all();
    }

    fn sleep(self: &Arc<Self>, task: SimTask, length: Duration, listens: bool) {
        if std::thread::panicking() {
            return;
        }
        let mut core = self.lock();
        let length = match listens {
            true => {
                let Core { agenda, world, .. } = &mut *core;
                world.listening(task, length, agenda)
            }
            false => length,
        };
        let state = &mut core.agenda.tasks[task];
        state.listens = listens;
        let (turn, at) = (state.turn, core.agenda.now + length.as_micros() as Micros);
        core.agenda.put(at, SimEvent::Wake { task, turn });
        core.agenda.running = None;
        let core = self.hand_on(core, Some(task));
        let killed = core.agenda.tasks[task].killed || core.over;
        drop(core);
        if killed {
            resume_unwind(Box::new(Killed));
        }
    }

    /// Does something to the world on behalf of a task.
    pub fn ask<T>(self: &Arc<Self>, task: SimTask, f: impl FnOnce(&mut Cluster, &mut Agenda, SimTask) -> T) -> T {
        let mut core = self.lock();
        let Core { agenda, world, .. } = &mut *core;
        let moment = Arc::new(Moment { origin: self.origin, now: agenda.now });
        host::with(moment, || f(world, agenda, task))
    }

    /// Sleeps until something happens to a standby's connection; see [`Cluster::hear`].
    pub fn hear(self: &Arc<Self>, task: SimTask, supervisor: SimTask, most: Duration) -> Option<bool> {
        let (now, connected) = self.ask(task, |w, a, _| (w.heard(a, supervisor), w.is_connected(task, supervisor)));
        match (now, connected) {
            (None, _) => None,
            (Some(()), false) => {
                self.sleep(task, most, false);
                Some(false)
            }
            (Some(()), true) => {
                self.sleep(task, Duration::from_secs(86_400), true);
                Some(true)
            }
        }
    }
}
