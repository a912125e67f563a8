//! The rotary parameters of a `config.json`.
//!
//! Two spellings are in use: transformers 4 has `rope_theta` and `rope_scaling`, transformers 5 has `rope_parameters` with
//! both in it (and reads the old spelling). What transformers 5 does with each is in its `modeling_rope_utils.py`.

use crate::config::{RopeScaling, RopeType};
use crate::convert::hf::keys::{wrong, Keys};
use crate::error::Result;
use serde_json::{Map, Value};

/// transformers' default; herd's own is Llama 3's 500,000.
const THETA: f64 = 10_000.0;
/// Keys that say nothing about scaling.
const PLAIN: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/// Theta and scaling. `notes` gets what was taken on trust or left out.
pub(super) fn read(keys: &Keys, notes: &mut Vec<String>) -> Result<(f64, Option<RopeScaling>)> {
    let (new, old) = (object(keys, "rope_parameters")?, object(keys, "rope_scaling")?);
    if let (Some(new), Some(old)) = (new, old) {
        agree(new, old)?;
    }
    let name = if new.is_some() { "rope_parameters" } else { "rope_scaling" };
    let none = Map::new();
    let rope = Keys(new.or(old).unwrap_or(&none));
    if let Some(factor) = rope.number("partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(wrong(format!("partial_rotary_factor is {factor}; herd rotates whole heads only")));
    }
    let theta = theta(keys, &rope, name, notes)?;
    let unused = |used: &[&str]| -> Vec<&str> {
        let known = |k: &str| PLAIN.contains(&k) || used.contains(&k);
        rope.0.iter().filter(|(k, v)| !known(k) && !v.is_null()).map(|(k, _)| k.as_str()).collect()
    };
    let (kind, unused) = match kind(&rope, name)? {
        Some("llama3") => ("llama3", unused(LLAMA3)),
        Some("default") => ("default", unused(&[])),
        None if unused(&[]).is_empty() => return Ok((theta, None)),
        None => {
            return Err(wrong(format!("{name} has {} but no rope_type", unused(&[]).join(", "))).hint(
                "write \"rope_type\": \"llama3\", or \"default\" for no scaling, which transformers 5 would take",
            ))
        }
        Some(other) => {
            return Err(wrong(format!(
                "{name} has the rope_type \"{other}\"; herd computes \"default\" and \"llama3\""
            )))
        }
    };
    if !unused.is_empty() {
        notes.push(format!("{name} has {}, which rope_type \"{kind}\" does not use: left out", unused.join(", ")));
    }
    Ok((theta, if kind == "llama3" { Some(llama3(keys, &rope)?) } else { None }))
}

/// The object under `key`; an empty one is none, as for transformers.
fn object<'a>(keys: &Keys<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match keys.value(key) {
        Some(Value::Object(m)) => Ok(Some(m).filter(|m| !m.is_empty())),
        Some(other) => Err(wrong(format!("{key} is {other}, not an object"))),
        None => Ok(None),
    }
}

/// Both spellings in one file must say the same.
fn agree(new: &Map<String, Value>, old: &Map<String, Value>) -> Result<()> {
    let plain = |m: &Map<String, Value>| -> Map<String, Value> {
        let mut m = m.clone();
        if let Some(kind) = m.remove("type") {
            m.entry("rope_type").or_insert(kind);
        }
        m.retain(|k, v| k != "rope_theta" && !v.is_null());
        m
    };
    let (a, b) = (plain(new), plain(old));
    let same = a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w)));
    match same {
        true => Ok(()),
        false => Err(wrong(format!(
            "rope_parameters is {} but rope_scaling is {}",
            Value::from(new.clone()),
            Value::from(old.clone())
        ))
        .hint(
            "remove the wrong one: transformers 4 reads rope_scaling, and so does transformers 5 where both are given",
        )),
    }
}

/// 8 and 8.0 are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

fn theta(keys: &Keys, rope: &Keys, name: &str, notes: &mut Vec<String>) -> Result<f64> {
    let (inner, outer) = (rope.number("rope_theta")?, keys.number("rope_theta")?);
    if let (Some(inner), Some(outer)) = (inner, outer) {
        if inner != outer {
            notes.push(format!(
                "rope_theta is {outer}, but {inner} in {name}: the latter is taken, as transformers does"
            ));
        }
    }
    if inner.or(outer).is_none() {
        notes.push(format!("rope_theta is missing: {THETA} is taken, as transformers does"));
    }
    Ok(inner.or(outer).unwrap_or(THETA))
}

/// The type, in either spelling.
fn kind<'a>(rope: &Keys<'a>, name: &str) -> Result<Option<&'a str>> {
    let (new, old) = (rope.value("rope_type"), rope.value("type"));
    if let (Some(new), Some(old)) = (new, old) {
        if new != old {
            return Err(
                wrong(format!("{name} has the rope_type {new} and the type {old}")).hint("remove the wrong one")
            );
        }
    }
    match new.or(old) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => Err(wrong(format!("{name} has the rope_type {other}, which is no name"))),
    }
}

const LLAMA3: &[&str] = &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

fn llama3(keys: &Keys, rope: &Keys) -> Result<RopeScaling> {
    let lacks = |key: &str| wrong(format!("llama3 rope scaling lacks {key}"));
    let need = |key: &str| rope.number(key)?.ok_or_else(|| lacks(key));
    let [factor, low, high, original] = [LLAMA3[0], LLAMA3[1], LLAMA3[2], LLAMA3[3]];
    let inner = rope.size(original)?.ok_or_else(|| lacks(original))?;
    // transformers lets one beside the object overrule the one in it.
    if let Some(outer) = keys.size(original)?.filter(|&outer| outer != inner) {
        return Err(
            wrong(format!("{original} is {outer}, but {inner} in the rope scaling")).hint("remove the wrong one")
        );
    }
    Ok(RopeScaling {
        rope_type: RopeType::Llama3,
        factor: need(factor)?,
        low_freq_factor: need(low)?,
        high_freq_factor: need(high)?,
        original_max_position_embeddings: inner,
    })
}
