//! Which parameters exist, and which slice of which parameter this rank holds. Pure arithmetic, no tensors, no MPI.
//!
//! Parameters are grouped in *units*: the embedding, each block, the head. A unit is one flat buffer in the order of
//! the forward pass, and the grain of everything that moves whole: gradient buckets, ZeRO gathers, prefetch, recompute.
//! Within a unit the tensors lie back to back, so that q, k and v (and gate and up) are one matrix without a copy.

use crate::config::ModelConfig;
use crate::topology::{Axis, Topology};
use std::ops::Range;

/// A group of parameters that is gathered, reduced and updated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// `model.embed_tokens.weight`
    Embedding,
    /// One transformer block.
    Block(usize),
    /// `model.norm.weight` and, unless tied, `lm_head.weight`
    Head,
}

/// Whether weight decay applies: to matrices only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two dims, initialised from a normal distribution.
    Matrix,
    /// One dim (RMSNorm weight), initialised to one.
    Vector,
}

/// One parameter of the model and the rectangular slice of it that this rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Hugging Face name, the same on every topology.
    pub name: String,
    pub kind: Kind,
    /// Global shape, `[rows, cols]` or `[len]`.
    pub shape: Vec<usize>,
    /// First element of the local slice on each dim.
    pub offset: Vec<usize>,
    /// Extent of the local slice on each dim.
    pub extent: Vec<usize>,
    /// Where the local slice starts in the unit's flat buffer, in elements.
    pub start: usize,
}

impl Param {
    /// Number of local elements.
    pub fn len(&self) -> usize {
        self.extent.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number of elements of the whole parameter.
    pub fn global_len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One unit's local parameters and the length of its flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitLayout {
    pub unit: Unit,
    pub params: Vec<Param>,
    /// Elements in use: the sum of the params' local lengths.
    pub used: usize,
    /// Length of the flat buffer: `used` padded to a multiple of [`PAD`] × data-axis size; the tail stays zero.
    pub len: usize,
}

impl UnitLayout {
    /// The elements of the flat buffer that rank `rank` of `size` on the data axis owns.
    pub fn shard(&self, rank: usize, size: usize) -> Range<usize> {
        let n = self.len / size;
        rank * n..(rank + 1) * n
    }

    /// The parameters that meet `range` of the flat buffer, each with the local elements of it that do.
    pub fn pieces<'a>(&'a self, range: &Range<usize>) -> impl Iterator<Item = (&'a Param, Range<usize>)> {
        let range = range.clone();
        self.params.iter().filter_map(move |p| {
            let lo = p.start.max(range.start);
            let hi = (p.start + p.len()).min(range.end);
            (lo < hi).then(|| (p, lo - p.start..hi - p.start))
        })
    }
}

/// Flat buffers are padded to this many elements per data rank: one 64-byte line of bf16, two of fp32.
pub const PAD: usize = 32;

/// All units a rank holds, in forward order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub units: Vec<UnitLayout>,
}

impl Layout {
    /// The layout of `model` on `topo`. Axes other than data hold every parameter whole.
    pub fn new(model: &ModelConfig, topo: &Topology) -> Layout {
        let dp = topo.size(Axis::Data);
        let units = units(model).into_iter().map(|(unit, params)| place(unit, params, dp)).collect();
        Layout { units }
    }

    pub fn unit(&self, unit: Unit) -> &UnitLayout {
        self.units.iter().find(|u| u.unit == unit).expect("every unit of the model is in the layout")
    }

    /// Every local parameter in forward order.
    pub fn params(&self) -> impl Iterator<Item = (&UnitLayout, &Param)> {
        self.units.iter().flat_map(|u| u.params.iter().map(move |p| (u, p)))
    }

    /// Local parameter count, padding not counted.
    pub fn len(&self) -> usize {
        self.units.iter().map(|u| u.used).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A unit with the names and global shapes of its parameters.
pub type UnitShapes = (Unit, Vec<(String, Vec<usize>)>);

/// All parameters, grouped in units, in forward order.
pub fn units(m: &ModelConfig) -> Vec<UnitShapes> {
    let h = m.hidden_size;
    let mut out = vec![(Unit::Embedding, vec![("model.embed_tokens.weight".to_string(), vec![m.vocab_size, h])])];
    for i in 0..m.num_hidden_layers {
        let p = |tail: &str| format!("model.layers.{i}.{tail}");
        out.push((
            Unit::Block(i),
            vec![
                (p("input_layernorm.weight"), vec![h]),
                (p("self_attn.q_proj.weight"), vec![m.q_dim(), h]),
                (p("self_attn.k_proj.weight"), vec![m.kv_dim(), h]),
                (p("self_attn.v_proj.weight"), vec![m.kv_dim(), h]),
                (p("self_attn.o_proj.weight"), vec![h, m.q_dim()]),
                (p("post_attention_layernorm.weight"), vec![h]),
                (p("mlp.gate_proj.weight"), vec![m.intermediate_size, h]),
                (p("mlp.up_proj.weight"), vec![m.intermediate_size, h]),
                (p("mlp.down_proj.weight"), vec![h, m.intermediate_size]),
            ],
        ));
    }
    let mut head = vec![("model.norm.weight".to_string(), vec![h])];
    if !m.tie_word_embeddings {
        head.push(("lm_head.weight".to_string(), vec![m.vocab_size, h]));
    }
    out.push((Unit::Head, head));
    out
}

/// Number of parameters of the whole model.
pub fn count(m: &ModelConfig) -> usize {
    units(m).iter().flat_map(|(_, ps)| ps).map(|(_, s)| s.iter().product::<usize>()).sum()
}

fn place(unit: Unit, params: Vec<(String, Vec<usize>)>, dp: usize) -> UnitLayout {
    let mut start = 0;
    let params: Vec<Param> = params
        .into_iter()
        .map(|(name, shape)| {
            let kind = if shape.len() == 2 { Kind::Matrix } else { Kind::Vector };
            let param = Param { name, kind, offset: vec![0; shape.len()], extent: shape.clone(), shape, start };
            start += param.len();
            param
        })
        .collect();
    UnitLayout { unit, params, used: start, len: start.next_multiple_of(PAD * dp) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(tied: bool) -> ModelConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": 100, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 5, "tie_word_embeddings": tied
        }))
        .unwrap()
    }

    #[test]
    fn flat_buffers_hold_every_parameter_back_to_back() {
        let m = tiny(false);
        let l = Layout::new(&m, &Topology::data(1, 3));
        assert_eq!(l.len(), count(&m));
        for u in &l.units {
            let mut at = 0;
            for p in &u.params {
                assert_eq!(p.start, at);
                at += p.len();
            }
            assert_eq!(u.used, at);
            assert_eq!(u.len % (3 * PAD), 0);
        }
    }

    #[test]
    fn tied_models_have_no_head_matrix() {
        assert_eq!(count(&tiny(false)) - count(&tiny(true)), 100 * 24);
        assert_eq!(Layout::new(&tiny(true), &Topology::solo()).unit(Unit::Head).params.len(), 1);
    }
}
