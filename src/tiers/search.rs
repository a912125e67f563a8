//! In which order a rank looks through the snapshots of those that wrote a step, so that it finds what it needs in few.

use crate::topology::{Axis, Topology};
use std::collections::VecDeque;

/// Every writer once.
pub(super) struct SearchOrder {
    /// Those that come next, whoever else is left.
    expected: VecDeque<usize>,
    given: Vec<bool>,
    first: usize,
    /// Writers from `first` on that were passed.
    passed: usize,
}

impl SearchOrder {
    /// From `first` on, of `writers`.
    pub fn new(first: usize, writers: usize) -> SearchOrder {
        SearchOrder { expected: [first].into(), given: vec![false; writers], first, passed: 0 }
    }

    /// A snapshot says that the writers were on the axes of `topology`.
    pub fn expect(&mut self, topology: &Topology) {
        let world = topology.sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if world == Some(self.given.len()) {
            self.expected.extend(likely(&Topology::new(self.first, topology.sizes)));
        }
    }
}

impl Iterator for SearchOrder {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let writers = self.given.len();
        loop {
            let next = match self.expected.pop_front() {
                Some(writer) => writer,
                None if self.passed < writers => {
                    self.passed += 1;
                    (self.first + self.passed - 1) % writers
                }
                None => return None,
            };
            if !std::mem::replace(&mut self.given[next], true) {
                return Some(next);
            }
        }
    }
}

/// Who has what a rank with this place needs and has not written itself ([`crate::layout::Param::owner`]): norms the first
/// rank of its tensor axis, a KV head that several share the first of them, a tied embedding the first stage. Then its
/// replicas, nearest first, for ranges that were cut otherwise.
fn likely(place: &Topology) -> Vec<usize> {
    let (tensor, stages) = (place.group(Axis::Tensor), place.group(Axis::Pipeline));
    let (replicas, own) = (place.replica_group(), place.replica());
    let mut all = vec![tensor[0], stages[0]];
    // As many ranks share a head as there are more than heads: mostly a power of two.
    let at = place.coord(Axis::Tensor);
    all.extend(
        (1..usize::BITS)
            .map_while(|bits| 1usize.checked_shl(bits).filter(|&n| n < tensor.len()))
            .map(|n| tensor[at / n * n]),
    );
    all.extend(tensor[..at].iter().rev());
    for distance in 1..replicas.len() {
        all.extend(own.checked_sub(distance).map(|r| replicas[r]));
        all.extend(replicas.get(own + distance));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, ParallelSection};
    use crate::layout::{Layout, Sharding};
    use std::collections::HashSet;

    #[test]
    fn every_writer_comes_once() {
        let mut order = SearchOrder::new(5, 24);
        assert_eq!(order.next(), Some(5));
        order.expect(&Topology::new(0, [4, 1, 3, 2]));
        let rest: Vec<usize> = order.collect();
        assert_eq!(rest[..2], [4, 1], "norms, the first stage");
        assert_eq!(rest.iter().collect::<HashSet<_>>().len(), 23);
        // What a snapshot says of its axes may be nonsense.
        let mut order = SearchOrder::new(1, 3);
        order.expect(&Topology::new(0, [usize::MAX, 2, 1, 1]));
        assert_eq!(order.collect::<Vec<_>>(), [1, 2, 0]);
    }

    /// On the axes of many runs: what each rank reads at a restart on the same axes is in the first few snapshots.
    #[test]
    fn what_a_rank_needs_is_in_few() {
        for (sizes, kv, tied, zero) in [
            ([8, 1, 16, 4], 8, false, 1),
            ([8, 1, 4, 8], 2, true, 3),
            ([16, 2, 2, 2], 2, true, 2),
            ([2, 1, 2, 8], 2, true, 0),
        ] {
            let model: ModelConfig = serde_json::from_value(serde_json::json!({
                "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 16,
                "num_attention_heads": 16, "num_key_value_heads": kv, "head_dim": 4, "tie_word_embeddings": tied
            }))
            .unwrap();
            let world = sizes.iter().product();
            let p = ParallelSection { zero, ..ParallelSection::default() };
            // Slices that a rank reads, and those that it has written.
            let slices = |rank: usize| {
                let topology = Topology::new(rank, sizes);
                let sharding = Sharding::new(&p, &topology);
                let layout = Layout::new(&model, &topology);
                let mut all = Vec::new();
                for unit in &layout.units {
                    for (param, range) in unit.pieces(&sharding.counted(unit)) {
                        all.push((param.owner, (param.name.clone(), param.offset.clone(), range)));
                    }
                }
                all
            };
            let written: Vec<HashSet<_>> =
                (0..world).map(|r| slices(r).into_iter().filter(|s| s.0).map(|s| s.1).collect()).collect();
            let mut most = 0;
            for rank in 0..world {
                let mut needs: HashSet<_> = slices(rank).into_iter().map(|s| s.1).collect();
                let mut order = SearchOrder::new(rank, world);
                let mut opened = 0;
                while !needs.is_empty() {
                    let writer = order.next().expect("somebody has it");
                    if opened == 0 {
                        order.expect(&Topology::new(0, sizes));
                    }
                    opened += 1;
                    needs.retain(|slice| !written[writer].contains(slice));
                }
                most = most.max(opened);
            }
            assert!(most <= 6, "{sizes:?}: {most} snapshots");
        }
    }
}
