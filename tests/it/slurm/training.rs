//! Training through the batch script of the demo, with a smaller model: signals, requeue, crashes of nodes.

use super::cluster::*;
use crate::support::{herd, root, text};
use herd::error::Exit;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where a run lies whose batch script is the demo's and whose configuration is small.
pub struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    /// `steps` of a model with two layers on text that was tokenized for it, over two ranks.
    pub fn new(steps: u64) -> Run {
        let run = Run { dir: tempfile::tempdir().unwrap() };
        let at = |name: &str| run.dir.path().join(name);
        let text: String =
            (0..4000).map(|i| format!("{i} sheep and {} goats went over the hill. ", i * 7 % 31)).collect();
        std::fs::write(at("text.txt"), text).unwrap();
        let mut tokenize = herd();
        tokenize.args(["data", "tokenize", "--tokenizer", "bytes", "--output"]).arg(at("corpus")).arg(at("text.txt"));
        let out = tokenize.output().unwrap();
        assert!(out.status.success(), "{}", crate::support::text(&out));
        std::fs::create_dir(at("configs")).unwrap();
        std::fs::write(at("configs/llama3_demo.yaml"), config(steps)).unwrap();
        run
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Submits slurm/llama3_demo.sbatch with these arguments; the job's number.
    pub fn submit(&self, cluster: &Cluster, options: &[&str], arguments: &[&str]) -> String {
        let script = root().join("slurm/llama3_demo.sbatch");
        let mut c = cluster.command("run", &["sbatch", "--parsable"]);
        c.arg("--chdir").arg(self.path()).arg("--output").arg(self.log()).args(options).arg(script).args(arguments);
        // The script takes herd from PATH, since there is no module command here.
        let binary = PathBuf::from(herd().get_program());
        let path = std::env::var("PATH").unwrap_or_default();
        c.env("PATH", format!("{}:{}:{path}", self.path().join("bin").display(), binary.parent().unwrap().display()));
        // What herd launch must set itself stays out.
        ["BASH_FUNC_module%%", "SLURM_PMIX_FENCE"].iter().for_each(|name| {
            c.env_remove(name);
        });
        let out = c.output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    }

    pub fn log(&self) -> PathBuf {
        self.path().join("job.log")
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// (step, bits of its loss), in the order written.
    pub fn losses(&self) -> Vec<(u64, u64)> {
        let text = std::fs::read_to_string(self.path().join("run/metrics.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let records = whole.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.filter_map(|r| Some((r["step"].as_u64()?, r["loss"].as_f64()?.to_bits()))).collect()
    }

    pub fn step(&self) -> u64 {
        self.losses().last().map_or(0, |&(step, _)| step)
    }

    /// Lines of `events.jsonl` of one kind.
    pub fn events(&self, kind: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path().join("run/events.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).filter(|e| e["kind"] == kind).collect()
    }

    /// Waits until the run has done `step`, and fails with the log if the job ends before.
    pub fn reaches(&self, cluster: &Cluster, job: &str, step: u64) {
        wait_until(&format!("step {step}"), Duration::from_secs(300), || {
            let done = self.step() >= step;
            assert!(done || !ended(cluster, job), "job {job} ended at step {}:\n{}", self.step(), self.said());
            done
        });
    }

    /// All there is to know about a job that went wrong.
    fn story(&self, cluster: &Cluster, job: &str) -> String {
        let file = |name: &str| std::fs::read_to_string(self.path().join("run").join(name)).unwrap_or_default();
        let shown = cluster.run(&format!("scontrol show job {job}; sinfo -N -l; squeue -s"));
        format!(
            "{shown}\n{}\nat step {}\n{}\n{}",
            self.said(),
            self.step(),
            file("events.jsonl"),
            file("attempts.json")
        )
    }

    /// Waits for the end of the job; its exit code.
    pub fn ends(&self, cluster: &Cluster, job: &str) -> i32 {
        let began = Instant::now();
        while !ended(cluster, job) {
            assert!(began.elapsed() < Duration::from_secs(300), "not ended within 300 s: {}", self.story(cluster, job));
            std::thread::sleep(Duration::from_millis(100));
        }
        let shown = cluster.run(&format!("scontrol show job {job}"));
        let code = shown.split("ExitCode=").nth(1).and_then(|rest| rest.split(':').next());
        code.and_then(|c| c.parse().ok()).unwrap_or_else(|| panic!("no exit code in\n{shown}"))
    }
}

pub fn state(cluster: &Cluster, job: &str) -> String {
    let shown = cluster.run(&format!("scontrol show job {job}"));
    let state = shown.split("JobState=").nth(1).and_then(|rest| rest.split_whitespace().next());
    state.unwrap_or_default().to_string()
}

pub fn ended(cluster: &Cluster, job: &str) -> bool {
    !["PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED"]
        .contains(&state(cluster, job).as_str())
}

fn config(steps: u64) -> String {
    format!(
        "name: small
run_dir: run
model:
  shape:
    vocab_size: 258
    hidden_size: 64
    intermediate_size: 128
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
data:
  tokenizer: bytes
  sequence_length: 128
  train: [{{ path: corpus }}]
batch: {{ global: 8, micro: 4 }}
train: {{ steps: {steps}, precision: fp32, device: cpu, threads: 1 }}
optim: {{ warmup_steps: 10 }}
checkpoint: {{ every: 25, keep: 2 }}
log: {{ tensorboard: false }}
"
    )
}

/// The steps 1..=n, each once.
pub fn assert_whole(losses: &[(u64, u64)], n: u64) {
    let steps: Vec<u64> = losses.iter().map(|&(step, _)| step).collect();
    assert_eq!(steps, (1..=n).collect::<Vec<_>>());
}

/// The same of a run that goes on: its file is read once.
pub fn assert_whole_so_far(run: &Run) {
    let losses = run.losses();
    assert_whole(&losses, losses.len() as u64);
}

#[test]
fn stopping_and_resubmitting_equals_one_run() {
    let cluster = Cluster::up(&[]);
    let whole = Run::new(40);
    let job = whole.submit(&cluster, &[], &[]);
    assert_eq!(whole.ends(&cluster, &job), 0, "{}", whole.said());

    let parts = Run::new(40);
    let job = parts.submit(&cluster, &[], &["--set", "train.stop_at=15"]);
    assert_eq!(parts.ends(&cluster, &job), Exit::Requeue.code(), "{}", parts.said());
    assert_eq!(parts.step(), 15);
    let job = parts.submit(&cluster, &[], &[]);
    assert_eq!(parts.ends(&cluster, &job), 0, "{}", parts.said());
    assert_whole(&parts.losses(), 40);
    assert_eq!(parts.losses(), whole.losses());
}

#[test]
fn the_warning_before_the_time_limit_saves_and_requeues() {
    let cluster = Cluster::up(&["--cred-expire", "5"]);
    let run = Run::new(1_000_000);
    let job = run.submit(&cluster, &[], &[]);
    run.reaches(&cluster, &job, 20);
    // What `--signal=B:USR1@120` does two minutes before the end.
    cluster.run(&format!("scancel --batch --signal=USR1 {job}"));
    wait_until("the job is back in the queue", Duration::from_secs(30), || {
        assert!(!ended(&cluster, &job), "{}", run.said());
        state(&cluster, &job) == "PENDING"
    });
    let stopped = run.step();
    run.reaches(&cluster, &job, stopped + 20);
    assert_whole_so_far(&run);
    assert!(cluster.run(&format!("scontrol show job {job}")).contains("Restarts=1"));
    let events = std::fs::read_to_string(run.path().join("run/events.jsonl")).unwrap();
    let of = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap();
    let starts: Vec<_> = events.lines().map(of).filter(|e| e["kind"] == "slurm_job").collect();
    assert_eq!(starts.iter().map(|e| e["restarts"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    assert!(starts.iter().all(|e| e["job"].as_u64() == job.parse().ok() && e["nodes"] == "herd[1-2]"), "{starts:?}");

    // A cancelled job is not put back.
    cluster.run(&format!("scancel {job}"));
    wait_until("the job is cancelled", Duration::from_secs(30), || ended(&cluster, &job));
    assert_eq!(state(&cluster, &job), "CANCELLED");
}

/// Slurm's SIGTERM to a job that it requeues may come before its answer: to scontrol at the first start here, and with the
/// answer gone at the second. Neither is a requeue that failed.
#[test]
fn a_requeue_is_one_though_its_answer_is_lost() {
    let cluster = Cluster::up(&["--cred-expire", "5"]);
    let run = Run::new(1_000_000);
    let scontrol = run.path().join("bin/scontrol");
    std::fs::create_dir(scontrol.parent().unwrap()).unwrap();
    let real = cluster.run("command -v scontrol");
    let text = format!(
        "#!/bin/bash\n[ \"$1\" = requeue ] || exec {real} \"$@\"\n\
         [ \"${{SLURM_RESTART_COUNT:-0}}\" = 0 ] && kill -TERM $$ && exec {real} \"$@\"\n{real} \"$@\"\nexit 143\n"
    );
    std::fs::write(&scontrol, text).unwrap();
    cluster.run(&format!("chmod +x {}", scontrol.display()));
    let job = run.submit(&cluster, &[], &[]);
    for start in 1..=2 {
        run.reaches(&cluster, &job, run.step() + 20);
        cluster.run(&format!("scancel --batch --signal=USR1 {job}"));
        wait_until("a requeue", Duration::from_secs(30), || {
            assert!(!ended(&cluster, &job), "{}", run.said());
            cluster.run(&format!("scontrol show job {job}")).contains(&format!("Restarts={start}"))
        });
        wait_until("the next start", Duration::from_secs(60), || run.events("slurm_job").len() == start + 1);
    }
    run.reaches(&cluster, &job, run.step() + 20);
    assert_eq!((run.events("requeue").len(), run.events("launch_ended").len()), (2, 0), "{}", run.said());
    assert_whole_so_far(&run);
}

/// Slurm puts the job back into the queue, and it goes on from its newest checkpoint when there are nodes again.
#[test]
fn after_the_crash_of_a_node_the_job_goes_on_from_its_checkpoint() {
    let steps = 1000;
    let cluster = Cluster::up(&["--set", "SlurmdTimeout=10", "--cred-expire", "5"]);
    let whole = Run::new(steps);
    let job = whole.submit(&cluster, &[], &[]);
    assert_eq!(whole.ends(&cluster, &job), 0, "{}", whole.said());

    let run = Run::new(steps);
    let job = run.submit(&cluster, &[], &[]);
    run.reaches(&cluster, &job, 60);
    cluster.ok("kill", &["herd2"]);
    wait_until("the job is back in the queue", Duration::from_secs(120), || {
        assert!(!ended(&cluster, &job), "{}", run.said());
        state(&cluster, &job) == "PENDING"
    });
    assert!(run.step() < steps, "the job was done before the crash");
    cluster.ok("boot", &["herd2"]);

    assert_eq!(run.ends(&cluster, &job), 0, "{}", run.said());
    let shown = cluster.run(&format!("scontrol show job {job}"));
    assert!(shown.contains("Restarts=") && !shown.contains("Restarts=0"), "{shown}");
    assert_whole(&run.losses(), steps);
    assert_eq!(run.losses(), whole.losses());
    let verify = herd().args(["checkpoint", "verify"]).arg(run.path().join("run")).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
}

/// In the batch script itself, without srun, there is one rank where the job has two tasks.
#[test]
fn train_without_srun_in_a_job_is_refused() {
    let cluster = Cluster::up(&[]);
    let run = Run::new(10);
    let mut c: Command = cluster.command("run", &["sbatch", "--wait", "-N2", "--ntasks-per-node=1"]);
    c.arg("--chdir").arg(run.path()).arg("--output").arg(run.log());
    c.arg("--wrap").arg(format!("{} train configs/llama3_demo.yaml", PathBuf::from(herd().get_program()).display()));
    let out = c.output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::World.code()), "{}", run.said());
    assert!(run.said().contains("SLURM_NTASKS=2") && run.said().contains("srun --mpi=pmix"), "{}", run.said());
}
