//! AdamW (arXiv:1711.05101) over the units' flat buffers.
//!
//! Each rank of the data axis owns one contiguous shard of every flat buffer and keeps fp32 master weights and moments for
//! it alone (ZeRO stage 1, arXiv:1910.02054 §5); an axis of one rank owns everything. Decay applies to matrices only.

use crate::config::OptimSection;
use crate::kernels::{self, AdamW};
use crate::layout::{Kind as ParamKind, UnitLayout};
use crate::model::{Flat, Params};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Optimizer state of one unit's shard; every tensor is fp32 with `range.len()` elements.
pub struct Slots {
    /// Elements of the unit's flat buffer that this rank updates.
    pub range: Range<usize>,
    /// Master weights. In fp32 runs this is the parameter buffer itself.
    pub master: Tensor,
    pub exp_avg: Tensor,
    pub exp_avg_sq: Tensor,
}

/// AdamW state of all units, in the order of [`Params::units`].
pub struct Optimizer {
    pub slots: Vec<Slots>,
    config: OptimSection,
}

impl Optimizer {
    /// Zero moments; master weights zero in bf16 runs, the parameters themselves in fp32 runs. `rank` of `size` on the data axis.
    pub fn new(params: &Params, config: &OptimSection, rank: usize, size: usize) -> Optimizer {
        let slots = |flat: &Flat| {
            let range = flat.layout.shard(rank, size);
            let zeros = || Tensor::zeros([range.len() as i64], (Kind::Float, flat.param.device()));
            let master = match flat.param.kind() {
                Kind::Float => flat.param.narrow(0, range.start as i64, range.len() as i64),
                _ => zeros(),
            };
            Slots { master, exp_avg: zeros(), exp_avg_sq: zeros(), range }
        };
        Optimizer { slots: params.units.iter().map(slots).collect(), config: config.clone() }
    }

    /// Sum of squares over the gradients of this rank's shards, in f64. Padding is zero and adds nothing.
    pub fn grad_sum_squares(&self, params: &Params) -> f64 {
        self.slots.iter().zip(&params.units).map(|(s, f)| kernels::sum_squares(&piece(&f.grad, &s.range))).sum()
    }

    /// One update of the owned shards: master weights and moments, and the parameters rounded from them.
    /// `update` counts updates from 1 (bias correction); `grad_scale` multiplies the gradient (clipping).
    pub fn step(&self, params: &Params, lr: f64, update: u64, grad_scale: f64) {
        for (slots, flat) in self.slots.iter().zip(&params.units) {
            for (range, decay) in decay_ranges(&flat.layout, &slots.range) {
                let hyper = AdamW {
                    lr,
                    beta1: self.config.beta1,
                    beta2: self.config.beta2,
                    eps: self.config.eps,
                    weight_decay: if decay { self.config.weight_decay } else { 0.0 },
                    step: update,
                    grad_scale,
                };
                let own = range.start - slots.range.start..range.end - slots.range.start;
                kernels::adamw(
                    &hyper,
                    &piece(&slots.master, &own),
                    &piece(&flat.param, &range),
                    &piece(&slots.exp_avg, &own),
                    &piece(&slots.exp_avg_sq, &own),
                    &piece(&flat.grad, &range),
                );
            }
        }
    }

    /// Rounds the owned master weights into the parameters (after a restore); nothing to do in fp32.
    pub fn publish(&self, params: &Params) {
        for (slots, flat) in self.slots.iter().zip(&params.units) {
            if flat.param.kind() != Kind::Float {
                piece(&flat.param, &slots.range).copy_(&slots.master);
            }
        }
    }
}

/// Factor that brings `norm` down to `limit`; 1 when it is below, or when clipping is off (`limit` 0).
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit {
        limit / norm
    } else {
        1.0
    }
}

fn piece(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}

/// The parts of `shard` that hold parameters, joined where neighbours agree, each with whether it is decayed.
fn decay_ranges(unit: &UnitLayout, shard: &Range<usize>) -> Vec<(Range<usize>, bool)> {
    let mut out: Vec<(Range<usize>, bool)> = Vec::new();
    for (p, local) in unit.pieces(shard) {
        let range = p.start + local.start..p.start + local.end;
        let decay = p.kind == ParamKind::Matrix;
        match out.last_mut() {
            Some((last, d)) if *d == decay && last.end == range.start => last.end = range.end,
            _ => out.push((range, decay)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, Unit};
    use crate::topology::Topology;
    use tch::Device;

    fn layout(dp: usize) -> Layout {
        let model = serde_json::from_value(serde_json::json!({
            "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2
        }))
        .unwrap();
        Layout::new(&model, &Topology::data(0, dp))
    }

    #[test]
    fn decay_covers_each_matrix_once_and_no_norm() {
        let l = layout(3);
        let unit = l.unit(Unit::Block(0));
        let parts: Vec<_> = (0..3).flat_map(|r| decay_ranges(unit, &unit.shard(r, 3))).collect();
        let decayed: usize = parts.iter().filter(|p| p.1).map(|p| p.0.len()).sum();
        let plain: usize = parts.iter().filter(|p| !p.1).map(|p| p.0.len()).sum();
        assert_eq!(plain, 2 * 16);
        assert_eq!(decayed, unit.used - 2 * 16);
    }

    /// Three updates on shards of 1, 2 and 4 ranks give the same bits.
    #[test]
    fn sharded_updates_equal_whole_updates() {
        let mut results = Vec::new();
        for dp in [1, 2, 4] {
            tch::manual_seed(7);
            let l = layout(4); // the same padding for each
            let mut params = Params::zeros(&l, Kind::Float, Device::Cpu);
            for f in &mut params.units {
                f.param.copy_(&Tensor::randn([f.layout.len as i64], (Kind::Float, Device::Cpu)));
                f.grad.copy_(&Tensor::randn([f.layout.len as i64], (Kind::Float, Device::Cpu)));
            }
            let ranks: Vec<_> = (0..dp).map(|r| Optimizer::new(&params, &OptimSection::default(), r, dp)).collect();
            for update in 1..=3 {
                ranks.iter().for_each(|o| o.step(&params, 1e-2, update, 0.5));
            }
            results.push(Tensor::cat(&params.units.iter().map(|f| f.param.shallow_clone()).collect::<Vec<_>>(), 0));
        }
        assert!(results[0].equal(&results[1]) && results[0].equal(&results[2]));
    }
}
