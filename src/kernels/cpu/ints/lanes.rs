//! Sixteen sums of products of integers side by side, for any CPU, and what every CPU's have in common.

use super::{LINE, WIDTH};
use crate::kernels::cpu::simd::{Portable, Simd};

/// Sixteen rows of w at a time: their sums, and the bytes of four columns. Having a value proves that this CPU runs its
/// instructions.
pub trait IntLanes: Copy {
    type Floats: Simd;
    /// Sixteen i32.
    type Sums: Copy;
    /// Sixteen times four unsigned bytes.
    type Bytes: Copy;
    /// Four signed bytes for all lanes.
    type Four: Copy;
    /// Rows of x and panels in a tile of an int8 product.
    const TILE: (usize, usize);

    fn floats(self) -> Self::Floats;
    fn splat(self, x: i32) -> Self::Sums;
    fn four(self, x: [i8; 4]) -> Self::Four;
    fn load(self, line: &[u8; LINE]) -> Self::Bytes;
    /// The low halves of the bytes, and the high ones.
    fn load_halves(self, line: &[u8; LINE]) -> [Self::Bytes; 2];
    /// Exact as long as sums fit in 32 bits.
    fn add_products(self, sums: Self::Sums, w: Self::Bytes, x: Self::Four) -> Self::Sums;
    fn to_floats(self, sums: Self::Sums) -> <Self::Floats as Simd>::V;
    /// Sixteen fp16.
    fn load_f16(self, x: &[u8; 2 * WIDTH]) -> <Self::Floats as Simd>::V;
    /// Asks for what will be read soon.
    fn prefetch(self, _: *const u8) {}
}

/// Sixteen fp16 (IEEE binary16), little-endian, by plain arithmetic: exact.
#[inline(always)]
pub fn floats_of_f16(x: &[u8; 2 * WIDTH]) -> [f32; WIDTH] {
    let mut out = [0.0; WIDTH];
    for (out, x) in out.iter_mut().zip(x.chunks_exact(2)) {
        let bits = u16::from_le_bytes([x[0], x[1]]) as u32;
        // Exponent and fraction shifted to where fp32 has them are the value times 2^-112, subnormals too.
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        *out = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
    }
    out
}

impl IntLanes for Portable {
    type Floats = Portable;
    type Sums = [i32; WIDTH];
    type Bytes = [u8; LINE];
    type Four = [i8; 4];
    const TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    fn floats(self) -> Portable {
        self
    }
    #[inline(always)]
    fn splat(self, x: i32) -> Self::Sums {
        [x; WIDTH]
    }
    #[inline(always)]
    fn four(self, x: [i8; 4]) -> Self::Four {
        x
    }
    #[inline(always)]
    fn load(self, line: &[u8; LINE]) -> Self::Bytes {
        *line
    }
    #[inline(always)]
    fn load_halves(self, line: &[u8; LINE]) -> [Self::Bytes; 2] {
        [line.map(|b| b & 15), line.map(|b| b >> 4)]
    }
    #[inline(always)]
    fn add_products(self, mut sums: Self::Sums, w: Self::Bytes, x: Self::Four) -> Self::Sums {
        for (i, sum) in sums.iter_mut().enumerate() {
            for j in 0..4 {
                *sum += w[4 * i + j] as i32 * x[j] as i32;
            }
        }
        sums
    }
    #[inline(always)]
    fn to_floats(self, sums: Self::Sums) -> [f32; WIDTH] {
        sums.map(|x| x as f32)
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * WIDTH]) -> [f32; WIDTH] {
        floats_of_f16(x)
    }
}
