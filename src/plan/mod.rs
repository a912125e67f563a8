//! Configuration + world → [`Plan`]: every value resolved, every cross-field mistake reported at once. After it, only I/O
//! and hardware can fail.

mod axes;
mod data;
pub mod estimate;
pub mod faults;
pub mod flops;
mod learning_rate;
pub mod memory;
mod numbers;
mod resume;
mod rules;
mod same_data;
mod same_part;
mod settings;
mod shape;
mod trained;

pub use resume::{check_resume, check_weights};
pub use rules::check_vocabulary;
pub use same_data::{check_same_data, DataChanges};

pub use data::{check_data, check_held_out, AT_A_START};

use crate::checkpoint::Team;
use crate::config::{self, load, Config, DeviceChoice, Draft, ModelConfig, Precision, Problem};
use crate::data::Cutting;
use crate::error::{Exit, Result};
use crate::layout::{stages, Layout, Unit};
use crate::topology::{Axis, Topology};
use crate::world::World;
use std::path::Path;
use tch::{Device, Kind};

/// What a run will do, on this rank. Having one means that the configuration fits the world and the model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As read or made, checked against the world and the model.
    pub config: Config,
    /// The whole model's shape, from wherever the configuration takes it.
    pub model: ModelConfig,
    /// Sizes of the axes, and this rank's place on them.
    pub topology: Topology,
    /// The model's units in chunks, in forward order; chunk c lies on pipeline stage c mod stages.
    pub chunks: Vec<Vec<Unit>>,
    /// Of this rank.
    pub layout: Layout,
    /// Where this rank's tensors lie.
    pub device: Device,
    /// Compute dtype: `Kind::BFloat16` or `Kind::Float`.
    pub dtype: Kind,
    /// Sequences per forward pass.
    pub micro_batch: usize,
    /// Forward passes per optimizer step on this rank.
    pub accumulation: usize,
    /// CPU threads of this rank.
    pub threads: usize,
    /// Ranks on this rank's node.
    pub local_size: usize,
}

/// What the world and this node offer to one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// World rank.
    pub rank: usize,
    /// World size.
    pub size: usize,
    /// Rank among the ranks of this node.
    pub local_rank: usize,
    /// Ranks on this node.
    pub local_size: usize,
    /// CUDA devices that this process sees.
    pub cuda_devices: usize,
    /// CPU cores that this rank may use.
    pub cores: usize,
}

impl Ranks {
    /// This process's place in `world`, on a node with so many CUDA devices; `cores` are this rank's.
    pub fn of(world: &World, cuda_devices: usize, cores: usize) -> Ranks {
        Ranks {
            rank: world.rank(),
            size: world.size(),
            local_rank: world.local_rank(),
            local_size: world.local_size(),
            cuda_devices,
            cores,
        }
    }
}

impl Plan {
    /// Reads a configuration file and plans this rank's part.
    ///
    /// # Errors
    /// Everything that is wrong with the file, single keys and clashes, in one error: [`Exit::Config`], or
    /// [`Exit::Device`] or [`Exit::Model`] where only those are wrong.
    pub fn read(path: &Path, sets: &[String], ranks: &Ranks) -> Result<Plan> {
        Plan::from_draft(load::draft(path, sets)?, ranks)
    }

    /// As [`Plan::read`], for the ranks of a run: rank 0 reads the file and the model's shape where that lies in another, and
    /// tells the others. Collective.
    pub fn read_together(path: &Path, sets: &[String], ranks: &Ranks, team: Team) -> Result<Plan> {
        let (config, model) = team.by_first(|| Plan::read(path, sets, ranks).map(|plan| (plan.config, plan.model)))?;
        let device = device(config.train.device, ranks).map_err(|p| config::to_error(path.display(), &[p]));
        Ok(Plan::assemble(config, model, team.agree(device)?, ranks))
    }

    /// As [`Plan::read`], for a configuration made in code.
    pub fn new(config: Config, ranks: &Ranks) -> Result<Plan> {
        Plan::from_draft(Draft::of(config)?, ranks)
    }

    /// As [`Plan::read`], for a configuration read before.
    pub fn from_draft(draft: Draft, ranks: &Ranks) -> Result<Plan> {
        let Draft { place, config, mut problems } = draft;
        let resolved = shape::resolve(&config.model);
        let mut clashes = rules::check(&config, resolved.as_ref().ok(), ranks);
        let model = match resolved {
            Ok(shape) => Some(shape.model),
            Err(found) => {
                clashes.extend(found);
                None
            }
        };
        let device = device(config.train.device, ranks).map_err(|p| clashes.push(p)).ok();
        // A stand-in took the place of every wrong key: what it clashes with is no news.
        clashes.retain(|c| !problems.iter().flat_map(|p| &p.keys).any(|key| c.touches(key)));
        problems.extend(clashes);
        let (Some(model), Some(device), true) = (model, device, problems.is_empty()) else {
            return Err(config::to_error(place, &problems));
        };
        let plan = Plan::assemble(config, model, device, ranks);
        match trained::mixed_runs(&plan) {
            Some(problem) => Err(config::to_error(place, &[problem])),
            None => Ok(plan),
        }
    }

    /// What follows from values that fit together (the checks of [`Plan::from_draft`] have been made).
    fn assemble(config: Config, model: ModelConfig, device: Device, ranks: &Ranks) -> Plan {
        let p = &config.parallel;
        let chunks = stages::chunks(&model, p.pipeline, p.chunks, config.data.sequence_length);
        Plan::of_chunks(config, model, device, ranks, chunks)
    }

    /// The same where the model has been cut into `chunks`.
    fn of_chunks(config: Config, model: ModelConfig, device: Device, ranks: &Ranks, chunks: Vec<Vec<Unit>>) -> Plan {
        let data = axes::data_size(&config.parallel, ranks.size);
        let p = &config.parallel;
        let topology = Topology::new(ranks.rank, [p.tensor, p.context, p.pipeline, data]);
        let micro_batch = config.batch.micro;
        Plan {
            layout: own_layout(&config, &model, &topology, &chunks),
            chunks,
            topology,
            device,
            dtype: dtype(config.train.precision),
            micro_batch,
            accumulation: config.batch.global / (micro_batch * data),
            threads: match config.train.threads {
                0 => ranks.cores.max(1),
                n => n,
            },
            local_size: ranks.local_size,
            model,
            config,
        }
    }

    /// The plan of another rank.
    fn of_rank(&self, rank: usize) -> Plan {
        let topology = Topology::new(rank, self.topology.sizes);
        let layout = own_layout(&self.config, &self.model, &topology, &self.chunks);
        Plan { layout, topology, ..self.clone() }
    }

    /// How samples are cut from the corpora.
    pub fn cutting(&self) -> Cutting {
        Cutting {
            sequence_length: self.config.data.sequence_length,
            seed: self.config.seed,
            vocab_size: self.model.vocab_size,
            documents: self.config.data.document_mask,
            chat: self.config.data.chat,
            pairs: self.config.dpo.is_some(),
        }
    }

    /// Whether master weights and moments lie in host memory, and the parameters on a device.
    pub fn offloads(&self) -> bool {
        self.config.optim.offload && self.device != Device::Cpu
    }

    /// Tokens per optimizer step over all ranks.
    pub fn tokens_per_step(&self) -> usize {
        self.config.batch.global * self.config.data.sequence_length
    }
}

/// The units that the pipeline stage of `topology` holds, and which of them are trained.
fn own_layout(config: &Config, model: &ModelConfig, topology: &Topology, chunks: &[Vec<Unit>]) -> Layout {
    let own = chunks.iter().skip(topology.coord(Axis::Pipeline)).step_by(topology.size(Axis::Pipeline));
    let whole = Layout::of(model, topology, &own.collect::<Vec<_>>());
    match (&config.lora, &config.model.freeze) {
        (Some(lora), _) => whole.with_adapters(model, topology, lora),
        (None, Some(freeze)) => whole.with_frozen(freeze),
        (None, None) => whole,
    }
}

/// Compute dtype of a precision.
pub fn dtype(precision: Precision) -> Kind {
    match precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp32 => Kind::Float,
    }
}

fn device(choice: DeviceChoice, ranks: &Ranks) -> std::result::Result<Device, Problem> {
    let Ranks { local_rank, cuda_devices, .. } = *ranks;
    let none = |fact: String, hint: &str| Problem::new(["train.device"], fact).hint(hint).exit(Exit::Device);
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if cuda_devices == 0 => Ok(Device::Cpu),
        DeviceChoice::Cuda if cuda_devices == 0 => Err(none(
            "cuda was asked for, but this node has no CUDA device that libtorch can use".into(),
            "use cpu or auto, or ask Slurm for GPUs (--gpus-per-node) and load a CUDA build of libtorch",
        )),
        // With a device bound to each task every rank sees one and calls it 0. Ranks that do share one are noticed, and
        // served, where all ranks compare devices (World::use_device).
        _ => Ok(Device::Cuda(local_rank % cuda_devices)),
    }
}

#[cfg(test)]
mod tests;
