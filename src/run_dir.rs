//! Where everything of a run lies: one method for each path in a run directory. Nothing else puts these names together.

use std::path::{Path, PathBuf};

/// A run directory, for the paths in it.
#[derive(Clone, Copy, Debug)]
pub struct RunDir<'a>(&'a Path);

/// What training writes and reads.
impl<'a> RunDir<'a> {
    /// The run directory at `path`, whether it is there or not.
    pub fn new(path: &'a Path) -> RunDir<'a> {
        RunDir(path)
    }

    /// The configuration as it was resolved at the last start.
    pub fn config(self) -> PathBuf {
        self.0.join("config.yaml")
    }

    /// What the configuration and the world came to.
    pub fn plan(self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// A line a step.
    pub fn metrics(self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Steps that were done again.
    pub fn superseded_metrics(self) -> PathBuf {
        self.0.join("metrics.superseded.jsonl")
    }

    /// The last step for Prometheus.
    pub fn prometheus(self) -> PathBuf {
        self.0.join("metrics.prom")
    }

    /// Directory of TensorBoard's event files.
    pub fn tensorboard(self) -> PathBuf {
        self.0.join("tensorboard")
    }

    /// What happened, a line each.
    pub fn events(self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    /// Checkpoints, a directory a step.
    pub fn checkpoints(self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Log-probabilities of preference pairs under the model that the run began with.
    pub fn reference(self) -> PathBuf {
        self.0.join("reference")
    }

    /// Models in Hugging Face form, a directory a step.
    pub fn exports(self) -> PathBuf {
        self.0.join("exports")
    }

    /// What of the checkpoints is whole in the object store.
    pub fn uploads(self) -> PathBuf {
        self.0.join("uploads.json")
    }

    /// The number by which snapshots in memory know their run.
    pub fn run_id(self) -> PathBuf {
        self.0.join("run-id")
    }

    /// Logs of the ranks of one node.
    pub fn node_logs(self, node: &str) -> PathBuf {
        self.0.join("logs").join(file_name(node))
    }

    /// The log of one rank.
    pub fn rank_log(self, node: &str, rank: usize) -> PathBuf {
        self.node_logs(node).join(format!("rank-{rank:05}.log"))
    }
}

/// What faults leave behind, and what orders them.
impl RunDir<'_> {
    /// The newest attempt, which fences off older ones.
    pub fn newest_attempt(self) -> PathBuf {
        self.0.join("attempt.json")
    }

    /// What ranks have said of failures, a directory an attempt.
    pub fn verdicts(self) -> PathBuf {
        self.0.join("verdicts")
    }

    /// What the ranks have said in one attempt, a file a node.
    pub fn attempt_verdicts(self, attempt: u64) -> PathBuf {
        self.verdicts().join(format!("attempt-{attempt:04}"))
    }

    /// What the ranks of one node have said in an attempt.
    pub fn node_verdicts(self, attempt: u64, node: &str) -> PathBuf {
        self.attempt_verdicts(attempt).join(format!("{}.jsonl", file_name(node)))
    }

    /// Orders of `herd drill`.
    pub fn drill(self) -> PathBuf {
        self.0.join("drill")
    }

    /// The order that a rank looks for between two steps.
    pub fn drill_order(self, rank: usize) -> PathBuf {
        self.drill().join(format!("rank-{rank:05}.json"))
    }

    /// The file by which `herd drill` fills the disk.
    pub fn drill_ballast(self) -> PathBuf {
        self.0.join("drill-ballast")
    }
}

/// What the supervisor keeps.
impl RunDir<'_> {
    /// Every start of the ranks.
    pub fn attempts(self) -> PathBuf {
        self.0.join("attempts.json")
    }

    /// Failures of nodes.
    pub fn ledger(self) -> PathBuf {
        self.0.join("ledger.json")
    }

    /// Directory of the supervisor's and the jobs' own files.
    pub fn launch(self) -> PathBuf {
        self.0.join("launch")
    }

    /// Created by the supervisor that takes the number of an attempt.
    pub fn attempt_claim(self, attempt: u64) -> PathBuf {
        self.launch().join(format!("attempt-{attempt:04}"))
    }

    /// Why the ranks of an attempt left, a file an exit code and node.
    pub fn exits(self, attempt: u64) -> PathBuf {
        self.launch().join(format!("exits-{attempt:04}"))
    }

    /// The nodes of an attempt, in the order of its slots.
    pub fn attempt_hosts(self, attempt: u64) -> PathBuf {
        self.launch().join(format!("hosts-{attempt:04}"))
    }

    /// The nodes of a roll call.
    pub fn roll_call_hosts(self) -> PathBuf {
        self.launch().join("hosts-rollcall")
    }

    /// The nodes whose snapshots go to disk.
    pub fn flush_hosts(self) -> PathBuf {
        self.launch().join("hosts-flush")
    }

    /// The node of the standby.
    pub fn standby_hosts(self) -> PathBuf {
        self.launch().join("hosts-standby")
    }

    /// What a standby says once it is the supervisor.
    pub fn standby_log(self) -> PathBuf {
        self.launch().join("standby.log")
    }

    /// The configuration that all starts of a job go by. `job`: as Slurm's commands take it.
    pub fn job_config(self, job: &str) -> PathBuf {
        self.launch().join(format!("job-{job}.yaml"))
    }

    /// The program that a job was first started with, once the file it was started from is another.
    pub fn job_program(self, job: &str) -> PathBuf {
        self.launch().join(format!("job-{job}.program"))
    }

    /// Which program a job was first started with.
    pub fn job_program_note(self, job: &str) -> PathBuf {
        self.launch().join(format!("job-{job}.program.json"))
    }
}

/// What commands beside the training write.
impl RunDir<'_> {
    /// The page of `herd report`.
    pub fn report(self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Where the live page is.
    pub fn report_url(self) -> PathBuf {
        self.0.join("report.url")
    }

    /// Requests that a server has accepted.
    pub fn serve_journal(self) -> PathBuf {
        self.0.join("serve.journal.jsonl")
    }

    /// Held by the one server of the run.
    pub fn serve_lock(self) -> PathBuf {
        self.0.join("serve.lock")
    }
}

/// A node's name as the name of a file.
fn file_name(node: &str) -> String {
    node.replace('/', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions of herd, its scripts and its users look for these.
    #[test]
    fn names_on_disk_stay() {
        let run = RunDir::new(Path::new("r"));
        let all = [
            (run.rank_log("rack/n1", 7), "r/logs/rack_n1/rank-00007.log"),
            (run.superseded_metrics(), "r/metrics.superseded.jsonl"),
            (run.newest_attempt(), "r/attempt.json"),
            (run.attempts(), "r/attempts.json"),
            (run.node_verdicts(2, "rack/n1"), "r/verdicts/attempt-0002/rack_n1.jsonl"),
            (run.drill_order(3), "r/drill/rank-00003.json"),
            (run.attempt_claim(12), "r/launch/attempt-0012"),
            (run.exits(12), "r/launch/exits-0012"),
            (run.attempt_hosts(12), "r/launch/hosts-0012"),
            (run.job_config("7_1"), "r/launch/job-7_1.yaml"),
            (run.job_program("7_1"), "r/launch/job-7_1.program"),
            (run.job_program_note("7_1"), "r/launch/job-7_1.program.json"),
            (run.serve_journal(), "r/serve.journal.jsonl"),
        ];
        for (path, name) in all {
            assert_eq!(path, Path::new(name));
        }
    }
}
