//! XXH3-64 (seed 0, the default secret) over long byte ranges with the vector unit that the CPU has, and copies to memory
//! that is not read soon, summed on the way. State that is saved is summed and copied beside the step, so both count.
//!
//! Source: the XXH3 algorithm description of xxHash 0.8. The sums are those of every other implementation.

use std::ops::Range;

/// A stripe adds 64 bytes to eight lanes.
const STRIPE: usize = 64;
/// After 16 stripes the lanes are scrambled: the secret has no more keys.
const ROUND: usize = 16 * STRIPE;
/// Up to this many bytes XXH3 is another function, which the crate has.
const SHORT: usize = 240;
/// Bytes copied before they are summed: they wait in the first-level cache.
const TURN: usize = 16 << 10;

const PRIME32: [u64; 3] = [0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D];
const PRIME64: [u64; 5] =
    [0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5];
const START: [u64; 8] =
    [PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]];

#[rustfmt::skip]
const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// XXH3-64 of bytes that come in parts.
#[derive(Clone)]
pub struct Sum {
    lanes: [u64; 8],
    len: u64,
    /// The bytes not yet in the lanes, 1 to [`ROUND`] of them once there were any, after the stripe before them.
    tail: [u8; STRIPE + ROUND],
    held: usize,
}

impl Default for Sum {
    fn default() -> Sum {
        Sum { lanes: START, len: 0, tail: [0; STRIPE + ROUND], held: 0 }
    }
}

impl Sum {
    /// Takes in the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        // The last round is finished in another way than the others, so one stays back until there is more.
        if self.held + bytes.len() <= ROUND {
            return self.hold(bytes);
        }
        if self.held > 0 {
            let (first, rest) = bytes.split_at(ROUND - self.held);
            self.hold(first);
            rounds(&mut self.lanes, &self.tail[STRIPE..]);
            self.keep_stripe(ROUND);
            bytes = rest;
        }
        let whole = (bytes.len() - 1) / ROUND * ROUND;
        let (now, rest) = bytes.split_at(whole);
        rounds(&mut self.lanes, now);
        if let Some(last) = now.len().checked_sub(STRIPE) {
            self.tail[..STRIPE].copy_from_slice(&now[last..]);
        }
        self.held = 0;
        self.hold(rest);
    }

    fn hold(&mut self, bytes: &[u8]) {
        let at = STRIPE + self.held;
        self.tail[at..at + bytes.len()].copy_from_slice(bytes);
        self.held += bytes.len();
    }

    /// The stripe before the position `end` of the held bytes comes before those to come.
    fn keep_stripe(&mut self, end: usize) {
        self.tail.copy_within(end..end + STRIPE, 0);
        self.held = 0;
    }

    /// The sum of all bytes so far; more may follow.
    pub fn digest(&self) -> u64 {
        let tail = &self.tail[STRIPE..STRIPE + self.held];
        if self.len <= SHORT as u64 {
            return xxhash_rust::xxh3::xxh3_64(tail);
        }
        let mut lanes = self.lanes;
        let stripes = (self.held - 1) / STRIPE;
        for (i, stripe) in tail.chunks_exact(STRIPE).take(stripes).enumerate() {
            add(&mut lanes, stripe, 8 * i);
        }
        add(&mut lanes, &self.tail[self.held..STRIPE + self.held], SECRET.len() - STRIPE - 7);
        let start = self.len.wrapping_mul(PRIME64[0]);
        let folded = (0..4).fold(start, |sum, i| {
            let [a, b] = [0, 1].map(|j| lanes[2 * i + j] ^ key(11 + 16 * i + 8 * j));
            let product = a as u128 * b as u128;
            sum.wrapping_add(product as u64 ^ (product >> 64) as u64)
        });
        let mixed = (folded ^ (folded >> 37)).wrapping_mul(0x165667919E3779F9);
        mixed ^ (mixed >> 32)
    }
}

/// XXH3-64 of `bytes`.
pub fn xxh3(bytes: &[u8]) -> u64 {
    let mut sum = Sum::default();
    sum.update(bytes);
    sum.digest()
}

/// Copies `from` to `to`, which has the same length and is not read soon, and returns the XXH3-64 of the bytes. The copy
/// goes around the caches where the CPU can and `to` starts at a multiple of 64 bytes.
pub fn copy_xxh3(from: &[u8], to: &mut [u8]) -> u64 {
    assert_eq!(from.len(), to.len());
    let mut sum = Sum::default();
    for (from, to) in from.chunks(TURN).zip(to.chunks_mut(TURN)) {
        stream(from, to);
        sum.update(from);
    }
    stream_end();
    sum.digest()
}

fn key(at: usize) -> u64 {
    word(&SECRET, at)
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    let Range { start, end } = at..at + 8;
    u64::from_le_bytes(bytes[start..end].try_into().unwrap_or_default())
}

/// Adds one stripe with the secret from `at` on.
#[inline(always)]
fn add(lanes: &mut [u64; 8], stripe: &[u8], at: usize) {
    let data: [u64; 8] = std::array::from_fn(|i| word(stripe, 8 * i));
    for i in 0..8 {
        let mixed = data[i] ^ word(&SECRET, at + 8 * i);
        let product = (mixed & 0xffff_ffff) * (mixed >> 32);
        lanes[i] = lanes[i].wrapping_add(product).wrapping_add(data[i ^ 1]);
    }
}

#[inline(always)]
fn rounds_any(lanes: &mut [u64; 8], bytes: &[u8]) {
    let mut now = *lanes;
    for round in bytes.chunks_exact(ROUND) {
        for i in 0..16 {
            add(&mut now, &round[STRIPE * i..STRIPE * (i + 1)], 8 * i);
        }
        for (i, lane) in now.iter_mut().enumerate() {
            let mixed = *lane ^ (*lane >> 47) ^ word(&SECRET, SECRET.len() - STRIPE + 8 * i);
            *lane = mixed.wrapping_mul(PRIME32[0]);
        }
    }
    *lanes = now;
}

/// Adds whole rounds.
fn rounds(lanes: &mut [u64; 8], bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
        fn avx512(lanes: &mut [u64; 8], bytes: &[u8]) {
            use std::arch::x86_64::*;
            // SAFETY: the loads are of 64 bytes inside the secret (128 + 64 = 192 at most), of the lanes and of a round.
            unsafe {
                let load = |p: *const u8| _mm512_loadu_si512(p.cast());
                let keys: [__m512i; 16] = std::array::from_fn(|i| load(SECRET.as_ptr().add(8 * i)));
                let last = load(SECRET.as_ptr().add(SECRET.len() - STRIPE));
                let prime = _mm512_set1_epi64(PRIME32[0] as i64);
                // Two sums, so that neither waits for the other's addition.
                let mut sum = load(lanes.as_ptr().cast());
                for round in bytes.chunks_exact(ROUND) {
                    let mut plain = _mm512_setzero_si512();
                    for (i, key) in keys.iter().enumerate() {
                        let data = load(round.as_ptr().add(STRIPE * i));
                        let mixed = _mm512_xor_si512(data, *key);
                        let product = _mm512_mul_epu32(mixed, _mm512_srli_epi64::<32>(mixed));
                        plain = _mm512_add_epi64(plain, _mm512_shuffle_epi32::<0x4E>(data));
                        sum = _mm512_add_epi64(sum, product);
                    }
                    sum = _mm512_add_epi64(sum, plain);
                    sum = _mm512_ternarylogic_epi64::<0x96>(sum, _mm512_srli_epi64::<47>(sum), last);
                    sum = _mm512_mullo_epi64(sum, prime);
                }
                _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum);
            }
        }
        #[target_feature(enable = "avx2")]
        fn avx2(lanes: &mut [u64; 8], bytes: &[u8]) {
            rounds_any(lanes, bytes)
        }
        if is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the CPU has the features, of which these two include the foundation.
            return unsafe { avx512(lanes, bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(lanes, bytes) };
        }
    }
    rounds_any(lanes, bytes)
}

/// Copies around the caches; [`stream_end`] must follow before the bytes are handed on.
fn stream(from: &[u8], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(from: &[u8], to: &mut [u8]) {
            use std::arch::x86_64::*;
            for (f, t) in from.chunks_exact(64).zip(to.chunks_exact_mut(64)) {
                // SAFETY: 64 bytes each, and the caller has seen to it that `to` is aligned.
                unsafe { _mm512_stream_si512(t.as_mut_ptr().cast(), _mm512_loadu_si512(f.as_ptr().cast())) };
            }
        }
        if to.as_ptr().addr().is_multiple_of(64) && is_x86_feature_detected!("avx512f") {
            let whole = from.len() / 64 * 64;
            // SAFETY: the CPU has the feature.
            unsafe { avx512(&from[..whole], &mut to[..whole]) };
            to[whole..].copy_from_slice(&from[whole..]);
            return;
        }
    }
    to.copy_from_slice(from);
}

/// Makes what [`stream`] has written visible in order.
fn stream_end() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n as u64).map(|i| (i.wrapping_mul(0x9E3779B97F4A7C15) >> 40) as u8).collect()
    }

    #[test]
    fn sums_are_those_of_the_reference_at_every_length() {
        let all = bytes(9000);
        for n in (0..2600).chain([4095, 4096, 4097, 8191, 8192, 8193, 9000]) {
            assert_eq!(xxh3(&all[..n]), xxh3_64(&all[..n]), "{n} bytes");
        }
    }

    #[test]
    fn parts_of_any_size_make_the_same_sum() {
        let all = bytes(70_001);
        for size in [1, 4, 63, 64, 65, 1000, 1023, 1024, 1025, 4096, 30_000] {
            let mut sum = Sum::default();
            all.chunks(size).for_each(|part| sum.update(part));
            assert_eq!(sum.digest(), xxh3_64(&all), "parts of {size}");
        }
    }

    #[test]
    fn every_unit_adds_alike() {
        let all = bytes(8 * ROUND);
        let (mut a, mut b) = (START, START);
        rounds(&mut a, &all);
        rounds_any(&mut b, &all);
        assert_eq!(a, b);
    }

    #[test]
    fn copies_are_whole_and_summed() {
        let from = bytes(50_003);
        let mut to = vec![0; from.len() + 64];
        for at in [0, 1, 33] {
            for n in [0, 1, 63, 64, 65, 20_000, 50_003] {
                assert_eq!(copy_xxh3(&from[..n], &mut to[at..at + n]), xxh3_64(&from[..n]));
                assert_eq!(to[at..at + n], from[..n]);
            }
        }
    }
}
