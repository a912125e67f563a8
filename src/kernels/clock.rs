//! How long this process has been in matrix products: the part of a step that only a faster product can shorten.
//! Attention's own products are inside its fused kernel and are not counted. Two clock reads a call, so it is always on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static NANOS: AtomicU64 = AtomicU64::new(0);

/// Time in the linear layers' products since the process started. Wall clock of the calling thread: on a CUDA device, which
/// runs behind the host, it says nothing.
pub fn matmul() -> Duration {
    Duration::from_nanos(NANOS.load(Ordering::Relaxed))
}

/// Runs `product` and counts its time.
pub(super) fn counted<R>(product: impl FnOnce() -> R) -> R {
    let began = Instant::now();
    let result = product();
    NANOS.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_product_takes() {
        let before = matmul();
        assert_eq!(counted(|| std::thread::sleep(Duration::from_millis(20))), ());
        assert!(matmul() - before >= Duration::from_millis(20));
    }
}
