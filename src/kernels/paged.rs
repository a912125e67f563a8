//! Attention over keys and values that lie in blocks of 16 tokens, a table of blocks a sequence (PagedAttention,
//! arXiv:2309.06180). Every query's bits depend on its sequence alone.
//!
//! Shapes: N tokens of an iteration, Hq and Hkv heads, D their width; T the compute dtype.

use super::cpu::paged;
pub use super::pages::{Pages, QueryRun, BLOCK};
use super::{by_kind, reference};
use half::bf16;
use tch::{Kind, Tensor};

/// Puts k and v [1,N,Hkv,D] T (strided is fine) of each token into its slot, block · 16 + place.
pub fn write(pages: &Pages, k: &Tensor, v: &Tensor, slots: &[usize]) {
    by_kind!(k, paged::write(pages, k, v, slots)).unwrap_or_else(|| reference::paged_write(pages, k, v, slots))
}

/// Causal attention of q [1,N,Hq,D] T (strided is fine), the rows of `runs`, over the cached keys up to and with their own,
/// softmax scale 1/sqrt(D) → [1,N,Hq,D] T; rows of no run are zero.
pub fn attention(pages: &Pages, q: &Tensor, runs: &[QueryRun]) -> Tensor {
    by_kind!(q, paged::attention(pages, q, runs)).unwrap_or_else(|| reference::paged_attention(pages, q, runs))
}
