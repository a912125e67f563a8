//! Matrix products of the linear layers, where they beat libtorch's: fp32 (whose library does not use AVX-512 on every CPU
//! that has it), and gradients of weights, which here add straight into the fp32 buffer.

use super::dot::{dot_fn, product, Dot, Left, Line, Sums, LINES, PANEL, TILE_ROWS};
use super::pack::{left_across, panel_across, panel_along, From, Packed};
use super::scratch;
use crate::kernels::cpu::view::Rows;
use crate::kernels::parallel;
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
    let across = n.div_ceil(cols);
    parallel::tasks(ar.rows.div_ceil(rows) * across, |i| {
        let (row, col) = (i / across * rows, i % across * cols);
        let size = (rows.min(ar.rows - row), cols.min(n - col));
        // SAFETY: `unit` proves the instructions; the block of y is this task's own.
        scratch::with(cols.div_ceil(PANEL) * DEPTH * LINES, |s| unsafe {
            matmul_block::<f32>(unit, ar, br, right, start, yr, (row, col), size, s)
        });
    });
    Some(y)
}

/// Rows and columns of a task: large, for reuse of what is packed, but several tasks a thread.
fn blocks(m: usize, n: usize) -> (usize, usize) {
    let enough = 4 * parallel::threads();
    let (mut rows, mut cols) = (m.min(86 * TILE_ROWS), 4 * PANEL);
    while m.div_ceil(rows) * n.div_ceil(cols) < enough && cols > PANEL {
        cols /= 2;
    }
    while m.div_ceil(rows) * n.div_ceil(cols) < enough && rows > 8 * TILE_ROWS {
        rows = (rows / 2).div_ceil(TILE_ROWS) * TILE_ROWS;
    }
    (rows, cols)
}

dot_fn! {
    unsafe fn matmul_block<E>(
        _unit, a: Rows<E>, b: Rows<E>, right: Right, start: Option<Rows<f32>>, y: Rows<f32>, at: (usize, usize), size: (usize, usize), packed: &mut [Line],
    ) {
        let (row, col) = at;
        let (rows, cols) = size;
        let depth = DEPTH * E::PER_UNIT;
        let (left, sums) = (Left { ptr: a.ptr().cast_const(), stride: a.stride }, Sums { ptr: y.ptr(), stride: y.stride });
        let sums = sums.at(row, col);
        for k in (0..a.cols).step_by(depth) {
            let units = (a.cols - k).min(depth).div_ceil(E::PER_UNIT);
            for (p, panel) in packed.chunks_exact_mut(DEPTH * LINES).enumerate() {
                let c = col + p * PANEL;
                if c >= col + cols {
                    break;
                }
                match right {
                    Right::Along => panel_along(From { of: b, row: c, col: k }, units, panel.as_mut_ptr()),
                    Right::Across => panel_across(From { of: b, row: k, col: c }, units, panel.as_mut_ptr()),
                }
                let before = match (k, &start) {
                    (0, None) => None,
                    (0, Some(s)) => Some(Sums { ptr: s.ptr(), stride: s.stride }.at(row, c)),
                    _ => Some(sums.at(0, c - col)),
                };
                let width = (col + cols - c).min(PANEL);
                product::<E>(rows, width, units, left.at(row, k), panel.as_ptr(), sums.at(0, c - col), before);
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
        unsafe { pack_panel::<E>(unit, From { of: xr, row: 0, col: p * PANEL }, units, base.panel(p, units)) }
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
    unsafe fn pack_panel<E>(_unit, x: From<E>, units: usize, out: *mut Line) {
        panel_across(x, units, out)
    }
}

dot_fn! {
    unsafe fn gradient_rows<E>(
        _unit, dy: Rows<E>, grad: Rows<f32>, row: usize, rows: usize, add: bool, panels: Packed, depth: usize, left: &mut [Line],
    ) {
        let sums = Sums { ptr: grad.ptr(), stride: grad.stride }.at(row, 0);
        for k in (0..depth).step_by(DEPTH) {
            let units = (depth - k).min(DEPTH);
            left_across(From { of: dy, row: k * E::PER_UNIT, col: row }, rows, units, DEPTH, left.as_mut_ptr());
            let a = Left { ptr: left.as_ptr().cast::<E>(), stride: DEPTH * E::PER_UNIT };
            for col in (0..grad.cols).step_by(PANEL) {
                let panel = panels.panel(col / PANEL, depth).add(k * LINES);
                let c = sums.at(0, col);
                let width = (grad.cols - col).min(PANEL);
                product::<E>(rows, width, units, a, panel, c, (add || k > 0).then_some(c));
            }
        }
    }
}
