//! Matrix products of the linear layers, where they beat libtorch's: fp32 (whose library does not use AVX-512 on every CPU
//! that has it), and gradients of weights, which here add straight into the fp32 buffer.

use super::dot::{dot_fn, product, Dot, Home, Left, Line, SumMatrix, LINES, PANEL, TILE_ROWS};
use super::pack::{left_across, panel_across, panel_along, PackFrom, Packed};
use super::scratch;
use crate::kernels::cpu::simd::{Simd, LANES};
use crate::kernels::cpu::view::Rows;
use crate::kernels::parallel;
use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
use tch::{Device, Kind, Tensor};

/// Units of the summed dim in one go: a panel of that depth (32 KB) stays in the first-level cache.
const DEPTH: usize = 128;
/// Rows of a weight gradient in one task.
const GRAD_ROWS: usize = 16 * TILE_ROWS;

/// How B lies in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// [N,K]: rows along the summed dim.
    Along,
    /// [K,N]: rows across it.
    Across,
}

/// y [M,N] = a [M,K] · b, plus `start` [M,N] if given; all fp32.
pub fn matmul(a: &Tensor, b: &Tensor, right: Right, start: Option<&Tensor>) -> Option<Tensor> {
    let unit = <f32 as Dot>::detect()?;
    let (ar, br) = (Rows::<f32>::matrix(a)?, Rows::<f32>::matrix(b)?);
    let (k, n) = if right == Right::Along { (br.cols, br.rows) } else { (br.rows, br.cols) };
    let start = match start {
        Some(t) => Some(Rows::<f32>::matrix(t)?),
        None => None,
    };
    if ar.cols != k || start.as_ref().is_some_and(|s| (s.rows, s.cols) != (ar.rows, n)) {
        return None;
    }
    let y = Tensor::empty([ar.rows as i64, n as i64], (Kind::Float, Device::Cpu));
    let yr = Rows::<f32>::matrix(&y)?;
    let (rows, cols) = blocks(ar.rows, n);
    let down = ar.rows.div_ceil(rows);
    parallel::tasks(down * n.div_ceil(cols), |i| {
        // Blocks of the same columns follow one another: their part of b comes from memory once.
        let (row, col) = (i % down * rows, i / down * cols);
        let size = (rows.min(ar.rows - row), cols.min(n - col));
        // SAFETY: `unit` proves the instructions; the block of y is this task's own.
        scratch::with((DEPTH + rows * cols.div_ceil(PANEL)) * LINES, |s| unsafe {
            matmul_block::<f32>(unit, ar, br, right, start, yr, (row, col), size, s)
        });
    });
    Some(y)
}

/// Rows and columns of a task: large, for reuse of what is packed, but several tasks a thread. The sums of a task (350 KB) and
/// a slice of its rows stay in the second-level cache.
fn blocks(m: usize, n: usize) -> (usize, usize) {
    let enough = 3 * parallel::threads();
    let even = |m: usize, most: usize| m.div_ceil(m.div_ceil(most)).next_multiple_of(TILE_ROWS);
    let (mut rows, mut cols) = (even(m, 60 * TILE_ROWS), 4 * PANEL);
    let tasks = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
    while tasks(rows, cols) < enough && cols > PANEL {
        cols /= 2;
    }
    while tasks(rows, cols) < enough && rows > 8 * TILE_ROWS {
        rows = even(rows, rows.div_ceil(2));
    }
    (rows, cols)
}

dot_fn! {
    unsafe fn matmul_block<E>(
        unit, a: Rows<E>, b: Rows<E>, right: Right, start: Option<Rows<E>>, y: Rows<E>, at: (usize, usize), size: (usize, usize),
        memory: &mut [Line],
    ) {
        let (s, (row, col), (rows, cols)) = (unit.0, at, size);
        let depth = DEPTH * E::PER_UNIT;
        let left = Left { ptr: a.ptr().cast_const(), stride: a.stride }.at(row, 0);
        let (panel, sums) = memory.split_at_mut(DEPTH * LINES);
        // Panel after panel of sums: [rows, 64] each.
        let sums = Rows::<f32>::in_scratch(sums.as_mut_ptr().cast(), rows * cols.div_ceil(PANEL), PANEL, PANEL);
        let panels = (0..cols.div_ceil(PANEL)).map(|p| (p * rows, col + p * PANEL, (cols - p * PANEL).min(PANEL)));
        for k in (0..a.cols).step_by(depth) {
            let units = (a.cols - k).min(depth) / E::PER_UNIT;
            for (base, first, width) in panels.clone() {
                match right {
                    Right::Along => panel_along(PackFrom { of: b, row: first, col: k }, units, panel.as_mut_ptr()),
                    Right::Across => panel_across(PackFrom { of: b, row: k, col: first }, units, panel.as_mut_ptr()),
                }
                let c = SumMatrix { ptr: sums.ptr(), stride: PANEL }.at(base, 0);
                product::<E>(rows, width, units, left.at(0, k), panel.as_ptr(), c, (k > 0).then_some(c), Home::Cache);
            }
        }
        for (base, first, width) in panels {
            for r in 0..rows {
                let out = y.part_mut(row + r, first..first + width);
                let start = start.as_ref().map(|s| &s.row(row + r)[first..first + width]);
                for i in (0..width).step_by(LANES) {
                    let sum = s.load(sums.row(base + r), i);
                    s.store(out, i, match start {
                        Some(start) => s.add(sum, s.load(start, i)),
                        None => sum,
                    });
                }
            }
        }
    }
}

/// grad [O,I] f32 = (`add`: grad +) dy [N,O]ᵀ · x [N,I].
pub fn weight_gradient<E: Dot>(dy: &Tensor, x: &Tensor, grad: &Tensor, add: bool) -> Option<()> {
    let unit = E::detect()?;
    let (d, xr, g) = (Rows::<E>::matrix(dy)?, Rows::<E>::matrix(x)?, Rows::<f32>::matrix(grad)?);
    if d.rows != xr.rows || (g.rows, g.cols) != (d.cols, xr.cols) {
        return None;
    }
    // x is packed once for all tasks: panel by panel, each as deep as there are tokens.
    let units = d.rows.div_ceil(E::PER_UNIT);
    let panels = xr.cols.div_ceil(PANEL);
    let buffer = Tensor::empty([(panels * units * PANEL) as i64], (Kind::Float, Device::Cpu));
    let base = Packed::in_tensor(&buffer)?;
    parallel::tasks(panels, |p| {
        // SAFETY: panel p of the buffer is this task's own; `unit` proves the instructions.
        unsafe { pack_panel::<E>(unit, PackFrom { of: xr, row: 0, col: p * PANEL }, units, base.panel(p, units)) }
    });
    parallel::chunks(g.rows, GRAD_ROWS, |_, r| {
        scratch::with(GRAD_ROWS * DEPTH / 16, |s| {
            // SAFETY: these rows of the gradient are this task's own; the panels are complete and only read.
            unsafe { gradient_rows::<E>(unit, d, g, r.start, r.len(), add, base, units, s) }
        });
    });
    Some(())
}

dot_fn! {
    unsafe fn pack_panel<E>(_unit, x: PackFrom<E>, units: usize, out: *mut Line) {
        panel_across(x, units, out)
    }
}

dot_fn! {
    unsafe fn gradient_rows<E>(
        _unit, dy: Rows<E>, grad: Rows<f32>, row: usize, rows: usize, add: bool, panels: Packed, depth: usize, left: &mut [Line],
    ) {
        let sums = SumMatrix { ptr: grad.ptr(), stride: grad.stride }.at(row, 0);
        for k in (0..depth).step_by(DEPTH) {
            let units = (depth - k).min(DEPTH);
            left_across(PackFrom { of: dy, row: k * E::PER_UNIT, col: row }, rows, units, DEPTH, left.as_mut_ptr());
            let a = Left { ptr: left.as_ptr().cast::<E>(), stride: DEPTH * E::PER_UNIT };
            let home = if k == 0 { Home::Memory } else { Home::Cache };
            let ahead = (DEPTH * E::PER_UNIT).div_ceil(grad.cols.div_ceil(PANEL));
            for col in (0..grad.cols).step_by(PANEL) {
                // The columns of dy that come next are short runs far apart: fetch them while multiplying.
                let next = (k + DEPTH) * E::PER_UNIT + col / PANEL * ahead;
                for t in next..(next + ahead).min(dy.rows) {
                    fetch(&dy.row(t)[row..row + rows]);
                }
                let panel = panels.panel(col / PANEL, depth).add(k * LINES);
                let c = sums.at(0, col);
                let width = (grad.cols - col).min(PANEL);
                product::<E>(rows, width, units, a, panel, c, (add || k > 0).then_some(c), home);
            }
        }
    }
}

/// Asks for a slice to be in the second-level cache soon.
///
/// # Safety
/// x86-64.
#[inline(always)]
unsafe fn fetch<E>(x: &[E]) {
    let step = 64 / size_of::<E>();
    for i in (0..x.len()).step_by(step) {
        _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().add(i).cast());
    }
    if let Some(last) = x.last() {
        _mm_prefetch::<_MM_HINT_T1>((last as *const E).cast());
    }
}
