//! The model over a KV cache: many tokens at once for the prompt, one at a time after it.

use crate::error::Result;
use crate::generate::cache::KvCache;
use crate::layout::Unit;
use crate::model::attention::Attention;
use crate::model::{embedding, Llama, Params, Positions};
use tch::{Kind, Tensor};

/// One sequence being decoded.
pub struct Decoder<'a> {
    model: &'a Llama,
    params: &'a Params,
    cache: KvCache,
}

impl<'a> Decoder<'a> {
    /// For at most `capacity` tokens, no more than the model's rotary tables hold.
    pub fn new(model: &'a Llama, params: &'a Params, capacity: usize) -> Decoder<'a> {
        let &Attention { kv_heads, head_dim, .. } = &model.block.attention;
        let weights = &params.unit(Unit::Embedding).param;
        let cache = KvCache::new(model.layers, kv_heads, head_dim, capacity, (weights.kind(), weights.device()));
        Decoder { model, params, cache }
    }

    /// Reads the whole prompt into the empty cache. Returns the logits [V] for the token after it.
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<Vec<f32>> {
        debug_assert!(self.cache.is_empty());
        let at = Positions::consecutive(&self.model.rope, 0, prompt.len());
        let block = &self.model.block;
        let mut x = self.embed(prompt)?;
        for i in 0..self.model.layers {
            let w = self.params.unit(Unit::Block(i));
            let (mid, saved) = block.attention.forward(w, &x, &at)?;
            let [_, k, v] = block.attention.split(&saved.mixed.qkv, prompt.len());
            self.cache.append(i, &k, &v);
            drop(saved);
            x = block.mlp.forward(w, &mid)?.0;
        }
        self.cache.advance(prompt.len());
        self.logits(&x.narrow(0, prompt.len() as i64 - 1, 1))
    }

    /// Reads one more token. Returns the logits [V] for the token after it.
    pub fn step(&mut self, id: u32) -> Result<Vec<f32>> {
        let at = Positions::consecutive(&self.model.rope, self.cache.len(), 1);
        let mut x = self.embed(&[id])?;
        for i in 0..self.model.layers {
            x = self.block(i, &x, &at)?;
        }
        self.cache.advance(1);
        self.logits(&x)
    }

    fn block(&mut self, i: usize, x: &Tensor, at: &Positions) -> Result<Tensor> {
        let w = self.params.unit(Unit::Block(i));
        let block = &self.model.block;
        let (_, _, qkv) = block.attention.project(w, x, at)?;
        let [q, k, v] = block.attention.split(&qkv, 1);
        self.cache.append(i, &k, &v);
        let mid = block.attention.output(w, &self.cache.attend(i, &q), x)?;
        Ok(block.mlp.forward(w, &mid)?.0)
    }

    /// [n,H] T.
    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let w = self.params.unit(Unit::Embedding);
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        embedding::forward(w, &Tensor::from_slice(&ids).to_device(w.param.device()), &self.model.axes)
    }

    /// x [1,H] → [V] on the host.
    fn logits(&self, x: &Tensor) -> Result<Vec<f32>> {
        let head = self.params.unit(Unit::Head);
        let logits = self.model.head.logits(head, self.model.projection(self.params), x)?.to_kind(Kind::Float);
        let mut out = vec![0f32; logits.numel()];
        let n = out.len();
        logits.copy_data(&mut out, n);
        Ok(out)
    }
}
