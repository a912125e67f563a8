//! Products of integers in AVX-512 (VNNI) and AVX2, or in tiles where there are rows enough.

use super::amx;
use super::avx512::Avx512;
use crate::kernels::cpu::ints::lanes::{floats_of_f16, IntLanes};
use crate::kernels::cpu::ints::tiles::{tiles, Emit, IntPart};
use crate::kernels::cpu::ints::{LINE, WIDTH};
use crate::kernels::cpu::level::{self, Level};
use crate::kernels::cpu::simd::Portable;
use std::arch::x86_64::*;

/// Makes the part where this CPU has one of them.
pub fn run(part: &IntPart, emit: Emit) -> bool {
    let unit = match level::get() {
        Level::Avx512(unit) => unit,
        Level::Portable => return false,
        Level::Avx2 => {
            // SAFETY: the instructions were found.
            unsafe { avx2(Avx2Ints(()), part, emit) };
            return true;
        }
    };
    if let Some(unit) = amx::detect(unit, part.w.format, part.x.rows) {
        amx::run(unit, part, emit);
    } else if is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the instructions were found.
        unsafe { avx512(Vnni(unit), part, emit) };
    } else {
        // SAFETY: where there is AVX-512 there is AVX2.
        unsafe { avx2(Avx2Ints(()), part, emit) };
    }
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn avx512(unit: Vnni, part: &IntPart, emit: Emit) {
    tiles(unit, part, emit)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(unit: Avx2Ints, part: &IntPart, emit: Emit) {
    tiles(unit, part, emit)
}

/// AVX-512 with VNNI. Exists only inside [`avx512`].
#[derive(Clone, Copy)]
struct Vnni(Avx512);

/// AVX2. Exists only inside [`avx2`].
#[derive(Clone, Copy)]
struct Avx2Ints(());

/// `$instructions`, which the CPU has: see the types.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: as said; memory operands are references to whole arrays.
        unsafe { $e }
    };
}

impl IntLanes for Vnni {
    type Floats = Avx512;
    type Sums = __m512i;
    type Bytes = __m512i;
    type Four = __m512i;
    const TILE: (usize, usize) = (8, 2);

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn four(self, x: [i8; 4]) -> __m512i {
        op!(_mm512_set1_epi32(i32::from_le_bytes(x.map(|b| b as u8))))
    }
    #[inline(always)]
    fn load(self, line: &[u8; LINE]) -> __m512i {
        op!(_mm512_loadu_si512(line.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_halves(self, line: &[u8; LINE]) -> [__m512i; 2] {
        let all = self.load(line);
        op!({
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(all, low), _mm512_and_si512(_mm512_srli_epi16::<4>(all), low)]
        })
    }
    #[inline(always)]
    fn add_products(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
        op!(_mm512_dpbusd_epi32(sums, w, x))
    }
    #[inline(always)]
    fn to_floats(self, sums: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(sums))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * WIDTH]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}

/// Bytes as pairs of 16 bits, first and third of four, second and fourth: products of two bytes and their sum fit in 32 bits,
/// where the instruction for bytes would saturate at 16.
#[derive(Clone, Copy)]
struct Pairs {
    even: [__m256i; 2],
    odd: [__m256i; 2],
}

impl Pairs {
    #[inline(always)]
    fn new(bytes: [__m256i; 2]) -> Pairs {
        let low = op!(_mm256_set1_epi16(255));
        let even = op!([_mm256_and_si256(bytes[0], low), _mm256_and_si256(bytes[1], low)]);
        Pairs { even, odd: op!([_mm256_srli_epi16::<8>(bytes[0]), _mm256_srli_epi16::<8>(bytes[1])]) }
    }
}

#[inline(always)]
fn halves_of_line(line: &[u8; LINE]) -> [__m256i; 2] {
    op!([_mm256_loadu_si256(line.as_ptr().cast()), _mm256_loadu_si256(line.as_ptr().add(32).cast())])
}

impl IntLanes for Avx2Ints {
    type Floats = Portable;
    type Sums = [__m256i; 2];
    type Bytes = Pairs;
    /// Sign-extended like [`Pairs`].
    type Four = [__m256i; 2];
    const TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    fn floats(self) -> Portable {
        Portable
    }
    #[inline(always)]
    fn splat(self, x: i32) -> Self::Sums {
        op!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn four(self, x: [i8; 4]) -> Self::Four {
        op!({
            let all = _mm256_set1_epi32(i32::from_le_bytes(x.map(|b| b as u8)));
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(all)), _mm256_srai_epi16::<8>(all)]
        })
    }
    #[inline(always)]
    fn load(self, line: &[u8; LINE]) -> Pairs {
        Pairs::new(halves_of_line(line))
    }
    #[inline(always)]
    fn load_halves(self, line: &[u8; LINE]) -> [Pairs; 2] {
        let [a, b] = halves_of_line(line);
        op!({
            let low = _mm256_set1_epi8(15);
            let high = |x| _mm256_and_si256(_mm256_srli_epi16::<4>(x), low);
            [Pairs::new([_mm256_and_si256(a, low), _mm256_and_si256(b, low)]), Pairs::new([high(a), high(b)])]
        })
    }
    #[inline(always)]
    fn add_products(self, sums: Self::Sums, w: Pairs, x: Self::Four) -> Self::Sums {
        op!({
            let one = |i: usize| {
                let products = _mm256_add_epi32(_mm256_madd_epi16(w.even[i], x[0]), _mm256_madd_epi16(w.odd[i], x[1]));
                _mm256_add_epi32(sums[i], products)
            };
            [one(0), one(1)]
        })
    }
    #[inline(always)]
    fn to_floats(self, sums: Self::Sums) -> [f32; WIDTH] {
        let mut out = [0.0f32; WIDTH];
        op!({
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtepi32_ps(sums[0]));
            _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_cvtepi32_ps(sums[1]));
        });
        out
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * WIDTH]) -> [f32; WIDTH] {
        floats_of_f16(x)
    }
}
