//! The wires over which gradients and parameters move, and the sums that other axes owe.
//!
//! Some parameters lie on several ranks that are no replicas of each other: norms on every rank of the tensor axis, a KV
//! head on the tensor ranks that share it ([`Param::copies`]), a tied embedding on the first and the last pipeline stage.
//! Each of those ranks has a part of the gradient. The parts are summed once a step, after the replicas' sums and so on
//! the owned ranges alone: these are the same elements on all ranks concerned. Sums are fp32 in rank order, so that the
//! copies get the same bits.

use crate::error::Result;
use crate::layout::{Param, Sharding, Unit};
use crate::model::{Axes, Owned};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::{CommTiming, MakeWires, MpiWire, Wire};
use crate::world::{Op, World};
use std::sync::Arc;
use tch::Tensor;

/// The wires of one rank that belong to no layer.
#[derive(Clone)]
pub struct Groups {
    /// Ranks that share one copy of the state: gradients are reduced over it.
    pub shard: Arc<dyn Wire>,
    /// The same ranks once more, for parameters, which so never wait behind gradients.
    pub gather: Arc<dyn Wire>,
    /// Ranks that keep the same part of other copies (hybrid sharding), or all replicas (no sharding).
    pub across: Arc<dyn Wire>,
    /// For each number of copies above 1: the tensor ranks that hold the same slice.
    pub copies: Vec<(usize, Arc<dyn Wire>)>,
    /// First and last pipeline stage, where a tied embedding lies on both and this rank is one of them.
    pub tied: Option<Arc<dyn Wire>>,
}

impl Groups {
    /// [`Wire::sound`] of all.
    pub fn sound(&self) -> Result<()> {
        let own = [&self.shard, &self.gather, &self.across];
        let copies = self.copies.iter().map(|(_, wire)| wire);
        own.into_iter().chain(copies).chain(&self.tied).try_for_each(|wire| wire.sound())
    }

    /// All wires of `plan`. Collective over the world.
    pub fn new(plan: &Plan, world: &World, axes: &Axes) -> Result<Groups> {
        let (topo, sharding) = (&plan.topology, Sharding::new(&plan.config.parallel, &plan.topology));
        let wire = |ranks: &[usize]| -> Result<Arc<dyn Wire>> { Ok(world.wire_group(ranks)?.into()) };
        let shards = sharding.shard_ranks(topo);
        let mut groups = Groups {
            shard: wire(&shards)?,
            gather: wire(&shards)?,
            across: wire(&sharding.across_ranks(topo))?,
            copies: Vec::new(),
            tied: None,
        };
        let tensor = topo.size(Axis::Tensor);
        if tensor > 1 {
            groups.copies.push((tensor, axes.tensor.clone()));
        }
        let sharers = tensor / plan.model.num_key_value_heads.min(tensor);
        if sharers > 1 && sharers < tensor {
            let first = topo.coord(Axis::Tensor) / sharers * sharers;
            groups.copies.push((sharers, wire(&topo.group(Axis::Tensor)[first..first + sharers])?));
        }
        let stages = topo.size(Axis::Pipeline);
        if plan.model.tie_word_embeddings && stages > 1 {
            let column = topo.group(Axis::Pipeline);
            let ends = [0, stages - 1].contains(&topo.coord(Axis::Pipeline));
            let group = if ends { vec![column[0], column[stages - 1]] } else { vec![topo.rank] };
            groups.tied = Some(wire(&group)?).filter(|_| ends);
        }
        Ok(groups)
    }

    /// One rank, whole layers.
    pub fn solo() -> Groups {
        let solo = || -> Arc<dyn Wire> { Arc::new(MpiWire::solo()) };
        Groups { shard: solo(), gather: solo(), across: solo(), copies: Vec::new(), tied: None }
    }

    /// Sums the gradients of parameters that other axes hold copies of.
    pub(super) fn sum_copies(&self, owned: &[Owned], spent: &mut CommTiming) -> Result<()> {
        for (copies, wire) in &self.copies {
            let parts = parts(owned, |p| p.copies == *copies);
            if !parts.is_empty() {
                let all = Tensor::cat(&parts, 0);
                spent.moved(&all);
                spent.wait(wire.all_reduce(&all, Op::Sum)?)?;
                spent.buckets += 1;
                let mut at = 0;
                for part in parts {
                    let n = part.size()[0];
                    part.shallow_clone().copy_(&all.narrow(0, at, n));
                    at += n;
                }
            }
        }
        if let Some(wire) = &self.tied {
            for o in owned.iter().filter(|o| o.layout.unit == Unit::Embedding) {
                spent.moved(&o.grad);
                spent.wait(wire.all_reduce(&o.grad, Op::Sum)?)?;
                spent.buckets += 1;
            }
        }
        Ok(())
    }
}

/// Views of the owned gradients of the parameters that `which` picks, neighbours joined.
fn parts(owned: &[Owned], which: impl Fn(&Param) -> bool) -> Vec<Tensor> {
    let mut out = Vec::new();
    for o in owned {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (p, r) in o.layout.pieces(&o.range).filter(|(p, _)| which(p)) {
            let run = p.start + r.start..p.start + r.end;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        out.extend(runs.iter().map(|run| o.part(&o.grad, run)));
    }
    out
}
