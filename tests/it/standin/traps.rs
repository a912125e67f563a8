//! The stand-in finds what it is there to find: bugs put in on purpose.

use super::{environment, inside};
use crate::support::text;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use tch::{Device, Kind, Tensor};

const CARD: (Kind, Device) = (Kind::Float, Device::Cuda(0));

#[test]
fn a_host_that_reads_device_memory_is_stopped() {
    const NAME: &str = "standin::traps::a_host_that_reads_device_memory_is_stopped";
    if std::env::var_os(super::INSIDE_STANDIN).is_some() {
        assert!(inside(NAME, &[]));
        let t = Tensor::ones([4], CARD);
        eprintln!("about to read");
        // SAFETY: none: this is the bug, and the process must not survive it.
        let value = unsafe { std::ptr::read_volatile(t.data_ptr() as *const f32) };
        eprintln!("read {value}");
        return;
    }
    let Some(environment) = environment() else { return };
    let mut child = Command::new(std::env::current_exe().unwrap());
    let out = child.args(["--exact", NAME, "--nocapture", "--test-threads=1"]).envs(environment).output().unwrap();
    assert_eq!(out.status.signal(), Some(libc::SIGSEGV), "{}", text(&out));
    assert!(text(&out).contains("about to read") && !text(&out).contains("read 1"), "{}", text(&out));
}

#[test]
fn memory_that_nobody_wrote_is_not_a_number() {
    if !inside("standin::traps::memory_that_nobody_wrote_is_not_a_number", &[]) {
        return;
    }
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        assert!(Tensor::empty([5], (kind, Device::Cuda(0))).sum(Kind::Double).double_value(&[]).is_nan(), "{kind:?}");
    }
    // The bug: a gradient buffer that the first micro-batch adds to instead of writing.
    let (dy, x, grad) = (Tensor::ones([8, 16], CARD), Tensor::ones([8, 32], CARD), Tensor::empty([16, 32], CARD));
    herd::kernels::linear_backward_weight(&dy, &x, &grad);
    assert!(grad.sum(Kind::Double).double_value(&[]).is_nan());
    herd::kernels::linear_backward_weight_first(&dy, &x, &grad);
    assert_eq!(grad.sum(Kind::Double).double_value(&[]), 8.0 * 16.0 * 32.0);
    // Memory that was given back and is read through a view that outlived it in the wrong place, as a kernel would.
    let freed = Tensor::ones([1000], CARD);
    drop(freed);
    assert!(Tensor::empty([1000], CARD).sum(Kind::Double).double_value(&[]).is_nan());
}

#[test]
fn tensors_of_two_devices_are_refused() {
    if !inside("standin::traps::tensors_of_two_devices_are_refused", &[]) {
        return;
    }
    let (here, there) = (Tensor::ones([3], (Kind::Float, Device::Cpu)), Tensor::ones([3], CARD));
    let refused = there.f_add(&here).unwrap_err().to_string();
    assert!(refused.contains("same device"), "{refused}");
    // A number is no tensor of the host.
    let sum = (&there + 1.0).sum(Kind::Float);
    assert_eq!(f64::try_from(sum).unwrap(), 6.0);
}

/// Live and highest bytes are those that tensors asked for.
#[test]
fn bytes_are_counted() {
    if !inside("standin::traps::bytes_are_counted", &[]) {
        return;
    }
    use herd::kernels::device::{reset_peak, DeviceMemory};
    let _first = Tensor::ones([1], CARD);
    let stats = || DeviceMemory::of(Device::Cuda(0)).unwrap().tensors;
    reset_peak(Device::Cuda(0));
    let before = stats();
    let big = Tensor::empty([1000], CARD);
    assert_eq!(stats().live - before.live, 4000);
    drop(big);
    assert_eq!((stats().live, stats().peak), (before.live, before.live + 4000));
    reset_peak(Device::Cuda(0));
    assert_eq!(stats().peak, before.live);
}
