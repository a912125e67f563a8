//! `herd drill`: faults on purpose, in a live run on the user's own cluster.

use crate::error::{Error, Exit, Result};
use crate::launch::drill::{Drill, DrillKind, DrillOutcome};
use std::path::PathBuf;
use std::time::Duration;

/// Do faults to a live run and measure what comes of them.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd drill runs/llama3 kill-rank
  herd drill runs/llama3 stop-node --rank 8
  herd drill runs/llama3 kill-rank stop-rank skip-collective nan-gradient --patience 300

The run must be supervised by `herd launch` and training. Ranks carry orders out between two steps. Ends with 0 when every
fault went as it should: noticed and mended, or borne, and the steps that were done again had the same losses.")]
pub struct Args {
    /// Run directory
    pub run: PathBuf,
    /// Faults, one after the other
    #[arg(required = true, value_enum, value_name = "FAULT")]
    pub faults: Vec<DrillKind>,
    /// Rank to hit, or whose node to hit (default: the last)
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// Length of faults that have one
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    pub seconds: f64,
    /// Longest wait for one fault to be mended
    #[arg(long, default_value_t = 600.0, value_name = "S")]
    pub patience: f64,
    /// fill-disk: largest free space to fill up, in GiB
    #[arg(long, default_value_t = 1.0, value_name = "GIB")]
    pub fill_limit: f64,
    /// Print one JSON object for each fault
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let finite = |name: &str, v: f64| match v.is_finite() && v >= 0.0 {
        true => Ok(Duration::from_secs_f64(v.min(1e9))),
        false => Err(Error::new(Exit::Usage, format!("{name}: {v} is no length of time"))),
    };
    finite("--seconds", args.seconds)?;
    let drill = Drill {
        run_dir: args.run.clone(),
        rank: args.rank,
        seconds: args.seconds,
        patience: finite("--patience", args.patience)?,
        fill_limit: (args.fill_limit * (1u64 << 30) as f64) as u64,
    };
    let mut failed = 0;
    if !args.json {
        super::print(&format!(
            "{:<20}{:>5}{:>10}{:>10}{:>6}{:>7}  what\n",
            "fault", "rank", "noticed", "training", "lost", "equal"
        ))?;
    }
    for kind in &args.faults {
        let outcome = drill.perform(*kind)?;
        failed += usize::from(!outcome.as_expected);
        super::print(&match args.json {
            true => format!("{}\n", serde_json::json!(outcome)),
            false => line(&outcome),
        })?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::new(Exit::GaveUp, format!("{n} of {} faults did not go as they should", args.faults.len()))
            .hint("`herd status` and events.jsonl tell the whole story")),
    }
}

fn line(o: &DrillOutcome) -> String {
    let name = clap::ValueEnum::to_possible_value(&o.kind).map_or(String::new(), |v| v.get_name().to_string());
    let span = |t: Option<f64>| t.map_or("–".to_string(), |t| format!("{t:.2} s"));
    let equal = match (o.compared, o.different) {
        (0, _) => "–".to_string(),
        (n, 0) => format!("{n}/{n}"),
        (n, d) => format!("{}/{n}", n - d),
    };
    let lost = o.steps_lost.map_or("–".to_string(), |n| n.to_string());
    format!(
        "{name:<20}{:>5}{:>10}{:>10}{lost:>6}{equal:>7}  {}\n",
        o.rank,
        span(o.detected_s),
        span(o.restarted_s),
        o.fact
    )
}
