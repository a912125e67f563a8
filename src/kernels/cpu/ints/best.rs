//! The product by the best instructions of this CPU.

use super::tiles::{tiles, Emit, IntPart};
use super::STEP;
use crate::kernels::cpu::simd::Portable;
#[cfg(target_arch = "x86_64")]
use crate::kernels::cpu::x86::ints as x86;

/// Makes the part.
///
/// # Panics
/// Where the operands have different columns.
pub fn run(part: &IntPart, emit: Emit) {
    assert!(part.w.cols.next_multiple_of(STEP) == part.x.cols, "{} columns and {}", part.w.cols, part.x.cols);
    #[cfg(target_arch = "x86_64")]
    if x86::run(part, emit) {
        return;
    }
    tiles(Portable, part, emit)
}
