//! The few calls of the CUDA runtime that ordering needs: streams and events of one device.
//!
//! libtorch computes on the legacy default stream (handle 0) of its device, as herd uses it. NCCL works on streams that
//! do not synchronise with that one by themselves; events order the two.

use crate::dynamic::{functions, Library};
use crate::error::{Error, Exit, Result};
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const NOT_READY: c_int = 600;
const STREAM_NON_BLOCKING: c_uint = 1;

/// cudaStream_t and cudaEvent_t.
type Handle = *mut c_void;

functions! {
    /// CUDA Runtime API, the same in CUDA 11 to 13.
    Runtime {
        cudaSetDevice(c_int) -> c_int;
        cudaStreamCreateWithFlags(*mut Handle, c_uint) -> c_int;
        cudaStreamWaitEvent(Handle, Handle, c_uint) -> c_int;
        cudaEventCreateWithFlags(*mut Handle, c_uint) -> c_int;
        cudaEventRecord(Handle, Handle) -> c_int;
        cudaEventQuery(Handle) -> c_int;
        cudaEventElapsedTime(*mut f32, Handle, Handle) -> c_int;
        cudaEventDestroy(Handle) -> c_int;
        cudaDeviceGetPCIBusId(*mut c_char, c_int, c_int) -> c_int;
        cudaGetErrorString(c_int) -> *const c_char;
    }
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let names = [c"libcudart.so.13", c"libcudart.so.12", c"libcudart.so.11.0", c"libcudart.so"];
    let found = RUNTIME.get_or_init(|| Runtime::load(&Library::with(c"cudaStreamCreateWithFlags", &names)?));
    found.as_ref().map_err(|why| {
        Error::new(Exit::Device, format!("the CUDA runtime (libcudart) cannot be loaded: {why}"))
            .hint("it comes with CUDA builds of libtorch; load the site's cuda module or set train.device=cpu")
    })
}

/// PCI bus id of a device of this process, as in "0000:1b:00.0": the same whatever CUDA_VISIBLE_DEVICES says.
pub(in crate::wire) fn bus_id(device: usize) -> Result<String> {
    let runtime = runtime()?;
    let mut text = [0u8; 64];
    // SAFETY: the buffer has that many bytes, the last stays zero.
    let code = unsafe { (runtime.cudaDeviceGetPCIBusId)(text.as_mut_ptr().cast(), 63, device as c_int) };
    check(runtime, code, "cudaDeviceGetPCIBusId")?;
    Ok(String::from_utf8_lossy(text.split(|&b| b == 0).next().unwrap_or_default()).into_owned())
}

fn check(runtime: &Runtime, code: c_int, call: &str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a static text for any code.
    let text = unsafe { (runtime.cudaGetErrorString)(code) };
    // SAFETY: as above.
    let words = if text.is_null() { "".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
    Err(Error::new(Exit::Device, format!("{call} failed with CUDA error {code}: {words}"))
        .hint("see dmesg for an NVRM or Xid line; a card in that state needs a reset"))
}

/// One device, seen from any thread.
#[derive(Clone, Copy)]
pub(super) struct Gpu {
    runtime: &'static Runtime,
    index: c_int,
}

/// Never destroyed: it lives as long as its communicator, which is until the process ends.
#[derive(Clone, Copy)]
pub(super) struct CudaStream(pub(super) Handle);

// SAFETY: handles that any thread may use.
unsafe impl Send for CudaStream {}
unsafe impl Sync for CudaStream {}

/// libtorch's.
pub(super) const COMPUTE: CudaStream = CudaStream(std::ptr::null_mut());

/// A point in the order of a stream, with its time.
#[derive(Clone)]
pub(super) struct CudaEvent(Arc<EventHandle>);

struct EventHandle(Handle, &'static Runtime);

// SAFETY: as for Stream.
unsafe impl Send for EventHandle {}
unsafe impl Sync for EventHandle {}

impl Drop for EventHandle {
    fn drop(&mut self) {
        // SAFETY: made by cudaEventCreate; CUDA frees it once it has happened.
        unsafe { (self.1.cudaEventDestroy)(self.0) };
    }
}

impl Gpu {
    pub(super) fn new(index: usize) -> Result<Gpu> {
        let gpu = Gpu { runtime: runtime()?, index: index as c_int };
        gpu.here()?;
        Ok(gpu)
    }

    fn check(&self, code: c_int, call: &str) -> Result<()> {
        check(self.runtime, code, call)
    }

    /// Makes it the calling thread's device, as the other calls need.
    pub(super) fn here(&self) -> Result<()> {
        // SAFETY: no pointers.
        self.check(unsafe { (self.runtime.cudaSetDevice)(self.index) }, "cudaSetDevice")
    }

    pub(super) fn stream(&self) -> Result<CudaStream> {
        let mut out = std::ptr::null_mut();
        // SAFETY: out parameter.
        let code = unsafe { (self.runtime.cudaStreamCreateWithFlags)(&mut out, STREAM_NON_BLOCKING) };
        self.check(code, "cudaStreamCreateWithFlags").map(|()| CudaStream(out))
    }

    /// An event at the present end of `stream`.
    pub(super) fn record(&self, stream: CudaStream) -> Result<CudaEvent> {
        let mut out = std::ptr::null_mut();
        // SAFETY: out parameter, then a new event and a stream of this device.
        unsafe {
            self.check((self.runtime.cudaEventCreateWithFlags)(&mut out, 0), "cudaEventCreateWithFlags")?;
            let event = CudaEvent(Arc::new(EventHandle(out, self.runtime)));
            self.check((self.runtime.cudaEventRecord)(out, stream.0), "cudaEventRecord")?;
            Ok(event)
        }
    }

    /// What is given to `stream` from now on runs after `event`. The host goes on at once.
    pub(super) fn order(&self, stream: CudaStream, event: &CudaEvent) -> Result<()> {
        // SAFETY: handles of this device.
        self.check(unsafe { (self.runtime.cudaStreamWaitEvent)(stream.0, event.0 .0, 0) }, "cudaStreamWaitEvent")
    }

    /// Whether the device has come to `event`.
    pub(super) fn reached(&self, event: &CudaEvent) -> Result<bool> {
        // SAFETY: an event of this device.
        match unsafe { (self.runtime.cudaEventQuery)(event.0 .0) } {
            NOT_READY => Ok(false),
            code => self.check(code, "cudaEventQuery").map(|()| true),
        }
    }

    /// Device time between two events that have been reached.
    pub(super) fn between(&self, from: &CudaEvent, to: &CudaEvent) -> Result<Duration> {
        let mut milliseconds = 0.0;
        // SAFETY: out parameter and events of this device.
        let code = unsafe { (self.runtime.cudaEventElapsedTime)(&mut milliseconds, from.0 .0, to.0 .0) };
        self.check(code, "cudaEventElapsedTime")?;
        Ok(Duration::try_from_secs_f64(milliseconds as f64 / 1e3).unwrap_or_default())
    }
}
