//! Weights to integers, and how they lie in memory.
//!
//! A panel in int8: a line of 64 bytes for four columns, the four of the first row, then those of the next; a byte is the integer
//! in −127..=127 plus 128, and the row's scale is the largest absolute value / 127. In int4: for 64 columns a line of fp16 scales
//! (sixteen rows of the first 32 columns, then of the others) and eight lines of integers in −8..=7 plus 8, of eight columns each:
//! of a row the first four columns in the low halves of four bytes, the others in the high ones. The scale is that of ggml's Q4_0:
//! the value of largest absolute value / −8.

use super::{rounds, LINE, PART, STEP, WIDTH};
use half::f16;

/// How weights are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// A byte a weight, and an fp32 scale a row.
    Int8,
    /// Half a byte a weight, and an fp16 scale for each 32 columns of a row.
    Int4,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFidelity {
    /// All values were numbers.
    pub finite: bool,
    /// Integers and scales stand for exactly these values.
    pub exact: bool,
}

impl RowFidelity {
    /// Of both.
    pub fn and(self, other: RowFidelity) -> RowFidelity {
        RowFidelity { finite: self.finite && other.finite, exact: self.exact && other.exact }
    }
}

impl WeightFormat {
    /// By the name that options have for it.
    pub fn named(name: &str) -> Option<WeightFormat> {
        [WeightFormat::Int8, WeightFormat::Int4].into_iter().find(|f| f.name() == name)
    }

    /// The name that options have for it: `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::Int8 => "int8",
            WeightFormat::Int4 => "int4",
        }
    }

    /// Bytes of a panel of `cols` columns.
    pub fn panel_bytes(self, cols: usize) -> usize {
        cols.div_ceil(STEP) * self.step_bytes()
    }

    /// Bytes of 64 columns of a panel.
    pub const fn step_bytes(self) -> usize {
        match self {
            WeightFormat::Int8 => STEP * WIDTH,
            WeightFormat::Int4 => STEP * WIDTH / 2 + LINE,
        }
    }

    /// What an empty panel is filled with: zeros.
    pub fn zero(self) -> u8 {
        match self {
            WeightFormat::Int8 => 128,
            WeightFormat::Int4 => 0,
        }
    }
}

/// The largest absolute value of a row; NaN where one is no number.
pub fn largest(row: &[f32]) -> f32 {
    f32::from_bits(row.iter().fold(0, |top, x| top.max(x.to_bits() & 0x7fff_ffff)))
}

/// Puts a row into lane `lane` of an int8 panel. `largest` is that of the whole row, of which `row` may be a part. Returns its
/// scale.
pub fn pack_int8(panel: &mut [u8], lane: usize, row: &[f32], largest: f32) -> (f32, RowFidelity) {
    let scale = largest / 127.0;
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let fidelity = RowFidelity { finite: largest.is_finite(), exact: false };
    if !fidelity.finite || !inverse.is_finite() {
        return (0.0, fidelity);
    }
    let mut exact = true;
    for (four, line) in row.chunks(4).zip(panel.chunks_exact_mut(LINE)) {
        for (j, &x) in four.iter().enumerate() {
            let (q, int) = rounds((x * inverse).clamp(-127.0, 127.0));
            exact &= q * scale == x;
            line[lane * 4 + j] = (int + 128) as u8;
        }
    }
    (scale, RowFidelity { exact, ..fidelity })
}

/// Puts a row into lane `lane` of an int4 panel.
pub fn pack_int4(panel: &mut [u8], lane: usize, row: &[f32]) -> RowFidelity {
    let mut all = RowFidelity { finite: true, exact: true };
    for (part, values) in row.chunks(PART).enumerate() {
        let step = &mut panel[part / 2 * WeightFormat::Int4.step_bytes()..][..WeightFormat::Int4.step_bytes()];
        let (scales, lines) = step.split_at_mut(LINE);
        let top = values.iter().fold(0f32, |top, &x| if x.abs() > top.abs() || x.is_nan() { x } else { top });
        // Beyond the largest fp16 the scale stays at it.
        let scale = f16::from_f32((top / -8.0).clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
        all.finite &= top.is_finite();
        scales[(part % 2) * 2 * WIDTH + lane * 2..][..2].copy_from_slice(&scale.to_le_bytes());
        let scale = scale.to_f32();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (i, &x) in values.iter().enumerate() {
            let (q, int) = rounds((x * inverse).clamp(-8.0, 7.0));
            all.exact &= q * scale == x;
            let at = (part % 2 * PART + i) / 8 * LINE + lane * 4 + i % 4;
            let nibble = (int + 8) as u8;
            lines[at] |= if i % 8 < 4 { nibble } else { nibble << 4 };
        }
    }
    all
}

/// The value at `col` of lane `lane`, for tests and references.
pub fn unpacked(format: WeightFormat, panel: &[u8], lane: usize, col: usize, scale: f32) -> f32 {
    match format {
        WeightFormat::Int8 => scale * (panel[col / 4 * LINE + lane * 4 + col % 4] as i32 - 128) as f32,
        WeightFormat::Int4 => {
            let step = &panel[col / STEP * format.step_bytes()..];
            let at = (col / PART % 2) * 2 * WIDTH + lane * 2;
            let scale = f16::from_le_bytes([step[at], step[at + 1]]).to_f32();
            let byte = step[LINE + col % STEP / 8 * LINE + lane * 4 + col % 4];
            let nibble = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
            scale * (nibble as i32 - 8) as f32
        }
    }
}
