//! Runs a stage's action list: receives what an action reads, lets somebody compute, sends what it makes.
//!
//! Receives are posted one action ahead of need, so that a transfer goes on while the stage computes; sends never block
//! and are looked after as the list goes on. Messages between two stages match in the order of the sender's list, which
//! the receiver knows, because schedules are pure functions.

use crate::error::{Error, Exit, Result};
use crate::schedules::{Action, Parcel};
use crate::wire::{Wire, Work};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Who does the work of a stage.
pub trait Compute {
    /// Does `action` with what the neighbouring chunk made ([`Action::input`]); returns what the other neighbour reads
    /// ([`Action::output`]).
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>>;
    /// A contiguous tensor into which `parcel` fits, with anything in it.
    fn buffer(&self, parcel: Parcel) -> Tensor;
    /// Another stage has to be waited for.
    fn waiting(&mut self) {}
}

/// One stage of the pipeline with its list.
pub struct Executor {
    wire: Arc<dyn Wire>,
    chunks: usize,
    list: Vec<Action>,
    /// Receives in the order in which they are posted, each with the index of the action before which.
    receives: Vec<(usize, Parcel)>,
}

/// When an action ran, from the start of the list; waiting for its input not counted.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// As the stage's list has it.
    pub action: Action,
    /// When its input was there.
    pub start: Duration,
    /// When [`Compute::run`] returned, before its output is sent.
    pub end: Duration,
}

/// What running a list cost.
#[derive(Clone, Debug, Default)]
pub struct PassReport {
    /// One for each action of the list, in its order.
    pub ran: Vec<Ran>,
    /// Time spent waiting for other stages.
    pub waited: Duration,
    /// Bytes sent.
    pub bytes: u64,
}

impl Executor {
    /// `list` gives every stage's actions; `chunks` is the number of chunks of the whole model.
    pub fn new(wire: Arc<dyn Wire>, chunks: usize, list: impl Fn(usize) -> Vec<Action>) -> Executor {
        let (stage, stages) = (wire.rank(), wire.size());
        let own = list(stage);
        let here = |chunk: usize| chunk % stages == stage;
        // What each other stage sends here, in its order.
        let near: Vec<usize> = [(stage + 1) % stages, (stage + stages - 1) % stages].into();
        let mut coming: HashMap<usize, std::collections::VecDeque<Parcel>> = HashMap::new();
        for from in near.into_iter().filter(|&s| s != stage) {
            let sent = list(from).into_iter().filter_map(|a| a.output(chunks)).filter(|p| here(p.to));
            coming.insert(from, sent.collect());
        }
        let foreign = |a: &Action| a.input(chunks).filter(|p| !here(p.from));
        let mut receives = Vec::new();
        let mut posted = std::collections::HashSet::new();
        for (before, _) in own.iter().enumerate() {
            // What this action reads, and what the next one that reads anything will.
            let next = own[before + 1..].iter().find_map(foreign);
            for parcel in [foreign(&own[before]), next].into_iter().flatten() {
                let Some(queue) = coming.get_mut(&(parcel.from % stages)) else { continue };
                while !posted.contains(&parcel) {
                    let Some(first) = queue.pop_front() else { break };
                    posted.insert(first);
                    receives.push((before, first));
                }
            }
        }
        Executor { wire, chunks, list: own, receives }
    }

    /// Runs the list. An error of `compute` or of the wire ends it.
    pub fn run(&self, compute: &mut dyn Compute) -> Result<PassReport> {
        let (stage, stages) = (self.wire.rank(), self.wire.size());
        let began = Instant::now();
        let mut report = PassReport { ran: Vec::with_capacity(self.list.len()), ..PassReport::default() };
        let mut receives = self.receives.iter().peekable();
        let mut arriving: HashMap<Parcel, (Tensor, Option<Work>)> = HashMap::new();
        let mut leaving: Vec<(Work, Tensor)> = Vec::new();
        for (i, &action) in self.list.iter().enumerate() {
            while let Some((_, parcel)) = receives.next_if(|(before, _)| *before <= i) {
                let buffer = compute.buffer(*parcel);
                let work = self.wire.recv(&buffer, parcel.from % stages)?;
                arriving.insert(*parcel, (buffer, Some(work)));
            }
            let input = match action.input(self.chunks) {
                Some(parcel) => {
                    let Some((tensor, work)) = arriving.remove(&parcel) else { return Err(never(action)) };
                    if let Some(mut work) = work {
                        if !work.is_done() {
                            compute.waiting();
                        }
                        report.waited += work.wait()?.exposed;
                    }
                    Some(tensor)
                }
                None => None,
            };
            let start = began.elapsed();
            let output = compute.run(action, input)?;
            report.ran.push(Ran { action, start, end: began.elapsed() });
            match (action.output(self.chunks), output) {
                (Some(parcel), Some(tensor)) if parcel.to % stages == stage => {
                    arriving.insert(parcel, (tensor, None));
                }
                (Some(parcel), Some(tensor)) => {
                    report.bytes += (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
                    leaving.push((self.wire.send(&tensor, parcel.to % stages)?, tensor));
                }
                (None, None) => {}
                _ => return Err(Error::new(Exit::Internal, format!("{action:?} made too much or too little"))),
            }
            let (gone, still): (Vec<_>, Vec<_>) =
                leaving.into_iter().map(|(mut w, t)| (w.is_done(), w, t)).partition(|(done, ..)| *done);
            gone.into_iter().try_for_each(|(_, work, _)| work.wait().map(drop))?;
            leaving = still.into_iter().map(|(_, w, t)| (w, t)).collect();
        }
        for (work, _) in leaving {
            report.waited += work.wait()?.exposed;
        }
        Ok(report)
    }
}

fn never(action: Action) -> Error {
    Error::new(Exit::Internal, format!("nobody sends what {action:?} reads"))
}
