//! Whether a run may go on from a checkpoint: the same model, and the same samples in the same order. Whether it may start
//! from weights: the same model.

use super::{same_part, Plan};
use crate::checkpoint::Meta;
use crate::config::ModelConfig;
use crate::error::{Error, Exit, Result};
use serde_json::Value;
use std::path::Path;

/// Compares `plan` with what the checkpoint in the run directory says about the run that wrote it. Length of the run,
/// learning rates, precision, micro-batch and number of ranks may change; what decides the model or which sample comes
/// when may not, or the run would read samples twice or never.
///
/// # Errors
/// [`Exit::Config`] with every difference.
pub fn check_resume(plan: &Plan, meta: &Meta) -> Result<()> {
    let mut problems = model(&plan.model, &meta.model);
    problems.extend(same_part::differences(plan, meta));
    let mut differ = |key: &str, now: Value, then: Value| {
        if now != then {
            problems.push(format!("{key}: is {now}, but the checkpoint's run had {then}"));
        }
    };
    // An import has no run behind it.
    if meta.config.is_object() {
        let then = |section: &str, key: &str| meta.config[section][key].clone();
        differ("seed", plan.config.seed.into(), meta.seed.into());
        differ("batch.global", plan.config.batch.global.into(), then("batch", "global"));
        let dpo = |section: Value| match section {
            Value::Object(mut keys) => {
                keys.remove("reference_dir");
                Value::Object(keys)
            }
            _ => "absent".into(),
        };
        let now = serde_json::to_value(&plan.config.dpo).unwrap_or_default();
        differ("dpo", dpo(now), dpo(meta.config["dpo"].clone()));
        differ("data.sequence_length", plan.config.data.sequence_length.into(), then("data", "sequence_length"));
    }
    if meta.step > plan.config.train.steps {
        problems
            .push(format!("train.steps: is {}, but the checkpoint is of step {}", plan.config.train.steps, meta.step));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let place = format!("{}: cannot go on from its checkpoint of step {}", plan.config.run_dir.display(), meta.step);
    Err(Error::several(Exit::Config, place, problems)
        .hint("put the old values back, or start afresh with another run_dir"))
}

/// Compares the model of `plan` with that of the weights that it is to start from. Other sizes are an error, for the tensors
/// of one model may fit another; other numbers inside the layers are a choice, and come back as a line each.
///
/// # Errors
/// [`Exit::Config`] with every difference.
pub fn check_weights(plan: &Plan, weights: &ModelConfig, name: &Path) -> Result<Vec<String>> {
    let (sizes, choices): (Vec<_>, Vec<_>) =
        differences(&plan.model, weights).into_iter().partition(|d| SIZES.contains(&d.key.as_str()));
    let line = |d: &Difference| format!("model.shape.{}: is {}, but the weights have {}", d.key, d.now, d.then);
    if sizes.is_empty() {
        let taken = |d: &Difference| format!("{}: {}; the former is taken", name.display(), line(d));
        return Ok(choices.iter().map(taken).collect());
    }
    let place = format!("model.weights {}", name.display());
    Err(Error::several(Exit::Config, place, sizes.iter().map(line).collect())
        .hint("give the shape that the weights have, or leave it out: model.weights alone brings it"))
}

/// Differences that change what the model computes.
fn model(now: &ModelConfig, then: &ModelConfig) -> Vec<String> {
    let line = |d: Difference| format!("model.shape.{}: is {}, but the checkpoint has {}", d.key, d.now, d.then);
    differences(now, then).into_iter().map(line).collect()
}

/// Keys that decide the shapes of tensors, or how they are cut into heads.
pub const SIZES: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
];

/// A key in which two models differ.
pub struct Difference {
    pub key: String,
    pub now: Value,
    pub then: Value,
}

/// Every key that enters the computation and has another value.
pub fn differences(now: &ModelConfig, then: &ModelConfig) -> Vec<Difference> {
    let comparable = |m: &ModelConfig| {
        let mut value = serde_json::to_value(m).unwrap_or(Value::Null);
        value["head_dim"] = m.head_dim().into();
        // Absent and null are the same here.
        value["rope_scaling"] = serde_json::to_value(&m.rope_scaling).unwrap_or(Value::Null);
        value
    };
    let (now, then) = (comparable(now), comparable(then));
    // Neither of these two enters the computation of a trained model.
    let passive = ["initializer_range", "max_position_embeddings"];
    let keys = now.as_object().into_iter().flat_map(|m| m.keys()).filter(|k| !passive.contains(&k.as_str()));
    keys.filter(|k| now[*k] != then[*k])
        .map(|k| Difference { key: k.clone(), now: now[k].clone(), then: then[k].clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn meta(plan: &Plan) -> Meta {
        let mut meta = Meta::new(plan.model.clone());
        (meta.step, meta.seed) = (10, plan.config.seed);
        meta.config = serde_json::to_value(&plan.config).unwrap();
        meta
    }

    #[test]
    fn what_may_change_and_what_may_not() {
        let meta = meta(&plan(&[]));
        let check = |sets: &[&str]| check_resume(&plan(sets), &meta).map_err(|e| e.to_string());
        assert_eq!(check(&[]), Ok(()));
        let free =
            ["train.steps=2000", "optim.lr=1e-3", "train.precision=fp32", "batch.micro=4", "model.shape.head_dim=16"];
        assert_eq!(check(&free), Ok(()));
        for (set, words) in [
            ("seed=9", "seed: is 9, but the checkpoint's run had 1234"),
            ("batch.global=24", "batch.global: is 24, but the checkpoint's run had 12"),
            ("data.sequence_length=16", "data.sequence_length: is 16"),
            ("model.shape.num_key_value_heads=1", "num_key_value_heads: is 1, but the checkpoint has 2"),
            ("model.shape.rope_theta=1e4", "rope_theta: is 10000.0"),
        ] {
            let e = check(&[set]).unwrap_err();
            assert!(e.contains(words) && e.contains("step 10") && e.contains("run_dir"), "{set}: {e}");
        }
        let e = check(&["train.steps=9", "optim.warmup_steps=1", "seed=1"]).unwrap_err();
        assert!(e.contains("2 problems") && e.contains("train.steps: is 9, but the checkpoint is of step 10"), "{e}");
    }

    #[test]
    fn an_import_only_has_to_have_the_same_model() {
        let start = Meta::new(plan(&[]).model);
        assert!(check_resume(&plan(&["seed=7", "batch.global=24"]), &start).is_ok());
        assert!(check_resume(&plan(&["model.shape.hidden_size=128"]), &start).is_err());
    }
}
