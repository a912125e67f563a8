//! See [`crate::kernels::blockwise`]: codes and scales from values and back, in order of the values. The first of two codes of a byte is
//! in its high half, as bitsandbytes has it.

use super::simd::Element;
use super::view::{Real, Rows};
use crate::config::BlockFormat;
use crate::kernels::parallel;
use tch::Tensor;

const RUN: usize = BlockFormat::RUN;
/// Values of a task.
const TASK: usize = 1 << 15;

/// NF4's levels (arXiv:2305.14314, appendix E).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The level of a code.
fn level(format: BlockFormat, code: u8) -> f32 {
    match format {
        BlockFormat::Int8 => (code as i32 - 128) as f32 / 127.0,
        BlockFormat::Nf4 => NF4[code as usize & 15],
    }
}

/// The levels of the codes in each byte, in order.
pub fn levels_of_bytes(format: BlockFormat) -> Vec<Vec<f32>> {
    let of = |byte: u8| match format {
        BlockFormat::Int8 => vec![level(format, byte)],
        BlockFormat::Nf4 => vec![level(format, byte >> 4), level(format, byte)],
    };
    (0..=255).map(of).collect()
}

/// The code of the level that is nearest to `x`, which is between −1 and 1, or NaN.
fn nearest(format: BlockFormat, x: f32) -> u8 {
    match format {
        // NaN becomes zero; its scale is NaN.
        BlockFormat::Int8 => ((x * 127.0).round_ties_even() as i32 + 128) as u8,
        BlockFormat::Nf4 => NF4.windows(2).filter(|w| x > (w[0] + w[1]) / 2.0).count() as u8,
    }
}

/// Values, whole runs, into codes and scales.
pub fn encode(format: BlockFormat, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    let of_run = RUN * format.bits() / 8;
    for ((values, codes), scale) in values.chunks_exact(RUN).zip(codes.chunks_exact_mut(of_run)).zip(scales) {
        let top = values.iter().fold(0f32, |top, v| if v.abs() > top || v.is_nan() { v.abs() } else { top });
        *scale = if top.is_finite() { top } else { f32::NAN };
        let code = |v: f32| nearest(format, if top > 0.0 { v / top } else { 0.0 });
        match format {
            BlockFormat::Int8 => codes.iter_mut().zip(values).for_each(|(c, v)| *c = code(*v)),
            BlockFormat::Nf4 => {
                codes.iter_mut().zip(values.chunks_exact(2)).for_each(|(c, v)| *c = code(v[0]) << 4 | code(v[1]))
            }
        }
    }
}

/// Codes and scales of whole runs into values.
pub fn decode_runs<E: Element>(format: BlockFormat, codes: &[u8], scales: &[f32], out: &mut [E]) {
    let of_run = RUN * format.bits() / 8;
    let runs = out.chunks_exact_mut(RUN).zip(codes.chunks_exact(of_run)).zip(scales);
    match format {
        BlockFormat::Int8 => runs.for_each(|((out, codes), scale)| {
            out.iter_mut().zip(codes).for_each(|(o, c)| *o = E::from_f32(level(format, *c) * scale))
        }),
        BlockFormat::Nf4 => runs.for_each(|((out, codes), scale)| {
            // The sixteen values of this run.
            let values = NF4.map(|level| E::from_f32(level * scale));
            for (o, c) in out.chunks_exact_mut(2).zip(codes) {
                (o[0], o[1]) = (values[(c >> 4) as usize], values[(c & 15) as usize]);
            }
        }),
    }
}

/// The same over the threads; `scales` are the bytes of f32. None: `out` is no contiguous buffer of E.
pub fn decode<E: Real>(format: BlockFormat, codes: &[u8], scales: &[u8], out: &Tensor) -> Option<()> {
    let rows = Rows::<E>::flat(out)?;
    let bytes = |n: usize| n * format.bits() / 8;
    let scale = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
    parallel::chunks(rows.cols, TASK, |_, r| {
        let scales: Vec<f32> = scales[r.start / RUN * 4..r.end / RUN * 4].chunks_exact(4).map(scale).collect();
        // SAFETY: this range of `out` is this task's own.
        let out = unsafe { rows.part_mut(0, r.clone()) };
        decode_runs(format, &codes[bytes(r.start)..bytes(r.end)], &scales, out);
    });
    Some(())
}
