//! From weights on disk to what a rank holds, one tensor in flight at a time: in the first replica each rank reads its own slice, the
//! others get it from there, and all of them quantize for themselves, which gives the same integers.

use crate::convert::weights::Weights;
use crate::error::{Error, Exit, Result};
use crate::kernels::host;
use crate::kernels::quantized::{row_tops, GROUP};
use crate::layout::{Layout, Param, Unit};
use crate::model::InferenceWeights;
use crate::progress::Meter;
use crate::wire::Wire;
use crate::world::Op;
use tch::{Device, Kind, Tensor};

/// The wires that loading uses.
#[derive(Clone, Copy)]
pub struct LoadWires<'a> {
    /// The ranks of one stage of the replica, among which matrices are split.
    pub tensor: &'a dyn Wire,
    /// The same ranks of all replicas; the first one's has the weights.
    pub replicas: &'a dyn Wire,
}

/// A rank's weights while they come.
struct Loading<'a> {
    layout: &'a Layout,
    weights: InferenceWeights,
    wires: LoadWires<'a>,
    meter: &'a Meter,
    /// Parameters that were quantized, and those of them that lost nothing.
    quantized: (usize, usize),
}

/// Fills `empty`, which was made for `layout`; `weights` where this is the first replica. Collective over the world. Errors: of
/// reading, of the wires; [`Exit::Model`] where what is to be quantized is no number.
pub fn load(
    layout: &Layout, empty: InferenceWeights, weights: Option<&Weights>, wires: LoadWires, meter: &Meter,
) -> Result<InferenceWeights> {
    let mut loading = Loading { layout, weights: empty, wires, meter, quantized: (0, 0) };
    meter.begin("load", layout.params().map(|(_, param)| 4 * param.len() as u64).sum::<u64>());
    match weights {
        Some(weights) => {
            let mut taken = Ok(());
            weights.fill(layout, &mut |unit, param, values| {
                if taken.is_ok() {
                    taken = loading.take(unit.unit, param, Some(values));
                }
            })?;
            taken?;
        }
        None => layout.params().try_for_each(|(unit, param)| loading.take(unit.unit, param, None))?,
    }
    loading.say();
    Ok(loading.weights)
}

impl Loading<'_> {
    fn take(&mut self, unit: Unit, param: &Param, values: Option<&[f32]>) -> Result<()> {
        self.meter.add(4 * param.len() as u64);
        // A rank of many may have no row of a small vocabulary.
        if param.is_empty() {
            return Ok(());
        }
        let Some(place) = self.weights.place(self.layout, unit, param) else {
            let mut view = self.weights.params.unit(unit).param(&param.name);
            if let Some(values) = values {
                view.copy_(&Tensor::from_slice(values).view_as(&view));
            }
            return self.wires.replicas.broadcast(&view, 0)?.wait().map(drop);
        };
        let shared;
        let values = match (values, self.wires.replicas.size()) {
            (Some(values), 1) => values,
            (values, _) => {
                let empty = || Tensor::zeros([param.len() as i64], (Kind::Float, Device::Cpu));
                shared = values.map_or_else(empty, Tensor::from_slice);
                self.wires.replicas.broadcast(&shared, 0)?.wait()?;
                host::floats(&shared)
            }
        };
        if self.weights.keeps(unit, param) {
            let mut view = self.weights.params.unit(unit).param(&param.name);
            view.copy_(&Tensor::from_slice(values).view_as(&view));
        }
        let tops = row_tops(values, param.extent[1]);
        let finite = tops.iter().all(|top| top.is_finite());
        let fidelity = self.weights.set(place, values, &self.whole(param, tops)?);
        if !finite || !fidelity.finite {
            let fact = format!("{} holds values that are not numbers: it cannot be quantized", param.name);
            return Err(Error::new(Exit::Model, fact).hint("the weights are damaged; --quantize is not at fault"));
        }
        self.quantized = (self.quantized.0 + 1, self.quantized.1 + usize::from(fidelity.exact));
        Ok(())
    }

    /// The largest absolute values of whole rows, of which a rank may have a part of the columns: so that integers are the same
    /// on every number of tensor ranks.
    fn whole(&self, param: &Param, tops: Vec<f32>) -> Result<Vec<f32>> {
        if param.extent[1] == param.shape[1] {
            return Ok(tops);
        }
        let all = Tensor::from_slice(&tops);
        self.wires.tensor.all_reduce(&all, Op::Max)?.wait()?;
        Ok(host::floats(&all).to_vec())
    }

    /// What was quantized, what it takes, and what holds over the tensor axis.
    fn say(&self) {
        let Some(format) = self.weights.format else { return };
        let kind = self.weights.params.units[0].param.kind();
        let gb = |bytes: usize| bytes as f64 / 1e9;
        let plain = InferenceWeights::bytes(self.layout, kind.elt_size_in_bytes(), None);
        let (all, exact) = self.quantized;
        let lossless = if exact > 0 { format!("; {exact} of {all} tensors without loss") } else { String::new() };
        tracing::info!(
            "weights: matrices of the blocks {}, head int8, norms and embedding {kind:?}: {:.3} GB a rank, {:.3} unquantized{lossless}",
            format.name(),
            gb(self.weights.held()),
            gb(plain),
        );
        let cut = |p: &&Param| p.extent.len() == 2 && p.extent[1] < p.shape[1] && !p.extent[1].is_multiple_of(GROUP);
        if let Some(p) = self.layout.params().map(|(_, p)| p).find(cut) {
            tracing::warn!(
                "{}: {} of {} columns a rank are no multiple of {GROUP}: activations are rounded otherwise than on one rank",
                p.name,
                p.extent[1],
                p.shape[1],
            );
        }
    }
}
