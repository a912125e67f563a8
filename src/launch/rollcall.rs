//! Which nodes take a step, asked of all at once: an empty `srun` whose tasks print their node's name. A node that lives
//! answers within a fraction of a second; Slurm itself takes 12 s to say that one does not, and minutes to mark it down.

use crate::host::{self, HostProcess, Pipe, SideWork};
use crate::slurm::{control, process, Job, StepLine};
use crate::text::whole_lines;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Slurm forwards a launch through a tree of this width; behind a dead node of a larger step others may be late.
const TREE_WIDTH: usize = 48;
/// How many steps ask at the same time.
const STEPS: usize = 64;
/// How often nodes of a large step that are late are asked again, in ever smaller steps.
const AGAIN: usize = 3;
/// How long nodes that are asked again may take, and what each adds.
const FEW: Duration = Duration::from_secs(5);
const FEW_NODE: Duration = Duration::from_millis(10);
/// A node is absent when the others have long answered: on a busy cluster all are late. The limit stretches to this many
/// times what the latest answer took, up to `LONGEST`.
const TIMES_THE_LATEST: u32 = 4;
const LONGEST: Duration = Duration::from_secs(30);

/// How long answers may take.
#[derive(Clone, Copy)]
pub struct Patience {
    /// The first of them.
    pub first: Duration,
    /// All others, at least, once there is a first; it stretches as [`TIMES_THE_LATEST`] says.
    pub others: Duration,
}

impl From<Duration> for Patience {
    fn from(limit: Duration) -> Patience {
        Patience { first: limit, others: limit }
    }
}

/// The nodes that do not answer within `limit`, or much later than the others, in the order given. What srun had to say is
/// logged where nobody answers.
pub fn absent(job: &Job, nodes: &[String], hosts_file: &Path, limit: impl Into<Patience>) -> Vec<String> {
    let limit = limit.into();
    // Slurm refuses a step as a whole when one of its nodes is down
    let down = control::nodes_down(nodes);
    let known: HashSet<&String> = down.iter().collect();
    let nodes: Vec<String> = nodes.iter().filter(|n| !known.contains(n)).cloned().collect();
    if nodes.is_empty() {
        return down;
    }
    let missing =
        |here: &BTreeSet<String>| -> Vec<String> { nodes.iter().filter(|n| !here.contains(*n)).cloned().collect() };
    let mut here = answers(job, std::slice::from_ref(&nodes), hosts_file, limit);
    let unclear = nodes.len() > TREE_WIDTH || here.is_empty() && nodes.len() > 1;
    for _ in 0..if unclear { AGAIN } else { 0 } {
        let (late, before) = (missing(&here), here.len());
        if late.is_empty() {
            break;
        }
        here.extend(answers(job, &groups(&late), hosts_file, again(limit, late.len())));
        // asked one by one, or nobody hears: nothing more is to be learnt
        if late.len() <= STEPS || here.len() == before {
            break;
        }
    }
    let absent = missing(&here);
    down.into_iter().chain(absent).collect()
}

/// How long few of many nodes may take.
fn again(all: Patience, late: usize) -> Patience {
    let few = FEW + FEW_NODE * late as u32;
    Patience { first: all.first.min(few), others: all.others.min(few) }
}

/// The same of nodes that are likely dead: each is asked by a step of its own, once, since a dead one may hold up the others
/// of its step. More than a few share steps.
pub fn silent(job: &Job, nodes: &[String], hosts_file: &Path, limit: Duration) -> Vec<String> {
    let down = control::nodes_down(nodes);
    let asked: Vec<String> = nodes.iter().filter(|n| !down.contains(n)).cloned().collect();
    let here = answers(job, &groups(&asked), hosts_file, limit.into());
    down.into_iter().chain(asked.into_iter().filter(|n| !here.contains(n))).collect()
}

/// One node a step, or as few as [`STEPS`] steps allow.
fn groups(nodes: &[String]) -> Vec<Vec<String>> {
    nodes.chunks(nodes.len().div_ceil(STEPS).max(1)).map(<[String]>::to_vec).collect()
}

/// Roll calls beside a start, one after the other, in a thread of their own: a step over thousands of nodes takes long, and the
/// start is watched meanwhile.
pub struct StartCalls {
    pub job: Job,
    pub nodes: Vec<String>,
    pub hosts_file: PathBuf,
    pub limit: Duration,
    /// From the end of one to the next.
    pub every: Duration,
    pub last: Instant,
    pub under_way: Option<SideWork<Vec<String>>>,
}

impl StartCalls {
    /// Begins a call that is due; the nodes that did not answer one that has ended. None where nobody answered: then the
    /// controller is away.
    pub fn news(&mut self) -> Vec<String> {
        match self.under_way.take_if(|call| call.is_finished()) {
            Some(call) => {
                self.last = host::now();
                let absent = call.join().unwrap_or_default();
                if absent.len() < self.nodes.len() {
                    absent
                } else {
                    Vec::new()
                }
            }
            None => {
                if self.under_way.is_none() && host::since(self.last) > self.every {
                    let (job, nodes, file, limit) =
                        (self.job.clone(), self.nodes.clone(), self.hosts_file.clone(), self.limit);
                    let call = move || absent(&job, &nodes, &file, limit);
                    let begun = host::beside("herd-rollcall", call);
                    let failed = |e: &std::io::Error| tracing::warn!("nodes are not asked during this start: {e}");
                    self.under_way = begun.inspect_err(failed).ok();
                    self.last = host::now();
                }
                Vec::new()
            }
        }
    }
}

/// Starts one step for each group and gathers what they print.
fn answers(job: &Job, groups: &[Vec<String>], hosts_file: &Path, patience: Patience) -> BTreeSet<String> {
    let mut here = BTreeSet::new();
    let mut said = Vec::new();
    let mut steps: Vec<AskingStep> = groups.iter().filter_map(|g| ask(job, g, hosts_file)).collect();
    let (began, wanted) = (host::now(), groups.iter().map(Vec::len).sum());
    let mut limit = patience.first;
    while here.len() < wanted && host::since(began) < limit {
        let (mut open, before) = (false, here.len());
        for step in &mut steps {
            if let Some(err) = step.err.as_mut() {
                host::drain(err, &mut said);
            }
            let Some(out) = step.out.as_mut() else { continue };
            match host::drain(out, &mut step.part) {
                true => open = true,
                false => step.out = None,
            }
            let lines = whole_lines(&mut step.part);
            here.extend(
                String::from_utf8_lossy(&lines).lines().map(|l| l.trim().to_string()).filter(|l| !l.is_empty()),
            );
        }
        if here.len() > before {
            limit = patience.others.max((host::since(began) * TIMES_THE_LATEST).min(LONGEST));
        }
        if !open {
            break;
        }
        host::sleep(Duration::from_millis(5));
    }
    if here.is_empty() && !said.is_empty() {
        tracing::warn!("roll call: {}", String::from_utf8_lossy(&said).trim());
    }
    // a step that answered ends by itself; one on a dead node is left to Slurm
    for mut step in steps {
        let patience = Duration::from_millis(if here.len() == wanted { 500 } else { 0 });
        if process::within(&mut step.process, patience).is_none() {
            step.process.end();
        }
    }
    here
}

/// A step that asks, and the beginning of a line whose end has not come.
struct AskingStep {
    process: HostProcess,
    out: Option<Pipe>,
    err: Option<Pipe>,
    part: Vec<u8>,
}

fn ask(job: &Job, nodes: &[String], hosts_file: &Path) -> Option<AskingStep> {
    let places: HashMap<&String, usize> = job.nodes.iter().enumerate().map(|(i, n)| (n, i)).collect();
    let mut sorted = nodes.to_vec();
    sorted.sort_by_key(|n| places.get(n));
    let step = StepLine {
        job,
        name: "herd-rollcall",
        nodes: &sorted,
        ranks_per_node: 1,
        mpi: "none",
        extra: &[],
        hosts_file,
        tree_width: None,
    };
    let mut command = step.command();
    command.args(["--quiet", "printenv", "SLURMD_NODENAME"]);
    let spawned = host::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())).ok()?;
    let (out, err) = (spawned.out?, spawned.err?);
    [&out, &err].iter().for_each(|pipe| pipe.do_not_block());
    Some(AskingStep { process: spawned.process, out: Some(out), err: Some(err), part: Vec::new() })
}
