//! Faults a day, what they cost, and what to do about it: intervals between saves, goodput, spares.
//!
//! With λ faults a second over all devices, τ the time between saves, w the time a save takes from training, and R the time
//! from a fault to the first step (detection, new ranks, reading the state back):
//!
//! `goodput = (1 − λ·(R + τ/2)) / (1 + w/τ)`
//!
//! (the form of Meta's expected training-time ratio, arXiv:2410.21680), at its best near τ = √(2·w/λ) (Young, CACM 17:530,
//! 1974; Daly's higher-order terms, FGCS 22:303, 2006, in [`best_interval`]). A save can start only after the one before.

use super::hardware::{FaultRates, Hardware};
use super::saves::SaveEstimate;
use serde::Serialize;

const DAY: f64 = 86_400.0;

/// What faults do to a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FaultEstimate {
    /// Faults a day over all devices.
    pub per_day: f64,
    /// Mean time between them.
    pub mtbf_s: f64,
    /// Of them, those that take a node out.
    pub nodes_per_day: f64,
    /// Best time between checkpoints without snapshots.
    pub checkpoint_interval_s: f64,
    /// The same in steps, at least 1.
    pub checkpoint_interval_steps: u64,
    /// Best steps between snapshots.
    pub snapshot_interval_steps: u64,
    /// Share of time in steps that count, with the configuration's own intervals.
    pub goodput: f64,
    /// With snapshots at their best interval, and a spare for every lost node.
    pub goodput_snapshots: f64,
    /// With checkpoints on disk alone at their best interval, and a spare for every lost node.
    pub goodput_checkpoints: f64,
    /// The same through the queue after every lost node, without spares.
    pub goodput_no_spares: f64,
    /// Spare nodes that pay.
    pub spares: usize,
}

/// Intervals that a configuration has, in steps; 0 never.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intervals {
    /// Between snapshots in the memory of nodes.
    pub snapshot: u64,
    /// Between checkpoints on shared storage; of an interval in minutes the steps that it takes.
    pub checkpoint: u64,
    /// Whether checkpoints are written behind the steps (`checkpoint.background`).
    pub background: bool,
    /// Whether another node has a copy of each snapshot (`checkpoint.partner`).
    pub copied: bool,
}

/// Of `devices` on `nodes`, where a step takes `step_s` without saves.
pub fn estimate(
    h: &Hardware, devices: usize, nodes: usize, step_s: f64, saves: &SaveEstimate, own: Intervals,
) -> FaultEstimate {
    let f = &h.faults;
    let lambda = rate(f, devices);
    let recovery = |restart: f64, read: f64| f.detect_s + restart + read;
    // State comes back from memory as fast as it went to the partner.
    let (near, far) = (saves.partner_s + saves.snapshot_s, saves.read_s);
    // Behind the steps a save costs the copy of the state, and cannot begin before the last is written.
    let stall = saves.snapshot_s.max(1e-3);
    let checkpoint = best_interval(stall, lambda).max(saves.write_s).max(step_s);
    let snapshot_steps = steps(best_interval(stall, lambda).max(saves.partner_s), step_s);
    let disk = |restart: f64| goodput(lambda, checkpoint, stall, recovery(restart, far));
    let lost_node = f.node_share;
    let through_queue = lost_node * f.requeue_s + (1.0 - lost_node) * f.restart_s;
    let with_snapshots = goodput(lambda, snapshot_steps as f64 * step_s, stall, recovery(f.restart_s, near));
    let own_goodput = match (own.snapshot, own.checkpoint) {
        (0, 0) => goodput(lambda, 1.0 / lambda.max(1e-12), 0.0, recovery(f.restart_s, 0.0)),
        (0, every) => {
            let cost = if own.background { stall } else { saves.write_s };
            goodput(lambda, (every as f64 * step_s).max(saves.write_s), cost, recovery(f.restart_s, far))
        }
        (every, on_disk) => {
            let interval = every as f64 * step_s;
            // without second copies a lost node's memory is lost: back to what is on disk, or to the beginning
            let alone = if own.copied { 0.0 } else { lost_node };
            let back_to = match on_disk {
                0 => 1.0 / lambda.max(1e-12),
                n => (n as f64 * step_s).max(saves.write_s),
            };
            let further = alone * ((far - near).max(0.0) + (back_to - interval).max(0.0) / 2.0);
            goodput(lambda, interval, stall, recovery(f.restart_s, near) + further)
        }
    };
    FaultEstimate {
        per_day: lambda * DAY,
        mtbf_s: 1.0 / lambda,
        nodes_per_day: lambda * DAY * lost_node,
        checkpoint_interval_s: checkpoint,
        checkpoint_interval_steps: steps(checkpoint, step_s),
        snapshot_interval_steps: snapshot_steps,
        goodput: own_goodput,
        goodput_snapshots: with_snapshots,
        goodput_checkpoints: disk(f.restart_s),
        goodput_no_spares: disk(through_queue),
        spares: spares(f, devices, nodes),
    }
}

/// Faults a second over so many devices.
pub fn rate(f: &FaultRates, devices: usize) -> f64 {
    f.per_device_day * devices as f64 / DAY
}

/// Time between saves that costs least: `cost` seconds each, faults at `lambda` a second. Daly's equation 37 (FGCS 22:303),
/// which is Young's √(2·cost/λ) for short saves, and 1/λ where a save costs more than two mean times between faults.
pub fn best_interval(cost: f64, lambda: f64) -> f64 {
    if lambda <= 0.0 {
        return f64::MAX;
    }
    let mtbf = 1.0 / lambda;
    if cost >= 2.0 * mtbf {
        return mtbf;
    }
    let root = (cost / (2.0 * mtbf)).sqrt();
    (2.0 * cost * mtbf).sqrt() * (1.0 + root / 3.0 + root * root / 9.0) - cost
}

/// Share of time in steps that count; never below zero.
pub fn goodput(lambda: f64, interval: f64, cost: f64, recovery: f64) -> f64 {
    ((1.0 - lambda * (recovery + interval / 2.0)) / (1.0 + cost / interval)).clamp(0.0, 1.0)
}

fn steps(seconds: f64, step_s: f64) -> u64 {
    (seconds / step_s).round().clamp(1.0, (1u64 << 30) as f64) as u64
}

/// The number of spare nodes with the most training for all nodes held: each costs its share of the allocation, and saves
/// the wait in the queue of faults that would find none. Nodes under repair are Poisson with mean rate × repair time. Not
/// more spares than nodes.
pub fn spares(f: &FaultRates, devices: usize, nodes: usize) -> usize {
    let lost = rate(f, devices) * f.node_share;
    let away = lost * f.repair_h * 3600.0;
    let wait = (f.requeue_s - f.restart_s).max(0.0);
    // P(fewer away than spares), and the logarithm of the next term.
    let (mut fewer, mut term) = (0.0f64, -away);
    let (mut best, mut most) = (0usize, f64::MIN);
    for spares in 0..=nodes {
        let found_none = (1.0 - fewer).max(0.0);
        let worth = (1.0 - lost * found_none * wait) * nodes as f64 / (nodes + spares) as f64;
        if worth > most {
            (best, most) = (spares, worth);
        }
        fewer += term.exp();
        term += away.ln() - ((spares + 1) as f64).ln();
    }
    best
}
