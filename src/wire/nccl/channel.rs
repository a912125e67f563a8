//! One communicator with its stream and the thread that gives it work.

use crate::error::{Error, Exit, Result};
use crate::threads;
use crate::wire::nccl::clock::Clock;
use crate::wire::nccl::cuda::{CudaEvent, Gpu};
use crate::wire::nccl::ffi::{Call, NcclComm, UniqueId, ID};
use crate::wire::Work;
use crate::world::meters::WireMeter;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use tch::Tensor;

/// What every channel of a wire shares.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) gpu: Gpu,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) clock: Arc<Clock>,
    /// Where collectives are counted.
    pub(super) meter: Option<WireMeter>,
}

/// The other ranks of a communicator, and how its id comes to this rank.
pub(super) struct Party {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// The host message or broadcast that carries the id, and what it carries it in: [`ID`] bytes and one that is 0 if
    /// they are valid.
    pub(super) id: Work,
    pub(super) letter: Tensor,
}

struct Job {
    call: Call,
    /// Reached when the inputs are computed.
    ready: CudaEvent,
    /// The event that ends the operation, once NCCL has put it on the stream.
    done: Sender<Result<CudaEvent>>,
}

pub(super) struct Channel {
    queue: Sender<Job>,
    comm: Arc<NcclComm>,
}

impl Channel {
    /// Returns at once; the communicator is made by the thread.
    pub(super) fn open(common: Common, party: Party) -> Result<Channel> {
        let comm = Arc::new(NcclComm::new()?);
        let (queue, jobs) = channel();
        let own = comm.clone();
        threads::start("herd-nccl", "a communication thread", move || {
            if let Err(e) = serve(&common, &own, party, &jobs) {
                own.abort(e.clone());
                jobs.into_iter().for_each(|job: Job| _ = job.done.send(Err(e.clone())));
            }
        })?;
        Ok(Channel { queue, comm })
    }

    pub(super) fn comm(&self) -> &Arc<NcclComm> {
        &self.comm
    }

    /// Starts `call` behind `ready`. Its addresses must stay valid until the event that comes back has been reached.
    pub(super) fn start(&self, call: Call, ready: CudaEvent) -> Receiver<Result<CudaEvent>> {
        let (done, rx) = channel();
        // A thread that is gone shows when the work is waited for.
        let _ = self.queue.send(Job { call, ready, done });
        rx
    }
}

/// Until the wire is dropped or something breaks.
fn serve(common: &Common, comm: &NcclComm, party: Party, jobs: &Receiver<Job>) -> Result<()> {
    let Common { gpu, stop, clock, meter } = common;
    party.id.wait()?;
    let bytes = Vec::<u8>::try_from(&party.letter)?;
    let id = match (<[u8; ID]>::try_from(&bytes[..ID.min(bytes.len())]), bytes.get(ID)) {
        (Ok(id), Some(0)) => UniqueId(id),
        _ => return Err(Error::new(Exit::Peer, "the first rank of a group could not make an NCCL id")),
    };
    gpu.here()?;
    let stream = gpu.stream()?;
    comm.init(id, party.rank, party.size, stop)?;
    for job in jobs {
        let begin = || -> Result<CudaEvent> {
            gpu.order(stream, &job.ready)?;
            let began = gpu.record(stream)?;
            // SAFETY: whoever started the call keeps its tensors until the event below has been reached.
            unsafe { comm.enqueue(&job.call, stream, stop)? };
            let ended = gpu.record(stream)?;
            clock.busy(began, ended.clone(), meter.clone());
            Ok(ended)
        };
        let result = begin();
        let error = result.as_ref().err().cloned();
        // The caller may have dropped the Work.
        let _ = job.done.send(result);
        if let Some(e) = error {
            return Err(e);
        }
    }
    Ok(())
}
