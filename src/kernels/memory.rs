//! The caching allocator behind libtorch's CPU tensors: freed blocks keep their pages and are handed out again, and the
//! bytes that tensors asked for are counted. Nothing is counted before [`install`].

use super::ffi;

/// Bytes asked for by tensors alive now, their highest sum since [`reset_peak`], and bytes held from the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Bytes asked for by tensors alive now.
    pub live: u64,
    /// The highest that `live` has been since [`reset_peak`].
    pub peak: u64,
    /// Bytes held from the system, in use or waiting to be used again.
    pub reserved: u64,
}

/// Makes libtorch use the allocator for every CPU tensor from now on. Idempotent; earlier tensors stay valid.
pub fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: the allocator lives for the whole process; c10 keeps a plain pointer to it.
    ONCE.call_once(|| unsafe { ffi::herd_memory_install() });
}

/// All three counters, taken at one moment.
pub fn stats() -> Stats {
    let (mut live, mut peak, mut reserved) = (0, 0, 0);
    // SAFETY: three valid pointers, written under the allocator's lock.
    unsafe { ffi::herd_memory_stats(&mut live, &mut peak, &mut reserved) };
    Stats { live, peak, reserved }
}

/// Bytes of the CPU tensors alive now.
pub fn live() -> u64 {
    stats().live
}

/// Highest [`live`] since the last [`reset_peak`] (as `torch.cuda.max_memory_allocated`).
pub fn peak() -> u64 {
    stats().peak
}

/// Bytes held from the system, in use or waiting to be used again.
pub fn reserved() -> u64 {
    stats().reserved
}

/// Starts a new peak at the bytes alive now.
pub fn reset_peak() {
    // SAFETY: no arguments; locked inside.
    unsafe { ffi::herd_memory_reset_peak() }
}

/// Gives the blocks that no tensor uses back to the system: after a phase whose shapes do not come back.
pub fn trim() {
    // SAFETY: no arguments; locked inside; only blocks on free lists are unmapped.
    unsafe { ffi::herd_memory_trim() }
}
