//! The product, tile after tile. A tile only decides which elements are made side by side.

use super::activations::QuantizedRows;
use super::lanes::IntLanes;
use super::weights::WeightFormat;
use super::{GROUP, LINE, PART, WIDTH};
use crate::kernels::cpu::simd::Simd;
use std::ops::Range;

/// How far ahead of what is read memory is asked for, in bytes.
const AHEAD: usize = 2048;

/// Quantized weights as they lie in memory.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    pub format: WeightFormat,
    /// As many columns as the activations have, those that were filled up not counted.
    pub cols: usize,
    pub bytes: &'a [u8],
    /// Of each row in int8, filled up to whole panels; empty in int4.
    pub scales: &'a [f32],
}

/// The operands of a product, and the panels of w that a task makes.
pub struct IntPart<'a> {
    pub x: &'a QuantizedRows,
    pub w: Panels<'a>,
    pub panels: Range<usize>,
}

/// Takes sixteen elements of y: of which row, of which panel.
pub type Emit<'a> = &'a (dyn Fn(usize, usize, &[f32; WIDTH]) + Sync);

impl<'a> Panels<'a> {
    #[inline(always)]
    pub fn panel(&self, i: usize) -> &'a [u8] {
        let bytes = self.format.panel_bytes(self.cols);
        &self.bytes[i * bytes..(i + 1) * bytes]
    }
}

/// Panels by one or a few, all rows of x for each: what was read of w stays in the second-level cache meanwhile.
#[inline(always)]
pub fn tiles<L: IntLanes>(l: L, p: &IntPart, emit: Emit) {
    let mut panel = p.panels.start;
    while panel < p.panels.end {
        let left = p.panels.end - panel;
        panel += match (p.w.format, p.x.rows) {
            (WeightFormat::Int8, 1) if left >= 4 => tile8::<L, 1, 4>(l, p, 0, panel, emit),
            (WeightFormat::Int4, 1) if left >= 2 => tile4::<L, 1, 2>(l, p, 0, panel, emit),
            (WeightFormat::Int8, _) if left >= 2 && L::TILE.1 == 2 => all_rows::<L, 2>(l, p, panel, emit),
            _ => all_rows::<L, 1>(l, p, panel, emit),
        };
    }
}

/// All rows of x against P panels (one of int4); P.
#[inline(always)]
fn all_rows<L: IntLanes, const P: usize>(l: L, p: &IntPart, panel: usize, emit: Emit) -> usize {
    let mut row = 0;
    while row < p.x.rows {
        let left = (p.x.rows - row).min(L::TILE.0);
        let rows = [8, 4, 2, 1].into_iter().find(|&n| n <= left).unwrap_or(1);
        match (p.w.format, rows) {
            (WeightFormat::Int8, 8) => tile8::<L, 8, P>(l, p, row, panel, emit),
            (WeightFormat::Int8, 4) => tile8::<L, 4, P>(l, p, row, panel, emit),
            (WeightFormat::Int8, 2) => tile8::<L, 2, P>(l, p, row, panel, emit),
            (WeightFormat::Int8, _) => tile8::<L, 1, P>(l, p, row, panel, emit),
            (WeightFormat::Int4, 8) => tile4::<L, 8, 1>(l, p, row, panel, emit),
            (WeightFormat::Int4, 4) => tile4::<L, 4, 1>(l, p, row, panel, emit),
            (WeightFormat::Int4, 2) => tile4::<L, 2, 1>(l, p, row, panel, emit),
            (WeightFormat::Int4, _) => tile4::<L, 1, 1>(l, p, row, panel, emit),
        };
        row += rows;
    }
    P
}

/// R rows of x, P panels of int8; P.
#[inline(always)]
fn tile8<L: IntLanes, const R: usize, const P: usize>(
    l: L, p: &IntPart, row: usize, panel: usize, emit: Emit,
) -> usize {
    let (x, f) = (p.x, l.floats());
    assert!(row + R <= x.rows && x.ints.len() >= x.rows * x.cols);
    let w: [_; P] = std::array::from_fn(|i| p.w.panel(panel + i));
    let mut out = [[f.splat(0.0); P]; R];
    let mut line = 0;
    for group in 0..x.groups {
        let end = (x.cols / 4).min(line + GROUP / 4);
        let mut sums = [[l.splat(0); P]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = [l.splat(x.starts[(row + r) * x.parts + group]); P];
        }
        while line < end {
            // SAFETY: a panel has a line for each four columns of x.
            let at = |w: &[u8]| unsafe { &*w.as_ptr().add(line * LINE).cast::<[u8; LINE]>() };
            let mut bytes = [l.load(at(w[0])); P];
            for i in 1..P {
                bytes[i] = l.load(at(w[i]));
            }
            if R == 1 {
                for w in w {
                    l.prefetch(w.as_ptr().wrapping_add(line * LINE + AHEAD));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the row has four integers for each line.
                let four = unsafe { x.ints.as_ptr().add((row + r) * x.cols + 4 * line).cast::<[i8; 4]>().read() };
                let four = l.four(four);
                for (sum, bytes) in sums.iter_mut().zip(bytes) {
                    *sum = l.add_products(*sum, bytes, four);
                }
            }
            line += 1;
        }
        for (r, (out, sums)) in out.iter_mut().zip(sums).enumerate() {
            let scale = f.splat(x.scales[(row + r) * x.groups + group]);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = f.add(*out, f.mul(l.to_floats(sum), scale));
            }
        }
    }
    for (r, out) in out.iter().enumerate() {
        for (i, &out) in out.iter().enumerate() {
            let mut y = [0.0; WIDTH];
            let scales = f.load(&p.w.scales[(panel + i) * WIDTH..][..WIDTH], 0);
            f.store(&mut y, 0, f.mul(out, scales));
            emit(row + r, panel + i, &y);
        }
    }
    P
}

/// R rows of x, P panels of int4; P.
#[inline(always)]
fn tile4<L: IntLanes, const R: usize, const P: usize>(
    l: L, p: &IntPart, row: usize, panel: usize, emit: Emit,
) -> usize {
    let (x, f) = (p.x, l.floats());
    assert!(row + R <= x.rows && x.ints.len() >= x.rows * x.cols);
    let w: [_; P] = std::array::from_fn(|i| p.w.panel(panel + i));
    let mut out = [[f.splat(0.0); P]; R];
    let mut part = 0;
    for group in 0..x.groups {
        let mut inner = [[f.splat(0.0); P]; R];
        let end = (x.cols / PART).min((group + 1) * (GROUP / PART));
        while part < end {
            let mut sums = [[l.splat(0); P]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [l.splat(x.starts[(row + r) * x.parts + part]); P];
            }
            // SAFETY: a panel has a step for each two parts.
            let step = |w: &[u8]| unsafe { w.as_ptr().add(part / 2 * WeightFormat::Int4.step_bytes()) };
            for line in 0..PART / 8 {
                for i in 0..P {
                    // SAFETY: four lines of the step are a part's.
                    let at = unsafe { step(w[i]).add((1 + part % 2 * (PART / 8) + line) * LINE) };
                    if R == 1 {
                        l.prefetch(at.wrapping_add(AHEAD));
                    }
                    // SAFETY: as above.
                    let [low, high] = l.load_halves(unsafe { &*at.cast::<[u8; LINE]>() });
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let first = (row + r) * x.cols + PART * part + 8 * line;
                        // SAFETY: the row has eight integers for each line.
                        let [a, b] = unsafe { x.ints.as_ptr().add(first).cast::<[[i8; 4]; 2]>().read() };
                        sums[i] = l.add_products(l.add_products(sums[i], low, l.four(a)), high, l.four(b));
                    }
                }
            }
            for i in 0..P {
                // SAFETY: a step begins with a line of scales, of which a part has half.
                let scales = unsafe { &*step(w[i]).add(part % 2 * 2 * WIDTH).cast::<[u8; 2 * WIDTH]>() };
                let scales = l.load_f16(scales);
                for (inner, sums) in inner.iter_mut().zip(sums) {
                    inner[i] = f.add(inner[i], f.mul(l.to_floats(sums[i]), scales));
                }
            }
            part += 1;
        }
        for (r, (out, inner)) in out.iter_mut().zip(inner).enumerate() {
            let scale = f.splat(x.scales[(row + r) * x.groups + group]);
            for (out, inner) in out.iter_mut().zip(inner) {
                *out = f.add(*out, f.mul(inner, scale));
            }
        }
    }
    for (r, out) in out.iter().enumerate() {
        for (i, &out) in out.iter().enumerate() {
            let mut y = [0.0; WIDTH];
            f.store(&mut y, 0, out);
            emit(row + r, panel + i, &y);
        }
    }
    P
}
