//! Who speaks to whom in a collective of the control plane: O(log n) partners a rank, whatever the size of the world. Pure.
//!
//! Three shapes. *Dissemination* for what everybody gets of everybody (Bruck et al., "Efficient algorithms for all-to-all
//! communications in multiport message-passing systems", IEEE TPDS 8(11), 1997, §4.2). A *binomial tree* for what one rank has
//! or gets. *Blocks* of [`BLOCK`] ranks, and blocks of blocks, for sums: inside a block values are combined in rank order, so the
//! bits depend on the size of the world alone.

use std::ops::Range;

/// Ranks whose values are combined one after the other; above, sums of blocks are.
pub(super) const BLOCK: usize = 16;

/// A round of a dissemination among `n` ranks. Before it a rank has the blocks of itself and the `distance - 1` ranks after it;
/// it sends the first `blocks` of them to the rank `distance` before it and gets as many from the rank `distance` after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GatherRound {
    pub distance: usize,
    pub blocks: usize,
}

pub(super) fn rounds(n: usize) -> impl Iterator<Item = GatherRound> {
    let distances = std::iter::successors(Some(1), |d| Some(d * 2)).take_while(move |&d| d < n);
    distances.map(move |distance| GatherRound { distance, blocks: distance.min(n - distance) })
}

/// A place in a binomial tree over `0..n` that place 0 is the root of. A subtree is a run of places.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TreeNode {
    pub parent: Option<usize>,
    /// Its own place and those below it.
    pub run: Range<usize>,
    /// The runs of its children, each of which is the run's start; the longest last.
    pub children: Vec<Range<usize>>,
}

pub(super) fn binomial(place: usize, n: usize) -> TreeNode {
    let reach = if place == 0 { n.next_power_of_two() } else { place & place.wrapping_neg() };
    let steps = std::iter::successors(Some(1), |d| Some(d * 2)).take_while(|&d| d < reach && place + d < n);
    let children = steps.map(|d| place + d..(place + 2 * d).min(n)).collect();
    TreeNode { parent: (place > 0).then(|| place & (place - 1)), run: place..(place + reach).min(n), children }
}

/// A rank's part in one level of a sum: the ranks `first + place * stride` of its block, as a binomial tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SumLevel {
    pub node: TreeNode,
    pub first: usize,
    pub stride: usize,
}

/// The levels in which `rank` of `n` has a part, from the lowest; rank 0 has one in all of them.
pub(super) fn levels(rank: usize, n: usize) -> Vec<SumLevel> {
    let strides = std::iter::successors(Some(1), |s| Some(s * BLOCK)).take_while(|&s| s < n && rank.is_multiple_of(s));
    strides
        .map(|stride| {
            let first = rank - rank % (stride * BLOCK);
            let members = (n - first).div_ceil(stride).min(BLOCK);
            SumLevel { node: binomial((rank - first) / stride, members), first, stride }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SIZES: [usize; 14] = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 257, 300];

    #[test]
    fn a_dissemination_brings_every_block_to_every_rank_once() {
        for n in SIZES {
            // what a rank has, as distances from itself: the same on all ranks
            let mut has = vec![0];
            for r in rounds(n) {
                assert_eq!(has.len(), r.distance, "{n}");
                has.extend((0..r.blocks).map(|b| has[b] + r.distance).collect::<Vec<_>>());
            }
            assert_eq!(has, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_binomial_tree_has_every_place_once_under_its_parent() {
        for n in SIZES {
            let nodes: Vec<TreeNode> = (0..n).map(|p| binomial(p, n)).collect();
            assert_eq!(nodes[0].run, 0..n);
            for (place, node) in nodes.iter().enumerate() {
                let below: usize = node.children.iter().map(Range::len).sum();
                assert_eq!((node.run.start, below + 1), (place, node.run.len()), "{n}");
                for child in &node.children {
                    assert_eq!(
                        (nodes[child.start].parent, nodes[child.start].run.clone()),
                        (Some(place), child.clone())
                    );
                }
            }
        }
    }

    #[test]
    fn the_levels_of_a_sum_take_in_every_rank_in_order() {
        for n in SIZES.into_iter().chain([4096, 4097, 16384]) {
            // the ranks that each rank's value stands for, level by level
            let mut held: Vec<Vec<usize>> = (0..n).map(|r| vec![r]).collect();
            let mut stride = 1;
            while stride < n {
                for first in (0..n).step_by(stride * BLOCK) {
                    let level = levels(first, n).into_iter().find(|l| l.stride == stride).unwrap();
                    assert_eq!((level.first, level.node.run.start), (first, 0));
                    let all = level.node.run.flat_map(|p| std::mem::take(&mut held[first + p * stride]));
                    held[first] = all.collect();
                }
                stride *= BLOCK;
            }
            assert_eq!(held[0], (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_rank_has_more_partners_than_the_logarithm_allows() {
        let partners = |rank: usize, n: usize| {
            let mut all = BTreeSet::new();
            for r in rounds(n) {
                all.extend([(rank + r.distance) % n, (rank + n - r.distance) % n]);
            }
            for level in levels(rank, n) {
                let at = |p: usize| level.first + p * level.stride;
                all.extend(level.node.parent.map(at));
                all.extend(level.node.children.iter().map(|c| at(c.start)));
            }
            let node = binomial(rank, n);
            all.extend(node.parent);
            all.extend(node.children.iter().map(|c| c.start));
            all.len()
        };
        for (n, most) in [(8, 7), (64, 12), (1024, 20), (16384, 28)] {
            let max = (0..n).map(|r| partners(r, n)).max().unwrap();
            assert!(max <= most, "{max} partners among {n} ranks");
        }
    }
}
