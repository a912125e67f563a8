//! Device tensors over MPI: each operation copies to host memory, runs on the host wire and copies back. Several ranks
//! may share one device, which NCCL refuses.
//!
//! A thread copies to the host, because that waits for the device, and starts the operation, in the order of the calls.
//! The copy back is made by whoever waits for the work. Receives have nothing to copy first and start at once. Sums are
//! the host wire's: the same bits as on the CPU.

use crate::error::libtorch::first_words;
use crate::error::{Error, Result};
use crate::threads::{self, lock};
use crate::wire::buffer::{fits, is_peer, is_root, usable};
use crate::wire::mpi::MpiWire;
use crate::wire::work::{orphaned, Later};
use crate::wire::{Wire, Work};
use crate::world::Op;
use std::sync::mpsc::{channel, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};
use tch::{Device, Kind, TchError, Tensor};

/// [`Wire`] of tensors on one device over a host wire. Host tensors are carried as well, without the copies.
pub struct StagedWire {
    host: Arc<MpiWire>,
    device: Device,
    pool: Arc<Pool>,
    queue: Sender<Job>,
}

enum StagedOperation {
    AllReduce(Op),
    ReduceScatter,
    AllGather,
    Broadcast(usize),
    Send(usize),
}

struct Job {
    what: StagedOperation,
    input: Tensor,
    output: Option<Tensor>,
    done: Sender<Result<Started>>,
}

/// An operation on the host wire and what remains to do after it.
struct Started {
    work: Work,
    /// From the host, to the device.
    back: Option<(Tensor, Tensor)>,
    /// To give back to the pool.
    stages: Vec<Tensor>,
    copying: Duration,
}

impl StagedWire {
    pub(super) fn new(host: MpiWire, device: Device) -> Result<StagedWire> {
        let (host, pool) = (Arc::new(host), Arc::new(Pool { device, free: Mutex::default() }));
        let (queue, jobs) = channel();
        let thread = StagingThread { host: host.clone(), device, pool: pool.clone() };
        threads::start("herd-staged", "a communication thread", move || thread.serve(jobs))?;
        Ok(StagedWire { host, device, pool, queue })
    }

    fn check(&self, t: &Tensor) -> Result<()> {
        usable(t, if t.device() == Device::Cpu { Device::Cpu } else { self.device })
    }

    fn start(&self, what: StagedOperation, input: &Tensor, output: Option<&Tensor>) -> Result<Work> {
        for t in [Some(input), output].into_iter().flatten() {
            self.check(t)?;
        }
        let (done, rx) = channel();
        let job = Job { what, input: input.shallow_clone(), output: output.map(Tensor::shallow_clone), done };
        // A thread that is gone shows when the work is waited for.
        let _ = self.queue.send(job);
        Ok(Work::later(Box::new(Staged { from: StagedStart::Thread(rx), pool: self.pool.clone() })))
    }
}

impl Wire for StagedWire {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn tensor(&self, len: usize, kind: Kind) -> Result<Tensor> {
        match self.device {
            Device::Cpu => self.host.tensor(len, kind),
            device => Ok(Tensor::f_zeros([len as i64], (kind, device))?),
        }
    }

    fn window(&self, len: usize, kind: Kind) -> Result<Option<Tensor>> {
        match self.device {
            Device::Cpu => self.host.window(len, kind),
            _ => Ok(None),
        }
    }

    fn all_reduce(&self, tensor: &Tensor, op: Op) -> Result<Work> {
        self.start(StagedOperation::AllReduce(op), tensor, None)
    }

    fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("reduce-scatter", self.size(), output, input)?;
        self.start(StagedOperation::ReduceScatter, input, Some(output))
    }

    fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("all-gather", self.size(), input, output)?;
        self.start(StagedOperation::AllGather, input, Some(output))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        is_root(self.size(), root)?;
        self.start(StagedOperation::Broadcast(root), tensor, None)
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Work> {
        is_peer(true, self.rank(), self.size(), to)?;
        self.start(StagedOperation::Send(to), tensor, None)
    }

    fn recv(&self, tensor: &Tensor, from: usize) -> Result<Work> {
        is_peer(false, self.rank(), self.size(), from)?;
        self.check(tensor)?;
        if tensor.device() != self.device {
            return self.host.recv(tensor, from);
        }
        let (whole, stage) = self.pool.take(tensor)?;
        let work = self.host.recv(&stage, from)?;
        let back = Some((stage, tensor.shallow_clone()));
        let started = Started { work, back, stages: vec![whole], copying: Duration::ZERO };
        Ok(Work::later(Box::new(Staged { from: StagedStart::Here(started), pool: self.pool.clone() })))
    }
}

/// What the thread works with.
struct StagingThread {
    host: Arc<MpiWire>,
    device: Device,
    pool: Arc<Pool>,
}

impl StagingThread {
    /// Until the wire is dropped. It never waits for another rank.
    fn serve(&self, jobs: Receiver<Job>) {
        let mut broken: Option<Error> = None;
        for job in jobs {
            let started = match &broken {
                Some(e) => Err(e.clone()),
                None => self.begin(&job),
            };
            if let Err(e) = &started {
                // Peers have started an operation that this rank has not.
                broken.get_or_insert_with(|| e.clone());
            }
            // The caller may have dropped the Work.
            let _ = job.done.send(started);
        }
    }

    fn begin(&self, job: &Job) -> Result<Started> {
        let start = Instant::now();
        let mut stages = Vec::new();
        let mut stage = |t: &Tensor, fill: bool| -> Result<Tensor> {
            if t.device() != self.device {
                return Ok(t.shallow_clone());
            }
            let (whole, mut view) = self.pool.take(t)?;
            stages.push(whole);
            if fill {
                view.f_copy_(&t.f_view(-1)?)?;
            }
            Ok(view)
        };
        let is_root = |root| self.host.rank() == root;
        let input = stage(&job.input, !matches!(job.what, StagedOperation::Broadcast(r) if !is_root(r)))?;
        let output = job.output.as_ref().map(|t| stage(t, false)).transpose()?;
        let out = output.as_ref().unwrap_or(&input);
        let copying = start.elapsed();
        let work = match job.what {
            StagedOperation::AllReduce(op) => self.host.all_reduce(&input, op),
            StagedOperation::ReduceScatter => self.host.reduce_scatter(&input, out),
            StagedOperation::AllGather => self.host.all_gather(&input, out),
            StagedOperation::Broadcast(root) => self.host.broadcast(&input, root),
            StagedOperation::Send(to) => self.host.send(&input, to),
        }?;
        let device = job.output.as_ref().unwrap_or(&job.input);
        let unchanged = matches!(job.what, StagedOperation::Send(_)) || device.device() != self.device;
        let back = (!unchanged).then(|| (out.shallow_clone(), device.shallow_clone()));
        Ok(Started { work, back, stages, copying })
    }
}

enum StagedStart {
    Thread(Receiver<Result<Started>>),
    Here(Started),
    Failed(Error),
}

struct Staged {
    from: StagedStart,
    pool: Arc<Pool>,
}

impl Later for Staged {
    fn is_done(&mut self) -> bool {
        if let StagedStart::Thread(rx) = &self.from {
            self.from = match rx.try_recv() {
                Ok(Ok(started)) => StagedStart::Here(started),
                Ok(Err(e)) => StagedStart::Failed(e),
                Err(TryRecvError::Disconnected) => StagedStart::Failed(orphaned()),
                Err(TryRecvError::Empty) => return false,
            };
        }
        match &mut self.from {
            StagedStart::Here(started) => started.work.is_done(),
            _ => true,
        }
    }

    fn wait(self: Box<Self>) -> Result<Duration> {
        let mut started = match self.from {
            StagedStart::Thread(rx) => rx.recv().unwrap_or_else(|_| Err(orphaned()))?,
            StagedStart::Here(started) => started,
            StagedStart::Failed(e) => return Err(e),
        };
        // After an error MPI may still use the stages: they do not go back to the pool, and the host wire leaks them.
        let busy = started.work.wait()?.busy;
        let start = Instant::now();
        if let Some((host, device)) = &mut started.back {
            device.f_view(-1)?.f_copy_(host)?;
        }
        drop(started.back);
        self.pool.give(started.stages);
        Ok(busy + started.copying + start.elapsed())
    }
}

fn say_unpinned(e: &TchError) {
    static SAID: Once = Once::new();
    let words = first_words(&e.to_string());
    SAID.call_once(|| tracing::warn!("no page-locked host memory ({words}): copies to and from the device are slower"));
}

/// Host memory that is used again: pages that the device can reach (pinned) are slow to get.
struct Pool {
    device: Device,
    free: Mutex<Vec<Tensor>>,
}

impl Pool {
    /// A stage and a flat view of it with the elements of `like`.
    fn take(&self, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let bytes = like.numel() * like.kind().elt_size_in_bytes();
        let found = {
            let mut free = lock(&self.free);
            let fits = |t: &&(usize, usize)| t.1 >= bytes && t.1 / 2 <= bytes.max(4096);
            let sizes: Vec<(usize, usize)> = free.iter().map(Tensor::numel).enumerate().collect();
            sizes.iter().filter(fits).min_by_key(|t| t.1).map(|t| t.0).map(|i| free.swap_remove(i))
        };
        let whole = match found {
            Some(t) => t,
            None => {
                let plain = Tensor::f_empty([bytes.max(1).next_multiple_of(4096) as i64], (Kind::Uint8, Device::Cpu))?;
                match self.device {
                    Device::Cpu => plain,
                    device => plain.f_pin_memory(device).unwrap_or_else(|e| {
                        say_unpinned(&e);
                        plain
                    }),
                }
            }
        };
        let view = whole.f_narrow(0, 0, bytes as i64)?.f_view_dtype(like.kind())?;
        Ok((whole, view))
    }

    fn give(&self, stages: Vec<Tensor>) {
        lock(&self.free).extend(stages);
    }
}
