//! Which sizes of the parallel axes fit the world and the model. Each rule reports every factor and the nearest values that
//! would work; all of them are reported together.

use super::numbers::{divisors, multiples, near};
use super::settings::{fits, fitting};
use super::shape::Shape;
use crate::config::{Config, ParallelSection, PipelineSchedule, Problem};

/// Data-parallel size: as configured, or what the other axes leave of the world.
pub fn data_size(p: &ParallelSection, world: usize) -> usize {
    match p.data {
        0 => (world / (p.tensor * p.context * p.pipeline).max(1)).max(1),
        n => n,
    }
}

/// Clashes of the axes with the world and with the model's shape (where it is known).
pub fn check(config: &Config, shape: Option<&Shape>, world: usize, out: &mut Vec<Problem>) {
    product(config, shape, world, out);
    sequence(config, out);
    sharding(&config.parallel, world, out);
    schedule(&config.parallel, out);
    if let Some(shape) = shape {
        heads(&config.parallel, shape, out);
        feed_forward(&config.parallel, shape, out);
        layers(&config.parallel, shape, out);
    }
}

/// tensor × context × pipeline × data = world.
fn product(config: &Config, shape: Option<&Shape>, world: usize, out: &mut Vec<Problem>) {
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

/// Groups that share a copy of the state share out the replicas.
fn sharding(p: &ParallelSection, world: usize, out: &mut Vec<Problem>) {
    let (data, size) = (data_size(p, world), p.shard_size);
    let replicas = p.context * data;
    if size > 0 && p.zero == 0 {
        let fact = format!("groups of {size} replicas, but with parallel.zero 0 nothing is shared out");
        let hint = "set parallel.zero to 1, 2 or 3, or parallel.shard_size to 0";
        out.push(Problem::new(["parallel.shard_size", "parallel.zero"], fact).hint(hint));
    } else if size > 0 && !replicas.is_multiple_of(size) {
        let fact =
            format!("groups of {size} do not share out the context {} × data {data} = {replicas} replicas", p.context);
        let hint = format!("{}, or 0 for all of them, works", near(size, &divisors(replicas)));
        out.push(Problem::new(["parallel.shard_size", "parallel.context", "parallel.data"], fact).hint(hint));
    }
}

/// Context ranks hold two chunks of each sequence; tensor ranks share a micro-batch's tokens between the layers.
fn sequence(config: &Config, out: &mut Vec<Problem>) {
    let (p, s) = (&config.parallel, config.data.sequence_length);
    let (tensor, chunks) = (p.tensor, if p.context > 1 { 2 * p.context } else { 1 });
    let unit = chunks * tensor;
    if unit == 1 || s % unit == 0 {
        return;
    }
    let mut factors = Vec::new();
    if p.context > 1 {
        factors.push(format!("2 × context {}", p.context));
    }
    if tensor > 1 {
        factors.push(format!("tensor {tensor}"));
    }
    let factors = factors.join(" × ");
    let equals = if p.context > 1 { format!(" = {unit}") } else { String::new() };
    let fact =
        format!("{s} tokens a sequence are not a multiple of {factors}{equals}, the parts that the axes cut it in");
    let keys = ["data.sequence_length", "parallel.context", "parallel.tensor"];
    out.push(Problem::new(keys, fact).hint(format!("sequence_length {} works", multiples(s, unit))));
}

fn heads(p: &ParallelSection, shape: &Shape, out: &mut Vec<Problem>) {
    let (m, t) = (&shape.model, p.tensor);
    let (q, kv) = (m.num_attention_heads, m.num_key_value_heads);
    let fits = |t: usize| q.is_multiple_of(t) && (kv.is_multiple_of(t) || t.is_multiple_of(kv));
    if t == 1 || fits(t) {
        return;
    }
    let sizes: Vec<usize> = (1..=q).filter(|&t| fits(t)).collect();
    let fact = match q % t {
        0 => format!("tensor {t} neither divides nor is a multiple of num_key_value_heads {kv}"),
        _ => format!("num_attention_heads {q} is not a multiple of tensor {t}"),
    };
    out.push(
        with(shape, "parallel.tensor", &["num_attention_heads", "num_key_value_heads"], fact)
            .hint(format!("parallel.tensor {} works for {q} heads and {kv} KV heads", near(t, &sizes))),
    );
}

fn feed_forward(p: &ParallelSection, shape: &Shape, out: &mut Vec<Problem>) {
    let (f, t) = (shape.model.intermediate_size, p.tensor);
    if f % t != 0 {
        let fact = format!("intermediate_size {f} is not a multiple of tensor {t}");
        let hint = format!("parallel.tensor {} or intermediate_size {} works", near(t, &divisors(f)), multiples(f, t));
        out.push(with(shape, "parallel.tensor", &["intermediate_size"], fact).hint(hint));
    }
    let v = shape.model.vocab_size;
    if t > 1 && (t - 1) * v.div_ceil(t) >= v {
        let fact = format!("a vocabulary of {v} leaves the last of {t} tensor ranks without a row");
        out.push(with(shape, "parallel.tensor", &["vocab_size"], fact).hint("fewer tensor ranks"));
    }
}

/// Every chunk of every stage holds a block at least.
fn layers(p: &ParallelSection, shape: &Shape, out: &mut Vec<Problem>) {
    let (layers, stages, chunks) = (shape.model.num_hidden_layers, p.pipeline, p.chunks);
    if stages.saturating_mul(chunks) <= layers {
        return;
    }
    let mut problem = match chunks {
        1 => {
            let fact = format!("{layers} layers cannot fill pipeline {stages} stages with a block each");
            with(shape, "parallel.pipeline", &["num_hidden_layers"], fact)
        }
        _ => {
            let fact = format!("{layers} layers cannot fill pipeline {stages} × chunks {chunks} with a block each");
            let mut problem = with(shape, "parallel.pipeline", &["num_hidden_layers"], fact);
            problem.keys.push("parallel.chunks".into());
            problem
        }
    };
    let mut fits = Vec::new();
    if layers / chunks > 1 || (chunks == 1 && layers > 0) {
        fits.push(format!("parallel.pipeline at most {}", layers / chunks));
    }
    if chunks > 1 && layers / stages > 1 {
        fits.push(format!("parallel.chunks at most {}", layers / stages));
    }
    fits.push(format!("{} layers", stages.saturating_mul(chunks)));
    problem = problem.hint(fits.join(", or "));
    out.push(problem);
}

/// Chunks belong to the interleaved schedule, and it to a pipeline.
fn schedule(p: &ParallelSection, out: &mut Vec<Problem>) {
    let interleaved = p.schedule == PipelineSchedule::Interleaved;
    let keys = ["parallel.schedule", "parallel.chunks", "parallel.pipeline"];
    let problem = match (p.pipeline, p.chunks, interleaved) {
        (1, 1, _) | (_, 1, false) => return,
        (1, chunks, _) => {
            Problem::new(keys, format!("{chunks} chunks a stage, but pipeline 1 has nothing to interleave"))
                .hint("parallel.chunks 1, or parallel.pipeline 2 or more")
        }
        (stages, 1, _) => Problem::new(
            keys,
            format!("the interleaved schedule needs several chunks on each of the {stages} stages, but has 1"),
        )
        .hint("parallel.chunks 2, or parallel.schedule 1f1b"),
        (_, chunks, true) if chunks > 1 => return,
        (_, chunks, _) => {
            Problem::new(keys, format!("{chunks} chunks a stage, but only the interleaved schedule has more than 1"))
                .hint("parallel.chunks 1, or parallel.schedule interleaved")
        }
    };
    out.push(problem);
}

/// A problem of a key of the configuration and keys of the shape together.
fn with(shape: &Shape, key: &str, of_shape: &[&str], fact: String) -> Problem {
    let mut problem = Problem::new([key], fact);
    problem.keys.extend(shape.problem(of_shape, String::new()).keys);
    problem
}
