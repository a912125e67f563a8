//! Messages between two ranks: order, early receives, sizes, and many at once, over lanes and over MPI.

use super::{on_wires, outcome, ranks, same, tensor, text, KINDS};
use herd::error::Exit;
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::{Route, Work};
use herd::world::{Op, World};
use std::collections::VecDeque;
use tch::{Device, Kind, Tensor};

/// SplitMix64: the same storm on every rank.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn blank(kind: Kind, n: usize) -> Tensor {
    Tensor::full([n as i64], 77, (kind, Device::Cpu))
}

fn done(work: Work) {
    work.wait().unwrap();
}

#[derive(Clone, Copy)]
struct Letter {
    from: usize,
    to: usize,
    kind: Kind,
    len: usize,
    id: usize,
}

/// 600 messages among all ranks; every rank starts its own in an order of its own that keeps each pair's, waits for some
/// in between, and sums on another wire meanwhile.
fn storm(seed: u64) {
    on_wires(|world, wire| {
        let topo = Topology::data(world.rank(), world.size());
        let beside = world.wire(&topo, Axis::Data).unwrap();
        let (me, size) = (wire.rank(), wire.size());
        let mut random = Random(seed);
        let mut pairs: Vec<VecDeque<Letter>> = vec![VecDeque::new(); size * size * 2];
        for id in 0..600 {
            let from = random.below(size);
            let to = (from + 1 + random.below(size - 1)) % size;
            let kind = KINDS[random.below(KINDS.len())];
            let len = [0, 1, 7, 1000, 20_001, 300_001][random.below(6)] / if id % 10 == 0 { 1 } else { 7 };
            let letter = Letter { from, to, kind, len, id };
            if from == me {
                pairs[2 * to].push_back(letter);
            } else if to == me {
                pairs[2 * from + 1].push_back(letter);
            }
        }
        let mut mine = Random(seed ^ (me as u64 + 1));
        let mut sent: Vec<(Work, Tensor)> = Vec::new();
        let mut received: Vec<(Work, Tensor, Letter)> = Vec::new();
        let total = Tensor::ones([1000], (Kind::Float, Device::Cpu));
        let mut sums = vec![beside.all_reduce(&total, Op::Sum).unwrap()];
        while pairs.iter().any(|p| !p.is_empty()) {
            let Some(letter) = pairs[mine.below(size * size * 2)].pop_front() else { continue };
            if letter.from == me {
                let t = tensor(letter.kind, letter.id, letter.len);
                sent.push((wire.send(&t, letter.to).unwrap(), t));
            } else {
                let t = blank(letter.kind, letter.len);
                received.push((wire.recv(&t, letter.from).unwrap(), t, letter));
            }
            if sums.len() < 20 && mine.below(10) == 0 {
                sums.push(beside.all_reduce(&total, Op::Max).unwrap());
            }
            if let Some(i) = (0..received.len()).find(|&i| received[i].0.is_done()) {
                check(received.swap_remove(i));
            }
        }
        while sums.len() < 20 {
            sums.push(beside.all_reduce(&total, Op::Max).unwrap());
        }
        received.into_iter().for_each(check);
        sent.into_iter().for_each(|(w, _)| done(w));
        sums.into_iter().for_each(done);
        assert!(same(&total, &Tensor::full([1000], size as f64, (Kind::Float, Device::Cpu))));
        world.barrier().unwrap();
    });
}

fn check((work, t, Letter { from, to, kind, len, id }): (Work, Tensor, Letter)) {
    work.wait().unwrap();
    assert!(same(&t, &tensor(kind, id, len)), "message {id} of {len} {kind:?} from {from} to {to}");
}

#[test]
fn storm_of_seed_1() {
    if ranks(4, "wire::messages::storm_of_seed_1") {
        storm(1);
    }
}

#[test]
fn storm_of_seed_2() {
    if ranks(4, "wire::messages::storm_of_seed_2") {
        storm(2);
    }
}

/// As pipeline stages do it: receives of all rounds are started first, then each round's token goes once round.
#[test]
fn ring_with_early_receives() {
    if !ranks(3, "wire::messages::ring_with_early_receives") {
        return;
    }
    on_wires(|_, wire| {
        let (me, size) = (wire.rank(), wire.size());
        let (before, after) = ((me + size - 1) % size, (me + 1) % size);
        let inbox: Vec<Tensor> = (0..100).map(|_| blank(Kind::BFloat16, 4097)).collect();
        let early: Vec<Work> = inbox.iter().map(|t| wire.recv(t, before).unwrap()).collect();
        let mut sends = Vec::new();
        for (round, (work, t)) in early.into_iter().zip(&inbox).enumerate() {
            let token = tensor(Kind::BFloat16, round, 4097);
            if me == 0 {
                sends.push(wire.send(&token, after).unwrap());
            }
            work.wait().unwrap();
            assert!(same(t, &token), "round {round} on rank {me}");
            if me != 0 {
                sends.push(wire.send(t, after).unwrap());
            }
        }
        sends.into_iter().for_each(done);
    });
}

/// Far more sends than a lane has room for, before the first receive; the order is kept and no send blocks.
#[test]
fn sends_never_block() {
    if !ranks(2, "wire::messages::sends_never_block") {
        return;
    }
    on_wires(|world, wire| {
        let (me, other) = (wire.rank(), 1 - wire.rank());
        let sends: Vec<Work> =
            (0..300).map(|i| wire.send(&Tensor::from_slice(&[i, me as i64]), other).unwrap()).collect();
        world.barrier().unwrap();
        for i in 0..300 {
            let t = blank(Kind::Int64, 2);
            wire.recv(&t, other).unwrap().wait().unwrap();
            assert_eq!(Vec::<i64>::try_from(&t).unwrap(), [i, other as i64]);
        }
        sends.into_iter().for_each(done);
    });
}

#[test]
fn messages_that_do_not_fit_are_told() {
    if let Some(out) = outcome(2, "wire::messages::messages_that_do_not_fit_are_told") {
        assert_eq!(text(&out).matches("both were told").count(), 2, "{}", text(&out));
        return;
    }
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let topo = Topology::data(world.rank(), 2);
    for via in [Route::Fastest, Route::Messages] {
        for (sent, wanted) in [(10, 11), (11, 10), (0, 1)] {
            let wire = world.wire_by(&topo, Axis::Data, via).unwrap();
            if world.rank() == 0 {
                // Rank 1 refuses it, so over a lane this never ends.
                let _ = wire.send(&blank(Kind::Float, sent), 1).unwrap();
            } else {
                let e = wire.recv(&blank(Kind::Float, wanted), 0).unwrap().wait().unwrap_err();
                assert!(e.exit == Exit::Internal && e.fact.contains(&format!("{} bytes", wanted * 4)), "{e}");
                let again = wire.recv(&blank(Kind::Float, 1), 0).unwrap().wait().unwrap_err();
                assert_eq!(again.fact, e.fact);
            }
            world.barrier().unwrap();
        }
        let wire = world.wire_by(&topo, Axis::Data, via).unwrap();
        for nobody in [world.rank(), 2] {
            assert_eq!(wire.send(&blank(Kind::Float, 1), nobody).err().unwrap().exit, Exit::Internal);
            assert_eq!(wire.recv(&blank(Kind::Float, 1), nobody).err().unwrap().exit, Exit::Internal);
        }
    }
    eprintln!("both were told");
    world.barrier().unwrap();
    herd::world::leave(0);
}

#[test]
fn groups_have_wires_of_their_own() {
    if !ranks(4, "wire::messages::groups_have_wires_of_their_own") {
        return;
    }
    let world = World::init().unwrap();
    let me = world.rank();
    // First and last as two stages with one embedding; the others alone, in the same call.
    let group: &[usize] = match me {
        0 | 3 => &[3, 0],
        1 => &[1],
        _ => &[2],
    };
    let ties = world.wire_group(group).unwrap();
    assert_eq!((ties.rank(), ties.size()), (group.iter().position(|&r| r == me).unwrap(), group.len()));
    let t = Tensor::from_slice(&[me as i64]);
    ties.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
    assert_eq!(t.int64_value(&[0]), group.iter().sum::<usize>() as i64);

    // Two wires over the same ranks do not wait for each other: each rank starts them in another order.
    let pair: Vec<usize> = vec![me / 2 * 2, me / 2 * 2 + 1];
    let wires = [world.wire_group(&pair).unwrap(), world.wire_group(&pair).unwrap()];
    let tensors = [tensor(Kind::Float, me, 100_000), tensor(Kind::Float, me + 10, 100_000)];
    let first = me % 2;
    let started = [first, 1 - first].map(|i| wires[i].all_reduce(&tensors[i], Op::Sum).unwrap());
    started.into_iter().for_each(done);
    let sum = |k: usize| tensor(Kind::Float, pair[0] + k, 100_000) + tensor(Kind::Float, pair[1] + k, 100_000);
    assert!(same(&tensors[0], &sum(0)) && same(&tensors[1], &sum(10)));

    let wrong: [&[usize]; 4] = [&[0, 1], &[0, 1], &[1, 2], &[3]];
    let e = world.wire_group(wrong[me]).err().unwrap();
    assert!(e.exit == Exit::Internal && e.fact.contains("share out"), "{e}");
    for wrong in [vec![(me + 1) % 4], vec![], vec![me, me]] {
        assert_eq!(world.wire_group(&wrong).err().unwrap().exit, Exit::Internal);
    }
    drop((ties, wires));
    world.finalize().unwrap();
}
