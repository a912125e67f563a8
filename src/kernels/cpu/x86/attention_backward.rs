//! Causal grouped-query attention on the CPU, backward. A task is one query head; its scores are computed again, key by
//! query (transposed), so that no sum runs over a row: p = e^(scale·k·q − lse), ds = p·(v·dout − delta)·scale with
//! delta = Σ dout·out, then dv += p·dout, dk += ds·q, dq += dsᵀ·k.

use super::attention::{AttentionShape, QUERIES};
use super::dot::{dot_fn, product, Dot, Home, Left, Line, SumMatrix, LINES, PANEL};
use super::pack::{left_across, panel_across, panel_along, transpose, PackFrom, Packed};
use super::scratch;
use crate::kernels::cpu::dispatch::simd_fn;
use crate::kernels::cpu::simd::{Simd, LANES};
use crate::kernels::cpu::view::{Heads, Rows};
use crate::kernels::parallel;
use std::arch::x86_64::{__m512, __m512i, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_setzero_si512};
use tch::{Device, Kind, Tensor};

/// Keys of a block: where there are as many keys as queries, the blocks on the diagonal are square.
const KEYS: usize = QUERIES;

/// See [`crate::kernels::attention_backward`].
#[allow(clippy::too_many_arguments)]
pub fn backward<E: Dot>(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &Tensor, dk: &Tensor,
    dv: &Tensor,
) -> Option<()> {
    let unit = E::detect()?;
    let [qh, kh, vh, oh, doh] = [Heads::<E>::of(q)?, Heads::of(k)?, Heads::of(v)?, Heads::of(out)?, Heads::of(dout)?];
    let [dqh, dkh, dvh] = [Heads::<E>::of(dq)?, Heads::of(dk)?, Heads::of(dv)?];
    let n = AttentionShape::of(&qh, &kh, &vh)?;
    let same =
        |a: &Heads<E>, b: &Heads<E>| (a.batch, a.tokens, a.heads, a.width) == (b.batch, b.tokens, b.heads, b.width);
    let lr = Rows::<f32>::flat(lse)?;
    let sizes = [(&oh, &qh), (&doh, &qh), (&dqh, &qh), (&dkh, &kh), (&dvh, &kh)].iter().all(|(a, b)| same(a, b));
    if !sizes || ![dqh, dkh, dvh].iter().all(Heads::disjoint) || lr.cols != n.batch * n.heads * n.tokens {
        return None;
    }
    // kᵀ [width, tokens] of every key head: the left operand of dqᵀ = kᵀ·dsᵀ.
    let stride = n.keys.div_ceil(E::PER_UNIT).next_multiple_of(16);
    let lines = n.width.next_multiple_of(16) * stride / 16;
    let buffer = Tensor::empty([(n.batch * n.kv_heads() * lines * 16) as i64], (Kind::Float, Device::Cpu));
    let turned = Packed::in_tensor(&buffer)?;
    let turned_of = move |kv: usize| kv * lines / LINES;
    parallel::tasks(n.batch * n.kv_heads(), |kv| {
        let from = PackFrom { of: kh.head(kv / n.kv_heads(), kv % n.kv_heads()), row: 0, col: 0 };
        // SAFETY: this part of the buffer is this task's own.
        unsafe { turn::<E>(unit, from, n.width, stride, turned.panel(turned_of(kv), 1)) }
    });
    // dk and dv of every query head; those of a group are added afterwards.
    let sums = Tensor::empty([2, (n.batch * n.heads * n.keys * n.width) as i64], (Kind::Float, Device::Cpu));
    let sr = Rows::<f32>::matrix(&sums)?;
    parallel::tasks(n.batch * n.heads, |head| {
        let (b, h) = (head / n.heads, head % n.heads);
        let len = n.keys * n.width;
        let own = head * len..(head + 1) * len;
        scratch::with(Plan::new::<E>(n.width).lines, |memory| {
            let inputs = Inputs {
                q: qh.head(b, h),
                k: kh.head(b, h / n.groups),
                v: vh.head(b, h / n.groups),
                out: oh.head(b, h),
                dout: doh.head(b, h),
                lse: &lr.row(0)[head * n.tokens..(head + 1) * n.tokens],
            };
            // SAFETY: dq of this head and these parts of the sums are this task's own.
            unsafe {
                let turned = turned.panel(turned_of(b * n.kv_heads() + h / n.groups), 1);
                let (dk, dv) = (sr.part_mut(0, own.clone()), sr.part_mut(1, own));
                backward_head::<E>(unit, n, &inputs, turned, stride, dqh.head(b, h), dk, dv, memory);
            }
        });
    });
    const TOKENS: usize = 64;
    let chunks = n.keys.div_ceil(TOKENS);
    parallel::tasks(n.batch * n.kv_heads() * chunks, |i| {
        let (kv, chunk) = (i / chunks, i % chunks);
        let (b, h) = (kv / n.kv_heads(), kv % n.kv_heads());
        for (part, to) in [(0, dkh.head(b, h)), (1, dvh.head(b, h))] {
            for t in chunk * TOKENS..((chunk + 1) * TOKENS).min(n.keys) {
                let at = |g: usize| ((b * n.heads + h * n.groups + g) * n.keys + t) * n.width;
                // SAFETY: this token of this head is this task's own.
                add_group(sr.row(part), at(0), n.keys * n.width, n.groups, unsafe { to.row_mut(t) });
            }
        }
    });
    Some(())
}

simd_fn! {
    /// out = Σ over `groups` runs of `from`, the first at `at`, `step` apart.
    fn add_group<E>(from: &[f32], at: usize, step: usize, groups: usize, out: &mut [E]) |s| {
        let n = out.len();
        for i in (0..n).step_by(LANES) {
            let mut sum = s.load(&from[at..at + n], i);
            for g in 1..groups {
                sum = s.add(sum, s.load(&from[at + g * step..at + g * step + n], i));
            }
            s.store(out, i, sum);
        }
    }
}

dot_fn! {
    unsafe fn turn<E>(_unit, k: PackFrom<E>, width: usize, stride: usize, out: *mut Line) {
        left_across(k, width, k.of.rows.div_ceil(E::PER_UNIT), stride, out)
    }
}

/// What a query head reads.
struct Inputs<'a, E> {
    q: Rows<'a, E>,
    k: Rows<'a, E>,
    v: Rows<'a, E>,
    out: Rows<'a, E>,
    dout: Rows<'a, E>,
    lse: &'a [f32],
}

/// Offsets of the working memory of a task, in lines.
#[derive(Clone, Copy)]
struct Plan {
    q_along: usize,
    dout_along: usize,
    q_across: usize,
    dout_across: usize,
    s: usize,
    dp: usize,
    p: usize,
    ds: usize,
    ds_across: usize,
    dq: usize,
    lines: usize,
}

impl Plan {
    fn new<E: Dot>(width: usize) -> Plan {
        let mut lines = 0;
        let mut take = |n: usize| {
            lines += n;
            lines - n
        };
        let along = width / E::PER_UNIT * LINES;
        let across = width.div_ceil(PANEL) * (QUERIES / E::PER_UNIT) * LINES;
        let square = KEYS * QUERIES / 16;
        let mut plan = Plan {
            q_along: take(along),
            dout_along: take(along),
            q_across: take(across),
            dout_across: take(across),
            s: take(square),
            dp: take(square),
            p: take(square / E::PER_UNIT),
            ds: take(square / E::PER_UNIT),
            ds_across: take(square / E::PER_UNIT),
            dq: take(width.next_multiple_of(16) * LINES),
            lines: 0,
        };
        plan.lines = lines;
        plan
    }
}

dot_fn! {
    unsafe fn backward_head<E>(
        unit, n: AttentionShape, x: &Inputs<E>, turned: *const Line, turned_stride: usize, dq: Rows<E>, dk: &mut [f32], dv: &mut [f32],
        memory: &mut [Line],
    ) {
        let s = unit.0;
        let plan = Plan::new::<E>(n.width);
        let base = memory.as_mut_ptr();
        let (width_units, query_units) = (n.width / E::PER_UNIT, QUERIES / E::PER_UNIT);
        let panels = n.width.div_ceil(PANEL);
        let [p, ds] = [plan.p, plan.ds].map(|at| Rows::<E>::in_scratch(base.add(at).cast(), KEYS, QUERIES, QUERIES));
        let [sc, dp] = [plan.s, plan.dp].map(|at| Rows::<f32>::in_scratch(base.add(at).cast(), KEYS, QUERIES, QUERIES));
        let [dk, dv] = [dk, dv].map(|d| SumMatrix { ptr: d.as_mut_ptr(), stride: n.width });
        let dq_sums = SumMatrix { ptr: base.add(plan.dq).cast::<f32>(), stride: QUERIES };
        let left = |m: &Rows<E>, row: usize| Left { ptr: m.ptr().cast_const(), stride: m.stride }.at(row, 0);
        let square = |m: &Rows<f32>| SumMatrix { ptr: m.ptr(), stride: QUERIES };
        for first in (0..n.tokens).step_by(QUERIES) {
            let queries = QUERIES.min(n.tokens - first);
            let (mut lse, mut delta) = ([0.0f32; QUERIES], [0.0f32; QUERIES]);
            for i in 0..queries {
                lse[i] = x.lse[first + i];
                delta[i] = dot_row(s, x.dout.row(first + i), x.out.row(first + i));
            }
            for (m, along, across) in [(x.q, plan.q_along, plan.q_across), (x.dout, plan.dout_along, plan.dout_across)] {
                panel_along(PackFrom { of: m, row: first, col: 0 }, width_units, base.add(along));
                for c in 0..panels {
                    let from = PackFrom { of: m, row: first, col: c * PANEL };
                    panel_across(from, query_units, base.add(across + c * query_units * LINES));
                }
            }
            // Place of the first of these queries among the keys.
            let own = n.past() + first;
            for key in (0..own + queries).step_by(KEYS) {
                let keys = KEYS.min(n.keys - key);
                // No earlier queries have come to these keys.
                let fresh = first == 0 || key >= own;
                product::<E>(keys, QUERIES, width_units, left(&x.k, key), base.add(plan.q_along), square(&sc), None, Home::Cache);
                product::<E>(keys, QUERIES, width_units, left(&x.v, key), base.add(plan.dout_along), square(&dp), None, Home::Cache);
                for r in 0..keys {
                    let (p, ds) = (p.row_mut(r), ds.row_mut(r));
                    score_row(s, sc.row(r), dp.row(r), &lse, &delta, n.scale, p, ds);
                    let before = (key + r).saturating_sub(own).min(QUERIES);
                    p[..before].fill(E::ZERO);
                    ds[..before].fill(E::ZERO);
                }
                for c in 0..panels {
                    let cols = (n.width - c * PANEL).min(PANEL);
                    let panel = |at: usize| base.add(at + c * query_units * LINES).cast_const();
                    for (m, across, to) in [(&p, plan.dout_across, dv), (&ds, plan.q_across, dk)] {
                        let to = to.at(key, c * PANEL);
                        product::<E>(keys, cols, query_units, left(m, 0), panel(across), to, (!fresh).then_some(to), Home::Cache);
                    }
                }
                let ds = Rows::<E>::in_scratch(ds.ptr(), keys, QUERIES, QUERIES);
                let key_units = keys.div_ceil(E::PER_UNIT);
                panel_across(PackFrom { of: ds, row: 0, col: 0 }, key_units, base.add(plan.ds_across));
                let kt = Left { ptr: turned.cast::<E>(), stride: turned_stride * E::PER_UNIT }.at(0, key);
                let before = (key > 0).then_some(dq_sums);
                product::<E>(n.width, QUERIES, key_units, kt, base.add(plan.ds_across), dq_sums, before, Home::Cache);
            }
            store_turned(s, dq_sums, n.width, queries, &dq, first);
        }
    }
}

/// Σ a·b
#[inline(always)]
fn dot_row<S: Simd, E: Dot>(s: S, a: &[E], b: &[E]) -> f32 {
    let mut sum = s.splat(0.0);
    for i in (0..a.len()).step_by(LANES) {
        sum = s.fma(s.load(a, i), s.load(b, i), sum);
    }
    s.sum(sum)
}

/// p and ds of one key against a block of queries.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn score_row<S: Simd, E: Dot>(
    s: S, score: &[f32], dp: &[f32], lse: &[f32; QUERIES], delta: &[f32; QUERIES], scale: f32, p: &mut [E],
    ds: &mut [E],
) {
    let scale = s.splat(scale);
    for i in (0..QUERIES).step_by(LANES) {
        let e = s.exp(s.sub(s.mul(s.load(score, i), scale), s.load(lse, i)));
        s.store(p, i, e);
        s.store(ds, i, s.mul(s.mul(e, scale), s.sub(s.load(dp, i), s.load(delta, i))));
    }
}

/// Rows `first…` of dq from dqᵀ [width, 64].
///
/// # Safety
/// AVX-512; the rows of dq are the caller's own; `from` has `width`, rounded up to 16, rows of memory.
#[inline(always)]
unsafe fn store_turned<S: Simd<V = __m512>, E: Dot>(
    s: S, from: SumMatrix, width: usize, queries: usize, dq: &Rows<E>, first: usize,
) {
    for q in (0..queries).step_by(16) {
        for d in (0..width).step_by(16) {
            let mut t: [__m512i; 16] = [_mm512_setzero_si512(); 16];
            for (i, t) in t.iter_mut().enumerate() {
                let row = std::slice::from_raw_parts(from.at(d + i, q).ptr, 16);
                *t = _mm512_castps_si512(s.load(row, 0));
            }
            transpose(&mut t);
            for (i, &t) in t.iter().enumerate().take(queries - q) {
                s.store(dq.row_mut(first + q + i), d, _mm512_castsi512_ps(t));
            }
        }
    }
}
