//! Dot products of rows in AVX-512: fp32, and pairs of bf16 (AVX512-BF16).

use super::dot::{dot_fn, Dot};
use crate::kernels::cpu::dots::{tiles, Lanes, ProductPart};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Sixteen units of E. Exists only inside [`part`], which is compiled with E's instructions.
#[derive(Clone, Copy)]
struct Units<E>(PhantomData<E>);

impl<E: Dot> Lanes<E> for Units<E> {
    type Sum = __m512;
    type Operand = __m512i;
    const STEP: usize = 16 * E::PER_UNIT;
    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the CPU has the instructions (see the type), here and below.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn load(self, x: &[E]) -> __m512i {
        // SAFETY: no element beyond the slice is read.
        unsafe {
            match (x.len() >= Self::STEP, E::PER_UNIT) {
                (true, _) => _mm512_loadu_si512(x.as_ptr().cast()),
                (false, 1) => _mm512_maskz_loadu_epi32((1u32 << x.len()).wrapping_sub(1) as u16, x.as_ptr().cast()),
                (false, _) => _mm512_maskz_loadu_epi16(((1u64 << x.len()) - 1) as u32, x.as_ptr().cast()),
            }
        }
    }
    #[inline(always)]
    fn add_product(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { E::dot(sum, a, b) }
    }
    #[inline(always)]
    fn total(self, sum: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(sum) }
    }
}

dot_fn! {
    /// Makes a part of a product.
    pub unsafe fn part<E>(_unit, part: ProductPart<E>) {
        tiles(Units::<E>(PhantomData), part)
    }
}
