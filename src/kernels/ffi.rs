//! The only foreign functions of this room: the C++ shim in `native/`, linked by `build.rs`.

use std::ffi::{c_char, c_void, CStr};
use torch_sys::C_tensor;

extern "C" {
    pub fn herd_parallel(slots: i64, body: extern "C" fn(*mut c_void), context: *mut c_void);
    pub fn herd_threads() -> i64;
    pub fn herd_set_threads(n: i64);
    pub fn herd_memory_install();
    pub fn herd_memory_stats(live: *mut u64, peak: *mut u64, reserved: *mut u64);
    pub fn herd_memory_reset_peak();
    pub fn herd_memory_trim();
    pub fn herd_cuda_devices(why: *mut *mut c_char) -> i64;
    pub fn herd_device_memory(index: i64, out: *mut u64) -> bool;
    pub fn herd_device_reset_peak(index: i64);
    pub fn herd_current_stream(index: i64) -> *mut c_void;
    pub fn herd_has_cudnn_attention() -> bool;
    pub fn herd_flash_attention(
        all: *const *const C_tensor, max_q: i64, max_k: i64, scale: f64, out: *mut *mut C_tensor,
        lse: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub fn herd_cudnn_attention(
        q: *const C_tensor, k: *const C_tensor, v: *const C_tensor, scale: f64, out: *mut *mut C_tensor,
        lse: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Words that the shim allocated with malloc, which are freed; `None` for null.
///
/// # Safety
/// `words` is null or such a string, and is not used afterwards.
pub unsafe fn text(words: *mut c_char) -> Option<String> {
    if words.is_null() {
        return None;
    }
    let text = CStr::from_ptr(words).to_string_lossy().into_owned();
    libc::free(words.cast());
    Some(text)
}
