//! Efficiencies from what runs measured: `config.yaml`, `plan.json` and `metrics.jsonl` of their run directories.
//!
//! A step's record says how long the rank that writes was in matrix products, waited for collectives and for other stages; the
//! rest is attention, the operations between products, and the update. Each of the three is held against the roofline's, and
//! its rates are scaled by the median ratio over the runs. Of collectives it is the time waited for (where there is any): the
//! time that they were busy has the wait for slower ranks in it. On a device that runs behind the host the record has no products:
//! all of the computing is scaled alike.

use super::hardware::{DeviceKind, Hardware};
use super::shape::StepShape;
use super::step::{self, StepEstimate};
use super::Allocation;
use crate::config::load;
use crate::error::{Error, Exit, Result};
use crate::plan::memory::KernelForms;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Steps at a run's start that do not count: memory is touched first, the wires learn.
const WARMUP: usize = 3;

/// A run as it was and as the roofline has it now.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationRun {
    /// Run directory.
    pub run: PathBuf,
    /// Steps that counted: neither the first ones nor those with a validation.
    pub steps: usize,
    /// Median of a step as it was measured.
    pub measured_s: f64,
    /// A step as predicted with the rates that were given.
    pub before_s: f64,
    /// A step as predicted with the fitted rates.
    pub after_s: f64,
}

/// What was learned.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The machine with fitted efficiencies, costs and links.
    pub hardware: Hardware,
    /// Rates now over rates before.
    pub matrix: f64,
    /// The same of attention, of streams through memory and of fixed costs.
    pub rest: f64,
    /// None where no run exchanged anything.
    pub links: Option<f64>,
    /// In the order in which they were given.
    pub runs: Vec<CalibrationRun>,
}

/// Medians over a run's steps, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct MeasuredStep {
    step: f64,
    matrix: Option<f64>,
    exposed: f64,
    busy: f64,
    stages: f64,
    count: usize,
}

/// Ratios of one run, predicted over measured.
#[derive(Clone, Copy, Debug, Default)]
struct Ratios {
    matrix: Option<f64>,
    rest: Option<f64>,
    links: Option<f64>,
}

/// Fits `hardware` to `runs`, whose ranks were on nodes of `per_node`.
///
/// # Errors
/// A run directory without its three files, with fewer than four steps, or with ranks that do not fill nodes:
/// [`Exit::Config`].
pub fn calibrate(hardware: &Hardware, runs: &[PathBuf], per_node: usize, forms: KernelForms) -> Result<Calibration> {
    let mut seen = Vec::new();
    for run in runs {
        seen.push((shape_of(run, hardware, per_node, forms)?, measured(run)?));
    }
    let mut fitted = hardware.clone();
    let (mut matrix, mut rest, mut links) = (1.0, 1.0, None);
    // What is hidden depends on the rates: a second and a third look settle it.
    for _ in 0..3 {
        let mut ratios = Vec::new();
        for (shape, m) in &seen {
            ratios.push(compare(&step::estimate(shape, &fitted)?, m, shape.share(hardware).crowd.max(1.0)));
        }
        let of = |pick: fn(&Ratios) -> Option<f64>| median(ratios.iter().filter_map(pick).collect());
        let (m, r, l) = (of(|r| r.matrix), of(|r| r.rest), of(|r| r.links));
        scale(&mut fitted, m.or(r).unwrap_or(1.0), r.unwrap_or(1.0), l.unwrap_or(1.0));
        matrix *= m.or(r).unwrap_or(1.0);
        rest *= r.unwrap_or(1.0);
        links = l.map(|l| links.unwrap_or(1.0) * l).or(links);
    }
    let mut out = Vec::new();
    for (run, (shape, m)) in runs.iter().zip(&seen) {
        let (before, after) = (step::estimate(shape, hardware)?, step::estimate(shape, &fitted)?);
        out.push(CalibrationRun {
            run: run.clone(),
            steps: m.count,
            measured_s: m.step,
            before_s: before.seconds,
            after_s: after.seconds,
        });
    }
    Ok(Calibration { hardware: fitted, matrix, rest, links, runs: out })
}

/// Rates times these.
fn scale(h: &mut Hardware, matrix: f64, rest: f64, links: f64) {
    let e = &mut h.efficiency;
    e.matrix *= matrix;
    for x in [&mut e.attention_forward, &mut e.attention_backward, &mut e.attention_unfused, &mut e.memory] {
        *x *= rest;
    }
    h.costs.step_ms /= rest;
    h.costs.kernel_us /= rest;
    for link in [&mut h.inside, &mut h.between] {
        (link.gb_s, link.latency_us) = (link.gb_s * links, link.latency_us / links);
    }
}

/// Ranks that share cores take `crowd` times as long for what they compute.
fn compare(e: &StepEstimate, m: &MeasuredStep, crowd: f64) -> Ratios {
    let ratio = |predicted: f64, measured: f64| (predicted > 0.0 && measured > 0.0).then(|| predicted / measured);
    let rest = (e.parts.attention + e.parts.elementwise) * crowd + e.optimizer + e.snapshot + e.other;
    let computing = m.step - m.exposed - m.stages;
    let exposed = ratio(e.parts.exposed() * crowd, m.exposed);
    let links = exposed.or(ratio((e.parts.exposed() + e.parts.hidden) * crowd, m.busy));
    match m.matrix {
        Some(matrix) => {
            Ratios { matrix: ratio(e.parts.matrix * crowd, matrix), rest: ratio(rest, computing - matrix), links }
        }
        None => Ratios { matrix: None, rest: ratio(rest + e.parts.matrix * crowd, computing), links },
    }
}

fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    let n = all.len();
    (n > 0).then(|| (all[(n - 1) / 2] * all[n / 2]).sqrt())
}

fn shape_of(run: &Path, h: &Hardware, per_node: usize, forms: KernelForms) -> Result<StepShape> {
    let about: Value = read_json(&RunDir::new(run).plan())?;
    let world =
        about["world"].as_u64().filter(|&w| w > 0).ok_or_else(|| no_run(run, "plan.json has no world"))? as usize;
    let local = per_node.min(world);
    if !world.is_multiple_of(local) {
        let fact = format!("{}: its {world} ranks do not fill nodes of {local}", run.display());
        return Err(Error::new(Exit::Config, fact).hint("give the --gpus-per-node that the run had"));
    }
    let draft = load::draft(&RunDir::new(run).config(), &[])?;
    let ranks = Allocation { nodes: world / local, per_node: local }.ranks(0, h);
    let plan = Plan::from_draft(draft, &ranks)?;
    let mut shape = StepShape::of(&plan, forms);
    if h.device == DeviceKind::Cpu {
        shape.threads = about["threads"].as_u64().map_or(shape.threads, |t| t as usize);
    }
    Ok(shape)
}

fn measured(run: &Path) -> Result<MeasuredStep> {
    let path = RunDir::new(run).metrics();
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", &e, Exit::Config))?;
    let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let steps: Vec<Value> = whole.filter(|v| v["step_s"].is_number() && v["validation_loss"].is_null()).collect();
    if steps.len() <= WARMUP {
        let fact = format!("{} has {} steps, and the first {WARMUP} do not count", path.display(), steps.len());
        return Err(Error::new(Exit::Config, fact).hint("a run of ten steps is enough"));
    }
    let of = |key: &str| median(steps[WARMUP..].iter().filter_map(|v| v[key].as_f64()).filter(|x| *x > 0.0).collect());
    let seconds = |key: &str| of(key).unwrap_or(0.0);
    Ok(MeasuredStep {
        step: seconds("step_s"),
        matrix: of("matmul_s"),
        exposed: seconds("comm_exposed_s"),
        busy: seconds("comm_busy_s"),
        stages: seconds("pipeline_wait_s"),
        count: steps.len() - WARMUP,
    })
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path)
        .map_err(|e| Error::io(path, "read", &e, Exit::Config).hint("--calibrate takes a run directory"))?;
    serde_json::from_slice(&text).map_err(|e| Error::new(Exit::Config, format!("{}: {e}", path.display())))
}

fn no_run(run: &Path, what: &str) -> Error {
    Error::new(Exit::Config, format!("{}: {what}", run.display())).hint("--calibrate takes a run directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_ratios_are_between_the_middle_two() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(vec![1.0, 4.0]), Some(2.0));
    }

    #[test]
    fn a_run_without_enough_steps_is_refused_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("metrics.jsonl"),
            "{\"step\":1,\"step_s\":1.0}\nbroken\n{\"step\":2,\"step_s\":2}\n",
        )
        .unwrap();
        let e = measured(dir.path()).unwrap_err();
        assert!(e.exit == Exit::Config && e.to_string().contains("has 2 steps"), "{e}");
        let more: String = (1..=7).map(|i| format!("{{\"step_s\":{i}.0,\"comm_busy_s\":0.5}}\n")).collect();
        std::fs::write(dir.path().join("metrics.jsonl"), more).unwrap();
        let m = measured(dir.path()).unwrap();
        assert_eq!((m.count, m.busy, m.matrix), (4, 0.5, None));
        assert!((m.step - 30f64.sqrt()).abs() < 1e-12, "{m:?}");
    }
}
