//! `herd generate`: continue prompts with a trained model.

mod prompts;

use super::devices;
use super::progress::shown;
use crate::convert::gguf::is_gguf;
use crate::convert::weights::{self, Weights};
use crate::convert::{foreign, Own};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::kernels::device;
use crate::kernels::quantized::WeightFormat;
use crate::serve::engine::check;
use crate::serve::scheduler::{blocks, Limits};
use crate::serve::start::Holding;
use crate::serve::{Asked, Chosen, Reader, Sampling, Stop, TextStream};
use crate::text::grouped;
use crate::topology::Topology;
use prompts::{Prompt, PromptArgs};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

const EXAMPLES: &str = "\
Examples:
  herd generate --model runs/demo --prompt 'Once upon a time'
  herd generate --model Llama-3.2-1B -p 'The sea' --temperature 0.8 --top-p 0.95 --seed 7
  herd generate --model runs/demo/checkpoints/step-00000200 --max-new-tokens 500 -p - < prompt.txt
  herd generate --model Llama-3.2-1B-Instruct --chat --system 'Answer in one sentence.' -p 'What is a herd?'

The text goes to standard output as it is made, prompt first (with --chat the answer alone); several are separated by an
empty line. A line on standard error says what was put in front of the prompts.
Greedy by default; with --temperature above 0 the same seed gives the same text.";

/// Continue prompts with a model.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A Hugging Face directory, a herd run directory (its newest valid checkpoint) or one checkpoint.
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    /// `bytes`, a tokenizer.json or a tiktoken tokenizer.model. Default: the one the model came with.
    #[arg(long, value_name = "SPEC")]
    tokenizer: Option<String>,
    /// Tokens to add to each prompt at most.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// Divides the logits before drawing; 0 takes the likeliest token always.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from this many likeliest tokens only; 0 from all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest likeliest tokens whose probabilities sum to this.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on after a token that ends a text.
    #[arg(long)]
    ignore_eos: bool,
    /// Where to compute. `auto`: the first GPU where there is one, else the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// Type of weights and activations. Default: bf16 on a GPU, fp32 on a CPU.
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "fp32"])]
    precision: Option<String>,
    /// Hold the matrices in integers, made when they are read: int8 a scale a row, int4 a scale each 32. On a CPU only.
    #[arg(long, value_name = "FORMAT", value_parser = ["int8", "int4"])]
    quantize: Option<String>,
    /// Propose up to this many tokens at a time, from what stood behind the last tokens before, and read them at once (prompt
    /// lookup). Changes no text; faster where it repeats or copies. 0: never.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = proposed)]
    num_speculative_tokens: usize,
    /// CPU threads; 0 takes all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

pub fn run(args: Args) -> Result<()> {
    super::logging::init(true, None)?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        ..Sampling::greedy()
    };
    sampling.check()?;
    let device = choose_device(&args.device)?;
    let quantize = quantize(args.quantize.as_deref(), device)?;
    if let Some(line) = devices::fallen_back(device, args.device == "auto") {
        tracing::warn!("{line}");
    }
    if args.threads > 0 {
        tch::set_num_threads(args.threads.min(i32::MAX as usize) as i32);
    }
    let weights = shown(|meter| weights::open_metered(&args.model, meter))?;
    let tokenizer = open_tokenizer(args.tokenizer.as_deref(), &weights, &args.model)?;
    let (prompts, says) = args.prompts.read(&tokenizer)?;
    let stop = match args.ignore_eos {
        true => vec![],
        false => tokenizer.ends().into_iter().chain(weights.ends()).collect(),
    };

    let (model, kind) = (weights.model(), dtype(args.precision.as_deref(), device));
    let longest = prompts.iter().map(|p| p.ids.len().saturating_add(args.max_new_tokens)).max().unwrap_or(0);
    let longest = longest.min(model.max_position_embeddings);
    prompts.iter().try_for_each(|p| check(&p.ids, model.vocab_size, longest))?;
    let (topology, blocks) = (Topology::solo(), blocks(longest) + 1);
    let holding = Holding { model, topology, kind, device, quantize, longest, blocks };
    let replica = shown(|meter| holding.alone(&weights, meter))?;
    let mut engine = holding.engine(replica, LIMITS, true).proposing(args.num_speculative_tokens);
    tracing::info!("{says}");
    for (index, Prompt { ids: prompt, shown }) in prompts.into_iter().enumerate() {
        if index > 0 {
            super::print("\n")?;
        }
        super::print(&shown)?;
        let mut printed = Printed(TextStream::new(|ids: &[u32]| tokenizer.decode(ids)));
        let (max_tokens, sample, stop) = (args.max_new_tokens, index as u64, stop.clone());
        let (logprobs, score_from, grammar) = (None, None, None);
        engine.submit(Asked { prompt, max_tokens, sampling, sample, stop, logprobs, score_from, grammar })?;
        while engine.pending() > 0 {
            engine.step(&mut printed)?;
        }
        super::print(&(printed.0.finish() + "\n"))?;
    }
    let tally = engine.tally();
    if tally.proposed > 0 {
        let (chosen, share) = (grouped(tally.chosen), accepted((tally.proposed, tally.accepted)));
        tracing::info!("{chosen} tokens in {} passes{share}", grouped(tally.iterations));
    }
    Ok(())
}

/// One text at a time; of its prompt so many tokens in one go.
const LIMITS: Limits = Limits { tokens: 512, sequences: 1 };

/// A text on standard output.
struct Printed<D>(TextStream<D>);

impl<D: Fn(&[u32]) -> String> Reader for Printed<D> {
    fn token(&mut self, _: u64, token: Chosen) -> Result<bool> {
        if !token.ends {
            super::print(&self.0.push(token.id))?;
        }
        Ok(false)
    }

    fn ended(&mut self, _: u64, _: Stop) -> Result<()> {
        Ok(())
    }
}

pub(super) fn open_tokenizer(given: Option<&str>, weights: &Weights, model: &Path) -> Result<Tokenizer> {
    let hint = "give one with --tokenizer: `bytes`, a tokenizer.json or a tokenizer.model";
    let tokenizer = match given {
        Some(spec) => Tokenizer::open(spec)?,
        None if weights.tokenizer().is_empty() => {
            let hint = match is_gguf(model) {
                true => {
                    "`herd checkpoint import` makes a directory of it, with its tokenizer; or give one with --tokenizer"
                }
                false => hint,
            };
            return Err(Error::new(Exit::Data, format!("{} names no tokenizer", model.display())).hint(hint));
        }
        None => match Own::of(weights)? {
            Own::Is(tokenizer) => *tokenizer,
            Own::Lost(why) => return Err(Error::new(Exit::Data, format!("no tokenizer: {why}")).hint(hint)),
        },
    };
    foreign(weights, &tokenizer).into_iter().for_each(|line| tracing::warn!("{line}"));
    let (has, takes) = (tokenizer.vocab_size(), weights.model().vocab_size);
    if has > takes {
        let spec = tokenizer.spec();
        let fact = format!("the tokenizer {spec} has {has} tokens, the model's vocabulary only {takes}");
        return Err(Error::new(Exit::Data, fact).hint("use the tokenizer that the model was trained with"));
    }
    Ok(tokenizer)
}

pub(super) fn choose_device(choice: &str) -> Result<Device> {
    match (choice, device::cuda_device_count()) {
        ("cpu", _) | ("auto", 0) => Ok(Device::Cpu),
        ("cuda", 0) => {
            let e =
                Error::new(Exit::Device, "cuda was asked for, but this host has no CUDA device that libtorch can use");
            Err(devices::with_reason(e).hint("use --device cpu or auto"))
        }
        _ => Ok(Device::Cuda(0)),
    }
}

pub(super) fn dtype(choice: Option<&str>, device: Device) -> Kind {
    match choice {
        Some("bf16") => Kind::BFloat16,
        Some(_) => Kind::Float,
        None if device.is_cuda() => Kind::BFloat16,
        None => Kind::Float,
    }
}

/// What --quantize asks for. Errors ([`Exit::Usage`]): on a device, for which there are no such products.
pub(super) fn quantize(asked: Option<&str>, device: Device) -> Result<Option<WeightFormat>> {
    match (asked, device) {
        (Some(format), Device::Cuda(_)) => {
            let fact = format!("--quantize {format} is for CPUs, and the model is to run on a GPU");
            Err(Error::new(Exit::Usage, fact).hint("add --device cpu, or leave --quantize out"))
        }
        (asked, _) => Ok(asked.and_then(WeightFormat::named)),
    }
}

/// Tokens to propose at a time.
pub(super) fn proposed(text: &str) -> std::result::Result<usize, String> {
    const MOST: usize = 64;
    match text.parse() {
        Ok(n) if n <= MOST => Ok(n),
        _ => Err(format!("must be a whole number from 0 to {MOST}")),
    }
}

/// A share in words: `12 of 34 proposed tokens accepted`, for the line that ends a command; nothing where none was proposed.
pub(super) fn accepted(tally: (u64, u64)) -> String {
    match tally {
        (0, _) => String::new(),
        (proposed, accepted) => format!(", {} of {} proposed tokens accepted", grouped(accepted), grouped(proposed)),
    }
}
