//! The NCCL wire against a stand-in for the CUDA runtime and NCCL (`tests/fake.cpp`): what needs no GPU to be wrong. Ranks
//! are threads and share one compute stream, so all of them start before one waits.

use super::*;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::Instant;

const NAME: &str = "wire::nccl::tests::against_a_stand_in";
const INSIDE: &str = "HERD_TEST_FAKE_CUDA";

/// Runs itself again with the stand-in loaded first: libtorch_cpu brings a real libcudart along.
#[test]
fn against_a_stand_in() {
    if std::env::var_os(INSIDE).is_some() {
        operations_run_behind_computation_and_before_what_follows();
        receives_started_early_hold_nothing_up();
        the_wire_makes_its_communicator_when_first_used();
        the_stop_flag_and_a_lost_peer_end_every_wait();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("fake.cpp"), dir.path().join("fake.so"));
    std::fs::write(&source, include_str!("tests/fake.cpp")).unwrap();
    let mut build = Command::new("c++");
    build.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(&source);
    match nccl_header() {
        Some(include) => {
            // All that nccl.h needs of CUDA is a type that the fake declares.
            ["cuda_runtime.h", "cuda_fp16.h"].iter().for_each(|h| std::fs::write(dir.path().join(h), "").unwrap());
            build.arg("-DREAL_NCCL").arg("-I").arg(dir.path()).arg("-I").arg(include);
        }
        None => eprintln!("skipped: no nccl.h beside libtorch to compare declarations with"),
    }
    assert!(build.status().unwrap().success(), "c++ builds the stand-in");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", NAME, "--nocapture"]).env("LD_PRELOAD", &library).env(INSIDE, "1");
    let out = child.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

struct Fake {
    compute: extern "C" fn(c_int, *mut f32, usize, f32),
    lose_peer: extern "C" fn(c_int),
}

fn fake() -> Fake {
    // SAFETY: the preloaded stand-in defines both with the types of the fields.
    unsafe {
        let find = |name: &std::ffi::CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        let (compute, lose_peer) = (find(c"fake_compute"), find(c"fake_lose_peer"));
        assert!(!compute.is_null() && !lose_peer.is_null(), "the stand-in is loaded");
        Fake {
            compute: std::mem::transmute::<*mut c_void, extern "C" fn(c_int, *mut f32, usize, f32)>(compute),
            lose_peer: std::mem::transmute::<*mut c_void, extern "C" fn(c_int)>(lose_peer),
        }
    }
}

/// Of the NCCL that PyTorch's wheel brings.
fn nccl_header() -> Option<PathBuf> {
    let include = Path::new(&std::env::var_os("LIBTORCH")?).join("../nvidia/nccl/include");
    include.join("nccl.h").exists().then_some(include)
}

fn common() -> Common {
    Common { gpu: Gpu::new(0).unwrap(), stop: Arc::default(), clock: Arc::default(), meter: None }
}

fn party(id: &[u8; ID], rank: usize, size: usize) -> Party {
    let letter = Tensor::from_slice(&[&id[..], &[0]].concat());
    Party { rank, size, id: Work::ready(), letter }
}

fn start(
    channel: &Channel, common: &Common, what: NcclOperation, input: &Tensor, output: &Tensor, count: usize,
) -> Work {
    let call = Call { what, input: input.data_ptr(), output: output.data_ptr(), count, kind: input.kind() };
    let ready = common.gpu.record(COMPUTE).unwrap();
    Work::later(Box::new(Enqueued {
        ended: Ended::Asked(channel.start(call, ready)),
        comm: channel.comm().clone(),
        gpu: common.gpu,
        clock: common.clock.clone(),
        tensors: Some([input.shallow_clone(), output.shallow_clone()]),
    }))
}

/// What reading a value does on a device: waits for the compute stream.
fn synchronise(gpu: &Gpu) {
    let end = gpu.record(COMPUTE).unwrap();
    while !gpu.reached(&end).unwrap() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn floats(t: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(t).unwrap()
}

fn zeros(n: i64) -> Tensor {
    Tensor::zeros([n], (Kind::Float, Device::Cpu))
}

fn operations_run_behind_computation_and_before_what_follows() {
    let fake = &fake();
    const RANKS: usize = 3;
    let id = unique_id().unwrap().0;
    let barrier = Barrier::new(RANKS);
    std::thread::scope(|s| {
        for rank in 0..RANKS {
            let barrier = &barrier;
            s.spawn(move || {
                let common = common();
                let channel = Channel::open(common.clone(), party(&id, rank, RANKS)).unwrap();
                let all = |what, count, input: &Tensor, output: &Tensor| {
                    barrier.wait();
                    // The values come while the operation is being started, 20 ms later.
                    (fake.compute)(20, input.data_ptr().cast(), input.numel(), 1.0 + rank as f32);
                    let mut work = start(&channel, &common, what, input, output, count);
                    assert!(!work.is_done());
                    barrier.wait();
                    let timing = work.wait().unwrap();
                    assert!(timing.busy == Duration::ZERO && timing.exposed < Duration::from_secs(5));
                    barrier.wait();
                    synchronise(&common.gpu);
                };
                let t = zeros(6);
                all(NcclOperation::AllReduce(Op::Sum), 6, &t, &t);
                assert_eq!(floats(&t), [6.0; 6]);
                all(NcclOperation::AllReduce(Op::Max), 6, &t, &t);
                assert_eq!(floats(&t), [3.0; 6]);
                let (input, output) = (zeros(6), zeros(2));
                all(NcclOperation::ReduceScatter, 2, &input, &output);
                assert_eq!(floats(&output), [6.0; 2]);
                let (input, output) = (zeros(2), zeros(6));
                all(NcclOperation::AllGather, 2, &input, &output);
                assert_eq!(floats(&output), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
                all(NcclOperation::Broadcast(2), 6, &t, &t);
                assert_eq!(floats(&t), [3.0; 6]);
                common.clock.collect(&common.gpu).unwrap();
                let total = common.clock.take();
                assert!(total.busy > Duration::ZERO && total.exposed > Duration::ZERO, "{total:?}");
            });
        }
    });
}

fn receives_started_early_hold_nothing_up() {
    let ids = [unique_id().unwrap().0, unique_id().unwrap().0];
    let barrier = Barrier::new(2);
    std::thread::scope(|s| {
        for rank in 0..2 {
            let (barrier, ids) = (&barrier, &ids);
            s.spawn(move || {
                let common = common();
                let to = Channel::open(common.clone(), party(&ids[rank], 0, 2)).unwrap();
                let from = Channel::open(common.clone(), party(&ids[1 - rank], 1, 2)).unwrap();
                let inbox = [zeros(3), zeros(4)];
                let early = inbox.each_ref().map(|t| start(&from, &common, NcclOperation::Recv(0), t, t, t.numel()));
                barrier.wait();
                let mail = [3, 4].map(|n| Tensor::full([n], (10 * rank as i64) + n, (Kind::Float, Device::Cpu)));
                let sent = mail.each_ref().map(|t| start(&to, &common, NcclOperation::Send(1), t, t, t.numel()));
                barrier.wait();
                sent.into_iter().chain(early).for_each(|w| _ = w.wait().unwrap());
                synchronise(&common.gpu);
                let other = 10.0 * (1 - rank) as f32;
                assert_eq!((floats(&inbox[0]), floats(&inbox[1])), (vec![other + 3.0; 3], vec![other + 4.0; 4]));
            });
        }
    });
}

fn the_wire_makes_its_communicator_when_first_used() {
    assert_eq!(version().unwrap(), 22809);
    assert_eq!(bus_id(3).unwrap(), "0000:03:00.0");
    let (gpu, stop) = (Gpu::new(0).unwrap(), Arc::new(AtomicBool::new(false)));
    let wire = NcclWire::on(MpiWire::solo(), Device::Cpu, gpu, stop.clone()).unwrap();
    assert!(lock(&wire.comms).is_empty());
    let t = wire.tensor(5, Kind::Float).unwrap() + 2.0;
    wire.all_reduce(&t, Op::Sum).unwrap().wait().unwrap();
    synchronise(&gpu);
    assert!(floats(&t) == [2.0; 5] && lock(&wire.comms).len() == 1);
    let refused = wire.all_reduce(&Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)).transpose(0, 1), Op::Sum);
    assert_eq!(refused.err().unwrap().exit, Exit::Internal);
    std::thread::sleep(4 * LOOK);
    assert!(wire.measured().busy > Duration::ZERO && wire.measured().busy == Duration::ZERO);
    assert!(wire.sound().is_ok());
    stop.store(true, Ordering::Relaxed);
    assert_eq!(wire.all_reduce(&t, Op::Sum).err().unwrap().exit, Exit::Peer);
    // what was on its way is given up, and what it leaves is not to be used
    let began = Instant::now();
    while wire.sound().is_ok() && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(LOOK);
    }
    assert_eq!(wire.sound().unwrap_err().exit, Exit::Peer);
}

/// Without its peer: a communicator that is never complete, and an operation that never ends on the device.
fn the_stop_flag_and_a_lost_peer_end_every_wait() {
    let lose_peer = fake().lose_peer;
    for lost in [false, true] {
        let common = common();
        let (alone, together) = (unique_id().unwrap().0, unique_id().unwrap().0);
        let waiting = Channel::open(common.clone(), party(&alone, 0, 2)).unwrap();
        let running = Channel::open(common.clone(), party(&together, 0, 2)).unwrap();
        let peer = Channel::open(self::common(), party(&together, 1, 2)).unwrap();
        let comms = Arc::new(Mutex::new(vec![waiting.comm().clone(), running.comm().clone()]));
        let watcher = std::thread::spawn({
            let (comms, common) = (Arc::downgrade(&comms), common.clone());
            move || watch(&comms, &common)
        });
        let t = zeros(5);
        let never = start(&running, &common, NcclOperation::AllReduce(Op::Sum), &t, &t, 5);
        assert!(never.wait().is_ok(), "ordered on the device, which the host does not wait for");
        let stuck = start(&waiting, &common, NcclOperation::AllReduce(Op::Sum), &t, &t, 5);
        let begin = std::thread::spawn({
            let stop = common.stop.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                match lost {
                    true => lose_peer(1),
                    false => stop.store(true, Ordering::Relaxed),
                }
                Instant::now()
            }
        });
        let e = stuck.wait().unwrap_err();
        synchronise(&common.gpu);
        let took = begin.join().unwrap().elapsed();
        assert_eq!(e.exit, Exit::Peer, "{e}");
        assert!(!lost || e.fact.contains("NCCL code 6"), "{e}");
        assert!(took < Duration::from_millis(200), "left after {took:?}");
        let later = start(&running, &common, NcclOperation::AllReduce(Op::Sum), &t, &t, 5);
        assert_eq!(later.wait().unwrap_err().exit, Exit::Peer);
        lose_peer(0);
        drop((comms, peer));
        watcher.join().unwrap();
    }
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let why = crate::dynamic::Library::with(c"herd_no_such_function", &[c"libherd-no-such.so.2"]).err().unwrap();
    assert!(why.contains("libherd-no-such.so.2"), "{why}");
}
