//! `herd eval`: tasks that score a model, over as many ranks as one replica takes.

use super::engine::{positive, EngineArgs, OpenedModel};
use super::progress::shown_by;
use super::{logging, outcome};
use crate::data::chat::ChatTemplate;
use crate::data::tokenizer::Bos;
use crate::durable::write_atomic;
use crate::error::Result;
use crate::kernels::memory;
use crate::progress::Meter;
use crate::serve::eval::{EvalTask, PutTask, TaskKind, TaskRules, TaskScore};
use crate::serve::Engine;
use crate::text::grouped;
use crate::world::World;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

const AFTER: &str = "\
Rows, one JSON object a line, all of a file of one kind:
  {\"question\": \"2 + 2 =\", \"choices\": [\"3\", \"4\"], \"answer\": 1}      multiple choice: acc, acc_norm
  {\"prompt\": \"Q: 2 + 2?\\nA:\", \"answer\": \"4\"}                      generation: exact_match, contains
  {\"context\": \"The sky is\", \"continuation\": \" blue\"}             continuation: acc (greedy), perplexity
  {\"text\": \"Once upon a time ...\"}                               text: perplexity, bits_per_byte

Examples:
  herd eval --model runs/demo arc.jsonl hellaswag.jsonl
  herd eval --model Llama-3.2-1B-Instruct --chat --stop '\\n' --max-tokens 64 questions.jsonl --details out.jsonl
  srun --mpi=pmix -N 2 --ntasks-per-node 4 herd eval --model Llama-3.1-70B --tensor 8 mmlu.jsonl --json

Measures are those of lm-evaluation-harness for the same contexts and continuations. The same rows give the same bits in any order,
batch and company.";

/// Score a model on tasks.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Rows of a task each.
    #[arg(required = true, value_name = "TASK.jsonl")]
    tasks: Vec<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Contexts are a user's turn of the model's chat template.
    #[arg(long)]
    chat: bool,
    /// Only so many rows of each file, from its beginning.
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Between a context and a choice that does not begin with space.
    #[arg(long, value_name = "TEXT", default_value = " ")]
    delimiter: String,
    /// Tokens of a generated answer at most.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    max_tokens: usize,
    /// A text that ends a generated answer; `\n` is a new line; may be given several times. Tokens that end a text always do.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Write a line for each row: its task, its line, what was heard, whether it is right.
    #[arg(long, value_name = "OUT.jsonl")]
    details: Option<PathBuf>,
    /// Print the measures as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    memory::install();
    let world = World::init()?;
    match eval(&args, &world) {
        Ok(()) => world.finalize(),
        Err(e) => outcome::end(world, e),
    }
}

fn eval(args: &Args, world: &World) -> Result<()> {
    let first = world.rank() == 0;
    logging::init(first, None)?;
    let compute = args.engine.compute(world)?;
    let meter = Meter::default();
    let mut scores = Vec::new();
    let mut work = || -> Result<()> {
        let tasks = world.agree(first.then(|| open_tasks(args)).transpose())?;
        let opened = world.agree(first.then(|| args.engine.open(&meter)).transpose())?;
        let (holding, replica) = args.engine.hold(world, opened.as_ref(), compute, &meter)?;
        match (tasks, &opened) {
            (Some(tasks), Some(opened)) => {
                let mut engine = args.engine.engine(&holding, replica);
                let done = put_all(args, opened, &tasks, &mut engine, &meter);
                let ended = engine.end();
                scores = done?;
                ended
            }
            _ => replica.follow(),
        }
    };
    match first {
        true => shown_by(&meter, &mut work)?,
        false => work()?,
    }
    if !first {
        return Ok(());
    }
    if let Some(path) = &args.details {
        write_details(path, &scores)?;
    }
    super::print(&if args.json { told(args, &scores) } else { table(&scores) })
}

fn open_tasks(args: &Args) -> Result<Vec<EvalTask>> {
    let limit = args.limit.unwrap_or(usize::MAX);
    let tasks = args.tasks.iter().map(|path| EvalTask::open(path, limit)).collect::<Result<Vec<_>>>()?;
    for task in &tasks {
        let unused = match task.unused.is_empty() {
            true => String::new(),
            false => format!("; read past: {}", task.unused.join(", ")),
        };
        tracing::info!("{}: {} rows of kind {}{unused}", task.name, grouped(task.rows.len() as u64), task.kind.name());
    }
    Ok(tasks)
}

fn put_all(
    args: &Args, opened: &OpenedModel, tasks: &[EvalTask], engine: &mut Engine, meter: &Meter,
) -> Result<Vec<TaskScore>> {
    let OpenedModel { weights, tokenizer, longest } = opened;
    let chat = args.chat.then(|| ChatTemplate::of(tokenizer)).transpose()?;
    let front = tokenizer.front(Bos::Own)?;
    match &chat {
        Some(chat) => tracing::info!("contexts are turns of the template in {}", chat.file()),
        None => tracing::info!("tokenizer {}: {}", tokenizer.place(), front.says),
    }
    let rules = TaskRules {
        tokenizer,
        front: front.ids,
        chat: chat.as_ref(),
        delimiter: args.delimiter.clone(),
        max_tokens: args.max_tokens,
        stops: args.stop.iter().map(|s| s.replace("\\n", "\n")).collect(),
        ends: tokenizer.ends().into_iter().chain(weights.ends()).collect(),
        vocab: weights.model().vocab_size,
        longest: *longest,
    };
    if chat.is_some() && tasks.iter().any(|t| t.kind == TaskKind::Text) {
        tracing::warn!("--chat changes nothing for rows of kind text");
    }
    // all are looked through before the first is put
    let put = tasks.iter().map(|task| PutTask::new(task, &rules)).collect::<Result<Vec<_>>>()?;
    meter.begin_pieces("eval", "texts", put.iter().map(PutTask::texts).sum());
    let began = Instant::now();
    let scores = put.iter().map(|p| p.run(engine, meter)).collect::<Result<Vec<_>>>()?;
    let (seconds, tally) = (began.elapsed().as_secs_f64(), engine.tally());
    let (read, shared) = (grouped(tally.prefill + tally.decode), grouped(tally.shared));
    tracing::info!("{read} tokens read in {seconds:.1} s, {shared} were there from others");
    Ok(scores)
}

fn write_details(path: &Path, scores: &[TaskScore]) -> Result<()> {
    let mut text = String::new();
    for score in scores {
        for (line, row) in score.lines.iter().zip(&score.rows) {
            let mut value = json!({ "task": score.name, "line": line });
            if let (Some(to), Some(from)) = (value.as_object_mut(), row.as_object()) {
                to.extend(from.clone());
            }
            text += &format!("{value}\n");
        }
    }
    write_atomic(path, text.as_bytes())
}

fn told(args: &Args, scores: &[TaskScore]) -> String {
    let tasks: Vec<_> = scores.iter().map(TaskScore::json).collect();
    format!("{:#}\n", json!({ "model": args.engine.model, "herd": env!("CARGO_PKG_VERSION"), "tasks": tasks }))
}

fn table(scores: &[TaskScore]) -> String {
    let wide = scores.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max(4);
    let mut text =
        format!("{:wide$}  {:15}  {:>7}  {:13}  {:>9}  {:>8}\n", "task", "kind", "rows", "measure", "value", "± error");
    for s in scores {
        for (name, m) in s.measures() {
            let error = m.stderr.map_or_else(String::new, |e| format!("{e:.4}"));
            let (kind, rows) = (s.kind.name(), grouped(s.rows.len() as u64));
            text += &format!("{:wide$}  {kind:15}  {rows:>7}  {name:13}  {:>9.4}  {error:>8}\n", s.name, m.value);
        }
    }
    text
}
