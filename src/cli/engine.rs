//! How a model is held by the ranks of `herd batch`, `herd serve` and `herd eval`: the options that say so, and what they open.

use super::generate::{choose_device, dtype, open_tokenizer, proposed, quantize};
use super::tell::{of_json, to_json};
use super::train::cores;
use crate::config::ModelConfig;
use crate::convert::weights::{self, Weights};
use crate::data::chat::ChatTemplate;
use crate::data::tokenizer::{Bos, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::kernels::device::DeviceMemory;
use crate::kernels::quantized::WeightFormat;
use crate::progress::Meter;
use crate::serve::batch::request::{Defaults, RequestRules};
use crate::serve::guide::Grammars;
use crate::serve::replica::Replica;
use crate::serve::scheduler::Limits;
use crate::serve::start::{self, cache_blocks, Holding};
use crate::serve::Engine;
use crate::topology::Topology;
use crate::wire::Backend;
use crate::world::{Op, World};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::path::PathBuf;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

#[derive(clap::Args)]
pub struct EngineArgs {
    /// A Hugging Face directory, one of Meta's, a herd run directory (its newest valid checkpoint) or one checkpoint.
    #[arg(long, short, value_name = "DIR")]
    pub model: PathBuf,
    /// `bytes`, a tokenizer.json or a tiktoken tokenizer.model. Default: the one the model came with.
    #[arg(long, value_name = "SPEC")]
    pub tokenizer: Option<String>,
    /// What requests may call the model, besides --model and its last part; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Vec<String>,
    /// Ranks that share each layer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub tensor: usize,
    /// Ranks, or groups of --tensor ranks, among which the layers are cut.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub pipeline: usize,
    /// Texts that a replica makes at a time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub max_sequences: usize,
    /// Tokens that a replica reads at a time, of prompts and of texts.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub max_batch_tokens: usize,
    /// Tokens of the longest text, prompt and continuation. Default: the model's, 8192 at most.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    /// Memory of a rank for keys and values, in GB. Default: a quarter of what is free, of the device or of the node, shared by the
    /// ranks that have it.
    #[arg(long, value_name = "GB")]
    pub cache_gb: Option<f64>,
    /// Propose up to this many tokens of a text at a time, from what stood behind its last tokens before, and read them at once
    /// (prompt lookup). Changes no answer; faster where a text repeats or copies. 0: never.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = proposed)]
    pub num_speculative_tokens: usize,
    /// Read every prompt whole, also where another has the same beginning. Changes no answer.
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Where to compute. `auto`: the GPUs where there are any, else the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    pub device: String,
    /// Type of weights and activations. Default: bf16 on a GPU, fp32 on a CPU.
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "fp32"])]
    pub precision: Option<String>,
    /// Hold the matrices in integers, made when they are read: int8 a scale a row, int4 a scale each 32. On a CPU only. The head
    /// is int8 in both; norms, embedding, cache and activations between products stay as --precision says.
    #[arg(long, value_name = "FORMAT", value_parser = ["int8", "int4"])]
    pub quantize: Option<String>,
    /// CPU threads of a rank; 0 takes its share of the cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

pub fn positive(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number from 1 on".into()),
        Ok(n) => Ok(n),
    }
}

/// What the first rank tells the others of its model.
#[derive(Serialize, Deserialize)]
pub struct ToldModel {
    pub model: ModelConfig,
    pub longest: usize,
}

/// What the first rank has open.
pub struct OpenedModel {
    pub weights: Weights,
    pub tokenizer: Tokenizer,
    /// Tokens of the longest text.
    pub longest: usize,
}

impl EngineArgs {
    /// How the matrices are held.
    pub fn format(&self) -> Option<WeightFormat> {
        self.quantize.as_deref().and_then(WeightFormat::named)
    }

    /// Ranks of one replica.
    pub fn each(&self) -> usize {
        self.tensor * self.pipeline
    }

    /// The leader of a replica, ready.
    pub fn engine(&self, holding: &Holding, replica: Replica) -> Engine {
        let limits = Limits { tokens: self.max_batch_tokens, sequences: self.max_sequences };
        holding.engine(replica, limits, !self.no_prefix_cache).proposing(self.num_speculative_tokens)
    }

    /// Type and device of this rank; sets its threads.
    pub fn compute(&self, world: &World) -> Result<(Kind, Device)> {
        let device = world.agree(self.rank_device(world))?;
        world.agree(quantize(self.quantize.as_deref(), device))?;
        crate::wire::use_device(world, device)?;
        let threads = if self.threads > 0 { self.threads } else { cores(world.local_size()) };
        tch::set_num_threads(threads.min(i32::MAX as usize) as i32);
        Ok((dtype(self.precision.as_deref(), device), device))
    }

    fn rank_device(&self, world: &World) -> Result<Device> {
        match choose_device(&self.device)? {
            Device::Cuda(_) => {
                let all = crate::kernels::device::cuda_device_count().max(1);
                Ok(Device::Cuda(world.local_rank() % all))
            }
            other => Ok(other),
        }
    }

    pub fn open(&self, meter: &Meter) -> Result<OpenedModel> {
        let weights = weights::open_metered(&self.model, meter)?;
        let tokenizer = open_tokenizer(self.tokenizer.as_deref(), &weights, &self.model)?;
        let most = weights.model().max_position_embeddings;
        let longest = match self.max_length {
            Some(n) if n > most => {
                let fact = format!("--max-length is {n}, but the model's longest sequence is {most}");
                return Err(Error::new(Exit::Usage, fact).hint(format!("at most {most}")));
            }
            Some(n) => n,
            None => most.min(8192),
        };
        if longest < most && self.max_length.is_none() {
            tracing::info!("texts may have {longest} tokens, of the model's {most} (--max-length)");
        }
        Ok(OpenedModel { weights, tokenizer, longest })
    }

    /// What answers are made by, whatever is asked: another value, other texts. An object.
    pub fn made_by(&self, opened: &OpenedModel, kind: Kind) -> Value {
        json!({
            "model": std::path::absolute(&self.model).unwrap_or_else(|_| self.model.clone()),
            "step": opened.weights.checkpoint().map(|c| c.meta().step),
            "shape": opened.weights.model(),
            "tokenizer": opened.tokenizer.fingerprint(),
            "precision": format!("{kind:?}"),
            "quantize": self.quantize,
        })
    }

    /// The one replica that all ranks of `world` are, with what the first rank has open. Collective.
    ///
    /// # Errors
    /// [`Exit::Usage`], on all ranks: there are more ranks, or fewer; those of reading.
    pub fn hold(
        &self, world: &World, opened: Option<&OpenedModel>, compute: (Kind, Device), meter: &Meter,
    ) -> Result<(Holding<'static>, Replica)> {
        let (told, topology) = self.tell(world, opened)?;
        if world.size() != self.each() {
            let fact = format!("{} ranks, but one replica has --tensor × --pipeline = {}", world.size(), self.each());
            let e = Error::new(Exit::Usage, fact).hint("this command runs one replica: start it once for each");
            return Err(Error { agreed: true, ..e });
        }
        let others = world.agree(opened.is_none().then(|| weights::open(&self.model)).transpose())?;
        // It lives as long as the process.
        let holding = self.holding(world, Box::leak(Box::new(told)), topology, compute)?;
        let weights = opened.map(|o| &o.weights).or(others.as_ref());
        let replica = holding.replica(weights, world, meter)?;
        Ok((holding, replica))
    }

    /// The first rank's model for all, and this rank's place. Collective.
    ///
    /// # Errors
    /// [`Exit::Usage`], on all ranks: the ranks do not divide into replicas.
    pub fn tell(&self, world: &World, opened: Option<&OpenedModel>) -> Result<(ToldModel, Topology)> {
        let told = match opened {
            Some(o) => to_json(&ToldModel { model: o.weights.model().clone(), longest: o.longest })?,
            None => vec![],
        };
        let told: ToldModel = of_json(&world.broadcast_bytes(told, 0)?)?;
        let sizes = start::axes(&told.model, world.size(), self.tensor, self.pipeline);
        let sizes = sizes.map_err(|e| Error { agreed: true, ..e })?;
        Ok((told, Topology::new(world.rank(), sizes)))
    }

    /// What this rank is to hold of it. Collective.
    pub fn holding<'a>(
        &self, world: &World, told: &'a ToldModel, topology: Topology, (kind, device): (Kind, Device),
    ) -> Result<Holding<'a>> {
        let (model, longest, quantize) = (&told.model, told.longest, self.format());
        let mut holding = Holding { model, topology, kind, device, quantize, longest, blocks: 0 };
        holding.blocks = self.same_blocks(world, &holding)?;
        Ok(holding)
    }

    /// Blocks of the cache: as many as the rank with the least memory can have.
    fn same_blocks(&self, world: &World, holding: &Holding) -> Result<usize> {
        let bytes = match self.cache_gb {
            Some(gb) if gb > 0.0 && gb.is_finite() => (gb * 1e9) as u64,
            Some(gb) => {
                let e = Error::new(Exit::Usage, format!("--cache-gb is {gb}, must be above 0"));
                return Err(Error { agreed: true, ..e });
            }
            None => match (device_memory(holding.device), crate::wire::chosen()) {
                // through the host: several ranks may share a device
                (Some(free), Backend::Staged(..)) => free / 4 / world.local_size() as u64,
                (Some(free), _) => free / 4,
                (None, _) => free_memory() / 4 / world.local_size() as u64,
            },
        };
        let own = world.agree(cache_blocks(holding.longest, self.max_sequences, holding.block_bytes(), bytes))?;
        Ok(-world.all_reduce_f64(&[-(own as f64)], Op::Max)?[0] as usize)
    }

    /// What holds for every request.
    pub fn rules<'a>(
        &self, weights: &Weights, tokenizer: &'a Tokenizer, longest: usize, defaults: Defaults,
    ) -> Result<RequestRules<'a>> {
        let front = tokenizer.front(Bos::Own)?;
        tracing::info!("tokenizer {}: {}", tokenizer.place(), front.says);
        let path = self.model.to_string_lossy().into_owned();
        let last = self.model.file_name().map(|n| n.to_string_lossy().into_owned());
        let mut models = self.served_model_name.clone();
        for name in last.into_iter().chain([path]) {
            if !models.contains(&name) {
                models.push(name);
            }
        }
        Ok(RequestRules {
            tokenizer,
            front: front.ids,
            chat: ChatTemplate::of(tokenizer),
            ends: tokenizer.ends().into_iter().chain(weights.ends()).collect(),
            models,
            vocab: weights.model().vocab_size,
            longest,
            defaults,
            grammars: Arc::new(Grammars::new(tokenizer, weights.model().vocab_size)),
        })
    }
}

/// Bytes of a device that are free; `None` for the CPU.
fn device_memory(device: Device) -> Option<u64> {
    // its allocator says nothing before the first tensor
    let _first = device.is_cuda().then(|| Tensor::f_zeros([1], (Kind::Float, device)));
    DeviceMemory::of(device).map(|memory| memory.free)
}

/// Bytes of this host that can be had (proc(5), MemAvailable); where it does not say, 4 GB are taken.
fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).map_or(4 << 30, |kb| kb << 10)
}
