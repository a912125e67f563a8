//! The product of a linear layer for inference, of which every row is on its own: its bits do not depend on how many rows come
//! with it, on its place among them, or on the number of threads.
//!
//! Each element is one dot product along the summed dim: sixteen lanes, each adding its products in order, and the lanes
//! added at the end. A tile only decides which elements are made side by side. No operand is packed, so that one row (decoding)
//! runs at the speed at which weights come from memory.

use super::simd::{Element, Simd, LANES};
use super::view::{Real, Rows};
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::kernels::parallel;
use tch::{Device, Tensor};

/// Rows of x and of w in a tile.
const TILE: (usize, usize) = (8, 3);
/// A task's rows of w stay in the second-level cache while all rows of x pass over them.
const BLOCK_BYTES: usize = 256 << 10;
/// Multiply-adds below which a task is not worth a thread.
const LEAST_WORK: usize = 1 << 16;

/// How elements of one dtype are multiplied and added, sixteen sums at a time.
pub trait Lanes<E: Copy>: Copy {
    type Sum: Copy;
    type Operand: Copy;
    /// Elements of an operand.
    const STEP: usize;
    fn zero(self) -> Self::Sum;
    fn load(self, x: &[E]) -> Self::Operand;
    fn add_product(self, sum: Self::Sum, a: Self::Operand, b: Self::Operand) -> Self::Sum;
    fn total(self, sum: Self::Sum) -> f32;
}

/// Any dtype in fp32 arithmetic.
#[derive(Clone, Copy)]
pub struct Widened<S>(pub S);

impl<S: Simd, E: Element> Lanes<E> for Widened<S> {
    type Sum = S::V;
    type Operand = S::V;
    const STEP: usize = LANES;
    #[inline(always)]
    fn zero(self) -> S::V {
        self.0.splat(0.0)
    }
    #[inline(always)]
    fn load(self, x: &[E]) -> S::V {
        self.0.load(x, 0)
    }
    #[inline(always)]
    fn add_product(self, sum: S::V, a: S::V, b: S::V) -> S::V {
        self.0.fma(a, b, sum)
    }
    #[inline(always)]
    fn total(self, sum: S::V) -> f32 {
        self.0.sum(sum)
    }
}

/// The operands of one product, and the part of it that a task makes.
#[derive(Clone, Copy)]
pub struct ProductPart<'a, E> {
    pub x: Rows<'a, E>,
    pub w: Rows<'a, E>,
    pub residual: Option<Rows<'a, E>>,
    pub y: Rows<'a, E>,
    /// Rows of w, columns of y.
    pub first: usize,
    pub end: usize,
}

/// See [`crate::kernels::linear_by_row`].
pub fn linear<E: Real + Vectors>(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Option<Tensor> {
    let (xr, wr) = (Rows::<E>::matrix(x)?, Rows::<E>::matrix(w)?);
    let residual = match residual {
        Some(t) => Some(Rows::<E>::matrix(t)?),
        None => None,
    };
    let (n, o) = (xr.rows, wr.rows);
    if xr.cols != wr.cols || residual.is_some_and(|r| (r.rows, r.cols) != (n, o)) {
        return None;
    }
    let y = Tensor::empty([n as i64, o as i64], (x.kind(), Device::Cpu));
    let yr = Rows::<E>::matrix(&y)?;
    let fits = BLOCK_BYTES / (wr.cols * size_of::<E>()).max(1);
    let worth = LEAST_WORK.div_ceil(n * wr.cols.max(1));
    let each = fits.clamp(TILE.1, 96).max(worth).next_multiple_of(TILE.1);
    parallel::chunks(o, each, |_, r| {
        E::part(ProductPart { x: xr, w: wr, residual, y: yr, first: r.start, end: r.end })
    });
    Some(y)
}

/// Element types with the best lanes of this CPU.
pub trait Vectors: Element {
    /// Makes `part`, whose columns of y are the caller's own.
    fn part(part: ProductPart<Self>);
}

#[cfg(target_arch = "x86_64")]
impl<E: x86::dot::Dot> Vectors for E {
    fn part(part: ProductPart<E>) {
        match E::detect() {
            // SAFETY: `unit` proves the instructions.
            Some(unit) => unsafe { x86::dots::part::<E>(unit, part) },
            None => widened(part),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl<E: Real> Vectors for E {
    fn part(part: ProductPart<E>) {
        widened(part)
    }
}

super::dispatch::simd_fn! {
    fn widened<E>(part: ProductPart<'_, E>) |s| {
        tiles(Widened(s), part)
    }
}

/// Tile after tile: all columns of the part for eight rows of x, then the next eight.
#[inline(always)]
pub fn tiles<E: Element, L: Lanes<E>>(lanes: L, p: ProductPart<E>) {
    for row in (0..p.x.rows).step_by(TILE.0) {
        for col in (p.first..p.end).step_by(TILE.1) {
            let cols = (p.end - col).min(TILE.1);
            match (p.x.rows - row).min(TILE.0) {
                1 => columns::<E, L, 1>(lanes, &p, row, col, cols),
                2 => columns::<E, L, 2>(lanes, &p, row, col, cols),
                3 => columns::<E, L, 3>(lanes, &p, row, col, cols),
                4 => columns::<E, L, 4>(lanes, &p, row, col, cols),
                5 => columns::<E, L, 5>(lanes, &p, row, col, cols),
                6 => columns::<E, L, 6>(lanes, &p, row, col, cols),
                7 => columns::<E, L, 7>(lanes, &p, row, col, cols),
                _ => columns::<E, L, 8>(lanes, &p, row, col, cols),
            }
        }
    }
}

#[inline(always)]
fn columns<E: Element, L: Lanes<E>, const R: usize>(lanes: L, p: &ProductPart<E>, row: usize, col: usize, cols: usize) {
    match cols {
        1 => tile::<E, L, R, 1>(lanes, p, row, col),
        2 => tile::<E, L, R, 2>(lanes, p, row, col),
        _ => tile::<E, L, R, 3>(lanes, p, row, col),
    }
}

#[inline(always)]
fn tile<E: Element, L: Lanes<E>, const R: usize, const C: usize>(lanes: L, p: &ProductPart<E>, row: usize, col: usize) {
    let x: [&[E]; R] = std::array::from_fn(|r| p.x.row(row + r));
    let w: [&[E]; C] = std::array::from_fn(|c| p.w.row(col + c));
    let mut sums = [[lanes.zero(); C]; R];
    let whole = p.x.cols / L::STEP * L::STEP;
    let mut k = 0;
    while k < whole {
        // SAFETY: every row has at least `whole` elements.
        let at = |row: &[E]| lanes.load(unsafe { row.get_unchecked(k..k + L::STEP) });
        let b: [L::Operand; C] = std::array::from_fn(|c| at(w[c]));
        for r in 0..R {
            let a = at(x[r]);
            for c in 0..C {
                sums[r][c] = lanes.add_product(sums[r][c], a, b[c]);
            }
        }
        k += L::STEP;
    }
    if whole < p.x.cols {
        let b: [L::Operand; C] = std::array::from_fn(|c| lanes.load(&w[c][whole..]));
        for r in 0..R {
            let a = lanes.load(&x[r][whole..]);
            for c in 0..C {
                sums[r][c] = lanes.add_product(sums[r][c], a, b[c]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: these columns are this task's own.
        let out = unsafe { p.y.part_mut(row + r, col..col + C) };
        for c in 0..C {
            let start = p.residual.map_or(0.0, |res| res.row(row + r)[col + c].to_f32());
            out[c] = E::from_f32(lanes.total(sums[c]) + start);
        }
    }
}
