//! From weights on disk to a replica that is ready: each rank reads its own slice of what the first replica needs, the others get
//! theirs from it.

use crate::config::ModelConfig;
use crate::convert::weights::Weights;
use crate::error::{Error, Exit, Result};
use crate::kernels::quantized::WeightFormat;
use crate::layout::Layout;
use crate::model::{Axes, InferenceWeights};
use crate::progress::Meter;
use crate::serve::engine::{Capacity, Engine};
use crate::serve::load::{load, LoadWires};
use crate::serve::replica::Replica;
use crate::serve::scheduler::{blocks, Limits};
use crate::serve::stage::{ModelStage, StageWires};
use crate::topology::{Axis, Topology};
use crate::wire::{Backend, MakeWires, MpiWire, Route, Wire};
use crate::world::World;
use std::sync::Arc;
use tch::{Device, Kind};

/// What a rank is to hold.
#[derive(Clone, Debug)]
pub struct Holding<'a> {
    /// The model's architecture.
    pub model: &'a ModelConfig,
    /// All ranks of the world, and this one's place.
    pub topology: Topology,
    /// Of weights that are not quantized, of hidden states and of the cache.
    pub kind: Kind,
    /// Where weights and cache lie.
    pub device: Device,
    /// Matrices in integers; on CPUs only.
    pub quantize: Option<WeightFormat>,
    /// Tokens of the longest text.
    pub longest: usize,
    /// Blocks of the cache, block 0 counted.
    pub blocks: usize,
}

/// The sizes of the axes of `world` ranks. Errors ([`Exit::Usage`]): numbers that do not divide each other.
pub fn axes(model: &ModelConfig, world: usize, tensor: usize, pipeline: usize) -> Result<[usize; 4]> {
    let (heads, kv, f) = (model.num_attention_heads, model.num_key_value_heads, model.intermediate_size);
    let mut wrong = Vec::new();
    let mut ask = |fits: bool, text: String| {
        if !fits {
            wrong.push(text);
        }
    };
    let each = tensor * pipeline;
    ask(world.is_multiple_of(each), format!("{world} ranks are no multiple of tensor {tensor} × pipeline {pipeline}"));
    ask(heads.is_multiple_of(tensor), format!("{heads} attention heads do not divide among {tensor} tensor ranks"));
    ask(
        kv.is_multiple_of(tensor) || tensor.is_multiple_of(kv),
        format!("{kv} key/value heads and {tensor} tensor ranks are no multiples of each other"),
    );
    ask(f.is_multiple_of(tensor), format!("{f} feed-forward columns do not divide among {tensor} tensor ranks"));
    let layers = model.num_hidden_layers;
    ask(layers >= pipeline, format!("{layers} blocks are fewer than {pipeline} pipeline stages"));
    match wrong.is_empty() {
        true => Ok([tensor, 1, pipeline, world / each]),
        false => Err(Error::several(Exit::Usage, "ranks", wrong)),
    }
}

impl Holding<'_> {
    fn layout(&self) -> Layout {
        Layout::new(self.model, &self.topology)
    }

    /// Bytes of one block of the cache on this rank.
    pub fn block_bytes(&self) -> usize {
        ModelStage::block_bytes(self.model, &self.layout(), self.kind, self.topology.size(Axis::Tensor))
    }

    /// This rank, alone.
    pub fn alone(&self, weights: &Weights, meter: &Meter) -> Result<Replica> {
        let solo = MpiWire::solo();
        let wires = LoadWires { tensor: &solo, replicas: &solo };
        Ok(self.of_weights(self.load(Some(weights), wires, meter)?))
    }

    /// This rank, alone, with weights that are there.
    pub fn of_weights(&self, weights: InferenceWeights) -> Replica {
        let solo = || -> Arc<dyn Wire> { Arc::new(MpiWire::solo()) };
        let wires = StageWires { axes: Axes::solo(), pipeline: solo() };
        Replica::new(ModelStage::new(self.model, weights, &wires, self.longest, self.blocks), solo())
    }

    /// This rank of its replica; `weights` where this is the first replica. Collective over the world.
    pub fn replica(&self, weights: Option<&Weights>, world: &World, meter: &Meter) -> Result<Replica> {
        let wire = |axis| -> Result<Arc<dyn Wire>> { Ok(world.wire(&self.topology, axis)?.into()) };
        let axes = Axes::new(wire(Axis::Tensor)?, Arc::new(MpiWire::solo()));
        let wires = StageWires { axes, pipeline: wire(Axis::Pipeline)? };
        let each = self.topology.size(Axis::Tensor) * self.topology.size(Axis::Pipeline);
        let first = self.topology.rank / each * each;
        let ranks: Vec<usize> = (first..first + each).collect();
        let control = world.wire_group_on(&ranks, Backend::Host(Route::Fastest))?;
        let replicas = world.wire(&self.topology, Axis::Data)?;
        let load_wires = LoadWires { tensor: &*wires.axes.tensor, replicas: &*replicas };
        let weights = self.load(weights, load_wires, meter)?;
        Ok(Replica::new(ModelStage::new(self.model, weights, &wires, self.longest, self.blocks), control.into()))
    }

    fn load(&self, weights: Option<&Weights>, wires: LoadWires, meter: &Meter) -> Result<InferenceWeights> {
        let layout = self.layout();
        let empty = InferenceWeights::zeros(&layout, self.kind, self.device, self.quantize);
        load(&layout, empty, weights, wires, meter)
    }

    /// The leader of a replica, ready; `sharing`: what texts have in common at their beginning is read once.
    pub fn engine(&self, replica: Replica, limits: Limits, sharing: bool) -> Engine {
        let Holding { blocks, longest, .. } = *self;
        Engine::new(replica, Capacity { limits, blocks, sharing, longest, vocab: self.model.vocab_size })
    }
}

/// Blocks that `sequences` texts of `longest` tokens need, as many of them as fit into `bytes`, but at least one text's; block 0
/// counted. Errors ([`Exit::Usage`]): not one fits.
pub fn cache_blocks(longest: usize, sequences: usize, block_bytes: usize, bytes: u64) -> Result<usize> {
    let (one, room) = (blocks(longest), (bytes / block_bytes.max(1) as u64) as usize);
    if room < one + 1 {
        let (need, has) = ((one + 1) as u64 * block_bytes as u64, bytes);
        return Err(Error::new(
            Exit::Usage,
            format!(
                "the cache of one text of {longest} tokens takes {need} bytes a rank, but {has} bytes are to be used"
            ),
        )
        .hint("set a smaller --max-length, or let the cache be larger with --cache-gb"));
    }
    Ok((one * sequences + 1).min(room))
}
