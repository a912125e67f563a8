//! The inner loop of every matrix product here: a tile of 6 × 64 sums in registers, fp32 or pairs of bf16 (AVX512-BF16).
//!
//! Both dtypes look alike in units of 32 bits: one fp32 or two adjacent bf16 of the summed dim. Operand A is row-major
//! along the summed dim (any row stride, units broadcast from memory); operand B is packed (`pack`): for each unit of the
//! summed dim, the 64 columns of a panel side by side. C is fp32.

use super::avx512::Avx512;
use crate::kernels::cpu::level;
use crate::kernels::cpu::view::Real;
use half::bf16;
use std::arch::x86_64::*;

/// Rows and columns of a tile.
pub const TILE_ROWS: usize = 6;
pub const PANEL: usize = 64;
/// Cache lines of one unit of a panel.
pub const LINES: usize = PANEL / 16;

/// Proof that this CPU multiplies elements of some dtype with the instructions that [`Dot`] uses.
#[derive(Clone, Copy)]
pub struct DotUnit(pub Avx512);

pub trait Dot: Real {
    /// Elements of a 32-bit unit.
    const PER_UNIT: usize;
    fn detect() -> Option<DotUnit>;
    /// acc + the products of 16 units.
    ///
    /// # Safety
    /// The CPU has the features (there is a [`DotUnit`] from this type's `detect`).
    unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512;
}

impl Dot for f32 {
    const PER_UNIT: usize = 1;
    fn detect() -> Option<DotUnit> {
        level::avx512().map(DotUnit)
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc)
    }
}

impl Dot for bf16 {
    const PER_UNIT: usize = 2;
    fn detect() -> Option<DotUnit> {
        level::avx512().filter(|_| is_x86_feature_detected!("avx512bf16")).map(DotUnit)
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// One cache line of packed units, so that vectors of panels never straddle lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    pub const ZERO: Line = Line([0; 16]);
}

/// Operand A: rows of units. `stride` in elements of E.
#[derive(Clone, Copy)]
pub struct Left<E> {
    pub ptr: *const E,
    pub stride: usize,
}

impl<E> Left<E> {
    /// # Safety
    /// The element lies in the operand.
    #[inline(always)]
    pub unsafe fn at(self, row: usize, k: usize) -> Left<E> {
        Left { ptr: self.ptr.add(row * self.stride + k), ..self }
    }
}

/// The sums: rows of fp32, `stride` floats apart.
#[derive(Clone, Copy)]
pub struct SumMatrix {
    pub ptr: *mut f32,
    pub stride: usize,
}

impl SumMatrix {
    /// # Safety
    /// The element lies in the matrix.
    #[inline(always)]
    pub unsafe fn at(self, row: usize, col: usize) -> SumMatrix {
        SumMatrix { ptr: self.ptr.add(row * self.stride + col), ..self }
    }
}

/// Where C lies when a product begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Home {
    Cache,
    /// In memory: each tile asks for its part of C before it multiplies.
    Memory,
}

/// c [rows, cols] = start + a [rows, k units] · panel [k, 64], with cols ≤ 64 and `start` zero, c itself, or another matrix.
///
/// # Safety
/// `a` has `rows` rows of `k` units, `panel` 4·k lines, c and start `rows` rows of `cols` floats; the CPU has E's features and the
/// caller is compiled with them.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn product<E: Dot>(
    rows: usize, cols: usize, k: usize, a: Left<E>, panel: *const Line, c: SumMatrix, start: Option<SumMatrix>,
    home: Home,
) {
    let mut row = 0;
    while row + TILE_ROWS <= rows {
        tile_cols::<E, TILE_ROWS>(cols, k, a.at(row, 0), panel, c.at(row, 0), start.map(|s| s.at(row, 0)), home);
        row += TILE_ROWS;
    }
    let (a, c, start) = (a.at(row, 0), c.at(row, 0), start.map(|s| s.at(row, 0)));
    match rows - row {
        1 => tile_cols::<E, 1>(cols, k, a, panel, c, start, home),
        2 => tile_cols::<E, 2>(cols, k, a, panel, c, start, home),
        3 => tile_cols::<E, 3>(cols, k, a, panel, c, start, home),
        4 => tile_cols::<E, 4>(cols, k, a, panel, c, start, home),
        5 => tile_cols::<E, 5>(cols, k, a, panel, c, start, home),
        _ => {}
    }
}

#[inline(always)]
unsafe fn tile_cols<E: Dot, const R: usize>(
    cols: usize, k: usize, a: Left<E>, panel: *const Line, c: SumMatrix, start: Option<SumMatrix>, home: Home,
) {
    match cols.div_ceil(16) {
        4 => tile::<E, R, 4>(cols, k, a, panel, c, start, home),
        3 => tile::<E, R, 3>(cols, k, a, panel, c, start, home),
        2 => tile::<E, R, 2>(cols, k, a, panel, c, start, home),
        1 => tile::<E, R, 1>(cols, k, a, panel, c, start, home),
        _ => {}
    }
}

/// R rows, V vectors of columns, the last one perhaps in part.
#[inline(always)]
unsafe fn tile<E: Dot, const R: usize, const V: usize>(
    cols: usize, k: usize, a: Left<E>, panel: *const Line, c: SumMatrix, start: Option<SumMatrix>, home: Home,
) {
    if home == Home::Memory {
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(c.ptr.wrapping_add(r * c.stride + 16 * v).cast());
            }
        }
    }
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    let mut b = panel;
    let mut units = a.ptr.cast::<u32>();
    for _ in 0..k {
        let mut bv = [_mm512_setzero_si512(); V];
        for (v, x) in bv.iter_mut().enumerate() {
            *x = _mm512_load_si512(b.add(v).cast());
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let at = units.cast::<E>().add(r * a.stride).cast::<i32>();
            let av = _mm512_set1_epi32(at.read_unaligned());
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = E::dot(*acc, av, bv[v]);
            }
        }
        b = b.add(LINES);
        units = units.add(1);
    }
    let tail = cols - 16 * (V - 1);
    let mask = if tail == 16 { 0xffff } else { (1u16 << tail) - 1 };
    for (r, acc) in acc.iter().enumerate() {
        for (v, &acc) in acc.iter().enumerate() {
            let out = c.ptr.add(r * c.stride + 16 * v);
            let m = if v + 1 == V { mask } else { 0xffff };
            let sum = match start {
                Some(s) => _mm512_add_ps(acc, _mm512_maskz_loadu_ps(m, s.ptr.add(r * s.stride + 16 * v))),
                None => acc,
            };
            if m == 0xffff {
                _mm512_storeu_ps(out, sum);
            } else {
                _mm512_mask_storeu_ps(out, m, sum);
            }
        }
    }
}

/// Makes a function over `E: Dot` that is compiled with the instructions of E. Its first argument, a [`DotUnit`], proves that they
/// are there.
macro_rules! dot_fn {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident <$e:ident>($unit:ident $(, $arg:ident : $ty:ty)* $(,)?) $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name<$e: $crate::kernels::cpu::x86::dot::Dot>(unit: $crate::kernels::cpu::x86::dot::DotUnit $(, $arg: $ty)*) {
            use $crate::kernels::cpu::x86::dot::{Dot, DotUnit};
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            unsafe fn generic<$e: Dot>($unit: DotUnit $(, $arg: $ty)*) $body
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn fp32<$e: Dot>(unit: DotUnit $(, $arg: $ty)*) {
                generic::<$e>(unit $(, $arg)*)
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn bf16<$e: Dot>(unit: DotUnit $(, $arg: $ty)*) {
                generic::<$e>(unit $(, $arg)*)
            }
            match $e::PER_UNIT {
                1 => fp32::<$e>(unit $(, $arg)*),
                _ => bf16::<$e>(unit $(, $arg)*),
            }
        }
    };
}
pub(crate) use dot_fn;
