//! AdamW (arXiv:1711.05101) on the parts of the units that this rank owns.
//!
//! What a rank owns is decided elsewhere ([`Owned`]): the whole unit, or its share of the replicas (ZeRO, arXiv:1910.02054
//! §5). Master weights and moments exist for that part alone. Decay applies to matrices only.

use crate::checkpoint::Group;
use crate::config::OptimSection;
use crate::kernels::{self, AdamW};
use crate::layout::{Kind as ParamKind, UnitLayout};
use crate::model::Owned;
use std::ops::Range;
use tch::{Kind, Tensor};

/// One unit's part with its optimizer state; every tensor of the state is fp32 with `owned.range.len()` elements.
pub struct Slots {
    /// Where the part lies in its unit, and its parameters and gradients.
    pub owned: Owned,
    /// Master weights. In fp32 runs this is the parameter itself.
    pub master: Tensor,
    /// Running mean of the gradient.
    pub exp_avg: Tensor,
    /// Running mean of its square.
    pub exp_avg_sq: Tensor,
}

impl Slots {
    /// The tensor of a group.
    pub fn tensor(&self, group: Group) -> &Tensor {
        match group {
            Group::Param => &self.master,
            Group::ExpAvg => &self.exp_avg,
            Group::ExpAvgSq => &self.exp_avg_sq,
        }
    }
}

/// AdamW state of all units, in forward order.
pub struct Optimizer {
    /// One a unit that is trained; frozen units have none.
    pub slots: Vec<Slots>,
    config: OptimSection,
}

impl Optimizer {
    /// Zero moments; master weights zero in bf16 runs, the parameters themselves in fp32 runs.
    pub fn new(owned: Vec<Owned>, config: &OptimSection) -> Optimizer {
        let slots = |owned: Owned| {
            let zeros = || Tensor::zeros([owned.range.len() as i64], (Kind::Float, owned.param.device()));
            let master = match owned.param.kind() {
                Kind::Float => owned.param.shallow_clone(),
                _ => zeros(),
            };
            Slots { master, exp_avg: zeros(), exp_avg_sq: zeros(), owned }
        };
        Optimizer { slots: owned.into_iter().map(slots).collect(), config: config.clone() }
    }

    /// Sum of squares over the gradients that this rank counts, in f64: over all ranks every parameter once.
    pub fn grad_sum_squares(&self) -> f64 {
        let squares =
            |o: &Owned| -> f64 { o.counted_runs().iter().map(|run| kernels::sum_squares(&o.part(&o.grad, run))).sum() };
        self.slots.iter().map(|s| squares(&s.owned)).sum()
    }

    /// One update of the owned parts: master weights and moments, and the parameters rounded from them.
    /// `update` counts updates from 1 (bias correction); `grad_scale` multiplies the gradient (clipping).
    pub fn step(&self, lr: f64, update: u64, grad_scale: f64) {
        for s in &self.slots {
            for (range, decay) in decay_ranges(&s.owned.layout, &s.owned.range) {
                let hyper = AdamW {
                    lr,
                    beta1: self.config.beta1,
                    beta2: self.config.beta2,
                    eps: self.config.eps,
                    weight_decay: if decay { self.config.weight_decay } else { 0.0 },
                    step: update,
                    grad_scale,
                };
                let part = |t: &Tensor| s.owned.part(t, &range);
                let Owned { param, grad, .. } = &s.owned;
                kernels::adamw(
                    &hyper,
                    &part(&s.master),
                    &part(param),
                    &part(&s.exp_avg),
                    &part(&s.exp_avg_sq),
                    &part(grad),
                );
            }
        }
    }

    /// Rounds the owned master weights into the parameters (after a restore); nothing to do in fp32.
    pub fn publish(&self) {
        for s in &self.slots {
            if s.owned.param.kind() != Kind::Float {
                s.owned.param.shallow_clone().copy_(&s.master);
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
    use crate::layout::{Layout, Sharding, Unit};
    use crate::model::Params;
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
            let sharding = |replica| Sharding { stage: 1, replicas: dp, replica, group: dp };
            let new = |r| Optimizer::new(params.owned(&sharding(r)), &OptimSection::default());
            let ranks: Vec<_> = (0..dp).map(new).collect();
            for update in 1..=3 {
                ranks.iter().for_each(|o| o.step(1e-2, update, 0.5));
            }
            results.push(Tensor::cat(&params.units.iter().map(|f| f.param.shallow_clone()).collect::<Vec<_>>(), 0));
        }
        assert!(results[0].equal(&results[1]) && results[0].equal(&results[2]));
    }
}
