//! Attention over a cache of pages: every query is on its own. It passes over the keys of its sequence in stretches of 128 with
//! a running maximum and sum (arXiv:2307.08691), and which stretches there are depends on its position alone, so its bits do
//! not depend on what else is computed, nor on how the sequence was cut.

use super::dispatch::simd_fn;
use super::simd::{Element, Simd, LANES};
use super::view::{Heads, Real, Rows};
use crate::kernels::pages::{Pages, QueryRun, BLOCK};
use crate::kernels::parallel;
use std::cell::RefCell;
use tch::Tensor;

/// Keys between two corrections of the running maximum.
const STRETCH: usize = 8 * BLOCK;
/// Query rows (tokens × heads of a group) that pass over a stretch together.
const ROWS: usize = 8;
/// Tokens of a task.
const TOKENS: usize = 16;

const _: () = assert!(BLOCK == LANES, "a block of keys is one vector");

/// Blocks of one layer's cache: keys [blocks,Hkv,D,16], values [blocks,Hkv,16,D rounded up to 16].
#[derive(Clone, Copy)]
struct Cache<'a, E> {
    keys: Rows<'a, E>,
    values: Rows<'a, E>,
    heads: usize,
    width: usize,
}

impl<'a, E: Real> Cache<'a, E> {
    fn of(pages: &'a Pages) -> Option<Self> {
        let [blocks, heads, width, _] = pages.keys.size()[..].try_into().ok()?;
        let rows = |t: &'a Tensor| Rows::<E>::flat(t);
        let (keys, values) = (rows(&pages.keys)?, rows(&pages.values)?);
        let (heads, width) = (heads as usize, width as usize);
        let fits = values.cols == blocks as usize * heads * BLOCK * padded(width);
        fits.then_some(Cache { keys, values, heads, width })
    }
}

impl<'a, E: Copy> Cache<'a, E> {
    /// [D,16]
    fn keys(&self, block: u32, head: usize) -> &'a [E] {
        let n = self.width * BLOCK;
        let at = (block as usize * self.heads + head) * n;
        &self.keys.row(0)[at..at + n]
    }

    /// [16,D rounded up]
    fn values(&self, block: u32, head: usize) -> &'a [E] {
        let n = BLOCK * padded(self.width);
        let at = (block as usize * self.heads + head) * n;
        &self.values.row(0)[at..at + n]
    }
}

fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// See [`crate::kernels::paged::write`].
pub fn write<E: Real>(pages: &Pages, k: &Tensor, v: &Tensor, slots: &[usize]) -> Option<()> {
    let cache = Cache::<E>::of(pages)?;
    let (kh, vh) = (Heads::<E>::of(k)?, Heads::<E>::of(v)?);
    if (kh.tokens, kh.heads, kh.width) != (slots.len(), cache.heads, cache.width) || vh.heads != kh.heads {
        return None;
    }
    let (key_size, value_width) = (cache.width * BLOCK, padded(cache.width));
    parallel::chunks(slots.len(), TOKENS, |_, range| {
        for t in range {
            let (block, place) = (slots[t] / BLOCK, slots[t] % BLOCK);
            let (kt, vt) = (kh.token(0, t), vh.token(0, t));
            for h in 0..cache.heads {
                let at = block * cache.heads + h;
                // SAFETY: this slot is this token's own.
                unsafe {
                    let keys = cache.keys.ptr().add(at * key_size + place);
                    kt.row(h).iter().enumerate().for_each(|(d, &x)| keys.add(d * BLOCK).write(x));
                    let first = at * BLOCK * value_width + place * value_width;
                    cache.values.part_mut(0, first..first + cache.width).copy_from_slice(vt.row(h));
                }
            }
        }
    });
    Some(())
}

/// See [`crate::kernels::paged::attention`].
pub fn attention<E: Real>(pages: &Pages, q: &Tensor, runs: &[QueryRun]) -> Option<Tensor> {
    let cache = Cache::<E>::of(pages)?;
    let qh = Heads::<E>::of(q)?;
    if qh.width != cache.width || !qh.heads.is_multiple_of(cache.heads) {
        return None;
    }
    let out = Tensor::zeros([1, qh.tokens as i64, qh.heads as i64, qh.width as i64], (q.kind(), q.device()));
    let oh = Heads::<E>::of(&out)?;
    let tasks: Vec<(usize, usize, usize)> = runs
        .iter()
        .enumerate()
        .flat_map(|(i, r)| (0..r.tokens).step_by(TOKENS).map(move |t| (i, t)))
        .flat_map(|(i, t)| (0..cache.heads).map(move |h| (i, t, h)))
        .collect();
    let group = qh.heads / cache.heads;
    parallel::tasks(tasks.len(), |i| {
        let (run, from, head) = tasks[i];
        let run = &runs[run];
        let end = (from + TOKENS).min(run.tokens);
        let at_once = (ROWS / group).max(1);
        for first in (from..end).step_by(at_once) {
            let tokens = at_once.min(end - first);
            for row in (0..group).step_by(ROWS) {
                let heads = head * group + row..head * group + (row + ROWS).min(group);
                let tile = Tile { cache, run, head, heads, first, tokens };
                SCRATCH.with_borrow_mut(|s| attend(tile, qh, oh, s));
            }
        }
    });
    Some(out)
}

/// Queries that pass over the keys together: `tokens` tokens from `first` of the run on, `heads` of each.
#[derive(Clone)]
struct Tile<'a, E> {
    cache: Cache<'a, E>,
    run: &'a QueryRun<'a>,
    head: usize,
    heads: std::ops::Range<usize>,
    first: usize,
    tokens: usize,
}

/// Working memory of a thread, fp32.
#[derive(Default)]
struct Scratch {
    /// [rows,D]
    queries: Vec<f32>,
    /// [rows,STRETCH]
    scores: Vec<f32>,
    /// [rows,D rounded up]
    sums: Vec<f32>,
}

thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

simd_fn! {
    fn attend<E>(tile: Tile<'_, E>, q: Heads<'_, E>, out: Heads<'_, E>, memory: &mut Scratch) |s| {
        let Tile { cache, run, head, heads, first, tokens } = tile;
        let (width, wide, group) = (cache.width, cache.width.next_multiple_of(LANES), heads.len());
        let rows = tokens * group;
        let scale = s.splat((1.0 / (width as f64).sqrt()) as f32);
        let Scratch { queries, scores, sums } = memory;
        queries.resize(rows * width, 0.0);
        scores.resize(rows * STRETCH, 0.0);
        sums.clear();
        sums.resize(rows * wide, 0.0);
        for r in 0..rows {
            let row = q.token(0, run.row + first + r / group).row(heads.start + r % group);
            queries[r * width..(r + 1) * width].iter_mut().zip(row).for_each(|(to, x)| *to = x.to_f32());
        }
        let (mut top, mut total) = ([f32::NEG_INFINITY; ROWS], [0.0f32; ROWS]);
        let seen = run.start + first + tokens;
        for start in (0..seen).step_by(STRETCH) {
            let blocks = &run.blocks[start / BLOCK..seen.min(start + STRETCH).div_ceil(BLOCK)];
            for (b, &block) in blocks.iter().enumerate() {
                let keys = cache.keys(block, head);
                products(s, rows, queries, width, keys, &mut scores[b * BLOCK..]);
            }
            for t in 0..tokens {
                let visible = (run.start + first + t + 1).saturating_sub(start).min(STRETCH);
                if visible == 0 {
                    continue;
                }
                for r in t * group..(t + 1) * group {
                    let score = &mut scores[r * STRETCH..(r + 1) * STRETCH];
                    let (shrink, sum) = softmax(s, &mut score[..visible.next_multiple_of(LANES)], visible, scale, &mut top[r]);
                    total[r] = total[r] * shrink + sum;
                    let shrink = s.splat(shrink);
                    let row = &mut sums[r * wide..(r + 1) * wide];
                    for i in (0..wide).step_by(LANES) {
                        s.store(row, i, s.mul(s.load(row, i), shrink));
                    }
                }
                for (b, &block) in blocks[..visible.div_ceil(BLOCK)].iter().enumerate() {
                    let values = cache.values(block, head);
                    let n = (visible - b * BLOCK).min(BLOCK);
                    for r in (t * group..(t + 1) * group).step_by(4) {
                        let p = &scores[r * STRETCH + b * BLOCK..];
                        let sums = &mut sums[r * wide..];
                        match (t + 1) * group - r {
                            1 => weighed::<_, E, 1>(s, p, n, values, sums, wide),
                            2 => weighed::<_, E, 2>(s, p, n, values, sums, wide),
                            3 => weighed::<_, E, 3>(s, p, n, values, sums, wide),
                            _ => weighed::<_, E, 4>(s, p, n, values, sums, wide),
                        }
                    }
                }
            }
        }
        for r in 0..rows {
            let inverse = s.splat(1.0 / total[r]);
            let token = out.token(0, run.row + first + r / group);
            // SAFETY: the heads of these tokens are this task's own.
            let to = unsafe { token.row_mut(heads.start + r % group) };
            let row = &sums[r * wide..(r + 1) * wide];
            for i in (0..width).step_by(LANES) {
                s.store(to, i, s.mul(s.load(row, i), inverse));
            }
        }
    }
}

/// scores [rows, 16 of STRETCH] = q [rows,D] · keys [D,16].
#[inline(always)]
fn products<S: Simd, E: Element>(s: S, rows: usize, q: &[f32], width: usize, keys: &[E], scores: &mut [f32]) {
    for r in (0..rows).step_by(4) {
        let (q, scores) = (&q[r * width..], &mut scores[r * STRETCH..]);
        match rows - r {
            1 => products_of::<S, E, 1>(s, q, width, keys, scores),
            2 => products_of::<S, E, 2>(s, q, width, keys, scores),
            3 => products_of::<S, E, 3>(s, q, width, keys, scores),
            _ => products_of::<S, E, 4>(s, q, width, keys, scores),
        }
    }
}

#[inline(always)]
fn products_of<S: Simd, E: Element, const R: usize>(s: S, q: &[f32], width: usize, keys: &[E], scores: &mut [f32]) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &q[r * width..(r + 1) * width]);
    let mut sums = [s.splat(0.0); R];
    for (d, key) in keys.chunks_exact(BLOCK).enumerate().take(width) {
        let key = s.load(key, 0);
        for r in 0..R {
            sums[r] = s.fma(s.splat(rows[r][d]), key, sums[r]);
        }
    }
    for (r, &sum) in sums.iter().enumerate() {
        s.store(&mut scores[r * STRETCH..r * STRETCH + BLOCK], 0, sum);
    }
}

/// scores become e^(scale·score − top) for the new running maximum `top`, zero beyond the `visible` ones. Returns by how much
/// earlier sums shrink, and the sum.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut [f32], visible: usize, scale: S::V, top: &mut f32) -> (f32, f32) {
    scores[visible..].fill(f32::NEG_INFINITY);
    let mut max = s.splat(f32::NEG_INFINITY);
    for i in (0..scores.len()).step_by(LANES) {
        let scaled = s.mul(s.load(scores, i), scale);
        s.store(scores, i, scaled);
        max = s.max(max, scaled);
    }
    let new = s.top(max).max(*top);
    let mut sum = s.splat(0.0);
    for i in (0..scores.len()).step_by(LANES) {
        let e = s.exp(s.sub(s.load(scores, i), s.splat(new)));
        sum = s.add(sum, e);
        s.store(scores, i, e);
    }
    let shrink = if *top == new { 1.0 } else { (*top - new).exp() };
    *top = new;
    (shrink, s.sum(sum))
}

/// sums [R,D] += p [R, n of STRETCH] · values [n,D]. Values beyond the n are not looked at: they may be anybody's.
#[inline(always)]
fn weighed<S: Simd, E: Element, const R: usize>(
    s: S, p: &[f32], n: usize, values: &[E], sums: &mut [f32], wide: usize,
) {
    for i in (0..wide).step_by(LANES) {
        let mut acc: [S::V; R] = std::array::from_fn(|r| s.load(&sums[r * wide..(r + 1) * wide], i));
        for j in 0..n {
            let value = s.load(values, j * wide + i);
            for r in 0..R {
                acc[r] = s.fma(s.splat(p[r * STRETCH + j]), value, acc[r]);
            }
        }
        for (r, &sum) in acc.iter().enumerate() {
            s.store(&mut sums[r * wide..(r + 1) * wide], i, sum);
        }
    }
}
