//! Products of quantized weights: against f64, each row as alone, and the same bits on every level of CPU.

use super::*;
use crate::kernels::host::floats;
use crate::kernels::quantized::{linear, row_tops, QuantizedMatrix, WeightFormat};

const FORMATS: [WeightFormat; 2] = [WeightFormat::Int8, WeightFormat::Int4];
/// (N, I, O), many of them no multiples of anything.
const SHAPES: [(i64, i64, i64); 7] =
    [(1, 64, 16), (1, 300, 90), (7, 48, 130), (19, 333, 97), (41, 520, 47), (8, 7, 1), (130, 576, 200)];

fn quantized(format: WeightFormat, w: &Tensor) -> QuantizedMatrix {
    let size = w.size();
    let (rows, cols) = (size[0] as usize, size[1] as usize);
    let mut q = QuantizedMatrix::new(format, rows, cols);
    // In two pieces, as the parts of q|k|v come.
    let cut = rows / 3;
    for (first, n) in [(0, cut), (cut, rows - cut)].into_iter().filter(|(_, n)| *n > 0) {
        let part = w.narrow(0, first as i64, n as i64).contiguous();
        let values = floats(&part);
        assert!(q.set(first, values, &row_tops(values, cols)).finite);
    }
    q
}

/// x as the product sees it, in f64: by the words of `cpu::ints`, not by its code.
fn rounded(x: &Tensor) -> Vec<Vec<f64>> {
    let x = x.to_kind(Kind::Float).contiguous();
    let cols = x.size()[1] as usize;
    let group = |values: &[f32]| -> Vec<f64> {
        let top = values.iter().fold(0f32, |top, v| top.max(v.abs()));
        let of = |&v: &f32| (v * (127.0 / top)).round_ties_even() as f64 * (top / 127.0) as f64;
        values.iter().map(of).collect()
    };
    floats(&x).chunks(cols).map(|row| row.chunks(128).flat_map(group).collect()).collect()
}

#[test]
fn products_are_those_of_the_integers_and_each_row_is_as_alone() {
    for format in FORMATS {
        for kind in KINDS {
            for (n, i, o) in SHAPES {
                let (x, w, res) = (randn(1, &[n, i], kind), randn(2, &[o, i], Kind::Float), randn(4, &[n, o], kind));
                let what = format!("{format:?} {kind:?} {n} {i} {o}");
                let q = quantized(format, &w);
                let y = linear(&x, &q, Some(&res));
                let seen = Tensor::from_slice(&rounded(&x).concat()).view([n, i]);
                let weights = q.dequantized().to_kind(Kind::Double);
                let want = seen.matmul(&weights.tr()) + res.to_kind(Kind::Double);
                close(&what, &y, &want.to_kind(kind), 2e-6);
                let far = error(&weights, &w);
                assert!(far < if format == WeightFormat::Int8 { 0.01 } else { 0.15 }, "{what}: weights {far}");
                for (start, len) in (0..n).map(|r| (r, 1)).chain([(0, n.min(5)), (n / 2, n - n / 2)]) {
                    let part = linear(&x.narrow(0, start, len), &q, Some(&res.narrow(0, start, len)));
                    assert!(same(&part, &y.narrow(0, start, len)), "{what}: rows {start}, {len}");
                }
            }
        }
    }
}

#[test]
fn what_integers_can_say_is_said_without_loss() {
    // Multiples of a scale that fp16 has, −8 times it among each 32, as ggml's Q4_0 has them.
    let value =
        |k: i64| (if k % 32 == 5 { -8 } else { k * 7 % 16 - 8 }) as f32 * 0.037_109_375 * (1 + k / 32 % 3) as f32;
    let w: Vec<f32> = (0..48 * 96).map(value).collect();
    let mut q = QuantizedMatrix::new(WeightFormat::Int4, 48, 96);
    let fidelity = q.set(0, &w, &row_tops(&w, 96));
    assert!(fidelity.exact && fidelity.finite);
    assert!(q.dequantized().equal(&Tensor::from_slice(&w).view([48, 96])));
    let other: Vec<f32> = w.iter().map(|x| x + 0.01).collect();
    assert!(!QuantizedMatrix::new(WeightFormat::Int4, 48, 96).set(0, &other, &row_tops(&other, 96)).exact);
    let zeros = vec![0.0; 32];
    for format in FORMATS {
        assert!(QuantizedMatrix::new(format, 1, 32).set(0, &zeros, &[0.0]).exact);
    }
}

#[test]
fn a_part_of_the_columns_has_the_integers_of_the_whole() {
    let w = randn(3, &[40, 512], Kind::Float);
    let tops = row_tops(floats(&w), 512);
    for format in FORMATS {
        let whole = quantized(format, &w).dequantized();
        for first in [0, 256] {
            let part = w.narrow(1, first, 256).contiguous();
            let mut q = QuantizedMatrix::new(format, 40, 256);
            q.set(0, floats(&part), &tops);
            assert!(q.dequantized().equal(&whole.narrow(1, first, 256)), "{format:?} from column {first}");
        }
    }
}

#[test]
fn what_is_no_number_is_told_or_handed_on() {
    for format in FORMATS {
        for bad in [f32::NAN, f32::INFINITY] {
            let w = [1.0, bad, 2.0, 3.0];
            assert!(!QuantizedMatrix::new(format, 1, 4).set(0, &w, &row_tops(&w, 4)).finite, "{format:?} {bad}");
            let q = quantized(format, &randn(1, &[20, 200], Kind::Float));
            let x = randn(2, &[3, 200], Kind::Float);
            let _ = x.get(1).get(150).fill_(bad as f64);
            let y = linear(&x, &q, None).isnan();
            assert_eq!((y.get(1).all().int64_value(&[]), y.get(0).any().int64_value(&[])), (1, 0), "{format:?} {bad}");
        }
    }
    // Values whose inverse is no number count as zero.
    let q = quantized(WeightFormat::Int8, &randn(1, &[4, 64], Kind::Float));
    assert!(linear(&Tensor::full([1, 64], 1e-38, (Kind::Float, Device::Cpu)), &q, None)
        .equal(&Tensor::zeros([1, 4], (Kind::Float, Device::Cpu))));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, w) = (randn(5, &[37, 640], Kind::Float), randn(6, &[400, 640], Kind::Float));
    let before = crate::kernels::parallel::threads();
    for format in FORMATS {
        let made = |threads| {
            crate::kernels::parallel::set_threads(threads);
            linear(&x, &quantized(format, &w), None)
        };
        assert!(same(&made(1), &made(2)) && same(&made(1), &made(3)), "{format:?}");
    }
    crate::kernels::parallel::set_threads(before);
}

/// The sum of all bits of many products, so that processes can be compared; `levels` reads it from the output of this test.
#[test]
fn fingerprint() {
    let mut bits = 0u64;
    for format in FORMATS {
        for kind in KINDS {
            for (n, i, o) in SHAPES {
                let (x, w) = (values(n * i, 1).view([n, i]).to_kind(kind), values(o * i, 2).view([o, i]));
                let y = linear(&x, &quantized(format, &w), None).to_kind(Kind::Float);
                for v in floats(&y.contiguous()) {
                    bits = bits.rotate_left(5) ^ (v.to_bits() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                }
            }
        }
    }
    println!("fingerprint of quantized products: {bits:016x}");
    assert!(bits != 0);
}

/// Numbers in −2..2 that no library makes.
fn values(n: i64, seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 22) as f32) - 2.0
    };
    Tensor::from_slice(&(0..n).map(|_| next()).collect::<Vec<f32>>())
}
