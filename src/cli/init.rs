//! `herd init`: one configuration and one batch script for this site and a model.

mod models;
mod script;

use crate::config::{load, to_yaml, Config};
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::plan::estimate::advice::{words, Question};
use crate::plan::estimate::{Allocation, Hardware};
use crate::plan::memory::{KernelForms, Memory};
use crate::plan::{Plan, Ranks};
use crate::slurm::offers::{self, Offer};
use crate::slurm::process;
use crate::text::binary;
use models::Model;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tch::Device;

/// Write a configuration and a batch script for a model on this site's Slurm.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd init --model llama3.1-8b --nodes 4
  herd init --model llama3.1-70b --nodes 16 --partition gpu --train data/corpus_train --tokenizer data/tokenizer.json
  herd init --model demo --nodes 2

Slurm is asked for partitions, devices, limits and account, `module avail` for herd's module; the axes are those that `herd plan
--search` finds. Both files are checked, and `sbatch --test-only` accepts the script, before anything is written.")]
pub struct Args {
    /// The model
    #[arg(long, value_enum)]
    model: Model,
    /// Nodes that train
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 17))]
    nodes: u32,
    /// Take this partition (default: of those with enough nodes the one with the most devices)
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Charge this account (default: yours, where Slurm knows one)
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// What the devices are, as in `herd plan --gpu` (default: by the type that Slurm names)
    #[arg(long, value_name = "DEVICE")]
    gpu: Option<String>,
    /// Tokens to train on, made by `herd data tokenize`
    #[arg(long, value_name = "PREFIX")]
    train: Option<PathBuf>,
    /// Tokens held out for validation
    #[arg(long, value_name = "PREFIX")]
    validation: Option<PathBuf>,
    /// The tokenizer that made them
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The configuration to write; the batch script lies beside it [default: MODEL.yaml]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
}

/// Most ranks of a node without devices.
const CPU_RANKS: usize = 8;

/// What was chosen, and what a person should know about it.
struct Chosen {
    offer: Offer,
    config: Config,
    ranks_per_node: usize,
    notes: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    let name = args.model.name();
    let config_file = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.yaml")));
    let batch_file = config_file.with_extension("sbatch");
    if config_file == batch_file {
        return Err(Error::new(Exit::Usage, format!("{} is a name for a batch script", config_file.display()))
            .hint("give the configuration's name, ending in .yaml"));
    }
    for file in [&config_file, &batch_file] {
        if file.exists() && !args.force {
            return Err(Error::new(
                Exit::Usage,
                format!("{} is there already and is not written over", file.display()),
            )
            .hint("another name with -o, or --force"));
        }
    }
    let offer = choose(offers::ask()?, &args)?;
    let text = args.model.text(&args.train, &args.validation, &args.tokenizer)?;
    let config = load::from_text(&text, config_file.display().to_string(), &[])?.finish()?;
    let mut chosen = match offer.gpus {
        0 => on_cpus(config, offer, &args)?,
        _ => on_devices(config, offer, &args)?,
    };
    let yaml = models::written(&text, &chosen.config, &args.model, args.nodes)?;
    // as it will be read
    let again = load::from_text(&yaml, config_file.display().to_string(), &[])?.finish()?;
    if again != chosen.config {
        return Err(Error::new(Exit::Internal, "the configuration does not read back as it was planned"));
    }
    let mut notes = std::mem::take(&mut chosen.notes);
    let site = script::ask(&args, &mut notes);
    let batch = script::text(&chosen, &site, &config_file, args.nodes as usize);
    let answer = tested(&batch, &batch_file)?;
    write_atomic(&config_file, yaml.as_bytes())?;
    write_atomic(&batch_file, batch.as_bytes())?;
    notes.extend(missing(&chosen.config));
    super::print(&told(&args, &chosen, &notes, [&config_file, &batch_file], &answer))
}

/// The nodes to take: enough of one kind, with devices before without, the most devices, the default partition, the most nodes.
fn choose(all: Vec<Offer>, args: &Args) -> Result<Offer> {
    let wanted = args.nodes as usize;
    let seen: Vec<String> = all
        .iter()
        .map(|o| {
            let gpus = if o.gpus > 0 { format!(" with {} × {}", o.gpus, kind(o)) } else { String::new() };
            format!("{} {} nodes{gpus}", o.partition, o.usable)
        })
        .collect();
    let asked = |o: &Offer| args.partition.as_ref().is_none_or(|p| *p == o.partition);
    let rank = |o: &Offer| (o.gpus, o.is_default, o.usable);
    // a model that is for a laptop needs no devices
    let cpu_first = |o: &Offer| args.model.is_small() && o.gpus == 0;
    all.into_iter().filter(|o| asked(o) && o.usable >= wanted).max_by_key(|o| (cpu_first(o), rank(o))).ok_or_else(
        || {
            let part = args.partition.as_ref().map_or(String::new(), |p| format!(" in partition {p}"));
            let fact = format!("no {wanted} usable nodes of one kind{part}; Slurm has: {}", seen.join(", "));
            Error::new(Exit::World, fact)
                .hint("fewer --nodes, or another --partition; `sinfo` says which nodes are down")
        },
    )
}

fn kind(offer: &Offer) -> &str {
    if offer.gpu_type.is_empty() {
        "gpu"
    } else {
        &offer.gpu_type
    }
}

/// The device of herd's table whose name stands in Slurm's: `nvidia_h100_80gb_hbm3`.
fn device_name(gpu_type: &str) -> Option<&'static str> {
    let text = gpu_type.to_ascii_lowercase();
    // gb200 holds b200
    ["gb200", "b200", "h200", "h100", "a100", "mi300x"].into_iter().find(|name| text.contains(name))
}

/// The fastest axes that fit.
fn on_devices(mut config: Config, offer: Offer, args: &Args) -> Result<Chosen> {
    let mut notes = Vec::new();
    let name = match (&args.gpu, device_name(&offer.gpu_type)) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.to_string(),
        (None, None) => {
            notes.push(format!(
                "Slurm names the devices of {} \"{}\", which is none of herd's table: planned as h100 (hint: --gpu)",
                offer.partition,
                kind(&offer)
            ));
            "h100".to_string()
        }
    };
    let hardware = Hardware::named(&name)?;
    let allocation = Allocation { nodes: args.nodes as usize, per_node: offer.gpus };
    config.train.device = crate::config::DeviceChoice::Cuda;
    let place = args.model.name().to_string();
    let forms = KernelForms::of(Device::Cuda(0));
    let question = Question { place, config, allocation, hardware: &hardware, forms };
    let best = question.search()?.best[0].config.clone();
    question.checked(best.clone())?;
    Ok(Chosen { ranks_per_node: offer.gpus, offer, config: best, notes })
}

/// As many replicas as the batch and the cores allow.
fn on_cpus(mut config: Config, offer: Offer, args: &Args) -> Result<Chosen> {
    let nodes = args.nodes as usize;
    let cores = offer.cpus.max(1);
    let per_node = (1..=cores.min(CPU_RANKS)).rev().find(|r| config.batch.global.is_multiple_of(nodes * r));
    let per_node = per_node.ok_or_else(|| {
        let fact = format!("a batch of {} sequences cannot be shared by {nodes} nodes", config.batch.global);
        Error::new(Exit::Config, fact).hint("another --nodes")
    })?;
    let world = nodes * per_node;
    config.train.device = crate::config::DeviceChoice::Cpu;
    config.train.threads = cores / per_node;
    let p = &mut config.parallel;
    (p.tensor, p.context, p.pipeline, p.data) = (1, 1, 1, world);
    let own = config.batch.global / world;
    config.batch.micro = (1..=config.batch.micro.min(own)).rev().find(|m| own.is_multiple_of(*m)).unwrap_or(1);
    let ranks =
        Ranks { rank: 0, size: world, local_rank: 0, local_size: per_node, cuda_devices: 0, cores: cores / per_node };
    let plan = Plan::new(config.clone(), &ranks)?;
    let (needed, there) = (Memory::peak(&plan).total() * per_node as u64, offer.memory_mib << 20);
    // Slurm's RealMemory of 1 means that nobody has said it
    if needed > there && offer.memory_mib > 1 {
        let fact = format!(
            "{} needs {} on each of {nodes} nodes; those of {} have no GPUs and {}",
            args.model.name(),
            binary(needed),
            offer.partition,
            binary(there)
        );
        return Err(Error::new(Exit::Config, fact).hint("a partition with GPUs, more nodes, or a smaller --model"));
    }
    let notes = vec![format!("partition {} has no GPUs: the run is on CPUs", offer.partition)];
    Ok(Chosen { offer, config, ranks_per_node: per_node, notes })
}

/// What `sbatch --test-only` says to the script.
fn tested(text: &str, to: &Path) -> Result<String> {
    let mut name = to.as_os_str().to_os_string();
    name.push(format!(".test-{}", std::process::id()));
    let trial = PathBuf::from(name);
    write_atomic(&trial, text.as_bytes())?;
    let words = [std::ffi::OsStr::new("--test-only"), trial.as_os_str()];
    let answer = process::run(process::command("sbatch", &words), Duration::from_secs(30));
    let _ = std::fs::remove_file(&trial);
    let answer = answer?;
    let said = format!("{} {}", answer.out.trim(), answer.err.trim()).trim().replace('\n', "; ");
    match answer.code {
        0 => Ok(said),
        _ => Err(Error::new(Exit::World, format!("sbatch --test-only refuses the script: {said}"))
            .hint("another --partition or --account; nothing was written")),
    }
}

/// Files that the configuration names and that are not there yet.
fn missing(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    for (place, prefix) in config.data.train.iter().chain(&config.data.validation).map(|s| ("corpus", &s.path)) {
        let mut index = prefix.as_os_str().to_os_string();
        index.push(".idx");
        if !Path::new(&index).exists() {
            out.push(format!("{place} {} is not there yet: herd data tokenize makes it", prefix.display()));
        }
    }
    out
}

fn told(args: &Args, c: &Chosen, notes: &[String], files: [&PathBuf; 2], answer: &str) -> String {
    let o = &c.offer;
    let devices = match o.gpus {
        0 => format!("{} ranks of {} threads", c.ranks_per_node, c.config.train.threads),
        n => format!("{n} × {}", kind(o)),
    };
    let mut out = format!(
        "site      partition {}: {} of {} usable nodes, each {devices}\nlayout    {}\n",
        o.partition,
        args.nodes,
        o.usable,
        words(&c.config)
    );
    notes.iter().for_each(|n| out += &format!("note      {n}\n"));
    out += &format!("sbatch    {answer}\nwritten   {}, {}\n", files[0].display(), files[1].display());
    let world = args.nodes as usize * c.ranks_per_node;
    let shown = files.map(|f| script::quoted(&f.display().to_string()));
    out + &format!("\nNext:\n  herd config check {} --ranks {world}\n  sbatch {}\n", shown[0], shown[1])
}

/// The whole configuration, where its text cannot be changed key by key.
fn whole(config: &Config) -> Result<String> {
    to_yaml(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurm_s_names_of_devices_are_known_again() {
        let all = ["nvidia_h100_80gb_hbm3", "GB200", "b200", "a100-sxm4-80gb", "mi300x", "rtx6000", ""];
        let want = [Some("h100"), Some("gb200"), Some("b200"), Some("a100"), Some("mi300x"), None, None];
        assert_eq!(all.map(device_name), want);
    }
}
