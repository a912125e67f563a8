//! Which tokens the k-th draw from a corpus reads: a pure function of (seed, corpus, draw), with no stored shuffle.
//!
//! A corpus of T tokens is cut into n = ⌊(T − 1) / S⌋ samples of S + 1 tokens; neighbours share one token, so that every
//! token but the first is a target once an epoch. Draw k belongs to epoch ⌊k / n⌋ and reads sample π(k mod n), where π is
//! a permutation of 0..n keyed by (seed, corpus, epoch): a six-round Feistel network over the smallest even number of
//! bits that holds n, walked along its cycle until the value falls inside 0..n (Black and Rogaway, "Ciphers with
//! Arbitrary Finite Domains", 2002). Being a permutation, no sample comes twice in an epoch.

const ROUNDS: u64 = 6;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Next key of a chain: absorbs `value` into `key`.
fn absorb(key: u64, value: u64) -> u64 {
    mix(key.wrapping_add(GOLDEN) ^ value.wrapping_mul(GOLDEN))
}

/// A keyed permutation of `0..len`; `len` is at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The permutation of `0..len` keyed by (`seed`, `corpus`, `epoch`): the same on every host.
    pub fn new(len: u64, seed: u64, corpus: u64, epoch: u64) -> Permutation {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation { len, half_bits: bits.div_ceil(2).max(1), key: absorb(absorb(absorb(0, seed), corpus), epoch) }
    }

    /// Where position `i` goes; `i` must be below the length.
    pub fn at(&self, i: u64) -> u64 {
        debug_assert!(i < self.len);
        let mut x = self.feistel(i);
        // The domain is at most four times the length, so this takes under four turns on average.
        while x >= self.len {
            x = self.feistel(x);
        }
        x
    }

    fn feistel(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 1..=ROUNDS {
            let f = mix(right ^ self.key.wrapping_add(round.wrapping_mul(GOLDEN))) & mask;
            (left, right) = (right, left ^ f);
        }
        (left << self.half_bits) | right
    }
}

/// Samples of `sequence_length` + 1 tokens that a corpus of `tokens` holds.
pub fn sample_count(tokens: u64, sequence_length: u64) -> u64 {
    match sequence_length {
        0 => 0,
        s => tokens.saturating_sub(1) / s,
    }
}

/// The sample that draw `draw` of corpus number `corpus` reads, of `samples` (at least 1).
pub fn shuffled(draw: u64, samples: u64, seed: u64, corpus: u64) -> u64 {
    Permutation::new(samples, seed, corpus, draw / samples).at(draw % samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation() {
        for len in (1..=70).chain([255, 256, 257, 1023, 4096, 10_007]) {
            for epoch in 0..3 {
                let mut seen = vec![false; len as usize];
                for k in 0..len {
                    let s = shuffled(epoch * len + k, len, 7, 0);
                    assert!(
                        !std::mem::replace(&mut seen[s as usize], true),
                        "length {len}: {s} twice in epoch {epoch}"
                    );
                }
            }
        }
    }

    #[test]
    fn keys_matter() {
        let order = |seed, corpus, epoch| {
            let p = Permutation::new(1000, seed, corpus, epoch);
            (0..1000).map(|i| p.at(i)).collect::<Vec<_>>()
        };
        let all = [order(1, 0, 0), order(2, 0, 0), order(1, 1, 0), order(1, 0, 1)];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
                assert!(same < 12, "two orders agree in {same} of 1000 places; chance gives 1");
            }
        }
    }

    /// Neighbours in the order are unrelated and every region of the corpus is met early: mean absolute step of a random
    /// permutation is n/3, and each tenth of the order holds about a tenth of each tenth of the corpus.
    #[test]
    fn looks_random() {
        let n = 100_000u64;
        let p = Permutation::new(n, 99, 0, 0);
        let order: Vec<u64> = (0..n).map(|i| p.at(i)).collect();
        let step = order.windows(2).map(|w| w[0].abs_diff(w[1]) as f64).sum::<f64>() / (n - 1) as f64;
        assert!((step / n as f64 - 1.0 / 3.0).abs() < 0.005, "mean step {step}");
        let mut cells = [[0u32; 10]; 10];
        for (i, &s) in order.iter().enumerate() {
            cells[i * 10 / n as usize][(s * 10 / n) as usize] += 1;
        }
        // Each cell expects 1000 with a standard deviation near 28.
        assert!(cells.iter().flatten().all(|&c| (850..1150).contains(&c)), "{cells:?}");
    }

    #[test]
    fn tiny_corpora_take_every_order() {
        let mut seen = std::collections::HashMap::new();
        for seed in 0..6000 {
            let p = Permutation::new(3, seed, 0, 0);
            *seen.entry([p.at(0), p.at(1), p.at(2)]).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&n| n > 500), "{seen:?}");
    }

    #[test]
    fn counts() {
        assert_eq!(sample_count(0, 4), 0);
        assert_eq!(sample_count(4, 4), 0);
        assert_eq!(sample_count(5, 4), 1);
        assert_eq!(sample_count(8, 4), 1);
        assert_eq!(sample_count(9, 4), 2);
    }

    #[test]
    fn huge_corpora_stay_inside() {
        let p = Permutation::new(u64::MAX / 3, 1, 2, 3);
        assert!((0..1000).all(|i| p.at(u64::MAX / 3 - 1 - i) < u64::MAX / 3));
    }

    /// The vectors printed in docs/data.md, for loaders in other languages.
    #[test]
    fn documented_vectors() {
        let p = Permutation::new(10, 1234, 0, 0);
        let order: Vec<u64> = (0..10).map(|i| p.at(i)).collect();
        assert_eq!(order, DOCUMENTED);
    }

    const DOCUMENTED: [u64; 10] = [1, 8, 9, 3, 6, 5, 2, 4, 0, 7];
}
