//! Every wait can be left: with a peer that is stopped, setting the stop flag ends it with `Exit::Peer`.

use super::{outcome, text};
use herd::error::{Exit, Result};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::{Backend, Route, Wire};
use herd::world::{Op, World};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// What it takes at most from the flag to the return of the wait, on one of two tries; a machine that is busy with
/// something else may take longer once.
const PROMPT: Duration = Duration::from_millis(200);
const TRIES: usize = 2;

type Wait = Box<dyn FnOnce() -> Result<()>>;

/// Rank 0 makes the waits before rank 1 is stopped, since making a wire needs both.
fn leaves(world: &World, name: &str, waits: Vec<(String, Wait)>) -> Vec<Duration> {
    let flag = world.stop_flag();
    let mut took = Vec::new();
    for (what, wait) in waits {
        let setter = std::thread::spawn({
            let flag = flag.clone();
            move || {
                std::thread::sleep(Duration::from_millis(30));
                flag.store(true, SeqCst);
                Instant::now()
            }
        });
        let e = wait().err().unwrap_or_else(|| panic!("{name}: {what} ended without its peer"));
        took.push(setter.join().unwrap().elapsed());
        assert_eq!(e.exit, Exit::Peer, "{name}: {what}: {e}");
        flag.store(false, SeqCst);
    }
    took
}

fn blank() -> Tensor {
    Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu))
}

/// One wait for each operation of a wire, each on a wire of its own: a stopped wire is of no more use.
fn wire_waits(make: impl Fn() -> Box<dyn Wire>) -> Vec<(String, Wait)> {
    type Start = fn(&dyn Wire) -> Result<herd::wire::Work>;
    let starts: [(&str, Start); 6] = [
        ("all-reduce", |w| w.all_reduce(&blank(), Op::Sum)),
        ("reduce-scatter", |w| w.reduce_scatter(&blank(), &blank().narrow(0, 0, 1 << 19))),
        ("all-gather", |w| w.all_gather(&blank().narrow(0, 0, 1 << 19), &blank())),
        ("broadcast", |w| w.broadcast(&blank(), 1)),
        ("send", |w| w.send(&blank(), 1)),
        ("recv", |w| w.recv(&blank(), 1)),
    ];
    let mut waits: Vec<(String, Wait)> = Vec::new();
    for (name, start) in starts {
        let wire = make();
        waits.push((name.to_string(), Box::new(move || start(&*wire)?.wait().map(|_| ()))));
    }
    waits
}

fn control_waits(world: &World) -> Vec<(String, Wait)> {
    type Call = fn(World) -> Result<()>;
    let calls: [(&str, Call); 7] = [
        ("barrier", |w| w.barrier()),
        ("gather", |w| w.gather_bytes(b"here", 0).map(|_| ())),
        ("broadcast", |w| w.broadcast_bytes(vec![], 1).map(|_| ())),
        ("all-gather", |w| w.all_gather_bytes(b"here").map(|_| ())),
        ("all-reduce", |w| w.all_reduce_f64(&[1.0], Op::Sum).map(|_| ())),
        ("agree", |w| w.agree(Ok(()))),
        ("finalize", |w| w.finalize()),
    ];
    calls
        .into_iter()
        .map(|(name, call)| {
            let world = world.duplicate().unwrap();
            (name.to_string(), Box::new(move || call(world)) as Wait)
        })
        .collect()
}

#[test]
fn every_wait_can_be_left() {
    if let Some(out) = outcome(2, "wire::stops::every_wait_can_be_left") {
        assert!(text(&out).contains("all waits left"), "{}", text(&out));
        return;
    }
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let topo = Topology::data(world.rank(), 2);
    let mut sets: Vec<(String, Vec<(String, Wait)>)> = Vec::new();
    for _ in 0..TRIES {
        for way in [
            Backend::Host(Route::Fastest),
            Backend::Host(Route::Messages),
            Backend::Staged(Device::Cpu, Route::Fastest),
            Backend::Staged(Device::Cpu, Route::Messages),
        ] {
            let make = || world.wire_group_on(&topo.group(Axis::Data), way).unwrap();
            sets.push((format!("{way:?}"), wire_waits(make)));
        }
        sets.push(("control".into(), control_waits(&world)));
    }
    let pids = world.all_gather_bytes(&std::process::id().to_le_bytes()).unwrap();
    if world.rank() == 1 {
        // SAFETY: stops this process until rank 0 continues it.
        unsafe { libc::raise(libc::SIGSTOP) };
        herd::world::leave(0);
    }
    let peer = i32::from_le_bytes(pids[1][..].try_into().unwrap());
    while !std::fs::read_to_string(format!("/proc/{peer}/stat")).unwrap().contains(") T ") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut took = std::collections::BTreeMap::new();
    for (name, waits) in sets {
        let whats: Vec<String> = waits.iter().map(|w| format!("{name}: {}", w.0)).collect();
        for (what, t) in whats.into_iter().zip(leaves(&world, &name, waits)) {
            let best = took.entry(what).or_insert(t);
            *best = t.min(*best);
        }
    }
    // SAFETY: continues the process that this test stopped.
    unsafe { libc::kill(peer, libc::SIGCONT) };
    let late: Vec<_> = took.iter().filter(|(_, t)| **t > PROMPT).collect();
    eprintln!("{} waits, the slowest left after {:?}", took.len(), took.values().max().unwrap());
    assert!(late.is_empty(), "{late:?}");
    eprintln!("all waits left");
    herd::world::leave(0);
}
