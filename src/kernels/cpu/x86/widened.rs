//! Matrix products of bf16 on CPUs that have AVX2 and no bf16 products: operands become fp32 where they are packed, a block at a
//! time, so that they run at the speed of fp32. (libtorch 2.11 has no fast path there: on a Zen 3 its three products run at 14%,
//! 1% and 22% of its own fp32 ones, see docs/benchmarks.md.)
//!
//! A task makes a block of the product, [`BLOCK_ROWS`] × [`BLOCK_COLS`], in fp32: for [`DEPTH`] elements of the summed dim at a time
//! it packs its rows of A (row-major) and its columns of B (panels of 16) and passes a tile of 6 × 16 registers over them. Each
//! element is summed in the order of the summed dim, in stretches of DEPTH: neither threads nor blocks change a bit.

use super::dot::Line;
use super::scratch;
use crate::kernels::cpu::level::{self, Level};
use crate::kernels::cpu::simd::{Portable, Simd, LANES};
use crate::kernels::cpu::view::{Real, Rows};
use crate::kernels::parallel;
use std::arch::x86_64::*;

/// A tile: 12 of the 16 registers are sums.
const TILE_ROWS: usize = 6;
const PANEL: usize = 16;
/// Elements of the summed dim in one go: a panel of B (16 KB) stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of A lie so many floats apart: not a power of two, so that they do not share sets of the cache.
const STRIDE: usize = DEPTH + 16;
const BLOCK_ROWS: usize = 40 * TILE_ROWS;
const BLOCK_COLS: usize = 16 * PANEL;

/// Proof that the CPU has AVX2 and FMA, and that [`level`] says to use no more than these.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Avx2> {
        matches!(level::get(), Level::Avx2).then_some(Avx2(()))
    }
}

/// A matrix by how it takes part in a product: `lines` rows (of A) or columns (of B), each `depth` elements of the summed dim.
#[derive(Clone, Copy)]
pub struct Operand<'a, E> {
    of: Rows<'a, E>,
    /// The summed dim lies along its rows; else it is the number of the row.
    is_along: bool,
}

impl<'a, E: Real> Operand<'a, E> {
    /// A line is a row of `of`.
    pub fn along(of: Rows<'a, E>) -> Self {
        Operand { of, is_along: true }
    }

    /// A line is a column of `of`.
    pub fn across(of: Rows<'a, E>) -> Self {
        Operand { of, is_along: false }
    }

    /// Lines of the operand: rows or columns of the product.
    pub fn lines(&self) -> usize {
        if self.is_along {
            self.of.rows
        } else {
            self.of.cols
        }
    }

    fn depth(&self) -> usize {
        if self.is_along {
            self.of.cols
        } else {
            self.of.rows
        }
    }
}

/// out [a's lines, b's lines] = a · bᵀ, plus `start` if given (it may be `out` itself). `None` where the shapes do not fit.
pub fn product<E: Real, O: Real>(
    unit: Avx2, a: Operand<E>, b: Operand<E>, start: Option<Rows<O>>, out: Rows<O>,
) -> Option<()> {
    let fits = |r: &Rows<O>| (r.rows, r.cols) == (a.lines(), b.lines());
    if a.depth() != b.depth() || !fits(&out) || !start.iter().all(fits) {
        return None;
    }
    let rows = even(a.lines(), BLOCK_ROWS, TILE_ROWS);
    let mut cols = even(b.lines(), BLOCK_COLS, PANEL);
    let down = a.lines().div_ceil(rows);
    while down * b.lines().div_ceil(cols) < 3 * parallel::threads() && cols > 4 * PANEL {
        cols = even(cols, cols.div_ceil(2), PANEL);
    }
    let lines = (rows * STRIDE + cols * DEPTH + rows * cols) / LANES;
    parallel::tasks(down * b.lines().div_ceil(cols), |i| {
        // Blocks of the same columns follow one another: their part of b comes from memory once.
        let (row, col) = (i % down * rows, i / down * cols);
        let size = (rows.min(a.lines() - row), cols.min(b.lines() - col));
        // SAFETY: `unit` proves the instructions; the block of `out` is this task's own.
        scratch::with(lines, |s| unsafe { block(unit, a, b, start, out, (row, col), size, s) });
    });
    Some(())
}

/// Parts of at most `most`, about equal, a multiple of `unit`.
fn even(n: usize, most: usize, unit: usize) -> usize {
    n.div_ceil(n.div_ceil(most)).next_multiple_of(unit)
}

#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn block<E: Real, O: Real>(
    _unit: Avx2, a: Operand<E>, b: Operand<E>, start: Option<Rows<O>>, out: Rows<O>, at: (usize, usize),
    (rows, cols): (usize, usize), memory: &mut [Line],
) {
    let (full_rows, full_cols) = (rows.next_multiple_of(TILE_ROWS), cols.next_multiple_of(PANEL));
    let memory = memory.as_mut_ptr().cast::<f32>();
    let (left, right) = (memory, memory.add(full_rows * STRIDE));
    let sums = right.add(full_cols * DEPTH);
    for k in (0..a.depth()).step_by(DEPTH) {
        let depth = (a.depth() - k).min(DEPTH);
        pack_left(a, at.0, k, full_rows, depth, left);
        for panel in 0..full_cols / PANEL {
            pack_panel(b, at.1 + panel * PANEL, k, depth, right.add(panel * PANEL * DEPTH));
        }
        for panel in 0..full_cols / PANEL {
            let columns = right.add(panel * PANEL * DEPTH);
            for row in (0..full_rows).step_by(TILE_ROWS) {
                tile(
                    depth,
                    left.add(row * STRIDE),
                    columns,
                    sums.add(row * full_cols + panel * PANEL),
                    full_cols,
                    k > 0,
                );
            }
        }
    }
    let sums = Rows::<f32>::in_scratch(sums, rows, full_cols, full_cols);
    for r in 0..rows {
        for i in (0..cols).step_by(LANES) {
            let part = at.1 + i..at.1 + cols.min(i + LANES);
            let sum = Portable.load(sums.row(r), i);
            let sum = match start {
                Some(start) => Portable.add(sum, Portable.load(&start.row(at.0 + r)[part.clone()], 0)),
                None => sum,
            };
            // `start` may be `out`: nobody holds it any more
            Portable.store(out.part_mut(at.0 + r, part), 0, sum);
        }
    }
}

/// c [6, 16] = (`more`: c +) rows of `a` · `panel`, `depth` deep; `stride` floats between rows of c.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(depth: usize, a: *const f32, panel: *const f32, c: *mut f32, stride: usize, more: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; TILE_ROWS];
    for k in 0..depth {
        let b = [_mm256_load_ps(panel.add(k * PANEL)), _mm256_load_ps(panel.add(k * PANEL + 8))];
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = _mm256_broadcast_ss(&*a.add(r * STRIDE + k));
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            let at = c.add(r * stride + 8 * v);
            let sum = if more { _mm256_add_ps(_mm256_loadu_ps(at), sum) } else { sum };
            _mm256_storeu_ps(at, sum);
        }
    }
}

/// Elements `from..from + 8` of a row in fp32; those beyond its end, and all of no row, are zero.
#[target_feature(enable = "avx2,fma")]
fn eight<E: Real>(row: Option<&[E]>, from: usize) -> __m256 {
    let mut part = [E::ZERO; LANES];
    if let Some(rest) = row.and_then(|r| r.get(from..)) {
        match rest.first_chunk::<8>() {
            Some(chunk) => part[..8].copy_from_slice(chunk),
            None => part[..rest.len()].copy_from_slice(rest),
        }
    }
    let wide = E::load(Portable, &part);
    // SAFETY: eight floats.
    unsafe { _mm256_loadu_ps(wide.as_ptr()) }
}

/// Row `i`, if there is one.
#[inline(always)]
fn row<'a, E: Real>(of: &Rows<'a, E>, i: usize) -> Option<&'a [E]> {
    (i < of.rows).then(|| of.row(i))
}

/// Lines `first..first + rows` of A from element `k` on, row-major, `STRIDE` floats apart.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_left<E: Real>(a: Operand<E>, first: usize, k: usize, rows: usize, depth: usize, to: *mut f32) {
    if a.is_along {
        for r in 0..rows {
            let from = row(&a.of, first + r);
            for i in (0..depth).step_by(8) {
                _mm256_storeu_ps(to.add(r * STRIDE + i), eight(from, k + i));
            }
        }
        return;
    }
    for i in (0..depth).step_by(8) {
        for r in (0..rows).step_by(8) {
            for (j, t) in transposed(&a.of, k + i, first + r).into_iter().enumerate().take(rows - r) {
                _mm256_storeu_ps(to.add((r + j) * STRIDE + i), t);
            }
        }
    }
}

/// Lines `first..first + 16` of B from element `k` on, side by side.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_panel<E: Real>(b: Operand<E>, first: usize, k: usize, depth: usize, to: *mut f32) {
    for half in [0, 8] {
        if !b.is_along {
            for i in 0..depth {
                _mm256_store_ps(to.add(i * PANEL + half), eight(row(&b.of, k + i), first + half));
            }
            continue;
        }
        for i in (0..depth).step_by(8) {
            for (j, t) in transposed(&b.of, first + half, k + i).into_iter().enumerate().take(depth - i) {
                _mm256_store_ps(to.add((i + j) * PANEL + half), t);
            }
        }
    }
}

/// Columns `from..from + 8` of eight rows from `first` on, a vector a column.
#[target_feature(enable = "avx2,fma")]
fn transposed<E: Real>(of: &Rows<E>, first: usize, from: usize) -> [__m256; 8] {
    let mut r = [_mm256_setzero_ps(); 8];
    for (i, r) in r.iter_mut().enumerate() {
        *r = eight(row(of, first + i), from);
    }
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..2 {
        let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
        r[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        r[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        r[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    // r[4i+j] holds columns j and 4+j of rows 4i..4i+4 in its two halves.
    for j in 0..4 {
        t[j] = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
        t[4 + j] = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
    }
    t
}
