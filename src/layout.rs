//! Which parameters exist, and which slice of which parameter this rank holds. Pure arithmetic, no tensors, no MPI.
//!
//! Parameters are grouped in *units*: the embedding, each block, the head. A unit is one flat buffer in the order of
//! the forward pass, and the grain of everything that moves whole: gradient buckets, ZeRO gathers, prefetch, recompute.
//! Within a unit the tensors lie back to back, so that q, k and v (and gate and up) are one matrix without a copy.

mod adapters;
pub mod sharding;
pub mod stages;

pub use adapters::adapter_shapes;
pub use sharding::Sharding;

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
    /// The low-rank adapters beside a block's matrices.
    Adapter(usize),
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
    /// Matrix or vector, by the number of its dims.
    pub kind: Kind,
    /// Global shape, `[rows, cols]` or `[len]`.
    pub shape: Vec<usize>,
    /// First element of the local slice on each dim.
    pub offset: Vec<usize>,
    /// Extent of the local slice on each dim.
    pub extent: Vec<usize>,
    /// Where the local slice starts in the unit's flat buffer, in elements.
    pub start: usize,
    /// How many adjacent ranks of the tensor axis hold this very slice: 1 where the axis cuts the parameter, all for norms,
    /// and ranks / KV heads for k and v where there are more ranks than KV heads. Gradients are summed over them.
    pub copies: usize,
    /// Whether this rank is the one that counts the slice in norms and writes it to checkpoints: the first of the ranks of
    /// the tensor axis that hold it; of the two stages with a tied embedding the first. Replicas (context, data) share the
    /// work by ranges of the flat buffer and are not meant here.
    pub owner: bool,
}

impl Param {
    /// Number of local elements.
    pub fn len(&self) -> usize {
        self.extent.iter().product()
    }
    /// Whether this rank holds no element of it.
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
    /// Which unit this is.
    pub unit: Unit,
    /// Its parameters are read only: no gradients, no fp32 weights, no moments, no place in checkpoints.
    pub frozen: bool,
    /// What this rank holds of its parameters, in the order of the flat buffer.
    pub params: Vec<Param>,
    /// Elements in use: the sum of the params' local lengths.
    pub used: usize,
    /// Length of the flat buffer: `used` of the first tensor rank (the largest) padded to a multiple of [`PAD`] × replicas
    /// ([`Topology::replicas`]), so that ranges of the buffer hold the same parameters on every tensor rank; the tail stays
    /// zero.
    pub len: usize,
}

impl UnitLayout {
    /// The elements of the flat buffer that part `rank` of `size` is made of.
    pub fn shard(&self, rank: usize, size: usize) -> Range<usize> {
        let n = self.len / size;
        rank * n..(rank + 1) * n
    }

    /// Whether this is a transformer block.
    pub fn is_block(&self) -> bool {
        matches!(self.unit, Unit::Block(_))
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

    /// The unit with some of its parameters only, for buffers that nothing is shared out of.
    pub fn only(&self, stays: impl Fn(&Param) -> bool) -> UnitLayout {
        let mut used = 0;
        let mut place = |p: &Param| {
            let start = used;
            used += p.len();
            Param { start, ..p.clone() }
        };
        let params: Vec<Param> = self.params.iter().filter(|p| stays(p)).map(&mut place).collect();
        UnitLayout { params, used, len: used.next_multiple_of(PAD), ..*self }
    }
}

/// Flat buffers are padded to this many elements per replica: one 64-byte line of bf16, two of fp32.
pub const PAD: usize = 32;

/// All units a rank holds, in forward order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// One for each, in forward order.
    pub units: Vec<UnitLayout>,
}

impl Layout {
    /// The layout of `model` on `topo` with one chunk of units per pipeline stage, cut for short sequences.
    pub fn new(model: &ModelConfig, topo: &Topology) -> Layout {
        let chunks = stages::chunks(model, topo.size(Axis::Pipeline), 1, 1);
        Layout::of(model, topo, &[&chunks[topo.coord(Axis::Pipeline)]])
    }

    /// The layout of the units in `chunks` on `topo`: those that this rank's pipeline stage holds, in forward order.
    pub fn of(model: &ModelConfig, topo: &Topology, chunks: &[&Vec<Unit>]) -> Layout {
        let first_stage = topo.coord(Axis::Pipeline) == 0;
        let all = units(model);
        let shapes = |unit: Unit| all.iter().find(|(u, _)| *u == unit).map(|(_, p)| p.clone()).unwrap_or_default();
        let place = |&unit: &Unit| {
            let owner = first_stage || unit != Unit::Embedding;
            place(unit, shapes(unit), &Cut::new(model, topo), owner, topo.replicas())
        };
        Layout { units: chunks.iter().flat_map(|c| c.iter()).map(place).collect() }
    }

    /// The layout of `unit`.
    ///
    /// # Panics
    /// Where this rank does not hold it.
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

    /// Whether this rank holds no parameter.
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

/// Which slice of each parameter a rank of the tensor axis holds (Megatron-LM, arXiv:1909.08053 §3): rows of the matrices
/// that make heads, feed-forward columns and logits; columns of the two that come back from them; norms whole. Adapters are cut
/// with their matrices.
struct Cut<'a> {
    model: &'a ModelConfig,
    rank: usize,
    size: usize,
}

impl Cut<'_> {
    fn new<'a>(model: &'a ModelConfig, topo: &Topology) -> Cut<'a> {
        Cut { model, rank: topo.coord(Axis::Tensor), size: topo.size(Axis::Tensor) }
    }

    /// (offset, extent, copies) of the slice of a parameter.
    fn slice(&self, name: &str, shape: &[usize]) -> (Vec<usize>, Vec<usize>, usize) {
        let d = self.model.head_dim();
        let mut parts = name.rsplit('.').skip(1);
        let (side, module) = match parts.next().unwrap_or_default() {
            side @ ("lora_A" | "lora_B") => (side, parts.next().unwrap_or_default()),
            module => ("", module),
        };
        let whole = || (vec![0; shape.len()], shape.to_vec(), self.size);
        let (dim, range, copies) = match module {
            // Of an adapter the factor with the dim that the axis cuts in its matrix is cut with it, the other is whole.
            "o_proj" | "down_proj" if side == "lora_B" => return whole(),
            "q_proj" | "k_proj" | "v_proj" | "gate_proj" | "up_proj" if side == "lora_A" => return whole(),
            "q_proj" => (0, self.heads(self.model.num_attention_heads, d), 1),
            "k_proj" | "v_proj" => {
                let kv = self.model.num_key_value_heads;
                (0, self.heads(kv, d), (self.size / kv).max(1))
            }
            "o_proj" => (1, self.heads(self.model.num_attention_heads, d), 1),
            "gate_proj" | "up_proj" => (0, self.even(shape[0]), 1),
            "down_proj" => (1, self.even(shape[1]), 1),
            "embed_tokens" | "lm_head" => (0, self.even(shape[0]), 1),
            _ => return whole(),
        };
        let (mut offset, mut extent) = (vec![0; shape.len()], shape.to_vec());
        (offset[dim], extent[dim]) = (range.start, range.len());
        (offset, extent, copies)
    }

    /// Rows of this rank's share of `heads` heads of width `d`; with fewer heads than ranks, of the one head it shares.
    fn heads(&self, heads: usize, d: usize) -> Range<usize> {
        match heads >= self.size {
            true => heads * self.rank / self.size * d..heads * (self.rank + 1) / self.size * d,
            false => {
                let head = self.rank * heads / self.size;
                head * d..(head + 1) * d
            }
        }
    }

    /// This rank's share of `n`: equal ones, the last rank's shorter where `n` does not divide (the vocabulary).
    fn even(&self, n: usize) -> Range<usize> {
        let each = n.div_ceil(self.size);
        (each * self.rank).min(n)..(each * (self.rank + 1)).min(n)
    }
}

fn place(unit: Unit, params: Vec<(String, Vec<usize>)>, cut: &Cut, owner: bool, replicas: usize) -> UnitLayout {
    let widest = Cut { rank: 0, ..*cut };
    let len = |(name, shape): &(String, Vec<usize>)| widest.slice(name, shape).1.iter().product::<usize>();
    let most: usize = params.iter().map(len).sum();
    let mut start = 0;
    let params: Vec<Param> = params
        .into_iter()
        .map(|(name, shape)| {
            let kind = if shape.len() == 2 { Kind::Matrix } else { Kind::Vector };
            let (offset, extent, copies) = cut.slice(&name, &shape);
            let owner = owner && cut.rank.is_multiple_of(copies);
            let param = Param { name, kind, shape, offset, extent, start, copies, owner };
            start += param.len();
            param
        })
        .collect();
    let len = most.max(start).next_multiple_of(PAD * replicas);
    UnitLayout { unit, frozen: false, params, used: start, len }
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

    /// Over all ranks of many grids, the owners' slices are every element of every parameter once.
    #[test]
    fn owners_hold_every_element_once() {
        for tied in [false, true] {
            let m = tiny(tied);
            for (tensor, pipeline) in [(1, 1), (2, 1), (2, 2), (6, 3), (2, 3), (1, 2)] {
                let mut seen = std::collections::HashMap::<String, Vec<u8>>::new();
                for rank in 0..tensor * pipeline {
                    let l = Layout::new(&m, &Topology::new(rank, [tensor, 1, pipeline, 1]));
                    for (_, p) in l.params().filter(|(_, p)| p.owner) {
                        let all = seen.entry(p.name.clone()).or_insert_with(|| vec![0; p.global_len()]);
                        let width = p.shape.get(1).copied().unwrap_or(1);
                        let cols = *p.extent.get(1).unwrap_or(&1);
                        let first = *p.offset.get(1).unwrap_or(&0);
                        for r in 0..p.extent[0] {
                            let at = (p.offset[0] + r) * width + first;
                            all[at..at + cols].iter_mut().for_each(|n| *n += 1);
                        }
                    }
                }
                assert_eq!(seen.values().map(Vec::len).sum::<usize>(), count(&m));
                assert!(seen.values().flatten().all(|&n| n == 1), "tensor {tensor} pipeline {pipeline} tied {tied}");
            }
        }
    }

    #[test]
    fn few_kv_heads_are_shared_by_neighbours() {
        let at = |rank| {
            let l = Layout::new(&tiny(false), &Topology::new(rank, [6, 1, 1, 1]));
            let k = l.unit(Unit::Block(0)).params[2].clone();
            (k.offset[0], k.extent[0], k.copies, k.owner)
        };
        assert_eq!([at(0), at(2), at(3)], [(0, 5, 3, true), (0, 5, 3, false), (5, 5, 3, true)]);
    }
}
