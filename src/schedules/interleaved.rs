//! Interleaved 1F1B (Megatron-LM, arXiv:2104.04473 §2.2): a stage holds several chunks that are far apart in the model, so
//! that the pipeline fills and drains in units of a chunk: the idle time falls by the number of chunks, the sends grow by
//! it.
//!
//! Micro-batches go through the chunks in groups: a group passes a stage's first chunk, then its second, and so on. With P
//! stages a group of P keeps every stage busy: the first micro-batch of the group comes back from the last stage just when
//! the last has left the first. Groups must not be smaller, so M micro-batches that are not a multiple of P make M/P
//! (rounded down, at least one) groups as equal as possible; larger groups only cost activations.

use super::Action;

pub fn list(stage: usize, stages: usize, micros: usize, chunks: usize) -> Vec<Action> {
    let groups = groups(stages, micros);
    let forward = order(&groups, 0..chunks);
    let backward = order(&groups, (0..chunks).rev());
    // Forward passes before the first backward pass: all chunks but the last of the first group, and two for each stage
    // after this one, there and back.
    let largest = groups.first().map_or(0, |g| g.len());
    let ahead = ((chunks - 1) * largest + 2 * (stages - 1 - stage)).min(forward.len());
    let mut out = Vec::with_capacity(2 * forward.len());
    let chunk = |local: usize| local * stages + stage;
    let f = |&(local, micro): &(usize, usize)| Action::Forward { chunk: chunk(local), micro };
    let b = |&(local, micro): &(usize, usize)| Action::Backward { chunk: chunk(local), micro };
    out.extend(forward[..ahead].iter().map(f));
    for (next, done) in forward[ahead..].iter().zip(&backward) {
        out.extend([f(next), b(done)]);
    }
    out.extend(backward[forward.len() - ahead..].iter().map(b));
    out
}

/// The micro-batches in groups of at least `stages`, the larger ones first.
fn groups(stages: usize, micros: usize) -> Vec<std::ops::Range<usize>> {
    let count = (micros / stages).max(1);
    let mut start = 0;
    let size = |g| micros / count + usize::from(g < micros % count);
    (0..count)
        .map(|g| {
            start += size(g);
            start - size(g)..start
        })
        .collect()
}

/// (local chunk, micro-batch) in the order in which they are passed.
fn order(groups: &[std::ops::Range<usize>], chunks: impl Iterator<Item = usize> + Clone) -> Vec<(usize, usize)> {
    groups.iter().flat_map(|g| chunks.clone().flat_map(move |c| g.clone().map(move |m| (c, m)))).collect()
}
