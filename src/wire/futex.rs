//! Sleeping until another process changes a word of shared memory (futex(2)).

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Wakes every rank that sleeps on `word` (futex(2), not private: the sleepers are other processes).
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: the word is mapped; no time limit is passed.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps while `word` is `now`, at most `limit`.
pub(super) fn sleep(word: &AtomicU32, now: u32, limit: Duration) {
    let limit = libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos() as i64 };
    // SAFETY: the word is mapped and the limit outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, now, &limit) };
}
