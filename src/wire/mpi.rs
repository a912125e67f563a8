//! One axis over MPI on host memory: a communication thread that runs the queued collectives in order, through shared
//! memory when all ranks of the axis are on one node and by messages otherwise.
//!
//! The thread, not MPI's progress, is what lets communication go on while the caller computes.

use crate::error::{Error, Result};
use crate::threads;
use crate::wire::buffer::{fits, is_peer, is_root, usable, TensorBuf};
use crate::wire::combine::element_size;
use crate::wire::mail::PointToPoint;
use crate::wire::messages::MpiCollectives;
use crate::wire::route::Route;
use crate::wire::shared::{ShmCollectives, ShmMemory};
use crate::wire::{Wire, Work};
use crate::world::comm::Comm;
use crate::world::meters::WireMeter;
use crate::world::{leak, Op};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

enum Collective {
    AllReduce(Op),
    ReduceScatter,
    AllGather,
    Broadcast(usize),
}

/// A queued collective; it holds its tensors, so that their memory outlives it.
struct Job {
    what: Collective,
    input: Tensor,
    output: Option<Tensor>,
    done: Sender<Result<Duration>>,
}

/// One axis of the grid over MPI.
///
/// Tensors must be contiguous and on the CPU; dtypes: f32, f64, i64, u8, bf16. Sums and maxima are combined in rank
/// order: the same bits on every rank and in every run.
pub struct MpiWire {
    rank: usize,
    size: usize,
    /// None on an axis of one rank. The thread ends when it is dropped, and is never joined: after a failure it may
    /// be waiting for a peer that is gone.
    queue: Option<Sender<Job>>,
    /// Where [`Wire::tensor`] puts tensors, when the ranks share memory.
    memory: Option<Arc<ShmMemory>>,
    /// None on an axis of one rank.
    mail: Option<PointToPoint>,
    meter: Option<WireMeter>,
}

/// How the bytes of this axis move.
enum Path {
    Shared(ShmCollectives),
    MpiCollectives(MpiCollectives),
}

impl MpiWire {
    /// An axis of one rank: nothing to move.
    pub fn solo() -> MpiWire {
        MpiWire { rank: 0, size: 1, queue: None, memory: None, mail: None, meter: None }
    }

    /// Collective over `comm`.
    pub(super) fn new(comm: Comm, stop: Arc<AtomicBool>, via: Route, meter: WireMeter) -> Result<MpiWire> {
        let (rank, size) = (comm.rank()?, comm.size());
        let flag = stop.clone();
        let node = comm.split_node()?;
        let one_node = via == Route::Fastest && node.size() == size;
        let mail = PointToPoint::new(&comm, (via == Route::Fastest).then_some(&node), stop.clone())?;
        let path = match one_node {
            true => match ShmCollectives::new(comm, stop.clone())? {
                Ok(shared) => Path::Shared(shared),
                Err(comm) => Path::MpiCollectives(MpiCollectives::new(comm, stop)?),
            },
            false => Path::MpiCollectives(MpiCollectives::new(comm, stop)?),
        };
        let memory = match &path {
            Path::Shared(shared) => Some(shared.memory()),
            Path::MpiCollectives(_) => None,
        };
        let (queue, jobs) = channel();
        let (watched, stop) = (meter.clone(), flag);
        threads::start("herd-wire", "a communication thread", move || serve(path, jobs, &watched, &stop))?;
        Ok(MpiWire { rank, size, queue: Some(queue), memory, mail: Some(mail), meter: Some(meter) })
    }

    fn start(&self, what: Collective, input: &Tensor, output: Option<&Tensor>) -> Result<Work> {
        for t in [Some(input), output].into_iter().flatten() {
            // Alone, a rank has nothing to move: any device will do.
            usable(t, if self.size == 1 { t.device() } else { Device::Cpu })?;
        }
        let Some(queue) = &self.queue else {
            if let Some(out) = output {
                out.shallow_clone().copy_(input);
            }
            return Ok(Work::ready());
        };
        if input.numel() == 0 {
            return Ok(Work::ready());
        }
        let (done, rx) = channel();
        let job = Job { what, input: input.shallow_clone(), output: output.map(Tensor::shallow_clone), done };
        // A thread that is gone shows when the work is waited for.
        let _ = queue.send(job);
        Ok(Work::pending(rx).metered(self.meter.clone(), None))
    }

    fn message(&self, tensor: &Tensor, send: bool, peer: usize) -> Result<Work> {
        usable(tensor, Device::Cpu)?;
        is_peer(send, self.rank, self.size, peer)?;
        match &self.mail {
            Some(mail) => Ok(mail.start(tensor, send, peer)?.metered(self.meter.clone(), Some(peer))),
            None => Ok(Work::ready()),
        }
    }
}

impl MpiWire {
    /// What liveness reads of this wire; `None` on an axis of one rank.
    pub(super) fn meter(&self) -> Option<WireMeter> {
        self.meter.clone()
    }
}

impl Wire for MpiWire {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn tensor(&self, len: usize, kind: Kind) -> Result<Tensor> {
        let width = element_size(kind).unwrap_or(0);
        let shared = match &self.memory {
            Some(memory) if len * width > 0 => memory.allocate(len * width)?,
            _ => None,
        };
        match shared {
            // SAFETY: zero-filled memory of that many bytes, page-aligned and mapped until the process ends.
            Some(p) => Ok(unsafe { Tensor::f_from_blob(p, &[len as i64], &[1], kind, Device::Cpu)? }),
            None => Ok(Tensor::f_zeros([len as i64], (kind, Device::Cpu))?),
        }
    }

    fn window(&self, len: usize, kind: Kind) -> Result<Option<Tensor>> {
        let width = element_size(kind).unwrap_or(0);
        let shared = match &self.memory {
            Some(memory) if len * width > 0 => memory.window(len * width)?,
            _ => None,
        };
        let n = (len * self.size) as i64;
        // SAFETY: zero-filled memory of that many bytes, aligned to a page and mapped until the process ends.
        let tensor = |p: *mut u8| unsafe { Tensor::f_from_blob(p, &[n], &[1], kind, Device::Cpu) };
        Ok(shared.map(tensor).transpose()?)
    }

    fn all_reduce(&self, tensor: &Tensor, op: Op) -> Result<Work> {
        self.start(Collective::AllReduce(op), tensor, None)
    }

    fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("reduce-scatter", self.size, output, input)?;
        self.start(Collective::ReduceScatter, input, Some(output))
    }

    fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("all-gather", self.size, input, output)?;
        self.start(Collective::AllGather, input, Some(output))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        is_root(self.size, root)?;
        self.start(Collective::Broadcast(root), tensor, None)
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Work> {
        self.message(tensor, true, to)
    }

    fn recv(&self, tensor: &Tensor, from: usize) -> Result<Work> {
        self.message(tensor, false, from)
    }
}

/// The communication thread. After the first error every later collective gets the same one: the ranks no longer agree
/// on what is under way.
fn serve(mut path: Path, jobs: Receiver<Job>, meter: &WireMeter, stop: &AtomicBool) {
    let mut broken: Option<Error> = None;
    for job in jobs {
        let start = Instant::now();
        let result = match &broken {
            Some(e) => Err(e.clone()),
            None => meter
                .tensors(stop, || Ok(()), || run(&mut path, &job))
                .map_err(|e| Error { rank: e.rank.and_then(|r| meter.world_rank(r)), ..e }),
        };
        if let Err(e) = &result {
            broken.get_or_insert_with(|| e.clone());
            // MPI may still read and write the buffers of an operation that failed.
            if let Path::MpiCollectives(m) = &mut path {
                m.leak();
            }
            leak((job.input, job.output));
        }
        // The caller may have dropped the Work.
        let _ = job.done.send(result.map(|()| start.elapsed()));
    }
}

fn run(path: &mut Path, job: &Job) -> Result<()> {
    let kind = job.input.kind();
    let input = TensorBuf::of(&job.input);
    let output = job.output.as_ref().map_or(input, TensorBuf::of);
    // SAFETY: the job holds the tensors, whose users wait for the Work; `serve` leaks them after an error.
    unsafe {
        match (path, &job.what) {
            (Path::Shared(p), Collective::AllReduce(op)) => p.all_reduce(kind, *op, input),
            (Path::Shared(p), Collective::ReduceScatter) => p.reduce_scatter(kind, Op::Sum, input, output),
            (Path::Shared(p), Collective::AllGather) => p.all_gather(kind, input, output),
            (Path::Shared(p), Collective::Broadcast(root)) => p.broadcast(kind, input, *root),
            (Path::MpiCollectives(p), Collective::AllReduce(op)) => p.all_reduce(kind, *op, input),
            (Path::MpiCollectives(p), Collective::ReduceScatter) => p.reduce_scatter(kind, Op::Sum, input, output),
            (Path::MpiCollectives(p), Collective::AllGather) => p.all_gather(input, output),
            (Path::MpiCollectives(p), Collective::Broadcast(root)) => p.broadcast(input, *root),
        }
    }
}
