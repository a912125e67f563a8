//! Rotary tables against an independent formula in double precision.

use super::{config, oracle};
use crate::config::ModelConfig;
use crate::model::Rope;
use tch::{Device, Kind, Tensor};

fn llama31(scaled: bool) -> ModelConfig {
    let mut m = config(false);
    m.head_dim = Some(128);
    m.rope_theta = 500_000.0;
    match m.rope_scaling.as_mut() {
        Some(r) if scaled => r.original_max_position_embeddings = 8192,
        _ => m.rope_scaling = None,
    }
    m
}

#[test]
fn tables_match_the_formula() {
    let len = 3000;
    for m in [config(false), llama31(true), llama31(false)] {
        let rope = Rope::new(&m, 0, len, Device::Cpu);
        let angles = oracle::angles(&m, len as i64);
        // An fp32 angle of up to 3000 radians is known to its own rounding, and so are its cosine and sine.
        let slack = (&angles * 4e-7 + 1e-6).abs();
        for (table, exact) in [(&rope.cos, angles.cos()), (&rope.sin, angles.sin())] {
            let error = (table.to_kind(Kind::Double) - exact).abs();
            assert!(bool::try_from(error.le_tensor(&slack).all()).unwrap());
        }
    }
}

#[test]
fn scaling_slows_low_frequencies_keeps_high_ones_and_blends_between() {
    let ratio = super::super::rope::inverse_frequencies(&llama31(true))
        / super::super::rope::inverse_frequencies(&llama31(false));
    let ratio: Vec<f64> = Vec::try_from(ratio.to_kind(Kind::Double)).unwrap();
    assert!(ratio[0] == 1.0 && (ratio[63] - 1.0 / 8.0).abs() < 1e-6, "{ratio:?}");
    assert!(ratio.windows(2).all(|w| w[0] >= w[1]));
    let between = ratio.iter().filter(|&&r| r > 0.126 && r < 0.999).count();
    assert!((4..16).contains(&between), "{between} frequencies are blended");
}

#[test]
fn later_positions_continue_the_table() {
    let m = config(false);
    let all = Rope::new(&m, 0, 50, Device::Cpu);
    let tail = Rope::new(&m, 33, 17, Device::Cpu);
    assert_eq!(all.slice(33, 17).cos, tail.cos);
    assert_eq!(all.slice(33, 17).sin, tail.sin);
    assert_eq!(all.cos.get(0), Tensor::ones([5], (Kind::Float, Device::Cpu)));
}
