//! Speed of a rank's cores and memory, in work that is done in a set time by all ranks of all nodes at once, and whether the
//! results have the right bits.

use crate::doctor::facts::SpeedFacts;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tch::Tensor;

/// Edge of the matrices: a product is a few milliseconds of one core, and they lie in its cache.
const EDGE: i64 = 384;
/// Bytes that a thread copies at a time: more than its share of a cache.
const COPY: usize = 16 << 20;

/// Work with a known result. The entries are whole numbers whose products sum to less than 2^24, so fp32 holds every sum exactly
/// whatever the order, and there is one right answer, bit for bit.
pub struct Load {
    a: Tensor,
    b: Tensor,
    product: Tensor,
    threads: usize,
}

// SAFETY: the tensors are only read, each product goes into a tensor of its thread.
unsafe impl Sync for Load {}

impl Load {
    /// For `threads` threads of this rank.
    pub fn new(threads: usize) -> Load {
        let n = EDGE as usize;
        let fill =
            |m: usize, k: usize| -> Vec<i32> { (0..n * n).map(|i| ((i * m + i / n * k) % 31) as i32 - 15).collect() };
        let (a, b) = (fill(7, 3), fill(11, 5));
        let product = multiplied(&a, &b, n);
        let tensor = |v: &[i32]| {
            let v: Vec<f32> = v.iter().map(|&x| x as f32).collect();
            Tensor::from_slice(&v).view([EDGE, EDGE])
        };
        // each of our threads computes by itself: threads of a pool that wait for one another on a shared core measure the waiting
        tch::set_num_threads(1);
        let load = Load { a: tensor(&a), b: tensor(&b), product: tensor(&product), threads: threads.max(1) };
        load.products(Duration::ZERO);
        load
    }

    /// Products for `compute`, then copies for `copy`.
    pub fn measure(&self, compute: Duration, copy: Duration) -> SpeedFacts {
        let (flops, wrong) = self.products(compute);
        SpeedFacts { flops, wrong, memory: self.copies(copy) }
    }

    /// Operations a second over all threads, and wrong results. At least one product a thread.
    fn products(&self, time: Duration) -> (f64, u64) {
        let wrong = AtomicU64::new(0);
        let work = || {
            let out = self.a.matmul(&self.b);
            let right = out.equal(&self.product);
            wrong.fetch_add(u64::from(!right), Relaxed);
        };
        let (done, _) = self.for_a_time(time, || work);
        let operations = 2.0 * (EDGE as f64).powi(3);
        (done * operations, wrong.into_inner())
    }

    /// Bytes a second over all threads, read and written, while they had a core: what keeps them from one shows in the products.
    fn copies(&self, time: Duration) -> f64 {
        let make = || {
            let (from, mut to) = (vec![1u8; COPY], vec![0u8; COPY]);
            move || {
                to.copy_from_slice(std::hint::black_box(&from));
                std::hint::black_box(&mut to);
            }
        };
        self.for_a_time(time, make).1 * 2.0 * COPY as f64
    }

    /// How often a second all threads together do the work, at least once each, for `time`: by the clock, and by the time that they
    /// had a core.
    fn for_a_time<W: FnMut()>(&self, time: Duration, make: impl Fn() -> W + Sync) -> (f64, f64) {
        let each = || {
            // a setting of each thread
            tch::set_num_threads(1);
            let mut work = make();
            let (began, cpu, mut done) = (Instant::now(), on_cpu(), 0);
            loop {
                work();
                done += 1;
                let took = began.elapsed();
                if took >= time {
                    let on_core = (on_cpu() - cpu).max(1e-9);
                    return (f64::from(done) / took.as_secs_f64(), f64::from(done) / on_core);
                }
            }
        };
        std::thread::scope(|s| {
            let others: Vec<_> = (1..self.threads).map(|_| s.spawn(each)).collect();
            let own = each();
            let all = others.into_iter().map(|t| t.join().unwrap_or_default());
            all.fold(own, |sum, one| (sum.0 + one.0, sum.1 + one.1))
        })
    }

    /// Makes the known result a wrong one.
    #[cfg(test)]
    fn broken(&mut self) {
        let _ = self.product.get(0).fill_(0.5);
    }
}

/// Seconds that this thread has had a core.
fn on_cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// The product in whole numbers.
fn multiplied(a: &[i32], b: &[i32], n: usize) -> Vec<i32> {
    let mut out = vec![0i32; n * n];
    for (row, a) in out.chunks_mut(n).zip(a.chunks(n)) {
        for (x, b) in a.iter().zip(b.chunks(n)) {
            row.iter_mut().zip(b).for_each(|(o, y)| *o += x * y);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_right_and_a_wrong_one_is_seen() {
        let mut load = Load::new(2);
        let found = load.measure(Duration::from_millis(20), Duration::from_millis(5));
        assert!(found.flops > 1e6 && found.memory > 1e6 && found.wrong == 0, "{found:?}");
        load.broken();
        assert!(load.measure(Duration::ZERO, Duration::ZERO).wrong >= 2);
        assert_eq!(multiplied(&[1, 2, 3, 4], &[5, 6, 7, 8], 2), [19, 22, 43, 50]);
    }
}
