//! `herd simulate`: the real supervisor through months of faults of a cluster that need not be at hand.

use crate::config::{load, AlertsSection, DeviceChoice};
use crate::error::{Error, Exit, Result};
use crate::plan::estimate::advice::Question;
use crate::plan::estimate::faults::{goodput, rate};
use crate::plan::estimate::{self, Allocation, DeviceKind, Hardware};
use crate::plan::memory::KernelForms;
use crate::simulate::{sweep, Settings, SimReport, Sweep};
use crate::text::grouped;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tch::Device;

/// Simulate a run's faults with the real supervisor: goodput, lost time by cause, spares used, requeues.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd simulate configs/llama3_405b.yaml --nodes 2048 --spares 32 --days 54
  herd simulate --nodes 64 --spares 2 --days 30 --seeds 20 --step-s 8 --failure-rate 0.001
  herd simulate --nodes 64 --days 2 --seed 4711 --even       # one seed again, every kind of fault about as often

With CONFIG, times of steps, saves and restores are those of `herd plan`; without, those given here. What is real and what is
a model: docs/simulation.md.")]
pub struct Args {
    /// Configuration file (YAML): its launch, liveness and checkpoint sections, and the model's speed
    config: Option<PathBuf>,
    /// Nodes that train; spares come on top
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 14))]
    nodes: u32,
    /// Devices of a node, one rank each
    #[arg(long, value_name = "G", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus_per_node: u32,
    /// Nodes of the job that wait for a fault
    #[arg(long, value_name = "N", default_value_t = 0)]
    spares: u32,
    /// Nodes on one switch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1 << 14))]
    switch: u32,
    /// Days to simulate
    #[arg(long, value_name = "D", default_value_t = 30.0, value_parser = positive)]
    days: f64,
    /// First seed: the same seed has the same faults
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Seeds to run, from --seed on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seeds: u64,
    /// Faults of one device a day (default: the device's, 0.000474 for an H100)
    #[arg(long, value_name = "R", value_parser = positive)]
    failure_rate: Option<f64>,
    /// Seconds of a step without saves (default: as planned; 5 without CONFIG)
    #[arg(long, value_name = "S", value_parser = positive)]
    step_s: Option<f64>,
    /// Steps between snapshots in memory, 0 never (default: the configuration's)
    #[arg(long, value_name = "N")]
    snapshot_every: Option<u64>,
    /// Steps between checkpoints, 0 never (default: the configuration's)
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,
    /// Seconds from the start of the ranks to their meeting (default: the device's restart_s)
    #[arg(long, value_name = "S", value_parser = positive)]
    start_s: Option<f64>,
    /// Every kind of fault about as often, to look for mistakes of the supervisor
    #[arg(long)]
    even: bool,
    /// h100, h200, b200, gb200, a100, mi300x, or a YAML file
    #[arg(long, value_name = "DEVICE", default_value = "h100")]
    gpu: String,
    /// Override a key of the configuration, as in launch.node_failures=5; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok(n),
        _ => Err("a number above 0".into()),
    }
}

pub fn run(args: Args) -> Result<()> {
    let hardware = Hardware::named(&args.gpu)?;
    let settings = Arc::new(settings(&args, &hardware)?);
    settings.check()?;
    let formula = formula(&settings, &hardware);
    let began = Instant::now();
    let sweep = sweep(args.seed, args.seeds, |_| settings.clone())?;
    let seconds = began.elapsed().as_secs_f64();
    let text = match args.json {
        true => format!("{:#}\n", json!({ "runs": sweep.runs, "goodput_formula": formula, "seconds": seconds })),
        false => human(&settings, &sweep, formula, seconds),
    };
    super::print(&text)?;
    match sweep.runs.iter().find_map(|r| r.violation.as_ref()) {
        None => Ok(()),
        Some(v) => Err(Error::new(
            Exit::Internal,
            format!("seed {}, after {:.3} simulated seconds: {}", v.seed, v.at_s, v.what),
        )
        .hint(format!("report it with the output of this command and --seed {} --seeds 1", v.seed))),
    }
}

/// The run of the command line.
fn settings(args: &Args, hardware: &Hardware) -> Result<Settings> {
    let (nodes, per_node) = (args.nodes as usize, args.gpus_per_node as usize);
    let mut s = Settings::small(nodes, args.spares as usize)?;
    s.config.batch.global = nodes * per_node;
    let f = &hardware.faults;
    (s.start_s, s.requeue_s, s.repair_h) = (f.restart_s, (f.requeue_s - f.restart_s).max(60.0), f.repair_h);
    if let Some(path) = &args.config {
        let draft = load::draft(path, &args.set)?;
        let place = draft.place.clone();
        let config = draft.finish()?;
        let allocation = Allocation { nodes, per_node };
        let device = if hardware.device == DeviceKind::Cuda { Device::Cuda(0) } else { Device::Cpu };
        let forms = KernelForms::of(device);
        let mut planned = config.clone();
        planned.train.device = DeviceChoice::Auto;
        let question = Question { place, config: planned, allocation, hardware, forms };
        let plan = question.plan()?;
        let e = estimate::estimate(&plan, allocation, hardware, forms, None)?;
        let saves = &e.saves;
        s.step_s = e.step.seconds - e.step.snapshot;
        (s.snapshot_s, s.partner_s) = (saves.snapshot_s, saves.partner_s);
        s.checkpoint_stall_s = if config.checkpoint.background { saves.snapshot_s } else { saves.write_s };
        (s.save_s, s.flush_s, s.restore_disk_s) = (saves.write_s, saves.write_s, saves.read_s);
        s.restore_s = saves.partner_s + saves.snapshot_s;
        let every = estimate::checkpoint_steps(&config.checkpoint, args.step_s.unwrap_or(s.step_s));
        (s.snapshot_every, s.checkpoint_every) = (config.checkpoint.snapshot_every, every);
        s.config = config;
        // the run of the simulation has no end of its own, tells nobody, and touches no file of the site
        s.config.train.steps = 1_000_000_000_000;
        s.config.train.stop_at = None;
        s.config.alerts = AlertsSection::default();
        (s.config.launch.ledger, s.config.launch.rescue_dir) = (None, None);
        s.config.launch.ranks_per_node = None;
        s.config.parallel.data = 0;
    }
    s.ranks_per_node = per_node;
    s.nodes_per_switch = args.switch as usize;
    s.days = args.days;
    s.even = args.even;
    s.pairs = if args.even { s.pairs } else { 0.02 };
    s.step_s = args.step_s.unwrap_or(s.step_s);
    s.snapshot_every = args.snapshot_every.unwrap_or(s.snapshot_every);
    s.checkpoint_every = args.checkpoint_every.unwrap_or(s.checkpoint_every);
    (s.config.checkpoint.snapshot_every, s.config.checkpoint.every) = (s.snapshot_every, s.checkpoint_every);
    s.start_s = args.start_s.unwrap_or(s.start_s);
    let mut rates = hardware.faults;
    rates.per_device_day = args.failure_rate.unwrap_or(rates.per_device_day);
    s.faults_per_day = rate(&rates, nodes * per_node) * 86_400.0;
    s.bound_s = s.config.launch.start_timeout_s
        + s.config.launch.backoff_max_s
        + 4.0 * (s.start_s + s.restore_disk_s + s.flush_s)
        + 1200.0;
    Ok(s)
}

/// Goodput by the formula of `herd plan`, for the same times, as if every snapshot had its second copy.
fn formula(s: &Settings, hardware: &Hardware) -> f64 {
    let lambda = s.faults_per_day / 86_400.0;
    let detect = hardware.faults.detect_s;
    let (interval, cost, read) = match (s.snapshot_every, s.checkpoint_every) {
        (0, 0) => (1.0 / lambda, 0.0, 0.0),
        (0, every) => (every as f64 * s.step_s, s.checkpoint_stall_s, s.restore_disk_s),
        (every, _) => (every as f64 * s.step_s, s.snapshot_s, s.restore_s),
    };
    goodput(lambda, interval, cost, detect + s.start_s + read)
}

fn sum<T: Copy + Default + std::ops::AddAssign>(runs: &[SimReport], of: impl Fn(&SimReport) -> T) -> T {
    let mut total = T::default();
    runs.iter().for_each(|r| total += of(r));
    total
}

fn human(s: &Settings, sweep: &Sweep, formula: f64, seconds: f64) -> String {
    let runs = &sweep.runs;
    let days = sum(runs, |r| r.days);
    let weighted = |of: &dyn Fn(&SimReport) -> f64| runs.iter().map(|r| of(r) * r.days).sum::<f64>() / days.max(1e-9);
    let goodput = weighted(&|r| r.goodput);
    let (low, high) = runs.iter().fold((1.0f64, 0.0f64), |(l, h), r| (l.min(r.goodput), h.max(r.goodput)));
    let mut faults = BTreeMap::<&str, u64>::new();
    runs.iter().flat_map(|r| &r.faults).for_each(|(k, n)| *faults.entry(k).or_default() += n);
    let mut times = BTreeMap::<&str, f64>::new();
    runs.iter().flat_map(|r| &r.seconds).for_each(|(k, t)| *times.entry(k).or_default() += t);
    let share = |t: f64| format!("{:.2}%", 100.0 * t / (days * 86_400.0).max(1e-9));
    let redone = sum(runs, |r| r.redone_s);
    let time = |key: &str| times.get(key).copied().unwrap_or(0.0);
    let lost: Vec<String> = ["notice", "place", "start", "restore", "queue", "person"]
        .iter()
        .filter(|k| time(k) > 0.0)
        .map(|k| format!("{k} {}", share(time(k))))
        .chain([format!("steps done again {}", share(redone))])
        .collect();
    let total: u64 = faults.values().sum();
    let kinds: Vec<String> = faults.iter().map(|(k, n)| format!("{k} {n}")).collect();
    let lines = [
        (
            "run",
            format!(
                "{} nodes × {} and {} spares, a step of {:.2} s, {:.2} faults a day; {} of {:.0} days in {seconds:.1} s",
                grouped(s.nodes as u64),
                s.ranks_per_node,
                s.spares,
                s.step_s,
                s.faults_per_day,
                plural(runs.len() as u64, "run"),
                s.days
            ),
        ),
        (
            "goodput",
            format!(
                "{:.2}% simulated ({:.2} to {:.2}%); {:.2}% by the formula of herd plan, which knows neither queue nor person",
                100.0 * goodput,
                100.0 * low,
                100.0 * high,
                100.0 * formula
            ),
        ),
        ("faults", format!("{total}: {}", kinds.join(", "))),
        ("lost", lost.join(", ")),
        (
            "starts",
            format!(
                "{} of the ranks, {} spares taken, {} requeues, a person {} times",
                sum(runs, |r| r.attempts),
                sum(runs, |r| r.spares_used),
                sum(runs, |r| r.requeues),
                sum(runs, |r| r.by_person)
            ),
        ),
    ];
    let mut out: String = lines.iter().map(|(k, v)| format!("{k:8} {v}\n")).collect();
    if let Some(v) = runs.iter().find_map(|r| r.violation.as_ref()) {
        out += &format!("\nseed {} broke a rule at {:.3} s: {}\n", v.seed, v.at_s, v.what);
        v.story.iter().for_each(|line| out += &format!("  {line}\n"));
    }
    out
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
