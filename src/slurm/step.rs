//! The `srun` that starts a step inside a running allocation, also when some of its nodes are dead.

use super::Job;
use std::path::Path;
use std::process::Command;

/// A step to start.
pub struct StepLine<'a> {
    /// The allocation that it runs in.
    pub job: &'a Job,
    /// `--job-name`, by which the step is found again.
    pub name: &'a str,
    /// One entry for each node; the order gives the ranks.
    pub nodes: &'a [String],
    /// Ranks on each of `nodes`.
    pub ranks_per_node: usize,
    /// `--mpi`: pmix, pmi2, none.
    pub mpi: &'a str,
    /// Further arguments (`launch.srun`), for steps that run herd.
    pub extra: &'a [String],
    /// Where the list of hosts may be written, for an order of nodes that is not the allocation's.
    pub hosts_file: &'a Path,
    /// Slurm's `TreeWidth`, where it is known.
    pub tree_width: Option<usize>,
}

/// Variables of the batch script that would size or place a step after the whole job; srun's own command line decides.
/// (srun(1), INPUT ENVIRONMENT VARIABLES)
const SIZES: &[&str] = &[
    "SLURM_NNODES",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_JOB_NODELIST",
    "SLURM_NODELIST",
    "SLURM_HOSTFILE",
    "SLURM_DISTRIBUTION",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_GTIDS",
    "SLURM_STEP_ID",
    "SLURM_EXACT",
    "SLURM_OVERLAP",
    "SLURM_WHOLE",
    "SLURM_KILL_BAD_EXIT",
    "SLURM_NO_KILL",
    "SLURM_MPI_TYPE",
    "SLURM_OPEN_MODE",
    "SLURM_UNBUFFEREDIO",
    "SLURM_LABELIO",
];

/// How Slurm's PMIx plugin joins its fences (mpi.conf(5), PMIxCollFence). A fence by `tree` does not join nodes at all where the
/// step has fewer of them than `TreeWidth`: `reverse_tree_info` then makes every node a root without children (seen in the
/// sources of 22.05 to 25.11, and measured on 22.05). The default, `mixed`, takes the tree for fences without data. A rank is
/// then let out of MPI_Init while another is still in it, and writes to it before its message handlers are there: a
/// segmentation fault in one start of five where a rank of a loaded node starts late. `ring` joins them, by as many hops as there
/// are nodes; where there are enough for a tree, that is as safe and takes a few.
const FENCE: &str = "SLURM_PMIX_FENCE";

impl StepLine<'_> {
    /// The command, without the program it starts.
    ///
    /// `--overlap --no-kill` and explicit sizes are what lets a second step start after a node of the job is lost.
    /// `--kill-on-bad-exit=0`: the ranks leave by themselves, each with its own code. Where a node stands out of the
    /// allocation's order (a spare in a dead node's place), the arbitrary distribution keeps every other rank where it
    /// was, beside its snapshot; the caller has written `hosts_file` ([`StepLine::hosts`]). The number of nodes follows from
    /// that list: srun of Slurm 24.11 and later refuses to be told it as well.
    pub fn command(&self) -> Command {
        let mut c = Command::new("srun");
        c.args(["--overlap", "--no-kill", "--kill-on-bad-exit=0"]);
        c.arg(format!("--job-name={}", self.name)).arg(format!("--mpi={}", self.mpi));
        c.arg(format!("-n{}", self.nodes.len() * self.ranks_per_node));
        if let Ok(cpus) = std::env::var("SLURM_CPUS_PER_TASK") {
            c.arg(format!("--cpus-per-task={cpus}"));
        }
        SIZES.iter().for_each(|name| {
            c.env_remove(name);
        });
        // a step has the batch script's environment, also in a job that was submitted with --export=NONE (srun(1), SLURM_EXPORT_ENV)
        c.arg("--export=ALL").env_remove("SLURM_EXPORT_ENV");
        c.env("SLURM_JOB_ID", self.job.id.to_string());
        if let Some(fence) = self.fence(std::env::var(FENCE).ok().as_deref()) {
            c.env(FENCE, fence);
        }
        if self.in_order() {
            c.arg(format!("-N{}", self.nodes.len())).arg(format!("-w{}", super::compress(self.nodes)));
            c.arg(format!("--ntasks-per-node={}", self.ranks_per_node));
        } else {
            c.arg("--distribution=arbitrary").env("SLURM_HOSTFILE", self.hosts_file);
        }
        c.args(self.extra);
        c
    }

    /// What to say instead of `said`: of the environment's words `ring` is the modulefile's, and right for few nodes only. Where
    /// `TreeWidth` is not known, what joins nodes in any case.
    fn fence(&self, said: Option<&str>) -> Option<&'static str> {
        match (said, self.tree_width.is_some_and(|width| self.nodes.len() >= width)) {
            (None | Some("ring"), true) => Some("tree"),
            (None, false) => Some("ring"),
            _ => None,
        }
    }

    /// What of the environment is not taken, for people.
    pub fn note(&self) -> Option<String> {
        let said = std::env::var(FENCE).ok()?;
        let fence = self.fence(Some(&said))?;
        let (nodes, width) = (self.nodes.len(), self.tree_width.unwrap_or(0));
        Some(format!(
            "{FENCE} is {fence} instead of {said}: {nodes} nodes are joined by a tree from TreeWidth = {width} on"
        ))
    }

    /// Whether the nodes stand in the order in which Slurm numbers ranks by itself.
    pub fn in_order(&self) -> bool {
        let mut rest = self.job.nodes.iter();
        self.nodes.iter().all(|n| rest.any(|m| m == n))
    }

    /// One line for each rank: its node.
    pub fn hosts(&self) -> String {
        self.nodes.iter().flat_map(|n| std::iter::repeat_n(format!("{n}\n"), self.ranks_per_node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job::read(|k| match k {
            "SLURM_JOB_ID" => Some("7".into()),
            "SLURM_JOB_NODELIST" => Some("n[1-4]".into()),
            _ => None,
        })
        .job
        .unwrap()
    }

    fn line(nodes: &[&str]) -> (String, String) {
        let (job, nodes) = (job(), nodes.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        let hosts_file = Path::new("/run/hosts");
        let step = StepLine {
            job: &job,
            name: "herd-3",
            nodes: &nodes,
            ranks_per_node: 2,
            mpi: "pmix",
            extra: &[],
            hosts_file,
            tree_width: Some(3),
        };
        let fences = [None, Some("ring"), Some("mixed")].map(|said| step.fence(said));
        let few = [Some("ring"), None, None];
        assert_eq!(fences, if nodes.len() < 3 { few } else { [Some("tree"), Some("tree"), None] });
        let args: Vec<_> = step.command().get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        (args.join(" "), step.hosts())
    }

    #[test]
    fn nodes_in_order_are_listed_and_others_placed_one_by_one() {
        let (args, _) = line(&["n1", "n2", "n4"]);
        let want = "--overlap --no-kill --kill-on-bad-exit=0 --job-name=herd-3 --mpi=pmix -n6 --export=ALL -N3 -wn[1-2,4] --ntasks-per-node=2";
        assert_eq!(args, want);
        let (args, hosts) = line(&["n4", "n2"]);
        assert!(args.ends_with("--mpi=pmix -n4 --export=ALL --distribution=arbitrary"), "{args}");
        assert_eq!(hosts, "n4\nn4\nn2\nn2\n");
    }
}
