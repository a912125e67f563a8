//! Throughput of the wire on this machine: `mpirun -n 2 target/release/deps/wire-… [MB]`.
//!
//! Prints, for each way to move bytes, the median time of a collective over a tensor of that many megabytes (default
//! 400) of fp32, and the tensor's size over that time. MPI_Allreduce of the MPI library stands beside it.

use herd::topology::{Axis, Topology};
use herd::wire::{Op, Via, World};
use mpi::ffi;
use std::time::Instant;
use tch::{Kind, Tensor};

const ROUNDS: usize = 7;

fn main() -> herd::error::Result<()> {
    tch::set_num_threads(1);
    let megabytes: usize = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(400);
    let world = World::init()?;
    let size = world.size();
    let n = (megabytes * 250_000).next_multiple_of(64 * size);
    let topo = Topology::data(world.rank(), size);
    for (name, via, made_by_wire) in [
        ("shared memory, in place", Via::Fastest, true),
        ("shared memory, staged", Via::Fastest, false),
        ("messages", Via::Messages, false),
    ] {
        let wire = world.wire_via(&topo, Axis::Data, via)?;
        let t = if made_by_wire { wire.tensor(n, Kind::Float)? } else { Tensor::zeros([n as i64], f32_cpu()) };
        let _ = t.shallow_clone().fill_(1.0);
        let own = t.narrow(0, (n / size * wire.rank()) as i64, (n / size) as i64);
        report(&world, name, "all-reduce", n, || wire.all_reduce(&t, Op::Sum)?.wait().map(drop))?;
        report(&world, name, "reduce-scatter", n, || wire.reduce_scatter(&t, &own)?.wait().map(drop))?;
        report(&world, name, "all-gather", n, || wire.all_gather(&own, &t)?.wait().map(drop))?;
    }
    let t = Tensor::zeros([n as i64], f32_cpu());
    report(&world, "the MPI library", "all-reduce", n, || {
        // SAFETY: the tensor has n floats, below 2^31 at the sizes used here.
        let code = unsafe {
            let (op, comm) = (ffi::RSMPI_SUM, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Allreduce(std::ptr::without_provenance_mut(1), t.data_ptr(), n as i32, ffi::RSMPI_FLOAT, op, comm)
        };
        assert_eq!(code, 0);
        Ok(())
    })?;
    world.finalize()
}

fn f32_cpu() -> (Kind, tch::Device) {
    (Kind::Float, tch::Device::Cpu)
}

fn report(
    world: &World, via: &str, call: &str, n: usize, mut body: impl FnMut() -> herd::error::Result<()>,
) -> herd::error::Result<()> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        world.barrier()?;
        let start = Instant::now();
        body()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let t = times[ROUNDS / 2];
    if world.rank() == 0 {
        println!("{call:15} {via:25} {:8.1} ms  {:6.2} GB/s", t * 1e3, n as f64 * 4.0 / t / 1e9);
    }
    Ok(())
}
