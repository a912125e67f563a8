//! Throughput of the wire on this machine: `mpirun -n 2 target/release/deps/wire-… [MB]`.
//!
//! Prints, for each way to move bytes, the median time of a collective over a tensor of that many megabytes (default
//! 400) of fp32, and the tensor's size over that time. MPI_Allreduce of the MPI library stands beside it. Then, between
//! ranks 0 and 1, half the median round trip of a small and of a 4 MiB message beside MPI_Send and MPI_Recv, and what
//! a receive that nobody waits for costs the core it waits on.

use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::Route;
use herd::world::{Op, World};
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
        ("shared memory, in place", Route::Fastest, true),
        ("shared memory, staged", Route::Fastest, false),
        ("messages", Route::Messages, false),
    ] {
        let wire = world.wire_by(&topo, Axis::Data, via)?;
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
    messages(&world)?;
    world.finalize()
}

/// One-way times between ranks 0 and 1.
fn messages(world: &World) -> herd::error::Result<()> {
    if world.size() < 2 {
        return Ok(());
    }
    let topo = Topology::data(world.rank(), world.size());
    for (name, bytes, rounds) in [("8 bytes", 8usize, 2000), ("4 MiB", 4 << 20, 100)] {
        let t = Tensor::zeros([bytes as i64 / 2], (Kind::BFloat16, tch::Device::Cpu));
        for (via_name, via) in [("lanes", Route::Fastest), ("messages", Route::Messages)] {
            let wire = world.wire_by(&topo, Axis::Data, via)?;
            ping_pong(world, name, via_name, bytes, rounds, |first| {
                let other = 1 - wire.rank();
                for send in [first, !first] {
                    let work = if send { wire.send(&t, other)? } else { wire.recv(&t, other)? };
                    work.wait()?;
                }
                Ok(())
            })?;
        }
        ping_pong(world, name, "MPI_Send, MPI_Recv", bytes, rounds, |first| {
            let (data, n, other) = (t.data_ptr(), bytes as i32, 1 - world.rank() as i32);
            for send in [first, !first] {
                // SAFETY: the tensor has that many bytes; both calls block.
                unsafe {
                    let (byte, comm) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
                    match send {
                        true => ffi::MPI_Send(data, n, byte, other, 9, comm),
                        false => ffi::MPI_Recv(data, n, byte, other, 9, comm, ffi::RSMPI_STATUS_IGNORE),
                    };
                }
            }
            Ok(())
        })?;
    }
    for (name, via) in [("lanes", Route::Fastest), ("messages", Route::Messages)] {
        let wire = world.wire_by(&topo, Axis::Data, via)?;
        let t = Tensor::zeros([1 << 20], f32_cpu());
        world.barrier()?;
        if world.rank() == 0 {
            let early = wire.recv(&t, 1)?;
            let before = cpu_seconds();
            std::thread::sleep(std::time::Duration::from_secs(1));
            println!("early receive   {name:25} {:8.2} % of a core", (cpu_seconds() - before) * 100.0);
            early.wait()?;
        } else if world.rank() == 1 {
            std::thread::sleep(std::time::Duration::from_millis(1200));
            wire.send(&t, 0)?.wait()?;
        }
        world.barrier()?;
    }
    Ok(())
}

fn ping_pong(
    world: &World, what: &str, via: &str, bytes: usize, rounds: usize,
    mut body: impl FnMut(bool) -> herd::error::Result<()>,
) -> herd::error::Result<()> {
    let mut times = Vec::new();
    world.barrier()?;
    if world.rank() < 2 {
        for _ in 0..rounds {
            let start = Instant::now();
            body(world.rank() == 0)?;
            times.push(start.elapsed().as_secs_f64() / 2.0);
        }
    }
    world.barrier()?;
    times.sort_by(f64::total_cmp);
    if world.rank() == 0 {
        let t = times[rounds / 2];
        println!("{what:15} {via:25} {:8.1} us  {:6.2} GB/s", t * 1e6, bytes as f64 / t / 1e9);
    }
    Ok(())
}

/// Of all threads of this process, user and system.
fn cpu_seconds() -> f64 {
    // SAFETY: plain data and an out parameter.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
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
