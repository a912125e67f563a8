//! Times every kernel against libtorch (the reference; for attention its flash attention) at the shape of the benchmark model and prints a table.
//!
//! `cargo bench --bench kernels [-- [--threads N] [--batch N] [--cpu-time] [NAME…]]`: NAME is a part of a kernel's name. Each
//! time is the smallest of several runs, ours and the reference's in turn; the last column is what a step of eight layers
//! saves. On a busy machine use `--threads 1 --cpu-time`: seconds of the processor instead of the clock on the wall.

use herd::kernels::{self, reference, AdamW};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 768;
const FEED_FORWARD: i64 = 2048;
const LAYERS: i64 = 8;
const HEADS: i64 = 12;
const KV_HEADS: i64 = 4;
const WIDTH: i64 = 64;
const VOCABULARY: i64 = 32_000;
const SEQUENCE: i64 = 512;
const RUNS: usize = 7;

struct Table {
    clock: fn() -> f64,
    filter: Vec<String>,
    kind: Kind,
    totals: (f64, f64),
}

impl Table {
    /// One line: `calls` a step of each.
    fn line(&mut self, name: &str, calls: i64, flop: f64, mut ours: impl FnMut(), mut theirs: impl FnMut()) {
        if !self.filter.is_empty() && !self.filter.iter().any(|f| name.contains(f.as_str())) {
            return;
        }
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..RUNS {
            best.0 = best.0.min(time(self.clock, &mut ours));
            best.1 = best.1.min(time(self.clock, &mut theirs));
        }
        let (a, b) = (best.0 * 1e3, best.1 * 1e3);
        let rate = |ms: f64| if flop > 0.0 { format!("{:.0} GFLOP/s", flop / ms / 1e6) } else { String::new() };
        let n = calls as f64;
        println!(
            "{name:28} {a:9.2} {b:9.2} {:6.2}x {:9.1} {:9.1}   {:>12} {:>12}",
            b / a,
            a * n,
            (b - a) * n,
            rate(a),
            rate(b)
        );
        self.totals.0 += a * n;
        self.totals.1 += b * n;
    }
}

fn time(clock: fn() -> f64, f: &mut impl FnMut()) -> f64 {
    let start = clock();
    f();
    clock() - start
}

fn wall() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a valid place for its answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

fn main() {
    let (mut threads, mut batch, mut filter) = (kernels::parallel::threads(), 2, Vec::new());
    let mut clock: fn() -> f64 = wall;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().and_then(|v| v.parse().ok()).unwrap_or(threads),
            "--batch" => batch = args.next().and_then(|v| v.parse().ok()).unwrap_or(batch),
            "--cpu-time" => clock = cpu,
            "--bench" => {}
            _ => filter.push(arg),
        }
    }
    kernels::memory::install();
    kernels::parallel::set_threads(threads);
    for kind in [Kind::BFloat16, Kind::Float] {
        println!("\n{kind:?}, {threads} threads, batch {batch}");
        println!("{:28} {:>9} {:>9} {:>7} {:>9} {:>9}", "", "herd ms", "libtorch", "", "ms/step", "saves");
        let mut table = Table { clock, filter: filter.clone(), kind, totals: (0.0, 0.0) };
        rows(&mut table, batch);
        attention(&mut table, batch);
        matrices(&mut table, batch);
        flat(&mut table);
        println!("{:28} {:47.1} {:9.1}", "total", table.totals.0, table.totals.1 - table.totals.0);
    }
}

fn randn(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn rows(t: &mut Table, batch: i64) {
    let (k, n) = (t.kind, batch * SEQUENCE);
    let (x, w, dw) = (randn(&[n, HIDDEN], k), randn(&[HIDDEN], k), randn(&[HIDDEN], Kind::Float));
    let (_, rstd) = reference::rms_norm(&x, &w, 1e-5);
    let norms = 2 * LAYERS + 1;
    t.line(
        "rms_norm",
        norms,
        0.0,
        || drop(kernels::rms_norm(&x, &w, 1e-5)),
        || drop(reference::rms_norm(&x, &w, 1e-5)),
    );
    t.line(
        "rms_norm_backward",
        norms,
        0.0,
        || drop(kernels::rms_norm_backward(&x, &x, &w, &rstd, Some(&x), &dw)),
        || drop(reference::rms_norm_backward(&x, &x, &w, &rstd, Some(&x), &dw)),
    );
    let angle = randn(&[SEQUENCE, WIDTH / 2], Kind::Float);
    let (cos, sin) = (angle.cos(), angle.sin());
    let qk = randn(&[batch, SEQUENCE, HEADS + 2 * KV_HEADS, WIDTH], k).narrow(2, 0, HEADS + KV_HEADS);
    for (name, inverse) in [("rope", false), ("rope backward", true)] {
        t.line(
            name,
            LAYERS,
            0.0,
            || kernels::rope_(&qk, &cos, &sin, inverse),
            || reference::rope_(&qk, &cos, &sin, inverse),
        );
    }
    let (gate_up, dy) = (randn(&[n, 2 * FEED_FORWARD], k), randn(&[n, FEED_FORWARD], k));
    t.line("swiglu", LAYERS, 0.0, || drop(kernels::swiglu(&gate_up)), || drop(reference::swiglu(&gate_up)));
    t.line(
        "swiglu_backward",
        LAYERS,
        0.0,
        || drop(kernels::swiglu_backward(&dy, &gate_up)),
        || drop(reference::swiglu_backward(&dy, &gate_up)),
    );
    let (a, b) = (randn(&[n, VOCABULARY], k), randn(&[n, VOCABULARY], k));
    let targets = Tensor::randint(VOCABULARY, [n], (Kind::Int64, Device::Cpu));
    t.line(
        "cross_entropy",
        1,
        0.0,
        || _ = kernels::cross_entropy_(&a, &targets, Some(1e-3), 0.0),
        || _ = reference::cross_entropy_(&b, &targets, Some(1e-3), 0.0),
    );
    let grad = randn(&[VOCABULARY, HIDDEN], Kind::Float);
    t.line(
        "embedding_backward",
        1,
        0.0,
        || kernels::embedding_backward(&x, &targets, &grad),
        || reference::embedding_backward(&x, &targets, &grad),
    );
}

fn attention(t: &mut Table, batch: i64) {
    let qkv = randn(&[batch, SEQUENCE, HEADS + 2 * KV_HEADS, WIDTH], t.kind);
    let split =
        |t: &Tensor| (t.narrow(2, 0, HEADS), t.narrow(2, HEADS, KV_HEADS), t.narrow(2, HEADS + KV_HEADS, KV_HEADS));
    let (q, k, v) = split(&qkv);
    let flop = (2 * batch * HEADS * SEQUENCE * SEQUENCE * WIDTH) as f64;
    // libtorch's flash attention wants as many key heads as query heads.
    let spread = |t: &Tensor| t.repeat_interleave_self_int(HEADS / KV_HEADS, 2, None).transpose(1, 2);
    let scale = 1.0 / (WIDTH as f64).sqrt();
    let flash = |q: &Tensor, k: &Tensor, v: &Tensor| {
        let (q, k, v) = (q.transpose(1, 2), spread(k), spread(v));
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&q, &k, &v, 0.0, true, None::<&Tensor>, scale)
    };
    t.line("attention", LAYERS, flop, || drop(kernels::attention(&q, &k, &v)), || drop(flash(&q, &k, &v)));
    let (out, lse) = kernels::attention(&q, &k, &v);
    let (flash_out, flash_lse) = flash(&q, &k, &v);
    let dout = randn(&out.size(), t.kind);
    let d = qkv.empty_like();
    let (mut dq, mut dk, mut dv) = split(&d);
    let (mut eq, mut ek, mut ev) = split(&d);
    let group = |g: Tensor| {
        let g = g.reshape([batch, KV_HEADS, HEADS / KV_HEADS, SEQUENCE, WIDTH]);
        g.sum_dim_intlist([2i64].as_slice(), false, None::<Kind>).transpose(1, 2)
    };
    let flash_backward = |q: &Tensor, k: &Tensor, v: &Tensor| {
        let (q, k, v, dout) = (q.transpose(1, 2), spread(k), spread(v), dout.transpose(1, 2));
        let (out, lse) = (&flash_out, &flash_lse);
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &dout,
            &q,
            &k,
            &v,
            out,
            lse,
            0.0,
            true,
            None::<&Tensor>,
            scale,
        )
    };
    t.line(
        "attention_backward",
        LAYERS,
        2.5 * flop,
        || kernels::attention_backward(&dout, &q, &k, &v, &out, &lse, &mut dq, &mut dk, &mut dv),
        || {
            let (gq, gk, gv) = flash_backward(&q, &k, &v);
            eq.copy_(&gq.transpose(1, 2));
            ek.copy_(&group(gk));
            ev.copy_(&group(gv));
        },
    );
}

fn matrices(t: &mut Table, batch: i64) {
    let (k, n) = (t.kind, batch * SEQUENCE);
    let qkv = (HEADS + 2 * KV_HEADS) * WIDTH;
    for (name, calls, i, o) in [
        ("qkv", LAYERS, HIDDEN, qkv),
        ("attention out", LAYERS, HEADS * WIDTH, HIDDEN),
        ("gate_up", LAYERS, HIDDEN, 2 * FEED_FORWARD),
        ("down", LAYERS, FEED_FORWARD, HIDDEN),
        ("head", 1, HIDDEN, VOCABULARY),
    ] {
        let (x, w, dy, g) = (randn(&[n, i], k), randn(&[o, i], k), randn(&[n, o], k), randn(&[o, i], Kind::Float));
        let flop = (2 * n * i * o) as f64;
        let name = |part: &str| format!("linear {name} {part}");
        t.line(
            &name("fwd"),
            calls,
            flop,
            || drop(kernels::linear(&x, &w, None)),
            || drop(reference::linear(&x, &w, None)),
        );
        t.line(
            &name("dx"),
            calls,
            flop,
            || drop(kernels::linear_backward_input(&dy, &w)),
            || drop(reference::linear_backward_input(&dy, &w)),
        );
        t.line(
            &name("dw"),
            calls,
            flop,
            || kernels::linear_backward_weight(&dy, &x, &g),
            || reference::linear_backward_weight(&dy, &x, &g),
        );
        t.line(
            &name("dw first"),
            0,
            flop,
            || kernels::linear_backward_weight_first(&dy, &x, &g),
            || reference::linear_backward_weight_first(&dy, &x, &g),
        );
    }
}

fn flat(t: &mut Table) {
    let layer =
        HIDDEN * (HEADS + 2 * KV_HEADS) * WIDTH + HEADS * WIDTH * HIDDEN + 3 * HIDDEN * FEED_FORWARD + 2 * HIDDEN;
    let buffer = || randn(&[layer], Kind::Float);
    let (w, m, v, g) = (buffer(), buffer(), buffer().abs(), buffer());
    let p = if t.kind == Kind::Float { w.shallow_clone() } else { w.to_kind(t.kind) };
    let h = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 10, grad_scale: 0.5 };
    // Embedding and head are 24.6 M parameters each, a layer is 6.3 M: sixteen layers' worth.
    let calls = LAYERS + 2 * VOCABULARY * HIDDEN / layer + 1;
    t.line("adamw", calls, 0.0, || kernels::adamw(&h, &w, &p, &m, &v, &g), || reference::adamw(&h, &w, &p, &m, &v, &g));
    t.line("sum_squares", calls, 0.0, || _ = kernels::sum_squares(&g), || _ = reference::sum_squares(&g));
    let x = g.to_kind(t.kind);
    t.line("accumulate", 0, 0.0, || kernels::accumulate(&m, &x), || reference::accumulate(&m, &x));
    let b = g.to_kind(Kind::BFloat16);
    t.line("cast", 0, 0.0, || kernels::cast(&b, &g), || reference::cast(&b, &g));
}
