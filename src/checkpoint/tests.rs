//! Save, read, damage: on one rank, all of it in temporary directories.

use super::*;
use crate::config::ModelConfig;
use std::fs;
use std::path::{Path, PathBuf};

mod crash;
mod damage;
mod pieces;
mod recycling;
mod retention;

pub(crate) fn model() -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1
    }))
    .unwrap()
}

pub(crate) fn meta(step: u64) -> Meta {
    Meta { step, updates: step, tokens: 100 * step, best_validation: Some(0.1), ..Meta::new(model()) }
}

/// A number below `below` (SplitMix64): the tests must be the same every time.
pub(crate) fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % below.max(1) as u64) as usize
}

/// A tensor whose elements all differ, also between groups.
pub(crate) fn values(group: Group, shape: &[usize]) -> Vec<f32> {
    let n: usize = shape.iter().product();
    (0..n).map(|i| i as f32 + 0.25 * group as usize as f32).collect()
}

/// Saves `step` with two tensors in all groups, alone.
pub(crate) fn save_step(checkpoints: &Path, step: u64) -> PathBuf {
    try_save_step(checkpoints, step).unwrap().path
}

pub(crate) fn try_save_step(checkpoints: &Path, step: u64) -> crate::error::Result<Saved> {
    let shapes: [(&str, Vec<usize>); 2] = [("model.norm.weight", vec![33]), ("a.weight", vec![50, 40])];
    let mut held = Vec::new();
    for group in Group::ALL {
        for (name, shape) in &shapes {
            held.push((group, *name, shape.clone(), values(group, shape)));
        }
    }
    let pieces: Vec<Piece> = held
        .iter()
        .map(|(group, name, shape, data)| Piece {
            group: *group,
            name,
            shape,
            offset: &[0, 0][..shape.len()],
            extent: shape,
            start: 0,
            data,
        })
        .collect();
    save::save_alone(checkpoints, &pieces, &meta(step))
}

/// Reads every tensor of a checkpoint of [`save_step`] and compares it.
pub(crate) fn assert_whole(c: &Checkpoint) {
    for (group, name, shape) in c.tensors() {
        let mut out = vec![0.0; shape.iter().product()];
        c.read(group, name, &vec![0; shape.len()], shape, 0, &mut out).unwrap();
        assert_eq!(out, values(group, shape));
    }
}

pub(crate) fn newest(checkpoints: &Path) -> (Option<Checkpoint>, Vec<Event>) {
    let mut events = Vec::new();
    let found = newest_valid_alone(checkpoints, &Default::default(), &mut |e| events.push(e.clone())).unwrap();
    (found, events)
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}
