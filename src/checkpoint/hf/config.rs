//! `config.json` both ways.
//!
//! Two spellings of the rotary parameters are in use: transformers 4 has `rope_theta` and `rope_scaling`, transformers 5
//! has `rope_parameters` with both in it (and reads the old spelling). herd reads either and writes the old one, which
//! both load. Absent keys take transformers' `LlamaConfig` defaults, which differ from herd's own.

use crate::checkpoint::SpecialTokens;
use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::{json, Map, Value};
use std::path::Path;

/// What a `config.json` says, as far as herd uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    pub model: ModelConfig,
    pub special_tokens: SpecialTokens,
}

/// Reads a `config.json`. Errors ([`Exit::Model`]): missing, no JSON, not a Llama, or a variant that herd does not compute.
pub fn read(path: &Path) -> Result<HfConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e, Exit::Model))?;
    let json = serde_json::from_slice(unmarked(text.as_bytes()))
        .map_err(|e| Error::new(Exit::Model, format!("{} is not JSON: {e}", path.display())))?;
    parse(&json).map_err(|e| e.context(path.display()))
}

/// The value of a `config.json`.
pub fn parse(json: &Value) -> Result<HfConfig> {
    let map = json.as_object().ok_or_else(|| wrong("it is not a JSON object".into()))?;
    let keys = Keys(map);
    only_llama(&keys)?;
    let hidden_size = keys.required("hidden_size")?;
    let num_attention_heads = keys.required("num_attention_heads")?;
    let (rope_theta, rope_scaling) = rope(&keys)?;
    let model = ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers: keys.required("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: keys.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim: keys.size("head_dim")?,
        max_position_embeddings: keys.size("max_position_embeddings")?.unwrap_or(2048),
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
    };
    check_heads(&model)?;
    Ok(HfConfig { model, special_tokens: special_tokens(map) })
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

fn rope(keys: &Keys) -> Result<(f64, Option<RopeScaling>)> {
    let object = |key: &str| match keys.value(key) {
        Some(Value::Object(m)) => Ok(Some(m)),
        Some(other) => Err(wrong(format!("{key} is {other}, not an object"))),
        None => Ok(None),
    };
    let (new, old) = (object("rope_parameters")?, object("rope_scaling")?);
    let theta = match new {
        Some(m) => Keys(m).number("rope_theta")?.or(keys.number("rope_theta")?),
        None => keys.number("rope_theta")?,
    };
    // transformers' default; herd's own is Llama 3's 500,000.
    let theta = theta.unwrap_or(10_000.0);
    let Some(scaling) = new.or(old) else { return Ok((theta, None)) };
    let scaling = Keys(scaling);
    if let Some(factor) = scaling.number("partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(wrong(format!("partial_rotary_factor is {factor}; herd rotates whole heads only")));
    }
    match scaling.value("rope_type").or(scaling.value("type")).and_then(Value::as_str) {
        None | Some("default") => Ok((theta, None)),
        Some("llama3") => {
            let need =
                |key: &str| scaling.number(key)?.ok_or_else(|| wrong(format!("llama3 rope scaling lacks {key}")));
            let original = scaling.size("original_max_position_embeddings")?;
            let rope = RopeScaling {
                rope_type: crate::config::RopeType::Llama3,
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: original
                    .ok_or_else(|| wrong("llama3 rope scaling lacks original_max_position_embeddings".into()))?,
            };
            Ok((theta, Some(rope)))
        }
        Some(other) => {
            Err(wrong(format!("rope scaling of type \"{other}\"; herd computes \"default\" and \"llama3\"")))
        }
    }
}

fn check_heads(m: &ModelConfig) -> Result<()> {
    let (h, heads, kv) = (m.hidden_size, m.num_attention_heads, m.num_key_value_heads);
    if heads % kv != 0 {
        return Err(wrong(format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}")));
    }
    if m.head_dim.is_none() && h % heads != 0 {
        return Err(wrong(format!(
            "hidden_size {h} is not a multiple of num_attention_heads {heads}, and there is no head_dim"
        )));
    }
    match m.head_dim() % 2 {
        0 => Ok(()),
        _ => Err(wrong(format!("head_dim {} is odd; rotary embedding needs pairs", m.head_dim()))),
    }
}

fn special_tokens(map: &Map<String, Value>) -> SpecialTokens {
    let ids = |key: &str| -> Vec<u32> {
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match map.get(key) {
            Some(Value::Array(all)) => all.iter().filter_map(one).collect(),
            Some(v) => one(v).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let first = |key: &str| ids(key).first().copied();
    SpecialTokens { bos: first("bos_token_id"), eos: ids("eos_token_id"), pad: first("pad_token_id") }
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

/// `generation_config.json`.
pub fn write_generation(special: &SpecialTokens) -> Value {
    let mut c = json!({ "_from_model_config": true });
    tokens_into(&mut c, special);
    c
}

/// All three ids, null where there is none: transformers' defaults (1 and 2) are Llama 2's.
fn tokens_into(config: &mut Value, special: &SpecialTokens) {
    config["bos_token_id"] = json!(special.bos);
    config["eos_token_id"] = match special.eos[..] {
        [one] => json!(one),
        [] => Value::Null,
        _ => json!(special.eos),
    };
    config["pad_token_id"] = json!(special.pad);
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}

struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value, unless it is absent or null.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A count of at least 1; sizes beyond 2^31 are no model's and would overflow products.
    fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().or(v.as_f64().filter(|f| f.fract() == 0.0 && *f > 0.0).map(|f| f as u64)) {
                Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(wrong(format!("{key} is {v}, not a count from 1 to 2^31"))),
            },
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| wrong(format!("{key} is missing")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|v| v.as_f64().ok_or_else(|| wrong(format!("{key} is {v}, not a number")))).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.value(key)
            .map_or(Ok(false), |v| v.as_bool().ok_or_else(|| wrong(format!("{key} is {v}, neither true nor false"))))
    }
}
