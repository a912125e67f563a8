//! What a fault costs a run in steps, and whether that is much at its size. Pure arithmetic.
//!
//! On average half an interval is done again: of snapshots where another node has a copy of them, else of checkpoints. The
//! rate of faults is that of the Llama 3 paper (arXiv:2407.21783, §3.3.4): 419 unexpected interruptions in 54 days on 16,384
//! GPUs, and as many for each rank's device here.

use super::flops::PerToken;
use super::Plan;
use crate::config::Partner;
use crate::text::span;

/// Seconds of one device between unexpected interruptions: 2,112 days.
const DEVICE_SECONDS: f64 = 16_384.0 * 54.0 * 86_400.0 / 419.0;
/// Share of the time that may go into steps done again.
const MOST: f64 = 0.01;
/// FLOP/s of a rank that no step reaches: a step takes at least its work over this.
const FASTEST: f64 = 1e15;

/// What faults are expected to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultCost {
    /// Seconds between faults, over all ranks.
    pub between: f64,
    /// What is done again after one, on average.
    pub redone: Redone,
    /// The key that decides it.
    pub key: &'static str,
    /// In the key's unit, steps or minutes; 0 where no checkpoint is made before the end.
    pub value: f64,
    /// Least seconds of a step: its work at 1,000 TFLOP/s a rank.
    pub least_step: f64,
    ranks: usize,
}

/// What is done again after a fault, by what the deciding key counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Redone {
    /// Optimizer steps.
    Steps(f64),
    /// Seconds of training.
    Seconds(f64),
}

impl FaultCost {
    /// For the run of `plan`, any rank's.
    pub fn of(plan: &Plan) -> FaultCost {
        let (c, ranks) = (&plan.config.checkpoint, plan.topology.world());
        let interval = |every: u64| Redone::Steps(every as f64 / 2.0);
        // The memory of a node goes with it: only copies on others count.
        let copied = c.partner == Partner::Node && ranks > plan.local_size;
        let (redone, key, value) = if c.snapshot_every > 0 && copied {
            (interval(c.snapshot_every), "checkpoint.snapshot_every", c.snapshot_every as f64)
        } else if c.every_minutes > 0.0 {
            (Redone::Seconds(30.0 * c.every_minutes), "checkpoint.every_minutes", c.every_minutes)
        } else if c.every > 0 {
            (interval(c.every), "checkpoint.every", c.every as f64)
        } else {
            (interval(plan.config.train.steps), "checkpoint.every", 0.0)
        };
        let flops = PerToken::of(&plan.config, &plan.model).causal;
        let least_step = flops * plan.tokens_per_step() as f64 / (ranks as f64 * FASTEST);
        FaultCost { between: DEVICE_SECONDS / ranks as f64, redone, key, value, least_step, ranks }
    }

    /// Seconds of a step from which on more than 1% of the time goes into steps done again; none where that does not depend
    /// on steps.
    pub fn step_limit(&self) -> Option<f64> {
        match self.redone {
            Redone::Steps(n) => Some(MOST * self.between / n),
            Redone::Seconds(_) => None,
        }
    }

    /// A line where more than 1% of the time is lost, however fast the devices are.
    pub fn warning(&self) -> Option<String> {
        let least = match self.redone {
            Redone::Steps(n) => n * self.least_step,
            Redone::Seconds(s) => s,
        };
        let much = least > MOST * self.between;
        much.then(|| {
            format!("{}: set checkpoint.snapshot_every (docs/recovery.md), or lower {}", self.line(), self.key)
        })
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let (ranks, between) = (crate::text::grouped(self.ranks as u64), span(self.between));
        let cost = match (self.redone, self.step_limit()) {
            (Redone::Steps(n), Some(limit)) => format!(
                "costs {n} steps on average, more than 1% of the time where a step takes {} or longer",
                span(limit)
            ),
            (Redone::Steps(n), None) => format!("costs {n} steps on average"),
            (Redone::Seconds(s), _) => {
                format!("costs {} on average, {:.1}% of the time", span(s), 100.0 * s / self.between)
            }
        };
        format!("with {} {} a fault {cost}; at {ranks} ranks one is expected every {between}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Ranks;
    use std::path::Path;

    fn shipped(name: &str, size: usize, sets: &[&str]) -> FaultCost {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
        let ranks = Ranks { rank: 0, size, local_rank: 0, local_size: 8, cuda_devices: 8, cores: 1 };
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        FaultCost::of(&Plan::read(&path, &sets, &ranks).unwrap())
    }

    #[test]
    fn as_often_as_the_paper_counted() {
        let cost = shipped("llama3_405b.yaml", 16_384, &[]);
        assert!((54.0 * 86_400.0 / cost.between - 419.0).abs() < 1e-6);
        assert!(cost.line().contains("at 16,384 ranks one is expected every 3.1 h"), "{}", cost.line());
    }

    #[test]
    fn shipped_configurations_lose_little_and_without_snapshots_the_large_one_loses_much() {
        let (every, snapshots) = ("checkpoint.every", "checkpoint.snapshot_every");
        for (name, size, key) in
            [("llama3_8b.yaml", 8, every), ("llama3_70b.yaml", 128, snapshots), ("llama3_405b.yaml", 16_384, snapshots)]
        {
            let cost = shipped(name, size, &[]);
            assert_eq!((cost.warning(), cost.key), (None, key), "{name}");
        }
        let off = shipped("llama3_405b.yaml", 16_384, &["checkpoint.snapshot_every=0"]);
        let said = off.warning().expect("a warning");
        assert!(said.contains("checkpoint.every 500 a fault costs 250 steps") && said.contains("445 ms"), "{said}");
        // No copy on another node: a lost node goes back to the disk.
        let alone = shipped("llama3_405b.yaml", 16_384, &["checkpoint.partner=off"]);
        assert_eq!((alone.key, alone.value), ("checkpoint.every", 500.0));
        let by_time =
            shipped("llama3_405b.yaml", 16_384, &["checkpoint.snapshot_every=0", "checkpoint.every_minutes=2"]);
        assert_eq!(by_time.warning(), None);
        let by_time =
            shipped("llama3_405b.yaml", 16_384, &["checkpoint.snapshot_every=0", "checkpoint.every_minutes=60"]);
        assert!(by_time.warning().is_some_and(|w| w.contains("30.0 min on average, 16.2%")), "{:?}", by_time.warning());
    }
}
