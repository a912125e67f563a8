//! Keys and values of the tokens so far, for every block.

use tch::{Device, Kind, Tensor};

/// The cache of one sequence. Memory: layers · 2 · Hkv · D · t bytes a token of capacity.
pub struct KvCache {
    layers: Vec<Layer>,
    /// Tokens held, once [`KvCache::advance`] has counted them.
    len: i64,
}

struct Layer {
    /// [Hkv, capacity, D] T.
    keys: Tensor,
    /// [Hkv, capacity, D] T.
    values: Tensor,
}

impl KvCache {
    /// Room for `capacity` tokens in each of `layers` blocks.
    pub fn new(layers: usize, kv_heads: i64, head_dim: i64, capacity: usize, options: (Kind, Device)) -> KvCache {
        let buffer = || Tensor::zeros([kv_heads, capacity as i64, head_dim], options);
        let layers = (0..layers).map(|_| Layer { keys: buffer(), values: buffer() }).collect();
        KvCache { layers, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes k and v [1,n,Hkv,D] of the `n` newest tokens behind those counted.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) {
        let n = k.size()[1];
        let l = &self.layers[layer];
        l.keys.narrow(1, self.len, n).copy_(&k.squeeze_dim(0).transpose(0, 1));
        l.values.narrow(1, self.len, n).copy_(&v.squeeze_dim(0).transpose(0, 1));
    }

    /// Attention of the newest token, q [1,1,Hq,D], over all tokens counted and itself → [1,1,Hq,D] T.
    pub fn attend(&self, layer: usize, q: &Tensor) -> Tensor {
        let held = |t: &Tensor| t.narrow(1, 0, self.len + 1).unsqueeze(0);
        let l = &self.layers[layer];
        let (k, v) = (held(&l.keys), held(&l.values));
        let q = q.transpose(1, 2);
        let out = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, false, None, true);
        out.transpose(1, 2).contiguous()
    }

    /// Counts the `n` tokens that every block has appended.
    pub fn advance(&mut self, n: usize) {
        self.len += n as i64;
    }
}
