//! AdamW (arXiv:1711.05101) on the parts of the units that this rank owns.
//!
//! What a rank owns is decided elsewhere ([`Owned`]): the whole unit, or its share of the replicas (ZeRO, arXiv:1910.02054
//! §5). Master weights and moments exist for that part alone. Decay applies to matrices only.
//!
//! With `optim.moments: 8bit` moments lie in 8 bits ([`crate::kernels::moments`]) and are made fp32 some megabytes at a time. With
//! `optim.offload` master weights and moments lie in host memory (ZeRO-Offload, arXiv:2101.06840): gradients come from the device some
//! megabytes at a time, the update is made by the host's threads, and the new parameters go back.

use super::moment::StoredMoment;
use crate::checkpoint::Group;
use crate::config::OptimSection;
use crate::kernels::moments::MomentKind;
use crate::kernels::{self, AdamW};
use crate::layout::{Kind as ParamKind, UnitLayout};
use crate::model::Owned;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Elements that are updated at a time where moments are in 8 bits, or the state in host memory and the parameters not: whole runs.
const PIECE: usize = if cfg!(test) { 1 << 8 } else { 4 << 20 };

/// One unit's part with its optimizer state: of `owned.range.len()` elements each, fp32 or, of moments, 8 bits.
pub struct Slots {
    /// Where the part lies in its unit, and its parameters and gradients.
    pub owned: Owned,
    /// Master weights. In fp32 runs this is the parameter itself, unless the state lies elsewhere.
    pub master: Tensor,
    /// Running mean of the gradient.
    exp_avg: StoredMoment,
    /// Running mean of its square.
    exp_avg_sq: StoredMoment,
}

impl Slots {
    /// A group's values, fp32: the very tensor that is updated, or where moments are in 8 bits a copy in host memory, which
    /// [`Slots::keep`] takes back.
    pub fn whole(&self, group: Group) -> Tensor {
        match group {
            Group::Param => self.master.shallow_clone(),
            Group::ExpAvg => self.exp_avg.at_rest(&(0..self.owned.range.len())),
            Group::ExpAvgSq => self.exp_avg_sq.at_rest(&(0..self.owned.range.len())),
        }
    }

    /// Takes over values that were written into [`Slots::whole`].
    pub fn keep(&mut self, group: Group, whole: &Tensor) {
        match group {
            Group::Param => {}
            Group::ExpAvg => self.exp_avg.keep(0, whole),
            Group::ExpAvgSq => self.exp_avg_sq.keep(0, whole),
        }
    }

    /// A group's values of the elements `run` of the unit's flat buffer, fp32.
    pub fn part(&self, group: Group, run: &Range<usize>) -> Tensor {
        let own = run.start - self.owned.range.start..run.end - self.owned.range.start;
        match group {
            Group::Param => self.owned.part(&self.master, run),
            Group::ExpAvg => self.exp_avg.at_rest(&own),
            Group::ExpAvgSq => self.exp_avg_sq.at_rest(&own),
        }
    }

    /// Whether the parameters lie elsewhere than the state.
    fn offloaded(&self) -> bool {
        self.owned.param.device() != self.master.device()
    }

    /// Updates the whole part; `hyper` by whether a parameter is decayed.
    fn update(&mut self, hyper: &dyn Fn(bool) -> AdamW) {
        let range = self.owned.range.clone();
        let (StoredMoment::Full(exp_avg), StoredMoment::Full(exp_avg_sq), false) =
            (&self.exp_avg, &self.exp_avg_sq, self.offloaded())
        else {
            return self.update_in_pieces(hyper);
        };
        let Owned { layout, param, grad, .. } = &self.owned;
        for (range, decay) in decay_ranges(layout, &range) {
            let part = |t: &Tensor| self.owned.part(t, &range);
            let (master, param, grad) = (part(&self.master), part(param), part(grad));
            kernels::adamw(&hyper(decay), &master, &param, &part(exp_avg), &part(exp_avg_sq), &grad);
        }
    }

    /// The same by way of copies: of moments that are in 8 bits, and of gradients and parameters that lie elsewhere.
    fn update_in_pieces(&mut self, hyper: &dyn Fn(bool) -> AdamW) {
        let (range, offloaded) = (self.owned.range.clone(), self.offloaded());
        for start in (0..range.len()).step_by(PIECE) {
            let own = start..range.len().min(start + PIECE);
            let piece = range.start + own.start..range.start + own.end;
            let (exp_avg, exp_avg_sq) = (self.exp_avg.get(&own), self.exp_avg_sq.get(&own));
            let Owned { layout, param, grad, .. } = &self.owned;
            let of_piece = |t: &Tensor| self.owned.part(t, &piece);
            let (master, mut param, mut grad) = (of_piece(&self.master), of_piece(param), of_piece(grad));
            let mut elsewhere = param.shallow_clone();
            if offloaded {
                grad = grad.to_device(Device::Cpu);
                param = match param.kind() {
                    Kind::Float => master.shallow_clone(),
                    kind => Tensor::zeros([piece.len() as i64], (kind, Device::Cpu)),
                };
            }
            for (range, decay) in decay_ranges(layout, &piece) {
                let part = |t: &Tensor| t.narrow(0, (range.start - piece.start) as i64, range.len() as i64);
                let hyper = hyper(decay);
                kernels::adamw(
                    &hyper,
                    &part(&master),
                    &part(&param),
                    &part(&exp_avg),
                    &part(&exp_avg_sq),
                    &part(&grad),
                );
            }
            if offloaded {
                elsewhere.copy_(&param);
            }
            self.exp_avg.keep(own.start, &exp_avg);
            self.exp_avg_sq.keep(own.start, &exp_avg_sq);
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
            let device = if config.offload { Device::Cpu } else { owned.param.device() };
            let master = match owned.param.kind() {
                Kind::Float if owned.param.device() == device => owned.param.shallow_clone(),
                _ => Tensor::zeros([owned.range.len() as i64], (Kind::Float, device)),
            };
            let moment = |kind| StoredMoment::zeros(config.moments, kind, owned.range.len(), device);
            let (exp_avg, exp_avg_sq) = (moment(MomentKind::Mean), moment(MomentKind::Square));
            Slots { master, exp_avg, exp_avg_sq, owned }
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
    pub fn step(&mut self, lr: f64, update: u64, grad_scale: f64) {
        let c = &self.config;
        let hyper = |decay| AdamW {
            lr,
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: if decay { c.weight_decay } else { 0.0 },
            step: update,
            grad_scale,
        };
        self.slots.iter_mut().for_each(|s| s.update(&hyper));
    }

    /// Rounds the owned master weights into the parameters (after a restore); nothing to do in fp32 where they are the same.
    pub fn publish(&self) {
        for s in &self.slots {
            if s.owned.param.kind() != Kind::Float || s.offloaded() {
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
    use crate::config::MomentFormat;
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

    /// Three updates on shards of 1, 2 and 4 ranks give the same bits, with moments in 8 bits too: shards are whole runs.
    #[test]
    fn sharded_updates_equal_whole_updates() {
        let results: Vec<Tensor> = [MomentFormat::Fp32, MomentFormat::Bits8].map(updates).into();
        let apart = (&results[0] - &results[1]).abs().max().double_value(&[]);
        assert!(apart > 0.0 && apart < 1e-2, "{apart} after three updates of 1e-2");
    }

    fn updates(moments: MomentFormat) -> Tensor {
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
            let new =
                |r| Optimizer::new(params.owned(&sharding(r)), &OptimSection { moments, ..OptimSection::default() });
            let mut ranks: Vec<_> = (0..dp).map(new).collect();
            for update in 1..=3 {
                ranks.iter_mut().for_each(|o| o.step(1e-2, update, 0.5));
            }
            results.push(Tensor::cat(&params.units.iter().map(|f| f.param.shallow_clone()).collect::<Vec<_>>(), 0));
        }
        assert!(results[0].equal(&results[1]) && results[0].equal(&results[2]));
        results.swap_remove(0)
    }
}
