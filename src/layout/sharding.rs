//! Which part of a unit each replica keeps, updates, counts and saves. Pure arithmetic.
//!
//! ZeRO (arXiv:1910.02054 §5) shares a unit's state out over the replicas: stage 1 the optimizer's, stage 2 gradients too,
//! stage 3 parameters too. Hybrid sharding does so inside groups of `group` replicas, neighbours in replica order; groups
//! hold the same as each other.

use super::UnitLayout;
use crate::config::ParallelSection;
use crate::topology::Topology;
use std::ops::Range;

/// How the state of every unit lies on this rank's replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharding {
    /// 0 to 3; 0 exactly where a group is one replica, which then keeps everything.
    pub stage: u8,
    /// Ranks that hold the same parameters and see other tokens ([`Topology::replicas`]).
    pub replicas: usize,
    /// This rank's place among them.
    pub replica: usize,
    /// Replicas that share one copy of the state; divides `replicas`.
    pub group: usize,
}

impl Sharding {
    /// What `p` asks for, on this rank of `topo`.
    pub fn new(p: &ParallelSection, topo: &Topology) -> Sharding {
        let replicas = topo.replicas();
        let group = match (p.zero, p.shard_size) {
            (0, _) => 1,
            (_, 0) => replicas,
            (_, n) => n.min(replicas),
        };
        Sharding { stage: if group == 1 { 0 } else { p.zero }, replicas, replica: topo.replica(), group }
    }

    /// Everything on one rank.
    pub fn solo() -> Sharding {
        Sharding { stage: 0, replicas: 1, replica: 0, group: 1 }
    }

    /// Elements of the unit's flat buffer that this rank updates.
    pub fn range(&self, unit: &UnitLayout) -> Range<usize> {
        unit.shard(self.replica % self.group, self.group)
    }

    /// Those of [`Sharding::range`] that this rank counts in norms and writes to checkpoints: over all replicas every
    /// element once.
    pub fn counted(&self, unit: &UnitLayout) -> Range<usize> {
        let n = unit.len / self.replicas;
        let start = self.range(unit).start + self.replica / self.group * n;
        start..start + n
    }

    /// World ranks with the other parts of this rank's copy, in order of their parts.
    pub fn shard_ranks(&self, topo: &Topology) -> Vec<usize> {
        let first = self.replica / self.group * self.group;
        topo.replica_group()[first..first + self.group].to_vec()
    }

    /// World ranks that keep the same part as this one.
    pub fn across_ranks(&self, topo: &Topology) -> Vec<usize> {
        topo.replica_group().into_iter().skip(self.replica % self.group).step_by(self.group).collect()
    }
}

/// The lengths of buffers that hold one unit of any of these lengths for a while, ascending: a unit lies in the shortest
/// that is long enough. A length that a slightly longer one can stand in for makes no buffer of its own: embedding and head
/// take turns.
pub fn buffer_lengths(units: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut all: Vec<usize> = units.collect();
    all.sort_unstable();
    let apart = |i: usize| all.get(i + 1).is_none_or(|&longer| longer > all[i] + all[i] / 16);
    (0..all.len()).filter(|&i| apart(i)).map(|i| all[i]).collect()
}

/// How many buffers of one length a pass over the units needs at a time: one in use and one whose bytes move, where units
/// of that length follow one another.
pub fn buffers_at_once(units: &[UnitLayout], lengths: &[usize], length: usize) -> usize {
    let in_class = |u: &&UnitLayout| lengths.iter().find(|&&l| l >= u.len) == Some(&length);
    let follows = |u: &&UnitLayout| matches!(u.unit, super::Unit::Block(_) | super::Unit::Adapter(_));
    let blocks = units.iter().filter(in_class).filter(follows).count();
    blocks.clamp(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Unit;

    #[test]
    fn embedding_and_head_take_turns_and_blocks_follow_one_another() {
        let unit = |unit, len| UnitLayout { unit, frozen: false, params: Vec::new(), used: len, len };
        let blocks = (0..5).map(|i| unit(Unit::Block(i), 320));
        let units: Vec<_> = [unit(Unit::Embedding, 1000), unit(Unit::Head, 1016)].into_iter().chain(blocks).collect();
        let lengths = buffer_lengths(units.iter().map(|u| u.len));
        assert_eq!(lengths, [320, 1016]);
        assert_eq!([320, 1016].map(|l| buffers_at_once(&units, &lengths, l)), [2, 1]);
    }

    #[test]
    fn every_element_is_counted_once_and_kept_once_a_group() {
        let topo = |rank| Topology::new(rank, [1, 2, 1, 4]);
        for (stage, size, group) in [(0, 0, 1), (1, 0, 8), (2, 4, 4), (3, 2, 2), (3, 1, 1)] {
            let unit = UnitLayout { unit: Unit::Head, frozen: false, params: Vec::new(), used: 500, len: 512 };
            let p = ParallelSection { zero: stage, shard_size: size, ..ParallelSection::default() };
            let (mut kept, mut counted) = (vec![0; 512], vec![0; 512]);
            for rank in 0..8 {
                let s = Sharding::new(&p, &topo(rank));
                assert_eq!((s.group, s.stage == 0), (group, group == 1));
                let (range, counts) = (s.range(&unit), s.counted(&unit));
                assert!(range.start <= counts.start && counts.end <= range.end);
                range.for_each(|i| kept[i] += 1);
                counts.for_each(|i| counted[i] += 1);
                assert_eq!(s.shard_ranks(&topo(rank))[s.replica % group], rank);
                assert_eq!(s.across_ranks(&topo(rank))[s.replica / group], rank);
            }
            assert!(kept.iter().all(|&n| n == 8 / group) && counted.iter().all(|&n| n == 1));
        }
    }
}
