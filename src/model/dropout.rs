//! Which elements a training step drops: a pure function of the token, the column and the layer, so that every topology, every cut
//! into micro-batches, a recomputation and a resumed run drop the same. 32-bit hash of two words by the finaliser "lowbias32"
//! (github.com/skeeto/hash-prospector), made with tensor operations wherever the tensors are.

use tch::{Kind, Tensor};

/// What tells the token at `place` of sample `sample` from all others of a run with `seed`.
pub fn token(seed: u64, sample: u64, place: u64) -> i32 {
    mix(mix(seed ^ 0x5851_F42D_4C95_7F2D)
        .wrapping_add(sample)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(mix(place))) as i32
}

/// [n,cols] of `kind`, 0 with probability `p`, else 1/(1−p): for tokens [n] i32 and the columns `first..first + cols` of the input
/// that `salt` names.
pub fn mask(tokens: &Tensor, salt: u64, first: i64, cols: i64, p: f64, kind: Kind) -> Tensor {
    let columns: Vec<i32> = (first..first + cols).map(|c| mix(salt.wrapping_add(c as u64)) as i32).collect();
    let columns = Tensor::from_slice(&columns).to_device(tokens.device());
    let mut x = tokens.unsqueeze(1).bitwise_xor_tensor(&columns.unsqueeze(0));
    // The words differ in 32 bits each; arithmetic shifts become logical ones by the masks.
    for (shift, factor) in [(16, 0x7feb_352du32), (15, 0x846c_a68b)] {
        x = shifted_xor(&x, shift) * (factor as i32 as i64);
    }
    let x = shifted_xor(&x, 16).bitwise_and(i32::MAX as i64);
    let keep = x.ge((p * (i32::MAX as f64 + 1.0)).round().min(i32::MAX as f64) as i64);
    keep.to_kind(kind) * (1.0 / (1.0 - p))
}

/// x ^ (x >> shift), the shift without sign.
fn shifted_xor(x: &Tensor, shift: i64) -> Tensor {
    let low = x.bitwise_right_shift_tensor_scalar(shift).bitwise_and((1i64 << (32 - shift)) - 1);
    x.bitwise_xor_tensor(&low)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: u64) -> Tensor {
        Tensor::from_slice(&(0..n).map(|i| token(7, i / 64, i % 64)).collect::<Vec<_>>())
    }

    #[test]
    fn the_share_is_right_and_neighbours_are_independent() {
        let m = mask(&tokens(1000), 3, 0, 500, 0.1, Kind::Float);
        let kept = m.gt(0.0).to_kind(Kind::Double);
        let mean = |t: &Tensor| t.mean(Kind::Double).double_value(&[]);
        // Five standard errors of 500,000 draws.
        assert!((mean(&kept) - 0.9).abs() < 5.0 * (0.09f64 / 5e5).sqrt(), "{}", mean(&kept));
        assert!((mean(&m) - 1.0).abs() < 0.01);
        let d = &kept - 0.9;
        for (dim, n) in [(0, 1000), (1, 500)] {
            let c = mean(&(d.narrow(dim, 0, n - 1) * d.narrow(dim, 1, n - 1))) / 0.09;
            assert!(c.abs() < 5.0 / (5e5f64).sqrt(), "dim {dim}: correlation {c}");
        }
        let per_row = kept.mean_dim(1, false, Kind::Double);
        assert!((per_row.std(false).double_value(&[]) - (0.09f64 / 500.0).sqrt()).abs() < 0.002);
    }

    #[test]
    fn slices_are_those_of_the_whole() {
        let (t, kind) = (tokens(40), Kind::Float);
        let whole = mask(&t, 9, 0, 32, 0.5, kind);
        assert!(mask(&t.narrow(0, 10, 20), 9, 8, 16, 0.5, kind).equal(&whole.narrow(0, 10, 20).narrow(1, 8, 16)));
        assert!(!mask(&t, 10, 0, 32, 0.5, kind).equal(&whole));
        let columns = whole.narrow(1, 0, 1).equal(&whole.narrow(1, 1, 1));
        assert!(!columns);
    }
}
