//! Who a rank is: its coordinate on every parallel axis, and which ranks share each axis with it.
//!
//! World rank order, innermost first: tensor, context, pipeline, data (the Llama 3 paper, arXiv:2407.21783 §3.3.2),
//! so that tensor ranks share a node. Pure arithmetic; communicators are made from it in `wire`.

use serde::{Deserialize, Serialize};

/// The parallel axes, innermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Cuts the weight matrices: each rank holds a slice.
    Tensor,
    /// Cuts sequences: each rank has some of the tokens.
    Context,
    /// Cuts the model into stages of whole units.
    Pipeline,
    /// Cuts the batch: each rank has other samples.
    Data,
}

impl Axis {
    /// All four, innermost first.
    pub const ALL: [Axis; 4] = [Axis::Tensor, Axis::Context, Axis::Pipeline, Axis::Data];
}

/// A process grid and one rank's place in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// World rank, `0..world`.
    pub rank: usize,
    /// Sizes of the axes in the order of [`Axis::ALL`].
    pub sizes: [usize; 4],
}

impl Topology {
    /// `sizes` in the order of [`Axis::ALL`]; `rank` must be below their product (checked by the plan).
    pub fn new(rank: usize, sizes: [usize; 4]) -> Self {
        debug_assert!(rank < sizes.iter().product());
        Topology { rank, sizes }
    }

    /// One process alone.
    pub fn solo() -> Self {
        Topology::new(0, [1; 4])
    }

    /// Only the data axis.
    pub fn data(rank: usize, size: usize) -> Self {
        Topology::new(rank, [1, 1, 1, size])
    }

    /// Number of ranks in the world.
    pub fn world(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Number of ranks along `axis`.
    pub fn size(&self, axis: Axis) -> usize {
        self.sizes[axis as usize]
    }

    /// This rank's coordinate on `axis`.
    pub fn coord(&self, axis: Axis) -> usize {
        self.rank / self.stride(axis) % self.size(axis)
    }

    /// Distance in world rank between neighbours on `axis`.
    pub fn stride(&self, axis: Axis) -> usize {
        self.sizes[..axis as usize].iter().product()
    }

    /// World ranks that differ from this one on `axis` only, in order of their coordinate.
    pub fn group(&self, axis: Axis) -> Vec<usize> {
        let base = self.rank - self.coord(axis) * self.stride(axis);
        (0..self.size(axis)).map(|i| base + i * self.stride(axis)).collect()
    }

    /// Number of ranks that hold the same parameters as this one and see other tokens: context × data. Gradients are
    /// summed over them, and ZeRO shards over them.
    pub fn replicas(&self) -> usize {
        self.size(Axis::Context) * self.size(Axis::Data)
    }

    /// This rank's place among its replicas: context is the inner axis.
    pub fn replica(&self) -> usize {
        self.coord(Axis::Data) * self.size(Axis::Context) + self.coord(Axis::Context)
    }

    /// World ranks of the replicas, in order of [`Topology::replica`].
    pub fn replica_group(&self) -> Vec<usize> {
        let (context, data) = (self.stride(Axis::Context), self.stride(Axis::Data));
        let base = self.rank - self.coord(Axis::Context) * context - self.coord(Axis::Data) * data;
        let each = |d| (0..self.size(Axis::Context)).map(move |c| base + d * data + c * context);
        (0..self.size(Axis::Data)).flat_map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_partition_the_world_on_every_axis() {
        let sizes = [2, 1, 3, 4];
        for axis in Axis::ALL {
            let mut seen = [0; 24];
            for rank in 0..24 {
                let t = Topology::new(rank, sizes);
                let group = t.group(axis);
                assert_eq!(group.len(), t.size(axis));
                assert_eq!(group[t.coord(axis)], rank);
                seen[group[0]] += 1;
            }
            assert!(seen.iter().all(|&n| n == 0 || n == sizes[axis as usize]));
        }
    }

    #[test]
    fn replicas_share_tensor_and_pipeline_coordinates() {
        for rank in 0..24 {
            let t = Topology::new(rank, [2, 2, 3, 2]);
            let group = t.replica_group();
            assert_eq!((group.len(), group[t.replica()]), (t.replicas(), rank));
            for &other in &group {
                let o = Topology::new(other, t.sizes);
                assert_eq!(o.coord(Axis::Tensor), t.coord(Axis::Tensor));
                assert_eq!(o.coord(Axis::Pipeline), t.coord(Axis::Pipeline));
            }
        }
    }

    #[test]
    fn tensor_ranks_are_neighbours() {
        assert_eq!(Topology::new(5, [4, 1, 2, 1]).group(Axis::Tensor), vec![4, 5, 6, 7]);
        assert_eq!(Topology::new(5, [4, 1, 2, 1]).group(Axis::Pipeline), vec![1, 5]);
    }
}
