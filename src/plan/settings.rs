//! Settings of the parallel axes that fit a world in which the configured ones do not.

use super::numbers::divisors;
use super::shape::Shape;
use super::{axes, rules};
use crate::config::{Config, ParallelSection};

/// As many are named.
const SHOWN: usize = 3;

/// The settings nearest to the configured ones with which the model, the sequence and the batch run on `world` ranks, in
/// words. Where none suits the batch, those that want another `batch.global`, and the words say so.
pub fn fitting(config: &Config, shape: Option<&Shape>, world: usize) -> Vec<String> {
    let all = candidates(&config.parallel, world);
    let fits = |p: &&ParallelSection, with_batch: bool| {
        let changed = Config { parallel: (*p).clone(), ..config.clone() };
        let mut clashes = Vec::new();
        axes::check(&changed, shape, world, &mut clashes);
        if with_batch {
            rules::batch(&changed, world, &mut clashes);
        }
        clashes.is_empty()
    };
    let named = |with_batch: bool, ending: &str| -> Vec<String> {
        let found = all.iter().filter(|p| fits(p, with_batch)).take(SHOWN);
        found.map(|p| format!("{}{ending}", words(p, world))).collect()
    };
    match named(true, "") {
        none if none.is_empty() => named(false, " with another batch.global"),
        some => some,
    }
}

/// Whether `p` fits but for the batch.
pub fn fits(config: &Config, shape: Option<&Shape>, world: usize, p: ParallelSection) -> bool {
    let mut clashes = Vec::new();
    axes::check(&Config { parallel: p, ..config.clone() }, shape, world, &mut clashes);
    clashes.is_empty()
}

/// Every tensor × context × pipeline that divides `world`, the most like `own` first. `data` takes what is left.
fn candidates(own: &ParallelSection, world: usize) -> Vec<ParallelSection> {
    let mut all = Vec::new();
    for tensor in divisors(world) {
        for context in divisors(world / tensor) {
            for pipeline in divisors(world / tensor / context) {
                let data = if own.data == 0 { 0 } else { world / tensor / context / pipeline };
                all.push(ParallelSection { tensor, context, pipeline, data, ..own.clone() });
            }
        }
    }
    // An axis that is not used stays so before one that is used changes its size.
    let far = |was: usize, is: usize| {
        let steps = (was as f64).log2() - (is as f64).log2();
        steps.abs() + if (was == 1) != (is == 1) { 2.0 } else { 0.0 }
    };
    let distance =
        |p: &ParallelSection| far(own.tensor, p.tensor) + far(own.context, p.context) + far(own.pipeline, p.pipeline);
    all.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    all
}

fn words(p: &ParallelSection, world: usize) -> String {
    let data = axes::data_size(p, world);
    format!("tensor {} × context {} × pipeline {} × data {data}", p.tensor, p.context, p.pipeline)
}
