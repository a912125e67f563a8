//! A Hugging Face directory becomes a herd checkpoint at step 0.

use crate::checkpoint::map::Spec;
use crate::checkpoint::save::save_with;
use crate::checkpoint::slice::Slice;
use crate::checkpoint::Team;
use crate::checkpoint::{Group, Meta, Saved};
use crate::convert::weights::Weights;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::layout::units;
use crate::progress::Meter;
use std::path::Path;

/// Elements in memory at a time.
const BLOCK: usize = 1 << 20;

/// Writes the parameters of `weights` as `checkpoints/step-00000000`, without moments (they are zero). Streams: a few
/// megabytes are in memory, whatever the model's size. `meter` counts the bytes written.
pub fn import(weights: &Weights, checkpoints: &Path, meter: &Meter) -> Result<Saved> {
    let params: Vec<(String, Vec<usize>)> = units(weights.model()).into_iter().flat_map(|(_, params)| params).collect();
    let specs = params
        .iter()
        .map(|(name, shape)| Spec { group: Group::Param, name: name.clone(), span: Slice::whole(shape) })
        .collect();
    let (tokenizer, tokenizer_fingerprint) = tokenizer(weights);
    let meta = Meta {
        tokenizer,
        tokenizer_fingerprint,
        special_tokens: weights.special_tokens().clone(),
        generation: weights.generation().clone(),
        ..Meta::new(weights.model().clone())
    };
    let mut buffer = vec![0.0; BLOCK];
    meter.begin("import", params.iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum::<u64>());
    save_with(checkpoints, specs, &meta, Team(None), &mut |file| {
        for (i, (name, shape)) in params.iter().enumerate() {
            let (len, origin) = (shape.iter().product::<usize>(), vec![0; shape.len()]);
            for start in (0..len).step_by(BLOCK) {
                let part = &mut buffer[..BLOCK.min(len - start)];
                weights.read_range(name, &origin, shape, start, part)?;
                file.append(i, part)?;
                meter.add(4 * part.len() as u64);
            }
        }
        Ok(())
    })
}

/// Place and fingerprint of the tokenizer. One that herd cannot open (SentencePiece, say) does not keep the weights from
/// being of use.
fn tokenizer(weights: &Weights) -> (String, String) {
    let named = weights.tokenizer();
    if named.is_empty() {
        return Default::default();
    }
    match Tokenizer::open(named) {
        Ok(t) => (t.place(), t.fingerprint()),
        Err(e) => {
            tracing::warn!("the tokenizer is named in the import but cannot be used: {e}");
            (named.into(), String::new())
        }
    }
}
