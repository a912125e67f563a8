//! Products of quantized weights for inference. Integers are multiplied and added, which no order of summation changes; the few
//! fp32 operations around them have a fixed order without fused multiply-adds, so that every CPU gives the same bits.
//!
//! w [O,I] lies in panels of sixteen rows, whose columns are filled up to a multiple of 64 with zeros; x [N,I] is quantized row by
//! row, 128 columns (a group) at a time, when it comes. An element of y is
//!
//! - int8: `(Σ_group dot(group) · sx[row, group]) · sw[col]`
//! - int4: `Σ_group (Σ_part dot(part) · sw[col, part]) · sx[row, group]`, a part being 32 columns
//!
//! in this order, the dot products exact. Both are plus the residual at the very end.
//!
//! - [`weights`], [`activations`]: numbers to integers, and how they lie
//! - [`tiles`]: the product over any [`lanes::IntLanes`]; [`best`]: over those of this CPU, or in tiles of AMX (`x86/amx`)

pub mod activations;
pub mod best;
pub mod lanes;
pub mod tiles;
pub mod weights;

/// Rows of w in a panel.
pub const WIDTH: usize = 16;
/// Columns are filled up to a multiple of this.
pub const STEP: usize = 64;
/// Columns of x with one scale.
pub const GROUP: usize = 128;
/// Columns of w with one scale, in int4.
pub const PART: usize = 32;
/// Bytes that are read at a time: four columns of sixteen rows in int8, eight in int4.
pub const LINE: usize = 64;

/// The nearest integer of |x| < 2^22, ties to even, which the low bits of the sum are too.
#[inline(always)]
pub fn rounds(x: f32) -> (f32, i32) {
    const ROUNDS: f32 = 12_582_912.0;
    let sum = x + ROUNDS;
    (sum - ROUNDS, (sum.to_bits() as i32) - (ROUNDS.to_bits() as i32))
}
