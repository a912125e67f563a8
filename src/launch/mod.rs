//! The supervisor behind `herd launch`: starts the ranks, watches them, starts them again.
//!
//! `parent` starts a supervisor again that was killed, `supervise` is the loop, `inherited` what it finds of the one before it, `ranks`
//! one start of the ranks, `ending` how it leaves, `standby` who goes on when its node is lost, `preflight` the doctor's step before a
//! run. The loop has three records: `context` (what it is given, and where the run stands), `records` (what it writes down), its
//! processes. What stands beside it takes of these what it needs: `nodes` (who runs next), `flush` (memory to disk). What they decide
//! by is pure:
//! `classify` and `tasks` (what was seen → what it means), `policy` (whether to start again), `place` (on which nodes). What they
//! remember is in the run directory: `ledger` (nodes), `history` (attempts), `submitted` (the configuration).

mod alert;
mod classify;
mod context;
pub mod drill;
mod ending;
mod flush;
pub mod follow;
pub mod history;
mod inherited;
pub mod ledger;
mod nodes;
mod overtaken;
mod parent;
mod place;
mod policy;
pub mod preflight;
mod program;
mod ranks;
mod records;
mod relay;
mod rollcall;
pub mod run_log;
mod seen;
pub mod standby;
pub mod status;
pub mod submitted;
mod supervise;
mod takeover;
mod tasks;

pub use parent::Parent;
pub use supervise::Supervisor;
pub use takeover::{go_on, outlive, wait, Outlived};

use crate::config::Config;
use crate::error::{Error, Exit, Result};
use crate::slurm::Job;
use std::path::PathBuf;

/// What to launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The run's configuration, as the job was submitted with it.
    pub config: Config,
    /// The file that the ranks read: what was resolved at the job's first start.
    pub path: PathBuf,
    /// Further arguments of `herd train`.
    pub arguments: Vec<String>,
    /// By `launch.ranks_per_node`, else the tasks that the job has on each node, else 1.
    pub ranks_per_node: usize,
    /// Ranks of one data-parallel replica.
    pub ranks_per_replica: usize,
    /// Data-parallel replicas of the whole plan, before any is given up for want of nodes.
    pub replicas: usize,
    /// Nodes kept for faults; `None`: all that are left over.
    pub spares: Option<usize>,
}

impl Launch {
    /// Fits the plan to the job. `spares`: from the command line.
    ///
    /// Errors ([`Exit::World`]): the ranks do not fill whole nodes, or the job has too few nodes.
    pub fn new(
        config: Config, path: PathBuf, arguments: Vec<String>, spares: Option<usize>, job: &Job,
    ) -> Result<Launch> {
        let wrong = |fact: String, hint: &str| Err(Error::new(Exit::World, fact).hint(hint));
        if job.nodes.is_empty() {
            return wrong(
                format!("the nodes of job {} are not known: SLURM_JOB_NODELIST is missing, or of a form that is unknown here", job.id),
                "start herd launch from the batch script, with Slurm's own environment",
            );
        }
        let parallel = &config.parallel;
        let ranks_per_node = match config.launch.ranks_per_node {
            Some(n) => n,
            None => tasks_on_each_node(job)?,
        };
        let ranks_per_replica = parallel.tensor * parallel.context * parallel.pipeline;
        let spares = spares.or(config.launch.spares);
        let nodes = job.nodes.len();
        let replicas = match parallel.data {
            0 => (nodes.saturating_sub(spares.unwrap_or(0)) * ranks_per_node) / ranks_per_replica,
            n => n,
        };
        let ranks = replicas * ranks_per_replica;
        if !ranks.is_multiple_of(ranks_per_node) {
            return wrong(
                format!("the plan has {ranks} ranks, which are no whole nodes of {ranks_per_node} ranks"),
                "change parallel.* or --ntasks-per-node",
            );
        }
        let need = ranks / ranks_per_node;
        if need == 0 || need + spares.unwrap_or(0) > nodes {
            let fact = format!(
                "the plan has {} ranks = {} nodes of {ranks_per_node}, with {} spares; job {} has {nodes} nodes",
                ranks.max(ranks_per_replica),
                need.max(1),
                spares.unwrap_or(0),
                job.id
            );
            return wrong(fact, "ask sbatch for --nodes = nodes of the plan + spares");
        }
        Ok(Launch { config, path, arguments, ranks_per_node, ranks_per_replica, replicas, spares })
    }

    /// Nodes that the ranks fill.
    pub fn nodes_for(&self, shrunk_to: Option<usize>) -> usize {
        shrunk_to.unwrap_or(self.replicas) * self.ranks_per_replica / self.ranks_per_node
    }

    /// What each task of the step executes.
    fn rank_command(&self, program: String, shrunk_to: Option<usize>, skip_steps: &[u64]) -> Vec<String> {
        let mut line = vec![program, "train".into(), self.path.display().to_string()];
        line.extend(self.arguments.iter().cloned());
        if let Some(replicas) = shrunk_to {
            line.extend(["--set".into(), format!("parallel.data={replicas}")]);
        }
        if !skip_steps.is_empty() {
            line.extend(["--set".into(), format!("train.skip_steps={skip_steps:?}")]);
        }
        line
    }

    /// This very command for a shell, with the configuration that this job goes by.
    fn own_command(&self, program: String) -> String {
        let quoted = |a: String| format!("'{}'", a.replace('\'', r"'\''"));
        let path = self.path.display().to_string();
        let arguments = with_configuration(std::env::args().skip(1), &path).map(quoted);
        std::iter::once(quoted(program)).chain(arguments).collect::<Vec<_>>().join(" ")
    }
}

/// Tasks on each node, from `--ntasks-per-node`, `--ntasks` or both; 1 where the job was submitted with neither.
fn tasks_on_each_node(job: &Job) -> Result<usize> {
    let nodes = job.nodes.len();
    let wrong = |said: String| {
        Err(Error::new(Exit::World, format!("job {} has {said} on {nodes} nodes", job.id))
            .hint("ask sbatch for --ntasks-per-node alone, or set launch.ranks_per_node"))
    };
    match (job.tasks_per_node, job.tasks) {
        (Some(each), Some(tasks)) if each * nodes != tasks => {
            wrong(format!("{tasks} tasks (--ntasks) and {each} on each node (--ntasks-per-node)"))
        }
        (Some(each), _) => Ok(each),
        (None, Some(tasks)) if !tasks.is_multiple_of(nodes) => {
            wrong(format!("{tasks} tasks (--ntasks), which is no whole number on each,"))
        }
        (None, tasks) => Ok(tasks.map_or(1, |t| (t / nodes).max(1))),
    }
}

/// A `herd launch` command's arguments with `path` in the place of its configuration, and without overrides, which are in it.
fn with_configuration(arguments: impl Iterator<Item = String>, path: &str) -> impl Iterator<Item = String> {
    let (mut out, mut skip, mut placed) = (Vec::new(), false, false);
    for a in arguments {
        let (value_of_set, value_of_spares) = (std::mem::take(&mut skip), out.last().is_some_and(|l| l == "--spares"));
        if value_of_set || a.starts_with("--set=") || a.starts_with("--standby=") {
            continue;
        }
        skip = a == "--set" && !out.iter().any(|o| o == "--");
        if skip {
            continue;
        }
        let is_path = !placed && !value_of_spares && !a.starts_with('-') && out.iter().any(|o| o == "launch");
        placed |= is_path;
        out.push(if is_path { path.to_string() } else { a });
    }
    out.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(sets: &[&str], nodes: &str, spares: Option<usize>) -> Result<Launch> {
        let job = Job::read(|k| match k {
            "SLURM_JOB_ID" => Some("7".into()),
            "SLURM_JOB_NODELIST" => Some(nodes.into()),
            "SLURM_NTASKS_PER_NODE" => Some("2".into()),
            _ => None,
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, crate::config::SAMPLE).unwrap();
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Launch::new(crate::config::load(&path, &sets)?, path.clone(), vec![], spares, &job.job.unwrap())
    }

    #[test]
    fn a_successor_goes_by_the_kept_configuration() {
        let of = |line: &str| {
            with_configuration(line.split(' ').map(str::to_string), "/run/j.yaml").collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("launch c.yaml --set a.b=1 --spares 2"), "launch /run/j.yaml --spares 2");
        assert_eq!(of("launch --spares 2 --set=a=1 c.yaml -- --set x=1"), "launch --spares 2 /run/j.yaml -- --set x=1");
        assert_eq!(of("launch --standby=n1 c.yaml"), "launch /run/j.yaml");
    }

    #[test]
    fn tasks_are_honoured_or_refused() {
        let each = |nodes: &str, tasks: Option<&str>, per_node: Option<&str>| {
            let told = Job::read(|k| match k {
                "SLURM_JOB_ID" => Some("7".into()),
                "SLURM_JOB_NODELIST" => Some(nodes.into()),
                "SLURM_NTASKS" => tasks.map(str::to_string),
                "SLURM_NTASKS_PER_NODE" => per_node.map(str::to_string),
                _ => None,
            });
            tasks_on_each_node(&told.job.unwrap())
        };
        for (tasks, per_node, want) in
            [(Some("16"), None, 8), (None, None, 1), (None, Some("3"), 3), (Some("6"), Some("3"), 3)]
        {
            assert_eq!(each("n[1-2]", tasks, per_node).unwrap(), want);
        }
        for (tasks, per_node, words) in [
            (Some("16"), None, "16 tasks (--ntasks), which is no whole number on each, on 3 nodes"),
            (Some("8"), Some("1"), "8 tasks (--ntasks) and 1 on each node (--ntasks-per-node) on 3 nodes"),
        ] {
            let e = each("n[1-3]", tasks, per_node).unwrap_err();
            assert!(e.exit == Exit::World && e.to_string().contains(words), "{e}");
        }
    }

    #[test]
    fn the_plan_decides_how_many_nodes_are_active() {
        let needs = |sets: &[&str], nodes, spares| launch(sets, nodes, spares).map(|l| l.nodes_for(None));
        assert_eq!(needs(&["parallel.data=4"], "n[1-3]", None).unwrap(), 2);
        assert_eq!(needs(&["parallel.data=0"], "n[1-3]", None).unwrap(), 3);
        assert_eq!(needs(&["parallel.data=0"], "n[1-3]", Some(1)).unwrap(), 2);
        assert_eq!(needs(&["parallel.data=0", "launch.spares=2"], "n[1-3]", None).unwrap(), 1);
        assert_eq!(needs(&["parallel.data=4", "launch.ranks_per_node=1"], "n[1-4]", None).unwrap(), 4);
        for (sets, spares, words) in [
            (&["parallel.data=8"][..], None, "8 ranks = 4 nodes of 2, with 0 spares; job 7 has 3 nodes"),
            (&["parallel.data=4"], Some(2), "with 2 spares; job 7 has 3 nodes"),
            (&["parallel.data=3"], None, "3 ranks, which are no whole nodes of 2"),
        ] {
            let e = needs(sets, "n[1-3]", spares).unwrap_err();
            assert!(e.exit == Exit::World && e.to_string().contains(words), "{e}");
        }
        let l = launch(&["parallel.data=4"], "n[1-3]", None).unwrap();
        assert_eq!(l.nodes_for(Some(2)), 1);
        let line = l.rank_command("herd".into(), Some(2), &[7, 9]).join(" ");
        assert!(line.ends_with("--set parallel.data=2 --set train.skip_steps=[7, 9]"), "{line}");
    }
}
