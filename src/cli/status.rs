//! `herd status`: how a run fares, from its run directory.

mod watch;

use crate::error::{Error, Exit, Result};
use crate::launch::follow;
use crate::launch::status::{RunState, RunStatus};
use crate::text::span;
use jiff::Timestamp;
use std::fmt::Write;
use std::path::PathBuf;

/// Show how a run fares: step, speed, faults, lost time, nodes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd status runs/llama3
  herd status runs/llama3 --watch                  # until the run ends, or Ctrl-C
  herd status runs/llama3 --json | jq .effective_time_ratio

The effective training time ratio is the time in steps that count over the time since the first start.")]
pub struct Args {
    /// Run directory
    pub run: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Show it anew until the run ends; plain lines where there is no terminal
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub every: u64,
}

pub fn run(args: Args) -> Result<()> {
    if args.watch {
        return watch::watch(&args);
    }
    let s = follow::read(&args.run, Timestamp::now())?;
    match args.json {
        true => {
            let text = serde_json::to_string_pretty(&s).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
            super::print(&format!("{text}\n"))
        }
        false => super::print(&human(&args, &s)),
    }
}

/// Faults that are listed; the older ones are counted.
const SHOWN: usize = 20;

fn human(args: &Args, s: &RunStatus) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<10}{}", text.trim_end());
    };
    line("run", format!("{}  {}", s.name, args.run.display()));
    let state = match s.state {
        RunState::NotStarted => "not started",
        RunState::Running => "running",
        RunState::Queued => "in the queue",
        RunState::Finished => "finished",
        RunState::Stopped => "stopped",
    };
    line("state", if s.detail.is_empty() { state.into() } else { format!("{state}: {}", s.detail) });
    line("step", step(s));
    if s.wall_s > 0.0 {
        let part = |seconds: f64| 100.0 * seconds / s.wall_s;
        let rest = (s.wall_s - s.training_s - s.lost_s).max(0.0);
        line(
            "time",
            format!(
                "{} since the first start: {:.1}% training, {:.1}% lost to faults, {:.1}% start-up, checkpoints and waiting",
                span(s.wall_s),
                part(s.training_s),
                part(s.lost_s),
                part(rest)
            ),
        );
        line("ratio", format!("{:.4} effective training time", s.effective_time_ratio));
    }
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    line(
        "starts",
        format!(
            "{} in {}, {}, {}, {} done again",
            count(s.attempts, "attempt"),
            count(s.jobs, "job"),
            count(s.requeues, "requeue"),
            count(s.faults.len(), "fault"),
            count(s.steps_lost, "step")
        ),
    );
    if !s.faults.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<17}{:>8}{:>9}  {:<12}{:>8}{:>6}  what",
            "fault at", "attempt", "step", "class", "mended", "lost"
        );
        for f in s.faults.iter().skip(s.faults.len().saturating_sub(SHOWN)) {
            let class = f.class.map_or("?".into(), |c| format!("{c:?}").to_lowercase());
            let mended = f.recovered_s.map_or("–".into(), |t| format!("{t:.1} s"));
            let lost = f.steps_lost.map_or("–".into(), |n| n.to_string());
            let _ = writeln!(
                out,
                "{:<17}{:>8}{:>9}  {class:<12}{mended:>8}{lost:>6}  {}",
                f.time.strftime("%m-%d %H:%M:%S").to_string(),
                f.attempt,
                f.step,
                f.fact
            );
        }
        if s.faults.len() > SHOWN {
            let _ = writeln!(out, "and {} before these", s.faults.len() - SHOWN);
        }
    }
    if !s.nodes.is_empty() {
        let _ = writeln!(out, "\n{:<17}{:>8}  {:<12}last", "node", "failures", "standing");
        for (name, n) in &s.nodes {
            let _ = writeln!(out, "{name:<17}{:>8}  {:<12}{}", n.failures, n.standing, n.last);
        }
    }
    out
}

fn step(s: &RunStatus) -> String {
    let mut text = match s.steps {
        0 => s.step.to_string(),
        n => format!("{} of {n} ({:.1}%)", s.step, 100.0 * s.step as f64 / n as f64),
    };
    if let Some(loss) = s.loss {
        text += &format!(", loss {loss:.4}");
    }
    if let Some(rate) = s.tokens_per_s {
        text += &format!(", {rate:.0} tokens/s");
    }
    if let (RunState::Running, Some(step_s), true) = (s.state, s.step_s, s.steps > s.step) {
        text += &format!(", {} to go", span(step_s * (s.steps - s.step) as f64));
    }
    if let (RunState::Running, Some(t)) = (s.state, s.since_last_step_s) {
        text += &format!(", last step {} ago", span(t));
    }
    text
}
