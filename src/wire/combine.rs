//! The arithmetic of reductions: several buffers into one, element by element, in the order given.
//!
//! Every path of a wire calls it with the inputs in rank order, so that a sum has the same bits whatever path, chunk or
//! bucket it went through. bf16 is combined in fp32 and rounded once.

use crate::world::Op;
use half::bf16;
use tch::Kind;

/// Elements combined at a time: the partial results stay in the first-level cache.
const BLOCK: usize = 2048;

/// Bytes of one element of the dtypes that a wire carries.
pub(super) fn element_size(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Float => Some(4),
        Kind::Double | Kind::Int64 => Some(8),
        Kind::Uint8 => Some(1),
        Kind::BFloat16 => Some(2),
        _ => None,
    }
}

/// `outputs[*][i] = inputs[0][i] ∘ inputs[1][i] ∘ …` for `i` in `0..n`, combined from the left.
///
/// # Safety
/// All pointers are aligned for `kind` and valid for `n` elements; an output either is one of the inputs or overlaps
/// none of them; nobody else writes any of them meanwhile.
pub(super) unsafe fn combine(kind: Kind, op: Op, inputs: &[*const u8], outputs: &[*mut u8], n: usize) {
    match (kind, op) {
        (Kind::Float, Op::Sum) => blocks::<f32, f32>(inputs, outputs, n, |a, b| a + b),
        (Kind::Float, Op::Max) => blocks::<f32, f32>(inputs, outputs, n, max_f32),
        (Kind::Double, Op::Sum) => blocks::<f64, f64>(inputs, outputs, n, |a, b| a + b),
        (Kind::Double, Op::Max) => blocks::<f64, f64>(inputs, outputs, n, max_f64),
        (Kind::Int64, Op::Sum) => blocks::<i64, i64>(inputs, outputs, n, i64::wrapping_add),
        (Kind::Int64, Op::Max) => blocks::<i64, i64>(inputs, outputs, n, i64::max),
        (Kind::Uint8, Op::Sum) => blocks::<u8, u8>(inputs, outputs, n, u8::wrapping_add),
        (Kind::Uint8, Op::Max) => blocks::<u8, u8>(inputs, outputs, n, u8::max),
        (Kind::BFloat16, Op::Sum) => blocks::<bf16, f32>(inputs, outputs, n, |a, b| a + b),
        (Kind::BFloat16, Op::Max) => blocks::<bf16, f32>(inputs, outputs, n, max_f32),
        _ => unreachable!("the wire refuses dtypes without an element_size"),
    }
}

/// A stored element and the type it is combined in.
trait Element<Acc>: Copy {
    fn widen(self) -> Acc;
    fn narrow(acc: Acc) -> Self;
}

impl<T: Copy> Element<T> for T {
    fn widen(self) -> T {
        self
    }
    fn narrow(acc: T) -> T {
        acc
    }
}

impl Element<f32> for bf16 {
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    /// To nearest, ties to even. Written without a branch so that it vectorises.
    fn narrow(acc: f32) -> bf16 {
        let bits = acc.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        bf16::from_bits(if acc.is_nan() { 0x7FC0 } else { rounded as u16 })
    }
}

/// NaN wins, as in `torch.maximum`: a maximum over ranks must not hide it.
fn max_f32(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() {
        a
    } else {
        b
    }
}

fn max_f64(a: f64, b: f64) -> f64 {
    if a >= b || a.is_nan() {
        a
    } else {
        b
    }
}

/// # Safety
/// See [`combine`].
unsafe fn blocks<T: Element<Acc>, Acc: Copy + Default>(
    inputs: &[*const u8], outputs: &[*mut u8], n: usize, op: impl Fn(Acc, Acc) -> Acc,
) {
    let mut acc = [Acc::default(); BLOCK];
    for at in (0..n).step_by(BLOCK) {
        let acc = &mut acc[..BLOCK.min(n - at)];
        let input = |p: *const u8| std::slice::from_raw_parts(p.cast::<T>().add(at), acc.len());
        let first = input(inputs[0]);
        let rest = inputs[1..].iter().map(|&p| input(p)).collect::<Vec<_>>();
        for (a, x) in acc.iter_mut().zip(first) {
            *a = Element::<Acc>::widen(*x);
        }
        for x in rest {
            for (a, x) in acc.iter_mut().zip(x) {
                *a = op(*a, Element::<Acc>::widen(*x));
            }
        }
        for &out in outputs {
            let out = out.cast::<T>().add(at);
            for (i, a) in acc.iter().enumerate() {
                *out.add(i) = T::narrow(*a);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T: Copy>(kind: Kind, op: Op, inputs: &[Vec<T>]) -> Vec<T> {
        let mut out = inputs[0].clone();
        let inputs: Vec<*const u8> = inputs.iter().map(|v| v.as_ptr().cast()).collect();
        // SAFETY: vectors of equal length; the output is a copy.
        unsafe { combine(kind, op, &inputs, &[out.as_mut_ptr().cast()], out.len()) };
        out
    }

    #[test]
    fn sums_from_the_left() {
        let x: Vec<Vec<f32>> = vec![vec![1e8; 5000], vec![1.0; 5000], vec![-1e8; 5000]];
        assert_eq!(run(Kind::Float, Op::Sum, &x), vec![0.0; 5000]);
        assert_eq!(run(Kind::Uint8, Op::Sum, &[vec![250u8; 3], vec![10; 3]]), vec![4; 3]);
    }

    #[test]
    fn a_maximum_keeps_nan() {
        let nan = f32::NAN;
        let out = run(Kind::Float, Op::Max, &[vec![1.0, nan, 3.0], vec![2.0, 5.0, nan]]);
        assert!(out[0] == 2.0 && out[1].is_nan() && out[2].is_nan());
    }

    #[test]
    fn bf16_rounds_once_like_half() {
        let a: Vec<bf16> = (0..4096).map(|i| bf16::from_f32(i as f32 * 0.37 - 700.0)).collect();
        let b: Vec<bf16> = (0..4096).map(|i| bf16::from_f32(i as f32 * 0.011 + 1e-3)).collect();
        let c: Vec<bf16> = (0..4096).map(|i| bf16::from_f32(1e-2 * i as f32)).collect();
        let want: Vec<bf16> =
            (0..4096).map(|i| bf16::from_f32(a[i].to_f32() + b[i].to_f32() + c[i].to_f32())).collect();
        assert_eq!(run(Kind::BFloat16, Op::Sum, &[a, b, c]), want);
        let inf = run(Kind::BFloat16, Op::Sum, &[vec![bf16::INFINITY, bf16::NAN], vec![bf16::ONE, bf16::ONE]]);
        assert!(inf[0] == bf16::INFINITY && inf[1].is_nan());
    }
}
