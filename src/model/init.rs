//! Fresh weights: normal for matrices, ones for vectors.
//!
//! Each value is a pure function of (seed, parameter name, global element index), so that any topology and any slice
//! starts from the same model. The function uses only IEEE additions, multiplications, divisions and square roots: the
//! bits are the same on every machine.

use crate::layout::{Kind, Param};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Elements made together: a hash gives two normal values (Box–Muller), the cosine's in the first half of the block and
/// the sine's in the second.
const BLOCK: usize = 64;
const PAIRS: usize = BLOCK / 2;

/// Below this many elements a second thread costs more than it saves.
const PER_THREAD: usize = 1 << 16;

/// Fills `master`, the local slice of `param` (row-major, [`Param::len`] elements): matrices from normal(0, `std`),
/// vectors with 1. Uses libtorch's thread count.
pub fn fill(param: &Param, master: &mut [f32], seed: u64, std: f64) {
    fill_range(param, 0, master, seed, std);
}

/// [`fill`] for the local elements `start..start + out.len()` alone.
pub fn fill_range(param: &Param, start: usize, out: &mut [f32], seed: u64, std: f64) {
    if param.kind == Kind::Vector {
        return out.fill(1.0);
    }
    let threads = (tch::get_num_threads().max(1) as usize).min(out.len().div_ceil(PER_THREAD)).max(1);
    let share = out.len().div_ceil(threads).next_multiple_of(BLOCK).max(BLOCK);
    let normal = Normal::new(param, seed, std);
    std::thread::scope(|s| {
        for (i, part) in out.chunks_mut(share).enumerate() {
            let normal = &normal;
            s.spawn(move || normal.fill_local(param, start + i * share, part));
        }
    });
}

/// The values of one matrix.
struct Normal {
    key: u64,
    std: f32,
}

impl Normal {
    fn new(param: &Param, seed: u64, std: f64) -> Normal {
        Normal { key: xxh3_64_with_seed(param.name.as_bytes(), seed), std: std as f32 }
    }

    /// Local elements from `at` on: runs that are consecutive in the whole matrix.
    fn fill_local(&self, param: &Param, mut at: usize, mut out: &mut [f32]) {
        let (cols, width) = (param.shape[1], param.extent[1]);
        while !out.is_empty() {
            let (row, col) = (at / width, at % width);
            let first = (param.offset[0] + row) * cols + param.offset[1] + col;
            let run = if width == cols { out.len() } else { out.len().min(width - col) };
            let (head, rest) = out.split_at_mut(run);
            self.fill_global(first as u64, head);
            (out, at) = (rest, at + run);
        }
    }

    /// The elements `first..` of the whole matrix.
    fn fill_global(&self, first: u64, out: &mut [f32]) {
        let mut block = [0f32; BLOCK];
        let (mut at, mut done) = (first, 0);
        while done < out.len() {
            let skip = (at % BLOCK as u64) as usize;
            let n = (BLOCK - skip).min(out.len() - done);
            self.block(at / BLOCK as u64, &mut block);
            out[done..done + n].copy_from_slice(&block[skip..skip + n]);
            (at, done) = (at + n as u64, done + n);
        }
    }

    #[inline]
    fn block(&self, index: u64, out: &mut [f32; BLOCK]) {
        let first = index.wrapping_mul(PAIRS as u64);
        let (cosines, sines) = out.split_at_mut(PAIRS);
        for lane in 0..PAIRS {
            let h = splitmix(self.key, first + lane as u64);
            let r = (-2.0 * ln(uniform(h >> 33))).sqrt() * self.std;
            let (c, s) = circle(h as u32);
            cosines[lane] = r * c;
            sines[lane] = r * s;
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) at an arbitrary place of its sequence.
#[inline(always)]
fn splitmix(key: u64, i: u64) -> u64 {
    let mut z = key.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 31 bits → (0, 1].
#[inline(always)]
fn uniform(bits31: u64) -> f32 {
    (bits31 as i32 as f32 + 0.5) * (1.0 / (1u64 << 31) as f32)
}

/// Natural logarithm of a normal float in (0, 1], to about 2e-7: ln m = 2·artanh((m-1)/(m+1)), m in [√½, √2).
#[inline(always)]
fn ln(x: f32) -> f32 {
    const SQRT_HALF_BITS: u32 = 0x3F35_04F3;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let e = ((bits as i32) >> 23) as f32;
    let m = f32::from_bits((bits & 0x007F_FFFF) + SQRT_HALF_BITS);
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let p = 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0)))));
    e * std::f32::consts::LN_2 + p
}

/// 32 bits → (cos, sin) of a uniform angle: two bits choose the quarter turn, the rest an angle in [-π/4, π/4).
#[inline(always)]
fn circle(bits: u32) -> (f32, f32) {
    let within = (bits & 0x3FFF_FFFF) as i32 - (1 << 29);
    let a = within as f32 * (std::f32::consts::FRAC_PI_2 / (1u32 << 30) as f32);
    let q = a * a;
    let s = a * (1.0 + q * (-1.0 / 6.0 + q * (1.0 / 120.0 + q * (-1.0 / 5040.0 + q * (1.0 / 362_880.0)))));
    let c = 1.0 + q * (-0.5 + q * (1.0 / 24.0 + q * (-1.0 / 720.0 + q * (1.0 / 40_320.0))));
    // A quarter turn takes (c, s) to (-s, c); the sign bits are flipped without a branch, so that the loop vectorises.
    let odd = (bits >> 30) & 1 == 1;
    let (x, y) = if odd { (s, c) } else { (c, s) };
    let flip_x = ((bits >> 30) ^ (bits >> 31)) << 31;
    let flip_y = bits & 0x8000_0000;
    (f32::from_bits(x.to_bits() ^ flip_x), f32::from_bits(y.to_bits() ^ flip_y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(name: &str, shape: [usize; 2]) -> Param {
        Param {
            name: name.into(),
            kind: Kind::Matrix,
            shape: shape.to_vec(),
            offset: vec![0, 0],
            extent: shape.to_vec(),
            start: 0,
            copies: 1,
            owner: true,
        }
    }

    fn whole(p: &Param, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; p.len()];
        fill(p, &mut out, seed, 0.02);
        out
    }

    #[test]
    fn a_slice_holds_the_same_values_as_the_whole() {
        let p = matrix("m", [301, 517]);
        let all = whole(&p, 7);
        for (offset, extent) in
            [([0, 0], [301, 517]), ([17, 0], [200, 517]), ([3, 100], [290, 111]), ([300, 516], [1, 1])]
        {
            let slice = Param { offset: offset.to_vec(), extent: extent.to_vec(), ..p.clone() };
            let got = whole(&slice, 7);
            for (i, v) in got.iter().enumerate() {
                let (row, col) = (offset[0] + i / extent[1], offset[1] + i % extent[1]);
                assert_eq!(v.to_bits(), all[row * 517 + col].to_bits(), "{offset:?} {extent:?} element {i}");
            }
            let mut piece = vec![0.0; got.len() / 3];
            let start = got.len() / 2;
            fill_range(&slice, start, &mut piece, 7, 0.02);
            assert_eq!(piece[..], got[start..start + piece.len()]);
        }
    }

    #[test]
    fn values_are_normal() {
        let v: Vec<f64> = whole(&matrix("model.layers.0.mlp.up_proj.weight", [1000, 2000]), 1)
            .iter()
            .map(|&x| x as f64 / 0.02)
            .collect();
        let n = v.len() as f64;
        let moment = |k: i32| v.iter().map(|x| x.powi(k)).sum::<f64>() / n;
        // Five standard errors of each moment's estimate.
        for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = moment(k) - expected;
            assert!(error.abs() < 5.0 * (variance / n).sqrt(), "moment {k} is off by {error}");
        }
        let beyond = |limit: f64| v.iter().filter(|x| x.abs() > limit).count() as f64 / n;
        for (limit, p) in [(1.0, 0.317_310_5), (2.0, 0.045_500_3), (3.0, 0.002_699_8), (4.0, 6.334e-5)] {
            let error = beyond(limit) - p;
            assert!(error.abs() < 5.0 * (p / n).sqrt(), "beyond {limit}: off by {error}");
        }
        // Both values of a pair, and neighbours, are uncorrelated.
        for lag in [1, PAIRS, BLOCK] {
            let c = v.iter().zip(&v[lag..]).map(|(a, b)| a * b).sum::<f64>() / n;
            assert!(c.abs() < 5.0 / n.sqrt(), "lag {lag}: correlation {c}");
        }
    }

    #[test]
    fn seed_and_name_choose_the_values_and_vectors_are_ones() {
        let (a, b) = (matrix("a", [8, 8]), matrix("b", [8, 8]));
        assert_ne!(whole(&a, 1), whole(&a, 2));
        assert_ne!(whole(&a, 1), whole(&b, 1));
        let v = Param { kind: Kind::Vector, shape: vec![5], offset: vec![1], extent: vec![3], ..a };
        assert_eq!(whole(&v, 1), [1.0; 3]);
    }

    #[test]
    fn the_bits_of_a_known_matrix_never_change() {
        let v = whole(&matrix("model.embed_tokens.weight", [96, 3]), 42);
        let bits: Vec<u32> = [0, 1, 31, 32, 63, 64, 287].iter().map(|&i| v[i].to_bits()).collect();
        assert_eq!(bits, [3166913215, 3138067803, 1010632817, 1019132962, 3173134854, 1025783514, 1024851887]);
    }

    #[test]
    fn logarithm_and_circle_match_the_standard_library() {
        for i in 0..100_000u64 {
            let u = uniform(splitmix(3, i) >> 33);
            let exact = (u as f64).ln();
            assert!((ln(u) as f64 - exact).abs() <= 3e-7 * exact.abs().max(1.0), "ln {u}");
            let bits = splitmix(4, i) as u32;
            let angle = (((bits & 0x3FFF_FFFF) as f64 / (1u64 << 30) as f64 - 0.5) + (bits >> 30) as f64)
                * std::f64::consts::FRAC_PI_2;
            let (c, s) = circle(bits);
            assert!((c as f64 - angle.cos()).abs() < 3e-7 && (s as f64 - angle.sin()).abs() < 3e-7, "{bits:x}");
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
