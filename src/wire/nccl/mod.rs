//! Device tensors by NCCL: nothing passes through the host, and the host does not wait for the device.
//!
//! An operation runs on a stream of its own behind what libtorch had been given when it was started; [`Work::wait`]
//! makes libtorch's stream wait for it and returns. Collectives share a communicator. Each direction of each pair that
//! exchanges messages has one as well: on a shared one a receive that was started early would hold up the sends that
//! its peer waits for. A thread aborts the communicators when the world's stop flag is set or NCCL reports an error,
//! which frees the device and with it every wait.

mod channel;
mod clock;
mod cuda;
mod ffi;
#[cfg(test)]
mod tests;

pub(super) use cuda::bus_id;
pub(super) use ffi::version;

use crate::error::{Error, Exit, Result};
use crate::threads::{self, lock};
use crate::wire::buffer::{fits, is_peer, is_root, usable};
use crate::wire::mpi::MpiWire;
use crate::wire::work::{orphaned, Later};
use crate::wire::{Timing, Wire, Work};
use crate::world::ffi::stopped;
use crate::world::{leak, Op};
use channel::{Channel, Common, Party};
use clock::Clock;
use cuda::{CudaEvent, Gpu, COMPUTE};
use ffi::{unique_id, Call, NcclComm, NcclOperation, ID};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// How often the stop flag and NCCL's errors are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// [`Wire`] of tensors on one CUDA device that this rank has for itself. Host tensors go over the host wire.
///
/// Sums are made in the tensor's dtype in an order that NCCL chooses: the same bits on every rank, but not those of the
/// other wires, nor of another number of ranks.
pub struct NcclWire {
    host: MpiWire,
    device: Device,
    common: Common,
    channels: Mutex<HashMap<Lane, Channel>>,
    comms: Arc<Mutex<Vec<Arc<NcclComm>>>>,
}

/// Which communicator an operation uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    Collectives,
    To(usize),
    From(usize),
}

impl NcclWire {
    /// Every rank of `host` calls it, each with a device of its own. Communicators are made when first used.
    pub(super) fn new(host: MpiWire, device: Device, stop: Arc<AtomicBool>) -> Result<NcclWire> {
        version()?;
        let Device::Cuda(index) = device else {
            return Err(Error::new(Exit::Internal, format!("an NCCL wire for tensors on {device:?}")));
        };
        NcclWire::on(host, device, Gpu::new(index)?, stop)
    }

    fn on(host: MpiWire, device: Device, gpu: Gpu, stop: Arc<AtomicBool>) -> Result<NcclWire> {
        let common = Common { gpu, stop, clock: Arc::default(), meter: host.meter() };
        let comms = Arc::default();
        let (watched, shared) = (Arc::downgrade(&comms), common.clone());
        threads::start("herd-nccl-watch", "a communication thread", move || watch(&watched, &shared))?;
        Ok(NcclWire { host, device, common, channels: Mutex::default(), comms })
    }

    fn is_here(&self, t: &Tensor) -> Result<bool> {
        let here = t.device() == self.device;
        usable(t, if here || t.device() != Device::Cpu { self.device } else { Device::Cpu }).map(|()| here)
    }

    fn start(&self, lane: Lane, what: NcclOperation, input: &Tensor, output: &Tensor, count: usize) -> Result<Work> {
        let Common { gpu, stop, clock, .. } = &self.common;
        if stop.load(Ordering::Relaxed) {
            return Err(stopped("operation on a device"));
        }
        if count == 0 && lane == Lane::Collectives {
            return Ok(Work::ready());
        }
        gpu.here()?;
        let ready = gpu.record(COMPUTE)?;
        let call = Call { what, input: input.data_ptr(), output: output.data_ptr(), count, kind: input.kind() };
        let mut channels = lock(&self.channels);
        let channel = match channels.entry(lane) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => e.insert(self.open(lane)?),
        };
        let peer = match lane {
            Lane::Collectives => None,
            Lane::To(peer) | Lane::From(peer) => Some(peer),
        };
        let work = Work::later(Box::new(Enqueued {
            ended: Ended::Asked(channel.start(call, ready)),
            comm: channel.comm().clone(),
            gpu: *gpu,
            clock: clock.clone(),
            tensors: Some([input.shallow_clone(), output.shallow_clone()]),
        }));
        Ok(work.metered(self.host.meter(), peer))
    }

    /// The first rank of a communicator makes its id and sends it through the host.
    fn open(&self, lane: Lane) -> Result<Channel> {
        let (rank, size) = match lane {
            Lane::Collectives => (self.rank(), self.size()),
            Lane::To(_) => (0, 2),
            Lane::From(_) => (1, 2),
        };
        let mut bytes = [0u8; ID + 1];
        let made = if rank == 0 { unique_id().map(|id| bytes[..ID].copy_from_slice(&id.0)) } else { Ok(()) };
        bytes[ID] = made.is_err().into();
        let letter = Tensor::from_slice(&bytes);
        let id = match lane {
            Lane::Collectives => self.host.broadcast(&letter, 0),
            Lane::To(peer) => self.host.send(&letter, peer),
            Lane::From(peer) => self.host.recv(&letter, peer),
        }?;
        made?;
        let mut common = self.common.clone();
        common.meter = common.meter.filter(|_| lane == Lane::Collectives);
        let channel = Channel::open(common, Party { rank, size, id, letter })?;
        lock(&self.comms).push(channel.comm().clone());
        Ok(channel)
    }

    fn collective(&self, what: NcclOperation, input: &Tensor, output: &Tensor, count: usize) -> Result<Work> {
        self.start(Lane::Collectives, what, input, output, count)
    }
}

impl Wire for NcclWire {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn tensor(&self, len: usize, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_zeros([len as i64], (kind, self.device))?)
    }

    fn window(&self, _: usize, _: Kind) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn all_reduce(&self, tensor: &Tensor, op: Op) -> Result<Work> {
        match self.is_here(tensor)? {
            true => self.collective(NcclOperation::AllReduce(op), tensor, tensor, tensor.numel()),
            false => self.host.all_reduce(tensor, op),
        }
    }

    fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("reduce-scatter", self.size(), output, input)?;
        match self.is_here(input)? && self.is_here(output)? {
            true => self.collective(NcclOperation::ReduceScatter, input, output, output.numel()),
            false => self.host.reduce_scatter(input, output),
        }
    }

    fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work> {
        fits("all-gather", self.size(), input, output)?;
        match self.is_here(input)? && self.is_here(output)? {
            true => self.collective(NcclOperation::AllGather, input, output, input.numel()),
            false => self.host.all_gather(input, output),
        }
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        is_root(self.size(), root)?;
        match self.is_here(tensor)? {
            true => self.collective(NcclOperation::Broadcast(root), tensor, tensor, tensor.numel()),
            false => self.host.broadcast(tensor, root),
        }
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Work> {
        is_peer(true, self.rank(), self.size(), to)?;
        match self.is_here(tensor)? {
            // In a communicator of two the sender is rank 0.
            true => self.start(Lane::To(to), NcclOperation::Send(1), tensor, tensor, tensor.numel()),
            false => self.host.send(tensor, to),
        }
    }

    fn recv(&self, tensor: &Tensor, from: usize) -> Result<Work> {
        is_peer(false, self.rank(), self.size(), from)?;
        match self.is_here(tensor)? {
            true => self.start(Lane::From(from), NcclOperation::Recv(0), tensor, tensor, tensor.numel()),
            false => self.host.recv(tensor, from),
        }
    }

    fn sound(&self) -> Result<()> {
        lock(&self.comms).iter().find_map(|c| c.broken()).map_or(Ok(()), Err)
    }

    fn measured(&self) -> Timing {
        self.common.clock.take()
    }
}

/// Until the wire is dropped: aborts all communicators when one is broken or the stop flag is set.
fn watch(comms: &Weak<Mutex<Vec<Arc<NcclComm>>>>, common: &Common) {
    let on_device = common.gpu.here().is_ok();
    while let Some(comms) = comms.upgrade() {
        let comms: Vec<Arc<NcclComm>> = lock(&comms).clone();
        let mut why = comms.iter().find_map(|c| c.poll("operation on a device").err());
        if common.stop.load(Ordering::Relaxed) {
            why = Some(stopped("operation on a device"));
        }
        if let Some(e) = why {
            NcclComm::abort_all(&comms, &e);
        } else if on_device {
            // A device that fails shows in the operations themselves.
            let _ = common.clock.collect(&common.gpu);
        }
        std::thread::sleep(LOOK);
    }
}

/// An operation that the channel's thread puts on the stream.
struct Enqueued {
    ended: Ended,
    comm: Arc<NcclComm>,
    gpu: Gpu,
    clock: Arc<Clock>,
    /// Taken when the compute stream is behind the operation: from then on libtorch may hand their memory out again.
    tensors: Option<[Tensor; 2]>,
}

enum Ended {
    Asked(Receiver<Result<CudaEvent>>),
    Known(Result<CudaEvent>),
}

impl Later for Enqueued {
    fn is_done(&mut self) -> bool {
        if let Ended::Asked(rx) = &self.ended {
            self.ended = match rx.try_recv() {
                Ok(result) => Ended::Known(result),
                Err(TryRecvError::Disconnected) => Ended::Known(Err(orphaned())),
                Err(TryRecvError::Empty) => return false,
            };
        }
        match &self.ended {
            Ended::Known(Ok(event)) => self.gpu.reached(event).unwrap_or(true),
            _ => true,
        }
    }

    fn wait(mut self: Box<Self>) -> Result<Duration> {
        let ended = match std::mem::replace(&mut self.ended, Ended::Known(Err(orphaned()))) {
            Ended::Asked(rx) => rx.recv().unwrap_or_else(|_| Err(orphaned())),
            Ended::Known(result) => result,
        }?;
        if let Some(e) = self.comm.broken() {
            return Err(e);
        }
        self.gpu.here()?;
        let before = self.gpu.record(COMPUTE)?;
        self.gpu.order(COMPUTE, &ended)?;
        self.clock.exposed(before, self.gpu.record(COMPUTE)?);
        self.tensors = None;
        Ok(Duration::ZERO)
    }
}

impl Drop for Enqueued {
    /// Not waited for, or failed: the device may still use the tensors.
    fn drop(&mut self) {
        leak(self.tensors.take());
    }
}
