//! Which accelerators this process can use. CUDA is looked for at run time, so one binary serves hosts with and without.

use super::ffi;
use super::memory::Stats;
use std::sync::OnceLock;
use tch::Device;

/// What was found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevices {
    /// Devices that libtorch can use; 0 where there is none.
    pub count: usize,
    /// Where the host has the NVIDIA driver and there is no device to use: why, in the loader's or libtorch's words.
    pub why_none: Option<String>,
}

/// CUDA devices that libtorch can use: none at once on a host without the NVIDIA driver.
/// The first call loads `libtorch_cuda`; make it before anything else asks libtorch for CUDA (libtorch remembers a "no").
pub fn cuda_devices() -> &'static CudaDevices {
    static FOUND: OnceLock<CudaDevices> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut why = std::ptr::null_mut();
        // SAFETY: an out parameter; the shim catches C++ exceptions and the lock makes it run once.
        let count = unsafe { ffi::herd_cuda_devices(&mut why) }.max(0) as usize;
        // SAFETY: null or the shim's words, read once.
        let why_none = unsafe { ffi::text(why) }.map(|w| w.split_whitespace().collect::<Vec<_>>().join(" "));
        CudaDevices { count, why_none }
    })
}

/// [`cuda_devices`], their number alone.
pub fn cuda_device_count() -> usize {
    cuda_devices().count
}

/// Memory of a CUDA device, by its driver and by libtorch's allocator of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes of this process's tensors, and those its allocator holds.
    pub tensors: Stats,
    /// Bytes that are free, as the driver says.
    pub free: u64,
    /// Bytes that the device has.
    pub total: u64,
}

impl DeviceMemory {
    /// Of `device`; `None` for the CPU, or where the allocator says nothing (before the first tensor).
    pub fn of(device: Device) -> Option<DeviceMemory> {
        let Device::Cuda(index) = device else { return None };
        let mut out = [0u64; 5];
        // SAFETY: room for five values; the shim catches C++ exceptions.
        let known = unsafe { ffi::herd_device_memory(index as i64, out.as_mut_ptr()) };
        let [live, peak, reserved, free, total] = out;
        known.then_some(DeviceMemory { tensors: Stats { live, peak, reserved }, free, total })
    }

    /// Bytes that this process's tensors and allocator do not hold, and are not free: contexts and other processes.
    pub fn others(&self) -> u64 {
        self.total.saturating_sub(self.free).saturating_sub(self.tensors.reserved)
    }
}

/// Starts a new peak of `device`'s tensors at the bytes alive now.
pub fn reset_peak(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: the shim catches C++ exceptions.
        unsafe { ffi::herd_device_reset_peak(index as i64) }
    }
}

/// The driver's name of a CUDA device's model, as in "NVIDIA H100 80GB HBM3": the first that the kernel driver lists (the
/// devices of a node are alike). `None` for a CPU or where the driver tells nothing.
pub fn name(device: Device) -> Option<String> {
    if device == Device::Cpu {
        return None;
    }
    let first = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten().next()?;
    let text = std::fs::read_to_string(first.path().join("information")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Model:")).map(|m| m.trim().to_string())
}
