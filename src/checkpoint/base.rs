//! What tells whether frozen weights are those that a checkpoint belongs to: a sum over all their elements, each mixed with its
//! place, so that ranks add up what they read and the result is the same however the model is cut.

use crate::checkpoint::meta::hex;
use crate::layout::Param;
use xxhash_rust::xxh3::xxh3_64;

/// A sum under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseSum(u64);

impl BaseSum {
    /// Adds the local elements `start..start + values.len()` of a parameter's slice.
    pub fn add(&mut self, param: &Param, start: usize, values: &[f32]) {
        let width = param.extent.get(1).copied().unwrap_or(1).max(1);
        let (cols, left) = match param.shape.len() {
            2 => (param.shape[1], param.offset[1]),
            _ => (1, 0),
        };
        let key = xxh3_64(param.name.as_bytes());
        let (mut at, mut rest) = (start, values);
        while !rest.is_empty() {
            let (row, col) = (at / width, at % width);
            let run = if width == cols { rest.len() } else { rest.len().min(width - col) };
            let first = ((param.offset[0] + row) * cols + left + col) as u64;
            for (i, v) in rest[..run].iter().enumerate() {
                self.0 = self.0.wrapping_add(mix(key, first + i as u64, v.to_bits()));
            }
            (at, rest) = (at + run, &rest[run..]);
        }
    }

    /// In words that add up over ranks without loss as f64: 16 bits each, the lowest first.
    pub fn words(self) -> [f64; 4] {
        std::array::from_fn(|i| ((self.0 >> (16 * i)) & 0xffff) as f64)
    }

    /// From the sums of the words of all ranks.
    pub fn of_words(words: &[f64]) -> BaseSum {
        BaseSum(words.iter().enumerate().fold(0u64, |s, (i, w)| s.wrapping_add((*w as u64) << (16 * i))))
    }

    /// As it is written down.
    pub fn text(self) -> String {
        hex(self.0)
    }
}

/// One element; zeros count by their place.
#[inline(always)]
fn mix(key: u64, place: u64, bits: u32) -> u64 {
    let z = (place ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(bits as u64);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Kind;

    fn param(offset: [usize; 2], extent: [usize; 2]) -> Param {
        let (shape, kind, name) = (vec![6, 5], Kind::Matrix, "m".to_string());
        Param { name, kind, shape, offset: offset.to_vec(), extent: extent.to_vec(), start: 0, copies: 1, owner: true }
    }

    #[test]
    fn slices_add_up_to_the_whole_and_any_change_shows() {
        let values: Vec<f32> = (0..30).map(|i| i as f32 * 0.37 - 3.0).collect();
        let sum = |values: &[f32]| {
            let mut s = BaseSum::default();
            s.add(&param([0, 0], [6, 5]), 0, values);
            s
        };
        let whole = sum(&values);
        let mut words = [0.0; 4];
        for (offset, extent) in [([0, 0], [6, 2]), ([0, 2], [4, 3]), ([4, 2], [2, 3])] {
            let p = param(offset, extent);
            let local: Vec<f32> =
                (0..p.len()).map(|i| values[(offset[0] + i / extent[1]) * 5 + offset[1] + i % extent[1]]).collect();
            // Each slice in two flat ranges, by two ranks.
            for (start, part) in [(0, &local[..3]), (3, &local[3..])] {
                let mut s = BaseSum::default();
                s.add(&p, start, part);
                words.iter_mut().zip(s.words()).for_each(|(w, x)| *w += x);
            }
        }
        assert_eq!(BaseSum::of_words(&words), whole);
        let mut other = values.clone();
        other.swap(3, 4);
        assert_ne!(sum(&other), whole);
        other = values.clone();
        other[29] = f32::from_bits(other[29].to_bits() ^ 1);
        assert_ne!(sum(&other), whole);
    }
}
