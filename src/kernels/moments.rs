//! AdamW's moments in 8 bits (arXiv:2110.02861): runs of 32 share a scale, their largest magnitude, and a code names one of 256 levels
//! that lie the closer the smaller they are (dynamic tree quantization, §2.1 there): seven decades, the uppermost with 64 levels of either sign
//! (of either sign there is one level fewer than of one).
//!
//! Of the second moment the root is stored, so that its seven decades are fourteen of the moment itself, and what is not zero never becomes
//! zero: an update, which is divided by that root, stays bounded. What is made of codes becomes the same codes again, so a
//! checkpoint in fp32 brings back the very state (but of roots below 10⁻¹⁸, whose squares fp32 does not hold in full).
//!
//! Runs are cut from the flat buffer: where tensor ranks hold a parameter alike, it must be whole runs (the plan sees to that).

use super::host::{bytes, bytes_mut, floats, floats_mut};
use super::parallel;
use std::ops::Range;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Values that share a scale: of every part of a unit that a replica saves whole runs.
pub const RUN: usize = crate::layout::PAD;
/// Values of a task.
const TASK: usize = 1 << 14;
/// Values that are made or stored at a time on a device: temporary tensors take some 16 bytes a value.
const PIECE: usize = if cfg!(test) { 1 << 10 } else { 4 << 20 };
/// Decades of levels below 1.
const DECADES: usize = 7;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentKind {
    /// The running mean: levels of either sign.
    Mean,
    /// The running mean of squares, by its root.
    Square,
}

/// One moment of a flat range of parameters.
pub struct Moment8 {
    kind: MomentKind,
    len: usize,
    /// [runs·32] u8.
    codes: Tensor,
    /// [runs] f32.
    scales: Tensor,
    /// [L] f32, and what lies halfway between them, [L−1] f32, both on the device; L is 255 of means and 256 of roots.
    levels: Tensor,
    halves: Tensor,
}

/// What codes stand for, and how they are found.
struct Levels {
    /// Ascending.
    all: Vec<f32>,
    /// Halfway between a level and the next.
    halves: Vec<f32>,
    /// By the upper bits of a magnitude of at most 1, how many levels from zero on lie below it for sure.
    first: Vec<u8>,
    /// The code of zero.
    zero: usize,
}

/// Bits of a magnitude that the table leaves out.
const LEFT_OUT: u32 = 15;

impl MomentKind {
    fn levels(self) -> &'static Levels {
        static MEAN: OnceLock<Levels> = OnceLock::new();
        static SQUARE: OnceLock<Levels> = OnceLock::new();
        match self {
            MomentKind::Mean => MEAN.get_or_init(|| Levels::new(true)),
            MomentKind::Square => SQUARE.get_or_init(|| Levels::new(false)),
        }
    }
}

impl Levels {
    /// Decade i, from the lowest, has 2^i levels where there are two signs and 2^(i+1) where there is one, each the middle of an equal part
    /// of [0.1, 1] times 10^(i−6); the uppermost level is 1.
    fn new(signed: bool) -> Levels {
        let decade = |i: usize| {
            let n = 1usize << (i + !signed as usize);
            let unit = 10f64.powi(i as i32 + 1 - DECADES as i32);
            (0..n).map(move |k| (unit * (0.1 + 0.9 * (k as f64 + 0.5) / n as f64)) as f32)
        };
        let mut positive: Vec<f32> = (0..DECADES).flat_map(decade).collect();
        if signed {
            positive.pop();
        }
        positive.push(1.0);
        let negative = positive.iter().rev().map(|x| -x).filter(|_| signed);
        let all: Vec<f32> = negative.chain([0.0]).chain(positive.iter().copied()).collect();
        let halves: Vec<f32> = all.windows(2).map(|w| (w[0] + w[1]) / 2.0).collect();
        let zero = all.len() - 1 - positive.len();
        let below = |x: f32| halves[zero..].partition_point(|h| *h < x) as u8;
        let first = (0..=1f32.to_bits() >> LEFT_OUT).map(|i| below(f32::from_bits(i << LEFT_OUT))).collect();
        Levels { all, halves, first, zero }
    }

    /// The code of the level nearest to `x`, which is between −1 and 1; halfway the one nearer to zero.
    fn nearest(&self, x: f32) -> usize {
        let size = x.abs();
        // What is no number is taken for the largest.
        let at = (size.to_bits() >> LEFT_OUT) as usize;
        let mut n = self.first[at.min(self.first.len() - 1)] as usize;
        while self.halves.get(self.zero + n).is_some_and(|h| *h < size) {
            n += 1;
        }
        if x < 0.0 {
            self.zero - n
        } else {
            self.zero + n
        }
    }
}

impl Moment8 {
    /// Zeros for `len` parameters.
    pub fn zeros(kind: MomentKind, len: usize, device: Device) -> Moment8 {
        let (runs, levels) = (len.div_ceil(RUN), kind.levels());
        let codes = Tensor::full([(runs * RUN) as i64], levels.zero as i64, (Kind::Uint8, device));
        let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        Moment8 {
            kind,
            len,
            codes,
            scales: Tensor::zeros([runs as i64], (Kind::Float, device)),
            levels: on_device(&levels.all),
            halves: on_device(&levels.halves),
        }
    }

    /// Bytes that `len` values take.
    pub fn bytes(len: usize) -> usize {
        len.div_ceil(RUN) * (RUN + size_of::<f32>())
    }

    /// Parameters that this is of.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is of none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Codes and scales of `runs`.
    fn parts(&self, runs: &Range<usize>) -> [Tensor; 2] {
        let part = |t: &Tensor, each: usize| t.narrow(0, (runs.start * each) as i64, (runs.len() * each) as i64);
        [part(&self.codes, RUN), part(&self.scales, 1)]
    }

    /// The values `range`, [range.len()] f32.
    pub fn get(&self, range: &Range<usize>) -> Tensor {
        let runs = range.start / RUN..range.end.div_ceil(RUN);
        let [codes, scales] = self.parts(&runs);
        let all = match codes.device() {
            Device::Cpu => self.decoded(&codes, &scales),
            _ => self.decoded_by_libtorch(&codes, &scales),
        };
        all.narrow(0, (range.start - runs.start * RUN) as i64, range.len() as i64)
    }

    /// The same in host memory, made piece by piece.
    pub fn on_host(&self, range: &Range<usize>) -> Tensor {
        if self.codes.device() == Device::Cpu {
            return self.get(range);
        }
        let out = Tensor::empty([range.len() as i64], (Kind::Float, Device::Cpu));
        for start in range.clone().step_by(PIECE) {
            let piece = start..range.end.min(start + PIECE);
            out.narrow(0, (start - range.start) as i64, piece.len() as i64).copy_(&self.get(&piece));
        }
        out
    }

    /// Stores values from `start` on, which begins a run, to the end of a run or of all; they may lie in host memory.
    pub fn set(&mut self, start: usize, values: &Tensor) {
        for at in (0..values.numel()).step_by(PIECE) {
            let piece = values.narrow(0, at as i64, PIECE.min(values.numel() - at) as i64);
            self.set_piece(start + at, &piece.to_device(self.codes.device()));
        }
    }

    fn set_piece(&mut self, start: usize, values: &Tensor) {
        let end = start + values.numel();
        assert!(
            start.is_multiple_of(RUN) && (end.is_multiple_of(RUN) || end == self.len),
            "{start}..{end} are no runs"
        );
        let [mut codes, mut scales] = self.parts(&(start / RUN..end.div_ceil(RUN)));
        match codes.device() {
            Device::Cpu => self.encode(values, &mut codes, &mut scales),
            _ => {
                let (new, tops) = self.encoded_by_libtorch(values);
                codes.copy_(&new);
                scales.copy_(&tops);
            }
        }
    }

    fn decoded(&self, codes: &Tensor, scales: &Tensor) -> Tensor {
        let mut out = Tensor::empty([codes.numel() as i64], (Kind::Float, Device::Cpu));
        let (levels, codes, scales) = (&self.kind.levels().all, bytes(codes), floats(scales));
        let square = self.kind == MomentKind::Square;
        let tasks: Vec<_> = floats_mut(&mut out).chunks_mut(TASK).map(std::sync::Mutex::new).collect();
        parallel::tasks(tasks.len(), |i| {
            let mut out = crate::threads::lock(&tasks[i]);
            for (k, value) in out.iter_mut().enumerate() {
                let at = i * TASK + k;
                let x = levels[codes[at] as usize] * scales[at / RUN];
                *value = if square { x * x } else { x };
            }
        });
        drop(tasks);
        out
    }

    fn encode(&self, values: &Tensor, codes: &mut Tensor, scales: &mut Tensor) {
        let levels = self.kind.levels();
        let (values, square) = (floats(values), self.kind == MomentKind::Square);
        let parts = bytes_mut(codes).chunks_mut(TASK).zip(floats_mut(scales).chunks_mut(TASK / RUN));
        let tasks: Vec<_> = parts.map(std::sync::Mutex::new).collect();
        parallel::tasks(tasks.len(), |i| {
            let mut task = crate::threads::lock(&tasks[i]);
            let (codes, scales) = &mut *task;
            let values = &values[i * TASK..values.len().min((i + 1) * TASK)];
            for ((values, codes), scale) in values.chunks(RUN).zip(codes.chunks_mut(RUN)).zip(scales.iter_mut()) {
                let of = |v: f32| if square { v.sqrt() } else { v };
                let top = values.iter().fold(0f32, |top, v| top.max(of(*v).abs()));
                *scale = top;
                for (code, v) in codes.iter_mut().zip(values) {
                    let x = of(*v);
                    let n = if top > 0.0 { levels.nearest(x / top) } else { levels.zero };
                    *code = (if square && x > 0.0 { n.max(levels.zero + 1) } else { n }) as u8;
                }
            }
        });
    }

    /// [`Moment8::decoded`] by operations that any device has.
    pub(super) fn decoded_by_libtorch(&self, codes: &Tensor, scales: &Tensor) -> Tensor {
        let values =
            self.levels.index_select(0, &codes.to_kind(Kind::Int)).view([-1, RUN as i64]) * scales.unsqueeze(1);
        let values = if self.kind == MomentKind::Square { values.square() } else { values };
        values.view(-1)
    }

    /// Codes [runs·32] u8 and scales [runs] f32 of values, by operations that any device has.
    pub(super) fn encoded_by_libtorch(&self, values: &Tensor) -> (Tensor, Tensor) {
        let short = (RUN - values.numel() % RUN) % RUN;
        let x = values.constant_pad_nd([0, short as i64]).view([-1, RUN as i64]);
        let x = if self.kind == MomentKind::Square { x.sqrt() } else { x };
        let tops = x.abs().amax(1, false);
        // Runs of zeros are divided by 1.
        let by = tops.where_self(&tops.gt(0.0), &tops.ones_like()).unsqueeze(1);
        let zero = self.kind.levels().zero as i64;
        // By magnitude, so that halfway is the same for both signs.
        let positive = self.halves.narrow(0, zero, self.halves.numel() as i64 - zero);
        let n = (x.abs() / by).contiguous().bucketize(&positive, true, false);
        let n = if self.kind == MomentKind::Square { n.maximum(&x.gt(0.0).to_kind(Kind::Int)) } else { n };
        let codes = (n * x.sign().to_kind(Kind::Int) + zero).to_kind(Kind::Uint8);
        (codes.view(-1), tops)
    }
}
