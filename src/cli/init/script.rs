//! The batch script for a site.

use super::super::plan::write;
use super::{Args, Chosen};
use crate::slurm::{offers, process};
use std::path::Path;
use std::time::Duration;

/// The longest job that is asked for without being told, minutes.
const A_DAY: u64 = 1440;

/// What the script needs to know of the site besides its nodes.
pub struct SiteWays {
    account: Option<String>,
    /// herd's module, where `module avail` has one.
    module: Option<String>,
    memory: bool,
}

/// Asks Slurm for account and memory, and the module command; what is not answered is noted.
pub fn ask(args: &Args, notes: &mut Vec<String>) -> SiteWays {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    let account = match (&args.account, user.is_empty()) {
        (Some(account), _) => Some(account.clone()),
        (None, true) => None,
        (None, false) => match offers::account(&user) {
            Ok(account) => Some(account),
            Err(why) => {
                notes.push(format!("{why}: the script names none (hint: --account where the site wants one)"));
                None
            }
        },
    };
    let module = module();
    if module.is_none() {
        notes.push("`module avail` has no herd: the script starts this very program".into());
    }
    let memory = offers::counts_memory();
    if memory.is_none() {
        notes.push("scontrol show config was not answered: the script asks for all memory of its nodes".into());
    }
    SiteWays { account, module, memory: memory.unwrap_or(true) }
}

/// The first name that `module -t avail herd` lists: `herd/0.1.0`. A login shell has the command.
fn module() -> Option<String> {
    let list = process::command("bash", &["-lc", "module -t avail herd 2>&1"]);
    let said = process::run(list, Duration::from_secs(20)).ok()?;
    let is_name = |l: &&str| {
        l.split('/').next() == Some("herd") && l.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c))
    };
    let mut names = said.out.lines().map(|l| l.trim().trim_end_matches("(default)").trim_end_matches("(D)").trim());
    names.rfind(is_name).map(String::from)
}

/// The script that starts `config`.
pub fn text(c: &Chosen, site: &SiteWays, config: &Path, nodes: usize) -> String {
    let minutes = c.offer.limit_min.unwrap_or(A_DAY).min(A_DAY);
    let mut lines = vec![
        "#!/bin/bash".to_string(),
        format!("# Written by `herd init` for {}; arguments go to `herd launch` (docs/recovery.md).", config.display()),
        format!("#SBATCH --job-name={}", write::word(&c.config.name)),
        format!("#SBATCH --partition={}", c.offer.partition),
    ];
    lines.extend(site.account.as_ref().map(|a| format!("#SBATCH --account={a}")));
    lines.push(format!("#SBATCH --nodes={nodes:<18} # one more is a spare"));
    lines.push(format!("#SBATCH --ntasks-per-node={}", c.ranks_per_node));
    lines.push(match c.offer.gpus {
        0 => format!("#SBATCH --cpus-per-task={}", c.config.train.threads),
        n if c.offer.gpu_type.is_empty() => format!("#SBATCH --gpus-per-node={n}"),
        // the partition may have other kinds too
        n => format!("#SBATCH --gpus-per-node={}:{n}", c.offer.gpu_type),
    });
    if site.memory {
        lines.push("#SBATCH --mem=0                     # all of a node's memory".into());
    }
    lines.push("#SBATCH --exclusive".into());
    let limit =
        c.offer.limit_min.map_or("the partition has no limit".into(), |m| format!("the partition allows {m} minutes"));
    lines.push(format!("#SBATCH --time={minutes:<19} # minutes; {limit}"));
    lines.extend(
        [
            "#SBATCH --output=%x-%j.log",
            "#SBATCH --open-mode=append          # a requeued job goes on in its log",
            "#SBATCH --requeue                   # the job may go back into the queue: time limit, preemption, no spare left",
            "#SBATCH --no-kill                   # the loss of another node does not end the job",
        ]
        .map(String::from),
    );
    // a warning in time for a checkpoint, in short partitions a tenth of the time ahead
    lines.push(format!(
        "#SBATCH --signal=B:USR1@{:<10} # a warning before the time limit: time for a checkpoint",
        (6 * minutes).clamp(30, 600)
    ));
    lines.push(String::new());
    let program = match &site.module {
        Some(module) => {
            lines.push(format!("module load {module}"));
            "herd".to_string()
        }
        None => std::env::current_exe().map_or("herd".into(), |p| quoted(&p.display().to_string())),
    };
    lines.push(format!("exec {program} launch {} \"$@\"", quoted(&config.display().to_string())));
    lines.join("\n") + "\n"
}

/// For a POSIX shell.
pub fn quoted(text: &str) -> String {
    write::quoted(text)
}
