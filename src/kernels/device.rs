//! Which accelerators this process can use. CUDA is looked for at run time, so one binary serves hosts with and without.

use super::ffi;
use std::sync::OnceLock;

/// CUDA devices that libtorch can use: 0 at once on a host without the NVIDIA driver or with a libtorch built without CUDA.
/// The first call loads `libtorch_cuda`; make it before anything else asks libtorch for CUDA (libtorch remembers a "no").
pub fn cuda_device_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    // SAFETY: no arguments; the shim catches C++ exceptions and the lock makes it run once.
    *COUNT.get_or_init(|| unsafe { ffi::herd_cuda_device_count() }.max(0) as usize)
}

/// The driver's name of a CUDA device's model, as in "NVIDIA H100 80GB HBM3": the first that the kernel driver lists (the
/// devices of a node are alike). `None` for a CPU or where the driver tells nothing.
pub fn name(device: tch::Device) -> Option<String> {
    if device == tch::Device::Cpu {
        return None;
    }
    let first = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten().next()?;
    let text = std::fs::read_to_string(first.path().join("information")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Model:")).map(|m| m.trim().to_string())
}
