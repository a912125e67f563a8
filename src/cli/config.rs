//! `herd config`: check a configuration, print it with its defaults, print the schema of its keys, change keys of a job.

use crate::config::{self, schema, Config, ModelSection, MomentFormat, Partner};
use crate::convert::hf;
use crate::error::Result;
use crate::kernels::moments::Moment8;
use crate::launch::submitted;
use crate::layout::{self, Sharding};
use crate::plan::faults::FaultCost;
use crate::plan::flops::PerToken;
use crate::plan::memory::Memory;
use crate::plan::{self, Plan, Ranks};
use crate::text::{binary, decimal};
use crate::train::tasks::RunTasks;
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;

/// Check a configuration, print it with its defaults, print the schema of its keys, or change a key of a running job.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd config check configs/llama3_70b.yaml --ranks 128 --no-data
  herd config show configs/llama3_demo.yaml --set optim.lr=1e-3
  herd config schema > herd.schema.json

Relative paths in a configuration are relative to the current directory.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(CheckArgs),
    Show(ShowArgs),
    Schema(SchemaArgs),
    Change(ChangeArgs),
}

#[derive(clap::Args)]
struct File {
    /// Configuration file (YAML)
    config: PathBuf,
    /// Override a key, as in optim.lr=3e-4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Print a configuration with every default and override, as YAML.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd config show configs/llama3_demo.yaml
  herd config show configs/llama3_demo.yaml --set optim.lr=1e-3 > run.yaml")]
struct ShowArgs {
    #[command(flatten)]
    file: File,
}

/// Report every mistake at once, or what the run will be: parameters, tokens a step, memory a rank.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd config check configs/llama3_demo.yaml
  herd config check configs/llama3_70b.yaml --ranks 128 --json --no-data
  herd config check configs/llama3_demo.yaml --set batch.micro=16

The files that it names are looked at: the model's shape, the tokenizer, the corpora. Devices are checked when the run starts.")]
struct CheckArgs {
    #[command(flatten)]
    file: File,
    /// Ranks that the run will have (default: the fewest that the parallel section allows)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    ranks: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Do not look at the tokenizer and the corpora, on a machine that does not have them
    #[arg(long)]
    no_data: bool,
}

/// Print the JSON Schema of a configuration, for editors.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd config schema > herd.schema.json
  herd config schema --markdown

An editor with yaml-language-server completes and checks keys after this first line in a configuration:
  # yaml-language-server: $schema=herd.schema.json")]
struct SchemaArgs {
    /// Print the keys as tables in Markdown (the body of docs/configuration.md)
    #[arg(long)]
    markdown: bool,
}

/// Change keys of a job that runs under herd launch, from the next start of its ranks on.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd config change runs/llama70b optim.lr=1e-4
  herd config change runs/llama70b log.every=10 train.max_skipped_steps=20

The starts of a job go by the configuration that it was submitted with, whatever happens to the file meanwhile. Keys that the
supervisor goes by itself (name, run_dir, parallel, launch, alerts) need a new job.")]
struct ChangeArgs {
    /// Run directory
    run: PathBuf,
    /// What to change
    #[arg(value_name = "KEY=VALUE", required = true)]
    set: Vec<String>,
}

fn change(args: &ChangeArgs) -> Result<()> {
    let changed = submitted::change(&args.run, &args.set)?;
    let lines: String = changed.iter().map(|c| format!("{c}, from the next start on\n")).collect();
    super::print(if lines.is_empty() { "nothing to change: these are the values already\n" } else { &lines })
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Change(a) => change(&a),
        Command::Check(a) => check(a),
        Command::Show(a) => show(&config::load(&a.file.config, &a.file.set)?),
        Command::Schema(a) if a.markdown => super::print(&schema::markdown()),
        Command::Schema(_) => super::print(&format!("{:#}\n", schema::schema())),
    }
}

fn show(config: &Config) -> Result<()> {
    super::print(&config::to_yaml(config)?)
}

fn check(args: CheckArgs) -> Result<()> {
    let draft = config::load::draft(&args.file.config, &args.file.set)?;
    let p = &draft.config.parallel;
    let fewest = [p.tensor, p.context, p.pipeline, p.data.max(1)].into_iter().fold(1usize, usize::saturating_mul);
    let size = args.ranks.map_or(fewest, |n| n as usize);
    // As if on a node that has what is asked for.
    let ranks = Ranks { rank: 0, size, local_rank: 0, local_size: 1, cuda_devices: 1, cores: 1 };
    let plan = Plan::from_draft(draft, &ranks)?;
    let notes = notes(&plan.config.model)?;
    let data = match args.no_data {
        true => String::new(),
        false => {
            let data = plan::check_data(&plan, args.file.config.display())?;
            RunTasks::look(&plan)?.into_iter().fold(data, |all, line| format!("{all}\n{line}"))
        }
    };
    super::print(&match args.json {
        true => summary_json(&plan, &notes),
        false => summary(&plan, &notes) + &indented(&data),
    })
}

/// The corpora, under one name.
fn indented(lines: &str) -> String {
    let names = ["data"].into_iter().chain(std::iter::repeat(""));
    lines.lines().zip(names).map(|(line, name)| format!("  {name:<7} {line}\n")).collect()
}

/// What was guessed or left out of the file that gives the shape.
fn notes(section: &ModelSection) -> Result<Vec<String>> {
    let file = match (&section.shape, &section.config, &section.weights) {
        (Some(_), ..) | (None, None, None) => return Ok(Vec::new()),
        (None, Some(file), _) => file.clone(),
        (None, None, Some(directory)) => directory.join("config.json"),
    };
    hf::config::read(&file).map(|found| found.notes)
}

fn summary_json(plan: &Plan, notes: &[String]) -> String {
    let faults = FaultCost::of(plan);
    let (memory, flops) = (Memory::peak(plan), PerToken::of(&plan.config, &plan.model));
    let value = json!({
        "ranks": plan.topology.world(),
        "parameters": layout::count(&plan.model),
        "tokens_per_step": plan.tokens_per_step(),
        "micro_batches_per_step": plan.accumulation,
        "flops_per_token": { "causal": flops.causal, "full": flops.full },
        "memory": {
            "parameters": memory.parameters, "gradients": memory.gradients, "master": memory.master,
            "moments": memory.moments, "inputs": memory.inputs, "activations": memory.activations,
            "working": memory.working, "workspace": memory.beside.workspace, "communicators": memory.beside.communicators,
            "context": memory.beside.context, "tensors": memory.tensors(), "peak": memory.total(),
        },
        "faults": { "expected_every_s": faults.between, "key": faults.key, "step_limit_s": faults.step_limit(),
                    "warning": faults.warning() },
        "notes": notes,
    });
    format!("{value:#}\n")
}

fn summary(plan: &Plan, notes: &[String]) -> String {
    let (m, c, memory) = (&plan.model, &plan.config, Memory::peak(plan));
    let flops = PerToken::of(c, m);
    let tokens = plan.tokens_per_step();
    let lines = [
        (
            "model",
            format!(
                "{} parameters; {} blocks of width {}, {} heads of {} on {} key/value heads, vocabulary {}",
                decimal(layout::count(m) as f64),
                m.num_hidden_layers,
                m.hidden_size,
                m.num_attention_heads,
                m.head_dim(),
                m.num_key_value_heads,
                crate::text::grouped(m.vocab_size as u64)
            ),
        ),
        (
            "step",
            format!(
                "{} tokens = {} sequences of {}; each of {} ranks {} × {}",
                crate::text::grouped(tokens as u64),
                c.batch.global,
                c.data.sequence_length,
                plan.topology.world(),
                plan.accumulation,
                plan.micro_batch
            ),
        ),
        ("run", format!("{} steps, {} tokens", c.train.steps, decimal(tokens as f64 * c.train.steps as f64))),
        ("work", format!("{}FLOP a token ({}FLOP with full attention)", decimal(flops.causal), decimal(flops.full))),
        ("memory", format!("{} a rank: {}", binary(memory.total()), terms(&memory))),
    ];
    let host = [offloaded(plan), host(plan)].into_iter().flatten().map(|text| ("host", text));
    let faults = FaultCost::of(plan);
    let faults = faults.warning().map_or(("faults", faults.line()), |warning| ("WARNING", warning));
    let notes = notes.iter().map(|note| ("note", note.clone()));
    let body: String = lines
        .into_iter()
        .chain(host)
        .chain([faults])
        .chain(notes)
        .map(|(name, text)| format!("  {name:<7} {text}\n"))
        .collect();
    format!("ok\n{body}")
}

/// What snapshots take of the memory of a node, for each rank on it; none without snapshots. Master weights and two moments, each
/// element on one rank.
fn host(plan: &Plan) -> Option<String> {
    let c = &plan.config.checkpoint;
    let slot = 12 * layout::count(&plan.model) as u64 / plan.topology.world() as u64;
    let slots = if c.background { 3 } else { 2 };
    let copies = if c.partner == Partner::Off { 0 } else { 2 };
    (c.snapshot_every > 0).then(|| {
        format!(
            "{} a rank in {}: {slots} snapshots of {}, and {copies} of another node's rank where there is one",
            binary((slots + copies) * slot),
            c.snapshot_dir.display(),
            binary(slot)
        )
    })
}

/// What the optimizer keeps in host memory.
fn offloaded(plan: &Plan) -> Option<String> {
    let trained: usize = plan.layout.units.iter().filter(|u| !u.frozen).map(|u| u.len).sum();
    let part = trained / Sharding::new(&plan.config.parallel, &plan.topology).group;
    let bytes = match plan.config.optim.moments {
        MomentFormat::Fp32 => 12 * part,
        MomentFormat::Bits8 => 4 * part + 2 * Moment8::bytes(part),
    };
    match (plan.config.optim.offload, plan.offloads()) {
        (true, true) => Some(format!("{} a rank: master weights and moments (optim.offload)", binary(bytes as u64))),
        (true, false) => Some("optim.offload changes nothing: parameters lie in host memory already".into()),
        (false, _) => None,
    }
}

/// Each term with its name.
fn terms(memory: &Memory) -> String {
    memory.terms().iter().map(|(name, bytes)| format!("{name} {}", binary(*bytes))).collect::<Vec<_>>().join(", ")
}
