//! What a person sees while a run trains: a bar on a terminal, a plain line every n steps in a Slurm log.

use super::metrics::StepRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Shows steps on stderr; one rank has it.
pub struct TrainProgress {
    total: u64,
    every: u64,
    first: Option<u64>,
    /// Seconds per step, smoothed; the first step, which warms up, counts least.
    pace: f64,
    bar: Option<ProgressBar>,
}

impl TrainProgress {
    /// For a run of `total` steps that continues after step `restored`; a line every `every` steps without a terminal.
    pub fn new(total: u64, restored: u64, every: u64) -> TrainProgress {
        let bar = std::io::stderr().is_terminal().then(|| bar(total, restored));
        TrainProgress { total, every: every.max(1), first: None, pace: 0.0, bar }
    }

    /// Shows a finished step. Without a terminal: the first, every n-th, the last, and those that were skipped.
    pub fn step(&mut self, r: &StepRecord) {
        let first = *self.first.get_or_insert(r.step);
        let weight = if r.step <= first + 1 { 1.0 } else { 0.1 };
        self.pace += weight * (r.step_s - self.pace);
        let eta = Duration::from_secs_f64((self.total.saturating_sub(r.step) as f64 * self.pace).clamp(0.0, 1e9));
        let line = line(r, self.total, eta);
        match &self.bar {
            Some(bar) => {
                bar.set_position(r.step);
                bar.set_message(line);
            }
            None if r.step == first || r.step.is_multiple_of(self.every) || r.step == self.total || r.skipped => {
                say(&line)
            }
            None => {}
        }
    }

    /// Prints a line without disturbing the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Leaves the last state of the bar on the screen.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

/// A closed stderr must not end a run, as `eprintln!` would.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn bar(total: u64, restored: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan/dim} {msg}") {
        bar.set_style(style);
    }
    bar.set_position(restored);
    bar
}

/// `step 120/400 loss 2.3412 lr 3.0e-4 grad 1.02 12.3k tok/s mfu 41.2% mem 1.2 GiB comm 0.4% exposed eta 2m10s`
fn line(r: &StepRecord, total: u64, eta: Duration) -> String {
    let mut s = format!(
        "step {}/{total} loss {:.4} lr {:.1e} grad {:.2} {} tok/s",
        r.step,
        r.loss,
        r.lr,
        r.grad_norm,
        thousands(r.tokens_per_s)
    );
    if let Some(mfu) = r.mfu_causal {
        s += &format!(" mfu {:.1}%", 100.0 * mfu);
    }
    s += &format!(" mem {}", memory(r.memory_peak));
    if r.comm_busy_s > 0.0 && r.step_s > 0.0 {
        s += &format!(" comm {:.1}% exposed", 100.0 * r.comm_exposed_s / r.step_s);
    }
    if let Some(p) = &r.preference {
        s += &format!(" margin {:.3} right {:.0}%", p.margins, 100.0 * p.accuracies);
    }
    if let Some(v) = r.validation_loss {
        s += &format!(" val {v:.4}");
        if let Some(right) = r.validation_accuracy {
            s += &format!(" ({:.1}% right)", 100.0 * right);
        }
    }
    if r.skipped {
        s += " SKIPPED: not finite";
    }
    s + &format!(" eta {}", time(eta))
}

fn thousands(x: f64) -> String {
    match x {
        x if x < 1e3 => format!("{x:.0}"),
        x if x < 1e6 => format!("{:.1}k", x / 1e3),
        x => format!("{:.1}M", x / 1e6),
    }
}

fn memory(bytes: u64) -> String {
    match bytes as f64 / (1u64 << 30) as f64 {
        gib if gib < 1.0 => format!("{:.0} MiB", gib * 1024.0),
        gib => format!("{gib:.1} GiB"),
    }
}

/// The two largest units: `5s`, `2m10s`, `3h04m`, `2d05h`.
fn time(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_documented() {
        let r = StepRecord {
            step: 120,
            loss: 2.34123,
            lr: 3e-4,
            grad_norm: 1.0203,
            tokens_per_s: 12_345.0,
            step_s: 0.5,
            mfu_causal: Some(0.412),
            memory_peak: 1_288_490_189,
            comm_busy_s: 0.1,
            comm_exposed_s: 0.002,
            ..Default::default()
        };
        assert_eq!(
            line(&r, 400, Duration::from_secs(130)),
            "step 120/400 loss 2.3412 lr 3.0e-4 grad 1.02 12.3k tok/s mfu 41.2% mem 1.2 GiB comm 0.4% exposed eta 2m10s"
        );
        let r = StepRecord { mfu_causal: None, comm_busy_s: 0.0, validation_loss: Some(2.0), skipped: true, ..r };
        let text = line(&r, 400, Duration::ZERO);
        assert!(!text.contains("mfu") && !text.contains("comm"), "{text}");
        assert!(text.ends_with("val 2.0000 SKIPPED: not finite eta 0s"), "{text}");
    }

    #[test]
    fn times_have_two_units() {
        let t = |s| time(Duration::from_secs(s));
        assert_eq!([t(59), t(60), t(11_040), t(190_800)], ["59s", "1m00s", "3h04m", "2d05h"]);
    }

    #[test]
    fn the_pace_forgets_the_first_step() {
        let mut p = TrainProgress { total: 100, every: 1000, first: None, pace: 0.0, bar: None };
        for step in 11..=13 {
            p.step(&StepRecord { step, step_s: if step == 11 { 60.0 } else { 1.0 }, ..Default::default() });
        }
        assert!((p.pace - 1.0).abs() < 1e-9);
    }
}
