//! What is asked of every host: rank 0 reads it out of the configuration and tells the others.

use crate::config::{load, Config};
use crate::data::tokenizer;
use crate::error::Result;
use crate::kernels::device;
use crate::plan::estimate::{self, Allocation, Hardware};
use crate::plan::memory::KernelForms;
use crate::plan::{Plan, Ranks};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tch::Device;

/// A question to all hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inquiry {
    /// The configuration's file, of which every host has the same content.
    pub config: Option<PathBuf>,
    /// Directories that all hosts write to, and see each other's files in.
    pub places: Vec<PathBuf>,
    /// Files that all hosts read.
    pub inputs: Vec<PathBuf>,
    /// Inputs beyond [`MOST_INPUTS`], which are not looked at.
    pub inputs_left_out: usize,
    /// `checkpoint.snapshot_dir`, whose filesystem is looked at; /dev/shm without a configuration.
    pub snapshot_dir: PathBuf,
    /// Threads of a rank; 0: a share of the cores.
    pub threads: usize,
    /// `launch.health_check`: program and arguments.
    pub health_check: Vec<String>,
    /// What the run will write.
    pub needs: Option<Needs>,
    /// What is wrong with the configuration, or why it was not planned.
    pub unplanned: Option<String>,
    /// Ranks that the run has, where it is planned.
    pub run_ranks: usize,
    /// Whether links, speed and storage are measured; else only what takes no time.
    pub full: bool,
}

/// Bytes that a run keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Needs {
    /// One checkpoint.
    pub checkpoint: f64,
    /// Checkpoints that lie there at the same time: those that are kept, and the one that is being written.
    pub checkpoints: usize,
    /// Snapshots on one node.
    pub snapshots: f64,
}

/// Inputs that are looked at.
pub const MOST_INPUTS: usize = 32;

impl Inquiry {
    /// Without a configuration: the current directory and /dev/shm.
    pub fn without_config() -> Inquiry {
        let here = std::env::current_dir().unwrap_or_else(|_| ".".into());
        let why = "no configuration was given";
        Inquiry {
            places: vec![here],
            snapshot_dir: "/dev/shm".into(),
            unplanned: Some(why.into()),
            full: true,
            ..Inquiry::default()
        }
    }

    /// Of a run on at most `nodes` nodes with `per_node` ranks each.
    ///
    /// # Errors
    /// The file cannot be read, or is no configuration. Values that clash are a finding, not an error.
    pub fn of(path: &Path, sets: &[String], nodes: usize, per_node: usize) -> Result<Inquiry> {
        let config = load::load(path, sets)?;
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let mut inputs: Vec<PathBuf> = Vec::new();
        for corpus in config.data.train.iter().chain(&config.data.validation) {
            for end in [".idx", ".bin"] {
                let mut name = corpus.path.clone().into_os_string();
                name.push(end);
                inputs.push(name.into());
            }
        }
        if config.data.tokenizer != "bytes" {
            let path = PathBuf::from(&config.data.tokenizer);
            inputs.push(tokenizer::file_in(&path).unwrap_or(path));
        }
        inputs.extend(config.model.config.clone());
        inputs.extend(config.model.weights.as_ref().map(|w| w.join("config.json")));
        let left_out = inputs.len().saturating_sub(MOST_INPUTS);
        inputs.truncate(MOST_INPUTS);
        let (planned, ranks) = needs(&config, path, sets, nodes, per_node);
        let (needs, unplanned) = match planned {
            Ok(needs) => (Some(needs), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let mut places = vec![config.run_dir.clone()];
        places.extend(config.launch.rescue_dir.clone());
        Ok(Inquiry {
            config: Some(file),
            places: places.iter().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone())).collect(),
            inputs,
            inputs_left_out: left_out,
            snapshot_dir: config.checkpoint.snapshot_dir.clone(),
            threads: config.train.threads,
            health_check: config.launch.health_check.clone(),
            needs,
            unplanned,
            run_ranks: ranks,
            full: true,
        })
    }
}

/// What the planner says, and the ranks that it plans for: those that the configuration names, else all.
fn needs(config: &Config, path: &Path, sets: &[String], nodes: usize, per_node: usize) -> (Result<Needs>, usize) {
    let p = &config.parallel;
    let replica = (p.tensor * p.context * p.pipeline).max(1);
    let size = match p.data {
        0 => (nodes.saturating_sub(config.launch.spares.unwrap_or(0)) * per_node / replica).max(1) * replica,
        data => data * replica,
    };
    let plan = || {
        let devices = device::cuda_device_count();
        let ranks = Ranks { rank: 0, size, local_rank: 0, local_size: per_node, cuda_devices: devices, cores: 1 };
        let plan = Plan::read(path, sets, &ranks)?;
        let allocation = Allocation { nodes: size.div_ceil(per_node).max(1), per_node: per_node.min(size) };
        // bytes do not depend on the kind of device, times are not used
        let hardware = Hardware::named("h100")?;
        let saves = estimate::estimate(&plan, allocation, &hardware, KernelForms::of(Device::Cpu), None)?.saves;
        let kept = if config.checkpoint.keep == 0 { 1 } else { config.checkpoint.keep };
        Ok(Needs { checkpoint: saves.bytes, checkpoints: kept + 1, snapshots: saves.node_memory })
    };
    (plan(), size)
}
