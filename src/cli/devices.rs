//! What a command says about the devices of its host.

use crate::error::{Error, Exit};
use crate::kernels::device::cuda_devices;
use tch::Device;

/// The line for a run that `auto` put on the CPU of a host that has the NVIDIA driver.
pub fn fallen_back(device: Device, auto: bool) -> Option<String> {
    let why = cuda_devices().why_none.as_ref().filter(|_| auto && device == Device::Cpu)?;
    Some(format!(
        "device auto: this host has the NVIDIA driver, but libtorch has no CUDA device ({why}): going on on the CPU, many times slower"
    ))
}

/// An error for want of a device, with why there is none.
pub fn with_reason(mut e: Error) -> Error {
    if let (Exit::Device, Some(why)) = (e.exit, &cuda_devices().why_none) {
        let add = format!("; the NVIDIA driver is there, but: {why}");
        match e.problems.last_mut() {
            Some(problem) => problem.push_str(&add),
            None => e.fact.push_str(&add),
        }
    }
    e
}
