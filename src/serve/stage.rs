//! One rank's part of the model over the paged cache: the blocks of its pipeline stage, its share of their heads and columns.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels::paged::{self, Pages};
use crate::layout::{Layout, Unit};
use crate::model::{embedding, Axes, InferenceWeights, Llama, Rope};
use crate::serve::iteration::TokenBatch;
use crate::wire::Wire;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Bytes of logits in memory at a time.
const CHUNK_BYTES: usize = 64 << 20;

/// Takes rows of logits [C,V] f32 on the host, the first of which is that one of the rows that are wanted.
pub type LogitsChunk<'a> = dyn FnMut(usize, &Tensor) -> Result<()> + 'a;

/// The wires of a replica's rank.
#[derive(Clone)]
pub struct StageWires {
    /// The replica's tensor axis; its context axis is of one rank.
    pub axes: Axes,
    /// The replica's stages in order: the first has the embedding, the last the head.
    pub pipeline: Arc<dyn Wire>,
}

/// Weights, cache and geometry of one rank.
pub struct ModelStage {
    model: Llama,
    weights: InferenceWeights,
    vocab: i64,
    units: Vec<Unit>,
    /// Of this stage's blocks, in order.
    pages: Vec<Pages>,
    pipeline: Arc<dyn Wire>,
}

impl ModelStage {
    /// `weights` by the layout of this rank; texts of up to `longest` tokens; a cache of `blocks` blocks, of which block 0 is
    /// nobody's.
    pub fn new(
        config: &ModelConfig, weights: InferenceWeights, wires: &StageWires, longest: usize, blocks: usize,
    ) -> ModelStage {
        let units = &weights.params.units;
        let options = (units[0].param.kind(), units[0].param.device());
        let model = Llama::new(config, longest, options.1, &wires.axes);
        let units: Vec<Unit> = units.iter().map(|u| u.layout.unit).collect();
        let attention = &model.block.attention;
        let page = |_: &Unit| Pages::new(blocks, attention.kv_heads, attention.head_dim, options);
        let pages = units.iter().filter(|u| matches!(u, Unit::Block(_))).map(page).collect();
        let (vocab, pipeline) = (config.vocab_size as i64, wires.pipeline.clone());
        ModelStage { model, weights, vocab, units, pages, pipeline }
    }

    /// Bytes of one block of the cache on a rank that holds the units of `layout`.
    pub fn block_bytes(config: &ModelConfig, layout: &Layout, kind: Kind, tensor: usize) -> usize {
        let layers = layout.units.iter().filter(|u| matches!(u.unit, Unit::Block(_))).count();
        let heads = (config.num_key_value_heads / tensor).max(1);
        layers * Pages::block_bytes(heads, config.head_dim(), kind.elt_size_in_bytes())
    }

    /// Reads the batch's tokens. `chunk` gets the logits that are wanted, in order, so many rows at a time that they take a bounded
    /// memory; on the replica's first rank only. Collective over the replica.
    pub fn forward(&self, batch: &TokenBatch, chunk: &mut LogitsChunk) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let shards = self.model.axes.shards();
        let rows = (batch.tokens() as i64 + shards - 1) / shards * shards;
        let (ids, places, slots) = batch.rows(rows as usize);
        let device = self.device();
        let places = Tensor::from_slice(&places).to_device(device);
        let table = |t: &Tensor| t.index_select(0, &places);
        let rope = Rope { cos: table(&self.model.rope.cos), sin: table(&self.model.rope.sin) };
        let mut x = self.enter(&ids, rows / shards)?;
        let runs = batch.runs();
        let blocks = self.units.iter().filter(|u| matches!(u, Unit::Block(_)));
        for (&unit, pages) in blocks.zip(&self.pages) {
            let mut attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
                paged::write(pages, k, v, &slots);
                paged::attention(pages, q, &runs)
            };
            x = self.model.block.infer_by_row(self.weights.unit(unit), &x, &rope, &mut attend)?;
        }
        self.leave(batch, x, chunk)
    }

    fn device(&self) -> Device {
        self.weights.params.units[0].param.device()
    }

    fn is_last(&self) -> bool {
        self.pipeline.rank() + 1 == self.pipeline.size()
    }

    /// [N/t,H] T: the embedding's, or what the stage before made.
    fn enter(&self, ids: &[i64], rows: i64) -> Result<Tensor> {
        let first = self.weights.params.unit(self.units[0]);
        if self.pipeline.rank() == 0 {
            let ids = Tensor::from_slice(ids).to_device(self.device());
            return embedding::forward(first, &ids, &self.model.axes);
        }
        let hidden =
            self.weights.params.unit(Unit::Block(self.first_block())).param("input_layernorm.weight").size()[0];
        let x = Tensor::empty([rows, hidden], (first.param.kind(), self.device()));
        self.pipeline.recv(&x, self.pipeline.rank() - 1)?.wait()?;
        Ok(x)
    }

    fn first_block(&self) -> usize {
        self.units.iter().find_map(|u| if let Unit::Block(i) = u { Some(*i) } else { None }).unwrap_or(0)
    }

    /// (first, rows) of each chunk of the logits that are wanted, the same on every rank.
    fn chunks(&self, batch: &TokenBatch) -> Vec<(usize, usize)> {
        let (all, most) = (batch.wanted(), (CHUNK_BYTES / (4 * self.vocab as usize)).max(1));
        (0..all).step_by(most).map(|first| (first, most.min(all - first))).collect()
    }

    /// On to the next stage, or through the head and back to the first.
    fn leave(&self, batch: &TokenBatch, x: Tensor, chunk: &mut LogitsChunk) -> Result<()> {
        let (stage, stages) = (self.pipeline.rank(), self.pipeline.size());
        let speaks = self.model.axes.tensor.rank() == 0;
        if self.is_last() {
            return self.speak(batch, &x, chunk);
        }
        self.pipeline.send(&x.contiguous(), stage + 1)?.wait()?;
        if stage > 0 || !speaks {
            return Ok(());
        }
        for (first, rows) in self.chunks(batch) {
            let logits = Tensor::empty([rows as i64, self.vocab], (Kind::Float, self.device()));
            self.pipeline.recv(&logits, stages - 1)?.wait()?;
            chunk(first, &logits.to_device(Device::Cpu))?;
        }
        Ok(())
    }

    /// The last stage: the head, of x [N/t,H] T.
    fn speak(&self, batch: &TokenBatch, x: &Tensor, chunk: &mut LogitsChunk) -> Result<()> {
        let (axes, chunks) = (&self.model.axes, self.chunks(batch));
        if chunks.is_empty() {
            return Ok(());
        }
        let rows = Tensor::from_slice(&batch.wanted_rows()).to_device(self.device());
        let x = axes.gather(x)?.rows()?.index_select(0, &rows);
        for (first, rows) in chunks {
            let logits = self.logits(&x.narrow(0, first as i64, rows as i64))?;
            match (axes.tensor.rank(), self.pipeline.size()) {
                (0, 1) => chunk(first, &logits.to_device(Device::Cpu))?,
                (0, _) => drop(self.pipeline.send(&logits, 0)?.wait()?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Of x [C,H] T the logits [C,V] f32, on every rank of the tensor axis.
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let axes = &self.model.axes;
        let projection = self.model.projection(&self.weights.params);
        let own = self.model.head.logits_by_row(self.weights.unit(Unit::Head), projection, x).to_kind(Kind::Float);
        if axes.shards() == 1 {
            return Ok(own);
        }
        // Shares of the vocabulary are equal but for the last ones, which are filled up.
        let share = (self.vocab + axes.shards() - 1) / axes.shards();
        let filled = own.constant_pad_nd([0, share - own.size()[1]]).contiguous();
        let all = axes.gather(&filled)?.rows()?.view([axes.shards(), -1, share]);
        Ok(all.transpose(0, 1).reshape([-1, axes.shards() * share]).narrow(1, 0, self.vocab).contiguous())
    }
}
