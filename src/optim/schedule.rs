//! The learning rate as a pure function of the step.

use crate::config::{OptimSection, Schedule};
use std::f64::consts::PI;

/// Learning rate of `step` (0-based) in a run of `total` steps.
///
/// Linear warm-up from `lr / warmup_steps` to `lr`, then the schedule: cosine to `min_lr` (arXiv:1608.03983 without
/// restarts), WSD (constant, then linear to `min_lr` over `decay_steps`), or constant.
pub fn learning_rate(o: &OptimSection, step: u64, total: u64) -> f64 {
    if step < o.warmup_steps {
        return o.lr * (step + 1) as f64 / o.warmup_steps as f64;
    }
    // share of the decay that lies behind `step`, 0..=1
    let share = |start: u64, length: u64| match length {
        0 => 0.0,
        n => (step.saturating_sub(start) as f64 / n as f64).min(1.0),
    };
    match o.schedule {
        Schedule::Constant => o.lr,
        Schedule::Cosine => {
            let t = share(o.warmup_steps, total.saturating_sub(o.warmup_steps));
            o.min_lr + 0.5 * (o.lr - o.min_lr) * (1.0 + (PI * t).cos())
        }
        Schedule::Wsd => {
            let t = share(total.saturating_sub(o.decay_steps), o.decay_steps);
            o.lr + (o.min_lr - o.lr) * t
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(schedule: Schedule) -> OptimSection {
        OptimSection { lr: 1.0, min_lr: 0.1, warmup_steps: 10, decay_steps: 20, schedule, ..Default::default() }
    }

    #[test]
    fn warm_up_is_linear_and_never_zero() {
        let o = section(Schedule::Constant);
        assert_eq!(learning_rate(&o, 0, 100), 0.1);
        assert_eq!(learning_rate(&o, 9, 100), 1.0);
        assert_eq!(learning_rate(&o, 99, 100), 1.0);
    }

    #[test]
    fn cosine_starts_at_the_peak_and_ends_at_the_minimum() {
        let o = section(Schedule::Cosine);
        assert_eq!(learning_rate(&o, 10, 110), 1.0);
        assert!((learning_rate(&o, 60, 110) - 0.55).abs() < 1e-12);
        assert!((learning_rate(&o, 110, 110) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn wsd_is_flat_until_its_decay() {
        let o = section(Schedule::Wsd);
        assert_eq!(learning_rate(&o, 79, 100), 1.0);
        assert_eq!(learning_rate(&o, 80, 100), 1.0);
        assert!((learning_rate(&o, 90, 100) - 0.55).abs() < 1e-12);
        assert!((learning_rate(&o, 100, 100) - 0.1).abs() < 1e-12);
    }
}
