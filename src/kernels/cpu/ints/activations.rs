//! QuantizedRows to int8: each row on its own, 128 columns with one scale, the largest absolute value / 127.

use super::weights::WeightFormat;
use super::{rounds, GROUP, PART, STEP};
use crate::kernels::cpu::simd::Element;
use crate::kernels::parallel;
use crate::threads::lock;
use std::sync::Mutex;

/// Rows are filled up to a multiple of this, where there are as many as a quarter of it.
pub const FILLED: usize = 32;
/// Rows that one task quantizes.
const ROWS: usize = 16;
/// Below this largest absolute value a group is zero: its inverse would not be finite.
const TINY: f32 = 1e-30;

/// Quantized rows.
pub struct QuantizedRows {
    pub rows: usize,
    /// Columns with those that were filled up.
    pub cols: usize,
    pub groups: usize,
    /// [rows, cols], in −127..=127; rows that were filled up come behind.
    pub ints: Vec<i8>,
    /// [rows, groups]; NaN where a value is no number, and with it every element of the product's row.
    pub scales: Vec<f32>,
    /// What a dot product begins with, so that weights may be stored plus an offset: minus the offset times the sum of the
    /// integers. Of each group in int8, of each part in int4: [rows, groups or parts].
    pub starts: Vec<i32>,
    /// Starts of a row.
    pub parts: usize,
}

impl QuantizedRows {
    /// `row(i)` are the `cols` values of row i.
    pub fn new<'a, E: Element>(
        rows: usize, cols: usize, format: WeightFormat, row: impl Fn(usize) -> &'a [E] + Sync,
    ) -> QuantizedRows {
        let padded = cols.next_multiple_of(STEP);
        let (part, offset) = match format {
            WeightFormat::Int8 => (GROUP, 128),
            WeightFormat::Int4 => (PART, 8),
        };
        let (groups, parts) = (padded.div_ceil(GROUP), padded.div_ceil(part));
        let mut a = QuantizedRows {
            rows,
            cols: padded,
            groups,
            ints: vec![0; rows.next_multiple_of(if rows < FILLED / 4 { 1 } else { FILLED }) * padded],
            scales: vec![0.0; rows * groups],
            starts: vec![0; rows * parts],
            parts,
        };
        let pieces = a.ints[..rows * padded].chunks_mut(ROWS * padded).zip(a.scales.chunks_mut(ROWS * groups));
        let pieces = pieces.zip(a.starts.chunks_mut(ROWS * parts)).map(|piece| Mutex::new(Some(piece)));
        let pieces: Vec<_> = pieces.collect();
        parallel::tasks(pieces.len(), |n| {
            // Each piece is taken once: nobody waits.
            let piece = lock(&pieces[n]).take();
            let Some(((ints, scales), starts)) = piece else { return };
            for i in 0..ints.len() / padded {
                let ints = &mut ints[i * padded..][..padded];
                quantize(row(n * ROWS + i), ints, &mut scales[i * groups..][..groups]);
                sums(ints, part, -offset, &mut starts[i * parts..][..parts]);
            }
        });
        a
    }
}

super::super::dispatch::simd_fn! {
    /// A row; columns of `ints` beyond it stay zero.
    fn quantize<E>(row: &[E], ints: &mut [i8], scales: &mut [f32]) |_s| {
        for ((values, ints), scale) in row.chunks(GROUP).zip(ints.chunks_mut(GROUP)).zip(scales) {
            let mut top = 0u32;
            for x in values {
                top = top.max(x.to_f32().to_bits() & 0x7fff_ffff);
            }
            let top = f32::from_bits(top);
            *scale = if top.is_finite() { top / 127.0 } else { f32::NAN };
            if !top.is_finite() || top < TINY {
                *scale *= 0.0;
                continue;
            }
            let inverse = 127.0 / top;
            for (x, q) in values.iter().zip(ints) {
                *q = rounds(x.to_f32() * inverse).1 as i8;
            }
        }
    }
}

super::super::dispatch::simd_fn! {
    /// Of each part the sum times `factor`.
    fn sums(ints: &[i8], part: usize, factor: i32, out: &mut [i32]) |_s| {
        for (ints, out) in ints.chunks(part).zip(out) {
            *out = factor * ints.iter().map(|&q| q as i32).sum::<i32>();
        }
    }
}
