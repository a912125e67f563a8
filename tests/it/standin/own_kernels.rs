//! herd's own kernels: compiled for real cards by NVRTC, and run under emulation (tests/emu) through the code that launches them on a
//! card, against the reference in fp64.

use super::{environment, inside, INSIDE_STANDIN};
use crate::support::text;
use herd::kernels::cuda::compiled::{OwnKernels, SOURCE};
use herd::kernels::cuda::nvrtc::{Nvrtc, Target};
use herd::kernels::cuda::own;
use herd::kernels::{reference, AdamW};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};

const CARD: Device = Device::Cuda(0);
/// Orders in which threads and blocks run.
const SEEDS: [&str; 8] = ["1", "2", "3", "4", "5", "6", "7", "8"];
/// The most registers that leave a block of each kernel room on a multiprocessor (65,536 of them) beside others.
const REGISTERS: u32 = 255;

/// Leaves what a test found in the folder that HERD_KERNELS_OUT names (benchmarks/gpu.py).
fn told(name: &str, found: Value) {
    if let Some(folder) = std::env::var_os("HERD_KERNELS_OUT") {
        std::fs::write(Path::new(&folder).join(format!("{name}.json")), found.to_string()).unwrap();
    }
}

/// Kernels, with what the compiler says of them.
fn compiled(capability: u32) -> Option<Vec<(String, u32, u32)>> {
    let nvrtc = match Nvrtc::get() {
        Ok(nvrtc) => nvrtc,
        Err(why) => {
            eprintln!("skipped: no NVRTC: {why}");
            return None;
        }
    };
    let made = nvrtc.compile(SOURCE, Target::Cubin(capability), &["--ptxas-options=-v"]).unwrap();
    assert!(made.image.starts_with(b"\x7fELF"));
    assert!(!made.log.contains("warning"), "{}", made.log);
    let number = |line: &str, after: &str| -> u32 {
        let rest = line.split(after).next().unwrap().split_whitespace().last().unwrap();
        rest.parse().unwrap()
    };
    let mut out = Vec::new();
    for entry in made.log.split("Compiling entry function '").skip(1) {
        let name = entry.split('\'').next().unwrap().to_string();
        let spills = number(entry, " bytes spill stores") + number(entry, " bytes spill loads");
        out.push((name, spills, number(entry, " registers")));
    }
    Some(out)
}

#[test]
fn every_kernel_compiles_for_every_card_and_spills_nothing() {
    let entries = SOURCE.matches("extern \"C\" __global__").count();
    assert!(entries > 8);
    for capability in [80, 90, 100] {
        let Some(kernels) = compiled(capability) else { return };
        // macros make several of one line
        assert!(kernels.len() >= 29, "sm_{capability}: {} kernels", kernels.len());
        for (name, spills, registers) in &kernels {
            assert_eq!(*spills, 0, "sm_{capability}: {name} spills");
            assert!(*registers <= REGISTERS, "sm_{capability}: {name} takes {registers} registers");
        }
        let rows: Vec<_> =
            kernels.iter().map(|(name, s, r)| json!({"name": name, "spills": s, "registers": r})).collect();
        told(&format!("sm_{capability}"), json!(rows));
    }
}

/// Rows are moved 16 bytes at a time: read from the assembly.
#[test]
fn kernels_move_sixteen_bytes_at_a_time() {
    let Ok(nvrtc) = Nvrtc::get() else { return eprintln!("skipped: no NVRTC") };
    let ptx = nvrtc.compile(SOURCE, Target::Ptx(90), &[]).unwrap();
    let ptx = String::from_utf8_lossy(&ptx.image).into_owned();
    for kernel in [
        "rms_norm_bf16",
        "rms_norm_backward_bf16_2",
        "swiglu_bf16",
        "swiglu_backward_bf16",
        "rope_bf16",
        "loss_bf16",
        "adamw_bf16",
        "embedding_backward_bf16",
        "squares",
    ] {
        let body =
            ptx.split(&format!(".entry {kernel}(")).nth(1).unwrap_or_else(|| panic!("{kernel} is not in the PTX"));
        let body = body.split(".entry ").next().unwrap();
        let wide = |what: &str| {
            body.lines()
                .filter(|l| l.contains(what) && l.contains(".v4.") || l.contains(what) && l.contains(".v2.b64"))
                .count()
        };
        assert!(wide("ld.global") > 0, "{kernel} loads no vector:\n{body}");
        if !["squares", "embedding_backward_bf16"].contains(&kernel) {
            assert!(wide("st.global") > 0, "{kernel} stores no vector:\n{body}");
        }
    }
}

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// The largest difference, against the largest value, of what a card gave and what fp64 gives.
fn gap(got: &Tensor, want: &Tensor) -> f64 {
    let got = got.to_device(Device::Cpu).to_kind(Kind::Double);
    let want = want.to_kind(Kind::Double);
    assert_eq!(got.size(), want.size());
    let scale = want.abs().max().double_value(&[]).max(1e-30);
    (got - want).abs().max().double_value(&[]) / scale
}

fn band(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 1.0 / 128.0,
        _ => 3e-6,
    }
}

#[track_caller]
fn near(kind: Kind, what: &str, got: &Tensor, want: &Tensor) {
    let gap = gap(got, want);
    assert!(gap <= band(kind), "{kind:?} {what}: off by {gap:e}");
}

fn f64s(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double)
}

/// Each operation in every form; the bits of all results, as one list.
fn all_operations() -> Vec<Tensor> {
    let mut bits = Vec::new();
    let on = |t: &Tensor| t.to_device(CARD);
    for kind in [Kind::BFloat16, Kind::Float] {
        for (n, h) in [(1, 8), (3, 64), (37, 200), (5, 2056), (300, 32)] {
            let (x, dy, w, residual) =
                (random(&[n, h], kind), random(&[n, h], kind), random(&[h], kind), random(&[n, h], kind));
            let (y, rstd) = own::rms_norm(&on(&x), &on(&w), 1e-5).expect("taken");
            let xd = f64s(&x);
            let r = (xd.square().mean_dim([-1i64].as_slice(), true, Kind::Double) + 1e-5).rsqrt();
            near(kind, "rms_norm", &y, &(&xd * &r * f64s(&w)));
            near(Kind::Float, "rstd", &rstd, &r.squeeze_dim(-1));
            for rest in [None, Some(&residual)] {
                let dw = Tensor::ones([h], (Kind::Float, CARD));
                let dx = own::rms_norm_backward(&on(&dy), &on(&x), &on(&w), &rstd, rest.map(on).as_ref(), &dw)
                    .expect("taken");
                let (hat, g) = (&xd * &r, f64s(&dy) * f64s(&w));
                let mean = (&g * &hat).mean_dim([-1i64].as_slice(), true, Kind::Double);
                let mut want = (&g - &hat * mean) * &r;
                if let Some(rest) = rest {
                    want += f64s(rest);
                }
                near(kind, "rms_norm_backward", &dx, &want);
                let sum = (f64s(&dy) * &hat).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
                near(Kind::Float, "dw", &dw, &(sum + 1.0));
                bits.extend([dx, dw]);
            }
            bits.extend([y, rstd]);
            let (gate_up, dact) = (random(&[n, 2 * h], kind), random(&[n, h], kind));
            let act = own::swiglu(&on(&gate_up)).expect("taken");
            near(kind, "swiglu", &act, &reference::swiglu(&f64s(&gate_up)));
            let d = own::swiglu_backward(&on(&dact), &on(&gate_up)).expect("taken");
            near(kind, "swiglu_backward", &d, &reference::swiglu_backward(&f64s(&dact), &f64s(&gate_up)));
            bits.extend([act, d]);
        }
        bits.extend(rope(kind));
        bits.extend(losses(kind));
        bits.extend(embedding(kind));
        bits.extend(adamw(kind));
    }
    for n in [1, 3, 1000, 70_001] {
        let x = random(&[n], Kind::Float);
        let got = own::sum_squares(&on(&x)).expect("taken");
        let want = f64s(&x).square().sum(Kind::Double).double_value(&[]);
        assert!((got - want).abs() <= 1e-6 * want, "sum of {n} squares: {got} for {want}");
        bits.push(Tensor::from(got));
    }
    bits
}

fn rope(kind: Kind) -> Vec<Tensor> {
    let (b, s, heads, d) = (2, 5, 3, 32);
    let row = random(&[b, s, heads + 2, d], kind);
    let half = [s, d / 2];
    let (cos, sin) = (random(&half, Kind::Float), random(&half, Kind::Float));
    let mut out = Vec::new();
    for inverse in [false, true] {
        let there = row.to_device(CARD);
        own::rope_(&there.narrow(2, 1, heads), &cos.to_device(CARD), &sin.to_device(CARD), inverse).expect("taken");
        let want = f64s(&row);
        let part = want.narrow(2, 1, heads);
        let (lo, hi) = (part.narrow(3, 0, d / 2).copy(), part.narrow(3, d / 2, d / 2).copy());
        let (c, s) = (f64s(&cos).unsqueeze(1), f64s(&sin).unsqueeze(1) * if inverse { -1.0 } else { 1.0 });
        part.narrow(3, 0, d / 2).copy_(&(&lo * &c - &hi * &s));
        part.narrow(3, d / 2, d / 2).copy_(&(&hi * &c + &lo * &s));
        near(kind, "rope, and what lies around it", &there, &want);
        out.push(there);
    }
    out
}

fn losses(kind: Kind) -> Vec<Tensor> {
    let mut out = Vec::new();
    for (n, v) in [(1, 16), (7, 1000), (40, 264)] {
        let logits = random(&[n, v], kind) * 4.0;
        let targets = Tensor::randint(v, [n], (Kind::Int64, Device::Cpu));
        if n > 1 {
            let _ = targets.get(1).fill_(-100);
        }
        let there = logits.to_device(CARD);
        let ids = targets.to_device(CARD);
        let only = own::cross_entropy_(&there, &ids, None, 1e-3).expect("taken");
        near(kind, "logits that no gradient was asked of", &there, &logits);
        let sums = own::cross_entropy_(&there, &ids, Some(0.25), 1e-3).expect("taken");
        assert_eq!(only, sums);
        let want = logits.to_kind(Kind::Float).copy();
        let right = reference::cross_entropy_(&want, &targets, Some(0.25), 1e-3);
        assert!((sums.loss - right.loss).abs() <= 1e-5 * right.loss.abs().max(1.0), "{sums:?} for {right:?}");
        assert!(
            (sums.z - right.z).abs() <= 1e-5 * right.z.max(1.0) && sums.tokens == right.tokens,
            "{sums:?} for {right:?}"
        );
        near(if kind == Kind::Float { kind } else { Kind::BFloat16 }, "gradient", &there, &want);
        // columns 8.. of a vocabulary, as a tensor rank has them
        let (first, fresh) = (8, logits.to_device(CARD));
        let wide: Tensor =
            &targets + first * targets.ge(0).to_kind(Kind::Int64) - 3 * targets.ge(6).to_kind(Kind::Int64);
        let part = own::cross_entropy_part(&fresh, &wide.to_device(CARD), first).expect("taken");
        let want = reference::cross_entropy_part(&logits.to_kind(Kind::Float), &wide, first);
        near(Kind::Float, "part", &part, &want);
        let lse = part.get(0).contiguous();
        own::cross_entropy_gradient_(&fresh, &wide.to_device(CARD), first, &lse, 0.5, 1e-3).expect("taken");
        let want = logits.to_kind(Kind::Float).copy();
        reference::cross_entropy_gradient_(&want, &wide, first, &lse.to_device(Device::Cpu), 0.5, 1e-3);
        near(kind, "gradient of columns", &fresh, &want);
        out.extend([there, part, fresh]);
    }
    out
}

fn embedding(kind: Kind) -> Vec<Tensor> {
    let (n, v, h) = (70, 9, 40);
    let dy = random(&[n, h], kind);
    let ids = Tensor::randint(v - 1, [n], (Kind::Int64, Device::Cpu)); // the last row gets nothing
    let grad = Tensor::ones([v, h], (Kind::Float, CARD));
    own::embedding_backward(&dy.to_device(CARD), &ids.to_device(CARD), &grad).expect("taken");
    let want = Tensor::ones([v, h], (Kind::Double, Device::Cpu)).index_add(0, &ids, &f64s(&dy));
    near(Kind::Float, "embedding_backward", &grad, &want);
    vec![grad]
}

fn adamw(kind: Kind) -> Vec<Tensor> {
    let h = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    let mut out = Vec::new();
    for n in [1i64, 7, 4096, 5003] {
        let [w, m, g] = [0, 1, 2].map(|_| random(&[n], Kind::Float));
        let v = random(&[n], Kind::Float).square();
        let there: Vec<Tensor> = [&w, &m, &v, &g].iter().map(|t| t.to_device(CARD)).collect();
        let param = match kind {
            Kind::Float => there[0].shallow_clone(),
            _ => Tensor::empty([n], (kind, CARD)),
        };
        own::adamw(&h, &there[0], &param, &there[1], &there[2], &there[3]).expect("taken");
        let [w, m, v, g] = [w, m, v, g].map(|t| f64s(&t));
        reference::adamw(&h, &w, &w, &m, &v, &g);
        for (name, got, want) in [("master", &there[0], &w), ("m", &there[1], &m), ("v", &there[2], &v)] {
            near(Kind::Float, name, got, want);
        }
        near(kind, "parameter", &param, &w);
        out.extend(there);
        out.push(param);
    }
    out
}

#[test]
fn every_kernel_equals_fp64_and_itself_under_eight_orders() {
    let name = "standin::own_kernels::every_kernel_equals_fp64_and_itself_under_eight_orders";
    if Nvrtc::get().is_err() {
        return eprintln!("skipped: no NVRTC, whose kernels these are");
    }
    if std::env::var_os(INSIDE_STANDIN).is_none() {
        let out = tempfile::tempdir().unwrap();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for seed in SEEDS {
            let file = out.path().join(seed);
            if inside(name, &[("EMU_SEED", seed), ("EMU_OUT", file.to_str().unwrap())]) {
                return;
            }
            let Ok(bytes) = std::fs::read(file) else { return }; // no stand-in here
            all.push(bytes);
        }
        assert!(!all[0].is_empty() && all.iter().all(|b| *b == all[0]), "the same bits in every order");
        let results: usize = std::fs::read_to_string(out.path().join("results")).unwrap().parse().unwrap();
        return told("emulated", json!({"results": results, "orders": SEEDS.len()}));
    }
    assert!(inside(name, &[]));
    assert!(OwnKernels::of(CARD).is_some(), "the kernels are there");
    tch::manual_seed(7);
    let (mut bytes, results) = (Vec::new(), all_operations());
    let file = PathBuf::from(std::env::var_os("EMU_OUT").expect("the outer test names a file"));
    std::fs::write(file.with_file_name("results"), results.len().to_string()).unwrap();
    for t in results {
        let t = t.to_device(Device::Cpu).contiguous();
        let mut one = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
        t.view([-1]).copy_data_u8(&mut one, t.numel());
        bytes.extend(one);
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_barrier_taken_out_is_found() {
    let name = "standin::own_kernels::a_barrier_taken_out_is_found";
    if Nvrtc::get().is_err() {
        return eprintln!("skipped: no NVRTC");
    }
    if std::env::var_os(INSIDE_STANDIN).is_some() {
        assert_eq!(herd::kernels::device::cuda_device_count(), 1, "the stand-in is found");
        let x = Tensor::ones([4, 512], (Kind::Float, CARD));
        let _ = own::rms_norm(&x, &Tensor::ones([512], (Kind::Float, CARD)), 1e-5);
        return;
    }
    let Some(environment) = environment() else { return };
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .envs(environment.iter().map(|(k, v)| (*k, v.clone())));
    let path = environment.iter().find(|(k, _)| *k == "LD_LIBRARY_PATH").unwrap().1.to_str().unwrap().to_string();
    let planted = format!("{}/planted", path.split(':').next().unwrap());
    let out = child.env("LD_LIBRARY_PATH", format!("{planted}:{path}")).output().unwrap();
    let said = text(&out);
    let races =
        said.split(" races in shared memory").next().and_then(|s| s.rsplit(|c: char| !c.is_ascii_digit()).next());
    let races: u64 = races.and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(!out.status.success() && races > 0, "{said}");
    told("planted", json!({ "races": races }));
}

#[test]
fn tensors_that_the_kernels_do_not_take_go_another_way() {
    if !inside("standin::own_kernels::tensors_that_the_kernels_do_not_take_go_another_way", &[]) {
        return;
    }
    let half = |size: &[i64]| Tensor::randn(size, (Kind::Float, CARD));
    let w = half(&[6]);
    // rows of 24 bytes; not dense; not at a vector's start
    assert!(own::rms_norm(&half(&[4, 6]), &w, 1e-5).is_none());
    assert!(own::swiglu(&half(&[4, 32]).narrow(1, 0, 16)).is_none());
    assert!(own::sum_squares(&half(&[65]).narrow(0, 1, 64)).is_none());
    assert!(own::swiglu(&half(&[0, 32])).is_none());
    assert!(own::swiglu(&Tensor::randn([4, 32], (Kind::Float, Device::Cpu))).is_none());
    let (y, _) = herd::kernels::rms_norm(&half(&[4, 6]), &w, 1e-5);
    assert!(y.isfinite().all().int64_value(&[]) == 1);
}
