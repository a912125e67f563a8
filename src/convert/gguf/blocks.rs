//! Numbers as ggml stores them (ggml-common.h, ggml-quants.c), to fp32: plain ones, and blocks that share a scale.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How the elements of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(non_camel_case_types)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4_K,
    Q6_K,
}

use BlockType::*;

const ALL: [(u32, BlockType); 8] =
    [(0, F32), (1, F16), (30, BF16), (8, Q8_0), (2, Q4_0), (3, Q4_1), (12, Q4_K), (14, Q6_K)];
/// Of types that are not read, for the message.
const OTHERS: [(u32, &str); 16] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (23, "IQ4_XS"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl BlockType {
    /// By ggml's number; the error is the name of a type that herd does not read.
    pub fn of_code(code: u32) -> Result<BlockType, String> {
        let other = || OTHERS.iter().find(|(c, _)| *c == code).map_or(format!("type {code}"), |(_, n)| n.to_string());
        ALL.iter().find(|(c, _)| *c == code).map(|(_, t)| *t).ok_or_else(other)
    }

    pub fn names() -> String {
        ALL.map(|(_, t)| format!("{t:?}")).join(", ")
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q8_0 | Q4_0 | Q4_1 => 32,
            Q4_K | Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q8_0 => 34,
            Q4_0 => 18,
            Q4_1 => 20,
            Q4_K => 144,
            Q6_K => 210,
        }
    }

    /// Whole blocks to numbers: `out` has [`BlockType::elements`] for each [`BlockType::bytes`] of `raw`.
    pub fn decode(self, raw: &[u8], out: &mut [f32]) {
        let block = match self {
            F32 => |b: &[u8], x: &mut [f32]| x[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            F16 => |b: &[u8], x: &mut [f32]| x[0] = half_at(b, 0),
            BF16 => |b: &[u8], x: &mut [f32]| x[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Q8_0 => q8_0,
            Q4_0 => q4_0,
            Q4_1 => q4_1,
            Q4_K => q4_k,
            Q6_K => q6_k,
        };
        for (b, x) in raw.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.elements())) {
            block(b, x);
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn q8_0(b: &[u8], x: &mut [f32]) {
    let d = half_at(b, 0);
    for (x, &q) in x.iter_mut().zip(&b[2..]) {
        *x = d * (q as i8) as f32;
    }
}

/// Low halves are the first sixteen elements, high halves the others.
fn q4_0(b: &[u8], x: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, &q) in b[2..].iter().enumerate() {
        x[i] = d * ((q & 15) as i32 - 8) as f32;
        x[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

fn q4_1(b: &[u8], x: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, &q) in b[4..].iter().enumerate() {
        x[i] = d * (q & 15) as f32 + m;
        x[i + 16] = d * (q >> 4) as f32 + m;
    }
}

/// Eight parts of 32, each with a scale and a minimum of six bits.
fn q4_k(b: &[u8], x: &mut [f32]) {
    let (d, dmin, s) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    let scale = |j: usize| match j < 4 {
        true => (s[j] & 63, s[j + 4] & 63),
        false => ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4),
    };
    for part in 0..8 {
        let (scale, min) = scale(part);
        let (scale, min) = (d * scale as f32, dmin * min as f32);
        for i in 0..32 {
            let q = b[16 + part / 2 * 32 + i] >> (part % 2 * 4) & 15;
            x[part * 32 + i] = scale * q as f32 - min;
        }
    }
}

/// Sixteen parts of 16 with a scale of eight bits; an element's low four bits and its high two lie apart.
fn q6_k(b: &[u8], x: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (i, x) in x.iter_mut().enumerate() {
        let (half, within) = (i / 128, i % 128);
        let (quarter, l) = (within / 32, within % 32);
        let four = low[half * 64 + (quarter % 2) * 32 + l] >> (quarter / 2 * 4) & 15;
        let two = high[half * 32 + l] >> (quarter * 2) & 3;
        let scale = scales[half * 8 + within / 16] as i8;
        *x = d * scale as f32 * ((four | two << 4) as i32 - 32) as f32;
    }
}
