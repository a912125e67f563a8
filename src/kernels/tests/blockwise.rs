//! Values in 8 and 4 bits: the nearest levels, the same values by every way back.

use super::{randn, same, KINDS};
use crate::config::BlockFormat;
use crate::kernels::blockwise::{rounded_, Blockwise};
use crate::kernels::cpu::blockwise::{levels_of_bytes, NF4};
use crate::kernels::host::floats;
use tch::{Device, Kind, Tensor};

const RUN: usize = BlockFormat::RUN;
const FORMATS: [BlockFormat; 2] = [BlockFormat::Int8, BlockFormat::Nf4];

fn levels(format: BlockFormat) -> Vec<f32> {
    match format {
        BlockFormat::Int8 => (-127..=127).map(|k| k as f32 / 127.0).collect(),
        BlockFormat::Nf4 => NF4.to_vec(),
    }
}

#[test]
fn a_value_becomes_the_nearest_level_of_its_run() {
    for format in FORMATS {
        let x = randn(5, &[40 * RUN as i64], Kind::Float);
        let mut values = floats(&x).to_vec();
        // A run of zeros, one with a single value, one that is not finite.
        values[..RUN].fill(0.0);
        values[RUN..2 * RUN].fill(0.0);
        values[RUN + 3] = -7.5;
        values[2 * RUN + 9] = f32::INFINITY;
        let mut got = values.clone();
        rounded_(format, &mut got);
        assert!(got[..RUN].iter().all(|v| *v == 0.0));
        assert!(got[RUN..2 * RUN].iter().enumerate().all(|(i, v)| *v == if i == 3 { -7.5 } else { 0.0 }));
        assert!(got[2 * RUN..3 * RUN].iter().all(|v| v.is_nan()));
        for (run, got) in values.chunks(RUN).zip(got.chunks(RUN)).skip(3) {
            let top = run.iter().fold(0f32, |t, v| t.max(v.abs()));
            for (v, g) in run.iter().zip(got) {
                let least = levels(format).into_iter().map(|l| (l * top - v).abs()).fold(f32::INFINITY, f32::min);
                assert!((g - v).abs() <= least * 1.000_01 + 1e-6, "{format:?}: {v} became {g} of {top}");
            }
        }
    }
}

/// On the CPU's threads, by libtorch's operations, and piece by piece.
#[test]
fn every_way_back_gives_the_same_bits() {
    for format in FORMATS {
        let len = 700 * RUN;
        let x = randn(6, &[len as i64], Kind::Float);
        let mut stored = Blockwise::new(format, len, Device::Cpu);
        assert_eq!(stored.stored().numel(), len * format.bits() / 8 + 700 * 4);
        for (i, part) in floats(&x).chunks(300 * RUN).enumerate() {
            stored.set(i * 300 * RUN, part);
        }
        let mut want = floats(&x).to_vec();
        rounded_(format, &mut want);
        for kind in KINDS {
            let (own, pieces) =
                (Tensor::empty([len as i64], (kind, Device::Cpu)), Tensor::zeros([len as i64], (kind, Device::Cpu)));
            stored.get(&own);
            let [codes, scales] = stored.parts(&(0..len));
            stored.get_in_pieces(&codes, &scales, &pieces);
            assert!(same(&own, &Tensor::from_slice(&want).to_kind(kind)) && same(&own, &pieces), "{format:?} {kind:?}");
        }
    }
}

#[test]
fn a_byte_names_its_levels_first_the_high_half() {
    let nf4 = levels_of_bytes(BlockFormat::Nf4);
    assert_eq!((nf4.len(), &nf4[0x0f][..], &nf4[0x70][..]), (256, &[-1.0, 1.0][..], &[0.0, -1.0][..]));
    assert_eq!(
        levels_of_bytes(BlockFormat::Int8)[1..],
        levels(BlockFormat::Int8).iter().map(|l| vec![*l]).collect::<Vec<_>>()[..]
    );
}
