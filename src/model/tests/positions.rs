//! Chunks of the context axis, segments, and attention inside documents against an explicit mask.

use super::oracle::{leaf, Leaves};
use super::{close, config, noise, oracle, params};
use crate::config::Recompute;
use crate::layout::Unit;
use crate::model::block::Block;
use crate::model::positions::{chunks, share, to_ranks, to_sequence};
use crate::model::{Accumulate, Axes, Documents, Positions, Rope};
use tch::{Device, Kind, Tensor};

#[test]
fn chunks_are_every_place_once_and_equal_work() {
    for size in [1, 2, 3, 4, 8] {
        let s = 2 * size * 5;
        let all: Vec<_> = (0..size).map(|r| chunks(s, r, size)).collect();
        let mut places: Vec<usize> = all.iter().flatten().flat_map(|c| c.clone()).collect();
        places.sort();
        assert_eq!(places, (0..s).collect::<Vec<_>>());
        let work = |r: usize| all[r].iter().flat_map(|c| c.clone()).map(|q| q + 1).sum::<usize>();
        assert!((0..size).all(|r| work(r) == work(0)), "{size}");
    }
}

#[test]
fn what_ranks_hold_goes_back_into_sequences() {
    for c in [1, 2, 3, 4] {
        let x = noise(&[3, 2 * c * 5, 2, 4], 1);
        let parts: Vec<Tensor> = (0..c).map(|r| share(&x, r as usize, c as usize)).collect();
        let parts = Tensor::stack(&parts, 0);
        assert_eq!(to_ranks(&x, c), parts);
        assert_eq!(to_sequence(&parts), x);
    }
}

/// Segments of every rank: each pair of query and key that the mask allows comes once, no other.
#[test]
fn segments_are_the_mask() {
    let m = config(false);
    let documents = Documents::through(vec![vec![1, 5, 6, 12, 23], vec![], vec![8]]);
    for size in [1, 2, 3] {
        let s = 24;
        let rope = Rope::new(&m, 0, s, Device::Cpu);
        let mut seen = vec![0u8; 3 * s * s];
        for rank in 0..size {
            let at = Positions::new(&rope, s, rank, size, &documents);
            let places: Vec<usize> = chunks(s, rank, size).into_iter().flatten().collect();
            for segment in at.segments() {
                let (n, row) = (segment.queries.len(), segment.sequence.unwrap());
                for (i, q) in segment.queries.clone().enumerate() {
                    for k in segment.keys.start..segment.keys.end - (n - 1 - i) {
                        seen[(row * s + places[q]) * s + k] += 1;
                    }
                }
            }
        }
        for (row, starts) in documents.starts.iter().enumerate() {
            for q in 0..s {
                let first = starts.iter().copied().filter(|&b| b <= q).max().unwrap_or(0);
                for k in 0..s {
                    let want = (first..=q).contains(&k) as u8;
                    assert_eq!(seen[(row * s + q) * s + k], want, "{size} ranks: row {row} query {q} key {k}");
                }
            }
        }
    }
}

#[test]
fn rotary_tables_follow_the_chunks() {
    let m = config(false);
    let rope = Rope::new(&m, 0, 24, Device::Cpu);
    for rank in 0..3 {
        let at = Positions::new(&rope, 24, rank, 3, &Documents::whole());
        let places: Vec<i64> = chunks(24, rank, 3).into_iter().flatten().map(|p| p as i64).collect();
        let x = noise(&[2, 24, 3, 10], 4);
        let whole = x.copy();
        Positions::consecutive(&rope, 0, 24).rotate_(&whole, false);
        let part = share(&x, rank, 3).contiguous();
        at.rotate_(&part, false);
        assert_eq!(part, whole.index_select(1, &Tensor::from_slice(&places)));
    }
}

/// A block whose attention keeps to documents: output, input gradient and every weight gradient against libtorch with the
/// mask written out.
#[test]
fn documents_do_not_see_each_other() {
    const S: i64 = 37;
    let m = config(false);
    let p = params(&m, 4);
    let w = p.unit(Unit::Block(0));
    let documents = Documents::through(vec![vec![1, 9, 10, 30], vec![], vec![18, 36]]);
    let (block, rope) = (Block::new(&m, &Axes::solo()), Rope::new(&m, 0, S as usize, Device::Cpu));
    let at = Positions::new(&rope, S as usize, 0, 1, &documents);
    let (x, dy) = (noise(&[3 * S, 36], 5), noise(&[3 * S, 36], 6));
    let (y, kept) = block.forward(w, &x, &at, Recompute::None).unwrap();
    let dx = block.backward(w, kept, dy.shallow_clone(), &at, Accumulate::Replace).unwrap();

    // Whose document each token is of; a mask per sequence.
    let number = |starts: &Vec<usize>| {
        let of: Vec<i64> = (0..S).map(|t| starts.iter().filter(|&&b| b as i64 <= t).count() as i64).collect();
        Tensor::from_slice(&of)
    };
    let numbers = Tensor::stack(&documents.starts.iter().map(number).collect::<Vec<_>>(), 0);
    let apart = numbers.unsqueeze(1).ne_tensor(&numbers.unsqueeze(2)).view([3, 1, 1, S, S]);
    let (leaves, xr) = (Leaves::new(w), leaf(&x.view([3, S, 36])));
    let mid = oracle::masked_attention(&m, &leaves, &xr, Some(&apart));
    let yr = oracle::mlp(&m, &leaves, &mid);
    let objective = (&yr * dy.view_as(&yr).to_kind(Kind::Double)).sum(Kind::Double);
    let mut inputs = vec![&xr];
    inputs.extend(leaves.0.iter().map(|l| &l.1));
    let want = Tensor::run_backward(&[objective], &inputs, false, false);
    close("y", &y.view_as(&yr), &yr, 1e-5);
    close("dx", &dx.view_as(&yr), &want[0], 1e-5);
    for ((name, _), want) in leaves.0.iter().zip(&want[1..]) {
        close(name, &w.grad(name), want, 1e-5);
    }

    // The mask matters, and without boundaries it is the plain way, bit for bit.
    let plain = block.infer(w, &x, &Positions::consecutive(&rope, 0, S as usize)).unwrap();
    assert!((&plain - &y).abs().max().double_value(&[]) > 0.1);
    let none = Positions::new(&rope, S as usize, 0, 1, &Documents::through(vec![vec![]; 3]));
    assert_eq!(block.infer(w, &x, &none).unwrap(), plain);
}

/// Documents that count from 0 are turned as if each were alone, on every rank of the context axis.
#[test]
fn positions_start_again_with_each_document() {
    let m = config(false);
    let rope = Rope::new(&m, 0, 24, Device::Cpu);
    let x = noise(&[3, 24, 2, m.head_dim() as i64], 4);
    let starts = vec![vec![1, 5, 6, 12, 23], vec![], vec![8]];
    let want = x.copy();
    for (row, starts) in starts.iter().enumerate() {
        let bounds = [&[0], &starts[..], &[24]].concat();
        for pair in bounds.windows(2) {
            let part = want.narrow(0, row as i64, 1).narrow(1, pair[0] as i64, (pair[1] - pair[0]) as i64);
            Positions::consecutive(&rope, 0, pair[1] - pair[0]).rotate_(&part, false);
        }
    }
    for size in [1, 2, 3] {
        for rank in 0..size {
            let documents = Documents { starts: starts.clone(), restart: true };
            let at = Positions::new(&rope, 24, rank, size, &documents);
            assert_eq!(at.len(), 24 / size);
            let part = share(&x, rank, size).copy();
            at.rotate_(&part, false);
            assert!(part.equal(&share(&want, rank, size)), "rank {rank} of {size}");
            at.rotate_(&part, true);
            close("turned back", &part, &share(&x, rank, size), 1e-5);
        }
    }
}
