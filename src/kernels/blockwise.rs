//! Values in 8 or 4 bits: runs of 64 share a scale, the largest magnitude among them, and each value is a code that names a level between
//! −1 and 1: `value = level[code] · scale`, a product in fp32 that is rounded once where the result is bf16.
//!
//! Two sets of levels ([`BlockFormat`]): k/127 for whole k from −127 to 127, and the sixteen of NF4, quantiles of a normal distribution
//! (QLoRA, arXiv:2305.14314 §3 and appendix E; the same as bitsandbytes'). A value becomes the nearest level; halfway between two the even k,
//! of NF4's the lower one. A run with a value that is not finite becomes NaN as a whole.

use super::cpu::blockwise as cpu;
use super::host::{bytes, bytes_mut};
use crate::config::BlockFormat;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Values that share a scale.
const RUN: usize = BlockFormat::RUN;
/// Values that are made at a time on a device: temporary tensors take 16 bytes a value.
const PIECE: usize = if cfg!(test) { 1 << 12 } else { 4 << 20 };

/// Values in one buffer of bytes: codes, then scales (fp32).
pub struct Blockwise {
    format: BlockFormat,
    len: usize,
    /// [bytes] u8.
    stored: Tensor,
    /// Levels by the byte of codes, [256, values of a byte] f32, on the device.
    levels: Tensor,
}

impl Blockwise {
    /// Room for `len` values, a multiple of [`RUN`].
    pub fn new(format: BlockFormat, len: usize, device: Device) -> Blockwise {
        assert!(len.is_multiple_of(RUN), "{len} values are no whole runs of {RUN}");
        let stored = Tensor::zeros([Blockwise::bytes(format, len) as i64], (Kind::Uint8, device));
        let levels = Tensor::from_slice(&cpu::levels_of_bytes(format).concat()).view([256, -1]).to_device(device);
        Blockwise { format, len, stored, levels }
    }

    /// Bytes that `len` values take.
    pub fn bytes(format: BlockFormat, len: usize) -> usize {
        len * format.bits() / 8 + len / RUN * size_of::<f32>()
    }

    /// Values that there is room for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is room for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Everything that is stored, [bytes] u8.
    pub fn stored(&self) -> &Tensor {
        &self.stored
    }

    /// Codes and scales of the values `range`, whole runs: two views of bytes.
    pub fn parts(&self, range: &Range<usize>) -> [Tensor; 2] {
        assert!(range.start.is_multiple_of(RUN) && range.end.is_multiple_of(RUN), "{range:?} are no whole runs");
        let part = |first: usize, start: usize, end: usize| {
            self.stored.narrow(0, (first + start) as i64, (end - start) as i64)
        };
        let codes = |n: usize| n * self.format.bits() / 8;
        let scales = |n: usize| n / RUN * size_of::<f32>();
        [part(0, codes(range.start), codes(range.end)), part(codes(self.len), scales(range.start), scales(range.end))]
    }

    /// Stores `values` from place `at` on, whole runs.
    pub fn set(&mut self, at: usize, values: &[f32]) {
        let mut codes = vec![0; values.len() * self.format.bits() / 8];
        let mut scales = vec![0.0; values.len() / RUN];
        cpu::encode(self.format, values, &mut codes, &mut scales);
        let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_ne_bytes()).collect();
        for (mut part, bytes) in self.parts(&(at..at + values.len())).into_iter().zip([&codes, &scales]) {
            match part.device() {
                Device::Cpu => bytes_mut(&mut part).copy_from_slice(bytes),
                _ => part.copy_(&Tensor::from_slice(bytes)),
            }
        }
    }

    /// All values into `out`, [len] of either dtype T.
    pub fn get(&self, out: &Tensor) {
        let [codes, scales] = self.parts(&(0..self.len));
        match (out.device(), out.kind()) {
            (Device::Cpu, Kind::BFloat16) => cpu::decode::<half::bf16>(self.format, bytes(&codes), bytes(&scales), out),
            (Device::Cpu, Kind::Float) => cpu::decode::<f32>(self.format, bytes(&codes), bytes(&scales), out),
            _ => None,
        }
        .unwrap_or_else(|| self.get_in_pieces(&codes, &scales, out))
    }

    /// The same by libtorch's operations, which any device has.
    pub(super) fn get_in_pieces(&self, codes: &Tensor, scales: &Tensor, out: &Tensor) {
        let scales = scales.view_dtype(Kind::Float);
        let a_byte = 8 / self.format.bits();
        for start in (0..self.len).step_by(PIECE) {
            let n = PIECE.min(self.len - start);
            let codes = codes.narrow(0, (start / a_byte) as i64, (n / a_byte) as i64).to_kind(Kind::Int);
            let mut values = self.levels.index_select(0, &codes).view([-1, RUN as i64]);
            values *= scales.narrow(0, (start / RUN) as i64, (n / RUN) as i64).unsqueeze(1);
            out.narrow(0, start as i64, n as i64).copy_(&values.view(-1));
        }
    }
}

/// What values become that are stored and made again; `values` are whole runs.
pub fn rounded_(format: BlockFormat, values: &mut [f32]) {
    let mut codes = vec![0; values.len() * format.bits() / 8];
    let mut scales = vec![0.0; values.len() / RUN];
    cpu::encode(format, values, &mut codes, &mut scales);
    cpu::decode_runs(format, &codes, &scales, values);
}
