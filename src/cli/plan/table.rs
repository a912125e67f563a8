//! The plan for a person.

use super::PlanReport;
use crate::error::{Error, Exit, Result};
use crate::plan::estimate::advice::words;
use crate::plan::estimate::hardware::FaultRates;
use crate::plan::estimate::published::{self, PublishedRow};
use crate::plan::estimate::search::{differences, RankedLayout, Ranking};
use crate::plan::estimate::Estimate;
use crate::plan::memory::KernelForm;
use crate::text::{binary, decimal, grouped, span};

/// Layouts that are shown.
const SHOWN: usize = 5;

pub fn human(r: &PlanReport) -> String {
    let (q, e) = (r.question, &r.estimate);
    let mut lines = vec![
        (
            "plan",
            format!(
                "{} × {} {}: {}",
                plural(q.allocation.nodes, "node"),
                q.allocation.per_node,
                q.hardware.name,
                words(&r.plan.config)
            ),
        ),
        (
            "model",
            format!(
                "{} parameters; {} tokens a step, {} micro-batches a rank",
                decimal(e.parameters as f64),
                grouped(e.tokens_per_step as u64),
                r.plan.accumulation
            ),
        ),
        ("memory", memory(e)),
        ("step", step(e)),
        (
            "speed",
            format!(
                "{}tokens/s, {:.0} a device; MFU {:.1}% with attention below the diagonal, {:.1}% in full",
                decimal(e.speed.tokens_per_s),
                e.speed.tokens_per_s_device,
                100.0 * e.speed.mfu_causal,
                100.0 * e.speed.mfu_full
            ),
        ),
        ("run", run(e)),
    ];
    lines.extend(saves(r));
    lines.extend(faults(e));
    if let Some((found, seconds)) = &r.ranking {
        lines.extend(ranking(found, *seconds));
    }
    lines.extend(assumed(r));
    if let Some(w) = &r.written {
        let comments =
            if w.comments_kept { "comments kept" } else { "whole, with every key; its comments could not be kept" };
        lines.push(("written", format!("{} ({comments})", w.config.display())));
        lines.push(("", w.batch.display().to_string()));
    }
    lines.into_iter().map(|(name, text)| format!("{name:<9} {text}\n")).collect()
}

fn memory(e: &Estimate) -> String {
    let (m, p) = (&e.memory, &e.memory.parts);
    format!(
        "{} of {} on the ranks that need most (stage {}): parameters {}, gradients {}, optimizer {}, activations {}, working {}; \
         {} left",
        binary(m.total),
        binary(m.room),
        m.stage,
        binary(p.parameters),
        binary(p.gradients),
        binary(p.master.saturating_add(p.moments)),
        binary(p.activations),
        binary(p.working.saturating_add(p.inputs)),
        binary(m.headroom.max(0) as u64)
    )
}

fn step(e: &Estimate) -> String {
    let (s, p) = (&e.step, &e.step.parts);
    let share = |x: f64| 100.0 * x / s.seconds;
    let all = [
        ("products", p.matrix),
        ("attention", p.attention),
        ("other operations", p.elementwise),
        ("tensor axis", p.tensor),
        ("context axis", p.context),
        ("replicas", p.data),
        ("bubble", s.bubble),
        ("optimizer", s.optimizer),
        ("snapshots", s.snapshot),
        ("fixed", s.other),
    ];
    let shown = all.iter().filter(|(_, x)| share(*x) >= 0.05).map(|(name, x)| format!("{name} {:.1}%", share(*x)));
    format!("{}: {}; {} of exchange hidden", span(s.seconds), shown.collect::<Vec<_>>().join(", "), span(p.hidden))
}

fn run(e: &Estimate) -> String {
    let r = &e.run;
    format!(
        "{}tokens in {} steps: {}tokens a day, {}; {} and {}device hours with faults",
        decimal(r.tokens),
        grouped(r.steps.ceil() as u64),
        decimal(r.tokens_per_day),
        span(r.days * 86_400.0),
        span(r.days_with_faults * 86_400.0),
        decimal(r.device_hours)
    )
}

fn saves(r: &PlanReport) -> Vec<(&'static str, String)> {
    let (s, q) = (&r.estimate.saves, r.question);
    let memory = q.hardware.storage.node_memory_gib * (1u64 << 30) as f64;
    let mut out = vec![(
        "state",
        format!(
            "{}B: snapshot {} ({}B a rank), second copy {}, checkpoint {}, read back {}, upload {}",
            decimal(s.bytes),
            span(s.snapshot_s),
            decimal(s.rank_bytes),
            span(s.partner_s),
            span(s.write_s),
            span(s.read_s),
            span(s.upload_s)
        ),
    )];
    let share = |bytes: f64| format!("{} of {} a node", binary(bytes as u64), binary(memory as u64));
    out.push(match s.node_memory > 0.0 {
        true => ("", format!("shared memory for snapshots: {}", share(s.node_memory))),
        false => (
            "",
            format!(
                "no snapshots (checkpoint.snapshot_every 0); they would take {} of shared memory",
                share(s.node_memory_full)
            ),
        ),
    });
    if s.node_memory > memory {
        out.push(("", "WARNING: more than the node has: snapshots would be left out".into()));
    }
    out
}

fn faults(e: &Estimate) -> Vec<(&'static str, String)> {
    let f = &e.faults;
    let percent = |x: f64| format!("{:.2}%", 100.0 * x);
    if f.per_day == 0.0 {
        return vec![("faults", "none assumed (faults.per_device_day 0)".into())];
    }
    vec![
        ("faults", format!(
            "{:.3} a day, one every {}; {:.3} of them a node; {} pay{}",
            f.per_day,
            span(f.mtbf_s),
            f.nodes_per_day,
            plural(f.spares, "spare node"),
            if f.spares == 1 { "s" } else { "" }
        )),
        ("", format!(
            "time in steps that count: {} with this configuration; {} with snapshots every {}; {} with checkpoints every {} ({}) \
             alone, {} without spares",
            percent(f.goodput),
            percent(f.goodput_snapshots),
            plural(f.snapshot_interval_steps as usize, "step"),
            percent(f.goodput_checkpoints),
            plural(f.checkpoint_interval_steps as usize, "step"),
            span(f.checkpoint_interval_s),
            percent(f.goodput_no_spares)
        )),
    ]
}

fn ranking(found: &Ranking, seconds: f64) -> Vec<(&'static str, String)> {
    let mut out = vec![(
        "search",
        format!(
            "{} axes, {} settings in {}; {} found too large before the best were known",
            found.axes,
            grouped(found.settings as u64),
            span(seconds),
            grouped(found.too_large as u64)
        ),
    )];
    let best = found.best[0].step.seconds;
    let row = |(i, r): (usize, &RankedLayout)| {
        let slower = 100.0 * (r.step.seconds / best - 1.0);
        (
            "",
            format!(
                "{}. {} (+{slower:.1}%), {}: {}",
                i + 1,
                span(r.step.seconds),
                binary(r.memory.total),
                words(&r.config)
            ),
        )
    };
    out.extend(found.best.iter().take(SHOWN).enumerate().map(row));
    if let [first, second, ..] = &found.best[..] {
        let why: Vec<String> = differences(&first.step, &second.step)
            .into_iter()
            .filter(|(_, d)| d.abs() > 0.0005 * best)
            .take(3)
            .map(|(name, d)| format!("{name} {} {}", span(d.abs()), if d > 0.0 { "longer" } else { "shorter" }))
            .collect();
        let why = if why.is_empty() { "nothing of note".to_string() } else { why.join(", ") };
        out.push(("", format!("against the first the second has: {why}")));
    }
    out
}

fn assumed(r: &PlanReport) -> Vec<(&'static str, String)> {
    let (h, forms) = (r.question.hardware, r.question.forms);
    let (e, f) = (&h.efficiency, &h.faults);
    let form = |form: KernelForm| if form == KernelForm::Fused { "fused" } else { "unfused" };
    let mut out = vec![
        ("assumed", format!(
            "{}: {} TFLOP/s × {:.2}, memory {} GB/s × {:.2}, links {} GB/s × {:.2} inside and {} × {:.2} between nodes; {}",
            h.name,
            h.bf16_tflops,
            e.matrix,
            h.memory_gb_s,
            e.memory,
            h.inside.gb_s,
            e.inside,
            h.between.gb_s,
            e.between,
            h.source
        )),
        ("", format!("attention {}, operations between products {}", form(forms.attention), form(forms.elementwise))),
        ("", format!(
            "{:.2e} faults a device and day{}, noticed in {}, {} to new ranks, {} through the queue, a node back after {} h",
            f.per_device_day,
            if f.per_device_day == FaultRates::default().per_device_day { " (Llama 3's H100s)" } else { "" },
            span(f.detect_s),
            span(f.restart_s),
            span(f.requeue_s),
            f.repair_h
        )),
    ];
    if let Some(c) = r.calibration {
        let links = c.links.map_or("links not measured".to_string(), |l| format!("links × {l:.3}"));
        out.push((
            "",
            format!("rates from runs: products × {:.3}, other computing × {:.3}, {links}", c.matrix, c.rest),
        ));
        out.extend(c.runs.iter().map(|run| {
            let off = 100.0 * (run.after_s / run.measured_s - 1.0);
            (
                "",
                format!(
                    "{}: {} a step, {} after the fit ({off:+.1}%)",
                    run.run.display(),
                    span(run.measured_s),
                    span(run.after_s)
                ),
            )
        }));
    }
    out
}

pub fn published(rows: &[PublishedRow]) -> String {
    let mut out = format!("{:>9} {:>9} {:>7}  run\n", "published", "predicted", "error");
    for r in rows {
        out += &format!(
            "{:>8.1}% {:>8.1}% {:>+6.1}%  {}\n{:29}{}; assumed: {}\n",
            100.0 * r.published_mfu,
            100.0 * r.predicted_mfu,
            100.0 * r.error,
            r.name,
            "",
            r.source,
            r.assumed
        );
    }
    out + &format!(
        "MFU with attention below the diagonal; each row's common factor is fitted to the others. Largest error {:.1}%.\n",
        100.0 * published::largest_error(rows)
    )
}

pub fn published_json(rows: &[PublishedRow]) -> Result<String> {
    let value = serde_json::json!({ "rows": rows, "error_max": published::largest_error(rows) });
    serde_json::to_string_pretty(&value).map(|text| text + "\n").map_err(|e| Error::new(Exit::Internal, e.to_string()))
}

fn plural(n: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(n as u64), if n == 1 { "" } else { "s" })
}
