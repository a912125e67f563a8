//! Whole-unit buffers that exist while they are needed.
//!
//! A buffer given back serves the next unit of about the same length: blocks share buffers, and so do embedding and head.
//! After the first step no buffer is made.

use crate::error::Result;
use tch::Tensor;

pub(super) struct Pool {
    free: Vec<Tensor>,
    /// Lengths of buffers that are made, ascending.
    classes: Vec<usize>,
}

/// A buffer in use: the first `len` elements of one of the pool's.
pub(super) struct Buffer {
    whole: Tensor,
    pub tensor: Tensor,
}

impl Pool {
    /// For units of these lengths.
    pub fn new(lens: impl Iterator<Item = usize>) -> Pool {
        let mut lens: Vec<usize> = lens.collect();
        lens.sort_unstable();
        // A length that a slightly longer one can stand in for makes no class of its own.
        let classes = (0..lens.len()).filter(|&i| lens.get(i + 1).is_none_or(|next| !near(lens[i], *next)));
        Pool { classes: classes.map(|i| lens[i]).collect(), free: Vec::new() }
    }

    /// A buffer of `len` elements with anything in them; `make` makes one of a given length where none is free.
    pub fn take(&mut self, len: usize, make: impl FnOnce(usize) -> Result<Tensor>) -> Result<Buffer> {
        let class = self.classes.iter().copied().find(|&c| c >= len).unwrap_or(len);
        let whole = match self.free.iter().position(|t| t.numel() == class) {
            Some(i) => self.free.swap_remove(i),
            None => make(class)?,
        };
        Ok(Buffer { tensor: whole.narrow(0, 0, len as i64), whole })
    }

    pub fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer.whole);
    }
}

/// Whether a unit of `len` elements may lie in a buffer of `longer`.
fn near(len: usize, longer: usize) -> bool {
    longer <= len + len / 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn buffers_are_made_once_and_shared_by_units_of_one_size() {
        let mut pool = Pool::new([1000, 320, 320, 320, 1016].into_iter());
        let mut made = Vec::new();
        for _ in 0..3 {
            let mut take = |pool: &mut Pool, len: usize| {
                pool.take(len, |n| {
                    made.push(n);
                    Ok(Tensor::zeros([n as i64], (Kind::Float, Device::Cpu)))
                })
                .unwrap()
            };
            let head = take(&mut pool, 1016);
            assert_eq!(head.tensor.numel(), 1016);
            let (a, b) = (take(&mut pool, 320), take(&mut pool, 320));
            [head, a, b].into_iter().for_each(|x| pool.give(x));
            let embedding = take(&mut pool, 1000);
            assert_eq!(embedding.tensor.numel(), 1000);
            pool.give(embedding);
        }
        assert_eq!(made, [1016, 320, 320]);
    }
}
