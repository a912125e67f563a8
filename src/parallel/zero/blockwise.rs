//! Frozen blocks in 8 or 4 bits (QLoRA, arXiv:2305.14314): a rank has codes and scales of whole units, and of the one that is held its
//! values in the compute dtype. Norms stay as they are, in fp32 beside the codes.
//!
//! While weights are read each replica stores its part, as of any unit; then the parts are gathered, in bits.

use crate::config::BlockFormat;
use crate::error::Result;
use crate::kernels::blockwise::Blockwise;
use crate::layout::{Kind, Param, Sharding, UnitLayout};
use crate::parallel::Groups;
use crate::world::Op;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Tensor};

/// One unit.
pub struct BlockwiseUnit {
    layout: Arc<UnitLayout>,
    values: Blockwise,
    /// Where each vector of the unit lies in its flat buffer, and its elements f32.
    vectors: Vec<(usize, Tensor)>,
}

impl BlockwiseUnit {
    /// Zeros.
    pub fn new(format: BlockFormat, layout: &Arc<UnitLayout>, device: Device) -> BlockwiseUnit {
        let vector = |p: &Param| (p.start, Tensor::zeros([p.len() as i64], (tch::Kind::Float, device)));
        let vectors = layout.params.iter().filter(|p| p.kind == Kind::Vector).map(vector).collect();
        BlockwiseUnit { layout: layout.clone(), values: Blockwise::new(format, layout.len, device), vectors }
    }

    /// Stores local elements `start..` of a parameter: of a matrix whole runs.
    pub fn set(&mut self, p: &Param, start: usize, values: &[f32]) {
        match self.vectors.iter().find(|(at, _)| *at == p.start) {
            Some((_, vector)) => {
                vector.narrow(0, start as i64, values.len() as i64).copy_(&Tensor::from_slice(values));
            }
            None => self.values.set(p.start + start, values),
        }
    }

    /// Lets every replica have what each has stored of its part. Collective over the replicas.
    pub fn share(&self, groups: &Groups, sharding: &Sharding) -> Result<()> {
        let whole = 0..self.layout.len;
        let (own, counted) = (sharding.range(&self.layout), sharding.counted(&self.layout));
        self.keep(&counted);
        for (wire, part, all) in [(&groups.across, &counted, &own), (&groups.gather, &own, &whole)] {
            if wire.size() == 1 {
                continue;
            }
            for (part, all) in self.values.parts(part).iter().zip(self.values.parts(all)) {
                wire.all_gather(part, &all)?.wait()?;
            }
            // Every element is zero but on the replica that counts it.
            for (_, vector) in &self.vectors {
                wire.all_reduce(vector, Op::Sum)?.wait()?;
            }
        }
        Ok(())
    }

    /// Leaves of the vectors what lies in `part` of the unit: weights may be read once more, and what an earlier sharing brought would be
    /// added to them.
    fn keep(&self, part: &Range<usize>) {
        for (at, vector) in &self.vectors {
            let len = vector.numel();
            let within = |place: usize| place.clamp(*at, at + len) - at;
            for gap in [0..within(part.start), within(part.end)..len] {
                let _ = vector.narrow(0, gap.start as i64, gap.len() as i64).zero_();
            }
        }
    }

    /// The unit in the compute dtype T, [len].
    pub fn get(&self, out: &Tensor) {
        self.values.get(out);
        for (at, vector) in &self.vectors {
            out.narrow(0, *at as i64, vector.numel() as i64).copy_(vector);
        }
    }

    /// Codes and scales, [bytes] u8: what replicas have alike.
    pub fn stored(&self) -> Tensor {
        self.values.stored().shallow_clone()
    }
}
