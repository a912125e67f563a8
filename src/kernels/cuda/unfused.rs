//! Attention without a fused kernel: the reference, over so many query rows at a time that the scores stay bounded.
//!
//! Queries i0..i1 of S with K keys see the first K−S+i1 keys, and are the last of those: each piece is attention itself.

use crate::kernels::reference;
use tch::{Kind, Tensor};

/// Bytes of the fp32 scores of one piece, but for at least [`FEWEST`] rows.
pub const SCORES: usize = 128 << 20;
/// Products of fewer rows leave most of a device idle.
pub const FEWEST: usize = 64;

/// See [`crate::kernels::attention`].
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
    let size = q.size();
    let out = Tensor::empty(&size, (q.kind(), q.device()));
    let lse = Tensor::empty([size[0], size[2], size[1]], (Kind::Float, q.device()));
    for piece in pieces(q, k) {
        let (o, l) = reference::attention(&piece.queries(q, 1), &piece.keys(k), &piece.keys(v));
        piece.queries(&out, 1).copy_(&o);
        piece.queries(&lse, 2).copy_(&l);
    }
    (out, lse)
}

/// See [`crate::kernels::attention_backward`]. Gradients of keys and values are summed in fp32.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) {
    let sums = || Tensor::zeros(k.size(), (Kind::Float, k.device()));
    let (sum_k, sum_v) = (sums(), sums());
    for piece in pieces(q, k) {
        let (qs, ks, vs) = (piece.queries(q, 1), piece.keys(k), piece.keys(v));
        let part = || Tensor::empty(ks.size(), (Kind::Float, k.device()));
        let (mut pq, mut pk, mut pv) = (piece.queries(dq, 1), part(), part());
        let (d, o, l) = (piece.queries(dout, 1), piece.queries(out, 1), piece.queries(lse, 2));
        reference::attention_backward(&d, &qs, &ks, &vs, &o, &l, &mut pq, &mut pk, &mut pv);
        let _ = piece.keys(&sum_k).g_add_(&pk);
        let _ = piece.keys(&sum_v).g_add_(&pv);
    }
    dk.copy_(&sum_k);
    dv.copy_(&sum_v);
}

/// Query rows of a piece of `s`, for `keys` keys of `heads` heads over all sequences.
pub fn rows(s: usize, keys: usize, heads: usize) -> usize {
    (SCORES / (4 * keys * heads).max(1)).max(FEWEST).min(s.max(1))
}

/// Bytes of a piece's temporaries in a backward pass over `length` tokens, of `heads` heads over all sequences: scores,
/// probabilities, their gradients and products, fp32.
pub fn bytes(length: usize, heads: usize) -> usize {
    rows(length, length, heads) * length * heads * 4 * 6
}

struct Piece {
    start: i64,
    len: i64,
    keys: i64,
}

impl Piece {
    fn queries(&self, t: &Tensor, dim: i64) -> Tensor {
        t.narrow(dim, self.start, self.len)
    }

    fn keys(&self, t: &Tensor) -> Tensor {
        t.narrow(1, 0, self.keys)
    }
}

fn pieces(q: &Tensor, k: &Tensor) -> impl Iterator<Item = Piece> {
    let (size, keys) = (q.size(), k.size()[1]);
    let s = size[1];
    let each = rows(s as usize, keys as usize, (size[0] * size[2]) as usize) as i64;
    (0..s).step_by(each as usize).map(move |start| {
        let len = each.min(s - start);
        Piece { start, len, keys: keys - s + start + len }
    })
}
