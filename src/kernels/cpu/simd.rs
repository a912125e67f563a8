//! Sixteen fp32 lanes, as AVX-512 registers or as plain arrays, and loads and stores that convert bf16.
//!
//! A kernel is written once, generic over [`Simd`]; [`simd_fn!`] makes the versions and picks one at run time. Plain arrays
//! are compiled twice, once for AVX2, and serve every other CPU.

use half::bf16;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen lanes of fp32 arithmetic. Having a value proves that this CPU runs its instructions.
pub trait Simd: Copy {
    type V: Copy;
    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a where a > b, else b (so a NaN in b is passed on).
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// a·b + c
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c − a·b
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, a: Self::V) -> Self::V;
    /// a·2^n for an integral n in −150..=128.
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// Sum of the lanes.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane.
    fn top(self, a: Self::V) -> f32;
    fn load_f32(self, x: &[f32; LANES]) -> Self::V;
    fn store_f32(self, x: &mut [f32; LANES], v: Self::V);
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    /// Rounds to nearest, ties to even.
    fn store_bf16(self, x: &mut [bf16; LANES], v: Self::V);

    /// Elements `i..i+16` of `x`; lanes beyond its end are zero.
    #[inline(always)]
    fn load<E: Element>(self, x: &[E], i: usize) -> Self::V {
        self.load_or(x, i, E::ZERO)
    }

    /// Elements `i..i+16` of `x`; lanes beyond its end are `fill`.
    #[inline(always)]
    fn load_or<E: Element>(self, x: &[E], i: usize, fill: E) -> Self::V {
        let rest = &x[i..];
        match rest.first_chunk::<LANES>() {
            Some(chunk) => E::load(self, chunk),
            None => {
                let mut chunk = [fill; LANES];
                chunk[..rest.len()].copy_from_slice(rest);
                E::load(self, &chunk)
            }
        }
    }

    /// Writes elements `i..i+16` of `x`; lanes beyond its end are dropped.
    #[inline(always)]
    fn store<E: Element>(self, x: &mut [E], i: usize, v: Self::V) {
        let rest = &mut x[i..];
        match rest.first_chunk_mut::<LANES>() {
            Some(chunk) => E::store(self, chunk, v),
            None => {
                let mut chunk = [E::ZERO; LANES];
                E::store(self, &mut chunk, v);
                let n = rest.len();
                rest.copy_from_slice(&chunk[..n]);
            }
        }
    }

    /// e^x to 1 ulp or so for x up to 88; 0 below −104 (also for −∞); NaN stays NaN.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.max(self.splat(-104.0), x);
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts (Cody and Waite), so that r keeps the bits that n·ln 2 cancels.
        let r = self.fnma(n, self.splat(0.693_359_4), x);
        let r = self.fnma(n, self.splat(-2.121_944_4e-4), r);
        // Taylor to r^7/7!, |r| <= ln2/2: relative error below 2^-27.
        let mut p = self.splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        self.scale2(p, n)
    }

    /// 1/(1 + e^−x)
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        // At most 88, so that e^−x stays finite; constants come first because max() passes on a NaN in its second operand.
        let limit = self.splat(88.0);
        let negated = self.sub(limit, self.max(self.splat(0.0), self.add(limit, x)));
        self.div(one, self.add(one, self.exp(negated)))
    }
}

/// What a kernel reads and writes: fp32 or bf16.
pub trait Element: Copy + Send + Sync + 'static {
    const ZERO: Self;
    const LOWEST: Self;
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::V;
    fn store<S: Simd>(s: S, x: &mut [Self; LANES], v: S::V);
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const LOWEST: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load_f32(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &mut [f32; LANES], v: S::V) {
        s.store_f32(x, v)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const ZERO: Self = bf16::ZERO;
    const LOWEST: Self = bf16::NEG_INFINITY;
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[bf16; LANES]) -> S::V {
        s.load_bf16(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &mut [bf16; LANES], v: S::V) {
        s.store_bf16(x, v)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

/// Plain arrays: for any CPU.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not mul_add: without the instruction that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding and removing 1.5·2^23 rounds any |x| < 2^22 to even.
        a.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V {
        // In two factors: 2^n itself may be below the smallest normal number.
        std::array::from_fn(|i| {
            let n = n[i] as i32;
            let (h, l) = (n >> 1, n - (n >> 1));
            a[i] * f32::from_bits(((h + 127) as u32) << 23) * f32::from_bits(((l + 127) as u32) << 23)
        })
    }
    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let mut v = a;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn top(self, a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn load_f32(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store_f32(self, x: &mut [f32; LANES], v: Self::V) {
        *x = v;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V {
        x.map(|h| f32::from_bits((h.to_bits() as u32) << 16))
    }
    #[inline(always)]
    fn store_bf16(self, x: &mut [bf16; LANES], v: Self::V) {
        *x = v.map(|f| {
            let b = f.to_bits();
            let rounded = b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16;
            bf16::from_bits(if f.is_nan() { 0x7fc0 } else { rounded as u16 })
        });
    }
}
