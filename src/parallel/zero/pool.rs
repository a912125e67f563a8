//! Whole-unit buffers that exist while they are needed.
//!
//! A buffer given back serves the next unit of about the same length: blocks share two buffers, and embedding and head one.
//! How many there are depends on the order of the calls alone, never on the speed of a wire; after the first step none is
//! made.

use crate::error::Result;
use crate::layout::sharding::{buffer_lengths, buffers_at_once};
use crate::layout::UnitLayout;
use std::sync::Arc;
use tch::Tensor;

pub(super) struct Pool {
    free: Vec<Tensor>,
    kinds: Vec<Kind>,
}

/// Buffers of one length.
struct Kind {
    len: usize,
    /// Beyond so many it is better to wait for one that is on its way back.
    enough: usize,
    made: usize,
}

/// A buffer in use: the first elements of one of the pool's.
pub(super) struct Buffer {
    whole: Tensor,
    pub tensor: Tensor,
}

impl Pool {
    pub fn new(units: &[Arc<UnitLayout>]) -> Pool {
        let units: Vec<UnitLayout> = units.iter().map(|u| (**u).clone()).collect();
        let lengths = buffer_lengths(units.iter().map(|u| u.len));
        let kind = |&len: &usize| Kind { len, enough: buffers_at_once(&units, &lengths, len), made: 0 };
        Pool { kinds: lengths.iter().map(kind).collect(), free: Vec::new() }
    }

    /// Whether a unit of `len` elements should wait for a buffer, if one is on its way back.
    pub fn should_wait(&self, len: usize) -> bool {
        let kind = self.kind(len);
        !self.free.iter().any(|t| t.numel() == self.kinds[kind].len) && self.kinds[kind].made >= self.kinds[kind].enough
    }

    /// A buffer of `len` elements with anything in them; `make` makes one of a given length where none is free.
    pub fn take(&mut self, len: usize, make: impl FnOnce(usize) -> Result<Tensor>) -> Result<Buffer> {
        let kind = self.kind(len);
        let kind = &mut self.kinds[kind];
        let whole = match self.free.iter().position(|t| t.numel() == kind.len) {
            Some(i) => self.free.swap_remove(i),
            None => {
                kind.made += 1;
                make(kind.len)?
            }
        };
        Ok(Buffer { tensor: whole.narrow(0, 0, len as i64), whole })
    }

    pub fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer.whole);
    }

    fn kind(&self, len: usize) -> usize {
        self.kinds.iter().position(|k| k.len >= len).expect("a unit of the pool")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Unit;
    use tch::{Device, Kind};

    #[test]
    fn buffers_are_made_once_and_shared_by_units_of_one_size() {
        let unit = |unit, len| Arc::new(UnitLayout { unit, frozen: false, params: Vec::new(), used: len, len });
        let mut units = vec![unit(Unit::Embedding, 1000), unit(Unit::Head, 1016)];
        units.extend((0..4).map(|i| unit(Unit::Block(i), 320)));
        let mut pool = Pool::new(&units);
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
            assert!(pool.should_wait(1000));
            let (a, b) = (take(&mut pool, 320), take(&mut pool, 320));
            assert!(pool.should_wait(320));
            [head, a, b].into_iter().for_each(|x| pool.give(x));
            assert!(!pool.should_wait(320));
            let embedding = take(&mut pool, 1000);
            assert_eq!(embedding.tensor.numel(), 1000);
            pool.give(embedding);
        }
        assert_eq!(made, [1016, 320, 320]);
    }
}
