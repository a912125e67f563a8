//! Whether a checkpoint is of a run that trained the same part of its model.

use super::Plan;
use crate::checkpoint::Meta;
use crate::config::{FreezeSection, LoraSection};
use serde_json::{json, Value};

/// In what the trained part differs from that of the checkpoint, a line each.
pub fn differences(plan: &Plan, meta: &Meta) -> Vec<String> {
    // Which inputs are dropped, and where the first adapter came from, may be other than before.
    let of_lora = |l: &LoraSection| {
        let mut targets: Vec<&str> = l.targets.iter().map(|t| t.name()).collect();
        targets.sort_unstable();
        let mut all = json!({ "rank": l.rank, "alpha": l.alpha, "rslora": l.rslora, "targets": targets });
        if let Some(format) = l.quantize {
            all["quantize"] = json!(format);
        }
        all
    };
    let now = plan.config.lora.as_ref().map_or(Value::Null, of_lora);
    let then = meta.base.as_ref().and_then(|b| b.lora.as_ref()).map_or(Value::Null, of_lora);
    let frozen = |f: Option<FreezeSection>| json!(f.unwrap_or_default());
    let (now_frozen, then_frozen) = (frozen(plan.frozen_layers()), frozen(meta.base.as_ref().and_then(|b| b.freeze)));
    let mut out = Vec::new();
    let none = |v: &Value| if v.is_null() { "all weights".to_string() } else { format!("adapters {v}") };
    if now != then {
        out.push(format!("lora: the run trains {}, but the checkpoint's run trained {}", none(&now), none(&then)));
    }
    if now_frozen != then_frozen {
        out.push(format!("model.freeze: is {now_frozen}, but the checkpoint's run had {then_frozen}"));
    }
    out
}
