//! Which sizes of the parallel axes fit the world and the model. Each rule reports every factor and the nearest values that
//! would work; all of them are reported together.

use super::numbers::{divisors, multiples, near};
use super::shape::Shape;
use crate::config::{Config, ParallelSection, PipelineSchedule, Problem};

/// Data-parallel size: as configured, or what the other axes leave of the world.
pub fn data_size(p: &ParallelSection, world: usize) -> usize {
    match p.data {
        0 => (world / (p.tensor * p.context * p.pipeline).max(1)).max(1),
        n => n,
    }
}

/// Clashes of the axes with the model's shape (where it is known) and among themselves, in a world that they make.
pub fn check(config: &Config, shape: Option<&Shape>, world: usize, out: &mut Vec<Problem>) {
    sequence(config, out);
    sharding(&config.parallel, world, out);
    schedule(&config.parallel, out);
    if let Some(shape) = shape {
        heads(&config.parallel, shape, out);
        feed_forward(&config.parallel, shape, out);
        layers(&config.parallel, shape, out);
    }
}

/// The global batch is whole micro-batches on every data-parallel rank.
pub fn batch(config: &Config, world: usize, out: &mut Vec<Problem>) {
    let (global, micro) = (config.batch.global, config.batch.micro);
    let dp = data_size(&config.parallel, world);
    let unit = micro * dp;
    if global % unit == 0 {
        return;
    }
    let below = global / unit * unit;
    let mut hint = match below {
        0 => format!("batch.global {unit} works"),
        _ => format!("batch.global {below} or {} works", below + unit),
    };
    if global % dp == 0 {
        // Micro-batches that divide a rank's share: the nearest below (1 always does) and above.
        let share = global / dp;
        let down = (1..micro.min(share + 1)).rev().find(|m| share.is_multiple_of(*m));
        let up = (micro + 1..=share).find(|m| share.is_multiple_of(*m));
        let fits: Vec<String> = [down, up].into_iter().flatten().map(|m| m.to_string()).collect();
        hint += &format!(", and so does batch.micro {}", fits.join(" or "));
    }
    let fact = format!(
        "{global} sequences a step are not a multiple of micro-batch {micro} × {dp} data-parallel ranks = {unit}"
    );
    out.push(Problem::new(["batch.global", "batch.micro", "parallel.data"], fact).hint(hint));
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
