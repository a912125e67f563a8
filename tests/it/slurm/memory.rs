//! Snapshots on a cluster whose nodes have memory of their own: a node dies with everything on it.

use super::cluster::*;
use crate::support::{herd, text};
use crate::train::{bits, lines, losses, wait_for_step, Run};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SET: [&str; 4] = ["train.steps=200", "checkpoint.every=0", "checkpoint.snapshot_every=1", "validation.every=0"];

/// `srun` of herd train, one rank on each of `nodes`.
fn train(cluster: &Cluster, run: &Run, dir: &Path, nodes: &str, more: &[&str]) -> Command {
    let n = nodes.split(',').count().to_string();
    let mut c = cluster.command("run", &["srun", "--mpi=pmix", "--overlap", "-w", nodes, "-N", &n, "-n", &n]);
    c.arg(herd().get_program()).arg("train").arg(run.config());
    let dir = format!("run_dir={}", dir.display());
    SET.iter().copied().chain([dir.as_str()]).chain(more.iter().copied()).for_each(|s| {
        c.args(["--set", s]);
    });
    c
}

fn crash(cluster: &Cluster, child: &mut Child, dir: &Path, step: u64) {
    wait_for_step(dir, step, child);
    cluster.ok("kill", &["herd2"]);
    // The ranks that are left wait for the dead one: ended as a supervisor ends them.
    cluster.run("scancel --signal=KILL -u $(id -un) || true");
    // SAFETY: ends a process that this test started.
    unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
    child.wait().unwrap();
    wait_until("the ranks end", Duration::from_secs(60), || {
        processes_of(dir).iter().all(|line| !line.contains("herd train"))
    });
}

/// The spare has nothing, the dead node's slice lies in the memory of its partner. Bitwise as if nothing had been.
#[test]
fn a_spare_takes_the_dead_nodes_slice_from_its_partner() {
    let cluster = Cluster::up(&["--nodes", "3"]);
    if !cluster.has_namespaces() {
        return eprintln!("SKIPPED: nodes without memory of their own cannot lose it");
    }
    let run = Run::new();
    let whole = run.path("whole");
    let out = train(&cluster, &run, &whole, "herd1,herd2", &["checkpoint.snapshot_every=0"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));

    let dir = run.path("run");
    let quiet = |mut c: Command| c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = quiet(train(&cluster, &run, &dir, "herd1,herd2", &[]));
    crash(&cluster, &mut child, &dir, 60);
    let last = lines(&dir, "metrics.jsonl").last().unwrap()["step"].as_u64().unwrap();
    let out = train(&cluster, &run, &dir, "herd1,herd3", &[]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let resumed: Vec<_> = lines(&dir, "events.jsonl").into_iter().filter(|e| e["kind"] == "resume").collect();
    let (step, tiers) = (resumed[0]["step"].as_u64().unwrap(), &resumed[0]["tiers"]);
    assert!(step + 3 >= last, "step {last} was done, {step} was found");
    assert!(tiers["node"].as_u64() > Some(0) && tiers["remote_partner"].as_u64() > Some(0), "{tiers}");
    assert_eq!(bits(&losses(&whole)), bits(&losses(&dir)));
    // The run is done and has left no memory in use.
    for node in ["herd1", "herd3"] {
        assert_eq!(cluster.on(node, "ls /dev/shm | grep ^herd- || true"), "");
    }
}

/// The survivors' memory goes to disk without the dead node: its part is the second copy.
#[test]
fn flush_after_the_crash_of_a_node() {
    let cluster = Cluster::up(&["--nodes", "2"]);
    if !cluster.has_namespaces() {
        return eprintln!("SKIPPED: nodes without memory of their own cannot lose it");
    }
    let run = Run::new();
    let dir = run.path("run");
    let mut child = train(&cluster, &run, &dir, "herd1,herd2", &["train.steps=100000"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    crash(&cluster, &mut child, &dir, 60);
    let last = lines(&dir, "metrics.jsonl").last().unwrap()["step"].as_u64().unwrap();
    let mut flush = cluster.command("run", &["srun", "--mpi=pmix", "--overlap", "-w", "herd1", "-N1", "-n1"]);
    let out = flush.arg(herd().get_program()).args(["checkpoint", "flush", "--json"]).arg(&dir).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let done: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(done["step"].as_u64().unwrap() + 3 >= last && done["from_partners"] == 1, "{done}, last {last}");
    let verify = herd().args(["checkpoint", "verify"]).arg(&dir).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
}
