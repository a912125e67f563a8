//! Parallel loops on libtorch's own OpenMP threads: no second pool beside it.
//!
//! Tasks are taken from a counter as threads become free, so which thread runs a task is not fixed: a task must write only
//! what is its own. Reductions store one partial result a task and add them in task order; with task bounds taken from the
//! shape alone, the result does not depend on the number of threads.

use super::ffi;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that a parallel loop of this thread uses.
pub fn threads() -> usize {
    // SAFETY: no arguments.
    unsafe { ffi::herd_threads() }.max(1) as usize
}

/// Sets the threads of libtorch's operations and of [`tasks`], for the calling thread. At least one.
pub fn set_threads(n: usize) {
    // SAFETY: a positive count is what at::set_num_threads asks for.
    unsafe { ffi::herd_set_threads(n.max(1) as i64) }
}

/// Runs `task(0)`, …, `task(n-1)` over the threads and returns when all are done. A panic in a task aborts the process.
pub fn tasks<F: Fn(usize) + Sync>(n: usize, task: F) {
    let slots = threads().min(n);
    if slots <= 1 {
        return (0..n).for_each(task);
    }
    struct Shared<'a, F> {
        next: AtomicUsize,
        n: usize,
        task: &'a F,
    }
    // `extern "C"`: a panic cannot unwind into C++, it aborts.
    extern "C" fn body<F: Fn(usize) + Sync>(context: *mut c_void) {
        // SAFETY: `context` is the `Shared` below, which outlives the call of herd_parallel; it is only read.
        let shared = unsafe { &*(context as *const Shared<F>) };
        loop {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            if i >= shared.n {
                return;
            }
            (shared.task)(i);
        }
    }
    let shared = Shared { next: AtomicUsize::new(0), n, task: &task };
    // SAFETY: F is Sync, so several threads may call it; herd_parallel joins its threads before it returns.
    unsafe { ffi::herd_parallel(slots as i64, body::<F>, &shared as *const _ as *mut c_void) }
}

/// Splits `0..len` into chunks of `size` (the last may be shorter) and runs `task(chunk index, range)` for each.
pub fn chunks<F: Fn(usize, Range<usize>) + Sync>(len: usize, size: usize, task: F) {
    tasks(len.div_ceil(size), |i| task(i, i * size..len.min((i + 1) * size)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once() {
        for n in [0, 1, 2, 7, 1000] {
            let seen = Mutex::new(vec![0; n]);
            tasks(n, |i| seen.lock().unwrap()[i] += 1);
            assert!(seen.into_inner().unwrap().iter().all(|&c| c == 1), "{n} tasks");
        }
    }

    #[test]
    fn chunks_cover_the_range() {
        let sum = AtomicUsize::new(0);
        chunks(103, 10, |i, r| {
            assert_eq!(r.start, i * 10);
            sum.fetch_add(r.sum::<usize>(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 103 * 102 / 2);
    }
}
