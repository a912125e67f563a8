//! Attention of the queries that this rank holds: segment by segment, over keys that may lie on other ranks; on a device the
//! documents of a micro-batch in one call.
//!
//! Over the context axis (c ranks) K and V of all ranks are collected in one message a block, and again in the backward
//! pass rather than kept; their gradients go back in one message, each rank's contribution in T, summed in fp32. Shapes:
//! B sequences, S tokens each, D the width of a head, Hq and Hkv this rank's heads; T the compute dtype.

use crate::error::Result;
use crate::kernels::{self, PackedSequences};
use crate::model::positions::{to_ranks, to_sequence, Segment};
use crate::model::{Axes, Positions};
use tch::{Kind, Tensor};

/// Views of this rank's q [B,S/c,Hq,D] and k|v [B,S/c,2·Hkv,D], or of their gradients.
pub struct Parts {
    /// Queries, rotated.
    pub q: Tensor,
    /// Keys, rotated, and after them the values, in the dimension of the heads.
    pub kv: Tensor,
}

/// → out [B,S/c,Hq,D] T, lse [B,Hq,S/c] f32.
pub fn forward(axes: &Axes, at: &Positions, x: &Parts) -> Result<(Tensor, Tensor)> {
    let q = &x.q;
    let [k, v] = halves(&collect(axes, &x.kv)?);
    if plain(axes, at) {
        return Ok(kernels::attention(q, &k, &v));
    }
    if let Some(packed) = packed(at, q) {
        return Ok(kernels::attention_packed(q, &k, &v, packed));
    }
    let size = q.size();
    let out = Tensor::empty(&size, (q.kind(), q.device()));
    let lse = Tensor::empty([size[0], size[2], size[1]], (Kind::Float, q.device()));
    for s in at.segments() {
        let (o, l) = kernels::attention(&s.queries_of(q, 1), &s.keys_of(&k), &s.keys_of(&v));
        s.queries_of(&out, 1).copy_(&o);
        s.queries_of(&lse, 2).copy_(&l);
    }
    Ok((out, lse))
}

/// Writes the gradients of q and of k|v into `d`.
pub fn backward(
    axes: &Axes, at: &Positions, x: &Parts, dout: &Tensor, out: &Tensor, lse: &Tensor, d: &Parts,
) -> Result<()> {
    let [k, v] = halves(&collect(axes, &x.kv)?);
    if plain(axes, at) {
        let ([mut dk, mut dv], mut dq) = (halves(&d.kv), d.q.shallow_clone());
        kernels::attention_backward(dout, &x.q, &k, &v, out, lse, &mut dq, &mut dk, &mut dv);
        return Ok(());
    }
    // On one rank no two segments share a key; chunks of one sequence do.
    let shared = axes.context.size() > 1;
    let whole = match shared {
        true => Tensor::zeros([&k.size()[..2], &[2 * k.size()[2], k.size()[3]]].concat(), (k.kind(), k.device())),
        false => d.kv.shallow_clone(),
    };
    let [mut dk, mut dv] = halves(&whole);
    let packed = packed(at, &x.q);
    if let Some(packed) = packed {
        let mut dq = d.q.shallow_clone();
        kernels::attention_packed_backward(dout, &x.q, &k, &v, out, lse, packed, &mut dq, &mut dk, &mut dv);
    }
    for s in at.segments().iter().filter(|_| packed.is_none()) {
        let (q, k, v) = (s.queries_of(&x.q, 1), s.keys_of(&k), s.keys_of(&v));
        let (dout, out, lse) = (s.queries_of(dout, 1), s.queries_of(out, 1), s.queries_of(lse, 2).contiguous());
        let (mut dq, mut to_k, mut to_v) = (s.queries_of(&d.q, 1), s.keys_of(&dk), s.keys_of(&dv));
        if shared {
            let (mut dk, mut dv) = (k.empty_like(), v.empty_like());
            kernels::attention_backward(&dout, &q, &k, &v, &out, &lse, &mut dq, &mut dk, &mut dv);
            to_k += dk;
            to_v += dv;
        } else {
            kernels::attention_backward(&dout, &q, &k, &v, &out, &lse, &mut dq, &mut to_k, &mut to_v);
        }
    }
    if shared {
        let own = axes.reduce_context(to_ranks(&whole, axes.context.size() as i64))?.rows()?;
        d.kv.shallow_clone().copy_(&own.view_as(&d.kv));
    }
    Ok(())
}

/// The segments where a kernel takes all of them in one call.
fn packed<'a>(at: &'a Positions, q: &Tensor) -> Option<&'a PackedSequences> {
    match kernels::packs_attention(q) {
        true => at.packed(q.size()[0] as usize),
        false => None,
    }
}

/// Whole sequences, each one document, on this rank.
fn plain(axes: &Axes, at: &Positions) -> bool {
    axes.context.size() == 1 && matches!(at.segments(), [Segment { sequence: None, .. }])
}

/// k|v of this rank [B,S/c,2·Hkv,D] → of the whole sequences [B,S,2·Hkv,D].
fn collect(axes: &Axes, kv: &Tensor) -> Result<Tensor> {
    if axes.context.size() == 1 {
        return Ok(kv.shallow_clone());
    }
    Ok(to_sequence(&axes.gather_context(&kv.unsqueeze(0))?.rows()?))
}

/// k and v, or their gradients: views.
fn halves(kv: &Tensor) -> [Tensor; 2] {
    let heads = kv.size()[2] / 2;
    [kv.narrow(2, 0, heads), kv.narrow(2, heads, heads)]
}

impl Segment {
    /// The segment's queries in a tensor with the sequences in dim 0 and this rank's tokens in dim `dim`; a view.
    fn queries_of(&self, t: &Tensor, dim: i64) -> Tensor {
        self.row(t).narrow(dim, self.queries.start as i64, self.queries.len() as i64)
    }

    /// The segment's keys in [B,S,..]; a view.
    fn keys_of(&self, t: &Tensor) -> Tensor {
        self.row(t).narrow(1, self.keys.start as i64, self.keys.len() as i64)
    }

    fn row(&self, t: &Tensor) -> Tensor {
        self.sequence.map_or_else(|| t.shallow_clone(), |b| t.narrow(0, b as i64, 1))
    }
}
