//! Weights in integers, for inference on CPUs: a matrix as it lies in memory, and the product with it. How numbers become integers,
//! and in which order they are multiplied and added, is in `cpu/ints`.
//!
//! Every row of a product has the bits that it has alone, on every CPU and with any number of threads.

use super::cpu::ints::activations::QuantizedRows;
use super::cpu::ints::best::run;
use super::cpu::ints::tiles::{IntPart, Panels};
use super::cpu::ints::weights::{largest, pack_int4, pack_int8, unpacked};
use super::cpu::ints::WIDTH;
pub use super::cpu::ints::{
    weights::{RowFidelity, WeightFormat},
    GROUP,
};
use super::cpu::view::{Real, Rows};
use super::{clock, parallel};
use crate::threads::lock;
use half::bf16;
use std::ops::Range;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// A task's panels stay in the second-level cache while all rows of x pass over them.
const BLOCK_BYTES: usize = 256 << 10;
/// Rows of w that are quantized by one task, in panels.
const PANELS: usize = 8;

/// A matrix [O,I], quantized.
pub struct QuantizedMatrix {
    format: WeightFormat,
    rows: usize,
    cols: usize,
    /// Panel after panel, u8.
    panels: Tensor,
    /// Of each row, filled up to whole panels, f32; int8 only.
    scales: Tensor,
}

/// A pointer that tasks share, each for a part of its own.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: parts do not overlap: said where it is used.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// The range lies in the allocation, and nobody else uses it while the slice lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        std::slice::from_raw_parts_mut(self.0.add(range.start), range.len())
    }
}

impl QuantizedMatrix {
    /// All zeros.
    pub fn new(format: WeightFormat, rows: usize, cols: usize) -> QuantizedMatrix {
        let padded = rows.next_multiple_of(WIDTH);
        let panels = Tensor::empty([(padded / WIDTH * format.panel_bytes(cols)) as i64], (Kind::Uint8, Device::Cpu));
        let _ = panels.shallow_clone().fill_(format.zero() as i64);
        let scales = if format == WeightFormat::Int8 { padded as i64 } else { 0 };
        QuantizedMatrix { format, rows, cols, panels, scales: Tensor::zeros([scales], (Kind::Float, Device::Cpu)) }
    }

    /// Bytes that one takes.
    pub fn bytes(format: WeightFormat, rows: usize, cols: usize) -> usize {
        let padded = rows.next_multiple_of(WIDTH);
        let scales = if format == WeightFormat::Int8 { 4 * padded } else { 0 };
        padded / WIDTH * format.panel_bytes(cols) + scales
    }

    /// O of [O,I]; rows that fill up the last panel are not counted.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// I of [O,I].
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    pub fn held(&self) -> usize {
        self.panels.numel() + 4 * self.scales.numel()
    }

    /// Quantizes the rows from `first` on, values [n,I]; `tops` [n] are the largest absolute values of the whole rows, of which
    /// these may be a part of the columns. Each row once.
    ///
    /// # Panics
    /// Where the rows do not lie in the matrix.
    pub fn set(&mut self, first: usize, values: &[f32], tops: &[f32]) -> RowFidelity {
        let (n, cols, format) = (tops.len(), self.cols, self.format);
        assert!(values.len() == n * cols && first + n <= self.rows, "{first} + {n} rows of {}", self.rows);
        let bytes = format.panel_bytes(cols);
        let panels = Shared(self.panels.data_ptr() as *mut u8);
        let scales = Shared(self.scales.data_ptr() as *mut f32);
        let all = Mutex::new(RowFidelity { finite: true, exact: true });
        let (from, to) = (first / WIDTH, (first + n).div_ceil(WIDTH));
        parallel::chunks(to - from, PANELS, |_, range| {
            let mut worst = RowFidelity { finite: true, exact: true };
            for at in range.start + from..range.end + from {
                // SAFETY: the panel is this task's alone, in the tensor's bytes.
                let panel = unsafe { panels.part(at * bytes..(at + 1) * bytes) };
                for row in (at * WIDTH).max(first)..((at + 1) * WIDTH).min(first + n) {
                    let (lane, values) = (row % WIDTH, &values[(row - first) * cols..][..cols]);
                    let fidelity = match format {
                        WeightFormat::Int8 => {
                            let (scale, fidelity) = pack_int8(panel, lane, values, tops[row - first]);
                            // SAFETY: the row is this task's alone.
                            unsafe { scales.part(row..row + 1)[0] = scale };
                            fidelity
                        }
                        WeightFormat::Int4 => pack_int4(panel, lane, values),
                    };
                    worst = worst.and(fidelity);
                }
            }
            let mut all = lock(&all);
            *all = all.and(worst);
        });
        all.into_inner().unwrap_or_else(|e| e.into_inner())
    }

    /// What the integers stand for, [O,I] f32.
    pub fn dequantized(&self) -> Tensor {
        let w = self.view();
        let bytes = self.format.panel_bytes(self.cols);
        let mut all = Vec::with_capacity(self.rows * self.cols);
        for row in 0..self.rows {
            let panel = &w.bytes[row / WIDTH * bytes..][..bytes];
            let scale = w.scales.get(row).copied().unwrap_or(1.0);
            all.extend((0..self.cols).map(|col| unpacked(self.format, panel, row % WIDTH, col, scale)));
        }
        Tensor::from_slice(&all).view([self.rows as i64, self.cols as i64])
    }

    fn view(&self) -> Panels<'_> {
        // SAFETY: the tensors' own contiguous elements; written only through `&mut self`.
        let (bytes, scales) = unsafe {
            (
                std::slice::from_raw_parts(self.panels.data_ptr() as *const u8, self.panels.numel()),
                match self.scales.numel() {
                    0 => &[][..],
                    n => std::slice::from_raw_parts(self.scales.data_ptr() as *const f32, n),
                },
            )
        };
        Panels { format: self.format, cols: self.cols, bytes, scales }
    }
}

/// The largest absolute value of each row of values [n,cols], NaN where one is no number.
pub fn row_tops(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    let mut tops = vec![0.0; rows];
    let out = Shared(tops.as_mut_ptr());
    parallel::chunks(rows, PANELS * WIDTH, |_, range| {
        // SAFETY: each task has rows of its own.
        let out = unsafe { out.part(range.clone()) };
        out.iter_mut().zip(range).for_each(|(top, row)| *top = largest(&values[row * cols..][..cols]));
    });
    tops
}

/// y [N,O] T = x [N,I] T · w [O,I]ᵀ, plus `residual` [N,O] T if given; T fp32 or bf16.
pub fn linear(x: &Tensor, w: &QuantizedMatrix, residual: Option<&Tensor>) -> Tensor {
    clock::counted(|| match x.kind() {
        Kind::BFloat16 => product::<bf16>(x, w, residual),
        _ => product::<f32>(x, w, residual),
    })
}

fn product<E: Real>(x: &Tensor, w: &QuantizedMatrix, residual: Option<&Tensor>) -> Tensor {
    let (x, residual) = (x.contiguous(), residual.map(Tensor::contiguous));
    let n = x.size()[0];
    assert!(x.size()[1] == w.cols as i64, "x {:?} and {} columns", x.size(), w.cols);
    let y = Tensor::empty([n, w.rows as i64], (x.kind(), Device::Cpu));
    let (Some(xr), Some(yr)) = (Rows::<E>::matrix(&x), Rows::<E>::matrix(&y)) else { return y };
    let residual = residual.as_ref().and_then(|t| Rows::<E>::matrix(t));
    assert!(residual.is_none_or(|r| (r.rows, r.cols) == (yr.rows, yr.cols)), "the residual has another shape than y");
    let activations = QuantizedRows::new(xr.rows, xr.cols, w.format, |i| xr.row(i));
    let emit = |row: usize, panel: usize, values: &[f32; WIDTH]| {
        let cols = panel * WIDTH..((panel + 1) * WIDTH).min(yr.cols);
        // SAFETY: the panel's columns are one task's own.
        let out = unsafe { yr.part_mut(row, cols.clone()) };
        match residual {
            Some(r) => {
                for ((out, &v), start) in out.iter_mut().zip(values).zip(&r.row(row)[cols]) {
                    *out = E::from_f32(v + start.to_f32());
                }
            }
            None => out.iter_mut().zip(values).for_each(|(out, &v)| *out = E::from_f32(v)),
        }
    };
    let view = w.view();
    let each = (BLOCK_BYTES / w.format.panel_bytes(w.cols).max(1)).clamp(1, 64).next_multiple_of(4);
    parallel::chunks(w.rows.div_ceil(WIDTH), each, |_, panels| {
        run(&IntPart { x: &activations, w: view, panels }, &emit);
    });
    y
}
