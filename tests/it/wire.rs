//! Tests of `wire`: every collective on real MPI ranks against what one process computes.

mod device;
mod messages;
mod stops;

use super::support::{mpirun, ranks, text};
use herd::error::{Error, Exit};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::{Backend, Route, Wire};
use herd::world::{Op, World};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 5] = [Kind::Float, Kind::Double, Kind::Int64, Kind::Uint8, Kind::BFloat16];

/// Element `i` of rank `r`: exact in every dtype, also when four ranks are summed.
pub(super) fn value(r: usize, i: usize) -> i64 {
    ((i * 7 + r * 13 + i / 61) % 29) as i64
}

pub(super) fn tensor(kind: Kind, r: usize, n: usize) -> Tensor {
    Tensor::from_slice(&(0..n).map(|i| value(r, i)).collect::<Vec<_>>()).to_kind(kind)
}

pub(super) fn expect(kind: Kind, n: usize, f: impl Fn(usize) -> i64) -> Tensor {
    Tensor::from_slice(&(0..n).map(f).collect::<Vec<_>>()).to_kind(kind)
}

pub(super) fn same(a: &Tensor, b: &Tensor) -> bool {
    a.equal(b) && a.kind() == b.kind()
}

/// Runs `body` in a world whose ranks all lie on the data axis, over every way to move bytes.
pub(super) fn on_wires(body: impl Fn(&World, &Arc<dyn Wire>)) {
    on(&WAYS, body);
}

/// Over the host wires, then over the staged one with its copies made on the CPU.
const WAYS: [Backend; 3] =
    [Backend::Host(Route::Fastest), Backend::Host(Route::Messages), Backend::Staged(Device::Cpu, Route::Fastest)];

fn on(ways: &[Backend], body: impl Fn(&World, &Arc<dyn Wire>)) {
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let topo = Topology::data(world.rank(), world.size());
    for &way in ways {
        let wire: Arc<dyn Wire> = world.wire_group_on(&topo.group(Axis::Data), way).unwrap().into();
        assert_eq!((wire.rank(), wire.size()), (world.rank(), world.size()));
        body(&world, &wire);
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

/// Odd sizes, one element, fewer elements than ranks, and more than a slab of every path.
const SIZES: [usize; 7] = [0, 1, 2, 3, 1000, 65_537, 2_500_001];

fn collectives() {
    on_wires(|_, wire| {
        let (me, size) = (wire.rank(), wire.size());
        for kind in KINDS {
            for n in SIZES {
                if n > 1 << 20 && kind != Kind::Float {
                    continue;
                }
                let t = tensor(kind, me, n);
                wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
                let sum = expect(kind, n, |i| (0..size).map(|r| value(r, i)).sum());
                assert!(same(&t, &sum), "all-reduce sum of {n} {kind:?} on {size} ranks");

                let t = tensor(kind, me, n);
                wire.all_reduce(&t, Op::Max).unwrap().wait().unwrap();
                let max = expect(kind, n, |i| (0..size).map(|r| value(r, i)).max().unwrap());
                assert!(same(&t, &max), "all-reduce max of {n} {kind:?} on {size} ranks");

                let input = tensor(kind, me, n);
                let output = Tensor::zeros([(n * size) as i64], (kind, Device::Cpu));
                wire.all_gather(&input, &output).unwrap().wait().unwrap();
                let all: Vec<Tensor> = (0..size).map(|r| tensor(kind, r, n)).collect();
                assert!(same(&output, &Tensor::cat(&all, 0)), "all-gather of {n} {kind:?} on {size} ranks");

                let input = tensor(kind, me, n * size);
                let output = Tensor::zeros([n as i64], (kind, Device::Cpu));
                wire.reduce_scatter(&input, &output).unwrap().wait().unwrap();
                let mine = expect(kind, n, |i| (0..size).map(|r| value(r, me * n + i)).sum());
                assert!(same(&output, &mine), "reduce-scatter to {n} {kind:?} on {size} ranks");

                for root in 0..size {
                    let t = tensor(kind, me, n);
                    wire.broadcast(&t, root).unwrap().wait().unwrap();
                    assert!(same(&t, &tensor(kind, root, n)), "broadcast of {n} {kind:?} from {root} of {size}");
                }
            }
        }
    });
}

/// Tensors that the wire made itself, and reduce-scatter and all-gather in place on them.
fn collectives_in_place() {
    on_wires(|_, wire| {
        let (me, size) = (wire.rank(), wire.size());
        for kind in [Kind::Float, Kind::BFloat16] {
            for chunk in [1, 100, 64 * 1024, 300_032] {
                let n = chunk * size;
                let home = wire.tensor(n + 32, kind).unwrap();
                assert_eq!(home.to_kind(Kind::Float).abs().sum(Kind::Float).double_value(&[]), 0.0);
                let t = home.narrow(0, 32, n as i64);
                let own = t.narrow(0, (me * chunk) as i64, chunk as i64);
                let sum = expect(kind, n, |i| (0..size).map(|r| value(r, i)).sum());

                t.shallow_clone().copy_(&tensor(kind, me, n));
                wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
                assert!(same(&t, &sum), "all-reduce of {n} {kind:?} on {size} ranks");

                t.shallow_clone().copy_(&tensor(kind, me, n));
                wire.reduce_scatter(&t, &own).unwrap().wait().unwrap();
                assert!(same(&own, &sum.narrow(0, (me * chunk) as i64, chunk as i64)), "{chunk} {kind:?}");

                wire.all_gather(&own, &t).unwrap().wait().unwrap();
                assert!(same(&t, &sum), "all-gather of {n} {kind:?} on {size} ranks");

                t.shallow_clone().copy_(&tensor(kind, me, n));
                wire.broadcast(&t, size - 1).unwrap().wait().unwrap();
                assert!(same(&t, &tensor(kind, size - 1, n)), "broadcast of {n} {kind:?} on {size} ranks");
            }
        }
    });
}

#[test]
fn collectives_in_place_on_2_ranks() {
    if ranks(2, "wire::collectives_in_place_on_2_ranks") {
        collectives_in_place();
    }
}

#[test]
fn collectives_in_place_on_3_ranks() {
    if ranks(3, "wire::collectives_in_place_on_3_ranks") {
        collectives_in_place();
    }
}

#[test]
fn ranks_that_disagree_are_told() {
    if !ranks(2, "wire::ranks_that_disagree_are_told") {
        return;
    }
    let world = World::init().unwrap();
    let wire = world.wire(&Topology::data(world.rank(), 2), Axis::Data).unwrap();
    let t = Tensor::zeros([10 + world.rank() as i64], (Kind::Float, Device::Cpu));
    let e = wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap_err();
    assert!(e.exit == Exit::Internal && e.fact.contains("10 elements") && e.fact.contains("11 elements"), "{e}");
    let again = wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap_err();
    assert_eq!(again.fact, e.fact);
    world.finalize().unwrap();
}

#[test]
fn collectives_on_1_rank() {
    if ranks(1, "wire::collectives_on_1_rank") {
        collectives();
    }
}

#[test]
fn collectives_on_2_ranks() {
    if ranks(2, "wire::collectives_on_2_ranks") {
        collectives();
    }
}

#[test]
fn collectives_on_3_ranks() {
    if ranks(3, "wire::collectives_on_3_ranks") {
        collectives();
    }
}

#[test]
fn collectives_on_4_ranks() {
    if ranks(4, "wire::collectives_on_4_ranks") {
        collectives();
    }
}

/// fp32 sums of values that round, in rank order: the bits do not depend on path or length, and all ranks have them.
#[test]
fn sums_have_the_same_bits_everywhere() {
    if !ranks(3, "wire::sums_have_the_same_bits_everywhere") {
        return;
    }
    on_wires(|world, wire| {
        let n = 700_001;
        let of = |r: usize| (0..n).map(move |i| ((i * 31 + r * 17) as f32).sin() * 10f32.powi((i % 9) as i32 - 4));
        let mine = Tensor::from_slice(&of(wire.rank()).collect::<Vec<f32>>());
        let sum: Vec<f32> = of(0).zip(of(1)).zip(of(2)).map(|((a, b), c)| a + b + c).collect();
        for part in [n, 1000, 300_000] {
            let t = mine.narrow(0, 0, part as i64).copy();
            wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
            let got = Vec::<f32>::try_from(&t).unwrap();
            assert!(got.iter().zip(&sum).all(|(a, b)| a.to_bits() == b.to_bits()), "rank {}", world.rank());
        }
    });
}

#[test]
fn queued_collectives_run_in_order() {
    if !ranks(2, "wire::queued_collectives_run_in_order") {
        return;
    }
    // The staged wire takes its copy of a tensor when an operation starts: there a queue on one tensor is no chain.
    on(&WAYS[..2], |_, wire| {
        let t = tensor(Kind::Int64, wire.rank(), 1000);
        let works: Vec<_> = (0..100)
            .map(|i| match i % 10 {
                0 => wire.broadcast(&t, i / 10 % 2).unwrap(),
                _ => wire.all_reduce(&t, Op::Sum).unwrap(),
            })
            .collect();
        for w in works {
            w.wait().unwrap();
        }
        // 90 doublings; the ten broadcasts change nothing after the first. 2^90 wraps to zero in 64 bits.
        assert!(same(&t, &t.zeros_like()), "{t}");
        let t = tensor(Kind::Int64, wire.rank(), 5);
        wire.broadcast(&t, 1).unwrap().wait().unwrap();
        let works: Vec<_> = (0..20).map(|_| wire.all_reduce(&t, Op::Sum).unwrap()).collect();
        for w in works {
            w.wait().unwrap();
        }
        assert!(same(&t, &expect(Kind::Int64, 5, |i| value(1, i) << 20)));
    });
}

#[test]
fn every_axis_has_its_own_wire() {
    if !ranks(4, "wire::every_axis_has_its_own_wire") {
        return;
    }
    let world = World::init().unwrap();
    let topo = Topology::new(world.rank(), [2, 1, 1, 2]);
    for axis in [Axis::Tensor, Axis::Data] {
        let wire = world.wire(&topo, axis).unwrap();
        assert_eq!((wire.rank(), wire.size()), (topo.coord(axis), 2));
        let t = Tensor::from_slice(&[world.rank() as i64]);
        wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
        assert_eq!(t.int64_value(&[0]), topo.group(axis).iter().sum::<usize>() as i64);
    }
    assert_eq!(world.wire(&topo, Axis::Pipeline).unwrap().size(), 1);
    assert_eq!(world.wire(&Topology::solo(), Axis::Data).err().unwrap().exit, Exit::Internal);
    world.finalize().unwrap();
}

#[test]
fn control_messages() {
    if !ranks(3, "wire::control_messages") {
        return;
    }
    let world = World::init().unwrap();
    let me = world.rank();
    assert_eq!((world.size(), world.local_size(), world.local_rank()), (3, 3, me));
    assert!(!world.host().is_empty());
    let bytes = |r: usize| vec![r as u8; r * 100_000];
    let all: Vec<Vec<u8>> = (0..3).map(bytes).collect();
    assert_eq!(world.all_gather_bytes(&bytes(me)).unwrap(), all);
    assert_eq!(world.gather_bytes(&bytes(me), 1).unwrap(), (me == 1).then_some(all));
    assert_eq!(world.broadcast_bytes(bytes(me), 2).unwrap(), bytes(2));
    let x = [0.1 * (me + 1) as f64, -(me as f64)];
    assert_eq!(world.all_reduce_f64(&x, Op::Sum).unwrap(), [0.1 + 0.2 + 0.1 * 3.0, -3.0]);
    assert_eq!(world.all_reduce_f64(&x, Op::Max).unwrap()[1], 0.0);
    let other = world.duplicate().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| (0..50).for_each(|_| other.barrier().unwrap()));
        (0..50).for_each(|_| world.barrier().unwrap());
    });
    world.finalize().unwrap();
}

#[test]
fn one_rank_s_error_is_everyone_s() {
    if !ranks(3, "wire::one_rank_s_error_is_everyone_s") {
        return;
    }
    let world = World::init().unwrap();
    assert_eq!(world.agree(Ok(7)).unwrap(), 7);
    let mine = match world.rank() {
        1 => Err(Error::new(Exit::Storage, "the disk is full: 3 bytes left").hint("free space")),
        _ => Ok(()),
    };
    let e = world.agree(mine).unwrap_err();
    assert_eq!(e.exit, Exit::Storage);
    let text = e.to_string();
    assert!(text.starts_with("rank 1 (") && text.ends_with("3 bytes left (hint: free space)"), "{text}");
    world.finalize().unwrap();
}

#[test]
fn tensors_a_wire_cannot_move_are_refused() {
    if !ranks(2, "wire::tensors_a_wire_cannot_move_are_refused") {
        return;
    }
    on_wires(|_, wire| {
        let f = (Kind::Float, Device::Cpu);
        let refused = |e: Option<Error>, word: &str| {
            let e = e.expect("refused");
            assert!(e.exit == Exit::Internal && e.fact.contains(word), "{e}");
        };
        refused(wire.all_reduce(&Tensor::zeros([4, 4], f).transpose(0, 1), Op::Sum).err(), "not contiguous");
        refused(wire.all_reduce(&Tensor::zeros([4], (Kind::Half, Device::Cpu)), Op::Sum).err(), "Half");
        refused(wire.all_gather(&Tensor::zeros([4], f), &Tensor::zeros([7], f)).err(), "4 elements of Float and 7");
        refused(wire.broadcast(&Tensor::zeros([4], f), 2).err(), "rank 2 of 2");
    });
}

/// The calling test again on `n` ranks, when the way they end is the point.
pub(super) fn outcome(n: usize, name: &str) -> Option<std::process::Output> {
    if std::env::var_os("HERD_TEST_INSIDE_RANKS").is_some() {
        return None;
    }
    let mut c = mpirun(n);
    c.env("HERD_TEST_INSIDE_RANKS", "1").arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    Some(c.output().unwrap())
}

/// The stop flag ends a wait for a peer that never comes.
#[test]
fn a_wait_can_be_stopped() {
    if let Some(out) = outcome(2, "wire::a_wait_can_be_stopped") {
        assert_eq!(text(&out).matches("stopped in time").count(), 2, "{}", text(&out));
        return;
    }
    let world = World::init().unwrap();
    let topo = Topology::data(world.rank(), world.size());
    for via in [Route::Fastest, Route::Messages] {
        let wire = world.wire_by(&topo, Axis::Data, via).unwrap();
        if world.rank() == 0 {
            let flag = world.stop_flag();
            let work = wire.all_reduce(&Tensor::ones([1 << 20], (Kind::Float, Device::Cpu)), Op::Sum).unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                flag.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let start = Instant::now();
            let e = work.wait().unwrap_err();
            assert!(e.exit == Exit::Peer && start.elapsed() < Duration::from_secs(2), "{e}");
            eprintln!("stopped in time");
            world.stop_flag().store(false, std::sync::atomic::Ordering::Relaxed);
        }
        world.barrier().unwrap();
    }
    herd::world::leave(0);
}

/// A rank killed in the middle of a collective: the launcher ends the others, in bounded time.
#[test]
fn a_killed_rank_ends_the_run() {
    let start = Instant::now();
    if let Some(out) = outcome(3, "wire::a_killed_rank_ends_the_run") {
        assert!(!out.status.success(), "{}", text(&out));
        assert!(text(&out).contains("rank 1 dies now"), "{}", text(&out));
        assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
        return;
    }
    let world = World::init().unwrap();
    let wire = world.wire(&Topology::data(world.rank(), 3), Axis::Data).unwrap();
    let t = Tensor::ones([1 << 22], (Kind::Float, Device::Cpu));
    for i in 0.. {
        let work = wire.all_reduce(&t, Op::Max).unwrap();
        if world.rank() == 1 && i == 20 {
            eprintln!("rank 1 dies now");
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        if let Err(e) = work.wait() {
            herd::world::leave(e.exit.code());
        }
    }
}

/// `leave` on one rank takes the others along, with its code.
#[test]
fn leaving_takes_everyone_along() {
    if let Some(out) = outcome(2, "wire::leaving_takes_everyone_along") {
        assert_eq!(out.status.code(), Some(Exit::NonFinite.code()), "{}", text(&out));
        return;
    }
    let world = World::init().unwrap();
    world.barrier().unwrap();
    if world.rank() == 1 {
        herd::world::leave(Exit::NonFinite.code());
    }
    let _ = world.barrier();
    std::thread::sleep(Duration::from_secs(60));
}
