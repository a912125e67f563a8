//! A moment of AdamW on a flat range of parameters: in fp32, or in 8 bits.

use crate::config::MomentFormat;
use crate::kernels::moments::{Moment8, MomentKind};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// How it lies.
pub enum StoredMoment {
    /// [len] f32.
    Full(Tensor),
    /// In 8 bits.
    Few(Moment8),
}

impl StoredMoment {
    /// Zeros for `len` parameters.
    pub fn zeros(format: MomentFormat, kind: MomentKind, len: usize, device: Device) -> StoredMoment {
        match format {
            MomentFormat::Fp32 => StoredMoment::Full(Tensor::zeros([len as i64], (Kind::Float, device))),
            MomentFormat::Bits8 => StoredMoment::Few(Moment8::zeros(kind, len, device)),
        }
    }

    /// The elements `range`, fp32: a view, or a copy of what is in 8 bits.
    pub fn get(&self, range: &Range<usize>) -> Tensor {
        match self {
            StoredMoment::Full(all) => all.narrow(0, range.start as i64, range.len() as i64),
            StoredMoment::Few(few) => few.get(range),
        }
    }

    /// The same, where it is a copy in host memory.
    pub fn at_rest(&self, range: &Range<usize>) -> Tensor {
        match self {
            StoredMoment::Full(_) => self.get(range),
            StoredMoment::Few(few) => few.on_host(range),
        }
    }

    /// Takes over what was written into [`StoredMoment::get`] from element `start` on, whole runs.
    pub fn keep(&mut self, start: usize, values: &Tensor) {
        if let StoredMoment::Few(few) = self {
            few.set(start, values);
        }
    }
}
