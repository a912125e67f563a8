//! The product of the parallel axes and the world; where they clash, the settings that would fit.

use super::axes;
use super::numbers::{divisors, multiples, near};
use super::shape::Shape;
use crate::config::{Config, ParallelSection, Problem};

/// As many are named.
const SHOWN: usize = 3;

/// tensor × context × pipeline × data = world; else what to change.
pub fn product(config: &Config, shape: Option<&Shape>, world: usize, out: &mut Vec<Problem>) {
    let p = &config.parallel;
    let inner = p.tensor * p.context * p.pipeline;
    let own = format!("tensor {} × context {} × pipeline {}", p.tensor, p.context, p.pipeline);
    let (fact, start) = match p.data {
        0 if !world.is_multiple_of(inner) => (
            format!("{own} = {inner} ranks a replica, which do not divide the world of {world}"),
            format!("start {} ranks", multiples(world, inner)),
        ),
        data if data > 0 && inner * data != world => (
            format!("{own} × data {data} = {} ranks, but the world has {world}", inner * data),
            format!("start {} ranks", inner * data),
        ),
        _ => return,
    };
    let mut hints = one_axis(config, shape, world);
    // Where data alone can take up the difference, that is what is wanted.
    if !world.is_multiple_of(inner) {
        let settings = fitting(config, shape, world);
        hints.extend((!settings.is_empty()).then(|| format!("for {world} ranks set {}", settings.join(", or "))));
    }
    hints.push(start);
    let keys = ["parallel.data", "parallel.tensor", "parallel.context", "parallel.pipeline"];
    out.push(Problem::new(keys, fact).hint(hints.join(", or ")));
}

/// What one axis could be, the others as they are.
fn one_axis(config: &Config, shape: Option<&Shape>, world: usize) -> Vec<String> {
    let p = &config.parallel;
    let inner = p.tensor * p.context * p.pipeline;
    let mut hints = Vec::new();
    if p.data > 0 && world.is_multiple_of(inner) {
        hints.push(format!("set parallel.data {} (or 0, whatever the world has)", world / inner));
    }
    for (name, own) in [("tensor", p.tensor), ("context", p.context), ("pipeline", p.pipeline)] {
        let rest = inner / own * p.data.max(1);
        if !world.is_multiple_of(rest) || (own == 1 && p.data == 0) {
            continue;
        }
        let with = |n: usize| match name {
            "tensor" => ParallelSection { tensor: n, ..p.clone() },
            "context" => ParallelSection { context: n, ..p.clone() },
            _ => ParallelSection { pipeline: n, ..p.clone() },
        };
        let whole = |n: &usize| p.data == 0 || *n == world / rest;
        let sizes = divisors(world / rest).into_iter().filter(whole).filter(|&n| fits(config, shape, world, with(n)));
        let near = near(own, &sizes.collect::<Vec<_>>());
        if !near.is_empty() {
            hints.push(format!("set parallel.{name} to {near}"));
        }
    }
    hints
}

/// The settings nearest to the configured ones with which the model, the sequence and the batch run on `world` ranks, in
/// words. Where none suits the batch, those that want another `batch.global`, and the words say so.
pub fn fitting(config: &Config, shape: Option<&Shape>, world: usize) -> Vec<String> {
    let all = candidates(&config.parallel, world);
    let fits = |p: &&ParallelSection, with_batch: bool| {
        let changed = Config { parallel: (*p).clone(), ..config.clone() };
        let mut clashes = Vec::new();
        axes::check(&changed, shape, world, &mut clashes);
        if with_batch {
            axes::batch(&changed, world, &mut clashes);
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
