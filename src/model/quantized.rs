//! Weights as inference holds them: the parameters as they are, or the matrices of the products in integers.
//!
//! In integers are the matrices of the blocks, q|k|v and gate|up each as one, and the head, always in int8; for a head that is tied to the
//! embedding that is a copy. Norms, and the embedding that tokens are looked up in, stay of the compute dtype.

use super::attention::{O, Q};
use super::head::MATRIX as HEAD;
use super::mlp::{DOWN, GATE};
use super::{Flat, Params};
use crate::kernels::linear_by_row;
use crate::kernels::quantized::{self, QuantizedMatrix, RowFidelity, WeightFormat};
use crate::layout::{Layout, Param, Unit, UnitLayout};
use tch::{Device, Kind, Tensor};

/// The matrix that a parameter is a part of, by the name of the first of its parts.
fn matrix_of(name: &str) -> Option<&'static str> {
    let of = [
        ("q_proj", Q),
        ("k_proj", Q),
        ("v_proj", Q),
        ("o_proj", O),
        ("gate_proj", GATE),
        ("up_proj", GATE),
        ("down_proj", DOWN),
        ("lm_head", HEAD),
        ("embed_tokens", HEAD),
    ];
    let key = name.rsplit('.').nth(1)?;
    of.iter().find(|(k, _)| *k == key).map(|(_, matrix)| *matrix)
}

/// The matrices of a unit, by the name of their first part.
struct QuantizedUnit {
    unit: Unit,
    matrices: Vec<(&'static str, QuantizedMatrix)>,
}

/// Where a parameter goes besides, or instead of, the flat buffer of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizedPlace {
    unit: Unit,
    matrix: &'static str,
    /// The first of its rows in the matrix.
    row: usize,
}

impl QuantizedPlace {
    /// Where the blocks' matrices are in `blocks`.
    fn format(self, blocks: WeightFormat) -> WeightFormat {
        if self.unit == Unit::Head {
            WeightFormat::Int8
        } else {
            blocks
        }
    }
}

/// What a rank holds.
pub struct InferenceWeights {
    /// What is not in integers alone.
    pub params: Params,
    /// Of the blocks' matrices; None where nothing is in integers.
    pub format: Option<WeightFormat>,
    quantized: Vec<QuantizedUnit>,
}

/// One unit of it.
#[derive(Clone, Copy)]
pub struct InferUnit<'a> {
    /// Parameters that are not in integers alone.
    pub flat: &'a Flat,
    quantized: Option<&'a QuantizedUnit>,
}

impl From<Params> for InferenceWeights {
    fn from(params: Params) -> InferenceWeights {
        InferenceWeights { params, format: None, quantized: vec![] }
    }
}

impl InferenceWeights {
    /// Zeros for `layout`, in `dtype` where they are not to be quantized.
    pub fn zeros(layout: &Layout, dtype: Kind, device: Device, format: Option<WeightFormat>) -> InferenceWeights {
        let Some(blocks) = format else { return Params::frozen(layout, dtype, device).into() };
        let mut quantized: Vec<QuantizedUnit> = Vec::new();
        for (place, rows, cols) in sizes(layout) {
            let matrix = (place.matrix, QuantizedMatrix::new(place.format(blocks), rows, cols));
            match quantized.iter_mut().find(|u| u.unit == place.unit) {
                Some(unit) => unit.matrices.push(matrix),
                None => quantized.push(QuantizedUnit { unit: place.unit, matrices: vec![matrix] }),
            }
        }
        InferenceWeights { params: Params::frozen(&kept(layout), dtype, device), format, quantized }
    }

    /// Bytes of [`InferenceWeights::zeros`], `elem` each of a parameter that is as it is.
    pub fn bytes(layout: &Layout, elem: usize, format: Option<WeightFormat>) -> usize {
        let flat = |layout: &Layout| layout.units.iter().map(|u| u.len * elem).sum::<usize>();
        let Some(format) = format else { return flat(layout) };
        let matrix = |(place, rows, cols): (QuantizedPlace, usize, usize)| {
            QuantizedMatrix::bytes(place.format(format), rows, cols)
        };
        flat(&kept(layout)) + sizes(layout).into_iter().map(matrix).sum::<usize>()
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        let flat = |u: &Flat| u.param.numel() * u.param.kind().elt_size_in_bytes();
        let matrices = self.quantized.iter().flat_map(|u| &u.matrices);
        self.params.units.iter().map(flat).sum::<usize>() + matrices.map(|(_, m)| m.held()).sum::<usize>()
    }

    /// Its parameters and matrices; panics where this rank has no such unit.
    pub fn unit(&self, unit: Unit) -> InferUnit<'_> {
        InferUnit { flat: self.params.unit(unit), quantized: self.quantized.iter().find(|u| u.unit == unit) }
    }

    /// Whether the flat buffer of its unit has the parameter.
    pub fn keeps(&self, unit: Unit, param: &Param) -> bool {
        self.params.unit(unit).layout.params.iter().any(|p| p.name == param.name)
    }

    /// Where the parameter goes in integers, by the layout that this was made for.
    pub fn place(&self, layout: &Layout, unit: Unit, param: &Param) -> Option<QuantizedPlace> {
        self.format.and_then(|_| place(layout, unit, param))
    }

    /// Quantizes a parameter: values [rows,cols]; `tops` [rows] as [`QuantizedMatrix::set`] takes them.
    pub fn set(&mut self, place: QuantizedPlace, values: &[f32], tops: &[f32]) -> RowFidelity {
        let unit = self.quantized.iter_mut().find(|u| u.unit == place.unit);
        let matrix = unit.and_then(|u| u.matrices.iter_mut().find(|(name, _)| *name == place.matrix));
        let (_, matrix) = matrix.expect("a place is one of these matrices'");
        matrix.set(place.row, values, tops)
    }
}

impl InferUnit<'_> {
    /// y [N,O] = x [N,I] · wᵀ, plus `residual`, w being the parameters `first..=last` one below the other; each row with the
    /// bits that it has alone.
    pub fn linear(&self, x: &Tensor, first: &str, last: &str, residual: Option<&Tensor>) -> Tensor {
        match self.matrix(first) {
            Some(matrix) => quantized::linear(x, matrix, residual),
            None => linear_by_row(x, &self.flat.fused_param(first, last), residual),
        }
    }

    /// The matrix whose first part has this name, where it is in integers.
    pub(super) fn matrix(&self, first: &str) -> Option<&QuantizedMatrix> {
        self.quantized?.matrices.iter().find(|(name, _)| *name == first).map(|(_, matrix)| matrix)
    }
}

fn place(layout: &Layout, unit: Unit, param: &Param) -> Option<QuantizedPlace> {
    let matrix = matrix_of(&param.name)?;
    if unit == Unit::Embedding {
        // The head's, where it has none of its own and this rank has the head.
        let own = |u: &UnitLayout| u.params.iter().any(|p| p.name == HEAD);
        let tied = layout.units.iter().any(|u| u.unit == Unit::Head && !own(u));
        return tied.then_some(QuantizedPlace { unit: Unit::Head, matrix, row: 0 });
    }
    let before = layout.unit(unit).params.iter().take_while(|p| p.name != param.name);
    let row = before.filter(|p| matrix_of(&p.name) == Some(matrix)).map(|p| p.extent[0]).sum();
    Some(QuantizedPlace { unit, matrix, row })
}

/// (place, rows, cols) of each matrix.
fn sizes(layout: &Layout) -> Vec<(QuantizedPlace, usize, usize)> {
    let mut all: Vec<(QuantizedPlace, usize, usize)> = Vec::new();
    for (unit, param) in layout.params() {
        let Some(to) = place(layout, unit.unit, param) else { continue };
        match all.iter_mut().find(|(at, ..)| (at.unit, at.matrix) == (to.unit, to.matrix)) {
            Some((_, rows, _)) => *rows += param.extent[0],
            None => all.push((to, param.extent[0], param.extent[1])),
        }
    }
    all
}

/// The layout without what is in integers alone. The embedding stays on the stage that looks tokens up, which is the one with the
/// first block: that of the head has it too where the two are tied.
fn kept(layout: &Layout) -> Layout {
    let first = layout.units.iter().any(|u| u.unit == Unit::Block(0));
    let stays = |unit: Unit, p: &Param| match unit {
        Unit::Embedding => first || place(layout, unit, p).is_none(),
        _ => place(layout, unit, p).is_none(),
    };
    Layout { units: layout.units.iter().map(|u| u.only(|p| stays(u.unit, p))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::topology::Topology;

    fn model(tied: bool) -> ModelConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": 100, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": tied
        }))
        .unwrap()
    }

    #[test]
    fn bytes_are_those_that_are_held_and_every_matrix_has_a_place() {
        for tied in [false, true] {
            for (rank, axes) in [(0, [1, 1, 1, 1]), (0, [2, 1, 2, 1]), (3, [2, 1, 2, 1])] {
                let layout = Layout::new(&model(tied), &Topology::new(rank, axes));
                for format in [None, Some(WeightFormat::Int8), Some(WeightFormat::Int4)] {
                    let weights = InferenceWeights::zeros(&layout, Kind::Float, Device::Cpu, format);
                    let what = format!("tied {tied} rank {rank} {axes:?} {format:?}");
                    assert_eq!(weights.held(), InferenceWeights::bytes(&layout, 4, format), "{what}");
                    for (unit, param) in layout.params() {
                        let (kept, placed) =
                            (weights.keeps(unit.unit, param), weights.place(&layout, unit.unit, param).is_some());
                        let embeds = unit.unit == Unit::Embedding && rank == 0;
                        let matrix = param.extent.len() == 2 && format.is_some();
                        assert_eq!(kept, embeds || !matrix, "{what} {}", param.name);
                        let head = tied && (axes[2] == 1 || rank == 3);
                        let want = matrix && (unit.unit != Unit::Embedding || head);
                        assert_eq!(placed, want, "{what} {}", param.name);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_of_a_matrix_lie_below_each_other() {
        let layout = Layout::new(&model(false), &Topology::solo());
        let block = layout.unit(Unit::Block(1));
        let row = |tail: &str| {
            let param = block.params.iter().find(|p| p.name.ends_with(tail)).unwrap();
            place(&layout, Unit::Block(1), param).map(|p| (p.matrix, p.row))
        };
        let of = |tail: &str| row(&format!("{tail}_proj.weight"));
        assert_eq!([of("q"), of("k"), of("v")], [Some((Q, 0)), Some((Q, 48)), Some((Q, 64))]);
        assert_eq!([of("gate"), of("up"), of("down")], [Some((GATE, 0)), Some((GATE, 40)), Some((DOWN, 0))]);
        assert_eq!(row("input_layernorm.weight"), None);
    }
}
