//! The choice of wire, and wires of CUDA tensors where this host has CUDA.

use super::{same, tensor, text, value};
use herd::kernels::device::cuda_device_count;
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::{Backend, Route, Wire};
use herd::world::{Op, World};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

#[test]
fn on_the_cpu_it_is_mpi() {
    if !super::ranks(2, "wire::device::on_the_cpu_it_is_mpi") {
        return;
    }
    let world = World::init().unwrap();
    assert_eq!(herd::wire::use_device(&world, Device::Cpu).unwrap(), Backend::Host(Route::Fastest));
    let wire = world.wire(&Topology::data(world.rank(), 2), Axis::Data).unwrap();
    let t = tensor(Kind::Float, world.rank(), 10);
    wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
    assert!(same(&t, &(tensor(Kind::Float, 0, 10) + tensor(Kind::Float, 1, 10))));
    drop(wire);
    world.finalize().unwrap();
}

/// Host tensors on a wire of device tensors: counters, hashes and seeds need no trip to the device.
fn host_tensors(wire: &dyn Wire) {
    let t = tensor(Kind::Int64, wire.rank(), 5);
    wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
    let sum: Vec<i64> = (0..5).map(|i| (0..wire.size()).map(|r| value(r, i)).sum()).collect();
    assert_eq!(Vec::<i64>::try_from(&t).unwrap(), sum);
}

/// Every operation on `device`, behind computation that is still under way when it starts.
fn operations(wire: &dyn Wire, device: Device) {
    let (me, size) = (wire.rank(), wire.size());
    let put = |t: Tensor| {
        let square = Tensor::ones([2048, 2048], (Kind::Float, device));
        let late = square.matmul(&square).mean(Kind::Float) * 0.0;
        (t.to_device(device).to_kind(Kind::Float) + late).to_kind(t.kind())
    };
    let host = |t: &Tensor| t.to_device(Device::Cpu);
    for kind in [Kind::Float, Kind::BFloat16] {
        for n in [1, 1000, 1_000_003] {
            let all: Vec<Tensor> = (0..size).map(|r| tensor(kind, r, n)).collect();
            let sum = |n: usize| {
                (0..size).map(|r| tensor(kind, r, n).to_kind(Kind::Float)).reduce(|a, b| a + b).unwrap().to_kind(kind)
            };
            let t = put(all[me].shallow_clone());
            wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
            assert!(same(&host(&t), &sum(n)), "all-reduce of {n} {kind:?}");
            let (input, output) = (put(all[me].shallow_clone()), Tensor::zeros([(n * size) as i64], (kind, device)));
            wire.all_gather(&input, &output).unwrap().wait().unwrap();
            assert!(same(&host(&output), &Tensor::cat(&all, 0)), "all-gather of {n} {kind:?}");
            let (input, output) = (put(tensor(kind, me, n * size)), Tensor::zeros([n as i64], (kind, device)));
            wire.reduce_scatter(&input, &output).unwrap().wait().unwrap();
            let mine = sum(n * size).narrow(0, (me * n) as i64, n as i64);
            assert!(same(&host(&output), &mine), "reduce-scatter of {n} {kind:?}");
            let t = put(all[me].shallow_clone());
            wire.broadcast(&t, size - 1).unwrap().wait().unwrap();
            assert!(same(&host(&t), &all[size - 1]), "broadcast of {n} {kind:?}");
            let (before, after) = ((me + size - 1) % size, (me + 1) % size);
            let came = Tensor::zeros([n as i64], (kind, device));
            let early = wire.recv(&came, before).unwrap();
            wire.send(&put(all[me].shallow_clone()), after).unwrap().wait().unwrap();
            early.wait().unwrap();
            assert!(same(&host(&came), &all[before]), "message of {n} {kind:?}");
        }
    }
    host_tensors(wire);
}

/// Runs the calling test on `n` ranks if this host has `devices` CUDA devices; says so where it has not.
fn on_cuda(n: usize, devices: usize, name: &str) -> bool {
    if cuda_device_count() < devices {
        eprintln!("skipped: no CUDA device ({name} needs {devices}, this host has {})", cuda_device_count());
        return false;
    }
    super::ranks(n, name)
}

#[test]
fn ranks_share_a_card_through_the_host() {
    if !on_cuda(2, 1, "wire::device::ranks_share_a_card_through_the_host") {
        return;
    }
    let world = World::init().unwrap();
    let device = Device::Cuda(0);
    assert_eq!(herd::wire::use_device(&world, device).unwrap(), Backend::Staged(device, Route::Fastest));
    operations(&*world.wire(&Topology::data(world.rank(), 2), Axis::Data).unwrap(), device);
    world.finalize().unwrap();
}

#[test]
fn nccl_joins_cards() {
    if !on_cuda(2, 2, "wire::device::nccl_joins_cards") {
        return;
    }
    let world = World::init().unwrap();
    let device = Device::Cuda(world.rank());
    assert_eq!(herd::wire::use_device(&world, device).unwrap(), Backend::Nccl(device));
    let wire = world.wire(&Topology::data(world.rank(), 2), Axis::Data).unwrap();
    operations(&*wire, device);
    std::thread::sleep(Duration::from_millis(50));
    assert!(wire.measured().busy > Duration::ZERO);
    world.barrier().unwrap();
    herd::world::leave(0);
}

/// A receive that no rank sends to: the stop flag frees the device and the next wait.
#[test]
fn nccl_can_be_left() {
    const NAME: &str = "wire::device::nccl_can_be_left";
    if cuda_device_count() < 2 {
        eprintln!("skipped: no CUDA device ({NAME} needs 2, this host has {})", cuda_device_count());
        return;
    }
    if let Some(out) = super::outcome(2, NAME) {
        assert_eq!(text(&out).matches("left in time").count(), 1, "{}", text(&out));
        return;
    }
    let world = World::init().unwrap();
    let device = Device::Cuda(world.rank());
    herd::wire::use_device(&world, device).unwrap();
    let wire = world.wire(&Topology::data(world.rank(), 2), Axis::Data).unwrap();
    operations(&*wire, device);
    world.barrier().unwrap();
    if world.rank() == 0 {
        let t = Tensor::ones([1000], (Kind::Float, device));
        wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
        let flag = world.stop_flag();
        let setter = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            flag.store(true, std::sync::atomic::Ordering::SeqCst);
            Instant::now()
        });
        // Reads the sum, so it waits for the device.
        t.double_value(&[0]);
        let took = setter.join().unwrap().elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(wire.all_reduce(&t, Op::Sum).err().unwrap().exit, herd::error::Exit::Peer);
        eprintln!("left in time");
    } else {
        std::thread::sleep(Duration::from_secs(3));
    }
    herd::world::leave(0);
}
