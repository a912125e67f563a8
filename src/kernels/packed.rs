//! Sequences of different lengths one after the other, for kernels that take them in one call.

use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// What attends to what in a micro-batch of B sequences: entry i of the queries to entry i of the keys, causally, the queries
/// being the last of their keys. Row n of the queries is row n of [B·S,..]; of the keys, see `rows`.
#[derive(Debug)]
pub struct PackedSequences {
    /// [n+1] i32, on the device: where each entry begins, and the end.
    pub queries: Tensor,
    /// [n+1] i32, on the device: the same of the rows that [`PackedSequences::keys_of`] gives.
    pub keys: Tensor,
    /// Most queries of one entry.
    pub longest_queries: i64,
    /// Most keys of one entry.
    pub longest_keys: i64,
    /// [total] i64: the rows of [B·K,..] that the keys are, where they are not all of them in order (keys that several
    /// entries see).
    rows: Option<Tensor>,
}

impl PackedSequences {
    /// Of pairs of a number of queries, in order, and their rows of the keys, of which there are `total`.
    pub fn new(entries: &[(usize, Range<usize>)], total: usize, device: Device) -> PackedSequences {
        let bounds = |lengths: &mut dyn Iterator<Item = usize>| {
            let mut end = 0;
            let ends: Vec<i32> = std::iter::once(0)
                .chain(lengths.map(|n| {
                    end += n;
                    end as i32
                }))
                .collect();
            Tensor::from_slice(&ends).to_device(device)
        };
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0) as i64;
        let mut next = 0;
        let in_order =
            entries.iter().all(|(_, keys)| std::mem::replace(&mut next, keys.end) == keys.start) && next == total;
        let rows = || {
            let all: Vec<i64> = entries.iter().flat_map(|(_, keys)| keys.clone()).map(|row| row as i64).collect();
            Tensor::from_slice(&all).to_device(device)
        };
        PackedSequences {
            queries: bounds(&mut entries.iter().map(|e| e.0)),
            keys: bounds(&mut entries.iter().map(|e| e.1.len())),
            longest_queries: longest(&mut entries.iter().map(|e| e.0)),
            longest_keys: longest(&mut entries.iter().map(|e| e.1.len())),
            rows: (!in_order).then(rows),
        }
    }

    /// The keys (or values) of all entries, of [B·K,heads,D].
    pub fn keys_of(&self, t: &Tensor) -> Tensor {
        self.rows.as_ref().map_or_else(|| t.shallow_clone(), |rows| t.index_select(0, rows))
    }

    /// Gradients of what [`PackedSequences::keys_of`] gave into `to` [B,K,heads,D], which is overwritten; those of a key that several
    /// entries see are added up in fp32.
    pub fn give_keys(&self, gradient: Tensor, to: &mut Tensor) {
        let size = to.size();
        let Some(rows) = &self.rows else { return to.copy_(&gradient.view(size.as_slice())) };
        let sum = Tensor::zeros([size[0] * size[1], size[2], size[3]], (Kind::Float, to.device()));
        let sum = sum.index_add(0, rows, &gradient.to_kind(Kind::Float));
        to.copy_(&sum.view(size.as_slice()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_two_entries_see_get_both_gradients() {
        let p = PackedSequences::new(&[(2, 0..2), (1, 0..3)], 3, Device::Cpu);
        assert_eq!(Vec::<i32>::try_from(&p.keys).unwrap(), [0, 2, 5]);
        assert_eq!((p.longest_queries, p.longest_keys), (2, 3));
        let keys = Tensor::from_slice(&[1f32, 2., 3.]).view([3, 1, 1]);
        let gathered = p.keys_of(&keys);
        assert_eq!(Vec::<f32>::try_from(gathered.view(-1)).unwrap(), [1., 2., 1., 2., 3.]);
        let mut to = Tensor::full([1, 3, 1, 1], f64::NAN, (Kind::Float, Device::Cpu));
        p.give_keys(gathered, &mut to);
        assert_eq!(Vec::<f32>::try_from(to.view(-1)).unwrap(), [2., 4., 3.]);
    }

    #[test]
    fn rows_in_order_are_not_gathered() {
        let p = PackedSequences::new(&[(2, 0..2), (3, 2..5)], 5, Device::Cpu);
        assert!(p.rows.is_none());
        assert!(PackedSequences::new(&[(2, 0..2)], 5, Device::Cpu).rows.is_some());
    }
}
