//! `herd plan`: what a run will take on machines that need not be at hand.

mod table;
pub(super) mod write;

use crate::config::load;
use crate::error::{Error, Exit, Result};
use crate::plan::estimate::advice::Question;
use crate::plan::estimate::calibrate::{self, Calibration};
use crate::plan::estimate::published;
use crate::plan::estimate::search::Ranking;
use crate::plan::estimate::{self, Allocation, DeviceKind, Estimate, Hardware};
use crate::plan::memory::{KernelForm, KernelForms};
use crate::plan::Plan;
use clap::ValueEnum;
use serde_json::{json, Value};
use std::path::PathBuf;
use std::time::Instant;
use tch::Device;

/// Estimate memory, speed, checkpoints and faults of a run, or search the best way to cut it into ranks.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd plan configs/llama3_70b.yaml --nodes 16 --gpus-per-node 8
  herd plan configs/llama3_8b.yaml --nodes 4 --gpus-per-node 8 --gpu h200 --search --write my_run.yaml
  herd plan my_run.yaml --nodes 4 --gpus-per-node 8 --gpu site.yaml --calibrate runs/first --json
  herd plan --published

No device is needed here. The formulas, the sources of the table of devices, and how far published runs are hit:
docs/planning.md.")]
pub struct Args {
    /// Configuration file (YAML)
    #[arg(required_unless_present = "published")]
    config: Option<PathBuf>,
    /// Nodes that train; spares come on top
    #[arg(long, value_name = "N", required_unless_present = "published", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    nodes: Option<u32>,
    /// Devices of a node, one rank each
    #[arg(long, value_name = "G", required_unless_present = "published", value_parser = clap::value_parser!(u32).range(1..=1024))]
    gpus_per_node: Option<u32>,
    /// h100, h200, b200, gb200, a100, mi300x, or a YAML file
    #[arg(long, value_name = "DEVICE", default_value = "h100")]
    gpu: String,
    /// Override a key, as in parallel.tensor=4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Tokens to train on, as 15.6T (default: train.steps × tokens a step)
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    tokens: Option<f64>,
    /// Attention as one kernel or as libtorch's plain operations (default: as herd runs on the device)
    #[arg(long, value_name = "FORM")]
    attention: Option<FormArg>,
    /// Rank every way to cut the run into these ranks, and take the fastest that fits
    #[arg(long)]
    search: bool,
    /// Write the configuration that was planned to FILE, and a batch script beside it (FILE with .sbatch)
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Take speeds from what a run measured (its run directory); may be given several times
    #[arg(long, value_name = "RUN")]
    calibrate: Vec<PathBuf>,
    /// Compare the estimates with published runs of other programs
    #[arg(long, conflicts_with_all = ["config", "search", "write", "calibrate", "nodes", "gpus_per_node"])]
    published: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// As many as a configuration can name.
const MOST_RANKS: usize = 1 << 20;

#[derive(Clone, Copy, ValueEnum)]
enum FormArg {
    Fused,
    Unfused,
}

/// What was asked and found, for both outputs.
pub struct PlanReport<'a> {
    question: &'a Question<'a>,
    plan: Plan,
    estimate: Estimate,
    ranking: Option<(Ranking, f64)>,
    calibration: Option<&'a Calibration>,
    written: Option<write::WrittenFiles>,
}

pub fn run(args: Args) -> Result<()> {
    if args.published {
        let rows = published::rows()?;
        return super::print(&if args.json { table::published_json(&rows)? } else { table::published(&rows) });
    }
    let (Some(path), Some(nodes), Some(per_node)) = (&args.config, args.nodes, args.gpus_per_node) else {
        return Err(Error::new(Exit::Usage, "CONFIG, --nodes and --gpus-per-node belong together"));
    };
    let allocation = Allocation { nodes: nodes as usize, per_node: per_node as usize };
    if allocation.world() > MOST_RANKS {
        let fact = format!("{nodes} nodes × {per_node} are {} ranks", allocation.world());
        return Err(Error::new(Exit::Usage, fact).hint(format!("at most {MOST_RANKS}")));
    }
    let named = Hardware::named(&args.gpu)?;
    let forms = forms(&named, args.attention);
    let calibration = match args.calibrate.is_empty() {
        true => None,
        false => Some(calibrate::calibrate(&named, &args.calibrate, allocation.per_node, forms)?),
    };
    let hardware = calibration.as_ref().map_or(&named, |c| &c.hardware);
    let draft = load::draft(path, &args.set)?;
    let place = draft.place.clone();
    let question = Question { place, config: draft.finish()?, allocation, hardware, forms };
    check_device(&question)?;

    let began = Instant::now();
    let (plan, ranking) = match args.search {
        false => (question.plan()?, None),
        true => {
            let found = question.search()?;
            let best = found.best[0].config.clone();
            (question.checked(best)?, Some((found, began.elapsed().as_secs_f64())))
        }
    };
    let estimate = estimate::estimate(&plan, allocation, hardware, forms, args.tokens)?;
    if !estimate.memory.fits() {
        return Err(question.refusal(&plan, &estimate.memory));
    }
    let mut report =
        PlanReport { question: &question, plan, estimate, ranking, calibration: calibration.as_ref(), written: None };
    if let Some(file) = &args.write {
        report.written = Some(write::write(path, file, &report)?);
    }
    super::print(&if args.json { format!("{:#}\n", report.json()?) } else { table::human(&report) })
}

/// The kernels of a device, with another attention where one was asked for.
fn forms(hardware: &Hardware, attention: Option<FormArg>) -> KernelForms {
    let device = match hardware.device {
        DeviceKind::Cuda => Device::Cuda(0),
        DeviceKind::Cpu => Device::Cpu,
    };
    let forms = KernelForms::of(device);
    match attention {
        None => forms,
        Some(FormArg::Fused) => KernelForms { attention: KernelForm::Fused, ..forms },
        Some(FormArg::Unfused) => KernelForms { attention: KernelForm::Unfused, ..forms },
    }
}

/// The configuration's device is the one that is planned for.
fn check_device(q: &Question) -> Result<()> {
    use crate::config::DeviceChoice as Choice;
    let (kind, hint) = match (q.config.train.device, q.hardware.device) {
        (Choice::Cpu, DeviceKind::Cuda) => ("cuda", "--set train.device=cuda, or --gpu with a file of `device: cpu`"),
        (Choice::Cuda, DeviceKind::Cpu) => ("cpu", "--set train.device=cpu, or another --gpu"),
        _ => return Ok(()),
    };
    let fact = format!(
        "{}: train.device is {}, but {} is a device of kind {kind}",
        q.place,
        json!(q.config.train.device).as_str().unwrap_or_default(),
        q.hardware.name
    );
    Err(Error::new(Exit::Config, fact).hint(hint))
}

/// 15.6T, 1e12, 300G.
fn count(text: &str) -> std::result::Result<f64, String> {
    let (digits, factor) = match text.trim_end().chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1e3),
        Some('M') => (&text[..text.len() - 1], 1e6),
        Some('G' | 'B') => (&text[..text.len() - 1], 1e9),
        Some('T') => (&text[..text.len() - 1], 1e12),
        _ => (text, 1.0),
    };
    match digits.trim().parse::<f64>() {
        Ok(n) if n.is_finite() && n * factor >= 1.0 => Ok(n * factor),
        _ => Err("a number of tokens, as 15.6T, 300G or 1e12".into()),
    }
}

impl PlanReport<'_> {
    fn json(&self) -> Result<Value> {
        let q = self.question;
        let mut out = json!({
            "config": q.place, "nodes": q.allocation.nodes, "gpus_per_node": q.allocation.per_node,
            "layout": layout(&self.plan.config), "estimate": self.estimate, "hardware": q.hardware,
        });
        if let Some((found, seconds)) = &self.ranking {
            let row = |r: &estimate::search::RankedLayout| json!({ "layout": layout(&r.config), "step": r.step, "memory": r.memory });
            out["search"] = json!({
                "axes": found.axes, "settings": found.settings, "too_large": found.too_large, "seconds": seconds,
                "best": found.best.iter().map(row).collect::<Vec<_>>(),
            });
        }
        if let Some(c) = self.calibration {
            out["calibration"] = json!({ "matrix": c.matrix, "rest": c.rest, "links": c.links, "runs": c.runs });
        }
        if let Some(w) = &self.written {
            out["written"] = json!({ "config": w.config, "batch": w.batch, "comments_kept": w.comments_kept });
        }
        Ok(out)
    }
}

/// The keys that a search sets.
fn layout(config: &crate::config::Config) -> Value {
    let p = &config.parallel;
    json!({
        "tensor": p.tensor, "context": p.context, "pipeline": p.pipeline, "data": p.data, "schedule": p.schedule,
        "chunks": p.chunks, "zero": p.zero, "micro": config.batch.micro, "recompute": config.train.recompute,
    })
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn tokens_are_read_with_units() {
        assert_eq!(count("15.6T"), Ok(15.6e12));
        assert_eq!([count("300G"), count("300B"), count("3e11")], [Ok(300e9), Ok(300e9), Ok(3e11)]);
        for wrong in ["", "T", "-1G", "0", "nan", "1e400", "ü", "1 T x"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }
}
