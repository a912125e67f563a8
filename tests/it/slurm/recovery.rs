//! `herd launch` under real faults: a node that crashes, the first node among them, rank 0 killed, a crash that repeats itself, a requeue by hand, a
//! cancelled job. Every fault of the issue, with times, is in `make drill`.

use super::cluster::*;
use super::training::*;
use crate::support::{herd, text};
use herd::error::Exit;
use herd::run_dir::RunDir;
use serde_json::Value;
use std::time::Duration;

/// Three ranks on three of four nodes, probes once a second.
pub const THREE: &[&str] = &[
    "--set",
    "parallel.data=3",
    "--set",
    "batch={global: 12, micro: 4}",
    "--set",
    "checkpoint.every=1",
    "--set",
    "checkpoint.background=false",
    "--set",
    "liveness.interval_s=1",
];

pub fn submit(run: &Run, cluster: &Cluster, more: &[&str]) -> String {
    run.submit(cluster, &["-N4"], &[THREE, more].concat())
}

/// Waits for the `count`th recovery.
pub fn wait_for_recovery(run: &Run, count: usize) {
    wait_until("training again", Duration::from_secs(60), || run.events("recovered").len() == count);
}

/// Kills the process of one rank on its node.
pub fn kill_rank(cluster: &Cluster, node: &str, run: &Run) {
    let find = format!("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'herd train' && \
         tr '\\0' ' ' <$p/environ | grep -q SLURM_PROCID && readlink $p/cwd | grep -qx {} && kill -9 ${{p#/proc/}}; done; true",
        run.path().display());
    cluster.on(node, &find);
}

/// Gives a rank an order, as `herd drill` does.
fn order(run: &Run, rank: usize, text: &str) {
    let path = RunDir::new(&run.path().join("run")).drill_order(rank);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn json(run: &Run, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(run.path().join("run").join(name)).unwrap()).unwrap()
}

#[test]
fn a_spare_takes_over_and_the_losses_are_the_same() {
    let before = interfaces();
    let steps = 300;
    let cluster = Cluster::up(&["--nodes", "4", "--set", "SlurmdTimeout=15", "--cred-expire", "5"]);
    let whole = Run::new(steps);
    let job = submit(&whole, &cluster, &[]);
    assert_eq!(whole.ends(&cluster, &job), 0, "{}", whole.said());
    assert_whole(&whole.losses(), steps);

    let run = Run::new(steps);
    let job = submit(&run, &cluster, &[]);
    // Rank 0 dies: started again where it was.
    run.reaches(&cluster, &job, 20);
    kill_rank(&cluster, "herd1", &run);
    wait_until("training again", Duration::from_secs(30), || run.events("recovered").len() == 1);
    let fault = &run.events("fault")[0];
    assert!(fault["class"] == "process" && fault["nodes"][0] == "herd1", "{fault}");
    assert!(run.events("recovered")[0]["steps_lost"].as_u64().unwrap() <= 1);
    // A node crashes, with everything on it: the spare takes its place, and nobody else moves.
    let here = run.step();
    run.reaches(&cluster, &job, here + 10);
    if cluster.has_namespaces() {
        cluster.ok("kill", &["herd2"]);
        wait_until("training again", Duration::from_secs(60), || run.events("recovered").len() == 2);
        let fault = &run.events("fault")[1];
        assert!(fault["class"] == "node" && fault["nodes"][0] == "herd2", "{fault}");
        let nodes: Vec<_> = run.events("attempt_started").iter().map(|e| e["nodes"].clone()).collect();
        assert_eq!(nodes, ["herd1,herd2,herd3", "herd1,herd2,herd3", "herd1,herd4,herd3"]);
        let ledger = json(&run, "ledger.json");
        assert!(ledger["nodes"]["herd2"]["paused_until"].is_string(), "{ledger}");
    }
    assert_eq!(run.ends(&cluster, &job), 0, "{}", run.said());
    assert_whole(&run.losses(), steps);
    assert_eq!(run.losses(), whole.losses());
    let verify = herd().args(["checkpoint", "verify"]).arg(run.path().join("run")).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));

    let out = herd().args(["status", "--json"]).arg(run.path().join("run")).output().unwrap();
    let status: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(status["state"] == "finished" && status["step"] == steps, "{status}");
    let ratio = status["effective_time_ratio"].as_f64().unwrap();
    assert!(ratio > 0.0 && ratio < 1.0 && status["lost_s"].as_f64().unwrap() > 0.0, "{status}");
    cluster.ok("down", &[]);
    assert_nothing_left(cluster.path(), &before);
}

/// Both ranks that hold a slice fall silent, and both nodes live: what is in their memory goes to disk before spares take over.
#[test]
fn memory_of_nodes_that_were_given_up_and_live_is_not_lost() {
    let cluster = Cluster::up(&["--nodes", "5", "--cred-expire", "5"]);
    if !cluster.has_namespaces() {
        eprintln!("skipped: without namespaces all nodes share one memory");
        return;
    }
    let run = Run::new(1_000_000);
    let more = [
        "--set",
        "checkpoint.every=100000",
        "--set",
        "checkpoint.snapshot_every=1",
        "--set",
        "checkpoint.background=true",
    ];
    // After the same step, so that both are silent for as long.
    [1, 2].iter().for_each(|&rank| order(&run, rank, r#"{"kind":"stop","at_step":25}"#));
    let job = run.submit(&cluster, &["-N5"], &[THREE, &more].concat());
    wait_until("training again", Duration::from_secs(60), || run.events("recovered").len() == 1);
    let fault = &run.events("fault")[0];
    let named = fault["nodes"].as_array().unwrap();
    assert!(fault["class"] == "node" && named.iter().all(|n| n == "herd2" || n == "herd3"), "{fault}");
    let recovered = &run.events("recovered")[0];
    assert!(recovered["resumed_at"].as_u64().unwrap() >= 23, "{recovered}");
    // on a busy host one of the two may be found late a probe before the other: then its partner's memory is there
    if named.len() == 2 {
        let flush = &run.events("flush")[0];
        assert!(flush["result"].as_str().unwrap().starts_with("wrote"), "{flush}");
        let nodes: Vec<_> = run.events("attempt_started").iter().map(|e| e["nodes"].clone()).collect();
        assert_eq!(nodes, ["herd1,herd2,herd3", "herd1,herd4,herd5"]);
    }
    assert_whole_so_far(&run);
    cluster.run(&format!("scancel {job}"));
    wait_until("the job is cancelled", Duration::from_secs(30), || ended(&cluster, &job));
}

/// Slurm leaves a job with `--no-kill` running when the node of its batch script is lost: the supervisor's standby goes on.
#[test]
fn the_first_node_crashes_and_the_standby_goes_on_in_the_same_job() {
    let steps = 300;
    let cluster = Cluster::up(&["--nodes", "4", "--set", "SlurmdTimeout=15", "--cred-expire", "5"]);
    if !cluster.has_namespaces() {
        eprintln!("skipped: nodes without namespaces do not crash with everything on them");
        return;
    }
    let run = Run::new(steps);
    let job = submit(&run, &cluster, &[]);
    run.reaches(&cluster, &job, 20);
    cluster.ok("kill", &["herd1"]);
    wait_until("the standby has taken over", Duration::from_secs(120), || run.events("taken_over").len() == 1);
    let over = &run.events("taken_over")[0];
    assert!(over["lost"] == "herd1" && over["by"] == "herd4", "{over}");
    run.ends(&cluster, &job);
    // With its batch script lost, only a cancel ends the job.
    assert_eq!(state(&cluster, &job), "CANCELLED");
    assert_eq!((run.events("finished").len(), run.events("requeue").len()), (1, 0));
    assert_whole(&run.losses(), steps);
    let starts = run.events("attempt_started");
    assert_eq!((&starts[0]["nodes"], &starts[1]["nodes"]), (&"herd1,herd2,herd3".into(), &"herd4,herd2,herd3".into()));
    assert!(json(&run, "ledger.json")["nodes"]["herd1"]["paused_until"].is_string());
}

/// An order to rank 1 to leave with code 1 after step 6, given again for each attempt: a crash that repeats itself.
#[test]
fn a_crash_that_repeats_itself_stops_after_three_tries() {
    let cluster = Cluster::up(&["--nodes", "4", "--cred-expire", "5"]);
    let run = Run::new(1000);
    let give = || order(&run, 1, r#"{"kind":"exit","code":1,"at_step":6}"#);
    give();
    let job = submit(&run, &cluster, &[]);
    for tries in 1..3 {
        wait_until("a fault", Duration::from_secs(60), || run.events("fault").len() >= tries);
        give();
    }
    assert_eq!(run.ends(&cluster, &job), Exit::GaveUp.code(), "{}", run.said());
    assert_eq!((run.events("attempt_started").len(), run.events("requeue").len()), (3, 0));
    let why = run.events("launch_ended")[0]["why"].as_str().unwrap().to_string();
    assert!(why.contains("3 times in a row in step 7"), "{why}");
    let shown = cluster.run(&format!("scontrol show job {job}"));
    assert!(shown.contains("JobState=FAILED") && shown.contains("Restarts=0"), "{shown}");
}

#[test]
fn a_requeue_by_hand_goes_on_and_a_cancelled_job_does_not() {
    let cluster = Cluster::up(&["--nodes", "4", "--cred-expire", "5"]);
    let run = Run::new(1_000_000);
    let job = submit(&run, &cluster, &[]);
    run.reaches(&cluster, &job, 20);
    cluster.run(&format!("scontrol requeue {job}"));
    wait_until("a second start", Duration::from_secs(60), || run.events("attempt_started").len() == 2);
    let stopped = run.events("stopped")[0]["step"].as_u64().unwrap();
    run.reaches(&cluster, &job, stopped + 20);
    assert_eq!(run.events("resume").last().unwrap()["step"], stopped, "saved at the step at which it stopped");
    assert_whole_so_far(&run);
    assert_eq!(run.events("requeue").len(), 0, "Slurm had done it");
    let attempts = json(&run, "attempts.json");
    assert_eq!(attempts["attempts"][1]["restarts"], 1, "the budget counts on over the requeue");

    cluster.run(&format!("scancel {job}"));
    wait_until("the job is cancelled", Duration::from_secs(30), || ended(&cluster, &job));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(state(&cluster, &job), "CANCELLED");
    assert_eq!((run.events("attempt_started").len(), run.events("requeue").len()), (2, 0));
}
