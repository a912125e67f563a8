//! `herd batch`: a file of requests answered, over as many ranks as are given.

mod opened;
mod tell;

use super::generate::{choose_device, dtype};
use super::progress::shown_by;
use super::train::cores;
use super::{logging, outcome};
use crate::config::ModelConfig;
use crate::convert::weights;
use crate::error::{Error, Exit, Result};
use crate::kernels::memory;
use crate::progress::Meter;
use crate::serve::batch::share::{lead, Finish};
use crate::serve::scheduler::Limits;
use crate::serve::start::{self, Holding};
use crate::topology::Topology;
use crate::train::StopFlag;
use crate::wire::use_device;
use crate::world::{Mailbox, World};
use opened::{Opened, Others};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::{Device, Kind};
use tell::{of_json, same_blocks, to_json, tokenizer_of_leaders};

const AFTER: &str = "\
Examples:
  herd batch --model Llama-3.2-1B-Instruct questions.jsonl answers.jsonl
  srun --mpi=pmix -N 4 --ntasks-per-node 8 herd batch --model Llama-3.1-70B --tensor 8 in.jsonl out.jsonl

A line of IN is a request as OpenAI's batches have it (custom_id, method, url, body), or the body alone: {\"prompt\": …} or
{\"messages\": …}, with an id. OUT gets a line for each as it is finished. Killed at any point and started again with the same
command it goes on: what is in OUT is not made again, and the same bytes come out as without the kill, in another order.
Ranks beyond --tensor × --pipeline make further replicas of the model, which share the requests.";

/// Answer a file of requests.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Requests, a JSON object a line.
    #[arg(value_name = "IN.jsonl")]
    input: PathBuf,
    /// Answers, a JSON object a line; a note of what it was made of is put beside it (OUT.jsonl.herd.json).
    #[arg(value_name = "OUT.jsonl")]
    output: PathBuf,
    /// A Hugging Face directory, one of Meta's, a herd run directory (its newest valid checkpoint) or one checkpoint.
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// `bytes`, a tokenizer.json or a tiktoken tokenizer.model. Default: the one the model came with.
    #[arg(long, value_name = "SPEC")]
    tokenizer: Option<String>,
    /// What requests may call the model, besides --model and its last part; may be given several times.
    #[arg(long, value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Ranks that share each layer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    tensor: usize,
    /// Ranks, or groups of --tensor ranks, among which the layers are cut.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pipeline: usize,
    /// Texts that a replica makes at a time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    max_sequences: usize,
    /// Tokens that a replica reads at a time, of prompts and of texts.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    max_batch_tokens: usize,
    /// Tokens of the longest text, prompt and continuation. Default: the model's, 8192 at most.
    #[arg(long, value_name = "N", value_parser = positive)]
    max_length: Option<usize>,
    /// Memory of a rank for keys and values, in GB. Default: a quarter of what is free, shared by the node's ranks.
    #[arg(long, value_name = "GB")]
    cache_gb: Option<f64>,
    /// Read every prompt whole, also where another has the same beginning. Changes no answer.
    #[arg(long)]
    no_prefix_cache: bool,
    /// For requests that do not say.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// For requests that do not say. Default: 16 for completions, up to the longest text for conversations.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// For requests that do not say: mixed with their custom_id.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to compute. `auto`: the GPUs where there are any, else the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// Type of weights and activations. Default: bf16 on a GPU, fp32 on a CPU.
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "fp32"])]
    precision: Option<String>,
    /// CPU threads of a rank; 0 takes its share of the cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number from 1 on".into()),
        Ok(n) => Ok(n),
    }
}

pub fn run(args: Args) -> Result<()> {
    memory::install();
    let world = World::init()?;
    match batch(&args, &world) {
        Ok(Finish::All) => world.finalize(),
        Ok(Finish::Stopped) => {
            // together: the first rank to leave with a code that is not 0 makes srun end the others
            world.barrier()?;
            world.finalize()?;
            std::process::exit(Exit::Requeue.code())
        }
        Err(e) => outcome::end(world, e),
    }
}

/// What the first rank tells the others.
#[derive(Serialize, Deserialize)]
struct Told {
    model: ModelConfig,
    longest: usize,
}

fn batch(args: &Args, world: &World) -> Result<Finish> {
    logging::init(world.rank() == 0, None)?;
    let stop =
        world.agree(StopFlag::install().map_err(|e| Error::new(Exit::Internal, format!("signal handlers: {e}"))))?;
    let device = world.agree(device(args, world))?;
    use_device(world, device)?;
    let threads = if args.threads > 0 { args.threads } else { cores(world.local_size()) };
    tch::set_num_threads(threads.min(i32::MAX as usize) as i32);
    let kind = dtype(args.precision.as_deref(), device);
    let meter = Meter::default();
    let shown = |work: &mut dyn FnMut() -> Result<Finish>| match world.rank() {
        0 => shown_by(&meter, work),
        _ => work(),
    };
    shown(&mut || work(args, world, (kind, device), &meter, &stop))
}

fn work(args: &Args, world: &World, options: (Kind, Device), meter: &Meter, stop: &StopFlag) -> Result<Finish> {
    let first = world.rank() == 0;
    let opened = world.agree(first.then(|| Opened::new(args, meter)).transpose())?;
    let told = match &opened {
        Some(o) => to_json(&Told { model: o.weights.model().clone(), longest: o.longest })?,
        None => vec![],
    };
    let told: Told = of_json(&world.broadcast_bytes(told, 0)?)?;
    let sizes = start::axes(&told.model, world.size(), args.tensor, args.pipeline);
    let sizes = sizes.map_err(|e| Error { agreed: true, ..e })?;
    let topology = Topology::new(world.rank(), sizes);
    let each = args.tensor * args.pipeline;
    let leads = world.rank().is_multiple_of(each);
    let in_first = !first && world.rank() < each;
    let weights = world.agree(in_first.then(|| weights::open(&args.model)).transpose())?;
    let mut holding =
        Holding { model: &told.model, topology, kind: options.0, device: options.1, longest: told.longest, blocks: 0 };
    holding.blocks = same_blocks(args, world, &holding)?;
    let begun = world.agree(opened.as_ref().map(|o| o.begin(args, &holding)).transpose())?;
    let tokenizer = tokenizer_of_leaders(world, leads, opened.as_ref().map(|o| &o.tokenizer))?;
    let weights = opened.as_ref().map(|o| &o.weights).or(weights.as_ref());
    let mut mailbox = Mailbox::open(world)?;
    let replica = holding.replica(weights, world, meter)?;
    let limits = Limits { tokens: args.max_batch_tokens, sequences: args.max_sequences };
    let mut finish = Finish::All;
    match (&opened, begun, tokenizer) {
        (Some(opened), Some(begun), _) => {
            let others = Others { mailbox: &mut mailbox, leaders: world.size() / each - 1 };
            finish = opened.answer(
                args,
                begun,
                holding.engine(replica, limits, !args.no_prefix_cache),
                others,
                meter,
                stop,
            )?;
        }
        (_, _, Some(tokenizer)) => {
            lead(holding.engine(replica, limits, !args.no_prefix_cache), &tokenizer, &mut mailbox, world)?
        }
        _ => replica.follow()?,
    }
    // How it ended, the first rank knows.
    let word = world.broadcast_bytes(vec![u8::from(finish == Finish::Stopped)], 0)?;
    Ok(if word == [1] { Finish::Stopped } else { Finish::All })
}

fn device(args: &Args, world: &World) -> Result<Device> {
    match choose_device(&args.device)? {
        Device::Cuda(_) => {
            let all = crate::kernels::device::cuda_device_count().max(1);
            Ok(Device::Cuda(world.local_rank() % all))
        }
        other => Ok(other),
    }
}
