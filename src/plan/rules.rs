//! Which values fit together. Each rule reports its factors and the nearest values that would work.
//!
//! The checks of single keys have been made: every size is at least 1 and no product here overflows.

use super::numbers::{divisors, multiples, near};
use super::shape::Shape;
use super::Ranks;
use super::{axes, learning_rate, settings, trained};
use crate::config::{Config, ModelConfig, Problem, Schedule};
use crate::error::{Error, Exit, Result};

/// All clashes between the values of `config`, the model's shape (where it is known) and the world.
pub fn check(config: &Config, shape: Option<&Shape>, ranks: &Ranks) -> Vec<Problem> {
    let mut out = Vec::new();
    settings::product(config, shape, ranks.size, &mut out);
    axes::check(config, shape, ranks.size, &mut out);
    axes::batch(config, ranks.size, &mut out);
    schedule(config, &mut out);
    data(config, &mut out);
    copies(config, &mut out);
    trained::check(config, shape, &mut out);
    learning_rate::check(config, shape, &mut out);
    if let Some(shape) = shape {
        heads(shape, &mut out);
        rope(shape, &mut out);
        context(config, shape, &mut out);
    }
    out
}

/// Exports and uploads of checkpoints.
fn copies(config: &Config, out: &mut Vec<Problem>) {
    let c = &config.checkpoint;
    if c.export_every > 0 && (c.every == 0 || !c.export_every.is_multiple_of(c.every)) {
        let fact =
            format!("every {} steps, but checkpoints, which are what is exported, every {}", c.export_every, c.every);
        let hint = match c.every {
            0 => "set checkpoint.every to it".to_string(),
            n => format!("a multiple of {n}, as {}", c.export_every.next_multiple_of(n)),
        };
        out.push(Problem::new(["checkpoint.export_every", "checkpoint.every"], fact).hint(hint));
    }
    if let Some(Err(e)) = c.store.as_ref().map(|s| crate::store::place::check(&s.url)) {
        out.push(Problem::new(["checkpoint.store.url"], e.fact).hint(e.hint.unwrap_or_default()));
    }
}

fn schedule(config: &Config, out: &mut Vec<Problem>) {
    let (o, steps) = (&config.optim, config.train.steps);
    let (warmup, decay) = (o.warmup_steps, o.decay_steps);
    if warmup > steps {
        let fact = format!("{warmup} warm-up steps are more than the run's {steps}");
        out.push(Problem::new(["optim.warmup_steps", "train.steps"], fact).hint(format!("at most {steps}")));
    }
    if o.min_lr > o.lr {
        let fact = format!("{} is above the peak optim.lr {}", o.min_lr, o.lr);
        out.push(Problem::new(["optim.min_lr", "optim.lr"], fact).hint(format!("at most {}", o.lr)));
    }
    if o.schedule == Schedule::Wsd {
        let left = steps.saturating_sub(warmup);
        if decay == 0 {
            let hint = format!("for example {}, a tenth of the run", (steps / 10).max(1));
            let fact = "the wsd schedule needs a final decay, but its length is 0";
            out.push(Problem::new(["optim.decay_steps", "optim.schedule"], fact).hint(hint));
        } else if decay > left && warmup <= steps {
            let fact =
                format!("warm-up {warmup} + decay {decay} = {} steps are more than the run's {steps}", warmup + decay);
            let keys = ["optim.decay_steps", "optim.schedule", "optim.warmup_steps", "train.steps"];
            out.push(Problem::new(keys, fact).hint(format!("at most {left}")));
        }
    }
    if let Some(stop) = config.train.stop_at.filter(|&s| s > steps) {
        let fact = format!("{stop} is after the run's last step {steps}");
        out.push(
            Problem::new(["train.stop_at", "train.steps"], fact).hint(format!("at most {steps}, or leave it out")),
        );
    }
}

fn data(config: &Config, out: &mut Vec<Problem>) {
    let d = &config.data;
    let v = &config.validation;
    if v.every == 0 && !v.tasks.is_empty() {
        let fact = format!("{} tasks, but no step after which they are scored", v.tasks.len());
        out.push(Problem::new(["validation.tasks", "validation.every"], fact).hint("set validation.every"));
    }
    if v.every > 0 && d.validation.is_empty() && v.tasks.is_empty() {
        let fact = format!("validation every {} steps, but there is no validation corpus", v.every);
        let hint = "list one in data.validation, or set validation.every to 0";
        out.push(Problem::new(["validation.every", "data.validation"], fact).hint(hint));
    }
    for (key, corpora) in [("data.train", &d.train), ("data.validation", &d.validation)] {
        let weights: Vec<f64> = corpora.iter().filter_map(|c| c.weight).collect();
        if let (Some(i), false) = (corpora.iter().position(|c| c.weight.is_none()), weights.is_empty()) {
            let fact = format!("missing, but {} of {} corpora have one", weights.len(), corpora.len());
            out.push(
                Problem::new([format!("{key}.{i}.weight")], fact)
                    .hint("give every corpus a weight, or none: then each token has the same chance"),
            );
        }
        let total: f64 = weights.iter().sum();
        if !weights.is_empty() && (total == 0.0 || !total.is_finite()) {
            let fact = format!("the weights of {} corpora add up to {total}", weights.len());
            out.push(
                Problem::new([key], fact).hint("give at least one corpus a weight above 0, and none an enormous one"),
            );
        }
    }
}

fn heads(shape: &Shape, out: &mut Vec<Problem>) {
    let m = &shape.model;
    let (h, q, kv) = (m.hidden_size, m.num_attention_heads, m.num_key_value_heads);
    if m.head_dim.is_none() && h % q != 0 {
        let fact = format!("hidden_size {h} is not a multiple of num_attention_heads {q}, and head_dim is not given");
        let hint = format!(
            "{} heads divide it, hidden_size {} works, or give head_dim",
            near(q, &divisors(h)),
            multiples(h, q)
        );
        out.push(shape.problem(&["hidden_size", "num_attention_heads", "head_dim"], fact).hint(hint));
    } else if !m.head_dim().is_multiple_of(2) {
        let fact = format!("head_dim {} is odd, but rotary embedding turns pairs", m.head_dim());
        let hint = format!("{} or {}", m.head_dim() - 1, m.head_dim() + 1).replace("0 or ", "");
        out.push(shape.problem(&["head_dim", "hidden_size", "num_attention_heads"], fact).hint(hint));
    }
    if q % kv != 0 {
        let fact = format!("num_attention_heads {q} is not a multiple of num_key_value_heads {kv}");
        let hint = format!("num_key_value_heads {} works", near(kv, &divisors(q)));
        out.push(shape.problem(&["num_key_value_heads", "num_attention_heads"], fact).hint(hint));
    }
}

fn rope(shape: &Shape, out: &mut Vec<Problem>) {
    let Some(r) = &shape.model.rope_scaling else { return };
    let keys = ["rope_scaling.low_freq_factor", "rope_scaling.high_freq_factor"];
    if r.low_freq_factor >= r.high_freq_factor {
        let fact =
            format!("low_freq_factor {} is not below high_freq_factor {}", r.low_freq_factor, r.high_freq_factor);
        out.push(shape.problem(&keys, fact).hint("Llama 3.1 has 1 and 4"));
    }
    let (original, max) = (r.original_max_position_embeddings, shape.model.max_position_embeddings);
    if original > max {
        let fact = format!("original_max_position_embeddings {original} is above max_position_embeddings {max}");
        let keys = ["rope_scaling.original_max_position_embeddings", "max_position_embeddings"];
        out.push(shape.problem(&keys, fact).hint("the context before scaling cannot be the longer one"));
    }
}

fn context(config: &Config, shape: &Shape, out: &mut Vec<Problem>) {
    let (s, max) = (config.data.sequence_length, shape.model.max_position_embeddings);
    if s > max {
        let fact = format!("{s} tokens are more than the model's max_position_embeddings {max}");
        let mut problem =
            Problem::new(["data.sequence_length"], fact).hint(format!("at most {max}, or raise the model's limit"));
        problem.keys.extend(shape.problem(&["max_position_embeddings"], String::new()).keys);
        out.push(problem);
    }
}

/// Whether the model has a row for every id of the tokenizer.
///
/// # Errors
/// [`Exit::Data`] if `tokenizer_ids` (largest id + 1) is above the model's vocabulary.
pub fn check_vocabulary(model: &ModelConfig, tokenizer_ids: usize, tokenizer: &str) -> Result<()> {
    if tokenizer_ids <= model.vocab_size {
        return Ok(());
    }
    let fact =
        format!("tokenizer {tokenizer} has {tokenizer_ids} ids, but the model's vocab_size is {}", model.vocab_size);
    Err(Error::new(Exit::Data, fact)
        .hint(format!("set vocab_size to at least {tokenizer_ids}, or use the model's own tokenizer")))
}
