//! `config.json` both ways.
//!
//! herd reads the rotary parameters in the spelling of transformers 4 or 5 and writes the old one, which both load. Absent
//! keys take transformers' `LlamaConfig` defaults, which differ from herd's own; the notes say so.

use crate::checkpoint::SpecialTokens;
use crate::config::ModelConfig;
use crate::convert::hf::keys::{wrong, Keys};
use crate::convert::hf::rope;
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::{json, Map, Value};
use std::path::Path;

/// What a `config.json` says, as far as herd uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// Shape of the model.
    pub model: ModelConfig,
    /// Ids that begin, end and pad a text, as far as the file names them.
    pub special_tokens: SpecialTokens,
    /// What was guessed or left out, a line each.
    pub notes: Vec<String>,
}

/// Reads a `config.json`. Errors ([`Exit::Model`]): missing, no JSON, not a Llama, or a variant that herd does not compute.
pub fn read(path: &Path) -> Result<HfConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e, Exit::Model))?;
    let json = serde_json::from_slice(unmarked(text.as_bytes()))
        .map_err(|e| Error::new(Exit::Model, format!("{} is not JSON: {e}", path.display())))?;
    let mut config = parse(&json).map_err(|e| e.context(path.display()))?;
    config.notes.iter_mut().for_each(|note| *note = format!("{}: {note}", path.display()));
    Ok(config)
}

/// The value of a `config.json`.
pub fn parse(json: &Value) -> Result<HfConfig> {
    let map = json.as_object().ok_or_else(|| wrong("it is not a JSON object".into()))?;
    let keys = Keys(map);
    only_llama(&keys)?;
    let hidden_size = keys.required("hidden_size")?;
    let num_attention_heads = keys.required("num_attention_heads")?;
    let mut notes = Vec::new();
    let (rope_theta, rope_scaling) = rope::read(&keys, &mut notes)?;
    let mut or_default = |key: &str, found: Option<f64>, default: f64| {
        if found.is_none() {
            notes.push(format!("{key} is missing: {default} is taken, as transformers does"));
        }
        found.unwrap_or(default)
    };
    let model = ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers: keys.required("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: keys.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim: keys.size("head_dim")?,
        max_position_embeddings: or_default(
            "max_position_embeddings",
            keys.size("max_position_embeddings")?.map(|n| n as f64),
            2048.0,
        ) as usize,
        rms_norm_eps: or_default("rms_norm_eps", keys.number("rms_norm_eps")?, 1e-6),
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
    };
    if let Some(fault) = model.fault() {
        return Err(wrong(fault));
    }
    let special_tokens = special_tokens(map, &mut notes);
    Ok(HfConfig { model, special_tokens, notes })
}

fn only_llama(keys: &Keys) -> Result<()> {
    let names: Vec<&str> =
        keys.value("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let model_type = keys.value("model_type").and_then(Value::as_str);
    if names.iter().any(|n| *n != "LlamaForCausalLM") || (names.is_empty() && model_type != Some("llama")) {
        let what =
            if names.is_empty() { format!("model_type {}", model_type.unwrap_or("missing")) } else { names.join(", ") };
        return Err(wrong(format!("the architecture is {what}; herd runs LlamaForCausalLM only")));
    }
    if let Some(act) = keys.value("hidden_act").filter(|v| v.as_str() != Some("silu")) {
        return Err(wrong(format!("hidden_act is {act}; herd computes \"silu\" only")));
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if keys.flag(bias)? {
            return Err(wrong(format!("{bias} is true; Llama 3 has no biases, and neither has herd")));
        }
    }
    if let Some(factor) = keys.number("partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(wrong(format!("partial_rotary_factor is {factor}; herd rotates whole heads only")));
    }
    match keys.value("quantization_config") {
        Some(_) => Err(wrong("the weights are quantized (quantization_config)".into())
            .hint("take the original fp32, bf16 or fp16 weights")),
        None => Ok(()),
    }
}

fn special_tokens(map: &Map<String, Value>, notes: &mut Vec<String>) -> SpecialTokens {
    let mut read = |key: &str| {
        let value = map.get(key).unwrap_or(&Value::Null);
        let (found, given) = (ids(value), value.as_array().map_or(usize::from(!value.is_null()), Vec::len));
        if found.len() < given {
            notes.push(format!("{key} is {value}, not only token ids: {found:?} is kept"));
        }
        found
    };
    let (bos, eos, pad) = (read("bos_token_id"), read("eos_token_id"), read("pad_token_id"));
    SpecialTokens { bos: bos.first().copied(), eos, pad: pad.first().copied() }
}

/// The token ids in a value that is one, or a list of them.
pub(super) fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(all) => all.iter().filter_map(one).collect(),
        v => one(v).into_iter().collect(),
    }
}

/// The `config.json` of `model`, loadable by transformers 4 and 5. `dtype` is that of the weights, in torch's words.
pub fn write(model: &ModelConfig, special: &SpecialTokens, dtype: &str) -> Value {
    let mut c = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim(),
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": model.rope_scaling,
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.initializer_range,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "use_cache": true,
        "torch_dtype": dtype,
    });
    tokens_into(&mut c, special);
    c
}

/// All three ids, null where there is none: transformers' defaults (1 and 2) are Llama 2's.
pub(super) fn tokens_into(config: &mut Value, special: &SpecialTokens) {
    config["bos_token_id"] = json!(special.bos);
    config["eos_token_id"] = match special.eos[..] {
        [one] => json!(one),
        [] => Value::Null,
        _ => json!(special.eos),
    };
    config["pad_token_id"] = json!(special.pad);
}
