//! Bringing operands into the form that the inner loop reads (see `dot`): panels of 64 columns for B, row-major units for A.
//! Whatever lies beyond the matrix is filled with zeros.

use super::dot::{Dot, Line, LINES};
use crate::kernels::cpu::view::Rows;
use std::arch::x86_64::*;
use tch::Tensor;

/// Part of a matrix: its rows and columns from these on.
#[derive(Clone, Copy)]
pub struct PackFrom<'a, E> {
    pub of: Rows<'a, E>,
    pub row: usize,
    pub col: usize,
}

/// Panels of B one after another, written by the tasks of one parallel loop and read by those of the next.
#[derive(Clone, Copy)]
pub struct Packed(*mut Line);
// SAFETY: tasks of the first loop write disjoint panels; afterwards they are only read.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// In the memory of a float tensor, which must outlive it. `None` if the tensor is not aligned to a cache line.
    pub fn in_tensor(t: &Tensor) -> Option<Packed> {
        let line = Rows::<f32>::flat(t)?.ptr().cast::<Line>();
        line.is_aligned().then_some(Packed(line))
    }

    /// The panel that starts after `p` panels of `units` units.
    ///
    /// # Safety
    /// It lies in the buffer.
    #[inline(always)]
    pub unsafe fn panel(self, p: usize, units: usize) -> *mut Line {
        self.0.add(p * units * LINES)
    }
}

/// Sixteen units of a row, starting at element `k`.
///
/// # Safety
/// AVX-512 F and BW.
#[inline(always)]
unsafe fn along<E: Dot>(row: &[E], k: usize) -> __m512i {
    let n = 16 * E::PER_UNIT;
    if k + n <= row.len() {
        return _mm512_loadu_si512(row.as_ptr().add(k).cast());
    }
    let left = row.len().saturating_sub(k);
    let at = row.as_ptr().add(row.len() - left);
    match E::PER_UNIT {
        1 => _mm512_maskz_loadu_epi32((1u32 << left).wrapping_sub(1) as u16, at.cast()),
        _ => _mm512_maskz_loadu_epi16(((1u64 << left) - 1) as u32, at.cast()),
    }
}

/// One unit (rows `k·PER_UNIT…`) of sixteen columns from `col` on.
///
/// # Safety
/// AVX-512 F, BW and VL.
#[inline(always)]
unsafe fn across<E: Dot>(m: &Rows<E>, k: usize, col: usize) -> __m512i {
    let row = |i: usize| if i < m.rows { m.row(i) } else { &[] };
    if E::PER_UNIT == 1 {
        return along(row(k), col);
    }
    let half = |r: &[E]| {
        let left = r.len().saturating_sub(col).min(16);
        let mask = ((1u32 << left) - 1) as u16;
        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, r.as_ptr().wrapping_add(col.min(r.len())).cast()))
    };
    _mm512_or_si512(half(row(2 * k)), _mm512_slli_epi32::<16>(half(row(2 * k + 1))))
}

/// Sixteen vectors of sixteen units, transposed.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
pub unsafe fn transpose(r: &mut [__m512i; 16]) {
    let mut t = *r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // r[4i+j] holds column 4l+j of rows 4i..4i+4 in its 128-bit lane l.
    for j in 0..4 {
        let (a, b, c, d) = (r[j], r[4 + j], r[8 + j], r[12 + j]);
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        t[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        t[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        t[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        t[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    *r = t;
}

/// One panel of B from rows along the summed dim (a weight [O,I] in x·wᵀ): 64 rows from `m.row` on, `units` units from element
/// `m.col` on.
///
/// # Safety
/// `out` has 4·units lines; AVX-512 F and BW.
#[inline(always)]
pub unsafe fn panel_along<E: Dot>(m: PackFrom<E>, units: usize, out: *mut Line) {
    for v in 0..LINES {
        for k in (0..units).step_by(16) {
            let mut t = [_mm512_setzero_si512(); 16];
            for (i, t) in t.iter_mut().enumerate() {
                let row = m.row + 16 * v + i;
                if row < m.of.rows {
                    *t = along(m.of.row(row), m.col + k * E::PER_UNIT);
                }
            }
            transpose(&mut t);
            for (i, &t) in t.iter().enumerate().take(units - k) {
                _mm512_store_si512(out.add((k + i) * LINES + v).cast(), t);
            }
        }
    }
}

/// One panel of B from rows across the summed dim (x [N,I] in dyᵀ·x): 64 columns from `m.col` on, `units` units of rows from
/// `m.row` on (a multiple of the elements of a unit).
///
/// # Safety
/// `out` has 4·units lines; AVX-512 F, BW and VL.
#[inline(always)]
pub unsafe fn panel_across<E: Dot>(m: PackFrom<E>, units: usize, out: *mut Line) {
    for k in 0..units {
        for v in 0..LINES {
            let t = across(&m.of, m.row / E::PER_UNIT + k, m.col + 16 * v);
            _mm512_store_si512(out.add(k * LINES + v).cast(), t);
        }
    }
}

/// A from rows across the summed dim (dy [N,O] in dyᵀ·x): `rows` columns of the matrix become rows of `units` units, `stride`
/// units (a multiple of 16) apart. Rows are written in blocks of 16.
///
/// # Safety
/// `out` has rows, rounded up to 16, times stride/16 lines, stride ≥ units; AVX-512 F, BW and VL.
#[inline(always)]
pub unsafe fn left_across<E: Dot>(m: PackFrom<E>, rows: usize, units: usize, stride: usize, out: *mut Line) {
    for k in (0..units).step_by(16) {
        for r in (0..rows).step_by(16) {
            let mut t = [_mm512_setzero_si512(); 16];
            for (i, t) in t.iter_mut().enumerate() {
                *t = across(&m.of, m.row / E::PER_UNIT + k + i, m.col + r);
            }
            transpose(&mut t);
            for (i, &t) in t.iter().enumerate() {
                _mm512_store_si512(out.add((r + i) * (stride / 16) + k / 16).cast(), t);
            }
        }
    }
}
