//! Products of int8 in tiles (AMX): 32 rows of x by two panels of w at a time. The lines of a panel are the rows of a tile, so
//! that weights that lie for VNNI are read as they are.
//!
//! The instructions are written out since Rust has no stable names for them: Intel's manual (SDM volume 2), TILELOADD, TDPBSUD and
//! TILESTORED. Nothing else in the process keeps anything in tile registers across calls.

use super::avx512::Avx512;
use crate::kernels::cpu::ints::tiles::{Emit, IntPart};
use crate::kernels::cpu::ints::weights::WeightFormat;
use crate::kernels::cpu::ints::{GROUP, STEP, WIDTH};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows of x in two tiles.
pub const ROWS: usize = crate::kernels::cpu::ints::activations::FILLED;
/// Below so many rows tiles are mostly empty, and VNNI is faster.
const LEAST: usize = 12;

/// Proof that this CPU has the instructions and that the kernel lets this process use them.
#[derive(Clone, Copy)]
pub struct AmxInts(Avx512);

/// The shape of the tiles (SDM, LDTILECFG): all of sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct TileShapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: TileShapes = TileShapes {
    palette: 1,
    start: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Four tiles of sums.
#[repr(C, align(64))]
struct TileSums([[[i32; WIDTH]; 16]; 4]);

/// For a product of so many rows.
pub fn detect(unit: Avx512, format: WeightFormat, rows: usize) -> Option<AmxInts> {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let wanted = format == WeightFormat::Int8 && rows >= LEAST;
    (wanted && *ALLOWED.get_or_init(allowed)).then_some(AmxInts(unit))
}

/// CPUID leaf 7, EDX bits 24 and 25; arch_prctl(2), ARCH_REQ_XCOMP_PERM of the tiles' data.
fn allowed() -> bool {
    const TILES_INT8: u32 = 1 << 24 | 1 << 25;
    const REQUEST: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & TILES_INT8 != TILES_INT8 {
        return false;
    }
    // SAFETY: two numbers; it changes nothing but what this process may use.
    cfg!(target_os = "linux") && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
}

/// Makes the part.
pub fn run(unit: AmxInts, part: &IntPart, emit: Emit) {
    // SAFETY: `unit` proves the instructions; the shapes are 64 bytes in the form that the instruction takes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
    let mut panel = part.panels.start;
    while panel < part.panels.end {
        let two = panel + 1 < part.panels.end;
        for row in (0..part.x.rows).step_by(ROWS) {
            // SAFETY: as above.
            unsafe { block(unit, part, row, [panel, if two { panel + 1 } else { panel }], emit) };
        }
        panel += 2;
    }
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Rows `row..row + 32` of x, as many as there are, by two panels (or one twice).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn block(_: AmxInts, p: &IntPart, row: usize, panels: [usize; 2], emit: Emit) {
    let (x, rows) = (p.x, ROWS.min(p.x.rows - row));
    assert!(x.ints.len() >= (row + ROWS) * x.cols && p.w.format == WeightFormat::Int8);
    let w = panels.map(|panel| p.w.panel(panel).as_ptr());
    let mut out = [[_mm512_setzero_ps(); 2]; ROWS];
    let mut sums = TileSums([[[0; WIDTH]; 16]; 4]);
    for group in 0..x.groups {
        let first = group * GROUP;
        let steps = (x.cols - first).min(GROUP) / STEP;
        let a = x.ints.as_ptr().add(row * x.cols + first);
        group_sums(a, x.cols, [w[0].add(first * WIDTH), w[1].add(first * WIDTH)], steps, &mut sums);
        for (r, out) in out.iter_mut().enumerate().take(rows) {
            let start = _mm512_set1_epi32(x.starts[(row + r) * x.parts + group]);
            let scale = _mm512_set1_ps(x.scales[(row + r) * x.groups + group]);
            for (i, out) in out.iter_mut().enumerate() {
                let sum = _mm512_load_si512(sums.0[r / 16 * 2 + i][r % 16].as_ptr().cast());
                let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, start));
                *out = _mm512_add_ps(*out, _mm512_mul_ps(sum, scale));
            }
        }
    }
    for (i, &panel) in panels.iter().enumerate().take(if panels[0] == panels[1] { 1 } else { 2 }) {
        let scales = _mm512_loadu_ps(p.w.scales[panel * WIDTH..][..WIDTH].as_ptr());
        for (r, out) in out.iter().enumerate().take(rows) {
            let mut y = [0.0f32; WIDTH];
            _mm512_storeu_ps(y.as_mut_ptr(), _mm512_mul_ps(out[i], scales));
            emit(row + r, panel, &y);
        }
    }
}

/// The sums of one group: 32 rows from `a` on, `stride` bytes apart, by 32 rows of w; 64 columns a step.
#[inline(always)]
unsafe fn group_sums(a: *const i8, stride: usize, w: [*const u8; 2], steps: usize, sums: &mut TileSums) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "2:",
        "tileloadd tmm4, [{a} + {stride}]",
        "tileloadd tmm6, [{w0} + {line}]",
        "tileloadd tmm7, [{w1} + {line}]",
        "tdpbsud tmm0, tmm4, tmm6",
        "tdpbsud tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{b} + {stride}]",
        "tdpbsud tmm2, tmm5, tmm6",
        "tdpbsud tmm3, tmm5, tmm7",
        "add {a}, 64",
        "add {b}, 64",
        "add {w0}, 1024",
        "add {w1}, 1024",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{out} + {line}], tmm0",
        "tilestored [{out} + {line} + 1024], tmm1",
        "tilestored [{out} + {line} + 2048], tmm2",
        "tilestored [{out} + {line} + 3072], tmm3",
        a = inout(reg) a => _,
        b = inout(reg) a.add(16 * stride) => _,
        w0 = inout(reg) w[0] => _,
        w1 = inout(reg) w[1] => _,
        steps = inout(reg) steps => _,
        stride = in(reg) stride,
        line = in(reg) 64usize,
        out = in(reg) sums,
        options(nostack),
    );
}
