//! Moments in 8 bits: near what was stored, the same codes again, the same bits by libtorch's operations.

use super::{randn, same};
use crate::kernels::host::floats;
use crate::kernels::moments::{Moment8, MomentKind, RUN};
use tch::{Device, Kind, Tensor};

const KINDS: [MomentKind; 2] = [MomentKind::Mean, MomentKind::Square];

/// Values over many orders of magnitude; of squares none below zero.
fn values(kind: MomentKind, len: usize) -> Tensor {
    let x = randn(3, &[len as i64], Kind::Float) * (randn(4, &[len as i64], Kind::Float) * 3.0).exp() * 1e-4;
    match kind {
        MomentKind::Mean => x,
        MomentKind::Square => x.square(),
    }
}

#[test]
fn what_comes_back_is_near_and_comes_back_again() {
    for kind in KINDS {
        let len = 300 * RUN + 32;
        let x = values(kind, len);
        let mut m = Moment8::zeros(kind, len, Device::Cpu);
        assert!(floats(&m.get(&(0..len))).iter().all(|v| *v == 0.0));
        m.set(0, &x);
        let once = m.get(&(0..len));
        m.set(0, &once);
        assert!(same(&m.get(&(0..len)), &once), "{kind:?}");
        assert!(same(&m.get(&(100..9000)), &once.narrow(0, 100, 8900)));
        for (x, y) in floats(&x).chunks(RUN).zip(floats(&once).chunks(RUN)) {
            let of = |v: f32| if kind == MomentKind::Square { v.sqrt() } else { v };
            let top = x.iter().fold(0f32, |t, v| t.max(of(*v).abs()));
            for (a, b) in x.iter().zip(y).map(|(a, b)| (of(*a), of(*b))) {
                // Half a level, at the top of means three quarters: of the uppermost decade 0.9/64 or 0.9/128 wide, lower ones in proportion.
                let (decade, n) = (
                    (a.abs() / top).max(1e-7).log10().floor() as i32 + 1,
                    [64.0, 128.0][(kind == MomentKind::Square) as usize],
                );
                let wide = 0.9 * 10f32.powi(decade) / (n * 2f32.powi(decade));
                assert!((a - b).abs() <= (0.76 * wide + 1.2e-6) * top, "{kind:?}: {a} became {b} of {top}");
                assert!(kind == MomentKind::Mean || (a > 0.0) == (b > 0.0), "{a} became {b}");
            }
        }
    }
}

#[test]
fn libtorch_finds_the_same_codes() {
    for kind in KINDS {
        let len = 70 * RUN + 5;
        let x = values(kind, len);
        // Runs of zeros, and the largest at either sign.
        let _ = x.narrow(0, 0, 2 * RUN as i64).zero_();
        let _ = x.narrow(0, RUN as i64, 1).fill_(if kind == MomentKind::Mean { -2.0 } else { 2.0 });
        let mut m = Moment8::zeros(kind, len, Device::Cpu);
        m.set(0, &x);
        let (codes, scales) = m.encoded_by_libtorch(&x);
        let want = m.decoded_by_libtorch(&codes, &scales).narrow(0, 0, len as i64);
        assert!(same(&m.get(&(0..len)), &want), "{kind:?}");
        assert_eq!(
            want.double_value(&[RUN as i64]),
            if kind == MomentKind::Mean { -2.0 } else { (2f32.sqrt() * 2f32.sqrt()) as f64 }
        );
    }
}
