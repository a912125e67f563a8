//! The only foreign functions of this room: the C++ shim in `native/`, linked by `build.rs`.

use std::ffi::c_void;

extern "C" {
    pub fn herd_parallel(slots: i64, body: extern "C" fn(*mut c_void), context: *mut c_void);
    pub fn herd_threads() -> i64;
    pub fn herd_set_threads(n: i64);
    pub fn herd_memory_install();
    pub fn herd_memory_stats(live: *mut u64, peak: *mut u64, reserved: *mut u64);
    pub fn herd_memory_reset_peak();
    pub fn herd_memory_trim();
    pub fn herd_cuda_device_count() -> i64;
}
