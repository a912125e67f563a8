//! Adapters in PEFT's form: `adapter_config.json` beside `adapter_model.safetensors`, whose names are the model's own behind
//! `base_model.model.` (huggingface/peft, `utils/save_and_load.py`). A is [r,in], B [out,r].

use crate::config::{LoraSection, LoraTarget, ModelConfig};
use crate::convert::hf::Shards;
use crate::error::{Error, Exit, Result};
use crate::layout::adapter_shapes;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Name of the file that describes an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file that holds an adapter's tensors.
pub const TENSORS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// An opened adapter. One process opens it and tells the others.
#[derive(Serialize, Deserialize)]
pub struct AdapterFiles {
    path: PathBuf,
    lora: LoraSection,
    /// The base model as the adapter names it.
    base: String,
    shards: Shards,
}

impl AdapterFiles {
    /// Opens a directory. Errors ([`Exit::Model`]): files are missing or damaged, or the adapter is of a kind that herd has not:
    /// named, with its value.
    pub fn open(path: &Path) -> Result<AdapterFiles> {
        let file = path.join(CONFIG);
        let text = std::fs::read(&file).map_err(|e| Error::io(&file, "read", &e, Exit::Model))?;
        let config: Value = serde_json::from_slice(crate::text::unmarked(&text))
            .map_err(|e| wrong(format!("{} is damaged: {e}", file.display())))?;
        refuse(&config).map_err(|why| {
            wrong(format!("{}: {why}", file.display())).hint("herd reads plain LoRA of the blocks' matrices")
        })?;
        let shards = Shards::of_file(path, TENSORS)?;
        let mut targets = Vec::new();
        for name in shards.names() {
            let known =
                |t: &LoraTarget| ["A", "B"].iter().any(|s| name.ends_with(&format!("{}.lora_{s}.weight", t.name())));
            match LoraTarget::ALL.into_iter().find(known).filter(|_| name.starts_with(PREFIX)) {
                Some(target) if !targets.contains(&target) => targets.push(target),
                Some(_) => {}
                None => {
                    return Err(wrong(format!(
                        "{} holds {name}, which herd has no place for",
                        path.join(TENSORS).display()
                    ))
                    .hint("herd reads lora_A and lora_B of the blocks' matrices"))
                }
            }
        }
        targets.sort_by_key(|t| LoraTarget::ALL.iter().position(|a| a == t));
        let number = |key: &str| {
            config[key]
                .as_f64()
                .ok_or_else(|| wrong(format!("{}: {key} is {}, no number", file.display(), config[key])))
        };
        let lora = LoraSection {
            rank: number("r")? as usize,
            alpha: number("lora_alpha")?,
            dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
            targets,
            rslora: config["use_rslora"].as_bool().unwrap_or(false),
            quantize: None,
            weights: None,
        };
        if lora.rank == 0 || lora.targets.is_empty() {
            return Err(wrong(format!(
                "{}: rank {} with {} matrices is no adapter",
                path.display(),
                lora.rank,
                lora.targets.len()
            )));
        }
        let base = config["base_model_name_or_path"].as_str().unwrap_or_default().to_string();
        Ok(AdapterFiles { path: path.into(), lora, base, shards })
    }

    /// Rank, scale and targets of the adapter; its `weights` is `None`.
    pub fn lora(&self) -> &LoraSection {
        &self.lora
    }

    /// The directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the base model. Errors: it is named by something else than a path here.
    pub fn base(&self) -> Result<PathBuf> {
        let path = PathBuf::from(&self.base);
        match !self.base.is_empty() && path.exists() {
            true => Ok(path),
            false => {
                Err(wrong(format!("{} is an adapter for {:?}, which is no path here", self.path.display(), self.base))
                    .hint(format!("let base_model_name_or_path in its {CONFIG} be the model's directory")))
            }
        }
    }

    /// Every tensor of the adapter is there in the shape that `model` gives it, and no other.
    pub fn complete(&self, model: &ModelConfig) -> Result<()> {
        let mut count = 0;
        for block in 0..model.num_hidden_layers {
            for (name, shape) in adapter_shapes(model, &self.lora, block) {
                count += 1;
                match self.shape(&name) {
                    Some(found) if found == shape => {}
                    Some(found) => {
                        return Err(wrong(format!(
                            "{}: {name} has shape {found:?}, the model's is {shape:?}",
                            self.path.display()
                        )))
                    }
                    None => return Err(wrong(format!("{} lacks {name}", self.path.display()))),
                }
            }
        }
        let found = self.shards.names().count();
        match found == count {
            true => Ok(()),
            false => {
                Err(wrong(format!("{} holds {found} tensors, an adapter of this model {count}", self.path.display())))
            }
        }
    }

    /// Whether a run with `lora` can start from it. Errors: [`Exit::Config`] with every difference, [`Exit::Model`] for tensors.
    pub fn fits(&self, model: &ModelConfig, lora: &LoraSection) -> Result<()> {
        let names = |l: &LoraSection| {
            let mut all: Vec<&str> = l.targets.iter().map(|t| t.name()).collect();
            all.sort_unstable();
            all.join(", ")
        };
        let mut problems = Vec::new();
        let mut differ = |key: &str, now: String, then: String| {
            if now != then {
                problems.push(format!("lora.{key}: is {now}, but the adapter has {then}"));
            }
        };
        differ("rank", lora.rank.to_string(), self.lora.rank.to_string());
        differ("alpha", lora.alpha.to_string(), self.lora.alpha.to_string());
        differ("rslora", lora.rslora.to_string(), self.lora.rslora.to_string());
        differ("targets", names(lora), names(&self.lora));
        if !problems.is_empty() {
            let place = format!("lora.weights {}", self.path.display());
            return Err(Error::several(Exit::Config, place, problems).hint("give what the adapter has"));
        }
        self.complete(model)
    }

    /// Global shape of a tensor, by the model's name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shards.shape(&format!("{PREFIX}{name}"))
    }

    /// Elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a tensor, as fp32.
    pub fn read_range(
        &self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
    ) -> Result<()> {
        self.shards.read(&format!("{PREFIX}{name}"), offset, extent, start, out)
    }
}

/// PEFT's name of a tensor.
pub fn peft_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// `adapter_config.json` for adapters of the model in `base`.
pub fn config(lora: &LoraSection, base: &Path) -> Value {
    let targets: Vec<&str> = lora.targets.iter().map(|t| t.name()).collect();
    let alpha = match lora.alpha.fract() == 0.0 {
        true => json!(lora.alpha as i64),
        false => json!(lora.alpha),
    };
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": lora.rank, "lora_alpha": alpha, "lora_dropout": lora.dropout, "target_modules": targets,
        "use_rslora": lora.rslora, "use_dora": false, "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "modules_to_save": null, "layers_to_transform": null,
        "layers_pattern": null, "rank_pattern": {}, "alpha_pattern": {},
    })
}

/// What of an adapter's configuration herd has not.
fn refuse(config: &Value) -> std::result::Result<(), String> {
    if config["peft_type"] != "LORA" {
        return Err(format!("peft_type is {}, must be \"LORA\"", config["peft_type"]));
    }
    let empty = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Object(o) => o.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::String(s) => s == "none",
        _ => false,
    };
    // Others begin with what they take out of the base's matrices (peft, tuners/lora/layer.py): W + BA is then another model.
    let begins = config["init_lora_weights"].as_str().unwrap_or("gaussian");
    if !["gaussian", "eva", "orthogonal"].iter().any(|plain| begins.eq_ignore_ascii_case(plain)) {
        return Err(format!(
            "init_lora_weights is {begins:?}, whose adapters belong to a changed base: save them with path_initial_model_for_weight_conversion"
        ));
    }
    let keys = [
        "alora_invocation_tokens",
        "use_dora",
        "bias",
        "fan_in_fan_out",
        "modules_to_save",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "lora_bias",
        "use_qalora",
    ];
    match keys.iter().find(|key| !empty(&config[**key])) {
        Some(key) => Err(format!("{key} is {}, which herd has not", config[*key])),
        None => Ok(()),
    }
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}
