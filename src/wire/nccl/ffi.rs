//! NCCL's functions, found at run time, and a communicator that another thread can abort.
//!
//! Communicators are non-blocking (NCCL 2.14, user guide "Fault Tolerance"): a call that would wait returns
//! ncclInProgress, and the host asks until it has gone through, so that it can stop asking.

use crate::dynamic::{functions, Library};
use crate::error::{Error, Exit, Result};
use crate::threads;
use crate::wire::nccl::cuda::CudaStream;
use crate::world::ffi::{stopped, Backoff};
use crate::world::Op;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tch::Kind;

const SUCCESS: c_int = 0;
/// ncclUnhandledCudaError.
const CUDA_ERROR: c_int = 1;
const IN_PROGRESS: c_int = 7;
/// First version with non-blocking communicators, as ncclGetVersion codes it.
const OLDEST: c_int = 21400;
/// Bytes of an ncclUniqueId.
pub(super) const ID: usize = 128;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [u8; ID]);

/// ncclConfig_t as NCCL 2.14 had it: later versions read as many bytes as `size` says and take defaults for the rest.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

/// ncclComm_t
type Handle = *mut c_void;

functions! {
    /// nccl.h; results are ncclResult_t.
    Nccl {
        ncclGetVersion(*mut c_int) -> c_int;
        ncclGetUniqueId(*mut UniqueId) -> c_int;
        ncclCommInitRankConfig(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
        ncclCommAbort(Handle) -> c_int;
        ncclGroupStart() -> c_int;
        ncclGroupEnd() -> c_int;
        ncclCommGetAsyncError(Handle, *mut c_int) -> c_int;
        ncclGetErrorString(c_int) -> *const c_char;
        ncclGetLastError(Handle) -> *const c_char;
        ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
        ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
        ncclAllGather(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;
        ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
        ncclSend(*const c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
        ncclRecv(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    }
}

fn nccl() -> Result<&'static Nccl> {
    static NCCL: OnceLock<std::result::Result<Nccl, String>> = OnceLock::new();
    let names = [c"libnccl.so.2", c"libnccl.so"];
    let found = NCCL.get_or_init(|| Nccl::load(&Library::with(c"ncclCommInitRankConfig", &names)?));
    found.as_ref().map_err(|why| {
        Error::new(Exit::Device, format!("NCCL cannot be loaded: {why}"))
            .hint("herd takes the one that libtorch uses, else libnccl.so.2 from LD_LIBRARY_PATH, 2.14 or newer")
    })
}

/// Version code of the NCCL that would be used: 10000·major + 100·minor + patch.
pub(in crate::wire) fn version() -> Result<c_int> {
    let nccl = nccl()?;
    let mut code = 0;
    // SAFETY: out parameter.
    check(nccl, unsafe { (nccl.ncclGetVersion)(&mut code) }, "ncclGetVersion", std::ptr::null_mut())?;
    if code < OLDEST {
        let fact = format!("NCCL has version code {code}, but {OLDEST} (2.14) is the oldest that can be left");
        return Err(Error::new(Exit::Device, fact).hint("load a newer NCCL"));
    }
    Ok(code)
}

/// An id for a new communicator: a listening address of this process.
pub(super) fn unique_id() -> Result<UniqueId> {
    let nccl = nccl()?;
    let mut id = UniqueId([0; ID]);
    // SAFETY: out parameter.
    check(nccl, unsafe { (nccl.ncclGetUniqueId)(&mut id) }, "ncclGetUniqueId", std::ptr::null_mut())?;
    Ok(id)
}

/// An error in NCCL's words. Broken communication is the peer's doing as far as a rank can tell; a CUDA call that fails inside
/// NCCL is this rank's device.
fn check(nccl: &Nccl, code: c_int, call: &str, comm: Handle) -> Result<()> {
    if code == SUCCESS {
        return Ok(());
    }
    // SAFETY: static texts; the last error is a text of the communicator or of the process.
    let words = unsafe {
        let text = |p: *const c_char| match p.is_null() {
            true => String::new(),
            false => CStr::from_ptr(p).to_string_lossy().into_owned(),
        };
        format!("{} {}", text((nccl.ncclGetErrorString)(code)), text((nccl.ncclGetLastError)(comm)))
    };
    let (exit, hint) = match code {
        CUDA_ERROR => (Exit::Device, "see dmesg on that node for NVRM and Xid lines; NCCL_DEBUG=WARN prints more"),
        _ => (Exit::Peer, "NCCL_DEBUG=WARN prints more"),
    };
    Err(Error::new(exit, format!("{call} failed with NCCL code {code}: {}", words.trim())).hint(hint))
}

/// A communicator for the thread that works with it and the one that may abort it.
pub(super) struct NcclComm {
    nccl: &'static Nccl,
    state: Mutex<State>,
}

enum State {
    /// Not made yet, or made.
    Handle(Handle),
    Broken(Error),
}

// SAFETY: NCCL's calls are thread-safe, and the lock keeps the handle from being used after it is freed.
unsafe impl Send for NcclComm {}
unsafe impl Sync for NcclComm {}

impl NcclComm {
    pub(super) fn new() -> Result<NcclComm> {
        Ok(NcclComm { nccl: nccl()?, state: Mutex::new(State::Handle(std::ptr::null_mut())) })
    }

    /// Collective over the ranks that share `id`; the calling thread's device is the one that it is for.
    pub(super) fn init(&self, id: UniqueId, rank: usize, size: usize, stop: &AtomicBool) -> Result<()> {
        let mut config =
            Config { size: std::mem::size_of::<Config>(), magic: 0xcafe_beef, version: OLDEST as c_uint, blocking: 0 };
        if let State::Handle(handle) = &mut *self.lock() {
            // SAFETY: NCCL copies what it is given; the handle is an out parameter.
            let code =
                unsafe { (self.nccl.ncclCommInitRankConfig)(handle, size as c_int, id, rank as c_int, &mut config) };
            if code != IN_PROGRESS {
                check(self.nccl, code, "ncclCommInitRankConfig", std::ptr::null_mut())?;
            }
        }
        self.through("ncclCommInitRankConfig", stop)
    }

    /// Gives `call` to the device; returns when NCCL has put it on `stream`.
    ///
    /// # Safety
    /// The call's addresses are on the communicator's device and valid until the stream has run past it.
    pub(super) unsafe fn enqueue(&self, call: &Call, stream: CudaStream, stop: &AtomicBool) -> Result<()> {
        let n = self.nccl;
        let Call { what, input, output, count, kind } = *call;
        let (dtype, stream) = (dtype(kind)?, stream.0);
        let (input, output) = (input.cast_const(), output);
        {
            let state = self.lock();
            let comm = match &*state {
                State::Handle(h) => *h,
                State::Broken(e) => return Err(e.clone()),
            };
            let code = match what {
                NcclOperation::AllReduce(op) => {
                    (n.ncclAllReduce)(input, output, count, dtype, operation(op), comm, stream)
                }
                NcclOperation::ReduceScatter => {
                    (n.ncclReduceScatter)(input, output, count, dtype, operation(Op::Sum), comm, stream)
                }
                NcclOperation::AllGather => (n.ncclAllGather)(input, output, count, dtype, comm, stream),
                NcclOperation::Broadcast(root) => {
                    (n.ncclBroadcast)(input, output, count, dtype, root as c_int, comm, stream)
                }
                NcclOperation::Send(to) => (n.ncclSend)(input, count, dtype, to as c_int, comm, stream),
                NcclOperation::Recv(from) => (n.ncclRecv)(output, count, dtype, from as c_int, comm, stream),
            };
            if code != IN_PROGRESS {
                check(n, code, what.name(), comm)?;
            }
        }
        self.through(what.name(), stop)
    }

    /// Until the last call has gone through, an error shows, or `stop` is set.
    fn through(&self, call: &str, stop: &AtomicBool) -> Result<()> {
        let mut pause = Backoff::default();
        while !self.poll(call)? {
            if stop.load(Ordering::Relaxed) {
                return Err(stopped(call));
            }
            pause.step();
        }
        Ok(())
    }

    /// Whether nothing is in progress; an error of the network or of a peer that NCCL has noticed meanwhile.
    pub(super) fn poll(&self, what: &str) -> Result<bool> {
        match &*self.lock() {
            State::Broken(e) => Err(e.clone()),
            State::Handle(h) if h.is_null() => Ok(true),
            State::Handle(h) => {
                let mut result = SUCCESS;
                // SAFETY: a live communicator and an out parameter.
                let code = unsafe { (self.nccl.ncclCommGetAsyncError)(*h, &mut result) };
                check(self.nccl, code, "ncclCommGetAsyncError", *h)?;
                match result {
                    IN_PROGRESS => Ok(false),
                    code => check(self.nccl, code, what, *h).map(|()| true),
                }
            }
        }
    }

    /// Ends every operation on the device and frees the communicator; what uses it from now on gets `why`. Once.
    pub(super) fn abort(&self, why: Error) {
        if let Some(handle) = self.give_up(why) {
            // SAFETY: a live communicator, which nobody else has any more. Not under the lock: NCCL waits for the device here.
            unsafe { (self.nccl.ncclCommAbort)(handle) };
        }
    }

    /// [`NcclComm::abort`] of several as one group: one by one the first would wait, while it frees its memory, for kernels of those
    /// that come after it (NCCL's issue 1013).
    pub(super) fn abort_all(comms: &[Arc<NcclComm>], why: &Error) {
        let Some(nccl) = comms.first().map(|c| c.nccl) else { return };
        let handles: Vec<Handle> = comms.iter().filter_map(|c| c.give_up(why.clone())).collect();
        if handles.is_empty() {
            return;
        }
        // SAFETY: live communicators, which nobody else has any more; a group is this thread's own.
        unsafe {
            (nccl.ncclGroupStart)();
            handles.into_iter().for_each(|handle| _ = (nccl.ncclCommAbort)(handle));
            (nccl.ncclGroupEnd)();
        }
    }

    /// The handle, which is the caller's alone from now on; `None` where there is none yet, or none any more.
    fn give_up(&self, why: Error) -> Option<Handle> {
        let mut state = self.lock();
        let State::Handle(handle) = *state else { return None };
        *state = State::Broken(why);
        (!handle.is_null()).then_some(handle)
    }

    pub(super) fn broken(&self) -> Option<Error> {
        match &*self.lock() {
            State::Broken(e) => Some(e.clone()),
            State::Handle(_) => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        threads::lock(&self.state)
    }
}

/// An operation on addresses of the device.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) what: NcclOperation,
    pub(super) input: *mut c_void,
    pub(super) output: *mut c_void,
    /// As NCCL counts it: the elements of the smaller tensor.
    pub(super) count: usize,
    pub(super) kind: Kind,
}

// SAFETY: plain addresses; whoever makes the call answers for them.
unsafe impl Send for Call {}

#[derive(Clone, Copy)]
pub(super) enum NcclOperation {
    AllReduce(Op),
    ReduceScatter,
    AllGather,
    Broadcast(usize),
    Send(usize),
    Recv(usize),
}

impl NcclOperation {
    fn name(&self) -> &'static str {
        match self {
            NcclOperation::AllReduce(_) => "ncclAllReduce",
            NcclOperation::ReduceScatter => "ncclReduceScatter",
            NcclOperation::AllGather => "ncclAllGather",
            NcclOperation::Broadcast(_) => "ncclBroadcast",
            NcclOperation::Send(_) => "ncclSend",
            NcclOperation::Recv(_) => "ncclRecv",
        }
    }
}

/// ncclDataType_t
fn dtype(kind: Kind) -> Result<c_int> {
    Ok(match kind {
        Kind::Uint8 => 1,
        Kind::Int64 => 4,
        Kind::Float => 7,
        Kind::Double => 8,
        Kind::BFloat16 => 9,
        other => return Err(Error::new(Exit::Internal, format!("NCCL is given a tensor of {other:?}"))),
    })
}

/// ncclRedOp_t
fn operation(op: Op) -> c_int {
    match op {
        Op::Sum => 0,
        Op::Max => 2,
    }
}
