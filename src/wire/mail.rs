//! Messages between pairs of ranks of one axis: each goes at once to its lane or to MPI, and a thread sees it through.
//!
//! The thread sleeps on a bell where lanes carry the message. MPI has no bell, so there it must look: often while a
//! caller waits, seldom while all compute, because looking takes the core of a rank that computes.

use crate::error::{Error, Result};
use crate::threads::{self, lock};
use crate::wire::buffer::TensorBuf;
use crate::wire::futex;
use crate::wire::lanes::{ring, CmaRings, SLICE};
use crate::wire::message::TensorMessage;
use crate::wire::work::Urgency;
use crate::wire::Work;
use crate::world::comm::Comm;
use crate::world::ffi::{stopped, Backoff};
use crate::world::requests::MpiMessage;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tch::Tensor;

const TAG: i32 = 4;
/// How often the stop flag is looked at while nothing rings.
const LOOK: Duration = Duration::from_millis(2);
/// How often MPI is asked while nobody waits for the answer.
const SELDOM: Duration = Duration::from_micros(300);

/// Looks at an idle wire before its thread sleeps until the bell rings.
const PATIENCE: u32 = 50;
/// A message up to this long is copied by the caller that starts to receive it, if it is there already.
const SHORT: usize = 64 << 10;

/// The messages of one wire.
pub(super) struct PointToPoint(Arc<MessageExchange>);

struct MessageExchange {
    new: Mutex<Vec<TensorMessage>>,
    state: Mutex<State>,
    bell: &'static AtomicU32,
    /// Callers that block in [`Work::wait`].
    waiting: AtomicUsize,
    closed: AtomicBool,
    thread: AtomicBool,
}

struct State {
    comm: Comm,
    stop: Arc<AtomicBool>,
    lanes: Option<CmaRings>,
    messages: Vec<(TensorMessage, MpiMessage)>,
    broken: Option<Error>,
    /// The thread sleeps without looking at the stop flag.
    resting: bool,
}

#[derive(PartialEq)]
enum Next {
    /// Something moved: look again.
    Again,
    /// Only lanes have work: the bell will ring.
    Bell,
    /// MPI has work.
    Look,
    Idle,
}

impl PointToPoint {
    /// Collective over `comm`; `node` are its ranks on this node, if lanes are wanted.
    pub(super) fn new(comm: &Comm, node: Option<&Comm>, stop: Arc<AtomicBool>) -> Result<PointToPoint> {
        let lanes = match node {
            Some(node) if node.size() > 1 => CmaRings::new(node, comm.rank()?, &stop)?,
            _ => None,
        };
        // Segments are mapped for ever, so a word of four bytes may be as well.
        let bell = lanes.as_ref().map_or_else(|| &*Box::leak(Box::new(AtomicU32::new(0))), CmaRings::bell);
        let state = State { comm: comm.duplicate()?, stop, lanes, messages: Vec::new(), broken: None, resting: false };
        Ok(PointToPoint(Arc::new(MessageExchange {
            new: Mutex::default(),
            state: Mutex::new(state),
            bell,
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            thread: AtomicBool::new(false),
        })))
    }

    /// Starts a message of a contiguous host tensor; never blocks.
    pub(super) fn start(&self, tensor: &Tensor, send: bool, peer: usize) -> Result<Work> {
        let exchange = &self.0;
        if !exchange.thread.swap(true, Ordering::SeqCst) {
            let exchange = exchange.clone();
            threads::start("herd-mail", "a communication thread", move || serve(&exchange))?;
        }
        let (done, rx) = channel();
        let job = TensorMessage { tensor: tensor.shallow_clone(), send, peer, started: Instant::now(), done };
        lock(&exchange.new).push(job);
        // At once and here if nobody is moving bytes right now; else the thread does it next.
        let left_over = match exchange.state.try_lock() {
            Err(_) => true,
            Ok(mut state) => {
                state.accept(&exchange.new);
                state.resting || !state.messages.is_empty() || state.lanes.as_ref().is_some_and(CmaRings::is_ready)
            }
        };
        if left_over || !lock(&exchange.new).is_empty() {
            ring(exchange.bell);
        }
        Ok(Work::urgent(rx, exchange.clone()))
    }
}

impl Drop for PointToPoint {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        ring(self.0.bell);
    }
}

impl Urgency for MessageExchange {
    fn help(&self) {
        match self.state.try_lock() {
            Ok(mut state) => drop(state.step()),
            Err(_) => std::hint::spin_loop(),
        }
    }

    fn waiting(&self, more: bool) {
        if !more {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if self.state.try_lock().is_ok_and(|s| !s.messages.is_empty()) {
            ring(self.bell);
        }
    }
}

/// Until the wire is dropped and nothing is under way.
fn serve(exchange: &MessageExchange) {
    let mut backoff = Backoff::default();
    let mut idle = 0;
    loop {
        let seen = exchange.bell.load(Ordering::SeqCst);
        let next = {
            let mut state = lock(&exchange.state);
            state.accept(&exchange.new);
            let next = state.step();
            idle = if next == Next::Idle { idle + 1 } else { 0 };
            state.resting = idle > PATIENCE;
            next
        };
        match next {
            Next::Again => backoff = Backoff::default(),
            Next::Look if exchange.waiting.load(Ordering::SeqCst) > 0 => backoff.step(),
            Next::Look => futex::sleep(exchange.bell, seen, SELDOM),
            Next::Bell => futex::sleep(exchange.bell, seen, LOOK),
            Next::Idle if exchange.closed.load(Ordering::SeqCst) => return,
            Next::Idle if idle > PATIENCE => futex::sleep(exchange.bell, seen, Duration::from_secs(60)),
            Next::Idle => futex::sleep(exchange.bell, seen, LOOK),
        }
    }
}

impl State {
    /// Starts what callers have handed in, in their order.
    fn accept(&mut self, new: &Mutex<Vec<TensorMessage>>) {
        for job in std::mem::take(&mut *lock(new)) {
            let rest = match (&self.broken, &mut self.lanes) {
                (None, Some(lanes)) => lanes.accept(job),
                _ => Some(job),
            };
            let Some(job) = rest else { continue };
            if let Some(e) = &self.broken {
                job.finish(Err(e.clone()));
                continue;
            }
            let (data, len) = (TensorBuf::of(&job.tensor).at(0), job.bytes());
            // SAFETY: the job holds the tensor until it is finished, and leaks it after an error.
            let message = unsafe {
                match job.send {
                    true => MpiMessage::send(&self.comm, data, len, job.peer, TAG),
                    false => MpiMessage::recv(&self.comm, data, len, job.peer, TAG),
                }
            };
            match message {
                Ok(m) => self.messages.push((job, m)),
                Err(e) => {
                    self.fail(e.clone());
                    job.finish(Err(e));
                }
            }
        }
        if let Err(e) = self.lanes.as_mut().map_or(Ok(false), |l| l.step(SHORT)) {
            self.fail(e);
        }
    }

    fn step(&mut self) -> Next {
        if self.next() == Next::Idle {
            return Next::Idle;
        }
        match self.advance() {
            Ok(true) => return Next::Again,
            Ok(false) if self.stop.load(Ordering::Relaxed) => self.fail(stopped("message")),
            Ok(false) => {}
            Err(e) => self.fail(e),
        }
        self.next()
    }

    fn advance(&mut self) -> Result<bool> {
        let mut moved = self.lanes.as_mut().map_or(Ok(false), |l| l.step(SLICE))?;
        let mut i = 0;
        while i < self.messages.len() {
            match self.messages[i].1.test()? {
                true => {
                    let (job, _) = self.messages.remove(i);
                    let busy = job.started.elapsed();
                    job.finish(Ok(busy));
                    moved = true;
                }
                false => i += 1,
            }
        }
        Ok(moved)
    }

    fn next(&self) -> Next {
        match (self.messages.is_empty(), self.lanes.as_ref().is_none_or(CmaRings::is_idle)) {
            (false, _) => Next::Look,
            (true, false) => Next::Bell,
            (true, true) => Next::Idle,
        }
    }

    /// Every message under way and all later ones end with this error: the ranks no longer agree on what matches what.
    fn fail(&mut self, e: Error) {
        let jobs = self.messages.drain(..).map(|(job, _)| job);
        let jobs: Vec<TensorMessage> = jobs.chain(self.lanes.iter_mut().flat_map(CmaRings::take_jobs)).collect();
        for job in jobs {
            job.finish(Err(e.clone()));
        }
        self.broken.get_or_insert(e);
    }
}
