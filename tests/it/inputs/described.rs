//! What a model's `config.json` says, and what is said about it.

use super::models::{whole, IMPORT};
use super::table::{case, put, Case};
use crate::models_in_out::{json_file, put as put_json};
use serde_json::{json, Value};
use std::path::Path;

/// The model with another `config.json`.
pub fn config(dir: &Path, change: fn(&mut Value)) {
    whole(dir);
    let path = dir.join("m/config.json");
    let mut config = json_file(&path);
    change(&mut config);
    put_json(&path, &config);
}

pub fn rows() -> Vec<Case> {
    let refused = |name, make: fn(&Path), words: &[&'static str]| case(name, make, IMPORT).refused(12).says(words);
    vec![
        case("a model as it should be", whole, IMPORT)
            .says(&["imported run/checkpoints/step-00000000"])
            .never(&["WARN"]),
        case(
            "a byte order mark before config.json",
            |d| {
                whole(d);
                let old = std::fs::read_to_string(d.join("m/config.json")).unwrap();
                put(d, "m/config.json", ["\u{feff}", &old].concat());
            },
            IMPORT,
        )
        .never(&["WARN"]),
        refused(
            "a config.json that is cut off",
            |d| {
                whole(d);
                put(d, "m/config.json", "{\"model_type\": \"llama\",");
            },
            &["config.json is not JSON"],
        ),
        refused(
            "another architecture",
            |d| config(d, |c| c["architectures"] = json!(["MistralForCausalLM"])),
            &["MistralForCausalLM", "LlamaForCausalLM only"],
        ),
        refused(
            "no architecture at all",
            |d| {
                config(d, |c| {
                    c["architectures"] = Value::Null;
                    c["model_type"] = Value::Null;
                })
            },
            &["model_type missing"],
        ),
        refused("biases", |d| config(d, |c| c["attention_bias"] = json!(true)), &["attention_bias is true"]),
        refused("another activation", |d| config(d, |c| c["hidden_act"] = json!("gelu")), &["hidden_act is \"gelu\""]),
        refused("quantized weights", |d| config(d, |c| c["quantization_config"] = json!({"bits": 4})), &["quantized"]),
        refused(
            "a size in words",
            |d| config(d, |c| c["hidden_size"] = json!("sixteen")),
            &["hidden_size is \"sixteen\""],
        ),
        refused("a size that is missing", |d| config(d, |c| c["vocab_size"] = Value::Null), &["vocab_size is missing"]),
        refused(
            "a size beyond reason",
            |d| config(d, |c| c["num_hidden_layers"] = json!(1u64 << 40)),
            &["num_hidden_layers is 1099511627776"],
        ),
        refused(
            "heads that do not divide",
            |d| config(d, |c| c["num_key_value_heads"] = json!(3)),
            &["num_attention_heads 4", "num_key_value_heads 3"],
        ),
        refused(
            "more layers than weights",
            |d| config(d, |c| c["num_hidden_layers"] = json!(2)),
            &["the weights lack model.layers.1.", "and 8 more"],
        ),
        refused(
            "fewer layers than weights",
            |d| config(d, |c| c["intermediate_size"] = json!(32)),
            &["has shape [24, 16]", "says [32, 16]"],
        ),
        refused(
            "a rope_scaling without a type",
            |d| config(d, |c| c["rope_scaling"] = json!({"factor": 4.0})),
            &["factor but no rope_type"],
        ),
        refused(
            "a rope_scaling that herd does not compute",
            |d| config(d, |c| c["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0})),
            &["yarn"],
        ),
        case(
            "a rope_scaling that does nothing",
            |d| config(d, |c| c["rope_scaling"] = json!({"rope_type": "default", "factor": 4.0})),
            IMPORT,
        )
        .says(&["WARN", "\"default\" does not use"]),
        case(
            "keys that are missing and have a default",
            |d| config(d, |c| drop(c.as_object_mut().unwrap().remove("rms_norm_eps"))),
            IMPORT,
        )
        .says(&["WARN", "rms_norm_eps is missing: 0.000001 is taken"]),
        case("an end of text that is a word", |d| config(d, |c| c["eos_token_id"] = json!("</s>")), IMPORT)
            .says(&["WARN", "eos_token_id is \"</s>\", not only token ids"]),
        refused(
            "a generation_config.json that is cut off",
            |d| {
                whole(d);
                put(d, "m/generation_config.json", "{");
            },
            &["generation_config.json is not JSON"],
        ),
    ]
}
