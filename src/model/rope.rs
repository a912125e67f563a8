//! Rotary position embedding (arXiv:2104.09864): tables of cosines and sines, with Llama 3.1's frequency scaling.
//!
//! Computed in fp32 with the operations, and in the order, that Hugging Face transformers uses: the tables agree to the
//! last bit, so that a position far beyond the original context is rotated by the same angle in both.

use crate::config::{ModelConfig, RopeScaling};
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Tables for consecutive positions.
#[derive(Debug)]
pub struct Rope {
    /// [S, D/2] f32.
    pub cos: Tensor,
    /// [S, D/2] f32.
    pub sin: Tensor,
}

impl Rope {
    /// Tables for the positions `start..start + len`. Memory: 4·D bytes a position.
    pub fn new(model: &ModelConfig, start: usize, len: usize, device: Device) -> Rope {
        let positions = Tensor::arange_start(start as i64, (start + len) as i64, (Kind::Float, Device::Cpu));
        let angles = positions.unsqueeze(1) * inverse_frequencies(model).unsqueeze(0);
        Rope { cos: angles.cos().to_device(device), sin: angles.sin().to_device(device) }
    }

    /// The `len` positions from `start` on, counted from the first of this table; views.
    pub fn slice(&self, start: usize, len: usize) -> Rope {
        let rows = |t: &Tensor| t.narrow(0, start as i64, len as i64);
        Rope { cos: rows(&self.cos), sin: rows(&self.sin) }
    }

    /// S.
    pub fn len(&self) -> usize {
        self.cos.size()[0] as usize
    }

    /// Whether there are no positions in the tables.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Radians per position of each of the D/2 pairs: `theta^(-2i/D)`, scaled where the model says so. [D/2] f32 on the CPU.
pub fn inverse_frequencies(model: &ModelConfig) -> Tensor {
    let d = model.head_dim() as i64;
    let exponent = Tensor::arange_start_step(0, d, 2, (Kind::Float, Device::Cpu)) / d as f64;
    let inv_freq = Tensor::pow_scalar(model.rope_theta, &exponent).reciprocal();
    match &model.rope_scaling {
        Some(scaling) => llama3(&inv_freq, scaling),
        None => inv_freq,
    }
}

/// Llama 3.1: a pair that turns fewer than `low_freq_factor` times over the original context is slowed by `factor`, one
/// that turns more than `high_freq_factor` times is kept, and the band between goes linearly from one to the other.
fn llama3(inv_freq: &Tensor, s: &RopeScaling) -> Tensor {
    let context = s.original_max_position_embeddings as f64;
    let wavelength = inv_freq.reciprocal() * (2.0 * PI);
    let low = wavelength.gt(context / s.low_freq_factor);
    let high = wavelength.lt(context / s.high_freq_factor);
    let slowed = (inv_freq / s.factor).where_self(&low, inv_freq);
    let turns = wavelength.reciprocal() * context;
    let smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    let blend: Tensor = (1.0 - &smooth) * &slowed / s.factor + &smooth * &slowed;
    let between = low.logical_or(&high).logical_not();
    blend.where_self(&between, &slowed)
}
