//! `herd doctor` over the nodes of a job, from its batch script: a roll call, a step of one examination, and, where that does not
//! come to its end, a step without MPI that says which nodes are to blame. What is found goes into the ledger of nodes.

use super::ledger::{Book, Failure};
use super::rollcall;
use super::tasks_on_each_node;
use crate::config::Config;
use crate::doctor::judge::{self, stuck};
use crate::doctor::{self, Check, Diagnosis, HostFacts, Inquiry, StalledWait, WAITING};
use crate::error::{Error, Exit, Result};
use crate::host::{self, Spawned};
use crate::run_dir::RunDir;
use crate::slurm::messages::{self, How, SlurmMessage};
use crate::slurm::process::within;
use crate::slurm::{Job, Site, StepLine};
use crate::world::library;
use jiff::{SignedDuration, Timestamp};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Key of the line in which rank 0 of the step hands over the diagnosis, and of those of a node's facts without MPI.
pub const DIAGNOSIS: &str = "herd_doctor";
const FACTS: &str = "herd_doctor_facts";
/// Characters of facts on a line: srun passes on at most 1024 bytes at a time, and longer lines of several tasks get mixed.
const PIECE: usize = 400;

/// How long nodes may take to answer at first.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest examination, MPI's start included; its ranks give up earlier by themselves.
const EXAMINATION: Duration = Duration::from_secs(180);
/// After the first rank has ended, how long the others may take.
const TOGETHER_S: u64 = 10;
const WITHOUT_MPI: Duration = Duration::from_secs(60);
/// Words of what srun said that are repeated.
const WORDS: usize = 300;
/// What reasons in the ledger begin with.
const REASON: &str = "doctor: ";

/// What to examine.
pub struct Preflight<'a> {
    /// The job whose nodes are examined.
    pub job: &'a Job,
    /// The run's configuration, `sets` included; `None`: only what does not depend on a run is examined.
    pub config: Option<&'a Config>,
    /// File of the configuration, which the step reads again; `None` without one.
    pub path: Option<&'a Path>,
    /// Keys that were overridden on the command line, as `KEY=VALUE`; handed on to the step.
    pub sets: &'a [String],
    /// The program that the step runs.
    pub program: PathBuf,
}

/// How a step has ended, and all that it said.
struct StepEnd {
    out: String,
    err: String,
}

impl Preflight<'_> {
    /// Errors: the job's nodes or tasks are not known, Slurm has no MPI plugin that fits ([`Exit::World`]), or the
    /// configuration is wrong.
    pub fn examine(&self) -> Result<Diagnosis> {
        let (job, began) = (self.job, std::time::Instant::now());
        if job.nodes.is_empty() {
            let fact = format!("the nodes of job {} are not known (SLURM_JOB_NODELIST)", job.id);
            return Err(Error::new(Exit::World, fact)
                .hint("start herd doctor from the batch script, with Slurm's own environment"));
        }
        let per_node = match self.config.and_then(|c| c.launch.ranks_per_node) {
            Some(n) => n,
            None => tasks_on_each_node(job)?,
        };
        let site = Site::ask();
        let wanted = self.config.map_or("auto", |c| &c.launch.mpi);
        let mpi = site.plugin(wanted, &library())?;
        // a list of hosts is needed only where nodes stand in another order than the job's
        let hosts_file = std::env::temp_dir().join("herd-doctor-hosts");
        let absent = rollcall::absent(job, &job.nodes, &hosts_file, ANSWER);
        let nodes: Vec<String> = job.nodes.iter().filter(|n| !absent.contains(n)).cloned().collect();
        let mut d = match nodes.is_empty() {
            true => Diagnosis::new(Vec::new(), 0, Vec::new()),
            false => self.of_nodes(&nodes, per_node, &mpi, &site, &hosts_file)?,
        };
        if !absent.is_empty() {
            let cure = "look at slurmd and the network of these nodes (sinfo -R); herd launch passes them over";
            d.nodes.clone_from(&job.nodes);
            d.add(vec![Check::red("answer", "no answer to a roll call through Slurm", cure).on(&absent)]);
        }
        d.seconds = began.elapsed().as_secs_f64();
        Ok(d)
    }

    fn of_nodes(
        &self, nodes: &[String], per_node: usize, mpi: &str, site: &Site, hosts_file: &Path,
    ) -> Result<Diagnosis> {
        let step = |mpi: &str, per_node: usize, option: &str| {
            let extra = self.config.map_or(&[][..], |c| &c.launch.srun);
            let name = "herd-doctor";
            let line = StepLine {
                job: self.job,
                name,
                nodes,
                ranks_per_node: per_node,
                mpi,
                extra,
                hosts_file,
                tree_width: site.tree_width,
            };
            let mut c = line.command();
            c.arg(format!("--wait={TOGETHER_S}")).arg(&self.program).args(["doctor", option]);
            c.args(self.path);
            self.sets.iter().for_each(|s| _ = c.args(["--set", s]));
            c
        };
        let ended = run(step(mpi, per_node, "--step"), EXAMINATION)?;
        if let Some(found) = values(&ended.out, DIAGNOSIS).pop() {
            return serde_json::from_value(found)
                .map_err(|e| Error::new(Exit::Internal, format!("the step's diagnosis: {e}")));
        }
        // a mistake in the configuration is told as everywhere
        let question = match self.path {
            Some(path) => Inquiry::of(path, self.sets, self.job.nodes.len(), per_node)?,
            None => Inquiry::without_config(),
        };
        let alone = run(step("none", 1, "--facts"), WITHOUT_MPI)?;
        Ok(self.without_mpi(&question, nodes, &ended, &alone, per_node))
    }

    /// Judges what nodes found out alone, and why they did not come together.
    fn without_mpi(
        &self, q: &Inquiry, nodes: &[String], ended: &StepEnd, alone: &StepEnd, per_node: usize,
    ) -> Diagnosis {
        let facts = facts_of(&alone.out);
        let silent: Vec<&String> = nodes.iter().filter(|n| !facts.iter().any(|f| &f.node == *n)).collect();
        let mut checks = if facts.is_empty() { Vec::new() } else { judge::without_mpi(q, &facts) };
        checks.extend(doctor::planned(q));
        checks.extend(doctor::slurm());
        let said = [&ended.err, &alone.err].map(|s| s.as_str()).join("\n");
        match silent.is_empty() {
            false => {
                let cure = "start `herd --version` on this node: a library that is missing or another machine's program is told there";
                let fact = format!("herd does not start here, also without MPI: {}", words(&said));
                checks.push(Check::red("start", fact, cure).on(silent));
            }
            true => {
                let waiting: Vec<StalledWait> =
                    values(&ended.err, WAITING).into_iter().filter_map(|v| serde_json::from_value(v).ok()).collect();
                checks.extend(match died(&ended.err, nodes) {
                    Some(check) if waiting.is_empty() => vec![check],
                    _ => stuck::judge(nodes, &waiting),
                });
                tracing::warn!("the examination over MPI did not come to its end: {}", words(&ended.err));
            }
        }
        checks.push(Check::skipped("links", "not measured: the ranks did not come together"));
        Diagnosis::new(nodes.to_vec(), nodes.len() * per_node, checks)
    }
}

/// A node's facts as short lines.
pub fn facts_lines(facts: &HostFacts) -> String {
    let text: Vec<char> = json!(facts).to_string().chars().collect();
    let pieces: Vec<String> = text.chunks(PIECE).map(|c| c.iter().collect()).collect();
    let line = |(i, piece)| json!({ FACTS: { "node": facts.node, "at": i, "of": pieces.len(), "text": piece } });
    pieces.iter().enumerate().map(|p| format!("{}\n", line(p))).collect()
}

/// The facts of every node whose lines are all there.
fn facts_of(text: &str) -> Vec<HostFacts> {
    let mut pieces: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    let mut count: BTreeMap<String, u64> = BTreeMap::new();
    for v in values(text, FACTS) {
        let (Some(node), Some(at), Some(of)) = (v["node"].as_str(), v["at"].as_u64(), v["of"].as_u64()) else {
            continue;
        };
        count.insert(node.into(), of);
        pieces.entry(node.into()).or_default().insert(at, v["text"].as_str().unwrap_or_default().into());
    }
    let whole = pieces.into_iter().filter(|(node, p)| count.get(node) == Some(&(p.len() as u64)));
    whole.filter_map(|(_, p)| serde_json::from_str(&p.into_values().collect::<String>()).ok()).collect()
}

/// Tasks of the step that died by themselves, where that is not all of them.
fn died(err: &str, nodes: &[String]) -> Option<Check> {
    let mut by_node: BTreeMap<String, String> = BTreeMap::new();
    for message in err.lines().filter_map(messages::parse) {
        match message {
            SlurmMessage::Aborted => break,
            SlurmMessage::CannotRun { node: Some(node), why } => _ = by_node.insert(node, why),
            SlurmMessage::Tasks { nodes, how: How::Code(code), .. } => {
                nodes.into_iter().for_each(|n| _ = by_node.insert(n, format!("exit code {code}")));
            }
            SlurmMessage::Tasks { nodes, how: How::Signal(signal), .. } => {
                nodes.into_iter().for_each(|n| _ = by_node.insert(n, signal.clone()));
            }
            _ => {}
        }
    }
    let (_, why) = by_node.iter().next()?;
    if by_node.len() >= nodes.len() {
        return None;
    }
    let fact = format!("a rank died in the examination ({why}): {}", words(err));
    Some(Check::red("start", fact, "run `srun --mpi=pmix -w NODE herd doctor` on this node alone").on(by_node.keys()))
}

/// The first words of an error that somebody else printed, on one line.
fn words(said: &str) -> String {
    let ours = |l: &&str| !l.starts_with('{') && !l.trim().is_empty();
    let mut lines: Vec<&str> = said.lines().filter(ours).map(str::trim).collect();
    lines.dedup();
    let text = lines.join("; ");
    match text.char_indices().nth(WORDS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// What lines of JSON say under `key`.
fn values(text: &str, key: &str) -> Vec<Value> {
    let objects = text.lines().filter(|l| l.starts_with('{')).filter_map(|l| serde_json::from_str::<Value>(l).ok());
    objects.filter_map(|mut v| v.get_mut(key).map(Value::take)).collect()
}

/// Runs a step for at most `limit`; its output is read as it comes.
fn run(mut command: Command, limit: Duration) -> Result<StepEnd> {
    let failed = |e: std::io::Error| {
        Error::new(Exit::World, format!("srun: cannot be started: {e}")).hint("is Slurm's client in PATH?")
    };
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Spawned { mut process, out, err, .. } = host::spawn(piped).map_err(failed)?;
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.map(|mut f| f.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (out, err) = (read(out.map(|o| Box::new(o) as _)), read(err.map(|e| Box::new(e) as _)));
    if within(&mut process, limit).is_none() {
        process.end();
    }
    Ok(StepEnd { out: out.join().unwrap_or_default(), err: err.join().unwrap_or_default() })
}

/// What the ledger was told.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Recorded {
    /// Nodes that `herd launch` avoids from now on, and why.
    pub avoided: BTreeMap<String, String>,
    /// Nodes that an earlier examination had found bad, and this one good.
    pub cleared: Vec<String>,
}

/// Tells the ledger of the run which nodes are bad, and which of those that a doctor had named are good again.
///
/// # Errors
/// [`Exit::Storage`].
pub fn record(d: &Diagnosis, config: &Config, job: u64) -> Result<Recorded> {
    let (dir, limits, bad) = (&config.run_dir, &config.launch, d.bad_nodes());
    let mut told = Recorded::default();
    if bad.is_empty() && !RunDir::new(dir).ledger().exists() && limits.ledger.is_none() {
        return Ok(told);
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
    let mut book = Book::open(dir, limits.ledger.as_deref())?;
    let pause = SignedDuration::try_from_secs_f64(limits.node_pause_s).unwrap_or(SignedDuration::MAX);
    for (node, rows) in bad {
        let reason = format!("{REASON}{}", rows.join(", "));
        let failure = Failure { time: Timestamp::now(), job, attempt: 0, reason: reason.clone() };
        book.ledger.record(&node, failure, Some(pause), limits.node_failures);
        told.avoided.insert(node, reason);
    }
    for node in d.nodes.iter().filter(|n| !told.avoided.contains_key(*n)) {
        if book.ledger.clear(node, REASON, Timestamp::now()) {
            told.cleared.push(node.clone());
        }
    }
    if !told.avoided.is_empty() || !told.cleared.is_empty() {
        book.save()?;
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_json_among_others() {
        let text = "srun: hello\n{\"herd_doctor\": {\"a\": 1}}\n{broken\n{\"other\": 2}\n";
        assert_eq!(values(text, DIAGNOSIS), [serde_json::json!({"a": 1})]);
        assert_eq!(words("{\"x\":1}\n a\na\n\nb "), "a; b");
    }

    #[test]
    fn facts_come_whole_whatever_the_order_of_their_lines() {
        let facts = |node: &str| HostFacts {
            node: node.into(),
            inputs: (0..40).map(|i| (format!("/data/\"ü\"/{i}"), Ok("0123456789abcdef".to_string()))).collect(),
            ..HostFacts::default()
        };
        let (a, b) = (facts_lines(&facts("n1")), facts_lines(&facts("n2")));
        assert!(a.lines().count() > 3 && a.lines().all(|l| l.len() < 1000), "{a}");
        let mixed: Vec<&str> = a.lines().rev().zip(b.lines()).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(facts_of(&mixed.join("\n")), [facts("n1"), facts("n2")]);
        assert_eq!(facts_of(&mixed[1..].join("\n")), [facts("n2")]);
    }

    #[test]
    fn a_rank_that_died_alone_is_named() {
        let nodes = ["herd1", "herd2"].map(String::from);
        let check = died("srun: error: herd2: task 1: Exited with exit code 127\n", &nodes).unwrap();
        assert_eq!(check.who(), "herd2");
        assert!(check.fact.contains("exit code 127"), "{}", check.fact);
        assert!(died("srun: error: herd[1-2]: tasks 0-1: Exited with exit code 1\n", &nodes).is_none());
    }
}
