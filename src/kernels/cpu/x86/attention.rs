//! Causal grouped-query attention on the CPU, forward (FlashAttention-2, arXiv:2307.08691): blocks of 64 queries of one head
//! pass over blocks of keys with a running maximum and sum; blocks above the diagonal are skipped.

use super::dot::{dot_fn, product, Dot, Home, Left, Line, SumMatrix, LINES, PANEL};
use super::pack::{panel_across, panel_along, PackFrom, Packed};
use super::scratch;
use crate::kernels::cpu::simd::{Element, Simd, LANES};
use crate::kernels::cpu::view::{Heads, Rows};
use crate::kernels::parallel;
use tch::{Device, Kind, Tensor};

/// Queries of a task: one panel, so that the diagonal falls on panels of keys.
pub const QUERIES: usize = PANEL;
/// Keys between two corrections of the running maximum.
const KEYS: usize = 512;

/// Sizes that q, k and v agree on.
#[derive(Clone, Copy)]
pub struct AttentionShape {
    pub batch: usize,
    /// Queries of a head.
    pub tokens: usize,
    /// Keys of a head: at least as many, the queries' own the last.
    pub keys: usize,
    pub heads: usize,
    pub groups: usize,
    pub width: usize,
    pub scale: f32,
}

impl AttentionShape {
    pub fn of<E: Dot>(q: &Heads<E>, k: &Heads<E>, v: &Heads<E>) -> Option<AttentionShape> {
        let fits = |t: &Heads<E>| (t.batch, t.width) == (q.batch, q.width) && t.tokens >= q.tokens;
        let shared = (k.heads, k.tokens) == (v.heads, v.tokens)
            && q.heads.is_multiple_of(k.heads)
            && q.width.is_multiple_of(E::PER_UNIT);
        (fits(k) && fits(v) && shared).then_some(AttentionShape {
            batch: q.batch,
            tokens: q.tokens,
            keys: k.tokens,
            heads: q.heads,
            groups: q.heads / k.heads,
            width: q.width,
            scale: (1.0 / (q.width as f64).sqrt()) as f32,
        })
    }

    pub fn kv_heads(&self) -> usize {
        self.heads / self.groups
    }

    /// Keys before the first query's own.
    pub fn past(&self) -> usize {
        self.keys - self.tokens
    }
}

/// See [`crate::kernels::attention`].
pub fn forward<E: Dot>(q: &Tensor, k: &Tensor, v: &Tensor) -> Option<(Tensor, Tensor)> {
    let unit = E::detect()?;
    let (qh, kh, vh) = (Heads::<E>::of(q)?, Heads::<E>::of(k)?, Heads::<E>::of(v)?);
    let n = AttentionShape::of(&qh, &kh, &vh)?;
    let out = Tensor::empty(q.size(), (q.kind(), Device::Cpu));
    let lse = Tensor::empty([n.batch as i64, n.heads as i64, n.tokens as i64], (Kind::Float, Device::Cpu));
    let (oh, lr) = (Heads::<E>::of(&out)?, Rows::<f32>::flat(&lse)?);
    // Keys are packed along the width (for q·kᵀ), values across the tokens (for p·v).
    let (key_units, value_units) = (n.width / E::PER_UNIT, n.keys.div_ceil(E::PER_UNIT));
    let (key_panels, value_panels) = (n.keys.div_ceil(PANEL), n.width.div_ceil(PANEL));
    let units = n.batch * n.kv_heads() * (key_panels * key_units + value_panels * value_units);
    let buffer = Tensor::empty([(units * PANEL) as i64], (Kind::Float, Device::Cpu));
    let packed = Packed::in_tensor(&buffer)?;
    let keys_of = move |kv: usize| kv * (key_panels * key_units + value_panels * value_units);
    let values_of = move |kv: usize| keys_of(kv) + key_panels * key_units;
    parallel::tasks(n.batch * n.kv_heads() * (key_panels + value_panels), |i| {
        let (kv, p) = (i / (key_panels + value_panels), i % (key_panels + value_panels));
        let (b, h) = (kv / n.kv_heads(), kv % n.kv_heads());
        // SAFETY: each task writes one panel of its own.
        unsafe {
            if p < key_panels {
                let from = PackFrom { of: kh.head(b, h), row: p * PANEL, col: 0 };
                pack_along::<E>(unit, from, key_units, packed.panel(keys_of(kv) + p * key_units, 1));
            } else {
                let p = p - key_panels;
                let from = PackFrom { of: vh.head(b, h), row: 0, col: p * PANEL };
                pack_across::<E>(unit, from, value_units, packed.panel(values_of(kv) + p * value_units, 1));
            }
        }
    });
    let blocks = n.tokens.div_ceil(QUERIES);
    parallel::tasks(n.batch * n.heads * blocks, |i| {
        // Long blocks first: the threads then finish together.
        let (head, block) = (i % (n.batch * n.heads), blocks - 1 - i / (n.batch * n.heads));
        let (b, h) = (head / n.heads, head % n.heads);
        let kv = b * n.kv_heads() + h / n.groups;
        let first = block * QUERIES;
        let rows = QUERIES.min(n.tokens - first);
        // SAFETY: these rows of out and lse are this task's own; the panels are complete and only read.
        scratch::with(Block::lines(n.width), |s| unsafe {
            let lse = lr.part_mut(0, head * n.tokens + first..head * n.tokens + first + rows);
            let (keys, values) = (packed.panel(keys_of(kv), 1), packed.panel(values_of(kv), 1));
            forward_block::<E>(unit, n, qh.head(b, h), first, rows, keys, values, oh.head(b, h), lse, s)
        });
    });
    Some((out, lse))
}

dot_fn! {
    pub unsafe fn pack_along<E>(_unit, m: PackFrom<E>, units: usize, out: *mut Line) {
        panel_along(m, units, out)
    }
}

dot_fn! {
    pub unsafe fn pack_across<E>(_unit, m: PackFrom<E>, units: usize, out: *mut Line) {
        panel_across(m, units, out)
    }
}

/// Working memory of a block of queries, in lines: scores, probabilities, sums of values.
struct Block;

impl Block {
    const SCORES: usize = QUERIES * KEYS / 16;

    fn sums(width: usize) -> usize {
        QUERIES * width.div_ceil(16)
    }

    fn lines(width: usize) -> usize {
        2 * Self::SCORES + Self::sums(width)
    }
}

dot_fn! {
    unsafe fn forward_block<E>(
        unit, n: AttentionShape, q: Rows<E>, first: usize, rows: usize, keys: *const Line, values: *const Line, out: Rows<E>,
        lse: &mut [f32], memory: &mut [Line],
    ) {
        let s = unit.0;
        let (scores, rest) = memory.split_at_mut(Block::SCORES);
        let (probabilities, sums) = rest.split_at_mut(Block::SCORES);
        let scores = Rows::<f32>::in_scratch(scores.as_mut_ptr().cast(), rows, KEYS, KEYS);
        let probabilities = Rows::<E>::in_scratch(probabilities.as_mut_ptr().cast(), rows, KEYS, KEYS);
        let stride = n.width.div_ceil(16) * 16;
        let sums = Rows::<f32>::in_scratch(sums.as_mut_ptr().cast(), rows, n.width, stride);
        let (mut top, mut total) = ([f32::NEG_INFINITY; QUERIES], [0.0f32; QUERIES]);
        let (key_units, value_units) = (n.width / E::PER_UNIT, n.keys.div_ceil(E::PER_UNIT));
        let left = Left { ptr: q.ptr().cast_const(), stride: q.stride }.at(first, 0);
        let (past, end) = (n.past(), n.past() + first + rows);
        for start in (0..end).step_by(KEYS) {
            let cols = (end - start).min(KEYS);
            let at = SumMatrix { ptr: scores.ptr(), stride: KEYS };
            for c in (0..cols).step_by(PANEL) {
                let panel = keys.add((start + c) / PANEL * key_units * LINES);
                product::<E>(rows, (cols - c).min(PANEL), key_units, left, panel, at.at(0, c), None, Home::Cache);
            }
            for r in 0..rows {
                let seen = (past + first + r + 1).saturating_sub(start).min(cols);
                let (score, p) = (&scores.row(r)[..seen], &mut probabilities.row_mut(r)[..cols.next_multiple_of(LANES)]);
                let (shrink, sum) = softmax(s, score, n.scale, &mut top[r], p);
                total[r] = total[r] * shrink + sum;
                if start > 0 {
                    let row = sums.row_mut(r);
                    for i in (0..n.width).step_by(LANES) {
                        s.store(row, i, s.mul(s.load(row, i), s.splat(shrink)));
                    }
                }
            }
            let p = Left { ptr: probabilities.ptr().cast_const(), stride: KEYS };
            for c in (0..n.width).step_by(PANEL) {
                let panel = values.add((c / PANEL * value_units + start / E::PER_UNIT) * LINES);
                let sums = SumMatrix { ptr: sums.ptr(), stride }.at(0, c);
                let units = cols.div_ceil(E::PER_UNIT);
                product::<E>(rows, (n.width - c).min(PANEL), units, p, panel, sums, (start > 0).then_some(sums), Home::Cache);
            }
        }
        for r in 0..rows {
            let inverse = s.splat(1.0 / total[r]);
            let row = out.row_mut(first + r);
            for i in (0..n.width).step_by(LANES) {
                s.store(row, i, s.mul(s.load(sums.row(r), i), inverse));
            }
            lse[r] = top[r] + total[r].ln();
        }
    }
}

/// p ← e^(scale·score − top) for the new running maximum `top`, zero beyond the scores. Returns by how much earlier sums shrink, and
/// the sum of p.
#[inline(always)]
fn softmax<S: Simd, E: Element>(s: S, score: &[f32], scale: f32, top: &mut f32, p: &mut [E]) -> (f32, f32) {
    let mut max = s.splat(f32::NEG_INFINITY);
    for i in (0..score.len()).step_by(LANES) {
        max = s.max(max, s.load_or(score, i, f32::NEG_INFINITY));
    }
    let new = (s.top(max) * scale).max(*top);
    let mut sum = s.splat(0.0);
    for i in (0..score.len()).step_by(LANES) {
        let e = s.exp(s.fma(s.load_or(score, i, f32::NEG_INFINITY), s.splat(scale), s.splat(-new)));
        sum = s.add(sum, e);
        s.store(p, i, e);
    }
    let written = score.len().next_multiple_of(LANES).min(p.len());
    p[written..].fill(E::ZERO);
    let shrink = if *top == new { 1.0 } else { (*top - new).exp() };
    *top = new;
    (shrink, s.sum(sum))
}
