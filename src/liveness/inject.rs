//! Faults on order: what `herd drill` makes happen inside a live run.
//!
//! A rank looks between two steps for `drill/rank-NNNNN.json` in the run directory: one `stat`, and nothing else where there is
//! none. The ranks of a node take turns, so that a step costs a `stat` a node. An order is renamed before it is carried out, so
//! that a later attempt does not repeat it, and stands in `events.jsonl`. The faults are real: a signal, a collective that is not made, a NaN in a gradient.

use super::Phase;
use super::Progress;
use crate::attempt;
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::run_dir::RunDir;
use crate::world::CollectiveCounters;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What a rank is told to do to itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum InjectedFault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP; with `seconds`, SIGCONT after that time.
    Stop {
        /// Seconds until SIGCONT; None: it stays stopped.
        seconds: Option<f64>,
    },
    /// Leaves by _exit.
    Exit {
        /// Exit code of the process.
        code: i32,
    },
    /// Leaves out its next collective of tensors.
    SkipCollective,
    /// Enters its next collective that much later.
    StallCollective {
        /// Seconds before it enters.
        seconds: f64,
    },
    /// Takes that much longer for each of the next micro-batches.
    Slow {
        /// Seconds more each time.
        seconds: f64,
        /// How many times, counted where own work begins: once a micro-batch.
        steps: u64,
    },
    /// Puts a NaN into a gradient of the next step, before it is reduced.
    NanGradient,
    /// Blocks that long where metrics are written.
    SleepIo {
        /// Seconds, once.
        seconds: f64,
    },
}

impl InjectedFault {
    /// What is noted of it when `rank` does it to itself after `step` steps.
    fn event(&self, rank: usize, step: u64) -> RunEvent {
        let (code, seconds, steps) = match *self {
            InjectedFault::Exit { code } => (Some(code), None, None),
            InjectedFault::Stop { seconds } => (None, Some(seconds), None),
            InjectedFault::Slow { seconds, steps } => (None, Some(Some(seconds)), Some(steps)),
            InjectedFault::StallCollective { seconds } | InjectedFault::SleepIo { seconds } => {
                (None, Some(Some(seconds)), None)
            }
            InjectedFault::Kill | InjectedFault::SkipCollective | InjectedFault::NanGradient => (None, None, None),
        };
        let named = serde_json::to_value(self).unwrap_or_default();
        let fault = named["kind"].as_str().unwrap_or_default().into();
        RunEvent::Drill { fault, code, seconds, steps, rank, step }
    }
}

/// An order: the fault, and the number of finished steps at which it happens, at once if that is past or absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// What the rank does to itself.
    #[serde(flatten)]
    pub fault: InjectedFault,
    /// Steps of the run that are finished when it happens; None: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_step: Option<u64>,
}

/// This rank's ear for orders, and what of them is still to be done.
pub struct Inject {
    run_dir: PathBuf,
    rank: usize,
    path: PathBuf,
    /// This rank's number on its node, and how many there are.
    turn: (u64, u64),
    /// An order that was found and is not due.
    waits: RefCell<Option<Order>>,
    meters: Arc<CollectiveCounters>,
    nan: Cell<bool>,
    slow: Cell<(u64, Duration)>,
    sleep_io: Cell<Duration>,
}

impl Inject {
    /// For `rank` of the world, which looks before every step until [`Inject::in_turn`] is called; `meters` change its collectives.
    pub fn new(run_dir: &Path, rank: usize, meters: Arc<CollectiveCounters>) -> Inject {
        Inject {
            run_dir: run_dir.to_path_buf(),
            rank,
            path: RunDir::new(run_dir).drill_order(rank),
            turn: (0, 1),
            waits: RefCell::new(None),
            meters,
            nan: Cell::new(false),
            slow: Cell::default(),
            sleep_io: Cell::default(),
        }
    }

    /// Looks for orders in one of `all` steps only, as the `own`th rank of a node that has so many.
    pub fn in_turn(self, (own, all): (usize, usize)) -> Inject {
        Inject { turn: (own as u64, all.max(1) as u64), ..self }
    }

    /// Between two steps, after `step` finished ones: takes an order that is due.
    ///
    /// # Errors
    /// [`Exit::Usage`] for an order that makes no sense, [`Exit::Storage`].
    pub fn boundary(&self, step: u64) -> Result<()> {
        let (own, all) = self.turn;
        if step % all == own {
            self.waits.replace(self.order()?);
        }
        let Some(order) = self.waits.borrow_mut().take_if(|order| order.at_step.is_none_or(|at| at <= step)) else {
            return Ok(());
        };
        let taken = self.path.with_extension(format!("attempt-{:04}-step-{step:08}.taken", attempt::current()));
        match std::fs::rename(&self.path, &taken) {
            // taken back since it was seen
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            done => done.map_err(|e| Error::io(&self.path, "take", &e, Exit::Storage))?,
        }
        self.note(&order, step)?;
        self.perform(&order.fault);
        Ok(())
    }

    /// The order that lies there now.
    fn order(&self) -> Result<Option<Order>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&self.path).map_err(|e| Error::io(&self.path, "read", &e, Exit::Storage))?;
        let order = serde_json::from_slice(&text).map_err(|e| {
            Error::new(Exit::Usage, format!("{}: {e}", self.path.display())).hint("write orders with `herd drill`")
        })?;
        Ok(Some(order))
    }

    fn note(&self, order: &Order, step: u64) -> Result<()> {
        let fault = order.fault.event(self.rank, step);
        Events::open(&self.run_dir)?.write(&fault)
    }

    fn perform(&self, fault: &InjectedFault) {
        let length = |seconds: f64| Duration::from_secs_f64(seconds.clamp(0.0, 1e6));
        // SAFETY: signals to this very process.
        let signal = |number| unsafe { libc::kill(libc::getpid(), number) };
        match *fault {
            InjectedFault::Kill => _ = signal(libc::SIGKILL),
            InjectedFault::Stop { seconds } => {
                if let Some(seconds) = seconds {
                    let line = format!("sleep {}; kill -CONT {}", length(seconds).as_secs_f64(), std::process::id());
                    let waker =
                        Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
                    if waker.is_err() {
                        return;
                    }
                }
                signal(libc::SIGSTOP);
            }
            InjectedFault::Exit { code } => super::hard(code),
            InjectedFault::SkipCollective => self.meters.skip_next(),
            InjectedFault::StallCollective { seconds } => self.meters.stall_next(length(seconds)),
            InjectedFault::Slow { seconds, steps } => self.slow.set((steps, length(seconds))),
            InjectedFault::NanGradient => self.nan.set(true),
            InjectedFault::SleepIo { seconds } => self.sleep_io.set(length(seconds)),
        }
    }

    /// Called where the rank does its own work: a slow rank is slow here.
    pub fn work(&self) {
        if let (left @ 1.., by) = self.slow.get() {
            self.slow.set((left - 1, by));
            std::thread::sleep(by);
        }
    }

    /// Called where metrics are written.
    pub fn storage(&self) {
        let length = self.sleep_io.take();
        if !length.is_zero() {
            std::thread::sleep(length);
        }
    }

    /// Whether the gradient that is complete now is to be spoiled, once.
    pub fn spoils(&self) -> bool {
        self.nan.take()
    }

    /// [`Progress::at`] for the start of own work, and what a drill does there.
    pub fn begin_work(&self, progress: &Progress) {
        progress.at(Phase::Forward);
        self.work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inject(dir: &Path) -> Inject {
        Inject::new(dir, 3, Arc::new(CollectiveCounters::default()))
    }

    fn order(dir: &Path, order: serde_json::Value) {
        std::fs::create_dir_all(RunDir::new(dir).drill()).unwrap();
        std::fs::write(RunDir::new(dir).drill_order(3), order.to_string()).unwrap();
    }

    #[test]
    fn an_order_is_taken_once_at_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let i = inject(dir.path());
        i.boundary(1).unwrap();
        order(dir.path(), json!({ "kind": "slow", "seconds": 0.05, "steps": 2, "at_step": 4 }));
        let slow = |step| {
            i.boundary(step).unwrap();
            let began = std::time::Instant::now();
            i.work();
            began.elapsed() >= Duration::from_millis(50)
        };
        assert_eq!([3, 4, 5, 6].map(slow), [false, true, true, false]);
        assert!(!RunDir::new(dir.path()).drill_order(3).exists());
        let taken = std::fs::read_dir(RunDir::new(dir.path()).drill()).unwrap().count();
        let events = std::fs::read_to_string(RunDir::new(dir.path()).events()).unwrap();
        assert!(
            taken == 1 && events.contains("\"kind\":\"drill\"") && events.contains("\"fault\":\"slow\""),
            "{events}"
        );
    }

    #[test]
    fn ranks_of_a_node_take_turns_and_what_was_seen_is_done_in_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let i = inject(dir.path()).in_turn((1, 4));
        let nan_after = |step| {
            i.boundary(step).unwrap();
            i.spoils()
        };
        order(dir.path(), json!({ "kind": "nan_gradient" }));
        assert_eq!([2, 3, 4, 5, 6].map(nan_after), [false, false, false, true, false]);
        order(dir.path(), json!({ "kind": "nan_gradient", "at_step": 11 }));
        assert_eq!([9, 10, 11, 12].map(nan_after), [false, false, true, false]);
        order(dir.path(), json!({ "kind": "nan_gradient", "at_step": 15 }));
        assert!(!nan_after(13));
        std::fs::remove_file(RunDir::new(dir.path()).drill_order(3)).unwrap();
        assert!(!nan_after(15), "taken back");
    }

    #[test]
    fn a_nan_is_ordered_once() {
        let dir = tempfile::tempdir().unwrap();
        let i = inject(dir.path());
        order(dir.path(), json!({ "kind": "nan_gradient" }));
        i.boundary(0).unwrap();
        assert_eq!([i.spoils(), i.spoils()], [true, false]);
    }

    #[test]
    fn an_order_that_makes_no_sense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        order(dir.path(), json!({ "kind": "explode" }));
        let e = inject(dir.path()).boundary(0).unwrap_err();
        assert!(e.exit == Exit::Usage && e.fact.contains("explode"), "{e}");
    }

    #[test]
    fn orders_read_as_documented() {
        for (text, fault) in [
            (json!({ "kind": "kill" }), InjectedFault::Kill),
            (json!({ "kind": "stop" }), InjectedFault::Stop { seconds: None }),
            (json!({ "kind": "stop", "seconds": 2.5 }), InjectedFault::Stop { seconds: Some(2.5) }),
            (json!({ "kind": "exit", "code": 14 }), InjectedFault::Exit { code: 14 }),
            (json!({ "kind": "skip_collective" }), InjectedFault::SkipCollective),
            (json!({ "kind": "stall_collective", "seconds": 9 }), InjectedFault::StallCollective { seconds: 9.0 }),
            (json!({ "kind": "sleep_io", "seconds": 60 }), InjectedFault::SleepIo { seconds: 60.0 }),
        ] {
            assert_eq!(serde_json::from_value::<Order>(text).unwrap(), Order { fault, at_step: None });
        }
    }
}
