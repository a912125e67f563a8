//! The allocator's counters, in a process of their own: other tests of this program allocate at the same time.

use super::*;
use crate::kernels::{device, memory};

/// Runs the ignored-by-default body of a test alone: this program again, with only that test and a mark in its environment.
fn alone(test: &str, body: fn()) {
    const MARK: &str = "HERD_TEST_ALONE";
    if std::env::var(MARK).as_deref() == Ok(test) {
        return body();
    }
    let exe = std::env::current_exe().expect("this program's path");
    let name = format!("kernels::tests::memory::{test}");
    let out = std::process::Command::new(exe).args(["--exact", &name, "--test-threads=1"]).env(MARK, test).output();
    let out = out.expect("this program starts again");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn counters_follow_tensors() {
    alone("counters_follow_tensors", || {
        memory::install();
        memory::install();
        let new = |n: i64| Tensor::zeros([n], (Kind::Uint8, Device::Cpu));
        let base = memory::live();
        let a = new(10_000_001);
        assert_eq!(memory::live() - base, 10_000_001);
        memory::reset_peak();
        drop(new(5000));
        let b = new(3000);
        assert_eq!((memory::live() - base, memory::peak() - base), (10_003_001, 10_005_001));
        drop((a, b));
        assert_eq!(memory::live(), base);
        memory::reset_peak();
        assert_eq!(memory::peak(), base);
    });
}

#[test]
fn freed_blocks_come_back() {
    alone("freed_blocks_come_back", || {
        memory::install();
        for bytes in [1, 100, 4096, 1 << 20, 3_000_000, 64 << 20] {
            let new = || Tensor::zeros([bytes], (Kind::Uint8, Device::Cpu));
            let first = new();
            let address = first.data_ptr();
            assert_eq!(address as usize % 64, 0, "{bytes} bytes");
            drop(first);
            let reserved = memory::reserved();
            assert_eq!(new().data_ptr(), address, "{bytes} bytes");
            assert_eq!(memory::reserved(), reserved, "{bytes} bytes");
        }
        assert!(memory::reserved() >= 64 << 20);
        memory::trim();
        assert!(memory::reserved() < 1 << 20, "{} bytes are still held", memory::reserved());
    });
}

#[test]
fn little_is_reserved_beyond_what_was_asked() {
    alone("little_is_reserved_beyond_what_was_asked", || {
        memory::install();
        let (live, reserved) = (memory::live(), memory::reserved());
        let all: Vec<Tensor> =
            (0..200).map(|i| Tensor::empty([50_000 + 77_777 * i], (Kind::Float, Device::Cpu))).collect();
        let (live, reserved) = (memory::live() - live, memory::reserved() - reserved);
        assert!(reserved as f64 <= 1.125 * live as f64 + 200.0 * 512.0, "{reserved} bytes reserved for {live}");
        drop(all);
    });
}

#[test]
fn threads_share_the_allocator() {
    alone("threads_share_the_allocator", || {
        memory::install();
        let base = memory::live();
        let work = |seed: usize| {
            for i in 0..2000 {
                let n = 1 + (i * 7919 + seed * 104_729) % 300_000;
                let t = Tensor::full([n as i64], seed as i64, (Kind::Uint8, Device::Cpu));
                assert_eq!(t.int64_value(&[n as i64 - 1]), seed as i64);
            }
        };
        std::thread::scope(|s| {
            for seed in 1..4 {
                s.spawn(move || work(seed));
            }
        });
        assert_eq!(memory::live(), base);
    });
}

#[test]
fn no_cuda_without_a_driver() {
    let driver = ["/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap"]
        .iter()
        .any(|p| std::path::Path::new(p).exists());
    if !driver {
        assert_eq!(*device::cuda_devices(), device::CudaDevices { count: 0, why_none: None });
    }
}
