//! Whether the learning rate is of the scale of the method: full fine-tuning, adapters, preference pairs. Ten times too much ruins a
//! model within the warm-up, and the loss of conversations falls all the same.

use super::shape::Shape;
use crate::config::{Config, Problem, RunTrap};
use crate::layout;

/// Usual peak rates at 8·10⁹ parameters: TRL 1.x' defaults for SFT and DPO, and ten times as much for adapters (QLoRA,
/// arXiv:2305.14314: 2·10⁻⁴ for 7B and 13B).
const SFT: f64 = 2e-5;
const DPO: f64 = 1e-6;
const ADAPTERS: f64 = 10.0;
/// Smaller models take larger rates, larger ones smaller: by the root of their parameters, as between published runs.
const PARAMETERS: f64 = 8e9;
/// How far above the usual one a rate may be.
const ABOVE: f64 = 8.0;
/// How far below, for adapters on conversations: a rate of full fine-tuning leaves them nearly as they were.
const BELOW: f64 = 16.0;

/// The rates that are taken for the method's own.
struct Usual {
    method: &'static str,
    least: f64,
    most: f64,
}

impl Usual {
    /// `None` for a run that is no fine-tuning on conversations.
    fn of(config: &Config, parameters: f64) -> Option<Usual> {
        let (lora, dpo) = (config.lora.is_some(), config.dpo.is_some());
        if config.model.weights.is_none() || config.data.chat.is_none() {
            return None;
        }
        let at_8b = if dpo { DPO } else { SFT } * if lora { ADAPTERS } else { 1.0 };
        let usual = at_8b * (PARAMETERS / parameters).sqrt();
        let method = match (dpo, lora) {
            (false, false) => "full fine-tuning",
            (false, true) => "adapters",
            (true, false) => "DPO",
            (true, true) => "DPO on adapters",
        };
        let least = if lora && !dpo { usual / BELOW } else { 0.0 };
        Some(Usual { method, least, most: usual * ABOVE })
    }
}

/// The learning rate, where it is of another scale.
pub fn check(config: &Config, shape: Option<&Shape>, out: &mut Vec<Problem>) {
    let Some(shape) = shape.filter(|_| !config.train.allow.contains(&RunTrap::LearningRate)) else { return };
    let parameters = layout::count(&shape.model) as f64;
    let Some(Usual { method, least, most }) = Usual::of(config, parameters) else { return };
    let lr = config.optim.lr;
    if (least..=most).contains(&lr) {
        return;
    }
    let trap = RunTrap::LearningRate;
    let what = if lr > most { "more" } else { "less" };
    let fact = format!(
        "{lr:e} is {what} than {method} of a model of {} parameters takes: {} (trap {})",
        crate::text::decimal(parameters),
        if least > 0.0 { format!("{least:.0e} to {most:.0e}") } else { format!("at most {most:.0e}") },
        trap.name()
    );
    out.push(Problem::new(["optim.lr", "train.allow"], fact).hint(format!("set optim.lr, {}", trap.hint())));
}
